package state

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	"holdfast/db/dbtest"
	statev1 "holdfast/gen/holdfast/state/v1"
	"holdfast/gen/holdfast/state/v1/statev1connect"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers"
	"holdfast/handlers/handlertest"
	"holdfast/handlers/watch"
	"holdfast/identity"
	"holdfast/jsonpb"
	"holdfast/object"
)

// The tests of the API call a real server over HTTP, on a real Postgres, with API keys: what they see is what a caller sees.

func TestMain(m *testing.M) { os.Exit(dbtest.MainWithoutLeaks(m)) }

const (
	ada    = identity.User("ada")
	eve    = identity.User("eve")
	nobody = identity.User("") // a service, which acts for itself
)

// bundle is a test's server, and the database and tenant below it.
type bundle struct {
	*dbtest.Bundle

	url     string
	handler http.Handler
	stop    func() // begins the server's drain
	rt      *object.Runtime
	kind    Kind // of the objects
}

func setup(t testing.TB) *bundle {
	t.Helper()
	return (&bundle{Bundle: dbtest.New(t)}).another(t)
}

// another is one more server on a bundle's database, as another process would be.
func (b *bundle) another(t testing.TB) *bundle {
	t.Helper()
	n := &bundle{Bundle: b.Bundle}
	n.rt = object.NewRuntime(b.DB, object.Config{PollInterval: 20 * time.Millisecond, Timers: true, TimerPoll: 50 * time.Millisecond})
	kinds := Register(n.rt)
	n.kind = kinds.objects
	manager := NewManager(n.rt, kinds)
	server := handlertest.Serve(t, b.Bundle, n.rt, handlers.Options{Services: []handlers.Service{
		handlers.NewService[statev1connect.StateServiceHandler](
			statev1connect.StateServiceName, statev1connect.NewStateServiceHandler, manager),
		handlers.NewService[watchv1connect.WatchServiceHandler](watchv1connect.WatchServiceName, watchv1connect.NewWatchServiceHandler,
			watch.NewManager(watch.Options{Explain: handlers.Explain, Now: time.Now, Heartbeat: 50 * time.Millisecond}, manager.Sources())),
	}})
	n.url, n.handler, n.stop = server.URL, server.Handler, server.Stop
	return n
}

// client calls in JSON, as curl does.
type client struct {
	statev1connect.StateServiceClient
	watchv1connect.WatchServiceClient
}

func (b *bundle) as(t testing.TB, user identity.User) client {
	t.Helper()
	over := handlertest.Client(t, b.Bundle, user, &http.Transport{})
	return client{
		statev1connect.NewStateServiceClient(over, b.url, connect.WithProtoJSON()),
		watchv1connect.NewWatchServiceClient(over, b.url, connect.WithProtoJSON()),
	}
}

// from makes a request of JSON, in which ' stands for ".
func from[M proto.Message](t testing.TB, m M, text string) M {
	t.Helper()
	if _, err := jsonpb.New().Unmarshal([]byte(strings.ReplaceAll(text, "'", `"`)), m, 0); err != nil {
		t.Fatal(text, err)
	}
	return m
}

func (c client) apply(t testing.TB, text string) *statev1.ApplyResponse {
	t.Helper()
	return must(c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, text)))(t)
}

func (c client) read(t testing.TB, text string) []*statev1.Object {
	t.Helper()
	return must(c.Read(t.Context(), from(t, &statev1.ReadRequest{}, text)))(t).GetObjects()
}

func must[R any](res R, err error) func(testing.TB) R {
	return func(t testing.TB) R {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
}

// reason is that of an error; empty: there is none.
func reason(err error) string {
	e, ok := err.(*connect.Error) //nolint:errorlint // the client's own
	if !ok {
		return ""
	}
	for _, d := range e.Details() {
		if v, err := d.Value(); err == nil {
			if info, ok := v.(*errdetails.ErrorInfo); ok {
				return info.GetReason()
			}
		}
	}
	return e.Error()
}

func refused(t *testing.T, err error, want string) {
	t.Helper()
	if got := reason(err); got != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
