package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/seal"
)

func TestMain(m *testing.M) {
	code := dbtest.Main(m)
	// A proxy that is stopped while it parts its connections forgets a goroutine now and then.
	proxies := goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run")
	if err := goleak.Find(proxies); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// process is a Main that runs.
type process struct {
	stop           context.CancelFunc
	stdout, stderr *output
	done           chan struct{}
	code           int // once done is closed
}

// output is what a process has written; lines tells of each new line.
type output struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	lines chan string
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Write(p)
	for l := range strings.Lines(string(p)) {
		select {
		case o.lines <- l:
		default: // nobody waits for that many
		}
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs Main with that environment, and no other.
func start(t *testing.T, env map[string]string, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{
		stop: cancel, done: make(chan struct{}),
		stdout: &output{lines: make(chan string, 100)}, stderr: &output{lines: make(chan string, 100)},
	}
	go func() {
		defer close(p.done)
		p.code = Main(ctx, args, strings.NewReader(""), p.stdout, p.stderr, func(name string) (string, bool) {
			v, ok := env[name]
			if name == "HOLDFAST_SEAL_KEYS" && !ok {
				return sealKey, true
			}
			return v, ok
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
		if t.Failed() {
			t.Logf("holdfast %s ended with %d.\nstdout: %s\nstderr: %s", strings.Join(args, " "), p.code, p.stdout, p.stderr)
		}
	})
	return p
}

// sealKey is what servers of tests seal with, where a test does not say.
var sealKey = seal.NewKey()

// run runs Main to its end.
func run(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := start(t, env, args...)
	<-p.done
	return p.code, p.stdout.String(), p.stderr.String()
}

// await returns the first match of a pattern in one of the lines to come, its last group.
func (p *process) await(t *testing.T, o *output, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(2 * time.Minute) // Postgres may have to be downloaded
	for {
		select {
		case l := <-o.lines:
			if m := re.FindStringSubmatch(l); m != nil {
				return m[len(m)-1]
			}
		case <-p.done:
			t.Fatalf("ended with %d before it said %q", p.code, pattern)
		case <-deadline:
			t.Fatalf("never said %q", pattern)
		}
	}
}

// end asks the process to stop and checks that it does, in time and well.
func (p *process) end(t *testing.T) {
	t.Helper()
	p.stop()
	select {
	case <-p.done:
		if p.code != 0 {
			t.Errorf("exit code is %d", p.code)
		}
	case <-time.After(10 * time.Second):
		t.Error("does not stop within ten seconds")
		<-p.done
	}
}

func clientOf(t *testing.T, api, token string) conversationv1connect.ConversationServiceClient {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return conversationv1connect.NewConversationServiceClient(&http.Client{Transport: &bearer{token: token, next: transport}}, api)
}

func watchClientOf(t *testing.T, api, token string) watchv1connect.WatchServiceClient {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return watchv1connect.NewWatchServiceClient(&http.Client{Transport: &bearer{token: token, next: transport}}, api)
}

// watchOf watches a conversation from a cursor on.
func watchOf(id, cursor string) *watchv1.WatchRequest {
	return &watchv1.WatchRequest{Items: []*watchv1.Item{{
		ItemId: "i", Cursor: cursor, Of: &watchv1.Item_Conversation{Conversation: &watchv1.ConversationItem{ConversationId: id}},
	}}}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestDevEphemeral(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "dev", "--ephemeral", "--json", "--addr", "127.0.0.1:0")
	var ready greeting
	if err := json.Unmarshal([]byte(p.await(t, p.stdout, `.+`)), &ready); err != nil {
		t.Fatal(err)
	}
	if ready.Tenant != "dev" {
		t.Errorf("tenant is %q", ready.Tenant)
	}
	c := clientOf(t, ready.API, ready.Token)
	made, err := c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{Conversation: &conversationv1.Conversation{Title: "Auth refactor"}, Shared: true})
	if err != nil || made.GetConversation().GetVersion() != 1 {
		t.Errorf("CreateConversation: %v, %v", made, err)
	}
	// Browsers of any origin may call a development server.
	if code, _ := get(t, ready.API+"/readyz"); code != 200 {
		t.Errorf("/readyz is %d", code)
	}
	p.end(t)
	if n := strings.Count(p.stdout.String(), "\n"); n != 1 {
		t.Errorf("--json printed %d lines: %s", n, p.stdout)
	}
	if code, _ := get(t, ready.API+"/healthz"); code != 0 {
		t.Errorf("still there: %d", code)
	}
}

func TestDevKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // Postgres may run as another user than the test
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	env := map[string]string{"HOLDFAST_DATA": data, "HOLDFAST_ADDR": "127.0.0.1:0"}

	p := start(t, env, "dev")
	api := p.await(t, p.stdout, `API +(\S+)`)
	token := p.await(t, p.stdout, `Token +(\S+)`)
	p.await(t, p.stdout, `-d '`)
	for _, name := range []string{"token", "password"} {
		info, err := os.Stat(filepath.Join(data, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if _, err := exec.LookPath("curl"); err == nil {
		_, printed, _ := strings.Cut(p.stdout.String(), "  export ")
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "export "+printed).CombinedOutput()
		if err != nil || !strings.Contains(string(out), `"Auth refactor"`) {
			t.Errorf("the curl that it printed answers %s, %v", out, err)
		}
	}
	made, err := clientOf(t, api, token).CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "c1", Shared: true})
	if err != nil {
		t.Fatal(made, err)
	}
	second := start(t, env, "dev")
	<-second.done
	if second.code != 1 || !strings.Contains(second.stderr.String(), "--data") {
		t.Errorf("a second one on the same data ends with %d: %s", second.code, second.stderr)
	}
	p.end(t)

	p = start(t, env, "dev", "--json")
	var ready greeting
	if err := json.Unmarshal([]byte(p.await(t, p.stdout, `.+`)), &ready); err != nil {
		t.Fatal(err)
	}
	if ready.Token != token {
		t.Error("the token is another after a restart")
	}
	if _, err := clientOf(t, ready.API, token).GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: "c1"}); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	p.end(t)
}

