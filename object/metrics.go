package object

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/gen/dbsqlc"
)

// metrics are what the runtime tells of itself. No label names a tenant or an object: there may be any number of them.
type metrics struct {
	hintsMissed                                      prometheus.Counter
	catchUps, catchUpReads, hibernated, woken        prometheus.Counter
	refused                                          *prometheus.CounterVec
	batchObjects, batchChanges, changeWait, lockWait prometheus.Histogram
	commits, watchLag                                *prometheus.HistogramVec
}

// newMetrics registers with reg; nil: the metrics go nowhere.
func newMetrics(rt *Runtime, reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "holdfast_" + name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "holdfast_" + name, Help: help, Buckets: buckets})
	}
	seconds := prometheus.ExponentialBuckets(0.0001, 2, 17) // 0.1 ms to 6.5 s
	m := &metrics{
		hintsMissed:  counter("hints_missed_total", "Watched objects that polling found changed, of which a hint should have told."),
		catchUps:     counter("catch_ups_total", "Times that a watcher had to read the journal."),
		catchUpReads: counter("catch_up_reads_total", "Journals that were read for watchers; those of one object share one."),
		hibernated:   counter("hibernated_objects_total", "Objects that were put to sleep: their entries and events became one row."),
		woken:        counter("woken_objects_total", "Objects that slept until somebody read or changed them."),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_refused_total", Help: "Changes, reads and watches that were refused because too much waited, by what was full.",
		}, []string{"full"}),
		batchObjects: histogram("batch_objects", "Objects in a batch of changes.", prometheus.ExponentialBuckets(1, 2, 9)),
		batchChanges: histogram("batch_changes", "Changes in a batch.", prometheus.ExponentialBuckets(1, 2, 11)),
		changeWait:   histogram("change_wait_seconds", "How long the oldest change of a batch waited in its mailbox.", seconds),
		lockWait:     histogram("lock_wait_seconds", "How long it took until a transaction held the locks of its objects.", seconds),
		commits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_commit_seconds", Help: "How long transactions of changes took: fast, in one round trip, or sure, in two.", Buckets: seconds,
		}, []string{"way"}),
		watchLag: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_watch_lag_seconds", Help: "From a change's time to when a watcher is given it: made here, or found in the journal.", Buckets: seconds,
		}, []string{"from"}),
	}
	for _, what := range []string{"object", "user", "tenant", "server", "streams", "history", "answers"} {
		m.refused.WithLabelValues(what) // 0 is a value, too
	}
	for _, way := range []string{"fast", "sure"} {
		m.commits.WithLabelValues(way)
	}
	for _, from := range []string{fromHere, fromJournal} {
		m.watchLag.WithLabelValues(from)
	}
	of := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "holdfast_" + name, Help: help}, func() float64 { return float64(value()) })
	}
	locked := func(value *int) func() int {
		return func() int {
			rt.mu.Lock()
			defer rt.mu.Unlock()
			return *value
		}
	}
	if reg != nil {
		reg.MustRegister(
			of("changes_waiting", "Changes that wait in mailboxes.", locked(&rt.waiting)),
			of("batches_in_flight", "Batches of changes that are being committed.", locked(&rt.running)),
			of("reads_waiting", "Reads that wait or run.", locked(&rt.reading)),
			of("watches", "Watches that are open.", func() int {
				rt.hub.mu.Lock()
				defer rt.hub.mu.Unlock()
				return rt.hub.count
			}),
			m.hintsMissed, m.catchUps, m.catchUpReads, m.hibernated, m.woken, m.refused, m.batchObjects, m.batchChanges, m.changeWait,
			m.lockWait, m.commits, m.watchLag)
	}
	return m
}

// batch notes a batch that begins now.
func (m *metrics) batch(now time.Time, works []*work, changes int) {
	m.batchObjects.Observe(float64(len(works)))
	m.batchChanges.Observe(float64(changes))
	oldest := now
	for _, w := range works {
		if q := w.changes[0].queued; q.Before(oldest) {
			oldest = q
		}
	}
	m.changeWait.Observe(max(0, now.Sub(oldest).Seconds()))
}

// Where a watcher has a change from.
const (
	fromHere    = "here"
	fromJournal = "journal"
)

// commit notes how long a transaction takes from now until the function it returns is called.
func (m *metrics) commit(way string, now func() time.Time) func() {
	begun := now()
	return func() { m.commits.WithLabelValues(way).Observe(max(0, now().Sub(begun).Seconds())) }
}

func (m *metrics) lag(from string, since time.Duration) {
	m.watchLag.WithLabelValues(from).Observe(max(0, since.Seconds()))
}

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
