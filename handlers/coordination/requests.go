package coordination

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// BeginRequest implements CoordinationService.
func (m *Manager) BeginRequest(
	ctx context.Context, req *coordinationv1.BeginRequestRequest,
) (*coordinationv1.BeginRequestResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	owner, err := onBehalf(caller, req.GetUser())
	if err != nil {
		return nil, err
	}
	if owner != caller.User && !req.GetReconcile() {
		return nil, problem.InvalidArgument("user", "goes with reconcile; to send for a user, act for them with Holdfast-User")
	}
	res, err := change(ctx, m, req.GetApi(), "", req, func(t *tx) (*coordinationv1.BeginRequestResponse, error) {
		t.loadUser(owner)
		b, err := t.begin(t.find(owner, req.GetRequestId()), req, string(owner))
		if err != nil {
			return nil, err
		}
		b.res.Request = shown(b.res.GetRequest())
		if b.put == nil {
			return answered(t, b.res)
		}
		t.putRow(b.put)
		t.Emit("request." + statusWord(b.put))
		return b.res, nil
	}, object.ExpectAbsent(inRequestIDs, requestKey(owner, req.GetRequestId())))
	if err != nil {
		return nil, err
	}
	if res.GetDecision() == coordinationv1.Decision_DECISION_WAIT {
		m.countRefusal(req.GetApi(), res.GetReason())
	}
	writeHeaders(ctx, res.GetLimits(), res.GetRetryAfter())
	return res, nil
}

// onBehalf is whose requests a call is about: the caller's, or for a service those of the user that it names.
func onBehalf(caller identity.Identity, user string) (identity.User, error) {
	switch {
	case user == "" || user == string(caller.User):
		return caller.User, nil
	case service(caller):
		return identity.User(user), nil
	}
	return "", problem.PermissionDenied("only a service may ask about another user's requests")
}

// CompleteRequest implements CoordinationService.
func (m *Manager) CompleteRequest(
	ctx context.Context, req *coordinationv1.CompleteRequestRequest,
) (*coordinationv1.CompleteRequestResponse, error) {
	seq, _ := parseLease(req.GetLease())
	return change(ctx, m, req.GetApi(), "", req, func(t *tx) (*coordinationv1.CompleteRequestResponse, error) {
		r, lease, err := t.leased(req.GetLease(), req.GetRequestId())
		if err != nil {
			return nil, err
		}
		t.loadUser(identity.User(r.GetOwner()))
		done, err := t.complete(r, lease, req)
		if err != nil {
			return nil, err
		}
		if done == nil {
			return answered(t, &coordinationv1.CompleteRequestResponse{Request: shown(r)})
		}
		t.report(demandOfRow(r), req.GetResponse())
		t.putRow(done)
		t.Emit("request.completed")
		return &coordinationv1.CompleteRequestResponse{Request: shown(done)}, nil
	}, object.Prefetch(inRequests, object.SeqKey(seq)))
}

// FailRequest implements CoordinationService.
func (m *Manager) FailRequest(
	ctx context.Context, req *coordinationv1.FailRequestRequest,
) (*coordinationv1.FailRequestResponse, error) {
	if req.GetFailure() != coordinationv1.Failure_FAILURE_RETRYABLE && (req.GetNotSent() || req.GetRetryAfter() != nil) {
		return nil, problem.InvalidArgument("failure", "not_sent and retry_after go with FAILURE_RETRYABLE")
	}
	seq, _ := parseLease(req.GetLease())
	return change(ctx, m, req.GetApi(), "", req, func(t *tx) (*coordinationv1.FailRequestResponse, error) {
		r, lease, err := t.leased(req.GetLease(), req.GetRequestId())
		if err != nil {
			return nil, err
		}
		t.loadUser(identity.User(r.GetOwner()))
		failed, err := t.fail(r, lease, req)
		if err != nil {
			return nil, err
		}
		if failed == nil {
			return answered(t, &coordinationv1.FailRequestResponse{Request: shown(r)})
		}
		t.report(demandOfRow(r), req.GetResponse())
		t.putRow(failed)
		t.Emit("request." + statusWord(failed))
		return &coordinationv1.FailRequestResponse{Request: shown(failed)}, nil
	}, object.Prefetch(inRequests, object.SeqKey(seq)))
}

