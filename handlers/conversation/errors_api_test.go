package conversation

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/object"
)

// invoke calls the method that takes the request.
func invoke(t *testing.T, c client, req proto.Message) error {
	t.Helper()
	var err error
	ctx := t.Context()
	switch r := req.(type) {
	case *conversationv1.CreateConversationRequest:
		_, err = c.CreateConversation(ctx, r)
	case *conversationv1.GetConversationRequest:
		_, err = c.GetConversation(ctx, r)
	case *conversationv1.ListConversationsRequest:
		_, err = c.ListConversations(ctx, r)
	case *conversationv1.UpdateConversationRequest:
		_, err = c.UpdateConversation(ctx, r)
	case *conversationv1.DeleteConversationRequest:
		_, err = c.DeleteConversation(ctx, r)
	case *conversationv1.AppendRequest:
		_, err = c.Append(ctx, r)
	case *conversationv1.EditMessagesRequest:
		_, err = c.EditMessages(ctx, r)
	case *conversationv1.ListMessagesRequest:
		_, err = c.ListMessages(ctx, r)
	case *conversationv1.ListRecordsRequest:
		_, err = c.ListRecords(ctx, r)
	case *conversationv1.GetContextWindowRequest:
		_, err = c.GetContextWindow(ctx, r)
	case *conversationv1.ProposeCompactionRequest:
		_, err = c.ProposeCompaction(ctx, r)
	case *conversationv1.CommitCompactionRequest:
		_, err = c.CommitCompaction(ctx, r)
	default:
		err = invokeLive(ctx, c, req)
	}
	return err
}

type (
	createReq  = conversationv1.CreateConversationRequest
	appendReq  = conversationv1.AppendRequest
	intentReq  = conversationv1.AppendRequest
	flowReq    = conversationv1.AppendRequest
	newMessage = conversationv1.Message
)