func TestServe(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	env := map[string]string{"HOLDFAST_MIGRATE_DATABASE_URL": b.MigrateURL, "DATABASE_URL": b.URL, "HOLDFAST_ADDR": "127.0.0.1:0", "HOLDFAST_ADMIN_ADDR": "127.0.0.1:0"}
	tenant := string(b.Tenant)
	succeed := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := run(t, env, args...)
		if code != 0 {
			t.Fatalf("%v ended with %d: %s", args, code, stderr)
		}
		return strings.TrimSpace(stdout)
	}
	if said := succeed("tenant", "create", tenant); !strings.Contains(said, "already") {
		t.Errorf("a tenant that is there: %s", said)
	}
	succeed("tenant", "create", tenant+".2", "--title", "The second")
	if list := succeed("tenant", "list"); !strings.Contains(list, tenant+".2") || !strings.Contains(list, "The second") {
		t.Errorf("tenant list: %s", list)
	}
	token := succeed("key", "create", "--tenant", tenant, "--user", "ada", "--description", "laptop")
	id := strings.Split(token, "_")[1]
	if list := succeed("key", "list", "--tenant", tenant); !strings.Contains(list, id) || !strings.Contains(list, "user ada") || strings.Contains(list, token) {
		t.Errorf("key list: %s", list)
	}

	p := start(t, env, "serve")
	admin := p.await(t, p.stderr, `"metrics and profiles".*"url":"([^"]+)"`)
	api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
	c := clientOf(t, api, token)
	if _, err := c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "c1", Shared: true}); err != nil {
		t.Fatal(err)
	}
	if _, body := get(t, admin+"/metrics"); !strings.Contains(body, `holdfast_requests_total{code="ok",method="/holdfast.conversation.v1.ConversationService/CreateConversation"} 1`) {
		t.Errorf("/metrics is\n%s", body)
	}
	if code, _ := get(t, admin+"/debug/pprof/cmdline"); code != 200 {
		t.Errorf("pprof is %d", code)
	}
	if code, _ := get(t, api+"/metrics"); code != 404 {
		t.Errorf("the API has /metrics: %d", code)
	}

	// A revoked key is refused within two seconds, and what its stream says at shutdown is to come again.
	other := succeed("key", "create", "--tenant", tenant)
	succeed("key", "revoke", "--tenant", tenant, id)
	deadline := time.After(3 * time.Second)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for connect.CodeOf(ping(t, c)) != connect.CodeUnauthenticated {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the revoked key still works")
		}
	}
	s, err := watchClientOf(t, api, other).Watch(t.Context(), watchOf("c1", ""))
	if err != nil || !s.Receive() {
		t.Fatal(err, s.Err())
	}
	defer s.Close()
	p.stop()
	for s.Receive() {
	}
	if connect.CodeOf(s.Err()) != connect.CodeUnavailable {
		t.Errorf("the stream ended with %v", s.Err())
	}
	p.end(t)
}

