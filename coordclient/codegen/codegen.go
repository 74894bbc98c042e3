// Package codegen is the adapter of Codegen. Codegen has no idempotency key. But a run keeps the metadata that it was created with and the
// list of runs shows it, so a creation that was not answered can be found there before anything is sent again.
package codegen

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/coordclient"
	"holdfast/coordclient/agent"
	projectv1 "holdfast/gen/holdfast/project/v1"
)

// DefaultURL is where Codegen's API is.
const DefaultURL = "https://api.codegen.com"

// Names of the coordinator's: the API, and the operation of a creation.
const (
	API         = "codegen"
	CreateRunOp = "create_run"
	keyField    = "holdfast_key" // in a run's metadata; runs that exist have it, so it never changes
)

// Run is a run of an agent, as Codegen's AgentRunResponse has it. What Codegen may leave out is empty then.
type Run struct {
	ID             int64          `json:"id"`
	OrganizationID int64          `json:"organization_id"`
	Status         string         `json:"status"`
	CreatedAt      string         `json:"created_at"`
	WebURL         string         `json:"web_url"`
	Result         string         `json:"result"`
	Summary        string         `json:"summary"`
	SourceType     string         `json:"source_type"`
	PullRequests   []PullRequest  `json:"github_pull_requests"`
	Metadata       map[string]any `json:"metadata"`
}

// PullRequest is one that a run made.
type PullRequest struct {
	ID             int64  `json:"id"`
	CreatedAt      string `json:"created_at"`
	Title          string `json:"title"`
	URL            string `json:"url"`
	HeadBranchName string `json:"head_branch_name"`
}

// moment reads a time of Codegen's, which has a zone or none; false where it is none.
func moment(s string) (time.Time, bool) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// run is what tasks keep of a run.
func (r *Run) run() *agent.Run {
	t := &projectv1.Task{Provider: API, RunId: strconv.FormatInt(r.ID, 10), WebUrl: r.WebURL, Summary: agent.Clip(r.Summary)}
	if r.Result != "" {
		t.Result = structpb.NewStringValue(agent.Clip(r.Result))
	}
	for _, p := range r.PullRequests[:min(len(r.PullRequests), agent.MaxPullRequests)] {
		pr := &projectv1.PullRequest{PullRequestId: strconv.FormatInt(p.ID, 10), Title: p.Title, Url: p.URL, HeadBranch: p.HeadBranchName}
		if at, ok := moment(p.CreatedAt); ok {
			pr.CreateTime = timestamppb.New(at)
		}
		t.PullRequests = append(t.PullRequests, pr)
	}
	return &agent.Run{Task: t, Status: r.Status}
}

// NewRun is what a run is created with, as Codegen's CreateAgentRunInput has it.
type NewRun struct {
	Prompt    string         `json:"prompt"`
	Images    []string       `json:"images,omitempty"`
	Metadata  map[string]any `json:"metadata,omitempty"`
	RepoID    int64          `json:"repo_id,omitempty"`
	Model     string         `json:"model,omitempty"`
	AgentType string         `json:"agent_type,omitempty"`
}

// Page is a page of the list of runs, newest first.
type Page struct {
	Items []Run `json:"items"`
	Total int   `json:"total"`
}

// Client speaks to Codegen's API. It is safe for concurrent use.
type Client struct {
	HTTP         *http.Client
	URL          string
	Organization int64
	Token        string
	// Skew is how far Codegen's clock may be off: Find passes runs over that it says are older than the creation by more. Default: 10 min.
	Skew time.Duration
}

var _ agent.Adapter = (*Client)(nil)

// Provider implements agent.Adapter.
func (*Client) Provider() string { return API }

// CreateRun creates a run. With an HTTP client whose transport is a coordclient's, it may be repeated with the same key until it
// succeeds, from any process: one run is created.
func (c *Client) CreateRun(ctx context.Context, key string, n NewRun) (*Run, error) {
	metadata := map[string]any{keyField: key}
	for k, v := range n.Metadata {
		if k != keyField {
			metadata[k] = v
		}
	}
	n.Metadata = metadata
	var run Run
	err := c.post(coordclient.WithKey(ctx, key), "/agent/run", n, &run)
	return &run, err
}

// Start implements agent.Adapter. The repository is Codegen's repo_id.
func (c *Client) Start(ctx context.Context, key string, w agent.Work) (*agent.Run, error) {
	n := NewRun{Prompt: w.Prompt, Model: w.Model}
	if w.Repository != "" {
		id, err := strconv.ParseInt(w.Repository, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("codegen: the repository is %q; it has to be a number, Codegen's repo_id", w.Repository)
		}
		n.RepoID = id
	}
	if w.Ref != "" {
		return nil, fmt.Errorf("codegen: the ref is %q; runs begin at the default branch", w.Ref)
	}
	run, err := c.CreateRun(ctx, key, n)
	if err != nil {
		return nil, err
	}
	return run.run(), nil
}

