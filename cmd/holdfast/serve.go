package main

import (
	"cmp"
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"holdfast/seal"
)

// serveCmd is `holdfast serve`.
type serveCmd struct {
	databaseConfig
	serverConfig

	Addr string `help:"Address of the API. Default: all interfaces, the port of --port." env:"HOLDFAST_ADDR" placeholder:"HOST:PORT"`
	Port uint16 `help:"Port of the API, where --addr is not set." env:"PORT" default:"8080"`

	DrainDelay time.Duration `help:"How long to serve on after SIGTERM, no longer ready, so that balancers notice; then calls have 10 s to end." env:"HOLDFAST_DRAIN_DELAY" default:"0s"`
}

// Run serves until ctx ends.
func (c *serveCmd) Run(ctx context.Context, w *console) error {
	if err := c.check(); err != nil {
		return err
	}
	if c.DrainDelay < 0 {
		return wrongUsage("--drain-delay is %v; it is 0 or more", c.DrainDelay)
	}
	c.drainDelay = c.DrainDelay
	if c.Addr == "" {
		c.Addr = net.JoinHostPort("", strconv.Itoa(int(c.Port)))
	}
	box, err := seal.NewBox(c.SealKeys...)
	if err != nil {
		return wrongUsage("--seal-keys or HOLDFAST_SEAL_KEYS: %v; `openssl rand -base64 32` makes one", err)
	}
	log := jsonLog(w.stderr, c.LogLevel)
	c.telemetry = &openTelemetry{}
	if err := c.telemetry.startTraces(ctx, w.env); err != nil {
		return err
	}
	c.traces, c.now = c.telemetry.tracer(), w.now
	d, err := c.open(ctx, c.MaxConns)
	if err != nil {
		stopping, stopped := closing(ctx)
		defer stopped()
		return errors.Join(err, c.telemetry.close(stopping())) //nolint:contextcheck // see closing
	}
	defer d.Close()
	c.ListenURL = cmp.Or(c.ListenURL, c.DatabaseURL)
	return c.run(ctx, w, log, d, box, c.Addr, func(api string) error {
		log.InfoContext(ctx, "ready", "api", api, "version", readBuild().String())
		return nil
	})
}
