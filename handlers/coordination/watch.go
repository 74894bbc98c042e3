package coordination

import (
	"context"
	"math"
	"strconv"

	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/watch"
	"holdfast/identity"
	"holdfast/object"
)

// Sources are the items of WatchService that are about APIs.
func (m *Manager) Sources() watch.Sources { return watch.Sources{"api": m.follow} }

// recentCalls completes a snapshot with the newest calls that the caller may see.
func (m *Manager) recentCalls(ctx context.Context, c *object.Change[state]) error {
	const calls = 32
	page, err := m.kind.Entries(ctx, c.ID, inCalls, object.EntriesOptions{Before: object.SeqKey(math.MaxInt64), PageSize: calls})
	for _, e := range page.Entries {
		c.Entries = append(c.Entries, object.EntryChange{Collection: inCalls, Entry: e})
	}
	return err
}

// follow follows an API, with the calls that the caller may see.
func (m *Manager) follow(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	return watch.ObjectFrom(ctx, m.kind, object.ID(item.GetApi()), m.recentCalls, item, tell, func(c *object.Change[state]) *watchv1.WatchResponse {
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
			} else if r, ok := e.Value.(row); ok {
				change.Put = append(change.Put, &watchv1.Thing{Key: key, Thing: &watchv1.Thing_Call{Call: withoutBody(shown(asSeen(r, m.now())))}})
			}
		}
		return watch.Changed(change)
	})
}
