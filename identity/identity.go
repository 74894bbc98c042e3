// Package identity says who is asking. It is a leaf: every layer may import it and it imports none.
package identity

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// ErrAbsent is what From returns where nobody was authenticated. Nothing may be touched then.
var ErrAbsent = errors.New("identity: nobody is authenticated")

// Tenant is the organisation whose data must never meet another's.
type Tenant string

// User is the id of a tenant's user. The empty user owns what the whole tenant shares.
type User string

// Valid reports whether u can be a user's id: 1 to 128 bytes of printable text.
func (u User) Valid() bool {
	s := string(u)
	return s != "" && len(s) <= 128 && utf8.ValidString(s) &&
		strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// Identity is an authenticated caller. The zero Identity is nobody.
type Identity struct {
	Tenant Tenant
	// User is whom the call acts for; empty for a service on its own behalf.
	User User
	// Service may see and change every object of the tenant. A service that acts for a user has the user's rights only.
	Service bool
	// OwnOnly: the caller sees nothing of what belongs to the whole tenant. A service sees it all the same.
	OwnOnly bool
	// Session is the id of the session whose token the call is made with; empty where it is made with anything else.
	Session string
}

// Owner is the owner of what the caller creates.
func (i Identity) Owner() User { return i.User }

// MaySee reports whether the caller may see what owner has. The tenants are equal already.
func (i Identity) MaySee(owner User) bool {
	return i.Service || owner == "" && !i.OwnOnly || owner != "" && owner == i.User
}

type (
	key         struct{}
	endKey      struct{}
	activityKey struct{}
)

// With returns a context that carries i.
func With(ctx context.Context, i Identity) context.Context { return context.WithValue(ctx, key{}, i) }

// From returns the identity that ctx carries, or ErrAbsent.
func From(ctx context.Context) (Identity, error) {
	i, _ := ctx.Value(key{}).(Identity)
	if i.Tenant == "" {
		return Identity{}, ErrAbsent
	}
	return i, nil
}

// WithSessionEnd returns a context that says when the caller's session ends, if its user does nothing more.
func WithSessionEnd(ctx context.Context, end time.Time) context.Context {
	return context.WithValue(ctx, endKey{}, end)
}

// SessionEnd is when the session ends whose token a call is made with, by the database's clock; zero: there is none.
func SessionEnd(ctx context.Context) time.Time {
	end, _ := ctx.Value(endKey{}).(time.Time)
	return end
}

// WithActivity returns a context for a call that is the user's activity only if its handler says so, by Active. Then note is called.
func WithActivity(ctx context.Context, note func(context.Context)) context.Context {
	return context.WithValue(ctx, activityKey{}, note)
}

// Active notes that the caller's user did something, where the call itself does not say so.
func Active(ctx context.Context) {
	if note, ok := ctx.Value(activityKey{}).(func(context.Context)); ok {
		note(ctx)
	}
}
