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
	"slices"
	"strings"
	"time"

	"connectrpc.com/authn"
	"connectrpc.com/connect"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"holdfast/db"
	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	"holdfast/handlers/problem"
	"holdfast/handlers/session/credential"
	"holdfast/identity"
)

const (
	// A verified credential is trusted for trustFor before it is looked up again, so a revocation may take that long.
	trustFor = 2 * time.Second
	// A refused credential is refused for refuseFor without another look-up. It is short, so that a new key works at once.
	refuseFor = time.Second
	// verifyTimeout bounds a verification, which many callers may wait for.
	verifyTimeout = 5 * time.Second
	// maxCredential bounds a credential's length in bytes.
	maxCredential = 8 << 10

	cachedCredentials = 10_000
	userHeader        = "Holdfast-User"
)

const howToAuthenticate = "send the header `Authorization: Bearer <API key, session token or JWT>`; `holdfast key create` makes a key"

// An API key is hfk_<id>_<secret>: 16 characters of base32 that find it, and 256 random bits that prove it.
const (
	keyPrefix    = "hfk_"
	keyIDLen     = 16
	keySecretLen = 43
	keyLen       = len(keyPrefix) + keyIDLen + 1 + keySecretLen
)

var keyIDEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewKey makes an API key for a user, or for a service if user is empty. The token is the credential. Only its hash is stored, so
// it cannot be shown again.
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

// SplitKey returns the id in an API key's token and the hash of its secret, as stored. ok is false if the token does not have
// the form of an API key.
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

type findFunc = func(ctx context.Context, keys []string, sessions []db.SessionRef) (db.Found, error)

// AuthConfig configures an Authenticator.
type AuthConfig struct {
	// Find looks up many credentials at once: db.DB.FindCredentials.
	Find findFunc
	// Tokens verifies JWTs; nil: none are accepted.
	Tokens *Tokens
	// Touch records activity of a session's user: session.Manager.Touch. Optional.
	Touch func(ctx context.Context, who identity.Identity) error
	// Refused records that count wrong credentials named a session: session.Manager.Refused. Optional.
	Refused func(ctx context.Context, whose identity.Identity, count int64) error
	// AddressHeader names the header with the client's address that a trusted proxy sets. Empty: there is no proxy.
	AddressHeader string
	// AddressHops is how many proxies append to AddressHeader; the one furthest from here adds the client's address. 0: 1.
	AddressHops int
	// TokenHeader names a header in which a proxy passes on its users' JWTs. Authorization wins. Empty: there is none.
	TokenHeader string
	// FreeFailures bounds the bad credentials from one address that are refused without a wait. 0: 20.
	FreeFailures int64
	Now          func() time.Time
}

// Authenticator finds out who sends a request, and ends streams whose credential expires or is revoked. It is safe for concurrent
// use.
type Authenticator struct {
	c AuthConfig
	// verified and refused are two caches, so that a flood of bad credentials does not push out the good ones.
	verified, refused *lru.Cache[[sha256.Size]byte, verdict]
	// named caches what the ids in credentials refer to.
	named    *lru.Cache[string, named]
	flight   singleflight.Group
	touching singleflight.Group
	backoff  *backoff
	guard    guard
	// suspects looks up credentials from sources that have presented many bad ones, finder all others.
	finder, suspects finder
}

// named caches, for refuseFor, what the id of an API key or of a session refers to. Made-up credentials are refused by it without
// a look-up, however many there are. It never admits a credential.
type named struct {
	keys      []db.Key
	familyKey []byte
	whose     identity.Identity
	until     time.Time
}

// presenter describes the source of a credential, and how long the source has to wait if the credential is bad.
type presenter struct {
	source string
	wait   time.Duration
}

// verdict caches the result of verifying a credential.
type verdict struct {
	who identity.Identity
	err error // always a problem.Error: a failure to verify is no verdict
	// bad means that the credential was never valid, as opposed to expired or revoked.
	bad   bool
	until time.Time
	// backs identifies what has to stay valid while a stream is open.
	backs backing
	// ends is when the session ends, by the database's clock; zero: there is none.
	ends time.Time
	// From stale on, activity of the session has to be written again.
	stale time.Time
}

