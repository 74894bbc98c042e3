package voice

import (
	"maps"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

// generated notes that all of the model's answer was sent. Where there is none, as with models that only transcribe, it ends the
// utterance.
func (f *Reducer) generated() {
	f.live.TellsGenerated = true
	f.release(true)
	if f.live.GetAssistantTurn() == nil && f.live.GetUserTurn().GetText() != "" && !f.live.GetSpeaking() && !f.live.GetOwesEnd() {
		f.under(HeardOnly, f.endUtterance)
		f.live.Asked, f.live.LastUtterance = false, ""
		return
	}
	f.finish(f.live.GetAssistantTurn(), storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
}

// The model's side.

// modelTurn is the turn of the model, begun if need be.
func (f *Reducer) modelTurn() *storev1.Message {
	if f.live.GetAssistantTurn() != nil {
		return f.live.GetAssistantTurn()
	}
	f.release(true)
	f.forgetAnswer()
	if f.live.GetAnswered() {
		f.endUtterance()
	}
	f.live.AssistantTurn, f.live.TurnAudioMs, f.live.TurnAudio = openTurn(storev1.Role_ROLE_ASSISTANT), 0, false
	f.live.TurnFrom, f.live.AnsweredTools = 0, false
	return f.live.GetAssistantTurn()
}

// generate folds what the model generates.
func (f *Reducer) generate(c *gemini.Content) {
	f.beginNext()
	f.modelTurn()
	f.live.TurnAudioMs += c.AudioMillis()
	f.live.TurnAudio = f.live.GetTurnAudio() || c.HasAudio()
	if c.Spoken() {
		f.signal(modelSpoke)
	}
	text := &gemini.Transcription{Text: gemini.Text(c.Said())}
	f.say(storev1.Modality_MODALITY_TEXT, text.Pieces(&f.live.AssistantHalf), text)
	f.sign(c)
	f.say(storev1.Modality_MODALITY_VOICE, c.Transcribed(), text)
	f.addParts(c)
	f.callTools(c.Calls())
}

// sign notes what the model wants back with its text. With a turn that is spoken, whose text is left out, it is not kept.
func (f *Reducer) sign(c *gemini.Content) {
	signature, lost := c.Signature()
	turn := f.live.GetAssistantTurn()
	if signature != nil && turn.GetModality() != storev1.Modality_MODALITY_VOICE {
		turn.ThoughtSignature = signature
		f.touch(turn)
	} else if signature != nil {
		lost++
	}
	for range lost {
		f.misunderstood()
	}
}

// addParts adds what the model executes itself, its result, and the files that it makes, each as a message with that part.
func (f *Reducer) addParts(c *gemini.Content) {
	for i := range c.Parts {
		for _, part := range c.Parts[i].Made() {
			turn := openTurn(storev1.Role_ROLE_ASSISTANT)
			turn.Modality, turn.Status, turn.Parts = storev1.Modality_MODALITY_TEXT, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE, []*storev1.Part{part}
			spoken := f.live.GetSpokenSeq()
			f.number(turn)
			f.live.SpokenSeq = spoken
			f.touch(turn)
			f.nextMessage(&f.live.AssistantTurn)
		}
	}
}

// say adds words of the model. A turn that is spoken is known by its transcription, and text next to it is left out, in
// whichever order they come.
func (f *Reducer) say(modality storev1.Modality, words string, t *gemini.Transcription) {
	if words == "" {
		return
	}
	if f.saysLate(modality, words, t) {
		return
	}
	if f.live.GetAssistantTurn().GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_COMPLETE && !f.live.GetTurnAudio() && f.saidSince() {
		f.beginNext()
	}
	turn := f.modelTurn()
	f.signal(modelSpoke)
	if turn.GetModality() != modality {
		if isBlank(words) || turn.GetModality() == storev1.Modality_MODALITY_VOICE {
			f.note(TextOfSpeech, turn, "left out", words)
			return
		}
		if turn.GetText() != "" {
			f.note(TextOfSpeech, turn, "left out", turn.GetText())
		}
		if turn.Modality, turn.Text, turn.Meter = modality, "", nil; modality == storev1.Modality_MODALITY_VOICE {
			turn.ThoughtSignature = nil
		}
		if turn.HeardText != nil { // of words that were not said: how much was heard of these, nobody knows
			turn.HeardText, turn.HeardEstimated = new(""), true
		}
	}
	switch {
	case f.live.GetAnsweredTools() && !isBlank(words) && !midWord(turn.GetText(), words):
		f.by(AfterResult)
		f.nextMessage(&f.live.AssistantTurn)
		f.live.AnsweredTools = false
		words = strings.TrimLeft(words, " ")
	case f.live.GetAssistantFinished() && parts(turn.GetText(), words):
		words = " " + words
	}
	f.extend(&f.live.AssistantTurn, words)
	if turn := f.live.GetAssistantTurn(); turn.GetCreateTime() != nil {
		f.voiceOf(turn, t)
	}
}

func (f *Reducer) completeTurn(c *gemini.ServerContent) {
	if f.isOwed() {
		f.note(LateEnd, nil, "changes nothing", "")
		return
	}
	f.signal(turnEnd(string(c.InteractionStatus)))
	f.endedBecause(gemini.FirstBytes(string(c.TurnCompleteReason), gemini.MaxName))
	f.endTurn(storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	f.live.OwesEnd, f.live.OwesCut = false, false
	f.live.Asked = f.live.GetAsked() || c.InteractionStatus == "IN_PROGRESS"
}

// endedBecause notes why the provider ended the turn. A turn without words becomes a message then: otherwise nobody would know.
func (f *Reducer) endedBecause(reason string) {
	if reason == "" || reason == "TURN_COMPLETE_REASON_UNSPECIFIED" {
		return
	}
	turn := f.modelTurn()
	if turn.TurnCompleteReason = reason; turn.GetCreateTime() == nil {
		f.expectQuestion()
		turn.Modality = storev1.Modality_MODALITY_VOICE
		if turn.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING && reason != "NEED_MORE_INPUT" {
			turn.Status = storev1.MessageStatus_MESSAGE_STATUS_FAILED
		}
		f.number(turn)
	}
	f.note(EndReason, turn, "ended for", reason)
	f.touch(turn)
}

func turnEnd(interaction string) voiceSignal {
	switch interaction {
	case "IDLE":
		return turnOverIdle
	case "IN_PROGRESS", "REQUIRES_ACTION":
		return turnOverInProgress
	default:
		return turnOver
	}
}

// endTurn ends the model's turn, and with it the utterance that it answered.
func (f *Reducer) endTurn(status storev1.MessageStatus) {
	f.release(true)
	turn, over := f.live.GetAssistantTurn(), f.live.GetInterrupted()
	if turn != nil {
		f.endHalf(turn, &f.live.AssistantHalf)
		f.finish(turn, status)
		if audio := f.audioOf(turn); turn.GetAudioMs() != audio {
			turn.AudioMs = audio
			f.touch(turn)
		}
		f.keepAnswer(turn)
	}
	f.live.AssistantTurn, f.live.Interrupted, f.live.AssistantFinished = nil, false, false
	if over {
		f.live.Asked = false
		return
	}
	question := f.live.GetUserTurn()
	switch {
	case turn != nil && question != nil && question.GetCreateTime() == nil && f.live.GetTellsSpeech():
		f.live.Answered = true // the user spoke, so the words will come
	case f.live.GetSpeaking() && turn == nil:
		return // it is the end of a turn that ended before
	default:
		f.endUtterance()
	}
	if f.live.Asked = false; status == storev1.MessageStatus_MESSAGE_STATUS_COMPLETE {
		f.live.LastUtterance = "" // it has its answer
	}
}

// countUsage adds the provider's count of the turn: total_tokens is the sum of totalTokenCount over all turns, each of
// which counts its whole context again, and the model's message has the tokens of the response.
func (f *Reducer) countUsage(usage *gemini.UsageMetadata) {
	if plausible(usage.TotalTokenCount) {
		f.live.TotalTokens += int64(usage.TotalTokenCount)
	}
	turn := f.live.GetAssistantTurn()
	if turn.GetCreateTime() == nil {
		turn = f.lateAnswer()
	}
	if turn.GetCreateTime() == nil {
		return
	}
	if usage.All.Fields != nil {
		turn.Usage = usage.All.Fields
		f.tell(turn, "usage", "")
		f.touch(turn)
	}
	if !plausible(usage.ResponseTokenCount) {
		return
	}
	f.setTokens(turn, int64(usage.ResponseTokenCount))
	turn.TokenCountEstimated = false
	f.touch(turn)
}

// describe notes what the answer rests on.
func (f *Reducer) describe(c *gemini.ServerContent) {
	for name, data := range map[string]gemini.Object{"groundingMetadata": c.GroundingMetadata, "urlContextMetadata": c.URLContextMetadata} {
		if data.Fields == nil {
			continue
		}
		turn := f.live.GetAssistantTurn()
		if turn == nil {
			turn = f.lateAnswer()
		}
		if turn == nil {
			f.misunderstood() // it belongs to nothing
			continue
		}
		sources := &structpb.Struct{Fields: maps.Clone(turn.GetSources().GetFields())}
		if sources.Fields == nil {
			sources.Fields = map[string]*structpb.Value{}
		}
		sources.Fields[name] = structpb.NewStructValue(data.Fields)
		turn.Sources = sources
		f.tell(turn, "sources", "")
		f.touch(turn)
	}
}

// endHalf ends a turn's words: a half of a surrogate pair stays alone.
func (f *Reducer) endHalf(turn *storev1.Message, half *int32) {
	if *half != 0 && turn.GetCreateTime() != nil {
		turn.Text += "\uFFFD"
		f.touch(turn)
	}
	*half = 0
}

func plausible(tokens gemini.Count) bool { return 0 < tokens && tokens <= maxTurnTokens }
