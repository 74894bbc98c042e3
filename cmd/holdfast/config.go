package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	consoleweb "holdfast/console"
	"holdfast/db"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	"holdfast/gen/holdfast/inspect/v1/inspectv1connect"
	"holdfast/gen/holdfast/linear/v1/linearv1connect"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	"holdfast/gen/holdfast/project/v1/projectv1connect"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	"holdfast/gen/holdfast/state/v1/statev1connect"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers"
	"holdfast/handlers/conversation"
	"holdfast/handlers/inspect"
	"holdfast/handlers/linear"
	"holdfast/handlers/project"
	"holdfast/handlers/session"
	"holdfast/handlers/state"
	"holdfast/handlers/watch"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/seal"
)

// databaseConfig selects the database of a command.
type databaseConfig struct {
	DatabaseURL string `help:"Postgres, as postgres://login:password@host:port/database; the server's login, which owns no table." env:"HOLDFAST_DATABASE_URL,DATABASE_URL" placeholder:"URL"`

	traces  trace.TracerProvider // nil: none
	now     func() time.Time     // nil: time.Now
	servers int                  // that share Postgres's connections; 0: the pool does not depend on it
}

func (c databaseConfig) open(ctx context.Context, maxConns int) (*db.DB, error) {
	if c.DatabaseURL == "" {
		return nil, wrongUsage("no database: set HOLDFAST_DATABASE_URL or DATABASE_URL, or give --database-url; `holdfast dev` needs none")
	}
	return db.Open(ctx, db.Config{URL: c.DatabaseURL, MaxConns: maxConns, Servers: c.servers, Traces: c.traces, Now: c.now})
}

// serverConfig has the flags that dev and serve share.
type serverConfig struct {
	Origins       []string      `help:"Origins whose pages may call the API from a browser, separated by commas; * for any." env:"HOLDFAST_ORIGINS" placeholder:"ORIGIN"`
	AddressHeader string        `help:"Header in which a proxy in front says where a request comes from, such as X-Forwarded-For; only with such a proxy." env:"HOLDFAST_ADDRESS_HEADER" placeholder:"HEADER"`
	AddressHops   int           `help:"How many proxies in front append to that header: 2 behind Google's load balancer, which appends its own address, too." env:"HOLDFAST_ADDRESS_HOPS" default:"1" placeholder:"N"`
	AdminAddr     string        `help:"Address for /metrics and /debug/pprof, such as 127.0.0.1:9090; keep it private. Default: none." env:"HOLDFAST_ADMIN_ADDR" placeholder:"HOST:PORT"`
	MaxConns      int           `help:"Connections to Postgres." env:"HOLDFAST_MAX_CONNS" default:"16"`
	LogLevel      slog.Level    `help:"debug, info, warn or error. At debug every call is logged; at info those that failed, ten a second of a tenant one by one." env:"HOLDFAST_LOG_LEVEL" default:"info"`
	WatchAge      time.Duration `help:"How long a stream lasts at most, less up to a tenth; its client connects again." env:"HOLDFAST_WATCH_AGE" default:"1h"`
	Reflection    bool          `help:"Tell anyone who asks by gRPC which services and messages there are." env:"HOLDFAST_REFLECTION" default:"true" negatable:""`

	drainDelay time.Duration // the server continues for so long after ctx has ended
	roles      []string      // empty: all
	tick       tickConfig

	fanoutConfig

	telemetry *openTelemetry // nil: to be started
	console   http.Handler   // nil: no console
	workConfig

	Live liveConfig `embed:"" prefix:"live-" group:"What Gemini Live allows, should it change:"`
	JWT  jwtConfig  `embed:"" prefix:"jwt-" group:"JWTs of your own identity provider, in addition to API keys:"`
}

// A server answers calls, or does what is due without one, or both.
const (
	roleAPI  = "api"
	roleJobs = "jobs"
)

func (c serverConfig) has(role string) bool {
	return len(c.roles) == 0 || slices.Contains(c.roles, role)
}

// liveConfig has the limits of Gemini Live.
type liveConfig struct {
	DeveloperHandles time.Duration `help:"How long a resumption handle of the Developer API is valid after its session." env:"HOLDFAST_LIVE_DEVELOPER_HANDLES" default:"2h"`
	VertexHandles    time.Duration `help:"The same for Vertex AI." env:"HOLDFAST_LIVE_VERTEX_HANDLES" default:"24h"`
	Connection       time.Duration `help:"How long a connection lasts." env:"HOLDFAST_LIVE_CONNECTION" default:"10m"`
}

func (c liveConfig) limits() conversation.LiveLimits {
	return conversation.LiveLimits{DeveloperHandles: c.DeveloperHandles, VertexHandles: c.VertexHandles, Connection: c.Connection}
}

