package handlers

import (
	"context"
	"sync"
	"time"

	"holdfast/db"
)

// finder looks up API keys and sessions. Waiting look-ups share a round trip, and few are in flight: a thousand clients that
// refresh at once, or a stranger with a thousand made-up keys, must not take the connections that commits need.
// It is safe for concurrent use.
type finder struct {
	find func(ctx context.Context, keys []string, sessions []db.SessionRef) (db.Found, error)
	// inFlight bounds the concurrent round trips. Each of them is followed by a pause.
	inFlight int
	pause    time.Duration

	mu      sync.Mutex // guards what follows; nothing slow happens under it
	waiting []*finding
	named   map[string]*finding // the waiting ones, by the id that they look for
	running int
}

const (
	// findsInFlight bounds the concurrent round trips of ordinary look-ups.
	findsInFlight = 2
	// suspectsPause bounds the look-ups for sources with many failures to one round trip at a time, 200 a second.
	suspectsPause = 5 * time.Millisecond
)

// finding is one look-up of a key or a session. Callers that ask for the same one before it is sent share it.
type finding struct {
	key     string
	session string
	done    chan struct{} // closed when what follows is final

	keys     []db.Key
	sessions []db.FoundSession
	now      time.Time
	err      error
}

// findKeys returns the valid API keys with an id.
func (f *finder) findKeys(ctx context.Context, id string) ([]db.Key, error) {
	l, err := f.look(ctx, id, "")
	if err != nil {
		return nil, err
	}
	return l.keys, nil
}

// findSession returns a session, if it exists, and the database's time.
func (f *finder) findSession(ctx context.Context, id string) ([]db.FoundSession, time.Time, error) {
	l, err := f.look(ctx, "", id)
	if err != nil {
		return nil, time.Time{}, err
	}
	return l.sessions, l.now, nil
}

func (f *finder) look(ctx context.Context, key, session string) (*finding, error) {
	l := f.join(key, session) //nolint:contextcheck // a look-up serves many callers
	select {
	case <-l.done:
		return l, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *finder) join(key, session string) *finding {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := key + "/" + session
	if l, ok := f.named[name]; ok {
		return l
	}
	if f.named == nil {
		f.named = map[string]*finding{}
	}
	l := &finding{key: key, session: session, done: make(chan struct{})}
	f.waiting, f.named[name] = append(f.waiting, l), l
	if f.running < f.inFlight {
		f.running++
		go f.run()
	}
	return l
}

// run looks up until no look-up waits.
func (f *finder) run() {
	for {
		f.mu.Lock()
		n := min(len(f.waiting), guardBatch)
		if n == 0 {
			f.running--
			f.mu.Unlock()
			return
		}
		batch := f.waiting[:n:n]
		f.waiting = f.waiting[n:]
		for _, l := range batch {
			delete(f.named, l.key+"/"+l.session)
		}
		f.mu.Unlock()
		f.lookUp(batch)
		if f.pause > 0 {
			<-time.After(f.pause)
		}
	}
}

func (f *finder) lookUp(batch []*finding) {
	var keys []string
	var refs []db.SessionRef
	for _, l := range batch {
		if l.session == "" {
			keys = append(keys, l.key)
		} else {
			refs = append(refs, refOf(l.session))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), verifyTimeout)
	defer cancel()
	found, err := f.find(ctx, keys, refs)
	k, s := 0, 0
	for _, l := range batch {
		switch {
		case err != nil:
			l.err = err
		case l.session == "":
			l.keys = found.Keys[k]
			k++
		default:
			l.sessions, l.now = found.Sessions[s], found.Now
			s++
		}
		close(l.done)
	}
}
