package object

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/rowjson"
)

// commit runs a batch of one tenant's objects and answers its changes. What the cache knows takes the fast path, in one
// round trip; the rest, and what the fast path could not settle, takes the slow path, in two.
func (rt *Runtime) commit(batch []*work) {
	if batch[0].group() != nil {
		rt.commitGroups(batch)
		return
	}
	var fast, sure []*work
	for _, w := range batch {
		if rt.prepare(w) {
			fast = append(fast, w)
		} else {
			sure = append(sure, w)
		}
	}
	if len(fast) > 0 {
		rt.bound(fast)
		sure = append(sure, rt.commitFast(fast)...)
	}
	if len(sure) > 0 {
		rt.bound(sure)
		rt.commitSure(sure)
	}
}

// bound gives the works of one transaction their bound in bytes.
func (rt *Runtime) bound(works []*work) {
	room := rt.limits.BatchBytes
	for _, w := range works {
		w.room, w.spent = &room, 0
	}
}

// prepare reports whether an object may take the fast path: the cache has it, or it is about to be created. One that was deleted
// does not: a retry of its deletion must not pass for the first request of a new life. Nor does one whose lock could not be taken in time.
func (rt *Runtime) prepare(w *work) bool {
	w.base = rt.cache.get(w.box.key)
	if w.alone || w.base != nil && w.base.state == nil {
		return false
	}
	w.optimistic = w.base != nil || w.changes[0].opts.create
	return w.optimistic
}

// commitFast computes on what the cache has and stores it in one round trip, fenced by version. It returns the works
// that it did not settle.
func (rt *Runtime) commitFast(works []*work) (rest []*work) {
	now := rt.db.Now()
	var settled []*work
	for _, w := range works {
		if w.compute(now) {
			settled = append(settled, w)
		} else {
			rest = append(rest, w)
		}
	}
	grouped := works[0].group() != nil
	if grouped {
		settled, rest = keepWhole(settled, rest)
	}
	if len(settled) == 0 {
		return rest
	}
	ctx, cancel := context.WithTimeout(rt.life, rt.commitTimeout)
	defer cancel()
	ctx, end := rt.traced(ctx, "commit", callersOf(settled))
	defer end()
	committed := rt.metrics.commit("fast", rt.db.Now)
	defer committed()
	sortByLock(settled)
	p := rt.db.NewPipeline(scopeOf(settled))
	err := rt.store(p, settled, true)
	if err == nil {
		err = rt.db.RunAndCommit(ctx, p)
	}
	if err == nil {
		rt.finish(settled)
		return rest
	}
	// Whatever it was, the slow path finds out: it locks the objects, so a transaction of ours that lives on is over by
	// then or will meet the fence.
	for _, w := range settled {
		rt.cache.drop(w.box.key)
		if errors.Is(err, db.ErrOutcomeUnknown) {
			w.doubt()
		}
	}
	if errors.Is(err, db.ErrContention) && !grouped {
		rt.divide(settled)
		return rest
	}
	return append(rest, settled...)
}

// attempt loads and locks in a first round trip, stores in a second, and answers the changes. Where a commit's outcome is unknown it
// looks. Where this process was frozen in between it does both again. Where it returns an error, nothing is answered.
func (rt *Runtime) attempt(works []*work) error {
	err := rt.tryCommit(works)
	for range 2 {
		if errors.Is(err, db.ErrOutcomeUnknown) {
			for _, w := range works {
				if len(w.events) > 0 {
					w.doubt()
				}
			}
		} else if !errors.Is(err, db.ErrInterrupted) {
			break
		}
		err = rt.tryCommit(works)
	}
	if err == nil {
		rt.finish(works)
	}
	return err
}

