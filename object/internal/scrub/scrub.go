// Package scrub takes a user out of stored JSON: states, entries, and the notes of what changes replaced. It is pure.
package scrub

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"

	"holdfast/db"
)

// Scrubber takes one user out of what objects of one kind hold.
type Scrubber struct {
	Mention   db.Mention
	Pseudonym string // takes the place of the user's id
	// Personal is the field that names the user to whom a message belongs as a whole, by the message's type.
	Personal map[protoreflect.FullName]protoreflect.Name
}

// Text returns a text without the user.
func (s Scrubber) Text(text string) string { return s.Mention.Replace(text, s.Pseudonym) }

// Owns reports whether a stored message of a type that is personal is the user's.
func (s Scrubber) Owns(stored []byte, d protoreflect.MessageDescriptor) bool {
	value, err := parse(stored)
	w := walk{Scrubber: s}
	return err == nil && w.owned(value, d)
}

// Message returns a stored message without the user. A nil d is a type that this release does not have.
func (s Scrubber) Message(stored []byte, d protoreflect.MessageDescriptor) (out []byte, changed bool, err error) {
	value, err := parse(stored)
	if err != nil {
		return nil, false, err
	}
	w := walk{Scrubber: s}
	if m, ok := value.(map[string]any); ok {
		w.message(m, d)
	}
	if !w.changed {
		return stored, false, nil
	}
	out, err = json.Marshal(value)
	return out, true, err
}

// Note returns a note without the user: of a change of a state, and of entries, whose type depends on their collection.
func (s Scrubber) Note(
	stored []byte, state protoreflect.MessageDescriptor, entry func(collection string) protoreflect.MessageDescriptor,
) (out []byte, changed bool, err error) {
	note, err := parse(stored)
	if err != nil {
		return nil, false, err
	}
	w := walk{Scrubber: s}
	u, _ := note.(map[string]any)
	if was, ok := u["state"].(map[string]any); ok {
		w.message(was, state)
	}
	if in, ok := u["in"].(map[string]any); ok {
		w.within(in, state)
	}
	entries, _ := u["entries"].([]any)
	for _, x := range entries {
		e, _ := x.([]any)
		if len(e) < 3 { // a fourth is the owner
			continue
		}
		collection, _ := e[0].(string)
		e[1] = w.any(e[1])
		if old, ok := e[2].(map[string]any); ok {
			w.message(old, entry(collection))
		}
	}
	out, err = json.Marshal(note)
	return out, w.changed, err
}

func parse(stored []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(stored))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("object: stored JSON cannot be read: %w", err)
	}
	return v, nil
}

// walk goes through a message in its stored form, by its descriptor: only texts can be an id. A number that is written as
// a text, or the name of a field, is left alone.
type walk struct {
	Scrubber

	changed bool
}

// owned reports whether a message is the user's as a whole.
func (w *walk) owned(v any, d protoreflect.MessageDescriptor) bool {
	if d == nil {
		return false
	}
	field, ok := w.Personal[d.FullName()]
	m, _ := v.(map[string]any)
	return ok && m[string(field)] == string(w.Mention.User)
}

// strip takes all texts and bytes from a message of a type that is personal.
func (w *walk) strip(m map[string]any, d protoreflect.MessageDescriptor) {
	for name := range m {
		if f := d.Fields().ByName(protoreflect.Name(name)); f != nil && (f.Kind() == protoreflect.StringKind || f.Kind() == protoreflect.BytesKind) {
			delete(m, name)
			w.changed = true
		}
	}
}

func (w *walk) text(s string) string {
	out := w.Text(s)
	w.changed = w.changed || out != s
	return out
}

// bytes changes bytes that are text. Others that hold the user's id go.
func (w *walk) bytes(stored string) string {
	plain, err := base64.StdEncoding.DecodeString(stored)
	if err != nil || !w.Mention.In(string(plain)) {
		return stored
	}
	w.changed = true
	if !utf8.Valid(plain) {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(w.Text(string(plain))))
}

