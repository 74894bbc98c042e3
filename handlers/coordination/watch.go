package coordination

import (
	"context"
	"strconv"

	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/watch"
	"holdfast/identity"
	"holdfast/object"
)

// Sources are the items of WatchService that are about APIs.
func (m *Manager) Sources() watch.Sources { return watch.Sources{"api": m.follow} }

// follow follows an API. Other users' calls are not in it.
func (m *Manager) follow(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	return watch.Object(ctx, m.kind, object.ID(item.GetApi()), recentCalls, item, tell, func(c *object.Change[state]) *watchv1.WatchResponse {
		change := watch.Change(c)
		change.Put = []*watchv1.Thing{{Key: "api", Thing: &watchv1.Thing_Api{Api: present(c.Info, c.State, nil, caller, m.now())}}}
		for _, e := range c.Entries {
			seq, err := strconv.ParseInt(e.Key, 10, 64)
			if err != nil || e.Collection != inCalls {
				continue
			}
			key := "calls/" + strconv.FormatInt(seq, 10)
			if e.Value == nil {
				change.Removed = append(change.Removed, key)
			} else if r, ok := e.Value.(row); ok && mayTouch(caller, r.GetOwner()) {
				change.Put = append(change.Put, &watchv1.Thing{Key: key, Thing: &watchv1.Thing_Call{Call: withoutBody(shown(asSeen(r, m.now())))}})
			}
		}
		return watch.Changed(change)
	})
}
