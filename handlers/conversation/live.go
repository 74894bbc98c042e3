package conversation

import (
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// The bounds of what the reducer keeps in the state, which is one small document. Together they leave room for the rest.
const (
	// The JSON of an open message's text; words beyond it go into a new message. Below the limit of a message's text.
	maxTurnText = 60 << 10
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
}

// findCall looks up a tool call that does not wait for anything, by its live session and id; nil: there is none.
type findCall func(session int64, callID string) *storev1.ToolCall

// ingest folds a batch of frames of the newest connection into the state, and reports what it did. A batch that fence refuses changes
// nothing.
func (f *folder) ingest(w writer, batch liveBatch, playedMs *int32) (liveEffects, error) {
	if err := fence(f.state, w); err != nil {
		return liveEffects{}, err
	}
	if err := batch.checkIndexes(f.live.GetLastClientIndex()); err != nil {
		return liveEffects{}, err
	}
	skipped, unknown := f.foldBatch(batch)
	f.played(playedMs)
	f.claimIssued()
	effects := f.effects()
	effects.skipped, effects.unknown = skipped, unknown
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
	return skipped, unknown
}

// folder folds the messages of the Live API into a state, one by one.
//
// A turn of the model lasts from its first output to turnComplete. live.assistant_turn is set all that time: before the
// first words it has no seq, and is no message yet. live.user_turn is the utterance that the model answers, or is about
// to. Transcriptions come late and in no order with the rest, so that utterance stays open until the answer's
// turnComplete, unless the user speaks over the model: then what was heard so far is the utterance being answered, and
// what comes from now on is a new one, which outlives that turnComplete. live.interrupted is true meanwhile.
//
//	user_turn       |== Can you look? =|·late·|        |== No, the other. =========|
//	assistant_turn                 |== Sure. It is abou|t to·|           |== Understood. =|
//	                               first output        |     |turnComplete
//	                                                   |interrupted, or the start of speech
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
			f.setTokens(message, estimateTokens(message.GetText()))
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
		f.addText(string(m.RealtimeInput.Text))
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
	f.hear(string(c.InputTranscription.Text))
	f.overhear(string(c.InterimInputTranscription.Text))
	if c.ModelTurn != nil {
		f.generate(c.ModelTurn)
	}
	f.say(storev1.Modality_MODALITY_VOICE, string(c.OutputTranscription.Text))
}

