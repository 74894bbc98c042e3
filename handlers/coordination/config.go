package coordination

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/problem"
)

// checkConfig refuses what the fields' own rules cannot.
func checkConfig(c *coordinationv1.ApiConfig) error {
	var fields []*errorv1.Violation
	wrong := func(path, format string, args ...any) {
		fields = append(fields, &errorv1.Violation{Field: path, Description: fmt.Sprintf(format, args...)})
	}
	zone := func(path, name string) {
		// "Local" would be the server's own.
		if _, err := time.LoadLocation(name); err != nil || name == "Local" {
			wrong(path, "is no time zone; one is like America/Los_Angeles")
		}
	}
	zone("config.time_zone", c.GetTimeZone())
	names := map[string]bool{}
	for i, p := range c.GetPolicies() {
		at := fmt.Sprintf("config.policies[%d].", i)
		if names[p.GetName()] {
			wrong(at+"name", "is that of another policy, too")
		}
		names[p.GetName()] = true
		switch p.GetAlgorithm() {
		case coordinationv1.Algorithm_ALGORITHM_SLIDING, coordinationv1.Algorithm_ALGORITHM_GCRA:
			if p.GetPeriod() == nil {
				wrong(at+"period", "is missing")
			} else if p.GetAlgorithm() == coordinationv1.Algorithm_ALGORITHM_GCRA && p.GetPeriod().AsDuration() < time.Duration(p.GetLimit())*time.Microsecond {
				wrong(at+"limit", "is more than one a microsecond")
			}
			if p.GetBurst() > p.GetLimit() {
				wrong(at+"burst", "is more than the limit")
			}
		case coordinationv1.Algorithm_ALGORITHM_CALENDAR:
			if p.GetCalendar() == coordinationv1.Calendar_CALENDAR_UNSPECIFIED {
				wrong(at+"calendar", "is missing")
			}
			zone(at+"time_zone", p.GetTimeZone())
		case coordinationv1.Algorithm_ALGORITHM_CONCURRENCY:
			if p.GetLimit() > maxLeases {
				wrong(at+"limit", "is more than %d, the most that can run at once", maxLeases)
			}
			if p.GetUnit() == coordinationv1.Unit_UNIT_COST {
				wrong(at+"unit", "is UNIT_COST; what runs at once is counted in permits")
			}
		default: // refused by the field's own rule
		}
	}
	if len(fields) > 0 {
		return problem.InvalidFields(fields...)
	}
	return nil
}

const maxLeases = 1000

// configFields are what UpdateApi may change.
var configFields = []string{"policies", "breaker", "lease", "retention", "max_attempts", "time_zone"}

// configure puts a config in force; nil is the ready-made one. A policy that keeps its name, scope and unit keeps what was taken; what
// a provider said about the limit is forgotten, because the operator has spoken since.
func (t *tx) configure(c *storev1.ApiConfig) {
	configure(t.api, t.state, c, t.ledger.now)
	t.state.ConfigVersion = t.made()
}

func configure(api string, s *storev1.ApiState, c *storev1.ApiConfig, now time.Time) {
	was := configOf(api, s).GetPolicies()
	s.Config = c
	is := configOf(api, s)
	old := bucketStore{state: &storev1.ApiState{Buckets: s.GetBuckets(), Pools: s.GetPools()}}
	s.Buckets, s.Pools = nil, nil
	convertAll(was, is.GetPolicies(), old, bucketStore{state: s}, storev1.Scope_SCOPE_TENANT, now)
	if !is.GetBreaker().GetPerOperation() {
		s.OperationBreakers = nil
	}
}

// convertAll converts the buckets of one scope from those policies to these.
func convertAll(was, is []policy, from, to bucketStore, scope storev1.Scope, now time.Time) {
	for _, p := range is {
		i := slices.IndexFunc(was, func(q policy) bool { return q.GetName() == p.GetName() })
		if i < 0 || scopeOf(p) != scope || scopeOf(was[i]) != scope {
			continue
		}
		if b := from.get(was[i]); b != nil {
			to.put(p, convert(was[i], p, b, now))
		}
	}
}

// convert makes of a bucket that was counted by one policy the bucket of another: what was taken stays taken. It may count as taken
// later than it was, never as not taken. What runs at once is nothing that was taken before, and permits are no cost.
func convert(from, to policy, b bucket, now time.Time) bucket {
	b = proto.CloneOf(b)
	tidy(from, b, now)
	out := &storev1.Bucket{BlockedUntil: b.GetBlockedUntil()}
	var taken []*storev1.Slot
	switch {
	case unitOf(from) != unitOf(to):
		return out
	case countsAtOnce(to):
		if countsAtOnce(from) {
			out.Leases = b.GetLeases()
		}
		return out
	case from.GetAlgorithm() == storev1.Algorithm_ALGORITHM_SLIDING:
		taken = b.GetSlots()
		if b.GetNewest() != nil {
			taken = append(slices.Clip(taken), b.GetNewest())
		}
	case from.GetAlgorithm() == storev1.Algorithm_ALGORITHM_GCRA:
		taken = []*storev1.Slot{{Time: stamp(now), Units: owed(from, b, now)}}
	default:
		taken = []*storev1.Slot{{Time: stamp(now), Units: used(from, b)}}
	}
	tidy(to, out, now)
	for _, s := range taken {
		at := s.GetTime().AsTime()
		switch {
		case s.GetUnits() == 0:
		case to.GetAlgorithm() == storev1.Algorithm_ALGORITHM_GCRA:
			if at.After(now) { // the steps of a large window round up
				at = now
			}
			out.Tat = stamp(later(out.GetTat().AsTime(), at).Add(times(s.GetUnits(), emission(to, out))))
		case to.GetAlgorithm() == storev1.Algorithm_ALGORITHM_SLIDING:
			putSlot(out, slotTime(to, at), s.GetUnits())
		case !at.Before(out.GetWindowStart().AsTime()):
			out.Used += s.GetUnits()
		}
	}
	return out
}

// clear does by hand what otherwise only time or the provider does. It returns what it has done, for the journal.
func (t *tx) clear(what []coordinationv1.Clear) (words []string) {
	s := t.state
	for _, c := range []coordinationv1.Clear{
		coordinationv1.Clear_CLEAR_PAUSE, coordinationv1.Clear_CLEAR_BREAKER, coordinationv1.Clear_CLEAR_LIMITS, coordinationv1.Clear_CLEAR_CONFIG,
	} {
		if !slices.Contains(what, c) {
			continue
		}
		words = append(words, "cleared_"+strings.ToLower(strings.TrimPrefix(c.String(), "CLEAR_")))
		switch c {
		case coordinationv1.Clear_CLEAR_PAUSE:
			s.PauseUntil, s.Backoff = nil, nil
			for _, b := range s.GetBuckets() {
				b.BlockedUntil = nil
			}
		case coordinationv1.Clear_CLEAR_BREAKER:
			all := append(slices.Collect(maps.Values(s.GetOperationBreakers())), t.breaker(t.config, ""))
			for _, b := range all {
				turnBreaker(b, storev1.BreakerStatus_BREAKER_STATUS_CLOSED)
				b.RetryTime = nil
			}
		case coordinationv1.Clear_CLEAR_LIMITS:
			// Grants of before have nothing to give back any more.
			s.Buckets, s.Pools, s.Released, s.ReleasedThrough = nil, nil, nil, t.made()
			s.Clears++
		default: // UpdateApi knows what comes in place of the config
		}
	}
	return words
}
