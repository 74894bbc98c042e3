package coordclient_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/coordclient"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
)

const (
	completed = coordinationv1.CallStatus_CALL_STATUS_COMPLETED
	failed    = coordinationv1.CallStatus_CALL_STATUS_FAILED
	retryable = coordinationv1.CallStatus_CALL_STATUS_RETRYABLE
	unknown   = coordinationv1.CallStatus_CALL_STATUS_UNKNOWN
)

// What each answer means for the ledger, and what who tries again gets.
func TestWhatAnswersMean(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	for _, tt := range []struct {
		status int
		body   string
		want   coordinationv1.CallStatus
		calls  int64 // after a second try
	}{
		{200, "ok", completed, 1},
		{201, strings.Repeat("x", 70_000), completed, 1},
		{302, "", completed, 1},
		{400, `{"errors":[{"message":"no such field"}]}`, failed, 1},
		{400, `{"errors":[{"extensions":{"code":"RATELIMITED"}}]}`, retryable, 2},
		{402, "", failed, 1},
		{404, "not here", failed, 1},
		{408, "", unknown, 1},
		{425, "", retryable, 2},
		{429, "", retryable, 2},
		{500, "oops", unknown, 1},
		{502, "", unknown, 1},
		{503, "", retryable, 2},
		{504, "", unknown, 1},
	} {
		t.Run(fmt.Sprintf("%d %.10s", tt.status, tt.body), func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			url := provider(t, func(w http.ResponseWriter, _ *http.Request) {
				calls.Add(1)
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			})
			c, api := b.client(t, 0, ""), fmt.Sprintf("api-%d-%d", tt.status, len(tt.body))
			client := &http.Client{
				Transport:     c.Transport(api, coordclient.Options{Base: base(t)}),
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			}
			first, err := post(t, client, url, "r", "body")
			if err != nil || first.status != tt.status || first.body != tt.body {
				t.Fatalf("answered with %d %.50q, %v", first.status, first.body, err)
			}
			if got := ledger(t, c, api); len(got) != 1 || got[0].GetStatus() != tt.want {
				t.Errorf("the ledger: %v", got)
			}
			second, err := post(t, client, url, "r", "body")
			var cut *coordclient.TruncatedError
			switch {
			case tt.want == unknown:
				if _, ok := errors.AsType[*coordclient.UnknownError](err); !ok {
					t.Errorf("tried again: %v, %v", second, err)
				}
			case len(tt.body) > 64<<10:
				if !errors.As(err, &cut) || cut.Status != tt.status {
					t.Errorf("tried again: %v, %v", second, err)
				}
			case err != nil || second.status != tt.status || second.body != tt.body:
				t.Errorf("tried again: %v, %v", second, err)
			}
			if calls.Load() != tt.calls {
				t.Errorf("%d calls", calls.Load())
			}
		})
	}
}

// A provider that cannot be reached was not called: the permit is given back.
func TestWhatWasNotSent(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	configure(t, c, "any", &coordinationv1.ApiConfig{Policies: []*coordinationv1.Policy{
		{Name: "p", Algorithm: coordinationv1.Algorithm_ALGORITHM_SLIDING, Limit: 1, Period: durationpb.New(time.Hour)},
	}})
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{Base: base(t)})}
	_, err := post(t, client, "http://127.0.0.1:1", "r", "x")
	var who *coordclient.UnknownError
	if err == nil || errors.As(err, &who) {
		t.Errorf("of a port where nobody listens: %v", err)
	}
	if got := ledger(t, c, "any"); len(got) != 1 || got[0].GetStatus() != retryable {
		t.Errorf("the ledger: %v", got)
	}
	if got := state(t, c, "any"); got.GetLimits()[0].GetRemaining() != 1 {
		t.Errorf("limits: %v", got.GetLimits())
	}
	url := provider(t, func(http.ResponseWriter, *http.Request) {})
	if _, err := post(t, client, url, "other", "x"); err != nil {
		t.Errorf("the permit that was given back: %v", err)
	}
	// Now there is none.
	_, err = post(t, client, url, "third", "x")
	var wait *coordclient.WaitError
	if !errors.As(err, &wait) || wait.Reason != coordinationv1.WaitReason_WAIT_REASON_LIMIT {
		t.Fatalf("without a permit: %v", err)
	}
	if after, ok := coordclient.RetryAfter(err); !ok || after < 50*time.Minute {
		t.Errorf("retry after %v", after)
	}
	if _, ok := coordclient.RetryAfter(io.EOF); ok {
		t.Error("an error of another kind says when to retry")
	}
}

