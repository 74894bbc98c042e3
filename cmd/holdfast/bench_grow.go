package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/cmd/holdfast/internal/floor"
	"holdfast/cmd/holdfast/internal/load"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

// growth is how much is stored while a grow- scenario measures: conversations with so many messages each, and one long
// one.
type growth struct {
	name              string
	objects, messages int
	long              int // messages of the long one; 0: there is none
}

// What grows. A message more or less than these makes no difference, so what a scenario itself stores is not counted.
var (
	// Nine tenths of the messages in conversations of 20, one tenth in a single conversation.
	growMessages = []growth{{"1k", 45, 20, 100}, {"100k", 4_500, 20, 10_000}, {"2m", 90_000, 20, 200_000}}
	growObjects  = []growth{{"1k", 1_000, 1, 0}, {"1m", 1_000_000, 1, 0}}
)

// growKinds are the rows of each size. What comes first in an object finds nothing in the server's cache.
var growKinds = []struct{ name, what string }{
	{"append-first", "an append to a conversation that the server does not have at hand"},
	{"append", "an append to one that it has"},
	{"read-first", "a read of state and messages of a conversation that the server does not have at hand"},
	{"read", "a read of one that it has"},
	{"append-long", "an append to the long conversation"},
	{"read-long", "a read of the long conversation's state and last 20 messages"},
	{"page-long", "a page of 20 messages from anywhere in it"},
	{"list", "a list of the 20 conversations that were active last"},
}

// growTable has the medians of a grow- scenario side by side; it is empty where they were not measured.
func growTable(scenario string, sizes []growth, rows []benchRow) (columns []string, cells [][]string) {
	columns = []string{scenario, "median ms"}
	for _, size := range sizes {
		columns = append(columns, size.name)
	}
	for _, k := range growKinds {
		line := []string{k.name, k.what}
		for _, size := range sizes {
			name := scenario + "/" + size.name + "/" + k.name
			if i := slices.IndexFunc(rows, func(r benchRow) bool { return r.Name == name }); i >= 0 {
				line = append(line, figure(rows[i].P50))
			}
		}
		if len(line) == len(columns) {
			cells = append(cells, line)
		}
	}
	return columns, cells
}

const (
	growFlat   = 1.25 // times what it takes with least stored
	growSample = 40   // conversations that a round looks at
	// growFillers conversations of one large message each are more than the server's cache holds.
	growFillers    = 100
	growFillerText = 60_000
)

// runGrow measures one client at rest beside more and more that is stored, in one tenant. Each size has a Postgres and a
// server of its own, and they take turns, so that what else goes on in the machine falls on all of them. It loads past
// the API, and verifies through it.
func runGrow(sizes []growth) func(context.Context, *bench, scenario) ([]benchRow, error) {
	return func(ctx context.Context, b *bench, s scenario) (rows []benchRow, err error) {
		var all []*grower
		defer func() {
			for _, g := range all {
				err = errors.Join(err, g.close(ctx))
			}
		}()
		for _, size := range sizes {
			g, err := newGrower(ctx, b, s, size)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", size.name, err)
			}
			all = append(all, g)
		}
		// Not measured: connections to the database that saw no statement yet plan each of them first.
		if err := growUntil(ctx, time.Now().Add(b.Warmup), all); err != nil {
			return nil, err
		}
		measured := b.Duration * time.Duration(len(all))
		stops := make([]func(), len(all))
		for i, g := range all {
			clear(g.meters)
			stops[i] = g.usage.observe(ctx)
		}
		err = growUntil(ctx, time.Now().Add(measured), all)
		for _, stop := range stops {
			stop()
		}
		if err != nil {
			return nil, err
		}
		var used time.Duration
		for _, g := range all {
			used += g.usage.server + g.usage.database
		}
		for _, g := range all {
			more, err := g.finish(ctx)
			if err != nil {
				return append(rows, more...), fmt.Errorf("%s: %w", g.size.name, err)
			}
			// Its part of the time, in which the other sizes are not others.
			more[0].OthersCPU = g.usage.others(used-g.usage.server-g.usage.database).Seconds() / float64(len(all))
			rows = append(rows, more...)
		}
		return rows, nil
	}
}

