package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	errorv1 "holdfast/gen/holdfast/error/v1"
	statev1 "holdfast/gen/holdfast/state/v1"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// present is an object of a type as callers see it.
func present(as *declared, i object.Info, s state, withState bool) *statev1.Object {
	owner := s.GetOwner()
	o := &statev1.Object{
		Ref: &statev1.Ref{Type: s.GetType(), Name: s.GetName(), Owner: &owner}, Owner: string(i.Owner), Version: int64(i.Version),
		CreateTime: rpc.Timestamp(i.CreateTime), UpdateTime: rpc.Timestamp(i.UpdateTime), ExpireTime: rpc.Timestamp(i.ExpireTime),
		Labels: s.GetLabels(), Id: string(i.ID),
	}
	for name, l := range s.GetLeases() {
		if o.Leases == nil {
			o.Leases = map[string]*typev1.Lease{}
		}
		o.Leases[name] = shownLease(l)
	}
	for name, t := range s.GetTimers() {
		if o.Timers == nil {
			o.Timers = map[string]*statev1.Timer{}
		}
		o.Timers[name] = shownTimer(t)
	}
	if withState {
		if s.GetMigrated() < as.newest() {
			s = proto.CloneOf(s)
			as.migrate(s)
		}
		text := whole(s)
		if v := valueOf(text); v != nil {
			o.State = v.GetStructValue()
		} else {
			o.StateJson = string(text)
		}
	}
	return o
}

// txEntries are the entries of an object in a transaction.
type txEntries struct{ tx *object.Tx[state] }

func (t txEntries) get(collection, key string) *storev1.Entry {
	e, _ := t.tx.Entry(inEntries, stored(collection, key)).(*storev1.Entry)
	return e
}

func (t txEntries) put(collection, key string, e *storev1.Entry, fresh bool) {
	var were map[string]string
	if fresh {
		t.tx.ExpectAbsent(inEntries, stored(collection, key))
	} else {
		were = t.get(collection, key).GetLabels()
	}
	t.label(collection, key, were, e.GetLabels())
	t.tx.Put(inEntries, stored(collection, key), e)
}

func (t txEntries) remove(collection, key string) {
	t.label(collection, key, t.get(collection, key).GetLabels(), nil)
	t.tx.DeleteEntry(inEntries, stored(collection, key))
}

// label keeps the index of labels: an entry there for each label of an entry.
func (t txEntries) label(collection, key string, were, are map[string]string) {
	for label, value := range were {
		if are[label] != value {
			at := stored(labelled(collection, label, value), key)
			t.tx.Presume(inLabels, at, &storev1.Entry{})
			t.tx.DeleteEntry(inLabels, at)
		}
	}
	for label, value := range are {
		if were[label] != value {
			at := stored(labelled(collection, label, value), key)
			t.tx.ExpectAbsent(inLabels, at)
			t.tx.Put(inLabels, at, &storev1.Entry{})
		}
	}
}

func (t txEntries) scan(collection string, p part, limit int) (out []found, more bool) {
	exact, r := p.stored(collection)
	add := func(key string, m proto.Message) {
		if e, ok := m.(*storev1.Entry); ok && e != nil {
			_, name := spelt(key)
			out = append(out, found{name, e})
		}
	}
	if exact != "" && !p.backward {
		add(exact, t.tx.Entry(inEntries, exact))
	}
	entries, more := t.tx.Range(inEntries, r, limit)
	for _, e := range entries {
		add(e.Key, e.Value)
	}
	if exact != "" && p.backward && !more {
		add(exact, t.tx.Entry(inEntries, exact))
	}
	if len(out) > limit {
		return out[:limit], true
	}
	return out, more
}

// stored is the part among the entries of all collections. A range has neither of its ends, so an entry whose key is the prefix
// itself is looked up: it is the first one. exact is empty where the part has none.
func (p part) stored(collection string) (exact string, r object.Range) {
	r = object.Range{After: stored(collection, p.after), Before: successor(stored(collection, p.prefix)), Backward: p.backward}
	if prefix := stored(collection, p.prefix); prefix > r.After {
		r.After = prefix
		if p.has(p.prefix) {
			exact = prefix
		}
	}
	if p.before != "" {
		r.Before = min(r.Before, stored(collection, p.before))
	}
	return exact, r
}

// successor is the first text behind all that begin with a text which has no end of the alphabet before its last slash.
func successor(text string) string {
	for {
		last, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
		switch last {
		case utf8.MaxRune:
			continue
		case 0xD7FF:
			return text + "\uE000" // what is between are no characters
		}
		return text + string(last+1)
	}
}

