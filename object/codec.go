package object

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Stored messages are protojson with the proto's own field names, so that SQL and people can read them and `buf
// breaking` can guard them.
var (
	marshal = protojson.MarshalOptions{UseProtoNames: true}
	// Reads are lenient: what a newer release added is passed over. Writes are not, see ErrNewerSchema.
	unmarshal = protojson.UnmarshalOptions{DiscardUnknown: true}
)

func encode(m proto.Message) (string, error) {
	b, err := marshal.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return string(b), nil
}

// decode makes a new message of prototype's type out of stored JSON.
func decode(prototype proto.Message, stored string) (proto.Message, error) {
	if prototype == nil {
		return nil, fmt.Errorf("%w: the kind has no such collection", ErrInvalid)
	}
	m := prototype.ProtoReflect().New().Interface()
	if err := unmarshal.Unmarshal([]byte(stored), m); err != nil {
		return nil, fmt.Errorf("object: stored %s cannot be read: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return m, nil
}

// replaced returns, as JSON members, the old values of the top-level fields that differ between two states; null
// stands for a field that was not set. It is what undoes the change. A nil was is an object that did not exist.
func replaced(was, is proto.Message) (string, error) {
	if was == nil || is == nil {
		if was == nil {
			return "", nil
		}
		return members(was, nil)
	}
	a, b := was.ProtoReflect(), is.ProtoReflect()
	old := a.New()
	var unset []protoreflect.FieldDescriptor
	fields := a.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		hadIt, hasIt := a.Has(f), b.Has(f)
		switch {
		case !hadIt && !hasIt:
		case hadIt && hasIt && a.Get(f).Equal(b.Get(f)):
		case hadIt:
			old.Set(f, a.Get(f))
		default:
			unset = append(unset, f)
		}
	}
	return members(old.Interface(), unset)
}

func members(m proto.Message, unset []protoreflect.FieldDescriptor) (string, error) {
	b, err := marshal.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	b = b[1 : len(b)-1] // the braces
	for _, f := range unset {
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, f.Name()...)
		b = append(b, `":null`...)
	}
	return string(b), nil
}
