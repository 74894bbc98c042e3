package object_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db/dbtest"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/object/objecttest"
)

// total is what is stored of a user, or of the tenant, as the database has it.
type total struct{ Objects, Bytes int64 }

func (b *testBundle) totals(t *testing.T) map[identity.User]total {
	t.Helper()
	rows, err := b.owner(t).Query(t.Context(), "SELECT owner_id, objects, bytes FROM holdfast.usage WHERE tenant_id = $1", string(b.Tenant))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	out := map[identity.User]total{}
	for rows.Next() {
		var owner string
		var n total
		if err := rows.Scan(&owner, &n.Objects, &n.Bytes); err != nil {
			t.Fatal(err)
		}
		out[identity.User(owner)] = n
	}
	return out
}

func (b *testBundle) flush(t *testing.T, runtimes ...*object.Runtime) {
	t.Helper()
	for _, rt := range append(runtimes, b.rt) {
		if err := rt.FlushUsage(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// refusedBy fails the test unless err is the refusal of a quota, such as "user objects"; "" is none.
func refusedBy(t *testing.T, what string, err error, want string) {
	t.Helper()
	got := ""
	if e, ok := errors.AsType[*object.QuotaError](err); ok {
		got = e.Scope + " " + e.Name
	} else if err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("%s: refused by %q, want %q", what, got, want)
	}
}

func withText(n int) func(*object.Tx[toy]) error { return naming(strings.Repeat("x", n)) }

func makes(ctx context.Context, k *object.Kind[toy], id string, fn func(*object.Tx[toy]) error, opts ...object.UpdateOption) error {
	_, err := k.Update(ctx, object.ID(id), fn, append(opts, object.Create())...)
	return err
}

// A user's objects count for the user and the tenant, the tenant's for the tenant. Another user goes on while there is room, and
// whoever deletes one may make another.
func TestAQuotaOfObjects(t *testing.T) {
	t.Parallel()
	b := setupWith(t, dbtest.New(t), object.Config{Quotas: object.Quotas{User: object.Quota{Objects: 3}, Tenant: object.Quota{Objects: 5}}})
	alice, bob, service := b.ctx, b.As(t, "bob"), b.AsService(t)
	for i := range 3 {
		refusedBy(t, "within", makes(alice, b.toys, fmt.Sprint("a", i), withText(1)), "")
	}
	refusedBy(t, "the fourth", makes(alice, b.toys, "a3", withText(1)), "user objects")
	refusedBy(t, "by a service for alice", makes(b.As(t, "alice"), b.toys, "a3", withText(1)), "user objects")
	refusedBy(t, "of the whole tenant, by alice", makes(alice, b.toys, "t0", withText(1), object.Shared()), "")
	refusedBy(t, "an upsert", func() error { _, err := b.toys.Update(alice, "a3", withText(1), object.Upsert()); return err }(), "user objects")
	refusedBy(t, "a fork", func() error {
		_, err := objecttest.Fork(alice, b.toys, "a0", object.Latest(), "a3")
		return err
	}(), "user objects")
	refusedBy(t, "bob", makes(bob, b.toys, "b0", withText(1)), "")
	refusedBy(t, "bob, of the tenant's last", makes(bob, b.toys, "b1", withText(1)), "tenant objects")
	refusedBy(t, "the tenant's own", makes(service, b.toys, "t1", withText(1)), "tenant objects")
	refusedBy(t, "a change", func() error { _, err := b.toys.Update(alice, "a0", withText(1000)); return err }(), "")
	if _, err := b.toys.View(alice, "a0"); err != nil {
		t.Error(err)
	}
	refusedBy(t, "a deletion", objecttest.Delete(alice, b.toys, "a0"), "")
	refusedBy(t, "in its place", makes(alice, b.toys, "a3", withText(1)), "")
	refusedBy(t, "and no other", makes(alice, b.toys, "a0", withText(1)), "user objects")
	b.flush(t)
	if got := b.totals(t); got["alice"].Objects != 3 || got["bob"].Objects != 1 || got[""].Objects != 5 {
		t.Errorf("counted are %v", got)
	}
}

// Bytes are those of states, entries and the journal. What frees some passes; timers and what bounds itself passes always.
func TestAQuotaOfBytes(t *testing.T) {
	t.Parallel()
	const limit = 100_000
	b := setupWith(t, dbtest.New(t), object.Config{Quotas: object.Quotas{User: object.Quota{Bytes: limit}, Tenant: object.Quota{Bytes: 2 * limit}}})
	c := toyConfig()
	c.Name, c.Unmetered = "unmetered", true
	unmetered := object.Register(b.rt, c)
	bob, service := b.As(t, "bob"), b.AsService(t)
	b.update(t, "a", withText(10_000), object.Create())
	put := func(tx *object.Tx[toy]) error {
		tx.Put(toyEntries, fmt.Sprint("k", tx.Version()), &typepb.EnumValue{Name: strings.Repeat("x", 10_000)})
		return nil
	}
	fill := func(ctx context.Context, id object.ID) (n int, err error) {
		for n < 100 && err == nil {
			n++
			_, err = b.toys.Update(ctx, id, put)
		}
		return n - 1, err
	}
	n, err := fill(b.ctx, "a")
	refusedBy(t, "entries", err, "user bytes")
	if n < 7 || n > 8 {
		t.Errorf("%d entries of 10 KB went into 90 KB", n)
	}
	refusedBy(t, "a large object", makes(b.ctx, b.toys, "b", withText(10_000)), "user bytes")
	refusedBy(t, "more of a state", func() error { _, err := b.toys.Update(b.ctx, "a", withText(20_000)); return err }(), "user bytes")
	refusedBy(t, "less of a state", func() error { _, err := b.toys.Update(b.ctx, "a", withText(10)); return err }(), "")
	refusedBy(t, "an entry less", func() error {
		_, err := b.toys.Update(b.ctx, "a", func(tx *object.Tx[toy]) error { tx.DeleteEntry(toyEntries, "k1"); return nil })
		return err
	}(), "")
	if _, err := b.toys.View(b.ctx, "a"); err != nil {
		t.Error(err)
	}
	refusedBy(t, "what bounds itself", makes(b.ctx, unmetered, "u", withText(10)), "")
	refusedBy(t, "the tenant's own, by alice", makes(b.ctx, b.toys, "t", withText(10), object.Shared()), "")
	refusedBy(t, "bob", makes(bob, b.toys, "bobs", withText(10)), "")
	_, err = fill(service, "t")
	refusedBy(t, "the tenant's own", err, "tenant bytes")
	refusedBy(t, "bob with the tenant full", func() error { _, err := b.toys.Update(bob, "bobs", put); return err }(), "tenant bytes")
	refusedBy(t, "a deletion", objecttest.Delete(b.ctx, b.toys, "a"), "")
	b.flush(t)
	if got := b.totals(t); got["alice"].Bytes < limit*9/10 || got["alice"].Bytes > limit*13/10 || got[""].Bytes > limit*25/10 {
		t.Errorf("counted are %v", got)
	}
}

// What one server has written counts on the others, and after a restart, once they have told each other.
func TestAQuotaHoldsOnAllServersAndAfterARestart(t *testing.T) {
	t.Parallel()
	quotas := object.Config{Quotas: object.Quotas{User: object.Quota{Objects: 3}}}
	b := setupWith(t, dbtest.New(t), quotas)
	second := newRuntime(t, b.DB, quotas)
	others := toyKind(second)
	refusedBy(t, "the second server's", makes(b.ctx, others, "0", withText(1)), "")
	b.update(t, "1", withText(1), object.Create())
	b.update(t, "2", withText(1), object.Create())
	b.flush(t, second)
	b.flush(t, second) // the first to be flushed has not seen the others'
	refusedBy(t, "the first", makes(b.ctx, b.toys, "3", withText(1)), "user objects")
	b.flush(t, second)
	refusedBy(t, "the second, which was not asked since", makes(b.ctx, others, "3", withText(1)), "user objects")

	if err := second.Close(b.ctx); err != nil {
		t.Fatal(err)
	}
	third := newRuntime(t, b.DB, quotas)
	k := toyKind(third)
	// A server that has just been started finds out with its first flush.
	_ = makes(b.ctx, k, "4", withText(1))
	b.flush(t, third)
	refusedBy(t, "after a restart", makes(b.ctx, k, "5", withText(1)), "user objects")
	refusedBy(t, "a deletion", objecttest.Delete(b.ctx, b.toys, "1"), "")
	if err := objecttest.Delete(b.ctx, b.toys, "2"); err != nil {
		t.Error(err)
	}
	b.flush(t)
	refusedBy(t, "asks", makes(b.ctx, k, "5", withText(1)), "user objects")
	b.flush(t, third)
	refusedBy(t, "after the others' deletions", makes(b.ctx, k, "5", withText(1)), "")
}

// An orderly stop loses nothing of what was counted.
func TestAStopFlushesUsage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rt := object.NewRuntime(b.DB, object.Config{})
	for i := range 4 {
		refusedBy(t, "create", makes(b.ctx, toyKind(rt), fmt.Sprint(i), withText(1)), "")
	}
	if err := rt.Close(b.ctx); err != nil {
		t.Fatal(err)
	}
	if got := b.totals(t); got["alice"].Objects != 4 || got["alice"] != got[""] {
		t.Errorf("counted are %v", got)
	}
}

// However many create at once, no more is stored than the quota and one for each of them.
func TestAFloodEndsAtTheQuota(t *testing.T) {
	t.Parallel()
	const limit, clients = 100, 16
	b := setupWith(t, dbtest.New(t), object.Config{Quotas: object.Quotas{User: object.Quota{Objects: limit}}})
	done := make(chan error)
	for c := range clients {
		go func() {
			var err error
			for i := 0; i < 3*limit && err == nil; i++ {
				err = makes(b.ctx, b.toys, fmt.Sprintf("%d-%d", c, i), withText(10))
			}
			done <- err
		}()
	}
	for range clients {
		refusedBy(t, "the flood", <-done, "user objects")
	}
	b.flush(t)
	if n := b.totals(t)["alice"].Objects; n < limit || n > limit+clients {
		t.Errorf("%d objects are stored", n)
	}
}

// A recount puts totals right whatever they were, agrees with what servers have counted, and forgets what is gone.
func TestARecountCorrects(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.update(t, "a", func(tx *object.Tx[toy]) error {
		tx.State().Oneofs = []string{"one", "two"}
		tx.Put(toyEntries, "k", &typepb.EnumValue{Name: strings.Repeat("x", 1000)})
		return nil
	}, object.Create())
	b.update(t, "a", naming("b"))
	b.update(t, "gone", naming("b"), object.Create())
	if err := objecttest.Delete(b.ctx, b.toys, "gone"); err != nil {
		t.Fatal(err)
	}
	refusedBy(t, "of the tenant", makes(b.AsService(t), b.toys, "t", withText(10)), "")
	refusedBy(t, "of bob", makes(b.As(t, "bob"), b.toys, "b", withText(10)), "")
	b.flush(t)
	counted := b.totals(t)
	recount := func() map[identity.User]total {
		t.Helper()
		if err := b.DB.RecountUsage(b.ctx, b.Tenant); err != nil {
			t.Fatal(err)
		}
		return b.totals(t)
	}
	right := recount()
	if len(right) != 3 || right[""].Objects != 3 || right["alice"].Objects != 1 || right["bob"].Objects != 1 {
		t.Errorf("counted are %v", right)
	}
	for owner, is := range right {
		if was := counted[owner]; was.Objects != is.Objects || was.Bytes < is.Bytes*8/10 || was.Bytes > is.Bytes*12/10 {
			t.Errorf("of %q %v was counted, and there is %v", owner, was, is)
		}
	}
	b.exec(t, `INSERT INTO holdfast.usage (tenant_id, owner_id, objects, bytes) VALUES ($1, 'carol', 7, 7), ($1, '', -3, 1 << 40), ($1, 'bob', 0, -9)
		ON CONFLICT (tenant_id, owner_id) DO UPDATE SET objects = EXCLUDED.objects, bytes = EXCLUDED.bytes`, string(b.Tenant))
	if again := recount(); fmt.Sprint(again) != fmt.Sprint(right) {
		t.Errorf("put right to %v, want %v", again, right)
	}
	// And the servers go by it.
	b.exec(t, "DELETE FROM holdfast.objects WHERE tenant_id = $1 AND owner_id = 'bob'", string(b.Tenant))
	if again := recount(); again["bob"] != (total{}) || again[""].Objects != 2 {
		t.Errorf("without bob's %v", again)
	}
}

// Who is erased leaves no total, and takes what was counted from the tenant's.
func TestAnErasedUserLeavesNoUsage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.update(t, "a", naming("x"), object.Create())
	refusedBy(t, "bob", makes(b.As(t, "bob"), b.toys, "b", withText(1)), "")
	if _, err := b.rt.EraseUser(b.AsService(t), "alice"); err != nil {
		t.Fatal(err)
	}
	b.flush(t)
	got := b.totals(t)
	if _, there := got["alice"]; there || got[""] != got["bob"] || got[""].Objects != 1 {
		t.Errorf("left are %v", got)
	}
}

