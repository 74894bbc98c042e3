package object

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Stored messages are protojson with the proto's own field names, so that SQL and people can read them and `buf
// breaking` can guard them.
var (
	marshal = protojson.MarshalOptions{UseProtoNames: true}
	// Reads are lenient: what a newer release added is passed over. Writes are not, see ErrNewerSchema: what strict refuses
	// and lenient does not holds something that this release would drop.
	strict  = protojson.UnmarshalOptions{}
	lenient = protojson.UnmarshalOptions{DiscardUnknown: true}
)

func encode(m proto.Message) (string, error) {
	b, err := marshal.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return string(b), nil
}

// decode makes a new message of prototype's type out of stored JSON. newer: it holds what this release does not know.
func decode(prototype proto.Message, stored string) (m proto.Message, newer bool, err error) {
	if prototype == nil {
		return nil, false, fmt.Errorf("%w: the kind has no such collection", ErrInvalid)
	}
	m = prototype.ProtoReflect().New().Interface()
	if strict.Unmarshal([]byte(stored), m) == nil {
		return m, false, nil
	}
	proto.Reset(m)
	if err := lenient.Unmarshal([]byte(stored), m); err != nil {
		return nil, false, fmt.Errorf("object: stored %s cannot be read: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return m, true, nil
}

// upcast brings a stored state to the schema of this release. One of this schema or a newer is returned as it is.
func (k *kind) upcast(stored string, schema int32) (string, error) {
	for ; schema < k.schemaVersion; schema++ {
		step := k.upcasters[schema]
		if step == nil {
			continue
		}
		b, err := step([]byte(stored))
		if err != nil {
			return "", fmt.Errorf("object: stored %s of schema %d cannot be brought to the next: %w", k.name, schema, err)
		}
		stored = string(b)
	}
	return stored, nil
}

// decodeState makes a state out of its stored form, whatever release wrote it.
func (k *kind) decodeState(stored string, schema int32) (state proto.Message, newer bool, err error) {
	if stored, err = k.upcast(stored, schema); err != nil {
		return nil, false, err
	}
	state, newer, err = decode(k.prototype, stored)
	return state, newer || schema > k.schemaVersion, err
}

// replaced returns, as JSON members, the old values of the top-level fields that differ between two states; null
// stands for a field that was not set. It is what undoes the change. A nil was is an object that did not exist, a nil
// is one that was deleted.
func replaced(was, is proto.Message) (string, error) {
	if was == nil {
		return "", nil
	}
	a := was.ProtoReflect()
	old := a.New()
	var unset []byte
	for i, fields := 0, a.Descriptor().Fields(); i < fields.Len(); i++ {
		f := fields.Get(i)
		hadIt := a.Has(f)
		if is != nil {
			b := is.ProtoReflect()
			if hasIt := b.Has(f); hadIt == hasIt && (!hadIt || a.Get(f).Equal(b.Get(f))) {
				continue
			}
		}
		if hadIt {
			old.Set(f, a.Get(f))
		} else if is != nil {
			unset = append(append(append(unset, `,"`...), f.Name()...), `":null`...)
		}
	}
	b, err := marshal.Marshal(old.Interface())
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	b = b[1 : len(b)-1] // without the braces
	if len(b) == 0 && len(unset) > 0 {
		unset = unset[1:]
	}
	return string(append(b, unset...)), nil
}
