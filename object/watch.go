package object

import (
	"context"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// Change is one message of a watch: what the versions up to Version changed since the message before.
type Change[S proto.Message] struct {
	Info
	// Heartbeat: nothing happened for a while; only Version is set.
	Heartbeat bool
	// Reset: a snapshot, with the newest entries of the kind's Recent collection. Forget what came before.
	Reset bool
	// Deleted: the object is gone; nothing follows.
	Deleted bool
	// State is shared: read it, never change it.
	State   S
	Entries []EntryChange
	// Signal is what Kind.Signal told; only Version is set beside it.
	Signal proto.Message
}

// EntryChange is an entry that was put, or deleted where Value is nil.
type EntryChange struct {
	Collection string
	Entry
}

// Watch follows an object from version after on; 0 starts with a snapshot. Versions come without gap or repeat; a
// slow consumer gets several in one Change. It holds no connection while it waits. It ends with ErrNotFound,
// OverloadedError, ErrWatchOver at its greatest age, ErrClosed when the runtime closes, ctx's error, or an error of
// package db.
func (k *Kind[S]) Watch(ctx context.Context, id ID, after Version, recent int) iter.Seq2[Change[S], error] {
	return func(yield func(Change[S], error) bool) {
		w := watch{kind: k.kind, last: after, recent: recent, reset: after == 0}
		err := w.run(ctx, id, func(u *update) bool {
			c := Change[S]{Info: u.rec.info(id), Heartbeat: u.heartbeat, Reset: u.reset, Entries: u.entries, Signal: u.signal}
			c.State, _ = u.rec.state.(S)
			c.Deleted = u.rec.state == nil && !u.heartbeat && u.signal == nil
			return yield(c, nil) && !c.Deleted
		})
		if err != nil {
			yield(Change[S]{}, err)
		}
	}
}

// update is a Change before its state has a type.
type update struct {
	rec              *record
	heartbeat, reset bool
	entries          []EntryChange
	signal           proto.Message
}

// watch is one consumer's position.
type watch struct {
	kind   *kind
	key    key
	caller identity.Identity
	last   Version
	recent int
	reset  bool // the next message must be a snapshot
}

// run yields updates until yield returns false. Subscribing comes before the first read, so nothing falls between.
func (w *watch) run(ctx context.Context, id ID, yield func(*update) bool) error {
	rt := w.kind.rt
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	if err := id.check(); err != nil {
		return err
	}
	w.caller, w.key = caller, key{caller.Tenant, w.kind.name, id}
	s, err := rt.hub.subscribe(w.key, w.kind) //nolint:contextcheck // the poller serves all watches
	if err != nil {
		return err
	}
	defer rt.hub.unsubscribe(s)
	age := time.NewTimer(rt.hub.age - rand.N(rt.hub.age/10+1)) //nolint:gosec // jitter
	defer age.Stop()
	silence := time.NewTimer(rt.hub.heartbeat)
	defer silence.Stop()

	events, told, behind := []event(nil), []signal(nil), true
	for {
		if behind {
			u, err := w.catchUp(ctx)
			if err != nil {
				return err
			}
			if u != nil && !u.reset {
				rt.metrics.lag(fromJournal, rt.db.Now().Sub(u.rec.update))
			}
			if u != nil && !yield(u) {
				return nil
			}
			s.seen(w.last)
		}
		behind = false
		for i := range events {
			e := &events[i]
			if e.version <= w.last {
				continue
			}
			if e.version != w.last+1 || e.created {
				behind = true // another process wrote in between, or what came before is gone
				break
			}
			w.last = e.version
			rt.metrics.lag(fromHere, rt.db.Now().Sub(e.time))
			if !yield(&update{rec: e.after, entries: entryChanges(e.puts)}) {
				return nil
			}
		}
		if events = nil; behind {
			continue
		}
		for _, m := range told {
			if m.version != 0 && m.version < w.last {
				continue // what was read is newer
			}
			if !yield(&update{rec: &record{version: w.last}, signal: m.message}) {
				return nil
			}
		}
		told = nil
		silence.Reset(rt.hub.heartbeat)
		select {
		case <-s.signal:
			events, told, behind = s.take()
		case <-silence.C:
			if !yield(&update{rec: &record{version: w.last}, heartbeat: true}) {
				return nil
			}
		case <-age.C:
			return ErrWatchOver
		case <-rt.hub.closed:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func entryChanges(puts []put) []EntryChange {
	out := make([]EntryChange, len(puts))
	for i, p := range puts {
		out[i] = EntryChange{p.collection, Entry{p.key, p.value}}
	}
	return out
}

// catchUp reads what the watcher missed, as of one moment, and moves it to that moment's version. It is nil where nothing
// was missed.
func (w *watch) catchUp(ctx context.Context) (*update, error) {
	u, err := w.kind.rt.catchUp(ctx, &catchUp{
		caller: w.caller, kind: w.kind, missed: missed{w.key, w.last, w.reset}, recent: w.recent,
	})
	if u != nil {
		w.last, w.reset = u.rec.version, false
	}
	return u, err
}

// hub brings changes to the watchers of this process. Safe for concurrent use.
type hub struct {
	rt             *Runtime
	heartbeat, age time.Duration
	limit          int
	perTenant      int
	closed         chan struct{}

	mu    sync.Mutex // guards what follows; publishing never waits under it
	subs  map[key]map[*subscription]struct{}
	count int
	// tenants is how many of them each tenant has.
	tenants map[identity.Tenant]int

	done bool
	poll bool // the poller runs

	look chan struct{} // capacity 1: poll now
	// every is how often to poll where nobody tells of other processes' changes, hinted how often where somebody does.
	every, hinting time.Duration
}

// subscription is one watcher's buffer. Overflow empties it: the watcher then reads the journal, which coalesces.
type subscription struct {
	key    key
	kind   *kind
	signal chan struct{} // capacity 1

	mu     sync.Mutex // guards what follows
	events []event
	behind bool
	last   Version  // newest version that was published or read
	told   []signal // newer than events
}

const subscriptionBuffer = 64

func newHub(rt *Runtime, c Config) *hub {
	return &hub{
		rt: rt, heartbeat: c.Heartbeat, age: c.WatchAge, limit: c.Limits.Watches, perTenant: c.Limits.WatchesPerTenant, tenants: map[identity.Tenant]int{},
		every: c.PollInterval, hinting: c.HintedPollInterval, look: make(chan struct{}, 1),
		closed: make(chan struct{}), subs: map[key]map[*subscription]struct{}{},
	}
}

// subscribe begins at no position: the caller's own may be beyond the object's version, and would hide all that comes.
func (h *hub) subscribe(k key, kind *kind) (*subscription, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return nil, ErrClosed
	}
	if h.count >= h.limit || h.tenants[k.tenant] >= h.perTenant {
		return nil, h.rt.overloaded("streams", time.Second)
	}
	s := &subscription{key: k, kind: kind, signal: make(chan struct{}, 1)}
	if h.subs[k] == nil {
		h.subs[k] = map[*subscription]struct{}{}
	}
	h.subs[k][s] = struct{}{}
	h.count++
	h.tenants[k.tenant]++
	if !h.poll {
		h.poll = true
		select {
		case <-h.look: // nobody watched then
		default:
		}
		h.rt.workers.Add(1)
		go h.run()
	}
	return s, nil
}

func (h *hub) unsubscribe(s *subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs[s.key], s)
	if len(h.subs[s.key]) == 0 {
		delete(h.subs, s.key)
	}
	h.count--
	if h.tenants[s.key.tenant]--; h.tenants[s.key.tenant] == 0 {
		delete(h.tenants, s.key.tenant)
	}
}

// publish brings changes that were made here to the watchers here, and a hint of them to other processes.
func (h *hub) publish(k key, events []event) {
	h.mu.Lock()
	for s := range h.subs[k] {
		s.push(events)
	}
	h.mu.Unlock()
	h.rt.fanout.changed(k, events[len(events)-1].version)
}

// hinted sends the watchers of an object to the journal, where they have not seen the version that another process
// tells of.
func (h *hub) hinted(k key, v Version) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs[k] {
		if s.position() < v {
			s.lag()
		}
	}
}

// lookNow makes the poller, if it runs, look at once.
func (h *hub) lookNow() {
	select {
	case h.look <- struct{}{}:
	default:
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.done {
		h.done = true
		close(h.closed)
	}
}

func (s *subscription) push(events []event) {
	s.mu.Lock()
	if !s.behind && len(s.events)+len(events) <= subscriptionBuffer {
		s.events = append(s.events, events...)
	} else {
		s.events, s.behind = nil, true
	}
	s.last = max(s.last, events[len(events)-1].version)
	s.told = nil // the change is newer
	s.mu.Unlock()
	s.wake()
}

// lag makes the watcher read the journal, which is newer than what it was told.
func (s *subscription) lag() {
	s.mu.Lock()
	s.events, s.told, s.behind = nil, nil, true
	s.mu.Unlock()
	s.wake()
}

func (s *subscription) wake() {
	select {
	case s.signal <- struct{}{}:
	default:
	}
}

func (s *subscription) take() (events []event, told []signal, behind bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	events, told, behind = s.events, s.told, s.behind
	s.events, s.told, s.behind = nil, nil, false
	return events, told, behind
}

func (s *subscription) seen(v Version) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last, v)
}

