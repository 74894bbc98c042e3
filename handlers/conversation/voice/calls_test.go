package voice

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

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
		s.do(at, func(f *Reducer) {
			var c *storev1.ToolCall
			c, err = f.ClaimCall(s.calls[id], claim(worker, token))
			got = c.GetClaim().GetFencingToken()
		})
		s.check(t)
		return got, err
	}
	if token, err := try("a", "one", 0); token != 1 || err != nil {
		t.Fatal(token, err)
	}
	if status := s.calls["a"].GetStatus(); status != CallRunning {
		t.Errorf("it is %s", status)
	}
	var refused CallError
	if _, err := try("a", "two", 0); !errors.As(err, &refused) || refused.Claimed.IsZero() {
		t.Errorf("another gets %v", err)
	}
	if _, err := try("a", "one", 0); !errors.As(err, &refused) || refused.Claimed.IsZero() {
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
	if _, err := try("a", "one", 1); !errors.As(err, &refused) || !refused.Stale {
		t.Errorf("the old worker gets %v", err)
	}
	if token, err := try("b", "one", 0); token != 3 || err != nil {
		t.Errorf("another call: %d, %v", token, err)
	}
	complete := func(id string, token int64) (deliver bool, err error) {
		t.Helper()
		s.do(at, func(f *Reducer) {
			var send *structpb.Struct
			_, send, err = f.CompleteCall(s.calls[id], token, responded("ok"), "")
			deliver = send != nil
		})
		s.check(t)
		return deliver, err
	}
	if _, err := complete("a", 1); !errors.As(err, &refused) || !refused.Stale {
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
	if _, err := try("a", "three", 0); !errors.As(err, &refused) || refused.Status != CallCompleted {
		t.Errorf("a completed call: %v", err)
	}
	s.send(t, `{"toolCallCancellation":{"ids":["b"]}}`)
	if deliver, err := complete("b", 3); deliver || err != nil || s.calls["b"].GetStatus() != CallCancelled || s.calls["b"].GetResponse() == nil {
		t.Errorf("a cancelled call: %t, %v, %v", deliver, err, s.calls["b"])
	}
	if n := len(s.messages); n != 0 {
		t.Errorf("%d messages", n)
	}
}

// responded is a worker's response.
func responded(text string) gemini.FunctionResponse {
	return gemini.FunctionResponse{Response: gemini.Value{Value: structpb.NewStructValue(outputOf(text))}}
}

func outputOf(text string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"output": structpb.NewStringValue(text)}}
}

