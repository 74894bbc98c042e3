package coordclient_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/coordclient"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
)

// provider counts calls and answers as a test says.
func provider(t *testing.T, answer http.HandlerFunc) (url string) {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s.URL
}

// answer is what a provider or the ledger answered.
type answer struct {
	status int
	header http.Header
	body   string
}

func post(t *testing.T, c *http.Client, url, id, body string) (answer, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(coordclient.WithKey(t.Context(), id), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(text)}, err
}

// Thirty creations at once, on three servers, where ten may go in a period: each is sent once, and by the database's clock
// no period has more than ten. Who has to wait is told for how long, and does not come in vain for having come too early.
func TestThirtyCreationsUnderALimit(t *testing.T) {
	t.Parallel()
	const (
		creations, limit = 30, 10
		period           = 1500 * time.Millisecond // a minute, scaled
	)
	b := setup(t, 3)
	configure(t, b.client(t, 0, ""), "runs", &coordinationv1.ApiConfig{Policies: []*coordinationv1.Policy{
		{Name: "create", Algorithm: coordinationv1.Algorithm_ALGORITHM_SLIDING, Limit: limit, Period: durationpb.New(period)},
	}})
	var calls atomic.Int64
	url := provider(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, calls.Add(1)) })
	var clients []*http.Client
	for i := range 3 {
		clients = append(clients, &http.Client{Transport: b.client(t, i, "").Transport("runs", coordclient.Options{Base: base(t), MaxWait: time.Minute})})
	}
	var wait sync.WaitGroup
	for i := range creations {
		wait.Go(func() {
			if res, err := post(t, clients[i%3], url, fmt.Sprint("run-", i), "{}"); err != nil || res.status != http.StatusOK {
				t.Errorf("creation %d: %v, %v", i, res, err)
			}
		})
	}
	wait.Wait()
	if calls.Load() != creations {
		t.Errorf("%d calls reached the provider", calls.Load())
	}
	var granted []time.Time
	for _, r := range ledger(t, b.client(t, 0, ""), "runs") {
		if r.GetAttempt() != 1 || r.GetStatus() != coordinationv1.CallStatus_CALL_STATUS_COMPLETED {
			t.Errorf("the ledger has %v", r)
		}
		granted = append(granted, r.GetBeginTime().AsTime())
	}
	slices.SortFunc(granted, time.Time.Compare)
	if len(granted) != creations {
		t.Fatalf("%d requests in the ledger", len(granted))
	}
	for i := limit; i < len(granted); i++ {
		if within := granted[i].Sub(granted[i-limit]); within < period {
			t.Errorf("%d were granted within %v", limit+1, within)
		}
	}
}

// What is told while nobody changes anything is the same time, so ever less of a wait; and once it has passed, it goes.
func TestRetryAfterIsHonestAndMonotone(t *testing.T) {
	t.Parallel()
	b := setup(t, 3)
	const period = 2 * time.Second
	configure(t, b.client(t, 0, ""), "runs", &coordinationv1.ApiConfig{Policies: []*coordinationv1.Policy{
		{Name: "create", Algorithm: coordinationv1.Algorithm_ALGORITHM_SLIDING, Limit: 1, Period: durationpb.New(period)},
	}})
	clients := []*coordclient.Client{b.client(t, 0, ""), b.client(t, 1, ""), b.client(t, 2, "")}
	ask := func(i int) *coordinationv1.AcquireResponse {
		t.Helper()
		got, err := clients[i%3].Service.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "runs"})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := ask(0)
	if !first.GetAllowed() {
		t.Fatalf("the first: %v", first)
	}
	grantTime := func() time.Time { return state(t, clients[0], "runs").GetUpdateTime().AsTime() }
	firstTime := grantTime()
	const slack = 100 * time.Millisecond // servers extrapolate the database's clock between its answers
	last := period
	for i := 1; ; i++ {
		got := ask(i)
		if got.GetAllowed() {
			if since := grantTime().Sub(firstTime); since < period {
				t.Errorf("the second was granted after %v", since)
			}
			break
		}
		after := got.GetRetryAfter().AsDuration()
		if after > last+slack {
			t.Errorf("told %v, and then %v", last, after)
		}
		last = after
		if i > 12 { // then wait as told
			timer := time.NewTimer(after)
			<-timer.C
		}
		if i > 20 {
			t.Fatal("waiting as told does not help")
		}
	}
	if got := state(t, clients[0], "runs"); got.GetToday().GetPermits() != 2 {
		t.Errorf("usage: %v", got.GetToday())
	}
}

