// Package inspect is the inspector: it looks into objects of every kind, at what they are, were and wait for, and takes
// one back to what it was. It knows no kind; what it may show is said by the kinds' own messages.
package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	inspectv1 "holdfast/gen/holdfast/inspect/v1"
	"holdfast/gen/holdfast/inspect/v1/inspectv1connect"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// anyKind is a kind whatever its states are.
type anyKind = *object.Kind[proto.Message]

// Manager serves InspectService. It is safe for concurrent use.
type Manager struct {
	rt *object.Runtime
}

var _ inspectv1connect.InspectServiceHandler = (*Manager)(nil)

// NewManager inspects all kinds that are registered with rt, also those that are yet to be.
func NewManager(rt *object.Runtime) *Manager { return &Manager{rt} }

// Lists of differences and of what an event changed are cut off behind so many.
const (
	maxDifferences  = 1000
	maxEventEntries = 200
	// maxDiffered leaves room for the names of all differences.
	maxDiffered = object.AnswerBytes - maxDifferences*512
)

// kind returns a kind that the caller may inspect, and a context that reads of it what the caller may see here: a service all of
// the tenant's, a user what the user owns.
func (m *Manager) kind(ctx context.Context, name string) (own context.Context, k anyKind, err error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, nil, err
	}
	if name != "" {
		var ok bool
		switch k, ok = m.rt.Kind(name); {
		case !ok:
			return nil, nil, problem.InvalidArgument("kind", fmt.Sprintf("there is no kind %q; there are %s", name, strings.Join(m.rt.Kinds(), ", ")))
		case k.ServicesOnly() && !caller.Service:
			return nil, nil, problem.PermissionDenied("objects of the kind " + name + " are for services only")
		}
	}
	caller.OwnOnly = true
	return identity.With(ctx, caller), k, nil
}

// ListObjects implements InspectService.
func (m *Manager) ListObjects(ctx context.Context, req *inspectv1.ListObjectsRequest) (*inspectv1.ListObjectsResponse, error) {
	if req.GetKind() == "" {
		return &inspectv1.ListObjectsResponse{Kinds: m.rt.Kinds()}, nil
	}
	ctx, k, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	o := object.FindOptions{
		Prefix: req.GetPrefix(), ByID: req.GetOrder() == inspectv1.Order_ORDER_ID, PageSize: int(req.GetPageSize()),
		PageToken: req.GetPageToken(),
	}
	if req.Owner != nil {
		owner := identity.User(req.GetOwner())
		o.Owner = &owner
	}
	page, err := k.Find(ctx, o)
	if err != nil {
		return nil, rpc.PageError(err)
	}
	res := &inspectv1.ListObjectsResponse{NextPageToken: page.Next}
	for _, s := range page.Items {
		res.Objects = append(res.Objects, &inspectv1.ObjectItem{ObjectId: string(s.ID), Owner: string(s.Owner), Metadata: rpc.Metadata(s.Info)})
	}
	return res, nil
}

// GetObject implements InspectService.
func (m *Manager) GetObject(ctx context.Context, req *inspectv1.GetObjectRequest) (*inspectv1.GetObjectResponse, error) {
	ctx, k, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetObjectId())
	s, err := k.View(ctx, id)
	if err != nil {
		return nil, err
	}
	res := &inspectv1.GetObjectResponse{
		Owner: string(s.Owner), SchemaVersion: k.SchemaVersion(), Collections: k.Collections(), Metadata: rpc.Metadata(s.Info),
	}
	if res.State, err = render(s.State); err != nil {
		return nil, err
	}
	timers, _, err := m.rt.Timers(ctx, object.TimerOptions{Kind: k.Name(), ID: id, PageSize: object.MaxPageSize})
	if err != nil {
		return nil, err
	}
	for i := range timers {
		res.Timers = append(res.Timers, presentTimer(&timers[i]))
	}
	if req.GetCollection() != "" {
		page, err := k.Entries(ctx, id, req.GetCollection(), object.EntriesOptions{After: req.GetAfterKey(), PageSize: int(req.GetPageSize())})
		if err != nil {
			return nil, err
		}
		if res.Entries, res.NextKey, err = renderPage(req.GetCollection(), &page, rpc.AnswerSize(res)); err != nil {
			return nil, err
		}
	}
	size, err := k.Measure(ctx, id)
	if err != nil {
		return nil, err
	}
	res.Asleep = size.Asleep
	res.Size = &inspectv1.Size{StateBytes: size.StateBytes, EntryBytes: size.EntryBytes, EntryCount: size.Entries}
	return res, nil
}

