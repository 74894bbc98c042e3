package jsonpb

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// foreign hands a value to protojson.
func (d *reader) foreign(m protoreflect.Message) error {
	start := d.at
	if err := d.skip(); err != nil {
		return err
	}
	o := protojson.UnmarshalOptions{RecursionLimit: maxDepth - d.depth + 1}
	err := o.Unmarshal(d.text[start:d.at], m.Interface())
	if err != nil && d.pass&Unknown != 0 {
		o.DiscardUnknown = true
		if lenient := o.Unmarshal(d.text[start:d.at], m.Interface()); lenient == nil {
			d.unknown, err = true, nil
		}
	}
	if err != nil {
		return &Error{Message: fmt.Sprintf("it is no %s", m.Descriptor().FullName())}
	}
	return nil
}

func (d *reader) timestamp(t *timestamppb.Timestamp) error {
	at := d.at
	text, err := d.string()
	if err != nil {
		return err
	}
	s := string(text)
	parsed, err := time.Parse(time.RFC3339Nano, s)
	point, zone := strings.LastIndexByte(s, '.'), strings.LastIndexAny(s, "Z-+")
	tooFine := point >= 0 && zone >= point && zone-point > len(".999999999")
	t.Seconds, t.Nanos = parsed.Unix(), int32(parsed.Nanosecond()) //nolint:gosec // below 10^9
	if err != nil || tooFine || t.CheckValid() != nil {
		d.at = at
		return d.fail("it is no time as in RFC 3339, such as 2026-01-02T03:04:05Z")
	}
	return nil
}

// fieldMask reads paths as they are spelt, but for the first name of each, which may be in either spelling. protojson takes a key for a
// name in camelCase ("labels.ENG"), and refuses one with an underscore.
func (d *reader) fieldMask(m *fieldmaskpb.FieldMask) error {
	text, err := d.string()
	if err != nil || len(text) == 0 {
		return err
	}
	for path := range strings.SplitSeq(string(text), ",") {
		name, rest, dot := strings.Cut(strings.TrimSpace(path), ".")
		name = snakeCase(name)
		if dot {
			name += "." + rest
		}
		m.Paths = append(m.Paths, name)
	}
	return nil
}

func snakeCase(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		if 'A' <= c && c <= 'Z' {
			b.WriteByte('_')
			c += 'a' - 'A'
		}
		b.WriteByte(c)
	}
	return b.String()
}

func (d *reader) structure(s *structpb.Struct) error {
	s.Fields = map[string]*structpb.Value{}
	return d.members(func(name []byte) error {
		key := string(name)
		if _, twice := s.GetFields()[key]; twice {
			return within(key, d.fail("the key is there twice"))
		}
		v := &structpb.Value{}
		s.Fields[key] = v
		return within(key, d.nested(v))
	})
}

func (d *reader) listValue(l *structpb.ListValue) error {
	return d.elements(func() error {
		v := &structpb.Value{}
		l.Values = append(l.Values, v)
		return d.nested(v)
	})
}

func (d *reader) nested(v *structpb.Value) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer func() { d.depth-- }()
	return d.value(v)
}

func (d *reader) value(v *structpb.Value) error {
	switch c := d.next(); {
	case c == '{':
		s := &structpb.Struct{}
		v.Kind = &structpb.Value_StructValue{StructValue: s}
		return d.structure(s)
	case c == '[':
		l := &structpb.ListValue{}
		v.Kind = &structpb.Value_ListValue{ListValue: l}
		return d.listValue(l)
	case c == '"':
		s, err := d.string()
		v.Kind = &structpb.Value_StringValue{StringValue: string(s)}
		return err
	case d.word("null"):
		v.Kind = &structpb.Value_NullValue{}
	case d.word("true"):
		v.Kind = &structpb.Value_BoolValue{BoolValue: true}
	case d.word("false"):
		v.Kind = &structpb.Value_BoolValue{BoolValue: false}
	default:
		n := scanNumber(d.text[d.at:])
		if n == 0 {
			return d.unexpected("a value")
		}
		literal := string(d.text[d.at : d.at+n])
		number, err := strconv.ParseFloat(literal, 64)
		if err != nil || d.pass&Inexact == 0 && !IsExact(literal, number) {
			return d.inexact(literal, protoreflect.DoubleKind)
		}
		v.Kind = &structpb.Value_NumberValue{NumberValue: number}
		d.at += n
		d.blanks()
	}
	return nil
}
