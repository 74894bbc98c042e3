package voice

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// handOver is a turn that begins on one device and goes on on another.
type handOver struct {
	// What the first device gets of the turn, and how much of that it sends before the second takes over. The rest it sends too late.
	frames []string
	sent   int
	// What is in frames[:sent], and after it.
	asked, said       string
	lateUser, lateOut string
	called, answered  bool
	resultIsLate      bool
}

func drawHandOver(t *rapid.T, question string, speech bool) (h handOver) {
	type piece struct{ frame, user, out, tool string }
	var all []piece
	add := func(p piece) { all = append(all, p) }
	pieces := func(text string, as func(string) string, user bool) {
		letters := []rune(text)
		for len(letters) > 0 {
			n := rapid.IntRange(1, len(letters)).Draw(t, "piece")
			p := piece{frame: as(string(letters[:n]))}
			if user {
				p.user = string(letters[:n])
			} else {
				p.out = string(letters[:n])
			}
			add(p)
			letters = letters[n:]
		}
	}
	if speech {
		add(piece{frame: activityStart})
	}
	pieces(question, in, true)
	if speech {
		add(piece{frame: activityEnd})
	}
	add(piece{frame: audio})
	pieces(sentences().Draw(t, "answer"), out, false)
	if rapid.Bool().Draw(t, "calls") {
		add(piece{frame: call("a"), tool: "call"})
		add(piece{frame: answer("a"), tool: "answer"})
	}
	add(piece{frame: generated})
	add(piece{frame: turnComplete})
	h.sent = rapid.IntRange(1, len(all)-1).Draw(t, "taken over after")
	for i, p := range all {
		h.frames = append(h.frames, p.frame)
		if i < h.sent {
			h.asked, h.said = h.asked+p.user, h.said+p.out
			h.called, h.answered = h.called || p.tool == "call", h.answered || p.tool == "answer"
		}
	}
	all = all[:rapid.IntRange(h.sent, len(all)).Draw(t, "the first device sends")]
	h.frames = h.frames[:len(all)]
	for _, p := range all[h.sent:] {
		h.lateUser, h.lateOut = h.lateUser+p.user, h.lateOut+p.out
		h.resultIsLate = h.resultIsLate || p.tool == "answer"
	}
	return h
}

// Wherever in a turn another device takes over, the transcript has what the first one sent until then and what the second one sends
// from then on, once and in order; what the first one sends too late is a fragment, also where it sends it again, and a tool's result
// among it is told.
func TestAHandOverLosesNoWord(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		question, speech := sentences().Draw(t, "question"), rapid.Bool().Draw(t, "signs of speech")
		h := drawHandOver(t, question, speech)
		s := opens("a")
		s.sendTo(t, h.frames[:h.sent]...)
		s.do(testNow, func(f *Reducer) { f.take("a") })

		var fragments storev1.Fragment
		abandon := func() {
			for range 2 {
				from := rapid.IntRange(0, h.sent).Draw(t, "it sends from")
				var batch []*livev1.LiveFrame
				for i := from; i < len(h.frames); i++ {
					batch = append(batch, textFrame(int64(i+1), h.frames[i]))
				}
				s.do(testNow, func(f *Reducer) {
					got := f.Abandon(ReadBatch(1, batch, sealed))
					fragments.UserText += got.GetUserText()
					fragments.AssistantText += got.GetAssistantText()
				})
			}
		}
		atOnce := rapid.Bool().Draw(t, "the first device sends at once")
		if atOnce {
			abandon()
		}
		// The user goes on where he is cut off, or the provider transcribes all of it again.
		rest := question[len(h.asked):]
		if said, more := Canonical(h.asked), Canonical(rest); said != "" && rest != "" {
			alike := more != "" && (strings.HasPrefix(more, said) || strings.HasPrefix(said, more)) // so it might be told again
			if alike || rapid.Bool().Draw(t, "it is told again") {
				rest = question
			}
		}
		if speech && rest != "" && rapid.Bool().Draw(t, "speech starts again") {
			s.sendTo(t, activityStart)
		}
		s.sendTo(t, inPieces(t, rest, in)...)
		reply := sentences().Draw(t, "reply")
		s.sendTo(t, audio)
		s.sendTo(t, inPieces(t, reply, out)...)
		s.sendTo(t, generated, turnComplete)
		if !atOnce {
			abandon()
		}
		s.sendTo(t, shorthands("in:And then?", "AU", "out:Done.", "GC", "TC")...)

		want := []string{"user: " + question}
		if strings.TrimSpace(h.said) != "" {
			want = append(want, "assistant: "+h.said)
		}
		var told []string
		switch {
		case h.called && (h.answered || h.resultIsLate):
			want = append(want, "call a completed")
			if !h.answered {
				told = []string{`tool: Result of run, which was called before the connection was lost (a): {"output":"ok"}`}
			}
		case h.called:
			want = append(want, "call a orphaned")
		}
		if atOnce {
			want = append(want, told...)
		}
		want = append(want, "assistant: "+reply)
		if !atOnce {
			want = append(want, told...)
		}
		want = append(want, "user: And then?", "assistant: Done.")
		if diff := cmp.Diff(want, s.talk()); diff != "" {
			t.Fatalf("(-want +got):\n%s\n%s", diff, strings.Join(slices.Insert(slices.Clone(h.frames), h.sent, "TAKEN OVER"), "\n"))
		}
		if fragments.GetUserText() != h.lateUser || fragments.GetAssistantText() != h.lateOut {
			t.Fatalf("the fragments are %q and %q, want %q and %q", fragments.GetUserText(), fragments.GetAssistantText(), h.lateUser, h.lateOut)
		}
	})
}
