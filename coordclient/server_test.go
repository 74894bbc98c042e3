package coordclient_test

import (
	"net/http"
	"os"
	"testing"
	"time"

	"holdfast/coordclient"
	"holdfast/db/dbtest"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	"holdfast/gen/holdfast/project/v1/projectv1connect"
	"holdfast/handlers"
	"holdfast/handlers/coordination"
	"holdfast/handlers/handlertest"
	"holdfast/handlers/project"
	"holdfast/identity"
	"holdfast/object"
)

func TestMain(m *testing.M) { os.Exit(dbtest.MainWithoutLeaks(m)) }

// bundle is a fresh tenant, and servers that share its database as processes would.
type bundle struct {
	*dbtest.Bundle

	urls []string
}

// setup serves a fresh tenant by so many servers.
func setup(t *testing.T, servers int) *bundle {
	t.Helper()
	b := &bundle{Bundle: dbtest.New(t)}
	for range servers {
		b.urls = append(b.urls, serve(t, b.Bundle))
	}
	return b
}

func serve(t *testing.T, d *dbtest.Bundle) (url string) {
	t.Helper()
	rt := object.NewRuntime(d.DB, object.Config{Timers: true, TimerPoll: 50 * time.Millisecond})
	return handlertest.Serve(t, d, rt, handlers.Options{Services: []handlers.Service{
		handlers.NewService[coordinationv1connect.CoordinationServiceHandler](
			coordinationv1connect.CoordinationServiceName, coordinationv1connect.NewCoordinationServiceHandler,
			coordination.NewManager(coordination.Register(rt), d.DB.Now)),
		handlers.NewService[projectv1connect.ProjectServiceHandler](projectv1connect.ProjectServiceName, projectv1connect.NewProjectServiceHandler,
			project.NewManager(project.Options{Kinds: project.Register(rt), Runtime: rt})),
	}}).URL
}

// client is a client of one of the servers, on connections of its own.
func (b *bundle) client(t *testing.T, server int, user identity.User) *coordclient.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return coordclient.New(b.urls[server%len(b.urls)], handlertest.Key(t, b.Bundle, user), coordclient.WithHTTPClient(&http.Client{Transport: transport}))
}

// tasks calls one of the servers as a user.
func (b *bundle) tasks(t *testing.T, server int, user identity.User) projectv1connect.ProjectServiceClient {
	t.Helper()
	return projectv1connect.NewProjectServiceClient(handlertest.Client(t, b.Bundle, user, nil), b.urls[server%len(b.urls)])
}

// base is a transport for calls of a provider.
func base(t *testing.T) *http.Transport {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func configure(t *testing.T, c *coordclient.Client, api string, config *coordinationv1.ApiConfig) {
	t.Helper()
	if _, err := c.Service.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{Api: api, Config: config}); err != nil {
		t.Fatal(err)
	}
}

// ledger lists all requests of an API.
func ledger(t *testing.T, c *coordclient.Client, api string) []*coordinationv1.Call {
	t.Helper()
	page, err := c.Service.ListCalls(t.Context(), &coordinationv1.ListCallsRequest{Api: api, PageSize: 200})
	if err != nil {
		t.Fatal(err)
	}
	return page.GetCalls()
}

func state(t *testing.T, c *coordclient.Client, api string) *coordinationv1.Api {
	t.Helper()
	got, err := c.Service.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: api})
	if err != nil {
		t.Fatal(err)
	}
	return got.GetApi()
}
