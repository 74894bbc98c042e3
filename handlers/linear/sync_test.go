package linear

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

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
	if got := st.GetNotBefore().AsTime(); got.UnixMilli() != until.UnixMilli() || !st.GetRunning() || st.GetError() == "" {
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
		if err := s.sync(ctx); err != nil || s.state(t).GetError() != "" {
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
	same(t, map[string]string{"torn": "", "unknown": "", "gone": ""}, doubtful())
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	same(t, map[string]string{}, doubtful())
	same(t, s.linear.titles(), s.titles(t))
	gone := s.issue(t, nobody, "gone")
	if gone.GetRemoveTime() == nil || gone.GetTitle() != "soon gone" {
		t.Errorf("%v", gone)
	}
	asked := s.linear.asked()
	if err := s.sync(ctx); err != nil || s.linear.asked() != asked+1 {
		t.Errorf("%v; %d requests, though nothing is in doubt", err, s.linear.asked()-asked)
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
