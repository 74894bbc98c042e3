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

// A process that is frozen in the middle of a change, until Postgres ends its transaction, does the change again once it wakes.
func TestAFrozenProcessDoesItsChangesAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rt := newRuntime(t, b.open(t, "frozen"), object.Config{})
	toys := toyKind(rt)
	others := toyKind(newRuntime(t, b.open(t, "awake"), object.Config{}))
	change := func() {
		if _, err := others.Update(b.ctx, "frozen", func(tx *object.Tx[toy]) error { tx.State().Name += "-"; return nil }, object.Upsert()); err != nil {
			t.Error(err)
		}
	}
	change()
	watch := b.owner(t)
	open := func() (n int) {
		if err := watch.QueryRow(b.ctx, `SELECT count(*) FROM pg_stat_activity, pg_sleep(0.05)
			WHERE application_name = $1 AND state = 'idle in transaction'`, b.appName("frozen")).Scan(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	runs := 0
	_, err := toys.Update(b.ctx, "frozen", func(tx *object.Tx[toy]) error {
		switch runs++; runs {
		case 1: // without a transaction; what another process writes meanwhile makes it run again in one
			change()
		case 2:
			if open() != 1 {
				t.Error("the closure runs outside of a transaction; this test shows nothing")
			}
			for open() > 0 { // until Postgres has ended the transaction
			}
		}
		tx.State().Name += "+"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if snap, err := toys.View(b.ctx, "frozen"); err != nil || snap.State.GetName() != "--+" || runs != 3 {
		t.Errorf("%v, %v after %d runs", snap.State, err, runs)
	}
}
