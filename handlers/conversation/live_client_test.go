package conversation

import (
	"context"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
)

type (
	connectReq    = livev1.ConnectLiveRequest
	disconnectReq = livev1.DisconnectLiveRequest
	ingestReq     = livev1.IngestLiveRequest
	claimReq      = livev1.ClaimToolCallRequest
	completeReq   = livev1.CompleteToolCallRequest
)

// client calls both services of the package, and watches.
type client interface {
	conversationv1connect.ConversationServiceClient
	livev1connect.LiveServiceClient
	watchv1connect.WatchServiceClient
}

type clients struct {
	conversationv1connect.ConversationServiceClient
	livev1connect.LiveServiceClient
	watchv1connect.WatchServiceClient
}

func newClient(http connect.HTTPClient, url string, opts ...connect.ClientOption) client {
	return clients{
		conversationv1connect.NewConversationServiceClient(http, url, opts...), livev1connect.NewLiveServiceClient(http, url, opts...),
		watchv1connect.NewWatchServiceClient(http, url, opts...),
	}
}

// openLive connects to c1, even if another client is connected, and returns the fencing token. The tool calls are left to workers.
func openLive(t *testing.T, c client) int64 {
	t.Helper()
	return int64(connectAs(t, c, &connectReq{Options: &livev1.LiveOptions{LeaveToolCalls: true}}).GetLease().GetFencingToken())
}

// connectAs connects to c1 as a request says, even if another client is connected.
func connectAs(t *testing.T, c client, req *connectReq) *livev1.ConnectLiveResponse {
	t.Helper()
	req = proto.CloneOf(req)
	req.ConversationId, req.TakeOver = c1, true
	return must(c.ConnectLive(t.Context(), req))(t)
}

// ingestOne sends a batch of frames of c1.
func ingestOne(t *testing.T, c client, token int64, frames ...*livev1.LiveFrame) *livev1.IngestLiveResponse {
	t.Helper()
	return must(c.IngestLive(t.Context(), &ingestReq{ConversationId: c1, FencingToken: int32(token), Frames: frames}))(t)
}

// plan is what a connection with this setup would be told, without connecting.
func plan(t *testing.T, c client, setup string) *livev1.Plan {
	t.Helper()
	return must(c.ConnectLive(t.Context(), &connectReq{ConversationId: c1, SetupHash: setup, TakeOver: true, ValidateOnly: true}))(t).GetPlan()
}

func device(name string) *typev1.Device { return &typev1.Device{Name: name} }

// invokeLive is invoke for requests of LiveService.
func invokeLive(ctx context.Context, c client, req proto.Message) (err error) {
	switch r := req.(type) {
	case *connectReq:
		_, err = c.ConnectLive(ctx, r)
	case *disconnectReq:
		_, err = c.DisconnectLive(ctx, r)
	case *ingestReq:
		_, err = c.IngestLive(ctx, r)
	case *claimReq:
		_, err = c.ClaimToolCall(ctx, r)
	case *completeReq:
		_, err = c.CompleteToolCall(ctx, r)
	case *livev1.ListLiveFramesRequest:
		_, err = c.ListLiveFrames(ctx, r)
	}
	return err
}
