package replay

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	livev1 "holdfast/gen/holdfast/live/v1"
)

// Each frame of the example is explained, none of its values but what was said is shown, and the transcript is that of a server.
func TestExplainTheExample(t *testing.T) {
	t.Parallel()
	f, err := os.Open("../../../../examples/gemini-live-session.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	frames, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := Explain(&out, frames); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"connection 1, frame ", ": serverContent.inputTranscription\n", "user-words\n", "call 1: completed \"create_agent_run\"", "\nThe rules:\n", "\nThe transcript:\n    user: Can you look at issue",
		"    call fc-001 completed\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "newHandle\":") {
		t.Error("it shows a handle")
	}
}

func TestSilenceIsExplained(t *testing.T) {
	t.Parallel()
	said := func(at time.Duration, text string) Frame {
		return Frame{At: at, Connection: 1, JSON: `{"serverContent":{"inputTranscription":{"text":"` + text + `"}}}`}
	}
	var out strings.Builder
	if err := Explain(&out, []Frame{said(0, "One."), said(time.Minute, "Two.")}); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "    user: One.\n    user*: Two.\n") || !strings.Contains(got, "60.000 s: before connection 1, frame 2\n    message 1 user: complete") {
		t.Errorf("got\n%s", got)
	}
}

func TestKeptFramesAreARecording(t *testing.T) {
	t.Parallel()
	text := func(index int32, s string) *livev1.LiveFrame {
		return &livev1.LiveFrame{ClientIndex: index, Frame: &livev1.LiveFrame_Text{Text: s}}
	}
	batch := func(second int64, connection int32, frames ...*livev1.LiveFrame) *livev1.LiveFrameBatch {
		return &livev1.LiveFrameBatch{FromConnection: connection, ReceiveTime: &timestamppb.Timestamp{Seconds: second}, Frames: frames}
	}
	got, err := Kept([]*livev1.LiveFrameBatch{
		batch(10, 1, text(1, "a"), text(2, "b")), batch(12, 1, text(2, "b"), &livev1.LiveFrame{ClientIndex: 5, Frame: &livev1.LiveFrame_Binary{Binary: []byte("c")}}),
		batch(13, 2, &livev1.LiveFrame{ClientIndex: 1, Frame: &livev1.LiveFrame_Object{Object: &structpb.Struct{}}}),
	})
	want := []Frame{{0, 1, "a"}, {0, 1, "b"}, {2 * time.Second, 1, "c"}, {3 * time.Second, 2, "{}"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := Kept(nil); err == nil || !strings.Contains(err.Error(), "keepFramesFor") {
		t.Errorf("nothing kept: %v", err)
	}
}
