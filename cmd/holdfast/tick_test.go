//go:build unix

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/jackc/pgx/v5"

	"holdfast/db/dbtest"
	"holdfast/gen/holdfast/state/v1/statev1connect"
)

// post sends JSON and returns the status and the answer.
func post(t *testing.T, url, token, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(said)
}

const (
	apply  = statev1connect.StateServiceApplyProcedure
	take   = statev1connect.StateServiceTakeTimersProcedure
	alarm  = `{"ref":{"type":"mail","name":"m1"},"operations":[{"setState":{"to":"ada"}},{"setTimer":{"name":"send","dueIn":"0.001s"}}]}`
	taking = `{"type":"mail","worker":"w","leaseDuration":"30s"}`
)

// A server that only answers calls may be stopped between any two of them. It goes on as if nothing had happened, its timers and the sweep
// wait for a tick, and a tick does in one go what has become due.
func TestAServerWithoutCPUBetweenCallsLosesNothing(t *testing.T) {
	t.Parallel()
	b := dbtest.Own(t)
	env := map[string]string{"DATABASE_URL": b.URL, "HOLDFAST_MIGRATE_DATABASE_URL": b.MigrateURL, "HOLDFAST_ADDR": "127.0.0.1:0"}
	token := strings.TrimSpace(succeed(t, env, "key", "create", "--tenant", string(b.Tenant)))
	seedExpired(t, b)
	seedCold(t, b, "1 hour")
	p := spawn(t, env, "serve", "--roles", "api")
	api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := p.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	// call makes a call as on a machine that gives the server its CPU for it, and no longer.
	call := func(procedure, body string) string {
		t.Helper()
		signal(syscall.SIGCONT)
		defer signal(syscall.SIGSTOP)
		status, said := post(t, api+procedure, token, body)
		if status != http.StatusOK {
			t.Fatalf("%s is answered with %d: %s", procedure, status, said)
		}
		return said
	}
	call(apply, alarm)
	// What its connections waited for is gone when it goes on.
	super, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer super.Close(t.Context())
	if _, err := super.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
		t.Fatal(err)
	}
	call(apply, `{"ref":{"type":"mail","name":"m1"},"operations":[{"setFields":{"fields":{"cc":"eve"}}}],"ifVersion":"1"}`)
	if said := call(take, taking); strings.Contains(said, "send") {
		t.Errorf("a server without the role jobs ran a timer: %s", said)
	}
	objects := func() (n int) {
		t.Helper()
		if err := super.QueryRow(t.Context(), "SELECT count(*) FROM holdfast.objects WHERE object_id = 'old' OR object_id = 'cold' AND NOT asleep").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := objects(); n != 2 {
		t.Errorf("%d of 2 objects are left", n)
	}
	if said := succeed(t, env, "tick"); said != "ran 1 timers, and the jobs that were due\n" {
		t.Errorf("tick says %q", said)
	}
	if n := objects(); n != 0 {
		t.Errorf("%d objects were not swept or put to sleep", n)
	}
	if said := call(take, taking); !strings.Contains(said, `"send"`) {
		t.Errorf("after the tick no worker gets the timer: %s", said)
	}
	if said := succeed(t, env, "tick"); said != "ran 0 timers, and the jobs that were due\n" {
		t.Errorf("a second tick says %q", said)
	}
	signal(syscall.SIGCONT)
	p.end(t)
}

