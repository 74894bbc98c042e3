package handlers

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/handlers/problem"
)

// maxNesting bounds how deep a google.protobuf.Struct may nest: deeper JSON exhausts Postgres's stack, or a reader's.
const maxNesting = 64

// checkStorable refuses what jsonb cannot hold, by the path of the field: U+0000 in any text, and in a
// google.protobuf.Struct also NaN, the infinities and nesting deeper than maxNesting. protovalidate cannot say it
// of every field at once, and Postgres would say it of a whole batch.
//
// It runs on every request, so it visits only set fields that can hold text.
func checkStorable(m proto.Message) error {
	if f := walk(m.ProtoReflect()); f != nil {
		return problem.InvalidArgument(f.path(), f.said)
	}
	return nil
}

// flaw describes what is wrong with a value. Its path is built on the way out, so that a good value costs nothing.
type flaw struct {
	said  string
	steps []string // innermost first
}

func (f *flaw) in(step string) *flaw {
	f.steps = append(f.steps, step)
	return f
}

func (f *flaw) at(i int) *flaw          { return f.in("[" + strconv.Itoa(i) + "]") }
func (f *flaw) of(key string) *flaw     { return f.in("[" + strconv.Quote(key) + "]") }
func (f *flaw) field(name string) *flaw { return f.in("." + name) }

func (f *flaw) path() string {
	var b strings.Builder
	for _, step := range slices.Backward(f.steps) {
		b.WriteString(step)
	}
	return strings.TrimPrefix(b.String(), ".")
}

func checkText(s string) *flaw {
	if strings.IndexByte(s, 0) >= 0 {
		return &flaw{said: "must not hold the character U+0000"}
	}
	return nil
}

func walk(m protoreflect.Message) *flaw {
	switch v := m.Interface().(type) {
	case *structpb.Struct:
		return walkStruct(v, 1)
	case *structpb.ListValue:
		return walkList(v, 1)
	case *structpb.Value:
		return walkValue(v, 1)
	default:
		for _, fd := range textFields(m.Descriptor()) {
			if !m.Has(fd) {
				continue
			}
			if f := walkField(fd, m.Get(fd)); f != nil {
				return f.field(string(fd.Name()))
			}
		}
		return nil
	}
}

func walkField(fd protoreflect.FieldDescriptor, v protoreflect.Value) *flaw {
	switch {
	case fd.IsMap():
		return walkMap(fd, v.Map())
	case fd.IsList():
		for i, l := 0, v.List(); i < l.Len(); i++ {
			if f := walkSingle(fd, l.Get(i)); f != nil {
				return f.at(i)
			}
		}
		return nil
	}
	return walkSingle(fd, v)
}

func walkMap(fd protoreflect.FieldDescriptor, m protoreflect.Map) (found *flaw) {
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if fd.MapKey().Kind() == protoreflect.StringKind {
			found = checkText(k.String())
		}
		if found == nil {
			found = walkSingle(fd.MapValue(), v)
		}
		if found != nil {
			found.of(k.String())
		}
		return found == nil
	})
	return found
}

func walkSingle(fd protoreflect.FieldDescriptor, v protoreflect.Value) *flaw {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return checkText(v.String())
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return walk(v.Message())
	default:
		return nil
	}
}

func walkStruct(s *structpb.Struct, depth int) *flaw {
	if depth > maxNesting {
		return tooDeep()
	}
	for k, v := range s.GetFields() {
		f := checkText(k)
		if f == nil {
			f = walkValue(v, depth+1)
		}
		if f != nil {
			return f.of(k)
		}
	}
	return nil
}

func walkList(l *structpb.ListValue, depth int) *flaw {
	if depth > maxNesting {
		return tooDeep()
	}
	for i, v := range l.GetValues() {
		if f := walkValue(v, depth+1); f != nil {
			return f.at(i)
		}
	}
	return nil
}

// walkValue looks at a value that would be at depth if it is a list or an object.
func walkValue(v *structpb.Value, depth int) *flaw {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return checkText(k.StringValue)
	case *structpb.Value_NumberValue:
		if math.IsNaN(k.NumberValue) || math.IsInf(k.NumberValue, 0) {
			return &flaw{said: "must be a finite number: JSON has no other"}
		}
	case *structpb.Value_StructValue:
		return walkStruct(k.StructValue, depth)
	case *structpb.Value_ListValue:
		return walkList(k.ListValue, depth)
	case nil:
		return &flaw{said: "must have a value; null is one"}
	default: // true, false and null
	}
	return nil
}

func tooDeep() *flaw { return &flaw{said: fmt.Sprintf("nests deeper than %d levels", maxNesting)} }

// textFieldsOf caches textFields by message descriptor. Descriptors are as many as the schema has.
var textFieldsOf sync.Map

// textFields are the fields of a message that hold text, themselves or further in.
func textFields(md protoreflect.MessageDescriptor) []protoreflect.FieldDescriptor {
	if known, ok := textFieldsOf.Load(md); ok {
		fields, _ := known.([]protoreflect.FieldDescriptor)
		return fields
	}
	var fields []protoreflect.FieldDescriptor
	for i, all := 0, md.Fields(); i < all.Len(); i++ {
		if fd := all.Get(i); holdsText(fd, map[protoreflect.FullName]bool{}) {
			fields = append(fields, fd)
		}
	}
	textFieldsOf.Store(md, fields)
	return fields
}

// holdsText reports whether text can be reached from a field. seen keeps a recursive type from being walked twice.
func holdsText(fd protoreflect.FieldDescriptor, seen map[protoreflect.FullName]bool) bool {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return true
	case protoreflect.MessageKind, protoreflect.GroupKind: // a map is a message of a key and a value
		md := fd.Message()
		if seen[md.FullName()] {
			return false
		}
		seen[md.FullName()] = true
		for i, all := 0, md.Fields(); i < all.Len(); i++ {
			if holdsText(all.Get(i), seen) {
				return true
			}
		}
		return false
	default:
		return false
	}
}