// quotaConfig bounds what is stored.
type quotaConfig struct {
	UserObjects   int64 `help:"Objects of a user." env:"HOLDFAST_USER_OBJECTS" default:"100000" placeholder:"N"`
	UserBytes     int64 `help:"Bytes of a user, journal included." env:"HOLDFAST_USER_BYTES" default:"1073741824" placeholder:"N"`
	TenantObjects int64 `help:"Objects of a tenant, its users' among them." env:"HOLDFAST_TENANT_OBJECTS" default:"10000000" placeholder:"N"`
	TenantBytes   int64 `help:"Bytes of a tenant." env:"HOLDFAST_TENANT_BYTES" default:"107374182400" placeholder:"N"`
}

func (c quotaConfig) check() error {
	for flag, n := range map[string]int64{
		"user-objects": c.UserObjects, "user-bytes": c.UserBytes, "tenant-objects": c.TenantObjects, "tenant-bytes": c.TenantBytes,
	} {
		if n < 0 {
			return wrongUsage("--%s is %d; it is a number, or 0 for no limit", flag, n)
		}
	}
	return nil
}

func (c quotaConfig) quotas() object.Quotas {
	return object.Quotas{
		User:   object.Quota{Objects: c.UserObjects, Bytes: c.UserBytes},
		Tenant: object.Quota{Objects: c.TenantObjects, Bytes: c.TenantBytes},
	}
}

// jwtConfig selects the JWTs that are accepted: none without an issuer.
type jwtConfig struct {
	Issuer      string `help:"The tokens' iss." env:"HOLDFAST_JWT_ISSUER" placeholder:"URL"`
	Audience    string `help:"The tokens' aud." env:"HOLDFAST_JWT_AUDIENCE" placeholder:"NAME"`
	JWKSURL     string `help:"Where the provider publishes its keys." name:"jwks-url" env:"HOLDFAST_JWT_JWKS_URL" placeholder:"URL"`
	KeyFile     string `help:"Instead, a file with its public key: PEM, JWK or JWKS." env:"HOLDFAST_JWT_KEY_FILE" placeholder:"FILE"`
	TenantClaim string `help:"The claim that names the tenant, such as org_id or app_metadata.tenant." env:"HOLDFAST_JWT_TENANT_CLAIM" placeholder:"CLAIM"`
	Tenant      string `help:"Instead, the tenant of all tokens." env:"HOLDFAST_JWT_TENANT" placeholder:"TENANT"`
	UserClaim   string `help:"The claim that names the user." env:"HOLDFAST_JWT_USER_CLAIM" default:"sub" placeholder:"CLAIM"`
	Header      string `help:"A header in which a proxy passes the tokens on, such as X-Goog-IAP-JWT-Assertion. Authorization wins." env:"HOLDFAST_JWT_HEADER" placeholder:"HEADER"`
}

// tokens returns nil if no JWTs are accepted.
func (c jwtConfig) tokens(ctx context.Context, log *slog.Logger, now func() time.Time) (*handlers.Tokens, error) {
	if c == (jwtConfig{UserClaim: c.UserClaim}) {
		return nil, nil
	}
	t := handlers.TokenConfig{
		Issuer: c.Issuer, Audience: c.Audience, JWKSURL: c.JWKSURL,
		TenantClaim: c.TenantClaim, Tenant: identity.Tenant(c.Tenant), UserClaim: c.UserClaim,
		Log: log, Now: now,
	}
	if c.KeyFile != "" {
		var err error
		if t.Key, err = os.ReadFile(c.KeyFile); err != nil {
			return nil, wrongUsage("--jwt-key-file: %v", err)
		}
	}
	tokens, err := handlers.NewTokens(ctx, t)
	if err != nil {
		return nil, wrongUsage("%v; see the --jwt flags", err)
	}
	return tokens, nil
}

func (c serverConfig) check() error {
	if c.MaxConns < 2 || c.MaxConns > 1000 {
		return wrongUsage("--max-conns is %d; it is 2 to 1000", c.MaxConns)
	}
	if c.WatchAge < time.Minute {
		return wrongUsage("--watch-age is %v; it is 1m or more", c.WatchAge)
	}
	if c.AddressHops < 1 {
		return wrongUsage("--address-hops is %d; it is 1 or more", c.AddressHops)
	}
	if err := c.workConfig.check(); err != nil {
		return err
	}
	for _, o := range c.Origins {
		if u, err := url.Parse(o); o != "*" && (err != nil || u.Scheme == "" || u.Host == "" || strings.Trim(u.Path, "/") != "") {
			return wrongUsage("--origins: %q is no origin; one is like https://app.example.com, or *", o)
		}
	}
	return c.fanoutConfig.check()
}

// closeTimeout bounds all the work after the last call has ended.
const closeTimeout = 2 * time.Second

