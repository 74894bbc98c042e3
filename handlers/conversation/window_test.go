package conversation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/conversation/voice"
)

// talk is items out of a line such as "u a u:c1 a t:r1": who speaks, ten tokens each; :cN has the call N, :rN its result,
// ! may still change, # is a tool call of the ledger.
func talk(line string) []windowItem {
	var items []windowItem
	seq := int64(0)
	for word := range strings.FieldsSeq(line) {
		who, part, _ := strings.Cut(strings.TrimSuffix(word, "!"), ":")
		if who == "#" {
			items = append(items, windowItem{call: &storev1.ToolCall{Name: "run", AfterSeq: seq, Status: voice.CallCompleted}})
			continue
		}
		seq++
		m := &storev1.Message{Seq: seq, TokenCount: 10, Status: storev1.MessageStatus_MESSAGE_STATUS_COMPLETE}
		m.Role = map[string]storev1.Role{
			"u": storev1.Role_ROLE_USER, "a": storev1.Role_ROLE_ASSISTANT, "t": storev1.Role_ROLE_TOOL,
			"s": storev1.Role_ROLE_SYSTEM,
		}[who]
		if strings.HasSuffix(word, "!") {
			m.Status = storev1.MessageStatus_MESSAGE_STATUS_STREAMING
		}
		switch {
		case strings.HasPrefix(part, "c"):
			m.Parts = []*storev1.Part{{Part: &storev1.Part_ToolCall{ToolCall: &storev1.ToolCallPart{CallId: part[1:]}}}}
		case strings.HasPrefix(part, "r"):
			m.Parts = []*storev1.Part{{Part: &storev1.Part_ToolResult{ToolResult: &storev1.ToolResultPart{CallId: part[1:]}}}}
		}
		items = append(items, windowItem{message: m})
	}
	return items
}

func TestCuts(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"u a u a":           "|u a |u a",
		"u u a u":           "|u u a |u",
		"a u a":             "|a |u a",
		"u a:c1 t:r1 u a":   "|u a:c1 t:r1 |u a",
		"u a:c1 u t:r1 u a": "|u a:c1 u t:r1 |u a",
		"u a:c1 u a u t:r1": "|u a:c1 u a u t:r1",
		"u # a u":           "|u # a |u",
		"u a # u":           "|u a # |u",
		"s u a u":           "|s |u a |u",
	} {
		items := talk(line)
		var got []string
		for i, may := range cuts(items, true) {
			word := strings.Fields(line)[i]
			if may {
				word = "|" + word
			}
			got = append(got, word)
		}
		if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s", diff)
		}
	}
	// Of a part only the beginning of a turn that is seen to begin counts, and no result whose call is not seen.
	if got := cuts(talk("u a u t:r1 u a u"), false); !slices.Equal(got, []bool{false, false, false, false, true, false, true}) {
		t.Errorf("of a part: %v", got)
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		line   string
		whole  bool
		budget int64
		pinned map[int64]int64
		want   window
		ok     bool
	}{
		{"u a u a u a", true, 60, nil, window{0, 60, false}, true},
		{"u a u a u a", true, 59, nil, window{2, 40, false}, true},
		{"u a u a u a", true, 20, nil, window{4, 20, false}, true},
		{"u a u a u a", true, 19, nil, window{4, 20, true}, true},
		{"u a u a u a", false, 59, nil, window{2, 40, false}, true},
		{"u a u a u a", false, 60, nil, window{2, 40, false}, false}, // the first may begin a turn or not
		{"u a u a u a", false, 39, nil, window{4, 20, false}, true},
		{"a t a t", true, 20, nil, window{0, 40, true}, true},
		{"a t a t", false, 20, nil, window{}, false},
		{"u a:c1 u a u t:r1 u a", true, 40, nil, window{6, 20, false}, true},
		{"u a u a u a", true, 50, map[int64]int64{1: 10}, window{2, 50, false}, true},
		{"u a u a u a", true, 49, map[int64]int64{1: 10}, window{4, 30, false}, true},
		{"u a u a u a", true, 60, map[int64]int64{1: 10}, window{0, 60, false}, true},
		{"u a u a u a", true, 40, map[int64]int64{3: 10}, window{2, 40, false}, true},
		{"", true, 10, nil, window{}, true},
		{"", true, 10, map[int64]int64{1: 20}, window{0, 20, true}, true},
	} {
		got, ok := choose(talk(tt.line), tt.whole, tt.budget, tt.pinned)
		if ok != tt.ok || ok && got != tt.want {
			t.Errorf("%q within %d: %+v, %t; want %+v, %t", tt.line, tt.budget, got, ok, tt.want, tt.ok)
		}
	}
}

