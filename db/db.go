// Package db connects Holdfast to Postgres. Every transaction of its pool enters a scope, its pipelines send statements that
// sqlc has checked, and it translates Postgres's errors for its callers.
package db

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"holdfast/gen/dbsqlc"
)

// Config configures Open.
type Config struct {
	// URL is a connection string of the server's login, which must not own the tables.
	URL string
	// MaxConns bounds the pool. 0: DefaultMaxConns.
	MaxConns int
	// Servers is the most servers that there are at once: the pool is bounded by a server's share of Postgres's connections, too.
	// 0: it is not.
	Servers int
	// Traces makes a span of each round trip of a traced call. nil: none.
	Traces trace.TracerProvider
	// ConnectTimeout bounds Open. 0: connectTimeout.
	ConnectTimeout time.Duration
	// Now reads this machine's clock, with its monotonic reading. nil: time.Now. Tests step it, so that the estimate of the
	// database's time is wrong.
	Now func() time.Time
}

// DefaultMaxConns sizes the pool unless Config does. Group commit needs few connections; more of them only make Postgres's
// processes compete for its cores.
const DefaultMaxConns = 16

// DB is a pool of connections to Postgres. It is safe for concurrent use.
type DB struct {
	pool     *pgxpool.Pool
	clock    *clock
	maxConns int
	zip      zip
}

// Open connects and checks the login. It returns a LoginError, which has the SQL that fixes it, for a login that could bypass
// row-level security, or create tenants or API keys.
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
		answerInUTC(conn)
		return nil
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
	defer cancel()
	if c.Servers > 0 {
		share, err := shareOf(ctx, pc.ConnConfig, c.Servers)
		if err != nil {
			return nil, err
		}
		pc.MaxConns = min(pc.MaxConns, int32(share)) //nolint:gosec // Postgres has at most 262,143
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, translate(err, false)
	}
	d := &DB{pool: pool, clock: newClock(c.Now), maxConns: int(pc.MaxConns)}
	d.zip, err = newZip()
	if err == nil {
		err = d.checkLogin(ctx)
	}
	if err == nil {
		err = d.Ping(ctx) // the first change is computed by the database's clock, too
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return d, nil
}

const (
	// forOperators is how many of Postgres's connections are left for commands, backups and people.
	forOperators = 6
	// besidePool is how many connections a server has in addition to its pool, to listen and to notify.
	besidePool = 3
	minPool    = 2
)

// shareOf returns how large the pool of each of so many servers can be.
func shareOf(ctx context.Context, c *pgx.ConnConfig, servers int) (int, error) {
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return 0, translate(err, false)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var limit int
	if err := conn.QueryRow(ctx, `SELECT least(current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
			- coalesce(current_setting('reserved_connections', true)::integer, 0), nullif(d.datconnlimit, -1), nullif(r.rolconnlimit, -1))
		FROM pg_catalog.pg_database d, pg_catalog.pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user`).Scan(&limit); err != nil {
		return 0, translate(err, false)
	}
	share := (limit-forOperators)/servers - besidePool
	if share < minPool {
		return 0, fmt.Errorf("postgres takes %d connections of this login; less %d for operators, that is not the %d that each of %d servers needs: allow fewer servers, or raise max_connections",
			limit, forOperators, minPool+besidePool, servers)
	}
	return share, nil
}

// answerInUTC makes conn answer times in UTC. pgx would answer in the zone of the machine.
func answerInUTC(conn *pgx.Conn) {
	instant := &pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}}
	conn.TypeMap().RegisterType(instant)
	conn.TypeMap().RegisterType(&pgtype.Type{Name: "_timestamptz", OID: pgtype.TimestamptzArrayOID, Codec: &pgtype.ArrayCodec{ElementType: instant}})
}

// Close closes the pool. It waits for the connections in use, up to closeTimeout.
func (d *DB) Close() { closePool(d.pool) }

// closeTimeout bounds the wait for connections in use. pgx waits up to 15 s for each connection to a Postgres that no longer
// answers; a process that has to stop has less time.
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

// MaxConns returns the size of the pool.
func (d *DB) MaxConns() int { return d.maxConns }

// Now returns the database's time, extrapolated from its last answer, in whole microseconds.
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

// LoginError refuses a database login. Fix is the SQL that makes it usable, or creates another.
type LoginError struct {
	Login  string
	Reason string
	Fix    string
}

func (e *LoginError) Error() string {
	return fmt.Sprintf("database login %q %s. To fix it, run as the owner of the database:\n%s", e.Login, e.Reason, e.Fix)
}

// grantsInherit is the first version of Postgres in which the grant decides about inheritance, not the role.
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
	refuse := func(reason string, fix ...string) error {
		return &LoginError{Login: l.Login, Reason: reason, Fix: strings.Join(fix, "\n")}
	}
	grants := func(login string) string {
		return "  " + strings.Join(loginGrants(login, int(l.ServerVersion)), ";\n  ") + ";"
	}
	separate := []string{
		"  CREATE ROLE holdfast LOGIN NOINHERIT PASSWORD '…';",
		grants("holdfast"),
		"and use that login in the server's database URL.",
	}
	switch {
	case l.ServerVersion < 150000:
		return fmt.Errorf("postgres %d is too old: 15 or newer is needed", l.ServerVersion/10000)
	case l.Superuser:
		return refuse("is a superuser, which row-level security does not restrict", separate...)
	case l.OwnsTables:
		return refuse("owns the tables: this is the owner's URL, which only `migrate`, `tenant` and `key` commands need. The server needs the login of "+
			"`holdfast migrate up --login NAME`", separate...)
	case l.BypassesRls:
		return refuse("has BYPASSRLS, so row-level security does not restrict it", "  ALTER ROLE "+login+" NOBYPASSRLS;")
	case l.CreatesRoles:
		return refuse("has CREATEROLE, so it could grant itself the right to make API keys", "  ALTER ROLE "+login+" NOCREATEROLE;")
	case !l.Migrated:
		return errNotMigrated
	case len(l.Excess) > 0:
		excess := make([]string, len(l.Excess))
		for i, role := range l.Excess {
			excess[i] = pgx.Identifier{role}.Sanitize()
		}
		all := strings.Join(excess, ", ")
		return refuse("may act as "+all+", which has more rights than the server needs", "  REVOKE "+all+" FROM "+login+";")
	case l.Inherits:
		fix := []string{"  ALTER ROLE " + login + " NOINHERIT;"}
		if l.ServerVersion >= grantsInherit {
			fix = append(fix, "  "+loginGrants(login, int(l.ServerVersion))[0]+";")
		}
		return refuse("inherits its roles' rights, so a query outside a scope would not fail", fix...)
	case !l.HasUsage || int(l.MemberOf) < len(roles) || !l.HasJobs:
		return refuse("lacks rights that the server needs", grants(login))
	case l.Isolation != "read committed":
		// After a wait for a lock, REPEATABLE READ would still show the rows from before the wait.
		return refuse("has a default isolation other than READ COMMITTED, which the write path needs",
			"  ALTER ROLE "+login+" SET default_transaction_isolation = 'read committed';")
	}
	return nil
}
