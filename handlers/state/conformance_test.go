package state

import (
	"testing"

	"google.golang.org/protobuf/proto"

	storev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/object"
	"holdfast/object/objecttest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	objecttest.Run(t, objecttest.Case[state]{
		Register: func(rt *object.Runtime) Kind {
			c := config()
			c.StateBytes, c.EntryBytes = 0, 0 // as the suite limits them
			return object.Register(rt, c)
		},
		Set:        func(s state, text string) { s.Fields = map[string]string{"text": text} },
		Text:       func(s state) string { return s.GetFields()["text"] },
		Collection: inEntries,
		Entry: func(text string) proto.Message {
			return &storev1.Entry{Value: &storev1.Entry_Text{Text: text}}
		},
		EntryText: func(m proto.Message) string { return m.(*storev1.Entry).GetText() },
		Tag: func(s state, name string) string {
			s.Type = "note"
			if s.Labels == nil {
				s.Labels = map[string]string{}
			}
			s.Labels[name] = "yes"
			return "note/label:" + name + "=yes"
		},
	})
}
