package db_test

import (
	"sync"
	"testing"
	"time"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
)

// An answer that has waited, for a lock or on the way, is old: it must not set the clock back.
func TestClockBelievesNoOldAnswer(t *testing.T) {
	t.Parallel()
	c := db.NewClock(0)
	asked := time.Now()
	before := c.Now()
	c.Sample(asked.Add(-10*time.Second), asked.Add(-5*time.Second)) // between asking and now: says nothing new
	const passes = 5 * time.Millisecond
	<-time.After(passes) // a clock shows only in time whether it runs
	if moved := c.Now().Sub(before); moved < passes || moved > time.Second {
		t.Errorf("%v after an old answer the clock has moved by %v", passes, moved)
	}
}

func TestClockFollowsTheDatabase(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name            string
		ahead, database time.Duration // of this machine's clock: the estimate at first, and the database
	}{
		{"the database is ahead", 0, time.Hour},
		{"far ahead", 0, 1000 * time.Hour},
		{"they agree", time.Minute, time.Minute},
	} {
		clock := db.NewClock(c.ahead)
		asked := time.Now()
		clock.Sample(asked, asked.Add(c.database))
		if off := clock.Now().Sub(time.Now().Add(c.database)); off.Abs() > time.Second {
			t.Errorf("%s: the clock is %v off", c.name, off)
		}
	}

	// Where the estimate was a little ahead it stands still, and goes on from the database's time.
	clock := db.NewClock(time.Second)
	before := clock.Now()
	clock.Sample(time.Now(), time.Now())
	for range 3 {
		if now := clock.Now(); !now.Equal(before) {
			t.Errorf("the clock went from %v to %v", before, now)
		}
	}
	clock.Sample(time.Now(), time.Now().Add(2*time.Hour))
	if off := clock.Now().Sub(time.Now().Add(2 * time.Hour)); off.Abs() > time.Second {
		t.Errorf("the clock is %v off", off)
	}
}

// A clock that was set by hours is followed back, too: standing still for so long, nothing would become due.
func TestClockGoesBackByHours(t *testing.T) {
	t.Parallel()
	clock := db.NewClock(5 * time.Hour)
	clock.Now()
	for _, database := range []time.Duration{0, -3 * time.Hour, 3 * time.Hour, 0} {
		clock.Sample(time.Now(), time.Now().Add(database))
		if off := clock.Now().Sub(time.Now().Add(database)); off.Abs() > time.Second {
			t.Errorf("where the database is at %v the clock is %v off", database, off)
		}
	}
}

// Whatever the database answers, and to how many at once, nobody sees the clock run backwards.
func TestClockNeverRunsBackwards(t *testing.T) {
	t.Parallel()
	c := db.NewClock(0)
	var readers sync.WaitGroup
	for i := range 4 {
		readers.Go(func() {
			last := c.Now()
			for j := range 2000 {
				if i == 0 {
					wild := time.Duration(j%7-3) * 100 * time.Millisecond
					c.Sample(time.Now(), time.Now().Add(wild))
				}
				now := c.Now()
				if now.Before(last) {
					t.Errorf("from %v to %v", last, now)
					return
				}
				if now.Nanosecond()%1000 != 0 {
					t.Errorf("%v is not in whole microseconds", now)
					return
				}
				last = now
			}
		})
	}
	readers.Wait()
}

// A statement that waits for a lock comes back with an old answer of the clock.
func TestClockAfterALock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d, err := db.Open(b.ctx, db.Config{URL: b.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b.exec(t, "SELECT pg_advisory_lock(41)")
	done := make(chan error, 1)
	go func() {
		p := d.NewPipeline(db.Scope{Tenant: b.Tenant})
		p.LockObjects([]int64{41}, func(time.Time) {})
		done <- d.Run(b.ctx, p)
	}()
	b.waitForLocks(t, 41, 1)
	b.exec(t, "SELECT pg_sleep(0.2)") // so that the answer is older than any round trip
	before := d.Now()
	b.exec(t, "SELECT pg_advisory_unlock(41)")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if now := d.Now(); now.Before(before) {
		t.Errorf("the clock ran from %v back to %v", before, now)
	}
	if off := d.Now().Sub(b.clock(t)); off.Abs() > 200*time.Millisecond {
		t.Errorf("the clock is %v off", off)
	}
}

func (b *testBundle) clock(t *testing.T) time.Time {
	t.Helper()
	var now time.Time
	if err := b.super.QueryRow(b.ctx, "SELECT clock_timestamp()").Scan(&now); err != nil {
		t.Fatal(err)
	}
	return now
}

// Times that Postgres answers are in UTC, alone and in arrays, whatever the zone of the machine.
func TestTimesOfTheDatabaseAreInUTC(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.DB.NewTransaction(db.Scope{Tenant: b.Tenant})
	p.LockObjects([]int64{1}, func(at time.Time) {
		if at.Location() != time.UTC {
			t.Errorf("the clock is %v", at)
		}
	})
	tx, err := b.DB.Begin(b.ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	tx.Rollback(b.ctx)
	b.seed(t, b.Tenant, "x", "")
	p = b.DB.NewPipeline(db.Scope{Tenant: b.Tenant, Service: true})
	p.ListByID(dbsqlc.ListByIDParams{TenantID: string(b.Tenant), Kind: "conversation", AnyOwner: true, PageSize: 1}, func(r *dbsqlc.ListByIDRow) error {
		if r.CreateTime.Location() != time.UTC || r.ExpireTime.Location() != time.UTC {
			t.Errorf("a row has %v", r)
		}
		return nil
	})
	if err := b.DB.Run(b.ctx, p); err != nil {
		t.Fatal(err)
	}
}