func (f *folder) foldTurnEnd(c *serverContent) {
	if c.GenerationComplete {
		f.finish(f.live.GetAssistantTurn(), storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
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
func (f *folder) hear(words string) {
	if words == "" {
		return
	}
	news := f.news(words)
	f.live.SpokeSince = false
	f.addHeard(news)
}

func (f *folder) addHeard(words string) {
	if words == "" || isBlank(words) && f.live.GetUserTurn() == nil {
		return
	}
	if f.live.GetUserTurn() == nil {
		f.live.UserTurn = openTurn(storev1.Role_ROLE_USER)
		f.live.UserTurn.Modality = storev1.Modality_MODALITY_VOICE
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

// addTurns adds what the user wrote. What a client tells a new session of what was said before is not news: it is known by turns
// of the model among it.
func (f *folder) addTurns(c *clientContent) {
	if slices.ContainsFunc(c.Turns, func(turn content) bool { return turn.Role == "model" }) {
		return
	}
	for i := range c.Turns {
		f.addText(c.Turns[i].text())
	}
}

// addText adds a text of the user, complete at once, in several messages if it is long.
func (f *folder) addText(text string) {
	if f.resultTold(text) {
		return
	}
	turn := openTurn(storev1.Role_ROLE_USER)
	turn.Modality = storev1.Modality_MODALITY_TEXT
	f.extend(&turn, text)
	f.finish(turn, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
}

func (f *folder) speechStarts() {
	f.live.TellsSpeech = true
	f.speaks()
	if f.live.GetAssistantTurn() != nil {
		f.speakOver()
	}
	f.signal(speechStarted)
}

// played notes how much of the audio of the newest answer was played when the user spoke over it, or when the connection was gone.
// The last report counts. What was played to the end was not spoken over.
func (f *folder) played(ms *int32) {
	seq, turn := f.live.GetSpokenSeq(), f.live.GetAssistantTurn()
	if ms == nil || seq == 0 || turn != nil && turn.GetSeq() == 0 {
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

// speakOver notes that the user speaks over the model's turn.
func (f *folder) speakOver() {
	if f.live.GetInterrupted() {
		return
	}
	f.live.Interrupted = true
	f.endUtterance()
}

func (f *folder) speechEnds() {
	f.live.TellsSpeech = true
	f.live.SpokeSince = false
	f.startRetelling()
	f.signal(speechEnded)
}

func (f *folder) endUtterance() {
	f.endRetelling()
	turn := f.live.GetUserTurn()
	if turn == nil {
		return
	}
	f.finish(turn, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	f.live.UserTurn, f.live.LastUtterance = nil, ""
	if len(turn.GetText()) <= maxUtterance {
		f.live.LastUtterance = turn.GetText()
	}
	if f.live.GetTellsSpeech() && !f.live.GetSpokeSince() {
		f.startRetelling()
	}
}

// The model's side.

// modelTurn is the turn of the model, begun if need be.
func (f *folder) modelTurn() *storev1.Message {
	if f.live.GetAssistantTurn() == nil {
		f.live.AssistantTurn, f.live.TurnAudioMs = openTurn(storev1.Role_ROLE_ASSISTANT), 0
	}
	return f.live.GetAssistantTurn()
}

// generate folds what the model generates.
func (f *folder) generate(c *content) {
	// A finished generation does not go on after the user spoke: this is the next, and a turnComplete was lost.
	turn := f.live.GetAssistantTurn()
	if f.live.GetInterrupted() && turn.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_COMPLETE {
		f.endTurn(storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	}
	f.modelTurn()
	f.live.TurnAudioMs += c.audioMillis()
	if c.spoken() {
		f.signal(modelSpoke)
	}
	f.say(storev1.Modality_MODALITY_TEXT, c.text())
}

// say adds words of the model. A turn that is spoken is known by its transcription, and text beside it is left out, in
// whichever order they come.
func (f *folder) say(modality storev1.Modality, words string) {
	if words == "" {
		return
	}
	turn := f.modelTurn()
	f.signal(modelSpoke)
	if turn.GetModality() != modality {
		if isBlank(words) || turn.GetModality() == storev1.Modality_MODALITY_VOICE {
			return
		}
		turn.Modality, turn.Text = modality, ""
		if turn.HeardText != nil { // of words that were not said: how much was heard of these, nobody knows
			turn.HeardText, turn.HeardEstimated = new(""), true
		}
	}
	if f.live.GetCalledTools() && joins(turn.GetText(), words) {
		words = " " + words
	}
	f.live.CalledTools = false
	f.extend(&f.live.AssistantTurn, words)
}

// joins tells whether words that begin anew would be taken for one with the last of a text: the provider puts a space between
// words, but not in front of what it says after a tool call ("… for it." and "The run is …"). Scripts that write words
// without spaces have none here either.
func joins(text, words string) bool {
	last, _ := utf8.DecodeLastRuneInString(text)
	first, _ := utf8.DecodeRuneInString(words)
	return text != "" && !unicode.IsSpace(last) && (unicode.IsLetter(first) || unicode.IsDigit(first)) &&
		!unicode.In(first, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar)
}

// interrupt cuts the model's turn off, which may not have said a word yet. It lasts until turnComplete all the same:
// words that were on their way still belong to it.
func (f *folder) interrupt() {
	turn := f.modelTurn()
	turn.Status = storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED
	if turn.HeardText == nil {
		turn.HeardText, turn.HeardEstimated, turn.InterruptTime = new(turn.GetText()), true, f.now
	}
	f.touch(turn)
	f.speakOver()
	f.signal(modelInterrupted)
}

func (f *folder) completeTurn(c *serverContent) {
	f.signal(turnEnd(string(c.InteractionStatus)))
	reason := firstBytes(string(c.TurnCompleteReason), maxName)
	if turn := f.live.GetAssistantTurn(); turn != nil && reason != "" && reason != "TURN_COMPLETE_REASON_UNSPECIFIED" {
		turn.TurnCompleteReason = reason
		f.touch(turn)
	}
	f.endTurn(storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
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
	f.finish(f.live.GetAssistantTurn(), status)
	if turn := f.live.GetAssistantTurn(); turn.GetSeq() != 0 && turn.GetAudioMs() != f.live.GetTurnAudioMs() {
		f.touch(turn)
	}
	f.live.AssistantTurn, f.live.TurnAudioMs, f.live.CalledTools = nil, 0, false
	if !f.live.GetInterrupted() {
		f.endUtterance()
	}
	f.live.Interrupted = false
}

// countUsage adds the provider's count of the turn: total_tokens is the sum of totalTokenCount over all turns, each of
// which counts its whole context anew, and the model's message has the tokens of the response.
func (f *folder) countUsage(usage *usageMetadata) {
	if plausible(usage.TotalTokenCount) {
		f.live.TotalTokens += int64(usage.TotalTokenCount)
	}
	turn := f.live.GetAssistantTurn()
	if turn.GetSeq() == 0 || !plausible(usage.ResponseTokenCount) {
		return
	}
	f.setTokens(turn, int64(usage.ResponseTokenCount))
	turn.TokenCountEstimated = false
	f.touch(turn)
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
		n := fit((*turn).GetText(), words)
		if n == 0 {
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
			*turn = next
			continue
		}
		if (*turn).GetSeq() == 0 {
			f.number(*turn)
		}
		(*turn).Text += words[:n]
		f.touch(*turn)
		words = words[n:]
	}
}

func isBlank(words string) bool { return strings.TrimSpace(words) == "" }

// number makes a message of a turn: the conversation's next.
func (f *folder) number(turn *storev1.Message) {
	f.state.LastSeq++
	turn.Seq = f.state.GetLastSeq()
	turn.TokenCountEstimated = true
	turn.CreateTime = f.now
	if turn.GetRole() == storev1.Role_ROLE_ASSISTANT {
		f.live.SpokenSeq = turn.GetSeq()
	}
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
	if turn.GetSeq() == 0 {
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

// fit is how many bytes of the words a message of this text has room for.
func fit(text, words string) int {
	room := maxTurnText
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
