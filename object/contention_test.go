package object_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"holdfast/db"
	"holdfast/object"
)

// Objects whose locks a session outside holds do not stop the others, do not collect connections, and are refused in
// bounded time as contended. Once the locks are free they go on.
func TestAStuckLockStopsOneObject(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.open(t, "stuck-lock-"+string(b.Tenant))
	rt := newRuntime(t, d, object.Config{})
	toys := toyKind(rt)
	touch := func(id object.ID) error {
		_, err := toys.Update(b.ctx, id, func(tx *object.Tx[toy]) error { tx.State().Name += "+"; return nil }, object.Upsert())
		return err
	}
	stuck := []object.ID{"stuck-1", "stuck-2", "stuck-3"}
	for _, id := range append(stuck, "fine") {
		if err := touch(id); err != nil {
			t.Fatal(err)
		}
	}
	holder := b.owner(t)
	for _, id := range stuck {
		if _, err := holder.Exec(b.ctx, "SELECT pg_advisory_lock($1)", object.LockKey(b.Tenant, "toy", id)); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	failed := make(chan error, 30)
	for i := range 30 {
		wg.Go(func() { failed <- touch(stuck[i%len(stuck)]) })
	}
	// Until all of the stuck ones have given up the others are written.
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	watch := b.owner(t)
	written, most := 0, 0
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
			if err := touch(object.ID(fmt.Sprintf("fine-%d", written%10))); err != nil {
				t.Fatal(err)
			}
			written++
			var waiting int
			if err := watch.QueryRow(b.ctx, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'",
				"stuck-lock-"+string(b.Tenant)).Scan(&waiting); err != nil {
				t.Fatal(err)
			}
			most = max(most, waiting)
		}
	}
	for range 30 {
		if err := <-failed; !errors.Is(err, db.ErrContention) || errors.Is(err, db.ErrUnavailable) {
			t.Errorf("a change of a stuck object: %v", err)
		}
	}
	if written == 0 || most > 3 {
		t.Errorf("%d changes of others; %d connections waited at once", written, most)
	}
	if _, err := holder.Exec(b.ctx, "SELECT pg_advisory_unlock_all()"); err != nil {
		t.Fatal(err)
	}
	for _, id := range stuck {
		if err := touch(id); err != nil {
			t.Error(err)
		}
		if snap, err := toys.View(b.ctx, id); err != nil || snap.State.GetName() != "++" {
			t.Errorf("%v, %v", snap.State, err)
		}
	}
}
