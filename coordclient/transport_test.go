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
		{400, `{"errors":[{"extensions":{"code":"RATELIMITED"}}]}`, retryable, 1},
		{401, "", retryable, 1},
		{402, "", retryable, 1},
		{403, "", retryable, 1},
		{404, "not here", failed, 1},
		{408, "", unknown, 1},
		{409, "", retryable, 1},
		{425, "", retryable, 1},
		{429, "", retryable, 1},
		{500, "oops", unknown, 1},
		{502, "", unknown, 1},
		{503, "upstream connect error or disconnect/reset before headers", unknown, 1},
		{503, `{"error":{"type":"overloaded_error"}}`, retryable, 1},
		{504, "", unknown, 1},
		{529, "", retryable, 1},
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
			case tt.want == retryable: // later, by itself
				if _, ok := errors.AsType[*coordclient.WaitError](err); !ok {
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

// What is sent is what the caller gave and the name of the request, and net/http has no way to send it twice.
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

// A stream is handed on at once, of whatever type: it may not end for long.
func TestStreams(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	for kind, kept := range map[string]bool{
		"text/event-stream": false, "TEXT/EVENT-STREAM; charset=utf-8": false, "application/x-ndjson": false, "application/connect+json": false, "application/grpc-web": false,
		"application/octet-stream": false, "application/json": true, // Gemini's, unless it is asked for another
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			release := make(chan struct{})
			url := provider(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", kind)
				fmt.Fprint(w, "[1,")
				_ = http.NewResponseController(w).Flush()
				<-release
				fmt.Fprint(w, "2]")
			})
			api := strings.NewReplacer("/", "-", ";", "", " ", "", "=", "", "+", "").Replace(kind)
			client := &http.Client{Transport: c.Transport(api, coordclient.Options{Base: base(t)})}
			req, err := http.NewRequestWithContext(coordclient.WithKey(t.Context(), "r"), http.MethodPost, url, strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			res, err := client.Do(req)
			if err != nil {
				close(release)
				t.Fatal(err)
			}
			defer res.Body.Close()
			got := ledger(t, c, api)
			close(release)
			if len(got) != 1 || (got[0].GetStatus() == completed) == kept {
				t.Errorf("the ledger, while it streams: %v", got)
			}
			if text, err := io.ReadAll(res.Body); string(text) != "[1,2]" || err != nil {
				t.Errorf("streamed %q, %v", text, err)
			}
			if got := ledger(t, c, api); got[0].GetStatus() != completed {
				t.Errorf("the ledger, after that: %v", got)
			}
			again, err := post(t, client, url, "r", "x")
			if _, cut := errors.AsType[*coordclient.TruncatedError](err); cut == kept || kept && again.body != "[1,2]" {
				t.Errorf("again: %v, %v", again, err)
			}
		})
	}
}

// Who wants no more than the status leaves the body for those who come after.
func TestABodyThatNobodyReadsIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	url := provider(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush() // so its length is not known
		fmt.Fprint(w, "made")
	})
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{Base: base(t)})}
	req, err := http.NewRequestWithContext(coordclient.WithKey(t.Context(), "r"), http.MethodPost, url, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got, err := post(t, client, url, "r", "x"); err != nil || got.body != "made" {
		t.Errorf("again: %v, %v", got, err)
	}
}

// A change that is sent elsewhere arrives there, once, under its name.
func TestRedirectsOfAChangeArrive(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	var calls atomic.Int64
	url := provider(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/a":
			http.Redirect(w, r, "/b", http.StatusTemporaryRedirect)
		case "/b":
			http.Redirect(w, r, "/c/?x=1", http.StatusPermanentRedirect)
		default:
			calls.Add(1)
			_, _ = io.Copy(w, r.Body)
		}
	})
	for name, key := range map[string]string{"named": "r", "unnamed": ""} {
		calls.Store(0)
		client := &http.Client{Transport: c.Transport(name, coordclient.Options{Base: base(t)})}
		for range 2 {
			ctx := t.Context()
			if key != "" {
				ctx = coordclient.WithKey(ctx, key)
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/a", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if text, err := io.ReadAll(res.Body); string(text) != "body" || err != nil {
				t.Errorf("%s: answered %q, %v", name, text, err)
			}
			res.Body.Close()
		}
		if want := map[string]int64{"named": 1, "unnamed": 2}[name]; calls.Load() != want {
			t.Errorf("%s: %d calls", name, calls.Load())
		}
	}
}

// The order of keys and parameters makes no other request; a value does.
func TestTheOrderOfKeysIsNoOtherRequest(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	var calls atomic.Int64
	url := provider(t, func(http.ResponseWriter, *http.Request) { calls.Add(1) })
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{Base: base(t)})}
	for i, request := range [][2]string{
		{"/?a=1&b=2", `{"x":1,"y":{"p":[1,2],"q":12345678901234567890}}`},
		{"/?b=2&a=1", `{ "y":{"q":12345678901234567890,"p":[1,2]}, "x":1 }`},
		{"/?a=1&b=2", `{"x":1,"y":{"p":[2,1],"q":12345678901234567890}}`},
		{"/?a=1&b=2", `{"x":1,"y":{"p":[1,2],"q":12345678901234567891}}`},
		{"/?a=2&b=1", `{"x":1,"y":{"p":[1,2],"q":12345678901234567890}}`},
	} {
		if _, err := post(t, client, url+request[0], "r", request[1]); (err == nil) != (i < 2) {
			t.Errorf("%v: %v", request, err)
		}
	}
	if calls.Load() != 1 {
		t.Errorf("%d calls", calls.Load())
	}
}

// GraphQL says what went wrong with status 200.
func TestErrorsOfGraphQLAreFailures(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	for name, tt := range map[string]struct {
		body string
		want coordinationv1.CallStatus
	}{
		"refused": {`{"errors":[{"extensions":{"code":"RATELIMITED"}}]}`, retryable}, "invalid": {`{"errors":[{"message":"no such field"}]}`, failed},
		"broken": {`{"data":null,"errors":[{"extensions":{"code":"INTERNAL_SERVER_ERROR"}}]}`, unknown}, "good": {`{"data":{"a":1}}`, completed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := provider(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, tt.body) })
			client := &http.Client{Transport: c.Transport(name, coordclient.Options{Base: base(t)})}
			if got, err := post(t, client, url, "r", `{"query":"mutation { a }"}`); err != nil || got.body != tt.body {
				t.Errorf("answered with %v, %v", got, err)
			}
			if got := ledger(t, c, name); len(got) != 1 || got[0].GetStatus() != tt.want {
				t.Errorf("the ledger: %v", got)
			}
		})
	}
}

// A provider that refuses without a word is not asked as often as its callers like.
func TestReadsThatAreRefusedBackOff(t *testing.T) {
	t.Parallel()
	b := setup(t, 1)
	c := b.client(t, 0, "")
	var calls atomic.Int64
	url := provider(t, func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.WriteHeader(http.StatusTooManyRequests)
	})
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{Base: base(t)})}
	for range 50 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if res, err := client.Do(req); err == nil {
			res.Body.Close()
		}
	}
	if calls.Load() > 5 { // one a second, at first
		t.Errorf("%d calls", calls.Load())
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
