package db

import (
	"context"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// FindPackable lists objects that may have entries to pack; see the statement.
func (d *DB) FindPackable(ctx context.Context, a dbsqlc.FindPackableParams) (rows []dbsqlc.FindPackableRow, err error) {
	p := d.newPacking(a.TenantID)
	query(p, dbsqlc.FindPackable, a, func(r *dbsqlc.FindPackableRow) error {
		rows = append(rows, *r)
		return nil
	})
	return rows, d.Run(ctx, p)
}

// PackObject packs entries of an object; see the function holdfast.pack_object. What of it is lost in a crash is packed again.
func (d *DB) PackObject(ctx context.Context, a dbsqlc.PackObjectParams) (packed dbsqlc.PackObjectRow, err error) {
	p := d.newPacking(a.TenantID)
	p.batch.Queue(dbsqlc.SweepGently)
	query(p, dbsqlc.PackObject, a, func(r *dbsqlc.PackObjectRow) error {
		packed = *r
		return nil
	})
	err = d.RunAndCommit(ctx, p)
	return packed, err
}

// FindPacked lists objects that have packs; see the statement.
func (d *DB) FindPacked(ctx context.Context, a dbsqlc.FindPackedParams) (rows []dbsqlc.FindPackedRow, err error) {
	p := d.newPacking(a.TenantID)
	query(p, dbsqlc.FindPacked, a, func(r *dbsqlc.FindPackedRow) error {
		rows = append(rows, *r)
		return nil
	})
	return rows, d.Run(ctx, p)
}

// FindPackedMentioning is FindPacked for packs that mention a user.
func (d *DB) FindPackedMentioning(ctx context.Context, m Mention, after dbsqlc.FindPackedRow) ([]dbsqlc.FindPackedRow, error) {
	return d.FindPacked(ctx, dbsqlc.FindPackedParams{
		TenantID: string(m.Tenant), AfterKind: after.Kind, AfterObjectID: after.ObjectID, Mention: m.json(), PageSize: MentionsPage,
	})
}

// UnpackObject makes packs of an object entries again and answers how many; see the function holdfast.unpack_object.
func (d *DB) UnpackObject(ctx context.Context, a dbsqlc.UnpackObjectParams) (packs int64, err error) {
	p := d.newPacking(a.TenantID)
	query(p, dbsqlc.UnpackObject, a, func(r *struct{ Packs int64 }) error {
		packs = r.Packs
		return nil
	})
	err = d.RunAndCommit(ctx, p)
	return packs, err
}

// UnpackMentioning is UnpackObject for packs that mention a user.
func (d *DB) UnpackMentioning(ctx context.Context, m Mention, a dbsqlc.UnpackObjectParams) (packs int64, err error) {
	a.Mention = m.json()
	return d.UnpackObject(ctx, a)
}

// StoredTenants lists the tenants by id, also those that only an identity provider's tokens name.
func (d *DB) StoredTenants(ctx context.Context) ([]identity.Tenant, error) {
	var all []identity.Tenant
	p := d.NewJanitor()
	query(p, dbsqlc.ListStoredTenants, struct{}{}, func(r *struct{ TenantID string }) error {
		all = append(all, identity.Tenant(r.TenantID))
		return nil
	})
	return all, d.Run(ctx, p)
}

// newPacking begins a pipeline that acts for a tenant as one of its services.
func (d *DB) newPacking(tenant string) *Pipeline {
	return d.NewPipeline(Scope{Tenant: identity.Tenant(tenant), Service: true})
}
