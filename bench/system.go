package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/bench/internal/load"
	"holdfast/db/embedded"
)

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 20 * time.Second
	login        = "bench"
	tenant       = "bench"
	// walFiles is 1 GB, Postgres's own max_wal_size: after a checkpoint it has that many files to use again.
	walFiles = 64
)

// system is what is under load: a Postgres that is thrown away, with the settings of durability that Postgres has by
// default, and servers on it, each a process of its own.
type system struct {
	name   string // empty: the one to measure
	binary string
	pprof  string // the directory for profiles; empty: none

	postgres *embedded.Server
	settings embedded.Options
	env      []string // of every process of the binary
	token    string
	servers  []*server
	targets  []*load.Target
}

// start starts Postgres and so many servers, by the same commands as an operator does.
func (s *system) start(ctx context.Context, servers int, codec load.Codec) (err error) {
	dir, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // Postgres may have to run as another user
		return err
	}
	s.settings = embedded.Options{
		Dir: filepath.Join(dir, "postgres"), BinDir: os.Getenv("HOLDFAST_POSTGRES_BIN"), Log: slog.New(slog.DiscardHandler),
		Parameters: map[string]string{"max_connections": "400"},
	}
	if s.postgres, err = embedded.Start(ctx, s.settings); err != nil {
		return err
	}
	if err := s.season(ctx); err != nil {
		return err
	}
	const password = "bench" // of a database on loopback that lives for minutes
	s.env = append(environmentOfOthers(os.Environ()),
		"HOLDFAST_MIGRATE_DATABASE_URL="+s.postgres.AdminURL(), "HOLDFAST_LOGIN="+login, "HOLDFAST_LOGIN_PASSWORD="+password,
		"HOLDFAST_DATABASE_URL="+s.postgres.URL("postgres", url.UserPassword(login, password)),
		"HOLDFAST_SEAL_KEYS=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "HOLDFAST_ADMIN_ADDR=127.0.0.1:0")
	for _, args := range [][]string{{"migrate", "up"}, {"tenant", "create", tenant}} {
		if _, err := s.command(ctx, args...); err != nil {
			return err
		}
	}
	key, err := s.command(ctx, "key", "create", "--tenant", tenant)
	if err != nil {
		return err
	}
	s.token = strings.Fields(key)[0]
	for range servers {
		p, err := s.startServer(ctx, "127.0.0.1:0")
		if err != nil {
			return err
		}
		s.servers = append(s.servers, p)
		base, err := url.Parse(p.api)
		if err != nil {
			return err
		}
		s.targets = append(s.targets, &load.Target{URL: base, Codec: codec})
	}
	return nil
}

// close ends the servers and Postgres, and removes what they stored.
func (s *system) close(ctx context.Context) error {
	for _, p := range s.servers {
		p.end(os.Interrupt)
	}
	if s.postgres == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	return errors.Join(s.postgres.Stop(ctx), os.RemoveAll(filepath.Dir(s.settings.Dir)))
}

// season gives a new Postgres what one that has written for a while has: WAL files to use again. Until its checkpoints have
// left some, it makes each file new, 16 MB of zeros and a sync, while every commit waits: 15 to 50 ms, every 16 MB.
func (s *system) season(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.postgres.AdminURL())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, statement := range []string{
		fmt.Sprintf("ALTER SYSTEM SET min_wal_size = '%dMB'", 16*walFiles),
		"SELECT pg_reload_conf()",
		// Postgres does not switch from a file in which nothing was written.
		fmt.Sprintf("SELECT count(pg_switch_wal() <> pg_logical_emit_message(false, 'bench', '')) FROM generate_series(1, %d)", walFiles),
		"CHECKPOINT",
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// crash ends Postgres at once, without a checkpoint, and starts it again: it recovers from its log.
func (s *system) crash(ctx context.Context) error {
	atOnce, cancel := context.WithCancel(ctx)
	cancel()
	s.settings.Port = s.postgres.Port()
	if err := s.postgres.Stop(atOnce); err != nil {
		return err
	}
	p, err := embedded.Start(ctx, s.settings)
	if err == nil {
		s.postgres = p
	}
	return err
}

// restart kills a server as kill -9 does, and starts it again at the same address.
func (s *system) restart(ctx context.Context, i int) error {
	s.servers[i].end(os.Kill)
	p, err := s.startServer(ctx, strings.TrimPrefix(s.servers[i].api, "http://"))
	if err == nil {
		s.servers[i] = p
	}
	return err
}

// command runs a command of the binary and returns what it prints.
func (s *system) command(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.binary, args...) //nolint:gosec // the binary to measure
	cmd.Env = s.env
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("holdfast %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// server is a server in a process of its own.
type server struct {
	cmd        *exec.Cmd
	ended      chan struct{} // closed when it has ended
	api, admin string
}

// end ends the process by a signal, and waits.
func (p *server) end(how os.Signal) {
	if err := p.cmd.Process.Signal(how); err != nil {
		_ = p.cmd.Process.Kill()
	}
	<-p.ended
}

// startServer returns when the server says that it is ready.
func (s *system) startServer(ctx context.Context, addr string) (*server, error) {
	// The run's end tells it to stop; it does not kill it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), s.binary, "serve") //nolint:gosec // the binary to measure
	cmd.Env = append(s.env[:len(s.env):len(s.env)], "HOLDFAST_ADDR="+addr)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	said := make(chan serverSaid, 1)
	p := &server{cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		listenToServer(stderr, said)
		_ = cmd.Wait() // it was told to end, or its last words say why it did
	}()
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case it := <-said:
		p.api, p.admin, err = it.api, it.admin, it.err
	case <-timer.C:
		err = fmt.Errorf("the server is not ready after %v", startTimeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		p.end(os.Interrupt)
		return nil, err
	}
	return p, nil
}

// environmentOfOthers leaves out what would configure our own server.
func environmentOfOthers(env []string) (others []string) {
	for _, e := range env {
		if !strings.HasPrefix(e, "HOLDFAST_") && !strings.HasPrefix(e, "DATABASE_URL=") && !strings.HasPrefix(e, "PORT=") {
			others = append(others, e)
		}
	}
	return others
}

// serverSaid is where a server says that it is, or why it ended before it was ready.
type serverSaid struct {
	api, admin string
	err        error
}

// listenToServer reads a server's log to its end, and says once where the server is, or why it is not ready.
func listenToServer(log io.Reader, said chan<- serverSaid) {
	var it serverSaid
	var last string
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		last = lines.Text()
		var entry struct {
			Msg string `json:"msg"`
			API string `json:"api"`
			URL string `json:"url"`
		}
		if json.Unmarshal(lines.Bytes(), &entry) != nil {
			continue
		}
		switch entry.Msg {
		case "metrics and profiles":
			it.admin = entry.URL
		case "ready":
			it.api = entry.API
			said <- it
		}
	}
	if it.api == "" {
		said <- serverSaid{err: errors.New("the server did not start: " + last)}
	}
}
