package load

import (
	"maps"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latency sums up how long requests took.
type Latency struct {
	P50, P95, P99, Max time.Duration
}

// Meter counts requests and how long they took. It is safe for concurrent use.
type Meter struct {
	mu      sync.Mutex // guards what follows
	micros  *hdrhistogram.Histogram
	errors  map[string]int64
	seconds float64
	example error
}

// NewMeter returns an empty meter.
func NewMeter() *Meter {
	const longest = 10 * time.Minute
	return &Meter{micros: hdrhistogram.New(1, longest.Microseconds(), 3), errors: map[string]int64{}}
}

// Observe counts one request that was answered.
func (m *Meter) Observe(took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	// It fails for what is longer than the longest only, and no request lives that long.
	_ = m.micros.RecordValue(max(1, took.Microseconds()))
}

// Fail counts one request that failed.
func (m *Meter) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.errors[codeOf(err)]++
	m.example = err
}

// Count is how many requests were observed.
func (m *Meter) Count() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.micros.TotalCount()
}

// PerSecond is the throughput over the measured time.
func (m *Meter) PerSecond() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seconds == 0 {
		return 0
	}
	return float64(m.micros.TotalCount()) / m.seconds
}

// Latency sums up what was observed.
func (m *Meter) Latency() Latency {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := func(percentile float64) time.Duration {
		return time.Duration(m.micros.ValueAtPercentile(percentile)) * time.Microsecond
	}
	return Latency{P50: at(50), P95: at(95), P99: at(99), Max: at(100)}
}

// Errors counts the failures by code, and gives the last of them as an example.
func (m *Meter) Errors() (byCode map[string]int64, example error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.errors), m.example
}

// measuredFor says over what time the throughput is.
func (m *Meter) measuredFor(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seconds = d.Seconds()
}
