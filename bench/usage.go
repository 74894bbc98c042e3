package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"holdfast/bench/internal/load"
)

// cpuTimes are the CPU times of those who take part, and of the whole machine.
type cpuTimes struct{ server, database, generator, machine time.Duration }

// usage is what the processes of a system used within the measured time of a scenario. What cannot be found out stays 0.
type usage struct {
	system   *system
	name     string
	measured time.Duration

	cpuTimes

	resident int64 // the most memory of any server in RAM, in bytes

	profile sync.WaitGroup
	failed  error // of the profile, after it
}

func (b *bench) usage(s *system, name string) *usage {
	return &usage{system: s, name: name, measured: b.Duration}
}

// observe notes what was used so far, and starts a profile where one is wanted; the function that it returns notes what was
// used since.
func (u *usage) observe(ctx context.Context) (stop func()) {
	before := u.read()
	sampling, cancel := context.WithCancel(ctx)
	var sampler sync.WaitGroup
	sampler.Go(func() { u.sampleResident(sampling) })
	if u.system.pprof != "" {
		u.profile.Go(func() { u.failed = u.fetchProfile(ctx) })
	}
	return func() {
		cancel()
		sampler.Wait()
		now := u.read()
		u.cpuTimes = cpuTimes{now.server - before.server, now.database - before.database, now.generator - before.generator, now.machine - before.machine}
	}
}

func (u *usage) read() (t cpuTimes) {
	for _, p := range u.system.servers {
		used, _ := load.OwnCPUTime(p.cmd.Process.Pid)
		t.server += used
	}
	t.database, _ = load.CPUTime(u.system.postgres.PID())
	t.generator, _ = load.OwnCPUTime(os.Getpid())
	t.machine, _ = load.MachineCPUTime()
	return t
}

func (u *usage) sampleResident(ctx context.Context) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		for _, p := range u.system.servers {
			if now, err := load.Resident(p.cmd.Process.Pid); err == nil {
				u.resident = max(u.resident, now)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// row adds the usage to a scenario's first row; pgbench is the CPU time that pgbench used.
func (u *usage) row(r row, pgbench time.Duration) row {
	r.ServerCPU, r.DatabaseCPU, r.GeneratorCPU = u.server.Seconds(), u.database.Seconds(), (u.generator + pgbench).Seconds()
	r.OthersCPU = max(0, u.machine-u.server-u.database-u.generator-pgbench).Seconds()
	r.ServerRSSMiB = float64(u.resident) / (1 << 20)
	return r
}

// err waits for the profile, if there is one, and returns why it could not be had.
func (u *usage) err() error {
	u.profile.Wait()
	return u.failed
}

func (u *usage) fetchProfile(ctx context.Context) (err error) {
	const grace = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, u.measured+grace)
	defer cancel()
	at, err := url.Parse(u.system.servers[0].admin)
	if err != nil {
		return err
	}
	at = at.JoinPath("debug", "pprof", "profile")
	at.RawQuery = "seconds=" + strconv.Itoa(int(max(time.Second, u.measured)/time.Second))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), http.NoBody)
	if err != nil {
		return err
	}
	res, err := (&http.Client{}).Do(req)
	if err != nil {
		return fmt.Errorf("fetch a profile: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch a profile: %s", res.Status)
	}
	if err := os.MkdirAll(u.system.pprof, 0o755); err != nil { //nolint:gosec // profiles are no secret
		return err
	}
	f, err := os.Create(filepath.Join(u.system.pprof, u.name+u.system.name+".pprof"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, res.Body)
	return err
}
