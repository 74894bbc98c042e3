package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/cmd/holdfast/internal/floor"
	"holdfast/cmd/holdfast/internal/load"
	"holdfast/db"
)

// scenario is one thing that bench measures.
type scenario struct {
	name, what string
	// optional scenarios run only where they are asked for.
	optional bool
	// pgbench: it needs pgbench's login, to write into the tables.
	pgbench bool
	// ownDatabase: it starts and fills databases of its own, and none is at --api.
	ownDatabase bool
	// memory: it needs to know how much memory the server has in RAM.
	memory bool
	// several: it needs more servers than one, and is left out where there are none.
	several bool
	// across: watchers are at the first server, and where there are more, the sessions at the others.
	across bool
	// tenants is how many tenants it needs besides the one of the token.
	tenants int
	// run returns the rows that it measured also where something failed afterwards.
	run func(ctx context.Context, b *bench, s scenario) ([]benchRow, error)
}

const (
	floorPrefix = "floor-"
	readLimit   = 20 // messages that a read asks for
	manyObjects = 1000
	setupLimit  = 32 // requests at once while a scenario is made ready
	verifyLimit = 8  // conversations at once while they are listed
)

// scenarios, in the order in which they run: what is compared is measured one after the other.
var scenarios = []scenario{
	{name: "edge-1", what: "append, acknowledged without a look, 1 session", run: runEdge(1)},
	{name: "edge-1000", what: "append, acknowledged without a look, 1,000 sessions", run: runEdge(1000)},
	{name: "floor-commit-1", what: "pgbench: commit of one row, 1 client", run: runFloor(floor.Commit, 1)},
	{name: "floor-commit-64", what: "pgbench: commit of one row, 64 clients", run: runFloor(floor.Commit, 64)},
	{name: "floor-append-1", what: "pgbench: lock + update + insert, 1 client", run: runFloor(floor.AppendOwn, 1)},
	{name: "append-1", what: "append, 1 session", run: runAppend(1, 1)},
	{name: "floor-append-64", what: "pgbench: lock + update + insert, 64 clients, 1,000 rows", run: runFloor(floor.AppendOwn, 64)},
	{name: "append-64", what: "append to own objects, 64 sessions", run: runAppend(64, 64)},
	{name: "append-1000", what: "append to own objects, 1,000 sessions", run: runAppend(1000, 1000)},
	{name: "append-tenants-1000", what: "append to own objects, 1,000 sessions of 1,000 tenants", tenants: 1000, run: runAppend(1000, 1000)},
	{name: "floor-hot-64", what: "pgbench: lock + update + insert, 64 clients, one row", run: runFloor(floor.AppendHot, 64)},
	{name: "hot-64", what: "append to one object, 64 writers", run: runAppend(64, 1)},
	{name: "limit-64", what: "acquire from one API's three policies, 64 clients", run: runLimit(64)},
	{name: "hot-1000", what: "append to one object, 1,000 writers", run: runAppend(1000, 1)},
	{name: "turns-1", what: "append, 1 session, each time at the next server", several: true, run: runTurns(1)},
	{name: "turns-64", what: "append to own objects, 64 sessions, each time at the next server", several: true, run: runTurns(64)},
	{name: "turns-1000", what: "append to own objects, 1,000 sessions, each time at the next server", several: true, run: runTurns(1000)},
	{name: "floor-read-1", what: "pgbench: SELECTs of state + 20 entries, 1 client", run: runFloor(floor.Read, 1)},
	{name: "read-1", what: "read state + 20 messages, 1 client", run: runRead(1)},
	{name: "floor-read-64", what: "pgbench: SELECTs of state + 20 entries, 64 clients", run: runFloor(floor.Read, 64)},
	{name: "read-64", what: "read state + 20 messages, 64 clients", run: runRead(64)},
	{name: "open-1000", what: "steady: 1,000 sessions, each an append and a read a second", run: runOpen},
	{name: "watch-1000", what: "steady: 1,000 watchers, 1,000 appends a second", across: true, run: runWatch},
	{name: "streams", what: "steady: 1,000 appends a second, and more and more watchers", optional: true, memory: true, run: runStreams},
	{name: "sweep-1000", what: "steady: 1,000 appends a second, beside a sweep", optional: true, pgbench: true, run: runSweep},
	{name: "grow-messages", what: "at rest, with 1 thousand, 100 thousand and 2 million messages", optional: true, ownDatabase: true, run: runGrow(growMessages)},
	{name: "grow-objects", what: "at rest, with 1 thousand and 1 million conversations", optional: true, ownDatabase: true, run: runGrow(growObjects)},
	{name: "live-64", what: "turns of 10 live frames, 64 sessions", optional: true, run: runLive},
	{name: "live-1000", what: "steady: 1,000 live sessions, 10 frames a second each", optional: true, run: runLiveOpen},
}

// needsPgbench: it is left out without pgbench.
func (s scenario) needsPgbench() bool { return s.needsFloor() || s.ownDatabase }

// needsFloor: it runs pgbench in the database of the run.
func (s scenario) needsFloor() bool { return s.pgbench || strings.HasPrefix(s.name, floorPrefix) }

