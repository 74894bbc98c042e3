package conversation

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

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
func (s *liveStore) ingest(epoch int64, frames ...*livev1.LiveFrame) (liveEffects, error) {
	f := s.folder(testNow)
	if epoch > newestEpoch(s.state) {
		f.begin(epoch)
		f.live.LeaveToolCalls = true
		if f.live.ResumedHandleId = f.live.GetHandleCount() + 1; f.live.GetSession() == 0 {
			f.live.Session, f.live.ResumedHandleId = 1, 0
		}
	}
	effects, err := f.ingest(writer{epoch: epoch, now: testNow}, readBatch(epoch, frames, sealed), nil)
	s.keep(&effects)
	return effects, err
}

// take connects, also if another has the lease, and leaves tool calls to workers.
func (f *folder) take(req *livev1.ConnectLiveRequest) livev1.PlanReason {
	req = proto.CloneOf(req)
	if req.TakeOver = true; req.Options == nil {
		req.Options = &livev1.LiveOptions{}
	}
	req.Options.LeaveToolCalls = true
	reason, _, err := f.connect(&connecting{
		req: req, id: "test", limits: testLimits, opens: func([]byte) bool { return true }, settled: func() error { return nil },
		previous: readBatch(int64(req.GetPrevious().GetFencingToken()), req.GetPrevious().GetFrames(), sealed),
	})
	if err != nil {
		panic(err)
	}
	return reason
}

// sealed stands for a sealed secret.
func sealed(secret []byte) []byte { return fmt.Appendf(nil, "sealed %d bytes", len(secret)) }

func (s *liveStore) folder(now time.Time) *folder {
	f := newFolder(s.state, now, func(session int64, id string) *storev1.ToolCall {
		for _, seq := range slices.Sorted(maps.Keys(s.bySeq)) {
			if c := s.bySeq[seq]; c.GetSession() == session && c.GetCallId() == id {
				return c
			}
		}
		return nil
	})
	f.stored = func(seq int64) *storev1.Message { return s.messages[seq] }
	return f
}

