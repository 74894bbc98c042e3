package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/bench/internal/floor"
	"holdfast/bench/internal/load"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
)

// scenario is one thing that bench measures.
type scenario struct {
	name, what string
	floor      floor.Script // of pgbench's scenarios
	clients    int
	// run returns the rows that it measured also when something failed afterwards.
	run func(ctx context.Context, b *bench, sys *system, s scenario) ([]row, error)
}

const (
	readLimit   = 20 // messages that a read asks for
	manyObjects = 1000
	setupLimit  = 32 // requests at once while a scenario is made ready
	verifyLimit = 8  // conversations at once while they are listed
)

// scenarios, in the order in which they run: those that are compared run one after the other.
var scenarios = []scenario{
	{"floor-append-1", "pgbench: lock + update + insert, 1 client", floor.AppendOwn, 1, runFloor},
	{"append-1", "append to own objects, 1 session", "", 1, runAppend(1)},
	{"floor-append-64", "pgbench: lock + update + insert, 64 clients, 1,000 rows", floor.AppendOwn, 64, runFloor},
	{"append-64", "append to own objects, 64 sessions", "", 64, runAppend(64)},
	{"append-1000", "append to own objects, 1,000 sessions", "", 1000, runAppend(1000)},
	{"floor-hot-64", "pgbench: lock + update + insert, 64 clients, one row", floor.AppendHot, 64, runFloor},
	{"hot-64", "append to one object, 64 writers", "", 64, runAppend(1)},
	{"limit-64", "acquire from one API's three policies, 64 clients", "", 64, runLimit},
	{"floor-read-64", "pgbench: SELECTs of state + 20 entries, 64 clients", floor.Read, 64, runFloor},
	{"read-64", "read state + 20 messages, 64 clients", "", 64, runRead},
	{"steady-1000", "1,000 sessions, each an append and a read a second, and a watcher of each", "", 1000, runSteady},
	{"live-1000", "1,000 live sessions, each 10 frames a second in one batch", "", 1000, runLive},
}

// runFloor measures pgbench.
func runFloor(ctx context.Context, b *bench, sys *system, s scenario) ([]row, error) {
	u := b.usage(sys, s.name)
	res, err := b.floor.Run(ctx, s.floor, s.clients, b.Warmup, b.Duration, u.observe)
	if err != nil {
		return nil, err
	}
	return []row{u.row(rowOfFloor(s, res), res.CPU)}, nil
}

// runAppend makes sessions append as fast as they are answered, to so many objects.
func runAppend(objects int) func(context.Context, *bench, *system, scenario) ([]row, error) {
	return func(ctx context.Context, b *bench, sys *system, s scenario) ([]row, error) {
		all, err := b.sessions(ctx, sys, s, objects, 0)
		if err != nil {
			return nil, err
		}
		defer closeAll(all)
		u := b.usage(sys, s.name)
		m := load.Closed(ctx, b.workload(s.clients, u.observe), func(ctx context.Context, i int, due time.Time) error {
			return all[i].Append(ctx, due)
		})
		return b.finish(ctx, all, u, rowOf(s.name, s.what, m))
	}
}

// runRead makes clients read conversations at random, as pgbench does.
func runRead(ctx context.Context, b *bench, sys *system, s scenario) ([]row, error) {
	many := s
	many.clients = manyObjects
	all, err := b.sessions(ctx, sys, many, manyObjects, readLimit)
	if err != nil {
		return nil, err
	}
	defer closeAll(all)
	u := b.usage(sys, s.name)
	m := load.Closed(ctx, b.workload(s.clients, u.observe), func(ctx context.Context, i int, _ time.Time) error {
		return all[i].Read(ctx, all[rand.IntN(len(all))].Conversation, readLimit) //nolint:gosec // which one is no secret
	})
	return b.finish(ctx, all, u, rowOf(s.name, s.what, m))
}

// runSteady is what users feel: requests are due at fixed times, and a watcher has each message once it has decoded it.
func runSteady(ctx context.Context, b *bench, sys *system, s scenario) ([]row, error) {
	const (
		connections = 8
		patience    = 10 * time.Second
	)
	all, err := b.sessions(ctx, sys, s, s.clients, readLimit)
	if err != nil {
		return nil, err
	}
	defer closeAll(all)
	watchers, err := load.Watch(ctx, sys.targets[0], sys.token, all, connections, b.began)
	if err != nil {
		return nil, err
	}
	defer watchers.Close()
	u := b.usage(sys, s.name)
	meters := load.Open(ctx, b.workload(len(all), func(ctx context.Context) func() {
		watchers.MeasureFrom(time.Now())
		return u.observe(ctx)
	}), time.Second,
		func(ctx context.Context, i int, due time.Time) error { return all[i].Append(ctx, due) },
		func(ctx context.Context, i int, _ time.Time) error {
			return all[i].Read(ctx, all[i].Conversation, readLimit)
		})
	drained := watchers.Drain(ctx, all, patience)
	rows, err := b.finish(ctx, all, u,
		rowOf(s.name+"/append", s.what+": appends", meters[0]),
		rowOf(s.name+"/read", s.what+": reads", meters[1]),
		rowOf(s.name+"/deliver", s.what+": from due to delivered", watchers.Delivered(b.Duration)))
	return rows, errors.Join(drained, err)
}

