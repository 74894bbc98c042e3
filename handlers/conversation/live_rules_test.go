package conversation

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
)

var testLimits = LiveLimits{}.withDefaults()

// handleAt is what a connection with this setup would resume with, and why.
func (s *liveStore) handleAt(now time.Time, req *livev1.ConnectLiveRequest) (*storev1.LiveHandle, livev1.PlanReason) {
	provider := max(storev1.LiveProvider(req.GetProvider()), storev1.LiveProvider_LIVE_PROVIDER_DEVELOPER_API)
	c := &connecting{req: req, limits: testLimits, opens: func([]byte) bool { return true }}
	return c.handle(s.state.GetLive(), provider, now)
}

// refused is a connection that resumed, and was refused.
func (s *liveStore) refused(hash string) {
	s.take(hash)
	s.do(testNow, func(f *voice.Reducer) { f.RefuseHandle() })
}

func TestWhichHandle(t *testing.T) {
	t.Parallel()
	const notNow = `{"sessionResumptionUpdate":{"resumable":false}}`
	const (
		resumed, none, changed = livev1.PlanReason_PLAN_REASON_RESUMED, livev1.PlanReason_PLAN_REASON_NO_HANDLE, livev1.PlanReason_PLAN_REASON_SETUP_CHANGED
		refused, expired       = livev1.PlanReason_PLAN_REASON_HANDLE_REFUSED, livev1.PlanReason_PLAN_REASON_HANDLE_EXPIRED
	)
	for name, tt := range map[string]struct {
		do   func(t *testing.T, s *liveStore)
		at   time.Duration
		hash string
		want int64 // the handle's id; 0: start fresh
		why  livev1.PlanReason
	}{
		"none came":         {func(*testing.T, *liveStore) {}, 0, "a", 0, none},
		"the newest":        {func(t *testing.T, s *liveStore) { s.send(t, resumption("h1"), resumption("h2")) }, 0, "a", 2, resumed},
		"the last that was": {func(t *testing.T, s *liveStore) { s.send(t, resumption("h1"), notNow, notNow) }, 0, "a", 1, resumed},
		"after many others": {func(t *testing.T, s *liveStore) {
			s.send(t, resumption("h1"))
			for range 10 {
				s.send(t, notNow)
			}
		}, 0, "a", 1, resumed},
		"of another setup": {func(t *testing.T, s *liveStore) { s.send(t, resumption("h1")) }, 0, "b", 0, changed},
		"just valid":       {func(t *testing.T, s *liveStore) { s.send(t, resumption("h1")) }, 2*time.Hour - 1, "a", 1, resumed},
		"expired":          {func(t *testing.T, s *liveStore) { s.send(t, resumption("h1")) }, 2 * time.Hour, "a", 0, expired},
		"the session lives on": {func(t *testing.T, s *liveStore) {
			s.send(t, resumption("h1"))
			s.state.Live.FrameTime = timestamppb.New(testNow.Add(time.Hour))
		}, 2 * time.Hour, "a", 1, resumed},
		"empty": {func(t *testing.T, s *liveStore) {
			s.send(t, `{"sessionResumptionUpdate":{"newHandle":"","resumable":true}}`)
		}, 0, "a", 0, none},
		"dead": {func(t *testing.T, s *liveStore) {
			s.send(t, resumption("h1"))
			s.refused("a")
		}, 0, "a", 0, refused},
		"dead, and a newer one came": {func(t *testing.T, s *liveStore) {
			s.send(t, resumption("h1"))
			s.refused("a")
			s.send(t, resumption("h2"))
		}, 0, "a", 2, resumed},
		"of a session that another followed": {func(t *testing.T, s *liveStore) {
			s.send(t, resumption("h1"))
			s.take("b")
		}, 0, "a", 0, none},
		"of the session that is resumed": {func(t *testing.T, s *liveStore) {
			s.send(t, resumption("h1"))
			s.take("a")
		}, 0, "a", 1, resumed},
		"it began anew all the same": {func(t *testing.T, s *liveStore) {
			s.send(t, resumption("h1"))
			s.take("a")
			s.send(t, `{"setup":{"sessionResumption":{}}}`)
		}, 0, "a", 0, none},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := opens("a")
			tt.do(t, s)
			h, why := s.handleAt(testNow.Add(tt.at), &livev1.ConnectLiveRequest{SetupHash: tt.hash})
			if h.GetId() != tt.want || why != tt.why {
				t.Errorf("plans with handle %d, %s; want %d of %v", h.GetId(), why, tt.want, s.state.GetLive().GetHandles())
			}
			kept := 0
			for _, h := range s.state.GetLive().GetHandles() {
				if len(h.GetSealed()) > 0 {
					kept++
				}
			}
			if n := len(s.state.GetLive().GetHandles()); kept > 1 || n > voice.MaxHandles {
				t.Errorf("%d of %d handles have their secret", kept, n)
			}
		})
	}
}

