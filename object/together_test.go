package object_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"holdfast/object"
)

// tagged makes or changes an object: its name and its terms.
func tagged(name string, terms ...string) func(*object.Tx[toy]) error {
	return func(tx *object.Tx[toy]) error {
		tx.State().Name, tx.State().Oneofs = name, terms
		return nil
	}
}

func names(p *object.Page[toy]) (out []string) {
	for _, i := range p.Items {
		out = append(out, i.State.GetName())
	}
	slices.Sort(out)
	return out
}

func TestTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	up := object.Upsert()
	for i := range 5 {
		b.update(t, object.ID(fmt.Sprint("one-", i)), tagged(fmt.Sprint("one-", i), "of=one/open", "of=one"), up)
		b.update(t, object.ID(fmt.Sprint("closed-", i)), tagged(fmt.Sprint("closed-", i), "of=one"), up)
	}
	b.update(t, "both", tagged("both", "of=one/open", "of=two/open"), up)
	if _, err := b.toys.Update(b.As(t, "bob"), "bobs", tagged("bobs", "of=one/open"), up); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from the cache
		r := b.rt.Together()
		both, none, bobs := object.ViewIn(r, b.toys, "both"), object.ViewIn(r, b.toys, "none"), object.ViewIn(r, b.toys, "bobs")
		either := []string{"of=one/open", "of=two/open", "of=three/open"}
		few := object.ListIn(r, b.toys, object.ListOptions{Terms: []string{"of=one/open"}, PageSize: 3}, 0)
		all := object.ListIn(r, b.toys, object.ListOptions{Terms: []string{"of=one/open", "of=two/open"}}, 0)
		anyOf := object.ListIn(r, b.toys, object.ListOptions{AnyTerm: either}, 0)
		fewOf := object.ListIn(r, b.toys, object.ListOptions{AnyTerm: either, PageSize: 2}, 0)
		small := object.ListIn(r, b.toys, object.ListOptions{AnyTerm: either}, 1)
		if err := r.Run(b.ctx); err != nil {
			t.Fatal(err)
		}
		if !both.Found || both.Snapshot.ID != "both" || both.Snapshot.Version != 1 || both.Snapshot.State.GetName() != "both" || none.Found || bobs.Found {
			t.Errorf("viewed: %+v %+v %+v", both, none, bobs)
		}
		for what, l := range map[string]struct {
			page *object.Page[toy]
			n    int
			more bool
			want []string
		}{
			"by a term": {few, 3, true, nil}, "by two terms": {all, 1, false, []string{"both"}},
			"by any term": {anyOf, 6, false, []string{"both", "one-0", "one-1", "one-2", "one-3", "one-4"}},
			"a few":       {fewOf, 2, true, nil}, "in few bytes": {small, 1, true, nil},
		} {
			if got := names(l.page); len(got) != l.n || l.want != nil && !slices.Equal(got, l.want) || (l.page.Next != "") != l.more {
				t.Errorf("%s: %v, more: %q", what, got, l.page.Next)
			}
		}
	}

	r := b.rt.Together()
	object.ViewIn(r, b.toys, "not an id")
	if err := r.Run(b.ctx); !errors.Is(err, object.ErrInvalid) {
		t.Errorf("of what is no id: %v", err)
	}
	if err := b.rt.Together().Run(context.Background()); err == nil {
		t.Error("nobody may read")
	}
}

// A list by any of several terms has each object once, in order, page by page.
func TestListByAnyTermHasPages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 7 {
		terms := [][]string{{"a"}, {"b"}, {"a", "b"}}[i%3]
		b.update(t, object.ID(fmt.Sprint(i)), tagged(fmt.Sprint(i), terms...), object.Upsert())
	}
	seen := map[string]bool{}
	o := object.ListOptions{AnyTerm: []string{"a", "b", "a", "c"}, PageSize: 3}
	for {
		page, err := b.toys.List(b.ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names(&page) {
			if seen[name] {
				t.Errorf("%s comes twice", name)
			}
			seen[name] = true
		}
		if o.PageToken = page.Next; o.PageToken == "" {
			break
		}
	}
	if len(seen) != 7 {
		t.Errorf("listed: %v", seen)
	}
}

// However much is asked for, it is one round trip.
func TestTogetherIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p, d := newProxy(t, b.URL)
	rt := newRuntime(t, d, object.Config{})
	toys := toyKind(rt)
	b.update(t, "a", tagged("a", "x"), object.Upsert())
	read := func() {
		t.Helper()
		r := rt.Together()
		a := object.ViewIn(r, toys, "a")
		var lists []*object.Page[toy]
		for range 5 {
			lists = append(lists, object.ListIn(r, toys, object.ListOptions{Terms: []string{"x"}}, 0),
				object.ListIn(r, toys, object.ListOptions{AnyTerm: []string{"x", "y"}}, 0))
		}
		if err := r.Run(b.ctx); err != nil {
			t.Fatal(err)
		}
		if !a.Found || slices.ContainsFunc(lists, func(l *object.Page[toy]) bool { return len(l.Items) != 1 }) {
			t.Errorf("%+v %+v", a, lists)
		}
	}
	read() // Postgres prepares the statements
	before := p.trips.Load()
	read()
	if n := p.trips.Load() - before; n != 1 {
		t.Errorf("it took %d round trips", n)
	}
}

// All reads see one moment: never a second change without the first that was committed before it.
func TestTogetherIsOneMoment(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := toyKind(newRuntime(t, b.DB, object.Config{}))
	b.update(t, "first", tagged("first"), object.Upsert())
	b.update(t, "second", tagged("second", "x"), object.Upsert())
	ctx, stop := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			for _, id := range []object.ID{"first", "second"} {
				if _, err := other.Update(ctx, id, func(tx *object.Tx[toy]) error {
					tx.State().Edition = fmt.Sprint(tx.Version())
					return nil
				}); err != nil && ctx.Err() == nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}()
	for range 300 {
		r := b.rt.Together()
		first, second := object.ViewIn(r, b.toys, "first"), object.ListIn(r, b.toys, object.ListOptions{Terms: []string{"x"}}, 0)
		if err := r.Run(b.ctx); err != nil {
			t.Fatal(err)
		}
		if a, z := first.Snapshot.Version, second.Items[0].Version; a != z && a != z+1 {
			t.Fatalf("the first is at %d and the second, which changes after it, at %d", a, z)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
