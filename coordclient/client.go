// Package coordclient puts Holdfast's API coordination around any HTTP client, in two lines:
//
//	coordinator := coordclient.New("https://holdfast.example.com", key)
//	client := &http.Client{Transport: coordinator.Transport("codegen", coordclient.Options{})}
//
// Each request of such a client waits its turn in the limits and the breaker that all processes share. One that changes
// something is entered into the ledger first: a repetition, from any process, gets the first answer, and it
// reaches the provider once. What may or may not have happened is never sent again by this package.
package coordclient

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
)

// Client speaks to a Holdfast server. It is safe for concurrent use.
type Client struct {
	// Service is all of the coordination API, for what this package has no words for.
	Service coordinationv1connect.CoordinationServiceClient
}

// Option adjusts a Client.
type Option func(*settings)

type settings struct {
	http connect.HTTPClient
	user string
}

// WithHTTPClient has the server called by another client than one of its own.
func WithHTTPClient(c connect.HTTPClient) Option { return func(s *settings) { s.http = c } }

// ForUser acts for a user, with a service's key: requests are the user's, and the user's own limits count.
func ForUser(user string) Option { return func(s *settings) { s.user = user } }

// New is a client of the server at baseURL, with an API key.
func New(baseURL, key string, opts ...Option) *Client {
	s := settings{http: &http.Client{Timeout: callTimeout}}
	for _, o := range opts {
		o(&s)
	}
	return &Client{coordinationv1connect.NewCoordinationServiceClient(s.http, baseURL, connect.WithInterceptors(credential{key, s.user}))}
}

// callTimeout bounds a call of the coordinator itself.
const callTimeout = 15 * time.Second

// credential says who asks.
type credential struct{ key, user string }

func (c credential) set(h http.Header) {
	h.Set("Authorization", "Bearer "+c.key)
	if c.user != "" {
		h.Set("Holdfast-User", c.user)
	}
}

func (c credential) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		c.set(req.Header())
		return next(ctx, req)
	}
}

func (c credential) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		c.set(conn.RequestHeader())
		return conn
	}
}

func (credential) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// WaitError: a limit, the breaker or an earlier failure does not let the request go yet. Nothing was sent.
type WaitError struct {
	API        string
	Reason     coordinationv1.WaitReason
	RetryAfter time.Duration
}

func (e *WaitError) Error() string {
	return fmt.Sprintf("coordclient: %s may be called again in %v (%v)", e.API, e.RetryAfter, e.Reason)
}

// LateError: the request could not be sent within the time that a policy's margin leaves for it. Nothing was sent, and it
// may be tried again at once.
type LateError struct {
	API string
	// SendWithin is how long it might have taken to send it, and Took how long it took to give up.
	SendWithin, Took time.Duration
}

func (e *LateError) Error() string {
	return fmt.Sprintf("coordclient: a call of %s could not be sent within %v, and was not sent; it took %v", e.API, e.SendWithin, e.Took)
}

// InFlightError: another is sending the same request. RetryAfter is when its lease ends at the latest.
type InFlightError struct {
	API, Key, Holder string
	RetryAfter       time.Duration
}

func (e *InFlightError) Error() string {
	return fmt.Sprintf("coordclient: request %q to %s is in flight, by %q", e.Key, e.API, e.Holder)
}

// UnknownError: the request may or may not have happened, and is not sent again until somebody has found out; see
// Client.Reconcile. Err is what went wrong, where it went wrong just now.
type UnknownError struct {
	API, Key string
	Err      error
}

func (e *UnknownError) Error() string {
	s := fmt.Sprintf("coordclient: whether request %q to %s has happened is unknown", e.Key, e.API)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *UnknownError) Unwrap() error { return e.Err }

// FailedError: the request failed for good, and the ledger has no answer of the provider's to show.
type FailedError struct{ API, Key, Reason string }

func (e *FailedError) Error() string {
	return fmt.Sprintf("coordclient: request %q to %s has failed: %s", e.Key, e.API, e.Reason)
}

// TruncatedError: the request has succeeded before, but its answer was too long to be kept.
type TruncatedError struct {
	API, Key, Reference string
	Status              int
}

func (e *TruncatedError) Error() string {
	return fmt.Sprintf("coordclient: request %q to %s was answered before, with %d, but the answer was too long to be kept", e.Key, e.API, e.Status)
}

// RetryAfter is when to try again after an error of this package; false where waiting does not help, or nobody knows.
func RetryAfter(err error) (time.Duration, bool) {
	if e, ok := errors.AsType[*WaitError](err); ok {
		return e.RetryAfter, true
	}
	if e, ok := errors.AsType[*InFlightError](err); ok {
		return e.RetryAfter, true
	}
	if _, ok := errors.AsType[*LateError](err); ok {
		return 0, true
	}
	return 0, false
}

// Finding is what a look at the provider has shown about a request that nobody knows about.
type Finding struct {
	// Outcome is set where the request has happened.
	Outcome *coordinationv1.Outcome
	// DidNotHappen: it certainly has not, and may be sent again. With neither it is still open.
	DidNotHappen bool
	// Why is kept with the request where it has not happened or is open.
	Why string
}

