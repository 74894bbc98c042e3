// Package footprint keeps a server's memory within a bound, and lets it use that bound.
package footprint

import (
	"context"
	"runtime/debug"
	"time"
)

const (
	// most is what a process may have in RAM: a little less than 128 MB, with 1,000 sessions and as many streams.
	most = 121 << 20
	// program is how much of the program's own pages is in use at least. (How much depends on the sizes in which the kernel
	// happens to have the file in its cache: 28 and 35 MiB were seen of one program.)
	program = 28 << 20
	// growth is how much the heap may grow between two collections, in percent, as long as it stays within the limit. At
	// Go's own 100 a server of few sessions collects five times as often as its memory asks for, which is a quarter of
	// its CPU.
	growth = 400
	// lookEvery is how often the limit is set anew, and releaseEvery how often the program's pages are given back.
	lookEvery    = time.Second
	releaseEvery = time.Minute
)

// Keep sets the collector's limits, but for those that the environment sets, and gives the program's unused pages back
// until ctx ends.
func Keep(ctx context.Context, env func(string) (string, bool)) {
	if v, _ := env("GOGC"); v == "" {
		debug.SetGCPercent(growth)
	}
	own, _ := env("GOMEMLIMIT")
	releaseProgram()
	limit := int64(0)
	look := func() {
		if l := limitBeside(programResident()); own == "" && (limit-l >= 1<<20 || l-limit >= 1<<20) {
			limit = l
			debug.SetMemoryLimit(l) // which stops the world for a moment
		}
	}
	look()
	go func() {
		ticks, releases := time.NewTicker(lookEvery), time.NewTicker(releaseEvery)
		defer ticks.Stop()
		defer releases.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-releases.C:
				releaseProgram()
			case <-ticks.C:
				look()
			}
		}
	}()
}

// limitBeside is the collector's limit beside so many bytes of the program's own pages.
func limitBeside(resident int64) int64 { return most - max(resident, program) }
