package gemini

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"google.golang.org/protobuf/encoding/protojson"

	livev1 "holdfast/gen/holdfast/live/v1"
)

// Parse reads the messages that a frame carries, and counts what it could not understand: malformed JSON, an
// object without a known field, a value that is not what its field should hold. What it does understand of such an
// object is still returned.
func Parse(frame *livev1.LiveFrame) (messages []Message, unknown int) {
	raw, strange := camelCase(frameJSON(frame))
	decoder := json.NewDecoder(bytes.NewReader(raw))
	for i := 0; ; i++ {
		var message Message
		err := decoder.Decode(&message)
		if errors.Is(err, io.EOF) {
			break
		}
		understood := message != Message{}
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

// isValueError reports whether the decoder read an object to its end in spite of the error.
func isValueError(err error) bool {
	var wrongType *json.UnmarshalTypeError
	return errors.Is(err, errValue) || errors.As(err, &wrongType)
}
