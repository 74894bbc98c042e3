package objecttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"google.golang.org/protobuf/proto"

	"holdfast/object"
)

func loadTests[S proto.Message]() tests[S] {
	return tests[S]{
		"ConcurrentWriters":       (*suite[S]).testConcurrentWriters,
		"ConcurrentCreators":      (*suite[S]).testConcurrentCreators,
		"ManyObjects":             (*suite[S]).testManyObjects,
		"ProcessesTakeTurns":      (*suite[S]).testProcessesTakeTurns,
		"ProcessesAtOnce":         (*suite[S]).testProcessesAtOnce,
		"StaleMemoryIsRunAgain":   (*suite[S]).testStaleMemoryIsRunAgain,
		"OverloadedObject":        (*suite[S]).testOverloadedObject,
		"OverloadedTenant":        (*suite[S]).testOverloadedTenant,
		"OverloadedServer":        (*suite[S]).testOverloadedServer,
		"CancelledWhileItWaits":   (*suite[S]).testCancelledWhileItWaits,
		"SlowTenantHoldsNobodyUp": (*suite[S]).testSlowTenantHoldsNobodyUp,
	}
}

// increment adds one to the number that is the object's text.
func (s *suite[S]) increment(tx *object.Tx[S]) error {
	n, err := strconv.Atoi("0" + s.Text(tx.State()))
	if err != nil {
		return err
	}
	s.Set(tx.State(), strconv.Itoa(n+1))
	return nil
}

// incrementAll lets writers increment an object at once, each many times, and answers the versions that they were told.
func (s *suite[S]) incrementAll(t *testing.T, id object.ID, kinds []*object.Kind[S], writers, each int) []object.Version {
	t.Helper()
	type result struct {
		versions []object.Version
		err      error
	}
	results := make(chan result, writers)
	for i := range writers {
		k := kinds[i%len(kinds)]
		go func() {
			var r result
			for range each {
				snap, err := k.Update(s.ctx, id, s.increment, object.Upsert())
				if err != nil {
					r.err = err
					break
				}
				if got := s.Text(snap.State); got != fmt.Sprint(snap.Version) {
					r.err = fmt.Errorf("version %d has counted %s", snap.Version, got)
					break
				}
				r.versions = append(r.versions, snap.Version)
			}
			results <- r
		}()
	}
	var all []object.Version
	for range writers {
		r := receive(t, results, "a writer")
		if r.err != nil {
			t.Fatal(r.err)
		}
		if !slices.IsSorted(r.versions) {
			t.Errorf("one writer's versions: %v", r.versions)
		}
		all = append(all, r.versions...)
	}
	slices.Sort(all)
	for i, v := range all {
		if v != object.Version(i+1) {
			t.Fatalf("the versions are not 1, 2, 3, …: %v", all)
		}
	}
	return all
}

func (s *suite[S]) testConcurrentWriters(t *testing.T) {
	const writers, each = 32, 10
	s.incrementAll(t, "a", []*object.Kind[S]{s.kind}, writers, each)
	s.want(t, s.ctx, "a", writers*each, fmt.Sprint(writers*each))
	s.journal(t, "a")
}

func (s *suite[S]) testConcurrentCreators(t *testing.T) {
	_, other := s.another(t, object.Config{})
	const creators = 16
	errs := make(chan error, creators)
	for i := range creators {
		k := []*object.Kind[S]{s.kind, other}[i%2]
		go func() {
			_, err := k.Update(s.ctx, "a", s.setting("x"), object.Create())
			errs <- err
		}()
	}
	created := 0
	for range creators {
		err := receive(t, errs, "a creator")
		if err == nil {
			created++
			continue
		}
		wantError(t, err, object.ErrExists)
	}
	if created != 1 {
		t.Errorf("created %d times", created)
	}
	s.want(t, s.ctx, "a", 1, "x")
	s.journal(t, "a")
}

// More objects than a batch holds.
func (s *suite[S]) testManyObjects(t *testing.T) {
	const objects = 300
	release := s.stall(t)
	var done []<-chan outcome[S]
	id := func(i int) object.ID { return object.ID(fmt.Sprint("many-", i)) }
	for i := range objects {
		for range 2 {
			done = append(done, s.start(s.ctx, id(i), s.increment, object.Upsert()))
		}
	}
	release()
	for _, d := range done {
		if o := receive(t, d, "an update"); o.err != nil {
			t.Fatal(o.err)
		}
	}
	for i := range objects {
		s.want(t, s.ctx, id(i), 2, "2")
	}
}

func (s *suite[S]) testProcessesTakeTurns(t *testing.T) {
	_, other := s.another(t, object.Config{})
	const turns = 30
	for i := range turns {
		k := []*object.Kind[S]{s.kind, other}[i%2]
		snap, err := k.Update(s.ctx, "a", s.increment, object.Upsert())
		if err != nil || snap.Version != object.Version(i+1) || s.Text(snap.State) != fmt.Sprint(i+1) {
			t.Fatalf("turn %d: version %d, text %q, %v", i, snap.Version, s.Text(snap.State), err)
		}
	}
	s.journal(t, "a")
}

func (s *suite[S]) testProcessesAtOnce(t *testing.T) {
	_, other := s.another(t, object.Config{})
	_, third := s.another(t, object.Config{})
	const writers, each = 12, 10
	s.incrementAll(t, "a", []*object.Kind[S]{s.kind, other, third}, writers, each)
	s.journal(t, "a")
}

