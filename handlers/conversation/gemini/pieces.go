package gemini

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// AddTo puts the piece at its place in a call's arguments. It returns false where there is none.
func (p *partialArg) AddTo(call *storev1.ToolCall) bool {
	path, ok := parsePath(p.Path.Whole())
	if !ok || call.GetArgsOmitted() != "" {
		return false
	}
	if call.GetArgs() == nil {
		call.Args = &structpb.Struct{}
	}
	root := structpb.NewStructValue(call.GetArgs())
	at := find(root, path)
	if at == nil {
		return false
	}
	switch {
	case p.String != nil:
		at.Kind = &structpb.Value_StringValue{StringValue: at.GetStringValue() + p.String.Whole()}
	case len(p.Number) > 0:
		v, err := ParseValue(bytes.Trim(p.Number, `"`))
		if err != nil {
			return false
		}
		at.Kind = v.Value.GetKind()
	case len(p.Bool) > 0:
		at.Kind = &structpb.Value_BoolValue{BoolValue: string(p.Bool) == "true"}
	default:
		at.Kind = &structpb.Value_NullValue{}
	}
	if raw, err := json.Marshal(call.GetArgs().AsMap()); err != nil || len(raw) > MaxObjectBytes {
		call.Args, call.ArgsOmitted = nil, "the pieces are over the limit of 65536 bytes"
		return false
	}
	return true
}

// parsePath reads a path such as $.a[0]['b'] as its names, and its indexes as text in brackets.
func parsePath(text string) (path []string, ok bool) {
	rest, ok := strings.CutPrefix(text, "$")
	if !ok || len(text) > maxURI {
		return nil, false
	}
	for rest != "" {
		name := ""
		switch {
		case strings.HasPrefix(rest, "."):
			end := strings.IndexAny(rest[1:], ".[")
			if end < 0 {
				end = len(rest) - 1
			}
			name, rest = rest[1:end+1], rest[end+1:]
		case strings.HasPrefix(rest, "['"), strings.HasPrefix(rest, `["`):
			var closed bool
			if name, rest, closed = strings.Cut(rest[2:], rest[1:2]+"]"); !closed {
				return nil, false
			}
		case strings.HasPrefix(rest, "["):
			end := strings.IndexByte(rest, ']')
			if end < 0 {
				return nil, false
			}
			name, rest = rest[:end+1], rest[end+1:]
		}
		if name == "" || len(path) >= MaxObjectDepth {
			return nil, false
		}
		path = append(path, name)
	}
	return path, len(path) > 0
}

// find is the value at a path, made where there is none; nil: the path does not fit what is there.
func find(at *structpb.Value, path []string) *structpb.Value {
	const maxElements = 1000
	for _, name := range path {
		if index, isIndex := strings.CutPrefix(name, "["); isIndex {
			i, err := strconv.Atoi(strings.TrimSuffix(index, "]"))
			if isNull(at) {
				at.Kind = &structpb.Value_ListValue{ListValue: &structpb.ListValue{}}
			}
			list := at.GetListValue()
			if err != nil || i < 0 || i >= maxElements || list == nil {
				return nil
			}
			for len(list.GetValues()) <= i {
				list.Values = append(list.Values, structpb.NewNullValue())
			}
			at = list.GetValues()[i]
			continue
		}
		if isNull(at) {
			at.Kind = &structpb.Value_StructValue{StructValue: &structpb.Struct{}}
		}
		object := at.GetStructValue()
		if object == nil {
			return nil
		}
		if object.GetFields() == nil {
			object.Fields = map[string]*structpb.Value{}
		}
		if object.GetFields()[name] == nil {
			object.Fields[name] = structpb.NewNullValue()
		}
		at = object.GetFields()[name]
	}
	return at
}

func isNull(v *structpb.Value) bool {
	_, null := v.GetKind().(*structpb.Value_NullValue)
	return null || v.GetKind() == nil
}