// NewAuthenticator returns an Authenticator with an empty cache.
func NewAuthenticator(c AuthConfig) *Authenticator {
	verified, err1 := lru.New[[sha256.Size]byte, verdict](cachedCredentials)
	refused, err2 := lru.New[[sha256.Size]byte, verdict](cachedCredentials)
	byID, err3 := lru.New[string, named](cachedCredentials)
	if err := errors.Join(err1, err2, err3); err != nil {
		panic(err) // only for a size below 1
	}
	if c.FreeFailures == 0 {
		c.FreeFailures = freeOfSource
	}
	c.Find = ownSessions(c.Find)
	return &Authenticator{
		c: c, verified: verified, refused: refused, named: byID, backoff: newBackoff(c.FreeFailures),
		guard:  guard{find: c.Find, now: c.Now},
		finder: finder{find: c.Find, inFlight: findsInFlight}, suspects: finder{find: c.Find, inFlight: 1, pause: suspectsPause},
	}
}

// ownSessions leaves out sessions whose id does not name their tenant and user: a token knows its session by id alone, and a copy
// of the session, as an import into another tenant makes one, must not open anything there.
func ownSessions(find findFunc) findFunc {
	return func(ctx context.Context, keys []string, sessions []db.SessionRef) (db.Found, error) {
		found, err := find(ctx, keys, sessions)
		for i := range found.Sessions {
			found.Sessions[i] = slices.DeleteFunc(found.Sessions[i], func(s db.FoundSession) bool {
				return credential.ObjectID(s.Tenant, s.User) != sessions[i].Object
			})
		}
		return found, err
	}
}

// admitted is a request that may go on.
type admitted struct {
	who        identity.Identity
	presented  credential.Presented
	sessionEnd time.Time // zero: there is no session
	backs      backing
	// touch: the session's activity has to be written, if this is any. key is the credential's in the cache.
	touch bool
	key   [sha256.Size]byte
}

// Authenticate answers whom a request acts for. An error is one that explain knows, or says that verifying failed.
func (a *Authenticator) Authenticate(r *http.Request) (identity.Identity, error) {
	in, err := a.admit(r)
	return in.who, err
}

func (a *Authenticator) admit(r *http.Request) (admitted, error) {
	token, ok := authn.BearerToken(r)
	if r.Header.Get("Authorization") == "" {
		token, ok = r.Header.Get(a.c.TokenHeader), true
		if token == "" {
			return admitted{}, problem.New(errorv1.Reason_REASON_CREDENTIAL_MISSING, howToAuthenticate)
		}
	}
	token = strings.TrimSpace(token)
	if !ok || token == "" || len(token) > maxCredential {
		from := a.presenter(r, "")
		a.failed(r.Context(), from, identity.Identity{})
		return admitted{}, from.slow(invalidCredential("it is not of the form `Bearer <API key, session token or JWT>`"))
	}
	var in admitted
	var err error
	if t, ok := credential.Parse(token); ok && t.Class == credential.Refresh {
		in, err = a.admitRefresh(r, t)
	} else {
		in, err = a.admitBearer(r, token)
	}
	if err != nil {
		return admitted{}, err
	}
	in.who, err = actFor(in.who, r.Header.Values(userHeader))
	return in, err
}

func (a *Authenticator) admitBearer(r *http.Request, token string) (admitted, error) {
	in := admitted{key: sha256.Sum256([]byte(token))}
	v, err := a.verify(r, token, in.key)
	if err != nil {
		return admitted{}, err
	}
	in.who, in.backs = v.who, v.backs
	in.sessionEnd = v.ends
	in.touch = v.who.Session != "" && !a.c.Now().Before(v.stale)
	if r.URL.Path == sessionv1connect.SessionServiceCreateSessionProcedure {
		in.presented.Key = credential.KeyOf(token)
	}
	return in, nil
}

// admitRefresh lets a refresh token in where it is exchanged, and nowhere else. It says whose it is; what it is worth is
// decided in the transaction that exchanges it.
func (a *Authenticator) admitRefresh(r *http.Request, t credential.Token) (admitted, error) {
	if r.URL.Path != sessionv1connect.SessionServiceRefreshSessionProcedure {
		return admitted{}, invalidCredential("a refresh token is good for RefreshSession only")
	}
	from := a.presenter(r, t.Session)
	whose, known := a.madeUp(t)
	if known {
		a.failed(r.Context(), from, whose)
		return admitted{}, from.slow(credential.Unknown())
	}
	found, _, err := a.findSession(r.Context(), from, t.Session)
	if err != nil {
		return admitted{}, err
	}
	for _, s := range found {
		rec, err := credential.Decode(s.Record)
		if err != nil {
			return admitted{}, err
		}
		whose = identity.Identity{Tenant: s.Tenant, User: s.User, Session: t.Session}
		newest, old := t.Matches(rec.GetRefreshHash()), t.Matches(rec.GetOldRefreshHash())
		if newest || old || t.Issued(rec.GetFamilyKey()) {
			return admitted{who: whose, presented: credential.Presented{Refresh: t}, backs: backing{session: t.Session}}, nil
		}
	}
	a.failed(r.Context(), from, whose)
	return admitted{}, from.slow(credential.Unknown())
}

