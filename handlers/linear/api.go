package linear

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
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

// The lists that are read of Linear, which are the fields of its queries.
const (
	issues      = "issues"
	comments    = "comments"
	attachments = "attachments"
	// Steps of agents' sessions are only looked for by their ids.
	agentActivities = "agentActivities"
)

// page is one page of a list.
type page struct {
	things []*structpb.Struct
	cursor string // "": the last page
	// whole is false where an error left things out.
	whole bool
}

// place is where the reading of a list goes on.
type place struct {
	since  time.Time
	cursor string // "": on the first page
}

// pages says which pages are read: one of each list.
type pages struct {
	teams []string // of issues; none: of all teams
	first int
	from  map[string]place
}

// variables are those of a list.
func (p pages) variables(list string) (asked bool, since, after *string) {
	at, asked := p.from[list]
	if !asked {
		return false, nil, nil
	}
	t := at.since.UTC().Format(time.RFC3339Nano)
	if at.cursor != "" {
		after = &at.cursor
	}
	return true, &t, after
}

func (p pages) team() *map[string]any {
	if len(p.teams) == 0 {
		return nil
	}
	return &map[string]any{"id": map[string]any{"in": p.teams}}
}

// connection is a list as an answer has it.
type connection struct {
	nodes []*json.RawMessage
	end   *linear.PageEnd
}

// changes reads a page of each list. A list that Linear does not answer is not in got; err says why.
func (a linearAPI) changes(ctx context.Context, of pages) (got map[string]page, err error) {
	i, iSince, iAfter := of.variables(issues)
	c, cSince, cAfter := of.variables(comments)
	t, tSince, tAfter := of.variables(attachments)
	res, err := linear.Changes(ctx, a.client, of.first, of.team(), i, iSince, iAfter, c, cSince, cAfter, t, tSince, tAfter)
	lists := map[string]connection{}
	if res != nil && res.Issues != nil {
		lists[issues] = connection{res.Issues.Nodes, res.Issues.PageInfo}
	}
	if res != nil && res.Comments != nil {
		lists[comments] = connection{res.Comments.Nodes, res.Comments.PageInfo}
	}
	if res != nil && res.Attachments != nil {
		lists[attachments] = connection{res.Attachments.Nodes, res.Attachments.PageInfo}
	}
	return of.read(lists, err)
}

// ids is changes for the ids alone, of one list.
func (a linearAPI) ids(ctx context.Context, list string, of pages) (page, error) {
	of.from = map[string]place{list: of.from[list]}
	i, iSince, iAfter := of.variables(issues)
	c, cSince, cAfter := of.variables(comments)
	t, tSince, tAfter := of.variables(attachments)
	res, err := linear.ChangedIDs(ctx, a.client, of.first, of.team(), i, iSince, iAfter, c, cSince, cAfter, t, tSince, tAfter)
	lists := map[string]connection{}
	switch {
	case res == nil:
	case res.Issues != nil:
		lists[issues] = connection{res.Issues.Nodes, res.Issues.PageInfo}
	case res.Comments != nil:
		lists[comments] = connection{res.Comments.Nodes, res.Comments.PageInfo}
	case res.Attachments != nil:
		lists[attachments] = connection{res.Attachments.Nodes, res.Attachments.PageInfo}
	}
	got, err := of.read(lists, err)
	if err != nil {
		return page{}, err
	}
	return got[list], nil
}

// read reads the lists that an answer has. The error says why it has not all.
func (p pages) read(lists map[string]connection, err error) (map[string]page, error) {
	failed, got := listed(err), map[string]page{}
	later := false
	for list, at := range p.from {
		later = later || at.cursor != ""
		c := lists[list]
		if err != nil && len(failed) == 0 || c.end == nil {
			continue
		}
		cursor, wrong := nextCursor(c.end.HasNextPage, c.end.EndCursor, at.cursor)
		if wrong != nil {
			return got, wrong
		}
		things, whole := readNodes(list, c.nodes, failed)
		got[list] = page{things, cursor, whole}
	}
	switch {
	case len(got) == len(p.from):
		return got, nil
	case err == nil:
		return got, &apiError{said: "linear's answer has no " + strings.Join(missing(p.from, got), " and no "), kind: linearDown}
	case later && isBadInput(err):
		return got, errBadCursor
	}
	return got, plainError(err)
}

