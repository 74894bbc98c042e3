package coordination

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/coordination/dialect"
	"holdfast/handlers/rpc"
)

// observe reads a provider's answer to a call that was sent at some time; zero: nobody knows when.
func observe(r *coordinationv1.ProviderResponse, sent, now time.Time) *dialect.Reading {
	return dialect.Read(dialect.Answer{
		Status: int(r.GetHttpStatus()), Header: r.GetHeaders(), Body: r.GetBody(), At: now.Add(-r.GetAge().AsDuration()), Sent: sent,
	})
}

// observedLimits is what a provider said about its budgets, as callers may see it.
func observedLimits(o *dialect.Reading) (all []*coordinationv1.ObservedLimit) {
	for _, b := range o.Budgets {
		l := &coordinationv1.ObservedLimit{Dimension: b.Dimension, ResetTime: rpc.Timestamp(b.Reset), Model: b.Model}
		if b.Limit >= 0 {
			l.Limit = &b.Limit
		}
		if b.Remaining >= 0 {
			l.Remaining = &b.Remaining
		}
		if b.Window > 0 {
			l.Window = durationpb.New(b.Window)
		}
		all = append(all, l)
	}
	return all
}

// correct makes the policies that cover an operation agree with what a provider said. It only makes them tighter; a limit
// rises only where mayRaise. It returns the names of the policies that it changed, and whether it paused the API. sent is when the
// call was sent; zero: nobody knows.
func correct(s bucketStore, c *storev1.ApiConfig, d *demand, o *dialect.Reading, mayRaise bool, sent, now time.Time) (corrected []string, paused bool) {
	named := false // the provider said which budget is used up, and some policy waits for that budget
	for _, l := range o.Budgets {
		for _, p := range about(c, d, l, now) {
			b := s.bucket(p, now)
			changed := observeLimit(p, b, l, mayRaise, now)
			changed = lower(p, b, l, o, now) || changed
			if changed && !slices.Contains(corrected, p.GetName()) {
				corrected = append(corrected, p.GetName())
			}
			named = named || l.Remaining == 0 && passes(p, b, 1, now).After(now)
		}
	}
	slices.SortStableFunc(corrected, func(a, b string) int { return indexOfPolicy(c, a) - indexOfPolicy(c, b) })
	until := againAt(o)
	switch {
	case named:
	case !until.IsZero():
		if until.After(later(now, s.state.GetPauseUntil().AsTime())) {
			s.state.PauseUntil, paused = stamp(until), true
		}
	case o.Refused:
		paused = backOff(s.state, sent, now)
	}
	return corrected, paused
}

// againAt is when a provider wants to be asked again: when it says so, or else when there is more of what its refusal says is used up,
// or may be. Zero: it does not say, or nothing that lies ahead.
func againAt(o *dialect.Reading) (at time.Time) {
	if !o.RetryAt.IsZero() || !o.Refused {
		return o.RetryAt
	}
	for _, remaining := range []int64{0, -1} {
		for _, l := range o.Budgets {
			if l.Remaining == remaining && l.Reset.After(later(at, o.At)) {
				at = l.Reset
			}
		}
		if !at.IsZero() {
			break
		}
	}
	return at
}

func indexOfPolicy(c *storev1.ApiConfig, name string) int {
	return slices.IndexFunc(c.GetPolicies(), func(p policy) bool { return p.GetName() == name })
}

