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

// A login that could step round row-level security, or would not work, is refused, and the SQL that the refusal names
// mends it.
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
		{"owns a table", fine + "ALTER TABLE holdfast.events OWNER TO $", "owns the tables"}, // last: it is not given back
	} {
		t.Run(c.name, func(t *testing.T) {
			login := b.newLogin(t)
			b.exec(t, strings.ReplaceAll(c.setUp, "$", login))
			refused := false
			for range 5 {
				d, err := db.Open(b.ctx, db.Config{URL: withUser(t, b.OwnerURL, login, "secret")})
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
				if flaw.Login != login || !strings.Contains(err.Error(), flaw.Mend) || !strings.Contains(err.Error(), login) {
					t.Errorf("the error does not say whom it is about or how to mend it: %v", err)
				}
				refused = true
				login = b.mend(t, flaw.Mend, login)
			}
			t.Error("what was said to mend it does not")
		})
	}
}

// wantPowerless fails the test where a login may do anything outside a scope.
func (b *testBundle) wantPowerless(t *testing.T, login string) {
	t.Helper()
	conn := b.connect(t, withUser(t, b.OwnerURL, login, "secret"))
	for _, table := range tables {
		if _, err := conn.Exec(b.ctx, "SELECT FROM holdfast."+table); sqlState(err) != denied {
			t.Errorf("outside a scope %s may read %s: %v", login, table, err)
		}
	}
}

// mend runs the SQL of a refusal, and returns the login to use from then on.
func (b *testBundle) mend(t *testing.T, mend, login string) string {
	t.Helper()
	if strings.Contains(mend, "CREATE ROLE holdfast ") {
		// The role that it makes belongs to the cluster, which other tests use.
		login = b.newLogin(t)
		mend = regexp.MustCompile(`(ROLE|TO) holdfast\b`).ReplaceAllString(mend, "$1 "+login)
		mend = strings.ReplaceAll(mend, "PASSWORD '…'", "PASSWORD 'secret'")
	}
	statements := 0
	for line := range strings.Lines(mend) {
		if sql := strings.TrimSpace(line); strings.HasSuffix(sql, ";") {
			b.exec(t, sql)
			statements++
		}
	}
	if statements == 0 {
		t.Fatalf("there is no SQL in %q", mend)
	}
	return login
}

// newLogin is a name for a role, which is dropped after the test with all that it was granted.
func (b *testBundle) newLogin(t *testing.T) string {
	t.Helper()
	name := "holdfast_login_" + strings.ReplaceAll(uuid.NewString(), "-", "")[:12]
	for _, role := range []string{name, name + "_group"} {
		b.afterwards(t, "REASSIGN OWNED BY "+role+" TO CURRENT_USER", "DROP OWNED BY "+role, "DROP ROLE "+role)
	}
	return name
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

// A login that is made twice, or at once, is the same; one that was made carelessly is put right.
func TestEnsureLogin(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	login := b.newLogin(t)
	done := make(chan error)
	const atOnce = 4
	for range atOnce {
		go func() { done <- db.EnsureLogin(b.ctx, b.OwnerURL, login, `pass'word\`) }()
	}
	for range atOnce {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	careless := b.newLogin(t)
	b.exec(t, "CREATE ROLE "+careless+" LOGIN BYPASSRLS; GRANT holdfast_app, holdfast_operator TO "+careless)
	if err := db.EnsureLogin(b.ctx, b.OwnerURL, careless, `pass'word\`); err != nil {
		t.Fatal(err)
	}
	for _, l := range []string{login, careless} {
		d, err := db.Open(b.ctx, db.Config{URL: withUser(t, b.OwnerURL, l, `pass'word\`)})
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		b.exec(t, "ALTER ROLE "+l+" PASSWORD 'secret'")
		b.wantPowerless(t, l)
	}
	if err := db.EnsureLogin(b.ctx, withUser(t, b.OwnerURL, login, `pass'word\`), "x", "x"); err == nil {
		t.Error("a login made another")
	}
}