// missing are the lists that an answer does not have.
func missing(from map[string]place, got map[string]page) (lists []string) {
	for _, list := range slices.Sorted(maps.Keys(from)) {
		if _, ok := got[list]; !ok {
			lists = append(lists, list)
		}
	}
	return lists
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

// byID reads things of a list; those that are gone, or that the key does not see, are left out. Where an error leaves out others, whole is
// false.
func (a linearAPI) byID(ctx context.Context, list string, ids []string) (things []*structpb.Struct, whole bool, _ error) {
	res, err := linear.ByID(ctx, a.client, ids, len(ids), list == issues, list == comments, list == attachments, list == agentActivities)
	failed := listed(err)
	var nodes []*json.RawMessage
	switch {
	case err != nil && len(failed) == 0 || res == nil:
		return nil, false, plainError(err)
	case list == issues && res.Issues != nil:
		nodes = res.Issues.Nodes
	case list == comments && res.Comments != nil:
		nodes = res.Comments.Nodes
	case list == attachments && res.Attachments != nil:
		nodes = res.Attachments.Nodes
	case list == agentActivities && res.AgentActivities != nil:
		nodes = res.AgentActivities.Nodes
	case err != nil:
		return nil, false, plainError(err)
	default:
		return nil, false, &apiError{said: "linear's answer has no " + list, kind: linearDown}
	}
	things, whole = readNodes(list, nodes, failed)
	return things, whole, nil
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

// readNodes reads the things of a list that can be read, as Linear wrote them. A property that has an error is unknown, and not null: it is
// left out. whole is false where things are missing.
func readNodes(list string, nodes []*json.RawMessage, errs gqlerror.List) (things []*structpb.Struct, whole bool) {
	whole = true
	for i, n := range nodes {
		var s *structpb.Struct
		if n != nil {
			if read, err := readPayload(*n); err == nil {
				s = read
			}
		}
		for _, e := range errs {
			if of, at, property := failedNode(e); of == list && at == i {
				delete(s.GetFields(), property)
			}
		}
		if text(s.GetFields(), "id") == "" {
			whole = false
			continue
		}
		things = append(things, s)
	}
	return things, whole
}

// failedNode is the list that has an error, the place of the thing in it that has it, and its property; "" and -1: none.
func failedNode(e *gqlerror.Error) (list string, node int, property string) {
	if e == nil || len(e.Path) == 0 {
		return "", -1, ""
	}
	name, _ := e.Path[0].(ast.PathName)
	if len(e.Path) < 3 || e.Path[1] != ast.PathName("nodes") {
		return string(name), -1, ""
	}
	at, ok := e.Path[2].(ast.PathIndex)
	if !ok {
		return string(name), -1, ""
	}
	if len(e.Path) > 3 {
		name, _ := e.Path[3].(ast.PathName)
		property = string(name)
	}
	return string(name), int(at), property
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

// isBadInput reports whether Linear found fault with the request's values.
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
	// nodes are the places of the things on the page that the answer blames, and list is the list that it does; "": none.
	nodes []int
	list  string
}

func (e *apiError) Error() string { return e.said }

// errorKind tells what to do about an apiError.
type errorKind int

const (
	// linearDown: Linear is not there, or breaks. It may be over soon.
	linearDown errorKind = iota
	// linearRefused: it is the key or the query; other things would not be answered either.
	linearRefused
	// badThings: it may be one of the things that were asked for.
	badThings
)

// plainError makes an apiError of what a call returned.
func plainError(err error) error {
	if _, ok := errors.AsType[*rateLimitedError](err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	code, list, errs := "", "", listed(err)
	var nodes []int
	for _, e := range errs {
		if c, ok := e.Extensions["code"].(string); ok {
			code = cmp.Or(code, c)
		}
		of, at, _ := failedNode(e)
		if list = cmp.Or(list, of); at >= 0 && of == list {
			nodes = append(nodes, at)
		}
	}
	code, _ = cut(code, 64)
	kind := badThings
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
		return &apiError{strings.TrimSpace(fmt.Sprintf("linear answered with HTTP %d %s", e.StatusCode, code)), kind, nodes, list}
	}
	if len(errs) > 0 {
		return &apiError{fmt.Sprintf("linear answered with the error %q", code), kind, nodes, list}
	}
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); !ok {
		kind = linearDown
	}
	return &apiError{"linear cannot be reached, or its answer cannot be read", kind, nil, ""}
}
