package handlers_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const coordinationService = "/holdfast.coordination.v1.CoordinationService/"

// An API is the whole tenant's; what one user keeps from another is their requests, live sessions and leases. The API c1
// is configured by a service, and ada has a request, a live session and a lease, each with the secret in it.
var coordinationArea = area{fuzzing: coordinationFuzzing, cases: func() map[string]isolationCase {
	cases := map[string]isolationCase{}
	for p, c := range coordinationCases {
		c.test = isolateAPI
		cases[p] = c
	}
	return cases
}()}

var coordinationCases = map[string]isolationCase{
	coordinationService + "BeginRequest":    {body: `{"api":"c1","operation":"send","requestId":"r-2","reconcile":true}`},
	coordinationService + "CompleteRequest": {body: `{"api":"c1","requestId":"r-1","lease":"1.1","outcome":{"httpStatus":200}}`},
	coordinationService + "FailRequest":     {body: `{"api":"c1","requestId":"r-1","lease":"1.1","failure":"FAILURE_UNKNOWN"}`},
	coordinationService + "GetRequest":      {body: `{"api":"c1","requestId":"r-1"}`},
	coordinationService + "ListRequests":    {body: `{"api":"c1"}`},
	coordinationService + "Acquire":         {body: `{"api":"c1","permits":"1"}`},
	coordinationService + "Refund":          {body: `{"api":"c1","permits":"1","grantTime":"2026-01-01T00:00:00Z"}`},
	coordinationService + "ReleaseLease":    {body: `{"api":"c1","leaseId":"l-1"}`},
	coordinationService + "ReportLimits":    {body: `{"api":"c1","response":{"httpStatus":429,"headers":{"Retry-After":"1"}}}`},
	coordinationService + "ReportSync":      {body: `{"api":"c1","resource":"issues","sync":{}}`},
	coordinationService + "ReportLive":      {body: `{"api":"c1","sessionId":"s-1","epoch":"2","status":"LIVE_STATUS_OPEN"}`},
	coordinationService + "GetApiState":     {body: `{"api":"c1"}`},
	coordinationService + "ListApis":        {body: `{}`},
	coordinationService + "GetUsage":        {body: `{"api":"c1"}`},
	coordinationService + "ConfigureApi":    {body: `{"api":"c1","config":{}}`},
	coordinationService + "WatchApi":        {body: `{"api":"c1"}`},
}

