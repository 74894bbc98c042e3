package object_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/sourcecontextpb"

	"holdfast/object"
)

// tagged makes or changes an object: its name, its terms, and the text of a field further in.
func tagged(name, inner string, terms ...string) func(*object.Tx[toy]) error {
	return func(tx *object.Tx[toy]) error {
		s := tx.State()
		s.Name, s.Oneofs, s.SourceContext = name, terms, &sourcecontextpb.SourceContext{FileName: inner}
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
	b.update(t, "pointer", tagged("", "target"), up)
	b.update(t, "target", tagged("the target", "", "one", "two"), up)
	for i := range 5 {
		b.update(t, object.ID(fmt.Sprint("one-", i)), tagged(fmt.Sprint("one-", i), "", "of=one/open", "of=one"), up)
		b.update(t, object.ID(fmt.Sprint("closed-", i)), tagged(fmt.Sprint("closed-", i), "", "of=one", "in=target"), up)
	}
	b.update(t, "both", tagged("both", "", "of=one/open", "of=two/open", "in=target/open"), up)
	if _, err := b.toys.Update(b.As(t, "bob"), "bobs", tagged("bobs", "target", "of=one/open"), up); err != nil {
		t.Fatal(err)
	}

	found := object.Found{Fields: []object.Field{
		object.FieldOf(b.toys, "none", "name"), object.FieldOf(b.toys, "pointer", "name"), object.FieldOf(b.toys, "pointer", "source_context.file_name"),
	}}
	nothing := object.Found{Fields: []object.Field{object.FieldOf(b.toys, "pointer", "name"), object.FieldOf(b.toys, "bobs", "source_context.file_name")}}
	via := object.ViaFields(b.toys, [2]string{"oneofs", "of="}, [2]string{"fields", "never="})
	for range 2 { // the second time from the cache
		r := b.rt.Together()
		pointer, none, bobs := object.ViewIn(r, b.toys, "pointer"), object.ViewIn(r, b.toys, "none"), object.ViewIn(r, b.toys, "bobs")
		target, nobody := object.ViewFoundIn(r, b.toys, found), object.ViewFoundIn(r, b.toys, nothing)
		given, hidden := object.ViewFoundIn(r, b.toys, object.Found{Given: "both"}), object.ViewFoundIn(r, b.toys, object.Found{Given: "bobs"})
		listed := object.ListIn(r, b.toys, object.ListOptions{Terms: []string{"of=one/open"}, PageSize: 3})
		direct := object.ListFoundIn(r, b.toys, object.FoundList{Found: found, Before: "in=", After: "/open"})
		open := object.ListFoundIn(r, b.toys, object.FoundList{Found: found, Via: via, After: "/open"})
		few := object.ListFoundIn(r, b.toys, object.FoundList{Found: found, Via: via, After: "/open", Limit: 2})
		empty := object.ListFoundIn(r, b.toys, object.FoundList{Found: nothing, Before: "in=", After: "/open"})
		otherwise := object.ListFoundIn(r, b.toys, object.FoundList{Found: nothing, Before: "in=", After: "/open", Otherwise: "of=two/open"})
		if err := r.Run(b.ctx); err != nil {
			t.Fatal(err)
		}
		if !pointer.Found || pointer.Snapshot.State.GetSourceContext().GetFileName() != "target" || pointer.Snapshot.Version != 1 || none.Found || bobs.Found {
			t.Errorf("viewed: %+v %+v %+v", pointer, none, bobs)
		}
		if !target.Found || target.Snapshot.ID != "target" || nobody.Found || !given.Found || hidden.Found {
			t.Errorf("viewed: %+v %+v %+v %+v", target, nobody, given, hidden)
		}
		for what, l := range map[string]struct {
			page *object.Page[toy]
			n    int
			more bool
			want []string
		}{
			"by a term": {listed, 3, true, nil}, "by what is found": {direct, 1, false, []string{"both"}},
			"by elements of what is found": {open, 6, false, []string{"both", "one-0", "one-1", "one-2", "one-3", "one-4"}},
			"a few":                        {few, 2, true, nil}, "by nothing": {empty, 0, false, nil}, "otherwise": {otherwise, 1, false, []string{"both"}},
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

// However much is asked for, it is one round trip.
func TestTogetherIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p, d := newProxy(t, b.URL)
	rt := newRuntime(t, d, object.Config{})
	toys := toyKind(rt)
	b.update(t, "a", tagged("a", "a", "x"), object.Upsert())
	read := func() {
		t.Helper()
		r := rt.Together()
		a := object.ViewIn(r, toys, "a")
		found := object.Found{Fields: []object.Field{object.FieldOf(toys, "a", "name")}}
		again := object.ViewFoundIn(r, toys, found)
		var lists []*object.Page[toy]
		for range 5 {
			lists = append(lists, object.ListIn(r, toys, object.ListOptions{Terms: []string{"x"}}),
				object.ListFoundIn(r, toys, object.FoundList{Found: found, Via: object.ViaFields(toys, [2]string{"oneofs", ""})}))
		}
		if err := r.Run(b.ctx); err != nil {
			t.Fatal(err)
		}
		if !a.Found || !again.Found || slices.ContainsFunc(lists, func(l *object.Page[toy]) bool { return len(l.Items) != 1 }) {
			t.Errorf("%+v %+v %+v", a, again, lists)
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
	b.update(t, "first", tagged("first", ""), object.Upsert())
	b.update(t, "second", tagged("second", "", "x"), object.Upsert())
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
		first, second := object.ViewIn(r, b.toys, "first"), object.ListIn(r, b.toys, object.ListOptions{Terms: []string{"x"}})
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

func TestMark(t *testing.T) {
	t.Parallel()
	of := func(ids ...string) object.Version {
		var m object.Mark
		for i, id := range ids {
			m.Add("k", object.Info{ID: object.ID(id), Version: object.Version(i + 1)})
		}
		return m.Version()
	}
	seen := map[object.Version]string{}
	for _, ids := range [][]string{{}, {"a"}, {"b"}, {"a", "b"}, {"b", "a"}, {"a", "b", "c"}, {"ab"}, {"a", "a"}} {
		v := of(ids...)
		if v < 1 || v != of(ids...) {
			t.Errorf("%v: %d and %d", ids, v, of(ids...))
		}
		if other, ok := seen[v]; ok {
			t.Errorf("%v has the mark of %s", ids, other)
		}
		seen[v] = fmt.Sprint(ids)
	}
}
