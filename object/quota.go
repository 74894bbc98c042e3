package object

import (
	"context"

	"holdfast/object/internal/quota"
)

// Quotas bound what is stored of each user and of each tenant as a whole. What a user owns counts for both, what belongs to the whole
// tenant for the tenant. They are kept within a second or two of what all servers write; see Runtime.FlushUsage.
type Quotas = quota.Quotas

// Quota bounds objects and bytes. 0: no limit.
type Quota = quota.Quota

// QuotaError refuses a change that would create an object or add bytes beyond a quota. Deletions and changes that free room pass.
type QuotaError = quota.Error

// FlushUsage adds what this process has written to the totals of all processes, and reads what they have come to. It happens by itself
// every second, and when the runtime closes.
func (rt *Runtime) FlushUsage(ctx context.Context) error { return rt.usage.Flush(ctx) }

// mayGrow returns a QuotaError where a change that is about to be accepted goes over a quota.
func (w *work) mayGrow(c *change, t *txn, next *record, g quota.Growth) error {
	if t.deleted || c.unmetered || w.kind.unmetered {
		return nil
	}
	if !t.Exists() {
		g.Objects = 1
	}
	return w.kind.rt.usage.Check(w.box.key.Tenant, next.owner, g)
}

// entriesGrow is how many bytes a change adds to the object's entries, once the note that undoes it was made.
func entriesGrow(puts []put, bodies []string) (n int64) {
	for i, p := range puts {
		n += int64(len(bodies[i]) - p.was)
		switch {
		case p.value != nil && p.was == 0:
			n += quota.RowBytes
		case p.value == nil && p.was > 0:
			n -= quota.RowBytes
		}
	}
	return n
}

// count adds what a committed work has stored to the usage of its owner.
func (w *work) count() {
	u, tenant := w.kind.rt.usage, w.box.key.Tenant
	is := quota.Amount{Bytes: w.grown + w.termsGrown}
	if w.base == nil {
		is.Bytes += quota.RowBytes
	}
	if w.cur.state != nil {
		is = is.Plus(quota.Amount{Objects: 1, Bytes: int64(w.cur.stateSize)})
	}
	if w.base != nil && w.base.state != nil {
		was := quota.Amount{Objects: -1, Bytes: -int64(w.base.stateSize)}
		if w.base.owner == w.cur.owner {
			is = is.Plus(was)
		} else {
			u.Add(tenant, w.base.owner, was)
		}
	}
	u.Add(tenant, w.cur.owner, is)
}

// termsBytes is what terms take in their table and two indexes.
func (w *work) termsBytes(terms []string, orders []Order) (n int64) {
	prefix := len(storedTerm(w.box.key.Tenant, w.kind.name, ""))
	for _, t := range terms {
		n += int64(quota.RowBytes + 3*(prefix+len(t)))
	}
	for _, o := range orders {
		n += int64(quota.RowBytes + 3*(prefix+len(o.Term)))
	}
	return n
}
