package db

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// Mention describes how a user's id is looked for in what others have. It is read only.
type Mention struct {
	Tenant identity.Tenant
	User   identity.User
	// Inside: also as a part of longer texts. A short id would be found in too many.
	Inside bool
}

// In reports whether a text mentions the user.
func (m Mention) In(text string) bool {
	return text == string(m.User) || m.Inside && m.next(text, 0) >= 0
}

// Replace returns a text with another name in place of the user's id.
func (m Mention) Replace(text, name string) string {
	if text == string(m.User) {
		return name
	}
	if !m.Inside {
		return text
	}
	var out strings.Builder
	for from := 0; ; {
		at := m.next(text, from)
		if at < 0 {
			out.WriteString(text[from:])
			return out.String()
		}
		out.WriteString(text[from:at])
		out.WriteString(name)
		from = at + len(m.User)
	}
}

// next returns where the text mentions the user next, from some byte on; -1: nowhere. An id within a longer word is another
// user's: joann@example.com does not mention ann@example.com.
func (m Mention) next(text string, from int) int {
	id := string(m.User)
	for {
		at := strings.Index(text[from:], id)
		if at < 0 {
			return -1
		}
		at += from
		before, after := lastTwo(text[:at]), firstTwo(text[at+len(id):])
		if !m.continued(lastTwo(id)[0], after) && !m.continued(firstTwo(id)[0], before) {
			return at
		}
		_, size := utf8.DecodeRuneInString(text[at:])
		from = at + size
	}
}

// continued reports whether an id goes on over its edge, given the two runes next to it: as a word, or an address of mail by
// a dot or the like.
func (m Mention) continued(edge rune, next [2]rune) bool {
	word := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_' }
	if !word(edge) {
		return false
	}
	return word(next[0]) || strings.ContainsRune(string(m.User), '@') && strings.ContainsRune(".-+%", next[0]) && word(next[1])
}

func firstTwo(s string) (out [2]rune) {
	for i := range out {
		r, size := utf8.DecodeRuneInString(s)
		if size == 0 {
			break
		}
		out[i], s = r, s[size:]
	}
	return out
}

func lastTwo(s string) (out [2]rune) {
	for i := range out {
		r, size := utf8.DecodeLastRuneInString(s)
		if size == 0 {
			break
		}
		out[i], s = r, s[:len(s)-size]
	}
	return out
}

// InMessage reports whether a proto message in its binary form mentions the user. Where it cannot be told whether the byte
// before the id is a letter or a length, it does.
func (m Mention) InMessage(message []byte) bool {
	if !m.Inside {
		return false
	}
	id := []byte(m.User)
	for from := 0; ; {
		at := bytes.Index(message[from:], id)
		if at < 0 {
			return false
		}
		at += from
		if at < 2 || message[at-2]&7 == 2 && int(message[at-1]) <= len(message)-at || m.In(string(message[max(0, at-8):min(len(message), at+len(id)+8)])) {
			return true
		}
		from = at + 1
	}
}

// NamesUser reports whether a field of this name holds a user's id and nothing else.
func NamesUser(field string) bool {
	switch field {
	case "owner", "owner_id", "user", "user_id", "actor", "last_error_user":
		return true
	}
	return false
}

// inJSON reports whether a value of stored JSON, in a field of this name, mentions the user.
func (m Mention) inJSON(field string, value any) bool {
	switch v := value.(type) {
	case string:
		if NamesUser(field) {
			return v == string(m.User)
		}
		if m.In(v) {
			return true
		}
		plain, err := base64.StdEncoding.DecodeString(v)
		return err == nil && m.In(string(plain))
	case []any:
		return slices.ContainsFunc(v, func(x any) bool { return m.inJSON("", x) })
	case map[string]any:
		for k, x := range v {
			if m.In(k) || m.inJSON(k, x) {
				return true
			}
		}
	}
	return false
}

// json returns the id as it stands in stored JSON, with its quotation marks if nothing may stand next to it.
func (m Mention) json() string {
	escaped := escapeJSON.Replace(string(m.User))
	if m.Inside {
		return escaped
	}
	return `"` + escaped + `"`
}

// needles returns what stored JSON holds, at least one of them, if it mentions the user: the id, and within bytes what
// base64 makes of it at each of three places.
func (m Mention) needles() []string {
	out := []string{m.json()}
	if !m.Inside {
		return append(out, `"`+base64.StdEncoding.EncodeToString([]byte(m.User))+`"`)
	}
	for skip := range 3 {
		text := append(make([]byte, skip), m.User...)
		text = text[:len(text)/3*3]                                               // what comes behind the id changes the last digits
		out = append(out, base64.StdEncoding.EncodeToString(text)[(skip*8+5)/6:]) // and what stands before it the first
	}
	return out
}

var escapeJSON = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

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
		tables, err := tenantTables(ctx, tx)
		if err != nil {
			return err
		}
		// The objects first: who writes one waits for its row, and stores nothing behind our back.
		for _, t := range slices.Backward(tables) {
			if t.name == "usage" {
				continue // NoteErasure
			}
			sql := "DELETE FROM holdfast." + pgx.Identifier{t.name}.Sanitize() + " WHERE tenant_id = $1 AND owner_id = $2"
			if t.name == "entries" {
				sql += " AND NOT owned" // an owned entry goes with a change of its object
			}
			tag, err := tx.Exec(ctx, sql, string(tenant), string(user))
			if err != nil {
				return err
			}
			if n := tag.RowsAffected(); n > 0 {
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
			TenantID: string(m.Tenant), AfterKind: last.Kind, AfterObjectID: last.ObjectID, Needles: m.needles(), PageSize: MentionsPage,
		})
		return err
	})
	return out, err
}

