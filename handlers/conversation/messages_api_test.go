package conversation

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	godiff "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
)

func structOf(t *testing.T, fields map[string]any) *structpb.Struct {
	t.Helper()
	return must(structpb.NewStruct(fields))(t)
}

// numbered are n messages "1", "2" and so on.
func numbered(n int) []*conversationv1.Message {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprint(i + 1)
	}
	return said(all...)
}

func TestAppendMessages(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	args := structOf(t, map[string]any{"repo": "api", "n": 1.5, "deep": map[string]any{"list": []any{nil, true, "x"}}})
	const exact = `{"id": 1234567890123456789}`
	parts := []*conversationv1.Part{
		{Part: &conversationv1.Part_Text{Text: "Grüße"}, PartId: "p-1", Metadata: args},
		{Part: &conversationv1.Part_Reasoning{Reasoning: "They said hello."}, ThoughtSignature: []byte("\x00\xff")},
		{Part: &conversationv1.Part_ToolCall{ToolCall: &conversationv1.ToolCallPart{CallId: "call-1", Name: "run", Args: args}}},
		{Part: &conversationv1.Part_ToolCall{ToolCall: &conversationv1.ToolCallPart{CallId: "call-2", Name: "run", ArgsJson: exact}}},
		{Part: &conversationv1.Part_ToolResult{ToolResult: &conversationv1.ToolResultPart{CallId: "call-1", Name: "run", Response: structpb.NewStringValue("sunny"), IsError: true}}},
		{Part: &conversationv1.Part_ToolResult{ToolResult: &conversationv1.ToolResultPart{CallId: "call-2", Name: "run", ResponseJson: exact}}},
		{Part: &conversationv1.Part_File{File: &conversationv1.FileRef{Uri: "gs://b/o", MimeType: "text/plain", Name: "o"}}},
		{Part: &conversationv1.Part_Data{Data: &conversationv1.Blob{Data: bytes.Repeat([]byte{0, 1, 2, 250}, 150_000), MimeType: "image/png", Name: "i"}}},
		{Part: &conversationv1.Part_Json{Json: structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewNumberValue(1), structpb.NewNullValue()}})}},
	}
	spoken := &conversationv1.Spoken{
		HeardText: new(""), HeardEstimated: true, AudioMs: 2000, PlayedMs: new(int32(0)), InterruptTime: timestamppb.New(time.Unix(1, 0)), EndReason: "r",
		Language: "de", Speaker: "s", Sources: args, Usage: args,
	}
	sent := []*conversationv1.Message{
		{Role: conversationv1.Role_ROLE_USER, Text: "Grüße, 世界! \U0001f600", ThoughtSignature: []byte("\x00\xff")},
		{Role: conversationv1.Role_ROLE_ASSISTANT, Parts: parts, Modality: typev1.Modality_MODALITY_VOICE, Metadata: args, Spoken: spoken, TokenCount: new(int32(3))},
		{Role: conversationv1.Role_ROLE_TOOL, Text: "exact", TokenCount: new(int32(7)), ClientMessageId: "m 3/ü", Status: conversationv1.MessageStatus_MESSAGE_STATUS_FAILED},
		{Role: conversationv1.Role_ROLE_SYSTEM, Text: "none", TokenCount: new(int32(0)), Hidden: true},
		{Role: conversationv1.Role_ROLE_USER, Text: "kept", Pinned: true, TokenCount: new(int32(99)), TokenCountEstimated: true},
		{Role: conversationv1.Role_ROLE_ASSISTANT, Status: conversationv1.MessageStatus_MESSAGE_STATUS_STREAMING},
	}
	res := must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: sent}))(t)
	now := res.GetMessages()[0].GetCreateTime()
	want := make([]*conversationv1.Message, len(sent))
	for i, m := range sent {
		m = proto.CloneOf(m)
		m.Seq, m.CreateTime, m.UpdateTime = int32(i)+1, now, now
		m.Modality, m.Status = cmp.Or(m.GetModality(), typev1.Modality_MODALITY_TEXT), cmp.Or(m.GetStatus(), conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE)
		if m.TokenCount == nil || m.GetTokenCountEstimated() {
			m.TokenCount, m.TokenCountEstimated = new([]int32{6, 0, 0, 0, 1, 0}[i]), true
		}
		want[i] = m
		same(t, "the reply", res.GetMessages()[i], &conversationv1.Message{
			Seq: m.GetSeq(), CreateTime: now, TokenCount: m.TokenCount, TokenCountEstimated: m.GetTokenCountEstimated(), ClientMessageId: m.GetClientMessageId(),
		})
	}
	read := get(t, c)
	same(t, "read", &conversationv1.GetConversationResponse{Messages: read.GetMessages()}, &conversationv1.GetConversationResponse{Messages: want})
	if got := read.GetConversation(); got.GetMessageCount() != 6 || got.GetLastSeq() != 6 || got.GetTokenCount() != 17 {
		t.Errorf("the conversation has %d messages of %d tokens", got.GetMessageCount(), got.GetTokenCount())
	}
	// The same from a server that has none of it at hand, and from one that is sent what was read.
	listed := must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: c1}))(t)
	same(t, "listed", listed, &conversationv1.ListMessagesResponse{Messages: want, Version: res.GetVersion()})
	must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "copy", Messages: listed.GetMessages()}))(t)
	copied := must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: "copy"}))(t)
	for i, m := range copied.GetMessages() {
		m.CreateTime, m.UpdateTime = now, now
		same(t, "what was read can be written", m, want[i])
	}
}

