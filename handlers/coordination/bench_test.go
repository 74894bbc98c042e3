package coordination

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/db/dbtest"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/object"
)

// Acquisitions, from the rules alone to the handler: go test -run '^$' -bench . -benchmem ./handlers/coordination

// threePolicies count by each algorithm that counts calls. No benchmark comes near them.
func threePolicies() *storev1.ApiConfig {
	return &storev1.ApiConfig{Policies: []*storev1.Policy{
		{Name: "rate", Algorithm: storev1.Algorithm_ALGORITHM_GCRA, Limit: 10_000_000, Period: durationpb.New(time.Minute)},
		{
			Name: "cost", Algorithm: storev1.Algorithm_ALGORITHM_SLIDING, Limit: 1_000_000_000, Period: durationpb.New(time.Second),
			Unit: storev1.Unit_UNIT_COST,
		},
		{
			Name: "day", Algorithm: storev1.Algorithm_ALGORITHM_CALENDAR, Limit: 1_000_000_000,
			Calendar: storev1.Calendar_CALENDAR_DAY, TimeZone: "America/Los_Angeles",
		},
	}}
}

func BenchmarkAcquire(b *testing.B) {
	// What a change costs besides its commit: a copy of the state, the decision, and the day's count.
	b.Run("rules", func(b *testing.B) {
		s := &storev1.ApiState{Config: threePolicies()}
		now := epoch
		b.ReportAllocs()
		for b.Loop() {
			now = now.Add(200 * time.Microsecond)
			s = scratch(s)
			l := ledger{bucketStore: bucketStore{state: s}, config: s.GetConfig(), now: now}
			v := acquire(l.bucketStore, l.config, &demand{operation: "bench", permits: 1, cost: 10, leaseID: "lease"}, false, now)
			if !v.allowed {
				b.Fatal("refused")
			}
			l.count(countPermits("bench", 1, 10))
		}
	})
	// From the RPC's function to its answer, with what the runtime does and a real commit. The callers share commits.
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("handler/%d", clients), func(b *testing.B) {
			bundle := dbtest.New(b)
			rt := object.NewRuntime(bundle.DB, object.Config{})
			b.Cleanup(func() {
				if err := rt.Close(context.Background()); err != nil {
					b.Error(err)
				}
			})
			m, ctx := NewManager(Register(rt), bundle.DB.Now), bundle.AsService(b)
			if _, err := m.UpdateApi(ctx, &coordinationv1.UpdateApiRequest{Api: "bench", Config: as[*coordinationv1.ApiConfig](threePolicies())}); err != nil {
				b.Fatal(err)
			}
			req := &coordinationv1.AcquireRequest{Api: "bench", Operation: "bench", Cost: 10}
			b.ReportAllocs()
			b.SetParallelism(clients)
			b.ResetTimer()
			work := func() {
				if res, err := m.Acquire(ctx, req); err != nil || !res.GetAllowed() {
					b.Error(res, err)
				}
			}
			if clients == 1 {
				for range b.N {
					work()
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						work()
					}
				})
			}
		})
	}
}
