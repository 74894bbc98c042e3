package handlers

import (
	"net/http"
	"sync"
	"time"

	"holdfast/identity"
	"holdfast/object"
)

// Calls that may be answered at once unless Options say otherwise. Each costs some 20 KiB while it waits, and what is over
// would only wait longer.
const (
	defaultCalls          = 4096
	defaultCallsPerTenant = 3072
	// Of a route's callers it is not known yet whose they are, but each tenant's webhooks have a path of their own. Their bodies
	// may be large, and are held until their signature is known.
	defaultRouteCalls        = 64
	defaultRouteCallsPerPath = 16
)

// admission refuses unary calls that are over a bound, before their bodies are read: a refusal has to cost far less than an
// answer. Streams have a bound of their own in the runtime. Safe for concurrent use.
type admission struct {
	most, mostPerTenant int
	streams             map[string]bool // by path

	mu      sync.Mutex // guards what follows
	calls   int
	tenants map[identity.Tenant]int
}

// admit counts an authenticated call in until it closes.
func (a *admission) admit(c *call, r *http.Request) error {
	if a.streams[r.URL.Path] {
		return nil
	}
	if full := a.enter(c.caller.Tenant); full != "" {
		return &object.OverloadedError{What: full, RetryAfter: time.Second}
	}
	c.countedBy = a
	return nil
}

// route bounds what a route of plain HTTP answers at once, by path; a is of that route alone. Who is refused is told to come again.
func (a *admission) route(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := identity.Tenant(r.URL.Path)
		if a.enter(path) != "" {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too much at once; send it again", http.StatusTooManyRequests)
			return
		}
		defer a.leave(path)
		next.ServeHTTP(w, r)
	})
}

// enter counts a call; it returns what is full where it may not come in.
func (a *admission) enter(t identity.Tenant) (full string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.calls >= a.most:
		return "server"
	case a.tenants[t] >= a.mostPerTenant:
		return "tenant"
	}
	a.calls++
	a.tenants[t]++
	return ""
}

func (a *admission) leave(t identity.Tenant) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls--
	if a.tenants[t]--; a.tenants[t] == 0 {
		delete(a.tenants, t)
	}
}
