//go:build unix

package embedded

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

// helperVar makes the test binary play a process that is then killed.
const helperVar = "HOLDFAST_EMBEDDED_HELPER"

// helperTask is what such a process does: it watches a process, or starts a server and prints its pid and URL.
type helperTask struct {
	Watch      int               `json:"watch"`
	Dir        string            `json:"dir"`
	Parameters map[string]string `json:"parameters"`
}

func TestMain(m *testing.M) {
	if task := os.Getenv(helperVar); task != "" {
		if err := helper(task); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

func helper(task string) error {
	var todo helperTask
	if err := json.Unmarshal([]byte(task), &todo); err != nil {
		return err
	}
	if todo.Watch != 0 {
		if _, err := watch(todo.Watch); err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, "watching")
	} else {
		s, err := Start(context.Background(), Options{Dir: todo.Dir, Parameters: todo.Parameters})
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, s.PID(), s.AdminURL())
	}
	select {}
}

// testBundle is a machine whose directories are the test's own, and a place to keep a database.
type testBundle struct {
	machine machine
	dir     string // not there yet
	log     *lockedBuffer
	logger  *slog.Logger
}

// lockedBuffer: the server's output is logged from a goroutine of its own.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	if len(binDirs(t.Context())) == 0 {
		t.Skip("no Postgres binaries on this machine")
	}
	// t.TempDir is mode 0700, and the server runs as another user when the test runs as root.
	root, err := os.MkdirTemp("", "holdfast-embedded-test-*") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		t.Fatal(err)
	}
	temp := filepath.Join(root, "tmp")
	if err := os.Mkdir(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	b := &testBundle{dir: filepath.Join(root, "data", "postgres"), log: &lockedBuffer{}}
	b.logger = slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b.machine = machine{
		binDirs:  binDirs,
		stateDir: filepath.Join(root, "state"),
		tempDirs: []string{temp},
		cacheDir: func() (string, error) { return filepath.Join(root, "cache"), nil },
	}
	return b
}

// kept is what a test changes of a database that it keeps. Without fsync, for the tests' sake: what is lost
// without it is lost with the machine, which no test here switches off.
func (b *testBundle) kept() Options {
	return Options{Dir: b.dir, Log: b.logger, Parameters: map[string]string{"fsync": "off", "shared_buffers": "16MB"}}
}

func (b *testBundle) start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := start(t.Context(), o, b.machine)
	if err != nil {
		t.Fatalf("%v\nlog:\n%s", err, b.log)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	select {
	case <-s.Done():
	default:
		t.Error("Done is open after Stop")
	}
}

func execSQL(t *testing.T, databaseURL, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func query(t *testing.T, databaseURL, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var value string
	if err := conn.QueryRow(t.Context(), sql).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// eventually asks until the answer is yes, and fails the test when that takes too long.
func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for !yes() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited too long until %s", what)
		}
	}
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}

func TestRestartKeepsData(t *testing.T) {
	t.Parallel()
	b := setup(t)

	s := b.start(t, b.kept())
	execSQL(t, s.AdminURL(), `CREATE TABLE kept AS SELECT 'value' AS v`)
	if _, err := start(t.Context(), b.kept(), b.machine); !errors.Is(err, ErrInUse) {
		t.Errorf("second server in one directory: %v", err)
	} else {
		wantError(t, err, strconv.Itoa(os.Getpid()))
	}
	if got := query(t, s.AdminURL(), `SHOW listen_addresses`); got != "127.0.0.1" {
		t.Errorf("listens on %s", got)
	}
	if _, err := exec.LookPath(filepath.Join(s.BinDir(), "initdb")); err != nil {
		t.Error(err)
	}
	stop(t, s)

	again := b.start(t, b.kept())
	if got := query(t, again.AdminURL(), `SELECT v FROM kept`); got != "value" {
		t.Errorf("kept %q", got)
	}
	for path, mode := range map[string]fs.FileMode{dataName: 0o700, passwordName: 0o600} {
		info, err := os.Stat(filepath.Join(b.dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), mode)
		}
	}
}

