// Package rpc is a leaf: what the RPCs of all managers have in common.
package rpc

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	objectv1 "holdfast/gen/holdfast/object/v1"
	"holdfast/identity"
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

// Metadata is where an object stands, as a reply tells it.
func Metadata(i object.Info) *objectv1.Metadata {
	return &objectv1.Metadata{
		Version: int64(i.Version), CreateTime: timestamp(i.CreateTime), UpdateTime: timestamp(i.UpdateTime), ExpireTime: timestamp(i.ExpireTime),
	}
}

// timestamp is unset for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// NewID is the id that a request names, or one made for it. A retry has to find what the first try made, so a request
// id determines it; space is the kind's own. It returns identity.ErrAbsent where nobody asks.
func NewID(ctx context.Context, space uuid.UUID, named, requestID string) (object.ID, error) {
	if named != "" {
		return object.ID(named), nil
	}
	if requestID == "" {
		id, err := uuid.NewV7()
		return object.ID(id.String()), err
	}
	caller, err := identity.From(ctx)
	if err != nil {
		return "", err
	}
	seed := fmt.Sprintf("%s\x00%s\x00%s", caller.Tenant, caller.User, requestID)
	return object.ID(uuid.NewSHA1(space, []byte(seed)).String()), nil
}

// MaskHas tells whether a mask names a path. An empty mask names all.
func MaskHas(mask *fieldmaskpb.FieldMask) func(path string) bool {
	return func(path string) bool { return len(mask.GetPaths()) == 0 || slices.Contains(mask.GetPaths(), path) }
}
