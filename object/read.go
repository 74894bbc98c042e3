package object

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
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
