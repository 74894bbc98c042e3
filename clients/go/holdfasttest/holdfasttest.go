// Package holdfasttest starts a Holdfast for the integration tests of other programs, from its binary: the one that HOLDFAST_BIN names, or
// `holdfast` on the PATH. It needs sh, and what `holdfast dev` needs, which is Postgres's binaries or a network to download them from.
//
//	func TestCart(t *testing.T) {
//		hf := holdfasttest.Tenant(t).Client().As("ada")
//		…
//	}
package holdfasttest

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	holdfast "holdfast.internal/clients/go"
)

// Server is a Holdfast with a database of its own, which is thrown away when it stops. It is safe for concurrent use.
type Server struct {
	// URL is the base URL of its API.
	URL string

	binary, database, dir string
	command               *exec.Cmd
	hold                  io.Closer
}

// Access is a tenant that only one test knows.
type Access struct {
	// URL is the base URL of the API.
	URL string
	// Key is a service's key, which acts for nobody, or with Client.As for a user.
	Key string
	// Name is the tenant's.
	Name string
}

// Client returns a client of the tenant.
func (a Access) Client(opts ...holdfast.Option) *holdfast.Client {
	return holdfast.New(a.URL, a.Key, opts...)
}

var shared struct {
	sync.Mutex // guards server, and is held while that starts

	server *Server
}

// Tenant makes a tenant on the server that all tests of this process share. The first call starts it, in about two seconds, and it ends
// with the process.
func Tenant(tb testing.TB) Access {
	tb.Helper()
	shared.Lock()
	if shared.server == nil {
		s, err := start()
		if err != nil {
			shared.Unlock()
			tb.Fatal(err)
		}
		shared.server = s
	}
	shared.Unlock()
	return shared.server.Tenant(tb)
}

// Start starts a server for one test, for what it does to the server as a whole. It ends with the test.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s, err := start()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.stop)
	return s
}

// script runs the server until its input ends, which it does also when the process that has the other end is killed. Ctrl-C goes to
// that process too, so the shell waits for its end.
const script = `trap '' INT; "$1" dev --ephemeral --json --addr 127.0.0.1:0 </dev/null 2>log & read -r _; kill "$!" 2>/dev/null; wait "$!"; rm -rf "$2"`

func start() (*Server, error) {
	binary, err := exec.LookPath(cmp.Or(os.Getenv("HOLDFAST_BIN"), "holdfast"))
	if err == nil {
		binary, err = filepath.Abs(binary)
	}
	if err != nil {
		return nil, fmt.Errorf("holdfasttest: no server's binary: name it by HOLDFAST_BIN or have it on the PATH: %w", err)
	}
	dir, err := os.MkdirTemp("", "holdfast-")
	if err != nil {
		return nil, err
	}
	c := exec.Command("sh", "-c", script, "sh", binary, dir) //nolint:gosec,noctx // the binary is the developer's own, and lives as long as its input
	c.Dir, c.Stderr = dir, os.Stderr
	hold, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	s := &Server{binary: binary, dir: dir, command: c, hold: hold}
	var hello struct {
		API      string `json:"api"`
		Database string `json:"database"`
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &hello)
	}
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		s.stop()
		return nil, fmt.Errorf("holdfasttest: %s did not start: %w\n%s", binary, err, log)
	}
	s.URL, s.database = hello.API, hello.Database
	return s, nil
}

// stop ends the server and its database, and waits for that.
func (s *Server) stop() {
	_ = s.hold.Close()
	_ = s.command.Wait() // its status is the server's, which was told to end
}

// Tenant makes a tenant of the server.
func (s *Server) Tenant(tb testing.TB) Access {
	tb.Helper()
	a := Access{URL: s.URL, Name: "test-" + strings.ToLower(rand.Text()[:16])}
	s.run(tb, "tenant", "create", a.Name)
	a.Key = s.run(tb, "key", "create", "--tenant", a.Name)
	return a
}

func (s *Server) run(tb testing.TB, args ...string) string {
	tb.Helper()
	c := exec.CommandContext(tb.Context(), s.binary, args...) //nolint:gosec // the binary is the developer's own
	c.Env = append(os.Environ(), "HOLDFAST_MIGRATE_DATABASE_URL="+s.database)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		tb.Fatalf("holdfasttest: %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}
