package bounds

import (
	"context"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"holdfast/identity"
)

// ThreadsPerCore is how many threads Go is to run at once on a core: cmd/holdfast sets GOMAXPROCS so.
const ThreadsPerCore = 2

// lineWait bounds the wait in a Line.
const lineWait = 4 * time.Second

// Line bounds how many calls do costly work at once, to fewer than there are cores: small calls always find a core. A call
// waits for the user's earlier calls, then for other users of the tenant, then for other tenants. So a flood of one user
// delays each other user by one call at a time. Safe for concurrent use.
type Line struct {
	places int64

	mu   sync.Mutex // guards held; nothing waits under it
	held map[Holder]*places
}

// places are those of a user, of a tenant (without a user), or of the server (without either).
type places struct {
	*semaphore.Weighted

	calls int // that hold one or wait for one
}

// NewLine returns an empty Line.
func NewLine() *Line {
	cores := runtime.GOMAXPROCS(0) / ThreadsPerCore
	return &Line{places: int64(max(1, cores-1)), held: map[Holder]*places{}}
}

// Enter waits for the caller's turn. The work ends with leave. The error is an OverloadedError after four seconds, or that of ctx.
func (l *Line) Enter(ctx context.Context, i identity.Identity) (leave func(), err error) {
	waiting, cancel := context.WithTimeout(ctx, lineWait)
	defer cancel()
	all := []struct {
		of   Holder
		most int64
		name string
	}{
		{Holder{i.Tenant, i.User}, max(1, l.places/4), "user"},
		{Holder{Tenant: i.Tenant}, max(1, l.places/2), "tenant"},
		{Holder{}, l.places, "server"},
	}
	if i.User == "" { // a service calls for many users
		all = all[1:]
	}
	var left []func()
	leave = func() {
		for _, f := range left {
			f()
		}
	}
	for _, one := range all {
		p := l.at(one.of, one.most)
		if err := p.Acquire(waiting, 1); err != nil {
			l.forget(one.of, p)
			leave()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, &OverloadedError{What: "work", Of: one.name, RetryAfter: time.Second}
		}
		left = append(left, func() {
			p.Release(1)
			l.forget(one.of, p)
		})
	}
	return leave, nil
}

func (l *Line) at(of Holder, most int64) *places {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.held[of]
	if p == nil {
		p = &places{Weighted: semaphore.NewWeighted(most)}
		l.held[of] = p
	}
	p.calls++
	return p
}

func (l *Line) forget(of Holder, p *places) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.calls--; p.calls == 0 {
		delete(l.held, of)
	}
}
