package linear

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/db"
	linearv1 "holdfast/gen/holdfast/linear/v1"
)

// synced is an endpoint with an API key, and the Linear that it reads.
type synced struct {
	*bundle

	linear   *fakeLinear
	endpoint *linearv1.Endpoint
	service  client
}

func setupSync(t testing.TB) *synced {
	t.Helper()
	b := setup(t)
	s := &synced{bundle: b, linear: newFakeLinear(t), service: b.as(t, nobody)}
	s.endpoint = must(s.service.PutEndpoint(t.Context(), &linearv1.PutEndpointRequest{AddSecret: signingSecret, SetApiKey: linearKey}))(t).GetEndpoint()
	return s
}

// sync is one run, on a server of its own as after a restart where another is given.
func (s *synced) sync(ctx context.Context, on ...*bundle) error {
	b := s.bundle
	if len(on) > 0 {
		b = on[0]
	}
	return NewSync(SyncConfig{
		Kinds: b.kinds, Open: s.box.Open, Client: s.linear.client, URL: s.linear.url, Now: s.clock.now, Log: slog.New(slog.DiscardHandler),
		PageSize: 5, Overlap: time.Minute,
	}).Once(ctx, db.Endpoint{Tenant: s.Tenant, ID: s.endpoint.GetEndpointId()})
}

// state is where the sync stands.
func (s *synced) state(t testing.TB) *linearv1.SyncStatus {
	t.Helper()
	return must(s.service.ListEndpoints(t.Context(), &linearv1.ListEndpointsRequest{}))(t).GetEndpoints()[0].GetSync()
}

// titles are those of all issues, by id.
func (s *synced) titles(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	for token := ""; ; {
		page := must(s.service.ListIssues(t.Context(), &linearv1.ListIssuesRequest{PageSize: 200, PageToken: token}))(t)
		for _, i := range page.GetIssues() {
			out[i.GetIssueId()] = i.GetTitle()
		}
		if token = page.GetNextPageToken(); token == "" {
			return out
		}
	}
}

func (l *fakeLinear) titles() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]string{}
	for id, i := range l.issues {
		out[id] = i["title"].(string)
	}
	return out
}

func same(t testing.TB, want, got map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the issues (-Linear's +ours):\n%s", diff)
	}
}

func TestSync(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx := t.Context()
	for i := range 23 {
		s.linear.put(fmt.Sprintf("i%02d", i), "first", 100*i)
	}
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	same(t, s.linear.titles(), s.titles(t))
	st := s.state(t)
	if st.GetRunning() || st.GetIssueCount() != 23 || st.GetError() != "" || !st.GetHighWaterTime().AsTime().Equal(linearAt.Add(2200*time.Second)) {
		t.Errorf("%v", st)
	}
	// The next pass reads only what is new, and what is known already makes no new version.
	before := s.issue(t, nobody, "i22").GetVersion()
	s.linear.put("i03", "second", 3000)
	asked := s.linear.asked()
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	same(t, s.linear.titles(), s.titles(t))
	if n := s.linear.asked() - asked; n != 1 {
		t.Errorf("it took %d requests", n)
	}
	if got := s.issue(t, nobody, "i22").GetVersion(); got != before {
		t.Errorf("what had not changed went from version %d to %d", before, got)
	}
	// Without a key nothing is asked.
	must(s.service.PutEndpoint(ctx, &linearv1.PutEndpointRequest{
		EndpointId: s.endpoint.GetEndpointId(), UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"api_key"}},
	}))(t)
	asked = s.linear.asked()
	if err := s.sync(ctx); err != nil || s.linear.asked() != asked {
		t.Errorf("%v, %d requests", err, s.linear.asked()-asked)
	}
}

