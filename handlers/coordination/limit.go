package coordination

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

type (
	policy = *storev1.Policy
	bucket = *storev1.Bucket
)

// never is when a policy would let something pass that is more than it ever lets pass at once.
var never = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// limitOf is the limit in force: the provider's own, where it said one.
func limitOf(p policy, b bucket) int64 {
	if b.GetObservedLimit() > 0 {
		return b.GetObservedLimit()
	}
	return p.GetLimit()
}

// capacityOf is how much may be taken at once after a rest.
func capacityOf(p policy, b bucket) int64 {
	limit := limitOf(p, b)
	if p.GetAlgorithm() == storev1.Algorithm_ALGORITHM_GCRA && p.GetBurst() > 0 {
		return min(p.GetBurst(), limit)
	}
	return limit
}

// emission is the time in which a leaky bucket gains one unit, rounded up: never more than the limit in a period.
func emission(p policy, b bucket) time.Duration {
	period, limit := p.GetPeriod().AsDuration(), limitOf(p, b)
	return max(1, (period+time.Duration(limit)-1)/time.Duration(limit))
}

// hold is how long a unit of a sliding window stays in use.
func hold(p policy) time.Duration { return p.GetPeriod().AsDuration() + p.GetMargin().AsDuration() }

// maxSlots bounds what a sliding window remembers. Up to that many units each keep their own time. Larger windows
// remember in steps of a maxSlots'th of the period, rounded up: a unit is free again up to one step late, never early.
const maxSlots = 64

func slotTime(p policy, now time.Time) time.Time {
	if p.GetLimit() <= maxSlots {
		return now
	}
	t := now.Truncate(slotStep(p))
	if t.Before(now) {
		t = t.Add(slotStep(p))
	}
	return t
}

func slotStep(p policy) time.Duration { return max(1, p.GetPeriod().AsDuration()/maxSlots) }

// tidy forgets what is over.
func tidy(p policy, b bucket, now time.Time) {
	switch p.GetAlgorithm() {
	case storev1.Algorithm_ALGORITHM_SLIDING:
		over := func(s *storev1.Slot) bool { return !now.Before(s.GetTime().AsTime().Add(hold(p))) }
		for len(b.GetSlots()) > 0 && over(b.GetSlots()[0]) {
			b.Slots = b.GetSlots()[1:]
		}
		if b.GetNewest() != nil && over(b.GetNewest()) {
			b.Newest = nil
		}
	case storev1.Algorithm_ALGORITHM_CALENDAR:
		if !now.Before(b.GetWindowEnd().AsTime()) {
			// Finding a time zone takes longer than all else that a limit does: it is done once a window.
			zone := location(p.GetTimeZone())
			b.Used, b.WindowStart, b.WindowEnd = 0, stamp(windowStart(p.GetCalendar(), zone, now)), stamp(nextTurn(p.GetCalendar(), zone, now))
		}
	case storev1.Algorithm_ALGORITHM_CONCURRENCY:
		for id, l := range b.GetLeases() {
			if !now.Before(l.GetExpireTime().AsTime()) {
				delete(b.Leases, id)
			}
		}
	default: // a leaky bucket has one time, which is read by the clock
	}
	if !now.Before(b.GetBlockedUntil().AsTime()) {
		b.BlockedUntil = nil
	}
}

// used is how many units of a tidy bucket are in use, where units are counted one by one.
func used(p policy, b bucket) (n int64) {
	switch p.GetAlgorithm() {
	case storev1.Algorithm_ALGORITHM_SLIDING:
		for _, s := range b.GetSlots() {
			n += s.GetUnits()
		}
		n += b.GetNewest().GetUnits()
	case storev1.Algorithm_ALGORITHM_CALENDAR:
		n = b.GetUsed()
	case storev1.Algorithm_ALGORITHM_CONCURRENCY:
		for _, l := range b.GetLeases() {
			n += l.GetUnits()
		}
	default: // a leaky bucket counts time
	}
	return n
}