func (s *liveStore) keep(effects *liveEffects) {
	for _, message := range effects.messages {
		s.messages[message.GetSeq()] = message
	}
	for _, call := range effects.toolCalls {
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

func textFrame(index int64, text string) *livev1.LiveFrame {
	return &livev1.LiveFrame{ClientIndex: int32(index), Frame: &livev1.LiveFrame_Text{Text: text}}
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

// shortName is an enum value's name without its type: "listening" of VOICE_STATUS_LISTENING.
func shortName(value fmt.Stringer) string {
	name := value.String()
	return strings.ToLower(name[strings.LastIndexByte(name, '_')+1:])
}

// The frames of the tests.
const (
	activityStart = `{"voiceActivity":{"voiceActivityType":"ACTIVITY_START"}}`
	activityEnd   = `{"voiceActivity":{"voiceActivityType":"ACTIVITY_END"}}`
	audio         = `{"serverContent":{"modelTurn":{"role":"model","parts":[{"inlineData":{"mimeType":"audio/pcm","data":"AAAA"}}]}}}`
	interrupted   = `{"serverContent":{"interrupted":true}}`
	generated     = `{"serverContent":{"generationComplete":true}}`
	turnComplete  = `{"serverContent":{"turnComplete":true}}`
	turnIdle      = `{"serverContent":{"turnComplete":true,"interactionStatus":"IDLE"}}`
)

func quote(text string) string {
	quoted, _ := json.Marshal(text)
	return string(quoted)
}

func in(text string) string {
	return `{"serverContent":{"inputTranscription":{"text":` + quote(text) + `}}}`
}

func interim(text string) string {
	return `{"serverContent":{"interimInputTranscription":{"text":` + quote(text) + `}}}`
}

func out(text string) string {
	return `{"serverContent":{"outputTranscription":{"text":` + quote(text) + `}}}`
}

func part(text string) string {
	return `{"serverContent":{"modelTurn":{"parts":[{"text":` + quote(text) + `}]}}}`
}
func typed(text string) string { return `{"realtimeInput":{"text":` + quote(text) + `}}` }
func call(id string) string {
	return `{"toolCall":{"functionCalls":[{"id":` + quote(id) + `,"name":"run","args":{"n":1}}]}}`
}

func answer(id string) string {
	return `{"toolResponse":{"functionResponses":[{"id":` + quote(id) + `,"response":{"output":"ok"}}]}}`
}

func resumption(handle string) string {
	return `{"sessionResumptionUpdate":{"newHandle":` + quote(handle) + `,"resumable":true}}`
}

func usage(response, total int) string {
	return fmt.Sprintf(`{"usageMetadata":{"responseTokenCount":%d,"totalTokenCount":%d}}`, response, total)
}

func TestTurns(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		frames []string
		want   []string
	}{{
		"an utterance grows",
		[]string{in("Can "), in("you")},
		[]string{"1 user voice streaming: Can you"},
	}, {
		"a turn of each",
		[]string{in("Can "), in("you?"), audio, out("Yes, "), out("I can."), generated, turnComplete},
		[]string{"1 user voice complete: Can you?", "2 assistant voice complete: Yes, I can."},
	}, {
		"the generation is complete before the turn",
		[]string{in("Hi"), out("Hello."), generated},
		[]string{"1 user voice streaming: Hi", "2 assistant voice complete: Hello."},
	}, {
		"words after the end of the generation",
		[]string{out("Hel"), generated, out("lo."), turnComplete},
		[]string{"1 assistant voice complete: Hello."},
	}, {
		"words after a tool's result are a message of their own",
		[]string{out("For "), out("it."), call("a"), answer("a"), out("The "), out("run."), call("b"), out(" No two"), call("c"), out("."), turnComplete, out("Yes"), out("ter.")},
		[]string{"1 assistant voice complete: For it.", "2 assistant voice complete: The run. No two.", "3 assistant voice streaming: Yester."},
	}, {
		"words after a tool call, in a script without spaces",
		[]string{out("はい。"), call("a"), out("実行中です。"), turnComplete, call("b"), out("Done")},
		[]string{"1 assistant voice complete: はい。実行中です。", "2 assistant voice streaming: Done"},
	}, {
		"words of the user during and after the answer",
		[]string{in("Can "), audio, in("you "), out("Yes."), generated, in("look?"), turnComplete},
		[]string{"1 user voice complete: Can you look?", "2 assistant voice complete: Yes."},
	}, {
		"all words of the user come late",
		[]string{activityStart, activityEnd, out("Yes."), in("Can you?"), turnComplete, in("And")},
		[]string{"1 user voice complete: Can you?", "2 assistant voice complete: Yes.", "3 user voice streaming: And"},
	}, {
		"a new utterance after turnComplete",
		[]string{in("One"), out("1"), turnComplete, in("Two")},
		[]string{"1 user voice complete: One", "2 assistant voice complete: 1", "3 user voice streaming: Two"},
	}, {
		"a turn without an answer",
		[]string{in("Hm"), turnComplete, in("Two")},
		[]string{"1 user voice complete: Hm", "2 user voice streaming: Two"},
	}, {
		"a pause within an utterance",
		[]string{activityStart, in("Can "), activityEnd, activityStart, in("you?"), activityEnd},
		[]string{"1 user voice streaming: Can you?"},
	}, {
		"interrupted, and words of the model after it",
		[]string{in("Go"), out("One "), interrupted, out("two "), out("three"), turnComplete},
		[]string{"1 user voice complete: Go", "2 assistant voice interrupted: One two three"},
	}, {
		"interrupted during playback",
		[]string{out("One"), generated, interrupted, turnComplete},
		[]string{"1 assistant voice interrupted: One"},
	}, {
		"interrupted before the first word",
		[]string{in("Go"), interrupted, out("One"), in("No, "), turnComplete, in("stop")},
		[]string{"1 user voice complete: Go", "2 assistant voice interrupted: One", "3 user voice streaming: No, stop"},
	}, {
		"a new utterance from the start of speech on",
		[]string{
			in("Go"), out("One "), activityStart, in("No, "), interrupted, in("just "), out("two"), turnComplete,
			in("stop"), activityEnd, out("Fine."), turnComplete,
		},
		[]string{
			"1 user voice complete: Go", "2 assistant voice interrupted: One two", "3 user voice complete: No, just stop",
			"4 assistant voice complete: Fine.",
		},
	}, {
		"a new utterance from interrupted on, without signals of speech",
		[]string{in("Go"), out("One "), interrupted, in("No, "), turnComplete, in("stop"), out("Fine."), turnComplete},
		[]string{
			"1 user voice complete: Go", "2 assistant voice interrupted: One ", "3 user voice complete: No, stop",
			"4 assistant voice complete: Fine.",
		},
	}, {
		"speech over a model that is not interrupted",
		[]string{in("Go"), out("One "), activityStart, in("And "), out("two."), turnComplete, in("then?"), out("Three."), turnComplete},
		[]string{
			"1 user voice complete: Go", "2 assistant voice complete: One two.", "3 user voice complete: And then?",
			"4 assistant voice complete: Three.",
		},
	}, {
		"speech over a model that has only called a tool",
		[]string{in("Go"), call("fc-1"), activityStart, in("Stop"), interrupted, turnComplete},
		[]string{"1 user voice complete: Go", "2 user voice streaming: Stop"},
	}, {
		"speech marked by the client",
		[]string{out("One"), `{"realtimeInput":{"activityStart":{}}}`, in("No"), turnComplete, in("!")},
		[]string{"1 assistant voice complete: One", "2 user voice streaming: No!"},
	}, {
		"a turnComplete is lost",
		[]string{in("One"), audio, out("1"), generated, activityStart, in("Two"), audio, out("2"), turnComplete},
		[]string{
			"1 user voice complete: One", "2 assistant voice complete: 1", "3 user voice complete: Two",
			"4 assistant voice complete: 2",
		},
	}, {
		"the model answers in text",
		[]string{typed("Hi"), part("Hel"), part("lo."), turnComplete},
		[]string{"1 user text complete: Hi", "2 assistant text complete: Hello."},
	}, {
		"thoughts are not said",
		[]string{`{"serverContent":{"modelTurn":{"parts":[{"text":"Hm.","thought":true},{"text":"Yes."}]},"turnComplete":true}}`},
		[]string{"1 assistant text complete: Yes."},
	}, {
		"text beside a transcription",
		[]string{out("Yes, "), part("yes"), out("I can.")},
		[]string{"1 assistant voice streaming: Yes, I can."},
	}, {
		"text before a transcription",
		[]string{part("yes"), out(" "), out("Yes, "), part("yes"), out("I can.")},
		[]string{"1 assistant voice streaming: Yes, I can."},
	}, {
		"audio without a transcription",
		[]string{in("Hi"), audio, turnComplete},
		[]string{"1 user voice complete: Hi"},
	}, {
		"blanks do not begin a message",
		[]string{in(" "), out("\n"), in("Hi"), in(" "), in("there"), typed(" ")},
		[]string{"1 user voice streaming: Hi there"},
	}, {
		"interim words are no message",
		[]string{interim("Can"), interim("Can you")},
		nil,
	}, {
		"the user writes while the model speaks",
		[]string{in("Go"), out("One "), typed("Faster"), out("two"), turnComplete},
		[]string{"1 user voice complete: Go", "2 assistant voice complete: One two", "3 user text complete: Faster"},
	}, {
		"turns of the client's content",
		[]string{`{"clientContent":{"turns":[{"role":"user","parts":[{"text":"a"},{"text":"b"}]},{"parts":[{"text":"c"}]}],"turnComplete":true}}`},
		[]string{"1 user text complete: ab", "2 user text complete: c"},
	}, {
		"a seeded history is no news",
		[]string{`{"clientContent":{"turns":[{"role":"user","parts":[{"text":"a"}]},{"role":"model","parts":[{"text":"b"}]}]}}`},
		nil,
	}, {
		"the utterance goes on in a new connection",
		[]string{activityStart, in("Set it "), "reconnect", in("to done."), activityEnd, out("Done."), turnComplete},
		[]string{"1 user voice complete: Set it to done.", "2 assistant voice complete: Done."},
	}, {
		"the model's turn does not",
		[]string{in("Go"), out("One "), "reconnect", out("Two"), in("Stop")},
		[]string{
			"1 user voice complete: Go", "2 assistant voice interrupted: One ", "3 assistant voice streaming: Two",
			"4 user voice streaming: Stop",
		},
	}, {
		"a generated turn stays complete in a new connection",
		[]string{out("One"), generated, "reconnect", in("Two")},
		[]string{"1 assistant voice complete: One", "2 user voice streaming: Two"},
	}, {
		"the speech over a lost turn goes on",
		[]string{in("Go"), out("One "), activityStart, in("No, "), "reconnect", in("stop")},
		[]string{"1 user voice complete: Go", "2 assistant voice interrupted: One ", "3 user voice streaming: No, stop"},
	}, {
		"all in one object",
		[]string{
			out("One "),
			`{"serverContent":{"interrupted":true,"inputTranscription":{"text":"No, "},"outputTranscription":{"text":"two"},"turnComplete":true}}`,
			in("stop"),
		},
		[]string{"1 assistant voice interrupted: One two", "2 user voice streaming: No, stop"},
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newLiveStore()
			s.send(t, test.frames...)
			if diff := cmp.Diff(test.want, s.transcript()); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
			s.check(t)
		})
	}
}

func TestVoiceFollowsTheFrames(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		frames []string
		want   []storev1.VoiceStatus // after each frame
	}{{
		"a spoken turn",
		[]string{activityStart, in("Hi"), activityEnd, in("!"), audio, in("?"), generated, turnIdle},
		[]storev1.VoiceStatus{
			voiceListening, voiceListening, voiceProcessing, voiceProcessing, voiceResponding, voiceResponding,
			voiceResponding, voiceIdle,
		},
	}, {
		"no signals of speech",
		[]string{interim("H"), in("Hi"), out("Hello."), in("!"), turnComplete, in("And")},
		[]storev1.VoiceStatus{
			voiceListening, voiceListening, voiceResponding, voiceResponding, voiceIdle, voiceListening,
		},
	}, {
		"signals of the allow-listed kind",
		[]string{
			`{"voiceActivityDetectionSignal":{"vadSignalType":"VAD_SIGNAL_TYPE_SOS"}}`,
			`{"voiceActivityDetectionSignal":{"vadSignalType":"VAD_SIGNAL_TYPE_EOS"}}`,
		},
		[]storev1.VoiceStatus{voiceListening, voiceProcessing},
	}, {
		"tools",
		[]string{in("Go"), call("a"), answer("a"), audio},
		[]storev1.VoiceStatus{voiceListening, voiceProcessing, voiceProcessing, voiceResponding},
	}, {
		"thoughts are no response",
		[]string{activityEnd, `{"serverContent":{"modelTurn":{"parts":[{"text":"Hm","thought":true}]}}}`, part("Yes")},
		[]storev1.VoiceStatus{voiceProcessing, voiceProcessing, voiceResponding},
	}, {
		"speech over the model",
		[]string{audio, activityStart, audio, interrupted, out("late"), turnComplete, in("No"), activityEnd, audio},
		[]storev1.VoiceStatus{
			voiceResponding, voiceListening, voiceListening, voiceListening, voiceListening, voiceListening,
			voiceListening, voiceProcessing, voiceResponding,
		},
	}, {
		"the interaction goes on, or waits",
		[]string{
			audio, `{"serverContent":{"turnComplete":true,"interactionStatus":"IN_PROGRESS"}}`,
			`{"serverContent":{"waitingForInput":true}}`,
		},
		[]storev1.VoiceStatus{voiceResponding, voiceProcessing, voiceListening},
	}, {
		"a connection lost while the model speaks",
		[]string{audio, "reconnect"},
		[]storev1.VoiceStatus{voiceResponding, voiceIdle},
	}, {
		"a connection lost while the user speaks",
		[]string{activityStart, in("Set"), "reconnect", in("it")},
		[]storev1.VoiceStatus{voiceListening, voiceListening, voiceListening, voiceListening},
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newLiveStore()
			for i, frame := range test.frames {
				s.send(t, frame)
				if got := s.state.GetVoice().GetStatus(); got != test.want[i] {
					t.Fatalf("after %s: %s, want %s", frame, got, test.want[i])
				}
			}
		})
	}
}

