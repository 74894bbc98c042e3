package coordination

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/handlertest"
	"holdfast/identity"
	"holdfast/object"
)

func TestConfigureApi(t *testing.T) {
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
		_, err := c.ConfigureApi(t.Context(), &coordinationv1.ConfigureApiRequest{Api: "any", Config: config})
		refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	req := &coordinationv1.ConfigureApiRequest{Api: "any", Config: &storev1.ApiConfig{Policies: []policy{sliding(5, time.Minute)}}, RequestId: "1"}
	for range 2 {
		if got := must(c.ConfigureApi(t.Context(), req))(t); got.GetMetadata().GetVersion() != 1 {
			t.Errorf("configured: %v", got)
		}
	}
	_, err := c.ConfigureApi(t.Context(), &coordinationv1.ConfigureApiRequest{Api: "any", RequestId: "1"})
	refused(t, err, connect.CodeAlreadyExists, "REQUEST_ID_REUSED")
	_, err = c.ConfigureApi(t.Context(), &coordinationv1.ConfigureApiRequest{Api: "any", IfVersion: 7})
	refused(t, err, connect.CodeAborted, "VERSION_MISMATCH")
	_, err = b.client(t, ada).ConfigureApi(t.Context(), &coordinationv1.ConfigureApiRequest{Api: "any"})
	refused(t, err, connect.CodePermissionDenied, "ROLE_REQUIRED")

	// A policy that keeps its name and algorithm keeps what was taken; another begins anew.
	must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", Permits: 3}))(t)
	remaining := func(config *storev1.ApiConfig) int64 {
		t.Helper()
		return must(c.ConfigureApi(t.Context(), &coordinationv1.ConfigureApiRequest{Api: "any", Config: config}))(t).GetState().GetLimits()[0].GetRemaining()
	}
	if got := remaining(&storev1.ApiConfig{Policies: []policy{sliding(8, time.Minute)}}); got != 5 {
		t.Errorf("with a higher limit %d remain", got)
	}
	if got := remaining(&storev1.ApiConfig{Policies: []policy{gcra(8, time.Minute, 0)}}); got != 8 {
		t.Errorf("with another algorithm %d remain", got)
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
		before := must(c.GetApiState(t.Context(), &coordinationv1.GetApiStateRequest{Api: api}))(t)
		if !before.GetState().GetReadyMade() || len(before.GetState().GetLimits()) == 0 || before.GetMetadata() != nil {
			t.Errorf("%s, before it was used: %v", api, before)
		}
		if got := must(c.ListRequests(t.Context(), &coordinationv1.ListRequestsRequest{Api: api}))(t); len(got.GetRequests()) != 0 {
			t.Errorf("%s: %v", api, got)
		}
		if got := must(c.GetUsage(t.Context(), &coordinationv1.GetUsageRequest{Api: api}))(t); len(got.GetDays()) != 0 {
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
		return c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "gemini", Operation: "live", LeaseId: id})
	}
	first := must(acquire(c, "s-1"))(t)
	if !first.GetAllowed() || first.GetLeaseId() != "s-1" || first.GetLeaseExpireTime() == nil {
		t.Fatalf("the first: %v", first)
	}
	renewed := must(acquire(c, "s-1"))(t)
	if !renewed.GetAllowed() || renewed.GetLimits()[1].GetRemaining() != 2 || !renewed.GetLeaseExpireTime().AsTime().After(first.GetLeaseExpireTime().AsTime()) {
		t.Errorf("renewed: %v", renewed)
	}
	if made := must(acquire(c, ""))(t); made.GetLeaseId() == "" || made.GetLimits()[0].GetRemaining() != 0 {
		t.Errorf("with an id of the server's: %v", made)
	}
	_, err := acquire(b.client(t, eve), "s-1")
	refused(t, err, connect.CodeAlreadyExists, "ALREADY_EXISTS")
	third := must(acquire(c, "s-3"))(t)
	if third.GetAllowed() || third.GetRetryAfter().AsDuration() > time.Minute || third.GetRetryAfter().AsDuration() < 30*time.Second {
		t.Errorf("one too many: %v", third)
	}
	released := must(c.ReleaseLease(t.Context(), &coordinationv1.ReleaseLeaseRequest{Api: "gemini", LeaseId: "s-1"}))(t)
	again := must(c.ReleaseLease(t.Context(), &coordinationv1.ReleaseLeaseRequest{Api: "gemini", LeaseId: "s-1"}))(t)
	if !released.GetReleased() || again.GetReleased() || again.GetMetadata().GetVersion() != released.GetMetadata().GetVersion() {
		t.Errorf("released: %v, %v", released, again)
	}
	if got := must(acquire(c, "s-3"))(t); !got.GetAllowed() {
		t.Errorf("after a release: %v", got)
	}
}

