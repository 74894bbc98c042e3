package main

import (
	"cmp"
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	consoleweb "holdfast/console"
)

// serveCmd is `holdfast serve`.
type serveCmd struct {
	databaseConfig
	serverConfig

	Addr string `help:"Address of the API. Default: all interfaces, the port of --port." env:"HOLDFAST_ADDR" placeholder:"HOST:PORT"`
	Port uint16 `help:"Port of the API, where --addr is not set." env:"PORT" default:"8080"`

	Roles        []string `help:"What this server does, separated by commas: api, jobs (timers, the sweep, Linear's sync). Without jobs they are for other servers, or for tick." enum:"api,jobs" env:"HOLDFAST_ROLES" default:"api,jobs" placeholder:"ROLE"`
	MaxInstances int      `help:"How many servers there may be at once. The pool is then this one's share of the connections that Postgres accepts, and --max-conns at most. 0: --max-conns." env:"HOLDFAST_MAX_INSTANCES" default:"0" placeholder:"N"`

	Console bool `help:"Serve the console at /console/. People sign in there with a key or a session's token of their own." env:"HOLDFAST_CONSOLE"`

	logConfig

	Tick tickConfig `embed:"" prefix:"tick-" group:"Who may call /tick, which does what tick does:"`

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
	if c.MaxInstances < 0 {
		return wrongUsage("--max-instances is %d; it is 0 or more", c.MaxInstances)
	}
	c.drainDelay, c.roles, c.tick, c.servers = c.DrainDelay, c.Roles, c.Tick, c.MaxInstances
	if c.Console {
		c.console = consoleweb.Handler(nil)
	}
	if c.Addr == "" {
		c.Addr = net.JoinHostPort("", strconv.Itoa(int(c.Port)))
	}
	box, err := c.box()
	if err != nil {
		return err
	}
	log := c.log(w, c.LogLevel)
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
		log.InfoContext(ctx, "ready", "api", api, "version", readBuild().String(), "connections", d.MaxConns())
		return nil
	})
}
