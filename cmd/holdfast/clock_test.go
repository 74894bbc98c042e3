//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
)

// A process reads its clocks by two functions of the vDSO, a page of code that the kernel puts into it. A clocks writes others over
// them, from outside: they ask the kernel, and add seconds that are kept behind them. So the program is the one that runs
// everywhere, without a seam for this test, and every clock steps that it and its libraries read, as when somebody sets the
// machine's. (libfaketime does so by way of libc, which Go does without; a time namespace has no wall clock of its own; and the
// machine's own clock is everybody's.) A page that is written becomes the process's own, and its children inherit it.
//
// The code is amd64's. There a system call changes RAX, RCX and R11 alone, which a caller does not count on.
var (
	// steppedClock is int clock_gettime(clockid_t edi, struct timespec *rsi).
	steppedClock = []byte{
		0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228
		0x0f, 0x05, // syscall
		0x83, 0xff, 0x01, // cmp edi, CLOCK_MONOTONIC
		0x74, 0x0f, // je monotonic
		0x85, 0xff, // test edi, edi: CLOCK_REALTIME
		0x75, 0x0a, // jne done
		0x48, 0x8b, 0x0d, 0x11, 0x00, 0x00, 0x00, // mov rcx, [rip+17]: wall
		0x48, 0x01, 0x0e, // add [rsi], rcx
		0xc3,                                     // done: ret
		0x48, 0x8b, 0x0d, 0x0e, 0x00, 0x00, 0x00, // monotonic: mov rcx, [rip+14]
		0x48, 0x01, 0x0e, // add [rsi], rcx
		0xc3,       // ret
		0x90, 0x90, // to a multiple of 8
		0, 0, 0, 0, 0, 0, 0, 0, // wall
		0, 0, 0, 0, 0, 0, 0, 0, // monotonic
	}
	// steppedDay is int gettimeofday(struct timeval *rdi, struct timezone *rsi), by which Postgres tells the time.
	steppedDay = []byte{
		0xb8, 0x60, 0x00, 0x00, 0x00, // mov eax, 96
		0x0f, 0x05, // syscall
		0x48, 0x8b, 0x0d, 0x0a, 0x00, 0x00, 0x00, // mov rcx, [rip+10]: wall
		0x48, 0x01, 0x0f, // add [rdi], rcx
		0xc3,                               // ret
		0x90, 0x90, 0x90, 0x90, 0x90, 0x90, // to a multiple of 8
		0, 0, 0, 0, 0, 0, 0, 0, // wall
	}
)

// clocks are those of a process and of all that it starts. Not safe for concurrent use.
type clocks struct {
	pid             int
	wall, day, mono int64 // addresses of the seconds
}

// clocksOf takes the clocks of a process over.
func clocksOf(t *testing.T, pid int) *clocks {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	var from, to int64
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
				t.Fatal(err)
			}
		}
	}
	code := make([]byte, to-from)
	stopped(t, pid, from, to, func(mem *os.File) {
		if _, err := mem.ReadAt(code, from); err != nil {
			t.Fatal(err)
		}
	})
	image, err := elf.NewFile(bytes.NewReader(code))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := image.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	c := &clocks{pid: pid}
	write := map[int64][]byte{}
	for _, s := range symbols {
		at := from + int64(s.Value)
		switch s.Name {
		case "__vdso_clock_gettime":
			write[at], c.wall, c.mono = steppedClock, at+40, at+48
		case "__vdso_gettimeofday":
			write[at], c.day = steppedDay, at+24
		}
		if s.Size < uint64(len(write[at])) {
			t.Skipf("this kernel's vDSO is another: there is no room in %s, of %d bytes", s.Name, s.Size)
		}
	}
	if len(write) != 2 {
		t.Skipf("this kernel's vDSO is another: it has %v", symbols)
	}
	for _, p := range c.processes(t) {
		stopped(t, p, from, to, func(mem *os.File) {
			for at, b := range write {
				if _, err := mem.WriteAt(b, at); err != nil {
					t.Skipf("this machine lets nobody write into another process: %v", err)
				}
			}
		})
	}
	return c
}

