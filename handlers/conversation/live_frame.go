package conversation

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/problem"
	"holdfast/jsonpb"
)

const (
	// Readers in other languages give up on deeper documents.
	maxObjectDepth = 64
	// The JSON of one tool call's arguments or response: both, and some more, fit into an entry.
	maxObjectBytes = 64 << 10
)

// liveFrame is one message of the Live API, of either direction: a message says by its fields who sent it. Only what
// the reducer reads is named here. The decoder skips the rest unread.
type liveFrame struct {
	// From the client.
	Setup         *sessionSetup  `json:"setup"`
	ClientContent *clientContent `json:"clientContent"`
	RealtimeInput *realtimeInput `json:"realtimeInput"`
	ToolResponse  *toolResponse  `json:"toolResponse"`
	ContextUpdate *struct{}      `json:"contextUpdate"`

	// From the server.
	SetupComplete           *setupComplete        `json:"setupComplete"`
	ServerContent           *serverContent        `json:"serverContent"`
	ToolCall                *toolCalls            `json:"toolCall"`
	ToolCallCancellation    *toolCallCancellation `json:"toolCallCancellation"`
	UsageMetadata           *usageMetadata        `json:"usageMetadata"`
	GoAway                  *goAway               `json:"goAway"`
	SessionResumptionUpdate *resumptionUpdate     `json:"sessionResumptionUpdate"`
	VoiceActivity           *voiceActivity        `json:"voiceActivity"`
	VADSignal               *vadSignal            `json:"voiceActivityDetectionSignal"`
}

// sessionSetup is read for how the session begins. That it has a handle matters, not which.
type sessionSetup struct {
	SessionResumption struct {
		Handle presence `json:"handle"`
	} `json:"sessionResumption"`
}

type clientContent struct {
	Turns        []content `json:"turns"`
	TurnComplete bool      `json:"turnComplete"`
}

type content struct {
	Role  cleanString   `json:"role"`
	Parts []contentPart `json:"parts"`
}

type contentPart struct {
	Text       cleanString `json:"text"`
	Thought    bool        `json:"thought"`
	InlineData struct {
		MIMEType cleanString `json:"mimeType"`
		Data     inlineData  `json:"data"`
	} `json:"inlineData"`
	FileData struct {
		MIMEType cleanString `json:"mimeType"`
		URI      cleanString `json:"fileUri"`
		Name     cleanString `json:"displayName"`
	} `json:"fileData"`
	FunctionCall        *functionCall  `json:"functionCall"`
	ExecutableCode      jsonObject     `json:"executableCode"`
	CodeExecutionResult jsonObject     `json:"codeExecutionResult"`
	AudioTranscription  *transcription `json:"audioTranscription"`
	ThoughtSignature    inlineData     `json:"thoughtSignature"`
}

// media reports whether a part is a file or has data.
func (p *contentPart) media() bool { return p.InlineData.Data.size > 0 || p.FileData.URI != "" }

// text is what the content says; the model's thoughts are not said.
func (c *content) text() string { return cleanString(c.said()).whole() }

// said is text, as it came.
func (c *content) said() string {
	var b strings.Builder
	for i := range c.Parts {
		if !c.Parts[i].Thought {
			b.WriteString(string(c.Parts[i].Text))
		}
	}
	return b.String()
}

// transcribed is what transcriptions among the parts say.
func (c *content) transcribed() string {
	var b strings.Builder
	for i := range c.Parts {
		if t := c.Parts[i].AudioTranscription; t != nil {
			b.WriteString(t.Text.whole())
		}
	}
	return b.String()
}

// calls are the function calls among the parts.
func (c *content) calls() (calls []functionCall) {
	for i := range c.Parts {
		if call := c.Parts[i].FunctionCall; call != nil {
			call.signature = c.Parts[i].ThoughtSignature.bytes()
			calls = append(calls, *call)
		}
	}
	return calls
}

// maxSignature is the bytes of a text's thought signature that is kept: it is in the state while the turn is open.
const maxSignature = 8 << 10

