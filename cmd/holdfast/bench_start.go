package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"
)

// benchStartTimeout is how long the server may take to be ready.
const benchStartTimeout = 30 * time.Second

// benchWALFiles is 1 GB: Postgres's own max_wal_size, by which it makes a checkpoint, and has files to use again.
const benchWALFiles = 64

// start starts a Postgres that is thrown away and a server on it. The server is a process of its own, so that what it
// uses can be told from what the generator does.
func (s *benchSystem) start(ctx context.Context) (api, admin string, err error) {
	// Postgres keeps its own settings of durability: without them it would be another system.
	options := sandboxOptions{MaxConns: operatorConns, Servers: s.servers, Log: slog.New(slog.DiscardHandler)}
	if s.crashes {
		if options.Dir, err = os.MkdirTemp("", "holdfast-bench-"); err != nil {
			return "", "", err
		}
		s.closers = append(s.closers, func(context.Context) error { return os.RemoveAll(options.Dir) })
		if err := os.Chmod(options.Dir, 0o755); err != nil { //nolint:gosec // Postgres may have to run as another user
			return "", "", err
		}
	}
	box, err := openSandbox(ctx, os.LookupEnv, options)
	if err != nil {
		return "", "", err
	}
	s.box = box
	s.closers = append(s.closers, box.close)
	// A new Postgres stalls every 16 MB, which its later life does not know, and the tail of three seconds would show.
	if err := box.postgres.Season(ctx, benchWALFiles); err != nil {
		return "", "", err
	}
	if err := s.open(ctx, box.ownerURL); err != nil {
		return "", "", err
	}
	s.database, s.token = box.db, box.token
	s.databasePID, s.pgbenchURL, s.pgbenchDir = box.postgres.PID(), box.ownerURL, box.postgres.BinDir()
	s.databaseURL = box.url
	for range max(1, s.servers) {
		p, err := s.startServer(ctx, "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		s.processes = append(s.processes, p)
		s.serverPIDs = append(s.serverPIDs, p.cmd.Process.Pid)
	}
	s.closers = append(s.closers, func(context.Context) error {
		for _, p := range s.processes {
			p.end(os.Interrupt)
		}
		return nil
	})
	return s.processes[0].api, s.processes[0].admin, nil
}

// benchServer is a server in a process of its own.
type benchServer struct {
	cmd        *exec.Cmd
	ended      chan struct{} // closed when it has ended
	api, admin string
}

// end ends it by a signal, and waits.
func (p *benchServer) end(how os.Signal) {
	if err := p.cmd.Process.Signal(how); err != nil {
		_ = p.cmd.Process.Kill()
	}
	<-p.ended
}

// startServer runs this very program as `holdfast serve`, and returns when it says that it is ready.
func (s *benchSystem) startServer(ctx context.Context, addr string) (*benchServer, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// It is told to stop, and is not killed, when the run is over.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, "serve") //nolint:gosec // this program
	cmd.Env = append(environmentOfOthers(os.Environ()),
		"HOLDFAST_DATABASE_URL="+s.databaseURL, "HOLDFAST_SEAL_KEYS="+s.sealKey, "HOLDFAST_FANOUT="+s.fanout,
		"HOLDFAST_ADDR="+addr, "HOLDFAST_ADMIN_ADDR=127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	said := make(chan benchServerSaid, 1)
	p := &benchServer{cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		listenToServer(stderr, said)
		_ = cmd.Wait() // it was told to end, or its last words say why it did
	}()
	timer := time.NewTimer(benchStartTimeout)
	defer timer.Stop()
	select {
	case it := <-said:
		p.api, p.admin, err = it.api, it.admin, it.err
	case <-timer.C:
		err = fmt.Errorf("the server is not ready after %v", benchStartTimeout)
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

// benchServerSaid is what a server told of itself: where it is, or why it ended before it was ready.
type benchServerSaid struct {
	api, admin string
	err        error
}

// listenToServer reads a server's log to its end, and says once where the server is, or why it is not.
func listenToServer(log io.Reader, said chan<- benchServerSaid) {
	var it benchServerSaid
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
		said <- benchServerSaid{err: errors.New("the server did not start: " + last)}
	}
}
