package voice

import (
	"slices"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// Transcriptions come late, but seq is the order in which things were said. So a turn may have a place, which is a seq, before it has
// words: then it is no message yet, and has no create_time. A place of which no words come is given up, and leaves a gap.

// place gives a turn the conversation's next seq, unless it has one.
func (f *Reducer) place(turn *storev1.Message) {
	if turn.GetSeq() == 0 {
		f.state.LastSeq++
		turn.Seq = f.state.GetLastSeq()
	}
}

// reserve places a turn of which no words have come.
func (f *Reducer) reserve(turn *storev1.Message, rule Rule) {
	if turn.GetSeq() == 0 {
		f.place(turn)
		f.note(rule, turn, "gets a place", "")
	}
}

// placeAnswer places an answer, behind the question that it answers.
func (f *Reducer) placeAnswer(turn *storev1.Message) {
	if turn.GetSeq() != 0 {
		return
	}
	if !f.live.GetInterrupted() && f.live.GetTurnFrom() == 0 {
		f.expectQuestion()
	}
	f.place(turn)
}

// expectQuestion places the question of an answer that begins, where one is likely though nothing was transcribed yet: the user has
// begun to speak, or audio comes for the answer, and the provider transcribes the user, as far as is known.
func (f *Reducer) expectQuestion() {
	first := f.live.GetTurnAudio() && f.live.GetQuestionSeq() == 0 && f.live.GetSpokenSeq() == 0
	switch {
	case f.live.GetUserTurn() != nil:
	case f.live.GetAsking() && f.live.GetTellsSpeech():
		f.openQuestion()
	case f.live.GetAsked():
		return
	case f.live.GetHears() && f.live.GetTurnAudio(), first:
		f.openQuestion()
	default:
		return
	}
	f.reserve(f.live.GetUserTurn(), QuestionPlace)
}

func (f *Reducer) openQuestion() {
	f.live.UserTurn, f.live.Asking = openTurn(storev1.Role_ROLE_USER), false
	f.live.UserTurn.Modality = storev1.Modality_MODALITY_VOICE
}

// goFirst lets the user's turn, which begins, take the place of an answer that is being given, which moves one on. The answer had no
// question when it got its place, so these words are that, transcribed late. It stays where it is where something refers to its place.
func (f *Reducer) goFirst() {
	answer := f.live.GetAssistantTurn()
	seq := answer.GetSeq()
	_, pinned := slices.BinarySearch(f.state.GetPinnedSeqs(), seq)
	switch {
	case answer.GetCreateTime() == nil, seq != f.state.GetLastSeq(), pinned, answer.PlayedMs != nil,
		f.live.GetInterrupted(), f.live.GetAsked(), f.live.GetTurnFrom() != 0:
		return
	}
	for _, call := range f.openCalls() {
		if call.GetAfterSeq() == seq {
			f.replaceCall(call, func(c *storev1.ToolCall) { c.AfterSeq++ })
		}
	}
	delete(f.messages, seq)
	f.live.UserTurn.Seq = seq
	answer.Seq = 0
	f.place(answer)
	f.live.SpokenSeq = answer.GetSeq()
	f.touch(answer)
	f.by(QuestionFirst)
	f.tell(answer, "moves behind its question", "")
}

// placeLast places an answer whose words have not come yet, where words of the user are about to follow it.
func (f *Reducer) placeLast() {
	if turn := f.live.GetAssistantTurn(); turn != nil && f.live.GetInterrupted() && (f.live.GetTurnAudio() || f.live.GetSays()) {
		f.reserve(turn, AnswerPlace)
	}
	if turn := f.live.GetLastAnswer(); turn != nil && f.live.GetTurnAudio() && f.live.GetSays() {
		f.reserve(turn, AnswerPlace)
	}
}

// giveUp takes its place from a turn of which no words came.
func (f *Reducer) giveUp(turn *storev1.Message) {
	if turn.GetSeq() != 0 && turn.GetCreateTime() == nil {
		f.state.RemovedCount++
		f.note(NoWords, turn, "gives its place up", "")
	}
}

// Places are the seqs of turns that have a place and no words yet, rising.
func Places(live *storev1.LiveState) (seqs []int64) {
	for _, turn := range []*storev1.Message{live.GetLastAnswer(), live.GetUserTurn(), live.GetAssistantTurn()} {
		if turn.GetSeq() != 0 && turn.GetStatus() != 0 && turn.GetText() == "" && turn.GetCreateTime() == nil {
			seqs = append(seqs, turn.GetSeq())
		}
	}
	return seqs
}
