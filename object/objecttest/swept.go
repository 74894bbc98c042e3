package objecttest

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"holdfast/object"
)

func sweptTests[S proto.Message]() tests[S] {
	return tests[S]{
		"SweptIsGone":         (*suite[S]).testSweptIsGone,
		"SweptAndMadeAnew":    (*suite[S]).testSweptAndMadeAnew,
		"SweptAndDeletedAnew": (*suite[S]).testSweptAndDeletedAnew,
		"TrimmedJournal":      (*suite[S]).testTrimmedJournal,
	}
}

// sweep removes an object's rows, as the janitor does once it has expired.
func (s *suite[S]) sweep(t *testing.T, id object.ID) {
	t.Helper()
	for _, table := range []string{"terms", "entries", "events", "timers", "objects"} {
		s.exec(t, "DELETE FROM holdfast."+table+" WHERE tenant_id = $1 AND kind = $2 AND object_id = $3", string(s.Tenant), s.kind.Name(), string(id))
	}
}

// Who still remembers an object that was swept finds it gone, and may create it.
func (s *suite[S]) testSweptIsGone(t *testing.T) {
	for _, id := range []object.ID{"viewed", "changed", "made"} {
		s.create(t, id, "first life")
		s.set(t, id, "first life")
		s.sweep(t, id)
	}
	_, err := s.kind.View(s.ctx, "viewed")
	wantError(t, err, object.ErrNotFound)
	_, err = s.kind.Update(s.ctx, "changed", s.setting("x"))
	wantError(t, err, object.ErrNotFound)
	if snap := s.create(t, "made", "second life"); snap.Version != 1 {
		t.Errorf("made anew at version %d", snap.Version)
	}
}

// An object that was swept and made anew counts from 1 again. A process that remembers its earlier life at the very same
// version does not take the one for the other.
func (s *suite[S]) testSweptAndMadeAnew(t *testing.T) {
	_, other := s.another(t, object.Config{})
	renew := func(id object.ID) {
		t.Helper()
		s.create(t, id, "first life")
		s.put(t, id, "k1")
		s.put(t, id, "k2")
		s.want(t, s.ctx, id, 3, "first life")
		s.sweep(t, id)
		for i, change := range []func(*object.Tx[S]) error{s.setting("second life"), func(tx *object.Tx[S]) error {
			tx.Put(s.Collection, "k9", s.Entry("new"))
			return nil
		}, s.setting("second life")} {
			opts := []object.UpdateOption{object.Create()}
			if _, err := other.Update(s.ctx, id, change, opts[min(i, 1):]...); err != nil {
				t.Fatal(err)
			}
		}
	}
	renew("viewed")
	for range 2 {
		s.want(t, s.ctx, "viewed", 3, "second life")
		snap, err := s.kind.View(s.ctx, "viewed", object.WithRecent(5))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.render(snap.Recent); len(got) != 1 || got[0] != "k9=new" {
			t.Errorf("entries: %v", got)
		}
	}
	renew("seen")
	for range 2 {
		read := s.rt.Together()
		seen := object.ViewIn(read, s.kind, "seen")
		page := object.ListIn(read, s.kind, object.ListOptions{}, 0)
		if err := read.Run(s.ctx); err != nil {
			t.Fatal(err)
		}
		if !seen.Found || s.Text(seen.Snapshot.State) != "second life" || len(page.Items) != 2 {
			t.Errorf("seen together: %+v, with %d others", seen, len(page.Items))
		}
	}
	renew("changed")
	_, err := s.kind.Update(s.ctx, "changed", func(tx *object.Tx[S]) error {
		s.Set(tx.State(), s.Text(tx.State())+", changed")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.want(t, s.ctx, "changed", 4, "second life, changed")
	renew("made")
	_, err = s.kind.Update(s.ctx, "made", s.setting("third life"), object.Create())
	wantError(t, err, object.ErrExists)
	for _, id := range []object.ID{"viewed", "changed", "made"} {
		s.journal(t, id)
	}
}

// The same where one of the two lives, or both, ended at that version.
func (s *suite[S]) testSweptAndDeletedAnew(t *testing.T) {
	_, other := s.another(t, object.Config{})
	live := func(k *object.Kind[S], id object.ID, text string, deleted bool) {
		t.Helper()
		if _, err := k.Update(s.ctx, id, s.setting(text), object.Create()); err != nil {
			t.Fatal(err)
		}
		var err error
		if deleted {
			err = Delete(s.ctx, k, id)
		} else {
			_, err = k.Update(s.ctx, id, s.setting(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	live(s.kind, "a", "first life", true)
	s.sweep(t, "a")
	live(other, "a", "second life", false)
	_, err := s.kind.Update(s.ctx, "a", s.setting("third life"), object.Create())
	wantError(t, err, object.ErrExists)
	s.want(t, s.ctx, "a", 2, "second life")

	live(s.kind, "b", "first life", false)
	s.sweep(t, "b")
	live(other, "b", "second life", true)
	_, err = s.kind.Update(s.ctx, "b", s.setting("third life"))
	wantError(t, err, object.ErrNotFound)
	_, err = s.kind.View(s.ctx, "b")
	wantError(t, err, object.ErrNotFound)

	live(s.kind, "c", "first life", true)
	s.sweep(t, "c")
	live(other, "c", "second life", true)
	if snap := s.create(t, "c", "third life"); snap.Version != 3 {
		t.Errorf("made anew at version %d", snap.Version)
	}
	s.want(t, s.ctx, "c", 3, "third life")
	for _, id := range []object.ID{"a", "b", "c"} {
		s.journal(t, id)
	}
}

// A watcher that comes back to a journal that no longer has what it missed gets a snapshot; one that missed nothing
// just goes on.
func (s *suite[S]) testTrimmedJournal(t *testing.T) {
	s.create(t, "a", "1")
	s.set(t, "a", "2")
	s.set(t, "a", "3")
	s.exec(t, "DELETE FROM holdfast.events WHERE tenant_id = $1 AND object_id = 'a' AND version <= 2", string(s.Tenant))
	for after, reset := range map[object.Version]bool{1: true, 2: false} {
		c := s.watch(t, s.kind, "a", after, 0).change(t)
		s.wantChange(t, &c, 3, reset, "3")
	}
	s.exec(t, "DELETE FROM holdfast.events WHERE tenant_id = $1 AND object_id = 'a'", string(s.Tenant))
	w := s.watch(t, s.kind, "a", 3, 0)
	s.set(t, "a", "4")
	c := w.change(t)
	s.wantChange(t, &c, 4, false, "4")
}
