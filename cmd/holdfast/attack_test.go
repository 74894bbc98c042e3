//go:build unix

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"holdfast/db"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	linearv1 "holdfast/gen/holdfast/linear/v1"
	"holdfast/gen/holdfast/linear/v1/linearv1connect"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	"holdfast/handlers"
	"holdfast/identity"
)

// What one caller may cost, whatever they do.
const (
	mostMemory = 256 << 20
	// mostSlower is how many times longer another tenant's slowest calls may take, and noise what they may take in any case.
	mostSlower = 5
	noise      = 25 * time.Millisecond
	// settleTime is how long after an attack what it held may still be held.
	settleTime = 15 * time.Second
)

// The environment of the suite: it runs only where one of these is set.
const (
	attacksVar     = "HOLDFAST_ATTACKS"      // anything: small sizes
	attackTableVar = "HOLDFAST_ATTACK_TABLE" // docs/security.md: full sizes, and its table is written
	attackRunsVar  = "HOLDFAST_ATTACK_RUNS"  // how often each abuse is measured for the table; the median counts
)

// battlefield is a Postgres with two tenants, in which attacks find something to attack.
type battlefield struct {
	url     string // the server's login
	keys    map[string]string
	jwks    string
	signKey ed25519.PrivateKey
	params  map[string]string
	secret  string // of the webhook endpoint
}

// The tenants and their users.
const (
	tenantA, tenantB = identity.Tenant("a"), identity.Tenant("b")
	annA             = "ann of a" // is never an attacker
	bobA             = "bob of a"
	carlA            = "carl of a"
	serviceA         = "service of a"
	annB             = "ann of b"
	serviceB         = "service of b" // is never an attacker
)

