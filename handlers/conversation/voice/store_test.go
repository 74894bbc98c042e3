package voice

import (
	"flag"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/conversation/voice/voicetest"
)

// do calls a rule on the conversation and keeps what it did.
func (s *liveStore) do(now time.Time, rule func(*Reducer)) {
	f := s.folder(now)
	rule(f)
	effects := f.Effects()
	s.keep(&effects)
}

// opens is a conversation that some devices opened in turn.
func opens(setups ...string) *liveStore {
	s := newLiveStore()
	for _, hash := range setups {
		s.take(hash)
	}
	return s
}

var updateGolden = flag.Bool("update", false, "rewrite the golden files")

var testNow = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// liveStore is a conversation and the entries that its batches of frames left, as the database would hold them.
type liveStore struct {
	state    *storev1.ConversationState
	messages map[int64]*storev1.Message
	calls    map[string]*storev1.ToolCall // the newest of each id
	bySeq    map[int64]*storev1.ToolCall
}

func newLiveStore() *liveStore {
	return &liveStore{
		state:    &storev1.ConversationState{},
		messages: map[int64]*storev1.Message{},
		calls:    map[string]*storev1.ToolCall{},
		bySeq:    map[int64]*storev1.ToolCall{},
	}
}

// ingest folds a batch. An epoch that is newer than the newest begins first; as far as is known it resumes the session.
func (s *liveStore) ingest(epoch int64, frames ...*livev1.LiveFrame) (Effects, error) {
	f := s.folder(testNow)
	if live := s.state.GetLive(); epoch > live.GetEpoch() {
		o := Opening{Epoch: epoch, LeaveToolCalls: true}
		if live.GetSession() > 0 {
			o.Resumes = live.GetHandleCount() + 1
		}
		f.Open(o)
	}
	effects, err := f.Ingest(ReadBatch(epoch, frames, sealed), nil)
	s.keep(&effects)
	return effects, err
}

// take connects. A session is resumed where it can be, and the tool calls are left to workers.
func (f *Reducer) take(setupHash string) {
	o := Opening{Epoch: f.live.GetEpoch() + 1, SetupHash: setupHash, LeaveToolCalls: true}
	if h := NewestResumable(f.live.GetHandles()); h.GetSession() == f.live.GetSession() && h.GetSetupHash() == setupHash && !h.GetDead() {
		o.Resumes = h.GetId()
	}
	f.Open(o)
}

func (s *liveStore) take(setupHash string) {
	s.do(testNow, func(f *Reducer) { f.take(setupHash) })
}

// sealed stands for a sealed secret.
func sealed(secret []byte) []byte { return fmt.Appendf(nil, "sealed %d bytes", len(secret)) }

func (s *liveStore) folder(now time.Time) *Reducer { return New(s.state, now, s) }

// Message implements Stored.
func (s *liveStore) Message(seq int64) *storev1.Message { return s.messages[seq] }

// Call implements Stored.
func (s *liveStore) Call(session int64, id string) *storev1.ToolCall {
	for _, seq := range slices.Sorted(maps.Keys(s.bySeq)) {
		if c := s.bySeq[seq]; c.GetSession() == session && c.GetCallId() == id {
			return c
		}
	}
	return nil
}

func (s *liveStore) keep(effects *Effects) {
	for _, message := range effects.Messages {
		s.messages[message.GetSeq()] = message
	}
	for _, call := range effects.ToolCalls {
		if known := s.calls[call.GetCallId()]; known.GetSeq() <= call.GetSeq() {
			s.calls[call.GetCallId()] = call
		}
		s.bySeq[call.GetSeq()] = call
	}
}

// send ingests frames of JSON one by one in the current epoch; "reconnect" begins the next epoch.
func (s *liveStore) send(t *testing.T, frames ...string) {
	t.Helper()
	s.sendTo(t, frames...)
}

func (s *liveStore) sendTo(t interface{ Fatal(args ...any) }, frames ...string) {
	epoch := max(s.state.GetLive().GetEpoch(), 1)
	for _, frame := range frames {
		if frame == "reconnect" {
			epoch++
			frame = `{"setup":{}}`
		}
		index := s.state.GetLive().GetLastClientIndex() + 1
		if epoch != s.state.GetLive().GetEpoch() {
			index = 1
		}
		if _, err := s.ingest(max(epoch, s.state.GetLive().GetEpoch()), textFrame(index, frame)); err != nil {
			t.Fatal(err)
		}
	}
}

// transcript is a line for each message, such as "1 user voice complete: Hello".
func (s *liveStore) transcript() []string {
	var lines []string
	for _, seq := range slices.Sorted(maps.Keys(s.messages)) {
		m := s.messages[seq]
		lines = append(lines, fmt.Sprintf("%d %s %s %s: %s", seq, shortName(m.GetRole()), shortName(m.GetModality()),
			shortName(m.GetStatus()), m.GetText()))
	}
	return lines
}

