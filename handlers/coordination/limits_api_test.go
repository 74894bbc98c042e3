package coordination

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/handlertest"
	"holdfast/identity"
	"holdfast/object"
)

func TestUpdateApi(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	minute := durationpb.New(time.Minute)
	p := func(change func(policy)) *storev1.ApiConfig {
		one := sliding(5, time.Minute)
		change(one)
		return &storev1.ApiConfig{Policies: []policy{one}}
	}
	for name, config := range map[string]*storev1.ApiConfig{
		"no name":           p(func(p policy) { p.Name = "" }),
		"no algorithm":      p(func(p policy) { p.Algorithm = 0 }),
		"no limit":          p(func(p policy) { p.Limit = 0 }),
		"no period":         p(func(p policy) { p.Period = nil }),
		"no calendar":       p(func(p policy) { p.Algorithm = storev1.Algorithm_ALGORITHM_CALENDAR }),
		"no such zone":      {Policies: []policy{calendar(1, storev1.Calendar_CALENDAR_DAY, "Mars/Olympus")}},
		"the server's zone": {TimeZone: "Local"},
		"too fast": p(func(p policy) {
			p.Algorithm, p.Limit, p.Period = storev1.Algorithm_ALGORITHM_GCRA, 1e9, minute
		}),
		"too much burst": p(func(p policy) { p.Algorithm, p.Burst = storev1.Algorithm_ALGORITHM_GCRA, 6 }),
		"too many at once": p(func(p policy) {
			p.Algorithm, p.Limit = storev1.Algorithm_ALGORITHM_CONCURRENCY, 1001
		}),
		"cost at once": p(func(p policy) {
			p.Algorithm, p.Unit = storev1.Algorithm_ALGORITHM_CONCURRENCY, storev1.Unit_UNIT_COST
		}),
		"twice the same name": {Policies: []policy{sliding(1, time.Minute), sliding(2, time.Minute)}},
		"too short a lease":   {Lease: durationpb.New(time.Millisecond)},
		"too short a memory":  {Retention: durationpb.New(time.Hour)},
	} {
		_, err := c.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: "any", Config: as[*coordinationv1.ApiConfig](config)})
		refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	req := &coordinationv1.UpdateApiRequest{Api: "any", Config: as[*coordinationv1.ApiConfig](p(func(policy) {})), RequestId: "1"}
	for range 2 {
		if got := must(c.UpdateApi(t.Context(), req))(t).GetApi(); got.GetVersion() != 1 {
			t.Errorf("configured: %v", got)
		}
	}
	_, err := c.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: "any", RequestId: "1"})
	refused(t, err, connect.CodeAlreadyExists, "REQUEST_ID_REUSED")
	_, err = c.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: "any", IfVersion: proto.Int64(7)})
	refused(t, err, connect.CodeAborted, "VERSION_MISMATCH")
	_, err = b.client(t, ada).UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: "any"})
	refused(t, err, connect.CodePermissionDenied, "ROLE_REQUIRED")

	// A policy that keeps its name keeps what was taken.
	must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", Permits: 3}))(t)
	remaining := func(config *storev1.ApiConfig) int64 {
		t.Helper()
		return must(c.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: "any", Config: as[*coordinationv1.ApiConfig](config)}))(t).GetApi().GetLimits()[0].GetRemaining()
	}
	if got := remaining(&storev1.ApiConfig{Policies: []policy{sliding(8, time.Minute)}}); got != 5 {
		t.Errorf("with a higher limit %d remain", got)
	}
	if got := remaining(&storev1.ApiConfig{Policies: []policy{gcra(8, time.Minute, 0)}}); got != 5 {
		t.Errorf("with another algorithm %d remain", got)
	}
}

