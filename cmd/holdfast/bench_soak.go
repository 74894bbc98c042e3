package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/cmd/holdfast/internal/load"
)

const (
	soakSessions = 200
	// soakFault is how often a server other than the first is killed, and started again.
	soakFault = 15 * time.Second
	// soakSample is how often the first server's memory is looked at.
	soakSample = time.Second
	// soakGrowth is by how much the last third of the run may be above the one before.
	soakGrowth = 1.25
)

// soakSampleOf is what a server tells of itself at one moment.
type soakState struct{ resident, heap, goroutines float64 }

// soak runs mixed work for a long time: sessions that append and read, each once a second, and a watcher of each at the first
// server. All other servers are killed in turn. Its error says what grew, or was lost.
func (b *bench) soak(ctx context.Context) (err error) {
	if b.system, err = openBenchSystem(ctx, b); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.system.close(ctx)) }()
	s := scenario{name: "soak", across: true}
	all, err := b.sessions(ctx, s, soakSessions, soakSessions, 0)
	if err != nil {
		return err
	}
	defer closeAll(all)
	watchers, err := load.Watch(ctx, b.system.target, b.system.token, all, 4, b.began)
	if err != nil {
		return err
	}
	defer watchers.Close()

	around, stop := context.WithCancel(ctx)
	defer stop()
	var states []soakState
	kills := 0
	group, around := errgroup.WithContext(around)
	group.Go(func() error {
		return every(around, soakSample, func() error {
			state, err := b.system.state(around)
			if err == nil {
				states = append(states, state)
			}
			return err
		})
	})
	if len(b.system.processes) > 1 {
		group.Go(func() error {
			return every(around, soakFault, func() error {
				kills++
				return b.system.restart(around, 1+kills%(len(b.system.processes)-1))
			})
		})
	}
	b.system.serverPIDs = b.system.serverPIDs[:1] // the others are killed
	u := b.usage(s.name, true)
	w := load.Workload{Workers: len(all), Warmup: time.Second, Duration: b.Soak, MaxRequests: b.MaxRequests, Observe: func(ctx context.Context) func() {
		watchers.MeasureFrom(time.Now())
		return u.observe(ctx)
	}}
	meters := load.Open(ctx, w, time.Second,
		func(ctx context.Context, i int, due time.Time) error { return all[i].Append(ctx, due) },
		func(ctx context.Context, i int, _ time.Time) error {
			return all[i].Read(ctx, all[i].Conversation, readLimit)
		})
	stop()
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	drained := watchers.Drain(ctx, all, time.Minute)
	rows, err := b.finish(ctx, all, u,
		rowOf("soak/append", "mixed work and faults: appends", meters[0]),
		rowOf("soak/read", "mixed work and faults: reads", meters[1]),
		rowOf("soak/deliver", "mixed work and faults: from due to delivered", watchers.Delivered(b.Soak)))
	b.report.Rows = rows
	middle, last := soakThirds(states)
	fmt.Fprintf(b.log, "%d servers killed and started again; of the first, from the second third of the time to the last: "+
		"memory %.1f to %.1f MiB, heap %.1f to %.1f MiB, goroutines %.0f to %.0f\n",
		kills, middle.resident/(1<<20), last.resident/(1<<20), middle.heap/(1<<20), last.heap/(1<<20), middle.goroutines, last.goroutines)
	return errors.Join(drained, err, grown(middle, last))
}

// every calls do until ctx is over or do fails.
func every(ctx context.Context, d time.Duration, do func() error) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := do(); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// restart kills a server as kill -9 does, and starts it again at the same address.
func (s *benchSystem) restart(ctx context.Context, i int) error {
	s.processes[i].end(os.Kill)
	p, err := s.startServer(ctx, strings.TrimPrefix(s.processes[i].api, "http://"))
	if err != nil {
		return err
	}
	s.processes[i] = p
	return nil
}

// state asks the first server for its metrics.
func (s *benchSystem) state(ctx context.Context) (soakState, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.processes[0].admin+"/metrics", http.NoBody)
	if err != nil {
		return soakState{}, err
	}
	res, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return soakState{}, err
	}
	defer res.Body.Close()
	return parseSoakState(res.Body)
}

func parseSoakState(r io.Reader) (s soakState, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		into := map[string]*float64{
			"process_resident_memory_bytes": &s.resident, "go_memstats_heap_inuse_bytes": &s.heap, "go_goroutines": &s.goroutines,
		}[name]
		if into == nil {
			continue
		}
		if *into, err = strconv.ParseFloat(text, 64); err != nil {
			return s, err
		}
	}
	return s, lines.Err()
}

// soakThirds are the means of the second third and of the last: the first is a server's youth.
func soakThirds(states []soakState) (middle, last soakState) {
	third := len(states) / 3
	return soakMean(states[third : 2*third]), soakMean(states[2*third:])
}

func soakMean(states []soakState) (m soakState) {
	for _, s := range states {
		m.resident += s.resident / float64(len(states))
		m.heap += s.heap / float64(len(states))
		m.goroutines += s.goroutines / float64(len(states))
	}
	return m
}

// grown says what has not stayed flat.
func grown(before, after soakState) (err error) {
	for _, g := range []struct {
		what        string
		was, is     float64
		insensitive float64 // a difference that says nothing
	}{
		{"memory", before.resident, after.resident, 16 << 20},
		{"heap", before.heap, after.heap, 16 << 20},
		{"goroutines", before.goroutines, after.goroutines, 50},
	} {
		if g.is > g.was*soakGrowth && g.is > g.was+g.insensitive {
			err = errors.Join(err, fmt.Errorf("%s grew from %.0f to %.0f", g.what, g.was, g.is))
		}
	}
	return err
}
