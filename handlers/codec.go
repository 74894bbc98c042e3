package handlers

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"holdfast/jsonpb"
)

// stableProto is Connect's codec "proto" with the keys of maps in order. The usual one shuffles them, and a retry would
// get other bytes than the first reply.
type stableProto struct{}

// Name implements [connect.Codec].
func (stableProto) Name() string { return "proto" }

// Marshal implements [connect.Codec].
func (c stableProto) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// MarshalAppend spares Connect a buffer.
func (stableProto) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no proto message", message)
	}
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, m)
}

// Unmarshal implements [connect.Codec].
func (stableProto) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no proto message", message)
	}
	if err := proto.Unmarshal(data, m); err != nil {
		return fmt.Errorf("unmarshal into %T: %w", message, err)
	}
	return nil
}

// fastJSON is Connect's codec "json" by package jsonpb: what protojson writes and reads, at a third of its cost. Unknown
// fields are passed over.
type fastJSON struct {
	name string
	*jsonpb.Codec
}

// Name implements [connect.Codec].
func (c fastJSON) Name() string { return c.name }

// Marshal implements [connect.Codec].
func (c fastJSON) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// MarshalAppend spares Connect a buffer.
func (c fastJSON) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no proto message", message)
	}
	return c.Append(dst, m)
}

// Unmarshal implements [connect.Codec].
func (c fastJSON) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no proto message", message)
	}
	if len(data) == 0 {
		return errors.New("an empty body is no JSON object; send {}")
	}
	_, err := c.UnmarshalLenient(data, m)
	return err //nolint:wrapcheck // Connect says that the message could not be read; the error says where
}
