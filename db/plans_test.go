package db_test

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// rowsPlanned is how many rows each table has when it is large.
const rowsPlanned = 50_000

// plan is a statement of the read path, and how it must be planned whatever the planner believes.
type plan struct {
	name   string
	sql    string
	params any
	// How each table is to be read, by pattern.
	reads []string
	// How many rows come back from large tables, and at most how many are read for them.
	rows, atMost int
	// merges: the few rows of several walks are sorted.
	merges bool
}

func plans(tenant identity.Tenant) []plan {
	id, far := string(tenant), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	const byID = `tenant_id = .*kind = .*object_id = .*`
	objects := `Index Scan using objects_pkey .*Index Cond: \(\(?` + byID
	sleepers := `Index Scan using sleepers_pkey .*Index Cond: \(\(?` + byID
	entries := `Index Scan (Backward )?using entries_pkey .*Index Cond: \(\(?` + byID + `collection = `
	return []plan{
		{
			"ViewObjects", dbsqlc.ViewObjects,
			dbsqlc.ViewObjectsParams{
				Ords: []int32{0, 1, 2}, Kinds: []string{"k", "k", "k"}, Ids: []string{"o1", "o2", "none"}, Known: []int64{0, 1, 0},
				Collections: []string{"c", "c", "c"}, Limits: []int32{20, 20, 20}, TenantID: id, MostBytes: 1 << 20,
			},
			[]string{objects, entries},
			2, 2 + 20, false,
		},
		{
			"LoadEntries", dbsqlc.LoadEntries,
			dbsqlc.LoadEntriesParams{
				Ords: []int32{0, 1, 2}, Kinds: []string{"k", "k", "k"}, Ids: []string{"o1", "o1", "o2"}, Collections: []string{"c", "c", "c"},
				Keys: []string{"000000000001", "none", "000000000002"}, Readers: []string{"alice", "", "alice"}, TenantID: id,
			},
			[]string{entries + `.*key = `},
			2, 2, false,
		},
		{
			"LoadReplies", dbsqlc.LoadReplies,
			dbsqlc.LoadRepliesParams{
				Ords: []int32{0, 1, 2}, RequestKeys: [][]byte{[]byte("00000000000000r1"), []byte("000000000000none"), []byte("00000000000000r2")}, TenantID: id,
			},
			[]string{`Index Scan using events_request_key .*Index Cond: \(\(?tenant_id = .*request_key = `},
			2, 2, false,
		},
		{
			"ListObjects", dbsqlc.ListObjects,
			dbsqlc.ListObjectsParams{TenantID: id, Kind: "k", BeforeTime: far, PageSize: 50, MostBytes: 1 << 20},
			[]string{`Index Scan using objects_activity_idx .*Index Cond: \(\(?tenant_id = .*kind = .*activity_time.*< ROW`},
			50, 60, false,
		},
		{
			"ListObjects, a later page", dbsqlc.ListObjects,
			dbsqlc.ListObjectsParams{TenantID: id, Kind: "k", BeforeTime: time.Date(2020, 1, 1, 1, 0, 0, 0, time.UTC), BeforeID: "o9", PageSize: 50, MostBytes: 1 << 20},
			[]string{`Index Scan using objects_activity_idx .*Index Cond: \(\(?tenant_id = .*kind = .*activity_time.*< ROW`},
			50, 60, false,
		},
		{
			"ListObjectsByTerms", dbsqlc.ListObjectsByTerms,
			dbsqlc.ListObjectsByTermsParams{
				TenantID: id, Kind: "k", Term: id + "/k/common", OtherTerms: []string{}, BeforeTime: far, PageSize: 50, MostBytes: 1 << 20,
			},
			[]string{objects, `Index Scan using terms_activity_idx .*Index Cond: \(\(?term = .*activity_time.*< ROW`, `terms_pkey .*Index Cond: \(\(?` + byID},
			50, 110, false,
		},
		{
			"ListObjectsByTerms, two", dbsqlc.ListObjectsByTerms,
			dbsqlc.ListObjectsByTermsParams{
				TenantID: id, Kind: "k", Term: id + "/k/common", OtherTerms: []string{id + "/k/common"}, BeforeTime: far, PageSize: 50, MostBytes: 1 << 20,
			},
			[]string{objects, `Index Scan using terms_activity_idx `, `terms_pkey .*Index Cond: \(\(?` + byID},
			50, 170, false,
		},
		{
			"ListObjectsByAnyTerm", dbsqlc.ListObjectsByAnyTerm,
			dbsqlc.ListObjectsByAnyTermParams{
				TenantID: id, Kind: "k", Terms: []string{id + "/k/common", id + "/k/none/common"}, BeforeTime: far, PageSize: 50, MostBytes: 1 << 20,
			},
			[]string{objects, `Index Scan using terms_activity_idx .*Index Cond: \(\(?term = .*activity_time.*< ROW`},
			50, 110, true,
		},
		{
			"ListEntriesAfter", dbsqlc.ListEntriesAfter,
			dbsqlc.ListEntriesAfterParams{
				TenantID: id, Kind: "k", ObjectID: "long", Collection: "c", AfterKey: "000000000100", PageSize: 50, MostBytes: 1 << 20,
			},
			[]string{entries + `.*key > `},
			50, 101, false, // each is counted, and read
		},
		{
			"ListEntriesBefore", dbsqlc.ListEntriesBefore,
			dbsqlc.ListEntriesBeforeParams{
				TenantID: id, Kind: "k", ObjectID: "long", Collection: "c", BeforeKey: "000000000100", PageSize: 50, MostBytes: 1 << 20,
			},
			[]string{`Index Scan Backward using entries_pkey .*Index Cond: \(\(?` + byID + `collection = .*key < `},
			50, 101, false, // each is counted, and read
		},
		{
			"ListOwnEntriesAfter", dbsqlc.ListOwnEntriesAfter,
			dbsqlc.ListOwnEntriesAfterParams{
				TenantID: id, OwnerID: "alice", Kind: "k", ObjectID: "ledger", Collection: "c", PageSize: 40, MostBytes: 1 << 20,
			},
			[]string{`Index Scan using entries_owner_idx .*Index Cond: \(\(?tenant_id = .*owner_id = .*` + `collection = .*key > `},
			40, 81, false, // each is counted, and read
		},
		{
			"ListOwnEntriesBefore", dbsqlc.ListOwnEntriesBefore,
			dbsqlc.ListOwnEntriesBeforeParams{
				TenantID: id, OwnerID: "alice", Kind: "k", ObjectID: "ledger", Collection: "c", BeforeKey: "999999999999", PageSize: 40, MostBytes: 1 << 20,
			},
			[]string{`Index Scan Backward using entries_owner_idx .*Index Cond: \(\(?tenant_id = .*owner_id = .*` + `collection = .*key < `},
			40, 81, false, // each is counted, and read
		},
		{
			"ListEvents", dbsqlc.ListEvents,
			dbsqlc.ListEventsParams{
				TenantID: id, Kind: "k", ObjectID: "long", AfterVersion: 100, PageSize: 50,
			},
			[]string{`Index Scan using events_pkey .*Index Cond: \(\(?` + byID + `version > `},
			50, 51, false,
		},
		{
			"ListEventsBack", dbsqlc.ListEventsBack,
			dbsqlc.ListEventsBackParams{TenantID: id, Kind: "k", ObjectID: "long", FromVersion: 100, PageSize: 50, MostBytes: 1 << 20},
			[]string{`Index Scan Backward using events_pkey .*Index Cond: \(\(?` + byID + `version <= `},
			50, 51, false,
		},
		{
			"ListAllEntries", dbsqlc.ListAllEntries,
			dbsqlc.ListAllEntriesParams{TenantID: id, Kind: "k", ObjectID: "long", AfterCollection: "c", AfterKey: "000000000100", PageSize: 50},
			[]string{`Index Scan using entries_pkey .*Index Cond: \(\(?` + byID},
			50, 51, false,
		},
		{
			"ListByID", dbsqlc.ListByID,
			dbsqlc.ListByIDParams{TenantID: id, Kind: "k", Prefix: "o1", AfterID: "o15", AnyOwner: true, PageSize: 50, MostBytes: 1 << 20},
			[]string{`Index Scan using objects_pkey .*Index Cond: \(\(?tenant_id = .*kind = .*object_id >`},
			50, 51, false,
		},
		{
			"ListByActivity", dbsqlc.ListByActivity,
			dbsqlc.ListByActivityParams{TenantID: id, Kind: "k", BeforeTime: far, AnyOwner: true, PageSize: 50, MostBytes: 1 << 20},
			[]string{`Index Scan using objects_activity_idx .*Index Cond: \(\(?tenant_id = .*kind = .*activity_time.*< ROW`},
			50, 60, false,
		},
		{
			"ListByOwner", dbsqlc.ListByOwner,
			dbsqlc.ListByOwnerParams{TenantID: id, OwnerID: "alice", Kind: "owned", BeforeTime: far, PageSize: 50, MostBytes: 1 << 20},
			[]string{`Index Scan using objects_owner_idx .*Index Cond: \(\(?tenant_id = .*owner_id = .*kind = .*activity_time.*< ROW`},
			50, 60, false,
		},
		{
			"ListTimersOfObject", dbsqlc.ListTimersOfObject,
			dbsqlc.ListTimersOfObjectParams{TenantID: id, Kind: "k", ObjectID: "o2", PageSize: 50, AlsoTenants: true},
			[]string{`Index Scan using timers_pkey .*Index Cond: \(\(?` + byID + `name > `},
			1, 1, false,
		},
		{
			"MeasureObject", dbsqlc.MeasureObject,
			dbsqlc.MeasureObjectParams{TenantID: id, Kind: "k", ObjectID: "o1"},
			[]string{objects, `Index Scan using entries_pkey .*Index Cond: \(\(?` + byID, sleepers},
			1, 5, false,
		},
		{
			"FindOldest", dbsqlc.FindOldest,
			dbsqlc.FindOldestParams{TenantID: id, Kind: "k", ObjectID: "long", Collection: "c", PageSize: 50},
			[]string{`Index (Only )?Scan Backward using entries_pkey .*Index Cond: \(\(?` + byID + `collection = `},
			1, 51, false,
		},
		{
			"FindIdle", dbsqlc.FindIdle,
			dbsqlc.FindIdleParams{TenantID: id, Kind: "k", Since: far, BeforeTime: far, LeastRows: 1, EnoughRows: 11, MostBytes: 1 << 20, PageSize: 50},
			[]string{
				`Index Scan using objects_activity_idx .*Index Cond: \(\(?tenant_id = .*kind = .*activity_time.*< ROW`,
				`Index Scan using entries_pkey .*Index Cond: \(\(?` + byID, `Index Scan using events_pkey .*Index Cond: \(\(?` + byID,
			},
			50, 50 * 5, true,
		},
	}
}

