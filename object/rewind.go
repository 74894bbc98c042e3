package object

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/journal"
)

// rewinder walks back through one object's history, in one snapshot of the database.
type rewinder struct {
	db     *db.DB
	tx     *db.Transaction
	kind   *kind
	key    key
	reader reader
	past   Past

	events    []dbsqlc.ListEventsBackRow // read, and not undone yet; the first is the one that made past.version
	exhausted bool                       // the journal has no more
	undone    int
	read      int64  // bytes of the journal and of entries
	done      func() // releases the call's place
}

const (
	// maxUndone bounds the changes that one call undoes, and maxRewound the bytes that it reads: a call keeps a connection busy and
	// holds most of what it reads in memory.
	maxUndone  = 50_000
	maxRewound = 32 << 20
	// rewindTime bounds one call.
	rewindTime = 10 * time.Second
)

// rewindPage is the number of events that are read at once.
const rewindPage = 200

// rewind is begin for calls that go back in history. Few of them run at once; others are refused. The returned context has the
// call's deadline.
func (k *kind) rewind(ctx context.Context, id ID) (*rewinder, context.Context, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, nil, err
	}
	if full := k.rt.history.Enter(caller); full != "" {
		return nil, nil, k.rt.overloadedOf("history", full)
	}
	ctx, cancel := context.WithTimeout(ctx, rewindTime)
	done := func() {
		cancel()
		k.rt.history.Leave(caller)
	}
	r, err := k.begin(ctx, id)
	if err != nil {
		done()
		return nil, nil, err
	}
	r.done = done
	return r, ctx, nil
}

