package handlers

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"holdfast/db"
	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

// keyring is a Find over keys in memory.
type keyring struct {
	mu    sync.Mutex
	keys  []db.Key
	err   error
	asked atomic.Int32
}

func (k *keyring) find(_ context.Context, ids []string, sessions []db.SessionRef) (db.Found, error) {
	k.asked.Add(1)
	k.mu.Lock()
	defer k.mu.Unlock()
	found := db.Found{Keys: make([][]db.Key, len(ids)), Sessions: make([][]db.FoundSession, len(sessions)), Now: time.Now()}
	for i, id := range ids {
		for _, key := range k.keys {
			if key.ID == id {
				found.Keys[i] = append(found.Keys[i], key)
			}
		}
	}
	return found, k.err
}

// add makes a key and returns its token.
func (k *keyring) add(tenant identity.Tenant, user identity.User) string {
	token, key := NewKey(tenant, user, "test")
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = append(k.keys, key)
	return token
}

func (k *keyring) set(keys []db.Key, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys, k.err = keys, err
}

func newAuth(k *keyring) *Authenticator {
	return NewAuthenticator(AuthConfig{Find: k.find, Now: time.Now})
}

func bearer(ctx context.Context, token string, users ...string) *http.Request {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	for _, u := range users {
		r.Header.Add(userHeader, u)
	}
	return r
}

// refusal describes an error as "code REASON".
func refusal(err error) string {
	if err == nil {
		return ""
	}
	if p := explain(err); p != nil {
		return p.Code().String() + " " + problem.Name(p.Reason)
	}
	return err.Error()
}

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	var k keyring
	service, ada := k.add("acme", ""), k.add("acme", "ada")
	a := newAuth(&k)
	const missing, invalid = "unauthenticated CREDENTIAL_MISSING", "unauthenticated CREDENTIAL_INVALID"
	tests := []struct {
		name   string
		header string
		users  []string
		want   identity.Identity
		err    string
	}{
		{name: "nothing", err: missing},
		{name: "another scheme", header: "Basic YTpi", err: invalid},
		{name: "no token", header: "Bearer ", err: invalid},
		{name: "not a key", header: "Bearer secret", err: invalid},
		{name: "very long", header: "Bearer " + strings.Repeat("x", maxCredential+1), err: invalid},
		{name: "cut", header: "Bearer " + service[:60], err: invalid},
		{name: "unknown id", header: "Bearer hfk_" + strings.Repeat("a", 16) + service[20:], err: invalid},
		{name: "another key's secret", header: "Bearer " + service[:20] + ada[20:], err: invalid},
		{name: "upper-case id", header: "Bearer " + strings.ToUpper(service[:20]) + service[20:], err: invalid},
		{name: "service", header: "Bearer " + service, want: identity.Identity{Tenant: "acme", Service: true}},
		{name: "lower-case scheme", header: "bearer " + service, want: identity.Identity{Tenant: "acme", Service: true}},
		{name: "user", header: "Bearer " + ada, want: identity.Identity{Tenant: "acme", User: "ada"}},
		{name: "service for a user", header: "Bearer " + service, users: []string{"grace"}, want: identity.Identity{Tenant: "acme", User: "grace"}},
		{name: "user for herself", header: "Bearer " + ada, users: []string{"ada"}, want: identity.Identity{Tenant: "acme", User: "ada"}},
		{name: "user for another", header: "Bearer " + ada, users: []string{"grace"}, err: "permission_denied ROLE_REQUIRED"},
		{name: "service for the empty user", header: "Bearer " + service, users: []string{""}, err: "invalid_argument FIELD_INVALID"},
		{name: "service for two users", header: "Bearer " + service, users: []string{"a", "b"}, err: "invalid_argument FIELD_INVALID"},
		{name: "control character", header: "Bearer " + service, users: []string{"a\x7f"}, err: "invalid_argument FIELD_INVALID"},
		{name: "not UTF-8", header: "Bearer " + service, users: []string{"a\xff"}, err: "invalid_argument FIELD_INVALID"},
		{name: "too long a user", header: "Bearer " + service, users: []string{strings.Repeat("é", 65)}, err: "invalid_argument FIELD_INVALID"},
		{name: "long enough a user", header: "Bearer " + service, users: []string{strings.Repeat("é", 64)}, want: identity.Identity{Tenant: "acme", User: identity.User(strings.Repeat("é", 64))}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := bearer(t.Context(), "", tt.users...)
			r.Header.Set("Authorization", tt.header)
			who, err := a.Authenticate(r)
			if who != tt.want || refusal(err) != tt.err {
				t.Errorf("got %+v, %q; want %+v, %q", who, refusal(err), tt.want, tt.err)
			}
			if err != nil && len(tt.header) > 20 && strings.Contains(err.Error(), tt.header[10:]) {
				t.Errorf("the error quotes the credential: %v", err)
			}
		})
	}
}

// Stored hashes must be understood for ever.
func TestKeyFormat(t *testing.T) {
	t.Parallel()
	const token = "hfk_abcdefghijkl2345_-AbCdEfGhIjKlMnOpQrStUvWxYz0123456789_-AbCd"
	hash, err := hex.DecodeString("8828920b1e9cffb1bbab57e628acfaa973aca653c3be1c9c4bfcfd2d9e1f9b25")
	if err != nil {
		t.Fatal(err)
	}
	var k keyring
	k.set([]db.Key{{Tenant: "acme", ID: "abcdefghijkl2345", SecretHash: hash}}, nil)
	who, err := newAuth(&k).Authenticate(bearer(t.Context(), token))
	if err != nil || who.Tenant != "acme" {
		t.Errorf("got %+v, %v", who, err)
	}
}

