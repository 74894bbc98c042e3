package rpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/handlers/problem"
	"holdfast/object"
)

// ListRequest asks for a page of a list.
type ListRequest interface {
	proto.Message
	GetPageSize() int32
	GetPageToken() string
}

// tokenHash is how many bytes of the query's hash a token begins with. They find mistakes: a token gives no right.
const tokenHash = 6

// query hashes what a list asks for, whatever the page.
func query(req ListRequest) []byte {
	m := proto.Clone(req).ProtoReflect()
	for _, name := range []protoreflect.Name{"page_size", "page_token"} {
		if f := m.Descriptor().Fields().ByName(name); f != nil {
			m.Clear(f)
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
	if err != nil { // only invalid UTF-8, which no decoder lets through
		b = []byte(err.Error())
	}
	h := sha256.Sum256(append(b, m.Descriptor().FullName()...))
	return h[:tokenHash]
}

// Token is a page token for the same list that goes on from a cursor; empty for an empty one, on the last page.
func Token(req ListRequest, cursor string) string {
	if cursor == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(append(query(req), cursor...))
}

// Cursor is the cursor in a request's page token; empty: the first page. It returns a problem with the reason PAGE_TOKEN_INVALID for
// what Token has not made, or has made for another list.
func Cursor(req ListRequest) (string, error) {
	if req.GetPageToken() == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(req.GetPageToken())
	if err != nil || len(b) <= tokenHash || !bytes.Equal(b[:tokenHash], query(req)) {
		return "", errPageToken()
	}
	return string(b[tokenHash:]), nil
}

// ScanCursor reads a cursor of words and numbers, separated by blanks, into where into points; on the first page those stay as they are.
func ScanCursor(req ListRequest, into ...any) error {
	cursor, err := Cursor(req)
	if err != nil || cursor == "" {
		return err
	}
	if _, err := fmt.Sscan(cursor, into...); err != nil {
		return errPageToken()
	}
	return nil
}

func errPageToken() *problem.Error {
	p := problem.InvalidArgument("page_token", "is not from this list with these filters; pass next_page_token unchanged, with nothing else changed")
	p.Reason = errorv1.Reason_REASON_PAGE_TOKEN_INVALID
	return p
}

// PageError translates the error of a list whose options are validated but for the page token.
func PageError(err error) error {
	if errors.Is(err, object.ErrInvalid) {
		return errPageToken()
	}
	return err
}

// List reads the page of a list that the request asks for, and makes an item of each object. next is the page_token of the next
// page.
func List[S proto.Message, I any](
	ctx context.Context, k *object.Kind[S], req ListRequest, o object.ListOptions, item func(object.Snapshot[S]) I,
) (items []I, next string, err error) {
	return list(req, o, item, func(o object.ListOptions) (object.Page[S], error) { return k.List(ctx, o) })
}

// ListMatching is List for the objects whose states match; see object.Kind.ListMatching.
func ListMatching[S proto.Message, I any](
	ctx context.Context, k *object.Kind[S], req ListRequest, o object.ListOptions, match func(S) bool, item func(object.Snapshot[S]) I,
) (items []I, next string, err error) {
	return list(req, o, item, func(o object.ListOptions) (object.Page[S], error) { return k.ListMatching(ctx, o, match) })
}

func list[S proto.Message, I any](
	req ListRequest, o object.ListOptions, item func(object.Snapshot[S]) I, read func(object.ListOptions) (object.Page[S], error),
) (items []I, next string, err error) {
	if o.PageToken, err = Cursor(req); err != nil {
		return nil, "", err
	}
	o.PageSize = int(req.GetPageSize())
	page, err := read(o)
	if err != nil {
		return nil, "", PageError(err)
	}
	for _, s := range page.Items {
		items = append(items, item(s))
	}
	return items, Token(req, page.Next), nil
}

// ListEntries reads the page of a collection that the request asks for: forward from o.After, or, where o.Before is set, back from
// there. next is the page_token of the next page, and takes the place of either.
func ListEntries[S proto.Message](
	ctx context.Context, k *object.Kind[S], id object.ID, collection string, req ListRequest, o object.EntriesOptions,
) (page object.EntriesPage, next string, err error) {
	cursor, err := Cursor(req)
	if err != nil {
		return page, "", err
	}
	back := o.Before != ""
	switch {
	case cursor == "":
	case back:
		o.Before = cursor
	default:
		o.After = cursor
	}
	o.PageSize = int(req.GetPageSize())
	if page, err = k.Entries(ctx, id, collection, o); err != nil || !page.More || len(page.Entries) == 0 {
		return page, "", err
	}
	last := page.Entries[len(page.Entries)-1]
	if back {
		last = page.Entries[0]
	}
	return page, Token(req, last.Key), nil
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
