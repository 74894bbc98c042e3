package session

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/identity"
)

var (
	leaseHeld = refusal{connect.CodeFailedPrecondition, "LEASE_HELD"}
	fenced    = refusal{connect.CodeFailedPrecondition, "FENCED"}
)

// speaker is a connection of a session that wants to write, with a credential of its own.
type speaker struct {
	name                string
	client              client
	talk                conversations
	live                livev1connect.LiveServiceClient
	session, connection string
	// held is the session that its lease belongs to; empty: it calls with another credential.
	held string
	// access is the session's token; empty: it calls with another credential.
	access string
	// token is the newest that it was given, and index that of its last frame.
	token, index int32
}

// speaker opens a connection of a session, which calls with a credential.
func (b *bundle) speaker(t *testing.T, name string, in *sessionv1.CreateSessionResponse, credential string) *speaker {
	t.Helper()
	s := &speaker{
		name: name, client: b.with(t, credential), talk: b.conversations(t, credential), session: in.GetSession().GetSessionId(),
		live: livev1connect.NewLiveServiceClient(b.http(t, credential), b.url),
	}
	if credential == in.GetTokens().GetAccessToken() {
		s.held, s.access = s.session, credential
	}
	req := opening(typev1.Modality_MODALITY_VOICE)
	req.SessionId, req.Connection.Device = s.session, &typev1.Device{Name: name}
	s.connection = must(s.client.PutConnection(t.Context(), req))(t).GetConnection().GetConnectionId()
	return s
}

// tab signs a user in, and opens a connection of the session.
func (b *bundle) tab(t *testing.T, user identity.User) *speaker {
	t.Helper()
	in := b.signIn(t, user)
	return b.speaker(t, "a tab", in, in.GetTokens().GetAccessToken())
}

// tabs are two connections of one session.
func (b *bundle) tabs(t *testing.T) (x, y *speaker) {
	t.Helper()
	in := b.signIn(t, ada)
	token := in.GetTokens().GetAccessToken()
	return b.speaker(t, "a tab", in, token), b.speaker(t, "another tab", in, token)
}

// connect takes a conversation's lease.
func (s *speaker) connect(t *testing.T, conversation string, takeOver bool, previous ...*livev1.Previous) (*livev1.ConnectLiveResponse, error) {
	t.Helper()
	req := &livev1.ConnectLiveRequest{ConversationId: conversation, Device: &typev1.Device{Name: s.name}, SetupHash: "h", TakeOver: takeOver}
	if len(previous) > 0 {
		req.Previous = previous[0]
	}
	res, err := s.live.ConnectLive(t.Context(), req)
	if err == nil {
		s.token, s.index = res.GetLease().GetFencingToken(), 0
	}
	return res, err
}

func words(index int32, text string) *livev1.LiveFrame {
	return &livev1.LiveFrame{ClientIndex: index, Frame: &livev1.LiveFrame_Text{Text: fmt.Sprintf(`{"serverContent":{"inputTranscription":{"text":%q}}}`, text)}}
}

// say sends what its user says, under the newest token that it was given.
func (s *speaker) say(t *testing.T, conversation, text string) error {
	t.Helper()
	s.index++
	return s.ingest(t, conversation, s.token, words(s.index, text))
}

func (s *speaker) ingest(t *testing.T, conversation string, token int32, frames ...*livev1.LiveFrame) error {
	t.Helper()
	return second(s.live.IngestLive(t.Context(), &livev1.IngestLiveRequest{ConversationId: conversation, FencingToken: token, Frames: frames}))
}

func (s *speaker) disconnect(t *testing.T, conversation string, token int32) error {
	t.Helper()
	return second(s.live.DisconnectLive(t.Context(), &livev1.DisconnectLiveRequest{ConversationId: conversation, FencingToken: token}))
}

func texts(t *testing.T, c conversations) []string {
	t.Helper()
	var all []string
	for _, m := range get(t, c).GetMessages() {
		all = append(all, m.GetText())
	}
	return all
}