func TestVertexHandlesLiveLonger(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.take("a")
	s.state.Live.Provider = storev1.LiveProvider_LIVE_PROVIDER_VERTEX_AI
	s.send(t, resumption("h1"))
	again := &livev1.ConnectLiveRequest{SetupHash: "a", Provider: conversationv1.LiveProvider_LIVE_PROVIDER_VERTEX_AI}
	for after, want := range map[time.Duration]livev1.PlanReason{
		23 * time.Hour: livev1.PlanReason_PLAN_REASON_RESUMED, 24 * time.Hour: livev1.PlanReason_PLAN_REASON_HANDLE_EXPIRED,
	} {
		if _, why := s.handleAt(testNow.Add(after), again); why != want {
			t.Errorf("after %v: %s", after, why)
		}
	}
	if _, why := s.handleAt(testNow, &livev1.ConnectLiveRequest{SetupHash: "a"}); why != livev1.PlanReason_PLAN_REASON_SETUP_CHANGED {
		t.Errorf("the Developer API resumes a session of Vertex: %s", why)
	}
}

// A client is told in time that the provider will close the connection, and when nothing is lost by leaving it.
func TestWhenToRotate(t *testing.T) {
	t.Parallel()
	const goAway = `{"goAway":{"timeLeft":"50s"}}`
	const notYet, soon = -1, 10*time.Minute - rotateAhead - rotateNotice
	for name, tt := range map[string]struct {
		frames []string
		at     time.Duration
		within time.Duration // notYet: it need not be left
		now    bool
	}{
		"the connection is new":          {[]string{resumption("h")}, 0, notYet, false},
		"its time is nearly over":        {[]string{resumption("h")}, soon, rotateNotice, true},
		"its time is over":               {[]string{out("Well")}, 10 * time.Minute, 0, true},
		"the provider says so":           {[]string{resumption("h"), goAway}, 0, 50*time.Second - rotateAhead, true},
		"it goes at a time unknown":      {[]string{call("a"), `{"goAway":{"timeLeft":"soon"}}`}, 0, 0, true},
		"there is no handle":             {[]string{goAway}, 0, 50*time.Second - rotateAhead, false},
		"the handle is of before":        {[]string{resumption("h"), "reconnect", goAway}, 0, 50*time.Second - rotateAhead, false},
		"the user speaks":                {[]string{resumption("h"), in("Hi"), goAway}, 0, 50*time.Second - rotateAhead, false},
		"the user has spoken":            {[]string{in("Hi"), out("Well"), turnComplete, resumption("h"), goAway}, 0, 50*time.Second - rotateAhead, true},
		"a call that no handle knows":    {[]string{resumption("h"), call("a"), goAway}, 0, 50*time.Second - rotateAhead, false},
		"also when it was answered":      {[]string{resumption("h"), call("a"), answer("a"), turnComplete, goAway}, 0, 50*time.Second - rotateAhead, false},
		"a call that the handle knows":   {[]string{call("a"), turnComplete, resumption("h"), goAway}, 0, 50*time.Second - rotateAhead, true},
		"the model speaks":               {[]string{resumption("h"), out("Well"), goAway}, 0, 50*time.Second - rotateAhead, false},
		"the provider cannot be resumed": {[]string{resumption("h"), `{"sessionResumptionUpdate":{}}`, goAway}, 0, 50*time.Second - rotateAhead, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := opens("a")
			s.send(t, tt.frames...)
			got := rotate(s.state, testNow.Add(tt.at), testLimits)
			if (got == nil) != (tt.within == notYet) || got.GetNow() != tt.now || got != nil && got.GetWithin().AsDuration() != tt.within {
				t.Errorf("rotates %v", got)
			}
			s.do(testNow, func(f *voice.Reducer) { f.CloseLive(1006) })
			if got := rotate(s.state, testNow.Add(tt.at), testLimits); got != nil {
				t.Errorf("a connection that is closed is to be left: %v", got)
			}
		})
	}
}

