package handlers

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"holdfast/identity"
)

// provider is an identity provider: a JWKS endpoint, and the keys behind it.
type provider struct {
	mu   sync.Mutex
	keys map[string]*ecdsa.PrivateKey
	down bool
	url  string
	// fault answers in place of the provider; nil: it is well.
	fault http.HandlerFunc
	// more are published as they are, and etag is what the answer has.
	more  []map[string]string
	etag  string
	count int
}

func (p *provider) setFault(f http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// asked is how often the keys were fetched.
func (p *provider) asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{keys: map[string]*ecdsa.PrivateKey{}}
	p.rotate(t, "k1")
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	p.url = s.URL
	return p
}

func (p *provider) rotate(t *testing.T, kid string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys[kid] = key
}

func (p *provider) setDown(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	fault := p.fault
	p.mu.Unlock()
	if fault != nil {
		fault(w, r)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	if p.etag != "" {
		w.Header().Set("ETag", p.etag)
		if r.Header.Get("If-None-Match") == p.etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	if p.down {
		http.Error(w, "down", http.StatusBadGateway)
		return
	}
	var set struct {
		Keys []map[string]string `json:"keys"`
	}
	set.Keys = append(set.Keys, p.more...)
	for kid, k := range p.keys {
		set.Keys = append(set.Keys, jwk(kid, k))
	}
	if err := json.NewEncoder(w).Encode(set); err != nil {
		panic(err)
	}
}

func jwk(kid string, k *ecdsa.PrivateKey) map[string]string {
	point, _ := k.PublicKey.Bytes() // 4, x, y
	b64 := base64.RawURLEncoding.EncodeToString
	return map[string]string{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid, "x": b64(point[1:33]), "y": b64(point[33:]),
	}
}

func (p *provider) sign(t *testing.T, kid string, claims jwt.MapClaims) string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	return sign(t, jwt.SigningMethodES256, kid, p.keys[kid], claims)
}

func sign(t *testing.T, m jwt.SigningMethod, kid string, key any, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(m, claims)
	if kid != "" {
		token.Header["kid"] = kid
	}
	s, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// good are the claims of a token that is accepted, changed by the given ones; nil removes one.
func good(changes jwt.MapClaims) jwt.MapClaims {
	c := jwt.MapClaims{
		"iss": "https://id.example.com", "aud": "holdfast", "sub": "ada", "exp": time.Now().Add(time.Hour).Unix(),
		"app": map[string]any{"org": "acme"},
	}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func tokenConfig(p *provider) TokenConfig {
	c := TokenConfig{
		Issuer: "https://id.example.com", Audience: "holdfast", TenantClaim: "app.org", UserClaim: "sub",
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second},
	}
	if p != nil {
		c.JWKSURL = p.url
	}
	return c
}

func newTokens(t *testing.T, c TokenConfig) *Tokens {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	tokens, err := NewTokens(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func TestTokens(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	c, now := tokenConfig(p), time.Now()
	c.Now = func() time.Time { return now } // tokens do not age while the tests wait for their turn
	tokens := newTokens(t, c)
	var k keyring
	a := NewAuthenticator(AuthConfig{Find: k.find, Tokens: tokens, Now: time.Now})

	none := sign(t, jwt.SigningMethodNone, "k1", jwt.UnsafeAllowNoneSignatureType, good(nil))
	hmac := sign(t, jwt.SigningMethodHS256, "k1", []byte("secret"), good(nil))
	// The classic confusion: the public key, which everybody has, as an HMAC secret.
	public, err := x509.MarshalPKIXPublicKey(p.keys["k1"].Public())
	if err != nil {
		t.Fatal(err)
	}
	confused := sign(t, jwt.SigningMethodHS256, "k1", public, good(nil))
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	valid := p.sign(t, "k1", good(nil))
	parts := strings.Split(valid, ".")
	other := strings.Split(p.sign(t, "k1", good(jwt.MapClaims{"sub": "eve"})), ".")

	ada := identity.Identity{Tenant: "acme", User: "ada"}
	tests := []struct {
		name  string
		token string
		users []string
		want  identity.Identity
		says  string // empty: accepted
	}{
		{name: "good", token: valid, want: ada},
		{name: "no kid", token: p.signWithout(t, "k1", good(nil)), want: ada},
		{name: "one of two audiences", token: p.sign(t, "k1", good(jwt.MapClaims{"aud": []string{"x", "holdfast"}})), want: ada},
		{name: "for herself", token: valid, users: []string{"ada"}, want: ada},
		{name: "for another", token: valid, users: []string{"eve"}, says: "only a service key"},
		{name: "another issuer", token: p.sign(t, "k1", good(jwt.MapClaims{"iss": "https://evil.example.com"})), says: "issuer"},
		{name: "no issuer", token: p.sign(t, "k1", good(jwt.MapClaims{"iss": nil})), says: "lacks"},
		{name: "another audience", token: p.sign(t, "k1", good(jwt.MapClaims{"aud": "billing"})), says: "audience"},
		{name: "no audience", token: p.sign(t, "k1", good(jwt.MapClaims{"aud": nil})), says: "lacks"},
		{name: "expired", token: p.sign(t, "k1", good(jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()})), says: "expired"},
		{name: "never expires", token: p.sign(t, "k1", good(jwt.MapClaims{"exp": nil})), says: "lacks"},
		{name: "not yet", token: p.sign(t, "k1", good(jwt.MapClaims{"nbf": time.Now().Add(time.Minute).Unix()})), says: "not valid yet"},
		{name: "no tenant", token: p.sign(t, "k1", good(jwt.MapClaims{"app": nil})), says: `claim "app.org"`},
		{name: "tenant is no text", token: p.sign(t, "k1", good(jwt.MapClaims{"app": map[string]any{"org": 7}})), says: `claim "app.org"`},
		{name: "tenant has no such form", token: p.sign(t, "k1", good(jwt.MapClaims{"app": map[string]any{"org": "a b"}})), says: `claim "app.org"`},
		{name: "no user", token: p.sign(t, "k1", good(jwt.MapClaims{"sub": nil})), says: `claim "sub"`},
		{name: "alg none", token: none, says: "not accepted"},
		{name: "HMAC", token: hmac, says: "not accepted"},
		{name: "HMAC with the public key", token: confused, says: "not accepted"},
		{name: "a stranger's key", token: sign(t, jwt.SigningMethodES256, "k1", stranger, good(nil)), says: "signature"},
		{name: "another token's claims", token: parts[0] + "." + other[1] + "." + parts[2], says: "signature"},
		{name: "no signature", token: parts[0] + "." + parts[1] + ".", says: "signature"},
		{name: "unknown kid", token: sign(t, jwt.SigningMethodES256, "k9", stranger, good(nil)), says: "does not accept"},
		{name: "no JWT", token: "abc", says: "neither"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			who, err := a.Authenticate(bearer(t.Context(), tt.token, tt.users...))
			switch {
			case tt.says == "" && (err != nil || who != tt.want):
				t.Errorf("got %+v, %v; want %+v", who, err, tt.want)
			case tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)):
				t.Errorf("got %+v, %v; want an error that says %q", who, err, tt.says)
			case err != nil && strings.Contains(err.Error(), tt.token) && tt.token != "":
				t.Errorf("the error quotes the token: %v", err)
			}
		})
	}
}

