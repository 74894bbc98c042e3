package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	dataName     = "data"
	passwordName = "password"
	lockName     = "lock"
	initPattern  = "init-*"
	// tempPattern names the directories of ephemeral servers. sweep removes what matches it and nobody holds.
	tempPattern = "holdfast-postgres-*"
)

// cluster is what can be told of a data directory without starting it.
type cluster struct {
	major int  // 0 when there is none yet
	owner *int // uid; nil when there is none yet, or where files have no uid
}

// openCluster looks at the data directory under home, which need not exist.
func openCluster(home string) (cluster, error) {
	data := filepath.Join(home, dataName)
	info, err := os.Stat(data)
	if errors.Is(err, fs.ErrNotExist) {
		return cluster{}, nil
	}
	if err != nil {
		return cluster{}, err
	}
	c := cluster{owner: ownerOf(info)}
	version, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if errors.Is(err, fs.ErrPermission) {
		return cluster{}, fmt.Errorf("the data directory %s belongs to another user; it was made by a run as root, "+
			"so run as root again or choose another directory: %w", data, err)
	}
	if err != nil {
		return cluster{}, fmt.Errorf("%s is not a Postgres data directory: %w", data, err)
	}
	c.major, err = strconv.Atoi(strings.TrimSpace(string(version)))
	if err != nil {
		return cluster{}, fmt.Errorf("the version of the data directory %s: %w", data, err)
	}
	return c, nil
}

// home returns dir, made if missing and with symbolic links resolved, or the place that stands in for it when the
// server's user cannot enter it.
func (m machine) home(ctx context.Context, dir string, tools toolbox, log *slog.Logger) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// A link to nowhere is answered here too, with "file exists": its target may be on a disk that is not
	// mounted, and an empty database in its place would be a bad surprise.
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the server's user must pass; data itself is 0700
		return "", err
	}
	home, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	cannot := tools.canEnter(ctx, home)
	if cannot == nil {
		return home, nil
	}
	// Removes the directory only if it is empty and no link: what has content is somebody's, and stays.
	if home != dir || os.Remove(dir) != nil {
		return "", fmt.Errorf("user %s, as which Postgres runs when root starts it, cannot enter %s; let it pass "+
			"with chmod o+x on that directory and those above it, or choose another: %w", tools.account.name, home, cannot)
	}
	if err := os.MkdirAll(m.stateDir, 0o755); err != nil { //nolint:gosec // as above
		return "", err
	}
	home, err = os.MkdirTemp(m.stateDir, "postgres-*")
	if err != nil {
		return "", err
	}
	// Said once more because the umask takes away, and MkdirTemp gives to nobody else.
	if err := errors.Join(os.Chmod(m.stateDir, 0o755), os.Chmod(home, 0o711)); err != nil { //nolint:gosec // as above
		return "", err
	}
	if err := tools.canEnter(ctx, home); err != nil {
		return "", fmt.Errorf("user %s can enter neither %s nor %s: %w", tools.account.name, dir, home, err)
	}
	if err := os.Symlink(home, dir); err != nil {
		return "", err
	}
	log.WarnContext(ctx, "the user that Postgres runs as cannot enter the data directory; it is elsewhere, behind a link",
		"user", tools.account.name, "link", dir, "dir", home)
	return filepath.EvalSymlinks(home)
}

// temporaryHome makes a directory for an ephemeral server and locks it.
func (m machine) temporaryHome(ctx context.Context, tools toolbox) (string, *dirLock, error) {
	var errs []error
	for _, parent := range m.tempDirs {
		home, err := os.MkdirTemp(parent, tempPattern)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		lock, err := func() (*dirLock, error) {
			if err := os.Chmod(home, 0o711); err != nil { //nolint:gosec // the server's user must pass; data is 0700
				return nil, err
			}
			if err := tools.canEnter(ctx, home); err != nil {
				return nil, fmt.Errorf("user %s cannot enter %s: %w", tools.account.name, home, err)
			}
			if home, err = filepath.EvalSymlinks(home); err != nil {
				return nil, err
			}
			return lockDir(ctx, home)
		}()
		if err == nil {
			return home, lock, nil
		}
		errs = append(errs, err, os.RemoveAll(home))
	}
	return "", nil, fmt.Errorf("no temporary directory for the server: %w", errors.Join(errs...))
}

