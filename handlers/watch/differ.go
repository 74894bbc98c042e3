package watch

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	watchv1 "holdfast/gen/holdfast/watch/v1"
)

// digest stands for a thing, or for several.
type digest [16]byte

// Differ compares an item of few things with what it was. The zero Differ knows of nothing.
type Differ struct{ last map[string]digest }

// Diff returns the change to these things, with all of them and a reset at first, or nil if nothing differs. Fields of the names in
// except make no difference.
func (d *Differ) Diff(things []*watchv1.Thing, except ...protoreflect.Name) *watchv1.Changed {
	change := &watchv1.Changed{Reset_: d.last == nil}
	now := make(map[string]digest, len(things))
	for _, thing := range things {
		now[thing.GetKey()] = digestOf(thing, except)
		if was, ok := d.last[thing.GetKey()]; !ok || was != now[thing.GetKey()] {
			change.Put = append(change.Put, thing)
		}
	}
	for key := range d.last {
		if _, ok := now[key]; !ok {
			change.Removed = append(change.Removed, key)
		}
	}
	d.last = now
	if !change.GetReset_() && len(change.GetPut())+len(change.GetRemoved()) == 0 {
		return nil
	}
	slices.Sort(change.GetRemoved())
	return change
}

// cursor stands for all things together, so that it is good on every server.
func (d *Differ) cursor() string {
	h := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(d.last)) {
		of := d.last[key]
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(key)))) //nolint:gosec // a key is short
		h.Write([]byte(key))
		h.Write(of[:])
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:len(digest{})])
}

func digestOf(thing *watchv1.Thing, except []protoreflect.Name) digest {
	if len(except) > 0 {
		thing = proto.CloneOf(thing)
		of := thing.ProtoReflect()
		m := of.Get(of.WhichOneof(of.Descriptor().Oneofs().ByName("thing"))).Message()
		for _, name := range except {
			if f := m.Descriptor().Fields().ByName(name); f != nil {
				m.Clear(f)
			}
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(thing)
	if err != nil { // only invalid UTF-8, which no decoder lets through
		b = []byte(err.Error())
	}
	h := sha256.Sum256(b)
	return digest(h[:len(digest{})])
}
