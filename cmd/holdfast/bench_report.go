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

	"holdfast/cmd/holdfast/internal/floor"
	"holdfast/cmd/holdfast/internal/load"
)

// benchReport is all that a run of bench found, as --json writes it.
type benchReport struct {
	Started  time.Time        `json:"started"`
	Version  string           `json:"version"`
	Cores    int              `json:"cores"`
	Go       string           `json:"go"`
	Postgres string           `json:"postgres,omitempty"`
	Servers  int              `json:"servers"`
	Codec    string           `json:"codec"`
	HTTP     string           `json:"http"`
	Seconds  float64          `json:"seconds"` // measured, of each scenario
	Rows     []benchRow       `json:"rows"`
	Targets  []benchTargetMet `json:"targets"`
	Verified benchVerified    `json:"verified"`
	Skipped  []string         `json:"skipped,omitempty"`
}

// benchRow is what one scenario measured. A figure that could not be had is zero, and shown as a dash.
type benchRow struct {
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

// benchVerified counts what was found again after it had been acknowledged.
type benchVerified struct {
	Messages      int `json:"messages"`
	Conversations int `json:"conversations"`
}

// benchTargetMet compares a figure with what it should be.
type benchTargetMet struct {
	What   string  `json:"what"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Target float64 `json:"target"`
	// AtMost: the target is an upper bound; otherwise a lower one.
	AtMost bool `json:"at_most"`
	Met    bool `json:"met"`
}

func rowOf(name, what string, m *load.Meter) benchRow {
	l := m.Latency()
	r := benchRow{
		Name: name, What: what, Requests: m.Count(), PerSecond: m.PerSecond(),
		P50: millis(l.P50), P95: millis(l.P95), P99: millis(l.P99),
	}
	var example error
	if r.Errors, example = m.Errors(); example != nil {
		r.Example = example.Error()
	}
	return r
}

func rowOfFloor(name, what string, r floor.Result) benchRow {
	return benchRow{
		Name: name, What: what, Requests: r.Transactions, PerSecond: r.PerSecond,
		P50: millis(r.P50), P95: millis(r.P95), P99: millis(r.P99), GeneratorCPU: r.CPU.Seconds(),
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// benchTarget is a figure of a row, or its ratio to that of another, and what it should be.
type benchTarget struct {
	what       string
	row, toRow string
	figure     func(benchRow) float64
	unit       string
	target     float64
	upper      bool
}

// targets are what Holdfast should reach beside the database that it stands on, and at a steady rate. What was not
// measured has no target.
func targets(rows []benchRow) (met []benchTargetMet) {
	byName := make(map[string]benchRow, len(rows))
	for _, r := range rows {
		byName[r.Name] = r
	}
	throughput := func(r benchRow) float64 { return r.PerSecond }
	median := func(r benchRow) float64 { return r.P50 }
	worst := func(r benchRow) float64 { return r.P99 }
	all := []benchTarget{
		{"appends to own objects, 1,000 sessions, to pgbench's lock + update + insert", "append-1000", "floor-append-64", throughput, "x", 1.5, false},
		{"appends to one object, 64 writers, to pgbench's on one row", "hot-64", "floor-hot-64", throughput, "x", 5, false},
		{"acquisitions from one API's limits, 64 clients, to pgbench's lock-per-request on one row", "limit-64", "floor-hot-64", throughput, "x", 3, false},
		{"median of an append at rest, to pgbench's with one client", "append-1", "floor-append-1", median, "x", 2, true},
		{"reads, 64 clients, to pgbench's SELECTs", "read-64", "floor-read-64", throughput, "x", 0.35, false},
		{"p99 of reads at a steady rate", "open-1000/read", "", worst, "ms", 10, true},
		{"p99 of appends at a steady rate", "open-1000/append", "", worst, "ms", 20, true},
	}
	for _, k := range growKinds {
		all = append(all, benchTarget{k.name + ": median with 2 million messages, to that with 1 thousand", "grow-messages/2m/" + k.name, "grow-messages/1k/" + k.name, median, "x", growFlat, true})
	}
	for _, k := range growKinds {
		all = append(all, benchTarget{k.name + ": median with 1 million conversations, to that with 1 thousand", "grow-objects/1m/" + k.name, "grow-objects/1k/" + k.name, median, "x", growFlat, true})
	}
	for _, t := range all {
		row, ok := byName[t.row]
		value := t.figure(row)
		if t.toRow != "" {
			base := t.figure(byName[t.toRow])
			ok = ok && base > 0
			value /= base
		}
		if !ok || row.Requests == 0 {
			continue
		}
		m := benchTargetMet{What: t.what, Value: value, Unit: t.unit, Target: t.target, AtMost: t.upper, Met: value >= t.target}
		if t.upper {
			m.Met = value <= t.target
		}
		met = append(met, m)
	}
	if n, ok := streamsThatFit(rows); ok {
		met = append(met, benchTargetMet{What: "watchers that a server has room for in 128 MB", Value: float64(n), Unit: "streams", Target: streamsFirst, Met: n >= streamsFirst})
	}
	return met
}

var benchColumns = []string{
	"scenario", "what", "per second", "p50 ms", "p95 ms", "p99 ms", "server CPU s", "database CPU s", "generator CPU s", "others CPU s", "server RSS MiB", "errors",
}

func (r benchRow) cells() []string {
	errs := make([]string, 0, len(r.Errors))
	for _, code := range slices.Sorted(maps.Keys(r.Errors)) {
		errs = append(errs, fmt.Sprintf("%d %s", r.Errors[code], code))
	}
	return []string{
		r.Name, r.What, thousands(r.PerSecond), figure(r.P50), figure(r.P95), figure(r.P99),
		figure(r.ServerCPU), figure(r.DatabaseCPU), figure(r.GeneratorCPU), figure(r.OthersCPU), figure(r.ServerRSSMiB), cmp.Or(strings.Join(errs, ", "), "0"),
	}
}

var targetColumns = []string{"target", "measured", "wanted", ""}

func (t benchTargetMet) cells() []string {
	bound, mark := "at least ", "short"
	if t.AtMost {
		bound = "at most "
	}
	if t.Met {
		mark = "met"
	}
	unit := func(v float64) string { return strings.TrimSuffix(figure(v)+" "+t.Unit, " ") }
	return []string{t.What, unit(t.Value), bound + unit(t.Target), mark}
}

// write writes the report for a terminal, or as Markdown.
func (r *benchReport) write(w io.Writer, markdown bool) {
	rows := make([][]string, 0, len(r.Rows))
	for _, row := range r.Rows {
		rows = append(rows, row.cells())
	}
	met := make([][]string, 0, len(r.Targets))
	for _, t := range r.Targets {
		met = append(met, t.cells())
	}
	table := alignedTable
	if markdown {
		table = markdownTable
	}
	fmt.Fprintf(w, "%s\n\n", r.conditions())
	table(w, benchColumns, 2, rows)
	for _, of := range []struct {
		scenario string
		sizes    []growth
	}{{"grow-messages", growMessages}, {"grow-objects", growObjects}} {
		if columns, cells := growTable(of.scenario, of.sizes, r.Rows); len(cells) > 0 {
			fmt.Fprintln(w)
			table(w, columns, 2, cells)
		}
	}
	if len(met) > 0 {
		fmt.Fprintln(w)
		table(w, targetColumns, 1, met)
	}
	fmt.Fprintln(w)
	if r.Verified.Messages > 0 {
		fmt.Fprintf(w, "Verified: %s acknowledged messages in %s conversations, each there once, in order, without a gap.\n",
			thousands(float64(r.Verified.Messages)), thousands(float64(r.Verified.Conversations)))
	}
	if d := r.disturbance(); d > 0.05 {
		fmt.Fprintf(w, "Disturbed: others used up to %.0f%% of this machine's CPU in the meantime, so the figures are of a smaller one.\n", 100*d)
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(w, "Skipped: %s\n", s)
	}
}

// disturbance is the largest share of the machine's CPU that others used during a scenario.
func (r *benchReport) disturbance() (share float64) {
	for _, row := range r.Rows {
		share = max(share, row.OthersCPU/(r.Seconds*float64(r.Cores)))
	}
	return share
}

// conditions says in one line what the figures depend on.
func (r *benchReport) conditions() string {
	servers := "server"
	if r.Servers > 1 {
		servers = fmt.Sprintf("%d servers (CPU of all of them, RSS of the largest)", r.Servers)
	}
	parts := []string{fmt.Sprintf("%d cores shared by %s, database and generator", r.Cores, servers), r.Go}
	if r.Postgres != "" {
		parts = append(parts, r.Postgres)
	}
	parts = append(parts, "Holdfast "+r.Version, fmt.Sprintf("%s over HTTP/%s", r.Codec, r.HTTP), fmt.Sprintf("%g s measured each", r.Seconds), r.Started.UTC().Format(time.DateOnly))
	return strings.Join(parts, ", ") + "."
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
