package db

import "github.com/prometheus/client_golang/prometheus"

// poolMetrics shows the pool as it is when it is asked.
type poolMetrics struct {
	db                                *DB
	connections, limit, waits, waited *prometheus.Desc
}

// Metrics tells of the pool: connections by state, and how long callers waited for one.
func (d *DB) Metrics() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("holdfast_db_"+name, help, labels, nil)
	}
	return &poolMetrics{
		db:          d,
		connections: desc("connections", "Connections to Postgres, by what they do.", "state"),
		limit:       desc("connections_limit", "How many connections there may be."),
		waits:       desc("acquire_waits_total", "Times that a connection had to be waited for."),
		waited:      desc("acquire_wait_seconds_total", "How long connections were waited for, all in all."),
	}
}

// Describe implements [prometheus.Collector].
func (m *poolMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements [prometheus.Collector].
func (m *poolMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.db.pool.Stat()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(m.connections, float64(s.AcquiredConns()), "busy")
	gauge(m.connections, float64(s.IdleConns()), "idle")
	gauge(m.connections, float64(s.ConstructingConns()), "connecting")
	gauge(m.limit, float64(s.MaxConns()))
	ch <- prometheus.MustNewConstMetric(m.waits, prometheus.CounterValue, float64(s.EmptyAcquireCount()))
	ch <- prometheus.MustNewConstMetric(m.waited, prometheus.CounterValue, s.EmptyAcquireWaitTime().Seconds())
}
