package object

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/gen/dbsqlc"
)

const (
	// timerCountsAge is how old the figures of a scrape may be. Every server counts the same timers.
	timerCountsAge = 15 * time.Second
	// timerCountsTimeout bounds the count, which a scrape waits for.
	timerCountsTimeout = 2 * time.Second
	// maxTimersCounted bounds what is read for a figure.
	maxTimersCounted = 10_000
)

// timerCounts counts the timers of all tenants that wait although they should not. What cannot be read is not exposed.
type timerCounts struct {
	s               *scheduler
	overdue, parked *prometheus.Desc

	mu   sync.Mutex // guards what follows, and is held while one scrape reads for all
	row  dbsqlc.CountTimersRow
	read time.Time
}

func newTimerCounts(s *scheduler) *timerCounts {
	return &timerCounts{
		s:       s,
		overdue: prometheus.NewDesc("holdfast_timers_overdue", "Timers of all tenants that have been due for ten seconds and did not run, at most 10,000 of a kind.", nil, nil),
		parked:  prometheus.NewDesc("holdfast_timers_parked", "Timers of all tenants that failed too often and are no longer tried, at most 10,000.", nil, nil),
	}
}

// Describe implements [prometheus.Collector].
func (c *timerCounts) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.overdue
	ch <- c.parked
}

// Collect implements [prometheus.Collector].
func (c *timerCounts) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.s.rt.db.Now(); c.read.IsZero() || now.Sub(c.read).Abs() > timerCountsAge {
		if err := c.count(); err != nil {
			c.read = time.Time{}
			return
		}
		c.read = now
	}
	ch <- prometheus.MustNewConstMetric(c.overdue, prometheus.GaugeValue, float64(c.row.Overdue))
	ch <- prometheus.MustNewConstMetric(c.parked, prometheus.GaugeValue, float64(c.row.Parked))
}

func (c *timerCounts) count() error {
	ctx, cancel := context.WithTimeout(c.s.rt.life, timerCountsTimeout)
	defer cancel()
	p := c.s.rt.db.NewJanitor()
	p.CountTimers(dbsqlc.CountTimersParams{Kinds: c.s.kindNames(), AtMost: maxTimersCounted}, func(r *dbsqlc.CountTimersRow) error {
		c.row = *r
		return nil
	})
	return c.s.rt.db.Run(ctx, p)
}
