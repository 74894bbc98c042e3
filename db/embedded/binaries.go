package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// oldestMajor is the oldest Postgres that Holdfast's schema runs on.
const oldestMajor = 15

// machine is what Start takes from the machine around it. Tests put other things there.
type machine struct {
	binDirs    func(context.Context) []string // where binaries may be, best first
	stateDir   string                         // stands in for a directory that the server's user cannot enter
	tempDirs   []string                       // where ephemeral servers live, best first
	cacheDir   func() (string, error)         // where downloaded binaries are kept
	repository string                         // where they are downloaded from; empty for the library's own choice
}

func thisMachine() machine {
	m := machine{binDirs: binDirs, stateDir: "/var/lib/holdfast", tempDirs: []string{os.TempDir()}, cacheDir: cacheDir}
	if os.Geteuid() == 0 && os.TempDir() != "/tmp" {
		m.tempDirs = append(m.tempDirs, "/tmp") // root's TMPDIR is often its own
	}
	return m
}

// toolbox is a directory of Postgres binaries that the server's user can run.
type toolbox struct {
	bin     string
	major   int
	account account
}

// binDirs lists where binaries may be on this machine, best first. They need not exist.
func binDirs(ctx context.Context) []string {
	var dirs []string
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
		"/usr/pgsql-*/bin",          // Red Hat, from postgresql.org
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
		"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
	} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, newestFirst(found)...)
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	return dirs
}

var firstNumber = regexp.MustCompile(`\d+`)

// newestFirst orders directories by the version in their parent's name. As text, 9.6 would be newer than 15.
func newestFirst(dirs []string) []string {
	version := func(dir string) int {
		n, _ := strconv.Atoi(firstNumber.FindString(filepath.Base(filepath.Dir(dir))))
		return n
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
	return dirs
}

// findTools returns the first usable binaries, those of major version want before all others if want is not 0. It may
// return another version when there is no better: the caller compares, and knows what to say.
func (m machine) findTools(ctx context.Context, binDir string, want int, acct account, log *slog.Logger) (toolbox, error) {
	if binDir != "" {
		t, err := openTools(ctx, binDir, acct)
		if err != nil {
			return toolbox{}, fmt.Errorf("the directory that HOLDFAST_POSTGRES_BIN names cannot be used: %w", err)
		}
		return t, nil
	}
	var (
		best   toolbox
		passed []error
	)
	for _, dir := range m.binDirs(ctx) {
		t, err := openTools(ctx, dir, acct)
		switch {
		case err != nil:
			passed = append(passed, err)
		case want == 0 || t.major == want:
			return t, nil
		case best.bin == "":
			best = t
		}
	}
	if best.bin != "" {
		return best, nil
	}
	log.InfoContext(ctx, "no Postgres binaries on this machine; downloading them")
	bin, err := m.download(ctx, want)
	if err != nil {
		return toolbox{}, fmt.Errorf("no Postgres %d or later was found on this machine (%w), and it cannot be downloaded: %w; "+
			"install one, or name its directory in HOLDFAST_POSTGRES_BIN",
			oldestMajor, cmp.Or(errors.Join(passed...), errNothingThere), err)
	}
	return openTools(ctx, bin, acct)
}

var errNothingThere = errors.New("neither in the usual directories nor on PATH")

var versionLine = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// openTools accepts a directory if initdb and postgres are both in it (pg_config of a client-only package names one
// without), and the server's user can run them.
func openTools(ctx context.Context, dir string, acct account) (toolbox, error) {
	// A directory on PATH may hold a lone link to postgres, and initdb may be only where that link leads.
	for _, d := range []string{resolvedDir(dir, "postgres"), dir} {
		if _, err := exec.LookPath(filepath.Join(d, "initdb")); err == nil {
			dir = d
			break
		}
	}
	t := toolbox{bin: dir, account: acct}
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return toolbox{}, fmt.Errorf("%s has no %s: %w", dir, name, err)
		}
	}
	out, err := t.version(ctx, string(filepath.Separator))
	if err != nil {
		return toolbox{}, fmt.Errorf("postgres in %s does not run%s: %w", dir, acct.suffix(), err)
	}
	found := versionLine.FindStringSubmatch(out)
	if found == nil {
		return toolbox{}, fmt.Errorf("postgres in %s does not tell its version but %q", dir, out)
	}
	if t.major, err = strconv.Atoi(found[1]); err != nil {
		return toolbox{}, err
	}
	if t.major < oldestMajor {
		return toolbox{}, fmt.Errorf("%s has Postgres %d, and %d is the oldest that will do", dir, t.major, oldestMajor)
	}
	return t, nil
}

// resolvedDir is the directory that really holds a program, or dir itself when it cannot be told.
func resolvedDir(dir, name string) string {
	path, err := exec.LookPath(filepath.Join(dir, name))
	if err != nil {
		return dir
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return dir
	}
	return filepath.Dir(path)
}

// command prepares a program of the toolbox to run in dir as the server's user, with a clean environment: PG* variables
// would redirect it, and a locale that is not installed stops initdb.
func (t toolbox) command(dir, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(t.bin, name), args...) //nolint:gosec,noctx // our own arguments; outlives any context
	cmd.Dir = dir                                            // ours may be one that the server's user cannot enter
	cmd.SysProcAttr = t.account.sysProcAttr()
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") && !strings.HasPrefix(kv, "LC_") && !strings.HasPrefix(kv, "LANG") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	return cmd
}

func (t toolbox) version(ctx context.Context, dir string) (string, error) {
	var out strings.Builder
	cmd := t.command(dir, "postgres", "--version")
	cmd.Stdout = &out
	proc, err := spawn(cmd, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	err = proc.wait(ctx)
	return strings.TrimSpace(out.String()), err
}

// canEnter reports whether the server's user can work in dir, by trying: permissions have more to them than mode bits.
func (t toolbox) canEnter(ctx context.Context, dir string) error {
	if !t.account.other {
		return nil
	}
	_, err := t.version(ctx, dir)
	return err
}

// run runs a program to its end. Its output is in the error if it fails.
func (t toolbox) run(ctx context.Context, log *slog.Logger, dir string, stdin io.Reader, name string, args ...string) error {
	cmd := t.command(dir, name, args...)
	cmd.Stdin = stdin
	proc, err := spawn(cmd, log)
	if err != nil {
		return err
	}
	if err := proc.wait(ctx); err != nil {
		return fmt.Errorf("%s: %w. It said:\n%s", name, err, proc.out.last())
	}
	return nil
}