// Every limit is a clear error: it names the field, by its path, and the limit.
func TestLimits(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	say(t, c, "one")
	before := get(t, c)

	text := func(n int) string { return strings.Repeat("x", n) }
	labels := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint("k", i)] = ""
		}
		return m
	}
	one := func(m *newMessage) *appendReq {
		if m.Role == 0 {
			m.Role = conversationv1.Role_ROLE_USER
		}
		return &appendReq{ConversationId: c1, Messages: []*newMessage{{Role: conversationv1.Role_ROLE_USER, Text: "x"}, m}}
	}
	part := func(p *conversationv1.Part) *appendReq { return one(&newMessage{Parts: []*conversationv1.Part{p}}) }
	frames := func(f ...*livev1.LiveFrame) *ingestReq {
		return &ingestReq{ConversationId: c1, FencingToken: 1, Frames: f}
	}
	deep := structpb.NewNumberValue(1)
	for range 65 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	nul := structOf(t, map[string]any{"a": map[string]any{"b": []any{"x", "\x00"}}})
	infinite := &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewNumberValue(math.Inf(1))}}

	tests := []struct {
		req   proto.Message
		field string
		says  string
	}{
		{&createReq{ConversationId: "a b"}, "conversation_id", "A-Za-z0-9"},
		{&createReq{ConversationId: text(129)}, "conversation_id", "128 bytes"},
		{&createReq{ConversationId: "ü"}, "conversation_id", "A-Z"},
		{&createReq{Conversation: &conversationv1.Conversation{Title: text(1025)}}, "conversation.title", "1024"},
		{&createReq{Conversation: &conversationv1.Conversation{Title: "a\x00"}}, "conversation.title", "U+0000"},
		{&createReq{Conversation: &conversationv1.Conversation{Labels: labels(65)}}, "conversation.labels", "64"},
		{&createReq{Conversation: &conversationv1.Conversation{Labels: map[string]string{"a=b": ""}}}, `conversation.labels["a=b"]`, "1,64"},
		{&createReq{Conversation: &conversationv1.Conversation{Labels: map[string]string{"": ""}}}, `conversation.labels[""]`, "1,64"},
		{&createReq{Conversation: &conversationv1.Conversation{Labels: map[string]string{"a": text(257)}}}, `conversation.labels["a"]`, "256"},
		{&createReq{Conversation: &conversationv1.Conversation{ProjectId: "a/b"}}, "conversation.project_id", "A-Za-z0-9"},
		{&createReq{RequestId: text(129)}, "request_id", "128"},
		{&createReq{Conversation: &conversationv1.Conversation{Ttl: durationpb.New(24*time.Hour - 1)}}, "conversation.ttl", "86400s"},
		{&createReq{Conversation: &conversationv1.Conversation{Ttl: &durationpb.Duration{}}}, "conversation.ttl", "86400s"},
		{&createReq{Conversation: &conversationv1.Conversation{Ttl: &durationpb.Duration{Seconds: -86400}}}, "conversation.ttl", "86400s"},
		{&createReq{Conversation: &conversationv1.Conversation{Ttl: &durationpb.Duration{Seconds: 315360000, Nanos: 1}}}, "conversation.ttl", "315360000s"},
		{&createReq{Conversation: &conversationv1.Conversation{Ttl: &durationpb.Duration{Seconds: math.MaxInt64}}}, "conversation.ttl", ""},
		{&conversationv1.GetConversationRequest{}, "conversation_id", "A-Za-z0-9"},
		{&conversationv1.GetConversationRequest{ConversationId: c1, MessageLimit: 201}, "message_limit", "200"},
		{&conversationv1.GetConversationRequest{ConversationId: c1, MessageLimit: -1}, "message_limit", "0"},
		{&conversationv1.GetConversationRequest{ConversationId: c1, IfVersionNot: new(int64(-1))}, "if_version_not", "0"},
		{&conversationv1.ListConversationsRequest{PageSize: 201}, "page_size", "200"},
		{&conversationv1.ListConversationsRequest{PageSize: -1}, "page_size", "0"},
		{&conversationv1.ListConversationsRequest{PageToken: text(1025)}, "page_token", "1024"},
		{&conversationv1.ListConversationsRequest{Filter: &conversationv1.ConversationFilter{ProjectId: "a b"}}, "filter.project_id", "A-Za-z0-9"},
		{&conversationv1.UpdateConversationRequest{ConversationId: c1}, "conversation", "required"},
		{&conversationv1.UpdateConversationRequest{ConversationId: c1, Conversation: &conversationv1.Conversation{Title: text(1025)}}, "conversation.title", "1024"},
		{&conversationv1.UpdateConversationRequest{ConversationId: c1, Conversation: &conversationv1.Conversation{Ttl: durationpb.New(time.Hour)}}, "conversation.ttl", "86400s"},
		{&conversationv1.DeleteConversationRequest{}, "conversation_id", "A-Za-z0-9"},
		{&appendReq{ConversationId: c1, Messages: numbered(101)}, "messages", "100"},
		{one(&newMessage{}), "messages[1]", "text or parts"},
		{one(&newMessage{Text: text(262145)}), "messages[1].text", "262144"},
		{one(&newMessage{Text: strings.Repeat("ü", 131073)}), "messages[1].text", "262144 bytes"},
		{one(&newMessage{Text: "x", Role: 99}), "messages[1].role", ""},
		{&appendReq{ConversationId: c1, Messages: []*newMessage{{Text: "x"}}}, "messages[0].role", ""},
		{one(&newMessage{Text: "x", Modality: 99}), "messages[1].modality", ""},
		{one(&newMessage{Text: "x", ClientMessageId: text(513)}), "messages[1].client_message_id", "512"},
		{one(&newMessage{Text: "x", ClientMessageId: "\x00"}), "messages[1].client_message_id", "U+0000"},
		{one(&newMessage{Text: "x", TokenCount: new(int32(-1))}), "messages[1].token_count", "0"},
		{one(&newMessage{Text: "x", TokenCount: new(int32(10_000_001))}), "messages[1].token_count", "10000000"},
		{one(&newMessage{Text: "x", Metadata: nul}), `messages[1].metadata["a"]["b"][1]`, "U+0000"},
		{one(&newMessage{Parts: slices.Repeat([]*conversationv1.Part{{Part: &conversationv1.Part_Text{Text: "x"}}}, 257)}), "messages[1].parts", "256"},
		{part(&conversationv1.Part{}), "messages[1].parts[0].part", ""},
		{part(&conversationv1.Part{Part: &conversationv1.Part_File{File: &conversationv1.FileRef{}}}), "messages[1].parts[0].file.uri", "1"},
		{part(&conversationv1.Part{Part: &conversationv1.Part_Json{Json: structpb.NewStructValue(nul)}}), `messages[1].parts[0].json["a"]["b"][1]`, "U+0000"},
		{&conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{}}}, "updates[0].message", "required"},
		{&conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{}}}}, "updates[0].message.seq", "must name"},
		{&conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Text: text(262145)}}}}, "updates[0].message.text", "262144"},
		{&conversationv1.ListMessagesRequest{ConversationId: c1, PageSize: 201}, "page_size", "200"},
		{&conversationv1.ListMessagesRequest{ConversationId: c1, AfterSeq: -1}, "after_seq", "0"},
		{&conversationv1.AppendRequest{ConversationId: c1, Voice: &conversationv1.VoiceState{Status: 99}}, "voice.status", ""},
		{&conversationv1.AppendRequest{ConversationId: c1, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Idle), AudioStreamId: text(129)}}, "voice.audio_stream_id", "128"},
		{&conversationv1.AppendRequest{ConversationId: c1, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Idle), LastTranscription: text(65537)}}, "voice.last_transcription", "65536"},
		{&intentReq{ConversationId: c1, Intents: []*conversationv1.Intent{{}}}, "intents[0].name", "1"},
		{&intentReq{ConversationId: c1, Intents: []*conversationv1.Intent{{Name: text(129)}}}, "intents[0].name", "128"},
		{&intentReq{ConversationId: c1, Intents: []*conversationv1.Intent{{Name: "n", Confidence: 1.001}}}, "intents[0].confidence", "1"},
		{&intentReq{ConversationId: c1, Intents: []*conversationv1.Intent{{Name: "n", Confidence: math.NaN()}}}, "intents[0].confidence", ""},
		{&intentReq{ConversationId: c1, Intents: []*conversationv1.Intent{{Name: "n", MessageSeq: -1}}}, "intents[0].message_seq", "0"},
		{&intentReq{ConversationId: c1, Intents: []*conversationv1.Intent{{Name: "n", MessageSeq: 2}}}, "intents[0].message_seq", "last message is 1"},
		{&intentReq{ConversationId: c1, Intents: []*conversationv1.Intent{{Name: "n", Slots: infinite}}}, `intents[0].slots["a"]`, "finite"},
		{&intentReq{ConversationId: c1, Intents: []*conversationv1.Intent{{Name: "n", Slots: &structpb.Struct{Fields: map[string]*structpb.Value{"a": deep}}}}}, `intents[0].slots["a"]` + strings.Repeat("[0]", 63), "64 levels"},
		{&conversationv1.ListRecordsRequest{ConversationId: c1, PageSize: 201, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_INTENT}}, "page_size", "200"},
		{&flowReq{ConversationId: c1, FlowSteps: []*conversationv1.FlowStep{{Step: "s"}}}, "flow_steps[0].flow", "1"},
		{&flowReq{ConversationId: c1, FlowSteps: []*conversationv1.FlowStep{{Flow: "f"}}}, "flow_steps[0].step", "1"},
		{&flowReq{ConversationId: c1, FlowSteps: []*conversationv1.FlowStep{{Flow: "f", Step: "s", Data: nul}}}, `flow_steps[0].data["a"]["b"][1]`, "U+0000"},
		{&conversationv1.ListRecordsRequest{ConversationId: c1, PageSize: -1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_FLOW_STEP}}, "page_size", "0"},
		{frames(make([]*livev1.LiveFrame, 1001)...), "frames", "1000"},
		{frames(&livev1.LiveFrame{ClientIndex: 1}), "frames[0].frame", ""},
		{frames(textFrame(0, "{}")), "frames[0].client_index", "1"},
		{&ingestReq{ConversationId: c1, Frames: []*livev1.LiveFrame{textFrame(1, "{}")}}, "fencing_token", "1"},
	}
	for _, tt := range tests {
		failed := t.Failed()
		invalidField(tt.field, tt.says).check(t, invoke(t, c, tt.req))
		if t.Failed() && !failed {
			t.Fatalf("the request: %T{%.200v}", tt.req, tt.req)
		}
	}
	same(t, "after so many refusals", get(t, c), before)
}

