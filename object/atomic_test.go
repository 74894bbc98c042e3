package object_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"holdfast/db"
	"holdfast/object"
)

// appendToAll appends a text to the names of several toys, of all or of none. It returns the replies, which each run of the closures makes
// anew.
func appendToAll(
	ctx context.Context, rt *object.Runtime, k *object.Kind[toy], requestID, text string, ids []object.ID, opts ...object.UpdateOption,
) (replies []string, err error) {
	a := rt.Atomic(&toyRequest{structpb.NewStringValue(text), requestID})
	made := make([]**wrapperspb.StringValue, len(ids))
	for i, id := range ids {
		made[i] = object.DoIn(a, k, id, func(tx *object.Tx[toy]) (*wrapperspb.StringValue, error) {
			tx.State().Name += text
			return wrapperspb.String(uuid.NewString()), nil
		}, append(opts, object.Upsert())...)
	}
	err = a.Run(ctx)
	for _, m := range made {
		replies = append(replies, (*m).GetValue())
	}
	return replies, err
}

func (b *testBundle) want(t *testing.T, k *object.Kind[toy], id object.ID, version object.Version, name string) {
	t.Helper()
	s, err := k.View(b.ctx, id)
	if version == 0 {
		if !errors.Is(err, object.ErrNotFound) {
			t.Errorf("%s is at version %d with %q, %v; it was not to be made", id, s.Version, s.State.GetName(), err)
		}
	} else if err != nil || s.Version != version || s.State.GetName() != name {
		t.Errorf("%s is at version %d with %q, %v; want %d with %q", id, s.Version, s.State.GetName(), err, version, name)
	}
}

