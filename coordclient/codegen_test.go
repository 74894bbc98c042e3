package coordclient_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/coordclient"
	"holdfast/coordclient/agent"
	"holdfast/coordclient/codegen"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
)

// fakeCodegen answers as Codegen's API reference says, for the organization 7 and the token "secret". What it does wrong
// it does because a test tells it to.
type fakeCodegen struct {
	*httptest.Server
	losses losses

	mu   sync.Mutex // guards what follows
	runs []codegen.Run
	bans int
	// lose drops the connection of so many creations after the run was made, and before so many others.
	loseAfter, loseBefore int
	calls                 int
}

func newFakeCodegen(t *testing.T) *fakeCodegen {
	t.Helper()
	f := &fakeCodegen{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/organizations/{org}/agent/run", f.create)
	mux.HandleFunc("GET /v1/organizations/{org}/agent/runs", f.list)
	mux.HandleFunc("GET /v1/organizations/{org}/agent/run/{id}", f.get)
	mux.HandleFunc("POST /v1/organizations/{org}/agent/run/ban", f.ban)
	f.losses.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer secret":
			problem(w, http.StatusUnauthorized, "Not authenticated")
		case !strings.HasPrefix(r.URL.Path, "/v1/organizations/7/"):
			problem(w, http.StatusForbidden, "You do not have access to this organization.")
		default:
			mux.ServeHTTP(w, r)
		}
	})
	f.Server = httptest.NewServer(&f.losses)
	t.Cleanup(f.Close)
	return f
}

func problem(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"message": message, "status_code": status})
}

// invalid is FastAPI's answer to a wrong request.
func invalid(w http.ResponseWriter, field, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnprocessableEntity)
	_ = json.NewEncoder(w).Encode(map[string]any{"detail": []any{map[string]any{"loc": []string{"body", field}, "msg": message, "type": "missing"}}})
}

