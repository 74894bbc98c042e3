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
)

// fakeLinear is a GraphQL server with the shapes of Linear's: it checks each query against the schema that the client is
// generated from, pages by cursor with the newest first, and fails as Linear does.
type fakeLinear struct {
	url    string
	client *http.Client
	schema *ast.Schema

	mu       sync.Mutex // guards what follows
	issues   map[string]map[string]any
	requests int
	// next answers the next requests instead, in turn; nil: as usual.
	next []http.HandlerFunc
	// teams that the key does not see.
	hidden map[string]bool
	// spoilt issues cannot be answered: an answer that has one is an error.
	spoilt map[string]bool
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
	l := &fakeLinear{issues: map[string]map[string]any{}, hidden: map[string]bool{}, spoilt: map[string]bool{}}
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
		"labels": map[string]any{"nodes": []any{map[string]any{"id": "l1", "name": "Bug"}}},
		"state":  map[string]any{"id": "s-started", "name": "started", "type": "started"}, "team": map[string]any{"id": "eng", "key": "ENG", "name": "eng"},
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
	case "IssuesSince", "IssueIDsSince":
		l.since(w, r, req.OperationName, req.Variables)
	case "IssuesByID":
		l.mu.Lock()
		defer l.mu.Unlock()
		nodes := []map[string]any{}
		for _, id := range req.Variables["ids"].([]any) {
			if i, ok := l.issues[id.(string)]; ok && !l.hidden[teamOf(i)] {
				nodes = append(nodes, i)
			}
		}
		l.answer(w, r, nodes, nil)
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

// answer answers with issues, or with the error that the first one which is spoilt makes of the whole answer.
func (l *fakeLinear) answer(w http.ResponseWriter, r *http.Request, nodes []map[string]any, info map[string]any) {
	if slices.ContainsFunc(nodes, func(i map[string]any) bool { return l.spoilt[fmt.Sprint(i["id"])] }) {
		fails(http.StatusOK, "INTERNAL_SERVER_ERROR", nil)(w, r)
		return
	}
	answer(w, map[string]any{"nodes": append([]map[string]any{}, nodes...), "pageInfo": info})
}

func answer(w http.ResponseWriter, issues map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"issues": issues}})
}

// since pages with the newest first, and the cursor is the last issue's place: what is updated meanwhile moves in front.
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
	from, err := time.Parse(time.RFC3339Nano, v["since"].(string))
	if err != nil {
		fails(http.StatusBadRequest, "INVALID_INPUT", nil)(w, r)
		return
	}
	place := func(i map[string]any) string { return fmt.Sprint(i["updatedAt"], i["id"]) }
	var all []map[string]any
	for _, i := range l.issues {
		updated, _ := i["updatedAt"].(string)
		if t, err := time.Parse(time.RFC3339Nano, updated); (err != nil || t.Year() < 1970 || !t.Before(from)) && l.sees(i, v["team"]) {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b map[string]any) int { return strings.Compare(place(b), place(a)) })
	if c, ok := v["after"].(string); ok && c != "" {
		b, err := base64.StdEncoding.DecodeString(c)
		if err != nil {
			fails(http.StatusBadRequest, "INVALID_INPUT", nil)(w, r)
			return
		}
		all = slices.DeleteFunc(all, func(i map[string]any) bool { return place(i) >= string(b) })
	}
	info := map[string]any{"hasNextPage": false, "endCursor": nil}
	if first := int(v["first"].(float64)); len(all) > first {
		all = all[:first]
		info["hasNextPage"] = true
	}
	if len(all) > 0 {
		info["endCursor"] = base64.StdEncoding.EncodeToString([]byte(place(all[len(all)-1])))
	}
	if operation == "IssueIDsSince" {
		for i := range all {
			all[i] = map[string]any{"id": all[i]["id"]}
		}
		answer(w, map[string]any{"nodes": append([]map[string]any{}, all...), "pageInfo": info})
		return
	}
	l.answer(w, r, all, info)
}

// sees reports whether an issue is of a team that the key sees, and that the query asks for.
func (l *fakeLinear) sees(issue map[string]any, team any) bool {
	if l.hidden[teamOf(issue)] {
		return false
	}
	t, _ := team.(map[string]any)
	among, _ := t["id"].(map[string]any)
	of, ok := among["in"].([]any)
	return !ok || slices.Contains(of, any(teamOf(issue)))
}
