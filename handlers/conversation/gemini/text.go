package gemini

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxTurnText is the JSON of an open message's text; words beyond it go into a new message. It is below the limit of a message's text.
const MaxTurnText = 60 << 10

// MaxName bounds provider ids and names: a call with a longer id is not understood, the others are cut.
const MaxName = 128

// FirstBytes is the text's beginning, of at most so many bytes.
func FirstBytes(text string, size int) string {
	if len(text) <= size {
		return text
	}
	return strings.ToValidUTF8(text[:size], "")
}

// LastBytes is the text's end, of at most so many bytes.
func LastBytes(text string, size int) string {
	if len(text) <= size {
		return text
	}
	text = text[len(text)-size:]
	for len(text) > 0 && !utf8.RuneStart(text[0]) {
		text = text[1:]
	}
	return text
}

// Text is a string that Postgres can store: valid UTF-8 without U+0000, which jsonb refuses. Halves of surrogate pairs stand in
// it as private characters from firstHalf on, because the other half may come with the next frame.
type Text string

const (
	firstHalf  = 0x10F800
	lowHalf    = firstHalf + 0x400
	firstSurr  = 0xD800
	surrogates = 0x800
)

// UnmarshalJSON implements [json.Unmarshaler].
func (s *Text) UnmarshalJSON(raw []byte) error {
	if bytes.Contains(raw, []byte(`\ud`)) || bytes.Contains(raw, []byte(`\uD`)) {
		raw = keepHalves(raw)
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return errValue
	}
	*s = Text(CleanText(text))
	return nil
}

// keepHalves writes escapes of surrogates as private characters.
func keepHalves(raw []byte) []byte {
	const escape = len(`\u0000`)
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' || i+1 == len(raw) {
			out = append(out, raw[i])
			continue
		}
		if raw[i+1] == 'u' && i+escape <= len(raw) {
			if n, err := strconv.ParseUint(string(raw[i+2:i+escape]), 16, 16); err == nil && firstSurr <= n && n < firstSurr+surrogates {
				out = utf8.AppendRune(out, rune(firstHalf+n-firstSurr))
				i += escape - 1
				continue
			}
		}
		out = append(out, raw[i], raw[i+1])
		i++
	}
	return out
}

// Whole is the text with its surrogate pairs joined. A half that is alone cannot be read.
func (s Text) Whole() string {
	half := int32(0)
	text := join(string(s), &half)
	if half != 0 {
		text += "\uFFFD"
	}
	return text
}

func join(text string, half *int32) string {
	if *half == 0 && !strings.Contains(text, "\xf4\x8f") { // how private characters of that plane begin
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case *half != 0 && r >= lowHalf:
			b.WriteRune(utf16.DecodeRune(*half, r-firstHalf+firstSurr))
			*half = 0
			continue
		case *half != 0:
			b.WriteRune(utf8.RuneError)
			*half = 0
		}
		switch {
		case r >= lowHalf:
			b.WriteRune(utf8.RuneError)
		case r >= firstHalf:
			*half = r - firstHalf + firstSurr
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// CleanText is a text that Postgres can store: valid UTF-8 without U+0000.
func CleanText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
}

// presence is whether a string is there and not empty, and nothing of the string itself.
type presence bool

func (p *presence) UnmarshalJSON(raw []byte) error {
	*p = len(raw) > 2 && raw[0] == '"'
	return nil
}

// maxHandle is the bytes of a resumption handle that is kept.
const maxHandle = 8 << 10

// secretString is a string that never shows in a log or an error.
type secretString string

func (s *secretString) UnmarshalText(text []byte) error {
	if len(text) > maxHandle || !utf8.Valid(text) {
		return errValue
	}
	*s = secretString(text)
	return nil
}

// String implements [fmt.Stringer].
func (secretString) String() string { return "[secret]" }

// GoString implements [fmt.GoStringer].
func (secretString) GoString() string { return "[secret]" }
