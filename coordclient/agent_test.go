package coordclient_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"holdfast/coordclient"
	"holdfast/coordclient/agent"
	"holdfast/coordclient/codegen"
	"holdfast/coordclient/cursor"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
)

// The statuses of tasks, by their short names.
const (
	queued    = projectv1.TaskStatus_TASK_STATUS_QUEUED
	running   = projectv1.TaskStatus_TASK_STATUS_RUNNING
	succeeded = projectv1.TaskStatus_TASK_STATUS_SUCCEEDED
	cancelled = projectv1.TaskStatus_TASK_STATUS_CANCELLED
	brokeOff  = projectv1.TaskStatus_TASK_STATUS_FAILED
	expired   = projectv1.TaskStatus_TASK_STATUS_EXPIRED
)

// losses spoil the answers to POSTs, one after the other.
type losses struct {
	http.Handler

	mu     sync.Mutex // guards what follows
	script []loss
	posts  int
}

type loss int

const (
	good      loss = iota
	lostAfter      // it is done, and the connection breaks
	lostBefore
	badGateway // it is done, and a proxy answers
	unavailable
	tooMany // refused, for a second
)

func (l *losses) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what := good
	if r.Method == http.MethodPost {
		l.mu.Lock()
		l.posts++
		if len(l.script) > 0 {
			what, l.script = l.script[0], l.script[1:]
		}
		l.mu.Unlock()
	}
	if what == lostAfter || what == badGateway {
		l.Handler.ServeHTTP(httptest.NewRecorder(), r)
	}
	switch what {
	case good:
		l.Handler.ServeHTTP(w, r)
	case lostAfter, lostBefore:
		panic(http.ErrAbortHandler)
	case badGateway:
		http.Error(w, "<html>Bad gateway</html>", http.StatusBadGateway)
	case unavailable:
		http.Error(w, "upstream connect error", http.StatusServiceUnavailable)
	case tooMany:
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusTooManyRequests, "Rate limit exceeded. Please try again later.")
	}
}

func (l *losses) set(script ...loss) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.script = script
}

// fakeCursor answers as Cursor's API reference says, for the key "secret".
type fakeCursor struct {
	*httptest.Server
	losses losses

	mu      sync.Mutex // guards what follows
	agents  map[string]cursor.Agent
	runs    map[string][]cursor.Run
	answers map[string][]byte // by Idempotency-Key
	// forgetful does not know its idempotency keys.
	forgetful bool
	cancels   int
}

