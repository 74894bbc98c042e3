// Package holdfast is a client of Holdfast for Go programs:
//
//	hf := holdfast.New("https://holdfast.example.com", key)
//	cart := holdfast.NewObject[Cart](hf.As("ada"), "cart", "current")
//	snapshot, err := cart.Update(ctx, func(tx *holdfast.Tx[Cart]) error {
//		tx.State.Count++
//		return nil
//	})
//
// Calls are repeated until their outcome is known, with the same request_id, so that each change happens once. Errors are those of
// connectrpc.com/connect; ProblemOf and Is say why a call failed.
package holdfast

import (
	"context"
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"holdfast.internal/clients/go/gen/holdfast/conversation/v1/conversationv1connect"
	"holdfast.internal/clients/go/gen/holdfast/coordination/v1/coordinationv1connect"
	errorv1 "holdfast.internal/clients/go/gen/holdfast/error/v1"
	"holdfast.internal/clients/go/gen/holdfast/inspect/v1/inspectv1connect"
	"holdfast.internal/clients/go/gen/holdfast/linear/v1/linearv1connect"
	"holdfast.internal/clients/go/gen/holdfast/live/v1/livev1connect"
	"holdfast.internal/clients/go/gen/holdfast/project/v1/projectv1connect"
	"holdfast.internal/clients/go/gen/holdfast/session/v1/sessionv1connect"
	"holdfast.internal/clients/go/gen/holdfast/state/v1/statev1connect"
	"holdfast.internal/clients/go/gen/holdfast/watch/v1/watchv1connect"
)

// Client makes the calls of a Holdfast server. It is safe for concurrent use. Making one does no I/O.
type Client struct {
	Conversation conversationv1connect.ConversationServiceClient
	Coordination coordinationv1connect.CoordinationServiceClient
	Inspect      inspectv1connect.InspectServiceClient
	Linear       linearv1connect.LinearServiceClient
	Live         livev1connect.LiveServiceClient
	Project      projectv1connect.ProjectServiceClient
	Session      sessionv1connect.SessionServiceClient
	State        statev1connect.StateServiceClient

	watch   watchv1connect.WatchServiceClient
	options options
}

// TokenFunc returns the bearer of a call: an API key, a JWT or a session's access token. refused is the bearer that the server did not
// accept in the previous try, or empty; where the function returns the same one again, the call fails. It must be safe for concurrent use.
type TokenFunc func(ctx context.Context, refused string) (string, error)

type options struct {
	url            string
	http           connect.HTTPClient
	token          TokenFunc
	user           string
	timeout        time.Duration
	attemptTimeout time.Duration
	watchTimeout   time.Duration
}

// Option adjusts a Client.
type Option func(*options)

// WithHTTPClient sends requests through c. It should have no Timeout, which would end watches too.
func WithHTTPClient(c connect.HTTPClient) Option { return func(o *options) { o.http = c } }

// WithTokens authenticates each call with what f returns, instead of the token given to New. SessionTokens makes such a function.
func WithTokens(f TokenFunc) Option { return func(o *options) { o.token = f } }

// WithTimeout limits a call with all its tries, unless its context has a deadline. Default: 30 s. Watches have no limit.
func WithTimeout(d time.Duration) Option { return func(o *options) { o.timeout = d } }

// WithAttemptTimeout limits one try of a call, after which the same request is sent again. Default: 10 s.
func WithAttemptTimeout(d time.Duration) Option { return func(o *options) { o.attemptTimeout = d } }

// WithWatchTimeout says how long a watch may be silent before it connects again. Default: 45 s, which is three heartbeats.
func WithWatchTimeout(d time.Duration) Option { return func(o *options) { o.watchTimeout = d } }

// New returns a client of the server at url that authenticates with token, such as an API key.
func New(url, token string, opts ...Option) *Client {
	o := options{
		url:   url,
		http:  &http.Client{Transport: transport()},
		token: func(context.Context, string) (string, error) { return token, nil },

		timeout: 30 * time.Second, attemptTimeout: 10 * time.Second, watchTimeout: 45 * time.Second,
	}
	for _, opt := range opts {
		opt(&o)
	}
	return newClient(o)
}

func transport() *http.Transport {
	// All connections go to one host.
	return &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 100, IdleConnTimeout: 90 * time.Second}
}

// As returns a client that acts for a user. Only a service's API key may.
func (c *Client) As(user string) *Client {
	o := c.options
	o.user = user
	return newClient(o)
}

func newClient(o options) *Client {
	with := connect.WithInterceptors(caller{o})
	return &Client{
		Conversation: conversationv1connect.NewConversationServiceClient(o.http, o.url, with),
		Coordination: coordinationv1connect.NewCoordinationServiceClient(o.http, o.url, with),
		Inspect:      inspectv1connect.NewInspectServiceClient(o.http, o.url, with),
		Linear:       linearv1connect.NewLinearServiceClient(o.http, o.url, with),
		Live:         livev1connect.NewLiveServiceClient(o.http, o.url, with),
		Project:      projectv1connect.NewProjectServiceClient(o.http, o.url, with),
		Session:      sessionv1connect.NewSessionServiceClient(o.http, o.url, with),
		State:        statev1connect.NewStateServiceClient(o.http, o.url, with),
		watch:        watchv1connect.NewWatchServiceClient(o.http, o.url, with),
		options:      o,
	}
}

// ProblemOf returns what the server said of an error, or nil where the error is not an answer of Holdfast's, such as a network's.
func ProblemOf(err error) *errorv1.Problem {
	var e *connect.Error
	if !errors.As(err, &e) {
		return nil
	}
	for _, d := range e.Details() {
		if v, err := d.Value(); err == nil {
			if p, ok := v.(*errorv1.Problem); ok {
				return p
			}
		}
	}
	return nil
}

// Is reports whether a call failed for this reason.
func Is(err error, reason errorv1.Reason) bool {
	p := ProblemOf(err)
	return p != nil && "REASON_"+p.GetReason() == reason.String()
}
