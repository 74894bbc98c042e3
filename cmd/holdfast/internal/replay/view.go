package replay

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
)

// View is the conversation as a watcher knows it.
type View struct {
	version  int64
	cursor   string
	messages map[int32]*conversationv1.Message
	calls    map[int32]*conversationv1.ToolCall
	voice    conversationv1.VoiceStatus
}

// Apply takes in a message of a watch, and returns a line for each message and tool call that it made or changed.
func (v *View) Apply(m *watchv1.WatchResponse) []string {
	if m.GetCursor() != "" {
		v.cursor = m.GetCursor()
	}
	c := m.GetChanged()
	if c == nil {
		return nil
	}
	if c.GetReset_() || v.messages == nil {
		v.messages, v.calls = map[int32]*conversationv1.Message{}, map[int32]*conversationv1.ToolCall{}
	}
	v.version = max(v.version, c.GetVersion())
	var lines []string
	for _, t := range c.GetPut() {
		if t.GetConversation() != nil {
			v.voice = t.GetConversation().GetVoice().GetStatus()
		}
		if m := t.GetMessage(); m != nil {
			v.messages[m.GetSeq()] = m
			lines = append(lines, messageLine(m))
		}
		if call := t.GetRecord().GetToolCall(); call != nil {
			v.calls[call.GetSeq()] = call
			lines = append(lines, callLine(call))
		}
	}
	for _, key := range c.GetRemoved() {
		collection, seq, _ := strings.Cut(key, "/")
		if n, err := strconv.ParseInt(seq, 10, 32); err == nil && collection == "messages" {
			delete(v.messages, int32(n))
		}
	}
	return lines
}

// Cursor is where a watch goes on.
func (v *View) Cursor() string { return v.cursor }

// Version is that of the last change.
func (v *View) Version() int64 { return v.version }

// Messages and ToolCalls count what the conversation has.
func (v *View) Messages() int { return len(v.messages) }

// ToolCalls counts the tool calls.
func (v *View) ToolCalls() int { return len(v.calls) }

// Lines shows the conversation as it is: the last count messages and tool calls, in the order in which they were said and made, and the
// voice state.
func (v *View) Lines(count int) []string {
	var lines []string
	calls := slices.Sorted(maps.Keys(v.calls))
	until := func(seq int32) {
		for len(calls) > 0 && v.calls[calls[0]].GetAfterSeq() < seq {
			lines, calls = append(lines, callLine(v.calls[calls[0]])), calls[1:]
		}
	}
	for _, seq := range slices.Sorted(maps.Keys(v.messages)) {
		until(seq)
		lines = append(lines, messageLine(v.messages[seq]))
	}
	until(math.MaxInt32)
	lines = lines[max(0, len(lines)-count):]
	return append(lines, fmt.Sprintf("version %d, voice %s", v.version, word(v.voice.String())))
}

func messageLine(m *conversationv1.Message) string {
	return fmt.Sprintf("[#%d %s %s %s] %s", m.GetSeq(), word(m.GetRole().String()), word(m.GetModality().String()), word(m.GetStatus().String()), oneLine(m.GetText()))
}

func callLine(t *conversationv1.ToolCall) string {
	return fmt.Sprintf("[tool %s %s] %s", oneLine(t.GetCallId()), word(t.GetStatus().String()), oneLine(t.GetName()))
}

// prefixes are what the names of the enums' values begin with.
var prefixes = []string{"ROLE_", "MODALITY_", "MESSAGE_STATUS_", "TOOL_CALL_STATUS_", "VOICE_STATUS_"}

// word makes "assistant" of "ROLE_ASSISTANT".
func word(name string) string {
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(name, p); ok {
			return strings.ToLower(rest)
		}
	}
	return strings.ToLower(name)
}

// maxText is how much of a text is shown, in characters.
const maxText = 160

// oneLine makes a text fit into a line. Control characters become spaces: what somebody said must not command the
// terminal.
func oneLine(text string) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.TrimSpace(text)))
	if len(runes) > maxText {
		return string(runes[:maxText]) + "…"
	}
	return string(runes)
}

// Screen draws lines on a terminal, each time in the place of the last.
type Screen struct {
	w     io.Writer
	drawn int
}

// NewScreen returns a screen that draws where w's cursor is.
func NewScreen(w io.Writer) *Screen { return &Screen{w: w} }

// Draw replaces what was drawn. A line longer than the terminal is wide is cut there by the terminal, which keeps the
// count of lines to go back right whatever its width.
func (s *Screen) Draw(lines []string) {
	const wrapOff, wrapOn, restOfLine, restOfScreen = "\x1b[?7l", "\x1b[?7h", "\x1b[K", "\x1b[J"
	var b strings.Builder
	b.WriteString(wrapOff)
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", s.drawn)
	}
	for _, l := range lines {
		b.WriteString(l + restOfLine + "\n")
	}
	b.WriteString(restOfScreen + wrapOn)
	s.drawn = len(lines)
	fmt.Fprint(s.w, b.String())
}
