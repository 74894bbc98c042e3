package object

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"holdfast/object/internal/rowjson"
)

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
	state, newer, err = rowjson.Decode(k.prototype, stored)
	return state, newer || schema > k.schemaVersion, err
}
