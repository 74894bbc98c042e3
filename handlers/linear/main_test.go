package linear

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"holdfast/db/dbtest"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	linearv1 "holdfast/gen/holdfast/linear/v1"
	"holdfast/gen/holdfast/linear/v1/linearv1connect"
	"holdfast/handlers"
	"holdfast/handlers/coordination"
	"holdfast/handlers/handlertest"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/seal"
)

// The tests of the API call a real server over HTTP, on a real Postgres, with API keys: what they see is what a caller sees.

func TestMain(m *testing.M) { os.Exit(dbtest.MainWithoutLeaks(m)) }

const (
	ada    = identity.User("ada")
	nobody = identity.User("") // a service, which acts for itself
)

// bundle is a test's server, and the database and tenant below it.
type bundle struct {
	*dbtest.Bundle

	url   string
	rt    *object.Runtime
	kinds Kinds
	box   *seal.Box
	clock *clock
	// synced are the endpoints that were to be synced at once.
	synced chan string
}

// clock is the webhooks' and the sync's, which a test may move.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// setup serves the issues of a fresh tenant.
func setup(t testing.TB) *bundle {
	t.Helper()
	box, err := seal.NewBox(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, &bundle{Bundle: dbtest.New(t), box: box, clock: &clock{}, synced: make(chan string, 10)})
}

// another is one more server on a bundle's database, as another process would be.
func (b *bundle) another(t testing.TB) *bundle {
	t.Helper()
	return serve(t, &bundle{Bundle: b.Bundle, box: b.box, clock: b.clock, synced: b.synced})
}

func serve(t testing.TB, b *bundle) *bundle {
	t.Helper()
	b.rt = object.NewRuntime(b.DB, object.Config{})
	b.kinds = Register(b.rt)
	log := slog.New(slog.DiscardHandler)
	b.url = handlertest.Serve(t, b.Bundle, b.rt, handlers.Options{
		Services: []handlers.Service{
			handlers.NewService[linearv1connect.LinearServiceHandler](linearv1connect.LinearServiceName, linearv1connect.NewLinearServiceHandler,
				NewManager(Options{Kinds: b.kinds, Runtime: b.rt, Seal: b.box, SyncNow: func(_ context.Context, _ identity.Tenant, endpoint string) error {
					b.synced <- endpoint
					return nil
				}})),
			handlers.NewService[coordinationv1connect.CoordinationServiceHandler](coordinationv1connect.CoordinationServiceName,
				coordinationv1connect.NewCoordinationServiceHandler, coordination.NewManager(coordination.Register(b.rt), b.DB.Now)),
		},
		Routes: []handlers.Route{{Name: "linear webhook", Path: WebhookPath, Handler: NewWebhook(WebhookConfig{
			Kinds: b.kinds, FindEndpoints: b.DB.FindEndpoints, Open: b.box.Open, Now: b.clock.now, Log: log,
		})}},
	}).URL
	return b
}

// tenant is a fresh tenant on the same database.
func (b *bundle) tenant(t testing.TB) *dbtest.Bundle {
	t.Helper()
	return dbtest.New(t)
}

func (b *bundle) http(t testing.TB, user identity.User) *http.Client {
	t.Helper()
	return handlertest.Client(t, b.Bundle, user, nil)
}

type client = linearv1connect.LinearServiceClient

// as calls as a user, or as a service.
func (b *bundle) as(t testing.TB, user identity.User) client {
	t.Helper()
	return linearv1connect.NewLinearServiceClient(b.http(t, user), b.url)
}

// issue reads an issue with its payload; nil: there is none.
func (b *bundle) issue(t testing.TB, user identity.User, id string) *linearv1.Issue {
	t.Helper()
	res := must(b.as(t, user).ListIssues(t.Context(), &linearv1.ListIssuesRequest{Filter: &linearv1.IssueFilter{IssueIds: []string{id}}, WithPayload: true}))(t)
	if len(res.GetIssues()) == 0 {
		return nil
	}
	return res.GetIssues()[0]
}

// must is the result of a call that has to succeed.
func must[R any](res R, err error) func(testing.TB) R {
	return func(t testing.TB) R {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
}

// refused checks an error's code and reason.
func refused(t *testing.T, err error, code connect.Code, reason string) {
	t.Helper()
	if connect.CodeOf(err) != code || err == nil {
		t.Errorf("got %v, want %v %s", err, code, reason)
		return
	}
	e, _ := err.(*connect.Error) //nolint:errorlint // the client's own
	for _, d := range e.Details() {
		v, err := d.Value()
		if info, ok := v.(*errdetails.ErrorInfo); err == nil && ok {
			if info.GetReason() != reason {
				t.Errorf("the reason is %s, want %s: %v", info.GetReason(), reason, e)
			}
			return
		}
	}
	t.Errorf("no reason: %v", err)
}

// post sends a webhook and returns its status and answer.
func (b *bundle) post(t testing.TB, path string, body []byte, header map[string]string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, strings.TrimSpace(string(said))
}
