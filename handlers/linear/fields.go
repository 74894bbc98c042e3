package linear

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/linear/v1"
)

// property is what Linear calls a field that is stored; most have the same name in lower camel case.
func property(f protoreflect.FieldDescriptor) string {
	switch f.Name() {
	case "linear_create_time":
		return "createdAt"
	case "linear_update_time":
		return "updatedAt"
	case "start_time":
		return "startedAt"
	case "complete_time":
		return "completedAt"
	case "cancel_time":
		return "canceledAt"
	case "archive_time":
		return "archivedAt"
	case "edit_time":
		return "editedAt"
	case "resolve_time":
		return "resolvedAt"
	case "end_time":
		return "endedAt"
	case "bot":
		return "botActor"
	case "milestone":
		return "projectMilestone"
	case "stamp", "remove_time", "delivery_id", "endpoint_id", "refetch", "refetch_time", "refetch_count", "unseen": // the server's own
		return ""
	}
	if strings.HasSuffix(string(f.Name()), "_cut") {
		return ""
	}
	return f.JSONName()
}

// required are the fields that Linear always has: null, or nothing, says nothing of them.
func required(name protoreflect.Name) bool {
	switch name {
	case "identifier", "url", "title", "state", "team", "linear_create_time", "linear_update_time", "priority", "issue_id", "status", "type":
		return true
	}
	return false
}

// longest is how many characters of a text are kept.
func longest(name protoreflect.Name) int {
	switch name {
	case "identifier":
		return maxIdentifier
	case "due_date":
		return len("2026-11-30")
	case "body", "prompt_context", "result", "parameter":
		return maxBody
	}
	return maxDescription
}

const (
	maxDescription = 2000     // characters of a description that are kept beside the payload
	maxBody        = 32 << 10 // characters of a comment
	maxMetadata    = 32 << 10 // bytes of what an attachment's source says
	maxIdentifier  = 64       // characters, of a team's key and a number
	maxIdentifiers = 32       // earlier ones, of which the newest are kept
	maxName        = 256      // characters of a name
	maxListed      = 50       // things in a list, but for labels
	maxLabels      = 256
)

// readFields sets the fields of a message that is stored to what Linear says, and names those of which it says something: an absent
// property is none, and neither is one of a wrong type, or null where Linear's schema has none. Webhooks have ids as well as the things
// themselves (`stateId` and `state`), the API has the things.
func readFields(to proto.Message, f map[string]*structpb.Value) (named []string) {
	m := to.ProtoReflect()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		d := fields.Get(i)
		name := property(d)
		v, says := readField(m, d, name, f)
		if !says {
			continue
		}
		named = append(named, string(d.Name()))
		if v.IsValid() {
			m.Set(d, v)
		}
		if isCut := fields.ByName(d.Name() + "_cut"); isCut != nil {
			_, long := cut(text(f, name), longest(d.Name()))
			m.Set(isCut, protoreflect.ValueOfBool(long))
			named = append(named, string(isCut.Name()))
		}
	}
	slices.Sort(named)
	return named
}

// readField is what a property says of a field; invalid: that there is none.
func readField(m protoreflect.Message, d protoreflect.FieldDescriptor, name string, f map[string]*structpb.Value) (v protoreflect.Value, says bool) {
	is := shapeOf(f[name])
	none := is == aNull && !required(d.Name())
	switch {
	case name == "" || d.IsList():
		return v, false
	case d.Kind() == protoreflect.StringKind:
		s := text(f, name)
		if is == aThing { // a bot has a name in webhooks, and more in the API
			s = nameOf(inner(f, name))
		}
		if base, ok := strings.CutSuffix(name, "Id"); ok && s == "" { // the API has the thing
			s = text(inner(f, base), "id")
			none = none || shapeOf(f[base]) == aNull && !required(d.Name())
		}
		if strings.HasSuffix(name, "Id") && s != "" && !isID(s) || s == "" && required(d.Name()) {
			return v, false
		}
		s, _ = cut(s, longest(d.Name()))
		return protoreflect.ValueOfString(s), s != "" || is == aText || none
	case d.Kind() == protoreflect.BoolKind:
		return protoreflect.ValueOfBool(f[name].GetBoolValue()), is == aBool || none
	case d.Kind() == protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(number(f, name))), is == aNumber || none
	case d.Kind() == protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(number(f, name)), is == aNumber || none
	case d.Kind() != protoreflect.MessageKind:
		return v, false
	}
	var thing proto.Message
	switch m.NewField(d).Message().Interface().(type) {
	case *timestamppb.Timestamp:
		if at := moment(f, name); at != nil {
			thing = at
		}
	case *structpb.Struct:
		if kept := storable(f[name], 2); is == aThing && proto.Size(kept) <= maxMetadata {
			thing = kept.GetStructValue()
		} else if is == aThing {
			none = true
		}
	case *structpb.Value:
		if kept := storable(f[name], 2); is > aNull && proto.Size(kept) <= maxMetadata {
			thing = kept
		}
	case *storev1.Ref:
		none = none || shapeOf(f[name+"Id"]) == aNull
		if r := reference(f, name); r != nil {
			thing = r
		}
	case *storev1.WorkflowState:
		if r := reference(f, name); r != nil || text(inner(f, name), "type") != "" {
			thing = &storev1.WorkflowState{Id: r.GetId(), Name: r.GetName(), Type: text(inner(f, name), "type"), Color: color(inner(f, name))}
		}
	case *storev1.Team:
		if r := reference(f, name); r != nil {
			thing = &storev1.Team{Id: r.GetId(), Name: r.GetName(), Key: text(inner(f, name), "key")}
		}
	}
	if thing == nil {
		return v, none
	}
	return protoreflect.ValueOfMessage(thing.ProtoReflect()), true
}