// commitSure takes the slow path. A batch that fails is tried again object by object, and an object change by change, so that a
// poisoned change fails alone.
func (rt *Runtime) commitSure(works []*work) {
	err := rt.attempt(works)
	if err == nil {
		return
	}
	if errors.Is(err, errAsleep) {
		if works, err = rt.wakeSleepers(works); err == nil {
			rt.commitSure(works)
			return
		}
	}
	if errors.Is(err, db.ErrContention) && rt.life.Err() == nil && rt.divide(works) {
		return
	}
	// Trying again one by one would only keep callers waiting for a database that is away.
	if rt.life.Err() == nil && !errors.Is(err, db.ErrUnavailable) && !errors.Is(err, db.ErrOutcomeUnknown) {
		if len(works) > 1 {
			rest := works
			if errors.Is(err, db.ErrForbidden) || errors.Is(err, db.ErrFenced) {
				// Most likely a caller creates an object over a row that the caller may not see. The others need not go one by one for that.
				var fine []*work
				fine, rest = splitCreators(works)
				if len(fine) > 0 && len(rest) > 0 {
					rt.commitSure(fine)
				} else {
					rest = works
				}
			}
			for _, w := range rest {
				rt.commitSure([]*work{w})
			}
			return
		}
		if w := works[0]; len(w.changes) > 1 && !w.inDoubt && !errors.Is(err, db.ErrContention) {
			for _, c := range w.changes {
				rt.commitSure([]*work{{box: w.box, kind: w.kind, changes: []*change{c}, alone: true}})
			}
			return
		}
		err = inTheWay(works, err)
	}
	rt.fail(works, err)
}

// inTheWay translates what the database says where a row is in the way that the caller may not see: an object's, or an owned entry's.
func inTheWay(works []*work, err error) error {
	created := slices.ContainsFunc(works, func(w *work) bool { return w.base == nil })
	owned := slices.ContainsFunc(works, func(w *work) bool { return len(w.kind.owned) > 0 })
	switch {
	case !errors.Is(err, db.ErrForbidden) && !(errors.Is(err, db.ErrFenced) && (created || owned)):
		return err
	case created:
		return ErrExists
	}
	return ErrNotFound
}

// fail answers all changes with an error.
func (rt *Runtime) fail(works []*work, err error) {
	if rt.life.Err() != nil {
		err = ErrClosed
	}
	for _, w := range works {
		rt.cache.drop(w.box.key)
		for _, c := range w.changes {
			c.err = err
			if w.inDoubt {
				c.err = errors.Join(db.ErrOutcomeUnknown, err)
			}
			close(c.done)
		}
	}
}

// divide deals with a transaction that failed because others held something: its objects are tried again one by one, and one
// that fails by itself waits for the next batch, which it has to itself. It returns false where it had one already.
func (rt *Runtime) divide(works []*work) bool {
	if len(works) > 1 {
		for _, w := range works {
			rt.commitSure([]*work{w})
		}
		return true
	}
	w := works[0]
	w.contended = true
	if w.alone || w.inDoubt || w.moved {
		return false
	}
	rt.cache.drop(w.box.key)
	w.later, w.changes = slices.Concat(w.changes, w.later), nil
	return true
}

// splitCreators separates works that create an object from those that change one.
func splitCreators(works []*work) (changing, creating []*work) {
	for _, w := range works {
		if w.base == nil && len(w.events) > 0 {
			creating = append(creating, w)
		} else {
			changing = append(changing, w)
		}
	}
	return changing, creating
}