func TestRefund(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	configure1(t, c, "any", &storev1.ApiConfig{Policies: []policy{sliding(2, time.Hour)}})
	got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", Permits: 2}))(t)
	req := &coordinationv1.RefundRequest{Api: "any", Permits: 1, GrantTime: got.GetGrantTime(), RequestId: "1"}
	for range 2 {
		if back := must(c.Refund(t.Context(), req))(t); back.GetLimits()[0].GetRemaining() != 1 {
			t.Errorf("refunded: %v", back)
		}
	}
	elsewhen := &coordinationv1.RefundRequest{Api: "any", Permits: 1, GrantTime: timestamppb.New(got.GetGrantTime().AsTime().Add(time.Second))}
	if back := must(c.Refund(t.Context(), elsewhen))(t); back.GetLimits()[0].GetRemaining() != 1 {
		t.Errorf("what was never taken: %v", back)
	}
	_, err := c.Refund(t.Context(), &coordinationv1.RefundRequest{Api: "any", Permits: 1})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
}

func TestReportLimits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	report := func(c client, status int32, headers map[string]string) *coordinationv1.ReportLimitsResponse {
		t.Helper()
		return must(c.ReportLimits(t.Context(), &coordinationv1.ReportLimitsRequest{Api: "linear", Response: &coordinationv1.ProviderResponse{HttpStatus: status, Headers: headers}}))(t)
	}
	must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "linear", Cost: 10}))(t)
	headers := map[string]string{"X-RateLimit-Requests-Limit": "2500", "X-RateLimit-Requests-Remaining": "1000", "X-RateLimit-Complexity-Reset": "soon"}
	got := report(c, 200, headers)
	if len(got.GetCorrected()) != 1 || got.GetLimits()[0].GetRemaining() != 1000 || len(got.GetIgnored()) != 1 || len(got.GetObserved()) != 1 {
		t.Errorf("reported: %v", got)
	}
	version := got.GetMetadata().GetVersion()
	if got := report(c, 200, map[string]string{"X-RateLimit-Requests-Remaining": "2000"}); len(got.GetCorrected()) != 0 || got.GetMetadata().GetVersion() != version {
		t.Errorf("looser: %v", got)
	}
	if got := report(b.client(t, ada), 200, map[string]string{"X-RateLimit-Requests-Limit": "5000"}); len(got.GetCorrected()) != 0 {
		t.Errorf("a higher limit, by a user: %v", got)
	}
	if got := report(c, 200, map[string]string{"X-RateLimit-Requests-Limit": "5000"}); got.GetLimits()[0].GetLimit() != 5000 {
		t.Errorf("a higher limit: %v", got)
	}
	if got := report(c, 429, map[string]string{"Retry-After": "20"}); got.GetRetryAfter().AsDuration() > 20*time.Second {
		t.Errorf("silence: %v", got)
	}
	paused := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "linear"}))(t)
	if paused.GetAllowed() || paused.GetReason() != coordinationv1.WaitReason_WAIT_REASON_PAUSE {
		t.Errorf("while the provider wants silence: %v", paused)
	}
	if got := must(c.GetApiState(t.Context(), &coordinationv1.GetApiStateRequest{Api: "linear"}))(t); got.GetState().GetPauseUntil() == nil {
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
		must(c.ReportLimits(t.Context(), &coordinationv1.ReportLimitsRequest{
			Api: "any", Response: &coordinationv1.ProviderResponse{HttpStatus: status}, Count: true, BreakerGeneration: got.GetBreakerGeneration(),
		}))(t)
	}
	got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any"}))(t)
	if got.GetAllowed() || got.GetReason() != coordinationv1.WaitReason_WAIT_REASON_BREAKER {
		t.Errorf("after two failures: %v", got)
	}
}

