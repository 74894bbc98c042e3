package handlers_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db/dbtest"
	"holdfast/gen/holdfast/inspect/v1/inspectv1connect"
	"holdfast/handlers"
	"holdfast/handlers/inspect"
	"holdfast/object"
)

// inspectService has, beside the kinds that others have registered, one with timers that nothing runs.
func inspectService(rt *object.Runtime) handlers.Service {
	object.Register(rt, object.KindConfig[*typepb.Type]{
		Name: "probe", SchemaVersion: 1, TTL: 48 * time.Hour, OnTimer: func(*object.Tx[*typepb.Type], string) error { return nil },
	})
	return handlers.NewService[inspectv1connect.InspectServiceHandler](
		inspectv1connect.InspectServiceName, inspectv1connect.NewInspectServiceHandler, inspect.NewManager(rt))
}

var inspectArea = area{
	fill: fillInspected, alone: true, // what is the tenant's is in isolation_kinds_test.go
	fuzzing: fuzzing{
		seed: [][2]string{
			{"/holdfast.conversation.v1.ConversationService/CreateConversation", `{"conversationId":"c1","conversation":{"labels":{"a":"b"}}}`},
			{"/holdfast.conversation.v1.ConversationService/Append", `{"conversationId":"c1","messages":[{"role":"ROLE_USER","text":"x"}]}`},
		},
		reads: map[string][2]string{"": {"GetObject", `{"ref":{"kind":"conversation","objectId":"c1"},"collection":"messages"}`}},
		// No user may retry what is not there, and no service either.
		service: map[string]string{"RetryTimer": "not_found", "EraseUser": "ok"},
		full: map[string]string{
			"ListObjects":   `{"kind":"conversation","owner":"ada","prefix":"c","byId":true,"pageSize":5}`,
			"GetObject":     `{"ref":{"kind":"conversation","objectId":"c1"},"at":{"version":"1"},"collection":"messages","pageSize":5}`,
			"ListEvents":    `{"ref":{"kind":"conversation","objectId":"c1"},"pageSize":5}`,
			"DiffObject":    `{"ref":{"kind":"conversation","objectId":"c1"},"from":{"version":"1"},"to":{"time":"2099-01-01T00:00:00Z"},"pageSize":5}`,
			"RestoreObject": `{"ref":{"kind":"conversation","objectId":"c1"},"at":{"version":"1"},"requestId":"r-2","ifVersion":"2"}`,
			"DeleteObject":  `{"ref":{"kind":"conversation","objectId":"c1"},"requestId":"r-2","ifVersion":"2"}`,
			"ListTimers":    `{"kind":"conversation","objectId":"c1","parked":true,"pageSize":5}`,
			"RetryTimer":    `{"ref":{"kind":"probe","objectId":"c1"},"name":"n","requestId":"r-2","ifVersion":"1"}`,
			"EraseUser":     `{"user":"nobody@example.com"}`,
		},
	},
	cases: map[string]isolationCase{
		"/holdfast.inspect.v1.InspectService/ListObjects":   {test: isolateListObjects},
		"/holdfast.inspect.v1.InspectService/GetObject":     {body: `{"ref":{"kind":"conversation","objectId":"c1"},"collection":"messages"}`, reads: true},
		"/holdfast.inspect.v1.InspectService/ListEvents":    {body: `{"ref":{"kind":"conversation","objectId":"c1"}}`},
		"/holdfast.inspect.v1.InspectService/DiffObject":    {body: `{"ref":{"kind":"conversation","objectId":"c1"},"from":{"version":1}}`},
		"/holdfast.inspect.v1.InspectService/RestoreObject": {body: `{"ref":{"kind":"conversation","objectId":"c1"},"at":{"version":1}}`},
		"/holdfast.inspect.v1.InspectService/DeleteObject":  {body: `{"ref":{"kind":"conversation","objectId":"c1"}}`, outside: isEmpty, inside: isEmpty},
		"/holdfast.inspect.v1.InspectService/ListTimers":    {body: `{"kind":"probe"}`, outside: isEmpty, inside: isEmpty, reads: true},
		"/holdfast.inspect.v1.InspectService/RetryTimer":    {body: `{"ref":{"kind":"probe","objectId":"c1"},"name":"` + secret + `"}`},
		"/holdfast.inspect.v1.InspectService/EraseUser":     {test: isolateEraseUser},
	},
}