// tryCommit is one attempt of the slow path. Where it returns nil, every change has its outcome.
func (rt *Runtime) tryCommit(works []*work) error {
	ctx, cancel := context.WithTimeout(rt.life, rt.commitTimeout)
	defer cancel()
	ctx, end := rt.traced(ctx, "load and commit", callersOf(works))
	defer end()
	committed := rt.metrics.commit("sure", rt.db.Now)
	defer committed()
	sortByLock(works)
	for _, w := range works {
		w.forget()
	}
	scope := scopeOf(works)
	p := rt.db.NewTransaction(scope)
	if works[0].alone {
		p.WaitLonger()
	}
	locks := make([]int64, len(works))
	for i, w := range works {
		locks[i] = w.lock
	}
	var now time.Time
	p.LockObjects(locks, func(t time.Time) { now = t })
	load(p, scope, works, works)
	begun := rt.db.Now()
	tx, err := rt.db.Begin(ctx, p)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	if slices.ContainsFunc(works, func(w *work) bool { return w.asleep }) {
		return errAsleep
	}
	rt.metrics.lockWait.Observe(max(0, now.Sub(begun).Seconds()))
	for _, w := range works {
		w.settleDoubt()
	}
	for pending := works; len(pending) > 0; {
		var again []*work
		for _, w := range pending {
			if !w.compute(now) {
				again = append(again, w)
			}
		}
		if len(again) > 0 {
			p := tx.Next()
			load(p, scope, nil, again)
			if err := tx.Read(ctx, p); err != nil {
				return err
			}
			for _, w := range again {
				w.admitAbsent()
			}
		}
		pending = again
	}
	if works[0].group() != nil {
		refuseGroups(works)
	}
	var stored []*work
	for _, w := range works {
		if len(w.events) > 0 {
			stored = append(stored, w)
		}
	}
	if len(stored) == 0 {
		return nil
	}
	p = tx.Next()
	if err := rt.store(p, stored, false); err != nil {
		return err
	}
	return tx.Commit(ctx, p)
}

// load queues what has to be read: the objects themselves with their newest entries, the known replies, and entries
// that closures looked for.
func load(p *db.Pipeline, scope db.Scope, objects, entries []*work) {
	views := dbsqlc.ViewObjectsParams{TenantID: string(scope.Tenant)}
	replies := dbsqlc.LoadRepliesParams{TenantID: string(scope.Tenant)}
	for i, w := range objects {
		ord := int32(i)
		views.Ords = append(views.Ords, ord)
		views.Kinds = append(views.Kinds, w.kind.name)
		views.Ids = append(views.Ids, string(w.box.key.ID))
		views.Known = append(views.Known, 0)
		views.Collections = append(views.Collections, w.kind.recent)
		views.Limits = append(views.Limits, int32(w.kind.recentLoad())) //nolint:gosec // small
		for _, c := range w.changes {
			if c.opts.requestID != "" {
				replies.Ords = append(replies.Ords, ord)
				replies.RequestKeys = append(replies.RequestKeys, w.box.key.RequestKey(c.opts.requestID))
			}
		}
	}
	if len(objects) > 0 {
		views.MostBytes = AnswerBytes
		p.ViewObjects(views, func(r *dbsqlc.ViewObjectsRow) (err error) {
			w := objects[r.Ord]
			if w.asleep = r.Asleep; !w.asleep {
				w.base, err = w.kind.record(r, w.kind.recentLoad(), AnswerBytes)
			}
			return err
		})
	}
	if len(replies.Ords) > 0 {
		p.LoadReplies(replies, func(r *dbsqlc.LoadRepliesRow) error {
			w := objects[r.Ord]
			if w.known == nil {
				w.known = map[string]knownReply{}
			}
			w.known[r.RequestID] = knownReply{Version(r.Version), r.RequestHash, r.Reply}
			return nil
		})
	}
	wanted := dbsqlc.LoadEntriesParams{TenantID: string(scope.Tenant)}
	for i, w := range entries {
		for _, k := range w.wanted() {
			wanted.Ords = append(wanted.Ords, int32(i))
			wanted.Kinds = append(wanted.Kinds, w.kind.name)
			wanted.Ids = append(wanted.Ids, string(w.box.key.ID))
			wanted.Collections = append(wanted.Collections, k.collection)
			wanted.Keys = append(wanted.Keys, k.key)
			wanted.Readers = append(wanted.Readers, "") // of many changes; each is told of what its caller may see
		}
	}
	if len(wanted.Ords) > 0 {
		p.LoadEntries(wanted, func(r *dbsqlc.LoadEntriesRow) error { return entries[r.Ord].take(r) })
	}
	for _, w := range entries {
		w.loadRanges(p)
	}
}