func TestSeveralObjectsChangeTogetherOrNotAtAll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := toyKind(newRuntime(t, b.DB, object.Config{}))
	ids := []object.ID{"a", "b", "c"}
	errNo := errors.New("no")
	for round := range 3 { // what is made, what the cache has, and what another process has changed since
		requestID := fmt.Sprint("r", round)
		first, err := appendToAll(b.ctx, b.rt, b.toys, requestID, "x", ids)
		if err != nil {
			t.Fatal(err)
		}
		again, err := appendToAll(b.ctx, b.rt, b.toys, requestID, "x", ids)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(first) {
			t.Errorf("a retry got %v, %v; want %v", again, err, first)
		}
		if _, err := appendToAll(b.ctx, b.rt, b.toys, requestID, "y", ids); !errors.Is(err, object.ErrRequestReused) {
			t.Errorf("another request of that id got %v", err)
		}
		for refused := range ids {
			a := b.rt.Atomic(&toyRequest{structpb.NewNullValue(), ""})
			for i, id := range ids {
				object.DoIn(a, b.toys, id, func(tx *object.Tx[toy]) (*wrapperspb.StringValue, error) {
					tx.State().Name += "never"
					if i == refused {
						return nil, errNo
					}
					return nil, nil
				})
			}
			changed, ok := errors.AsType[*object.ChangeError](a.Run(b.ctx))
			if !ok || changed.Index != refused || !errors.Is(changed, errNo) {
				t.Errorf("change %d was refused: %v", refused, changed)
			}
		}
		if round == 1 {
			for _, id := range ids {
				if _, err := other.Update(b.ctx, id, func(tx *object.Tx[toy]) error { tx.State().Name += "o"; return nil }); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, id := range ids {
		b.want(t, b.toys, id, 4, "xxox")
		b.want(t, other, id, 4, "xxox")
	}

	// One of them begins another life: it no longer knows the request, which the others do.
	if _, err := b.toys.Update(b.ctx, "b", func(tx *object.Tx[toy]) error { tx.DeleteObject(); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := appendToAll(b.ctx, b.rt, b.toys, "r2", "x", ids); !errors.Is(err, object.ErrRequestReused) {
		t.Errorf("a retry that would happen in part got %v", err)
	}
	b.want(t, b.toys, "a", 4, "xxox")
	b.want(t, b.toys, "b", 0, "")

	for name, ids := range map[string][]object.ID{"twice": {"a", "c", "a"}, "no id": {"a", "not an id"}} {
		if _, err := appendToAll(b.ctx, b.rt, b.toys, "", "x", ids); !errors.Is(err, object.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	over, cancel := context.WithCancel(b.ctx)
	cancel()
	if _, err := appendToAll(over, b.rt, b.toys, "", "x", []object.ID{"a", "d"}); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who has gone got %v", err)
	}
	if _, err := b.toys.Update(b.ctx, "d", func(*object.Tx[toy]) error { return nil }, object.Create()); err != nil { // behind it
		t.Error(err)
	}
	b.want(t, b.toys, "a", 4, "xxox")
}

// Callers of two processes take overlapping sets in any order, beside changes of single objects: all finish, and each set changed as one.
func TestOverlappingSetsAllFinish(t *testing.T) {
	t.Parallel()
	b := setup(t)
	type process struct {
		rt *object.Runtime
		k  *object.Kind[toy]
	}
	processes := []process{{b.rt, b.toys}}
	rt := newRuntime(t, b.DB, object.Config{})
	processes = append(processes, process{rt, toyKind(rt)})
	ids := []object.ID{"a", "b", "c", "d", "e", "f"}
	if _, err := appendToAll(b.ctx, b.rt, b.toys, "", "", ids); err != nil {
		t.Fatal(err)
	}
	const callers, each = 8, 25
	var mu sync.Mutex
	want := map[object.ID]object.Version{}
	var working sync.WaitGroup
	for caller := range callers {
		p := processes[caller%2]
		working.Go(func() {
			for range each {
				var set []object.ID
				for _, i := range rand.Perm(len(ids))[:1+rand.IntN(4)] {
					set = append(set, ids[i])
				}
				var err error
				if len(set) == 1 {
					_, err = appendTo(b.ctx, p.k, set[0], "", ".")
				} else {
					_, err = appendToAll(b.ctx, p.rt, p.k, "", ".", set)
				}
				if err != nil {
					t.Errorf("%v: %v", set, err)
					return
				}
				mu.Lock()
				for _, id := range set {
					want[id]++
				}
				mu.Unlock()
			}
		})
	}
	working.Wait()
	for _, id := range ids {
		s, err := b.toys.View(b.ctx, id)
		if err != nil || s.Version != 1+want[id] || len(s.State.GetName()) != int(want[id]) {
			t.Errorf("%s is at version %d with %d changes, %v; want %d", id, s.Version, len(s.State.GetName()), err, want[id])
		}
	}
}

// A process that dies between its locks and its commit leaves nothing, and others change the objects.
func TestADeathBetweenLockAndCommitLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rt := object.NewRuntime(b.open(t, "dying"), object.Config{})
	toys := toyKind(rt)
	ids := []object.ID{"a", "b", "c"}
	b.update(t, "a", tagged("before"), object.Upsert())

	locked, gate := make(chan struct{}), make(chan struct{})
	a := rt.Atomic(&toyRequest{structpb.NewNullValue(), "r1"})
	var once sync.Once
	for _, id := range ids {
		object.DoIn(a, toys, id, func(tx *object.Tx[toy]) (*wrapperspb.StringValue, error) {
			tx.State().Name = "never"
			once.Do(func() { close(locked) }) // what is made is looked for first: the locks are held
			<-gate
			return nil, nil
		}, object.Upsert())
	}
	outcome := make(chan error, 1)
	go func() { outcome <- a.Run(b.ctx) }()
	<-locked
	over, cancel := context.WithCancel(b.ctx)
	cancel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = rt.Close(over) // the process gives up at once
	}()
	b.exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", b.appName("dying"))
	close(gate)
	if err := <-outcome; err == nil {
		t.Error("it was answered as done")
	}
	<-closed
	b.want(t, b.toys, "a", 1, "before")
	b.want(t, b.toys, "b", 0, "")
	b.want(t, b.toys, "c", 0, "")
	if _, err := appendToAll(b.ctx, b.rt, b.toys, "r1", "+", ids); err != nil {
		t.Error(err)
	}
	b.want(t, b.toys, "a", 2, "before+")
	b.want(t, b.toys, "b", 1, "+")
}

// A connection that is lost around the commit of several objects: it happens once, to all of them, and who cannot be told so is told that.
func TestLostConnectionOfAGroup(t *testing.T) {
	t.Parallel()
	for _, what := range []loss{theRequest, theAnswer, theEndOfAnswer} {
		for _, warm := range []bool{true, false} {
			for _, requestID := range []string{"", "r1"} {
				t.Run(fmt.Sprintf("%s/warm=%t/request=%s", what, warm, requestID), func(t *testing.T) {
					t.Parallel()
					b := setup(t)
					p, d := newProxy(t, b.URL)
					rt := newRuntime(t, d, object.Config{})
					toys := toyKind(rt)
					ids := []object.ID{"a", "b", "c"}
					through, of := b.rt, b.toys
					if warm {
						through, of = rt, toys
					}
					if _, err := appendToAll(b.ctx, through, of, "", "-", ids); err != nil {
						t.Fatal(err)
					}
					marker := uuid.NewString()
					p.lose(what, marker)
					first, err := appendToAll(b.ctx, rt, toys, requestID, marker, ids)
					<-p.lost
					if requestID == "" && what != theRequest {
						if !errors.Is(err, db.ErrOutcomeUnknown) {
							t.Errorf("committed, and the caller cannot be told: %v", err)
						}
					} else if err != nil {
						t.Error(err)
					}
					for _, id := range ids {
						b.want(t, toys, id, 2, "-"+marker)
						b.want(t, b.toys, id, 2, "-"+marker)
					}
					if requestID == "" {
						return
					}
					if again, err := appendToAll(b.ctx, b.rt, b.toys, requestID, marker, ids); err != nil || fmt.Sprint(again) != fmt.Sprint(first) {
						t.Errorf("a retry got %v, %v; want %v", again, err, first)
					}
				})
			}
		}
	}
}

// A group takes one round trip where the cache has its objects. While it waits for one of them, others are changed, and what came after it
// comes after it.
func TestAGroupHoldsUpOnlyItsOwnObjects(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p, d := newProxy(t, b.URL)
	rt := newRuntime(t, d, object.Config{})
	toys := toyKind(rt)
	ids := []object.ID{"a", "b"}
	for range 2 { // Postgres prepares the statements of both ways
		if _, err := appendToAll(b.ctx, rt, toys, "", "1", ids); err != nil {
			t.Fatal(err)
		}
	}
	before := p.trips.Load()
	if _, err := appendToAll(b.ctx, rt, toys, "", "2", ids); err != nil {
		t.Fatal(err)
	}
	if n := p.trips.Load() - before; n != 1 {
		t.Errorf("it took %d round trips", n)
	}

	ran, gate, done := make(chan struct{}), make(chan struct{}), make(chan error, 3)
	var once sync.Once
	go func() {
		_, err := toys.Update(b.ctx, "a", func(tx *object.Tx[toy]) error {
			once.Do(func() { close(ran) })
			<-gate
			tx.State().Name += "3"
			return nil
		})
		done <- err
	}()
	<-ran
	later := func(change func(context.Context) error) {
		ctx, queued := signalled(b.ctx)
		go func() { done <- change(ctx) }()
		<-queued
	}
	later(func(ctx context.Context) error {
		_, err := appendToAll(ctx, rt, toys, "", "4", ids)
		return err
	})
	later(func(ctx context.Context) error {
		_, err := appendTo(ctx, toys, "b", "", "5")
		return err
	})
	if _, err := appendTo(b.ctx, toys, "c", "", "free"); err != nil {
		t.Error(err)
	}
	close(gate)
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	b.want(t, b.toys, "a", 5, "11234")
	b.want(t, b.toys, "b", 5, "11245")
	await(t, "the queues to empty", func() bool { return rt.Waiting() == 0 && rt.Running() == 0 })
}

// A group that Postgres fails to end a deadlock with another program is tried again, as a whole.
func TestAGroupOutlivesADeadlock(t *testing.T) {
	t.Parallel()
	d := setupDeadlock(t)
	outside, watch := d.session(t), d.owner(t)
	first, last := d.ids[0], d.ids[2]
	before := d.deadlocks(t, watch)
	d.exec(t, outside, "SELECT pg_advisory_lock($1)", d.lock(last))
	outcome := make(chan error, 1)
	go func() {
		_, err := appendToAll(d.ctx, d.rt, d.toys, "", "+", d.ids)
		outcome <- err
	}()
	d.waits(t, watch, last, 1)
	d.exec(t, outside, "SELECT pg_advisory_lock($1)", d.lock(first)) // until the group is failed
	d.exec(t, outside, "SELECT pg_advisory_unlock_all()")
	if err := <-outcome; err != nil {
		t.Error(err)
	}
	for _, id := range d.ids {
		d.want(t, d.toys, id, 2, "++")
	}
	await(t, "Postgres to count the deadlock", func() bool { return d.deadlocks(t, watch) > before })
}
