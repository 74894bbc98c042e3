package voice

import (
	"cmp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// spokenPerSecond is how many letters of an alphabet are spoken in a second, where nobody counted the audio: about 150 words a minute.
const spokenPerSecond = 15

// Heard notes what the user heard of an assistant's message, as text or as the milliseconds played. The last report counts. It
// may come while the turn is still open: words that come later were not heard, unless they were played.
func Heard(s *storev1.ConversationState, m *storev1.Message, heard *string, playedMs *int64, now time.Time) {
	turn := s.GetLive().GetAssistantTurn()
	isOpen := turn.GetSeq() == m.GetSeq()
	audio := m.GetAudioMs()
	if isOpen {
		audio = s.GetLive().GetTurnAudioMs()
	}
	var said string
	if heard != nil {
		said = commonBeginning(m.GetText(), *heard)
	} else {
		said = played(m.GetText(), *playedMs, audio)
	}
	m.HeardText, m.HeardEstimated, m.PlayedMs, m.Status = &said, false, playedMs, storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED
	if m.GetInterruptTime() == nil {
		m.InterruptTime = timestamppb.New(now)
	}
	if isOpen {
		s.Live.AssistantTurn = proto.CloneOf(m)
	}
}

// commonBeginning is how much of a text begins as heard does, whatever their blanks.
func commonBeginning(text, heard string) string {
	end := 0
	rest := heard
	for pos, r := range text {
		if unicode.IsSpace(r) {
			continue
		}
		rest = strings.TrimLeftFunc(rest, unicode.IsSpace)
		h, size := utf8.DecodeRuneInString(rest)
		if size == 0 || h != r {
			return text[:end]
		}
		rest = rest[size:]
		end = pos + utf8.RuneLen(r)
	}
	return text
}

// played is how much of a text was heard when so much of its audio was played, in whole words: those whose end was not
// heard were not.
func played(text string, ms, audio int64) string {
	whole := spokenLength(text)
	if audio <= 0 {
		audio = spokenMillis(text)
	}
	if ms >= audio {
		return text
	}
	all := []rune(text)
	n, left := 0, whole*ms/audio
	for left >= lengthOf(all[n]) {
		left -= lengthOf(all[n])
		n++
	}
	for n > 0 && inWord(all[n-1], all[n]) {
		n--
	}
	return strings.TrimRightFunc(string(all[:n]), unicode.IsSpace)
}

// spokenMillis is about how long it takes to speak a text.
func spokenMillis(text string) int64 { return spokenLength(text) * 1000 / spokenPerSecond } //nolint:mnd // milliseconds

// spokenLength is how many letters of an alphabet take as long to speak as a text.
func spokenLength(text string) (n int64) {
	for _, r := range text {
		n += lengthOf(r)
	}
	return n
}

// lengthOf is how many letters of an alphabet take as long to speak as a character: a syllable, or a word of Chinese.
func lengthOf(r rune) int64 {
	switch {
	case unicode.Is(unicode.Han, r):
		return 3 //nolint:mnd // some five in a second
	case unicode.In(r, unicode.Hiragana, unicode.Katakana, unicode.Hangul):
		return 2 //nolint:mnd // some seven
	}
	return 1
}

// inWord reports whether a text cannot be cut between two characters: they are of one word, or one character to the eye. Scripts
// without blanks between words are cut anywhere.
func inWord(a, b rune) bool {
	const joiner = '\u200d'
	switch {
	case unicode.IsMark(b), a == joiner, b == joiner, '\U0001f3fb' <= b && b <= '\U0001f3ff', isFlag(a) && isFlag(b):
		return true
	case unicode.IsSpace(a), unicode.IsSpace(b):
		return false
	}
	return !solid(a) && !solid(b) && !unicode.IsSymbol(a) && !unicode.IsSymbol(b)
}

func isFlag(r rune) bool { return '\U0001f1e6' <= r && r <= '\U0001f1ff' }

// played notes how much of the audio of the newest answer was played when the user spoke over it, or when the connection was gone.
// The last report counts. What was played to the end was not spoken over. An answer that goes on after a tool's result is several
// messages, whose audio the client plays as one.
func (f *Reducer) played(ms *int32) {
	if ms == nil {
		return
	}
	m := f.spoken()
	if m == nil {
		return
	}
	left := int64(*ms)
	from := f.live.GetTurnFrom()
	if m == f.cut {
		from = f.cutFrom
	}
	if from != 0 {
		for seq := max(from, f.state.GetLastSeq()-maxTurnParts); seq <= f.state.GetLastSeq() && seq != m.GetSeq(); seq++ {
			if before := f.change(seq); before.GetRole() == storev1.Role_ROLE_ASSISTANT && before.GetText() != "" {
				f.playedOf(before, left)
				left = max(left-cmp.Or(before.GetAudioMs(), spokenMillis(before.GetText())), 0)
			}
		}
	}
	f.playedOf(m, left)
}

// maxTurnParts are the newest messages among which those of one answer are looked for.
const maxTurnParts = 100

// spoken is the answer that a report is about, to be changed; nil: there is none. The frames of the report cut it off, or it is the newest
// of which something may have been heard.
func (f *Reducer) spoken() *storev1.Message {
	turn, last, seq := f.live.GetAssistantTurn(), f.live.GetLastAnswer(), f.live.GetSpokenSeq()
	sendsAudio := f.message(seq).GetAudioMs() > 0
	mayBe := func(m *storev1.Message) bool {
		return m.GetCreateTime() != nil || m != nil && (f.live.GetTurnAudio() || m.GetInterruptTime() != nil && !sendsAudio)
	}
	switch {
	case mayBe(f.cut):
		return f.cut
	case mayBe(turn):
		return turn
	case turn == nil && last.GetCreateTime() == nil && mayBe(last):
		return last
	case seq == 0:
		return nil
	}
	return f.change(seq)
}

// audioOf is the milliseconds of an answer's audio. What came after a tool's result is of what is said next.
func (f *Reducer) audioOf(m *storev1.Message) int64 {
	audio := m.GetAudioMs()
	if m == f.live.GetAssistantTurn() {
		audio = f.live.GetTurnAudioMs()
	}
	if f.afterResult(m) {
		audio = min(audio, f.live.GetResultAudioMs())
	}
	return audio
}

// afterResult reports whether the model was told a tool's result after it had said a message, and has said nothing since.
func (f *Reducer) afterResult(m *storev1.Message) bool {
	return f.live.GetAnsweredTools() && m.GetCreateTime() != nil && m.GetSeq() == f.live.GetSpokenSeq()
}

// playedOf notes how much of the audio of a message was played. Its words may come later.
func (f *Reducer) playedOf(m *storev1.Message, ms int64) {
	isCut := m.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED
	audio := f.audioOf(m)
	toTheEnd := ms >= audio && audio > 0 || m.GetText() != "" && played(m.GetText(), ms, audio) == m.GetText()
	if f.afterResult(m) && ms < f.live.GetTurnAudioMs() {
		toTheEnd = false // more of it was to be heard
	}
	if !isCut && toTheEnd || m.PlayedMs != nil && m.GetPlayedMs() == ms {
		return
	}
	m.PlayedMs, m.Status = new(ms), storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED
	if m.GetInterruptTime() == nil {
		m.InterruptTime = f.now
	}
	f.touch(m)
}

// speakOver notes that the user speaks over the model's turn. Its place is before what the user says now, though its words may come
// later.
func (f *Reducer) speakOver() {
	if f.live.GetInterrupted() {
		return
	}
	if turn := f.live.GetAssistantTurn(); turn.GetSeq() == 0 && f.live.GetTurnAudio() {
		f.placeAnswer(turn)
		f.note(AnswerPlace, turn, "gets a place", "")
	}
	f.live.Interrupted, f.live.Asking = true, true
	f.endUtterance()
}

// interrupt cuts the model's turn off, which may not have said a word yet. It lasts until turnComplete all the same:
// words that were on their way still belong to it. What was heard of a turn whose words have not come is not known.
func (f *Reducer) interrupt() {
	f.signal(modelInterrupted)
	if turn := f.lateAnswer(); turn != nil && f.live.GetAssistantTurn() == nil && f.live.GetUserTurn() == nil {
		f.interrupted(turn)
		f.live.Asking = true
		return
	}
	f.interrupted(f.modelTurn())
	f.speakOver()
}

func (f *Reducer) interrupted(turn *storev1.Message) {
	f.cut, f.cutFrom = turn, f.live.GetTurnFrom()
	turn.Status = storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED
	if turn.GetInterruptTime() == nil {
		f.tellStatus(turn)
		turn.InterruptTime = f.now
		if turn.HeardText == nil && turn.GetText() != "" {
			turn.HeardText, turn.HeardEstimated = new(turn.GetText()), true
		}
	}
	f.touch(turn)
}
