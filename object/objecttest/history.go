package objecttest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"holdfast/identity"
	"holdfast/object"
)

func historyTests[S proto.Message]() tests[S] {
	return tests[S]{
		"EveryVersion": (*suite[S]).testEveryVersion,
		"Isolation":    (*suite[S]).testHistoryIsolation,
		"Trimmed":      (*suite[S]).testTrimmedHistory,
		"Journal":      (*suite[S]).testHistoryPages,
		"Stale":        (*suite[S]).testRestoreOfMovingObject,
	}
}

// RunHistory tries on a kind that every version of an object can be had again: what Run tries of it, for kinds that the rest
// of the contract does not fit. Of the case it needs Register, Set, and where there is a Collection, Entry.
func RunHistory[S proto.Message](t *testing.T, c Case[S]) {
	t.Helper()
	newSuite(t, c).testEveryVersion(t)
}

// version is what a test remembers of an object at one version.
type version[S proto.Message] struct {
	exists  bool
	state   S
	entries map[string]proto.Message
	time    time.Time
}

// story is the history of one object as a test remembers it. Versions before first belong to an earlier life.
type story[S proto.Message] struct {
	*suite[S]

	kind     *object.Kind[S]
	id       object.ID
	first    object.Version
	versions map[object.Version]version[S]
	last     object.Version
}

func (h *story[S]) now() version[S] { return h.versions[h.last] }

// made notes what a change came to.
func (h *story[S]) made(t rapid.TB, snap *object.Snapshot[S], err error, v version[S]) {
	t.Helper()
	if err != nil {
		t.Fatalf("change of version %d: %v", h.last, err)
	}
	if h.last++; snap.Version != h.last {
		t.Fatalf("version %d follows %d", snap.Version, h.last-1)
	}
	v.time = snap.UpdateTime
	if v.exists {
		v.state = snap.State
	}
	h.versions[h.last] = v
}

// change draws a change: of the whole state or a little of it, and of some entries.
func (h *story[S]) change(t *rapid.T) {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	was := h.now()
	v := version[S]{exists: true, entries: maps.Clone(was.entries)}
	opts := []object.UpdateOption{object.Upsert()}
	if !was.exists {
		v.entries, h.first = map[string]proto.Message{}, h.last+1
	}
	text, how := fmt.Sprint("text ", r.IntN(100)), r.IntN(4)
	staged := map[string]proto.Message{}
	var filled proto.Message
	changed := 0
	if h.Collection != "" {
		filled, changed = h.Entry("").ProtoReflect().New().Interface(), r.IntN(5)
		Fill(r, filled)
	}
	for range changed {
		k := fmt.Sprint("k", r.IntN(9))
		switch r.IntN(3) {
		case 0:
			staged[k] = nil
		case 1:
			staged[k] = h.Entry(fmt.Sprint("entry ", r.IntN(100)))
		default:
			staged[k] = filled
		}
	}
	seed := r.Uint64()
	snap, err := h.kind.Update(h.ctx, h.id, func(tx *object.Tx[S]) error {
		switch r := rand.New(rand.NewPCG(seed, 0)); how {
		case 0:
			proto.Reset(tx.State())
			Fill(r, tx.State())
		case 1:
			h.Set(tx.State(), text)
		default:
			// A kind may share what its own rules replace: it is not changed in place.
			other := proto.Clone(tx.State())
			Disturb(r, other)
			proto.Reset(tx.State())
			proto.Merge(tx.State(), other)
		}
		for k, e := range staged {
			if e == nil {
				tx.DeleteEntry(h.Collection, k)
			} else {
				tx.Put(h.Collection, k, e)
			}
		}
		return nil
	}, opts...)
	if _, large := errors.AsType[*object.TooLargeError](err); large {
		if !was.exists {
			h.first = 0
		}
		return
	}
	for k, e := range staged {
		if e == nil {
			delete(v.entries, k)
		} else {
			v.entries[k] = e
		}
	}
	h.made(t, &snap, err, v)
}

func (h *story[S]) drawMoment(t *rapid.T) object.Version {
	return object.Version(rapid.Int64Range(int64(h.first), int64(h.last)).Draw(t, "at"))
}

func (h *story[S]) restore(t *rapid.T) {
	at := h.drawMoment(t)
	then, was := h.versions[at], h.now()
	snap, err := Restore(h.ctx, h.kind, h.id, object.Moment{Version: at})
	if !then.exists {
		if !errors.Is(err, object.ErrNotFound) {
			t.Fatalf("version %d, which was deleted, was restored: %v", at, err)
		}
		return
	}
	h.made(t, &snap, err, version[S]{exists: true, entries: then.entries})
	want := h.broughtBack(then, was, snap.UpdateTime)
	if !was.exists {
		h.kind.NewLife(want, snap.Info)
	}
	if !proto.Equal(snap.State, want) {
		t.Fatalf("restored version %d as\n%v\nwant\n%v", at, snap.State, want)
	}
}

