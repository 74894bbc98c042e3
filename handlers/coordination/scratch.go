package coordination

import (
	"maps"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// scratch copies a state for a change to work on. A hot limit is copied thousands of times a second, so only what rules change in
// place is copied in depth: buckets, the breaker and the day. Rules replace all else.
func scratch(s state) state {
	out := shallow(s)
	out.Buckets, out.Pools = scratchBuckets(s.GetBuckets()), scratchBuckets(s.GetPools())
	out.Breaker = proto.CloneOf(s.GetBreaker())
	out.OperationBreakers = maps.Clone(s.GetOperationBreakers())
	for operation, b := range out.GetOperationBreakers() {
		out.OperationBreakers[operation] = proto.CloneOf(b)
	}
	if day := s.GetToday(); day != nil {
		out.Today = shallow(day)
		out.Today.Operations = maps.Clone(day.GetOperations())
	}
	return out
}

func scratchBuckets(all map[string]bucket) map[string]bucket {
	out := maps.Clone(all)
	for name, b := range out {
		out[name] = shallow(b)
		out[name].Leases = maps.Clone(b.GetLeases())
	}
	return out
}

// shallow copies a message. The copy shares the original's lists, maps and messages.
func shallow[M proto.Message](m M) M {
	out := m.ProtoReflect().New()
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		out.Set(f, v)
		return true
	})
	return out.Interface().(M) //nolint:forcetypeassert // New made it of m's type
}
