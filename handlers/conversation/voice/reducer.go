package voice

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

const (
	// Only the end of a longer transcription is shown.
	maxTranscription = 4 << 10
	// A provider's count above it is no count.
	maxTurnTokens = 10_000_000
)

// Effects is what a batch of frames did besides changing the state.
type Effects struct {
	// The messages made or changed, by seq, and the tool calls made or changed, in the order of their first change: as
	// they stand now. They share nothing with the state.
	Messages  []*storev1.Message
	ToolCalls []*storev1.ToolCall
	// Frames that were folded before. All of them: the batch changed nothing.
	Skipped int32
	// Frames, or messages in them, that were not understood.
	Unknown int32
	// Numbers of frames that were left out.
	Missing int32
}

// Stored looks up what a conversation has besides its state; each returns nil where there is none.
type Stored interface {
	Message(seq int64) *storev1.Message
	// Call is the newest tool call that has an id in a live session.
	Call(session int64, id string) *storev1.ToolCall
}

// nothing is stored.
type nothing struct{}

func (nothing) Message(int64) *storev1.Message       { return nil }
func (nothing) Call(int64, string) *storev1.ToolCall { return nil }

// Ingest folds a batch of frames of the newest connection into the state, and reports what it did. A batch that is refused changes
// nothing.
func (f *Reducer) Ingest(batch Batch, playedMs *int32) (Effects, error) {
	if err := batch.CheckIndexes("frames", f.live.GetLastClientIndex()); err != nil {
		return Effects{}, err
	}
	before := f.live.GetLastClientIndex()
	skipped, unknown := f.FoldBatch(batch)
	f.played(playedMs)
	f.claimIssued()
	effects := f.Effects()
	effects.Skipped, effects.Unknown = skipped, unknown
	folded := int64(len(batch.Frames)) - int64(skipped)
	effects.Missing = int32(f.live.GetLastClientIndex() - before - folded) //nolint:gosec // checkIndexes bounds it
	return effects, nil
}

// FoldBatch folds a batch of the newest connection. It is pure: the same frames in one batch or in many lead to the same state and
// messages.
func (f *Reducer) FoldBatch(batch Batch) (skipped, unknown int32) {
	for i := range batch.Frames {
		frame := &batch.Frames[i]
		if frame.Index <= f.live.GetLastClientIndex() {
			skipped++
			continue
		}
		f.live.LastClientIndex = frame.Index
		f.live.FrameTime = f.now
		f.live.UnknownFrames += int64(frame.unknown)
		unknown += int32(frame.unknown) //nolint:gosec // a request is bounded
		if frame.unknown > 0 {
			f.note(NotUnderstood, nil, "counted", "")
		}
		for j := range frame.messages {
			f.fold(&frame.messages[j])
		}
	}
	return skipped, unknown + f.unknown
}

// Reducer folds the messages of the Live API into a state, one by one. doc.go has its rules.
type Reducer struct {
	state  *storev1.ConversationState
	live   *storev1.LiveState
	now    *timestamppb.Timestamp
	stored Stored
	// What was made or changed, by seq.
	messages  map[int64]*storev1.Message
	toolCalls map[int64]*storev1.ToolCall
	callOrder []int64
	// unknown counts what was not understood while folding.
	unknown int32
	// token is that of the claims of this change; 0: it has made none.
	token int64
	// cut is the answer that the frames of this change cut off last, and cutFrom its first message, as turn_from.
	cut     *storev1.Message
	cutFrom int64
	// rule is why what happens now happens; report is told of it, and nil as a rule.
	rule   Rule
	report func(Effect)
}

// New returns a reducer over a state, which it changes; stored may be nil.
func New(state *storev1.ConversationState, now time.Time, stored Stored) *Reducer {
	if stored == nil {
		stored = nothing{}
	}
	if state.Live == nil {
		state.Live = &storev1.LiveState{}
	}
	return &Reducer{state: state, live: state.Live, now: timestamppb.New(now), stored: stored}
}

