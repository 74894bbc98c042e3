package jsonpb

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
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
	// Unknown is set where there is no such field, or no such name of an enum's value.
	Unknown bool
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

// Unmarshal replaces what m holds by what the text says. A field or a name of an enum's value that the type does not have
// is an error, as is everything else that protojson refuses; it is an *Error.
func (c *Codec) Unmarshal(text []byte, m proto.Message) error {
	_, err := c.unmarshal(text, m, false)
	return err
}

// UnmarshalLenient passes over unknown fields and unknown names of enum values. unknown is set where there were any.
func (c *Codec) UnmarshalLenient(text []byte, m proto.Message) (unknown bool, err error) {
	return c.unmarshal(text, m, true)
}

func (c *Codec) unmarshal(text []byte, m proto.Message, lenient bool) (unknown bool, err error) {
	proto.Reset(m)
	r := m.ProtoReflect()
	d := reader{text: text, lenient: lenient}
	d.blanks()
	if err := d.message(c.table(r.Descriptor()), r); err != nil {
		return d.unknown, err
	}
	if d.at < len(d.text) {
		return d.unknown, d.fail("there is something after the end of the value")
	}
	return d.unknown, nil
}

// reader reads one text. After each token it stands at the next one, past the blanks between them.
type reader struct {
	text    []byte
	at      int
	depth   int
	lenient bool
	unknown bool
}

func (d *reader) fail(format string, args ...any) *Error {
	return &Error{Message: fmt.Sprintf(format, args...) + fmt.Sprintf(" (byte %d)", d.at)}
}

// unexpected is the error for a token that cannot stand here.
func (d *reader) unexpected(wanted string) *Error {
	if d.at >= len(d.text) {
		return d.fail("the text ends early, want %s", wanted)
	}
	return d.fail("found %q, want %s", d.text[d.at], wanted)
}

func (d *reader) blanks() {
	for d.at < len(d.text) {
		switch d.text[d.at] {
		case ' ', '\n', '\r', '\t':
			d.at++
		default:
			return
		}
	}
}

// next is the first character of the next token; 0 at the end.
func (d *reader) next() byte {
	if d.at < len(d.text) {
		return d.text[d.at]
	}
	return 0
}

// take takes a punctuation mark, if that is what comes next.
func (d *reader) take(mark byte) bool {
	if d.next() != mark {
		return false
	}
	d.at++
	d.blanks()
	return true
}

// word takes null, true or false, if that is what comes next.
func (d *reader) word(w string) bool {
	end := d.at + len(w)
	if end > len(d.text) || string(d.text[d.at:end]) != w || end < len(d.text) && inWord(d.text[end]) {
		return false
	}
	d.at = end
	d.blanks()
	return true
}

func inWord(c byte) bool {
	return c == '-' || c == '+' || c == '.' || c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// members reads an object: each reads one member's value.
func (d *reader) members(each func(name []byte) error) error {
	if !d.take('{') {
		return d.unexpected("an object")
	}
	if d.take('}') {
		return nil
	}
	for {
		name, err := d.string()
		if err != nil {
			return err
		}
		if !d.take(':') {
			return d.unexpected("a colon")
		}
		if err := each(name); err != nil {
			return err
		}
		if d.take('}') {
			return nil
		}
		if !d.take(',') {
			return d.unexpected("a comma or the end of the object")
		}
	}
}

// elements reads an array: each reads one element.
func (d *reader) elements(each func() error) error {
	if !d.take('[') {
		return d.unexpected("an array")
	}
	if d.take(']') {
		return nil
	}
	for i := 0; ; i++ {
		if err := each(); err != nil {
			return within("["+strconv.Itoa(i)+"]", err)
		}
		if d.take(']') {
			return nil
		}
		if !d.take(',') {
			return d.unexpected("a comma or the end of the array")
		}
	}
}

// enter counts a message that lies in another.
func (d *reader) enter() error {
	if d.depth++; d.depth > maxDepth {
		return d.fail("it is nested too deeply")
	}
	return nil
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
	}
	if t.form != object {
		return d.foreign(m)
	}
	var fields, oneofs indexes
	return d.members(func(name []byte) error {
		f := t.byName[string(name)]
		if f == nil {
			d.unknown = true
			if d.lenient {
				return d.skip()
			}
			return within(string(name), &Error{Message: "there is no such field", Unknown: true})
		}
		if !fields.add(f.index) {
			return within(f.name, d.fail("the field is there twice"))
		}
		// null is the same as nothing, except where it is a value.
		if d.next() == 'n' && (f.message == nil || f.message.form != value) && !f.nullValue && d.word("null") {
			return nil
		}
		if f.oneof >= 0 && !oneofs.add(f.oneof) {
			return within(f.name, d.fail("another field of the same oneof is set"))
		}
		if err := d.field(f, m); err != nil {
			return within(f.name, err)
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
		if d.lenient {
			return protoreflect.Value{}, nil
		}
		return protoreflect.Value{}, &Error{Message: fmt.Sprintf("%s has no value %q", f.enum.FullName(), name), Unknown: true}
	case c == 'n' && f.nullValue && d.word("null"):
		return protoreflect.ValueOfEnum(0), nil
	case c == '-' || '0' <= c && c <= '9':
		n, err := d.number(protoreflect.Int32Kind)
		if err != nil {
			return n, err
		}
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n.Int())), nil //nolint:gosec // an int32
	default:
		return protoreflect.Value{}, d.unexpected("the name of a value")
	}
}