// No statement reads a tenant's whole kind, or an object's whole history, whatever the planner knows of the tables.
//
//nolint:tparallel // its cases follow on each other
func TestPlans(t *testing.T) {
	t.Parallel()
	b := setupPlans(t)
	b.checkPlans(t, "empty, never analysed", false)
	b.fillPlans(t, 1, rowsPlanned)
	b.checkPlans(t, "large, never analysed", true)
	b.exec(t, "ANALYZE")
	b.checkPlans(t, "large", true)
}

// Tables that were small when they were analysed, and have grown since.
//
//nolint:tparallel // its cases follow on each other
func TestPlansOfTablesThatGrew(t *testing.T) {
	t.Parallel()
	b := setupPlans(t)
	b.fillPlans(t, 1, 500)
	b.checkPlans(t, "small, never analysed", false)
	b.exec(t, "ANALYZE")
	b.fillPlans(t, 501, rowsPlanned)
	b.checkPlans(t, "grown", true)
}

// setupPlans is a database whose planner knows only what the test lets it know.
func setupPlans(t *testing.T) *testBundle {
	t.Helper()
	b := setupOwn(t)
	for _, table := range tables {
		b.exec(t, "ALTER TABLE holdfast."+table+" SET (autovacuum_enabled = false)")
	}
	return b
}

