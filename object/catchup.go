package object

import (
	"context"
	"errors"
	"slices"
	"time"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/journal"
	"holdfast/object/internal/rowjson"
)

// catchUpLane is one tenant's queue of watchers that have to read the journal. Those that wait together share one snapshot
// in the database, and those of one object at one version its rows as well: a change of an object with a thousand
// watchers in this process is read once. None joins a snapshot that was begun before it asked.
type catchUpLane struct {
	waiting  []*catchUpRequest
	inFlight int
}

// catchUpRequest asks for the changes that one watcher missed.
type catchUpRequest struct {
	caller identity.Identity
	kind   *kind
	gap    gap
	recent int // how many of the newest entries a snapshot has
	done   chan struct{}

	update *update // nil: nothing was missed
	err    error
}

// gap is what a watcher lacks: all that follows version last of an object and the first entries of the next version, as many as
// within. reset asks for a snapshot instead.
type gap struct {
	key    key
	life   int64 // of the object that last is a version of: its CreateTime in microseconds; of the zero time: unknown
	last   Version
	within int
	reset  bool
	reader reader
}

const (
	// maxMissed is how many events a catch-up reads; a consumer that missed more gets a snapshot.
	maxMissed = 200
	// maxCatchUps is how many watchers share one snapshot: each may bring a statement of its own.
	maxCatchUps = 64
	// catchUpsInFlight is how many snapshots of one tenant's watchers may be open.
	catchUpsInFlight = 2
	// catchUpAnswers is how much is read in one snapshot, in full answers: where more watchers share it each has a smaller piece,
	// of leastCaughtUp bytes at least.
	catchUpAnswers = 4
	leastCaughtUp  = 128 << 10
)

