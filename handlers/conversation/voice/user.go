package voice

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

// endAnswered ends a turn that was generated where the user says more. Words that may as well be the end of the question, transcribed
// late, are marked: if the model begins again before its turnComplete they were another question.
func (f *Reducer) endAnswered(words string) {
	turn, question := f.live.GetAssistantTurn(), f.live.GetUserTurn()
	if turn.GetStatus() != storev1.MessageStatus_MESSAGE_STATUS_COMPLETE || f.live.GetInterrupted() || f.awaitsTools() {
		return
	}
	late := f.live.GetTellsSpeech() && !f.live.GetSpeaking()
	switch {
	case question == nil && f.live.GetAsked(), question.GetText() != "" && !late && endsSentence(question.GetText()) && !isBlank(words):
		f.under(AskedAgain, f.endOwing)
	case question.GetText() != "" && f.live.GetLateFrom() == 0:
		f.live.LateFrom = int32(len(question.GetText())) //nolint:gosec // it is bounded
	}
}

// written notes that the user wrote, which is a question by itself.
func (f *Reducer) written() {
	f.release(false)
	if f.live.GetAnswered() {
		f.endUtterance()
	}
	if f.live.GetAssistantTurn().GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_COMPLETE && !f.live.GetInterrupted() && !f.awaitsTools() {
		f.under(AskedAgain, f.endOwing)
	}
	f.live.Asked, f.live.Asking = true, f.live.GetAsking() && f.live.GetSpeaking()
}