// presenter returns the source of a request. session is the session that its credential names, if any.
func (a *Authenticator) presenter(r *http.Request, session string) presenter {
	source := sourceOf(r, a.c.AddressHeader, max(a.c.AddressHops, 1))
	return presenter{source, a.backoff.wait(source, session, a.c.Now())}
}

// slow returns the error for a bad credential: its refusal, or a request to wait.
func (p presenter) slow(refusal error) error {
	if p.wait > 0 {
		return problem.Later(errorv1.Reason_REASON_AUTH_BACKOFF, "too many credentials from here were refused; wait before the next", p.wait)
	}
	return refusal
}

func (a *Authenticator) finderFor(from presenter) *finder {
	if a.backoff.suspects(from.source, a.c.Now()) {
		return &a.suspects
	}
	return &a.finder
}

// findSession looks a session up, and caches what proves that a token of the session is made up.
func (a *Authenticator) findSession(ctx context.Context, from presenter, id string) ([]db.FoundSession, time.Time, error) {
	began := a.c.Now()
	found, clock, err := a.finderFor(from).findSession(ctx, id)
	if err == nil && len(found) == 1 {
		rec, err := credential.Decode(found[0].Record)
		if err != nil {
			return nil, time.Time{}, err
		}
		a.named.Add(id, named{
			familyKey: rec.GetFamilyKey(), whose: identity.Identity{Tenant: found[0].Tenant, User: found[0].User, Session: id}, until: began.Add(refuseFor),
		})
	}
	return found, clock, err
}

// madeUp reports whether a token is known not to belong to the session that it names, and returns the session's owner. A
// session's family key never changes, and all its tokens carry a tag made with it.
func (a *Authenticator) madeUp(t credential.Token) (whose identity.Identity, known bool) {
	n, ok := a.named.Get(t.Session)
	if !ok || !a.c.Now().Before(n.until) || t.Issued(n.familyKey) {
		return identity.Identity{}, false
	}
	return n.whose, true
}

func refOf(session string) db.SessionRef {
	return db.SessionRef{Object: credential.ObjectOf(session), Session: session}
}

// failed counts a bad credential, and tells the audit of the user whose session it names, if there is one: of the first,
// and then each time that they are twice as many.
// While it has to wait nothing is counted.
func (a *Authenticator) failed(ctx context.Context, from presenter, whose identity.Identity) {
	if from.wait > 0 {
		return
	}
	n := a.backoff.failed(from.source, whose.Session, a.c.Now())
	if whose.Tenant == "" || n&(n-1) != 0 || a.c.Refused == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyTimeout)
	defer cancel()
	// The caller is refused whether or not that can be written down.
	_ = a.c.Refused(ctx, whose, n)
}

// verify remembers verdicts for a moment.
func (a *Authenticator) verify(r *http.Request, token string, key [sha256.Size]byte) (verdict, error) {
	now := a.c.Now()
	if v, ok := a.verified.Get(key); ok && now.Before(v.until) {
		return v, nil
	}
	session := ""
	if t, ok := credential.Parse(token); ok {
		session = t.Session
	}
	from := a.presenter(r, session)
	v, ok := a.refused.Get(key)
	if !ok || !now.Before(v.until) {
		v = a.verifyAnew(r.Context(), from, token, key)
	}
	if v.bad {
		return v, from.slow(v.err)
	}
	return v, v.err
}

