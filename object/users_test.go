package object_test

import (
	"context"
	"errors"
	"testing"

	"holdfast/object"
	"holdfast/object/objecttest"
)

// What users may do to what is the tenant's is said by the kind, and holds for every change.
func TestWhatUsersMayChange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	alice, service := b.As(t, "alice"), b.AsService(t)
	type may struct{ own, create, change, remove bool }
	for users, want := range map[object.Users]may{
		object.UsersChangeOwn: {own: true},
		object.UsersShare:     {own: true, create: true, change: true},
		object.UsersNever:     {},
	} {
		c := toyConfig()
		c.Name, c.Users = map[object.Users]string{object.UsersChangeOwn: "own", object.UsersShare: "share", object.UsersNever: "never"}[users], users
		k := object.Register(b.rt, c)
		rename := func(tx *object.Tx[toy]) error { tx.State().Name += "x"; return nil }
		for range 2 {
			if _, err := k.Update(service, "shared", rename, object.Upsert()); err != nil {
				t.Fatal(err)
			}
		}
		for name, do := range map[string]struct {
			call func(ctx context.Context) error
			may  bool
		}{
			"own": {func(ctx context.Context) error { _, err := k.Update(ctx, "own", rename, object.Upsert()); return err }, want.own},
			"create": {func(ctx context.Context) error {
				_, err := k.Update(ctx, "new", rename, object.Create(), object.Shared())
				return err
			}, want.create},
			"change": {func(ctx context.Context) error { _, err := k.Update(ctx, "shared", rename); return err }, want.change},
			"rewrite": {func(ctx context.Context) error {
				_, err := k.Update(ctx, "shared", rename, object.Rewrite())
				return err
			}, want.remove},
			"restore": {func(ctx context.Context) error {
				_, err := objecttest.Restore(ctx, k, "shared", object.Moment{Version: 1})
				return err
			}, want.remove},
			"delete": {func(ctx context.Context) error { return objecttest.Delete(ctx, k, "shared") }, want.remove},
		} {
			err := do.call(alice)
			if do.may && err != nil || !do.may && !errors.Is(err, object.ErrServicesOnly) {
				t.Errorf("%s: %s by a user: %v", k.Name(), name, err)
			}
		}
		if _, err := k.Update(alice, "nowhere", rename); !errors.Is(err, object.ErrNotFound) {
			t.Errorf("%s: what is not there: %v", k.Name(), err)
		}
		if err := objecttest.Delete(service, k, "shared"); err != nil {
			t.Errorf("%s: a service: %v", k.Name(), err)
		}
	}
}

// An object may have been another's before: who has it now is not told what happened to it then.
func TestAnEarlierLifeIsNotTold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := toyConfig()
	c.Name = "reborn"
	k := object.Register(b.rt, c)
	alice, bob, service := b.As(t, "alice"), b.As(t, "bob"), b.AsService(t)
	rename := func(tx *object.Tx[toy]) error { tx.State().Name += "x"; return nil }
	for _, ctx := range []context.Context{service, alice} {
		if _, err := k.Update(ctx, "a", rename, object.Upsert()); err != nil {
			t.Fatal(err)
		}
	}
	if err := objecttest.Delete(service, k, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Update(bob, "a", rename, object.Create()); err != nil {
		t.Fatal(err)
	}
	for _, from := range []object.Version{0, 4, 3, 1} {
		page, err := k.History(bob, "a", from, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			if e.Version != 4 {
				t.Errorf("from %d: bob is told of %+v", from, e)
			}
		}
		if page.More {
			t.Errorf("from %d there is more", from)
		}
	}
	for v := object.Version(1); v < 4; v++ {
		if _, err := objecttest.ViewAt(bob, k, "a", object.Moment{Version: v}); err == nil {
			t.Errorf("bob sees version %d", v)
		}
	}
	if page, err := k.History(service, "a", 0, 10); err != nil || len(page.Events) != 4 {
		t.Errorf("a service is told of %d events, %v", len(page.Events), err)
	}
}
