package object

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/journal"
	"holdfast/object/internal/rowjson"
)

// Moment is a point in an object's history: a version or, if that is 0, the last version at a time.
type Moment struct {
	Version Version
	Time    time.Time
}

// Latest is the newest version.
func Latest() Moment { return Moment{Time: farFuture} }

// HistoryError is returned if the object's journal does not reach back to the moment. It has the versions Oldest to Newest. Older
// ones were trimmed, or belonged to an earlier life of the object.
type HistoryError struct{ Oldest, Newest Version }

func (e *HistoryError) Error() string {
	return fmt.Sprintf("object: its history has the versions %d to %d", e.Oldest, e.Newest)
}

// maxRewritten is how many entries a restore or a fork may write: they are one change, and one row of the journal.
const maxRewritten = 10_000

// Event is the journal's entry for one version.
type Event struct {
	Version Version
	// Type is "created", "updated", "deleted", "restored:<version>", "timer:<name>", or what the change called itself.
	Type string
	// Actor is the user who made the change; empty: a service on its own behalf.
	Actor     identity.User
	Time      time.Time
	RequestID string
	// Fields are the top-level fields of the state that it changed, and Entries what it put or deleted, without values.
	Fields  []string
	Entries []EntryChange
	Timers  []string
}

// storedEntry is an entry as it is stored, or was.
type storedEntry struct {
	body  json.RawMessage // nil: it did not exist
	owner *identity.User
}

// Past is an object as it was at a moment, as far as the caller may see it. It holds only the entries that differ from what is stored now.
type Past struct {
	kind    *kind
	refused error // why it could not be read; the rest is not set then
	owner   identity.User
	create  time.Time
	current Version // the stored version that it was computed from
	gone    bool    // deleted now

	version Version
	time    time.Time // of the version's commit; zero where that is no longer known
	state   map[string]json.RawMessage
	schema  int32
	timers  map[string]time.Time
	entries map[entryKey]storedEntry
}

// Info returns the object's info at that moment, without its expiry, and without its update time if the journal no longer has that
// version's event.
func (p *Past) Info(id ID) Info {
	return Info{ID: id, Owner: p.owner, Version: p.version, CreateTime: p.create, UpdateTime: p.time}
}

// Timers returns the due times of the object's timers by name. Do not change them.
func (p *Past) Timers() map[string]time.Time { return p.timers }

// Version returns the version at that moment.
func (p *Past) Version() Version { return p.version }

// State returns the state at that moment, in this release's schema.
func (p *Past) State() (proto.Message, error) {
	state, _, err := p.decode()
	return state, err
}

// decode returns the state at that moment, in this release's schema.
func (p *Past) decode() (state proto.Message, newer bool, err error) {
	stored, err := json.Marshal(p.state)
	if err != nil {
		return nil, false, err
	}
	return p.kind.decodeState(string(stored), p.schema)
}

// Past reads an object as it was at a moment. It returns ErrNotFound if the object did not exist then or was deleted, and
// HistoryError if the journal does not reach so far. Its cost grows with the number of changes since.
func (k *Kind[S]) Past(ctx context.Context, id ID, at Moment) (*Past, error) {
	r, ctx, err := k.rewind(ctx, id)
	if err != nil {
		return nil, err
	}
	defer r.close(ctx)
	if err := r.to(ctx, at); err != nil {
		return nil, err
	}
	if r.past.state == nil {
		return nil, ErrNotFound
	}
	return &r.past, nil
}

// EntriesAt pages forward through a collection as it was at a moment; see Past. It ignores o.Before.
func (k *Kind[S]) EntriesAt(ctx context.Context, id ID, at Moment, collection string, o EntriesOptions) (EntriesPage, error) {
	if k.collections[collection] == nil {
		return EntriesPage{}, fmt.Errorf("%w: the kind %s has no collection %q", ErrInvalid, k.name, collection)
	}
	r, ctx, err := k.rewind(ctx, id)
	if err != nil {
		return EntriesPage{}, err
	}
	defer r.close(ctx)
	if err := r.to(ctx, at); err != nil {
		return EntriesPage{}, err
	}
	if r.past.state == nil {
		return EntriesPage{}, ErrNotFound
	}
	page := EntriesPage{Info: r.past.Info(id)}
	// Merge the entries that differ from now with the stored ones, in order of their keys.
	var differ []entryKey
	for k := range r.past.entries {
		if k.collection == collection && k.key > o.After {
			differ = append(differ, k)
		}
	}
	slices.SortFunc(differ, func(a, b entryKey) int { return cmp.Compare(a.key, b.key) })
	size := int(pageSize(o.PageSize))
	var room Room
	add := func(key, body string) error {
		value, _, err := rowjson.Decode(k.collections[collection], body)
		e := newEntry(key, value, len(body))
		if page.More = len(page.Entries) == size || !room.Fits(e.size); !page.More {
			page.Entries = append(page.Entries, e)
		}
		return err
	}
	for read, more := o.After, true; !page.More && (more || len(differ) > 0); {
		var stored []dbsqlc.ListEntriesAfterRow
		if more {
			if stored, more, err = r.entries(ctx, collection, read, size+1); err != nil {
				return EntriesPage{}, err
			}
			if more {
				read = stored[len(stored)-1].Key // others may be stored beyond it
			}
		}
		for !page.More && (len(stored) > 0 || len(differ) > 0 && (!more || differ[0].key <= read)) {
			if len(stored) > 0 && (len(differ) == 0 || stored[0].Key < differ[0].key) {
				err = add(stored[0].Key, stored[0].Body)
				stored = stored[1:]
			} else {
				if len(stored) > 0 && stored[0].Key == differ[0].key {
					stored = stored[1:]
				}
				if old := r.past.entries[differ[0]].body; old != nil {
					err = add(differ[0].key, string(old))
				}
				differ = differ[1:]
			}
			if err != nil {
				return EntriesPage{}, err
			}
		}
	}
	return page, nil
}