// requestCatchUp waits for what a watcher missed, as of one moment after it asked. It refuses no request: the number of watchers is bounded.
// It returns errAsleep if the object must wake first.
func (rt *Runtime) requestCatchUp(ctx context.Context, c *catchUpRequest) (*update, error) {
	c.done = make(chan struct{})
	tenant := c.caller.Tenant
	rt.mu.Lock()
	if rt.closed {
		rt.mu.Unlock()
		return nil, ErrClosed
	}
	l := rt.catchUpLanes[tenant]
	if l == nil {
		l = &catchUpLane{}
		rt.catchUpLanes[tenant] = l
	}
	l.waiting = append(l.waiting, c)
	if l.inFlight < catchUpsInFlight {
		l.inFlight++
		rt.workers.Add(1)
		go rt.runCatchUpLane(tenant, l) //nolint:contextcheck // a snapshot serves many watchers
	}
	rt.mu.Unlock()
	select {
	case <-c.done:
		return c.update, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// runCatchUpLane answers the lane's requests until none waits.
func (rt *Runtime) runCatchUpLane(tenant identity.Tenant, l *catchUpLane) {
	defer rt.workers.Done()
	for {
		rt.mu.Lock()
		n := 0
		distinct := map[gap]struct{}{}
		for n < len(l.waiting) && len(distinct) < maxCatchUps {
			distinct[l.waiting[n].gap] = struct{}{}
			n++
		}
		if n == 0 {
			if l.inFlight--; l.inFlight == 0 {
				delete(rt.catchUpLanes, tenant)
			}
			rt.mu.Unlock()
			return
		}
		batch := l.waiting[:n:n]
		l.waiting = l.waiting[n:]
		rt.mu.Unlock()
		rt.answerCatchUps(tenant, batch)
	}
}

// catchUpRead reads what all watchers with the same gap lack.
type catchUpRead struct {
	gap

	kind   *kind
	recent int // the most entries that any of them wants of a snapshot
	rec    *record
	events []dbsqlc.ListEventsRow
	index  map[entryKey]int
	// entries are those that the events put or deleted, as they are now, in the order of their first change; ends has how many
	// there are up to the end of each event. Those behind piece are left to the next message.
	entries []EntryChange
	ends    []int
	piece   int
	most    int // bytes of one message
	err     error
}

// answerCatchUps answers a batch of one tenant's watchers from one snapshot: a first round trip for objects and journals,
// and a second for the entries that the journals name.
func (rt *Runtime) answerCatchUps(tenant identity.Tenant, batch []*catchUpRequest) {
	scope := db.Scope{Tenant: tenant}
	byGap := make(map[gap]*catchUpRead, len(batch))
	var reads []*catchUpRead
	for _, c := range batch {
		a := byGap[c.gap]
		if a == nil {
			a = &catchUpRead{gap: c.gap, kind: c.kind}
			byGap[c.gap] = a
			reads = append(reads, a)
		}
		a.recent = max(a.recent, c.recent)
		scope.Service = scope.Service || c.caller.Service
		if u := c.caller.User; u != "" && !slices.Contains(scope.Owners, u) {
			scope.Owners = append(scope.Owners, u)
		}
	}
	rt.metrics.catchUps.Add(float64(len(batch)))
	rt.metrics.catchUpReads.Add(float64(len(reads)))
	ctx, cancel := context.WithTimeout(rt.life, rt.commitTimeout)
	defer cancel()
	err := rt.readGaps(ctx, scope, reads)
	if err != nil && rt.life.Err() != nil {
		err = ErrClosed
	}
	now := rt.db.Now()
	for _, c := range batch {
		if c.err = err; err == nil {
			c.update, c.err = byGap[c.gap].answer(c, now)
		}
		close(c.done)
	}
}

func (rt *Runtime) readGaps(ctx context.Context, scope db.Scope, reads []*catchUpRead) error {
	for _, a := range reads {
		a.most = min(max(AnswerBytes*catchUpAnswers/len(reads), leastCaughtUp), AnswerBytes)
	}
	p := rt.db.NewSnapshot(scope)
	queueRecords(p, scope.Tenant, reads, func(a *catchUpRead) bool { return a.reset })
	snapshots := true
	for _, a := range reads {
		if a.reset {
			continue
		}
		snapshots = false
		p.ListEvents(dbsqlc.ListEventsParams{
			TenantID: string(scope.Tenant), Kind: a.key.Kind, ObjectID: string(a.key.ID), AfterVersion: int64(a.last),
			PageSize: maxMissed + 1,
		}, func(r *dbsqlc.ListEventsRow) error {
			a.events = append(a.events, *r)
			return nil
		})
	}
	if snapshots {
		return rt.db.RunSnapshot(ctx, p)
	}
	tx, err := rt.db.Begin(ctx, p)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	var again, told []*catchUpRead
	for _, a := range reads {
		switch {
		case a.err != nil, a.reset, a.rec == nil, a.rec.state == nil:
		case !a.sameLife(), !a.explains():
			a.reset = true
			again = append(again, a)
		default:
			if a.err = a.want(); a.err == nil {
				told = append(told, a)
			}
		}
	}
	if err := measure(ctx, tx, scope.Tenant, told); err != nil {
		return err
	}
	p = tx.Next()
	if len(again) > 0 {
		queueRecords(p, scope.Tenant, again, func(*catchUpRead) bool { return true })
	}
	wanted := dbsqlc.LoadEntriesParams{TenantID: string(scope.Tenant)}
	for i, a := range told {
		for _, e := range a.entries[:a.piece] {
			wanted.Ords = append(wanted.Ords, int32(i))
			wanted.Kinds = append(wanted.Kinds, a.key.Kind)
			wanted.Ids = append(wanted.Ids, string(a.key.ID))
			wanted.Collections = append(wanted.Collections, e.Collection)
			wanted.Keys = append(wanted.Keys, e.Key)
			wanted.Readers = append(wanted.Readers, a.reader.column())
		}
	}
	if len(wanted.Ords) > 0 {
		p.LoadEntries(wanted, func(r *dbsqlc.LoadEntriesRow) error {
			a := told[r.Ord]
			value, _, err := rowjson.Decode(a.kind.collections[r.Collection], r.Body)
			a.entries[a.index[entryKey{r.Collection, r.Key}]].Entry = newEntry(r.Key, value, len(r.Body))
			a.err = errors.Join(a.err, err) // it fails those who asked for it
			return nil
		})
	}
	if err := tx.ReadAndEnd(ctx, p); err != nil {
		return err
	}
	for _, a := range told {
		a.cut(func(i int) int { return a.entries[i].size })
	}
	return nil
}

// unmeasured is how many entries are loaded without asking for their sizes first.
const unmeasured = 8

// measure decides how many entries each read loads: as many as one message has.
func measure(ctx context.Context, tx *db.Transaction, t identity.Tenant, reads []*catchUpRead) error {
	m := dbsqlc.MeasureEntriesParams{TenantID: string(t)}
	for i, a := range reads {
		a.piece = len(a.entries)
		for n, e := range a.entries {
			m.Ords = append(m.Ords, int32(i))
			m.Numbers = append(m.Numbers, int32(n))
			m.Kinds = append(m.Kinds, a.key.Kind)
			m.Ids = append(m.Ids, string(a.key.ID))
			m.Collections = append(m.Collections, e.Collection)
			m.Keys = append(m.Keys, e.Key)
			m.Readers = append(m.Readers, a.reader.column())
		}
	}
	if len(m.Ords) <= unmeasured {
		return nil
	}
	p := tx.Next()
	p.MeasureEntries(m, func(r *dbsqlc.MeasureEntriesRow) error {
		reads[r.Ord].entries[r.N].size = int(r.Bytes)
		return nil
	})
	if err := tx.Read(ctx, p); err != nil {
		return err
	}
	for _, a := range reads {
		a.cut(func(i int) int { return len(a.entries[i].Key) + a.entries[i].size })
	}
	return nil
}

// cut lets the message end where it is full: behind the last version that fits as a whole, or within the first one.
func (a *catchUpRead) cut(size func(i int) int) {
	room := a.kind.room(a.rec)
	room.Bytes = max(a.most-AnswerBytes+room.Bytes, leastCaughtUp)
	n := 0
	for n < a.piece && room.Fits(entryChangeOverhead+size(n)) {
		n++
	}
	if n == a.piece {
		return
	}
	a.piece = n
	if whole := a.whole(); whole > 0 {
		a.piece = a.ends[whole-1]
	}
}

// whole is how many events are in the message with all of their entries.
func (a *catchUpRead) whole() int {
	n, _ := slices.BinarySearch(a.ends, a.piece+1)
	return n
}

// entryChangeOverhead is what a message has around an entry.
const entryChangeOverhead = 32

// queueRecords queues the reading of the objects, with their newest entries where that is wanted. A row that cannot be read
// fails those who asked for it.
func queueRecords(p *db.Pipeline, t identity.Tenant, reads []*catchUpRead, recent func(*catchUpRead) bool) {
	v := dbsqlc.ViewObjectsParams{TenantID: string(t)}
	for i, a := range reads {
		limit := 0
		if recent(a) {
			limit = a.recent
		}
		v.Ords = append(v.Ords, int32(i))
		v.Kinds = append(v.Kinds, a.key.Kind)
		v.Ids = append(v.Ids, string(a.key.ID))
		v.Known = append(v.Known, 0)
		v.Collections = append(v.Collections, a.kind.recent)
		v.Limits = append(v.Limits, int32(limit))
		v.MostBytes = int64(a.most)
	}
	p.ViewObjects(v, func(r *dbsqlc.ViewObjectsRow) error {
		a := reads[r.Ord]
		a.rec, a.err = a.kind.record(r, int(v.Limits[r.Ord]), a.most)
		if a.err == nil && r.Asleep && !a.reset && a.rec.version != a.last {
			a.err = errAsleep // with the events that it wants
		}
		return nil
	})
}

// sameLife reports whether the object is the one that the watcher saw, as far as that is known.
func (a *catchUpRead) sameLife() bool {
	return a.life == time.Time{}.UnixMicro() || a.life == a.rec.create.UnixMicro()
}

// explains reports whether the events are all that was missed.
func (a *catchUpRead) explains() bool {
	n := int64(a.rec.version - a.last)
	return n >= 0 && int64(len(a.events)) == n && (n == 0 || a.events[0].Version == int64(a.last)+1) &&
		// What an earlier life of the object left is gone, and no event says so. Other events of the instant in which it was
		// created make for a snapshot that was not needed, which does no harm.
		!slices.ContainsFunc(a.events, func(e dbsqlc.ListEventsRow) bool { return e.EventTime.Equal(a.rec.create) || e.Undo == cutNote })
}

// want lists the entries that the events put or deleted, of those that the reader may see.
func (a *catchUpRead) want() error {
	a.index = map[entryKey]int{}
	for i, e := range a.events {
		u, err := journal.Parse(e.Undo)
		if err != nil {
			return err
		}
		notes := slices.DeleteFunc(u.Entries, func(n journal.Entry) bool {
			return a.kind.collections[n.Collection] == nil || !a.reader.may(n.Owner) // a newer release's, or another user's
		})
		if i == 0 {
			notes = notes[min(a.within, len(notes)):]
		}
		for _, n := range notes {
			k := entryKey{n.Collection, n.Key}
			if _, ok := a.index[k]; ok {
				continue
			}
			a.index[k] = len(a.entries)
			a.entries = append(a.entries, EntryChange{Collection: n.Collection, Entry: Entry{Key: n.Key}})
		}
		a.ends = append(a.ends, len(a.entries))
	}
	return nil
}

// answer returns the update for one watcher.
func (a *catchUpRead) answer(c *catchUpRequest, now time.Time) (*update, error) {
	gone := !a.rec.live(now)
	switch {
	case a.err != nil && !errors.Is(a.err, errAsleep):
		return nil, a.err
	case a.rec == nil, !c.caller.MaySee(a.rec.owner), gone && (a.last == 0 || a.rec.state != nil):
		return nil, ErrNotFound // deleted before the watch began, or expired
	case a.err != nil:
		return nil, a.err
	case gone:
		return &update{rec: a.rec, at: a.rec.version}, nil
	case a.reset:
		u := &update{rec: a.rec, at: a.rec.version, reset: true}
		newest, _ := a.rec.recent.last(min(c.recent, len(a.rec.recent.entries)))
		fit := fitting(newest, a.kind.room(a.rec))
		u.older = len(fit) < len(newest) || len(fit) > 0 && len(fit) < c.recent && !a.rec.recent.whole
		for _, e := range fit {
			u.entries = append(u.entries, EntryChange{a.kind.recent, e})
		}
		return u, nil
	case len(a.events) == 0:
		return nil, nil
	default:
		u := &update{rec: a.rec, at: a.last, within: a.within + a.piece, entries: a.entries[:a.piece], more: true}
		if n := a.whole(); n > 0 {
			u.at, u.within, u.more = Version(a.events[n-1].Version), 0, n < len(a.events)
		}
		return u, nil
	}
}
