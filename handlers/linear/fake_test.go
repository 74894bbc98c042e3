package linear

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vektah/gqlparser/v2"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/gqlerror"
	"github.com/vektah/gqlparser/v2/validator"
)

// fakeLinear is a GraphQL server with the shapes of Linear's: it checks each query against the schema that the client is
// generated from, pages by cursor with the newest first, and fails as Linear does.
type fakeLinear struct {
	url    string
	client *http.Client
	schema *ast.Schema

	mu       sync.Mutex // guards what follows
	issues   map[string]map[string]any
	comments map[string]map[string]any
	steps    map[string]map[string]any // of agents' sessions
	attached map[string]map[string]any
	requests int
	// next answers the next requests instead, in turn; nil: as usual.
	next []http.HandlerFunc
	// teams that the key does not see.
	hidden map[string]bool
	// spoilt issues cannot be answered: an answer that has one is an error.
	spoilt map[string]bool
	writes writes
	// onPage is called before a page is answered, with its number.
	onPage func(int)
	pages  int
}

const linearKey = "lin_api_key"

func newFakeLinear(t testing.TB) *fakeLinear {
	t.Helper()
	text, err := os.ReadFile("../../third_party/linear/schema.graphql")
	if err != nil {
		t.Fatal(err)
	}
	l := &fakeLinear{issues: map[string]map[string]any{}, comments: map[string]map[string]any{}, attached: map[string]map[string]any{}, steps: map[string]map[string]any{}, hidden: map[string]bool{}, spoilt: map[string]bool{}}
	l.schema, err = gqlparser.LoadSchema(&ast.Source{Name: "schema.graphql", Input: string(text)})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(l)
	t.Cleanup(s.Close)
	l.url, l.client = s.URL, s.Client()
	return l
}

// put makes an issue, or changes it; updated is in seconds after linearAt.
func (l *fakeLinear) put(id, title string, updated int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.issues[id] = map[string]any{
		"id": id, "identifier": "ENG-" + id, "previousIdentifiers": []any{}, "number": 1, "url": "https://linear.app/acme/issue/" + id, "title": title,
		"description": nil, "priority": 2, "priorityLabel": "High", "estimate": nil, "dueDate": nil, "createdAt": stamp(0), "updatedAt": stamp(updated),
		"startedAt": nil, "completedAt": nil, "canceledAt": nil, "archivedAt": nil, "trashed": nil, "labelIds": []any{"l1", "l2"},
		"labels": map[string]any{"nodes": []any{map[string]any{"id": "l1", "name": "Bug", "color": "#f00"}}}, "branchName": "eng-" + id,
		"relations": map[string]any{"nodes": []any{}}, "inverseRelations": map[string]any{"nodes": []any{}}, "projectMilestone": nil,
		"state": map[string]any{"id": "s-started", "name": "started", "type": "started", "color": "#fff"}, "team": map[string]any{"id": "eng", "key": "ENG", "name": "eng"},
		"assignee": nil, "delegate": nil, "creator": nil, "project": nil, "cycle": nil, "parent": nil,
	}
}

// then makes the next requests be answered otherwise.
func (l *fakeLinear) then(h ...http.HandlerFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = append(l.next, h...)
}

func (l *fakeLinear) asked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.requests
}

// fails answers with GraphQL errors, as Linear does.
func fails(status int, code string, header map[string]string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{"data": nil, "errors": gqlerror.List{{
			Message: "the words of Linear", Extensions: map[string]any{"code": code, "type": strings.ToLower(code), "userError": true},
		}}})
	}
}

// rateLimited is Linear's answer where a budget is exhausted: HTTP 400, and the end of it in milliseconds.
func rateLimited(until time.Time) http.HandlerFunc {
	return fails(http.StatusBadRequest, "RATELIMITED", map[string]string{
		"X-RateLimit-Requests-Limit": "2500", "X-RateLimit-Requests-Remaining": "0", "X-RateLimit-Requests-Reset": strconv.FormatInt(until.UnixMilli(), 10),
		"X-RateLimit-Complexity-Remaining": "5000", "X-RateLimit-Complexity-Reset": strconv.FormatInt(until.Add(time.Hour).UnixMilli(), 10),
	})
}

