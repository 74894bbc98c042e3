package conversation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/handlertest"
	"holdfast/handlers/watch"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/seal"
)

// The tests of the API, here and in the other files *_api_test.go, call a real server over HTTP, on a real Postgres, with
// API keys: what they see is what a caller sees.

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
	stop    func()          // begins the drain
	stopped <-chan struct{} // closed once the server has ended
	rt      *object.Runtime
	manager *Manager
}

// testBox is that of all servers of the tests: what one sealed another opens.
var testBox = func() *seal.Box {
	b, err := seal.NewBox(seal.NewKey())
	if err != nil {
		panic(err)
	}
	return b
}()

// setup serves the conversations of a fresh tenant. change alters the runtime's configuration before.
func setup(t *testing.T, change ...func(*object.Config)) *bundle {
	t.Helper()
	return serve(t, dbtest.New(t), change...)
}

// serve starts one more server on a bundle's database, as another process would.
func serve(t *testing.T, d *dbtest.Bundle, change ...func(*object.Config)) *bundle {
	t.Helper()
	return serveWith(t, d, testBox, change...)
}

// serveWith starts a server that seals with a box of its own.
func serveWith(t *testing.T, d *dbtest.Bundle, box *seal.Box, change ...func(*object.Config)) *bundle {
	t.Helper()
	c := object.Config{Sealer: box}
	for _, f := range change {
		f(&c)
	}
	rt := object.NewRuntime(d.DB, c)
	manager := NewManager(Register(rt), Options{Box: box, Now: time.Now})
	server := handlertest.Serve(t, d, rt, handlers.Options{Services: []handlers.Service{
		handlers.NewService[conversationv1connect.ConversationServiceHandler](
			conversationv1connect.ConversationServiceName, conversationv1connect.NewConversationServiceHandler, manager),
		handlers.NewService[livev1connect.LiveServiceHandler](livev1connect.LiveServiceName, livev1connect.NewLiveServiceHandler, manager),
		handlers.NewService[watchv1connect.WatchServiceHandler](watchv1connect.WatchServiceName, watchv1connect.NewWatchServiceHandler,
			watch.NewManager(watch.Options{Explain: handlers.Explain, Now: time.Now, Heartbeat: c.Heartbeat}, manager.Sources())),
	}})
	return &bundle{Bundle: d, url: server.URL, stop: server.Stop, stopped: server.Stopped, rt: rt, manager: manager}
}

// tenant is a fresh tenant on the same server, for tests in parallel.
func (b *bundle) tenant(t *testing.T) *bundle {
	t.Helper()
	return &bundle{Bundle: dbtest.New(t), url: b.url}
}

// token makes an API key of a user of the tenant, or of a service.
func (b *bundle) token(t *testing.T, user identity.User) string {
	t.Helper()
	return handlertest.Key(t, b.Bundle, user)
}

// client calls as a user, over HTTP/2; protocol options such as connect.WithGRPC may follow.
func (b *bundle) client(t *testing.T, user identity.User, opts ...connect.ClientOption) client {
	t.Helper()
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	return b.clientOver(t, user, &http.Transport{Protocols: protocols}, opts...)
}

func (b *bundle) clientOver(t *testing.T, user identity.User, transport *http.Transport, opts ...connect.ClientOption) client {
	t.Helper()
	return newClient(handlertest.Client(t, b.Bundle, user, transport), b.url, opts...)
}

// answered is an HTTP response, read.
type answered struct {
	status int
	header http.Header
	body   string
}

// send makes one HTTP/1.1 request of a method of the service, as curl would; headers are "Name: value".
func (b *bundle) send(t *testing.T, verb, method string, body []byte, headers ...string) answered {
	t.Helper()
	return b.sendTo(t, conversationv1connect.ConversationServiceName, verb, method, body, headers...)
}

// sendTo is send to a service of the package.
func (b *bundle) sendTo(t *testing.T, service, verb, method string, body []byte, headers ...string) answered {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), verb, b.url+"/"+service+"/"+method, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answered{res.StatusCode, res.Header, string(text)}
}

// refusal is what a call should be refused with. Empty fields are not looked at.
type refusal struct {
	code   connect.Code
	reason string
	field  string   // of a violation
	says   []string // each in the message
}

