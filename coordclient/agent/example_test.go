package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/coordclient"
	"holdfast/coordclient/agent"
	projectv1 "holdfast/gen/holdfast/project/v1"
)

// begin
// Acme runs jobs: PUT /jobs/{id} makes one, POST /jobs/{id}/stop stops it, GET /jobs/{id} shows it.
type Acme struct {
	HTTP *http.Client
	URL  string
}

type job struct {
	ID, State, Answer string
}

func (j *job) run() *agent.Run {
	return &agent.Run{Status: j.State, Task: &projectv1.Task{Provider: "acme", RunId: j.ID, Summary: agent.Clip(j.Answer)}}
}

func (*Acme) Provider() string { return "acme" }

func (a *Acme) Start(ctx context.Context, key string, w agent.Work) (*agent.Run, error) {
	j, err := a.call(coordclient.WithKey(ctx, key), http.MethodPut, "/jobs/"+key, map[string]string{"prompt": w.Prompt})
	return j.run(), err
}

func (a *Acme) Cancel(ctx context.Context, key, runID string) error {
	_, err := a.call(coordclient.WithKey(ctx, key), http.MethodPost, "/jobs/"+runID+"/stop", nil)
	return err
}

func (a *Acme) Read(ctx context.Context, runIDs []string) (runs []*agent.Run, _ error) {
	for _, id := range runIDs {
		j, err := a.call(ctx, http.MethodGet, "/jobs/"+id, nil)
		if agent.NotFound(err) {
			continue
		}
		if err != nil {
			return runs, err
		}
		runs = append(runs, j.run())
	}
	return runs, nil
}

func (a *Acme) Find(ctx context.Context, key string, _ time.Time) (any, error) {
	j, err := a.call(ctx, http.MethodGet, "/jobs/"+key, nil)
	if agent.NotFound(err) {
		return nil, nil
	}
	return j, err
}

func (a *Acme) call(ctx context.Context, method, path string, body any) (*job, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return &job{}, err
	}
	req, err := http.NewRequestWithContext(ctx, method, a.URL+path, bytes.NewReader(text))
	if err != nil {
		return &job{}, err
	}
	j := &job{}
	return j, agent.JSON(a.HTTP, req, j)
}

// end

func Example() {
	jobs := map[string]*job{}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		jobs[r.PathValue("id")] = &job{ID: r.PathValue("id"), State: "in-progress"}
		_ = json.NewEncoder(w).Encode(jobs[r.PathValue("id")])
	})
	mux.HandleFunc("POST /jobs/{id}/stop", func(w http.ResponseWriter, r *http.Request) {
		jobs[r.PathValue("id")].State = "canceled"
		_, _ = io.WriteString(w, "{}")
	})
	mux.HandleFunc("GET /jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		if j := jobs[r.PathValue("id")]; j != nil {
			_ = json.NewEncoder(w).Encode(j)
			return
		}
		http.NotFound(w, r)
	})
	s := httptest.NewServer(mux)
	defer s.Close()

	ctx := context.Background()
	var acme agent.Adapter = &Acme{HTTP: s.Client(), URL: s.URL}
	run, err := acme.Start(ctx, "fix-login", agent.Work{Prompt: "Fix the login"})
	fmt.Println(run.Task.GetRunId(), run.Status, err)
	fmt.Println(acme.Cancel(ctx, "cancel/fix-login", run.Task.GetRunId()))
	runs, err := acme.Read(ctx, []string{"fix-login", "another"})
	fmt.Println(len(runs), runs[0].Status, err)
	answer, err := acme.Find(ctx, "another", time.Time{})
	fmt.Println(answer, err)
	// Output:
	// fix-login in-progress <nil>
	// <nil>
	// 1 canceled <nil>
	// <nil> <nil>
}

// The adapter of docs/tasks.md is the one above.
func TestTheAdapterOfTheDocs(t *testing.T) {
	t.Parallel()
	here, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/tasks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(here), "// begin\n")
	program, _, _ = strings.Cut(program, "\n// end\n")
	if program == "" || !strings.Contains(string(page), "```go\n"+program+"```\n") {
		t.Error("docs/tasks.md has another program")
	}
}
