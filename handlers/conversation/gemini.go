package conversation

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// Roles of Gemini's Content; the shapes are those of google.golang.org/genai's Content, Part and LiveClientContent.
const (
	geminiUser  = "user"
	geminiModel = "model"
)

// turns gathers Contents. What one role says in a row is one Content.
type turns struct {
	contents []*structpb.Struct
	role     string
	parts    *structpb.ListValue
	// All is told as text: a Live session that is seeded did not issue the calls.
	onlyText bool
	// signature of the part that is added next.
	signature []byte
}

func (t *turns) add(role string, part *structpb.Struct) {
	if role != t.role {
		t.role, t.parts = role, &structpb.ListValue{}
		t.contents = append(t.contents, fieldsOf(map[string]*structpb.Value{
			"role": structpb.NewStringValue(role), "parts": structpb.NewListValue(t.parts),
		}))
	}
	if len(t.signature) > 0 && !t.onlyText {
		part.Fields["thoughtSignature"] = structpb.NewStringValue(base64.StdEncoding.EncodeToString(t.signature))
	}
	t.parts.Values = append(t.parts.Values, structpb.NewStructValue(part))
}

func (t *turns) say(role, text string) {
	if text != "" {
		t.add(role, textPart(text))
	}
}

func textPart(text string) *structpb.Struct {
	return fieldsOf(map[string]*structpb.Value{"text": structpb.NewStringValue(text)})
}

func fieldsOf(fields map[string]*structpb.Value) *structpb.Struct {
	return &structpb.Struct{Fields: fields}
}

const summaryIntro = "Summary of the conversation so far: "

func (t *turns) addSummary(s *storev1.Summary) {
	if s != nil {
		t.say(geminiUser, summaryIntro+s.GetText())
	}
}

func (t *turns) addItem(i windowItem) {
	if i.call != nil {
		t.addCall(i.call)
		return
	}
	role := geminiUser
	if i.message.GetRole() == storev1.Role_ROLE_ASSISTANT {
		role = geminiModel
	}
	m := heard(i.message)
	t.signature = m.GetThoughtSignature()
	t.say(role, m.GetText())
	t.signature = nil
	for _, p := range i.message.GetParts() {
		t.addPart(role, p)
	}
}

func (t *turns) addPart(role string, p *storev1.Part) {
	t.signature = p.GetThoughtSignature()
	defer func() { t.signature = nil }()
	switch p := p.GetPart().(type) {
	case *storev1.Part_Text:
		t.say(role, p.Text)
	case *storev1.Part_ToolCall:
		t.callPart(p.ToolCall.GetCallId(), p.ToolCall.GetName(), argsOf(p.ToolCall))
	case *storev1.Part_ToolResult:
		t.resultPart(p.ToolResult.GetCallId(), p.ToolResult.GetName(), responseOf(p.ToolResult))
	case *storev1.Part_File:
		t.filePart(role, p.File)
	case *storev1.Part_Data:
		t.dataPart(role, p.Data)
	case *storev1.Part_Json:
		t.say(role, jsonText(p.Json))
	}
}

// dataPart tells content itself.
func (t *turns) dataPart(role string, b *storev1.Blob) {
	if t.onlyText {
		t.say(role, strings.TrimSpace("[file "+b.GetName())+"]")
		return
	}
	t.add(role, fieldsOf(map[string]*structpb.Value{"inlineData": structpb.NewStructValue(fieldsOf(map[string]*structpb.Value{
		"data": structpb.NewStringValue(base64.StdEncoding.EncodeToString(b.GetData())), "mimeType": structpb.NewStringValue(b.GetMimeType()),
	}))}))
}

func (t *turns) filePart(role string, f *storev1.FileRef) {
	if t.onlyText {
		t.say(role, "[file "+f.GetUri()+"]")
		return
	}
	t.add(role, fieldsOf(map[string]*structpb.Value{"fileData": structpb.NewStructValue(fieldsOf(map[string]*structpb.Value{
		"fileUri": structpb.NewStringValue(f.GetUri()), "mimeType": structpb.NewStringValue(f.GetMimeType()),
	}))}))
}

func (t *turns) callPart(id, name string, args *structpb.Struct) {
	if t.onlyText {
		t.say(geminiModel, fmt.Sprintf("[called %s with %s]", name, jsonText(args)))
		return
	}
	t.add(geminiModel, fieldsOf(map[string]*structpb.Value{"functionCall": structpb.NewStructValue(function(id, name, "args", args))}))
}

func (t *turns) resultPart(id, name string, response *structpb.Struct) {
	if t.onlyText {
		t.say(geminiUser, fmt.Sprintf("[result of %s: %s]", name, firstBytes(jsonText(response), maxResultText)))
		return
	}
	t.add(geminiUser, fieldsOf(map[string]*structpb.Value{"functionResponse": structpb.NewStructValue(function(id, name, "response", response))}))
}

func function(id, name, field string, value *structpb.Struct) *structpb.Struct {
	if value == nil {
		value = &structpb.Struct{}
	}
	f := fieldsOf(map[string]*structpb.Value{"name": structpb.NewStringValue(name), field: structpb.NewStructValue(value)})
	if !strings.HasPrefix(id, ownID) { // the provider gave it none
		f.Fields["id"] = structpb.NewStringValue(id)
	}
	return f
}