func TestReportSync(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	report := func(s *storev1.SyncState, reset bool) (*coordinationv1.ReportSyncResponse, error) {
		return c.ReportSync(t.Context(), &coordinationv1.ReportSyncRequest{Api: "linear", Resource: "issues", Sync: s, Reset_: reset})
	}
	at := func(minute int) *timestamppb.Timestamp {
		return timestamppb.New(epoch.Add(time.Duration(minute) * time.Minute))
	}
	must(report(&storev1.SyncState{HighWaterMark: at(10), PageCursor: "c", PassStartTime: at(9)}, false))(t)
	got := must(report(&storev1.SyncState{LastWebhookTime: at(11), WebhookLag: durationpb.New(time.Second)}, false))(t).GetSync()
	if !got.GetHighWaterMark().AsTime().Equal(at(10).AsTime()) || got.GetPageCursor() != "" || got.GetWebhookLag().AsDuration() != time.Second {
		t.Errorf("a webhook: %v", got)
	}
	got = must(report(&storev1.SyncState{LastWebhookTime: at(5)}, false))(t).GetSync()
	if !got.GetLastWebhookTime().AsTime().Equal(at(11).AsTime()) || got.GetWebhookLag().AsDuration() != time.Second {
		t.Errorf("a webhook that was overtaken: %v", got)
	}
	_, err := report(&storev1.SyncState{HighWaterMark: at(9)}, false)
	refused(t, err, connect.CodeFailedPrecondition, "ILLEGAL_TRANSITION")
	got = must(report(&storev1.SyncState{HighWaterMark: at(0)}, true))(t).GetSync()
	if !got.GetHighWaterMark().AsTime().Equal(epoch) || got.GetLastWebhookTime() != nil {
		t.Errorf("started over: %v", got)
	}
	state := must(b.client(t, ada).GetApiState(t.Context(), &coordinationv1.GetApiStateRequest{Api: "linear"}))(t).GetState()
	if state.GetSync()["issues"] == nil {
		t.Errorf("state: %v", state)
	}
}

func TestReportLive(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	report := func(id string, epoch int64, s storev1.LiveStatus, change ...func(*coordinationv1.ReportLiveRequest)) (*coordinationv1.ReportLiveResponse, error) {
		req := &coordinationv1.ReportLiveRequest{Api: "gemini", SessionId: id, Epoch: epoch, Status: s}
		for _, f := range change {
			f(req)
		}
		return c.ReportLive(t.Context(), req)
	}
	const (
		connecting = storev1.LiveStatus_LIVE_STATUS_CONNECTING
		open       = storev1.LiveStatus_LIVE_STATUS_OPEN
		going      = storev1.LiveStatus_LIVE_STATUS_GOING_AWAY
		closed     = storev1.LiveStatus_LIVE_STATUS_CLOSED
		failed     = storev1.LiveStatus_LIVE_STATUS_FAILED
	)
	must(report("s-1", 1, connecting))(t)
	must(report("s-1", 1, open))(t)
	got := must(report("s-1", 1, going, func(r *coordinationv1.ReportLiveRequest) { r.TimeLeft = durationpb.New(50 * time.Second) }))(t)
	if left := got.GetSession().GetGoAwayTime().AsTime().Sub(got.GetSession().GetUpdateTime().AsTime()); left != 50*time.Second || got.GetLiveSessions() != 1 {
		t.Errorf("going away: %v", got)
	}
	must(report("s-1", 2, open))(t)
	_, err := report("s-1", 1, closed)
	refused(t, err, connect.CodeFailedPrecondition, "FENCED")
	must(report("s-2", 1, failed, func(r *coordinationv1.ReportLiveRequest) { r.CloseCode, r.Error = 1011, "backend" }))(t)
	state := must(c.GetApiState(t.Context(), &coordinationv1.GetApiStateRequest{Api: "gemini"}))(t).GetState()
	if state.GetLiveSessions() != 1 || state.GetLive()["s-2"].GetCloseCode() != 1011 || state.GetLive()["s-1"].GetGoAwayTime() != nil {
		t.Errorf("state: %v", state)
	}
	if n := state.GetLiveCounts(); n.GetOpened() != 2 || n.GetGoAways() != 1 || n.GetFailed() != 1 || n.GetClosed() != 0 {
		t.Errorf("counts: %v", n)
	}
	if got := must(report("s-1", 2, closed))(t); got.GetLiveSessions() != 0 {
		t.Errorf("closed: %v", got)
	}
	other := must(b.client(t, eve).GetApiState(t.Context(), &coordinationv1.GetApiStateRequest{Api: "gemini"}))(t).GetState()
	if len(other.GetLive()) != 0 || other.GetLiveCounts().GetFailed() != 1 {
		t.Errorf("of another user: %v", other)
	}
}

