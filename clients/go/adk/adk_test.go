package adk_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/adk/session"
	"google.golang.org/adk/session/sessiontestsuite"

	holdfast "holdfast.internal/clients/go"
	"holdfast.internal/clients/go/adk"
	"holdfast.internal/clients/go/holdfasttest"
)

func TestADKsOwnSuite(t *testing.T) {
	t.Parallel()
	sessiontestsuite.RunServiceTests(t, sessiontestsuite.SuiteOptions{SupportsUserProvidedSessionID: true}, func(t *testing.T) session.Service {
		t.Helper()
		return adk.NewSessionService(holdfasttest.Tenant(t).Client())
	})
}

// A session that another has changed since it was read takes no event: nothing of it is stored, in no scope.
func TestAStaleSession(t *testing.T) {
	t.Parallel()
	s := adk.NewSessionService(holdfasttest.Tenant(t).Client())
	id := func() *session.GetRequest {
		return &session.GetRequest{AppName: "shop/eu", UserID: "ada", SessionID: "s"}
	}
	if _, err := s.Create(t.Context(), &session.CreateRequest{AppName: "shop/eu", UserID: "ada", SessionID: "s"}); err != nil {
		t.Fatal(err)
	}
	read := func() session.Session {
		got, err := s.Get(t.Context(), id())
		if err != nil {
			t.Fatal(err)
		}
		return got.Session
	}
	one, other := read(), read()
	if err := s.AppendEvent(t.Context(), one, event(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.AppendEvent(t.Context(), other, event(2)); !errors.Is(err, adk.ErrStale) {
		t.Errorf("got %v", err)
	}
	if n, err := numbers(read()); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if err := s.AppendEvent(t.Context(), one, event(2)); err != nil {
		t.Errorf("the one who changed it is not stale: %v", err)
	}
	for i := 3; i <= 450; i++ {
		if err := s.AppendEvent(t.Context(), one, event(i)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := numbers(read()); n != 450 || err != nil {
		t.Errorf("of many events: %d, %v", n, err)
	}
}

// event says n in each scope.
func event(n int) *session.Event {
	return &session.Event{ID: strconv.Itoa(n), Author: "agent", Actions: session.EventActions{
		StateDelta: map[string]any{"n": n, "app:n": n, "user:n": n, "temp:n": n, "a/b~c": n},
	}}
}

// numbers returns how many events a session has. It fails where an event or a scope of the state says another number.
func numbers(s session.Session) (int, error) {
	n := s.Events().Len()
	for i, e := range slices.Collect(s.Events().All()) {
		if e.ID != strconv.Itoa(i+1) {
			return n, fmt.Errorf("event %d is %s", i+1, e.ID)
		}
	}
	for _, key := range []string{"n", "app:n", "user:n", "a/b~c"} {
		if got, err := s.State().Get(key); n > 0 && (err != nil || got != float64(n)) {
			return n, fmt.Errorf("%d events and %s = %v, %v", n, key, got, err)
		}
	}
	return n, nil
}

// A process is killed before each of its calls, and after each of them happened but before it knows. Nothing is half there.
func TestKilledBetweenAnyTwoCalls(t *testing.T) {
	t.Parallel()
	const appends = 3
	if url := os.Getenv("ADK_KILLED"); url != "" {
		s := adk.NewSessionService(holdfast.New(url, os.Getenv("ADK_KEY")))
		made, err := s.Create(t.Context(), &session.CreateRequest{AppName: "app", UserID: "ada", SessionID: "s", State: event(0).Actions.StateDelta})
		if err != nil {
			t.Fatal(err)
		}
		for n := range appends {
			if err := s.AppendEvent(t.Context(), made.Session, event(n+1)); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	ended := 0
	for call := 1; ended < 2; call++ {
		ended = 0
		for _, happens := range []bool{false, true} {
			a := holdfasttest.Tenant(t)
			target, err := url.Parse(a.URL)
			if err != nil {
				t.Fatal(err)
			}
			proxy := httputil.NewSingleHostReverseProxy(target)
			var calls, known atomic.Int32
			process := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledBetweenAnyTwoCalls$")
			network := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if int(calls.Add(1)) != call {
					proxy.ServeHTTP(w, r)
					if strings.HasSuffix(r.URL.Path, "/ApplyTogether") {
						known.Add(1)
					}
					return
				}
				if happens {
					proxy.ServeHTTP(httptest.NewRecorder(), r)
				}
				_ = process.Process.Kill()
				panic(http.ErrAbortHandler)
			}))
			process.Env = append(os.Environ(), "ADK_KILLED="+network.URL, "ADK_KEY="+a.Key)
			out, err := process.CombinedOutput()
			network.Close()
			if err == nil {
				ended++ // it has no such call
			} else if process.ProcessState.Exited() {
				t.Fatalf("call %d: it was not killed: %v\n%s", call, err, out)
			}
			got, err := adk.NewSessionService(a.Client()).Get(t.Context(), &session.GetRequest{AppName: "app", UserID: "ada", SessionID: "s"})
			if err != nil {
				if call > 1 || happens {
					t.Errorf("call %d, happens %v: %v", call, happens, err)
				}
				continue
			}
			if n, err := numbers(got.Session); err != nil || n < int(known.Load())-1 {
				t.Errorf("call %d, happens %v: %d events, %d changes were acknowledged, %v", call, happens, n, known.Load(), err)
			}
		}
	}
}

// The README's program is example/main.go, and does what it says.
func TestReadme(t *testing.T) {
	t.Parallel()
	program, err := os.ReadFile("example/main.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```go\n"+string(program)+"```") {
		t.Error("the README has another program than example/main.go")
	}
	a := holdfasttest.Tenant(t)
	c := exec.CommandContext(t.Context(), "go", "run", "./example")
	c.Env = append(os.Environ(), "HOLDFAST_API="+a.URL, "HOLDFAST_TOKEN="+a.Key)
	out, err := c.CombinedOutput()
	if err != nil || string(out) != "This is turn 1 of ada\nThis is turn 2 of ada\n" {
		t.Errorf("%s, %v", out, err)
	}
}
