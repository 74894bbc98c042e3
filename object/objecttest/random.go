package objecttest

import (
	"math"
	"math/rand/v2"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Fill gives a message random values that can be stored: the extremes of numbers, odd text, deep structures. It leaves
// out what jsonb cannot hold, which callers are refused: U+0000, NaN and the infinities in a google.protobuf.Struct, and
// the sign of a negative zero.
func Fill(r *rand.Rand, m proto.Message) { fill(r, m.ProtoReflect(), 0) }

// Disturb changes a little of a message, and most often deep within it: a key of a map, a field of a message in a map.
func Disturb(r *rand.Rand, m proto.Message) { disturb(r, m.ProtoReflect(), 0) }

func disturb(r *rand.Rand, m protoreflect.Message, depth int) {
	if strings.HasPrefix(string(m.Descriptor().FullName()), "google.protobuf.") {
		if proto.Reset(m.Interface()); m.Descriptor().FullName() != "google.protobuf.Any" {
			fill(r, m, depth)
		}
		return
	}
	other := m.New()
	fill(r, other, depth)
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case r.IntN(3) > 0:
		case f.IsMap() && m.Has(f) && r.IntN(8) > 0:
			disturbMap(r, m.Mutable(f).Map(), f.MapValue().Message() != nil, depth)
			if other.Has(f) {
				other.Get(f).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
					m.Mutable(f).Map().Set(k, v)
					return r.IntN(2) == 0
				})
			}
		case !f.IsMap() && !f.IsList() && f.Message() != nil && m.Has(f) && r.IntN(8) > 0:
			disturb(r, m.Mutable(f).Message(), depth+1)
		case other.Has(f):
			m.Set(f, other.Get(f))
		default:
			m.Clear(f)
		}
	}
}

func disturbMap(r *rand.Rand, m protoreflect.Map, messages bool, depth int) {
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		switch n := r.IntN(4); {
		case n == 0:
			m.Clear(k)
		case n == 1 && messages:
			disturb(r, v.Message(), depth+1)
		}
		return true
	})
}

// maxDepth is how deep messages nest.
const maxDepth = 5

func fill(r *rand.Rand, m protoreflect.Message, depth int) {
	switch w := m.Interface().(type) {
	case *timestamppb.Timestamp:
		w.Seconds, w.Nanos = r.Int64N(253402300799+62135596800)-62135596800, nanos(r)
		return
	case *durationpb.Duration:
		w.Seconds, w.Nanos = r.Int64N(315576000000), nanos(r)
		if r.IntN(2) == 0 {
			w.Seconds, w.Nanos = -w.Seconds, -w.Nanos
		}
		return
	case *structpb.Struct:
		proto.Merge(w, randomStruct(r, depth))
		return
	case *structpb.Value:
		proto.Merge(w, randomValue(r, depth))
		return
	case *structpb.ListValue:
		proto.Merge(w, randomList(r, depth))
		return
	case *anypb.Any, *fieldmaskpb.FieldMask:
		return // no state has one
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !mayFill(r, f, depth) {
			continue
		}
		switch {
		case f.IsMap():
			for range 1 + r.IntN(3) {
				v := m.Mutable(f).Map().NewValue()
				if f.MapValue().Message() != nil {
					fill(r, v.Message(), depth+1)
				} else {
					v = scalar(r, f.MapValue())
				}
				m.Mutable(f).Map().Set(scalar(r, f.MapKey()).MapKey(), v)
			}
		case f.IsList():
			for range 1 + r.IntN(3) {
				if f.Message() != nil {
					fill(r, m.Mutable(f).List().AppendMutable().Message(), depth+1)
				} else {
					m.Mutable(f).List().Append(scalar(r, f))
				}
			}
		case f.Message() != nil:
			fill(r, m.Mutable(f).Message(), depth+1)
		default:
			m.Set(f, scalar(r, f))
		}
	}
}

