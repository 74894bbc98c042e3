// Package codegen creates runs of Codegen's agents so that none is created twice. Codegen has no idempotency key. But a
// run keeps the metadata that it was created with and the list of runs shows it, so a creation that timed out can be found
// there before anything is sent again: that is what the Reconciler does.
package codegen

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"holdfast/coordclient"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
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
	Metadata       map[string]any `json:"metadata"`
}

// created is when the run was made; false where Codegen does not say.
func (r *Run) created() (time.Time, bool) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999"} {
		if t, err := time.Parse(layout, r.CreatedAt); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
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

// Runs is all of Codegen that this package needs. Client is one; a change of the product ends here.
type Runs interface {
	// CreateRun creates a run. The key is in its metadata.
	CreateRun(ctx context.Context, key string, n NewRun) (*Run, error)
	// ListRuns lists runs, newest first; limit is 1 to 100.
	ListRuns(ctx context.Context, skip, limit int) (*Page, error)
}

// StatusError: Codegen answered, but not with what was asked for.
type StatusError struct {
	Status  int
	Message string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("codegen: HTTP %d: %s", e.Status, e.Message)
}

// Client speaks to Codegen's API. It is safe for concurrent use.
type Client struct {
	HTTP         *http.Client
	URL          string
	Organization int64
	Token        string
}

var _ Runs = (*Client)(nil)

// CreateRun implements Runs. With an HTTP client whose transport is a coordclient's, it may be repeated with the same
// key until it succeeds, from any process: one run is created.
func (c *Client) CreateRun(ctx context.Context, key string, n NewRun) (*Run, error) {
	metadata := map[string]any{keyField: key}
	for k, v := range n.Metadata {
		if k != keyField {
			metadata[k] = v
		}
	}
	n.Metadata = metadata
	body, err := json.Marshal(n) // maps are sorted: the same run has the same fingerprint
	if err != nil {
		return nil, err
	}
	var run Run
	err = c.call(coordclient.WithKey(ctx, key), http.MethodPost, "/agent/run", bytes.NewReader(body), &run)
	return &run, err
}

// ListRuns implements Runs.
func (c *Client) ListRuns(ctx context.Context, skip, limit int) (*Page, error) {
	var p Page
	err := c.call(ctx, http.MethodGet, "/agent/runs?skip="+strconv.Itoa(skip)+"&limit="+strconv.Itoa(limit), http.NoBody, &p)
	return &p, err
}

func (c *Client) call(ctx context.Context, method, path string, body io.Reader, into any) error {
	base := c.URL
	if base == "" {
		base = DefaultURL
	}
	url := strings.TrimSuffix(base, "/") + "/v1/organizations/" + strconv.FormatInt(c.Organization, 10) + path
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	const most = 16 << 20
	text, err := io.ReadAll(io.LimitReader(res.Body, most))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		var e struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(text, &e) != nil || e.Message == "" {
			e.Message = http.StatusText(res.StatusCode)
		}
		return &StatusError{res.StatusCode, e.Message}
	}
	return json.Unmarshal(text, into)
}

var operations = []struct {
	method string
	path   *regexp.Regexp
	name   string
}{
	{http.MethodPost, regexp.MustCompile(`/agent/run/?$`), CreateRunOp},
	{http.MethodPost, regexp.MustCompile(`/agent/run/resume/?$`), "resume_run"},
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

// Reconciler finds runs whose creation was not answered. It is safe for concurrent use.
type Reconciler struct {
	Coordinator *coordclient.Client
	// API is the coordinator's name of Codegen. Default: codegen.
	API  string
	Runs Runs
	// Settle is how long after it was sent a creation may yet appear in the list. A request that is younger and not found
	// stays unknown. Default: 2 min.
	Settle time.Duration
	// Skew is how far Codegen's clock may be off: runs that it says are older than the request by more are not looked at.
	// Default: 10 min.
	Skew time.Duration
}

func (r *Reconciler) api() string {
	if r.API != "" {
		return r.API
	}
	return API
}

// Reconcile finds out about one request; it is for coordclient.Options.
func (r *Reconciler) Reconcile(ctx context.Context, req *coordinationv1.Call) error {
	return r.Coordinator.Reconcile(ctx, r.api(), req, r.look)
}

// All finds out about all creations of which nobody knows. It goes on after an error, and returns how many are not
// unknown any more.
func (r *Reconciler) All(ctx context.Context) (settled int, err error) {
	unknown, err := r.Coordinator.Unknown(ctx, r.api(), CreateRunOp)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, req := range unknown {
		if err := r.Reconcile(ctx, req); err != nil {
			errs = append(errs, err)
			continue
		}
		settled++
	}
	return settled, errors.Join(errs...)
}

// look pages through the runs, newest first, back to the time of the request. Runs that are created meanwhile move the
// others to later pages, so one may be seen twice, but none is missed.
func (r *Reconciler) look(ctx context.Context, req *coordinationv1.Call, now time.Time) (coordclient.Finding, error) {
	const (
		pageSize = 100
		maxPages = 50
	)
	skew, settle := r.Skew, r.Settle
	if skew == 0 {
		skew = 10 * time.Minute
	}
	if settle == 0 {
		settle = 2 * time.Minute
	}
	oldest := req.GetCreateTime().AsTime().Add(-skew)
	end := false
	for page := 0; page < maxPages && !end; page++ {
		p, err := r.Runs.ListRuns(ctx, page*pageSize, pageSize)
		if err != nil {
			return coordclient.Finding{}, fmt.Errorf("list runs: %w", err)
		}
		for i := range p.Items {
			run := &p.Items[i]
			if run.Metadata[keyField] == req.GetKey() {
				return found(run)
			}
			if created, ok := run.created(); ok && created.Before(oldest) {
				end = true
			}
		}
		end = end || len(p.Items) < pageSize
	}
	switch {
	case !end:
		return coordclient.Finding{Why: fmt.Sprintf("not among the newest %d runs, and there are more", maxPages*pageSize)}, nil
	case now.Before(req.GetBeginTime().AsTime().Add(settle)):
		return coordclient.Finding{Why: "not among the runs yet"}, nil
	}
	return coordclient.Finding{DidNotHappen: true, Why: "not among the runs"}, nil
}

func found(run *Run) (coordclient.Finding, error) {
	body, err := json.Marshal(run)
	if err != nil {
		return coordclient.Finding{}, err
	}
	o := &coordinationv1.Outcome{
		HttpStatus: http.StatusOK, Body: body, Headers: map[string]string{"Content-Type": "application/json"},
		Reference: strconv.FormatInt(run.ID, 10),
	}
	const most = 64 << 10
	if len(body) > most {
		o.Body, o.Truncated = nil, true
	}
	return coordclient.Finding{Outcome: o}, nil
}
