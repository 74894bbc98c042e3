package conversation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	objectv1 "holdfast/gen/holdfast/object/v1"
	"holdfast/handlers"
	"holdfast/identity"
	"holdfast/object"
)

// The tests of the API, here and in *_api_test.go, call a real server over HTTP, on a real Postgres, with API keys: what
// they see is what a caller sees.

func TestMain(m *testing.M) {
	code := dbtest.Main(m)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// ada is the user of most tests.
const ada = "ada"

// bundle is a test's server, and the database and tenant below it.
type bundle struct {
	*dbtest.Bundle

	url     string
	stop    context.CancelFunc // begins the drain
	stopped chan struct{}      // closed once the server has ended
}

// setup serves conversations of a fresh tenant. change alters the runtime's configuration before.
func setup(t *testing.T, change ...func(*object.Config)) *bundle {
	t.Helper()
	return serve(t, dbtest.New(t), change...)
}

// serve starts one more server on the bundle's database, as another process would.
func serve(t *testing.T, d *dbtest.Bundle, change ...func(*object.Config)) *bundle {
	t.Helper()
	var c object.Config
	for _, f := range change {
		f(&c)
	}
	rt := object.NewRuntime(d.DB, c)
	manager := NewManager(rt)
	server, err := handlers.New(handlers.Options{
		Services: []handlers.Service{{
			Name: conversationv1connect.ConversationServiceName,
			Handler: func(o ...connect.HandlerOption) (string, http.Handler) {
				return conversationv1connect.NewConversationServiceHandler(manager, o...)
			},
		}},
		Auth:    handlers.NewAuthenticator(handlers.AuthConfig{FindKeys: d.DB.FindKeys, Now: time.Now}),
		Ping:    d.DB.Ping,
		Metrics: prometheus.NewRegistry(),
		Log:     slog.New(slog.DiscardHandler),
		Now:     time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &bundle{Bundle: d, url: "http://" + l.Addr().String(), stop: cancel, stopped: make(chan struct{})}
	go func() {
		defer close(b.stopped)
		if err := server.Serve(ctx, l); err != nil {
			t.Errorf("the server ended with %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-b.stopped
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := rt.Close(ctx); err != nil {
			t.Errorf("the runtime ended with %v", err)
		}
	})
	return b
}

func TestProbe(t *testing.T) {
	for i := range 10 {
		t.Run(fmt.Sprint(i), func(t *testing.T) { setup(t) })
	}
}
var _ = []any{bytes.Equal, io.EOF, slices.Sort[[]int], strings.Cut, cmp.Diff, errors.Is, errdetails.BadRequest{}, proto.Equal, protocmp.Transform, durationpb.New, fieldmaskpb.FieldMask{}, objectv1.Metadata{}, identity.ErrAbsent, conversationv1.Role_ROLE_USER}
