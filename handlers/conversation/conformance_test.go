package conversation

import (
	"testing"

	"google.golang.org/protobuf/proto"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/object/objecttest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	objecttest.Run(t, objecttest.Case[state]{
		Register:   Register,
		Set:        func(s state, text string) { s.Title = text },
		Text:       state.GetTitle,
		Collection: inMessages,
		Entry:      func(text string) proto.Message { return &storev1.Message{Text: text} },
		EntryText:  func(m proto.Message) string { return m.(*storev1.Message).GetText() },
		Tag: func(s state, name string) string {
			if s.Labels == nil {
				s.Labels = map[string]string{}
			}
			s.Labels[name] = "yes"
			return "label:" + name + "=yes"
		},
	})
}
