package object

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/bounds"
	"holdfast/object/internal/rowjson"
)

// readLane is one tenant's queue of views. Views that wait together share one round trip; none joins a round trip
// that was sent before it came, so each sees all that was committed before it was asked.
type readLane struct {
	waiting  []*view
	inFlight int
}

type view struct {
	ctx    context.Context //nolint:containedctx // of the caller, for the trace; a round trip serves many
	caller identity.Identity
	kind   *kind
	key    key
	recent int
	done   chan struct{}

	known *record // what the cache had, if it suffices
	rec   *record
	err   error
}

// readsInFlight is how many round trips of one tenant's views may be on their way.
const readsInFlight = 2

func (rt *Runtime) view(ctx context.Context, k *kind, id ID, recent int) (*record, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	if err := id.Check(); err != nil {
		return nil, err
	}
	if caller.User != "" {
		if full := rt.viewing.Enter(caller); full != "" {
			return nil, rt.overloaded(full)
		}
		defer rt.viewing.Leave(caller)
	}
	at := k.at(caller.Tenant, id)
	var rec *record
	err = rt.awake(ctx, at, func() error {
		v := &view{ctx: ctx, caller: caller, kind: k, key: at, recent: recent, done: make(chan struct{})}
		if err := rt.queueView(v); err != nil { //nolint:contextcheck // a round trip serves many views
			return err
		}
		select {
		case <-v.done:
			rec = v.rec
			return v.err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if err != nil {
		return nil, err
	}
	return rec, nil
}

func (rt *Runtime) queueView(v *view) error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.closed {
		return ErrClosed
	}
	l := rt.reads[v.key.Tenant]
	switch {
	case l != nil && len(l.waiting) >= rt.limits.PerTenant:
		return rt.overloaded("tenant")
	case rt.reading >= rt.limits.PerServer:
		return rt.overloaded("server")
	}
	if l == nil {
		l = &readLane{}
		rt.reads[v.key.Tenant] = l
	}
	l.waiting = append(l.waiting, v)
	rt.reading++
	if l.inFlight < readsInFlight {
		l.inFlight++
		rt.workers.Add(1)
		go rt.read(v.key.Tenant, l)
	}
	return nil
}

// read sends the lane's views until none waits.
func (rt *Runtime) read(tenant identity.Tenant, l *readLane) {
	defer rt.workers.Done()
	for {
		rt.mu.Lock()
		n := min(len(l.waiting), maxBatch)
		if n == 0 {
			if l.inFlight--; l.inFlight == 0 {
				delete(rt.reads, tenant)
			}
			rt.mu.Unlock()
			return
		}
		batch := l.waiting[:n:n]
		l.waiting = l.waiting[n:]
		rt.mu.Unlock()

		rt.runViews(batch)

		rt.mu.Lock()
		rt.reading -= n
		rt.mu.Unlock()
	}
}

// runViews answers a batch of one tenant's views in one round trip. What the cache has is only checked by version.
func (rt *Runtime) runViews(batch []*view) {
	scope := db.Scope{Tenant: batch[0].key.Tenant}
	a := dbsqlc.ViewObjectsParams{TenantID: string(scope.Tenant)}
	for i, v := range batch {
		var known Version
		if rec := rt.cache.get(v.key); rec != nil {
			if _, enough := rec.recent.last(v.recent); enough {
				v.known, known = rec, rec.version
			}
		}
		limit := 0
		if v.recent > 0 {
			limit = max(v.recent, v.kind.recentLoad())
		}
		a.Ords = append(a.Ords, int32(i))
		a.Kinds = append(a.Kinds, v.kind.name)
		a.Ids = append(a.Ids, string(v.key.ID))
		a.Known = append(a.Known, int64(known))
		a.Collections = append(a.Collections, v.kind.recent)
		a.Limits = append(a.Limits, int32(limit))
		scope.Service = scope.Service || v.caller.Service
		if u := v.caller.User; u != "" && !slices.Contains(scope.Owners, u) {
			scope.Owners = append(scope.Owners, u)
		}
	}
	// Many together read little of each; who wants more than that is read again, in company of a few.
	most := min(max(AnswerBytes*fewViews/len(batch), leastViewed), AnswerBytes)
	a.MostBytes = int64(most)
	ctx, cancel := context.WithTimeout(rt.life, rt.commitTimeout)
	defer cancel()
	ctx, end := rt.traced(ctx, "read", func(yield func(context.Context) bool) {
		for _, v := range batch {
			if !yield(v.ctx) {
				return
			}
		}
	})
	defer end()
	var again []*view
	p := rt.db.NewPipeline(scope)
	p.ViewObjects(a, func(r *dbsqlc.ViewObjectsRow) (err error) {
		v := batch[r.Ord]
		if v.known != nil && v.known.version == Version(r.Version) {
			if v.rec = v.known; !v.known.create.Equal(r.CreateTime) {
				// The cache has an earlier life of the object, which was swept, and this one has come just as far.
				rt.cache.drop(v.key)
				v.known, v.rec = nil, nil
				again = append(again, v)
			}
			return nil
		}
		// A row that cannot be read fails its own view only.
		if v.rec, v.err = v.kind.record(r, int(a.Limits[r.Ord]), most); v.err == nil {
			rt.cache.put(v.key, v.rec)
		}
		if v.err == nil && most < AnswerBytes && len(r.Keys) < v.recent && textBytes(r.Bodies) > most {
			v.known, v.rec = nil, nil
			again = append(again, v)
		}
		return nil
	})
	err := rt.db.Run(ctx, p)
	now := rt.db.Now()
	for _, v := range batch {
		switch {
		case err == nil && slices.Contains(again, v):
			continue
		case v.err != nil && !errors.Is(v.err, errAsleep):
		case err != nil && rt.life.Err() != nil:
			v.err = ErrClosed
		case err != nil:
			v.err = err
		case v.rec == nil:
			rt.cache.drop(v.key)
			v.err = ErrNotFound
		case !v.rec.live(now) || !v.caller.MaySee(v.rec.owner):
			v.err = ErrNotFound // also where it sleeps: it wakes for nobody who may not see it
		}
		close(v.done)
	}
	for err == nil && len(again) > 0 {
		n := min(len(again), fewViews)
		rt.runViews(again[:n:n])
		again = again[n:]
	}
}

const (
	// fewViews is how many views may each read as much as an answer has in one round trip, and leastViewed what each reads at
	// least of entries when they are many.
	fewViews    = 8
	leastViewed = 64 << 10
)

func textBytes(texts []string) (n int) {
	for _, t := range texts {
		n += len(t)
	}
	return n
}

// recentLoad is how many of the newest entries come along when an object is loaded.
func (k *kind) recentLoad() int {
	if k.recent == "" {
		return 0
	}
	return k.recentKeep
}

// record decodes a row that was read with up to limit entries of some most bytes. It returns errAsleep, and the record without
// entries, where there were none to be read because the object sleeps.
func (k *kind) record(r *dbsqlc.ViewObjectsRow, limit, most int) (*record, error) {
	rec := &record{
		owner: identity.User(r.OwnerID), version: Version(r.Version), schema: r.SchemaVersion,
		create: r.CreateTime, update: r.UpdateTime, activity: r.ActivityTime,
	}
	if r.ExpireTime != nil {
		rec.expire = *r.ExpireTime
	}
	if r.Deleted {
		return rec, nil
	}
	var err error
	if rec.state, rec.newer, err = k.decodeState(r.State, r.SchemaVersion); err != nil {
		return nil, err
	}
	if r.SchemaVersion < k.schemaVersion {
		rec.raw = r.State
	}
	if rec.timers, err = decodeTimers(r.Timers); err != nil {
		return nil, err
	}
	rec.stateSize = proto.Size(rec.state)
	if limit > 0 {
		if r.Asleep {
			return rec, errAsleep
		}
		if rec.recent, err = k.decodeRecent(r.Keys, r.Bodies, limit, most); err != nil {
			return nil, err
		}
	}
	return rec, nil
}

// ListOptions choose a page of objects.
type ListOptions struct {
	// PageSize: 1 to 200; 0: 50. A page has fewer where more would not fit in one answer; see AnswerBytes.
	PageSize int
	// PageToken is the last page's Next; empty: the first page.
	PageToken string
	// Terms that the objects must all have; see KindConfig.
	Terms []string
	// Around is how many bytes an answer may have for each object beside what is stored of it.
	Around int
	// Since leaves out of a List objects that have not changed since then; zero: none.
	Since time.Time
	// AnyTerm, if set, lists the objects that have any of these terms instead.
	AnyTerm []string
	// Order, if set, lists the objects that have this term of KindConfig.Orders instead, latest first by the time of the term. One that
	// moves meanwhile may be missed.
	Order string
}

// Page sizes of every list.
const (
	DefaultPageSize = 50
	MaxPageSize     = 200
)

// Page is a page of a list.
type Page[S proto.Message] struct {
	Items []Snapshot[S]
	Next  string // empty on the last page
}

type listCursor struct {
	Time  time.Time `json:"t"`
	ID    string    `json:"i"`
	Round round     `json:"r,omitzero"`
}

// round is one walk of a list from its front. An object that is changed while one pages moves to the front, behind the reader, so a list of
// several pages goes on with another round: through what has moved since the last one began. An object that moves moves again after
// activityStep at the earliest. So once two rounds together took less, none was missed by both.
type round struct {
	// Newest is the newest activity when the round began, and Began is when that was.
	Newest time.Time `json:"n"`
	Began  time.Time `json:"b"`
	// Until is the oldest activity that the round goes to, and Before is when the round before it began; zero for the first round.
	Until  time.Time `json:"u,omitzero"`
	Before time.Time `json:"p,omitzero"`
}

// roundSlack is how far a round goes beyond the newest activity of the one before, for changes that were being committed then.
const roundSlack = 5 * time.Second

// begin is the cursor with a round that begins with rows, unless one is under way.
func (c listCursor) begin(rows []dbsqlc.ListObjectsRow, now time.Time) listCursor {
	if c.Round.Began.IsZero() && len(rows) > 0 {
		c.Round.Newest, c.Round.Began = rows[0].ActivityTime, now
	}
	return c
}

// within are the rows that the round goes to.
func (c listCursor) within(rows []dbsqlc.ListObjectsRow) []dbsqlc.ListObjectsRow {
	if i := slices.IndexFunc(rows, func(r dbsqlc.ListObjectsRow) bool { return r.ActivityTime.Before(c.Round.Until) }); i >= 0 {
		return rows[:i]
	}
	return rows
}

// behind is the cursor behind a row.
func (c listCursor) behind(r *dbsqlc.ListObjectsRow) listCursor {
	c.Time, c.ID = r.ActivityTime, r.ObjectID
	return c
}

// nextRound is the token of the round behind the one that has ended; empty: there is none.
func (k *Kind[S]) nextRound(ctx context.Context, caller identity.Identity, o ListOptions, ended listCursor) (string, error) {
	r := ended.Round
	if o.PageToken == "" || o.Order != "" || r.Began.IsZero() || !r.Before.IsZero() && k.Now().Sub(r.Before) < activityStep {
		return "", nil
	}
	newest, err := k.listRows(ctx, caller, o, listCursor{Time: farFuture}, 0)
	if err != nil || len(newest) == 0 || !newest[0].ActivityTime.After(r.Newest) {
		return "", err
	}
	return writeToken(listCursor{Time: farFuture, Round: round{Until: r.Newest.Add(-roundSlack), Before: r.Began}})
}

// List pages through the objects that the caller may see, newest activity first. Activity moves in steps of a minute.
// An object that is changed meanwhile moves to the front: it comes again, or for the first time, behind the last of the others; see round.
// It returns ErrInvalid for a bad token.
func (k *Kind[S]) List(ctx context.Context, o ListOptions) (Page[S], error) {
	caller, from, err := k.listFrom(ctx, o)
	if err != nil {
		return Page[S]{}, err
	}
	size := pageSize(o.PageSize)
	rows, err := k.listRows(ctx, caller, o, from, size)
	if err != nil {
		return Page[S]{}, err
	}
	from = from.begin(rows, k.Now())
	rows = from.within(rows)
	if !o.Since.IsZero() {
		// Activity lags behind by a step at most, and the rows are in its order: behind the first that is too old there is no more.
		if i := slices.IndexFunc(rows, func(r dbsqlc.ListObjectsRow) bool { return r.ActivityTime.Before(o.Since.Add(-activityStep)) }); i >= 0 {
			rows = rows[:i]
		}
	}
	page, err := heldPage(ctx, k, caller, rows, from, size, o.Around)
	if err == nil && page.Next == "" {
		page.Next, err = k.nextRound(ctx, caller, o, from)
	}
	page.Items = slices.DeleteFunc(page.Items, func(s Snapshot[S]) bool { return s.UpdateTime.Before(o.Since) })
	return page, err
}

// matchReads is how often ListMatching reads for one page. Each time it reads up to MaxPageSize objects.
const matchReads = 10

// ListMatching is List for the objects whose states match. It looks at so many objects for a page that a page may have fewer than
// its size, even none, and a Next all the same.
func (k *Kind[S]) ListMatching(ctx context.Context, o ListOptions, match func(S) bool) (page Page[S], _ error) {
	caller, from, err := k.listFrom(ctx, o)
	if err != nil {
		return Page[S]{}, err
	}
	var room Room
	for range matchReads {
		rows, err := k.listRows(ctx, caller, o, from, MaxPageSize)
		if err != nil {
			return Page[S]{}, err
		}
		from = from.begin(rows, k.Now())
		if rows = from.within(rows); len(rows) == 0 {
			page.Next, err = k.nextRound(ctx, caller, o, from)
			return page, err
		}
		read := 0
		for _, r := range rows {
			item, bytes, err := listed(k, caller.Tenant, &r)
			if err != nil {
				return Page[S]{}, err
			}
			read += bytes
			if match(item.State) {
				if len(page.Items) == int(pageSize(o.PageSize)) || !room.Fits(bytes+o.Around) {
					page.Next, err = writeToken(from)
					return page, err
				}
				page.Items = append(page.Items, item)
			}
			from = from.behind(&r)
		}
		if read > bounds.Small {
			done, err := k.rt.large.Hold(ctx, caller)
			if err != nil {
				return Page[S]{}, err
			}
			done()
		}
	}
	page.Next, err = writeToken(from)
	return page, err
}

// listFrom is whose list it is, and where it goes on.
func (k *Kind[S]) listFrom(ctx context.Context, o ListOptions) (caller identity.Identity, from listCursor, err error) {
	if caller, err = identity.From(ctx); err != nil || o.PageToken == "" {
		return caller, listCursor{Time: farFuture, ID: ""}, err
	}
	b, err := base64.RawURLEncoding.DecodeString(o.PageToken)
	if err == nil {
		err = json.Unmarshal(b, &from)
	}
	if err != nil || from.Time.IsZero() || ID(from.ID).Check() != nil && (from.ID != "" || from.Round.Until.IsZero()) {
		return caller, from, fmt.Errorf("%w: page token", ErrInvalid)
	}
	return caller, from, nil
}

// listRows reads the rows of a page, and one more if there is.
func (k *Kind[S]) listRows(ctx context.Context, caller identity.Identity, o ListOptions, from listCursor, size int32) (rows []dbsqlc.ListObjectsRow, _ error) {
	p := k.rt.db.NewPipeline(callerScope(caller))
	queueList(p, k.kind, caller.Tenant, o, from, size, func(r *dbsqlc.ListObjectsRow) error {
		rows = append(rows, *r)
		return nil
	})
	return rows, k.rt.db.Run(ctx, p)
}

// heldPage makes a page that is a whole answer, with so many bytes around each item, and holds it if it is large.
func heldPage[S proto.Message](
	ctx context.Context, k *Kind[S], caller identity.Identity, rows []dbsqlc.ListObjectsRow, from listCursor, size int32,
	around int,
) (Page[S], error) {
	var room Room
	page, err := pageOf(k, caller.Tenant, rows, from, size, around, &room)
	if err == nil && room.taken > bounds.Small {
		var done func()
		if done, err = k.rt.large.Hold(ctx, caller); err == nil {
			done()
		}
	}
	return page, err
}

// pageOf makes a page of up to size rows, as far as they fit with so many bytes around each.
func pageOf[S proto.Message](
	k *Kind[S], t identity.Tenant, rows []dbsqlc.ListObjectsRow, from listCursor, size int32, around int, room *Room,
) (page Page[S], err error) {
	for i, r := range rows {
		item, bytes, err := listed(k, t, &r)
		if err != nil {
			return Page[S]{}, err
		}
		if i == int(size) || !room.Fits(bytes+around) {
			page.Next, err = writeToken(from.behind(&rows[i-1]))
			return page, err
		}
		page.Items = append(page.Items, item)
	}
	return page, nil
}

// queueList queues a page of a list, and one row more.
func queueList(
	p *db.Pipeline, k *kind, t identity.Tenant, o ListOptions, from listCursor, size int32, each func(*dbsqlc.ListObjectsRow) error,
) {
	stored := func(terms []string) []string {
		out := make([]string, len(terms))
		for i, term := range terms {
			out[i] = storedTerm(t, k.name, term)
		}
		return out
	}
	terms := stored(o.Terms)
	if o.Order != "" {
		terms, o.AnyTerm = stored([]string{o.Order}), nil
	}
	switch {
	case len(o.AnyTerm) > 0:
		p.ListObjectsByAnyTerm(dbsqlc.ListObjectsByAnyTermParams{
			TenantID: string(t), Kind: k.name, Terms: stored(o.AnyTerm), BeforeTime: from.Time, BeforeID: from.ID, PageSize: size + 1,
			MostBytes: AnswerBytes,
		}, each)
	case len(terms) > 0:
		p.ListObjectsByTerms(dbsqlc.ListObjectsByTermsParams{
			TenantID: string(t), Kind: k.name, Term: terms[0], OtherTerms: terms[1:],
			BeforeTime: from.Time, BeforeID: from.ID, PageSize: size + 1, MostBytes: AnswerBytes,
		}, each)
	default:
		p.ListObjects(dbsqlc.ListObjectsParams{
			TenantID: string(t), Kind: k.name, BeforeTime: from.Time, BeforeID: from.ID, PageSize: size + 1,
			MostBytes: AnswerBytes,
		}, each)
	}
}

// listed returns a row of a list and the bytes that it takes in an answer. It decodes no state that the cache has.
func listed[S proto.Message](k *Kind[S], t identity.Tenant, r *dbsqlc.ListObjectsRow) (s Snapshot[S], bytes int, err error) {
	id := ID(r.ObjectID)
	rec := k.rt.cache.get(k.at(t, id))
	if rec == nil || rec.state == nil || rec.version != Version(r.Version) || !rec.create.Equal(r.CreateTime) {
		if rec, err = k.record(listedRow(r), 0, 0); err != nil {
			return Snapshot[S]{}, 0, err
		}
	}
	s = Snapshot[S]{Info: rec.info(id), State: rec.state.(S)} //nolint:forcetypeassert // decoded from the kind's prototype
	return s, itemOverhead + max(len(r.State), rec.stateSize), nil
}

// listedRow is the row as record decodes it.
func listedRow(r *dbsqlc.ListObjectsRow) *dbsqlc.ViewObjectsRow {
	return &dbsqlc.ViewObjectsRow{
		OwnerID: r.OwnerID, Version: r.Version, SchemaVersion: r.SchemaVersion, State: r.State, CreateTime: r.CreateTime,
		UpdateTime: r.UpdateTime, ActivityTime: r.ActivityTime, ExpireTime: r.ExpireTime, Timers: r.Timers,
	}
}

var farFuture = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

func pageSize(n int) int32 {
	if n <= 0 {
		return DefaultPageSize
	}
	return int32(min(n, MaxPageSize))
}

func callerScope(i identity.Identity) db.Scope {
	s := db.Scope{Tenant: i.Tenant, Service: i.Service}
	if i.User != "" {
		s.Owners = []identity.User{i.User}
	}
	return s
}

// EntriesOptions choose a page of a collection.
type EntriesOptions struct {
	// After: entries behind this key, ascending. Before: the last ones in front of this key, where set.
	After, Before string

	room int // bytes; 0: all of an answer
	// PageSize: 1 to 200; 0: 50. A page has fewer where more would not fit in one answer; see AnswerBytes.
	PageSize int
}

// EntriesPage is a page of a collection, in the order of the keys, with the object that it belongs to.
type EntriesPage struct {
	Info
	Entries []Entry
	// More entries follow in the direction asked for.
	More bool
}

// Entries pages through one of an object's collections.
func (k *Kind[S]) Entries(ctx context.Context, id ID, collection string, o EntriesOptions) (EntriesPage, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return EntriesPage{}, err
	}
	if err := id.Check(); err != nil {
		return EntriesPage{}, err
	}
	if k.collections[collection] == nil {
		return EntriesPage{}, fmt.Errorf("%w: the kind %s has no collection %q", ErrInvalid, k.name, collection)
	}
	var page EntriesPage
	var rec *record
	var room Room
	size := pageSize(o.PageSize)
	each := func(r *dbsqlc.ListEntriesAfterRow) error {
		if page.More {
			return nil
		}
		value, _, err := rowjson.Decode(k.collections[collection], r.Body)
		e := newEntry(r.Key, value, len(r.Body))
		if page.More = len(page.Entries) == int(size) || !room.Fits(e.size); !page.More {
			page.Entries = append(page.Entries, e)
		}
		return err
	}
	load := func(most int) error {
		return k.rt.awake(ctx, k.at(caller.Tenant, id), func() error {
			page.Entries, page.More, rec, room = nil, false, nil, Room{Bytes: most}
			p := k.rt.db.NewSnapshot(callerScope(caller))
			queueAwake(p, k.kind, caller.Tenant, id, &rec)
			part := Range{After: o.After, Before: o.Before, Backward: o.Before != ""}
			queuePage(p, k.at(caller.Tenant, id), collection, k.readerOf(caller, collection), part, int(size)+1, most, each)
			return k.rt.db.RunSnapshot(ctx, p)
		})
	}
	if err := load(bounds.Small); err != nil {
		return EntriesPage{}, err
	}
	if !rec.live(k.rt.db.Now()) || !caller.MaySee(rec.owner) {
		return EntriesPage{}, ErrNotFound
	}
	if page.More && len(page.Entries) < int(size) || room.taken > bounds.Small {
		page.Entries = nil
		done, err := k.rt.large.Read(ctx, caller, func() error { return load(cmp.Or(o.room, AnswerBytes)) })
		if err != nil {
			return EntriesPage{}, err
		}
		defer done()
		if !rec.live(k.rt.db.Now()) || !caller.MaySee(rec.owner) {
			return EntriesPage{}, ErrNotFound
		}
	}
	page.Info = rec.info(id)
	if o.Before != "" {
		slices.Reverse(page.Entries)
	}
	return page, nil
}

// readerOf returns who the caller is to the entries of a collection.
func (k *kind) readerOf(caller identity.Identity, collection string) reader {
	if !slices.Contains(k.owned, collection) {
		return reader{all: true}
	}
	return k.reader(caller)
}

// queuePage queues the reading of n entries from one end of a part of a collection, and of no more behind the one that passes most
// bytes. Those behind the other end may be among them.
func queuePage(
	p *db.Pipeline, at key, collection string, r reader, part Range, n, most int, each func(*dbsqlc.ListEntriesAfterRow) error,
) {
	before := dbsqlc.ListEntriesBeforeParams{
		TenantID: string(at.Tenant), Kind: at.Kind, ObjectID: string(at.ID), Collection: collection, BeforeKey: part.Before,
		PageSize: int32(n), MostBytes: int64(most), //nolint:gosec // small
	}
	after := dbsqlc.ListEntriesAfterParams{
		TenantID: before.TenantID, Kind: before.Kind, ObjectID: before.ObjectID, Collection: collection, AfterKey: part.After,
		PageSize: before.PageSize, MostBytes: before.MostBytes,
	}
	switch {
	case part.Backward && r.all:
		p.ListEntriesBefore(before, each)
	case part.Backward:
		p.ListOwnEntriesBefore(dbsqlc.ListOwnEntriesBeforeParams{
			TenantID: before.TenantID, OwnerID: r.column(), Kind: before.Kind, ObjectID: before.ObjectID, Collection: collection,
			BeforeKey: part.Before, PageSize: before.PageSize, MostBytes: before.MostBytes,
		}, each)
	case r.all:
		p.ListEntriesAfter(after, each)
	default:
		p.ListOwnEntriesAfter(dbsqlc.ListOwnEntriesAfterParams{
			TenantID: before.TenantID, OwnerID: r.column(), Kind: before.Kind, ObjectID: before.ObjectID, Collection: collection,
			AfterKey: part.After, PageSize: before.PageSize, MostBytes: before.MostBytes,
		}, each)
	}
}

// queueView1 queues the view of one object, without entries.
func queueView1(p *db.Pipeline, k *kind, t identity.Tenant, id ID, each func(*dbsqlc.ViewObjectsRow) error) {
	p.ViewObjects(dbsqlc.ViewObjectsParams{
		Ords: []int32{0}, Kinds: []string{k.name}, Ids: []string{string(id)}, Known: []int64{0}, Collections: []string{""},
		Limits: []int32{0}, TenantID: string(t),
	}, each)
}

// queueAwake queues the view of one object whose entries the pipeline reads: if it sleeps, the pipeline ends with errAsleep.
func queueAwake(p *db.Pipeline, k *kind, t identity.Tenant, id ID, rec **record) {
	queueView1(p, k, t, id, func(r *dbsqlc.ViewObjectsRow) (err error) {
		if r.Asleep {
			return errAsleep
		}
		*rec, err = k.record(r, 0, 0)
		return err
	})
}

// decodeRecent makes the newest entries out of rows that come newest first, of which up to limit were asked for, and none
// behind the one that passed most bytes.
func (k *kind) decodeRecent(keys, bodies []string, limit, most int) (recent, error) {
	bytes := 0
	for _, body := range bodies {
		bytes += len(body)
	}
	out := recent{
		known: true, whole: len(keys) < limit && bytes <= most, full: bytes > most && most >= AnswerBytes,
		entries: make([]Entry, 0, len(keys)+k.recentKeep),
	}
	for i, key := range slices.Backward(keys) {
		value, newer, err := rowjson.Decode(k.collections[k.recent], bodies[i])
		if err != nil {
			return recent{}, err
		}
		out.newer = out.newer || newer
		out.entries = append(out.entries, newEntry(key, value, len(bodies[i])))
		out.bytes += entryBytes(value)
	}
	return out, nil
}
