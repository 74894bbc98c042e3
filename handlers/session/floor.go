package session

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/handlers/session/credential"
	"holdfast/identity"
	"holdfast/object"
)

// The floor is kept in the conversation, where the fence of live frames is checked: who speaks, and whose frames are
// folded, is one object and one transaction. A session's own note of it serves those who watch the session, and frees the
// floor when the session ends.

// floorTimer ends the lease of a floor: a timer of the conversation, whose manager knows it by this name.
const floorTimer = "floor"

// holder is a connection that wants the floor.
type holder struct {
	user                identity.User
	session, connection string
}

// held tells whether somebody holds a floor.
func held(f *conversationv1.Floor, now time.Time) bool {
	return f.GetHeld() && now.Before(f.GetExpireTime().AsTime())
}

func (h holder) had(f *conversationv1.Floor) bool {
	return f.GetSessionId() == h.session && f.GetConnectionId() == h.connection
}

// acquireFloor gives the floor to a connection until a moment, or lets it keep it. One that had it last gets it back
// with the same fence, so that its live connection goes on.
func acquireFloor(s *conversationv1.ConversationState, h holder, takeover bool, now, until time.Time) (*conversationv1.Floor, error) {
	f := s.GetFloor()
	mine := h.had(f)
	if held(f, now) && !mine {
		if f.GetUser() != string(h.user) {
			return nil, problem.FailedPrecondition("FLOOR_HELD", "another user holds the floor; only its own user can take it over")
		}
		if !takeover {
			return nil, problem.FailedPrecondition("FLOOR_HELD", "another connection holds the floor; set takeover to take it")
		}
	}
	if mine && held(f, now) {
		f.ExpireTime = timestamppb.New(until)
		return f, nil
	}
	fence := max(f.GetFence(), s.GetLive().GetEpoch())
	if !mine {
		fence++
	}
	s.Floor = &conversationv1.Floor{
		Fence: fence, User: string(h.user), SessionId: h.session, ConnectionId: h.connection,
		AcquireTime: timestamppb.New(now), ExpireTime: timestamppb.New(until), Held: true,
	}
	return s.GetFloor(), nil
}

// releaseFloor gives the floor back, and tells whether the connection had it.
func releaseFloor(s *conversationv1.ConversationState, h holder, now time.Time) bool {
	f := s.GetFloor()
	if !held(f, now) || !h.had(f) {
		return false
	}
	f.Held = false
	return true
}

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
	if _, err := b.connection(req.GetConnectionId(), at.session); err != nil {
		return nil, err
	}
	// A floor is not held for longer than its session lives.
	end, _ := credential.End(r)
	// Whoever asks, only a user who may see the conversation gets its floor.
	asUser := identity.With(ctx, identity.Identity{Tenant: at.caller.Tenant, User: info.Owner, Session: at.caller.Session})
	h := holder{user: info.Owner, session: at.session, connection: req.GetConnectionId()}
	res, err := object.Do(asUser, m.conversations, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[*conversationv1.ConversationState]) (*sessionv1.AcquireFloorResponse, error) {
			until := tx.Now().Add(set.GetFloorLease().AsDuration())
			if end.Before(until) {
				until = end
			}
			f, err := acquireFloor(tx.State(), h, req.GetTakeover(), tx.Now(), until)
			if err != nil {
				return nil, err
			}
			tx.SetTimer(floorTimer, until)
			tx.Emit("floor_acquired")
			return &sessionv1.AcquireFloorResponse{
				Floor: &sessionv1.FloorHold{
					ConversationId: req.GetConversationId(), ConnectionId: h.connection, Fence: f.GetFence(), ExpireTime: f.GetExpireTime(),
				},
				Metadata: rpc.Metadata(tx.Info()),
			}, nil
		})
	if err != nil {
		return nil, err
	}
	return res, m.noteFloor(asUser, at.object, at.session, res.GetFloor())
}

// noteFloor tells a user's sessions which of them has the floor. What the session had of another conversation is freed:
// a user has one mouth.
func (m *Manager) noteFloor(ctx context.Context, id object.ID, session string, f *sessionv1.FloorHold) error {
	var freed []*sessionv1.FloorHold
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
func (b *book) takeFloor(session string, f *sessionv1.FloorHold) {
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
	r := b.s.GetSessions()[session]
	if r == nil || r.GetEnd() != nil || b.s.GetConnections()[f.GetConnectionId()] == nil {
		b.freed = append(b.freed, f)
		return
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
	h := holder{user: info.Owner, session: at.session, connection: req.GetConnectionId()}
	res, err := object.Do(asUser, m.conversations, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[*conversationv1.ConversationState]) (*sessionv1.ReleaseFloorResponse, error) {
			released := releaseFloor(tx.State(), h, tx.Now())
			if !released {
				tx.Unchanged()
			} else {
				tx.ClearTimer(floorTimer)
			}
			tx.Emit("floor_released")
			return &sessionv1.ReleaseFloorResponse{Released: released, Metadata: rpc.Metadata(tx.Info())}, nil
		})
	if err != nil {
		return nil, err
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
func (m *Manager) free(ctx context.Context, floors []*sessionv1.FloorHold) {
	for _, f := range floors {
		_, _ = m.conversations.Update(ctx, object.ID(f.GetConversationId()), func(tx *object.Tx[*conversationv1.ConversationState]) error {
			if cur := tx.State().GetFloor(); cur.GetFence() != f.GetFence() || cur.GetConnectionId() != f.GetConnectionId() || !held(cur, tx.Now()) {
				tx.Unchanged()
				return nil
			}
			tx.State().Floor.Held = false
			tx.ClearTimer(floorTimer)
			tx.Emit("floor_released")
			return nil
		})
	}
}
