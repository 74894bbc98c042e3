package db_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
)

// rows are those of a query on the catalogue.
func (b *testBundle) rows(t *testing.T, sql string, args ...any) []string {
	t.Helper()
	rows, err := b.super.Query(b.ctx, sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What every table must be like for tenants never to meet, and for the schema to be distributed by tenant as it stands.
func TestCatalogue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	got := b.rows(t, `SELECT relname FROM pg_class WHERE relnamespace = 'holdfast'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1`)
	if want := slices.Sorted(slices.Values(tables)); !slices.Equal(got, want) {
		t.Errorf("the tests know the tables %v, there are %v", want, got)
	}
	for rule, sql := range map[string]string{
		"a primary key with tenant_id first": `SELECT c.relname FROM pg_class c
			WHERE c.relnamespace = 'holdfast'::regnamespace AND c.relkind IN ('r', 'p') AND NOT EXISTS (
				SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
				WHERE i.indrelid = c.oid AND i.indisprimary AND a.attname = 'tenant_id')`,
		"an owner_id and a tenant_id that are never null": `SELECT c.relname || '.' || n.name FROM pg_class c, (VALUES ('tenant_id'), ('owner_id')) n (name)
			WHERE c.relnamespace = 'holdfast'::regnamespace AND c.relkind IN ('r', 'p') AND NOT EXISTS (
				SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = n.name AND a.attnotnull)`,
		"row-level security, enabled and forced": `SELECT relname FROM pg_class
			WHERE relnamespace = 'holdfast'::regnamespace AND relkind IN ('r', 'p') AND NOT (relrowsecurity AND relforcerowsecurity)`,
		"no foreign key": `SELECT conname FROM pg_constraint WHERE connamespace = 'holdfast'::regnamespace AND contype = 'f'`,
		"no unique index that crosses tenants": `SELECT i.indexrelid::regclass::text FROM pg_index i
			JOIN pg_class c ON c.oid = i.indrelid LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
			WHERE c.relnamespace = 'holdfast'::regnamespace AND i.indisunique AND a.attname IS DISTINCT FROM 'tenant_id'`,
		// What distributing by tenant_id (Citus) asks for beside the keys and indexes above.
		"tenant_id of one type": `SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
			WHERE c.relnamespace = 'holdfast'::regnamespace AND c.relkind IN ('r', 'p') AND a.atttypid <> 'text'::regtype`,
		"tenant_id in every unique constraint and exclusion": `SELECT conname FROM pg_constraint k
			WHERE k.connamespace = 'holdfast'::regnamespace AND k.contype IN ('p', 'u', 'x') AND NOT EXISTS (
				SELECT FROM pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) AND a.attname = 'tenant_id')`,
		"no identity or default that counts, no inheritance, no temporary or unlogged table": `SELECT c.relname FROM pg_class c
			WHERE c.relnamespace = 'holdfast'::regnamespace AND c.relkind IN ('r', 'p') AND (c.relpersistence <> 'p'
				OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
				OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attidentity <> '')
				OR EXISTS (SELECT FROM pg_attrdef d WHERE d.adrelid = c.oid AND pg_get_expr(d.adbin, d.adrelid) LIKE '%nextval%'))`,
		"no trigger":  `SELECT t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE c.relnamespace = 'holdfast'::regnamespace`,
		"no sequence": `SELECT relname FROM pg_class WHERE relnamespace = 'holdfast'::regnamespace AND relkind = 'S'`,
		"keys that sort bytewise": `SELECT c.relname || '.' || a.attname FROM pg_index i
			JOIN pg_class c ON c.oid = i.indrelid JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
			WHERE c.relnamespace = 'holdfast'::regnamespace AND a.atttypid = 'text'::regtype AND a.attcollation <> '"C"'::regcollation`,
		"views that keep the caller's rights": `SELECT relname FROM pg_class
			WHERE relnamespace = 'holdfast'::regnamespace AND relkind IN ('v', 'm') AND NOT coalesce('security_invoker=true' = ANY (reloptions), false)`,
		"functions that keep the caller's rights": `SELECT proname FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace AND prosecdef`,
		"functions that not everybody may run": `SELECT proname FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace
			AND has_function_privilege('public', oid, 'EXECUTE')`,
		"nothing for everybody": `SELECT c.relname FROM pg_class c, aclexplode(c.relacl) a
			WHERE c.relnamespace = 'holdfast'::regnamespace AND a.grantee = 0`,
		"roles without a login or a way round row-level security": `SELECT rolname FROM pg_roles
			WHERE rolname IN ('holdfast_app', 'holdfast_auth', 'holdfast_operator', 'holdfast_janitor', 'holdfast_verify')
			AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)`,
		// A policy may cross tenants only for the roles that are named here, with what keeps them from an object's content.
		"policies that name the tenant": `SELECT polname FROM pg_policy
			WHERE pg_get_expr(polqual, polrelid) NOT LIKE '%tenant_id = ( SELECT current_setting(''app.tenant''::text, true)%'
			AND polname NOT IN ('api_keys_auth', 'tenants_operator', 'api_keys_operator', 'api_keys_verify', 'objects_verify', 'tenants_janitor', 'objects_endpoint_auth',
				'objects_janitor', 'terms_janitor', 'entries_janitor', 'events_janitor', 'events_janitor_walk', 'events_janitor_trim', 'timers_janitor', 'timers_janitor_parked', 'sleepers_janitor', 'sleepers_janitor_walk', 'sleepers_janitor_trim', 'usage_janitor', 'erasures_janitor')`,
		"constraints named for their table": `SELECT conname FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid
			WHERE c.connamespace = 'holdfast'::regnamespace AND c.contype <> 'n' AND NOT starts_with(c.conname, r.relname || '_')`,
	} {
		if broken := b.rows(t, sql); len(broken) > 0 {
			t.Errorf("%s: not so with %v", rule, broken)
		}
	}
}

// Large values are compressed by lz4 where the server can.
func TestCompression(t *testing.T) {
	t.Parallel()
	b := setup(t)
	want := b.rows(t, `SELECT c FROM pg_settings, unnest(ARRAY['entries.body', 'events.reply', 'events.undo', 'objects.state']) c
		WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)`)
	got := b.rows(t, `SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
		WHERE c.relnamespace = 'holdfast'::regnamespace AND a.attcompression = 'l' ORDER BY 1`)
	if !slices.Equal(got, want) {
		t.Errorf("compressed by lz4: %v, want %v", got, want)
	}
}

// An ordinary change leaves no index to be written: what it changes is not indexed.
func TestOrdinaryUpdatesAreHOT(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	if err := b.store(storing(b.Tenant, "a", 0)); err != nil {
		t.Fatal(err)
	}
	first := storing(b.Tenant, "a", 1)
	b.exec(t, "UPDATE holdfast.objects SET activity_time = $1", first.Objects[0].Activity)
	tx, err := b.super.Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(b.ctx)
	count := func() (updates, hot int64) {
		t.Helper()
		err := tx.QueryRow(b.ctx, "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'objects'").Scan(&updates, &hot)
		if err != nil {
			t.Fatal(err)
		}
		return updates, hot
	}
	updates, hot := count()
	if _, err := dbsqlc.New(tx).StoreChanges(b.ctx, first.Params()); err != nil {
		t.Fatal(err)
	}
	if u, h := count(); u != updates+1 || h != hot+1 {
		t.Errorf("%d updates, of them %d HOT", u-updates, h-hot)
	}
}

func TestMigrateUpDownUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	url := b.newDatabase(t, b.MigrateURL)
	applied := func(want bool) {
		t.Helper()
		all, err := db.Migrations(b.ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 0 {
			t.Fatal("there are no migrations")
		}
		for i, m := range all {
			if m.Applied != want || m.Version != int64(i+1) || !strings.HasSuffix(m.Name, ".sql") {
				t.Errorf("%+v, applied should be %t", m, want)
			}
		}
	}
	shape := func() []string {
		t.Helper()
		conn := b.connect(t, url)
		defer conn.Close(b.ctx)
		rows, err := conn.Query(b.ctx, `SELECT pg_describe_object(classid, objid, 0) FROM pg_depend
			WHERE refobjid = to_regnamespace('holdfast') UNION
			SELECT table_name || '.' || column_name || ' ' || data_type FROM information_schema.columns WHERE table_schema = 'holdfast' ORDER BY 1`)
		if err != nil {
			t.Fatal(err)
		}
		out, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	applied(false)
	errs := make(chan error)
	for range 3 { // at once
		go func() { errs <- db.MigrateUp(b.ctx, url) }()
	}
	for range 3 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	applied(true)
	first := shape()
	if len(first) < 20 {
		t.Errorf("the schema is %v", first)
	}
	all, err := db.Migrations(b.ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	for range all {
		if err := db.MigrateDown(b.ctx, url); err != nil {
			t.Fatal(err)
		}
	}
	applied(false)
	if left := shape(); len(left) != 0 {
		t.Errorf("down left %v", left)
	}
	if err := db.MigrateDown(b.ctx, url); err == nil || !strings.Contains(err.Error(), "no migration to undo") {
		t.Errorf("there was nothing to undo: %v", err)
	}
	if err := db.MigrateUp(b.ctx, url); err != nil {
		t.Fatal(err)
	}
	applied(true)
	if again := shape(); !slices.Equal(again, first) {
		t.Errorf("up again made %v, the first time %v", again, first)
	}

	hash, err := db.MigrationsHash()
	if err != nil || len(hash) != 16 {
		t.Errorf("hash %q, %v", hash, err)
	}
	if err := db.MigrateUp(b.ctx, withDatabase(t, b.MigrateURL, "no-such-database")); err == nil {
		t.Error("a database that is not there was migrated")
	}
}

// Each migration brings the functions up to date: what differs is replaced, and what no file has goes. Statements that a server has
// prepared go on.
func TestMigrateReplacesFunctions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	url := b.newDatabase(t, b.MigrateURL)
	if err := db.MigrateUp(b.ctx, url); err != nil {
		t.Fatal(err)
	}
	conn := b.connect(t, url)
	defer conn.Close(b.ctx)
	functions := func() []string {
		t.Helper()
		rows, err := conn.Query(b.ctx, "SELECT concat(pg_get_functiondef(oid), proacl) FROM pg_proc WHERE pronamespace = 'holdfast'::regnamespace ORDER BY 1")
		if err != nil {
			t.Fatal(err)
		}
		all, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	first := functions()
	for _, sql := range []string{
		"CREATE FUNCTION holdfast.list_stored_tenants(text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
		"CREATE FUNCTION holdfast.gone() RETURNS void LANGUAGE sql AS ''",
		"CREATE OR REPLACE FUNCTION holdfast.list_stored_tenants() RETURNS SETOF text LANGUAGE sql AS 'SELECT 1::text'",
	} {
		if _, err := conn.Exec(b.ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if slices.Equal(functions(), first) {
		t.Fatal("nothing differs")
	}
	const prepared = "SELECT count(*)::integer FROM holdfast.list_stored_tenants()"
	for _, want := range []int{1, 0} {
		var n int
		if err := conn.QueryRow(b.ctx, prepared).Scan(&n); err != nil || n != want {
			t.Errorf("a prepared statement: %d, %v; want %d", n, err, want)
		}
		if err := db.MigrateUp(b.ctx, url); err != nil {
			t.Fatal(err)
		}
	}
	if again := functions(); !slices.Equal(again, first) {
		t.Errorf("the functions are %v, and were %v", again, first)
	}
}

// What this release does not know it leaves alone, and says so.
func TestMigrateRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for says, sql := range map[string]string{
		"from before the first release": "CREATE SCHEMA holdfast",
		"migration 999 of a newer": `CREATE TABLE public.holdfast_schema (version bigint PRIMARY KEY, name text NOT NULL);
			INSERT INTO public.holdfast_schema VALUES (999, '00999_new.sql')`,
	} {
		url := b.newDatabase(t, b.MigrateURL)
		conn := b.connect(t, url)
		_, err := conn.Exec(b.ctx, sql)
		conn.Close(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.MigrateUp(b.ctx, url); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
		if err := db.MigrateDown(b.ctx, url); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("down: %v does not say %q", err, says)
		}
	}
}
