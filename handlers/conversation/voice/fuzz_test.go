package voice

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

// fuzzFrames are the frames that FuzzFold sends: all kinds, alone and together.
func fuzzFrames(text, long, raw string) []string {
	return []string{
		activityStart, activityEnd, audio, in(text), interim(text), out(text), part(text), typed(text), interrupted,
		in(text) + out(text) + interrupted, generated, turnComplete, turnIdle, call("a"), answer("a"), call(text),
		answer(text), `{"toolCallCancellation":{"ids":["a"]}}`, usage(len(text), len(raw)), raw, in(long) + out(long),
		`{"setup":{}}`, `{"setup":{"sessionResumption":{"handle":"h"}}}`, `{"setup":{"historyConfig":{"initialHistoryInClientContent":true}}}`,
		`{"setupComplete":{"sessionId":` + quote(text) + `}}`, resumption("h"), `{"sessionResumptionUpdate":{}}`,
		`{"goAway":{"timeLeft":"5s"}}`, `{"goAway":{"timeLeft":` + quote(text) + `}}`, call("b") + call("c"),
		`{"toolCallCancellation":{"ids":["b",` + quote(text) + `]}}`, answer("b") + answer("c"),
		`{"toolResponse":{"functionResponses":[{"id":"b","willContinue":true,"response":{"output":` + quote(long) + `}}]}}`,
		`{"serverContent":{"turnComplete":true,"turnCompleteReason":` + quote(text) + `,"interactionStatus":"REQUIRES_ACTION"}}`,
		`{"serverContent":{"waitingForInput":true}}`, `{"serverContent":{"interrupted":true,"turnComplete":true}}`,
		`{"serverContent":{"generationComplete":true,"turnComplete":true,"waitingForInput":true,"outputTranscription":{"text":` + quote(text) + `}}}`,
		`{"clientContent":{"turns":[{"role":"user","parts":[{"text":` + quote(text) + `}]}],"turnComplete":true}}`,
		`{"clientContent":{"turns":[{"role":"user","parts":[{"text":"x"}]},{"role":"model","parts":[{"text":` + quote(text) + `}]}]}}`,
		`{"realtimeInput":{"activityStart":{}}}`, `{"realtimeInput":{"activityEnd":{}}}`,
		`{"voiceActivityDetectionSignal":{"vadSignalType":"VAD_SIGNAL_TYPE_SOS"}}`, in("one two three "), in("One two, three."),
	}
}

// fuzzOps is how many steps of FuzzFold are no frames.
const fuzzOps = 12

// fuzzed is a conversation folded in batches, and once more frame by frame.
type fuzzed struct {
	batched, single *liveStore
	index           int64
	batch           []*livev1.LiveFrame
}

// do calls a rule on both.
func (z *fuzzed) do(rule func(*Reducer, *liveStore)) {
	for _, s := range []*liveStore{z.batched, z.single} {
		s.do(testNow, func(f *Reducer) { rule(f, s) })
	}
}

func (z *fuzzed) add(frame *livev1.LiveFrame) {
	z.index++
	frame.ClientIndex = int32(z.index)
	z.batch = append(z.batch, frame)
}

func (z *fuzzed) epoch() int64 { return max(z.batched.state.GetLive().GetEpoch(), 1) }

// flush sends the batch, and again, as a client does that lost the answer.
func (z *fuzzed) flush(t *testing.T, epoch int64) {
	t.Helper()
	if len(z.batch) == 0 {
		return
	}
	if _, err := z.batched.ingest(epoch, z.batch...); err != nil {
		t.Fatal(err)
	}
	z.batched.check(t)
	once := proto.CloneOf(z.batched.state)
	effects, err := z.batched.ingest(epoch, z.batch...)
	if err != nil || int(effects.Skipped) != len(z.batch) || len(effects.Messages)+len(effects.ToolCalls) > 0 || !proto.Equal(once, z.batched.state) {
		t.Fatalf("a resend did something: %+v, %v", effects, err)
	}
	for _, frame := range z.batch {
		if _, err := z.single.ingest(epoch, frame); err != nil {
			t.Fatal(err)
		}
	}
	z.batch = nil
}

// late is a frame of the connection before the newest: it may become a fragment, and nothing else.
func (z *fuzzed) late(t *testing.T, frame string) {
	t.Helper()
	old := z.epoch() - 1
	if old < 1 {
		return
	}
	before := proto.CloneOf(z.batched.state)
	index := before.GetLive().GetFencedIndexes()[old] + 1
	batch := []*livev1.LiveFrame{textFrame(index, frame)}
	z.do(func(f *Reducer, _ *liveStore) { f.Abandon(ReadBatch(old, batch, sealed)) })
	after := proto.CloneOf(z.batched.state)
	before.FragmentCount, after.FragmentCount = 0, 0
	before.Live.FencedIndexes, after.Live.FencedIndexes = nil, nil
	if !proto.Equal(before, after) {
		t.Fatalf("what came late changed the conversation: %s", cmp.Diff(before, after, protocmp.Transform()))
	}
}

