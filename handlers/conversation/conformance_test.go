package conversation

import (
	"testing"

	"google.golang.org/protobuf/proto"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/object/objecttest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	objecttest.Run(t, objecttest.Case[state]{
		Register:   Register,
		Set:        func(s state, text string) { s.Title = text },
		Text:       state.GetTitle,
		Collection: inMessages,
		Entry:      func(text string) proto.Message { return &conversationv1.Message{Text: text} },
		EntryText:  func(m proto.Message) string { return m.(*conversationv1.Message).GetText() },
		Tag: func(s state, name string) string {
			if s.Labels == nil {
				s.Labels = map[string]string{}
			}
			s.Labels[name] = "yes"
			return "label:" + name + "=yes"
		},
	})
}
