//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	"holdfast/handlers"
)

// What is killed has to be a process of its own. The test binary is one: where this variable is set, it is holdfast. Where it is
// steppable, lines on standard input set how far its clock is from the machine's.
const (
	asHoldfast = "HOLDFAST_TEST_AS_HOLDFAST"
	steppable  = "steppable"
)

func init() { //nolint:gochecknoinits // before the tests begin, and without TestMain, which starts and stops databases
	switch os.Getenv(asHoldfast) {
	case "":
	case steppable:
		steppableMain() // exits
	default:
		main() // exits
	}
}

// child is a holdfast in a process of its own, run as a process is.
type child struct {
	*process

	cmd   *exec.Cmd
	stdin io.WriteCloser
}

// spawn starts holdfast with that environment, and of ours only what every program needs. stop sends SIGTERM.
func spawn(t *testing.T, env map[string]string, args ...string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(self, args...)}
	c.cmd.Env = []string{asHoldfast + "=1", "HOLDFAST_SEAL_KEYS=" + sealKey}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "SYSTEMROOT", "HOLDFAST_POSTGRES_BIN"} {
		if v, ok := os.LookupEnv(name); ok {
			c.cmd.Env = append(c.cmd.Env, name+"="+v)
		}
	}
	for name, v := range env {
		c.cmd.Env = append(c.cmd.Env, name+"="+v)
	}
	c.process = &process{
		stop:   func() { _ = c.cmd.Process.Signal(syscall.SIGTERM) },
		stdout: &output{lines: make(chan string, 100)}, stderr: &output{lines: make(chan string, 100)}, done: make(chan struct{}),
	}
	c.cmd.Stdout, c.cmd.Stderr = c.stdout, c.stderr
	// A database of its own that is still shutting down must not keep us waiting for its output.
	c.cmd.WaitDelay = time.Second
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait()
		c.code = c.cmd.ProcessState.ExitCode() // -1 where a signal ended it
	}()
	t.Cleanup(func() {
		c.kill()
		if t.Failed() {
			t.Logf("holdfast %s ended with %d.\nstdout: %s\nstderr: %s", strings.Join(args, " "), c.code, c.stdout, c.stderr)
		}
	})
	return c
}

// kill ends the process as kill -9 does, and nothing else.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.done
}

// appendRequest is one request of the load, which a client repeats until it is acknowledged.
type appendRequest struct {
	*conversationv1.AppendRequest

	acknowledged []int64 // the seqs of its messages; empty: it is not known whether it happened
}

// traffic writes to some conversations at once.
type traffic struct {
	conversations []string
	acknowledged  atomic.Int64

	mu       sync.Mutex // guards requests and what they say
	requests []*appendRequest
}

const writersOfTraffic = 8

func newTraffic(t *testing.T, c conversationv1connect.ConversationServiceClient) *traffic {
	t.Helper()
	l := &traffic{}
	for i := range 3 {
		id := fmt.Sprint("c-", i)
		if _, err := c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: id, Shared: true}); err != nil {
			t.Fatal(err)
		}
		l.conversations = append(l.conversations, id)
	}
	return l
}

// run writes until the server is gone, which hit brings about once enough is acknowledged. Each writer sends 1 to 4 messages
// at once, each with words of its own.
func (l *traffic) run(t *testing.T, c conversationv1connect.ConversationServiceClient, round int, enough int64, hit func()) {
	t.Helper()
	target := l.acknowledged.Load() + enough
	var once sync.Once
	var writers sync.WaitGroup
	for w := range writersOfTraffic {
		writers.Go(func() {
			for n := 0; ; n++ {
				name := fmt.Sprintf("%d.%d.%d", round, w, n)
				r := &appendRequest{AppendRequest: &conversationv1.AppendRequest{
					ConversationId: l.conversations[(w+n)%len(l.conversations)], RequestId: name,
				}}
				for i := range 1 + n%4 {
					r.Messages = append(r.Messages, &conversationv1.Message{Role: conversationv1.Role_ROLE_USER, Text: fmt.Sprint(name, ".", i)})
				}
				l.mu.Lock()
				l.requests = append(l.requests, r)
				l.mu.Unlock()
				if l.send(t.Context(), c, r) != nil {
					return
				}
				if l.acknowledged.Add(1) >= target {
					once.Do(hit)
				}
			}
		})
	}
	writers.Wait()
	if l.acknowledged.Load() < target {
		t.Errorf("the load ended by itself, after %d", l.acknowledged.Load())
	}
}

func (l *traffic) send(ctx context.Context, c conversationv1connect.ConversationServiceClient, r *appendRequest) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	res, err := c.Append(ctx, r.AppendRequest)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r.acknowledged = nil
	for _, m := range res.GetMessages() {
		r.acknowledged = append(r.acknowledged, int64(m.GetSeq()))
	}
	return nil
}

