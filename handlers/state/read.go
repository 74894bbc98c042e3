package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	statev1 "holdfast/gen/holdfast/state/v1"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

const defaultLimit = 50

// pages are those of one query: its entries come of these, in this order.
type pages struct {
	query *statev1.Query
	parts []*object.EntriesPage
	limit int
}

// ask adds a query to a read.
func (m *Manager) ask(r *object.Together, id object.ID, q *statev1.Query) pages {
	out := pages{query: q, limit: int(q.GetLimit())}
	if out.limit == 0 {
		out.limit = defaultLimit
	}
	if len(q.GetKeys()) > 0 {
		keys := slices.Compact(slices.Sorted(slices.Values(q.GetKeys())))
		for i := range keys {
			keys[i] = stored(q.GetCollection(), keys[i])
		}
		out.limit = len(keys)
		out.parts = append(out.parts, object.LookupIn(r, m.kind, id, inEntries, keys...))
		return out
	}
	part, in := part{q.GetPrefix(), q.GetAfter(), q.GetBefore(), q.GetReverse()}, q.GetCollection()
	if l := q.GetLabel(); l != nil {
		in = labelled(in, l.GetKey(), l.GetValue())
	}
	exact, reach := part.stored(in)
	if exact != "" { // page leaves it out if it has not the label
		out.parts = append(out.parts, object.LookupIn(r, m.kind, id, inEntries, stored(q.GetCollection(), q.GetPrefix())))
	}
	if q.GetLabel() == nil {
		out.parts = append(out.parts, object.EntriesIn(r, m.kind, id, inEntries, reach, out.limit))
	} else {
		out.parts = append(out.parts, object.IndexedIn(r, m.kind, id, inLabels, reach, out.limit, inEntries, func(key string) string {
			return stored(q.GetCollection(), strings.TrimPrefix(key, in+"/"))
		}))
	}
	if q.GetReverse() {
		slices.Reverse(out.parts)
	}
	return out
}

// page is what came of it, as far as there is room.
func (p pages) page(room *object.Room) *statev1.Page {
	out := &statev1.Page{Collection: p.query.GetCollection()}
	for _, part := range p.parts {
		entries := part.Entries
		if len(p.query.GetKeys()) > 0 || p.query.GetLabel() != nil {
			slices.SortFunc(entries, func(a, b object.Entry) int { return strings.Compare(a.Key, b.Key) })
			if p.query.GetReverse() {
				slices.Reverse(entries)
			}
		}
		for _, e := range entries {
			value, _ := e.Value.(*storev1.Entry)
			if l := p.query.GetLabel(); l != nil && value.GetLabels()[l.GetKey()] != l.GetValue() {
				continue
			}
			if out.More = len(out.GetEntries()) == p.limit || !room.Fits(e.Size()); out.GetMore() {
				return out
			}
			collection, key := spelt(e.Key)
			out.Entries = append(out.Entries, shown(collection, key, value))
		}
		if part.More {
			out.More = true
			return out
		}
	}
	return out
}

// readNewest is Read of one object and, at most, the last entries of one collection, by a View: views that come at once share a round trip.
// It returns nil if that does not suffice.
func (m *Manager) readNewest(ctx context.Context, read *statev1.ReadOne) (*statev1.ReadResponse, error) {
	of, err := resolve(ctx, read.GetRef())
	q := &statev1.Query{}
	switch {
	case err != nil || len(read.GetQueries()) > 1:
		return nil, err
	case len(read.GetQueries()) == 1:
		q = read.GetQueries()[0]
		if !proto.Equal(q, &statev1.Query{Collection: q.GetCollection(), Reverse: true, Limit: q.GetLimit()}) || q.GetLimit() < 1 || q.GetLimit() >= recentKeep {
			return nil, nil
		}
	}
	limit, from := int(q.GetLimit()), stored(q.GetCollection(), "")
	newest := func(s object.Snapshot[state]) (last []object.Entry, ok bool) {
		for _, e := range slices.Backward(s.Recent) {
			if collection, _ := spelt(e.Key); collection == q.GetCollection() {
				last = append(last, e)
			}
		}
		// What is recent has every entry from its first one's key on.
		return last, limit == 0 || len(last) > limit || s.RecentWhole || len(s.Recent) > 0 && s.Recent[0].Key < from
	}
	if s, ok := m.kind.Remembered(ctx, of.id(), limit+1); ok {
		if _, ok := newest(s); !ok {
			return nil, nil
		}
	}
	var opts []object.ViewOption
	if limit > 0 {
		opts = append(opts, object.WithRecent(limit+1))
	}
	s, err := m.kind.View(ctx, of.id(), opts...)
	absent := errors.Is(err, object.ErrNotFound)
	last, ok := newest(s)
	if !absent && (err != nil || !ok) {
		return nil, err
	}
	as, err := m.types.of(ctx, of.kind)
	if err != nil {
		return nil, err
	}
	o := seen(of, as, read, s, !absent)
	if limit > 0 {
		room := object.Room{Bytes: max(1, object.AnswerBytes-rpc.AnswerSize(o))}
		o.Pages = []*statev1.Page{pages{query: q, limit: limit, parts: []*object.EntriesPage{{Entries: last}}}.page(&room)}
	}
	return &statev1.ReadResponse{Objects: []*statev1.Object{o}}, nil
}