// What is in memory is stale: the closure runs on it, is fenced, and runs again.
func (s *suite[S]) testStaleMemoryIsRunAgain(t *testing.T) {
	_, other := s.another(t, object.Config{})
	s.create(t, "a", "1")
	for i := range 3 {
		if _, err := other.Update(s.ctx, "a", s.increment); err != nil {
			t.Fatal(err)
		}
		var bases []object.Version
		snap, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			bases = append(bases, tx.Version()) // against the rule, to see the runs
			tx.Put(s.Collection, object.SeqKey(int64(i)), s.Entry(fmt.Sprint(tx.Version())))
			return s.increment(tx)
		})
		if err != nil {
			t.Fatal(err)
		}
		base := object.Version(2*i + 2)
		if snap.Version != base+1 || s.Text(snap.State) != fmt.Sprint(base+1) || bases[len(bases)-1] != base {
			t.Fatalf("version %d, text %q, runs on %v", snap.Version, s.Text(snap.State), bases)
		}
		if i == 0 && len(bases) < 2 {
			t.Errorf("the closure ran on %v: its memory was not stale", bases)
		}
	}
	if got := s.texts(t, "a"); !slices.Equal(got, []string{object.SeqKey(0) + "=2", object.SeqKey(1) + "=4", object.SeqKey(2) + "=6"}) {
		t.Errorf("entries: %v", got)
	}
	s.journal(t, "a")
}

func wantOverloaded(t *testing.T, err error, what string) {
	t.Helper()
	var overloaded *object.OverloadedError
	if !errors.As(err, &overloaded) {
		t.Fatalf("got %v, want the %s to be overloaded", err, what)
	}
	if overloaded.What != what || overloaded.RetryAfter <= 0 {
		t.Fatalf("got %+v, want the %s to be overloaded", overloaded, what)
	}
}

// overload queues what fits behind a stalled batch, sees that one more is refused at once, and that what was accepted
// happens.
func (s *suite[S]) overload(t *testing.T, what string, fits int, ctx func(i int) context.Context, id func(i int) object.ID) {
	t.Helper()
	release := s.stall(t)
	var done []<-chan outcome[S]
	for i := range fits {
		done = append(done, s.start(ctx(i), id(i), s.increment, object.Upsert()))
	}
	_, err := s.kind.Update(ctx(fits), id(fits), s.increment, object.Upsert())
	wantOverloaded(t, err, what)
	release()
	for _, d := range done {
		if o := receive(t, d, "an accepted update"); o.err != nil {
			t.Error(o.err)
		}
	}
	if _, err := s.kind.Update(ctx(fits), id(fits), s.increment, object.Upsert()); err != nil {
		t.Errorf("once there was room again: %v", err)
	}
}

func (s *suite[S]) testOverloadedObject(t *testing.T) {
	s.restart(t, object.Config{Limits: object.Limits{PerObject: 3}})
	ours := func(int) context.Context { return s.ctx }
	s.overload(t, "object", 3, ours, func(int) object.ID { return "a" })
	s.want(t, s.ctx, "a", 4, "4")
}

func (s *suite[S]) testOverloadedTenant(t *testing.T) {
	s.restart(t, object.Config{Limits: object.Limits{PerTenant: 3}})
	ours := func(int) context.Context { return s.ctx }
	s.overload(t, "tenant", 3, ours, func(i int) object.ID { return object.ID(fmt.Sprint("o", i)) })
}

func (s *suite[S]) testOverloadedServer(t *testing.T) {
	s.restart(t, object.Config{Limits: object.Limits{PerServer: 3}})
	ours := func(int) context.Context { return s.ctx }
	s.overload(t, "server", 3, ours, func(i int) object.ID { return object.ID(fmt.Sprint("o", i)) })
}

func (s *suite[S]) testCancelledWhileItWaits(t *testing.T) {
	s.create(t, "a", "1")
	release := s.stall(t)
	ctx, cancel := context.WithCancel(s.ctx)
	cancelled := s.start(ctx, "a", s.setting("cancelled"))
	after := s.start(s.ctx, "a", s.increment)
	cancel()
	wantError(t, receive(t, cancelled, "the cancelled update").err, context.Canceled)
	release()
	if o := receive(t, after, "the update behind it"); o.err != nil || o.Version != 2 || s.Text(o.State) != "2" {
		t.Errorf("the update behind it: version %d, text %q, %v", o.Version, s.Text(o.State), o.err)
	}
	s.want(t, s.ctx, "a", 2, "2")

	ended, cancel := context.WithCancel(s.ctx)
	cancel()
	_, err := s.kind.Update(ended, "a", s.setting("cancelled"))
	wantError(t, err, context.Canceled)
	s.want(t, s.ctx, "a", 2, "2")
	s.journal(t, "a")
}

// A tenant whose batches take long holds no other tenant up.
func (s *suite[S]) testSlowTenantHoldsNobodyUp(t *testing.T) {
	release := s.stall(t)
	other := newSuite(t, s.Case)
	if _, err := s.kind.Update(other.ctx, "a", s.setting("x"), object.Create()); err != nil {
		t.Fatal(err)
	}
	s.want(t, other.ctx, "a", 1, "x")
	_, err := s.kind.View(s.ctx, "a") // and its own reads go on
	wantError(t, err, object.ErrNotFound)
	release()
}
