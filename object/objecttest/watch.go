package objecttest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/object"
)

func watchTests[S proto.Message]() tests[S] {
	return tests[S]{
		"Follow":             (*suite[S]).testFollow,
		"Resume":             (*suite[S]).testResume,
		"SlowConsumer":       (*suite[S]).testSlowConsumer,
		"SlowConsumers":      (*suite[S]).testSlowConsumers,
		"ResetAfterGap":      (*suite[S]).testResetAfterGap,
		"ResetFromTheFuture": (*suite[S]).testResetFromTheFuture,
		"ResetAfterTooMany":  (*suite[S]).testResetAfterTooMany,
		"Deletion":           (*suite[S]).testWatchDeletion,
		"Rebirth":            (*suite[S]).testWatchRebirth,
		"Expiry":             (*suite[S]).testWatchExpiry,
		"AnotherProcess":     (*suite[S]).testWatchAnotherProcess,
		"NotFound":           (*suite[S]).testWatchNotFound,
		"Heartbeat":          (*suite[S]).testHeartbeat,
		"Age":                (*suite[S]).testWatchAge,
		"Ends":               (*suite[S]).testWatchEnds,
		"NoGapUnderLoad":     (*suite[S]).testNoGapUnderLoad,
	}
}

// stream is a watch that a test steps through.
type stream[S proto.Message] struct {
	next func() (object.Change[S], error, bool)
}

func (s *suite[S]) watch(t *testing.T, k *object.Kind[S], id object.ID, after object.Version, recent int) *stream[S] {
	t.Helper()
	next, stop := iter.Pull2(k.Watch(s.ctx, id, after, recent))
	t.Cleanup(stop)
	return &stream[S]{next}
}

// change waits for the next change that is no heartbeat.
func (w *stream[S]) change(t *testing.T) object.Change[S] {
	t.Helper()
	for {
		c, err, ok := w.next()
		if err != nil || !ok {
			t.Fatalf("the watch ended: %v", err)
		}
		if !c.Heartbeat {
			return c
		}
	}
}

// end waits for the watch's end, and fails the test where something else comes.
func (w *stream[S]) end(t *testing.T, want error) {
	t.Helper()
	for {
		c, err, ok := w.next()
		switch {
		case ok && err == nil && c.Heartbeat:
			continue
		case ok && err == nil:
			t.Fatalf("the watch went on: %+v", c)
		case want == nil && !ok:
			return
		}
		wantError(t, err, want)
		if _, _, ok := w.next(); ok {
			t.Fatal("the watch went on after its error")
		}
		return
	}
}

// wantChange fails the test unless c is what is wanted.
func (s *suite[S]) wantChange(t *testing.T, c *object.Change[S], version object.Version, reset bool, text string, entries ...string) {
	t.Helper()
	if c.Version != version || c.Reset != reset || c.Deleted || s.Text(c.State) != text {
		t.Fatalf("got version %d, reset %t, deleted %t, text %q; want version %d, reset %t, text %q",
			c.Version, c.Reset, c.Deleted, s.Text(c.State), version, reset, text)
	}
	if got := s.renderChanges(c.Entries); !slices.Equal(got, entries) {
		t.Fatalf("version %d came with entries %v, want %v", version, got, entries)
	}
	for _, e := range c.Entries {
		if e.Collection != s.Collection {
			t.Fatalf("an entry of %q", e.Collection)
		}
	}
}

