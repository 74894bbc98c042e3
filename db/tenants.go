package db

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// ErrTenantUnknown: the tenant was never created.
var ErrTenantUnknown = errors.New("db: no such tenant")

// ErrKeyUnknown: the tenant has no key of that id.
var ErrKeyUnknown = errors.New("db: no such key")

// Key is an API key as stored: what authenticates it is only a hash.
type Key struct {
	Tenant      identity.Tenant
	ID          string
	User        identity.User // empty: a service key
	SecretHash  []byte        // SHA-256; empty in lists
	Description string
	CreateTime  time.Time
	RevokeTime  *time.Time
}

// Operator makes tenants and API keys. It is safe for concurrent use.
type Operator struct{ pool *pgxpool.Pool }

// operatorConns is enough for commands that ask one thing after the other.
const operatorConns = 2

// OpenOperator connects as the database's owner, or as a login that was granted the role holdfast_operator. Another one, such
// as the server's, is refused with an error that says how to fix it.
func OpenOperator(ctx context.Context, url string) (*Operator, error) {
	pc, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("the database URL is not valid: %w", err)
	}
	pc.MaxConns = operatorConns
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, translate(err, false)
	}
	o := &Operator{pool}
	if err := o.check(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return o, nil
}

// Close closes the connections.
func (o *Operator) Close() { o.pool.Close() }

func (o *Operator) check(ctx context.Context) error {
	var login string
	var migrated, owner, may bool
	err := o.pool.QueryRow(ctx, `
		SELECT current_user::text, to_regclass('holdfast.tenants') IS NOT NULL,
			EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = to_regnamespace('holdfast') AND pg_has_role(c.relowner, 'MEMBER')),
			EXISTS (SELECT FROM pg_catalog.pg_roles m WHERE m.rolname = $1 AND pg_has_role(m.oid,
				CASE WHEN current_setting('server_version_num')::integer >= $2::integer THEN 'SET' ELSE 'MEMBER' END))`,
		string(RoleOperator), grantsInherit).Scan(&login, &migrated, &owner, &may)
	switch {
	case err != nil:
		return translate(err, false)
	case may && migrated:
		return nil
	case !migrated:
		return errNotMigrated
	}
	fix := []string{
		"  CREATE ROLE holdfast_operations LOGIN NOINHERIT PASSWORD '…';",
		"  GRANT " + string(RoleOperator) + " TO holdfast_operations;",
		"and use that login, or the owner's own.",
	}
	if owner {
		fix = []string{"  GRANT " + string(RoleOperator) + " TO " + pgx.Identifier{login}.Sanitize() + ";"}
	}
	return &LoginError{Login: login, Reason: "may not make tenants and API keys", Fix: strings.Join(fix, "\n")}
}

// CreateTenant adds a tenant and reports whether it is new.
func (o *Operator) CreateTenant(ctx context.Context, t identity.Tenant, title string) (bool, error) {
	var n int64
	err := o.operate(ctx, func(q *dbsqlc.Queries) (err error) {
		n, err = q.CreateTenant(ctx, dbsqlc.CreateTenantParams{TenantID: string(t), Title: title})
		return err
	})
	return n > 0, err
}

// Tenants lists the tenants by id.
func (o *Operator) Tenants(ctx context.Context) (out []dbsqlc.ListTenantsRow, err error) {
	err = o.operate(ctx, func(q *dbsqlc.Queries) (err error) {
		out, err = q.ListTenants(ctx)
		return err
	})
	return out, err
}

// CreateKey stores a key of a tenant, or answers ErrTenantUnknown.
func (o *Operator) CreateKey(ctx context.Context, k Key) error {
	return o.operate(ctx, func(q *dbsqlc.Queries) error {
		known, err := q.TenantExists(ctx, string(k.Tenant))
		if err != nil {
			return err
		}
		if !known {
			return fmt.Errorf("%w: %q", ErrTenantUnknown, k.Tenant)
		}
		role := "service"
		if k.User != "" {
			role = "user"
		}
		return q.CreateKey(ctx, dbsqlc.CreateKeyParams{
			TenantID: string(k.Tenant), KeyID: k.ID, OwnerID: string(k.User), Role: role, SecretHash: k.SecretHash,
			Description: k.Description,
		})
	})
}

// Keys lists a tenant's keys, newest first.
func (o *Operator) Keys(ctx context.Context, t identity.Tenant) (out []Key, err error) {
	err = o.operate(ctx, func(q *dbsqlc.Queries) error {
		rows, err := q.ListKeys(ctx, string(t))
		for _, r := range rows {
			out = append(out, Key{
				Tenant: t, ID: r.KeyID, User: identity.User(r.OwnerID), Description: r.Description,
				CreateTime: r.CreateTime, RevokeTime: r.RevokeTime,
			})
		}
		return err
	})
	return out, err
}

// RevokeKey ends a key for good, or answers ErrKeyUnknown.
func (o *Operator) RevokeKey(ctx context.Context, t identity.Tenant, id string) error {
	return o.operate(ctx, func(q *dbsqlc.Queries) error {
		n, err := q.RevokeKey(ctx, dbsqlc.RevokeKeyParams{TenantID: string(t), KeyID: id})
		if err == nil && n == 0 {
			return fmt.Errorf("%w: %q of tenant %q", ErrKeyUnknown, id, t)
		}
		return err
	})
}

// FindKeys reads the keys in force of that id: one, or none. Ids are random, but uniqueness never crosses tenants.
func (d *DB) FindKeys(ctx context.Context, id string) (out []Key, err error) {
	p := &Pipeline{}
	p.batch.Queue(dbsqlc.EnterAuth, id)
	p.batch.Queue(dbsqlc.FindKey, id).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var r dbsqlc.FindKeyRow
			if err := rows.Scan(pointers(&r)...); err != nil {
				return err
			}
			out = append(out, Key{Tenant: identity.Tenant(r.TenantID), ID: id, User: identity.User(r.OwnerID), SecretHash: r.SecretHash})
		}
		return rows.Err()
	})
	return out, d.Run(ctx, p)
}

// operate runs do as the operator, in one transaction.
func (o *Operator) operate(ctx context.Context, do func(*dbsqlc.Queries) error) error {
	err := pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT set_config('role', $1, true)", string(RoleOperator)); err != nil {
			return err
		}
		return do(dbsqlc.New(tx))
	})
	if errors.Is(err, ErrTenantUnknown) || errors.Is(err, ErrKeyUnknown) {
		return err
	}
	return translate(err, false)
}
