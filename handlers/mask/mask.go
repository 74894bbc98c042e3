// Package mask makes the changes that update requests ask for, by the rules of AIP-134 and, for what has keys, of RFC 7396. It is a
// leaf.
package mask

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/handlers/problem"
)

// Merge changes dst as an update with src asks. mutable names the fields that an update may change.
//
// Without a mask the mutable fields that are set in src are set in dst, and what has keys merges by key: an empty value in a map of
// strings, and a null in a Struct, removes its key. Other fields of src are ignored, so that what was read can be sent back. What a
// mask names is replaced, or cleared where src does not have it: a field, a field of a message, a key of a map or a Struct
// ("labels.team", where the key is all that follows the dot). "*" names all mutable fields.
//
// It returns a problem with a violation of update_mask for a path that is not there or not mutable; dst is unchanged then.
func Merge[M proto.Message](dst, src M, m *fieldmaskpb.FieldMask, mutable ...string) error {
	to, from := dst.ProtoReflect(), src.ProtoReflect()
	fields := to.Descriptor().Fields()
	if len(m.GetPaths()) == 0 {
		for _, name := range mutable {
			if f := fields.ByName(protoreflect.Name(name)); from.Has(f) {
				merge(to, from, f)
			}
		}
		return nil
	}
	var paths [][]string
	for _, path := range m.GetPaths() {
		if path == "*" {
			for _, name := range mutable {
				paths = append(paths, []string{name})
			}
			continue
		}
		steps, ok := resolve(to.Descriptor(), path)
		if !ok || !slices.Contains(mutable, steps[0]) {
			return problem.InvalidArgument("update_mask", fmt.Sprintf("has the path %q, which an update cannot change; it can change %s",
				path, strings.Join(mutable, ", ")))
		}
		paths = append(paths, steps)
	}
	for _, steps := range paths {
		replace(to, from, steps)
	}
	return nil
}

// resolve splits a path into the names of fields, as the proto spells them, and a last step that may be a key.
func resolve(d protoreflect.MessageDescriptor, path string) (steps []string, ok bool) {
	name, rest, more := strings.Cut(path, ".")
	f := d.Fields().ByName(protoreflect.Name(name))
	if f == nil {
		f = d.Fields().ByJSONName(name)
	}
	switch {
	case f == nil || more && rest == "":
		return nil, false
	case !more:
		return []string{string(f.Name())}, true
	case f.IsMap() && f.MapKey().Kind() == protoreflect.StringKind:
		return []string{string(f.Name()), rest}, true
	case f.IsList() || f.IsMap() || f.Message() == nil:
		return nil, false
	case isStruct(f.Message()):
		return append([]string{string(f.Name())}, strings.Split(rest, ".")...), true
	case isWhole(f.Message()):
		return nil, false
	}
	if steps, ok = resolve(f.Message(), rest); !ok {
		return nil, false
	}
	return append([]string{string(f.Name())}, steps...), true
}

func isStruct(d protoreflect.MessageDescriptor) bool { return d.FullName() == "google.protobuf.Struct" }

// isWhole: a message that is one value, such as a time.
func isWhole(d protoreflect.MessageDescriptor) bool {
	return d.FullName().Parent() == "google.protobuf"
}

// merge sets a field that from has.
func merge(to, from protoreflect.Message, f protoreflect.FieldDescriptor) {
	switch {
	case f.IsMap():
		values := to.Mutable(f).Map()
		from.Get(f).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			if f.MapValue().Kind() == protoreflect.StringKind && v.String() == "" {
				values.Clear(k)
			} else {
				values.Set(k, v)
			}
			return true
		})
	case f.IsList() || f.Message() == nil || !to.Has(f) && !isStruct(f.Message()) || isWhole(f.Message()) && !isStruct(f.Message()):
		to.Set(f, from.Get(f))
	case isStruct(f.Message()):
		was, _ := to.Get(f).Message().Interface().(*structpb.Struct)
		patch, _ := from.Get(f).Message().Interface().(*structpb.Struct)
		to.Set(f, protoreflect.ValueOfMessage(patched(was, patch).ProtoReflect()))
	default:
		into, part := to.Mutable(f).Message(), from.Get(f).Message()
		part.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			merge(into, part, f)
			return true
		})
	}
}

// patched is a Struct after a merge patch (RFC 7396). Neither argument changes.
func patched(was, patch *structpb.Struct) *structpb.Struct {
	out := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(was.GetFields()))}
	maps.Copy(out.Fields, was.GetFields())
	for k, v := range patch.GetFields() {
		switch v.GetKind().(type) {
		case *structpb.Value_NullValue, nil:
			delete(out.Fields, k)
		case *structpb.Value_StructValue:
			out.Fields[k] = structpb.NewStructValue(patched(out.Fields[k].GetStructValue(), v.GetStructValue()))
		default:
			out.Fields[k] = v
		}
	}
	return out
}

// replace sets what a path names to what it is in from, or clears it.
func replace(to, from protoreflect.Message, steps []string) {
	f := to.Descriptor().Fields().ByName(protoreflect.Name(steps[0]))
	switch {
	case len(steps) == 1 && from.Has(f):
		to.Set(f, from.Get(f))
	case len(steps) == 1:
		to.Clear(f)
	case f.IsMap():
		key := protoreflect.ValueOfString(steps[1]).MapKey()
		if v := from.Get(f).Map().Get(key); v.IsValid() {
			to.Mutable(f).Map().Set(key, v)
		} else {
			to.Mutable(f).Map().Clear(key)
		}
	case isStruct(f.Message()):
		was, _ := to.Get(f).Message().Interface().(*structpb.Struct)
		with, _ := from.Get(f).Message().Interface().(*structpb.Struct)
		to.Set(f, protoreflect.ValueOfMessage(withKey(was, with, steps[1:]).ProtoReflect()))
	case from.Has(f) || to.Has(f):
		replace(to.Mutable(f).Message(), from.Get(f).Message(), steps[1:])
	}
}

// withKey is was with what the keys lead to in with, or without it.
func withKey(was, with *structpb.Struct, keys []string) *structpb.Struct {
	out := patched(was, nil)
	v, found := with.GetFields()[keys[0]]
	switch {
	case len(keys) > 1 && (found || was.GetFields()[keys[0]] != nil):
		out.Fields[keys[0]] = structpb.NewStructValue(withKey(was.GetFields()[keys[0]].GetStructValue(), v.GetStructValue(), keys[1:]))
	case len(keys) == 1 && found:
		out.Fields[keys[0]] = v
	default:
		delete(out.Fields, keys[0])
	}
	return out
}