// Only the scheduler's own account may tick a server by HTTP.
func TestASchedulerTicksByHTTP(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []map[string]string{
			{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k", "x": b64(point[1:33]), "y": b64(point[33:])},
		}})
	}))
	t.Cleanup(issuer.Close)
	sign := func(change jwt.MapClaims) string {
		t.Helper()
		claims := jwt.MapClaims{
			"iss": issuer.URL, "aud": "https://holdfast.example.com", "exp": time.Now().Add(time.Hour).Unix(),
			"email": "tick@p.example.com", "email_verified": true,
		}
		maps.Copy(claims, change)
		token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
		token.Header["kid"] = "k"
		s, err := token.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	b := dbtest.Own(t)
	env := map[string]string{
		"DATABASE_URL": b.URL, "HOLDFAST_MIGRATE_DATABASE_URL": b.MigrateURL, "HOLDFAST_ADDR": "127.0.0.1:0", "HOLDFAST_ROLES": "api",
		"HOLDFAST_TICK_CALLER": "tick@p.example.com", "HOLDFAST_TICK_AUDIENCE": "https://holdfast.example.com",
		"HOLDFAST_TICK_ISSUER": issuer.URL, "HOLDFAST_TICK_JWKS_URL": issuer.URL,
	}
	token := strings.TrimSpace(succeed(t, env, "key", "create", "--tenant", string(b.Tenant)))
	p := start(t, env, "serve")
	api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
	for name, tt := range map[string]struct {
		token string
		want  int
	}{
		"no token":          {"", http.StatusUnauthorized},
		"an API key":        {token, http.StatusUnauthorized},
		"another audience":  {sign(jwt.MapClaims{"aud": "https://other.example.com"}), http.StatusUnauthorized},
		"expired":           {sign(jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()}), http.StatusUnauthorized},
		"another account":   {sign(jwt.MapClaims{"email": "eve@p.example.com"}), http.StatusForbidden},
		"no account":        {sign(jwt.MapClaims{"email": nil}), http.StatusForbidden},
		"unverified":        {sign(jwt.MapClaims{"email_verified": false}), http.StatusForbidden},
		"verified, by word": {sign(jwt.MapClaims{"email_verified": "false"}), http.StatusForbidden},
	} {
		if status, said := post(t, api+"/tick", tt.token, ""); status != tt.want {
			t.Errorf("%s: %d %s", name, status, said)
		}
	}
	if status, said := post(t, api+apply, token, alarm); status != http.StatusOK {
		t.Fatal(status, said)
	}
	status, said := post(t, api+"/tick", sign(nil), "")
	if said == "{\"timers\":0}\n" { // it was there within the millisecond
		status, said = post(t, api+"/tick", sign(nil), "")
	}
	if status != http.StatusOK || said != "{\"timers\":1}\n" {
		t.Errorf("the scheduler: %d %s", status, said)
	}
	if status, _ := get(t, api+"/tick"); status != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", status)
	}
	p.end(t)

	delete(env, "HOLDFAST_TICK_CALLER")
	p = start(t, env, "serve")
	api = p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
	if status, said := post(t, api+"/tick", sign(nil), ""); status != http.StatusNotFound {
		t.Errorf("without --tick-caller: %d %s", status, said)
	}
	p.end(t)
}

// A server with the role jobs alone is healthy, runs timers, and answers no calls.
func TestAServerForJobsAlone(t *testing.T) {
	t.Parallel()
	b := dbtest.Own(t)
	env := map[string]string{"DATABASE_URL": b.URL, "HOLDFAST_MIGRATE_DATABASE_URL": b.MigrateURL, "HOLDFAST_ADDR": "127.0.0.1:0"}
	token := strings.TrimSpace(succeed(t, env, "key", "create", "--tenant", string(b.Tenant)))
	worker := start(t, env, "serve", "--roles", "jobs")
	jobs := worker.await(t, worker.stderr, `"ready".*"api":"([^"]+)"`)
	if status, _ := get(t, jobs+"/health/ready"); status != http.StatusOK {
		t.Errorf("it is not ready: %d", status)
	}
	if status, said := post(t, jobs+apply, token, alarm); status != http.StatusNotFound {
		t.Errorf("it answers a call: %d %s", status, said)
	}
	front := start(t, env, "serve", "--roles", "api")
	api := front.await(t, front.stderr, `"ready".*"api":"([^"]+)"`)
	if status, said := post(t, api+apply, token, alarm); status != http.StatusOK {
		t.Fatal(status, said)
	}
	if _, said := post(t, api+take, token, `{"type":"mail","worker":"w","leaseDuration":"30s","wait":"60s"}`); !strings.Contains(said, `"send"`) {
		t.Errorf("the timer did not run: %s", said)
	}
	worker.end(t)
	front.end(t)
}

// Secrets may come as files, and so may all variables. A log for Google Cloud has its names.
func TestSecretsFromFilesAndALogForGoogle(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	file := func(text string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	env := map[string]string{
		"DATABASE_URL_FILE": file(b.URL), "HOLDFAST_SEAL_KEYS": "", "HOLDFAST_SEAL_KEYS_FILE": file(sealKey), "HOLDFAST_ADDR": "127.0.0.1:0",
		"HOLDFAST_LOG_FORMAT": "gcp", "GOOGLE_CLOUD_PROJECT": "p",
	}
	p := start(t, env, "serve", "--log-level", "debug")
	api := p.await(t, p.stderr, `"severity":"INFO","message":"ready","api":"([^"]+)"`)
	post(t, api+apply, "wrong", alarm)
	p.await(t, p.stderr, `"logging.googleapis.com/trace":"projects/p/traces/([0-9a-f]{32})"`)
	p.end(t)
	for says, change := range map[string]map[string]string{
		"HOLDFAST_SEAL_KEYS_FILE": {"HOLDFAST_SEAL_KEYS": sealKey},
		"no such file":            {"DATABASE_URL_FILE": "/nowhere"},
	} {
		wrong := maps.Clone(env)
		maps.Copy(wrong, change)
		if code, _, stderr := run(t, wrong, "serve"); code != 2 || !strings.Contains(stderr, says) || strings.Contains(stderr, sealKey) {
			t.Errorf("ended with %d, want %q: %s", code, says, stderr)
		}
	}
}
