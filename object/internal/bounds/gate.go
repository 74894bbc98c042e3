// Package bounds says how much callers may hold or do at once: a Gate refuses what is over a bound, a Room lets it wait, and a Line
// serves callers in turn.
package bounds

import (
	"sync"

	"holdfast/identity"
)

// Most is how much one user, one tenant and the process may hold at once. 0: no bound.
type Most struct{ User, Tenant, Server int }

// Gate counts what callers hold, and refuses what is over a bound: the user's first, which lies below the tenant's, so that
// one user's flood refuses nobody else. A service that acts for nobody has the tenant's bound. Safe for concurrent use.
type Gate struct {
	most Most

	mu      sync.Mutex // guards what follows
	users   map[Holder]int
	tenants map[identity.Tenant]int
	held    int
}

// Holder is a user of a tenant, or without a user the tenant.
type Holder struct {
	Tenant identity.Tenant
	User   identity.User
}

// NewGate returns an empty Gate.
func NewGate(m Most) *Gate {
	return &Gate{most: m, users: map[Holder]int{}, tenants: map[identity.Tenant]int{}}
}

// Enter counts the caller in until Leave. It returns what is full where the caller may not come in: "user", "tenant" or "server".
func (g *Gate) Enter(i identity.Identity) (full string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	u := Holder{i.Tenant, i.User}
	switch {
	case i.User != "" && g.most.User > 0 && g.users[u] >= g.most.User:
		return "user"
	case g.most.Tenant > 0 && g.tenants[i.Tenant] >= g.most.Tenant:
		return "tenant"
	case g.most.Server > 0 && g.held >= g.most.Server:
		return "server"
	}
	g.users[u]++
	g.tenants[i.Tenant]++
	g.held++
	return ""
}

// Leave counts the caller out.
func (g *Gate) Leave(i identity.Identity) {
	g.mu.Lock()
	defer g.mu.Unlock()
	u := Holder{i.Tenant, i.User}
	if g.users[u]--; g.users[u] == 0 {
		delete(g.users, u)
	}
	if g.tenants[i.Tenant]--; g.tenants[i.Tenant] == 0 {
		delete(g.tenants, i.Tenant)
	}
	g.held--
}