func prepare(t *testing.T) *battlefield {
	t.Helper()
	s := &system{t: t, dir: filepath.Join(openDir(t), "postgres")}
	s.startPostgres()
	t.Cleanup(func() {
		if err := s.postgres.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	if err := db.MigrateUp(ctx, s.postgres.AdminURL()); err != nil {
		t.Fatal(err)
	}
	if err := db.EnsureLogin(ctx, s.postgres.AdminURL(), faultLogin, faultPassword); err != nil {
		t.Fatal(err)
	}
	f := &battlefield{
		url: s.postgres.URL("postgres", url.UserPassword(faultLogin, faultPassword)), keys: map[string]string{}, params: map[string]string{},
	}
	d, err := db.OpenOperator(ctx, s.postgres.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, tenant := range []identity.Tenant{tenantA, tenantB} {
		if _, err := d.CreateTenant(ctx, tenant, ""); err != nil {
			t.Fatal(err)
		}
	}
	for who, k := range map[string]struct {
		tenant identity.Tenant
		user   identity.User
	}{
		annA: {tenantA, "ann"}, bobA: {tenantA, "bob"}, carlA: {tenantA, "carl"}, serviceA: {tenantA, ""},
		annB: {tenantB, "ann"}, serviceB: {tenantB, ""},
	} {
		token, key := handlers.NewKey(k.tenant, k.user, who)
		if err := d.CreateKey(ctx, key); err != nil {
			t.Fatal(err)
		}
		f.keys[who] = token
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	f.signKey = private
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"k1","x":%q}]}`, base64.RawURLEncoding.EncodeToString(public))
	}))
	t.Cleanup(provider.Close)
	f.jwks = provider.URL
	f.fill(t)
	return f
}

// What there is to attack.
const (
	fatConversation, fatMessages         = "fat", 200     // of 64 KiB each
	deepConversation, deepMessages       = "deep", 12_000 // 100 in a version
	floodedConversation, issuerOfTheJWTs = "flooded", "https://issuer.example"
)

// fill makes bob's conversations, a session of carl, and a webhook endpoint.
func (f *battlefield) fill(t *testing.T) {
	t.Helper()
	c := f.serve(t, nil)
	ctx, api := t.Context(), c.api
	bob := clientOf(t, api, f.keys[bobA])
	for _, id := range []string{fatConversation, deepConversation, floodedConversation} {
		if _, err := bob.CreateConversation(ctx, &conversationv1.CreateConversationRequest{ConversationId: id}); err != nil {
			t.Fatal(err)
		}
	}
	add := func(id string, n int, text string) {
		t.Helper()
		req := &conversationv1.AppendRequest{ConversationId: id}
		for range n {
			req.Messages = append(req.Messages, &conversationv1.Message{Role: conversationv1.Role_ROLE_USER, Text: text})
		}
		if _, err := bob.Append(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	for range fatMessages / 5 {
		add(fatConversation, 5, strings.Repeat("x", 64<<10))
	}
	for range deepMessages / 100 {
		add(deepConversation, 100, "a short message")
	}
	hc := &http.Client{Transport: &bearer{token: f.keys[serviceA], next: &http.Transport{DisableKeepAlives: true}}}
	f.secret = "lin_wh_of_the_attack_suite"
	made, err := linearv1connect.NewLinearServiceClient(hc, api).PutEndpoint(ctx, &linearv1.PutEndpointRequest{AddSecret: f.secret})
	if err != nil {
		t.Fatal(err)
	}
	f.params["webhook"] = made.GetEndpoint().GetPath()
	hc = &http.Client{Transport: &bearer{token: f.keys[carlA], next: &http.Transport{DisableKeepAlives: true}}}
	signedIn, err := sessionv1connect.NewSessionServiceClient(hc, api).CreateSession(ctx, &sessionv1.CreateSessionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	f.params["access"], f.params["refresh"] = signedIn.GetTokens().GetAccessToken(), signedIn.GetTokens().GetRefreshToken()
	c.end(t)
}

// serve starts a server, with the environment of a small deployment and what an abuse sets.
func (f *battlefield) serve(t *testing.T, env map[string]string) *target {
	t.Helper()
	all := map[string]string{
		"DATABASE_URL": f.url, "HOLDFAST_ADDR": "127.0.0.1:0", "HOLDFAST_ADMIN_ADDR": "127.0.0.1:0", "HOLDFAST_SEAL_KEYS": sealKey,
		"GOMEMLIMIT":          "230MiB", // nine tenths of mostMemory, as in a container with that limit
		"HOLDFAST_JWT_ISSUER": issuerOfTheJWTs, "HOLDFAST_JWT_AUDIENCE": "holdfast", "HOLDFAST_JWT_JWKS_URL": f.jwks, "HOLDFAST_JWT_TENANT": string(tenantA),
	}
	maps.Copy(all, env)
	c := &target{child: spawn(t, all, "serve")}
	c.admin = c.await(t, c.stderr, `"metrics and profiles".*"url":"([^"]+)"`)
	c.api = c.await(t, c.stderr, `"ready".*"api":"([^"]+)"`)
	return c
}

// target is a server that is attacked.
type target struct {
	*child

	api, admin string
}

func (c *target) url(t *testing.T) *url.URL {
	t.Helper()
	u, err := url.Parse(c.api)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// jwt is a token of the identity provider, under a key that it publishes or another.
func (f *battlefield) jwt(t *testing.T, kid, user string) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"iss": issuerOfTheJWTs, "aud": "holdfast", "sub": user, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	})
	token.Header["kid"] = kid
	signed, err := token.SignedString(f.signKey)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// bystander is somebody whose calls are measured beside an attack. None may be refused.
type bystander struct {
	name string
	call func(context.Context) error

	mu     sync.Mutex // guards what follows
	took   []time.Duration
	errors map[string]int
}

// pace is how often a bystander calls.
const pace = 8 * time.Millisecond