func TestLastTranscription(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	long := strings.Repeat("é", maxTranscription)
	for _, step := range []struct{ frame, want string }{
		{interim("Can yo"), "Can yo"},
		{interim("Can you"), "Can you"},
		{in("Can you "), "Can you "},
		{interim("lo"), "Can you lo"},
		{interim("Can you look"), "Can you look"},
		{in("look?"), "Can you look?"},
		{out("Yes."), "Can you look?"},
		{turnComplete, "Can you look?"},
		{interim("A"), "A"},
		{in("And"), "And"},
		{in(long), strings.Repeat("é", maxTranscription/2)},
	} {
		s.send(t, step.frame)
		if got := s.state.GetVoice().GetLastTranscription(); got != step.want {
			t.Fatalf("after %.60s: %q, want %q", step.frame, got, step.want)
		}
	}
}

func TestToolCalls(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	status := func(id, want string) {
		t.Helper()
		if got := shortName(s.calls[id].GetStatus()); got != want {
			t.Errorf("call %s is %s, want %s", id, got, want)
		}
		if pending := s.state.GetLive().GetPendingCalls()[id] != nil; pending != (want == "pending") {
			t.Errorf("call %s is in the state: %t", id, pending)
		}
	}
	s.send(t, call("a"), call("b"), call("c"))
	status("a", "pending")
	s.send(t, answer("a"), `{"toolCallCancellation":{"ids":["b","x"]}}`)
	status("a", "completed")
	status("b", "cancelled")
	if got := s.calls["a"].GetResponse().GetStructValue().GetFields()["output"].GetStringValue(); got != "ok" {
		t.Errorf("response of a: %q", got)
	}

	// The first answer stands, and a call outlives its connection.
	s.send(t, `{"toolResponse":{"functionResponses":[{"id":"a","response":{"output":"again"}}]}}`, answer("b"), answer("x"))
	if got := s.calls["a"].GetResponse().GetStructValue().GetFields()["output"].GetStringValue(); got != "ok" {
		t.Errorf("response of a: %q", got)
	}
	status("b", "cancelled")
	s.send(t, "reconnect", call("d"), call("c"), answer("c"))
	status("c", "completed")
	status("d", "pending")
	if c, d := s.calls["c"].GetEpoch(), s.calls["d"].GetEpoch(); c != 2 || d != 2 { // c was issued again
		t.Errorf("epochs of c and d: %d, %d", c, d)
	}

	// A call may be answered bit by bit.
	s.send(t, `{"toolResponse":{"functionResponses":[{"id":"d","response":{"output":"half"},"willContinue":true}]}}`)
	status("d", "pending")
	if got := s.calls["d"].GetResponse().GetStructValue().GetFields()["output"].GetStringValue(); got != "half" {
		t.Errorf("response of d: %q", got)
	}
	s.send(t, answer("d"))
	status("d", "completed")
	if s.calls["d"].GetArgs().GetFields()["n"].GetNumberValue() != 1 {
		t.Error("d lost its arguments")
	}

	// Without an id and a name there is nothing to answer.
	before := s.state.GetLive().GetUnknownFrames()
	s.send(t, `{"toolCall":{"functionCalls":[{}]}}`, call(strings.Repeat("x", maxName+1)))
	if got := s.state.GetLive().GetUnknownFrames() - before; got != 2 {
		t.Errorf("counted %d calls that were not understood, want 2", got)
	}
}