func TestListRequests(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	for i := range 7 {
		got := must(c.BeginRequest(t.Context(), &coordinationv1.BeginRequestRequest{Api: "any", Operation: []string{"even", "odd"}[i%2], RequestId: fmt.Sprint(i)}))(t)
		if i%3 == 0 {
			must(c.CompleteRequest(t.Context(), &coordinationv1.CompleteRequestRequest{Api: "any", RequestId: fmt.Sprint(i), Lease: got.GetLease()}))(t)
		}
	}
	list := func(req *coordinationv1.ListRequestsRequest) (ids string) {
		t.Helper()
		for req.Api = "any"; ; {
			page := must(c.ListRequests(t.Context(), req))(t)
			for _, r := range page.GetRequests() {
				ids += r.GetRequestId()
			}
			if req.BeforeSeq = page.GetNextBeforeSeq(); req.GetBeforeSeq() == 0 {
				return ids
			}
		}
	}
	for _, size := range []int32{0, 1, 2, 3} {
		for want, req := range map[string]*coordinationv1.ListRequestsRequest{
			"6543210": {}, "630": {Status: storev1.RequestStatus_REQUEST_STATUS_COMPLETED}, "531": {Operation: "odd"},
			"3": {Operation: "odd", Status: storev1.RequestStatus_REQUEST_STATUS_COMPLETED}, "": {Status: storev1.RequestStatus_REQUEST_STATUS_UNKNOWN},
		} {
			req.PageSize = size
			if got := list(req); got != want {
				t.Errorf("by %d: %s, want %s", size, got, want)
			}
		}
	}
}

