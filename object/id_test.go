package object_test

import (
	"testing"

	"github.com/google/uuid"

	"holdfast/db/dbtest"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/seal"
)

// A retry finds the id that the first try made, at any server and while keys are rotated. Other callers, and who has not the
// keys, get other ids.
func TestNobodyElseCanMakeTheID(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	first, second, strange := seal.NewKey(), seal.NewKey(), seal.NewKey()
	server := func(keys ...string) *object.Kind[toy] {
		box, err := seal.NewBox(keys...)
		if err != nil {
			t.Fatal(err)
		}
		return toyKind(newRuntime(t, b.DB, object.Config{Sealer: box}))
	}
	id := func(k *object.Kind[toy], user, request string) object.ID {
		t.Helper()
		id, err := k.MakeID(b.As(t, identity.User(user)), request)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := uuid.Parse(string(id)); err != nil {
			t.Error(err)
		}
		return id
	}
	before, during, after := server(first), server(first, second), server(second, first)
	made := id(before, "ada", "r")
	for name, other := range map[string]object.ID{
		"another user's": id(before, "eve", "r"), "another request's": id(before, "ada", "r2"),
		"other keys'": id(server(strange), "ada", "r"), "no keys'": id(toyKind(newRuntime(t, b.DB, object.Config{})), "ada", "r"),
		"one without a request": id(before, "ada", ""),
	} {
		if other == made {
			t.Errorf("the id is %s, too", name)
		}
	}
	if one, another := id(before, "ada", ""), id(before, "ada", ""); one == another {
		t.Error("without a request id two ids are one")
	}
	for _, turns := range [][2]*object.Kind[toy]{{before, before}, {before, during}, {before, after}, {during, after}, {after, during}, {after, after}} {
		request := uuid.NewString()
		first := id(turns[0], "ada", request)
		if _, err := turns[0].Update(b.As(t, "ada"), first, func(*object.Tx[toy]) error { return nil }, object.Create()); err != nil {
			t.Fatal(err)
		}
		if again := id(turns[1], "ada", request); again != first {
			t.Errorf("a retry makes %s, the first try made %s", again, first)
		}
	}
}
