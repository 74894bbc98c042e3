package holdfast

import (
	"context"
	"errors"
	"iter"
	"maps"
	"time"

	errorv1 "holdfast.internal/clients/go/gen/holdfast/error/v1"
	watchv1 "holdfast.internal/clients/go/gen/holdfast/watch/v1"
)

// View is a watched item as it is now. It does not change: each change makes another View.
type View struct {
	// Item is the item's item_id.
	Item string
	// Things are its parts by their keys, such as messages/4. Do not change them.
	Things map[string]*watchv1.Thing
	// Absent: it is not there, or not any more, or not for this user. It stays watched.
	Absent bool
	// Version is the object's; 0 of a list.
	Version int64
	// Signal is what is said right now and not stored yet; only in the View that it made.
	Signal *watchv1.Signal
	// Ended is set in the item's last View.
	Ended *watchv1.Ended
}

// Watch follows up to 32 items and yields a View of an item after each of its changes, beginning with what is there. It connects again
// by itself and continues where it was: what changed meanwhile is one View, and nothing is missed. It ends when ctx does, when all items have ended, or with an error that
// no repetition helps against, which is yielded last with a nil View.
func (c *Client) Watch(ctx context.Context, items ...*watchv1.Item) iter.Seq2[*View, error] {
	return func(yield func(*View, error) bool) {
		w := &watch{client: c, views: map[string]*View{}, cursors: map[string]string{}, yield: yield}
		for _, i := range items {
			w.cursors[i.GetItemId()] = i.GetCursor()
		}
		refused, reauthentications := "", 0
		for failures := 0; len(w.cursors) > 0; failures++ {
			bearer, err := c.options.token(ctx, refused)
			if err == nil && refused != "" && bearer == refused {
				err = w.err
			}
			if err != nil {
				yield(nil, err)
				return
			}
			refused, w.err = "", w.stream(context.WithValue(ctx, bearerKey{}, bearer), items)
			switch p := ProblemOf(w.err); {
			case w.stopped:
				return
			case ctx.Err() != nil:
				yield(nil, context.Cause(ctx))
				return
			case p.GetRetry() == errorv1.Retry_RETRY_REAUTH && reauthentications < 2:
				refused = bearer
				reauthentications++
				continue
			case p != nil && p.GetRetry() != errorv1.Retry_RETRY_AFTER && p.GetRetry() != errorv1.Retry_RETRY_SAME:
				yield(nil, w.err)
				return
			case len(w.cursors) == 0:
				return
			}
			if w.reached {
				failures, reauthentications = 0, 0
			}
			if err := sleep(ctx, max(backoff(failures), ProblemOf(w.err).GetRetryAfter().AsDuration())); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

type watch struct {
	client  *Client
	views   map[string]*View
	cursors map[string]string // of the items that have not ended
	yield   func(*View, error) bool
	err     error // of the last stream
	reached bool  // the last stream had a message
	stopped bool  // the loop over the views is over
}

var errSilent = errors.New("holdfast: the watch was silent for too long")

// stream follows the items on one connection, until that ends.
func (w *watch) stream(ctx context.Context, all []*watchv1.Item) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dead := time.AfterFunc(w.client.options.watchTimeout, func() { cancel(errSilent) })
	defer dead.Stop()
	req := &watchv1.WatchRequest{}
	for _, i := range all {
		if cursor, ok := w.cursors[i.GetItemId()]; ok {
			req.Items = append(req.Items, &watchv1.Item{ItemId: i.GetItemId(), Cursor: cursor, Of: i.GetOf()})
		}
	}
	w.reached = false
	s, err := w.client.watch.Watch(ctx, req)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()                  // it was read, not written
	pending := map[string]map[string]*watchv1.Thing{} // the things of changes that are not complete
	for s.Receive() {
		dead.Stop() // the caller may take its time
		w.reached = true
		m := s.Msg()
		id := m.GetItemId()
		if _, ok := w.cursors[id]; ok { // otherwise it is a heartbeat
			if m.GetCursor() != "" {
				w.cursors[id] = m.GetCursor()
			}
			if view := w.take(m, pending); view != nil && !w.yield(view, nil) {
				w.stopped = true
				return nil
			}
		}
		dead.Reset(w.client.options.watchTimeout)
	}
	return s.Err()
}

// take merges a message into its item, and returns the new view, or nil in the middle of a change.
func (w *watch) take(m *watchv1.WatchResponse, pending map[string]map[string]*watchv1.Thing) *View {
	id := m.GetItemId()
	view := &View{Item: id}
	if was := w.views[id]; was != nil {
		*view = *was
	}
	view.Signal = m.GetSignal()
	if ch := m.GetChanged(); ch != nil {
		things := pending[id]
		switch {
		case ch.GetReset_():
			things = map[string]*watchv1.Thing{}
		case things == nil:
			things = maps.Clone(view.Things)
			if things == nil {
				things = map[string]*watchv1.Thing{}
			}
		}
		for _, t := range ch.GetPut() {
			things[t.GetKey()] = t
		}
		for _, key := range ch.GetRemoved() {
			delete(things, key)
		}
		if ch.GetMore() {
			pending[id] = things
			return nil
		}
		delete(pending, id)
		view.Things, view.Absent, view.Version = things, ch.GetAbsent(), ch.GetVersion()
	}
	if view.Ended = m.GetEnded(); view.Ended != nil {
		delete(w.cursors, id)
	}
	w.views[id] = view
	return view
}
