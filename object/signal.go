package object

import (
	"context"

	"google.golang.org/protobuf/proto"

	"holdfast/identity"
)

// Signal sends a message that is not stored to the watchers of an object: a Change with Signal and Version only. It makes no
// version and no event, and a slow watcher may miss it: a committed change drops the signals before it. m is shared and must not
// be changed afterwards. Signal returns ErrNotFound if the caller may not see the object.
//
// Watchers of this process get it at once; if the object is in the cache, Signal does no I/O. Watchers of other processes get the
// newest signal of each object, soon or never, if there is a Carrier, a Sealer and KindConfig.Signal.
func (k *Kind[S]) Signal(ctx context.Context, id ID, m proto.Message) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	snap, known := k.Cached(ctx, id)
	if !known {
		if snap, err = k.View(ctx, id); err != nil {
			return err
		}
	}
	at := key{caller.Tenant, k.name, id}
	k.rt.hub.tell(at, m)
	k.rt.fanout.signals.add(k.kind, at, snap.Version, m)
	return nil
}

// Cached returns an object from this process's cache, if it is there. Newer versions may have been committed since: use it only
// where a stale answer does no harm.
func (k *Kind[S]) Cached(ctx context.Context, id ID) (Snapshot[S], bool) {
	caller, err := identity.From(ctx)
	if err != nil {
		return Snapshot[S]{}, false
	}
	rec := k.rt.cache.get(key{caller.Tenant, k.name, id})
	if !rec.live(k.rt.db.Now()) || !caller.MaySee(rec.owner) {
		return Snapshot[S]{}, false
	}
	return Snapshot[S]{Info: rec.info(id), State: rec.state.(S)}, true //nolint:forcetypeassert // decoded from the kind's prototype
}

// subscriptionSignals is the number of signals that wait for a watcher; the oldest are dropped.
const subscriptionSignals = 8

// signal is a message that waits for a watcher.
type signal struct {
	message proto.Message
	// version is the object's version at the other process that sent the signal: a newer version drops it. 0: this process sent it,
	// and changes drop it when they come.
	version Version
}

// tell hands a signal to the watchers of this process.
func (h *hub) tell(k key, m proto.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs[k] {
		s.mu.Lock()
		s.tell(signal{message: m})
		s.mu.Unlock()
		s.wake()
	}
}

// toldElsewhere hands a signal from another process to the watchers of this one. If it has a version that they have not seen, it is
// a hint as well.
func (h *hub) toldElsewhere(k key, told signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs[k] {
		s.mu.Lock()
		if told.version > s.last {
			s.events, s.told, s.behind = nil, nil, true
		}
		if told.version >= s.last {
			s.tell(told)
		}
		s.mu.Unlock()
		s.wake()
	}
}

// kindOfWatched returns the kind of an object, or nil if it has no watcher in this process.
func (h *hub) kindOfWatched(k key) *kind {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs[k] {
		return s.kind
	}
	return nil
}

// tell appends; the caller holds mu.
func (s *subscription) tell(told signal) {
	if len(s.told) == subscriptionSignals {
		s.told = append(s.told[:0], s.told[1:]...)
	}
	s.told = append(s.told, told)
}
