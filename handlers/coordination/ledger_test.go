package coordination

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

// book is one call's row and the API around it.
type book struct {
	state *storev1.ApiState
	conf  *storev1.ApiConfig
	row   row
	now   time.Time
	sent  int // attempts that may be on their way or have been
}

func newBook() *book {
	return &book{state: &storev1.ApiState{}, conf: &storev1.ApiConfig{Breaker: &storev1.BreakerConfig{Disabled: true}}, now: epoch}
}

func (b *book) ledger() *ledger {
	return &ledger{bucketStore: bucketStore{state: b.state, user: &storev1.UserBuckets{}}, config: b.conf, now: b.now}
}

func (b *book) begin(change ...func(*coordinationv1.BeginCallRequest)) (*coordinationv1.BeginCallResponse, error) {
	req := &coordinationv1.BeginCallRequest{Api: "a", Operation: "op", Key: "r", Timeout: durationpb.New(10 * time.Second)}
	for _, f := range change {
		f(req)
	}
	was := proto.CloneOf(b.state)
	got, err := b.ledger().begin(b.row, req, "")
	if err != nil || got.put == nil {
		b.state = was // as the runtime does where nothing is stored
		return got.res, err
	}
	b.row = got.put
	if got.res.GetDecision() == proceed {
		b.sent++
	}
	return got.res, nil
}

func (b *book) complete(token int32) error {
	return b.finish(&coordinationv1.FinishCallRequest{
		FencingToken: token, Result: &coordinationv1.FinishCallRequest_Completed{Completed: &coordinationv1.Outcome{HttpStatus: 200}},
	})
}

func (b *book) fail(token int32, f coordinationv1.Failure, change ...func(*coordinationv1.CallFailure)) error {
	failed := &coordinationv1.CallFailure{Failure: f}
	for _, g := range change {
		g(failed)
	}
	return b.finish(&coordinationv1.FinishCallRequest{FencingToken: token, Result: &coordinationv1.FinishCallRequest_Failed{Failed: failed}})
}

func (b *book) finish(req *coordinationv1.FinishCallRequest) error {
	was := proto.CloneOf(b.state)
	r, err := b.ledger().finish(b.row, req)
	if err != nil || r == nil {
		b.state = was
		return err
	}
	b.row = r
	return nil
}

func reconciles(r *coordinationv1.BeginCallRequest) { r.Reconcile = true }

