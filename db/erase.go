package db

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// Mention is how a user's id is looked for in what others have. It is read only.
type Mention struct {
	Tenant identity.Tenant
	User   identity.User
	// Inside: also as a part of longer texts. A short id would be found in too many.
	Inside bool
}

// json is the id as it stands in stored JSON, with its quotation marks where nothing may stand beside it.
func (m Mention) json() string {
	escaped := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(string(m.User))
	if m.Inside {
		return escaped
	}
	return `"` + escaped + `"`
}

// DeleteOwned deletes all rows that belong to a user: objects and what belongs to them, API keys, and tasks in the queue.
// It returns how many, by table. What is under way on one of the objects meets the fence.
func (d *DB) DeleteOwned(ctx context.Context, tenant identity.Tenant, user identity.User) (Rows, error) {
	var deleted Rows
	// It takes the rows in another order than changes take their locks.
	err := twice(func() error { return d.deleteRows(ctx, tenant, user, &deleted) })
	if err != nil {
		return nil, err
	}
	return deleted, nil
}

// twice runs do again where it failed because others held what it needs.
func twice(do func() error) error {
	err := do()
	if errors.Is(err, ErrContention) {
		err = do()
	}
	return err
}

func (d *DB) deleteRows(ctx context.Context, tenant identity.Tenant, user identity.User, out *Rows) error {
	return d.tenantTx(ctx, tenant, pgx.TxOptions{}, func(tx pgx.Tx) error {
		deleted := Rows{}
		*out = deleted
		if err := dbsqlc.New(tx).ReturnUsage(ctx, dbsqlc.ReturnUsageParams{TenantID: string(tenant), OwnerID: string(user)}); err != nil {
			return err
		}
		tables, err := tenantTables(ctx, tx)
		if err != nil {
			return err
		}
		// The objects first: who writes one waits for its row, and stores nothing behind our back.
		for _, t := range slices.Backward(tables) {
			tag, err := tx.Exec(ctx, "DELETE FROM holdfast."+pgx.Identifier{t.name}.Sanitize()+
				" WHERE tenant_id = $1 AND owner_id = $2", string(tenant), string(user))
			if err != nil {
				return err
			}
			if n := tag.RowsAffected(); n > 0 && t.name != "usage" {
				deleted[t.name] = n
			}
		}
		n, err := dbsqlc.New(tx).DeleteKeysOfUser(ctx, dbsqlc.DeleteKeysOfUserParams{TenantID: string(tenant), OwnerID: string(user)})
		if err != nil {
			return err
		}
		if n > 0 {
			deleted["api_keys"] = n
		}
		// The login itself has the queue.
		if _, err := tx.Exec(ctx, "SELECT set_config('role', 'none', true)"); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, "DELETE FROM "+JobsSchema+".river_job WHERE args ->> 'tenant' = $1 AND args ->> 'user' = $2", string(tenant), string(user))
		if err != nil {
			return err
		}
		if n := tag.RowsAffected(); n > 0 {
			deleted["tasks"] = n
		}
		return nil
	})
}

