//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
)

// readmeBlock is the shell block of the README that has some words.
func readmeBlock(t *testing.T, words string) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?s)\n```sh\n(.*?\n)```\n").FindAllSubmatch(text, -1) {
		if bytes.Contains(m[1], []byte(words)) {
			return string(m[1])
		}
	}
	t.Fatalf("the README has no shell block with %q", words)
	return ""
}

// The README's first minute, as printed: what a newcomer types works.
func TestREADME(t *testing.T) {
	t.Parallel()
	if said := readmeBlock(t, "holdfast dev"); said != "go run ./cmd/holdfast dev\n" {
		t.Errorf("the server is started by %q", said)
	}
	p := spawn(t, nil, "dev", "--ephemeral", "--addr", "127.0.0.1:0")
	// "prints a line that begins with export. Paste that into another terminal"
	export := p.await(t, p.stdout, `^\s*(export HOLDFAST_API=\S+ HOLDFAST_TOKEN=\S+)\s*$`)

	args, ok := strings.CutPrefix(strings.TrimSpace(readmeBlock(t, "holdfast replay")), "go run ./cmd/holdfast ")
	if !ok || strings.Contains(args, "\n") {
		t.Fatalf("the recording is replayed by %q", args)
	}
	env := map[string]string{}
	for _, assignment := range strings.Fields(export)[1:] {
		name, value, _ := strings.Cut(assignment, "=")
		env[name] = value
	}
	// In the README's words, but without the pauses.
	replay := spawn(t, env, append(strings.Fields(strings.Replace(args, "examples/", "../../examples/", 1)), "--speed", "0")...)
	<-replay.done
	if replay.code != 0 || !strings.Contains(replay.stdout.String(), "refactors the auth module") {
		t.Errorf("the replay ended with %d", replay.code)
	}

	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("there is no curl on this machine to run the README's other commands with")
	}
	terminal := func(commands string) (answers []json.RawMessage) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "sh", "-euc", export+"\n"+commands).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for d := json.NewDecoder(bytes.NewReader(out)); ; {
			var answer json.RawMessage
			if err := d.Decode(&answer); errors.Is(err, io.EOF) {
				return answers
			} else if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			answers = append(answers, answer)
		}
	}
	block := readmeBlock(t, "curl -s $HOLDFAST_API")
	commands := strings.Split("\n"+block, "\ncurl ")
	first := terminal(block)
	if len(first) != 3 || len(commands) != 4 || commands[0] != "" {
		t.Fatalf("%d answers to %d commands: %s", len(first), len(commands)-1, first)
	}
	for i, want := range []string{`"title":"Auth refactor"`, `"seq":1`, `"text":"Hello"`} {
		if !strings.Contains(strings.ReplaceAll(string(first[i]), `": `, `":`), want) {
			t.Errorf("answer %d has no %s: %s", i+1, want, first[i])
		}
	}
	// "Send the second one again: the same requestId gets the same reply, and there is still one message."
	again := terminal("curl " + commands[2] + "\ncurl " + commands[3])
	if len(again) != 2 || string(again[0]) != string(first[1]) || string(again[1]) != string(first[2]) {
		t.Errorf("sent again, they are answered with\n%s, not with\n%s", again, first[1:])
	}
	p.end(t)
}

