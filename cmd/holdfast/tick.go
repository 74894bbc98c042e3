package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"holdfast/db"
	"holdfast/handlers"
	"holdfast/handlers/coordination"
	"holdfast/identity"
	"holdfast/jobs"
	"holdfast/object"
	"holdfast/seal"
)

// workConfig has the flags of what is done without a call, by servers and by tick.
type workConfig struct {
	SealKeys []string `help:"Keys that secrets are kept under, newest first, separated by commas: base64 of 32 bytes each, as openssl rand -base64 32 makes them." env:"HOLDFAST_SEAL_KEYS" placeholder:"KEY"`

	Quotas quotaConfig `embed:"" group:"What may be stored; 0 is no limit:"`

	sweepConfig

	Linear linearConfig `embed:"" prefix:"linear-" group:"Linear, for tenants with an endpoint:"`
}

func (c workConfig) check() error {
	return errors.Join(c.checkSweep(), c.Linear.check(), c.Quotas.check())
}

func (c workConfig) box() (*seal.Box, error) {
	box, err := seal.NewBox(c.SealKeys...)
	if err != nil {
		return nil, wrongUsage("--seal-keys or HOLDFAST_SEAL_KEYS: %v; `openssl rand -base64 32` makes one", err)
	}
	return box, nil
}

// work is a runtime that knows all kinds, and a queue that knows all jobs.
type work struct {
	rt          *object.Runtime
	kinds       kinds
	queue       *jobs.Queue
	coordinator *coordination.Manager
	// See linearConfig.addJobs.
	syncNow, sendNow func(ctx context.Context, t identity.Tenant, id string) error
}

// work starts a runtime, which the caller closes, and makes a queue, which does not run yet. The Config has what is not the same for all.
func (c workConfig) work(d *db.DB, box *seal.Box, log *slog.Logger, metrics prometheus.Registerer, o object.Config) *work {
	o.Log, o.Metrics, o.Quotas = log, metrics, c.Quotas.quotas()
	w := &work{rt: object.NewRuntime(d, o), queue: jobs.New(d, jobs.Config{Log: log})}
	w.kinds = registerKinds(w.rt)
	c.addJobs(w.queue, d, w.rt, metrics)
	w.coordinator = coordination.NewManager(w.kinds.apis, d.Now)
	metrics.MustRegister(w.coordinator.Metrics())
	w.syncNow, w.sendNow = c.Linear.addJobs(w.queue, d, w.kinds.linear, box, w.coordinator, metrics, log)
	return w
}

// tick does once what servers do without a call: it runs timers and jobs that are due. It returns how many timers it ran.
func (w *work) tick(ctx context.Context) (timers int, err error) {
	timers, err = w.rt.RunDueTimers(ctx)
	return timers, errors.Join(err, w.queue.RunOnce(ctx))
}

// tickCmd is `holdfast tick`.
type tickCmd struct {
	databaseConfig
	workConfig
	logConfig
}

// tickConns lets some timers and jobs run at once.
const tickConns = 4

// Run ticks once. It is for a scheduler, where servers get no CPU between calls.
func (c *tickCmd) Run(ctx context.Context, w *console) (err error) {
	if err := c.check(); err != nil {
		return err
	}
	box, err := c.box()
	if err != nil {
		return err
	}
	d, err := c.open(ctx, tickConns)
	if err != nil {
		return err
	}
	defer d.Close()
	work := c.work(d, box, c.log(w, slog.LevelInfo), prometheus.NewRegistry(), object.Config{Sealer: box})
	defer func() { err = errors.Join(err, work.rt.Close(context.WithoutCancel(ctx))) }()
	timers, err := work.tick(ctx)
	_, printed := fmt.Fprintf(w.stdout, "ran %d timers, and the jobs that were due\n", timers)
	return errors.Join(err, printed)
}

// tickConfig says who may tick a server by HTTP: nobody without a caller.
type tickConfig struct {
	Caller   string `help:"Who may POST to /tick, by the email of its OpenID token: a scheduler's service account. Default: nobody." env:"HOLDFAST_TICK_CALLER" placeholder:"EMAIL"`
	Audience string `help:"The token's aud: the URL of this service, as the scheduler has it." env:"HOLDFAST_TICK_AUDIENCE" placeholder:"URL"`
	Issuer   string `help:"The token's iss." env:"HOLDFAST_TICK_ISSUER" default:"https://accounts.google.com" placeholder:"URL"`
	JWKSURL  string `help:"Where the issuer publishes its keys." name:"jwks-url" env:"HOLDFAST_TICK_JWKS_URL" default:"https://www.googleapis.com/oauth2/v3/certs" placeholder:"URL"`
}

const emailClaim = "email"

// tokens returns nil if nobody may.
func (c tickConfig) tokens(ctx context.Context, log *slog.Logger, now func() time.Time) (*handlers.Tokens, error) {
	if c.Caller == "" {
		return nil, nil
	}
	tokens, err := handlers.NewTokens(ctx, handlers.TokenConfig{
		Issuer: c.Issuer, Audience: c.Audience, JWKSURL: c.JWKSURL, TenantClaim: emailClaim, UserClaim: emailClaim, Log: log, Now: now,
	})
	if err != nil {
		return nil, wrongUsage("%v; see the --tick flags", err)
	}
	return tokens, nil
}

const (
	tickPath = "/tick"
	// tickTime bounds a tick by HTTP. What is left then is for the next one.
	tickTime = 25 * time.Minute
)

// tickHandler answers a scheduler's call once the tick is done. Calls that come meanwhile get the same answer.
type tickHandler struct {
	config tickConfig
	tokens *handlers.Tokens
	work   *work
	life   context.Context //nolint:containedctx // the server's: a caller that leaves does not end a tick
	now    func() time.Time
	log    *slog.Logger
	flight singleflight.Group
}

// ServeHTTP implements [http.Handler].
func (h *tickHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "a tick is a POST", http.StatusMethodNotAllowed)
		return
	}
	if status, err := h.admit(r); err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	answer := http.NewResponseController(w)
	_ = answer.SetReadDeadline(time.Time{})
	timers, err, _ := h.flight.Do("", func() (any, error) { //nolint:contextcheck // see life
		ctx, cancel := context.WithTimeout(h.life, tickTime)
		defer cancel()
		return h.work.tick(ctx)
	})
	_ = answer.SetWriteDeadline(h.now().Add(10 * time.Second))
	if err != nil {
		h.log.WarnContext(r.Context(), "a tick failed", "error", err)
		http.Error(w, "not all was done; the log says why", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"timers":%d}`+"\n", timers)
}

// admit returns an error and its status unless the caller is the one who may tick.
func (h *tickHandler) admit(r *http.Request) (status int, err error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return http.StatusUnauthorized, errors.New("send the header `Authorization: Bearer <OpenID token>`")
	}
	claims, err := h.tokens.Claims(r.Context(), token)
	if err != nil {
		return http.StatusUnauthorized, err
	}
	if claims[emailClaim] != h.config.Caller || claims["email_verified"] != true {
		return http.StatusForbidden, errors.New("the token's email is not the one of --tick-caller, or is not verified")
	}
	return 0, nil
}
