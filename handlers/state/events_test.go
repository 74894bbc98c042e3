package state

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	statev1 "holdfast/gen/holdfast/state/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/handlertest"
	"holdfast/identity"
	"holdfast/jsonpb"
)

// source reads Server-Sent Events as EventSource does.
type source struct {
	t      *testing.T
	lines  *bufio.Reader
	res    *http.Response
	lastID string
	beats  int
	close  func()
}

// open asks for events; what is refused is returned as "status REASON".
func (b *bundle) open(t *testing.T, user identity.User, path, lastID string) (s *source, refused string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	res, err := handlertest.Client(t, b.Bundle, user, nil).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(res.Body)
		var e struct {
			Details []struct{ Debug struct{ Reason string } }
		}
		if err := json.Unmarshal(text, &e); err != nil || len(e.Details) == 0 {
			t.Fatalf("%s: %d %s", path, res.StatusCode, text)
		}
		return nil, fmt.Sprint(res.StatusCode, " ", e.Details[0].Debug.Reason)
	}
	if kind := res.Header.Get("Content-Type"); kind != "text/event-stream" || res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s is answered with %v", path, res.Header)
	}
	return &source{t: t, lines: bufio.NewReader(res.Body), res: res, lastID: lastID, close: cancel}, ""
}

func (b *bundle) events(t *testing.T, user identity.User, path, lastID string) *source {
	t.Helper()
	s, refused := b.open(t, user, path, lastID)
	if s == nil {
		t.Fatal(path, refused)
	}
	return s
}

// line is the next line of the stream; ok is false at its end.
func (s *source) line() (string, bool) {
	line, err := s.lines.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err == nil
}

// next is the data of the next event, of a name or none; ok is false at the end of the stream.
func (s *source) next() (name, data string, ok bool) {
	s.t.Helper()
	for {
		line, ok := s.line()
		switch field, value, _ := strings.Cut(line, ": "); {
		case !ok:
			return name, data, false
		case line == ":":
			s.beats++
		case line == "" && data != "":
			return name, data, true
		case field == "id":
			s.lastID = value
		case field == "event":
			name = value
		case field == "data":
			data += value
		case line != "":
			s.t.Fatalf("%q is no line of an event", line)
		}
	}
}

func (s *source) change() *watchv1.Changed {
	s.t.Helper()
	name, data, ok := s.next()
	c := &watchv1.Changed{}
	if _, err := jsonpb.New().Unmarshal([]byte(data), c, 0); err != nil || !ok || name != "" {
		s.t.Fatalf("event %q: %s, %t, %v", name, data, ok, err)
	}
	return c
}

// keys are those that a change put, and, behind them, those that it removed.
func keys(c *watchv1.Changed) string {
	out := ""
	for _, thing := range c.GetPut() {
		out += cmp.Or(strings.TrimPrefix(thing.GetKey(), "entries/"), thing.GetKey()) + " "
	}
	for _, key := range c.GetRemoved() {
		out += "-" + strings.TrimPrefix(key, "entries/") + " "
	}
	return strings.TrimSpace(out)
}

