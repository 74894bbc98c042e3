package dialect

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

func said(dimension string, limit, remaining int64, reset time.Duration, window ...time.Duration) *Budget {
	b := &Budget{Dimension: dimension, Limit: limit, Remaining: remaining}
	if reset >= 0 {
		b.Reset = epoch.Add(reset)
	}
	if len(window) > 0 {
		b.Window = window[0]
	}
	return b
}

func of(model string, b *Budget) *Budget {
	b.Model = model
	return b
}

func counts(unit string, b *Budget) *Budget {
	b.Unit = unit
	return b
}

// epoch is 2026-11-23T10:00:00Z: 1795428000 s since 1970.
func TestEveryDialect(t *testing.T) {
	t.Parallel()
	const none = -1
	tests := []struct {
		name    string
		status  int
		headers map[string]string
		body    string
		want    []*Budget
		retry   time.Duration // none: not said
		refused bool
		ignored []string
	}{
		{
			name:    "RateLimit",
			headers: map[string]string{"RateLimit": `"default";r=50;t=30`, "RateLimit-Policy": `"default";q=100;w=60,"daily";q=1000;w=86400;pk=:c2Vj:`},
			want:    []*Budget{counts("requests", said("daily", 1000, none, none, 24*time.Hour)), counts("requests", said("requests", 100, 50, 30*time.Second, time.Minute))},
			retry:   none,
		},
		{
			name:    "RateLimit, names with what separates",
			headers: map[string]string{"RateLimit": `"a,b;c\"d";r=1, token;r=2`},
			want:    []*Budget{said(`a,b;c"d`, none, 1, none), said("token", none, 2, none)},
			retry:   none,
		},
		{
			name:    "RateLimit as it was",
			headers: map[string]string{"RateLimit": "limit=100, remaining=50, reset=5"},
			want:    []*Budget{said("requests", 100, 50, 5*time.Second)}, retry: none,
		},
		{
			name:    "RateLimit- before that",
			headers: map[string]string{"RateLimit-Limit": "100, 100;w=60", "RateLimit-Remaining": "0", "RateLimit-Reset": "7"},
			want:    []*Budget{said("requests", 100, 0, 7*time.Second, time.Minute)}, retry: none,
		},
		{
			name: "GitHub",
			headers: map[string]string{
				"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "4999", "X-RateLimit-Reset": "1795428060", "X-RateLimit-Used": "1", "X-RateLimit-Resource": "core",
			},
			want: []*Budget{said("requests", 5000, 4999, time.Minute)}, retry: none,
		},
		{
			name: "OpenAI",
			headers: map[string]string{
				"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "120ms",
				"x-ratelimit-limit-tokens": "150000", "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s",
			},
			want:  []*Budget{said("requests", 60, 59, 120*time.Millisecond), said("tokens", 150000, 149984, 6*time.Minute)},
			retry: none,
		},
		{
			name: "Anthropic", status: 429,
			headers: map[string]string{
				"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": "2026-11-23T10:00:30Z",
				"anthropic-ratelimit-input-tokens-remaining": "10", "retry-after": "25",
			},
			want:  []*Budget{said("input-tokens", none, 10, none), said("requests", 50, 0, 30*time.Second)},
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
			want: []*Budget{
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
			want: []*Budget{said("tokens", 250000, 0, none, time.Minute)}, retry: 27500 * time.Millisecond, refused: true,
		},
		{
			name: "Gemini, a day, of a stream", status: 429,
			body: `[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[
				{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerDayPerProjectPerModel-FreeTier","quotaValue":"200"},{"quotaId":"Other"}]},
				{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"27s"}]}}]`,
			want: []*Budget{said("requests-day", 200, 0, none, 24*time.Hour)}, retry: 27 * time.Second, refused: true,
			ignored: []string{"body[0].error.details[0].violations[1]"},
		},
		{name: "Codegen", status: 429, body: `{"message":"Rate limit exceeded. Please try again later.","status_code":429}`, retry: none, refused: true},
		{name: "an HTTP date", status: 503, headers: map[string]string{"Retry-After": "Mon, 23 Nov 2026 10:02:00 GMT"}, retry: 2 * time.Minute},
		{name: "a date that is over", status: 503, headers: map[string]string{"Retry-After": "Mon, 23 Nov 2026 09:02:00 GMT"}, retry: none},
		{name: "Retry-After of what did not fail", status: 202, headers: map[string]string{"Retry-After": "120"}, retry: none},
		{name: "doubled", status: 429, headers: map[string]string{"Retry-After": "30, 31"}, retry: 31 * time.Second, refused: true},
		{name: "doubled, and one of them unread", status: 429, headers: map[string]string{"Retry-After": "30, soon"}, retry: 30 * time.Second, refused: true, ignored: []string{"Retry-After"}},
		{name: "two dates", status: 429, headers: map[string]string{"Retry-After": "Mon, 23 Nov 2026 10:02:00 GMT, Mon, 23 Nov 2026 10:03:00 GMT"}, retry: 3 * time.Minute, refused: true},
		{name: "milliseconds win", status: 429, headers: map[string]string{"retry-after": "1", "Retry-After-Ms": "354"}, retry: 354 * time.Millisecond, refused: true},
		{name: "Azure", status: 429, headers: map[string]string{"X-Ms-Retry-After-Ms": "1500.5", "x-ratelimit-remaining-tokens": "-1"}, retry: 1500*time.Millisecond + 500*time.Microsecond, refused: true, ignored: []string{"x-ratelimit-remaining-tokens"}},
		{name: "40 days", status: 429, headers: map[string]string{"Retry-After": "3456000"}, retry: MaxWait, refused: true},
		{name: "now", status: 429, headers: map[string]string{"Retry-After": "0"}, retry: none, refused: true},
		{name: "a date of their clock, an hour slow", status: 429, headers: map[string]string{"Retry-After": "Mon, 23 Nov 2026 09:00:30 GMT", "Date": "Mon, 23 Nov 2026 09:00:00 GMT"}, retry: 30 * time.Second, refused: true},
		{name: "an hour fast", status: 429, headers: map[string]string{"Retry-After": "Mon, 23 Nov 2026 11:00:30 GMT", "Date": "Mon, 23 Nov 2026 11:00:00 GMT"}, retry: 30 * time.Second, refused: true},
		{
			name: "Discord", status: 429, headers: map[string]string{"X-RateLimit-Reset-After": "1.2", "X-RateLimit-Remaining": "0", "X-RateLimit-Bucket": "ab", "X-RateLimit-Scope": "user"},
			body: `{"message":"You are being rate limited.","retry_after":64.57,"global":false}`, want: []*Budget{said("requests", none, 0, 1200*time.Millisecond)}, retry: 64570 * time.Millisecond, refused: true,
		},
		{
			name: "Kong", headers: map[string]string{"X-RateLimit-Limit-Minute": "5", "X-RateLimit-Remaining-Minute": "4", "X-RateLimit-Remaining-Day": "90"},
			want: []*Budget{said("day", none, 90, none, 24*time.Hour), said("minute", 5, 4, none, time.Minute)}, retry: none,
		},
		{
			name: "Cerebras", headers: map[string]string{"x-ratelimit-remaining-requests-day": "0", "x-ratelimit-reset-requests-day": "33011.382867"},
			want: []*Budget{said("requests-day", none, 0, 33011382867*time.Microsecond, 24*time.Hour)}, retry: none,
		},
		{name: "Reddit", headers: map[string]string{"X-Ratelimit-Remaining": "594.0", "X-Ratelimit-Used": "6", "X-Ratelimit-Reset": "331"}, want: []*Budget{said("requests", none, 594, 331*time.Second)}, retry: none},
		{name: "Jira", status: 429, headers: map[string]string{"X-RateLimit-Reset": "2026-11-23T10:05Z", "RateLimit-Reason": "jira-burst-based"}, want: []*Budget{said("requests", none, none, 5*time.Minute)}, retry: none, refused: true},
		{name: "HubSpot", headers: map[string]string{"X-HubSpot-RateLimit-Daily-Remaining": "10", "X-HubSpot-RateLimit-Max": "100"}, want: []*Budget{said("daily", none, 10, none, 24*time.Hour), said("requests", 100, none, none)}, retry: none},
		{name: "Shopify", headers: map[string]string{"X-Shopify-Shop-Api-Call-Limit": "32/40"}, want: []*Budget{said("requests", 40, 8, none)}, retry: none},
		{name: "Riot, which nobody reads", status: 429, headers: map[string]string{"X-App-Rate-Limit": "20:1,100:120"}, retry: none, refused: true, ignored: []string{"X-App-Rate-Limit"}},
		{name: "GitHub, 403", status: 403, headers: map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1795428060"}, want: []*Budget{said("requests", none, 0, time.Minute)}, retry: none, refused: true},
		{name: "GitHub, secondary", status: 403, body: `{"message":"You have exceeded a secondary rate limit."}`, retry: time.Minute, refused: true},
		{name: "403 of another kind", status: 403, body: `{"message":"no"}`, retry: none},
		{
			name: "a limit of what runs at once", headers: map[string]string{"RateLimit-Policy": `"default";q=5;qu="concurrent-requests"`, "RateLimit": `"default";r=0`},
			want: []*Budget{counts("concurrent-requests", said("concurrent-requests", 5, none, none)), said("requests", none, 0, none)}, retry: none,
		},
		{
			name: "Gemini, a model", status: 429, body: `{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Please retry in 38.2s.","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[
				{"quotaId":"GenerateRequestsPerMinutePerProjectPerModel","quotaValue":10,"quotaDimensions":{"model":"gemini-2.5-Pro","location":"global"}}]}]}}`,
			want: []*Budget{of("gemini-2.5-pro", said("requests", 10, 0, none, time.Minute))}, retry: 38200 * time.Millisecond, refused: true,
		},
		{
			name: "Google, only ErrorInfo", status: 429, body: `{"error":{"code":429,"details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"RATE_LIMIT_EXCEEDED","metadata":{"quota_limit":"RequestsPerDay","quota_limit_value":"5"}}]}}`,
			want: []*Budget{said("requests-day", 5, 0, none, 24*time.Hour)}, retry: none, refused: true,
		},
		{name: "RetryInfo in parts", status: 503, body: `{"error":{"details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":{"seconds":"3","nanos":500000000}}]}}`, retry: 3500 * time.Millisecond},
		{name: "a message", status: 429, body: `{"error":{"message":"Rate limit reached for x. Please try again in 10h17m5.7s.","type":"tokens","code":"rate_limit_exceeded"}}`, retry: 10*time.Hour + 17*time.Minute + 5700*time.Millisecond, refused: true},
		{name: "a text", status: 429, body: "Too many requests, please wait for 30 seconds", retry: 30 * time.Second, refused: true},
		{name: "GraphQL with 200", status: 200, body: `{"errors":[{"message":"x","extensions":{"code":"RATELIMITED","retryAfterMs":1500}}]}`, retry: 1500 * time.Millisecond, refused: true},
		{
			name: "Linear's result", status: 400, body: `{"errors":[{"extensions":{"code":"RATELIMITED","meta":{"rateLimitResult":{"allowed":false,"limit":2500,"remaining":0,"reset":1795431600000}}}}]}`,
			want: []*Budget{said("requests", 2500, 0, time.Hour)}, retry: none, refused: true,
		},
		{name: "Shopify's bucket", status: 200, body: `{"errors":[{"message":"Throttled","extensions":{"code":"THROTTLED"}}],"extensions":{"cost":{"requestedQueryCost":600,"throttleStatus":{"maximumAvailable":1000,"currentlyAvailable":100,"restoreRate":50}}}}`, retry: 10 * time.Second, refused: true},
		{name: "AWS", status: 400, body: `{"__type":"com.amazonaws#ThrottlingException","Type":"ThrottlingException"}`, retry: none, refused: true},
		{name: "S3", status: 503, body: `<Error><Code>SlowDown</Code></Error>`, retry: none, refused: true},
		{name: "overloaded", status: 529, body: `{"type":"error","error":{"type":"overloaded_error"}}`, retry: none, refused: true},
		{name: "a proxy", status: 503, body: "upstream connect error or disconnect/reset before headers", retry: none},
		{name: "a success that speaks of limits", status: 200, body: `{"items":[{"code":"RATELIMITED","retry_after":5}]}`, retry: none},
		{name: "days", headers: map[string]string{"X-RateLimit-Reset": "1d2h"}, want: []*Budget{said("requests", none, none, 26*time.Hour)}, retry: none},
		{
			name: "what cannot be understood", status: 429, body: `{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"soon"}]}}`,
			headers: map[string]string{
				"Retry-After": "soon", "RateLimit": `"open;r=1`, "RateLimit-Policy": `"a";w=60`, "X-RateLimit-Limit": "many", "X-RateLimit-Remaining": "-1",
				"X-RateLimit-Reset": "1e30", "X-RateLimit-Whatever": "1", "X-RateLimit-Limit-": "1", "X-Other": "x", "RateLimit-Reset": "NaN",
			},
			retry: none, refused: true,
			ignored: []string{"RateLimit", "RateLimit-Policy", "RateLimit-Reset", "Retry-After", "X-RateLimit-Limit", "X-RateLimit-Limit-", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Whatever", "body.error.details[0].retryDelay"},
		},
		{name: "a body that is cut", status: 429, body: `{"error":{"status":"RESOURCE_EXH`, retry: none, refused: true},
		{name: "nothing", retry: none},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := Read(Answer{Status: tt.status, Header: tt.headers, Body: []byte(tt.body), At: epoch})
			if diff := cmp.Diff(tt.want, o.Budgets); diff != "" {
				t.Errorf("limits (-want +got):\n%s", diff)
			}
			retry := time.Duration(none)
			if !o.RetryAt.IsZero() {
				retry = o.RetryAt.Sub(epoch)
			}
			if retry != tt.retry || o.Refused != tt.refused {
				t.Errorf("retry after %v, refused %v; want %v, %v", retry, o.Refused, tt.retry, tt.refused)
			}
			if diff := cmp.Diff(tt.ignored, o.Ignored); diff != "" {
				t.Errorf("ignored (-want +got):\n%s", diff)
			}
		})
	}
}

// epoch is 2026-11-23T10:00:00Z: 1795428000 s since 1970.
func TestTimes(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]time.Duration{
		"0": 0, "30": 30 * time.Second, "1.5": 1500 * time.Millisecond, " 30 ": 30 * time.Second, `"30"`: 30 * time.Second, "1795428030": 30 * time.Second, "1795428030.25": 30250 * time.Millisecond,
		"1795428030123": 30123 * time.Millisecond, "1795428030000000": 30 * time.Second, "1795428030000000000": 30 * time.Second,
		"1s": time.Second, "6m0s": 6 * time.Minute, "120ms": 120 * time.Millisecond, "2d": 48 * time.Hour, "1d1h": 25 * time.Hour,
		"1 minute": time.Minute, "1 minute 30 seconds": 90 * time.Second, "2 hours and 5 mins": 125 * time.Minute, "PT30S": 30 * time.Second, "P1DT1H": 25 * time.Hour,
		"2026-11-23T10:00:30Z": 30 * time.Second, "2026-11-23T11:00:30+01:00": 30 * time.Second, "2026-11-23T11:00:30.5+0100": 30500 * time.Millisecond,
		"2026-11-23T10:00:30": 30 * time.Second, "2026-11-23 10:00:30": 30 * time.Second, "2026-11-23 10:00:30 UTC": 30 * time.Second, "2026-11-23 10:00:30.25": 30250 * time.Millisecond,
		"2026-11-23T10:01Z": time.Minute, "2026-11-23T10:00:60Z": time.Minute,
		"Mon, 23 Nov 2026 10:00:30 GMT": 30 * time.Second, "Mon, 23 Nov 2026 10:00:60 GMT": time.Minute, "Mon, 23 Nov 2026 10:00:30 UTC": 30 * time.Second,
		"Mon, 23 Nov 2026 10:00:30 +0000": 30 * time.Second, "Mon, 23 Nov 2026 10:00:30": 30 * time.Second,
		"Monday, 23-Nov-26 10:00:30 GMT": 30 * time.Second, "Mon Nov 23 10:00:30 2026": 30 * time.Second,
		"1000000000": 0, "2025-01-01T00:00:00Z": 0, // over
		"3000000": MaxWait, "40d": MaxWait, "300d300d": MaxWait, "2030-01-01T00:00:00Z": MaxWait, "99999999999": MaxWait, "99999999999999": MaxWait,
		"": -1, "-1": -1, "x": -1, "1e30": -1, "Inf": -1, "NaN": -1, "0x1F": -1, "-5s": -1, "soon": -1, "30 bananas": -1, "Mon": -1, "99:99": -1, "2026-13-45T99:00:00Z": -1, "P": -1, "PT": -1,
	} {
		r := &reader{answer: Answer{At: epoch}}
		at, ok := r.times(value, time.Second)
		if ok != (want >= 0) || ok && at.Sub(epoch) != want {
			t.Errorf("%q is %v, %v; want %v", value, at.Sub(epoch), ok, want)
		}
	}
}