// shape is what a property holds.
type shape int

const (
	absent shape = iota
	aNull
	aBool
	aNumber
	aText
	aList
	aThing
)

func shapeOf(v *structpb.Value) shape {
	switch v.GetKind().(type) {
	case *structpb.Value_NullValue:
		return aNull
	case *structpb.Value_BoolValue:
		return aBool
	case *structpb.Value_NumberValue:
		return aNumber
	case *structpb.Value_StringValue:
		return aText
	case *structpb.Value_ListValue:
		return aList
	case *structpb.Value_StructValue:
		return aThing
	default:
		return absent
	}
}

func text(f map[string]*structpb.Value, name string) string {
	return strings.ReplaceAll(f[name].GetStringValue(), "\x00", "")
}

// number is 0 for what is none, and for what no field could hold.
func number(f map[string]*structpb.Value, name string) float64 {
	if n := f[name].GetNumberValue(); math.Abs(n) < 1<<31 {
		return n
	}
	return 0
}

func inner(f map[string]*structpb.Value, name string) map[string]*structpb.Value {
	return f[name].GetStructValue().GetFields()
}

func color(f map[string]*structpb.Value) string {
	c, _ := cut(text(f, "color"), 32)
	return c
}

// reference names a thing, by its own property or by the thing's; nil: there is none. A cycle may have only a number, and an issue is
// known by its identifier.
func reference(f map[string]*structpb.Value, name string) *storev1.Ref {
	r := &storev1.Ref{Id: cmp.Or(text(f, name+"Id"), text(inner(f, name), "id")), Name: nameOf(inner(f, name))}
	if !isID(r.GetId()) {
		return nil
	}
	return r
}

// nameOf is what people call a thing.
func nameOf(thing map[string]*structpb.Value) string {
	name := cmp.Or(text(thing, "name"), text(thing, "identifier"), text(thing, "displayName"))
	if n := number(thing, "number"); name == "" && n > 0 {
		name = strconv.Itoa(int(n))
	}
	name, _ = cut(name, maxName)
	return name
}

// things are the elements of a list; the API has lists as connections.
func things(f map[string]*structpb.Value, name string) []*structpb.Value {
	if list := f[name].GetListValue(); list != nil {
		return list.GetValues()
	}
	return inner(f, name)["nodes"].GetListValue().GetValues()
}

// isThings reports whether a property is a list, as a webhook or as the API has it.
func isThings(f map[string]*structpb.Value, name string) bool {
	return shapeOf(f[name]) == aList || shapeOf(inner(f, name)["nodes"]) == aList
}

func texts(f map[string]*structpb.Value, name string) (out []string) {
	for _, v := range f[name].GetListValue().GetValues() {
		if s := strings.ReplaceAll(v.GetStringValue(), "\x00", ""); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// moment is nil for what is no time of this era.
func moment(f map[string]*structpb.Value, name string) *timestamppb.Timestamp {
	t, err := time.Parse(time.RFC3339Nano, f[name].GetStringValue())
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return nil
	}
	return timestamppb.New(t)
}

// cut shortens a text to n characters and reports whether it was longer.
func cut(s string, n int) (string, bool) {
	if len(s) <= n || utf8.RuneCountInString(s) <= n {
		return s, false
	}
	for i := range s {
		if n == 0 {
			return s[:i], true
		}
		n--
	}
	return s, false
}