func newFakeCursor(t *testing.T) *fakeCursor {
	t.Helper()
	f := &fakeCursor{agents: map[string]cursor.Agent{}, runs: map[string][]cursor.Run{}, answers: map[string][]byte{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/agents", f.create)
	mux.HandleFunc("GET /v1/agents/{agent}", f.get)
	mux.HandleFunc("GET /v1/agents/{agent}/runs", f.get)
	mux.HandleFunc("GET /v1/agents/{agent}/runs/{run}", f.get)
	mux.HandleFunc("POST /v1/agents/{agent}/runs/{run}/cancel", f.cancel)
	f.losses.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if key, _, _ := r.BasicAuth(); key != "secret" {
			wrong(w, http.StatusUnauthorized, "unauthorized")
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		mux.ServeHTTP(w, r)
	})
	f.Server = httptest.NewServer(&f.losses)
	t.Cleanup(f.Close)
	return f
}

func wrong(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": strings.ReplaceAll(code, "_", " ")}})
}

func (f *fakeCursor) create(w http.ResponseWriter, r *http.Request) {
	var n struct {
		AgentID string
		Prompt  struct{ Text string }
		Repos   []cursor.Repository
	}
	if json.NewDecoder(r.Body).Decode(&n) != nil || n.Prompt.Text == "" {
		wrong(w, http.StatusBadRequest, "invalid_prompt")
		return
	}
	key := r.Header.Get("Idempotency-Key")
	if answer := f.answers[key]; answer != nil && !f.forgetful {
		_, _ = w.Write(answer)
		return
	}
	if _, err := uuid.Parse(strings.TrimPrefix(n.AgentID, "bc-")); err != nil || !strings.HasPrefix(n.AgentID, "bc-") {
		wrong(w, http.StatusBadRequest, "invalid_agent_id")
		return
	}
	if _, ok := f.agents[n.AgentID]; ok {
		wrong(w, http.StatusConflict, "agent_already_exists")
		return
	}
	now := time.Now().UTC()
	run := cursor.Run{ID: "run-" + uuid.NewString(), AgentID: n.AgentID, Status: "RUNNING", CreatedAt: now}
	a := cursor.Agent{ID: n.AgentID, Status: "ACTIVE", Repos: n.Repos, URL: "https://cursor.com/agents/" + n.AgentID, CreatedAt: now, LatestRunID: run.ID}
	f.agents[a.ID], f.runs[a.ID] = a, []cursor.Run{run}
	f.answers[key], _ = json.Marshal(cursor.Created{Agent: a, Run: run})
	_, _ = w.Write(f.answers[key])
}

func (f *fakeCursor) get(w http.ResponseWriter, r *http.Request) {
	a, ok := f.agents[r.PathValue("agent")]
	runs := f.runs[a.ID]
	var answer any = a
	switch id := r.PathValue("run"); {
	case strings.HasSuffix(r.URL.Path, "/runs"):
		answer = map[string]any{"items": runs}
	case id != "":
		ok = false
		for i := range runs {
			if runs[i].ID == id {
				answer, ok = runs[i], true
			}
		}
	}
	if !ok {
		wrong(w, http.StatusNotFound, "not_found")
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (f *fakeCursor) cancel(w http.ResponseWriter, r *http.Request) {
	runs := f.runs[r.PathValue("agent")]
	for i := range runs {
		if runs[i].ID != r.PathValue("run") {
			continue
		}
		if runs[i].Status != "RUNNING" {
			wrong(w, http.StatusConflict, "run_not_cancellable")
			return
		}
		runs[i].Status = "CANCELLED"
		f.cancels++
		_ = json.NewEncoder(w).Encode(map[string]any{"id": runs[i].ID})
		return
	}
	wrong(w, http.StatusNotFound, "not_found")
}

// fakeProvider is a fake, and what a test does to it.
type fakeProvider struct {
	name   string
	losses *losses
	// adapter makes one with a coordinated client.
	adapter func(c *coordclient.Client) agent.Adapter
	// counts are the runs that it has, and those that it stopped.
	counts func() (runs, stopped int)
	// say changes the status of all runs.
	say func(status, result, pullRequest string)
	// done is its word for a run that has succeeded.
	done string
}

func providers(t *testing.T) []fakeProvider {
	t.Helper()
	g, u := newFakeCodegen(t), newFakeCursor(t)
	options := coordclient.Options{Base: base(t), MaxWait: time.Minute}
	settled := func(c *coordclient.Client, a agent.Adapter, o coordclient.Options) *http.Client {
		r := agent.Reconciler(c, a)
		r.Settle = time.Nanosecond
		o.Reconcile = r.Reconcile
		return &http.Client{Transport: c.Transport(a.Provider(), o)}
	}
	return []fakeProvider{
		{
			"codegen", &g.losses, func(c *coordclient.Client) agent.Adapter {
				o := options
				o.Operation = codegen.Operation
				a := &codegen.Client{URL: g.URL, Organization: 7, Token: "secret"}
				a.HTTP = settled(c, a, o)
				return a
			}, func() (int, int) {
				g.mu.Lock()
				defer g.mu.Unlock()
				return len(g.runs), g.bans
			}, func(status, result, pullRequest string) {
				g.mu.Lock()
				defer g.mu.Unlock()
				for i := range g.runs {
					g.runs[i].Status, g.runs[i].Result, g.runs[i].PullRequests = status, result, []codegen.PullRequest{{ID: 1, URL: pullRequest}}
				}
			}, "COMPLETE",
		},
		{
			"cursor", &u.losses, func(c *coordclient.Client) agent.Adapter {
				a := &cursor.Client{URL: u.URL, Key: "secret"}
				a.HTTP = settled(c, a, options)
				return a
			}, func() (int, int) {
				u.mu.Lock()
				defer u.mu.Unlock()
				return len(u.agents), u.cancels
			}, func(status, result, pullRequest string) {
				u.mu.Lock()
				defer u.mu.Unlock()
				for _, runs := range u.runs {
					runs[0].Status, runs[0].Result, runs[0].Git.Branches = status, result, []cursor.Branch{{Branch: "b", PRURL: pullRequest}}
				}
			}, "FINISHED",
		},
	}
}

// agents is setup with all providers known to the coordinator.
func agents(t *testing.T, servers int) *bundle {
	t.Helper()
	b := setup(t, servers)
	configure(t, b.client(t, 0, ""), cursor.API, &coordinationv1.ApiConfig{})
	return b
}

// A run started once happened once: whatever becomes of the answers, and however many processes try until one of them succeeds.
func TestARunStartedOnceHappensOnce(t *testing.T) {
	t.Parallel()
	for name, script := range map[string][]loss{
		"good": {good}, "lost answer": {lostAfter}, "lost request": {lostBefore}, "a proxy that gave up": {badGateway}, "a proxy without a server": {unavailable},
		"refused, then lost": {tooMany, lostAfter}, "lost, then lost": {lostBefore, lostAfter},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := agents(t, 2)
			for _, p := range providers(t) {
				p.losses.set(script...)
				var wait sync.WaitGroup
				for i := range 2 {
					tasks := &agent.Tasks{Service: b.tasks(t, i, "ada"), Adapter: p.adapter(b.client(t, i, "ada"))}
					wait.Go(func() {
						for try := 0; ; try++ {
							task, err := tasks.Start(t.Context(), &projectv1.Task{TaskId: p.name + "-1", Title: "Fix the login"}, agent.Work{Prompt: "Fix the login"})
							if err == nil {
								if task.GetStatus() != running || task.GetRunId() == "" || task.GetProvider() != p.name || task.GetTitle() == "" {
									t.Errorf("%s: %v", p.name, task)
								}
								return
							}
							if task.GetStatus() != queued && task.GetStatus() != running || try == 10 {
								t.Errorf("%s: %v, %v", p.name, task, err)
								return
							}
						}
					})
				}
				wait.Wait()
				if runs, _ := p.counts(); runs != 1 {
					t.Errorf("%s has %d runs", p.name, runs)
				}
			}
		})
	}
}

// What a provider refuses for good is a brokeOff task, and is not sent again.
func TestARunThatIsRefusedIsAFailedTask(t *testing.T) {
	t.Parallel()
	b := agents(t, 1)
	for _, p := range providers(t) {
		tasks := &agent.Tasks{Service: b.tasks(t, 0, "ada"), Adapter: p.adapter(b.client(t, 0, "ada"))}
		task, err := tasks.Start(t.Context(), &projectv1.Task{TaskId: p.name}, agent.Work{})
		if _, ok := errors.AsType[*agent.StatusError](err); !ok || task.GetStatus() != brokeOff || task.GetStatusReason() != "rejected" || task.GetSummary() == "" {
			t.Errorf("%s: %v, %v", p.name, task, err)
		}
		if task, err = tasks.Start(t.Context(), &projectv1.Task{TaskId: p.name}, agent.Work{Prompt: "again"}); err != nil || task.GetStatus() != brokeOff {
			t.Errorf("%s: again: %v, %v", p.name, task, err)
		}
		if p.losses.posts != 1 {
			t.Errorf("%s was asked %d times", p.name, p.losses.posts)
		}
	}
}

func TestACancelledTaskStaysCancelled(t *testing.T) {
	t.Parallel()
	b := agents(t, 1)
	for _, p := range providers(t) {
		service := b.tasks(t, 0, "ada")
		tasks := &agent.Tasks{Service: service, Adapter: p.adapter(b.client(t, 0, "ada"))}
		start := func(id string) *projectv1.Task {
			task, err := tasks.Start(t.Context(), &projectv1.Task{TaskId: p.name + id}, agent.Work{Prompt: "Fix"})
			if err != nil {
				t.Errorf("%s%s: %v", p.name, id, err)
			}
			return task
		}
		is := func(id string, want projectv1.TaskStatus) {
			t.Helper()
			res, err := service.GetTask(t.Context(), &projectv1.GetTaskRequest{TaskId: p.name + id})
			if err != nil || res.GetTask().GetStatus() != want {
				t.Errorf("%s%s is %v, %v, want %v", p.name, id, res.GetTask().GetStatus(), err, want)
			}
		}
		cancel := func(id string) {
			t.Helper()
			for try := 0; ; try++ {
				if _, err := tasks.Cancel(t.Context(), p.name+id); err == nil {
					return
				} else if try == 5 {
					t.Errorf("%s%s: %v", p.name, id, err)
					return
				}
			}
		}
		// Before it was started: it never is.
		if _, err := service.PutTask(t.Context(), &projectv1.PutTaskRequest{TaskId: p.name + "-early"}); err != nil {
			t.Fatal(err)
		}
		cancel("-early")
		start("-early")
		is("-early", cancelled)
		if runs, _ := p.counts(); runs != 0 {
			t.Errorf("%s has %d runs", p.name, runs)
		}
		// Running, and the answer is lost; what it had done by then does not change that.
		start("-late")
		p.losses.set(lostAfter)
		cancel("-late")
		is("-late", cancelled)
		if _, stopped := p.counts(); stopped < 1 {
			t.Errorf("%s has stopped %d runs", p.name, stopped)
		}
		p.say(p.done, "all done", "")
		start("-late")
		if err := tasks.Poll(t.Context()); err != nil {
			t.Error(err)
		}
		is("-late", cancelled)
		// Done before: it is not cancelled.
		start("-done")
		p.say(p.done, "all done", "")
		cancel("-done")
		is("-done", succeeded)
	}
}

// A poll reads what has become of runs, and deletes nothing that another source has put.
func TestAPollReadsWhatHasBecomeOfRuns(t *testing.T) {
	t.Parallel()
	b := agents(t, 1)
	for _, p := range providers(t) {
		service := b.tasks(t, 0, "ada")
		tasks := &agent.Tasks{Service: service, Adapter: p.adapter(b.client(t, 0, "ada"))}
		for i := range 3 {
			id := fmt.Sprint(p.name, i)
			if _, err := tasks.Start(t.Context(), &projectv1.Task{TaskId: id, Model: "m"}, agent.Work{Prompt: "Fix"}); err != nil {
				t.Fatal(err)
			}
			if _, err := service.PutTask(t.Context(), &projectv1.PutTaskRequest{TaskId: id, Task: &projectv1.Task{Summary: "a webhook's"}}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := service.PutTask(t.Context(), &projectv1.PutTaskRequest{TaskId: p.name + "-gone", Task: &projectv1.Task{Provider: p.name, RunId: "bc-1/99"}}); err != nil {
			t.Fatal(err)
		}
		p.say(p.done, "all done", "https://example.com/1")
		if err := tasks.Poll(t.Context()); err != nil {
			t.Error(err)
		}
		res, err := service.ListTasks(t.Context(), &projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{Provider: p.name}})
		if err != nil || len(res.GetTasks()) != 4 {
			t.Fatal(res, err)
		}
		for _, task := range res.GetTasks() {
			if task.GetTaskId() == p.name+"-gone" {
				continue
			}
			if task.GetStatus() != succeeded || task.GetResult().GetStringValue() != "all done" || task.GetSummary() != "a webhook's" || task.GetModel() != "m" ||
				len(task.GetPullRequests()) != 1 || task.GetPullRequests()[0].GetUrl() != "https://example.com/1" || task.GetWebUrl() == "" {
				t.Errorf("%v", task)
			}
		}
	}
}

// The ledger forgets a creation after its retention, and Cursor its idempotency key. The agent's id is the same for ever.
func TestAnAgentThatExistsIsFound(t *testing.T) {
	t.Parallel()
	f := newFakeCursor(t)
	c := &cursor.Client{HTTP: &http.Client{Transport: base(t)}, URL: f.URL, Key: "secret"}
	first, err := c.Start(t.Context(), "k", agent.Work{Prompt: "Fix", Repository: "https://github.com/acme/api", Ref: "main"})
	if err != nil {
		t.Fatal(err)
	}
	f.forgetful = true
	again, err := c.Start(t.Context(), "k", agent.Work{Prompt: "Fix"})
	if err != nil || again.Task.GetRunId() != first.Task.GetRunId() || first.Task.GetParentRunId() == "" {
		t.Errorf("%v, then %v, %v", first, again, err)
	}
	for _, id := range []string{"", "bc-1", "bc-1/", "/run-1", "bc-1/run-1/x", "bc-1/run?x"} {
		if _, err := c.Read(t.Context(), []string{id}); err == nil {
			t.Errorf("%q is a run", id)
		}
	}
}

// A word of each provider becomes the status that its reference means.
func TestWordsOfCursor(t *testing.T) {
	t.Parallel()
	b := agents(t, 1)
	f := newFakeCursor(t)
	a := &cursor.Client{HTTP: &http.Client{Transport: base(t)}, URL: f.URL, Key: "secret"}
	tasks := &agent.Tasks{Service: b.tasks(t, 0, "ada"), Adapter: a}
	for word, want := range map[string]projectv1.TaskStatus{
		"CREATING": queued, "RUNNING": running, "FINISHED": succeeded, "ERROR": brokeOff, "CANCELLED": cancelled, "EXPIRED": expired,
		"HIBERNATING": projectv1.TaskStatus_TASK_STATUS_UNKNOWN,
	} {
		task, err := tasks.Start(t.Context(), &projectv1.Task{TaskId: word}, agent.Work{Prompt: "Fix"})
		if err != nil {
			t.Fatal(err)
		}
		of, _, _ := strings.Cut(task.GetRunId(), "/")
		f.mu.Lock()
		f.runs[of][0].Status = word
		f.mu.Unlock()
		if err := tasks.Poll(t.Context()); err != nil {
			t.Error(err)
		}
		res, err := tasks.Service.GetTask(t.Context(), &projectv1.GetTaskRequest{TaskId: word})
		if err != nil || res.GetTask().GetStatus() != want || res.GetTask().GetRawStatus() != word {
			t.Errorf("%s is %v, %v", word, res.GetTask(), err)
		}
	}
}
