package floor

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const summary = `transaction type: append.sql
scaling factor: 1
number of clients: 64
number of transactions actually processed: 62190
number of failed transactions: 0 (0.000%)
latency average = 5.042 ms
initial connection time = 99.010 ms
tps = 12693.880213 (without initial connection time)
`

func TestParseSummary(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, out string
		want      Result
		wantErr   string
	}{
		{name: "time", out: summary, want: Result{Transactions: 62190, PerSecond: 12693.880213}},
		{name: "count", out: strings.Replace(summary, ": 62190", ": 62190/62190", 1), want: Result{Transactions: 62190, PerSecond: 12693.880213}},
		{name: "none", out: "number of transactions actually processed: 0\nnumber of failed transactions: 0 (NaN%)\n"},
		{name: "no rate", out: "number of transactions actually processed: 7\n", wantErr: "not understood"},
		{name: "failures", out: strings.Replace(summary, ": 0 (0.000%)", ": 12 (0.019%)", 1), wantErr: "12 transactions failed"},
		{name: "something else", out: "pgbench: usage", wantErr: "not understood"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseSummary(tt.out)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("got %v, want %q", err, tt.wantErr)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("%+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestParseLog(t *testing.T) {
	t.Parallel()
	got, err := parseLog(nil, []byte("0 1 76947 0 1795394994 773655\n1 1 12 0 1795394994 773668\n"))
	if want := []time.Duration{76947 * time.Microsecond, 12 * time.Microsecond}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"0 1\n", "0 1 failed 0 1 2\n"} {
		if _, err := parseLog(nil, []byte(bad)); err == nil {
			t.Errorf("%q is taken for a log", bad)
		}
	}
}

func TestPercentile(t *testing.T) {
	t.Parallel()
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, tt := range []struct {
		sorted []time.Duration
		p      int
		want   time.Duration
	}{{nil, 50, 0}, {hundred[:1], 99, 1}, {hundred, 50, 50}, {hundred, 99, 99}, {hundred[:10], 95, 10}} {
		if got := percentile(tt.sorted, tt.p); got != tt.want {
			t.Errorf("p%d of %d: %d, want %d", tt.p, len(tt.sorted), got, tt.want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for out, want := range map[string]string{
		"pgbench (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": "Postgres 15.18",
		"pgbench (PostgreSQL) 18beta1\n":                        "Postgres 18beta1",
		"":                                                      "",
	} {
		if got := parseVersion(out); got != want {
			t.Errorf("%q: %q, want %q", out, got, want)
		}
	}
}

func TestSeconds(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{time.Millisecond: "1", 1500 * time.Millisecond: "2", time.Minute: "60"} {
		if got := seconds(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
