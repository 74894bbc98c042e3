package handlers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

// clockSkew is how far a provider's clock may be ahead of ours: a token may be that much younger than it says. When it expires
// counts exactly.
const clockSkew = 30 * time.Second

// algorithms are those with a public key. With a shared secret, anyone who can verify a token can also make one.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// TokenConfig says which JWTs of the application's own identity provider are accepted.
type TokenConfig struct {
	// Issuer and Audience must be in the token.
	Issuer, Audience string
	// JWKSURL is where the provider publishes its keys. Or else Key is the one key, or a set, as PEM, JWK or JWKS.
	JWKSURL string
	Key     []byte
	// TenantClaim and UserClaim name the claims, such as "org_id" or "app_metadata.tenant". A claim whose name has
	// dots, such as a URL, is found as it is.
	TenantClaim, UserClaim string
	// Tenant, where it is set, is the tenant of every token, and TenantClaim is not read.
	Tenant identity.Tenant

	Log    *slog.Logger
	Now    func() time.Time
	Client *http.Client // nil: one with a time limit
}

// Tokens verifies JWTs. It is safe for concurrent use.
type Tokens struct {
	c      TokenConfig
	parser *jwt.Parser
	key    func(context.Context) jwt.Keyfunc // nil: set has the keys
	set    *keySet
}