// What is just within the limits is taken, and comes back as it was.
func TestWithinTheLimits(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	long := strings.Repeat("x", 128)
	labels := map[string]string{}
	for i := range 64 {
		labels[fmt.Sprintf("%02d%s", i, strings.Repeat("k", 62))] = strings.Repeat("v", 256)
	}
	for _, ttl := range []time.Duration{24 * time.Hour, 10 * 365 * 24 * time.Hour} {
		res := must(c.CreateConversation(t.Context(), &createReq{Conversation: &conversationv1.Conversation{Ttl: durationpb.New(ttl)}}))(t)
		if kept := res.GetConversation().GetExpireTime().AsTime().Sub(res.GetConversation().GetUpdateTime().AsTime()); kept < ttl {
			t.Errorf("with a TTL of %v kept for %v", ttl, kept)
		}
	}
	asked := &createReq{ConversationId: long, RequestId: long, Conversation: &conversationv1.Conversation{Title: strings.Repeat("ü", 512), Labels: labels, ProjectId: long}}
	made := must(c.CreateConversation(t.Context(), asked))(t)
	if got := made.GetConversation(); got.GetConversationId() != long || got.GetTitle() != asked.GetConversation().GetTitle() || len(got.GetLabels()) != 64 {
		t.Errorf("made %v", got)
	}
	found := must(c.ListConversations(t.Context(), &conversationv1.ListConversationsRequest{Filter: &conversationv1.ConversationFilter{Labels: labels, ProjectId: long}}))(t)
	if len(found.GetConversations()) != 1 {
		t.Errorf("not found by all its labels: %v", found)
	}

	create(t, c)
	messages := numbered(100)
	for i := range messages {
		messages[i].ClientMessageId = fmt.Sprintf("%03d%s", i, strings.Repeat("i", 509))
	}
	messages[99].Text = strings.Repeat("ü", 32<<10)
	must(c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: messages}))(t)
	if got := get(t, c).GetMessages(); len(got) != 100 || got[99].GetText() != messages[99].GetText() {
		t.Errorf("%d messages came back", len(got))
	}
	deep := structpb.NewNumberValue(1)
	for range 63 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	slots := &structpb.Struct{Fields: map[string]*structpb.Value{
		"deep": deep, "huge": structpb.NewNumberValue(math.MaxFloat64), "tiny": structpb.NewNumberValue(math.SmallestNonzeroFloat64),
		"zero": structpb.NewNumberValue(math.Copysign(0, -1)), "": structpb.NewStringValue("\u2028\ufffd\x01\U0010ffff"),
	}}
	must(c.Append(t.Context(), &intentReq{ConversationId: c1, Intents: []*conversationv1.Intent{{Name: "n", Confidence: 1, Slots: slots}}}))(t)
	listed := must(c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_INTENT}}))(t)
	// Not by same: go-cmp takes twice as long for each level.
	if got := listed.GetRecords()[0].GetIntent().GetSlots(); !proto.Equal(got, slots) {
		t.Errorf("slots came back as %v", got)
	}

	frames := make([]*livev1.LiveFrame, 1000)
	for i := range frames {
		frames[i] = textFrame(int64(i)+1, activityStart)
	}
	if got := ingestOne(t, c, openLive(t, c), frames...); got.GetReceivedThrough() != 1000 {
		t.Errorf("ingested up to %d", got.GetReceivedThrough())
	}
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	large := structOf(t, map[string]any{"x": strings.Repeat("x", 256<<10)})
	larger := structOf(t, map[string]any{"x": strings.Repeat("x", 1<<20)})
	for name, tt := range map[string]struct {
		req  proto.Message
		what string
		most string
	}{
		"state":          {&flowReq{ConversationId: c1, FlowSteps: []*conversationv1.FlowStep{{Flow: "f", Step: "s", Data: large}}}, "state", "262144"},
		"state, intent":  {&intentReq{ConversationId: c1, Intents: []*conversationv1.Intent{{Name: "n", Slots: large}}}, "state", "262144"},
		"entry":          {&appendReq{ConversationId: c1, Messages: []*newMessage{{Role: conversationv1.Role_ROLE_USER, Parts: []*conversationv1.Part{{Part: &conversationv1.Part_Json{Json: structpb.NewStructValue(larger)}}}}}}, "entry messages/000000000002", "1048576"},
		"entry, patched": {&conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Parts: []*conversationv1.Part{{Part: &conversationv1.Part_Json{Json: structpb.NewStructValue(larger)}}}}}}}, "entry messages/000000000001", "1048576"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := b.tenant(t).client(t, ada)
			create(t, c)
			say(t, c, "one")
			before := get(t, c)
			err := invoke(t, c, tt.req)
			refusal{code: connect.CodeInvalidArgument, reason: "SIZE_EXCEEDED", field: tt.what, says: []string{tt.most}}.check(t, err)
			if limit := detail[*errdetails.ErrorInfo](t, err).GetMetadata()["limit"]; limit != tt.most {
				t.Errorf("the limit is said to be %q", limit)
			}
			same(t, "after the refusal", get(t, c), before)
		})
	}
	// A hundred messages of 64 KiB fit in a request, and 8 MiB do not.
	for name, opts := range map[string][]connect.ClientOption{"Connect": nil, "gRPC": {connect.WithGRPC()}, "gRPC-Web": {connect.WithGRPCWeb()}} {
		t.Run("request by "+name, func(t *testing.T) {
			t.Parallel()
			c := b.tenant(t).client(t, ada, opts...)
			create(t, c)
			texts := make([]string, 130)
			for i := range texts {
				texts[i] = strings.Repeat("x", 64<<10)
			}
			_, err := c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: said(texts...)})
			refusal{code: connect.CodeInvalidArgument, reason: "SIZE_EXCEEDED", says: []string{"8388608"}}.check(t, err)
			must(c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: said(texts[:100]...)}))(t)
		})
	}
}

