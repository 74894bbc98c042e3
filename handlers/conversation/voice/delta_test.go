package voice

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

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