// The provider is down. The breaker opens once for all; then one call at a time, from whichever server, tries it.
func TestTheBreakerIsOneForAll(t *testing.T) {
	t.Parallel()
	const others = 29
	b := setup(t, 3)
	service := b.client(t, 0, "")
	configure(t, service, "runs", &coordinationv1.ApiConfig{
		Breaker: &coordinationv1.BreakerConfig{FailureThreshold: 5, OpenFor: durationpb.New(200 * time.Millisecond), ProbeLease: durationpb.New(time.Minute)},
	})
	var (
		down      atomic.Bool
		now, most atomic.Int64
		probes    = make(chan chan int) // each probe asks here what to answer
	)
	url := provider(t, func(w http.ResponseWriter, r *http.Request) {
		if !down.Load() {
			return
		}
		for n := now.Add(1); ; {
			if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		defer now.Add(-1)
		answer := make(chan int)
		select {
		case probes <- answer:
			w.WriteHeader(<-answer)
		case <-r.Context().Done():
		}
	})
	client := func(i int) *http.Client {
		return &http.Client{Transport: b.client(t, i, "").Transport("runs", coordclient.Options{
			Base: base(t), MaxWait: time.Minute, Refused: func(status int, _ []byte) bool { return status == http.StatusServiceUnavailable },
		})}
	}
	down.Store(true)
	one := client(0)
	for i := range 5 {
		answered := make(chan error, 1)
		go func() {
			res, err := post(t, one, url, fmt.Sprint("down-", i), "{}")
			if err == nil && res.status != http.StatusServiceUnavailable {
				err = fmt.Errorf("status %d", res.status)
			}
			answered <- err
		}()
		<-probes <- http.StatusServiceUnavailable
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
	}
	if got := state(t, service, "runs").GetBreaker(); got.GetStatus() != coordinationv1.BreakerStatus_BREAKER_STATUS_OPEN || got.GetOpenCount() != 1 {
		t.Fatalf("after five failures: %v", got)
	}
	most.Store(0)

	// From now on everybody tries. What is refused with 503 may be sent again.
	var wait sync.WaitGroup
	for i := range others {
		c := client(i)
		wait.Go(func() {
			for {
				res, err := post(t, c, url, fmt.Sprint("run-", i), "{}")
				if err != nil {
					t.Errorf("run %d: %v", i, err)
					return
				}
				if res.status == http.StatusOK {
					return
				}
			}
		})
	}
	for range 3 { // a probe is under way, and nobody else is let through
		answer := <-probes
		got := state(t, service, "runs").GetBreaker()
		if got.GetStatus() != coordinationv1.BreakerStatus_BREAKER_STATUS_HALF_OPEN {
			t.Errorf("while a probe is under way: %v", got)
		}
		for i := range 3 {
			res, err := b.client(t, i, "").Service.BeginCall(t.Context(), &coordinationv1.BeginCallRequest{Api: "runs", Operation: "x", Key: "other"})
			if err != nil || res.GetDecision() != coordinationv1.Decision_DECISION_WAIT || res.GetWaitReason() != coordinationv1.WaitReason_WAIT_REASON_PROBE {
				t.Errorf("beside a probe: %v, %v", res, err)
			}
		}
		answer <- http.StatusServiceUnavailable
	}
	answer := <-probes
	down.Store(false)
	answer <- http.StatusOK
	wait.Wait()
	if most.Load() != 1 {
		t.Errorf("%d calls at once while the breaker was not closed", most.Load())
	}
	if got := state(t, service, "runs").GetBreaker(); got.GetStatus() != coordinationv1.BreakerStatus_BREAKER_STATUS_CLOSED || got.GetOpenCount() != 1 {
		t.Errorf("in the end: %v", got)
	}
}

// One request, tried fifty times at once over five connections and three servers, reaches the provider once, and all get
// its answer.
func TestFiftyTriesOfOneRequest(t *testing.T) {
	t.Parallel()
	b := setup(t, 3)
	var calls atomic.Int64
	started, release := make(chan struct{}), make(chan struct{})
	url := provider(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			close(started)
		}
		<-release
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Other", "x")
		fmt.Fprint(w, `{"id":42}`)
	})
	var clients []*http.Client
	for i := range 5 {
		clients = append(clients, &http.Client{Transport: b.client(t, i, "ada").Transport("codegen", coordclient.Options{Base: base(t), MaxWait: time.Minute, Holder: fmt.Sprint("h-", i)})})
	}
	impatient := &http.Client{Transport: b.client(t, 1, "ada").Transport("codegen", coordclient.Options{Base: base(t)})}
	var wait sync.WaitGroup
	var replayed atomic.Int64
	for i := range 50 {
		wait.Go(func() {
			res, err := post(t, clients[i%5], url, "r-1", `{"prompt":"x"}`)
			if err != nil || res.status != http.StatusOK || res.body != `{"id":42}` || res.header.Get("Content-Type") != "application/json" {
				t.Errorf("try %d: %v, %v", i, res, err)
				return
			}
			if res.header.Get(coordclient.ReplayedHeader) != "" {
				replayed.Add(1)
			}
		})
	}
	// While it is under way, who does not wait is told.
	<-started
	_, err := post(t, impatient, url, "r-1", `{"prompt":"x"}`)
	var busy *coordclient.InFlightError
	if !errors.As(err, &busy) || !strings.HasPrefix(busy.Holder, "h-") {
		t.Errorf("while it is in flight: %v", err)
	}
	if after, ok := coordclient.RetryAfter(err); !ok || after <= 0 || after > time.Minute {
		t.Errorf("to be tried after %v", after)
	}
	close(release)
	wait.Wait()
	if calls.Load() != 1 || replayed.Load() != 49 {
		t.Errorf("%d calls reached the provider, %d answers came from the ledger", calls.Load(), replayed.Load())
	}
	_, err = post(t, clients[0], url, "r-1", `{"prompt":"y"}`)
	var refused *connect.Error
	if !errors.As(err, &refused) || refused.Code() != connect.CodeAlreadyExists {
		t.Errorf("with another body: %v", err)
	}
	if calls.Load() != 1 {
		t.Errorf("%d calls reached the provider", calls.Load())
	}
}