func TestBackOff(t *testing.T) {
	t.Parallel()
	s := opens("a")
	for i, want := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
		s.send(t, resumption("h"))
		s.refused("a")
		s.do(testNow, func(f *voice.Reducer) { f.RefuseHandle() }) // a handle dies once
		if got := retryTime(s.state.GetLive()); !got.Equal(testNow.Add(want)) {
			t.Errorf("after %d failures: %v, want %v", i+1, got.Sub(testNow), want)
		}
		s.take("a")
	}
	s.send(t, `{"setupComplete":{}}`)
	if got := s.state.GetLive().GetResumeFailures(); got != 0 {
		t.Errorf("a session that was set up leaves %d failures", got)
	}
}

func TestTruncate(t *testing.T) {
	t.Parallel()
	const said = "One two three four"
	second := `{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"` + strings.Repeat("A", 64000) + `"}}]}}}`
	asText := func(s string) *conversationv1.EditMessagesRequest {
		return &conversationv1.EditMessagesRequest{Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Spoken: &conversationv1.Spoken{HeardText: new(s)}}}}}
	}
	asMs := func(ms int64) *conversationv1.EditMessagesRequest {
		return &conversationv1.EditMessagesRequest{Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Spoken: &conversationv1.Spoken{PlayedMs: new(int32(ms))}}}}}
	}
	for name, tt := range map[string]struct {
		frames []string
		req    *conversationv1.EditMessagesRequest
		want   string
	}{
		"a beginning":                 {nil, asText("One two"), "One two"},
		"other blanks":                {nil, asText(" One  two\n"), "One two"},
		"nothing":                     {nil, asText(""), ""},
		"all":                         {nil, asText(said), said},
		"more than all":               {nil, asText(said + " five"), said},
		"another ending":              {nil, asText("One two tree"), "One two t"},
		"something else":              {nil, asText("Uno"), ""},
		"0 ms":                        {nil, asMs(0), ""},
		"half the audio":              {[]string{second}, asMs(500), "One two"},
		"all the audio":               {[]string{second}, asMs(1000), said},
		"longer than the audio":       {[]string{second}, asMs(99_999), said},
		"no audio was seen":           {nil, asMs(600), "One two"},
		"late words were not heard":   {[]string{interrupted, out(" five")}, asText("One two"), "One two"},
		"after the turn":              {[]string{turnComplete}, asText("One"), "One"},
		"after it was told otherwise": {[]string{interrupted, turnComplete}, asText("One"), "One"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := opens("a")
			s.send(t, append([]string{out(said)}, tt.frames...)...)
			for i := range 2 { // it may come twice
				m, err := updateMessage(s.state, s.messages[1], tt.req.GetUpdates()[0], testNow)
				if err != nil {
					t.Fatal(err)
				}
				changed := m != s.messages[1]
				if m.GetHeardText() != tt.want || m.HeardText == nil || m.GetHeardEstimated() || changed != (i == 0) {
					t.Errorf("heard %q, changed %t: %v", m.GetHeardText(), changed, m)
				}
				s.messages[1] = m
			}
			if s.state.GetLive().GetAssistantTurn() == nil {
				return
			}
			before, want := s.messages[1].GetText(), tt.want
			if s.messages[1].PlayedMs != nil && want == before {
				want += " late" // all of the audio was played, so its late words were heard
			}
			s.send(t, out(" late"))
			if m := s.messages[1]; m.GetText() != before+" late" || m.GetHeardText() != want {
				t.Errorf("late words make it %q, heard %q", m.GetText(), m.GetHeardText())
			}
		})
	}
}

