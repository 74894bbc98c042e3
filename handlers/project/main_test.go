package project

import (
	"net/http"
	"os"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/db/dbtest"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	linearv1 "holdfast/gen/holdfast/linear/v1"
	"holdfast/gen/holdfast/linear/v1/linearv1connect"
	"holdfast/gen/holdfast/project/v1/projectv1connect"
	conversationstorev1 "holdfast/gen/holdfast/store/conversation/v1"
	coordinationstorev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers"
	"holdfast/handlers/conversation"
	"holdfast/handlers/coordination"
	"holdfast/handlers/handlertest"
	"holdfast/handlers/linear"
	"holdfast/handlers/watch"
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

	url    string
	rt     *object.Runtime
	kinds  Kinds
	talks  *object.Kind[*conversationstorev1.ConversationState]
	apis   *object.Kind[*coordinationstorev1.ApiState]
	box    *seal.Box
	issues linear.Kinds
}

// setup serves the projects of a fresh tenant.
func setup(t testing.TB) *bundle {
	t.Helper()
	box, err := seal.NewBox(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, &bundle{Bundle: dbtest.New(t), box: box})
}

// another is one more server on a bundle's database, as another process would be.
func (b *bundle) another(t testing.TB) *bundle {
	t.Helper()
	return serve(t, &bundle{Bundle: b.Bundle, box: b.box})
}

func serve(t testing.TB, b *bundle) *bundle {
	t.Helper()
	b.rt = object.NewRuntime(b.DB, object.Config{})
	b.kinds, b.issues = Register(b.rt), linear.Register(b.rt)
	b.talks, b.apis = conversation.Register(b.rt), coordination.Register(b.rt)
	m := NewManager(Options{Kinds: b.kinds, Runtime: b.rt, Conversations: b.talks, APIs: b.apis, Issues: b.issues.Issues, PresentIssue: linear.PresentIssue})
	b.url = handlertest.Serve(t, b.Bundle, b.rt, handlers.Options{
		Services: []handlers.Service{
			handlers.NewService[projectv1connect.ProjectServiceHandler](projectv1connect.ProjectServiceName,
				projectv1connect.NewProjectServiceHandler, m),
			handlers.NewService[linearv1connect.LinearServiceHandler](linearv1connect.LinearServiceName, linearv1connect.NewLinearServiceHandler,
				linear.NewManager(linear.Options{Kinds: b.issues, Runtime: b.rt, Seal: b.box})),
			handlers.NewService[watchv1connect.WatchServiceHandler](watchv1connect.WatchServiceName, watchv1connect.NewWatchServiceHandler,
				watch.NewManager(watch.Options{Explain: handlers.Explain, Now: time.Now}, m.Sources())),
			handlers.NewService[conversationv1connect.ConversationServiceHandler](conversationv1connect.ConversationServiceName,
				conversationv1connect.NewConversationServiceHandler, conversation.NewManager(b.talks, conversation.Options{Box: b.box, Now: time.Now})),
		},
	}).URL
	return b
}

func (b *bundle) http(t testing.TB, user identity.User) *http.Client {
	t.Helper()
	return handlertest.Client(t, b.Bundle, user, nil)
}

type client = projectv1connect.ProjectServiceClient

// as calls as a user, or as a service.
func (b *bundle) as(t testing.TB, user identity.User) client {
	t.Helper()
	return projectv1connect.NewProjectServiceClient(b.http(t, user), b.url)
}

func (b *bundle) watch(t testing.TB, user identity.User) watchv1connect.WatchServiceClient {
	t.Helper()
	return watchv1connect.NewWatchServiceClient(b.http(t, user), b.url)
}

// linear calls the issues as a service.
func (b *bundle) linear(t testing.TB) linearv1connect.LinearServiceClient {
	t.Helper()
	return linearv1connect.NewLinearServiceClient(b.http(t, nobody), b.url)
}

// put stores issues, as a service.
func (b *bundle) put(t testing.TB, issues ...*structpb.Struct) {
	t.Helper()
	must(b.linear(t).PutIssues(t.Context(), &linearv1.PutIssuesRequest{Issues: issues}))(t)
}

// talk calls the conversations as a user.
func (b *bundle) talk(t testing.TB, user identity.User) conversationv1connect.ConversationServiceClient {
	t.Helper()
	return conversationv1connect.NewConversationServiceClient(b.http(t, user), b.url)
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

// summarise gives a conversation a summary.
func (b *bundle) summarise(t testing.TB, user identity.User, id, said string) {
	t.Helper()
	_, err := b.talks.Update(b.As(t, user), object.ID(id), func(tx *object.Tx[*conversationstorev1.ConversationState]) error {
		tx.State().Summary = &conversationstorev1.Summary{Text: said}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
