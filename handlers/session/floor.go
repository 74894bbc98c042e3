package session

import (
	"context"
	"errors"

	errorv1 "holdfast/gen/holdfast/error/v1"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	conversationstorev1 "holdfast/gen/holdfast/store/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	"holdfast/handlers/conversation/floor"
	"holdfast/handlers/problem"
	"holdfast/handlers/session/credential"
	"holdfast/identity"
	"holdfast/object"
)

// The floor is kept in the conversation, where the fence of live frames is checked: who speaks, and whose frames are
// folded, is one object and one transaction. A session's own note of it serves those who watch the session, and frees the
// floor when the session ends.

// AcquireFloor implements SessionService.
func (m *Manager) AcquireFloor(ctx context.Context, req *sessionv1.AcquireFloorRequest) (*sessionv1.AcquireFloorResponse, error) {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	set, err := m.settings(ctx)
	if err != nil {
		return nil, err
	}
	info, b, err := m.read(ctx, at.object)
	if err != nil {
		return nil, err
	}
	r, err := b.session(at.session)
	if err != nil {
		return nil, err
	}
	c, err := b.connection(req.GetConnectionId(), at.session)
	if err != nil {
		return nil, err
	}
	// A connection that has fallen silent comes back with the floor, if there is room for it; noteFloor writes that down.
	if err := b.heartbeat(c); err != nil {
		return nil, err
	}
	// A floor is not held for longer than its session lives.
	end, _ := credential.End(r)
	// Whoever asks, only a user who may see the conversation gets its floor.
	asUser := identity.With(ctx, identity.Identity{Tenant: at.caller.Tenant, User: info.Owner, Session: at.caller.Session})
	var replayed bool
	var hold *storev1.FloorHold
	wants := floor.Connection{User: info.Owner, Session: at.session, ID: req.GetConnectionId(), Caller: at.caller}
	res, err := object.Do(asUser, m.conversations, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[*conversationstorev1.ConversationState]) (*sessionv1.AcquireFloorResponse, error) {
			var holder *storev1.Connection // nil where it is another user's
			if f := tx.State().GetFloor(); f.GetUser() == string(info.Owner) {
				holder = b.s.GetConnections()[f.GetConnectionId()]
			}
			until := tx.Now().Add(set.GetFloorLease().AsDuration())
			if end.Before(until) {
				until = end
			}
			free := req.GetTakeover() || holder != nil && b.silent(holder)
			f, err := floor.Acquire(tx.State(), wants, free, tx.Now(), until)
			if err != nil {
				return nil, nameDevice(err, holder)
			}
			tx.SetTimer(floor.Timer, until)
			tx.Emit("floor_acquired")
			hold = &storev1.FloorHold{
				ConversationId: req.GetConversationId(), ConnectionId: wants.ID, Fence: f.GetFence(), ExpireTime: f.GetExpireTime(),
			}
			return &sessionv1.AcquireFloorResponse{Floor: floorHold(hold), Version: int64(tx.Info().Version)}, nil
		}, object.Replayed(&replayed))
	if err != nil || replayed { // what the session has may have changed since
		return res, err
	}
	return res, m.noteFloor(asUser, at.object, at.session, hold)
}

// nameDevice adds the device of a floor's holder to a refusal.
func nameDevice(err error, holder *storev1.Connection) error {
	if p, ok := errors.AsType[*problem.Error](err); ok {
		if held, ok := p.Detail.(*errorv1.Held); ok {
			held.DeviceName = holder.GetDevice().GetName()
		}
	}
	return err
}

// noteFloor tells a user's sessions which of them has the floor. What the session had of another conversation is freed:
// a user has one mouth.
func (m *Manager) noteFloor(ctx context.Context, id object.ID, session string, f *storev1.FloorHold) error {
	var freed []*storev1.FloorHold
	_, err := m.kinds.Users.Update(ctx, id, func(tx *object.Tx[state]) error {
		b := open(tx.State(), tx.Now(), server)
		b.takeFloor(session, f)
		b.commit(tx)
		freed = b.freed
		return nil
	})
	if err != nil {
		return err
	}
	m.free(ctx, freed)
	return nil
}

// takeFloor notes that a session has a floor, and that no other session of the user has it any more. A session that
// ended meanwhile gives it back at once.
func (b *book) takeFloor(session string, f *storev1.FloorHold) {
	for id, r := range b.s.GetSessions() {
		had := r.GetFloor()
		switch {
		case had == nil:
		case id != session && had.GetConversationId() == f.GetConversationId() && had.GetFence() <= f.GetFence():
			r.Floor, b.changed = nil, true
		case id == session && had.GetConversationId() != f.GetConversationId():
			b.freed = append(b.freed, had)
		}
	}
	r, c := b.s.GetSessions()[session], b.s.GetConnections()[f.GetConnectionId()]
	if r == nil || r.GetEnd() != nil || c == nil {
		b.freed = append(b.freed, f)
		return
	}
	if b.silent(c) {
		b.beat(c)
	}
	b.touch(r)
	r.Floor, b.changed = f, true
}

// ReleaseFloor implements SessionService.
func (m *Manager) ReleaseFloor(ctx context.Context, req *sessionv1.ReleaseFloorRequest) (*sessionv1.ReleaseFloorResponse, error) {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	info, _, err := m.read(ctx, at.object)
	if err != nil {
		return nil, err
	}
	asUser := identity.With(ctx, identity.Identity{Tenant: at.caller.Tenant, User: info.Owner, Session: at.caller.Session})
	var replayed bool
	had := floor.Connection{User: info.Owner, Session: at.session, ID: req.GetConnectionId(), Caller: at.caller}
	res, err := object.Do(asUser, m.conversations, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[*conversationstorev1.ConversationState]) (*sessionv1.ReleaseFloorResponse, error) {
			released := floor.Release(tx.State(), had, tx.Now())
			if !released {
				tx.Unchanged()
			} else {
				tx.ClearTimer(floor.Timer)
			}
			tx.Emit("floor_released")
			return &sessionv1.ReleaseFloorResponse{Released: released, Version: int64(tx.Info().Version)}, nil
		}, object.Replayed(&replayed))
	if err != nil || replayed {
		return res, err
	}
	_, err = m.kinds.Users.Update(asUser, at.object, func(tx *object.Tx[state]) error {
		b := open(tx.State(), tx.Now(), server)
		if r := b.s.GetSessions()[at.session]; r.GetFloor().GetConversationId() == req.GetConversationId() &&
			r.GetFloor().GetConnectionId() == req.GetConnectionId() {
			r.Floor, b.changed = nil, true
		}
		b.commit(tx)
		return nil
	})
	return res, err
}

// free gives floors back whose sessions or connections are gone. It does what it can: where it fails, the lease ends the
// hold, which is never longer than the session.
func (m *Manager) free(ctx context.Context, floors []*storev1.FloorHold) {
	for _, f := range floors {
		_, _ = m.conversations.Update(ctx, object.ID(f.GetConversationId()), func(tx *object.Tx[*conversationstorev1.ConversationState]) error {
			if cur := tx.State().GetFloor(); cur.GetFence() != f.GetFence() || cur.GetConnectionId() != f.GetConnectionId() || !floor.Held(cur, tx.Now()) {
				tx.Unchanged()
				return nil
			}
			tx.State().Floor.Held = false
			tx.ClearTimer(floor.Timer)
			tx.Emit("floor_released")
			return nil
		})
	}
}