// check reads all and compares it with what was acknowledged: it is there once, in its place; of what was not it is there
// whole or not at all; and seqs and versions have no gap.
func (l *traffic) check(t *testing.T, c conversationv1connect.ConversationServiceClient) (unknown []*appendRequest) {
	t.Helper()
	stored := map[string]string{} // by text, where it is
	requests := map[string]int64{}
	for _, id := range l.conversations {
		var after, version int64
		for more := true; more; {
			page, err := c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: id, AfterSeq: int32(after), PageSize: 200})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range page.GetMessages() {
				if after++; int64(m.GetSeq()) != after {
					t.Fatalf("%s: message %d is in place %d", id, m.GetSeq(), after)
				}
				if where, twice := stored[m.GetText()]; twice {
					t.Errorf("%s is stored twice: %s and %s/%d", m.GetText(), where, id, m.GetSeq())
				}
				stored[m.GetText()] = fmt.Sprint(id, "/", m.GetSeq())
			}
			more, version = page.GetNextPageToken() != "", page.GetVersion()
		}
		requests[id] = version - 1 // the first is its creation
	}
	for _, r := range l.requests {
		var found []string
		for _, m := range r.GetMessages() {
			if where, ok := stored[m.GetText()]; ok {
				found = append(found, where)
			}
		}
		switch {
		case len(r.acknowledged) == 0:
			unknown = append(unknown, r)
			if len(found) != 0 && len(found) != len(r.GetMessages()) {
				t.Errorf("%s was not acknowledged, and %d of its %d messages are there", r.GetRequestId(), len(found), len(r.GetMessages()))
			}
		default:
			want := make([]string, len(r.acknowledged))
			for i, seq := range r.acknowledged {
				want[i] = fmt.Sprint(r.GetConversationId(), "/", seq)
			}
			if !slices.Equal(found, want) {
				t.Errorf("%s was acknowledged as %q, and is at %q", r.GetRequestId(), want, found)
			}
		}
		if len(found) > 0 {
			requests[r.GetConversationId()]--
		}
	}
	for id, left := range requests {
		if left != 0 {
			t.Errorf("%s has %d versions more than requests", id, left)
		}
	}
	return unknown
}

// recover checks what the crash left, then repeats what was not acknowledged, twice, and checks again.
func (l *traffic) recover(t *testing.T, c conversationv1connect.ConversationServiceClient) {
	t.Helper()
	unknown := l.check(t, c)
	if len(unknown) == 0 {
		t.Error("nothing was on its way when the process was killed: the test shows nothing")
	}
	for range 2 {
		for _, r := range unknown {
			if err := l.send(t.Context(), c, r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if left := l.check(t, c); len(left) != 0 {
		t.Errorf("%d requests are still not acknowledged", len(left))
	}
}

// Between the crashes the server's writers are few and its load is short; a longer one is bench's.
const acknowledgedBeforeACrash = 200

func TestKilledServer(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	token, key := handlers.NewKey(b.Tenant, "", "")
	if err := b.Operator.CreateKey(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	up := func() (*child, conversationv1connect.ConversationServiceClient) {
		p := spawn(t, map[string]string{"DATABASE_URL": b.URL, "HOLDFAST_ADDR": "127.0.0.1:0"}, "serve")
		return p, clientOf(t, p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`), token)
	}
	p, c := up()
	l := newTraffic(t, c)
	for round := range 3 {
		l.run(t, c, round, acknowledgedBeforeACrash, p.kill)
		p, c = up()
		l.recover(t, c)
	}
	p.end(t)
}

// The development server is killed alone, then its Postgres alone, then both at once; each time it goes on with what it had.
func TestKilledDevelopmentServer(t *testing.T) {
	t.Parallel()
	data := filepath.Join(openDir(t), "data")
	token := ""
	up := func() (*child, conversationv1connect.ConversationServiceClient) {
		p := spawn(t, nil, "dev", "--json", "--addr", "127.0.0.1:0", "--data", data)
		var ready greeting
		if err := json.Unmarshal([]byte(p.await(t, p.stdout, `.+`)), &ready); err != nil {
			t.Fatal(err)
		}
		if token != "" && ready.Token != token {
			t.Error("the token is another after a crash")
		}
		token = ready.Token
		return p, clientOf(t, ready.API, ready.Token)
	}
	postgres := func() {
		text, err := os.ReadFile(filepath.Join(data, "postgres", "data", "postmaster.pid"))
		if err != nil {
			t.Error(err)
			return
		}
		line, _, _ := strings.Cut(string(text), "\n")
		pid, err := strconv.Atoi(line)
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Error(err)
		}
	}
	p, c := up()
	l := newTraffic(t, c)
	for round, hit := range []func(){
		func() { p.kill() },
		func() {
			postgres()
			select {
			case <-p.done: // without its database there is no point in going on
				if p.code != 1 || !strings.Contains(p.stderr.String(), "Postgres has ended") {
					t.Errorf("without its Postgres it ended with %d: %s", p.code, p.stderr)
				}
			case <-time.After(10 * time.Second):
				t.Error("it goes on without its Postgres")
			}
		},
		func() { postgres(); p.kill() },
	} {
		l.run(t, c, round, acknowledgedBeforeACrash, hit)
		p, c = up()
		l.recover(t, c)
	}
	p.end(t)
	if n := strings.Count(p.stdout.String(), "\n"); n != 1 {
		t.Errorf("--json printed %d lines: %s", n, p.stdout)
	}
}

// openDir is a directory that every user may enter: Postgres may run as another than the test.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