// While one connection has the lease nobody else writes as a live connection: no other tab of its session, no other session of its
// user, no API key, no other user, whatever token they send.
func TestOnlyTheHolderOfTheLeaseWrites(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const shared = "shared" // all may write in it
	service := b.conversations(t, b.key(t, nobody))
	must(service.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: shared, Shared: true}))(t)
	loser, holder := b.tabs(t)
	other, eve := b.signIn(t, ada), b.signIn(t, "eve")
	speakers := []*speaker{
		loser,
		b.speaker(t, "another session", other, other.GetTokens().GetAccessToken()),
		b.speaker(t, "the user's key", b.signIn(t, ada), b.key(t, ada)),
		b.speaker(t, "a service", b.signIn(t, ada), b.key(t, nobody)),
		b.speaker(t, "another user", eve, eve.GetTokens().GetAccessToken()),
		b.speaker(t, "another user's key", b.signIn(t, "eve"), b.key(t, "eve")),
	}
	old := must(loser.connect(t, shared, false))(t).GetLease().GetFencingToken()
	if err := loser.say(t, shared, "1"); err != nil {
		t.Fatal(err)
	}
	newest := must(holder.connect(t, shared, true))(t).GetLease().GetFencingToken()
	if newest <= old {
		t.Fatalf("the token is %d, the one before it %d", newest, old)
	}
	read := func() *conversationv1.GetConversationResponse {
		t.Helper()
		got := must(holder.talk.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: shared, MessageLimit: 50}))(t)
		got.Conversation.Version, got.Conversation.UpdateTime, got.Conversation.ExpireTime = 0, nil, nil // what comes late is kept apart
		return got
	}
	refused := func(stage string) {
		t.Helper()
		before := read()
		for _, s := range speakers {
			for name, call := range map[string]func(token int32) error{
				"IngestLive":           func(token int32) error { return s.ingest(t, shared, token, words(10, "x")) },
				"IngestLive, no frame": func(token int32) error { return s.ingest(t, shared, token) },
				"DisconnectLive":       func(token int32) error { return s.disconnect(t, shared, token) },
				"ConnectLive": func(token int32) error {
					return second(s.connect(t, shared, false, &livev1.Previous{FencingToken: token, HandleRefused: true, Frames: []*livev1.LiveFrame{words(10, "x")}}))
				},
			} {
				for _, token := range []int32{old, newest + 1, newest + 5, math.MaxInt32} {
					if got := reason(call(token)); got != "FENCED" && (name != "ConnectLive" || got != "LEASE_HELD") {
						t.Errorf("%s: %s of %s with token %d: %q", stage, name, s.name, token, got)
					}
				}
			}
			_, err := s.connect(t, shared, false)
			leaseHeld.check(t, err)
			if held := info(err).GetMetadata(); held["user"] != string(ada) || held["device_name"] != holder.name || held["expire_time"] == "" || held["connection_id"] == "" {
				t.Errorf("%s: the holder is %v", stage, held)
			}
		}
		// A session's token is not another session's, and a user is not another, whatever they send.
		for _, s := range []*speaker{speakers[1], speakers[4], speakers[5]} {
			leaseHeld.check(t, s.ingest(t, shared, newest, words(10, "x")))
			leaseHeld.check(t, s.disconnect(t, shared, newest))
			leaseHeld.check(t, second(s.connect(t, shared, false, &livev1.Previous{FencingToken: newest})))
		}
		// Another user does not take it over, either.
		for _, s := range speakers[4:] {
			leaseHeld.check(t, second(s.connect(t, shared, true)))
		}
		same(t, stage+": the conversation", read(), before)
	}
	refused("before it speaks")
	if err := holder.say(t, shared, "2"); err != nil {
		t.Error(err)
	}
	refused("once it has spoken")
	if err := holder.disconnect(t, shared, newest); err != nil {
		t.Error(err)
	}
	// Now it is anybody's, and what the holder owed is still its own.
	for _, s := range []*speaker{speakers[1], speakers[4], speakers[5]} {
		fenced.check(t, s.ingest(t, shared, newest, words(10, "x")))
	}
	must(speakers[4].connect(t, shared, false))(t)
	must(speakers[3].connect(t, shared, true))(t) // services take it from anybody
}