// closing returns a function that begins closeTimeout when it is first called, and returns the context that ends with it.
func closing(ctx context.Context) (begin func() context.Context, cancel func()) {
	ctx, cancel = context.WithCancel(context.WithoutCancel(ctx))
	return sync.OnceValue(func() context.Context {
		time.AfterFunc(closeTimeout, cancel)
		return ctx
	}), cancel
}

// run serves the API on addr from d until ctx ends. Then it reports that it is not ready, continues for the drain delay, and drains
// within handlers.DrainTimeout and closeTimeout. It calls ready with the API's base URL once it answers calls.
func (c serverConfig) run(ctx context.Context, w *console, log *slog.Logger, d *db.DB, box *seal.Box, addr string, ready func(api string) error) (err error) {
	ended := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel() // ends the fetching of an identity provider's keys
	over := ctx.Done()
	// Everything that answers calls continues for the delay.
	stopWaiting := context.AfterFunc(ended, func() {
		delay := time.NewTimer(c.drainDelay)
		defer delay.Stop()
		select {
		case <-delay.C:
			cancel()
		case <-over:
		}
	})
	defer stopWaiting()
	stopping, stopped := closing(ctx)
	defer stopped()
	tokens, err := c.JWT.tokens(ctx, log, w.now)
	if err != nil {
		return err
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), readBuild().metric())

	carrier, closeCarrier, err := c.carrier(ctx)
	if err != nil {
		return err
	}
	defer closeCarrier()
	metrics.MustRegister(d.Metrics())
	if c.telemetry == nil {
		c.telemetry = &openTelemetry{}
		if err := c.telemetry.startTraces(ctx, w.env); err != nil {
			return err
		}
	}
	if err := c.telemetry.startMetrics(ctx, w.env, metrics); err != nil {
		return err
	}
	defer func() {
		if late := c.telemetry.close(stopping()); late != nil { //nolint:contextcheck // it has a bound of its own; no reason to fail
			log.WarnContext(ctx, "not all telemetry was sent", "error", late)
		}
	}()
	scheduler, err := c.tick.tokens(ctx, log, w.now)
	if err != nil {
		return err
	}
	work := c.work(d, box, log, metrics, object.Config{
		Tracer: c.telemetry.runtimeTracer(), Carrier: carrier, Sealer: box, Timers: c.has(roleJobs), WatchAge: c.WatchAge,
	})
	rt, known := work.rt, work.kinds
	defer func() { err = errors.Join(err, rt.Close(stopping())) }() //nolint:contextcheck // see closing
	conversations, apis := known.conversations, known.apis
	talk := conversation.NewManager(conversations, conversation.Options{Box: box, Now: d.Now, Limits: c.Live.limits()})
	sessions := session.NewManager(known.sessions, talk, box)
	projects := project.NewManager(project.Options{
		Kinds: known.projects, Runtime: rt, Conversations: conversations, APIs: apis, Issues: known.linear.Issues, PresentIssue: linear.PresentIssue,
	})
	issues := linear.NewManager(linear.Options{Kinds: known.linear, Runtime: rt, Seal: box, SyncNow: work.syncNow, SendNow: work.sendNow})
	states := state.NewManager(rt, known.states)
	page := watch.NewManager(watch.Options{Explain: handlers.Explain, Now: d.Now},
		talk.Sources(), sessions.Sources(), projects.Sources(), issues.Sources(), work.coordinator.Sources(), states.Sources())
	options := handlers.Options{
		Services: []handlers.Service{
			handlers.NewService[conversationv1connect.ConversationServiceHandler](
				conversationv1connect.ConversationServiceName, conversationv1connect.NewConversationServiceHandler, talk),
			handlers.NewService[livev1connect.LiveServiceHandler](livev1connect.LiveServiceName, livev1connect.NewLiveServiceHandler, talk),
			handlers.NewService[projectv1connect.ProjectServiceHandler](
				projectv1connect.ProjectServiceName, projectv1connect.NewProjectServiceHandler, projects),
			handlers.NewService[linearv1connect.LinearServiceHandler](
				linearv1connect.LinearServiceName, linearv1connect.NewLinearServiceHandler, issues),
			handlers.NewService[coordinationv1connect.CoordinationServiceHandler](
				coordinationv1connect.CoordinationServiceName, coordinationv1connect.NewCoordinationServiceHandler, work.coordinator),
			handlers.NewService[sessionv1connect.SessionServiceHandler](
				sessionv1connect.SessionServiceName, sessionv1connect.NewSessionServiceHandler, sessions),
			handlers.NewService[watchv1connect.WatchServiceHandler](watchv1connect.WatchServiceName, watchv1connect.NewWatchServiceHandler, page),
			handlers.NewService[statev1connect.StateServiceHandler](
				statev1connect.StateServiceName, statev1connect.NewStateServiceHandler, states),
			handlers.NewService[inspectv1connect.InspectServiceHandler](
				inspectv1connect.InspectServiceName, inspectv1connect.NewInspectServiceHandler, inspect.NewManager(rt)),
		},
		Routes: []handlers.Route{{Name: "linear webhook", Path: linear.WebhookPath, Handler: linear.NewWebhook(linear.WebhookConfig{
			Kinds: known.linear, FindEndpoints: d.FindEndpoints, Open: box.Open, Now: w.now, Log: log,
		})}},
		Auth: handlers.NewAuthenticator(handlers.AuthConfig{
			Find: d.FindCredentials, Tokens: tokens, Touch: sessions.Touch, Refused: sessions.Refused,
			AddressHeader: c.AddressHeader, AddressHops: c.AddressHops, TokenHeader: c.JWT.Header, Now: w.now,
		}),
		Ping:         d.Ping,
		Origins:      c.Origins,
		NoReflection: !c.Reflection,
		Metrics:      metrics,
		Traces:       c.telemetry.tracer(),
		Log:          log,
		Now:          time.Now, // it sets deadlines, which follow the kernel's clock whatever w.now says
	}
	if c.console != nil {
		options.Routes = append(options.Routes, handlers.Route{Name: "console", Path: consoleweb.Path, Handler: c.console})
	}
	if !c.has(roleAPI) {
		options.Services, options.Routes = nil, nil
	}
	if scheduler != nil {
		options.Routes = append(options.Routes, handlers.Route{Name: "tick", Path: tickPath, Handler: &tickHandler{
			config: c.tick, tokens: scheduler, work: work, life: ctx, now: w.now, log: log,
		}})
	}
	server, err := handlers.New(options)
	if err != nil {
		return err
	}
	stopLeaving := context.AfterFunc(ended, server.Leave)
	defer stopLeaving()

	if c.has(roleJobs) {
		if err := work.queue.Start(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, work.queue.Stop(stopping())) }() //nolint:contextcheck // see closing
	}

	api, err := listen(ctx, addr, "--addr")
	if err != nil {
		return err
	}
	// The collector works harder near the container's limit instead of running into it. GOMEMLIMIT wins.
	if _, err := memlimit.Set(); err != nil {
		log.DebugContext(ctx, "no memory limit was found", "error", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	if c.AdminAddr != "" {
		admin, err := listen(ctx, c.AdminAddr, "--admin-addr")
		if err != nil {
			return errors.Join(err, api.Close())
		}
		group.Go(func() error { return serveAdmin(ctx, admin, metrics) })
		log.InfoContext(ctx, "metrics and profiles", "url", baseURL(admin))
	}
	group.Go(func() error { return server.Serve(ctx, api) })
	if err := ready(baseURL(api)); err != nil {
		cancel()
		return errors.Join(err, group.Wait())
	}
	return group.Wait()
}

func listen(ctx context.Context, addr, flag string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, wrongUsage("%s: cannot listen on %q: %v", flag, addr, err)
	}
	return l, nil
}

