package objecttest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/object"
)

func lifecycleTests[S proto.Message]() tests[S] {
	return tests[S]{
		"Expiry":       (*suite[S]).testExpiry,
		"ExpirySlides": (*suite[S]).testExpirySlides,
		"Restart":      (*suite[S]).testRestart,
		"Fidelity":     (*suite[S]).testFidelity,
		"CloseDrains":  (*suite[S]).testCloseDrains,
		"CloseGivesUp": (*suite[S]).testCloseGivesUp,
		"Closed":       (*suite[S]).testClosed,
	}
}

// expire makes an object's time come, as if days had passed. Only a process with nothing of it in memory sees that.
func (s *suite[S]) expire(t *testing.T, id object.ID) {
	t.Helper()
	s.exec(t, `UPDATE holdfast.objects SET expire_time = clock_timestamp() - interval '1 second'
		WHERE tenant_id = $1 AND kind = $2 AND object_id = $3`, string(s.Tenant), s.kind.Name(), string(id))
}

func (s *suite[S]) testExpiry(t *testing.T) {
	var old string
	_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		s.Set(tx.State(), "first life")
		old = s.Tag(tx.State(), "old")
		tx.Put(s.Collection, "k1", s.Entry("x"))
		tx.Put(s.Collection, "k2", s.Entry("x"))
		return nil
	}, object.Create())
	if err != nil {
		t.Fatal(err)
	}
	s.expire(t, "a")
	s.restart(t, object.Config{})
	for range 2 { // with nothing in memory, and with it
		for name, call := range s.calls(s.kind, "a") {
			if name == "Create" || name == "Upsert" {
				continue
			}
			if err := call(s.ctx); err == nil {
				t.Errorf("%s of an expired object succeeded", name)
			} else {
				wantError(t, err, object.ErrNotFound)
			}
		}
		for _, o := range []object.ListOptions{{}, {Terms: []string{old}}} {
			if page, err := s.kind.List(s.ctx, o); err != nil || len(page.Items) != 0 {
				t.Errorf("list: %d items, %v", len(page.Items), err)
			}
		}
	}
	first, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		if tx.Exists() || tx.Version() != 1 || s.Text(tx.State()) != "" || tx.Entry(s.Collection, "k1") != nil {
			t.Errorf("made anew over: exists %t, version %d, text %q, entry %v", tx.Exists(), tx.Version(), s.Text(tx.State()), tx.Entry(s.Collection, "k1"))
		}
		s.Set(tx.State(), "second life")
		tx.Put(s.Collection, "k2", s.Entry("new"))
		return nil
	}, object.Create())
	if err != nil {
		t.Fatal(err)
	}
	if first.Version != 2 || !first.CreateTime.Equal(first.UpdateTime) {
		t.Errorf("made anew: %+v", first.Info)
	}
	for range 2 {
		s.want(t, s.ctx, "a", 2, "second life")
		if got := s.texts(t, "a"); !slices.Equal(got, []string{"k2=new"}) {
			t.Errorf("entries: %v", got)
		}
		if page, err := s.kind.List(s.ctx, object.ListOptions{Terms: []string{old}}); err != nil || len(page.Items) != 0 {
			t.Errorf("listed by a term of its first life: %v", err)
		}
		s.restart(t, object.Config{})
	}
	s.journal(t, "a")
}

func (s *suite[S]) testExpirySlides(t *testing.T) {
	created := s.create(t, "a", "x")
	if created.ExpireTime.IsZero() {
		t.Skip("objects of the kind do not expire")
	}
	if kept := created.ExpireTime.Sub(created.CreateTime); kept < object.MinTTL {
		t.Errorf("kept for %v", kept)
	}
	s.exec(t, `UPDATE holdfast.objects SET expire_time = clock_timestamp() + interval '1 hour'
		WHERE tenant_id = $1 AND object_id = 'a'`, string(s.Tenant))
	s.restart(t, object.Config{})
	changed := s.set(t, "a", "y")
	if changed.ExpireTime.Before(created.ExpireTime) {
		t.Errorf("expires %v after a change, %v before it", changed.ExpireTime, created.ExpireTime)
	}
	again := s.set(t, "a", "z")
	if !again.ExpireTime.Equal(changed.ExpireTime) {
		t.Errorf("the indexed expiry moved with an ordinary change, from %v to %v", changed.ExpireTime, again.ExpireTime)
	}
}

