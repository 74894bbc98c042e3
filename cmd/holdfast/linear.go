package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"holdfast/coordclient"
	"holdfast/db"
	"holdfast/handlers/project"
	"holdfast/jobs"
	"holdfast/seal"
)

// linearConfig says how issues are read from Linear.
type linearConfig struct {
	Sync time.Duration `help:"How often Linear is asked what has changed, for each endpoint with an API key; 0: never." env:"HOLDFAST_LINEAR_SYNC" default:"1m" placeholder:"DURATION"`
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
)

// addJobs tells the queue how issues are read: one job asks which endpoints there are, and one reads for each.
// transport makes Linear's limits those of all of the tenant's processes.
func (c linearConfig) addJobs(q *jobs.Queue, d *db.DB, kinds project.Kinds, box *seal.Box, transport http.RoundTripper, log *slog.Logger) {
	if c.Sync == 0 {
		return
	}
	sync := project.NewSync(project.SyncConfig{
		Kinds: kinds, Open: box.Open, Client: &http.Client{Transport: transport, Timeout: linearTimeout}, URL: c.URL,
		RetryAfter: coordclient.RetryAfter, Now: time.Now, Log: log,
	})
	const one, all = "linear-sync", "linear-sync-all"
	q.Add(jobs.Job{Name: one, Timeout: syncTimeout, MaxAttempts: 1, Run: func(ctx context.Context, t jobs.Task) error {
		return sync.Once(ctx, db.Endpoint{Tenant: t.Tenant, ID: t.ID})
	}})
	q.Add(jobs.Job{Name: all, Every: c.Sync, Run: func(ctx context.Context, _ jobs.Task) error {
		const atOnce = 100
		for after := ""; ; {
			endpoints, err := d.Endpoints(ctx, after, atOnce)
			if err != nil {
				return err
			}
			for _, e := range endpoints {
				if err := q.Enqueue(ctx, one, jobs.Task{Tenant: e.Tenant, ID: e.ID}, time.Now()); err != nil {
					return err
				}
				after = e.ID
			}
			if len(endpoints) < atOnce {
				return nil
			}
		}
	}})
}
