package object_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"holdfast/object"
)

// Whatever is put and deleted, what is at hand either agrees with what is stored or says that it does not know.
func TestRecentAgreesWithWhatIsStored(t *testing.T) {
	t.Parallel()
	const keep, keys = 3, 30
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		stored := map[string]proto.Message{}
		key := func() string { return object.SeqKey(r.Int64N(keys)) }
		for range r.IntN(20) {
			stored[key()] = wrapperspb.Int32(-1)
		}
		limit := keep + r.IntN(2*keep)
		recent := object.LoadedRecent(newest(stored, limit), limit)
		for step := range 100 {
			k := key()
			if seed%3 == 0 { // mostly at the end, as messages are
				k = object.SeqKey(int64(step)/3 + r.Int64N(3))
			}
			if r.IntN(3) == 0 {
				delete(stored, k)
				recent = recent.With(k, nil, keep)
			} else {
				stored[k] = wrapperspb.Int32(int32(step))
				recent = recent.With(k, stored[k], keep)
			}
			if recent.Len() > 2*max(keep, limit) {
				t.Fatalf("seed %d, step %d: %d entries are at hand", seed, step, recent.Len())
			}
			for i := range int64(keys + 40) {
				k := object.SeqKey(i)
				if got, sure := recent.Find(k); sure && got != stored[k] {
					t.Fatalf("seed %d, step %d: entry %s is %v at hand and %v stored", seed, step, k, got, stored[k])
				}
			}
			for n := range 2 * keep {
				if got, sure := recent.Last(n); sure && !slices.Equal(got, newest(stored, n)) {
					t.Fatalf("seed %d, step %d: newest %d are %v at hand and %v stored", seed, step, n, got, newest(stored, n))
				}
			}
		}
	}
}

func newest(stored map[string]proto.Message, n int) []object.Entry {
	var all []object.Entry
	for k, v := range stored {
		all = append(all, object.Entry{Key: k, Value: v})
	}
	slices.SortFunc(all, func(a, b object.Entry) int { return strings.Compare(a.Key, b.Key) })
	return all[max(0, len(all)-n):]
}

// A record's entries are shared with readers while the next version is made from them.
func TestRecentSharesNothingThatChanges(t *testing.T) {
	t.Parallel()
	const keep = 2
	r := object.LoadedRecent(nil, 1)
	var versions []object.Recent
	var want []string
	for i := range 40 {
		r = r.With(object.SeqKey(int64(i%9)), wrapperspb.Int32(int32(i)), keep)
		versions = append(versions, r)
		want = append(want, renderRecent(r))
	}
	for i, v := range versions {
		if got := renderRecent(v); got != want[i] {
			t.Errorf("version %d was %s and is %s", i, want[i], got)
		}
	}
}

func renderRecent(r object.Recent) string {
	entries, _ := r.Last(r.Len())
	return fmt.Sprint(entries)
}