// Without a mask the fields that are set are set; what a mask names is replaced or cleared. A ready-made config is changed as any other.
func TestUpdateApiMerges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	update := func(req *coordinationv1.UpdateApiRequest) *coordinationv1.Api {
		t.Helper()
		req.Api = "codegen"
		return must(c.UpdateApi(t.Context(), req))(t).GetApi()
	}
	paths := func(all ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: all} }
	got := update(&coordinationv1.UpdateApiRequest{Config: &coordinationv1.ApiConfig{
		MaxAttempts: 3, Breaker: &coordinationv1.BreakerConfig{FailureThreshold: 7, OpenFor: durationpb.New(time.Second)},
	}, IfVersion: proto.Int64(0)})
	if got.GetReadyMade() || got.GetConfig().GetMaxAttempts() != 3 || len(got.GetConfig().GetPolicies()) != 5 || got.GetVersion() != 1 {
		t.Errorf("what is set: %v", got)
	}
	got = update(&coordinationv1.UpdateApiRequest{
		Config:     &coordinationv1.ApiConfig{Breaker: &coordinationv1.BreakerConfig{FailureThreshold: 9}},
		UpdateMask: paths("max_attempts", "breaker.open_for"),
	})
	if b := got.GetConfig().GetBreaker(); got.GetConfig().GetMaxAttempts() != 0 || b.GetFailureThreshold() != 7 || b.GetOpenFor() != nil {
		t.Errorf("what the mask names: %v", got.GetConfig())
	}
	if got = update(&coordinationv1.UpdateApiRequest{UpdateMask: paths("policies")}); len(got.GetConfig().GetPolicies()) != 0 || len(got.GetLimits()) != 0 {
		t.Errorf("without policies: %v", got)
	}
	got = update(&coordinationv1.UpdateApiRequest{
		Config: &coordinationv1.ApiConfig{TimeZone: "Europe/Berlin"}, Clear: []coordinationv1.Clear{coordinationv1.Clear_CLEAR_CONFIG},
	})
	if got.GetConfig().GetTimeZone() != "Europe/Berlin" || len(got.GetConfig().GetPolicies()) != 5 || got.GetConfig().GetBreaker() != nil {
		t.Errorf("the ready-made one, and a zone: %v", got)
	}
	if got = update(&coordinationv1.UpdateApiRequest{Clear: []coordinationv1.Clear{coordinationv1.Clear_CLEAR_CONFIG}}); !got.GetReadyMade() {
		t.Errorf("the ready-made one: %v", got)
	}
}

// What stands in the way is cleared by hand, each by itself, and the journal says what was and by whom.
func TestClearingByHand(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rt := object.NewRuntime(b.DB, object.Config{})
	defer rt.Close(t.Context())
	kind := Register(rt)
	c := b.client(t, nobody)
	mine := sliding(1, time.Hour)
	mine.Name, mine.Scope = "mine", storev1.Scope_SCOPE_USER
	day := calendar(1, storev1.Calendar_CALENDAR_MONTH, "")
	day.Dimension = "requests"
	configure1(t, c, "codegen", &storev1.ApiConfig{
		Policies: []policy{day, mine, {Name: "slots", Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 1}},
		Breaker:  &storev1.BreakerConfig{FailureThreshold: 1},
	})
	report := func(grant string, status int32, headers map[string]string) {
		t.Helper()
		must(c.Report(t.Context(), &coordinationv1.ReportRequest{Api: "codegen", GrantId: grant, Report: &coordinationv1.ReportRequest_Response{
			Response: &coordinationv1.ProviderResponse{HttpStatus: status, Headers: headers},
		}}))(t)
	}
	acquire := func() *coordinationv1.AcquireResponse {
		t.Helper()
		return must(b.client(t, ada).Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "codegen"}))(t)
	}
	clears := func(what ...coordinationv1.Clear) {
		t.Helper()
		must(c.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: "codegen", Clear: what}))(t)
	}
	first := acquire()
	report(first.GetGrantId(), 500, nil)
	report("", 429, map[string]string{"Retry-After": "600", "X-RateLimit-Requests-Remaining": "1"})
	report("", 429, map[string]string{"X-RateLimit-Requests-Remaining": "0", "X-RateLimit-Requests-Reset": "600"})
	for _, tt := range []struct {
		clear coordinationv1.Clear
		was   coordinationv1.WaitReason
	}{
		{coordinationv1.Clear_CLEAR_LIMITS, coordinationv1.WaitReason_WAIT_REASON_LIMIT},
		{coordinationv1.Clear_CLEAR_PAUSE, coordinationv1.WaitReason_WAIT_REASON_PAUSE},
		{coordinationv1.Clear_CLEAR_BREAKER, coordinationv1.WaitReason_WAIT_REASON_BREAKER},
	} {
		if got := acquire(); got.GetAllowed() || got.GetWaitReason() != tt.was {
			t.Errorf("before %v: %v", tt.clear, got)
		}
		clears(tt.clear)
	}
	if got := acquire(); !got.GetAllowed() {
		t.Errorf("after all: %v", got)
	}
	clears(coordinationv1.Clear_CLEAR_BREAKER, coordinationv1.Clear_CLEAR_PAUSE, coordinationv1.Clear_CLEAR_CONFIG)
	events := must(kind.History(b.AsService(t), "codegen", 0, 1))(t).Events
	if got := events[0]; got.Type != "cleared_pause cleared_breaker cleared_config" || got.Actor != "" {
		t.Errorf("the journal: %v", got)
	}
}

