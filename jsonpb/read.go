package jsonpb

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxDepth is how many messages may lie in one another, as in protojson.
const maxDepth = 10_000

// maxPath is how long an error's path may get: what lies deeper than that is told without its outermost names.
const maxPath = 200

// Error says what is wrong with a JSON text, and where.
type Error struct {
	// Path of the field, such as "messages[0].text"; empty: the text as a whole.
	Path string
	// Message is for people.
	Message string
	// Unknown is set where there is no such field, or no such value of an enum.
	Unknown bool
	// Inexact is set for a number that its type would round, cut off or not hold at all.
	Inexact bool
}

func (e *Error) Error() string {
	if e.Path == "" {
		return "jsonpb: " + e.Message
	}
	return "jsonpb: " + e.Path + ": " + e.Message
}

// within adds the name of a field, or an index, in front of an error's path.
func within(name string, err error) error {
	e, ok := err.(*Error) //nolint:errorlint // nothing wraps it on its way
	if !ok {
		return err
	}
	switch {
	case len(e.Path) > maxPath:
	case e.Path == "":
		e.Path = name
	case e.Path[0] == '[':
		e.Path = name + e.Path
	default:
		e.Path = name + "." + e.Path
	}
	return e
}

// Pass is a set of faults that a reader passes over.
type Pass uint8

const (
	// Unknown skips fields and names of enum values that the type does not have, and keeps unknown numbers of enum values.
	Unknown Pass = 1 << iota
	// Inexact rounds numbers that a double cannot hold, as protojson does.
	Inexact
)

// Unmarshal replaces what m holds by what the text says. What protojson refuses is an *Error, and so are unknown values of enums
// and inexact numbers, except for what pass names. unknown reports whether something unknown was passed over.
func (c *Codec) Unmarshal(text []byte, m proto.Message, pass Pass) (unknown bool, err error) {
	proto.Reset(m)
	r := m.ProtoReflect()
	d := reader{text: text, pass: pass}
	d.blanks()
	if err := d.message(c.table(r.Descriptor()), r); err != nil {
		return d.unknown, err
	}
	if d.at < len(d.text) {
		return d.unknown, d.fail("there is something after the end of the value")
	}
	return d.unknown, nil
}

// Check refuses what is no JSON value, nests deeper than levels, or has a name twice in one object. Numbers may be any.
func Check(text []byte, levels int) error {
	d := reader{text: text}
	d.blanks()
	if err := d.check(levels); err != nil {
		return err
	}
	if d.at < len(d.text) {
		return d.fail("there is something after the end of the value")
	}
	return nil
}

func (d *reader) check(levels int) error {
	mark := d.next()
	if mark != '{' && mark != '[' {
		return d.skip()
	}
	if levels == 0 {
		return d.fail("it is nested too deeply")
	}
	if mark == '[' {
		return d.elements(func() error { return d.check(levels - 1) })
	}
	names := map[string]bool{}
	return d.members(func(name []byte) error {
		key := string(name)
		if names[key] {
			return within(key, d.fail("the key is there twice"))
		}
		names[key] = true
		return within(key, d.check(levels-1))
	})
}

func (d *reader) message(t *table, m protoreflect.Message) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer func() { d.depth-- }()
	switch message := m.Interface().(type) {
	case *timestamppb.Timestamp:
		return d.timestamp(message)
	case *structpb.Struct:
		return d.structure(message)
	case *structpb.Value:
		return d.value(message)
	case *structpb.ListValue:
		return d.listValue(message)
	case *fieldmaskpb.FieldMask:
		return d.fieldMask(message)
	}
	if t.form != object {
		return d.foreign(m)
	}
	var fields, oneofs indexes
	return d.members(func(name []byte) error {
		f := t.byName[string(name)]
		if f == nil {
			d.unknown = true
			if d.pass&Unknown != 0 {
				return d.skip()
			}
			return within(string(name), &Error{Message: fmt.Sprintf("%s has no such field", m.Descriptor().FullName()), Unknown: true})
		}
		if !fields.add(f.index) {
			return within(string(name), d.fail("the field is there twice"))
		}
		// null is the same as nothing, except where it is a value.
		if d.next() == 'n' && (f.message == nil || f.message.form != value) && !f.nullValue && d.word("null") {
			return nil
		}
		if f.oneof >= 0 && !oneofs.add(f.oneof) {
			return within(string(name), d.fail("another field of the same oneof is set"))
		}
		if err := d.field(f, m); err != nil {
			return within(string(name), err)
		}
		return nil
	})
}

func (d *reader) field(f *field, m protoreflect.Message) error {
	switch {
	case f.list:
		list := m.Mutable(f.FieldDescriptor).List()
		return d.elements(func() error {
			v, err := d.single(f, list.NewElement)
			if err == nil && v.IsValid() {
				list.Append(v)
			}
			return err
		})
	case f.key != nil:
		return d.mapping(f, m.Mutable(f.FieldDescriptor).Map())
	default:
		v, err := d.single(f, func() protoreflect.Value { return m.NewField(f.FieldDescriptor) })
		if err == nil && v.IsValid() {
			m.Set(f.FieldDescriptor, v)
		}
		return err
	}
}

