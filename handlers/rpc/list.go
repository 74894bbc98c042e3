package rpc

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/handlers/problem"
	"holdfast/object"
)

// ListRequest asks for a page of a list of objects.
type ListRequest interface {
	GetPageSize() int32
	GetPageToken() string
}

// List reads the page of a list that the request asks for, and makes an item of each object. next is the page_token of the next
// page.
func List[S proto.Message, I any](
	ctx context.Context, k *object.Kind[S], req ListRequest, o object.ListOptions, item func(object.Snapshot[S]) I,
) (items []I, next string, err error) {
	o.PageSize, o.PageToken = int(req.GetPageSize()), req.GetPageToken()
	page, err := k.List(ctx, o)
	if err != nil {
		return nil, "", PageError(err)
	}
	for _, s := range page.Items {
		items = append(items, item(s))
	}
	return items, page.Next, nil
}

// PageError translates the error of a list whose options are validated but for the page token.
func PageError(err error) error {
	if errors.Is(err, object.ErrInvalid) {
		p := problem.InvalidArgument("page_token", "is not from this list; pass next_page_token unchanged")
		p.Reason = errorv1.Reason_REASON_PAGE_TOKEN_INVALID
		return p
	}
	return err
}

// SeqRequest asks for a page of a collection whose keys are sequence numbers.
type SeqRequest interface {
	GetPageSize() int32
	GetAfterSeq() int64
}

// ListAfterSeq reads a page of a collection of an object, and returns its values as well.
func ListAfterSeq[V, S proto.Message](
	ctx context.Context, k *object.Kind[S], id, collection string, req SeqRequest,
) ([]V, object.EntriesPage, error) {
	page, err := k.Entries(ctx, object.ID(id), collection,
		object.EntriesOptions{PageSize: int(req.GetPageSize()), After: object.SeqKey(req.GetAfterSeq())})
	return Values[V](page.Entries), page, err
}

// Values are the values of entries, which are all of one type.
func Values[V proto.Message](entries []object.Entry) []V {
	out := make([]V, 0, len(entries))
	for _, e := range entries {
		if v, ok := e.Value.(V); ok {
			out = append(out, v)
		}
	}
	return out
}
