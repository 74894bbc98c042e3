package conversation

import (
	"slices"

	"google.golang.org/protobuf/proto"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// windowItem is one piece of a conversation, as a context window has it: a message, or a tool call of the Live API with
// its response, which are never parted.
type windowItem struct {
	message *storev1.Message
	call    *storev1.ToolCall
	// cost is the item's tokens where its content was let go; nil: it was not.
	cost *int64
}

// outline is an item without its content: what it costs, and what says where a window may begin and a summary end.
func (i windowItem) outline() windowItem {
	cost := i.tokens()
	if i.call != nil {
		return windowItem{call: &storev1.ToolCall{Seq: i.call.GetSeq(), AfterSeq: i.call.GetAfterSeq(), Status: i.call.GetStatus()}, cost: &cost}
	}
	m := &storev1.Message{Seq: i.message.GetSeq(), Role: i.message.GetRole(), Status: i.message.GetStatus()}
	for _, p := range i.message.GetParts() {
		switch {
		case p.GetToolCall() != nil:
			m.Parts = append(m.Parts, &storev1.Part{Part: &storev1.Part_ToolCall{ToolCall: &storev1.ToolCallPart{CallId: p.GetToolCall().GetCallId()}}})
		case p.GetToolResult() != nil:
			m.Parts = append(m.Parts, &storev1.Part{Part: &storev1.Part_ToolResult{ToolResult: &storev1.ToolResultPart{CallId: p.GetToolResult().GetCallId()}}})
		}
	}
	return windowItem{message: m, cost: &cost}
}

// seq is the item's place: a call comes behind the message that was the newest when it was issued.
func (i windowItem) seq() int64 {
	if i.call != nil {
		return i.call.GetAfterSeq()
	}
	return i.message.GetSeq()
}

// tokens is what the item costs. The provider's count of a message is of all that was generated.
func (i windowItem) tokens() int64 {
	switch {
	case i.cost != nil:
		return *i.cost
	case i.call != nil:
		return gemini.Tokens(i.call.GetName()) + gemini.Tokens(gemini.ArgsText(i.call)) + gemini.Tokens(gemini.ResponseText(i.call))
	case i.message.HeardText != nil && i.message.GetHeardText() != i.message.GetText():
		return gemini.Tokens(i.message.GetHeardText())
	default:
		return i.message.GetTokenCount()
	}
}

// bytes is about what the item takes in an answer: its text is escaped in JSON.
func (i windowItem) bytes() int {
	if i.call != nil {
		return rpc.AnswerSize(i.call)
	}
	if m := i.message; len(m.GetParts()) > 0 || m.GetMetadata() != nil || m.GetSources() != nil || m.GetUsage() != nil || len(m.GetThoughtSignature()) > 0 {
		return rpc.AnswerSize(i.message)
	}
	n := proto.Size(i.message)
	for _, c := range []byte(i.message.GetText()) {
		switch {
		case c == '"', c == '\\', c == '\n', c == '\r', c == '\t':
			n++
		case c < ' ':
			n += len(`u0000`)
		default: // as it is
		}
	}
	return n
}

// newestWithin is the index from which the items have no more than so many bytes; the last one counts whatever it has.
func newestWithin(items []windowItem, bytes int) int {
	from := len(items)
	for from > 0 {
		if bytes -= items[from-1].bytes(); bytes < 0 && from < len(items) {
			break
		}
		from--
	}
	return from
}

func (i windowItem) isUser() bool { return i.message.GetRole() == storev1.Role_ROLE_USER }

// open reports whether the item may still change by itself. The result of an orphaned call becomes a message of its own.
func (i windowItem) open() bool {
	if i.call != nil {
		s := i.call.GetStatus()
		return s == voice.CallPending || s == voice.CallRunning
	}
	return i.message.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING
}

// heard is a message with the text that was heard.
func heard(m *storev1.Message) *storev1.Message {
	if m.HeardText == nil || m.GetHeardText() == m.GetText() {
		return m
	}
	m = proto.CloneOf(m)
	m.Text, m.ThoughtSignature = m.GetHeardText(), nil // it is that of the whole text
	return m
}

func addItem(t *gemini.Turns, i windowItem) {
	if i.call != nil {
		t.AddCall(i.call)
	} else {
		t.AddMessage(heard(i.message))
	}
}

// itemsOf are a collection's entries as items, without hidden messages.
func itemsOf(entries []object.Entry) []windowItem {
	items := make([]windowItem, 0, len(entries))
	for _, e := range entries {
		switch v := e.Value.(type) {
		case *storev1.Message:
			if !v.GetHidden() {
				items = append(items, windowItem{message: v})
			}
		case *storev1.ToolCall:
			items = append(items, windowItem{call: v})
		}
	}
	return items
}

// arrange puts messages and tool calls in one order. Both rise already.
func arrange(messages, calls []windowItem) []windowItem {
	items := make([]windowItem, 0, len(messages)+len(calls))
	for _, m := range messages {
		for len(calls) > 0 && calls[0].seq() < m.seq() {
			items, calls = append(items, calls[0]), calls[1:]
		}
		items = append(items, m)
	}
	return append(items, calls...)
}

// cuts tells for each item whether a window may begin with it: where a user's turn begins, and where no tool call is
// parted from its result. Where the items are all that there are (whole), it may begin with the first.
func cuts(items []windowItem, whole bool) []bool {
	may := make([]bool, len(items))
	for i, item := range items {
		may[i] = item.isUser() && i > 0 && !items[i-1].isUser()
	}
	calls := map[string]int{}
	for i, item := range items {
		for _, p := range item.message.GetParts() {
			if c := p.GetToolCall(); c != nil {
				calls[c.GetCallId()] = i
			}
			r := p.GetToolResult()
			if r == nil {
				continue
			}
			from, known := calls[r.GetCallId()]
			if !known {
				if whole {
					continue // its call is in the summary, or was never there
				}
				from = -1
			}
			for j := from + 1; j <= i; j++ {
				may[j] = false
			}
		}
	}
	if whole && len(items) > 0 {
		may[0] = true
	}
	return may
}

// window is a choice of items: those from an index on.
type window struct {
	from   int
	tokens int64
	// The newest turn is more than the budget.
	over bool
}

// choose takes as many of the newest items as the budget has room for, and at least the newest turn. pinned is what the
// pinned messages cost, by seq: those before the window are in it all the same. ok is false where older items are needed to
// tell.
func choose(items []windowItem, whole bool, budget int64, pinned map[int64]int64) (w window, ok bool) {
	if len(items) == 0 {
		return window{tokens: sum(pinned), over: sum(pinned) > budget}, whole
	}
	may := cuts(items, whole)
	outside := sum(pinned)
	var suffix int64
	best, found := window{}, false
	for i, item := range slices.Backward(items) {
		suffix += item.tokens()
		if item.message != nil {
			outside -= pinned[item.seq()]
		}
		cost := suffix + outside
		if found && suffix > budget {
			return best, true
		}
		if !may[i] {
			continue
		}
		if !found || cost <= budget {
			best, found = window{from: i, tokens: cost, over: cost > budget}, true
		}
		if cost > budget {
			return best, true
		}
	}
	return best, whole
}

// within is the window without its oldest items, as many as are over so many bytes. It begins where a window may, unless its
// newest turn is too much by itself.
func (w window) within(items []windowItem, whole bool, bytes int) window {
	from := newestWithin(items, bytes)
	if from <= w.from {
		return w
	}
	for i, may := range cuts(items, whole)[from:] {
		if may {
			from += i
			break
		}
	}
	for _, item := range items[w.from:from] {
		w.tokens -= item.tokens()
	}
	w.from = from
	return w
}

func sum(m map[int64]int64) int64 {
	var n int64
	for _, v := range m {
		n += v
	}
	return n
}

// compactable is the index at which the items that stay as they are begin, where at least so many tokens of the newest
// stay, and none that stays out may still change. ok is false where there is none in front of it.
func compactable(items []windowItem, whole bool, keep int64) (from int, ok bool) {
	may := cuts(items, whole)
	last := len(items)
	for i, item := range items {
		if item.open() {
			last = i
			break
		}
	}
	var kept int64
	for i := len(items) - 1; i > 0; i-- {
		kept += items[i].tokens()
		if kept >= keep && i <= last && may[i] {
			return i, true
		}
	}
	return 0, false
}