// check verifies what must hold after any frames.
func (s *liveStore) check(tb testing.TB) {
	tb.Helper()
	if got := s.state.GetLastSeq() - s.state.GetRemovedCount() - int64(len(Places(s.state.GetLive()))); got != int64(len(s.messages)) {
		tb.Fatalf("it counts %d of %d messages", got, len(s.messages))
	}
	var tokens int64
	for seq, m := range s.messages {
		seq--
		tokens += m.GetTokenCount()
		switch {
		case m.GetSeq() != seq+1 || m.GetSeq() > s.state.GetLastSeq():
			tb.Fatalf("no message %d", seq+1)
		case m.GetText() == "" && m.GetParts() == nil && m.GetTurnCompleteReason() == "" || len(m.GetText()) > gemini.MaxTurnText || strings.Contains(m.GetText(), "\x00"):
			tb.Fatalf("text of message %d: %d bytes %.40q", seq+1, len(m.GetText()), m.GetText())
		case m.GetTokenCountEstimated() && m.GetTokenCount() != gemini.MessageTokens(m):
			tb.Fatalf("message %d has %d tokens", seq+1, m.GetTokenCount())
		case !strings.HasPrefix(m.GetText(), m.GetHeardText()):
			tb.Fatalf("message %d is %q, of which %q was heard", seq+1, m.GetText(), m.GetHeardText())
		case m.GetRole() == 0 || m.GetModality() == 0 || m.GetStatus() == 0 || m.GetCreateTime() == nil || m.GetUpdateTime() == nil:
			tb.Fatalf("message %d is not whole: %v", seq+1, m)
		}
	}
	if got := s.state.GetTokenCount(); got != tokens {
		tb.Fatalf("token_count is %d, its sum %d", got, tokens)
	}
	s.checkLive(tb)
	if strings.Contains(s.json(tb), `\u0000`) {
		tb.Fatal("stored a NUL character")
	}
}

// checkLive verifies that the state knows just what is open in the entries.
func (s *liveStore) checkLive(tb testing.TB) {
	tb.Helper()
	live := s.state.GetLive()
	for _, turn := range []*storev1.Message{live.GetUserTurn(), live.GetAssistantTurn()} {
		if turn = proto.CloneOf(turn); turn != nil {
			turn.Meter = nil // the state alone has it
		}
		if turn.GetCreateTime() != nil && !proto.Equal(turn, s.messages[turn.GetSeq()]) {
			tb.Fatalf("the open turn and its entry differ:\n%v\n%v", turn, s.messages[turn.GetSeq()])
		}
	}
	if turn := live.GetUserTurn(); turn != nil && turn.GetStatus() != storev1.MessageStatus_MESSAGE_STATUS_STREAMING {
		tb.Fatalf("the user's open turn is closed: %v", turn)
	}
	for seq, m := range s.messages {
		open := seq == live.GetUserTurn().GetSeq() || seq == live.GetAssistantTurn().GetSeq()
		if m.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING && !open {
			tb.Fatalf("message %d was left open: %v", seq, m)
		}
	}
	if live.GetInterrupted() && live.GetAssistantTurn() == nil {
		tb.Fatal("interrupted, but no turn of the model")
	}
	if n := len(live.GetPendingCalls()); n > maxPendingCalls {
		tb.Fatalf("%d pending calls", n)
	}
	size := 0
	for id, call := range live.GetPendingCalls() {
		size += proto.Size(call)
		if entry := s.calls[id]; entry.GetStatus() != call.GetStatus() || !proto.Equal(entry.GetArgs(), call.GetArgs()) {
			tb.Fatalf("the pending call and its entry differ:\n%v\n%v", call, entry)
		}
	}
	if size > maxPendingBytes && len(live.GetPendingCalls()) > 1 {
		tb.Fatalf("%d pending calls of %d bytes", len(live.GetPendingCalls()), size)
	}
	if got := s.state.GetToolCallCount(); got != int64(len(s.bySeq)) {
		tb.Fatalf("tool_call_count is %d of %d calls", got, len(s.bySeq))
	}
	for id, call := range s.calls {
		if id == "" || call.GetCallId() != id || call.GetStatus() == 0 || call.GetEpoch() == 0 {
			tb.Fatalf("call %q is not whole: %v", id, call)
		}
	}
}

// json is all that is stored, as it is stored; a backslash of a text does not look like an escape.
func (s *liveStore) json(tb testing.TB) string {
	tb.Helper()
	var b strings.Builder
	b.WriteString(voicetest.Compact(tb, s.state))
	for _, m := range s.messages {
		b.WriteString(voicetest.Compact(tb, m))
	}
	for _, c := range s.calls {
		b.WriteString(voicetest.Compact(tb, c))
	}
	return strings.ReplaceAll(b.String(), `\\`, "")
}

func shorthands(frames ...string) []string {
	list := make([]string, len(frames))
	for i, f := range frames {
		list[i] = shorthand(f)
	}
	return list
}

// talk is what was said, in order: a line for each message such as "user: Hi", with * where it is still open, and for each call.
func (s *liveStore) talk() (lines []string) {
	calls := slices.Sorted(maps.Keys(s.bySeq))
	until := func(seq int64) {
		for len(calls) > 0 && s.bySeq[calls[0]].GetAfterSeq() < seq {
			c := s.bySeq[calls[0]]
			lines, calls = append(lines, "call "+c.GetCallId()+" "+shortName(c.GetStatus())), calls[1:]
		}
	}
	for _, seq := range slices.Sorted(maps.Keys(s.messages)) {
		until(seq)
		m, open := s.messages[seq], ""
		if m.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING {
			open = "*"
		}
		lines = append(lines, shortName(m.GetRole())+open+": "+m.GetText())
	}
	until(math.MaxInt64)
	return lines
}

func same(t *testing.T, what string, got, want proto.Message) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
