package conversation

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

func structOf(t *testing.T, fields map[string]any) *structpb.Struct {
	t.Helper()
	return must(structpb.NewStruct(fields))(t)
}

// numbered are n messages "1", "2" and so on.
func numbered(n int) []*conversationv1.NewMessage {
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
	parts := []*conversationv1.Part{
		{Part: &conversationv1.Part_ToolCall{ToolCall: &conversationv1.ToolCallPart{CallId: "call-1", Name: "run", Args: args}}},
		{Part: &conversationv1.Part_ToolResult{ToolResult: &conversationv1.ToolResultPart{CallId: "call-1", Name: "run", Response: args, IsError: true}}},
		{Part: &conversationv1.Part_File{File: &conversationv1.FileReference{Uri: "gs://b/o", MimeType: "text/plain", Name: "o"}}},
		{Part: &conversationv1.Part_Image{Image: &conversationv1.FileReference{Uri: "https://x/y.png"}}},
		{Part: &conversationv1.Part_Json{Json: args}},
	}
	const (
		voice    = conversationv1.Modality_MODALITY_VOICE
		text     = conversationv1.Modality_MODALITY_TEXT
		complete = conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE
	)
	res := must(c.AppendMessages(t.Context(), &conversationv1.AppendMessagesRequest{ConversationId: c1, Messages: []*conversationv1.NewMessage{
		{Role: conversationv1.Role_ROLE_USER, Text: "Grüße, 世界! \U0001f600"},
		{Role: conversationv1.Role_ROLE_ASSISTANT, Parts: parts, Modality: voice, Metadata: map[string]string{"model": "m", "empty": ""}},
		{Role: conversationv1.Role_ROLE_TOOL, Text: "exact", TokenCount: new(int64(7)), ClientMessageId: "m-3"},
		{Role: conversationv1.Role_ROLE_SYSTEM, Text: "none", TokenCount: new(int64(0))},
	}}))(t)
	now := res.GetMetadata().GetUpdateTime()
	want := []*conversationv1.Message{
		{Seq: 1, Role: conversationv1.Role_ROLE_USER, Modality: text, Text: "Grüße, 世界! \U0001f600", TokenCount: 3, TokenCountEstimated: true},
		{Seq: 2, Role: conversationv1.Role_ROLE_ASSISTANT, Modality: voice, Parts: parts, Metadata: map[string]string{"model": "m", "empty": ""}, TokenCountEstimated: true},
		{Seq: 3, Role: conversationv1.Role_ROLE_TOOL, Modality: text, Text: "exact", TokenCount: 7, ClientMessageId: "m-3"},
		{Seq: 4, Role: conversationv1.Role_ROLE_SYSTEM, Modality: text, Text: "none"},
	}
	for i, m := range want {
		m.Status, m.CreateTime, m.UpdateTime = complete, now, now
		same(t, "the reply", res.GetMessages()[i], &conversationv1.AppendedMessage{
			Seq: m.GetSeq(), CreateTime: now, TokenCount: m.GetTokenCount(), TokenCountEstimated: m.GetTokenCountEstimated(),
		})
	}
	read := get(t, c)
	same(t, "read", &conversationv1.GetConversationResponse{Messages: read.GetMessages()}, &conversationv1.GetConversationResponse{Messages: want})
	if got := read.GetConversation(); got.GetMessageCount() != 4 || got.GetTokenCount() != 10 {
		t.Errorf("the conversation has %d messages of %d tokens", got.GetMessageCount(), got.GetTokenCount())
	}
	// The same from a server that has none of it at hand.
	listed := must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: c1}))(t)
	same(t, "listed", listed, &conversationv1.ListMessagesResponse{Messages: want, Metadata: res.GetMetadata()})
}

