package db

import (
	"sync/atomic"
	"time"
)

// maxClockLag is how far the estimate may run ahead of a sample before the sample is believed. A sample is old by up
// to a round trip, so a smaller lead is no evidence of drift.
const maxClockLag = 50 * time.Millisecond

// clock extrapolates the database's clock from the last time that a statement answered it, so that a change can be
// computed before its only round trip. It runs on the process's monotonic clock and does not follow steps of the
// machine's wall clock. Safe for concurrent use.
type clock struct {
	start  time.Time    // read once; carries the monotonic reading
	offset atomic.Int64 // database time = start + monotonic time since + offset, in ns
}

func newClock() *clock { return &clock{start: time.Now()} }

// now is the database's time as far as is known, in microseconds, which is what Postgres keeps.
func (c *clock) now() time.Time {
	return c.start.Add(time.Since(c.start) + time.Duration(c.offset.Load())).Round(0).Truncate(time.Microsecond).UTC()
}

// sample takes a time that the database answered just now.
func (c *clock) sample(at time.Time) {
	for {
		old := c.offset.Load()
		sampled := int64(at.Round(0).Sub(c.start.Round(0)) - time.Since(c.start))
		if sampled <= old && sampled >= old-int64(maxClockLag) {
			return
		}
		if c.offset.CompareAndSwap(old, sampled) {
			return
		}
	}
}