func (b *bystander) run(ctx context.Context) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for ctx.Err() == nil {
		began := time.Now()
		err := b.call(ctx)
		took := time.Since(began)
		b.mu.Lock()
		if b.took = append(b.took, took); err != nil && ctx.Err() == nil {
			b.errors[err.Error()]++
		}
		b.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// latency is the median and the slowest hundredth.
type latency struct{ P50, P99 time.Duration }

// measured returns how long calls took since the last time, and what they were refused with.
func (b *bystander) measured() (latency, map[string]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	took, errs := b.took, b.errors
	b.took, b.errors = nil, map[string]int{}
	if len(took) == 0 {
		return latency{}, errs
	}
	slices.Sort(took)
	return latency{took[len(took)/2], took[min(len(took)-1, len(took)*99/100)]}, errs
}

// appender appends to a conversation of its own by a credential.
func appender(t *testing.T, api, name, token string) *bystander {
	t.Helper()
	client := clientOf(t, api, token)
	id := fmt.Sprint("bystander-", strings.ReplaceAll(name, " ", "-"), "-", time.Now().UnixNano())
	if _, err := client.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: id, Shared: true}); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	req := &conversationv1.AppendRequest{ConversationId: id, Messages: []*conversationv1.Message{{Role: conversationv1.Role_ROLE_USER, Text: "Hello"}}}
	n := 0
	return &bystander{name: name, errors: map[string]int{}, call: func(ctx context.Context) error {
		n++
		req.RequestId = strconv.Itoa(n)
		_, err := client.Append(ctx, req)
		return err
	}}
}

// watcher opens a stream of a conversation of ann's, hears how it is, and leaves.
func (f *battlefield) watcher(t *testing.T, api string) *bystander {
	t.Helper()
	ann := clientOf(t, api, f.keys[annA])
	made, err := ann.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{})
	if err != nil {
		t.Fatal(err)
	}
	page, req := watchClientOf(t, api, f.keys[annA]), watchOf(made.GetConversation().GetConversationId(), "")
	return &bystander{name: "another user's watch", errors: map[string]int{}, call: func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		stream, err := page.Watch(ctx, req)
		if err != nil {
			return err
		}
		if !stream.Receive() {
			return errors.Join(stream.Err(), stream.Close())
		}
		cancel()
		_ = stream.Close()
		return nil
	}}
}

// linear sends signed webhooks as Linear does.
func (f *battlefield) linear(t *testing.T, api string) *bystander {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	n := 0
	return &bystander{name: "Linear's webhooks", errors: map[string]int{}, call: func(ctx context.Context) error {
		n++
		now := time.Now().UTC()
		body := fmt.Appendf(nil, `{"action":"update","type":"Issue","createdAt":%q,"organizationId":"o1","webhookId":"w1","webhookTimestamp":%d,`+
			`"data":{"id":"i%d","title":"An issue","number":%d,"updatedAt":%q,"createdAt":%q,"team":{"id":"t1","key":"ENG"},"identifier":"ENG-%d"}}`,
			now.Format(time.RFC3339Nano), now.UnixMilli(), n%50, n%50, now.Format(time.RFC3339Nano), now.Format(time.RFC3339Nano), n%50)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, api+f.params["webhook"], bytes.NewReader(body))
		if err != nil {
			return err
		}
		mac := hmac.New(sha256.New, []byte(f.secret))
		mac.Write(body)
		req.Header.Set("Linear-Signature", hex.EncodeToString(mac.Sum(nil)))
		req.Header.Set("Linear-Delivery", fmt.Sprint("d", now.UnixNano()))
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		said, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("%d %s", res.StatusCode, said)
		}
		return err
	}}
}

// holdings are what a server has at a time.
type holdings struct{ goroutines, files int }

// held reads them from the server's metrics.
func (c *target) held(t *testing.T) (h holdings) {
	t.Helper()
	_, text := get(t, c.admin+"/metrics")
	number := func(name string) int {
		for line := range strings.Lines(text) {
			if v, ok := strings.CutPrefix(line, name+" "); ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
				if err != nil {
					t.Fatal(err)
				}
				return int(n)
			}
		}
		t.Fatalf("there is no %s in the metrics: %s", name, text)
		return 0
	}
	return holdings{number("go_goroutines"), number("process_open_fds")}
}

// memory is what the process has in RAM (VmRSS), or the most that it has had (VmHWM).
func (c *target) memory(t *testing.T, which string) int64 {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for s := bufio.NewScanner(file); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), which+":"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no %s in /proc/<pid>/status", which)
	return 0
}

