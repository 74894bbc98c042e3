package handlers_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// A user who is erased leaves nothing to read in the tenant's APIs: not in the ledger, its references and bodies, not in
// limits, leases and live sessions, and not in the journal by which changes of them could be undone. Others keep theirs.
func TestAnErasedUserLeavesNothingInAPIs(t *testing.T) {
	t.Parallel()
	for _, user := range []string{"ada", `ada-"lovelace"-4711`} {
		for _, deleted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/deleted=%t", user, deleted), func(t *testing.T) {
				t.Parallel()
				testErasureInAPIs(t, user, deleted)
			})
		}
	}
}

func testErasureInAPIs(t *testing.T, user string, deleted bool) {
	t.Helper()
	b := setup(t)
	const (
		needle          = "Zq7-erasable-4f1d"
		inspectRPC      = "/holdfast.inspect.v1.InspectService/"
		conversationRPC = "/holdfast.conversation.v1.ConversationService/"
	)
	service, bob := b.key(t, ""), b.key(t, "bob")
	ada := []string{service, "Holdfast-User: " + user}
	must := func(path, body string, as ...string) string {
		t.Helper()
		got := b.do(t, "POST", path, strings.NewReader(strings.ReplaceAll(body, "$", needle)), append(as, "Content-Type: application/json")...)
		if got.code != "ok" {
			t.Fatalf("%s %s: %+v", path, body, got)
		}
		return got.body
	}
	api := func(method, body string, as ...string) string {
		t.Helper()
		return must(coordinationService+method, body, as...)
	}
	api("UpdateApi", `{"api":"c1","config":{"policies":[{"name":"at-once","algorithm":"ALGORITHM_CONCURRENCY","limit":"9"},
		{"name":"mine","algorithm":"ALGORITHM_CONCURRENCY","limit":"9","scope":"SCOPE_USER"},{"name":"u","algorithm":"ALGORITHM_SLIDING","limit":"99","period":"60s","scope":"SCOPE_USER"}]}}`, service)
	body := base64.StdEncoding.EncodeToString([]byte("a body with " + needle + " in it"))
	outcome := `{"httpStatus":200,"headers":{"x-$":"$"},"body":"` + body + `","reference":"ref-$"}`
	const begin = `{"api":"c1","operation":"send","key":"$-1","holder":"$","fingerprint":"$","requestId":"$"}`
	api("BeginCall", begin, ada...)
	api("FinishCall", `{"api":"c1","key":"$-1","fencingToken":1,"completed":`+outcome+`,"requestId":"$"}`, ada...)
	api("BeginCall", `{"api":"c1","operation":"send","key":"$-2","holder":"$"}`, ada...)
	api("FinishCall", `{"api":"c1","key":"$-2","fencingToken":1,"failed":{"failure":"FAILURE_UNKNOWN","error":"$"}}`, ada...)
	api("BeginCall", `{"api":"c1","operation":"send","key":"$-3"}`, ada...)
	api("FinishCall", `{"api":"c1","key":"$-3","fencingToken":1,"completed":`+outcome+`,"owner":`+fmt.Sprintf("%q", user)+`,"requestId":"s-1"}`, service) // a service on its own behalf
	api("BeginCall", `{"api":"c1","operation":"send","key":"$-4","timeout":"3600s"}`, ada...)
	api("Report", `{"api":"c1","live":{"providerSessionId":"$-live","session":{"epoch":1,"status":"LIVE_STATUS_CONNECTING","model":"$"}},"requestId":"$-5"}`, ada...)
	api("Report", `{"api":"c1","live":{"providerSessionId":"$-gone","session":{"epoch":1,"status":"LIVE_STATUS_FAILED","error":"$"},"ttl":"60s"}}`, ada...)
	api("Report", `{"api":"c1","live":{"providerSessionId":"$-gone","session":{"epoch":2,"status":"LIVE_STATUS_OPEN","model":"$"}}}`, ada...)
	api("Acquire", `{"api":"c1","grantId":"$-lease"}`, ada...)
	api("Release", `{"api":"c1","grantId":"$-lease"}`, ada...)
	api("Acquire", `{"api":"c1","grantId":"$-lease"}`, ada...)

	api("BeginCall", `{"api":"c1","operation":"send","key":"b-1"}`, bob)
	api("Acquire", `{"api":"c1","grantId":"b-lease"}`, bob)
	const bobs = `{"api":"c1","key":"b-1","fencingToken":1,"completed":{"httpStatus":200,"reference":"bobs"},"requestId":"b-2"}`
	finished := api("FinishCall", bobs, bob)

	// A request id may have anything in it, on what is not an API as well.
	must(conversationRPC+"CreateConversation", `{"conversationId":"shared","shared":true}`, service)
	must(conversationRPC+"Append", `{"conversationId":"shared","messages":[{"role":"ROLE_USER","text":"hello"}],"requestId":"$-9"}`, ada...)

	if deleted {
		must(inspectRPC+"DeleteObject", `{"ref":{"kind":"api","objectId":"c1"}}`, service)
	}
	must(inspectRPC+"EraseUser", fmt.Sprintf(`{"user":%q}`, user), service)

	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	b.searchTables(t, conn, needle)
	if deleted {
		return
	}
	for _, as := range []string{service, bob} {
		for _, call := range [][2]string{
			{coordinationService + "GetApi", `{"api":"c1","usageDays":30}`},
			{coordinationService + "ListCalls", `{"api":"c1"}`},
			{inspectRPC + "GetObject", `{"ref":{"kind":"api","objectId":"c1"},"collection":"calls"}`},
			{inspectRPC + "ListEvents", `{"ref":{"kind":"api","objectId":"c1"}}`},
			{inspectRPC + "GetObject", `{"ref":{"kind":"api","objectId":"c1"},"at":{"version":"6"}}`},
			{inspectRPC + "DiffObject", `{"ref":{"kind":"api","objectId":"c1"},"from":{"version":"1"},"to":{"version":"9"}}`},
		} {
			if got := b.do(t, "POST", call[0], strings.NewReader(call[1]), as, "Content-Type: application/json"); strings.Contains(got.body, needle) || got.code == "internal" {
				t.Errorf("%s: %+v", call[0], got)
			}
		}
	}
	if got := api("GetCall", `{"api":"c1","key":"b-1"}`, bob); !strings.Contains(got, "bobs") {
		t.Errorf("bob's call is %s", got)
	}
	if again := api("FinishCall", bobs, bob); again != finished {
		t.Errorf("bob's retry is answered with %s, first with %s", again, finished)
	}
	if got := api("BeginCall", begin, ada...); !strings.Contains(got, "DECISION_PROCEED") {
		t.Errorf("ada begins again with %s", got)
	}
	if changed := must(inspectRPC+"EraseUser", `{"user":"nobody-such"}`, service); strings.Contains(changed, "changed") {
		t.Errorf("a user who was never there changed %s", changed)
	}
}

// searchTables looks for a text in all rows of a tenant, as it is, in hexadecimal and in base64, wherever that begins.
func (b *bundle) searchTables(t *testing.T, conn *pgx.Conn, needle string) {
	t.Helper()
	forms := []string{needle, hex.EncodeToString([]byte(needle))}
	for pad := range 3 {
		encoded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", pad) + needle))
		forms = append(forms, encoded[4:len(encoded)-4])
	}
	rows, err := conn.Query(t.Context(), `SELECT table_name::text FROM information_schema.columns WHERE table_schema = 'holdfast' AND column_name = 'tenant_id'`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		rows, err := conn.Query(t.Context(), "SELECT to_jsonb(x)::text FROM holdfast."+pgx.Identifier{table}.Sanitize()+" x WHERE tenant_id = $1", string(b.Tenant))
		if err != nil {
			t.Fatal(err)
		}
		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			for _, form := range forms {
				if strings.Contains(text, form) {
					t.Errorf("%s has %q in %s", table, form, text)
				}
			}
		}
	}
}