func (b *testBundle) checkPlans(t *testing.T, when string, large bool) {
	t.Helper()
	for _, p := range plans(b.Tenant) {
		t.Run(when+"/"+p.name, func(t *testing.T) { b.checkPlan(t, &p, large) })
	}
	t.Run(when+"/StoreChanges", func(t *testing.T) { b.checkStore(t) })
	t.Run(when+"/ClaimTimers", func(t *testing.T) { b.checkClaim(t, large) })
}

// fill makes the tables large, for one tenant and kind, with one object that has long lists.
func (b *testBundle) fill(t *testing.T, from, to int) {
	t.Helper()
	for _, sql := range []string{
		`INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state,
			create_time, update_time, activity_time, expire_time)
		SELECT $1, 'k', 'o' || i, '', 0, 1, 1, '{"a": 1}', timestamptz '2020-01-01 00:00Z', now(), timestamptz '2020-01-01 00:00Z' + i * interval '1 second', now() + interval '1 day'
		FROM generate_series($2::integer, $3::integer) i`,
		`INSERT INTO holdfast.terms (tenant_id, kind, object_id, owner_id, term, activity_time)
		SELECT $1, 'k', 'o' || i, '', $1 || '/k/common', timestamptz '2020-01-01 00:00Z' + i * interval '1 second' FROM generate_series($2::integer, $3::integer) i`,
		`INSERT INTO holdfast.entries (tenant_id, kind, object_id, owner_id, collection, key, version, body)
		SELECT $1, 'k', 'o' || (i + 1) / 2, '', 'c', lpad(i::text, 12, '0'), 1, '{"a": 1}' FROM generate_series($2::integer, $3::integer) i`,
		`INSERT INTO holdfast.entries (tenant_id, kind, object_id, owner_id, collection, key, version, body)
		SELECT $1, 'k', 'o2', '', 'c', '000000000002', 1, '{"a": 1}' WHERE 2 BETWEEN $2::integer AND $3::integer`,
		`INSERT INTO holdfast.events (tenant_id, kind, object_id, owner_id, version, event_type, actor, event_time, request_id, request_key, undo)
		SELECT $1, 'k', 'o' || i, '', 1, 'x', '', now(), 'r' || i, convert_to(lpad('r' || i, 16, '0'), 'UTF8'), '{}' FROM generate_series($2::integer, $3::integer) i`,
		`INSERT INTO holdfast.timers (tenant_id, kind, object_id, owner_id, name, due_time, next_time, lease_time)
		SELECT $1, 'k', 'o' || i, '', 't', due, due, CASE WHEN i % 10 = 0 THEN now() + interval '1 day' END
		FROM generate_series($2::integer, $3::integer) i, LATERAL (SELECT now() + (i - 200) * interval '1 hour' AS due) d`,
		`INSERT INTO holdfast.sleepers (tenant_id, kind, object_id, owner_id, part, row_count, bytes, last_time, compressed)
		SELECT $1, 'k', 'o' || i, '', 'events', 0, 0, now(), '' FROM generate_series($2::integer, $3::integer) i`,
	} {
		b.exec(t, sql, string(b.Tenant), from, to)
	}
	for _, sql := range []string{
		`INSERT INTO holdfast.entries (tenant_id, kind, object_id, owner_id, collection, key, version, body)
		SELECT $1, 'k', 'long', '', 'c', lpad(i::text, 12, '0'), 1, '{"a": 1}' FROM generate_series($2::integer, $3::integer) i`,
		`INSERT INTO holdfast.events (tenant_id, kind, object_id, owner_id, version, event_type, actor, event_time, undo)
		SELECT $1, 'k', 'long', '', i, 'x', '', now(), '{}' FROM generate_series($2::integer, $3::integer) i`,
	} {
		b.exec(t, sql, string(b.Tenant), (from+4)/5, to/5)
	}
}

