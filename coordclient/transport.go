package coordclient

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/handlers/coordination/dialect"
)

// Options adjust a Transport. The zero Options are good for most APIs.
type Options struct {
	// Base sends the requests. Default: a transport of its own.
	Base http.RoundTripper
	// Operation names what kind of call a request is, as the API's policies have it. Default: the method and path, with
	// segments that hold a digit replaced by *.
	Operation func(*http.Request) string
	// Safe tells which requests change nothing, and so need limits and breaker but no ledger. Default: GET, HEAD, OPTIONS.
	Safe func(*http.Request) bool
	// Cost is what a request takes of the policies that count cost. Default: 0.
	Cost func(*http.Request) int64
	// Refused tells which answers promise that the request has not happened, so that it may be sent again, besides those that
	// say so in a way that is common: 425, 429, 529, and an error that names a limit or an overload. It gets the beginning of an
	// error's body. A 503 without such an error is no promise: a proxy in front of the provider answers so, too. Optional.
	Refused func(status int, body []byte) bool
	// MaxWait is for how long in all a request waits for its turn, or for another who sends the same. 0: not at all; then
	// it fails with a WaitError or an InFlightError.
	MaxWait time.Duration
	// Timeout is how long a request may take once it is sent, 100 ms to 1 h. Default: 60 s.
	Timeout time.Duration
	// Holder is who sends, for others to see.
	Holder string
	// Reconcile finds out what became of a request that nobody knows about, as Client.Reconcile does. nil: such a request
	// fails with an UnknownError. After nil it is asked for once more.
	Reconcile func(context.Context, *coordinationv1.Call) error
	// OnError hears of what could not be told to the server after the provider had answered. Optional.
	OnError func(error)
}

// KeyHeader names a request in the ledger. It is taken away before the request is sent. WithKey does the same.
const KeyHeader = "Holdfast-Call-Key"

// ReplayedHeader is set on an answer that comes from the ledger.
const ReplayedHeader = "Holdfast-Replayed"

type callKey struct{}

// WithKey names the requests made with the context, one at a time, in the ledger: up to 128 bytes. A request that changes
// something and has no name gets one that nobody knows: then its limits count, but a retry is another request.
func WithKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, callKey{}, key)
}

// Transport is an http.RoundTripper that coordinates the calls of an API. It is safe for concurrent use. Beside the errors
// of its base it returns WaitError, LateError, InFlightError, UnknownError, FailedError and TruncatedError, which an
// http.Client wraps: use errors.As, and RetryAfter.
//
// A policy's margin is kept: what could not be sent in time is not sent, gives back what it took, and waits for its turn
// again. It counts from before the turn was asked for until there is a connection to the provider, where the base is an
// *http.Transport, or else until the base is called.
func (c *Client) Transport(api string, o Options) http.RoundTripper {
	if o.Base == nil {
		o.Base = &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second}
	}
	if o.Operation == nil {
		o.Operation = operationOf
	}
	if o.Safe == nil {
		o.Safe = func(r *http.Request) bool {
			return r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions
		}
	}
	if o.Cost == nil {
		o.Cost = func(*http.Request) int64 { return 0 }
	}
	if o.Refused == nil {
		o.Refused = func(int, []byte) bool { return false }
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	return &transport{c, api, time.Now, o} //nolint:forbidigo // it is linked into other programs, which have one clock
}

var aThing = regexp.MustCompile(`^[^/]*[0-9][^/]*$`)

func operationOf(r *http.Request) string {
	segments := strings.Split(r.URL.Path, "/")
	for i, s := range segments {
		if aThing.MatchString(s) && !isVersion.MatchString(s) {
			segments[i] = "*"
		}
	}
	name := r.Method + " " + strings.Join(segments, "/")
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("._:/* -", r) || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
			return r
		}
		return '-'
	}, name[:min(len(name), 128)])
}

var isVersion = regexp.MustCompile(`^v[0-9]+(alpha|beta)?[0-9]*$`)

type transport struct {
	client *Client
	api    string
	now    func() time.Time
	Options
}

// CloseIdleConnections closes those of the base; http.Client looks for it.
func (t *transport) CloseIdleConnections() {
	if base, ok := t.Base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.Safe(r) {
		return t.read(r)
	}
	return t.change(r)
}

// patience is what is left of MaxWait.
type patience struct{ left time.Duration }

// spend waits for d and a little more, so that those who were told the same time do not come together. It returns
// false where that is longer than what is left.
func (p *patience) spend(ctx context.Context, d time.Duration) (bool, error) {
	d = max(d, 10*time.Millisecond)
	if d > p.left {
		return false, nil
	}
	if n, err := rand.Int(rand.Reader, big.NewInt(int64(d/10)+1)); err == nil {
		d += time.Duration(n.Int64())
	}
	p.left -= min(d, p.left)
	return true, sleep(ctx, d)
}