// processes are the process and its children. One that is started while they are listed inherits what its parent had, so
// the parent comes first.
func (c *clocks) processes(t *testing.T) []int {
	t.Helper()
	all := []int{c.pid}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", c.pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for f := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, pid)
		}
	}
	return all
}

// step sets a wall clock to be so far from the machine's.
func (c *clocks) step(t *testing.T, by time.Duration) {
	t.Helper()
	c.set(t, by, c.wall, c.day)
}

// leap has a monotonic clock go ahead by so much: to the process, so much time has passed at once. The kernel never has it go
// back.
func (c *clocks) leap(t *testing.T, by time.Duration) {
	t.Helper()
	c.set(t, by, c.mono)
}

func (c *clocks) set(t *testing.T, by time.Duration, where ...int64) {
	t.Helper()
	seconds := binary.LittleEndian.AppendUint64(nil, uint64(by/time.Second))
	// Twice, for those that were started by one that had the old.
	for range 2 {
		for _, pid := range c.processes(t) {
			mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_WRONLY, 0)
			if errors.Is(err, fs.ErrNotExist) {
				continue // a child that has ended
			} else if err != nil {
				t.Fatal(err)
			}
			for _, at := range where {
				if _, err := mem.WriteAt(seconds, at); err != nil && pid == c.pid {
					t.Error(err)
				}
			}
			mem.Close()
		}
	}
}

// stopped calls do with the memory of a process that is stopped, with none of its threads between two addresses.
func stopped(t *testing.T, pid int, from, to int64, do func(mem *os.File)) {
	t.Helper()
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return // it has ended
	case errors.Is(err, fs.ErrPermission):
		t.Skipf("this machine lets nobody write into another process: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	defer mem.Close()
	if _, err := os.Stat("/proc/self/syscall"); err != nil {
		t.Skipf("this kernel does not tell where threads are: %v", err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	awaitTrue(t, "a stop outside the vDSO", func() bool {
		if err := syscall.Kill(pid, syscall.SIGSTOP); errors.Is(err, syscall.ESRCH) {
			return true
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			// Where a thread is: "running", or numbers of which the last is the program counter.
			stat, _ := os.ReadFile(filepath.Join(thread, "stat"))
			where, _ := os.ReadFile(filepath.Join(thread, "syscall"))
			_, state, _ := strings.Cut(string(stat), ") ")
			fields := strings.Fields(string(where))
			if !strings.HasPrefix(state, "T") || len(fields) < 2 {
				return false // not yet
			}
			pc, err := strconv.ParseInt(strings.TrimPrefix(fields[len(fields)-1], "0x"), 16, 64)
			if err != nil || pc >= from && pc < to {
				_ = syscall.Kill(pid, syscall.SIGCONT)
				return false
			}
		}
		return true
	})
	do(mem)
}

// presence is a session of a user, with a connection that says again and again that it is there.
type presence struct {
	client     sessionv1connect.SessionServiceClient
	session    string
	connection string
	stop       context.CancelFunc
	done       sync.WaitGroup
}

// startPresence signs a user in, by one of the servers.
func startPresence(t *testing.T, s *system, server int) *presence {
	t.Helper()
	client := func(token string) sessionv1connect.SessionServiceClient {
		transport := &toServer{api: s.apis[server], next: &http.Transport{}}
		t.Cleanup(transport.next.CloseIdleConnections)
		return sessionv1connect.NewSessionServiceClient(&http.Client{Transport: &bearer{token: token, next: transport}}, "http://holdfast")
	}
	created, err := client(s.token).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	p := &presence{client: client(created.GetTokens().GetAccessToken()), session: created.GetSession().GetSessionId()}
	opened, err := p.client.OpenConnection(t.Context(), &sessionv1.OpenConnectionRequest{Modality: sessionv1.Modality_MODALITY_VOICE})
	if err != nil {
		t.Fatal(err)
	}
	p.connection = opened.GetConnection().GetConnectionId()
	var ctx context.Context
	ctx, p.stop = context.WithCancel(t.Context())
	p.done.Go(func() {
		for ctx.Err() == nil {
			p.beat(t, ctx)
			pause(ctx, 10*time.Millisecond)
		}
	})
	t.Cleanup(func() { p.stop(); p.done.Wait() })
	return p
}

// beat is one heartbeat. It may fail for the moment, but never because the session or the connection is over.
func (p *presence) beat(t *testing.T, ctx context.Context) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := p.client.HeartbeatConnection(ctx, &sessionv1.HeartbeatConnectionRequest{ConnectionId: p.connection, UserActive: true})
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated, connect.CodeNotFound, connect.CodeFailedPrecondition, connect.CodePermissionDenied:
		t.Errorf("a heartbeat: %v", err)
	default:
	}
	return err == nil
}

// end says that the session lives.
func (p *presence) end(t *testing.T) {
	t.Helper()
	p.stop()
	p.done.Wait()
	awaitTrue(t, "a last heartbeat", func() bool { return p.beat(t, t.Context()) || t.Failed() })
	got, err := p.client.GetSession(t.Context(), &sessionv1.GetSessionRequest{})
	if err != nil || got.GetSession().GetSessionId() != p.session || got.GetSession().GetEnd() != nil {
		t.Errorf("the session is now %v, %v", got, err)
	}
}

// wallClock is how far a server's clock is from ours, by the header Date.
func wallClock(t *testing.T, api string) time.Duration {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, api+"/healthz", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Timeout: faultPatience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	at, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		t.Fatal(err)
	}
	return time.Until(at)
}

