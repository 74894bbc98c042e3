package handlers

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

// Calls over the tenant's bound or the server's are refused at once, with a delay to try again after, on every protocol;
// another tenant's and streams still come in.
func TestAdmission(t *testing.T) {
	t.Parallel()
	var k keyring
	other := k.add("other", "")
	b := setup(t, func(o *Options) {
		o.Calls, o.CallsPerTenant = 3, 2
		o.Auth = newAuth(&k)
	})
	b.token = k.add("acme", "")
	began, end := make(chan struct{}), make(chan struct{})
	b.get = func(context.Context, *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
		began <- struct{}{}
		<-end
		return &conversationv1.GetConversationResponse{}, nil
	}
	b.watch = func(context.Context, *conversationv1.WatchConversationRequest, *connect.ServerStream[conversationv1.WatchConversationResponse]) error {
		return nil
	}
	var calls sync.WaitGroup
	hold := func(token string) {
		calls.Go(func() {
			c := *b
			c.token = token
			if _, err := c.client().GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: "a"}); err != nil {
				t.Error(err)
			}
		})
		<-began
	}
	refused := func(token, full string) {
		t.Helper()
		for name, option := range map[string][]connect.ClientOption{"connect": nil, "grpc-web": {connect.WithGRPCWeb()}} {
			c := *b
			c.token = token
			_, err := c.client(option...).GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: "a"})
			var e *connect.Error
			if !errors.As(err, &e) || e.Code() != connect.CodeResourceExhausted {
				t.Fatalf("%s: %v", name, err)
			}
			var limit string
			retry := false
			for _, d := range e.Details() {
				switch v, _ := d.Value(); v := v.(type) {
				case *errdetails.ErrorInfo:
					limit = v.GetMetadata()["limit"]
				case *errdetails.RetryInfo:
					retry = v.GetRetryDelay().AsDuration() > 0
				}
			}
			if limit != full || !retry {
				t.Errorf("%s: the limit is %q, want %q; it says when to try again: %t", name, limit, full, retry)
			}
		}
	}
	hold(b.token)
	hold(b.token)
	refused(b.token, "tenant")
	hold(other)
	refused(other, "server")
	stream, err := b.client().WatchConversation(t.Context(), &conversationv1.WatchConversationRequest{ConversationId: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if stream.Receive() || stream.Err() != nil {
		t.Errorf("a stream: %v", stream.Err())
	}
	stream.Close()
	close(end)
	calls.Wait()
	go func() { <-began }()
	if _, err := b.client().GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: "a"}); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

// A route refuses what is over its bound for one path, or for all, before it reads the body, and takes others' calls.
func TestAdmissionOfRoutes(t *testing.T) {
	t.Parallel()
	began, end := make(chan struct{}), make(chan struct{})
	b := setup(t, func(o *Options) {
		o.RouteCalls, o.RouteCallsPerPath = 3, 2
		o.Routes = []Route{{Name: "hook", Path: "/hooks/", Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			began <- struct{}{}
			<-end
		})}}
	})
	post := func(path string) (status int, retry string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+path, strings.NewReader("x"))
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		res, err := b.http.Do(req)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		res.Body.Close()
		return res.StatusCode, res.Header.Get("Retry-After")
	}
	var held sync.WaitGroup
	hold := func(path string) {
		held.Go(func() {
			if status, _ := post(path); status != http.StatusOK {
				t.Errorf("%s: %d", path, status)
			}
		})
		<-began
	}
	refused := func(path string) {
		t.Helper()
		if status, retry := post(path); status != http.StatusTooManyRequests || retry != "1" {
			t.Errorf("%s: %d, again after %q", path, status, retry)
		}
	}
	hold("/hooks/a")
	hold("/hooks/a")
	refused("/hooks/a")
	hold("/hooks/b")
	refused("/hooks/b")
	close(end)
	held.Wait()
	hold("/hooks/a") // there is room again
	held.Wait()
}
