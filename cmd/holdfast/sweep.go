package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/db"
	"holdfast/jobs"
)

// sweepConfig says how the database is cleaned.
type sweepConfig struct {
	JournalRetention time.Duration `help:"How long events are kept, and request ids with them; at least 24h." env:"HOLDFAST_JOURNAL_RETENTION" default:"720h" placeholder:"DURATION"`
	SweepRate        int           `help:"How many expired objects are deleted a second, at most." env:"HOLDFAST_SWEEP_RATE" default:"500" placeholder:"N"`
}

func (c sweepConfig) checkSweep() error {
	switch {
	case c.JournalRetention < db.MinJournalRetention:
		return wrongUsage("--journal-retention is %v; it is at least %v", c.JournalRetention, db.MinJournalRetention)
	case c.SweepRate < 1:
		return wrongUsage("--sweep-rate is %d; it is at least 1", c.SweepRate)
	}
	return nil
}

func (c sweepConfig) db() db.SweepConfig {
	return db.SweepConfig{PerSecond: c.SweepRate, JournalRetention: c.JournalRetention}
}

const (
	sweepEvery = 5 * time.Minute
	trimEvery  = 24 * time.Hour
)

// addJobs tells the queue how the database is cleaned.
func (c sweepConfig) addJobs(q *jobs.Queue, d *db.DB, metrics prometheus.Registerer) {
	rows := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_swept_rows_total", Help: "Rows that were deleted because they had expired, by table.",
	}, []string{"table"})
	last := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "holdfast_sweep_last_success_timestamp_seconds", Help: "When this server last came to the end of a sweep, by job.",
	}, []string{"job"})
	metrics.MustRegister(rows, last)
	sweep := func(ctx context.Context) error {
		swept, err := d.Sweep(ctx, c.db())
		rows.WithLabelValues("objects").Add(float64(swept.Objects))
		rows.WithLabelValues("terms").Add(float64(swept.Terms))
		rows.WithLabelValues("entries").Add(float64(swept.Entries))
		rows.WithLabelValues("events").Add(float64(swept.Events))
		rows.WithLabelValues("timers").Add(float64(swept.Timers))
		return err
	}
	trim := func(ctx context.Context) error {
		events, err := d.TrimJournal(ctx, c.db())
		rows.WithLabelValues("events").Add(float64(events))
		return err
	}
	for _, j := range []struct {
		name  string
		every time.Duration
		run   func(context.Context) error
	}{{"sweep", sweepEvery, sweep}, {"trim_journal", trimEvery, trim}} {
		q.Add(jobs.Job{Name: j.name, Every: j.every, Timeout: 30 * time.Minute, Run: func(ctx context.Context, _ jobs.Task) error {
			err := j.run(ctx)
			if err == nil {
				last.WithLabelValues(j.name).SetToCurrentTime()
			}
			return err
		}})
	}
}

// sweepCmd is `holdfast sweep`.
type sweepCmd struct {
	databaseConfig
	sweepConfig
}

// Run sweeps once. Servers do so by themselves; this is for who would rather have a scheduler do it.
func (c *sweepCmd) Run(ctx context.Context, w *console) error {
	if err := c.checkSweep(); err != nil {
		return err
	}
	d, err := c.open(ctx, operatorConns)
	if err != nil {
		return err
	}
	defer d.Close()
	swept, err := d.Sweep(ctx, c.sweepConfig.db())
	trimmed := int64(0)
	if err == nil {
		trimmed, err = d.TrimJournal(ctx, c.sweepConfig.db())
	}
	_, printed := fmt.Fprintf(w.stdout, "deleted %d expired objects with %d terms, %d entries, %d events and %d timers, and %d events older than %v\n",
		swept.Objects, swept.Terms, swept.Entries, swept.Events, swept.Timers, trimmed, c.JournalRetention)
	return errors.Join(err, printed)
}