// result is what an attack did.
type result struct {
	outcomes       map[string]int64
	before, during []latency // by bystander
	refused        []map[string]int
	bystanders     []string
	peak, logged   int64
	settled        error
}

// run attacks a fresh server once.
func (f *battlefield) run(t *testing.T, abuse *abuse, full bool) *result {
	t.Helper()
	c := f.serve(t, abuse.env)
	defer func() {
		c.kill()
		c.stderr.mu.Lock()
		defer c.stderr.mu.Unlock()
		c.stderr.buf.Truncate(min(c.stderr.buf.Len(), 4<<10)) // a test that fails shows it
	}()
	api := c.api
	before, during := 100*time.Millisecond, time.Second
	if full {
		before, during = 3*time.Second, 6*time.Second
	}
	by := []*bystander{appender(t, api, "another tenant", f.keys[serviceB]), appender(t, api, "another user", f.keys[annA])}
	if abuse.bystanders != nil {
		by = append(by, abuse.bystanders(t, f, api)...)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for _, b := range by {
		running.Go(func() { b.run(ctx) })
	}
	pause(ctx, 300*time.Millisecond) // connections and caches are warm
	for _, b := range by {
		b.measured()
	}
	pause(ctx, before)
	r := &result{}
	for _, b := range by {
		l, refused := b.measured()
		if len(refused) > 0 {
			t.Fatalf("%s is refused without any attack: %v", b.name, refused)
		}
		r.bystanders, r.before = append(r.bystanders, b.name), append(r.before, l)
	}
	held, logged := c.held(t), len(c.stderr.String())

	params := map[string]string{}
	maps.Copy(params, f.params)
	params["badJWT"] = f.jwt(t, "k2", "bob")
	outcomes := attack(t, &orders{Abuse: abuse.name, API: api, Keys: f.keys, Params: params, Full: full, For: during})
	r.outcomes = outcomes()
	for _, b := range by {
		l, refused := b.measured()
		r.during, r.refused = append(r.during, l), append(r.refused, refused)
	}
	cancel()
	running.Wait()
	r.settled = c.settle(t, held)
	r.peak, r.logged = c.memory(t, "VmHWM"), int64(len(c.stderr.String())-logged)
	select {
	case <-c.done:
		t.Fatalf("the server ended with %d", c.code)
	default:
	}
	return r
}

// settle waits until a server has given back what an attack made it hold.
func (c *target) settle(t *testing.T, was holdings) error {
	t.Helper()
	const slack = 40 // goroutines and files that come and go
	deadline := time.Now().Add(settleTime)
	for {
		is := c.held(t)
		memory := c.memory(t, "VmRSS")
		if is.goroutines <= was.goroutines+slack && is.files <= was.files+slack && memory <= mostMemory {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%v after the attack it holds %d goroutines and %d files, and had %d and %d before; %d MiB of memory",
				settleTime, is.goroutines, is.files, was.goroutines, was.files, memory>>20)
		}
		pause(t.Context(), 50*time.Millisecond)
	}
}

// slower reports whether another tenant's p99 is over the bound.
func slower(before, during latency) bool { return during.P99 > max(noise, mostSlower*before.P99) }

// check says what a result breaks. How much slower others are is not in it: that is a figure of the machine, too.
func (abuse *abuse) check(r *result) (broken []string) {
	say := func(format string, args ...any) { broken = append(broken, fmt.Sprintf(format, args...)) }
	if r.peak > mostMemory {
		say("it made the server take %d MiB of memory", r.peak>>20)
	}
	if r.logged > mostLogged {
		say("it made the server log %d KiB", r.logged>>10)
	}
	if r.settled != nil {
		say("%v", r.settled)
	}
	if len(abuse.refused) > 0 && outcomesWith(r.outcomes, abuse.refused...) == 0 {
		say("nothing of it was refused with any of %q", abuse.refused)
	}
	if n := outcomesWith(r.outcomes, "500", "502"); n > 0 {
		say("%d of its calls failed the server", n)
	}
	for i, name := range r.bystanders {
		if len(r.refused[i]) > 0 {
			say("%s was refused: %v", name, r.refused[i])
		}
	}
	return broken
}

