package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/cmd/holdfast/internal/load"
	"holdfast/db"
	"holdfast/handlers"
	"holdfast/identity"
	"holdfast/seal"
)

// benchSystem is what is under load: a server and, where they are known, its database and its processes.
type benchSystem struct {
	target *load.Target
	// targets are all servers, the first of them target. Sessions are spread over them.
	targets []*load.Target
	token   string
	admin   *url.URL // nil: not known
	pprof   string   // the directory for profiles; empty: none

	database   *db.DB       // as the server's login; nil: not known
	operator   *db.Operator // nil: not known
	pgbenchURL string       // a login that may create a schema; empty: not known
	pgbenchDir string

	// serverPIDs are those of the servers that are measured; empty: not known. databasePID 0: not known.
	serverPIDs  []int
	databasePID int

	// Of servers that were started here.
	servers         int
	fanout, sealKey string
	databaseURL     string
	processes       []*benchServer
	box             *sandbox
	crashes         bool // Postgres is ended and started again, so it must have a directory that it finds again

	tenantTokens []string
	closers      []func(context.Context) error
}

// openBenchSystem starts a Postgres and a server, or finds the ones that the flags name.
func openBenchSystem(ctx context.Context, b *bench) (_ *benchSystem, err error) {
	s := &benchSystem{pprof: b.Pprof, servers: b.Servers, crashes: b.Soak != 0, fanout: b.Fanout, sealKey: seal.NewKey()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	api, admin := b.API, b.Admin
	if api == "" {
		fmt.Fprintln(b.log, "starting Postgres and a server")
		api, admin, err = s.start(ctx)
	} else {
		s.token, s.pgbenchURL, s.databasePID = b.Token, b.PgbenchURL, b.DatabasePID
		if b.ServerPID != 0 {
			s.serverPIDs = []int{b.ServerPID}
		}
		err = s.open(ctx, b.DatabaseURL)
	}
	if err != nil {
		return nil, err
	}
	base, err := loopbackURL(api, b.AllowRemote)
	if err != nil {
		return nil, err
	}
	s.target = &load.Target{URL: base, Codec: load.Codec(b.Codec), HTTP2: b.HTTP == "2"}
	s.targets = []*load.Target{s.target}
	for i := 1; i < len(s.processes); i++ {
		base, err := loopbackURL(s.processes[i].api, false)
		if err != nil {
			return nil, err
		}
		s.targets = append(s.targets, &load.Target{URL: base, Codec: load.Codec(b.Codec), HTTP2: b.HTTP == "2"})
	}
	s.closers = append(s.closers, func(context.Context) error {
		for _, t := range s.targets {
			t.Close()
		}
		return nil
	})
	if s.pprof == "" {
		return s, nil
	}
	if s.admin, err = loopbackURL(admin, b.AllowRemote); err != nil {
		return nil, fmt.Errorf("--pprof needs --admin: %w", err)
	}
	return s, os.MkdirAll(s.pprof, 0o755) //nolint:gosec // profiles are no secret
}

// open opens the database of a server that runs already, if its owner's URL is given.
func (s *benchSystem) open(ctx context.Context, databaseURL string) (err error) {
	if databaseURL == "" {
		return nil
	}
	if s.operator, err = db.OpenOperator(ctx, databaseURL); err != nil {
		return fmt.Errorf("--database-url: %w", err)
	}
	s.closers = append(s.closers, func(context.Context) error { s.operator.Close(); return nil })
	return nil
}

// close ends what open started, the last thing first.
func (s *benchSystem) close(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, c := range slices.Backward(s.closers) {
		errs = append(errs, c(ctx))
	}
	s.closers = nil
	return errors.Join(errs...)
}

// loopbackURL parses a base URL and refuses another machine's, unless that is wanted.
func loopbackURL(text string, allowRemote bool) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("%q is not the base URL of a server: http://host:port", text)
	}
	ip := net.ParseIP(u.Hostname())
	if u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) && !allowRemote {
		return nil, fmt.Errorf("%s is not this machine; --allow-remote puts the load there all the same", u.Host)
	}
	return u, nil
}

