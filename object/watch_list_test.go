package object_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"holdfast/db/dbtest"
	"holdfast/object"
)

// A list is read again after a change in this process, and in another by a hint.
func TestAListIsReadAgainAfterAChange(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	here := newRuntime(t, b.DB, hinting(b.notifications(t, "here")))
	there := newRuntime(t, b.DB, hinting(b.notifications(t, "there")))
	watched, written := toyKind(here), toyKind(there)
	acquainted(t, here, there)
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	lists := make(chan int)
	ended := make(chan error, 1)
	last := -1
	go func() {
		ended <- watched.WatchList(ctx, func() (changed bool, err error) {
			page, err := watched.List(ctx, object.ListOptions{})
			if changed = len(page.Items) != last; changed && err == nil {
				last = len(page.Items)
				lists <- last
			}
			return changed, err
		})
	}()
	for i, kind := range []*object.Kind[toy]{watched, written, written, watched} {
		if got := <-lists; got != i {
			t.Fatalf("the list has %d, want %d", got, i)
		}
		if _, err := kind.Update(b.ctx, object.ID(rune('a'+i)), func(*object.Tx[toy]) error { return nil }, object.Create()); err != nil {
			t.Fatal(err)
		}
	}
	<-lists
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

// Who waits for an object is told when it is there, also where another process made it, if it may be seen.
func TestAwait(t *testing.T) {
	t.Parallel()
	b := setup(t)
	here := toyKind(newRuntime(t, b.DB, object.Config{PollInterval: 5 * time.Millisecond}))
	bob := b.As(t, "bob")
	alice, cancel := context.WithCancel(b.ctx)
	defer cancel()
	alices, bobs := make(chan error, 1), make(chan error, 1)
	go func() { alices <- here.Await(alice, "a") }()
	go func() { bobs <- here.Await(bob, "a") }()
	if _, err := b.toys.Update(bob, "a", func(*object.Tx[toy]) error { return nil }, object.Create()); err != nil {
		t.Fatal(err)
	}
	if err := <-bobs; err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-alices; !errors.Is(err, context.Canceled) {
		t.Errorf("hers ended with %v, and it is not hers", err)
	}
}

// A watch that goes on from a version of another life begins with a snapshot, whatever the version is.
func TestAWatchOfAnotherLifeBeginsWithASnapshot(t *testing.T) {
	t.Parallel()
	b := setupWith(t, dbtest.New(t), object.Config{Heartbeat: 20 * time.Millisecond}) // where nothing was missed a heartbeat comes first
	b.update(t, "a", func(*object.Tx[toy]) error { return nil }, object.Create())
	s, err := b.toys.View(b.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	for life, want := range map[time.Time]bool{s.CreateTime: false, s.CreateTime.Add(-time.Hour): true, {}: false} {
		ctx, cancel := context.WithCancel(b.ctx)
		for c, err := range b.toys.WatchLife(ctx, "a", life, s.Version, 0) {
			if err != nil {
				break // canceled
			}
			if c.Reset != want {
				t.Errorf("of the life %v: reset %t", life, c.Reset)
			}
			cancel()
		}
		cancel()
	}
}
