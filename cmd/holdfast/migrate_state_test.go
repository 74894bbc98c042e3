package main

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/db/dbtest"
)

// What an older release has written is rewritten once; a second run finds nothing.
func TestMigrateState(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, id := range []string{"c1", "c2", "c3"} {
		_, err := conn.Exec(t.Context(), `INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state,
			create_time, update_time, activity_time) VALUES ($1, 'conversation', $2, 'ada', 0, 1, 0, '{"title": "t"}', now(), now(), now())`, string(b.Tenant), id)
		if err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{"HOLDFAST_DATABASE_URL": b.URL}
	for _, want := range []string{"3 of kind conversation rewritten", "0 objects rewritten; no older ones are left in 1 tenants"} {
		code, stdout, stderr := run(t, env, "migrate", "state", "--tenant", string(b.Tenant), "--batch", "2", "--pause", "0s")
		if code != 0 || !strings.Contains(stdout, want) {
			t.Fatalf("ended with %d: %s%s", code, stdout, stderr)
		}
	}
	var left int
	err = conn.QueryRow(t.Context(), "SELECT count(*) FROM holdfast.objects WHERE tenant_id = $1 AND (schema_version <> 1 OR version <> 2)", string(b.Tenant)).Scan(&left)
	if err != nil || left != 0 {
		t.Errorf("%d objects are not as they should be, %v", left, err)
	}
	if code, _, stderr := run(t, env, "migrate", "state", "--pause", "x"); code != 2 {
		t.Errorf("ended with %d: %s", code, stderr)
	}
}
