package handlers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"holdfast/handlers/problem"
)

const (
	invalidToken = "unauthenticated CREDENTIAL_INVALID"
	providerAway = "unavailable IDENTITY_PROVIDER_UNAVAILABLE"
)

// until verifies a token again for as long as the answer is to try again, as a client does.
func until(t *testing.T, tokens *Tokens, token string) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		_, _, err := tokens.verify(t.Context(), token)
		got := refusal(err)
		if got != providerAway || time.Now().After(deadline) {
			return got
		}
		var p *problem.Error
		if !errors.As(err, &p) || p.RetryAfter <= 0 {
			t.Fatalf("it does not say when to try again: %v", err)
		}
		<-time.After(p.RetryAfter)
	}
}

func stranger(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// A new key is good at once, whoever asked for unknown ones before and at the same time, and is asked for seldom.
func TestANewKeyIsGoodWhoeverAskedForUnknownOnes(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	tokens := newTokens(t, tokenConfig(p))
	made := stranger(t)
	ended := make(chan struct{})
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-ended:
					return
				default:
				}
				token := sign(t, jwt.SigningMethodES256, fmt.Sprintf("made-up-%d-%d", i, n), made, good(nil))
				if _, _, err := tokens.verify(t.Context(), token); refusal(err) != invalidToken && refusal(err) != providerAway {
					t.Errorf("a stranger's: %v", err)
				}
			}
		})
	}
	began, fetches := time.Now(), p.asked()
	for _, kid := range []string{"k2", "k3", "k4"} {
		p.rotate(t, kid)
		if got := until(t, tokens, p.sign(t, kid, good(nil))); got != "" {
			t.Errorf("%s: %s", kid, got)
		}
		if got := until(t, tokens, p.sign(t, "k1", good(nil))); got != "" {
			t.Errorf("the key from before: %s", got)
		}
	}
	if n, most := p.asked()-fetches, int(time.Since(began)/unknownKeyEvery)+2; n > most {
		t.Errorf("the provider was asked %d times in %v", n, time.Since(began))
	}
	close(ended)
	wait.Wait()
}

// Without a kid any of the keys may be meant, also a new one.
func TestANewKeyWithoutAKidIsFetched(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	tokens := newTokens(t, tokenConfig(p))
	if got := until(t, tokens, p.signWithout(t, "k1", good(nil))); got != "" {
		t.Error(got)
	}
	p.rotate(t, "k2")
	if got := until(t, tokens, p.signWithout(t, "k2", good(nil))); got != "" {
		t.Error(got)
	}
	if got := until(t, tokens, sign(t, jwt.SigningMethodES256, "", stranger(t), good(nil))); got != invalidToken {
		t.Error(got)
	}
}

// A key that the provider publishes no more is refused once its keys were fetched.
func TestAWithdrawnKeyIsRefused(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	tokens := newTokens(t, tokenConfig(p))
	old := p.sign(t, "k1", good(nil))
	if got := until(t, tokens, old); got != "" {
		t.Fatal(got)
	}
	p.mu.Lock()
	delete(p.keys, "k1")
	p.mu.Unlock()
	p.rotate(t, "k2")
	if got := until(t, tokens, p.sign(t, "k2", good(nil))); got != "" {
		t.Error(got)
	}
	if got := until(t, tokens, old); got != invalidToken {
		t.Errorf("the withdrawn one: %s", got)
	}
}

// Keys that cannot be fetched for an hour are good no more.
func TestOldKeysAreNotTrustedForEver(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	c := tokenConfig(p)
	var mu sync.Mutex
	var later time.Duration
	c.Now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(later)
	}
	tokens := newTokens(t, c)
	token := p.sign(t, "k1", good(jwt.MapClaims{"exp": time.Now().Add(48 * time.Hour).Unix()}))
	if got := until(t, tokens, token); got != "" {
		t.Fatal(got)
	}
	p.setDown(true)
	for _, tt := range []struct {
		after time.Duration
		want  string
	}{{keysLast - time.Minute, ""}, {keysLast, providerAway}} {
		mu.Lock()
		later = tt.after
		mu.Unlock()
		if _, _, err := tokens.verify(t.Context(), token); refusal(err) != tt.want {
			t.Errorf("after %v: %v", tt.after, err)
		}
	}
}

