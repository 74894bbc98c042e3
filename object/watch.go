package object

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/bounds"
	"holdfast/object/internal/hints"
)

// Change is one message of a watch: what the versions up to Version changed since the message before.
type Change[S proto.Message] struct {
	Info
	// Heartbeat: nothing happened for a while; only Version is set.
	Heartbeat bool
	// Reset: a snapshot, with the newest entries of the kind's Recent collection. Forget what came before.
	Reset bool
	// More of the same follows in the next Change: it was too much for one, see AnswerBytes. Version is the last one of which
	// nothing is missing: a watcher that is cut off continues from there, and may be told again what it was told of the next. While a
	// snapshot is not complete it is 0.
	More bool
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
	return k.WatchLife(ctx, id, time.Time{}, after, recent)
}

// WatchLife is Watch for a consumer that saw the object of that CreateTime. If the object was deleted and created again since, it
// starts with a snapshot, whatever the versions.
func (k *Kind[S]) WatchLife(ctx context.Context, id ID, life time.Time, after Version, recent int) iter.Seq2[Change[S], error] {
	return func(yield func(Change[S], error) bool) {
		w := watch{kind: k.kind, life: life, last: after, recent: recent, reset: after == 0}
		err := w.run(ctx, id, func(u *update) bool {
			c := Change[S]{Info: u.rec.info(id), Heartbeat: u.heartbeat, Reset: u.reset, More: u.more, Entries: u.entries, Signal: u.signal}
			c.Version = u.at
			c.State, _ = u.rec.state.(S)
			c.Deleted = u.rec.state == nil && !u.heartbeat && u.signal == nil
			return yield(c, nil) && !c.Deleted
		})
		if err != nil {
			yield(Change[S]{}, err)
		}
	}
}

