package dbtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/db/embedded"
)

// What the environment says about test servers.
const (
	databaseVar = "HOLDFAST_TEST_DATABASE_URL" // a superuser's URL of a server that is there already
	backendVar  = "HOLDFAST_TEST_BACKEND"      // docker or local, and then nothing else is tried
	imageVar    = "HOLDFAST_TEST_IMAGE"        // what Docker runs
	poolerVar   = "HOLDFAST_TEST_POOLER"       // a PgBouncer to put in front of it
	binVar      = "HOLDFAST_POSTGRES_BIN"      // where the local binaries are
)

const (
	// dockerTimeout leaves time for the local binaries when an image comes too slowly.
	dockerTimeout = 3 * time.Minute
	stopTimeout   = 30 * time.Second
)

// settings are those of every server that is started here, so that a test sees the same one whatever runs it.
//
// Nothing outlives the tests, so nothing waits for a disk. But synchronous_commit stays on: what is committed must still
// be there for a test that kills the server, and without fsync it costs next to nothing.
var settings = map[string]string{
	"fsync":            "off",
	"full_page_writes": "off",
	"shared_buffers":   "64MB",
	"max_connections":  "200",
	"jit":              "off",
	// Five hours and three quarters off, so that no test passes by a time zone that is left out or taken twice.
	"timezone": "Asia/Kathmandu",
}

// server is a running Postgres for tests.
type server struct {
	adminURL string // a superuser's
	stop     func() // ends it, if it was started here; to be called once
}

// startServer finds a server for this test binary or starts one, see [backends].
func startServer(ctx context.Context) (*server, error) {
	return backends{docker: startDocker, local: startLocal}.choose(ctx, os.Getenv)
}

// backends are the ways to a server of our own. Both end the server when this process is killed before it can:
// Docker by the reaper of testcontainers, local binaries by the kernel.
type backends struct {
	docker, local func(ctx context.Context, env func(string) string) (*server, error)
}

// errNoDocker is that no Docker daemon answers, which is no failure unless Docker was asked for.
var errNoDocker = errors.New("no Docker daemon answers")

// choose takes what HOLDFAST_TEST_BACKEND forces, else the first that is to be had of the URL in
// HOLDFAST_TEST_DATABASE_URL, Docker and local binaries. A URL that is set and does not work is an error, and so is
// a forced backend that cannot be had: whoever set it wants to know.
func (b backends) choose(ctx context.Context, env func(string) string) (*server, error) {
	switch forced := env(backendVar); forced {
	case "":
	case "docker":
		s, err := b.docker(ctx, env)
		return s, explain(backendVar+"=docker", err)
	case "local":
		s, err := b.local(ctx, env)
		return s, explain(backendVar+"=local", err)
	default:
		return nil, fmt.Errorf("%s is %q; it may be docker, local or unset", backendVar, forced)
	}
	if databaseURL := env(databaseVar); databaseURL != "" {
		s, err := givenServer(ctx, databaseURL)
		return s, explain(databaseVar, err)
	}

	dockerCtx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	s, dockerErr := b.docker(dockerCtx, env)
	if dockerErr == nil {
		return s, nil
	}
	if !errors.Is(dockerErr, errNoDocker) {
		// Heard of only if the tests fail or run with -v, as it should be.
		fmt.Fprintln(os.Stderr, "dbtest: taking local binaries, because Docker answers and yet:", dockerErr)
	}
	s, err := b.local(ctx, env)
	if err != nil {
		return nil, fmt.Errorf("tests need a Postgres: set %s, or start Docker (%w), or install Postgres (%w)", databaseVar, dockerErr, err)
	}
	return s, nil
}

func explain(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// givenServer uses a server that somebody else runs, and leaves it running.
func givenServer(ctx context.Context, databaseURL string) (*server, error) {
	// pgx would take the form host=… too, in which no database can be replaced by another.
	if u, err := url.Parse(databaseURL); err != nil || !strings.HasPrefix(u.Scheme, "postgres") {
		return nil, errors.New("it is not of the form postgres://user:password@host:port/database")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := accepts(ctx, databaseURL); err != nil {
		return nil, err
	}
	return &server{adminURL: databaseURL, stop: func() {}}, nil
}

// startLocal starts a server from local binaries, or from downloaded ones where there are none.
func startLocal(ctx context.Context, env func(string) string) (*server, error) {
	s, err := embedded.Start(ctx, embedded.Options{Ephemeral: true, BinDir: env(binVar), Parameters: settings})
	if err != nil {
		return nil, err
	}
	return &server{adminURL: s.AdminURL(), stop: func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		complain(s.Stop(ctx))
	}}, nil
}

// complain reports what went wrong after the last test, when no test is left to report it to.
func complain(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "dbtest: stopping the server:", err)
	}
}

// accepts reports whether a server takes connections and runs statements.
func accepts(ctx context.Context, databaseURL string) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return conn.Ping(ctx)
}