func (want refusal) check(t *testing.T, err error) {
	t.Helper()
	e, ok := errors.AsType[*connect.Error](err)
	if !ok {
		t.Errorf("got %v, want %v %s", err, want.code, want.reason)
		return
	}
	if e.Code() != want.code {
		t.Errorf("code is %v, want %v: %v", e.Code(), want.code, err)
	}
	if info := detail[*errdetails.ErrorInfo](t, err); want.reason != "" && (info.GetReason() != want.reason || info.GetDomain() != "holdfast") {
		t.Errorf("ErrorInfo is %v, want the reason %s: %v", info, want.reason, err)
	}
	for _, s := range want.says {
		if !strings.Contains(e.Message(), s) {
			t.Errorf("%q does not say %q", e.Message(), s)
		}
	}
	if want.field == "" {
		return
	}
	var fields []string
	for _, v := range detail[*errdetails.BadRequest](t, err).GetFieldViolations() {
		fields = append(fields, v.GetField())
	}
	if !slices.Contains(fields, want.field) {
		t.Errorf("the violations are of %q, want %q: %v", fields, want.field, err)
	}
}

// detail finds an error's detail of a type; nil where it has none.
func detail[M proto.Message](t *testing.T, err error) (none M) {
	t.Helper()
	e, _ := errors.AsType[*connect.Error](err)
	if e == nil {
		return none
	}
	for _, d := range e.Details() {
		v, err := d.Value()
		if err != nil {
			t.Fatal(err)
		}
		if found, ok := v.(M); ok {
			return found
		}
	}
	return none
}

var notFound = refusal{code: connect.CodeNotFound, reason: "NOT_FOUND"}

// invalidField refuses one field, and names its limit.
func invalidField(field string, says ...string) refusal {
	return refusal{code: connect.CodeInvalidArgument, reason: "FIELD_INVALID", field: field, says: append(says, field)}
}

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

// create makes the conversation c1.
func create(t *testing.T, c client) {
	t.Helper()
	must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: c1}))(t)
}

// say appends a message of the user to c1 for each text.
func say(t *testing.T, c client, texts ...string) *conversationv1.AppendResponse {
	t.Helper()
	return must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: said(texts...)}))(t)
}

func said(texts ...string) []*conversationv1.Message {
	messages := make([]*conversationv1.Message, len(texts))
	for i, text := range texts {
		messages[i] = &conversationv1.Message{Role: conversationv1.Role_ROLE_USER, Text: text}
	}
	return messages
}

// get reads c1 with its last messages.
func get(t *testing.T, c client) *conversationv1.GetConversationResponse {
	t.Helper()
	return must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: c1, MessageLimit: 200}))(t)
}

