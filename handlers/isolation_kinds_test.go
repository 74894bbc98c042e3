package handlers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"holdfast/db/dbtest"
	"holdfast/object"
)

// kindCase says what there is of a kind, and who is shown it.
type kindCase struct {
	// own and tenants: the user ada owns objects of the kind, and the whole tenant does.
	own, tenants bool
	// services: no user is shown anything of the kind, there or not.
	services bool
	// tells are RPCs that show users what the kind's objects hold. Where none shows ada's words, neither may the inspector.
	tells [][2]string
}

const (
	projectRPCs      = "/holdfast.project.v1.ProjectService/"
	conversationRPCs = "/holdfast.conversation.v1.ConversationService/"
	inspectRPCs      = "/holdfast.inspect.v1.InspectService/"
)

// kindCases has every kind.
var kindCases = map[string]kindCase{
	"conversation":         {own: true, tenants: true, tells: [][2]string{{conversationRPCs + "GetConversation", `{"conversationId":"c1"}`}}},
	"project":              {own: true, tenants: true, tells: [][2]string{{projectRPCs + "GetProject", `{"projectId":"c1"}`}}},
	"task":                 {own: true, tenants: true, tells: [][2]string{{projectRPCs + "GetTask", `{"taskId":"c1"}`}}},
	"preferences":          {own: true, tenants: true, tells: [][2]string{{projectRPCs + "GetPreferences", `{}`}}},
	"linear_issue":         {tenants: true},
	"linear_comment":       {tenants: true},
	"linear_attachment":    {tenants: true},
	"linear_agent_session": {tenants: true},
	"linear_endpoint":      {tenants: true, services: true, tells: [][2]string{{linearRPCs + "ListEndpoints", `{}`}}},
	"linear_delivery":      {tenants: true, services: true},
	"linear_sync":          {tenants: true, services: true},
	"state":                {own: true, tenants: true, tells: [][2]string{{stateRPCs + "Read", `{"reads":[{"ref":{"type":"note","name":"c1"},"queries":[{"collection":"items"}]}]}`}}},
	"state_type":           {tenants: true, services: true, tells: [][2]string{{stateRPCs + "ListTypes", `{}`}}},
	"user_sessions":        {own: true, tells: [][2]string{{sessionService + "ListSessions", `{}`}}},
	"session_settings":     {tenants: true, services: true, tells: [][2]string{{sessionService + "PutSessionSettings", `{}`}}},
	"api": {tenants: true, tells: [][2]string{
		{coordinationService + "ListCalls", `{"api":"c1"}`}, {coordinationService + "GetApi", `{"api":"c1"}`},
	}},
	"probe": {own: true, tenants: true}, // of these tests: it has timers that nothing runs
}

// inspections are the RPCs of the inspector about one object, whose kind, id, collection and timer stand for %[1]s to %[4]s.
var inspections = map[protoreflect.Name]struct {
	body string
	// list: what is not shown is left out. changes: the caller sees the tenant's object, and may not change it.
	// absent: what is not shown is not there, which is no error.
	list, changes, absent bool
}{
	"ListObjects":   {body: `{"kind":"%[1]s","prefix":"%[2]s"}`, list: true},
	"GetObject":     {body: `{"ref":{"kind":"%[1]s","objectId":"%[2]s"},"collection":"%[3]s"}`},
	"ListEvents":    {body: `{"ref":{"kind":"%[1]s","objectId":"%[2]s"}}`},
	"DiffObject":    {body: `{"ref":{"kind":"%[1]s","objectId":"%[2]s"},"from":{"version":"1"}}`},
	"RestoreObject": {body: `{"ref":{"kind":"%[1]s","objectId":"%[2]s"},"at":{"version":"1"}}`, changes: true},
	"DeleteObject":  {body: `{"ref":{"kind":"%[1]s","objectId":"%[2]s"}}`, changes: true, absent: true},
	"ListTimers":    {body: `{"kind":"%[1]s","objectId":"%[2]s"}`, list: true},
	"RetryTimer":    {body: `{"ref":{"kind":"%[1]s","objectId":"%[2]s"},"name":"%[4]s"}`, changes: true},
}

