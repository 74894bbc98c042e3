package conversation

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// do calls a rule on the conversation and keeps what it did.
func (s *liveStore) do(now time.Time, rule func(*folder)) {
	f := s.folder(now)
	rule(f)
	effects := f.effects()
	s.keep(&effects)
}

var testLimits = LiveLimits{}.withDefaults()

// opens is a conversation that some devices opened in turn.
func opens(setups ...string) *liveStore {
	s := newLiveStore()
	for _, hash := range setups {
		s.do(testNow, func(f *folder) { f.take(&livev1.ConnectLiveRequest{SetupHash: hash}) })
	}
	return s
}

// handleAt is what a connection with this setup would resume with, and why.
func (s *liveStore) handleAt(now time.Time, req *livev1.ConnectLiveRequest) (*storev1.LiveHandle, livev1.PlanReason) {
	f := newFolder(proto.CloneOf(s.state), now, nil)
	provider := max(storev1.LiveProvider(req.GetProvider()), storev1.LiveProvider_LIVE_PROVIDER_DEVELOPER_API)
	return f.handle(&connecting{req: req, limits: testLimits, opens: func([]byte) bool { return true }}, provider)
}

// refused is a connection that resumed, and was refused.
func (s *liveStore) refused(hash string) {
	s.do(testNow, func(f *folder) {
		f.take(&livev1.ConnectLiveRequest{SetupHash: hash})
		f.refuseHandle()
	})
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
			s.do(testNow, func(f *folder) { f.take(&livev1.ConnectLiveRequest{SetupHash: "b"}) })
		}, 0, "a", 0, none},
		"of the session that is resumed": {func(t *testing.T, s *liveStore) {
			s.send(t, resumption("h1"))
			s.do(testNow, func(f *folder) { f.take(&livev1.ConnectLiveRequest{SetupHash: "a"}) })
		}, 0, "a", 1, resumed},
		"it began anew all the same": {func(t *testing.T, s *liveStore) {
			s.send(t, resumption("h1"))
			s.do(testNow, func(f *folder) { f.take(&livev1.ConnectLiveRequest{SetupHash: "a"}) })
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
			if n := len(s.state.GetLive().GetHandles()); kept > 1 || n > maxHandles {
				t.Errorf("%d of %d handles have their secret", kept, n)
			}
			s.check(t)
		})
	}
}

func TestVertexHandlesLiveLonger(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.do(testNow, func(f *folder) {
		f.take(&livev1.ConnectLiveRequest{SetupHash: "a", Provider: conversationv1.LiveProvider_LIVE_PROVIDER_VERTEX_AI})
	})
	s.send(t, resumption("h1"))
	again := &livev1.ConnectLiveRequest{SetupHash: "a", Provider: conversationv1.LiveProvider_LIVE_PROVIDER_VERTEX_AI}
	for after, want := range map[time.Duration]livev1.PlanReason{
		23 * time.Hour: livev1.PlanReason_PLAN_REASON_RESUMED, 24 * time.Hour: livev1.PlanReason_PLAN_REASON_HANDLE_EXPIRED,
	} {
		if _, why := s.handleAt(testNow.Add(after), again); why != want {
			t.Errorf("after %v: %s", after, why)
		}
	}
	s.do(testNow, func(f *folder) { f.take(&livev1.ConnectLiveRequest{SetupHash: "a"}) })
	if got := s.state.GetLive().GetSession(); got != 2 {
		t.Errorf("the Developer API resumes session %d of Vertex", got)
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
			s.do(testNow, func(f *folder) { f.closeLive(1006) })
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
		s.do(testNow, func(f *folder) { f.refuseHandle() }) // a handle dies once
		if got := retryTime(s.state.GetLive()); !got.Equal(testNow.Add(want)) {
			t.Errorf("after %d failures: %v, want %v", i+1, got.Sub(testNow), want)
		}
		s.do(testNow, func(f *folder) { f.take(&livev1.ConnectLiveRequest{SetupHash: "a"}) })
	}
	s.send(t, `{"setupComplete":{}}`)
	if got := s.state.GetLive().GetResumeFailures(); got != 0 {
		t.Errorf("a session that was set up leaves %d failures", got)
	}
}

