package gemini

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// Secrets never show in what is printed.
func TestHandlesDoNotShow(t *testing.T) {
	t.Parallel()
	var u ResumptionUpdate
	u.NewHandle = "secret-handle"
	for _, text := range []string{fmt.Sprint(u), fmt.Sprintf("%+v %#v %s", u, u, u.NewHandle)} {
		if strings.Contains(text, "secret-handle") {
			t.Errorf("printed: %s", text)
		}
	}
	for m, names := range map[proto.Message][]protoreflect.Name{
		&storev1.LiveHandle{}: {"sealed"},
		&storev1.KeptFrames{}: {"sealed"},
		&livev1.Plan{}:        {"handle"},
		&livev1.LiveFrame{}:   {"text", "binary", "object"},
	} {
		for _, name := range names {
			options, _ := m.ProtoReflect().Descriptor().Fields().ByName(name).Options().(*descriptorpb.FieldOptions)
			if !options.GetDebugRedact() {
				t.Errorf("%T.%s is not redacted", m, name)
			}
		}
	}
}
