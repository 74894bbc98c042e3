package coordination

import (
	"maps"

	"google.golang.org/protobuf/proto"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
)

// scratch is the copy of a state that a change works on. A hot limit is copied thousands of times a second, so what rules
// replace and never change in place is shared: the config, times, slots and the list of them, leases, requests in flight,
// syncs, live sessions and the maps and counts of those.
func scratch(s state) state {
	return &coordinationv1.ApiState{
		Config:     s.GetConfig(),
		Buckets:    scratchBuckets(s.GetBuckets()),
		Pools:      scratchBuckets(s.GetPools()),
		Breaker:    proto.CloneOf(s.GetBreaker()),
		Today:      scratchDay(s.GetToday()),
		InFlight:   s.GetInFlight(),
		Sync:       s.GetSync(),
		Live:       s.GetLive(),
		LiveCounts: s.GetLiveCounts(),
		LastSeq:    s.GetLastSeq(),
		FirstSeq:   s.GetFirstSeq(),
		FirstTime:  s.GetFirstTime(),
		PauseUntil: s.GetPauseUntil(),
	}
}

func scratchBuckets(all map[string]bucket) map[string]bucket {
	if all == nil {
		return nil
	}
	out := make(map[string]bucket, len(all))
	for name, b := range all {
		out[name] = &coordinationv1.Bucket{
			Tat:           b.GetTat(),
			Slots:         b.GetSlots(),
			Used:          b.GetUsed(),
			WindowEnd:     b.GetWindowEnd(),
			Leases:        maps.Clone(b.GetLeases()),
			BlockedUntil:  b.GetBlockedUntil(),
			ObservedLimit: b.GetObservedLimit(),
			LastTime:      b.GetLastTime(),
			LastUnits:     b.GetLastUnits(),
			WindowStart:   b.GetWindowStart(),
			Newest:        b.GetNewest(),
		}
	}
	return out
}

func scratchDay(d *coordinationv1.UsageDay) *coordinationv1.UsageDay {
	if d == nil {
		return nil
	}
	return &coordinationv1.UsageDay{
		Date:       d.GetDate(),
		Permits:    d.GetPermits(),
		Cost:       d.GetCost(),
		Begun:      d.GetBegun(),
		Completed:  d.GetCompleted(),
		Failed:     d.GetFailed(),
		Retryable:  d.GetRetryable(),
		Unknown:    d.GetUnknown(),
		Operations: maps.Clone(d.GetOperations()),
		EndTime:    d.GetEndTime(),
	}
}