// continueQuestion adds words to the last utterance, and reports whether they belong to it: the provider tells when the user speaks,
// the user has not spoken since, and the utterance has no end.
func (f *Reducer) continueQuestion(words string) bool {
	if !f.live.GetTellsSpeech() || f.live.GetSpeaking() || f.live.GetAsking() || f.live.GetQuestionSeq() == 0 {
		return false
	}
	m := f.change(f.live.GetQuestionSeq())
	if m == nil || !unfinished(m.GetText(), words) {
		return false
	}
	f.by(LateQuestion)
	f.extend(&m, words)
	f.live.QuestionSeq = m.GetSeq()
	f.finish(m, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	return true
}

// saidSince reports whether the user has said something since the model's turn was generated, or cut off.
func (f *Reducer) saidSince() bool {
	return f.live.GetLateFrom() > 0 || f.live.GetInterrupted() && f.live.GetUserTurn().GetText() != ""
}

// voiceOf notes who speaks in a message, in which language, and where in the audio.
func (f *Reducer) voiceOf(turn *storev1.Message, t *gemini.Transcription) {
	language, speaker := gemini.FirstBytes(string(t.Language), maxLanguage), gemini.FirstBytes(string(t.Speaker), gemini.MaxName)
	changed := language != "" && language != turn.GetLanguage() || speaker != "" && speaker != turn.GetSpeaker()
	turn.Language, turn.Speaker = cmp.Or(language, turn.GetLanguage()), cmp.Or(speaker, turn.GetSpeaker())
	start, end := t.Start.At, t.End.At
	if turn.GetRole() == storev1.Role_ROLE_USER {
		start, end = cmp.Or(start, f.live.GetSpeechStart()), cmp.Or(end, f.live.GetSpeechEnd())
	}
	if turn.GetStartOffset() == nil && start != nil {
		turn.StartOffset, changed = start, true
	}
	if end != nil && !proto.Equal(end, turn.GetEndOffset()) {
		turn.EndOffset, changed = end, true
	}
	if changed {
		f.note(Described, turn, "language, speaker or offsets", "")
		f.touch(turn)
	}
}

const maxLanguage = 64

// The user's side.

// hear adds words of the user, as they were transcribed, unless they are a repetition.
func (f *Reducer) hear(t *gemini.Transcription) {
	if t.Text == "" {
		return
	}
	f.live.Hears = true
	news := f.news(t.Pieces(&f.live.UserHalf))
	if f.live.GetUserFinished() && parts(f.live.GetUserTurn().GetText(), news) {
		news = " " + news
	}
	f.live.SpokeSince, f.live.UserFinished = false, t.Finished
	news, held := f.holdsBack(news)
	if held {
		return
	}
	f.addHeard(news)
	if turn := f.live.GetUserTurn(); turn != nil {
		f.voiceOf(turn, t)
	}
}

func (f *Reducer) addHeard(words string) {
	if words == "" || isBlank(words) && f.live.GetUserTurn().GetText() == "" {
		return
	}
	f.endAnswered(words)
	if f.live.GetUserTurn() == nil {
		if f.continueQuestion(words) {
			return
		}
		f.openQuestion()
		f.goFirst()
	}
	f.extend(&f.live.UserTurn, words)
	f.showTranscription(f.live.GetUserTurn().GetText())
}

// overhear shows words that the provider may still hear otherwise: the next transcription replaces them. They are what
// follows the utterance so far, or all of it once more.
func (f *Reducer) overhear(words string) {
	if words == "" {
		return
	}
	f.speaks()
	heard := f.live.GetUserTurn().GetText()
	if strings.HasPrefix(strings.TrimSpace(words), strings.TrimSpace(heard)) {
		heard = ""
	}
	f.showTranscription(heard + words)
}

func (f *Reducer) showTranscription(text string) {
	f.signal(wordsHeard)
	f.voice().LastTranscription = gemini.LastBytes(text, maxTranscription)
}

// addTurns adds what the user wrote. With turns of the model among it, it is the history that a client seeds a session with: what
// follows the model's last turn is news, unless the conversation has it.
func (f *Reducer) addTurns(c *gemini.ClientContent) {
	history := false
	turns := c.Turns
	for i := range slices.Backward(c.Turns) {
		if c.Turns[i].Role == gemini.Model {
			history, turns = true, c.Turns[i+1:]
			break
		}
	}
	for i := range turns {
		if history && f.isKnown(&turns[i]) {
			f.note(KnownSeed, nil, "left out", turns[i].Text())
			continue
		}
		f.addContent(&turns[i])
	}
}

// maxSeedSearch is how many of the newest messages are compared with what a session is seeded with.
const maxSeedSearch = 16

// isKnown reports whether all that a user's turn of a seed says is in what the conversation has since its last answer, or was written by
// this server.
func (f *Reducer) isKnown(c *gemini.Content) bool {
	known := map[string]bool{gemini.GoOn: true}
	for seq := f.state.GetLastSeq(); seq > max(f.state.GetLastSeq()-maxSeedSearch, 0); seq-- {
		m := f.message(seq)
		if m.GetRole() == storev1.Role_ROLE_ASSISTANT {
			break
		}
		known[m.GetText()] = true
		for _, p := range m.GetParts() {
			known[p.GetText()] = true
		}
	}
	for _, p := range c.Parts {
		text := p.Text.Whole()
		if p.Media() || !known[text] && !strings.HasPrefix(text, "[result of ") && !strings.HasPrefix(text, gemini.SummaryIntro) {
			return false
		}
	}
	return true
}

// addContent adds a user's turn: its text, or its parts where it has anything else.
func (f *Reducer) addContent(c *gemini.Content) {
	parts := c.Kept()
	if parts == nil {
		f.addText(c.Text())
		return
	}
	turn := openTurn(storev1.Role_ROLE_USER)
	turn.Modality, turn.Status, turn.Parts = storev1.Modality_MODALITY_TEXT, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE, parts
	f.by(Typed)
	f.written()
	f.number(turn)
	f.touch(turn)
}

// addText adds a text of the user, complete at once, in several messages if it is long.
func (f *Reducer) addText(text string) {
	if f.resultTold(text) || isBlank(text) {
		return
	}
	f.by(Typed)
	f.written()
	turn := openTurn(storev1.Role_ROLE_USER)
	turn.Modality = storev1.Modality_MODALITY_TEXT
	f.extend(&turn, text)
	f.finish(turn, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
}

func (f *Reducer) speechStarts(at gemini.Offset) {
	f.live.TellsSpeech = true
	f.release(false)
	again := f.live.GetReconnected() // it may be of what was said before
	f.speaks()
	switch {
	case f.live.GetAssistantTurn() != nil:
		f.speakOver()
	case f.live.GetAnswered(), !again && !f.live.GetSpeaking() && isWhole(f.live.GetUserTurn().GetText()):
		f.under(SpokeAgain, f.endUtterance)
	}
	f.live.SpeechStart, f.live.SpeechEnd = at.At, nil
	f.live.Speaking, f.live.Asking = true, f.live.GetUserTurn() == nil
	f.signal(speechStarted)
}

func (f *Reducer) speechEnds(at gemini.Offset) {
	if f.live.SpeechEnd = at.At; f.live.GetUserTurn().GetCreateTime() != nil {
		f.voiceOf(f.live.GetUserTurn(), &gemini.Transcription{})
	}
	f.release(true)
	f.live.TellsSpeech, f.live.Speaking = true, false
	f.live.SpokeSince = false
	f.signal(speechEnded)
}

// endUtterance ends the user's open turn. One that has a place and no words has none any more.
func (f *Reducer) endUtterance() {
	f.endRetelling()
	turn := f.live.GetUserTurn()
	f.live.UserTurn, f.live.Answered, f.live.LateFrom, f.live.UserFinished = nil, false, 0, false
	f.live.SpeechStart, f.live.SpeechEnd = nil, nil
	if turn == nil {
		return
	}
	if turn.GetCreateTime() == nil {
		f.giveUp(turn)
		return
	}
	f.endHalf(turn, &f.live.UserHalf)
	f.finish(turn, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	f.live.QuestionSeq, f.live.LastUtterance, f.live.Asked = turn.GetSeq(), "", true
	if len(turn.GetText()) <= maxUtterance {
		f.live.LastUtterance = turn.GetText()
	}
}