// Effects settles the token counts and returns what changed.
func (f *Reducer) Effects() Effects {
	var e Effects
	for _, seq := range slices.Sorted(maps.Keys(f.messages)) {
		message := f.messages[seq]
		tokens := measure(message).GetTokens() + gemini.PartTokens(message.GetParts())
		if message.GetTokenCountEstimated() {
			f.setTokens(message, tokens)
		}
		entry := proto.CloneOf(message)
		entry.Meter = nil
		e.Messages = append(e.Messages, entry)
	}
	for _, seq := range f.callOrder {
		e.ToolCalls = append(e.ToolCalls, proto.CloneOf(f.toolCalls[seq]))
	}
	return e
}

// fold folds one message of the Live API. It may have several fields; what ends a turn comes last.
func (f *Reducer) fold(m *gemini.Message) {
	f.by(Connection)
	f.foldSession(m)
	f.foldClient(m)
	if m.SpeechStarts() {
		f.by(SpeechStart)
		f.speechStarts(m.AudioOffset())
	}
	if m.SpeechEnds() {
		f.by(SpeechEnd)
		f.speechEnds(m.AudioOffset())
	}
	if m.ServerContent != nil {
		f.foldContent(m.ServerContent)
	}
	if m.ToolCall != nil {
		f.callTools(m.ToolCall.FunctionCalls)
	}
	if m.ToolCallCancellation != nil {
		f.by(CallCancel)
		f.cancelTools(m.ToolCallCancellation.IDs)
	}
	if m.UsageMetadata != nil {
		f.by(Described)
		f.countUsage(m.UsageMetadata)
	}
	if m.ServerContent != nil {
		f.foldTurnEnd(m.ServerContent)
	}
}

func (f *Reducer) foldClient(m *gemini.Message) {
	if m.ClientContent != nil {
		f.addTurns(m.ClientContent)
	}
	if m.RealtimeInput != nil && m.RealtimeInput.Text != "" {
		f.addText(m.RealtimeInput.Text.Whole())
	}
	if m.ToolResponse != nil {
		for _, response := range m.ToolResponse.FunctionResponses {
			f.answerCall(response)
		}
	}
}

func (f *Reducer) foldContent(c *gemini.ServerContent) {
	if c.Interrupted {
		f.by(Interrupt)
		f.interrupt()
	}
	f.by(UserWords)
	f.hear(&c.InputTranscription)
	f.overhear(c.InterimInputTranscription.Text.Whole())
	f.by(Answer)
	if c.ModelTurn != nil {
		f.generate(c.ModelTurn)
	}
	if t := &c.OutputTranscription; t.Text != "" {
		f.live.Says = true
		f.say(storev1.Modality_MODALITY_VOICE, t.Pieces(&f.live.AssistantHalf), t)
		f.live.AssistantFinished = t.Finished
	}
	f.by(Described)
	f.describe(c)
}

func (f *Reducer) foldTurnEnd(c *gemini.ServerContent) {
	if c.GenerationComplete {
		f.by(Generated)
		f.generated()
	}
	f.by(TurnEnd)
	if c.TurnComplete {
		f.completeTurn(c)
	}
	if c.WaitingForInput {
		f.signal(modelWaits)
	}
}

// message is the newest state of a message; nil: there is none.
func (f *Reducer) message(seq int64) *storev1.Message {
	if m := f.messages[seq]; m != nil {
		return m
	}
	return f.stored.Message(seq)
}

// change returns a message to be changed, or nil.
func (f *Reducer) change(seq int64) *storev1.Message {
	if m := f.messages[seq]; m != nil {
		return m
	}
	return proto.CloneOf(f.stored.Message(seq))
}

// misunderstood counts what a frame has and nothing can be done with.
func (f *Reducer) misunderstood() {
	f.unknown++
	f.live.UnknownFrames++
	f.note(NotUnderstood, nil, "counted", "")
}

// The voice turn.

func (f *Reducer) voice() *storev1.VoiceState {
	if f.state.Voice == nil {
		f.state.Voice = &storev1.VoiceState{}
	}
	return f.state.Voice
}

// signal moves the voice turn as a frame tells.
func (f *Reducer) signal(signal voiceSignal) {
	voice := f.voice()
	if status := follow(voice.GetStatus(), signal, f.live.GetInterrupted()); status != voice.GetStatus() {
		voice.Status = status
		voice.ChangeTime = f.now
		if f.report != nil {
			f.tell(nil, "voice "+word(status), "")
		}
	}
}
