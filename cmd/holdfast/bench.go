package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"time"

	"holdfast/cmd/holdfast/internal/floor"
	"holdfast/cmd/holdfast/internal/load"
)

// benchCmd is `holdfast bench`. How to read what it prints is in docs/performance.md.
type benchCmd struct {
	Only        string        `help:"Run only the scenarios whose name matches this regular expression." placeholder:"REGEX"`
	List        bool          `help:"List the scenarios and run none."`
	Duration    time.Duration `help:"How long each scenario is measured: 1s to 10m." default:"5s"`
	Warmup      time.Duration `help:"How long each scenario runs before it is measured." default:"1s"`
	MaxRequests int64         `help:"End a scenario after so many requests." default:"2000000"`
	Codec       string        `help:"Encoding of unary calls: proto or json." enum:"proto,json" default:"proto"`
	HTTP        string        `help:"HTTP version of unary calls: 1, one connection a session, or 2, shared ones." name:"http" enum:"1,2" default:"1"`
	Live        bool          `help:"Also run the scenario that sends Gemini Live frames."`
	NoFloor     bool          `help:"Leave pgbench out, and so what is compared with it."`

	Scale int `help:"Divide by so much what the grow- scenarios store, to try them." default:"1"`

	Servers int           `help:"How many servers to start on one Postgres; sessions are spread over them, and watchers follow what the others write." default:"1"`
	Fanout  string        `help:"How those servers tell each other of changes: postgres or local." enum:"postgres,local" default:"postgres"`
	Soak    time.Duration `help:"Instead of the scenarios, mixed work and faults for so long, 30s to 24h: memory has to stay flat, and nothing may be lost." placeholder:"DURATION"`

	API         string `help:"Base URL of a server that runs already. Default: start a Postgres that is thrown away, and a server." name:"api" placeholder:"URL"`
	Token       string `help:"API key for --api." env:"HOLDFAST_TOKEN"`
	AllowRemote bool   `help:"Let --api be another machine than this one. It will be busy."`
	DatabaseURL string `help:"The owner of the database of the server at --api, to make tenants and keys with." placeholder:"URL"`
	PgbenchURL  string `help:"A login that may create a schema in the database of the server at --api, for pgbench." placeholder:"URL"`
	Admin       string `help:"Base URL of the admin address of the server at --api, for --pprof." placeholder:"URL"`
	ServerPID   int    `help:"Process of the server at --api, if it runs here: its CPU and memory are shown." name:"server-pid" placeholder:"PID"`
	DatabasePID int    `help:"Main process of that server's Postgres, if it runs here." name:"database-pid" placeholder:"PID"`

	JSON     string `help:"Also write the results to this file as JSON." name:"json" placeholder:"FILE"`
	Markdown bool   `help:"Print the results as Markdown."`
	Pprof    string `help:"Write a CPU profile of the server during each scenario to this directory." placeholder:"DIR"`
}

const maxBenchDuration = 10 * time.Minute

// bench is one run: what is under load, and what was found so far.
type bench struct {
	benchCmd

	system *benchSystem
	floor  *floor.Floor // nil: without
	began  time.Time
	report *benchReport
	log    io.Writer // progress, for people
}

// Run runs the scenarios one after the other. Its error says that they could not run, or that something acknowledged
// was not found again; figures short of their target are no error.
func (c *benchCmd) Run(ctx context.Context, w *console) error {
	if c.List {
		for _, s := range scenarios {
			fmt.Fprintf(w.stdout, "%-20s %s\n", s.name, s.what)
		}
		return nil
	}
	chosen, err := c.choose()
	if err != nil {
		return err
	}
	b := &bench{benchCmd: *c, began: time.Now(), log: w.stderr}
	b.report = &benchReport{
		Started: b.began, Version: readBuild().String(), Cores: runtime.NumCPU(), Go: runtime.Version(),
		Servers: c.Servers, Codec: c.Codec, HTTP: c.HTTP, Seconds: c.Duration.Seconds(),
	}
	var runErr error
	if c.Soak != 0 {
		b.report.Seconds = c.Soak.Seconds()
		runErr = b.soak(ctx)
	} else {
		runErr = b.run(ctx, chosen)
	}
	if len(b.report.Rows) == 0 {
		return runErr
	}
	b.report.Targets = targets(b.report.Rows)
	b.report.write(w.stdout, c.Markdown)
	if c.JSON != "" {
		runErr = errors.Join(runErr, writeJSON(c.JSON, b.report))
	}
	return runErr
}

