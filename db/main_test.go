package db_test

import (
	"context"
	"errors"
	"net/url"
	"os"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/db"
	"holdfast/db/dbtest"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

func TestMain(m *testing.M) { os.Exit(dbtest.MainWithoutLeaks(m)) }

// testBundle is a tenant with raw connections, as the server's login and as a superuser.
type testBundle struct {
	*dbtest.Bundle

	ctx   context.Context
	login *pgx.Conn
	super *pgx.Conn
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	return newTestBundle(t, dbtest.New(t))
}

// setupOwn is setup on a database that no other test touches.
func setupOwn(t *testing.T) *testBundle {
	t.Helper()
	return newTestBundle(t, dbtest.Own(t))
}

func newTestBundle(t *testing.T, b *dbtest.Bundle) *testBundle {
	t.Helper()
	// It has no deadline: parallel subtests wait long for their turn on a busy machine.
	tb := &testBundle{Bundle: b, ctx: t.Context()}
	tb.login, tb.super = tb.connect(t, b.URL), tb.connect(t, b.SuperuserURL)
	return tb
}

func (b *testBundle) connect(t *testing.T, connString string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(b.ctx, connString)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.WithoutCancel(b.ctx)) })
	return conn
}

// exec runs SQL as a superuser.
func (b *testBundle) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := b.super.Exec(b.ctx, sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// newDatabase makes an empty database as an owner, and returns the owner's URL of it. It is dropped after the test.
func (b *testBundle) newDatabase(t *testing.T, ownerURL string) string {
	t.Helper()
	name := pgx.Identifier{"holdfast_new_" + uuid.NewString()[:13]}
	conn := b.connect(t, ownerURL)
	if _, err := conn.Exec(b.ctx, "CREATE DATABASE "+name.Sanitize()+" TEMPLATE template0"); err != nil {
		t.Fatal(err)
	}
	b.afterwards(t, "DROP DATABASE "+name.Sanitize()+" WITH (FORCE)")
	return withDatabase(t, ownerURL, name[0])
}

// afterwards runs SQL as a superuser when the test is over.
func (b *testBundle) afterwards(t *testing.T, statements ...string) {
	t.Helper()
	t.Cleanup(func() {
		for _, sql := range statements {
			// A role that the test did not come to make is not there to be dropped.
			if _, err := b.super.Exec(context.WithoutCancel(b.ctx), sql); err != nil && sqlState(err) != "42704" {
				t.Errorf("%s: %v", sql, err)
			}
		}
	})
}

// scope is whom a transaction acts for, role included.
type scope struct {
	role    db.Role
	tenant  identity.Tenant
	owners  string // the text of an array
	service string
}

// as runs do in a transaction of the login that enters a scope, and rolls back.
func (b *testBundle) as(t *testing.T, s scope, do func(pgx.Tx)) {
	t.Helper()
	conn := b.login
	if s.role == db.RoleOperator {
		conn = b.super // the server's login may not enter it
	}
	tx, err := conn.Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(b.ctx))
	if s.role == db.RoleJanitor {
		if _, err := dbsqlc.New(tx).EnterJanitor(b.ctx); err != nil {
			t.Fatal(err)
		}
		do(tx)
		return
	}
	if s.owners == "" {
		s.owners = "{}"
	}
	_, err = dbsqlc.New(tx).EnterScope(b.ctx, dbsqlc.EnterScopeParams{
		Role: string(s.role), TenantID: string(s.tenant), Owners: s.owners, Service: s.service,
	})
	if err != nil {
		t.Fatal(err)
	}
	do(tx)
}

// sqlState is the code of an error of Postgres; empty for none.
func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

const (
	denied    = "42501"
	malformed = "22P02"
)

// seed stores one object with a term, an entry, an event and a sleeper that has nothing, straight into the tables.
func (b *testBundle) seed(t *testing.T, tenant identity.Tenant, id, owner string) {
	t.Helper()
	for _, sql := range []string{
		`INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state, deleted,
			create_time, update_time, activity_time, expire_time)
		VALUES ($1, 'conversation', $2, $3, 0, 1, 1, '{"title": "t"}', false, now(), now(), now(), now() + interval '1 day')`,
		`INSERT INTO holdfast.terms (tenant_id, kind, object_id, owner_id, term, activity_time)
		VALUES ($1, 'conversation', $2, $3, $1 || '/conversation/t', now())`,
		`INSERT INTO holdfast.entries (tenant_id, kind, object_id, owner_id, collection, key, version, body)
		VALUES ($1, 'conversation', $2, $3, 'messages', '000000000001', 1, '{"seq": "1", "text": "hello"}')`,
		`INSERT INTO holdfast.events (tenant_id, kind, object_id, owner_id, version, event_type, actor, event_time, undo)
		VALUES ($1, 'conversation', $2, $3, 1, 'created', '', now(), '{}')`,
		`INSERT INTO holdfast.timers (tenant_id, kind, object_id, owner_id, name, due_time, next_time)
		VALUES ($1, 'conversation', $2, $3, 't', now() + interval '1 day', now() + interval '1 day')`,
	} {
		b.exec(t, sql, string(tenant), id, owner)
	}
	b.exec(t, `INSERT INTO holdfast.sleepers (tenant_id, kind, object_id, owner_id, part, row_count, bytes, compressed)
		VALUES ($1, 'conversation', $2, $3, 'entries', 0, 0, $4)`, string(tenant), id, owner, db.Compress(b.DB, ""))
}

// withUser is a URL with another user.
func withUser(t *testing.T, connString, user, password string) string {
	t.Helper()
	u, err := url.Parse(connString)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}

// withDatabase is a URL with another database.
func withDatabase(t *testing.T, connString, name string) string {
	t.Helper()
	u, err := url.Parse(connString)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}
