package gemini

import (
	"math"
	"unicode"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// MessageTokens guesses how many tokens a model is told of a message.
func MessageTokens(m *storev1.Message) int64 {
	return Tokens(m.GetText()) + PartTokens(m.GetParts())
}

// PartTokens guesses how many tokens a model is told of a message's parts.
func PartTokens(parts []*storev1.Part) (n int64) {
	for _, p := range parts {
		switch p := p.GetPart().(type) {
		case *storev1.Part_Text:
			n += Tokens(p.Text)
		case *storev1.Part_ToolCall:
			n += Tokens(ArgsText(p.ToolCall))
		case *storev1.Part_ToolResult:
			n += Tokens(ResponseText(p.ToolResult))
		case *storev1.Part_Json:
			n += Tokens(JSONText(p.Json))
		}
	}
	return n
}

// perLetter is how many tokens a letter takes in scripts that tokenizers cut into pieces of about one length, in hundredths. They were
// measured with the tokenizer of Gemma 3, which is that of the Gemini models whose tokenizer is public.
var perLetter = []struct {
	script     *unicode.RangeTable
	hundredths int
}{
	{unicode.Cyrillic, 30},
	{unicode.Han, 64},
	{unicode.Hiragana, 50},
	{unicode.Katakana, 50},
	{unicode.Hangul, 66},
	{unicode.Arabic, 40},
	{unicode.Thai, 36},
	{unicode.Devanagari, 28},
	{unicode.Bengali, 27},
	{unicode.Tamil, 27},
	{unicode.Telugu, 27},
	{unicode.Kannada, 27},
	{unicode.Malayalam, 27},
	{unicode.Gujarati, 27},
	{unicode.Gurmukhi, 27},
	{unicode.Greek, 44},
	{unicode.Hebrew, 50},
}

// What the rest takes, in hundredths of a token.
const (
	wholeToken = 100
	// A Latin word of more letters is cut.
	wordLetters    = 7
	lettersPerPart = 6
	// Names in code are cut more often: camelCase, and what is in capitals.
	nameLetters, shortNames = 220, 60
	// A letter with an accent, of western and of other languages. The words of the others are cut more often.
	accent, farAccent = 28, 80
	vietnamese        = 20
	// Of marks in a row the first, and each that follows.
	mark, moreMarks = 85, 30
	blankRun        = 50
	emoji           = 90
	otherLetter     = 70
)

// Tokens guesses how many tokens a text has, by the scripts that it is written in. For texts of some length it is within a
// quarter of what a tokenizer counts, unless it is made of what nobody says: keys, hashes, base64.
func Tokens(text string) int64 {
	tokens, _, _ := CountFrom(text, 0, 0)
	return tokens
}

// CountFrom goes on with the count of a text that has grown: up to the byte from, which is between two words, it has so many hundredths of
// a token. It returns the tokens of all of the text, and the last byte between two words with its hundredths, to go on from.
func CountFrom(text string, from, hundredths int64) (tokens, counted, upTo int64) {
	e := estimate{hundredths: int(hundredths)}
	counted, upTo = from, hundredths
	for i, r := range text[from:] {
		if e.blanks == 0 && (isBlank(r) || e.letters == 0 && !e.inMarks) {
			e.endWord()
			e.inMarks = false
			counted, upTo = from+int64(i), int64(e.hundredths)
		}
		e.add(r)
	}
	e.endWord()
	e.endBlanks()
	return int64(math.Ceil(float64(e.hundredths) / wholeToken)), counted, upTo
}

func isBlank(r rune) bool { return r == ' ' || r == '\n' || r == '\t' || r == '\r' }

// estimate counts in hundredths of a token.
type estimate struct {
	hundredths int
	// The Latin word so far.
	letters, accents, capitals int
	inMarks                    bool
	turns                      bool // a capital follows a small letter
	small                      bool // the last letter was one
	// The run of blanks so far.
	blanks  int
	newline bool
}

func (e *estimate) add(r rune) {
	if isBlank(r) {
		e.endWord()
		e.inMarks = false
		e.blanks++
		e.newline = e.newline || r == '\n'
		return
	}
	e.endBlanks()
	marks := e.inMarks
	e.inMarks = false
	if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || r > unicode.MaxASCII && unicode.In(r, unicode.Latin, unicode.Inherited) {
		e.letter(r)
		return
	}
	e.endWord()
	switch {
	case '0' <= r && r <= '9':
		e.hundredths += wholeToken
	case r <= unicode.MaxASCII && marks:
		e.hundredths += moreMarks
		e.inMarks = true
	case r <= unicode.MaxASCII:
		e.hundredths += mark
		e.inMarks = true
	case unicode.IsPunct(r):
		e.hundredths += mark
	case unicode.IsLetter(r), unicode.IsMark(r):
		e.hundredths += scriptOf(r)
	default:
		e.hundredths += emoji
	}
}

func scriptOf(r rune) int {
	for _, s := range perLetter {
		if unicode.Is(s.script, r) {
			return s.hundredths
		}
	}
	return otherLetter
}

func (e *estimate) letter(r rune) {
	e.letters++
	switch {
	case r <= unicode.MaxASCII:
	case r <= unicode.MaxLatin1:
		e.accents += accent
	case r < 0x180: //nolint:mnd // Latin Extended-A
		e.accents += farAccent
	default:
		e.accents += vietnamese
	}
	capital := unicode.IsUpper(r)
	if capital {
		e.capitals++
		e.turns = e.turns || e.small
	}
	e.small = !capital
}

func (e *estimate) endWord() {
	if e.letters == 0 {
		return
	}
	name := e.turns || e.capitals == e.letters && e.letters > 1
	switch {
	case name && e.letters > wordLetters:
		e.hundredths += e.letters * wholeToken * wholeToken / nameLetters
	case name:
		e.hundredths += wholeToken + shortNames
	case e.letters > wordLetters:
		e.hundredths += e.letters * wholeToken / lettersPerPart
	default:
		e.hundredths += wholeToken
	}
	e.hundredths += e.accents
	e.letters, e.accents, e.capitals, e.turns, e.small = 0, 0, 0, false, false
}

func (e *estimate) endBlanks() {
	switch {
	case e.newline:
		e.hundredths += wholeToken
	case e.blanks > 1:
		e.hundredths += blankRun
	}
	e.blanks, e.newline = 0, false
}
