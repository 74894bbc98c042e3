package object_test

import (
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db"
	"holdfast/object"
)

// setupClock is a process whose estimate of the database's time a test may set.
func setupClock(t *testing.T, c object.Config) (*testBundle, *db.DB, *object.Kind[toy], *atomic.Int64) {
	t.Helper()
	b := setup(t)
	off := &atomic.Int64{}
	d, err := db.Open(b.ctx, db.Config{URL: b.URL, MaxConns: 4, Now: func() time.Time { return time.Now().Add(time.Duration(off.Load())) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return b, d, toyKind(newRuntime(t, d, c)), off
}

// A process that takes the time for another than it is by more than an object lives neither ends the object nor stores that time.
func TestChangeByAWrongClock(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]time.Duration{"ahead": 1000 * time.Hour, "behind": -1000 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, _, k, off := setupClock(t, object.Config{})
			began := time.Now()
			_, err := k.Update(b.ctx, "a", func(tx *object.Tx[toy]) error {
				tx.State().Name = "first"
				tx.Put(toyEntries, "n1", &typepb.EnumValue{Name: "x"})
				return nil
			}, object.Create())
			if err != nil {
				t.Fatal(err)
			}
			off.Store(int64(wrong))
			var name string
			s, err := k.Update(b.ctx, "a", func(tx *object.Tx[toy]) error {
				name, tx.State().Name = tx.State().GetName(), "second"
				return nil
			}, object.Upsert())
			if err != nil || s.Version != 2 || name != "first" {
				t.Errorf("version %d of %q, %v", s.Version, name, err)
			}
			if s.UpdateTime.Sub(began).Abs() > time.Minute {
				t.Errorf("it was changed at %v, and it is %v", s.UpdateTime, began)
			}
			page, err := k.Entries(b.ctx, "a", toyEntries, object.EntriesOptions{})
			if err != nil || len(page.Entries) != 1 {
				t.Errorf("entries %v, %v", page.Entries, err)
			}
			// And so it goes on, with the estimate corrected.
			if s, err = k.Update(b.ctx, "a", naming("third")); err != nil || s.Version != 3 || s.UpdateTime.Sub(began).Abs() > time.Minute {
				t.Errorf("version %d, changed at %v, %v", s.Version, s.UpdateTime, err)
			}
		})
	}
}

// An object whose last change is far ahead, because the database's clock was set back since, takes part in time again.
func TestObjectFromTheFuture(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.update(t, "a", naming("first"), object.Create())
	b.exec(t, "UPDATE holdfast.objects SET update_time = update_time + interval '3 h' WHERE tenant_id = $1", string(b.Tenant))
	k := toyKind(newRuntime(t, b.DB, object.Config{}))
	for range 3 {
		if s, err := k.Update(b.ctx, "a", naming("x")); err != nil || time.Until(s.UpdateTime) > time.Minute {
			t.Errorf("it is changed at %v, %v", s.UpdateTime, err)
		}
	}
}

// Timers run also where the process took the time for later than it is when it planned to look for them.
func TestTimersAfterAWrongClock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var off atomic.Int64
	d, err := db.Open(b.ctx, db.Config{URL: b.URL, MaxConns: 4, Now: func() time.Time { return time.Now().Add(time.Duration(off.Load())) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	c := b.timedConfig(func(tx *object.Tx[toy], name string) error {
		tx.State().Name = name
		return nil
	})
	object.Register(newRuntime(t, d, object.Config{Timers: true, TimerPoll: 5 * time.Millisecond}), c)
	setting := object.Register(b.rt, c)
	for _, wrong := range []time.Duration{30 * time.Hour, 90 * time.Hour, -30 * time.Hour, 0} {
		off.Store(int64(wrong))
		await(t, "the database's time again", func() bool { return time.Until(d.Now()).Abs() < time.Minute })
		// One that another process sets is found by looking only.
		if _, err := setting.Update(b.ctx, object.ID(wrong.String()), func(tx *object.Tx[toy]) error {
			tx.SetTimer("rang", tx.Now())
			return nil
		}, object.Create()); err != nil {
			t.Fatal(err)
		}
		await(t, "the timer set where the clock was off by "+wrong.String(), func() bool {
			s, err := setting.View(b.ctx, object.ID(wrong.String()))
			return err == nil && s.State.GetName() == "rang"
		})
	}
}
