package object

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The JSON of stored messages, and of what undoes a change of one. Tests compare it with protojson.

// appendName appends the name of a member to an object whose members begin at empty.
func appendName(b []byte, empty int, name string) []byte {
	if len(b) > empty {
		b = append(b, ',')
	}
	return append(appendString(b, name), ':')
}

// appendField appends a field's value as protojson has it.
func appendField(b []byte, f protoreflect.FieldDescriptor, v protoreflect.Value) (_ []byte, err error) {
	switch {
	case f.IsMap():
		return appendMap(b, f, v.Map())
	case f.IsList():
		b = append(b, '[')
		for i, list := 0, v.List(); i < list.Len() && err == nil; i++ {
			if i > 0 {
				b = append(b, ',')
			}
			b, err = appendSingle(b, f, list.Get(i))
		}
		return append(b, ']'), err
	default:
		return appendSingle(b, f, v)
	}
}

// appendMessage appends a message as protojson has it, at half its cost: two are written with each message that is appended to a
// conversation.
func appendMessage(b []byte, m protoreflect.Message) (_ []byte, err error) {
	d := m.Descriptor()
	if t, ok := m.Interface().(*timestamppb.Timestamp); ok && t.IsValid() {
		b = t.AsTime().AppendFormat(append(b, '"'), "2006-01-02T15:04:05.000000000")
		for _, zeros := range []string{"000", "000", ".000"} {
			b = bytes.TrimSuffix(b, []byte(zeros))
		}
		return append(b, `Z"`...), nil
	}
	if !opensMessage(d) {
		if b, err = marshal.MarshalAppend(b, m.Interface()); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return b, nil
	}
	b = append(b, '{')
	empty := len(b)
	for i, fields := 0, d.Fields(); i < fields.Len(); i++ {
		f := fields.Get(i)
		if !m.Has(f) {
			continue
		}
		if b, err = appendField(appendName(b, empty, f.TextName()), f, m.Get(f)); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendMap(b []byte, f protoreflect.FieldDescriptor, m protoreflect.Map) (_ []byte, err error) {
	b = append(b, '{')
	empty := len(b)
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if !utf8.ValidString(k.String()) {
			err = fmt.Errorf("%w: a key of %s is invalid UTF-8", ErrInvalid, f.FullName())
			return false
		}
		b = appendName(b, empty, k.String())
		b, err = appendSingle(b, f.MapValue(), v)
		return err == nil
	})
	return append(b, '}'), err
}

func appendSingle(b []byte, f protoreflect.FieldDescriptor, v protoreflect.Value) ([]byte, error) {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return strconv.AppendBool(b, v.Bool()), nil
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return strconv.AppendInt(b, v.Int(), 10), nil
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return append(strconv.AppendInt(append(b, '"'), v.Int(), 10), '"'), nil
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return append(strconv.AppendUint(append(b, '"'), v.Uint(), 10), '"'), nil
	case protoreflect.FloatKind:
		return appendFloat(b, v.Float(), 32), nil
	case protoreflect.DoubleKind:
		return appendFloat(b, v.Float(), 64), nil
	case protoreflect.StringKind:
		if !utf8.ValidString(v.String()) {
			return nil, fmt.Errorf("%w: %s holds invalid UTF-8", ErrInvalid, f.FullName())
		}
		return appendString(b, v.String()), nil
	case protoreflect.BytesKind:
		return append(base64.StdEncoding.AppendEncode(append(b, '"'), v.Bytes()), '"'), nil
	case protoreflect.EnumKind:
		if f.Enum().FullName() == "google.protobuf.NullValue" {
			return append(b, "null"...), nil
		}
		if value := f.Enum().Values().ByNumber(v.Enum()); value != nil {
			return appendString(b, string(value.Name())), nil
		}
		return strconv.AppendInt(b, int64(v.Enum()), 10), nil
	default: // messages
		return appendMessage(b, v.Message())
	}
}

func appendFloat(b []byte, n float64, bits int) []byte {
	switch {
	case math.IsNaN(n):
		return append(b, `"NaN"`...)
	case math.IsInf(n, 1):
		return append(b, `"Infinity"`...)
	case math.IsInf(n, -1):
		return append(b, `"-Infinity"`...)
	}
	return strconv.AppendFloat(b, n, 'g', -1, bits)
}

// appendString appends a text of valid UTF-8.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	written := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[written:i]...)
		written = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		default:
			b = fmt.Appendf(b, `\u%04x`, c)
		}
	}
	return append(append(b, s[written:]...), '"')
}
