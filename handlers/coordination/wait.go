package coordination

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

// Those who wait for the same operation of an API stand in a line, one line in each process. The users of a line take turns, so that
// a user with many calls does not keep one with few waiting. Only who has the turn asks; the others need no database.

const (
	maxWaiting      = 1000 // of a tenant
	maxUserWaiting  = 100  // of a user
	defaultWaitTime = time.Minute
	heartbeatEvery  = 15 * time.Second
	// What was taken may be given back early, and a pause cleared by hand: who has the turn asks at least so often.
	askAtLeast     = 5 * time.Second
	askAtLeastPool = time.Second
)

type lineKey struct {
	tenant         identity.Tenant
	api, operation string
}

type lines struct {
	mu  sync.Mutex // guards all below; nothing waits while it is held
	all map[lineKey][]*queue
}

// waiting counts those of a tenant, and of one of its users.
func (l *lines) waiting(tenant identity.Tenant, user identity.User) (all, own int) {
	for key, line := range l.all {
		for _, q := range line {
			if key.tenant == tenant {
				all += len(q.waiting)
				if q.user == user {
					own += len(q.waiting)
				}
			}
		}
	}
	return all, own
}

// queue is one user's part of a line. The first waiter of the first queue has the turn.
type queue struct {
	user    identity.User
	waiting []*waiter
}

type waiter struct {
	key  lineKey
	user identity.User
	turn chan struct{} // closed when it has the turn
}

// join puts one more into a line. ahead is how many have their turns before.
func (l *lines) join(key lineKey, user identity.User) (w *waiter, ahead int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w = &waiter{key, user, make(chan struct{})}
	line, first := l.all[key], len(l.all[key]) == 0
	switch all, own := l.waiting(key.tenant, user); {
	case all >= maxWaiting:
		return nil, 0, problem.LimitReached("tenant", "waiting", maxWaiting, fmt.Sprintf("%d calls of the tenant wait already, the most that may; use Acquire", maxWaiting), time.Second)
	case own >= maxUserWaiting && user != "":
		return nil, 0, problem.LimitReached("user", "waiting", maxUserWaiting, fmt.Sprintf("%d calls of the user wait already, the most that may; use Acquire", maxUserWaiting), time.Second)
	}
	i := slices.IndexFunc(line, func(q *queue) bool { return q.user == user })
	if i < 0 {
		i = len(line)
		line = append(line, &queue{user: user})
	}
	before := len(line[i].waiting)
	for j, q := range line {
		turns := before
		if j < i {
			turns++
		}
		ahead += min(turns, len(q.waiting))
	}
	line[i].waiting = append(line[i].waiting, w)
	if l.all == nil {
		l.all = map[lineKey][]*queue{}
	}
	if l.all[key] = line; first {
		close(w.turn)
	}
	return w, ahead, nil
}

// leave takes a waiter out of its line. If it had the turn, the next user has it.
func (l *lines) leave(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := l.all[w.key]
	i := slices.IndexFunc(line, func(q *queue) bool { return q.user == w.user })
	q := line[i]
	at := slices.Index(q.waiting, w)
	q.waiting = slices.Delete(q.waiting, at, at+1)
	had := i == 0 && at == 0
	if had || len(q.waiting) == 0 {
		line = slices.Delete(line, i, i+1)
		if len(q.waiting) > 0 {
			line = append(line, q)
		}
	}
	if l.all[w.key] = line; len(line) == 0 {
		delete(l.all, w.key)
	} else if had {
		close(line[0].waiting[0].turn)
	}
}

// AcquireAndWait implements CoordinationService.
func (m *Manager) AcquireAndWait(
	ctx context.Context, req *coordinationv1.AcquireAndWaitRequest, stream *connect.ServerStream[coordinationv1.AcquireAndWaitResponse],
) error {
	return m.acquireAndWait(ctx, req, stream.Send)
}

func (m *Manager) acquireAndWait(ctx context.Context, req *coordinationv1.AcquireAndWaitRequest, send func(*coordinationv1.AcquireAndWaitResponse) error) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	ask := req.GetAcquire()
	if ask.GetPeek() {
		return problem.InvalidArgument("acquire.peek", "takes nothing, so there is nothing to wait for; use Acquire")
	}
	wait := defaultWaitTime
	if req.GetMaxWait() != nil {
		wait = req.GetMaxWait().AsDuration()
	}
	over := time.NewTimer(wait)
	defer over.Stop()
	beat := time.NewTicker(heartbeatEvery)
	defer beat.Stop()
	key := lineKey{caller.Tenant, ask.GetApi(), ask.GetOperation()}
	w, ahead, err := m.lines.join(key, caller.User)
	if err != nil {
		return err
	}
	defer func() {
		if w != nil {
			m.lines.leave(w)
		}
	}()
	if ahead > 0 {
		if err := send(&coordinationv1.AcquireAndWaitResponse{Ahead: int32(ahead)}); err != nil { //nolint:gosec // at most maxWaiting
			return err
		}
	}
	// pause is until the next try of who has the turn, or of who has stepped aside; its channel is nil while another has it.
	pause := time.NewTimer(askAtLeast)
	defer pause.Stop()
	pause.Stop()
	aside, turn := false, w.turn
	var got *coordinationv1.AcquireResponse
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-over.C:
			if got == nil { // it never had the turn
				peek := proto.CloneOf(ask)
				peek.Peek, peek.GrantId = true, ""
				got, err = m.Acquire(ctx, peek)
			}
			return sendLast(got, err, send)
		case <-beat.C:
			if err := send(&coordinationv1.AcquireAndWaitResponse{Heartbeat: true}); err != nil {
				return err
			}
			continue
		case <-turn:
			turn = nil
		case <-pause.C:
			if aside {
				aside = false
				if w, _, err = m.lines.join(key, caller.User); err != nil {
					return err
				}
				turn = w.turn
				continue
			}
		}
		if got, err = m.Acquire(ctx, ask); err != nil || got.GetAllowed() {
			return sendLast(got, err, send)
		}
		if ownLimit(got) { // it concerns nobody else in the line
			m.lines.leave(w)
			w, aside = nil, true
		}
		pause.Reset(askAgainAfter(got))
	}
}

func sendLast(got *coordinationv1.AcquireResponse, err error, send func(*coordinationv1.AcquireAndWaitResponse) error) error {
	if err != nil {
		return err
	}
	return send(&coordinationv1.AcquireAndWaitResponse{Acquired: got})
}

// ownLimit reports whether it is only the user's own limits that refuse.
func ownLimit(got *coordinationv1.AcquireResponse) bool {
	return got.GetWaitReason() == coordinationv1.WaitReason_WAIT_REASON_LIMIT && !slices.ContainsFunc(got.GetLimits(), func(s *coordinationv1.Standing) bool {
		return s.GetRefused() && s.GetScope() != coordinationv1.Scope_SCOPE_USER
	})
}

// askAgainAfter is when to ask again after a refusal, with a little jitter because other processes were told the same.
func askAgainAfter(got *coordinationv1.AcquireResponse) time.Duration {
	after, most := got.GetRetryAfter().AsDuration(), askAtLeast
	if got.GetWaitReason() == coordinationv1.WaitReason_WAIT_REASON_PROBE ||
		slices.ContainsFunc(got.GetLimits(), func(s *coordinationv1.Standing) bool { return s.GetRefused() && s.GetWindow() == nil }) {
		most = askAtLeastPool
	}
	after = max(min(after, most), 5*time.Millisecond)
	return after + time.Duration(rand.Int64N(int64(after/20)+1)) //nolint:gosec // it is jitter
}
