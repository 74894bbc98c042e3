package handlers_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"holdfast/db/dbtest"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/gen/holdfast/linear/v1/linearv1connect"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	"holdfast/gen/holdfast/project/v1/projectv1connect"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers"
	"holdfast/handlers/conversation"
	"holdfast/handlers/coordination"
	"holdfast/handlers/handlertest"
	"holdfast/handlers/linear"
	"holdfast/handlers/project"
	"holdfast/handlers/session"
	"holdfast/handlers/state"
	"holdfast/handlers/watch"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/seal"
)

// bundle is a test's server with the real managers, on a real Postgres, and a fresh tenant.
type bundle struct {
	*dbtest.Bundle

	handler http.Handler
	url     string
	http    *http.Client
	// names are what stands for ids that the server made: the cases name them $session and the like.
	names map[string]string
}

// body is a case's, with the ids in place.
func (b *bundle) body(of string) string {
	for name, id := range b.names {
		of = strings.ReplaceAll(of, name, id)
	}
	return of
}

// nowhere is a body about what does not exist.
func (b *bundle) nowhere(of string) string {
	for name, id := range b.names {
		of = strings.ReplaceAll(of, name, strings.Repeat("a", len(id)))
	}
	return strings.ReplaceAll(of, `"c1"`, `"c-nowhere"`)
}

// services are those that holdfast serves; sessions is the manager that the authenticator works with.
func services(tb testing.TB, rt *object.Runtime) (_ []handlers.Service, sessions *session.Manager) {
	tb.Helper()
	box, err := seal.NewBox(seal.NewKey())
	if err != nil {
		tb.Fatal(err)
	}
	conversations, apis, issues := conversation.Register(rt), coordination.Register(rt), linear.Register(rt)
	talk := conversation.NewManager(conversations, conversation.Options{Box: box, Now: time.Now})
	sessions = session.NewManager(session.Register(rt), talk, box)
	projects := project.NewManager(project.Options{Kinds: project.Register(rt), Runtime: rt, Conversations: conversations, APIs: apis, Issues: issues.Issues, PresentIssue: linear.PresentIssue})
	tracker := linear.NewManager(linear.Options{Kinds: issues, Runtime: rt, Seal: box})
	coordinator := coordination.NewManager(apis, time.Now)
	states := state.NewManager(rt, state.Register(rt))
	page := watch.NewManager(watch.Options{Explain: handlers.Explain, Now: time.Now},
		talk.Sources(), sessions.Sources(), projects.Sources(), tracker.Sources(), coordinator.Sources(), states.Sources())
	return []handlers.Service{
		handlers.NewService[conversationv1connect.ConversationServiceHandler](
			conversationv1connect.ConversationServiceName, conversationv1connect.NewConversationServiceHandler, talk),
		handlers.NewService[livev1connect.LiveServiceHandler](livev1connect.LiveServiceName, livev1connect.NewLiveServiceHandler, talk),
		handlers.NewService[projectv1connect.ProjectServiceHandler](
			projectv1connect.ProjectServiceName, projectv1connect.NewProjectServiceHandler, projects),
		handlers.NewService[linearv1connect.LinearServiceHandler](
			linearv1connect.LinearServiceName, linearv1connect.NewLinearServiceHandler, tracker),
		handlers.NewService[coordinationv1connect.CoordinationServiceHandler](
			coordinationv1connect.CoordinationServiceName, coordinationv1connect.NewCoordinationServiceHandler, coordinator),
		handlers.NewService[sessionv1connect.SessionServiceHandler](
			sessionv1connect.SessionServiceName, sessionv1connect.NewSessionServiceHandler, sessions),
		handlers.NewService[watchv1connect.WatchServiceHandler](watchv1connect.WatchServiceName, watchv1connect.NewWatchServiceHandler, page),
		stateService(states),
		inspectService(rt),
	}, sessions
}

func setup(tb testing.TB) *bundle {
	tb.Helper()
	b, _ := setupRuntime(tb)
	return b
}

// setupRuntime is setup for tests that also write past the managers.
func setupRuntime(tb testing.TB) (*bundle, *object.Runtime) {
	tb.Helper()
	d := dbtest.New(tb)
	rt := object.NewRuntime(d.DB, object.Config{})
	services, sessions := services(tb, rt)
	server := handlertest.Serve(tb, d, rt, handlers.Options{
		Services: services,
		Auth: handlers.NewAuthenticator(handlers.AuthConfig{
			Find: d.DB.FindCredentials, Touch: sessions.Touch, Refused: sessions.Refused, Now: time.Now,
			FreeFailures: 1 << 30, // the tests present many, all from one address
		}),
	})
	transport := &http.Transport{}
	tb.Cleanup(transport.CloseIdleConnections)
	return &bundle{d, server.Handler, server.URL, &http.Client{Transport: transport}, map[string]string{}}, rt
}

