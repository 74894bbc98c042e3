package coordination

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/db/dbtest"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers"
	"holdfast/handlers/handlertest"
	"holdfast/handlers/watch"
	"holdfast/identity"
	"holdfast/object"
)

// The tests of the API, here and in the other files *_api_test.go, call real servers over HTTP, on a real Postgres.

func TestMain(m *testing.M) { os.Exit(dbtest.MainWithoutLeaks(m)) }

const (
	ada    = identity.User("ada")
	eve    = identity.User("eve")
	nobody = identity.User("") // a service, which acts for itself

	proceed   = coordinationv1.Decision_DECISION_PROCEED
	done      = coordinationv1.Decision_DECISION_DONE
	inFlight  = coordinationv1.Decision_DECISION_IN_FLIGHT
	wait      = coordinationv1.Decision_DECISION_WAIT
	unknown   = coordinationv1.Decision_DECISION_UNKNOWN
	reconcile = coordinationv1.Decision_DECISION_RECONCILE
)

// bundle is a test's server, and the database and tenant below it.
type bundle struct {
	*dbtest.Bundle

	url string
}

// setup serves a fresh tenant.
func setup(t *testing.T) *bundle {
	t.Helper()
	return serve(t, dbtest.New(t))
}

// serve starts one more server on a bundle's database, as another process would.
func serve(t *testing.T, d *dbtest.Bundle) *bundle {
	t.Helper()
	rt := object.NewRuntime(d.DB, object.Config{Timers: true, TimerPoll: 50 * time.Millisecond})
	m := NewManager(Register(rt), d.DB.Now)
	server := handlertest.Serve(t, d, rt, handlers.Options{Services: []handlers.Service{
		handlers.NewService[coordinationv1connect.CoordinationServiceHandler](
			coordinationv1connect.CoordinationServiceName, coordinationv1connect.NewCoordinationServiceHandler, m),
		handlers.NewService[watchv1connect.WatchServiceHandler](watchv1connect.WatchServiceName, watchv1connect.NewWatchServiceHandler,
			watch.NewManager(watch.Options{Explain: handlers.Explain, Now: d.DB.Now}, m.Sources())),
	}})
	return &bundle{Bundle: d, url: server.URL}
}

type client = coordinationv1connect.CoordinationServiceClient

// client calls as a user, on a connection of its own.
func (b *bundle) client(t *testing.T, user identity.User) client {
	t.Helper()
	return coordinationv1connect.NewCoordinationServiceClient(handlertest.Client(t, b.Bundle, user, nil), b.url)
}

