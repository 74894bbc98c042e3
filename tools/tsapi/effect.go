package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// effect has the schemas of what an area's calls answer, for @holdfast/effect. Each refers to others by functions, because files refer to each
// other in circles.
func (a *api) effect(of string) string {
	var b strings.Builder
	others := map[string]bool{}
	ref := func(d protoreflect.Descriptor) string {
		if area(d) == of {
			return name(d)
		}
		others[area(d)] = true
		return area(d) + "." + name(d)
	}
	export := func(d protoreflect.Descriptor) {
		doc(&b, "\n", comment(d))
		fmt.Fprintf(&b, "export const %s: s.Of<client.%s.%s> = ", name(d), of, name(d))
	}
	for _, m := range sorted(a.outputs) {
		if area(m) != of {
			continue
		}
		export(m)
		b.WriteString("s.message({\n")
		for _, f := range fields(m) {
			fmt.Fprintf(&b, "  %s: %s,\n", f.JSONName(), effectField(f, ref))
		}
		b.WriteString("});\n")
	}
	for _, e := range sorted(a.enums) {
		if area(e) != of || e.FullName() == reasons {
			continue
		}
		export(e)
		b.WriteString("s.word(")
		for i := range e.Values().Len() {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%q", strings.ToLower(strings.TrimPrefix(string(e.Values().Get(i).Name()), prefix(e))))
		}
		b.WriteString(");\n")
	}
	var head strings.Builder
	head.WriteString(header)
	head.WriteString("import type * as client from \"@holdfast/client\";\nimport * as s from \"../schema.ts\";\n")
	for _, o := range slices.Sorted(maps.Keys(others)) {
		fmt.Fprintf(&head, "import * as %s from \"./%s.ts\";\n", o, o)
	}
	return head.String() + b.String()
}

var effectKnown = map[string]string{
	"Timestamp": "s.timestamp", "Duration": "s.duration", "FieldMask": "s.text", "JsonObject": "s.jsonObject", "Json": "s.json", "Json[]": "s.list(s.json)",
}

func effectField(f protoreflect.FieldDescriptor, ref func(protoreflect.Descriptor) string) string {
	var t string
	switch v := value(f); v.Kind() {
	case protoreflect.StringKind, protoreflect.BytesKind:
		t = "s.text"
	case protoreflect.BoolKind:
		t = "s.bool"
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		t = "s.number"
	case protoreflect.EnumKind:
		t = "s.ref(() => " + ref(v.Enum()) + ")"
	case protoreflect.MessageKind, protoreflect.GroupKind:
		if known, ok := wellKnown[v.Message().FullName()]; ok {
			t = effectKnown[known]
		} else {
			t = "s.ref(() => " + ref(v.Message()) + ")"
		}
	default:
		t = "s.integer"
	}
	switch {
	case f.IsMap():
		return "s.map(" + t + ")"
	case f.IsList():
		return "s.list(" + t + ")"
	case f.HasPresence() || f.Message() != nil:
		return "s.maybe(" + t + ")"
	}
	return t
}

// answers finds the schema of each message that a call answers.
func (a *api) answers() string {
	areas := map[string]bool{}
	var lines strings.Builder
	for _, s := range a.services {
		for _, m := range methods(s) {
			areas[area(m.Output())] = true
			fmt.Fprintf(&lines, "  %q: %s,\n", key(m.Output()), key(m.Output()))
		}
	}
	var b strings.Builder
	b.WriteString(header)
	b.WriteString("import type { Of } from \"../schema.ts\";\n")
	for _, area := range slices.Sorted(maps.Keys(areas)) {
		fmt.Fprintf(&b, "import * as %s from \"./%s.ts\";\n", area, area)
	}
	b.WriteString("\nexport const answers: { readonly [message: string]: Of<unknown> } = {\n" + lines.String() + "};\n")
	return b.String()
}
