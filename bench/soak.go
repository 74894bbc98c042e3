package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/bench/internal/load"
)

const (
	soakSessions = 200
	soakServers  = 3
	// soakPostgres is the fault that Postgres ends at once; others are the number of a server, which is killed.
	soakPostgres = -1
	// soakSample is how often the first server's memory is looked at.
	soakSample = time.Second
	// soakGrowth is by how much the last third of a life may be above the one before.
	soakGrowth = 1.25
	// soakPerStream is how many goroutines a stream may have: streams move when a server ends.
	soakPerStream = 3
	// soakLeast is how many samples of a life say anything.
	soakLeast = 15
	// soakPatience bounds what is left for the watchers when the load is over.
	soakPatience = time.Minute
)

// soakPlan is what ends, one after the other, and how long after what was before: the servers but the first in turn, each fourth
// time Postgres, and in the middle the first, which has two long lives so. All are there again well before the end.
func soakPlan(d time.Duration, servers int) (interval time.Duration, faults []int) {
	interval = min(max(d/12, 5*time.Second), 30*time.Second)
	faults = make([]int, max(1, int(d/interval)-2))
	turn := 0
	for n := range faults {
		switch {
		case n == len(faults)/2:
			faults[n] = 0
		case n%4 == 3 || servers == 1:
			faults[n] = soakPostgres
		default:
			faults[n] = 1 + turn%(servers-1)
			turn++
		}
	}
	return interval, faults
}

// soakState is what a server tells of itself at one moment.
type soakState struct{ resident, heap, goroutines, streams float64 }

// soakLives are the states of the first server in each of its lives. Safe for concurrent use.
type soakLives struct {
	mu     sync.Mutex // guards what follows
	admin  string     // empty: it is dead
	states [][]soakState
}

// begin notes a new life, at an address; empty: the end of one.
func (l *soakLives) begin(admin string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.admin = admin; admin != "" {
		l.states = append(l.states, nil)
	}
}

// sample asks for the state, if there is somebody to ask.
func (l *soakLives) sample(ctx context.Context) error {
	l.mu.Lock()
	admin := l.admin
	l.mu.Unlock()
	if admin == "" {
		return nil
	}
	state, err := fetchSoakState(ctx, admin)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.admin != admin {
		return nil // killed meanwhile
	}
	if err == nil {
		life := len(l.states) - 1
		l.states[life] = append(l.states[life], state)
	}
	return err
}

// soak runs mixed work for a long time: sessions that append and read, each once a second, and a watcher of each, spread over
// all servers. Servers are killed and Postgres crashes in turn, and both are started again. Its error says what grew, or what
// was lost.
func (b *bench) soak(ctx context.Context) (err error) {
	sys := b.systems[0]
	b.report.Seconds = b.Soak.Seconds()
	all, err := b.sessions(ctx, sys, scenario{name: "soak", clients: soakSessions}, soakSessions, readLimit)
	if err != nil {
		return err
	}
	defer closeAll(all)
	watchers, err := load.WatchAll(ctx, sys.targets, sys.token, all, b.began)
	if err != nil {
		return err
	}
	defer watchers.Close()

	lives := &soakLives{}
	lives.begin(sys.servers[0].admin)
	run, abort := context.WithCancel(ctx) // the sessions' connections end with it
	defer abort()
	sampling, stop := context.WithCancel(run)
	defer stop()
	var beside errgroup.Group
	orAbort := func(err error) error {
		if err != nil {
			abort()
		}
		return err
	}
	beside.Go(func() error {
		return orAbort(every(sampling, soakSample, func() error { return lives.sample(sampling) }))
	})
	var ended soakFaults
	beside.Go(func() (err error) { ended, err = b.faults(sampling, sys, lives); return orAbort(err) })
	w := load.Workload{Workers: len(all), Warmup: time.Second, Duration: b.Soak, Observe: func(context.Context) func() {
		watchers.MeasureFrom(time.Now())
		return func() {}
	}}
	meters := load.Open(run, w, time.Second,
		func(ctx context.Context, i int, due time.Time) error { return all[i].Append(ctx, due) },
		func(ctx context.Context, i int, _ time.Time) error {
			return all[i].Read(ctx, all[i].Conversation, readLimit)
		})
	stop()
	if err := beside.Wait(); err != nil {
		return err
	}
	drained := watchers.Drain(ctx, all, soakPatience)
	b.report.Rows = []row{
		rowOf("soak/append", "mixed work and faults: appends", meters[0]),
		rowOf("soak/read", "mixed work and faults: reads", meters[1]),
		rowOf("soak/deliver", "mixed work and faults: from due to delivered", watchers.Delivered(b.Soak)),
	}
	fmt.Fprintf(b.log, "%d servers were killed, the first %d times, and Postgres crashed %d times; %d streams went on elsewhere\n",
		ended.servers, ended.first, ended.postgres, watchers.Again())
	return errors.Join(drained, b.verify(ctx, all), lives.grown(b.log))
}

// soakFaults counts what has ended.
type soakFaults struct{ servers, first, postgres int }

// faults has one thing after the other end and start again, until all have or ctx is over. What has ended is started again in any
// case: what is stored has still to be looked at.
func (b *bench) faults(ctx context.Context, sys *system, lives *soakLives) (ended soakFaults, err error) {
	interval, plan := soakPlan(b.Soak, len(sys.servers))
	tick := time.NewTicker(interval)
	defer tick.Stop()
	started := context.WithoutCancel(ctx)
	for _, fault := range plan {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ended, nil
		}
		switch fault {
		case soakPostgres:
			ended.postgres++
			err = sys.crash(started)
		case 0:
			ended.servers++
			ended.first++
			lives.begin("")
			if err = sys.restart(started, 0); err == nil {
				lives.begin(sys.servers[0].admin)
			}
		default:
			ended.servers++
			err = sys.restart(started, fault)
		}
		if err != nil {
			return ended, fmt.Errorf("start again what has ended: %w", err)
		}
	}
	return ended, nil
}

// grown says, of each life that was long enough, what has not stayed flat.
func (l *soakLives) grown(log io.Writer) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, states := range l.states {
		if len(states) < soakLeast {
			continue
		}
		middle, last := soakThirds(states)
		fmt.Fprintf(log, "life %d of the first server, %d s, from its second third to its last: memory %.1f to %.1f MiB, heap %.1f to %.1f MiB, goroutines %.0f to %.0f with %.0f to %.0f streams\n",
			n+1, len(states), middle.resident/(1<<20), last.resident/(1<<20), middle.heap/(1<<20), last.heap/(1<<20), middle.goroutines, last.goroutines, middle.streams, last.streams)
		err = errors.Join(err, grown(middle, last))
	}
	return err
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

// fetchSoakState asks a server for its metrics.
func fetchSoakState(ctx context.Context, admin string) (soakState, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+"/metrics", http.NoBody)
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
			"holdfast_watches": &s.streams,
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
		m.streams += s.streams / float64(len(states))
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
		{"goroutines", before.goroutines, after.goroutines, 50 + soakPerStream*max(0, after.streams-before.streams)},
	} {
		if g.is > g.was*soakGrowth && g.is > g.was+g.insensitive {
			err = errors.Join(err, fmt.Errorf("%s grew from %.0f to %.0f", g.what, g.was, g.is))
		}
	}
	return err
}