// must returns the result of a call that succeeds.
func must[R any](r R, err error) func(*testing.T) R {
	return func(t *testing.T) R {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// refused checks the code and reason of an error.
func refused(t *testing.T, err error, code connect.Code, reason string) {
	t.Helper()
	var e *connect.Error
	if !errors.As(err, &e) || e.Code() != code {
		t.Errorf("answered with %v, want %v", err, code)
		return
	}
	for _, d := range e.Details() {
		if v, err := d.Value(); err == nil {
			if info, ok := v.(*errdetails.ErrorInfo); ok && info.GetReason() == reason {
				return
			}
		}
	}
	t.Errorf("answered with %v, want the reason %s", err, reason)
}

func begin(t *testing.T, c client, id string, change ...func(*coordinationv1.BeginCallRequest)) *coordinationv1.BeginCallResponse {
	t.Helper()
	req := &coordinationv1.BeginCallRequest{Api: "codegen", Operation: "create_run", Key: id, Fingerprint: "f", Holder: "h"}
	for _, f := range change {
		f(req)
	}
	return must(c.BeginCall(t.Context(), req))(t)
}

func configure1(t *testing.T, c client, api string, config *storev1.ApiConfig) {
	t.Helper()
	must(c.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{
		Api: api, Config: as[*coordinationv1.ApiConfig](config), Clear: []coordinationv1.Clear{coordinationv1.Clear_CLEAR_CONFIG},
	}))(t)
}

// completed and failed are what FinishCall is told.
func completed(o *coordinationv1.Outcome) *coordinationv1.FinishCallRequest_Completed {
	return &coordinationv1.FinishCallRequest_Completed{Completed: o}
}

func failed(f coordinationv1.Failure, change ...func(*coordinationv1.CallFailure)) *coordinationv1.FinishCallRequest_Failed {
	failure := &coordinationv1.CallFailure{Failure: f}
	for _, g := range change {
		g(failure)
	}
	return &coordinationv1.FinishCallRequest_Failed{Failed: failure}
}

func TestACallFromBeginToEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	first := begin(t, c, "r")
	if first.GetDecision() != proceed || first.GetLease().GetFencingToken() != 1 || first.GetLease().GetExpiresIn().AsDuration() != time.Minute || first.GetCall().GetAttempt() != 1 || first.GetVersion() != 1 {
		t.Fatalf("begun: %v", first)
	}
	if first.GetSendWithin().AsDuration() != 2*time.Second || len(first.GetLimits()) != 1 || first.GetLimits()[0].GetRemaining() != 9 {
		t.Errorf("limits: %v", first)
	}
	second := begin(t, c, "r")
	if second.GetDecision() != inFlight || second.GetLease() != nil || second.GetCall().GetLease().GetHolder() != "h" || second.GetRetryAfter().AsDuration() > time.Minute {
		t.Errorf("begun again: %v", second)
	}
	if second.GetVersion() != 1 {
		t.Errorf("that made version %d", second.GetVersion())
	}
	_, err := c.BeginCall(t.Context(), &coordinationv1.BeginCallRequest{Api: "codegen", Operation: "create_run", Key: "r", Fingerprint: "other"})
	refused(t, err, connect.CodeAlreadyExists, "REQUEST_ID_REUSED")

	outcome := &coordinationv1.Outcome{HttpStatus: 200, Body: []byte(`{"id":5}`), Reference: "5"}
	for range 2 {
		ended := must(c.FinishCall(t.Context(), &coordinationv1.FinishCallRequest{
			Api: "codegen", Key: "r", FencingToken: 1, Result: completed(outcome),
		}))(t)
		if ended.GetCall().GetStatus() != coordinationv1.CallStatus_CALL_STATUS_COMPLETED || ended.GetVersion() != 2 {
			t.Errorf("completed: %v", ended)
		}
	}
	again := begin(t, c, "r")
	if again.GetDecision() != done || string(again.GetCall().GetOutcome().GetBody()) != `{"id":5}` || again.GetVersion() != 2 {
		t.Errorf("begun when it was done: %v", again)
	}
	_, err = c.FinishCall(t.Context(), &coordinationv1.FinishCallRequest{
		Api: "codegen", Key: "r", FencingToken: 1, Result: failed(coordinationv1.Failure_FAILURE_UNKNOWN),
	})
	refused(t, err, connect.CodeFailedPrecondition, "ILLEGAL_TRANSITION")

	got := must(c.GetCall(t.Context(), &coordinationv1.GetCallRequest{Api: "codegen", Key: "r"}))(t)
	if got.GetCall().GetOutcome().GetReference() != "5" {
		t.Errorf("got: %v", got)
	}
	// Another user's call of the same key is another call, and a service's too.
	for _, user := range []identity.User{eve, nobody} {
		if other := begin(t, b.client(t, user), "r"); other.GetDecision() != proceed {
			t.Errorf("begun by %q: %v", user, other)
		}
	}
	listed := must(c.ListCalls(t.Context(), &coordinationv1.ListCallsRequest{Api: "codegen"}))(t)
	all := must(b.client(t, nobody).ListCalls(t.Context(), &coordinationv1.ListCallsRequest{Api: "codegen"}))(t)
	if len(listed.GetCalls()) != 1 || len(all.GetCalls()) != 3 || all.GetCalls()[0].GetSeq() != 3 || len(all.GetCalls()[2].GetOutcome().GetBody()) != 0 {
		t.Errorf("listed: %v and %v", listed, all)
	}
	state := must(c.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "codegen"}))(t).GetApi()
	if state.GetInFlight() != 2 || state.GetToday().GetCompleted() != 1 || state.GetToday().GetOperations()["create_run"] != 3 || !state.GetReadyMade() {
		t.Errorf("state: %v", state)
	}
}

// An answer to a begin that was lost is given again, but only to who knows its request id.
func TestABeginThatIsRepeated(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	named := begin(t, c, "named", func(r *coordinationv1.BeginCallRequest) { r.RequestId = "b" })
	if again := begin(t, c, "named", func(r *coordinationv1.BeginCallRequest) { r.RequestId = "b" }); again.GetLease().GetFencingToken() != named.GetLease().GetFencingToken() ||
		again.GetSendWithin().AsDuration() != 2*time.Second {
		t.Errorf("a begin that was repeated: %v", again)
	}
	if other := begin(t, c, "named"); other.GetDecision() != inFlight || other.GetLease() != nil {
		t.Errorf("by another: %v", other)
	}
}

