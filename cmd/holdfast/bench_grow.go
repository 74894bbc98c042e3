package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/cmd/holdfast/internal/floor"
	"holdfast/cmd/holdfast/internal/load"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

const growPrefix = "grow-"

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

const (
	growSample = 100 // conversations that a round looks at
	// growFillers conversations of one large message each are more than the server's cache holds.
	growFillers    = 100
	growFillerText = 60_000
)

// runGrow measures one client at rest while more and more is stored, in one tenant. It loads past the API, and
// verifies through it.
func runGrow(sizes []growth) func(context.Context, *bench, scenario) ([]benchRow, error) {
	return func(ctx context.Context, b *bench, s scenario) (rows []benchRow, err error) {
		if err := b.floor.Empty(ctx); err != nil {
			return nil, err
		}
		g := &grower{bench: b, scenario: s}
		g.template = load.NewSession(b.system.target, b.system.token, g.id("template"), 0, b.began)
		defer g.template.Close()
		if err := g.prepare(ctx); err != nil {
			return nil, err
		}
		for _, size := range sizes {
			more, err := g.measure(ctx, size)
			if rows = append(rows, more...); err != nil {
				return rows, fmt.Errorf("%s: %w", size.name, err)
			}
		}
		return rows, nil
	}
}

// grower is a run of a grow- scenario.
type grower struct {
	bench    *bench
	scenario scenario
	template *load.Session
	fillers  []*load.Session
}

// id of a conversation of this run.
func (g *grower) id(name string) string {
	return fmt.Sprintf("bench-%d-%s-%s", g.bench.began.UnixNano(), g.scenario.name, name)
}

// session of a conversation that was stored with so many messages, on the template's connection. Every message is of
// writer 0, as the template's are.
func (g *grower) session(name string, messages int) *load.Session {
	s := load.NewSession(g.bench.system.target, g.bench.system.token, g.id(name), 0, g.bench.began)
	s.Loaded(messages)
	s.Share(g.template)
	return s
}

