package load

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Codec is how messages are encoded: the last part of their content type.
type Codec string

// The codecs that Connect knows by itself.
const (
	Proto Codec = "proto"
	JSON  Codec = "json"
)

func (c Codec) appendTo(b []byte, m proto.Message) ([]byte, error) {
	if c == JSON {
		return protojson.MarshalOptions{}.MarshalAppend(b, m)
	}
	return proto.MarshalOptions{}.MarshalAppend(b, m)
}

func (c Codec) decode(b []byte, m proto.Message) error {
	var err error
	if c == JSON {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m)
	} else {
		err = proto.Unmarshal(b, m)
	}
	if err != nil {
		return fmt.Errorf("decode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return nil
}
