package coordclient_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/coordclient"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	typev1 "holdfast/gen/holdfast/type/v1"
)

// granting is a coordinator that grants everything, to be sent within 2 s, and takes its time for that.
type granting struct {
	coordinationv1connect.CoordinationServiceClient

	takes   []time.Duration // for each grant; then nothing
	grants  int
	unsent  int // requests that were given back, or for a read permits
	refuses bool
	done    int // requests that were completed, or for a read reported
}

const sendWithin = 2 * time.Second

func (g *granting) grant() *durationpb.Duration {
	if g.grants++; len(g.takes) > 0 {
		<-time.After(g.takes[0])
		g.takes = g.takes[1:]
	}
	return durationpb.New(sendWithin)
}

func (g *granting) BeginCall(context.Context, *coordinationv1.BeginCallRequest) (*coordinationv1.BeginCallResponse, error) {
	within := g.grant()
	return &coordinationv1.BeginCallResponse{
		Decision: coordinationv1.Decision_DECISION_PROCEED, Lease: &typev1.Lease{FencingToken: int32(g.grants)}, SendWithin: within,
	}, nil
}

func (g *granting) FinishCall(_ context.Context, req *coordinationv1.FinishCallRequest) (*coordinationv1.FinishCallResponse, error) {
	switch f := req.GetFailed(); {
	case f == nil:
		g.done++
	case f.GetNotSent() && f.GetNotDown() && f.GetFailure() == coordinationv1.Failure_FAILURE_RETRYABLE && req.GetFencingToken() == int32(g.grants):
		g.unsent++
	}
	return &coordinationv1.FinishCallResponse{}, nil
}

func (g *granting) Acquire(context.Context, *coordinationv1.AcquireRequest) (*coordinationv1.AcquireResponse, error) {
	within := g.grant()
	return &coordinationv1.AcquireResponse{Allowed: true, GrantId: fmt.Sprint("g-", g.grants), SendWithin: within}, nil
}

func (g *granting) Release(_ context.Context, req *coordinationv1.ReleaseRequest) (*coordinationv1.ReleaseResponse, error) {
	if g.refuses {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("only a service may give back"))
	}
	if req.GetUnused() && req.GetGrantId() == fmt.Sprint("g-", g.grants) {
		g.unsent++
	}
	return &coordinationv1.ReleaseResponse{}, nil
}

func (g *granting) Report(context.Context, *coordinationv1.ReportRequest) (*coordinationv1.ReportResponse, error) {
	g.done++
	return &coordinationv1.ReportResponse{}, nil
}

// pipe is an http.Transport to a provider that answers each request with its body; connecting takes so long.
func pipe(takes ...time.Duration) (_ *http.Transport, sent *atomic.Int64) {
	connecting := make(chan time.Duration, len(takes))
	for _, d := range takes {
		connecting <- d
	}
	close(connecting)
	sent = new(atomic.Int64)
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case <-time.After(<-connecting):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			r, err := http.ReadRequest(bufio.NewReader(far))
			if err != nil {
				return // too late: nothing was sent
			}
			sent.Add(1)
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(far, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}()
		return near, nil
	}}, sent
}

