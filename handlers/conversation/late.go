package conversation

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// Transcriptions come late, but seq is the order in which things were said. So a turn may have a place, which is a seq, before it has
// words: then it is no message yet, and has no create_time. A place of which no words come is given up, and leaves a gap.

// place gives a turn the conversation's next seq, unless it has one.
func (f *folder) place(turn *storev1.Message) {
	if turn.GetSeq() == 0 {
		f.state.LastSeq++
		turn.Seq = f.state.GetLastSeq()
	}
}

// placeAnswer places an answer, behind the question that it answers.
func (f *folder) placeAnswer(turn *storev1.Message) {
	if turn.GetSeq() != 0 {
		return
	}
	if !f.live.GetInterrupted() && !f.live.GetTurnGoesOn() {
		f.expectQuestion()
	}
	f.place(turn)
}

// expectQuestion places the question of an answer that begins, where one is likely though nothing was transcribed yet: the user has
// begun to speak, or audio comes for the answer, and the provider transcribes the user, as far as is known.
func (f *folder) expectQuestion() {
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
	f.place(f.live.GetUserTurn())
}

func (f *folder) openQuestion() {
	f.live.UserTurn, f.live.Asking = openTurn(storev1.Role_ROLE_USER), false
	f.live.UserTurn.Modality = storev1.Modality_MODALITY_VOICE
}

