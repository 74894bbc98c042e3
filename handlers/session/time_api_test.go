package session

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/identity"
	"holdfast/object"
)

// What a watcher of sessions sees: its connections, what it is on, that its end is near, and its end.
func TestWatchSessions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	id, c := in.GetSession().GetSessionId(), b.with(t, in.GetTokens().GetAccessToken())
	w := b.watchSession(t, in.GetTokens().GetAccessToken())
	first := w.next(t)
	if first.Session.GetSessionId() != id || !first.Session.GetCurrent() || first.Session.GetEndsSoon() || first.Session.GetEndReason() != 0 {
		t.Errorf("first: %v", first)
	}
	opened := must(c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{Modality: typev1.Modality_MODALITY_VOICE, Device: &typev1.Device{Name: "phone"}, Capabilities: []string{"barge_in"}}}))(t)
	if got := opened.GetConnection().GetExpiresIn().AsDuration(); got != time.Minute {
		t.Errorf("it expires in %v", got)
	}
	same(t, "a connection", w.next(t).Session.GetConnections()[0], opened.GetConnection())

	// The modality and the device change, and what the session is on does not.
	must(c.UpdateSession(t.Context(), &sessionv1.UpdateSessionRequest{Session: &sessionv1.Session{ActiveConversationId: c1, ActiveProjectId: "p1"}}))(t)
	w.next(t)
	must(c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{
		ConnectionId: opened.GetConnection().GetConnectionId(), Modality: typev1.Modality_MODALITY_TEXT,
	}}))(t)
	if m := w.next(t); m.Connections[0].GetModality() != typev1.Modality_MODALITY_TEXT || m.Session.GetActiveConversationId() != c1 {
		t.Errorf("after the switch: %v", m)
	}
	other := must(c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{Modality: typev1.Modality_MODALITY_BOTH, Device: &typev1.Device{Name: "laptop"}}}))(t)
	if s := other.GetSession(); s.GetActiveConversationId() != c1 || s.GetActiveProjectId() != "p1" || len(s.GetConnections()) != 2 {
		t.Errorf("on another device: %v", s)
	}
	w.next(t)
	must(c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{ConnectionId: opened.GetConnection().GetConnectionId()}, Close: true}))(t)
	if m := w.next(t); len(m.Connections) != 1 || m.Connections[0].GetDevice().GetName() != "laptop" {
		t.Errorf("after the close: %v", m)
	}

	// The connections of the user's other sessions are presence, too.
	phone := b.signIn(t, ada)
	must(b.with(t, phone.GetTokens().GetAccessToken()).PutConnection(t.Context(), opening(typev1.Modality_MODALITY_VOICE)))(t)
	m := w.until(t, "the phone", func(m *watched) bool { return len(m.Connections) == 2 })
	if len(m.Session.GetConnections()) != 1 {
		t.Errorf("of this session: %v", m.Session)
	}

	// Its end comes near: the warning, and then, at the very time, the end.
	end := timestamppb.New(time.Time{})
	b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
		end = timestamppb.New(now.Add(announceBefore + 2*time.Second))
		s.GetSessions()[id].ExpireTime = end
	})
	warned := w.until(t, "the warning", func(m *watched) bool { return m.Session.GetEndsSoon() })
	same(t, "the end that is near", warned.Session.GetExpireTime(), end)
	b.change(t, ada, func(s *storev1.UserSessions, now time.Time) { s.GetSessions()[id].ExpireTime = timestamppb.New(now) })
	last := w.until(t, "the end", func(m *watched) bool { return m.Session.GetEndReason() != 0 })
	if last.Session.GetEndReason() != sessionv1.EndReason_END_REASON_ABSOLUTE_TIMEOUT || len(last.Session.GetConnections()) != 0 {
		t.Errorf("last: %v", last)
	}
	for w.stream.Receive() {
	}
	expired.check(t, w.stream.Err())
	eventually(t, "the end is in the audit", func() bool {
		return slices.Contains(b.events(t, ada), "SESSION_ENDED ABSOLUTE_TIMEOUT")
	})
}

// A connection that falls silent is gone until its next heartbeat: for those who read at that instant, for those who watch
// soon after.
func TestASilentConnectionExpires(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	c := b.with(t, in.GetTokens().GetAccessToken())
	w := b.watchSession(t, in.GetTokens().GetAccessToken())
	w.next(t)
	opened := must(c.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_VOICE)))(t).GetConnection()
	w.next(t)
	if got := opened.GetExpireTime().AsTime().Sub(opened.GetOpenTime().AsTime()); got != time.Minute {
		t.Errorf("it lives for %v", got)
	}
	b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
		s.GetConnections()[opened.GetConnectionId()].ExpireTime = timestamppb.New(now)
	})
	if p := presence(t, b); p.GetOnline() {
		t.Errorf("she is there: %v", p)
	}
	w.until(t, "it is gone", func(m *watched) bool { return len(m.Connections) == 0 })
	if got := presence(t, b); got.GetActiveTime() == nil || got.GetOnline() {
		t.Errorf("now: %v", got)
	}
}