// isolateEraseUser erases ada as everybody: only a service of the very tenant can.
func isolateEraseUser(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	t.Helper()
	ada, service := b.key(t, "ada"), b.key(t, "")
	fillConversation(t, b, ada)
	read := registered()["/holdfast.inspect.v1.InspectService/GetObject"]
	there := func() string {
		t.Helper()
		return b.call(t, read, `{"ref":{"kind":"conversation","objectId":"c1"}}`, service).code
	}
	for _, c := range []struct {
		name    string
		headers []string
		code    string
	}{
		{"nobody", nil, "unauthenticated"},
		{"the user", []string{ada}, "permission_denied"},
		{"another user", []string{b.key(t, "eve")}, "permission_denied"},
		{"a service for a user", []string{service, "Holdfast-User: ada"}, "permission_denied"},
		{"another tenant's user", []string{b.tenant(t).key(t, "ada")}, "permission_denied"},
		{"another tenant's service", []string{b.tenant(t).key(t, "")}, "ok"},
	} {
		got := b.call(t, m, `{"user":"ada"}`, c.headers...)
		if !strings.HasPrefix(got.code, c.code) || c.code == "ok" && strings.Contains(got.body, "objects") || there() != "ok" {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	if got := b.call(t, m, `{"user":"ada"}`, service); got.code != "ok" || !strings.Contains(got.body, `"objects"`) || !strings.HasPrefix(there(), "not_found") {
		t.Errorf("a service: %+v, and then it is %s", got, there())
	}
}

// fillInspected makes c1 twice: a conversation, and a probe with a timer, both of the user ada.
func fillInspected(tb testing.TB, b *bundle, ada string) {
	tb.Helper()
	fillConversation(tb, b, ada)
	m := registered()["/holdfast.conversation.v1.ConversationService/Append"]
	if got := b.call(tb, m, `{"conversationId":"c1","voice":{"status":"VOICE_STATUS_LISTENING"},"requestId":"`+secret+`"}`, ada); got.code != "ok" {
		tb.Fatalf("%+v", got)
	}
	conn, err := pgx.Connect(tb.Context(), b.SuperuserURL)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, sql := range []string{
		`INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state, create_time, update_time, activity_time, timers)
		VALUES ($1, 'probe', 'c1', 'ada', 0, 1, 1, '{}', now(), now(), now(), jsonb_build_object($2::text, '2099-01-01T00:00:00Z'))`,
		`INSERT INTO holdfast.timers (tenant_id, kind, object_id, name, owner_id, due_time, next_time) VALUES ($1, 'probe', 'c1', $2, 'ada', '2099-01-01T00:00:00Z', '2099-01-01T00:00:00Z')`,
	} {
		if _, err := conn.Exec(tb.Context(), sql, string(b.Tenant), secret); err != nil {
			tb.Fatal(err)
		}
	}
}

// isolateListObjects lists by every order: an item says nothing of what the object holds.
func isolateListObjects(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	t.Helper()
	ada := b.key(t, "ada")
	fillInspected(t, b, ada)
	for _, body := range []string{
		`{"kind":"conversation"}`, `{"kind":"conversation","byId":true}`, `{"kind":"conversation","owner":"ada"}`, `{"kind":"conversation","prefix":"c1"}`,
	} {
		for name, c := range map[string]struct {
			header string
			sees   bool
		}{
			"the owner": {ada, true}, "a service": {b.key(t, ""), true}, "another user": {b.key(t, "eve"), false},
			"another tenant's service": {b.tenant(t).key(t, ""), false}, "another tenant's user of that name": {b.tenant(t).key(t, "ada"), false},
		} {
			if got := b.call(t, m, body, c.header); got.code != "ok" || strings.Contains(got.body, `"c1"`) != c.sees || !c.sees && got.body != "{}" {
				t.Errorf("%s of %s is answered with %+v", body, name, got)
			}
		}
	}
	for _, kinds := range []string{"", b.key(t, "eve")} {
		want := "unauthenticated"
		var headers []string
		if kinds != "" {
			headers, want = []string{kinds}, "ok"
		}
		if got := b.call(t, m, `{}`, headers...); got.code != want || (want == "ok") != strings.Contains(got.body, `"probe"`) {
			t.Errorf("all kinds: %+v", got)
		}
	}
}

// notSecret are the stored fields of bytes that anybody who sees the object may see.
var notSecret = map[protoreflect.FullName]string{
	"holdfast.store.conversation.v1.Blob.data":                  "what somebody said",
	"holdfast.store.conversation.v1.Part.thought_signature":     "a part of what the model said, which the provider has sealed",
	"holdfast.store.conversation.v1.ToolCall.thought_signature": "the same",
	"holdfast.store.conversation.v1.Message.thought_signature":  "the same",
	"holdfast.store.state.v1.Entry.data":                        "what a caller keeps",
	"holdfast.store.coordination.v1.Outcome.body":               "what the provider answered to the caller",
}

// The inspector shows what is stored, but for what its message marks with debug_redact. Bytes are hashes and sealed
// secrets, unless somebody has thought about it.
func TestStoredSecretsAreMarked(t *testing.T) {
	t.Parallel()
	rt := object.NewRuntime(dbtest.New(t).DB, object.Config{})
	defer rt.Close(context.Background())
	services(t, rt)
	seen := map[protoreflect.FullName]bool{}
	var walk func(md protoreflect.MessageDescriptor)
	walk = func(md protoreflect.MessageDescriptor) {
		if seen[md.FullName()] {
			return
		}
		seen[md.FullName()] = true
		for i := range md.Fields().Len() {
			f := md.Fields().Get(i)
			marked := f.Options().(*descriptorpb.FieldOptions).GetDebugRedact()
			if strings.HasPrefix(string(f.FullName()), "holdfast.") && f.Kind() == protoreflect.BytesKind && !marked && notSecret[f.FullName()] == "" {
				t.Errorf("%s may be a secret: mark it with debug_redact, or say in notSecret why it is none", f.FullName())
			}
			if f.Message() != nil && !marked {
				walk(f.Message())
			}
		}
	}
	for _, name := range rt.Kinds() {
		k, _ := rt.Kind(name)
		walk(k.Prototype().ProtoReflect().Descriptor())
		for _, c := range k.Collections() {
			walk(k.PrototypeOf(c).ProtoReflect().Descriptor())
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d messages were found", len(seen))
	}
}
