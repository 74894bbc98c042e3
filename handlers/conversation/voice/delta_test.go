package voice

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// BenchmarkDelta folds one more piece of an open answer of 60 KB, and of one of 1 KB; ratio is how much more the first takes.
func BenchmarkDelta(b *testing.B) {
	sizes := [2]int{1 << 10, 60 << 10}
	var stores [2]*liveStore
	for i, size := range sizes {
		stores[i] = newLiveStore()
		stores[i].sendTo(b, in("Tell me a story."), audio)
		sentence := "There was once a king who had a daughter. "
		for n := 0; n < size; n += len(sentence) {
			stores[i].sendTo(b, out(sentence))
		}
	}
	before := [2]*storev1.ConversationState{proto.CloneOf(stores[0].state), proto.CloneOf(stores[1].state)}
	var took [2]time.Duration
	for range b.N {
		for i, s := range stores {
			s.state = proto.CloneOf(before[i])
			began := time.Now()
			s.sendTo(b, out("word "))
			took[i] += time.Since(began)
		}
	}
	b.ReportMetric(float64(took[1])/float64(took[0]), "ratio")
}

// BenchmarkTurn folds a spoken turn of ten frames, which comes as one batch.
func BenchmarkTurn(b *testing.B) {
	s := opens("a")
	frames := shorthands("VS", "in:Can you ", "in:look at it?", "VE", "AU", "out:Yes, ", "out:I can.", "GC", "TC", resumption("h"))
	for b.Loop() {
		batch := make([]*livev1.LiveFrame, len(frames))
		for i, frame := range frames {
			batch[i] = textFrame(int64(i)+1, frame)
		}
		s.state.Live.LastClientIndex = 0
		if _, err := s.ingest(1, batch...); err != nil {
			b.Fatal(err)
		}
		clear(s.messages)
	}
}
