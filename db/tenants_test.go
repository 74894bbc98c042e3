package db_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

func TestTenants(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if made, err := b.Operator.CreateTenant(b.ctx, b.Tenant, "another title"); err != nil || made {
		t.Errorf("a tenant was made twice: %t, %v", made, err)
	}
	for _, bad := range []identity.Tenant{"", "a b", "a/b", "ä", "a\n"} {
		if _, err := b.Operator.CreateTenant(b.ctx, bad, ""); err == nil {
			t.Errorf("tenant %q was made", bad)
		}
	}
	all, err := b.Operator.Tenants(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(all, func(a, b dbsqlc.ListTenantsRow) int { return strings.Compare(a.TenantID, b.TenantID) }) {
		t.Error("the tenants are not in order")
	}
	i := slices.IndexFunc(all, func(r dbsqlc.ListTenantsRow) bool { return r.TenantID == string(b.Tenant) })
	if i < 0 || all[i].Title != t.Name() {
		t.Errorf("the tenant is not listed as it was made: %d", i)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	b, other := setup(t), setup(t)
	hash := func(c byte) []byte { return bytes.Repeat([]byte{c}, 32) }
	user, service := "user-"+string(b.Tenant), "service-"+string(b.Tenant)
	for _, k := range []db.Key{
		{Tenant: b.Tenant, ID: user, User: "alice", SecretHash: hash(1), Description: "a user's"},
		{Tenant: b.Tenant, ID: service, SecretHash: hash(2)},
		{Tenant: other.Tenant, ID: service, SecretHash: hash(3)}, // uniqueness never crosses tenants
	} {
		if err := b.Operator.CreateKey(b.ctx, k); err != nil {
			t.Fatal(err)
		}
	}
	for name, bad := range map[string]db.Key{
		"twice": {Tenant: b.Tenant, ID: user, SecretHash: hash(4)}, "no hash": {Tenant: b.Tenant, ID: "x", SecretHash: []byte("short")},
	} {
		if err := b.Operator.CreateKey(b.ctx, bad); err == nil {
			t.Errorf("%s: it was made", name)
		}
	}
	if err := b.Operator.CreateKey(b.ctx, db.Key{Tenant: "nobody", ID: "x", SecretHash: hash(1)}); !errors.Is(err, db.ErrTenantUnknown) {
		t.Errorf("a key of no tenant: %v", err)
	}

	listed, err := b.Operator.Keys(b.ctx, b.Tenant)
	if err != nil || len(listed) != 2 {
		t.Fatal(listed, err)
	}
	for _, k := range listed {
		if len(k.SecretHash) != 0 || k.RevokeTime != nil || k.CreateTime.IsZero() || k.Tenant != b.Tenant {
			t.Errorf("%+v", k)
		}
	}
	found, err := b.DB.FindKeys(b.ctx, user)
	if err != nil || len(found) != 1 || found[0].Tenant != b.Tenant || found[0].User != "alice" || !bytes.Equal(found[0].SecretHash, hash(1)) {
		t.Errorf("%+v, %v", found, err)
	}
	if found, err := b.DB.FindKeys(b.ctx, service); err != nil || len(found) != 2 {
		t.Errorf("%+v, %v", found, err)
	}
	for _, id := range []string{"no such key", "", "%", "'"} {
		if found, err := b.DB.FindKeys(b.ctx, id); err != nil || len(found) != 0 {
			t.Errorf("%q: %+v, %v", id, found, err)
		}
	}

	for range 2 { // again is no mistake
		if err := b.Operator.RevokeKey(b.ctx, b.Tenant, service); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := b.DB.FindKeys(b.ctx, service); err != nil || len(found) != 1 || found[0].Tenant != other.Tenant {
		t.Errorf("after it was revoked: %+v, %v", found, err)
	}
	if err := b.Operator.RevokeKey(b.ctx, other.Tenant, user); !errors.Is(err, db.ErrKeyUnknown) {
		t.Errorf("another tenant's key: %v", err)
	}
	listed, err = b.Operator.Keys(b.ctx, b.Tenant)
	if err != nil || len(listed) != 2 {
		t.Fatal(listed, err)
	}
	for _, k := range listed {
		if (k.RevokeTime != nil) != (k.ID == service) {
			t.Errorf("%+v", k)
		}
	}
}