// begin starts at the object as it is now. A deleted object has a history as long as its rows exist. The caller must call close.
func (k *kind) begin(ctx context.Context, id ID) (*rewinder, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	if err := id.Check(); err != nil {
		return nil, err
	}
	d := k.rt.db
	r := &rewinder{db: d, kind: k, key: k.at(caller.Tenant, id), reader: k.reader(caller), done: func() {}}
	var row *dbsqlc.ViewObjectsRow
	err = k.rt.awake(ctx, r.key, func() (err error) {
		p := d.NewSnapshot(callerScope(caller))
		queueView1(p, k, caller.Tenant, id, func(found *dbsqlc.ViewObjectsRow) error {
			if row = found; row.Asleep {
				return errAsleep
			}
			return nil
		})
		r.tx, err = d.Begin(ctx, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	if row == nil || !caller.MaySee(identity.User(row.OwnerID)) || row.ExpireTime != nil && !d.Now().Before(*row.ExpireTime) {
		r.close(ctx)
		return nil, ErrNotFound
	}
	r.past = Past{
		kind: k, owner: identity.User(row.OwnerID), create: row.CreateTime, current: Version(row.Version), gone: row.Deleted,
		version: Version(row.Version), schema: row.SchemaVersion, entries: map[entryKey]storedEntry{},
	}
	if !row.Deleted {
		err = json.Unmarshal([]byte(row.State), &r.past.state)
	}
	if err == nil && row.Timers != "" {
		err = json.Unmarshal([]byte(row.Timers), &r.past.timers)
	}
	if err != nil {
		r.close(ctx)
		return nil, fmt.Errorf("object: stored state cannot be read: %w", err)
	}
	return r, nil
}

func (r *rewinder) close(ctx context.Context) {
	r.tx.Rollback(ctx)
	r.done()
}

// spend counts bytes that were read, and fails when they are too many.
func (r *rewinder) spend(bytes int) error {
	if r.read += int64(bytes); r.read > maxRewound {
		return fmt.Errorf("%w: going back so far takes more than the %d MiB that one call reads; ask for a later moment", ErrInvalid, maxRewound>>20)
	}
	return nil
}

// to goes back to a moment, one event at a time.
func (r *rewinder) to(ctx context.Context, at Moment) error {
	p := &r.past
	if at.Version < 0 || at.Version == 0 && at.Time.IsZero() {
		return fmt.Errorf("%w: a moment is a version from 1 on, or a time", ErrInvalid)
	}
	if at.Version > p.version {
		return &HistoryError{Oldest: 1, Newest: p.current}
	}
	for {
		if len(r.events) == 0 && !r.exhausted {
			if err := r.readEvents(ctx); err != nil {
				return err
			}
		}
		if len(r.events) == 0 { // what came before was trimmed
			p.time = time.Time{}
			if at.Version == p.version {
				return nil
			}
			return &HistoryError{Oldest: p.version, Newest: p.current}
		}
		e := &r.events[0]
		if Version(e.Version) != p.version {
			return fmt.Errorf("object: the journal has version %d where %d was expected", e.Version, p.version)
		}
		p.time = e.EventTime
		if at.Version == p.version || at.Version == 0 && !p.time.After(at.Time) {
			return nil
		}
		if r.undone++; r.undone > maxUndone {
			return fmt.Errorf("%w: more than %d changes were made since", ErrInvalid, maxUndone)
		}
		if err := r.undo(e, at); err != nil {
			return err
		}
		r.events = r.events[1:]
	}
}

func (r *rewinder) readEvents(ctx context.Context) error {
	pipe, bytes := r.tx.Next(), 0
	pipe.ListEventsBack(dbsqlc.ListEventsBackParams{
		TenantID: string(r.key.Tenant), Kind: r.key.Kind, ObjectID: string(r.key.ID), FromVersion: int64(r.past.version),
		PageSize: rewindPage, MostBytes: AnswerBytes,
	}, func(row *dbsqlc.ListEventsBackRow) error {
		r.events = append(r.events, *row)
		bytes += len(row.Undo)
		return r.spend(len(row.Undo))
	})
	if err := r.tx.Read(ctx, pipe); err != nil {
		return err
	}
	r.exhausted = len(r.events) < rewindPage && bytes <= AnswerBytes
	return nil
}

// cutNote is the undo of an event whose old values were erased; see CutHistory.
const cutNote = `{"cut": true}`

// undo reverts the event that made the current version.
func (r *rewinder) undo(e *dbsqlc.ListEventsBackRow, at Moment) error {
	p := &r.past
	u, err := journal.Parse(e.Undo)
	if err != nil {
		return err
	}
	switch {
	case u.Created && at.Version == 0:
		return ErrNotFound // it was not there yet
	case u.Created, u.Cut:
		return &HistoryError{Oldest: p.version, Newest: p.current}
	case u.Revived:
		p.state, p.schema = nil, cmp.Or(u.Schema, p.schema)
	case u.Schema != 0:
		p.state, p.schema = u.State, u.Schema
	default:
		if p.state, err = u.Revert(p.state); err != nil {
			return err
		}
	}
	p.timers = maps.Clone(p.timers)
	for name, due := range u.Timers {
		switch {
		case due == nil:
			delete(p.timers, name)
		case p.timers == nil:
			p.timers = map[string]time.Time{name: *due}
		default:
			p.timers[name] = *due
		}
	}
	p.version--
	for _, n := range u.Entries {
		if r.reader.may(n.Owner) {
			p.entries[entryKey{n.Collection, n.Key}] = storedEntry{n.Old, n.Owner}
		}
	}
	return nil
}

// entries reads n stored entries, or fewer if they fill an answer. more: there may be others.
func (r *rewinder) entries(ctx context.Context, collection, after string, n int) (rows []dbsqlc.ListEntriesAfterRow, more bool, err error) {
	pipe, bytes, by := r.tx.Next(), 0, r.reader
	by.all = by.all || !slices.Contains(r.kind.owned, collection)
	queuePage(pipe, r.key, collection, by, Range{After: after}, n, AnswerBytes, func(row *dbsqlc.ListEntriesAfterRow) error {
		rows = append(rows, *row)
		bytes += len(row.Body)
		return r.spend(len(row.Body))
	})
	err = r.tx.Read(ctx, pipe)
	return rows, len(rows) == n || bytes > AnswerBytes, err
}

// stored reads the wanted entries, except those that are already known.
func (r *rewinder) stored(ctx context.Context, wanted, known map[entryKey]storedEntry) (map[entryKey]storedEntry, error) {
	a := dbsqlc.LoadEntriesParams{TenantID: string(r.key.Tenant)}
	for k := range wanted {
		if _, ok := known[k]; ok {
			continue
		}
		a.Ords = append(a.Ords, 0)
		a.Kinds = append(a.Kinds, r.key.Kind)
		a.Ids = append(a.Ids, string(r.key.ID))
		a.Collections = append(a.Collections, k.collection)
		a.Keys = append(a.Keys, k.key)
		a.Readers = append(a.Readers, r.reader.column())
	}
	if len(a.Ords) == 0 {
		return nil, nil
	}
	out := make(map[entryKey]storedEntry, len(a.Ords))
	pipe := r.tx.Next()
	pipe.LoadEntries(a, func(row *dbsqlc.LoadEntriesRow) error {
		out[entryKey{row.Collection, row.Key}] = storedEntry{json.RawMessage(row.Body), ownerOf(row.Owned, row.OwnerID)}
		return r.spend(len(row.Body))
	})
	return out, r.tx.Read(ctx, pipe)
}