// What a user does keeps the session from becoming idle; what a client does by itself does not.
func TestWhatCountsAsActivity(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	c := b.with(t, in.GetTokens().GetAccessToken())
	id := in.GetSession().GetSessionId()
	connection := must(c.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_TEXT)))(t).GetConnection().GetConnectionId()
	talk := b.conversations(t, in.GetTokens().GetAccessToken())
	must(talk.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "c1"}))(t)
	live := livev1connect.NewLiveServiceClient(b.http(t, in.GetTokens().GetAccessToken()), b.url)
	token := must(live.ConnectLive(t.Context(), &livev1.ConnectLiveRequest{ConversationId: "c1"}))(t).GetLease().GetFencingToken()
	index := int32(0)
	frame := func(text string) func() error {
		return func() error {
			index++
			_, err := live.IngestLive(t.Context(), &livev1.IngestLiveRequest{ConversationId: "c1", FencingToken: token, Frames: []*livev1.LiveFrame{
				{ClientIndex: index, Frame: &livev1.LiveFrame_Text{Text: text}},
			}})
			return err
		}
	}
	for name, tt := range map[string]struct {
		do     func() error
		active bool
	}{
		"words of the model":      {frame(`{"serverContent":{"outputTranscription":{"text":"Hi"},"turnComplete":true}}`), false},
		"a microphone that is on": {frame(`{"realtimeInput":{"audio":{"mimeType":"audio/pcm","data":"AAAA"}}}`), false},
		"words of the user":       {frame(`{"serverContent":{"inputTranscription":{"text":"Hi"}}}`), true},
		"words that may change":   {frame(`{"server_content":{"interim_input_transcription":{"text":"Hi"}}}`), true},
		"speech":                  {frame(`{"voiceActivity":{"voiceActivityType":"ACTIVITY_START"}}`), true},
		"typed words":             {frame(`{"realtimeInput":{"text":"Hi"}}`), true},
		"the result of a tool":    {frame(`{"toolResponse":{"functionResponses":[{"id":"a","response":{}}]}}`), true},
		"a lease that is renewed": {func() error {
			_, err := live.IngestLive(t.Context(), &livev1.IngestLiveRequest{ConversationId: "c1", FencingToken: token})
			return err
		}, false},
		"a heartbeat": {func() error {
			_, err := c.PutConnection(t.Context(), heartbeat(connection))
			return err
		}, false},
		"a heartbeat of somebody who is there": {func() error {
			_, err := c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{UserActive: true, Connection: &sessionv1.Connection{ConnectionId: connection}})
			return err
		}, true},
		"a new connection": {func() error {
			_, err := c.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_TEXT))
			return err
		}, true},
		"a refresh": {func() error {
			_, err := b.refresh(t, in.GetTokens().GetRefreshToken())
			return err
		}, false},
		"a stream": {func() error {
			b.watchSession(t, in.GetTokens().GetAccessToken()).next(t)
			return nil
		}, false},
		"a read": {func() error {
			_, err := c.GetSession(t.Context(), &sessionv1.GetSessionRequest{})
			return err
		}, true},
		"a call of another service": {func() error {
			_, err := talk.ListConversations(t.Context(), &conversationv1.ListConversationsRequest{})
			return err
		}, true},
	} {
		before := timestamppb.New(time.Time{})
		b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
			before = timestamppb.New(now.Add(-10 * time.Minute))
			s.GetSessions()[id].ActiveTime = before
		})
		if !tt.active {
			if err := tt.do(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else {
			// Who was verified a moment ago is looked at again within two seconds.
			eventually(t, name, func() bool {
				if err := tt.do(); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				written := false
				b.peek(t, ada, func(s *storev1.UserSessions) {
					written = !s.GetSessions()[id].GetActiveTime().AsTime().Equal(before.AsTime())
				})
				return written
			})
		}
		b.peek(t, ada, func(s *storev1.UserSessions) {
			if got := !s.GetSessions()[id].GetActiveTime().AsTime().Equal(before.AsTime()); got != tt.active {
				t.Errorf("%s counts: %t", name, got)
			}
		})
	}
}

// peek reads a user's sessions as they are stored.
func (b *bundle) peek(t *testing.T, user identity.User, look func(*storev1.UserSessions)) {
	t.Helper()
	s := must(b.manager.kinds.Users.View(b.As(t, user), object.ID(objectID(b.Tenant, user))))(t)
	look(s.State)
}