// signature is the newest thought signature of the text, and how many cannot be kept, because they are too long, or of audio, which
// is not kept either.
func (c *content) signature() (signature []byte, lost int) {
	for i := range c.Parts {
		p := &c.Parts[i]
		if p.ThoughtSignature.size == 0 || p.FunctionCall != nil || p.ExecutableCode.fields != nil || p.CodeExecutionResult.fields != nil {
			continue
		}
		if s := p.ThoughtSignature.bytes(); len(s) > 0 && len(s) <= maxSignature && !p.media() {
			signature = s
		} else {
			lost++
		}
	}
	return signature, lost
}

// maxInlineData is how much data of one part is kept.
const maxInlineData = 256 << 10

// stored are the parts of what a user wrote; nil: there is only text.
func (c *content) stored() (list []*storev1.Part) {
	if !slices.ContainsFunc(c.Parts, func(p contentPart) bool { return p.media() }) {
		return nil
	}
	left := maxInlineData
	for i := range c.Parts {
		p := &c.Parts[i]
		mime := firstBytes(string(p.InlineData.MIMEType), maxName)
		switch {
		case p.FileData.URI != "":
			list = append(list, &storev1.Part{Part: &storev1.Part_File{File: &storev1.FileRef{
				Uri: firstBytes(string(p.FileData.URI), maxURI), MimeType: firstBytes(string(p.FileData.MIMEType), maxName), Name: firstBytes(string(p.FileData.Name), maxName),
			}}})
		case p.InlineData.Data.size > 0:
			data := p.InlineData.Data.bytes()
			if len(data) == 0 || len(data) > left {
				list = append(list, &storev1.Part{Part: &storev1.Part_Text{Text: fmt.Sprintf("[%s of %d bytes, which was not kept]", cmp.Or(mime, "data"), p.InlineData.Data.size)}})
				continue
			}
			left -= len(data)
			list = append(list, &storev1.Part{Part: &storev1.Part_Data{Data: &storev1.Blob{Data: data, MimeType: mime}}})
		case p.Text != "" && !p.Thought:
			list = append(list, &storev1.Part{Part: &storev1.Part_Text{Text: firstBytes(p.Text.whole(), maxTurnText)}})
		}
	}
	return list
}

const maxURI = 2048

// spoken reports whether the content has anything but thoughts: text, or audio that is not read here.
func (c *content) spoken() bool {
	return slices.ContainsFunc(c.Parts, func(p contentPart) bool { return !p.Thought && p.FunctionCall == nil })
}

func (c *content) hasAudio() bool {
	return slices.ContainsFunc(c.Parts, func(p contentPart) bool { return strings.HasPrefix(string(p.InlineData.MIMEType), "audio/") })
}

// audioMillis is how much audio the content has, in milliseconds: PCM of 16 bits, one channel. Other data counts as none.
func (c *content) audioMillis() int64 {
	const (
		usualRate   = 24000
		sampleBytes = 2
	)
	var ms int64
	for _, p := range c.Parts {
		kind, options, _ := strings.Cut(string(p.InlineData.MIMEType), ";")
		if kind != "audio/pcm" {
			continue
		}
		rate := int64(usualRate)
		if text, ok := strings.CutPrefix(strings.TrimSpace(options), "rate="); ok {
			if r, err := strconv.ParseInt(text, 10, 32); err == nil && r >= 1000 {
				rate = r
			}
		}
		ms += int64(p.InlineData.Data.size) * 1000 / (sampleBytes * rate)
	}
	return ms
}

// onlyAudio tells whether the content has nothing that is kept.
func (c *content) onlyAudio() bool {
	return !slices.ContainsFunc(c.Parts, func(p contentPart) bool {
		return p.Text != "" || p.InlineData.Data.size == 0 || p.FunctionCall != nil || p.AudioTranscription != nil
	})
}

type realtimeInput struct {
	Text          cleanString `json:"text"`
	ActivityStart *struct{}   `json:"activityStart"`
	ActivityEnd   *struct{}   `json:"activityEnd"`
}

type toolResponse struct {
	FunctionResponses []functionResponse `json:"functionResponses"`
}

type functionResponse struct {
	ID       cleanString `json:"id"`
	Name     cleanString `json:"name"`
	Response jsonValue   `json:"response"`
	isError  bool
	// SILENT: the model does not speak of it.
	Scheduling cleanString `json:"scheduling"`
	// More responses to the same call follow.
	WillContinue bool `json:"willContinue"`
}

type goAway struct {
	// As "50s".
	TimeLeft cleanString `json:"timeLeft"`
}