// tokens returns a token of each of so many tenants, which are made when they are first asked for; the token of the
// run's own tenant where it is 0.
func (s *benchSystem) tokens(ctx context.Context, tenants int) ([]string, error) {
	if tenants == 0 {
		return []string{s.token}, nil
	}
	if missing := tenants - len(s.tenantTokens); missing > 0 {
		made, err := s.makeTenants(ctx, missing)
		if err != nil {
			return nil, err
		}
		s.tenantTokens = append(s.tenantTokens, made...)
	}
	return s.tenantTokens[:tenants], nil
}

// makeTenants makes tenants with a service key each.
func (s *benchSystem) makeTenants(ctx context.Context, count int) ([]string, error) {
	tokens := make([]string, count)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(operatorConns)
	stamp := strconv.FormatInt(time.Now().UnixNano(), 36)
	for i := range tokens {
		group.Go(func() error {
			tenant := identity.Tenant(fmt.Sprintf("bench-%s-%d", stamp, i))
			if _, err := s.operator.CreateTenant(ctx, tenant, "holdfast bench"); err != nil {
				return err
			}
			token, key := handlers.NewKey(tenant, "", "holdfast bench")
			tokens[i] = token
			return s.operator.CreateKey(ctx, key)
		})
	}
	return tokens, group.Wait()
}

// cpuTimes are the CPU times of those who take part, and of the whole machine.
type cpuTimes struct{ server, database, generator, machine time.Duration }

// benchUsage is what the processes used within the measured time of a scenario.
type benchUsage struct {
	system   *benchSystem
	name     string
	measured time.Duration
	serves   bool // the server takes part

	cpuTimes

	resident int64 // the most of any server, in bytes

	profile sync.WaitGroup
	failed  error // of the profile, after it
}

func (b *bench) usage(name string, serves bool) *benchUsage {
	return &benchUsage{system: b.system, name: name, measured: b.Duration, serves: serves}
}

// observe notes what was used so far, and starts a profile where one is wanted; what it returns notes what was used
// since. What cannot be found out stays 0.
func (u *benchUsage) observe(ctx context.Context) (stop func()) {
	before := u.read()
	sampling, cancel := context.WithCancel(ctx)
	var sampler sync.WaitGroup
	if u.serves {
		sampler.Go(func() { u.sampleResident(sampling) })
	}
	if u.serves && u.system.pprof != "" {
		u.profile.Go(func() {
			u.failed = fetchProfile(ctx, u.system.admin, u.measured, filepath.Join(u.system.pprof, u.name+".pprof"))
		})
	}
	return func() {
		cancel()
		sampler.Wait()
		now := u.read()
		u.cpuTimes = cpuTimes{now.server - before.server, now.database - before.database, now.generator - before.generator, now.machine - before.machine}
	}
}

func (u *benchUsage) read() (t cpuTimes) {
	if u.serves {
		for _, pid := range u.system.serverPIDs {
			used, _ := load.OwnCPUTime(pid)
			t.server += used
		}
	}
	if u.system.databasePID != 0 {
		t.database, _ = load.CPUTime(u.system.databasePID)
	}
	t.generator, _ = load.OwnCPUTime(os.Getpid())
	t.machine, _ = load.MachineCPUTime()
	return t
}

// others is the CPU time that somebody else on the machine used; more is what pgbench used. 0 where it is not known what
// the server and the database used.
func (u *benchUsage) others(more time.Duration) time.Duration {
	if u.system.databasePID == 0 || u.serves && len(u.system.serverPIDs) == 0 {
		return 0
	}
	return max(0, u.machine-u.server-u.database-u.generator-more)
}

func (u *benchUsage) sampleResident(ctx context.Context) {
	const every = 100 * time.Millisecond
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		for _, pid := range u.system.serverPIDs {
			if now, err := load.Resident(pid); err == nil {
				u.resident = max(u.resident, now)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// err waits for the profile, if there is one, and returns why it could not be had.
func (u *benchUsage) err() error {
	u.profile.Wait()
	return u.failed
}

func fetchProfile(ctx context.Context, admin *url.URL, d time.Duration, path string) (err error) {
	const grace = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, d+grace)
	defer cancel()
	u := admin.JoinPath("debug", "pprof", "profile")
	u.RawQuery = "seconds=" + strconv.Itoa(int(max(time.Second, d)/time.Second))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return err
	}
	res, err := (&http.Client{}).Do(req)
	if err != nil {
		return fmt.Errorf("fetch a profile: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch a profile: %s", res.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, res.Body)
	return err
}
