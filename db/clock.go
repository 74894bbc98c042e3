package db

import (
	"sync/atomic"
	"time"
)

// clock extrapolates the database's clock from its answers, so that a change can be computed before its only round
// trip. It runs on the process's monotonic clock, so steps of the machine's wall clock do not matter, and it never
// runs backwards: where the database's does, it stands still until that has caught up. Safe for concurrent use.
type clock struct {
	start  time.Time    // read once; carries the monotonic reading
	offset atomic.Int64 // database time = start + monotonic time since + offset, in ns
	newest atomic.Int64 // what now answered last, in ns since start
}

func newClock() *clock { return &clock{start: time.Now()} }

// now is the database's time as far as is known, in microseconds, which is what Postgres keeps.
func (c *clock) now() time.Time {
	for {
		newest := c.newest.Load()
		now := max(newest, int64(time.Since(c.start))+c.offset.Load())
		if now == newest || c.newest.CompareAndSwap(newest, now) {
			return c.start.Add(time.Duration(now)).Round(0).Truncate(time.Microsecond).UTC()
		}
	}
}

// sample takes a time that the database answered to what was asked then. It read its clock somewhere between that
// moment and this one, which may be far apart where a statement waited for a lock: an estimate that lies between is
// kept.
func (c *clock) sample(asked, at time.Time) {
	answer := at.Round(0).Sub(c.start.Round(0))
	least, most := int64(answer-time.Since(c.start)), int64(answer-asked.Sub(c.start))
	for {
		old := c.offset.Load()
		sampled := min(max(old, least), most)
		if sampled == old || c.offset.CompareAndSwap(old, sampled) {
			return
		}
	}
}
