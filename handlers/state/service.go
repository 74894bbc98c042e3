package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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