// applying is the change that an ApplyRequest asks for: of which object, how, and with what preconditions.
type applying struct {
	address

	fn   func(tx *object.Tx[state]) (*statev1.ApplyResponse, error)
	opts []object.UpdateOption
}

// applying prepares a change. room is for what it returns of what it deletes.
func (m *Manager) applying(ctx context.Context, req *statev1.ApplyRequest, room object.Room) (applying, error) {
	of, as, err := m.resolveChanged(ctx, req.GetRef())
	if err != nil {
		return applying{}, err
	}
	if req.GetTtl() != nil && req.GetKeepForever() {
		return applying{}, problem.InvalidArgument("ttl", "is set, and keep_forever too")
	}
	opts := []object.UpdateOption{object.OwnedBy(of.owner), object.Prefetch(inEntries, named(req.GetOperations())...)}
	if !req.GetMustExist() {
		opts = append(opts, object.Upsert())
	}
	return applying{of, func(tx *object.Tx[state]) (*statev1.ApplyResponse, error) {
		s, existed := tx.State(), tx.Exists()
		s.Type, s.Name, s.Owner = of.kind, of.name, string(of.owner)
		if existed {
			as.migrate(s)
		} else {
			s.Migrated = as.newest()
		}
		was := proto.CloneOf(s)
		if err := mergeLabels(s, req.GetLabels()); err != nil {
			return nil, err
		}
		if req.GetTtl() != nil || req.GetKeepForever() {
			s.Ttl = req.GetTtl()
		} else if !existed {
			s.Ttl = as.GetTtl()
		}
		c := &change{state: s, as: as, entries: txEntries{tx}, now: tx.Now(), version: int64(tx.Version()) + 1, room: room}
		results, err := c.apply(req.GetOperations())
		if err != nil {
			return nil, err
		}
		if !existed || !maps.Equal(was.GetFields(), s.GetFields()) {
			if err := as.checkState(s); err != nil {
				return nil, err
			}
		}
		if c.event != "" {
			tx.Emit(c.event)
		}
		setWakeUps(tx, was.GetTimers())
		if existed && !c.touched && c.event == "" && proto.Equal(was, s) {
			tx.Unchanged()
		}
		return &statev1.ApplyResponse{Version: int64(tx.Info().Version), Created: !existed, Results: results}, nil
	}, opts}, nil
}

// named are the stored keys of the entries that operations name.
func named(ops []*statev1.Operation) (keys []string) {
	for _, op := range ops {
		if e := op.GetPut().GetEntry(); e != nil {
			keys = append(keys, stored(e.GetCollection(), e.GetKey()))
		}
		if e := op.GetExpect(); e.GetKey() != "" {
			keys = append(keys, stored(e.GetCollection(), e.GetKey()))
		}
		for _, key := range op.GetDelete().GetKeys() {
			keys = append(keys, stored(op.GetDelete().GetCollection(), key))
		}
	}
	return keys
}

// Apply implements StateService.
func (m *Manager) Apply(ctx context.Context, req *statev1.ApplyRequest) (*statev1.ApplyResponse, error) {
	c, err := m.applying(ctx, req, object.Room{})
	if err != nil {
		return nil, err
	}
	res, err := object.Do(ctx, m.kind, c.id(), req, c.fn, c.opts...)
	return res, c.named(err)
}

// ApplyTogether implements StateService.
func (m *Manager) ApplyTogether(ctx context.Context, req *statev1.ApplyTogetherRequest) (*statev1.ApplyTogetherResponse, error) {
	room := object.Room{Bytes: object.AnswerBytes / len(req.GetChanges())}
	room.Fits(0) // no first entry that fits whatever its size: there are others
	together := m.rt.Atomic(req)
	var all []applying
	var replies []**statev1.ApplyResponse
	for i, change := range req.GetChanges() {
		if change.GetRequestId() != "" {
			return nil, problem.InvalidArgument(fmt.Sprintf("changes[%d].request_id", i), "is set, and there is one request_id for all changes")
		}
		c, err := m.applying(ctx, change, room)
		if err != nil {
			return nil, ofChange(i, err)
		}
		if j := slices.IndexFunc(all, func(other applying) bool { return other.address == c.address }); j >= 0 {
			return nil, problem.InvalidArgument(fmt.Sprintf("changes[%d].ref", i), fmt.Sprintf("is that of changes[%d] too; put all operations on an object into one change", j))
		}
		if change.IfVersion != nil { //nolint:protogetter // unset is no condition
			c.opts = append(c.opts, object.IfVersion(object.Version(change.GetIfVersion())))
		}
		all, replies = append(all, c), append(replies, object.DoIn(together, m.kind, c.id(), c.fn, c.opts...))
	}
	err := together.Run(ctx)
	if refused, ok := errors.AsType[*object.ChangeError](err); ok {
		return nil, ofChange(refused.Index, all[refused.Index].named(refused.Err))
	}
	if err != nil {
		return nil, err
	}
	res := &statev1.ApplyTogetherResponse{}
	for _, reply := range replies {
		res.Changes = append(res.Changes, *reply)
	}
	return res, nil
}