// renderPage renders as much of a page as an answer has room for beside what it has taken. A Struct may be larger than what
// it renders.
func renderPage(collection string, page *object.EntriesPage, taken int) (out []*inspectv1.Entry, next string, err error) {
	room := object.Room{Bytes: object.AnswerBytes - taken}
	for _, e := range page.Entries {
		value, err := render(e.Value)
		if err != nil {
			return nil, "", err
		}
		entry := &inspectv1.Entry{Collection: collection, Key: e.Key, Value: value}
		if !room.Fits(max(proto.Size(entry), e.Size())) {
			return out, out[len(out)-1].GetKey(), nil
		}
		out = append(out, entry)
	}
	if page.More && len(page.Entries) > 0 {
		next = page.Entries[len(page.Entries)-1].Key
	}
	return out, next, nil
}

// ListEvents implements InspectService.
func (m *Manager) ListEvents(ctx context.Context, req *inspectv1.ListEventsRequest) (*inspectv1.ListEventsResponse, error) {
	ctx, k, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	page, err := k.History(ctx, object.ID(req.GetObjectId()), object.Version(req.GetFromVersion()), int(req.GetPageSize()))
	if err != nil {
		return nil, err
	}
	res := &inspectv1.ListEventsResponse{}
	var room object.Room
	for _, e := range page.Events {
		event := &inspectv1.Event{
			Version: int64(e.Version), Type: e.Type, Actor: string(e.Actor), Time: timestamppb.New(e.Time), RequestId: e.RequestID,
			Fields: e.Fields, Timers: e.Timers, EntryCount: int32(min(len(e.Entries), 1<<30)),
		}
		for _, c := range e.Entries[:min(len(e.Entries), maxEventEntries)] {
			event.Entries = append(event.Entries, c.Collection+"/"+c.Key)
		}
		if !room.Fits(rpc.AnswerSize(event)) {
			page.More = true
			break
		}
		res.Events = append(res.Events, event)
	}
	if page.More && len(res.GetEvents()) > 0 {
		res.NextFromVersion = res.GetEvents()[len(res.GetEvents())-1].GetVersion() - 1
	}
	return res, nil
}

// moment is that of a request; unset: now.
func moment(m *inspectv1.Moment) object.Moment {
	switch {
	case m == nil:
		return object.Latest()
	case m.GetTime() != nil:
		return object.Moment{Time: m.GetTime().AsTime()}
	default:
		return object.Moment{Version: object.Version(m.GetVersion())}
	}
}

// outOfReach translates a HistoryError into the request's words.
func outOfReach(err error, field string, at object.Moment) error {
	gone, ok := errors.AsType[*object.HistoryError](err)
	switch {
	case !ok:
		return err
	case at.Version > gone.Newest:
		return problem.InvalidArgument(field, fmt.Sprintf("the object is at version %d", gone.Newest))
	}
	p := problem.New(errorv1.Reason_REASON_HISTORY_GONE, fmt.Sprintf(
		"the object's journal reaches back to version %d; what was before is gone, or was another object of that id", gone.Oldest))
	p.Detail = &errorv1.History{OldestVersion: int64(gone.Oldest), NewestVersion: int64(gone.Newest)}
	return p
}