func (l *fakeLinear) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	l.requests++
	var instead http.HandlerFunc
	if len(l.next) > 0 {
		instead, l.next = l.next[0], l.next[1:]
	}
	l.mu.Unlock()
	if instead != nil {
		instead(w, r)
		return
	}
	if r.Header.Get("Authorization") != linearKey {
		fails(http.StatusUnauthorized, "AUTHENTICATION_ERROR", nil)(w, r)
		return
	}
	var req struct {
		Query, OperationName string
		Variables            map[string]any
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		fails(http.StatusBadRequest, "GRAPHQL_PARSE_FAILED", nil)(w, r)
		return
	}
	if _, errs := gqlparser.LoadQuery(l.schema, req.Query); len(errs) > 0 {
		fails(http.StatusBadRequest, "GRAPHQL_VALIDATION_FAILED", nil)(w, r)
		return
	}
	switch req.OperationName {
	case "IssueCreate", "IssueUpdate", "CommentCreate", "AgentActivityCreate":
		query, _ := gqlparser.LoadQuery(l.schema, req.Query)
		if _, err := validator.VariableValues(l.schema, query.Operations.ForName(req.OperationName), req.Variables); err != nil {
			fails(http.StatusBadRequest, "GRAPHQL_VALIDATION_FAILED", nil)(w, r)
			return
		}
		l.mutate(w, r, req.OperationName, req.Variables)
	case "Changes", "ChangedIDs":
		l.since(w, r, req.OperationName, req.Variables)
	case "ByID":
		l.mu.Lock()
		defer l.mu.Unlock()
		data := map[string]any{}
		for list, all := range l.lists() {
			if req.Variables[list] != true {
				continue
			}
			nodes := []map[string]any{}
			for _, id := range req.Variables["ids"].([]any) {
				if i, ok := all[id.(string)]; ok && l.sees(list, i, nil) {
					nodes = append(nodes, i)
				}
			}
			data[list] = map[string]any{"nodes": nodes}
		}
		l.answer(w, r, data)
	case "TeamsByID":
		l.mu.Lock()
		defer l.mu.Unlock()
		nodes := []any{}
		for _, id := range req.Variables["ids"].([]any) {
			if !l.hidden[id.(string)] {
				nodes = append(nodes, map[string]any{"id": id})
			}
		}
		json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"teams": map[string]any{"nodes": nodes}}})
	}
}

func teamOf(issue map[string]any) string {
	team, _ := issue["team"].(map[string]any)
	id, _ := team["id"].(string)
	return id
}

// change sets properties of an issue, which may be what Linear never answers.
func (l *fakeLinear) change(id string, properties map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.Copy(l.issues[id], properties)
}

// lists are what queries read, by the names of their fields.
func (l *fakeLinear) lists() map[string]map[string]map[string]any {
	return map[string]map[string]map[string]any{issues: l.issues, comments: l.comments, attachments: l.attached, agentActivities: l.steps}
}

// comment makes a comment, or changes it; updated is in seconds after linearAt.
func (l *fakeLinear) comment(id, issue, body string, updated int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.comments[id] = map[string]any{
		"id": id, "body": body, "url": "https://linear.app/acme/issue/" + issue + "#comment-" + id, "createdAt": stamp(0), "updatedAt": stamp(updated),
		"editedAt": nil, "resolvedAt": nil, "quotedText": nil, "issue": map[string]any{"id": issue, "team": map[string]any{"id": "eng"}}, "parent": nil,
		"user": map[string]any{"id": "u1", "name": "Grace"}, "externalUser": nil, "botActor": nil, "agentSession": nil,
	}
}

// attach makes a link of an issue, or changes it.
func (l *fakeLinear) attach(id, issue, url string, updated int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attached[id] = map[string]any{
		"id": id, "title": "A pull request", "subtitle": "open", "url": url, "sourceType": "github", "metadata": map[string]any{"status": "open"},
		"createdAt": stamp(0), "updatedAt": stamp(updated), "issue": map[string]any{"id": issue, "team": map[string]any{"id": "eng"}}, "creator": nil,
	}
}

