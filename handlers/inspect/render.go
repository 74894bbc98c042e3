package inspect

import (
	"encoding/json"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/structpb"

	inspectv1 "holdfast/gen/holdfast/inspect/v1"
)

// redacted stands for the value of a field that its message marks with debug_redact.
const redacted = "[REDACTED]"

// render is a stored message as it is shown: its JSON with the field names of its proto, without secrets. nil is nil.
func render(m proto.Message) (*structpb.Struct, error) {
	fields, err := shown(m)
	if err != nil || fields == nil {
		return nil, err
	}
	return structpb.NewStruct(fields)
}

func shown(m proto.Message) (map[string]any, error) {
	if m == nil {
		return nil, nil
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, err
	}
	redact(m.ProtoReflect().Descriptor(), fields)
	return fields, nil
}

// redact overwrites what must not be shown, however deep it lies.
func redact(md protoreflect.MessageDescriptor, fields map[string]any) {
	if strings.HasPrefix(string(md.FullName()), "google.protobuf.") {
		return // their JSON has no fields
	}
	for i := range md.Fields().Len() {
		f := md.Fields().Get(i)
		name := string(f.Name())
		value, ok := fields[name]
		if !ok {
			continue
		}
		if o, _ := f.Options().(*descriptorpb.FieldOptions); o.GetDebugRedact() {
			fields[name] = redacted
			continue
		}
		inner := f.Message()
		if f.IsMap() {
			inner = f.MapValue().Message()
		}
		if inner != nil {
			redactAll(inner, value, f.IsMap())
		}
	}
}

// redactAll does so in the values of a field.
func redactAll(md protoreflect.MessageDescriptor, value any, isMap bool) {
	switch v := value.(type) {
	case []any:
		for _, e := range v {
			redactAll(md, e, false)
		}
	case map[string]any:
		if !isMap {
			redact(md, v)
			return
		}
		for _, e := range v {
			redactAll(md, e, false)
		}
	}
}

// fieldDifferences are the top-level fields in which two states differ, in the order of the message. A nil state has
// none set. A secret that differs is shown to differ, and not how.
func fieldDifferences(before, after proto.Message) (out []*inspectv1.FieldDifference, err error) {
	was, err := shown(before)
	if err != nil {
		return nil, err
	}
	is, err := shown(after)
	if err != nil {
		return nil, err
	}
	either := before
	if either == nil {
		either = after
	}
	if either == nil {
		return nil, nil
	}
	fields := either.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if same(f, before, after) {
			continue
		}
		d := &inspectv1.FieldDifference{Field: string(f.Name())}
		if v, ok := was[d.GetField()]; ok {
			if d.Before, err = structpb.NewValue(v); err != nil {
				return nil, err
			}
		}
		if v, ok := is[d.GetField()]; ok {
			if d.After, err = structpb.NewValue(v); err != nil {
				return nil, err
			}
		}
		out = append(out, d)
	}
	return out, nil
}

func same(f protoreflect.FieldDescriptor, before, after proto.Message) bool {
	had, has := before != nil && before.ProtoReflect().Has(f), after != nil && after.ProtoReflect().Has(f)
	return had == has && (!had || before.ProtoReflect().Get(f).Equal(after.ProtoReflect().Get(f)))
}
