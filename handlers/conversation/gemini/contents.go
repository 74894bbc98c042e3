package gemini

import (
	"encoding/base64"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// Roles of Gemini's Content; the shapes are those of google.golang.org/genai's Content, Part and LiveClientContent.
const (
	User  = "user"
	Model = "model"
)

// Turns gathers Contents. What one role says in a row is one Content.
type Turns struct {
	Contents []*structpb.Struct
	role     string
	parts    *structpb.ListValue
	// All is told as text: a Live session that is seeded did not issue the calls.
	OnlyText bool
	// signature of the part that is added next.
	signature []byte
}

func (t *Turns) add(role string, part *structpb.Struct) {
	if role != t.role {
		t.role, t.parts = role, &structpb.ListValue{}
		t.Contents = append(t.Contents, Fields(map[string]*structpb.Value{
			"role": structpb.NewStringValue(role), "parts": structpb.NewListValue(t.parts),
		}))
	}
	if len(t.signature) > 0 && !t.OnlyText {
		part.Fields["thoughtSignature"] = structpb.NewStringValue(base64.StdEncoding.EncodeToString(t.signature))
	}
	t.parts.Values = append(t.parts.Values, structpb.NewStructValue(part))
}

// Say adds a text, unless it is empty.
func (t *Turns) Say(role, text string) {
	if text != "" {
		t.add(role, textPart(text))
	}
}

func textPart(text string) *structpb.Struct {
	return Fields(map[string]*structpb.Value{"text": structpb.NewStringValue(text)})
}

// Fields is a Struct of these fields.
func Fields(fields map[string]*structpb.Value) *structpb.Struct {
	return &structpb.Struct{Fields: fields}
}

// SummaryIntro begins the text that stands for what a summary covers.
const SummaryIntro = "Summary of the conversation so far: "

// AddSummary tells a summary; nil: none.
func (t *Turns) AddSummary(s *storev1.Summary) {
	if s != nil {
		t.Say(User, SummaryIntro+s.GetText())
	}
}

// AddMessage tells a message.
func (t *Turns) AddMessage(m *storev1.Message) {
	role := User
	if m.GetRole() == storev1.Role_ROLE_ASSISTANT {
		role = Model
	}
	t.signature = m.GetThoughtSignature()
	t.Say(role, m.GetText())
	t.signature = nil
	for _, p := range m.GetParts() {
		t.addPart(role, p)
	}
}

func (t *Turns) addPart(role string, p *storev1.Part) {
	t.signature = p.GetThoughtSignature()
	defer func() { t.signature = nil }()
	switch p := p.GetPart().(type) {
	case *storev1.Part_Text:
		t.Say(role, p.Text)
	case *storev1.Part_ToolCall:
		t.callPart(p.ToolCall.GetCallId(), p.ToolCall.GetName(), argsOf(p.ToolCall))
	case *storev1.Part_ToolResult:
		t.resultPart(p.ToolResult.GetCallId(), p.ToolResult.GetName(), responseOf(p.ToolResult))
	case *storev1.Part_File:
		t.filePart(role, p.File)
	case *storev1.Part_Data:
		t.dataPart(role, p.Data)
	case *storev1.Part_Json:
		t.Say(role, JSONText(p.Json))
	}
}

// dataPart tells content itself.
func (t *Turns) dataPart(role string, b *storev1.Blob) {
	if t.OnlyText {
		t.Say(role, strings.TrimSpace("[file "+b.GetName())+"]")
		return
	}
	t.add(role, Fields(map[string]*structpb.Value{"inlineData": structpb.NewStructValue(Fields(map[string]*structpb.Value{
		"data": structpb.NewStringValue(base64.StdEncoding.EncodeToString(b.GetData())), "mimeType": structpb.NewStringValue(b.GetMimeType()),
	}))}))
}

func (t *Turns) filePart(role string, f *storev1.FileRef) {
	if t.OnlyText {
		t.Say(role, "[file "+f.GetUri()+"]")
		return
	}
	t.add(role, Fields(map[string]*structpb.Value{"fileData": structpb.NewStructValue(Fields(map[string]*structpb.Value{
		"fileUri": structpb.NewStringValue(f.GetUri()), "mimeType": structpb.NewStringValue(f.GetMimeType()),
	}))}))
}

func (t *Turns) callPart(id, name string, args *structpb.Struct) {
	if t.OnlyText {
		t.Say(Model, fmt.Sprintf("[called %s with %s]", name, JSONText(args)))
		return
	}
	t.add(Model, Fields(map[string]*structpb.Value{"functionCall": structpb.NewStructValue(function(id, name, "args", args))}))
}

func (t *Turns) resultPart(id, name string, response *structpb.Struct) {
	if t.OnlyText {
		t.Say(User, fmt.Sprintf("[result of %s: %s]", name, FirstBytes(JSONText(response), maxResultText)))
		return
	}
	t.add(User, Fields(map[string]*structpb.Value{"functionResponse": structpb.NewStructValue(function(id, name, "response", response))}))
}

// AddCall tells a call of the Live API. As a call it is told only with a response that it got on its own connection.
func (t *Turns) AddCall(c *storev1.ToolCall) {
	switch {
	case c.GetStatus() == storev1.ToolCallStatus_TOOL_CALL_STATUS_COMPLETED && c.GetResultSeq() == 0:
		t.signature = c.GetThoughtSignature()
		t.callPart(c.GetCallId(), c.GetName(), argsOf(c))
		t.signature = nil
		t.resultPart(c.GetCallId(), c.GetName(), responseOf(c))
	case c.GetStatus() == storev1.ToolCallStatus_TOOL_CALL_STATUS_CANCELLED:
		t.Say(Model, fmt.Sprintf("[called %s with %s, then withdrew it]", c.GetName(), ArgsText(c)))
	case c.GetStatus() == storev1.ToolCallStatus_TOOL_CALL_STATUS_COMPLETED: // its result follows, as a message
		t.Say(Model, fmt.Sprintf("[called %s with %s]", c.GetName(), ArgsText(c)))
	default:
		t.Say(Model, fmt.Sprintf("[called %s with %s; there is no result yet]", c.GetName(), ArgsText(c)))
	}
}

// GoOn ends a seed that must end with the user, without asking for anything.
const GoOn = "[The connection was renewed. Go on from here: do not greet again, and wait for me to speak.]"

// Seed is a message with clientContent, or nil where nothing was said.
func (t *Turns) Seed(endsWithUser bool) *structpb.Struct {
	if len(t.Contents) == 0 {
		return nil
	}
	if endsWithUser && t.role != User {
		t.Say(User, GoOn)
	}
	return Fields(map[string]*structpb.Value{"clientContent": structpb.NewStructValue(Fields(map[string]*structpb.Value{
		"turns": structpb.NewListValue(t.list()), "turnComplete": structpb.NewBoolValue(true),
	}))})
}

func (t *Turns) list() *structpb.ListValue {
	l := &structpb.ListValue{}
	for _, c := range t.Contents {
		l.Values = append(l.Values, structpb.NewStructValue(c))
	}
	return l
}

// SystemInstruction is what the system messages say, or nil.
func SystemInstruction(messages []*storev1.Message) *structpb.Struct {
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
	return Fields(map[string]*structpb.Value{"parts": structpb.NewListValue(l)})
}
