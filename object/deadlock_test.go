package object_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/db"
	"holdfast/object"
)

// deadlocking is a batch of three objects and sessions outside that can take their locks in the opposite order. Postgres ends a
// deadlock by failing the transaction that finds it, which is the batch's: the sessions outside do not look.
type deadlocking struct {
	*testBundle

	toys    *object.Kind[toy]
	rt      *object.Runtime
	ids     []object.ID // in the order in which the runtime locks them
	blocked []object.ID // two more, with which the tenant's lane is full
}

func setupDeadlock(t *testing.T) *deadlocking {
	t.Helper()
	b := setup(t)
	rt := newRuntime(t, b.DB, object.Config{})
	d := &deadlocking{testBundle: b, rt: rt, toys: toyKind(rt), ids: []object.ID{"a", "b", "c"}, blocked: []object.ID{"x", "y"}}
	slices.SortFunc(d.ids, func(x, y object.ID) int { return cmp.Compare(d.lock(x), d.lock(y)) })
	for _, id := range slices.Concat(d.ids, d.blocked) {
		if err := d.touch(id); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func (d *deadlocking) lock(id object.ID) int64 { return object.LockKey(d.Tenant, "toy", id) }

func (d *deadlocking) touch(id object.ID) error {
	_, err := d.toys.Update(d.ctx, id, func(tx *object.Tx[toy]) error { tx.State().Name += "+"; return nil }, object.Upsert())
	return err
}

// session is one outside that never looks for deadlocks.
func (d *deadlocking) session(t *testing.T) *pgx.Conn {
	t.Helper()
	conn := d.owner(t)
	if _, err := conn.Exec(d.ctx, "SET deadlock_timeout = '10min'"); err != nil {
		t.Fatal(err)
	}
	return conn
}

func (d *deadlocking) exec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(d.ctx, sql, args...); err != nil {
		t.Fatal(err)
	}
}

// waits waits until so many wait for an object's lock.
func (d *deadlocking) waits(t *testing.T, watch *pgx.Conn, id object.ID, n int) {
	t.Helper()
	await(t, fmt.Sprint(n, " to wait for ", id), func() bool {
		var waiting int
		if err := watch.QueryRow(d.ctx, `SELECT count(*) FROM pg_locks
			WHERE locktype = 'advisory' AND NOT granted AND (classid::bigint << 32 | objid::bigint) = $1`, d.lock(id)).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		return waiting == n
	})
}

// batch changes the three objects in one transaction, and returns how each went once they are done.
func (d *deadlocking) batch(t *testing.T) (outcome func() map[object.ID]error) {
	t.Helper()
	fill := d.owner(t)
	lane := make(chan error, len(d.blocked))
	for i, id := range d.blocked {
		d.exec(t, fill, "SELECT pg_advisory_lock($1)", d.lock(id))
		go func() { lane <- d.touch(id) }()
		await(t, "the lane to fill", func() bool { return d.rt.Running() == i+1 && d.rt.Waiting() == 0 })
	}
	type result struct {
		id  object.ID
		err error
	}
	results := make(chan result, len(d.ids))
	for _, id := range d.ids {
		go func() { results <- result{id, d.touch(id)} }()
	}
	await(t, "the batch to gather", func() bool { return d.rt.Waiting() == len(d.ids) })
	d.exec(t, fill, "SELECT pg_advisory_unlock_all()")
	for range d.blocked {
		if err := <-lane; err != nil {
			t.Fatal(err)
		}
	}
	return func() map[object.ID]error {
		errs := map[object.ID]error{}
		for range d.ids {
			r := <-results
			errs[r.id] = r.err
		}
		return errs
	}
}

func (d *deadlocking) deadlocks(t *testing.T, watch *pgx.Conn) (n int) {
	t.Helper()
	if err := watch.QueryRow(d.ctx, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// A batch that Postgres fails to end a deadlock is tried again: all its callers get their answer, and nothing happens twice.
func TestABatchOutlivesADeadlock(t *testing.T) {
	t.Parallel()
	d := setupDeadlock(t)
	outside, gate, watch := d.session(t), d.session(t), d.owner(t)
	first, middle, last := d.ids[0], d.ids[1], d.ids[2]
	before := d.deadlocks(t, watch)

	d.exec(t, outside, "SELECT pg_advisory_lock($1)", d.lock(last))
	d.exec(t, gate, "SELECT pg_advisory_lock($1)", d.lock(middle))
	outcome := d.batch(t)
	d.waits(t, watch, middle, 1) // it has the first
	got := make(chan error)
	go func() {
		_, err := outside.Exec(d.ctx, "SELECT pg_advisory_lock($1)", d.lock(first))
		got <- err
	}()
	d.waits(t, watch, first, 1)
	d.exec(t, gate, "SELECT pg_advisory_unlock_all()") // now it waits for the last, whose holder waits for the first
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	d.exec(t, outside, "SELECT pg_advisory_unlock_all()")
	for id, err := range outcome() {
		if err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	for _, id := range d.ids {
		snap, err := d.toys.View(d.ctx, id)
		if err != nil || snap.State.GetName() != "++" || snap.Version != 2 {
			t.Errorf("%s is %v at version %d, %v", id, snap.State, snap.Version, err)
		}
	}
	await(t, "Postgres to count the deadlock", func() bool { return d.deadlocks(t, watch) > before })
}

// One object of a batch that meets a deadlock each time fails alone, as contended. The others are changed, once.
func TestOnlyTheMemberThatDeadlocksAgainFails(t *testing.T) {
	t.Parallel()
	d := setupDeadlock(t)
	outside, watch := d.session(t), d.owner(t)
	bad := d.ids[0]
	before := d.deadlocks(t, watch)
	// It has the object's row all the time, and takes the lock again whenever the runtime has let go of it.
	d.exec(t, outside, "BEGIN")
	d.exec(t, outside, "SELECT FROM holdfast.objects WHERE tenant_id = $1 AND kind = 'toy' AND object_id = $2 FOR UPDATE", string(d.Tenant), string(bad))
	ctx, cancel := context.WithCancel(d.ctx)
	over := make(chan struct{})
	outcome := d.batch(t)
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			if _, err := outside.Exec(d.ctx, "SELECT pg_advisory_lock($1), pg_advisory_unlock($1), pg_sleep(0.005)", d.lock(bad)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for id, err := range outcome() {
		if id == bad != errors.Is(err, db.ErrContention) || id != bad && err != nil {
			t.Errorf("%s, where %s deadlocks: %v", id, bad, err)
		}
	}
	cancel()
	<-over
	d.exec(t, outside, "ROLLBACK")
	if err := d.touch(bad); err != nil {
		t.Error(err)
	}
	for _, id := range d.ids {
		snap, err := d.toys.View(d.ctx, id)
		if err != nil || snap.State.GetName() != "++" || snap.Version != 2 {
			t.Errorf("%s is %v at version %d, %v", id, snap.State, snap.Version, err)
		}
	}
	await(t, "Postgres to count the deadlocks", func() bool { return d.deadlocks(t, watch) > before })
}