func TestEveryKindHasAnIsolationCase(t *testing.T) {
	t.Parallel()
	rt := object.NewRuntime(dbtest.New(t).DB, object.Config{})
	defer rt.Close(context.Background())
	services(t, rt)
	for _, kind := range rt.Kinds() {
		if _, ok := kindCases[kind]; !ok {
			t.Errorf("the kind %s has no isolation case", kind)
		}
	}
	for kind := range kindCases {
		if _, ok := rt.Kind(kind); !ok {
			t.Errorf("%s is an isolation case of no kind", kind)
		}
	}
	for p, m := range registered() {
		if _, ok := inspections[m.Name()]; strings.HasPrefix(p, inspectRPCs) && !ok && m.Name() != "EraseUser" { // which is about no object
			t.Errorf("%s is not asked about every kind", p)
		}
	}
}

// must is a call that has to succeed.
func (b *bundle) must(tb testing.TB, method, body string, headers ...string) {
	tb.Helper()
	if got := b.call(tb, registered()[method], body, headers...); got.code != "ok" {
		tb.Fatalf("%s %s: %+v", method, body, got)
	}
}

// fillKinds makes objects of every kind: c1 and others of the user ada, and others of the tenant in which she has a part.
func fillKinds(tb testing.TB, b *bundle, ada, service string) {
	tb.Helper()
	fillInspected(tb, b, ada)
	fillProject(tb, b, ada)
	fillLinear(tb, b)
	fillAPI(tb, b, ada, service)
	const words = `"` + secret + `"`
	b.must(tb, conversationRPCs+"CreateConversation", `{"conversationId":"everybodys","shared":true}`, service)
	b.must(tb, conversationRPCs+"Append", `{"conversationId":"everybodys","messages":[{"role":"ROLE_USER","text":`+words+`}]}`, ada)
	b.must(tb, conversationRPCs+"Append", `{"conversationId":"everybodys","voice":{"status":"VOICE_STATUS_LISTENING"},"requestId":`+words+`}`, ada)
	b.must(tb, projectRPCs+"PutProject", `{"projectId":"everybodys","project":{"title":`+words+`},"shared":true}`, ada)
	b.must(tb, projectRPCs+"PutTask", `{"taskId":"everybodys","task":{"title":`+words+`},"shared":true}`, ada)
	b.must(tb, projectRPCs+"UpdatePreferences", `{"preferences":{"voice":`+words+`}}`, ada)
	b.must(tb, projectRPCs+"UpdatePreferences", `{"preferences":{"voice":"aoede"},"tenantDefaults":true}`, service)
	b.must(tb, linearRPCs+"PutEndpoint", `{"endpoint":{"title":`+words+`},"addSecret":`+words+`,"requestId":"e-1"}`, service)
	b.must(tb, sessionService+"PutSessionSettings", `{"settings":{"maxSessions":2}}`, service)
	fillState(tb, b, ada)
	fillState(tb, b, service)
	b.must(tb, stateRPCs+"PutType", `{"type":{"type":"everybodys","stateSchema":{"title":`+words+`}}}`, service)
	conn, err := pgx.Connect(tb.Context(), b.SuperuserURL)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, kind := range []string{"linear_sync", "probe"} {
		_, err := conn.Exec(tb.Context(), `INSERT INTO holdfast.objects
			(tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state, create_time, update_time, activity_time, timers)
			VALUES ($1, $2::text, 'everybodys', '', 0, 1, 1, CASE $2::text WHEN 'probe' THEN '{}' ELSE jsonb_build_object('error', $3::text) END,
			now(), now(), now(), CASE $2::text WHEN 'probe' THEN jsonb_build_object($3::text, '2099-01-01T00:00:00Z') END)`, string(b.Tenant), kind, secret)
		if err != nil {
			tb.Fatal(err)
		}
	}
	_, err = conn.Exec(tb.Context(), `INSERT INTO holdfast.timers (tenant_id, kind, object_id, name, owner_id, due_time, next_time)
		VALUES ($1, 'probe', 'everybodys', $2, '', '2099-01-01T00:00:00Z', '2099-01-01T00:00:00Z')`, string(b.Tenant), secret)
	if err != nil {
		tb.Fatal(err)
	}
}