func TestPendingCallsAreBounded(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	for i := range maxPendingCalls + 2 {
		s.send(t, call(fmt.Sprintf("fc-%03d", i)))
	}
	pending := s.state.GetLive().GetPendingCalls()
	if len(pending) != maxPendingCalls || pending["fc-001"] != nil || pending["fc-002"] == nil {
		t.Errorf("%d calls are pending, want the last %d", len(pending), maxPendingCalls)
	}
	if got := shortName(s.calls["fc-000"].GetStatus()); got != "pending" {
		t.Errorf("the entry of a forgotten call is %s", got)
	}

	for _, id := range []string{"other", "large"} {
		s.send(t, fmt.Sprintf(`{"toolCall":{"functionCalls":[{"id":%q,"args":{"s":%q}}]}}`, id, strings.Repeat("x", maxPendingBytes/2+1)))
	}
	if len(pending) != 1 || pending["large"].GetArgs() == nil {
		t.Errorf("%d calls are pending beside a large one", len(pending))
	}
	s.send(t, answer("large"), call("small"))
}

func TestUsage(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.send(t, in("Hello"), out("Well"), usage(163, 575), out("."), turnComplete, usage(9, 25))
	if m := s.messages[1]; m.GetTokenCount() != 1 || !m.GetTokenCountEstimated() {
		t.Errorf("the user's message: %v", m)
	}
	if m := s.messages[2]; m.GetTokenCount() != 9 || m.GetTokenCountEstimated() {
		t.Errorf("the model's message: %v", m)
	}
	if got := s.state.GetTokenCount(); got != 10 {
		t.Errorf("token_count %d, want 10", got)
	}
	if got := s.state.GetLive().GetTotalTokens(); got != 600 {
		t.Errorf("total_tokens %d, want 600", got)
	}

	// Implausible, as strings, and not numbers at all.
	s.send(t, out("A longer one."), usage(-1, -1), usage(maxTurnTokens+1, maxTurnTokens+1),
		`{"usageMetadata":{"totalTokenCount":"100","responseTokenCount":"many"}}`, turnComplete)
	if m := s.messages[3]; m.GetTokenCount() != 4 || !m.GetTokenCountEstimated() {
		t.Errorf("the model's second message: %v", m)
	}
	if got := s.state.GetLive().GetTotalTokens(); got != 700 {
		t.Errorf("total_tokens %d, want 700", got)
	}
	s.check(t)
}