// HistoryPage is a page of an object's journal, newest first.
type HistoryPage struct {
	Events []Event
	More   bool
}

// History pages back through an object's journal from a version, or from the newest if from is 0. A deleted object has a journal as
// long as its rows exist. Users see the events of the object's present life only: another user may have owned it before.
func (k *Kind[S]) History(ctx context.Context, id ID, from Version, size int) (HistoryPage, error) {
	r, err := k.begin(ctx, id)
	if err != nil {
		return HistoryPage{}, err
	}
	defer r.close(ctx)
	caller, err := identity.From(ctx)
	if err != nil {
		return HistoryPage{}, err
	}
	if from == 0 || from > r.past.version {
		from = r.past.version
	}
	var page HistoryPage
	var room Room
	bytes, n := 0, pageSize(size)
	pipe := r.tx.Next()
	pipe.ListEventsBack(dbsqlc.ListEventsBackParams{
		TenantID: string(r.key.Tenant), Kind: k.name, ObjectID: string(id), FromVersion: int64(from), PageSize: n + 1,
		MostBytes: AnswerBytes,
	}, func(row *dbsqlc.ListEventsBackRow) error {
		if !caller.Service && row.EventTime.Before(r.past.create) {
			return nil
		}
		if bytes += len(row.Undo); page.More {
			return nil
		}
		u, err := journal.Parse(row.Undo)
		if err != nil {
			return err
		}
		e := Event{
			Version: Version(row.Version), Type: row.EventType, Actor: identity.User(row.Actor), Time: row.EventTime,
			RequestID: row.RequestID, Fields: u.Fields(), Timers: slices.Sorted(maps.Keys(u.Timers)),
		}
		for _, n := range u.Entries {
			if r.reader.may(n.Owner) {
				e.Entries = append(e.Entries, EntryChange{Collection: n.Collection, Entry: Entry{Key: n.Key}})
			}
		}
		// The undo has every name that the answer has, and values too, so it is an upper bound.
		if page.More = len(page.Events) == int(n) || !room.Fits(itemOverhead+len(row.Undo)); !page.More {
			page.Events = append(page.Events, e)
		}
		return nil
	})
	err = r.tx.Read(ctx, pipe)
	page.More = page.More || bytes > AnswerBytes
	return page, err
}

// Difference is how an object differs between two moments.
type Difference struct {
	From, To Info
	// Before and After are the states; nil: it was deleted.
	Before, After proto.Message
	// Entries are those that differ, in order of collection and key.
	Entries []EntryDifference
}

// EntryDifference is an entry that differs between two versions; nil: it did not exist.
type EntryDifference struct {
	Collection, Key string
	Before, After   proto.Message
}

// Diff compares an object at two moments; from must not be later than to. See Past.
func (k *Kind[S]) Diff(ctx context.Context, id ID, from, to Moment) (Difference, error) {
	r, ctx, err := k.rewind(ctx, id)
	if err != nil {
		return Difference{}, err
	}
	defer r.close(ctx)
	if err := r.to(ctx, to); err != nil {
		return Difference{}, err
	}
	after := r.past
	r.past.entries = map[entryKey]storedEntry{}
	if from.Version > after.version {
		return Difference{}, fmt.Errorf("%w: a difference goes from an earlier version to a later one", ErrInvalid)
	}
	if err := r.to(ctx, from); err != nil {
		return Difference{}, err
	}
	before := &r.past
	d := Difference{From: before.Info(id), To: after.Info(id)}
	if d.Before, err = before.decodeIfThere(); err != nil {
		return Difference{}, err
	}
	if d.After, err = after.decodeIfThere(); err != nil {
		return Difference{}, err
	}
	now, err := r.stored(ctx, before.entries, after.entries)
	if err != nil {
		return Difference{}, err
	}
	for key, was := range before.entries {
		is, changedSince := after.entries[key]
		if !changedSince {
			is = now[key]
		}
		e := EntryDifference{Collection: key.collection, Key: key.key}
		if e.Before, err = k.decodeEntry(key, was.body); err != nil {
			return Difference{}, err
		}
		if e.After, err = k.decodeEntry(key, is.body); err != nil {
			return Difference{}, err
		}
		if (e.Before != nil || e.After != nil) && (e.Before == nil || e.After == nil || !proto.Equal(e.Before, e.After)) {
			d.Entries = append(d.Entries, e)
		}
	}
	slices.SortFunc(d.Entries, func(a, b EntryDifference) int {
		return cmp.Or(cmp.Compare(a.Collection, b.Collection), cmp.Compare(a.Key, b.Key))
	})
	return d, nil
}

func (p *Past) decodeIfThere() (proto.Message, error) {
	if p.state == nil {
		return nil, nil
	}
	state, _, err := p.decode()
	return state, err
}

// decodeEntry returns nil if there is no entry, or if only a newer release knows its collection.
func (k *kind) decodeEntry(key entryKey, body json.RawMessage) (proto.Message, error) {
	if body == nil || k.collections[key.collection] == nil {
		return nil, nil
	}
	value, _, err := rowjson.Decode(k.collections[key.collection], string(body))
	return value, err
}
