package coordination

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/coordination/dialect"
)

// Whatever a provider sends is read, and correcting by it never loosens a limit for who may not.
func FuzzObserve(f *testing.F) {
	f.Add(int32(429), "RateLimit", `"default";r=50;t=30`, `{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"27s"}]}}`)
	f.Add(int32(400), "X-RateLimit-Requests-Reset", "1795431600000", `{"errors":[{"extensions":{"code":"RATELIMITED"}}]}`)
	f.Add(int32(200), "X-RateLimit-Remaining", "0", "")
	f.Add(int32(200), "RateLimit-Policy", `"a";q=1000;w=60`, "[]")
	f.Fuzz(func(t *testing.T, status int32, name, value, body string) {
		o := observe(&coordinationv1.ProviderResponse{HttpStatus: status, Headers: map[string]string{name: value, "X-RateLimit-Limit": "3"}, Body: []byte(body)}, time.Time{}, epoch)
		if o.RetryAt.After(epoch.Add(dialect.MaxWait)) || len(o.Budgets) > 64 {
			t.Fatalf("%+v", o)
		}
		for _, p := range []policy{sliding(5, time.Minute), gcra(5, time.Minute, 0), calendar(5, storev1.Calendar_CALENDAR_DAY, "")} {
			p.Dimension = "requests"
			s := bucketStore{state: &storev1.ApiState{}}
			b := s.bucket(p, epoch)
			take(p, b, 2, epoch)
			correct(s, &storev1.ApiConfig{Policies: []policy{p}}, &demand{}, o, false, time.Time{}, epoch)
			if got := standing(p, b, epoch); got.GetRemaining() > 3 || got.GetLimit() > 5 || got.GetRemaining() < 0 {
				t.Fatalf("%v by %+v", got, o)
			}
		}
	})
}

func TestCorrections(t *testing.T) {
	t.Parallel()
	dimension := func(p policy, d string) policy {
		p.Dimension = d
		return p
	}
	tests := []struct {
		name     string
		policy   policy
		taken    int64
		status   int32
		headers  map[string]string
		body     string
		mayRaise bool
		// limit and remaining are those after it; opens is when one unit passes.
		limit, remaining int64
		opens            time.Duration
		changes          bool
	}{
		{name: "nothing said", policy: sliding(10, time.Minute), taken: 3, limit: 10, remaining: 7},
		{name: "the same", policy: sliding(10, time.Minute), taken: 3, headers: map[string]string{"X-RateLimit-Remaining": "7", "X-RateLimit-Limit": "10"}, limit: 10, remaining: 7},
		{name: "more remains: others have not yet arrived", policy: sliding(10, time.Minute), taken: 3, headers: map[string]string{"X-RateLimit-Remaining": "9"}, limit: 10, remaining: 7},
		{name: "less remains: others use it too", policy: sliding(10, time.Minute), taken: 3, headers: map[string]string{"X-RateLimit-Remaining": "2"}, limit: 10, remaining: 2, changes: true},
		{
			name: "none remains", policy: sliding(10, time.Minute), taken: 3, headers: map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "20"},
			limit: 10, remaining: 0, opens: 20 * time.Second, changes: true,
		},
		{name: "leaky", policy: gcra(10, time.Minute, 0), taken: 3, headers: map[string]string{"X-RateLimit-Remaining": "2"}, limit: 10, remaining: 2, changes: true},
		{name: "a lower limit", policy: gcra(10, time.Minute, 0), taken: 3, headers: map[string]string{"X-RateLimit-Limit": "5"}, limit: 5, remaining: 2, changes: true},
		{name: "a higher limit, by a user", policy: gcra(10, time.Minute, 0), taken: 3, headers: map[string]string{"X-RateLimit-Limit": "50"}, limit: 10, remaining: 7},
		{name: "a higher limit, by a service", policy: gcra(10, time.Minute, 0), taken: 3, headers: map[string]string{"X-RateLimit-Limit": "50"}, mayRaise: true, limit: 50, remaining: 47, changes: true},
		{name: "another budget", policy: dimension(sliding(10, time.Minute), "tokens"), taken: 3, headers: map[string]string{"X-RateLimit-Remaining": "0"}, limit: 10, remaining: 7},
		{
			name: "the later of two", policy: sliding(10, time.Minute), status: 429, headers: map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "20", "Retry-After": "50"},
			limit: 10, remaining: 0, opens: 50 * time.Second, changes: true,
		},
		{
			name: "a daily quota is not there again after Google's retry delay", policy: dimension(calendar(10, storev1.Calendar_CALENDAR_DAY, "America/Los_Angeles"), "requests-day"), status: 429,
			body: `{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]},
				{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"27s"}]}}`,
			limit: 10, remaining: 0, opens: 22 * time.Hour, changes: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.policy.Dimension == "" {
				tt.policy.Dimension = "requests"
			}
			s, c := bucketStore{state: &storev1.ApiState{}}, &storev1.ApiConfig{Policies: []policy{tt.policy}}
			b := s.bucket(tt.policy, epoch)
			take(tt.policy, b, tt.taken, epoch)
			o := observe(&coordinationv1.ProviderResponse{HttpStatus: tt.status, Headers: tt.headers, Body: []byte(tt.body)}, time.Time{}, epoch)
			corrected, paused := correct(s, c, &demand{}, o, tt.mayRaise, time.Time{}, epoch)
			got := standing(tt.policy, b, epoch)
			if got.GetLimit() != tt.limit || got.GetRemaining() != tt.remaining || (len(corrected) > 0) != tt.changes || paused {
				t.Errorf("%v, corrected %v, paused %v", got, corrected, paused)
			}
			if opens := passes(tt.policy, b, 1, epoch).Sub(epoch); tt.remaining > 0 && opens != 0 || tt.opens > 0 && opens != tt.opens {
				t.Errorf("one passes after %v, want %v", opens, tt.opens)
			}
		})
	}
}