func TestTransitionsOfTheLedger(t *testing.T) {
	t.Parallel()
	const (
		retryable = coordinationv1.Failure_FAILURE_RETRYABLE
		terminal  = coordinationv1.Failure_FAILURE_TERMINAL
		unsure    = coordinationv1.Failure_FAILURE_UNKNOWN
	)
	type step = func(*testing.T, *book)
	begins := func(want coordinationv1.Decision, change ...func(*coordinationv1.BeginCallRequest)) step {
		return func(t *testing.T, b *book) {
			t.Helper()
			got, err := b.begin(change...)
			if err != nil || got.GetDecision() != want {
				t.Fatalf("begun: %v, %v; want %v", got, err, want)
			}
		}
	}
	completes := func(lease int32, want error) step {
		return func(t *testing.T, b *book) {
			t.Helper()
			if err := b.complete(lease); !errors.Is(err, want) {
				t.Fatalf("completed: %v, want %v", err, want)
			}
		}
	}
	fails := func(lease int32, f coordinationv1.Failure, want error, change ...func(*coordinationv1.CallFailure)) step {
		return func(t *testing.T, b *book) {
			t.Helper()
			if err := b.fail(lease, f, change...); !errors.Is(err, want) {
				t.Fatalf("failed: %v, want %v", err, want)
			}
		}
	}
	later := func(d time.Duration) step { return func(_ *testing.T, b *book) { b.now = b.now.Add(d) } }
	again := func(id string) func(*coordinationv1.BeginCallRequest) {
		return func(r *coordinationv1.BeginCallRequest) { r.RequestId = id }
	}
	unsent := func(r *coordinationv1.CallFailure) { r.NotSent, r.NotDown = true, true }
	after := func(r *coordinationv1.CallFailure) { r.RetryAfter = durationpb.New(5 * time.Second) }
	for name, steps := range map[string][]step{
		"completed":               {begins(proceed), begins(inFlight), completes(1, nil), completes(1, nil), begins(done), fails(1, unsure, errCallDone)},
		"failed for good":         {begins(proceed), fails(1, terminal, nil), fails(1, terminal, nil), begins(done), completes(1, errCallDone)},
		"tried again":             {begins(proceed), fails(1, retryable, nil), fails(1, retryable, nil), begins(wait), later(time.Second), begins(proceed), completes(1, errLeaseLost), completes(2, nil)},
		"not sent":                {begins(proceed), fails(1, retryable, nil, unsent), begins(proceed), completes(2, nil)},
		"at once":                 {begins(proceed), fails(1, retryable, nil, func(r *coordinationv1.CallFailure) { r.RetryAfter = &durationpb.Duration{} }), begins(proceed)},
		"twice":                   {begins(proceed), fails(1, retryable, nil), later(time.Second), begins(proceed), fails(2, retryable, nil), later(time.Second - 1), begins(wait), later(time.Second), begins(proceed)},
		"not before":              {begins(proceed), fails(1, retryable, nil, after), begins(wait), later(5 * time.Second), begins(proceed)},
		"the lease ends":          {begins(proceed), later(10 * time.Second), begins(unknown), begins(unknown), later(time.Hour), begins(unknown)},
		"an answer that is late":  {begins(proceed), later(time.Hour), completes(1, nil), begins(done)},
		"late, and seen":          {begins(proceed), later(time.Hour), begins(unknown), completes(1, nil), begins(done)},
		"late, and reconciling":   {begins(proceed), later(time.Hour), begins(reconcile, reconciles), completes(1, nil), begins(done), completes(2, nil)},
		"late, and found not":     {begins(proceed), later(time.Hour), begins(reconcile, reconciles), fails(2, retryable, nil), completes(1, nil), begins(done)},
		"late, and sent again":    {begins(proceed), later(time.Hour), begins(reconcile, reconciles), fails(2, retryable, nil), begins(proceed), completes(1, errLeaseLost)},
		"unknown, then found":     {begins(proceed), fails(1, unsure, nil), begins(unknown), begins(reconcile, reconciles), begins(inFlight), begins(inFlight, reconciles), completes(2, nil), begins(done)},
		"unknown, then not":       {begins(proceed), fails(1, unsure, nil), begins(reconcile, reconciles), fails(2, retryable, nil), begins(wait, reconciles), begins(proceed)},
		"unknown, and still":      {begins(proceed), fails(1, unsure, nil), begins(reconcile, reconciles), fails(2, unsure, nil), begins(unknown), begins(reconcile, reconciles)},
		"the reconciler dies":     {begins(proceed), fails(1, unsure, nil), begins(reconcile, reconciles), later(10 * time.Second), begins(unknown), begins(reconcile, reconciles), fails(2, retryable, errLeaseLost)},
		"an answer that was lost": {begins(proceed, again("b-1")), begins(proceed, again("b-1")), begins(inFlight, again("b-2")), completes(1, nil)},
		"that of a reconciler":    {begins(proceed), fails(1, unsure, nil), begins(reconcile, reconciles, again("b")), begins(reconcile, reconciles, again("b")), begins(inFlight, again("b"))},
		"forgotten":               {begins(proceed), completes(1, nil), later(7 * 24 * time.Hour), begins(proceed)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBook()
			for _, s := range steps {
				s(t, b)
			}
		})
	}
}

func TestAttemptsAreCounted(t *testing.T) {
	t.Parallel()
	b := newBook()
	b.conf.MaxAttempts = 3
	for i := range 3 {
		b.now = b.now.Add(lastBackoff)
		if got, err := b.begin(); err != nil || got.GetDecision() != proceed || b.row.GetAttempt() != int32(i+1) {
			t.Fatalf("attempt %d: %v, %v", i+1, got, err)
		}
		if err := b.fail(b.row.GetFencingToken(), coordinationv1.Failure_FAILURE_RETRYABLE); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		got, err := b.begin()
		if err != nil || got.GetDecision() != done || b.row.GetStatus() != storev1.CallStatus_CALL_STATUS_FAILED {
			t.Errorf("one more: %v, %v", got, err)
		}
	}
	if b.state.GetToday().GetFailed() != 1 || b.state.GetToday().GetBegun() != 1 || b.state.GetToday().GetRetryable() != 3 {
		t.Errorf("usage: %v", b.state.GetToday())
	}
}