func TestEphemeral(t *testing.T) {
	t.Parallel()
	b := setup(t)

	o := b.kept()
	o.Ephemeral = true
	o.Parameters["timezone"] = "Asia/Kathmandu"
	o.Parameters["listen_addresses"] = "*"
	s := b.start(t, o)
	if got := query(t, s.AdminURL(), `SHOW timezone`); got != "Asia/Kathmandu" {
		t.Errorf("time zone %s", got)
	}
	if got := query(t, s.AdminURL(), `SHOW listen_addresses`); got != "127.0.0.1" {
		t.Errorf("listens on %s", got)
	}
	execSQL(t, s.AdminURL(), `CREATE ROLE guest LOGIN PASSWORD 'p@ss/word'`)
	guest := s.URL("template1", url.UserPassword("guest", "p@ss/word"))
	if got := query(t, guest, `SELECT current_user || '@' || current_database()`); got != "guest@template1" {
		t.Errorf("connected as %s", got)
	}
	if _, err := pgx.Connect(t.Context(), s.URL("postgres", url.UserPassword("guest", "wrong"))); sqlState(err) != "28P01" {
		t.Errorf("wrong password: %v", err)
	}
	stop(t, s)
	for _, dir := range []string{s.Dir(), b.dir} {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there after an ephemeral server: %v", dir, err)
		}
	}
}

func TestKilledPostmasterRecovers(t *testing.T) {
	t.Parallel()
	b := setup(t)

	s := b.start(t, b.kept())
	execSQL(t, s.AdminURL(), `CREATE TABLE kept AS SELECT 'value' AS v`)
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	stop(t, s)
	if pid, err := readPID(s.dataDir()); pid == 0 || err != nil {
		t.Fatalf("a killed server leaves its pid file, but: %d, %v", pid, err)
	}

	again := b.start(t, b.kept())
	if got := query(t, again.AdminURL(), `SELECT v FROM kept`); got != "value" {
		t.Errorf("kept %q", got)
	}
}

// TestEverythingKilled kills postgres and the process that started it while a backend computes. Such a backend does not
// look for its parent, and until it is done Postgres refuses to start beside it.
func TestEverythingKilled(t *testing.T) {
	t.Parallel()
	b := setup(t)

	// The backend computes for as long as this file is there.
	gate := filepath.Join(filepath.Dir(b.machine.tempDirs[0]), "gate")
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	computed := make(chan struct{})
	killedServerProcess(t, b.kept(), b.machine.tempDirs[0], func(pid int, adminURL string) {
		execSQL(t, adminURL, `CREATE TABLE kept AS SELECT 'value' AS v`)
		busy, err := pgx.Connect(t.Context(), adminURL)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer close(computed)
			_, _ = busy.Exec(context.Background(), fmt.Sprintf(
				`DO $$ BEGIN WHILE (pg_stat_file('%s', true)).size IS NOT NULL LOOP END LOOP; END $$`, gate))
			_ = busy.Close(context.Background())
		}()
		eventually(t, "the backend computes", func() bool {
			return query(t, adminURL, `SELECT count(*)::text FROM pg_stat_activity
				WHERE query LIKE 'DO %' AND state = 'active'`) == "1"
		})
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	})

	var s *Server
	started := make(chan error, 1)
	go func() {
		var err error
		s, err = start(t.Context(), b.kept(), b.machine)
		started <- err
	}()
	eventually(t, "Postgres refuses", func() bool { return strings.Contains(b.log.String(), "trying again") })
	if err := os.Remove(gate); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	if got := query(t, s.AdminURL(), `SELECT v FROM kept`); got != "value" {
		t.Errorf("kept %q", got)
	}
	<-computed
}

// TestStalePIDFile has a pid file whose pid a living process of the server's user now has: Postgres by itself
// refuses to start, for as long as that process lives.
func TestStalePIDFile(t *testing.T) {
	t.Parallel()
	b := setup(t)

	s := b.start(t, b.kept())
	pidFile := filepath.Join(s.dataDir(), "postmaster.pid")
	content, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	stop(t, s)

	bystander := exec.Command("sleep", "600")
	bystander.SysProcAttr = &syscall.SysProcAttr{Credential: s.tools.account.sysProcAttr().Credential}
	bystander.Dir = "/"
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := bystander.Process.Kill(); err != nil {
			t.Errorf("the bystander is gone: %v", err)
		}
		_ = bystander.Wait()
	}()
	_, rest, _ := strings.Cut(string(content), "\n")
	if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n%s", bystander.Process.Pid, rest), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.tools.account.own(pidFile); err != nil {
		t.Fatal(err)
	}

	b.start(t, b.kept())
}

