package db_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
)

// seedSessions makes an object with a session in it.
func (b *testBundle) seedSessions(t *testing.T, object, session string) {
	t.Helper()
	b.exec(t, `INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state,
			create_time, update_time, activity_time)
		VALUES ($1, 'user_sessions', $2, 'alice', 0, 1, 1, jsonb_build_object('sessions', jsonb_build_object($3::text, '{"generation": "1"}'::jsonb)), now(), now(), now())`,
		string(b.Tenant), object, session)
}

func TestFindCredentials(t *testing.T) {
	t.Parallel()
	b := setup(t)
	mine := "mine" + strings.ToLower(string(b.Tenant))
	b.seed(t, b.Tenant, "o1", "")
	b.seedSessions(t, mine, "s1")
	b.seedSessions(t, mine+"-2", "s1")
	key := db.Key{Tenant: b.Tenant, ID: mine, User: "alice", SecretHash: make([]byte, 32)}
	if err := b.Operator.CreateKey(b.ctx, key); err != nil {
		t.Fatal(err)
	}
	refs := []db.SessionRef{{Object: mine, Session: "s1"}, {Object: mine, Session: "none"}, {Object: `no"ne\`, Session: "s1"}, {Object: "o1", Session: "s1"}}
	found, err := b.DB.FindCredentials(b.ctx, []string{"none", mine}, refs)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]db.FoundSession{{{Tenant: b.Tenant, User: "alice", Record: `{"generation": "1"}`}}, nil, nil, nil}
	if diff := cmp.Diff(want, found.Sessions); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([][]db.Key{nil, {key}}, found.Keys); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if found.Now.IsZero() {
		t.Error("at no time")
	}
	// The role sees no row but those that were named.
	b.as(t, scope{role: db.RoleVerify}, func(tx pgx.Tx) {
		sees := func() []string {
			t.Helper()
			rows, err := tx.Query(b.ctx, "SELECT object_id FROM holdfast.objects UNION ALL SELECT key_id FROM holdfast.api_keys")
			if err != nil {
				t.Fatal(err)
			}
			got, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		if got := sees(); len(got) != 0 {
			t.Errorf("unasked the role sees %v", got)
		}
		if _, err := tx.Exec(b.ctx, "SELECT set_config('app.session_objects', $1, true), set_config('app.key_ids', $1, true)", `{"o1","`+mine+`"}`); err != nil {
			t.Fatal(err)
		}
		if got := sees(); !slices.Equal(got, []string{mine, mine}) {
			t.Errorf("the role sees %v", got)
		}
	})
}

// Verifying reads the rows that credentials name, whatever the planner knows of the tables.
func TestPlansOfVerifying(t *testing.T) {
	t.Parallel()
	b := setupPlans(t)
	check := func(when string) {
		b.as(t, scope{role: db.RoleVerify}, func(tx pgx.Tx) {
			if _, err := tx.Exec(b.ctx, "SELECT set_config('app.session_objects', '{a,b}', true), set_config('app.key_ids', '{a,b}', true)"); err != nil {
				t.Fatal(err)
			}
			for sql, want := range map[string]string{
				dbsqlc.FindSessions:  "Index Scan using objects_sessions_idx ",
				dbsqlc.FindKeysOfIDs: "Index Scan using api_keys_key_id_idx ",
			} {
				args := "'{0,1}', '{a,b}', '{s,s}'"
				if sql == dbsqlc.FindKeysOfIDs {
					args = "'{0,1}', '{a,b}'"
				}
				for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
					rows, err := tx.Query(b.ctx, "SELECT set_config('plan_cache_mode', $1, true)", mode)
					if err != nil {
						t.Fatal(err)
					}
					rows.Close()
					if _, err := tx.Exec(b.ctx, "PREPARE v AS "+sql); err != nil {
						t.Fatal(err)
					}
					rows, err = tx.Query(b.ctx, "EXPLAIN (COSTS OFF) EXECUTE v ("+args+")")
					if err != nil {
						t.Fatal(err)
					}
					lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
					if err != nil {
						t.Fatal(err)
					}
					plan := strings.Join(lines, "\n")
					if !strings.Contains(plan, want) || regexp.MustCompile(`Seq Scan|Bitmap|Sort`).MatchString(plan) {
						t.Errorf("%s, %s:\n%s", when, mode, plan)
					}
					if _, err := tx.Exec(b.ctx, "DEALLOCATE v"); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
	check("empty, never analysed")
	b.fill(t, 1, rowsPlanned)
	b.seedSessions(t, "a", "s")
	b.exec(t, `INSERT INTO holdfast.api_keys (tenant_id, key_id, owner_id, role, secret_hash)
		SELECT $1, 'k' || i, '', 'service', sha256('x') FROM generate_series(1, 5000) i`, string(b.Tenant))
	check("large, never analysed")
	b.exec(t, "ANALYZE")
	check("large")
}
