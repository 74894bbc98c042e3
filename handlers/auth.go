package handlers

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/authn"
	"connectrpc.com/connect"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"holdfast/db"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

const (
	// trustFor is how long a verified credential is not looked up again, and so how long a revocation may take.
	trustFor = 2 * time.Second
	// refuseFor is the same for one that was refused. It is shorter, so that a key works as soon as it is made.
	refuseFor = time.Second
	// verifyTimeout bounds a verification, which many callers may wait for.
	verifyTimeout = 5 * time.Second
	// maxCredential is the longest credential that is looked at.
	maxCredential = 8 << 10

	cachedCredentials = 10_000
	userHeader        = "Holdfast-User"
)

const howToAuthenticate = "send the header `Authorization: Bearer <API key or JWT>`; `holdfast key create` makes a key"

// An API key is hfk_<id>_<secret>: 16 characters of base32 that find it, and 256 random bits that prove it.
const (
	keyPrefix    = "hfk_"
	keyIDLen     = 16
	keySecretLen = 43
	keyLen       = len(keyPrefix) + keyIDLen + 1 + keySecretLen
)

var keyIDEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewKey makes an API key of a user, or of a service where user is empty. The token is the credential: it cannot be
// had again, since what is stored is only its hash.
func NewKey(tenant identity.Tenant, user identity.User, description string) (token string, _ db.Key) {
	var id [keyIDLen * 5 / 8]byte
	var secret [32]byte
	_, _ = rand.Read(id[:]) // never fails
	_, _ = rand.Read(secret[:])
	k := db.Key{Tenant: tenant, ID: keyIDEncoding.EncodeToString(id[:]), User: user, Description: description}
	token = keyPrefix + k.ID + "_" + base64.RawURLEncoding.EncodeToString(secret[:])
	_, k.SecretHash, _ = SplitKey(token)
	return token, k
}

// SplitKey takes an API key's token apart: the key's id, and the hash that is stored of its secret. ok tells whether it
// has the form of one.
func SplitKey(token string) (id string, hash []byte, ok bool) {
	if len(token) != keyLen || !strings.HasPrefix(token, keyPrefix) || token[len(keyPrefix)+keyIDLen] != '_' {
		return "", nil, false
	}
	id, secret := token[len(keyPrefix):len(keyPrefix)+keyIDLen], token[keyLen-keySecretLen:]
	_, err1 := keyIDEncoding.DecodeString(id)
	_, err2 := base64.RawURLEncoding.DecodeString(secret)
	sum := sha256.Sum256([]byte(secret))
	return id, sum[:], err1 == nil && err2 == nil
}

// AuthConfig says how credentials are verified.
type AuthConfig struct {
	// FindKeys reads the API keys in force of an id: db.DB.FindKeys.
	FindKeys func(ctx context.Context, id string) ([]db.Key, error)
	// Tokens verifies JWTs; nil: only API keys are accepted.
	Tokens *Tokens
	Now    func() time.Time
}

// Authenticator tells who sends a request. It is safe for concurrent use.
type Authenticator struct {
	c AuthConfig
	// verified and refused are two caches, so that a flood of bad credentials does not push out the good ones.
	verified, refused *lru.Cache[[sha256.Size]byte, verdict]
	flight            singleflight.Group
}

// verdict is what a credential was found to be.
type verdict struct {
	who   identity.Identity
	err   error // always a problem.Error: a failure to verify is no verdict
	until time.Time
}

// NewAuthenticator returns an Authenticator with an empty cache.
func NewAuthenticator(c AuthConfig) *Authenticator {
	verified, err1 := lru.New[[sha256.Size]byte, verdict](cachedCredentials)
	refused, err2 := lru.New[[sha256.Size]byte, verdict](cachedCredentials)
	if err := errors.Join(err1, err2); err != nil {
		panic(err) // only for a size below 1
	}
	return &Authenticator{c: c, verified: verified, refused: refused}
}

// Authenticate answers whom a request acts for. An error is one that explain knows, or says that verifying failed.
func (a *Authenticator) Authenticate(r *http.Request) (identity.Identity, error) {
	if r.Header.Get("Authorization") == "" {
		return identity.Identity{}, problem.Unauthenticated("CREDENTIAL_MISSING", howToAuthenticate)
	}
	token, ok := authn.BearerToken(r)
	token = strings.TrimSpace(token)
	if !ok || token == "" || len(token) > maxCredential {
		return identity.Identity{}, invalidCredential("it is not of the form `Bearer <API key or JWT>`")
	}
	who, err := a.verify(r.Context(), token)
	if err != nil {
		return identity.Identity{}, err
	}
	return actFor(who, r.Header.Values(userHeader))
}

