package coordination

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// BeginCall implements CoordinationService.
func (m *Manager) BeginCall(ctx context.Context, req *coordinationv1.BeginCallRequest) (*coordinationv1.BeginCallResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	owner, err := onBehalf(caller, req.GetOwner())
	if err != nil {
		return nil, err
	}
	if owner != caller.User && !req.GetReconcile() {
		return nil, problem.InvalidArgument("owner", "goes with reconcile; to send for a user, act for them with Holdfast-User")
	}
	// The row knows the request: an answer that was lost is given again only while its lease runs.
	res, err := change(ctx, m, req.GetApi(), "", &emptypb.Empty{}, func(t *tx) (*coordinationv1.BeginCallResponse, error) {
		r := t.find(owner, req.GetKey())
		if req.IfVersion != nil && req.GetIfVersion() != t.at() && !repeats(r, req) {
			return nil, &object.VersionMismatchError{
				Kind: kindName, ID: object.ID(req.GetApi()), Expected: object.Version(req.GetIfVersion()), Current: object.Version(t.at()),
			}
		}
		t.loadUser(owner)
		b, err := t.begin(r, req, string(owner))
		if err != nil {
			return nil, err
		}
		b.res.Call, b.res.Version = shown(b.row), t.at()
		if b.put == nil {
			return b.res, errAnswered
		}
		t.putRow(b.put)
		t.Emit("call." + statusWord(b.put))
		b.res.Version = t.made()
		return b.res, nil
	}, object.ExpectAbsent(inCallKeys, callKey(owner, req.GetKey())))
	if err != nil {
		return nil, err
	}
	if res.GetDecision() == coordinationv1.Decision_DECISION_WAIT {
		m.countRefusal(req.GetApi(), res.GetWaitReason())
	}
	writeHeaders(ctx, res.GetLimits(), res.GetRetryAfter())
	return res, nil
}

// onBehalf is whose calls a request is about: the caller's, or for a service those of the user that it names.
func onBehalf(caller identity.Identity, owner string) (identity.User, error) {
	switch {
	case owner == "" || owner == string(caller.User):
		return caller.User, nil
	case service(caller):
		return identity.User(owner), nil
	}
	return "", problem.PermissionDenied("only a service may ask about another user's calls")
}

// FinishCall implements CoordinationService.
func (m *Manager) FinishCall(ctx context.Context, req *coordinationv1.FinishCallRequest) (*coordinationv1.FinishCallResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	owner, err := onBehalf(caller, req.GetOwner())
	if err != nil {
		return nil, err
	}
	switch f := req.GetFailed(); {
	case f.GetFailure() != coordinationv1.Failure_FAILURE_RETRYABLE && (f.GetNotSent() || f.GetRetryAfter() != nil):
		return nil, problem.InvalidArgument("failed.failure", "not_sent and retry_after go with FAILURE_RETRYABLE")
	case f.GetNotSent() && req.Cost != nil:
		return nil, problem.InvalidArgument("cost", "is nothing where the call was not sent; leave it out")
	}
	var took *time.Duration // of the attempt that ends
	res, err := change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.FinishCallResponse, error) {
		took = nil
		r := t.find(owner, req.GetKey())
		if r == nil || forgotten(r, t.config, t.ledger.now) {
			return nil, errNoCall
		}
		t.loadUser(owner)
		done, err := t.settleBy(r, req, service(t.caller))
		if err != nil {
			return nil, err
		}
		if done == nil {
			return &coordinationv1.FinishCallResponse{Call: shown(r), Version: t.at()}, errAnswered
		}
		if r.GetStatus() == storev1.CallStatus_CALL_STATUS_IN_FLIGHT && !req.GetFailed().GetNotSent() {
			lasted := t.ledger.now.Sub(r.GetBeginTime().AsTime())
			took = &lasted
		}
		t.putRow(done)
		t.Emit("call." + statusWord(done))
		return &coordinationv1.FinishCallResponse{Call: shown(done), Version: t.made()}, nil
	}, object.Prefetch(inCallKeys, callKey(owner, req.GetKey())))
	if err == nil && took != nil {
		m.tallies.count(tallyKey{caller.Tenant, req.GetApi()}, byAnswer(res.GetCall().GetOutcome().GetHttpStatus(), *took))
	}
	return res, err
}

