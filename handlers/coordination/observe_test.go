package coordination

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

func said(dimension string, limit, remaining int64, reset time.Duration) *coordinationv1.ObservedLimit {
	l := &coordinationv1.ObservedLimit{Dimension: dimension}
	if limit >= 0 {
		l.Limit = &limit
	}
	if remaining >= 0 {
		l.Remaining = &remaining
	}
	if reset >= 0 {
		l.ResetTime = stamp(epoch.Add(reset))
	}
	return l
}

// epoch is 2026-11-23T10:00:00Z: 1795428000 s since 1970.
func TestEveryDialect(t *testing.T) {
	t.Parallel()
	const none = -1
	tests := []struct {
		name    string
		status  int32
		headers map[string]string
		body    string
		want    []*coordinationv1.ObservedLimit
		retry   time.Duration // none: not said
		refused bool
		ignored []string
	}{
		{
			name:    "RateLimit",
			headers: map[string]string{"RateLimit": `"default";r=50;t=30`, "RateLimit-Policy": `"default";q=100;w=60,"daily";q=1000;w=86400;pk=:c2Vj:`},
			want:    []*coordinationv1.ObservedLimit{said("daily", 1000, none, none), said("requests", 100, 50, 30*time.Second)},
			retry:   none,
		},
		{
			name:    "RateLimit, names with what separates",
			headers: map[string]string{"RateLimit": `"a,b;c\"d";r=1, token;r=2`},
			want:    []*coordinationv1.ObservedLimit{said(`a,b;c"d`, none, 1, none), said("token", none, 2, none)},
			retry:   none,
		},
		{
			name:    "RateLimit as it was",
			headers: map[string]string{"RateLimit": "limit=100, remaining=50, reset=5"},
			want:    []*coordinationv1.ObservedLimit{said("requests", 100, 50, 5*time.Second)}, retry: none,
		},
		{
			name:    "RateLimit- before that",
			headers: map[string]string{"RateLimit-Limit": "100, 100;w=60", "RateLimit-Remaining": "0", "RateLimit-Reset": "7"},
			want:    []*coordinationv1.ObservedLimit{said("requests", 100, 0, 7*time.Second)}, retry: none,
		},
		{
			name: "GitHub",
			headers: map[string]string{
				"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "4999", "X-RateLimit-Reset": "1795428060", "X-RateLimit-Used": "1", "X-RateLimit-Resource": "core",
			},
			want: []*coordinationv1.ObservedLimit{said("requests", 5000, 4999, time.Minute)}, retry: none,
		},
		{
			name: "OpenAI",
			headers: map[string]string{
				"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "120ms",
				"x-ratelimit-limit-tokens": "150000", "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s",
			},
			want:  []*coordinationv1.ObservedLimit{said("requests", 60, 59, 120*time.Millisecond), said("tokens", 150000, 149984, 6*time.Minute)},
			retry: none,
		},
		{
			name: "Anthropic", status: 429,
			headers: map[string]string{
				"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": "2026-11-23T10:00:30Z",
				"anthropic-ratelimit-input-tokens-remaining": "10", "retry-after": "25",
			},
			want:  []*coordinationv1.ObservedLimit{said("input-tokens", none, 10, none), said("requests", 50, 0, 30*time.Second)},
			retry: 25 * time.Second, refused: true,
		},
		{
			name: "Linear", status: 400,
			headers: map[string]string{
				"X-RateLimit-Requests-Limit": "2500", "X-RateLimit-Requests-Remaining": "0", "X-RateLimit-Requests-Reset": "1795431600000",
				"X-Complexity": "12", "X-RateLimit-Complexity-Limit": "3000000", "X-RateLimit-Complexity-Remaining": "2999988", "X-RateLimit-Complexity-Reset": "1795431600000",
				"X-RateLimit-Endpoint-Requests-Remaining": "5", "X-RateLimit-Endpoint-Name": "issueCreate",
			},
			body: `{"errors":[{"message":"Rate limit exceeded","extensions":{"code":"RATELIMITED","type":"ratelimited"}}]}`,
			want: []*coordinationv1.ObservedLimit{
				said("complexity", 3000000, 2999988, time.Hour), said("endpoint-requests", none, 5, none), said("requests", 2500, 0, time.Hour),
			},
			retry: none, refused: true,
		},
		{
			name: "Gemini, a minute", status: 429,
			body: `{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[
				{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateContentInputTokensPerModelPerMinute-FreeTier","quotaValue":"250000"}]},
				{"@type":"type.googleapis.com/google.rpc.Help"},
				{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"27.5s"}]}}`,
			want: []*coordinationv1.ObservedLimit{said("tokens", 250000, 0, none)}, retry: 27500 * time.Millisecond, refused: true,
		},
		{
			name: "Gemini, a day, of a stream", status: 429,
			body: `[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[
				{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerDayPerProjectPerModel-FreeTier","quotaValue":"200"},{"quotaId":"Other"}]},
				{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"27s"}]}}]`,
			want: []*coordinationv1.ObservedLimit{said("requests-day", 200, 0, none)}, retry: 27 * time.Second, refused: true,
		},
		{name: "Codegen", status: 429, body: `{"message":"Rate limit exceeded. Please try again later.","status_code":429}`, retry: none, refused: true},
		{name: "an HTTP date", status: 503, headers: map[string]string{"Retry-After": "Mon, 23 Nov 2026 10:02:00 GMT"}, retry: 2 * time.Minute},
		{name: "a date that is over", status: 503, headers: map[string]string{"Retry-After": "Mon, 23 Nov 2026 09:02:00 GMT"}, retry: 0},
		{name: "Retry-After of what did not fail", status: 202, headers: map[string]string{"Retry-After": "120"}, retry: none},
		{name: "days", headers: map[string]string{"X-RateLimit-Reset": "1d2h"}, want: []*coordinationv1.ObservedLimit{said("requests", none, none, 26*time.Hour)}, retry: none},
		{
			name: "what cannot be understood", status: 429, body: `{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"soon"}]}}`,
			headers: map[string]string{
				"Retry-After": "soon", "RateLimit": `"open;r=1`, "RateLimit-Policy": `"a";w=60`, "X-RateLimit-Limit": "many", "X-RateLimit-Remaining": "-1",
				"X-RateLimit-Reset": "99999999999999999", "X-RateLimit-Whatever": "1", "X-RateLimit-Limit-": "1", "X-Other": "x", "RateLimit-Reset": "NaN",
			},
			retry: none, refused: true,
			ignored: []string{"RateLimit", "RateLimit-Policy", "RateLimit-Reset", "Retry-After", "X-RateLimit-Limit", "X-RateLimit-Limit-", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Whatever"},
		},
		{name: "a body that is cut", status: 429, body: `{"error":{"status":"RESOURCE_EXH`, retry: none, refused: true},
		{name: "nothing", retry: none},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := observe(&coordinationv1.ProviderResponse{HttpStatus: tt.status, Headers: tt.headers, Body: []byte(tt.body)}, epoch)
			if diff := cmp.Diff(tt.want, o.list(), protocmp.Transform()); diff != "" {
				t.Errorf("limits (-want +got):\n%s", diff)
			}
			retry := time.Duration(none)
			if !o.retryAt.IsZero() {
				retry = o.retryAt.Sub(epoch)
			}
			if retry != tt.retry || o.refused != tt.refused {
				t.Errorf("retry after %v, refused %v; want %v, %v", retry, o.refused, tt.retry, tt.refused)
			}
			if diff := cmp.Diff(tt.ignored, o.ignored); diff != "" {
				t.Errorf("ignored (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReset(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]time.Duration{
		"0": 0, "30": 30 * time.Second, "1.5": 1500 * time.Millisecond, " 30 ": 30 * time.Second, "1795428030": 30 * time.Second, "1795428030.25": 30250 * time.Millisecond,
		"1795428030123": 30123 * time.Millisecond, "1s": time.Second, "6m0s": 6 * time.Minute, "2d": 48 * time.Hour, "1d1h": 25 * time.Hour,
		"2026-11-23T10:00:30Z": 30 * time.Second, "2026-11-23T11:00:30+01:00": 30 * time.Second, "Mon, 23 Nov 2026 10:00:30 GMT": 30 * time.Second,
		"1000000000": 0, "1795428030000000": -1, // the past; microseconds
		"": -1, "-1": -1, "x": -1, "1e30": -1, "Inf": -1, "NaN": -1, "0x1F": -1, "3000000": -1, "40d": -1, "-5s": -1, "2030-01-01T00:00:00Z": -1, "300d300d": -1,
	} {
		at, ok := parseReset(value, epoch)
		if ok != (want >= 0) || ok && at.Sub(epoch) != want {
			t.Errorf("%q is %v, %v; want %v", value, at.Sub(epoch), ok, want)
		}
	}
}

// Whatever a provider sends is read, and correcting by it never loosens a limit for who may not.
func FuzzObserve(f *testing.F) {
	f.Add(int32(429), "RateLimit", `"default";r=50;t=30`, `{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"27s"}]}}`)
	f.Add(int32(400), "X-RateLimit-Requests-Reset", "1795431600000", `{"errors":[{"extensions":{"code":"RATELIMITED"}}]}`)
	f.Add(int32(200), "X-RateLimit-Remaining", "0", "")
	f.Add(int32(200), "RateLimit-Policy", `"a";q=1000;w=60`, "[]")
	f.Fuzz(func(t *testing.T, status int32, name, value, body string) {
		o := observe(&coordinationv1.ProviderResponse{HttpStatus: status, Headers: map[string]string{name: value, "X-RateLimit-Limit": "3"}, Body: []byte(body)}, epoch)
		if o.retryAt.After(epoch.Add(maxWait)) || len(o.limits) > 64 {
			t.Fatalf("%+v", o)
		}
		for _, p := range []policy{sliding(5, time.Minute), gcra(5, time.Minute, 0), calendar(5, storev1.Calendar_CALENDAR_DAY, "")} {
			p.Dimension = "requests"
			s := bucketStore{state: &storev1.ApiState{}}
			b := s.bucket(p, epoch)
			take(p, b, 2, epoch)
			correct(s, &storev1.ApiConfig{Policies: []policy{p}}, &demand{}, o, false, epoch)
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
			o := observe(&coordinationv1.ProviderResponse{HttpStatus: tt.status, Headers: tt.headers, Body: []byte(tt.body)}, epoch)
			corrected, paused := correct(s, c, &demand{}, o, tt.mayRaise, epoch)
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
	o := observe(&coordinationv1.ProviderResponse{HttpStatus: http.StatusServiceUnavailable, Headers: map[string]string{"Retry-After": "30"}}, epoch)
	if corrected, paused := correct(s, c, &demand{}, o, false, epoch); len(corrected) > 0 || !paused {
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