// cannot says why a scenario cannot run; empty: it can.
func (s scenario) cannot(b *bench) string {
	switch {
	case s.ownDatabase && b.API != "":
		return "it fills databases of its own: leave --api out"
	case s.memory && len(b.system.serverPIDs) == 0:
		return "it needs --server-pid"
	case s.needsFloor() && b.floor == nil:
		return "it needs --pgbench-url"
	case s.tenants > 0 && b.system.operator == nil:
		return "it needs --database-url"
	case s.pgbench && b.system.database == nil:
		return "it sweeps the database: leave --api out"
	}
	return ""
}

func runFloor(script floor.Script, clients int) func(context.Context, *bench, scenario) ([]benchRow, error) {
	return func(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
		u := b.usage(s.name, false)
		res, err := b.floor.Run(ctx, script, clients, b.Warmup, b.Duration, u.observe)
		if err != nil {
			return nil, err
		}
		row := rowOfFloor(s.name, s.what, res)
		row.DatabaseCPU = u.database.Seconds()
		row.OthersCPU = u.others(res.CPU).Seconds()
		return []benchRow{row}, nil
	}
}

// runAppend has sessions append as fast as they are answered, each to its own object, or all to one.
func runAppend(sessions, objects int) func(context.Context, *bench, scenario) ([]benchRow, error) {
	return func(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
		all, err := b.sessions(ctx, s, sessions, objects, 0)
		if err != nil {
			return nil, err
		}
		defer closeAll(all)
		u := b.usage(s.name, true)
		m := load.Closed(ctx, b.workload(sessions, u.observe), func(ctx context.Context, i int, due time.Time) error {
			return all[i].Append(ctx, due)
		})
		return b.finish(ctx, all, u, rowOf(s.name, s.what, m))
	}
}

// runTurns has sessions append as fast as they are answered, each to its own object, and each request to the next server
// in turn: what one server has at hand of an object, another has just changed.
func runTurns(sessions int) func(context.Context, *bench, scenario) ([]benchRow, error) {
	return func(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
		all, err := b.sessions(ctx, s, sessions, sessions, 0)
		if err != nil {
			return nil, err
		}
		// To the server each is a writer of its own: session i is all[i], all[i+sessions] and so on.
		for i := sessions; i < sessions*len(b.system.targets); i++ {
			at := b.system.targets[(i%sessions+i/sessions)%len(b.system.targets)]
			all = append(all, load.NewSession(at, b.system.token, all[i%sessions].Conversation, i, b.began))
		}
		defer closeAll(all)
		turns := make([]int, sessions)
		u := b.usage(s.name, true)
		m := load.Closed(ctx, b.workload(sessions, u.observe), func(ctx context.Context, i int, due time.Time) error {
			turn := turns[i]
			turns[i] = (turn + 1) % len(b.system.targets)
			return all[i+turn*sessions].Append(ctx, due)
		})
		return b.finish(ctx, all, u, rowOf(s.name, s.what, m))
	}
}

// runRead has clients read conversations at random, as pgbench does.
func runRead(clients int) func(context.Context, *bench, scenario) ([]benchRow, error) {
	return func(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
		all, err := b.sessions(ctx, s, manyObjects, manyObjects, readLimit)
		if err != nil {
			return nil, err
		}
		defer closeAll(all)
		u := b.usage(s.name, true)
		m := load.Closed(ctx, b.workload(clients, u.observe), func(ctx context.Context, i int, _ time.Time) error {
			return all[i].Read(ctx, all[rand.IntN(len(all))].Conversation, readLimit) //nolint:gosec // which one is no secret
		})
		return b.finish(ctx, all, u, rowOf(s.name, s.what, m))
	}
}

func runOpen(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
	all, err := b.sessions(ctx, s, manyObjects, manyObjects, readLimit)
	if err != nil {
		return nil, err
	}
	defer closeAll(all)
	u := b.usage(s.name, true)
	meters := load.Open(ctx, b.workload(len(all), u.observe), time.Second,
		func(ctx context.Context, i int, due time.Time) error { return all[i].Append(ctx, due) },
		func(ctx context.Context, i int, _ time.Time) error {
			return all[i].Read(ctx, all[i].Conversation, readLimit)
		})
	return b.finish(ctx, all, u,
		rowOf(s.name+"/append", s.what+": appends", meters[0]),
		rowOf(s.name+"/read", s.what+": reads", meters[1]))
}

func runWatch(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
	const (
		connections = 8
		patience    = 10 * time.Second
	)
	all, err := b.sessions(ctx, s, manyObjects, manyObjects, 0)
	if err != nil {
		return nil, err
	}
	defer closeAll(all)
	watchers, err := load.Watch(ctx, b.system.target, b.system.token, all, connections, b.began)
	if err != nil {
		return nil, err
	}
	defer watchers.Close()
	u := b.usage(s.name, true)
	meters := load.Open(ctx, b.workload(len(all), func(ctx context.Context) func() {
		watchers.MeasureFrom(time.Now())
		return u.observe(ctx)
	}), time.Second, func(ctx context.Context, i int, due time.Time) error { return all[i].Append(ctx, due) })
	drained := watchers.Drain(ctx, all, patience)
	rows, err := b.finish(ctx, all, u,
		rowOf(s.name+"/append", s.what+": appends", meters[0]),
		rowOf(s.name+"/deliver", s.what+": from due to delivered", watchers.Delivered(b.Duration)))
	return rows, errors.Join(drained, err)
}

