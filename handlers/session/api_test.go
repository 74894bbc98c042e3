package session

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"holdfast/db/dbtest"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers"
	"holdfast/handlers/conversation"
	"holdfast/handlers/handlertest"
	"holdfast/handlers/watch"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/seal"
)

// The tests of the API, here and in the other files *_api_test.go, call a real server over HTTP, on a real Postgres: what
// they see is what a caller sees.

func TestMain(m *testing.M) { os.Exit(dbtest.MainWithoutLeaks(m)) }

const (
	ada    = identity.User("ada") // the user of most tests
	nobody = identity.User("")    // a service, which acts for itself
	c1     = "c1"                 // the conversation of most tests
)

// bundle is a test's server, and the database and tenant below it.
type bundle struct {
	*dbtest.Bundle

	url     string
	manager *Manager
	log     *logged
	box     *seal.Box
}

// logged is all that a server has logged.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// setup serves the sessions of a fresh tenant.
func setup(t *testing.T) *bundle {
	t.Helper()
	box, err := seal.NewBox(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, dbtest.New(t), box)
}

// serve starts one more server on a bundle's database, as another process would.
func serve(t *testing.T, d *dbtest.Bundle, box *seal.Box) *bundle {
	t.Helper()
	return serveWith(t, d, box, object.Config{Timers: true, TimerPoll: 100 * time.Millisecond})
}

func serveWith(t *testing.T, d *dbtest.Bundle, box *seal.Box, c object.Config) *bundle {
	t.Helper()
	rt := object.NewRuntime(d.DB, c)
	talk := conversation.NewManager(conversation.Register(rt), conversation.Options{Box: box, Now: time.Now})
	b := &bundle{Bundle: d, manager: NewManager(Register(rt), talk, box), log: &logged{}, box: box}
	b.url = handlertest.Serve(t, d, rt, handlers.Options{
		Services: []handlers.Service{
			handlers.NewService[sessionv1connect.SessionServiceHandler](
				sessionv1connect.SessionServiceName, sessionv1connect.NewSessionServiceHandler, b.manager),
			handlers.NewService[conversationv1connect.ConversationServiceHandler](
				conversationv1connect.ConversationServiceName, conversationv1connect.NewConversationServiceHandler, talk),
			handlers.NewService[livev1connect.LiveServiceHandler](livev1connect.LiveServiceName, livev1connect.NewLiveServiceHandler, talk),
			handlers.NewService[watchv1connect.WatchServiceHandler](watchv1connect.WatchServiceName, watchv1connect.NewWatchServiceHandler,
				watch.NewManager(watch.Options{Explain: handlers.Explain, Now: time.Now}, talk.Sources(), b.manager.Sources())),
		},
		Auth: handlers.NewAuthenticator(handlers.AuthConfig{
			Find: d.DB.FindCredentials, Touch: b.manager.Touch, Refused: b.manager.Refused,
			AddressHeader: "Test-Address", Now: time.Now,
		}),
		Log: slog.New(slog.NewJSONHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}).URL
	return b
}

// key makes an API key of a user of the tenant, or of a service.
func (b *bundle) key(t *testing.T, user identity.User) string {
	t.Helper()
	return handlertest.Key(t, b.Bundle, user)
}

type (
	client        = sessionv1connect.SessionServiceClient
	conversations = conversationv1connect.ConversationServiceClient
)

// with calls with a bearer credential, over HTTP/2.
func (b *bundle) with(t *testing.T, credential string, headers ...string) client {
	t.Helper()
	return sessionv1connect.NewSessionServiceClient(b.http(t, credential, headers...), b.url)
}

func (b *bundle) conversations(t *testing.T, credential string) conversations {
	t.Helper()
	return conversationv1connect.NewConversationServiceClient(b.http(t, credential), b.url)
}

func (b *bundle) http(t *testing.T, credential string, headers ...string) *http.Client {
	t.Helper()
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: &bearing{credential, headers, transport}}
}

// bearing presents a credential with every request.
type bearing struct {
	credential string
	headers    []string
	next       http.RoundTripper
}

func (k *bearing) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+k.credential)
	for _, h := range k.headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	return k.next.RoundTrip(req)
}

// signIn makes a session of a user with a key of the user's own.
func (b *bundle) signIn(t *testing.T, user identity.User) *sessionv1.CreateSessionResponse {
	t.Helper()
	return must(b.with(t, b.key(t, user)).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{}))(t)
}

// opening opens a connection, and heartbeat keeps one alive.
func opening(m typev1.Modality) *sessionv1.PutConnectionRequest {
	return &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{Modality: m}}
}

func heartbeat(id string) *sessionv1.PutConnectionRequest {
	return &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{ConnectionId: id}}
}

// refresh exchanges a refresh token.
func (b *bundle) refresh(t *testing.T, token string) (*sessionv1.RefreshSessionResponse, error) {
	t.Helper()
	return b.with(t, token).RefreshSession(t.Context(), &sessionv1.RefreshSessionRequest{})
}