func TestNewKeys(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 100 {
		token, k := NewKey("acme", "ada", "laptop")
		id, hash, ok := SplitKey(token)
		if !ok || id != k.ID || !bytes.Equal(hash, k.SecretHash) || seen[id] || seen[string(hash)] || k.Tenant != "acme" || k.User != "ada" || k.Description != "laptop" {
			t.Fatalf("NewKey = %q, %+v", token, k)
		}
		seen[id], seen[string(hash)] = true, true
	}
}

// An id is unique in its tenant only: the secret decides.
func TestTwoTenantsShareAKeyID(t *testing.T) {
	t.Parallel()
	var k keyring
	_, other := NewKey("other", "", "")
	token := k.add("acme", "")
	other.ID = k.keys[0].ID
	k.set([]db.Key{k.keys[0], other}, nil)
	who, err := newAuth(&k).Authenticate(bearer(t.Context(), token))
	if err != nil || who.Tenant != "acme" {
		t.Errorf("got %+v, %v", who, err)
	}
}

func TestRevocationTakesEffectWithinTwoSeconds(t *testing.T) {
	t.Parallel()
	var k keyring
	token, now := k.add("acme", ""), time.Unix(1e9, 0)
	a := NewAuthenticator(AuthConfig{Find: k.find, Now: func() time.Time { return now }})
	for range 10 {
		if _, err := a.Authenticate(bearer(t.Context(), token)); err != nil {
			t.Fatal(err)
		}
	}
	if n := k.asked.Load(); n != 1 {
		t.Errorf("the database was asked %d times", n)
	}
	k.set(nil, nil)
	now = now.Add(2 * time.Second)
	if _, err := a.Authenticate(bearer(t.Context(), token)); refusal(err) != "unauthenticated CREDENTIAL_INVALID" {
		t.Errorf("after two seconds: %v", err)
	}
}

func TestARefusalIsForgottenSooner(t *testing.T) {
	t.Parallel()
	var k keyring
	token, key := NewKey("acme", "", "")
	now := time.Unix(1e9, 0)
	a := NewAuthenticator(AuthConfig{Find: k.find, Now: func() time.Time { return now }})
	for range 10 {
		if _, err := a.Authenticate(bearer(t.Context(), token)); err == nil {
			t.Fatal("accepted")
		}
	}
	if n := k.asked.Load(); n != 1 {
		t.Errorf("the database was asked %d times", n)
	}
	k.set([]db.Key{key}, nil)
	now = now.Add(time.Second)
	if _, err := a.Authenticate(bearer(t.Context(), token)); err != nil {
		t.Errorf("after a second: %v", err)
	}
}

func TestDatabaseAwayIsNotABadCredential(t *testing.T) {
	t.Parallel()
	var k keyring
	token := k.add("acme", "")
	keys := k.keys
	k.set(nil, fmt.Errorf("%w: connection refused", db.ErrUnavailable))
	a := newAuth(&k)
	if _, err := a.Authenticate(bearer(t.Context(), token)); refusal(err) != "unavailable DATABASE_UNAVAILABLE" {
		t.Errorf("away: %v", err)
	}
	k.set(keys, nil)
	if _, err := a.Authenticate(bearer(t.Context(), token)); err != nil {
		t.Errorf("back: %v", err)
	}
}

func TestCallersThatComeTogetherAskOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var k keyring
		token := k.add("acme", "")
		release := make(chan struct{})
		a := NewAuthenticator(AuthConfig{Now: time.Now, Find: func(ctx context.Context, ids []string, sessions []db.SessionRef) (db.Found, error) {
			<-release
			if ctx.Err() != nil {
				return db.Found{}, ctx.Err()
			}
			return k.find(ctx, ids, sessions)
		}})
		// The first gives up; those who wait with it must not fail for it.
		first, giveUp := context.WithCancel(t.Context())
		errs := make(chan error, 10)
		ask := func(ctx context.Context) {
			_, err := a.Authenticate(bearer(ctx, token))
			errs <- err
		}
		go ask(first)
		synctest.Wait()
		for range 9 {
			go ask(t.Context())
		}
		synctest.Wait()
		giveUp()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("the first got %v", err)
		}
		close(release)
		for range 9 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if n := k.asked.Load(); n != 1 {
			t.Errorf("the database was asked %d times", n)
		}
	})
}

func TestChallenge(t *testing.T) {
	t.Parallel()
	for reason, want := range map[errorv1.Reason]string{
		errorv1.Reason_REASON_CREDENTIAL_MISSING: `Bearer realm="holdfast"`,
		errorv1.Reason_REASON_CREDENTIAL_INVALID: `Bearer realm="holdfast", error="invalid_token"`,
	} {
		e := encode(problem.New(reason, "x"), "")
		challenge(e, problem.Name(reason))
		if got := e.Meta().Get("WWW-Authenticate"); got != want || e.Code() != connect.CodeUnauthenticated {
			t.Errorf("%s: %s", reason, got)
		}
	}
}