// late takes the time off that a turn was waited for in vain. It returns a LateError where none is left.
func (p *patience) late(api string, within, took time.Duration) error {
	if p.left -= took; p.left <= 0 {
		return &LateError{api, within, took}
	}
	return nil
}

// errLate: the time in which a request had to be sent was over before it was.
var errLate = errors.New("coordclient: too late to be sent")

// dispatch hands a request to the base, within so long from asked, where within is not 0. began tells that something may
// have been sent. With errLate nothing was.
func (t *transport) dispatch(r *http.Request, body []byte, asked time.Time, within time.Duration) (res *http.Response, began bool, err error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	var begun atomic.Bool
	out := without(r).WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { begun.Store(true) },
	}))
	if len(body) > 0 || r.Body != nil && r.Body != http.NoBody {
		read := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		out.Body, _ = read()
		out.ContentLength = int64(len(body))
		if r.GetBody != nil {
			out.GetBody = read
		}
	}
	if within > 0 {
		left := within - t.now().Sub(asked)
		if left <= 0 {
			cancel(nil)
			return nil, false, errLate
		}
		if t.tellsConnections() {
			timer := time.AfterFunc(left, func() {
				if !begun.Load() {
					cancel(errLate)
				}
			})
			defer timer.Stop()
		}
	}
	res, err = t.Base.RoundTrip(out)
	if err == nil {
		res.Body = &cancelBody{res.Body, func() { cancel(nil) }}
		return res, true, nil
	}
	began = begun.Load() || !t.tellsConnections()
	if !began && errors.Is(context.Cause(ctx), errLate) {
		err = errLate
	}
	cancel(nil)
	return nil, began, err
}

// read sends what changes nothing.
func (t *transport) read(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	operation, graphQL, p := t.Operation(r), isGraphQL(r, body), patience{t.MaxWait}
	for {
		asked := t.now()
		got, err := t.client.Service.Acquire(ctx, &coordinationv1.AcquireRequest{Api: t.api, Operation: operation, Cost: t.Cost(r)})
		if err != nil {
			return nil, fmt.Errorf("coordclient: %w", err)
		}
		if got.GetAllowed() {
			within := got.GetSendWithin().AsDuration()
			res, _, err := t.dispatch(r, body, asked, within)
			late := errors.Is(err, errLate)
			if !late || got.GetProbe() {
				t.report(ctx, got, res, graphQL)
			}
			if late || got.GetLease() != nil {
				t.release(ctx, got, late)
			}
			if !late {
				return res, err
			}
			if err := p.late(t.api, within, t.now().Sub(asked)); err != nil {
				return nil, err
			}
			continue
		}
		after := got.GetRetryAfter().AsDuration()
		if waited, err := p.spend(ctx, pollTime(got.GetWaitReason(), after)); err != nil {
			return nil, err
		} else if !waited {
			return nil, &WaitError{t.api, got.GetWaitReason(), after}
		}
	}
}

