package linear

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/Khan/genqlient/graphql"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/gqlerror"
	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/gen/linear"
)

// maxAnswer bounds what is read of an answer of Linear's: a page of issues is at most a few hundred KiB.
const maxAnswer = 32 << 20

// rateLimitedError: Linear answers nothing more before a time. It says so with HTTP 400 and the code RATELIMITED, not
// with 429.
type rateLimitedError struct{ until time.Time }

func (e *rateLimitedError) Error() string { return "linear's rate limit is exhausted" }

// errBadCursor: Linear no longer knows the cursor of a page.
var errBadCursor = errors.New("linear does not take the cursor")

// linearAPI reads Linear's API with one key.
type linearAPI struct{ client graphql.Client }

func newLinearAPI(c *SyncConfig, key string) linearAPI {
	return linearAPI{graphql.NewClient(c.URL, &linearDoer{key, c})}
}

// page is one page of the issues that were updated at a time or later.
type page struct {
	issues []*structpb.Struct
	cursor string // "": the last page
	// whole is false where an error left issues out.
	whole bool
}

// pages says which issues are read.
type pages struct {
	since time.Time
	teams []string // none: of all teams
	first int
}

// since reads a page behind a cursor; "": the first one.
func (a linearAPI) since(ctx context.Context, of pages, cursor string) (page, error) {
	since, after, team := of.variables(cursor)
	res, err := linear.IssuesSince(ctx, a.client, since, of.first, after, team)
	failed := listed(err)
	if err != nil && (len(failed) == 0 || res.Issues == nil || res.Issues.PageInfo == nil) {
		if cursor != "" && isBadInput(err) {
			return page{}, errBadCursor
		}
		return page{}, plainError(err)
	}
	if res.Issues == nil || res.Issues.PageInfo == nil {
		return page{}, &apiError{said: "linear's answer has no issues", kind: linearDown}
	}
	p := page{}
	p.issues, p.whole = readIssues(res.Issues.Nodes, failed)
	p.cursor, err = nextCursor(res.Issues.PageInfo.HasNextPage, res.Issues.PageInfo.EndCursor, cursor)
	return p, err
}

// idsSince reads the ids of the issues of a page.
func (a linearAPI) idsSince(ctx context.Context, of pages, cursor string) (ids []string, next string, _ error) {
	since, after, team := of.variables(cursor)
	res, err := linear.IssueIDsSince(ctx, a.client, since, of.first, after, team)
	if err != nil {
		return nil, "", plainError(err)
	}
	if res.Issues == nil || res.Issues.PageInfo == nil {
		return nil, "", &apiError{said: "linear's answer has no issues", kind: linearDown}
	}
	issues, _ := readIssues(res.Issues.Nodes, nil)
	for _, i := range issues {
		ids = append(ids, text(i.GetFields(), "id"))
	}
	next, err = nextCursor(res.Issues.PageInfo.HasNextPage, res.Issues.PageInfo.EndCursor, cursor)
	return ids, next, err
}

func (p pages) variables(cursor string) (since string, after *string, team *map[string]any) {
	if cursor != "" {
		after = &cursor
	}
	if len(p.teams) > 0 {
		team = &map[string]any{"id": map[string]any{"in": p.teams}}
	}
	return p.since.UTC().Format(time.RFC3339Nano), after, team
}

// nextCursor is where the page behind this one begins; "": there is none.
func nextCursor(more bool, end *string, cursor string) (string, error) {
	if !more {
		return "", nil
	}
	if end == nil || *end == "" || *end == cursor || len(*end) > maxCursor {
		return "", &apiError{said: "linear says that there is a next page, and not where", kind: linearDown}
	}
	return *end, nil
}

// maxCursor is far above what Linear's cursors have, which are UUIDs.
const maxCursor = 4 << 10

// byID reads issues; those that are gone, or that the key does not see, are left out. Where an error leaves out others, whole is false.
func (a linearAPI) byID(ctx context.Context, ids []string) (issues []*structpb.Struct, whole bool, _ error) {
	res, err := linear.IssuesByID(ctx, a.client, ids, len(ids))
	failed := listed(err)
	if err != nil && (len(failed) == 0 || res.Issues == nil) {
		return nil, false, plainError(err)
	}
	if res.Issues == nil {
		return nil, false, &apiError{said: "linear's answer has no issues", kind: linearDown}
	}
	issues, whole = readIssues(res.Issues.Nodes, failed)
	return issues, whole, nil
}

// teams reads which of some teams the key sees.
func (a linearAPI) teams(ctx context.Context, ids []string) (map[string]bool, error) {
	res, err := linear.TeamsByID(ctx, a.client, ids, len(ids))
	if err != nil {
		return nil, plainError(err)
	}
	seen := map[string]bool{}
	for _, t := range res.GetTeams().GetNodes() {
		seen[t.GetId()] = true
	}
	return seen, nil
}

// readIssues reads the issues that can be read, as Linear wrote them. A property that has an error is unknown, and not null: it is left
// out. whole is false where issues are missing.
func readIssues(nodes []*json.RawMessage, errs gqlerror.List) (issues []*structpb.Struct, whole bool) {
	whole = true
	for i, n := range nodes {
		var s *structpb.Struct
		if n != nil {
			if read, err := readPayload(*n); err == nil {
				s = read
			}
		}
		for _, e := range errs {
			if at, property := failedNode(e); at == i {
				delete(s.GetFields(), property)
			}
		}
		if text(s.GetFields(), "id") == "" {
			whole = false
			continue
		}
		issues = append(issues, s)
	}
	return issues, whole
}

