package voice

import (
	"cmp"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

// Messages.

// openTurn is a turn that has no words yet, and so is no message: it has no seq.
func openTurn(role storev1.Role) *storev1.Message {
	return &storev1.Message{Role: role, Status: storev1.MessageStatus_MESSAGE_STATUS_STREAMING}
}

// extend adds words to a turn's message, which the first ones make. A message that is full is finished, and another
// takes its place. Blanks do not begin a message.
func (f *Reducer) extend(turn **storev1.Message, words string) {
	for words != "" && ((*turn).GetText() != "" || !isBlank(words)) {
		n := fit(words, mostText(*turn)-int(measure(*turn).GetJsonBytes()))
		if n == 0 {
			f.under(MessageFull, func() { f.nextMessage(turn) })
			continue
		}
		if (*turn).GetCreateTime() == nil {
			f.number(*turn)
		}
		(*turn).Text += words[:n]
		f.tell(*turn, "words", words[:n])
		f.touch(*turn)
		words = words[n:]
	}
}

// nextMessage lets the turn go on in a message of its own, if it has one yet. Audio that came after a tool's result is the next one's.
func (f *Reducer) nextMessage(turn **storev1.Message) {
	m := *turn
	if m.GetCreateTime() == nil {
		return
	}
	next := openTurn(m.GetRole())
	next.Modality, next.Status = m.GetModality(), m.GetStatus()
	f.finish(m, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	audio := f.audioOf(m)
	if *turn = next; m.GetRole() != storev1.Role_ROLE_ASSISTANT {
		return
	}
	if m == f.cut {
		f.cut, f.cutFrom = next, cmp.Or(f.cutFrom, m.GetSeq())
	}
	m.AudioMs = audio
	if next.AudioMs = f.live.GetTurnAudioMs() - audio; m.PlayedMs != nil {
		length := cmp.Or(audio, spokenMillis(m.GetText()))
		next.PlayedMs, next.InterruptTime = new(max(m.GetPlayedMs()-length, 0)), m.GetInterruptTime()
		m.PlayedMs = new(min(m.GetPlayedMs(), length))
	} else if m.HeardText != nil && (m.GetHeardText() != m.GetText() || next.GetAudioMs() == 0) { // what came before was not all heard, so this was not
		next.HeardText, next.HeardEstimated = new(""), m.GetHeardEstimated()
	}
	f.touch(m)
	f.live.TurnAudioMs, f.live.TurnFrom = next.GetAudioMs(), cmp.Or(f.live.GetTurnFrom(), m.GetSeq())
}

// number makes a message of a turn, at its place: the conversation's next, unless it has one.
func (f *Reducer) number(turn *storev1.Message) {
	if turn.GetRole() == storev1.Role_ROLE_ASSISTANT {
		f.placeAnswer(turn)
		f.live.SpokenSeq = turn.GetSeq()
	} else {
		f.placeLast()
		f.place(turn)
	}
	turn.TokenCountEstimated = true
	turn.CreateTime = f.now
	f.tell(turn, "begins", "")
}

// finish gives a turn that is still streaming its last status. No turn, and a finished one, stay as they are.
func (f *Reducer) finish(turn *storev1.Message, status storev1.MessageStatus) {
	if turn.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING {
		turn.Status = status
		f.touch(turn)
		f.tellStatus(turn)
	}
}

// touch notes that a message changed. A turn without words is none.
func (f *Reducer) touch(turn *storev1.Message) {
	if turn.GetCreateTime() == nil {
		return
	}
	if turn == f.live.GetAssistantTurn() {
		turn.AudioMs = f.audioOf(turn)
	}
	if turn.PlayedMs != nil { // the rest of its words or its audio may have come
		turn.HeardText, turn.HeardEstimated = new(played(turn.GetText(), turn.GetPlayedMs(), turn.GetAudioMs())), false
	}
	turn.UpdateTime = f.now
	if f.messages == nil {
		f.messages = map[int64]*storev1.Message{}
	}
	f.messages[turn.GetSeq()] = turn
}

func (f *Reducer) setTokens(message *storev1.Message, tokens int64) {
	f.state.TokenCount += tokens - message.GetTokenCount()
	message.TokenCount = tokens
}

// maxSpokenText is the JSON of the text of a message that grows piece by piece. All of it is written with each piece, so it is kept as
// small as a turn of half an hour of speech allows.
const maxSpokenText = 24 << 10

// mostText is the JSON of the text that a turn's message has room for.
func mostText(turn *storev1.Message) int {
	if turn.GetRole() == storev1.Role_ROLE_ASSISTANT || turn.GetModality() == storev1.Modality_MODALITY_VOICE {
		return maxSpokenText
	}
	return gemini.MaxTurnText
}

// fit is how many bytes of the words so many bytes of JSON have room for.
func fit(words string, room int) int {
	for i, r := range words {
		if room -= jsonSize(r); room < 0 {
			return i
		}
	}
	return len(words)
}

// jsonSize is the size of a character in a JSON string.
func jsonSize(r rune) int {
	switch r {
	case '"', '\\', '\b', '\f', '\n', '\r', '\t':
		return 2
	}
	if r < ' ' {
		return len(`\u0001`)
	}
	return utf8.RuneLen(r)
}

// Edited keeps the reducer's copy of a turn that is still growing in step with a message that was edited: the next
// transcription extends the edited text, or nothing where the edit closed the message.
func Edited(live *storev1.LiveState, m *storev1.Message) {
	if live == nil {
		return
	}
	if m.GetStatus() == 0 && live.GetLastAnswer().GetSeq() == m.GetSeq() {
		live.LastAnswer = nil
	}
	for _, turn := range []**storev1.Message{&live.UserTurn, &live.AssistantTurn} {
		if *turn == nil || (*turn).GetSeq() != m.GetSeq() {
			continue
		}
		*turn = nil
		if m.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING {
			*turn = proto.CloneOf(m)
		}
	}
}
