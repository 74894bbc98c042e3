package object

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// Quotas bound what is stored of each user and of each tenant as a whole. What a user owns counts for both, what belongs to the whole
// tenant for the tenant. They are kept within a second or two of what all servers write; see Runtime.FlushUsage.
type Quotas struct{ User, Tenant Quota }

// Quota bounds objects and bytes. 0: no limit.
type Quota struct{ Objects, Bytes int64 }

// QuotaError refuses a change that would create an object or add bytes beyond a quota. Deletions and changes that free room pass.
type QuotaError struct {
	Scope       string // "user" or "tenant": whose quota
	Name        string // of the quota: "objects" or "bytes"
	Limit, Used int64
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("object: the %s has %d %s stored, over or at the quota of %d", e.Scope, e.Used, e.Name, e.Limit)
}

const (
	quotaObjects = "objects"
	quotaBytes   = "bytes"

	// rowBytes is what a row takes besides what it holds: its keys, here and in indexes. MeasureObjects counts in the same way.
	rowBytes = 256
	// freeNote is how large the journal's note of a change that frees less than it notes may be, for it to pass over a quota.
	freeNote = 4 << 10
	// flushEvery is how often usage is flushed, and flushTimeout bounds one flush.
	flushEvery   = time.Second
	flushTimeout = 5 * time.Second
	// freshFlushes is for how many flushes an account that nobody asks for is still read, and idleFlushes after how many it is forgotten.
	// One that is half full is always read, so that who waits for a server to forget gets nothing for it.
	freshFlushes, idleFlushes = 5, 60
)

// amount is what is stored, or was added.
type amount struct{ objects, bytes int64 }

func (a amount) plus(b amount) amount { return amount{a.objects + b.objects, a.bytes + b.bytes} }

// growth is what a change adds.
type growth struct {
	objects int64
	bytes   int64 // of state and entries: negative where it frees some
	note    int64 // the event
}

// frees reports whether a change passes a full quota. It frees at least half of what the journal notes of it: otherwise removing a large
// state byte by byte would fill the journal.
func (g growth) frees() bool { return g.objects <= 0 && g.bytes < 0 && g.note <= freeNote-2*g.bytes }

// over says which limit a change would pass; nil: none.
func (q Quota) over(scope string, used amount, g growth) *QuotaError {
	switch {
	case q.Objects > 0 && g.objects > 0 && used.objects+g.objects > q.Objects:
		return &QuotaError{scope, quotaObjects, q.Objects, used.objects}
	case q.Bytes > 0 && !g.frees() && used.bytes+g.bytes+g.note > q.Bytes:
		return &QuotaError{scope, quotaBytes, q.Bytes, used.bytes}
	}
	return nil
}

// half reports whether so much is at least half of a quota.
func (q Quota) half(used amount) bool {
	return q.Objects > 0 && used.objects >= q.Objects/2 || q.Bytes > 0 && used.bytes >= q.Bytes/2
}

// tally is what this server knows of a user or, where the user is empty, of a tenant.
type tally struct {
	total amount // of all servers, when it was last flushed; 0 until it was
	added amount // here since
	sent  amount // by the flush that is under way
	idle  int    // how many flushes have begun since it was asked for
}

func (a *tally) used() amount { return a.total.plus(a.sent).plus(a.added) }

// usage counts what the changes of this server add. It is safe for concurrent use.
type usage struct {
	rt     *Runtime
	limits Quotas

	flushing sync.Mutex // held by the one flush that is under way, which waits for the database

	mu       sync.Mutex // guards accounts; nothing slow happens under it
	accounts map[holder]*tally

	life          context.Context //nolint:containedctx // of a flush by itself
	cancel        context.CancelFunc
	begun         sync.Once // run has, or never will
	stop, stopped chan struct{}
	closing       sync.Once
}

//nolint:contextcheck,nolintlint // it lives as long as the runtime; the linter looks for this at its callers
func newUsage(rt *Runtime, limits Quotas) *usage {
	u := &usage{rt: rt, limits: limits, accounts: map[holder]*tally{}, stop: make(chan struct{}), stopped: make(chan struct{})}
	u.life, u.cancel = context.WithCancel(rt.life)
	return u
}

// run flushes from the first account on.
func (u *usage) run() {
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
		err := u.flush(ctx)
		if err != nil && !failing {
			u.rt.log.WarnContext(ctx, "usage cannot be flushed; quotas count this server only meanwhile", "error", err)
		}
		failing = err != nil
	}
}

// close flushes what was counted, unless ctx is over first.
func (u *usage) close(ctx context.Context) {
	u.closing.Do(func() {
		u.begun.Do(func() { close(u.stopped) })
		close(u.stop)
		select {
		case <-u.stopped:
		case <-ctx.Done():
		}
		u.cancel()
		<-u.stopped
		if err := u.flush(ctx); err != nil {
			u.rt.log.WarnContext(ctx, "usage was not flushed; the next recount counts it", "error", err)
		}
	})
}

// at is an account, which somebody asks for. The caller holds mu.
func (u *usage) at(h holder) *tally {
	a := u.accounts[h]
	if a == nil {
		a = &tally{}
		u.accounts[h] = a
		u.begun.Do(func() { go u.run() })
	}
	a.idle = 0
	return a
}

// check returns a QuotaError where a change of what owner has would go over a quota.
func (u *usage) check(t identity.Tenant, owner identity.User, g growth) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if owner != "" {
		if err := u.limits.User.over("user", u.at(holder{t, owner}).used(), g); err != nil {
			return err
		}
	}
	if err := u.limits.Tenant.over("tenant", u.at(holder{t, ""}).used(), g); err != nil {
		return err
	}
	return nil
}

