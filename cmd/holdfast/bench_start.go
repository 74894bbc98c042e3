package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"time"

	"holdfast/db"
	"holdfast/db/embedded"
)

const (
	benchLogin = "holdfast" // the server's
	// startTimeout is how long the server may take to be ready.
	startTimeout = 30 * time.Second
)

// start starts a Postgres that is thrown away and a server on it, each a process of its own, so that what they use can
// be told apart.
func (s *benchSystem) start(ctx context.Context) (api, admin, databaseURL string, err error) {
	// Postgres keeps its own settings of durability: a benchmark without them would be of another system.
	postgres, err := embedded.Start(ctx, embedded.Options{Ephemeral: true})
	if err != nil {
		return "", "", "", err
	}
	s.closers = append(s.closers, postgres.Stop)
	s.databasePID, s.pgbenchURL, s.pgbenchDir = postgres.PID(), postgres.AdminURL(), postgres.BinDir()

	if err := db.MigrateUp(ctx, postgres.AdminURL()); err != nil {
		return "", "", "", err
	}
	password := rand.Text()
	if err := db.EnsureLogin(ctx, postgres.AdminURL(), benchLogin, password); err != nil {
		return "", "", "", err
	}
	databaseURL = postgres.URL("postgres", url.UserPassword(benchLogin, password))
	api, admin, err = s.startServer(ctx, databaseURL)
	return api, admin, databaseURL, err
}

// startServer runs this very program as `holdfast serve`, and returns when it is ready.
func (s *benchSystem) startServer(ctx context.Context, databaseURL string) (api, admin string, err error) {
	program, err := os.Executable()
	if err != nil {
		return "", "", err
	}
	apiAddress, err := freeAddress(ctx)
	if err != nil {
		return "", "", err
	}
	adminAddress, err := freeAddress(ctx)
	if err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, "serve") //nolint:gosec // this program
	cmd.Env = append(os.Environ(), "HOLDFAST_DATABASE_URL="+databaseURL, "HOLDFAST_LISTEN="+apiAddress, "HOLDFAST_ADMIN="+adminAddress)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return "", "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s.closers = append(s.closers, func(context.Context) error {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			_ = cmd.Process.Kill()
		}
		return <-ended
	})
	s.serverPID = cmd.Process.Pid
	api = "http://" + apiAddress
	if err := awaitReady(ctx, api+"/readyz", ended); err != nil {
		return "", "", fmt.Errorf("the server did not start: %w. It said:\n%s", err, said.Bytes())
	}
	return api, "http://" + adminAddress, nil
}

// awaitReady asks until the answer is 200, or the server has ended, which it puts back into ended.
func awaitReady(ctx context.Context, readyz string, ended chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	client := &http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, readyz, http.NoBody)
		if err != nil {
			return err
		}
		if res, err := client.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case err := <-ended:
			ended <- err
			return errors.Join(errors.New("it ended"), err)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// freeAddress is an address of this machine that nobody listens on.
func freeAddress(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