// verify remembers verdicts for a moment, and asks once for callers that come together.
func (a *Authenticator) verify(ctx context.Context, token string) (identity.Identity, error) {
	key := sha256.Sum256([]byte(token))
	// A verdict's time counts from before the look-up: what was read may be as old as that.
	began := a.c.Now()
	for _, cache := range []*lru.Cache[[sha256.Size]byte, verdict]{a.verified, a.refused} {
		if v, ok := cache.Get(key); ok && began.Before(v.until) {
			return v.who, v.err
		}
	}
	// The look-up outlives the caller who happened to come first.
	found := a.flight.DoChan(string(key[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyTimeout)
		defer cancel()
		began := a.c.Now()
		who, err := a.lookUp(ctx, token)
		v := verdict{who: who, err: err, until: began.Add(trustFor)}
		var refusal *problem.Error
		switch {
		case err == nil:
			a.verified.Add(key, v)
			a.refused.Remove(key)
		case errors.As(err, &refusal) && refusal.Code == connect.CodeUnauthenticated:
			v.until = began.Add(refuseFor)
			a.refused.Add(key, v)
			a.verified.Remove(key)
		}
		return v, nil
	})
	select {
	case r := <-found:
		v, _ := r.Val.(verdict)
		return v.who, v.err
	case <-ctx.Done():
		return identity.Identity{}, ctx.Err()
	}
}

func (a *Authenticator) lookUp(ctx context.Context, token string) (identity.Identity, error) {
	if strings.HasPrefix(token, keyPrefix) {
		return a.lookUpKey(ctx, token)
	}
	if a.c.Tokens == nil {
		return identity.Identity{}, invalidCredential("it is no API key, and this server accepts nothing else")
	}
	return a.c.Tokens.verify(ctx, token)
}

// nobody is what a secret is compared with where the id is unknown, so that both take the same time.
var nobody = []db.Key{{SecretHash: make([]byte, sha256.Size)}}

func (a *Authenticator) lookUpKey(ctx context.Context, token string) (identity.Identity, error) {
	id, hash, ok := SplitKey(token)
	if !ok {
		return identity.Identity{}, invalidCredential("it begins like an API key, but is cut or changed")
	}
	keys, err := a.c.FindKeys(ctx, id)
	if err != nil {
		return identity.Identity{}, err
	}
	if len(keys) == 0 {
		keys = nobody
	}
	var who identity.Identity
	for _, k := range keys {
		if subtle.ConstantTimeCompare(hash, k.SecretHash) == 1 {
			who = identity.Identity{Tenant: k.Tenant, User: k.User, Service: k.User == ""}
		}
	}
	if who.Tenant == "" {
		return identity.Identity{}, invalidCredential("the API key is unknown or was revoked")
	}
	return who, nil
}

// actFor applies the header with which a service says whom it acts for. It then has that user's rights only.
func actFor(who identity.Identity, header []string) (identity.Identity, error) {
	if len(header) == 0 {
		return who, nil
	}
	// An empty header is a caller whose variable was empty: it must not become the whole tenant's rights.
	user := identity.User(header[0])
	if len(header) > 1 || !ValidUser(user) {
		return identity.Identity{}, problem.InvalidArgument(userHeader,
			"must be one user id of 1 to 128 bytes, without control characters")
	}
	if !who.Service && user != who.User {
		return identity.Identity{}, problem.PermissionDenied(
			"only a service key may act for another user with the header " + userHeader)
	}
	return identity.Identity{Tenant: who.Tenant, User: user}, nil
}

// ValidUser tells whether u can be a user's id: 1 to 128 bytes of printable text.
func ValidUser(u identity.User) bool {
	s := string(u)
	return s != "" && len(s) <= 128 && utf8.ValidString(s) &&
		strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

var tenantPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// ValidTenant tells whether t can be a tenant's id: 1 to 128 of A-Z a-z 0-9 . _ : -
func ValidTenant(t identity.Tenant) bool { return tenantPattern.MatchString(string(t)) }

func invalidCredential(why string) *problem.Error {
	return problem.Unauthenticated("CREDENTIAL_INVALID", "the credential was refused: "+why)
}

// middleware authenticates each request before its body is read, and puts who it is into the context.
func (a *Authenticator) middleware(t *telemetry, next http.Handler, opts ...connect.HandlerOption) http.Handler {
	m := authn.NewMiddleware(func(ctx context.Context, r *http.Request) (any, error) {
		who, err := a.Authenticate(r)
		if err != nil {
			e := t.fail(ctx, err)
			if e.Code() == connect.CodeUnauthenticated {
				challenge(e, callFrom(ctx).reason)
			}
			return nil, e
		}
		callFrom(ctx).caller = who
		return who, nil
	}, opts...)
	return m.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, _ := authn.GetInfo(r.Context()).(identity.Identity)
		next.ServeHTTP(w, r.WithContext(identity.With(r.Context(), who)))
	}))
}

// challenge adds what RFC 6750 wants beside a refused credential.
func challenge(e *connect.Error, reason string) {
	said := `Bearer realm="holdfast"`
	if reason != "CREDENTIAL_MISSING" {
		said += `, error="invalid_token"`
	}
	e.Meta().Set("WWW-Authenticate", said)
}
