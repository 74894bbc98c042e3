package coordination

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/coordination/dialect"
	"holdfast/object/objecttest"
)

// The copy has everything, also what a later release adds to the messages.
func TestScratchIsWhole(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := &storev1.ApiState{}
		objecttest.Fill(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)), s)
		if got := scratch(s); !proto.Equal(got, s) {
			t.Fatalf("copied %v\nas %v", s, got)
		}
	})
}

// What rules do to a copy leaves every earlier state as it was.
func TestRulesLeaveEarlierStatesAlone(t *testing.T) {
	t.Parallel()
	config := &storev1.ApiConfig{Policies: []*storev1.Policy{
		gcra(100, time.Minute, 10), sliding(5, 10*time.Second), sliding(1000, 10*time.Second), calendar(1000, storev1.Calendar_CALENDAR_MINUTE, ""),
		{Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 3},
	}}
	config.Breaker = &storev1.BreakerConfig{PerOperation: true, Probes: 2, FailureThreshold: 2, OpenFor: durationpb.New(time.Second)}
	for i, p := range config.GetPolicies() {
		p.Name, p.Dimension = fmt.Sprint("p", i), fmt.Sprint("d", i)
	}
	rapid.Check(t, func(t *rapid.T) {
		s := &storev1.ApiState{Config: config}
		now := epoch
		var states, copies []state
		var rows []row
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			states, copies = append(states, s), append(copies, proto.CloneOf(s))
			s = scratch(s)
			now = now.Add(time.Duration(rapid.SampledFrom([]int64{0, 1, 200, 3000, 20_000}).Draw(t, "ms")) * time.Millisecond)
			l := &ledger{bucketStore: bucketStore{state: s, user: &storev1.UserBuckets{}}, config: s.GetConfig(), now: now}
			name := func(what string) string { return fmt.Sprint(what, rapid.IntRange(1, 3).Draw(t, what)) }
			d := &demand{operation: name("op"), permits: 1, cost: 1, leaseID: name("lease")}
			switch rapid.IntRange(0, 9).Draw(t, "do") {
			case 0, 1, 2:
				if v := acquire(l.bucketStore, l.config, d, false, now); v.allowed {
					l.count(countPermits(d.operation, 1, 1))
				}
			case 3:
				releaseLease(s.GetPools(), d.leaseID, "", true)
			case 4:
				refund(l.bucketStore, l.config, d, now.Add(-time.Duration(rapid.SampledFrom([]int64{0, 1, 200}).Draw(t, "ago"))*time.Millisecond), now)
			case 5:
				remaining := rapid.Int64Range(0, 3).Draw(t, "remaining")
				o := &dialect.Reading{Refused: rapid.Bool().Draw(t, "refused"), RetryAt: now.Add(time.Second)}
				for _, p := range config.GetPolicies() {
					o.Budgets = append(o.Budgets, &dialect.Budget{Dimension: p.GetDimension(), Remaining: remaining, Limit: remaining, Reset: now.Add(time.Second)})
				}
				correct(l.bucketStore, l.config, d, o, true, time.Time{}, now)
			case 6:
				id := name("r")
				i := slices.IndexFunc(rows, func(r row) bool { return r.GetKey() == id })
				var r row
				if i >= 0 {
					r = rows[i]
					rows = slices.Delete(rows, i, i+1)
				}
				got, err := l.begin(r, &coordinationv1.BeginCallRequest{Key: id, Operation: "op", Timeout: durationpb.New(time.Second)}, "")
				if err != nil {
					t.Fatal(err)
				}
				if got.put != nil {
					r = got.put
				}
				if r != nil {
					rows = append(rows, r)
				}
			case 7:
				if len(rows) == 0 {
					continue
				}
				r := rows[rapid.IntRange(0, len(rows)-1).Draw(t, "row")]
				req := &coordinationv1.FinishCallRequest{FencingToken: r.GetFencingToken()}
				if rapid.Bool().Draw(t, "fails") {
					req.Result = &coordinationv1.FinishCallRequest_Failed{Failed: &coordinationv1.CallFailure{
						Failure: coordinationv1.Failure_FAILURE_RETRYABLE, NotSent: true,
					}}
				}
				_, _ = l.finish(r, req)
			case 8:
				session := &coordinationv1.LiveSession{Epoch: 1, Status: coordinationv1.LiveStatus(rapid.Int32Range(1, 5).Draw(t, "status"))}
				_ = reportLive(s, &coordinationv1.LiveReport{ProviderSessionId: name("l"), Session: session, Ttl: durationpb.New(5 * time.Second)}, "", now)
				_ = reportSync(s, &coordinationv1.SyncReport{Resource: name("s"), State: &coordinationv1.SyncState{PageCursor: name("c")}}, now)
			default:
				changed := proto.CloneOf(config)
				for _, p := range changed.GetPolicies() {
					p.Algorithm, p.Calendar = storev1.Algorithm(rapid.Int32Range(1, 3).Draw(t, "algorithm")), storev1.Calendar_CALENDAR_MINUTE
					p.Period, p.Limit = durationpb.New(10*time.Second), 1000
				}
				configure("x", s, changed, now)
				configure("x", s, config, now)
			}
		}
		for i := range states {
			if !proto.Equal(states[i], copies[i]) {
				t.Fatalf("state %d was\n%v\nand became\n%v", i, copies[i], states[i])
			}
		}
	})
}
