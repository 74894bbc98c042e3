package object

import (
	"context"
	"time"

	"holdfast/identity"
)

// listing is one watcher of a list.
type listing struct {
	caller identity.Identity
	signal chan struct{} // capacity 1
}

// kindKey names a tenant's objects of a kind.
type kindKey struct {
	tenant identity.Tenant
	kind   string
}

const (
	// A list is read again so soon after a read that found a change. A read that found none doubles the wait, up to maxListWait:
	// in a busy tenant most changes are about other objects.
	listWait    = 250 * time.Millisecond
	maxListWait = 2 * time.Second
)

// WatchList calls read at once, and again whenever objects of the kind that the caller may see may have changed. read returns whether it found a
// change. It ends with read's error, or as Watch does.
func (k *Kind[S]) WatchList(ctx context.Context, read func() (changed bool, err error)) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	hub := k.rt.hub
	l, err := hub.list(kindKey{caller.Tenant, k.name}, caller)
	if err != nil {
		return err
	}
	defer hub.unlist(kindKey{caller.Tenant, k.name}, l)
	age := hub.newAge()
	defer age.Stop()
	wait := listWait
	for {
		changed, err := read()
		if err != nil {
			return err
		}
		if wait = min(2*wait, maxListWait); changed {
			wait = listWait
		}
		pause, poll := time.NewTimer(wait), time.NewTimer(max(wait, hub.interval()))
		signal := (<-chan struct{})(nil)
		for waiting := true; waiting; {
			select {
			case <-pause.C:
				signal = l.signal // what was signalled meanwhile waits there
			case <-signal:
				waiting = false
			case <-poll.C:
				waiting = false
			case <-age.C:
				err = ErrWatchOver
			case <-hub.closed:
				err = ErrClosed
			case <-ctx.Done():
				err = ctx.Err()
			}
			waiting = waiting && err == nil
		}
		pause.Stop()
		poll.Stop()
		if err != nil {
			return err
		}
	}
}

func (h *hub) list(k kindKey, caller identity.Identity) (*listing, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return nil, ErrClosed
	}
	if full := h.room.Enter(caller); full != "" {
		return nil, h.rt.overloadedOf("streams", full)
	}
	l := &listing{caller, make(chan struct{}, 1)}
	if h.lists[k] == nil {
		h.lists[k] = map[*listing]struct{}{}
	}
	h.lists[k][l] = struct{}{}
	return l, nil
}

func (h *hub) unlist(k kindKey, l *listing) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.lists[k], l)
	if len(h.lists[k]) == 0 {
		delete(h.lists, k)
	}
	h.room.Leave(l.caller)
}

// relist wakes the lists that an object may be in. rec is the object, or nil if it is not known. The caller holds mu.
func (h *hub) relist(k key, rec *record) {
	for l := range h.lists[kindKey{k.Tenant, k.Kind}] {
		if rec != nil && !l.caller.MaySee(rec.owner) {
			continue
		}
		select {
		case l.signal <- struct{}{}:
		default:
		}
	}
}
