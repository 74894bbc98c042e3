package object_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/db/dbtest"
	"holdfast/identity"
	"holdfast/object"
)

// timedConfig is the toy kind with timers, under a name of the test's own: who runs timers runs those of all tenants.
func (b *testBundle) timedConfig(onTimer func(*object.Tx[toy], string) error) object.KindConfig[toy] {
	c := toyConfig()
	c.Name, c.OnTimer = "timed-"+string(b.Tenant), onTimer
	return c
}

// However many timers are due at once, a writer waits for few of them, and all of them run.
func TestManyTimersDoNotStarveWrites(t *testing.T) {
	t.Parallel()
	const objects, each = 2000, 5
	b := setupWith(t, dbtest.New(t), object.Config{Limits: object.Limits{PerUser: objects}})
	var fired atomic.Int64
	c := b.timedConfig(func(tx *object.Tx[toy], _ string) error {
		fired.Add(1)
		tx.State().Name = fmt.Sprint(tx.Version())
		return nil
	})
	idle := object.Register(b.rt, c)
	stored := make(chan error)
	for i := range objects {
		go func() {
			_, err := idle.Update(b.ctx, object.ID(fmt.Sprint("o", i)), func(tx *object.Tx[toy]) error {
				for j := range each {
					tx.SetTimer(fmt.Sprint(j), tx.Now())
				}
				return nil
			}, object.Create())
			stored <- err
		}()
	}
	for range objects {
		if err := <-stored; err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	k := object.Register(newRuntime(t, b.DB, object.Config{Timers: true}), c)
	var meanwhile []int64 // how many ran while one write waited
	var took []time.Duration
	for fired.Load() < objects*each {
		before, asked := fired.Load(), time.Now()
		if _, err := k.Update(b.ctx, "writer", naming("x"), object.Upsert()); err != nil {
			t.Fatal(err)
		}
		meanwhile, took = append(meanwhile, fired.Load()-before), append(took, time.Since(asked))
	}
	t.Logf("%d timers in %v; %d writes meanwhile, the slowest %v", objects*each, time.Since(began), len(took), slices.Max(took))
	if most := slices.Max(meanwhile); most > objects*each/5 {
		t.Errorf("%d timers ran while one write waited", most)
	}
	for left := 1; left > 0; {
		if err := b.owner(t).QueryRow(b.ctx, "SELECT count(*) FROM holdfast.timers WHERE tenant_id = $1", string(b.Tenant)).Scan(&left); err != nil {
			t.Fatal(err)
		}
	}
	var wrong int
	err := b.owner(t).QueryRow(b.ctx, "SELECT count(*) FROM holdfast.objects WHERE tenant_id = $1 AND object_id <> 'writer' AND version <> $2",
		string(b.Tenant), each+1).Scan(&wrong)
	if err != nil || wrong != 0 {
		t.Errorf("%d objects are at a wrong version, %v", wrong, err)
	}
}

// A tenant whose timers are due since long, by the thousands, does not keep another's waiting until they are worked off.
func TestTimersOfTenantsTakeTurns(t *testing.T) {
	t.Parallel()
	const objects, each, others = 500, 20, 20
	b := setupWith(t, dbtest.New(t), object.Config{})
	quiet := identity.With(b.ctx, identity.Identity{Tenant: b.Tenant + "-quiet", User: "alice"})
	var loud, waited atomic.Int64
	left := atomic.Int64{}
	left.Store(others)
	done := make(chan struct{})
	c := b.timedConfig(func(_ *object.Tx[toy], name string) error {
		if name != "quiet" {
			loud.Add(1)
		} else if left.Add(-1) == 0 {
			waited.Store(loud.Load())
			close(done)
		}
		return nil
	})
	set := func(ctx context.Context, id string, names ...string) {
		_, err := object.Register(b.rt, c).Update(ctx, object.ID(id), func(tx *object.Tx[toy]) error {
			for _, name := range names {
				tx.SetTimer(name, tx.Now())
			}
			return nil
		}, object.Create())
		if err != nil {
			t.Error(err)
		}
	}
	names := make([]string, each)
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	var setting sync.WaitGroup
	for i := range objects {
		setting.Go(func() { set(b.ctx, fmt.Sprint("o", i), names...) })
	}
	setting.Wait()
	for i := range others {
		set(quiet, fmt.Sprint("o", i), "quiet")
	}
	object.Register(newRuntime(t, b.DB, object.Config{Timers: true}), c)
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("after a minute %d of %d have run, and %d before them", others-left.Load(), others, loud.Load())
	}
	if n := waited.Load(); n > objects*each/4 {
		t.Errorf("%d of %d timers of one tenant ran before %d of another", n, objects*each, others)
	}
}

// A timer that is set here runs soon after its time.
func BenchmarkTimer(b *testing.B) {
	tb := setup(b)
	late := make(chan time.Duration, 1)
	k := object.Register(newRuntime(b, tb.DB, object.Config{Timers: true}), tb.timedConfig(func(tx *object.Tx[toy], _ string) error {
		select {
		case late <- tx.Now().Sub(mustParse(tx.State().GetName())):
		default:
		}
		return nil
	}))
	var sum time.Duration
	for i := range b.N {
		_, err := k.Update(tb.ctx, object.ID(fmt.Sprint("o", i)), func(tx *object.Tx[toy]) error {
			at := tx.Now().Add(20 * time.Millisecond)
			tx.State().Name = at.Format(time.RFC3339Nano)
			tx.SetTimer("t", at)
			return nil
		}, object.Create())
		if err != nil {
			b.Fatal(err)
		}
		sum += <-late
	}
	b.ReportMetric(float64(sum.Microseconds())/float64(b.N), "µs-late")
}

