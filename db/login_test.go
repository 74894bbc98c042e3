package db_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"holdfast/db"
)

// A login that could bypass row-level security, or would not work, is refused. The SQL in the refusal fixes it.
//
//nolint:tparallel // its cases change the same rows of the catalogue
func TestLoginThatIsRefused(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	const fine = "CREATE ROLE $ LOGIN NOINHERIT PASSWORD 'secret'; GRANT holdfast_app, holdfast_auth, holdfast_janitor, holdfast_verify TO $; GRANT USAGE ON SCHEMA holdfast TO $;" +
		"GRANT USAGE ON SCHEMA holdfast_jobs TO $; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA holdfast_jobs TO $; GRANT USAGE ON ALL SEQUENCES IN SCHEMA holdfast_jobs TO $;"
	for _, c := range []struct {
		name, setUp, reason string
	}{
		{"nothing wrong", fine, ""},
		{"superuser", fine + "ALTER ROLE $ SUPERUSER", "superuser"},
		{"BYPASSRLS", fine + "ALTER ROLE $ BYPASSRLS", "BYPASSRLS"},
		{"inherits", fine + "ALTER ROLE $ INHERIT", "inherits"},
		{"inherited when it was granted", "CREATE ROLE $ LOGIN PASSWORD 'secret'; GRANT holdfast_app, holdfast_auth, holdfast_janitor, holdfast_verify TO $; GRANT USAGE ON SCHEMA holdfast TO $", "inherits"},
		{"no roles", "CREATE ROLE $ LOGIN NOINHERIT PASSWORD 'secret'; GRANT USAGE ON SCHEMA holdfast TO $", "lacks rights"},
		{"one role missing", fine + "REVOKE holdfast_verify FROM $", "lacks rights"},
		{"the operator's role", fine + "GRANT holdfast_operator TO $", "holdfast_operator"},
		{"the operator's role through another", fine + "CREATE ROLE $_group NOLOGIN NOINHERIT; GRANT holdfast_operator TO $_group; GRANT $_group TO $", "may act as"},
		{"a superuser's group", fine + "CREATE ROLE $_group NOLOGIN SUPERUSER; GRANT $_group TO $", "may act as"},
		{"a group with BYPASSRLS", fine + "CREATE ROLE $_group NOLOGIN BYPASSRLS; GRANT $_group TO $", "may act as"},
		{"the owner's group", fine + "CREATE ROLE $_group NOLOGIN; ALTER TABLE holdfast.terms OWNER TO $_group; GRANT $_group TO $", "may act as"},
		{"programs of the server", fine + "GRANT pg_execute_server_program TO $", "pg_execute_server_program"},
		{"CREATEROLE", fine + "ALTER ROLE $ CREATEROLE", "CREATEROLE"},
		{"no schema", fine + "REVOKE USAGE ON SCHEMA holdfast FROM $", "lacks rights"},
		{"no rights on the queue", fine + "REVOKE ALL ON SCHEMA holdfast_jobs FROM $", "lacks rights"},
		{"one table of the queue missing", fine + "REVOKE DELETE ON holdfast_jobs.river_job FROM $", "lacks rights"},
		{"one sequence of the queue missing", fine + "REVOKE ALL ON ALL SEQUENCES IN SCHEMA holdfast_jobs FROM $", "lacks rights"},
		{"nothing at all", "CREATE ROLE $ LOGIN NOINHERIT PASSWORD 'secret'", "lacks rights"},
		{"repeatable read", fine + "ALTER ROLE $ SET default_transaction_isolation = 'repeatable read'", "READ COMMITTED"},
		{"serializable", fine + "ALTER ROLE $ SET default_transaction_isolation = 'serializable'", "READ COMMITTED"},
		{"several at once", "CREATE ROLE $ LOGIN BYPASSRLS PASSWORD 'secret'; ALTER ROLE $ SET default_transaction_isolation = 'serializable'", "BYPASSRLS"},
		{"owns a table", fine + "ALTER ROLE $ CREATEROLE; ALTER TABLE holdfast.events OWNER TO $", "owns the tables"}, // last: it is not given back
	} {
		t.Run(c.name, func(t *testing.T) {
			login := b.newLogin(t)
			b.exec(t, strings.ReplaceAll(c.setUp, "$", login))
			refused := false
			for range 5 {
				d, err := db.Open(b.ctx, db.Config{URL: withUser(t, b.SuperuserURL, login, "secret")})
				if err == nil {
					d.Close()
					if refused != (c.reason != "") {
						t.Errorf("refused: %t", refused)
					}
					b.wantPowerless(t, login)
					return
				}
				var flaw *db.LoginError
				if !errors.As(err, &flaw) {
					t.Fatal(err)
				}
				if !refused && (c.reason == "" || !strings.Contains(flaw.Reason, c.reason)) {
					t.Errorf("refused, because it %s", flaw.Reason)
				}
				if flaw.Login != login || !strings.Contains(err.Error(), flaw.Fix) || !strings.Contains(err.Error(), login) {
					t.Errorf("the error does not say whom it is about or how to fix it: %v", err)
				}
				refused = true
				login = b.fix(t, flaw.Fix, login)
			}
			t.Error("the SQL in the refusal does not fix it")
		})
	}
}

