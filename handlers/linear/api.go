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
}

// since reads a page behind a cursor; "": the first one.
func (a linearAPI) since(ctx context.Context, since time.Time, cursor string, n int) (page, error) {
	var after *string
	if cursor != "" {
		after = &cursor
	}
	res, err := linear.IssuesSince(ctx, a.client, since.UTC().Format(time.RFC3339Nano), n, after)
	if err != nil {
		if cursor != "" && isBadInput(err) {
			return page{}, errBadCursor
		}
		return page{}, plainError(err)
	}
	if res.Issues == nil || res.Issues.PageInfo == nil {
		return page{}, errors.New("linear's answer has no issues")
	}
	p := page{}
	if p.issues, err = payloads(res.Issues.Nodes); err != nil {
		return page{}, err
	}
	if info := res.Issues.PageInfo; info.HasNextPage {
		if info.EndCursor == nil || *info.EndCursor == "" || *info.EndCursor == cursor {
			return page{}, errors.New("linear says that there is a next page, and not where")
		}
		p.cursor = *info.EndCursor
	}
	return p, nil
}

// byID reads issues; those that are gone are left out.
func (a linearAPI) byID(ctx context.Context, ids []string) ([]*structpb.Struct, error) {
	res, err := linear.IssuesByID(ctx, a.client, ids, len(ids))
	if err != nil {
		return nil, plainError(err)
	}
	if res.Issues == nil {
		return nil, errors.New("linear's answer has no issues")
	}
	return payloads(res.Issues.Nodes)
}

// payloads are the issues as Linear wrote them.
func payloads(nodes []*linear.IssueFields) ([]*structpb.Struct, error) {
	out := make([]*structpb.Struct, 0, len(nodes))
	for _, n := range nodes {
		raw, err := json.Marshal(n)
		if err != nil {
			return nil, err
		}
		s, err := readPayload(raw)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
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

// plainError says what went wrong without a word of Linear's: an error is stored and shown.
func plainError(err error) error {
	if _, ok := errors.AsType[*rateLimitedError](err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	code := ""
	for _, e := range listed(err) {
		if c, ok := e.Extensions["code"].(string); ok {
			code = cmp.Or(code, c)
		}
	}
	code, _ = cut(code, 64)
	if e, ok := errors.AsType[*graphql.HTTPError](err); ok {
		return fmt.Errorf("linear answered with HTTP %d %s", e.StatusCode, code)
	}
	if code != "" || listed(err) != nil {
		return fmt.Errorf("linear answered with the error %q", code)
	}
	return errors.New("linear cannot be reached, or its answer cannot be read")
}
