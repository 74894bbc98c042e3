package db_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/db"
	"holdfast/identity"
)

// expire makes the time of some objects come.
func (b *testBundle) expire(t *testing.T, tenant identity.Tenant, ids ...string) {
	t.Helper()
	b.exec(t, "UPDATE holdfast.objects SET expire_time = clock_timestamp() - interval '1 hour' WHERE tenant_id = $1 AND object_id = ANY ($2)", string(tenant), ids)
}

// left are the ids that a table has of each tenant, as tenant/id.
func (b *testBundle) left(t *testing.T, table string) []string {
	t.Helper()
	return b.rows(t, "SELECT DISTINCT tenant_id || '/' || object_id FROM holdfast."+table+" ORDER BY 1")
}

var objectTables = []string{"objects", "terms", "entries", "sleepers", "events", "timers"}

// Of all tenants what has expired goes, with all its rows, and nothing else does.
func TestSweep(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	for _, tenant := range []identity.Tenant{"a", "b"} {
		for _, id := range []string{"gone", "goes", "stays"} {
			b.seed(t, tenant, id, "alice")
		}
		b.expire(t, tenant, "goes", "gone")
	}
	b.exec(t, "UPDATE holdfast.objects SET state = NULL, deleted = true WHERE object_id = 'gone'")
	b.exec(t, "UPDATE holdfast.objects SET expire_time = NULL WHERE tenant_id = 'b' AND object_id = 'stays'")
	swept, err := b.DB.Sweep(b.ctx, db.SweepConfig{})
	if want := (db.Swept{Objects: 4, Terms: 4, Entries: 4, Events: 4, Timers: 4}); err != nil || swept != want {
		t.Errorf("swept %+v, %v; want %+v", swept, err, want)
	}
	for _, table := range objectTables {
		if got, want := b.left(t, table), []string{"a/stays", "b/stays"}; !slices.Equal(got, want) {
			t.Errorf("%s: %v are left, want %v", table, got, want)
		}
	}
	if swept, err := b.DB.Sweep(b.ctx, db.SweepConfig{}); err != nil || swept != (db.Swept{}) {
		t.Errorf("again: %+v, %v", swept, err)
	}
}

// Batches follow each other without missing any object, also where many expired at the same moment. A sweep that is
// ended leaves whole objects.
func TestSweepInBatches(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	b.fill(t, 1, 200)
	b.exec(t, "UPDATE holdfast.objects SET expire_time = timestamptz '2020-01-01 00:00Z' + (length(object_id) * interval '1 second')")
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	if swept, err := b.DB.Sweep(ctx, db.SweepConfig{}); err == nil || swept != (db.Swept{}) {
		t.Errorf("%+v, %v", swept, err)
	}
	swept, err := b.DB.Sweep(b.ctx, db.SweepConfig{Batch: 7, PerSecond: 1 << 20})
	if err != nil || swept.Objects != 200 || swept.Terms != 200 || swept.Events != 200 {
		t.Errorf("%+v, %v", swept, err)
	}
}

// An object that another transaction has locked is passed over: it may be creating the object again.
func TestSweepPassesOver(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	b.seed(t, b.Tenant, "held", "")
	b.seed(t, b.Tenant, "free", "")
	b.expire(t, b.Tenant, "held", "free")
	tx, err := b.super.Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(b.ctx)
	if _, err := tx.Exec(b.ctx, "UPDATE holdfast.objects SET expire_time = now() + interval '1 day' WHERE object_id = 'held'"); err != nil {
		t.Fatal(err)
	}
	if swept, err := b.DB.Sweep(b.ctx, db.SweepConfig{}); err != nil || swept.Objects != 1 {
		t.Errorf("%+v, %v", swept, err)
	}
	if err := tx.Commit(b.ctx); err != nil {
		t.Fatal(err)
	}
	if swept, err := b.DB.Sweep(b.ctx, db.SweepConfig{}); err != nil || swept.Objects != 0 {
		t.Errorf("%+v, %v", swept, err)
	}
	if got, want := b.left(t, "entries"), []string{string(b.Tenant) + "/held"}; !slices.Equal(got, want) {
		t.Errorf("%v are left, want %v", got, want)
	}
}