// texts are the texts of messages.
func texts[M interface{ GetText() string }](messages []M) []string {
	all := make([]string, len(messages))
	for i, m := range messages {
		all[i] = m.GetText()
	}
	return all
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

// same compares messages.
func same(t *testing.T, what string, got, want proto.Message) {
	t.Helper()
	if proto.Equal(want, got) { // cmp takes a second for some megabytes
		return
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestAConversationFromBirthToDeath(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	ctx := t.Context()
	asked := &conversationv1.CreateConversationRequest{ConversationId: c1, Conversation: &conversationv1.Conversation{Title: "Auth refactor", Labels: map[string]string{"team": "core", "empty": ""}, ProjectId: "p-1", Ttl: durationpb.New(48 * time.Hour)}}
	made := must(c.CreateConversation(ctx, asked))(t)
	want := &conversationv1.Conversation{
		ConversationId: c1, Owner: string(ada), Version: 1, CreateTime: made.GetConversation().GetCreateTime(),
		UpdateTime: made.GetConversation().GetCreateTime(), ExpireTime: made.GetConversation().GetExpireTime(), Title: asked.GetConversation().GetTitle(), Labels: asked.GetConversation().GetLabels(), ProjectId: asked.GetConversation().GetProjectId(), Ttl: asked.GetConversation().GetTtl(),
	}
	same(t, "created", made.GetConversation(), want)
	if made.GetConversation().GetVersion() != 1 {
		t.Errorf("created at version %d", made.GetConversation().GetVersion())
	}

	appended := say(t, c, "Hello", "World")
	read := get(t, c)
	want.MessageCount, want.LastSeq, want.TokenCount = 2, 2, 2
	want.Version, want.UpdateTime, want.ExpireTime = appended.GetVersion(), appended.GetMessages()[0].GetCreateTime(), read.GetConversation().GetExpireTime()
	same(t, "read", read.GetConversation(), want)
	if diff := cmp.Diff([]string{"Hello", "World"}, texts(read.GetMessages())); diff != "" {
		t.Error(diff)
	}
	listed := must(c.ListConversations(ctx, &conversationv1.ListConversationsRequest{}))(t)
	same(t, "listed", listed, &conversationv1.ListConversationsResponse{
		Conversations: []*conversationv1.Conversation{want},
	})

	updated := must(c.UpdateConversation(ctx, &conversationv1.UpdateConversationRequest{
		ConversationId: c1, Conversation: &conversationv1.Conversation{Title: "Auth"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"title"}},
	}))(t)
	want.Title, want.Version, want.UpdateTime = "Auth", 3, updated.GetConversation().GetUpdateTime()
	want.ExpireTime = updated.GetConversation().GetExpireTime()
	same(t, "updated", updated.GetConversation(), want)

	deleted := must(c.DeleteConversation(ctx, &conversationv1.DeleteConversationRequest{ConversationId: c1}))(t)
	if got := deleted.GetVersion(); got != 4 {
		t.Errorf("deleted at version %d", got)
	}
	_, err := c.GetConversation(ctx, &conversationv1.GetConversationRequest{ConversationId: c1})
	notFound.check(t, err)
	_, err = c.ListMessages(ctx, &conversationv1.ListMessagesRequest{ConversationId: c1})
	notFound.check(t, err)
	_, err = c.Append(ctx, &conversationv1.AppendRequest{ConversationId: c1, Messages: said("x")})
	notFound.check(t, err)
	if again := must(c.DeleteConversation(ctx, &conversationv1.DeleteConversationRequest{ConversationId: c1}))(t); !deleted.GetExisted() || again.GetExisted() {
		t.Errorf("deleted: %v, and again: %v", deleted, again)
	}
	if got := must(c.ListConversations(ctx, &conversationv1.ListConversationsRequest{}))(t); len(got.GetConversations()) != 0 {
		t.Errorf("still listed: %v", got)
	}

	// Its id can be used again. Nothing is left of what was there, and the version goes on.
	again := must(c.CreateConversation(ctx, &conversationv1.CreateConversationRequest{ConversationId: c1}))(t)
	if got := again.GetConversation().GetVersion(); got != 5 {
		t.Errorf("created again at version %d", got)
	}
	if !again.GetConversation().GetCreateTime().AsTime().After(made.GetConversation().GetCreateTime().AsTime()) {
		t.Errorf("created again at %v", again.GetConversation().GetCreateTime().AsTime())
	}
	if got := get(t, c); got.GetConversation().GetMessageCount() != 0 || len(got.GetMessages()) != 0 {
		t.Errorf("after it was created again: %v", got)
	}
	if got := say(t, c, "new"); got.GetMessages()[0].GetSeq() != 1 {
		t.Errorf("the first message of the new life: %v", got)
	}
}

func TestCreateConversation(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, service := b.client(t, ada), b.client(t, nobody)
	first := must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{}))(t)
	second := must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{}))(t)
	id := first.GetConversation().GetConversationId()
	if id == "" || id == second.GetConversation().GetConversationId() {
		t.Errorf("ids are %q and %q", id, second.GetConversation().GetConversationId())
	}
	_, err := c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: id})
	refusal{code: connect.CodeAlreadyExists, reason: "ALREADY_EXISTS"}.check(t, err)

	// What a service makes for itself is the whole tenant's, so it has to say so.
	_, err = service.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "shared"})
	refusal{code: connect.CodeFailedPrecondition, reason: "USER_REQUIRED", says: []string{"shared"}}.check(t, err)
	_, err = service.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: "shared", CreateIfMissing: true})
	refusal{code: connect.CodeFailedPrecondition, reason: "USER_REQUIRED", says: []string{"shared"}}.check(t, err)
	shared := must(service.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "shared", Shared: true}))(t)
	if got := shared.GetConversation().GetOwner(); got != "" {
		t.Errorf("owner is %q", got)
	}
	must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: "shared"}))(t)
	must(service.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: id}))(t)
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	var before, after time.Time
	conn := b.sql(t)
	if err := conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&before); err != nil {
		t.Fatal(err)
	}
	create(t, c)
	made := get(t, c)
	appended := say(t, c, "x")
	if err := conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&after); err != nil {
		t.Fatal(err)
	}

	// By the database's clock, which the server extrapolates.
	const lag = 100 * time.Millisecond
	m := get(t, c).GetConversation()
	created, updated := m.GetCreateTime().AsTime(), m.GetUpdateTime().AsTime()
	if created.Before(before.Add(-lag)) || updated.Before(created) || updated.After(after.Add(lag)) {
		t.Errorf("created %v, updated %v, between %v and %v", created, updated, before, after)
	}
	if !created.Equal(made.GetConversation().GetCreateTime().AsTime()) {
		t.Errorf("create_time went from %v to %v", made.GetConversation().GetCreateTime().AsTime(), created)
	}
	if kept := m.GetExpireTime().AsTime().Sub(updated); kept < DefaultTTL || kept > DefaultTTL+DefaultTTL/24+time.Minute {
		t.Errorf("kept for %v", kept)
	}

	// Microseconds, as Postgres has them, in every timestamp of every answer.
	fields := &conversationv1.UpdateConversationRequest{
		ConversationId: c1, Conversation: &conversationv1.Conversation{Ttl: durationpb.New(25 * time.Hour)}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"ttl"}},
	}
	shorter := must(c.UpdateConversation(t.Context(), fields))(t)
	if kept := shorter.GetConversation().GetExpireTime().AsTime().Sub(shorter.GetConversation().GetUpdateTime().AsTime()); kept < 25*time.Hour || kept > 27*time.Hour {
		t.Errorf("with a TTL of 25 h kept for %v", kept)
	}
	read := get(t, c)
	for name, at := range map[string]*timestamppb.Timestamp{
		"create_time": read.GetConversation().GetCreateTime(), "update_time": read.GetConversation().GetUpdateTime(),
		"expire_time": read.GetConversation().GetExpireTime(), "message": read.GetMessages()[0].GetCreateTime(),
		"appended": appended.GetMessages()[0].GetCreateTime(),
	} {
		if at.GetNanos()%1000 != 0 || at.AsTime().IsZero() {
			t.Errorf("%s is %v", name, at.AsTime())
		}
	}
	if !read.GetMessages()[0].GetCreateTime().AsTime().Equal(updated) {
		t.Errorf("the message was created at %v, in a change at %v", read.GetMessages()[0].GetCreateTime().AsTime(), updated)
	}
}

