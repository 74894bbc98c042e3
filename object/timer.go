package object

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

const (
	// MaxTimerTries is after how many failures a timer is parked.
	MaxTimerTries = 10
	// maxTimers is how many timers an object may have, and maxTimerName how many bytes the name of one.
	maxTimers    = 1000
	maxTimerName = 128
	// timersInFlight is how many due timers a process runs at once. They share their tenants' lanes with all other
	// changes, so however many are due, a writer waits behind no more than these.
	timersInFlight = 128
	// timersInView is how many due timers of a kind are looked at, where more are due than are taken, so that each tenant has its
	// turn: some milliseconds of reading.
	timersInView = 20_000
	// timersAlone is how often the oldest are taken after a look found those of one tenant only: it has not to be repeated at once.
	timersAlone = 7
	// timerLease is how long a timer is left to the process that claimed it, and so how long it waits if that dies.
	timerLease = 20 * time.Second
	// firstTimerPause is how long a timer waits after its first failure; each further one doubles it.
	firstTimerPause = time.Second
	// newerPause is how long a timer waits whose object was written by a newer release, which may be about to run it.
	newerPause = 5 * time.Second
	// clockSlack is how far the extrapolated clock may be ahead of the database's.
	clockSlack = 2 * time.Millisecond
)

// timer is a named wake-up of an object.
type timer struct {
	name string
	due  time.Time
}

// timers are those of one object, by name. They are immutable: methods return new values.
type timers []timer

func (ts timers) search(name string) (int, bool) {
	return slices.BinarySearchFunc(ts, name, func(t timer, name string) int { return strings.Compare(t.name, name) })
}

func (ts timers) find(name string) (time.Time, bool) {
	if i, ok := ts.search(name); ok {
		return ts[i].due, true
	}
	return time.Time{}, false
}

// with sets a timer, in whole microseconds and never early.
func (ts timers) with(name string, at time.Time) timers {
	at = at.Add(time.Microsecond - 1).Truncate(time.Microsecond).UTC()
	i, ok := ts.search(name)
	if ok && ts[i].due.Equal(at) {
		return ts
	}
	out := append(make(timers, 0, len(ts)+1), ts[:i]...)
	out = append(out, timer{name, at})
	if ok {
		i++
	}
	return append(out, ts[i:]...)
}

func (ts timers) without(name string) timers {
	i, ok := ts.search(name)
	if !ok {
		return ts
	}
	return append(append(make(timers, 0, len(ts)-1), ts[:i]...), ts[i+1:]...)
}

// diff tells each timer that is other than it was: set at a time, or cleared.
func (ts timers) diff(is timers, set func(timer), cleared func(name string)) {
	for len(ts) > 0 || len(is) > 0 {
		switch {
		case len(is) == 0 || len(ts) > 0 && ts[0].name < is[0].name:
			cleared(ts[0].name)
			ts = ts[1:]
		case len(ts) == 0 || is[0].name < ts[0].name:
			set(is[0])
			is = is[1:]
		default:
			if !ts[0].due.Equal(is[0].due) {
				set(is[0])
			}
			ts, is = ts[1:], is[1:]
		}
	}
}

// encode is the timers as they are stored; empty for none.
func (ts timers) encode() (string, error) {
	if len(ts) == 0 {
		return "", nil
	}
	m := make(map[string]time.Time, len(ts))
	for _, t := range ts {
		m[t.name] = t.due
	}
	b, err := json.Marshal(m)
	return string(b), err
}

func decodeTimers(stored string) (timers, error) {
	if stored == "" {
		return nil, nil
	}
	var m map[string]time.Time
	if err := json.Unmarshal([]byte(stored), &m); err != nil {
		return nil, fmt.Errorf("object: stored timers cannot be read: %w", err)
	}
	ts := make(timers, 0, len(m))
	for name, due := range m {
		ts = append(ts, timer{name, due.UTC()})
	}
	slices.SortFunc(ts, func(a, b timer) int { return strings.Compare(a.name, b.name) })
	return ts, nil
}

