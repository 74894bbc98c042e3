package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/cmd/holdfast/internal/load"
)

const (
	// streamMemory is what a server with all its streams is to fit in: 128 MB.
	streamMemory = 128e6 / (1 << 20) // MiB
	streamsFirst = 1000
	streamsStep  = 250
	streamsMost  = 8000 // a server takes no more of one tenant
	streamsOver  = 2    // steps beyond the limit: the first may be chance
	// streamsTogether share a connection, as they do behind a proxy.
	streamsTogether = 125
	streamsPrefix   = "streams/"
)

// runStreams opens more and more streams, each of a conversation of its own, until the server has no room for them,
// while 1,000 connections send 1,000 appends a second to all of these conversations in turn.
func runStreams(ctx context.Context, b *bench, s scenario) (rows []benchRow, err error) {
	const patience = 10 * time.Second
	all, err := b.sessions(ctx, s, streamsFirst, streamsFirst, 0)
	if err != nil {
		return nil, err
	}
	defer func() { closeAll(all) }()
	watchers, err := load.Watch(ctx, b.system.target, b.system.token, all, streamsFirst/streamsTogether, b.began)
	if err != nil {
		return nil, err
	}
	defer watchers.Close()
	turns := make([]int, streamsFirst)
	for over := 0; ; {
		u := b.usage(s.name+"-"+strconv.Itoa(len(all)), true)
		w := b.workload(streamsFirst, func(ctx context.Context) func() {
			watchers.MeasureFrom(time.Now())
			return u.observe(ctx)
		})
		load.Open(ctx, w, time.Second, func(ctx context.Context, i int, due time.Time) error {
			at := i + turns[i]*streamsFirst
			if turns[i]++; i+turns[i]*streamsFirst >= len(all) {
				turns[i] = 0
			}
			return all[at].Append(ctx, due)
		})
		if err := errors.Join(watchers.Drain(ctx, all, patience), ctx.Err()); err != nil {
			return rows, fmt.Errorf("with %d streams: %w", len(all), err)
		}
		row := rowOf(streamsPrefix+strconv.Itoa(len(all)), thousands(float64(len(all)))+" watchers: from due to delivered", watchers.Delivered(b.Duration))
		rows = append(rows, b.used([]benchRow{row}, u)...)
		if row := rows[len(rows)-1]; row.ServerRSSMiB == 0 || row.ServerRSSMiB >= streamMemory {
			if over++; over == streamsOver || len(all) >= streamsMost {
				break
			}
		}
		if all, err = b.moreStreams(ctx, all, watchers); err != nil {
			return rows, err
		}
	}
	for _, s := range all {
		s.Part()
	}
	return rows, b.verify(ctx, all)
}

// moreStreams makes the next conversations, whose sessions share the connections of the first, and their streams.
func (b *bench) moreStreams(ctx context.Context, all []*load.Session, watchers *load.Watchers) ([]*load.Session, error) {
	more := make([]*load.Session, streamsStep)
	for i := range more {
		number := len(all) + i
		more[i] = load.NewSession(b.system.target, b.system.token, fmt.Sprintf("%s-%d", strings.TrimSuffix(all[0].Conversation, "-0"), number), number, b.began)
		more[i].Share(all[number%streamsFirst])
		if err := more[i].Create(ctx); err != nil {
			return all, err
		}
	}
	return slices.Concat(all, more), watchers.Add(ctx, more, streamsStep/streamsTogether)
}

// streamsThatFit is the most streams with which, and with fewer, the server had less than streamMemory. ok is false where
// that was not measured.
func streamsThatFit(rows []benchRow) (n int, ok bool) {
	for _, r := range rows {
		text, is := strings.CutPrefix(r.Name, streamsPrefix)
		if !is || r.ServerRSSMiB == 0 {
			continue
		}
		ok = true
		if r.ServerRSSMiB >= streamMemory {
			break
		}
		n, _ = strconv.Atoi(text)
	}
	return n, ok
}