func TestUpdateConversation(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	old := &conversationv1.Conversation{
		ConversationId: c1, Owner: string(ada), Title: "old", Labels: map[string]string{"a": "1"}, ProjectId: "p-1", Ttl: durationpb.New(48 * time.Hour),
	}
	patch := &conversationv1.Conversation{
		ConversationId: "another", Owner: "eve", Title: "new", Labels: map[string]string{"b": "2"}, ProjectId: "p-2", Ttl: durationpb.New(72 * time.Hour),
		MessageCount: 99, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Listening)},
	}
	tests := []struct {
		name string
		mask []string
		want func(*conversationv1.Conversation)
	}{
		{"title", []string{"title"}, func(c *conversationv1.Conversation) { c.Title = "new" }},
		{"one label", []string{"labels.b"}, func(c *conversationv1.Conversation) { c.Labels = map[string]string{"a": "1", "b": "2"} }},
		{"no label", []string{"labels.a"}, func(c *conversationv1.Conversation) { c.Labels = nil }},
		{"kept forever, which it was not", []string{"keep_forever"}, func(*conversationv1.Conversation) {}},
		{"all", []string{"*"}, func(c *conversationv1.Conversation) {
			c.Title, c.Labels, c.ProjectId, c.Ttl = "new", patch.Labels, "p-2", patch.Ttl
		}},
		{"labels", []string{"labels"}, func(c *conversationv1.Conversation) { c.Labels = patch.Labels }},
		{"project", []string{"project_id"}, func(c *conversationv1.Conversation) { c.ProjectId = "p-2" }},
		{"ttl", []string{"ttl"}, func(c *conversationv1.Conversation) { c.Ttl = patch.Ttl }},
		{"two", []string{"ttl", "title"}, func(c *conversationv1.Conversation) { c.Ttl, c.Title = patch.Ttl, "new" }},
		{"no mask: all that is set, labels by key", nil, func(c *conversationv1.Conversation) {
			c.Title, c.Labels, c.ProjectId, c.Ttl = "new", map[string]string{"a": "1", "b": "2"}, "p-2", patch.Ttl
		}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			id := fmt.Sprintf("c-%d", i)
			must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: id, Conversation: &conversationv1.Conversation{Title: old.GetTitle(), Labels: old.GetLabels(), ProjectId: old.GetProjectId(), Ttl: old.GetTtl()}}))(t)
			res := must(c.UpdateConversation(t.Context(), &conversationv1.UpdateConversationRequest{
				ConversationId: id, Conversation: patch, UpdateMask: &fieldmaskpb.FieldMask{Paths: tt.mask},
			}))(t)
			want := proto.CloneOf(old)
			got := res.GetConversation()
			want.ConversationId, want.Version, want.CreateTime, want.UpdateTime, want.ExpireTime = id, 2, got.GetCreateTime(), got.GetUpdateTime(), got.GetExpireTime()
			tt.want(want)
			same(t, "the reply", got, want)
			read := must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: id}))(t)
			same(t, "what was read", read.GetConversation(), want)
		})
	}
	create(t, c)
	for _, path := range []string{"owner", "message_count", "nothing", "conversation.title", "labels.", "ttl.seconds", "title.x", ""} {
		t.Run("mask "+path, func(t *testing.T) {
			t.Parallel()
			_, err := c.UpdateConversation(t.Context(), &conversationv1.UpdateConversationRequest{
				ConversationId: c1, Conversation: patch, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"title", path}},
			})
			invalidField("update_mask").check(t, err)
		})
	}
}