// A proxy that has signed its users in passes their tokens on in a header of its own. What a caller sends as Authorization wins, good or not.
func TestAProxyPassesItsUsersTokensOn(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	tokens := newTokens(t, tokenConfig(p))
	var k keyring
	behind := NewAuthenticator(AuthConfig{Find: k.find, Tokens: tokens, TokenHeader: "X-Goog-IAP-JWT-Assertion", Now: time.Now})
	open := NewAuthenticator(AuthConfig{Find: k.find, Tokens: tokens, Now: time.Now})
	ada, eve := p.sign(t, "k1", good(nil)), p.sign(t, "k1", good(jwt.MapClaims{"sub": "eve"}))
	for name, tt := range map[string]struct {
		a                     *Authenticator
		passed, authorization string
		user                  identity.User
		want                  string
	}{
		"passed on":              {behind, ada, "", "ada", ""},
		"the caller's own wins":  {behind, ada, "Bearer " + eve, "eve", ""},
		"a wrong one wins, too":  {behind, ada, "Bearer x", "", invalidToken},
		"not a bearer's":         {behind, ada, "Basic x", "", invalidToken},
		"passed on, but forged":  {behind, ada + "x", "", "", invalidToken},
		"neither":                {behind, "", "", "", "unauthenticated CREDENTIAL_MISSING"},
		"there is no such proxy": {open, ada, "", "", "unauthenticated CREDENTIAL_MISSING"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", http.NoBody)
		r.Header.Set("X-Goog-Iap-Jwt-Assertion", tt.passed)
		if tt.authorization != "" {
			r.Header.Set("Authorization", tt.authorization)
		}
		who, err := tt.a.Authenticate(r)
		if got := refusal(err); who.User != tt.user || got != tt.want {
			t.Errorf("%s: %q, %v", name, who.User, err)
		}
	}
}

func (p *provider) signWithout(t *testing.T, kid string, claims jwt.MapClaims) string {
	t.Helper()
	return sign(t, jwt.SigningMethodES256, "", p.keys[kid], claims)
}

func TestProviderAwayIsNotABadCredential(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	p.setDown(true)
	tokens := newTokens(t, tokenConfig(p))
	token := p.sign(t, "k1", good(nil))
	if _, _, err := tokens.verify(t.Context(), token); refusal(err) != "unavailable IDENTITY_PROVIDER_UNAVAILABLE" {
		t.Errorf("away: %v", err)
	}
}

func TestStaticKeys(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pemOf := func(k crypto.Signer) []byte {
		der, err := x509.MarshalPKIXPublicKey(k.Public())
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	one, err := json.Marshal(jwk("k1", ecKey))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		file   []byte
		method jwt.SigningMethod
		key    any
	}{
		{"RSA", pemOf(rsaKey), jwt.SigningMethodRS256, rsaKey},
		{"RSA-PSS", pemOf(rsaKey), jwt.SigningMethodPS256, rsaKey},
		{"EC", pemOf(ecKey), jwt.SigningMethodES256, ecKey},
		{"Ed25519", pemOf(edKey), jwt.SigningMethodEdDSA, edKey},
		{"JWK", one, jwt.SigningMethodES256, ecKey},
		{"JWKS", []byte(`{"keys":[` + string(one) + `]}`), jwt.SigningMethodES256, ecKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := tokenConfig(nil)
			c.Key = tt.file
			who, _, err := newTokens(t, c).verify(t.Context(), sign(t, tt.method, "k1", tt.key, good(nil)))
			if err != nil || who.User != "ada" {
				t.Errorf("got %+v, %v", who, err)
			}
		})
	}
}