func ping(t *testing.T, c conversationv1connect.ConversationServiceClient) error {
	t.Helper()
	_, err := c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: "c1"})
	return err
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	b := dbtest.Own(t)
	b.DB.Close() // nobody else is there when the schema goes
	env := map[string]string{"HOLDFAST_MIGRATE_DATABASE_URL": b.MigrateURL, "DATABASE_URL": "not this one", "HOLDFAST_LOGIN_PASSWORD": "secret"}
	states := func() string {
		t.Helper()
		code, stdout, stderr := run(t, env, "migrate", "status")
		if code != 0 {
			t.Fatal(stderr)
		}
		var out []string
		for s := bufio.NewScanner(strings.NewReader(stdout)); s.Scan(); {
			out = append(out, strings.Fields(s.Text())[1])
		}
		return strings.Join(out, " ")
	}
	before := states()
	if strings.Contains(before, "pending") || before == "" {
		t.Errorf("status is %q", before)
	}
	if code, _, stderr := run(t, env, "migrate", "down"); code != 0 || !strings.HasSuffix(states(), "pending") {
		t.Errorf("down ended with %d: %s", code, stderr)
	}
	for range 2 { // again changes nothing
		if code, _, stderr := run(t, env, "migrate", "up", "--login", "holdfast_test_cmd"); code != 0 || states() != before {
			t.Errorf("up ended with %d: %s", code, stderr)
		}
	}
}

