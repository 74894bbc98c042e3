package coordination

import (
	"hash/fnv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

// The circuit breaker of an API and tenant, or of one of its operations. It is part of the API's object, so it is one for all processes:
//
//	        too many failures                        open_for is over: so many calls, the probes
//	closed ────────────────────────────> open ──────────────────────────────────────────> half-open
//	  ^                                    ^         a probe fails                           │
//	  │                                    └─────────────────────────────────────────────────┤
//	  └──────────────────────────────────────────────────────────────────────────────────────┘
//	                                                 all probes succeed
//
// Too many are failure_threshold in a row, or failure_rate of at least min_calls in a window. A window begins with a failure, so
// that nothing is written while all goes well: calls before it do not count.
//
// Each arrow begins a generation. A result counts only in the generation in which its call began, so what was on its way
// when the breaker opened neither opens it again nor closes it. Probes that are never heard of again make room
// for the next ones when their lease is over.

const (
	defaultFailureThreshold = 5
	defaultOpenFor          = 60 * time.Second
	defaultFailureRate      = 0.5
	defaultMinCalls         = 20
	defaultBreakerWindow    = 60 * time.Second
)

// health is what a call's end says about whether the API is up.
type health int

const (
	healthNone health = iota // nothing
	healthUp
	healthDown
)

func openFor(c *storev1.BreakerConfig) time.Duration {
	if c.GetOpenFor() != nil {
		return c.GetOpenFor().AsDuration()
	}
	return defaultOpenFor
}

func failureThreshold(c *storev1.BreakerConfig) int32 {
	if c.GetFailureThreshold() > 0 {
		return c.GetFailureThreshold()
	}
	return defaultFailureThreshold
}

func orElse[N int32 | float64](n, other N) N {
	if n > 0 {
		return n
	}
	return other
}

func breakerWindow(c *storev1.BreakerConfig) time.Duration {
	if c.GetWindow() != nil {
		return c.GetWindow().AsDuration()
	}
	return defaultBreakerWindow
}

// slow is what a call's end says once it is known how long it took.
func slow(h health, c *storev1.BreakerConfig, took time.Duration) health {
	if h == healthUp && c.GetSlowAfter() != nil && took > c.GetSlowAfter().AsDuration() {
		return healthDown
	}
	return h
}

// maxBreakers bounds the operations that have a breaker of their own.
const maxBreakers = 64

// breaker is the one that counts the calls of an operation, made where there is none.
func (s bucketStore) breaker(c *storev1.ApiConfig, operation string) *storev1.Breaker {
	if c.GetBreaker().GetPerOperation() && operation != "" {
		b := s.state.GetOperationBreakers()[operation]
		if b == nil && len(s.state.GetOperationBreakers()) < maxBreakers {
			if s.state.OperationBreakers == nil {
				s.state.OperationBreakers = map[string]*storev1.Breaker{}
			}
			b = &storev1.Breaker{}
			s.state.OperationBreakers[operation] = b
		}
		if b != nil {
			return b
		}
	}
	if s.state.Breaker == nil {
		s.state.Breaker = &storev1.Breaker{}
	}
	return s.state.GetBreaker()
}

// operationMark is what a grant keeps of its operation, where operations have breakers of their own.
func operationMark(c *storev1.ApiConfig, operation string) int64 {
	if !c.GetBreaker().GetPerOperation() || operation == "" {
		return 0
	}
	h := fnv.New32a()
	h.Write([]byte(operation))
	return int64(h.Sum32())
}

// breakerOfGrant is the breaker that counts the call of a grant.
func (t *tx) breakerOfGrant(g grant) *storev1.Breaker {
	for operation := range t.state.GetOperationBreakers() {
		if g.operation != 0 && operationMark(t.config, operation) == g.operation {
			return t.breaker(t.config, operation)
		}
	}
	return t.breaker(t.config, "")
}

// breakerPasses tells when a call may pass, a time not after now if it may now, and whether it would be a probe.
func breakerPasses(b *storev1.Breaker, c *storev1.BreakerConfig, now time.Time) (at time.Time, probe bool) {
	switch {
	case c.GetDisabled():
		return now, false
	case b.GetStatus() == storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN && b.GetProbesBegun() < orElse(c.GetProbes(), 1):
		return now, true
	case b.GetStatus() == storev1.BreakerStatus_BREAKER_STATUS_OPEN, b.GetStatus() == storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN:
		return later(now, b.GetRetryTime().AsTime()), true
	}
	return now, false
}

// startProbe lets one call pass, for as long as lease.
func startProbe(b *storev1.Breaker, c *storev1.BreakerConfig, lease time.Duration, now time.Time) {
	until := now.Add(lease)
	if b.GetStatus() == storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN && b.GetProbesBegun() < orElse(c.GetProbes(), 1) {
		until = later(until, b.GetRetryTime().AsTime())
	} else {
		turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN)
	}
	b.ProbesBegun++
	b.RetryTime = timestamppb.New(until)
}