// report tells the server how a read went; nothing that goes wrong with that is the caller's.
func (t *transport) report(ctx context.Context, got *coordinationv1.AcquireResponse, res *http.Response, graphQL bool) {
	if res == nil && ctx.Err() != nil && !got.GetProbe() {
		return // the caller left, which says nothing about the provider
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	response := &coordinationv1.ProviderResponse{}
	if res != nil {
		var start beginning
		if graphQL || res.StatusCode >= http.StatusBadRequest || res.ContentLength >= 0 {
			start = peekBody(res) // what is good and of no known length may be long in coming
		}
		response = t.response(res, start)
	}
	_, err := t.client.Service.Report(ctx, &coordinationv1.ReportRequest{
		Api: t.api, GrantId: got.GetGrantId(), Report: &coordinationv1.ReportRequest_Response{Response: response},
	})
	if err != nil {
		t.OnError(fmt.Errorf("coordclient: report a call of %s: %w", t.api, err))
	}
}

// release ends the lease of a read, and gives back all that it took where it was not sent. Only services may do the latter: what
// a user took is gone.
func (t *transport) release(ctx context.Context, got *coordinationv1.AcquireResponse, unused bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	req := &coordinationv1.ReleaseRequest{Api: t.api, GrantId: got.GetGrantId(), Unused: unused}
	_, err := t.client.Service.Release(ctx, req)
	if unused && connect.CodeOf(err) == connect.CodePermissionDenied {
		if err = nil; got.GetLease() != nil {
			req.Unused = false
			_, err = t.client.Service.Release(ctx, req)
		}
	}
	if err != nil {
		t.OnError(fmt.Errorf("coordclient: release a grant of %s: %w", t.api, err))
	}
}

// change sends what changes something, once.
func (t *transport) change(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	// What a 307 or 308 sends elsewhere is the same call.
	first := r
	for first.Response != nil && first.Response.Request != nil && first.Response.Request.Method == r.Method {
		first = first.Response.Request
	}
	operation, mark := t.Operation(first), fingerprint(first, body)
	id := r.Header.Get(KeyHeader)
	if name, ok := ctx.Value(callKey{}).(string); ok && id == "" {
		id = name
	}
	named := id != ""
	if !named {
		id = "unnamed-" + rand.Text()
	}
	p, reconciled := patience{t.MaxWait}, false
	for {
		// The lease begins after this, so it ends after this.
		asked := t.now()
		sending, cancel := context.WithTimeout(ctx, t.Timeout)
		got, err := t.client.begin(ctx, &coordinationv1.BeginCallRequest{
			Api: t.api, Operation: operation, Key: id, Fingerprint: mark, Holder: t.Holder,
			Timeout: durationpb.New(t.Timeout), Cost: t.Cost(r),
		})
		if err != nil {
			cancel()
			return nil, fmt.Errorf("coordclient: %w", err)
		}
		if got.GetDecision() == coordinationv1.Decision_DECISION_PROCEED {
			res, err := t.send(sending, r, body, call{id, named, got, asked})
			if errors.Is(err, errLate) {
				cancel()
				if err := p.late(t.api, got.GetSendWithin().AsDuration(), t.now().Sub(asked)); err != nil {
					return nil, err
				}
				continue
			}
			if err != nil {
				cancel()
				return nil, err
			}
			res.Body = &cancelBody{res.Body, cancel}
			return res, nil
		}
		cancel()
		wait := got.GetRetryAfter().AsDuration()
		var refusal error
		switch got.GetDecision() {
		case coordinationv1.Decision_DECISION_DONE:
			return t.replay(r, id, got.GetCall())
		case coordinationv1.Decision_DECISION_UNKNOWN:
			refusal = &UnknownError{API: t.api, Key: id}
			if t.Reconcile == nil || reconciled {
				return nil, refusal
			}
			reconciled = true
			if err := t.Reconcile(ctx, got.GetCall()); err != nil {
				return nil, err
			}
			continue
		case coordinationv1.Decision_DECISION_IN_FLIGHT:
			refusal = &InFlightError{t.api, id, got.GetCall().GetLease().GetHolder(), wait}
			wait = min(wait, leasePoll) // as a rule it is over long before its lease is
		default:
			refusal = &WaitError{t.api, got.GetWaitReason(), wait}
			wait = pollTime(got.GetWaitReason(), wait)
		}
		if waited, err := p.spend(ctx, wait); err != nil {
			return nil, err
		} else if !waited {
			return nil, refusal
		}
	}
}

// leasePoll is how often is asked for the end of what another is doing.
const leasePoll = 250 * time.Millisecond

// pollTime is for how long a patient caller waits before it asks again.
func pollTime(reason coordinationv1.WaitReason, after time.Duration) time.Duration {
	if reason == coordinationv1.WaitReason_WAIT_REASON_PROBE {
		return min(after, leasePoll)
	}
	return after
}

// call is a request that may be sent now.
type call struct {
	id    string
	named bool
	begun *coordinationv1.BeginCallResponse
	asked time.Time
}

// send sends the request and tells the server what came of it. It returns errLate where it could not be sent in time.
func (t *transport) send(ctx context.Context, r *http.Request, body []byte, c call) (*http.Response, error) {
	r = r.WithContext(ctx)
	// net/http would send again, by itself, what has GetBody and looks idempotent to it.
	r.GetBody = nil
	res, began, err := t.dispatch(r, body, c.asked, c.begun.GetSendWithin().AsDuration())
	if err != nil {
		failure := &coordinationv1.CallFailure{Error: clip(err.Error())}
		canceled := errors.Is(r.Context().Err(), context.Canceled)
		if late := errors.Is(err, errLate); late || !began {
			failure.Failure, failure.NotSent, failure.NotDown = coordinationv1.Failure_FAILURE_RETRYABLE, true, canceled || late
			t.finish(ctx, failed(t.end(c), failure))
			return nil, err
		}
		failure.Failure, failure.NotDown = coordinationv1.Failure_FAILURE_UNKNOWN, canceled
		t.finish(ctx, failed(t.end(c), failure))
		return nil, &UnknownError{t.api, c.id, err}
	}
	graphQL := isGraphQL(r, body)
	switch streams := dialect.Streams(res.Header.Get("Content-Type")); {
	case !streams && (graphQL || res.StatusCode >= http.StatusBadRequest || res.ContentLength >= 0):
		t.answered(ctx, c, res, peekBody(res), graphQL)
	case streams:
		t.answered(ctx, c, res, beginning{}, false)
	default:
		// It may be long in coming: the caller gets it as it comes, and the server what it was when it has come.
		res.Body = &copying{ReadCloser: res.Body, done: func(start beginning) { t.answered(ctx, c, res, start, false) }}
	}
	return res, nil
}

// answered tells the server what the provider answered.
func (t *transport) answered(ctx context.Context, c call, res *http.Response, start beginning, graphQL bool) {
	end, outcome, status := t.end(c), outcomeOf(res, start), res.StatusCode
	end.Response = t.response(res, start)
	failure := &coordinationv1.CallFailure{Outcome: outcome, Error: fmt.Sprintf("HTTP %d", status)}
	meaning := dialect.MeaningOf(status, start.bytes, graphQL)
	if meaning != dialect.Done && t.Refused(status, start.bytes) {
		meaning = dialect.Refused
	}
	if c.named && meaning == dialect.Done && (status == http.StatusTemporaryRedirect || status == http.StatusPermanentRedirect) {
		// It is to be sent elsewhere, at once.
		failure.Failure, failure.NotSent, failure.NotDown = coordinationv1.Failure_FAILURE_RETRYABLE, true, true
		t.finish(ctx, failed(end, failure))
		return
	}
	switch meaning {
	case dialect.Done:
		t.finish(ctx, completed(end, outcome))
		return
	case dialect.Refused, dialect.Fixable:
		failure.Failure, failure.NotDown = coordinationv1.Failure_FAILURE_RETRYABLE, status != http.StatusServiceUnavailable
	case dialect.Doubtful:
		failure.Failure = coordinationv1.Failure_FAILURE_UNKNOWN
	default:
		failure.Failure = coordinationv1.Failure_FAILURE_TERMINAL
	}
	t.finish(ctx, failed(end, failure))
}

func (t *transport) end(c call) *coordinationv1.FinishCallRequest {
	return &coordinationv1.FinishCallRequest{Api: t.api, Key: c.id, FencingToken: c.begun.GetLease().GetFencingToken()}
}

// finish tells the server what became of a request, also where the caller has gone.
func (t *transport) finish(ctx context.Context, end *coordinationv1.FinishCallRequest) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := t.client.finish(ctx, end); err != nil {
		t.OnError(fmt.Errorf("coordclient: tell what became of a request to %s: %w", t.api, err))
	}
}