// Whatever the name, one GET has what the object is and then what becomes of it, and goes on after the last id.
func TestEventsOfAnObjectOfAnyName(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.as(t, ada)
	for _, name := range []string{
		"plain", "with blank", "a/b", "/", "//", "%2F", "a?b#c", "…", "..hidden", "naïve", "猫/犬", "👩‍👩‍👧", "\n", "events", "a/events", strings.Repeat("é", 256), "a+b&c=d;", `"'\`, "\u202e",
	} {
		path := "/v1/state/chat/" + strings.ReplaceAll(url.QueryEscape(name), "+", "%20") + "/events?collection=items&limit=2"
		apply := func(ops string) {
			t.Helper()
			req := from(t, &statev1.ApplyRequest{}, `{'ref':{'type':'chat'},'operations':[`+ops+`]}`)
			req.Ref.Name = name
			must(c.Apply(t.Context(), req))(t)
		}
		apply(`{'append':{'collection':'items','text':'1'}},{'append':{'collection':'items','text':'2'}},{'append':{'collection':'items','text':'3'}},{'put':{'entry':{'collection':'other','key':'k','text':''}}}`)
		s := b.events(t, ada, path, "")
		if first := s.change(); !first.GetReset_() || keys(first) != "object items/000000000002 items/000000000003" || first.GetPut()[0].GetObject().GetRef().GetName() != name {
			t.Fatalf("%q begins with %v", name, first)
		}
		apply(`{'delete':{'collection':'items','last':1}},{'put':{'entry':{'collection':'items','key':'k','text':''}}}`)
		if got := keys(s.change()); got != "object items/k -items/000000000003" {
			t.Fatalf("%q changes by %s", name, got)
		}
		s.close()
		apply(`{'setState':{'a':1}}`)
		for _, id := range []string{s.lastID, "2"} { // its version does as well
			if next := b.events(t, ada, path, id).change(); next.GetReset_() || keys(next) != "object" || next.GetVersion() != 3 {
				t.Errorf("%q goes on after %s with %v", name, id, next)
			}
		}
	}
}

// A name is the user's own: another's events are of another object, and those of the tenant are everybody's to read.
func TestEventsAreThoseOfTheOwner(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.as(t, ada).apply(t, `{'ref':{'type':'chat','name':'c'},'operations':[{'setState':{'of':'ada'}}]}`)
	b.as(t, nobody).apply(t, `{'ref':{'type':'chat','name':'c'},'operations':[{'setState':{'of':'all'}}]}`)
	for _, tt := range []struct {
		user        identity.User
		query, want string
	}{
		{ada, "", "ada"}, {eve, "", ""}, {eve, "?owner=", "all"}, {nobody, "", "all"}, {nobody, "?owner=ada", "ada"}, {nobody, "?owner=eve", ""},
	} {
		c := b.events(t, tt.user, "/v1/state/chat/c/events"+tt.query, "").change()
		if c.GetAbsent() != (tt.want == "") {
			t.Errorf("%s%s: %v", tt.user, tt.query, c)
		}
		if !c.GetAbsent() && c.GetPut()[0].GetObject().GetState().GetFields()["of"].GetStringValue() != tt.want {
			t.Errorf("%s%s: %v", tt.user, tt.query, c)
		}
	}
	// It is made, deleted, and made again while one looks.
	s := b.events(t, eve, "/v1/state/chat/c/events", "")
	for i, want := range []bool{true, false, true, false} {
		if got := s.change().GetAbsent(); got != want {
			t.Fatalf("change %d: absent is %t", i, got)
		}
		if want {
			b.as(t, eve).apply(t, `{'ref':{'type':'chat','name':'c'}}`)
		} else {
			must(b.as(t, eve).DeleteState(t.Context(), from(t, &statev1.DeleteStateRequest{}, `{'ref':{'type':'chat','name':'c'}}`)))(t)
		}
	}
}

// What is refused has a status and a reason, as every call has.
func TestEventsThatAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, want := range map[string]string{
		"/v1/state/chat/c/events?owner=ada":                      "403 ROLE_REQUIRED",
		"/v1/state/Chat/c/events":                                "400 FIELD_INVALID",
		"/v1/state/chat/" + strings.Repeat("x", 513) + "/events": "400 FIELD_INVALID",
		"/v1/state/chat/%FF/events":                              "400 FIELD_INVALID",
		"/v1/state/chat/a%00b/events":                            "400 FIELD_INVALID",
		"/v1/state/chat/c/events?owner=%FF":                      "400 FIELD_INVALID",
		"/v1/state/chat/c/events?collection=A":                   "400 FIELD_INVALID",
		"/v1/state/chat/c/events?collection=a&collection=a":      "400 FIELD_INVALID",
		"/v1/state/chat/c/events?collection=a&limit=201":         "400 FIELD_INVALID",
		"/v1/state/chat/c/events?collection=a&limit=x":           "400 FIELD_INVALID",
		"/v1/state/chat/c/events?limit=1&limit=2":                "400 FIELD_INVALID",
		"/v1/state/chat/c/events?owner=%zz":                      "400 FIELD_INVALID",
		"/v1/state/chat/c/events?after=5":                        "400 FIELD_UNKNOWN",
		"/v1/state/chat/c":                                       "404 METHOD_UNKNOWN",
	} {
		if _, got := b.open(t, eve, path, ""); got != want {
			t.Errorf("%s is answered with %q, want %q", path, got, want)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.url+"/v1/state/chat/c/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") == "" {
		t.Errorf("nobody gets %d, %v", res.StatusCode, res.Header)
	}
}

// A stream lives as long as its credential and its server: it beats, is there at once where nothing has changed, says why it ends, and
// counts among the user's watches.
func TestEventsEndAsStreamsDo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.as(t, ada).apply(t, `{'ref':{'type':'chat','name':'c'}}`)
	s := b.events(t, ada, "/v1/state/chat/c/events", "1")
	for s.beats < 2 {
		if line, ok := s.line(); !ok || line != ":" && line != "" {
			t.Fatalf("%q instead of a heartbeat", line)
		} else if line == ":" {
			s.beats++
		}
	}
	for i := 1; ; i++ {
		if _, refused := b.open(t, ada, "/v1/state/chat/c/events", ""); refused != "" {
			if want := 256; i != want || refused != "429 OVERLOADED" {
				t.Errorf("watch %d is refused with %s, want %d", i+1, refused, want)
			}
			break
		}
	}
	b.stop()
	for {
		name, data, ok := s.next()
		if !ok {
			t.Fatalf("the stream ends without a word: %q %s", name, data)
		}
		if name == "ended" {
			if !strings.Contains(data, "UNAVAILABLE") && !strings.Contains(data, "SHUTTING_DOWN") && !strings.Contains(data, "DRAINING") {
				t.Errorf("it ends with %s", data)
			}
			break
		}
	}
}
