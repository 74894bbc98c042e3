package coordination

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/identity"
)

func answered(status int32, headers map[string]string, body string) *coordinationv1.ReportRequest_Response {
	return &coordinationv1.ReportRequest_Response{Response: &coordinationv1.ProviderResponse{HttpStatus: status, Headers: headers, Body: []byte(body)}}
}

// A refusal of one caller makes all wait, in every process, whatever the provider says.
func TestARefusalMakesEverybodyWait(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, elsewhere := b.client(t, nobody), serve(t, b.Bundle).client(t, nobody)
	day := 24 * time.Hour
	for name, tt := range map[string]struct {
		response    *coordinationv1.ReportRequest_Response
		least, most time.Duration
		ignored     []string
	}{
		"nothing said":   {answered(429, nil, ""), 0, time.Second, nil},
		"doubled":        {answered(429, map[string]string{"Retry-After": "30, 30"}, ""), 29 * time.Second, 30 * time.Second, nil},
		"40 days":        {answered(429, map[string]string{"Retry-After": "3456000"}, ""), 31 * day, 32 * day, nil},
		"unread":         {answered(429, map[string]string{"Retry-After": "in a while"}, ""), 0, time.Second, []string{"Retry-After"}},
		"milliseconds":   {answered(429, map[string]string{"x-ms-retry-after-ms": "45000"}, ""), 44 * time.Second, 45 * time.Second, nil},
		"a reset alone":  {answered(429, map[string]string{"X-RateLimit-Reset": "90"}, ""), 89 * time.Second, 90 * time.Second, nil},
		"a day's quota":  {answered(429, nil, `{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"RATE_LIMIT_EXCEEDED","metadata":{"quota_limit":"RequestsPerDay"}}]}}`), 0, time.Second, nil},
		"a message":      {answered(429, nil, `{"error":{"message":"Please retry in 38.2s"}}`), 37 * time.Second, 39 * time.Second, nil},
		"GraphQL by 200": {answered(200, nil, `{"errors":[{"extensions":{"code":"RATELIMITED","retryAfter":"oops"}}]}`), 0, time.Second, []string{"body.errors[0].extensions.retryAfter"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := strings.NewReplacer(" ", "-", "'", "").Replace(name)
			got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: api}))(t)
			res := must(c.Report(t.Context(), &coordinationv1.ReportRequest{Api: api, GrantId: got.GetGrantId(), Report: tt.response}))(t)
			if !slices.Equal(res.GetIgnored(), tt.ignored) || res.GetRetryAfter().AsDuration() <= 0 {
				t.Errorf("reported: %v", res)
			}
			for _, c := range []client{c, elsewhere} {
				got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: api, Peek: true}))(t)
				after := got.GetRetryAfter().AsDuration()
				if until := must(c.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: api}))(t).GetApi().GetPauseUntil(); until == nil && tt.least > 0 {
					t.Errorf("no pause; acquired: %v", got)
				}
				if tt.least > 0 && (got.GetAllowed() || after < tt.least) || after > tt.most {
					t.Errorf("acquired: %v, want after %v to %v", got, tt.least, tt.most)
				}
			}
		})
	}
}

// A call that failed and may be sent again is not sent again at once, and what the failure keeps of the answer is read.
func TestARetryableFailureBacksOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	token := begin(t, c, "r").GetLease().GetFencingToken()
	must(c.FinishCall(t.Context(), &coordinationv1.FinishCallRequest{Api: "codegen", Key: "r", FencingToken: token, Result: failed(coordinationv1.Failure_FAILURE_RETRYABLE,
		func(f *coordinationv1.CallFailure) {
			f.Outcome = &coordinationv1.Outcome{HttpStatus: 429, Headers: map[string]string{"Retry-After": "60"}}
		})}))(t)
	if got := begin(t, c, "r"); got.GetDecision() != wait || got.GetRetryAfter().AsDuration() < 59*time.Second {
		t.Errorf("again: %v", got)
	}
	if got := begin(t, b.client(t, eve), "other"); got.GetDecision() != wait || got.GetWaitReason() != coordinationv1.WaitReason_WAIT_REASON_PAUSE {
		t.Errorf("another user's: %v", got)
	}
}