// verifyAnew asks once for callers that come together.
func (a *Authenticator) verifyAnew(ctx context.Context, from presenter, token string, key [sha256.Size]byte) verdict {
	// The look-up outlives the caller who happened to come first.
	found := a.flight.DoChan(string(key[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyTimeout)
		defer cancel()
		began := a.c.Now() // a verdict's time counts from before the look-up: what was read may be as old as that
		v, err := a.lookUp(ctx, from, token, began)
		v.err = err
		var refusal *problem.Error
		switch {
		case err == nil:
			a.verified.Add(key, v)
			a.refused.Remove(key)
		case errors.As(err, &refusal) && refusal.Code() == connect.CodeUnauthenticated:
			v.until = began.Add(refuseFor)
			a.refused.Add(key, v)
			a.verified.Remove(key)
		}
		return v, nil
	})
	select {
	case r := <-found:
		v, _ := r.Val.(verdict)
		return v
	case <-ctx.Done():
		return verdict{err: ctx.Err()}
	}
}

// refuse counts a bad credential.
func (a *Authenticator) refuse(ctx context.Context, from presenter, whose identity.Identity, refusal error) (verdict, error) {
	a.failed(ctx, from, whose)
	return verdict{bad: true}, refusal
}

func (a *Authenticator) lookUp(ctx context.Context, from presenter, token string, now time.Time) (verdict, error) {
	switch {
	case strings.HasPrefix(token, keyPrefix):
		return a.lookUpKey(ctx, from, token, now)
	case credential.IsOne(token):
		return a.lookUpSession(ctx, from, token, now)
	case a.c.Tokens == nil:
		return a.refuse(ctx, from, identity.Identity{}, invalidCredential("it is no API key and no session's token, and this server accepts nothing else"))
	}
	who, expires, err := a.c.Tokens.verify(ctx, token)
	if err != nil {
		// One that has expired was good once: its bearer did not make it up.
		var refusal *problem.Error
		if !errors.Is(err, errTokenExpired) && errors.As(err, &refusal) && refusal.Code() == connect.CodeUnauthenticated {
			return a.refuse(ctx, from, identity.Identity{}, err)
		}
		return verdict{}, err
	}
	until := now.Add(trustFor)
	if expires.Before(until) {
		until = expires
	}
	return verdict{who: who, until: until, backs: backing{expires: expires}}, nil
}

// lookUpSession verifies an access token.
func (a *Authenticator) lookUpSession(ctx context.Context, from presenter, token string, now time.Time) (verdict, error) {
	t, ok := credential.Parse(token)
	if !ok {
		return a.refuse(ctx, from, identity.Identity{}, invalidCredential("it begins like a session's token, but is cut or changed"))
	}
	whose, known := a.madeUp(t)
	if known {
		return a.refuse(ctx, from, whose, credential.Unknown())
	}
	found, clock, err := a.findSession(ctx, from, t.Session)
	if err != nil {
		return verdict{}, err
	}
	for _, s := range found {
		rec, err := credential.Decode(s.Record)
		if err != nil {
			return verdict{}, err
		}
		whose = identity.Identity{Tenant: s.Tenant, User: s.User, Session: t.Session}
		until, refusal := credential.Check(rec, t, clock)
		if refusal == nil {
			end, _ := credential.End(rec)
			return verdict{
				who: whose, ends: end, until: now.Add(min(trustFor, until.Sub(clock))), backs: backing{session: t.Session},
				stale: now.Add(credential.Stale(rec).Sub(clock)),
			}, nil
		}
		if refusal.Reason != credential.Invalid {
			return verdict{}, refusal // it was this session's once
		}
	}
	return a.refuse(ctx, from, whose, credential.Unknown())
}

// touch writes down that a session's user did something, once for callers that come together.
func (a *Authenticator) touch(ctx context.Context, in *admitted) error {
	if a.c.Touch == nil {
		return nil
	}
	_, err, _ := a.touching.Do(in.who.Session, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyTimeout)
		defer cancel()
		return nil, a.c.Touch(ctx, in.who)
	})
	// Until the next look-up, which knows better.
	if v, ok := a.verified.Peek(in.key); ok {
		v.stale = v.until
		a.verified.Add(in.key, v)
	}
	return err
}

// dummyKey keeps the time of a comparison the same if the key's id is unknown.
var dummyKey = []db.Key{{SecretHash: make([]byte, sha256.Size)}}

