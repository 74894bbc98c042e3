package gemini

import (
	"cmp"
	"encoding/json"
	"errors"
)

// partialArg is a piece of a call's arguments: a value at a path, or the next piece of a text.
type partialArg struct {
	Path   Text            `json:"jsonPath"`
	String *Text           `json:"stringValue"`
	Number json.RawMessage `json:"numberValue"`
	Bool   json.RawMessage `json:"boolValue"`
	Null   json.RawMessage `json:"nullValue"`
}

// Message is one message of the Live API, of either direction: a message says by its fields who sent it. Only what
// the reducer reads is named here. The decoder skips the rest unread.
type Message struct {
	// From the client.
	Setup         *SessionSetup  `json:"setup"`
	ClientContent *ClientContent `json:"clientContent"`
	RealtimeInput *realtimeInput `json:"realtimeInput"`
	ToolResponse  *toolResponse  `json:"toolResponse"`
	ContextUpdate Digest         `json:"contextUpdate"`

	// From the server.
	SetupComplete           *setupComplete        `json:"setupComplete"`
	ServerContent           *ServerContent        `json:"serverContent"`
	ToolCall                *toolCalls            `json:"toolCall"`
	ToolCallCancellation    *toolCallCancellation `json:"toolCallCancellation"`
	UsageMetadata           *UsageMetadata        `json:"usageMetadata"`
	GoAway                  *goAway               `json:"goAway"`
	SessionResumptionUpdate *ResumptionUpdate     `json:"sessionResumptionUpdate"`
	VoiceActivity           *voiceActivity        `json:"voiceActivity"`
	VADSignal               *vadSignal            `json:"voiceActivityDetectionSignal"`
}

// SessionSetup is read for how the session begins. That it has a handle matters, not which.
type SessionSetup struct {
	Model            Text `json:"model"`
	GenerationConfig struct {
		ResponseModalities []Text            `json:"responseModalities"`
		TranslationConfig  translationConfig `json:"translationConfig"`
	} `json:"generationConfig"`
	TranslationConfig translationConfig `json:"translationConfig"`
	SystemInstruction Digest            `json:"systemInstruction"`
	Tools             Digest            `json:"tools"`
	SessionResumption struct {
		Handle presence `json:"handle"`
	} `json:"sessionResumption"`
}

type translationConfig struct {
	Target Text `json:"targetLanguageCode"`
}

// Target is the language that the session translates into; empty: it does not.
func (s *SessionSetup) Target() string {
	return cmp.Or(string(s.TranslationConfig.Target), string(s.GenerationConfig.TranslationConfig.Target))
}

// ClientContent is what a client writes to the model.
type ClientContent struct {
	Turns        []Content `json:"turns"`
	TurnComplete bool      `json:"turnComplete"`
}

type realtimeInput struct {
	Text          Text      `json:"text"`
	ActivityStart *struct{} `json:"activityStart"`
	ActivityEnd   *struct{} `json:"activityEnd"`
}

type toolResponse struct {
	FunctionResponses []FunctionResponse `json:"functionResponses"`
}

// FunctionResponse is the result of a function, or a piece of it.
type FunctionResponse struct {
	ID       Text  `json:"id"`
	Name     Text  `json:"name"`
	Response Value `json:"response"`
	IsError  bool  `json:"-"`
	// SILENT: the model does not speak of it.
	Scheduling Text `json:"scheduling"`
	// More responses to the same call follow.
	WillContinue bool `json:"willContinue"`
}

type goAway struct {
	// As "50s".
	TimeLeft Text `json:"timeLeft"`
}

// ResumptionUpdate is what a session may be resumed with.
type ResumptionUpdate struct {
	// A bearer secret: parseBatch seals it and forgets it.
	NewHandle    secretString `json:"newHandle"`
	Resumable    bool         `json:"resumable"`
	LastConsumed Count        `json:"lastConsumedClientMessageIndex"`
	Sealed       []byte       `json:"-"`
}

type setupComplete struct {
	SessionID Text `json:"sessionId"`
}

// ServerContent is what the model says, and what the user was heard to say.
type ServerContent struct {
	ModelTurn                 *Content      `json:"modelTurn"`
	InputTranscription        Transcription `json:"inputTranscription"`
	InterimInputTranscription Transcription `json:"interimInputTranscription"`
	OutputTranscription       Transcription `json:"outputTranscription"`
	Interrupted               bool          `json:"interrupted"`
	GenerationComplete        bool          `json:"generationComplete"`
	TurnComplete              bool          `json:"turnComplete"`
	TurnCompleteReason        Text          `json:"turnCompleteReason"`
	InteractionStatus         Text          `json:"interactionStatus"`
	WaitingForInput           bool          `json:"waitingForInput"`
	GroundingMetadata         Object        `json:"groundingMetadata"`
	URLContextMetadata        Object        `json:"urlContextMetadata"`
}