// wantPowerless fails the test where a login may do anything outside a scope.
func (b *testBundle) wantPowerless(t *testing.T, login string) {
	t.Helper()
	conn := b.connect(t, withUser(t, b.SuperuserURL, login, "secret"))
	for _, table := range tables {
		if _, err := conn.Exec(b.ctx, "SELECT FROM holdfast."+table); sqlState(err) != denied {
			t.Errorf("outside a scope %s may read %s: %v", login, table, err)
		}
	}
}

// fix runs the SQL in a refusal, and returns the login to use from then on.
func (b *testBundle) fix(t *testing.T, sql, login string) string {
	t.Helper()
	if strings.Contains(sql, "CREATE ROLE holdfast ") {
		// The role that it makes belongs to the cluster, which other tests use.
		login = b.newLogin(t)
		sql = regexp.MustCompile(`(ROLE|TO) holdfast\b`).ReplaceAllString(sql, "$1 "+login)
		sql = strings.ReplaceAll(sql, "PASSWORD '…'", "PASSWORD 'secret'")
	}
	statements := 0
	for line := range strings.Lines(sql) {
		if statement := strings.TrimSpace(line); strings.HasSuffix(statement, ";") {
			b.exec(t, statement)
			statements++
		}
	}
	if statements == 0 {
		t.Fatalf("there is no SQL in %q", sql)
	}
	return login
}

// newLogin is a name for a role, which is dropped after the test with all that it was granted.
func (b *testBundle) newLogin(t *testing.T) string {
	t.Helper()
	name := "holdfast_login_" + strings.ReplaceAll(uuid.NewString(), "-", "")[:12]
	b.dropLogin(t, name)
	b.dropLogin(t, name+"_group")
	return name
}

