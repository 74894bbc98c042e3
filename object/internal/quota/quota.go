// Package quota counts what is stored of users and tenants, and refuses what is over a quota.
package quota

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/bounds"
)

// Quotas bound what is stored of each user and of each tenant as a whole. What a user owns counts for both, what belongs to the whole
// tenant for the tenant. They are kept within a second or two of what all servers write; see Usage.Flush.
type Quotas struct{ User, Tenant Quota }

// Quota bounds objects and bytes. 0: no limit.
type Quota struct{ Objects, Bytes int64 }

// Error refuses a change that would create an object or add bytes beyond a quota. Deletions and changes that free room pass.
type Error struct {
	Scope       string // "user" or "tenant": whose quota
	Name        string // of the quota: "objects" or "bytes"
	Limit, Used int64
}

func (e *Error) Error() string {
	return fmt.Sprintf("object: the %s has %d %s stored, over or at the quota of %d", e.Scope, e.Used, e.Name, e.Limit)
}

const (
	quotaObjects = "objects"
	quotaBytes   = "bytes"

	// RowBytes is what a row takes besides what it holds: its keys, here and in indexes. MeasureObjects counts in the same way.
	RowBytes = 256
	// freeNote is how large the journal's note of a change that frees less than it notes may be, for it to pass over a quota.
	freeNote = 4 << 10
	// flushEvery is how often usage is flushed, and flushTimeout bounds one flush.
	flushEvery   = time.Second
	flushTimeout = 5 * time.Second
	// freshFlushes is for how many flushes an account that nobody asks for is still read, and idleFlushes after how many it is forgotten.
	// One that is half full is always read, so that who waits for a server to forget gets nothing for it.
	freshFlushes, idleFlushes = 5, 60
)

// Amount is what is stored, or was added.
type Amount struct{ Objects, Bytes int64 }

// Plus returns the sum.
func (a Amount) Plus(b Amount) Amount { return Amount{a.Objects + b.Objects, a.Bytes + b.Bytes} }

// Growth is what a change adds.
type Growth struct {
	Objects int64
	Bytes   int64 // of state and entries: negative where it frees some
	Note    int64 // the event
}

// frees reports whether a change passes a full quota. It frees at least half of what the journal notes of it: otherwise removing a large
// state byte by byte would fill the journal.
func (g Growth) frees() bool { return g.Objects <= 0 && g.Bytes < 0 && g.Note <= freeNote-2*g.Bytes }

// over says which limit a change would pass; nil: none.
func (q Quota) over(scope string, used Amount, g Growth) *Error {
	switch {
	case q.Objects > 0 && g.Objects > 0 && used.Objects+g.Objects > q.Objects:
		return &Error{scope, quotaObjects, q.Objects, used.Objects}
	case q.Bytes > 0 && !g.frees() && used.Bytes+g.Bytes+g.Note > q.Bytes:
		return &Error{scope, quotaBytes, q.Bytes, used.Bytes}
	}
	return nil
}

// half reports whether so much is at least half of a quota.
func (q Quota) half(used Amount) bool {
	return q.Objects > 0 && used.Objects >= q.Objects/2 || q.Bytes > 0 && used.Bytes >= q.Bytes/2
}

// tally is what this server knows of a user or, where the user is empty, of a tenant.
type tally struct {
	total Amount // of all servers, when it was last flushed; 0 until it was
	added Amount // here since
	sent  Amount // by the flush that is under way
	idle  int    // how many flushes have begun since it was asked for
}

func (a *tally) used() Amount { return a.total.Plus(a.sent).Plus(a.added) }

// Usage counts what the changes of this server add. It is safe for concurrent use.
type Usage struct {
	db     *db.DB
	log    *slog.Logger
	limits Quotas

	flushing sync.Mutex // held by the one flush that is under way, which waits for the database

	mu       sync.Mutex // guards accounts; nothing slow happens under it
	accounts map[bounds.Holder]*tally

	life          context.Context //nolint:containedctx // of a flush by itself
	cancel        context.CancelFunc
	begun         sync.Once // run has, or never will
	stop, stopped chan struct{}
	closing       sync.Once
}

// NewUsage returns a Usage that has counted nothing. It works until life ends or Close.
func NewUsage(life context.Context, d *db.DB, log *slog.Logger, limits Quotas) *Usage {
	u := &Usage{db: d, log: log, limits: limits, accounts: map[bounds.Holder]*tally{}, stop: make(chan struct{}), stopped: make(chan struct{})}
	u.life, u.cancel = context.WithCancel(life)
	return u
}

// run flushes from the first account on.
func (u *Usage) run() {
	defer close(u.stopped)
	ctx := u.life
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-tick.C:
		case <-u.stop:
			return
		}
		err := u.Flush(ctx)
		if err != nil && !failing {
			u.log.WarnContext(ctx, "usage cannot be flushed; quotas count this server only meanwhile", "error", err)
		}
		failing = err != nil
	}
}

// Close flushes what was counted, unless ctx is over first.
func (u *Usage) Close(ctx context.Context) {
	u.closing.Do(func() {
		u.begun.Do(func() { close(u.stopped) })
		close(u.stop)
		select {
		case <-u.stopped:
		case <-ctx.Done():
		}
		u.cancel()
		<-u.stopped
		if err := u.Flush(ctx); err != nil {
			u.log.WarnContext(ctx, "usage was not flushed; the next recount counts it", "error", err)
		}
	})
}