func TestCompactable(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		line string
		keep int64
		want int
		ok   bool
	}{
		{"u a u a u a", 1, 4, true},
		{"u a u a u a", 21, 2, true},
		{"u a u a u a", 41, 0, false},
		{"u a u a! u a", 1, 2, true},
		{"u a! u a u a", 1, 0, false},
		{"u a:c1 u t:r1 u a", 21, 0, false},
		{"u a", 1, 0, false},
	} {
		if got, ok := compactable(talk(tt.line), true, tt.keep); got != tt.want || ok != tt.ok {
			t.Errorf("%q, %d kept: %d, %t", tt.line, tt.keep, got, ok)
		}
	}
}

// Whatever was said and whatever the budget: a window is what it says it is.
func TestWindowsHoldTheirRules(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.SampledFrom([]string{"u", "u", "a", "a", "#", "s", "t", "a:c1", "a:c2", "t:r1", "u:r2", "a!"}), 0, 40).Draw(t, "talk")
		items := talk(strings.Join(words, " "))
		budget := rapid.Int64Range(0, 500).Draw(t, "budget")
		pinned := map[int64]int64{}
		for _, i := range items {
			if i.message != nil && rapid.IntRange(0, 9).Draw(t, "pinned") == 0 {
				pinned[i.seq()] = i.tokens()
			}
		}
		w, ok := choose(items, true, budget, pinned)
		if !ok {
			t.Fatal("the whole conversation does not suffice")
		}
		// Its tokens are those of what is in it, the pinned ones before it too.
		var tokens int64
		for _, i := range items[w.from:] {
			tokens += i.tokens()
		}
		for seq, n := range pinned {
			if len(items) > 0 && !slices.ContainsFunc(items[w.from:], func(i windowItem) bool { return i.message.GetSeq() == seq }) {
				tokens += n
			}
		}
		if len(items) > 0 && tokens != w.tokens {
			t.Fatalf("%d tokens, it says %d", tokens, w.tokens)
		}
		if w.over != (w.tokens > budget) {
			t.Fatalf("%d tokens in %d: over %t", w.tokens, budget, w.over)
		}
		// It begins with a turn of the user, or with the conversation.
		if w.from > 0 && (!items[w.from].isUser() || items[w.from-1].isUser()) {
			t.Fatalf("it begins with %v", items[w.from])
		}
		// No call is parted from its result.
		calls := map[string]int{}
		for i, item := range items {
			for _, p := range item.message.GetParts() {
				if c := p.GetToolCall(); c != nil {
					calls[c.GetCallId()] = i
				}
				if from, known := calls[p.GetToolResult().GetCallId()]; p.GetToolResult() != nil && known && from < w.from && w.from <= i && w.from > 0 {
					t.Fatalf("call %d is parted from its result %d, at %d", from, i, w.from)
				}
			}
		}
		// A larger budget never shows less, and it is the newest turn at least.
		if more, _ := choose(items, true, budget+50, pinned); more.from > w.from {
			t.Fatalf("more budget shows less: %+v, then %+v", w, more)
		}
		// Read in parts it is the same, unless a part hides whether a result has a call.
		tools := slices.ContainsFunc(items, func(i windowItem) bool { return len(i.message.GetParts()) > 0 })
		for n := len(items) - 1; n > 0 && !tools; n-- {
			if part, ok := choose(items[n:], false, budget, pinned); ok && n+part.from != w.from {
				t.Fatalf("of the last %d items it begins at %d, of all at %d", len(items)-n, n+part.from, w.from)
			}
		}
		// What is compacted is closed, and ends before a turn of the user.
		if end, ok := compactable(items, true, budget); ok {
			if slices.ContainsFunc(items[:end], windowItem.open) || !items[end].isUser() {
				t.Fatalf("compacts %d of %v", end, words)
			}
		}
	})
}