// isGraphQL reports whether a request is one of GraphQL, whose errors come with any status.
func isGraphQL(r *http.Request, body []byte) bool {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/graphql") || strings.HasSuffix(strings.TrimSuffix(r.URL.Path, "/"), "/graphql") {
		return true
	}
	var q struct {
		Query string `json:"query"`
	}
	return json.Unmarshal(body, &q) == nil && strings.Contains(q.Query, "{")
}

// tellsConnections reports whether the base shows in its trace if it got as far as sending.
func (t *transport) tellsConnections() bool {
	_, ok := t.Base.(*http.Transport)
	return ok
}

// replay is the answer that the ledger has.
func (t *transport) replay(r *http.Request, id string, stored *coordinationv1.Call) (*http.Response, error) {
	o := stored.GetOutcome()
	switch {
	case o.GetHttpStatus() == 0 && stored.GetStatus() == coordinationv1.CallStatus_CALL_STATUS_FAILED:
		return nil, &FailedError{t.api, id, stored.GetError()}
	case o.GetTruncated():
		return nil, &TruncatedError{t.api, id, o.GetReference(), int(o.GetHttpStatus())}
	}
	status := int(o.GetHttpStatus())
	if status == 0 {
		status = http.StatusOK // it was completed by who did not say how
	}
	res := &http.Response{
		Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(o.GetBody())), ContentLength: int64(len(o.GetBody())),
	}
	for name, value := range o.GetHeaders() {
		res.Header.Set(name, value)
	}
	res.Header.Set(ReplayedHeader, "true")
	return res, nil
}

// maxKept is how much of an answer the ledger keeps.
const maxKept = 64 << 10

// beginning is the first part of an answer's body.
type beginning struct {
	bytes []byte
	whole bool
}

