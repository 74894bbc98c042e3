package conversation

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// exchange is one turn of a true conversation.
type exchange struct {
	question string
	typed    bool
	// The answer, in the parts before and after a tool's result; empty: the model says nothing.
	answer []string
	cut    bool // the user speaks over the answer
}

// family is how a family of models sends what happens.
type family struct {
	name                             string
	speech, audio, complete, answers bool
}

var families = []family{
	{"with signs of speech", true, true, true, true},
	{"without them", false, true, true, true},
	{"translation: no turn is completed", false, true, false, true},
	{"translation with signs of speech", true, true, false, true},
	{"transcription alone", true, false, false, false},
	{"audio is not ingested", true, false, true, true},
}

func sentences() *rapid.Generator[string] {
	words := rapid.SampledFrom([]string{"open", "the issue", "no", "don't", "ENG-142", "Grüße", "привет", "ลองดู", "مرحبا", "7", "😀"})
	solid := rapid.SampledFrom([]string{"打开", "问题", "はい", "そうです", "好"})
	return rapid.Custom(func(t *rapid.T) string {
		end := rapid.SampledFrom([]string{".", "?", "!"}).Draw(t, "end")
		if rapid.Bool().Draw(t, "solid") {
			return strings.Join(rapid.SliceOfN(solid, 1, 4).Draw(t, "words"), "") + map[string]string{".": "。", "?": "？", "!": "！"}[end]
		}
		return strings.Join(rapid.SliceOfN(words, 1, 5).Draw(t, "words"), " ") + end
	})
}

// inPieces cuts a text anywhere.
func inPieces(t *rapid.T, text string, as func(string) string) (frames []string) {
	letters := []rune(text)
	for len(letters) > 0 {
		n := rapid.IntRange(1, len(letters)).Draw(t, "piece")
		frames, letters = append(frames, as(string(letters[:n]))), letters[n:]
	}
	return frames
}

// frames are what a family of models sends for a turn, disturbed as the API allows.
func (f *family) frames(t *rapid.T, e *exchange, id string, next bool) (frames []string) {
	add := func(list ...string) { frames = append(frames, list...) }
	question := inPieces(t, e.question, in)
	var late []string
	switch {
	case e.typed:
		question = []string{typed(e.question)}
	case len(e.answer) > 0 && (f.speech || f.audio) && (f.complete || f.speech) && rapid.Bool().Draw(t, "the question is late"):
		n := 0
		if !f.speech { // a part of it would look like all of it
			n = rapid.IntRange(0, len(question)-1).Draw(t, "in time")
		}
		question, late = question[:n], question[n:]
	}
	if f.speech && !e.typed {
		add(shorthand("VS"))
	}
	add(question...)
	if f.speech && !e.typed {
		add(shorthand("VE"))
	}
	if !f.answers || len(e.answer) == 0 {
		if !f.answers && !e.typed {
			add(generated)
		} else {
			add(turnComplete)
		}
		return frames
	}
	var said []string
	for i, part := range e.answer {
		if i > 0 {
			said = append(said, call(id), answer(id))
		}
		if f.audio {
			said = append(said, audio)
		}
		said = append(said, inPieces(t, part, out)...)
	}
	// Words of the user come amid those of the model, after its first output.
	if len(late) > 0 {
		at := rapid.IntRange(1, len(said)).Draw(t, "late")
		if i := firstCall(said); i >= 0 {
			at = min(at, i) // what is answered with a result has been heard
		}
		said = append(said[:at:at], append(late, said[at:]...)...)
	}
	add(said...)
	if e.cut && len(late) == 0 {
		add(interrupted)
		if f.complete || !f.speech {
			add(turnComplete)
		}
		return frames
	}
	add(generated)
	if !f.complete {
		return frames
	}
	if lost := next && f.speech && f.audio && rapid.Bool().Draw(t, "turnComplete is lost"); lost {
		return frames
	}
	add(turnComplete)
	if rapid.Bool().Draw(t, "it comes twice") {
		add(turnComplete)
	}
	// The last words come after the end of the turn.
	if last := frames[len(frames)-3]; f.audio && len(late) == 0 && rapid.Bool().Draw(t, "the answer is late") && strings.Contains(last, "outputTranscription") {
		frames = append(append(frames[:len(frames)-3:len(frames)-3], frames[len(frames)-2:]...), last)
	}
	return frames
}

func firstCall(frames []string) int {
	for i, f := range frames {
		if strings.HasPrefix(f, `{"toolCall"`) {
			return i
		}
	}
	return -1
}

// Whatever a family of models sends, delays, cuts and repeats, the transcript is what was said, in order.
func TestTheTranscriptIsTheTruth(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.SampledFrom(families).Draw(t, "family")
		n := rapid.IntRange(1, 5).Draw(t, "turns")
		var want, frames []string
		for i := range n {
			e := exchange{question: sentences().Draw(t, "question"), typed: f.answers && f.complete && rapid.IntRange(0, 4).Draw(t, "typed") == 0}
			want = append(want, "user: "+e.question)
			if f.answers && (!f.complete || rapid.IntRange(0, 9).Draw(t, "answers") > 0) {
				e.answer = []string{sentences().Draw(t, "answer")}
				if f.complete && rapid.IntRange(0, 3).Draw(t, "calls") == 0 {
					e.answer = append(e.answer, sentences().Draw(t, "after the result"))
				}
				e.cut = f.complete && len(e.answer) == 1 && rapid.IntRange(0, 4).Draw(t, "cut") == 0
			}
			id := string(rune('a' + i))
			for j, part := range e.answer {
				if j > 0 {
					want = append(want, "call "+id+" completed")
				}
				want = append(want, "assistant: "+part)
			}
			frames = append(frames, f.frames(t, &e, id, i+1 < n && !e.typed)...)
			if f.complete && i+1 < n && rapid.IntRange(0, 5).Draw(t, "drop") == 0 {
				frames = append(frames, turnComplete, "reconnect")
			}
		}
		s := newLiveStore()
		s.sendTo(t, frames...)
		s.do(testNow, func(f *folder) { f.closeLive(1000) })
		got := s.talk()
		for i := range got {
			got[i] = strings.Replace(got[i], "*:", ":", 1)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s: (-want +got):\n%s\n%s", f.name, diff, strings.Join(frames, "\n"))
		}
	})
}