// GetObjectAt implements InspectService.
func (m *Manager) GetObjectAt(ctx context.Context, req *inspectv1.GetObjectAtRequest) (*inspectv1.GetObjectAtResponse, error) {
	ctx, k, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	id, at := object.ID(req.GetObjectId()), moment(req.GetAt())
	past, err := k.Past(ctx, id, at)
	if err != nil {
		return nil, outOfReach(err, "at", at)
	}
	state, err := past.State()
	if err != nil {
		return nil, err
	}
	i := past.Info(id)
	res := &inspectv1.GetObjectAtResponse{Owner: string(i.Owner), Metadata: rpc.Metadata(i)}
	if res.State, err = render(state); err != nil {
		return nil, err
	}
	for name, due := range past.Timers() {
		res.Timers = append(res.Timers, &inspectv1.Timer{Kind: k.Name(), ObjectId: string(id), Name: name, DueTime: timestamppb.New(due)})
	}
	slices.SortFunc(res.GetTimers(), func(a, b *inspectv1.Timer) int { return cmp.Compare(a.GetName(), b.GetName()) })
	if req.GetCollection() == "" {
		return res, nil
	}
	page, err := k.EntriesAt(ctx, id, object.Moment{Version: past.Version()}, req.GetCollection(),
		object.EntriesOptions{After: req.GetAfterKey(), PageSize: int(req.GetPageSize())})
	if err != nil {
		return nil, outOfReach(err, "at", at)
	}
	res.Entries, res.NextKey, err = renderPage(req.GetCollection(), &page, rpc.AnswerSize(res))
	return res, err
}

// DiffObject implements InspectService.
func (m *Manager) DiffObject(ctx context.Context, req *inspectv1.DiffObjectRequest) (*inspectv1.DiffObjectResponse, error) {
	ctx, k, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	from, to := moment(req.GetFrom()), moment(req.GetTo())
	d, err := k.Diff(ctx, object.ID(req.GetObjectId()), from, to)
	if err != nil {
		if to.Version > 0 {
			return nil, outOfReach(err, "to", to)
		}
		return nil, outOfReach(err, "from", from)
	}
	res := &inspectv1.DiffObjectResponse{
		FromVersion: int64(d.From.Version), ToVersion: int64(d.To.Version), EntryCount: int32(min(len(d.Entries), 1<<30)),
	}
	if res.Fields, err = fieldDifferences(d.Before, d.After); err != nil {
		return nil, err
	}
	taken := rpc.AnswerSize(res)
	for _, e := range d.Entries[:min(len(d.Entries), maxDifferences)] {
		difference := &inspectv1.EntryDifference{Collection: e.Collection, Key: e.Key}
		if difference.Before, err = render(e.Before); err != nil {
			return nil, err
		}
		if difference.After, err = render(e.After); err != nil {
			return nil, err
		}
		if size := rpc.AnswerSize(difference); taken+size <= maxDiffered {
			taken += size
		} else {
			difference.Before, difference.After = nil, nil
		}
		res.Entries = append(res.Entries, difference)
	}
	return res, nil
}

// RestoreObject implements InspectService.
func (m *Manager) RestoreObject(ctx context.Context, req *inspectv1.RestoreObjectRequest) (*inspectv1.RestoreObjectResponse, error) {
	_, k, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	id, at := object.ID(req.GetObjectId()), moment(req.GetAt())
	var res *inspectv1.RestoreObjectResponse
	err = k.Restore(ctx, id, at, func(past *object.Past, opts ...object.UpdateOption) (err error) {
		res, err = rpc.Do(ctx, k, id, req, func(tx *object.Tx[proto.Message]) (*inspectv1.RestoreObjectResponse, error) {
			if err := mayRewrite(k, tx); err != nil {
				return nil, err
			}
			if err := tx.Become(past); err != nil {
				return nil, err
			}
			return &inspectv1.RestoreObjectResponse{RestoredVersion: int64(past.Version())}, nil
		}, opts...)
		return err
	})
	return res, outOfReach(err, "at", at)
}

