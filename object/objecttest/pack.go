package objecttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/object"
)

func packTests[S proto.Message]() tests[S] {
	return tests[S]{
		"SameAnswers":  (*suite[S]).testPackedAnswers,
		"Changes":      (*suite[S]).testPackedChanges,
		"Lives":        (*suite[S]).testPackedLives,
		"WhileWriting": (*suite[S]).testPackWhileWriting,
		"WhatIsPacked": (*suite[S]).testWhatIsPacked,
		"Isolation":    (*suite[S]).testPackIsolation,
	}
}

// tight packs whatever can be packed, in small packs.
func tight() object.PackConfig {
	return object.PackConfig{Idle: time.Nanosecond, Keep: 1, Size: 3, PerSecond: 1 << 20, AllCollections: true}
}

// pack packs what the tenant has.
func (s *suite[S]) pack(t *testing.T, c object.PackConfig) (packed object.Packed) {
	t.Helper()
	packed, err := s.rt.Pack(s.asService(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

func (s *suite[S]) unpack(t *testing.T) int64 {
	t.Helper()
	n, err := s.rt.Unpack(s.asService(t))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// answers is what every way to read says of an object and its entries.
func (s *suite[S]) answers(t *testing.T, id object.ID, keys []string) (out []string) {
	t.Helper()
	note := func(what string, err error, entries ...string) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		out = append(out, fmt.Sprintf("%s: %v", what, entries))
	}
	_, k := s.another(t, object.Config{}) // with nothing in memory
	for _, kind := range []*object.Kind[S]{k, s.kind} {
		for _, n := range []int{0, 1, 5, 30, 200} {
			snap, err := kind.View(s.ctx, id, object.WithRecent(n))
			note(fmt.Sprint("recent ", n), err, append(s.render(snap.Recent), fmt.Sprint(snap.Info), s.Text(snap.State))...)
		}
		for _, size := range []int{1, 4, 50} {
			var forward, backward []string
			for o, more := (object.EntriesOptions{PageSize: size}), true; more; {
				page, err := kind.Entries(s.ctx, id, s.Collection, o)
				note("page", err, s.render(page.Entries)...)
				if more = page.More; more {
					o.After = page.Entries[len(page.Entries)-1].Key
				}
				forward = append(forward, s.render(page.Entries)...)
			}
			for o, more := (object.EntriesOptions{PageSize: size, Before: "~"}), true; more; {
				page, err := kind.Entries(s.ctx, id, s.Collection, o)
				note("page back", err, s.render(page.Entries)...)
				if more = page.More; more {
					o.Before = page.Entries[0].Key
				}
				backward = append(s.render(page.Entries), backward...)
			}
			if !slices.Equal(forward, backward) {
				t.Errorf("in pages of %d:\n%v\nand from behind\n%v", size, forward, backward)
			}
		}
		for i, key := range append([]string{"0", "~"}, keys...) {
			if i%4 == 3 {
				continue
			}
			for _, o := range []object.EntriesOptions{{After: key, PageSize: 3}, {Before: key, PageSize: 3}} {
				page, err := kind.Entries(s.ctx, id, s.Collection, o)
				note(fmt.Sprintf("around %+v", o), err, append(s.render(page.Entries), fmt.Sprint(page.More))...)
			}
		}
		page, err := kind.Lookup(s.ctx, id, s.Collection, append([]string{"none"}, keys...)...)
		note("look up", err, s.render(page.Entries)...)
		size, err := kind.Measure(s.ctx, id)
		note("count", err, fmt.Sprint(size.Entries))
		for v := object.Version(1); v <= page.Version; v++ {
			for after, more := "", true; more; {
				page, err := kind.EntriesAt(s.ctx, id, object.Moment{Version: v}, s.Collection, object.EntriesOptions{After: after, PageSize: 17})
				note(fmt.Sprint("at ", v), err, s.render(page.Entries)...)
				if more = page.More; more {
					after = page.Entries[len(page.Entries)-1].Key
				}
			}
			d, err := kind.Diff(s.ctx, id, object.Moment{Version: v}, object.Latest())
			note(fmt.Sprint("since ", v), err, fmt.Sprint(len(d.Entries)))
			for _, e := range d.Entries {
				note(e.Key, nil, describe(e.Before), describe(e.After))
			}
			for _, recent := range []int{0, 5, 50} {
				if v > 1 && recent > 0 {
					continue
				}
				c := s.watch(t, kind, id, v-1, recent).change(t)
				changes := s.renderChanges(c.Entries)
				slices.Sort(changes)
				note(fmt.Sprintf("missed since %d, reset %t", v-1, c.Reset), nil, changes...)
			}
		}
		got := map[string]string{}
		_, err = kind.Update(s.ctx, id, func(tx *object.Tx[S]) error {
			for _, key := range append(keys, "none") {
				got[key] = "nothing"
				if e := tx.Entry(s.Collection, key); e != nil {
					got[key] = s.EntryText(e)
				}
			}
			tx.Unchanged()
			return nil
		}, object.Prefetch(s.Collection, keys[:len(keys)/2]...))
		for _, key := range slices.Sorted(maps.Keys(got)) {
			note("in a change "+key, err, got[key])
		}
	}
	var dump bytes.Buffer
	_, err := s.DB.Export(s.ctx, s.Tenant, "", &dump)
	note("export", err, dump.String())
	return out
}

// Whoever reads cannot tell whether entries are packed.
func (s *suite[S]) testPackedAnswers(t *testing.T) {
	ctx, cancel := context.WithTimeout(s.As(t, alice), 10*patience) // a thousand questions
	defer cancel()
	s.ctx = ctx
	var keys []string
	s.create(t, "a", "x")
	for i := range 8 {
		var some []string
		for j := range 5 {
			some = append(some, object.SeqKey(int64(1+i*5+j)))
		}
		s.put(t, "a", some...)
		keys = append(keys, some...)
	}
	s.put(t, "a", keys[3], keys[17], keys[38])
	_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		tx.DeleteEntry(s.Collection, keys[20])
		tx.Put(s.Collection, keys[21], s.Entry("changed"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := s.answers(t, "a", keys)
	check := func(when string) {
		t.Helper()
		got := s.answers(t, "a", keys)
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("%s:\n%s\nwas\n%s", when, got[i], want[i])
			}
		}
	}
	if p := s.pack(t, tight()); p.Objects != 1 || p.Packs != 12 || p.Entries != 36 || p.BytesBefore == 0 || p.BytesAfter == 0 {
		t.Errorf("packed %+v", p)
	}
	check("packed")
	if p := s.pack(t, tight()); p != (object.Packed{}) {
		t.Errorf("packed again: %+v", p)
	}
	if n := s.unpack(t); n != 12 {
		t.Errorf("%d packs were unpacked", n)
	}
	loose := tight()
	loose.Size, loose.Keep = 7, 20
	if p := s.pack(t, loose); p.Packs != 2 || p.Entries != 14 {
		t.Errorf("packed %+v", p)
	}
	check("half packed")
	if p := s.pack(t, tight()); p.Packs != 8 || p.Entries != 24 {
		t.Errorf("packed %+v", p)
	}
	check("all packed, in two sizes")
}

// Changes of all sorts find what is packed, change it, and leave the rest as it was.
func (s *suite[S]) testPackedChanges(t *testing.T) {
	s.create(t, "a", "x")
	s.create(t, "b", "beside it, without packs")
	r := rand.New(rand.NewPCG(4711, 0))
	model := map[string]string{}
	versions := map[object.Version]map[string]string{1: {}}
	last := object.Version(1)
	packs := int64(0)
	for round := range 60 {
		if r.IntN(3) == 0 {
			packs += s.pack(t, tight()).Packs
		}
		if r.IntN(4) == 0 {
			s.restart(t, object.Config{})
		}
		staged := map[string]string{}
		for range 1 + r.IntN(6) {
			key := object.SeqKey(int64(r.IntN(40)))
			if staged[key] = fmt.Sprint("of round ", round); r.IntN(5) == 0 {
				staged[key] = ""
			}
		}
		var opts []object.UpdateOption
		for key := range staged {
			if _, there := model[key]; !there && r.IntN(2) == 0 {
				opts = append(opts, object.ExpectAbsent(s.Collection, key))
			}
		}
		look := object.SeqKey(int64(r.IntN(40)))
		var seen proto.Message
		update := func(tx *object.Tx[S]) error {
			seen = tx.Entry(s.Collection, look)
			for key, text := range staged {
				if text == "" {
					tx.DeleteEntry(s.Collection, key)
				} else {
					tx.Put(s.Collection, key, s.Entry(text))
				}
			}
			return nil
		}
		done := make(chan error)
		go func() { // they share a commit, or not
			_, err := s.kind.Update(s.ctx, "b", s.setting(fmt.Sprint(round)))
			done <- err
		}()
		snap, err := s.kind.Update(s.ctx, "a", update, opts...)
		if err := errors.Join(err, <-done); err != nil {
			t.Fatal(err)
		}
		if text := model[look]; (seen != nil) != (text != "") || seen != nil && s.EntryText(seen) != text {
			t.Fatalf("round %d: a change saw %v under %s, which is %q", round, seen, look, text)
		}
		for key, text := range staged {
			if text == "" {
				delete(model, key)
			} else {
				model[key] = text
			}
		}
		last++
		versions[last] = maps.Clone(model)
		if snap.Version != last {
			t.Fatalf("round %d: version %d, want %d", round, snap.Version, last)
		}
		if got, want := s.texts(t, "a"), lines(model); !slices.Equal(got, want) {
			t.Fatalf("round %d:\n%v\nwant\n%v", round, got, want)
		}
		view, err := s.kind.View(s.ctx, "a", object.WithRecent(9))
		if all := lines(model); err != nil || !slices.Equal(s.render(view.Recent), all[max(0, len(all)-9):]) {
			t.Fatalf("round %d: the newest are %v, %v", round, s.render(view.Recent), err)
		}
	}
	if packs < 20 {
		t.Errorf("only %d packs were made", packs)
	}
	s.pack(t, tight())
	for v, want := range versions {
		page, err := s.kind.EntriesAt(s.ctx, "a", object.Moment{Version: v}, s.Collection, object.EntriesOptions{PageSize: object.MaxPageSize})
		if err != nil || !slices.Equal(s.render(page.Entries), lines(want)) {
			t.Fatalf("version %d: %v, %v\nwant\n%v", v, s.render(page.Entries), err, lines(want))
		}
	}
	if _, err := Restore(s.ctx, s.kind, "a", object.Moment{Version: 7}); err != nil {
		t.Fatal(err)
	}
	if got, want := s.texts(t, "a"), lines(versions[7]); !slices.Equal(got, want) {
		t.Fatalf("restored:\n%v\nwant\n%v", got, want)
	}
	s.journal(t, "a")
}

func lines(model map[string]string) []string {
	out := make([]string, 0, len(model))
	for _, key := range slices.Sorted(maps.Keys(model)) {
		out = append(out, key+"="+model[key])
	}
	return out
}

// A deleted object comes back with what was packed of it; one that is made anew has nothing of it.
func (s *suite[S]) testPackedLives(t *testing.T) {
	keys := []string{"k1", "k2", "k3", "k4", "k5"}
	for _, id := range []object.ID{"restored", "anew", "forked"} {
		s.create(t, id, "x")
		s.put(t, id, keys...)
	}
	want := s.texts(t, "restored")
	if p := s.pack(t, tight()); p.Objects != 3 {
		t.Fatalf("packed %+v", p)
	}
	if _, err := Fork(s.ctx, s.kind, "forked", object.Latest(), "fork"); err != nil {
		t.Fatal(err)
	}
	if got := s.texts(t, "fork"); !slices.Equal(got, want) {
		t.Errorf("the fork has %v, want %v", got, want)
	}
	for _, id := range []object.ID{"restored", "anew"} {
		if err := Delete(s.ctx, s.kind, id); err != nil {
			t.Fatal(err)
		}
	}
	if p := s.pack(t, tight()); p.Objects != 1 {
		t.Errorf("of what is deleted and the fork was packed: %+v", p)
	}
	s.restart(t, object.Config{})
	if _, err := Restore(s.ctx, s.kind, "restored", object.Moment{Version: 2}); err != nil {
		t.Fatal(err)
	}
	if got := s.texts(t, "restored"); !slices.Equal(got, want) {
		t.Errorf("restored it has %v, want %v", got, want)
	}
	s.create(t, "anew", "y")
	if got := s.texts(t, "anew"); len(got) != 0 {
		t.Errorf("made anew it has %v", got)
	}
	s.put(t, "anew", "k2")
	if got := s.texts(t, "anew"); !slices.Equal(got, []string{"k2=text of k2"}) {
		t.Errorf("made anew it has %v", got)
	}
	if p := s.pack(t, object.PackConfig{Keep: 1, Size: 1, AllCollections: true}); p != (object.Packed{}) {
		t.Errorf("what has just changed was packed: %+v", p)
	}
}

// Packing while several processes append, change old entries and read loses and doubles nothing.
func (s *suite[S]) testPackWhileWriting(t *testing.T) {
	const writers, each = 4, 40
	s.create(t, "a", "x")
	_, other := s.another(t, object.Config{})
	done := make(chan struct{})
	packed := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			select {
			case <-done:
				packed <- nil
				return
			default:
				_, err = s.rt.Pack(s.AsService(t), tight())
			}
		}
		packed <- err
	}()
	var wg sync.WaitGroup
	for w := range writers {
		k := []*object.Kind[S]{s.kind, other}[w%2]
		wg.Go(func() {
			for i := range each {
				key, old := fmt.Sprintf("%06d-%d", i, w), fmt.Sprintf("%06d-%d", i/2, w)
				_, err := k.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
					tx.Put(s.Collection, key, s.Entry("new"))
					if i%4 == 3 {
						if tx.Entry(s.Collection, old) == nil {
							return errors.New("an entry is lost")
						}
						tx.Put(s.Collection, old, s.Entry("old"))
					}
					return nil
				}, object.ExpectAbsent(s.Collection, key))
				if err != nil {
					t.Errorf("writer %d, change %d: %v", w, i, err)
					return
				}
				page, err := k.Lookup(s.ctx, "a", s.Collection, key, old)
				if err != nil || len(page.Entries) != 2 && key != old {
					t.Errorf("writer %d, change %d: %d entries of two, %v", w, i, len(page.Entries), err)
				}
			}
		})
	}
	wg.Wait()
	close(done)
	if err := receive(t, packed, "the packer"); err != nil {
		t.Error(err)
	}
	var all []object.Entry
	for o, more := (object.EntriesOptions{}), true; more; {
		page, err := other.Entries(s.ctx, "a", s.Collection, o)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page.Entries...)
		if more = page.More; more {
			o.After = all[len(all)-1].Key
		}
	}
	if len(all) != writers*each {
		t.Errorf("%d entries, want %d", len(all), writers*each)
	}
	if got := len(s.journal(t, "a")); got != 1+writers*each {
		t.Errorf("%d events", got)
	}
}

