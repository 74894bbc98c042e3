package rpc_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linearv1 "holdfast/gen/holdfast/linear/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
	linearstorev1 "holdfast/gen/holdfast/store/linear/v1"
	projectstorev1 "holdfast/gen/holdfast/store/project/v1"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// filled is a message with something in each field.
func filled[M proto.Message](m M) M {
	fill(m.ProtoReflect(), new(int))
	return m
}

func fill(m protoreflect.Message, n *int) {
	switch m.Descriptor().FullName() {
	case "google.protobuf.Struct":
		*n++
		m.Set(m.Descriptor().Fields().ByName("fields"), protoreflect.ValueOfMap(
			(&structpb.Struct{Fields: map[string]*structpb.Value{"k": structpb.NewNumberValue(float64(*n))}}).ProtoReflect().Get(m.Descriptor().Fields().ByName("fields")).Map()))
		return
	case "google.protobuf.Value":
		*n++
		m.Set(m.Descriptor().Fields().ByName("number_value"), protoreflect.ValueOfFloat64(float64(*n)))
		return
	}
	value := func(f protoreflect.FieldDescriptor, empty func() protoreflect.Value) protoreflect.Value {
		*n++
		switch f.Kind() {
		case protoreflect.StringKind:
			return protoreflect.ValueOfString(fmt.Sprint(*n))
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte{1})
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(2)
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(int32(*n))
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(int64(*n))
		case protoreflect.DoubleKind:
			return protoreflect.ValueOfFloat64(float64(*n))
		default:
			v := empty()
			fill(v.Message(), n)
			return v
		}
	}
	for i := range m.Descriptor().Fields().Len() {
		f := m.Descriptor().Fields().Get(i)
		switch {
		case f.IsList():
			l := m.Mutable(f).List()
			for range 2 {
				l.Append(value(f, l.NewElement))
			}
		case f.IsMap():
			values := m.Mutable(f).Map()
			for range 2 {
				key := value(f.MapKey(), nil).MapKey()
				values.Set(key, value(f.MapValue(), values.NewValue))
			}
		default:
			m.Set(f, value(f, func() protoreflect.Value { return m.NewField(f) }))
		}
	}
}

// What callers set is stored and shown again as it was: a field that is forgotten on either side is found here.
func TestWhatIsStoredIsShown(t *testing.T) {
	t.Parallel()
	info := object.Info{ID: "i", Owner: "ada", Version: 7, CreateTime: time.Unix(1, 0), UpdateTime: time.Unix(2, 0), ExpireTime: time.Unix(3, 0)}
	for _, tt := range []struct {
		shown, stored proto.Message
		// Only shown: made from something else. Only stored: nobody's concern.
		shownOnly, storedOnly []protoreflect.Name
	}{
		{&projectv1.Project{}, &projectstorev1.ProjectState{}, []protoreflect.Name{"archived"}, nil},
		{&projectv1.Task{}, &projectstorev1.TaskState{}, nil, []protoreflect.Name{"transition_count"}},
		{&projectv1.TaskTransition{}, &projectstorev1.TaskTransition{}, nil, nil},
		{&projectv1.Preferences{}, &projectstorev1.PreferencesState{}, []protoreflect.Name{"version"}, nil},
		{&linearv1.Issue{}, &linearstorev1.IssueState{}, []protoreflect.Name{"payload"}, []protoreflect.Name{"stamp", "endpoint_id", "delivery_id"}},
		{&linearv1.IssuePayload{}, &linearstorev1.IssuePayload{}, nil, nil},
		{&linearv1.IssueChange{}, &linearstorev1.IssueChange{}, nil, nil},
		{&linearv1.Comment{}, &linearstorev1.CommentState{}, nil, []protoreflect.Name{"remove_time", "stamp"}},
		{&linearv1.Attachment{}, &linearstorev1.AttachmentState{}, nil, []protoreflect.Name{"remove_time", "stamp"}},
		{&linearv1.AgentSession{}, &linearstorev1.AgentSessionState{}, nil, []protoreflect.Name{"remove_time", "stamp"}},
		{&linearv1.AgentActivity{}, &linearstorev1.AgentActivity{}, nil, nil},
		{&linearv1.SyncListStatus{}, &linearstorev1.SyncList{}, nil, []protoreflect.Name{"pass"}},
		{&linearv1.Endpoint{}, &linearstorev1.EndpointState{}, []protoreflect.Name{"path", "sync"}, nil},
		{&linearv1.SyncStatus{}, &linearstorev1.SyncState{}, []protoreflect.Name{"running"}, []protoreflect.Name{"pass", "run_until_time", "limited", "key_id", "team_ids", "sweep_time"}},
	} {
		name := tt.shown.ProtoReflect().Descriptor().FullName()
		head := tt.shown.ProtoReflect().Descriptor().Fields().ByName("owner") != nil
		want := filled(tt.shown)
		rpc.Copy(tt.stored, want)
		got := want.ProtoReflect().New().Interface()
		if head {
			rpc.Present(got, info, tt.stored)
		} else {
			rpc.Copy(got, tt.stored)
		}
		for i := range want.ProtoReflect().Descriptor().Fields().Len() {
			f := want.ProtoReflect().Descriptor().Fields().Get(i)
			if slices.Contains(tt.shownOnly, f.Name()) || head && f.Number() <= 6 {
				want.ProtoReflect().Clear(f)
			}
		}
		if head {
			want.ProtoReflect().Set(want.ProtoReflect().Descriptor().Fields().ByNumber(1), protoreflect.ValueOfString("i"))
			rest := want.ProtoReflect()
			for number, v := range map[protoreflect.FieldNumber]protoreflect.Value{
				2: protoreflect.ValueOfString("ada"), 3: protoreflect.ValueOfInt64(7), 4: protoreflect.ValueOfMessage(timestamppb.New(info.CreateTime).ProtoReflect()),
				5: protoreflect.ValueOfMessage(timestamppb.New(info.UpdateTime).ProtoReflect()), 6: protoreflect.ValueOfMessage(timestamppb.New(info.ExpireTime).ProtoReflect()),
			} {
				rest.Set(rest.Descriptor().Fields().ByNumber(number), v)
			}
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-set +shown):\n%s", name, diff)
		}
		fields := tt.stored.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if !tt.stored.ProtoReflect().Has(f) && !slices.Contains(tt.storedOnly, f.Name()) {
				t.Errorf("%s: what is stored in %s is not shown", name, f.Name())
			}
		}
	}
}

func TestSetClearsWhatIsNotThere(t *testing.T) {
	t.Parallel()
	s := &projectstorev1.ProjectState{Title: "t", Description: "d", Labels: map[string]string{"a": "b"}}
	rpc.Set(s, &projectv1.Project{Title: "u"}, "title", "labels", "archived")
	if diff := cmp.Diff(&projectstorev1.ProjectState{Title: "u", Description: "d"}, s, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}