// A report that comes late makes nobody wait for what is over.
func TestALateReportMakesNobodyWait(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	late := answered(429, map[string]string{"Retry-After": "30"}, "")
	late.Response.Age = durationpb.New(time.Minute)
	if got := must(c.Report(t.Context(), &coordinationv1.ReportRequest{Api: "any", Report: late}))(t); got.GetRetryAfter().AsDuration() != 0 {
		t.Errorf("reported: %v", got)
	}
	if got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any"}))(t); !got.GetAllowed() {
		t.Errorf("acquired: %v", got)
	}
}

func TestADryRunChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	configure1(t, c, "any", &storev1.ApiConfig{Policies: []policy{gcra(10, time.Hour, 0)}})
	must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any"}))(t)
	before := must(c.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "any"}))(t).GetApi()
	wider := as[*coordinationv1.ApiConfig](&storev1.ApiConfig{Policies: []policy{gcra(1000, time.Hour, 0)}})
	would := must(c.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: "any", Config: wider, DryRun: true}))(t).GetApi()
	after := must(c.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "any"}))(t).GetApi()
	if would.GetLimits()[0].GetRemaining() != 999 || after.GetVersion() != before.GetVersion() || after.GetConfig().GetPolicies()[0].GetLimit() != 10 {
		t.Errorf("it would be %v, and is %v", would, after)
	}
	wider.Policies[0].Burst = 5000
	_, err := c.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: "any", Config: wider, DryRun: true})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	got := must(c.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: "new", Config: as[*coordinationv1.ApiConfig](&storev1.ApiConfig{}), DryRun: true}))(t)
	if _, err := c.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "new"}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a new API was made by a dry run that said %v: %v", got, err)
	}
}

// What a user took of their own limits is converted, too, however long ago the policy was changed.
func TestUsersKeepWhatTheyTook(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	for _, limit := range []int64{10, 100, 1000} {
		p := gcra(limit, time.Hour, 0)
		p.Scope = storev1.Scope_SCOPE_USER
		configure1(t, c, "codegen", &storev1.ApiConfig{Policies: []policy{p}})
		if limit == 10 {
			must(b.client(t, ada).Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "codegen"}))(t)
		}
	}
	got := must(b.client(t, ada).GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "codegen"}))(t).GetApi().GetLimits()[0]
	then := must(b.client(t, ada).Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "codegen"}))(t).GetLimits()[0]
	if got.GetRemaining() != 999 || then.GetRemaining() != 998 {
		t.Errorf("remaining: %v, then %v", got, then)
	}
}

// The day's counts tell users apart, for services; a user sees their own.
func TestUsageByUserStatusAndLatency(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, user := range []identity.User{ada, eve, ada} {
		c := b.client(t, user)
		got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "codegen", Cost: 5}))(t)
		must(c.Report(t.Context(), &coordinationv1.ReportRequest{Api: "codegen", GrantId: got.GetGrantId(), Report: answered(200, nil, "")}))(t)
	}
	c := b.client(t, ada)
	token := begin(t, c, "r").GetLease().GetFencingToken() // with it the reports that changed nothing are stored
	must(c.FinishCall(t.Context(), &coordinationv1.FinishCallRequest{Api: "codegen", Key: "r", FencingToken: token, Result: completed(&coordinationv1.Outcome{HttpStatus: 201})}))(t)
	must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "codegen"}))(t)
	for user, want := range map[identity.User]map[string]int64{nobody: {"ada": 4, "eve": 1}, ada: {"ada": 4}, eve: {"eve": 1}} {
		day := must(b.client(t, user).GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "codegen"}))(t).GetApi().GetToday()
		got := map[string]int64{}
		for _, u := range day.GetUsers() {
			got[u.GetUser()] = u.GetPermits()
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q sees %v, want %v", user, got, want)
		}
		var latencies int64
		for _, n := range day.GetLatencies() {
			latencies += n
		}
		if day.GetStatuses()[200] != 3 || day.GetStatuses()[201] != 1 || latencies != 4 {
			t.Errorf("the day: %v", day)
		}
	}
}