// about are the policies that a provider's budget is about: those of its dimension, and of them those of its window and model. Where
// the provider does not say how long a budget lasts, its reset tells, or its limit; else it is the shortest.
func about(c *storev1.ApiConfig, d *demand, l *dialect.Budget, now time.Time) (all []policy) {
	base, window := dialect.Split(l.Dimension)
	if l.Window > 0 {
		window = l.Window
	}
	exact := false
	for _, p := range c.GetPolicies() {
		if p.GetDimension() == "" || countsAtOnce(p) || !d.covers(p) {
			continue
		}
		name := strings.ToLower(p.GetDimension())
		of, _ := dialect.Split(name)
		switch {
		case window > 0:
			if (of == base || name == l.Dimension || of == l.Unit) && near(windowOf(p), window) {
				all = append(all, p)
			}
		case name == l.Dimension && !exact:
			exact, all = true, []policy{p}
		case name == l.Dimension, of == base && !exact:
			all = append(all, p)
		}
	}
	all = ofModel(all, l.Model)
	if window > 0 || len(all) < 2 {
		return all
	}
	least := func(fits func(policy) bool) (some []policy) {
		for _, p := range all {
			switch {
			case !fits(p):
			case len(some) == 0 || windowOf(p) < windowOf(some[0]):
				some = []policy{p}
			case windowOf(p) == windowOf(some[0]):
				some = append(some, p)
			}
		}
		return some
	}
	if left := l.Reset.Sub(now); left > 0 {
		if some := least(func(p policy) bool { return windowOf(p) >= left-left/10 }); len(some) > 0 {
			return some
		}
		longest := slices.MaxFunc(all, func(a, b policy) int { return int(windowOf(a)/time.Millisecond - windowOf(b)/time.Millisecond) })
		return least(func(p policy) bool { return windowOf(p) == windowOf(longest) })
	}
	if some := least(func(p policy) bool { return p.GetLimit() == l.Limit }); len(some) > 0 {
		return some
	}
	return least(func(policy) bool { return true })
}

// ofModel are the policies that name a model in their operations, or else those that name no operation, or else all.
func ofModel(all []policy, model string) []policy {
	if model == "" {
		return all
	}
	var own, general []policy
	for _, p := range all {
		switch {
		case len(p.GetOperations()) == 0:
			general = append(general, p)
		case slices.ContainsFunc(p.GetOperations(), func(o string) bool { return strings.Contains(strings.ToLower(o), model) }):
			own = append(own, p)
		}
	}
	switch {
	case len(own) > 0:
		return own
	case len(general) > 0:
		return general
	}
	return all
}

// windowOf is how long a policy's window is, or as a rule is.
func windowOf(p policy) time.Duration {
	if p.GetAlgorithm() != storev1.Algorithm_ALGORITHM_CALENDAR {
		return p.GetPeriod().AsDuration()
	}
	const day = 24 * time.Hour
	return map[storev1.Calendar]time.Duration{
		storev1.Calendar_CALENDAR_MINUTE: time.Minute, storev1.Calendar_CALENDAR_HOUR: time.Hour, storev1.Calendar_CALENDAR_DAY: day,
		storev1.Calendar_CALENDAR_WEEK: 7 * day, storev1.Calendar_CALENDAR_MONTH: 30 * day,
	}[p.GetCalendar()]
}

// near reports whether two windows are the same but for how many days a month has.
func near(a, b time.Duration) bool { return (a - b).Abs() <= b/10 }

// observeLimit takes over the provider's own limit.
func observeLimit(p policy, b bucket, l *dialect.Budget, mayRaise bool, now time.Time) bool {
	was, is := limitOf(p, b), l.Limit
	if is < 1 || is == was || is > was && !mayRaise {
		return false
	}
	if p.GetAlgorithm() == storev1.Algorithm_ALGORITHM_GCRA {
		// What is in the bucket stays, but drains at another rate.
		units := owed(p, b, now)
		b.ObservedLimit = is
		b.Tat = stamp(now.Add(times(units, emission(p, b))))
	}
	if b.ObservedLimit = is; is == p.GetLimit() {
		b.ObservedLimit = 0
	}
	return true
}

// owed is how many units a leaky bucket has yet to drain.
func owed(p policy, b bucket, now time.Time) int64 {
	e := emission(p, b)
	return int64((later(b.GetTat().AsTime(), now).Sub(now) + e - 1) / e)
}