// What the clock changes is in no cache: it cannot be asked for by GET.
func TestStandingsAreNotCached(t *testing.T) {
	t.Parallel()
	b := setup(t)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	begin(t, b.client(t, ada), "r")
	for procedure, message := range map[string]string{
		coordinationv1connect.CoordinationServiceGetApiStateProcedure:  `{"api":"codegen"}`,
		coordinationv1connect.CoordinationServiceGetRequestProcedure:   `{"api":"codegen","requestId":"r"}`,
		coordinationv1connect.CoordinationServiceListRequestsProcedure: `{"api":"codegen"}`,
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
	for days, want := range map[int32]int{0: 2, 1: 1, 2: 2, 30: 2, 41: 3, 366: 3} {
		got := must(c.GetUsage(t.Context(), &coordinationv1.GetUsageRequest{Api: "codegen", Days: days}))(t).GetDays()
		if len(got) != want || got[len(got)-1].GetPermits() != 1 || want > 1 && got[len(got)-2].GetPermits() != 2 {
			t.Errorf("of %d days: %v", days, got)
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
	leases := map[string]string{}
	for i := range old {
		id := fmt.Sprint("old-", i)
		leases[id] = must(c.BeginRequest(t.Context(), &coordinationv1.BeginRequestRequest{Api: "codegen", Operation: "op", RequestId: id}))(t).GetLease()
		must(c.CompleteRequest(t.Context(), &coordinationv1.CompleteRequestRequest{Api: "codegen", RequestId: id, Lease: leases[id]}))(t)
	}
	b.aged(t.Context(), t, kind, func(tx *object.Tx[state]) {
		long := timestamppb.New(tx.Now().Add(-defaultRetention))
		for i := range int64(old) {
			key := object.SeqKey(i + 1)
			r := tx.Entry(inRequests, key).(row)
			tx.Put(inRequests, key, &storev1.ApiRequest{RequestId: r.GetRequestId(), Seq: r.GetSeq(), Owner: r.GetOwner(), Status: r.GetStatus(), CreateTime: long})
		}
		tx.State().FirstTime = long
	})
	_, err := c.GetRequest(t.Context(), &coordinationv1.GetRequestRequest{Api: "codegen", RequestId: "old-1"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	if got := must(c.ListRequests(t.Context(), &coordinationv1.ListRequestsRequest{Api: "codegen"}))(t); len(got.GetRequests()) != 0 {
		t.Errorf("listed: %v", got)
	}
	// One of their ids is used again, which also sets the timer.
	if got := must(c.BeginRequest(t.Context(), &coordinationv1.BeginRequestRequest{Api: "codegen", Operation: "other", RequestId: "old-3"}))(t); got.GetDecision() != proceed {
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
	page := must(kind.Entries(ctx, "codegen", inRequests, object.EntriesOptions{}))(t)
	ids := must(kind.Entries(ctx, "codegen", inRequestIDs, object.EntriesOptions{}))(t)
	if len(page.Entries) != 1 || len(ids.Entries) != 1 {
		t.Errorf("left: %v and %v", page.Entries, ids.Entries)
	}
	if got := must(c.GetRequest(t.Context(), &coordinationv1.GetRequestRequest{Api: "codegen", RequestId: "old-3"}))(t); got.GetRequest().GetSeq() != old+1 {
		t.Errorf("the new one: %v", got)
	}
}

func TestInvalidRequests(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"no api": func() error {
			_, err := c.GetApiState(ctx, &coordinationv1.GetApiStateRequest{})
			return err
		},
		"a bad api": func() error {
			_, err := c.Acquire(ctx, &coordinationv1.AcquireRequest{Api: "a b"})
			return err
		},
		"no operation": func() error {
			_, err := c.BeginRequest(ctx, &coordinationv1.BeginRequestRequest{Api: "a", RequestId: "r"})
			return err
		},
		"no request id": func() error {
			_, err := c.BeginRequest(ctx, &coordinationv1.BeginRequestRequest{Api: "a", Operation: "o"})
			return err
		},
		"a timeout of nothing": func() error {
			_, err := c.BeginRequest(ctx, &coordinationv1.BeginRequestRequest{Api: "a", Operation: "o", RequestId: "r", Timeout: durationpb.New(0)})
			return err
		},
		"a lease that is none": func() error {
			_, err := c.CompleteRequest(ctx, &coordinationv1.CompleteRequestRequest{Api: "a", RequestId: "r", Lease: "x"})
			return err
		},
		"a user without reconcile": func() error {
			_, err := c.BeginRequest(ctx, &coordinationv1.BeginRequestRequest{Api: "a", Operation: "o", RequestId: "r", User: "ada"})
			return err
		},
		"not sent and yet terminal": func() error {
			_, err := c.FailRequest(ctx, &coordinationv1.FailRequestRequest{Api: "a", RequestId: "r", Lease: "1.1", Failure: coordinationv1.Failure_FAILURE_TERMINAL, NotSent: true})
			return err
		},
		"an outcome that is too large": func() error {
			_, err := c.CompleteRequest(ctx, &coordinationv1.CompleteRequestRequest{Api: "a", RequestId: "r", Lease: "1.1", Outcome: &storev1.Outcome{Body: make([]byte, 64<<10+1)}})
			return err
		},
	} {
		refused(t, call(), connect.CodeInvalidArgument, "FIELD_INVALID")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	_, err := c.CompleteRequest(ctx, &coordinationv1.CompleteRequestRequest{Api: "codegen", RequestId: "r", Lease: "999999999999999999.1"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
}
