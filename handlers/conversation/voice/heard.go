package voice

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// spokenPerSecond is how many characters of an answer are spoken in a second, where nobody counted its audio: about 150
// words a minute.
const spokenPerSecond = 15

// Heard notes what the user heard of an assistant's message, as text or as the milliseconds played. The last report counts. A
// report may come while the turn is still open: words that come later were not heard.
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
	count := int64(utf8.RuneCountInString(text))
	if audio <= 0 {
		audio = count * 1000 / spokenPerSecond
	}
	if ms >= audio {
		return text
	}
	all := []rune(text)
	n := int(count * ms / audio)
	for n > 0 && inWord(all[n-1], all[n]) {
		n--
	}
	return strings.TrimRightFunc(string(all[:n]), unicode.IsSpace)
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
// The last report counts. What was played to the end was not spoken over.
func (f *Reducer) played(ms *int32) {
	seq, turn := f.live.GetSpokenSeq(), f.live.GetAssistantTurn()
	if ms == nil {
		return
	}
	if turn != nil && turn.GetCreateTime() == nil && f.live.GetTurnAudio() { // its words come later
		turn.PlayedMs, turn.InterruptTime, turn.Status = new(int64(*ms)), f.now, storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED
		return
	}
	if seq == 0 || turn != nil && turn.GetCreateTime() == nil {
		return
	}
	m, audio := turn, f.live.GetTurnAudioMs()
	if turn == nil {
		m = f.change(seq)
		audio = m.GetAudioMs()
	}
	if m == nil {
		return
	}
	said := played(m.GetText(), int64(*ms), audio)
	if m.HeardText == nil && said == m.GetText() || m.HeardText != nil && m.GetHeardText() == said && !m.GetHeardEstimated() {
		return
	}
	m.HeardText, m.HeardEstimated, m.PlayedMs = &said, false, new(int64(*ms))
	m.Status = storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED
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
	turn.Status = storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED
	if turn.GetInterruptTime() == nil {
		f.tellStatus(turn)
		turn.InterruptTime = f.now
		if turn.HeardText == nil && (turn.GetText() != "" || !f.live.GetTurnAudio()) {
			turn.HeardText, turn.HeardEstimated = new(turn.GetText()), true
		}
	}
	f.touch(turn)
}