// What cannot be sent within the time that the margin leaves is not sent; it waits for another turn as long as it may.
func TestSendWithin(t *testing.T) {
	t.Parallel()
	const slow = sendWithin + time.Millisecond
	for name, tt := range map[string]struct {
		asking, connecting []time.Duration
		maxWait            time.Duration
		grants             int
		late               bool
	}{
		"in time":                           {asking: []time.Duration{time.Second}, connecting: []time.Duration{999 * time.Millisecond}, grants: 1},
		"the coordinator is slow once":      {asking: []time.Duration{slow}, maxWait: time.Minute, grants: 2},
		"connecting is slow once":           {connecting: []time.Duration{slow}, maxWait: time.Minute, grants: 2},
		"both are half as slow":             {asking: []time.Duration{slow / 2}, connecting: []time.Duration{slow/2 + 1}, maxWait: time.Minute, grants: 2},
		"slow, and nobody waits":            {asking: []time.Duration{slow}, grants: 1, late: true},
		"connecting is, and nobody waits":   {connecting: []time.Duration{slow}, grants: 1, late: true},
		"slow for longer than anyone waits": {asking: []time.Duration{slow, slow, slow}, maxWait: 2 * slow, grants: 2, late: true},
	} {
		for _, method := range []string{http.MethodPost, http.MethodGet} {
			t.Run(method+" "+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					service := &granting{takes: tt.asking}
					transport, sent := pipe(tt.connecting...)
					c := coordclient.Client{Service: service}
					client := &http.Client{Transport: c.Transport("any", coordclient.Options{
						Base: transport, MaxWait: tt.maxWait, OnError: func(err error) { t.Error(err) },
					})}
					req, err := http.NewRequestWithContext(t.Context(), method, "http://provider/", strings.NewReader("body"))
					if err != nil {
						t.Fatal(err)
					}
					res, err := client.Do(req)
					wantUnsent, wantSent := tt.grants-1, 1
					if !tt.late {
						if err != nil {
							t.Fatal(err)
						}
						if text, err := io.ReadAll(res.Body); string(text) != "body" || err != nil {
							t.Errorf("answered %q, %v", text, err)
						}
						res.Body.Close()
					} else {
						wantUnsent, wantSent = tt.grants, 0
						var late *coordclient.LateError
						if !errors.As(err, &late) {
							t.Fatalf("ended with %v", err)
						}
						if late.SendWithin != sendWithin || late.Took < sendWithin {
							t.Errorf("ended with %v", late)
						}
						if after, ok := coordclient.RetryAfter(err); !ok || after != 0 {
							t.Errorf("to be tried after %v, %v", after, ok)
						}
					}
					<-time.After(time.Minute) // a connection that nobody waits for any more
					synctest.Wait()
					if service.grants != tt.grants || service.unsent != wantUnsent || sent.Load() != int64(wantSent) || service.done != wantSent {
						t.Errorf("granted %d, given back %d, sent %d, done %d; want %d, %d, %d, %d",
							service.grants, service.unsent, sent.Load(), service.done, tt.grants, wantUnsent, wantSent, wantSent)
					}
				})
			})
		}
	}
}

// A user cannot give back what a read took, and that is no error.
func TestLateReadOfAUser(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		service := &granting{takes: []time.Duration{3 * time.Second}, refuses: true}
		transport, sent := pipe()
		c := coordclient.Client{Service: service}
		client := &http.Client{Transport: c.Transport("any", coordclient.Options{
			Base: transport, MaxWait: time.Minute, OnError: func(err error) { t.Error(err) },
		})}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://provider/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if sent.Load() != 1 || service.grants != 2 {
			t.Errorf("sent %d, granted %d", sent.Load(), service.grants)
		}
	})
}

// The whole way: who cannot connect in time has sent nothing, and has its permit back.
func TestLateRequestGivesItsPermitBack(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	configure(t, c, "any", &coordinationv1.ApiConfig{Policies: []*coordinationv1.Policy{{
		Name: "p", Algorithm: coordinationv1.Algorithm_ALGORITHM_SLIDING, Limit: 1, Period: durationpb.New(time.Hour),
		Margin: durationpb.New(50 * time.Millisecond),
	}}})
	transport := base(t)
	never := make(chan struct{})
	t.Cleanup(func() { close(never) })
	transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		<-never
		return nil, net.ErrClosed
	}
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{Base: transport})}
	_, err := post(t, client, "http://provider/", "r", "x")
	if _, late := errors.AsType[*coordclient.LateError](err); !late {
		t.Fatalf("ended with %v", err)
	}
	if got := ledger(t, c, "any"); len(got) != 1 || got[0].GetStatus() != retryable {
		t.Errorf("the ledger: %v", got)
	}
	if got := state(t, c, "any"); got.GetLimits()[0].GetRemaining() != 1 || got.GetBreaker().GetConsecutiveFailures() != 0 {
		t.Errorf("state: %v", got)
	}
}