func TestAPolicyForEveryOperationLimitsEach(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	for _, pattern := range []string{"*", "create_*", "*_run"} {
		rate, slots := sliding(3, time.Hour), sliding(2, time.Minute)
		rate.Operations = []string{pattern}
		slots.Name, slots.Algorithm, slots.Operations = "slots", storev1.Algorithm_ALGORITHM_CONCURRENCY, []string{pattern}
		configure1(t, c, "any", &storev1.ApiConfig{Policies: []policy{rate}})
		configure1(t, c, "leased", &storev1.ApiConfig{Policies: []policy{slots}})
		for n := range 5 {
			got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", Operation: "create_run"}))(t)
			if got.GetAllowed() != (n < 3) {
				t.Errorf("%s: call %d is allowed: %t", pattern, n, got.GetAllowed())
			}
			got = must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "leased", Operation: "create_run"}))(t)
			if got.GetAllowed() != (n < 2) {
				t.Errorf("%s: lease %d is granted: %t", pattern, n, got.GetAllowed())
			}
		}
		for _, api := range []string{"any", "leased"} { // the next pattern begins with empty buckets
			configure1(t, c, api, &storev1.ApiConfig{})
		}
	}
}

func TestReadyMadeApis(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	for _, api := range []string{"codegen", "linear", "gemini"} {
		before := must(c.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: api}))(t)
		if !before.GetApi().GetReadyMade() || len(before.GetApi().GetLimits()) == 0 || before.GetApi().GetVersion() != 0 {
			t.Errorf("%s, before it was used: %v", api, before)
		}
		if got := must(c.ListCalls(t.Context(), &coordinationv1.ListCallsRequest{Api: api}))(t); len(got.GetCalls()) != 0 {
			t.Errorf("%s: %v", api, got)
		}
		if got := must(c.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: api, UsageDays: 30}))(t); len(got.GetUsage()) != 0 {
			t.Errorf("%s: %v", api, got)
		}
		if got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: api, Operation: "generate", Cost: 7}))(t); !got.GetAllowed() {
			t.Errorf("%s: %v", api, got)
		}
	}
	listed := must(c.ListApis(t.Context(), &coordinationv1.ListApisRequest{}))(t)
	if len(listed.GetApis()) != 3 {
		t.Errorf("listed: %v", listed)
	}
	_, err := c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "unheard-of"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	if got := must(b.client(t, nobody).Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "unheard-of"}))(t); !got.GetAllowed() {
		t.Errorf("for a service: %v", got)
	}
	if got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "unheard-of"}))(t); !got.GetAllowed() {
		t.Errorf("and then: %v", got)
	}
	if _, err := c.ListApis(t.Context(), &coordinationv1.ListApisRequest{PageToken: "?"}); err == nil {
		t.Error("a page token that is none")
	}
}

