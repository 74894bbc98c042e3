package object

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/bounds"
	"holdfast/object/internal/rowjson"
)

// EntriesOptions choose a page of a collection.
type EntriesOptions struct {
	// After: entries behind this key, ascending. Before: the last ones in front of this key, where set.
	After, Before string

	room int // bytes; 0: all of an answer
	// PageSize: 1 to 200; 0: 50. A page has fewer where more would not fit in one answer; see AnswerBytes.
	PageSize int
}

// EntriesPage is a page of a collection, in the order of the keys, with the object that it belongs to.
type EntriesPage struct {
	Info
	Entries []Entry
	// More entries follow in the direction asked for.
	More bool
}

// Entries pages through one of an object's collections.
func (k *Kind[S]) Entries(ctx context.Context, id ID, collection string, o EntriesOptions) (EntriesPage, error) {
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
	var room Room
	size := pageSize(o.PageSize)
	each := func(r *dbsqlc.ListEntriesAfterRow) error {
		if page.More {
			return nil
		}
		value, _, err := rowjson.Decode(k.collections[collection], r.Body)
		e := newEntry(r.Key, value, len(r.Body))
		if page.More = len(page.Entries) == int(size) || !room.Fits(e.size); !page.More {
			page.Entries = append(page.Entries, e)
		}
		return err
	}
	load := func(most int) error {
		return k.rt.awake(ctx, k.at(caller.Tenant, id), func() error {
			page.Entries, page.More, rec, room = nil, false, nil, Room{Bytes: most}
			p := k.rt.db.NewSnapshot(callerScope(caller))
			queueAwake(p, k.kind, caller.Tenant, id, &rec)
			part := Range{After: o.After, Before: o.Before, Backward: o.Before != ""}
			queuePage(p, k.at(caller.Tenant, id), collection, k.readerOf(caller, collection), part, int(size)+1, most, each)
			return k.rt.db.RunSnapshot(ctx, p)
		})
	}
	if err := load(bounds.Small); err != nil {
		return EntriesPage{}, err
	}
	if !rec.live(k.rt.db.Now()) || !caller.MaySee(rec.owner) {
		return EntriesPage{}, ErrNotFound
	}
	if page.More && len(page.Entries) < int(size) || room.taken > bounds.Small {
		page.Entries = nil
		done, err := k.rt.large.Read(ctx, caller, func() error { return load(cmp.Or(o.room, AnswerBytes)) })
		if err != nil {
			return EntriesPage{}, err
		}
		defer done()
		if !rec.live(k.rt.db.Now()) || !caller.MaySee(rec.owner) {
			return EntriesPage{}, ErrNotFound
		}
	}
	page.Info = rec.info(id)
	if o.Before != "" {
		slices.Reverse(page.Entries)
	}
	return page, nil
}

// readerOf returns who the caller is to the entries of a collection.
func (k *kind) readerOf(caller identity.Identity, collection string) reader {
	if !slices.Contains(k.owned, collection) {
		return reader{all: true}
	}
	return k.reader(caller)
}

// queuePage queues the reading of n entries from one end of a part of a collection, and of no more behind the one that passes most
// bytes. Those behind the other end may be among them.
func queuePage(
	p *db.Pipeline, at key, collection string, r reader, part Range, n, most int, each func(*dbsqlc.ListEntriesAfterRow) error,
) {
	before := dbsqlc.ListEntriesBeforeParams{
		TenantID: string(at.Tenant), Kind: at.Kind, ObjectID: string(at.ID), Collection: collection, BeforeKey: part.Before,
		PageSize: int32(n), MostBytes: int64(most), //nolint:gosec // small
	}
	after := dbsqlc.ListEntriesAfterParams{
		TenantID: before.TenantID, Kind: before.Kind, ObjectID: before.ObjectID, Collection: collection, AfterKey: part.After,
		PageSize: before.PageSize, MostBytes: before.MostBytes,
	}
	switch {
	case part.Backward && r.all:
		p.ListEntriesBefore(before, each)
	case part.Backward:
		p.ListOwnEntriesBefore(dbsqlc.ListOwnEntriesBeforeParams{
			TenantID: before.TenantID, OwnerID: r.column(), Kind: before.Kind, ObjectID: before.ObjectID, Collection: collection,
			BeforeKey: part.Before, PageSize: before.PageSize, MostBytes: before.MostBytes,
		}, each)
	case r.all:
		p.ListEntriesAfter(after, each)
	default:
		p.ListOwnEntriesAfter(dbsqlc.ListOwnEntriesAfterParams{
			TenantID: before.TenantID, OwnerID: r.column(), Kind: before.Kind, ObjectID: before.ObjectID, Collection: collection,
			AfterKey: part.After, PageSize: before.PageSize, MostBytes: before.MostBytes,
		}, each)
	}
}

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