// undo is, as JSON, what turns is into ts again: when the timers that differ were due, null for those that were not
// set. It is empty where none differs.
func (ts timers) undo(is timers) (string, error) {
	var m map[string]*time.Time
	note := func(name string) {
		if m == nil {
			m = map[string]*time.Time{}
		}
		if due, ok := ts.find(name); ok {
			m[name] = &due
		} else {
			m[name] = nil
		}
	}
	ts.diff(is, func(t timer) { note(t.name) }, note)
	if m == nil {
		return "", nil
	}
	b, err := json.Marshal(m)
	return string(b), err
}

// storeTimers adds to the batch's statement what changes about the object's timers, and returns all of them as they are stored.
func (w *work) storeTimers(c *db.Changes, name db.Name) (stored string, err error) {
	w.wake = time.Time{}
	var was timers // those in the table
	if !w.fresh {
		was = w.base.timers
	}
	is := w.cur.timers
	was.diff(is, func(t timer) {
		c.Timers = append(c.Timers, db.TimerRow{Name: name, Owner: w.cur.owner, Timer: t.name, Due: t.due})
		if w.wake.IsZero() || t.due.Before(w.wake) {
			w.wake = t.due
		}
	}, func(timer string) {
		c.Timers = append(c.Timers, db.TimerRow{Name: name, Timer: timer})
	})
	if len(is) == 0 {
		return "", nil
	}
	return is.encode()
}

// fire is the closure of a timer's change. What it finds under the fence decides: a timer that another process has run
// meanwhile, or that was cleared or set again, is not there any more.
func (k *kind) fire(name string, due time.Time, stale *bool) func(*txn) error {
	return func(t *txn) error {
		at, ok := t.timers.find(name)
		if *stale = !ok || !at.Equal(due); *stale {
			t.Unchanged()
			return nil
		}
		t.ClearTimer(name)
		err := k.onTimer(t, name)
		t.unchanged = false // the timer is gone
		t.Emit("timer:" + name)
		return err
	}
}

// scheduler finds due timers, of all tenants, and runs them as changes of their objects. Safe for concurrent use.
type scheduler struct {
	rt      *Runtime
	enabled bool
	poll    time.Duration
	nudge   chan struct{} // capacity 1: wake has moved

	stop chan struct{} // closed once

	mu    sync.Mutex // guards what follows; nothing slow happens under it
	kinds map[string]*kind
	wake  time.Time // when to look next
}

func newScheduler(rt *Runtime, c Config) *scheduler {
	s := &scheduler{
		rt: rt, enabled: c.Timers, poll: c.TimerPoll, nudge: make(chan struct{}, 1), stop: make(chan struct{}),
		kinds: map[string]*kind{},
	}
	if s.enabled {
		rt.workers.Go(s.run)
	}
	if c.Metrics != nil {
		c.Metrics.MustRegister(newTimerCounts(s)) // also where they are run elsewhere: an alert sees that nobody does
	}
	return s
}

// kindNames are the kinds that have timers, in random order.
func (s *scheduler) kindNames() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.kinds))
}

// add makes the timers of a kind known.
func (s *scheduler) add(k *kind) {
	s.mu.Lock()
	s.kinds[k.name] = k
	s.mu.Unlock()
	s.expect(s.rt.db.Now())
}

func (s *scheduler) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped() {
		close(s.stop)
	}
}

// expect sees to it that timers are looked for once at has come; the zero time is none.
func (s *scheduler) expect(at time.Time) {
	if at.IsZero() || !s.enabled {
		return
	}
	at = at.Add(clockSlack)
	s.mu.Lock()
	earlier := at.Before(s.wake)
	if earlier {
		s.wake = at
	}
	s.mu.Unlock()
	if earlier {
		select {
		case s.nudge <- struct{}{}:
		default:
		}
	}
}

