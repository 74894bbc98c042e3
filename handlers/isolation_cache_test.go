package handlers_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// cached are bodies about what fillKinds makes, for every call by GET that is about one object. Others are asked with {}.
var cached = map[protoreflect.Name]string{
	"GetProject": `{"projectId":"c1"}`, "GetTask": `{"taskId":"c1"}`, "ListIssues": `{"filter":{"issueIds":["c1"]}}`,
	"ListComments": `{"filter":{"issueId":"c1"}}`, "ListAttachments": `{"issueId":"c1"}`, "ListIssueHistory": `{"issueId":"c1"}`, "ListAgentActivities": `{"agentSessionId":"c1"}`,
	"ListObjects": `{"kind":"conversation"}`, "ListEvents": `{"ref":{"kind":"conversation","objectId":"c1"}}`,
	"DiffObject":      `{"ref":{"kind":"conversation","objectId":"c1"},"from":{"version":"1"}}`,
	"GetConversation": `{"conversationId":"c1","messageLimit":9}`, "ListMessages": `{"conversationId":"c1"}`, "ListRecords": `{"conversationId":"c1"}`,
	"GetContextWindow": `{"conversationId":"c1"}`,
}

// browser is a private cache that knows an answer by its URL and looks at no other header, as Chromium's asks for a 304.
type browser struct {
	*bundle

	kept map[string]answerKept
}

type answerKept struct{ tag, body string }

// get is what the page is shown.
func (b *browser) get(t *testing.T, m protoreflect.MethodDescriptor, body string, who asker) string {
	t.Helper()
	q := url.Values{"connect": {"v1"}, "encoding": {"json"}, "message": {body}}
	path := procedure(m) + "?" + q.Encode()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.url+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range who.headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	kept, known := b.kept[path]
	if known {
		req.Header.Set("If-None-Match", kept.tag)
	}
	res, err := b.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode == http.StatusNotModified {
		return kept.body
	}
	tag, control := res.Header.Get("ETag"), res.Header.Values("Cache-Control")
	switch {
	case tag == "" && !slices.Equal(control, []string{"no-store"}), tag != "" && !slices.Equal(control, []string{"private, no-cache"}):
		t.Errorf("%s of %s: ETag %q, Cache-Control %q", m.Name(), who.name, tag, control)
	case tag != "":
		b.kept[path] = answerKept{tag, string(text)}
	}
	return string(text)
}

// Whoever uses a browser, and whatever it has kept of others, each sees what the server tells them now.
func TestABrowserShowsNobodyWhatAnotherWasTold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada, service := b.key(t, "ada"), b.key(t, "")
	fillKinds(t, b, ada, service)
	other := b.tenant(t)
	fillKinds(t, other, other.key(t, "ada"), other.key(t, ""))
	askers := append(b.askers(t, ada, service), asker{name: "another tenant's user with the same", headers: []string{other.key(t, "ada")}},
		asker{name: "another tenant's service with the same", headers: []string{other.key(t, "")}})
	page := &browser{b, map[string]answerKept{}}
	look := func(when string) {
		t.Helper()
		for range 2 {
			for _, m := range registered() {
				if !getable(m) {
					continue
				}
				body := cached[m.Name()]
				if body == "" {
					body = `{}`
				}
				for _, who := range askers {
					is, want := page.get(t, m, body, who), b.call(t, m, body, who.headers...)
					if !sameJSON(t, is, want.body) {
						t.Errorf("%s: %s shows %s\n%s\nwhich is told\n%s", when, m.Name(), who.name, is, want.body)
					}
				}
			}
		}
	}
	look("at first")
	b.must(t, conversationRPCs+"UpdateConversation", `{"conversationId":"c1","conversation":{"title":"changed"},"updateMask":"title"}`, ada)
	b.must(t, projectRPCs+"PutProject", `{"projectId":"c1","project":{"title":"changed"},"updateMask":"title"}`, ada)
	look("after a change")
	// Another life, at the same version.
	b.must(t, projectRPCs+"DeleteProject", `{"projectId":"c1"}`, ada)
	b.must(t, projectRPCs+"PutProject", `{"projectId":"c1","project":{"title":"first"}}`, ada)
	look("in another life")
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, table := range []string{"objects", "entries", "events"} {
		_, err := conn.Exec(t.Context(), "DELETE FROM holdfast."+table+" WHERE tenant_id = $1 AND kind = 'project' AND object_id = 'c1'", string(b.Tenant))
		if err != nil {
			t.Fatal(err)
		}
	}
	b.call(t, registered()[projectRPCs+"GetProject"], `{"projectId":"c1"}`, service) // the server forgets it
	b.must(t, projectRPCs+"PutProject", `{"projectId":"c1","project":{"title":"first"}}`, ada)
	for _, title := range []string{"second", "third", "first"} { // to the version of the earlier life
		b.must(t, projectRPCs+"PutProject", `{"projectId":"c1","project":{"title":"`+title+`"}}`, ada)
	}
	look("after it was swept")
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		t.Fatalf("no JSON: %s, %s", a, b)
	}
	return reflect.DeepEqual(x, y)
}

// What depends on the clock or holds a secret cannot be asked for by GET, so no browser is ever told to keep it.
func TestSecretsAndClocksAreNotForGet(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada, service := b.key(t, "ada"), b.key(t, "")
	fillKinds(t, b, ada, service)
	for _, p := range []string{
		liveRPCs + "ConnectLive", liveRPCs + "ListLiveFrames", sessionService + "GetSession", sessionService + "ListSessions",
		sessionService + "PutSessionSettings", linearRPCs + "ListEndpoints", inspectRPCs + "GetObject",
		inspectRPCs + "ListTimers", coordinationService + "GetCall", coordinationService + "ListCalls", coordinationService + "GetApi",
		coordinationService + "ListApis", sessionService + "CreateSession", sessionService + "RefreshSession",
	} {
		m := registered()[p]
		if getable(m) {
			t.Errorf("%s has no side effects, says its proto", p)
		}
		q := url.Values{"connect": {"v1"}, "encoding": {"json"}, "message": {`{}`}}
		if got := b.do(t, http.MethodGet, p+"?"+q.Encode(), http.NoBody, service); got.status != http.StatusMethodNotAllowed {
			t.Errorf("%s by GET: %+v", p, got)
		}
	}
}
