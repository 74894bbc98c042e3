package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/cmd/holdfast/internal/load"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
)

// farLimits are three policies, one of each algorithm that counts calls, which no machine comes near.
func farLimits() *coordinationv1.ApiConfig {
	return &coordinationv1.ApiConfig{Policies: []*coordinationv1.Policy{
		{Name: "rate", Algorithm: coordinationv1.Algorithm_ALGORITHM_GCRA, Limit: 10_000_000, Period: durationpb.New(time.Minute)},
		{
			Name: "cost", Algorithm: coordinationv1.Algorithm_ALGORITHM_SLIDING, Limit: 1_000_000_000, Period: durationpb.New(time.Minute),
			Unit: coordinationv1.Unit_UNIT_COST,
		},
		{
			Name: "day", Algorithm: coordinationv1.Algorithm_ALGORITHM_CALENDAR, Limit: 1_000_000_000,
			Calendar: coordinationv1.Calendar_CALENDAR_DAY, TimeZone: "America/Los_Angeles",
		},
	}}
}

// runLimit has clients acquire from one API's policies as fast as they are answered. What was granted must be what the
// server has counted.
func runLimit(clients int) func(context.Context, *bench, scenario) ([]benchRow, error) {
	return func(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
		api := fmt.Sprintf("bench-%d-%s", b.began.UnixNano(), s.name)
		all := make([]*load.Limiter, clients)
		for i := range all {
			all[i] = load.NewLimiter(b.system.target, b.system.token, api)
		}
		defer func() {
			for _, l := range all {
				l.Close()
			}
		}()
		if err := all[0].Configure(ctx, farLimits()); err != nil {
			return nil, err
		}
		u := b.usage(s.name, true)
		m := load.Closed(ctx, b.workload(clients, u.observe), func(ctx context.Context, i int, _ time.Time) error {
			return all[i].Acquire(ctx)
		})
		rows := b.used([]benchRow{rowOf(s.name, s.what, m)}, u)
		if ctx.Err() != nil {
			return rows, ctx.Err()
		}
		var granted int64
		for _, l := range all {
			granted += l.Granted
		}
		counted, err := all[0].Counted(ctx)
		if err == nil && counted != granted {
			err = fmt.Errorf("%d were granted, and the server has counted %d", granted, counted)
		}
		return rows, errors.Join(err, u.err())
	}
}