// What was given to others since is not taken back by a restore.
func TestRestored(t *testing.T) {
	t.Parallel()
	past := func() state {
		return &storev1.ConversationState{
			Title: "then", LastSeq: 2, Compaction: &storev1.CompactionLease{Token: 2, ToSeq: 1},
			Live: &storev1.LiveState{
				Epoch: 3, Session: 1, FencingToken: 4, Lease: &storev1.LiveLease{User: "ada", ExpireTime: timestamppb.New(testNow.Add(time.Hour))}, OpenTime: timestamppb.New(testNow), HandleCount: 2, LastClientIndex: 9, UserTurn: &storev1.Message{Seq: 2},
				Handles:      []*storev1.LiveHandle{{}},
				PendingCalls: map[string]*storev1.ToolCall{"fc": {}},
			},
		}
	}
	since := &storev1.ConversationState{
		Compaction: &storev1.CompactionLease{Token: 5, ToSeq: 2},
		Live:       &storev1.LiveState{Epoch: 7, Session: 2, FencingToken: 5, HandleCount: 3, LastClientIndex: 12, FencedIndexes: map[int64]int64{5: 1}},
	}
	for name, tt := range map[string]struct {
		s, was                         state
		epoch, session, token, handles int64
		lease                          int64
		fenced                         map[int64]int64
	}{
		"over a newer one":     {past(), since, 8, 3, 5, 3, 6, map[int64]int64{5: 1, 7: 12}},
		"over an older one":    {past(), &storev1.ConversationState{}, 4, 2, 4, 2, 3, nil},
		"over none, or a fork": {past(), nil, 4, 2, 4, 2, 3, nil},
		"without a connection": {&storev1.ConversationState{}, since, 8, 3, 5, 3, 6, map[int64]int64{5: 1, 7: 12}},
	} {
		kept := proto.Clone(since)
		restored(tt.s, tt.was, testNow)
		l := tt.s.GetLive()
		if l.GetEpoch() != tt.epoch || l.GetSession() != tt.session || l.GetFencingToken() != tt.token || l.GetHandleCount() != tt.handles ||
			l.GetLastClientIndex() != 0 || len(l.GetHandles()) != 0 || len(l.GetPendingCalls()) != 0 || l.GetCloseTime() == nil ||
			!maps.Equal(l.GetFencedIndexes(), tt.fenced) {
			t.Errorf("%s: the connection is %v", name, l)
		}
		if held(l, testNow) || l.GetLease() != nil || tt.s.GetCompaction().GetToSeq() != 0 {
			t.Errorf("%s: the leases are %v and %v", name, l.GetLease(), tt.s.GetCompaction())
		}
		if !proto.Equal(kept, since) {
			t.Errorf("%s: what is there was changed", name)
		}
		// Its epoch was issued to nobody, and no old lease commits.
		if err := fence(tt.s, writer{epoch: l.GetEpoch(), now: testNow}); err == nil {
			t.Errorf("%s: the epoch %d may write", name, l.GetEpoch())
		}
		for token := range int32(7) {
			if _, err := commitSummary(tt.s, &conversationv1.CommitCompactionRequest{FencingToken: token, Text: "x"}, testNow); !errors.Is(err, errStaleLease) {
				t.Errorf("%s: under the lease %d: %v", name, token, err)
			}
		}
		if got, err := leaseCompaction(tt.s, &storev1.CompactionLease{FromSeq: 1, ToSeq: 2}, 0, time.Minute, testNow); err != nil || got.GetToken() != tt.lease {
			t.Errorf("%s: the next lease is %v: %v", name, got, err)
		}
	}
	none := &storev1.ConversationState{Title: "then"}
	if restored(none, &storev1.ConversationState{}, testNow); none.GetLive() != nil {
		t.Errorf("a conversation without a voice has become %v", none)
	}
}