func TestLeases(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	configure1(t, b.client(t, nobody), "gemini", &storev1.ApiConfig{Policies: []policy{
		{Name: "live", Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 2, Operations: []string{"live"}},
		{Name: "minute", Algorithm: storev1.Algorithm_ALGORITHM_SLIDING, Limit: 3, Period: durationpb.New(time.Hour)},
	}})
	acquire := func(c client, id string) (*coordinationv1.AcquireResponse, error) {
		return c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "gemini", Operation: "live", GrantId: id})
	}
	first := must(acquire(c, "s-1"))(t)
	if !first.GetAllowed() || first.GetGrantId() != "s-1" || first.GetLease().GetExpiresIn().AsDuration() != time.Minute {
		t.Fatalf("the first: %v", first)
	}
	renewed := must(acquire(c, "s-1"))(t)
	if !renewed.GetAllowed() || renewed.GetLimits()[1].GetRemaining() != 2 || !renewed.GetLease().GetExpireTime().AsTime().After(first.GetLease().GetExpireTime().AsTime()) {
		t.Errorf("renewed: %v", renewed)
	}
	if made := must(acquire(c, ""))(t); made.GetGrantId() == "" || made.GetLimits()[0].GetRemaining() != 0 {
		t.Errorf("with an id of the server's: %v", made)
	}
	_, err := acquire(b.client(t, eve), "s-1")
	refused(t, err, connect.CodeAlreadyExists, "ALREADY_EXISTS")
	third := must(acquire(c, "s-3"))(t)
	if third.GetAllowed() || third.GetRetryAfter().AsDuration() > time.Minute || third.GetRetryAfter().AsDuration() < 30*time.Second {
		t.Errorf("one too many: %v", third)
	}
	released := must(c.Release(t.Context(), &coordinationv1.ReleaseRequest{Api: "gemini", GrantId: "s-1"}))(t)
	again := must(c.Release(t.Context(), &coordinationv1.ReleaseRequest{Api: "gemini", GrantId: "s-1"}))(t)
	if !released.GetReleased() || again.GetReleased() || again.GetVersion() != released.GetVersion() {
		t.Errorf("released: %v, %v", released, again)
	}
	if got := must(acquire(c, "s-3"))(t); !got.GetAllowed() {
		t.Errorf("after a release: %v", got)
	}
}

func TestReportLimits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	limit := func() *coordinationv1.Standing {
		t.Helper()
		return must(c.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "linear"}))(t).GetApi().GetLimits()[0]
	}
	report := func(c client, status int32, headers map[string]string) *coordinationv1.ReportResponse {
		t.Helper()
		return must(c.Report(t.Context(), &coordinationv1.ReportRequest{
			Api: "linear", Report: &coordinationv1.ReportRequest_Response{Response: &coordinationv1.ProviderResponse{HttpStatus: status, Headers: headers}},
		}))(t)
	}
	must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "linear", Cost: 10}))(t)
	headers := map[string]string{"X-RateLimit-Requests-Limit": "2500", "X-RateLimit-Requests-Remaining": "1000", "X-RateLimit-Complexity-Reset": "soon"}
	got := report(c, 200, headers)
	if len(got.GetCorrected()) != 1 || limit().GetRemaining() > 1000 || len(got.GetIgnored()) != 1 || len(got.GetObserved()) != 1 {
		t.Errorf("reported: %v", got)
	}
	version := got.GetVersion()
	if got := report(c, 200, map[string]string{"X-RateLimit-Requests-Remaining": "2000"}); len(got.GetCorrected()) != 0 || got.GetVersion() != version {
		t.Errorf("looser: %v", got)
	}
	if got := report(b.client(t, ada), 200, map[string]string{"X-RateLimit-Requests-Limit": "5000"}); len(got.GetCorrected()) != 0 {
		t.Errorf("a higher limit, by a user: %v", got)
	}
	if got := report(c, 200, map[string]string{"X-RateLimit-Requests-Limit": "5000"}); limit().GetLimit() != 5000 {
		t.Errorf("a higher limit: %v", got)
	}
	if got := report(c, 429, map[string]string{"Retry-After": "20"}); got.GetRetryAfter().AsDuration() > 20*time.Second {
		t.Errorf("silence: %v", got)
	}
	paused := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "linear"}))(t)
	if paused.GetAllowed() || paused.GetWaitReason() != coordinationv1.WaitReason_WAIT_REASON_PAUSE {
		t.Errorf("while the provider wants silence: %v", paused)
	}
	if got := must(c.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "linear"}))(t); got.GetApi().GetPauseUntil() == nil {
		t.Errorf("state: %v", got)
	}
}

// Calls that need no ledger count for the breaker by what is reported of them.
func TestReportedCallsCountForTheBreaker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	configure1(t, c, "any", &storev1.ApiConfig{Breaker: &storev1.BreakerConfig{FailureThreshold: 2}})
	for i, status := range []int32{500, 200, 429, 0, 503} {
		got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any"}))(t)
		if !got.GetAllowed() {
			t.Fatalf("call %d: %v", i, got)
		}
		must(c.Report(t.Context(), &coordinationv1.ReportRequest{
			Api: "any", GrantId: got.GetGrantId(), Report: &coordinationv1.ReportRequest_Response{Response: &coordinationv1.ProviderResponse{HttpStatus: status}},
		}))(t)
		must(c.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: "any", Clear: []coordinationv1.Clear{coordinationv1.Clear_CLEAR_PAUSE}}))(t)
	}
	got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any"}))(t)
	if got.GetAllowed() || got.GetWaitReason() != coordinationv1.WaitReason_WAIT_REASON_BREAKER {
		t.Errorf("after two failures: %v", got)
	}
}

