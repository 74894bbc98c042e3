package conversation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/identity"
	"holdfast/object"
)

// Who proposes a compaction of 20 MiB of messages and tool calls holds a page of them at a time, and chooses what one who held
// all of them would choose.
func TestACompactionIsProposedWithoutHoldingTheConversation(t *testing.T) {
	t.Parallel()
	const messages, each, most = 320, 60 << 10, 128 << 10
	d := dbtest.New(t)
	rt := object.NewRuntime(d.DB, object.Config{})
	t.Cleanup(func() {
		if err := rt.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	kind := Register(rt)
	m := NewManager(kind, Options{Box: testBox, Now: time.Now})
	ctx := identity.With(t.Context(), identity.Identity{Tenant: d.Tenant, User: "ada"})
	for from := int64(1); from <= messages; from += 20 {
		_, err := kind.Update(ctx, "c1", func(tx *object.Tx[state]) error {
			for seq := from; seq < from+20; seq++ {
				msg := &storev1.Message{Seq: seq, Role: storev1.Role_ROLE_USER, Text: strings.Repeat("word ", each/5), TokenCount: 100 + seq}
				if seq%2 == 0 {
					msg.Role = storev1.Role_ROLE_ASSISTANT
				}
				if seq%7 == 0 {
					heard := "some words"
					msg.HeardText = &heard
				}
				if seq%10 == 0 {
					id := fmt.Sprint(seq)
					msg.Parts = []*storev1.Part{{Part: &storev1.Part_ToolCall{ToolCall: &storev1.ToolCallPart{CallId: id, Name: "f"}}}}
				}
				if seq%10 == 3 {
					id := fmt.Sprint(seq - 3)
					msg.Parts = []*storev1.Part{{Part: &storev1.Part_ToolResult{ToolResult: &storev1.ToolResultPart{CallId: id, Name: "f"}}}}
				}
				tx.Put(inMessages, object.SeqKey(seq), msg)
				if seq%20 == 0 {
					call := &storev1.ToolCall{Seq: seq / 20, AfterSeq: seq, Name: "f", Status: voice.CallCompleted, Args: &structpb.Struct{
						Fields: map[string]*structpb.Value{"text": structpb.NewStringValue(strings.Repeat("word ", each/5))},
					}}
					if seq == 280 {
						call.Status = voice.CallPending
					}
					tx.Put(inToolCalls, object.SeqKey(call.GetSeq()), call)
				}
			}
			tx.State().LastSeq, tx.State().ToolCallCount = from+19, (from+19)/20
			return nil
		}, object.Upsert())
		if err != nil {
			t.Fatal(err)
		}
	}

	read := func(outline bool) (items []windowItem) {
		if _, err := m.read(ctx, "c1", func(r *reader) (err error) {
			r.outline = outline
			items, _, err = r.items(ctx, 0, func([]windowItem, bool) bool { return false })
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return items
	}
	held := func(items []windowItem) (bytes int) {
		for _, i := range items {
			bytes += proto.Size(i.message) + proto.Size(i.call)
		}
		return bytes
	}
	whole, outlines := read(false), read(true)
	if all, kept := held(whole), held(outlines); all < 19<<20 || kept > most {
		t.Errorf("of %d bytes %d are held, want at most %d", all, kept, most)
	}
	tokens := func(items []windowItem) (out []int64) {
		for _, i := range items {
			out = append(out, i.seq(), i.tokens())
		}
		return out
	}
	if !slices.Equal(tokens(whole), tokens(outlines)) || !slices.Equal(cuts(whole, true), cuts(outlines, true)) {
		t.Error("the outlines are not those of the items")
	}
	for _, keep := range []int64{0, 1, 500, 5000, 50_000, 1 << 40} {
		from, ok := compactable(whole, true, keep)
		if f, o := compactable(outlines, true, keep); f != from || o != ok {
			t.Errorf("keeping %d tokens: %d, %v by the outlines, %d, %v by the items", keep, f, o, from, ok)
		}
	}
	res, err := m.ProposeCompaction(ctx, &conversationv1.ProposeCompactionRequest{ConversationId: "c1", KeepTokens: 5000})
	if err != nil || res.GetFromSeq() != 1 || res.GetToSeq() < 200 || res.GetToSeq() >= 281 {
		t.Errorf("proposed is %v, %v", res, err)
	}
}
