package voice

import (
	"strings"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

// keepAnswer keeps what is needed to add to an answer that is over.
func (f *Reducer) keepAnswer(turn *storev1.Message) {
	if turn.GetCreateTime() != nil {
		turn = &storev1.Message{Seq: turn.GetSeq(), CreateTime: turn.GetCreateTime()}
	}
	f.live.LastAnswer = turn
}

// forgetAnswer ends the time in which something may be added to the last answer: another has begun, or another connection.
func (f *Reducer) forgetAnswer() {
	f.giveUp(f.live.GetLastAnswer())
	f.live.LastAnswer = nil
}

// lateAnswer is the last answer, to be changed; nil: none takes anything more.
func (f *Reducer) lateAnswer() *storev1.Message {
	last := f.live.GetLastAnswer()
	if last.GetCreateTime() == nil {
		return last
	}
	return f.change(last.GetSeq())
}

// saysLate adds words to the last answer, and reports whether they belong to it: audio came for it, none has come since, and nothing
// that would be answered.
func (f *Reducer) saysLate(modality storev1.Modality, words string, t *gemini.Transcription) bool {
	last := f.live.GetLastAnswer()
	switch {
	case last == nil, f.live.GetAssistantTurn() != nil, modality != storev1.Modality_MODALITY_VOICE, !f.live.GetTurnAudio(), f.live.GetAsked(),
		last.GetCreateTime() != nil && f.live.GetUserTurn().GetText() != "":
		return false
	}
	turn := f.lateAnswer()
	if turn == nil {
		return false
	}
	f.by(LateAnswer)
	if turn.GetCreateTime() == nil {
		f.place(turn)
		turn.Modality = modality
	}
	if f.live.GetAnsweredTools() && !isBlank(words) && !midWord(turn.GetText(), words) {
		f.by(AfterResult)
		f.nextMessage(&turn)
		f.live.AnsweredTools = false
		f.place(turn)
		words = strings.TrimLeft(words, " ")
	}
	f.extend(&turn, words)
	f.endHalf(turn, &f.live.AssistantHalf)
	f.voiceOf(turn, t)
	f.touch(turn)
	f.keepAnswer(turn)
	return true
}

// beginNext ends the model's turn where what it generates now belongs to the next one, and its turnComplete is late or lost: the
// generation was complete, or cut off by what the user said, and the model begins again.
func (f *Reducer) beginNext() {
	turn := f.live.GetAssistantTurn()
	complete := turn.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_COMPLETE
	cut := turn.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED && f.live.GetInterrupted() && f.live.GetUserTurn().GetText() != ""
	if turn == nil || !complete && !cut || f.awaitsTools() {
		return
	}
	news := ""
	if from := int(f.live.GetLateFrom()); from > 0 && !f.live.GetInterrupted() {
		question := f.live.GetUserTurn()
		if text := question.GetText(); from < len(text) {
			question.Text, question.Meter, news = text[:from], nil, text[from:]
			f.touch(question)
			f.note(PartedLate, question, "loses", news)
		}
	}
	f.under(BeginsAgain, f.endOwing)
	f.live.OwesCut = cut
	f.under(PartedLate, func() { f.addHeard(strings.TrimLeft(news, " ")) })
}

// endOwing ends the model's turn before its turnComplete.
func (f *Reducer) endOwing() {
	f.endTurn(storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	f.live.OwesEnd = true
}

// isOwed reports whether a turnComplete is that of a turn that ended before: the model has not begun again, or that turn was cut off
// and this one is still being generated.
func (f *Reducer) isOwed() bool {
	turn := f.live.GetAssistantTurn()
	streams := turn.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING
	owed := f.live.GetOwesEnd() && (turn == nil || f.live.GetOwesCut() && streams && f.live.GetTellsGenerated())
	f.live.OwesEnd, f.live.OwesCut = false, false
	return owed
}

// awaitsTools reports whether the model's turn goes on with the result of a tool.
func (f *Reducer) awaitsTools() bool {
	if f.live.GetAnsweredTools() {
		return true
	}
	for _, call := range f.live.GetPendingCalls() {
		if s := call.GetStatus(); f.isCurrent(call) && (s == CallPending || s == CallRunning) {
			return true
		}
	}
	return false
}
