package hints

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	hintsSent, hintsReceived, hintsLost       prometheus.Counter
	signalsSent, signalsReceived, signalsLost prometheus.Counter
	hearing, peers                            prometheus.Gauge
}

// newMetrics registers with reg; nil: the metrics go nowhere.
func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "holdfast_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "holdfast_" + name, Help: help})
	}
	m := &metrics{
		hintsSent:       counter("hints_sent_total", "Objects whose changes were told to other processes."),
		hintsReceived:   counter("hints_received_total", "Objects whose changes other processes told of."),
		hintsLost:       counter("hints_lost_total", "Objects whose changes could not be told to other processes."),
		signalsSent:     counter("signals_sent_total", "Signals that were told to other processes."),
		signalsReceived: counter("signals_received_total", "Signals of other processes, of objects that are watched here."),
		signalsLost:     counter("signals_lost_total", "Signals that could not be told to other processes, or were too many or too large for it."),
		hearing:         gauge("hints_hearing", "1 where hints arrive, 0 where watchers depend on polling."),
		peers:           gauge("peers", "Other processes that were heard lately."),
	}
	if reg != nil {
		reg.MustRegister(m.hintsSent, m.hintsReceived, m.hintsLost, m.signalsSent, m.signalsReceived, m.signalsLost, m.hearing, m.peers)
	}
	return m
}
