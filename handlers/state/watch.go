package state

import (
	"context"
	"slices"

	statev1 "holdfast/gen/holdfast/state/v1"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/watch"
	"holdfast/identity"
	"holdfast/object"
)

// Sources are the items of WatchService that are about objects.
func (m *Manager) Sources() watch.Sources {
	return watch.Sources{"state": m.follow, "list.states": m.followList}
}

func (m *Manager) follow(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	of, err := resolve(ctx, item.GetState().GetRef())
	if err != nil {
		return err
	}
	id := of.id()
	limits := map[string]int{}
	for _, c := range item.GetState().GetCollections() {
		limits[c.GetCollection()] = int(c.GetLimit())
	}
	// The newest entries of all collections, which a snapshot could have, are not those of any one.
	begin := func(ctx context.Context, c *object.Change[state]) error {
		r := m.rt.Together()
		view := object.ViewIn(r, m.kind, id)
		var all []*object.EntriesPage
		for collection, limit := range limits {
			if _, every := (part{backward: true}).stored(collection); limit > 0 {
				all = append(all, object.EntriesIn(r, m.kind, id, inEntries, every, limit))
			}
		}
		if err := r.Run(ctx); err != nil {
			return err
		}
		if !view.Found { // it was deleted since
			return object.ErrNotFound
		}
		c.Info, c.State = view.Snapshot.Info, view.Snapshot.State
		for _, page := range all {
			for _, e := range slices.Backward(page.Entries) {
				c.Entries = append(c.Entries, object.EntryChange{Collection: inEntries, Entry: e})
			}
		}
		return nil
	}
	as, err := m.types.of(ctx, of.kind)
	if err != nil {
		return err
	}
	return watch.ObjectFrom(ctx, m.kind, id, begin, item, tell, func(c *object.Change[state]) *watchv1.WatchResponse {
		if is, err := m.types.of(ctx, of.kind); err == nil { // else what it was before
			as = is
		}
		change := watch.Change(c)
		change.Put = []*watchv1.Thing{{Key: "object", Thing: &watchv1.Thing_Object{Object: present(as, c.Info, c.State, true)}}}
		for _, e := range c.Entries {
			collection, key := spelt(e.Key)
			if _, ok := limits[collection]; !ok || e.Collection != inEntries {
				continue
			}
			if value, ok := e.Value.(*storev1.Entry); ok {
				entry := &watchv1.Thing_Entry{Entry: shown(collection, key, value)}
				change.Put = append(change.Put, &watchv1.Thing{Key: inEntries + "/" + e.Key, Thing: entry})
			} else {
				change.Removed = append(change.Removed, inEntries+"/"+e.Key)
			}
		}
		return watch.Changed(change)
	})
}

func (m *Manager) followList(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.List(ctx, m.kind, item, tell, func(size int32, token string) (things []*watchv1.Thing, next string, err error) {
		res, err := m.ListStates(ctx, &statev1.ListStatesRequest{PageSize: size, PageToken: token, Filter: item.GetList().GetStates()})
		for _, o := range res.GetObjects() {
			id := address{o.GetRef().GetType(), o.GetRef().GetName(), identity.User(o.GetOwner())}.id()
			things = append(things, &watchv1.Thing{Key: "objects/" + string(id), Thing: &watchv1.Thing_Object{Object: o}})
		}
		return things, res.GetNextPageToken(), err
	})
}