// mostLogged is what an attack may make a server log.
const mostLogged = 128 << 10

// TestAttacks has callers do their worst to a real server. Nobody else is refused or much slower, and the server's memory stays
// within its bound.
func TestAttacks(t *testing.T) { //nolint:paralleltest // others' time is measured
	table := os.Getenv(attackTableVar)
	if os.Getenv(attacksVar) == "" && table == "" {
		t.Skip("some minutes; `make test-attacks` runs it")
	}
	if runtime.GOOS != "linux" {
		t.Skip("the server's memory is read from Linux's /proc")
	}
	f := prepare(t)
	runs := 1
	if table != "" {
		runs, _ = strconv.Atoi(cmp.Or(os.Getenv(attackRunsVar), "3"))
	}
	rows := map[string][]*result{}
	for _, abuse := range abuses() {
		t.Run(strings.ReplaceAll(abuse.name, " ", "-"), func(t *testing.T) {
			for range max(runs, 1) {
				r := f.run(t, abuse, table != "")
				t.Log(r)
				if broken := abuse.check(r); len(broken) > 0 {
					t.Error(strings.Join(broken, "\n"))
				}
				rows[abuse.name] = append(rows[abuse.name], r)
			}
		})
	}
	if table != "" {
		writeTable(t, table, tableOf(rows))
	}
}

// write puts the table into a page, between its marks.
func writeTable(t *testing.T, path string, table []byte) {
	t.Helper()
	const begin, end = "<!-- attack table -->\n", "<!-- end of attack table -->"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(page), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no marks for the table", path)
	}
	if err := os.WriteFile(path, []byte(before+begin+string(table)+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// String is for the test's log.
func (r *result) String() string {
	var out strings.Builder
	for i, name := range r.bystanders {
		fmt.Fprintf(&out, "%s: p50 %s -> %s, p99 %s -> %s; ", name,
			milliseconds(r.before[i].P50), milliseconds(r.during[i].P50), milliseconds(r.before[i].P99), milliseconds(r.during[i].P99))
	}
	fmt.Fprintf(&out, "peak %d MiB; log %d KiB; outcomes %v", r.peak>>20, r.logged>>10, r.outcomes)
	return out.String()
}

func milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms < 10 {
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// tableOf writes the table of docs/security.md, of each abuse the medians of its runs.
func tableOf(rows map[string][]*result) []byte {
	most := 0
	for _, runs := range rows {
		most = max(most, len(runs))
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s, %d cores, median of %d.\n\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), most)
	out.WriteString("| abuse | by | bound | another tenant's append, p50 and p99, before → during | peak RSS |\n|---|---|---|---|---|\n")
	for _, abuse := range abuses() {
		runs := rows[abuse.name]
		if len(runs) == 0 {
			continue
		}
		median := func(of func(*result) int64) int64 {
			all := make([]int64, len(runs))
			for i, r := range runs {
				all[i] = of(r)
			}
			slices.Sort(all)
			return all[len(all)/2]
		}
		of := func(l func(*result) latency) latency {
			return latency{
				time.Duration(median(func(r *result) int64 { return int64(l(r).P50) })), time.Duration(median(func(r *result) int64 { return int64(l(r).P99) })),
			}
		}
		before, during := of(func(r *result) latency { return r.before[0] }), of(func(r *result) latency { return r.during[0] })
		mark := ""
		if slower(before, during) {
			mark = "**"
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %s, %s → %s, %s%s%s | %d MiB |\n", abuse.what, abuse.by, abuse.bound,
			milliseconds(before.P50), milliseconds(before.P99), milliseconds(during.P50), mark, milliseconds(during.P99), mark,
			median(func(r *result) int64 { return r.peak })>>20)
	}
	return out.Bytes()
}
