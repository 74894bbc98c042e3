package conversation

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/handlers/conversation/voice"
)

// retried is a request of every RPC that changes something, and another one that takes the same request id. Their replies
// have maps with many keys, whose order nothing fixes but care.
func retried(t *testing.T) map[string][2]interface {
	proto.Message
	GetRequestId() string
} {
	t.Helper()
	many, slots := map[string]string{}, map[string]any{}
	for i := range 20 {
		many[fmt.Sprint("k", i)], slots[fmt.Sprint("k", i)] = "v", float64(i)
	}
	data := structOf(t, slots)
	part := []*conversationv1.Part{{Part: &conversationv1.Part_Json{Json: structpb.NewStructValue(data)}}}
	const id = "r-1"
	return map[string][2]interface {
		proto.Message
		GetRequestId() string
	}{
		"CreateConversation": {
			&conversationv1.CreateConversationRequest{ConversationId: "c2", RequestId: id, Conversation: &conversationv1.Conversation{Labels: many}},
			&conversationv1.CreateConversationRequest{ConversationId: "c2", RequestId: id},
		},
		"UpdateConversation": {
			&conversationv1.UpdateConversationRequest{ConversationId: c1, Conversation: &conversationv1.Conversation{Labels: many}, RequestId: id},
			&conversationv1.UpdateConversationRequest{ConversationId: c1, Conversation: &conversationv1.Conversation{Title: "x"}, RequestId: id},
		},
		"DeleteConversation": {
			&conversationv1.DeleteConversationRequest{ConversationId: c1, RequestId: id},
			&conversationv1.DeleteConversationRequest{ConversationId: c1, RequestId: id, IfVersion: new(int64(7))},
		},
		"Append": {
			&conversationv1.AppendRequest{ConversationId: c1, Messages: numbered(3), RequestId: id},
			&conversationv1.AppendRequest{ConversationId: c1, Messages: numbered(2), RequestId: id},
		},
		"EditMessages": {
			&conversationv1.EditMessagesRequest{ConversationId: c1, RequestId: id, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Metadata: data, Parts: part}}}},
			&conversationv1.EditMessagesRequest{ConversationId: c1, RequestId: id, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Text: "x"}}}},
		},
		"Append voice": {
			&conversationv1.AppendRequest{ConversationId: c1, RequestId: id, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Listening)}},
			&conversationv1.AppendRequest{ConversationId: c1, RequestId: id, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Idle)}},
		},
		"Append intents": {
			&conversationv1.AppendRequest{ConversationId: c1, RequestId: id, Intents: []*conversationv1.Intent{{Name: "n", Slots: data}}},
			&conversationv1.AppendRequest{ConversationId: c1, RequestId: id, Intents: []*conversationv1.Intent{{Name: "n"}}},
		},
		"Append steps": {
			&conversationv1.AppendRequest{ConversationId: c1, RequestId: id, FlowSteps: []*conversationv1.FlowStep{{Flow: "f", Step: "s", Data: data}}},
			&conversationv1.AppendRequest{ConversationId: c1, RequestId: id, FlowSteps: []*conversationv1.FlowStep{{Flow: "f", Step: "t", Data: data}}},
		},
		"EditMessages heard": {
			&conversationv1.EditMessagesRequest{ConversationId: c1, RequestId: id, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 2, Spoken: &conversationv1.Spoken{PlayedMs: new(int32(0))}}}}},
			&conversationv1.EditMessagesRequest{ConversationId: c1, RequestId: id, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 2, Spoken: &conversationv1.Spoken{PlayedMs: new(int32(1))}}}}},
		},
		"ForkConversation": {
			&conversationv1.ForkConversationRequest{ConversationId: c1, NewConversationId: "c2", RequestId: id},
			&conversationv1.ForkConversationRequest{ConversationId: c1, NewConversationId: "c2", RequestId: id, At: &conversationv1.ForkConversationRequest_ThroughSeq{ThroughSeq: 1}},
		},
		"ProposeCompaction": {
			&conversationv1.ProposeCompactionRequest{ConversationId: c1, KeepTokens: 1, FencingToken: 1, RequestId: id},
			&conversationv1.ProposeCompactionRequest{ConversationId: c1, KeepTokens: 2, FencingToken: 1, RequestId: id},
		},
		"CommitCompaction": {
			&conversationv1.CommitCompactionRequest{ConversationId: c1, FencingToken: 1, Text: "s", RequestId: id},
			&conversationv1.CommitCompactionRequest{ConversationId: c1, FencingToken: 1, Text: "t", RequestId: id},
		},
	}
}

// rehearse gives c1 what the requests of compaction are about: an answer of the assistant, and a leased range.
func rehearse(t *testing.T, c client) {
	t.Helper()
	assistant := &newMessage{Role: conversationv1.Role_ROLE_ASSISTANT, Text: "Sure, I will."}
	must(c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: []*newMessage{assistant, said("Good")[0]}}))(t)
	must(c.ProposeCompaction(t.Context(), &conversationv1.ProposeCompactionRequest{ConversationId: c1, KeepTokens: 1}))(t)
}

func TestEveryChangingRPCIsRetried(t *testing.T) {
	t.Parallel()
	methods := conversationv1.File_holdfast_conversation_v1_service_proto.Services().ByName("ConversationService").Methods()
	known := retried(t)
	for i := range methods.Len() {
		m := methods.Get(i)
		_, ok := known[string(m.Name())]
		if changes := m.Input().Fields().ByName("request_id") != nil; changes != ok {
			t.Errorf("%s has a request_id: %t, is tested: %t", m.Name(), changes, ok)
		}
	}
}

func TestARetryGetsTheSameBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	second := serve(t, b.Bundle)
	encodings := map[string]func(proto.Message) ([]byte, error){
		"json":  func(m proto.Message) ([]byte, error) { return jsonOf(t, m), nil },
		"proto": proto.Marshal,
	}
	for name, requests := range retried(t) {
		for encoding, encode := range encodings {
			t.Run(name+" "+encoding, func(t *testing.T) {
				t.Parallel()
				b := b.tenant(t)
				c := b.client(t, ada)
				create(t, c)
				say(t, c, "Hello")
				rehearse(t, c)
				headers := []string{"Content-Type: application/" + encoding, "Authorization: Bearer " + b.token(t, ada)}
				post := func(b *bundle, m proto.Message) answered {
					return b.send(t, http.MethodPost, strings.Fields(name)[0], must(encode(m))(t), headers...)
				}
				first := post(b, requests[0])
				if first.status != 200 {
					t.Fatalf("%d %s", first.status, first.body)
				}
				// Also after other changes, and from a server that has not seen it.
				for round := range 3 {
					if name != "DeleteConversation" {
						say(t, c, fmt.Sprint("between ", round))
					}
					for _, server := range []*bundle{b, {Bundle: b.Bundle, url: second.url}} {
						if again := post(server, requests[0]); again.status != 200 || again.body != first.body {
							t.Fatalf("a retry gets\n%d %q, the first reply was\n%q", again.status, again.body, first.body)
						}
					}
				}
				before := state1(t, c)
				other := post(b, requests[1])
				if other.status != 409 || !strings.Contains(other.body, "already_exists") || !strings.Contains(other.body, "REQUEST_ID_REUSED") {
					t.Errorf("another body gets %d %s", other.status, other.body)
				}
				if after := state1(t, c); after != before {
					t.Errorf("the retries changed something: %s, then %s", before, after)
				}
			})
		}
	}
}

// state1 is c1 as a caller sees it, whether it is there or not.
func state1(t *testing.T, c client) string {
	t.Helper()
	res, err := c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: c1, MessageLimit: 200})
	if err != nil {
		return err.Error()
	}
	return string(jsonOf(t, res))
}

func TestRetriesThatComeTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clients := []client{b.client(t, ada), serve(t, b.Bundle).client(t, ada)}
	create(t, clients[0])
	const n = 16
	replies := make([]*conversationv1.AppendResponse, n)
	for _, err := range together(n, func(i int) (err error) {
		replies[i], err = clients[i%2].Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: said("x", "y"), RequestId: "r-1"})
		return err
	}) {
		if err != nil {
			t.Error(err)
		}
	}
	for _, r := range replies[1:] {
		same(t, "a reply", r, replies[0])
	}
	if got := get(t, clients[0]); got.GetConversation().GetMessageCount() != 2 || got.GetConversation().GetVersion() != 2 {
		t.Errorf("%d messages at version %d", got.GetConversation().GetMessageCount(), got.GetConversation().GetVersion())
	}
}

func TestCreateWithoutIDIsRetried(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	req := &conversationv1.CreateConversationRequest{RequestId: "r-1", Conversation: &conversationv1.Conversation{Title: "t"}}
	first := must(c.CreateConversation(t.Context(), req))(t)
	for _, c := range []client{c, serve(t, b.Bundle).client(t, ada)} {
		same(t, "the retry", must(c.CreateConversation(t.Context(), req))(t), first)
	}
	_, err := c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{RequestId: "r-1", Conversation: &conversationv1.Conversation{Title: "another"}})
	refusal{code: connect.CodeAlreadyExists, reason: "REQUEST_ID_REUSED"}.check(t, err)
	// Another user's request id is another one, and so is another tenant's.
	shared := proto.CloneOf(req)
	shared.Shared = true
	for c, req := range map[client]*conversationv1.CreateConversationRequest{b.client(t, "eve"): req, b.client(t, nobody): shared, b.tenant(t).client(t, ada): req} {
		other := must(c.CreateConversation(t.Context(), req))(t)
		if other.GetConversation().GetConversationId() == first.GetConversation().GetConversationId() {
			t.Errorf("shared with %v", other)
		}
	}
	if got := must(c.ListConversations(t.Context(), &conversationv1.ListConversationsRequest{}))(t); len(got.GetConversations()) != 2 {
		t.Errorf("ada sees %v, not just hers and the service's", got)
	}
}

// A caller that ran out of time does not know whether its change happened. With a request id it can ask.
func TestARetryAfterTheDeadline(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	unlock := b.lockRow(t)
	req := &conversationv1.AppendRequest{ConversationId: c1, Messages: said("x"), RequestId: "r-1"}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := c.Append(ctx, req)
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Fatalf("got %v", err)
	}
	unlock()
	must(c.Append(t.Context(), req))(t)
	must(c.Append(t.Context(), req))(t)
	if got := get(t, c); got.GetConversation().GetMessageCount() != 1 || got.GetConversation().GetVersion() != 2 {
		t.Errorf("%d messages at version %d", got.GetConversation().GetMessageCount(), got.GetConversation().GetVersion())
	}
}

// lockRow keeps every change of the tenant's conversations waiting inside Postgres.
func (b *bundle) lockRow(t *testing.T) (unlock func()) {
	t.Helper()
	conn := b.sql(t)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tag, err := tx.Exec(t.Context(), "SELECT FROM holdfast.objects WHERE tenant_id = $1 FOR UPDATE", string(b.Tenant))
	if err != nil || tag.RowsAffected() == 0 {
		t.Fatalf("locked %d rows, %v", tag.RowsAffected(), err)
	}
	return func() {
		t.Helper()
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
