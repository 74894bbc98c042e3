package voice

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	livev1 "holdfast/gen/holdfast/live/v1"
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

// repeatsItself reports whether a text begins with the same letters twice. Amid its answer that may be taken for transcribed twice, as
// retelling.go says.
func repeatsItself(text string) bool {
	letters := []rune(strings.ReplaceAll(Canonical(text), " ", ""))
	for n := 1; 2*n <= len(letters); n++ {
		if slices.Equal(letters[:n], letters[n:2*n]) {
			return true
		}
	}
	return false
}

// frames are what a family of models sends for a turn, disturbed as the API allows.
func (f *family) frames(t *rapid.T, e *exchange, id string, next bool) (frames []string) {
	add := func(list ...string) { frames = append(frames, list...) }
	question := inPieces(t, e.question, in)
	var late []string
	switch {
	case e.typed:
		question = []string{typed(e.question)}
	case len(e.answer) > 0 && (f.speech || f.audio) && (f.complete || f.speech) && !repeatsItself(e.question) && rapid.Bool().Draw(t, "the question is late"):
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
	// The last words come after the generation is complete.
	if n := len(frames); strings.Contains(frames[n-2], "outputTranscription") && rapid.Bool().Draw(t, "the end of the answer is late") {
		frames[n-2], frames[n-1] = frames[n-1], frames[n-2]
	}
	if lost := next && f.speech && f.audio && rapid.Bool().Draw(t, "turnComplete is lost"); lost {
		return frames
	}
	add(turnComplete)
	if rapid.Bool().Draw(t, "it comes twice") {
		add(turnComplete)
	}
	// The last words come after the end of the turn.
	if n := len(frames); n < 3 {
		return frames
	}
	if last := frames[len(frames)-3]; f.audio && len(late) == 0 && rapid.Bool().Draw(t, "the answer is late") && strings.Contains(last, "outputTranscription") {
		frames = append(append(frames[:len(frames)-3:len(frames)-3], frames[len(frames)-2:]...), last)
	}
	return frames
}

// noise are frames that say nothing of the transcript, and may come at any time.
var noise = []string{
	`{"usageMetadata":{"totalTokenCount":5}}`, `{"sessionResumptionUpdate":{"resumable":false}}`, `{"goAway":{"timeLeft":"50s"}}`,
	`{"realtimeInput":{"audio":{"data":"AAAA"}}}`, `{"serverContent":{}}`, `{"brandNew":{"text":"words"}}`, `not even JSON`,
}

// ranked are the fields of serverContent in the order in which they are folded.
var ranked = []string{"interrupted", "inputTranscription", "modelTurn", "outputTranscription", "generationComplete", "turnComplete"}

const serverContentOf = `{"serverContent":{`

func rankOf(frame string) int {
	return slices.IndexFunc(ranked, func(field string) bool { return strings.HasPrefix(frame, serverContentOf+`"`+field) })
}

var keys = regexp.MustCompile(`"[a-z]+[A-Z]\w*":`)

// snakeCase is a frame in the other names of its fields.
func snakeCase(frame string) string {
	return keys.ReplaceAllStringFunc(frame, func(key string) string {
		return regexp.MustCompile(`[A-Z]`).ReplaceAllStringFunc(key, func(c string) string { return "_" + strings.ToLower(c) })
	})
}

// deliver sends frames as providers and clients do: with others between them, several fields or several objects in one, in either
// dialect, in batches that come twice or overlap, with numbers left out.
func (s *liveStore) deliver(t *rapid.T, frames []string) {
	rarely := func(label string) bool { return rapid.IntRange(0, 7).Draw(t, label) == 0 }
	epoch, index := int64(1), int64(0)
	var batch, last []*livev1.LiveFrame
	send := func() {
		if len(batch) == 0 {
			return
		}
		if rarely("the batch overlaps") {
			batch = append(slices.Clone(last), batch...)
		}
		for range 1 + rapid.IntRange(0, 1).Draw(t, "again") {
			if _, err := s.ingest(epoch, batch...); err != nil {
				t.Fatal(err)
			}
		}
		last, batch = batch, nil
	}
	for i := 0; i < len(frames); i++ {
		if frames[i] == "reconnect" {
			send()
			epoch, index, last = epoch+1, 0, nil
			frames[i] = `{"setup":{}}`
		}
		frame := frames[i]
		if i+1 < len(frames) && rankOf(frame) >= 0 && rankOf(frames[i+1]) > rankOf(frame) && rarely("two fields") {
			i++
			frame = strings.TrimSuffix(frame, "}}") + "," + strings.TrimPrefix(frames[i], serverContentOf)
		}
		if rarely("two objects") && i+1 < len(frames) && frames[i+1] != "reconnect" {
			i++
			frame += " " + frames[i]
		}
		if rarely("noise") {
			index++
			batch = append(batch, textFrame(index, rapid.SampledFrom(noise).Draw(t, "other")))
		}
		if rarely("snake case") {
			frame = snakeCase(frame)
		}
		index++
		if rarely("a number is left out") {
			index++
		}
		f := textFrame(index, frame)
		if rarely("binary") {
			f.Frame = &livev1.LiveFrame_Binary{Binary: []byte(frame)}
		}
		if batch = append(batch, f); rapid.IntRange(0, 3).Draw(t, "the batch ends") == 0 {
			send()
		}
	}
	send()
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
		s.deliver(t, frames)
		s.do(testNow, func(f *Reducer) { f.CloseLive(1000) })
		got := s.talk()
		for i := range got {
			got[i] = strings.Replace(got[i], "*:", ":", 1)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s: (-want +got):\n%s\n%s", f.name, diff, strings.Join(frames, "\n"))
		}
	})
}
