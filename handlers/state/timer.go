package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	statev1 "holdfast/gen/holdfast/state/v1"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// A timer of an object's own:
//
//	set ──> due ──> taken ──> finished, in the change that it causes
//	 ^               │ failed, or the lease is over
//	 └── later <─────┴──> parked, after maxAttempts
//
// All of it is in the object's state. The runtime's timer of the same name says when the next step comes by itself: it is due, or its
// lease is over. An order lists the objects that have due timers, the oldest first.

const (
	maxTimers     = 100
	maxAttempts   = 10
	firstBackoff  = time.Second
	defaultLease  = 30 * time.Second
	takersAtOnce  = 8
	leaseIsOver   = "its lease was over before it was finished"
	laterThanThat = 10 * 365 * 24 * time.Hour
)

// dueOrders list an object that has due timers by the oldest of them, among all and among those of its owner.
func dueOrders(s state) []object.Order {
	var first *storev1.Timer
	for _, t := range s.GetTimers() {
		if due(t) && (first == nil || t.GetDueTime().AsTime().Before(first.GetDueTime().AsTime())) {
			first = t
		}
	}
	if first == nil {
		return nil
	}
	// Lists begin with the latest.
	at := time.UnixMilli(lastMilli - min(max(first.GetDueTime().AsTime().UnixMilli(), 0), lastMilli))
	return []object.Order{{Term: dueTerm(s.GetType()), Time: at}, {Term: dueTerm(ownerTerm(s.GetType(), s.GetOwner())), Time: at}}
}

// lastMilli is in the year 2286.
const lastMilli = 9_999_999_999_999

func dueTerm(of string) string { return of + "/due" }

// due reports whether a worker can take a timer.
func due(t *storev1.Timer) bool {
	return t.GetNextTime() == nil && t.GetLease() == nil && !t.GetParked()
}

// wakeUp is when the next step of a timer comes by itself; zero: never.
func wakeUp(t *storev1.Timer) time.Time {
	switch {
	case t.GetLease() != nil:
		return t.GetLease().GetExpireTime().AsTime()
	case t.GetNextTime() != nil:
		return t.GetNextTime().AsTime()
	}
	return time.Time{}
}

// setWakeUps sets the runtime's timers for those of the state. was are those before the change.
func setWakeUps(tx *object.Tx[state], was map[string]*storev1.Timer) {
	for name := range was {
		if tx.State().GetTimers()[name] == nil {
			tx.ClearTimer(name)
		}
	}
	for name, t := range tx.State().GetTimers() {
		if at := wakeUp(t); at.IsZero() {
			tx.ClearTimer(name)
		} else {
			tx.SetTimer(name, at)
		}
	}
}

// onTimer makes the step of a timer whose time has come.
func onTimer(tx *object.Tx[state], name string) error {
	if t := tx.State().GetTimers()[name]; t != nil {
		step(t, tx.Now())
	}
	setWakeUps(tx, nil)
	return nil
}

func step(t *storev1.Timer, now time.Time) {
	if t.GetLease() != nil {
		fail(t, now, leaseIsOver, nil)
	} else {
		t.NextTime = nil
	}
}

func take(t *storev1.Timer, version int64, l *storev1.Lease) {
	l.Number = version
	t.Attempts++
	t.Lease = l
}

// schedule makes a timer due at an instant, or now.
func schedule(t *storev1.Timer, at, now time.Time) {
	t.NextTime = nil
	if at.After(now) {
		t.NextTime = timestamppb.New(at)
	}
}

// fail ends an attempt without success.
func fail(t *storev1.Timer, now time.Time, said string, retryAfter *durationpb.Duration) {
	t.Lease, t.LastError = nil, said
	if t.Parked = t.GetAttempts() >= maxAttempts; t.GetParked() {
		return
	}
	off := firstBackoff << (t.GetAttempts() - 1)
	if retryAfter != nil {
		off = retryAfter.AsDuration()
	}
	schedule(t, now.Add(off), now)
}

func (c *change) setTimer(op *statev1.SetTimer) error {
	at := op.GetDueTime().AsTime()
	if op.GetDueIn() != nil {
		at = c.now.Add(op.GetDueIn().AsDuration())
	}
	if at.After(c.now.Add(laterThanThat)) {
		return problem.InvalidArgument("set_timer.due_time", "is more than 10 years ahead")
	}
	t := &storev1.Timer{DueTime: timestamppb.New(at)}
	schedule(t, at, c.now)
	if c.state.Timers == nil {
		c.state.Timers = map[string]*storev1.Timer{}
	}
	if c.state.Timers[op.GetName()] = t; len(c.state.GetTimers()) > maxTimers {
		return problem.LimitReached("object", "timers", maxTimers, fmt.Sprintf("an object has at most %d timers at a time", maxTimers), 0)
	}
	return nil
}

func (c *change) finishTimer(op *statev1.FinishTimer, r *statev1.Result) error {
	t := c.state.GetTimers()[op.GetName()]
	if t.GetLease() == nil || t.GetLease().GetNumber() != int64(op.GetFencingToken()) {
		return problem.New(errorv1.Reason_REASON_FENCED, fmt.Sprintf(
			"timer %s: %d is not its newest fencing token; do nothing more for it", op.GetName(), op.GetFencingToken()))
	}
	switch o := op.GetOutcome().(type) {
	case nil:
		delete(c.state.GetTimers(), op.GetName())
	case *statev1.FinishTimer_Extend:
		t.Lease.ExpireTime = timestamppb.New(c.now.Add(o.Extend.AsDuration()))
		r.Lease = shownLease(t.GetLease())
		r.Lease.ExpiresIn = o.Extend
	case *statev1.FinishTimer_Failed:
		fail(t, c.now, cmp.Or(o.Failed.GetError(), "it failed"), o.Failed.GetRetryAfter())
	case *statev1.FinishTimer_Release:
		t.Lease, t.Attempts = nil, t.GetAttempts()-1
	}
	return nil
}

