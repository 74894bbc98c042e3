package handlers

import (
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/handlers/problem"
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
	if proto.Unmarshal(data, m) != nil {
		markUnreadable(m, &jsonpb.Error{Message: "it is no " + string(m.ProtoReflect().Descriptor().FullName()) + " in binary form, with texts in UTF-8"})
	}
	return nil
}

// fastJSON is Connect's codec "json" by package jsonpb: what protojson writes and reads, at a third of its cost, except
// that what is unknown or inexact is refused.
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
	var pass jsonpb.Pass
	if len(data) > 0 && data[0] == lenientMark {
		data, pass = data[1:], jsonpb.Unknown
	}
	if len(data) == 0 {
		markUnreadable(m, &jsonpb.Error{Message: "it is empty, which is no JSON; send {}"})
		return nil
	}
	if _, err := c.Codec.Unmarshal(data, m, pass); err != nil {
		e, ok := errors.AsType[*jsonpb.Error](err)
		if !ok {
			return fmt.Errorf("handlers: read JSON: %w", err)
		}
		markUnreadable(m, e)
	}
	return nil
}

// unreadable is the unknown field that marks a request which could not be read. Connect decodes before the interceptors run, and
// answers what a codec returns without a reason; so the codecs return nothing, and checkReadable does. A caller who sends the
// field is refused in their own words.
const unreadable = protowire.MaxValidNumber

// lenientMark begins the JSON of callers who ask for leniency. A codec does not see their headers, and no JSON begins with it.
const lenientMark = '\x06'

func markUnreadable(m proto.Message, e *jsonpb.Error) {
	reason := errorv1.Reason_REASON_BODY_BROKEN
	switch {
	case e.Unknown:
		reason = errorv1.Reason_REASON_FIELD_UNKNOWN
	case e.Inexact:
		reason = errorv1.Reason_REASON_NUMBER_INEXACT
	case e.Path != "":
		reason = errorv1.Reason_REASON_FIELD_INVALID
	}
	proto.Reset(m)
	var b []byte
	for _, text := range []string{reason.String(), e.Path, e.Message} {
		b = protowire.AppendString(protowire.AppendTag(b, unreadable, protowire.BytesType), text)
	}
	m.ProtoReflect().SetUnknown(b)
}

// checkReadable returns why a request could not be read.
func checkReadable(m proto.Message) error {
	b := m.ProtoReflect().GetUnknown()
	var texts [3]string
	for i := range texts {
		number, kind, n := protowire.ConsumeTag(b)
		if number != unreadable || kind != protowire.BytesType {
			return nil
		}
		text, size := protowire.ConsumeString(b[n:])
		if size < 0 {
			return nil
		}
		texts[i], b = strings.ToValidUTF8(text, "\uFFFD"), b[n+size:]
	}
	p := problem.InvalidArgument(texts[1], texts[2])
	p.Reason = errorv1.Reason(errorv1.Reason_value[texts[0]])
	if p.Reason == errorv1.Reason_REASON_BODY_BROKEN || p.Code() != connect.CodeInvalidArgument {
		return bodyBroken(texts[2])
	}
	return p
}
