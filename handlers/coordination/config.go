package coordination

import (
	"fmt"
	"slices"
	"strings"
	"time"

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

// configure puts a config in force; nil is the ready-made one. A bucket goes on where its policy keeps its name and algorithm; what
// a provider said about the limit is forgotten, because the operator has spoken since.
func (t *tx) configure(c *storev1.ApiConfig) {
	configure(t.api, t.state, c)
	t.state.ConfigVersion = t.made()
}

func configure(api string, s *storev1.ApiState, c *storev1.ApiConfig) {
	was := map[string]storev1.Algorithm{}
	for _, p := range configOf(api, s).GetPolicies() {
		was[p.GetName()] = p.GetAlgorithm()
	}
	s.Config = c
	goesOn := map[string]bool{}
	for _, p := range configOf(api, s).GetPolicies() {
		goesOn[p.GetName()] = was[p.GetName()] == p.GetAlgorithm() && scopeOf(p) == storev1.Scope_SCOPE_TENANT
	}
	for _, buckets := range []map[string]bucket{s.GetBuckets(), s.GetPools()} {
		for name, b := range buckets {
			if !goesOn[name] {
				delete(buckets, name)
				continue
			}
			b.ObservedLimit = 0
		}
	}
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
			s.PauseUntil = nil
			for _, b := range s.GetBuckets() {
				b.BlockedUntil = nil
			}
		case coordinationv1.Clear_CLEAR_BREAKER:
			turnBreaker(t.breaker(), storev1.BreakerStatus_BREAKER_STATUS_CLOSED)
			s.Breaker.RetryTime = nil
		case coordinationv1.Clear_CLEAR_LIMITS:
			// Grants of before have nothing to give back any more.
			s.Buckets, s.Pools, s.Released, s.ReleasedThrough = nil, nil, nil, t.made()
			s.Clears++
		default: // UpdateApi knows what comes in place of the config
		}
	}
	return words
}
