package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"holdfast/bench/internal/floor"
	"holdfast/bench/internal/load"
)

// report is all that a run of bench found, as --json writes it.
type report struct {
	Started  time.Time `json:"started"`
	Versions []string  `json:"versions"` // of the server, and of the one that it is measured against
	Cores    int       `json:"cores"`
	Go       string    `json:"go"`
	Postgres string    `json:"postgres,omitempty"`
	Codec    string    `json:"codec"`
	Seconds  float64   `json:"seconds"` // measured, of each scenario in each round
	Rounds   int       `json:"rounds"`
	Rows     []row     `json:"rows"`
	Targets  []result  `json:"targets"`
	Against  []result  `json:"against,omitempty"`
	Verified verified  `json:"verified"`
}

// row is what one scenario measured. A figure that could not be had is zero, and shown as a dash.
type row struct {
	System    string  `json:"system,omitempty"` // empty: the server to measure
	Round     int     `json:"round"`
	Name      string  `json:"name"`
	What      string  `json:"what"`
	Requests  int64   `json:"requests"`
	PerSecond float64 `json:"per_second"`
	// Latencies, in milliseconds.
	P50 float64 `json:"p50_ms"`
	P95 float64 `json:"p95_ms"`
	P99 float64 `json:"p99_ms"`
	// CPU seconds within the measured time, of all servers.
	ServerCPU    float64 `json:"server_cpu_seconds,omitzero"`
	DatabaseCPU  float64 `json:"database_cpu_seconds,omitzero"`
	GeneratorCPU float64 `json:"generator_cpu_seconds,omitzero"`
	OthersCPU    float64 `json:"others_cpu_seconds,omitzero"` // of everybody else on the machine
	// The most memory that any of the servers had in RAM.
	ServerRSSMiB float64          `json:"server_rss_mib,omitzero"`
	Errors       map[string]int64 `json:"errors,omitempty"`
	Example      string           `json:"example,omitempty"` // one of the errors
}

// verified counts what was found again after it had been acknowledged.
type verified struct {
	Messages      int `json:"messages"`
	Conversations int `json:"conversations"`
}