// Transcription is a piece of what was said. Finished says that it is whole segment; most providers do not send it, so nothing may
// wait for it.
type Transcription struct {
	Text     Text `json:"text"`
	Finished bool `json:"finished"`
	Language Text `json:"languageCode"`
	Speaker  Text `json:"speakerLabel"`
	// Where it is in the audio of the connection.
	Start Offset `json:"startOffset"`
	End   Offset `json:"endOffset"`
}

type toolCalls struct {
	FunctionCalls []FunctionCall `json:"functionCalls"`
}

// FunctionCall asks for the execution of a function.
type FunctionCall struct {
	ID   Text   `json:"id"`
	Name Text   `json:"name"`
	Args Object `json:"args"`
	// A call whose arguments come in pieces: more follow.
	PartialArgs  []partialArg `json:"partialArgs"`
	WillContinue bool         `json:"willContinue"`
	Signature    []byte       `json:"-"`
}

type toolCallCancellation struct {
	IDs []Text `json:"ids"`
}

// UsageMetadata is the provider's count of a turn.
type UsageMetadata struct {
	ResponseTokenCount Count  `json:"responseTokenCount"`
	TotalTokenCount    Count  `json:"totalTokenCount"`
	All                Object `json:"-"`
}

// UnmarshalJSON implements [json.Unmarshaler].
func (u *UsageMetadata) UnmarshalJSON(raw []byte) error {
	type plain UsageMetadata
	err := json.Unmarshal(raw, (*plain)(u))
	return errors.Join(err, u.All.UnmarshalJSON(raw))
}

type voiceActivity struct {
	Type   Text   `json:"voiceActivityType"`
	Offset Offset `json:"audioOffset"`
}

type vadSignal struct {
	Type Text `json:"vadSignalType"`
}

// SpeechStarts reports whether the frame marks the start of the user's speech, in any of the ways to say so.
func (f *Message) SpeechStarts() bool {
	return f.VoiceActivity != nil && f.VoiceActivity.Type == "ACTIVITY_START" ||
		f.VADSignal != nil && f.VADSignal.Type == "VAD_SIGNAL_TYPE_SOS" ||
		f.RealtimeInput != nil && f.RealtimeInput.ActivityStart != nil
}

// SpeechEnds reports whether the frame marks the end of the user's speech.
func (f *Message) SpeechEnds() bool {
	return f.VoiceActivity != nil && f.VoiceActivity.Type == "ACTIVITY_END" ||
		f.VADSignal != nil && f.VADSignal.Type == "VAD_SIGNAL_TYPE_EOS" ||
		f.RealtimeInput != nil && f.RealtimeInput.ActivityEnd != nil
}

// Fleeting reports whether the frame has nothing that must be stored by itself: words that may still change, signs of
// speech, or audio.
func (f *Message) Fleeting() bool {
	rest := *f
	if c := rest.ServerContent; c != nil {
		left := *c
		left.InterimInputTranscription = Transcription{}
		if left.ModelTurn != nil && left.ModelTurn.onlyAudio() {
			left.ModelTurn = nil
		}
		if left != (ServerContent{}) {
			return false
		}
		rest.ServerContent = nil
	}
	if r := rest.RealtimeInput; r != nil && r.Text == "" {
		rest.RealtimeInput = nil
	}
	rest.VoiceActivity, rest.VADSignal = nil, nil
	return rest == Message{}
}

// ByUser reports whether the frame shows that the user did something: speech, words, or the result of a tool. That a microphone is on
// shows nothing.
func (f *Message) ByUser() bool {
	c, r := f.ServerContent, f.RealtimeInput
	return f.SpeechStarts() || f.SpeechEnds() || f.ClientContent != nil || f.ToolResponse != nil || r != nil && r.Text != "" ||
		c != nil && (c.InputTranscription.Text != "" || c.InterimInputTranscription.Text != "")
}

// Pieces is a piece of what is said, with the half of a surrogate pair that the piece before ended with; half is that with which this
// one ends.
func (t *Transcription) Pieces(half *int32) string { return join(string(t.Text), half) }

// AudioOffset is where in the audio the speech that it tells of starts or ends.
func (f *Message) AudioOffset() Offset {
	if f.VoiceActivity == nil {
		return Offset{}
	}
	return f.VoiceActivity.Offset
}