// breakerHears counts the end of a call that began in a generation. It reports whether anything has changed.
func breakerHears(b *storev1.Breaker, c *storev1.BreakerConfig, generation int64, h health, now time.Time) bool {
	if c.GetDisabled() || generation != b.GetGeneration() {
		return false
	}
	switch b.GetStatus() {
	case storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN:
		switch {
		case h == healthDown:
			turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_OPEN)
			b.RetryTime = timestamppb.New(now.Add(openFor(c)))
		case h == healthUp:
			if b.ProbesSucceeded++; b.GetProbesSucceeded() >= orElse(c.GetProbes(), 1) {
				turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_CLOSED)
				b.RetryTime = nil
			}
		case b.GetProbesBegun() > 1:
			b.ProbesBegun--
		default: // another call may be the probe, at once
			turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_OPEN)
			b.RetryTime = timestamppb.New(now)
		}
		return true
	case storev1.BreakerStatus_BREAKER_STATUS_OPEN:
		return false
	default: // closed
	}
	if h == healthNone {
		return false
	}
	changed := countInWindow(b, c, h, now)
	if h == healthUp {
		changed = changed || b.GetConsecutiveFailures() > 0
		b.ConsecutiveFailures = 0
	} else {
		b.ConsecutiveFailures++
	}
	if b.GetConsecutiveFailures() >= failureThreshold(c) || h == healthDown && tooManyFail(b, c, now) {
		turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_OPEN)
		b.OpenTime, b.RetryTime = timestamppb.New(now), timestamppb.New(now.Add(openFor(c)))
		b.OpenCount++
	}
	return changed
}

// countInWindow counts a call in the window that runs, and forgets windows that are over.
func countInWindow(b *storev1.Breaker, c *storev1.BreakerConfig, h health, now time.Time) (changed bool) {
	if b.GetWindowTime() != nil {
		switch window, runs := breakerWindow(c), now.Sub(b.GetWindowTime().AsTime()); {
		case runs >= 2*window:
			forgetWindows(b)
			changed = true
		case runs >= window:
			b.PastCalls, b.PastFailures, b.Calls, b.Failures = b.GetCalls(), b.GetFailures(), 0, 0
			b.WindowTime = timestamppb.New(b.GetWindowTime().AsTime().Add(window))
			changed = true
		}
	}
	if b.GetWindowTime() == nil {
		if h == healthUp {
			return changed
		}
		b.WindowTime = timestamppb.New(now)
	}
	b.Calls++
	if h == healthDown {
		b.Failures++
	}
	return true
}

// tooManyFail weighs the window before by how much of it is within one window from now.
func tooManyFail(b *storev1.Breaker, c *storev1.BreakerConfig, now time.Time) bool {
	part := 1 - float64(now.Sub(b.GetWindowTime().AsTime()))/float64(breakerWindow(c))
	part = min(1, max(0, part))
	calls := float64(b.GetCalls()) + part*float64(b.GetPastCalls())
	failures := float64(b.GetFailures()) + part*float64(b.GetPastFailures())
	return calls >= float64(orElse(c.GetMinCalls(), defaultMinCalls)) && failures >= orElse(c.GetFailureRate(), defaultFailureRate)*calls
}

func forgetWindows(b *storev1.Breaker) {
	b.WindowTime, b.Calls, b.Failures, b.PastCalls, b.PastFailures = nil, 0, 0, 0, 0
}

func turnBreaker(b *storev1.Breaker, s storev1.BreakerStatus) {
	b.Status, b.ConsecutiveFailures, b.ProbesBegun, b.ProbesSucceeded = s, 0, 0, 0
	forgetWindows(b)
	b.Generation++
}
