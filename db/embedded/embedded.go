package embedded

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// startTimeout bounds a Start whose context has no nearer deadline. It is long because crash recovery and a
	// download are part of it; a server that cannot start says so at once.
	startTimeout = 2 * time.Minute
	// stopTimeout bounds the fast shutdown, which writes a checkpoint, before it is cut short.
	stopTimeout = 15 * time.Second
	// lingerTimeout is how long the backends of a killed postgres may hold its shared memory. They look for
	// their parent whenever they wait for something, so it is moments unless one is deep in a computation.
	lingerTimeout = 10 * time.Second

	superuser   = "postgres"
	maintenance = "postgres" // the database that is always there
)

// ErrInUse is returned by Start when another living process runs a server in the same directory.
var ErrInUse = errors.New("the directory is in use")

// ErrVersion is returned by Start when the data directory was made by another major version of Postgres than the
// binaries that were found. Its text names both.
var ErrVersion = errors.New("another major version made the data directory")

// Options says what server to start. The zero value is a throw-away server on a free port.
type Options struct {
	// Dir keeps the database from one start to the next; it is made if missing. Empty means Ephemeral.
	Dir string
	// Ephemeral puts the database into a temporary directory that Stop removes. Dir is then neither read nor touched.
	Ephemeral bool
	// Port on 127.0.0.1. Zero takes a free one, another one at each start.
	Port int
	// BinDir is the directory that holds initdb and postgres. Empty means: look for one, see [Start].
	BinDir string
	// Parameters are settings for the server, as in postgresql.conf. They win over this package's own, except
	// for those that keep the server on loopback. They hold for this start only.
	Parameters map[string]string
	// Log gets what Start decides and repairs, and at debug level each line that the server writes. Nil discards both.
	Log *slog.Logger
}

// Server is a running Postgres. All methods are safe for concurrent use.
type Server struct {
	log       *slog.Logger
	tools     toolbox
	home      string
	ephemeral bool
	lock      *dirLock
	port      int
	password  string
	proc      *process

	stopOnce sync.Once
	stopErr  error
}

// defaults suit a machine that somebody works on at the same time. Durability is left as Postgres has it: on.
var defaults = map[string]string{
	"cluster_name":    "holdfast", // names the processes in ps and top
	"shared_buffers":  "128MB",
	"max_connections": "100",
	"jit":             "off", // it compiles for longer than our short statements run
}

// parameterName keeps a setting's name from being read as more than one argument or as another option.
var parameterName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// Start starts a server and returns when it takes connections. ctx bounds the start only; the server runs until Stop, and
// ends with this process however that ends. On failure nothing is left running, and when postgres itself
// gave up, the error holds the last lines that it wrote.
//
// Binaries are taken from the first of these that has both initdb and postgres, of version 15 or later: Options.BinDir and
// then no other; pg_config --bindir; the version directories of Linux packages, newest first; Homebrew, newest first; PATH. A
// data directory that exists already decides for its own major version among them. If there are none at all,
// they are downloaded and kept in the user's cache directory.
func Start(ctx context.Context, o Options) (*Server, error) {
	return start(ctx, o, thisMachine())
}

func start(ctx context.Context, o Options, m machine) (_ *Server, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()

	s := &Server{log: o.Log, ephemeral: o.Ephemeral || o.Dir == ""}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err == nil {
			return
		}
		err = fmt.Errorf("embedded postgres: %w", err)
		if stopErr := s.Stop(ctx); stopErr != nil {
			err = errors.Join(err, stopErr)
		}
	}()

	for name := range o.Parameters {
		if !parameterName.MatchString(name) {
			return nil, fmt.Errorf("%q is not the name of a setting", name)
		}
	}

	var known cluster
	if !s.ephemeral {
		if known, err = openCluster(o.Dir); err != nil {
			return nil, err
		}
	}
	acct, err := accountFor(known)
	if err != nil {
		return nil, err
	}
	if s.tools, err = m.findTools(ctx, o.BinDir, known.major, acct, s.log); err != nil {
		return nil, err
	}
	if err := s.takeHome(ctx, o.Dir, m); err != nil {
		return nil, err
	}
	if err := s.run(ctx, o); err != nil {
		return nil, err
	}
	s.log.InfoContext(ctx, "postgres is ready",
		"version", s.tools.major, "dir", s.home, "port", s.port, "pid", s.PID())
	return s, nil
}

// takeHome finds the directory to live in and takes its lock. From here on no other process of ours touches it.
func (s *Server) takeHome(ctx context.Context, dir string, m machine) (err error) {
	if s.ephemeral {
		sweep(ctx, m.tempDirs, s.log)
		s.home, s.lock, err = m.temporaryHome(ctx, s.tools)
		return err
	}
	if s.home, err = m.home(ctx, dir, s.tools, s.log); err != nil {
		return err
	}
	s.lock, err = lockDir(ctx, s.home)
	return err
}

func (s *Server) dataDir() string { return filepath.Join(s.home, dataName) }

