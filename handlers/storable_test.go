package handlers

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/handlers/problem"
)

func structOf(tb testing.TB, m map[string]any) *structpb.Struct {
	tb.Helper()
	s, err := structpb.NewStruct(m)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// nest makes a Struct of that many levels, of objects and arrays in turn.
func nest(tb testing.TB, levels int) *structpb.Struct {
	tb.Helper()
	var v any = "leaf"
	for i := range levels - 1 {
		if i%2 == 0 {
			v = []any{v}
		} else {
			v = map[string]any{"k": v}
		}
	}
	return structOf(tb, map[string]any{"k": v})
}

func TestStorable(t *testing.T) {
	t.Parallel()
	const nul = "a\x00b"
	intent := func(slots *structpb.Struct) proto.Message {
		return &conversationv1.AppendRequest{Intents: []*conversationv1.Intent{{Slots: slots}}}
	}
	frame := func(f *livev1.LiveFrame) proto.Message {
		return &livev1.IngestLiveRequest{Frames: []*livev1.LiveFrame{{}, f}}
	}
	tests := []struct {
		name    string
		message proto.Message
		field   string // empty: storable
	}{
		{"empty", &conversationv1.AppendRequest{}, ""},
		{"text", &conversationv1.CreateConversationRequest{Conversation: &conversationv1.Conversation{Title: "ok\t\u0001 é 😀"}}, ""},
		{"U+0000 in a field", &conversationv1.CreateConversationRequest{Conversation: &conversationv1.Conversation{Title: nul}}, "conversation.title"},
		{"in a nested field", &conversationv1.UpdateConversationRequest{Conversation: &conversationv1.Conversation{Title: nul}}, "conversation.title"},
		{"in a list", &conversationv1.AppendRequest{Messages: []*conversationv1.Message{{Text: "a"}, {Text: nul}}}, "messages[1].text"},
		{"in a repeated string", &conversationv1.EditMessagesRequest{Updates: []*conversationv1.MessageUpdate{{UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"text", nul}}}}}, "updates[0].update_mask.paths[1]"},
		{"in a map's value", &conversationv1.CreateConversationRequest{Conversation: &conversationv1.Conversation{Labels: map[string]string{"team": nul}}}, `conversation.labels["team"]`},
		{"in a map's key", &conversationv1.CreateConversationRequest{Conversation: &conversationv1.Conversation{Labels: map[string]string{nul: "v"}}}, `conversation.labels["a\x00b"]`},
		{"in a oneof", frame(&livev1.LiveFrame{Frame: &livev1.LiveFrame_Text{Text: nul}}), "frames[1].text"},
		{"in bytes it is base64", frame(&livev1.LiveFrame{Frame: &livev1.LiveFrame_Binary{Binary: []byte(nul)}}), ""},
		{
			"in a oneof's Struct",
			frame(&livev1.LiveFrame{Frame: &livev1.LiveFrame_Object{Object: structOf(t, map[string]any{"k": nul})}}),
			`frames[1].object["k"]`,
		},
		{"Struct", intent(structOf(t, map[string]any{"a": 1.5, "b": nil, "c": []any{true, "x"}})), ""},
		{"in a Struct's value", intent(structOf(t, map[string]any{"a": []any{1, map[string]any{"b": nul}}})), `intents[0].slots["a"][1]["b"]`},
		{"in a Struct's key", intent(structOf(t, map[string]any{nul: 1})), `intents[0].slots["a\x00b"]`},
		{"NaN", intent(structOf(t, map[string]any{"a": math.NaN()})), `intents[0].slots["a"]`},
		{"infinity", intent(structOf(t, map[string]any{"a": []any{math.Inf(-1)}})), `intents[0].slots["a"][0]`},
		{"a value without a kind", intent(&structpb.Struct{Fields: map[string]*structpb.Value{"a": {}}}), `intents[0].slots["a"]`},
		{"deep enough", intent(nest(t, maxNesting)), ""},
		{"too deep", intent(nest(t, maxNesting+1)), `intents[0].slots["k"]`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := checkStorable(tt.message)
			var p *problem.Error
			switch {
			case tt.field == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.field != "" && (!errors.As(err, &p) || len(p.Detail.(*errorv1.Violations).GetFields()) != 1):
				t.Errorf("error is %v, want one of %s", err, tt.field)
			case tt.field != "" && !strings.HasPrefix(p.Detail.(*errorv1.Violations).GetFields()[0].GetField(), tt.field):
				t.Errorf("field is %v, want %s", p.Detail, tt.field)
			}
		})
	}
}

func BenchmarkStorable(b *testing.B) {
	append20 := &conversationv1.AppendRequest{ConversationId: "c1", RequestId: "r1"}
	for i := range 20 {
		append20.Messages = append(append20.Messages, &conversationv1.Message{
			Role: conversationv1.Role_ROLE_USER, Text: strings.Repeat("word ", 40), ClientMessageId: strconv.Itoa(i),
		})
	}
	for name, m := range map[string]proto.Message{
		"get":      &conversationv1.GetConversationRequest{ConversationId: "c1", MessageLimit: 20},
		"append20": append20,
		"struct":   &conversationv1.AppendRequest{ConversationId: "c1", Intents: []*conversationv1.Intent{{Name: "n", Slots: nest(b, 10)}}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := checkStorable(m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