func TestReportSync(t *testing.T) {
	t.Parallel()
	b := setup(t)
	report := func(c client, s *coordinationv1.SyncState, reset bool) error {
		_, err := c.Report(t.Context(), &coordinationv1.ReportRequest{Api: "linear", Report: &coordinationv1.ReportRequest_Sync{
			Sync: &coordinationv1.SyncReport{Resource: "issues", State: s, Reset_: reset},
		}})
		return err
	}
	at := func(minute int) *timestamppb.Timestamp {
		return timestamppb.New(epoch.Add(time.Duration(minute) * time.Minute))
	}
	noted := func(s *coordinationv1.SyncState, reset bool) *coordinationv1.SyncState {
		t.Helper()
		if err := report(b.client(t, nobody), s, reset); err != nil {
			t.Fatal(err)
		}
		return must(b.client(t, ada).GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "linear"}))(t).GetApi().GetSync()["issues"]
	}
	noted(&coordinationv1.SyncState{HighWaterMark: at(10), PageCursor: "c", PassStartTime: at(9)}, false)
	got := noted(&coordinationv1.SyncState{LastWebhookTime: at(11), WebhookLag: durationpb.New(time.Second)}, false)
	if !got.GetHighWaterMark().AsTime().Equal(at(10).AsTime()) || got.GetPageCursor() != "" || got.GetWebhookLag().AsDuration() != time.Second {
		t.Errorf("a webhook: %v", got)
	}
	got = noted(&coordinationv1.SyncState{LastWebhookTime: at(5)}, false)
	if !got.GetLastWebhookTime().AsTime().Equal(at(11).AsTime()) || got.GetWebhookLag().AsDuration() != time.Second {
		t.Errorf("a webhook that was overtaken: %v", got)
	}
	refused(t, report(b.client(t, nobody), &coordinationv1.SyncState{HighWaterMark: at(9)}, false), connect.CodeFailedPrecondition, "ILLEGAL_TRANSITION")
	refused(t, report(b.client(t, ada), &coordinationv1.SyncState{HighWaterMark: at(12)}, false), connect.CodePermissionDenied, "ROLE_REQUIRED")
	got = noted(&coordinationv1.SyncState{HighWaterMark: at(0)}, true)
	if !got.GetHighWaterMark().AsTime().Equal(epoch) || got.GetLastWebhookTime() != nil {
		t.Errorf("started over: %v", got)
	}
}

