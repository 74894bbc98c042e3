package session

import (
	"context"
	"errors"
	"maps"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	sessionv1 "holdfast/gen/holdfast/session/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/session/credential"
	"holdfast/handlers/watch"
	"holdfast/identity"
	"holdfast/object"
)

// Sources are the items of WatchService that are about sessions.
func (m *Manager) Sources() watch.Sources { return watch.Sources{"session": m.follow} }

// follow follows a user's sessions and presence.
func (m *Manager) follow(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	ctx, user, err := subject(ctx, item.GetSession().GetUser())
	if err != nil {
		return err
	}
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	var d watch.Differ
	id := object.ID(credential.ObjectID(caller.Tenant, user))
	return watch.Object(ctx, m.kinds.Users, id, 0, item, tell, func(c *object.Change[state]) *watchv1.WatchResponse {
		b := open(proto.CloneOf(c.State), m.kinds.Users.Now(), server)
		things := []*watchv1.Thing{{Key: "presence", Thing: &watchv1.Thing_Presence{Presence: b.presence()}}}
		for _, id := range slices.Sorted(maps.Keys(b.s.GetSessions())) {
			if b.s.GetSessions()[id].GetEnd() == nil {
				things = append(things, &watchv1.Thing{
					Key: "sessions/" + id, Thing: &watchv1.Thing_Session{Session: b.present(id, caller.Session, c.Info)},
				})
			}
		}
		// All sessions have the user's version, so it says nothing of one.
		change := d.Diff(things, "version", "update_time")
		if change == nil {
			return nil
		}
		change.Version = int64(c.Version)
		return watch.Changed(change)
	})
}

// WatchSession implements SessionService.
func (m *Manager) WatchSession(
	ctx context.Context, req *sessionv1.WatchSessionRequest, stream *connect.ServerStream[sessionv1.WatchSessionResponse],
) error {
	at, err := locate(ctx, req.GetSessionId())
	if err != nil {
		return err
	}
	for c, err := range m.kinds.Users.Watch(ctx, at.object, object.Version(req.GetAfterVersion()), 0) {
		if err != nil {
			return m.lastWord(ctx, at, stream, err)
		}
		if c.Heartbeat {
			err := stream.Send(&sessionv1.WatchSessionResponse{Heartbeat: true, Version: int64(c.Version)})
			if err != nil {
				return err
			}
			continue
		}
		if c.Deleted {
			return object.ErrNotFound
		}
		over, err := m.tell(at, stream, c.State, c.Info, c.Reset)
		if err != nil || over {
			return err
		}
	}
	return nil
}

// tell sends how the session is now, and tells whether it was the last time.
func (m *Manager) tell(
	at place, stream *connect.ServerStream[sessionv1.WatchSessionResponse], s state, i object.Info, reset bool,
) (over bool, err error) {
	b := open(proto.CloneOf(s), m.kinds.Users.Now(), server)
	r := b.s.GetSessions()[at.session]
	if r == nil {
		return true, object.ErrNotFound
	}
	return r.GetEnd() != nil, stream.Send(&sessionv1.WatchSessionResponse{
		Session: b.present(at.session, at.caller.Session, i), Connections: b.presence().GetConnections(), Reset_: reset, Version: int64(i.Version),
	})
}

// lastWord is how a watch ends that was cut short. Where it was because the session is over, which may show before the
// end is written down, the watcher is told so.
func (m *Manager) lastWord(
	ctx context.Context, at place, stream *connect.ServerStream[sessionv1.WatchSessionResponse], err error,
) error {
	refusal, ok := errors.AsType[*problem.Error](context.Cause(ctx))
	if !ok || refusal.Code() != connect.CodeUnauthenticated {
		return err
	}
	s, viewErr := m.kinds.Users.View(context.WithoutCancel(ctx), at.object)
	if viewErr != nil {
		return refusal
	}
	if over, sendErr := m.tell(at, stream, s.State, s.Info, false); sendErr != nil || over {
		return sendErr
	}
	return refusal
}
