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

// An API is the whole tenant's; what one user keeps from another is their calls, live sessions and leases. The API c1
// is configured by a service, and ada has a call, a live session and a lease, each with the secret in it.
var coordinationArea = area{fuzzing: coordinationFuzzing, cases: func() map[string]isolationCase {
	cases := map[string]isolationCase{}
	for p, c := range coordinationCases {
		c.test = isolateAPI
		cases[p] = c
	}
	return cases
}()}

var coordinationCases = map[string]isolationCase{
	coordinationService + "BeginCall":      {body: `{"api":"c1","operation":"send","key":"r-2","reconcile":true}`},
	coordinationService + "FinishCall":     {body: `{"api":"c1","key":"r-1","fencingToken":1,"completed":{"httpStatus":200}}`},
	coordinationService + "GetCall":        {body: `{"api":"c1","key":"r-1"}`},
	coordinationService + "ListCalls":      {body: `{"api":"c1"}`},
	coordinationService + "Acquire":        {body: `{"api":"c1","permits":"1"}`},
	coordinationService + "AcquireAndWait": {body: `{"acquire":{"api":"c1","permits":"1"}}`},
	coordinationService + "Release":        {body: `{"api":"c1","grantId":"l-1"}`},
	coordinationService + "Report":         {body: `{"api":"c1","response":{"httpStatus":429,"headers":{"Retry-After":"1"}}}`},
	coordinationService + "GetApi":         {body: `{"api":"c1","usageDays":30}`},
	coordinationService + "ListApis":       {body: `{}`},
	coordinationService + "UpdateApi":      {body: `{"api":"c1","config":{}}`},
}