// A backfill after three days of outage, killed twice in the middle, while webhooks arrive again and issues change: nothing
// is lost, nothing goes back.
func TestBackfillSurvivesBeingKilled(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx := t.Context()
	const day = 24 * 3600
	for i := range 60 {
		s.linear.put(fmt.Sprintf("i%02d", i), "before", 100*i)
	}
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	// Three days in which nobody listens: half of the issues change, new ones come.
	for i := range 80 {
		if i%2 == 0 || i >= 60 {
			s.linear.put(fmt.Sprintf("i%02d", i), "during", day+i*2000)
		}
	}
	// What a webhook says meanwhile is newer than what the backfill reads.
	s.linear.put("i10", "after", 3*day+10)
	s.tell(t, s.endpoint.GetPath(), "d1", issueEvent{"update", "i10", 3*day + 10, "after", "started", "eng", nil})

	killed := 0
	var kill context.CancelFunc
	onPage := func(n int) {
		switch n {
		case 3, 6: // the process dies while it waits for the page
			killed++
			kill()
		case 4: // an issue that is on a page to come changes and moves to the front; one that was read does too
			s.linear.put("i02", "moved", 3*day+50)
			s.linear.put("i78", "moved", 3*day+60)
			s.linear.put("i99", "born", 3*day+70)
		}
	}
	s.linear.mu.Lock()
	s.linear.pages, s.linear.onPage = 0, onPage
	s.linear.mu.Unlock()
	for on := s.bundle; ; on = s.another(t) { // another process goes on
		var run context.Context
		run, kill = context.WithCancel(ctx)
		err := s.sync(run, on)
		kill()
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if st := s.state(t); !st.GetRunning() || st.GetHighWaterTime().AsTime().After(linearAt.Add(day*time.Second)) {
			t.Errorf("killed in the middle, and the sync is %v", st)
		}
	}
	if killed != 2 {
		t.Errorf("it was killed %d times", killed)
	}
	s.linear.mu.Lock()
	first := s.linear.pages
	s.linear.onPage = nil
	s.linear.mu.Unlock()
	if got := s.titles(t); got["i10"] != "after" {
		t.Errorf("i10 went back to %q", got["i10"])
	}
	// It went on where it was: from the page that it died on, not from the beginning.
	if pages := (50+1)/5 + 1 + killed; first > pages {
		t.Errorf("%d pages were read, %d would do", first, pages)
	}
	if err := s.sync(ctx); err != nil { // what moved while it read
		t.Fatal(err)
	}
	same(t, s.linear.titles(), s.titles(t))
}

func TestSyncMeetsErrors(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx := t.Context()
	for i := range 12 {
		s.linear.put(fmt.Sprintf("i%02d", i), "first", 100*i)
	}
	until := s.clock.now().Add(20 * time.Minute)

	// A rate limit is no failure. Linear is left alone until it is over, and then it goes on with the second page.
	s.linear.then(nil, rateLimited(until))
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	st := s.state(t)
	if got := st.GetNotBefore().AsTime(); got.UnixMilli() != until.UnixMilli() || st.GetRunning() || st.GetError() == "" || st.GetFailureCount() != 0 {
		t.Errorf("%v, want not before %v", st, until)
	}
	asked := s.linear.asked()
	if err := s.sync(ctx); err != nil || s.linear.asked() != asked {
		t.Errorf("%v, and Linear was asked %d times", err, s.linear.asked()-asked)
	}
	s.clock.advance(21 * time.Minute)
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	if n := s.linear.asked() - asked; n != 2 {
		t.Errorf("it took %d requests to read the two pages that were left", n)
	}
	same(t, s.linear.titles(), s.titles(t))
	if st := s.state(t); st.GetError() != "" || st.GetNotBefore() != nil {
		t.Errorf("%v", st)
	}

	// What goes wrong is noted in our words, and the next run does better.
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		says   string
	}{
		"Linear is down":           {fails(http.StatusInternalServerError, "INTERNAL_SERVER_ERROR", nil), "HTTP 500"},
		"the key is revoked":       {fails(http.StatusUnauthorized, "AUTHENTICATION_ERROR", nil), "AUTHENTICATION_ERROR"},
		"an error in a good reply": {fails(http.StatusOK, "FORBIDDEN", nil), "FORBIDDEN"},
		"no JSON":                  {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, "cannot be read"},
		"nothing in it":            {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }, "no issues"},
		"cut short":                {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "cannot be reached"},
	} {
		s.linear.then(tt.answer)
		err := s.sync(ctx)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", name, err)
		}
		if st := s.state(t); !strings.Contains(st.GetError(), tt.says) || strings.Contains(st.GetError(), "words of Linear") {
			t.Errorf("%s: %v", name, st)
		}
		asked := s.linear.asked()
		if err := s.sync(ctx); err != nil || s.linear.asked() != asked || s.state(t).GetNotBefore() == nil {
			t.Errorf("%s: %v, and Linear was asked again at once: %v", name, err, s.state(t))
		}
		s.clock.advance(time.Minute)
		if err := s.sync(ctx); err != nil || s.state(t).GetError() != "" || s.state(t).GetNotBefore() != nil || s.state(t).GetFailureCount() != 0 {
			t.Errorf("after %s: %v, %v", name, err, s.state(t))
		}
	}

	// A cursor that Linear no longer takes begins the pass again.
	for i := range 12 {
		s.linear.put(fmt.Sprintf("i%02d", i), "second", 5000+i)
	}
	s.linear.then(nil, fails(http.StatusBadRequest, "INVALID_INPUT", nil))
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	same(t, s.linear.titles(), s.titles(t))
}