// run looks for due timers, at the time of the next one that this process has set and every poll interval besides,
// and runs them, so many at a time.
func (s *scheduler) run() {
	done := make(chan struct{}, timersInFlight)
	look := time.NewTimer(0)
	defer look.Stop()
	free, failing, more, alone := timersInFlight, false, false, 0
	for {
		select {
		case <-s.stop:
			return
		case <-done:
			free++
		case <-s.nudge:
		case <-look.C:
			s.expect(s.rt.db.Now().Add(-clockSlack)) // also where the estimate of its clock stands still
		}
		wait := s.wait()
		for ; wait <= 0 && free >= timersInFlight/2 && !s.stopped(); wait = s.wait() {
			asked := free
			s.plan(s.rt.db.Now().Add(s.poll*9/10 + rand.N(s.poll/5+1))) //nolint:gosec // jitter
			inTurn := more && alone == 0
			due, err := s.claim(asked, inTurn)
			alone = max(0, alone-1)
			if inTurn && ofOneTenant(due) {
				alone = timersAlone
			}
			if err != nil && !failing && s.rt.life.Err() == nil {
				s.rt.log.Warn("looking for due timers failed; they wait until it succeeds", "error", err)
			}
			failing = err != nil
			for _, d := range due {
				free--
				s.rt.workers.Go(func() {
					s.deliver(d)
					done <- struct{}{}
				})
			}
			if more = len(due) == asked; more {
				s.plan(s.rt.db.Now()) // look as soon as there is room
			}
		}
		look.Reset(max(wait, 0))
		if wait <= 0 {
			look.Stop() // only room is missing
		}
	}
}

func (s *scheduler) stopped() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

func (s *scheduler) plan(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake = at
}

// wait is how long there is nothing to look for. It is never longer than between two looks: where wake is, the clock was set back
// since.
func (s *scheduler) wait() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.rt.db.Now()
	if latest := now.Add(s.poll * 11 / 10); s.wake.After(latest) {
		s.wake = latest
	}
	return s.wake.Sub(now)
}

// ofOneTenant reports whether timers are all of one tenant.
func ofOneTenant(due []dbsqlc.ClaimTimersRow) bool {
	return !slices.ContainsFunc(due, func(r dbsqlc.ClaimTimersRow) bool { return r.TenantID != due[0].TenantID })
}

// claim takes up to n due timers for this process: the oldest, which costs least, or, where more are due than that, of each
// tenant in turn.
func (s *scheduler) claim(n int, inTurn bool) (due []dbsqlc.ClaimTimersRow, err error) {
	// The kinds are in random order, so that none comes last each time.
	a := dbsqlc.ClaimTimersParams{Kinds: s.kindNames(), AtMost: int32(n), LeaseSeconds: timerLease.Seconds()} //nolint:gosec // small
	if len(a.Kinds) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(s.rt.life, s.rt.commitTimeout)
	defer cancel()
	p := s.rt.db.NewJanitor()
	each := func(r *dbsqlc.ClaimTimersRow) error {
		due = append(due, *r)
		return nil
	}
	if inTurn {
		p.ClaimTimersInTurn(dbsqlc.ClaimTimersInTurnParams{
			Kinds: a.Kinds, AtMost: a.AtMost, LeaseSeconds: a.LeaseSeconds, ReadAtMost: timersInView,
		}, each)
	} else {
		p.ClaimTimers(a, each)
	}
	if err := s.rt.db.RunAndCommit(ctx, p); err != nil {
		return nil, err // what was claimed after all is found again when its lease is over
	}
	return due, nil
}

// RunDueTimers runs the timers of all tenants that are due, and those that become due meanwhile, until none is left or ctx ends. It
// returns how many it ran. A runtime with [Config.Timers] runs them by itself.
func (rt *Runtime) RunDueTimers(ctx context.Context) (ran int, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return ran, err
		}
		due, err := rt.timers.claim(timersInFlight, ran > 0) //nolint:contextcheck // it has bounds of its own
		if err != nil || len(due) == 0 {
			return ran, err
		}
		var delivered sync.WaitGroup
		for _, d := range due {
			delivered.Go(func() { rt.timers.deliver(d) }) //nolint:contextcheck // the same
		}
		delivered.Wait()
		ran += len(due)
	}
}

