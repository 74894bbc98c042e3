// Package journal is the note in an event by which its change is undone: what a change of a state writes, and how to go back by it.
// It is pure.
//
// What undoes a change of a state is JSON, a part of the note:
//
//	"state": {"name": "old", "edition": null}, "in": {"fields": {"set": {"k": "old"}, "unset": ["l"], "in": {…}}}
//
// state has old values of top-level fields as a whole; null stands for one that was not set, and nulls names the fields that were null
// itself, as a google.protobuf.Value may be. in goes into maps and
// messages that were there before and after: set has old values in them, by key or field name, unset what was not there,
// and in goes on. So what a change of one key of a large map writes does not grow with the map. Notes of before this form
// have all in state, and are read as ever.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/identity"
	"holdfast/jsonpb"
	"holdfast/object/internal/rowjson"
)

// Note has the values that a change replaced. null means that there was none.
type Note struct {
	// State has the fields that differ, or all fields if Schema is set: the change was the first of a newer schema.
	State  map[string]json.RawMessage `json:"state"`
	Schema int32                      `json:"schema"`
	// Nulls are the fields that were set, to null.
	Nulls []string `json:"nulls"`
	// In has the differences within fields that State does not have as a whole.
	In      map[string]*node      `json:"in"`
	Entries []Entry               `json:"entries"`
	Timers  map[string]*time.Time `json:"timers"`
	// Created: the object did not exist before. Revived: it was deleted before.
	Created bool `json:"created"`
	Revived bool `json:"revived"`
	// Cut: the old values were erased.
	Cut bool `json:"cut"`
}

// Entry is an entry that a change replaced: [collection, key, old value], and behind them the owner of an owned one.
type Entry struct {
	Collection, Key string
	// Old is the stored form; nil: there was no entry.
	Old json.RawMessage
	// Owner of an owned entry; nil: it is the object's.
	Owner *identity.User
}

// UnmarshalJSON reads the array that a note has of an entry.
func (n *Entry) UnmarshalJSON(b []byte) error {
	var e [4]json.RawMessage
	if err := json.Unmarshal(b, &e); err != nil {
		return err
	}
	if string(e[2]) != "null" {
		n.Old = e[2]
	}
	if e[3] == nil {
		e[3] = json.RawMessage("null")
	}
	return errors.Join(json.Unmarshal(e[0], &n.Collection), json.Unmarshal(e[1], &n.Key), json.Unmarshal(e[3], &n.Owner))
}

// Fields returns the names of the top-level fields that differ, in order.
func (u *Note) Fields() []string {
	names := slices.AppendSeq(slices.AppendSeq(slices.Clone(u.Nulls), maps.Keys(u.State)), maps.Keys(u.In))
	slices.Sort(names)
	return names
}

// Parse reads the stored form of a note.
func Parse(stored string) (u Note, err error) {
	if err := json.Unmarshal([]byte(stored), &u); err != nil {
		return Note{}, fmt.Errorf("object: stored undo cannot be read: %w", err)
	}
	return u, nil
}

// Revert returns a state as it was before the change, given the one after it, which stays as it is.
func (u *Note) Revert(after map[string]json.RawMessage) (map[string]json.RawMessage, error) {
	state := maps.Clone(after)
	if state == nil {
		state = map[string]json.RawMessage{}
	}
	for name, old := range u.State {
		if string(old) == "null" {
			delete(state, name)
		} else {
			state[name] = old
		}
	}
	for _, name := range u.Nulls {
		state[name] = json.RawMessage("null")
	}
	return state, applyAll(state, u.In)
}

// node is how to undo what differs within a map or a message.
type node struct {
	Set   map[string]json.RawMessage `json:"set"`
	Unset []string                   `json:"unset"`
	In    map[string]*node           `json:"in"`
}

