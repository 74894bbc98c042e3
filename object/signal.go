package object

import (
	"context"

	"google.golang.org/protobuf/proto"

	"holdfast/identity"
)

// Signal tells the watchers of an object something that is not stored: a Change with nothing but Signal and Version. It has
// no version, is not in the journal, and a slow watcher may miss it: a committed change takes the place of the signals
// before it. m is shared and must not be changed afterwards. It returns ErrNotFound where the caller may not see the object.
//
// It reaches the watchers of this process, without waiting for anything where the process has the object at hand.
func (k *Kind[S]) Signal(ctx context.Context, id ID, m proto.Message) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	if _, known := k.Glance(ctx, id); !known {
		if _, err := k.View(ctx, id); err != nil {
			return err
		}
	}
	k.rt.hub.tell(key{caller.Tenant, k.name, id}, m)
	return nil
}

// Glance returns an object as this process last knew it, if it has it at hand. It is what some commit left, but others may
// have followed: nothing that must be right may rest on it.
func (k *Kind[S]) Glance(ctx context.Context, id ID) (Snapshot[S], bool) {
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

// subscriptionSignals is how many signals wait for a watcher; the oldest give way.
const subscriptionSignals = 8

// tell brings a signal to the watchers of this process. Whoever carries signals between processes calls it for those that
// come from others.
func (h *hub) tell(k key, m proto.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs[k] {
		s.mu.Lock()
		if len(s.told) == subscriptionSignals {
			s.told = append(s.told[:0], s.told[1:]...)
		}
		s.told = append(s.told, m)
		s.mu.Unlock()
		s.wake()
	}
}