func TestAppendIsAllOrNothing(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	messages := numbered(3)
	messages[2].Text, messages[2].Parts = "", []*conversationv1.Part{{Part: &conversationv1.Part_Json{Json: structpb.NewStringValue(strings.Repeat("x", 1<<20))}}}
	_, err := c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: messages})
	refusal{code: connect.CodeInvalidArgument, reason: "SIZE_EXCEEDED"}.check(t, err)
	if got := get(t, c); got.GetConversation().GetVersion() != 1 || len(got.GetMessages()) != 0 || got.GetConversation().GetMessageCount() != 0 {
		t.Errorf("left behind: %v", got)
	}
}

func TestConcurrentAppendsHaveNoGap(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clients := []client{b.client(t, ada), serve(t, b.Bundle).client(t, ada), b.client(t, nobody)}
	create(t, clients[0])
	const writers, each = 6, 10
	for _, err := range together(writers, func(i int) error {
		for n := range each {
			texts := []string{fmt.Sprintf("%d.%d.a", i, n), fmt.Sprintf("%d.%d.b", i, n)}
			if _, err := clients[i%len(clients)].Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: said(texts...)}); err != nil {
				return err
			}
		}
		return nil
	}) {
		if err != nil {
			t.Error(err)
		}
	}
	read := get(t, clients[0])
	if v := read.GetConversation().GetVersion(); v != 1+writers*each || len(read.GetMessages()) != 2*writers*each {
		t.Fatalf("version %d with %d messages", v, len(read.GetMessages()))
	}
	last := map[string]string{}
	for i, m := range read.GetMessages() {
		if int(m.GetSeq()) != i+1 {
			t.Fatalf("message %d is in place %d", m.GetSeq(), i+1)
		}
		// Those of one request stand together, and those of one writer in the order in which it wrote.
		if a, ok := strings.CutSuffix(m.GetText(), ".a"); ok && read.GetMessages()[i+1].GetText() != a+".b" {
			t.Errorf("%s is followed by %s", m.GetText(), read.GetMessages()[i+1].GetText())
		}
		writer, _, _ := strings.Cut(m.GetText(), ".")
		if m.GetText() <= last[writer] {
			t.Errorf("%s comes after %s", m.GetText(), last[writer])
		}
		last[writer] = m.GetText()
	}
}

func TestClientMessageID(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	msg := func(id, text string) *conversationv1.Message {
		return &conversationv1.Message{Role: conversationv1.Role_ROLE_USER, Text: text, ClientMessageId: id}
	}
	send := func(t *testing.T, c client, messages ...*conversationv1.Message) *conversationv1.AppendResponse {
		t.Helper()
		return must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: messages}))(t)
	}
	outcome := func(res *conversationv1.AppendResponse) string {
		var seqs []int32
		for _, m := range res.GetMessages() {
			seqs = append(seqs, m.GetSeq())
		}
		return fmt.Sprint(seqs, " known ", res.GetDuplicateSeqs())
	}
	first := send(t, c, msg("a", "one"), msg("", "two"), msg("a", "twice in one request"), msg("b", "three"))
	if diff := godiff.Diff("[1 2 1 3] known [1]", outcome(first)); diff != "" {
		t.Errorf("within one request: %s", diff)
	}
	// Across requests, of which one has only known messages and changes nothing; and on a server that knows nothing yet.
	for _, c := range []client{c, serve(t, b.Bundle).client(t, ada)} {
		again := send(t, c, msg("b", "other words"), msg("a", "one"))
		if diff := godiff.Diff("[3 1] known [3 1]", outcome(again)); diff != "" {
			t.Errorf("across requests: %s", diff)
		}
		if again.GetVersion() != 2 {
			t.Errorf("nothing new is version %d", again.GetVersion())
		}
		same(t, "what is told of a known message", again.GetMessages()[1], first.GetMessages()[0])
	}
	mixed := send(t, c, msg("a", "one"), msg("c", "four"))
	if diff := godiff.Diff("[1 4] known [1]", outcome(mixed)); diff != "" || mixed.GetVersion() != 3 {
		t.Errorf("known and new ones: version %d, %s", mixed.GetVersion(), diff)
	}
	if diff := godiff.Diff([]string{"one", "two", "three", "four"}, texts(get(t, c).GetMessages())); diff != "" {
		t.Error(diff)
	}

	// Many at once: one is added.
	errs := together(8, func(int) error {
		_, err := c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: []*conversationv1.Message{msg("d", "five")}})
		return err
	})
	if n := get(t, c).GetConversation().GetMessageCount(); n != 5 {
		t.Errorf("%d messages after eight appended the same one: %v", n, errs)
	}

	// An id belongs to its conversation, and dies with it.
	must(c.DeleteConversation(t.Context(), &conversationv1.DeleteConversationRequest{ConversationId: c1}))(t)
	create(t, c)
	if diff := godiff.Diff("[1] known []", outcome(send(t, c, msg("a", "anew")))); diff != "" {
		t.Errorf("in a new life: %s", diff)
	}
}