// runSweep measures what a sweep costs the writers: the same load without one and beside one, in turns, so that what else
// goes on in the machine falls on both. 100,000 expired objects are swept in the measured time.
func runSweep(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
	const expired, turns = 100_000, 5
	all, err := b.sessions(ctx, s, manyObjects, manyObjects, 0)
	if err != nil {
		return nil, err
	}
	defer closeAll(all)
	if err := b.floor.Expire(ctx, expired); err != nil {
		return nil, err
	}
	turn := b.workload(len(all), nil)
	turn.Duration /= turns
	config := db.SweepConfig{PerSecond: int(expired / b.Duration.Seconds())}
	without, with, swept := load.NewMeter(), load.NewMeter(), int64(0)
	appends := func(ctx context.Context, i int, due time.Time) error { return all[i].Append(ctx, due) }
	u := b.usage(s.name, true)
	stop := u.observe(ctx)
	for range turns {
		without.Merge(load.Open(ctx, turn, time.Second, appends)[0])
		sweeping, cancel := context.WithCancel(ctx)
		var sweep errgroup.Group
		sweep.Go(func() error {
			n, err := b.system.database.Sweep(sweeping, config)
			swept += n.Objects
			if sweeping.Err() != nil {
				return nil //nolint:nilerr // it was ended
			}
			return err
		})
		with.Merge(load.Open(ctx, turn, time.Second, appends)[0])
		cancel()
		if err := sweep.Wait(); err != nil {
			return nil, err
		}
	}
	stop()
	if _, err := b.system.database.Sweep(ctx, db.SweepConfig{PerSecond: expired}); err != nil {
		return nil, err
	}
	return b.finish(ctx, all, u, rowOf(s.name+"/without", "the same without a sweep", without),
		rowOf(s.name+"/with", fmt.Sprintf("%s of %d objects", s.what, swept), with))
}

func runLive(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
	const sessions = 64
	all, err := b.sessions(ctx, s, sessions, sessions, 0)
	if err != nil {
		return nil, err
	}
	defer closeAll(all)
	u := b.usage(s.name, true)
	m := load.Closed(ctx, b.workload(sessions, u.observe), func(ctx context.Context, i int, due time.Time) error {
		return all[i].Ingest(ctx, due)
	})
	return b.finish(ctx, all, u, rowOf(s.name, s.what, m))
}

// runLiveOpen has sessions send what a client gathers in a second, spread evenly.
func runLiveOpen(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
	all, err := b.sessions(ctx, s, manyObjects, manyObjects, 0)
	if err != nil {
		return nil, err
	}
	defer closeAll(all)
	u := b.usage(s.name, true)
	meters := load.Open(ctx, b.workload(len(all), u.observe), time.Second,
		func(ctx context.Context, i int, due time.Time) error { return all[i].Ingest(ctx, due) })
	return b.finish(ctx, all, u, rowOf(s.name, s.what, meters[0]))
}

// sessions makes a scenario's sessions and their conversations, with so many messages each to begin with. Session i
// talks to object i modulo objects, in a tenant of its own where the scenario asks for that.
func (b *bench) sessions(ctx context.Context, s scenario, count, objects, messages int) ([]*load.Session, error) {
	tokens, err := b.system.tokens(ctx, s.tenants)
	if err != nil {
		return nil, err
	}
	all := make([]*load.Session, count)
	group, setup := errgroup.WithContext(ctx)
	group.SetLimit(setupLimit)
	for i := range all {
		id := fmt.Sprintf("bench-%d-%s-%d", b.began.UnixNano(), s.name, i%objects)
		all[i] = load.NewSession(b.system.targetOf(i, s.across), tokens[i%len(tokens)], id, i, b.began)
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

// targetOf is the server of the i-th session.
func (s *benchSystem) targetOf(i int, across bool) *load.Target {
	if across && len(s.targets) > 1 {
		return s.targets[1+i%(len(s.targets)-1)]
	}
	return s.targets[i%len(s.targets)]
}

func closeAll(sessions []*load.Session) {
	for _, s := range sessions {
		s.Close()
	}
}

// used puts the usage into the first row.
func (*bench) used(rows []benchRow, u *benchUsage) []benchRow {
	rows[0].ServerCPU, rows[0].DatabaseCPU, rows[0].GeneratorCPU = u.server.Seconds(), u.database.Seconds(), u.generator.Seconds()
	rows[0].ServerRSSMiB = float64(u.resident) / (1 << 20)
	rows[0].OthersCPU = u.others(0).Seconds()
	return rows
}

// finish puts the usage into the first row, and verifies that all that was acknowledged is there.
func (b *bench) finish(ctx context.Context, all []*load.Session, u *benchUsage, rows ...benchRow) ([]benchRow, error) {
	rows = b.used(rows, u)
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