// GetCall implements CoordinationService.
func (m *Manager) GetCall(ctx context.Context, req *coordinationv1.GetCallRequest) (*coordinationv1.GetCallResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	owner, err := onBehalf(caller, req.GetOwner())
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetApi())
	s, err := m.kind.View(ctx, id)
	if err != nil {
		return nil, err
	}
	ref, err := entry[*storev1.CallRef](ctx, m, id, inCallKeys, callKey(owner, req.GetKey()))
	if err != nil {
		return nil, err
	}
	var r row
	if ref != nil {
		if r, err = entry[row](ctx, m, id, inCalls, object.SeqKey(ref.GetSeq())); err != nil {
			return nil, err
		}
	}
	if r == nil || forgotten(r, configOf(req.GetApi(), s.State), m.now()) {
		return nil, refuse(errNoCall)
	}
	return &coordinationv1.GetCallResponse{Call: shown(asSeen(r, m.now()))}, nil
}

// entry reads one entry, or nil where there is none.
func entry[M proto.Message](ctx context.Context, m *Manager, id object.ID, collection, key string) (value M, err error) {
	page, err := m.kind.Lookup(ctx, id, collection, key)
	if err == nil && len(page.Entries) == 1 {
		value, _ = page.Entries[0].Value.(M)
	}
	return value, err
}

// ListCalls implements CoordinationService.
func (m *Manager) ListCalls(ctx context.Context, req *coordinationv1.ListCallsRequest) (*coordinationv1.ListCallsResponse, error) {
	before, err := rpc.Cursor(req)
	if err != nil {
		return nil, err
	}
	id, res := object.ID(req.GetApi()), &coordinationv1.ListCallsResponse{}
	s, err := m.kind.View(ctx, id)
	switch {
	case errors.Is(err, object.ErrNotFound) && readyMade(req.GetApi()) != nil:
		return res, nil
	case err != nil:
		return nil, err
	}
	config, size := configOf(req.GetApi(), s.State), cmp.Or(int(req.GetPageSize()), object.DefaultPageSize)
	before = cmp.Or(before, object.SeqKey(math.MaxInt64))
	var room object.Room
	const scans = 5 // a filter that matches little must not read the whole ledger at once
	for range scans {
		page, err := m.kind.Entries(ctx, id, inCalls, object.EntriesOptions{Before: before, PageSize: object.MaxPageSize})
		if err != nil {
			return nil, err
		}
		for _, e := range slices.Backward(page.Entries) {
			r, _ := e.Value.(row)
			if !forgotten(r, config, m.now()) && matches(asSeen(r, m.now()), req) {
				call := withoutBody(shown(asSeen(r, m.now())))
				if len(res.GetCalls()) == size || !room.Fits(rpc.AnswerSize(call)) {
					res.NextPageToken = rpc.Token(req, before)
					return res, nil
				}
				res.Calls = append(res.Calls, call)
			}
			before = e.Key
		}
		if !page.More {
			return res, nil
		}
	}
	res.NextPageToken = rpc.Token(req, before)
	return res, nil
}

func matches(r row, req *coordinationv1.ListCallsRequest) bool {
	return (len(req.GetStatuses()) == 0 || slices.Contains(req.GetStatuses(), coordinationv1.CallStatus(r.GetStatus()))) &&
		(req.GetOperation() == "" || r.GetOperation() == req.GetOperation())
}

// withoutBody leaves the body out of a call that shown has made.
func withoutBody(c *coordinationv1.Call) *coordinationv1.Call {
	if o := c.GetOutcome(); len(o.GetBody()) > 0 {
		o.Body, o.Truncated = nil, true
	}
	return c
}