// failedNode is the issue of an answer that has an error, and its property that has it; -1: none.
func failedNode(e *gqlerror.Error) (node int, property string) {
	if e == nil || len(e.Path) < 3 || e.Path[1] != ast.PathName("nodes") {
		return -1, ""
	}
	at, ok := e.Path[2].(ast.PathIndex)
	if !ok {
		return -1, ""
	}
	if len(e.Path) > 3 {
		name, _ := e.Path[3].(ast.PathName)
		property = string(name)
	}
	return int(at), property
}

// linearDoer adds the key to requests and tells rate limits from other refusals.
type linearDoer struct {
	key string
	c   *SyncConfig
}

// Do implements [graphql.Doer].
func (d *linearDoer) Do(req *http.Request) (*http.Response, error) {
	// A personal key is sent as it is, an OAuth token as a bearer's.
	if strings.HasPrefix(d.key, "lin_api_") {
		req.Header.Set("Authorization", d.key)
	} else {
		req.Header.Set("Authorization", "Bearer "+d.key)
	}
	res, err := d.c.Client.Do(req) //nolint:gosec // the address is the operator's
	if err != nil {
		if wait, ok := d.c.RetryAfter(err); ok {
			return nil, &rateLimitedError{d.c.Now().Add(min(max(wait, time.Second), maxPause))}
		}
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if limited(res.StatusCode, body) {
		return nil, &rateLimitedError{resetTime(res.Header, d.c.Now())}
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res, nil
}

func limited(status int, body []byte) bool {
	if status == http.StatusTooManyRequests {
		return true
	}
	var answer struct {
		Errors gqlerror.List `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return false
	}
	return hasCode(answer.Errors, "RATELIMITED")
}

func hasCode(errs gqlerror.List, codes ...string) bool {
	for _, e := range errs {
		for _, code := range codes {
			if e != nil && e.Extensions["code"] == code {
				return true
			}
		}
	}
	return false
}

const (
	// defaultPause is for where Linear does not say when it will answer again, maxPause for where it says nonsense.
	defaultPause = time.Minute
	maxPause     = 2 * time.Hour
)

// resetTime is when the last of the exhausted budgets is full again. Linear has one of requests, one of complexity and
// one of the endpoint, and gives their ends in Unix milliseconds.
func resetTime(h http.Header, now time.Time) time.Time {
	var until time.Time
	for _, budget := range []string{"Requests", "Complexity", "Endpoint-Requests"} {
		ms, err := strconv.ParseInt(h.Get("X-Ratelimit-"+budget+"-Reset"), 10, 64)
		if err != nil {
			continue
		}
		// One that has something left is not the one that refused, if the header is there at all.
		if left, err := strconv.ParseFloat(h.Get("X-Ratelimit-"+budget+"-Remaining"), 64); err == nil && left > 0 {
			continue
		}
		if t := time.UnixMilli(ms); t.After(until) {
			until = t
		}
	}
	if s, err := strconv.ParseInt(h.Get("Retry-After"), 10, 32); err == nil && s > 0 {
		until = now.Add(time.Duration(s) * time.Second) // what the server says outright goes before what follows from budgets
	}
	switch {
	case !until.After(now):
		return now.Add(defaultPause)
	case until.After(now.Add(maxPause)):
		return now.Add(maxPause)
	}
	return until
}

// isBadInput tells whether Linear found fault with the request's values.
func isBadInput(err error) bool {
	return hasCode(listed(err), "INVALID_INPUT", "INPUT_ERROR", "BAD_USER_INPUT", "GRAPHQL_VALIDATION_FAILED")
}

// listed are the GraphQL errors of an answer.
func listed(err error) gqlerror.List {
	if e, ok := errors.AsType[*graphql.HTTPError](err); ok {
		return e.Response.Errors
	}
	if e, ok := errors.AsType[gqlerror.List](err); ok {
		return e
	}
	return nil
}

// apiError is why Linear did not answer, without a word of Linear's own: it is stored and shown.
type apiError struct {
	said string
	kind errorKind
	// nodes are the places of the issues on the page that the answer blames.
	nodes []int
}

func (e *apiError) Error() string { return e.said }

// errorKind tells what to do about an apiError.
type errorKind int

const (
	// linearDown: Linear is not there, or breaks. It may be over soon.
	linearDown errorKind = iota
	// linearRefused: it is the key or the query; other issues would not be answered either.
	linearRefused
	// badIssues: it may be one of the issues that were asked for.
	badIssues
)

// plainError makes an apiError of what a call returned.
func plainError(err error) error {
	if _, ok := errors.AsType[*rateLimitedError](err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	code, errs := "", listed(err)
	var nodes []int
	for _, e := range errs {
		if c, ok := e.Extensions["code"].(string); ok {
			code = cmp.Or(code, c)
		}
		if at, _ := failedNode(e); at >= 0 {
			nodes = append(nodes, at)
		}
	}
	code, _ = cut(code, 64)
	kind := badIssues
	if hasCode(errs, "AUTHENTICATION_ERROR", "FORBIDDEN", "GRAPHQL_VALIDATION_FAILED", "GRAPHQL_PARSE_FAILED", "FEATURE_NOT_ACCESSIBLE", "USAGE_LIMIT_EXCEEDED") {
		kind = linearRefused
	}
	if e, ok := errors.AsType[*graphql.HTTPError](err); ok {
		switch {
		case e.StatusCode >= http.StatusInternalServerError:
			kind = linearDown
		case len(errs) == 0 || e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden:
			kind = linearRefused
		}
		return &apiError{strings.TrimSpace(fmt.Sprintf("linear answered with HTTP %d %s", e.StatusCode, code)), kind, nodes}
	}
	if len(errs) > 0 {
		return &apiError{fmt.Sprintf("linear answered with the error %q", code), kind, nodes}
	}
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); !ok {
		kind = linearDown
	}
	return &apiError{"linear cannot be reached, or its answer cannot be read", kind, nil}
}