type resumptionUpdate struct {
	// A bearer secret: parseBatch seals it and forgets it.
	NewHandle    secretString `json:"newHandle"`
	Resumable    bool         `json:"resumable"`
	LastConsumed tokenCount   `json:"lastConsumedClientMessageIndex"`
	sealed       []byte
}

type setupComplete struct {
	SessionID cleanString `json:"sessionId"`
}

type serverContent struct {
	ModelTurn                 *content      `json:"modelTurn"`
	InputTranscription        transcription `json:"inputTranscription"`
	InterimInputTranscription transcription `json:"interimInputTranscription"`
	OutputTranscription       transcription `json:"outputTranscription"`
	Interrupted               bool          `json:"interrupted"`
	GenerationComplete        bool          `json:"generationComplete"`
	TurnComplete              bool          `json:"turnComplete"`
	TurnCompleteReason        cleanString   `json:"turnCompleteReason"`
	InteractionStatus         cleanString   `json:"interactionStatus"`
	WaitingForInput           bool          `json:"waitingForInput"`
	GroundingMetadata         jsonObject    `json:"groundingMetadata"`
	URLContextMetadata        jsonObject    `json:"urlContextMetadata"`
}

// transcription is a piece of what was said. Finished says that it is whole segment; most providers do not send it, so nothing may
// wait for it.
type transcription struct {
	Text     cleanString `json:"text"`
	Finished bool        `json:"finished"`
	Language cleanString `json:"languageCode"`
	Speaker  cleanString `json:"speakerLabel"`
}

type toolCalls struct {
	FunctionCalls []functionCall `json:"functionCalls"`
}

type functionCall struct {
	ID   cleanString `json:"id"`
	Name cleanString `json:"name"`
	Args jsonObject  `json:"args"`
	// A call whose arguments come in pieces: more follow.
	PartialArgs  []partialArg `json:"partialArgs"`
	WillContinue bool         `json:"willContinue"`
	signature    []byte
}

type toolCallCancellation struct {
	IDs []cleanString `json:"ids"`
}

type usageMetadata struct {
	ResponseTokenCount tokenCount `json:"responseTokenCount"`
	TotalTokenCount    tokenCount `json:"totalTokenCount"`
	all                jsonObject
}

func (u *usageMetadata) UnmarshalJSON(raw []byte) error {
	type plain usageMetadata
	err := json.Unmarshal(raw, (*plain)(u))
	return errors.Join(err, u.all.UnmarshalJSON(raw))
}

type voiceActivity struct {
	Type cleanString `json:"voiceActivityType"`
}

type vadSignal struct {
	Type cleanString `json:"vadSignalType"`
}

// speechStarts tells whether the frame marks the start of the user's speech, in any of the ways to say so.
func (f *liveFrame) speechStarts() bool {
	return f.VoiceActivity != nil && f.VoiceActivity.Type == "ACTIVITY_START" ||
		f.VADSignal != nil && f.VADSignal.Type == "VAD_SIGNAL_TYPE_SOS" ||
		f.RealtimeInput != nil && f.RealtimeInput.ActivityStart != nil
}

// speechEnds tells whether the frame marks the end of the user's speech.
func (f *liveFrame) speechEnds() bool {
	return f.VoiceActivity != nil && f.VoiceActivity.Type == "ACTIVITY_END" ||
		f.VADSignal != nil && f.VADSignal.Type == "VAD_SIGNAL_TYPE_EOS" ||
		f.RealtimeInput != nil && f.RealtimeInput.ActivityEnd != nil
}

// fleeting tells whether the frame has nothing that must be stored by itself: words that may still change, signs of
// speech, or audio.
func (f *liveFrame) fleeting() bool {
	rest := *f
	if c := rest.ServerContent; c != nil {
		left := *c
		left.InterimInputTranscription = transcription{}
		if left.ModelTurn != nil && left.ModelTurn.onlyAudio() {
			left.ModelTurn = nil
		}
		if left != (serverContent{}) {
			return false
		}
		rest.ServerContent = nil
	}
	if r := rest.RealtimeInput; r != nil && r.Text == "" {
		rest.RealtimeInput = nil
	}
	rest.VoiceActivity, rest.VADSignal = nil, nil
	return rest == liveFrame{}
}