// TestOrphanIsTakenOver runs a server that no process of ours holds, as where nobody told it that its parent was killed.
func TestOrphanIsTakenOver(t *testing.T) {
	t.Parallel()
	b := setup(t)

	s := b.start(t, b.kept())
	execSQL(t, s.AdminURL(), `CREATE TABLE kept (v text)`)
	stop(t, s)

	orphan := s.tools.command(s.home, "postgres", "-D", s.dataDir(),
		"-c", "port="+strconv.Itoa(s.Port()), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=")
	orphan.SysProcAttr = &syscall.SysProcAttr{Credential: orphan.SysProcAttr.Credential} // nobody tells it
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()
	eventually(t, "the orphan serves", func() bool {
		_, err := s.askDataDir(t.Context())
		return err == nil
	})
	execSQL(t, s.AdminURL(), `INSERT INTO kept VALUES ('by the orphan')`)
	guest, err := pgx.Connect(t.Context(), s.AdminURL()) // an open session must not hold the shutdown up
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close(t.Context())

	again := b.start(t, b.kept())
	if err := <-ended; err != nil {
		t.Errorf("the orphan did not shut down in order: %v", err)
	}
	if again.PID() == orphan.Process.Pid {
		t.Error("the orphan still serves")
	}
	if got := query(t, again.AdminURL(), `SELECT v FROM kept`); got != "by the orphan" {
		t.Errorf("kept %q", got)
	}
	if !strings.Contains(b.log.String(), "outlived") {
		t.Error("nothing is said about the orphan")
	}
}

// killedProcess has a process of its own do a task, hands over the line that it prints, and kills it.
func killedProcess(t *testing.T, todo helperTask, temp string, use func(line string)) {
	t.Helper()
	task, err := json.Marshal(todo)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperVar+"="+string(task), "TMPDIR="+temp)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	use(strings.TrimSpace(line))
}

// killedServerProcess is killedProcess for a task that starts a server.
func killedServerProcess(t *testing.T, o Options, temp string, use func(pid int, adminURL string)) {
	t.Helper()
	killedProcess(t, helperTask{Dir: o.Dir, Parameters: o.Parameters}, temp, func(line string) {
		var (
			pid      int
			adminURL string
		)
		if _, err := fmt.Sscan(line, &pid, &adminURL); err != nil {
			t.Fatal(err)
		}
		use(pid, adminURL)
	})
}

func TestKilledProcessTakesItsServerAlong(t *testing.T) {
	t.Parallel()
	b := setup(t)

	killedServerProcess(t, b.kept(), b.machine.tempDirs[0], func(_ int, adminURL string) {
		execSQL(t, adminURL, `CREATE TABLE kept AS SELECT 'value' AS v`)
	})
	// At once, while the old server may still be on its way out.
	s := b.start(t, b.kept())
	if got := query(t, s.AdminURL(), `SELECT v FROM kept`); got != "value" {
		t.Errorf("kept %q", got)
	}
}

func TestKilledProcessLeavesNothingEphemeral(t *testing.T) {
	t.Parallel()
	b := setup(t)
	temp := b.machine.tempDirs[0]

	o := Options{Ephemeral: true, Parameters: b.kept().Parameters}
	var (
		home   string
		server int
	)
	killedServerProcess(t, o, temp, func(pid int, adminURL string) {
		server = pid
		home = filepath.Dir(query(t, adminURL, `SHOW data_directory`))
	})
	eventually(t, "the server has ended", func() bool { return !isServer(server, filepath.Join(home, dataName)) })
	if filepath.Dir(home) != temp {
		t.Fatalf("the server was in %s, not under %s", home, temp)
	}
	if _, err := os.Stat(home); err != nil {
		t.Fatalf("nothing left to sweep: %v", err)
	}
	// A directory in use, and one that is just being made.
	inUse := b.start(t, o)
	fresh, err := os.MkdirTemp(temp, tempPattern) //nolint:usetesting // the name matters
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(home); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not swept by the next start: %v", err)
	}
	sweep(t.Context(), b.machine.tempDirs, b.logger)
	for _, dir := range []string{inUse.Dir(), fresh} {
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("swept what it should not: %v", err)
		}
	}
	if got := query(t, inUse.AdminURL(), `SELECT 'serves'`); got != "serves" {
		t.Error(got)
	}
}

// TestWatch checks on Linux what stands in for the kernel elsewhere.
func TestWatch(t *testing.T) {
	t.Parallel()
	victim := exec.Command("sleep", "600")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	unwatch, err := watch(victim.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	unwatch()
	killedProcess(t, helperTask{Watch: victim.Process.Pid}, os.TempDir(), func(string) {
		if err := victim.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("ended before its time: %v", err)
		}
	})
	if err := victim.Wait(); err == nil || err.Error() != "signal: interrupt" {
		t.Errorf("ended with %v", err)
	}
}