// A provider that wants silence without saying for which budget gets it for all.
func TestPause(t *testing.T) {
	t.Parallel()
	s, c := bucketStore{state: &storev1.ApiState{}}, &storev1.ApiConfig{Policies: []policy{sliding(10, time.Minute)}}
	o := observe(&coordinationv1.ProviderResponse{HttpStatus: http.StatusServiceUnavailable, Headers: map[string]string{"Retry-After": "30"}}, time.Time{}, epoch)
	if corrected, paused := correct(s, c, &demand{}, o, false, time.Time{}, epoch); len(corrected) > 0 || !paused {
		t.Fatalf("corrected %v, paused %v", corrected, paused)
	}
	v := acquire(s, c, &demand{permits: 1}, false, epoch)
	if v.allowed || v.reason != coordinationv1.WaitReason_WAIT_REASON_PAUSE || !v.retryAt.Equal(epoch.Add(30*time.Second)) {
		t.Errorf("%+v", v)
	}
	if v := acquire(s, c, &demand{permits: 1}, false, v.retryAt); !v.allowed {
		t.Errorf("when it is over: %+v", v)
	}
}

func TestReadyMade(t *testing.T) {
	t.Parallel()
	for _, api := range []string{"codegen", "linear", "gemini"} {
		if err := checkConfig(as[*coordinationv1.ApiConfig](readyMade(api))); err != nil {
			t.Errorf("%s: %v", api, err)
		}
	}
	if readyMade("other") != nil {
		t.Error("an API that nobody knows has a ready-made config")
	}
}