// at is the condition that the version is v; 0: none.
func at(v int64) *int64 {
	if v == 0 {
		return nil
	}
	return &v
}

// changes are a request of every RPC that changes c1, which has one message.
func changes() map[string]func(context.Context, client, int64) error {
	return map[string]func(context.Context, client, int64) error{
		"UpdateConversation": func(ctx context.Context, c client, v int64) error {
			_, err := c.UpdateConversation(ctx, &conversationv1.UpdateConversationRequest{ConversationId: c1, Conversation: &conversationv1.Conversation{Title: "t"}, IfVersion: at(v)})
			return err
		},
		"Append": func(ctx context.Context, c client, v int64) error {
			_, err := c.Append(ctx, &conversationv1.AppendRequest{ConversationId: c1, Messages: said("y"), IfVersion: at(v)})
			return err
		},
		"UpdateMessage": func(ctx context.Context, c client, v int64) error {
			_, err := c.EditMessages(ctx, &conversationv1.EditMessagesRequest{ConversationId: c1, IfVersion: at(v), Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Text: "z"}}}})
			return err
		},
		"SetVoiceState": func(ctx context.Context, c client, v int64) error {
			_, err := c.Append(ctx, &conversationv1.AppendRequest{ConversationId: c1, IfVersion: at(v), Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Listening)}})
			return err
		},
		"RecordIntent": func(ctx context.Context, c client, v int64) error {
			_, err := c.Append(ctx, &conversationv1.AppendRequest{ConversationId: c1, IfVersion: at(v), Intents: []*conversationv1.Intent{{Name: "n"}}})
			return err
		},
		"AdvanceFlow": func(ctx context.Context, c client, v int64) error {
			_, err := c.Append(ctx, &conversationv1.AppendRequest{ConversationId: c1, IfVersion: at(v), FlowSteps: []*conversationv1.FlowStep{{Flow: "f", Step: "s"}}})
			return err
		},
		"DeleteConversation": func(ctx context.Context, c client, v int64) error {
			_, err := c.DeleteConversation(ctx, &conversationv1.DeleteConversationRequest{ConversationId: c1, IfVersion: at(v)})
			return err
		},
	}
}

func TestIfVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, change := range changes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := b.tenant(t).client(t, ada)
			create(t, c)
			say(t, c, "x")
			before := get(t, c)
			for _, v := range []int64{1, 3} {
				err := change(t.Context(), c, v)
				refusal{code: connect.CodeAborted, reason: "VERSION_MISMATCH", says: []string{"version 2", strconv.FormatInt(v, 10)}}.check(t, err)
				if got := detail[*errdetails.ErrorInfo](t, err).GetMetadata()["current_version"]; got != "2" {
					t.Errorf("current_version is %q", got)
				}
			}
			same(t, "after a refusal", get(t, c), before)
			if err := change(t.Context(), c, 2); err != nil {
				t.Error(err)
			}
			refusal{code: connect.CodeInvalidArgument, reason: "FIELD_INVALID", field: "if_version"}.check(t, change(t.Context(), c, -1))
		})
	}
}

func TestOfConditionalChangesOneWins(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := serve(t, b.Bundle)
	create(t, b.client(t, ada))
	const n = 16
	errs := make(chan error, n)
	clients := []client{b.client(t, ada), other.client(t, ada)}
	for i := range n {
		go func() {
			_, err := clients[i%2].Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: said("x"), IfVersion: new(int64(1))})
			errs <- err
		}()
	}
	won := 0
	for range n {
		if err := <-errs; err != nil {
			refusal{code: connect.CodeAborted, reason: "VERSION_MISMATCH"}.check(t, err)
		} else {
			won++
		}
	}
	if got := get(t, clients[0]); won != 1 || got.GetConversation().GetVersion() != 2 || got.GetConversation().GetMessageCount() != 1 {
		t.Errorf("%d won; now %v", won, got)
	}
}