// A begin whose condition was met is repeated although the API has a newer version by then; another one is refused.
func TestABeginHasACondition(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	at := func(id string, v int64) func(*coordinationv1.BeginCallRequest) {
		return func(r *coordinationv1.BeginCallRequest) { r.RequestId, r.IfVersion = id, &v }
	}
	first := begin(t, c, "r", at("b", 0))
	for range 2 {
		if again := begin(t, c, "r", at("b", 0)); again.GetDecision() != proceed || again.GetLease().GetFencingToken() != first.GetLease().GetFencingToken() {
			t.Errorf("repeated: %v", again)
		}
		begin(t, c, "other")
	}
	req := &coordinationv1.BeginCallRequest{Api: "codegen", Operation: "create_run", Key: "s"}
	for _, v := range []int64{0, 1, 3} {
		at("c", v)(req)
		_, err := c.BeginCall(t.Context(), req)
		refused(t, err, connect.CodeAborted, "VERSION_MISMATCH")
	}
	if got := begin(t, c, "s", at("c", 2)); got.GetDecision() != proceed || got.GetVersion() != 3 {
		t.Errorf("at the version: %v", got)
	}
}

// The lease of a call that nobody ended is written down as over by a timer, on whatever server.
func TestALeaseThatEndsIsUnknown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	first := begin(t, c, "r", func(r *coordinationv1.BeginCallRequest) { r.Timeout = durationpb.New(200 * time.Millisecond) })
	w := b.watch(ctx, t)
	defer w.Close()
	for seen := false; !seen; {
		if !w.Receive() {
			t.Fatalf("the stream ended with %v", w.Err())
		}
		for _, thing := range w.Msg().GetChanged().GetPut() {
			r := thing.GetCall()
			seen = seen || r.GetStatus() == coordinationv1.CallStatus_CALL_STATUS_UNKNOWN && r.GetKey() == "r"
		}
	}
	if again := begin(t, c, "r"); again.GetDecision() != unknown {
		t.Fatalf("begun again: %v", again)
	}
	found := begin(t, c, "r", func(r *coordinationv1.BeginCallRequest) { r.Reconcile = true })
	if found.GetDecision() != reconcile || found.GetLease().GetFencingToken() != 2 {
		t.Fatalf("to reconcile: %v", found)
	}
	if other := begin(t, c, "r", func(r *coordinationv1.BeginCallRequest) { r.Reconcile = true }); other.GetDecision() != inFlight {
		t.Errorf("while another reconciles: %v", other)
	}
	must(c.FinishCall(t.Context(), &coordinationv1.FinishCallRequest{
		Api: "codegen", Key: "r", FencingToken: 2, Result: failed(coordinationv1.Failure_FAILURE_RETRYABLE),
	}))(t)
	second := begin(t, c, "r")
	named := begin(t, c, "named", func(r *coordinationv1.BeginCallRequest) { r.RequestId = "b" })
	if again := begin(t, c, "named", func(r *coordinationv1.BeginCallRequest) { r.RequestId = "b" }); again.GetLease().GetFencingToken() != named.GetLease().GetFencingToken() {
		t.Errorf("a begin that was repeated: %v", again)
	}
	must(c.FinishCall(t.Context(), &coordinationv1.FinishCallRequest{
		Api: "codegen", Key: "named", FencingToken: 1, Result: failed(coordinationv1.Failure_FAILURE_RETRYABLE, func(f *coordinationv1.CallFailure) { f.NotSent = true }),
	}))(t)
	if second.GetDecision() != proceed || second.GetCall().GetAttempt() != 2 {
		t.Errorf("after it was found not to have happened: %v", second)
	}
	_, err := c.FinishCall(t.Context(), &coordinationv1.FinishCallRequest{
		Api: "codegen", Key: "r", FencingToken: first.GetLease().GetFencingToken(), Result: completed(&coordinationv1.Outcome{}),
	})
	refused(t, err, connect.CodeFailedPrecondition, "FENCED")
}