func TestAppendIsAllOrNothing(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	messages := numbered(3)
	messages[2].Parts = []*conversationv1.Part{{Part: &conversationv1.Part_Json{Json: structOf(t, map[string]any{"x": strings.Repeat("x", 300<<10)})}}}
	_, err := c.AppendMessages(t.Context(), &conversationv1.AppendMessagesRequest{ConversationId: c1, Messages: messages})
	refusal{code: connect.CodeInvalidArgument, reason: "SIZE_EXCEEDED"}.check(t, err)
	if got := get(t, c); got.GetMetadata().GetVersion() != 1 || len(got.GetMessages()) != 0 || got.GetConversation().GetMessageCount() != 0 {
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
			if _, err := clients[i%len(clients)].AppendMessages(t.Context(), &conversationv1.AppendMessagesRequest{ConversationId: c1, Messages: said(texts...)}); err != nil {
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
	if v := read.GetMetadata().GetVersion(); v != 1+writers*each || len(read.GetMessages()) != 2*writers*each {
		t.Fatalf("version %d with %d messages", v, len(read.GetMessages()))
	}
	last := map[string]string{}
	for i, m := range read.GetMessages() {
		if m.GetSeq() != int64(i)+1 {
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
	msg := func(id, text string) *conversationv1.NewMessage {
		return &conversationv1.NewMessage{Role: conversationv1.Role_ROLE_USER, Text: text, ClientMessageId: id}
	}
	send := func(t *testing.T, c client, messages ...*conversationv1.NewMessage) *conversationv1.AppendMessagesResponse {
		t.Helper()
		return must(c.AppendMessages(t.Context(), &conversationv1.AppendMessagesRequest{ConversationId: c1, Messages: messages}))(t)
	}
	outcome := func(res *conversationv1.AppendMessagesResponse) (out []string) {
		for _, m := range res.GetMessages() {
			out = append(out, fmt.Sprintf("%d %t", m.GetSeq(), m.GetDuplicate()))
		}
		return out
	}
	first := send(t, c, msg("a", "one"), msg("", "two"), msg("a", "twice in one request"), msg("b", "three"))
	if diff := cmp.Diff([]string{"1 false", "2 false", "1 true", "3 false"}, outcome(first)); diff != "" {
		t.Errorf("within one request: %s", diff)
	}
	// Across requests, of which one has only known messages and changes nothing; and on a server that knows nothing yet.
	for _, c := range []client{c, serve(t, b.Bundle).client(t, ada)} {
		again := send(t, c, msg("b", "other words"), msg("a", "one"))
		if diff := cmp.Diff([]string{"3 true", "1 true"}, outcome(again)); diff != "" {
			t.Errorf("across requests: %s", diff)
		}
		if again.GetMetadata().GetVersion() != 2 {
			t.Errorf("nothing new is version %d", again.GetMetadata().GetVersion())
		}
		same(t, "what is told of a known message", again.GetMessages()[1], func() *conversationv1.AppendedMessage {
			m := proto.CloneOf(first.GetMessages()[0])
			m.Duplicate = true
			return m
		}())
	}
	mixed := send(t, c, msg("a", "one"), msg("c", "four"))
	if diff := cmp.Diff([]string{"1 true", "4 false"}, outcome(mixed)); diff != "" || mixed.GetMetadata().GetVersion() != 3 {
		t.Errorf("known and new ones: version %d, %s", mixed.GetMetadata().GetVersion(), diff)
	}
	if diff := cmp.Diff([]string{"one", "two", "three", "four"}, texts(get(t, c).GetMessages())); diff != "" {
		t.Error(diff)
	}

	// Many at once: one is added.
	errs := together(8, func(int) error {
		_, err := c.AppendMessages(t.Context(), &conversationv1.AppendMessagesRequest{ConversationId: c1, Messages: []*conversationv1.NewMessage{msg("d", "five")}})
		return err
	})
	if n := get(t, c).GetConversation().GetMessageCount(); n != 5 {
		t.Errorf("%d messages after eight appended the same one: %v", n, errs)
	}

	// An id belongs to its conversation, and dies with it.
	must(c.DeleteConversation(t.Context(), &conversationv1.DeleteConversationRequest{ConversationId: c1}))(t)
	create(t, c)
	if diff := cmp.Diff([]string{"1 false"}, outcome(send(t, c, msg("a", "anew")))); diff != "" {
		t.Errorf("in a new life: %s", diff)
	}
}

func TestUpdateMessage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := &conversationv1.NewMessage{
		Role: conversationv1.Role_ROLE_ASSISTANT, Text: "old words", Metadata: map[string]string{"a": "1"}, ClientMessageId: "m-1",
		Parts: []*conversationv1.Part{{Part: &conversationv1.Part_File{File: &conversationv1.FileReference{Uri: "u"}}}},
	}
	patch := &conversationv1.MessagePatch{
		Seq: 1, Text: "new", Status: conversationv1.MessageStatus_MESSAGE_STATUS_FAILED, Metadata: map[string]string{"b": "2"},
		Parts: []*conversationv1.Part{{Part: &conversationv1.Part_Image{Image: &conversationv1.FileReference{Uri: "v"}}}}, TokenCount: new(int64(100)),
	}
	estimated := proto.CloneOf(patch)
	estimated.TokenCount = nil
	tests := []struct {
		name  string
		mask  []string
		patch *conversationv1.MessagePatch
		want  func(*conversationv1.Message)
	}{
		{"text, which is counted anew", []string{"text"}, patch, func(m *conversationv1.Message) { m.Text, m.TokenCount = "new", 1 }},
		{"parts", []string{"parts"}, patch, func(m *conversationv1.Message) { m.Parts = patch.Parts }},
		{"status", []string{"status"}, patch, func(m *conversationv1.Message) { m.Status = patch.Status }},
		{"no status is no change", []string{"status"}, &conversationv1.MessagePatch{Seq: 1}, func(*conversationv1.Message) {}},
		{"metadata", []string{"metadata"}, patch, func(m *conversationv1.Message) { m.Metadata = patch.Metadata }},
		{"token count", []string{"token_count"}, patch, func(m *conversationv1.Message) { m.TokenCount, m.TokenCountEstimated = 100, false }},
		{"an unset token count is no change", []string{"token_count"}, estimated, func(*conversationv1.Message) {}},
		{"nothing is something to set", []string{"text", "parts", "metadata"}, &conversationv1.MessagePatch{Seq: 1}, func(m *conversationv1.Message) {
			m.Text, m.Parts, m.Metadata, m.TokenCount = "", nil, nil, 0
		}},
		{"no mask: all", nil, patch, func(m *conversationv1.Message) {
			m.Text, m.Parts, m.Status, m.Metadata, m.TokenCount, m.TokenCountEstimated = "new", patch.Parts, patch.Status, patch.Metadata, 100, false
		}},
		{"no mask, estimated", nil, estimated, func(m *conversationv1.Message) {
			m.Text, m.Parts, m.Status, m.Metadata, m.TokenCount = "new", patch.Parts, patch.Status, patch.Metadata, 1
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := b.tenant(t).client(t, ada)
			create(t, c)
			must(c.AppendMessages(t.Context(), &conversationv1.AppendMessagesRequest{ConversationId: c1, Messages: []*conversationv1.NewMessage{old, said("x")[0]}}))(t)
			before := get(t, c).GetMessages()
			res := must(c.UpdateMessage(t.Context(), &conversationv1.UpdateMessageRequest{ConversationId: c1, Message: tt.patch, UpdateMask: &fieldmaskpb.FieldMask{Paths: tt.mask}}))(t)
			want := proto.CloneOf(before[0])
			want.UpdateTime = res.GetMetadata().GetUpdateTime()
			tt.want(want)
			same(t, "the reply", res.GetMessage(), want)
			after := get(t, c)
			same(t, "what was read", after.GetMessages()[0], want)
			same(t, "the other message", after.GetMessages()[1], before[1])
			if got := after.GetConversation(); got.GetTokenCount() != want.GetTokenCount()+1 || got.GetMessageCount() != 2 {
				t.Errorf("the conversation has %d messages of %d tokens", got.GetMessageCount(), got.GetTokenCount())
			}
		})
	}
	c := b.client(t, ada)
	create(t, c)
	say(t, c, "one")
	for _, path := range []string{"seq", "role", "create_time", "message.text", "text.x", "*"} {
		t.Run("mask "+path, func(t *testing.T) {
			t.Parallel()
			_, err := c.UpdateMessage(t.Context(), &conversationv1.UpdateMessageRequest{ConversationId: c1, Message: patch, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"text", path}}})
			invalidField("update_mask").check(t, err)
		})
	}
	for _, seq := range []int64{2, math.MaxInt64} {
		_, err := c.UpdateMessage(t.Context(), &conversationv1.UpdateMessageRequest{ConversationId: c1, Message: &conversationv1.MessagePatch{Seq: seq, Text: "x"}})
		refusal{code: connect.CodeNotFound, reason: "NOT_FOUND", says: []string{fmt.Sprint("message ", seq)}}.check(t, err)
	}
}

func TestListMessages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	for _, n := range []int{60, 50} {
		must(c.AppendMessages(t.Context(), &conversationv1.AppendMessagesRequest{ConversationId: c1, Messages: numbered(n)}))(t)
	}
	const total = 110
	tests := []struct {
		after, before int64
		size          int32
		first, last   int64 // 0: nothing
		more          bool
	}{
		{first: 1, last: 50, more: true}, // the default
		{size: 1, first: 1, last: 1, more: true},
		{size: 200, first: 1, last: total},
		{after: 50, first: 51, last: 100, more: true},
		{after: 60, first: 61, last: total},
		{after: 59, size: 50, first: 60, last: 109, more: true},
		{after: total - 1, first: total, last: total},
		{after: total},
		{after: math.MaxInt64},
		{before: 1},
		{before: 2, first: 1, last: 1},
		{before: 51, first: 1, last: 50},
		{before: 52, first: 2, last: 51, more: true},
		{before: total + 1, size: 10, first: 101, last: total, more: true},
		{before: math.MaxInt64, size: 200, first: 1, last: total},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("after %d before %d size %d", tt.after, tt.before, tt.size), func(t *testing.T) {
			t.Parallel()
			res := must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: c1, AfterSeq: tt.after, BeforeSeq: tt.before, PageSize: tt.size}))(t)
			var want, got []int64
			for seq := tt.first; seq <= tt.last && seq > 0; seq++ {
				want = append(want, seq)
			}
			for _, m := range res.GetMessages() {
				got = append(got, m.GetSeq())
			}
			if !slices.Equal(got, want) || res.GetHasMore() != tt.more || res.GetMetadata().GetVersion() != 3 {
				t.Errorf("got %v, more: %t, at version %d; want %v, %t", got, res.GetHasMore(), res.GetMetadata().GetVersion(), want, tt.more)
			}
		})
	}
	_, err := c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: c1, AfterSeq: 1, BeforeSeq: 5})
	refusal{code: connect.CodeInvalidArgument, reason: "FIELD_INVALID", says: []string{"after_seq", "before_seq"}}.check(t, err)

	// The last messages that come with the conversation: also more than a server keeps at hand, and on one that has none.
	for name, c := range map[string]client{"warm": c, "cold": serve(t, b.Bundle).client(t, ada)} {
		for _, limit := range []int32{0, 1, recentMessages, recentMessages + 1, 41, 200} {
			res := must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: c1, MessageLimit: limit}))(t)
			want := min(int(limit), total)
			if len(res.GetMessages()) != want || want > 0 && (res.GetMessages()[0].GetSeq() != int64(total-want+1) || res.GetMessages()[want-1].GetSeq() != total) {
				t.Errorf("%s: the last %d are %q", name, limit, texts(res.GetMessages()))
			}
		}
	}
}