// broughtBack is what a restore or a fork makes of a version's state.
func (h *story[S]) broughtBack(then, was version[S], now time.Time) S {
	state := proto.CloneOf(then.state)
	h.kind.Restored(state, was.state, now)
	return state
}

func (h *story[S]) fork(t *rapid.T, as object.ID) {
	at := h.drawMoment(t)
	then := h.versions[at]
	snap, err := Fork(h.ctx, h.kind, h.id, object.Moment{Version: at}, as)
	if !then.exists {
		if !errors.Is(err, object.ErrNotFound) {
			t.Fatalf("version %d, which was deleted, was forked: %v", at, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("fork at %d: %v", at, err)
	}
	then.state = h.broughtBack(then, version[S]{}, snap.UpdateTime)
	fork := &story[S]{suite: h.suite, kind: h.kind, id: as, first: 1, last: 1, versions: map[object.Version]version[S]{1: then}}
	fork.check(t, 1)
	fork.change(t)
	fork.check(t, 1)
	fork.check(t, 2)
}

// hibernate puts to sleep what there is; nobody sees it.
func (h *story[S]) hibernate(t *rapid.T) {
	if _, err := h.rt.Hibernate(identity.With(h.ctx, identity.Identity{Tenant: h.Tenant, Service: true}), atOnce); err != nil {
		t.Fatal(err)
	}
}

// check compares one version with what the runtime says it was.
func (h *story[S]) check(t *rapid.T, at object.Version) {
	want, moment := h.versions[at], object.Moment{Version: at}
	snap, err := ViewAt(h.ctx, h.kind, h.id, moment)
	var entries []object.Entry
	for after, more := "", true; more && err == nil; {
		var page object.EntriesPage
		if h.Collection == "" {
			break
		}
		page, err = h.kind.EntriesAt(h.ctx, h.id, moment, h.Collection, object.EntriesOptions{After: after, PageSize: 3})
		entries = append(entries, page.Entries...)
		if more = page.More; more {
			after = page.Entries[len(page.Entries)-1].Key
		}
	}
	if !want.exists {
		if !errors.Is(err, object.ErrNotFound) {
			t.Fatalf("version %d was deleted, and is %v, %v", at, snap, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("version %d: %v", at, err)
	}
	if snap.Version != at || !proto.Equal(snap.State, want.state) || at > 1 && !snap.UpdateTime.Equal(want.time) {
		t.Fatalf("version %d is, of %v,\n%v\nwant, of %v,\n%v", at, snap.UpdateTime, snap.State, want.time, want.state)
	}
	if got, want := render(entries), renderMap(want.entries); !slices.Equal(got, want) {
		t.Fatalf("version %d has entries\n%v\nwant\n%v", at, got, want)
	}
}

// checkDiff compares the difference of two versions with what it was.
func (h *story[S]) checkDiff(t *rapid.T) {
	from, to := h.drawMoment(t), h.drawMoment(t)
	if from > to {
		from, to = to, from
	}
	d, err := h.kind.Diff(h.ctx, h.id, object.Moment{Version: from}, object.Moment{Version: to})
	if err != nil {
		t.Fatalf("diff %d to %d: %v", from, to, err)
	}
	a, b := h.versions[from], h.versions[to]
	for _, side := range []struct {
		got  proto.Message
		want version[S]
	}{{d.Before, a}, {d.After, b}} {
		if (side.got != nil) != side.want.exists || side.want.exists && !proto.Equal(side.got, side.want.state) {
			t.Fatalf("diff %d to %d has the state\n%v\nwant\n%v", from, to, side.got, side.want.state)
		}
	}
	if !a.exists || !b.exists {
		return // the entries of a deleted object are a matter of taste
	}
	var got, want []string
	for _, e := range d.Entries {
		got = append(got, fmt.Sprint(e.Key, describe(e.Before), describe(e.After)))
	}
	keys := maps.Clone(a.entries)
	maps.Copy(keys, b.entries)
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if x, y := describe(a.entries[k]), describe(b.entries[k]); x != y {
			want = append(want, fmt.Sprint(k, x, y))
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("diff %d to %d:\n%v\nwant\n%v", from, to, got, want)
	}
}

// describe is a text that is equal for equal messages.
func describe(m proto.Message) string {
	if m == nil {
		return "nothing"
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%x", b)
}

func render(entries []object.Entry) []string {
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Key + " " + describe(e.Value)
	}
	return out
}

func renderMap(entries map[string]proto.Message) []string {
	var list []object.Entry
	for k, v := range entries {
		list = append(list, object.Entry{Key: k, Value: v})
	}
	slices.SortFunc(list, func(a, b object.Entry) int { return cmp.Compare(a.Key, b.Key) })
	return render(list)
}

// Whatever was done to an object, every version of it can be had again as it was: state and entries, through deletions,
// restores, forks and sleep.
func (s *suite[S]) testEveryVersion(t *testing.T) {
	who := s.As(t, alice)
	if s.kind.ServicesOnly() {
		who = s.AsService(t)
	}
	ctx, cancel := context.WithTimeout(who, 10*patience) // a hundred histories
	defer cancel()
	s.ctx = ctx
	var objects atomic.Int64
	rapid.Check(t, func(t *rapid.T) {
		id := object.ID(fmt.Sprint("o", objects.Add(1)))
		h := &story[S]{suite: s, kind: s.kind, id: id, versions: map[object.Version]version[S]{}}
		h.change(t)
		forks := 0
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			if h.last == 0 {
				h.change(t)
				continue
			}
			switch step := rapid.IntRange(0, 9).Draw(t, "step"); {
			case step == 0 && h.now().exists:
				snap, err := h.kind.Update(h.ctx, h.id, func(tx *object.Tx[S]) error { tx.DeleteObject(); return nil })
				h.made(t, &snap, err, version[S]{})
			case step == 1 && !h.kind.NoRestore():
				h.restore(t)
			case step == 2 && !h.kind.NoRestore():
				forks++
				h.fork(t, object.ID(fmt.Sprint(id, "-fork-", forks)))
			case step == 3:
				h.checkDiff(t)
			case step == 4:
				h.hibernate(t)
			default:
				h.change(t)
			}
		}
		for v := h.first; v <= h.last && v > 0; v++ {
			h.check(t, v)
			if at := h.versions[v]; at.exists { // by time, it is the last version of that microsecond
				snap, err := ViewAt(h.ctx, h.kind, h.id, object.Moment{Time: at.time})
				if err == nil && (snap.Version < v || !snap.UpdateTime.Equal(at.time)) {
					t.Fatalf("at %v it was at version %d of %v, not %d", at.time, snap.Version, snap.UpdateTime, v)
				}
			}
		}
		if h.first > 1 {
			_, err := ViewAt(h.ctx, h.kind, h.id, object.Moment{Version: h.first - 1})
			if gone, ok := errors.AsType[*object.HistoryError](err); !ok || gone.Oldest != h.first || gone.Newest != h.last {
				t.Fatalf("version %d, of an earlier life: %v", h.first-1, err)
			}
		}
	})
}

func (s *suite[S]) testHistoryIsolation(t *testing.T) {
	s.create(t, "a", "one")
	s.set(t, "a", "two")
	first := object.Moment{Version: 1}
	for name, ctx := range map[string]func() error{
		"ViewAt": func() error { _, err := ViewAt(s.as(t, bob), s.kind, "a", first); return err },
		"EntriesAt": func() error {
			_, err := s.kind.EntriesAt(s.as(t, bob), "a", first, s.Collection, object.EntriesOptions{})
			return err
		},
		"History": func() error { _, err := s.kind.History(s.as(t, bob), "a", 0, 0); return err },
		"Diff":    func() error { _, err := s.kind.Diff(s.as(t, bob), "a", first, first); return err },
		"Restore": func() error { _, err := Restore(s.as(t, bob), s.kind, "a", first); return err },
		"Fork":    func() error { _, err := Fork(s.as(t, bob), s.kind, "a", first, "b"); return err },
		"nobody":  func() error { _, err := Fork(s.as(t, alice), s.kind, "none", first, "b"); return err },
	} {
		if err := ctx(); !errors.Is(err, object.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A service's fork stays its owner's, a user's own is the user's.
	for id, ctx := range map[object.ID]func() (object.Snapshot[S], error){
		"of-service": func() (object.Snapshot[S], error) { return Fork(s.asService(t), s.kind, "a", first, "of-service") },
		"of-alice":   func() (object.Snapshot[S], error) { return Fork(s.ctx, s.kind, "a", first, "of-alice") },
	} {
		if snap, err := ctx(); err != nil || snap.Owner != alice || s.Text(snap.State) != "one" {
			t.Errorf("%s: owner %q, text %q, %v", id, snap.Owner, s.Text(snap.State), err)
		}
	}
	_, err := Fork(s.ctx, s.kind, "a", first, "of-alice")
	wantError(t, err, object.ErrExists)
}

// What the journal does not have any more is said, and what it has is right.
func (s *suite[S]) testTrimmedHistory(t *testing.T) {
	s.create(t, "a", "1")
	for _, text := range []string{"2", "3", "4", "5"} {
		s.set(t, "a", text)
	}
	s.exec(t, "DELETE FROM holdfast.events WHERE tenant_id = $1 AND version <= 3", string(s.Tenant))
	for v := object.Version(-1); v <= 6; v++ {
		snap, err := ViewAt(s.ctx, s.kind, "a", object.Moment{Version: v})
		gone, isGone := errors.AsType[*object.HistoryError](err)
		switch {
		case v <= 0:
			wantError(t, err, object.ErrInvalid)
		case v < 3:
			if !isGone || gone.Oldest != 3 || gone.Newest != 5 {
				t.Errorf("version %d: %v", v, err)
			}
		case v == 6:
			if !isGone || gone.Newest != 5 {
				t.Errorf("version %d: %v", v, err)
			}
		case err != nil || s.Text(snap.State) != fmt.Sprint(v) || snap.UpdateTime.IsZero() != (v == 3):
			t.Errorf("version %d: %q of %v, %v", v, s.Text(snap.State), snap.UpdateTime, err)
		}
	}
	_, err := ViewAt(s.ctx, s.kind, "a", object.Moment{Time: time.Unix(0, 0)})
	if _, ok := errors.AsType[*object.HistoryError](err); !ok {
		t.Errorf("a time before the journal: %v", err)
	}
	s.create(t, "b", "1")
	_, err = ViewAt(s.ctx, s.kind, "b", object.Moment{Time: time.Unix(0, 0)})
	wantError(t, err, object.ErrNotFound)
	_, err = s.kind.EntriesAt(s.ctx, "b", object.Moment{Version: 1}, "no such collection", object.EntriesOptions{})
	wantError(t, err, object.ErrInvalid)
}

func (s *suite[S]) testHistoryPages(t *testing.T) {
	s.create(t, "a", "one")
	s.put(t, "a", "k1")
	_, err := s.kind.Update(s.as(t, alice), "a", s.setting("two"), object.Request("r1", s.Entry("body")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(s.asService(t), s.kind, "a", object.Moment{Version: 1}); err != nil {
		t.Fatal(err)
	}
	page, err := s.kind.History(s.ctx, "a", 0, 3)
	if err != nil || len(page.Events) != 3 || !page.More {
		t.Fatalf("%+v, %v", page, err)
	}
	restored, changed, put := page.Events[0], page.Events[1], page.Events[2]
	if restored.Version != 4 || restored.Type != "restored:1" || restored.Actor != "" || len(restored.Entries) != 1 || len(restored.Fields) != 1 {
		t.Errorf("%+v", restored)
	}
	if changed.Version != 3 || changed.Type != "updated" || changed.Actor != alice || changed.RequestID != "r1" || !slices.Equal(changed.Fields, restored.Fields) {
		t.Errorf("%+v", changed)
	}
	if put.Version != 2 || len(put.Entries) != 1 || put.Entries[0].Key != "k1" || put.Entries[0].Collection != s.Collection || len(put.Fields) != 0 {
		t.Errorf("%+v", put)
	}
	page, err = s.kind.History(s.ctx, "a", 1, 0)
	if err != nil || len(page.Events) != 1 || page.More || page.Events[0].Type != "created" {
		t.Errorf("%+v, %v", page, err)
	}
	s.want(t, s.ctx, "a", 4, "one")
	if got := s.texts(t, "a"); len(got) != 0 {
		t.Errorf("entries %v", got)
	}
}

// A restore that was computed from what the object is no longer is computed anew.
func (s *suite[S]) testRestoreOfMovingObject(t *testing.T) {
	s.create(t, "a", "0")
	const writers, each = 4, 10
	done := make(chan error)
	for w := range writers {
		go func() {
			for i := range each {
				_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
					s.Set(tx.State(), fmt.Sprint(w, " ", i))
					tx.Put(s.Collection, fmt.Sprint("w", w), s.Entry(fmt.Sprint(i)))
					return nil
				})
				if err != nil {
					done <- err
					return
				}
				_, err = Restore(s.ctx, s.kind, "a", object.Moment{Version: 1})
				if _, ok := errors.AsType[*object.OverloadedError](err); ok {
					continue // a user has one call of history at once
				}
				if mismatch, ok := errors.AsType[*object.VersionMismatchError](err); err != nil && (!ok || mismatch.Current == 0) {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Restore(s.ctx, s.kind, "a", object.Moment{Version: 1}); err != nil {
		t.Fatal(err)
	}
	if snap, err := s.kind.View(s.ctx, "a"); err != nil || s.Text(snap.State) != "0" {
		t.Errorf("%q, %v", s.Text(snap.State), err)
	}
	if got := s.texts(t, "a"); len(got) != 0 {
		t.Errorf("entries that were not there at version 1: %v", got)
	}
	_, err := Restore(s.ctx, s.kind, "a", object.Moment{Version: 1}, object.IfVersion(1))
	if mismatch, ok := errors.AsType[*object.VersionMismatchError](err); !ok || mismatch.Expected != 1 {
		t.Errorf("a restore on a condition that does not hold: %v", err)
	}
}
