package handlers_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"holdfast/db/dbtest"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	"holdfast/handlers"
	"holdfast/handlers/handlertest"
	"holdfast/handlers/session/credential"
	"holdfast/identity"
	"holdfast/object"
)

// credentials are those of one tenant, all good, and none presented yet but where it says.
type credentials struct{ service, user, access, refresh, jwt string }

// A stranger at the same address presents bad credentials as fast as he can, of whatever kind. No good one is refused for it, seen
// before or not.
func TestAStrangerLocksNobodyOut(t *testing.T) {
	t.Parallel()
	random := func(n int) string {
		b := make([]byte, n)
		_, _ = rand.Read(b)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	newKey := func() string { token, _ := handlers.NewKey("acme", "", ""); return token }
	session := func(class credential.Class) string {
		o := credential.Origin{Session: credential.NewSessionID(credential.ObjectID("acme", identity.User(random(6))), []byte(random(6))[:6]), FamilyKey: make([]byte, 32)}
		return o.Issue(class).Bearer()
	}
	const withoutSecret = len("hfa_") + 36 + 1
	for name, bad := range map[string]func(of credentials) string{
		"no credential at all":           func(credentials) string { return "" },
		"text":                           func(credentials) string { return random(8) },
		"a key, cut":                     func(c credentials) string { return c.service[:30] },
		"a key, made up":                 func(credentials) string { return newKey() },
		"a service key's id":             func(c credentials) string { return c.service[:20] + newKey()[20:] },
		"a user key's id":                func(c credentials) string { return c.user[:20] + newKey()[20:] },
		"an access token, made up":       func(credentials) string { return session(credential.Access) },
		"an access token's session":      func(c credentials) string { return c.access[:withoutSecret] + random(48) },
		"a refresh token of the session": func(c credentials) string { return c.refresh[:withoutSecret] + random(48) },
		"a JWT, forged":                  func(c credentials) string { return c.jwt[:strings.LastIndexByte(c.jwt, '.')+1] + random(64) },
		"the same one again and again":   func(c credentials) string { return c.service[:20] + strings.Repeat("A", 44)[1:] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newCredentialServer(t)
			named := s.issue(t, "named") // whose ids the stranger knows
			ended := make(chan struct{})
			var wait sync.WaitGroup
			for range 2 {
				wait.Go(func() {
					for {
						select {
						case <-ended:
							return
						default:
						}
						path := conversationv1connect.ConversationServiceListConversationsProcedure
						token := bad(named)
						if strings.HasPrefix(token, string(credential.Refresh)) {
							path = sessionv1connect.SessionServiceRefreshSessionProcedure
						}
						status, body := s.call(t, path, token, "192.0.2.1")
						if status != http.StatusUnauthorized && !strings.Contains(body, "AUTH_BACKOFF") {
							t.Errorf("a bad credential: %d %s", status, body)
							return
						}
					}
				})
			}
			all := []credentials{named}
			for _, user := range []identity.User{"ada", "grace", "joan"} {
				all = append(all, s.issue(t, user))
			}
			for range 2 { // unseen, and again
				for i, c := range all {
					for kind, token := range map[string]string{"service key": c.service, "user key": c.user, "access token": c.access, "JWT": c.jwt} {
						if status, body := s.call(t, conversationv1connect.ConversationServiceListConversationsProcedure, token, "192.0.2.1"); status != http.StatusOK {
							t.Errorf("a good %s: %d %s", kind, status, body)
						}
					}
					status, body := s.call(t, sessionv1connect.SessionServiceRefreshSessionProcedure, c.refresh, "192.0.2.1")
					var pair struct {
						Tokens struct{ AccessToken, RefreshToken string }
					}
					if err := json.Unmarshal([]byte(body), &pair); status != http.StatusOK || err != nil {
						t.Errorf("a good refresh token: %d %s", status, body)
					}
					all[i].access, all[i].refresh = pair.Tokens.AccessToken, pair.Tokens.RefreshToken
				}
			}
			close(ended)
			wait.Wait()
		})
	}
}

type credentialServer struct {
	*dbtest.Bundle

	handler http.Handler
	sign    ed25519.PrivateKey
}

func newCredentialServer(t *testing.T) *credentialServer {
	t.Helper()
	s := &credentialServer{Bundle: dbtest.New(t)}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	s.sign = private
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	tokens, err := handlers.NewTokens(ctx, handlers.TokenConfig{
		Issuer: "https://id.example.com", Audience: "holdfast", Tenant: s.Tenant, UserClaim: "sub",
		Key: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	rt := object.NewRuntime(s.DB, object.Config{})
	all, sessions := services(t, rt)
	s.handler = handlertest.Serve(t, s.Bundle, rt, handlers.Options{Services: all, Auth: handlers.NewAuthenticator(handlers.AuthConfig{
		Find: s.DB.FindCredentials, Tokens: tokens, Touch: sessions.Touch, Refused: sessions.Refused, Now: time.Now,
	})}).Handler
	return s
}

// issue makes a user's credentials. The user signs in from another address than the stranger's.
func (s *credentialServer) issue(t *testing.T, user identity.User) (c credentials) {
	t.Helper()
	c.service, c.user = handlertest.Key(t, s.Bundle, ""), handlertest.Key(t, s.Bundle, user)
	var err error
	c.jwt, err = jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"iss": "https://id.example.com", "aud": "holdfast", "sub": string(user), "exp": time.Now().Add(time.Hour).Unix(),
	}).SignedString(s.sign)
	if err != nil {
		t.Fatal(err)
	}
	status, body := s.call(t, sessionv1connect.SessionServiceCreateSessionProcedure, handlertest.Key(t, s.Bundle, user), "198.51.100.1")
	var signedIn struct {
		Tokens struct{ AccessToken, RefreshToken string }
	}
	if err := json.Unmarshal([]byte(body), &signedIn); status != http.StatusOK || err != nil || signedIn.Tokens.RefreshToken == "" {
		t.Fatalf("signing in: %d %s", status, body)
	}
	c.access, c.refresh = signedIn.Tokens.AccessToken, signedIn.Tokens.RefreshToken
	return c
}

func (s *credentialServer) call(t *testing.T, path, token, address string) (status int, body string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader("{}"))
	r.RemoteAddr = address + ":1234"
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	} else {
		r.Header.Set("Authorization", "Basic eA==")
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}