// mayRewrite refuses a user if the kind does not let users bypass its manager's rules.
func mayRewrite(k anyKind, tx *object.Tx[proto.Message]) error {
	if !tx.Caller().Service && !k.UserRestore() {
		return problem.PermissionDenied("objects of the kind " + k.Name() + " may be restored, forked and deleted here by services only")
	}
	return nil
}

// ForkObject implements InspectService.
func (m *Manager) ForkObject(ctx context.Context, req *inspectv1.ForkObjectRequest) (*inspectv1.ForkObjectResponse, error) {
	own, k, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	at := moment(req.GetAt())
	past, refused := k.PastWhole(own, object.ID(req.GetObjectId()), at)
	res, err := object.Do(ctx, k, object.ID(req.GetNewObjectId()), req, func(tx *object.Tx[proto.Message]) (*inspectv1.ForkObjectResponse, error) {
		if refused != nil {
			return nil, refused
		}
		if err := mayRewrite(k, tx); err != nil {
			return nil, err
		}
		if err := tx.Become(past); err != nil {
			return nil, err
		}
		i := tx.Info()
		return &inspectv1.ForkObjectResponse{ForkedVersion: int64(past.Version()), Owner: string(i.Owner), Metadata: rpc.Metadata(i)}, nil
	}, object.Create())
	return res, outOfReach(err, "at", at)
}

// DeleteObject implements InspectService.
func (m *Manager) DeleteObject(ctx context.Context, req *inspectv1.DeleteObjectRequest) (*inspectv1.DeleteObjectResponse, error) {
	_, k, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	return rpc.Do(ctx, k, object.ID(req.GetObjectId()), req, func(tx *object.Tx[proto.Message]) (*inspectv1.DeleteObjectResponse, error) {
		if err := mayRewrite(k, tx); err != nil {
			return nil, err
		}
		tx.DeleteObject()
		return &inspectv1.DeleteObjectResponse{}, nil
	}, object.Rewrite())
}

// ListTimers implements InspectService.
func (m *Manager) ListTimers(ctx context.Context, req *inspectv1.ListTimersRequest) (*inspectv1.ListTimersResponse, error) {
	ctx, _, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	timers, next, err := m.rt.Timers(ctx, object.TimerOptions{
		Kind: req.GetKind(), ID: object.ID(req.GetObjectId()), Parked: req.GetParked(), PageSize: int(req.GetPageSize()),
		PageToken: req.GetPageToken(),
	})
	if err != nil {
		return nil, rpc.PageError(err)
	}
	res := &inspectv1.ListTimersResponse{NextPageToken: next}
	for i := range timers {
		res.Timers = append(res.Timers, presentTimer(&timers[i]))
	}
	return res, nil
}

// RetryTimer implements InspectService.
func (m *Manager) RetryTimer(ctx context.Context, req *inspectv1.RetryTimerRequest) (*inspectv1.RetryTimerResponse, error) {
	_, k, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	return rpc.Do(ctx, k, object.ID(req.GetObjectId()), req, func(tx *object.Tx[proto.Message]) (*inspectv1.RetryTimerResponse, error) {
		if _, ok := tx.Timer(req.GetName()); !ok {
			return nil, problem.NotFound("the object has no timer of that name")
		}
		tx.SetTimer(req.GetName(), tx.Now())
		tx.Emit("timer retried")
		return &inspectv1.RetryTimerResponse{}, nil
	}, object.Rewrite())
}

func presentTimer(t *object.TimerInfo) *inspectv1.Timer {
	return &inspectv1.Timer{
		Kind: t.Kind, ObjectId: string(t.ID), Name: t.Name, DueTime: timestamppb.New(t.DueTime), NextTime: timestamppb.New(t.NextTime),
		Attempts: int32(min(t.Attempts, 1<<30)), LastError: t.LastError, Parked: t.Parked, //nolint:gosec // bounded
	}
}