func TestAnotherCallOfTheSameKey(t *testing.T) {
	t.Parallel()
	b := newBook()
	if _, err := b.begin(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*coordinationv1.BeginCallRequest){
		"fingerprint": func(r *coordinationv1.BeginCallRequest) { r.Fingerprint = "other" },
		"operation":   func(r *coordinationv1.BeginCallRequest) { r.Operation = "other" },
	} {
		if _, err := b.begin(change); !errors.Is(err, errReused) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	if _, err := newBook().begin(reconciles); !errors.Is(err, errNoCall) {
		t.Errorf("to reconcile what is not there: %v", err)
	}
}

// What was not sent takes nothing; what runs at once is given back however a call ends.
func TestAttemptsGiveBack(t *testing.T) {
	t.Parallel()
	p := sliding(1, time.Hour)
	at := &storev1.Policy{Name: "at-once", Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 1}
	for name, tt := range map[string]struct {
		end       func(*book) error
		permits   int64 // left
		atOnce    int64
		thenBegin coordinationv1.Decision
	}{
		"not sent": {func(b *book) error {
			return b.fail(1, coordinationv1.Failure_FAILURE_RETRYABLE, func(r *coordinationv1.CallFailure) { r.NotSent, r.NotDown = true, true })
		}, 1, 1, proceed},
		"not sent, nobody was there": {func(b *book) error {
			return b.fail(1, coordinationv1.Failure_FAILURE_RETRYABLE, func(r *coordinationv1.CallFailure) { r.NotSent = true })
		}, 1, 1, wait},
		"retryable": {func(b *book) error { return b.fail(1, coordinationv1.Failure_FAILURE_RETRYABLE) }, 0, 1, wait},
		"completed": {func(b *book) error { return b.complete(1) }, 0, 1, done},
		"under way": {func(*book) error { return nil }, 0, 0, inFlight},
		"its lease ended": {func(b *book) error {
			b.now = b.now.Add(time.Minute)
			return nil
		}, 0, 1, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBook()
			b.conf.Policies = []policy{p, at}
			if got, err := b.begin(); err != nil || got.GetDecision() != proceed {
				t.Fatalf("begun: %v, %v", got, err)
			}
			if err := tt.end(b); err != nil {
				t.Fatal(err)
			}
			got := standings(b.state, nil, b.conf, b.now)
			if got[0].GetRemaining() != tt.permits || got[1].GetRemaining() != tt.atOnce {
				t.Errorf("left: %v", got)
			}
			if got, err := b.begin(); err != nil || got.GetDecision() != tt.thenBegin {
				t.Errorf("begun again: %v, %v", got, err)
			}
		})
	}
}

// A call's true cost is charged once it is known.
func TestCostIsCorrected(t *testing.T) {
	t.Parallel()
	for actual, left := range map[int64]int64{0: 100, 10: 90, 30: 70, 200: 0} {
		b := newBook()
		p := sliding(100, time.Hour)
		p.Unit = storev1.Unit_UNIT_COST
		b.conf.Policies = []policy{p}
		if _, err := b.begin(func(r *coordinationv1.BeginCallRequest) { r.Cost = 30 }); err != nil {
			t.Fatal(err)
		}
		r, err := b.ledger().finish(b.row, &coordinationv1.FinishCallRequest{FencingToken: 1, Cost: &actual})
		if err != nil || r.GetCost() != actual {
			t.Fatal(r, err)
		}
		if got := standings(b.state, nil, b.conf, b.now)[0].GetRemaining(); got != left || b.state.GetToday().GetCost() != actual {
			t.Errorf("after a cost of %d: %d left, %v", actual, got, b.state.GetToday())
		}
	}
}