// What README says of production works for the owner of a managed Postgres, who is no superuser, and on a second database of
// the cluster.
func TestTheFirstStepsWorkForAnOwnerWhoIsNoSuperuser(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	conn, err := pgx.Connect(t.Context(), b.MigrateURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	// Only a superuser may end the backends that a closed server's connections leave for a moment.
	super, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { super.Close(context.Background()) })
	login := "holdfast_first_" + strings.ToLower(rand.Text()[:8])
	t.Cleanup(func() {
		if _, err := super.Exec(context.Background(), "DROP ROLE IF EXISTS "+login); err != nil {
			t.Error(err)
		}
	})
	for i := range 2 {
		name := fmt.Sprint(login, "_", i)
		if _, err := conn.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := super.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
				t.Error(err)
			}
		})
		in := func(user *url.Userinfo) string {
			u, err := url.Parse(b.MigrateURL)
			if err != nil {
				t.Fatal(err)
			}
			u.Path = "/" + name
			if user != nil {
				u.User = user
			}
			return u.String()
		}
		env := map[string]string{
			"HOLDFAST_MIGRATE_DATABASE_URL": in(nil), "HOLDFAST_DATABASE_URL": in(url.UserPassword(login, "pass'word")),
			"HOLDFAST_LOGIN_PASSWORD": "pass'word", "HOLDFAST_ADDR": "127.0.0.1:0", "HOLDFAST_SEAL_KEYS": sealKey,
		}
		do := func(args ...string) string {
			t.Helper()
			code, stdout, stderr := run(t, env, args...)
			if code != 0 {
				t.Fatalf("database %d: %v ended with %d: %s", i, args, code, stderr)
			}
			return stdout
		}
		do("migrate", "up", "--login", login)
		do("migrate", "up", "--login", login)
		if strings.Contains(do("migrate", "status"), "pending") {
			t.Error("a migration is pending")
		}
		do("tenant", "create", "acme")
		token := strings.TrimSpace(do("key", "create", "--tenant", "acme", "--description", "backend"))
		p := start(t, env, "serve")
		api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
		if _, err := clientOf(t, api, token).CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "c1", Shared: true}); err != nil {
			t.Error(err)
		}
		p.end(t)
		file := filepath.Join(t.TempDir(), "acme.ndjson")
		if err := os.WriteFile(file, []byte(do("export", "--tenant", "acme")), 0o600); err != nil {
			t.Fatal(err)
		}
		do("tenant", "create", "other")
		do("import", "--tenant", "other", file)
		do("erase", "--tenant", "acme", "--user", "alice")
		do("sweep")
		do("migrate", "state")
	}
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	const nowhere = "postgres://u:p@127.0.0.1:1/d"
	for name, tt := range map[string]struct {
		args []string
		env  map[string]string
		code int
		says string
	}{
		"no command":         {nil, nil, 2, "expected one of"},
		"unknown command":    {[]string{"fly"}, nil, 2, "fly"},
		"unknown flag":       {[]string{"serve", "--fly"}, nil, 2, "--fly"},
		"no seal keys":       {[]string{"serve"}, map[string]string{"DATABASE_URL": nowhere, "HOLDFAST_SEAL_KEYS": ""}, 2, "openssl rand"},
		"bad seal key":       {[]string{"serve"}, map[string]string{"DATABASE_URL": nowhere, "HOLDFAST_SEAL_KEYS": "short"}, 2, "32 bytes"},
		"no database":        {[]string{"serve"}, nil, 2, "DATABASE_URL"},
		"empty database":     {[]string{"serve"}, map[string]string{"DATABASE_URL": ""}, 2, "DATABASE_URL"},
		"bad database":       {[]string{"serve", "--database-url", "::"}, nil, 1, "database URL is not valid"},
		"no such database":   {[]string{"serve"}, map[string]string{"DATABASE_URL": nowhere}, 1, "unavailable"},
		"bad port":           {[]string{"serve"}, map[string]string{"PORT": "http"}, 2, "--port"},
		"bad log level":      {[]string{"serve", "--log-level", "loud"}, nil, 2, "--log-level"},
		"bad connections":    {[]string{"serve"}, map[string]string{"HOLDFAST_MAX_CONNS": "1"}, 2, "--max-conns"},
		"bad age":            {[]string{"serve", "--watch-age", "-1s"}, nil, 2, "--watch-age"},
		"bad origin":         {[]string{"serve", "--origins", "app.example.com"}, nil, 2, "no origin"},
		"bad fan-out":        {[]string{"serve", "--fanout", "pigeons"}, nil, 2, "--fanout"},
		"NATS, no URL":       {[]string{"serve", "--fanout", "nats"}, nil, 2, "--nats-url"},
		"NATS URL, no NATS":  {[]string{"serve", "--nats-url", "nats://x"}, nil, 2, "--fanout nats"},
		"listen, no LISTEN":  {[]string{"serve", "--fanout", "local", "--listen-url", "x"}, nil, 2, "--fanout postgres"},
		"bad retention":      {[]string{"serve", "--journal-retention", "1h"}, nil, 2, "--journal-retention"},
		"bad quota":          {[]string{"serve", "--user-bytes", "-1"}, nil, 2, "--user-bytes"},
		"bad sweep rate":     {[]string{"sweep", "--sweep-rate", "0"}, nil, 2, "--sweep-rate"},
		"migrate, no owner":  {[]string{"migrate", "up"}, nil, 2, "HOLDFAST_MIGRATE_DATABASE_URL"},
		"bad role":           {[]string{"serve", "--roles", "api,cron"}, nil, 2, "--roles"},
		"bad log format":     {[]string{"serve", "--log-format", "xml"}, nil, 2, "--log-format"},
		"bad hops":           {[]string{"serve", "--address-hops", "0"}, nil, 2, "--address-hops"},
		"bad instances":      {[]string{"serve", "--max-instances", "-1"}, nil, 2, "--max-instances"},
		"tick, no seal keys": {[]string{"tick"}, map[string]string{"DATABASE_URL": nowhere, "HOLDFAST_SEAL_KEYS": ""}, 2, "openssl rand"},
		"bad tenant":         {[]string{"tenant", "create", "a b"}, map[string]string{"DATABASE_URL": nowhere}, 2, "tenant's id"},
		"export, no tenant":  {[]string{"export"}, map[string]string{"DATABASE_URL": nowhere}, 2, "--tenant"},
		"export, bad user":   {[]string{"export", "--tenant", "t", "--user", "a\tb"}, map[string]string{"DATABASE_URL": nowhere}, 2, "user's id"},
		"erase, no user":     {[]string{"erase", "--tenant", "t"}, map[string]string{"DATABASE_URL": nowhere}, 2, "--user"},
		"import, no file":    {[]string{"import", "--tenant", "t"}, map[string]string{"DATABASE_URL": nowhere}, 2, "<file>"},
		"import, not there":  {[]string{"import", "--tenant", "t", "/nowhere"}, map[string]string{"DATABASE_URL": nowhere}, 2, "/nowhere"},
		"import, bad tenant": {[]string{"import", "--tenant", "a b", "-"}, map[string]string{"DATABASE_URL": nowhere}, 2, "tenant's id"},
		"key, no tenant":     {[]string{"key", "create"}, map[string]string{"DATABASE_URL": nowhere}, 2, "--tenant"},
		"key, bad user":      {[]string{"key", "create", "--tenant", "t", "--user", "a\tb"}, map[string]string{"DATABASE_URL": nowhere}, 2, "--user"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, _, stderr := run(t, tt.env, tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.says) || strings.Contains(stderr, "goroutine") {
				t.Errorf("ended with %d, want %d and %q: %s", code, tt.code, tt.says, stderr)
			}
		})
	}
}