func TestReportLive(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	report := func(c client, id string, epoch int32, s coordinationv1.LiveStatus, change ...func(*coordinationv1.LiveReport)) error {
		r := &coordinationv1.LiveReport{ProviderSessionId: id, Session: &coordinationv1.LiveSession{Epoch: epoch, Status: s}}
		for _, f := range change {
			f(r)
		}
		_, err := c.Report(t.Context(), &coordinationv1.ReportRequest{Api: "gemini", Report: &coordinationv1.ReportRequest_Live{Live: r}})
		return err
	}
	state := func(user identity.User) *coordinationv1.Api {
		t.Helper()
		return must(b.client(t, user).GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "gemini"}))(t).GetApi()
	}
	noted := func(id string, epoch int32, s coordinationv1.LiveStatus, change ...func(*coordinationv1.LiveReport)) *coordinationv1.Api {
		t.Helper()
		if err := report(c, id, epoch, s, change...); err != nil {
			t.Fatal(err)
		}
		return state(ada)
	}
	const (
		connecting = coordinationv1.LiveStatus_LIVE_STATUS_CONNECTING
		open       = coordinationv1.LiveStatus_LIVE_STATUS_OPEN
		going      = coordinationv1.LiveStatus_LIVE_STATUS_GOING_AWAY
		closed     = coordinationv1.LiveStatus_LIVE_STATUS_CLOSED
		broken     = coordinationv1.LiveStatus_LIVE_STATUS_FAILED
	)
	noted("s-1", 1, connecting)
	noted("s-1", 1, open)
	got := noted("s-1", 1, going, func(r *coordinationv1.LiveReport) { r.TimeLeft = durationpb.New(50 * time.Second) })
	if l := got.GetLive()["s-1"]; l.GetGoAwayTime().AsTime().Sub(l.GetUpdateTime().AsTime()) != 50*time.Second || got.GetLiveSessions() != 1 {
		t.Errorf("going away: %v", got)
	}
	noted("s-1", 2, open)
	refused(t, report(c, "s-1", 1, closed), connect.CodeFailedPrecondition, "FENCED")
	refused(t, report(b.client(t, eve), "s-1", 3, open), connect.CodeNotFound, "NOT_FOUND")
	refused(t, report(c, "s-1", 3, 0), connect.CodeInvalidArgument, "FIELD_INVALID")
	got = noted("s-2", 1, broken, func(r *coordinationv1.LiveReport) { r.Session.CloseCode, r.Session.Error = 1011, "backend" })
	if got.GetLiveSessions() != 1 || got.GetLive()["s-2"].GetCloseCode() != 1011 || got.GetLive()["s-1"].GetGoAwayTime() != nil {
		t.Errorf("state: %v", got)
	}
	if n := got.GetLiveCounts(); n.GetOpened() != 2 || n.GetGoAways() != 1 || n.GetFailed() != 1 || n.GetClosed() != 0 {
		t.Errorf("counts: %v", n)
	}
	if got := noted("s-1", 2, closed); got.GetLiveSessions() != 0 {
		t.Errorf("closed: %v", got)
	}
	if other := state(eve); len(other.GetLive()) != 0 || other.GetLiveCounts().GetFailed() != 1 || other.GetLiveCounts().GetLastError() != "" {
		t.Errorf("of another user: %v", other)
	}
}

func TestListCalls(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	for i := range 7 {
		got := must(c.BeginCall(t.Context(), &coordinationv1.BeginCallRequest{Api: "any", Operation: []string{"even", "odd"}[i%2], Key: fmt.Sprint(i)}))(t)
		if i%3 == 0 {
			must(c.FinishCall(t.Context(), &coordinationv1.FinishCallRequest{
				Api: "any", Key: fmt.Sprint(i), FencingToken: got.GetLease().GetFencingToken(), Result: completed(nil),
			}))(t)
		}
	}
	list := func(req *coordinationv1.ListCallsRequest) (keys string) {
		t.Helper()
		for req.Api = "any"; ; {
			page := must(c.ListCalls(t.Context(), req))(t)
			for _, r := range page.GetCalls() {
				keys += r.GetKey()
			}
			if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
				return keys
			}
		}
	}
	const (
		inFlight  = coordinationv1.CallStatus_CALL_STATUS_IN_FLIGHT
		completed = coordinationv1.CallStatus_CALL_STATUS_COMPLETED
		unknown   = coordinationv1.CallStatus_CALL_STATUS_UNKNOWN
	)
	for _, size := range []int32{0, 1, 2, 3} {
		for want, req := range map[string]*coordinationv1.ListCallsRequest{
			"6543210": {}, "630": {Statuses: []coordinationv1.CallStatus{completed}}, "531": {Operation: "odd"},
			"3": {Operation: "odd", Statuses: []coordinationv1.CallStatus{completed, unknown}}, "": {Statuses: []coordinationv1.CallStatus{unknown}},
			"5421": {Statuses: []coordinationv1.CallStatus{unknown, inFlight}},
		} {
			req.PageSize = size
			if got := list(req); got != want {
				t.Errorf("by %d: %s, want %s", size, got, want)
			}
		}
	}
	first := must(c.ListCalls(t.Context(), &coordinationv1.ListCallsRequest{Api: "any", PageSize: 1}))(t)
	_, err := c.ListCalls(t.Context(), &coordinationv1.ListCallsRequest{Api: "any", Operation: "odd", PageToken: first.GetNextPageToken()})
	refused(t, err, connect.CodeInvalidArgument, "PAGE_TOKEN_INVALID")
}

