package object_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db"
	"holdfast/db/dbtest"
	"holdfast/identity"
	"holdfast/object"
)

// One transaction is bounded in changes and in bytes, however much waits; what it leaves is next, in order.
func TestBatchBounds(t *testing.T) {
	t.Parallel()
	const maxBytes, maxChanges, writers, each, size = 64 << 10, 16, 40, 5, 8 << 10
	b := setupWith(t, dbtest.New(t), object.Config{Limits: object.Limits{BatchBytes: maxBytes, BatchChanges: maxChanges}})
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			id := object.ID([]string{"hot", "own" + fmt.Sprint(w)}[w%2])
			for i := range each {
				_, err := b.toys.Update(b.ctx, id, func(tx *object.Tx[toy]) error {
					tx.State().Name = fmt.Sprint(tx.Version())
					tx.Put(toyOther, fmt.Sprintf("%d-%d", w, i), &typepb.Field{Name: strings.Repeat("x", size)})
					return nil
				}, object.Upsert())
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	writing.Wait()
	var most struct{ bytes, changes, stored int }
	err := b.owner(t).QueryRow(b.ctx, `SELECT max(bytes), max(changes), sum(changes)::bigint FROM (
			SELECT sum(octet_length(body::text))::bigint AS bytes, count(*) AS changes FROM holdfast.entries
			WHERE tenant_id = $1 GROUP BY xmin::text) x`, string(b.Tenant)).Scan(&most.bytes, &most.changes, &most.stored)
	if err != nil {
		t.Fatal(err)
	}
	if most.stored != writers*each || most.changes > maxChanges || most.bytes > maxBytes+2*size {
		t.Errorf("%d changes are stored; one transaction had %d of them, another %d bytes", most.stored, most.changes, most.bytes)
	}
	if s, err := b.toys.View(b.ctx, "hot"); err != nil || s.Version != writers/2*each || s.State.GetName() != fmt.Sprint(s.Version-1) {
		t.Errorf("version %d, %q, %v", s.Version, s.State.GetName(), err)
	}
}

// A change that nobody waits for any more makes room at once, also where no batch can begin.
func TestWithdrawnChangesMakeRoom(t *testing.T) {
	t.Parallel()
	const room = 8
	b := setupWith(t, dbtest.New(t), object.Config{Limits: object.Limits{PerObject: room, PerTenant: room, PerServer: room}})
	b.update(t, "a", naming("1"), object.Create())
	tx, err := b.owner(t).Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(b.ctx)
	if _, err := tx.Exec(b.ctx, "SELECT pg_advisory_xact_lock($1)", object.LockKey(b.Tenant, "toy", "a")); err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	call := func(ctx context.Context, want error) {
		calls.Go(func() {
			if _, err := b.toys.Update(ctx, "a", naming("2")); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
	call(b.ctx, nil) // holds the object, and waits for the lock
	await(t, "the first batch", func() bool { return b.rt.Waiting() == 0 && b.rt.Running() == 1 })
	for range 3 {
		ctx, cancel := context.WithCancel(b.ctx)
		for range room {
			call(ctx, context.Canceled)
		}
		await(t, "a full mailbox", func() bool { return b.rt.Waiting() == room })
		var full *object.OverloadedError
		if _, err := b.toys.Update(b.ctx, "a", naming("3")); !errors.As(err, &full) || full.RetryAfter <= 0 {
			t.Errorf("a full mailbox takes one more: %v", err)
		}
		cancel()
		await(t, "room", func() bool { return b.rt.Waiting() == 0 })
	}
	call(b.ctx, nil)
	if err := tx.Rollback(b.ctx); err != nil {
		t.Fatal(err)
	}
	calls.Wait()
	if s, err := b.toys.View(b.ctx, "a"); err != nil || s.Version != 3 {
		t.Errorf("version %d, %v", s.Version, err)
	}
}

// One tenant cannot take all the streams.
func TestStreamsPerTenant(t *testing.T) {
	t.Parallel()
	b := setupWith(t, dbtest.New(t), object.Config{Limits: object.Limits{Watches: 10, WatchesPerTenant: 3}})
	b.update(t, "a", naming("1"), object.Create())
	for range 3 {
		reach(t, follow(t, b.ctx, b.toys, "a"), 1)
	}
	var full *object.OverloadedError
	for _, err := range b.toys.Watch(b.ctx, "a", 0, 0) {
		if !errors.As(err, &full) || full.What != "streams" {
			t.Errorf("a fourth stream: %v", err)
		}
	}
	// Another tenant's find room: this one gets as far as not being there.
	other := identity.With(b.ctx, identity.Identity{Tenant: "t-other", User: "alice"})
	for _, err := range b.toys.Watch(other, "a", 0, 0) {
		if !errors.Is(err, object.ErrNotFound) {
			t.Error(err)
		}
	}
}

// Who creates over another user's object is told that the id is taken, and nobody who shared the batch suffers.
func TestCreateOverAnothers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.update(t, "alices", naming("hers"), object.Create())
	bob := b.As(t, "bob")
	const n = 60
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			id, want := object.ID(fmt.Sprint("bobs", i)), error(nil)
			if i%10 == 0 {
				id, want = "alices", object.ErrExists
			}
			if _, err := b.toys.Update(bob, id, naming("his"), object.Create()); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", id, err, want)
			}
		})
	}
	calls.Wait()
	if s, err := b.toys.View(b.ctx, "alices"); err != nil || s.State.GetName() != "hers" || s.Version != 1 {
		t.Errorf("%q at version %d, %v", s.State.GetName(), s.Version, err)
	}
}

