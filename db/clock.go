package db

import (
	"sync/atomic"
	"time"
)

// clock extrapolates the database's clock from its answers, so that a change can be computed before its only round
// trip. It runs on the process's monotonic clock, so steps of the machine's wall clock do not matter. It does not run
// backwards: when the database turns out to be slightly behind, the clock stands still until the database has caught up. When
// they differ by leap or more, one of them was set, and standing still would stop everything that waits for a time; then the
// clock goes back. Safe for concurrent use.
type clock struct {
	read   func() time.Time // with the monotonic reading
	start  time.Time        // read once
	offset atomic.Int64     // database time = start + monotonic time since + offset, in ns
	newest atomic.Int64     // what now answered last, in ns since start
}

// leap exceeds the error of any clock that was not set by hand.
const leap = 2 * time.Second

// newClock returns a clock that reads this machine's time with read, or with time.Now if read is nil.
func newClock(read func() time.Time) *clock {
	if read == nil {
		read = time.Now
	}
	return &clock{read: read, start: read()}
}

func (c *clock) since() int64 { return int64(c.read().Sub(c.start)) }

// now returns the estimated time of the database in whole microseconds, Postgres's precision.
func (c *clock) now() time.Time {
	for {
		newest := c.newest.Load()
		now := max(newest, c.since()+c.offset.Load())
		if now == newest || c.newest.CompareAndSwap(newest, now) {
			return c.start.Add(time.Duration(now)).Round(0).Truncate(time.Microsecond).UTC()
		}
	}
}

// sample corrects the estimate by a time that the database answered to a question asked at asked. The database read its clock at
// some moment since then, perhaps long ago if the statement waited for a lock, so an estimate within that range is kept.
func (c *clock) sample(asked, at time.Time) {
	answer := at.Round(0).Sub(c.start.Round(0))
	since := c.since()
	least, most := int64(answer)-since, int64(answer-asked.Sub(c.start))
	for {
		old := c.offset.Load()
		sampled := min(max(old, least), most)
		if sampled == old || c.offset.CompareAndSwap(old, sampled) {
			if newest := c.newest.Load(); newest-since-sampled > int64(leap) {
				c.newest.CompareAndSwap(newest, since+sampled) // if it fails, another goroutine has done so
			}
			return
		}
	}
}
