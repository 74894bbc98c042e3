package dbtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

const (
	defaultImage = "postgres:17-alpine"
	postgresPort = "5432/tcp"
	// answerTimeout is what a daemon on this machine needs by far; one that is not there says so at once.
	answerTimeout = 5 * time.Second
	// acceptTimeout is for initdb inside the container, on a busy machine.
	acceptTimeout = 90 * time.Second
)

// startDocker starts a server in a container: errNoDocker where there is no daemon to start it.
func startDocker(ctx context.Context, env func(string) string) (*server, error) {
	if err := dockerAnswers(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoDocker, err)
	}
	image, password := cmp.Or(env(imageVar), defaultImage), rand.Text()
	command := []string{"postgres"}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		command = append(command, "-c", name+"="+settings[name])
	}
	ready := &acceptsSQL{password: password}
	container, err := testcontainers.Run(ctx, image,
		testcontainers.WithEnv(map[string]string{
			"POSTGRES_USER": "postgres", "POSTGRES_PASSWORD": password, "POSTGRES_DB": "postgres",
		}),
		testcontainers.WithCmd(command...),
		testcontainers.WithExposedPorts(postgresPort),
		testcontainers.WithWaitStrategyAndDeadline(acceptTimeout, ready),
	)
	remove := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		// Killed at once: there is nothing to keep.
		return testcontainers.TerminateContainer(container, testcontainers.StopContext(ctx), testcontainers.StopTimeout(0))
	}
	if err != nil {
		// A container that did not become ready is handed over with the error.
		return nil, errors.Join(fmt.Errorf("the image %s: %w", image, err), remove())
	}
	return &server{adminURL: ready.adminURL, stop: func() { complain(remove()) }}, nil
}

// dockerAnswers asks a daemon whether it is there. An installed client is no sign of one, and the socket of a dead one
// may still be on disk.
func dockerAnswers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answer := make(chan error, 1)
	// testcontainers looks for the daemon without our context, so one that takes the connection and never
	// answers would hold us up for ever. It holds up this goroutine.
	go func() {
		defer func() {
			if p := recover(); p != nil { // its functions named Must…
				answer <- fmt.Errorf("testcontainers: %v", p)
			}
		}()
		provider, err := testcontainers.NewDockerProvider()
		if err == nil {
			err = errors.Join(provider.Health(ctx), provider.Close())
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// acceptsSQL waits until the container's server runs statements. Its log would tell too soon: the images start a
// server for their own set-up first, say that it is ready, and stop it again. That one listens on no port.
type acceptsSQL struct {
	password string
	adminURL string // set when it is ready
}

// String is what testcontainers says that it waits for.
func (a *acceptsSQL) String() string { return "a connection that runs statements" }

// WaitUntilReady implements [wait.Strategy].
func (a *acceptsSQL) WaitUntilReady(ctx context.Context, target wait.StrategyTarget) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		state, err := target.State(ctx)
		if err == nil && !state.Running {
			return fmt.Errorf("the container ended with code %d", state.ExitCode)
		}
		if err == nil {
			err = a.try(ctx, target)
		}
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

func (a *acceptsSQL) try(ctx context.Context, target wait.StrategyTarget) error {
	host, err := target.Host(ctx)
	if err != nil {
		return err
	}
	port, err := target.MappedPort(ctx, postgresPort)
	if err != nil {
		return err
	}
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", a.password),
		Host:     net.JoinHostPort(host, port.Port()),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
	if err := accepts(ctx, u.String()); err != nil {
		return err
	}
	a.adminURL = u.String()
	return nil
}
