package db

import (
	"context"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// AddUsage adds to the totals of tenants and users, of whatever tenant, and answers those that there are then, in one round trip.
// The rows must be sorted. Like all counting it may be lost in a crash of Postgres; see RecountUsage.
func (d *DB) AddUsage(ctx context.Context, a dbsqlc.AddUsageParams, each func(*dbsqlc.HoldfastUsage) error) error {
	p := d.newSweep()
	p.batch.Queue(dbsqlc.AddUsage, fields(&a)...)
	query(p, dbsqlc.LoadUsage, dbsqlc.LoadUsageParams{Tenants: a.Tenants, Owners: a.Owners}, each)
	return d.RunAndCommit(ctx, p)
}

// ListFullTenants lists the tenants that have come to some share of a quota; see the statement.
func (d *DB) ListFullTenants(ctx context.Context, a dbsqlc.ListFullTenantsParams) (rows []dbsqlc.ListFullTenantsRow, err error) {
	p := d.NewJanitor()
	query(p, dbsqlc.ListFullTenants, a, func(r *dbsqlc.ListFullTenantsRow) error {
		rows = append(rows, *r)
		return nil
	})
	return rows, d.Run(ctx, p)
}

// How RecountUsage goes about it.
const (
	recountPage      = 200
	recountPerSecond = 2000 // objects
)

// RecountUsage counts what is stored for a tenant and each of its users, page by page, and corrects their totals by what they are
// off. What is written meanwhile is not lost, but entries and events that an older object gets before the count comes to it are
// counted twice until the next time. It may be ended, which corrects nothing, and run again.
func (d *DB) RecountUsage(ctx context.Context, tenant identity.Tenant) error {
	type total struct{ objects, bytes int64 }
	off := map[string]total{} // what is stored, less what the totals say
	since := d.Now()
	err := d.tenantQueries(ctx, tenant, func(q *dbsqlc.Queries) error {
		clear(off)
		rows, err := q.ListUsage(ctx, string(tenant))
		for _, r := range rows {
			off[r.OwnerID] = total{-r.Objects, -r.Bytes}
		}
		return err
	})
	if err != nil {
		return err
	}
	pace := newPace(recountPerSecond, recountPage)
	next := dbsqlc.MeasureObjectsParams{TenantID: string(tenant), Since: since, PageSize: recountPage}
	for {
		var page []dbsqlc.MeasureObjectsRow
		err := d.tenantQueries(ctx, tenant, func(q *dbsqlc.Queries) (err error) {
			page, err = q.MeasureObjects(ctx, next)
			return err
		})
		if err != nil {
			return err
		}
		for i := range page {
			r := &page[i]
			next.AfterKind, next.AfterObjectID = r.Kind, r.ObjectID
			if !r.Counted {
				continue
			}
			for _, owner := range slices.Compact([]string{"", r.OwnerID}) {
				t := off[owner]
				if r.Live {
					t.objects++
				}
				t.bytes += r.Bytes
				off[owner] = t
			}
		}
		if len(page) < recountPage {
			break
		}
		if err := pace.wait(ctx, len(page)); err != nil {
			return err
		}
	}
	var a dbsqlc.AddUsageParams
	for _, owner := range slices.Sorted(maps.Keys(off)) {
		a.Tenants, a.Owners = append(a.Tenants, string(tenant)), append(a.Owners, owner)
		a.Objects, a.Bytes = append(a.Objects, off[owner].objects), append(a.Bytes, off[owner].bytes)
	}
	return d.tenantTx(ctx, tenant, pgx.TxOptions{}, func(tx pgx.Tx) error {
		q := dbsqlc.New(tx)
		if err := q.AddUsage(ctx, a); err != nil {
			return err
		}
		return q.DropEmptyUsage(ctx, string(tenant))
	})
}