func TestUpdateMessage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, both := structOf(t, map[string]any{"a": "1"}), structOf(t, map[string]any{"a": "1", "b": "2"})
	old := &conversationv1.Message{Role: conversationv1.Role_ROLE_ASSISTANT, Text: "old words", Metadata: a, ClientMessageId: "m-1"}
	parts := []*conversationv1.Part{{Part: &conversationv1.Part_Text{Text: "in a part"}}}
	patch := &conversationv1.Message{
		Seq: 1, Text: "new", Status: conversationv1.MessageStatus_MESSAGE_STATUS_FAILED, Metadata: structOf(t, map[string]any{"b": "2"}), TokenCount: new(int32(100)),
		ClientMessageId: "another", CreateTime: timestamppb.Now(), Role: conversationv1.Role_ROLE_TOOL, Pinned: true,
	}
	estimated := proto.CloneOf(patch)
	estimated.TokenCount = nil
	type message = conversationv1.Message
	tests := []struct {
		name  string
		mask  []string
		patch *message
		want  func(*message)
	}{
		{"text, which is counted anew", []string{"text"}, patch, func(m *message) { m.Text, m.TokenCount = "new", new(int32(1)) }},
		{"parts, in place of the text", []string{"parts"}, &message{Seq: 1, Parts: parts}, func(m *message) { m.Text, m.Parts, m.TokenCount = "", parts, new(int32(3)) }},
		{"parts without a mask", nil, &message{Seq: 1, Parts: parts}, func(m *message) { m.Text, m.Parts, m.TokenCount = "", parts, new(int32(3)) }},
		{"status", []string{"status"}, patch, func(m *message) { m.Status = patch.GetStatus() }},
		{"no status is no change", []string{"status"}, &message{Seq: 1}, func(*message) {}},
		{"metadata", []string{"metadata"}, patch, func(m *message) { m.Metadata = patch.GetMetadata() }},
		{"one key of the metadata", []string{"metadata.b"}, patch, func(m *message) { m.Metadata = both }},
		{"token count", []string{"token_count"}, patch, func(m *message) { m.TokenCount, m.TokenCountEstimated = new(int32(100)), false }},
		{"an unset token count is estimated", []string{"token_count"}, estimated, func(*message) {}},
		{"hidden", []string{"hidden", "pinned"}, &message{Seq: 1, Hidden: true}, func(m *message) { m.Hidden = true }},
		{"nothing is something to set", []string{"text", "parts", "metadata"}, &message{Seq: 1}, func(m *message) {
			m.Text, m.Parts, m.Metadata, m.TokenCount = "", nil, nil, new(int32(0))
		}},
		{"no mask: all that is set", nil, patch, func(m *message) {
			m.Text, m.Status, m.Metadata, m.TokenCount, m.TokenCountEstimated = "new", patch.GetStatus(), both, new(int32(100)), false
			m.Role, m.Pinned = patch.GetRole(), true
		}},
		{"no mask, estimated", nil, estimated, func(m *message) {
			m.Text, m.Status, m.Metadata, m.TokenCount = "new", patch.GetStatus(), both, new(int32(1))
			m.Role, m.Pinned = patch.GetRole(), true
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := b.tenant(t).client(t, ada)
			create(t, c)
			must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: []*conversationv1.Message{old, said("x")[0]}}))(t)
			before := get(t, c).GetMessages()
			res := must(c.EditMessages(t.Context(), &conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: tt.patch, UpdateMask: &fieldmaskpb.FieldMask{Paths: tt.mask}}}}))(t)
			want := proto.CloneOf(before[0])
			if tt.want(want); !proto.Equal(want, before[0]) {
				want.UpdateTime = get(t, c).GetConversation().GetUpdateTime()
			}
			same(t, "the reply", res.GetMessages()[0], want)
			after := get(t, c)
			same(t, "what was read", after.GetMessages()[0], want)
			same(t, "the other message", after.GetMessages()[1], before[1])
			if got := after.GetConversation(); got.GetTokenCount() != int64(want.GetTokenCount())+1 || got.GetMessageCount() != 2 {
				t.Errorf("the conversation has %d messages of %d tokens", got.GetMessageCount(), got.GetTokenCount())
			}
		})
	}
	c := b.client(t, ada)
	create(t, c)
	say(t, c, "one")
	for _, path := range []string{"seq", "client_message_id", "create_time", "message.text", "text.x", "nothing"} {
		t.Run("mask "+path, func(t *testing.T) {
			t.Parallel()
			_, err := c.EditMessages(t.Context(), &conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: patch, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"text", path}}}}})
			invalidField("update_mask").check(t, err)
		})
	}
	for _, seq := range []int32{2, math.MaxInt32} {
		_, err := c.EditMessages(t.Context(), &conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: seq, Text: "x"}}}})
		refusal{code: connect.CodeNotFound, reason: "NOT_FOUND", says: []string{fmt.Sprint("message ", seq)}}.check(t, err)
	}
}