// Two tabs press talk in the same instant. One of them has the lease; the other is told, takes it over, and from then on the first
// one's late frames are refused, also if it connects again.
func TestTwoTabsPressTalk(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tabs := []*speaker{b.tab(t, ada), b.tab(t, ada)}
	create(t, tabs[0].talk)
	errs := make([]error, len(tabs))
	var wait sync.WaitGroup
	begin := make(chan struct{})
	for i, x := range tabs {
		wait.Go(func() {
			<-begin
			_, errs[i] = x.connect(t, c1, false)
		})
	}
	close(begin)
	wait.Wait()
	winner := slices.IndexFunc(errs, func(err error) bool { return err == nil })
	if winner < 0 {
		t.Fatalf("nobody has the lease: %v", errs)
	}
	first, other := tabs[winner], tabs[1-winner]
	leaseHeld.check(t, errs[1-winner])
	if err := first.say(t, c1, "Can you look"); err != nil {
		t.Fatal(err)
	}
	leaseHeld.check(t, second(other.connect(t, c1, false)))
	taken := must(other.connect(t, c1, true))(t)
	fenced.check(t, first.say(t, c1, " at the late one"))
	// To go on from what was lost does not get the lease back.
	leaseHeld.check(t, second(first.connect(t, c1, false, &livev1.Previous{FencingToken: first.token})))
	if err := other.say(t, c1, " at the other one?"); err != nil {
		t.Fatal(err)
	}
	fenced.check(t, first.say(t, c1, " and this"))
	if got := texts(t, other.talk); !slices.Equal(got, []string{"Can you look at the other one?"}) {
		t.Errorf("the conversation is %q", got)
	}
	// What came late is kept apart.
	fragments := must(other.talk.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_FRAGMENT}}))(t).GetRecords()
	if len(fragments) != 2 || fragments[0].GetFragment().GetUserText() != " at the late one" || fragments[1].GetFragment().GetUserText() != " and this" {
		t.Errorf("the fragments are %v", fragments)
	}
	if l := get(t, other.talk).GetConversation().GetLive(); l.GetConnectionId() != taken.GetConnectionId() || l.GetUser() != string(ada) || l.GetLease().GetExpiresIn() != nil {
		t.Errorf("the conversation shows %v", l)
	}
}

// Many press talk, again and again. No two are given the same token.
func TestOneHolderAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tabs := make([]*speaker, 6)
	for i := range tabs {
		tabs[i] = b.tab(t, ada)
	}
	create(t, tabs[0].talk)
	var mu sync.Mutex
	tokens := map[int32]string{}
	var wait sync.WaitGroup
	for i, x := range tabs {
		wait.Go(func() {
			for range 10 {
				res, err := x.connect(t, c1, i%2 == 0)
				if err != nil {
					if got := reason(err); got != leaseHeld.reason && got != fenced.reason { // it was taken over before it had its plan
						t.Error(err)
					}
					continue
				}
				mu.Lock()
				if other, ok := tokens[res.GetLease().GetFencingToken()]; ok {
					t.Errorf("%s and %s have the token %d", other, res.GetConnectionId(), res.GetLease().GetFencingToken())
				}
				tokens[res.GetLease().GetFencingToken()] = res.GetConnectionId()
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	if len(tokens) < 2 {
		t.Errorf("the tokens were %v", tokens)
	}
}

// However a session ends, its live connections end with it: others need not wait, and what its socket still sends is refused.
func TestALeaseEndsWithItsSession(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, b *bundle, x *speaker){
		"signed out": func(t *testing.T, _ *bundle, x *speaker) {
			t.Helper()
			must(x.client.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{}))(t)
		},
		"by a service": func(t *testing.T, b *bundle, _ *speaker) {
			t.Helper()
			must(b.with(t, b.key(t, nobody)).EndSessions(t.Context(), &sessionv1.EndSessionsRequest{Scope: sessionv1.EndScope_END_SCOPE_USER, User: string(ada)}))(t)
		},
		"with all others": func(t *testing.T, b *bundle, _ *speaker) {
			t.Helper()
			must(b.with(t, b.key(t, nobody)).EndSessions(t.Context(), &sessionv1.EndSessionsRequest{Scope: sessionv1.EndScope_END_SCOPE_TENANT}))(t)
		},
		"replaced": func(t *testing.T, b *bundle, x *speaker) {
			t.Helper()
			must(b.with(t, b.key(t, ada)).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{ReplaceSessionId: x.session}))(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			x, key := b.tab(t, ada), b.conversations(t, b.key(t, ada))
			service := b.conversations(t, b.key(t, nobody))
			create(t, key)
			must(service.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "shared", Shared: true}))(t)
			other := b.speaker(t, "the user's key", b.signIn(t, ada), b.key(t, ada))
			for _, id := range []string{c1, "shared"} {
				must(x.connect(t, id, false))(t)
				leaseHeld.check(t, second(other.connect(t, id, false)))
			}
			end(t, b, x)
			for _, id := range []string{c1, "shared"} {
				must(other.connect(t, id, false))(t)
			}
			if _, err := x.live.IngestLive(t.Context(), &livev1.IngestLiveRequest{ConversationId: c1, FencingToken: x.token}); err == nil {
				t.Error("it goes on")
			}
		})
	}
}