// Each budget that a provider names corrects the policies that are about it, and no other.
func TestCorrectionsHitTheRightPolicy(t *testing.T) {
	t.Parallel()
	of := func(name string, p policy, dimension string, operations ...string) policy {
		p.Name, p.Dimension, p.Operations = name, dimension, operations
		return p
	}
	day := func(name, dimension string, operations ...string) policy {
		return of(name, calendar(10_000, storev1.Calendar_CALENDAR_DAY, ""), dimension, operations...)
	}
	minute := func(name, dimension string, operations ...string) policy {
		return of(name, sliding(100, time.Minute), dimension, operations...)
	}
	both := []policy{minute("minute", "requests"), day("day", "requests")}
	named := []policy{minute("minute", "requests"), day("day", "requests-day"), of("tokens", gcra(1000, time.Minute, 0), "tokens")}
	models := []policy{minute("pro", "requests", "generate/pro"), minute("flash", "requests", "generate/flash"), minute("all", "requests")}
	google := func(id, model string) string {
		return `{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"` + id + `","quotaDimensions":{"model":"` + model + `"}}]}]}}`
	}
	const perMinute, perDay = "GenerateRequestsPerMinutePerProjectPerModel", "GenerateRequestsPerDayPerProjectPerModel"
	for name, tt := range map[string]struct {
		policies []policy
		headers  map[string]string
		body     string
		want     []string
	}{
		"a minute's reset":       {both, map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "20"}, "", []string{"minute"}},
		"a day's reset":          {both, map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "40000"}, "", []string{"day"}},
		"a day's limit":          {both, map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Limit": "10000"}, "", []string{"day"}},
		"nothing said":           {both, map[string]string{"X-RateLimit-Remaining": "0"}, "", []string{"minute"}},
		"the window is said":     {both, map[string]string{"RateLimit-Policy": `"a";q=100;w=60`, "RateLimit": `"a";r=0;t=5`}, "", []string{"minute"}},
		"a day's is":             {both, map[string]string{"RateLimit-Policy": `"a";q=10000;w=86400`, "RateLimit": `"a";r=0;t=5`}, "", []string{"day"}},
		"an hour's is":           {both, map[string]string{"RateLimit-Policy": `"a";q=10000;w=3600`, "RateLimit": `"a";r=0;t=5`}, "", nil},
		"what runs at once":      {both, map[string]string{"RateLimit-Policy": `"a";q=9;qu="concurrent-requests"`, "RateLimit": `"a";r=0`}, "", nil},
		"Kong's minute":          {both, map[string]string{"X-RateLimit-Remaining-Minute": "0"}, "", []string{"minute"}},
		"Kong's day":             {both, map[string]string{"X-RateLimit-Remaining-Day": "0"}, "", []string{"day"}},
		"a name":                 {named, map[string]string{"X-RateLimit-Remaining-Tokens": "0"}, "", []string{"tokens"}},
		"a day's name":           {named, map[string]string{"X-RateLimit-Remaining-Requests-Day": "0"}, "", []string{"day"}},
		"requests":               {named, map[string]string{"X-RateLimit-Remaining-Requests": "0"}, "", []string{"minute"}},
		"another name":           {named, map[string]string{"X-RateLimit-Remaining-Images": "0"}, "", nil},
		"Google's minute":        {named, nil, google(perMinute, ""), []string{"minute"}},
		"Google's day":           {named, nil, google(perDay, ""), []string{"day"}},
		"Google's model":         {models, nil, google(perMinute, "pro"), []string{"pro"}},
		"Google's other model":   {models, nil, google(perMinute, "nano"), []string{"all"}},
		"a model's day, of none": {models, nil, google(perDay, "pro"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, c := bucketStore{state: &storev1.ApiState{}}, &storev1.ApiConfig{Policies: tt.policies}
			o := observe(&coordinationv1.ProviderResponse{HttpStatus: http.StatusTooManyRequests, Headers: tt.headers, Body: []byte(tt.body)}, time.Time{}, epoch)
			corrected, paused := correct(s, c, &demand{only: namesOf(tt.policies)}, o, false, time.Time{}, epoch)
			if fmt.Sprint(corrected) != fmt.Sprint(tt.want) {
				t.Errorf("corrected %v, want %v", corrected, tt.want)
			}
			if paused != (len(tt.want) == 0) {
				t.Errorf("paused: %t", paused)
			}
			for _, p := range tt.policies {
				if waits := passes(p, s.bucket(p, epoch), 1, epoch).After(epoch); waits != slices.Contains(tt.want, p.GetName()) {
					t.Errorf("%s waits: %t", p.GetName(), waits)
				}
			}
		})
	}
}

