package handlers

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"holdfast/db"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/session/credential"
)

const (
	// The credentials of open streams are looked up every guardEvery. Together with the look-up itself that is less than
	// trustFor.
	guardEvery = time.Second
	// guardBatch bounds the credentials of one round trip. Row-level security compares each row with each of them: 500 took
	// three times as long as five times 100, which take 5 ms each on a busy machine.
	guardBatch = 100
)

// backing identifies what must stay valid while a stream is open: an API key until it is revoked, a JWT until it expires, or a
// session until it ends. (A session's stream outlives the access token that opened it: tokens change every few minutes, and a user
// ends sessions, not tokens.) The zero backing stays valid.
type backing struct {
	keyID   string
	keyHash [sha256.Size]byte
	session string
	expires time.Time
}

// guard ends streams whose credential is no longer valid. Its goroutine runs while there are streams.
type guard struct {
	find func(ctx context.Context, keys []string, sessions []db.SessionRef) (db.Found, error)
	now  func() time.Time

	mu   sync.Mutex // guards what follows; nothing slow happens under it
	open map[*guarded]struct{}
	quit chan struct{}
}

type guarded struct {
	backing

	end func(error)
}

// follow guards a stream until stop is called. It calls end at most once, with the error for the stream's caller.
func (g *guard) follow(b backing, end func(error)) (stop func()) {
	if b == (backing{}) {
		return func() {}
	}
	s := &guarded{b, end}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.open) == 0 {
		g.open, g.quit = map[*guarded]struct{}{}, make(chan struct{})
		go g.run(g.quit)
	}
	g.open[s] = struct{}{}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if delete(g.open, s); len(g.open) == 0 && g.quit != nil {
			close(g.quit)
			g.quit = nil
		}
	}
}

func (g *guard) run(quit chan struct{}) {
	ticker := time.NewTicker(guardEvery)
	defer ticker.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-quit
		cancel()
	}()
	for {
		select {
		case <-quit:
			return
		case <-ticker.C:
			g.check(ctx)
		}
	}
}

// check looks all credentials up again, each once. Where the database cannot be asked the streams stay: no new one is let
// in meanwhile, and these see nothing new either.
func (g *guard) check(ctx context.Context) {
	streams := map[backing][]*guarded{}
	g.mu.Lock()
	for s := range g.open {
		streams[s.backing] = append(streams[s.backing], s)
	}
	g.mu.Unlock()
	var keys, sessions []backing
	for b, all := range streams {
		switch {
		case b.session != "":
			sessions = append(sessions, b)
		case b.keyID != "":
			keys = append(keys, b)
		case !g.now().Before(b.expires):
			endAll(all, invalidCredential("the token has expired; get a new one"))
		}
	}
	for len(keys) > 0 || len(sessions) > 0 {
		k, s := keys[:min(len(keys), guardBatch)], sessions[:min(len(sessions), guardBatch)]
		keys, sessions = keys[len(k):], sessions[len(s):]
		for b, refusal := range g.refusals(ctx, k, s) {
			endAll(streams[b], refusal)
		}
	}
}

func endAll(streams []*guarded, refusal error) {
	for _, s := range streams {
		s.end(refusal)
	}
}

// refusals are those of the credentials that are not good any more.
func (g *guard) refusals(ctx context.Context, keys, sessions []backing) map[backing]*problem.Error {
	ids, refs := make([]string, len(keys)), make([]db.SessionRef, len(sessions))
	for i, b := range keys {
		ids[i] = b.keyID
	}
	for i, b := range sessions {
		refs[i] = refOf(b.session)
	}
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	found, err := g.find(ctx, ids, refs)
	if err != nil {
		return nil
	}
	out := map[backing]*problem.Error{}
	for i, b := range keys {
		if _, ok := matchKey(found.Keys[i], b.keyHash[:]); !ok {
			out[b] = invalidCredential("the API key was revoked")
		}
	}
	for i, b := range sessions {
		refusal := credential.Refusal(storev1.EndReason_END_REASON_REVOKED)
		for _, s := range found.Sessions[i] {
			rec, err := credential.Decode(s.Record)
			if err != nil {
				continue
			}
			if why, over := credential.Ended(rec, found.Now); over {
				refusal = credential.Refusal(why)
			} else {
				refusal = nil
			}
		}
		if refusal != nil {
			out[b] = refusal
		}
	}
	return out
}
