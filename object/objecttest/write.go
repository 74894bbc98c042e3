package objecttest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/object"
)

func writeTests[S proto.Message]() tests[S] {
	return tests[S]{
		"Create":               (*suite[S]).testCreate,
		"Update":               (*suite[S]).testUpdate,
		"Upsert":               (*suite[S]).testUpsert,
		"Delete":               (*suite[S]).testDelete,
		"Unchanged":            (*suite[S]).testUnchanged,
		"Conflict":             (*suite[S]).testConflict,
		"InvalidID":            (*suite[S]).testInvalidID,
		"TxSeesItself":         (*suite[S]).testTxSeesItself,
		"EntriesOnDemand":      (*suite[S]).testEntriesOnDemand,
		"ExpectAbsent":         (*suite[S]).testExpectAbsent,
		"Prefetch":             (*suite[S]).testPrefetch,
		"FailureLeavesNoTrace": (*suite[S]).testFailureLeavesNoTrace,
		"PoisonFailsAlone":     (*suite[S]).testPoisonFailsAlone,
		"TooLarge":             (*suite[S]).testTooLarge,
		"Journal":              (*suite[S]).testJournal,
	}
}

func (s *suite[S]) testCreate(t *testing.T) {
	var inside object.Info
	snap, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		if tx.Exists() || tx.Version() != 0 || s.Text(tx.State()) != "" {
			t.Errorf("a new object: exists %t, version %d, text %q", tx.Exists(), tx.Version(), s.Text(tx.State()))
		}
		s.Set(tx.State(), "first")
		inside = tx.Info()
		return nil
	}, object.Create())
	if err != nil {
		t.Fatal(err)
	}
	if snap.Info != inside {
		t.Errorf("Tx.Info() said %+v, Update %+v", inside, snap.Info)
	}
	if snap.ID != "a" || snap.Owner != alice || snap.Version != 1 || !snap.UpdateTime.Equal(snap.CreateTime) || s.Text(snap.State) != "first" {
		t.Errorf("created %+v with %q", snap.Info, s.Text(snap.State))
	}
	for _, warm := range []bool{true, false} {
		if !warm {
			s.restart(t, object.Config{})
		}
		seen, err := s.kind.View(s.ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		if seen.Info != snap.Info || !proto.Equal(seen.State, snap.State) {
			t.Errorf("in memory %t: viewed %+v %v, created %+v %v", warm, seen.Info, seen.State, snap.Info, snap.State)
		}
		_, err = s.kind.Update(s.ctx, "a", s.setting("second"), object.Create())
		wantError(t, err, object.ErrExists)
	}
	s.want(t, s.ctx, "a", 1, "first")
}

func (s *suite[S]) testUpdate(t *testing.T) {
	_, err := s.kind.Update(s.ctx, "a", s.setting("x"))
	wantError(t, err, object.ErrNotFound)
	_, err = s.kind.View(s.ctx, "a")
	wantError(t, err, object.ErrNotFound)

	created := s.create(t, "a", "1")
	last := created
	for v := object.Version(2); v <= 6; v++ {
		if v == 4 {
			s.restart(t, object.Config{}) // nothing in memory
		}
		snap, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			if !tx.Exists() || tx.Version() != v-1 || tx.Caller().User != alice || tx.Now().Before(last.UpdateTime) {
				t.Errorf("before version %d: exists %t, version %d, caller %v, now %v", v, tx.Exists(), tx.Version(), tx.Caller(), tx.Now())
			}
			s.Set(tx.State(), s.Text(tx.State())+"+")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if snap.Version != v || !snap.CreateTime.Equal(created.CreateTime) || snap.UpdateTime.Before(last.UpdateTime) {
			t.Fatalf("after %+v came %+v", last.Info, snap.Info)
		}
		last = snap
	}
	s.want(t, s.ctx, "a", 6, "1+++++")
	if s.Text(created.State) != "1" {
		t.Errorf("a snapshot was changed afterwards, to %q", s.Text(created.State))
	}
}