// Whatever callers do and whenever, nothing is sent while it may be on its way or have happened: each attempt but the
// last was said not to have happened by one who had the lease, before the next began. And what is completed stays.
func TestNothingIsSentTwice(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		b := newBook()
		b.conf.MaxAttempts = 1000
		// deny are the leases that may say that it did not happen: that of the attempt, and of who reconciles it.
		open, completed := false, false // an attempt may be on its way or have happened
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			b.now = b.now.Add(time.Duration(rapid.SampledFrom([]int64{0, 1, 5, 9, 10, 11, 60}).Draw(t, "s")) * time.Second)
			lease := rapid.Int32Range(1, max(1, b.row.GetFencingToken()+1)).Draw(t, "lease")
			attempt := b.row.GetAttemptToken()
			switch rapid.SampledFrom([]string{"begin", "begin", "reconcile", "complete", "retryable", "terminal", "unknown"}).Draw(t, "do") {
			case "begin":
				got, err := b.begin()
				if err != nil {
					t.Fatal(err)
				}
				if got.GetDecision() == proceed {
					if open || completed {
						t.Fatalf("sent again: %v", b.row)
					}
					open = true
				}
				if completed && got.GetDecision() != done {
					t.Fatalf("completed, and then %v", got)
				}
			case "reconcile":
				if got, err := b.begin(reconciles); err == nil && got.GetDecision() == proceed {
					t.Fatalf("sent by who reconciles: %v", got)
				}
			case "complete":
				if b.row != nil && b.complete(lease) == nil {
					completed = true
				}
			case "retryable":
				if b.row == nil || b.fail(lease, coordinationv1.Failure_FAILURE_RETRYABLE) != nil {
					continue
				}
				if lease < attempt {
					t.Fatalf("lease %d of an older attempt than %d says that it did not happen", lease, attempt)
				}
				open = false
			case "terminal":
				if b.row != nil && b.fail(lease, coordinationv1.Failure_FAILURE_TERMINAL) == nil {
					open = true // nothing may follow
				}
			case "unknown":
				if b.row != nil {
					_ = b.fail(lease, coordinationv1.Failure_FAILURE_UNKNOWN)
				}
			}
			holds := b.row != nil && holdsLease(b.row)
			if listed := slices.ContainsFunc(b.state.GetInFlight(), func(f *storev1.InFlight) bool { return f.GetSeq() == b.row.GetSeq() }); listed != holds {
				t.Fatalf("in flight: %v; listed as such: %v", b.row, listed)
			}
		}
	})
}

func TestBreaker(t *testing.T) {
	t.Parallel()
	const (
		closed   = storev1.BreakerStatus_BREAKER_STATUS_CLOSED
		open     = storev1.BreakerStatus_BREAKER_STATUS_OPEN
		halfOpen = storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN
	)
	c := &storev1.BreakerConfig{FailureThreshold: 3, OpenFor: durationpb.New(time.Minute)}
	opened := func() *storev1.Breaker {
		b := &storev1.Breaker{}
		for range 3 {
			breakerHears(b, c, 0, healthDown, epoch)
		}
		return b
	}
	b := opened()
	if b.GetStatus() != open || b.GetGeneration() != 1 || b.GetOpenCount() != 1 || !b.GetRetryTime().AsTime().Equal(epoch.Add(time.Minute)) {
		t.Fatalf("after three failures: %v", b)
	}
	// Late results of the time before change nothing.
	for _, h := range []health{healthDown, healthUp, healthNone} {
		if breakerHears(b, c, 0, h, epoch.Add(time.Second)) {
			t.Errorf("a late result: %v", b)
		}
	}
	if at, _ := breakerPasses(b, c, epoch.Add(time.Second)); !at.Equal(epoch.Add(time.Minute)) {
		t.Errorf("passes at %v", at)
	}
	minute := epoch.Add(time.Minute)
	if at, probe := breakerPasses(b, c, minute); !at.Equal(minute) || !probe {
		t.Errorf("after a minute: %v, %v", at, probe)
	}
	for name, tt := range map[string]struct {
		h     health
		want  storev1.BreakerStatus
		again time.Duration
	}{"up": {healthUp, closed, 0}, "down": {healthDown, open, time.Minute}, "nothing": {healthNone, open, 0}} {
		b := opened()
		startProbe(b, c, 10*time.Second, minute)
		if at, _ := breakerPasses(b, c, minute); b.GetStatus() != halfOpen || !at.Equal(minute.Add(10*time.Second)) {
			t.Errorf("beside a probe: %v at %v", b, at)
		}
		if breakerHears(b, c, 1, healthUp, minute) {
			t.Errorf("a result from before the probe counts: %v", b)
		}
		breakerHears(b, c, 2, tt.h, minute)
		at, _ := breakerPasses(b, c, minute)
		if b.GetStatus() != tt.want || at.Sub(minute) != tt.again || b.GetOpenCount() != 1 {
			t.Errorf("%s: %v, passes in %v", name, b, at.Sub(minute))
		}
	}
	// A probe that is lost makes room for the next.
	startProbe(b, c, 10*time.Second, minute)
	lost := minute.Add(10 * time.Second)
	if at, probe := breakerPasses(b, c, lost); !at.Equal(lost) || !probe {
		t.Errorf("after a probe was lost: %v, %v", at, probe)
	}
	startProbe(b, c, 10*time.Second, lost)
	if breakerHears(b, c, 2, healthUp, lost) {
		t.Errorf("the lost probe counts: %v", b)
	}
	off := &storev1.BreakerConfig{Disabled: true}
	b = &storev1.Breaker{}
	for range 30 {
		breakerHears(b, off, 0, healthDown, epoch)
	}
	if at, _ := breakerPasses(b, off, epoch); b.GetGeneration() != 0 || !at.Equal(epoch) {
		t.Errorf("disabled: %v", b)
	}
}