// DeleteExpired sweeps one tenant at once, whatever the rate of sweeps.
func (d *DB) DeleteExpired(ctx context.Context, tenant identity.Tenant) error {
	const batch = 500
	for deleted := batch; deleted == batch; {
		err := d.tenantTx(ctx, tenant, pgx.TxOptions{}, func(tx pgx.Tx) error { // it waits for no row
			tables, err := tenantTables(ctx, tx)
			if err != nil {
				return err
			}
			rows, err := dbsqlc.New(tx).DeleteExpired(ctx, dbsqlc.DeleteExpiredParams{TenantID: string(tenant), BatchSize: batch})
			if err != nil {
				return err
			}
			deleted = len(rows)
			kinds, ids := make([]string, len(rows)), make([]string, len(rows))
			for i, r := range rows {
				kinds[i], ids[i] = r.Kind, r.ObjectID
			}
			for _, t := range tables {
				if !t.ofObjects || t.name == "objects" {
					continue
				}
				_, err := tx.Exec(ctx, "DELETE FROM holdfast."+pgx.Identifier{t.name}.Sanitize()+
					" WHERE tenant_id = $1 AND (kind, object_id) IN (SELECT unnest($2::text[]), unnest($3::text[]))", string(tenant), kinds, ids)
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// MentioningStates lists objects whose states mention the user, behind the one that was last.
func (d *DB) MentioningStates(ctx context.Context, m Mention, last dbsqlc.FindMentioningStatesRow) (out []dbsqlc.FindMentioningStatesRow, err error) {
	err = d.tenantQueries(ctx, m.Tenant, func(q *dbsqlc.Queries) (err error) {
		out, err = q.FindMentioningStates(ctx, dbsqlc.FindMentioningStatesParams{
			TenantID: string(m.Tenant), AfterKind: last.Kind, AfterObjectID: last.ObjectID, JsonMention: m.json(), PageSize: MentionsPage,
		})
		return err
	})
	return out, err
}

// MentionsPage is how many rows MentioningStates, MentioningEntries and MentioningEvents return at most.
const MentionsPage = 200

// MentioningEntries lists entries that mention the user, behind the one that was last.
// Entries whose keys begin with one of the prefixes are the user's as well.
func (d *DB) MentioningEntries(ctx context.Context, m Mention, prefixes []string, last dbsqlc.FindMentioningEntriesRow) (out []dbsqlc.FindMentioningEntriesRow, err error) {
	err = d.tenantQueries(ctx, m.Tenant, func(q *dbsqlc.Queries) (err error) {
		out, err = q.FindMentioningEntries(ctx, dbsqlc.FindMentioningEntriesParams{
			TenantID: string(m.Tenant), AfterKind: last.Kind, AfterObjectID: last.ObjectID, AfterCollection: last.Collection, AfterKey: last.Key,
			JsonMention: m.json(), Mention: string(m.User), Inside: m.Inside, Prefixes: prefixes, PageSize: MentionsPage,
		})
		return err
	})
	return out, err
}

// DeleteEntry deletes an entry of an object that is dead: nobody has it in memory.
func (d *DB) DeleteEntry(ctx context.Context, a dbsqlc.DeleteEntryParams) error {
	return d.tenantQueries(ctx, identity.Tenant(a.TenantID), func(q *dbsqlc.Queries) error { return q.DeleteEntry(ctx, a) })
}

// CutHistory takes a user out of an object's journal, and all by which changes could be undone. It returns of how many events.
func (d *DB) CutHistory(ctx context.Context, a dbsqlc.CutHistoryParams) (n int64, err error) {
	err = d.tenantQueries(ctx, identity.Tenant(a.TenantID), func(q *dbsqlc.Queries) (err error) {
		n, err = q.CutHistory(ctx, a)
		return err
	})
	return n, err
}

// ReplaceEntry replaces an entry of an object that is dead: nobody has it in memory.
func (d *DB) ReplaceEntry(ctx context.Context, a dbsqlc.ReplaceEntryParams) error {
	return d.tenantQueries(ctx, identity.Tenant(a.TenantID), func(q *dbsqlc.Queries) error { return q.ReplaceEntry(ctx, a) })
}

// MentioningEvents lists events that the user made or that mention the user, behind the one that was last.
func (d *DB) MentioningEvents(ctx context.Context, m Mention, last dbsqlc.FindMentioningEventsRow) (out []dbsqlc.FindMentioningEventsRow, err error) {
	err = d.tenantQueries(ctx, m.Tenant, func(q *dbsqlc.Queries) (err error) {
		out, err = q.FindMentioningEvents(ctx, dbsqlc.FindMentioningEventsParams{
			TenantID: string(m.Tenant), AfterKind: last.Kind, AfterObjectID: last.ObjectID, AfterVersion: last.Version,
			JsonMention: m.json(), Mention: string(m.User), Inside: m.Inside, PageSize: MentionsPage,
		})
		return err
	})
	return out, err
}

// ScrubEvents takes a user out of events.
func (d *DB) ScrubEvents(ctx context.Context, tenant identity.Tenant, events []dbsqlc.ScrubEventParams) error {
	return d.tenantQueries(ctx, tenant, func(q *dbsqlc.Queries) error {
		for _, e := range events {
			if err := q.ScrubEvent(ctx, e); err != nil {
				return err
			}
		}
		return nil
	})
}

// NoteErasure keeps that a user was erased, by a hash, and forgets what timers failed with where that mentions the user.
func (d *DB) NoteErasure(ctx context.Context, m Mention) error {
	hash := sha256.Sum256([]byte(string(m.Tenant) + "\x00" + string(m.User)))
	return d.tenantQueries(ctx, m.Tenant, func(q *dbsqlc.Queries) error {
		if err := q.ScrubTimers(ctx, dbsqlc.ScrubTimersParams{TenantID: string(m.Tenant), Mention: string(m.User)}); err != nil {
			return err
		}
		return q.NoteErasure(ctx, dbsqlc.NoteErasureParams{TenantID: string(m.Tenant), UserHash: hash[:]})
	})
}

// CountMentions counts the rows of each table in which a search of a dump would find the user.
func (d *DB) CountMentions(ctx context.Context, m Mention) (Rows, error) {
	found := Rows{}
	err := d.tenantTx(ctx, m.Tenant, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		tables, err := tenantTables(ctx, tx)
		if err != nil {
			return err
		}
		for _, t := range tables {
			var n int64
			err := tx.QueryRow(ctx, "SELECT count(*) FROM holdfast."+pgx.Identifier{t.name}.Sanitize()+
				" x WHERE x.tenant_id = $1 AND strpos((to_jsonb(x) - 'tenant_id')::text, $2) > 0", string(m.Tenant), m.json()).Scan(&n)
			if err != nil {
				return err
			}
			if n > 0 {
				found[t.name] = n
			}
		}
		return nil
	})
	return found, err
}

// tenantQueries runs do in a transaction that acts for a tenant as one of its services.
func (d *DB) tenantQueries(ctx context.Context, tenant identity.Tenant, do func(*dbsqlc.Queries) error) error {
	return twice(func() error {
		return d.tenantTx(ctx, tenant, pgx.TxOptions{}, func(tx pgx.Tx) error { return do(dbsqlc.New(tx)) })
	})
}