func (s *suite[S]) testUpsert(t *testing.T) {
	for i, text := range []string{"made", "changed"} {
		if snap := s.set(t, "a", text, object.Upsert()); snap.Version != object.Version(i+1) {
			t.Fatalf("version %d, want %d", snap.Version, i+1)
		}
		s.restart(t, object.Config{})
	}
	s.want(t, s.ctx, "a", 2, "changed")
}

func (s *suite[S]) testDelete(t *testing.T) {
	s.create(t, "a", "first life")
	s.put(t, "a", "k1", "k2")
	if err := Delete(s.ctx, s.kind, "a"); err != nil {
		t.Fatal(err)
	}
	gone := func() {
		t.Helper()
		_, err := s.kind.View(s.ctx, "a")
		wantError(t, err, object.ErrNotFound)
		_, err = s.kind.Update(s.ctx, "a", s.setting("x"))
		wantError(t, err, object.ErrNotFound)
		_, err = s.kind.Entries(s.ctx, "a", s.Collection, object.EntriesOptions{})
		wantError(t, err, object.ErrNotFound)
		wantError(t, Delete(s.ctx, s.kind, "a"), object.ErrNotFound)
		page, err := s.kind.List(s.ctx, object.ListOptions{})
		if err != nil || len(page.Items) != 0 {
			t.Errorf("list: %d items, %v", len(page.Items), err)
		}
	}
	gone()
	s.restart(t, object.Config{})
	gone()
	snap := s.create(t, "a", "second life")
	if snap.Version != 4 {
		t.Errorf("created again at version %d, want 4: it goes on counting", snap.Version)
	}
	if got := s.texts(t, "a"); len(got) != 0 {
		t.Errorf("entries of the first life: %v", got)
	}
	s.put(t, "a", "k2")
	if got := s.texts(t, "a"); !slices.Equal(got, []string{"k2=text of k2"}) {
		t.Errorf("entries: %v", got)
	}
	if got := s.journal(t, "a"); !slices.Equal(got, []string{"created", "updated", "deleted", "created", "updated"}) {
		t.Errorf("journal: %v", got)
	}
}

func (s *suite[S]) testUnchanged(t *testing.T) {
	before := s.create(t, "a", "x")
	for range 2 {
		snap, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			s.Set(tx.State(), "not kept")
			tx.Unchanged()
			if tx.Info() != before.Info {
				t.Errorf("Tx.Info() is %+v, want %+v", tx.Info(), before.Info)
			}
			return nil
		})
		if err != nil || snap.Info != before.Info || s.Text(snap.State) != "x" {
			t.Fatalf("%+v %q, %v", snap.Info, s.Text(snap.State), err)
		}
		s.restart(t, object.Config{})
	}
	s.want(t, s.ctx, "a", 1, "x")
	s.journal(t, "a")
}

func (s *suite[S]) testConflict(t *testing.T) {
	s.create(t, "a", "1")
	s.set(t, "a", "2", object.IfVersion(1))
	for _, warm := range []bool{true, false} {
		if !warm {
			s.restart(t, object.Config{})
		}
		for _, v := range []object.Version{0, 1, 3} {
			_, err := s.kind.Update(s.ctx, "a", func(*object.Tx[S]) error {
				t.Error("the closure ran")
				return nil
			}, object.IfVersion(v))
			var mismatch *object.VersionMismatchError
			if !errors.As(err, &mismatch) || mismatch.Expected != v || mismatch.Current != 2 {
				t.Errorf("in memory %t: IfVersion(%d) gave %v", warm, v, err)
			}
		}
	}
	if err := Delete(s.ctx, s.kind, "a", object.IfVersion(1)); err == nil {
		t.Error("deleted another version")
	}
	s.want(t, s.ctx, "a", 2, "2")
	if err := Delete(s.ctx, s.kind, "a", object.IfVersion(2)); err != nil {
		t.Error(err)
	}
	var mismatch *object.VersionMismatchError
	_, err := s.kind.Update(s.ctx, "a", s.setting("x"), object.Upsert(), object.IfVersion(3))
	if !errors.As(err, &mismatch) || mismatch.Current != 0 {
		t.Errorf("IfVersion of a deleted object gave %v", err)
	}
	s.set(t, "a", "3", object.Upsert(), object.IfVersion(0))
	s.journal(t, "a")
}