// What webhooks left in doubt is asked for: a stale one, two that disagree, an update of what was unknown, and what is gone.
func TestSyncRefetches(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx, path := t.Context(), s.endpoint.GetPath()
	for _, id := range []string{"stale", "torn", "unknown"} {
		s.linear.put(id, "as Linear has it", 100)
	}
	late := issueEvent{"update", "stale", 90, "a replay", "started", "eng", nil}
	for i, e := range []issueEvent{
		{"update", "torn", 100, "one word", "started", "eng", nil},
		{"update", "torn", 100, "another word", "started", "eng", nil},
		{"update", "unknown", 100, "as Linear has it", "started", "eng", nil},
		{"create", "gone", 100, "soon gone", "started", "eng", nil},
	} {
		s.tell(t, path, fmt.Sprint(i), e)
	}
	for _, e := range []issueEvent{late, {"update", "gone", 101, "a replay", "started", "eng", nil}} {
		body := e.body(s.clock.now().Add(-time.Hour))
		if status, said := s.post(t, path, body, map[string]string{"Linear-Signature": sign(signingSecret, body)}); status != 200 || !strings.Contains(said, "fetched") {
			t.Errorf("%d %s", status, said)
		}
	}
	doubtful := func() map[string]string {
		out := map[string]string{}
		for id := range maps.Keys(s.titles(t)) {
			if i := s.issue(t, nobody, id); i.GetRefetch() {
				out[id] = ""
			}
		}
		return out
	}
	same(t, map[string]string{"stale": "", "torn": "", "unknown": "", "gone": ""}, doubtful())
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	same(t, map[string]string{}, doubtful())
	same(t, s.linear.titles(), s.titles(t))
	gone := s.issue(t, nobody, "gone")
	if gone.GetRemoveTime() == nil || gone.GetTitle() != "a replay" {
		t.Errorf("%v", gone)
	}
	asked := s.linear.asked()
	if err := s.sync(ctx); err != nil || s.linear.asked() != asked+1 {
		t.Errorf("%v; %d requests, though nothing is in doubt", err, s.linear.asked()-asked)
	}
}

