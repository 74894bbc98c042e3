package object

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/rowjson"
)

// Lookup reads those entries of a collection that have one of the keys, in the order of the keys, with the object that
// they belong to, in one snapshot.
func (k *Kind[S]) Lookup(ctx context.Context, id ID, collection string, keys ...string) (EntriesPage, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return EntriesPage{}, err
	}
	if err := id.Check(); err != nil {
		return EntriesPage{}, err
	}
	if k.collections[collection] == nil {
		return EntriesPage{}, fmt.Errorf("%w: the kind %s has no collection %q", ErrInvalid, k.name, collection)
	}
	var page EntriesPage
	var rec *record
	a := dbsqlc.LoadEntriesParams{TenantID: string(caller.Tenant)}
	for _, name := range keys {
		a.Ords = append(a.Ords, 0)
		a.Kinds = append(a.Kinds, k.name)
		a.Ids = append(a.Ids, string(id))
		a.Collections = append(a.Collections, collection)
		a.Keys = append(a.Keys, name)
		a.Readers = append(a.Readers, k.reader(caller).column())
	}
	err = k.rt.awake(ctx, k.at(caller.Tenant, id), func() error {
		page.Entries, rec = nil, nil
		p := k.rt.db.NewSnapshot(callerScope(caller))
		queueAwake(p, k.kind, caller.Tenant, id, &rec)
		p.LoadEntries(a, func(r *dbsqlc.LoadEntriesRow) error {
			value, _, err := rowjson.Decode(k.collections[collection], r.Body)
			page.Entries = append(page.Entries, newEntry(r.Key, value, len(r.Body)))
			return err
		})
		return k.rt.db.RunSnapshot(ctx, p)
	})
	if err != nil {
		return EntriesPage{}, err
	}
	if !rec.live(k.rt.db.Now()) || !caller.MaySee(rec.owner) {
		return EntriesPage{}, ErrNotFound
	}
	page.Info = rec.info(id)
	slices.SortFunc(page.Entries, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
	return page, nil
}