func mayFill(r *rand.Rand, f protoreflect.FieldDescriptor, depth int) bool {
	switch message := f.Message(); {
	case message == nil:
		return r.IntN(3) > 0
	case f.IsMap():
		return depth < maxDepth && r.IntN(2) == 0
	case message.FullName() == "google.protobuf.Any":
		return false // an empty one has no JSON
	default:
		return depth < maxDepth && r.IntN(2) == 0
	}
}

func scalar(r *rand.Rand, f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(r.IntN(2) == 0)
	case protoreflect.EnumKind:
		values := f.Enum().Values()
		if !f.Enum().IsClosed() && r.IntN(8) == 0 {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(r.Int32())) // a newer release's
		}
		return protoreflect.ValueOfEnum(values.Get(r.IntN(values.Len())).Number())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(pick(r, int32(math.MinInt32), math.MaxInt32, -1, 1, r.Int32()))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(pick(r, int64(math.MinInt64), math.MaxInt64, 1<<53+1, -1<<53-1, -1, r.Int64()))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(pick(r, uint32(math.MaxUint32), 1, r.Uint32()))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(pick(r, uint64(math.MaxUint64), 1<<53+1, r.Uint64()))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(pick(r, float32(math.MaxFloat32), math.SmallestNonzeroFloat32, 0.1, -1, r.Float32(), float32(math.Inf(1))))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(pick(r, number(r), math.Inf(1), math.Inf(-1)))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(text(r) + "\xff\x00"))
	default: // messages are not scalars
		return protoreflect.ValueOfString(text(r))
	}
}

func pick[V any](r *rand.Rand, of ...V) V { return of[r.IntN(len(of))] }

// number is finite.
func number(r *rand.Rand) float64 {
	return pick(r, math.MaxFloat64, -math.MaxFloat64, math.SmallestNonzeroFloat64, 0, 1, -1, 0.1, 1e21, 1e-7, 1<<53, 1<<53-1,
		math.Pi, math.Nextafter(1, 2), r.NormFloat64(), math.Trunc(r.NormFloat64()*1e6))
}

func nanos(r *rand.Rand) int32 { return pick(r, 0, 1, 999_999_999, 1000, 500_000_000, r.Int32N(1e9)) }

// text is one to three pieces that have made trouble somewhere.
func text(r *rand.Rand) string {
	var b strings.Builder
	for range 1 + r.IntN(3) {
		b.WriteString(pick(r,
			"word", " ", "", `"`, `\`, `\u0000`, `\\"`, "'", "\n", "\t", "\r\n", "\u0001", "\u001f", "\u007f", "\u0080", "é", "e\u0301",
			"中文", "\u2028", "\ufeff", "\ufffd", "\uffff", "😀", "\U0010ffff", "👩‍👩‍👧", "</script>", "%s", "$1", "{}", "[1]", "null", "true", "1e400", "__proto__",
			strings.Repeat("long ", 100)))
	}
	return b.String()
}

func randomStruct(r *rand.Rand, depth int) *structpb.Struct {
	s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for range r.IntN(4) {
		s.Fields[text(r)] = randomValue(r, depth+1)
	}
	return s
}

func randomList(r *rand.Rand, depth int) *structpb.ListValue {
	l := &structpb.ListValue{}
	for range r.IntN(4) {
		l.Values = append(l.Values, randomValue(r, depth+1))
	}
	return l
}

func randomValue(r *rand.Rand, depth int) *structpb.Value {
	kinds := 6
	if depth >= maxDepth {
		kinds = 4
	}
	switch r.IntN(kinds) {
	case 0:
		return structpb.NewNullValue()
	case 1:
		return structpb.NewBoolValue(r.IntN(2) == 0)
	case 2:
		return structpb.NewNumberValue(number(r))
	case 3:
		return structpb.NewStringValue(text(r))
	case 4:
		return structpb.NewStructValue(randomStruct(r, depth))
	default:
		return structpb.NewListValue(randomList(r, depth))
	}
}