// What is wrong with one issue, in whatever way, holds up neither the others of its page nor the pages behind it, and what Linear does not
// say of an issue stays as it is known.
func TestOneBadIssueDoesNotStopTheSync(t *testing.T) {
	t.Parallel()
	const bad = "i07"
	far := s2099
	for name, tt := range map[string]struct {
		change  map[string]any
		spoilt  bool
		once    []http.HandlerFunc
		skipped bool
		title   string // of the bad issue afterwards
		asks    int    // requests of the first pass, at most
	}{
		"a date to come":             {change: map[string]any{"updatedAt": far}, title: "second", asks: 3},
		"no date":                    {change: map[string]any{"updatedAt": nil}, title: "second", asks: 3},
		"a date that is none":        {change: map[string]any{"updatedAt": "yesterday"}, title: "second", asks: 3},
		"a date of another type":     {change: map[string]any{"updatedAt": 5}, title: "second", asks: 3},
		"a date before time":         {change: map[string]any{"updatedAt": "0001-01-01T00:00:00Z"}, title: "second", asks: 3},
		"other dates":                {change: map[string]any{"createdAt": far, "startedAt": "x", "archivedAt": 7}, title: "second", asks: 3},
		"no title":                   {change: map[string]any{"title": nil}, title: "first", asks: 3},
		"a title of another type":    {change: map[string]any{"title": []any{"x"}}, title: "first", asks: 3},
		"a priority of another type": {change: map[string]any{"priority": "high"}, title: "second", asks: 3},
		"a state that is null":       {change: map[string]any{"state": nil}, title: "second", asks: 3},
		"labels that are not":        {change: map[string]any{"labels": "none", "labelIds": nil, "previousIdentifiers": 1}, title: "second", asks: 3},
		"ids that are none":          {change: map[string]any{"assignee": map[string]any{"id": strings.Repeat("x", 5000)}, "project": map[string]any{"id": "a b"}}, title: "second", asks: 3},
		"long texts":                 {change: map[string]any{"identifier": strings.Repeat("x", 5000), "url": strings.Repeat("x", 1<<20)}, title: "second", asks: 3},
		"no id":                      {change: map[string]any{"id": nil}, title: "first", asks: 5},
		"a strange id":               {change: map[string]any{"id": "../x"}, skipped: true, title: "first", asks: 5},
		"never answered":             {spoilt: true, skipped: true, title: "first", asks: 3 + 9},
		"a page that fails once":     {once: []http.HandlerFunc{fails(http.StatusOK, "INTERNAL_SERVER_ERROR", nil)}, title: "second", asks: 6},
		"a page that is too much":    {once: []http.HandlerFunc{fails(http.StatusBadRequest, "INPUT_ERROR", nil)}, title: "second", asks: 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setupSync(t)
			ctx := t.Context()
			for i := range 12 {
				s.linear.put(fmt.Sprintf("i%02d", i), "first", 100*i)
			}
			if err := s.sync(ctx); err != nil {
				t.Fatal(err)
			}
			before := s.issue(t, nobody, bad)
			for i := range 12 {
				s.linear.put(fmt.Sprintf("i%02d", i), "second", 5000+100*i)
			}
			want := s.linear.titles()
			want[bad] = tt.title
			s.linear.change(bad, tt.change)
			s.linear.spoilt[bad] = tt.spoilt
			s.linear.then(tt.once...)
			asked := s.linear.asked()
			if err := s.sync(ctx); err != nil {
				t.Fatal(err)
			}
			if n := s.linear.asked() - asked; n > tt.asks {
				t.Errorf("it took %d requests, more than %d", n, tt.asks)
			}
			same(t, want, s.titles(t))
			st := s.state(t)
			if st.GetError() != "" || st.GetRunning() || st.GetNotBefore() != nil || (st.GetSkippedCount() > 0) != tt.skipped || (st.GetSkipReason() != "") != tt.skipped {
				t.Errorf("the sync is %v", st)
			}
			now := s.clock.now()
			if mark := st.GetHighWaterTime().AsTime(); mark.After(now) || mark.Before(linearAt.Add(5500*time.Second)) {
				t.Errorf("everything is read up to %v", mark)
			}
			got := s.issue(t, nobody, bad)
			for _, at := range []*timestamppb.Timestamp{got.GetLinearUpdateTime(), got.GetLinearCreateTime(), got.GetStartTime(), got.GetArchiveTime()} {
				if at != nil && at.AsTime().After(now.Add(futureSkew)) {
					t.Errorf("it has the time %v", at.AsTime())
				}
			}
			if got.GetState().GetType() != "started" || got.GetPriority() != before.GetPriority() || got.GetIdentifier() == "" || got.GetAssignee() != nil {
				t.Errorf("it is %v", got)
			}

			// The next pass reads it as little as this one, makes no version of what is known, and takes what is new.
			version := s.issue(t, nobody, "i00").GetVersion()
			again := got.GetVersion()
			s.linear.put("i03", "third", 9000)
			want["i03"] = "third"
			if err := s.sync(ctx); err != nil {
				t.Fatal(err)
			}
			same(t, want, s.titles(t))
			if v := s.issue(t, nobody, "i00").GetVersion(); v != version {
				t.Errorf("another issue went from version %d to %d", version, v)
			}
			if v := s.issue(t, nobody, bad).GetVersion(); v != again {
				t.Errorf("it went from version %d to %d", again, v)
			}
			// And once Linear has corrected it, it is as Linear has it.
			delete(s.linear.spoilt, bad)
			s.linear.put(bad, "mended", 9100)
			want[bad] = "mended"
			if err := s.sync(ctx); err != nil {
				t.Fatal(err)
			}
			same(t, want, s.titles(t))
		})
	}
}