// apply returns what is stored of a map or a message as it was before.
func (n *node) apply(stored json.RawMessage) (json.RawMessage, error) {
	var m map[string]json.RawMessage
	if len(stored) > 0 {
		if err := json.Unmarshal(stored, &m); err != nil {
			return nil, fmt.Errorf("object: stored state cannot be undone: %w", err)
		}
	}
	if m == nil {
		m = map[string]json.RawMessage{}
	}
	for _, name := range n.Unset {
		delete(m, name)
	}
	maps.Copy(m, n.Set)
	if err := applyAll(m, n.In); err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

func applyAll(m map[string]json.RawMessage, in map[string]*node) error {
	for name, n := range in {
		was, err := n.apply(m[name])
		if err != nil {
			return err
		}
		m[name] = was
	}
	return nil
}

// Append appends the members state and in, which make was of is. A nil was is an object that did not exist, a nil
// is one that was deleted.
func Append(b []byte, was, is proto.Message) ([]byte, error) {
	b = append(b, `"state":{`...)
	if was == nil {
		return append(b, '}'), nil
	}
	a := was.ProtoReflect()
	var deep []protoreflect.FieldDescriptor
	var nulls []string
	var err error
	empty := len(b)
	for i, fields := 0, a.Descriptor().Fields(); i < fields.Len(); i++ {
		f := fields.Get(i)
		old := a.Has(f)
		if is != nil {
			has := is.ProtoReflect().Has(f)
			switch {
			case !old && !has:
				continue
			case old && has && f.IsMap():
				deep = append(deep, f) // whether it differs is found on the way
				continue
			case old && has && same(f, a.Get(f), is.ProtoReflect().Get(f)):
				continue
			case old && has && opens(f):
				deep = append(deep, f)
				continue
			}
		}
		if !old && is == nil {
			continue
		}
		if v, ok := a.Get(f).Interface().(protoreflect.Message); ok && old && isNull(v.Interface()) {
			nulls = append(nulls, string(f.Name()))
			continue
		}
		b = rowjson.AppendName(b, empty, string(f.Name()))
		if !old {
			b = append(b, "null"...)
		} else if b, err = rowjson.AppendField(b, f, a.Get(f)); err != nil {
			return nil, err
		}
	}
	b = append(b, '}')
	if len(nulls) > 0 {
		b = append(b, `,"nulls":["`...)
		b = append(b, strings.Join(nulls, `","`)...)
		b = append(b, `"]`...)
	}
	if len(deep) == 0 {
		return b, nil
	}
	without := len(b)
	b = append(b, `,"in":{`...)
	empty = len(b)
	for _, f := range deep {
		if b, err = appendNode(b, empty, string(f.Name()), f, a.Get(f), is.ProtoReflect().Get(f)); err != nil {
			return nil, err
		}
	}
	if len(b) == empty {
		return b[:without], nil
	}
	return append(b, '}'), nil
}

func isNull(m proto.Message) bool {
	v, ok := m.(*structpb.Value)
	_, null := v.GetKind().(*structpb.Value_NullValue)
	return ok && null
}

// opens reports whether differences within a field are noted one by one: it is a map, or a message whose JSON has its fields.
func opens(f protoreflect.FieldDescriptor) bool {
	return f.IsMap() || !f.IsList() && opensMessage(f.Message())
}

func opensMessage(d protoreflect.MessageDescriptor) bool {
	if d == nil || d.ExtensionRanges().Len() > 0 {
		return false
	}
	switch d.FullName() {
	case "google.protobuf.Any", "google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.Struct", "google.protobuf.Value",
		"google.protobuf.ListValue", "google.protobuf.FieldMask", "google.protobuf.BoolValue", "google.protobuf.Int32Value",
		"google.protobuf.Int64Value", "google.protobuf.UInt32Value", "google.protobuf.UInt64Value", "google.protobuf.FloatValue",
		"google.protobuf.DoubleValue", "google.protobuf.StringValue", "google.protobuf.BytesValue":
		return false // they have a JSON form of their own
	}
	return true
}

// appendNode appends, as a member of an object whose members begin at empty, how to make was, a map or a message, of is;
// nothing where they are the same.
func appendNode(b []byte, empty int, name string, f protoreflect.FieldDescriptor, was, is protoreflect.Value) ([]byte, error) {
	without := len(b)
	n := writer{b: append(rowjson.AppendName(b, empty, name), '{')}
	n.begin = len(n.b)
	if f.IsMap() {
		n.entries(f, was.Map(), is.Map())
	} else {
		n.fields(was.Message(), is.Message())
	}
	if len(n.b) == n.begin {
		return n.b[:without], n.err
	}
	return append(n.b, '}'), n.err
}

// writer writes one node.
type writer struct {
	b     []byte
	begin int // of the node's members
	err   error

	unset []string
	in    []inner
}

type inner struct {
	name    string
	f       protoreflect.FieldDescriptor
	was, is protoreflect.Value
}

func (n *writer) entries(f protoreflect.FieldDescriptor, was, is protoreflect.Map) {
	value := f.MapValue()
	deep := value.Message() != nil && opensMessage(value.Message())
	set := n.member("set")
	empty, kept := len(n.b), 0
	was.Range(func(k protoreflect.MapKey, old protoreflect.Value) bool {
		now := is.Get(k)
		if now.IsValid() {
			kept++
			if sameSingle(value, old, now) {
				return true
			}
			if deep {
				n.in = append(n.in, inner{k.String(), value, old, now})
				return true
			}
		}
		n.b = rowjson.AppendName(n.b, empty, k.String())
		n.b, n.err = rowjson.AppendField(n.b, value, old)
		return n.err == nil
	})
	n.end(set, empty)
	if kept < is.Len() {
		is.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
			if !was.Has(k) {
				n.unset = append(n.unset, k.String())
			}
			return true
		})
	}
	n.rest()
}

