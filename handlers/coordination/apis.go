package coordination

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	objectv1 "holdfast/gen/holdfast/object/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// GetApiState implements CoordinationService.
func (m *Manager) GetApiState( //nolint:revive // the service has it so
	ctx context.Context, req *coordinationv1.GetApiStateRequest,
) (*coordinationv1.GetApiStateResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetApi())
	s, err := m.kind.View(ctx, id)
	switch {
	case errors.Is(err, object.ErrNotFound) && readyMade(req.GetApi()) != nil:
		return &coordinationv1.GetApiStateResponse{State: present(req.GetApi(), &storev1.ApiState{}, nil, caller, m.now())}, nil
	case err != nil:
		return nil, err
	}
	var user *storev1.UserBuckets
	if caller.User != "" && countsUsers(configOf(req.GetApi(), s.State)) {
		if user, _, err = entry[*storev1.UserBuckets](ctx, m, id, inUserBuckets, ownerKey(caller.User)); err != nil {
			return nil, err
		}
		if user == nil {
			user = &storev1.UserBuckets{}
		}
	}
	res := &coordinationv1.GetApiStateResponse{State: present(req.GetApi(), s.State, user, caller, m.now()), Metadata: rpc.Metadata(s.Info)}
	writeHeaders(ctx, res.GetState().GetLimits(), nil)
	return res, nil
}

// ListApis implements CoordinationService.
func (m *Manager) ListApis(ctx context.Context, req *coordinationv1.ListApisRequest) (*coordinationv1.ListApisResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	apis, next, err := rpc.List(ctx, m.kind, req, object.ListOptions{Around: standingBytes}, func(s object.Snapshot[state]) *coordinationv1.Api {
		return present(string(s.ID), s.State, nil, caller, m.now())
	})
	return &coordinationv1.ListApisResponse{Apis: apis, NextPageToken: next}, err
}

// standingBytes is what an answer has of an API beside its state: how its 32 policies at most stand.
const standingBytes = 32 * 320

// ConfigureApi implements CoordinationService.
func (m *Manager) ConfigureApi( //nolint:revive // the service has it so
	ctx context.Context, req *coordinationv1.ConfigureApiRequest,
) (*coordinationv1.ConfigureApiResponse, error) {
	if err := onlyServices(ctx, "configure an API"); err != nil {
		return nil, err
	}
	if err := checkConfig(req.GetConfig()); err != nil {
		return nil, err
	}
	return change(ctx, m, req.GetApi(), req.GetRequestId(), req, func(t *tx) (*coordinationv1.ConfigureApiResponse, error) {
		configure(t.api, t.state, req.GetConfig())
		t.Emit("configured")
		return &coordinationv1.ConfigureApiResponse{State: present(t.api, t.state, nil, t.caller, t.ledger.now)}, nil
	})
}

// WatchApi implements CoordinationService.
func (m *Manager) WatchApi( //nolint:revive // the service has it so
	ctx context.Context, req *coordinationv1.WatchApiRequest, stream *connect.ServerStream[coordinationv1.WatchApiResponse],
) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	for c, err := range m.kind.Watch(ctx, object.ID(req.GetApi()), object.Version(req.GetAfterVersion()), recentRequests) {
		if err != nil {
			return err
		}
		if c.Heartbeat {
			err = stream.Send(&coordinationv1.WatchApiResponse{Heartbeat: true, Metadata: &objectv1.Metadata{Version: int64(c.Version)}})
		} else {
			err = stream.Send(m.changed(req.GetApi(), &c, caller))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// changed is one message of a watch. Other users' requests are not in it.
func (m *Manager) changed(api string, c *object.Change[state], caller identity.Identity) *coordinationv1.WatchApiResponse {
	res := &coordinationv1.WatchApiResponse{
		Reset_: c.Reset, HasMore: c.More, State: present(api, c.State, nil, caller, m.now()), Metadata: rpc.Metadata(c.Info),
	}
	for _, e := range c.Entries {
		if r, ok := e.Value.(row); ok && mayTouch(caller, r.GetOwner()) {
			res.Requests = append(res.Requests, withoutBody(shown(asSeen(r, m.now()))))
		}
	}
	return res
}