func (s *suite[S]) testInvalidID(t *testing.T) {
	for _, id := range []object.ID{"", "a/b", "a b", "ä", "a\x00", "a\n", object.ID(strings.Repeat("a", 129))} {
		_, err := s.kind.Update(s.ctx, id, s.setting("x"), object.Upsert())
		wantError(t, err, object.ErrInvalid)
		_, err = s.kind.View(s.ctx, id)
		wantError(t, err, object.ErrInvalid)
		_, err = s.kind.Entries(s.ctx, id, s.Collection, object.EntriesOptions{})
		wantError(t, err, object.ErrInvalid)
		for _, err := range s.kind.Watch(s.ctx, id, 0, 0) {
			wantError(t, err, object.ErrInvalid)
		}
	}
	for _, id := range []object.ID{".", "a:b_c-D.9", object.ID(strings.Repeat("a", 128))} {
		s.create(t, id, "x")
		s.want(t, s.ctx, id, 1, "x")
	}
}

func (s *suite[S]) testTxSeesItself(t *testing.T) {
	s.create(t, "a", "x")
	s.put(t, "a", "k1", "k2")
	_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		see := func(key, want string) {
			t.Helper()
			if got := s.render([]object.Entry{{Key: key, Value: tx.Entry(s.Collection, key)}})[0]; got != key+"="+want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		see("k1", "text of k1")
		tx.Put(s.Collection, "k1", s.Entry("second"))
		see("k1", "second")
		tx.Put(s.Collection, "k1", s.Entry("third"))
		see("k1", "third")
		tx.DeleteEntry(s.Collection, "k2")
		see("k2", "deleted")
		see("k3", "deleted")
		tx.Put(s.Collection, "k3", s.Entry("new"))
		tx.DeleteEntry(s.Collection, "k3")
		see("k3", "deleted")
		tx.DeleteEntry(s.Collection, "k4")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.texts(t, "a"); !slices.Equal(got, []string{"k1=third"}) {
		t.Errorf("entries: %v", got)
	}
	_, err = s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		tx.Put("no such collection", "k", s.Entry("x"))
		return nil
	})
	if _, panicked := errors.AsType[*object.PanicError](err); !panicked {
		t.Errorf("an entry of no collection gave %v", err)
	}
}

// manyEntries is more than any kind keeps at hand.
const manyEntries = 120

// fill gives an object more entries than are kept at hand.
func (s *suite[S]) fill(t *testing.T, id object.ID) {
	t.Helper()
	keys := make([]string, manyEntries)
	for i := range keys {
		keys[i] = object.SeqKey(int64(i + 1))
	}
	s.put(t, id, keys...)
}

func (s *suite[S]) testEntriesOnDemand(t *testing.T) {
	s.create(t, "a", "x")
	s.fill(t, "a")
	for i, key := range []string{object.SeqKey(1), object.SeqKey(2), object.SeqKey(manyEntries), "no such key"} {
		if i%2 == 1 {
			s.restart(t, object.Config{})
		}
		_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			text := "nothing"
			if old := tx.Entry(s.Collection, key); old != nil {
				text = s.EntryText(old)
			}
			tx.Put(s.Collection, key, s.Entry("was "+text))
			tx.DeleteEntry(s.Collection, object.SeqKey(int64(10+i)))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	got := s.texts(t, "a")
	if len(got) != manyEntries-4+1 {
		t.Errorf("%d entries", len(got))
	}
	for _, want := range []string{
		object.SeqKey(1) + "=was text of " + object.SeqKey(1), object.SeqKey(2) + "=was text of " + object.SeqKey(2),
		object.SeqKey(manyEntries) + "=was text of " + object.SeqKey(manyEntries), "no such key=was nothing",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is missing", want)
		}
	}
	s.journal(t, "a")
}

