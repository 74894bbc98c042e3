package db_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

var tables = []string{"tenants", "api_keys", "objects", "terms", "entries", "events", "timers", "erasures", "sleepers", "usage"}

// The login has no right of its own: what is asked outside a scope is refused, whatever it is.
func TestNothingOutsideAScope(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seed(t, b.Tenant, "o1", "")
	var statements []string
	for _, table := range append(tables, "conversations", "messages") {
		statements = append(statements, "SELECT FROM holdfast."+table)
	}
	for _, table := range tables {
		statements = append(statements, "DELETE FROM holdfast."+table, "TRUNCATE holdfast."+table, "INSERT INTO holdfast."+table+" DEFAULT VALUES",
			"ALTER TABLE holdfast."+table+" DISABLE ROW LEVEL SECURITY", "COPY holdfast."+table+" TO STDOUT")
	}
	statements = append(statements, "CREATE TABLE holdfast.x ()", "SET ROLE postgres")
	statements = append(statements, b.calls(t)...)
	for _, sql := range statements {
		if _, err := b.login.Exec(b.ctx, sql); sqlState(err) != denied {
			t.Errorf("%s: %v", sql, err)
		}
	}
	// And the pool's own pipelines do enter one, which ends with them.
	for range 3 {
		p := b.DB.NewPipeline(db.Scope{Tenant: b.Tenant})
		found := 0
		p.ViewObjects(viewOf(b.Tenant, "o1"), func(*dbsqlc.ViewObjectsRow) error { found++; return nil })
		if err := b.DB.Run(b.ctx, p); err != nil || found != 1 {
			t.Errorf("found %d, %v", found, err)
		}
	}
	tx, err := b.login.Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dbsqlc.New(tx).EnterScope(b.ctx, dbsqlc.EnterScopeParams{Role: string(db.RoleApp), TenantID: string(b.Tenant), Owners: "{}", Service: "on"}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(b.ctx); err != nil {
		t.Fatal(err)
	}
	var user, tenant, service string
	err = b.login.QueryRow(b.ctx, "SELECT current_user, current_setting('app.tenant', true), current_setting('app.service', true)").Scan(&user, &tenant, &service)
	if err != nil || user != b.login.Config().User || tenant != "" || service != "" {
		t.Errorf("after its transaction the scope leaves user %q, tenant %q, service %q, %v", user, tenant, service, err)
	}
}

// calls are one of each of the schema's functions, with nothing but NULL.
func (b *testBundle) calls(t *testing.T) []string {
	t.Helper()
	return b.rows(t, `SELECT format('SELECT holdfast.%I(%s)', proname, (SELECT string_agg('NULL', ', ') FROM generate_series(1, pronargs)))
		FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace`)
}

func viewOf(tenant identity.Tenant, ids ...string) dbsqlc.ViewObjectsParams {
	p := dbsqlc.ViewObjectsParams{TenantID: string(tenant)}
	for i, id := range ids {
		p.Ords = append(p.Ords, int32(i))
		p.Kinds = append(p.Kinds, "conversation")
		p.Ids = append(p.Ids, id)
		p.Known = append(p.Known, 0)
		p.Collections = append(p.Collections, "messages")
		p.Limits = append(p.Limits, 5)
	}
	return p
}

// Each role may do what it is for.
func TestRolesSeeOnlyTheirPart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seed(t, b.Tenant, "o1", "")
	rights := map[db.Role]map[string]string{ // table: verbs that are allowed
		db.RoleApp: {
			"objects": "SELECT INSERT UPDATE DELETE", "terms": "SELECT INSERT UPDATE DELETE", "entries": "SELECT INSERT UPDATE DELETE",
			"events": "SELECT INSERT UPDATE DELETE", "timers": "SELECT INSERT UPDATE DELETE", "erasures": "SELECT INSERT UPDATE", "conversations": "SELECT", "messages": "SELECT",
			"sleepers": "SELECT INSERT UPDATE DELETE", "api_keys": "SELECT DELETE", "usage": "SELECT INSERT UPDATE DELETE",
		},
		db.RoleAuth:     {"api_keys": "SELECT", "objects": "SELECT"}, // of objects only who has which endpoint: see TestEndpoints
		db.RoleVerify:   {"api_keys": "SELECT", "objects": "SELECT"}, // of objects only the sessions that credentials name: see TestFindCredentials
		db.RoleOperator: {"tenants": "SELECT INSERT UPDATE", "api_keys": "SELECT INSERT UPDATE"},
		db.RoleJanitor: {
			"objects": "SELECT DELETE", "terms": "SELECT DELETE", "entries": "SELECT DELETE", "events": "SELECT DELETE", "timers": "SELECT DELETE",
			"sleepers": "SELECT DELETE", "tenants": "SELECT", "usage": "SELECT INSERT UPDATE", "erasures": "SELECT",
		},
	}
	for role, allowed := range rights {
		for _, table := range append(tables, "conversations", "messages") {
			for verb, sql := range map[string]string{
				"SELECT": "SELECT tenant_id FROM holdfast.%s", "INSERT": "INSERT INTO holdfast.%s (tenant_id) SELECT '' WHERE false",
				"UPDATE": "UPDATE holdfast.%s SET owner_id = '' WHERE false", "DELETE": "DELETE FROM holdfast.%s WHERE false",
				"TRUNCATE": "TRUNCATE holdfast.%s",
			} {
				if verb != "SELECT" && !slices.Contains(tables, table) {
					continue
				}
				b.as(t, scope{role: role, tenant: b.Tenant}, func(tx pgx.Tx) {
					_, err := tx.Exec(b.ctx, fmt.Sprintf(sql, table))
					want := denied
					if slices.Contains(strings.Fields(allowed[table]), verb) {
						want = ""
					}
					if sqlState(err) != want {
						t.Errorf("%s by %s on %s: %v", verb, role, table, err)
					}
				})
			}
		}
	}
}

