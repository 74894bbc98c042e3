// Package cursor is the adapter of Cursor's cloud agents, version 1 of their API. An agent there has one run after the other, one for each
// prompt: a run of a task is the agent's id, a slash, and the run's. The client chooses the agent's id, so a creation that was not
// answered is found by it.
package cursor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/coordclient"
	"holdfast/coordclient/agent"
	projectv1 "holdfast/gen/holdfast/project/v1"
)

// DefaultURL is where Cursor's API is.
const DefaultURL = "https://api.cursor.com"

// API is the coordinator's name of Cursor.
const API = "cursor"

// Agent is what lasts over the runs of an agent. Its status says whether it is archived, not whether it works.
type Agent struct {
	ID          string       `json:"id"`
	Name        string       `json:"name,omitempty"`
	Status      string       `json:"status"`
	Repos       []Repository `json:"repos,omitempty"`
	URL         string       `json:"url"`
	CreatedAt   time.Time    `json:"createdAt"`
	LatestRunID string       `json:"latestRunId,omitempty"`
}

// Repository is where an agent works.
type Repository struct {
	URL         string `json:"url"`
	StartingRef string `json:"startingRef,omitempty"`
}

// Run is the work on one prompt.
type Run struct {
	ID        string    `json:"id"`
	AgentID   string    `json:"agentId"`
	Status    string    `json:"status"`
	CreatedAt time.Time `json:"createdAt"`
	Result    string    `json:"result,omitempty"`
	Git       struct {
		Branches []Branch `json:"branches"`
	} `json:"git"`
}

// Branch is one that a run pushed.
type Branch struct {
	RepoURL string `json:"repoUrl"`
	Branch  string `json:"branch,omitempty"`
	PRURL   string `json:"prUrl,omitempty"`
}

// Created is the answer to a creation.
type Created struct {
	Agent Agent `json:"agent"`
	Run   Run   `json:"run"`
}

func (r *Run) run(webURL string) *agent.Run {
	t := &projectv1.Task{Provider: API, RunId: r.AgentID + "/" + r.ID, ParentRunId: r.AgentID, WebUrl: webURL}
	if r.Result != "" {
		t.Result = structpb.NewStringValue(agent.Clip(r.Result))
	}
	for _, b := range r.Git.Branches {
		if b.PRURL != "" && len(t.GetPullRequests()) < agent.MaxPullRequests {
			t.PullRequests = append(t.PullRequests, &projectv1.PullRequest{Url: b.PRURL, HeadBranch: b.Branch})
		}
	}
	return &agent.Run{Task: t, Status: r.Status}
}

// Client speaks to Cursor's API. It is safe for concurrent use.
type Client struct {
	HTTP *http.Client
	URL  string
	Key  string
	// OpenPullRequests has Cursor open a pull request where a run has pushed something.
	OpenPullRequests bool
}

var _ agent.Adapter = (*Client)(nil)

// Provider implements agent.Adapter.
func (*Client) Provider() string { return API }

// agentID is the id of the agent that a key names.
func agentID(key string) string {
	sum := sha256.Sum256([]byte("holdfast\x00" + key))
	id := uuid.UUID(sum[:16])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // as one of version 4 looks
	return "bc-" + id.String()
}

type newAgent struct {
	AgentID string `json:"agentId"`
	Prompt  struct {
		Text string `json:"text"`
	} `json:"prompt"`
	Model        *model       `json:"model,omitempty"`
	Repos        []Repository `json:"repos,omitempty"`
	AutoCreatePR bool         `json:"autoCreatePR,omitempty"`
}

type model struct {
	ID string `json:"id"`
}

