package handlers

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
)

// Calls over the tenant's bound or the server's are refused at once, with a delay to try again after, on every protocol;
// another tenant's and streams still come in.
func TestAdmission(t *testing.T) {
	t.Parallel()
	var k keyring
	other := k.add("other", "")
	b := setup(t, func(o *Options) {
		o.Bounds = Bounds{Server: Load{Calls: 3}, Tenant: Load{Calls: 2}}
		o.Auth = newAuth(&k)
	})
	b.token = k.add("acme", "")
	began, end := make(chan struct{}), make(chan struct{})
	b.get = func(context.Context, *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
		began <- struct{}{}
		<-end
		return &conversationv1.GetConversationResponse{}, nil
	}
	b.watch = func(context.Context, *watchv1.WatchRequest, *connect.ServerStream[watchv1.WatchResponse]) error {
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
					limit = v.GetMetadata()["scope"]
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
	stream, err := b.watchClient().Watch(t.Context(), watchOf("a"))
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

// On a route the body that has been arriving for longest makes room for the next, of its path or of all, and who refuses by the headers needs no room.
func TestASlowBodyOnARouteMakesRoomForTheNext(t *testing.T) {
	t.Parallel()
	began := make(chan string)
	b := setup(t, func(o *Options) {
		o.RouteCalls, o.RouteCallsPerPath = 3, 2
		o.Routes = []Route{{Name: "hook", Path: "/hooks/", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Signature") == "" {
				http.Error(w, "unsigned", http.StatusBadRequest)
				return
			}
			first := make([]byte, 1)
			_, err := r.Body.Read(first)
			if err == nil {
				began <- string(first)
				_, err = io.ReadAll(r.Body)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusTooManyRequests)
				return
			}
		})}}
	})
	type slow struct {
		body   *io.PipeWriter
		status chan int
	}
	post := func(path, first string, signed bool) slow {
		r, w := io.Pipe()
		s := slow{w, make(chan int, 1)}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+path, r)
		if err != nil {
			t.Fatal(err)
		}
		if signed {
			req.Header.Set("Signature", "s")
		}
		go func() {
			res, err := b.http.Do(req)
			if err != nil {
				t.Error(err)
				close(s.status)
				return
			}
			res.Body.Close()
			s.status <- res.StatusCode
		}()
		if signed {
			_, _ = io.WriteString(w, first)
			if got := <-began; got != first {
				t.Fatalf("%q began, not %q", got, first)
			}
		}
		return s
	}
	ends := func(s slow, want int) {
		t.Helper()
		if got := <-s.status; got != want {
			t.Errorf("status %d, want %d", got, want)
		}
		s.body.Close()
	}
	one, two := post("/hooks/a", "1", true), post("/hooks/a", "2", true)
	for range 10 {
		unsigned := post("/hooks/a", "", false)
		unsigned.body.Close()
		ends(unsigned, http.StatusBadRequest)
	}
	three := post("/hooks/a", "3", true)
	ends(one, http.StatusTooManyRequests)
	four := post("/hooks/b", "4", true)
	five := post("/hooks/c", "5", true)
	ends(two, http.StatusTooManyRequests)
	for _, s := range []slow{three, four, five} {
		s.body.Close()
		ends(s, http.StatusOK)
	}

	if got := b.metric(t, "holdfast_requests_refused_total"); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "OVERLOADED ") }) {
		t.Errorf("refusals: %v", got)
	}
}