// tenant is a fresh tenant on the same server.
func (b *bundle) tenant(tb testing.TB) *bundle {
	tb.Helper()
	return &bundle{dbtest.New(tb), b.handler, b.url, b.http, map[string]string{}}
}

// key makes an API key of a user of the tenant, or of a service, and returns it as a header.
func (b *bundle) key(tb testing.TB, user identity.User) string {
	tb.Helper()
	return "Authorization: Bearer " + handlertest.Key(tb, b.Bundle, user)
}

// reply is how a call was answered: its code is "ok" or the error's.
type reply struct {
	status             int
	code, reason, body string
}

// call invokes a method by POST with a JSON body, as curl would; headers are "Name: value". Of a stream it is the first
// message or the error.
func (b *bundle) call(tb testing.TB, method protoreflect.MethodDescriptor, body string, headers ...string) reply {
	tb.Helper()
	if !method.IsStreamingServer() {
		return b.do(tb, http.MethodPost, procedure(method), strings.NewReader(body), append(headers, "Content-Type: application/json")...)
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))
	return b.do(tb, http.MethodPost, procedure(method), bytes.NewReader(append(frame, body...)), append(headers, "Content-Type: application/connect+json")...)
}

// get is call for a method without side effects, by GET.
func (b *bundle) get(tb testing.TB, method protoreflect.MethodDescriptor, body string, headers ...string) reply {
	tb.Helper()
	q := url.Values{"connect": {"v1"}, "encoding": {"json"}, "message": {body}}
	return b.do(tb, http.MethodGet, procedure(method)+"?"+q.Encode(), http.NoBody, headers...)
}

func (b *bundle) do(tb testing.TB, verb, path string, body io.Reader, headers ...string) reply {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, verb, b.url+path, body)
	if err != nil {
		tb.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	res, err := b.http.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	var text []byte
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/connect+") {
		text, err = firstFrame(res.Body)
	} else {
		text, err = io.ReadAll(res.Body)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return parse(tb, res.StatusCode, text)
}

// firstFrame reads the first message of a stream. The end of a stream is a message too, of which it is the error.
func firstFrame(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	text := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(r, text); err != nil || head[0]&2 == 0 {
		return text, err
	}
	var end struct {
		Error json.RawMessage `json:"error"`
	}
	err := json.Unmarshal(text, &end)
	return end.Error, err
}

func parse(tb testing.TB, status int, text []byte) reply {
	tb.Helper()
	r := reply{status: status, code: "ok", body: string(text)}
	var e struct {
		Code    string `json:"code"`
		Details []struct {
			Type  string `json:"type"`
			Debug struct {
				Reason string `json:"reason"`
			} `json:"debug"`
		} `json:"details"`
	}
	// An answer has no code of its own: what has one is an error.
	if len(text) > 0 && json.Unmarshal(text, &e) == nil && e.Code != "" {
		r.code = e.Code
		if len(e.Details) > 0 {
			r.reason = e.Details[0].Debug.Reason
		}
		if errorv1.Reason_value["REASON_"+r.reason] == 0 || e.Details[0].Type != "holdfast.error.v1.Problem" {
			tb.Errorf("an error without a Problem: %s", text)
		}
	} else if status != http.StatusOK {
		r.code = fmt.Sprint("HTTP ", status)
	}
	return r
}

func procedure(m protoreflect.MethodDescriptor) string {
	return fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
}

// registered are the methods of every service of ours in the registry, by procedure.
func registered() map[string]protoreflect.MethodDescriptor {
	all := map[string]protoreflect.MethodDescriptor{}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(f.Package()), "holdfast.") {
			return true
		}
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				all[procedure(methods.Get(j))] = methods.Get(j)
			}
		}
		return true
	})
	return all
}

// isolationCase says how to reach for what another has: the object c1, of the user ada of some tenant.
type isolationCase struct {
	// body is a request about c1 that its owner may make.
	body string
	// outside and inside are what a caller of another tenant gets, and another user of the same tenant; "": not_found.
	outside, inside string
	// reads: it changes nothing, and cannot be called by GET all the same.
	reads bool
	// tenants is what a user gets where c1 is the whole tenant's; "": what it is asked for.
	tenants string
	// test takes the place of all that, where an RPC is about something that is not c1 or not ada's.
	test func(t *testing.T, b *bundle, m protoreflect.MethodDescriptor)
}