// prepare makes the template and the fillers through the API, and proves that a copy reads as the template does.
func (g *grower) prepare(ctx context.Context) error {
	err := g.template.Create(ctx)
	for range 2 {
		if err == nil {
			err = g.template.Append(ctx, g.bench.began)
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
		err = g.bench.floor.Grow(ctx, floor.Copies{Template: g.template.Conversation, Prefix: g.id("copy-"), Objects: 1, Messages: 2})
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

// measure loads a size and measures it.
func (g *grower) measure(ctx context.Context, size growth) ([]benchRow, error) {
	b := g.bench
	size.objects = max(1, size.objects/b.Scale)
	if size.long > 0 {
		size.long = max(2*readLimit, size.long/b.Scale)
	}
	long, err := g.load(ctx, size)
	if err != nil {
		return nil, err
	}
	r := &growRound{grower: g, size: size, long: long, seen: map[string]*load.Session{}, meters: map[string]*load.Meter{}}
	// Not measured: connections to the database that saw no statement yet plan each of them first.
	if err := r.until(ctx, time.Now().Add(b.Warmup)); err != nil {
		return nil, err
	}
	clear(r.meters)
	u := b.usage(g.scenario.name+"-"+size.name, true)
	stop := u.observe(ctx)
	err = r.until(ctx, time.Now().Add(b.Duration))
	stop()
	var rows []benchRow
	for _, k := range growKinds {
		if m := r.meters[k.name]; m != nil {
			rows = append(rows, rowOf(g.scenario.name+"/"+size.name+"/"+k.name, k.what, m))
		}
	}
	if err != nil {
		return rows, err
	}
	looked := slices.Collect(maps.Values(r.seen))
	if long != nil {
		looked = append(looked, long)
	}
	defer closeAll(looked)
	for _, s := range looked {
		s.Part()
	}
	return b.finish(ctx, looked, u, rows...)
}

// load stores a size's conversations, and returns the session of the long one, or nil.
func (g *grower) load(ctx context.Context, size growth) (long *load.Session, err error) {
	f, began := g.bench.floor, time.Now()
	err = f.Grow(ctx, floor.Copies{Template: g.template.Conversation, Prefix: g.id(size.name + "-"), Objects: size.objects, Messages: size.messages})
	if err == nil && size.long > 0 {
		// Copies are numbered, also where there is one.
		long = g.session(size.name+"-long-1", size.long)
		err = f.Grow(ctx, floor.Copies{Template: g.template.Conversation, Prefix: g.id(size.name + "-long-"), Objects: 1, Messages: size.long})
	}
	if err == nil {
		err = f.Settle(ctx)
	}
	fmt.Fprintf(g.bench.log, "  %s: %s conversations, %s messages, stored in %.0f s\n", size.name, thousands(float64(size.objects+min(1, size.long))),
		thousands(float64(size.objects*size.messages+size.long)), time.Since(began).Seconds())
	return long, err
}

// growRound is what one client does at a size, round by round.
type growRound struct {
	*grower

	size   growth
	long   *load.Session
	seen   map[string]*load.Session // by id: all conversations that were looked at
	meters map[string]*load.Meter
}

// until makes rounds, at least one.
func (r *growRound) until(ctx context.Context, end time.Time) error {
	for {
		if err := r.once(ctx); err != nil || !time.Now().Before(end) {
			return err
		}
	}
}

// once looks at some conversations: for the first time, again, and to append. What is at hand in the server is
// displaced before what is to come first.
func (r *growRound) once(ctx context.Context) error {
	now := r.bench.began // of the messages: when they were sent is not looked at
	picked := r.pick()
	each := func(kind string, do func(*load.Session) error) (err error) {
		for _, s := range picked {
			if err == nil {
				err = r.time(kind, func() error { return do(s) })
			}
		}
		return err
	}
	read := func(s *load.Session) error {
		return s.Read(ctx, s.Conversation, int32(min(r.size.messages, readLimit)))
	} //nolint:gosec // at most 20
	add := func(s *load.Session) error { return s.Append(ctx, now) }
	err := r.displace(ctx)
	for _, step := range []struct {
		kind string
		do   func(*load.Session) error
	}{
		{"read-first", read},
		{"read", read},
		{"append", add},
		{"list", func(s *load.Session) error { return s.Conversations(ctx, readLimit) }},
	} {
		if err == nil {
			err = each(step.kind, step.do)
		}
	}
	if err == nil && r.long != nil {
		err = errors.Join(
			each("append-long", func(*load.Session) error { return r.long.Append(ctx, now) }),
			each("read-long", func(*load.Session) error { return r.long.Read(ctx, r.long.Conversation, readLimit) }),
			each("page-long", func(*load.Session) error {
				return r.long.Page(ctx, rand.Int64N(int64(max(1, r.size.long-readLimit))), readLimit) //nolint:gosec // which is no secret
			}))
	}
	if err == nil {
		err = r.displace(ctx)
	}
	if err == nil {
		err = each("append-first", add)
	}
	return err
}

func (r *growRound) time(kind string, do func() error) error {
	m := r.meters[kind]
	if m == nil {
		m = load.NewMeter()
		r.meters[kind] = m
	}
	if err := m.Time(do); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	return nil
}

// pick picks conversations at random.
func (r *growRound) pick() (picked []*load.Session) {
	for range min(growSample, r.size.objects) {
		name := fmt.Sprintf("%s-%d", r.size.name, 1+rand.IntN(r.size.objects)) //nolint:gosec // which is no secret
		s := r.seen[name]
		if s == nil {
			s = r.session(name, r.size.messages)
			r.seen[name] = s
		}
		if !slices.Contains(picked, s) {
			picked = append(picked, s)
		}
	}
	return picked
}

// displace reads so much that the server has nothing else at hand.
func (r *growRound) displace(ctx context.Context) error {
	for _, f := range r.fillers {
		if err := f.Read(ctx, f.Conversation, 1); err != nil {
			return err
		}
	}
	return nil
}