// Reconcile finds out what became of a request whose status is unknown, and notes it. It takes the request's lease first,
// so nobody else looks at the same time, and nobody sends it before look has returned. look gets the request, and the
// server's time. A request that is not unknown any more is left as it is: that is no error. Where it is still open, or
// look fails, it stays unknown and Reconcile returns an UnknownError.
func (c *Client) Reconcile(
	ctx context.Context, api string, r *coordinationv1.Call,
	look func(ctx context.Context, r *coordinationv1.Call, now time.Time) (Finding, error),
) error {
	const lease = time.Minute
	ctx, cancel := context.WithTimeout(ctx, lease)
	defer cancel()
	begun, err := c.begin(ctx, &coordinationv1.BeginCallRequest{
		Api: api, Operation: r.GetOperation(), Key: r.GetKey(), Fingerprint: r.GetFingerprint(),
		Holder: "reconciler", Timeout: durationpb.New(lease), Reconcile: true, Owner: r.GetOwner(),
	})
	if err != nil {
		return err
	}
	switch begun.GetDecision() {
	case coordinationv1.Decision_DECISION_RECONCILE:
	case coordinationv1.Decision_DECISION_IN_FLIGHT:
		return &InFlightError{api, r.GetKey(), begun.GetCall().GetLease().GetHolder(), begun.GetRetryAfter().AsDuration()}
	default:
		return nil
	}
	found, lookErr := look(ctx, begun.GetCall(), begun.GetLease().GetExpireTime().AsTime().Add(-lease))
	// What was found is noted also where the caller has gone meanwhile.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	end := &coordinationv1.FinishCallRequest{Api: api, Key: r.GetKey(), FencingToken: begun.GetLease().GetFencingToken(), Owner: r.GetOwner()}
	if lookErr == nil && found.Outcome != nil {
		return c.finish(ctx, completed(end, found.Outcome))
	}
	failure := &coordinationv1.CallFailure{Failure: coordinationv1.Failure_FAILURE_UNKNOWN, Error: clip(found.Why)}
	if lookErr == nil && found.DidNotHappen {
		failure.Failure = coordinationv1.Failure_FAILURE_RETRYABLE
		return c.finish(ctx, failed(end, failure))
	}
	if lookErr != nil {
		failure.Error = clip(lookErr.Error())
	}
	return &UnknownError{api, r.GetKey(), errors.Join(lookErr, c.finish(ctx, failed(end, failure)))}
}

func completed(req *coordinationv1.FinishCallRequest, o *coordinationv1.Outcome) *coordinationv1.FinishCallRequest {
	req.Result = &coordinationv1.FinishCallRequest_Completed{Completed: o}
	return req
}

func failed(req *coordinationv1.FinishCallRequest, f *coordinationv1.CallFailure) *coordinationv1.FinishCallRequest {
	req.Result = &coordinationv1.FinishCallRequest_Failed{Failed: f}
	return req
}

// Unknown lists the requests of an operation that nobody knows about, newest first: the caller's, or for a service all of
// the tenant's.
func (c *Client) Unknown(ctx context.Context, api, operation string) ([]*coordinationv1.Call, error) {
	var all []*coordinationv1.Call
	req := &coordinationv1.ListCallsRequest{
		Api: api, Operation: operation, Statuses: []coordinationv1.CallStatus{coordinationv1.CallStatus_CALL_STATUS_UNKNOWN}, PageSize: 200,
	}
	for {
		page, err := c.Service.ListCalls(ctx, req)
		if err != nil {
			return nil, err
		}
		all = append(all, page.GetCalls()...)
		if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
			return all, nil
		}
	}
}

// begin asks until there is an answer: asking again with the same request_id is asking once.
func (c *Client) begin(ctx context.Context, req *coordinationv1.BeginCallRequest) (*coordinationv1.BeginCallResponse, error) {
	req.RequestId = rand.Text()
	return insist(ctx, func() (*coordinationv1.BeginCallResponse, error) { return c.Service.BeginCall(ctx, req) })
}

func (c *Client) finish(ctx context.Context, req *coordinationv1.FinishCallRequest) error {
	_, err := insist(ctx, func() (*coordinationv1.FinishCallResponse, error) { return c.Service.FinishCall(ctx, req) })
	return err
}

// insist repeats a call that may be repeated, while the server cannot be reached or is too busy.
func insist[R any](ctx context.Context, call func() (R, error)) (R, error) {
	const tries = 4
	pause := 100 * time.Millisecond
	for try := 1; ; try++ {
		r, err := call()
		if err == nil || try == tries {
			return r, err
		}
		switch connect.CodeOf(err) {
		case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeResourceExhausted, connect.CodeAborted:
		default:
			return r, err
		}
		if err := sleep(ctx, pause); err != nil {
			return r, err
		}
		pause *= 2
	}
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// clip cuts what is longer than the ledger keeps, at a character.
func clip(s string) string {
	const most = 1024
	if len(s) <= most {
		return s
	}
	i := most
	for i > 0 && s[i]&0xC0 == 0x80 {
		i--
	}
	return s[:i]
}