// passes tells when n units can be taken from a tidy bucket if nobody takes any before: a time not after now if they
// can be now, never if they never can. Taking nothing passes unless the provider has blocked the policy.
func passes(p policy, b bucket, n int64, now time.Time) time.Time {
	at := now
	if until := b.GetBlockedUntil().AsTime(); until.After(at) {
		at = until
	}
	if n <= 0 {
		return at
	}
	capacity := capacityOf(p, b)
	if n > capacity {
		return never
	}
	switch p.GetAlgorithm() {
	case storev1.Algorithm_ALGORITHM_GCRA:
		e := emission(p, b)
		tat := later(b.GetTat().AsTime(), now)
		return later(at, tat.Add(time.Duration(n-capacity)*e))
	case storev1.Algorithm_ALGORITHM_SLIDING:
		over := used(p, b) + n - capacity
		for _, s := range b.GetSlots() {
			if over <= 0 {
				break
			}
			over -= s.GetUnits()
			at = later(at, s.GetTime().AsTime().Add(hold(p)))
		}
		if over > 0 {
			at = later(at, b.GetNewest().GetTime().AsTime().Add(hold(p)))
		}
	case storev1.Algorithm_ALGORITHM_CALENDAR:
		if used(p, b)+n > capacity {
			at = later(at, b.GetWindowEnd().AsTime())
		}
	case storev1.Algorithm_ALGORITHM_CONCURRENCY:
		over := used(p, b) + n - capacity
		for _, l := range byExpiry(b) {
			if over <= 0 {
				break
			}
			over -= l.GetUnits()
			at = later(at, l.GetExpireTime().AsTime())
		}
	default: // refused by UpdateApi
	}
	return at
}

// take takes n units from a tidy bucket, whether or not they are there: who asks passes before takes within the limit.
// Concurrency is taken by takeLease.
func take(p policy, b bucket, n int64, now time.Time) {
	if n <= 0 {
		return
	}
	switch p.GetAlgorithm() {
	case storev1.Algorithm_ALGORITHM_GCRA:
		if !b.GetLastTime().AsTime().Equal(now) {
			b.LastTime, b.LastUnits = timestamppb.New(now), 0
		}
		b.LastUnits += n
		b.Tat = timestamppb.New(later(b.GetTat().AsTime(), now).Add(times(n, emission(p, b))))
	case storev1.Algorithm_ALGORITHM_SLIDING:
		putSlot(b, slotTime(p, now), n)
	case storev1.Algorithm_ALGORITHM_CALENDAR:
		b.Used += n
	default: // takeLease
	}
}

// putSlot adds what was taken at a time, in the order of time. Slots, and the list of them, are shared with earlier states:
// they are replaced.
func putSlot(b bucket, at time.Time, n int64) {
	newest := b.GetNewest()
	switch order := newest.GetTime().AsTime().Compare(at); {
	case newest != nil && order == 0:
		b.Newest = &storev1.Slot{Time: newest.GetTime(), Units: newest.GetUnits() + n}
		return
	case newest != nil && order < 0:
		b.Slots = append(slices.Clip(b.GetSlots()), newest)
		b.Newest = &storev1.Slot{Time: timestamppb.New(at), Units: n}
		return
	}
	i, found := slices.BinarySearchFunc(b.GetSlots(), at, func(s *storev1.Slot, t time.Time) int { return s.GetTime().AsTime().Compare(t) })
	if newest == nil && i == len(b.GetSlots()) {
		b.Newest = &storev1.Slot{Time: timestamppb.New(at), Units: n}
		return
	}
	slots, rest := b.GetSlots()[:i], b.GetSlots()[i:]
	slot := &storev1.Slot{Time: timestamppb.New(at), Units: n}
	if found {
		slot.Units += rest[0].GetUnits()
		rest = rest[1:]
	}
	b.Slots = slices.Concat(slots, []*storev1.Slot{slot}, rest)
}

// times is n units' time, at most a year: a bucket in debt for longer would never be seen out of it.
func times(n int64, e time.Duration) time.Duration {
	const most = 366 * 24 * time.Hour
	if n > int64(most/e) {
		return most
	}
	return time.Duration(n) * e
}

// giveBack returns n units that were taken at that time and not used, where the bucket is exactly as if they had never
// been taken; otherwise it does nothing.
func giveBack(p policy, b bucket, n int64, taken, now time.Time) {
	if n <= 0 {
		return
	}
	switch p.GetAlgorithm() {
	case storev1.Algorithm_ALGORITHM_GCRA:
		// Had others taken since, the bucket might have run empty in between, and filled less.
		if b.GetLastTime().AsTime().Equal(taken) && b.GetLastUnits() >= n {
			b.LastUnits -= n
			b.Tat = timestamppb.New(b.GetTat().AsTime().Add(-times(n, emission(p, b))))
		}
	case storev1.Algorithm_ALGORITHM_SLIDING:
		at := slotTime(p, taken)
		fits := func(s *storev1.Slot) bool {
			return s != nil && s.GetTime().AsTime().Equal(at) && s.GetUnits() >= n
		}
		without := func(s *storev1.Slot) []*storev1.Slot {
			if s.GetUnits() == n {
				return nil
			}
			return []*storev1.Slot{{Time: s.GetTime(), Units: s.GetUnits() - n}}
		}
		if fits(b.GetNewest()) {
			if left := without(b.GetNewest()); left != nil {
				b.Newest = left[0]
			} else {
				b.Newest = nil
			}
		} else if i := slices.IndexFunc(b.GetSlots(), fits); i >= 0 {
			b.Slots = slices.Concat(b.GetSlots()[:i], without(b.GetSlots()[i]), b.GetSlots()[i+1:])
		}
	case storev1.Algorithm_ALGORITHM_CALENDAR:
		if !taken.Before(b.GetWindowStart().AsTime()) && now.Before(b.GetWindowEnd().AsTime()) {
			b.Used = max(0, b.GetUsed()-n)
		}
	default: // releaseLease
	}
}