// ofChange names the change that is refused.
func ofChange(i int, err error) error {
	if errors.Is(err, object.ErrNotFound) {
		err = problem.NotFound("there is no such object, or it is not yours")
	}
	if p, ok := errors.AsType[*problem.Error](err); ok {
		if e, ok := p.Detail.(*errorv1.Expectation); ok {
			e.Change = int32(i) //nolint:gosec // small
		}
	}
	return within("changes", i, err)
}

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

// DeleteState implements StateService.
func (m *Manager) DeleteState(ctx context.Context, req *statev1.DeleteStateRequest) (*statev1.DeleteStateResponse, error) {
	of, _, err := m.resolveChanged(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	res, err := rpc.Delete(ctx, m.kind, string(of.id()), req, func(existed bool, version int64) *statev1.DeleteStateResponse {
		return &statev1.DeleteStateResponse{Existed: existed, Version: version}
	})
	return res, of.named(err)
}

// ForkState implements StateService. Users fork only what is their own.
func (m *Manager) ForkState(ctx context.Context, req *statev1.ForkStateRequest) (*statev1.ForkStateResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	from, err := resolve(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	was, err := m.types.of(ctx, from.kind)
	if err != nil {
		return nil, err
	}
	to, as, err := m.resolveChanged(ctx, req.GetNewRef())
	if err != nil {
		return nil, err
	}
	if req.GetThrough() != nil && (req.GetThrough().GetCollection() == "" || req.GetThrough().GetKey() == "") {
		return nil, problem.InvalidArgument("through", "has no collection or no key")
	}
	at := object.Latest()
	if req.GetAtVersion() != 0 {
		at = object.Moment{Version: object.Version(req.GetAtVersion())}
	}
	caller.OwnOnly = true
	past, refused := m.kind.PastWhole(identity.With(ctx, caller), from.id(), at)
	res, err := object.Do(ctx, m.kind, to.id(), req, func(tx *object.Tx[state]) (*statev1.ForkStateResponse, error) {
		if refused != nil { // said here, so that a repeated request still gets its first reply
			return nil, refused
		}
		if err := tx.Become(past); err != nil {
			return nil, err
		}
		s := tx.State()
		was.migrate(s)
		s.Type, s.Name, s.Owner, s.Timers = to.kind, to.name, string(to.owner), nil
		s.Migrated = as.newest()
		if err := mergeLabels(s, req.GetLabels()); err != nil {
			return nil, err
		}
		if t := req.GetThrough(); t != nil {
			behind, _ := txEntries{tx}.scan(t.GetCollection(), part{after: t.GetKey()}, maxForked)
			for _, f := range behind {
				txEntries{tx}.remove(t.GetCollection(), f.key)
			}
		}
		return &statev1.ForkStateResponse{Object: present(as, tx.Info(), s, true)}, nil
	}, object.Create(), object.OwnedBy(to.owner))
	return res, to.named(outOfReach(err, at))
}

// maxForked is more entries than a fork can have.
const maxForked = 20_000

// outOfReach translates a HistoryError into the request's words.
func outOfReach(err error, at object.Moment) error {
	gone, ok := errors.AsType[*object.HistoryError](err)
	switch {
	case !ok:
		return err
	case at.Version > gone.Newest:
		return problem.InvalidArgument("at_version", fmt.Sprintf("the object is at version %d", gone.Newest))
	}
	p := problem.New(errorv1.Reason_REASON_HISTORY_GONE, fmt.Sprintf("the object's journal reaches back to version %d", gone.Oldest))
	p.Detail = &errorv1.History{OldestVersion: int64(gone.Oldest), NewestVersion: int64(gone.Newest)}
	return p
}
