package handlers_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast/handlers"
	"holdfast/identity"
)

// A token knows its session by id alone. A copy of the session in another tenant, such as an import makes, opens nothing there,
// and nothing once the session itself is gone.
func TestACopyOfASessionOpensNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service := b.key(t, "")
	tokens := make([]string, 8)
	for i := range tokens {
		var in signedIn
		b.session(t, "CreateSession", fmt.Sprintf(`{"user":"u%d"}`, i), &in, service)
		tokens[i] = in.Tokens.AccessToken
	}
	copied := b.tenant(t)
	var export bytes.Buffer
	if _, err := b.DB.Export(t.Context(), b.Tenant, "", &export); err != nil {
		t.Fatal(err)
	}
	if _, err := b.DB.Import(t.Context(), copied.Tenant, bytes.NewReader(export.Bytes())); err != nil {
		t.Fatal(err)
	}
	who := func(token string) (identity.Identity, error) { // of a server that remembers nothing
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		return handlers.NewAuthenticator(handlers.AuthConfig{Find: b.DB.FindCredentials, Now: time.Now}).Authenticate(r)
	}
	for i, token := range tokens {
		if got, err := who(token); err != nil || got.Tenant != b.Tenant {
			t.Errorf("user %d acts in the tenant %q (theirs is %q): %v", i, got.Tenant, b.Tenant, err)
		}
	}
	if got := b.do(t, http.MethodPost, "/holdfast.inspect.v1.InspectService/EraseUser", strings.NewReader(`{"user":"u0"}`), service, "Content-Type: application/json"); got.code != "ok" {
		t.Fatalf("%+v", got)
	}
	if got, err := who(tokens[0]); err == nil {
		t.Errorf("the token of an erased user acts as %+v", got)
	}
}
