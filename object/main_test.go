package object_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db/dbtest"
	"holdfast/object"
	"holdfast/object/objecttest"
)

func TestMain(m *testing.M) { os.Exit(dbtest.MainWithoutLeaks(m)) }

// toy is a state type that every test binary has: protobuf's description of a message.
type toy = *typepb.Type

const (
	toyEntries = "values"
	toyOther   = "others"
)

// toyKind keeps few entries at hand, so that tests are soon past them.
func toyKind(rt *object.Runtime) *object.Kind[toy] { return object.Register(rt, toyConfig()) }

func toyConfig() object.KindConfig[toy] {
	return object.KindConfig[toy]{
		Name: "toy", SchemaVersion: 1, TTL: 48 * time.Hour, Users: object.UsersShare,
		Terms:       func(s toy) []string { return slices.Compact(slices.Sorted(slices.Values(s.GetOneofs()))) },
		Collections: map[string]proto.Message{toyEntries: &typepb.EnumValue{}, toyOther: &typepb.Field{}},
		Recent:      toyEntries, RecentKeep: 4,
		Signal: &typepb.EnumValue{},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	objecttest.Run(t, objecttest.Case[toy]{
		Register:   toyKind,
		Set:        func(s toy, text string) { s.Name = text },
		Text:       toy.GetName,
		Collection: toyEntries,
		Entry:      func(text string) proto.Message { return &typepb.EnumValue{Name: text} },
		EntryText:  func(m proto.Message) string { return m.(*typepb.EnumValue).GetName() },
		Tag: func(s toy, name string) string {
			s.Oneofs = append(s.Oneofs, "tag-"+name)
			return "tag-" + name
		},
		Timed: func(rt *object.Runtime, name string, onTimer func(*object.Tx[toy], string) error) *object.Kind[toy] {
			c := toyConfig()
			c.Name, c.OnTimer = name, onTimer
			return object.Register(rt, c)
		},
	})
}
