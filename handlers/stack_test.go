//go:build !race

package handlers

// Not under the race detector, whose frames are larger.

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
)

// waiting is a manager whose appends wait, as for a commit.
type waiting struct {
	conversationv1connect.UnimplementedConversationServiceHandler

	begun   sync.WaitGroup
	release chan struct{}
}

func (w *waiting) AppendMessages(context.Context, *conversationv1.AppendMessagesRequest) (*conversationv1.AppendMessagesResponse, error) {
	w.begun.Done()
	<-w.release
	return &conversationv1.AppendMessagesResponse{}, nil
}

// A call that waits has 8 KB of stack, and 2 for the goroutine that looks whether the caller is still there: with 1,000 sessions
// each more is 8 MB that the heap may not have. Not parallel: it counts all there is.
func TestStackOfACallThatWaits(t *testing.T) { //nolint:paralleltest // see above
	const calls = 200
	m := &waiting{release: make(chan struct{})}
	m.begun.Add(calls)
	b := setup(t, func(o *Options) {
		o.Services = []Service{NewService[conversationv1connect.ConversationServiceHandler](
			conversationv1connect.ConversationServiceName, conversationv1connect.NewConversationServiceHandler, m)}
	})
	body, err := proto.Marshal(&conversationv1.AppendMessagesRequest{
		ConversationId: "c", RequestId: "r", Messages: []*conversationv1.NewMessage{{Role: conversationv1.Role_ROLE_USER, Text: "hello"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	request := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nContent-Type: application/proto\r\nContent-Length: %d\r\n\r\n%s",
		conversationv1connect.ConversationServiceAppendMessagesProcedure, b.token, len(body), body)
	defer close(m.release)

	before := stacks()
	for range calls {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(b.url, "http://"))
		if err == nil {
			_, err = io.WriteString(conn, request)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	m.begun.Wait()
	if each := (stacks() - before) / calls; each > 14<<10 {
		t.Errorf("a call that waits has %d bytes of stacks", each)
	}
}

func stacks() int {
	s := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	return int(s[0].Value.Uint64())
}
