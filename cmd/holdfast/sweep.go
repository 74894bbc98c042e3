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

// sweepConfig says how the database is cleaned and packed.
type sweepConfig struct {
	JournalRetention time.Duration `help:"How long events are kept, and request ids with them; at least 24h." env:"HOLDFAST_JOURNAL_RETENTION" default:"720h" placeholder:"DURATION"`
	SweepRate        int           `help:"How many expired objects are deleted a second, at most." env:"HOLDFAST_SWEEP_RATE" default:"500" placeholder:"N"`
	PackAfter        time.Duration `help:"Pack the old messages of conversations that have not changed for so long, and are kept for as long again. 0: never." env:"HOLDFAST_PACK_AFTER" default:"24h" placeholder:"DURATION"`
}

func (c sweepConfig) checkSweep() error {
	switch {
	case c.JournalRetention < db.MinJournalRetention:
		return wrongUsage("--journal-retention is %v; it is at least %v", c.JournalRetention, db.MinJournalRetention)
	case c.SweepRate < 1:
		return wrongUsage("--sweep-rate is %d; it is at least 1", c.SweepRate)
	case c.PackAfter < 0:
		return wrongUsage("--pack-after is %v; it is a duration, or 0 for never", c.PackAfter)
	}
	return nil
}

func (c sweepConfig) db() db.SweepConfig {
	return db.SweepConfig{PerSecond: c.SweepRate, JournalRetention: c.JournalRetention}
}

const (
	sweepEvery = 5 * time.Minute
	trimEvery  = 24 * time.Hour
	packEvery  = 24 * time.Hour

	recountEvery = 24 * time.Hour
)

// recount corrects the totals that quotas go by, of all tenants.
func recount(ctx context.Context, d *db.DB) error {
	return eachTenant(ctx, d, nil, func(ctx context.Context) error {
		caller, err := identity.From(ctx)
		if err != nil {
			return err
		}
		return d.RecountUsage(ctx, caller.Tenant)
	})
}

// pack packs what is cold of some tenants, or of all where none is named. It goes on with the others where one fails.
func (c sweepConfig) pack(ctx context.Context, d *db.DB, rt *object.Runtime, tenants ...identity.Tenant) (total object.Packed, err error) {
	err = eachTenant(ctx, d, tenants, func(ctx context.Context) error {
		packed, err := rt.Pack(ctx, object.PackConfig{Idle: c.PackAfter})
		total.Add(packed)
		return err
	})
	return total, err
}

// eachTenant does something as the service of some tenants, or of all where none is named, and goes on where it fails.
func eachTenant(ctx context.Context, d *db.DB, tenants []identity.Tenant, do func(context.Context) error) error {
	if len(tenants) == 0 {
		var err error
		if tenants, err = d.StoredTenants(ctx); err != nil {
			return err
		}
	}
	var errs []error
	for _, t := range tenants {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := do(identity.With(ctx, identity.Identity{Tenant: t, Service: true})); err != nil {
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
	packed := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "holdfast_packed_entries_total", Help: "Entries that were packed, 256 of them in one row.",
	})
	packedBytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_packed_bytes_total", Help: "What the entries that were packed took on disk, without indexes, before and after.",
	}, []string{"when"})
	metrics.MustRegister(rows, last, packed, packedBytes)
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
	pack := func(ctx context.Context) error {
		p, err := c.pack(ctx, d, rt)
		packed.Add(float64(p.Entries))
		packedBytes.WithLabelValues("before").Add(float64(p.BytesBefore))
		packedBytes.WithLabelValues("after").Add(float64(p.BytesAfter))
		return err
	}
	for _, j := range []struct {
		name           string
		every, timeout time.Duration
		run            func(context.Context) error
	}{
		{"sweep", sweepEvery, 30 * time.Minute, sweep},
		{"trim_journal", trimEvery, 30 * time.Minute, trim},
		{"pack", packEvery, 4 * time.Hour, pack},
		{"recount_usage", recountEvery, 12 * time.Hour, func(ctx context.Context) error { return recount(ctx, d) }},
	} {
		if j.name == "pack" && c.PackAfter == 0 {
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

// Run sweeps, packs and recounts once. Servers do so by themselves; this is for who would rather have a scheduler do it.
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
	var packed object.Packed
	if err == nil && c.PackAfter > 0 {
		packed, err = c.packOnce(ctx, d)
	}
	if err == nil {
		err = recount(ctx, d)
	}
	_, printed := fmt.Fprintf(w.stdout, "deleted %d expired objects with %d terms, %d entries, %d events and %d timers, and %d events older than %v; packed %d entries of %d objects, %d bytes to %d\n",
		swept.Objects, swept.Terms, swept.Entries, swept.Events, swept.Timers, trimmed, c.JournalRetention, packed.Entries, packed.Objects, packed.BytesBefore, packed.BytesAfter)
	return errors.Join(err, printed)
}

func (c *sweepCmd) packOnce(ctx context.Context, d *db.DB) (packed object.Packed, err error) {
	rt := object.NewRuntime(d, object.Config{})
	defer func() { err = errors.Join(err, rt.Close(context.WithoutCancel(ctx))) }()
	registerKinds(rt)
	return c.pack(ctx, d, rt)
}

// unpackCmd is `holdfast unpack`.
type unpackCmd struct {
	databaseConfig

	Tenant []string `help:"Only these tenants. Default: all." placeholder:"TENANT"`
}

// Run undoes all packing. Servers that run meanwhile should be told not to pack, with --pack-after=0.
func (c *unpackCmd) Run(ctx context.Context, w *console) (err error) {
	d, err := c.open(ctx, operatorConns)
	if err != nil {
		return err
	}
	defer d.Close()
	rt := object.NewRuntime(d, object.Config{})
	defer func() { err = errors.Join(err, rt.Close(context.WithoutCancel(ctx))) }()
	var tenants []identity.Tenant
	for _, t := range c.Tenant {
		tenants = append(tenants, identity.Tenant(t))
	}
	var packs int64
	err = eachTenant(ctx, d, tenants, func(ctx context.Context) error {
		n, err := rt.Unpack(ctx)
		packs += n
		return err
	})
	_, printed := fmt.Fprintf(w.stdout, "unpacked %d packs\n", packs)
	return errors.Join(err, printed)
}