// What becomes of a call when the connection that issued it goes.
func TestCallsOfDeadConnections(t *testing.T) {
	t.Parallel()
	const text = `1 tool text complete: Result of run, which was called before the connection was lost (a): {"output":"ok"}`
	claimed := func(_ *testing.T, s *liveStore) {
		s.do(testNow, func(f *Reducer) { _, _ = f.ClaimCall(s.calls["a"], claim("w", 0)) })
	}
	completed := func(_ *testing.T, s *liveStore) {
		s.do(testNow, func(f *Reducer) {
			_, _, _ = f.CompleteCall(s.calls["a"], 1, responded("ok"), "")
		})
	}
	reopen := func(_ *testing.T, s *liveStore) {
		s.take("a")
	}
	closed := func(_ *testing.T, s *liveStore) { s.do(testNow, func(f *Reducer) { f.CloseLive(1006) }) }
	send := func(frame string) func(*testing.T, *liveStore) {
		return func(t *testing.T, s *liveStore) { t.Helper(); s.send(t, frame) }
	}
	type steps []func(*testing.T, *liveStore)
	for name, tt := range map[string]struct {
		steps  steps
		status storev1.ToolCallStatus
		told   bool
	}{
		"pending":                            {steps{closed}, CallOrphaned, false},
		"pending, and another takes over":    {steps{reopen}, CallOrphaned, false},
		"running":                            {steps{claimed, closed}, CallOrphaned, false},
		"claimed later":                      {steps{closed, claimed}, CallOrphaned, false},
		"completed and not delivered":        {steps{claimed, completed, reopen}, CallCompleted, true},
		"completed and delivered":            {steps{claimed, completed, send(answer("a")), reopen}, CallCompleted, false},
		"answered by a frame":                {steps{send(answer("a")), reopen}, CallCompleted, false},
		"the worker is late":                 {steps{claimed, reopen, completed}, CallCompleted, true},
		"the worker is late, and nobody":     {steps{claimed, closed, completed, reopen}, CallCompleted, true},
		"the client answers on the next":     {steps{reopen, send(answer("a"))}, CallCompleted, true},
		"issued again":                       {steps{send(resumption("h")), reopen, send(call("a"))}, CallPending, false},
		"issued again while it runs":         {steps{send(resumption("h")), claimed, reopen, send(call("a"))}, CallRunning, false},
		"issued again, completed, delivered": {steps{send(resumption("h")), claimed, reopen, send(call("a")), completed, send(answer("a")), reopen}, CallCompleted, false},
		"cancelled":                          {steps{send(`{"toolCallCancellation":{"ids":["a"]}}`), reopen}, CallCancelled, false},
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
	if len(s.bySeq) != 1 || s.bySeq[1].GetStatus() != CallCompleted {
		t.Errorf("the same call, again: %v", s.bySeq)
	}
	s.take("b")
	s.send(t, call("a"))
	if len(s.bySeq) != 2 || s.bySeq[2].GetStatus() != CallPending || s.bySeq[2].GetSession() != 2 {
		t.Errorf("another call: %v", s.bySeq)
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
		s.do(testNow, func(f *Reducer) {
			if _, deliver, err := f.CompleteCall(c, 0, responded(strings.Repeat("x", 10<<10)), ""); err != nil || deliver == nil {
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
	s.do(testNow, func(f *Reducer) {
		if _, deliver, err := f.CompleteCall(s.calls["large"], 0, responded(strings.Repeat("x", maxPendingBytes)), ""); err != nil || deliver == nil {
			t.Errorf("to deliver: %v, %v", deliver, err)
		}
	})
	s.check(t)
	if s.state.GetLive().GetPendingCalls()["large"] != nil || s.calls["large"].GetResponse() == nil {
		t.Error("a large response is in the state, or nowhere")
	}
}

func TestToolCalls(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	status := func(id, want string) {
		t.Helper()
		if got := shortName(s.calls[id].GetStatus()); got != want {
			t.Errorf("call %s is %s, want %s", id, got, want)
		}
		if pending := s.state.GetLive().GetPendingCalls()[id] != nil; pending != (want == "pending") {
			t.Errorf("call %s is in the state: %t", id, pending)
		}
	}
	s.send(t, call("a"), call("b"), call("c"))
	status("a", "pending")
	s.send(t, answer("a"), `{"toolCallCancellation":{"ids":["b","x"]}}`)
	status("a", "completed")
	status("b", "cancelled")
	if got := s.calls["a"].GetResponse().GetStructValue().GetFields()["output"].GetStringValue(); got != "ok" {
		t.Errorf("response of a: %q", got)
	}

	// The first answer stands, and a call outlives its connection.
	s.send(t, `{"toolResponse":{"functionResponses":[{"id":"a","response":{"output":"again"}}]}}`, answer("b"), answer("x"))
	if got := s.calls["a"].GetResponse().GetStructValue().GetFields()["output"].GetStringValue(); got != "ok" {
		t.Errorf("response of a: %q", got)
	}
	status("b", "cancelled")
	s.send(t, "reconnect", call("d"), call("c"), answer("c"))
	status("c", "completed")
	status("d", "pending")
	if c, d := s.calls["c"].GetEpoch(), s.calls["d"].GetEpoch(); c != 2 || d != 2 { // c was issued again
		t.Errorf("epochs of c and d: %d, %d", c, d)
	}

	// A call may be answered bit by bit.
	s.send(t, `{"toolResponse":{"functionResponses":[{"id":"d","response":{"output":"half"},"willContinue":true}]}}`)
	status("d", "pending")
	if got := s.calls["d"].GetResponse().GetStructValue().GetFields()["output"].GetStringValue(); got != "half" {
		t.Errorf("response of d: %q", got)
	}
	s.send(t, answer("d"))
	status("d", "completed")
	if s.calls["d"].GetArgs().GetFields()["n"].GetNumberValue() != 1 {
		t.Error("d lost its arguments")
	}

	// Without an id and a name there is nothing to answer.
	before := s.state.GetLive().GetUnknownFrames()
	s.send(t, `{"toolCall":{"functionCalls":[{}]}}`, call(strings.Repeat("x", gemini.MaxName+1)))
	if got := s.state.GetLive().GetUnknownFrames() - before; got != 2 {
		t.Errorf("counted %d calls that were not understood, want 2", got)
	}
}

func TestPendingCallsAreBounded(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	for i := range maxPendingCalls + 2 {
		s.send(t, call(fmt.Sprintf("fc-%03d", i)))
	}
	pending := s.state.GetLive().GetPendingCalls()
	if len(pending) != maxPendingCalls || pending["fc-001"] != nil || pending["fc-002"] == nil {
		t.Errorf("%d calls are pending, want the last %d", len(pending), maxPendingCalls)
	}
	if got := shortName(s.calls["fc-000"].GetStatus()); got != "pending" {
		t.Errorf("the entry of a forgotten call is %s", got)
	}

	for _, id := range []string{"other", "large"} {
		s.send(t, fmt.Sprintf(`{"toolCall":{"functionCalls":[{"id":%q,"args":{"s":%q}}]}}`, id, strings.Repeat("x", maxPendingBytes/2+1)))
	}
	if len(pending) != 1 || pending["large"].GetArgs() == nil {
		t.Errorf("%d calls are pending beside a large one", len(pending))
	}
	s.send(t, answer("large"), call("small"))
}

func TestArgumentsInPieces(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.send(t,
		`{"toolCall":{"functionCalls":[{"id":"w","name":"write","willContinue":true}]}}`,
		`{"toolCall":{"functionCalls":[{"id":"w","partialArgs":[{"jsonPath":"$.path","stringValue":"a/","willContinue":true},{"jsonPath":"$.lines[1].n","numberValue":2}],"willContinue":true}]}}`,
		`{"toolCall":{"functionCalls":[{"partialArgs":[{"jsonPath":"$.path","stringValue":"b"},{"jsonPath":"$['is ok']","boolValue":true}],"willContinue":true}]}}`)
	if len(s.calls) != 0 {
		t.Errorf("a call of which more is to come is offered: %v", s.calls)
	}
	s.send(t, `{"toolCall":{"functionCalls":[{"id":"w"}]}}`)
	want, err := structpb.NewStruct(map[string]any{"path": "a/b", "lines": []any{nil, map[string]any{"n": 2}}, "is ok": true})
	if err != nil {
		t.Fatal(err)
	}
	got := s.calls["w"].GetArgs()
	if fmt.Sprint(got.AsMap()) != fmt.Sprint(want.AsMap()) || s.calls["w"].GetName() != "write" {
		t.Errorf("the arguments are %v", got)
	}
	s.check(t)
}
