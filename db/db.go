// Package db is how Holdfast holds Postgres: a pool whose every transaction enters a scope, pipelines of statements
// that sqlc has checked, and the errors of Postgres in the words of the callers.
package db

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"holdfast/gen/dbsqlc"
)

// Config says how to reach Postgres.
type Config struct {
	// URL is a connection string of the server's login, which must not own the tables.
	URL string
	// MaxConns bounds the pool. 0: DefaultMaxConns.
	MaxConns int
	// Traces makes a span of each round trip of a traced call. nil: none.
	Traces trace.TracerProvider
	// ConnectTimeout bounds Open. 0: connectTimeout.
	ConnectTimeout time.Duration
	// Now reads this machine's clock, the monotonic one too. nil: time.Now. Tests set it to see what follows where the
	// database's time is taken for another than it is.
	Now func() time.Time
}

// DefaultMaxConns is the pool's size where none is given. Group commit needs few connections: more only make
// Postgres's processes take turns on its cores.
const DefaultMaxConns = 16

// DB is a pool of connections to Postgres. It is safe for concurrent use.
type DB struct {
	pool     *pgxpool.Pool
	clock    *clock
	maxConns int
	changes  sync.Pool // of *Changes
	rooms    sync.Pool // of *room
}

// Open connects and checks the login: one that could step round row-level security, or make tenants and API keys, is
// refused with an error that says how to mend it.
func Open(ctx context.Context, c Config) (*DB, error) {
	pc, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("the database URL is not valid: %w", err)
	}
	pc.MaxConns = int32(DefaultMaxConns)
	if c.MaxConns > 0 {
		pc.MaxConns = int32(min(c.MaxConns, 10_000))
	}
	if c.Traces != nil {
		pc.ConnConfig.Tracer = otelpgx.NewTracer(otelpgx.WithTracerProvider(c.Traces))
	}
	pc.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		registerParams(conn)
		return nil
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
	defer cancel()
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, translate(err, false)
	}
	d := &DB{pool: pool, clock: newClock(c.Now), maxConns: int(pc.MaxConns)}
	err = d.checkLogin(ctx)
	if err == nil {
		err = d.Ping(ctx) // the first change is computed by the database's clock, too
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return d, nil
}

// Close closes the pool. It waits for the connections in use, up to closeTimeout.
func (d *DB) Close() { closePool(d.pool) }

// closeTimeout bounds the wait for connections in use. pgx waits up to 15 s for each connection to a Postgres that no longer
// answers, and a process that is told to stop has less.
const closeTimeout = 500 * time.Millisecond

func closePool(pool *pgxpool.Pool) {
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
	}
}

// MaxConns is the size of the pool.
func (d *DB) MaxConns() int { return d.maxConns }

// Now is the database's clock, extrapolated from its last answer, in whole microseconds.
func (d *DB) Now() time.Time { return d.clock.now() }

// Ping asks Postgres for its time.
func (d *DB) Ping(ctx context.Context) error {
	asked := d.clock.read()
	var now time.Time
	if err := d.pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&now); err != nil {
		return translate(err, false)
	}
	d.clock.sample(asked, now)
	return nil
}

// connectTimeout bounds Open and OpenOperator.
const connectTimeout = 10 * time.Second

var errNotMigrated = errors.New("the database's schema is missing or older than this release: run `holdfast migrate up` with the owner's URL first")

// LoginError says why the login may not be used, and the SQL that mends it.
type LoginError struct {
	Login  string
	Reason string
	Mend   string
}

func (e *LoginError) Error() string {
	return fmt.Sprintf("database login %q %s. To mend it, as the owner of the database:\n%s", e.Login, e.Reason, e.Mend)
}

// grantsInherit is the version from which on a grant, and not the role, says whether it is inherited.
const grantsInherit = 160000

func (d *DB) checkLogin(ctx context.Context) error {
	roles := loginRoles()
	l, err := dbsqlc.New(d.pool).CheckLogin(ctx, roles)
	if errors.Is(err, pgx.ErrNoRows) {
		return errors.New("db: the login has no role")
	}
	if err != nil {
		return translate(err, false)
	}
	login := pgx.Identifier{l.Login}.Sanitize()
	refuse := func(reason string, mend ...string) error {
		return &LoginError{Login: l.Login, Reason: reason, Mend: strings.Join(mend, "\n")}
	}
	grants := func(login string) string {
		return "  " + strings.Join(loginGrants(login, int(l.ServerVersion)), ";\n  ") + ";"
	}
	separate := []string{
		"  CREATE ROLE holdfast LOGIN NOINHERIT PASSWORD '…';",
		grants("holdfast"),
		"and put that login into the server's database URL.",
	}
	switch {
	case l.ServerVersion < 150000:
		return fmt.Errorf("postgres %d is too old: 15 or newer is needed", l.ServerVersion/10000)
	case l.Superuser:
		return refuse("is a superuser, whom row-level security does not bind", separate...)
	case l.BypassesRls:
		return refuse("has BYPASSRLS, so row-level security does not bind it", "  ALTER ROLE "+login+" NOBYPASSRLS;")
	case l.CreatesRoles:
		return refuse("has CREATEROLE, so it could grant itself the right to make API keys", "  ALTER ROLE "+login+" NOCREATEROLE;")
	case l.OwnsTables:
		return refuse("owns the tables, so it could switch row-level security off", separate...)
	case !l.Migrated:
		return errNotMigrated
	case len(l.Excess) > 0:
		excess := make([]string, len(l.Excess))
		for i, role := range l.Excess {
			excess[i] = pgx.Identifier{role}.Sanitize()
		}
		all := strings.Join(excess, ", ")
		return refuse("may act as "+all+", which may do more than the server needs", "  REVOKE "+all+" FROM "+login+";")
	case l.Inherits:
		mend := []string{"  ALTER ROLE " + login + " NOINHERIT;"}
		if l.ServerVersion >= grantsInherit {
			mend = append(mend, "  "+loginGrants(login, int(l.ServerVersion))[0]+";")
		}
		return refuse("inherits its roles' rights, so a query outside a scope would not fail", mend...)
	case !l.HasUsage || int(l.MemberOf) < len(roles) || !l.HasJobs:
		return refuse("lacks rights that the server needs", grants(login))
	case l.Isolation != "read committed":
		// Under a lock that was waited for, REPEATABLE READ would show the rows from before the wait.
		return refuse("has another default isolation than READ COMMITTED, which the write path builds on",
			"  ALTER ROLE "+login+" SET default_transaction_isolation = 'read committed';")
	}
	return nil
}