func (a *Authenticator) lookUpKey(ctx context.Context, from presenter, token string, now time.Time) (verdict, error) {
	id, hash, ok := SplitKey(token)
	if !ok {
		return a.refuse(ctx, from, identity.Identity{}, invalidCredential("it begins like an API key, but is cut or changed"))
	}
	unknown := invalidCredential("the API key is unknown or was revoked")
	if n, ok := a.named.Get(id); ok && now.Before(n.until) {
		if _, ok := matchKey(n.keys, hash); !ok {
			return a.refuse(ctx, from, identity.Identity{}, unknown)
		}
	}
	keys, err := a.finderFor(from).findKeys(ctx, id)
	if err != nil {
		return verdict{}, err
	}
	if len(keys) > 0 {
		a.named.Add(id, named{keys: keys, until: now.Add(refuseFor)})
	}
	who, ok := matchKey(keys, hash)
	if !ok {
		return a.refuse(ctx, from, identity.Identity{}, unknown)
	}
	return verdict{who: who, until: now.Add(trustFor), backs: backing{keyID: id, keyHash: [sha256.Size]byte(hash)}}, nil
}

// matchKey finds the key with this hash among those of an id.
func matchKey(keys []db.Key, hash []byte) (who identity.Identity, ok bool) {
	if len(keys) == 0 {
		keys = dummyKey
	}
	for _, k := range keys {
		if subtle.ConstantTimeCompare(hash, k.SecretHash) == 1 {
			who = identity.Identity{Tenant: k.Tenant, User: k.User, Service: k.User == ""}
		}
	}
	return who, who.Tenant != ""
}

// actFor applies the header by which a service acts for a user. The call then has only that user's rights.
func actFor(who identity.Identity, header []string) (identity.Identity, error) {
	if len(header) == 0 {
		return who, nil
	}
	// An empty header comes from an empty variable in the caller; it must not grant the rights of the whole tenant.
	user := identity.User(header[0])
	if len(header) > 1 || !ValidUser(user) {
		return identity.Identity{}, problem.InvalidArgument(userHeader,
			"must be one user id of 1 to 128 bytes, without control characters")
	}
	if !who.Service {
		if user != who.User {
			return identity.Identity{}, problem.PermissionDenied(
				"only a service key may act for another user with the header " + userHeader)
		}
		return who, nil
	}
	return identity.Identity{Tenant: who.Tenant, User: user}, nil
}

// ValidUser reports whether u can be a user's id: 1 to 128 bytes of printable text.
func ValidUser(u identity.User) bool { return u.Valid() }

var tenantPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// ValidTenant reports whether t can be a tenant's id: 1 to 128 of A-Z a-z 0-9 . _ : -
func ValidTenant(t identity.Tenant) bool { return tenantPattern.MatchString(string(t)) }

func invalidCredential(why string) *problem.Error {
	return problem.New(errorv1.Reason_REASON_CREDENTIAL_INVALID, "the credential was refused: "+why)
}

// entrance authenticates a request and has it admitted. It notes the caller in the call. passive are the procedures that do
// not count as the user's activity, unless their handler says so.
func (a *Authenticator) entrance(t *telemetry, passive map[string]bool, admitted func(*call, *http.Request) error) func(*call, *http.Request) *connect.Error {
	return func(c *call, r *http.Request) *connect.Error {
		ctx := r.Context()
		err := a.authenticate(ctx, c, r, t, passive)
		if err == nil {
			err = admitted(c, r)
		}
		if err == nil {
			return nil
		}
		e := t.fail(ctx, err)
		if e.Code() == connect.CodeUnauthenticated {
			challenge(e, c.reason)
		}
		return e
	}
}

func (a *Authenticator) authenticate(ctx context.Context, c *call, r *http.Request, t *telemetry, passive map[string]bool) error {
	in, err := a.admit(r)
	if err != nil {
		return err
	}
	if in.touch {
		active := func(ctx context.Context) {
			if err := a.touch(ctx, &in); err != nil {
				t.log.WarnContext(ctx, "a session's activity could not be written", "error", err)
			}
		}
		if passive[r.URL.Path] {
			c.active = active
		} else {
			active(ctx)
		}
	}
	c.caller, c.presented, c.sessionEnd, c.backs = in.who, in.presented, in.sessionEnd, in.backs
	return nil
}

// challenge adds the header that RFC 6750 requires with a refused credential.
func challenge(e *connect.Error, reason string) {
	said := `Bearer realm="holdfast"`
	if reason != "CREDENTIAL_MISSING" {
		said += `, error="invalid_token"`
	}
	e.Meta().Set("WWW-Authenticate", said)
}