func shownTimer(t *storev1.Timer) *statev1.Timer {
	out := &statev1.Timer{}
	rpc.Set(out, t, "due_time", "next_time", "attempts", "last_error", "parked")
	if t.GetLease() != nil {
		out.Lease = shownLease(t.GetLease())
	}
	return out
}

// TakeTimers implements StateService.
func (m *Manager) TakeTimers(ctx context.Context, req *statev1.TakeTimersRequest) (*statev1.TakeTimersResponse, error) {
	res := &statev1.TakeTimersResponse{}
	take := func(ctx context.Context) (err error) {
		res.Timers, err = m.takeTimers(ctx, req)
		return err
	}
	if err := take(ctx); err != nil || len(res.GetTimers()) > 0 || req.GetWait().AsDuration() == 0 {
		return res, err
	}
	waiting, cancel := context.WithTimeoutCause(ctx, req.GetWait().AsDuration(), errNoneDue)
	defer cancel()
	err := m.kind.WatchList(waiting, func() (bool, error) {
		err := take(ctx) // what is being taken when the time is over is the worker's
		if err == nil && len(res.GetTimers()) > 0 {
			err = errTaken
		}
		return false, err
	})
	if cause := context.Cause(waiting); cause != nil {
		err = cmp.Or(cause, err)
	}
	if errors.Is(err, errTaken) || errors.Is(err, errNoneDue) || errors.Is(err, object.ErrWatchOver) || len(res.GetTimers()) > 0 {
		err = nil
	}
	return res, err
}

var (
	errTaken   = errors.New("state: timers were taken")
	errNoneDue = errors.New("state: no timer came due")
)

// takeTimers takes what is due. Those that others take meanwhile are left out.
func (m *Manager) takeTimers(ctx context.Context, req *statev1.TakeTimersRequest) (taken []*statev1.TakenTimer, err error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	of := req.GetType()
	if caller.User != "" {
		of = ownerTerm(of, string(caller.User))
	}
	page, err := m.kind.List(ctx, object.ListOptions{Order: dueTerm(of), PageSize: object.MaxPageSize})
	if err != nil {
		return nil, err
	}
	type candidate struct {
		id  object.ID
		due int
	}
	all := make([]candidate, len(page.Items))
	for i, s := range page.Items {
		all[i].id = s.ID
		for _, t := range s.State.GetTimers() {
			if due(t) {
				all[i].due++
			}
		}
	}

	var mu sync.Mutex // guards taken, all and err
	var takers sync.WaitGroup
	missing := max(1, int(req.GetLimit()))
	for range min(takersAtOnce, len(all), missing) {
		takers.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			for len(all) > 0 && missing > 0 && err == nil {
				id, most := all[0].id, min(all[0].due, missing)
				all, missing = all[1:], missing-most
				mu.Unlock()
				got, failed := m.takeOf(ctx, id, req, most)
				mu.Lock()
				taken, missing = append(taken, got...), missing+most-len(got)
				if err = cmp.Or(err, failed); len(got) == 0 { // other workers are at the same ones: go out of their way
					rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] }) //nolint:gosec // it is no secret
				}
			}
		})
	}
	takers.Wait()
	if len(taken) > 0 { // they are the worker's now
		slices.SortStableFunc(taken, func(a, b *statev1.TakenTimer) int {
			return a.GetTimer().GetDueTime().AsTime().Compare(b.GetTimer().GetDueTime().AsTime())
		})
		return taken, nil
	}
	return nil, err
}

// takeOf takes due timers of one object.
func (m *Manager) takeOf(ctx context.Context, id object.ID, req *statev1.TakeTimersRequest, most int) (taken []*statev1.TakenTimer, err error) {
	lease := req.GetLeaseDuration()
	if lease == nil {
		lease = durationpb.New(defaultLease)
	}
	_, err = m.kind.Update(ctx, id, func(tx *object.Tx[state]) error {
		taken = nil
		s := tx.State()
		names := slices.SortedFunc(maps.Keys(s.GetTimers()), func(a, b string) int {
			x, y := s.GetTimers()[a], s.GetTimers()[b]
			return cmp.Or(x.GetDueTime().AsTime().Compare(y.GetDueTime().AsTime()), strings.Compare(a, b))
		})
		for _, name := range names {
			t := s.GetTimers()[name]
			if !due(t) || len(taken) == most {
				continue
			}
			take(t, int64(tx.Version())+1, &storev1.Lease{Holder: req.GetWorker(), ExpireTime: timestamppb.New(tx.Now().Add(lease.AsDuration()))})
			shown := shownTimer(t)
			shown.Lease.ExpiresIn = lease
			taken = append(taken, &statev1.TakenTimer{Ref: &statev1.Ref{Type: s.GetType(), Name: s.GetName(), Owner: &s.Owner}, Name: name, Timer: shown})
		}
		if len(taken) == 0 {
			tx.Unchanged()
			return nil
		}
		setWakeUps(tx, nil)
		tx.Emit("timers.taken")
		return nil
	})
	if err != nil {
		if errors.Is(err, object.ErrNotFound) { // it was deleted since
			err = nil
		}
		return nil, err
	}
	return taken, nil
}
