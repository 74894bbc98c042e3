package object

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
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

// NewLife does to a state what the first change of a life does where the id had an earlier one; see KindConfig.
func (k *Kind[S]) NewLife(state S, first Info) {
	k.newLife(state, issuedBefore(first.Version))
}

// Restore calls do with what an object was at a moment, and with the options that an Update needs for its Tx to become that:
// state, entries and timers, as a new version. Undoing it is another Restore. A deleted object comes back while its rows are
// there, for 24 h at least. Timers that were due since run at once. Restore calls do again if the object has changed since it
// was read. What cannot be read is refused by Become, so that a repeated request still gets its first reply. Restore returns what
// Past and do return, and ErrInvalid if more than 10,000 entries would be written.
func (k *Kind[S]) Restore(ctx context.Context, id ID, at Moment, do func(*Past, ...UpdateOption) error) error {
	for try := 1; ; try++ {
		p, err := k.Past(ctx, id, at)
		opts := []UpdateOption{Rewrite()}
		if err != nil {
			p = &Past{refused: err}
		} else {
			opts = append(opts, p.restoring())
		}
		err = do(p, opts...)
		mismatch, moved := errors.AsType[*VersionMismatchError](err)
		switch {
		case moved && mismatch.Expected == p.current && p.refused == nil && try < restoreTries:
		case errors.Is(err, ErrNotFound) && p.refused != nil:
			return p.refused // a deleted object has a history too
		default:
			return err
		}
	}
}

// restoreTries is how often a restore is computed, if the object keeps changing.
const restoreTries = 5

// Restored applies the kind's KindConfig.Restored to a state, as a restore and a fork do.
func (k *Kind[S]) Restored(state, was S, now time.Time) { k.restored(state, was, now) }

// PastWhole is Past with all entries of the object, for a Tx that creates another object to become: a fork, which has no timers. A
// user owns what the user forks; what a service forks stays its owner's. It returns ErrInvalid if there are more than 10,000
// entries.
func (k *Kind[S]) PastWhole(ctx context.Context, id ID, at Moment) (*Past, error) {
	r, ctx, err := k.rewind(ctx, id)
	if err != nil {
		return nil, err
	}
	defer r.close(ctx)
	if err := r.to(ctx, at); err != nil {
		return nil, err
	}
	p := &r.past
	if p.state == nil {
		return nil, ErrNotFound
	}
	for after, n := (entryKey{}), rewindPage; n == rewindPage; {
		n = 0
		pipe := r.tx.Next()
		pipe.ListAllEntries(dbsqlc.ListAllEntriesParams{
			TenantID: string(r.key.Tenant), Kind: k.name, ObjectID: string(id), AfterCollection: after.collection, AfterKey: after.key,
			PageSize: rewindPage, Reader: r.reader.column(),
		}, func(row *dbsqlc.ListAllEntriesRow) error {
			n++
			after = entryKey{row.Collection, row.Key}
			if err := r.spend(len(row.Body)); err != nil {
				return err
			}
			if _, differs := p.entries[after]; !differs {
				p.entries[after] = storedEntry{json.RawMessage(row.Body), ownerOf(row.Owned, row.OwnerID)}
			}
			return nil
		})
		if err := r.tx.Read(ctx, pipe); err != nil {
			return nil, err
		}
		if len(p.entries) > 2*maxRewritten {
			break
		}
	}
	maps.DeleteFunc(p.entries, func(_ entryKey, e storedEntry) bool { return e.body == nil })
	if len(p.entries) > maxRewritten {
		return nil, fmt.Errorf("%w: the object has more than %d entries, too many for one change", ErrInvalid, maxRewritten)
	}
	p.timers, p.current = nil, 0
	return p, nil
}

// restoring bases an Update on the version that the past differs from.
func (p *Past) restoring() UpdateOption {
	keys := slices.Collect(maps.Keys(p.entries))
	return func(o *updateOptions) {
		o.basedOn, o.revive = p.current, true
		o.prefetch = append(o.prefetch, keys...)
	}
}

// Become makes the object what p says: its state, the entries in which it differs, and its timers. p comes from Restore, with the
// options for the Update, or from PastWhole, for an Update that creates another object.
func (t *txn) Become(p *Past) error {
	if p.refused != nil {
		return p.refused
	}
	if t.work.kind.noRestore {
		return fmt.Errorf("%w: objects of the kind %s are never restored nor forked", ErrInvalid, t.work.kind.name)
	}
	if len(p.entries) > maxRewritten {
		return fmt.Errorf("%w: %d entries have changed since, more than the %d of one change", ErrInvalid, len(p.entries), maxRewritten)
	}
	state, newer, err := p.decode()
	if err != nil {
		return err
	}
	if newer {
		return ErrNewerSchema
	}
	var was proto.Message
	if t.Exists() {
		was = t.base.state
	}
	t.work.kind.restored(state, was, t.now)
	t.state, t.timers = state, nil
	t.beginLife()
	if t.work.kind.onTimer != nil {
		for name, due := range p.timers {
			t.timers = t.timers.with(name, due)
		}
	}
	keys := slices.SortedFunc(maps.Keys(p.entries), func(a, b entryKey) int {
		return cmp.Or(cmp.Compare(a.collection, b.collection), cmp.Compare(a.key, b.key))
	})
	// Not by Put, which searches everything that is staged.
	t.puts = make([]put, 0, len(keys))
	for _, k := range keys {
		was := p.entries[k]
		if t.Exists() || t.revived {
			old, sure := t.work.entry(k)
			if !sure {
				t.missing = append(t.missing, k)
			}
			if was.body == nil && old.value == nil {
				continue
			}
		}
		if was.body == nil {
			t.newer = t.newer || t.work.mayNotReplace(k)
			t.puts = append(t.puts, put{entryKey: k, held: held{owner: was.owner}})
			continue
		}
		value, newer, err := rowjson.Decode(t.work.kind.collections[k.collection], string(was.body))
		if err != nil {
			return err
		}
		t.newer = t.newer || newer || t.work.mayNotReplace(k)
		t.puts = append(t.puts, put{entryKey: k, held: held{value, was.owner}})
	}
	if len(t.missing) > 0 {
		panic(errMissing)
	}
	if p.current == 0 {
		t.Emit("forked:" + strconv.FormatInt(int64(p.version), 10))
		if t.owner == nil && t.caller.Service && t.caller.User == "" {
			t.owner = &p.owner
		}
		return nil
	}
	t.Emit("restored:" + strconv.FormatInt(int64(p.version), 10))
	return nil
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