const s2099 = "2099-01-01T00:00:00.000Z"

// Where a property has an error, Linear answers null for it. That says nothing of it: the rest of the page is stored, and the property
// stays.
func TestAPropertyWithAnErrorStays(t *testing.T) {
	t.Parallel()
	for name, path := range map[string][]any{
		"a property": {"issues", "nodes", 0, "project"}, "within one": {"issues", "nodes", 0, "project", "name"}, "an issue": {"issues", "nodes", 0},
		"no path": nil, "another path": {"viewer", "id"}, "no such issue": {"issues", "nodes", 99, "title"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setupSync(t)
			ctx := t.Context()
			project := map[string]any{"id": "p1", "name": "Login"}
			for i := range 8 {
				s.linear.put(fmt.Sprint("i", i), "first", 100*i)
				s.linear.change(fmt.Sprint("i", i), map[string]any{"project": project})
			}
			if err := s.sync(ctx); err != nil {
				t.Fatal(err)
			}
			for i := range 8 {
				s.linear.put(fmt.Sprint("i", i), "second", 5000+100*i)
				s.linear.change(fmt.Sprint("i", i), map[string]any{"project": project})
			}
			want := s.linear.titles()
			s.linear.then(func(w http.ResponseWriter, r *http.Request) {
				w2 := httptest.NewRecorder()
				s.linear.ServeHTTP(w2, r)
				var answer map[string]any
				if err := json.Unmarshal(w2.Body.Bytes(), &answer); err != nil {
					t.Error(err)
				}
				nodes := answer["data"].(map[string]any)["issues"].(map[string]any)["nodes"].([]any)
				if len(path) == 3 {
					nodes[0] = nil
				} else if name != "no path" {
					nodes[0].(map[string]any)["project"] = nil
				}
				answer["errors"] = []any{map[string]any{"message": "Entity not found", "path": path, "extensions": map[string]any{"code": "ENTITY_NOT_FOUND"}}}
				json.NewEncoder(w).Encode(answer)
			})
			if err := s.sync(ctx); err != nil {
				t.Fatal(err)
			}
			same(t, want, s.titles(t))
			if p := s.issue(t, nobody, "i7").GetProject(); (p.GetName() != "Login") != (name == "another path" || name == "no such issue") {
				t.Errorf("the project is %v", p) // where the error is of something else, null is null
			}
			if st := s.state(t); st.GetError() != "" || st.GetNotBefore() != nil {
				t.Errorf("%v", st)
			}
		})
	}
}