// choose checks the flags and returns the scenarios to run.
func (c *benchCmd) choose() ([]scenario, error) {
	switch {
	case c.Duration < time.Second || c.Duration > maxBenchDuration || c.Warmup < 0 || c.Warmup > maxBenchDuration:
		return nil, wrongUsage("--duration is 1s to %v, --warmup at most that", maxBenchDuration)
	case c.Servers < 1 || c.Servers > 9 || c.API != "" && c.Servers != 1:
		return nil, wrongUsage("--servers is 1 to 9, and 1 with --api")
	case c.Soak != 0 && (c.Soak < 30*time.Second || c.Soak > 24*time.Hour || c.API != ""):
		return nil, wrongUsage("--soak is 30s to 24h, and not of a server at --api")
	case c.Scale < 1:
		return nil, wrongUsage("--scale is at least 1")
	case c.MaxRequests < 1:
		return nil, wrongUsage("--max-requests is at least 1")
	case c.API == "" && c.DatabaseURL+c.PgbenchURL+c.Admin != "" || c.API == "" && c.ServerPID+c.DatabasePID != 0:
		return nil, wrongUsage("--database-url, --pgbench-url, --admin, --server-pid and --database-pid go with --api")
	case c.API != "" && c.Token == "":
		return nil, wrongUsage("--api needs --token: `holdfast key create` makes one")
	}
	only, err := regexp.Compile(c.Only)
	if err != nil {
		return nil, wrongUsage("--only: %v", err)
	}
	var chosen []scenario
	for _, s := range scenarios {
		wanted := only.MatchString(s.name) && (!s.optional || c.Live || c.Only != "")
		if wanted && (!c.NoFloor || !s.needsPgbench()) && (!s.several || c.Servers > 1) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil, wrongUsage("no scenario has such a name; --list shows them")
	}
	return chosen, nil
}

func (b *bench) run(ctx context.Context, chosen []scenario) (err error) {
	b.system = &benchSystem{}
	if slices.ContainsFunc(chosen, func(s scenario) bool { return !s.ownDatabase }) {
		if b.system, err = openBenchSystem(ctx, b); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, b.system.close(ctx)) }()
	if err := b.openFloor(ctx, chosen); err != nil {
		return err
	}
	if b.floor != nil {
		b.report.Postgres, _ = b.floor.Version(ctx)
		defer func() { err = errors.Join(err, b.floor.Close(context.WithoutCancel(ctx))) }()
	}
	for _, s := range chosen {
		fmt.Fprintf(b.log, "%-20s %s\n", s.name, s.what)
		if why := s.cannot(b); why != "" {
			b.report.Skipped = append(b.report.Skipped, s.name+": "+why)
			continue
		}
		b.writeBack(ctx)
		rows, err := s.run(ctx, b, s)
		b.report.Rows = append(b.report.Rows, rows...)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// writeBack has the kernel write what earlier scenarios left unwritten. By itself it does so half a minute later, all at once
// (150 MB were seen), and commits wait behind it for some 30 ms: of a steady load's three seconds that is a percent.
func (b *bench) writeBack(ctx context.Context) {
	if b.API == "" {
		_ = exec.CommandContext(ctx, "sync").Run() // where there is no such program, nothing is lost but a figure
	}
}

// openFloor makes pgbench ready, where one of the scenarios needs it. A server that the user started needs no pgbench.
func (b *bench) openFloor(ctx context.Context, chosen []scenario) (err error) {
	for _, s := range chosen {
		if !s.needsFloor() || b.system.pgbenchURL == "" {
			continue
		}
		b.floor, err = floor.Open(ctx, b.system.pgbenchDir, b.system.pgbenchURL)
		return err
	}
	return nil
}

func (b *bench) workload(workers int, observe func(context.Context) func()) load.Workload {
	return load.Workload{Workers: workers, Warmup: b.Warmup, Duration: b.Duration, MaxRequests: b.MaxRequests, Observe: observe}
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644) //nolint:gosec // results are no secret
}
