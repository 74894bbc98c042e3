package voice

import (
	"fmt"
	"strings"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// Rule is why a frame changed the transcript. testdata/rules has an example of each.
type Rule string

// The rules, in groups: frames that mean what they say, the order, where turns end, said or told twice, tool calls, the rest.
const (
	UserWords   Rule = "user-words"
	Typed       Rule = "typed"
	Answer      Rule = "answer"
	SpeechStart Rule = "speech-starts"
	SpeechEnd   Rule = "speech-ends"
	Interrupt   Rule = "interrupted"
	Generated   Rule = "generated"
	TurnEnd     Rule = "turn-complete"
	Call        Rule = "call"
	CallResult  Rule = "call-answered"
	CallCancel  Rule = "call-cancelled"
	Described   Rule = "described"
	Connection  Rule = "connection"

	QuestionPlace Rule = "question-keeps-a-place"
	QuestionFirst Rule = "question-goes-first"
	AnswerPlace   Rule = "answer-keeps-a-place"
	NoWords       Rule = "place-without-words"
	AfterResult   Rule = "after-a-result"

	SpokeAgain   Rule = "speech-starts-again"
	AskedAgain   Rule = "asked-again"
	BeginsAgain  Rule = "answer-begins-again"
	LateEnd      Rule = "late-turn-complete"
	HeardOnly    Rule = "transcription-alone"
	EndReason    Rule = "end-reason"
	Silence      Rule = "silence"
	MessageFull  Rule = "message-is-full"
	PartedLate   Rule = "parted-from-a-question"
	LateAnswer   Rule = "late-answer"
	LateQuestion Rule = "late-question"

	ToldAgain    Rule = "told-again"
	NotToldAgain Rule = "said-again"
	RepeatedAll  Rule = "transcribed-twice"
	TextOfSpeech Rule = "text-of-speech"
	KnownSeed    Rule = "known-history"

	CallAgain      Rule = "call-again"
	CallOfSameID   Rule = "call-id-used-again"
	CallInPieces   Rule = "call-in-pieces"
	CallOrphan     Rule = "call-orphaned"
	CallResultText Rule = "result-told-as-text"

	NotUnderstood Rule = "not-understood"
)

// why says for each rule what it means.
var why = map[Rule]string{
	UserWords:   "the provider transcribed words of the user",
	Typed:       "the user wrote, which is whole at once",
	Answer:      "the model generated it, or the provider transcribed it",
	SpeechStart: "the user was heard to begin to speak",
	SpeechEnd:   "the user was heard to stop",
	Interrupt:   "the user spoke over the answer: what comes of it yet still belongs to it, and the user's next words are a new utterance",
	Generated:   "all of the answer was sent; it stays open for late words until turnComplete or the next turn",
	TurnEnd:     "turnComplete ends the answer and the utterance that it answered",
	Call:        "the model called a tool; its place is behind the newest message",
	CallResult:  "the model was told the result",
	CallCancel:  "the provider withdrew the call",
	Described:   "the provider said something of the answer: tokens, sources, a language",
	Connection:  "the connection is gone: its answer is cut off, and an utterance may go on in the next one",

	QuestionPlace: "an answer begins, and its question was heard but not transcribed: the question gets the place before it",
	QuestionFirst: "these are the first words of the question of the answer that is being given: they take its place",
	AnswerPlace:   "the user speaks over an answer whose words have not come: it gets the place before what the user says now",
	NoWords:       "no words came for this place: it stays a gap",
	AfterResult:   "what is said after a tool's result is a message of its own",

	SpokeAgain:   "speech begins again after a whole utterance: the next words are another",
	AskedAgain:   "the question was whole and the answer generated: these words are another question",
	BeginsAgain:  "the model begins again after an answer that was generated or cut off: the turn before ends without its turnComplete",
	LateEnd:      "this turnComplete belongs to a turn that ended before",
	HeardOnly:    "a generation was complete without an answer, as with models that only transcribe: the utterance ends",
	EndReason:    "the provider ended the turn for a reason",
	Silence:      "nothing came for a while: what is open ends",
	MessageFull:  "the message is as long as one may be: the turn goes on in the next",
	PartedLate:   "the model began another answer, so the words that came after its generation were another question",
	LateAnswer:   "audio came for the last answer and none since, so these words belong to it",
	LateQuestion: "the last utterance has no end and the user has not spoken since, so these words belong to it",

	ToldAgain:    "on a new connection, or unheard, the provider transcribes again what it was told again: held back until something differs",
	NotToldAgain: "the words that were held back are new after all",
	RepeatedAll:  "all of the open utterance once more, in the middle of its answer and with nobody heard: transcribed twice",
	TextOfSpeech: "a turn that is spoken is known by its transcription: text next to it is left out",
	KnownSeed:    "the client tells a new session what the conversation has already",

	CallAgain:      "the same call on a later connection of its session: it is that connection's now",
	CallOfSameID:   "the provider gave the id to another call: the one before can have no result",
	CallInPieces:   "the arguments come in pieces: the call is made when they are whole",
	CallOrphan:     "the connection that issued the call is gone",
	CallResultText: "the connection that issued the call is gone: its result is told as text",

	NotUnderstood: "it has something that is not known here, or that belongs to nothing: counted in unknown_frames",
}

// Why says what the rule means.
func (r Rule) Why() string { return why[r] }

// Effect is one thing that a frame did, and the rule by which it did so.
type Effect struct {
	// Frame is the client index of the frame, and Connection its connection.
	Frame, Connection int64
	Rule              Rule
	// Change is what happened, such as "begins", to a message or a call; its seq is 0 where it has no place yet.
	Change string
	Role   storev1.Role // of the message; unspecified: it is a call, or neither
	Seq    int64
	// Text is the words that were added or left out, or a call's name.
	Text string
}

// String implements [fmt.Stringer], as `message 3 user: words "Hi"`.
func (e Effect) String() string {
	thing := ""
	switch {
	case e.Role != storev1.Role_ROLE_UNSPECIFIED && e.Seq != 0:
		thing = fmt.Sprintf("message %d %s: ", e.Seq, word(e.Role))
	case e.Role != storev1.Role_ROLE_UNSPECIFIED:
		thing = word(e.Role) + ": "
	case e.Seq != 0:
		thing = fmt.Sprintf("call %d: ", e.Seq)
	}
	if e.Text != "" {
		return fmt.Sprintf("%s%s %q", thing, e.Change, e.Text)
	}
	return thing + e.Change
}

// by sets the rule by which the changes that follow are made.
func (f *Reducer) by(rule Rule) { f.rule = rule }

// tell reports what happened to a turn; nil: to none.
func (f *Reducer) tell(turn *storev1.Message, change, text string) {
	if f.report != nil {
		f.report(Effect{
			Frame: f.live.GetLastClientIndex(), Connection: f.live.GetEpoch(), Rule: f.rule, Change: change, Role: turn.GetRole(), Seq: turn.GetSeq(), Text: text,
		})
	}
}

// tellCall reports what happened to a call.
func (f *Reducer) tellCall(call *storev1.ToolCall, change string) {
	if f.report != nil {
		f.report(Effect{
			Frame: f.live.GetLastClientIndex(), Connection: f.live.GetEpoch(), Rule: f.rule, Change: change, Seq: call.GetSeq(), Text: call.GetName(),
		})
	}
}

// tellStatus reports the status of a turn.
func (f *Reducer) tellStatus(turn *storev1.Message) {
	if f.report != nil {
		f.tell(turn, word(turn.GetStatus()), "")
	}
}

// note reports what happened to a turn by a rule of its own.
func (f *Reducer) note(rule Rule, turn *storev1.Message, change, text string) {
	f.under(rule, func() { f.tell(turn, change, text) })
}

// under does something by a rule of its own.
func (f *Reducer) under(rule Rule, do func()) {
	before := f.rule
	f.rule = rule
	do()
	f.rule = before
}

// word makes "assistant" of ROLE_ASSISTANT.
func word(value fmt.Stringer) string {
	name := value.String()
	for _, prefix := range []string{"ROLE_", "MESSAGE_STATUS_", "TOOL_CALL_STATUS_", "VOICE_STATUS_"} {
		name = strings.TrimPrefix(name, prefix)
	}
	return strings.ToLower(name)
}