// seen is an object as a read shows it, without pages.
func seen(of address, as *declared, read *statev1.ReadOne, s object.Snapshot[state], found bool) *statev1.Object {
	owner := string(of.owner)
	o := &statev1.Object{Ref: &statev1.Ref{Type: of.kind, Name: of.name, Owner: &owner}, Absent: !found}
	switch {
	case !found:
	case read.IfVersionNot != nil && read.GetIfVersionNot() == int64(s.Version): //nolint:protogetter // unset is no condition
		o.NotModified, o.Version = true, int64(s.Version)
	default:
		return present(as, s.Info, s.State, !read.GetWithoutState())
	}
	return o
}

// Read implements StateService.
func (m *Manager) Read(ctx context.Context, req *statev1.ReadRequest) (*statev1.ReadResponse, error) {
	if len(req.GetReads()) == 1 {
		if res, err := m.readNewest(ctx, req.GetReads()[0]); res != nil || err != nil {
			return res, err
		}
	}
	type one struct {
		view  *object.Viewed[state]
		pages []pages
		of    address
	}
	r := m.rt.Together()
	all, queries := make([]one, len(req.GetReads())), 0
	for i, read := range req.GetReads() {
		of, err := resolve(ctx, read.GetRef())
		if err != nil {
			return nil, err
		}
		if queries += len(read.GetQueries()); queries > maxQueries {
			return nil, problem.InvalidArgument("reads", fmt.Sprintf("have more than %d queries together", maxQueries))
		}
		all[i] = one{view: object.ViewIn(r, m.kind, of.id()), of: of}
		for j, q := range read.GetQueries() {
			if len(q.GetKeys()) > 0 && (q.GetPrefix() != "" || q.GetAfter() != "" || q.GetBefore() != "" || q.GetLimit() != 0 || q.GetLabel() != nil) {
				return nil, problem.InvalidArgument(fmt.Sprintf("reads[%d].queries[%d]", i, j), "names keys, and a range, a limit or a label too")
			}
			all[i].pages = append(all[i].pages, m.ask(r, of.id(), q))
		}
	}
	if err := r.Run(ctx); err != nil {
		return nil, err
	}
	res, states := &statev1.ReadResponse{}, 0
	for i, read := range req.GetReads() {
		as, err := m.types.of(ctx, all[i].of.kind)
		if err != nil {
			return nil, err
		}
		o := seen(all[i].of, as, read, all[i].view.Snapshot, all[i].view.Found)
		if !o.GetAbsent() && !o.GetNotModified() {
			size := rpc.AnswerSize(o)
			if states += size; i > 0 && states > object.AnswerBytes {
				return nil, problem.SizeExceeded("bytes", int64(states), object.AnswerBytes, "the states have more than 2 MiB together; read fewer objects at a time")
			}
		}
		res.Objects = append(res.Objects, o)
	}
	room := object.Room{Bytes: max(1, object.AnswerBytes-states)} // the first entry fits, whatever its size
	for i := range all {
		for _, p := range all[i].pages {
			res.Objects[i].Pages = append(res.Objects[i].Pages, p.page(&room))
		}
	}
	return res, nil
}

const maxQueries = 64

// ListStates implements StateService.
func (m *Manager) ListStates(ctx context.Context, req *statev1.ListStatesRequest) (*statev1.ListStatesResponse, error) {
	f := req.GetFilter()
	owner, err := ownerOf(ctx, f.Owner) //nolint:protogetter // unset is not empty
	if err != nil {
		return nil, err
	}
	match := func(s state) bool {
		if !strings.HasPrefix(s.GetName(), f.GetNamePrefix()) {
			return false
		}
		for k, v := range f.GetLabels() {
			if s.GetLabels()[k] != v {
				return false
			}
		}
		return true
	}
	as, err := m.types.of(ctx, f.GetType())
	if err != nil {
		return nil, err
	}
	item := func(s object.Snapshot[state]) *statev1.Object {
		return present(as, s.Info, s.State, req.GetWithState())
	}
	if req.GetByName() {
		return m.listByName(ctx, req, address{f.GetType(), f.GetNamePrefix(), owner}, match, item)
	}
	var o object.ListOptions
	if f.Owner != nil { //nolint:protogetter // unset is any
		o.Terms = append(o.Terms, ownerTerm(f.GetType(), string(owner)))
	}
	if o.Terms = append(o.Terms, labelTerms(f.GetType(), f.GetLabels())...); len(o.Terms) == 0 {
		o.Terms = []string{f.GetType()}
	}
	res := &statev1.ListStatesResponse{}
	if f.GetNamePrefix() == "" {
		res.Objects, res.NextPageToken, err = rpc.List(ctx, m.kind, req, o, item)
	} else {
		res.Objects, res.NextPageToken, err = rpc.ListMatching(ctx, m.kind, req, o, match, item)
	}
	return res, err
}

func (m *Manager) listByName(
	ctx context.Context, req *statev1.ListStatesRequest, from address, match func(state) bool, item func(object.Snapshot[state]) *statev1.Object,
) (*statev1.ListStatesResponse, error) {
	cursor, err := rpc.Cursor(req)
	if err != nil {
		return nil, err
	}
	page, err := m.kind.Find(ctx, object.FindOptions{
		ByID: true, Prefix: from.prefix(), Owner: &from.owner, PageSize: int(req.GetPageSize()), PageToken: cursor,
	})
	if err != nil {
		return nil, rpc.PageError(err)
	}
	res := &statev1.ListStatesResponse{NextPageToken: rpc.Token(req, page.Next)}
	for _, s := range page.Items {
		if match(s.State) {
			res.Objects = append(res.Objects, item(s))
		}
	}
	return res, nil
}