func TestTokenConfigThatIsWrong(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*TokenConfig){
		"no issuer":          func(c *TokenConfig) { c.Issuer = "" },
		"no audience":        func(c *TokenConfig) { c.Audience = "" },
		"no key":             func(c *TokenConfig) { c.Key = nil },
		"two keys":           func(c *TokenConfig) { c.JWKSURL = "https://id.example.com/keys" },
		"no tenant":          func(c *TokenConfig) { c.TenantClaim = "" },
		"two tenants":        func(c *TokenConfig) { c.Tenant = "acme" },
		"tenant of no form":  func(c *TokenConfig) { c.TenantClaim, c.Tenant = "", "a b" },
		"no user":            func(c *TokenConfig) { c.UserClaim = "" },
		"a key that is none": func(c *TokenConfig) { c.Key = []byte("secret") },
		"a JWK that is none": func(c *TokenConfig) { c.Key = []byte(`{"kty":"x"}`) },
		"a URL that is none": func(c *TokenConfig) { c.Key, c.JWKSURL = nil, "keys" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := tokenConfig(nil)
			c.Key = []byte(`{"kty":"oct","k":"AAAA"}`)
			change(&c)
			if _, err := NewTokens(t.Context(), c); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestClaimPaths(t *testing.T) {
	t.Parallel()
	claims := map[string]any{
		"a": map[string]any{"b": map[string]any{"c": "deep"}}, "https://x.example/tenant.id": "url", "n": 5.0,
	}
	for path, want := range map[string]string{
		"a.b.c": "deep", "https://x.example/tenant.id": "url", "a.b": "", "a.b.c.d": "", "n": "", "": "", "z": "",
	} {
		if got := claim(claims, path); got != want {
			t.Errorf("claim(%q) = %q, want %q", path, got, want)
		}
	}
}