// retryInfo checks that an error says when to try again.
func retryInfo(t *testing.T, err error) {
	t.Helper()
	if detail[*errdetails.RetryInfo](t, err).GetRetryDelay().AsDuration() <= 0 {
		t.Errorf("no RetryInfo: %v", err)
	}
}

func TestMailboxLimit(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *object.Config) { c.Limits.PerObject = 1 })
	c := b.client(t, ada)
	create(t, c)
	unlock := b.lockRow(t)
	// One is on its way and one may wait; what comes beside them is refused at once.
	const n = 6
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: said("x")})
			errs <- err
		}()
	}
	for range n - 2 {
		err := <-errs
		refusal{code: connect.CodeResourceExhausted, reason: "OVERLOADED", says: []string{"object", "nothing was done"}}.check(t, err)
		retryInfo(t, err)
	}
	unlock()
	accepted := int32(0)
	for range 2 {
		if err := <-errs; err == nil {
			accepted++
		}
	}
	if got := get(t, c).GetConversation().GetMessageCount(); accepted == 0 || got != accepted {
		t.Errorf("%d appends were acknowledged, %d messages are there", accepted, got)
	}
}

func TestNewerRow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	create(t, b.client(t, ada))
	say(t, b.client(t, ada), "x")
	if _, err := b.sql(t).Exec(t.Context(), "UPDATE holdfast.objects SET schema_version = 99 WHERE tenant_id = $1", string(b.Tenant)); err != nil {
		t.Fatal(err)
	}
	c := serve(t, b.Bundle).client(t, ada)
	for name, change := range changes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := change(t.Context(), c, 0)
			refusal{code: connect.CodeUnavailable, reason: "NEWER_SCHEMA", says: []string{"newer release"}}.check(t, err)
			retryInfo(t, err)
		})
	}
	if got := get(t, c); len(got.GetMessages()) != 1 {
		t.Errorf("reading it: %v", got)
	}
}