func (s *suite[S]) testFollow(t *testing.T) {
	s.create(t, "a", "one")
	s.put(t, "a", "k1", "k2", "k3")
	w := s.watch(t, s.kind, "a", 0, 2)
	c := w.change(t)
	s.wantChange(t, &c, 2, true, "one", "k2=text of k2", "k3=text of k3")
	if c.Owner != alice || c.ID != "a" || c.CreateTime.IsZero() {
		t.Errorf("%+v", c.Info)
	}
	s.set(t, "a", "two")
	c = w.change(t)
	s.wantChange(t, &c, 3, false, "two")
	_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		s.Set(tx.State(), "three")
		tx.Put(s.Collection, "k4", s.Entry("new"))
		tx.Put(s.Collection, "k1", s.Entry("changed"))
		tx.DeleteEntry(s.Collection, "k2")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c = w.change(t)
	s.wantChange(t, &c, 4, false, "three", "k4=new", "k1=changed", "k2=deleted")
	if _, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error { tx.Unchanged(); return nil }); err != nil {
		t.Fatal(err)
	}
	s.set(t, "b", "another object", object.Create())
	s.set(t, "a", "four")
	c = w.change(t)
	s.wantChange(t, &c, 5, false, "four")
}

func (s *suite[S]) testResume(t *testing.T) {
	s.create(t, "a", "one")
	s.put(t, "a", "k1", "k2")
	s.put(t, "a", "k3")
	_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		s.Set(tx.State(), "two")
		tx.Put(s.Collection, "k3", s.Entry("changed"))
		tx.DeleteEntry(s.Collection, "k1")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []*object.Kind[S]{s.kind, func() *object.Kind[S] { _, k := s.another(t, object.Config{}); return k }()} {
		for after, entries := range map[object.Version][]string{
			1: {"k1=deleted", "k2=text of k2", "k3=changed"}, 2: {"k3=changed", "k1=deleted"}, 3: {"k3=changed", "k1=deleted"},
		} {
			c := s.watch(t, k, "a", after, 0).change(t)
			slices.SortFunc(c.Entries, func(a, b object.EntryChange) int { return strings.Compare(a.Key, b.Key) })
			slices.Sort(entries)
			s.wantChange(t, &c, 4, false, "two", entries...)
		}
	}
	// One that missed nothing waits for the next.
	w := s.watch(t, s.kind, "a", 4, 0)
	s.set(t, "a", "three")
	c := w.change(t)
	s.wantChange(t, &c, 5, false, "three")
}