// addCall tells a call of the Live API. As a call it is told only with a response that it got on its own connection.
func (t *turns) addCall(c *storev1.ToolCall) {
	switch {
	case c.GetStatus() == callCompleted && c.GetResultSeq() == 0:
		t.signature = c.GetThoughtSignature()
		t.callPart(c.GetCallId(), c.GetName(), argsOf(c))
		t.signature = nil
		t.resultPart(c.GetCallId(), c.GetName(), responseOf(c))
	case c.GetStatus() == callCancelled:
		t.say(geminiModel, fmt.Sprintf("[called %s with %s, then withdrew it]", c.GetName(), argsText(c)))
	case c.GetStatus() == callCompleted: // its result follows, as a message
		t.say(geminiModel, fmt.Sprintf("[called %s with %s]", c.GetName(), argsText(c)))
	default:
		t.say(geminiModel, fmt.Sprintf("[called %s with %s; there is no result yet]", c.GetName(), argsText(c)))
	}
}

// goOn ends a seed that must end with the user, without asking for anything.
const goOn = "[The connection was renewed. Go on from here: do not greet again, and wait for me to speak.]"

// seed is a message with clientContent, or nil where nothing was said.
func (t *turns) seed(endsWithUser bool) *structpb.Struct {
	if len(t.contents) == 0 {
		return nil
	}
	if endsWithUser && t.role != geminiUser {
		t.say(geminiUser, goOn)
	}
	return fieldsOf(map[string]*structpb.Value{"clientContent": structpb.NewStructValue(fieldsOf(map[string]*structpb.Value{
		"turns": structpb.NewListValue(t.list()), "turnComplete": structpb.NewBoolValue(true),
	}))})
}

func (t *turns) list() *structpb.ListValue {
	l := &structpb.ListValue{}
	for _, c := range t.contents {
		l.Values = append(l.Values, structpb.NewStructValue(c))
	}
	return l
}

// systemInstruction is what the system messages say, or nil.
func systemInstruction(messages []*storev1.Message) *structpb.Struct {
	l := &structpb.ListValue{}
	say := func(text string) {
		if text != "" {
			l.Values = append(l.Values, structpb.NewStructValue(textPart(text)))
		}
	}
	for _, m := range messages {
		say(m.GetText())
		for _, p := range m.GetParts() {
			say(p.GetText())
		}
	}
	if len(l.GetValues()) == 0 {
		return nil
	}
	return fieldsOf(map[string]*structpb.Value{"parts": structpb.NewListValue(l)})
}

// arguments and responses are what a call has, in a message or of the Live API.
type (
	arguments interface {
		GetArgs() *structpb.Struct
		GetArgsJson() string
	}
	responses interface {
		GetResponse() *structpb.Value
		GetResponseJson() string
		GetIsError() bool
	}
)

// argsText is a call's arguments as JSON.
func argsText(c arguments) string {
	if args := omittedArgs(c); args != nil {
		return jsonText(args)
	}
	return cmp.Or(c.GetArgsJson(), jsonText(c.GetArgs()))
}

// responseText is a response as JSON.
func responseText(c responses) string {
	if response := omittedResponse(c); response != nil {
		return jsonText(response)
	}
	return cmp.Or(c.GetResponseJson(), jsonText(c.GetResponse()))
}

// omittedArgs say why a call's arguments are not here; nil: they are. A model that was told of none would take the call for one
// without any.
func omittedArgs(c arguments) *structpb.Struct {
	if o, ok := c.(interface{ GetArgsOmitted() string }); ok && o.GetArgsOmitted() != "" {
		return omitted(o.GetArgsOmitted())
	}
	return nil
}

// omittedResponse says why a response is not here; nil: it is.
func omittedResponse(c responses) *structpb.Struct {
	if o, ok := c.(interface{ GetResponseOmitted() string }); ok && o.GetResponseOmitted() != "" {
		return omitted(o.GetResponseOmitted())
	}
	return nil
}

func omitted(why string) *structpb.Struct {
	return fieldsOf(map[string]*structpb.Value{"omitted": structpb.NewStringValue(why)})
}

// argsOf are a call's arguments as Gemini takes them. JSON that is not an object goes in as text: the model reads it all the same.
func argsOf(c arguments) *structpb.Struct {
	if args := omittedArgs(c); args != nil {
		return args
	}
	if c.GetArgsJson() == "" {
		return c.GetArgs()
	}
	return inStruct("args", told(c.GetArgsJson()))
}

// responseOf is a response as Gemini takes it: an object, with "output" or "error" for any other value.
func responseOf(c responses) *structpb.Struct {
	if response := omittedResponse(c); response != nil {
		return response
	}
	response, field := c.GetResponse(), "output"
	if c.GetResponseJson() != "" {
		response = told(c.GetResponseJson())
	}
	if c.GetIsError() {
		field = "error"
	}
	return inStruct(field, response)
}

// told is a JSON text as a model is told it, which has numbers that a double would round as strings; where it is no JSON, the text.
func told(text string) *structpb.Value {
	v, err := parseText([]byte(text))
	if err != nil {
		return structpb.NewStringValue(text)
	}
	return v.value
}

// inStruct is a value that is an object as it is, and another as the only field of one.
func inStruct(field string, v *structpb.Value) *structpb.Struct {
	if s := v.GetStructValue(); s != nil || v == nil {
		return s
	}
	return fieldsOf(map[string]*structpb.Value{field: v})
}

// jsonText is a value as JSON, the same on every run: protojson's blanks are not. Of nothing it is an empty object.
func jsonText[M interface {
	proto.Message
	*structpb.Struct | *structpb.Value
}](s M) string {
	if s == nil {
		return "{}"
	}
	raw, err := protojson.Marshal(s)
	if err != nil {
		return "{}" // a number that JSON does not have
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return "{}"
	}
	return strings.TrimSpace(b.String())
}