// The provider is down for two minutes: thirty callers on three processes, asking as often as they are told to, open the
// breaker once and send at most one probe at a time, one each open_for.
func TestTwoMinutesOfOutage(t *testing.T) {
	t.Parallel()
	const minutes = 2
	s := bucketStore{state: &storev1.ApiState{Breaker: &storev1.Breaker{}}}
	c := &storev1.ApiConfig{Breaker: &storev1.BreakerConfig{OpenFor: durationpb.New(20 * time.Second)}}
	type call struct {
		ends       time.Time
		generation int64
	}
	var running []call
	next := make([]time.Time, 30)
	sent, downUntil := 0, epoch.Add(minutes*time.Minute)
	for now := epoch; now.Before(downUntil.Add(time.Minute)); now = now.Add(100 * time.Millisecond) {
		for i := 0; i < len(running); i++ {
			if now.Before(running[i].ends) {
				continue
			}
			h := healthUp
			if now.Before(downUntil) {
				h = healthDown
			}
			breakerHears(s.state.GetBreaker(), c.GetBreaker(), running[i].generation, h, now)
			running = slices.Delete(running, i, i+1)
			i--
		}
		for i := range next {
			if now.Before(next[i]) {
				continue
			}
			v := acquire(s, c, &demand{permits: 1}, false, now)
			if !v.allowed {
				if !v.retryAt.After(now) {
					t.Fatalf("refused until %v at %v", v.retryAt, now)
				}
				next[i] = v.retryAt
				continue
			}
			sent++
			running = append(running, call{now.Add(time.Second), s.state.GetBreaker().GetGeneration()})
			next[i] = now.Add(time.Second + time.Duration(i)*time.Millisecond)
			if s.state.GetBreaker().GetStatus() == storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN {
				probes := 0
				for _, r := range running {
					if r.generation == s.state.GetBreaker().GetGeneration() {
						probes++
					}
				}
				if probes != 1 {
					t.Fatalf("%d probes at once", probes)
				}
			}
		}
		if now.Equal(downUntil) {
			// 30 at first, then a probe for each 20 s that the breaker was open.
			if most := 30 + minutes*60/20; sent > most {
				t.Errorf("%d calls while the provider was down, more than %d", sent, most)
			}
		}
	}
	if b := s.state.GetBreaker(); b.GetOpenCount() != 1 || b.GetStatus() != storev1.BreakerStatus_BREAKER_STATUS_CLOSED || sent < 60 {
		t.Errorf("in the end: %v, %d calls", b, sent)
	}
}

func TestUsageDays(t *testing.T) {
	t.Parallel()
	s, c := &storev1.ApiState{}, &storev1.ApiConfig{TimeZone: "America/Los_Angeles"}
	one := countPermits("op", 1, 10)
	midnight := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	if over := countUsage(s, c, midnight.Add(-time.Second), one); over != nil {
		t.Errorf("the first: %v", over)
	}
	over := countUsage(s, c, midnight, one)
	if over.GetDate() != "2026-11-23" || over.GetPermits() != 1 || s.GetToday().GetDate() != "2026-11-24" {
		t.Errorf("after midnight: %v, %v", over, s.GetToday())
	}
	// A process whose clock is behind counts it all the same.
	if over := countUsage(s, c, midnight.Add(-time.Millisecond), one); over != nil || s.GetToday().GetPermits() != 2 {
		t.Errorf("a little earlier: %v, %v", over, s.GetToday())
	}
	for i := range 2 * maxOperations {
		countUsage(s, c, midnight, countPermits(fmt.Sprint("op-", i), 1, 0))
	}
	if n := len(s.GetToday().GetOperations()); n != maxOperations+1 || s.GetToday().GetOperations()["other"] == 0 {
		t.Errorf("%d operations: %v", n, s.GetToday())
	}
}
