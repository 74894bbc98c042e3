package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBenchTargets(t *testing.T) {
	t.Parallel()
	rows := []benchRow{
		{Name: "floor-append-64", Requests: 1, PerSecond: 10000},
		{Name: "append-1000", Requests: 1, PerSecond: 16000},
		{Name: "append-1", Requests: 1, P50: 0.5}, // its floor was not measured
		{Name: "floor-hot-64", Requests: 1, PerSecond: 3000},
		{Name: "hot-64", Requests: 1, PerSecond: 12000},
		{Name: "open-1000/read", Requests: 1, P99: 9.5},
		{Name: "open-1000/append", P99: 0}, // nothing was answered
		{Name: "grow-messages/1k/read", Requests: 1, P50: 0.2},
		{Name: "grow-messages/2m/read", Requests: 1, P50: 0.3},
		{Name: "streams/1000", Requests: 1, ServerRSSMiB: 110},
		{Name: "streams/1250", Requests: 1, ServerRSSMiB: 122},
		{Name: "streams/1500", Requests: 1, ServerRSSMiB: 122.1}, // more than 128 MB
		{Name: "streams/1750", Requests: 1, ServerRSSMiB: 120},
	}
	var got []string
	for _, m := range targets(rows) {
		got = append(got, strings.Join(m.cells(), " | "))
	}
	want := []string{
		"appends to own objects, 1,000 sessions, to pgbench's lock + update + insert | 1.60 x | at least 1.50 x | met",
		"appends to one object, 64 writers, to pgbench's on one row | 4.00 x | at least 5.00 x | short",
		"p99 of reads at a steady rate | 9.50 ms | at most 10.0 ms | met",
		"read: median with 2 million messages, to that with 1 thousand | 1.50 x | at most 1.25 x | short",
		"watchers that a server has room for in 128 MB | 1,250 streams | at least 1,000 streams | met",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestBenchReport(t *testing.T) {
	t.Parallel()
	r := &benchReport{
		Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Cores: 2, Go: "go1.26", Postgres: "Postgres 17.2",
		Version: "v1.2.3", Codec: "proto", HTTP: "1", Seconds: 5,
		Rows: []benchRow{
			{Name: "floor-commit-1", What: "pgbench", Requests: 9, PerSecond: 6925.4, P50: 0.144, P95: 1, P99: 104.2, DatabaseCPU: 1.5, GeneratorCPU: 12.34, OthersCPU: 2.5},
			{Name: "append-1", What: "append", Requests: 9, PerSecond: 1234567, ServerRSSMiB: 64, Errors: map[string]int64{"unavailable": 2, "aborted": 1}},
			{Name: "grow-objects/1k/read", What: "read", Requests: 9, PerSecond: 4000, P50: 0.25, P95: 1, P99: 1},
			{Name: "grow-objects/1m/read", What: "read", Requests: 9, PerSecond: 4000, P50: 0.26, P95: 1, P99: 1},
			{Name: "grow-objects/1m/list", What: "list", Requests: 9, PerSecond: 4000, P50: 0.26, P95: 1, P99: 1},
		},
		Verified: benchVerified{Messages: 12345, Conversations: 1000},
		Skipped:  []string{"append-tenants-1000: it needs --database-url"},
	}
	var b strings.Builder
	r.write(&b, true)
	want := `2 cores shared by server, database and generator, go1.26, Postgres 17.2, Holdfast v1.2.3, proto over HTTP/1, 5 s measured each, 2026-01-02.

| scenario | what | per second | p50 ms | p95 ms | p99 ms | server CPU s | database CPU s | generator CPU s | others CPU s | server RSS MiB | errors |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| floor-commit-1 | pgbench | 6,925 | 0.14 | 1.00 | 104 | – | 1.50 | 12.3 | 2.50 | – | 0 |
| append-1 | append | 1,234,567 | – | – | – | – | – | – | – | 64.0 | 1 aborted, 2 unavailable |
| grow-objects/1k/read | read | 4,000 | 0.25 | 1.00 | 1.00 | – | – | – | – | – | 0 |
| grow-objects/1m/read | read | 4,000 | 0.26 | 1.00 | 1.00 | – | – | – | – | – | 0 |
| grow-objects/1m/list | list | 4,000 | 0.26 | 1.00 | 1.00 | – | – | – | – | – | 0 |

| grow-objects | median ms | 1k | 1m |
| --- | --- | ---: | ---: |
| read | a read of one that it has | 0.25 | 0.26 |

Verified: 12,345 acknowledged messages in 1,000 conversations, each there once, in order, without a gap.
Disturbed: others used up to 25% of this machine's CPU in the meantime, so the figures are of a smaller one.
Skipped: append-tenants-1000: it needs --database-url
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	r.write(&b, false)
	if !strings.Contains(b.String(), "\nappend-1              append   1,234,567 ") {
		t.Errorf("the columns are not aligned:\n%s", b.String())
	}
}

func TestBenchChoose(t *testing.T) {
	t.Parallel()
	base := benchCmd{Duration: 5 * time.Second, MaxRequests: 1, Servers: 1, Scale: 1}
	names := func(c benchCmd) string {
		chosen, err := c.choose()
		if err != nil {
			return err.Error()
		}
		var all []string
		for _, s := range chosen {
			all = append(all, s.name)
		}
		return strings.Join(all, " ")
	}
	for _, tt := range []struct {
		name   string
		change func(*benchCmd)
		want   string
	}{
		{"two by name", func(c *benchCmd) { c.Only = "hot-64" }, "floor-hot-64 hot-64"},
		{"without pgbench", func(c *benchCmd) { c.Only, c.NoFloor = "hot-64", true }, "hot-64"},
		{"several servers", func(c *benchCmd) { c.Only, c.Servers = "^turns-64", 3 }, "turns-64"},
		{"one server", func(c *benchCmd) { c.Only = "^turns-64" }, "no scenario has such a name; --list shows them"},
		{"what grows needs pgbench", func(c *benchCmd) { c.Only, c.NoFloor = "^grow", true }, "no scenario has such a name; --list shows them"},
		{"optional by name", func(c *benchCmd) { c.Only = "^live-64" }, "live-64"},
		{"no such name", func(c *benchCmd) { c.Only = "nothing" }, "no scenario has such a name; --list shows them"},
		{"too long", func(c *benchCmd) { c.Duration = time.Hour }, "--duration is 1s to 10m0s, --warmup at most that"},
		{"no token", func(c *benchCmd) { c.API = "http://localhost" }, "--api needs --token: `holdfast key create` makes one"},
		{"no api", func(c *benchCmd) { c.ServerPID = 7 }, "--database-url, --pgbench-url, --admin, --server-pid and --database-pid go with --api"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := base
			tt.change(&c)
			if got := names(c); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if strings.Contains(names(base), "live-64") {
		t.Error("an optional scenario runs unasked")
	}
}

func TestLoopbackURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]bool{ // accepted as it is, accepted with --allow-remote
		"http://127.0.0.1:8080": {true, true},
		"http://[::1]:8080":     {true, true},
		"http://localhost":      {true, true},
		"http://10.0.0.1:8080":  {false, true},
		"http://example.com":    {false, true},
		"https://localhost":     {false, false},
		"localhost:8080":        {false, false},
		"":                      {false, false},
	} {
		for i, remote := range []bool{false, true} {
			if _, err := loopbackURL(text, remote); (err == nil) != want[i] {
				t.Errorf("%q, remote allowed %v: %v", text, remote, err)
			}
		}
	}
}

// dev starts a server for development.
func dev(t *testing.T) greeting {
	t.Helper()
	p := start(t, nil, "dev", "--ephemeral", "--json", "--addr", "127.0.0.1:0")
	var ready greeting
	if err := json.Unmarshal([]byte(p.await(t, p.stdout, `.+`)), &ready); err != nil {
		t.Fatal(err)
	}
	return ready
}

func TestBench(t *testing.T) {
	t.Parallel()
	server := dev(t)
	results := filepath.Join(t.TempDir(), "results.json")
	code, stdout, stderr := run(t, nil, "bench", "--api", server.API, "--token", server.Token,
		"--only", "^(append-64|append-tenants-1000|hot-64|live-64)$", "--duration", "60s", "--warmup", "0s", "--max-requests", "500", "--json", results)
	if code != 0 {
		t.Fatalf("ended with %d: %s", code, stderr)
	}
	for _, want := range []string{"append-64 ", "hot-64 ", "live-64 ", "Verified: 2,000 acknowledged messages in 129 conversations", "Skipped: append-tenants-1000: it needs --database-url"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in\n%s", want, stdout)
		}
	}
	text, err := os.ReadFile(results)
	if err != nil {
		t.Fatal(err)
	}
	var report benchReport
	if err := json.Unmarshal(text, &report); err != nil || len(report.Rows) != 3 || report.Rows[0].Requests != 500 {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestBenchRefused(t *testing.T) {
	t.Parallel()
	server := dev(t)
	code, _, stderr := run(t, nil, "bench", "--api", server.API, "--token", "not a key", "--only", "^append-1$")
	if code != 1 || !strings.Contains(stderr, "unauthenticated") {
		t.Errorf("ended with %d: %s", code, stderr)
	}
}

func TestListenToServer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, log string
		want      benchServerSaid
		wantErr   string
	}{
		{
			name: "ready",
			log:  "not JSON\n" + `{"msg":"metrics and profiles","url":"http://admin"}` + "\n" + `{"msg":"ready","api":"http://api"}` + "\n" + `{"msg":"more"}` + "\n",
			want: benchServerSaid{api: "http://api", admin: "http://admin"},
		},
		{name: "ended", log: `{"msg":"metrics and profiles","url":"http://admin"}` + "\nholdfast: no database\n", wantErr: "the server did not start: holdfast: no database"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			said := make(chan benchServerSaid, 2)
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
