package object

import (
	"sync"

	"holdfast/identity"
)

// bounds are how much one user, one tenant and the process may hold at once. 0: no bound.
type bounds struct{ user, tenant, server int }

// gate counts what callers hold, and refuses what is over a bound: the user's first, which lies below the tenant's, so that
// one user's flood refuses nobody else. A service that acts for nobody has the tenant's bound. Safe for concurrent use.
type gate struct {
	bounds

	mu      sync.Mutex // guards what follows
	users   map[holder]int
	tenants map[identity.Tenant]int
	held    int
}

type holder struct {
	tenant identity.Tenant
	user   identity.User
}

func newGate(b bounds) *gate {
	return &gate{bounds: b, users: map[holder]int{}, tenants: map[identity.Tenant]int{}}
}

// enter counts the caller in until leave. It returns what is full where he may not come in: "user", "tenant" or "server".
func (g *gate) enter(i identity.Identity) (full string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	u := holder{i.Tenant, i.User}
	switch {
	case i.User != "" && g.user > 0 && g.users[u] >= g.user:
		return "user"
	case g.tenant > 0 && g.tenants[i.Tenant] >= g.tenant:
		return "tenant"
	case g.server > 0 && g.held >= g.server:
		return "server"
	}
	g.users[u]++
	g.tenants[i.Tenant]++
	g.held++
	return ""
}

func (g *gate) leave(i identity.Identity) {
	g.mu.Lock()
	defer g.mu.Unlock()
	u := holder{i.Tenant, i.User}
	if g.users[u]--; g.users[u] == 0 {
		delete(g.users, u)
	}
	if g.tenants[i.Tenant]--; g.tenants[i.Tenant] == 0 {
		delete(g.tenants, i.Tenant)
	}
	g.held--
}