// step does what is no frame.
func (z *fuzzed) step(op int, text string) {
	text = gemini.CleanText(text) // the API takes no other
	setup := []string{"a", "b"}[op%2]
	switch op {
	case 0, 1:
		z.do(func(f *Reducer, _ *liveStore) {
			f.take(setup)
		})
		z.index = 0
	case 2:
		z.do(func(f *Reducer, _ *liveStore) { f.CloseLive(1006) })
	case 3:
		z.do(func(f *Reducer, _ *liveStore) { f.RefuseHandle() })
	case 4, 5: // the oldest call that waits, or the newest of all
		z.do(func(f *Reducer, s *liveStore) {
			if c := chosenCall(s, op == 5); c != nil {
				_, _ = f.ClaimCall(c, claim(text, c.GetClaim().GetFencingToken()))
			}
		})
	case 6, 7:
		z.do(func(f *Reducer, s *liveStore) {
			if c := chosenCall(s, op == 7); c != nil {
				r := responded(strings.Repeat(text, 40))
				r.IsError = text == ""
				_, _, _ = f.CompleteCall(c, c.GetClaim().GetFencingToken(), r, "")
			}
		})
	case 8, 9:
		heard, played := &text, (*int64)(nil)
		if op == 9 {
			heard, played = nil, new(int64(len(text)))
		}
		for _, s := range []*liveStore{z.batched, z.single} {
			for _, seq := range slices.Backward(slices.Sorted(maps.Keys(s.messages))) {
				if m := s.messages[seq]; m.GetRole() == storev1.Role_ROLE_ASSISTANT {
					m = proto.CloneOf(m)
					Heard(s.state, m, heard, played, testNow)
					s.messages[seq] = m
					break
				}
			}
		}
	}
}

// chosenCall is the newest call, or the oldest that waits; nil: there is none.
func chosenCall(s *liveStore, newest bool) *storev1.ToolCall {
	if newest {
		return s.bySeq[s.state.GetToolCallCount()]
	}
	if open := OpenCalls(s.state.GetLive()); len(open) > 0 {
		return s.bySeq[open[0].GetSeq()]
	}
	return nil
}

// FuzzFold lets each byte of the script choose a frame, with the text as its words, or what a client or a worker does
// between frames. It checks the invariants after each batch: a batch that is sent again changes nothing, frames lead to
// the same one by one, and an old connection changes nothing.
func FuzzFold(f *testing.F) {
	frames := len(fuzzFrames("", "", ""))
	op := func(n int) byte { return byte(frames + n) }
	f.Add([]byte{0, 3, 3, 1, 2, 5, 5, 10, 11}, "Can you ", `{}`)
	f.Add([]byte{3, 5, 0, 3, 8, 5, 11, 3, 1, 2, 5, 10, 11}, "No, just\x00 \\u0000 ", `{"toolCall":{"functionCalls":[{"id":"a"}]}}`)
	f.Add([]byte{3, 5, 20, 5, 6, 13, 14, 15, 20, 14, 16, 17, 18, 19}, "é\xff\"", `{"a":`)
	f.Add([]byte{3, 20, 5, 18, 20, 20, 11, 3, op(10), 5, op(10), 9, 12, 7, 20}, "é\n", "[[[[")
	f.Add([]byte{op(0), 22, 25, 42, 13, 29, op(10), op(4), op(6), 27, 14, op(2), op(0), 22, 43, 13, 5, op(11), op(8), 8, 5, 11}, "Well ", `{"toolResponse":{}}`)
	f.Add([]byte{op(0), 29, 32, op(10), op(5), op(7), op(1), op(11), 31, 5, 6, 8, 5, op(9), 35, op(3), 26, 25, op(3), 36}, "a b ", `{"setup":1}`)
	f.Fuzz(func(t *testing.T, script []byte, text, raw string) {
		if len(script) > 80 || len(text) > 1<<10 {
			t.Skip("larger than a batch that is worth the time: what it shows, smaller ones show")
		}
		long := strings.Repeat(text, 8)
		for len(text) > 0 && len(long) < gemini.MaxTurnText/4 {
			long += long
		}
		frames := fuzzFrames(text, long, raw)
		z := &fuzzed{batched: newLiveStore(), single: newLiveStore()}
		for i, b := range script {
			choice := int(b) % (len(frames) + fuzzOps)
			if choice < len(frames) {
				z.add(textFrame(0, frames[choice]))
				continue
			}
			z.flush(t, z.epoch())
			switch op := choice - len(frames); op {
			case fuzzOps - 2: // a connection that its frames announce
				epoch := z.epoch() + 1
				z.index = 0
				z.add(&livev1.LiveFrame{Frame: &livev1.LiveFrame_Binary{Binary: []byte(raw)}})
				z.flush(t, epoch)
			case fuzzOps - 1:
				if late := frames[i%len(frames)]; late != raw && !strings.Contains(late, "toolResponse") {
					z.late(t, late)
				}
			default:
				z.step(op, text)
				z.batched.check(t)
			}
		}
		z.flush(t, z.epoch())
		if !z.same() {
			t.Fatalf("(-frame by frame +in batches):\n%s", cmp.Diff(z.single, z.batched, cmp.AllowUnexported(liveStore{}), protocmp.Transform()))
		}
	})
}

// same reports whether frames led to the same one by one and in batches.
func (z *fuzzed) same() bool {
	equal := func(a, b *storev1.Message) bool { return proto.Equal(a, b) }
	equalCalls := func(a, b *storev1.ToolCall) bool { return proto.Equal(a, b) }
	return proto.Equal(z.single.state, z.batched.state) && maps.EqualFunc(z.single.messages, z.batched.messages, equal) &&
		maps.EqualFunc(z.single.bySeq, z.batched.bySeq, equalCalls)
}
