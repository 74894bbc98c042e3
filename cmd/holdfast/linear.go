package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/coordclient"
	"holdfast/db"
	"holdfast/handlers/coordination"
	"holdfast/handlers/linear"
	"holdfast/identity"
	"holdfast/jobs"
	"holdfast/seal"
)

// linearConfig says how issues are read from Linear.
type linearConfig struct {
	Sync time.Duration `help:"How often Linear is asked what has changed, for each endpoint with an API key; 0: never, and nothing is sent to Linear either." env:"HOLDFAST_LINEAR_SYNC" default:"1m" placeholder:"DURATION"`
	URL  string        `help:"Linear's GraphQL API." name:"url" env:"HOLDFAST_LINEAR_URL" default:"https://api.linear.app/graphql" placeholder:"URL"`
}

func (c linearConfig) check() error {
	if u, err := url.Parse(c.URL); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return wrongUsage("--linear-url: %q is no address of an API", c.URL)
	}
	if c.Sync != 0 && c.Sync < time.Second {
		return wrongUsage("--linear-sync is %v; it is 0 or at least 1s", c.Sync)
	}
	return nil
}

const (
	// linearTimeout bounds one request to Linear.
	linearTimeout = 30 * time.Second
	// syncTimeout bounds one run of the sync; what is left is for the next.
	syncTimeout = 5 * time.Minute
	// sendTimeout bounds the sending before a run of the sync.
	sendTimeout = time.Minute
)

// addJobs tells the queue how issues are read and changes are sent: one job asks which endpoints there are, one reads for each, and one sends an issue's changes.
// coordinator makes Linear's limits those of all of the tenant's processes, and has the ledger that changes are sent through. It
// returns what makes one endpoint's sync run at once, and what has an issue's changes sent; nil: no issues are read, and none are sent.
func (c linearConfig) addJobs(q *jobs.Queue, d *db.DB, kinds linear.Kinds, box *seal.Box, coordinator *coordination.Manager, metrics prometheus.Registerer, log *slog.Logger) (syncNow, sendNow func(ctx context.Context, t identity.Tenant, id string) error) {
	if c.Sync == 0 {
		return nil, nil
	}
	config := linear.SyncConfig{
		Kinds: kinds, Open: box.Open, Client: &http.Client{Transport: linearTransport(coordinator, log), Timeout: linearTimeout}, URL: c.URL,
		RetryAfter: coordclient.RetryAfter, Now: time.Now, Log: log,
	}
	syncer := linear.NewSync(config)
	writer := linear.NewWriter(linear.WriterConfig{
		SyncConfig: config, Coordinator: &coordclient.Client{Service: ownCoordinator{coordinator}},
		Base: &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second},
	})
	lag := &syncLag{now: d.Now, fresh: 3*c.Sync + jobsGrace}
	metrics.MustRegister(lag)
	const one, all, send = "linear-sync", "linear-sync-all", "linear-send"
	q.Add(jobs.Job{Name: one, Timeout: syncTimeout, MaxAttempts: 1, Run: func(ctx context.Context, t jobs.Task) error {
		// What waits to be sent goes first, so that the sync confirms it, but not for long.
		writing, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		return errors.Join(writer.Endpoint(writing, t.Tenant, t.ID), syncer.Once(ctx, db.Endpoint{Tenant: t.Tenant, ID: t.ID}))
	}})
	q.Add(jobs.Job{Name: send, Timeout: syncTimeout, MaxAttempts: 1, Run: func(ctx context.Context, t jobs.Task) error {
		return writer.Issue(ctx, t.Tenant, t.ID)
	}})
	q.Add(jobs.Job{Name: all, Every: c.Sync, Run: func(ctx context.Context, _ jobs.Task) error {
		const atOnce = 100
		var behind time.Time // when the endpoint furthest behind was last synced; zero: there is none
		var unknown error    // what cannot be read of one endpoint does not hold up the others
		for after := ""; ; {
			endpoints, err := d.Endpoints(ctx, after, atOnce)
			if err != nil {
				return err
			}
			for _, e := range endpoints {
				if err := q.Enqueue(ctx, one, jobs.Task{Tenant: e.Tenant, ID: e.ID}, time.Now()); err != nil {
					return err
				}
				at, syncs, err := syncer.At(ctx, e)
				unknown = errors.Join(unknown, err)
				if syncs && (behind.IsZero() || at.Before(behind)) {
					behind = at
				}
				after = e.ID
			}
			if len(endpoints) < atOnce {
				if unknown == nil {
					lag.set(behind)
				}
				return unknown
			}
		}
	}})
	enqueue := func(job string) func(ctx context.Context, t identity.Tenant, id string) error {
		return func(ctx context.Context, t identity.Tenant, id string) error {
			return q.Enqueue(ctx, job, jobs.Task{Tenant: t, ID: id}, time.Now())
		}
	}
	return enqueue(one), enqueue(send)
}

// jobsGrace is by how much a periodic job may be late where nothing is wrong.
const jobsGrace = time.Minute

// syncLag exposes how far Linear's sync is behind, from the server whose turn it last was. What another server finds out since
// then is not known here, so it is no longer exposed once it is not fresh.
type syncLag struct {
	now   func() time.Time
	fresh time.Duration

	mu     sync.Mutex // guards what follows
	behind time.Time  // zero: no endpoint is synced
	seen   time.Time
}

func (l *syncLag) set(behind time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.behind, l.seen = behind, l.now()
}

// Describe implements [prometheus.Collector].
func (l *syncLag) Describe(ch chan<- *prometheus.Desc) { ch <- syncLagDesc() }

// Collect implements [prometheus.Collector].
func (l *syncLag) Collect(ch chan<- prometheus.Metric) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.seen.IsZero() || now.Sub(l.seen) > l.fresh {
		return
	}
	seconds := 0.0
	if !l.behind.IsZero() {
		seconds = max(0, now.Sub(l.behind).Seconds())
	}
	ch <- prometheus.MustNewConstMetric(syncLagDesc(), prometheus.GaugeValue, seconds)
}

func syncLagDesc() *prometheus.Desc {
	return prometheus.NewDesc("holdfast_linear_sync_lag_seconds",
		"How long ago the endpoint that is furthest behind was last synced with Linear to the end; absent on servers that have not looked lately.", nil, nil)
}