func (s *suite[S]) testSlowConsumer(t *testing.T) {
	s.create(t, "a", "0")
	w := s.watch(t, s.kind, "a", 0, 0)
	c := w.change(t)
	s.wantChange(t, &c, 1, true, "0")
	// A coroutine that is not resumed reads nothing; more follows than any buffer holds.
	const n = 150
	for i := range n {
		_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			s.Set(tx.State(), fmt.Sprint(i+1))
			tx.Put(s.Collection, object.SeqKey(int64(i%3)), s.Entry(fmt.Sprint(i+1)))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	messages := 0
	entries := map[string]string{}
	for last := c.Version; last < n+1; last = c.Version {
		c = w.change(t)
		messages++
		if c.Reset || c.Version <= last || s.Text(c.State) != fmt.Sprint(c.Version-1) {
			t.Fatalf("after version %d: version %d, reset %t, text %q", last, c.Version, c.Reset, s.Text(c.State))
		}
		for _, e := range c.Entries {
			entries[e.Key] = s.EntryText(e.Value)
		}
	}
	if messages >= n {
		t.Errorf("%d messages for %d changes: nothing was coalesced, and the buffer grew", messages, n)
	}
	if want := map[string]string{object.SeqKey(0): "148", object.SeqKey(1): "149", object.SeqKey(2): "150"}; fmt.Sprint(entries) != fmt.Sprint(want) {
		t.Errorf("entries %v, want %v", entries, want)
	}
	s.set(t, "a", "next")
	c = w.change(t)
	s.wantChange(t, &c, n+2, false, "next")
}

// Buffers that are full to the last, and one over: each watcher hears of the last change, though nothing follows it.
func (s *suite[S]) testSlowConsumers(t *testing.T) {
	s.create(t, "a", "1")
	const watchers, changes = 20, 70
	var streams []*stream[S]
	for v := object.Version(1); v <= changes; v++ {
		if v <= watchers {
			w := s.watch(t, s.kind, "a", 0, 0)
			c := w.change(t)
			s.wantChange(t, &c, v, true, fmt.Sprint(v))
			streams = append(streams, w)
		}
		s.set(t, "a", fmt.Sprint(v+1))
	}
	for i, w := range streams {
		last := object.Version(i + 1)
		for last < changes+1 {
			c := w.change(t)
			if c.Version <= last || c.Reset || s.Text(c.State) != fmt.Sprint(c.Version) {
				t.Fatalf("after version %d: version %d, reset %t, text %q", last, c.Version, c.Reset, s.Text(c.State))
			}
			last = c.Version
		}
	}
}

func (s *suite[S]) testResetAfterGap(t *testing.T) {
	s.create(t, "a", "1")
	for range 4 {
		s.put(t, "a", "k1", "k2")
	}
	s.exec(t, "DELETE FROM holdfast.events WHERE tenant_id = $1 AND version <= 3", string(s.Tenant))
	for after, reset := range map[object.Version]bool{1: true, 2: true, 3: false, 4: false} {
		c := s.watch(t, s.kind, "a", after, 1).change(t)
		want := []string{"k1=text of k1", "k2=text of k2"}
		if reset {
			want = want[1:] // a snapshot has the newest ones asked for
		}
		s.wantChange(t, &c, 5, reset, "1", want...)
	}
}

func (s *suite[S]) testResetFromTheFuture(t *testing.T) {
	s.create(t, "a", "1")
	w := s.watch(t, s.kind, "a", 7, 0) // as after a restore from a backup
	c := w.change(t)
	s.wantChange(t, &c, 1, true, "1")
	s.set(t, "a", "2")
	c = w.change(t)
	s.wantChange(t, &c, 2, false, "2")
}

func (s *suite[S]) testResetAfterTooMany(t *testing.T) {
	s.create(t, "a", "1")
	const n = 230
	done := make([]<-chan outcome[S], n)
	for i := range n {
		done[i] = s.start(s.ctx, "a", s.setting("x"))
	}
	for _, d := range done {
		if o := receive(t, d, "an update"); o.err != nil {
			t.Fatal(o.err)
		}
	}
	c := s.watch(t, s.kind, "a", 1, 0).change(t)
	s.wantChange(t, &c, n+1, true, "x")
}

func (s *suite[S]) testWatchDeletion(t *testing.T) {
	_, other := s.another(t, object.Config{PollInterval: 5 * time.Millisecond})
	s.create(t, "a", "1")
	s.set(t, "a", "2")
	streams := []*stream[S]{s.watch(t, s.kind, "a", 0, 0), s.watch(t, s.kind, "a", 2, 0), s.watch(t, other, "a", 0, 0)}
	for _, i := range []int{0, 2} {
		c := streams[i].change(t)
		s.wantChange(t, &c, 2, true, "2")
	}
	if err := Delete(s.ctx, s.kind, "a"); err != nil {
		t.Fatal(err)
	}
	streams = append(streams, s.watch(t, s.kind, "a", 1, 0)) // which missed it
	for i, w := range streams {
		if c := w.change(t); !c.Deleted || c.Version != 3 || c.ID != "a" || any(c.State) != any(*new(S)) {
			t.Errorf("stream %d: %+v", i, c)
		}
		w.end(t, nil)
	}
	s.watch(t, s.kind, "a", 0, 0).end(t, object.ErrNotFound)
}

// What belongs to an earlier life of the object must not stay with a watcher.
func (s *suite[S]) testWatchRebirth(t *testing.T) {
	s.create(t, "a", "first life")
	s.put(t, "a", "k1", "k2")
	if err := Delete(s.ctx, s.kind, "a"); err != nil {
		t.Fatal(err)
	}
	s.create(t, "a", "second life")
	s.put(t, "a", "k2")
	for _, after := range []object.Version{1, 2, 3} {
		c := s.watch(t, s.kind, "a", after, 5).change(t)
		s.wantChange(t, &c, 5, true, "second life", "k2=text of k2")
	}
	c := s.watch(t, s.kind, "a", 4, 5).change(t)
	s.wantChange(t, &c, 5, false, "second life", "k2=text of k2")

	// One that follows while the object expires and is made anew before anybody looks.
	w := s.watch(t, s.kind, "a", 0, 5)
	c = w.change(t)
	s.wantChange(t, &c, 5, true, "second life", "k2=text of k2")
	s.expire(t, "a")
	_, other := s.another(t, object.Config{})
	if _, err := other.Update(s.ctx, "a", s.setting("third life"), object.Create()); err != nil {
		t.Fatal(err)
	}
	s.want(t, s.ctx, "a", 6, "third life") // so the watching process can write what the watcher hears of
	s.set(t, "a", "third life goes on")
	c = w.change(t)
	s.wantChange(t, &c, 7, true, "third life goes on")

	// And where its own process makes it anew.
	s.put(t, "a", "k3")
	c = w.change(t)
	s.wantChange(t, &c, 8, false, "third life goes on", "k3=text of k3")
	s.expire(t, "a")
	s.create(t, "a", "fourth life")
	c = w.change(t)
	s.wantChange(t, &c, 9, true, "fourth life")
}

func (s *suite[S]) testWatchExpiry(t *testing.T) {
	s.restart(t, object.Config{PollInterval: 5 * time.Millisecond})
	s.create(t, "a", "1")
	w := s.watch(t, s.kind, "a", 0, 0)
	c := w.change(t)
	s.wantChange(t, &c, 1, true, "1")
	s.expire(t, "a")
	w.end(t, object.ErrNotFound)
	for after := range object.Version(3) {
		s.watch(t, s.kind, "a", after, 0).end(t, object.ErrNotFound)
	}
}

func (s *suite[S]) testWatchAnotherProcess(t *testing.T) {
	_, other := s.another(t, object.Config{PollInterval: 5 * time.Millisecond})
	s.create(t, "a", "1")
	first, second := s.watch(t, other, "a", 0, 0), s.watch(t, other, "a", 1, 0)
	c := first.change(t)
	s.wantChange(t, &c, 1, true, "1")
	s.put(t, "a", "k1")
	for _, w := range []*stream[S]{first, second} {
		c := w.change(t)
		s.wantChange(t, &c, 2, false, "1", "k1=text of k1")
	}
	// A change of the other process that nobody polled for is missing in front of one of the watcher's own process.
	_, lazy := s.another(t, object.Config{PollInterval: time.Hour})
	w := s.watch(t, lazy, "a", 2, 0)
	s.put(t, "a", "k2")
	if _, err := lazy.Update(s.ctx, "a", s.setting("4")); err != nil {
		t.Fatal(err)
	}
	c = w.change(t)
	if c.Version == 3 { // it read the journal between the two
		s.wantChange(t, &c, 3, false, "1", "k2=text of k2")
		c = w.change(t)
		s.wantChange(t, &c, 4, false, "4")
		return
	}
	s.wantChange(t, &c, 4, false, "4", "k2=text of k2")
}

func (s *suite[S]) testWatchNotFound(t *testing.T) {
	s.watch(t, s.kind, "a", 0, 0).end(t, object.ErrNotFound)
	s.watch(t, s.kind, "a", 3, 0).end(t, object.ErrNotFound)
}

func (s *suite[S]) testHeartbeat(t *testing.T) {
	s.restart(t, object.Config{Heartbeat: time.Millisecond})
	s.create(t, "a", "1")
	w := s.watch(t, s.kind, "a", 0, 0)
	w.change(t)
	for range 3 {
		c, err, ok := w.next()
		if err != nil || !ok || !c.Heartbeat || c.Version != 1 || c.Reset || c.Deleted || any(c.State) != any(*new(S)) {
			t.Fatalf("want a heartbeat, got %+v, %v", c, err)
		}
	}
}

func (s *suite[S]) testWatchAge(t *testing.T) {
	s.restart(t, object.Config{WatchAge: 10 * time.Millisecond})
	s.create(t, "a", "1")
	w := s.watch(t, s.kind, "a", 0, 0)
	w.change(t)
	w.end(t, object.ErrWatchOver)
}

func (s *suite[S]) testWatchEnds(t *testing.T) {
	s.restart(t, object.Config{Limits: object.Limits{Watches: 1}})
	s.create(t, "a", "1")

	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	messages := 0
	for c, err := range s.kind.Watch(ctx, "a", 0, 0) {
		if messages++; messages == 1 {
			s.wantChange(t, &c, 1, true, "1")
			_, err, _ := s.watch(t, s.kind, "a", 0, 0).next()
			wantOverloaded(t, err, "streams")
			cancel()
			continue
		}
		wantError(t, err, context.Canceled)
	}
	if messages != 2 {
		t.Errorf("%d messages", messages)
	}
	for range 3 { // a consumer that leaves makes room for the next
		for range s.kind.Watch(s.ctx, "a", 0, 0) {
			break
		}
	}
	w := s.watch(t, s.kind, "a", 0, 0)
	w.change(t)
	if err := s.rt.Close(s.ctx); err != nil {
		t.Fatal(err)
	}
	w.end(t, object.ErrClosed)
	s.watch(t, s.kind, "a", 0, 0).end(t, object.ErrClosed)
}

// Several watchers and writers, and two processes: each watcher sees versions that only grow, each with the state of
// that version, and all entries in the end.
func (s *suite[S]) testNoGapUnderLoad(t *testing.T) {
	polling := object.Config{PollInterval: 2 * time.Millisecond}
	s.restart(t, polling)
	_, other := s.another(t, polling)
	s.create(t, "a", "1")
	const writers, each, watchers = 4, 15, 4
	final := object.Version(writers*each + 1)
	errs := make(chan error, writers+watchers)
	for i := range watchers {
		k := []*object.Kind[S]{s.kind, other}[i%2]
		go func() { errs <- s.followTo(k, final) }()
	}
	for i := range writers {
		k := []*object.Kind[S]{s.kind, other}[i%2]
		go func() {
			for j := range each {
				_, err := k.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
					v := fmt.Sprint(tx.Version() + 1)
					s.Set(tx.State(), v)
					tx.Put(s.Collection, fmt.Sprintf("w%d-%d", i, j), s.Entry(v))
					return nil
				})
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers + watchers {
		if err := receive(t, errs, "writers and watchers"); err != nil {
			t.Error(err)
		}
	}
	s.journal(t, "a")
}

// followTo watches "a" up to a version, starting anew from its last version every now and then.
func (s *suite[S]) followTo(k *object.Kind[S], final object.Version) error {
	var last object.Version
	seen := map[string]bool{}
	for last < final {
		messages := 0
		for c, err := range k.Watch(s.ctx, "a", last, object.MaxPageSize) {
			switch {
			case err != nil:
				return err
			case c.Heartbeat:
				continue
			case c.Version <= last || c.Reset != (last == 0) || s.Text(c.State) != fmt.Sprint(c.Version):
				return fmt.Errorf("after version %d: version %d, reset %t, text %q", last, c.Version, c.Reset, s.Text(c.State))
			}
			last = c.Version
			for _, e := range c.Entries {
				if seen[e.Key] {
					return fmt.Errorf("entry %s came twice", e.Key)
				}
				seen[e.Key] = true
			}
			if messages++; messages == 7 || last == final {
				break
			}
		}
	}
	if len(seen) != int(final-1) {
		return errors.New("entries are missing: " + fmt.Sprint(len(seen)))
	}
	return nil
}
