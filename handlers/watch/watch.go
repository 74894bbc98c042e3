// Package watch serves WatchService: any number of items on one stream. It knows no kind of item: managers follow theirs and send
// what changes.
package watch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// Tell sends a message about an item. Its error ends the item.
type Tell func(*watchv1.WatchResponse) error

// Source follows an item of one kind from its cursor until ctx ends or the item does; the error says why.
type Source func(ctx context.Context, item *watchv1.Item, tell Tell) error

// Sources are those of a manager's items: by the name of the field of Item.of, or, for a list, "list." and that of ListItem.of.
type Sources map[string]Source

// Options are what a Manager needs.
type Options struct {
	// Explain translates an error for the caller; nil: it means nothing to the caller.
	Explain func(error) *errorv1.Problem
	// Now is the clock.
	Now func() time.Time
	// Heartbeat is how long a stream is silent at most. 0: 15 s.
	Heartbeat time.Duration
}

// Manager serves WatchService. It is safe for concurrent use.
type Manager struct {
	o       Options
	sources Sources
}

var _ watchv1connect.WatchServiceHandler = (*Manager)(nil)

// NewManager returns a Manager of all these sources.
func NewManager(o Options, sources ...Sources) *Manager {
	if o.Heartbeat == 0 {
		o.Heartbeat = 15 * time.Second
	}
	m := &Manager{o, Sources{}}
	for _, s := range sources {
		maps.Copy(m.sources, s)
	}
	return m
}

// defaultBytes is how large a message grows unless the caller says otherwise.
const defaultBytes = 256 << 10

// Watch implements WatchService.
func (m *Manager) Watch(ctx context.Context, req *watchv1.WatchRequest, stream *connect.ServerStream[watchv1.WatchResponse]) error {
	if err := stream.Send(nil); err != nil { // the head, for a client that waits for it where nothing has changed
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	most := int(req.GetMaxBytes())
	if most == 0 {
		most = defaultBytes
	}
	s := &sender{stream: stream, most: most, items: len(req.GetItems()), silence: time.NewTimer(m.o.Heartbeat), every: m.o.Heartbeat}
	defer s.silence.Stop()
	over := make(chan error, 1) // the first error that ends the stream
	var items sync.WaitGroup
	for _, item := range req.GetItems() {
		items.Go(func() {
			if err := m.watch(ctx, item, s); err != nil {
				select {
				case over <- err:
				default:
				}
			}
		})
	}
	all := make(chan struct{})
	go func() {
		items.Wait()
		close(all)
	}()
	// The stream must not be used after Watch has returned, so each way out waits for all items.
	end := func(err error) error {
		cancel()
		<-all
		return err
	}
	for {
		select {
		case <-s.silence.C:
			if err := s.send(&watchv1.WatchResponse{Event: &watchv1.WatchResponse_Heartbeat{
				Heartbeat: &watchv1.Heartbeat{Time: timestamppb.New(m.o.Now())},
			}}); err != nil {
				return end(err)
			}
		case err := <-over:
			return end(err)
		case <-all:
			select {
			case err := <-over:
				return err
			default:
				return nil
			}
		}
	}
}

// watch follows an item to its end. It returns an error if that is the end of the stream.
func (m *Manager) watch(ctx context.Context, item *watchv1.Item, s *sender) (err error) {
	defer func() { // nobody else recovers in this goroutine
		if p := recover(); p != nil {
			err = fmt.Errorf("watch: panic: %v\n%s", p, debug.Stack())
		}
	}()
	name, partial := kindOf(item), ""
	if list := item.GetList(); list != nil {
		// Its cursor stands for the list as a whole, so who has applied only a part of a change has none.
		name, partial = "list."+kindOf(list), start
	}
	err = m.sources[name](ctx, item, func(r *watchv1.WatchResponse) error {
		r.ItemId = item.GetItemId()
		return s.inPieces(r, partial)
	})
	p := m.o.Explain(err)
	if ctx.Err() != nil || p == nil || s.endsStream(err, p) {
		return err
	}
	return s.send(&watchv1.WatchResponse{ItemId: item.GetItemId(), Event: &watchv1.WatchResponse_Ended{Ended: &watchv1.Ended{Problem: p}}})
}

// kindOf is the name of the field that a message's "of" has.
func kindOf(m proto.Message) string {
	of := m.ProtoReflect()
	return string(of.WhichOneof(of.Descriptor().Oneofs().ByName("of")).Name())
}

// endsStream reports whether an error is not the item's alone, or will pass: the caller connects again with its cursors. Too many watches
// end the stream only if there is room for none of its items: they would end each new stream as well.
func (s *sender) endsStream(err error, p *errorv1.Problem) bool {
	if full, ok := errors.AsType[*object.OverloadedError](err); ok && full.What == "streams" {
		return int(s.refused.Add(1)) == s.items
	}
	return errors.Is(err, errSend) || p.GetRetry() == errorv1.Retry_RETRY_SAME || p.GetRetry() == errorv1.Retry_RETRY_AFTER
}

// errSend: the stream is broken.
var errSend = errors.New("watch: the message was not sent")

// sender sends the messages of all items. Safe for concurrent use.
type sender struct {
	most    int
	items   int
	refused atomic.Int32 // items for which there was no room
	every   time.Duration

	mu      sync.Mutex // guards what follows
	stream  *connect.ServerStream[watchv1.WatchResponse]
	silence *time.Timer
}

func (s *sender) send(r *watchv1.WatchResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stream.Send(r); err != nil {
		return errors.Join(errSend, err)
	}
	s.silence.Reset(s.every)
	return nil
}

// inPieces sends a message as several if it is too large. The last one has the cursor; the others have partial, or, if the client
// had to forget what it knew, the start.
func (s *sender) inPieces(r *watchv1.WatchResponse, partial string) error {
	change := r.GetChanged()
	put := change.GetPut()
	room := object.Room{Bytes: s.most}
	first := 0
	for i, thing := range put {
		if room.Fits(rpc.AnswerSize(thing)) {
			continue
		}
		if change.GetReset_() {
			partial = start
		}
		piece := &watchv1.Changed{Reset_: change.GetReset_() && first == 0, More: true, Put: put[first:i]}
		message := changed(partial, piece)
		message.ItemId = r.GetItemId()
		if err := s.send(message); err != nil {
			return err
		}
		first, room = i, object.Room{Bytes: s.most}
		room.Fits(rpc.AnswerSize(thing))
	}
	if first > 0 {
		change.Reset_, change.Put = false, put[first:]
	}
	return s.send(r)
}