// asker is somebody who asks.
type asker struct {
	name    string
	headers []string
	// user of the tenant; empty: a service. outside: of another tenant.
	user    string
	outside bool
}

// askers are all sorts of callers.
func (b *bundle) askers(tb testing.TB, ada, service string) []asker {
	tb.Helper()
	token := func(user string) string {
		var in signedIn
		b.session(tb, "CreateSession", `{"user":"`+user+`","device":{"name":"`+map[string]string{"ada": secret}[user]+`"}}`, &in, service)
		return "Authorization: Bearer " + in.Tokens.AccessToken
	}
	other := b.tenant(tb)
	theirs := other.key(tb, "")
	return []asker{
		{name: "the user by key", headers: []string{ada}, user: "ada"},
		{name: "the user by session", headers: []string{token("ada")}, user: "ada"},
		{name: "a service for the user", headers: []string{service, "Holdfast-User: ada"}, user: "ada"},
		{name: "another user by key", headers: []string{b.key(tb, "eve")}, user: "eve"},
		{name: "another user by session", headers: []string{token("eve")}, user: "eve"},
		{name: "a service for another user", headers: []string{service, "Holdfast-User: eve"}, user: "eve"},
		{name: "a service", headers: []string{service}},
		{name: "another tenant's service", headers: []string{theirs}, outside: true},
		{name: "another tenant's user of that name", headers: []string{other.key(tb, "ada")}, user: "ada", outside: true},
		{name: "another tenant's service for that user", headers: []string{theirs, "Holdfast-User: ada"}, user: "ada", outside: true},
	}
}

func getable(m protoreflect.MethodDescriptor) bool {
	o, _ := m.Options().(*descriptorpb.MethodOptions)
	return o.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
}

// ask is a call by POST, and by GET where that may be.
func (b *bundle) ask(tb testing.TB, m protoreflect.MethodDescriptor, body string, headers ...string) []reply {
	tb.Helper()
	got := []reply{b.call(tb, m, body, headers...)}
	if getable(m) {
		got = append(got, b.get(tb, m, body, headers...))
	}
	return got
}

// The inspector shows a user what the user owns, and tells no more than the RPCs of the kind do: of what is another user's
// nothing, of what is the tenant's nothing, and of what only services may see not even whether it is there.
func TestTheInspectorShowsUsersWhatTheyOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada, service := b.key(t, "ada"), b.key(t, "")
	fillKinds(t, b, ada, service)
	askers := b.askers(t, ada, service)
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	before := withoutActivity(b.fingerprint(t, conn))

	for kind, c := range kindCases {
		var list struct {
			Objects []struct{ ObjectID, Owner string }
		}
		b.inspect(t, "ListObjects", fmt.Sprintf(`{"kind":%q}`, kind), &list, service)
		own, tenants := false, false
		for _, o := range list.Objects {
			if o.Owner != "eve" {
				own, tenants = own || o.Owner == "ada", tenants || o.Owner == ""
				b.inspectAs(t, kind, c, o.ObjectID, o.Owner, askers, service)
			}
		}
		if own != c.own || tenants != c.tenants {
			t.Errorf("of the kind %s there is something of ada's: %t, of the tenant's: %t; want %t and %t", kind, own, tenants, c.own, c.tenants)
		}
	}
	if diff := cmp.Diff(before, withoutActivity(b.fingerprint(t, conn))); diff != "" {
		t.Errorf("something has changed (-before +after):\n%s", diff)
	}
}

// withoutActivity leaves out the sessions of those who ask: that they are active is written once a minute.
func withoutActivity(tables map[string]string) map[string]string {
	out := map[string]string{}
	for name, rows := range tables {
		out[name] = strings.Join(slices.DeleteFunc(strings.Split(rows, "\n"), func(row string) bool { return strings.Contains(row, ",user_sessions,") }), "\n")
	}
	return out
}

