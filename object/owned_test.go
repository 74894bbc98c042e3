package object_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db/dbtest"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/object/objecttest"
)

// ledgerKind is a kind whose toyOther entries belong to one user each.
func ledgerKind(rt *object.Runtime) *object.Kind[toy] {
	c := toyConfig()
	c.Name, c.Owned = "ledger", []string{toyOther}
	return object.Register(rt, c)
}

func note(text string) *typepb.Field { return &typepb.Field{Name: text} }

// ledger is an object of the tenant in which alice, bob and the services have entries.
func ledger(t *testing.T, b *testBundle, k *object.Kind[toy]) {
	t.Helper()
	put := func(ctx context.Context, owner identity.User, keys ...string) {
		t.Helper()
		for _, key := range keys {
			if _, err := k.Update(ctx, "x", func(tx *object.Tx[toy]) error {
				tx.State().Name += "."
				tx.PutFor(owner, toyOther, key, note(key))
				tx.Put(toyEntries, "of all", &typepb.EnumValue{Name: key})
				return nil
			}, object.Upsert(), object.Shared()); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(b.AsService(t), "", "s1")
	put(b.As(t, "alice"), "alice", "a1")
	put(b.As(t, "bob"), "bob", "b1", "b2")
	put(b.AsService(t), "bob", "b2", "b3")
	if _, err := k.Update(b.As(t, "bob"), "x", func(tx *object.Tx[toy]) error {
		tx.DeleteEntry(toyOther, "b3")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A user reads no other owner's entries, whichever way; a service reads all.
func TestAUserReadsNoOthersEntries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k := ledgerKind(b.rt)
	ledger(t, b, k)
	const last = object.Version(7)
	other := newRuntime(t, b.DB, object.Config{})
	elsewhere := ledgerKind(other) // with an empty cache
	all := []string{"a1", "b1", "b2", "b3", "s1"}

	keys := func(entries []object.Entry) (out []string) {
		for _, e := range entries {
			out = append(out, e.Key)
		}
		return out
	}
	paged := func(next func(after string) (object.EntriesPage, error)) (out []string, _ error) {
		for after := ""; ; {
			page, err := next(after)
			if err != nil || len(page.Entries) == 0 {
				return out, err
			}
			out = append(out, keys(page.Entries)...)
			after = page.Entries[len(page.Entries)-1].Key
			if !page.More {
				return out, nil
			}
		}
	}
	watched := func(ctx context.Context, k *object.Kind[toy]) (out []string, _ error) {
		for c, err := range k.Watch(ctx, "x", 1, 10) {
			if err != nil {
				return nil, err
			}
			for _, e := range c.Entries {
				if e.Collection == toyOther {
					out = append(out, e.Key)
				}
			}
			if c.Version == last {
				break
			}
		}
		return out, nil
	}
	// deleted: it tells of b3, which is no more. late: it does not tell of s1, which the first version put.
	for name, way := range map[string]struct {
		deleted, late bool
		read          func(ctx context.Context) ([]string, error)
	}{
		"Entries": {false, false, func(ctx context.Context) ([]string, error) {
			return paged(func(after string) (object.EntriesPage, error) {
				return k.Entries(ctx, "x", toyOther, object.EntriesOptions{After: after, PageSize: 1})
			})
		}},
		"Entries backward": {false, false, func(ctx context.Context) ([]string, error) {
			page, err := k.Entries(ctx, "x", toyOther, object.EntriesOptions{Before: "~"})
			return keys(page.Entries), err
		}},
		"Lookup": {false, false, func(ctx context.Context) ([]string, error) {
			page, err := k.Lookup(ctx, "x", toyOther, all...)
			return keys(page.Entries), err
		}},
		"EntriesIn": {false, false, func(ctx context.Context) ([]string, error) {
			r := b.rt.Together()
			back := object.EntriesIn(r, k, "x", toyOther, object.Range{Before: "~", Backward: true}, 10)
			found := object.LookupIn(r, k, "x", toyOther, all...)
			err := r.Run(ctx)
			if !slices.Equal(slices.Sorted(slices.Values(keys(back.Entries))), slices.Sorted(slices.Values(keys(found.Entries)))) {
				t.Errorf("backward %v, looked up %v", keys(back.Entries), keys(found.Entries))
			}
			return keys(found.Entries), err
		}},
		"EntriesAt": {true, false, func(ctx context.Context) ([]string, error) {
			return paged(func(after string) (object.EntriesPage, error) {
				return k.EntriesAt(ctx, "x", object.Moment{Version: 6}, toyOther, object.EntriesOptions{After: after, PageSize: 1})
			})
		}},
		"EntriesAt now": {false, false, func(ctx context.Context) ([]string, error) {
			page, err := k.EntriesAt(ctx, "x", object.Latest(), toyOther, object.EntriesOptions{})
			return keys(page.Entries), err
		}},
		"History": {true, false, func(ctx context.Context) (out []string, _ error) {
			page, err := k.History(ctx, "x", 0, 0)
			for _, e := range page.Events {
				for _, c := range e.Entries {
					if c.Collection == toyOther {
						out = append(out, c.Key)
					}
				}
			}
			return out, err
		}},
		"Diff": {false, true, func(ctx context.Context) (out []string, _ error) {
			d, err := k.Diff(ctx, "x", object.Moment{Version: 1}, object.Latest())
			for _, e := range d.Entries {
				if e.Collection == toyOther {
					out = append(out, e.Key)
				}
			}
			return out, err
		}},
		"Watch": {true, true, func(ctx context.Context) ([]string, error) { return watched(ctx, elsewhere) }},
		"a change": {false, false, func(ctx context.Context) (out []string, _ error) {
			_, err := k.Update(ctx, "x", func(tx *object.Tx[toy]) error {
				out = nil
				for _, key := range all {
					if tx.Entry(toyOther, key) != nil {
						out = append(out, key)
					}
				}
				tx.Unchanged()
				return nil
			})
			return out, err
		}},
	} {
		for who, mine := range map[string][]string{"alice": {"a1"}, "bob": {"b1", "b2"}, "eve": nil, "": {"a1", "b1", "b2", "s1"}} {
			ctx, want := b.As(t, identity.User(who)), slices.Clone(mine)
			if who == "" {
				ctx = b.AsService(t)
			}
			if way.deleted && (who == "bob" || who == "") {
				want = append(want, "b3")
			}
			want = slices.DeleteFunc(want, func(key string) bool { return way.late && key == "s1" })
			got, err := way.read(ctx)
			got, want = slices.Compact(slices.Sorted(slices.Values(got))), slices.Sorted(slices.Values(want))
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s by %q: %v, want %v; %v", name, who, got, want, err)
			}
		}
	}
}

// A watcher in the process that writes is told of no other's entries either.
func TestAWatcherIsToldOfNoOthersEntries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k := ledgerKind(b.rt)
	ledger(t, b, k)
	const last = object.Version(14)
	var wg sync.WaitGroup
	var mu sync.Mutex
	told := map[string][]string{}
	begun := make(chan struct{}, 3)
	for who, ctx := range map[string]context.Context{"alice": b.As(t, "alice"), "bob": b.As(t, "bob"), "": b.AsService(t)} {
		wg.Go(func() {
			first := true
			for c, err := range k.Watch(ctx, "x", 0, 1) {
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, e := range c.Entries {
					if e.Collection == toyOther {
						told[who] = append(told[who], e.Key)
					}
				}
				mu.Unlock()
				if first {
					first = false
					begun <- struct{}{}
				}
				if c.Version == last {
					return
				}
			}
		})
	}
	for range 3 {
		<-begun
	}
	ledger(t, b, k) // seven versions more
	wg.Wait()
	for who, want := range map[string][]string{"alice": {"a1"}, "bob": {"b1", "b2", "b3"}, "": {"a1", "b1", "b2", "b3", "s1"}} {
		if got := slices.Compact(slices.Sorted(slices.Values(told[who]))); !slices.Equal(got, want) {
			t.Errorf("%q is told of %v, want %v", who, got, want)
		}
	}
}

// Nobody but a service writes an entry of another, however changes share a batch.
func TestAUserChangesNoOthersEntries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k := ledgerKind(b.rt)
	ledger(t, b, k)
	var panicked *object.PanicError
	for name, tt := range map[string]struct {
		who identity.User
		do  func(*object.Tx[toy])
		ok  func(error) bool
	}{
		"another's key":               {"alice", func(tx *object.Tx[toy]) { tx.PutFor("alice", toyOther, "b1", note("mine")) }, func(err error) bool { return errors.Is(err, object.ErrNotFound) || errors.As(err, &panicked) }},
		"for another":                 {"alice", func(tx *object.Tx[toy]) { tx.PutFor("bob", toyOther, "b9", note("x")) }, func(err error) bool { return errors.As(err, &panicked) }},
		"for services":                {"alice", func(tx *object.Tx[toy]) { tx.PutFor("", toyOther, "s9", note("x")) }, func(err error) bool { return errors.As(err, &panicked) }},
		"for the object's owner":      {"alice", func(tx *object.Tx[toy]) { tx.Put(toyOther, "s9", note("x")) }, func(err error) bool { return errors.As(err, &panicked) }},
		"away from its owner":         {"", func(tx *object.Tx[toy]) { tx.PutFor("alice", toyOther, "b1", note("x")) }, func(err error) bool { return errors.As(err, &panicked) }},
		"not owned":                   {"alice", func(tx *object.Tx[toy]) { tx.PutFor("alice", toyEntries, "a", &typepb.EnumValue{}) }, func(err error) bool { return errors.As(err, &panicked) }},
		"deleting another's":          {"alice", func(tx *object.Tx[toy]) { tx.DeleteEntry(toyOther, "b1") }, func(err error) bool { return err == nil }},
		"its own":                     {"alice", func(tx *object.Tx[toy]) { tx.Put(toyOther, "a1", note("a1")) }, func(err error) bool { return err == nil }},
		"a service, what is a user's": {"", func(tx *object.Tx[toy]) { tx.Put(toyOther, "b1", note("b1")) }, func(err error) bool { return err == nil }},
	} {
		ctx := b.AsService(t)
		if tt.who != "" {
			ctx = b.As(t, tt.who)
		}
		if _, err := k.Update(ctx, "x", func(tx *object.Tx[toy]) error { tt.do(tx); return nil }); !tt.ok(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		for who, hidden := range map[identity.User]string{"alice": "b1", "bob": "a1", "": ""} {
			ctx := b.AsService(t)
			if who != "" {
				ctx = b.As(t, who)
			}
			wg.Go(func() {
				if _, err := k.Update(ctx, "x", func(tx *object.Tx[toy]) error {
					if hidden != "" && tx.Entry(toyOther, hidden) != nil {
						t.Errorf("%s sees %s", who, hidden)
					}
					tx.PutFor(who, toyOther, "mine of "+string(who), note("x"))
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for who, want := range map[identity.User][]string{"alice": {"a1", "mine of alice"}, "bob": {"b1", "b2", "mine of bob"}, "eve": nil} {
		page, err := k.Entries(b.As(t, who), "x", toyOther, object.EntriesOptions{})
		var got []string
		for _, e := range page.Entries {
			got = append(got, e.Key)
			if text := e.Value.(*typepb.Field).GetName(); text != e.Key && text != "x" {
				t.Errorf("%s has become %q", e.Key, text)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s has %v, want %v; %v", who, got, want, err)
		}
	}
}

// Who is erased loses the entries in what is others', and nobody else loses any.
func TestEraseUserDeletesOwnedEntries(t *testing.T) {
	t.Parallel()
	b := setupWith(t, dbtest.Own(t), object.Config{})
	k := ledgerKind(b.rt)
	ledger(t, b, k)
	service := b.AsService(t)
	before, err := k.View(service, "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.rt.EraseUser(service, "bob"); err != nil {
		t.Fatal(err)
	}
	page, err := k.Entries(service, "x", toyOther, object.EntriesOptions{})
	var left []string
	for _, e := range page.Entries {
		left = append(left, e.Key)
	}
	if err != nil || !slices.Equal(left, []string{"a1", "s1"}) || page.Version <= before.Version {
		t.Errorf("%v are left at version %d, %v", left, page.Version, err)
	}
	for _, text := range []string{`"bob"`, `"b1"`, `"b3"`} {
		for _, hit := range found(t, b.Bundle, text) {
			if !strings.Contains(hit, `"of all"`) {
				t.Errorf("%s is still there: %s", text, hit)
			}
		}
	}
}

// A life begins without the entries of the one before, of all owners.
func TestALifeBeginsWithoutOthersEntries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k := ledgerKind(b.rt)
	ledger(t, b, k)
	if err := objecttest.Delete(b.AsService(t), k, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Update(b.As(t, "alice"), "x", func(*object.Tx[toy]) error { return nil }, object.Upsert(), object.Shared()); err != nil {
		t.Fatal(err)
	}
	if page, err := k.Entries(b.AsService(t), "x", toyOther, object.EntriesOptions{}); err != nil || len(page.Entries) > 0 {
		t.Errorf("it begins with %v, %v", page.Entries, err)
	}
}

// A user's export has the user's entries in what is the tenant's, and an import of it leaves nothing without its object.
func TestExportHasTheUsersEntries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k := ledgerKind(b.rt)
	ledger(t, b, k)
	var out bytes.Buffer
	rows, err := b.DB.Export(b.ctx, b.Tenant, "bob", &out)
	if err != nil || rows["entries"] != 2 || strings.Contains(out.String(), `"a1"`) || strings.Contains(out.String(), `"s1"`) {
		t.Fatalf("%v, %v\n%s", rows, err, out.String())
	}
	into := dbtest.New(t)
	stored, err := into.DB.Import(into.As(t, "bob"), into.Tenant, bytes.NewReader(out.Bytes()))
	maps.DeleteFunc(stored, func(_ string, n int64) bool { return n == 0 })
	if err != nil || len(stored) > 0 {
		t.Errorf("%v, %v", stored, err)
	}

	out.Reset()
	if _, err := b.DB.Export(b.ctx, b.Tenant, "", &out); err != nil {
		t.Fatal(err)
	}
	whole := dbtest.New(t)
	if _, err := whole.DB.Import(whole.As(t, "bob"), whole.Tenant, bytes.NewReader(out.Bytes())); err != nil {
		t.Fatal(err)
	}
	copied := ledgerKind(newRuntime(t, whole.DB, object.Config{}))
	page, err := copied.Entries(whole.As(t, "bob"), "x", toyOther, object.EntriesOptions{})
	if err != nil || len(page.Entries) != 2 {
		t.Errorf("the copy has %v for bob, %v", page.Entries, err)
	}
}