func TestPasswordFileLost(t *testing.T) {
	t.Parallel()
	b := setup(t)

	s := b.start(t, b.kept())
	old := s.AdminURL()
	stop(t, s)
	if err := os.Remove(filepath.Join(b.dir, passwordName)); err != nil {
		t.Fatal(err)
	}
	o := b.kept()
	o.Port = s.Port()
	again := b.start(t, o)
	if again.AdminURL() == old {
		t.Error("the old password is still in force")
	}
	execSQL(t, again.AdminURL(), `ALTER ROLE postgres PASSWORD 'changed'`)
	stop(t, again)
	_, err := start(t.Context(), b.kept(), b.machine)
	wantError(t, err, "password", "remove that file")
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)

	ephemeral := func(change func(*Options)) Options {
		o := b.kept()
		o.Dir = ""
		change(&o)
		return o
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	port := taken.Addr().(*net.TCPAddr).Port

	for name, tc := range map[string]struct {
		options Options
		says    []string
	}{
		"directory without binaries": {
			ephemeral(func(o *Options) { o.BinDir = b.machine.tempDirs[0] }),
			[]string{"HOLDFAST_POSTGRES_BIN", b.machine.tempDirs[0], "postgres"},
		},
		"port taken": {
			ephemeral(func(o *Options) { o.Port = port }),
			[]string{strconv.Itoa(port), "in use"},
		},
		"setting that postgres refuses": {
			ephemeral(func(o *Options) { o.Parameters["shared_buffers"] = "plenty" }),
			[]string{"It said", "shared_buffers", "plenty"},
		},
		"setting that is an option": {
			ephemeral(func(o *Options) { o.Parameters["-D /"] = "x" }),
			[]string{"-D /", "setting"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := start(t.Context(), tc.options, b.machine)
			wantError(t, err, tc.says...)
		})
	}

	t.Run("context over", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := start(ctx, ephemeral(func(*Options) {}), b.machine)
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if left, _ := filepath.Glob(filepath.Join(b.machine.tempDirs[0], "*")); len(left) > 0 {
			t.Errorf("left behind: %s", left)
		}
	})
}

func TestOtherVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	acct, err := accountFor(cluster{})
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(b.dir, dataName)
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("14\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := acct.own(data); err != nil {
		t.Fatal(err)
	}
	tools, err := b.machine.findTools(t.Context(), "", 0, acct, b.logger)
	if err != nil {
		t.Fatal(err)
	}
	_, err = start(t.Context(), b.kept(), b.machine)
	wantError(t, err, "Postgres 14", "Postgres "+strconv.Itoa(tools.major))
	if !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
}

// TestUnenterableDir is `holdfast dev` in a directory under root's home.
func TestUnenterableDir(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root starts servers as another user")
	}
	b := setup(t)
	private := filepath.Dir(b.dir)
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}

	s := b.start(t, b.kept())
	if filepath.Dir(s.Dir()) != b.machine.stateDir {
		t.Fatalf("runs in %s", s.Dir())
	}
	if target, err := os.Readlink(b.dir); err != nil || target != s.Dir() {
		t.Errorf("the link leads to %s, %v", target, err)
	}
	if !strings.Contains(b.log.String(), "level=WARN") {
		t.Error("no warning")
	}
	execSQL(t, s.AdminURL(), `CREATE TABLE kept AS SELECT 'value' AS v`)
	stop(t, s)
	if got := query(t, b.start(t, b.kept()).AdminURL(), `SELECT v FROM kept`); got != "value" {
		t.Errorf("kept %q", got)
	}

	occupied := filepath.Join(private, "occupied")
	if err := os.MkdirAll(filepath.Join(occupied, "something"), 0o755); err != nil {
		t.Fatal(err)
	}
	o := b.kept()
	o.Dir = occupied
	_, err := start(t.Context(), o, b.machine)
	wantError(t, err, occupied, "cannot enter", "chmod")
}

