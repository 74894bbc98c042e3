package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
)

// Watchers follow conversations, one stream each, and measure how long a message takes from the time that it was due
// to be sent until its watcher has it.
type Watchers struct {
	target  *Target
	others  []*Target // where a stream that ended goes on, target among them; empty: nowhere
	token   string
	meter   atomic.Pointer[Meter]
	began   time.Time
	from    atomic.Int64 // messages due from then on are measured: nanoseconds since began
	clients []*http.Client
	streams []*stream
	life    context.Context //nolint:containedctx // the streams' own: Close ends it
	cancel  context.CancelFunc
	done    sync.WaitGroup
	again   atomic.Int64 // streams that were opened again
}

// stream is one watcher.
type stream struct {
	conversation string
	ready        chan struct{} // closed when the snapshot has come
	begun        func()        // closes it
	seq          atomic.Int64  // the last seq seen
	cursor       string        // the last one
	mu           sync.Mutex    // guards failed
	failed       error
}

// Watch opens a stream for each of the sessions' conversations, spread over so many HTTP/2 connections, and waits until
// each has had its snapshot.
func Watch(ctx context.Context, t *Target, token string, sessions []*Session, connections int, began time.Time) (*Watchers, error) {
	w := &Watchers{target: t, token: token, began: began}
	w.life, w.cancel = context.WithCancel(ctx)
	w.MeasureFrom(began.Add(math.MaxInt64))
	if err := w.Add(ctx, sessions, connections); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// WatchAll is Watch at several servers, for a time in which they, or their database, may end: where a stream ends it goes on at the
// next server, from its last cursor on.
func WatchAll(ctx context.Context, targets []*Target, token string, sessions []*Session, began time.Time) (*Watchers, error) {
	w := &Watchers{target: targets[0], others: targets, token: token, began: began}
	w.life, w.cancel = context.WithCancel(ctx)
	w.MeasureFrom(began.Add(math.MaxInt64))
	if err := w.Add(ctx, sessions, len(targets)); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Again is how many streams were opened again.
func (w *Watchers) Again() int64 { return w.again.Load() }

// Add opens streams for more sessions, over so many more connections, as Watch does.
func (w *Watchers) Add(ctx context.Context, sessions []*Session, connections int) error {
	services := make([]watchv1connect.WatchServiceClient, connections)
	for i := range services {
		client := newHTTP2Client()
		w.clients = append(w.clients, client)
		t := w.target
		if len(w.others) > 0 {
			t = w.others[i]
		}
		services[i] = watchv1connect.NewWatchServiceClient(client, t.URL.String())
	}
	first := len(w.streams)
	for i, session := range sessions {
		s := &stream{conversation: session.Conversation, ready: make(chan struct{})}
		s.begun = sync.OnceFunc(func() { close(s.ready) })
		w.streams = append(w.streams, s)
		w.done.Go(func() {
			for at := i; ; at++ {
				err := w.follow(w.life, services[at%connections], w.token, s)
				if w.life.Err() != nil {
					return
				}
				if len(w.others) == 0 || s.cursor == "" || errors.Is(err, errOutOfOrder) {
					s.fail(err)
					return
				}
				w.again.Add(1)
				wait(w.life, time.Now().Add(pauseBeforeStream))
			}
		})
	}
	for _, s := range w.streams[first:] {
		select {
		case <-s.ready:
		case <-ctx.Done():
		}
		if err := errors.Join(s.err(), ctx.Err()); err != nil {
			return err
		}
	}
	return nil
}

// pauseBeforeStream keeps a watcher from spinning while no server answers.
const pauseBeforeStream = 100 * time.Millisecond

// errOutOfOrder: a watcher was not told of a message, or twice, or that it had to begin again.
var errOutOfOrder = errors.New("out of order")

// follow reads one stream to its end.
func (w *Watchers) follow(ctx context.Context, service watchv1connect.WatchServiceClient, token string, s *stream) error {
	defer s.begun()
	ctx, call := connect.NewClientContext(ctx)
	call.RequestHeader().Set("Authorization", "Bearer "+token)
	// The snapshot's one message says which seq comes next.
	stream, err := service.Watch(ctx, &watchv1.WatchRequest{Items: []*watchv1.Item{{ItemId: "c", Cursor: s.cursor, Of: &watchv1.Item_Conversation{
		Conversation: &watchv1.ConversationItem{ConversationId: s.conversation, MessageLimit: 1},
	}}}})
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // its error is that of the stream
	for stream.Receive() {
		change := stream.Msg().GetChanged()
		now := time.Since(w.began)
		if change.GetAbsent() || change.GetReset_() && s.cursor != "" {
			return fmt.Errorf("watching %s: %w: a snapshot after the cursor %s", s.conversation, errOutOfOrder, s.cursor)
		}
		for _, thing := range change.GetPut() {
			m := thing.GetMessage()
			if m == nil {
				continue
			}
			if last := s.seq.Load(); !change.GetReset_() && int64(m.GetSeq()) != last+1 {
				return fmt.Errorf("watching %s: %w: seq %d follows seq %d", s.conversation, errOutOfOrder, m.GetSeq(), last)
			}
			stamp, ok := ParseStamp(m.GetText())
			if ok && !change.GetReset_() && int64(stamp.Sent) >= w.from.Load() {
				w.meter.Load().Observe(now - stamp.Sent)
			}
			s.seq.Store(int64(m.GetSeq())) // Drain waits for it, so it comes last
		}
		s.cursor = cmp.Or(stream.Msg().GetCursor(), s.cursor)
		if change.GetReset_() {
			s.begun()
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return errors.New("the stream ended")
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
}

func (s *stream) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// MeasureFrom says that messages due from now on are measured, and forgets what was measured before.
func (w *Watchers) MeasureFrom(now time.Time) {
	w.meter.Store(NewMeter())
	w.from.Store(int64(now.Sub(w.began)))
}

// Drain waits until every watcher has the last message that its session had acknowledged, or fails after a while, or
// where a stream missed a message, had one twice, or ended.
func (w *Watchers) Drain(ctx context.Context, sessions []*Session, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for i, s := range w.streams {
		want := sessions[i].Ledger.Last()
		for s.seq.Load() < want && s.err() == nil && ctx.Err() == nil {
			wait(ctx, time.Now().Add(time.Millisecond))
		}
		if err := s.err(); err != nil {
			return err
		}
		if have := s.seq.Load(); have < want {
			return fmt.Errorf("the watcher of %s saw seq %d, %d was acknowledged", s.conversation, have, want)
		}
	}
	return nil
}

// Delivered is the meter of the deliveries, over that measured time.
func (w *Watchers) Delivered(measured time.Duration) *Meter {
	m := w.meter.Load()
	m.measuredFor(measured)
	return m
}

// Close ends the streams and waits for them.
func (w *Watchers) Close() {
	w.cancel()
	w.done.Wait()
	for _, c := range w.clients {
		c.CloseIdleConnections()
	}
}