// Under way are a stream and writers when SIGTERM comes: the stream is told to come again, no acknowledged message is lost,
// and the process ends in time and well.
func TestSIGTERM(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	env := map[string]string{"HOLDFAST_MIGRATE_DATABASE_URL": b.MigrateURL, "DATABASE_URL": b.URL, "HOLDFAST_ADDR": "127.0.0.1:0"}
	token := strings.TrimSpace(succeed(t, env, "key", "create", "--tenant", string(b.Tenant)))
	p := spawn(t, env, "serve")
	api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
	c := clientOf(t, api, token)
	l := newTraffic(t, c)
	s, err := watchClientOf(t, api, token).Watch(t.Context(), watchOf(l.conversations[0], ""))
	if err != nil || !s.Receive() {
		t.Fatal(err, s.Err())
	}
	defer s.Close()
	ended := make(chan error, 1)
	go func() {
		for s.Receive() {
		}
		ended <- s.Err()
	}()
	began := make(chan time.Time, 1)
	l.run(t, c, 0, 100, func() {
		began <- time.Now()
		p.stop()
	})
	if err := <-ended; connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("the stream ended with %v", err)
	}
	select {
	case <-p.done:
		if p.code != 0 {
			t.Errorf("exit code is %d", p.code)
		}
	case <-time.After(10*time.Second - time.Since(<-began)):
		t.Error("does not stop within ten seconds")
	}

	p = spawn(t, env, "serve")
	l.check(t, clientOf(t, p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`), token))
	p.end(t)
}

// succeed runs a command in this process to its end and returns what it wrote.
func succeed(t *testing.T, env map[string]string, args ...string) string {
	t.Helper()
	code, stdout, stderr := run(t, env, args...)
	if code != 0 {
		t.Fatalf("%q ended with %d: %s", args, code, stderr)
	}
	return stdout
}

// An operator's morning: a tenant, keys, a key that leaks and is revoked. And nothing that is secret is written to the log,
// which has each call at that level.
func TestKeysFromCradleToGrave(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	env := map[string]string{"HOLDFAST_MIGRATE_DATABASE_URL": b.MigrateURL, "HOLDFAST_DATABASE_URL": b.URL, "HOLDFAST_ADDR": "127.0.0.1:0", "HOLDFAST_LOG_LEVEL": "debug"}
	tenant := string(b.Tenant) + ".acme"
	if said := succeed(t, env, "tenant", "create", tenant, "--title", "Acme"); !strings.Contains(said, "is created") {
		t.Errorf("tenant create: %s", said)
	}
	if list := succeed(t, env, "tenant", "list"); !strings.Contains(list, tenant) {
		t.Errorf("tenant list: %s", list)
	}
	service := strings.TrimSpace(succeed(t, env, "key", "create", "--tenant", tenant, "--description", "backend"))
	leaked := strings.TrimSpace(succeed(t, env, "key", "create", "--tenant", tenant, "--user", "ada"))
	id := strings.Split(leaked, "_")[1]

	p := spawn(t, env, "serve")
	api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
	byLeaked, byService := clientOf(t, api, leaked), clientOf(t, api, service)
	for _, c := range []conversationv1connect.ConversationServiceClient{byService, byLeaked} {
		if _, err := c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{Conversation: &conversationv1.Conversation{Title: "private words"}, Shared: true}); err != nil {
			t.Fatal(err)
		}
	}
	if said := succeed(t, env, "key", "revoke", "--tenant", tenant, id); !strings.Contains(said, id) {
		t.Errorf("key revoke: %s", said)
	}
	if list := succeed(t, env, "key", "list", "--tenant", tenant); !regexp.MustCompile(`(?m)^`+id+` +user ada +\S+Z +\S+Z`).MatchString(list) || strings.Contains(list, leaked[21:]) {
		t.Errorf("key list: %s", list)
	}
	began := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := byLeaked.ListConversations(t.Context(), &conversationv1.ListConversationsRequest{})
		if connect.CodeOf(err) == connect.CodeUnauthenticated {
			break
		}
		if took := time.Since(began); err != nil || took > 4*time.Second { // two, and a busy machine
			t.Fatalf("%v after it was revoked the key is answered with %v", took, err)
		}
		<-tick.C
	}
	if _, err := byService.ListConversations(t.Context(), &conversationv1.ListConversationsRequest{}); err != nil {
		t.Errorf("the other key: %v", err)
	}
	for _, header := range []string{"Bearer " + leaked, "Bearer not-a-key-but-secret", "Basic c2VjcmV0LXdvcmRz"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, api+conversationv1connect.ConversationServiceListConversationsProcedure, strings.NewReader(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", header)
		req.Header.Set("Content-Type", "application/json")
		transport := &http.Transport{}
		res, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		transport.CloseIdleConnections()
		if err != nil || res.StatusCode != http.StatusUnauthorized || strings.Contains(string(body), "secret") {
			t.Errorf("%d %s", res.StatusCode, body)
		}
	}
	p.end(t)
	log := p.stderr.String()
	if n := strings.Count(log, `"msg":"call"`); n < 8 {
		t.Errorf("the log has %d calls", n)
	}
	for _, secret := range []string{service[21:], leaked[21:], "holdfast-test", "private words", "not-a-key-but-secret", "c2VjcmV0LXdvcmRz"} {
		if strings.Contains(log, secret) || strings.Contains(p.stdout.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

// Wrong configuration ends at once with one sentence that says what to do, and tells nobody a password.
func TestSentences(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	const unreachable = "postgres://holdfast:hunter2@127.0.0.1:1/d"
	for name, tt := range map[string]struct {
		env  map[string]string
		args []string
		code int
		says string
	}{
		"the owner's login":        {map[string]string{"DATABASE_URL": b.MigrateURL}, []string{"serve", "--addr", "127.0.0.1:0"}, 1, "To fix it"},
		"the server's login, keys": {map[string]string{"DATABASE_URL": b.URL}, []string{"tenant", "list"}, 1, "To fix it"},
		"no database":              {nil, []string{"serve"}, 2, "DATABASE_URL"},
		"nobody there":             {map[string]string{"DATABASE_URL": unreachable}, []string{"serve"}, 1, "127.0.0.1"},
		"no URL":                   {map[string]string{"DATABASE_URL": "postgress://holdfast:hunter2@db/x"}, []string{"serve"}, 1, "database URL"},
		"no command":               {nil, nil, 2, "serve"},
		"unknown flag":             {nil, []string{"serve", "--prot", "80"}, 2, "--port"},
		"a variable is wrong":      {map[string]string{"PORT": "eighty"}, []string{"serve"}, 2, "--port"},
		"no such address":          {map[string]string{"DATABASE_URL": b.URL, "HOLDFAST_ADDR": "256.0.0.1:1"}, []string{"serve"}, 2, "--addr"},
		"data is a file":           {map[string]string{"HOLDFAST_DATA": "/dev/null/data"}, []string{"dev", "--addr", "127.0.0.1:0"}, 2, "--data"},
		"replay without a file":    {map[string]string{"HOLDFAST_TOKEN": "hfk_hunter2"}, []string{"replay", "nowhere.jsonl"}, 1, "nowhere.jsonl"},
		"replay without a server":  {map[string]string{"HOLDFAST_TOKEN": "hfk_hunter2", "HOLDFAST_API": "http://127.0.0.1:1"}, []string{"replay", "../../examples/gemini-live-session.jsonl"}, 1, "holdfast dev"},
		"migrate, nobody there":    {map[string]string{"DATABASE_URL": unreachable}, []string{"migrate", "up"}, 1, "127.0.0.1"},
		"revoke what is not there": {map[string]string{"DATABASE_URL": b.MigrateURL}, []string{"key", "revoke", "--tenant", string(b.Tenant), "nokey"}, 1, "key list"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := spawn(t, tt.env, tt.args...)
			select {
			case <-p.done:
			case <-time.After(20 * time.Second):
				t.Fatal("it goes on")
			}
			said := p.stderr.String()
			if p.code != tt.code || !strings.Contains(said, tt.says) || !strings.HasPrefix(said, "holdfast: ") {
				t.Errorf("it ended with %d, want %d and %q: %s", p.code, tt.code, tt.says, said)
			}
			for _, not := range []string{"goroutine", "panic", "hunter2", "holdfast-test", ".go:"} {
				if strings.Contains(said, not) {
					t.Errorf("it says %q: %s", not, said)
				}
			}
			if p.stdout.String() != "" {
				t.Errorf("on standard output: %s", p.stdout)
			}
		})
	}
}