// takeLease takes n units of a concurrency policy under an id, or renews what the id has.
func takeLease(b bucket, id string, n int64, owner string, until time.Time) {
	if b.Leases == nil {
		b.Leases = map[string]*storev1.ConcurrencyLease{}
	}
	if l := b.GetLeases()[id]; l != nil { // shared with earlier states
		b.Leases[id] = &storev1.ConcurrencyLease{Units: l.GetUnits(), ExpireTime: timestamppb.New(until), Owner: l.GetOwner()}
		return
	}
	b.Leases[id] = &storev1.ConcurrencyLease{Units: n, ExpireTime: timestamppb.New(until), Owner: owner}
}

func byExpiry(b bucket) []*storev1.ConcurrencyLease {
	all := make([]*storev1.ConcurrencyLease, 0, len(b.GetLeases()))
	for _, l := range b.GetLeases() {
		all = append(all, l)
	}
	slices.SortFunc(all, func(x, y *storev1.ConcurrencyLease) int {
		return cmp.Or(x.GetExpireTime().AsTime().Compare(y.GetExpireTime().AsTime()), cmp.Compare(x.GetUnits(), y.GetUnits()))
	})
	return all
}

// standing is how far a tidy bucket is used up.
func standing(p policy, b bucket, now time.Time) *coordinationv1.Standing {
	s := &coordinationv1.Standing{
		Policy: p.GetName(), Limit: limitOf(p, b), Scope: coordinationv1.Scope(scopeOf(p)), Unit: coordinationv1.Unit(unitOf(p)),
	}
	full := now
	switch p.GetAlgorithm() {
	case storev1.Algorithm_ALGORITHM_GCRA:
		e, tat := emission(p, b), later(b.GetTat().AsTime(), now)
		s.Remaining = capacityOf(p, b) - int64((tat.Sub(now)+e-1)/e)
		s.Window, full = p.GetPeriod(), tat
	case storev1.Algorithm_ALGORITHM_SLIDING:
		s.Remaining, s.Window = s.GetLimit()-used(p, b), p.GetPeriod()
		if b.GetNewest() != nil {
			full = b.GetNewest().GetTime().AsTime().Add(hold(p))
		} else if last := len(b.GetSlots()) - 1; last >= 0 {
			full = b.GetSlots()[last].GetTime().AsTime().Add(hold(p))
		}
	case storev1.Algorithm_ALGORITHM_CALENDAR:
		s.Remaining, full = s.GetLimit()-used(p, b), b.GetWindowEnd().AsTime()
		s.Window = durationpb.New(full.Sub(b.GetWindowStart().AsTime()))
	case storev1.Algorithm_ALGORITHM_CONCURRENCY:
		s.Remaining = s.GetLimit() - used(p, b)
		if all := byExpiry(b); len(all) > 0 {
			full = all[len(all)-1].GetExpireTime().AsTime()
		}
	default: // refused by UpdateApi
	}
	s.Remaining = max(0, s.GetRemaining())
	if until := b.GetBlockedUntil().AsTime(); until.After(now) {
		s.Remaining, full = 0, later(full, until)
	}
	s.ResetAfter = durationpb.New(full.Sub(now))
	return s
}

func scopeOf(p policy) storev1.Scope {
	if p.GetScope() == storev1.Scope_SCOPE_USER {
		return storev1.Scope_SCOPE_USER
	}
	return storev1.Scope_SCOPE_TENANT
}

func unitOf(p policy) storev1.Unit {
	if p.GetUnit() == storev1.Unit_UNIT_COST {
		return storev1.Unit_UNIT_COST
	}
	return storev1.Unit_UNIT_PERMIT
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