// stamped says that each server stamps what it stores with the database's time, which is so far from ours.
func (s *system) stamped(t *testing.T, by time.Duration) {
	t.Helper()
	for i, c := range s.clients {
		awaitTrue(t, fmt.Sprintf("server %d by %v from now", i, by), func() bool {
			res, err := c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{})
			return err == nil && (time.Until(res.GetMetadata().GetUpdateTime().AsTime())-by).Abs() < 10*time.Minute
		})
	}
}

// TestFaultsOfClocks has clocks step under load: the wall clock of one of the servers; its monotonic clock, which takes the estimate
// of the database's time along, and lets all that waits in the process believe that days have passed; and the database's. After
// each of them all holds that holds after any other fault (TestFaults), and no session is over before its time.
func TestFaultsOfClocks(t *testing.T) { //nolint:paralleltest // the machine is loaded enough
	if testing.Short() {
		t.Skip("half a minute of load and faults")
	}
	const victim = 1
	s := startSystem(t, filepath.Join(openDir(t), "postgres"))
	server, database := clocksOf(t, s.servers[victim].cmd.Process.Pid), clocksOf(t, s.postgres.PID())
	for _, fault := range []struct {
		name     string
		sessions bool // none may end
		hit      func(t *testing.T, d *drill)
	}{
		{"wall-clock", true, func(t *testing.T, d *drill) {
			for _, at := range []time.Duration{50 * time.Hour, -50 * time.Hour, 50 * time.Hour, 0} {
				server.step(t, at)
				if by := wallClock(t, s.apis[victim].Load().String()); (by - at).Abs() > time.Hour {
					t.Errorf("the server's wall clock is off by %v, not %v", by, at)
				}
				d.more(t, 100)
				s.stamped(t, 0)
			}
		}},
		{"monotonic-clock", true, func(t *testing.T, d *drill) {
			for n := range 3 {
				server.leap(t, time.Duration(n+1)*50*time.Hour)
				d.more(t, 100)
				s.stamped(t, 0)
			}
		}},
		// Sessions end rightly: by the database's clock it is three hours later.
		{"database-clock", false, func(t *testing.T, d *drill) {
			for _, at := range []time.Duration{3 * time.Hour, -3 * time.Hour, 3 * time.Hour, 0} {
				database.step(t, at)
				d.more(t, 100)
				s.stamped(t, at)
			}
		}},
	} {
		t.Run(fault.name, func(t *testing.T) { //nolint:paralleltest // one after the other, on one system
			var user *presence
			if fault.sessions {
				user = startPresence(t, s, victim)
			}
			d := startDrill(t, s)
			d.more(t, faultAcknowledged)
			fault.hit(t, d)
			took := d.recovered(t)
			d.more(t, faultAcknowledged)
			d.end(t)
			if user != nil {
				user.end(t)
			}
			t.Logf("%s: every writer goes on after %v", fault.name, took.Round(time.Millisecond))
		})
	}
	for _, c := range s.servers {
		c.end(t)
	}
}