// byUser reports whether the frame shows that the user did something: speech, words, or the result of a tool. That a microphone is on
// shows nothing.
func (f *liveFrame) byUser() bool {
	c, r := f.ServerContent, f.RealtimeInput
	return f.speechStarts() || f.speechEnds() || f.ClientContent != nil || f.ToolResponse != nil || r != nil && r.Text != "" ||
		c != nil && (c.InputTranscription.Text != "" || c.InterimInputTranscription.Text != "")
}

// liveBatch is the frames of one request, read.
type liveBatch struct {
	epoch  int64
	frames []readFrame
	// Nothing in it must be stored by itself.
	fleeting bool
	// Something in it shows that the user did something.
	byUser bool
	// sessionEnd is when the sender's session ends; zero: there is none.
	sessionEnd time.Time
}

// readFrame is one frame, read: the messages in it, and how much of it was not understood.
type readFrame struct {
	index    int64
	messages []liveFrame
	unknown  int
	size     int
}

// maxIndexGap is how many numbers of frames a client may leave out: a day of all that a microphone sends, which need not come here.
const maxIndexGap = 1_000_000

// checkIndexes refuses a frame of a field that is too far ahead of the one before it: all that the client sends later would be taken for
// frames that were folded already.
func (b *liveBatch) checkIndexes(field string, last int64) error {
	for i := range b.frames {
		index := b.frames[i].index
		if index-last > maxIndexGap+1 {
			return problem.InvalidArgument(fmt.Sprintf("%s[%d].client_index", field, i), fmt.Sprintf(
				"%d follows %d: it counts the frames of its connection from 1, and leaves out %d of them at most", index, last, maxIndexGap))
		}
		last = max(last, index)
	}
	return nil
}

// readBatch reads the frames of a request. Resumption handles are replaced by what seal makes of them.
func readBatch(epoch int64, frames []*livev1.LiveFrame, seal func([]byte) []byte) liveBatch {
	b := liveBatch{epoch: epoch, frames: make([]readFrame, len(frames)), fleeting: true}
	for i, frame := range frames {
		f := &b.frames[i]
		f.index, f.size = int64(frame.GetClientIndex()), proto.Size(frame)
		f.messages, f.unknown = parseFrame(frame)
		b.fleeting = b.fleeting && f.unknown == 0
		for j := range f.messages {
			if u := f.messages[j].SessionResumptionUpdate; u != nil {
				if u.Resumable && u.NewHandle != "" {
					u.sealed = seal([]byte(u.NewHandle))
				}
				u.NewHandle = ""
			}
			b.fleeting = b.fleeting && f.messages[j].fleeting()
			b.byUser = b.byUser || f.messages[j].byUser()
		}
	}
	return b
}

// parseFrame reads the messages that a frame carries, and counts what it could not understand: malformed JSON, an
// object without a known field, a value that is not what its field should hold. What it does understand of such an
// object is still returned.
func parseFrame(frame *livev1.LiveFrame) (messages []liveFrame, unknown int) {
	raw, strange := camelCase(frameJSON(frame))
	decoder := json.NewDecoder(bytes.NewReader(raw))
	for i := 0; ; i++ {
		var message liveFrame
		err := decoder.Decode(&message)
		if errors.Is(err, io.EOF) {
			break
		}
		understood := message != liveFrame{}
		if understood {
			messages = append(messages, message)
		}
		if err != nil || !understood || i < len(strange) && strange[i] {
			unknown++
		}
		if err != nil && !isValueError(err) {
			break // a syntax error: where the next object starts is anyone's guess
		}
	}
	if len(messages) == 0 && unknown == 0 {
		unknown = 1 // an empty frame
	}
	return messages, unknown
}

// frameJSON is the frame's JSON without NUL bytes; nothing where the frame has none.
func frameJSON(frame *livev1.LiveFrame) []byte {
	var raw []byte
	switch f := frame.GetFrame().(type) {
	case *livev1.LiveFrame_Text:
		raw = []byte(f.Text)
	case *livev1.LiveFrame_Binary:
		raw = f.Binary
	case *livev1.LiveFrame_Object:
		// It fails on numbers that JSON does not have, such as NaN.
		raw, _ = protojson.Marshal(f.Object)
	}
	return bytes.ReplaceAll(raw, []byte{0}, nil)
}