// fillPlans also has many users' objects, a few of them alice's.
func (b *testBundle) fillPlans(t *testing.T, from, to int) {
	t.Helper()
	b.fill(t, from, to)
	b.exec(t, `INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state,
			create_time, update_time, activity_time)
		SELECT $1, 'owned', 'o' || i, CASE WHEN i % 1000 = 0 THEN 'alice' ELSE 'user' || i % 100 END, 0, 1, 1, '{"a": 1}', now(), now(), now() + i * interval '1 second'
		FROM generate_series($2::integer, $3::integer) i`, string(b.Tenant), from, to)
	b.exec(t, `INSERT INTO holdfast.entries (tenant_id, kind, object_id, owner_id, collection, key, version, body, owned)
		SELECT $1, 'k', 'ledger', CASE WHEN i % 1000 = 0 THEN 'alice' ELSE 'user' || i % 100 END, 'c', lpad(i::text, 12, '0'), 1, '{"a": 1}', true
		FROM generate_series($2::integer, $3::integer) i`, string(b.Tenant), from, to)
}

func (b *testBundle) checkPlan(t *testing.T, p *plan, large bool) {
	t.Helper()
	b.as(t, scope{role: db.RoleApp, tenant: b.Tenant, owners: "{alice}"}, func(tx pgx.Tx) {
		if _, err := tx.Exec(b.ctx, "PREPARE p AS "+p.sql); err != nil {
			t.Fatal(err)
		}
		defer tx.Exec(b.ctx, "DEALLOCATE p")
		execute := "EXECUTE p (" + literals(p.params) + ")"
		rows, err := tx.Query(b.ctx, "EXPLAIN (COSTS OFF) "+execute)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		explained := strings.Join(lines, "\n")
		if strings.Contains(explained, string(b.Tenant)) {
			t.Errorf("the plan is not generic:\n%s", explained)
		}
		bad := `Seq Scan|Bitmap|Hash`
		if !p.merges {
			bad += `|Sort`
		}
		if regexp.MustCompile(bad).MatchString(explained) {
			t.Errorf("this reads too much, or sorts:\n%s", explained)
		}
		for _, read := range p.reads {
			if !regexp.MustCompile("(?s)" + strings.ReplaceAll(read, " .*", " [^>]*")).MatchString(explained) {
				t.Errorf("no %q in\n%s", read, explained)
			}
		}
		before := b.counters(t, tx)
		tag, err := tx.Exec(b.ctx, execute)
		if err != nil {
			t.Fatal(err)
		}
		after := b.counters(t, tx)
		if sequential := after.sequential - before.sequential; sequential != 0 {
			t.Errorf("%d sequential scans", sequential)
		}
		if !large {
			return
		}
		if int(tag.RowsAffected()) != p.rows {
			t.Errorf("%d rows come back, want %d", tag.RowsAffected(), p.rows)
		}
		if read := after.rows - before.rows; read > int64(p.atMost) {
			t.Errorf("%d rows were read, at most %d are needed:\n%s", read, p.atMost, explained)
		}
	})
}