// Whatever is wrong with the provider, the keys at hand stay good, an unknown one is no bad credential, and all is well once
// the provider is.
func TestAProviderWithFaults(t *testing.T) {
	t.Parallel()
	hanging := make(chan struct{})
	t.Cleanup(func() { close(hanging) })
	for name, fault := range map[string]http.HandlerFunc{
		"failing":          func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusBadGateway) },
		"not there":        func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"304 for no ETag":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) },
		"a page":           func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>maintenance</html>") },
		"nothing":          func(http.ResponseWriter, *http.Request) {},
		"null":             func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "null") },
		"another document": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"issuer":"x"}`) },
		"cut off":          func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"keys":[{"kty":"EC"`) },
		"no usable key": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"keys":[{"kty":"EC","kid":"k2"}]}`)
		},
		"too much": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxKeySet+1)) },
		"hanging": func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-hanging:
			case <-r.Context().Done():
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProvider(t)
			tokens := newTokens(t, tokenConfig(p))
			if got := until(t, tokens, p.sign(t, "k1", good(nil))); got != "" {
				t.Fatal(got)
			}
			p.setFault(fault)
			p.rotate(t, "k2")
			if _, _, err := tokens.verify(t.Context(), p.sign(t, "k2", good(nil))); refusal(err) != providerAway {
				t.Errorf("the new key, meanwhile: %v", err)
			}
			if _, _, err := tokens.verify(t.Context(), p.sign(t, "k1", good(nil))); err != nil {
				t.Errorf("the old key, meanwhile: %v", err)
			}
			p.setFault(nil)
			if got := until(t, tokens, p.sign(t, "k2", good(nil))); got != "" {
				t.Errorf("afterwards: %s", got)
			}
		})
	}
}

// An answer that nothing has changed is as good as one with the keys.
func TestAProviderWithETags(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	p.etag = `"1"`
	tokens := newTokens(t, tokenConfig(p))
	if got := until(t, tokens, p.sign(t, "k1", good(nil))); got != "" {
		t.Fatal(got)
	}
	if got := until(t, tokens, sign(t, jwt.SigningMethodES256, "k9", stranger(t), good(nil))); got != invalidToken {
		t.Errorf("an unknown key: %s", got)
	}
	if got := until(t, tokens, p.sign(t, "k1", good(nil))); got != "" {
		t.Error(got)
	}
	p.mu.Lock()
	p.etag = `"2"`
	p.mu.Unlock()
	p.rotate(t, "k2")
	if got := until(t, tokens, p.sign(t, "k2", good(nil))); got != "" {
		t.Error(got)
	}
}

// One key that cannot be used is in no other's way.
func TestOneBadKeyIsInNoOthersWay(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	p.more = []map[string]string{{"kty": "EC", "crv": "P-256", "kid": "cut"}, {"kty": "new"}, {"kty": "RSA", "use": "enc", "kid": "enc", "n": "AQAB", "e": "AQAB"}}
	tokens := newTokens(t, tokenConfig(p))
	if got := until(t, tokens, p.sign(t, "k1", good(nil))); got != "" {
		t.Error(got)
	}
}

// An extension that must be understood is refused, whatever it is.
func TestExtensionsAreRefused(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	tokens := newTokens(t, tokenConfig(p))
	for name, header := range map[string]map[string]any{
		"crit":               {"crit": []string{"exp"}, "exp": 1},
		"crit of our own":    {"crit": []string{"urn:example:x"}, "urn:example:x": true},
		"crit of a known":    {"crit": []string{"kid"}},
		"an empty crit":      {"crit": []string{}},
		"crit as text":       {"crit": "b64"},
		"crit null":          {"crit": nil},
		"b64":                {"crit": []string{"b64"}, "b64": false},
		"b64 without crit":   {"b64": false},
		"b64 as it would be": {"crit": []string{"b64"}, "b64": true},
	} {
		token := jwt.NewWithClaims(jwt.SigningMethodES256, good(nil))
		token.Header["kid"] = "k1"
		maps.Copy(token.Header, header)
		s, err := token.SignedString(p.keys["k1"])
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := tokens.verify(t.Context(), s); refusal(err) != invalidToken {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A token expires when it says, to the second. A provider whose clock is ahead is given half a minute.
func TestTimesOfATokenCount(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	c, now := tokenConfig(p), time.Unix(2e9, 0)
	c.Now = func() time.Time { return now }
	tokens := newTokens(t, c)
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	for name, tt := range map[string]struct {
		claims jwt.MapClaims
		ok     bool
	}{
		"expires in a second":         {jwt.MapClaims{"exp": at(time.Second)}, true},
		"expires now":                 {jwt.MapClaims{"exp": at(0)}, false},
		"expired a second ago":        {jwt.MapClaims{"exp": at(-time.Second)}, false},
		"expired 25 s ago":            {jwt.MapClaims{"exp": at(-25 * time.Second)}, false},
		"expired in part of a second": {jwt.MapClaims{"exp": float64(now.Unix()) - 0.5}, false},
		"not before, 30 s ahead":      {jwt.MapClaims{"exp": at(time.Hour), "nbf": at(clockSkew)}, true},
		"not before, more":            {jwt.MapClaims{"exp": at(time.Hour), "nbf": at(clockSkew + time.Second)}, false},
		"issued 30 s ahead":           {jwt.MapClaims{"exp": at(time.Hour), "iat": at(clockSkew)}, true},
		"issued in the future":        {jwt.MapClaims{"exp": at(time.Hour), "iat": at(clockSkew + time.Second)}, false},
	} {
		_, expires, err := tokens.verify(t.Context(), p.sign(t, "k1", good(tt.claims)))
		if tt.ok != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if want, _ := tt.claims["exp"].(int64); err == nil && expires.Unix() != want {
			t.Errorf("%s: until %v", name, expires)
		}
	}
}