func TestLeasesAndSummaries(t *testing.T) {
	t.Parallel()
	s := &storev1.ConversationState{LastSeq: 20}
	lease := func(from, to, base, mine int64, at time.Duration) (*storev1.CompactionLease, error) {
		return leaseCompaction(s, &storev1.CompactionLease{FromSeq: from, ToSeq: to, BaseSummarySeq: base, TokenCount: 100}, mine, time.Minute, testNow.Add(at))
	}
	commit := func(token int32, text string) (*storev1.Summary, error) {
		return commitSummary(s, &conversationv1.CommitCompactionRequest{FencingToken: token, Text: text}, testNow)
	}
	first, err := lease(1, 10, 0, 0, 0)
	if err != nil || first.GetToken() != 1 {
		t.Fatal(first, err)
	}
	var leased leasedError
	if _, err := lease(1, 10, 0, 0, time.Minute-1); !errors.As(err, &leased) {
		t.Errorf("a second lease: %v", err)
	}
	if again, err := lease(1, 8, 0, 1, time.Second); err != nil || again.GetToken() != 2 {
		t.Errorf("chosen anew: %v, %v", again, err)
	}
	if _, err := commit(1, "x"); !errors.Is(err, errStaleLease) {
		t.Errorf("an old lease: %v", err)
	}
	got, err := commit(2, "12345678")
	want := &storev1.Summary{Seq: 1, FromSeq: 1, ToSeq: 8, Text: "12345678", TokenCount: 8, TokenCountEstimated: true, CreateTime: timestamppb.New(testNow), ReplacedTokenCount: 100}
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the summary", got, want)
	if got, err := commit(2, "12345678"); got != nil || err != nil {
		t.Errorf("again: %v, %v", got, err)
	}
	if _, err := commit(2, "other"); !errors.Is(err, errSummarised) || s.GetSummary().GetText() != "12345678" {
		t.Errorf("another text: %v", err)
	}
	if _, err := lease(9, 12, 0, 0, time.Second); !errors.Is(err, errMoved) {
		t.Errorf("a range that was chosen before: %v", err)
	}
	// One whose lease is over may still commit, until another has it: what it read is closed.
	if l, err := lease(9, 12, 1, 0, time.Second); err != nil || l.GetToken() != 3 {
		t.Fatal(l, err)
	}
	if l, err := lease(9, 14, 1, 0, time.Hour); err != nil || l.GetToken() != 4 {
		t.Fatal(l, err)
	}
	if _, err := commit(3, "x"); !errors.Is(err, errStaleLease) {
		t.Errorf("a lease that another has: %v", err)
	}
	if got, err := commit(4, "y"); err != nil || got.GetSeq() != 2 || got.GetToSeq() != 14 {
		t.Errorf("late: %v, %v", got, err)
	}
}

func TestPins(t *testing.T) {
	t.Parallel()
	s := &storev1.ConversationState{}
	add := func(role storev1.Role, pinned bool) (*storev1.Message, error) {
		return appendMessage(s, &conversationv1.Message{Role: conversationv1.Role(role), Text: "x", Pinned: pinned}, testNow)
	}
	for _, n := range []struct {
		role   storev1.Role
		pinned bool
	}{{storev1.Role_ROLE_USER, false}, {storev1.Role_ROLE_SYSTEM, false}, {storev1.Role_ROLE_USER, true}} {
		must(add(n.role, n.pinned))(t)
	}
	if got := s.GetPinnedSeqs(); !slices.Equal(got, []int64{2, 3}) {
		t.Errorf("pinned are %v", got)
	}
	patch := func(seq int64, role storev1.Role, pinned bool) error {
		_, err := updateMessage(s, &storev1.Message{Seq: seq, Role: role, Text: "x"},
			&conversationv1.MessageUpdate{Message: &conversationv1.Message{Pinned: pinned}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"pinned"}}}, testNow)
		return err
	}
	for _, err := range []error{
		patch(1, storev1.Role_ROLE_USER, true), patch(3, storev1.Role_ROLE_USER, false), patch(2, storev1.Role_ROLE_SYSTEM, false),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if got := s.GetPinnedSeqs(); !slices.Equal(got, []int64{1, 2}) {
		t.Errorf("pinned are %v", got)
	}
	for range maxPinned - 2 {
		must(add(storev1.Role_ROLE_SYSTEM, false))(t)
	}
	if _, err := add(storev1.Role_ROLE_SYSTEM, false); !errors.Is(err, errPinned) {
		t.Errorf("one too many: %v", err)
	}
}

