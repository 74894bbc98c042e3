package main

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/db/dbtest"
)

// seedExpired stores an object that has expired, and an event of long ago.
func seedExpired(t *testing.T, b *dbtest.Bundle) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range []string{
		`INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state, create_time,
			update_time, activity_time, expire_time) VALUES ($1, 'conversation', 'old', '', 0, 1, 1, '{}', now(), now(), now(), now() - interval '1 hour')`,
		`INSERT INTO holdfast.events (tenant_id, kind, object_id, owner_id, version, event_type, actor, event_time, undo)
		VALUES ($1, 'conversation', 'kept', '', 1, 'created', '', now() - interval '10 days', '{}')`,
	} {
		if _, err := conn.Exec(t.Context(), sql, string(b.Tenant)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSweepOnce(t *testing.T) {
	t.Parallel()
	b := dbtest.Own(t)
	seedExpired(t, b)
	env := map[string]string{"DATABASE_URL": b.URL}
	for i, want := range []string{"deleted 1 expired objects with 0 terms, 0 entries, 0 events and 0 timers, and 1 events older than 48h0m0s; put 0 objects to sleep", "deleted 0 expired objects"} {
		if code, stdout, _ := run(t, env, "sweep", "--journal-retention", "48h"); code != 0 || !strings.HasPrefix(stdout, want) {
			t.Errorf("sweep %d ended with %d: %s", i+1, code, stdout)
		}
	}
}

// A server sweeps and puts to sleep without being told to, and its metrics say what came of it.
func TestServersSweep(t *testing.T) {
	t.Parallel()
	b := dbtest.Own(t)
	seedExpired(t, b)
	seedCold(t, b, "1 hour")
	p := start(t, map[string]string{"DATABASE_URL": b.URL, "HOLDFAST_ADDR": "127.0.0.1:0", "HOLDFAST_ADMIN_ADDR": "127.0.0.1:0", "HOLDFAST_JOURNAL_RETENTION": "24h"}, "serve")
	admin := p.await(t, p.stderr, `"metrics and profiles".*"url":"([^"]+)"`)
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, body := get(t, admin+"/metrics")
		if strings.Contains(body, `holdfast_swept_rows_total{table="objects"} 1`) && strings.Contains(body, `holdfast_swept_rows_total{table="events"} 1`) &&
			strings.Contains(body, `holdfast_sweep_last_success_timestamp_seconds{task="sweep"} 1.`) &&
			strings.Contains(body, "holdfast_hibernated_objects_total 1\n") && strings.Contains(body, `holdfast_sweep_last_success_timestamp_seconds{task="hibernate"} 1.`) {
			break
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("it does not sweep: %s", body)
		}
	}
	p.end(t)
}

// seedCold stores a conversation of 600 messages that nobody has changed for three days, and is kept for ever. Its event is so old.
func seedCold(t *testing.T, b *dbtest.Bundle, event string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range []string{
		`INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state, create_time, update_time, activity_time)
		VALUES ($1, 'conversation', 'cold', 'ada', 0, 1, 1, '{"last_seq": "600"}', now() - interval '3 days', now() - interval '3 days', now() - interval '3 days')`,
		`INSERT INTO holdfast.entries (tenant_id, kind, object_id, owner_id, collection, key, version, body)
		SELECT $1, 'conversation', 'cold', 'ada', 'messages', lpad(to_hex(i), 16, '0'), 1, jsonb_build_object('seq', i::text, 'role', 'ROLE_USER', 'text', 'hello ' || i)
		FROM generate_series(1, 600) i`,
		`INSERT INTO holdfast.events (tenant_id, kind, object_id, owner_id, version, event_type, actor, event_time, undo)
		VALUES ($1, 'conversation', 'cold', 'ada', 1, 'created', '', now() - $2::interval, '{"created": true}')`,
	} {
		args := []any{string(b.Tenant)}
		if strings.Contains(sql, "$2") {
			args = append(args, event)
		}
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
}

// What is cold is put to sleep once, or not where that is told. What is old in the journal goes from what sleeps, too.
func TestHibernateOnce(t *testing.T) {
	t.Parallel()
	b := dbtest.Own(t)
	seedCold(t, b, "3 days")
	env := map[string]string{"DATABASE_URL": b.URL}
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"sweep", "--hibernate-after", "0"}, "; put 0 objects to sleep"},
		{[]string{"sweep", "--hibernate-after", "96h"}, "; put 0 objects to sleep"},
		{[]string{"sweep"}, "and 0 events older than 720h0m0s; put 1 objects to sleep"},
		{[]string{"sweep", "--journal-retention", "48h"}, "and 1 events older than 48h0m0s; put 0 objects to sleep"},
	} {
		if code, stdout, stderr := run(t, env, step.args...); code != 0 || !strings.Contains(stdout, step.want) {
			t.Errorf("%v ended with %d: %s%s; want %q", step.args, code, stdout, stderr, step.want)
		}
	}
	if code, _, stderr := run(t, env, "sweep", "--hibernate-after", "-1h"); code != 2 || !strings.Contains(stderr, "--hibernate-after") {
		t.Errorf("ended with %d: %s", code, stderr)
	}
}