// What is wrong with all of Linear makes it be asked less and less often, with the reason shown, until a run succeeds, an operator asks for
// one, or the key is another.
func TestTheSyncBacksOff(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx := t.Context()
	s.linear.put("i1", "first", 100)
	put := func(req *linearv1.PutEndpointRequest) {
		t.Helper()
		req.EndpointId = s.endpoint.GetEndpointId()
		must(s.service.PutEndpoint(ctx, req))(t)
	}
	put(&linearv1.PutEndpointRequest{SetApiKey: "lin_api_revoked"})
	began, runs := s.clock.now(), 0
	for s.clock.now().Sub(began) < 24*time.Hour {
		asked := s.linear.asked()
		err := s.sync(ctx)
		if n := s.linear.asked() - asked; n > 2 {
			t.Fatalf("a run asked %d times", n)
		} else if n > 0 {
			runs++
		}
		st := s.state(t)
		if wait := st.GetNotBefore().AsTime().Sub(s.clock.now()); wait <= 0 || wait > maxBackOff || !strings.Contains(st.GetError(), "AUTHENTICATION_ERROR") ||
			int(st.GetFailureCount()) != runs || st.GetRunning() {
			t.Fatalf("after %d runs it is %v: %v", runs, st, err)
		}
		s.clock.advance(time.Minute)
	}
	if runs < 20 || runs > 60 {
		t.Errorf("Linear was asked in %d runs of a day", runs)
	}
	asked := s.linear.asked()
	put(&linearv1.PutEndpointRequest{SyncNow: true})
	<-s.synced
	if err := s.sync(ctx); err == nil || s.linear.asked() == asked {
		t.Errorf("asked for, and it is %v after %d requests", err, s.linear.asked()-asked)
	}
	put(&linearv1.PutEndpointRequest{SetApiKey: linearKey})
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	same(t, s.linear.titles(), s.titles(t))
	if st := s.state(t); st.GetError() != "" || st.GetNotBefore() != nil || st.GetFailureCount() != 0 {
		t.Errorf("%v", st)
	}

	// A rate limit is waited for, even if an operator asks.
	s.linear.then(rateLimited(s.clock.now().Add(time.Hour)))
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	put(&linearv1.PutEndpointRequest{SyncNow: true})
	asked = s.linear.asked()
	if err := s.sync(ctx); err != nil || s.linear.asked() != asked {
		t.Errorf("%v: limited, and asked %d times", err, s.linear.asked()-asked)
	}
}

// Pages that never end are left.
func TestPagesInACircle(t *testing.T) {
	t.Parallel()
	for name, cursors := range map[string][]any{"of one": {"a"}, "of three": {"a", "b", "c"}, "of four behind two": {"x", "y", "a", "b", "c", "d"}, "no cursor": {nil}, "no text": {5}} {
		s := setupSync(t)
		n := 0
		turn := func(w http.ResponseWriter, _ *http.Request) {
			at := n
			for at >= len(cursors) {
				at -= min(len(cursors), 4)
			}
			n++
			answer(w, map[string]any{"nodes": []any{}, "pageInfo": map[string]any{"hasNextPage": true, "endCursor": cursors[at]}})
		}
		for range 100 {
			s.linear.then(turn)
		}
		if err := s.sync(t.Context()); err == nil || n > 20 {
			t.Errorf("%s: %v after %d pages", name, err, n)
		}
		if st := s.state(t); st.GetNotBefore() == nil || st.GetError() == "" {
			t.Errorf("%s: %v", name, st)
		}
	}
	// And so are cursors that Linear never takes.
	s := setupSync(t)
	for i := range 12 {
		s.linear.put(fmt.Sprint(i), "t", i)
	}
	for range 100 {
		s.linear.then(nil, fails(http.StatusBadRequest, "INVALID_INPUT", nil))
	}
	asked := s.linear.asked()
	if err := s.sync(t.Context()); err == nil || s.linear.asked()-asked > 8 {
		t.Errorf("%v after %d requests", err, s.linear.asked()-asked)
	}
}