// growUntil has growers make rounds in turn, at least one each.
func growUntil(ctx context.Context, end time.Time, all []*grower) error {
	for {
		for _, g := range all {
			if err := g.round(ctx); err != nil {
				return fmt.Errorf("%s: %w", g.size.name, err)
			}
		}
		if !time.Now().Before(end) {
			return nil
		}
	}
}

// grower is one size of a grow- scenario, with a Postgres and a server of its own.
type grower struct {
	*bench

	scenario scenario
	size     growth
	usage    *benchUsage
	template *load.Session
	fillers  []*load.Session
	long     *load.Session            // nil: there is none
	seen     map[string]*load.Session // by name: conversations that were looked at
	meters   map[string]*load.Meter   // by kind
}

// newGrower starts a size's Postgres and server, and stores what the size says.
func newGrower(ctx context.Context, b *bench, s scenario, size growth) (_ *grower, err error) {
	size.objects = max(1, size.objects/b.Scale)
	if size.long > 0 {
		size.long = max(2*readLimit, size.long/b.Scale)
	}
	own := *b // but for the system
	own.Servers = 1
	if own.system, err = openBenchSystem(ctx, &own); err != nil {
		return nil, err
	}
	g := &grower{bench: &own, scenario: s, size: size, seen: map[string]*load.Session{}, meters: map[string]*load.Meter{}}
	if err := g.fill(ctx); err != nil {
		return nil, errors.Join(err, g.close(ctx))
	}
	return g, nil
}

// fill stores what the size says in the grower's system, and makes ready to measure.
func (g *grower) fill(ctx context.Context) (err error) {
	g.usage = g.bench.usage(g.scenario.name+"-"+g.size.name, true)
	g.template = load.NewSession(g.system.target, g.system.token, g.id("template"), 0, g.began)
	if g.floor, err = floor.Open(ctx, g.system.pgbenchDir, g.system.pgbenchURL); err != nil {
		return err
	}
	if g.report.Postgres, err = g.floor.Version(ctx); err != nil {
		return err
	}
	if err := g.prepare(ctx); err != nil {
		return err
	}
	return g.load(ctx)
}

func (g *grower) close(ctx context.Context) (err error) {
	g.template.Close()
	if g.floor != nil {
		err = g.floor.Close(context.WithoutCancel(ctx))
	}
	return errors.Join(err, g.system.close(ctx))
}

// id of a conversation of this run.
func (g *grower) id(name string) string {
	return fmt.Sprintf("bench-%d-%s-%s", g.began.UnixNano(), g.scenario.name, name)
}

// session of a conversation that was stored with so many messages, on the template's connection. Every message is of
// writer 0, as the template's are.
func (g *grower) session(name string, messages int) *load.Session {
	s := load.NewSession(g.system.target, g.system.token, g.id(name), 0, g.began)
	s.Loaded(messages)
	s.Share(g.template)
	return s
}

// prepare makes the template and the fillers through the API, and proves that a copy reads as the template does.
func (g *grower) prepare(ctx context.Context) error {
	err := g.template.Create(ctx)
	for range 2 {
		if err == nil {
			err = g.template.Append(ctx, g.began)
		}
	}
	for i := range growFillers {
		if err == nil {
			filler := g.session(fmt.Sprint("filler-", i), 0)
			g.fillers = append(g.fillers, filler)
			err = errors.Join(filler.Create(ctx), filler.AppendText(ctx, strings.Repeat("x", growFillerText)))
		}
	}
	if err == nil {
		err = g.floor.Grow(ctx, floor.Copies{Template: g.template.Conversation, Prefix: g.id("copy-"), Objects: 1, Messages: 2})
	}
	if err != nil {
		return err
	}
	return g.compare(ctx)
}

func (g *grower) compare(ctx context.Context) error {
	want, err := g.template.Get(ctx, readLimit)
	if err != nil {
		return err
	}
	got, err := g.session("copy-1", 0).Get(ctx, readLimit)
	if err != nil {
		return err
	}
	for _, c := range []*conversationv1.GetConversationResponse{want, got} {
		c.GetConversation().ConversationId = ""
		m := c.GetMetadata()
		m.CreateTime, m.UpdateTime, m.ExpireTime = nil, nil, nil
		for _, m := range c.GetMessages() {
			m.CreateTime, m.UpdateTime = nil, nil
		}
	}
	if !proto.Equal(want, got) {
		return fmt.Errorf("a copy past the API reads as %v, what was copied as %v", got, want)
	}
	return nil
}

