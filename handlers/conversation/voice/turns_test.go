package voice

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/conversation/voice/voicetest"
)

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
			Listening, Listening, Processing, Processing, Responding, Responding,
			Responding, Idle,
		},
	}, {
		"no signals of speech",
		[]string{interim("H"), in("Hi"), out("Hello."), in("!"), turnComplete, in("And")},
		[]storev1.VoiceStatus{
			Listening, Listening, Responding, Responding, Idle, Listening,
		},
	}, {
		"signals of the allow-listed kind",
		[]string{
			`{"voiceActivityDetectionSignal":{"vadSignalType":"VAD_SIGNAL_TYPE_SOS"}}`,
			`{"voiceActivityDetectionSignal":{"vadSignalType":"VAD_SIGNAL_TYPE_EOS"}}`,
		},
		[]storev1.VoiceStatus{Listening, Processing},
	}, {
		"tools",
		[]string{in("Go"), call("a"), answer("a"), audio},
		[]storev1.VoiceStatus{Listening, Processing, Processing, Responding},
	}, {
		"thoughts are no response",
		[]string{activityEnd, `{"serverContent":{"modelTurn":{"parts":[{"text":"Hm","thought":true}]}}}`, part("Yes")},
		[]storev1.VoiceStatus{Processing, Processing, Responding},
	}, {
		"speech over the model",
		[]string{audio, activityStart, audio, interrupted, out("late"), turnComplete, in("No"), activityEnd, audio},
		[]storev1.VoiceStatus{
			Responding, Listening, Listening, Listening, Listening, Listening,
			Listening, Processing, Responding,
		},
	}, {
		"the interaction goes on, or waits",
		[]string{
			audio, `{"serverContent":{"turnComplete":true,"interactionStatus":"IN_PROGRESS"}}`,
			`{"serverContent":{"waitingForInput":true}}`,
		},
		[]storev1.VoiceStatus{Responding, Processing, Listening},
	}, {
		"a connection lost while the model speaks",
		[]string{audio, "reconnect"},
		[]storev1.VoiceStatus{Responding, Idle},
	}, {
		"a connection lost while the user speaks",
		[]string{activityStart, in("Set"), "reconnect", in("it")},
		[]storev1.VoiceStatus{Listening, Listening, Listening, Listening},
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
	text := strings.Repeat("Schöne \"Worte\".\n", 3*gemini.MaxTurnText/16)
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
	if err != nil || effects.Skipped != 3 || len(effects.Messages)+len(effects.ToolCalls) != 0 || !proto.Equal(before, s.state) {
		t.Errorf("a resend did something: %+v, %v", effects, err)
	}
	if effects, err = s.ingest(3, textFrame(5, in("x")), textFrame(6, in("d"))); err != nil || effects.Skipped != 1 {
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
		{"arguments too deep", nested(gemini.MaxObjectDepth) + in("a"), 2, 1},
		{"arguments deep", nested(gemini.MaxObjectDepth-1) + in("a"), 2, 0},
		{"arguments too large", `{"toolCall":{"functionCalls":[{"id":"a","args":{"x":"` + strings.Repeat("x", gemini.MaxObjectBytes) + `"}}]}}`, 1, 1},
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
				if messages, unknown := gemini.Parse(frame); len(messages) != test.messages || unknown != test.unknown {
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
	messages, unknown := gemini.Parse(&livev1.LiveFrame{Frame: &livev1.LiveFrame_Object{Object: object}})
	if len(messages) != 1 || unknown != 0 || messages[0].UsageMetadata.TotalTokenCount != 575 ||
		messages[0].ToolCall.FunctionCalls[0].Args.Fields == nil {
		t.Errorf("%+v, %d", messages, unknown)
	}
	object.Fields["nan"] = structpb.NewNumberValue(math.NaN())
	for _, frame := range []*livev1.LiveFrame{{}, {Frame: &livev1.LiveFrame_Object{Object: object}}, {Frame: &livev1.LiveFrame_Object{}}} {
		if messages, unknown := gemini.Parse(frame); len(messages) != 0 || unknown != 1 {
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
	for _, line := range voicetest.Recording(t, "../../../examples/gemini-live-session.jsonl") {
		if _, err := s.ingest(line.Epoch, line.Frame); err != nil {
			t.Fatal(err)
		}
	}
	if stored := s.json(t); strings.Contains(stored, "h-000") {
		t.Errorf("a resumption handle was stored: %s", stored)
	}
}

// TestRecording folds the recording frame by frame and compares the outcome with the golden transcript.
func TestRecording(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	var b strings.Builder
	b.WriteString("# Voice turn\n")
	status := ""
	for _, line := range voicetest.Recording(t, "../../../examples/gemini-live-session.jsonl") {
		if _, err := s.ingest(line.Epoch, line.Frame); err != nil {
			t.Fatal(err)
		}
		s.check(t)
		if now := shortName(s.state.GetVoice().GetStatus()); now != status {
			fmt.Fprintf(&b, "%9.3f %s\n", float64(line.At)/1000, now)
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
			voicetest.Compact(t, c.GetArgs()), voicetest.Compact(t, c.GetResponse()))
	}
	b.WriteString("\n# State\n" + voicetest.Compact(t, s.state) + "\n")

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

// TestBatchesDoNotMatter folds the recording in one batch for each connection and in random ones.
func TestBatchesDoNotMatter(t *testing.T) {
	t.Parallel()
	lines := voicetest.Recording(t, "../../../examples/gemini-live-session.jsonl")
	single := newLiveStore()
	for _, line := range lines {
		if _, err := single.ingest(line.Epoch, line.Frame); err != nil {
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
				if line.Epoch == rest[0].Epoch {
					batch = append(batch, line.Frame)
				}
			}
			if _, err := s.ingest(rest[0].Epoch, batch...); err != nil {
				t.Fatal(err)
			}
			rest = rest[len(batch):]
		}
		if diff := cmp.Diff(single, s, cmp.AllowUnexported(liveStore{}), protocmp.Transform()); diff != "" {
			t.Fatalf("round %d (-frame by frame +in batches):\n%s", round, diff)
		}
	}
}