// fakeTools makes a directory of scripts that pass for binaries of a version.
func fakeTools(t *testing.T, dir string, major int, names ...string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		script := fmt.Sprintf("#!/bin/sh\necho '%s (PostgreSQL) %d.3 (by hand)'\n", name, major)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFindTools(t *testing.T) {
	t.Parallel()
	b := setup(t)
	acct, err := accountFor(cluster{})
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Dir(b.machine.tempDirs[0])
	both := []string{"postgres", "initdb"}
	client := fakeTools(t, filepath.Join(root, "client"), 17, "psql", "pg_config")
	old := fakeTools(t, filepath.Join(root, "9.6", "bin"), 9, both...)
	v16 := fakeTools(t, filepath.Join(root, "16", "bin"), 16, both...)
	v17 := fakeTools(t, filepath.Join(root, "17", "bin"), 17, both...)
	lone := filepath.Join(root, "lone")
	if err := os.Mkdir(lone, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(v16, "postgres"), filepath.Join(lone, "postgres")); err != nil {
		t.Fatal(err)
	}

	for name, tc := range map[string]struct {
		dirs   []string
		binDir string
		want   int
		bin    string
	}{
		"first that will do":             {dirs: []string{client, old, v17, v16}, bin: v17},
		"link to postgres alone":         {dirs: []string{lone, v17}, bin: v16},
		"version of the data directory":  {dirs: []string{v17, v16}, want: 16, bin: v16},
		"no such version: what there is": {dirs: []string{v17, v16}, want: 15, bin: v17},
		"named directory and no other":   {dirs: []string{v17}, binDir: v16, want: 17, bin: v16},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := b.machine
			m.binDirs = func(context.Context) []string { return tc.dirs }
			tools, err := m.findTools(t.Context(), tc.binDir, tc.want, acct, b.logger)
			if err != nil {
				t.Fatal(err)
			}
			if tools.bin != tc.bin {
				t.Errorf("took %s, want %s", tools.bin, tc.bin)
			}
		})
	}

	dirs := []string{"/usr/lib/postgresql/9.6/bin", "/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/17/bin"}
	if got, want := newestFirst(slices.Clone(dirs)), []string{dirs[2], dirs[1], dirs[0]}; !slices.Equal(got, want) {
		t.Errorf("newest first: %s", got)
	}
}

// TestDownload fetches from a repository of its own. What it serves are scripts, so root and others both get through.
func TestDownload(t *testing.T) {
	t.Parallel()
	b := setup(t)
	jar, err := os.ReadFile("testdata/binaries.jar")
	if err != nil {
		t.Fatal(err)
	}
	var requests []string
	repository := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests = append(requests, r.URL.Path)
		if !strings.Contains(r.URL.Path, "/18.") || strings.HasSuffix(r.URL.Path, ".sha256") {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(jar)
	}))
	t.Cleanup(func() {
		repository.Close()
		http.DefaultClient.CloseIdleConnections() //nolint:forbidigo // the library's choice of client
	})
	acct, err := accountFor(cluster{})
	if err != nil {
		t.Fatal(err)
	}
	m := b.machine
	m.repository = repository.URL
	m.binDirs = func(context.Context) []string { return nil }

	tools, err := m.findTools(t.Context(), "", 0, acct, b.logger)
	if err != nil {
		t.Fatal(err)
	}
	if tools.major != newestMajor {
		t.Errorf("downloaded version %d", tools.major)
	}
	asked := len(requests)
	if again, err := m.findTools(t.Context(), "", 18, acct, b.logger); err != nil || again.bin != tools.bin || len(requests) != asked {
		t.Errorf("not kept: %v, %v, %d requests more", again, err, len(requests)-asked)
	}
	_, err = m.findTools(t.Context(), "", 16, acct, b.logger)
	wantError(t, err, "no Postgres 15 or later", "cannot be downloaded", "HOLDFAST_POSTGRES_BIN")
	cache, _ := m.cacheDir()
	if left, _ := filepath.Glob(filepath.Join(cache, "download-*")); len(left) > 0 {
		t.Errorf("left behind: %s", left)
	}
	if runtime.GOOS == "linux" && !strings.Contains(tools.bin, "linux") {
		t.Error(tools.bin)
	}
}

func TestLineLog(t *testing.T) {
	t.Parallel()
	l := &lineLog{log: slog.New(slog.DiscardHandler)}
	if got := l.last(); !strings.Contains(got, "nothing") {
		t.Error(got)
	}
	for i := range 100 {
		fmt.Fprintf(l, "line %d\nrest", i)
	}
	got := strings.Split(l.last(), "\n")
	if len(got) != rememberedLines+1 || got[len(got)-2] != "  restline 99" || got[len(got)-1] != "  rest" {
		t.Errorf("%q", got)
	}
}