// What a server has counted of a user and not added yet does not bring the user's id back.
func TestUsageThatComesAfterAnErasureIsNotAdded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := object.NewRuntime(b.DB, object.Config{})
	refusedBy(t, "alice", makes(b.ctx, toyKind(other), "a", withText(1)), "")
	refusedBy(t, "bob", makes(b.As(t, "bob"), toyKind(other), "b", withText(1)), "")
	erased, err := b.rt.EraseUser(b.AsService(t), "alice")
	if err != nil || len(erased.Left) > 0 {
		t.Errorf("left are %v: %v", erased.Left, err)
	}
	if err := other.Close(b.ctx); err != nil { // which adds what is left to add
		t.Fatal(err)
	}
	got := b.totals(t)
	if _, there := got["alice"]; there || got["bob"].Objects != 1 {
		t.Errorf("counted are %v", got)
	}
}

// Of tenants the fullest are exposed, and those with room are not.
func TestFullTenantsAreExposed(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	own := dbtest.Own(t)
	b := setupWith(t, own, object.Config{Metrics: reg, Quotas: object.Quotas{Tenant: object.Quota{Objects: 10, Bytes: 1 << 40}}})
	b.exec(t, `INSERT INTO holdfast.usage (tenant_id, owner_id, objects, bytes)
		SELECT 'full-' || i, o, i, 1 FROM generate_series(1, 30) AS i, unnest(ARRAY['', 'user']) AS o`)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	exposed := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "holdfast_quota_used_ratio" {
				exposed[m.GetLabel()[1].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	if len(exposed) != 20 || exposed["full-30"] != 3 || exposed["full-11"] != 1.1 {
		t.Errorf("exposed are %v", exposed)
	}
}