// Cancel implements agent.Adapter. Codegen has no word for it: a ban stops a run, and those of the same pull request.
func (c *Client) Cancel(ctx context.Context, key, runID string) error {
	id, err := strconv.ParseInt(runID, 10, 64)
	if err != nil {
		return fmt.Errorf("codegen: %q is the id of no run", runID)
	}
	var none any
	return c.post(coordclient.WithKey(ctx, key), "/agent/run/ban", map[string]any{"agent_run_id": id}, &none)
}

const (
	pageSize = 100
	maxPages = 50
)

// Read implements agent.Adapter. One page of the list has a hundred runs, so those that are not among the newest are read one by one.
func (c *Client) Read(ctx context.Context, runIDs []string) ([]*agent.Run, error) {
	var runs []*agent.Run
	left := slices.Clone(runIDs)
	if len(left) > 1 {
		p, err := c.ListRuns(ctx, 0, pageSize)
		if err != nil {
			return nil, err
		}
		for i := range p.Items {
			if run := p.Items[i].run(); slices.Contains(left, run.Task.GetRunId()) {
				runs = append(runs, run)
				left = slices.DeleteFunc(left, func(id string) bool { return id == run.Task.GetRunId() })
			}
		}
	}
	for _, id := range left {
		var run Run
		err := c.call(ctx, http.MethodGet, "/agent/run/"+url.PathEscape(id), nil, &run)
		switch {
		case agent.NotFound(err):
		case err != nil:
			return runs, err
		default:
			runs = append(runs, run.run())
		}
	}
	return runs, nil
}

// ListRuns lists runs, newest first; limit is 1 to 100.
func (c *Client) ListRuns(ctx context.Context, skip, limit int) (*Page, error) {
	var p Page
	err := c.call(ctx, http.MethodGet, "/agent/runs?skip="+strconv.Itoa(skip)+"&limit="+strconv.Itoa(limit), nil, &p)
	return &p, err
}

// Find implements agent.Adapter. It pages through the runs, newest first. Runs that are created meanwhile move the others to later pages,
// so one may be seen twice, but none is missed.
func (c *Client) Find(ctx context.Context, key string, since time.Time) (any, error) {
	skew := c.Skew
	if skew == 0 {
		skew = 10 * time.Minute
	}
	for page := range maxPages {
		p, err := c.ListRuns(ctx, page*pageSize, pageSize)
		if err != nil {
			return nil, fmt.Errorf("list runs: %w", err)
		}
		end := len(p.Items) < pageSize
		for i := range p.Items {
			if p.Items[i].Metadata[keyField] == key {
				return &p.Items[i], nil
			}
			created, ok := moment(p.Items[i].CreatedAt)
			end = end || ok && created.Before(since.Add(-skew))
		}
		if end {
			return nil, nil
		}
	}
	return nil, fmt.Errorf("codegen: the run is not among the newest %d, and there are more", maxPages*pageSize)
}

func (c *Client) post(ctx context.Context, path string, body, into any) error {
	text, err := json.Marshal(body) // maps are sorted: the same run has the same fingerprint
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, path, text, into)
}

func (c *Client) call(ctx context.Context, method, path string, body []byte, into any) error {
	base := c.URL
	if base == "" {
		base = DefaultURL
	}
	address := strings.TrimSuffix(base, "/") + "/v1/organizations/" + strconv.FormatInt(c.Organization, 10) + path
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	return agent.JSON(c.HTTP, req, into)
}

var operations = []struct {
	method string
	path   *regexp.Regexp
	name   string
}{
	{http.MethodPost, regexp.MustCompile(`/agent/run/?$`), CreateRunOp},
	{http.MethodPost, regexp.MustCompile(`/agent/run/resume/?$`), "resume_run"},
	{http.MethodPost, regexp.MustCompile(`/agent/run/ban/?$`), "ban_run"},
	{http.MethodPost, regexp.MustCompile(`/setup-commands/generate/?$`), "setup_commands"},
	{http.MethodPost, regexp.MustCompile(`/analyze-logs/?$`), "analyze_logs"},
	{http.MethodPatch, regexp.MustCompile(`/prs/[^/]+/?$`), "edit_pr"},
	{http.MethodGet, regexp.MustCompile(`/agent/run/[^/]+/logs/?$`), "run_logs"},
	{http.MethodGet, regexp.MustCompile(`/agent/run/[^/]+/?$`), "get_run"},
	{http.MethodGet, regexp.MustCompile(`/agent/runs/?$`), "list_runs"},
	{http.MethodGet, regexp.MustCompile(``), "read"},
}

// Operation names Codegen's calls as the ready-made policies do; it is for coordclient.Options.
func Operation(r *http.Request) string {
	for _, o := range operations {
		if r.Method == o.method && o.path.MatchString(r.URL.Path) {
			return o.name
		}
	}
	return "other"
}
