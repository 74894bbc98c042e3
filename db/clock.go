package db

import (
	"sync/atomic"
	"time"
)

// clock extrapolates the database's clock from its answers, so that a change can be computed before its only round
// trip. It runs on the process's monotonic clock, so steps of the machine's wall clock do not matter, and it does not
// run backwards: where the database's turns out to be a little behind, it stands still until that has caught up. Where
// they are leap or more apart, one of them was set, and standing still would stop all that waits for a time; then it
// goes back. Safe for concurrent use.
type clock struct {
	read   func() time.Time // with the monotonic reading
	start  time.Time        // read once
	offset atomic.Int64     // database time = start + monotonic time since + offset, in ns
	newest atomic.Int64     // what now answered last, in ns since start
}

// leap is more than a clock that nobody sets is ever off.
const leap = 2 * time.Second

// newClock runs on this machine's clock, which is read by read; nil: time.Now.
func newClock(read func() time.Time) *clock {
	if read == nil {
		read = time.Now
	}
	return &clock{read: read, start: read()}
}

func (c *clock) since() int64 { return int64(c.read().Sub(c.start)) }

// now is the database's time as far as is known, in microseconds, which is what Postgres keeps.
func (c *clock) now() time.Time {
	for {
		newest := c.newest.Load()
		now := max(newest, c.since()+c.offset.Load())
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
	since := c.since()
	least, most := int64(answer)-since, int64(answer-asked.Sub(c.start))
	for {
		old := c.offset.Load()
		sampled := min(max(old, least), most)
		if sampled == old || c.offset.CompareAndSwap(old, sampled) {
			if newest := c.newest.Load(); newest-since-sampled > int64(leap) {
				c.newest.CompareAndSwap(newest, since+sampled) // where it fails, somebody has done so
			}
			return
		}
	}
}