func TestTurnCompleteReason(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.send(t, out("I can"), `{"serverContent":{"turnComplete":true,"turnCompleteReason":"RESPONSE_REJECTED"}}`,
		out("Yes"), `{"serverContent":{"turnComplete":true,"turnCompleteReason":"TURN_COMPLETE_REASON_UNSPECIFIED"}}`)
	if got := s.messages[1].GetTurnCompleteReason(); got != "RESPONSE_REJECTED" {
		t.Errorf("got %q", got)
	}
	if got := s.messages[2].GetTurnCompleteReason(); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestLongTurnsGoOnInANewMessage(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("Schöne \"Worte\".\n", 3*maxTurnText/16)
	for name, frames := range map[string][]string{
		"user":        {in(text), out("ok"), turnComplete},
		"assistant":   {out(text), turnComplete},
		"interrupted": {out("One "), interrupted, out(text), turnComplete},
		"typed":       {typed(text)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			whole, pieces := newLiveStore(), newLiveStore()
			whole.send(t, frames...)
			whole.check(t)
			var b strings.Builder
			for _, seq := range slices.Sorted(maps.Keys(whole.messages)) {
				m := whole.messages[seq]
				b.WriteString(m.GetText())
				if m.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING {
					t.Errorf("message %d is still open", seq)
				}
			}
			if !strings.Contains(b.String(), text) {
				t.Error("the messages together are not the text")
			}
			if name == "typed" { // each typed text is a message of its own
				return
			}
			for _, frame := range frames {
				if !strings.Contains(frame, quote(text)) {
					pieces.send(t, frame)
					continue
				}
				for rest := text; rest != ""; {
					n := min(len(rest), 4003)
					for !utf8.ValidString(rest[:n]) {
						n--
					}
					pieces.send(t, strings.Replace(frame, quote(text), quote(rest[:n]), 1))
					rest = rest[n:]
				}
			}
			if diff := cmp.Diff(whole.transcript(), pieces.transcript()); diff != "" {
				t.Errorf("in one delta and in many (-one +many):\n%s", diff)
			}
		})
	}
}