// lower takes what others must have taken, where the provider says that less remains than is counted here, and closes a policy of
// which nothing remains until the provider says that there is more. What is over by then changes nothing.
func lower(p policy, b bucket, l *dialect.Budget, o *dialect.Reading, now time.Time) (changed bool) {
	if l.Remaining < 0 {
		return false
	}
	reset := l.Reset
	if l.Remaining == 0 && o.Refused && !o.RetryAt.IsZero() {
		reset = o.RetryAt // it wins: draft-ietf-httpapi-ratelimit-headers, 6.3
		if l.Reset.IsZero() && p.GetAlgorithm() == storev1.Algorithm_ALGORITHM_CALENDAR {
			reset = later(reset, b.GetWindowEnd().AsTime()) // a day's quota is not there again after Google's retry delay
		}
	}
	if !reset.IsZero() && !reset.After(now) {
		return false
	}
	if more := standing(p, b, now).GetRemaining() - l.Remaining; more > 0 {
		changed = lowerBy(p, b, more, l.Remaining == 0, reset, now)
	}
	if l.Remaining == 0 && o.Refused && reset.IsZero() && p.GetAlgorithm() == storev1.Algorithm_ALGORITHM_CALENDAR {
		reset = b.GetWindowEnd().AsTime()
	}
	if l.Remaining == 0 && reset.After(later(now, b.GetBlockedUntil().AsTime())) {
		b.BlockedUntil, changed = stamp(reset), true
	}
	return changed
}

// lowerBy takes so many units, so that they are there again at the reset, if it is known, and no later than if they had been taken now.
// all: nothing remains.
func lowerBy(p policy, b bucket, more int64, all bool, reset, now time.Time) bool {
	switch p.GetAlgorithm() {
	case storev1.Algorithm_ALGORITHM_SLIDING:
		at := slotTime(p, now)
		if freed := reset.Add(-hold(p)); reset.After(now) && freed.Before(now) {
			if at = slotTime(p, freed); all && at.After(freed) {
				at = at.Add(-slotStep(p)) // the policy is closed until the reset anyway
			}
		}
		putSlot(b, at, more)
	case storev1.Algorithm_ALGORITHM_GCRA:
		tat := later(b.GetTat().AsTime(), now).Add(times(more, emission(p, b)))
		if reset.After(now) && reset.Before(tat) {
			tat = later(reset, b.GetTat().AsTime())
		}
		b.Tat, b.LastTime, b.LastUnits = stamp(tat), nil, 0
	default:
		// A reset long before the calendar turns is not about this window.
		if !reset.IsZero() && reset.Before(b.GetWindowEnd().AsTime().Add(-windowOf(p)/20)) {
			return false
		}
		take(p, b, more, now)
	}
	return true
}

const (
	firstBackoff = time.Second
	lastBackoff  = 5 * time.Minute
)

// backoff is how long the n-th refusal in a row keeps everybody waiting where the provider does not say: twice as long each time, and
// between half of that and all of it, so that the tenants of one provider do not come together. A seed makes it the same when a change
// runs again.
func backoff(n int32, now time.Time) time.Duration {
	d := lastBackoff
	if n < 10 {
		d = min(lastBackoff, firstBackoff<<max(0, n-1))
	}
	r := rand.New(rand.NewPCG(uint64(now.UnixNano()), uint64(n))) //nolint:gosec // it is jitter
	return d/2 + time.Duration(r.Int64N(int64(d/2)+1))
}

// backOff pauses an API whose provider refused and did not say for how long. What was sent before the last pause began was refused
// together with the call that began it: it neither makes the pause longer nor begins another.
func backOff(s *storev1.ApiState, sent, now time.Time) bool {
	was := s.GetBackoff()
	if was != nil && (now.Before(was.GetUntil().AsTime()) || !sent.IsZero() && !sent.After(was.GetSince().AsTime())) {
		return false
	}
	n := min(was.GetRefusals(), 20) + 1
	until := now.Add(backoff(n, now))
	s.Backoff = &storev1.Backoff{Refusals: n, Since: stamp(now), Until: stamp(until)}
	s.PauseUntil = stamp(later(until, s.GetPauseUntil().AsTime()))
	return true
}

// succeeded ends the refusals in a row, where the call was sent after the last of them.
func succeeded(s *storev1.ApiState, sent, now time.Time) bool {
	was := s.GetBackoff()
	switch {
	case was == nil, sent.IsZero() && now.Before(was.GetUntil().AsTime()), !sent.IsZero() && !sent.After(was.GetSince().AsTime()):
		return false
	}
	s.Backoff = nil
	return true
}
