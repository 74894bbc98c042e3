// Package footprint keeps a server's memory within a bound, and lets it use that bound.
package footprint

import (
	"context"
	"runtime/debug"
	"time"
)

const (
	// soft is the limit that the garbage collector works towards. The program's own pages come on top, and with 1,000
	// streams both together stay under 128 MB.
	soft = 97 << 20
	// growth is how much the heap may grow between two collections, in percent, as long as it stays within the limit. At
	// Go's own 100 a server of few sessions collects five times as often as its memory asks for, which is a quarter of
	// its CPU.
	growth = 400
	// period is how often the program's pages are given back.
	period = time.Minute
)

// Keep sets the collector's limits, but for those that the environment sets, and gives the program's unused pages back
// until ctx ends.
func Keep(ctx context.Context, env func(string) (string, bool)) {
	if v, _ := env("GOMEMLIMIT"); v == "" {
		debug.SetMemoryLimit(soft)
	}
	if v, _ := env("GOGC"); v == "" {
		debug.SetGCPercent(growth)
	}
	go func() {
		ticker := time.NewTicker(period)
		defer ticker.Stop()
		for {
			releaseProgram()
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
}