func TestEpochs(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	one := []*livev1.LiveFrame{textFrame(1, in("a")), textFrame(2, in("b")), textFrame(5, in("c"))}
	if _, err := s.ingest(3, one...); err != nil {
		t.Fatal(err)
	}
	before := proto.CloneOf(s.state)
	effects, err := s.ingest(3, one...)
	if err != nil || effects.skipped != 3 || len(effects.messages)+len(effects.toolCalls) != 0 || !proto.Equal(before, s.state) {
		t.Errorf("a resend did something: %+v, %v", effects, err)
	}
	var fenced fencedError
	if _, err := s.ingest(2, textFrame(9, in("x"))); !errors.As(err, &fenced) || fenced.newest != 3 {
		t.Errorf("an older epoch: %v", err)
	}
	if !proto.Equal(before, s.state) {
		t.Error("a fenced batch changed the state")
	}
	if effects, err = s.ingest(3, textFrame(5, in("x")), textFrame(6, in("d"))); err != nil || effects.skipped != 1 {
		t.Errorf("an overlapping batch: %+v, %v", effects, err)
	}
	if _, err = s.ingest(4, textFrame(1, in("e"))); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1 user voice streaming: abcde"}, s.transcript()); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	if live := s.state.GetLive(); live.GetEpoch() != 4 || live.GetLastClientIndex() != 1 {
		t.Errorf("epoch %d, last_client_index %d", live.GetEpoch(), live.GetLastClientIndex())
	}
}