// MentionsPage is how many rows MentioningStates, MentioningEntries and MentioningEvents return at most.
const MentionsPage = 200

// MentioningEntries lists entries that belong to the user or mention the user, after the one that was last.
func (d *DB) MentioningEntries(ctx context.Context, m Mention, last dbsqlc.FindMentioningEntriesRow) (out []dbsqlc.FindMentioningEntriesRow, err error) {
	err = d.tenantQueries(ctx, m.Tenant, func(q *dbsqlc.Queries) (err error) {
		out, err = q.FindMentioningEntries(ctx, dbsqlc.FindMentioningEntriesParams{
			TenantID: string(m.Tenant), AfterKind: last.Kind, AfterObjectID: last.ObjectID, AfterCollection: last.Collection, AfterKey: last.Key,
			Needles: m.needles(), Mention: string(m.User), Inside: m.Inside, PageSize: MentionsPage,
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
			Needles: m.needles(), Mention: string(m.User), Inside: m.Inside, PageSize: MentionsPage,
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

// NoteErasure keeps that a user was erased, by a hash, and forgets what timers failed with where that mentions the user. It forgets
// what was counted of the user too, and what servers count within the next minute.
func (d *DB) NoteErasure(ctx context.Context, m Mention) error {
	hash := userHash(m.Tenant, m.User)
	return d.tenantQueries(ctx, m.Tenant, func(q *dbsqlc.Queries) error {
		if err := q.ScrubTimers(ctx, dbsqlc.ScrubTimersParams{TenantID: string(m.Tenant), Mention: string(m.User)}); err != nil {
			return err
		}
		if err := q.NoteErasure(ctx, dbsqlc.NoteErasureParams{TenantID: string(m.Tenant), UserHash: hash[:]}); err != nil {
			return err
		}
		if err := q.ReturnUsage(ctx, dbsqlc.ReturnUsageParams{TenantID: string(m.Tenant), OwnerID: string(m.User)}); err != nil {
			return err
		}
		return q.DropUsage(ctx, dbsqlc.DropUsageParams{TenantID: string(m.Tenant), OwnerID: string(m.User)})
	})
}

// ErasedSince reports whether a user was erased at or after a time, by the database's clock.
func (d *DB) ErasedSince(ctx context.Context, tenant identity.Tenant, user identity.User, since time.Time) (erased bool, err error) {
	hash := userHash(tenant, user)
	err = d.tenantQueries(ctx, tenant, func(q *dbsqlc.Queries) (err error) {
		erased, err = q.ErasedSince(ctx, dbsqlc.ErasedSinceParams{TenantID: string(tenant), UserHash: hash[:], Since: since})
		return err
	})
	return erased, err
}

func userHash(tenant identity.Tenant, user identity.User) [sha256.Size]byte {
	return sha256.Sum256([]byte(string(tenant) + "\x00" + string(user)))
}

// CountMentions counts the rows of each table that mention the user, and the sleepers that may have such rows.
func (d *DB) CountMentions(ctx context.Context, m Mention) (Rows, error) {
	found := Rows{}
	err := d.tenantTx(ctx, m.Tenant, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		tables, err := tenantTables(ctx, tx)
		if err != nil {
			return err
		}
		for _, t := range tables {
			n, err := countMentions(ctx, tx, &t, m)
			if err != nil {
				return err
			}
			if n > 0 {
				found[t.name] = n
			}
		}
		return nil
	})
	if err != nil {
		return found, err
	}
	asleep, err := d.MentioningSleepers(ctx, m)
	if len(asleep) > 0 {
		found["sleepers"] = int64(len(asleep))
	}
	return found, err
}

func countMentions(ctx context.Context, tx pgx.Tx, t *tenantTable, m Mention) (n int64, err error) {
	rows, err := tx.Query(ctx, "SELECT x.row FROM (SELECT (to_jsonb(t) - 'tenant_id' - 'compressed')::text AS row FROM holdfast."+pgx.Identifier{t.name}.Sanitize()+
		" t WHERE t.tenant_id = $1 OFFSET 0) x WHERE EXISTS (SELECT FROM unnest($2::text[]) n WHERE strpos(x.row, n) > 0)", string(m.Tenant), m.needles())
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		d := json.NewDecoder(bytes.NewReader(rows.RawValues()[0]))
		d.UseNumber()
		var row any
		if err := d.Decode(&row); err != nil {
			return 0, err
		}
		if m.inJSON("", row) {
			n++
		}
	}
	return n, rows.Err()
}

// tenantQueries runs do in a transaction that acts for a tenant as one of its services.
func (d *DB) tenantQueries(ctx context.Context, tenant identity.Tenant, do func(*dbsqlc.Queries) error) error {
	return twice(func() error {
		return d.tenantTx(ctx, tenant, pgx.TxOptions{}, func(tx pgx.Tx) error { return do(dbsqlc.New(tx)) })
	})
}