// run brings the data directory into order and starts postgres on it.
func (s *Server) run(ctx context.Context, o Options) error {
	stale, err := stopOrphan(ctx, s.dataDir(), s.tools.bin, shutdownFast, s.log)
	if err != nil {
		return err
	}
	if err := s.prepare(ctx); err != nil {
		return err
	}

	var (
		tick     = time.NewTicker(100 * time.Millisecond)
		lingered = time.Now().Add(lingerTimeout)
		races    = 3
	)
	defer tick.Stop()
	for {
		if s.port = o.Port; s.port == 0 {
			if s.port, err = freePort(ctx); err != nil {
				return err
			}
		} else if err := portFree(ctx, s.port); err != nil {
			return fmt.Errorf("port %d cannot be used: %w", s.port, err)
		}

		err := s.launch(ctx, o.Parameters, stale)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return err
		case stale != 0 && time.Now().Before(lingered):
			// Backends of the server that left this pid file may still be there, see doc.go.
		case o.Port == 0 && races > 0 && portFree(ctx, s.port) != nil:
			races-- // somebody took the free port between our look and postgres's
		default:
			return err
		}
		s.log.DebugContext(ctx, "postgres did not start, trying again", "error", err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// launch starts postgres once and waits until it serves or has ended.
func (s *Server) launch(ctx context.Context, parameters map[string]string, stale int) error {
	settings := maps.Clone(defaults)
	maps.Copy(settings, parameters)
	settings["listen_addresses"] = "127.0.0.1"
	settings["port"] = strconv.Itoa(s.port)
	settings["unix_socket_directories"] = ""

	args := make([]string, 0, 2+2*len(settings))
	args = append(args, "-D", s.dataDir())
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	cmd := s.tools.command(s.home, "postgres", args...)
	if stale != 0 {
		// Postgres takes any living process of its user whose pid is in postmaster.pid for a server, and does not
		// start. We know better, and this is its own way to be told so: the pid is then one that cannot
		// be a server. It still looks at the shared memory that the file names, so no backend is overlooked.
		cmd.Env = append(cmd.Env, "PG_GRANDPARENT_PID="+strconv.Itoa(stale))
	}
	proc, err := spawn(cmd, s.log)
	if err != nil {
		return err
	}
	if err := s.awaitReady(ctx, proc); err != nil {
		return errors.Join(err, proc.stop(ctx, s.tools.bin, shutdownImmediate))
	}
	s.proc = proc
	return nil
}

// awaitReady returns when a connection to this very server works.
func (s *Server) awaitReady(ctx context.Context, proc *process) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		dataDir, err := s.askDataDir(ctx)
		switch {
		case err == nil && filepath.Clean(dataDir) == s.dataDir():
			return nil
		case err == nil:
			// Some other server that trusts everybody has the port. Ours is about to find out and end.
			err = fmt.Errorf("port %d is served by the Postgres of %s", s.port, dataDir)
		case sqlState(err) == "28P01": // invalid_password
			return fmt.Errorf("the password in %s is refused; remove that file, and the next start sets a new one",
				filepath.Join(s.home, passwordName))
		}
		select {
		case <-proc.done:
			err := cmp.Or(proc.err, errors.New("exit status 0"))
			return fmt.Errorf("postgres ended while it was starting: %w. It said:\n%s", err, proc.out.last())
		case <-ctx.Done():
			return fmt.Errorf("postgres is not ready: %w: %w. It said:\n%s", ctx.Err(), err, proc.out.last())
		case <-tick.C:
		}
	}
}

func (s *Server) askDataDir(ctx context.Context) (dir string, err error) {
	conn, err := pgx.Connect(ctx, s.AdminURL())
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }()
	err = conn.QueryRow(ctx, "SELECT current_setting('data_directory')").Scan(&dir)
	return dir, err
}

// AdminURL connects to the database postgres as the superuser postgres.
func (s *Server) AdminURL() string { return s.URL(maintenance, nil) }

// URL connects to a database as a user, or as the superuser when user is nil. Neither is made by this call.
func (s *Server) URL(database string, user *url.Userinfo) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     cmp.Or(user, url.UserPassword(superuser, s.password)),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port is the port on 127.0.0.1 that the server listens on.
func (s *Server) Port() int { return s.port }

// Dir is where the server keeps its files: Options.Dir with symbolic links resolved, or the temporary directory.
func (s *Server) Dir() string { return s.home }

// BinDir is the directory of the server's binaries, which as a rule has psql and pgbench too.
func (s *Server) BinDir() string { return s.tools.bin }

// PID is the process id of the server's main process, the postmaster.
func (s *Server) PID() int { return s.proc.cmd.Process.Pid }

// Done is closed when the server has ended, by Stop or by itself.
func (s *Server) Done() <-chan struct{} { return s.proc.done }

// Stop shuts the server down and returns when it has ended: fast, which rolls back what is open and writes a checkpoint; when ctx
// is over or 15 seconds have passed, immediately, which the next start recovers from; in the end with a kill. So it can
// outlast ctx by some seconds, and never leaves a server behind unless its error says so. An ephemeral server has nothing
// to keep: it is shut down immediately, and its directory removed. Further calls return what the first one did.
func (s *Server) Stop(ctx context.Context) error {
	s.stopOnce.Do(func() { s.stopErr = s.stop(ctx) })
	return s.stopErr
}

func (s *Server) stop(ctx context.Context) error {
	if s.proc != nil {
		how := shutdownFast
		if s.ephemeral {
			how = shutdownImmediate
		}
		if err := s.proc.stop(ctx, s.tools.bin, how); err != nil {
			return err // it may still run, so the lock stays ours
		}
	}
	if s.lock == nil {
		return nil
	}
	err := s.lock.release()
	if s.ephemeral {
		err = errors.Join(err, os.RemoveAll(s.home))
	}
	return err
}

func freePort(ctx context.Context) (int, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}

// portFree asks before postgres does: its own complaint comes too late to keep us from talking to another server on the port.
func portFree(ctx context.Context, port int) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return l.Close()
}

// newPassword is safe inside SQL quotes and URLs: letters and digits only.
func newPassword() string { return rand.Text() }

// sqlState is the SQLSTATE of an error that a Postgres server sent, or empty.
func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}
