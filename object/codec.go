package object

import (
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	"holdfast/jsonpb"
)

// encoder keeps the buffers that messages are encoded into before their length is known. It is safe for concurrent use.
type encoder struct{ buffers sync.Pool }

// maxKept bounds what is kept for the next message.
const maxKept = 64 << 10

func (e *encoder) encode(m proto.Message) (string, error) {
	if err := proto.CheckInitialized(m); err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return e.text(func(b []byte) ([]byte, error) { return appendMessage(b, m) })
}

// text is what write appends.
func (e *encoder) text(write func([]byte) ([]byte, error)) (string, error) {
	buf, _ := e.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	b, err := write((*buf)[:0])
	if err != nil {
		return "", err
	}
	encoded := string(b)
	if cap(b) <= maxKept {
		*buf = b
		e.buffers.Put(buf)
	}
	return encoded, nil
}

// decode makes a new message of prototype's type out of stored JSON. Reads are lenient: they pass over what a newer release
// added, and newer says that there was something. Writes are not, see ErrNewerSchema.
func decode(prototype proto.Message, text string) (m proto.Message, newer bool, err error) {
	if prototype == nil {
		return nil, false, fmt.Errorf("%w: the kind has no such collection", ErrInvalid)
	}
	m = prototype.ProtoReflect().New().Interface()
	if newer, err = stored.Unmarshal([]byte(text), m, jsonpb.Unknown|jsonpb.Inexact); err != nil {
		return nil, false, fmt.Errorf("object: stored %s cannot be read: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return m, newer, nil
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
