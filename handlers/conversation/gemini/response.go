package gemini

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// OwnID begins the ids of calls to which the provider gave none. No provider's id does.
const OwnID = "holdfast:"

func function(id, name, field string, value *structpb.Struct) *structpb.Struct {
	if value == nil {
		value = &structpb.Struct{}
	}
	f := Fields(map[string]*structpb.Value{"name": structpb.NewStringValue(name), field: structpb.NewStructValue(value)})
	if !strings.HasPrefix(id, OwnID) { // the provider gave it none
		f.Fields["id"] = structpb.NewStringValue(id)
	}
	return f
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

// ArgsText is a call's arguments as JSON.
func ArgsText(c arguments) string {
	if args := omittedArgs(c); args != nil {
		return JSONText(args)
	}
	return cmp.Or(c.GetArgsJson(), JSONText(c.GetArgs()))
}

// ResponseText is a response as JSON.
func ResponseText(c responses) string {
	if response := omittedResponse(c); response != nil {
		return JSONText(response)
	}
	return cmp.Or(c.GetResponseJson(), JSONText(c.GetResponse()))
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
	return Fields(map[string]*structpb.Value{"omitted": structpb.NewStringValue(why)})
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
	v, err := ParseStored([]byte(text))
	if err != nil {
		return structpb.NewStringValue(text)
	}
	return v.Value
}

// inStruct is a value that is an object as it is, and another as the only field of one.
func inStruct(field string, v *structpb.Value) *structpb.Struct {
	if s := v.GetStructValue(); s != nil || v == nil {
		return s
	}
	return Fields(map[string]*structpb.Value{field: v})
}

// JSONText is a value as JSON, the same on every run: protojson's blanks are not. Of nothing it is an empty object.
func JSONText[M interface {
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

// maxResultText is how much of a response the message has that tells it as text.
const maxResultText = 16 << 10

// ResultText tells a call's response to a session that did not issue the call.
func ResultText(call *storev1.ToolCall) string {
	said := "Result"
	if call.GetIsError() {
		said = "Failure"
	}
	return fmt.Sprintf("%s of %s, which was called before the connection was lost (%s): %s",
		said, call.GetName(), call.GetCallId(), FirstBytes(ResponseText(call), maxResultText))
}

// HasResponse reports whether a call has a response.
func HasResponse(call *storev1.ToolCall) bool {
	return call.GetResponse() != nil || call.GetResponseJson() != "" || call.GetResponseOmitted() != ""
}

// Answer gives a call the response.
func (r *FunctionResponse) Answer(call *storev1.ToolCall) {
	call.Response, call.ResponseJson, call.ResponseOmitted, call.IsError = r.Response.Value, r.Response.Text, r.Response.omitted, r.IsError
}

// Frame is the response as a frame for the provider.
func (r *FunctionResponse) Frame(call *storev1.ToolCall, scheduling string) *structpb.Struct {
	response := function(call.GetCallId(), call.GetName(), "response", responseOf(call))
	if r.WillContinue {
		response.Fields["willContinue"] = structpb.NewBoolValue(true)
	}
	if scheduling != "" {
		response.Fields["scheduling"] = structpb.NewStringValue(scheduling)
	}
	return Fields(map[string]*structpb.Value{"toolResponse": structpb.NewStructValue(Fields(map[string]*structpb.Value{
		"functionResponses": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewStructValue(response)}}),
	}))})
}
