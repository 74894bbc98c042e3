package jsonpb

import (
	"fmt"
	"strconv"
	"unicode/utf8"
)

// reader reads one text. After each token it stands at the next one, past the blanks between them.
type reader struct {
	text    []byte
	at      int
	depth   int
	pass    Pass
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
			if half, ok := unicodeEscape(d.text[i:]); ok {
				return nil, d.fail("a text holds half of a surrogate pair, \\u%04x; send both halves in one text", half)
			}
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