func (d *reader) mapping(f *field, m protoreflect.Map) error {
	return d.members(func(name []byte) error {
		key, ok := mapKey(f.key.Kind(), string(name))
		if !ok {
			return within(string(name), d.fail("the key is not of the type %v", f.key.Kind()))
		}
		if m.Has(key) {
			return within(string(name), d.fail("the key is there twice"))
		}
		v, err := d.single(f, m.NewValue)
		if err == nil && v.IsValid() {
			m.Set(key, v)
		}
		return within(string(name), err)
	})
}

func mapKey(kind protoreflect.Kind, name string) (_ protoreflect.MapKey, ok bool) {
	var v protoreflect.Value
	var err error
	switch kind {
	case protoreflect.StringKind:
		v = protoreflect.ValueOfString(name)
	case protoreflect.BoolKind:
		v = protoreflect.ValueOfBool(name == "true")
		ok = name == "true" || name == "false"
		return v.MapKey(), ok
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		var n int64
		n, err = strconv.ParseInt(name, 10, 32)
		v = protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		var n int64
		n, err = strconv.ParseInt(name, 10, 64)
		v = protoreflect.ValueOfInt64(n)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		var n uint64
		n, err = strconv.ParseUint(name, 10, 32)
		v = protoreflect.ValueOfUint32(uint32(n))
	default:
		var n uint64
		n, err = strconv.ParseUint(name, 10, 64)
		v = protoreflect.ValueOfUint64(n)
	}
	return v.MapKey(), err == nil
}

// single reads a value that is no list and no map. An invalid value without an error is one to pass over.
func (d *reader) single(f *field, newMessage func() protoreflect.Value) (protoreflect.Value, error) {
	switch f.kind {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		v := newMessage()
		return v, d.message(f.message, v.Message())
	case protoreflect.BoolKind:
		if d.word("true") {
			return protoreflect.ValueOfBool(true), nil
		}
		if d.word("false") {
			return protoreflect.ValueOfBool(false), nil
		}
		return protoreflect.Value{}, d.unexpected("true or false")
	case protoreflect.StringKind:
		s, err := d.string()
		return protoreflect.ValueOfString(string(s)), err
	case protoreflect.BytesKind:
		return d.bytes()
	case protoreflect.EnumKind:
		return d.enum(f)
	default:
		return d.number(f.kind)
	}
}

func (d *reader) bytes() (protoreflect.Value, error) {
	at := d.at
	text, err := d.string()
	if err != nil {
		return protoreflect.Value{}, err
	}
	s := string(text)
	encoding := base64.StdEncoding
	if strings.ContainsAny(s, "-_") {
		encoding = base64.URLEncoding
	}
	if len(s)%4 != 0 {
		encoding = encoding.WithPadding(base64.NoPadding)
	}
	b, err := encoding.DecodeString(s)
	if err != nil {
		d.at = at
		return protoreflect.Value{}, d.fail("the text is not base64")
	}
	return protoreflect.ValueOfBytes(b), nil
}

func (d *reader) enum(f *field) (protoreflect.Value, error) {
	switch c := d.next(); {
	case c == '"':
		name, err := d.string()
		if err != nil {
			return protoreflect.Value{}, err
		}
		if v := f.enum.Values().ByName(protoreflect.Name(name)); v != nil {
			return protoreflect.ValueOfEnum(v.Number()), nil
		}
		d.unknown = true
		if d.pass&Unknown != 0 {
			return protoreflect.Value{}, nil
		}
		return protoreflect.Value{}, noSuchValue(f.enum, strconv.Quote(string(name)))
	case c == 'n' && f.nullValue && d.word("null"):
		return protoreflect.ValueOfEnum(0), nil
	case c == '-' || '0' <= c && c <= '9':
		n, err := d.number(protoreflect.Int32Kind)
		if err != nil {
			return n, err
		}
		number := protoreflect.EnumNumber(n.Int()) //nolint:gosec // an int32
		if d.pass&Unknown == 0 && f.enum.Values().ByNumber(number) == nil {
			return protoreflect.Value{}, noSuchValue(f.enum, strconv.Itoa(int(number)))
		}
		return protoreflect.ValueOfEnum(number), nil
	default:
		return protoreflect.Value{}, d.unexpected("the name of a value")
	}
}

func noSuchValue(enum protoreflect.EnumDescriptor, spelt string) *Error {
	const most = 20
	var names []string
	for i := range min(enum.Values().Len(), most) {
		names = append(names, string(enum.Values().Get(i).Name()))
	}
	if enum.Values().Len() > most {
		names = append(names, "…")
	}
	return &Error{Message: fmt.Sprintf("%s has no value %.100s; it has %s", enum.FullName(), spelt, strings.Join(names, ", ")), Unknown: true}
}

// indexes is a set of small numbers.
type indexes struct {
	low  uint64
	high map[int]bool
}

// add is false where the number is there already.
func (s *indexes) add(i int) bool {
	if i < 64 {
		had := s.low&(1<<i) != 0
		s.low |= 1 << i
		return !had
	}
	if s.high == nil {
		s.high = map[int]bool{}
	}
	had := s.high[i]
	s.high[i] = true
	return !had
}