// runLive makes sessions send a spoken turn a second, spread evenly: what a client gathers in that time.
func runLive(ctx context.Context, b *bench, sys *system, s scenario) ([]row, error) {
	all, err := b.sessions(ctx, sys, s, s.clients, 0)
	if err != nil {
		return nil, err
	}
	defer closeAll(all)
	group, setup := errgroup.WithContext(ctx)
	group.SetLimit(setupLimit)
	for _, one := range all {
		group.Go(func() error { return one.Connect(setup) })
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	u := b.usage(sys, s.name)
	meters := load.Open(ctx, b.workload(len(all), u.observe), time.Second,
		func(ctx context.Context, i int, due time.Time) error { return all[i].Ingest(ctx, due) })
	return b.finish(ctx, all, u, rowOf(s.name, s.what, meters[0]))
}

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

// runLimit makes clients acquire from one API's policies as fast as they are answered. What was granted must be what the
// server has counted.
func runLimit(ctx context.Context, b *bench, sys *system, s scenario) ([]row, error) {
	api := fmt.Sprintf("bench-%d-%s", time.Now().UnixNano(), s.name)
	all := make([]*load.Limiter, s.clients)
	for i := range all {
		all[i] = load.NewLimiter(sys.targets[0], sys.token, api)
	}
	defer func() {
		for _, l := range all {
			l.Close()
		}
	}()
	if err := all[0].Configure(ctx, farLimits()); err != nil {
		return nil, err
	}
	u := b.usage(sys, s.name)
	m := load.Closed(ctx, b.workload(s.clients, u.observe), func(ctx context.Context, i int, _ time.Time) error {
		return all[i].Acquire(ctx)
	})
	rows := []row{u.row(rowOf(s.name, s.what, m), 0)}
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

// sessions makes a scenario's sessions and their conversations, with so many messages each to begin with. Session i
// talks to object i modulo objects, at server i modulo servers.
func (b *bench) sessions(ctx context.Context, sys *system, s scenario, objects, messages int) ([]*load.Session, error) {
	all := make([]*load.Session, s.clients)
	run := time.Now().UnixNano()
	group, setup := errgroup.WithContext(ctx)
	group.SetLimit(setupLimit)
	for i := range all {
		id := fmt.Sprintf("bench-%d-%s-%d", run, s.name, i%objects)
		all[i] = load.NewSession(sys.targets[i%len(sys.targets)], sys.token, id, i, b.began)
		if i >= objects {
			continue
		}
		group.Go(func() error {
			// The connections of the setup end with it.
			defer all[i].Close()
			if err := all[i].Create(setup); err != nil || messages == 0 {
				return err
			}
			return all[i].Fill(setup, messages)
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("make the conversations: %w", err)
	}
	return all, nil
}

func closeAll(sessions []*load.Session) {
	for _, s := range sessions {
		s.Close()
	}
}

// finish adds the usage to the first row, and verifies that all that was acknowledged is there.
func (b *bench) finish(ctx context.Context, all []*load.Session, u *usage, rows ...row) ([]row, error) {
	rows[0] = u.row(rows[0], 0)
	if ctx.Err() != nil {
		return rows, ctx.Err()
	}
	return rows, errors.Join(b.verify(ctx, all), u.err())
}

// verify lists the sessions' conversations and compares them with what was acknowledged.
func (b *bench) verify(ctx context.Context, all []*load.Session) error {
	byConversation := map[string][]*load.Session{}
	for _, s := range all {
		byConversation[s.Conversation] = append(byConversation[s.Conversation], s)
	}
	var messages atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(verifyLimit)
	for id, writers := range byConversation {
		group.Go(func() error {
			listed, err := writers[0].List(ctx)
			if err != nil {
				return fmt.Errorf("list %s: %w", id, err)
			}
			ledgers := make([]*load.Ledger, len(writers))
			for i, w := range writers {
				ledgers[i] = w.Ledger
				messages.Add(int64(w.Ledger.Acknowledged()))
			}
			if err := load.Verify(listed, ledgers); err != nil {
				return fmt.Errorf("verification of %s failed: %w", id, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	b.report.Verified.Messages += int(messages.Load())
	b.report.Verified.Conversations += len(byConversation)
	return nil
}
