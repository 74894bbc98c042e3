package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/db"
	"holdfast/identity"
	"holdfast/jobs"
	"holdfast/object"
)

// sweepConfig says how the database is kept small.
type sweepConfig struct {
	JournalRetention time.Duration `help:"How long events are kept, and request ids with them; at least 24h." env:"HOLDFAST_JOURNAL_RETENTION" default:"720h" placeholder:"DURATION"`
	SweepRate        int           `help:"How many expired objects are deleted a second, at most." env:"HOLDFAST_SWEEP_RATE" default:"500" placeholder:"N"`
	HibernateAfter   time.Duration `help:"Put objects to sleep that nobody has touched for so long, and that are kept for as long again: they take a fraction of the room until someone reads or changes them. 0: never." env:"HOLDFAST_HIBERNATE_AFTER" default:"24h" placeholder:"DURATION"`
}

func (c sweepConfig) checkSweep() error {
	switch {
	case c.JournalRetention < db.MinJournalRetention:
		return wrongUsage("--journal-retention is %v; it is at least %v", c.JournalRetention, db.MinJournalRetention)
	case c.SweepRate < 1:
		return wrongUsage("--sweep-rate is %d; it is at least 1", c.SweepRate)
	case c.HibernateAfter < 0:
		return wrongUsage("--hibernate-after is %v; it is a duration, or 0 for never", c.HibernateAfter)
	}
	return nil
}

func (c sweepConfig) db(rt *object.Runtime) db.SweepConfig {
	return db.SweepConfig{PerSecond: c.SweepRate, JournalRetention: c.JournalRetention, BriefKinds: rt.BriefJournals()}
}

const (
	sweepEvery = 5 * time.Minute
	trimEvery  = 24 * time.Hour

	hibernateEvery = 24 * time.Hour
	recountEvery   = 24 * time.Hour
)

// recount corrects the totals that quotas go by, of all tenants.
func recount(ctx context.Context, d *db.DB) error {
	return eachTenant(ctx, d, d.RecountUsage)
}

// hibernate puts to sleep what rests, of all tenants.
func (c sweepConfig) hibernate(ctx context.Context, d *db.DB, rt *object.Runtime) (total object.Hibernated, err error) {
	err = eachTenant(ctx, d, func(ctx context.Context, _ identity.Tenant) error {
		h, err := rt.Hibernate(ctx, object.HibernateConfig{Idle: c.HibernateAfter})
		total.Add(h)
		return err
	})
	return total, err
}

// eachTenant does something as the service of each tenant, and goes on with the others if it fails for one.
func eachTenant(ctx context.Context, d *db.DB, do func(context.Context, identity.Tenant) error) error {
	tenants, err := d.StoredTenants(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tenants {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := do(identity.With(ctx, identity.Identity{Tenant: t, Service: true}), t); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t, err))
		}
	}
	return errors.Join(errs...)
}

// addJobs tells the queue how the database is cleaned.
func (c sweepConfig) addJobs(q *jobs.Queue, d *db.DB, rt *object.Runtime, metrics prometheus.Registerer) {
	rows := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_swept_rows_total", Help: "Rows that were deleted because they had expired, by table.",
	}, []string{"table"})
	last := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "holdfast_sweep_last_success_timestamp_seconds", Help: "When this server last came to the end of a sweep, by task; 0 until it has.",
	}, []string{"task"})
	metrics.MustRegister(rows, last)
	sweep := func(ctx context.Context) error {
		swept, err := d.Sweep(ctx, c.db(rt))
		rows.WithLabelValues("objects").Add(float64(swept.Objects))
		rows.WithLabelValues("terms").Add(float64(swept.Terms))
		rows.WithLabelValues("entries").Add(float64(swept.Entries))
		rows.WithLabelValues("events").Add(float64(swept.Events))
		rows.WithLabelValues("timers").Add(float64(swept.Timers))
		return err
	}
	trim := func(ctx context.Context) error {
		events, err := d.TrimJournal(ctx, c.db(rt))
		rows.WithLabelValues("events").Add(float64(events))
		return err
	}
	hibernate := func(ctx context.Context) error {
		_, err := c.hibernate(ctx, d, rt)
		return err
	}
	for _, j := range []struct {
		name           string
		every, timeout time.Duration
		run            func(context.Context) error
	}{
		{"sweep", sweepEvery, 30 * time.Minute, sweep},
		{"trim_journal", trimEvery, 30 * time.Minute, trim},
		{"hibernate", hibernateEvery, 4 * time.Hour, hibernate},
		{"recount_usage", recountEvery, 12 * time.Hour, func(ctx context.Context) error { return recount(ctx, d) }},
	} {
		if j.name == "hibernate" && c.HibernateAfter == 0 {
			continue
		}
		last.WithLabelValues(j.name) // 0: not yet
		q.Add(jobs.Job{Name: j.name, Every: j.every, Timeout: j.timeout, Run: func(ctx context.Context, _ jobs.Task) error {
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

// Run sweeps, trims, puts to sleep and recounts once. Servers do so by themselves; this is for who would rather have a scheduler do it.
func (c *sweepCmd) Run(ctx context.Context, w *console) (err error) {
	if err := c.checkSweep(); err != nil {
		return err
	}
	d, err := c.open(ctx, operatorConns)
	if err != nil {
		return err
	}
	defer d.Close()
	rt := object.NewRuntime(d, object.Config{})
	defer func() { err = errors.Join(err, rt.Close(context.WithoutCancel(ctx))) }()
	registerKinds(rt)
	swept, err := d.Sweep(ctx, c.sweepConfig.db(rt))
	trimmed := int64(0)
	if err == nil {
		trimmed, err = d.TrimJournal(ctx, c.sweepConfig.db(rt))
	}
	var slept object.Hibernated
	if err == nil && c.HibernateAfter > 0 {
		slept, err = c.hibernate(ctx, d, rt)
	}
	if err == nil {
		err = recount(ctx, d)
	}
	_, printed := fmt.Fprintf(w.stdout, "deleted %d expired objects with %d terms, %d entries, %d events and %d timers, and %d events older than %v; put %d objects to sleep, %d bytes to %d\n",
		swept.Objects, swept.Terms, swept.Entries, swept.Events, swept.Timers, trimmed, c.JournalRetention, slept.Objects, slept.BytesBefore, slept.BytesAfter)
	return errors.Join(err, printed)
}
