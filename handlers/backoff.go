package handlers

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Repeated bad credentials have to wait. A secret of 256 bits cannot be guessed; the wait keeps attempts cheap for us, and the
// audit readable. It cannot lock anyone out, because a good credential is never refused for it.
const (
	// Failures that cost nothing: people mistype, and clients hold on to what was revoked.
	freeOfSource, freeOfSession = 20, 3
	firstWait, longestWait      = time.Second, time.Minute
	// All failures are forgotten forgetFailures after the last one.
	forgetFailures = 10 * time.Minute
	// trackedFailures bounds the memory; the least recently seen source is forgotten first.
	trackedFailures = 10_000
)

// backoff counts bad credentials by source and by the session that they name, in this process only. It is safe for concurrent
// use.
type backoff struct {
	free int64 // failures of a source that cost nothing

	mu                sync.Mutex // guards what follows; nothing slow happens under it
	sources, sessions *lru.Cache[string, failures]
}

type failures struct {
	count int64
	last  time.Time
	until time.Time
}

func newBackoff(free int64) *backoff {
	sources, err1 := lru.New[string, failures](trackedFailures)
	sessions, err2 := lru.New[string, failures](trackedFailures)
	if err1 != nil || err2 != nil {
		panic("handlers: only a size below 1 is refused")
	}
	return &backoff{free: free, sources: sources, sessions: sessions}
}

// wait returns how long a source has to wait after a bad credential, which may name a session.
func (b *backoff) wait(source, session string, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	of := recall(b.sources, source, now)
	wait := of.until.Sub(now)
	if session != "" && of.count > 0 {
		wait = max(wait, recall(b.sessions, session, now).until.Sub(now))
	}
	return max(wait, 0)
}

// suspects reports whether a source has presented more bad credentials than are free.
func (b *backoff) suspects(source string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return recall(b.sources, source, now).count > b.free
}

// failed counts a bad credential, and answers how many there were that named the session, if it names one.
func (b *backoff) failed(source, session string, now time.Time) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	count(b.sources, source, b.free, now)
	if session == "" {
		return 0
	}
	return count(b.sessions, session, freeOfSession, now)
}

func recall(of *lru.Cache[string, failures], name string, now time.Time) failures {
	f, _ := of.Get(name)
	if now.Sub(f.last) >= forgetFailures {
		return failures{}
	}
	return f
}

func count(of *lru.Cache[string, failures], name string, free int64, now time.Time) int64 {
	f := recall(of, name, now)
	f.count++
	f.last = now
	if over := f.count - free; over > 0 {
		f.until = now.Add(min(firstWait<<min(over-1, 10), longestWait))
	}
	of.Add(name, f)
	return f.count
}

// sourceOf returns the address of a request's sender, or its network for IPv6, where one machine has a whole /64. header names
// the header that proxies in front of us append to, each the address from which it was called. Only the last so many
// hops are believed: the caller may have written whatever stands before them.
func sourceOf(r *http.Request, header string, hops int) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	if header != "" {
		if said := r.Header.Values(header); len(said) > 0 {
			all := strings.Split(strings.Join(said, ","), ",")
			host = strings.TrimSpace(all[max(len(all)-hops, 0)])
		}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return host[:min(len(host), 64)]
	}
	if a = a.Unmap(); a.Is6() {
		if network, err := a.Prefix(64); err == nil {
			return network.String()
		}
	}
	return a.String()
}