const (
	isEmpty = "ok, and empty" // a list, in which there is nothing of another's
	isOwn   = "ok, his own"   // what is made has the same id, in another tenant
	// What every user of the tenant may see.
	isShared = "ok, the tenant's"
	// Whoever has it, an id is taken.
	isTaken    = "already_exists ALREADY_EXISTS"
	isNotFound = "not_found NOT_FOUND"
)

// area is what the isolation of one proto package's services is tested with.
type area struct {
	// fill makes, as ada, what the cases are about: an object c1 that holds the secret.
	fill func(tb testing.TB, b *bundle, ada string)
	// alone: none of it can be the whole tenant's, or the cases have tests of their own for that.
	alone bool
	// cases has every RPC of the package.
	cases map[string]isolationCase

	fuzzing fuzzing
}

// areas has every proto package with a service. Each has a file of its own, isolation_<area>_test.go.
var areas = map[protoreflect.FullName]area{
	"holdfast.conversation.v1": conversationArea,
	"holdfast.live.v1":         liveArea,
	"holdfast.project.v1":      projectArea,
	"holdfast.linear.v1":       linearArea,
	"holdfast.coordination.v1": coordinationArea,
	"holdfast.session.v1":      sessionArea,
	"holdfast.state.v1":        stateArea,
	"holdfast.inspect.v1":      inspectArea,
	"holdfast.watch.v1":        watchArea,
}

// isolationCases are those of all areas.
var isolationCases = func() map[string]isolationCase {
	all := map[string]isolationCase{}
	for _, a := range areas {
		maps.Copy(all, a.cases)
	}
	return all
}()

// unaccounted are the methods without a case, and the cases without a method.
func unaccounted[M any](methods map[string]M, cases map[string]isolationCase) []string {
	var out []string
	for p := range methods {
		if _, ok := cases[p]; !ok {
			out = append(out, p+" has no isolation case")
		}
	}
	for p := range cases {
		if _, ok := methods[p]; !ok {
			out = append(out, p+" is an isolation case of no method")
		}
	}
	slices.Sort(out)
	return out
}

func TestEveryRPCHasAnIsolationCase(t *testing.T) {
	t.Parallel()
	methods := registered()
	for _, problem := range unaccounted(methods, isolationCases) {
		t.Error(problem)
	}
	// This test can fail.
	fewer := maps.Clone(isolationCases)
	delete(fewer, conversationv1connect.ConversationServiceGetConversationProcedure)
	if got := unaccounted(methods, fewer); len(got) != 1 {
		t.Errorf("without a case: %q", got)
	}

	// A service whose code no test is linked with is in no registry.
	files, err := filepath.Glob("../proto/holdfast/*/*/*.proto")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	services := 0
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		pkg := regexp.MustCompile(`(?m)^package (\S+);`).FindSubmatch(text)
		for _, s := range regexp.MustCompile(`(?m)^service (\w+)`).FindAllSubmatch(text, -1) {
			services++
			full := protoreflect.FullName(fmt.Sprintf("%s.%s", pkg[1], s[1]))
			if _, err := protoregistry.GlobalFiles.FindDescriptorByName(full); err != nil {
				t.Errorf("%s of %s: import its manager here, and serve it in setup", full, name)
			}
		}
	}
	if services == 0 {
		t.Error("no services were found in proto/")
	}
}

// fingerprint is all that the database has of a tenant.
func (b *bundle) fingerprint(t *testing.T, conn *pgx.Conn) map[string]string {
	t.Helper()
	// Usage is flushed whenever it is, and says nothing of what a call may do.
	rows, err := conn.Query(t.Context(), "SELECT table_name FROM information_schema.columns WHERE table_schema = 'holdfast' AND column_name = 'tenant_id' AND table_name <> 'usage'")
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || !slices.Contains(tables, "objects") || !slices.Contains(tables, "entries") {
		t.Fatal(tables, err)
	}
	all := map[string]string{}
	for _, table := range tables {
		var content string
		sql := "SELECT coalesce(string_agg(r::text, E'\\n' ORDER BY r::text), '') FROM holdfast." + pgx.Identifier{table}.Sanitize() + " r WHERE tenant_id = $1"
		if err := conn.QueryRow(t.Context(), sql, string(b.Tenant)).Scan(&content); err != nil {
			t.Fatal(err)
		}
		all[table] = content
	}
	return all
}

// secret is what nobody but ada and her tenant's services may read.
const secret = "the words of ada"