// Packed is what the configuration says, and nothing that will soon be gone.
func (s *suite[S]) testWhatIsPacked(t *testing.T) {
	for _, id := range []object.ID{"cold", "expiring", "small"} {
		s.create(t, id, "x")
		s.put(t, id, "k1")
		if id != "small" {
			s.put(t, id, "k2", "k3", "k4")
		}
	}
	s.exec(t, `UPDATE holdfast.objects SET expire_time = clock_timestamp() + interval '1 hour' WHERE tenant_id = $1 AND object_id = 'expiring'`, string(s.Tenant))
	days := tight()
	days.Idle = 2 * time.Hour
	if p := s.pack(t, days); p != (object.Packed{}) {
		t.Errorf("packed at once: %+v", p)
	}
	s.exec(t, `UPDATE holdfast.objects SET update_time = update_time - interval '3 hours', activity_time = activity_time - interval '3 hours'
		WHERE tenant_id = $1`, string(s.Tenant))
	if p := s.pack(t, days); p.Objects != 1 || p.Packs != 1 || p.Entries != 3 {
		t.Errorf("packed %+v", p)
	}
	if got := s.texts(t, "cold"); len(got) != 4 {
		t.Errorf("entries: %v", got)
	}
}

func (s *suite[S]) testPackIsolation(t *testing.T) {
	s.create(t, "a", "x")
	s.put(t, "a", "k1", "k2", "k3", "k4")
	if _, err := s.rt.Pack(s.ctx, tight()); !errors.Is(err, object.ErrInvalid) {
		t.Errorf("a user packs: %v", err)
	}
	if _, err := s.rt.Unpack(s.ctx); !errors.Is(err, object.ErrInvalid) {
		t.Errorf("a user unpacks: %v", err)
	}
	if p := s.pack(t, tight()); p.Packs != 1 {
		t.Fatalf("packed %+v", p)
	}
	for name, call := range s.calls(s.kind, "a") {
		if name == "Create" || name == "Upsert" {
			continue
		}
		if err := call(s.as(t, bob)); !errors.Is(err, object.ErrNotFound) {
			t.Errorf("%s of another user's: %v", name, err)
		}
	}
	if page, err := s.kind.Lookup(s.as(t, bob), "a", s.Collection, "k1"); !errors.Is(err, object.ErrNotFound) {
		t.Errorf("%v, %v", page.Entries, err)
	}
}