// BenchmarkFairness has ten tenants write at a steady rate, and then one of them a hundred times as much. It reports the
// other nine's p99, by itself and beside the greedy one, in ms.
func BenchmarkFairness(b *testing.B) {
	bundle := setup(b)
	const tenants, perSecond, greed, most = 10, 20, 100, 4096
	var kinds []context.Context
	for range tenants {
		other := dbtest.New(b)
		kinds = append(kinds, other.As(b, "alice"))
	}
	var refused, done atomic.Int64
	run := func(d time.Duration, rates []int) (p50, p99 time.Duration) {
		var mu sync.Mutex
		var took []time.Duration
		var sending sync.WaitGroup
		for i, rate := range rates {
			sending.Go(func() {
				inFlight := make(chan struct{}, most)
				wait := time.NewTimer(0)
				defer wait.Stop()
				begun := time.Now()
				for n := 0; ; n++ {
					due := begun.Add(time.Duration(n) * time.Second / time.Duration(rate))
					if due.Sub(begun) > d {
						return
					}
					wait.Reset(time.Until(due)) // an open loop sends when it is due
					select {
					case <-wait.C:
					case <-b.Context().Done():
						return
					}
					select {
					case inFlight <- struct{}{}:
					default:
						refused.Add(1)
						continue
					}
					sending.Go(func() {
						defer func() { <-inFlight }()
						_, err := bundle.toys.Update(kinds[i], object.ID(fmt.Sprint("o", n%50)), naming(fmt.Sprint(n)), object.Upsert())
						var full *object.OverloadedError
						switch {
						case errors.As(err, &full):
							refused.Add(1)
							return
						case err != nil && !errors.Is(err, db.ErrUnavailable):
							b.Error(err)
						}
						done.Add(1)
						if i > 0 {
							mu.Lock()
							took = append(took, time.Since(due))
							mu.Unlock()
						}
					})
				}
			})
		}
		sending.Wait()
		slices.Sort(took)
		return took[len(took)/2], took[len(took)*99/100]
	}
	rates := slices.Repeat([]int{perSecond}, tenants)
	run(time.Second, rates)
	for b.Loop() {
		p50, alone := run(5*time.Second, rates)
		greedy := slices.Clone(rates)
		greedy[0] *= greed
		refused.Store(0)
		done.Store(0)
		p50b, beside := run(5*time.Second, greedy)
		b.ReportMetric(float64(p50.Microseconds())/1000, "alone-p50-ms")
		b.ReportMetric(float64(alone.Microseconds())/1000, "alone-p99-ms")
		b.ReportMetric(float64(p50b.Microseconds())/1000, "beside-p50-ms")
		b.ReportMetric(float64(beside.Microseconds())/1000, "beside-p99-ms")
		b.ReportMetric(beside.Seconds()/alone.Seconds(), "p99-ratio")
		b.ReportMetric(float64(done.Load())/5, "done/s")
		b.ReportMetric(float64(refused.Load())/5, "refused/s")
	}
}