func TestIsolation(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for p, m := range registered() {
		if c, ok := isolationCases[p]; ok { // else TestEveryRPCHasAnIsolationCase says so
			t.Run(string(m.Name()), func(t *testing.T) {
				t.Parallel()
				if c.test != nil {
					c.test(t, b.tenant(t), m)
				} else {
					b.tenant(t).isolate(t, m, c)
				}
			})
			if c.test == nil && !areas[m.ParentFile().Package()].alone {
				t.Run(string(m.Name())+"/of the tenant", func(t *testing.T) {
					t.Parallel()
					b.tenant(t).isolateTenants(t, m, c)
				})
			}
		}
	}
}

// isolate calls a method as everybody who may not do so, then as those who may.
func (b *bundle) isolate(t *testing.T, m protoreflect.MethodDescriptor, c isolationCase) {
	t.Helper()
	ada, eve, service, revoked := b.key(t, "ada"), b.key(t, "eve"), b.key(t, ""), b.key(t, "ada")
	areas[m.ParentFile().Package()].fill(t, b, ada)
	body := b.body(c.body)
	if err := b.Operator.RevokeKey(t.Context(), b.Tenant, strings.Split(revoked, "_")[1]); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	eves := b.signIn(t, "eve")
	before := b.fingerprint(t, conn)

	const (
		forAda, forEve = "Holdfast-User: ada", "Holdfast-User: eve"
		unknown        = "Authorization: Bearer hfk_abcdefghijkl2345_-AbCdEfGhIjKlMnOpQrStUvWxYz0123456789_-AbCd"
		missing        = "unauthenticated CREDENTIAL_MISSING"
		refused        = "unauthenticated CREDENTIAL_INVALID"
	)
	for _, caller := range []struct {
		name    string
		headers []string
		want    string
	}{
		{"another tenant's service", []string{b.tenant(t).key(t, "")}, c.outside},
		{"another tenant's user of that name", []string{b.tenant(t).key(t, "ada")}, c.outside},
		{"another tenant's service for that user", []string{b.tenant(t).key(t, ""), forAda}, c.outside},
		{"another user", []string{eve}, c.inside},
		{"another user's session", []string{eves}, c.inside},
		{"a service for another user", []string{service, forEve}, c.inside},
		{"another user for her", []string{eve, forAda}, "permission_denied ROLE_REQUIRED"},
		{"a service for nobody", []string{service, "Holdfast-User: "}, "invalid_argument FIELD_INVALID"},
		{"a service for two", []string{service, forEve, forAda}, "invalid_argument FIELD_INVALID"},
		{"nobody", nil, missing},
		{"nobody for her", []string{forAda}, missing},
		{"garbage", []string{"Authorization: Bearer hfk_x"}, refused},
		{"another scheme", []string{"Authorization: Basic YWRhOg=="}, refused},
		{"an unknown key", []string{unknown}, refused},
		{"a revoked key", []string{revoked}, refused},
		{"her key with another's secret", []string{ada[:len(ada)-43] + eve[len(eve)-43:]}, refused},
	} {
		for _, got := range b.ask(t, m, body, caller.headers...) {
			want := caller.want
			switch want {
			case "":
				want = "not_found NOT_FOUND"
			case isEmpty, isOwn, isShared:
				want = "ok "
			}
			if got.code+" "+got.reason != want || caller.want == isEmpty && got.body != "{}" {
				t.Errorf("%s is answered with %+v, want %s", caller.name, got, want)
			}
			if strings.Contains(got.body, secret) && caller.want != isShared {
				t.Errorf("%s is told %s", caller.name, got.body)
			}
			if caller.want != "" || c.outside == isOwn {
				continue // an id that is taken is told
			}
			// Nor can he tell whether it is there.
			nowhere := b.call(t, m, b.nowhere(c.body), caller.headers...)
			if got.body != nowhere.body {
				t.Errorf("%s gets\n%s, and of what does not exist\n%s", caller.name, got.body, nowhere.body)
			}
		}
	}
	if diff := gocmp.Diff(before, b.fingerprint(t, conn)); diff != "" {
		t.Errorf("they have changed something (-before +after):\n%s", diff)
	}

	// The request is a good one: who may make it can. A change shows, so the fingerprint would have shown theirs.
	if c.outside == isOwn {
		return // they could
	}
	if c.reads || getable(m) || m.IsStreamingServer() {
		for name, headers := range map[string][]string{"the owner": {ada}, "a service": {service}, "a service for the owner": {service, forAda}} {
			if got := b.call(t, m, body, headers...); got.code != "ok" || !strings.Contains(got.body, secret) {
				t.Errorf("%s is answered with %+v", name, got)
			}
		}
		return
	}
	if got := b.call(t, m, body, ada); got.code != "ok" {
		t.Errorf("the owner is answered with %+v", got)
	}
	if gocmp.Equal(before, b.fingerprint(t, conn)) {
		t.Error("the owner's call has changed nothing")
	}
}