// What the clock changes is in no cache: it cannot be asked for by GET.
func TestStandingsAreNotCached(t *testing.T) {
	t.Parallel()
	b := setup(t)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	begin(t, b.client(t, ada), "r")
	for procedure, message := range map[string]string{
		coordinationv1connect.CoordinationServiceGetApiProcedure:    `{"api":"codegen"}`,
		coordinationv1connect.CoordinationServiceGetCallProcedure:   `{"api":"codegen","key":"r"}`,
		coordinationv1connect.CoordinationServiceListCallsProcedure: `{"api":"codegen"}`,
	} {
		q := url.Values{"connect": {"v1"}, "encoding": {"json"}, "message": {message}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.url+procedure+"?"+q.Encode(), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+handlertest.Key(t, b.Bundle, ada))
		res, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v %s", procedure, res.StatusCode, res.Header, text)
		}
	}
}

// aged changes an API as if some of it had happened long ago.
func (b *bundle) aged(ctx context.Context, t *testing.T, kind *object.Kind[state], change func(*object.Tx[state])) {
	t.Helper()
	ctx = identity.With(ctx, identity.Identity{Tenant: b.Tenant, Service: true})
	must(kind.Update(ctx, "codegen", func(tx *object.Tx[state]) error {
		change(tx)
		return nil
	}))(t)
}

func TestUsageHistory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rt := object.NewRuntime(b.DB, object.Config{})
	defer rt.Close(t.Context())
	kind := Register(rt)
	c := b.client(t, nobody)
	acquire := func() {
		t.Helper()
		must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "codegen", Operation: "get_run"}))(t)
	}
	acquire()
	acquire()
	yesterday := time.Now().UTC().AddDate(0, 0, -1)
	b.aged(t.Context(), t, kind, func(tx *object.Tx[state]) {
		tx.State().Today.Date, tx.State().Today.EndTime = yesterday.Format(time.DateOnly), timestamppb.New(yesterday)
		old := time.Now().UTC().AddDate(0, 0, -40).Format(time.DateOnly)
		tx.Put(inUsageDays, old, &storev1.UsageDay{Date: old, Permits: 7})
	})
	acquire()
	for days, want := range map[int32][]int64{0: nil, 1: {1}, 2: {1, 2}, 30: {1, 2}, 41: {1, 2, 7}, 366: {1, 2, 7}} {
		for size := range int32(4) {
			var got []int64
			req := &coordinationv1.GetApiRequest{Api: "codegen", UsageDays: days, PageSize: size}
			for more := true; more; more = req.GetPageToken() != "" {
				page := must(c.GetApi(t.Context(), req))(t)
				for _, d := range page.GetUsage() {
					got = append(got, d.GetPermits())
				}
				req.PageToken = page.GetNextPageToken()
			}
			if !slices.Equal(got, want) {
				t.Errorf("of %d days by %d: %v, want %v", days, size, got, want)
			}
		}
	}
}