// number reads a number, which may be in quotes.
func (d *reader) number(kind protoreflect.Kind) (v protoreflect.Value, err error) {
	at := d.at
	var literal string
	if d.next() == '"' {
		text, err := d.string()
		if err != nil {
			return v, err
		}
		literal = string(text)
		if kind == protoreflect.FloatKind || kind == protoreflect.DoubleKind {
			if n, ok := map[string]float64{"NaN": math.NaN(), "Infinity": math.Inf(1), "-Infinity": math.Inf(-1)}[literal]; ok {
				return floatValue(kind, n), nil
			}
		}
		if end := scanNumber(text); end == 0 || end != len(text) {
			d.at = at
			return v, d.fail("%q is no number", literal)
		}
	} else {
		end := scanNumber(d.text[d.at:])
		if end == 0 {
			return v, d.unexpected("a number")
		}
		literal = string(d.text[d.at : d.at+end])
		d.at += end
		d.blanks()
	}
	v, ok := numberValue(kind, literal)
	if !ok {
		d.at = at
		return v, d.fail("%.40s is not of the type %v", literal, kind)
	}
	return v, nil
}

func floatValue(kind protoreflect.Kind, n float64) protoreflect.Value {
	if kind == protoreflect.FloatKind {
		return protoreflect.ValueOfFloat32(float32(n))
	}
	return protoreflect.ValueOfFloat64(n)
}

func numberValue(kind protoreflect.Kind, literal string) (protoreflect.Value, bool) {
	if kind == protoreflect.FloatKind {
		n, err := strconv.ParseFloat(literal, 32)
		return protoreflect.ValueOfFloat32(float32(n)), err == nil
	}
	if kind == protoreflect.DoubleKind {
		n, err := strconv.ParseFloat(literal, 64)
		return protoreflect.ValueOfFloat64(n), err == nil
	}
	if strings.ContainsAny(literal, ".eE") {
		var ok bool
		if literal, ok = wholeNumber(literal); !ok {
			return protoreflect.Value{}, false
		}
	}
	switch kind {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		n, err := strconv.ParseInt(literal, 10, 32)
		return protoreflect.ValueOfInt32(int32(n)), err == nil
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		n, err := strconv.ParseInt(literal, 10, 64)
		return protoreflect.ValueOfInt64(n), err == nil
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		n, err := strconv.ParseUint(literal, 10, 32)
		return protoreflect.ValueOfUint32(uint32(n)), err == nil
	default:
		n, err := strconv.ParseUint(literal, 10, 64)
		return protoreflect.ValueOfUint64(n), err == nil
	}
}

// wholeNumber writes a number with a fraction or an exponent as digits alone, where it is whole: 1.20e1 is 12.
func wholeNumber(literal string) (string, bool) {
	const mostDigits = 20 // of a uint64
	digits, exponent := literal, 0
	if i := strings.IndexAny(literal, "eE"); i >= 0 {
		digits = literal[:i]
		if literal[i+1:] != "" { // as protojson has it, "1e" is 1
			n, err := strconv.ParseInt(literal[i+1:], 10, 32)
			if err != nil {
				// The exponent of zero is of no account.
				return "0", strings.Trim(digits, "-0.") == ""
			}
			exponent = int(n)
		}
	}
	digits, negative := strings.CutPrefix(digits, "-")
	whole, fraction, _ := strings.Cut(digits, ".")
	whole, fraction = strings.TrimLeft(whole, "0"), strings.TrimRight(fraction, "0")
	if whole == "" && fraction == "" {
		return "0", true
	}
	if exponent >= 0 {
		if len(fraction) > exponent || len(whole)+exponent > mostDigits {
			return "", false
		}
		digits = whole + fraction + strings.Repeat("0", exponent-len(fraction))
	} else {
		point := len(whole) + exponent
		if fraction != "" || point < 0 || strings.Trim(whole[point:], "0") != "" {
			return "", false
		}
		digits = whole[:point]
	}
	if negative {
		digits = "-" + digits
	}
	return digits, true
}