func TestListMessages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	for _, n := range []int{60, 50} {
		must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: numbered(n)}))(t)
	}
	const total = 110
	tests := []struct {
		after, before int32
		first, last   int32 // 0: nothing
	}{
		{first: 1, last: total},
		{after: 50, first: 51, last: total},
		{after: total - 1, first: total, last: total},
		{after: total},
		{after: math.MaxInt32},
		{before: 1},
		{before: 2, first: 1, last: 1},
		{before: 52, first: 1, last: 51},
		{before: math.MaxInt32, first: 1, last: total},
		{after: 3, before: 9, first: 4, last: 8},
		{after: 8, before: 9},
		{after: 9, before: 3},
	}
	for _, tt := range tests {
		for _, newestFirst := range []bool{false, true} {
			for _, size := range []int32{0, 1, 7, 50, 200} {
				t.Run(fmt.Sprintf("after %d before %d, newest first %t, by %d", tt.after, tt.before, newestFirst, size), func(t *testing.T) {
					t.Parallel()
					var want, got []int32
					for seq := tt.first; seq <= tt.last && seq > 0; seq++ {
						want = append(want, seq)
					}
					if newestFirst {
						slices.Reverse(want)
					}
					req := &conversationv1.ListMessagesRequest{ConversationId: c1, AfterSeq: tt.after, BeforeSeq: tt.before, PageSize: size, NewestFirst: newestFirst}
					for pages := 0; pages <= total; pages++ {
						res := must(c.ListMessages(t.Context(), req))(t)
						if len(res.GetMessages()) > int(cmp.Or(size, 50)) || res.GetVersion() != 3 {
							t.Errorf("a page of %d at version %d", len(res.GetMessages()), res.GetVersion())
						}
						for _, m := range res.GetMessages() {
							got = append(got, m.GetSeq())
						}
						if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
							break
						}
					}
					if !slices.Equal(got, want) {
						t.Errorf("got %v, want %v", got, want)
					}
				})
			}
		}
	}
	page := must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: c1}))(t)
	_, err := c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: c1, NewestFirst: true, PageToken: page.GetNextPageToken()})
	refusal{code: connect.CodeInvalidArgument, reason: "PAGE_TOKEN_INVALID", field: "page_token"}.check(t, err)

	// The last messages that come with the conversation: also more than a server keeps at hand, and on one that has none.
	for name, c := range map[string]client{"warm": c, "cold": serve(t, b.Bundle).client(t, ada)} {
		for _, limit := range []int32{0, 1, recentMessages, recentMessages + 1, 41, 200} {
			res := must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: c1, MessageLimit: limit}))(t)
			want := min(int(limit), total)
			if len(res.GetMessages()) != want || want > 0 && (int(res.GetMessages()[0].GetSeq()) != total-want+1 || res.GetMessages()[want-1].GetSeq() != total) {
				t.Errorf("%s: the last %d are %q", name, limit, texts(res.GetMessages()))
			}
		}
	}
}
