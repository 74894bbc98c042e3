package handlers_test

import (
	"context"
	"flag"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	"holdfast/db/dbtest"
	"holdfast/object"
	"holdfast/object/objecttest"
)

// Every version of an object of any kind can be had again, whatever is done to it.
func TestHistoryOfEveryKind(t *testing.T) {
	t.Parallel()
	if raceDetector {
		if err := flag.Set("rapid.checks", "10"); err != nil {
			t.Fatal(err)
		}
	}
	rt := object.NewRuntime(dbtest.New(t).DB, object.Config{})
	t.Cleanup(func() { rt.Close(context.Background()) })
	services(t, rt)
	for _, name := range rt.Kinds() {
		k, _ := rt.Kind(name)
		c := objecttest.Case[proto.Message]{
			Register: func(rt *object.Runtime) *object.Kind[proto.Message] {
				services(t, rt)
				k, _ := rt.Kind(name)
				return k
			},
			Set: func(s proto.Message, text string) { fillFrom(s, text) },
		}
		if all := k.Collections(); len(all) > 0 {
			c.Collection = all[0]
			c.Entry = func(text string) proto.Message {
				e := k.PrototypeOf(c.Collection).ProtoReflect().New().Interface()
				fillFrom(e, text)
				return e
			}
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objecttest.RunHistory(t, c)
		})
	}
}

// fillFrom sets one of a message's fields to what a text determines, and leaves the others.
func fillFrom(m proto.Message, text string) {
	var seed uint64
	for _, c := range []byte(text) {
		seed = seed*31 + uint64(c)
	}
	r := rand.New(rand.NewPCG(seed, 0))
	other := m.ProtoReflect().New()
	objecttest.Fill(r, other.Interface())
	fields := m.ProtoReflect().Descriptor().Fields()
	f := fields.Get(r.IntN(fields.Len()))
	if m.ProtoReflect().Clear(f); other.Has(f) {
		m.ProtoReflect().Set(f, other.Get(f))
	}
}