// A line gives the users in it their turns one after the other, however many calls each has.
func TestUsersOfALineTakeTurns(t *testing.T) {
	t.Parallel()
	var l lines
	key := lineKey{"t", "api", "op"}
	var all []*waiter
	for i, user := range []identity.User{"ada", "ada", "ada", "eve", "eve", "bob"} {
		w, ahead, err := l.join(key, user)
		if want := []int{0, 1, 2, 1, 3, 2}[i]; err != nil || ahead != want {
			t.Errorf("%d: %d ahead, %v; want %d", i, ahead, err, want)
		}
		all = append(all, w)
	}
	var turns []int
	for range all {
		i := slices.IndexFunc(all, func(w *waiter) bool {
			if w == nil {
				return false
			}
			select {
			case <-w.turn:
				return true
			default:
				return false
			}
		})
		if i < 0 {
			t.Fatal("nobody has the turn")
		}
		l.leave(all[i])
		all[i] = nil
		turns = append(turns, i)
	}
	if want := []int{0, 3, 5, 1, 4, 2}; !slices.Equal(turns, want) || len(l.all) != 0 {
		t.Errorf("the turns: %v, want %v", turns, want)
	}
}

func TestAcquireAndWait(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	configure1(t, c, "codegen", &storev1.ApiConfig{Policies: []policy{{Name: "slots", Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 1, Lease: durationpb.New(time.Hour)}}})
	waits := func(user identity.User, longest time.Duration) (last *coordinationv1.AcquireAndWaitResponse, err error) {
		stream, err := b.client(t, user).AcquireAndWait(t.Context(), &coordinationv1.AcquireAndWaitRequest{
			Acquire: &coordinationv1.AcquireRequest{Api: "codegen", Operation: "run"}, MaxWait: durationpb.New(longest),
		})
		if err != nil {
			return nil, err
		}
		defer stream.Close()
		for stream.Receive() {
			last = stream.Msg()
		}
		return last, stream.Err()
	}
	first, err := waits(ada, time.Minute)
	if err != nil || !first.GetAcquired().GetAllowed() {
		t.Fatalf("when it is free: %v, %v", first, err)
	}
	if got, err := waits(eve, 50*time.Millisecond); err != nil || got.GetAcquired() == nil || got.GetAcquired().GetAllowed() {
		t.Errorf("for too short a time: %v, %v", got, err)
	}
	granted := make(chan string, 2)
	for range 2 {
		go func() {
			got, err := waits(eve, time.Minute)
			if err != nil {
				t.Error(err)
			}
			granted <- got.GetAcquired().GetGrantId()
		}()
	}
	must(b.client(t, ada).Release(t.Context(), &coordinationv1.ReleaseRequest{Api: "codegen", GrantId: first.GetAcquired().GetGrantId()}))(t)
	second := <-granted
	must(b.client(t, eve).Release(t.Context(), &coordinationv1.ReleaseRequest{Api: "codegen", GrantId: second}))(t)
	if third := <-granted; second == "" || third == "" || second == third {
		t.Errorf("granted %q, then %q", second, third)
	}
	_, err = waits("", time.Second)
	if err != nil {
		t.Error(err)
	}
	stream, err := b.client(t, ada).AcquireAndWait(t.Context(), &coordinationv1.AcquireAndWaitRequest{Acquire: &coordinationv1.AcquireRequest{Api: "unheard-of"}})
	if err == nil {
		stream.Receive()
		err = stream.Err()
		stream.Close()
	}
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
}