// signIn makes a session of a user, and returns its token as a header.
func (b *bundle) signIn(tb testing.TB, user string) string {
	tb.Helper()
	var in signedIn
	b.session(tb, "CreateSession", `{"user":"`+user+`"}`, &in, b.key(tb, ""))
	return "Authorization: Bearer " + in.Tokens.AccessToken
}

// isolateTenants calls a method about a c1 that is the whole tenant's, as users of it and as others.
func (b *bundle) isolateTenants(t *testing.T, m protoreflect.MethodDescriptor, c isolationCase) {
	t.Helper()
	service := b.key(t, "")
	areas[m.ParentFile().Package()].fill(t, b, service)
	body := b.body(c.body)
	for _, caller := range []struct {
		name    string
		headers []string
		want    string
	}{
		{"another tenant's service", []string{b.tenant(t).key(t, "")}, c.outside},
		{"another tenant's user", []string{b.tenant(t).key(t, "eve")}, c.outside},
		{"a user", []string{b.key(t, "eve")}, cmp.Or(c.tenants, "ok ")},
		{"a user's session", []string{b.signIn(t, "eve")}, cmp.Or(c.tenants, "ok ")},
		{"a service for a user", []string{service, "Holdfast-User: eve"}, cmp.Or(c.tenants, "ok ")},
	} {
		want := caller.want
		switch want {
		case "":
			want = isNotFound
		case isEmpty, isOwn, isShared:
			want = "ok "
		}
		for _, got := range b.ask(t, m, body, caller.headers...) {
			if got.code+" "+got.reason != want || caller.want == isEmpty && got.body != "{}" {
				t.Errorf("%s is answered with %+v, want %s", caller.name, got, want)
			}
		}
		if c.tenants == "" && !c.reads && !getable(m) && !m.IsStreamingServer() && want == "ok " && c.outside != isOwn {
			return // a second time may be another thing
		}
	}
}

// What a service makes for itself belongs to the whole tenant, and to nobody else.
func TestSharedConversations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	create := registered()[conversationv1connect.ConversationServiceCreateConversationProcedure]
	get := registered()[conversationv1connect.ConversationServiceGetConversationProcedure]
	if got := b.call(t, create, `{"conversationId":"c1","shared":true}`, b.key(t, "")); got.code != "ok" {
		t.Fatalf("%+v", got)
	}
	for name, tt := range map[string]struct{ header, want string }{
		"a user": {b.key(t, "eve"), "ok"}, "another service": {b.key(t, ""), "ok"},
		"another tenant's user": {b.tenant(t).key(t, "eve"), "not_found"}, "another tenant's service": {b.tenant(t).key(t, ""), "not_found"},
	} {
		if got := b.call(t, get, `{"conversationId":"c1"}`, tt.header); got.code != tt.want {
			t.Errorf("%s is answered with %+v", name, got)
		}
	}
}

// Calls that come together share a transaction, whose row-level security is open for all of them: there the runtime alone
// keeps one from what is another's.
func TestIsolationOfCallsThatShareATransaction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada, eve, service := b.key(t, "ada"), b.key(t, "eve"), b.key(t, "")
	conversationArea.fill(t, b, ada)
	var wait sync.WaitGroup
	const callers, each = 8, 8
	for _, name := range []string{"GetConversation", "Append", "ListMessages", "EditMessages"} {
		p := "/holdfast.conversation.v1.ConversationService/" + name
		m, body := registered()[p], isolationCases[p].body
		for range callers {
			wait.Go(func() {
				for range each {
					if got := b.call(t, m, body, eve); got.code != "not_found" || strings.Contains(got.body, secret) {
						t.Errorf("%s of another user is answered with %+v", name, got)
					}
				}
			})
			if name == "DeleteConversation" {
				continue
			}
			for _, header := range []string{ada, service} {
				wait.Go(func() {
					for range each {
						if got := b.call(t, m, body, header); got.code != "ok" {
							t.Errorf("%s is answered with %+v", name, got)
						}
					}
				})
			}
		}
	}
	wait.Wait()
	m := registered()[conversationv1connect.ConversationServiceGetConversationProcedure]
	if got := b.call(t, m, `{"conversationId":"c1"}`, ada); !strings.Contains(got.body, fmt.Sprintf(`"messageCount":%d,`, filledMessages+2*callers*each)) {
		t.Errorf("in the end: %s", got.body)
	}
}