// Await waits until the object exists and the caller may see it. It ends as Watch does. While it waits for an object that
// is not there it reads nothing.
func (k *Kind[S]) Await(ctx context.Context, id ID) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	hub := k.rt.hub
	s, err := hub.subscribe(&subscription{key: k.at(caller.Tenant, id), kind: k.kind, caller: caller, absent: true}) //nolint:contextcheck // the poller serves all watches
	if err != nil {
		return err
	}
	defer hub.unsubscribe(s)
	age := hub.newAge()
	defer age.Stop()
	for {
		if _, err := k.View(ctx, id); !errors.Is(err, ErrNotFound) {
			return err
		}
		select {
		case <-s.signal:
			s.take()
		case <-age.C:
			return ErrWatchOver
		case <-hub.closed:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// update is a Change before its state has a type.
type update struct {
	rec              *record
	at               Version // up to which nothing is missing
	within           int     // entries of the version behind it that were told already
	more             bool
	older            bool // it is a snapshot that lacks entries, for they did not fit
	heartbeat, reset bool
	entries          []EntryChange
	signal           proto.Message
}

// watch is one consumer's position.
type watch struct {
	kind   *kind
	key    key
	caller identity.Identity
	life   time.Time // of the object that last is a version of; zero: unknown
	last   Version
	within int // entries of version last + 1 that were told already
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
	if err := id.Check(); err != nil {
		return err
	}
	w.caller, w.key = caller, w.kind.at(caller.Tenant, id)
	s, err := rt.hub.subscribe(&subscription{key: w.key, kind: w.kind, caller: caller}) //nolint:contextcheck // the poller serves all watches
	if err != nil {
		return err
	}
	defer rt.hub.unsubscribe(s)
	age := rt.hub.newAge()
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
			if u != nil && u.older {
				if more, err := w.tellOlder(ctx, id, u, yield); err != nil || !more {
					return err
				}
			} else if u != nil {
				if more, err := w.tell(ctx, u, yield); err != nil || !more {
					return err
				}
			}
			if s.seen(w.last); u != nil && u.more {
				continue
			}
		}
		behind = false
		for i := range events {
			e := &events[i]
			if e.version <= w.last {
				continue
			}
			if e.version != w.last+1 || e.created || e.large {
				behind = true // another process wrote in between, or what came before is gone, or it comes in pieces
				break
			}
			w.last = e.version
			rt.metrics.lag(fromHere, rt.db.Now().Sub(e.time))
			if !yield(&update{rec: e.after, at: e.version, entries: entryChanges(e.puts, w.kind.reader(w.caller))}) {
				return nil
			}
		}
		if events = nil; behind {
			continue
		}
		for _, m := range told {
			if m.version != w.last {
				continue // it is about what was, in an earlier life perhaps
			}
			if !yield(&update{rec: &record{}, at: w.last, signal: m.message}) {
				return nil
			}
		}
		told = nil
		silence.Reset(rt.hub.heartbeat)
		select {
		case <-s.signal:
			events, told, behind = s.take()
		case <-silence.C:
			if !yield(&update{rec: &record{}, at: w.last, heartbeat: true}) {
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

func entryChanges(puts []put, r reader) []EntryChange {
	out := make([]EntryChange, 0, len(puts))
	for _, p := range puts {
		if r.may(p.owner) {
			out = append(out, EntryChange{p.collection, Entry{Key: p.key, Value: p.value}})
		}
	}
	return out
}

// catchUp reads what the watcher missed, as of one moment and as much as one message has, and moves it behind that. It is nil
// where nothing was missed.
func (w *watch) catchUp(ctx context.Context) (u *update, err error) {
	err = w.kind.rt.awake(ctx, w.key, func() (err error) {
		u, err = w.kind.rt.requestCatchUp(ctx, &catchUpRequest{
			caller: w.caller, kind: w.kind, gap: gap{w.key, w.life.UnixMicro(), w.last, w.within, w.reset, w.kind.reader(w.caller)}, recent: w.recent,
		})
		return err
	})
	if u != nil {
		w.life = u.rec.create
	}
	if u != nil && !u.older {
		w.last, w.within, w.reset = u.at, u.within, false
	}
	return u, err
}

// tell tells an update, and where it is large once there is room for it.
func (w *watch) tell(ctx context.Context, u *update, yield func(*update) bool) (more bool, err error) {
	bytes := 0
	for _, e := range u.entries {
		bytes += e.size
	}
	if bytes > bounds.Small {
		var answer Answer
		defer answer.Sent()
		if _, err := w.kind.rt.large.Hold(Answering(ctx, &answer), w.caller); err != nil {
			return false, err
		}
	}
	return yield(u), nil
}

// tellOlder tells a snapshot that is too much for one message, page by page from its oldest entry to its newest one. What is
// changed meanwhile is told in what follows it. more is false where yield has returned false.
func (w *watch) tellOlder(ctx context.Context, id ID, u *update, yield func(*update) bool) (more bool, err error) {
	k := &Kind[proto.Message]{w.kind}
	newest := u.entries[len(u.entries)-1].Key
	var after string
	err = k.rt.awake(ctx, w.key, func() error {
		var rec *record
		p := k.rt.db.NewSnapshot(callerScope(w.caller))
		queueAwake(p, w.kind, w.key.Tenant, id, &rec)
		p.FindOldest(dbsqlc.FindOldestParams{
			TenantID: string(w.key.Tenant), Kind: w.kind.name, ObjectID: string(id), Collection: w.kind.recent,
			PageSize: int32(w.recent) + 1, //nolint:gosec // a page's size
		}, func(r *dbsqlc.FindOldestRow) error {
			if r.Keys > int64(w.recent) {
				after = r.Key
			}
			return nil
		})
		return k.rt.db.RunSnapshot(ctx, p)
	})
	if err != nil {
		return false, err
	}
	var answer Answer
	defer answer.Sent()
	for first := true; ; first = false {
		answer.Sent()
		page, err := k.Entries(Answering(ctx, &answer), id, w.kind.recent, EntriesOptions{After: after, PageSize: MaxPageSize, room: w.kind.room(u.rec).Bytes})
		if err != nil {
			return false, err
		}
		piece := &update{rec: u.rec, reset: first, more: page.More}
		for _, e := range page.Entries {
			if after = e.Key; after <= newest {
				piece.entries = append(piece.entries, EntryChange{w.kind.recent, e})
			}
		}
		if piece.more = piece.more && after < newest; !piece.more {
			piece.at = u.at
			w.last, w.within, w.reset = u.at, 0, false
		}
		if !yield(piece) {
			return false, nil
		}
		if !piece.more {
			return true, nil
		}
	}
}

// hub brings changes to the watchers of this process. Safe for concurrent use.
type hub struct {
	rt             *Runtime
	heartbeat, age time.Duration
	room           *bounds.Gate
	closed         chan struct{}

	mu    sync.Mutex // guards what follows; publishing never waits under it
	subs  map[key]map[*subscription]struct{}
	lists map[kindKey]map[*listing]struct{}
	count int // of subs

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
	caller identity.Identity
	absent bool          // it waits for the object to be there
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
		rt: rt, heartbeat: c.Heartbeat, age: c.WatchAge, room: bounds.NewGate(bounds.Most{User: c.Limits.WatchesPerUser, Tenant: c.Limits.WatchesPerTenant, Server: c.Limits.Watches}),
		every: c.PollInterval, hinting: c.HintedPollInterval, look: make(chan struct{}, 1),
		closed: make(chan struct{}), subs: map[key]map[*subscription]struct{}{}, lists: map[kindKey]map[*listing]struct{}{},
	}
}

// subscribe begins at no position: the caller's own may be beyond the object's version, and would hide all that comes.
func (h *hub) subscribe(s *subscription) (*subscription, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return nil, ErrClosed
	}
	if full := h.room.Enter(s.caller); full != "" {
		return nil, h.rt.overloadedOf("streams", full)
	}
	s.signal = make(chan struct{}, 1)
	if h.subs[s.key] == nil {
		h.subs[s.key] = map[*subscription]struct{}{}
	}
	h.subs[s.key][s] = struct{}{}
	h.count++
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
	h.room.Leave(s.caller)
}

// publish brings changes that were made here to the watchers here, and a hint of them to other processes.
func (h *hub) publish(k key, events []event) {
	h.mu.Lock()
	for s := range h.subs[k] {
		s.push(events)
	}
	h.relist(k, events[len(events)-1].after)
	h.mu.Unlock()
	h.rt.hints.Changed(k, events[len(events)-1].version)
}

// Changed sends the watchers of an object to the journal, where they have not seen the version that another process
// tells of.
func (h *hub) Changed(k key, v Version) {
	h.rt.cache.outdated(k, v)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.relist(k, h.rt.cache.get(k))
	for s := range h.subs[k] {
		if s.position() < v {
			s.lag()
		}
	}
}

// Look makes the poller, if it runs, look at once.
func (h *hub) Look() {
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
	if h.rt.hints.Hearing() {
		return hints.Jitter(h.hinting)
	}
	return hints.Jitter(h.every)
}

// newAge ends a watch at its greatest age.
func (h *hub) newAge() *time.Timer {
	return time.NewTimer(h.age - rand.N(h.age/10+1)) //nolint:gosec // jitter
}

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
			hinted = h.rt.hints.Hearing()
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
			var behind *subscription // the farthest stands for all that watch the object, and who waits for it only for those who do
			for s := range subs {
				switch {
				case behind == nil, behind.absent && !s.absent:
					behind = s
				case s.absent == behind.absent && s.position() < behind.position():
					behind = s
				}
			}
			watched[k.Tenant] = append(watched[k.Tenant], behind)
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

// lookAt wakes the watchers of objects that are at a newer version than was published here, or gone, and those who wait for an
// object that is there. hinted: a hint should have told.
func (h *hub) lookAt(tenant identity.Tenant, subs []*subscription, hinted bool) {
	a := dbsqlc.ViewObjectsParams{TenantID: string(tenant)}
	fresh, owners := make([]bool, len(subs)), make([]identity.User, len(subs))
	for i, s := range subs {
		fresh[i] = s.absent
		a.Ords = append(a.Ords, int32(i))
		a.Kinds = append(a.Kinds, s.kind.name)
		a.Ids = append(a.Ids, string(s.key.ID))
		a.Known = append(a.Known, int64(s.position()))
		a.Collections = append(a.Collections, "")
		a.Limits = append(a.Limits, 0)
	}
	now := h.rt.db.Now()
	p := h.rt.db.NewPipeline(db.Scope{Tenant: tenant, Service: true})
	p.ViewObjects(a, func(r *dbsqlc.ViewObjectsRow) error {
		expired := r.ExpireTime != nil && !now.Before(*r.ExpireTime)
		owners[r.Ord] = identity.User(r.OwnerID)
		if subs[r.Ord].absent {
			fresh[r.Ord] = r.Deleted || expired
		} else {
			fresh[r.Ord] = r.Version <= a.Known[r.Ord] && !expired
		}
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
			if !s.absent || s.caller.MaySee(owners[i]) {
				s.lag()
			}
		}
	}
}