type counters struct{ sequential, rows int64 }

// counters are those of the transaction's reads of all tables.
func (b *testBundle) counters(t *testing.T, tx pgx.Tx) (c counters) {
	t.Helper()
	err := tx.QueryRow(b.ctx, `SELECT sum(seq_scan), sum(seq_tup_read) + sum(coalesce(idx_tup_fetch, 0))
		FROM pg_stat_xact_user_tables WHERE schemaname = 'holdfast'`).Scan(&c.sequential, &c.rows)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checkStore stores a change of all kinds at once: a new object, one that changes its terms and entries, one reborn.
func (b *testBundle) checkStore(t *testing.T) {
	t.Helper()
	expected := map[string]int64{"new": 0, "o1": 0, "o2": 0}
	for id := range expected {
		expected[id] = b.version(t, id)
	}
	now := time.Now()
	c := &db.Changes{Tenant: b.Tenant, Locks: []int64{1, 2, 3}}
	for i, id := range []string{"new", "o1", "o2"} {
		version, name, owner := expected[id]+1, db.Name{Kind: "k", Object: id}, identity.User("alice")
		entry := func(key, body string) db.EntryRow {
			return db.EntryRow{Name: name, Owner: owner, Collection: "c", Key: key, Version: version, Body: body}
		}
		c.Objects = append(c.Objects, db.ObjectRow{
			Name: name, Owner: owner, BaseVersion: expected[id], Version: version, Schema: 1, State: "{}", Timers: `{"t": "2020-01-01T00:00:00Z"}`,
			Create: createTime, Update: now, Activity: now, Reborn: id == "o2",
		})
		c.Terms = append(c.Terms, db.TermsRow{Name: name, Owner: owner, Activity: now, Terms: []string{string(b.Tenant) + "/k/new"}})
		c.Absent = append(c.Absent, entry("absent", ""))
		c.Added = append(c.Added, entry("added", "{}"))
		c.Replaced = append(c.Replaced, entry("000000000001", "{}"), entry("000000000002", ""))
		c.Timers = append(c.Timers, db.TimerRow{Name: name, Owner: owner, Timer: "t", Due: now}, db.TimerRow{Name: name, Timer: "other"})
		c.Events = append(c.Events, db.EventRow{
			Name: name, Owner: owner, Version: version, Type: "x", Actor: "alice", Time: now, RequestID: "r", RequestKey: []byte(fmt.Sprintf("%016d", i)),
			RequestHash: []byte("h"), Reply: []byte("r"), Undo: "{}",
		})
	}
	b.as(t, scope{role: db.RoleApp, tenant: b.Tenant, owners: "{alice}"}, func(tx pgx.Tx) {
		before := b.counters(t, tx)
		if _, err := dbsqlc.New(tx).StoreChanges(b.ctx, c.Params()); err != nil {
			t.Fatal(err)
		}
		after := b.counters(t, tx)
		// Two objects, their terms, and a few entries.
		if sequential, rows := after.sequential-before.sequential, after.rows-before.rows; sequential != 0 || rows > 20 {
			t.Errorf("a store of three objects took %d sequential scans and read %d rows", sequential, rows)
		}
	})
}

// checkClaim claims some of the timers that are due.
func (b *testBundle) checkClaim(t *testing.T, large bool) {
	t.Helper()
	b.as(t, scope{role: db.RoleJanitor}, func(tx pgx.Tx) {
		before := b.counters(t, tx)
		rows, err := dbsqlc.New(tx).ClaimTimers(b.ctx, dbsqlc.ClaimTimersParams{Kinds: []string{"other", "k", "none"}, AtMost: 50, LeaseSeconds: 20})
		if err != nil {
			t.Fatal(err)
		}
		after := b.counters(t, tx)
		if large && len(rows) != 50 {
			t.Errorf("claimed %d timers", len(rows))
		}
		if sequential, rows := after.sequential-before.sequential, after.rows-before.rows; sequential != 0 || rows > 120 {
			t.Errorf("a claim of 50 timers took %d sequential scans and read %d rows", sequential, rows)
		}
	})
	b.as(t, scope{role: db.RoleJanitor}, func(tx pgx.Tx) {
		before := b.counters(t, tx)
		rows, err := dbsqlc.New(tx).ClaimTimersInTurn(b.ctx, dbsqlc.ClaimTimersInTurnParams{
			Kinds: []string{"other", "k", "none"}, AtMost: 50, LeaseSeconds: 20, ReadAtMost: 100,
		})
		if err != nil {
			t.Fatal(err)
		}
		after := b.counters(t, tx)
		if large && len(rows) != 50 {
			t.Errorf("claimed %d timers in turn", len(rows))
		}
		if sequential, rows := after.sequential-before.sequential, after.rows-before.rows; sequential != 0 || rows > 100+120 {
			t.Errorf("a claim of 50 timers in turn took %d sequential scans and read %d rows", sequential, rows)
		}
	})
}

// literals are a statement's parameters as SQL, in order.
func literals(params any) string {
	v := reflect.ValueOf(params)
	out := make([]string, v.NumField())
	for i := range out {
		out[i] = literal(v.Field(i).Interface())
	}
	return strings.Join(out, ", ")
}

func literal(v any) string {
	switch v := v.(type) {
	case string:
		return "'" + strings.ReplaceAll(v, "'", "''") + "'"
	case time.Time:
		return "'" + v.Format(time.RFC3339Nano) + "'"
	case []string:
		return "ARRAY[" + joined(v, func(s string) string { return literal(s) }) + "]::text[]"
	case [][]byte:
		return "ARRAY[" + joined(v, func(b []byte) string { return fmt.Sprintf(`'\x%x'::bytea`, b) }) + "]::bytea[]"
	case []int32:
		return "ARRAY[" + joined(v, func(n int32) string { return fmt.Sprint(n) }) + "]::integer[]"
	case []int64:
		return "ARRAY[" + joined(v, func(n int64) string { return fmt.Sprint(n) }) + "]::bigint[]"
	default:
		return fmt.Sprint(v)
	}
}

func joined[V any](values []V, form func(V) string) string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = form(v)
	}
	return strings.Join(out, ", ")
}