// NewTokens returns an error that says how to fix a wrong configuration. ctx ends the fetching of keys. A provider that
// cannot be reached is no error: its tokens are not accepted until it can.
func NewTokens(ctx context.Context, c TokenConfig) (*Tokens, error) {
	switch {
	case c.Issuer == "" || c.Audience == "":
		return nil, errors.New("JWTs need an issuer and an audience: without them any token of the provider would do")
	case (c.JWKSURL == "") == (len(c.Key) == 0):
		return nil, errors.New("JWTs need a JWKS URL or a key file, one of the two")
	case (c.TenantClaim == "") == (c.Tenant == ""):
		return nil, errors.New("JWTs need the name of the claim that has the tenant, or one tenant for all")
	case c.UserClaim == "":
		return nil, errors.New("JWTs need the name of the claim that has the user")
	case c.Tenant != "" && !ValidTenant(c.Tenant):
		return nil, fmt.Errorf("%q cannot be a tenant: 1 to 128 of A-Z a-z 0-9 . _ : -", c.Tenant)
	}
	t := &Tokens{c: c}
	t.parser = jwt.NewParser(jwt.WithValidMethods(algorithms), jwt.WithIssuer(c.Issuer), jwt.WithAudience(c.Audience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(clockSkew), jwt.WithTimeFunc(c.Now))
	if len(c.Key) > 0 {
		key, err := staticKey(c.Key)
		t.key = key
		return t, err
	}
	set, err := newKeySet(ctx, c)
	t.set = set
	return t, err
}

// staticKey reads a public key, a certificate, a JWK or a JWKS.
func staticKey(text []byte) (func(context.Context) jwt.Keyfunc, error) {
	text = bytes.TrimSpace(text)
	if bytes.HasPrefix(text, []byte("{")) {
		read := keyfunc.NewJWKJSON
		var set struct {
			Keys []json.RawMessage `json:"keys"`
		}
		if err := json.Unmarshal(text, &set); err == nil && set.Keys != nil {
			read = keyfunc.NewJWKSetJSON
		}
		k, err := read(text)
		if err != nil {
			return nil, fmt.Errorf("the JWT key file is no JWK and no JWKS: %w", err)
		}
		return k.KeyfuncCtx, nil
	}
	key, err := publicKey(text)
	if err != nil {
		return nil, errors.New("the JWT key file is no PEM of an RSA, EC or Ed25519 public key, and no JWK or JWKS")
	}
	return func(context.Context) jwt.Keyfunc {
		return func(*jwt.Token) (any, error) { return key, nil }
	}, nil
}

func publicKey(pem []byte) (any, error) {
	if k, err := jwt.ParseRSAPublicKeyFromPEM(pem); err == nil {
		return k, nil
	}
	if k, err := jwt.ParseECPublicKeyFromPEM(pem); err == nil {
		return k, nil
	}
	return jwt.ParseEdPublicKeyFromPEM(pem)
}

// errTokenExpired is in the error of a token that was good once.
var errTokenExpired = errors.New("handlers: the token has expired")

// Claims returns the claims of a token that is valid now.
func (t *Tokens) Claims(ctx context.Context, token string) (jwt.MapClaims, error) {
	claims, err := t.parse(ctx, token)
	if errors.Is(err, errProvider) {
		return nil, problem.Later(errorv1.Reason_REASON_IDENTITY_PROVIDER_UNAVAILABLE,
			"the identity provider's keys have yet to be fetched, so the token cannot be verified now", unknownKeyEvery)
	}
	if err != nil {
		refusal := invalidCredential(t.whyNot(err))
		if errors.Is(err, jwt.ErrTokenExpired) {
			return nil, fmt.Errorf("%w: %w", errTokenExpired, refusal)
		}
		return nil, refusal
	}
	return claims, nil
}

// verify answers whom a token is for, and from when on it is not good any more.
func (t *Tokens) verify(ctx context.Context, token string) (identity.Identity, time.Time, error) {
	refuse := func(err error) (identity.Identity, time.Time, error) { return identity.Identity{}, time.Time{}, err }
	claims, err := t.Claims(ctx, token)
	if err != nil {
		return refuse(err)
	}
	tenant := t.c.Tenant
	if tenant == "" {
		tenant = identity.Tenant(claim(claims, t.c.TenantClaim))
		if !ValidTenant(tenant) {
			return refuse(invalidCredential(fmt.Sprintf("its claim %q names no tenant", t.c.TenantClaim)))
		}
	}
	user := identity.User(claim(claims, t.c.UserClaim))
	if !ValidUser(user) {
		return refuse(invalidCredential(fmt.Sprintf("its claim %q names no user", t.c.UserClaim)))
	}
	expires, err := claims.GetExpirationTime()
	if err != nil || expires == nil { // the parser wants one
		return refuse(invalidCredential(t.whyNot(jwt.ErrTokenRequiredClaimMissing)))
	}
	return identity.Identity{Tenant: tenant, User: user}, expires.Time, nil
}

var (
	errExtension = errors.New("handlers: the token has an extension of JWS")
	errProvider  = errors.New("handlers: the identity provider's keys are not at hand")
)

// parse verifies a token. Where its key is not at hand it waits for the provider's newest.
func (t *Tokens) parse(ctx context.Context, token string) (jwt.MapClaims, error) {
	unverified, _, err := t.parser.ParseUnverified(token, jwt.MapClaims{})
	if err != nil {
		return nil, err
	}
	// RFC 7515, 4.1.11: what must be understood and is not is refused. We know no extension.
	for _, extension := range []string{"crit", "b64"} {
		if _, has := unverified.Header[extension]; has {
			return nil, errExtension
		}
	}
	if !slices.Contains(algorithms, unverified.Method.Alg()) {
		return nil, jwt.ErrTokenSignatureInvalid
	}
	if t.set == nil {
		return t.parseWith(token, t.key(ctx))
	}
	if keys, ok := t.set.current(); ok {
		if claims, err := t.parseWith(token, keys.KeyfuncCtx(ctx)); err == nil || !unpublished(unverified, err) {
			return claims, err
		}
	}
	if err := t.set.renew(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", errProvider, err)
	}
	keys, ok := t.set.current()
	if !ok {
		return nil, errProvider
	}
	return t.parseWith(token, keys.KeyfuncCtx(ctx))
}

func (t *Tokens) parseWith(token string, key jwt.Keyfunc) (jwt.MapClaims, error) {
	claims := jwt.MapClaims{}
	if _, err := t.parser.ParseWithClaims(token, claims, key); err != nil {
		return nil, err
	}
	// The parser has one leeway for all times.
	if exp, err := claims.GetExpirationTime(); err != nil || exp == nil || !t.c.Now().Before(exp.Time) {
		return nil, errors.Join(jwt.ErrTokenExpired, err)
	}
	return claims, nil
}

// whyNot says what is wrong with a token without quoting it.
func (t *Tokens) whyNot(err error) string {
	switch {
	case errors.Is(err, errExtension):
		return "the token's header has crit or b64, and this server knows no extension of JWS"
	case errors.Is(err, jwt.ErrTokenMalformed):
		return "it is neither an API key nor a JWT"
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return "the token names a key or an algorithm that this server does not accept"
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return "the token's signature or algorithm is not accepted"
	case errors.Is(err, jwt.ErrTokenExpired):
		return "the token has expired; get a new one"
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return "the token is not valid yet"
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return fmt.Sprintf("the token's issuer is not %q", t.c.Issuer)
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return fmt.Sprintf("the token's audience is not %q", t.c.Audience)
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return "the token lacks one of the claims exp, iss and aud"
	}
	return "the token is not valid"
}

// claim finds a claim by its whole name or else by a dotted path, and answers "" for one that is no text.
func claim(claims map[string]any, path string) string {
	if s, ok := claims[path].(string); ok {
		return s
	}
	head, rest, more := strings.Cut(path, ".")
	inner, ok := claims[head].(map[string]any)
	if !more || !ok {
		return ""
	}
	return claim(inner, rest)
}