// copying keeps the beginning of a body that its caller reads. done gets it once, with the body's end or before.
type copying struct {
	io.ReadCloser

	start []byte
	done  func(beginning)
}

func (c *copying) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if c.done != nil {
		c.start = append(c.start, p[:n]...)
		switch {
		case len(c.start) > maxKept:
			c.end(beginning{bytes: c.start[:maxKept]})
		case errors.Is(err, io.EOF):
			c.end(beginning{c.start, true})
		case err != nil:
			c.end(beginning{bytes: c.start})
		}
	}
	return n, err
}

// Close reads what a caller left who wanted no more than the status, where it comes at once.
func (c *copying) Close() error {
	if c.done != nil {
		const patience = 500 * time.Millisecond
		timer := time.AfterFunc(patience, func() { _ = c.ReadCloser.Close() })
		_, _ = io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, 4096))
		timer.Stop()
		if c.done != nil {
			c.end(beginning{bytes: c.start})
		}
	}
	return c.ReadCloser.Close()
}

func (c *copying) end(start beginning) {
	done := c.done
	c.done = nil
	done(start)
}

// peekBody reads the beginning of an answer's body and puts it back. A stream is left alone: it may not end for long.
func peekBody(res *http.Response) beginning {
	if dialect.Streams(res.Header.Get("Content-Type")) {
		return beginning{}
	}
	start, err := io.ReadAll(io.LimitReader(res.Body, maxKept+1))
	rest := res.Body
	tail := io.Reader(rest)
	if err != nil {
		tail = failing{err}
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(start), tail), rest}
	if err != nil || len(start) > maxKept {
		return beginning{bytes: start[:min(len(start), maxKept)]}
	}
	return beginning{start, true}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// kept are the headers of an answer that are worth keeping.
var kept = []string{"Content-Type", "Location", "Etag", "Last-Modified", "X-Request-Id"}

func outcomeOf(res *http.Response, start beginning) *coordinationv1.Outcome {
	o := &coordinationv1.Outcome{HttpStatus: int32(res.StatusCode), Truncated: !start.whole, Headers: map[string]string{}} //nolint:gosec // three digits
	if start.whole {
		o.Body = start.bytes
	}
	for _, name := range kept {
		if v := res.Header.Get(name); v != "" && len(v) <= 4096 {
			o.Headers[name] = v
		}
	}
	return o
}

// response is what of an answer tells about limits.
func (t *transport) response(res *http.Response, start beginning) *coordinationv1.ProviderResponse {
	r := &coordinationv1.ProviderResponse{HttpStatus: int32(res.StatusCode), Headers: map[string]string{}} //nolint:gosec // three digits
	for name, values := range res.Header {
		value := strings.Join(values, ", ")
		if dialect.About(name) && len(r.GetHeaders()) < 128 && len(name) <= 128 && len(value) <= 4096 {
			r.Headers[name] = value
		}
	}
	if res.StatusCode >= http.StatusBadRequest || bytes.Contains(start.bytes, []byte(`"errors"`)) {
		r.Body = start.bytes
	}
	return r
}

// fingerprint tells one request from another of the same id. The order of parameters, and of keys in JSON, makes no difference.
func fingerprint(r *http.Request, body []byte) string {
	h := sha256.New()
	u := *r.URL
	u.RawQuery = sorted(u.RawQuery)
	if strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), "application/x-www-form-urlencoded") {
		body = []byte(sorted(string(body)))
	} else if canonical, ok := canonicalJSON(body); ok {
		body = canonical
	}
	for _, part := range []string{r.Method, u.String(), string(body)} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// sorted is a query with its parameters in order; one that cannot be read is as it is.
func sorted(query string) string {
	values, err := url.ParseQuery(query)
	if err != nil {
		return query
	}
	return values.Encode()
}

// canonicalJSON is an object or a list with its keys in order, and numbers as they were written.
func canonicalJSON(body []byte) ([]byte, bool) {
	if trimmed := bytes.TrimSpace(body); len(trimmed) == 0 || trimmed[0] != '{' && trimmed[0] != '[' {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil, false
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, false // several documents
	}
	canonical, err := json.Marshal(v)
	return canonical, err == nil
}

// without is the request as it is sent.
func without(r *http.Request) *http.Request {
	out := r.Clone(r.Context())
	out.Header.Del(KeyHeader)
	return out
}

// readBody reads and closes the request's body.
func readBody(r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	defer r.Body.Close()
	return io.ReadAll(r.Body)
}

// cancelBody ends the context of a request with its answer's body.
type cancelBody struct {
	io.ReadCloser

	cancel context.CancelFunc
}

func (b *cancelBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}