// deliver runs one timer and deals with its failure. What is lost on the way is found again when the lease is over.
func (s *scheduler) deliver(r dbsqlc.ClaimTimersRow) {
	rt := s.rt
	s.mu.Lock()
	k := s.kinds[r.Kind]
	s.mu.Unlock()
	var stale bool
	c := &change{
		ctx: rt.life, caller: identity.Identity{Tenant: identity.Tenant(r.TenantID), Service: true},
		done: make(chan struct{}), notBefore: r.DueTime, unmetered: true, run: k.fire(r.Name, r.DueTime, &stale),
	}
	err := rt.submit(rt.life, k, ID(r.ObjectID), c)
	if err == nil && !stale || rt.life.Err() != nil {
		return
	}
	p := rt.db.NewPipeline(db.Scope{Tenant: c.caller.Tenant, Service: true})
	if err == nil || errors.Is(err, ErrNotFound) {
		p.DropTimer(dbsqlc.DropTimerParams{
			TenantID: r.TenantID, Kind: r.Kind, ObjectID: r.ObjectID, Name: r.Name, DueTime: r.DueTime,
		})
	} else {
		p.SettleTimer(s.settle(r, err))
	}
	ctx, cancel := context.WithTimeout(rt.life, rt.commitTimeout)
	defer cancel()
	if err := rt.db.RunAndCommit(ctx, p); err != nil {
		rt.log.WarnContext(ctx, "a timer's failure could not be noted; it runs again when its lease is over", "error", err)
	}
}

// settle is what becomes of a timer whose change failed. Only failures of its own count as tries.
func (s *scheduler) settle(r dbsqlc.ClaimTimersRow, err error) *dbsqlc.SettleTimerParams {
	p := &dbsqlc.SettleTimerParams{
		TenantID: r.TenantID, Kind: r.Kind, ObjectID: r.ObjectID, Name: r.Name, DueTime: r.DueTime, NextTime: r.NextTime,
		Attempts: r.Attempts, LastError: r.LastError,
	}
	now := s.rt.db.Now()
	overloaded, full := errors.AsType[*OverloadedError](err)
	switch {
	case errors.Is(err, ErrClosed), errors.Is(err, db.ErrUnavailable), errors.Is(err, db.ErrContention), errors.Is(err, db.ErrOutcomeUnknown):
	case full:
		p.NextTime = now.Add(overloaded.RetryAfter + rand.N(time.Second)) //nolint:gosec // jitter
	case errors.Is(err, ErrNewerSchema):
		p.NextTime = now.Add(newerPause)
	default:
		p.Attempts++
		p.Parked = p.Attempts >= MaxTimerTries
		p.LastError = errorClass(err)
		pause := firstTimerPause << min(p.Attempts-1, MaxTimerTries)
		p.NextTime = now.Add(pause*3/4 + rand.N(pause/2)) //nolint:gosec // jitter
		s.rt.log.Warn("a timer failed", "tenant", r.TenantID, "kind", r.Kind, "object", r.ObjectID, "timer", r.Name,
			"attempts", p.Attempts, "parked", p.Parked, "error", err)
	}
	return p
}

// errorClass is what is kept of an error, in a word or two: its text may hold what somebody said.
func errorClass(err error) string {
	if _, ok := errors.AsType[*PanicError](err); ok {
		return "panic"
	}
	if _, ok := errors.AsType[*TooLargeError](err); ok {
		return "too large"
	}
	if errors.Is(err, ErrInvalid) || errors.Is(err, db.ErrInvalidData) {
		return "invalid value"
	}
	return "refused"
}
