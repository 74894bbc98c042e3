package object_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/typepb"
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
			keep := keep - r.IntN(keep)
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
			if recent.Len() > 2*max(keep, limit)+4 {
				t.Fatalf("seed %d, step %d: %d entries are at hand", seed, step, recent.Len())
			}
			if counted := object.LoadedRecent(all(recent), limit).Bytes(); recent.Bytes() != counted {
				t.Fatalf("seed %d, step %d: %d bytes are at hand, counted anew %d", seed, step, recent.Bytes(), counted)
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

func all(r object.Recent) []object.Entry {
	entries, _ := r.Last(r.Len())
	return entries
}

func renderRecent(r object.Recent) string { return fmt.Sprint(all(r)) }

// As many of the newest entries stay at hand as the kind wants, and hardly more.
func TestTheNewestEntriesStayAtHand(t *testing.T) {
	t.Parallel()
	const keep, changes = 12, 80
	tb := setup(t)
	k := loggedKind(tb.rt, keep)
	for i := range changes {
		putToy(t, tb, k, i, fmt.Sprint(i))
	}
	if n := tb.rt.AtHand(tb.Tenant, "logged", "a"); n < keep || n > keep+4 {
		t.Errorf("%d entries are at hand, want %d to %d", n, keep, keep+4)
	}
	if believed, measured := tb.rt.CacheBytes(); believed != measured {
		t.Errorf("the cache believes to hold %d bytes, and holds %d", believed, measured)
	}
}

// After many changes all is found as it is stored: by reads of fewer and of more than is at hand, and by changes.
func TestEntriesAreFoundAfterManyChanges(t *testing.T) {
	t.Parallel()
	const keep, changes = 12, 60
	for _, n := range []int{1, 4, 5, 8, 9, keep, keep + 5, changes, changes + 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			tb := setup(t)
			k := loggedKind(tb.rt, keep)
			for i := range changes {
				putToy(t, tb, k, i, fmt.Sprint(i))
			}
			viewNewest(t, tb, k, changes-1, n)
			putToy(t, tb, k, changes, fmt.Sprint(changes))
			viewNewest(t, tb, k, changes, n)
		})
	}
	t.Run("by changes", func(t *testing.T) {
		t.Parallel()
		tb := setup(t)
		k := loggedKind(tb.rt, keep)
		for i := range changes {
			putToy(t, tb, k, i, fmt.Sprint(i))
		}
		for i := changes - 1; i >= changes-10; i-- { // all that is at hand, and more
			_, err := k.Update(tb.ctx, "a", func(tx *object.Tx[toy]) error {
				key := object.SeqKey(int64(i))
				if was, _ := tx.Entry(toyEntries, key).(*typepb.EnumValue); was.GetName() != fmt.Sprint(i) {
					return fmt.Errorf("entry %d is %v", i, was)
				}
				if tx.Entry(toyEntries, object.SeqKey(int64(i+1))) != nil {
					return fmt.Errorf("entry %d is still there", i+1)
				}
				tx.DeleteEntry(toyEntries, key)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		viewNewest(t, tb, k, changes-11, 20)
	})
}

func loggedKind(rt *object.Runtime, keep int) *object.Kind[toy] {
	c := toyConfig()
	c.Name, c.RecentKeep = "logged", keep
	return object.Register(rt, c)
}

func putToy(t *testing.T, tb *testBundle, k *object.Kind[toy], i int, text string) {
	t.Helper()
	_, err := k.Update(tb.ctx, "a", func(tx *object.Tx[toy]) error {
		tx.Put(toyEntries, object.SeqKey(int64(i)), &typepb.EnumValue{Name: text})
		return nil
	}, object.Upsert())
	if err != nil {
		t.Fatal(err)
	}
}

// viewNewest wants the newest n entries of those up to last.
func viewNewest(t *testing.T, tb *testBundle, k *object.Kind[toy], last, n int) {
	t.Helper()
	s, err := k.View(tb.ctx, "a", object.WithRecent(n))
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, e := range s.Recent {
		got = append(got, e.Key+" "+e.Value.(*typepb.EnumValue).GetName())
	}
	for i := max(0, last+1-n); i <= last; i++ {
		want = append(want, object.SeqKey(int64(i))+" "+fmt.Sprint(i))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the newest %d (-want +got):\n%s", n, diff)
	}
}
