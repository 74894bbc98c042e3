package load

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	typev1 "holdfast/gen/holdfast/type/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
)

// fakeServer keeps conversations in memory: enough of the service to be put under load. Tests of what the load finds
// out break it on purpose.
type fakeServer struct {
	conversationv1connect.UnimplementedConversationServiceHandler
	livev1connect.UnimplementedLiveServiceHandler

	refuse error // every append fails with it
	lose   int64 // the message of that seq is acknowledged and not kept
	hide   int64 // watchers are not told of the message of that seq
	cut    bool  // a stream ends after each message

	mu      sync.Mutex // guards what follows
	objects map[string][]*conversationv1.Message
	changed chan struct{} // closed and renewed at every change
}

// setup serves a fake over HTTP/1.1 and HTTP/2 in clear.
func setup(t *testing.T) (*fakeServer, *Target) {
	t.Helper()
	f := &fakeServer{objects: map[string][]*conversationv1.Message{}, changed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle(conversationv1connect.NewConversationServiceHandler(f))
	mux.Handle(livev1connect.NewLiveServiceHandler(f))
	mux.Handle(watchv1connect.NewWatchServiceHandler(f))
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	target := &Target{URL: u, Codec: Proto}
	return f, target
}

func (f *fakeServer) CreateConversation(_ context.Context, req *conversationv1.CreateConversationRequest) (*conversationv1.CreateConversationResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.objects[req.GetConversationId()]; ok {
		return nil, connect.NewError(connect.CodeAlreadyExists, errors.New("it is there"))
	}
	f.objects[req.GetConversationId()] = nil
	return &conversationv1.CreateConversationResponse{}, nil
}

func (f *fakeServer) Append(_ context.Context, req *conversationv1.AppendRequest) (*conversationv1.AppendResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return nil, f.refuse
	}
	res := &conversationv1.AppendResponse{}
	for _, m := range req.GetMessages() {
		res.Messages = append(res.Messages, &conversationv1.Message{Seq: int32(f.add(req.GetConversationId(), m.GetText()))})
	}
	return res, nil
}

func (f *fakeServer) add(id, text string) int64 {
	seq := int64(len(f.objects[id])) + 1
	m := &conversationv1.Message{Seq: int32(seq), Text: text}
	if seq == f.lose {
		m = &conversationv1.Message{Seq: int32(seq)}
	}
	f.objects[id] = append(f.objects[id], m)
	close(f.changed)
	f.changed = make(chan struct{})
	return seq
}

func (*fakeServer) ConnectLive(context.Context, *livev1.ConnectLiveRequest) (*livev1.ConnectLiveResponse, error) {
	return &livev1.ConnectLiveResponse{Lease: &typev1.Lease{FencingToken: 1}}, nil
}

func (f *fakeServer) IngestLive(_ context.Context, req *livev1.IngestLiveRequest) (*livev1.IngestLiveResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	res := &livev1.IngestLiveResponse{}
	for _, text := range transcripts(req.GetFrames()) {
		res.Messages = append(res.Messages, &conversationv1.Message{Seq: int32(f.add(req.GetConversationId(), text))})
	}
	res.StoredThrough = req.GetFrames()[len(req.GetFrames())-1].GetClientIndex()
	return res, nil
}

func (f *fakeServer) GetConversation(_ context.Context, req *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.objects[req.GetConversationId()]
	return &conversationv1.GetConversationResponse{
		Conversation: &conversationv1.Conversation{ConversationId: req.GetConversationId(), Version: int64(len(all))},
		Messages:     all[max(0, len(all)-int(req.GetMessageLimit())):],
	}, nil
}

func (f *fakeServer) ListMessages(_ context.Context, req *conversationv1.ListMessagesRequest) (*conversationv1.ListMessagesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	after, _ := strconv.Atoi(req.GetPageToken())
	rest := f.objects[req.GetConversationId()][after:]
	page := rest[:min(len(rest), int(req.GetPageSize()))]
	res := &conversationv1.ListMessagesResponse{Messages: page}
	if len(page) < len(rest) {
		res.NextPageToken = strconv.Itoa(after + len(page))
	}
	return res, nil
}

func (f *fakeServer) Watch(ctx context.Context, req *watchv1.WatchRequest, stream *connect.ServerStream[watchv1.WatchResponse]) error {
	item := req.GetItems()[0]
	seen, _ := strconv.Atoi(item.GetCursor())
	for reset := seen == 0; ; reset = false {
		f.mu.Lock()
		fresh, changed := f.objects[item.GetConversation().GetConversationId()][seen:], f.changed
		f.mu.Unlock()
		seen += len(fresh)
		fresh = slices.DeleteFunc(slices.Clone(fresh), func(m *conversationv1.Message) bool { return int64(m.GetSeq()) == f.hide })
		if reset || len(fresh) > 0 {
			change := &watchv1.Changed{Reset_: reset, Version: int64(seen) + 1}
			for _, m := range fresh {
				change.Put = append(change.Put, &watchv1.Thing{Thing: &watchv1.Thing_Message{Message: m}})
			}
			if err := stream.Send(&watchv1.WatchResponse{
				Cursor: strconv.Itoa(seen), Event: &watchv1.WatchResponse_Changed{Changed: change},
			}); err != nil {
				return err
			}
			if f.cut && !reset {
				return connect.NewError(connect.CodeUnavailable, errors.New("over"))
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func newSessions(t *testing.T, target *Target, count, objects int) []*Session {
	t.Helper()
	all := make([]*Session, count)
	began := time.Now()
	for i := range all {
		all[i] = NewSession(target, "token", "c"+string(rune('a'+i%objects)), i, began)
		t.Cleanup(all[i].Close)
		if i < objects {
			if err := all[i].Create(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}