// Start implements agent.Adapter: it creates an agent, which starts its first run. The repository is its address.
func (c *Client) Start(ctx context.Context, key string, w agent.Work) (*agent.Run, error) {
	n := newAgent{AgentID: agentID(key), AutoCreatePR: c.OpenPullRequests}
	n.Prompt.Text = w.Prompt
	if w.Model != "" {
		n.Model = &model{w.Model}
	}
	if w.Repository != "" {
		n.Repos = []Repository{{w.Repository, w.Ref}}
	} else if w.Ref != "" {
		return nil, fmt.Errorf("cursor: the ref is %q, and there is no repository", w.Ref)
	}
	var made Created
	err := c.call(coordclient.WithKey(ctx, key), http.MethodPost, "", n, key, &made)
	if conflict(err) {
		// The ledger has forgotten the creation, but Cursor has not.
		found, lookErr := c.find(ctx, key)
		if found == nil {
			return nil, errors.Join(err, lookErr)
		}
		made, err = *found, nil
	}
	if err != nil {
		return nil, err
	}
	return made.Run.run(made.Agent.URL), nil
}

// Cancel implements agent.Adapter.
func (c *Client) Cancel(ctx context.Context, key, runID string) error {
	path, err := pathOf(runID)
	if err != nil {
		return err
	}
	var none any
	err = c.call(coordclient.WithKey(ctx, key), http.MethodPost, path+"/cancel", struct{}{}, "", &none)
	if conflict(err) {
		return nil // it has ended
	}
	return err
}

// Read implements agent.Adapter. Lists of agents do not say how their runs stand.
func (c *Client) Read(ctx context.Context, runIDs []string) ([]*agent.Run, error) {
	var runs []*agent.Run
	for _, id := range runIDs {
		path, err := pathOf(id)
		if err != nil {
			return runs, err
		}
		var r Run
		err = c.call(ctx, http.MethodGet, path, nil, "", &r)
		switch {
		case agent.NotFound(err):
		case err != nil:
			return runs, err
		default:
			r.AgentID, r.ID, _ = strings.Cut(id, "/")
			runs = append(runs, r.run(""))
		}
	}
	return runs, nil
}

// Find implements agent.Adapter.
func (c *Client) Find(ctx context.Context, key string, _ time.Time) (any, error) {
	found, err := c.find(ctx, key)
	if found == nil {
		return nil, err
	}
	return found, err
}

// find reads the agent that a key names, and its first run; nil: there is none.
func (c *Client) find(ctx context.Context, key string) (*Created, error) {
	made := &Created{}
	err := c.call(ctx, http.MethodGet, "/"+agentID(key), nil, "", &made.Agent)
	if agent.NotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for cursor := ""; ; {
		var p struct {
			Items      []Run  `json:"items"`
			NextCursor string `json:"nextCursor"`
		}
		if err := c.call(ctx, http.MethodGet, "/"+agentID(key)+"/runs?limit=100"+cursor, nil, "", &p); err != nil {
			return nil, err
		}
		for i := range p.Items {
			if r := &p.Items[i]; made.Run.ID == "" || r.CreatedAt.Before(made.Run.CreatedAt) {
				made.Run = *r
			}
		}
		if p.NextCursor == "" {
			break
		}
		cursor = "&cursor=" + p.NextCursor
	}
	if made.Run.ID == "" {
		return nil, fmt.Errorf("cursor: the agent %s has no run yet", made.Agent.ID)
	}
	return made, nil
}

func pathOf(runID string) (string, error) {
	of, run, ok := strings.Cut(runID, "/")
	if !ok || of == "" || run == "" || strings.ContainsAny(runID, "?#% ") || strings.Contains(run, "/") {
		return "", fmt.Errorf("cursor: %q is the id of no run; it is the agent's, a slash, and the run's", runID)
	}
	return "/" + of + "/runs/" + run, nil
}

func conflict(err error) bool {
	e, ok := errors.AsType[*agent.StatusError](err)
	return ok && e.Status == http.StatusConflict
}

func (c *Client) call(ctx context.Context, method, path string, body any, idempotencyKey string, into any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	base := c.URL
	if base == "" {
		base = DefaultURL
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(base, "/")+"/v1/agents"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.SetBasicAuth(c.Key, "")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if idempotencyKey != "" {
		req.Header.Set("Idempotency-Key", idempotencyKey)
	}
	return agent.JSON(c.HTTP, req, into)
}
