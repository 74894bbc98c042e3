package voice

import (
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

// measure brings the meter of a turn's text up to date. The state keeps it with an open turn, so a piece that is added costs its own
// length and not the turn's. Code that changes a text other than by adding to it removes the meter.
func measure(turn *storev1.Message) *storev1.TextMeter {
	if turn.Meter == nil {
		turn.Meter = &storev1.TextMeter{}
	}
	m, text := turn.GetMeter(), turn.GetText()
	if m.GetBytes() == int64(len(text)) {
		return m
	}
	for _, r := range text[m.GetBytes():] {
		m.JsonBytes += int64(jsonSize(r))
	}
	m.Bytes = int64(len(text))
	m.Tokens, m.Counted, m.Hundredths = gemini.CountFrom(text, m.GetCounted(), m.GetHundredths())
	return m
}
