package handlers

import (
	"context"
	"sync"
	"time"

	"holdfast/db"
)

// finder looks sessions up. Look-ups that wait together share a round trip, and few are in flight: a thousand clients that
// refresh at once must not keep the connections from the commits that they wait for. It is safe for concurrent use.
type finder struct {
	find func(ctx context.Context, keys []string, sessions []db.SessionRef) (db.Found, error)

	mu       sync.Mutex // guards what follows; nothing slow happens under it
	waiting  []*finding
	inFlight int
}

// findsInFlight is how many round trips of look-ups may be on their way.
const findsInFlight = 2

type finding struct {
	ref  db.SessionRef
	done chan struct{} // closed when what follows is final

	found []db.FoundSession
	now   time.Time
	err   error
}

// session reads what there is of a session, and the database's clock.
func (f *finder) session(ctx context.Context, id string) ([]db.FoundSession, time.Time, error) {
	l := &finding{ref: refOf(id), done: make(chan struct{})}
	f.mu.Lock()
	f.waiting = append(f.waiting, l)
	if f.inFlight < findsInFlight {
		f.inFlight++
		go f.run() //nolint:contextcheck,gosec // a round trip serves many callers, and outlives the one who happened to come first
	}
	f.mu.Unlock()
	select {
	case <-l.done:
		return l.found, l.now, l.err
	case <-ctx.Done():
		return nil, time.Time{}, ctx.Err()
	}
}

// run looks up until nobody waits.
func (f *finder) run() {
	for {
		f.mu.Lock()
		n := min(len(f.waiting), guardBatch)
		if n == 0 {
			f.inFlight--
			f.mu.Unlock()
			return
		}
		batch := f.waiting[:n:n]
		f.waiting = f.waiting[n:]
		f.mu.Unlock()
		refs := make([]db.SessionRef, n)
		for i, l := range batch {
			refs[i] = l.ref
		}
		ctx, cancel := context.WithTimeout(context.Background(), verifyTimeout)
		found, err := f.find(ctx, nil, refs)
		cancel()
		for i, l := range batch {
			if l.err = err; err == nil {
				l.found, l.now = found.Sessions[i], found.Now
			}
			close(l.done)
		}
	}
}