// That the key does not see an issue does not remove it: only what is missing from a team that it sees has gone.
func TestAnUnseenIssueStays(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx, path := t.Context(), s.endpoint.GetPath()
	s.linear.hidden["private"] = true
	for _, e := range []issueEvent{
		{"update", "first heard of", 100, "secret", "started", "private", nil}, {"create", "new", 100, "secret", "started", "private", nil},
	} {
		e.id = strings.ReplaceAll(e.id, " ", "-")
		s.linear.put(e.id, e.title, e.updated)
		s.linear.change(e.id, map[string]any{"team": map[string]any{"id": "private", "key": "PRI", "name": "private"}})
		s.tell(t, path, e.id, e)
	}
	s.tellAt(t, path, "late", issueEvent{"update", "new", 101, "secret", "completed", "private", nil}, s.clock.now().Add(-time.Hour))
	s.tell(t, path, "gone", issueEvent{"update", "gone", 100, "t", "started", "eng", nil})
	asked, quiet := 0, 0
	for range 24 * 12 {
		before := s.linear.asked()
		if err := s.sync(ctx); err != nil {
			t.Fatal(err)
		}
		if n := s.linear.asked() - before; n > 1 {
			asked += n - 1
			quiet = 0
		}
		quiet++
		s.clock.advance(5 * time.Minute)
	}
	for _, id := range []string{"first-heard-of", "new"} {
		got := s.issue(t, nobody, id)
		if got.GetRemoveTime() != nil || !got.GetUnseen() || got.GetRefetch() || got.GetTitle() != "secret" {
			t.Errorf("%s: %v", id, got)
		}
	}
	if got := s.issue(t, nobody, "gone"); got.GetRemoveTime() == nil {
		t.Errorf("%v", got)
	}
	if asked > 4*maxRefetches || quiet < 100 {
		t.Errorf("in a day Linear was asked %d times for what the key does not see, last %d runs ago", asked, quiet)
	}
	// Once the key sees the team, the issue's next word makes it seen.
	delete(s.linear.hidden, "private")
	s.linear.put("new", "not secret", 5000)
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got := s.issue(t, nobody, "new"); got.GetUnseen() || got.GetTitle() != "not secret" {
		t.Errorf("%v", got)
	}
}

// One endpoint reads only the teams that it keeps, and begins again where one is added.
func TestAnEndpointKeepsTeams(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx := t.Context()
	for i, team := range []string{"eng", "ops", "eng", "design"} {
		id := fmt.Sprint(team, i)
		s.linear.put(id, team, 100*i)
		s.linear.change(id, map[string]any{"team": map[string]any{"id": team, "key": team, "name": team}})
	}
	for _, tt := range []struct {
		teams []string
		want  string
	}{{[]string{"eng"}, "eng0 eng2"}, {[]string{"eng", "ops"}, "eng0 eng2 ops1"}, {[]string{"ops"}, "eng0 eng2 ops1"}, {nil, "design3 eng0 eng2 ops1"}} {
		must(s.service.PutEndpoint(ctx, &linearv1.PutEndpointRequest{
			EndpointId: s.endpoint.GetEndpointId(), Endpoint: &linearv1.Endpoint{TeamIds: tt.teams}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"team_ids"}},
		}))(t)
		if err := s.sync(ctx); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(slices.Sorted(maps.Keys(s.titles(t))), " "); got != tt.want {
			t.Errorf("with the teams %q: %s, want %s", tt.teams, got, tt.want)
		}
		if len(tt.teams) != 1 {
			continue
		}
		// Webhooks bring no issue of another team, but one that is known may move there.
		said := s.tell(t, s.endpoint.GetPath(), "d1"+tt.teams[0], issueEvent{"create", "other", 9000, "t", "started", "design", nil})
		if !strings.Contains(said, "ignored") || s.issue(t, nobody, "other") != nil {
			t.Errorf("another team's: %s", said)
		}
	}
}

