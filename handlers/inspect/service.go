// Package inspect is the inspector: it looks into objects of every kind, at what they are, were and wait for, and takes
// one back to what it was. It knows no kind; what it may show is said by the kinds' own messages.
package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
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

// maxEventEntries is how many entries an event names.
const maxEventEntries = 200

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
	token, err := rpc.Cursor(req)
	if err != nil {
		return nil, err
	}
	o := object.FindOptions{Prefix: req.GetPrefix(), ByID: req.GetById(), PageSize: int(req.GetPageSize()), PageToken: token}
	if req.Owner != nil {
		owner := identity.User(req.GetOwner())
		o.Owner = &owner
	}
	page, err := k.Find(ctx, o)
	if err != nil {
		return nil, rpc.PageError(err)
	}
	res := &inspectv1.ListObjectsResponse{NextPageToken: rpc.Token(req, page.Next)}
	for _, s := range page.Items {
		res.Objects = append(res.Objects, stored(k, s.Info))
	}
	return res, nil
}

// stored is an object as it stands in a list.
func stored(k anyKind, i object.Info) *inspectv1.StoredObject {
	return &inspectv1.StoredObject{
		ObjectId: string(i.ID), Owner: string(i.Owner), Version: int64(i.Version), CreateTime: rpc.Timestamp(i.CreateTime),
		UpdateTime: rpc.Timestamp(i.UpdateTime), ExpireTime: rpc.Timestamp(i.ExpireTime), Kind: k.Name(),
	}
}

// GetObject implements InspectService.
func (m *Manager) GetObject(ctx context.Context, req *inspectv1.GetObjectRequest) (*inspectv1.GetObjectResponse, error) {
	ctx, k, err := m.kind(ctx, req.GetRef().GetKind())
	if err != nil {
		return nil, err
	}
	after, err := rpc.Cursor(req)
	if err != nil {
		return nil, err
	}
	read := m.now
	if req.GetAt() != nil {
		read = m.past
	}
	return read(ctx, k, req, object.EntriesOptions{After: after, PageSize: int(req.GetPageSize())})
}

// now is an object as it is.
func (m *Manager) now(ctx context.Context, k anyKind, req *inspectv1.GetObjectRequest, o object.EntriesOptions) (*inspectv1.GetObjectResponse, error) {
	id := object.ID(req.GetRef().GetObjectId())
	s, err := k.View(ctx, id)
	if err != nil {
		return nil, err
	}
	out := stored(k, s.Info)
	out.SchemaVersion, out.Collections = k.SchemaVersion(), k.Collections()
	if out.State, err = render(s.State); err != nil {
		return nil, err
	}
	timers, _, err := m.rt.Timers(ctx, object.TimerOptions{Kind: k.Name(), ID: id, PageSize: object.MaxPageSize})
	if err != nil {
		return nil, err
	}
	for i := range timers {
		out.Timers = append(out.Timers, presentTimer(&timers[i]))
	}
	size, err := k.Measure(ctx, id)
	if err != nil {
		return nil, err
	}
	out.Hibernated = size.Asleep
	out.Size = &inspectv1.Size{StateBytes: size.StateBytes, EntryBytes: size.EntryBytes, EntryCount: int32(min(size.Entries, math.MaxInt32))} //nolint:gosec // bounded
	res := &inspectv1.GetObjectResponse{Object: out}
	if req.GetCollection() == "" {
		return res, nil
	}
	page, err := k.Entries(ctx, id, req.GetCollection(), o)
	if err != nil {
		return nil, err
	}
	return res, addEntries(res, req, &page)
}

// past is an object as it was.
func (m *Manager) past(ctx context.Context, k anyKind, req *inspectv1.GetObjectRequest, o object.EntriesOptions) (*inspectv1.GetObjectResponse, error) {
	id, at := object.ID(req.GetRef().GetObjectId()), moment(req.GetAt())
	past, err := k.Past(ctx, id, at)
	if err != nil {
		return nil, outOfReach(err, "at", at)
	}
	state, err := past.State()
	if err != nil {
		return nil, err
	}
	out := stored(k, past.Info(id))
	out.SchemaVersion, out.Collections = k.SchemaVersion(), k.Collections()
	if out.State, err = render(state); err != nil {
		return nil, err
	}
	for name, due := range past.Timers() {
		out.Timers = append(out.Timers, &inspectv1.Timer{Kind: k.Name(), ObjectId: string(id), Name: name, DueTime: timestamppb.New(due)})
	}
	slices.SortFunc(out.GetTimers(), func(a, b *inspectv1.Timer) int { return cmp.Compare(a.GetName(), b.GetName()) })
	res := &inspectv1.GetObjectResponse{Object: out}
	if req.GetCollection() == "" {
		return res, nil
	}
	page, err := k.EntriesAt(ctx, id, object.Moment{Version: past.Version()}, req.GetCollection(), o)
	if err != nil {
		return nil, outOfReach(err, "at", at)
	}
	return res, addEntries(res, req, &page)
}