var coordinationFuzzing = fuzzing{
	seed: [][2]string{
		{"UpdateApi", `{"api":"c1","config":{"policies":[{"name":"p","algorithm":"ALGORITHM_GCRA","limit":"99","period":"60s","dimension":"requests"},{"name":"u","algorithm":"ALGORITHM_SLIDING","limit":"99","period":"60s","scope":"SCOPE_USER"},{"name":"at-once","algorithm":"ALGORITHM_CONCURRENCY","limit":"9"}]}}`},
		{"BeginCall", `{"api":"c1","operation":"send","key":"r-1"}`},
		{"BeginCall", `{"api":"c1","operation":"send","key":"r-2"}`},
		{"FinishCall", `{"api":"c1","key":"r-2","fencingToken":1,"failed":{"failure":"FAILURE_UNKNOWN"}}`},
		{"Acquire", `{"api":"c1","grantId":"l-1"}`},
	},
	reads:   map[string][2]string{"": {"GetApi", `{"api":"c1"}`}},
	service: map[string]string{"UpdateApi": "ok", "Release": "ok"},
	full: map[string]string{
		"BeginCall": `{"requestId":"b","ifVersion":"5","api":"c1","key":"r-2","operation":"send","fingerprint":"","holder":"h","timeout":"30s","permits":"1","cost":"5","reconcile":true,"owner":"ada"}`,
		"FinishCall": `{"requestId":"r-4","ifVersion":"5","api":"c1","key":"r-1","fencingToken":1,"failed":{"failure":"FAILURE_RETRYABLE","outcome":{"httpStatus":503,"headers":{"a":"b"},"body":"Ym9keQ==","truncated":true,"reference":"r"},"error":"e","retryAfter":"30s","notSent":true,"notDown":true},
			"response":{"httpStatus":503,"headers":{"Retry-After":"30","X-RateLimit-Remaining":"5","X-RateLimit-Reset":"30"},"body":"e30="},"owner":"ada"}`,
		"GetCall":        `{"api":"c1","key":"r-1","owner":"ada"}`,
		"ListCalls":      `{"api":"c1","statuses":["CALL_STATUS_IN_FLIGHT","CALL_STATUS_UNKNOWN"],"operation":"send","pageSize":5}`,
		"Acquire":        `{"api":"c1","operation":"send","scope":"SCOPE_USER","permits":"1","cost":"5","policies":["p","u","at-once"],"grantId":"l-2","peek":false}`,
		"AcquireAndWait": `{"acquire":{"api":"c1","operation":"send","scope":"SCOPE_USER","permits":"1","cost":"5","policies":["p","u","at-once"],"grantId":"l-3","peek":false},"maxWait":"1s"}`,
		"Release":        `{"api":"c1","grantId":"l-1","unused":true}`,
		"Report": `{"requestId":"r-3","ifVersion":"5","api":"c1","grantId":"l-1","live":{"providerSessionId":"s-1","session":{"status":"LIVE_STATUS_GOING_AWAY","epoch":2,"owner":"ada","model":"m","openTime":"2026-11-23T10:00:00Z",
			"goAwayTime":"2026-11-23T10:00:00Z","closeCode":1011,"error":"e","failures":1},"timeLeft":"50s","ttl":"60s"}}`,
		"GetApi":   `{"api":"c1","pageSize":5,"usageDays":7}`,
		"ListApis": `{"pageSize":5}`,
		"UpdateApi": `{"api":"c1","config":{"policies":[{"name":"p","algorithm":"ALGORITHM_GCRA","limit":"10","period":"60s","burst":"5","scope":"SCOPE_USER","unit":"UNIT_COST","operations":["send"],"dimension":"requests"},
			{"name":"q","algorithm":"ALGORITHM_CALENDAR","limit":"10","calendar":"CALENDAR_DAY","timeZone":"America/Los_Angeles"},{"name":"s","algorithm":"ALGORITHM_SLIDING","limit":"10","period":"60s","margin":"1s"},
			{"name":"t","algorithm":"ALGORITHM_CONCURRENCY","limit":"10","lease":"60s"}],"breaker":{"failureThreshold":5,"openFor":"60s","probeLease":"60s","disabled":false,"failureRate":0.5,"minCalls":20,"window":"60s","slowAfter":"5s","probes":2,"perOperation":true},
			"lease":"60s","retention":"86400s","maxAttempts":5,"timeZone":"Europe/Berlin"},"updateMask":"policies,breaker.openFor","clear":["CLEAR_PAUSE","CLEAR_LIMITS"],"dryRun":false,"requestId":"r-3","ifVersion":"5"}`,
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
	"BeginCall":      {notFound, notFound, notFound, yesAll, notFound}, // a service names the owner
	"FinishCall":     {notFound, notFound, notFound, yesAll, notFound}, // the same
	"GetCall":        {notFound, notFound, notFound, yesAll, notFound}, // the same
	"ListCalls":      {notFound, notFound, yes, yesAll, yesAll},
	"Acquire":        {notFound, yes, yes, yes, yes},
	"AcquireAndWait": {notFound, yes, yes, yes, yes},
	"Release":        {notFound, yes, yes, yes, yes},
	"Report":         {notFound, yes, yes, yes, yes},
	"GetApi":         {notFound, notFound, yes, yesAll, yesAll},
	"ListApis":       {yes, yes, yes, yesAll, yesAll},
	"UpdateApi":      {forbidden, yes, forbidden, forbidden, yesAll},
}

// fillAPI makes the API c1, and what ada has in it.
func fillAPI(tb testing.TB, b *bundle, ada, service string) {
	tb.Helper()
	for _, step := range []struct{ method, body, as string }{
		{"UpdateApi", `{"api":"c1","config":{"policies":[{"name":"at-once","algorithm":"ALGORITHM_CONCURRENCY","limit":"9"}]}}`, service},
		{"BeginCall", `{"api":"c1","operation":"send","key":"r-1","holder":"` + secret + `"}`, ada},
		{"BeginCall", `{"api":"c1","operation":"send","key":"r-2","holder":"` + secret + `"}`, ada},
		{"FinishCall", `{"api":"c1","key":"r-2","fencingToken":1,"failed":{"failure":"FAILURE_UNKNOWN","error":"` + secret + `"}}`, ada},
		{"Report", `{"api":"c1","live":{"providerSessionId":"s-1","session":{"epoch":1,"status":"LIVE_STATUS_CONNECTING","model":"` + secret + `"}}}`, ada},
		{"Report", `{"api":"c1","live":{"providerSessionId":"s-2","session":{"epoch":1,"status":"LIVE_STATUS_FAILED","error":"` + secret + `"}}}`, ada},
		{"Acquire", `{"api":"c1","grantId":"l-1"}`, ada},
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

// A user can neither end another's lease, live session or call, nor learn that it is there. A service can, in the owner's name.
func TestLeasesOfOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada, eve, service := b.key(t, "ada"), b.key(t, "eve"), b.key(t, "")
	fillAPI(t, b, ada, service)
	release := registered()[coordinationService+"Release"]
	for _, lease := range []string{"l-1", "nowhere"} {
		if got := b.call(t, release, `{"api":"c1","grantId":"`+lease+`"}`, eve); got.code != "ok" || strings.Contains(got.body, "released") {
			t.Errorf("%s is released by another: %+v", lease, got)
		}
	}
	if got := b.call(t, release, `{"api":"c1","grantId":"l-1"}`, ada); !strings.Contains(got.body, `"released":true`) {
		t.Errorf("her own: %+v", got)
	}
	const live, sync = `{"api":"c1","live":{"providerSessionId":"s-1","session":{"epoch":2,"status":"LIVE_STATUS_OPEN"}}}`, `{"api":"c1","sync":{"resource":"issues","state":{}}}`
	const unused, finish = `{"api":"c1","grantId":"l-1","unused":true}`, `{"api":"c1","key":"r-1","fencingToken":1,"completed":{},"owner":"ada"}`
	for _, tt := range []struct{ method, body, as, want string }{
		{"Report", live, eve, notFound},
		{"Report", live, ada, yes},
		{"Report", live, service, yes},
		{"Report", sync, eve, forbidden},
		{"Report", sync, ada, forbidden},
		{"Report", sync, service, yes},
		{"Release", unused, eve, forbidden},
		{"Release", unused, ada, forbidden},
		{"Release", unused, service, yes},
		{"FinishCall", finish, eve, forbidden},
		{"FinishCall", finish, service, yes},
	} {
		if got := b.call(t, registered()[coordinationService+tt.method], tt.body, tt.as); got.code+" "+got.reason != tt.want {
			t.Errorf("%s %s: %+v, want %s", tt.method, tt.body, got, tt.want)
		}
	}
}