// change does to a user's sessions what time would. What that leads to is left to the timer, or to those who read.
func (b *bundle) change(t *testing.T, user identity.User, change func(*storev1.UserSessions, time.Time)) {
	t.Helper()
	id := object.ID(objectID(b.Tenant, user))
	_, err := b.manager.kinds.Users.Update(b.As(t, user), id, func(tx *object.Tx[state]) error {
		change(tx.State(), tx.Now())
		(&book{s: tx.State(), now: tx.Now(), changed: true}).commit(tx)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// refusal is what a call should be refused with.
type refusal struct {
	code   connect.Code
	reason string
}

func (want refusal) check(t *testing.T, err error) {
	t.Helper()
	e, ok := errors.AsType[*connect.Error](err)
	if !ok {
		t.Errorf("got %v, want %v %s", err, want.code, want.reason)
		return
	}
	if got := reason(err); e.Code() != want.code || got != want.reason {
		t.Errorf("got %v %s, want %v %s: %v", e.Code(), got, want.code, want.reason, err)
	}
}

func reason(err error) string { return info(err).GetReason() }

// info is what a refusal says for programs, or nil.
func info(err error) *errdetails.ErrorInfo {
	e, _ := errors.AsType[*connect.Error](err)
	if e == nil {
		return nil
	}
	for _, d := range e.Details() {
		if v, err := d.Value(); err == nil {
			if info, ok := v.(*errdetails.ErrorInfo); ok {
				return info
			}
		}
	}
	return nil
}

var (
	invalid      = refusal{connect.CodeUnauthenticated, "CREDENTIAL_INVALID"}
	tokenExpired = refusal{connect.CodeUnauthenticated, "TOKEN_EXPIRED"}
	expired      = refusal{connect.CodeUnauthenticated, "SESSION_EXPIRED"}
	revoked      = refusal{connect.CodeUnauthenticated, "SESSION_REVOKED"}
	notFound     = refusal{connect.CodeNotFound, "NOT_FOUND"}
)

// must is the result of a call that has to succeed.
func must[R any](res R, err error) func(*testing.T) R {
	return func(t *testing.T) R {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
}

// same compares messages, but for how long it is until a time: two answers are never given at once.
func same(t *testing.T, what string, got, want proto.Message) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(&sessionv1.Tokens{}, "access_expires_in"),
		protocmp.IgnoreFields(&sessionv1.Connection{}, "expires_in")); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// eventually tries until it succeeds, within the time in which a revocation has to take effect, generously: the machine
// may be busy. Each try is a call, which takes its time; nothing sleeps.
func eventually(t *testing.T, what string, try func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !try() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// sql asks the database what no RPC tells, as its owner, whom row-level security does not bind.
func (b *bundle) sql(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// events are the types of a user's security events, the oldest first.
func (b *bundle) events(t *testing.T, user identity.User) []string {
	t.Helper()
	res := must(b.with(t, b.key(t, nobody)).ListSecurityEvents(t.Context(), &sessionv1.ListSecurityEventsRequest{User: string(user), PageSize: 200}))(t)
	var types []string
	for _, e := range slices.Backward(res.GetEvents()) {
		name := strings.TrimPrefix(e.GetType().String(), "SECURITY_EVENT_TYPE_")
		if e.GetEndReason() != 0 {
			name += " " + strings.TrimPrefix(e.GetEndReason().String(), "END_REASON_")
		}
		types = append(types, name)
	}
	return types
}

func TestASessionFromSignInToSignOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := must(b.with(t, b.key(t, nobody)).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{
		User: "ada", Device: &typev1.Device{Name: "laptop", UserAgent: "Firefox", Address: "192.0.2.1"}, RequestId: "r-1",
	}))(t)
	hers := b.with(t, in.GetTokens().GetAccessToken())

	// The token acts as her, here and in every other service.
	got := must(hers.GetSession(t.Context(), &sessionv1.GetSessionRequest{}))(t)
	in.Session.Current = true // of the caller's token
	same(t, "her session", got.GetSession(), in.GetSession())
	create(t, b.conversations(t, in.GetTokens().GetAccessToken()))
	get(t, b.conversations(t, b.key(t, ada)))

	res := must(hers.UpdateSession(t.Context(), &sessionv1.UpdateSessionRequest{Session: &sessionv1.Session{ActiveConversationId: c1, ActiveProjectId: "p1"}}))(t)
	if s := res.GetSession(); s.GetActiveConversationId() != c1 || s.GetActiveProjectId() != "p1" {
		t.Errorf("now on %v", s)
	}
	ended := must(hers.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{}))(t)
	if ended.GetSessionCount() != 1 || !slices.Equal(ended.GetSessionIds(), []string{got.GetSession().GetSessionId()}) || ended.GetMore() {
		t.Errorf("ended: %v", ended)
	}
	eventually(t, "the token is refused", func() bool {
		_, err := hers.GetSession(t.Context(), &sessionv1.GetSessionRequest{})
		return reason(err) == "SESSION_REVOKED"
	})
	_, err := b.refresh(t, in.GetTokens().GetRefreshToken())
	revoked.check(t, err)
	list := must(b.with(t, b.key(t, ada)).ListSessions(t.Context(), &sessionv1.ListSessionsRequest{}))(t)
	if len(list.GetSessions()) != 0 {
		t.Errorf("she has %v", list)
	}
	list = must(b.with(t, b.key(t, ada)).ListSessions(t.Context(), &sessionv1.ListSessionsRequest{IncludeEnded: true}))(t)
	if len(list.GetSessions()) != 1 || list.GetSessions()[0].GetEndReason() != sessionv1.EndReason_END_REASON_SIGNED_OUT || list.GetSessions()[0].GetEndTime() == nil {
		t.Errorf("she had %v", list)
	}
	if got, want := b.events(t, ada), []string{"SIGNED_IN", "SESSION_ENDED SIGNED_OUT"}; !slices.Equal(got, want) {
		t.Errorf("the audit has %q", got)
	}
	// The next session begins where she was.
	if s := b.signIn(t, ada).GetSession(); s.GetActiveConversationId() != c1 || s.GetActiveProjectId() != "p1" {
		t.Errorf("the next session is on %v", s)
	}
}