// result compares a figure with a target, or with the other server's.
type result struct {
	What   string  `json:"what"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Target float64 `json:"target,omitzero"`
	// AtMost: the target is an upper bound; otherwise a lower one.
	AtMost bool `json:"at_most,omitempty"`
	Met    bool `json:"met"`
}

func rowOf(name, what string, m *load.Meter) row {
	l := m.Latency()
	r := row{
		Name: name, What: what, Requests: m.Count(), PerSecond: m.PerSecond(),
		P50: millis(l.P50), P95: millis(l.P95), P99: millis(l.P99),
	}
	var example error
	if r.Errors, example = m.Errors(); example != nil {
		r.Example = example.Error()
	}
	return r
}

func rowOfFloor(s scenario, r floor.Result) row {
	return row{
		Name: s.name, What: s.what, Requests: r.Transactions, PerSecond: r.PerSecond,
		P50: millis(r.P50), P95: millis(r.P95), P99: millis(r.P99),
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// medians keeps one row of each scenario and system: of all rounds, the one whose median latency is the middle one.
func medians(rows []row) (out []row) {
	type key struct{ system, name string }
	rounds := map[key][]row{}
	for _, r := range rows {
		rounds[key{r.System, r.Name}] = append(rounds[key{r.System, r.Name}], r)
	}
	for _, r := range rows {
		k := key{r.System, r.Name}
		all := rounds[k]
		if all == nil {
			continue
		}
		slices.SortFunc(all, func(a, b row) int { return cmp.Compare(a.P50, b.P50) })
		out = append(out, all[(len(all)-1)/2])
		delete(rounds, k)
	}
	return out
}

// target is a figure of a row, or its ratio to that of another, and what it should be.
type target struct {
	what       string
	row, toRow string
	figure     func(row) float64
	unit       string
	target     float64
	upper      bool
}

func throughput(r row) float64 { return r.PerSecond }
func median(r row) float64     { return r.P50 }
func worst(r row) float64      { return r.P99 }

// targets are what Holdfast should reach next to the database that it stands on, and at a steady rate.
var targets = []target{
	{"appends to own objects, 1,000 sessions, to pgbench's with 64 clients", "append-1000", "floor-append-64", throughput, "x", 1.6, false},
	{"appends to own objects, 64 sessions, to pgbench's", "append-64", "floor-append-64", throughput, "x", 1.4, false},
	{"appends by one client, to pgbench's", "append-1", "floor-append-1", throughput, "x", 0.5, false},
	{"appends to one object, 64 writers, to pgbench's on one row", "hot-64", "floor-hot-64", throughput, "x", 6, false},
	{"acquisitions from one API's limits, 64 clients, to pgbench's on one row", "limit-64", "floor-hot-64", throughput, "x", 3, false},
	{"reads, 64 clients, to pgbench's SELECTs", "read-64", "floor-read-64", throughput, "x", 0.6, false},
	{"p99 of reads at a steady rate", "steady-1000/read", "", worst, "ms", 10, true},
	{"p99 of appends at a steady rate", "steady-1000/append", "", worst, "ms", 20, true},
}

// finish compares the medians with the targets, and with those of the other server. What was not measured has no target.
func (r *report) finish() {
	rows := medians(r.Rows)
	find := func(system, name string) (row, bool) {
		i := slices.IndexFunc(rows, func(r row) bool { return r.System == system && r.Name == name })
		if i < 0 || rows[i].Requests == 0 {
			return row{}, false
		}
		return rows[i], true
	}
	for _, t := range targets {
		measured, ok := find("", t.row)
		value := t.figure(measured)
		if t.toRow != "" {
			base, there := find("", t.toRow)
			ok = ok && there
			value /= t.figure(base)
		}
		if ok {
			met := value >= t.target
			if t.upper {
				met = value <= t.target
			}
			r.Targets = append(r.Targets, result{t.what, value, t.unit, t.target, t.upper, met})
		}
	}
	for _, it := range rows {
		if other, ok := find("against", it.Name); ok && it.System == "" && it.Requests > 0 {
			r.Against = append(r.Against,
				result{What: it.Name + ": per second", Value: throughput(it) / throughput(other), Unit: "x"},
				result{What: it.Name + ": p50", Value: median(it) / median(other), Unit: "x"},
				result{What: it.Name + ": p99", Value: worst(it) / worst(other), Unit: "x"})
		}
	}
}

var rowColumns = []string{
	"scenario", "what", "per second", "p50 ms", "p95 ms", "p99 ms", "server CPU s", "database CPU s", "generator CPU s", "others CPU s", "server RSS MiB", "errors",
}

func (r row) cells() []string {
	errs := make([]string, 0, len(r.Errors))
	for _, code := range slices.Sorted(maps.Keys(r.Errors)) {
		errs = append(errs, fmt.Sprintf("%d %s", r.Errors[code], code))
	}
	return []string{
		strings.TrimSpace(r.Name + " " + r.System), r.What, thousands(r.PerSecond), figure(r.P50), figure(r.P95), figure(r.P99),
		figure(r.ServerCPU), figure(r.DatabaseCPU), figure(r.GeneratorCPU), figure(r.OthersCPU), figure(r.ServerRSSMiB), cmp.Or(strings.Join(errs, ", "), "0"),
	}
}

func (t result) cells() []string {
	value := strings.TrimSuffix(figure(t.Value)+" "+t.Unit, " ")
	if t.Target == 0 {
		return []string{t.What, value}
	}
	bound, mark := "at least ", "short"
	if t.AtMost {
		bound = "at most "
	}
	if t.Met {
		mark = "met"
	}
	return []string{t.What, value, strings.TrimSuffix(bound+figure(t.Target)+" "+t.Unit, " "), mark}
}

// write writes the report for a terminal, or as Markdown.
func (r *report) write(w io.Writer, markdown bool) {
	table := alignedTable
	if markdown {
		table = markdownTable
	}
	fmt.Fprintf(w, "%s\n\n", r.conditions())
	cells := make([][]string, 0, len(r.Rows))
	for _, it := range medians(r.Rows) {
		cells = append(cells, it.cells())
	}
	table(w, rowColumns, 2, cells)
	for _, of := range []struct {
		columns []string
		results []result
	}{{[]string{"target", "measured", "wanted", ""}, r.Targets}, {[]string{"to the other server", "ratio"}, r.Against}} {
		if len(of.results) == 0 {
			continue
		}
		cells := make([][]string, 0, len(of.results))
		for _, it := range of.results {
			cells = append(cells, it.cells())
		}
		fmt.Fprintln(w)
		table(w, of.columns, 1, cells)
	}
	fmt.Fprintln(w)
	if r.Verified.Messages > 0 {
		fmt.Fprintf(w, "Verified: %s acknowledged messages in %s conversations, each there once, in order, without a gap.\n",
			thousands(float64(r.Verified.Messages)), thousands(float64(r.Verified.Conversations)))
	}
	if d := r.disturbance(); d > 0.05 {
		fmt.Fprintf(w, "Disturbed: others used up to %.0f%% of this machine's CPU in the meantime, so the figures are of a smaller one.\n", 100*d)
	}
}

// disturbance is the largest share of the machine's CPU that others used during a scenario.
func (r *report) disturbance() (share float64) {
	for _, it := range r.Rows {
		share = max(share, it.OthersCPU/(r.Seconds*float64(r.Cores)))
	}
	return share
}

// conditions says in one line what the figures depend on.
func (r *report) conditions() string {
	parts := []string{fmt.Sprintf("%d cores shared by server, database and generator", r.Cores), r.Go}
	if r.Postgres != "" {
		parts = append(parts, r.Postgres)
	}
	parts = append(parts, strings.Join(r.Versions, " against "), r.Codec+" over HTTP/1.1")
	measured := fmt.Sprintf("%g s measured each", r.Seconds)
	if r.Rounds > 1 {
		measured += fmt.Sprintf(", the median of %d rounds", r.Rounds)
	}
	return strings.Join(append(parts, measured, r.Started.UTC().Format(time.DateOnly)), ", ") + "."
}

// markdownTable writes a table whose first left columns are text and whose others are figures.
func markdownTable(w io.Writer, columns []string, left int, rows [][]string) {
	line := func(cells []string) { fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | ")) }
	rule := make([]string, len(columns))
	for i := range rule {
		rule[i] = "---"
		if i >= left {
			rule[i] = "---:"
		}
	}
	line(columns)
	line(rule)
	for _, r := range rows {
		line(r)
	}
}

// alignedTable is markdownTable for a terminal.
func alignedTable(w io.Writer, columns []string, _ int, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(columns, "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush() // fails as Fprint does: the terminal is gone
}

// figure shows a number with three digits that mean something; zero is a dash.
func figure(v float64) string {
	switch {
	case v == 0:
		return "–"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return thousands(v)
	}
}

// thousands shows a whole number with commas.
func thousands(v float64) string {
	digits := strconv.FormatFloat(v, 'f', 0, 64)
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return b.String()
}
