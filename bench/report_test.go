package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTargets(t *testing.T) {
	t.Parallel()
	r := &report{Rows: []row{
		{Name: "floor-append-64", Requests: 1, PerSecond: 10000},
		{Name: "append-1000", Requests: 1, PerSecond: 16000},
		{Name: "append-1000", System: "against", Requests: 1, PerSecond: 8000, P50: 2, P99: 4},
		{Name: "append-1", Requests: 1, PerSecond: 0.5}, // its floor was not measured
		{Name: "floor-hot-64", Requests: 1, PerSecond: 3000},
		{Name: "hot-64", Requests: 1, PerSecond: 12000},
		{Name: "steady-1000/read", Requests: 1, P99: 9.5},
		{Name: "steady-1000/append", P99: 0}, // nothing was answered
	}}
	r.finish()
	var got []string
	for _, m := range append(r.Targets, r.Against[0]) {
		got = append(got, strings.Join(m.cells(), " | "))
	}
	want := []string{
		"appends to own objects, 1,000 sessions, to pgbench's with 64 clients | 1.60 x | at least 1.60 x | met",
		"appends to one object, 64 writers, to pgbench's on one row | 4.00 x | at least 6.00 x | short",
		"p99 of reads at a steady rate | 9.50 ms | at most 10.0 ms | met",
		"append-1000: per second | 2.00 x",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTheMedianRoundIsShown(t *testing.T) {
	t.Parallel()
	got := medians([]row{
		{Name: "a", P50: 3, Round: 0}, {Name: "b", P50: 1}, {Name: "a", P50: 1, Round: 1}, {Name: "a", System: "against", P50: 9}, {Name: "a", P50: 2, Round: 2},
	})
	want := []row{{Name: "a", P50: 2, Round: 2}, {Name: "b", P50: 1}, {Name: "a", System: "against", P50: 9}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	r := &report{
		Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Cores: 2, Go: "go1.26", Postgres: "Postgres 17.2",
		Versions: []string{"holdfast v1.2.3", "holdfast v1.2.2"}, Codec: "json", Seconds: 5, Rounds: 3,
		Rows: []row{
			{Name: "floor-append-1", What: "pgbench", Requests: 9, PerSecond: 6925.4, P50: 0.144, P95: 1, P99: 104.2, DatabaseCPU: 1.5, GeneratorCPU: 12.34, OthersCPU: 2.5},
			{Name: "append-64", What: "append", Requests: 9, PerSecond: 1234567, ServerRSSMiB: 64, Errors: map[string]int64{"unavailable": 2, "aborted": 1}},
			{Name: "append-64", System: "against", What: "append", Requests: 9, PerSecond: 617283.5, P50: 1, P99: 2},
		},
		Verified: verified{Messages: 12345, Conversations: 1000},
	}
	r.finish()
	var b strings.Builder
	r.write(&b, true)
	want := `2 cores shared by server, database and generator, go1.26, Postgres 17.2, holdfast v1.2.3 against holdfast v1.2.2, json over HTTP/1.1, 5 s measured each, the median of 3 rounds, 2026-01-02.

| scenario | what | per second | p50 ms | p95 ms | p99 ms | server CPU s | database CPU s | generator CPU s | others CPU s | server RSS MiB | errors |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| floor-append-1 | pgbench | 6,925 | 0.14 | 1.00 | 104 | – | 1.50 | 12.3 | 2.50 | – | 0 |
| append-64 | append | 1,234,567 | – | – | – | – | – | – | – | 64.0 | 1 aborted, 2 unavailable |
| append-64 against | append | 617,284 | 1.00 | – | 2.00 | – | – | – | – | – | 0 |

| to the other server | ratio |
| --- | ---: |
| append-64: per second | 2.00 x |
| append-64: p50 | – x |
| append-64: p99 | – x |

Verified: 12,345 acknowledged messages in 1,000 conversations, each there once, in order, without a gap.
Disturbed: others used up to 25% of this machine's CPU in the meantime, so the figures are of a smaller one.
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	r.write(&b, false)
	if !strings.Contains(b.String(), "\nappend-64          append   1,234,567 ") {
		t.Errorf("the columns are not aligned:\n%s", b.String())
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*options)
		want   string
	}{
		{"two by name", func(o *options) { o.Only = "hot-64" }, "floor-hot-64 hot-64"},
		{"no such name", func(o *options) { o.Only = "nothing" }, "no scenario has such a name; --list shows them"},
		{"too long", func(o *options) { o.Duration = time.Hour }, "--duration is 1s to 10m0s, --warmup at most that"},
		{"no round", func(o *options) { o.Rounds = 0 }, "--rounds is 1 to 100"},
		{"short soak", func(o *options) { o.Soak = time.Second }, "--soak is 30s to 24h, and does not go with --against"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := options{Duration: 5 * time.Second, Rounds: 1}
			tt.change(&o)
			chosen, err := o.choose()
			var all []string
			for _, s := range chosen {
				all = append(all, s.name)
			}
			if err != nil {
				all = []string{err.Error()}
			}
			if got := strings.Join(all, " "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// The whole way, as briefly as it goes: builds the server, starts it, measures, verifies.
func TestBench(t *testing.T) {
	t.Parallel()
	var out, log strings.Builder
	o := options{Only: "^(append-64|hot-64|floor-hot-64|limit-64|live-1000)$", Duration: time.Second, Rounds: 1, Codec: "json"}
	if err := o.run(t.Context(), &out, &log); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	for _, want := range []string{"append-64 ", "floor-hot-64 ", "limit-64 ", "live-1000 ", "Verified: "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}

func TestListenToServer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, log string
		want      serverSaid
		wantErr   string
	}{
		{
			name: "ready",
			log:  "not JSON\n" + `{"msg":"metrics and profiles","url":"http://admin"}` + "\n" + `{"msg":"ready","api":"http://api"}` + "\n" + `{"msg":"more"}` + "\n",
			want: serverSaid{api: "http://api", admin: "http://admin"},
		},
		{name: "ended", log: `{"msg":"metrics and profiles","url":"http://admin"}` + "\nholdfast: no database\n", wantErr: "the server did not start: holdfast: no database"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			said := make(chan serverSaid, 2)
			listenToServer(strings.NewReader(tt.log), said)
			got := <-said
			if tt.wantErr != "" {
				if got.err == nil || got.err.Error() != tt.wantErr {
					t.Errorf("got %v, want %q", got.err, tt.wantErr)
				}
				return
			}
			if got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}