// The caller leaves while the provider works: what becomes of it is unknown, and the provider is not called again.
func TestTheCallerLeaves(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	started, release := make(chan struct{}), make(chan struct{})
	url := provider(t, func(http.ResponseWriter, *http.Request) {
		close(started)
		<-release
	})
	defer close(release)
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{Base: base(t)})}
	ctx, cancel := context.WithCancel(coordclient.WithKey(t.Context(), "r"))
	go func() {
		<-started
		cancel()
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	var who *coordclient.UnknownError
	if !errors.As(err, &who) || !errors.Is(err, context.Canceled) {
		t.Errorf("answered with %v, %v", res, err)
		res.Body.Close()
	}
	if got := ledger(t, c, "any"); len(got) != 1 || got[0].GetStatus() != unknown {
		t.Errorf("the ledger: %v", got)
	}
	// That says nothing about the provider.
	if got := state(t, c, "any").GetBreaker(); got.GetConsecutiveFailures() != 0 {
		t.Errorf("the breaker: %v", got)
	}
}

// What is sent is what the caller gave, but for the name of the request, and net/http has no way to send it twice.
func TestWhatIsSent(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	url := provider(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprint(w, string(body), " ", r.ContentLength, " ", r.Header.Get("X-Mine"), " ", r.Header.Get(coordclient.KeyHeader), err)
	})
	spy := spying{base(t), make(chan bool, 1)}
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{Base: spy})}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/things/42", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Mine", "mine")
	req.Header.Set(coordclient.KeyHeader, "named")
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if string(text) != "body 4 mine <nil>" && string(text) != "body 4 mine  <nil>" || err != nil {
		t.Errorf("sent %q, %v", text, err)
	}
	if <-spy.replayable {
		t.Error("net/http could send it again by itself")
	}
	if got := ledger(t, c, "any"); len(got) != 1 || got[0].GetKey() != "named" || got[0].GetOperation() != "POST /v1/things/*" {
		t.Errorf("the ledger: %v", got)
	}
	if req.Header.Get(coordclient.KeyHeader) != "named" {
		t.Error("the caller's request was changed")
	}
}

type spying struct {
	http.RoundTripper

	replayable chan bool
}

func (s spying) RoundTrip(r *http.Request) (*http.Response, error) {
	s.replayable <- r.GetBody != nil
	return s.RoundTripper.RoundTrip(r)
}

// Reads have no ledger, but wait their turn, tell what the provider says, and count for the breaker.
func TestReads(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	configure(t, c, "any", &coordinationv1.ApiConfig{
		Policies: []*coordinationv1.Policy{
			{Name: "p", Algorithm: coordinationv1.Algorithm_ALGORITHM_GCRA, Limit: 100, Period: durationpb.New(time.Hour), Dimension: "requests"},
		},
		Breaker: &coordinationv1.BreakerConfig{FailureThreshold: 2},
	})
	var status atomic.Int64
	status.Store(200)
	url := provider(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Ratelimit-Remaining", "50")
		w.WriteHeader(int(status.Load()))
		fmt.Fprint(w, "read")
	})
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{Base: base(t), OnError: func(err error) { t.Error(err) }})}
	get := func() (int, string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		return res.StatusCode, string(text), err
	}
	if code, text, err := get(); code != 200 || text != "read" || err != nil {
		t.Fatalf("read %d %q, %v", code, text, err)
	}
	if got := state(t, c, "any"); got.GetLimits()[0].GetRemaining() != 50 || len(ledger(t, c, "any")) != 0 {
		t.Errorf("state: %v", got)
	}
	status.Store(500)
	for range 2 {
		if code, _, err := get(); code != 500 || err != nil {
			t.Fatalf("read %d, %v", code, err)
		}
	}
	_, _, err := get()
	var wait *coordclient.WaitError
	if !errors.As(err, &wait) || wait.Reason != coordinationv1.WaitReason_WAIT_REASON_BREAKER {
		t.Errorf("when the breaker is open: %v", err)
	}
}

// A stream is handed on at once: it may not end for long.
func TestStreams(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	release := make(chan struct{})
	url := provider(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		<-release
		fmt.Fprint(w, "data: 2\n\n")
	})
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{Base: base(t)})}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		close(release)
		t.Fatal(err)
	}
	defer res.Body.Close()
	got := ledger(t, c, "any")
	close(release)
	if len(got) != 1 || got[0].GetStatus() != completed || !got[0].GetOutcome().GetTruncated() {
		t.Errorf("the ledger, while it streams: %v", got)
	}
	if text, err := io.ReadAll(res.Body); string(text) != "data: 1\n\ndata: 2\n\n" || err != nil {
		t.Errorf("streamed %q, %v", text, err)
	}
}

// A server that cannot be reached lets nothing through: nobody can tell whether it may go.
func TestTheCoordinatorIsAway(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	url := provider(t, func(http.ResponseWriter, *http.Request) { calls.Add(1) })
	c := coordclient.New("http://127.0.0.1:1", "hfk_x", coordclient.WithHTTPClient(&http.Client{Transport: base(t)}))
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{Base: base(t)})}
	if _, err := post(t, client, url, "r", "x"); err == nil {
		t.Error("sent all the same")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := client.Do(req); err == nil {
		res.Body.Close()
		t.Error("read all the same")
	}
	if calls.Load() != 0 {
		t.Errorf("%d calls", calls.Load())
	}
}