func TestPostgresIsAway(t *testing.T) {
	t.Parallel()
	d := dbtest.Own(t)
	b := serve(t, d)
	c := b.client(t, ada)
	create(t, c)
	w := watchAfter(t, c, 0)
	w.next(t)

	u, err := pgx.ParseConfig(d.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	name := u.Database
	u.Database = "postgres"
	admin, err := pgx.ConnectConfig(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close(context.Background()) })
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec("ALTER DATABASE " + pgx.Identifier{name}.Sanitize() + " ALLOW_CONNECTIONS false")
	exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
	away := refusal{code: connect.CodeUnavailable, reason: "DATABASE_UNAVAILABLE", says: []string{"nothing was done"}}
	for range 20 { // each also takes a dead connection out of the pool
		err := invoke(t, c, &conversationv1.GetConversationRequest{ConversationId: c1})
		away.check(t, err)
		retryInfo(t, err)
	}
	away.check(t, invoke(t, c, &appendReq{ConversationId: c1, Messages: said("x")}))
	away.check(t, invoke(t, c, &conversationv1.ListConversationsRequest{}))
	away.check(t, watchFor(t, c, whole, w.cursor).end(t))
	exec("ALTER DATABASE " + pgx.Identifier{name}.Sanitize() + " ALLOW_CONNECTIONS true")
	poll(t, func() bool { return invoke(t, c, &conversationv1.GetConversationRequest{ConversationId: c1}) == nil })
	say(t, c, "x")
	// A watch that was open all the time goes on.
	if got := w.next(t); got.GetVersion() != 2 || got.GetReset_() {
		t.Errorf("the watch goes on with %v", got)
	}
}

func TestRefusalsAsCurlSeesThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	create(t, b.client(t, ada))
	auth := "Authorization: Bearer " + b.token(t, ada)
	for _, tt := range []struct {
		method, body string
		status       int
		says         []string
	}{
		{"CreateConversation", `{"conversationId": "c1"}`, 409, []string{"already_exists", "ALREADY_EXISTS"}},
		{"GetConversation", `{"conversationId": "c2"}`, 404, []string{"not_found", "NOT_FOUND", "or it is not yours"}},
		{"UpdateConversation", `{"conversationId": "c1", "conversation": {}, "ifVersion": 9}`, 409, []string{"aborted", "VERSION_MISMATCH", `"current_version":"1"`}},
		{"Append", `{"conversationId": "c1", "voice": {"status": "VOICE_STATUS_RESPONDING"}}`, 400, []string{"failed_precondition", "ILLEGAL_TRANSITION", "VOICE_STATUS_LISTENING"}},
		{"UpdateConversation", `{"conversationId": "c1", "conversation": {}, "updateMask": "owner"}`, 400, []string{"invalid_argument", "update_mask", "labels, title, project_id, ttl, keep_forever, metadata"}},
		{"GetConversation", `{"conversationId": "c1", "messageLimit": "many"}`, 400, []string{"invalid_argument", "messageLimit"}},
	} {
		got := b.send(t, http.MethodPost, tt.method, []byte(tt.body), "Content-Type: application/json", auth)
		if got.status != tt.status {
			t.Errorf("%s %s is answered with %d %s", tt.method, tt.body, got.status, got.body)
		}
		for _, s := range tt.says {
			if !strings.Contains(strings.ReplaceAll(got.body, ": ", ":"), s) {
				t.Errorf("%s %s: the answer does not say %q: %s", tt.method, tt.body, s, got.body)
			}
		}
	}
}
