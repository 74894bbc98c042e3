package object_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db/dbtest"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/object/objecttest"
)

// A request id counts within one life of an object and for one caller: on the path that loads, on the one that does not,
// within one batch, and at another server.
func TestARequestIDCountsForOneCallerInOneLife(t *testing.T) {
	t.Parallel()
	callers := map[string]identity.Identity{
		"the same caller":            {User: "ada"},
		"another user":               {User: "bob"},
		"a service":                  {Service: true},
		"a service for the user":     {User: "ada", Session: ""},
		"another session's of hers":  {User: "ada", Session: "s2"},
		"a user by an odd name":      {User: "ada\u00a0"},
		"a user with a longer name":  {User: "adaada"},
		"a user with a shorter name": {User: "ad"},
	}
	for _, first := range []bool{true, false} { // the first change creates, or updates
		for life, next := range lives(t) {
			for who, caller := range callers {
				for _, sameBody := range []bool{true, false} {
					for _, server := range []string{"same", "other", "cold"} {
						create := first
						t.Run(fmt.Sprintf("create=%t/%s/%s/same body=%t/%s server", create, life, who, sameBody, server), func(t *testing.T) {
							t.Parallel()
							b := setupWith(t, dbtest.New(t), object.Config{})
							b.testLife(t, next, caller, create, sameBody, server)
						})
					}
				}
			}
		}
	}
}

// nextLife leads from one life to the next, or stays in it.
type nextLife struct {
	step func(t *testing.T, b *testBundle)
	new  bool
}

func lives(t *testing.T) map[string]nextLife {
	t.Helper()
	deleted := func(t *testing.T, b *testBundle) {
		t.Helper()
		if err := objecttest.Delete(b.AsService(t), b.toys, "x"); err != nil {
			t.Fatal(err)
		}
	}
	return map[string]nextLife{
		"same life": {func(*testing.T, *testBundle) {}, false},
		"deleted":   {deleted, true},
		"deleted and swept": {func(t *testing.T, b *testBundle) {
			t.Helper()
			deleted(t, b)
			for _, table := range []string{"objects", "entries", "events", "terms"} {
				b.exec(t, "DELETE FROM holdfast."+table+" WHERE tenant_id = $1", string(b.Tenant))
			}
		}, true},
		"expired": {func(t *testing.T, b *testBundle) {
			t.Helper()
			b.exec(t, "UPDATE holdfast.objects SET expire_time = clock_timestamp() - interval '1 s' WHERE tenant_id = $1", string(b.Tenant))
			b.rt.Forget(b.Tenant, "toy", "x") // it does not know that
		}, true},
		"restored": {func(t *testing.T, b *testBundle) {
			t.Helper()
			deleted(t, b)
			if _, err := objecttest.Restore(b.AsService(t), b.toys, "x", object.Moment{Version: 2}); err != nil {
				t.Fatal(err)
			}
		}, false},
	}
}

func (b *testBundle) testLife(t *testing.T, next nextLife, caller identity.Identity, create, sameBody bool, server string) {
	t.Helper()
	caller.Tenant = b.Tenant
	ada, second := b.As(t, "ada"), identity.With(t.Context(), caller)
	change := func(ctx context.Context, k *object.Kind[toy], body string, opts ...object.UpdateOption) (string, error) {
		reply := ""
		_, err := object.Do(ctx, k, "x", &idRequest{EnumValue: &typepb.EnumValue{Name: body}, id: "r"}, func(tx *object.Tx[toy]) (*typepb.EnumValue, error) {
			tx.State().Name += "+"
			return &typepb.EnumValue{Name: fmt.Sprint(tx.Version() + 1)}, nil
		}, append(opts, object.Shared(), func() object.UpdateOption {
			if create {
				return object.Create()
			}
			return object.Upsert()
		}())...)
		if err == nil {
			reply = "ok"
		}
		return reply, err
	}
	if !create {
		if _, err := b.toys.Update(ada, "x", func(tx *object.Tx[toy]) error { tx.State().Name = ""; return nil }, object.Create(), object.Shared()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := change(ada, b.toys, "body"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.toys.Update(ada, "x", func(tx *object.Tx[toy]) error { tx.State().Edition = "e"; return nil }); err != nil {
		t.Fatal(err)
	}
	next.step(t, b)
	kind := b.toys
	switch server {
	case "other":
		kind = toyKind(newRuntime(t, b.DB, object.Config{}))
	case "cold":
		b.rt.Forget(b.Tenant, "toy", "x")
	}
	before, _ := kind.View(ada, "x")
	body := "body"
	if !sameBody {
		body = "another"
	}
	_, err := change(second, kind, body)
	after, viewErr := kind.View(ada, "x")
	if viewErr != nil {
		t.Fatal(viewErr)
	}
	switch retry := caller.User == "ada" && sameBody; {
	case next.new:
		if err != nil || after.State.GetName() != "+" || after.State.GetEdition() != "" {
			t.Errorf("in a new life: %v, %v", after.State, err)
		}
	case retry:
		if err != nil || after.Version != before.Version {
			t.Errorf("a retry: version %d after %d, %v", after.Version, before.Version, err)
		}
	default:
		if !errors.Is(err, object.ErrRequestReused) || after.Version != before.Version {
			t.Errorf("a used id: version %d after %d, %v", after.Version, before.Version, err)
		}
	}
	if next.new {
		// In its new life the id is known.
		again, err := change(second, kind, body)
		last, _ := kind.View(ada, "x")
		if err != nil || again != "ok" || last.Version != after.Version {
			t.Errorf("its retry: version %d after %d, %v", last.Version, after.Version, err)
		}
	}
}

type idRequest struct {
	*typepb.EnumValue

	id string
}

func (r *idRequest) GetRequestId() string { return r.id } //nolint:revive // protobuf names it

// A retry of the request that deleted the object is known until something is created in its place.
func TestARetriedDeletionIsKnown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	remove := func(id string) error {
		_, err := object.Do(b.ctx, b.toys, "x", &idRequest{EnumValue: &typepb.EnumValue{}, id: id}, func(tx *object.Tx[toy]) (*typepb.EnumValue, error) {
			tx.DeleteObject()
			return &typepb.EnumValue{}, nil
		})
		return err
	}
	create := func(id string) error {
		_, err := object.Do(b.ctx, b.toys, "x", &idRequest{EnumValue: &typepb.EnumValue{Name: "c"}, id: id}, func(*object.Tx[toy]) (*typepb.EnumValue, error) {
			return &typepb.EnumValue{}, nil
		}, object.Create())
		return err
	}
	for i, step := range []struct {
		do   func(string) error
		id   string
		want error
	}{
		{create, "c", nil},
		{create, "c", nil},
		{remove, "d", nil},
		{remove, "d", nil},
		{remove, "e", object.ErrNotFound},
		{create, "c", nil},
		{create, "other", object.ErrExists},
		{remove, "d", nil}, // of the new life
		{remove, "d", nil},
		{create, "c", nil},
	} {
		if err := step.do(step.id); !errors.Is(err, step.want) {
			t.Fatalf("step %d: %v, want %v", i+1, err, step.want)
		}
	}
	if snap, err := b.toys.View(b.ctx, "x"); err != nil || snap.Version != 5 {
		t.Errorf("%+v, %v", snap.Info, err)
	}
}