func (b *bundle) watch(ctx context.Context, t *testing.T) *connect.ServerStreamForClient[watchv1.WatchResponse] {
	t.Helper()
	client := watchv1connect.NewWatchServiceClient(handlertest.Client(t, b.Bundle, ada, nil), b.url)
	return must(client.Watch(ctx, &watchv1.WatchRequest{Items: []*watchv1.Item{{ItemId: "api", Of: &watchv1.Item_Api{Api: "codegen"}}}}))(t)
}

func TestAcquire(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	configure1(t, c, "any", &storev1.ApiConfig{Policies: []*storev1.Policy{
		sliding(2, time.Hour),
		{Name: "mine", Algorithm: storev1.Algorithm_ALGORITHM_SLIDING, Limit: 1, Period: durationpb.New(time.Hour), Scope: storev1.Scope_SCOPE_USER},
		{Name: "other", Algorithm: storev1.Algorithm_ALGORITHM_SLIDING, Limit: 1, Period: durationpb.New(time.Hour), Operations: []string{"other"}},
	}})
	acquire := func(user identity.User, req *coordinationv1.AcquireRequest) *coordinationv1.AcquireResponse {
		t.Helper()
		req.Api = "any"
		return must(b.client(t, user).Acquire(t.Context(), req))(t)
	}
	if got := acquire(ada, &coordinationv1.AcquireRequest{GrantId: "1"}); !got.GetAllowed() || got.GetGrantId() != "1" || got.GetLimits()[1].GetRemaining() != 0 || got.GetVersion() != 2 {
		t.Errorf("the first: %v", got)
	}
	if got := acquire(ada, &coordinationv1.AcquireRequest{GrantId: "1"}); !got.GetAllowed() || got.GetVersion() != 2 {
		t.Errorf("the first, repeated: %v", got)
	}
	for _, id := range []string{"", "2", "2"} {
		got := acquire(ada, &coordinationv1.AcquireRequest{GrantId: id})
		if got.GetAllowed() || got.GetWaitReason() != coordinationv1.WaitReason_WAIT_REASON_LIMIT || got.GetRetryAfter().AsDuration() < 50*time.Minute || got.GetVersion() != 2 {
			t.Errorf("her second: %v", got)
		}
	}
	// All or none: what the tenant's policy would have allowed it still has.
	if got := acquire(eve, &coordinationv1.AcquireRequest{GrantId: "1"}); !got.GetAllowed() || got.GetVersion() != 3 {
		t.Errorf("another user's first: %v", got)
	}
	if got := acquire(nobody, &coordinationv1.AcquireRequest{Peek: true}); got.GetAllowed() || got.GetVersion() != 3 {
		t.Errorf("a peek: %v", got)
	}
	if got := acquire(nobody, &coordinationv1.AcquireRequest{Policies: []string{"other"}}); !got.GetAllowed() {
		t.Errorf("of one policy: %v", got)
	}
	_, err := c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", Policies: []string{"nowhere"}})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	_, err = c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", Permits: 3})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	_, err = c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", Scope: coordinationv1.Scope_SCOPE_USER})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	_, err = b.client(t, ada).Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", Scope: coordinationv1.Scope_SCOPE_TENANT})
	refused(t, err, connect.CodePermissionDenied, "ROLE_REQUIRED")
}

func TestRateLimitHeaders(t *testing.T) {
	t.Parallel()
	b := setup(t)
	configure1(t, b.client(t, nobody), "any", &storev1.ApiConfig{Policies: []*storev1.Policy{
		sliding(1, time.Minute), {Name: "at-once", Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 5},
	}})
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	post := func() http.Header {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+coordinationv1connect.CoordinationServiceAcquireProcedure, strings.NewReader(`{"api":"any"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+handlertest.Key(t, b.Bundle, ada))
		res, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.Header
	}
	h := post()
	if got := h.Get("Ratelimit-Policy"); got != `"p";q=1;w=60, "at-once";q=5;qu="concurrent-requests"` {
		t.Errorf("RateLimit-Policy: %s", got)
	}
	if got := h.Get("Ratelimit"); got != `"p";r=0;t=60, "at-once";r=4;t=60` || h.Get("Retry-After") != "" {
		t.Errorf("RateLimit: %s; Retry-After: %s", got, h.Get("Retry-After"))
	}
	if got := post().Get("Retry-After"); got == "" || got == "0" {
		t.Errorf("Retry-After: %q", got)
	}
}