func TestParseFrame(t *testing.T) {
	t.Parallel()
	nested := func(depth int) string {
		return `{"toolCall":{"functionCalls":[{"id":"a","args":{"x":` + strings.Repeat("[", depth) + strings.Repeat("]", depth) + `}}]}}`
	}
	tests := []struct {
		name              string
		text              string
		messages, unknown int
	}{
		{"one", in("a"), 1, 0},
		{"several in a row", in("a") + " \n" + in("b") + turnComplete, 3, 0},
		{"several fields", `{"serverContent":{},"usageMetadata":{},"extra":1}`, 1, 1},
		{"known and not used", `{"goAway":{"timeLeft":"50s"}}{"sessionResumptionUpdate":{"newHandle":"h"}}{"contextUpdate":{}}`, 3, 0},
		{"unknown object", `{"error":{}}` + in("a"), 1, 1},
		{"no object", `1 "a" null [] true` + in("a"), 1, 5},
		{"empty", ``, 0, 1},
		{"not JSON", `hello`, 0, 1},
		{"broken after the first", in("a") + `{"serverContent":`, 1, 1},
		{"raw control character", "{\"serverContent\":{\"inputTranscription\":{\"text\":\"\x01\"}}}", 0, 1},
		{"wrong types", `{"serverContent":{"turnComplete":"yes","interrupted":true}}` + in("a"), 2, 1},
		{"arguments of the wrong type", `{"toolCall":{"functionCalls":[{"id":"a","args":"x"}]}}` + in("a"), 2, 1},
		{"arguments too deep", nested(maxObjectDepth) + in("a"), 2, 1},
		{"arguments deep", nested(maxObjectDepth-1) + in("a"), 2, 0},
		{"arguments too large", `{"toolCall":{"functionCalls":[{"id":"a","args":{"x":"` + strings.Repeat("x", maxObjectBytes) + `"}}]}}`, 1, 1},
		{"numbers too large", `{"toolCall":{"functionCalls":[{"id":"a","args":{"x":1e999}}]}}`, 1, 0},
		{"deep beyond reason", strings.Repeat("[", 1_000_000), 0, 1},
		{"calls that are null", `{"toolCall":{"functionCalls":[null,{"id":"a","args":null}]}}`, 1, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, frame := range []*livev1.LiveFrame{
				textFrame(1, test.text),
				{Frame: &livev1.LiveFrame_Binary{Binary: []byte(test.text)}},
			} {
				if messages, unknown := parseFrame(frame); len(messages) != test.messages || unknown != test.unknown {
					t.Errorf("%T: %d messages, %d not understood; want %d, %d", frame.GetFrame(), len(messages), unknown, test.messages, test.unknown)
				}
			}
		})
	}
}

func TestParseObjectFrame(t *testing.T) {
	t.Parallel()
	object := &structpb.Struct{}
	if err := protojson.Unmarshal([]byte(`{"usageMetadata":{"totalTokenCount":575},"toolCall":{"functionCalls":[{"id":"a","args":{"x":[1]}}]}}`), object); err != nil {
		t.Fatal(err)
	}
	messages, unknown := parseFrame(&livev1.LiveFrame{Frame: &livev1.LiveFrame_Object{Object: object}})
	if len(messages) != 1 || unknown != 0 || messages[0].UsageMetadata.TotalTokenCount != 575 ||
		messages[0].ToolCall.FunctionCalls[0].Args.fields == nil {
		t.Errorf("%+v, %d", messages, unknown)
	}
	object.Fields["nan"] = structpb.NewNumberValue(math.NaN())
	for _, frame := range []*livev1.LiveFrame{{}, {Frame: &livev1.LiveFrame_Object{Object: object}}, {Frame: &livev1.LiveFrame_Object{}}} {
		if messages, unknown := parseFrame(frame); len(messages) != 0 || unknown != 1 {
			t.Errorf("%v: %+v, %d", frame, messages, unknown)
		}
	}
}

