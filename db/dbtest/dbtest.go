// Package dbtest gives each test a real Postgres with the product's schema and a tenant of its own: the product's own
// isolation isolates its tests, so all of them run in parallel on one database. There is one server for a test binary,
// the first that is to be had of HOLDFAST_TEST_DATABASE_URL, Docker and local binaries; HOLDFAST_TEST_BACKEND forces
// docker or local.
package dbtest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"holdfast/db"
	"holdfast/identity"
)

// Bundle is a test's database and tenant.
type Bundle struct {
	// DB is open as the server's login, in a tenant-isolated database that other tests share.
	DB *db.DB
	// Operator makes tenants and keys in it, as its owner.
	Operator *db.Operator
	// URL is the server's login's.
	URL string
	// MigrateURL is that of the database's owner, which made the schema and the login. As on a managed Postgres, it may create
	// roles and databases, and is no superuser: row-level security hides every row from it.
	MigrateURL string
	// SuperuserURL is for tests that look at all rows, or meddle with the cluster.
	SuperuserURL string
	// DirectURL is URL, unless that goes through a pooler: then this one does not, for who listens.
	DirectURL string
	// Tenant is fresh.
	Tenant identity.Tenant
}

// As returns a context of one of the tenant's users.
func (b *Bundle) As(tb testing.TB, u identity.User) context.Context {
	tb.Helper()
	return identity.With(tb.Context(), identity.Identity{Tenant: b.Tenant, User: u})
}

// AsService returns a context of a service of the tenant.
func (b *Bundle) AsService(tb testing.TB) context.Context {
	tb.Helper()
	return identity.With(tb.Context(), identity.Identity{Tenant: b.Tenant, Service: true})
}

const (
	login    = "holdfast_test"
	owner    = "holdfast_test_owner"
	password = "holdfast-test"
)

// shared is the one server and database of a test binary. Process-wide by nature: a server takes seconds to start.
//
//nolint:gochecknoglobals // see above
var shared struct {
	once   sync.Once
	err    error
	server *server
	bundle Bundle
	drop   func()
	// pooler is the address of a pooler in front of the server; empty: there is none.
	pooler     string
	stopPooler func()
}

// New returns a bundle on the shared database with a tenant of its own. The test fails where there is no server.
func New(tb testing.TB) *Bundle {
	tb.Helper()
	shared.once.Do(func() { shared.err = start() })
	if shared.err != nil {
		tb.Fatalf("a test database is needed: %v", shared.err)
	}
	b := shared.bundle
	b.Tenant = newTenant()
	if _, err := b.Operator.CreateTenant(tb.Context(), b.Tenant, tb.Name()); err != nil {
		tb.Fatal(err)
	}
	return &b
}

// Own returns a bundle on a database that no other test touches, for tests that see beyond their tenant.
func Own(tb testing.TB) *Bundle {
	tb.Helper()
	New(tb)
	ctx, cancel := setupContext()
	defer cancel()
	b, drop, err := newDatabase(ctx, shared.server.adminURL, shared.pooler)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(drop)
	b.Tenant = newTenant()
	if _, err := b.Operator.CreateTenant(tb.Context(), b.Tenant, tb.Name()); err != nil {
		tb.Fatal(err)
	}
	return &b
}

// Main runs a package's tests and stops the server they started: func TestMain(m *testing.M) { os.Exit(dbtest.Main(m)) }
func Main(m *testing.M) int {
	// Tests of a machine in UTC find what depends on the zone, too.
	time.Local = time.FixedZone("Asia/Kathmandu", 5*3600+45*60)
	code := m.Run()
	if shared.drop != nil {
		shared.drop()
	}
	if shared.stopPooler != nil {
		shared.stopPooler()
	}
	if shared.server != nil {
		shared.server.stop()
	}
	return code
}

// MainWithoutLeaks is Main for packages that leave no goroutine running.
func MainWithoutLeaks(m *testing.M) int {
	code := Main(m)
	if code != 0 {
		return code
	}
	// The reaper's connection lives as long as the process: by its end Docker knows that the containers may go.
	reaper := goleak.IgnoreTopFunction("github.com/testcontainers/testcontainers-go.(*Reaper).connect.func1")
	if err := goleak.Find(reaper); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func newTenant() identity.Tenant { return identity.Tenant("t-" + uuid.NewString()) }

func setupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 5*time.Minute)
}

func start() error {
	ctx, cancel := setupContext()
	defer cancel()
	s, err := startServer(ctx)
	if err != nil {
		return err
	}
	shared.server = s
	if binary := os.Getenv(poolerVar); binary != "" {
		if shared.pooler, shared.stopPooler, err = startPooler(ctx, binary, s.adminURL); err != nil {
			return explain(poolerVar, err)
		}
	}
	shared.bundle, shared.drop, err = newDatabase(ctx, s.adminURL, shared.pooler)
	return err
}

