package coordination

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

// The circuit breaker of an API and tenant. It is part of the API's object, so it is one for all processes:
//
//	        failure_threshold failures                 open_for is over: one call, the probe
//	closed ────────────────────────────> open ──────────────────────────────────────────> half-open
//	  ^                                    ^         the probe fails                         │
//	  │                                    └─────────────────────────────────────────────────┤
//	  └──────────────────────────────────────────────────────────────────────────────────────┘
//	                                                 the probe succeeds
//
// Each arrow begins a generation. A result counts only in the generation in which its call began, so what was on its way
// when the breaker opened neither opens it again nor closes it. A probe that is never heard of again makes room
// for the next one when its lease is over.

const (
	defaultFailureThreshold = 5
	defaultOpenFor          = 60 * time.Second
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

// breakerPasses tells when a call may pass, a time not after now if it may now, and whether it would be the probe.
func breakerPasses(b *storev1.Breaker, c *storev1.BreakerConfig, now time.Time) (at time.Time, probe bool) {
	switch {
	case c.GetDisabled():
		return now, false
	case b.GetStatus() == storev1.BreakerStatus_BREAKER_STATUS_OPEN, b.GetStatus() == storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN:
		return later(now, b.GetRetryTime().AsTime()), true
	}
	return now, false
}

// startProbe lets one call pass, for as long as lease.
func startProbe(b *storev1.Breaker, lease time.Duration, now time.Time) {
	turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN)
	b.RetryTime = timestamppb.New(now.Add(lease))
}

// breakerHears counts the end of a call that began in a generation. It tells whether anything has changed.
func breakerHears(b *storev1.Breaker, c *storev1.BreakerConfig, generation int64, h health, now time.Time) bool {
	if c.GetDisabled() || generation != b.GetGeneration() {
		return false
	}
	switch b.GetStatus() {
	case storev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN:
		switch h {
		case healthUp:
			turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_CLOSED)
			b.RetryTime = nil
		case healthDown:
			turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_OPEN)
			b.RetryTime = timestamppb.New(now.Add(openFor(c)))
		default: // another call may be the probe, at once
			turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_OPEN)
			b.RetryTime = timestamppb.New(now)
		}
		return true
	case storev1.BreakerStatus_BREAKER_STATUS_OPEN:
		return false
	default: // closed
	}
	switch h {
	case healthUp:
		had := b.GetConsecutiveFailures() > 0
		b.ConsecutiveFailures = 0
		return had
	case healthDown:
		b.ConsecutiveFailures++
		if b.GetConsecutiveFailures() >= failureThreshold(c) {
			turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_OPEN)
			b.OpenTime, b.RetryTime = timestamppb.New(now), timestamppb.New(now.Add(openFor(c)))
			b.OpenCount++
		}
		return true
	default:
		return false
	}
}

func turnBreaker(b *storev1.Breaker, s storev1.BreakerStatus) {
	b.Status, b.ConsecutiveFailures = s, 0
	b.Generation++
}
