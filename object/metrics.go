package object

import "github.com/prometheus/client_golang/prometheus"

// metrics are what the runtime tells of itself. No label names a tenant or an object: there may be any number of them.
type metrics struct {
	hintsSent, hintsReceived, hintsLost, hintsMissed prometheus.Counter
	catchUps, catchUpReads                           prometheus.Counter
	hearing, peers                                   prometheus.Gauge
}

// newMetrics registers with reg; nil: the metrics go nowhere.
func newMetrics(rt *Runtime, reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "holdfast_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "holdfast_" + name, Help: help})
	}
	m := &metrics{
		hintsSent:     counter("hints_sent_total", "Objects whose changes were told to other processes."),
		hintsReceived: counter("hints_received_total", "Objects whose changes other processes told of."),
		hintsLost:     counter("hints_lost_total", "Objects whose changes could not be told to other processes."),
		hintsMissed:   counter("hints_missed_total", "Watched objects that polling found changed, of which a hint should have told."),
		catchUps:      counter("catch_ups_total", "Times that a watcher had to read the journal."),
		catchUpReads:  counter("catch_up_reads_total", "Journals that were read for watchers; those of one object share one."),
		hearing:       gauge("hints_hearing", "1 where hints arrive, 0 where watchers depend on polling."),
		peers:         gauge("peers", "Other processes that were heard lately."),
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
			m.hintsSent, m.hintsReceived, m.hintsLost, m.hintsMissed,
			m.catchUps, m.catchUpReads, m.hearing, m.peers)
	}
	return m
}