// baseURL returns the URL by which this machine reaches a listener.
func baseURL(l net.Listener) string {
	host, port, _ := net.SplitHostPort(l.Addr().String())
	if ip := net.ParseIP(host); ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// serveAdmin serves metrics and profiles, which only operators may see. It does not drain, because scrapes are short.
func serveAdmin(ctx context.Context, l net.Listener, metrics *prometheus.Registry) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func textLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// logConfig says how a log is written for machines.
type logConfig struct {
	LogFormat string `help:"json, or gcp, with the names that Google Cloud's logging knows; traces are linked where GOOGLE_CLOUD_PROJECT is set." enum:"json,gcp" env:"HOLDFAST_LOG_FORMAT" default:"json"`
}

func (c logConfig) log(w *console, level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "gcp" {
		project, _ := w.env("GOOGLE_CLOUD_PROJECT")
		o.ReplaceAttr = forGoogle(project)
	}
	return slog.New(slog.NewJSONHandler(w.stderr, o))
}

// forGoogle renames what Google Cloud's logging treats specially.
func forGoogle(project string) func(groups []string, a slog.Attr) slog.Attr {
	return func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case len(groups) > 0:
		case a.Key == slog.MessageKey:
			a.Key = "message"
		case a.Key == slog.LevelKey:
			a.Key = "severity"
			if a.Value.Any() == slog.LevelWarn {
				a.Value = slog.StringValue("WARNING")
			}
		case a.Key == "trace_id" && project != "":
			a = slog.String("logging.googleapis.com/trace", "projects/"+project+"/traces/"+a.Value.String()) //nolint:sloglint // a name of Google's
		}
		return a
	}
}