func (f *fakeCodegen) create(w http.ResponseWriter, r *http.Request) {
	var n codegen.NewRun
	if err := json.NewDecoder(r.Body).Decode(&n); err != nil || n.Prompt == "" {
		invalid(w, "prompt", "Field required")
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.loseBefore > 0 {
		f.loseBefore--
		panic(http.ErrAbortHandler)
	}
	run := codegen.Run{
		ID: int64(1000 + len(f.runs)), OrganizationID: 7, Status: "ACTIVE", CreatedAt: time.Now().UTC().Format("2006-01-02 15:04:05.000000"),
		WebURL: "https://codegen.com/x", SourceType: "API", Metadata: n.Metadata,
	}
	f.runs = append(f.runs, run)
	if f.loseAfter > 0 {
		f.loseAfter--
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(run)
}

func (f *fakeCodegen) get(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.runs {
		if strconv.FormatInt(f.runs[i].ID, 10) == r.PathValue("id") {
			_ = json.NewEncoder(w).Encode(f.runs[i])
			return
		}
	}
	problem(w, http.StatusNotFound, "Agent run not found.")
}

func (f *fakeCodegen) ban(w http.ResponseWriter, r *http.Request) {
	var req struct {
		ID int64 `json:"agent_run_id"`
	}
	_ = json.NewDecoder(r.Body).Decode(&req)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.runs {
		if f.runs[i].ID == req.ID {
			if f.runs[i].Status == "ACTIVE" {
				f.bans++
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"message": "banned"}) // and the run's status follows later
			return
		}
	}
	problem(w, http.StatusNotFound, "Agent run not found.")
}

func (f *fakeCodegen) list(w http.ResponseWriter, r *http.Request) {
	skip, err := strconv.Atoi(r.FormValue("skip"))
	limit, err2 := strconv.Atoi(r.FormValue("limit"))
	if err != nil || err2 != nil || skip < 0 || limit < 1 || limit > 100 {
		invalid(w, "limit", "Input should be less than or equal to 100")
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	page := codegen.Page{Items: []codegen.Run{}, Total: len(f.runs)}
	for i := len(f.runs) - 1 - skip; i >= 0 && len(page.Items) < limit; i-- {
		page.Items = append(page.Items, f.runs[i])
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(page)
}

// others makes runs that somebody else has created.
func (f *fakeCodegen) others(n int, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range n {
		f.runs = append(f.runs, codegen.Run{ID: int64(100000 + i), CreatedAt: at.UTC().Format(time.RFC3339), Metadata: map[string]any{"theirs": i}})
	}
}

func (f *fakeCodegen) made() (runs, calls int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.runs), f.calls
}

// client creates runs through the coordinator.
func (f *fakeCodegen) client(t *testing.T, c *coordclient.Client, o coordclient.Options) *codegen.Client {
	t.Helper()
	o.Base, o.Operation = base(t), codegen.Operation
	return &codegen.Client{HTTP: &http.Client{Transport: c.Transport(codegen.API, o)}, URL: f.URL, Organization: 7, Token: "secret"}
}

func TestACreationThatTimedOutIsFound(t *testing.T) {
	t.Parallel()
	b, f := setup(t, 2), newFakeCodegen(t)
	c := b.client(t, 0, "ada")
	f.others(3, time.Now())
	f.loseAfter = 1
	runs := f.client(t, c, coordclient.Options{})
	n := codegen.NewRun{Prompt: "Fix the login", Metadata: map[string]any{"issue": "ENG-1"}}

	_, err := runs.CreateRun(t.Context(), "issue-17", n)
	var unknown *coordclient.UnknownError
	if !errors.As(err, &unknown) || unknown.Key != "issue-17" {
		t.Fatalf("the creation that was not answered: %v", err)
	}
	if made, calls := f.made(); made != 4 || calls != 1 {
		t.Fatalf("%d runs by %d calls", made, calls)
	}
	// Whoever tries again, wherever, is told so.
	if _, err = f.client(t, b.client(t, 1, "ada"), coordclient.Options{}).CreateRun(t.Context(), "issue-17", n); !errors.As(err, &unknown) {
		t.Fatalf("tried again: %v", err)
	}
	f.others(250, time.Now())

	// A service reconciles all that is unknown.
	service := b.client(t, 1, "")
	reconciler := agent.Reconciler(service, f.client(t, service, coordclient.Options{MaxWait: time.Minute}))
	settled, err := reconciler.All(t.Context(), codegen.CreateRunOp)
	if err != nil || settled != 1 {
		t.Fatalf("reconciled: %d, %v", settled, err)
	}
	run, err := runs.CreateRun(t.Context(), "issue-17", n)
	if err != nil || run.ID != 1003 || run.Metadata["issue"] != "ENG-1" {
		t.Errorf("after that: %v, %v", run, err)
	}
	if _, calls := f.made(); calls != 1 {
		t.Errorf("%d calls", calls)
	}
	if settled, err := reconciler.All(t.Context(), ""); settled != 0 || err != nil {
		t.Errorf("reconciled again: %d, %v", settled, err)
	}
}

func TestACreationThatDidNotArriveIsSentAgain(t *testing.T) {
	t.Parallel()
	b, f := setup(t, 1), newFakeCodegen(t)
	c := b.client(t, 0, "ada")
	f.loseBefore = 1
	n := codegen.NewRun{Prompt: "Fix the login"}
	raw := &codegen.Client{HTTP: &http.Client{Transport: base(t)}, URL: f.URL, Organization: 7, Token: "secret"}

	// A creation may yet appear while it is young: then nothing is sent.
	young := agent.Reconciler(c, raw)
	young.Settle = time.Hour
	_, err := f.client(t, c, coordclient.Options{Reconcile: young.Reconcile}).CreateRun(t.Context(), "r", n)
	var unknown *coordclient.UnknownError
	if !errors.As(err, &unknown) {
		t.Fatalf("the creation that was not answered: %v", err)
	}
	if _, err = f.client(t, c, coordclient.Options{Reconcile: young.Reconcile}).CreateRun(t.Context(), "r", n); !errors.As(err, &unknown) {
		t.Fatalf("while it is young: %v", err)
	}
	old := agent.Reconciler(c, raw)
	old.Settle = time.Nanosecond
	run, err := f.client(t, c, coordclient.Options{Reconcile: old.Reconcile}).CreateRun(t.Context(), "r", n)
	if err != nil || run.ID != 1000 {
		t.Fatalf("after it has not been found: %v, %v", run, err)
	}
	if made, calls := f.made(); made != 1 || calls != 2 {
		t.Errorf("%d runs by %d calls", made, calls)
	}
	got, err := c.Service.GetCall(t.Context(), &coordinationv1.GetCallRequest{Api: codegen.API, Key: "r"})
	if err != nil || got.GetCall().GetAttempt() != 2 {
		t.Errorf("the ledger: %v, %v", got, err)
	}
}

func TestWhatCodegenRefusesIsNotSentAgain(t *testing.T) {
	t.Parallel()
	b, f := setup(t, 1), newFakeCodegen(t)
	runs := f.client(t, b.client(t, 0, "ada"), coordclient.Options{})
	var first string
	for i := range 2 {
		_, err := runs.CreateRun(t.Context(), "r", codegen.NewRun{})
		var refused *agent.StatusError
		if !errors.As(err, &refused) || refused.Status != http.StatusUnprocessableEntity {
			t.Fatalf("without a prompt: %v", err)
		}
		if i == 0 {
			first = err.Error()
		} else if err.Error() != first {
			t.Errorf("%q, then %q", first, err)
		}
	}
	if got := ledger(t, b.client(t, 0, "ada"), codegen.API); len(got) != 1 || got[0].GetStatus() != coordinationv1.CallStatus_CALL_STATUS_FAILED || got[0].GetAttempt() != 1 {
		t.Errorf("the ledger: %v", got)
	}
}

func TestOperationsOfCodegen(t *testing.T) {
	t.Parallel()
	for call, want := range map[string]string{
		"POST /v1/organizations/7/agent/run": "create_run", "POST /v1/organizations/7/agent/run/resume": "resume_run",
		"GET /v1/organizations/7/agent/runs": "list_runs", "GET /v1/organizations/7/agent/run/5": "get_run",
		"GET /v1/alpha/organizations/7/agent/run/5/logs": "run_logs", "GET /v1/organizations/7/repos": "read", "GET /v1/users/me": "read",
		"PATCH /v1/organizations/7/prs/5": "edit_pr", "POST /v1/organizations/7/setup-commands/generate": "setup_commands",
		"POST /v1/organizations/7/sandbox/3/analyze-logs": "analyze_logs", "POST /v1/organizations/7/agent/run/ban": "ban_run",
		"POST /v1/organizations/7/agent/run/unban": "other",
	} {
		method, path, _ := strings.Cut(call, " ")
		if got := codegen.Operation(httptest.NewRequest(method, path, http.NoBody)); got != want {
			t.Errorf("%s is %s, want %s", call, got, want)
		}
	}
}