func TestProtocols(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, opts := range map[string][]connect.ClientOption{
		"Connect": nil, "Connect JSON": {connect.WithProtoJSON()}, "Connect GET": {connect.WithHTTPGet()},
		"gRPC": {connect.WithGRPC()}, "gRPC JSON": {connect.WithGRPC(), connect.WithProtoJSON()},
		"gRPC-Web": {connect.WithGRPCWeb()}, "gRPC-Web JSON": {connect.WithGRPCWeb(), connect.WithProtoJSON()},
	} {
		for version := range map[string]bool{"HTTP/1.1": true, "h2c": true} {
			if strings.HasPrefix(name, "gRPC ") || name == "gRPC" {
				if version == "HTTP/1.1" {
					continue // it needs trailers both ways
				}
			}
			t.Run(name+" "+version, func(t *testing.T) {
				t.Parallel()
				b := b.tenant(t)
				c := b.client(t, ada, opts...)
				if version == "HTTP/1.1" {
					c = b.clientOver(t, ada, &http.Transport{}, opts...)
				}
				create(t, c)
				say(t, c, "Hello")
				if got := texts(get(t, c).GetMessages()); !slices.Equal(got, []string{"Hello"}) {
					t.Errorf("read %q", got)
				}
				_, err := c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: "a b"})
				invalidField("conversation_id").check(t, err)
				_, err = c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Responding)}})
				refusal{code: connect.CodeFailedPrecondition, reason: "ILLEGAL_TRANSITION"}.check(t, err)
				w := watchAfter(t, c, 0)
				if got := w.next(t); !got.GetReset_() || len(got.GetMessages()) != 1 {
					t.Errorf("snapshot is %v", got)
				}
				say(t, c, "World")
				if got := w.next(t); got.GetVersion() != 3 || !slices.Equal(texts(got.GetMessages()), []string{"World"}) {
					t.Errorf("change is %v", got)
				}
				w.stream.Close()
				invalidField("items[0].conversation.conversation_id").check(t, watchFor(t, c, &watchv1.ConversationItem{ConversationId: "a b"}, "").end(t))
			})
		}
	}
}

func TestConditionalGet(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	auth := "Authorization: Bearer " + b.token(t, ada)
	read := func(t *testing.T, method, message, tag string) answered {
		t.Helper()
		q := url.Values{"connect": {"v1"}, "encoding": {"json"}, "message": {message}}
		return b.send(t, http.MethodGet, method+"?"+q.Encode(), nil, auth, "If-None-Match: "+tag)
	}
	before := map[string]string{}
	for _, method := range []string{"GetConversation", "ListMessages", "ListRecords"} {
		first := read(t, method, `{"conversationId":"c1"}`, "")
		if first.status != 200 || first.header.Get("ETag") == "" || first.body == "" {
			t.Fatalf("%s: %d %v %s", method, first.status, first.header, first.body)
		}
		before[method] = first.header.Get("ETag")
		if again := read(t, method, `{"conversationId":"c1"}`, first.header.Get("ETag")); again.status != 304 || again.body != "" {
			t.Errorf("%s again: %d %s", method, again.status, again.body)
		}
	}
	say(t, c, "x")
	for _, method := range []string{"GetConversation", "ListMessages"} {
		changed := read(t, method, `{"conversationId":"c1"}`, before[method])
		if changed.status != 200 || changed.header.Get("ETag") == before[method] {
			t.Errorf("%s, changed: %d %v", method, changed.status, changed.header)
		}
	}
	// The same by a field, for those who do not use GET.
	got := must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: c1, IfVersionNot: at(2), MessageLimit: 5}))(t)
	if !got.GetNotModified() || got.GetConversation() != nil || len(got.GetMessages()) != 0 {
		t.Errorf("at the version that is known: %v", got)
	}
	got = must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: c1, IfVersionNot: new(int64(1)), MessageLimit: 5}))(t)
	if got.GetNotModified() || len(got.GetMessages()) != 1 {
		t.Errorf("at another version: %v", got)
	}
	if got := b.send(t, http.MethodGet, "DeleteConversation?connect=v1&encoding=json&message=%7B%7D", nil, auth); got.status != 405 {
		t.Errorf("a change by GET: %d %s", got.status, got.body)
	}
}