// Whatever a refusal says, or fails to say, the next call waits; and the refusals of calls that were sent together count once.
func TestARefusalAlwaysMakesSomebodyWait(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		headers := map[string]string{}
		for range rapid.IntRange(0, 3).Draw(t, "headers") {
			name := rapid.SampledFrom([]string{"Retry-After", "X-RateLimit-Reset", "X-RateLimit-Remaining", "RateLimit", "RateLimit-Policy", "Retry-After-Ms", "Date"}).Draw(t, "name")
			headers[name] = rapid.SampledFrom([]string{
				"", "0", "-1", "soon", "30", "30, 30", "1.5", "1e9", "Mon, 23 Nov 2026 09:00:00 GMT", "Mon, 23 Nov 2026 10:00:60 GMT", `"default";r=0;t=0`, `"a";q=5;w=60`, "99999999999999999999", "NaN",
			}).Draw(t, "value")
		}
		body := rapid.SampledFrom([]string{"", "{}", `{"error":"rate_limited"}`, `{"retry_after":"?"}`, `[`, `{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"@type":"google.rpc.RetryInfo","retryDelay":"-3s"}]}}`}).Draw(t, "body")
		p := sliding(100, time.Minute)
		p.Dimension = rapid.SampledFrom([]string{"", "requests", "tokens"}).Draw(t, "dimension")
		s, c := bucketStore{state: &storev1.ApiState{}}, &storev1.ApiConfig{Policies: []policy{p}}
		o := observe(&coordinationv1.ProviderResponse{HttpStatus: http.StatusTooManyRequests, Headers: headers, Body: []byte(body)}, time.Time{}, epoch)
		correct(s, c, &demand{}, o, false, time.Time{}, epoch)
		v := acquire(s, c, &demand{permits: 1}, false, epoch)
		if v.allowed || !v.retryAt.After(epoch) {
			t.Fatalf("%v %q: %+v", headers, body, v)
		}
	})
}

func TestBackoffGrowsAndEndsWithASuccess(t *testing.T) {
	t.Parallel()
	s, now := &storev1.ApiState{}, epoch
	for n := range 15 {
		want := min(lastBackoff, firstBackoff<<min(n, 20))
		sent := now
		now = now.Add(time.Millisecond)
		if !backOff(s, sent, now) {
			t.Fatalf("refusal %d does not count", n)
		}
		for _, late := range []time.Time{sent, {}} {
			if was := s.GetPauseUntil(); backOff(s, late, now.Add(time.Millisecond)) || succeeded(s, late, now.Add(time.Millisecond)) || s.GetPauseUntil() != was {
				t.Error("a call that was sent before counts")
			}
		}
		wait := s.GetPauseUntil().AsTime().Sub(now)
		if wait < want/2 || wait > want {
			t.Errorf("refusal %d: %v, want about %v", n, wait, want)
		}
		now = now.Add(wait)
		if backOff(s, sent, now.Add(time.Hour)) {
			t.Error("a late report begins another pause")
		}
	}
	if !succeeded(s, now, now) || s.GetBackoff() != nil {
		t.Error("a success changes nothing")
	}
	if backOff(s, now, now.Add(1)); s.GetPauseUntil().AsTime().Sub(now) > firstBackoff+1 {
		t.Errorf("after a success: %v", s)
	}
}

// What was taken stays taken, whatever is changed of a policy: as many units, or all that the policy has.
func TestChangingAPolicyKeepsWhatWasTaken(t *testing.T) {
	t.Parallel()
	draw := func(t *rapid.T) policy {
		p := sliding(rapid.Int64Range(1, 5000).Draw(t, "limit"), time.Duration(rapid.Int64Range(1, 7200).Draw(t, "period"))*time.Second)
		p.Algorithm = storev1.Algorithm(rapid.Int32Range(1, 3).Draw(t, "algorithm"))
		p.Calendar = storev1.Calendar(rapid.Int32Range(1, 5).Draw(t, "calendar"))
		return p
	}
	rapid.Check(t, func(t *rapid.T) {
		from, to := draw(t), draw(t)
		s := &storev1.ApiState{Config: &storev1.ApiConfig{Policies: []policy{from}}}
		store := bucketStore{state: s}
		n := rapid.Int64Range(1, from.GetLimit()).Draw(t, "taken")
		take(from, store.bucket(from, epoch), n, epoch)
		later := epoch.Add(time.Duration(rapid.Int64Range(0, 100).Draw(t, "later")) * time.Millisecond)
		had := capacityOf(from, store.bucket(from, later)) - standing(from, store.bucket(from, later), later).GetRemaining()
		configure("x", s, &storev1.ApiConfig{Policies: []policy{to}}, later)
		got := standing(to, bucketStore{state: s}.bucket(to, later), later)
		want := max(0, to.GetLimit()-had)
		if drained := int64(later.Sub(epoch) / emission(to, &storev1.Bucket{})); to.GetAlgorithm() != storev1.Algorithm_ALGORITHM_GCRA && got.GetRemaining() != want ||
			to.GetAlgorithm() == storev1.Algorithm_ALGORITHM_GCRA && (got.GetRemaining() < want || got.GetRemaining() > want+drained+1) {
			t.Fatalf("%d of %v\nbecame %d left of %v, want %d", had, from, got.GetRemaining(), to, want)
		}
	})
}

