package db

import (
	"context"

	"github.com/jackc/pgx/v5"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// Endpoint names an object of the kind "linear_endpoint", whose id alone finds its tenant.
type Endpoint struct {
	Tenant identity.Tenant
	ID     string
}

// allEndpoints is what EnterEndpoint takes for all of them; it is no object's id.
const allEndpoints = "*"

// FindEndpoints reads the endpoints of that id: one, or none. Ids are random, but uniqueness never crosses tenants.
func (d *DB) FindEndpoints(ctx context.Context, id string) ([]Endpoint, error) {
	if id == allEndpoints {
		return nil, nil
	}
	return d.endpoints(ctx, id, dbsqlc.FindEndpoint, id)
}

// Endpoints lists the endpoints of all tenants by id, up to n behind one.
func (d *DB) Endpoints(ctx context.Context, after string, n int32) ([]Endpoint, error) {
	return d.endpoints(ctx, allEndpoints, dbsqlc.ListEndpoints, after, n)
}

func (d *DB) endpoints(ctx context.Context, enter, sql string, args ...any) (out []Endpoint, err error) {
	p := &Pipeline{}
	p.batch.Queue(dbsqlc.EnterEndpoint, enter)
	p.batch.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var r dbsqlc.FindEndpointRow
			if err := rows.Scan(pointers(&r)...); err != nil {
				return err
			}
			out = append(out, Endpoint{identity.Tenant(r.TenantID), r.ObjectID})
		}
		return rows.Err()
	})
	return out, d.Run(ctx, p)
}
