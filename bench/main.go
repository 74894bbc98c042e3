// Command bench measures Holdfast under load, next to pgbench on the same Postgres. docs/performance.md says how to read
// what it prints.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"holdfast/bench/internal/floor"
	"holdfast/bench/internal/load"
)

type options struct {
	Only     string        `help:"Run only the scenarios whose name matches this regular expression." placeholder:"REGEX"`
	List     bool          `help:"List the scenarios and run none."`
	Duration time.Duration `help:"How long each scenario is measured: 1s to 10m." default:"5s"`
	Warmup   time.Duration `help:"How long each scenario runs before it is measured." default:"1s"`
	Rounds   int           `help:"How often all scenarios run; the median round is shown." default:"1"`
	Codec    string        `help:"Encoding of unary calls: json or proto." enum:"json,proto" default:"json"`
	Server   string        `help:"The holdfast binary to measure. Default: build this checkout's." placeholder:"PATH"`
	Against  string        `help:"Another holdfast binary: each scenario runs on both in turn, and the ratio is shown." placeholder:"PATH"`
	Soak     time.Duration `help:"Instead of the scenarios, run three servers under mixed work and faults for so long, 30s to 24h: memory has to stay flat, and nothing may be lost." placeholder:"DURATION"`

	JSON     string `help:"Also write the results to this file as JSON." name:"json" placeholder:"FILE"`
	Markdown bool   `help:"Print the results as Markdown."`
	Pprof    string `help:"Write a CPU profile of the server during each scenario to this directory." placeholder:"DIR"`
}

const maxDuration = 10 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	var o options
	kong.Parse(&o, kong.Name("bench"), kong.Description("Measure Holdfast under load, next to pgbench on the same Postgres."))
	if err := o.run(ctx, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run runs the scenarios. It returns an error when they cannot run, or when something that was acknowledged is not found
// again; a figure short of its target is no error.
func (o *options) run(ctx context.Context, out, log io.Writer) (err error) {
	if o.List {
		for _, s := range scenarios {
			fmt.Fprintf(out, "%-18s %s\n", s.name, s.what)
		}
		return nil
	}
	chosen, err := o.choose()
	if err != nil {
		return err
	}
	b := &bench{options: *o, began: time.Now(), log: log}
	b.report = &report{Started: b.began, Cores: runtime.NumCPU(), Go: runtime.Version(), Codec: o.Codec, Seconds: o.Duration.Seconds(), Rounds: o.Rounds}
	defer func() { err = errors.Join(err, b.close(ctx)) }()
	if err := b.open(ctx); err != nil {
		return err
	}
	if o.Soak != 0 {
		err = b.soak(ctx)
	} else {
		err = b.measure(ctx, chosen)
	}
	if len(b.report.Rows) > 0 {
		b.report.finish()
		b.report.write(out, o.Markdown)
		if o.JSON != "" {
			err = errors.Join(err, writeJSON(o.JSON, b.report))
		}
	}
	return err
}

// choose checks the flags and returns the scenarios to run.
func (o *options) choose() ([]scenario, error) {
	switch {
	case o.Duration < time.Second || o.Duration > maxDuration || o.Warmup < 0 || o.Warmup > maxDuration:
		return nil, fmt.Errorf("--duration is 1s to %v, --warmup at most that", maxDuration)
	case o.Rounds < 1 || o.Rounds > 100:
		return nil, errors.New("--rounds is 1 to 100")
	case o.Soak != 0 && (o.Soak < 30*time.Second || o.Soak > 24*time.Hour || o.Against != ""):
		return nil, errors.New("--soak is 30s to 24h, and does not go with --against")
	}
	only, err := regexp.Compile(o.Only)
	if err != nil {
		return nil, fmt.Errorf("--only: %w", err)
	}
	var chosen []scenario
	for _, s := range scenarios {
		if only.MatchString(s.name) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil, errors.New("no scenario has such a name; --list shows them")
	}
	return chosen, nil
}

// bench is one run.
type bench struct {
	options

	systems []*system    // the one to measure, and the one to measure it against
	floor   *floor.Floor // on the first system's Postgres
	began   time.Time
	report  *report
	log     io.Writer // progress, for people
	closers []func(context.Context) error
}

// open starts the systems.
func (b *bench) open(ctx context.Context) error {
	binaries := []string{b.Server}
	if b.Server == "" {
		fmt.Fprintln(b.log, "building the server")
		built, err := b.build(ctx)
		if err != nil {
			return err
		}
		binaries[0] = built
	}
	if b.Against != "" {
		binaries = append(binaries, b.Against)
	}
	for i, binary := range binaries {
		fmt.Fprintln(b.log, "starting Postgres and", binary)
		s := &system{name: [...]string{"", "against"}[i], binary: binary, pprof: b.Pprof}
		b.closers = append(b.closers, s.close)
		b.systems = append(b.systems, s)
		servers := 1
		if b.Soak != 0 {
			servers = soakServers
		}
		if err := s.start(ctx, servers, load.Codec(b.Codec)); err != nil {
			return err
		}
		version, err := s.command(ctx, "version")
		if err != nil {
			return err
		}
		b.report.Versions = append(b.report.Versions, strings.TrimSpace(version))
	}
	if b.Soak != 0 {
		return nil
	}
	var err error
	if b.floor, err = floor.Open(ctx, b.systems[0].postgres.BinDir(), b.systems[0].postgres.AdminURL()); err != nil {
		return err
	}
	b.closers = append(b.closers, b.floor.Close)
	b.report.Postgres, err = b.floor.Version(ctx)
	return err
}

// build builds the holdfast binary of this checkout.
func (b *bench) build(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return "", err
	}
	b.closers = append(b.closers, func(context.Context) error { return os.RemoveAll(dir) })
	binary := dir + "/holdfast"
	cmd := exec.CommandContext(ctx, "go", "build", "-C", "..", "-o", binary, "./cmd/holdfast")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the server (run bench from its own directory, or give --server): %w\n%s", err, out)
	}
	return binary, nil
}

// close ends what open started, the last thing first.
func (b *bench) close(ctx context.Context) (err error) {
	ctx = context.WithoutCancel(ctx)
	for i := len(b.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, b.closers[i](ctx))
	}
	return err
}

func (b *bench) measure(ctx context.Context, chosen []scenario) error {
	for round := range b.Rounds {
		for _, s := range chosen {
			systems := b.systems
			if s.floor != "" {
				systems = systems[:1]
			}
			for _, sys := range systems {
				fmt.Fprintf(b.log, "%d/%d %-18s %s %s\n", round+1, b.Rounds, s.name, s.what, sys.name)
				writeBack(ctx)
				rows, err := s.run(ctx, b, sys, s)
				for _, r := range rows {
					r.System, r.Round = sys.name, round
					b.report.Rows = append(b.report.Rows, r)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
			}
		}
	}
	return nil
}

// writeBack makes the kernel write what earlier scenarios left unwritten. By itself it does so half a minute later, all at
// once (150 MB were seen), and commits wait for 30 ms behind it.
func writeBack(ctx context.Context) {
	_ = exec.CommandContext(ctx, "sync").Run() // without it only a figure suffers
}

func (b *bench) workload(workers int, observe func(context.Context) func()) load.Workload {
	return load.Workload{Workers: workers, Warmup: b.Warmup, Duration: b.Duration, Observe: observe}
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644) //nolint:gosec // results are no secret
}