// at is an account, which somebody asks for. The caller holds mu.
func (u *Usage) at(h bounds.Holder) *tally {
	a := u.accounts[h]
	if a == nil {
		a = &tally{}
		u.accounts[h] = a
		u.begun.Do(func() { go u.run() })
	}
	a.idle = 0
	return a
}

// Check returns an Error where a change of what owner has would go over a quota.
func (u *Usage) Check(t identity.Tenant, owner identity.User, g Growth) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if owner != "" {
		if err := u.limits.User.over("user", u.at(bounds.Holder{Tenant: t, User: owner}).used(), g); err != nil {
			return err
		}
	}
	if err := u.limits.Tenant.over("tenant", u.at(bounds.Holder{Tenant: t}).used(), g); err != nil {
		return err
	}
	return nil
}

// Add counts what a change has stored.
func (u *Usage) Add(t identity.Tenant, owner identity.User, n Amount) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, user := range slices.Compact([]identity.User{"", owner}) {
		a := u.at(bounds.Holder{Tenant: t, User: user})
		a.added = a.added.Plus(n)
	}
}

// Flush adds what was counted here to the totals of all servers, and reads these. It happens by itself every second, and when Close is called.
func (u *Usage) Flush(ctx context.Context) error {
	u.flushing.Lock()
	defer u.flushing.Unlock()
	holders, params := u.begin()
	if len(holders) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	totals := map[bounds.Holder]Amount{}
	err := u.db.AddUsage(ctx, params, func(r *dbsqlc.HoldfastUsage) error {
		totals[bounds.Holder{Tenant: identity.Tenant(r.TenantID), User: identity.User(r.OwnerID)}] = Amount{r.Objects, r.Bytes}
		return nil
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, h := range holders {
		a := u.accounts[h]
		if err != nil {
			a.added = a.added.Plus(a.sent)
		} else {
			a.total = totals[h]
		}
		a.sent = Amount{}
	}
	return err
}

// begin chooses what to flush, in the order in which all servers do, and forgets accounts that are idle.
func (u *Usage) begin() (holders []bounds.Holder, p dbsqlc.AddUsageParams) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for h, a := range u.accounts {
		quota := u.limits.User
		if h.User == "" {
			quota = u.limits.Tenant
		}
		switch {
		case a.idle < freshFlushes || a.added != (Amount{}) || quota.half(a.total):
			holders = append(holders, h)
		case a.idle > idleFlushes:
			delete(u.accounts, h)
		}
		a.idle++
	}
	slices.SortFunc(holders, func(a, b bounds.Holder) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.User, b.User))
	})
	for _, h := range holders {
		a := u.accounts[h]
		a.sent, a.added = a.added, Amount{}
		p.Tenants, p.Owners = append(p.Tenants, string(h.Tenant)), append(p.Owners, string(h.User))
		p.Objects, p.Bytes = append(p.Objects, a.sent.Objects), append(p.Bytes, a.sent.Bytes)
	}
	return holders, p
}

const (
	// fullFrom is from which share of a quota on a tenant is exposed, and fullMost how many are.
	fullFrom = 0.5
	fullMost = 20
	// fullAge is how old the figures of a scrape may be, and fullTimeout bounds reading them.
	fullAge     = 15 * time.Second
	fullTimeout = 2 * time.Second
)

// FullTenants exposes the tenants that have used most of a quota. What cannot be read is not exposed.
type FullTenants struct {
	u     *Usage
	ratio *prometheus.Desc

	mu   sync.Mutex // guards what follows, and is held while one scrape reads for all
	rows []dbsqlc.ListFullTenantsRow
	read time.Time
}

// NewFullTenants returns the collector of a Usage.
func NewFullTenants(u *Usage) *FullTenants {
	return &FullTenants{u: u, ratio: prometheus.NewDesc("holdfast_quota_used_ratio",
		"How much of its quota a tenant has used, for the 20 tenants that have used most of theirs, from half of it on.", []string{"tenant", "quota"}, nil)}
}

// Describe implements [prometheus.Collector].
func (c *FullTenants) Describe(ch chan<- *prometheus.Desc) { ch <- c.ratio }

// Collect implements [prometheus.Collector].
func (c *FullTenants) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.u.db.Now(); c.read.IsZero() || now.Sub(c.read).Abs() > fullAge {
		ctx, cancel := context.WithTimeout(c.u.life, fullTimeout)
		defer cancel()
		rows, err := c.u.db.ListFullTenants(ctx, dbsqlc.ListFullTenantsParams{
			ObjectsQuota: float64(c.u.limits.Tenant.Objects), BytesQuota: float64(c.u.limits.Tenant.Bytes), AtLeast: fullFrom, AtMost: fullMost,
		})
		if err != nil {
			return
		}
		c.rows, c.read = rows, now
	}
	for _, r := range c.rows {
		for quota, ratio := range map[string]float64{quotaObjects: r.ObjectsRatio, quotaBytes: r.BytesRatio} {
			if ratio >= fullFrom {
				ch <- prometheus.MustNewConstMetric(c.ratio, prometheus.GaugeValue, ratio, r.TenantID, quota)
			}
		}
	}
}