func (s *suite[S]) testExpectAbsent(t *testing.T) {
	s.create(t, "a", "x")
	s.fill(t, "a")
	there, absent := object.SeqKey(1), "absent"
	for i, warm := range []bool{true, false} {
		if !warm {
			s.restart(t, object.Config{})
		}
		var saw []string
		snap, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			saw = s.render([]object.Entry{
				{Key: there, Value: tx.Entry(s.Collection, there)}, {Key: absent, Value: tx.Entry(s.Collection, absent)},
			})
			return nil
		}, object.ExpectAbsent(s.Collection, there, absent))
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{there + "=text of " + there, absent + "=deleted"}; !slices.Equal(saw, want) {
			t.Errorf("in memory %t: the closure whose run counts saw %v, want %v", warm, saw, want)
		}
		if want := object.Version(3 + i); snap.Version != want {
			t.Errorf("version %d, want %d", snap.Version, want)
		}
	}
	s.journal(t, "a")
}

func (s *suite[S]) testPrefetch(t *testing.T) {
	s.create(t, "a", "x")
	s.fill(t, "a")
	s.restart(t, object.Config{})
	runs, saw := 0, ""
	_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		runs++ // counted, against the rule, to see that it ran once
		saw = s.EntryText(tx.Entry(s.Collection, object.SeqKey(1)))
		if tx.Entry(s.Collection, "absent") != nil {
			t.Error("an entry from nowhere")
		}
		return nil
	}, object.Prefetch(s.Collection, object.SeqKey(1), "absent"))
	if err != nil {
		t.Fatal(err)
	}
	if runs != 1 || saw != "text of "+object.SeqKey(1) {
		t.Errorf("the closure ran %d times and saw %q", runs, saw)
	}
}

func (s *suite[S]) testFailureLeavesNoTrace(t *testing.T) {
	s.create(t, "a", "kept")
	s.put(t, "a", "k1", "k2")
	refusal := errors.New("the rule says no")
	for _, warm := range []bool{true, false} {
		if !warm {
			s.restart(t, object.Config{})
		}
		for name, end := range map[string]func() error{
			"error": func() error { return refusal },
			"panic": func() error { panic("a bug") },
		} {
			for id, opts := range map[object.ID][]object.UpdateOption{"a": nil, "never": {object.Create()}} {
				_, err := s.kind.Update(s.ctx, id, func(tx *object.Tx[S]) error {
					s.Set(tx.State(), "a trace")
					s.Tag(tx.State(), "trace")
					tx.Put(s.Collection, "k1", s.Entry("a trace"))
					tx.Put(s.Collection, "k3", s.Entry("a trace"))
					tx.DeleteEntry(s.Collection, "k2")
					tx.Emit("trace")
					if id == "a" {
						tx.DeleteObject()
					}
					return end()
				}, opts...)
				var panicked *object.PanicError
				switch {
				case name == "error" && !errors.Is(err, refusal),
					name == "panic" && (!errors.As(err, &panicked) || panicked.Value != "a bug" || len(panicked.Stack) == 0):
					t.Errorf("in memory %t, %s: %s ended with %v", warm, id, name, err)
				}
			}
			s.want(t, s.ctx, "a", 2, "kept")
			if got := s.texts(t, "a"); !slices.Equal(got, []string{"k1=text of k1", "k2=text of k2"}) {
				t.Errorf("entries: %v", got)
			}
			_, err := s.kind.View(s.ctx, "never")
			wantError(t, err, object.ErrNotFound)
		}
	}
	if got := s.journal(t, "a"); len(got) != 2 {
		t.Errorf("journal: %v", got)
	}
	s.create(t, "never", "made after all")
	s.want(t, s.ctx, "never", 1, "made after all")
}