// errValue is a value that is not what its field should hold.
var errValue = errors.New("unreadable value")

// isValueError tells whether the decoder read an object to its end in spite of the error.
func isValueError(err error) bool {
	var wrongType *json.UnmarshalTypeError
	return errors.Is(err, errValue) || errors.As(err, &wrongType)
}

// cleanString is a string that Postgres can store: valid UTF-8 without U+0000, which jsonb refuses. Halves of surrogate pairs stand in
// it as private characters from firstHalf on, because the other half may come with the next frame.
type cleanString string

const (
	firstHalf  = 0x10F800
	lowHalf    = firstHalf + 0x400
	firstSurr  = 0xD800
	surrogates = 0x800
)

func (s *cleanString) UnmarshalJSON(raw []byte) error {
	if bytes.Contains(raw, []byte(`\ud`)) || bytes.Contains(raw, []byte(`\uD`)) {
		raw = keepHalves(raw)
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return errValue
	}
	*s = cleanString(cleanText(text))
	return nil
}

// keepHalves writes escapes of surrogates as private characters.
func keepHalves(raw []byte) []byte {
	const escape = len(`\u0000`)
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' || i+1 == len(raw) {
			out = append(out, raw[i])
			continue
		}
		if raw[i+1] == 'u' && i+escape <= len(raw) {
			if n, err := strconv.ParseUint(string(raw[i+2:i+escape]), 16, 16); err == nil && firstSurr <= n && n < firstSurr+surrogates {
				out = utf8.AppendRune(out, rune(firstHalf+n-firstSurr))
				i += escape - 1
				continue
			}
		}
		out = append(out, raw[i], raw[i+1])
		i++
	}
	return out
}

// whole is the text with its surrogate pairs joined. A half that is alone cannot be read.
func (s cleanString) whole() string {
	half := int32(0)
	text := join(string(s), &half)
	if half != 0 {
		text += "\uFFFD"
	}
	return text
}

// pieces is a piece of what is said, with the half of a surrogate pair that the piece before ended with; half is that with which this
// one ends.
func (t *transcription) pieces(half *int32) string { return join(string(t.Text), half) }

func join(text string, half *int32) string {
	if *half == 0 && !strings.Contains(text, "\xf4\x8f") { // how private characters of that plane begin
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case *half != 0 && r >= lowHalf:
			b.WriteRune(utf16.DecodeRune(*half, r-firstHalf+firstSurr))
			*half = 0
			continue
		case *half != 0:
			b.WriteRune(utf8.RuneError)
			*half = 0
		}
		switch {
		case r >= lowHalf:
			b.WriteRune(utf8.RuneError)
		case r >= firstHalf:
			*half = r - firstHalf + firstSurr
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func cleanText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
}

// presence is whether a string is there and not empty, and nothing of the string itself.
type presence bool

func (p *presence) UnmarshalJSON(raw []byte) error {
	*p = len(raw) > 2 && raw[0] == '"'
	return nil
}

// maxHandle is the bytes of a resumption handle that is kept.
const maxHandle = 8 << 10

// secretString is a string that never shows in a log or an error.
type secretString string

func (s *secretString) UnmarshalText(text []byte) error {
	if len(text) > maxHandle || !utf8.Valid(text) {
		return errValue
	}
	*s = secretString(text)
	return nil
}

// String implements [fmt.Stringer].
func (secretString) String() string { return "[secret]" }

// GoString implements [fmt.GoStringer].
func (secretString) GoString() string { return "[secret]" }

// inlineData is a string of base64.
type inlineData struct {
	size int // of what it stands for
	text string
}

func (d *inlineData) UnmarshalJSON(raw []byte) error {
	if len(raw) > 2 && raw[0] == '"' {
		text := bytes.TrimRight(raw[1:len(raw)-1], "=")
		d.size = len(text) * 3 / 4
		if d.size <= maxInlineData {
			d.text = string(text)
		}
	}
	return nil
}

// bytes is the data; nil: it is too much, or no base64.
func (d *inlineData) bytes() []byte {
	data, err := base64.RawStdEncoding.DecodeString(strings.NewReplacer("-", "+", "_", "/").Replace(d.text))
	if err != nil {
		return nil
	}
	return data
}

// tokenCount is a number that may come as a string, as 64-bit numbers do in the JSON form of protobuf.
type tokenCount int64

func (c *tokenCount) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" {
		return nil
	}
	n, err := strconv.ParseInt(strings.Trim(string(raw), `"`), 10, 64)
	if err != nil {
		return errValue
	}
	*c = tokenCount(n)
	return nil
}