func TestWrongConfigurationOfAServer(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	for name, tt := range map[string]struct {
		args []string
		says string
	}{
		"the owner's login":   {[]string{"--database-url", b.MigrateURL}, "To fix it"},
		"listen URL":          {[]string{"--listen-url", "::"}, "--listen-url"},
		"address":             {[]string{"--addr", "nowhere.invalid:1"}, "--addr"},
		"admin address":       {[]string{"--admin-addr", "1.2.3.4:x"}, "--admin-addr"},
		"tick, no audience":   {[]string{"--tick-caller", "x@example.com"}, "see the --tick flags"},
		"JWT without issuer":  {[]string{"--jwt-audience", "x"}, "issuer"},
		"JWT without keys":    {[]string{"--jwt-issuer", "x", "--jwt-audience", "x", "--jwt-tenant", "t"}, "JWKS URL or a key file"},
		"JWT key not a file":  {[]string{"--jwt-key-file", "/nowhere"}, "--jwt-key-file"},
		"JWT key is a secret": {[]string{"--jwt-issuer", "x", "--jwt-audience", "x", "--jwt-tenant", "t", "--jwt-key-file", "main.go"}, "PEM"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := map[string]string{"HOLDFAST_MIGRATE_DATABASE_URL": b.MigrateURL, "DATABASE_URL": b.URL, "HOLDFAST_ADDR": "127.0.0.1:0"}
			code, _, stderr := run(t, env, append([]string{"serve"}, tt.args...)...)
			if code == 0 || !strings.Contains(stderr, tt.says) {
				t.Errorf("ended with %d, want %q: %s", code, tt.says, stderr)
			}
		})
	}
}

func TestUnknownTenantAndKey(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	env := map[string]string{"HOLDFAST_MIGRATE_DATABASE_URL": b.MigrateURL, "DATABASE_URL": "not this one"}
	if code, _, stderr := run(t, env, "key", "create", "--tenant", "nobody"); code != 1 || !strings.Contains(stderr, "holdfast tenant create nobody") {
		t.Errorf("key create ended with %d: %s", code, stderr)
	}
	if code, _, stderr := run(t, env, "key", "revoke", "--tenant", string(b.Tenant), "nokey"); code != 1 || !strings.Contains(stderr, "holdfast key list") {
		t.Errorf("key revoke ended with %d: %s", code, stderr)
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	if code, stdout, _ := run(t, nil, "serve", "--help"); code != 0 || !strings.Contains(stdout, "($HOLDFAST_DATABASE_URL, $DATABASE_URL)") {
		t.Errorf("--help ended with %d: %s", code, stdout)
	}
	for _, asked := range []string{"version", "--version"} {
		if code, stdout, _ := run(t, nil, asked); code != 0 || !strings.HasPrefix(stdout, "holdfast ") || !strings.Contains(stdout, "commit ") {
			t.Errorf("%s ended with %d: %s", asked, code, stdout)
		}
	}
}

// dev starts a server for development.
func dev(t *testing.T) greeting {
	t.Helper()
	p := start(t, nil, "dev", "--ephemeral", "--json", "--addr", "127.0.0.1:0")
	var ready greeting
	if err := json.Unmarshal([]byte(p.await(t, p.stdout, `.+`)), &ready); err != nil {
		t.Fatal(err)
	}
	return ready
}