// message changes m in place. What a nil d does not describe is taken for free JSON, and so are fields that it does not have:
// another release's.
func (w *walk) message(m map[string]any, d protoreflect.MessageDescriptor) {
	for name, v := range m {
		var f protoreflect.FieldDescriptor
		if d != nil {
			f = d.Fields().ByName(protoreflect.Name(name))
		}
		switch {
		case f == nil:
			m[name] = w.any(v)
		case f.IsMap():
			if entries, ok := v.(map[string]any); ok {
				m[name] = w.entries(entries, f)
			}
		case f.IsList():
			list, ok := v.([]any)
			if !ok {
				continue
			}
			kept := slices.DeleteFunc(list, func(x any) bool { return w.owned(x, f.Message()) })
			w.changed = w.changed || len(kept) < len(list)
			for i := range kept {
				kept[i] = w.single(kept[i], f)
			}
			m[name] = kept
		default:
			m[name] = w.single(v, f)
		}
	}
}

// within goes through notes of what differs within a message's fields; see package journal.
func (w *walk) within(in map[string]any, d protoreflect.MessageDescriptor) {
	for name, v := range in {
		var f protoreflect.FieldDescriptor
		if d != nil {
			f = d.Fields().ByName(protoreflect.Name(name))
		}
		if n, ok := v.(map[string]any); ok {
			w.node(n, f)
		}
	}
}

// node goes through the note of what differs within a field. A nil f is another release's.
func (w *walk) node(n map[string]any, f protoreflect.FieldDescriptor) {
	set, _ := n["set"].(map[string]any)
	in, _ := n["in"].(map[string]any)
	switch {
	case f == nil:
		for name, v := range n {
			n[name] = w.any(v)
		}
	case f.IsMap():
		if set != nil {
			n["set"] = w.entries(set, f)
		}
		renames := f.MapKey().Kind() == protoreflect.StringKind
		if unset, ok := n["unset"].([]any); ok && renames {
			n["unset"] = w.any(unset)
		}
		renamed := make(map[string]any, len(in))
		for k, v := range in {
			if x, ok := v.(map[string]any); ok && f.MapValue().Message() != nil {
				w.differing(x, f.MapValue().Message())
			}
			if renames {
				k = w.text(k)
			}
			renamed[k] = v
		}
		if in != nil {
			n["in"] = renamed
		}
	case f.Message() != nil:
		w.differing(n, f.Message())
	}
}

// differing goes through the note of what differs within a message. Of a part of a personal one it is not known whose it was.
func (w *walk) differing(n map[string]any, d protoreflect.MessageDescriptor) {
	if set, ok := n["set"].(map[string]any); ok {
		if _, personal := w.Personal[d.FullName()]; personal {
			w.strip(set, d)
		}
		w.message(set, d)
	}
	if in, ok := n["in"].(map[string]any); ok {
		w.within(in, d)
	}
}

func (w *walk) entries(m map[string]any, f protoreflect.FieldDescriptor) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		if w.owned(v, f.MapValue().Message()) {
			w.changed = true
			continue
		}
		if f.MapKey().Kind() == protoreflect.StringKind {
			k = w.text(k)
		}
		out[k] = w.single(v, f.MapValue())
	}
	return out
}

func (w *walk) single(v any, f protoreflect.FieldDescriptor) any {
	switch f.Kind() {
	case protoreflect.StringKind:
		if s, ok := v.(string); ok && (s == string(w.Mention.User) || !db.NamesUser(string(f.Name()))) {
			return w.text(s)
		}
	case protoreflect.BytesKind:
		if s, ok := v.(string); ok {
			return w.bytes(s)
		}
	case protoreflect.MessageKind, protoreflect.GroupKind:
		switch name := f.Message().FullName(); name {
		case "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.StringValue", "google.protobuf.Any":
			return w.any(v)
		default:
			if m, ok := v.(map[string]any); ok {
				if w.owned(m, f.Message()) {
					w.strip(m, f.Message())
				}
				w.message(m, f.Message())
			}
		}
	default: // a number or an enum: no id
	}
	return v
}

// any is free JSON without the user.
func (w *walk) any(v any) any {
	switch v := v.(type) {
	case string:
		return w.text(v)
	case []any:
		for i := range v {
			v[i] = w.any(v[i])
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, x := range v {
			out[w.text(k)] = w.any(x)
		}
		return out
	}
	return v
}