func TestTrimJournal(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	// age in days of the newest of so many events, an hour apart
	for id, e := range map[string]struct{ events, age int }{"busy": {2000, 0}, "old": {1200, 40}, "new": {10, 0}, "quiet": {1, 31}} {
		for _, tenant := range []string{"a", "b"} {
			b.exec(t, `INSERT INTO holdfast.events (tenant_id, kind, object_id, owner_id, version, event_type, actor, event_time, undo)
				SELECT $1, 'k', $2, 'alice', i, 'x', '', now() - $4 * interval '1 day' - ($3 - i) * interval '1 hour', '{}' FROM generate_series(1, $3::integer) i`,
				tenant, id, e.events, e.age)
		}
	}
	trim := func(days, want int64) {
		t.Helper()
		config := db.SweepConfig{PerSecond: 1 << 20, JournalRetention: time.Duration(days) * 24 * time.Hour}
		if n, err := b.DB.TrimJournal(b.ctx, config); err != nil || n != want {
			t.Errorf("%d days: %d events went, %v; want %d", days, n, err, want)
		}
	}
	const kept = 30 * 24 // of those an hour apart, and the newest is of this moment
	trim(30, 2*(2000-kept+1200+1))
	if got := b.rows(t, "SELECT format('%s/%s %s-%s', tenant_id, object_id, min(version), max(version)) FROM holdfast.events GROUP BY tenant_id, object_id ORDER BY 1"); !slices.Equal(got, []string{
		"a/busy 1281-2000", "a/new 1-10", "b/busy 1281-2000", "b/new 1-10",
	}) {
		t.Errorf("left: %v", got)
	}
	trim(30, 0)
	trim(0, 0) // the default
	b.exec(t, `INSERT INTO holdfast.events (tenant_id, kind, object_id, owner_id, version, event_type, actor, event_time, undo)
		SELECT 'a', k, 'x', 'alice', i, 'x', '', now() - (4 - i) * interval '10 hours', '{}' FROM generate_series(1, 4) i, unnest(ARRAY['brief', 'k2']) k`)
	brief := db.SweepConfig{PerSecond: 1 << 20, BriefKinds: []string{"brief"}}
	if n, err := b.DB.TrimJournal(b.ctx, brief); err != nil || n != 1 {
		t.Errorf("%d events of a kind that keeps them for a day went, %v", n, err)
	}
	b.exec(t, "DELETE FROM holdfast.events WHERE object_id = 'x'")
	b.exec(t, "UPDATE holdfast.events SET event_time = now() - interval '23 hours' WHERE object_id = 'new'")
	b.exec(t, "DELETE FROM holdfast.events WHERE object_id = 'busy'")
	if n, err := b.DB.TrimJournal(b.ctx, db.SweepConfig{JournalRetention: time.Second}); err != nil || n != 0 {
		t.Errorf("%d events of the last day went, %v", n, err)
	}
}

// The janitor sees which objects have expired and when events were, of every tenant. What is in them it cannot read, and
// what has not expired it cannot touch.
func TestJanitorsRights(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	for _, id := range []string{"expired", "alive"} {
		b.seed(t, b.Tenant, id, "alice")
	}
	b.expire(t, b.Tenant, "expired")
	janitor := scope{role: db.RoleJanitor}
	for _, c := range []struct{ table, column string }{
		{"objects", "state"},
		{"objects", "version"},
		{"entries", "body"},
		{"entries", "key"},
		{"events", "undo"},
		{"events", "reply"},
		{"events", "actor"},
		{"terms", "term"},
		{"sleepers", "compressed"},
		{"sleepers", "bytes"},
		{"tenants", "title"},
		{"api_keys", "key_id"},
	} {
		b.as(t, janitor, func(tx pgx.Tx) {
			if _, err := tx.Exec(b.ctx, fmt.Sprintf("SELECT %s FROM holdfast.%s", c.column, c.table)); sqlState(err) != denied {
				t.Errorf("it reads %s.%s: %v", c.table, c.column, err)
			}
		})
	}
	for _, table := range objectTables {
		b.as(t, janitor, func(tx pgx.Tx) {
			if table != "events" && table != "sleepers" { // whose rows it may count, and not read
				var ids []string
				if err := tx.QueryRow(b.ctx, "SELECT array_agg(object_id) FROM holdfast."+table).Scan(&ids); err != nil || !slices.Equal(ids, []string{"expired"}) {
					t.Errorf("%s: it sees %v, %v", table, ids, err)
				}
			}
			if tag, err := tx.Exec(b.ctx, "DELETE FROM holdfast."+table); err != nil || tag.RowsAffected() != 1 {
				t.Errorf("%s: it deletes %d rows, %v", table, tag.RowsAffected(), err)
			}
		})
		b.as(t, janitor, func(tx pgx.Tx) {
			if _, err := tx.Exec(b.ctx, "UPDATE holdfast."+table+" SET owner_id = 'eve'"); sqlState(err) != denied {
				t.Errorf("%s: it changes rows: %v", table, err)
			}
		})
	}
}

// Sweeping reads what it deletes and little more, whatever the planner believes of the tables.
func TestSweepPlans(t *testing.T) {
	t.Parallel()
	b := setupPlans(t)
	b.fill(t, 1, rowsPlanned)
	b.exec(t, "UPDATE holdfast.objects SET expire_time = activity_time WHERE substr(object_id, 2)::integer <= 20000")
	check := func(when string) {
		t.Helper()
		b.as(t, scope{role: db.RoleJanitor}, func(tx pgx.Tx) {
			before := b.counters(t, tx)
			var objects, events int64
			if err := tx.QueryRow(b.ctx, "SELECT objects FROM holdfast.sweep_expired('-infinity', 20)").Scan(&objects); err != nil || objects != 20 {
				t.Errorf("%s: %d objects, %v", when, objects, err)
			}
			if err := tx.QueryRow(b.ctx, "SELECT events FROM holdfast.trim_journal(now() - interval '1 hour', '{}', 20, 20, '', '', '')").Scan(&events); err != nil || events != 0 {
				t.Errorf("%s: %d events, %v", when, events, err)
			}
			after := b.counters(t, tx)
			// Of each object its row, twice, a term, two entries, a sleeper and an event, for each of which the policy looks at the object.
			if sequential, rows := after.sequential-before.sequential, after.rows-before.rows; sequential != 0 || rows > 20*14+20*2 {
				t.Errorf("%s: %d sequential scans, %d rows read", when, sequential, rows)
			}
		})
	}
	check("large, never analysed")
	b.exec(t, "ANALYZE")
	check("large")
}
