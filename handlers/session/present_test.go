package session

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "holdfast/gen/holdfast/session/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/object"
)

// filled is a message that has all of its fields.
func filled[M proto.Message](m M) M {
	fill(m.ProtoReflect())
	return m
}

func fill(m protoreflect.Message) {
	switch known := m.Interface().(type) {
	case *timestamppb.Timestamp:
		known.Seconds = 1_900_000_000
		return
	case *durationpb.Duration:
		known.Seconds = 60
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			values := m.Mutable(f).Map()
			v := protoreflect.ValueOfString("text")
			if f.MapValue().Message() != nil {
				v = values.NewValue()
				fill(v.Message())
			}
			values.Set(protoreflect.ValueOfString("text").MapKey(), v)
		case f.IsList():
			m.Mutable(f).List().Append(protoreflect.ValueOfString("text")) // there are none of anything else
		case f.Message() != nil:
			fill(m.Mutable(f).Message())
		default:
			m.Set(f, map[protoreflect.Kind]protoreflect.Value{
				protoreflect.StringKind: protoreflect.ValueOfString("text"), protoreflect.BytesKind: protoreflect.ValueOfBytes([]byte("bytes")),
				protoreflect.BoolKind: protoreflect.ValueOfBool(true), protoreflect.EnumKind: protoreflect.ValueOfEnum(1),
				protoreflect.Int32Kind: protoreflect.ValueOfInt32(7), protoreflect.Int64Kind: protoreflect.ValueOfInt64(7),
			}[f.Kind()])
		}
	}
}

// No field is forgotten on the way from what is stored to what callers see.
func TestAllThatIsStoredIsShown(t *testing.T) {
	t.Parallel()
	set := filled(&storev1.SessionSettings{})
	same(t, "the settings, there and back", storedSettings(presentSettings(set)), set)
	s := filled(&storev1.UserSessions{})
	b := &book{s: s, now: time.Unix(1_900_000_000, 0).Add(-time.Minute)}
	for _, m := range []struct {
		shown  proto.Message
		except protoreflect.Name
	}{
		{presentSettings(set), ""},
		{device(filled(&storev1.Device{})), ""},
		{device(keptDevice(filled(&typev1.Device{}), defaults())), ""},
		{connection(filled(&storev1.Connection{})), "expires_in"}, // which only PutConnection says
		{securityEvent(filled(&storev1.SecurityEvent{})), ""},
		{b.presence(), ""},
		{b.present("text", "text", object.Info{Version: 1, UpdateTime: b.now}), "ends_soon"}, // it has ended
	} {
		got := m.shown.ProtoReflect()
		fields := got.Descriptor().Fields()
		for i := range fields.Len() {
			if f := fields.Get(i); !got.Has(f) && f.Name() != m.except {
				t.Errorf("%s is not set", f.FullName())
			}
		}
	}
}

// Enums are converted by their numbers.
func TestEnumsAreStoredAsTheyAreCalled(t *testing.T) {
	t.Parallel()
	for _, pair := range [][2]protoreflect.EnumDescriptor{
		{storev1.EndReason(0).Descriptor(), sessionv1.EndReason(0).Descriptor()},
		{storev1.SecurityEventType(0).Descriptor(), sessionv1.SecurityEventType(0).Descriptor()},
		{storev1.SessionLimitPolicy(0).Descriptor(), sessionv1.SessionLimitPolicy(0).Descriptor()},
		{storev1.Modality(0).Descriptor(), typev1.Modality(0).Descriptor()},
	} {
		stored, asked := pair[0].Values(), pair[1].Values()
		if stored.Len() != asked.Len() {
			t.Errorf("%s has %d values, %s %d", pair[0].FullName(), stored.Len(), pair[1].FullName(), asked.Len())
		}
		for i := range stored.Len() {
			if v := asked.ByNumber(stored.Get(i).Number()); v == nil || v.Name() != stored.Get(i).Name() {
				t.Errorf("%s has %s, %s has %v", pair[0].FullName(), stored.Get(i).Name(), pair[1].FullName(), v)
			}
		}
	}
}