func mustParse(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

// However a process came to know an object, its changes keep the timers.
func TestTimersOutliveEveryRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.timedConfig(func(*object.Tx[toy], string) error { return nil })
	setter := object.Register(b.rt, c)
	for name, read := range map[string]func(*object.Runtime, *object.Kind[toy], object.ID) error{
		"nothing": func(*object.Runtime, *object.Kind[toy], object.ID) error { return nil },
		"View": func(_ *object.Runtime, k *object.Kind[toy], id object.ID) error {
			_, err := k.View(b.ctx, id)
			return err
		},
		"List": func(_ *object.Runtime, k *object.Kind[toy], id object.ID) error {
			_, err := k.List(b.ctx, object.ListOptions{Terms: []string{string(id)}})
			return err
		},
		"Find": func(_ *object.Runtime, k *object.Kind[toy], id object.ID) error {
			_, err := k.Find(b.ctx, object.FindOptions{Prefix: string(id)})
			return err
		},
		"ViewIn": func(rt *object.Runtime, k *object.Kind[toy], id object.ID) error {
			r := rt.Together()
			object.ViewIn(r, k, id)
			return r.Run(b.ctx)
		},
		"ListIn": func(rt *object.Runtime, k *object.Kind[toy], id object.ID) error {
			r := rt.Together()
			object.ListIn(r, k, object.ListOptions{Terms: []string{string(id)}}, 0)
			return r.Run(b.ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := object.ID("o-" + name)
			_, err := setter.Update(b.ctx, id, func(tx *object.Tx[toy]) error {
				tx.State().Oneofs = []string{string(id)}
				tx.SetTimer("kept", tx.Now().Add(time.Hour))
				return nil
			}, object.Create())
			if err != nil {
				t.Fatal(err)
			}
			rt := newRuntime(t, b.DB, object.Config{})
			k := object.Register(rt, c)
			if err := read(rt, k, id); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := k.Update(b.ctx, id, func(tx *object.Tx[toy]) error {
					if _, ok := tx.Timer("kept"); !ok {
						t.Error("a change does not see the timer")
					}
					tx.State().Name += "x"
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			var both bool
			err = b.owner(t).QueryRow(b.ctx, `SELECT o.timers ? t.name FROM holdfast.objects o JOIN holdfast.timers t USING (tenant_id, kind, object_id)
				WHERE tenant_id = $1 AND object_id = $2`, string(b.Tenant), string(id)).Scan(&both)
			if err != nil || !both {
				t.Errorf("the timer is in both places: %t, %v", both, err)
			}
		})
	}
}

// What waits although it should not is counted, of all tenants, and what waits in its time is not.
func TestOverdueAndParkedTimersAreCounted(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	b := setupWith(t, dbtest.Own(t), object.Config{})
	c := b.timedConfig(func(*object.Tx[toy], string) error { return nil })
	object.Register(newRuntime(t, b.DB, object.Config{Timers: true, Metrics: reg}), c)
	for _, timer := range []struct {
		tenant, name, due string
		parked            bool
	}{
		{"a", "overdue", "-1 h", false},
		{"b", "overdue", "-11 s", false},
		{"b", "due just now", "0 s", false},
		{"b", "to come", "1 h", false},
		{"c", "parked", "-1 h", true},
	} {
		// Leased, so that nobody runs it.
		b.exec(t, `INSERT INTO holdfast.timers (tenant_id, kind, object_id, name, owner_id, due_time, next_time, lease_time, parked)
			VALUES ($1, $2, 'o', $3, '', now(), now() + $4::interval, now() + interval '1 h', $5)`,
			timer.tenant, c.Name, timer.name, timer.due, timer.parked)
	}
	if overdue, parked := metric(t, reg, "holdfast_timers_overdue"), metric(t, reg, "holdfast_timers_parked"); overdue != 2 || parked != 1 {
		t.Errorf("%v are overdue, %v parked", overdue, parked)
	}
}

// Where no process runs timers by itself, RunDueTimers runs all that are due, of all objects, and leaves the others.
func TestDueTimersRunOnce(t *testing.T) {
	t.Parallel()
	const objects = 300 // more than run at once
	b := setup(t)
	var fired atomic.Int64
	k := object.Register(b.rt, b.timedConfig(func(tx *object.Tx[toy], name string) error {
		fired.Add(1)
		if name == "again" {
			tx.SetTimer("second", tx.Now())
		}
		return nil
	}))
	var setting sync.WaitGroup
	for i := range objects {
		setting.Go(func() {
			_, err := k.Update(b.ctx, object.ID(fmt.Sprint("o", i)), func(tx *object.Tx[toy]) error {
				tx.SetTimer("again", tx.Now())
				tx.SetTimer("later", tx.Now().Add(time.Hour))
				return nil
			}, object.Create())
			if err != nil {
				t.Error(err)
			}
		})
	}
	setting.Wait()
	if ran, err := b.rt.RunDueTimers(b.ctx); err != nil || ran != 2*objects || fired.Load() != 2*objects {
		t.Errorf("ran %d, %d fired: %v; want %d", ran, fired.Load(), err, 2*objects)
	}
	if ran, err := b.rt.RunDueTimers(b.ctx); err != nil || ran != 0 {
		t.Errorf("ran %d more: %v", ran, err)
	}
}