func (s *suite[S]) testPoisonFailsAlone(t *testing.T) {
	const nul = "\x00" // jsonb cannot hold it
	for name, poison := range map[string]struct {
		change func(*object.Tx[S]) error
		err    error
	}{
		"state that Postgres refuses": {s.setting("a" + nul), db.ErrInvalidData},
		"entry that Postgres refuses": {func(tx *object.Tx[S]) error {
			tx.Put(s.Collection, "k", s.Entry(nul))
			return nil
		}, db.ErrInvalidData},
		"key that Postgres refuses": {func(tx *object.Tx[S]) error {
			tx.Put(s.Collection, "k"+nul, s.Entry("x"))
			return nil
		}, db.ErrInvalidData},
		"key too long for an index": {func(tx *object.Tx[S]) error {
			tx.Put(s.Collection, incompressible(9000), s.Entry("x"))
			return nil
		}, db.ErrInvalidData},
		"text that is no UTF-8": {s.setting("\xff"), object.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSuite(t, s.Case)
			s.create(t, "shared", "1")
			s.create(t, "beside", "1")
			s.create(t, "poisoned", "1")
			release := s.stall(t)
			good := []<-chan outcome[S]{
				s.start(s.ctx, "beside", s.setting("2")),
				s.start(s.ctx, "shared", s.setting("2")),
				s.start(s.ctx, "new", s.setting("1"), object.Create()),
			}
			bad := []<-chan outcome[S]{
				s.start(s.ctx, "shared", poison.change),
				s.start(s.ctx, "poisoned", poison.change),
				s.start(s.ctx, "stillborn", poison.change, object.Create()),
			}
			good = append(good, s.start(s.ctx, "shared", func(tx *object.Tx[S]) error {
				s.Set(tx.State(), s.Text(tx.State())+"3")
				return nil
			}))
			release()
			for _, c := range good {
				if o := receive(t, c, "a good change"); o.err != nil {
					t.Errorf("a good change failed: %v", o.err)
				}
			}
			for _, c := range bad {
				wantError(t, receive(t, c, "a poisoned change").err, poison.err)
			}
			s.want(t, s.ctx, "beside", 2, "2")
			s.want(t, s.ctx, "shared", 3, "23")
			s.want(t, s.ctx, "new", 1, "1")
			s.want(t, s.ctx, "poisoned", 1, "1")
			_, err := s.kind.View(s.ctx, "stillborn")
			wantError(t, err, object.ErrNotFound)
			s.journal(t, "shared")
		})
	}
}

// incompressible is a key that pglz cannot make smaller.
func incompressible(n int) string {
	var b strings.Builder
	x := uint32(1)
	for range n {
		x = x*1664525 + 1013904223
		b.WriteByte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"[x>>26])
	}
	return b.String()
}

func (s *suite[S]) testTooLarge(t *testing.T) {
	const limit = 64 << 10
	s.restart(t, object.Config{Limits: object.Limits{StateBytes: limit, EntryBytes: limit}})
	s.create(t, "a", "x")
	large := strings.Repeat("y", limit)
	for what, change := range map[string]func(*object.Tx[S]) error{
		"state": s.setting(large),
		"entry " + s.Collection + "/k": func(tx *object.Tx[S]) error {
			tx.Put(s.Collection, "k", s.Entry(large))
			return nil
		},
	} {
		_, err := s.kind.Update(s.ctx, "a", change)
		var tooLarge *object.TooLargeError
		if !errors.As(err, &tooLarge) {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if tooLarge.What != what || tooLarge.Limit != limit || tooLarge.Size <= limit {
			t.Errorf("%s: %+v", what, tooLarge)
		}
	}
	s.want(t, s.ctx, "a", 1, "x")
	fits := large[:limit-1024]
	s.set(t, "a", fits)
	s.want(t, s.ctx, "a", 2, fits)
	s.journal(t, "a")
}

func (s *suite[S]) testJournal(t *testing.T) {
	s.create(t, "a", "x")
	_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		tx.Emit("something.happened")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, "a", "k")
	if err := Delete(s.ctx, s.kind, "a"); err != nil {
		t.Fatal(err)
	}
	if got, want := s.journal(t, "a"), []string{"created", "something.happened", "updated", "deleted"}; !slices.Equal(got, want) {
		t.Errorf("journal: %v, want %v", got, want)
	}
}
