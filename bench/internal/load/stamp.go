package load

import (
	"strconv"
	"strings"
	"time"
)

// textSize is the length of a message's text, in bytes.
const textSize = 100

const filler = "Please look at the flaky login test, find out why it fails on a slow machine, and write down what you saw."

// Stamp is what a message's text begins with, so that the message is known again wherever it turns up.
type Stamp struct {
	// Writer is the session that sent it, Number its place among that session's messages, from 0.
	Writer, Number int
	// Sent is when it was due to be sent, since the run began.
	Sent time.Duration
}

// Text is the whole text of the message; equal stamps make equal texts.
func (s Stamp) Text() string {
	b := make([]byte, 0, textSize)
	b = append(b, 'w')
	b = strconv.AppendInt(b, int64(s.Writer), 10)
	b = append(b, " m"...)
	b = strconv.AppendInt(b, int64(s.Number), 10)
	b = append(b, " t"...)
	b = strconv.AppendInt(b, int64(s.Sent), 10)
	b = append(b, ' ')
	return string(append(b, filler[:textSize-len(b)]...))
}

// ParseStamp reads a text's stamp. It is false where the text is not exactly what Text makes of it.
func ParseStamp(text string) (Stamp, bool) {
	fields := strings.SplitN(text, " ", 4)
	if len(fields) < 4 {
		return Stamp{}, false
	}
	var n [3]int64
	for i, letter := range []string{"w", "m", "t"} {
		digits, ok := strings.CutPrefix(fields[i], letter)
		v, err := strconv.ParseInt(digits, 10, 64)
		if !ok || err != nil || v < 0 {
			return Stamp{}, false
		}
		n[i] = v
	}
	s := Stamp{Writer: int(n[0]), Number: int(n[1]), Sent: time.Duration(n[2])}
	return s, s.Text() == text
}