// GetRequest implements CoordinationService.
func (m *Manager) GetRequest(
	ctx context.Context, req *coordinationv1.GetRequestRequest,
) (*coordinationv1.GetRequestResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	owner, err := onBehalf(caller, req.GetUser())
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetApi())
	s, err := m.kind.View(ctx, id)
	if err != nil {
		return nil, err
	}
	ref, _, err := entry[*storev1.RequestRef](ctx, m, id, inRequestIDs, requestKey(owner, req.GetRequestId()))
	if err != nil {
		return nil, err
	}
	var r row
	var info object.Info
	if ref != nil {
		if r, info, err = entry[row](ctx, m, id, inRequests, object.SeqKey(ref.GetSeq())); err != nil {
			return nil, err
		}
	}
	if r == nil || forgotten(r, configOf(req.GetApi(), s.State), m.now()) {
		return nil, refuse(errNoRequest)
	}
	return &coordinationv1.GetRequestResponse{Request: shown(asSeen(r, m.now())), Metadata: rpc.Metadata(info)}, nil
}

// entry reads one entry, or nil where there is none.
func entry[M proto.Message](ctx context.Context, m *Manager, id object.ID, collection, key string) (value M, _ object.Info, err error) {
	// The last entry in front of the first key behind it.
	page, err := m.kind.Entries(ctx, id, collection, object.EntriesOptions{Before: key + "\x01", PageSize: 1})
	if err != nil {
		return value, object.Info{}, err
	}
	if len(page.Entries) == 1 && page.Entries[0].Key == key {
		value, _ = page.Entries[0].Value.(M)
	}
	return value, page.Info, nil
}

// ListRequests implements CoordinationService.
func (m *Manager) ListRequests(
	ctx context.Context, req *coordinationv1.ListRequestsRequest,
) (*coordinationv1.ListRequestsResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetApi())
	s, err := m.kind.View(ctx, id)
	if errors.Is(err, object.ErrNotFound) && readyMade(req.GetApi()) != nil {
		return &coordinationv1.ListRequestsResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	config, size, before := configOf(req.GetApi(), s.State), int(req.GetPageSize()), req.GetBeforeSeq()
	if size == 0 {
		size = object.DefaultPageSize
	}
	if before == 0 {
		before = math.MaxInt64
	}
	res := &coordinationv1.ListRequestsResponse{Metadata: rpc.Metadata(s.Info)}
	var room object.Room
	const scans = 5 // a filter that matches little must not read the whole ledger at once
	for range scans {
		page, err := m.kind.Entries(ctx, id, inRequests, object.EntriesOptions{Before: object.SeqKey(before), PageSize: object.MaxPageSize})
		if err != nil {
			return nil, err
		}
		for _, e := range slices.Backward(page.Entries) {
			r, _ := e.Value.(row)
			if len(res.GetRequests()) == size {
				res.NextBeforeSeq = before
				return res, nil
			}
			if mayTouch(caller, r.GetOwner()) && !forgotten(r, config, m.now()) && matches(r, req, m.now()) {
				request := withoutBody(shown(asSeen(r, m.now())))
				if !room.Fits(rpc.AnswerSize(request)) {
					res.NextBeforeSeq = before
					return res, nil
				}
				res.Requests = append(res.Requests, request)
			}
			before = r.GetSeq()
		}
		if !page.More {
			return res, nil
		}
	}
	res.NextBeforeSeq = before
	return res, nil
}

func matches(r row, req *coordinationv1.ListRequestsRequest, now time.Time) bool {
	return (req.GetStatus() == storev1.RequestStatus_REQUEST_STATUS_UNSPECIFIED || asSeen(r, now).GetStatus() == req.GetStatus()) &&
		(req.GetOperation() == "" || r.GetOperation() == req.GetOperation())
}

func withoutBody(r row) row {
	if len(r.GetOutcome().GetBody()) == 0 {
		return r
	}
	r = proto.CloneOf(r)
	r.Outcome.Body, r.Outcome.Truncated = nil, true
	return r
}
