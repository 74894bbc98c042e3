// Package rowjson is the JSON of rows. It has the proto's own field names, so SQL and people can read it, and `buf breaking` guards it.
package rowjson

import (
	"errors"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"holdfast/jsonpb"
)

// ErrInvalid is object.ErrInvalid.
var ErrInvalid = errors.New("invalid value")

var codec = jsonpb.New(jsonpb.ProtoNames())

// AppendName appends the name of a member to an object whose members begin at empty.
func AppendName(b []byte, empty int, name string) []byte {
	if len(b) > empty {
		b = append(b, ',')
	}
	return append(jsonpb.AppendString(b, name), ':')
}

// AppendField appends a field's value, or a map's if f is the map's MapValue. It returns ErrInvalid for text that is not UTF-8.
func AppendField(b []byte, f protoreflect.FieldDescriptor, v protoreflect.Value) ([]byte, error) {
	b, err := codec.AppendField(b, f, v)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return b, nil
}

// AppendMessage appends a message; see AppendField.
func AppendMessage(b []byte, m proto.Message) ([]byte, error) {
	b, err := codec.Append(b, m)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return b, nil
}

// Encoder keeps the buffers that messages are encoded into before their length is known. It is safe for concurrent use.
type Encoder struct{ buffers sync.Pool }

// maxKept bounds the buffer that is kept for the next message.
const maxKept = 64 << 10

// Encode returns the stored form of a message. It returns ErrInvalid if a required field is missing.
func (e *Encoder) Encode(m proto.Message) (string, error) {
	if err := proto.CheckInitialized(m); err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return e.Text(func(b []byte) ([]byte, error) { return AppendMessage(b, m) })
}

// Text returns what write appends.
func (e *Encoder) Text(write func([]byte) ([]byte, error)) (string, error) {
	buf, _ := e.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	b, err := write((*buf)[:0])
	if err != nil {
		return "", err
	}
	encoded := string(b)
	if cap(b) <= maxKept {
		*buf = b
		e.buffers.Put(buf)
	}
	return encoded, nil
}

// Decode makes a new message of prototype's type out of its stored form. It ignores what a newer release added, and then newer is
// true: what was read so must not be written. A nil prototype is ErrInvalid.
func Decode(prototype proto.Message, text string) (m proto.Message, newer bool, err error) {
	if prototype == nil {
		return nil, false, fmt.Errorf("%w: the kind has no such collection", ErrInvalid)
	}
	m = prototype.ProtoReflect().New().Interface()
	if newer, err = codec.Unmarshal([]byte(text), m, jsonpb.Unknown|jsonpb.Inexact); err != nil {
		return nil, false, fmt.Errorf("object: stored %s cannot be read: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return m, newer, nil
}