func TestGemini(t *testing.T) {
	t.Parallel()
	user := func(text string) windowItem {
		return windowItem{message: &storev1.Message{Role: storev1.Role_ROLE_USER, Text: text}}
	}
	model := func(text, heard string) windowItem {
		return windowItem{message: &storev1.Message{Role: storev1.Role_ROLE_ASSISTANT, Text: text, HeardText: &heard}}
	}
	done := &storev1.ToolCall{CallId: "a", Name: "run", Args: outputOf("x"), Response: structpb.NewStructValue(outputOf("y")), Status: voice.CallCompleted, DeliveredEpoch: 1}
	orphan := &storev1.ToolCall{CallId: "b", Name: "look", Status: voice.CallOrphaned}
	told := &storev1.ToolCall{CallId: "c", Name: "late", Status: voice.CallCompleted, ResultSeq: 3}
	items := []windowItem{user("Go"), model("One two", "One"), {call: done}, model("", ""), {call: orphan}, {call: told}}
	for name, tt := range map[string]struct {
		t    *gemini.Turns
		want []string
	}{
		"contents": {&gemini.Turns{}, []string{
			`{"parts":[{"text":"Summary of the conversation so far: S"},{"text":"Go"}],"role":"user"}`,
			`{"parts":[{"text":"One"},{"functionCall":{"args":{"output":"x"},"id":"a","name":"run"}}],"role":"model"}`,
			`{"parts":[{"functionResponse":{"id":"a","name":"run","response":{"output":"y"}}}],"role":"user"}`,
			`{"parts":[{"text":"[called look with {}; there is no result yet]"},{"text":"[called late with {}]"}],"role":"model"}`,
		}},
		"a seed": {&gemini.Turns{OnlyText: true}, []string{
			`{"parts":[{"text":"Summary of the conversation so far: S"},{"text":"Go"}],"role":"user"}`,
			`{"parts":[{"text":"One"},{"text":"[called run with {\"output\":\"x\"}]"}],"role":"model"}`,
			`{"parts":[{"text":"[result of run: {\"output\":\"y\"}]"}],"role":"user"}`,
			`{"parts":[{"text":"[called look with {}; there is no result yet]"},{"text":"[called late with {}]"}],"role":"model"}`,
		}},
	} {
		tt.t.AddSummary(&storev1.Summary{Text: "S"})
		for _, i := range items {
			addItem(tt.t, i)
		}
		var got []string
		for _, c := range tt.t.Contents {
			got = append(got, gemini.JSONText(c))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	seed := func(endsWithUser bool, items ...windowItem) string {
		s := &gemini.Turns{OnlyText: true}
		for _, i := range items {
			addItem(s, i)
		}
		return gemini.JSONText(s.Seed(endsWithUser))
	}
	last := fmt.Sprintf(`{"parts":[{"text":%q}],"role":"user"}`, gemini.GoOn)
	if got := seed(true, user("a"), model("b", "b")); !strings.Contains(got, `"turnComplete":true,"turns":[`) || !strings.Contains(got, last) {
		t.Errorf("ends with the user: %s", got)
	}
	if got := seed(true, user("a")) + seed(false, user("a"), model("b", "b")); strings.Contains(got, last) {
		t.Errorf("need not be told: %s", got)
	}
	if got := seed(true); got != "{}" {
		t.Errorf("of nothing: %s", got)
	}
}