func (n *writer) fields(was, is protoreflect.Message) {
	set := n.member("set")
	empty := len(n.b)
	for i, fields := 0, was.Descriptor().Fields(); i < fields.Len() && n.err == nil; i++ {
		f := fields.Get(i)
		old, now := was.Has(f), is.Has(f)
		switch {
		case !old && !now, old && now && !f.IsMap() && same(f, was.Get(f), is.Get(f)):
		case !old:
			n.unset = append(n.unset, string(f.Name()))
		case now && opens(f):
			n.in = append(n.in, inner{string(f.Name()), f, was.Get(f), is.Get(f)})
		default:
			n.b = rowjson.AppendName(n.b, empty, string(f.Name()))
			n.b, n.err = rowjson.AppendField(n.b, f, was.Get(f))
		}
	}
	n.end(set, empty)
	n.rest()
}

// rest writes the members that follow set.
func (n *writer) rest() {
	if len(n.unset) > 0 {
		n.member("unset")
		n.b[len(n.b)-1] = '['
		for i, name := range n.unset {
			if i > 0 {
				n.b = append(n.b, ',')
			}
			n.b = jsonpb.AppendString(n.b, name)
		}
		n.b = append(n.b, ']')
	}
	if len(n.in) == 0 || n.err != nil {
		return
	}
	in := n.member("in")
	empty := len(n.b)
	for _, x := range n.in {
		if n.b, n.err = appendNode(n.b, empty, x.name, x.f, x.was, x.is); n.err != nil {
			return
		}
	}
	n.end(in, empty)
}

// member begins an object as a member of the node, and returns where it did so.
func (n *writer) member(name string) (at int) {
	at = len(n.b)
	n.b = append(rowjson.AppendName(n.b, n.begin, name), '{')
	return at
}

// end ends a member, or takes it back if it is empty.
func (n *writer) end(at, empty int) {
	if len(n.b) == empty {
		n.b = n.b[:at]
	} else {
		n.b = append(n.b, '}')
	}
}

// same compares two values of a field that is no map.
func same(f protoreflect.FieldDescriptor, a, b protoreflect.Value) bool {
	if !f.IsList() {
		return sameSingle(f, a, b)
	}
	x, y := a.List(), b.List()
	if x.Len() != y.Len() {
		return false
	}
	for i := range x.Len() {
		if !sameSingle(f, x.Get(i), y.Get(i)) {
			return false
		}
	}
	return true
}

// sameSingle compares two values of a map, a list or a singular field. For messages there is a faster comparison than by reflection.
func sameSingle(f protoreflect.FieldDescriptor, a, b protoreflect.Value) bool {
	if f.Message() != nil {
		return proto.Equal(a.Message().Interface(), b.Message().Interface())
	}
	return a.Equal(b)
}