// An endpoint that is deleted while it is read is left, and what it left in doubt another of the tenant reads.
func TestADeletedEndpointIsLeft(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx := t.Context()
	for i := range 20 {
		s.linear.put(fmt.Sprint("i", i), "t", i)
	}
	s.tell(t, s.endpoint.GetPath(), "d1", issueEvent{"update", "doubtful", 1, "t", "started", "eng", nil})
	s.linear.put("doubtful", "as Linear has it", 1)
	s.linear.onPage = func(n int) {
		if n == 2 {
			must(s.service.DeleteEndpoint(ctx, &linearv1.DeleteEndpointRequest{EndpointId: s.endpoint.GetEndpointId()}))(t)
		}
	}
	if err := s.sync(ctx); err != nil || s.linear.asked() != 2 {
		t.Errorf("%v, and Linear was asked %d times", err, s.linear.asked())
	}
	s.endpoint = must(s.service.PutEndpoint(ctx, &linearv1.PutEndpointRequest{SetApiKey: linearKey}))(t).GetEndpoint()
	s.linear.onPage = nil
	must(s.service.PutEndpoint(ctx, &linearv1.PutEndpointRequest{EndpointId: s.endpoint.GetEndpointId(), ResetSyncTo: timestamppb.New(s.clock.now().Add(99 * time.Hour))}))(t)
	if st := s.state(t); st.GetHighWaterTime().AsTime().After(s.clock.now()) {
		t.Errorf("%v", st)
	}
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got := s.issue(t, nobody, "doubtful"); got.GetTitle() != "as Linear has it" || got.GetRefetch() {
		t.Errorf("%v", got)
	}
}

// Two runs at once lose and double nothing: one of them gives up.
func TestSyncTwiceAtOnce(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	for i := range 40 {
		s.linear.put(fmt.Sprintf("i%02d", i), "first", 100*i)
	}
	other := s.another(t)
	errs := make(chan error)
	go func() { errs <- s.sync(t.Context()) }()
	go func() { errs <- s.sync(t.Context(), other) }()
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if err := s.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, s.linear.titles(), s.titles(t))
}

func TestResetTime(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000_000)
	ms := func(d time.Duration) string { return fmt.Sprint(now.Add(d).UnixMilli()) }
	for name, tt := range map[string]struct {
		header map[string]string
		want   time.Duration
	}{
		"nothing":            {nil, defaultPause},
		"one":                {map[string]string{"X-RateLimit-Requests-Reset": ms(time.Minute), "X-RateLimit-Requests-Remaining": "0"}, time.Minute},
		"the later of two":   {map[string]string{"X-RateLimit-Requests-Reset": ms(time.Minute), "X-RateLimit-Complexity-Reset": ms(3 * time.Minute)}, 3 * time.Minute},
		"only what is empty": {map[string]string{"X-RateLimit-Requests-Reset": ms(time.Minute), "X-RateLimit-Complexity-Reset": ms(time.Hour), "X-RateLimit-Complexity-Remaining": "7"}, time.Minute},
		"retry-after first":  {map[string]string{"Retry-After": "30", "X-RateLimit-Requests-Reset": ms(time.Hour)}, 30 * time.Second},
		"in seconds, not ms": {map[string]string{"X-RateLimit-Requests-Reset": fmt.Sprint(now.Unix())}, defaultPause},
		"nonsense":           {map[string]string{"X-RateLimit-Requests-Reset": "soon", "Retry-After": "-5"}, defaultPause},
		"far off":            {map[string]string{"X-RateLimit-Requests-Reset": ms(999 * time.Hour)}, maxPause},
	} {
		h := http.Header{}
		for k, v := range tt.header {
			h.Set(k, v)
		}
		if got := resetTime(h, now).Sub(now); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