var coordinationFuzzing = fuzzing{
	seed: [][2]string{
		{"ConfigureApi", `{"api":"c1","config":{"policies":[{"name":"p","algorithm":"ALGORITHM_GCRA","limit":"99","period":"60s","dimension":"requests"},{"name":"u","algorithm":"ALGORITHM_SLIDING","limit":"99","period":"60s","scope":"SCOPE_USER"},{"name":"at-once","algorithm":"ALGORITHM_CONCURRENCY","limit":"9"}]}}`},
		{"BeginRequest", `{"api":"c1","operation":"send","requestId":"r-1"}`},
		{"BeginRequest", `{"api":"c1","operation":"send","requestId":"r-2"}`},
		{"FailRequest", `{"api":"c1","requestId":"r-2","lease":"2.1","failure":"FAILURE_UNKNOWN"}`},
		{"Acquire", `{"api":"c1","leaseId":"l-1"}`},
	},
	reads:   map[string][2]string{"": {"GetApiState", `{"api":"c1"}`}},
	service: map[string]string{"ConfigureApi": "ok", "Refund": "ok", "ReportSync": "ok"},
	full: map[string]string{
		"BeginRequest":    `{"api":"c1","operation":"send","requestId":"r-2","fingerprint":"","holder":"h","beginId":"b","timeout":"30s","permits":"1","cost":"5","reconcile":true,"user":"ada"}`,
		"CompleteRequest": `{"api":"c1","requestId":"r-1","lease":"1.1","outcome":{"httpStatus":200,"headers":{"a":"b"},"body":"Ym9keQ==","truncated":true,"reference":"r"},"cost":"7","response":{"httpStatus":200,"headers":{"X-RateLimit-Remaining":"5","X-RateLimit-Reset":"30"},"body":"e30="}}`,
		"FailRequest":     `{"api":"c1","requestId":"r-1","lease":"1.1","failure":"FAILURE_RETRYABLE","outcome":{"httpStatus":503},"error":"e","retryAfter":"30s","notSent":true,"notDown":true,"response":{"httpStatus":503,"headers":{"Retry-After":"30"},"body":"e30="}}`,
		"GetRequest":      `{"api":"c1","requestId":"r-1","user":"ada"}`,
		"ListRequests":    `{"api":"c1","status":"REQUEST_STATUS_IN_FLIGHT","operation":"send","beforeSeq":"9","pageSize":5}`,
		"Acquire":         `{"api":"c1","operation":"send","scope":"SCOPE_USER","permits":"1","cost":"5","policies":["p","u","at-once"],"leaseId":"l-2","peek":false,"requestId":"r-3"}`,
		"Refund":          `{"api":"c1","operation":"send","permits":"1","cost":"5","user":"ada","grantTime":"2026-11-23T10:00:00.123456Z","requestId":"r-3"}`,
		"ReleaseLease":    `{"api":"c1","leaseId":"l-1","requestId":"r-3"}`,
		"ReportLimits": `{"api":"c1","operation":"send","response":{"httpStatus":429,"headers":{"RateLimit":"\"p\";r=5;t=30","RateLimit-Policy":"\"p\";q=10;w=60","Retry-After":"30","X-RateLimit-Reset-Tokens":"6m0s"},
			"body":"eyJlcnJvcnMiOlt7ImV4dGVuc2lvbnMiOnsiY29kZSI6IlJBVEVMSU1JVEVEIn19XX0="},"count":true,"breakerGeneration":"1","requestId":"r-3"}`,
		"ReportSync": `{"api":"c1","resource":"issues","sync":{"highWaterMark":"2026-11-23T10:00:00Z","pageCursor":"c","passStartTime":"2026-11-23T10:00:00Z","passEndTime":"2026-11-23T10:00:00Z",
			"lastWebhookTime":"2026-11-23T10:00:00Z","webhookLag":"1s","error":"e","updateTime":"2026-11-23T10:00:00Z"},"reset":true,"requestId":"r-3"}`,
		"ReportLive":  `{"api":"c1","sessionId":"s-1","epoch":"2","status":"LIVE_STATUS_GOING_AWAY","model":"m","timeLeft":"50s","closeCode":1011,"error":"e","ttl":"60s","requestId":"r-3"}`,
		"GetApiState": `{"api":"c1"}`,
		"ListApis":    `{"pageSize":5}`,
		"GetUsage":    `{"api":"c1","days":7}`,
		"ConfigureApi": `{"api":"c1","config":{"policies":[{"name":"p","algorithm":"ALGORITHM_GCRA","limit":"10","period":"60s","burst":"5","scope":"SCOPE_USER","unit":"UNIT_COST","operations":["send"],"dimension":"requests"},
			{"name":"q","algorithm":"ALGORITHM_CALENDAR","limit":"10","calendar":"CALENDAR_DAY","timeZone":"America/Los_Angeles"},{"name":"s","algorithm":"ALGORITHM_SLIDING","limit":"10","period":"60s","margin":"1s"},
			{"name":"t","algorithm":"ALGORITHM_CONCURRENCY","limit":"10","lease":"60s"}],"breaker":{"failureThreshold":5,"openFor":"60s","probeLease":"60s","disabled":false},
			"lease":"60s","retention":"86400s","maxAttempts":5,"timeZone":"Europe/Berlin"},"requestId":"r-3","ifVersion":"5"}`,
	},
}

// What who gets. A star says that the answer holds the secret.
const (
	yes       = "ok "
	yesAll    = "ok *"
	notFound  = "not_found NOT_FOUND"
	forbidden = "permission_denied ROLE_REQUIRED"
)

var coordinationRights = map[string]struct{ outsideUser, outsideService, eve, ada, service string }{
	"BeginRequest":    {notFound, notFound, notFound, yesAll, notFound}, // a service names the user
	"CompleteRequest": {notFound, notFound, notFound, yesAll, yesAll},
	"FailRequest":     {notFound, notFound, notFound, yesAll, yesAll},
	"GetRequest":      {notFound, notFound, notFound, yesAll, notFound}, // the same
	"ListRequests":    {notFound, notFound, yes, yesAll, yesAll},
	"Acquire":         {notFound, yes, yes, yes, yes},
	"Refund":          {forbidden, yes, forbidden, forbidden, yes},
	"ReleaseLease":    {notFound, yes, yes, yes, yes},
	"ReportLimits":    {notFound, yes, yes, yes, yes},
	"ReportSync":      {forbidden, yes, forbidden, forbidden, yes},
	"ReportLive":      {notFound, yes, notFound, yesAll, yesAll},
	"GetApiState":     {notFound, notFound, yes, yesAll, yesAll},
	"ListApis":        {yes, yes, yes, yesAll, yesAll},
	"GetUsage":        {notFound, notFound, yes, yes, yes},
	"ConfigureApi":    {forbidden, yes, forbidden, forbidden, yesAll},
	"WatchApi":        {notFound, notFound, yes, yesAll, yesAll},
}

