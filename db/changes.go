package db

import (
	"encoding/hex"
	"strconv"
	"time"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/jsonpb"
)

// Changes are a batch of one tenant's changes, as rows of its tables; see the function holdfast.store_changes. Fields that are zero
// are NULL where the table has NULL.
type Changes struct {
	Tenant identity.Tenant
	// Locks are taken first, in this order, which must be ascending. nil: the transaction has them.
	Locks   []int64
	Objects []ObjectRow
	Terms   []TermsRow
	// Added are entries that are not there, which the store proves. Replaced may be there. Absent must not be there.
	Added, Replaced, Absent []EntryRow
	Timers                  []TimerRow
	Events                  []EventRow
}

// Name is what names an object in its tenant.
type Name struct{ Kind, Object string }

// ObjectRow is a row of holdfast.objects. State and Timers are JSON; no State: the object is deleted.
type ObjectRow struct {
	Name

	Owner                            identity.User
	BaseVersion, Version             int64
	Schema                           int32
	State, Timers                    string
	Create, Update, Activity, Expire time.Time
	Reborn                           bool // over an earlier life, whose rows go
}

// TermsRow are an object's rows of holdfast.terms, instead of those that it had.
type TermsRow struct {
	Name

	Owner    identity.User
	Activity time.Time
	Terms    []string
}

// EntryRow is a row of holdfast.entries. Body is JSON; no Body: the entry is removed.
type EntryRow struct {
	Name

	Owner           identity.User
	Owned           bool // the entry is Owner's alone
	Collection, Key string
	Version         int64
	Body            string
}

// TimerRow is a row of holdfast.timers. No Due: the timer is cleared.
type TimerRow struct {
	Name

	Owner identity.User
	Timer string
	Due   time.Time
}

// EventRow is a row of holdfast.events. Undo is JSON.
type EventRow struct {
	Name

	Owner       identity.User
	Version     int64
	Type, Actor string
	Time        time.Time
	RequestID   string
	RequestKey  []byte
	RequestHash []byte
	Reply       []byte
	Undo        string
}

// StoreChanges queues dbsqlc.StoreChanges.
func (p *Pipeline) StoreChanges(c *Changes) {
	a := c.params()
	p.batch.Queue(dbsqlc.StoreChanges, fields(&a)...)
}

func (c *Changes) params() dbsqlc.StoreChangesParams {
	return dbsqlc.StoreChangesParams{
		TenantID: string(c.Tenant), Locks: c.Locks, Objects: encode(c.Objects), Terms: encode(c.Terms), Added: encode(c.Added),
		Replaced: encode(c.Replaced), Absent: encode(c.Absent), Timers: encode(c.Timers), Events: encode(c.Events),
	}
}

// encode makes a parameter of rows: a JSON array of objects by column. No rows are NULL.
func encode[R interface{ appendTo(b row) row }](rows []R) []byte {
	if len(rows) == 0 {
		return nil
	}
	b := row("[")
	for i, r := range rows {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(r.appendTo(append(b, '{')), '}')
	}
	return append(b, ']')
}

func (r ObjectRow) appendTo(b row) row {
	b = r.Name.appendTo(b).text("owner_id", string(r.Owner)).number("base_version", r.BaseVersion).number("version", r.Version).
		number("schema_version", int64(r.Schema)).json("state", r.State).json("timers", r.Timers).time("create_time", r.Create).
		time("update_time", r.Update).time("activity_time", r.Activity).time("expire_time", r.Expire)
	if r.Reborn {
		b = b.json("reborn", "true")
	}
	return b
}

func (r TermsRow) appendTo(b row) row {
	b = append(r.Name.appendTo(b).text("owner_id", string(r.Owner)).time("activity_time", r.Activity).name("terms"), '[')
	for i, term := range r.Terms {
		if i > 0 {
			b = append(b, ',')
		}
		b = jsonpb.AppendString(b, term)
	}
	return append(b, ']')
}

func (r EntryRow) appendTo(b row) row {
	b = r.Name.appendTo(b).text("owner_id", string(r.Owner)).text("collection", r.Collection).text("key", r.Key).
		number("version", r.Version).json("body", r.Body)
	if r.Owned {
		b = b.json("owned", "true")
	}
	return b
}

func (r TimerRow) appendTo(b row) row {
	return r.Name.appendTo(b).text("owner_id", string(r.Owner)).text("name", r.Timer).time("due_time", r.Due)
}

func (r EventRow) appendTo(b row) row {
	b = r.Name.appendTo(b).text("owner_id", string(r.Owner)).number("version", r.Version).text("event_type", r.Type).
		text("actor", r.Actor).time("event_time", r.Time).bytes("request_key", r.RequestKey).bytes("request_hash", r.RequestHash).
		bytes("reply", r.Reply).json("undo", r.Undo)
	if r.RequestID != "" {
		b = b.text("request_id", r.RequestID)
	}
	return b
}

func (n Name) appendTo(b row) row { return b.text("kind", n.Kind).text("object_id", n.Object) }

// row is a JSON object in the making.
type row []byte

func (b row) name(column string) row {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	return append(append(append(b, '"'), column...), '"', ':')
}

func (b row) text(column, value string) row { return jsonpb.AppendString(b.name(column), value) }

func (b row) number(column string, n int64) row { return strconv.AppendInt(b.name(column), n, 10) }

// json appends a value that is JSON already; an empty one is left out.
func (b row) json(column, value string) row {
	if value == "" {
		return b
	}
	return append(b.name(column), value...)
}

// time appends a time in microseconds, which is what Postgres keeps; the zero time is left out.
func (b row) time(column string, t time.Time) row {
	if t.IsZero() {
		return b
	}
	return append(t.UTC().AppendFormat(append(b.name(column), '"'), "2006-01-02T15:04:05.999999Z"), '"')
}

// bytes appends a bytea; nil is left out.
func (b row) bytes(column string, value []byte) row {
	if value == nil {
		return b
	}
	return append(hex.AppendEncode(append(b.name(column), `"\\x`...), value), '"')
}