// load stores the size's conversations.
func (g *grower) load(ctx context.Context) error {
	began := time.Now()
	err := g.floor.Grow(ctx, floor.Copies{Template: g.template.Conversation, Prefix: g.id(""), Objects: g.size.objects, Messages: g.size.messages})
	if err == nil && g.size.long > 0 {
		// Copies are numbered, also where there is one.
		g.long = g.session("long-1", g.size.long)
		err = g.floor.Grow(ctx, floor.Copies{Template: g.template.Conversation, Prefix: g.id("long-"), Objects: 1, Messages: g.size.long})
	}
	if err == nil {
		err = g.floor.Settle(ctx)
	}
	g.template.Close() // a server ends a connection that is idle while the next size is stored; the next call makes another
	fmt.Fprintf(g.log, "  %s: %s conversations, %s messages, stored in %.0f s\n", g.size.name, thousands(float64(g.size.objects+min(1, g.size.long))),
		thousands(float64(g.size.objects*g.size.messages+g.size.long)), time.Since(began).Seconds())
	return err
}

// finish returns the rows, and verifies the conversations that were looked at.
func (g *grower) finish(ctx context.Context) ([]benchRow, error) {
	var rows []benchRow
	for _, k := range growKinds {
		if m := g.meters[k.name]; m != nil {
			rows = append(rows, rowOf(g.scenario.name+"/"+g.size.name+"/"+k.name, k.what, m))
		}
	}
	looked := slices.Collect(maps.Values(g.seen))
	if g.long != nil {
		looked = append(looked, g.long)
	}
	defer closeAll(looked)
	for _, s := range looked {
		s.Part()
	}
	return g.bench.finish(ctx, looked, g.usage, rows...)
}

// growStep is something that a round does with each of its conversations.
type growStep struct {
	kind string
	// first: the server is to have nothing at hand.
	first bool
	do    func(*load.Session) error
}

// round looks at some conversations: for the first time, again, and to append.
func (g *grower) round(ctx context.Context) error {
	now := g.began                                  // of the messages: when they were sent is not looked at
	limit := int32(min(g.size.messages, readLimit)) //nolint:gosec // at most 20
	read := func(s *load.Session) error { return s.Read(ctx, s.Conversation, limit) }
	add := func(s *load.Session) error { return s.Append(ctx, now) }
	steps := []growStep{
		{"append-first", true, add},
		{"read-first", true, read},
		{"read", false, read},
		{"append", false, add},
		{"list", false, func(s *load.Session) error { return s.Conversations(ctx, readLimit) }},
	}
	if g.long != nil {
		anywhere := func() int64 { return rand.Int64N(int64(g.size.long - readLimit)) } //nolint:gosec // which is no secret
		steps = append(steps,
			growStep{"append-long", false, func(*load.Session) error { return g.long.Append(ctx, now) }},
			growStep{"read-long", false, func(*load.Session) error { return g.long.Read(ctx, g.long.Conversation, readLimit) }},
			growStep{"page-long", false, func(*load.Session) error { return g.long.Page(ctx, anywhere(), readLimit) }})
	}
	picked := g.pick()
	for _, step := range steps {
		if step.first {
			if err := g.displace(ctx); err != nil {
				return err
			}
		}
		for _, s := range picked {
			if err := g.time(step.kind, func() error { return step.do(s) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *grower) time(kind string, do func() error) error {
	m := g.meters[kind]
	if m == nil {
		m = load.NewMeter()
		g.meters[kind] = m
	}
	if err := m.Time(do); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	return nil
}

// pick picks conversations at random.
func (g *grower) pick() (picked []*load.Session) {
	for range min(growSample, g.size.objects) {
		name := strconv.Itoa(1 + rand.IntN(g.size.objects)) //nolint:gosec // which is no secret
		s := g.seen[name]
		if s == nil {
			s = g.session(name, g.size.messages)
			g.seen[name] = s
		}
		if !slices.Contains(picked, s) {
			picked = append(picked, s)
		}
	}
	return picked
}

// displace reads so much that the server has nothing else at hand.
func (g *grower) displace(ctx context.Context) error {
	for _, f := range g.fillers {
		if err := f.Read(ctx, f.Conversation, 1); err != nil {
			return err
		}
	}
	return nil
}