func (b *bundle) inspect(tb testing.TB, method, body string, into any, headers ...string) {
	tb.Helper()
	got := b.call(tb, registered()[inspectRPCs+method], body, headers...)
	if err := json.Unmarshal([]byte(got.body), into); err != nil || got.code != "ok" {
		tb.Fatalf("%s: %+v, %v", method, got, err)
	}
}

// inspectAs inspects an object as everybody, by every RPC.
func (b *bundle) inspectAs(t *testing.T, kind string, c kindCase, id, owner string, askers []asker, service string) {
	t.Helper()
	var whole struct{ Collections []string }
	b.inspect(t, "GetObject", fmt.Sprintf(`{"ref":{"kind":%q,"objectId":%q}}`, kind, id), &whole, service)
	const notFound, forbidden = "not_found NOT_FOUND", "permission_denied ROLE_REQUIRED"
	for _, who := range askers {
		told := false // ada's words, by the kind's own RPCs
		for _, rpc := range c.tells {
			for _, got := range b.ask(t, registered()[rpc[0]], rpc[1], who.headers...) {
				told = told || strings.Contains(got.body, secret)
				if got.code == "permission_denied" && !c.services {
					t.Errorf("%s is refused %s, and not what the inspector shows of the kind %s", who.name, rpc[0], kind)
				}
			}
		}
		owns := who.user == owner && owner != "" && !who.outside
		for name, i := range inspections {
			m := registered()[inspectRPCs+string(name)]
			want := notFound
			switch {
			case who.user != "" && c.services:
				want = forbidden
			case i.list && (owns || who.user == "" && !who.outside):
				want = "ok "
			case i.list:
				want = "ok {}"
			case who.user == "" && !who.outside, owns:
				want = ""
			case !who.outside && owner == "" && i.changes:
				want = forbidden
			}
			if want == notFound && i.absent {
				want = "ok {}"
			}
			if want == "" && i.changes {
				continue // it would succeed
			}
			for _, collection := range append(slices.Clone(whole.Collections), "") {
				if !strings.Contains(i.body, "%[3]s") && collection != "" {
					continue
				}
				body := fmt.Sprintf(i.body, kind, id, collection, secret)
				for _, got := range b.ask(t, m, body, who.headers...) {
					is := got.code + " " + got.reason
					if want == "ok {}" {
						is += got.body
					}
					if want != "" && is != want || want == "" && (got.code == "not_found" || got.code == "permission_denied") {
						t.Errorf("%s: %s %s of %q is answered with %+v, want %q", who.name, name, body, owner, got, want)
					}
					words := strings.Contains(got.body, secret) && (!owns || !told && kind != "probe")
					if who.user != "" && (words || !owns && strings.Contains(got.body, `"ada"`)) {
						t.Errorf("%s: %s %s of %q tells %s", who.name, name, body, owner, got.body)
					}
					if want == notFound {
						nowhere := b.call(t, m, fmt.Sprintf(i.body, kind, "nowhere", collection, secret), who.headers...)
						if nowhere.body != got.body {
							t.Errorf("%s: %s %s of %q is answered with\n%s, and of what does not exist with\n%s", who.name, name, body, owner, got.body, nowhere.body)
						}
					}
				}
			}
		}
	}
}

// Secrets that are sealed for an object's id were removed must not come back.
func TestWhatIsSealedForItsObjectIsNotRestored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada, service := b.key(t, "ada"), b.key(t, "")
	fillKinds(t, b, ada, service)
	b.signIn(t, "ada")
	for _, kind := range []string{"linear_endpoint", "user_sessions", "api"} {
		var list struct{ Objects []struct{ ObjectID string } }
		b.inspect(t, "ListObjects", fmt.Sprintf(`{"kind":%q}`, kind), &list, service)
		if len(list.Objects) == 0 {
			t.Fatalf("there is no %s", kind)
		}
		body := fmt.Sprintf(`{"ref":{"kind":%q,"objectId":%q},"at":{"version":"1"}}`, kind, list.Objects[0].ObjectID)
		if got := b.call(t, registered()[inspectRPCs+"RestoreObject"], body, service); got.code != "invalid_argument" {
			t.Errorf("the restore of %s is answered with %+v", kind, got)
		}
	}
}