// What comes late is read as of when it came: a wait that is over keeps nobody waiting.
func TestALateAnswerIsReadAsOfWhenItCame(t *testing.T) {
	t.Parallel()
	late := Answer{Status: 429, Header: map[string]string{"Retry-After": "30", "Date": "Mon, 23 Nov 2026 09:59:00 GMT"}, At: epoch, Sent: epoch.Add(-2 * time.Minute)}
	if got := Read(late); got.RetryAt.After(epoch) || got.RetryAt.IsZero() {
		t.Errorf("retry at %v", got.RetryAt)
	}
	late.Sent = time.Time{} // nobody knows that it is late: it may be a slow clock
	if got := Read(late); !got.RetryAt.Equal(epoch.Add(30 * time.Second)) {
		t.Errorf("of a clock that may be slow: %v", got.RetryAt)
	}
}

// Whatever is written, a time is not before the answer nor beyond MaxWait, and what is unread is listed.
func TestNoTimeIsEverBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.OneOf(rapid.String(), rapid.StringMatching(`-?[0-9]{1,22}(\.[0-9]{1,9})?(ms|s|m|h|d)?`), rapid.StringMatching(`(Mon, )?[0-9]{2}[ -](Nov|Feb)[ -][0-9]{2,4} [0-9]{2}:[0-9]{2}:[0-9]{2}( GMT|Z)?`)).Draw(t, "value")
		name := rapid.SampledFrom([]string{"Retry-After", "Retry-After-Ms", "X-RateLimit-Reset", "RateLimit-Reset-Requests", "RateLimit"}).Draw(t, "name")
		got := Read(Answer{Status: 429, Header: map[string]string{name: value}, At: epoch})
		for _, at := range append([]time.Time{got.RetryAt}, resets(got)...) {
			if !at.IsZero() && (at.Before(epoch) || at.After(epoch.Add(MaxWait))) {
				t.Fatalf("%s: %q is %v", name, value, at)
			}
		}
		if !got.Refused || got.RetryAt.IsZero() && len(resets(got)) == 0 && len(got.Ignored) == 0 && strings.HasPrefix(name, "Retry") && strings.Trim(value, "0. ,\"smhd") != "" &&
			!over(value, name) {
			t.Fatalf("%s: %q is neither read nor ignored: %+v", name, value, got)
		}
	})
}

