package voice

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// script is how a language is written: what a listener hears as one, and how long a letter of it takes beside one of an alphabet.
type script struct {
	units  []string
	length int
}

var scripts = map[string]script{
	"Latin":    {[]string{"open", " the", " issue", " don't", " 7", " Grüße,"}, 1},
	"Cyrillic": {[]string{"открой", " задачу", " и", " подожди."}, 1},
	"Arabic":   {[]string{"افتح", " المهمة", " الآن", " من"}, 1},
	"Hindi":    {[]string{"मुद्दा", " खोलो", " अभी"}, 1},
	"Thai":     {[]string{"ล", "อ", "ง", "ดู", "รั"}, 1},
	"Burmese":  {[]string{"ဖွ", "င့်", "ပါ"}, 1},
	"Chinese":  {[]string{"打", "开", "问", "题"}, 3},
	"Japanese": {[]string{"は", "い", "ソ", "ウ"}, 2},
	"Korean":   {[]string{"이슈를", " 지금", " 열어"}, 2},
	"emoji":    {[]string{"👍🏽", "👩‍👩‍👧", "😀", "❤️"}, 1},
}

// spokenText is a text and the truth of it: what a listener has heard when a share of it was played.
type spokenText struct {
	script
	parts []string
}

func (s spokenText) text() string { return strings.Join(s.parts, "") }

func (s spokenText) duration(text string) (n int) {
	for _, r := range text {
		if n++; r != ' ' && r != '.' {
			n += s.length - 1
		}
	}
	return n
}

// heard is what of it was heard in ms of audio.
func (s spokenText) heard(ms, audio int) string {
	left, heard := s.duration(s.text())*ms/audio, ""
	for _, part := range s.parts {
		if left -= s.duration(part); left < 0 {
			break
		}
		heard += part
	}
	return heard
}

func spokenTexts() *rapid.Generator[spokenText] {
	names := make([]string, 0, len(scripts))
	for name := range scripts {
		names = append(names, name)
	}
	slices.Sort(names)
	return rapid.Custom(func(t *rapid.T) spokenText {
		s := scripts[rapid.SampledFrom(names).Draw(t, "script")]
		parts := []string{s.units[0]}
		return spokenText{s, append(parts, rapid.SliceOfN(rapid.SampledFrom(s.units[1:]), 0, 6).Draw(t, "parts")...)}
	})
}

// report sends frames as one batch, with what was played.
func (s *liveStore) report(t interface{ Fatal(args ...any) }, playedMs *int32, frames ...string) {
	index := s.state.GetLive().GetLastClientIndex()
	batch := make([]*livev1.LiveFrame, len(frames))
	for i, frame := range frames {
		batch[i] = textFrame(index+int64(i)+1, frame)
	}
	s.do(testNow, func(f *Reducer) {
		if _, err := f.Ingest(ReadBatch(s.state.GetLive().GetEpoch(), batch, sealed), playedMs); err != nil {
			t.Fatal(err)
		}
	})
}

// Whenever the client tells how much was played, and whenever the words come, the heard text is what was played, in every script; the
// answers before and after it are not touched.
func TestHeardTextFollowsPlayedTime(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		said := []spokenText{spokenTexts().Draw(t, "said")}
		audioMs := []int{100 * rapid.IntRange(1, 8).Draw(t, "audio")}
		s := opens("a")
		before := rapid.Bool().Draw(t, "an answer before")
		if before {
			s.report(t, nil, shorthands("in:Hi?", "AU", "AU", "AU", "out:Hello there.", "GC", "TC")...)
		}
		frames := shorthands("in:Go on")
		speak := func(i int) {
			for range audioMs[i] / 100 {
				frames = append(frames, shorthand("AU"))
			}
		}
		speak(0)
		var late []string
		words := inPieces(t, said[0].text(), out)
		if rapid.IntRange(0, 2).Draw(t, "a call") == 0 {
			frames = append(append(frames, words...), call("a"), answer("a"))
			said = append(said, spokenTexts().Filter(func(s spokenText) bool { return !midWord(said[0].text(), s.text()) }).Draw(t, "after the result"))
			audioMs = append(audioMs, 100*rapid.IntRange(1, 8).Draw(t, "audio after the result"))
			speak(1)
			words = inPieces(t, said[1].text(), out)
		}
		n := rapid.IntRange(0, len(words)).Draw(t, "in time")
		frames, late = append(frames, words[:n]...), words[n:]
		lateWords := late
		whole := 0
		for _, ms := range audioMs {
			whole += ms
		}
		played := int32(rapid.IntRange(0, whole-1).Draw(t, "played"))
		// What comes from the interruption on, in its order, with the report at any place.
		after := []string{interrupted}
		if rapid.Bool().Draw(t, "in one frame") {
			after = []string{`{"serverContent":{"interrupted":true,"turnComplete":true}}`}
		} else {
			at := rapid.IntRange(0, len(late)).Draw(t, "turnComplete")
			late = slices.Insert(slices.Clone(late), at, turnComplete)
		}
		after = append(after, late...)
		next := rapid.Bool().Draw(t, "an answer after")
		s.report(t, nil, frames...)
		report := &played
		if rapid.IntRange(0, 3).Draw(t, "no report") == 0 {
			report = nil
		}
		at := rapid.IntRange(0, len(after)).Draw(t, "reported after")
		told := after[:at:at]
		if rest := after[at:]; len(rest) == 0 && next && rapid.Bool().Draw(t, "with the next answer") {
			told, next = append(told, shorthands("in:Stop", "AU", "out:Yes.", "GC", "TC")...), false
			s.report(t, report, told...)
		} else {
			s.report(t, report, told...)
			s.report(t, nil, rest...)
		}
		if next {
			s.report(t, nil, shorthands("in:Stop", "AU", "out:Yes.", "GC", "TC")...)
		}
		var answers []*storev1.Message
		for seq := int64(1); seq <= s.state.GetLastSeq(); seq++ {
			if m := s.messages[seq]; m.GetRole() == storev1.Role_ROLE_ASSISTANT {
				answers = append(answers, m)
			}
		}
		if before {
			if answers[0].PlayedMs != nil || answers[0].HeardText != nil {
				t.Fatalf("the answer before: %v", answers[0])
			}
			answers = answers[1:]
		}
		left := int(played)
		for i, one := range said {
			m, ms := answers[i], audioMs[i]
			if m.GetText() != one.text() || m.GetAudioMs() != int64(ms) {
				t.Fatalf("%d ms of %q were said, not %v", ms, one.text(), m)
			}
			if report == nil {
				last := i == len(said)-1
				switch inTime := len(words) - len(lateWords); {
				case last && inTime == 0 || !last && inTime > 0:
					if m.HeardText != nil {
						t.Fatalf("nobody knows what was heard of %v", m)
					}
				case m.GetHeardText() == "" || !m.GetHeardEstimated():
					t.Fatalf("it had been transcribed: %v", m)
				}
				continue
			}
			want, got := one.heard(min(left, ms), ms), m.GetHeardText()
			if left >= ms && m.HeardText == nil {
				got = m.GetText() // all of it
			}
			if got != want || left < ms && (m.HeardText == nil || m.GetHeardEstimated() || m.GetStatus() != storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED) {
				t.Fatalf("%d of %d ms were played of %q: heard %q, want %q: %v", left, ms, one.text(), got, want, m)
			}
			left = max(left-ms, 0)
		}
		for _, m := range answers[len(said):] {
			if m.PlayedMs != nil || m.HeardText != nil || m.GetText() != "Yes." {
				t.Fatalf("the answer after: %v", m)
			}
		}
	})
}