// take notes an entry that was loaded.
func (w *work) take(r *dbsqlc.LoadEntriesRow) error {
	k := entryKey{r.Collection, r.Key}
	value, newer, err := rowjson.Decode(w.kind.collections[r.Collection], r.Body)
	if err == nil {
		w.loaded[k] = held{value, ownerOf(r.Owned, r.OwnerID)}
	}
	if newer {
		if w.newer == nil {
			w.newer = map[entryKey]bool{}
		}
		w.newer[k] = true
	}
	return err
}

// finish publishes what a committed batch left and answers its changes, in this order: a caller that reads after its
// reply, here or through a watch, sees its change.
func (rt *Runtime) finish(works []*work) {
	for _, w := range works {
		switch {
		case len(w.events) > 0:
			w.count()
			rt.cache.put(w.box.key, w.cur)
			rt.hub.publish(w.box.key, w.events)
			rt.timers.expect(w.wake)
		case w.base != nil:
			rt.cache.put(w.box.key, w.base)
		}
		for _, c := range w.changes {
			close(c.done)
		}
	}
}

func sortByLock(works []*work) {
	for _, w := range works {
		w.lock = w.box.key.Lock()
	}
	slices.SortFunc(works, func(a, b *work) int { return cmp.Compare(a.lock, b.lock) })
}

// scopeOf is the scope of a batch: one tenant, and the set of its callers.
func scopeOf(works []*work) db.Scope {
	s := db.Scope{Tenant: works[0].box.key.Tenant}
	var last identity.User
	seen := map[identity.User]struct{}{}
	for _, w := range works {
		for _, c := range w.changes {
			s.Service = s.Service || c.caller.Service
			if u := c.caller.User; u != "" && u != last {
				if _, ok := seen[u]; !ok {
					seen[u] = struct{}{}
					s.Owners = append(s.Owners, u)
				}
				last = u
			}
		}
	}
	return s
}

// store queues the one statement that stores what the changes came to, and takes the locks if they are not held.
func (rt *Runtime) store(p *db.Pipeline, works []*work, locks bool) error {
	c := &db.Changes{Tenant: works[0].box.key.Tenant}
	for _, w := range works {
		if locks {
			c.Locks = append(c.Locks, w.lock)
		}
		if err := w.store(c); err != nil {
			return err
		}
	}
	p.StoreChanges(c)
	return nil
}

// doubt notes that an attempt may have been committed: it built on the version that the work has now.
func (w *work) doubt() {
	if w.inDoubt {
		return // an earlier attempt is still not settled
	}
	w.inDoubt, w.builtOn = true, 0
	if w.base != nil {
		w.builtOn = w.base.version
	}
}

// settleDoubt compares what is stored now, under the lock, with what the attempt built on. At the same version it
// did not happen, and never will: should its transaction still be on its way, it will meet the fence.
func (w *work) settleDoubt() {
	if !w.inDoubt {
		return
	}
	var stored Version
	if w.base != nil {
		stored = w.base.version
	}
	w.inDoubt, w.moved = false, stored != w.builtOn
}

// forget clears what earlier attempts found.
func (w *work) forget() {
	w.base, w.asleep, w.known, w.newer, w.optimistic = nil, false, nil, nil, false
	w.ranges.loaded = nil
	w.loaded = map[entryKey]held{}
	for _, c := range w.changes {
		for _, k := range slices.Concat(c.opts.prefetch, c.opts.absent) {
			w.loaded[k] = held{}
		}
	}
	for _, k := range w.missing {
		w.loaded[k] = held{}
	}
	w.missing = nil
}

// wanted is the entries to load: after an unwound run those that it missed, else those named beforehand.
func (w *work) wanted() []entryKey {
	if len(w.missing) > 0 {
		return w.missing
	}
	keys := make([]entryKey, 0, len(w.loaded))
	for k := range w.loaded {
		keys = append(keys, k)
	}
	return keys
}

// admitAbsent notes that what was looked for and not found is not there.
func (w *work) admitAbsent() {
	for _, k := range w.missing {
		if _, ok := w.loaded[k]; !ok {
			w.loaded[k] = held{}
		}
	}
}