// What a client tells a new session of what was said before is no news, and what the user types is.
func TestSeedsAreNoNews(t *testing.T) {
	t.Parallel()
	const (
		users = `{"clientContent":{"turns":[{"role":"user","parts":[{"text":"a"}]}],"turnComplete":true}}`
		both  = `{"clientContent":{"turns":[{"role":"user","parts":[{"text":"x"}]},{"role":"model","parts":[{"text":"y"}]}],"turnComplete":true}}`
		setup = `{"setup":{"historyConfig":{"initialHistoryInClientContent":true}}}`
	)
	for name, tt := range map[string]struct {
		frames []string
		want   []string // the texts of messages after the first
	}{
		"a typed text":             {[]string{users}, []string{"a"}},
		"a seed, ingested":         {[]string{setup, both, users}, []string{"a"}},
		"a seed, not ingested":     {[]string{setup, `{"setupComplete":{}}`, users}, []string{"a"}},
		"the user typed meanwhile": {[]string{typed("y"), both, users}, []string{"y", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := opens("a")
			s.send(t, typed("x"))
			s.do(testNow, func(f *folder) { f.take(&livev1.ConnectLiveRequest{SetupHash: "b"}) })
			s.send(t, tt.frames...)
			var got []string
			for seq := int64(2); seq <= s.state.GetLastSeq(); seq++ {
				got = append(got, s.messages[seq].GetText())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRetelling(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		frames []string
		want   string // the user's messages
	}{
		"from the beginning":               {[]string{in("Set the issue "), "reconnect", in("Set the"), in(" issue to done.")}, "Set the issue to done."},
		"with signs of speech":             {[]string{in("Set the issue "), "reconnect", activityStart, interim("Set"), in("set the issue to done.")}, "Set the issue to done."},
		"cut in the middle of a word":      {[]string{in("Set the iss"), "reconnect", in("Set the issue now")}, "Set the issue now"},
		"punctuation is no difference":     {[]string{in("No, don't"), "reconnect", in("no don’t stop")}, "No, don't stop"},
		"it goes on":                       {[]string{in("Set the "), "reconnect", in("issue to done")}, "Set the issue to done"},
		"it only begins alike":             {[]string{in("the cat and "), "reconnect", in("the "), in("dog")}, "the cat and the dog"},
		"held back, then over":             {[]string{in("the cat and "), "reconnect", in("the "), out("Yes"), turnComplete}, "the cat and the "},
		"all of it, then over":             {[]string{in("the cat "), "reconnect", in("The cat"), out("Yes"), turnComplete}, "the cat "},
		"most of it, then over":            {[]string{in("one two three four "), "reconnect", in("one two three"), out("Yes"), turnComplete}, "one two three four "},
		"a new one of the same beginning":  {[]string{in("the cat"), out("Yes"), turnComplete, activityStart, in("the cat again")}, "the cat|the cat again"},
		"long after it was complete":       {[]string{activityStart, in("Look at it"), activityEnd, out("Yes"), turnComplete, in("Look at it"), activityStart, in("Yes")}, "Look at it|Yes"},
		"once more, and answered":          {[]string{activityStart, in("Look at it"), activityEnd, out("Yes"), turnComplete, in("Look at it"), out("Again")}, "Look at it|Look at it"},
		"in pieces":                        {[]string{activityStart, in("Look at it"), activityEnd, out("Yes"), turnComplete, in("Look "), in("at it")}, "Look at it"},
		"said twice":                       {[]string{activityStart, in("Yes."), activityEnd, out("?"), turnComplete, activityStart, in("Yes."), activityEnd}, "Yes.|Yes."},
		"said twice without signs":         {[]string{in("Yes."), out("?"), turnComplete, in("Yes."), out("?"), turnComplete}, "Yes.|Yes."},
		"once more before the answer":      {[]string{in("Look at it"), in("Look at it")}, "Look at it Look at it"},
		"once more amid the answer":        {[]string{in("Look at it"), out("Yes"), in("Look at it")}, "Look at it"},
		"the same word again and again":    {[]string{in("no no no "), in("no no no ")}, "no no no no no no "},
		"the tail of an utterance is late": {[]string{activityStart, in("the cat and "), activityEnd, in("the "), in("dog"), out("Yes"), turnComplete}, "the cat and the dog"},
		"another script":                   {[]string{in("打开问题"), "reconnect", in("打开问题一")}, "打开问题一"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newLiveStore()
			s.send(t, tt.frames...)
			s.do(testNow, func(f *folder) { f.closeLive(1000) })
			var users []string
			for seq := range s.state.GetLastSeq() {
				if m := s.messages[seq+1]; m.GetRole() == storev1.Role_ROLE_USER {
					users = append(users, m.GetText())
				}
			}
			if got := strings.Join(users, "|"); got != tt.want {
				t.Errorf("the user said %q, want %q", got, tt.want)
			}
			s.check(t)
		})
	}
}

func claim(worker string, token int64) *livev1.ClaimToolCallRequest {
	return &livev1.ClaimToolCallRequest{Worker: worker, FencingToken: int32(token)}
}

func TestClaims(t *testing.T) {
	t.Parallel()
	s := opens("a")
	s.send(t, call("a"), call("b"))
	at := testNow
	try := func(id, worker string, token int64) (got int64, err error) {
		t.Helper()
		s.do(at, func(f *folder) {
			var c *storev1.ToolCall
			c, err = f.claimCall(s.calls[id], claim(worker, token))
			got = c.GetClaim().GetFencingToken()
		})
		s.check(t)
		return got, err
	}
	if token, err := try("a", "one", 0); token != 1 || err != nil {
		t.Fatal(token, err)
	}
	if status := s.calls["a"].GetStatus(); status != callRunning {
		t.Errorf("it is %s", status)
	}
	var refused callError
	if _, err := try("a", "two", 0); !errors.As(err, &refused) || refused.claimed.IsZero() {
		t.Errorf("another gets %v", err)
	}
	if _, err := try("a", "one", 0); !errors.As(err, &refused) || refused.claimed.IsZero() {
		t.Errorf("without its token it gets %v", err)
	}
	at = at.Add(DefaultToolLease - time.Second)
	if token, err := try("a", "one", 1); token != 1 || err != nil {
		t.Errorf("renewed: %d, %v", token, err)
	}
	at = at.Add(DefaultToolLease - time.Second)
	if _, err := try("a", "two", 0); !errors.As(err, &refused) {
		t.Errorf("a renewed lease does not hold: %v", err)
	}
	at = at.Add(time.Second)
	if token, err := try("a", "two", 0); token != 2 || err != nil {
		t.Errorf("a lease that is over holds: %d, %v", token, err)
	}
	if _, err := try("a", "one", 1); !errors.As(err, &refused) || !refused.stale {
		t.Errorf("the old worker gets %v", err)
	}
	if token, err := try("b", "one", 0); token != 3 || err != nil {
		t.Errorf("another call: %d, %v", token, err)
	}
	complete := func(id string, token int64) (deliver bool, err error) {
		t.Helper()
		s.do(at, func(f *folder) {
			var send *structpb.Struct
			_, send, err = f.completeCall(s.calls[id], token, responded("ok"), "")
			deliver = send != nil
		})
		s.check(t)
		return deliver, err
	}
	if _, err := complete("a", 1); !errors.As(err, &refused) || !refused.stale {
		t.Errorf("the old worker's response gets %v", err)
	}
	for range 2 { // the second changes nothing
		if deliver, err := complete("a", 2); !deliver || err != nil {
			t.Errorf("to deliver: %v, %v", deliver, err)
		}
	}
	s.send(t, answer("a"))
	if c := s.calls["a"]; c.GetDeliveredEpoch() != 1 || c.GetResponse().GetStructValue().GetFields()["output"].GetStringValue() != "ok" {
		t.Errorf("delivered: %v", c)
	}
	if deliver, err := complete("a", 2); deliver || err != nil {
		t.Errorf("once delivered: %t, %v", deliver, err)
	}
	if _, err := try("a", "three", 0); !errors.As(err, &refused) || refused.status != callCompleted {
		t.Errorf("a completed call: %v", err)
	}
	s.send(t, `{"toolCallCancellation":{"ids":["b"]}}`)
	if deliver, err := complete("b", 3); deliver || err != nil || s.calls["b"].GetStatus() != callCancelled || s.calls["b"].GetResponse() == nil {
		t.Errorf("a cancelled call: %t, %v, %v", deliver, err, s.calls["b"])
	}
	if n := len(s.messages); n != 0 {
		t.Errorf("%d messages", n)
	}
}

// responded is a worker's response.
func responded(text string) functionResponse {
	return functionResponse{Response: jsonValue{value: structpb.NewStructValue(outputOf(text))}}
}

func outputOf(text string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"output": structpb.NewStringValue(text)}}
}

// What becomes of a call when the connection that issued it goes.
func TestCallsOfDeadConnections(t *testing.T) {
	t.Parallel()
	const text = `1 tool text complete: Result of run, which was called before the connection was lost (a): {"output":"ok"}`
	claimed := func(_ *testing.T, s *liveStore) {
		s.do(testNow, func(f *folder) { _, _ = f.claimCall(s.calls["a"], claim("w", 0)) })
	}
	completed := func(_ *testing.T, s *liveStore) {
		s.do(testNow, func(f *folder) {
			_, _, _ = f.completeCall(s.calls["a"], 1, responded("ok"), "")
		})
	}
	reopen := func(_ *testing.T, s *liveStore) {
		s.do(testNow, func(f *folder) { f.take(&livev1.ConnectLiveRequest{SetupHash: "a"}) })
	}
	closed := func(_ *testing.T, s *liveStore) { s.do(testNow, func(f *folder) { f.closeLive(1006) }) }
	send := func(frame string) func(*testing.T, *liveStore) {
		return func(t *testing.T, s *liveStore) { t.Helper(); s.send(t, frame) }
	}
	type steps []func(*testing.T, *liveStore)
	for name, tt := range map[string]struct {
		steps  steps
		status storev1.ToolCallStatus
		told   bool
	}{
		"pending":                            {steps{closed}, callOrphaned, false},
		"pending, and another takes over":    {steps{reopen}, callOrphaned, false},
		"running":                            {steps{claimed, closed}, callOrphaned, false},
		"claimed later":                      {steps{closed, claimed}, callOrphaned, false},
		"completed and not delivered":        {steps{claimed, completed, reopen}, callCompleted, true},
		"completed and delivered":            {steps{claimed, completed, send(answer("a")), reopen}, callCompleted, false},
		"answered by a frame":                {steps{send(answer("a")), reopen}, callCompleted, false},
		"the worker is late":                 {steps{claimed, reopen, completed}, callCompleted, true},
		"the worker is late, and nobody":     {steps{claimed, closed, completed, reopen}, callCompleted, true},
		"the client answers on the next":     {steps{reopen, send(answer("a"))}, callCompleted, true},
		"issued again":                       {steps{send(resumption("h")), reopen, send(call("a"))}, callPending, false},
		"issued again while it runs":         {steps{send(resumption("h")), claimed, reopen, send(call("a"))}, callRunning, false},
		"issued again, completed, delivered": {steps{send(resumption("h")), claimed, reopen, send(call("a")), completed, send(answer("a")), reopen}, callCompleted, false},
		"cancelled":                          {steps{send(`{"toolCallCancellation":{"ids":["a"]}}`), reopen}, callCancelled, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := opens("a")
			s.send(t, call("a"))
			for _, step := range tt.steps {
				step(t, s)
				s.check(t)
			}
			if c := s.calls["a"]; c.GetStatus() != tt.status || (c.GetResultSeq() != 0) != tt.told || len(s.bySeq) != 1 {
				t.Errorf("it is %v", c)
			}
			var want []string
			if tt.told {
				want = []string{text}
			}
			if diff := cmp.Diff(want, s.transcript()); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

// A fresh session may use the ids of an old one again.
func TestCallIDsCountWithinALiveSession(t *testing.T) {
	t.Parallel()
	s := opens("a")
	s.send(t, call("a"), answer("a"), call("a"))
	if len(s.bySeq) != 1 || s.bySeq[1].GetStatus() != callCompleted {
		t.Errorf("the same call, again: %v", s.bySeq)
	}
	s.do(testNow, func(f *folder) { f.take(&livev1.ConnectLiveRequest{SetupHash: "b"}) })
	s.send(t, call("a"))
	if len(s.bySeq) != 2 || s.bySeq[2].GetStatus() != callPending || s.bySeq[2].GetSession() != 2 {
		t.Errorf("another call: %v", s.bySeq)
	}
}

func TestAbandoned(t *testing.T) {
	t.Parallel()
	s := opens("a")
	s.send(t, in("Set "), call("a"))
	s.do(testNow, func(f *folder) { f.take(&livev1.ConnectLiveRequest{SetupHash: "a"}) })
	late := func(frames ...*livev1.LiveFrame) (got *storev1.Fragment) {
		s.do(testNow, func(f *folder) { got = f.abandon(readBatch(1, frames, sealed)) })
		s.check(t)
		return got
	}
	got := late(textFrame(1, in("Set ")), textFrame(3, in("it ")), textFrame(4, out("Sure")), textFrame(5, answer("a")))
	want := &storev1.Fragment{Seq: 1, Epoch: 1, FirstClientIndex: 3, LastClientIndex: 5, UserText: "it ", AssistantText: "Sure", CreateTime: timestamppb.New(testNow)}
	same(t, "the fragment", got, want)
	if c := s.calls["a"]; c.GetStatus() != callCompleted || c.GetResultSeq() != 2 {
		t.Errorf("the response that came with it: %v", c)
	}
	if got := late(textFrame(1, in("Set ")), textFrame(4, out("Sure")), textFrame(5, answer("a"))); got != nil {
		t.Errorf("again: %v", got)
	}
	if got := late(textFrame(6, audio)); got != nil {
		t.Errorf("nothing was said: %v", got)
	}
	same(t, "the next", late(textFrame(7, typed("now"))), &storev1.Fragment{
		Seq: 2, Epoch: 1, FirstClientIndex: 7, LastClientIndex: 7, UserText: "now", CreateTime: timestamppb.New(testNow),
	})
	if got := s.messages[1].GetText(); got != "Set " {
		t.Errorf("the message became %q", got)
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
				s.check(t)
			}
			if s.state.GetLive().GetAssistantTurn() == nil {
				return
			}
			before := s.messages[1].GetText()
			s.send(t, out(" late"))
			if m := s.messages[1]; m.GetText() != before+" late" || m.GetHeardText() != tt.want {
				t.Errorf("late words make it %q, heard %q", m.GetText(), m.GetHeardText())
			}
		})
	}
}

func TestWhatWasHeardIsEstimated(t *testing.T) {
	t.Parallel()
	s := opens("a")
	s.send(t, out("One "), interrupted, out("two"), turnComplete, out("Three"), turnComplete)
	if m := s.messages[1]; m.GetHeardText() != "One " || !m.GetHeardEstimated() || m.GetInterruptTime() == nil || m.GetText() != "One two" {
		t.Errorf("interrupted: %v", m)
	}
	if m := s.messages[2]; m.HeardText != nil {
		t.Errorf("not interrupted: %v", m)
	}
}

// Text that the model's transcription replaces was not heard.
func TestWhatWasHeardIsSaid(t *testing.T) {
	t.Parallel()
	s := opens("a")
	s.send(t, part("As text."), interrupted, out("As speech."))
	s.check(t)
	if m := s.messages[1]; m.GetText() != "As speech." || m.HeardText == nil || m.GetHeardText() != "" || !m.GetHeardEstimated() {
		t.Errorf("%v", m)
	}
}

// Responses that wait for their delivery count, too.
func TestPendingResponsesAreBounded(t *testing.T) {
	t.Parallel()
	s := opens("a")
	const calls = 12
	for i := range calls {
		s.send(t, call(fmt.Sprint(i)))
	}
	for i := range calls {
		c := s.calls[fmt.Sprint(i)]
		s.do(testNow, func(f *folder) {
			if _, deliver, err := f.completeCall(c, 0, responded(strings.Repeat("x", 10<<10)), ""); err != nil || deliver == nil {
				t.Errorf("to deliver: %v, %v", deliver, err)
			}
		})
		s.check(t)
	}
	if waiting := s.state.GetLive().GetPendingCalls(); len(waiting) != 9 || waiting["2"] != nil || waiting["3"] == nil {
		t.Errorf("%d calls wait", len(waiting))
	}
	// A call that is issued meanwhile takes no more room than it needs.
	s.send(t, call("another"))
	s.check(t)
	if waiting := s.state.GetLive().GetPendingCalls(); len(waiting) != 10 || waiting["3"].GetResponse() == nil {
		t.Errorf("%d calls wait beside another", len(waiting))
	}
	// One that is larger than all of them may be is in its entry alone.
	s.send(t, call("large"))
	s.do(testNow, func(f *folder) {
		if _, deliver, err := f.completeCall(s.calls["large"], 0, responded(strings.Repeat("x", maxPendingBytes)), ""); err != nil || deliver == nil {
			t.Errorf("to deliver: %v, %v", deliver, err)
		}
	})
	s.check(t)
	if s.state.GetLive().GetPendingCalls()["large"] != nil || s.calls["large"].GetResponse() == nil {
		t.Error("a large response is in the state, or nowhere")
	}
}

func TestSilence(t *testing.T) {
	t.Parallel()
	at := testNow.Add
	aSecond := &livev1.ConnectLiveRequest{Options: &livev1.LiveOptions{Silence: durationpb.New(time.Second)}}
	for name, tt := range map[string]struct {
		frames []string
		open   *livev1.ConnectLiveRequest
		after  time.Duration
		status storev1.VoiceStatus
		next   time.Duration // 0: none
		want   []string
	}{
		"idle already":              {[]string{"in:Hi", "TC"}, nil, time.Hour, voiceIdle, 0, []string{"user: Hi"}},
		"not yet":                   {[]string{"in:Hi"}, nil, DefaultSilence - 1, voiceListening, DefaultSilence, []string{"user*: Hi"}},
		"silent":                    {[]string{"in:Hi"}, nil, DefaultSilence, voiceIdle, 0, []string{"user: Hi"}},
		"as the client wants it":    {[]string{"in:Hi"}, aSecond, time.Second, voiceIdle, 0, []string{"user: Hi"}},
		"after an answer":           {[]string{"in:Hi", "AU", "out:Hello.", "GC"}, nil, DefaultSilence, voiceIdle, 0, []string{"user: Hi", "assistant: Hello."}},
		"amid an answer":            {[]string{"in:Hi", "AU", "out:Hello"}, nil, DefaultSilence, voiceIdle, 0, []string{"user: Hi", "assistant: Hello"}},
		"speech that has no end":    {[]string{"VS", "in:Hi"}, nil, DefaultSilence, voiceIdle, 0, []string{"user: Hi"}},
		"after an interruption":     {[]string{"in:Hi", "AU", "out:Hello", "INT", "in:No"}, nil, DefaultSilence, voiceIdle, 0, []string{"user: Hi", "assistant: Hello", "user: No"}},
		"speech without words":      {[]string{"VS", "VE", "AU", "out:Hello."}, nil, DefaultSilence, voiceIdle, 0, []string{"assistant: Hello."}},
		"a tool runs":               {[]string{"call:a"}, nil, time.Hour, voiceProcessing, time.Hour + DefaultSilence, []string{"call a pending"}},
		"a tool runs for an answer": {[]string{"in:Go", "out:I start.", "call:a"}, nil, time.Hour, voiceProcessing, time.Hour + DefaultSilence, []string{"user*: Go", "assistant*: I start.", "call a pending"}},
		"a tool ran":                {[]string{"call:a", "answer:a"}, nil, time.Hour, voiceIdle, 0, []string{"call a completed"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := opens("a")
			if tt.open != nil {
				s.do(testNow, func(f *folder) { f.take(tt.open) })
			}
			s.send(t, shorthands(tt.frames...)...)
			var next time.Time
			s.do(at(tt.after), func(f *folder) { next = f.silent() })
			if got := s.state.GetVoice().GetStatus(); got != tt.status {
				t.Errorf("it is %s", got)
			}
			if tt.next == 0 && !next.IsZero() || tt.next != 0 && !next.Equal(at(tt.next)) {
				t.Errorf("looks again at %v", next)
			}
			if diff := cmp.Diff(tt.want, s.talk()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if tt.next != 0 {
				return
			}
			// What is said next is another turn.
			s.send(t, shorthands("in:And?", "AU", "out:Yes.", "TC")...)
			if diff := cmp.Diff(append(tt.want, "user: And?", "assistant: Yes."), s.talk()); diff != "" {
				t.Errorf("and then (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFleeting(t *testing.T) {
	t.Parallel()
	for frame, want := range map[string]bool{
		interim("Can"): true, activityStart: true, activityEnd: true, audio: true, interim("Can") + activityEnd: true,
		`{"realtimeInput":{"audio":{}}}`: true,
		in("Can"):                        false, out("Yes"): false, turnComplete: false, generated: false, interrupted: false, call("a"): false,
		usage(1, 2): false, typed("x"): false, resumption("h"): false, part("text"): false, interim("Can") + in("Can"): false,
		`{"unknown":{}}`: false, `hello`: false, `{"setup":{}}`: false, `{"goAway":{}}`: false,
		`{"serverContent":{"interimInputTranscription":{"text":"a"},"outputTranscription":{"text":"b"}}}`: false,
	} {
		if got := readBatch(1, []*livev1.LiveFrame{textFrame(1, frame)}, sealed).fleeting; got != want {
			t.Errorf("%s is fleeting: %t", frame, got)
		}
	}
}

// Secrets never show in what is printed.
func TestHandlesDoNotShow(t *testing.T) {
	t.Parallel()
	var u resumptionUpdate
	u.NewHandle = "secret-handle"
	for _, text := range []string{fmt.Sprint(u), fmt.Sprintf("%+v %#v %s", u, u, u.NewHandle)} {
		if strings.Contains(text, "secret-handle") {
			t.Errorf("printed: %s", text)
		}
	}
	for m, names := range map[proto.Message][]protoreflect.Name{
		&storev1.LiveHandle{}: {"sealed"},
		&storev1.KeptFrames{}: {"sealed"},
		&livev1.Plan{}:        {"handle"},
		&livev1.LiveFrame{}:   {"text", "binary", "object"},
	} {
		for _, name := range names {
			options, _ := m.ProtoReflect().Descriptor().Fields().ByName(name).Options().(*descriptorpb.FieldOptions)
			if !options.GetDebugRedact() {
				t.Errorf("%T.%s is not redacted", m, name)
			}
		}
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
