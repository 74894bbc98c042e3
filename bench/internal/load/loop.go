package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// pauseAfterError keeps a worker from spinning on a server that refuses at once.
const pauseAfterError = 5 * time.Millisecond

// Op is one request of one worker. due is when it was to be sent; a closed loop has no such plan and gives the time.
type Op func(ctx context.Context, worker int, due time.Time) error

// Workload says how many workers ask, and for how long.
type Workload struct {
	Workers int
	// Warmup comes first and is not measured, Duration follows and is.
	Warmup, Duration time.Duration
	// MaxRequests ends a closed loop early; 0: it ends by time alone.
	MaxRequests int64
	// Observe is called when the measured time begins, and what it returns when that time ends. It may be nil.
	Observe func(ctx context.Context) (stop func())
}

// window is the measured part of a run.
type window struct{ from, to time.Time }

func (w Workload) window(now time.Time) window {
	from := now.Add(w.Warmup)
	return window{from: from, to: from.Add(w.Duration)}
}

func (w window) contains(t time.Time) bool { return !t.Before(w.from) && t.Before(w.to) }

// Closed runs op in a loop in every worker, and measures the requests that were answered within the window.
func Closed(ctx context.Context, w Workload, op Op) *Meter {
	meter := NewMeter()
	var sent atomic.Int64
	win := w.window(time.Now())
	w.run(ctx, win, meter, func(worker int) {
		for began := time.Now(); began.Before(win.to) && ctx.Err() == nil; {
			if w.MaxRequests > 0 && sent.Add(1) > w.MaxRequests {
				return
			}
			err := op(ctx, worker, began)
			now := time.Now()
			switch {
			case err != nil && ctx.Err() == nil:
				meter.Fail(err)
				now = wait(ctx, now.Add(pauseAfterError))
			case err == nil && win.contains(now):
				meter.Observe(now.Sub(began))
			}
			began = now
		}
	})
	return meter
}

// Open sends each of ops once an interval from every worker, all evenly spread over the interval, and measures from the
// time that a request was due: the wait behind a slow one counts. It returns a meter for each op.
func Open(ctx context.Context, w Workload, interval time.Duration, ops ...Op) []*Meter {
	meters := make([]*Meter, len(ops))
	for i := range meters {
		meters[i] = NewMeter()
	}
	start := time.Now()
	win := w.window(start)
	w.run(ctx, win, meters[0], func(worker int) {
		for due := range schedule(start, win.to, interval, worker, w.Workers, len(ops)) {
			if wait(ctx, due.at); ctx.Err() != nil {
				return
			}
			err := ops[due.op](ctx, worker, due.at)
			switch {
			case err != nil && ctx.Err() == nil:
				meters[due.op].Fail(err)
			case err == nil && win.contains(due.at):
				meters[due.op].Observe(time.Since(due.at))
			}
		}
		wait(ctx, win.to)
	})
	for _, m := range meters[1:] {
		m.measuredFor(w.Duration)
	}
	return meters
}

// appointment is a request of an open loop: which, and when it is due.
type appointment struct {
	op int
	at time.Time
}

// schedule yields what one of several workers has to do from start to end: each op once an interval. Of each op,
// the workers' turns are spread evenly over the interval, and so are one worker's ops.
func schedule(start, end time.Time, interval time.Duration, worker, workers, ops int) func(func(appointment) bool) {
	return func(yield func(appointment) bool) {
		phase := interval * time.Duration(worker) / time.Duration(workers)
		for n := 0; ; n++ {
			at := start.Add(phase + interval*time.Duration(n)/time.Duration(ops))
			if !at.Before(end) || !yield(appointment{op: n % ops, at: at}) {
				return
			}
		}
	}
}

// run starts the workers, has the window observed, and returns when all of them are done.
func (w Workload) run(ctx context.Context, win window, meter *Meter, work func(worker int)) {
	measuring, cancel := context.WithCancel(ctx)
	defer cancel()
	var workers, observer sync.WaitGroup
	for i := range w.Workers {
		workers.Go(func() { work(i) })
	}
	observer.Go(func() {
		wait(measuring, win.from)
		stop := func() {}
		if w.Observe != nil {
			stop = w.Observe(ctx)
		}
		end := wait(measuring, win.to)
		stop()
		if end.After(win.to) {
			end = win.to
		}
		meter.measuredFor(max(0, end.Sub(win.from)))
	})
	workers.Wait()
	cancel() // where the workers ended early, so does the measured time
	observer.Wait()
}

// wait waits for that time or for the end of ctx, and returns the time that it is then.
func wait(ctx context.Context, until time.Time) time.Time {
	d := time.Until(until)
	if d <= 0 {
		return time.Now()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return time.Now()
}