// Failures among successes open the breaker too, once they are many of many; slow calls are failures.
func TestTheBreakerOpensByRate(t *testing.T) {
	t.Parallel()
	c := &storev1.BreakerConfig{Probes: 2, SlowAfter: durationpb.New(time.Second), OpenFor: durationpb.New(time.Minute)}
	b, now := &storev1.Breaker{}, epoch
	for range 1000 {
		if breakerHears(b, c, 0, healthUp, now) {
			t.Fatal("a healthy call is written down")
		}
	}
	for i := range 19 {
		h := healthUp
		if i%2 == 0 {
			h = slow(healthUp, c, time.Second+1)
		}
		now = now.Add(time.Second)
		breakerHears(b, c, 0, h, now)
	}
	if b.GetGeneration() != 0 {
		t.Errorf("opened by 19 calls: %v", b)
	}
	breakerHears(b, c, 0, healthUp, now)
	breakerHears(b, c, 0, healthDown, now)
	if b.GetStatus() != storev1.BreakerStatus_BREAKER_STATUS_OPEN {
		t.Fatalf("11 of 21 failed: %v", b)
	}
	now = now.Add(time.Minute)
	for range 2 {
		if at, probe := breakerPasses(b, c, now); at.After(now) || !probe {
			t.Fatalf("no probe: %v", b)
		}
		startProbe(b, c, time.Minute, now)
	}
	if at, _ := breakerPasses(b, c, now); !at.After(now) {
		t.Errorf("a third probe: %v", b)
	}
	breakerHears(b, c, b.GetGeneration(), healthUp, now)
	if b.GetStatus() != storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN {
		t.Errorf("closed by one of two probes: %v", b)
	}
	breakerHears(b, c, b.GetGeneration(), healthUp, now)
	if b.GetStatus() != storev1.BreakerStatus_BREAKER_STATUS_CLOSED {
		t.Errorf("not closed by two: %v", b)
	}
	// Failures that are few and far between do not add up.
	for range 200 {
		now = now.Add(31 * time.Second)
		breakerHears(b, c, b.GetGeneration(), healthDown, now)
		breakerHears(b, c, b.GetGeneration(), healthUp, now)
	}
	if b.GetStatus() != storev1.BreakerStatus_BREAKER_STATUS_CLOSED {
		t.Errorf("opened by four calls a window: %v", b)
	}
}

// One operation that is down keeps no other from being called.
func TestOperationsHaveBreakersOfTheirOwn(t *testing.T) {
	t.Parallel()
	c := &storev1.ApiConfig{Breaker: &storev1.BreakerConfig{PerOperation: true, FailureThreshold: 1}}
	s := bucketStore{state: &storev1.ApiState{}}
	v := acquire(s, c, &demand{operation: "a", permits: 1, version: 1}, false, epoch)
	got, ok := parseGrant(v.grant.id())
	if !ok || got.operation == 0 || got.operation != operationMark(c, "a") {
		t.Fatalf("the grant: %+v", got)
	}
	breakerHears(s.breaker(c, "a"), c.GetBreaker(), 0, healthDown, epoch)
	if acquire(s, c, &demand{operation: "a", permits: 1}, false, epoch).allowed || !acquire(s, c, &demand{operation: "b", permits: 1}, false, epoch).allowed {
		t.Errorf("state: %v", s.state)
	}
	for i := range 200 {
		s.breaker(c, fmt.Sprint(i))
	}
	if n := len(s.state.GetOperationBreakers()); n != maxBreakers {
		t.Errorf("%d breakers", n)
	}
}
