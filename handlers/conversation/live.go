package conversation

import (
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// The bounds of what the reducer keeps in the state, which is one small document. Together they leave room for the rest.
const (
	// The JSON of an open message's text; words beyond it go into a new message. Below the limit of a message's text.
	maxTurnText = 60 << 10
	// The same of a message that grows piece by piece. All of it is written with each piece, so it is kept as small as a turn of half an
	// hour of speech allows.
	maxSpokenText = 24 << 10
	// Only the end of a longer transcription is shown.
	maxTranscription = 4 << 10
	maxPendingCalls  = 128
	// The size of all pending calls together, with the responses that wait for their delivery. A call is kept whatever its
	// size; a larger response is kept by its entry only.
	maxPendingBytes = 96 << 10
	// Provider ids and names: a call with a longer id is not understood, the others are cut.
	maxName = 128
	// A provider's count above it is no count.
	maxTurnTokens = 10_000_000
	// Older connections whose last frames are known.
	maxFenced = 8
)

// liveEffects is what a batch of frames did besides changing the state.
type liveEffects struct {
	// The messages made or changed, by seq, and the tool calls made or changed, in the order of their first change: as
	// they stand now. They share nothing with the state.
	messages  []*storev1.Message
	toolCalls []*storev1.ToolCall
	// Frames that were folded before. All of them: the batch changed nothing.
	skipped int32
	// Frames, or messages in them, that were not understood.
	unknown int32
	// Numbers of frames that were left out.
	missing int32
}

// findCall looks up a tool call that does not wait for anything, by its live session and id; nil: there is none.
type findCall func(session int64, callID string) *storev1.ToolCall

// ingest folds a batch of frames of the newest connection into the state, and reports what it did. A batch that fence refuses changes
// nothing.
func (f *folder) ingest(w writer, batch liveBatch, playedMs *int32) (liveEffects, error) {
	if err := fence(f.state, w); err != nil {
		return liveEffects{}, err
	}
	if err := batch.checkIndexes("frames", f.live.GetLastClientIndex()); err != nil {
		return liveEffects{}, err
	}
	before := f.live.GetLastClientIndex()
	skipped, unknown := f.foldBatch(batch)
	f.played(playedMs)
	f.claimIssued()
	effects := f.effects()
	effects.skipped, effects.unknown = skipped, unknown
	folded := int64(len(batch.frames)) - int64(skipped)
	effects.missing = int32(f.live.GetLastClientIndex() - before - folded) //nolint:gosec // checkIndexes bounds it
	return effects, nil
}

// foldBatch folds a batch of the newest connection. It is pure: the same frames in one batch or in many lead to the same state and
// messages.
func (f *folder) foldBatch(batch liveBatch) (skipped, unknown int32) {
	for i := range batch.frames {
		frame := &batch.frames[i]
		if frame.index <= f.live.GetLastClientIndex() {
			skipped++
			continue
		}
		f.live.LastClientIndex = frame.index
		f.live.FrameTime = f.now
		f.live.UnknownFrames += int64(frame.unknown)
		unknown += int32(frame.unknown) //nolint:gosec // a request is bounded
		for j := range frame.messages {
			f.fold(&frame.messages[j])
		}
	}
	return skipped, unknown + f.unknown
}

// folder folds the messages of the Live API into a state, one by one. doc.go has its rules.
type folder struct {
	state *storev1.ConversationState
	live  *storev1.LiveState
	now   *timestamppb.Timestamp
	find  findCall
	// stored looks up a message, or returns nil.
	stored func(seq int64) *storev1.Message
	// What was made or changed, by seq.
	messages  map[int64]*storev1.Message
	toolCalls map[int64]*storev1.ToolCall
	callOrder []int64
	// unknown counts what was not understood while folding.
	unknown int32
	// token is that of the claims of this change; 0: it has made none.
	token int64
}

func newFolder(state *storev1.ConversationState, now time.Time, find findCall) *folder {
	if state.Live == nil {
		state.Live = &storev1.LiveState{}
	}
	return &folder{state: state, live: state.Live, now: timestamppb.New(now), find: find}
}

// effects settles the token counts and returns what changed.
func (f *folder) effects() liveEffects {
	var e liveEffects
	for _, seq := range slices.Sorted(maps.Keys(f.messages)) {
		message := f.messages[seq]
		if message.GetTokenCountEstimated() {
			f.setTokens(message, estimateMessage(message))
		}
		e.messages = append(e.messages, proto.CloneOf(message))
	}
	for _, seq := range f.callOrder {
		e.toolCalls = append(e.toolCalls, proto.CloneOf(f.toolCalls[seq]))
	}
	return e
}

// fold folds one message of the Live API. It may have several fields; what ends a turn comes last.
func (f *folder) fold(m *liveFrame) {
	f.foldSession(m)
	f.foldClient(m)
	if m.speechStarts() {
		f.speechStarts()
	}
	if m.speechEnds() {
		f.speechEnds()
	}
	if m.ServerContent != nil {
		f.foldContent(m.ServerContent)
	}
	if m.ToolCall != nil {
		f.callTools(m.ToolCall.FunctionCalls)
	}
	if m.ToolCallCancellation != nil {
		f.cancelTools(m.ToolCallCancellation.IDs)
	}
	if m.UsageMetadata != nil {
		f.countUsage(m.UsageMetadata)
	}
	if m.ServerContent != nil {
		f.foldTurnEnd(m.ServerContent)
	}
}

func (f *folder) foldClient(m *liveFrame) {
	if m.ClientContent != nil {
		f.addTurns(m.ClientContent)
	}
	if m.RealtimeInput != nil && m.RealtimeInput.Text != "" {
		f.addText(m.RealtimeInput.Text.whole())
	}
	if m.ToolResponse != nil {
		for _, response := range m.ToolResponse.FunctionResponses {
			f.answerCall(response)
		}
	}
}

func (f *folder) foldContent(c *serverContent) {
	if c.Interrupted {
		f.interrupt()
	}
	f.hear(&c.InputTranscription)
	f.overhear(c.InterimInputTranscription.Text.whole())
	if c.ModelTurn != nil {
		f.generate(c.ModelTurn)
	}
	if t := &c.OutputTranscription; t.Text != "" {
		f.live.Says = true
		f.say(storev1.Modality_MODALITY_VOICE, t.pieces(&f.live.AssistantHalf), t)
		f.live.AssistantFinished = t.Finished
	}
	f.describe(c)
}

func (f *folder) foldTurnEnd(c *serverContent) {
	if c.GenerationComplete {
		f.generated()
	}
	if c.TurnComplete {
		f.completeTurn(c)
	}
	if c.WaitingForInput {
		f.signal(modelWaits)
	}
}

// The user's side.

// hear adds words of the user, as they were transcribed, unless they are a repetition.
func (f *folder) hear(t *transcription) {
	if t.Text == "" {
		return
	}
	f.live.Hears = true
	news := f.news(t.pieces(&f.live.UserHalf))
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

func (f *folder) addHeard(words string) {
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
func (f *folder) overhear(words string) {
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

func (f *folder) showTranscription(text string) {
	f.signal(wordsHeard)
	f.voice().LastTranscription = lastBytes(text, maxTranscription)
}

// addTurns adds what the user wrote. With turns of the model among it, it is the history that a client seeds a session with: what
// follows the model's last turn is news, unless the conversation has it.
func (f *folder) addTurns(c *clientContent) {
	history := false
	turns := c.Turns
	for i := range slices.Backward(c.Turns) {
		if c.Turns[i].Role == geminiModel {
			history, turns = true, c.Turns[i+1:]
			break
		}
	}
	for i := range turns {
		if !history || !f.isKnown(&turns[i]) {
			f.addContent(&turns[i])
		}
	}
}

// maxSeedSearch is how many of the newest messages are compared with what a session is seeded with.
const maxSeedSearch = 16

// isKnown reports whether all that a user's turn of a seed says is in what the conversation has since its last answer, or was written by
// this server.
func (f *folder) isKnown(c *content) bool {
	known := map[string]bool{goOn: true}
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
		text := p.Text.whole()
		if p.media() || !known[text] && !strings.HasPrefix(text, "[result of ") && !strings.HasPrefix(text, summaryIntro) {
			return false
		}
	}
	return true
}

// message is the newest state of a message; nil: there is none.
func (f *folder) message(seq int64) *storev1.Message {
	if m := f.messages[seq]; m != nil || f.stored == nil {
		return m
	}
	return f.stored(seq)
}

// addContent adds a user's turn: its text, or its parts where it has anything else.
func (f *folder) addContent(c *content) {
	parts := c.stored()
	if parts == nil {
		f.addText(c.text())
		return
	}
	turn := openTurn(storev1.Role_ROLE_USER)
	turn.Modality, turn.Status, turn.Parts = storev1.Modality_MODALITY_TEXT, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE, parts
	f.written()
	f.number(turn)
	f.touch(turn)
}

// addText adds a text of the user, complete at once, in several messages if it is long.
func (f *folder) addText(text string) {
	if f.resultTold(text) || isBlank(text) {
		return
	}
	f.written()
	turn := openTurn(storev1.Role_ROLE_USER)
	turn.Modality = storev1.Modality_MODALITY_TEXT
	f.extend(&turn, text)
	f.finish(turn, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
}

func (f *folder) speechStarts() {
	f.live.TellsSpeech = true
	f.release(false)
	again := f.live.GetReconnected() // it may be of what was said before
	f.speaks()
	switch {
	case f.live.GetAssistantTurn() != nil:
		f.speakOver()
	case f.live.GetAnswered(), !again && !f.live.GetSpeaking() && isWhole(f.live.GetUserTurn().GetText()):
		f.endUtterance()
	}
	f.live.Speaking, f.live.Asking = true, f.live.GetUserTurn() == nil
	f.signal(speechStarted)
}

// played notes how much of the audio of the newest answer was played when the user spoke over it, or when the connection was gone.
// The last report counts. What was played to the end was not spoken over.
func (f *folder) played(ms *int32) {
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
		if m = f.messages[seq]; m == nil && f.stored != nil {
			m = proto.CloneOf(f.stored(seq))
		}
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
func (f *folder) speakOver() {
	if f.live.GetInterrupted() {
		return
	}
	if turn := f.live.GetAssistantTurn(); turn.GetSeq() == 0 && f.live.GetTurnAudio() {
		f.placeAnswer(turn)
	}
	f.live.Interrupted, f.live.Asking = true, true
	f.endUtterance()
}

func (f *folder) speechEnds() {
	f.release(true)
	f.live.TellsSpeech, f.live.Speaking = true, false
	f.live.SpokeSince = false
	f.signal(speechEnded)
}

// endUtterance ends the user's open turn. One that has a place and no words has none any more.
func (f *folder) endUtterance() {
	f.endRetelling()
	turn := f.live.GetUserTurn()
	f.live.UserTurn, f.live.Answered, f.live.LateFrom, f.live.UserFinished = nil, false, 0, false
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

// The model's side.

// modelTurn is the turn of the model, begun if need be.
func (f *folder) modelTurn() *storev1.Message {
	if f.live.GetAssistantTurn() != nil {
		return f.live.GetAssistantTurn()
	}
	f.release(true)
	f.forgetAnswer()
	if f.live.GetAnswered() {
		f.endUtterance()
	}
	f.live.AssistantTurn, f.live.TurnAudioMs, f.live.TurnAudio = openTurn(storev1.Role_ROLE_ASSISTANT), 0, false
	f.live.TurnGoesOn, f.live.AnsweredTools = false, false
	return f.live.GetAssistantTurn()
}

// generate folds what the model generates.
func (f *folder) generate(c *content) {
	f.beginNext()
	f.modelTurn()
	f.live.TurnAudioMs += c.audioMillis()
	f.live.TurnAudio = f.live.GetTurnAudio() || c.hasAudio()
	if c.spoken() {
		f.signal(modelSpoke)
	}
	text := &transcription{Text: cleanString(c.said())}
	f.say(storev1.Modality_MODALITY_TEXT, text.pieces(&f.live.AssistantHalf), text)
	f.sign(c)
	f.say(storev1.Modality_MODALITY_VOICE, c.transcribed(), text)
	f.addCode(c)
	f.callTools(c.calls())
}

// sign notes what the model wants back with its text. With a turn that is spoken, whose text is left out, it is not kept.
func (f *folder) sign(c *content) {
	signature, lost := c.signature()
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

// addCode adds what the model executes itself, and its result, each as a message with that part.
func (f *folder) addCode(c *content) {
	for i := range c.Parts {
		part := &c.Parts[i]
		for name, data := range map[string]jsonObject{"executableCode": part.ExecutableCode, "codeExecutionResult": part.CodeExecutionResult} {
			if data.fields == nil {
				continue
			}
			turn := openTurn(storev1.Role_ROLE_ASSISTANT)
			turn.Modality, turn.Status = storev1.Modality_MODALITY_TEXT, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE
			turn.Parts = []*storev1.Part{{
				Part:             &storev1.Part_Json{Json: structpb.NewStructValue(fieldsOf(map[string]*structpb.Value{name: structpb.NewStructValue(data.fields)}))},
				ThoughtSignature: part.ThoughtSignature.bytes(),
			}}
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
func (f *folder) say(modality storev1.Modality, words string, t *transcription) {
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
			return
		}
		if turn.Modality, turn.Text = modality, ""; modality == storev1.Modality_MODALITY_VOICE {
			turn.ThoughtSignature = nil
		}
		if turn.HeardText != nil { // of words that were not said: how much was heard of these, nobody knows
			turn.HeardText, turn.HeardEstimated = new(""), true
		}
	}
	switch {
	case f.live.GetAnsweredTools() && !isBlank(words) && !midWord(turn.GetText(), words):
		f.live.AnsweredTools = false
		f.nextMessage(&f.live.AssistantTurn)
		words = strings.TrimLeft(words, " ")
	case f.live.GetAssistantFinished() && parts(turn.GetText(), words):
		words = " " + words
	}
	f.extend(&f.live.AssistantTurn, words)
	if turn := f.live.GetAssistantTurn(); turn.GetCreateTime() != nil {
		f.voiceOf(turn, t)
	}
}

// interrupt cuts the model's turn off, which may not have said a word yet. It lasts until turnComplete all the same:
// words that were on their way still belong to it. What was heard of a turn whose words have not come is not known.
func (f *folder) interrupt() {
	f.signal(modelInterrupted)
	if turn := f.lateAnswer(); turn != nil && f.live.GetAssistantTurn() == nil && f.live.GetUserTurn() == nil {
		f.interrupted(turn)
		f.live.Asking = true
		return
	}
	f.interrupted(f.modelTurn())
	f.speakOver()
}

func (f *folder) interrupted(turn *storev1.Message) {
	turn.Status = storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED
	if turn.GetInterruptTime() == nil {
		turn.InterruptTime = f.now
		if turn.HeardText == nil && (turn.GetText() != "" || !f.live.GetTurnAudio()) {
			turn.HeardText, turn.HeardEstimated = new(turn.GetText()), true
		}
	}
	f.touch(turn)
}

func (f *folder) completeTurn(c *serverContent) {
	if f.isOwed() {
		return
	}
	f.signal(turnEnd(string(c.InteractionStatus)))
	f.endedBecause(firstBytes(string(c.TurnCompleteReason), maxName))
	f.endTurn(storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	f.live.OwesEnd, f.live.OwesCut = false, false
	f.live.Asked = f.live.GetAsked() || c.InteractionStatus == "IN_PROGRESS"
}

// endedBecause notes why the provider ended the turn. A turn without words becomes a message then: otherwise nobody would know.
func (f *folder) endedBecause(reason string) {
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
func (f *folder) endTurn(status storev1.MessageStatus) {
	f.release(true)
	turn, over := f.live.GetAssistantTurn(), f.live.GetInterrupted()
	if turn != nil {
		f.endHalf(turn, &f.live.AssistantHalf)
		f.finish(turn, status)
		if turn.GetAudioMs() != f.live.GetTurnAudioMs() {
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
func (f *folder) countUsage(usage *usageMetadata) {
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
	if usage.all.fields != nil {
		turn.Usage = usage.all.fields
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
func (f *folder) describe(c *serverContent) {
	for name, data := range map[string]jsonObject{"groundingMetadata": c.GroundingMetadata, "urlContextMetadata": c.URLContextMetadata} {
		if data.fields == nil {
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
		sources.Fields[name] = structpb.NewStructValue(data.fields)
		turn.Sources = sources
		f.touch(turn)
	}
}

// misunderstood counts what a frame has and nothing can be done with.
func (f *folder) misunderstood() {
	f.unknown++
	f.live.UnknownFrames++
}

// endHalf ends a turn's words: a half of a surrogate pair stays alone.
func (f *folder) endHalf(turn *storev1.Message, half *int32) {
	if *half != 0 && turn.GetCreateTime() != nil {
		turn.Text += "\uFFFD"
		f.touch(turn)
	}
	*half = 0
}

func plausible(tokens tokenCount) bool { return 0 < tokens && tokens <= maxTurnTokens }

// Messages.

// openTurn is a turn that has no words yet, and so is no message: it has no seq.
func openTurn(role storev1.Role) *storev1.Message {
	return &storev1.Message{Role: role, Status: storev1.MessageStatus_MESSAGE_STATUS_STREAMING}
}

// extend adds words to a turn's message, which the first ones make. A message that is full is finished, and another
// takes its place. Blanks do not begin a message.
func (f *folder) extend(turn **storev1.Message, words string) {
	for words != "" && ((*turn).GetText() != "" || !isBlank(words)) {
		n := fit((*turn).GetText(), words, mostText(*turn))
		if n == 0 {
			f.nextMessage(turn)
			continue
		}
		if (*turn).GetCreateTime() == nil {
			f.number(*turn)
		}
		(*turn).Text += words[:n]
		if m := *turn; m == f.live.GetAssistantTurn() && m.PlayedMs != nil && (m.HeardText == nil || m.GetHeardEstimated()) {
			m.HeardText, m.HeardEstimated = new(played(m.GetText(), m.GetPlayedMs(), f.live.GetTurnAudioMs())), true
		}
		f.touch(*turn)
		words = words[n:]
	}
}

func isBlank(words string) bool { return strings.TrimSpace(words) == "" }

// nextMessage lets the turn go on in a message of its own, if it has one yet.
func (f *folder) nextMessage(turn **storev1.Message) {
	if (*turn).GetCreateTime() == nil {
		return
	}
	next := openTurn((*turn).GetRole())
	next.Modality, next.Status = (*turn).GetModality(), (*turn).GetStatus()
	if (*turn).HeardText != nil { // what came before was not all heard, so this was not
		next.HeardText, next.HeardEstimated = new(""), (*turn).GetHeardEstimated()
	}
	f.finish(*turn, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	if *turn == f.live.GetAssistantTurn() {
		f.touch(*turn)
		f.live.TurnAudioMs = 0
	}
	if *turn == f.live.GetAssistantTurn() {
		f.live.TurnGoesOn = true
	}
	*turn = next
}

// number makes a message of a turn, at its place: the conversation's next, unless it has one.
func (f *folder) number(turn *storev1.Message) {
	if turn.GetRole() == storev1.Role_ROLE_ASSISTANT {
		f.placeAnswer(turn)
		f.live.SpokenSeq = turn.GetSeq()
	} else {
		f.placeLast()
		f.place(turn)
	}
	turn.TokenCountEstimated = true
	turn.CreateTime = f.now
}

// finish gives a turn that is still streaming its last status. No turn, and a finished one, stay as they are.
func (f *folder) finish(turn *storev1.Message, status storev1.MessageStatus) {
	if turn.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING {
		turn.Status = status
		f.touch(turn)
	}
}

// touch notes that a message changed. A turn without words is none.
func (f *folder) touch(turn *storev1.Message) {
	if turn.GetCreateTime() == nil {
		return
	}
	if turn == f.live.GetAssistantTurn() {
		turn.AudioMs = f.live.GetTurnAudioMs()
	}
	turn.UpdateTime = f.now
	if f.messages == nil {
		f.messages = map[int64]*storev1.Message{}
	}
	f.messages[turn.GetSeq()] = turn
}

func (f *folder) setTokens(message *storev1.Message, tokens int64) {
	f.state.TokenCount += tokens - message.GetTokenCount()
	message.TokenCount = tokens
}

// mostText is the JSON of the text that a turn's message has room for.
func mostText(turn *storev1.Message) int {
	if turn.GetRole() == storev1.Role_ROLE_ASSISTANT || turn.GetModality() == storev1.Modality_MODALITY_VOICE {
		return maxSpokenText
	}
	return maxTurnText
}

// fit is how many bytes of the words a message of this text has room for.
func fit(text, words string, room int) int {
	for _, r := range text {
		room -= jsonSize(r)
	}
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

// firstBytes is the text's beginning, of at most so many bytes.
func firstBytes(text string, size int) string {
	if len(text) <= size {
		return text
	}
	return strings.ToValidUTF8(text[:size], "")
}

// lastBytes is the text's end, of at most so many bytes.
func lastBytes(text string, size int) string {
	if len(text) <= size {
		return text
	}
	return strings.ToValidUTF8(text[len(text)-size:], "")
}

// The voice turn.

func (f *folder) voice() *storev1.VoiceState {
	if f.state.Voice == nil {
		f.state.Voice = &storev1.VoiceState{}
	}
	return f.state.Voice
}

// signal moves the voice turn as a frame tells.
func (f *folder) signal(signal voiceSignal) {
	voice := f.voice()
	if status := follow(voice.GetStatus(), signal, f.live.GetInterrupted()); status != voice.GetStatus() {
		voice.Status = status
		voice.ChangeTime = f.now
	}
}
