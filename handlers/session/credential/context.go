package credential

import (
	"context"
	"crypto/sha256"
)

// Presented is what a call was authenticated with, as far as tokens are issued for it.
type Presented struct {
	// Key is KeyOf the credential.
	Key [sha256.Size]byte
	// Refresh is the refresh token that it was; the zero Token where it was anything else.
	Refresh Token
}

type contextKey struct{}

// With returns a context that carries p.
func With(ctx context.Context, p Presented) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// From returns what ctx carries; ok reports whether it carries anything.
func From(ctx context.Context) (p Presented, ok bool) {
	p, ok = ctx.Value(contextKey{}).(Presented)
	return p, ok
}