// jsonValue is a JSON value that can be stored: clean, not too large and not too deep. Any other is left out, and omitted says why.
type jsonValue struct {
	// value is unset where the text stands in place of it: a double would round a number in it.
	value   *structpb.Value
	text    string
	omitted string
}

func (o *jsonValue) UnmarshalJSON(raw []byte) error {
	v, err := parseValue(raw)
	if err != nil {
		o.omitted = fmt.Sprintf("%s; it has %d bytes of the SHA-256 %x", err, len(raw), sha256.Sum256(raw))
		return errValue
	}
	if _, null := v.value.GetKind().(*structpb.Value_NullValue); null {
		return nil
	}
	if o.value = v.value; v.text != "" {
		o.value, o.text = nil, v.text
	}
	return nil
}

// jsonObject is a jsonValue that is an object.
type jsonObject struct {
	fields        *structpb.Struct
	text, omitted string
}

func (o *jsonObject) UnmarshalJSON(raw []byte) error {
	if len(raw) > 0 && raw[0] != '{' && string(raw) != "null" {
		return errValue
	}
	var v jsonValue
	err := v.UnmarshalJSON(raw)
	o.fields, o.text, o.omitted = v.value.GetStructValue(), v.text, v.omitted
	return err
}

// parsed is a JSON value as it is told to a model: numbers that a double would round are strings in it, and then text is the JSON.
type parsed struct {
	value *structpb.Value
	text  string
}

func parseValue(raw []byte) (parsed, error) {
	if len(raw) > maxObjectBytes {
		return parsed{}, fmt.Errorf("it is over the limit of %d bytes", maxObjectBytes)
	}
	return parseText(raw)
}

// parseText is parseValue of what is stored already, however large.
func parseText(raw []byte) (parsed, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var v any
	if err := decoder.Decode(&v); err != nil || decoder.More() {
		return parsed{}, errors.New("it is no JSON")
	}
	exact := true
	value, err := toValue(v, 1, &exact)
	if err != nil {
		return parsed{}, err
	}
	if exact {
		return parsed{value: value}, nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return parsed{}, errors.New("it is no JSON")
	}
	return parsed{value: value, text: strings.ToValidUTF8(b.String(), "\uFFFD")}, nil
}

// toValue converts what encoding/json decoded; depth is that of v, from 1. It clears exact where a double would round a number.
func toValue(v any, depth int, exact *bool) (*structpb.Value, error) {
	tooDeep := fmt.Errorf("it is deeper than %d levels", maxObjectDepth)
	switch v := v.(type) {
	case map[string]any:
		if depth > maxObjectDepth {
			return nil, tooDeep
		}
		fields := make(map[string]*structpb.Value, len(v))
		// In order, because two keys may be the same once they are clean: the last one stays, on every run.
		for _, key := range slices.Sorted(maps.Keys(v)) {
			value, err := toValue(v[key], depth+1, exact)
			if err != nil {
				return nil, err
			}
			fields[cleanText(key)] = value
		}
		return structpb.NewStructValue(&structpb.Struct{Fields: fields}), nil
	case []any:
		if depth > maxObjectDepth {
			return nil, tooDeep
		}
		values := make([]*structpb.Value, len(v))
		for i, element := range v {
			value, err := toValue(element, depth+1, exact)
			if err != nil {
				return nil, err
			}
			values[i] = value
		}
		return structpb.NewListValue(&structpb.ListValue{Values: values}), nil
	case string:
		return structpb.NewStringValue(cleanText(v)), nil
	case json.Number:
		n, err := v.Float64()
		if exactly := err == nil && jsonpb.IsExact(v.String(), n); !exactly {
			*exact = false
			return structpb.NewStringValue(v.String()), nil
		}
		return structpb.NewNumberValue(n), nil
	case bool:
		return structpb.NewBoolValue(v), nil
	default:
		return structpb.NewNullValue(), nil
	}
}