func (s *subscription) position() Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// interval is how long the poller waits. It is the only way to hear of other processes' changes where there are no hints,
// and finds the ones that were lost where there are.
func (h *hub) interval() time.Duration {
	if h.rt.fanout.hearing() {
		return jitter(h.hinting)
	}
	return jitter(h.every)
}

// jitter is d give or take a tenth.
func jitter(d time.Duration) time.Duration { return d*9/10 + rand.N(d/5+1) } //nolint:gosec // no secret

// run polls for changes of other processes while anybody watches, one statement per tenant and 256 objects.
func (h *hub) run() {
	defer h.rt.workers.Done()
	timer := time.NewTimer(h.interval())
	defer timer.Stop()
	for {
		hinted := false
		select {
		case <-h.closed:
			return
		case <-timer.C:
			hinted = h.rt.fanout.hearing()
		case <-h.look:
		}
		h.mu.Lock()
		if h.count == 0 {
			h.poll = false
			h.mu.Unlock()
			return
		}
		watched := map[identity.Tenant][]*subscription{}
		for k, subs := range h.subs {
			var behind *subscription // the farthest stands for all that watch the object
			for s := range subs {
				if behind == nil || s.position() < behind.position() {
					behind = s
				}
			}
			watched[k.tenant] = append(watched[k.tenant], behind)
		}
		h.mu.Unlock()
		for tenant, subs := range watched {
			for len(subs) > 0 {
				n := min(len(subs), maxBatch)
				h.lookAt(tenant, subs[:n], hinted)
				subs = subs[n:]
			}
		}
		timer.Reset(h.interval())
	}
}

