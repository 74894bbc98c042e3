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

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"holdfast/object"
)

func hibernateTests[S proto.Message]() tests[S] {
	return tests[S]{
		"SameAnswers":   (*suite[S]).testSleepersAnswer,
		"Changes":       (*suite[S]).testSleepersChange,
		"Requests":      (*suite[S]).testSleepersRemember,
		"Lives":         (*suite[S]).testSleepersLives,
		"WhileWriting":  (*suite[S]).testHibernateWhileWriting,
		"WhatSleeps":    (*suite[S]).testWhatSleeps,
		"WakesOnlyWhen": (*suite[S]).testWhatWakes,
		"Isolation":     (*suite[S]).testSleepersAreIsolated,
	}
}

// atOnce puts to sleep whatever can sleep.
var atOnce = object.HibernateConfig{Idle: time.Nanosecond, LeastRows: 1, PerSecond: 1 << 20}

func (s *suite[S]) hibernate(t *testing.T, c object.HibernateConfig) object.Hibernated {
	t.Helper()
	c.PerSecond = atOnce.PerSecond
	h, err := s.rt.Hibernate(s.asService(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// sleep returns once the objects sleep.
func (s *suite[S]) sleep(t *testing.T, ids ...object.ID) {
	t.Helper()
	for _, id := range ids {
		for !s.sleeps(t, id) { // the process's idea of the time may be a little behind the database's
			s.hibernate(t, atOnce)
			if s.ctx.Err() != nil {
				t.Fatalf("%s stays awake", id)
			}
		}
	}
}

func (s *suite[S]) sleeps(t *testing.T, id object.ID) (asleep bool) {
	t.Helper()
	conn, err := pgx.Connect(s.ctx, s.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(s.ctx))
	var rows, sleepers int64
	err = conn.QueryRow(s.ctx, `SELECT o.asleep, (SELECT count(*) FROM holdfast.sleepers s WHERE s.tenant_id = $1 AND s.object_id = $2),
		(SELECT count(*) FROM holdfast.entries e WHERE e.tenant_id = $1 AND e.object_id = $2)
			+ (SELECT count(*) FROM holdfast.events v WHERE v.tenant_id = $1 AND v.object_id = $2)
		FROM holdfast.objects o WHERE o.tenant_id = $1 AND o.object_id = $2`, string(s.Tenant), string(id)).Scan(&asleep, &sleepers, &rows)
	if err != nil {
		t.Fatal(err)
	}
	if asleep != (sleepers > 0) || asleep && rows != 0 {
		t.Fatalf("%s sleeps: %t; with %d sleepers and %d rows", id, asleep, sleepers, rows)
	}
	return asleep
}

// answers is what every way to read says of an object and its entries. before runs before each question.
func (s *suite[S]) answers(t *testing.T, id object.ID, keys []string, before func()) (out []string) {
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
		for _, n := range []int{0, 1, 5, 200} {
			before()
			snap, err := kind.View(s.ctx, id, object.WithRecent(n))
			note(fmt.Sprint("recent ", n), err, append(s.render(snap.Recent), fmt.Sprint(snap.Info), s.Text(snap.State))...)
		}
		for _, size := range []int{15, 50} {
			var forward, backward []string
			for o, more := (object.EntriesOptions{PageSize: size}), true; more; {
				before()
				page, err := kind.Entries(s.ctx, id, s.Collection, o)
				note("page", err, s.render(page.Entries)...)
				if more = page.More; more {
					o.After = page.Entries[len(page.Entries)-1].Key
				}
				forward = append(forward, s.render(page.Entries)...)
			}
			for o, more := (object.EntriesOptions{PageSize: size, Before: "~"}), true; more; {
				before()
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
		before()
		page, err := kind.Lookup(s.ctx, id, s.Collection, append([]string{"none"}, keys...)...)
		note("look up", err, s.render(page.Entries)...)
		before()
		size, err := kind.Measure(s.ctx, id)
		note("count", err, fmt.Sprint(size.Entries))
		before()
		history, err := kind.History(s.ctx, id, 0, 0)
		for _, e := range history.Events {
			note("history", err, fmt.Sprint(e.Version, e.Type, e.Time, e.Actor, e.RequestID, e.Fields, s.renderChanges(e.Entries)))
		}
		for v := object.Version(1); v <= page.Version; v += 3 {
			for after, more := "", true; more; {
				before()
				page, err := kind.EntriesAt(s.ctx, id, object.Moment{Version: v}, s.Collection, object.EntriesOptions{After: after, PageSize: 17})
				note(fmt.Sprint("at ", v), err, s.render(page.Entries)...)
				if more = page.More; more {
					after = page.Entries[len(page.Entries)-1].Key
				}
			}
			before()
			d, err := kind.Diff(s.ctx, id, object.Moment{Version: v}, object.Latest())
			note(fmt.Sprint("since ", v), err, fmt.Sprint(len(d.Entries)))
			for _, e := range d.Entries {
				note(e.Key, nil, describe(e.Before), describe(e.After))
			}
			for _, recent := range []int{0, 5, 50} {
				if v > 1 && recent > 0 {
					continue
				}
				before()
				c := s.watch(t, kind, id, v-1, recent).change(t)
				changes := s.renderChanges(c.Entries)
				slices.Sort(changes)
				note(fmt.Sprintf("missed since %d, reset %t", v-1, c.Reset), nil, changes...)
			}
		}
		before()
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
	before()
	var dump bytes.Buffer
	_, err := s.DB.Export(s.ctx, s.Tenant, "", &dump)
	note("export", err, dump.String())
	return out
}

// Whoever reads cannot tell whether an object sleeps, whatever they ask for first.
func (s *suite[S]) testSleepersAnswer(t *testing.T) {
	ctx, cancel := context.WithTimeout(s.As(t, alice), 10*patience) // some hundred questions
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
	}, object.Request("r", s.Entry("r")))
	if err != nil {
		t.Fatal(err)
	}
	want := s.answers(t, "a", keys, func() {})
	got := s.answers(t, "a", keys, func() { s.sleep(t, "a") })
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("asleep:\n%s\nawake:\n%s", got[i], want[i])
		}
	}
}

// An object that falls asleep between changes of all sorts is what it would be if it never slept.
func (s *suite[S]) testSleepersChange(t *testing.T) {
	s.create(t, "a", "x")
	s.create(t, "b", "next to it, always awake")
	r := rand.New(rand.NewPCG(4711, 0))
	model := map[string]string{}
	versions := map[object.Version]map[string]string{1: {}}
	last := object.Version(1)
	slept := int64(0)
	for round := range 60 {
		if r.IntN(2) == 0 {
			slept += s.hibernate(t, object.HibernateConfig{Idle: time.Nanosecond, LeastRows: 3}).Objects
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
	if slept < 10 {
		t.Errorf("it slept only %d times", slept)
	}
	s.sleep(t, "a")
	for v, want := range versions {
		page, err := s.kind.EntriesAt(s.ctx, "a", object.Moment{Version: v}, s.Collection, object.EntriesOptions{PageSize: object.MaxPageSize})
		if err != nil || !slices.Equal(s.render(page.Entries), lines(want)) {
			t.Fatalf("version %d: %v, %v\nwant\n%v", v, s.render(page.Entries), err, lines(want))
		}
	}
	s.sleep(t, "a")
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

// A request that was answered before the object fell asleep is answered with its first reply.
func (s *suite[S]) testSleepersRemember(t *testing.T) {
	s.create(t, "a", "x")
	first := s.set(t, "a", "y", object.Request("r", s.Entry("body")))
	s.set(t, "a", "z")
	for _, forget := range []bool{false, true} {
		s.sleep(t, "a")
		if forget {
			s.restart(t, object.Config{})
		}
		again := s.set(t, "a", "y", object.Request("r", s.Entry("body")))
		if again.Version != first.Version+1 || s.Text(again.State) != "z" {
			t.Errorf("a retry made version %d, %q", again.Version, s.Text(again.State))
		}
		s.sleep(t, "a")
		if _, err := s.kind.Update(s.ctx, "a", s.setting("other"), object.Request("r", s.Entry("another body"))); !errors.Is(err, object.ErrRequestReused) {
			t.Errorf("the id of another request: %v", err)
		}
	}
	s.journal(t, "a")
}

// A sleeper is deleted, restored, forked and made anew like another object.
func (s *suite[S]) testSleepersLives(t *testing.T) {
	keys := []string{"k1", "k2", "k3", "k4", "k5"}
	for _, id := range []object.ID{"restored", "anew", "expired", "forked"} {
		s.create(t, id, "x")
		s.put(t, id, keys...)
	}
	want := s.texts(t, "restored")
	s.sleep(t, "restored", "anew", "expired", "forked")
	if _, err := Fork(s.ctx, s.kind, "forked", object.Latest(), "fork"); err != nil {
		t.Fatal(err)
	}
	if got := s.texts(t, "fork"); !slices.Equal(got, want) {
		t.Errorf("the fork has %v, want %v", got, want)
	}
	for _, id := range []object.ID{"restored", "anew"} {
		s.sleep(t, id)
		if err := Delete(s.ctx, s.kind, id); err != nil {
			t.Fatal(err)
		}
		s.hibernate(t, atOnce)
		if s.sleeps(t, id) {
			t.Errorf("%s is deleted and was put to sleep", id)
		}
	}
	s.sleep(t, "expired")
	s.exec(t, "UPDATE holdfast.objects SET expire_time = now() - interval '1 s' WHERE tenant_id = $1 AND object_id = 'expired'", string(s.Tenant))
	s.restart(t, object.Config{})
	if _, err := Restore(s.ctx, s.kind, "restored", object.Moment{Version: 2}); err != nil {
		t.Fatal(err)
	}
	if got := s.texts(t, "restored"); !slices.Equal(got, want) {
		t.Errorf("restored it has %v, want %v", got, want)
	}
	for _, id := range []object.ID{"anew", "expired"} {
		s.create(t, id, "y")
		if got := s.texts(t, id); len(got) != 0 {
			t.Errorf("%s has %v", id, got)
		}
		s.put(t, id, "k2")
		s.sleep(t, id)
		if got := s.texts(t, id); !slices.Equal(got, []string{"k2=text of k2"}) {
			t.Errorf("%s has %v", id, got)
		}
	}
}

// An object that is put to sleep all the time, while several processes append, change old entries and read, loses and doubles nothing.
func (s *suite[S]) testHibernateWhileWriting(t *testing.T) {
	const writers, each = 4, 30
	s.create(t, "a", "x")
	_, other := s.another(t, object.Config{})
	done := make(chan struct{})
	slept := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			select {
			case <-done:
				slept <- nil
				return
			default:
				_, err = s.rt.Hibernate(s.AsService(t), atOnce)
			}
		}
		slept <- err
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
	if err := receive(t, slept, "the hibernation"); err != nil {
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

// What sleeps is what the configuration says, and nothing that will soon be gone, that was read lately, that is too small or too long, or that
// has rows of another owner.
func (s *suite[S]) testWhatSleeps(t *testing.T) {
	for _, id := range []object.ID{"cold", "expiring", "small", "long", "woken", "inherited"} {
		s.create(t, id, "x")
		s.put(t, id, "k1")
		if id != "small" {
			s.put(t, id, "k2", "k3", "k4")
		}
	}
	s.exec(t, `INSERT INTO holdfast.entries SELECT tenant_id, kind, object_id, collection, key || i, owner_id, version, body
		FROM holdfast.entries, generate_series(1, 10000) i WHERE tenant_id = $1 AND object_id = 'long' AND key = 'k1'`, string(s.Tenant))
	s.exec(t, `UPDATE holdfast.objects SET expire_time = clock_timestamp() + interval '1 hour' WHERE tenant_id = $1 AND object_id = 'expiring'`, string(s.Tenant))
	s.exec(t, `UPDATE holdfast.events SET owner_id = 'bob' WHERE tenant_id = $1 AND object_id = 'inherited' AND version = 1`, string(s.Tenant)) // of an earlier life
	s.sleep(t, "woken")
	s.texts(t, "woken")
	s.texts(t, "cold")
	s.restart(t, object.Config{})
	config := object.HibernateConfig{Idle: 2 * time.Hour, LeastRows: 5}
	if h := s.hibernate(t, config); h != (object.Hibernated{}) {
		t.Errorf("slept at once: %+v", h)
	}
	s.exec(t, `UPDATE holdfast.objects SET update_time = update_time - interval '3 hours', activity_time = activity_time - interval '3 hours'
		WHERE tenant_id = $1`, string(s.Tenant))
	s.exec(t, `UPDATE holdfast.objects SET wake_time = wake_time - interval '3 hours' WHERE tenant_id = $1 AND object_id <> 'woken'`, string(s.Tenant))
	if h := s.hibernate(t, config); h.Objects != 1 || h.BytesBefore == 0 || h.BytesAfter == 0 || !s.sleeps(t, "cold") {
		t.Errorf("slept: %+v", h)
	}
	if got := s.texts(t, "cold"); len(got) != 4 {
		t.Errorf("entries: %v", got)
	}
}

// Lists, reads of state, measures and exports leave an object asleep, and so does a watcher who missed nothing; what needs its
// entries or its history wakes it.
func (s *suite[S]) testWhatWakes(t *testing.T) {
	s.create(t, "a", "x")
	s.put(t, "a", "k1", "k2")
	s.restart(t, object.Config{})
	s.sleep(t, "a")
	size, err := s.kind.Measure(s.ctx, "a")
	if err != nil || !size.Asleep || size.Entries != 2 {
		t.Errorf("asleep it measures %+v, %v", size, err)
	}
	s.want(t, s.ctx, "a", 2, "x")
	if page, err := s.kind.List(s.ctx, object.ListOptions{}); err != nil || len(page.Items) != 1 {
		t.Errorf("listed: %d, %v", len(page.Items), err)
	}
	if _, err := s.DB.Export(s.ctx, s.Tenant, "", &bytes.Buffer{}); err != nil {
		t.Error(err)
	}
	w := s.watch(t, s.kind, "a", 2, 5)
	if !s.sleeps(t, "a") {
		t.Error("it woke")
	}
	s.put(t, "a", "k3")
	if c := w.change(t); c.Version != 3 || len(c.Entries) != 1 {
		t.Errorf("the watcher was told of version %d, %d entries", c.Version, len(c.Entries))
	}
	s.sleep(t, "a")
	if snap, err := s.kind.View(s.ctx, "a", object.WithRecent(2)); err != nil || len(snap.Recent) != 2 || !s.sleeps(t, "a") {
		t.Errorf("entries that are in memory: %v, %v", snap.Recent, err) // its version says that they are right
	}
	s.restart(t, object.Config{})
	if snap, err := s.kind.View(s.ctx, "a", object.WithRecent(2)); err != nil || len(snap.Recent) != 2 || s.sleeps(t, "a") {
		t.Errorf("entries that are not: %v, %v", snap.Recent, err)
	}
	if size, err := s.kind.Measure(s.ctx, "a"); err != nil || size.Asleep || size.Entries != 3 {
		t.Errorf("awake it measures %+v, %v", size, err)
	}
}

// A sleeper wakes for nobody who may not see it.
func (s *suite[S]) testSleepersAreIsolated(t *testing.T) {
	s.create(t, "a", "x")
	s.put(t, "a", "k1", "k2", "k3", "k4")
	if _, err := s.rt.Hibernate(s.ctx, atOnce); !errors.Is(err, object.ErrInvalid) {
		t.Errorf("a user puts objects to sleep: %v", err)
	}
	s.restart(t, object.Config{})
	s.sleep(t, "a")
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
	if !s.sleeps(t, "a") {
		t.Error("it woke")
	}
}