// addEntries renders as much of a page as the answer has room for. A Struct may be larger than what it renders.
func addEntries(res *inspectv1.GetObjectResponse, req *inspectv1.GetObjectRequest, page *object.EntriesPage) error {
	room := object.Room{Bytes: object.AnswerBytes - rpc.AnswerSize(res)}
	for _, e := range page.Entries {
		value, err := render(e.Value)
		if err != nil {
			return err
		}
		entry := &inspectv1.StoredEntry{Collection: req.GetCollection(), Key: e.Key, Value: value}
		if !room.Fits(max(proto.Size(entry), e.Size())) {
			page.More = true
			break
		}
		res.Entries = append(res.Entries, entry)
	}
	if n := len(res.GetEntries()); page.More && n > 0 {
		res.NextPageToken = rpc.Token(req, res.GetEntries()[n-1].GetKey())
	}
	return nil
}

// ListEvents implements InspectService.
func (m *Manager) ListEvents(ctx context.Context, req *inspectv1.ListEventsRequest) (*inspectv1.ListEventsResponse, error) {
	ctx, k, err := m.kind(ctx, req.GetRef().GetKind())
	if err != nil {
		return nil, err
	}
	var from object.Version
	if err := rpc.ScanCursor(req, &from); err != nil {
		return nil, err
	}
	page, err := k.History(ctx, object.ID(req.GetRef().GetObjectId()), from, int(req.GetPageSize()))
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
	if n := len(res.GetEvents()); page.More && n > 0 {
		res.NextPageToken = rpc.Token(req, strconv.FormatInt(res.GetEvents()[n-1].GetVersion()-1, 10))
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

// DiffObject implements InspectService.
func (m *Manager) DiffObject(ctx context.Context, req *inspectv1.DiffObjectRequest) (*inspectv1.DiffObjectResponse, error) {
	ctx, k, err := m.kind(ctx, req.GetRef().GetKind())
	if err != nil {
		return nil, err
	}
	from, to := moment(req.GetFrom()), moment(req.GetTo())
	skip := 0
	if req.GetPageToken() != "" {
		from, to = object.Moment{}, object.Moment{}
		if err := rpc.ScanCursor(req, &from.Version, &to.Version, &skip); err != nil {
			return nil, err
		}
	}
	d, err := k.Diff(ctx, object.ID(req.GetRef().GetObjectId()), from, to)
	if err != nil {
		if to.Version > 0 {
			return nil, outOfReach(err, "to", to)
		}
		return nil, outOfReach(err, "from", from)
	}
	res := &inspectv1.DiffObjectResponse{
		FromVersion: int64(d.From.Version), ToVersion: int64(d.To.Version), EntryCount: int32(min(len(d.Entries), 1<<30)),
	}
	if skip == 0 {
		if res.Fields, err = fieldDifferences(d.Before, d.After); err != nil {
			return nil, err
		}
	}
	room := object.Room{Bytes: object.AnswerBytes - rpc.AnswerSize(res)}
	rest := d.Entries[min(skip, len(d.Entries)):]
	for _, e := range rest[:min(len(rest), cmp.Or(int(req.GetPageSize()), object.DefaultPageSize))] {
		difference := &inspectv1.EntryDifference{Collection: e.Collection, Key: e.Key}
		if difference.Before, err = render(e.Before); err != nil {
			return nil, err
		}
		if difference.After, err = render(e.After); err != nil {
			return nil, err
		}
		if !room.Fits(rpc.AnswerSize(difference)) {
			break
		}
		res.Entries = append(res.Entries, difference)
	}
	if n := skip + len(res.GetEntries()); n < len(d.Entries) {
		res.NextPageToken = rpc.Token(req, fmt.Sprint(d.From.Version, " ", d.To.Version, " ", n))
	}
	return res, nil
}

// RestoreObject implements InspectService.
func (m *Manager) RestoreObject(ctx context.Context, req *inspectv1.RestoreObjectRequest) (*inspectv1.RestoreObjectResponse, error) {
	_, k, err := m.kind(ctx, req.GetRef().GetKind())
	if err != nil {
		return nil, err
	}
	id, at := object.ID(req.GetRef().GetObjectId()), moment(req.GetAt())
	var res *inspectv1.RestoreObjectResponse
	err = k.Restore(ctx, id, at, func(past *object.Past, opts ...object.UpdateOption) (err error) {
		res, err = object.Do(ctx, k, id, req, func(tx *object.Tx[proto.Message]) (*inspectv1.RestoreObjectResponse, error) {
			if err := mayRewrite(k, tx); err != nil {
				return nil, err
			}
			if err := tx.Become(past); err != nil {
				return nil, err
			}
			return &inspectv1.RestoreObjectResponse{RestoredVersion: int64(past.Version()), Version: int64(tx.Info().Version)}, nil
		}, opts...)
		return err
	})
	return res, outOfReach(err, "at", at)
}

// mayRewrite refuses a user if the kind does not let users bypass its manager's rules.
func mayRewrite(k anyKind, tx *object.Tx[proto.Message]) error {
	if !tx.Caller().Service && !k.UserRestore() {
		return problem.PermissionDenied("objects of the kind " + k.Name() + " may be restored and deleted here by services only")
	}
	return nil
}

// DeleteObject implements InspectService.
func (m *Manager) DeleteObject(ctx context.Context, req *inspectv1.DeleteObjectRequest) (*inspectv1.DeleteObjectResponse, error) {
	_, k, err := m.kind(ctx, req.GetRef().GetKind())
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetRef().GetObjectId())
	res, err := object.Do(ctx, k, id, req, func(tx *object.Tx[proto.Message]) (*inspectv1.DeleteObjectResponse, error) {
		if err := mayRewrite(k, tx); err != nil {
			return nil, err
		}
		tx.DeleteObject()
		return &inspectv1.DeleteObjectResponse{Existed: true, Version: int64(tx.Info().Version)}, nil
	}, object.Rewrite())
	if rpc.Absent(err, req) {
		return &inspectv1.DeleteObjectResponse{}, nil
	}
	return res, err
}

// ListTimers implements InspectService.
func (m *Manager) ListTimers(ctx context.Context, req *inspectv1.ListTimersRequest) (*inspectv1.ListTimersResponse, error) {
	ctx, _, err := m.kind(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	token, err := rpc.Cursor(req)
	if err != nil {
		return nil, err
	}
	timers, next, err := m.rt.Timers(ctx, object.TimerOptions{
		Kind: req.GetKind(), ID: object.ID(req.GetObjectId()), Parked: req.GetParked(), PageSize: int(req.GetPageSize()), PageToken: token,
	})
	if err != nil {
		return nil, rpc.PageError(err)
	}
	res := &inspectv1.ListTimersResponse{NextPageToken: rpc.Token(req, next)}
	for i := range timers {
		res.Timers = append(res.Timers, presentTimer(&timers[i]))
	}
	return res, nil
}

// RetryTimer implements InspectService.
func (m *Manager) RetryTimer(ctx context.Context, req *inspectv1.RetryTimerRequest) (*inspectv1.RetryTimerResponse, error) {
	_, k, err := m.kind(ctx, req.GetRef().GetKind())
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetRef().GetObjectId())
	return object.Do(ctx, k, id, req, func(tx *object.Tx[proto.Message]) (*inspectv1.RetryTimerResponse, error) {
		if _, ok := tx.Timer(req.GetName()); !ok {
			return nil, problem.NotFound("the object has no timer of that name")
		}
		tx.SetTimer(req.GetName(), tx.Now())
		tx.Emit("timer retried")
		return &inspectv1.RetryTimerResponse{Version: int64(tx.Info().Version)}, nil
	}, object.Rewrite())
}

func presentTimer(t *object.TimerInfo) *inspectv1.Timer {
	return &inspectv1.Timer{
		Kind: t.Kind, ObjectId: string(t.ID), Name: t.Name, DueTime: timestamppb.New(t.DueTime), NextTime: timestamppb.New(t.NextTime),
		Attempts: int32(min(t.Attempts, 1<<30)), LastError: t.LastError, Parked: t.Parked, //nolint:gosec // bounded
	}
}