// sweep removes what ephemeral servers of killed processes left: their directories and, where nothing told them,
// the servers themselves. It is housekeeping, so what it cannot remove it leaves for another time.
func sweep(ctx context.Context, parents []string, log *slog.Logger) {
	for _, parent := range parents {
		homes, _ := filepath.Glob(filepath.Join(parent, tempPattern))
		for _, home := range homes {
			info, err := os.Lstat(home)
			if err != nil || !info.IsDir() || !isMine(info) {
				continue
			}
			// A directory without a lock file is one that is being made this moment.
			lock, err := tryLock(home, os.O_RDWR)
			if err != nil {
				continue
			}
			_, err = stopOrphan(ctx, filepath.Join(home, dataName), "", shutdownImmediate, log)
			if err == nil {
				err = os.RemoveAll(home)
			}
			if err = errors.Join(err, lock.release()); err != nil {
				log.WarnContext(ctx, "an old temporary server could not be swept", "dir", home, "error", err)
			}
		}
	}
}

// prepare makes the data directory if there is none, and sees to it that its version and password are known.
func (s *Server) prepare(ctx context.Context) error {
	leftovers, _ := filepath.Glob(filepath.Join(s.home, initPattern))
	for _, dir := range leftovers {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	c, err := openCluster(s.home)
	if err != nil {
		return err
	}
	if c.major != 0 && c.major != s.tools.major {
		return fmt.Errorf("%w: %s is of Postgres %d, and the binaries in %s are Postgres %d; name a directory with "+
			"those of Postgres %d in HOLDFAST_POSTGRES_BIN, or carry the data over with pg_upgrade",
			ErrVersion, s.dataDir(), c.major, s.tools.bin, s.tools.major, c.major)
	}
	file := filepath.Join(s.home, passwordName)
	password, err := os.ReadFile(file)
	switch {
	case err == nil && len(password) > 0:
		s.password = string(password)
	case err == nil || errors.Is(err, fs.ErrNotExist):
		s.password = newPassword()
		if c.major != 0 {
			if err := s.setPassword(ctx); err != nil {
				return err
			}
		}
		if err := writeSynced(file, s.password); err != nil {
			return err
		}
	default:
		return err
	}
	if c.major == 0 {
		return s.initialise(ctx)
	}
	return nil
}

// initialise runs initdb beside the data directory and moves the result into place, so that an initdb that was cut
// short is never taken for a database.
func (s *Server) initialise(ctx context.Context) error {
	staging, err := os.MkdirTemp(s.home, initPattern)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(staging) }()
	data, secret := filepath.Join(staging, dataName), filepath.Join(staging, passwordName)
	if err := os.WriteFile(secret, []byte(s.password), 0o600); err != nil {
		return err
	}
	for _, path := range []string{secret, staging} {
		if err := s.tools.account.own(path); err != nil {
			return err
		}
	}
	args := []string{
		"--pgdata=" + data, "--username=" + superuser, "--pwfile=" + secret,
		"--auth=scram-sha-256", "--encoding=UTF8",
		// The one collation that every platform has and no upgrade of its C library reorders.
		"--locale=C",
		"--no-instructions",
	}
	if s.ephemeral {
		args = append(args, "--no-sync")
	}
	if err := s.tools.run(ctx, s.log, s.home, nil, "initdb", args...); err != nil {
		return err
	}
	if err := os.Rename(data, s.dataDir()); err != nil {
		return err
	}
	return syncDir(s.home)
}

// setPassword gives the superuser a new password when the file with the old one is gone. Who can write the data
// directory can do anything to the database anyway; this is the way that needs no password.
func (s *Server) setPassword(ctx context.Context) error {
	s.log.WarnContext(ctx, "the superuser's password file is gone; a new password is set", "dir", s.home)
	sql := fmt.Sprintf("ALTER ROLE %s PASSWORD '%s'\n", superuser, s.password)
	return s.tools.run(ctx, s.log, s.home, bytes.NewBufferString(sql),
		"postgres", "--single", "-D", s.dataDir(), maintenance)
}

// writeSynced has the password on disk before there is a database that needs it.
func writeSynced(path, content string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Sync(), f.Close())
}