// scanNumber returns the length of the number at the beginning of a text; 0: there is none.
func scanNumber(s []byte) int {
	n := 0
	at := func() byte {
		if n < len(s) {
			return s[n]
		}
		return 0
	}
	run := func() (some bool) {
		for '0' <= at() && at() <= '9' {
			n++
			some = true
		}
		return some
	}
	if at() == '-' {
		n++
	}
	if at() == '0' {
		n++
	} else if !run() {
		return 0
	}
	if at() == '.' && n+1 < len(s) && '0' <= s[n+1] && s[n+1] <= '9' {
		n++
		run()
	}
	if c := at(); (c == 'e' || c == 'E') && n+1 < len(s) {
		n++
		if at() == '+' || at() == '-' {
			n++
			if n == len(s) {
				return 0
			}
		}
		run()
	}
	if n < len(s) && inWord(s[n]) {
		return 0
	}
	return n
}

// string reads a text in quotes. The result is part of the input where it has no escapes, and valid until the next call
// where it has.
func (d *reader) string() ([]byte, error) {
	if d.next() != '"' {
		return nil, d.unexpected("a text in quotes")
	}
	start := d.at + 1
	ascii := true
	for i := start; i < len(d.text); i++ {
		switch c := d.text[i]; {
		case c == '"':
			if !ascii && !utf8.Valid(d.text[start:i]) {
				return nil, d.fail("the text is not valid UTF-8")
			}
			d.at = i + 1
			d.blanks()
			return d.text[start:i], nil
		case c == '\\':
			return d.escaped(start, i)
		case c < ' ':
			d.at = i
			return nil, d.fail("a text holds the control character %q", c)
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return nil, d.unexpected("the closing quote")
}

// escaped reads the text that begins at start and has its first escape at i.
func (d *reader) escaped(start, i int) ([]byte, error) {
	out := append([]byte(nil), d.text[start:i]...)
	for i < len(d.text) {
		c := d.text[i]
		switch {
		case c == '"':
			if !utf8.Valid(out) {
				return nil, d.fail("the text is not valid UTF-8")
			}
			d.at = i + 1
			d.blanks()
			return out, nil
		case c < ' ':
			d.at = i
			return nil, d.fail("a text holds the control character %q", c)
		case c != '\\':
			out = append(out, c)
			i++
			continue
		}
		r, n := unescape(d.text[i:])
		if n == 0 {
			d.at = i
			return nil, d.fail("a text holds a bad escape")
		}
		out = utf8.AppendRune(out, r)
		i += n
	}
	d.at = len(d.text)
	return nil, d.unexpected("the closing quote")
}

// unescape reads an escape; n is its length, 0 where it is none. Halves of a surrogate pair alone are none.
func unescape(s []byte) (r rune, n int) {
	if len(s) < 2 {
		return 0, 0
	}
	switch s[1] {
	case '"', '\\', '/':
		return rune(s[1]), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	}
	unit, ok := unicodeEscape(s)
	switch {
	case !ok:
		return 0, 0
	case unit < 0xd800 || unit > 0xdfff:
		return unit, 6
	}
	low, ok := unicodeEscape(s[6:])
	if !ok || unit > 0xdbff || low < 0xdc00 || low > 0xdfff {
		return 0, 0
	}
	return (unit-0xd800)<<10 + low - 0xdc00 + 0x10000, 12
}

// unicodeEscape reads \uXXXX.
func unicodeEscape(s []byte) (unit rune, ok bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(s[2:6]), 16, 16)
	return rune(n), err == nil
}

// skip passes over a value, which has to be well formed.
func (d *reader) skip() error {
	switch c := d.next(); {
	case c == '{':
		if err := d.enter(); err != nil {
			return err
		}
		defer func() { d.depth-- }()
		return d.members(func([]byte) error { return d.skip() })
	case c == '[':
		if err := d.enter(); err != nil {
			return err
		}
		defer func() { d.depth-- }()
		return d.elements(d.skip)
	case c == '"':
		_, err := d.string()
		return err
	case d.word("null") || d.word("true") || d.word("false"):
		return nil
	default:
		n := scanNumber(d.text[d.at:])
		if n == 0 {
			return d.unexpected("a value")
		}
		d.at += n
		d.blanks()
		return nil
	}
}

// foreign hands a value to protojson.
func (d *reader) foreign(m protoreflect.Message) error {
	start := d.at
	if err := d.skip(); err != nil {
		return err
	}
	o := protojson.UnmarshalOptions{RecursionLimit: maxDepth - d.depth + 1}
	err := o.Unmarshal(d.text[start:d.at], m.Interface())
	if err != nil && d.lenient {
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
		number, err := strconv.ParseFloat(string(d.text[d.at:d.at+n]), 64)
		if err != nil {
			return d.fail("%.40s is too large a number", d.text[d.at:d.at+n])
		}
		v.Kind = &structpb.Value_NumberValue{NumberValue: number}
		d.at += n
		d.blanks()
	}
	return nil
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
