package object

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"holdfast/jsonpb"
)

// stored is the JSON of rows: it has the proto's own field names, so that SQL and people can read it and `buf breaking`
// guards it.
var stored = jsonpb.New(jsonpb.ProtoNames())

// appendName appends the name of a member to an object whose members begin at empty.
func appendName(b []byte, empty int, name string) []byte {
	if len(b) > empty {
		b = append(b, ',')
	}
	return append(jsonpb.AppendString(b, name), ':')
}

// appendField appends a field's value, or a map's if f is the map's MapValue.
func appendField(b []byte, f protoreflect.FieldDescriptor, v protoreflect.Value) ([]byte, error) {
	b, err := stored.AppendField(b, f, v)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return b, nil
}

func appendMessage(b []byte, m proto.Message) ([]byte, error) {
	b, err := stored.Append(b, m)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return b, nil
}