// fillAPI makes the API c1, and what ada has in it.
func fillAPI(tb testing.TB, b *bundle, ada, service string) {
	tb.Helper()
	for _, step := range []struct{ method, body, as string }{
		{"ConfigureApi", `{"api":"c1","config":{"policies":[{"name":"at-once","algorithm":"ALGORITHM_CONCURRENCY","limit":"9"}]}}`, service},
		{"BeginRequest", `{"api":"c1","operation":"send","requestId":"r-1","holder":"` + secret + `"}`, ada},
		{"BeginRequest", `{"api":"c1","operation":"send","requestId":"r-2","holder":"` + secret + `"}`, ada},
		{"FailRequest", `{"api":"c1","requestId":"r-2","lease":"2.1","failure":"FAILURE_UNKNOWN","error":"` + secret + `"}`, ada},
		{"ReportLive", `{"api":"c1","sessionId":"s-1","epoch":"1","status":"LIVE_STATUS_CONNECTING","model":"` + secret + `"}`, ada},
		{"ReportLive", `{"api":"c1","sessionId":"s-2","epoch":"1","status":"LIVE_STATUS_FAILED","error":"` + secret + `"}`, ada},
		{"Acquire", `{"api":"c1","leaseId":"l-1"}`, ada},
	} {
		if got := b.call(tb, registered()[coordinationService+step.method], step.body, step.as); got.code != "ok" {
			tb.Fatalf("%s: %+v", step.method, got)
		}
	}
}

func isolateAPI(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	t.Helper()
	ada, eve, service := b.key(t, "ada"), b.key(t, "eve"), b.key(t, "")
	fillAPI(t, b, ada, service)
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	before := b.fingerprint(t, conn)
	body, rights := coordinationCases[procedure(m)].body, coordinationRights[string(m.Name())]
	check := func(who, want string, headers ...string) {
		t.Helper()
		got := b.call(t, m, body, headers...)
		code, tells := strings.CutSuffix(want, "*")
		if got.code+" "+got.reason != code || strings.Contains(got.body, secret) != tells {
			t.Errorf("%s is answered with %+v, want %q", who, got, want)
		}
		if got.code != "not_found" {
			return
		}
		// Nor can they tell whether it is there.
		nowhere := b.call(t, m, strings.ReplaceAll(body, `"c1"`, `"c-nowhere"`), headers...)
		if got.body != nowhere.body {
			t.Errorf("%s gets\n%s, and of what does not exist\n%s", who, got.body, nowhere.body)
		}
	}
	check("another tenant's user of that name", rights.outsideUser, b.tenant(t).key(t, "ada"))
	check("another tenant's service for that user", rights.outsideUser, b.tenant(t).key(t, ""), "Holdfast-User: ada")
	check("another tenant's service", rights.outsideService, b.tenant(t).key(t, ""))
	check("nobody", "unauthenticated CREDENTIAL_MISSING")
	check("another user for her", forbidden, eve, "Holdfast-User: ada")
	if diff := cmp.Diff(before, b.fingerprint(t, conn)); diff != "" {
		t.Errorf("they have changed something (-before +after):\n%s", diff)
	}
	check("another user", rights.eve, eve)
	check("a service for another user", rights.eve, service, "Holdfast-User: eve")
	check("the owner", rights.ada, ada)
	check("a service", rights.service, service)
}

// A user can end neither another's lease nor learn that it is there.
func TestLeasesOfOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada, eve, service := b.key(t, "ada"), b.key(t, "eve"), b.key(t, "")
	fillAPI(t, b, ada, service)
	release := registered()[coordinationService+"ReleaseLease"]
	for _, lease := range []string{"l-1", "nowhere"} {
		if got := b.call(t, release, `{"api":"c1","leaseId":"`+lease+`"}`, eve); got.code != "ok" || strings.Contains(got.body, "released") {
			t.Errorf("%s is released by another: %+v", lease, got)
		}
	}
	if got := b.call(t, release, `{"api":"c1","leaseId":"l-1"}`, ada); !strings.Contains(got.body, `"released":true`) {
		t.Errorf("her own: %+v", got)
	}
}