// lookAt wakes the watchers of objects that are at a newer version than was published here, or gone. hinted: a hint should
// have told.
func (h *hub) lookAt(tenant identity.Tenant, subs []*subscription, hinted bool) {
	a := dbsqlc.ViewObjectsParams{TenantID: string(tenant)}
	for i, s := range subs {
		a.Ords = append(a.Ords, int32(i))
		a.Kinds = append(a.Kinds, s.kind.name)
		a.Ids = append(a.Ids, string(s.key.id))
		a.Known = append(a.Known, int64(s.position()))
		a.Collections = append(a.Collections, "")
		a.Limits = append(a.Limits, 0)
	}
	fresh := make([]bool, len(subs))
	now := h.rt.db.Now()
	p := h.rt.db.NewPipeline(db.Scope{Tenant: tenant, Service: true})
	p.ViewObjects(a, func(r *dbsqlc.ViewObjectsRow) error {
		expired := r.ExpireTime != nil && !now.Before(*r.ExpireTime)
		fresh[r.Ord] = r.Version <= a.Known[r.Ord] && !expired
		return nil
	})
	ctx, cancel := context.WithTimeout(h.rt.life, h.rt.commitTimeout)
	defer cancel()
	if err := h.rt.db.Run(ctx, p); err != nil {
		h.rt.log.Warn("looking for other processes' changes failed; watchers lag until it succeeds", "error", err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, s := range subs {
		if fresh[i] {
			continue
		}
		if hinted {
			h.rt.metrics.hintsMissed.Inc()
		}
		for s := range h.subs[s.key] {
			s.lag()
		}
	}
}
