package object_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/identity"
	"holdfast/object"
)

// Many watchers of many objects, users and positions share what they read, and each is told its own: nobody another
// user's, nothing twice, and a snapshot only who needs one.
func TestSharedCatchUps(t *testing.T) {
	t.Parallel()
	b := setup(t)
	watching := toyKind(newRuntime(t, b.DB, object.Config{PollInterval: never}))
	users := []identity.User{"alice", "bob"}
	const objects, versions = 3, 40
	for _, u := range users {
		for o := range objects {
			id := object.ID(fmt.Sprint(u, o))
			for v := range versions {
				_, err := b.toys.Update(b.As(t, u), id, func(tx *object.Tx[toy]) error {
					tx.State().Name = fmt.Sprint(u, v+1)
					tx.Put(toyEntries, object.SeqKey(int64(v+1)), &typepb.EnumValue{Name: fmt.Sprint(u, v+1)})
					return nil
				}, object.Upsert())
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	var watchers sync.WaitGroup
	for _, u := range users {
		for n := range 200 {
			watchers.Go(func() {
				owner, after := users[n%2], object.Version(n%versions)
				id := object.ID(fmt.Sprint(owner, n%objects))
				for c, err := range watching.Watch(b.As(t, u), id, after, 5) {
					switch {
					case u != owner:
						if err == nil {
							t.Errorf("%s sees %s at version %d", u, id, c.Version)
						}
					case err != nil:
						t.Error(err)
					case c.Version != versions || c.Reset != (after == 0) || c.State.GetName() != fmt.Sprint(u, versions):
						t.Errorf("%s after %d: version %d, reset %t, %q", id, after, c.Version, c.Reset, c.State.GetName())
					default:
						first := after + 1
						if c.Reset {
							first = versions - 4
						}
						if len(c.Entries) != int(versions-first)+1 || c.Entries[0].Key != object.SeqKey(int64(first)) {
							t.Errorf("%s after %d: %d entries from %s", id, after, len(c.Entries), c.Entries[0].Key)
						}
					}
					break
				}
			})
		}
	}
	watchers.Wait()
}

// One object with many watchers in a process is read for all of them at once, however often another process changes it.
func TestHotWatchedObject(t *testing.T) {
	t.Parallel()
	b := setup(t)
	reg := prometheus.NewRegistry()
	carrier := newFaulty()
	c := hinting(carrier)
	c.Metrics, c.Limits.WatchesPerUser = reg, 1000
	writer, watcher := newRuntime(t, b.DB, hinting(carrier)), newRuntime(t, b.DB, c)
	acquainted(t, writer, watcher)
	writing, watching := toyKind(writer), toyKind(watcher)
	const watchers, changes = 300, 30
	if _, err := writing.Update(b.ctx, "hot", naming("1"), object.Create()); err != nil {
		t.Fatal(err)
	}
	var streams []<-chan object.Version
	for range watchers {
		streams = append(streams, follow(t, b.ctx, watching, "hot"))
	}
	for _, s := range streams {
		reach(t, s, 1)
	}
	before := metric(t, reg, "holdfast_catch_up_reads_total")
	for range changes {
		if _, err := writing.Update(b.ctx, "hot", naming("x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range streams {
		reach(t, s, changes+1)
	}
	if reads := metric(t, reg, "holdfast_catch_up_reads_total") - before; reads == 0 || reads > watchers*changes/10 {
		t.Errorf("%d watchers of %d changes took %v reads", watchers, changes, reads)
	}
}
