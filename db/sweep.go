package db

import (
	"context"
	"math"
	"time"

	"golang.org/x/time/rate"

	"holdfast/gen/dbsqlc"
)

// SweepConfig says how the database is cleaned. The zero SweepConfig has the defaults.
type SweepConfig struct {
	// Batch is how many objects one transaction deletes. 0: 20. A smaller one holds up writers less.
	Batch int
	// PerSecond is how many objects are deleted, and events trimmed in hundreds, in a second. 0: 500.
	PerSecond int
	// JournalRetention is how long events are kept, and request ids with them: at least MinJournalRetention.
	// 0: DefaultJournalRetention.
	JournalRetention time.Duration
	// BriefKinds keep their events for MinJournalRetention.
	BriefKinds []string
}

// How long events are kept.
const (
	DefaultJournalRetention = 30 * 24 * time.Hour
	MinJournalRetention     = 24 * time.Hour
)

// Swept is how many rows of each table are gone.
type Swept struct{ Objects, Terms, Entries, Events, Timers int64 }

func (c *SweepConfig) defaults() {
	if c.Batch <= 0 {
		c.Batch = 20
	}
	if c.PerSecond <= 0 {
		c.PerSecond = 500
	}
	if c.JournalRetention == 0 {
		c.JournalRetention = DefaultJournalRetention
	}
	c.JournalRetention = max(c.JournalRetention, MinJournalRetention)
}

// Sweep deletes the objects that have expired, with all their rows: a batch in one transaction, batches at a steady rate.
// Until then they only take up room. It may be ended at any time, run again, and run beside another. It returns what it
// deleted, also with an error.
func (d *DB) Sweep(ctx context.Context, c SweepConfig) (Swept, error) {
	c.defaults()
	var total Swept
	pace := newPace(c.PerSecond, c.Batch)
	after := time.Unix(0, 0)
	for {
		var r dbsqlc.SweepExpiredRow
		p := d.newSweep()
		query(p, dbsqlc.SweepExpired, dbsqlc.SweepExpiredParams{After: after, BatchSize: count(c.Batch)}, func(row *dbsqlc.SweepExpiredRow) error {
			r = *row
			return nil
		})
		if err := d.RunAndCommit(ctx, p); err != nil {
			return total, err
		}
		total.Objects += r.Objects
		total.Terms += r.Terms
		total.Entries += r.Entries
		total.Events += r.Events
		total.Timers += r.Timers
		after = r.LastTime
		if r.Objects < int64(c.Batch) {
			return total, nil
		}
		if err := pace.wait(ctx, c.Batch); err != nil {
			return total, err
		}
	}
}

// TrimJournal deletes the events that are older than the retention. Like Sweep it may be ended, run again, and run beside
// another. It returns how many events it deleted, also with an error.
func (d *DB) TrimJournal(ctx context.Context, c SweepConfig) (int64, error) {
	c.defaults()
	const objects, events = 1000, 1000
	var total int64
	pace := newPace(c.PerSecond, events/100)
	params := dbsqlc.TrimJournalParams{RetentionSeconds: c.JournalRetention.Seconds(), BriefKinds: c.BriefKinds, MaxObjects: objects, MaxEvents: events}
	for {
		var r dbsqlc.TrimJournalRow
		p := d.newSweep()
		query(p, dbsqlc.TrimJournal, params, func(row *dbsqlc.TrimJournalRow) error {
			r = *row
			return nil
		})
		if err := d.RunAndCommit(ctx, p); err != nil {
			return total, err
		}
		total += r.Events
		if r.Done {
			return total, nil
		}
		params.AfterTenantID, params.AfterKind, params.AfterObjectID = r.AtTenantID, r.AtKind, r.AtObjectID
		if err := pace.wait(ctx, int(r.Events/100)); err != nil {
			return total, err
		}
	}
}

func (d *DB) newSweep() *Pipeline {
	p := d.NewJanitor()
	p.batch.Queue(dbsqlc.SweepGently)
	return p
}

func count(n int) int32 { return int32(min(n, math.MaxInt32)) } //nolint:gosec // bounded

// pace spreads work evenly over time.
type pace struct{ *rate.Limiter }

func newPace(perSecond, burst int) pace {
	return pace{rate.NewLimiter(rate.Limit(perSecond), max(burst, 1))}
}

// wait waits until n more may be done. n is at most the burst.
func (p pace) wait(ctx context.Context, n int) error { return p.WaitN(ctx, min(n, p.Burst())) }
