package object

import (
	"context"

	"google.golang.org/protobuf/proto"

	"holdfast/identity"
)

// Signal tells the watchers of an object something that is not stored: a Change with nothing but Signal and Version. It has
// no version, is not in the journal, and a slow watcher may miss it: a committed change takes the place of the signals
// before it. m is shared and must not be changed afterwards. as is the object that the signal is about, as the caller has just
// viewed it: watchers that have seen a later version, of this life or the next, are told nothing.
//
// Watchers of other processes get it where there is a Carrier, a Sealer and KindConfig.Signal: the newest of each object, soon,
// or never.
func (k *Kind[S]) Signal(ctx context.Context, as Info, m proto.Message) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	at := k.at(caller.Tenant, as.ID)
	k.rt.hub.Told(at, as.Version, m)
	if k.signal != nil {
		k.rt.hints.Signal(at, as.Version, m)
	}
	return nil
}

// Cached returns an object from this process's cache, if it is there. Newer versions may have been committed since: use it only
// where a stale answer does no harm.
func (k *Kind[S]) Cached(ctx context.Context, id ID) (Snapshot[S], bool) {
	caller, err := identity.From(ctx)
	if err != nil {
		return Snapshot[S]{}, false
	}
	rec := k.rt.cache.get(k.at(caller.Tenant, id))
	if !rec.live(k.rt.db.Now()) || !caller.MaySee(rec.owner) {
		return Snapshot[S]{}, false
	}
	return Snapshot[S]{Info: rec.info(id), State: rec.state.(S)}, true //nolint:forcetypeassert // decoded from the kind's prototype
}

// subscriptionSignals is the number of signals that wait for a watcher; the oldest are dropped.
const subscriptionSignals = 8

// signal is a message that waits for a watcher. It is for those who are at the object's version.
type signal struct {
	message proto.Message
	version Version
}

// Told brings a signal to the watchers of this process. One that is about a version that they have not seen is a hint as well.
func (h *hub) Told(k key, v Version, m proto.Message) {
	told := signal{m, v}
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

// SignalOf implements [hints.Listener].
func (h *hub) SignalOf(k key) proto.Message {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs[k] {
		return s.kind.signal
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