// over reports whether a value is a time that is over.
func over(value, name string) bool {
	unit := time.Second
	if strings.HasSuffix(name, "Ms") {
		unit = time.Millisecond
	}
	r := &reader{answer: Answer{At: epoch}}
	at, ok := r.times(strings.TrimSpace(value), unit)
	return ok && !at.After(epoch)
}

func resets(r *Reading) (all []time.Time) {
	for _, b := range r.Budgets {
		if !b.Reset.IsZero() {
			all = append(all, b.Reset)
		}
	}
	return all
}

func TestWhatAnswersMean(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status  int
		body    string
		graphQL bool
		want    Meaning
	}{
		{200, "ok", false, Done},
		{201, "", false, Done},
		{302, "", false, Done},
		{400, `{"errors":[{"message":"no such field"}]}`, false, Final},
		{404, "", false, Final},
		{410, "", false, Final},
		{422, "{}", false, Final},
		{501, "", false, Final},
		{400, `{"errors":[{"extensions":{"code":"RATELIMITED"}}]}`, true, Refused},
		{429, "", false, Refused},
		{425, "", false, Refused},
		{529, "", false, Refused},
		{503, `{"error":{"type":"overloaded_error"}}`, false, Refused},
		{503, `{"error":{"code":"slow_down"}}`, false, Refused},
		{503, "", false, Doubtful},
		{503, "upstream connect error or disconnect/reset before headers", false, Doubtful},
		{503, "<html>", false, Doubtful},
		{500, "", false, Doubtful},
		{502, "", false, Doubtful},
		{504, "", false, Doubtful},
		{520, "", false, Doubtful},
		{408, "", false, Doubtful},
		{401, "", false, Fixable},
		{402, "{}", false, Fixable},
		{403, "", false, Fixable},
		{409, "", false, Fixable},
		{423, "", false, Fixable},
		{403, `{"message":"API rate limit exceeded"}`, false, Refused},
		{200, `{"data":{"a":{"ok":true}},"errors":[{"message":"x"}]}`, true, Done},
		{200, `{"data":{"a":1}}`, true, Done},
		{200, `{"errors":[]}`, true, Done},
		{200, `{"errors":[{"message":"Cannot query field"}]}`, true, Final},
		{200, `{"data":null,"errors":[{"message":"x","extensions":{"code":"INTERNAL_SERVER_ERROR"}}]}`, true, Doubtful},
		{200, `{"data":{"issueCreate":null},"errors":[{"message":"x"}]}`, true, Doubtful},
		{200, `{"data":null,"errors":[{"extensions":{"code":"AUTHENTICATION_ERROR"}}]}`, true, Fixable},
		{200, `{"data":null,"errors":[{"extensions":{"type":"invalid input","code":"INPUT_ERROR"}}]}`, true, Final},
		{200, `{"data":null,"errors":[{"extensions":{"code":"THROTTLED"}}]}`, true, Refused},
		{200, `{"data":null,"errors":[{"extensions":{"code":"INPUT_ERROR"}},{"message":"lock timeout","extensions":{"type":"lock timeout"}}]}`, true, Doubtful},
		{200, `{"errors":[{"message":"of a JSON API"}]}`, false, Done},
	} {
		if got := MeaningOf(tt.status, []byte(tt.body), tt.graphQL); got != tt.want {
			t.Errorf("%d %s means %d, want %d", tt.status, tt.body, got, tt.want)
		}
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]bool{
		"text/event-stream": true, "TEXT/EVENT-STREAM; charset=utf-8": true, "application/x-ndjson": true, "application/connect+json": true, "application/connect+proto": true,
		"application/grpc-web+proto": true, "application/grpc": true, "application/octet-stream": true, "multipart/mixed; boundary=x": true, "application/json-seq": true,
		"audio/mpeg": true, "application/vnd.amazon.eventstream": true, "text/event-stream;;": true,
		"application/json": false, "text/html": false, "": false, "application/problem+json": false,
	} {
		if Streams(kind) != want {
			t.Errorf("%q streams: %t", kind, !want)
		}
	}
}