// newDatabase copies the template of the present migrations, which it makes first where there is none: a copy takes
// a tenth of a second, the migrations many times that.
func newDatabase(ctx context.Context, adminURL, pooler string) (b Bundle, drop func(), err error) {
	hash, err := db.MigrationsHash()
	if err != nil {
		return b, nil, err
	}
	template := "holdfast_template_" + hash
	name := "holdfast_test_" + uuid.NewString()[:13]
	admin, err := pgx.Connect(ctx, adminURL)
	if err != nil {
		return b, nil, err
	}
	defer admin.Close(ctx)
	// Test binaries run side by side and may share the server.
	if _, err := admin.Exec(ctx, "SELECT pg_advisory_lock(hashtext('holdfast template'))"); err != nil {
		return b, nil, err
	}
	var known bool
	if err := admin.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datistemplate)", template).Scan(&known); err != nil {
		return b, nil, err
	}
	if !known {
		if err := makeTemplate(ctx, admin, adminURL, template); err != nil {
			return b, nil, err
		}
	}
	quoted := pgx.Identifier{name}.Sanitize()
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+quoted+" TEMPLATE "+pgx.Identifier{template}.Sanitize()+" OWNER "+owner); err != nil {
		return b, nil, err
	}
	b.SuperuserURL = withDatabase(adminURL, name, nil)
	b.MigrateURL = withDatabase(adminURL, name, url.UserPassword(owner, password))
	b.DirectURL = withDatabase(adminURL, name, url.UserPassword(login, password))
	if b.URL = b.DirectURL; pooler != "" {
		b.URL = throughPooler(b.DirectURL, pooler)
	}
	if b.DB, err = db.Open(ctx, db.Config{URL: b.URL}); err != nil {
		return b, nil, err
	}
	if b.Operator, err = db.OpenOperator(ctx, b.MigrateURL); err != nil {
		b.DB.Close()
		return b, nil, err
	}
	return b, func() {
		b.DB.Close()
		b.Operator.Close()
		ctx, cancel := setupContext()
		defer cancel()
		admin, err := pgx.Connect(ctx, adminURL)
		if err != nil {
			return // the server is gone, and the database with it
		}
		defer admin.Close(ctx)
		if _, err := admin.Exec(ctx, "DROP DATABASE IF EXISTS "+quoted+" WITH (FORCE)"); err != nil {
			fmt.Fprintln(os.Stderr, "dbtest:", err)
		}
	}, nil
}

func makeTemplate(ctx context.Context, admin *pgx.Conn, adminURL, template string) error {
	quoted := pgx.Identifier{template}.Sanitize()
	ownerURL := withDatabase(adminURL, template, url.UserPassword(owner, password))
	exec := func(sql string) func() error {
		return func() error { _, err := admin.Exec(ctx, sql); return err }
	}
	for _, step := range []func() error{
		exec("DROP DATABASE IF EXISTS " + quoted),
		exec(makeOwner),
		exec("CREATE DATABASE " + quoted + " OWNER " + owner),
		func() error { return db.MigrateUp(ctx, ownerURL) },
		func() error { return db.EnsureLogin(ctx, ownerURL, login, password) },
		exec("ALTER DATABASE " + quoted + " IS_TEMPLATE true"),
	} {
		if err := step(); err != nil {
			return fmt.Errorf("making the template database: %w", err)
		}
	}
	return nil
}

// makeOwner makes the owner of all test databases. On a server that tests have used before, the roles of the schema may be
// there, made by another.
const makeOwner = `DO $do$
DECLARE
  r text;
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '` + owner + `') THEN
    CREATE ROLE ` + owner + ` LOGIN CREATEROLE CREATEDB PASSWORD '` + password + `';
  END IF;
  FOR r IN SELECT rolname FROM pg_roles WHERE rolname ~ '^holdfast_' AND rolname <> '` + owner + `'
    AND NOT rolsuper AND NOT pg_has_role('` + owner + `', oid, 'MEMBER WITH ADMIN OPTION') LOOP
    EXECUTE format('GRANT %I TO ` + owner + ` WITH ADMIN OPTION', r);
  END LOOP;
END
$do$`

// withDatabase is a URL of the same server with another database, and another user where one is given.
func withDatabase(adminURL, database string, user *url.Userinfo) string {
	u, err := url.Parse(adminURL)
	if err != nil {
		panic(err) // pgx has connected with it
	}
	u.Path = "/" + database
	if user != nil {
		u.User = user
	}
	return u.String()
}