func TestWhatPostgresCannotStore(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.send(t,
		"{\"serverContent\":{\"inputTranscription\":{\"text\":\"a\\u0000b\x00c\xff\\ud800\"}}}",
		`{"setupComplete":{"sessionId":"s\u00001"}}`,
		`{"toolCall":{"functionCalls":[{"id":"f\u0000","name":"n\u0000","args":{"k\u0000":1,"k":2,"l":["\u0000v"]}}]}}`,
		turnComplete,
	)
	if got, want := s.messages[1].GetText(), "abc\uFFFD\uFFFD"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	if got := s.state.GetLive().GetSessionId(); got != "s1" {
		t.Errorf("session %q", got)
	}
	args, err := structpb.NewStruct(map[string]any{"k": 1, "l": []any{"v"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.calls["f"]; got.GetName() != "n" || !proto.Equal(got.GetArgs(), args) {
		t.Errorf("call %v", got)
	}
	s.check(t)
}

// TestNoSecretsAreKept finds no handle of the recording in what it left.
func TestNoSecretsAreKept(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	for _, line := range recording(t) {
		if _, err := s.ingest(line.epoch, line.frame); err != nil {
			t.Fatal(err)
		}
	}
	if stored := s.json(t); strings.Contains(stored, "h-000") {
		t.Errorf("a resumption handle was stored: %s", stored)
	}
}

// recorded is a frame of the recording.
type recorded struct {
	at    int64 // milliseconds
	epoch int64
	frame *livev1.LiveFrame
}

func recording(tb testing.TB) []recorded {
	tb.Helper()
	data, err := os.ReadFile("../../examples/gemini-live-session.jsonl")
	if err != nil {
		tb.Fatal(err)
	}
	var lines []recorded
	next := map[int64]int64{}
	for scanner := bufio.NewScanner(bytes.NewReader(data)); scanner.Scan(); {
		var line struct {
			T     int64           `json:"t"`
			Conn  int64           `json:"conn"`
			Frame json.RawMessage `json:"frame"`
		}
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			tb.Fatal(err)
		}
		next[line.Conn]++
		lines = append(lines, recorded{line.T, line.Conn, textFrame(next[line.Conn], string(line.Frame))})
	}
	return lines
}

// TestRecording folds the recording frame by frame and compares the outcome with the golden transcript.
func TestRecording(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	var b strings.Builder
	b.WriteString("# Voice turn\n")
	status := ""
	for _, line := range recording(t) {
		if _, err := s.ingest(line.epoch, line.frame); err != nil {
			t.Fatal(err)
		}
		s.check(t)
		if now := shortName(s.state.GetVoice().GetStatus()); now != status {
			fmt.Fprintf(&b, "%9.3f %s\n", float64(line.at)/1000, now)
			status = now
		}
	}
	b.WriteString("\n# Messages\n")
	for i, line := range s.transcript() {
		m := s.messages[int64(i)+1]
		fmt.Fprintf(&b, "%s (%d tokens, estimated: %t)\n", line, m.GetTokenCount(), m.GetTokenCountEstimated())
	}
	b.WriteString("\n# Tool calls\n")
	for _, id := range slices.Sorted(maps.Keys(s.calls)) {
		c := s.calls[id]
		fmt.Fprintf(&b, "%s epoch %d %s %s: %s -> %s\n", id, c.GetEpoch(), c.GetName(), shortName(c.GetStatus()),
			compact(t, c.GetArgs()), compact(t, c.GetResponse()))
	}
	b.WriteString("\n# State\n" + compact(t, s.state) + "\n")

	const golden = "testdata/gemini-live-session.golden"
	if *updateGolden {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("outcome (-want +got); -update rewrites it:\n%s", diff)
	}
}

// compact is the message's JSON without the blanks that protojson varies on purpose.
func compact(tb testing.TB, m proto.Message) string {
	tb.Helper()
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

// TestBatchesDoNotMatter folds the recording in one batch for each connection and in random ones.
func TestBatchesDoNotMatter(t *testing.T) {
	t.Parallel()
	lines := recording(t)
	single := newLiveStore()
	for _, line := range lines {
		if _, err := single.ingest(line.epoch, line.frame); err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		s := newLiveStore()
		for rest := lines; len(rest) > 0; {
			size := len(rest)
			if round > 0 {
				size = 1 + random.IntN(len(rest))
			}
			var batch []*livev1.LiveFrame
			for _, line := range rest[:size] {
				if line.epoch == rest[0].epoch {
					batch = append(batch, line.frame)
				}
			}
			if _, err := s.ingest(rest[0].epoch, batch...); err != nil {
				t.Fatal(err)
			}
			rest = rest[len(batch):]
		}
		if diff := cmp.Diff(single, s, cmp.AllowUnexported(liveStore{}), protocmp.Transform()); diff != "" {
			t.Fatalf("round %d (-frame by frame +in batches):\n%s", round, diff)
		}
	}
}

// check verifies what must hold after any frames.
func (s *liveStore) check(tb testing.TB) {
	tb.Helper()
	if got := messageCount(s.state); got != int64(len(s.messages)) {
		tb.Fatalf("it counts %d of %d messages", got, len(s.messages))
	}
	var tokens int64
	for seq, m := range s.messages {
		seq--
		tokens += m.GetTokenCount()
		switch {
		case m.GetSeq() != seq+1 || m.GetSeq() > s.state.GetLastSeq():
			tb.Fatalf("no message %d", seq+1)
		case m.GetText() == "" && m.GetParts() == nil && m.GetTurnCompleteReason() == "" || len(m.GetText()) > maxTurnText || strings.Contains(m.GetText(), "\x00"):
			tb.Fatalf("text of message %d: %d bytes %.40q", seq+1, len(m.GetText()), m.GetText())
		case m.GetTokenCountEstimated() && m.GetTokenCount() != estimateMessage(m):
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
	b.WriteString(compact(tb, s.state))
	for _, m := range s.messages {
		b.WriteString(compact(tb, m))
	}
	for _, c := range s.calls {
		b.WriteString(compact(tb, c))
	}
	return strings.ReplaceAll(b.String(), `\\`, "")
}
