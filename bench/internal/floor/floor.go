// Package floor measures with pgbench what the same Postgres does without Holdfast: the floor that Holdfast's own
// figures stand on. It keeps its tables in a schema of its own, bench_floor, and removes it when done.
package floor

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed sql/*.sql
var scripts embed.FS

// Script is something that pgbench repeats.
type Script string

// The scripts, files in sql/.
const (
	AppendOwn Script = "append_own" // lock, update and insert as one function, over 1,000 objects
	AppendHot Script = "append_hot" // the same, on one object
	Read      Script = "read"       // the scope, a state and its last 20 entries, as one pipeline
)

// Result is what one run of pgbench measured.
type Result struct {
	Transactions  int64
	PerSecond     float64
	P50, P95, P99 time.Duration
	// CPU that pgbench itself used.
	CPU time.Duration
}

// Floor is a database that is ready for pgbench. It is not safe for concurrent use: its runs would measure each other.
type Floor struct {
	program  string
	database string // a connection string without the password, which every user of the machine can see
	password string
	dir      string
}

// Open finds pgbench, in binDir or else in PATH, and makes the schema bench_floor. databaseURL is that of a login that may
// create a schema.
func Open(ctx context.Context, binDir, databaseURL string) (*Floor, error) {
	program, err := exec.LookPath(filepath.Join(binDir, "pgbench"))
	if err != nil {
		if program, err = exec.LookPath("pgbench"); err != nil {
			return nil, errors.New("pgbench is not there; it comes with Postgres's client programs, such as the package postgresql-contrib")
		}
	}
	u, err := url.Parse(databaseURL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errors.New("the database URL does not start with postgres://")
	}
	f := &Floor{program: program}
	if u.User != nil {
		f.password, _ = u.User.Password()
		u.User = url.User(u.User.Username())
	}
	f.database = u.String()
	if f.dir, err = os.MkdirTemp("", "holdfast-floor-"); err != nil {
		return nil, err
	}
	if err := f.prepare(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(f.dir))
	}
	return f, nil
}

func (f *Floor) prepare(ctx context.Context) error {
	files, err := fs.Sub(scripts, "sql")
	if err != nil {
		return err
	}
	if err := os.CopyFS(f.dir, files); err != nil {
		return err
	}
	_, _, err = f.pgbench(ctx, "--protocol=simple", "--transactions=1", "--file="+f.file("setup"))
	return err
}

// Close removes the schema.
func (f *Floor) Close(ctx context.Context) error {
	_, _, err := f.pgbench(ctx, "--protocol=simple", "--transactions=1", "--file="+f.file("cleanup"))
	return errors.Join(err, os.RemoveAll(f.dir))
}

// Run repeats a script with so many clients for warmup, which is not measured, and for duration. observe is called when
// the measured time begins, and what it returns when that time ends; it may be nil.
func (f *Floor) Run(ctx context.Context, s Script, clients int, warmup, duration time.Duration, observe func(ctx context.Context) (stop func())) (Result, error) {
	args := func(d time.Duration, more ...string) []string {
		return append(more, "--protocol=prepared", "--client="+strconv.Itoa(clients), "--jobs="+strconv.Itoa(min(2, clients)),
			"--file="+f.file(string(s)), "--time="+seconds(d))
	}
	if warmup > 0 {
		if _, _, err := f.pgbench(ctx, args(warmup)...); err != nil {
			return Result{}, err
		}
	}
	logs := filepath.Join(f.dir, "log")
	stop := func() {}
	if observe != nil {
		stop = observe(ctx)
	}
	out, cpu, err := f.pgbench(ctx, args(duration, "--log", "--log-prefix="+logs)...)
	stop()
	if err != nil {
		return Result{}, err
	}
	res, err := parseSummary(out)
	if err != nil {
		return Result{}, err
	}
	res.CPU = cpu
	latencies, err := takeLogs(logs)
	if err != nil {
		return Result{}, err
	}
	slices.Sort(latencies)
	res.P50, res.P95, res.P99 = percentile(latencies, 50), percentile(latencies, 95), percentile(latencies, 99)
	return res, nil
}

// Version is pgbench's own, such as "Postgres 17.2": the one that came with the server, as a rule.
func (f *Floor) Version(ctx context.Context) (string, error) {
	out, _, err := f.pgbench(ctx, "--version")
	return parseVersion(out), err
}

func (f *Floor) file(name string) string { return filepath.Join(f.dir, name+".sql") }

// pgbench runs it and returns what it wrote and the CPU that it used.
func (f *Floor) pgbench(ctx context.Context, args ...string) (string, time.Duration, error) {
	cmd := exec.CommandContext(ctx, f.program, append(args, "--no-vacuum", f.database)...) //nolint:gosec // the operator's own pgbench
	cmd.Env = append(os.Environ(), "PGPASSWORD="+f.password, "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", 0, fmt.Errorf("pgbench: %w: %s", err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// seconds is a duration as pgbench takes it: whole seconds, at least one.
func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int(d.Round(time.Second)/time.Second)))
}

var (
	processedLine = regexp.MustCompile(`(?m)^number of transactions actually processed: (\d+)`)
	tpsLine       = regexp.MustCompile(`(?m)^tps = ([0-9.]+) \(without initial connection time\)`)
	failedLine    = regexp.MustCompile(`(?m)^number of failed transactions: ([1-9]\d*)`)
)

// parseVersion reads "pgbench (PostgreSQL) 17.2 (Debian 17.2-1)".
func parseVersion(out string) string {
	_, version, _ := strings.Cut(out, "(PostgreSQL) ")
	fields := strings.Fields(version)
	if len(fields) == 0 {
		return ""
	}
	return "Postgres " + fields[0]
}

// parseSummary reads what pgbench prints at its end.
func parseSummary(out string) (r Result, err error) {
	if m := failedLine.FindStringSubmatch(out); m != nil {
		return r, fmt.Errorf("pgbench: %s transactions failed", m[1])
	}
	processed, tps := processedLine.FindStringSubmatch(out), tpsLine.FindStringSubmatch(out)
	if processed == nil {
		return r, fmt.Errorf("pgbench: its summary is not understood: %q", out)
	}
	if r.Transactions, err = strconv.ParseInt(processed[1], 10, 64); err != nil || r.Transactions == 0 {
		return r, err // where nothing was done there is no rate
	}
	if tps == nil {
		return r, fmt.Errorf("pgbench: its summary is not understood: %q", out)
	}
	r.PerSecond, err = strconv.ParseFloat(tps[1], 64)
	return r, err
}

// takeLogs reads the latencies from the logs with that prefix, one a thread, and removes them.
func takeLogs(prefix string) ([]time.Duration, error) {
	files, err := filepath.Glob(prefix + ".*")
	if err != nil {
		return nil, err
	}
	var all []time.Duration
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if all, err = parseLog(all, b); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
		if err := os.Remove(name); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// parseLog appends the latencies of one log: a line a transaction, the third field its microseconds.
func parseLog(all []time.Duration, log []byte) ([]time.Duration, error) {
	lines := bufio.NewScanner(bytes.NewReader(log))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			return nil, fmt.Errorf("not a line of pgbench's log: %q", lines.Text())
		}
		micros, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("not a line of pgbench's log: %q", lines.Text())
		}
		all = append(all, time.Duration(micros)*time.Microsecond)
	}
	return all, lines.Err()
}

// percentile of a sorted list, by nearest rank. 0 where it is empty.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := (len(sorted)*p + 99) / 100
	return sorted[max(0, rank-1)]
}