// A lease is given, and renewed, for no longer than its session lives.
func TestALeaseDoesNotOutliveItsSession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	x := b.tab(t, ada)
	create(t, x.talk)
	end := timestamppb.New(time.Time{})
	b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
		end = timestamppb.New(now.Add(25 * time.Second))
		s.GetSessions()[x.session].ExpireTime = end
	})
	eventually(t, "the end is known", func() bool { // for a moment the server trusts what it knows of the token
		return proto.Equal(must(x.connect(t, c1, true))(t).GetLease().GetExpireTime(), end)
	})
	res := must(x.live.IngestLive(t.Context(), &livev1.IngestLiveRequest{ConversationId: c1, FencingToken: x.token, Frames: []*livev1.LiveFrame{words(1, "Hi")}}))(t)
	same(t, "the end of the lease", res.GetLease().GetExpireTime(), end)
}

// A session runs into its time-out in the middle of a voice turn. What was said is kept, and the next session of the same user, and of
// nobody else, goes on with the handle and with what the last one owed.
func TestTimeOutDuringAVoiceTurn(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		near func(r *storev1.SessionRecord, end *timestamppb.Timestamp)
		why  sessionv1.EndReason
	}{
		"idle": {func(r *storev1.SessionRecord, end *timestamppb.Timestamp) {
			r.ActiveTime = timestamppb.New(end.AsTime().Add(-r.GetIdleTimeout().AsDuration()))
		}, sessionv1.EndReason_END_REASON_IDLE_TIMEOUT},
		"absolute": {func(r *storev1.SessionRecord, end *timestamppb.Timestamp) { r.ExpireTime = end }, sessionv1.EndReason_END_REASON_ABSOLUTE_TIMEOUT},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			x := b.tab(t, ada)
			create(t, x.talk)
			must(x.connect(t, c1, false))(t)
			if err := x.ingest(t, c1, x.token, &livev1.LiveFrame{ClientIndex: 1, Frame: &livev1.LiveFrame_Text{
				Text: `{"setupComplete":{},"sessionResumptionUpdate":{"newHandle":"handle-1","resumable":true}}`,
			}}, words(2, "Can you look at")); err != nil {
				t.Fatal(err)
			}
			w := b.watchSession(t, x.access)
			w.next(t)
			b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
				tt.near(s.GetSessions()[x.session], timestamppb.New(now))
			})
			last := w.until(t, "the end", func(m *watched) bool { return m.Session.GetEndReason() != 0 })
			if last.Session.GetEndReason() != tt.why {
				t.Errorf("it ended with %v", last.Session)
			}
			eventually(t, "the token is refused", func() bool {
				return reason(second(x.client.GetSession(t.Context(), &sessionv1.GetSessionRequest{}))) == expired.reason
			})
			expired.check(t, x.ingest(t, c1, x.token, words(3, " this")))

			notFound.check(t, second(b.tab(t, "eve").connect(t, c1, true)))
			y := b.tab(t, ada)
			res := must(y.connect(t, c1, true, &livev1.Previous{FencingToken: x.token, Frames: []*livev1.LiveFrame{words(3, " this")}}))(t)
			if res.GetPlan().GetHandle() != "handle-1" {
				t.Errorf("the plan is %v", res.GetPlan())
			}
			if err := y.say(t, c1, " one?"); err != nil {
				t.Error(err)
			}
			if got := texts(t, y.talk); !slices.Equal(got, []string{"Can you look at this one?"}) {
				t.Errorf("what was said is %q", got)
			}
		})
	}
}

// A connection that has fallen silent comes back with its heartbeat.
func TestASilentConnectionComesBack(t *testing.T) {
	t.Parallel()
	silence := func(t *testing.T, b *bundle, x *speaker) {
		t.Helper()
		b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
			s.GetConnections()[x.connection].ExpireTime = timestamppb.New(now)
		})
		if p := must(x.client.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{}))(t).GetPresence(); slices.ContainsFunc(p.GetConnections(), func(c *sessionv1.Connection) bool { return c.GetConnectionId() == x.connection }) {
			t.Fatalf("it is not silent: %v", p)
		}
	}
	t.Run("with a heartbeat", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		x, _ := b.tabs(t)
		silence(t, b, x)
		got := must(x.client.PutConnection(t.Context(), heartbeat(x.connection)))(t).GetConnection()
		if p := must(x.client.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{}))(t).GetPresence(); !slices.ContainsFunc(p.GetConnections(), func(c *sessionv1.Connection) bool {
			return c.GetConnectionId() == got.GetConnectionId() && proto.Equal(c.GetExpireTime(), got.GetExpireTime())
		}) {
			t.Errorf("it is not back: %v", p)
		}
	})
	t.Run("no more than a user may have", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		x, _ := b.tabs(t)
		silence(t, b, x)
		for range maxConnections - 1 {
			must(x.client.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_TEXT)))(t)
		}
		_, err := x.client.PutConnection(t.Context(), heartbeat(x.connection))
		refusal{connect.CodeResourceExhausted, "LIMIT_REACHED"}.check(t, err)
		must(x.client.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{}))(t)
		b.peek(t, ada, func(s *storev1.UserSessions) {
			if n := len(s.GetConnections()); n != 0 {
				t.Errorf("%d connections outlive their session", n)
			}
		})
	})
	t.Run("not after sixteen others", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		x, y := b.tabs(t)
		silence(t, b, x)
		for range maxSilent {
			z := must(y.client.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_TEXT)))(t).GetConnection().GetConnectionId()
			silence(t, b, &speaker{client: y.client, connection: z})
		}
		must(y.client.PutConnection(t.Context(), opening(typev1.Modality_MODALITY_TEXT)))(t)
		_, err := x.client.PutConnection(t.Context(), heartbeat(x.connection))
		notFound.check(t, err)
	})
}