// Row-level security by itself, whatever the queries say: tenants, owners, and what may be written.
func TestRowLevelSecurity(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := identity.Tenant("other-" + string(b.Tenant))
	for _, tenant := range []identity.Tenant{b.Tenant, other} {
		b.seed(t, tenant, "shared", "")
		b.seed(t, tenant, "alices", "alice")
		b.seed(t, tenant, "bobs", "bob")
	}
	all := []string{"alices", "bobs", "shared"}
	for name, c := range map[string]struct {
		scope
		sees []string
	}{
		"a user":                      {scope{tenant: b.Tenant, owners: "{alice}"}, []string{"alices", "shared"}},
		"two users":                   {scope{tenant: b.Tenant, owners: "{alice,bob}"}, all},
		"nobody":                      {scope{tenant: b.Tenant}, []string{"shared"}},
		"a stranger":                  {scope{tenant: b.Tenant, owners: "{eve}"}, []string{"shared"}},
		"the owner of what is shared": {scope{tenant: b.Tenant, owners: `{""}`}, []string{"shared"}},
		"a service":                   {scope{tenant: b.Tenant, service: "on"}, all},
		"what is nearly a service":    {scope{tenant: b.Tenant, service: "true"}, []string{"shared"}},
		"no tenant":                   {scope{owners: "{alice}", service: "on"}, nil},
		"an unknown tenant":           {scope{tenant: "nobody-" + b.Tenant, owners: "{alice}", service: "on"}, nil},
		"a pattern for a tenant":      {scope{tenant: "%", service: "on"}, nil},
	} {
		for table, id := range map[string]string{
			"objects": "object_id", "terms": "object_id", "entries": "object_id", "events": "object_id", "timers": "object_id", "sleepers": "object_id",
			"conversations": "conversation_id", "messages": "conversation_id",
		} {
			c.role = db.RoleApp
			b.as(t, c.scope, func(tx pgx.Tx) {
				rows, err := tx.Query(b.ctx, fmt.Sprintf("SELECT %s FROM holdfast.%s ORDER BY 1", id, table))
				if err != nil {
					t.Fatal(err)
				}
				got, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil || !slices.Equal(got, c.sees) {
					t.Errorf("%s sees %v of %s, want %v, %v", name, got, table, c.sees, err)
				}
			})
		}
		for _, table := range objectTables {
			b.as(t, c.scope, func(tx pgx.Tx) {
				tag, err := tx.Exec(b.ctx, "UPDATE holdfast."+table+" SET owner_id = owner_id")
				if err != nil || int(tag.RowsAffected()) != len(c.sees) {
					t.Errorf("%s changes %d of %s, %v", name, tag.RowsAffected(), table, err)
				}
				tag, err = tx.Exec(b.ctx, "DELETE FROM holdfast."+table)
				if err != nil || int(tag.RowsAffected()) != len(c.sees) {
					t.Errorf("%s deletes %d of %s, %v", name, tag.RowsAffected(), table, err)
				}
			})
		}
	}

	for name, sql := range map[string]string{
		"an object for another tenant": `INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version,
			state, create_time, update_time, activity_time) VALUES ('other', 'k', 'new', 'alice', 0, 1, 1, '{}', now(), now(), now())`,
		"giving an object away":    `UPDATE holdfast.objects SET owner_id = 'bob' WHERE object_id = 'alices'`,
		"moving to another tenant": `UPDATE holdfast.objects SET tenant_id = 'x' WHERE object_id = 'alices'`,
		"an entry for another user": `INSERT INTO holdfast.entries VALUES
			(current_setting('app.tenant'), 'conversation', 'bobs', 'messages', '2', 'bob', 1, '{}')`,
		"an event for another user": `INSERT INTO holdfast.events (tenant_id, kind, object_id, version, owner_id, event_type, actor, event_time, undo)
			VALUES (current_setting('app.tenant'), 'conversation', 'bobs', 2, 'bob', '', '', now(), '{}')`,
		"a term for another user":    `INSERT INTO holdfast.terms VALUES (current_setting('app.tenant'), 'conversation', 'bobs', 't2', 'bob', now())`,
		"a sleeper for another user": `INSERT INTO holdfast.sleepers VALUES (current_setting('app.tenant'), 'k', 'bobs', 'events', 'bob', 0, 0, NULL, '')`,
		"row security off":           `SET LOCAL row_security = off; SELECT FROM holdfast.objects`,
	} {
		b.as(t, scope{role: db.RoleApp, tenant: b.Tenant, owners: "{alice}"}, func(tx pgx.Tx) {
			_, err := tx.Exec(b.ctx, sql)
			if sqlState(err) != denied {
				t.Errorf("%s: %v", name, err)
			}
		})
	}

	// Settings that were never made, or are no array, open nothing.
	for _, settings := range []string{"", "SELECT set_config('app.owners', '', true), set_config('app.tenant', '" + string(b.Tenant) + "', true)"} {
		tx, err := b.login.Begin(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(b.ctx, "SET LOCAL ROLE holdfast_app; "+settings); err != nil {
			t.Fatal(err)
		}
		var n int
		err = tx.QueryRow(b.ctx, "SELECT count(*) FROM holdfast.objects").Scan(&n)
		if n != 0 || err != nil && sqlState(err) != malformed {
			t.Errorf("after %q: %d objects, %v", settings, n, err)
		}
		if err := tx.Rollback(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// An owned entry is seen by its own owner and by services, not by the owner of the object; one without an owner by services alone.
func TestOwnedEntriesAreTheirOwners(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(t, `INSERT INTO holdfast.entries SELECT $1, 'conversation', 'shared', 'ledger', k, o, 1, '{}', true
		FROM (VALUES ('a', 'alice'), ('b', 'bob'), ('s', '')) v (k, o)`, string(b.Tenant))
	for name, c := range map[string]struct {
		scope
		sees []string
	}{
		"a user":       {scope{owners: "{alice}"}, []string{"a"}},
		"two users":    {scope{owners: "{alice,bob}"}, []string{"a", "b"}},
		"nobody":       {scope{}, nil},
		"another user": {scope{owners: "{eve}"}, nil},
		"a service":    {scope{service: "on"}, []string{"a", "b", "s"}},
	} {
		c.role, c.tenant = db.RoleApp, b.Tenant
		b.as(t, c.scope, func(tx pgx.Tx) {
			rows, err := tx.Query(b.ctx, "SELECT key FROM holdfast.entries ORDER BY key")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || !slices.Equal(got, c.sees) {
				t.Errorf("%s sees %v, want %v, %v", name, got, c.sees, err)
			}
		})
	}
	for _, sql := range []string{
		`INSERT INTO holdfast.entries VALUES (current_setting('app.tenant'), 'conversation', 'shared', 'ledger', 'n', 'bob', 1, '{}', true)`,
		`INSERT INTO holdfast.entries VALUES (current_setting('app.tenant'), 'conversation', 'shared', 'ledger', 'n', '', 1, '{}', true)`,
		`UPDATE holdfast.entries SET owner_id = 'bob'`,
		`UPDATE holdfast.entries SET owner_id = ''`,
	} {
		b.as(t, scope{role: db.RoleApp, tenant: b.Tenant, owners: "{alice}"}, func(tx pgx.Tx) {
			if _, err := tx.Exec(b.ctx, sql); sqlState(err) != denied {
				t.Errorf("%s: %v", sql, err)
			}
		})
	}
}

// User ids travel as the text of an array, and none of them may mean another.
func TestOwnersWithOddNames(t *testing.T) {
	t.Parallel()
	b := setup(t)
	names := []identity.User{
		`a"b`, `a\b`, `a\"b`, `a,b`, `{a}`, `{`, `}`, ` a `, "\t", `NULL`, `null`, `'`, `''`, "ünïcødé 😀", "a\nb", `\`, `\\`, `"`, `""`, "a", "b", "alice,bob",
	}
	for i, name := range names {
		b.seed(t, b.Tenant, fmt.Sprint("o", i), string(name))
	}
	see := func(owners ...identity.User) (ids []string) {
		t.Helper()
		p := b.DB.NewPipeline(db.Scope{Tenant: b.Tenant, Owners: owners})
		all := make([]string, len(names))
		for i := range names {
			all[i] = fmt.Sprint("o", i)
		}
		p.ViewObjects(viewOf(b.Tenant, all...), func(r *dbsqlc.ViewObjectsRow) error {
			ids = append(ids, all[r.Ord]+" "+r.OwnerID)
			return nil
		})
		if err := b.DB.Run(b.ctx, p); err != nil {
			t.Fatalf("%q: %v", owners, err)
		}
		slices.Sort(ids)
		return ids
	}
	var everything []string
	for i, name := range names {
		want := []string{fmt.Sprint("o", i) + " " + string(name)}
		everything = append(everything, want...)
		if got := see(name); !slices.Equal(got, want) {
			t.Errorf("%q sees %q", name, got)
		}
	}
	slices.Sort(everything)
	if got := see(names...); !slices.Equal(got, everything) {
		t.Errorf("all together see %q, want %q", got, everything)
	}
}

// The authenticator sees the one key that a credential names, the janitor what has expired.
func TestAuthAndJanitor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hash := make([]byte, 32)
	for _, id := range []string{"k1-" + string(b.Tenant), "k2-" + string(b.Tenant)} {
		if err := b.Operator.CreateKey(b.ctx, db.Key{Tenant: b.Tenant, ID: id, SecretHash: hash}); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	b.as(t, scope{role: db.RoleAuth}, func(tx pgx.Tx) {
		if _, err := tx.Exec(b.ctx, "SELECT set_config('app.key_id', $1, true)", "k2-"+string(b.Tenant)); err != nil {
			t.Fatal(err)
		}
		rows, err := tx.Query(b.ctx, "SELECT key_id FROM holdfast.api_keys")
		if err != nil {
			t.Fatal(err)
		}
		if ids, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			t.Fatal(err)
		}
	})
	if !slices.Equal(ids, []string{"k2-" + string(b.Tenant)}) {
		t.Errorf("the authenticator sees %v", ids)
	}
	b.as(t, scope{role: db.RoleAuth}, func(tx pgx.Tx) {
		var n int
		if err := tx.QueryRow(b.ctx, "SELECT count(*) FROM holdfast.api_keys").Scan(&n); err != nil || n != 0 {
			t.Errorf("without a credential the authenticator sees %d keys, %v", n, err)
		}
	})

	b.seed(t, b.Tenant, "old", "alice")
	b.seed(t, b.Tenant, "young", "")
	b.exec(t, "UPDATE holdfast.objects SET expire_time = now() WHERE tenant_id = $1 AND object_id = 'old'", string(b.Tenant))
	b.as(t, scope{role: db.RoleJanitor}, func(tx pgx.Tx) {
		rows, err := tx.Query(b.ctx, "DELETE FROM holdfast.objects WHERE tenant_id = $1 RETURNING object_id", string(b.Tenant))
		if err != nil {
			t.Fatal(err)
		}
		if ids, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || !slices.Equal(ids, []string{"old"}) {
			t.Errorf("the janitor deletes %v, %v", ids, err)
		}
	})
}

// What analysts see has types.
func TestViews(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seed(t, b.Tenant, "c1", "alice")
	b.exec(t, `UPDATE holdfast.objects SET state = '{"title": "T", "last_seq": "2", "labels": {"a": "b"}}' WHERE tenant_id = $1`, string(b.Tenant))
	b.as(t, scope{role: db.RoleApp, tenant: b.Tenant, owners: "{alice}"}, func(tx pgx.Tx) {
		var title, text string
		var count, tokens, seq int64
		if err := tx.QueryRow(b.ctx, "SELECT title, message_count, token_count FROM holdfast.conversations").Scan(&title, &count, &tokens); err != nil ||
			title != "T" || count != 2 || tokens != 0 {
			t.Errorf("conversations: %q %d %d, %v", title, count, tokens, err)
		}
		if err := tx.QueryRow(b.ctx, "SELECT seq, text, token_count FROM holdfast.messages").Scan(&seq, &text, &tokens); err != nil || seq != 1 || text != "hello" {
			t.Errorf("messages: %d %q, %v", seq, text, err)
		}
	})
}