// goFirst lets the user's turn, which begins, take the place of an answer that is being given, which moves one on. The answer had no
// question when it got its place, so these words are that, transcribed late. It stays where it is where something refers to its place.
func (f *folder) goFirst() {
	answer := f.live.GetAssistantTurn()
	seq := answer.GetSeq()
	_, pinned := slices.BinarySearch(f.state.GetPinnedSeqs(), seq)
	switch {
	case answer.GetCreateTime() == nil, seq != f.state.GetLastSeq(), pinned, answer.PlayedMs != nil,
		f.live.GetInterrupted(), f.live.GetAsked(), f.live.GetTurnGoesOn():
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
}

// placeLast places an answer whose words have not come yet, where words of the user are about to follow it.
func (f *folder) placeLast() {
	if turn := f.live.GetAssistantTurn(); turn != nil && f.live.GetInterrupted() && (f.live.GetTurnAudio() || f.live.GetSays()) {
		f.place(turn)
	}
	if turn := f.live.GetLastAnswer(); turn != nil && f.live.GetTurnAudio() && f.live.GetSays() {
		f.place(turn)
	}
}

// giveUp takes its place from a turn of which no words came.
func (f *folder) giveUp(turn *storev1.Message) {
	if turn.GetSeq() != 0 && turn.GetCreateTime() == nil {
		f.state.RemovedCount++
	}
}

// places are the seqs of turns that have a place and no words yet, rising.
func places(live *storev1.LiveState) (seqs []int64) {
	for _, turn := range []*storev1.Message{live.GetLastAnswer(), live.GetUserTurn(), live.GetAssistantTurn()} {
		if turn.GetSeq() != 0 && turn.GetStatus() != 0 && turn.GetText() == "" && turn.GetCreateTime() == nil {
			seqs = append(seqs, turn.GetSeq())
		}
	}
	return seqs
}

// keepAnswer keeps what is needed to add to an answer that is over.
func (f *folder) keepAnswer(turn *storev1.Message) {
	if turn.GetCreateTime() != nil {
		turn = &storev1.Message{Seq: turn.GetSeq(), CreateTime: turn.GetCreateTime()}
	}
	f.live.LastAnswer = turn
}

// forgetAnswer ends the time in which something may be added to the last answer: another has begun, or another connection.
func (f *folder) forgetAnswer() {
	f.giveUp(f.live.GetLastAnswer())
	f.live.LastAnswer = nil
}

// lateAnswer is the last answer, to be changed; nil: none takes anything more.
func (f *folder) lateAnswer() *storev1.Message {
	last := f.live.GetLastAnswer()
	if last.GetCreateTime() == nil {
		return last
	}
	return f.change(last.GetSeq())
}

// change returns a message to be changed, or nil.
func (f *folder) change(seq int64) *storev1.Message {
	if m := f.messages[seq]; m != nil || f.stored == nil {
		return m
	}
	return proto.CloneOf(f.stored(seq))
}

// saysLate adds words to the last answer, and reports whether they belong to it: audio came for it, none has come since, and nothing
// that would be answered.
func (f *folder) saysLate(modality storev1.Modality, words string, t *transcription) bool {
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
	if turn.GetCreateTime() == nil {
		f.place(turn)
		turn.Modality = modality
	}
	if f.live.GetAnsweredTools() && !isBlank(words) && !midWord(turn.GetText(), words) {
		f.live.AnsweredTools = false
		f.nextMessage(&turn)
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
func (f *folder) beginNext() {
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
			question.Text, news = text[:from], text[from:]
			f.touch(question)
		}
	}
	f.endOwing()
	f.live.OwesCut = cut
	f.addHeard(strings.TrimLeft(news, " "))
}

// endOwing ends the model's turn before its turnComplete.
func (f *folder) endOwing() {
	f.endTurn(storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	f.live.OwesEnd = true
}

// isOwed reports whether a turnComplete is that of a turn that ended before: the model has not begun again, or that turn was cut off
// and this one is still being generated.
func (f *folder) isOwed() bool {
	turn := f.live.GetAssistantTurn()
	streams := turn.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING
	owed := f.live.GetOwesEnd() && (turn == nil || f.live.GetOwesCut() && streams && f.live.GetTellsGenerated())
	f.live.OwesEnd, f.live.OwesCut = false, false
	return owed
}

// awaitsTools reports whether the model's turn goes on with the result of a tool.
func (f *folder) awaitsTools() bool {
	if f.live.GetAnsweredTools() {
		return true
	}
	for _, call := range f.live.GetPendingCalls() {
		if s := call.GetStatus(); f.isCurrent(call) && (s == callPending || s == callRunning) {
			return true
		}
	}
	return false
}

// generated notes that all of the model's answer was sent. Where there is none, as with models that only transcribe, it ends the
// utterance.
func (f *folder) generated() {
	f.live.TellsGenerated = true
	f.release(true)
	if f.live.GetAssistantTurn() == nil && f.live.GetUserTurn().GetText() != "" && !f.live.GetSpeaking() && !f.live.GetOwesEnd() {
		f.endUtterance()
		f.live.Asked, f.live.LastUtterance = false, ""
		return
	}
	f.finish(f.live.GetAssistantTurn(), storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
}

// endAnswered ends a turn that was generated where the user says more. Words that may as well be the end of the question, transcribed
// late, are marked: if the model begins again before its turnComplete they were another question.
func (f *folder) endAnswered(words string) {
	turn, question := f.live.GetAssistantTurn(), f.live.GetUserTurn()
	if turn.GetStatus() != storev1.MessageStatus_MESSAGE_STATUS_COMPLETE || f.live.GetInterrupted() || f.awaitsTools() {
		return
	}
	late := f.live.GetTellsSpeech() && !f.live.GetSpeaking()
	switch {
	case question == nil && f.live.GetAsked(), question.GetText() != "" && !late && endsSentence(question.GetText()) && !isBlank(words):
		f.endOwing()
	case question.GetText() != "" && f.live.GetLateFrom() == 0:
		f.live.LateFrom = int32(len(question.GetText())) //nolint:gosec // it is bounded
	}
}

// written notes that the user wrote, which is a question by itself.
func (f *folder) written() {
	f.release(false)
	if f.live.GetAnswered() {
		f.endUtterance()
	}
	if f.live.GetAssistantTurn().GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_COMPLETE && !f.live.GetInterrupted() && !f.awaitsTools() {
		f.endOwing()
	}
	f.live.Asked, f.live.Asking = true, f.live.GetAsking() && f.live.GetSpeaking()
}

// holdsBack keeps words that are those of the last utterance once more, though nobody was heard to speak, and reports whether it did. news
// are all words that are not kept.
func (f *folder) holdsBack(words string) (news string, held bool) {
	if f.live.GetUserTurn() != nil || f.live.GetAssistantTurn() != nil || !f.live.GetTellsSpeech() || f.live.GetSpeaking() || f.live.GetAsking() ||
		f.live.GetQuestionSeq() == 0 {
		return words, false
	}
	words = f.live.GetHeldBack() + words
	f.live.HeldBack = ""
	said := f.message(f.live.GetQuestionSeq()).GetText()
	if _, match := matchRetold(said, words); match != retoldSoFar || distinctWords(canonical(said)) < enoughWords {
		return words, false
	}
	f.live.HeldBack = words
	return "", true
}

// release decides about words that are held back. They are news where the provider takes them for speech, because it hears its end or
// answers. All of the last utterance, and then another, is a repetition of the provider.
func (f *folder) release(isSpeech bool) {
	held := f.live.GetHeldBack()
	if held == "" {
		return
	}
	f.live.HeldBack = ""
	if isSpeech || canonical(held) != canonical(f.message(f.live.GetQuestionSeq()).GetText()) {
		f.addHeard(held)
	}
}

// continueQuestion adds words to the last utterance, and reports whether they belong to it: the provider tells when the user speaks,
// the user has not spoken since, and the utterance has no end.
func (f *folder) continueQuestion(words string) bool {
	if !f.live.GetTellsSpeech() || f.live.GetSpeaking() || f.live.GetAsking() || f.live.GetQuestionSeq() == 0 {
		return false
	}
	m := f.change(f.live.GetQuestionSeq())
	if m == nil || !unfinished(m.GetText(), words) {
		return false
	}
	f.extend(&m, words)
	f.live.QuestionSeq = m.GetSeq()
	f.finish(m, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	return true
}

// unfinished reports whether words may go on where a text ends: it is no whole sentence, they are not the same once more, and nothing
// says that a word begins where another should have ended.
func unfinished(text, words string) bool {
	return !endsSentence(text) && !parts(text, words) && canonical(text) != canonical(words)
}

// isWhole reports whether a text may be all of an utterance: a blank at its end says that it goes on.
func isWhole(text string) bool { return text != "" && !strings.HasSuffix(text, " ") }

// saidSince reports whether the user has said something since the model's turn was generated, or cut off.
func (f *folder) saidSince() bool {
	return f.live.GetLateFrom() > 0 || f.live.GetInterrupted() && f.live.GetUserTurn().GetText() != ""
}

// endsSentence reports whether a text ends with the mark that ends a sentence.
func endsSentence(text string) bool {
	last, _ := utf8.DecodeLastRuneInString(strings.TrimRight(text, " \n\"'”’»)」』"))
	return strings.ContainsRune(".?!…。？！｡؟۔।॥።", last)
}

// parts reports whether a blank has to part two pieces of text that are whole segments: in a script that has blanks between words,
// and where there is none.
func parts(text, words string) bool {
	last, _ := utf8.DecodeLastRuneInString(text)
	first, _ := utf8.DecodeRuneInString(words)
	return text != "" && words != "" && !unicode.IsSpace(last) && (unicode.IsLetter(first) || unicode.IsDigit(first)) && !solid(first) && !solid(last)
}

// solid reports whether a character is of a script that is written without blanks between words.
func solid(r rune) bool {
	return unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar, unicode.Tibetan) ||
		'\u3000' <= r && r <= '\u303f' || '\uff00' <= r && r <= '\uff65'
}

// midWord reports whether words go on with the word that a text ends with.
func midWord(text, words string) bool {
	last, _ := utf8.DecodeLastRuneInString(text)
	first, _ := utf8.DecodeRuneInString(words)
	return unicode.IsLetter(last) && unicode.IsLower(first)
}

// voiceOf notes who speaks in a message, and in which language.
func (f *folder) voiceOf(turn *storev1.Message, t *transcription) {
	language, speaker := firstBytes(string(t.Language), maxLanguage), firstBytes(string(t.Speaker), maxName)
	if language != "" && language != turn.GetLanguage() || speaker != "" && speaker != turn.GetSpeaker() {
		if language != "" {
			turn.Language = language
		}
		if speaker != "" {
			turn.Speaker = speaker
		}
		f.touch(turn)
	}
}

const maxLanguage = 64