// answer answers with lists, or with the error that the first thing which is spoilt makes of the whole answer.
func (l *fakeLinear) answer(w http.ResponseWriter, r *http.Request, data map[string]any) {
	for list := range data {
		nodes, _ := data[list].(map[string]any)["nodes"].([]map[string]any)
		if slices.ContainsFunc(nodes, func(i map[string]any) bool { return l.spoilt[fmt.Sprint(i["id"])] }) {
			fails(http.StatusOK, "INTERNAL_SERVER_ERROR", nil)(w, r)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"data": data})
}

// answer answers with a page of issues, and no other things.
func answer(w http.ResponseWriter, page map[string]any) {
	none := map[string]any{"nodes": []any{}, "pageInfo": map[string]any{"hasNextPage": false, "endCursor": nil}}
	json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{issues: page, comments: none, attachments: none}})
}

// since pages with the newest first, and the cursor is the last thing's place: what is updated meanwhile moves in front.
func (l *fakeLinear) since(w http.ResponseWriter, r *http.Request, operation string, v map[string]any) {
	l.mu.Lock()
	l.pages++
	n, onPage := l.pages, l.onPage
	l.mu.Unlock()
	if onPage != nil {
		onPage(n)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	data := map[string]any{}
	for list, things := range l.lists() {
		if v[list] != true {
			continue
		}
		nodes, info, ok := l.page(list, things, v)
		if !ok {
			fails(http.StatusBadRequest, "INVALID_INPUT", nil)(w, r)
			return
		}
		if operation == "ChangedIDs" {
			for i := range nodes {
				nodes[i] = map[string]any{"id": nodes[i]["id"]}
			}
			data[list] = map[string]any{"nodes": nodes, "pageInfo": info}
			continue
		}
		data[list] = map[string]any{"nodes": nodes, "pageInfo": info}
	}
	if operation == "ChangedIDs" {
		json.NewEncoder(w).Encode(map[string]any{"data": data})
		return
	}
	l.answer(w, r, data)
}

func (l *fakeLinear) page(list string, things map[string]map[string]any, v map[string]any) (nodes []map[string]any, info map[string]any, ok bool) {
	from, err := time.Parse(time.RFC3339Nano, fmt.Sprint(v[list+"Since"]))
	if err != nil {
		return nil, nil, false
	}
	place := func(i map[string]any) string { return fmt.Sprint(i["updatedAt"], i["id"]) }
	nodes = []map[string]any{}
	for _, i := range things {
		updated, _ := i["updatedAt"].(string)
		if t, err := time.Parse(time.RFC3339Nano, updated); (err != nil || t.Year() < 1970 || !t.Before(from)) && l.sees(list, i, v["team"]) {
			nodes = append(nodes, i)
		}
	}
	slices.SortFunc(nodes, func(a, b map[string]any) int { return strings.Compare(place(b), place(a)) })
	if c, ok := v[list+"After"].(string); ok && c != "" {
		b, err := base64.StdEncoding.DecodeString(c)
		if err != nil {
			return nil, nil, false
		}
		nodes = slices.DeleteFunc(nodes, func(i map[string]any) bool { return place(i) >= string(b) })
	}
	info = map[string]any{"hasNextPage": false, "endCursor": nil}
	if first := int(v["first"].(float64)); len(nodes) > first {
		nodes = nodes[:first]
		info["hasNextPage"] = true
	}
	if len(nodes) > 0 {
		info["endCursor"] = base64.StdEncoding.EncodeToString([]byte(place(nodes[len(nodes)-1])))
	}
	return nodes, info, true
}

// sees reports whether a thing is of a team that the key sees, and an issue of one that the query asks for.
func (l *fakeLinear) sees(list string, thing map[string]any, team any) bool {
	if list != issues {
		of, _ := thing["issue"].(map[string]any)
		return !l.hidden[teamOf(of)]
	}
	if l.hidden[teamOf(thing)] {
		return false
	}
	t, _ := team.(map[string]any)
	among, _ := t["id"].(map[string]any)
	of, ok := among["in"].([]any)
	return !ok || slices.Contains(of, any(teamOf(thing)))
}
