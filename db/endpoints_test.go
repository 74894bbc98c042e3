package db_test

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/db"
)

// Whose an endpoint is can be asked before its tenant is known, and nothing else can.
func TestEndpoints(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	for id, kind := range map[string]string{"e1": "linear_endpoint", "e2": "linear_endpoint", "c1": "conversation"} {
		p := storing(b.Tenant, id, 0)
		p.Objects[0].Kind = kind
		if err := b.store(p); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string][]db.Endpoint{
		"e1": {{Tenant: b.Tenant, ID: "e1"}}, "c1": nil, "none": nil, "": nil, "*": nil, "%": nil,
	} {
		if got, err := b.DB.FindEndpoints(b.ctx, id); err != nil || !slices.Equal(got, want) {
			t.Errorf("of %q: %v, %v", id, got, err)
		}
	}
	all := []db.Endpoint{{Tenant: b.Tenant, ID: "e1"}, {Tenant: b.Tenant, ID: "e2"}}
	if got, err := b.DB.Endpoints(b.ctx, "", 9); err != nil || !slices.Equal(got, all) {
		t.Errorf("all: %v, %v", got, err)
	}
	if got, err := b.DB.Endpoints(b.ctx, "e1", 9); err != nil || !slices.Equal(got, all[1:]) {
		t.Errorf("behind the first: %v, %v", got, err)
	}
	// The role sees no other row, and of this one no other column.
	b.as(t, scope{role: db.RoleAuth}, func(tx pgx.Tx) {
		if _, err := tx.Exec(b.ctx, "SELECT set_config('app.endpoint_id', 'e1', true)"); err != nil {
			t.Fatal(err)
		}
		rows, err := tx.Query(b.ctx, "SELECT object_id FROM holdfast.objects")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || !slices.Equal(got, []string{"e1"}) {
			t.Errorf("the role sees %v, %v", got, err)
		}
		if _, err := tx.Exec(b.ctx, "SELECT state FROM holdfast.objects"); sqlState(err) != denied {
			t.Errorf("the role may read states: %v", err)
		}
	})
}