// dropLogin drops a role after the test, with all that it was granted.
func (b *testBundle) dropLogin(t *testing.T, name string) {
	t.Helper()
	name = pgx.Identifier{name}.Sanitize()
	b.afterwards(t, "REASSIGN OWNED BY "+name+" TO CURRENT_USER", "DROP OWNED BY "+name, "DROP ROLE "+name)
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	empty := "holdfast_empty_" + uuid.NewString()[:13]
	b.exec(t, "CREATE DATABASE "+pgx.Identifier{empty}.Sanitize()+" TEMPLATE template0")
	b.afterwards(t, "DROP DATABASE "+pgx.Identifier{empty}.Sanitize()+" WITH (FORCE)")
	for name, c := range map[string]struct {
		url  string
		says string
		is   error
	}{
		"no schema":      {withDatabase(t, b.URL, empty), "migrate", nil},
		"no database":    {withDatabase(t, b.URL, "no-such-database"), "does not exist", nil},
		"nobody listens": {"postgres://x@127.0.0.1:1/x", "", db.ErrUnavailable},
		"nonsense":       {"postgres://%%", "not valid", nil},
		"nonsense in it": {withDatabase(t, b.URL, "x") + "?pool_max_conns=many", "not valid", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := db.Open(b.ctx, db.Config{URL: c.url})
			if err == nil {
				d.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), c.says) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A login that is made twice, or at once, is the same. Its maker is the owner of the database, who is no superuser.
func TestAnOwnerWhoIsNoSuperuserMakesTheLogin(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	plain := b.newLogin(t)
	logins := map[string]string{
		plain:                  `pass'word\`,
		plain + ` "o'$$` + "é": `$$'; \ "$body$ %L`,
		plain + "%s-A":         "secret",
	}
	for login := range logins {
		b.dropLogin(t, login)
	}
	// The same roles and login serve a second database of the cluster.
	second := b.newDatabase(t, b.MigrateURL)
	if err := db.MigrateUp(b.ctx, second); err != nil {
		t.Fatal(err)
	}
	for login, password := range logins {
		done := make(chan error)
		urls := []string{b.MigrateURL, second, b.MigrateURL, second}
		for _, u := range urls {
			go func() { done <- db.EnsureLogin(b.ctx, u, login, password) }()
		}
		for range urls {
			if err := <-done; err != nil {
				t.Errorf("%q: %v", login, err)
			}
		}
		for _, u := range []string{b.MigrateURL, second} {
			if err := db.EnsureLogin(b.ctx, u, login, password); err != nil {
				t.Errorf("%q, again: %v", login, err)
			}
			d, err := db.Open(b.ctx, db.Config{URL: withUser(t, u, login, password)})
			if err != nil {
				t.Errorf("%q: %v", login, err)
				continue
			}
			d.Close()
		}
	}
	b.exec(t, "ALTER ROLE "+plain+" PASSWORD 'secret'")
	b.wantPowerless(t, plain)
}

// A superuser puts a login right that was made carelessly.
func TestASuperuserMendsALogin(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	for _, careless := range []string{"LOGIN BYPASSRLS", "SUPERUSER", "LOGIN"} {
		login := b.newLogin(t)
		b.exec(t, "CREATE ROLE "+login+" "+careless+"; GRANT holdfast_app, holdfast_auth TO "+login)
		if err := db.EnsureLogin(b.ctx, b.SuperuserURL, login, "secret"); err != nil {
			t.Fatal(err)
		}
		d, err := db.Open(b.ctx, db.Config{URL: withUser(t, b.SuperuserURL, login, "secret")})
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		b.wantPowerless(t, login)
	}
}

// Where the owner's rights do not suffice, the error has the SQL with which they do.
func TestAnOwnerWhoMayNotMakeTheLoginIsToldWhatToDo(t *testing.T) { //nolint:tparallel // a cluster has one set of roles
	t.Parallel()
	b := setupOwn(t)
	var version int
	if err := b.super.QueryRow(b.ctx, "SELECT current_setting('server_version_num')::integer").Scan(&version); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, owner, login string
		refused, mended    bool
	}{
		{"may create roles", "CREATEROLE", "", version >= 160000, true}, // from 16 on the schema's roles are their maker's
		{"may not create roles", "", "", true, true},
		{"the login is another's", "CREATEROLE", "LOGIN", version >= 160000, true},
		{"the login has BYPASSRLS", "CREATEROLE", "LOGIN BYPASSRLS", true, true},
		{"the login is a superuser", "CREATEROLE", "SUPERUSER", true, true},
		{"the login is the owner", "CREATEROLE", "itself", true, false},
		{"the login has no name", "CREATEROLE", "empty", true, false},
		{"the login has a name of 64 bytes", "CREATEROLE", "long", true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			owner, login := b.newLogin(t), b.newLogin(t)
			b.exec(t, "CREATE ROLE "+owner+" LOGIN CREATEDB PASSWORD 'secret' "+c.owner)
			url := b.newDatabase(t, withUser(t, b.SuperuserURL, owner, "secret"))
			switch c.login {
			case "":
			case "itself":
				login = owner
			case "empty":
				login = ""
			case "long":
				login = strings.Repeat("x", 64)
			default:
				b.exec(t, "CREATE ROLE "+login+" "+c.login)
			}
			// The schema comes up as its second owner's.
			if err := db.MigrateUp(b.ctx, url); err != nil && c.owner != "" {
				t.Fatal(err)
			}
			for attempt := range 4 {
				err := db.EnsureLogin(b.ctx, url, login, "secret")
				if attempt == 0 && (err != nil) != c.refused {
					t.Errorf("refused: %v", err)
				}
				if err == nil {
					break
				}
				if !c.mended {
					return
				}
				if errors.Is(err, db.ErrForbidden) {
					t.Fatalf("the error does not say what to do: %v", err)
				}
				b.fix(t, err.Error(), login)
				if err := db.MigrateUp(b.ctx, url); err != nil {
					t.Fatal(err)
				}
			}
			d, err := db.Open(b.ctx, db.Config{URL: withUser(t, url, login, "secret")})
			if err != nil {
				t.Fatal(err)
			}
			d.Close()
		})
	}
}

// The server's login makes no logins.
func TestALoginMakesNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if err := db.EnsureLogin(b.ctx, b.URL, "x", "x"); err == nil {
		t.Error("a login made another")
	}
}

// Names that cannot be logins are refused with what to do, not with what Postgres says.
func TestARoleIsNoLogin(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, name := range []string{"holdfast_app", "holdfast_auth", "holdfast_janitor", "holdfast_verify", "holdfast_operator", "pg_read_all_data", "pg_mine"} {
		if err := db.EnsureLogin(b.ctx, b.MigrateURL, name, "secret"); err == nil || !strings.Contains(err.Error(), "name another") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who migrates with the server's URL is told whose it takes.
func TestTheServersLoginMigratesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if err := db.MigrateUp(b.ctx, b.URL); err == nil || !strings.Contains(err.Error(), "database's owner") {
		t.Errorf("up: %v", err)
	}
	if err := db.MigrateDown(b.ctx, b.URL); err == nil || !strings.Contains(err.Error(), "database's owner") {
		t.Errorf("down: %v", err)
	}
}

// A login whose identity the database's host verifies has no password: it is granted its rights, and keeps what it has.
func TestALoginWithoutAPasswordIsGrantedItsRights(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	login := b.newLogin(t)
	if err := db.EnsureLogin(b.ctx, b.SuperuserURL, login, ""); err == nil || !strings.Contains(err.Error(), "HOLDFAST_LOGIN_PASSWORD") {
		t.Errorf("a login that is not there: %v", err)
	}
	b.exec(t, "CREATE ROLE "+login+" LOGIN PASSWORD 'its own'")
	if err := db.EnsureLogin(b.ctx, b.SuperuserURL, login, ""); err != nil {
		t.Fatal(err)
	}
	d, err := db.Open(b.ctx, db.Config{URL: withUser(t, b.SuperuserURL, login, "its own")})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
}

// The pool of each server is its share of what Postgres accepts of the login, at most what it is told.
func TestThePoolIsAServersShare(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	login := b.newLogin(t)
	if err := db.EnsureLogin(b.ctx, b.SuperuserURL, login, "secret"); err != nil {
		t.Fatal(err)
	}
	url := withUser(t, b.SuperuserURL, login, "secret")
	b.exec(t, "ALTER ROLE "+login+" CONNECTION LIMIT 46")
	for _, tt := range []struct{ servers, most, want int }{
		{0, 0, db.DefaultMaxConns}, {1, 0, db.DefaultMaxConns}, {1, 100, 37}, {4, 100, 7}, {4, 5, 5}, {8, 0, 2},
	} {
		d, err := db.Open(b.ctx, db.Config{URL: url, Servers: tt.servers, MaxConns: tt.most})
		if err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		if got := d.MaxConns(); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
		d.Close()
	}
	if _, err := db.Open(b.ctx, db.Config{URL: url, Servers: 9}); err == nil || !strings.Contains(err.Error(), "46 connections") {
		t.Errorf("nine servers: %v", err)
	}
}
