// Package handlertest serves managers to their tests as holdfast serves them to callers: over HTTP on loopback, with API
// keys, on a real Postgres.
package handlertest

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/db/dbtest"
	"holdfast/handlers"
	"holdfast/identity"
	"holdfast/object"
)

// Server is one that a test started.
type Server struct {
	// URL is the base of its API.
	URL string
	// Handler answers without a connection.
	Handler http.Handler
	// Stop begins the drain, and Stopped is closed after it. The end of the test does both.
	Stop    func()
	Stopped <-chan struct{}
}

// closeTimeout bounds the end of a server's runtime.
const closeTimeout = 10 * time.Second

// Serve starts a server of o's services. What o leaves open is as in production, but nothing is logged, and the only
// credentials are the API keys of d. At the end of the test the server and then the runtime below it are closed.
func Serve(tb testing.TB, d *dbtest.Bundle, rt *object.Runtime, o handlers.Options) *Server {
	tb.Helper()
	o.Ping, o.Now = d.DB.Ping, time.Now
	if o.Auth == nil {
		o.Auth = handlers.NewAuthenticator(handlers.AuthConfig{Find: d.DB.FindCredentials, Now: time.Now})
	}
	if o.Metrics == nil {
		o.Metrics = prometheus.NewRegistry()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	server, err := handlers.New(o)
	if err != nil {
		tb.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if err := server.Serve(ctx, l); err != nil {
			tb.Errorf("the server ended with %v", err)
		}
	}()
	tb.Cleanup(func() {
		cancel()
		<-stopped
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := rt.Close(ctx); err != nil {
			tb.Errorf("the runtime ended with %v", err)
		}
	})
	return &Server{URL: "http://" + l.Addr().String(), Handler: server, Stop: cancel, Stopped: stopped}
}

// Key makes an API key of a user of the tenant; of a service, where user is empty.
func Key(tb testing.TB, d *dbtest.Bundle, user identity.User) string {
	tb.Helper()
	token, k := handlers.NewKey(d.Tenant, user, tb.Name())
	if err := d.Operator.CreateKey(tb.Context(), k); err != nil {
		tb.Fatal(err)
	}
	return token
}

// Client calls with an API key as Key makes it. transport may be nil; it is closed at the end of the test.
func Client(tb testing.TB, d *dbtest.Bundle, user identity.User, transport *http.Transport) *http.Client {
	tb.Helper()
	if transport == nil {
		transport = &http.Transport{}
	}
	tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: Bearer(Key(tb, d, user), transport)}
}

// Bearer presents a token with every request.
func Bearer(token string, next http.RoundTripper) http.RoundTripper { return bearer{token, next} }

type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(req)
}