func (u *usage) add(t identity.Tenant, owner identity.User, n amount) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, user := range slices.Compact([]identity.User{"", owner}) {
		a := u.at(holder{t, user})
		a.added = a.added.plus(n)
	}
}

// flush adds what was counted to the totals, and reads them.
func (u *usage) flush(ctx context.Context) error {
	u.flushing.Lock()
	defer u.flushing.Unlock()
	holders, params := u.begin()
	if len(holders) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	totals := map[holder]amount{}
	err := u.rt.db.AddUsage(ctx, params, func(r *dbsqlc.HoldfastUsage) error {
		totals[holder{identity.Tenant(r.TenantID), identity.User(r.OwnerID)}] = amount{r.Objects, r.Bytes}
		return nil
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, h := range holders {
		a := u.accounts[h]
		if err != nil {
			a.added = a.added.plus(a.sent)
		} else {
			a.total = totals[h]
		}
		a.sent = amount{}
	}
	return err
}

// begin chooses what to flush, in the order in which all servers do, and forgets accounts that are idle.
func (u *usage) begin() (holders []holder, p dbsqlc.AddUsageParams) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for h, a := range u.accounts {
		quota := u.limits.User
		if h.user == "" {
			quota = u.limits.Tenant
		}
		switch {
		case a.idle < freshFlushes || a.added != (amount{}) || quota.half(a.total):
			holders = append(holders, h)
		case a.idle > idleFlushes:
			delete(u.accounts, h)
		}
		a.idle++
	}
	slices.SortFunc(holders, func(a, b holder) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.user, b.user))
	})
	for _, h := range holders {
		a := u.accounts[h]
		a.sent, a.added = a.added, amount{}
		p.Tenants, p.Owners = append(p.Tenants, string(h.tenant)), append(p.Owners, string(h.user))
		p.Objects, p.Bytes = append(p.Objects, a.sent.objects), append(p.Bytes, a.sent.bytes)
	}
	return holders, p
}

// FlushUsage adds what this process has written to the totals of all processes, and reads what they have come to. It happens by itself
// every second, and when the runtime closes.
func (rt *Runtime) FlushUsage(ctx context.Context) error { return rt.usage.flush(ctx) }

// mayGrow returns a QuotaError where a change that is about to be accepted goes over a quota.
func (w *work) mayGrow(c *change, t *txn, next *record, g growth) error {
	if t.deleted || c.unmetered || w.kind.unmetered {
		return nil
	}
	if !t.Exists() {
		g.objects = 1
	}
	return w.kind.rt.usage.check(w.box.key.tenant, next.owner, g)
}

// entriesGrow is how many bytes a change adds to the object's entries, once the note that undoes it was made.
func entriesGrow(puts []put, bodies []string) (n int64) {
	for i, p := range puts {
		n += int64(len(bodies[i]) - p.was)
		switch {
		case p.value != nil && p.was == 0:
			n += rowBytes
		case p.value == nil && p.was > 0:
			n -= rowBytes
		}
	}
	return n
}

// count adds what a committed work has stored to the usage of its owner.
func (w *work) count() {
	u, tenant := w.kind.rt.usage, w.box.key.tenant
	is := amount{bytes: w.grown + w.termsGrown}
	if w.base == nil {
		is.bytes += rowBytes
	}
	if w.cur.state != nil {
		is = is.plus(amount{1, int64(w.cur.stateSize)})
	}
	if w.base != nil && w.base.state != nil {
		was := amount{-1, -int64(w.base.stateSize)}
		if w.base.owner == w.cur.owner {
			is = is.plus(was)
		} else {
			u.add(tenant, w.base.owner, was)
		}
	}
	u.add(tenant, w.cur.owner, is)
}

// termsBytes is what terms take in their table and two indexes.
func (w *work) termsBytes(terms []string, orders []Order) (n int64) {
	prefix := len(storedTerm(w.box.key.tenant, w.kind.name, ""))
	for _, t := range terms {
		n += int64(rowBytes + 3*(prefix+len(t)))
	}
	for _, o := range orders {
		n += int64(rowBytes + 3*(prefix+len(o.Term)))
	}
	return n
}

const (
	// fullFrom is from which share of a quota on a tenant is exposed, and fullMost how many are.
	fullFrom = 0.5
	fullMost = 20
	// fullAge is how old the figures of a scrape may be, and fullTimeout bounds reading them.
	fullAge     = 15 * time.Second
	fullTimeout = 2 * time.Second
)

// fullTenants exposes the tenants that have used most of a quota. What cannot be read is not exposed.
type fullTenants struct {
	u     *usage
	ratio *prometheus.Desc

	mu   sync.Mutex // guards what follows, and is held while one scrape reads for all
	rows []dbsqlc.ListFullTenantsRow
	read time.Time
}

func newFullTenants(u *usage) *fullTenants {
	return &fullTenants{u: u, ratio: prometheus.NewDesc("holdfast_quota_used_ratio",
		"How much of its quota a tenant has used, for the 20 tenants that have used most of theirs, from half of it on.", []string{"tenant", "quota"}, nil)}
}

// Describe implements [prometheus.Collector].
func (c *fullTenants) Describe(ch chan<- *prometheus.Desc) { ch <- c.ratio }

// Collect implements [prometheus.Collector].
func (c *fullTenants) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.u.rt.db.Now(); c.read.IsZero() || now.Sub(c.read).Abs() > fullAge {
		ctx, cancel := context.WithTimeout(c.u.rt.life, fullTimeout)
		defer cancel()
		rows, err := c.u.rt.db.ListFullTenants(ctx, dbsqlc.ListFullTenantsParams{
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
