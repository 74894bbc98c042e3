package jsonpb

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Append appends a message's JSON, without blanks and with the keys of maps in order. It returns an error for invalid UTF-8
// and for values that have no JSON form, such as an infinite number in a Struct.
func (c *Codec) Append(b []byte, m proto.Message) ([]byte, error) {
	if m == nil {
		return append(b, "{}"...), nil
	}
	r := m.ProtoReflect()
	return c.appendMessage(b, c.table(r.Descriptor()), r)
}

// AppendField appends the value of one field, without its name. The field's message must not be a well-known type.
func (c *Codec) AppendField(b []byte, fd protoreflect.FieldDescriptor, v protoreflect.Value) ([]byte, error) {
	return c.appendField(b, c.table(fd.ContainingMessage()).fields[fd.Index()], v)
}

func (c *Codec) appendMessage(b []byte, t *table, m protoreflect.Message) (_ []byte, err error) {
	switch message := m.Interface().(type) {
	case *timestamppb.Timestamp:
		return appendTimestamp(b, message)
	case *structpb.Struct:
		return appendStruct(b, message)
	case *structpb.Value:
		return appendValue(b, message)
	case *structpb.ListValue:
		return appendListValue(b, message)
	}
	if t.form != object {
		text, err := protojson.MarshalOptions{UseProtoNames: c.protoNames}.Marshal(m.Interface())
		if err != nil {
			return nil, err
		}
		compact := bytes.NewBuffer(b)
		err = json.Compact(compact, text)
		return compact.Bytes(), err
	}
	b = append(b, '{')
	empty := len(b)
	for _, f := range t.fields {
		if !m.Has(f.FieldDescriptor) {
			continue
		}
		if len(b) > empty {
			b = append(b, ',')
		}
		if b, err = c.appendField(append(b, f.written...), f, m.Get(f.FieldDescriptor)); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func (c *Codec) appendField(b []byte, f *field, v protoreflect.Value) (_ []byte, err error) {
	switch {
	case f.list:
		b = append(b, '[')
		for i, list := 0, v.List(); i < list.Len(); i++ {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = c.appendSingle(b, f, list.Get(i)); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case f.key != nil:
		return c.appendMap(b, f, v.Map())
	default:
		return c.appendSingle(b, f, v)
	}
}

func (c *Codec) appendMap(b []byte, f *field, m protoreflect.Map) (_ []byte, err error) {
	b = append(b, '{')
	for i, k := range sortedKeys(f.key.Kind(), m) {
		if i > 0 {
			b = append(b, ',')
		}
		name := k.String()
		if !utf8.ValidString(name) {
			return nil, fmt.Errorf("a key of %s is invalid UTF-8", f.FullName())
		}
		if b, err = c.appendSingle(append(AppendString(b, name), ':'), f, m.Get(k)); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func sortedKeys(kind protoreflect.Kind, m protoreflect.Map) []protoreflect.MapKey {
	keys := make([]protoreflect.MapKey, 0, m.Len())
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k)
		return true
	})
	slices.SortFunc(keys, func(x, y protoreflect.MapKey) int {
		switch kind {
		case protoreflect.StringKind:
			return cmp.Compare(x.String(), y.String())
		case protoreflect.BoolKind:
			return cmp.Compare(x.String(), y.String()) // false, true
		case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
			return cmp.Compare(x.Uint(), y.Uint())
		default:
			return cmp.Compare(x.Int(), y.Int())
		}
	})
	return keys
}

func (c *Codec) appendSingle(b []byte, f *field, v protoreflect.Value) ([]byte, error) {
	switch f.kind {
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
			return nil, fmt.Errorf("%s holds invalid UTF-8", f.FullName())
		}
		return AppendString(b, v.String()), nil
	case protoreflect.BytesKind:
		return append(base64.StdEncoding.AppendEncode(append(b, '"'), v.Bytes()), '"'), nil
	case protoreflect.EnumKind:
		if f.nullValue {
			return append(b, "null"...), nil
		}
		if named := f.enum.Values().ByNumber(v.Enum()); named != nil {
			return append(append(append(b, '"'), named.Name()...), '"'), nil
		}
		return strconv.AppendInt(b, int64(v.Enum()), 10), nil
	default: // messages
		return c.appendMessage(b, f.message, v.Message())
	}
}

func appendTimestamp(b []byte, t *timestamppb.Timestamp) ([]byte, error) {
	if err := t.CheckValid(); t != nil && err != nil {
		return nil, err
	}
	b = t.AsTime().AppendFormat(append(b, '"'), "2006-01-02T15:04:05.000000000")
	for _, zeros := range []string{"000", "000", ".000"} { // 0, 3, 6 or 9 digits
		b = bytes.TrimSuffix(b, []byte(zeros))
	}
	return append(b, `Z"`...), nil
}

func appendStruct(b []byte, s *structpb.Struct) (_ []byte, err error) {
	fields := s.GetFields()
	b = append(b, '{')
	for i, name := range slices.Sorted(maps.Keys(fields)) {
		if !utf8.ValidString(name) {
			return nil, errors.New("a key of a google.protobuf.Struct is invalid UTF-8")
		}
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendValue(append(AppendString(b, name), ':'), fields[name]); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendListValue(b []byte, l *structpb.ListValue) (_ []byte, err error) {
	b = append(b, '[')
	for i, v := range l.GetValues() {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendValue(b, v); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

func appendValue(b []byte, v *structpb.Value) ([]byte, error) {
	switch kind := v.GetKind().(type) {
	case *structpb.Value_NullValue:
		return append(b, "null"...), nil
	case *structpb.Value_BoolValue:
		return strconv.AppendBool(b, kind.BoolValue), nil
	case *structpb.Value_NumberValue:
		if math.IsNaN(kind.NumberValue) || math.IsInf(kind.NumberValue, 0) {
			return nil, fmt.Errorf("a google.protobuf.Value cannot hold %v", kind.NumberValue)
		}
		return appendFloat(b, kind.NumberValue, 64), nil
	case *structpb.Value_StringValue:
		if !utf8.ValidString(kind.StringValue) {
			return nil, errors.New("a google.protobuf.Value holds invalid UTF-8")
		}
		return AppendString(b, kind.StringValue), nil
	case *structpb.Value_StructValue:
		return appendStruct(b, kind.StructValue)
	case *structpb.Value_ListValue:
		return appendListValue(b, kind.ListValue)
	default:
		return nil, errors.New("a google.protobuf.Value is empty")
	}
}

// appendFloat appends a number as ECMAScript writes it.
func appendFloat(b []byte, n float64, bits int) []byte {
	switch {
	case math.IsNaN(n):
		return append(b, `"NaN"`...)
	case math.IsInf(n, 1):
		return append(b, `"Infinity"`...)
	case math.IsInf(n, -1):
		return append(b, `"-Infinity"`...)
	}
	abs := math.Abs(n)
	low, high := 1e-6, 1e21
	if bits == 32 {
		low, high = float64(float32(low)), float64(float32(high))
	}
	if abs == 0 || abs >= low && abs < high {
		return strconv.AppendFloat(b, n, 'f', -1, bits)
	}
	b = strconv.AppendFloat(b, n, 'e', -1, bits)
	if l := len(b); l >= 4 && b[l-4] == 'e' && b[l-3] == '-' && b[l-2] == '0' { // e-09 is e-9
		b[l-2] = b[l-1]
		b = b[:l-1]
	}
	return b
}

// AppendString appends a text as JSON. It has to be valid UTF-8.
func AppendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
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
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(append(b, s[written:]...), '"')
}