// Whatever a tab, another tab of its session, another session and an API key do in turn, with whatever numbers: what is written is
// written by the holder, each refusal says why, and nothing runs backwards.
func TestLeasesInAnyOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	x, y := b.tabs(t)
	in := b.signIn(t, ada)
	all := []*speaker{
		x, y, b.speaker(t, "another session", in, in.GetTokens().GetAccessToken()), b.speaker(t, "a key", b.signIn(t, ada), b.key(t, ada)),
	}
	type op struct {
		Do, Who, Token int
		TakeOver       bool
	}
	ops := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) op {
		return op{
			Do: rapid.IntRange(0, 5).Draw(r, "do"), Who: rapid.IntRange(0, len(all)-1).Draw(r, "who"),
			Token: rapid.IntRange(0, 8).Draw(r, "token"), TakeOver: rapid.Bool().Draw(r, "take over"),
		}
	}), 1, 24)
	conversation, index := 0, int32(0)
	rapid.Check(t, func(r *rapid.T) {
		conversation++
		id := fmt.Sprint("c-", conversation)
		must(x.talk.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: id}))(t)
		var owner *speaker // of the newest token
		var newest int32
		var version int64
		held := false
		for _, s := range all {
			s.token = 0
		}
		expect := func(what string, err error, want string) {
			r.Helper()
			if got := reason(err); got != want || (err == nil) != (want == "") {
				r.Fatalf("%s: %v, not %q", what, err, want)
			}
		}
		for _, o := range ops.Draw(r, "ops") {
			s := all[o.Who]
			token := []int32{s.token, s.token, newest, newest + 1, newest - 1, 1, 0, -1, math.MaxInt32}[o.Token]
			mine := owner != nil && (owner.held == "" || s.held == "" || owner.held == s.held)
			var changed bool
			var err error
			switch o.Do {
			case 0, 1:
				var previous []*livev1.Previous
				if o.Do == 1 {
					previous = []*livev1.Previous{{FencingToken: token}}
				}
				var res *livev1.ConnectLiveResponse
				res, err = s.connect(t, id, o.TakeOver, previous...)
				switch {
				case o.Do == 1 && token < 1:
					expect("connect", err, "FIELD_INVALID")
				case held && !o.TakeOver && (o.Do == 0 || token != newest || !mine):
					expect("connect", err, "LEASE_HELD")
				case o.Do == 1 && token > newest:
					expect("connect", err, "FENCED")
				default:
					expect("connect", err, "")
					if got := res.GetLease().GetFencingToken(); got != newest+1 {
						r.Fatalf("the token is %d, and %d was the newest", got, newest)
					}
					newest, owner, held = newest+1, s, true
				}
				changed = err == nil
			default:
				index++
				ends := o.Do == 5
				if ends {
					err = s.disconnect(t, id, token)
				} else {
					err = s.ingest(t, id, token, words(index, fmt.Sprint(index)))
				}
				switch {
				case token < 1:
					expect("write", err, "FIELD_INVALID")
				case token != newest:
					expect("write", err, "FENCED")
				case !mine && held:
					expect("write", err, "LEASE_HELD")
				case !mine:
					expect("write", err, "FENCED")
				default:
					expect("write", err, "")
					held = held && !ends
				}
				changed = err == nil || reason(err) == "FENCED"
			}
			got := must(x.talk.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: id}))(t)
			if l := got.GetConversation().GetLive(); l.GetLease().GetFencingToken() != newest || (l.GetCloseTime() == nil) != (held || newest == 0) {
				r.Fatalf("the connection is %v; want token %d, held %t", l, newest, held)
			}
			v := got.GetConversation().GetVersion()
			if !changed && version != 0 && v != version {
				r.Fatalf("what was refused made version %d of %d", v, version)
			}
			version = v
		}
	})
}
