// Package rpc has what the RPCs of all managers share. It is a leaf.
package rpc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/jsonpb"
	"holdfast/object"
)

var texts = jsonpb.New() //nolint:gochecknoglobals // a cache of what never changes

// AnswerSize returns how many bytes a message has in an answer, in the larger of its two forms. A message that has no JSON
// has its size in binary.
func AnswerSize(m proto.Message) int {
	text, err := texts.Append(nil, m)
	if err != nil {
		text = nil
	}
	return max(len(text), proto.Size(m))
}

// Timestamp is unset for the zero time.
func Timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// NewID returns the id that a create request names, or else makes one; see object.Kind.MakeID.
func NewID[S proto.Message](ctx context.Context, k *object.Kind[S], named, requestID string) (object.ID, error) {
	if named != "" {
		return object.ID(named), nil
	}
	return k.MakeID(ctx, requestID)
}

// Absent reports whether a deletion found nothing to delete, which is no error unless the request names a version (AIP-135).
func Absent(err error, req interface {
	object.ChangeRequest
	GetIfVersion() int64
},
) bool {
	return errors.Is(err, object.ErrNotFound) && req.GetIfVersion() == 0
}