func (s *suite[S]) testRestart(t *testing.T) {
	s.create(t, "a", "1")
	s.put(t, "a", "k1")
	before, err := s.kind.View(s.ctx, "a", object.WithRecent(5))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.rt.Close(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.restart(t, object.Config{})
	after, err := s.kind.View(s.ctx, "a", object.WithRecent(5))
	if err != nil {
		t.Fatal(err)
	}
	if before.Info != after.Info || !proto.Equal(before.State, after.State) || !slices.Equal(s.render(before.Recent), s.render(after.Recent)) {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// Whatever a state or an entry holds, it is read as it was written.
func (s *suite[S]) testFidelity(t *testing.T) {
	states, entries := map[object.ID]S{}, map[object.ID][]object.Entry{}
	for seed := range uint64(30) {
		id, r := object.ID(fmt.Sprint("o", seed)), rand.New(rand.NewPCG(seed, 0))
		snap, err := s.kind.Update(s.ctx, id, func(tx *object.Tx[S]) error {
			entries[id] = nil
			Fill(r, tx.State())
			for i := range 5 {
				e := object.Entry{Key: fmt.Sprint(i, text(r)), Value: s.Entry("").ProtoReflect().New().Interface()}
				Fill(r, e.Value)
				tx.Put(s.Collection, e.Key, e.Value)
				entries[id] = append(entries[id], e)
			}
			return nil
		}, object.Create())
		if _, large := errors.AsType[*object.TooLargeError](err); large {
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		states[id] = snap.State
	}
	if len(states) < 10 {
		t.Fatalf("only %d states were small enough", len(states))
	}
	for range 2 {
		for id, want := range states {
			snap, err := s.kind.View(s.ctx, id)
			if err != nil || !proto.Equal(snap.State, want) {
				t.Fatalf("%s: wrote %v, read %v, %v", id, want, snap.State, err)
			}
			page, err := s.kind.Entries(s.ctx, id, s.Collection, object.EntriesOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(page.Entries, entries[id], func(a, b object.Entry) bool { return a.Key == b.Key && proto.Equal(a.Value, b.Value) }) {
				t.Fatalf("%s: wrote %v, read %v", id, entries[id], page.Entries)
			}
		}
		s.restart(t, object.Config{})
	}
}

func (s *suite[S]) testCloseDrains(t *testing.T) {
	s.create(t, "a", "")
	watch := s.watch(t, s.kind, "a", 0, 0)
	watch.change(t)
	release := s.stall(t)
	var waiting []<-chan outcome[S]
	for range 5 {
		waiting = append(waiting, s.start(s.ctx, "a", func(tx *object.Tx[S]) error {
			s.Set(tx.State(), s.Text(tx.State())+"x")
			return nil
		}))
	}
	closed := make(chan error, 1)
	go func() { closed <- s.rt.Close(s.ctx) }()
	watch.end(t, object.ErrClosed) // it has begun
	_, err := s.kind.Update(s.ctx, "a", s.setting("too late"))
	wantError(t, err, object.ErrClosed)
	_, err = s.kind.View(s.ctx, "a")
	wantError(t, err, object.ErrClosed)
	select {
	case err := <-closed:
		t.Fatalf("closed while changes waited: %v", err)
	default:
	}
	release()
	for _, c := range waiting {
		if o := receive(t, c, "an accepted change"); o.err != nil {
			t.Error(o.err)
		}
	}
	if err := receive(t, closed, "Close"); err != nil {
		t.Fatal(err)
	}
	s.restart(t, object.Config{})
	s.want(t, s.ctx, "a", 6, "xxxxx")
}

func (s *suite[S]) testCloseGivesUp(t *testing.T) {
	s.create(t, "sent", "kept")
	unlock := s.lockRow(t, "sent")
	ran := make(chan struct{})
	var once sync.Once
	sent := s.start(s.ctx, "sent", func(tx *object.Tx[S]) error {
		s.Set(tx.State(), "lost")
		once.Do(func() { close(ran) })
		return nil
	})
	receive(t, ran, "a batch to be under way")
	running, gate := make(chan struct{}), make(chan struct{})
	var onceMore sync.Once
	computing := s.start(s.ctx, "computing", func(*object.Tx[S]) error {
		onceMore.Do(func() { close(running) })
		<-gate
		return nil
	}, object.Create())
	receive(t, running, "another batch to be under way")
	queued := s.start(s.ctx, "queued", s.setting("lost"), object.Create())

	ctx, cancel := context.WithCancel(s.ctx)
	closed := make(chan error, 1)
	go func() { closed <- s.rt.Close(ctx) }()
	cancel()
	// What was sent may have been committed; what was not is refused.
	if o := receive(t, sent, "the change that was sent"); !errors.Is(o.err, db.ErrOutcomeUnknown) && !errors.Is(o.err, object.ErrClosed) {
		t.Errorf("the change that was sent ended with %v", o.err)
	}
	close(gate)
	wantError(t, receive(t, computing, "the change that was being computed").err, object.ErrClosed)
	wantError(t, receive(t, queued, "the change that waited").err, object.ErrClosed)
	wantError(t, receive(t, closed, "Close"), context.Canceled)
	unlock()
	s.restart(t, object.Config{})
	for _, id := range []object.ID{"computing", "queued"} {
		_, err := s.kind.View(s.ctx, id)
		wantError(t, err, object.ErrNotFound)
	}
}

// lockRow keeps every change of an object waiting inside Postgres.
func (s *suite[S]) lockRow(t *testing.T, id object.ID) (unlock func()) {
	t.Helper()
	conn, err := pgx.Connect(s.ctx, s.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	unlock = func() { conn.Close(context.WithoutCancel(s.ctx)) }
	t.Cleanup(unlock)
	_, err = conn.Exec(s.ctx, "BEGIN")
	if err == nil {
		_, err = conn.Exec(s.ctx, "SELECT FROM holdfast.objects WHERE tenant_id = $1 AND kind = $2 AND object_id = $3 FOR UPDATE",
			string(s.Tenant), s.kind.Name(), string(id))
	}
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}

func (s *suite[S]) testClosed(t *testing.T) {
	s.create(t, "a", "x")
	for range 2 {
		if err := s.rt.Close(s.ctx); err != nil {
			t.Fatal(err)
		}
	}
	for name, call := range s.calls(s.kind, "a") {
		if name == "Entries" {
			continue // nothing to drain: a read of its own
		}
		if err := call(s.ctx); err == nil {
			t.Errorf("%s after Close succeeded", name)
		} else {
			wantError(t, err, object.ErrClosed)
		}
	}
}
