package session

import (
	"context"
	"errors"
	"maps"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

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
	show := func(s state, i object.Info) *watchv1.WatchResponse {
		b := open(proto.CloneOf(s), m.kinds.Users.Now(), server)
		things := []*watchv1.Thing{{Key: "presence", Thing: &watchv1.Thing_Presence{Presence: b.presence()}}}
		for _, id := range slices.Sorted(maps.Keys(b.s.GetSessions())) {
			things = append(things, &watchv1.Thing{
				Key: "sessions/" + id, Thing: &watchv1.Thing_Session{Session: b.present(id, caller.Session, i)},
			})
		}
		// All sessions have the user's version, so it says nothing of one.
		change := d.Diff(things, "version", "update_time")
		if change == nil {
			return nil
		}
		change.Version = int64(i.Version)
		return watch.Changed(change)
	}
	id := object.ID(credential.ObjectID(caller.Tenant, user))
	err = watch.Object(ctx, m.kinds.Users, id, 0, item, tell, func(c *object.Change[state]) *watchv1.WatchResponse { return show(c.State, c.Info) })
	// A stream that ends because its session is over, which may show before the end is written down, still says how it ended.
	if refusal, ok := errors.AsType[*problem.Error](context.Cause(ctx)); ok && caller.Session != "" && refusal.Code() == connect.CodeUnauthenticated {
		if s, viewErr := m.kinds.Users.View(context.WithoutCancel(ctx), id); viewErr == nil {
			if last := show(s.State, s.Info); last != nil {
				err = errors.Join(err, tell(last))
			}
		}
	}
	return err
}