func TestListConversations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	var all []string
	for i := range 7 {
		id := fmt.Sprintf("c-%d", i)
		labels := map[string]string{"parity": []string{"even", "odd"}[i%2], "third": strconv.FormatBool(i%3 == 0)}
		must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: id, Conversation: &conversationv1.Conversation{ProjectId: fmt.Sprintf("p-%d", i/4), Labels: labels}}))(t)
		all = append(all, id)
	}
	slices.Reverse(all) // newest first
	even := map[string]string{"parity": "even"}
	tests := []struct {
		name    string
		project string
		labels  map[string]string
		want    []string
	}{
		{"all", "", nil, all},
		{"project", "p-1", nil, []string{"c-6", "c-5", "c-4"}},
		{"label", "", even, []string{"c-6", "c-4", "c-2", "c-0"}},
		{"two labels", "", map[string]string{"parity": "even", "third": "true"}, []string{"c-6", "c-0"}},
		{"project and label", "p-0", even, []string{"c-2", "c-0"}},
		{"unknown project", "p-9", nil, nil},
		{"unknown label", "", map[string]string{"parity": "neither"}, nil},
		{"one of two labels", "", map[string]string{"parity": "even", "x": "y"}, nil},
	}
	for _, tt := range tests {
		for _, size := range []int32{0, 1, 2, 3, 200} {
			t.Run(fmt.Sprintf("%s by %d", tt.name, size), func(t *testing.T) {
				t.Parallel()
				var got []string
				req := &conversationv1.ListConversationsRequest{PageSize: size, Filter: &conversationv1.ConversationFilter{ProjectId: tt.project, Labels: tt.labels}}
				for {
					page := must(c.ListConversations(t.Context(), req))(t)
					if size > 0 && len(page.GetConversations()) > int(size) {
						t.Fatalf("a page of %d", len(page.GetConversations()))
					}
					for _, item := range page.GetConversations() {
						got = append(got, item.GetConversationId())
					}
					if page.GetNextPageToken() == "" || len(got) > len(all) {
						break
					}
					req.PageToken = page.GetNextPageToken()
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
	t.Run("labels that change", func(t *testing.T) {
		t.Parallel()
		c := b.tenant(t).client(t, ada)
		create(t, c)
		find := func() int {
			return len(must(c.ListConversations(t.Context(), &conversationv1.ListConversationsRequest{Filter: &conversationv1.ConversationFilter{Labels: even}}))(t).GetConversations())
		}
		if find() != 0 {
			t.Error("found without the label")
		}
		label := func(labels map[string]string) {
			must(c.UpdateConversation(t.Context(), &conversationv1.UpdateConversationRequest{
				ConversationId: c1, Conversation: &conversationv1.Conversation{Labels: labels}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
			}))(t)
		}
		label(even)
		if find() != 1 {
			t.Error("not found by a new label")
		}
		label(nil)
		if find() != 0 {
			t.Error("found by a label that was removed")
		}
	})
	for _, token := range []string{
		"?", "e", "e30", "bnVsbA", "W10", "eyJ0IjoxfQ", // not base64, cut, {}, null, [], {"t":1}
		"eyJ0IjoiMjAyNi0wMS0wMVQwMDowMDowMFoiLCJpIjoiXHUwMDAwIn0", // {"t":"2026-01-01T00:00:00Z","i":"\u0000"}
		"eyJ0IjoiMjAyNi0wMS0wMVQwMDowMDowMFoifQ",                  // {"t":"2026-01-01T00:00:00Z"}
	} {
		t.Run("token "+token, func(t *testing.T) {
			t.Parallel()
			_, err := c.ListConversations(t.Context(), &conversationv1.ListConversationsRequest{PageToken: token})
			refusal{code: connect.CodeInvalidArgument, reason: "PAGE_TOKEN_INVALID", field: "page_token"}.check(t, err)
		})
	}
}

// The activity of a list moves by the minute, so that most changes leave its index alone.
func TestListByActivity(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	for _, id := range []string{"older", "newer"} {
		must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: id, Conversation: &conversationv1.Conversation{Labels: map[string]string{"a": "b"}}}))(t)
	}
	order := func(labels map[string]string) string {
		var ids []string
		for _, item := range must(c.ListConversations(t.Context(), &conversationv1.ListConversationsRequest{Filter: &conversationv1.ConversationFilter{Labels: labels}}))(t).GetConversations() {
			ids = append(ids, item.GetConversationId())
		}
		return strings.Join(ids, " ")
	}
	// As if both had rested for an hour. A server that has just started knows nothing else.
	const age = "activity_time = activity_time - interval '1 hour'"
	conn := b.sql(t)
	for _, table := range []string{"objects", "terms"} {
		if _, err := conn.Exec(t.Context(), "UPDATE holdfast."+table+" SET "+age+" WHERE tenant_id = $1", string(b.Tenant)); err != nil {
			t.Fatal(err)
		}
	}
	c = serve(t, b.Bundle).client(t, ada)
	if got := order(nil); got != "newer older" {
		t.Fatalf("at first: %s", got)
	}
	must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: "older", Messages: said("x")}))(t)
	for _, labels := range []map[string]string{nil, {"a": "b"}} {
		if got := order(labels); got != "older newer" {
			t.Errorf("after a change of the older one, by %v: %s", labels, got)
		}
	}
}

func TestJSONAsCurlSeesIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	headers := []string{"Content-Type: application/json", "Authorization: Bearer " + b.token(t, ada)}
	post := func(method, body string) answered {
		return b.send(t, http.MethodPost, method, []byte(body), headers...)
	}
	made := post("CreateConversation", `{"conversationId": "c1", "conversation": {"labels": {"a/b": "ü"}, "ttl": "90000s"}}`)
	if made.status != 200 || !strings.Contains(made.body, `"ü"`) || !strings.Contains(made.body, `"90000s"`) {
		t.Errorf("created: %d %s", made.status, made.body)
	}
	// Field names of the proto are understood too.
	if got := post("GetConversation", `{"conversation_id": "c1"}`); got.status != 200 {
		t.Errorf("by proto names: %d %s", got.status, got.body)
	}
	var said struct {
		Messages []struct {
			Seq        int    `json:"seq"`
			CreateTime string `json:"createTime"`
		} `json:"messages"`
		Version string `json:"version"`
	}
	got := post("Append", `{"conversationId": "c1", "messages": [{"role": "ROLE_USER", "text": "Hello"}], "requestId": "m-1"}`)
	if err := json.Unmarshal([]byte(got.body), &said); err != nil || said.Version != "2" || said.Messages[0].Seq != 1 {
		t.Errorf("appended: %d %s %v", got.status, got.body, err)
	}
	microseconds := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}(\d{3})?)?Z$`)
	for _, at := range []string{said.Messages[0].CreateTime} {
		if !microseconds.MatchString(at) {
			t.Errorf("a time is %q", at)
		}
	}
	masked := post("UpdateConversation", `{"conversationId": "c1", "conversation": {"title": "t", "projectId": "p"}, "updateMask": "title,projectId"}`)
	if masked.status != 200 || !strings.Contains(masked.body, `"p"`) {
		t.Errorf("updated: %d %s", masked.status, masked.body)
	}
	for body, status := range map[string]int{
		``: 400, `{`: 400, `[]`: 400, `null`: 400, `{"conversationId": 7}`: 400, `{"conversationId": "c1"} x`: 400, `{"conversationId": "nobody"}`: 404,
	} {
		if got := post("GetConversation", body); got.status != status || !json.Valid([]byte(got.body)) {
			t.Errorf("%q is answered with %d %s", body, got.status, got.body)
		}
	}
	if got := b.send(t, http.MethodPost, "GetConversation", []byte(`{}`), "Content-Type: text/plain", headers[1]); got.status != 415 {
		t.Errorf("another content type is answered with %d %s", got.status, got.body)
	}
}

// jsonOf is a message as JSON.
func jsonOf(t *testing.T, m proto.Message) []byte {
	t.Helper()
	return must(protojson.Marshal(m))(t)
}

// together calls f n times at once and returns the errors.
func together(n int, f func(i int) error) []error {
	errs := make([]error, n)
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() { errs[i] = f(i) })
	}
	wait.Wait()
	return errs
}

// Who has not been used for as long as its time to live is not found from that instant on, whether or not it was swept.
func TestExpiry(t *testing.T) {
	t.Parallel()
	b := setup(t)
	create(t, b.client(t, ada))
	say(t, b.client(t, ada), "x")
	other := serve(t, b.Bundle, func(c *object.Config) { c.PollInterval = 30 * time.Millisecond })
	c := other.client(t, ada)
	w := watchAfter(t, c, 0)
	w.next(t)
	if _, err := b.sql(t).Exec(t.Context(), "UPDATE holdfast.objects SET expire_time = clock_timestamp() WHERE tenant_id = $1", string(b.Tenant)); err != nil {
		t.Fatal(err)
	}
	if got := w.next(t); !got.GetDeleted() {
		t.Errorf("it has expired, and a watcher sees %v", got)
	}
	c = serve(t, b.Bundle).client(t, ada) // which has not read it before
	for name, change := range changes() {
		if err := change(t.Context(), c, 0); connect.CodeOf(err) != connect.CodeNotFound && (name != "DeleteConversation" || err != nil) {
			t.Errorf("%s is answered with %v", name, err)
		}
	}
	_, err := c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: c1})
	notFound.check(t, err)
	_, err = c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: c1})
	notFound.check(t, err)
	if got := must(c.ListConversations(t.Context(), &conversationv1.ListConversationsRequest{}))(t); len(got.GetConversations()) != 0 {
		t.Errorf("still listed: %v", got)
	}
	create(t, c)
	if got := get(t, c); got.GetConversation().GetVersion() != 3 || got.GetConversation().GetMessageCount() != 0 || len(got.GetMessages()) != 0 {
		t.Errorf("created again: %v", got)
	}
}

// records are the records of one type in a list.
func records[R comparable](res *conversationv1.ListRecordsResponse, of func(*conversationv1.Record) R) (out []R) {
	var none R
	for _, r := range res.GetRecords() {
		if v := of(r); v != none {
			out = append(out, v)
		}
	}
	return out
}