// Requests older than the API keeps them are gone at once, and their rows soon.
func TestRetention(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rt := object.NewRuntime(b.DB, object.Config{})
	defer rt.Close(t.Context())
	kind := Register(rt)
	c := b.client(t, ada)
	const old = 20
	for i := range old {
		id := fmt.Sprint("old-", i)
		must(c.BeginCall(t.Context(), &coordinationv1.BeginCallRequest{Api: "codegen", Operation: "op", Key: id}))(t)
		must(c.FinishCall(t.Context(), &coordinationv1.FinishCallRequest{Api: "codegen", Key: id, FencingToken: 1, Result: completed(nil)}))(t)
	}
	b.aged(t.Context(), t, kind, func(tx *object.Tx[state]) {
		long := timestamppb.New(tx.Now().Add(-defaultRetention))
		for i := range int64(old) {
			key := object.SeqKey(i + 1)
			r := tx.Entry(inCalls, key).(row)
			tx.Put(inCalls, key, &storev1.Call{Key: r.GetKey(), Seq: r.GetSeq(), Owner: r.GetOwner(), Status: r.GetStatus(), CreateTime: long})
		}
		tx.State().FirstTime = long
	})
	_, err := c.GetCall(t.Context(), &coordinationv1.GetCallRequest{Api: "codegen", Key: "old-1"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	if got := must(c.ListCalls(t.Context(), &coordinationv1.ListCallsRequest{Api: "codegen"}))(t); len(got.GetCalls()) != 0 {
		t.Errorf("listed: %v", got)
	}
	// One of their ids is used again, which also sets the timer.
	if got := must(c.BeginCall(t.Context(), &coordinationv1.BeginCallRequest{Api: "codegen", Operation: "other", Key: "old-3"}))(t); got.GetDecision() != proceed {
		t.Errorf("begun anew: %v", got)
	}
	ctx, cancel := context.WithTimeout(identity.With(t.Context(), identity.Identity{Tenant: b.Tenant, Service: true}), 30*time.Second)
	defer cancel()
	for change, err := range kind.Watch(ctx, "codegen", 0, 0) {
		if err != nil {
			t.Fatalf("the rows are still there: %v", err)
		}
		if change.State.GetFirstSeq() == old+1 {
			break
		}
	}
	page := must(kind.Entries(ctx, "codegen", inCalls, object.EntriesOptions{}))(t)
	ids := must(kind.Entries(ctx, "codegen", inCallKeys, object.EntriesOptions{}))(t)
	if len(page.Entries) != 1 || len(ids.Entries) != 1 {
		t.Errorf("left: %v and %v", page.Entries, ids.Entries)
	}
	if got := must(c.GetCall(t.Context(), &coordinationv1.GetCallRequest{Api: "codegen", Key: "old-3"}))(t); got.GetCall().GetSeq() != old+1 {
		t.Errorf("the new one: %v", got)
	}
}

func TestInvalidRequests(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	ctx := t.Context()
	finish := func(req *coordinationv1.FinishCallRequest) error {
		req.Api, req.Key = "codegen", "r"
		_, err := c.FinishCall(ctx, req)
		return err
	}
	notSent := func(f *coordinationv1.CallFailure) { f.NotSent = true }
	for name, call := range map[string]func() error{
		"no api": func() error {
			_, err := c.GetApi(ctx, &coordinationv1.GetApiRequest{})
			return err
		},
		"a bad api": func() error {
			_, err := c.Acquire(ctx, &coordinationv1.AcquireRequest{Api: "a b"})
			return err
		},
		"no operation": func() error {
			_, err := c.BeginCall(ctx, &coordinationv1.BeginCallRequest{Api: "a", Key: "r"})
			return err
		},
		"no key": func() error {
			_, err := c.BeginCall(ctx, &coordinationv1.BeginCallRequest{Api: "a", Operation: "o"})
			return err
		},
		"a timeout of nothing": func() error {
			_, err := c.BeginCall(ctx, &coordinationv1.BeginCallRequest{Api: "a", Operation: "o", Key: "r", Timeout: durationpb.New(0)})
			return err
		},
		"an owner without reconcile": func() error {
			_, err := c.BeginCall(ctx, &coordinationv1.BeginCallRequest{Api: "a", Operation: "o", Key: "r", Owner: "ada"})
			return err
		},
		"no fencing token": func() error { return finish(&coordinationv1.FinishCallRequest{Result: completed(nil)}) },
		"no result":        func() error { return finish(&coordinationv1.FinishCallRequest{FencingToken: 1}) },
		"no failure":       func() error { return finish(&coordinationv1.FinishCallRequest{FencingToken: 1, Result: failed(0)}) },
		"not sent and yet terminal": func() error {
			return finish(&coordinationv1.FinishCallRequest{FencingToken: 1, Result: failed(coordinationv1.Failure_FAILURE_TERMINAL, notSent)})
		},
		"not sent and yet it did cost": func() error {
			return finish(&coordinationv1.FinishCallRequest{FencingToken: 1, Cost: proto.Int64(1), Result: failed(coordinationv1.Failure_FAILURE_RETRYABLE, notSent)})
		},
		"an outcome that is too large": func() error {
			return finish(&coordinationv1.FinishCallRequest{FencingToken: 1, Result: completed(&coordinationv1.Outcome{Body: make([]byte, 64<<10+1)})})
		},
		"nothing to release": func() error {
			_, err := c.Release(ctx, &coordinationv1.ReleaseRequest{Api: "a"})
			return err
		},
		"nothing to report": func() error {
			_, err := c.Report(ctx, &coordinationv1.ReportRequest{Api: "a"})
			return err
		},
		"a path that is not there": func() error {
			_, err := c.UpdateApi(ctx, &coordinationv1.UpdateApiRequest{Api: "a", UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"breaker.color"}}})
			return err
		},
	} {
		refused(t, call(), connect.CodeInvalidArgument, "FIELD_INVALID")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	refused(t, finish(&coordinationv1.FinishCallRequest{FencingToken: 1, Result: completed(nil)}), connect.CodeNotFound, "NOT_FOUND")
}
