package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// downloads are the builds that the library knows, one for each major version that we support.
var downloads = map[int]embeddedpostgres.PostgresVersion{
	15: embeddedpostgres.V15,
	16: embeddedpostgres.V16,
	17: embeddedpostgres.V17,
	18: embeddedpostgres.V18,
}

const newestMajor = 18

// cacheDir is where downloaded binaries stay. For root it is not the home directory, which the server's user cannot enter.
func cacheDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/holdfast", nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "holdfast"), err
}

// download returns a directory with the binaries of a major version, or of the newest for 0. It keeps what it fetched.
func (m machine) download(ctx context.Context, major int) (string, error) {
	version, ok := downloads[cmp.Or(major, newestMajor)]
	if !ok {
		return "", fmt.Errorf("there is no download of Postgres %d", major)
	}
	cache, err := m.cacheDir()
	if err != nil {
		return "", err
	}
	home := filepath.Join(cache, fmt.Sprintf("postgres-%s-%s-%s", version, runtime.GOOS, runtime.GOARCH))
	bin := filepath.Join(home, "bin")
	if complete(bin) {
		return bin, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil { //nolint:gosec // programs for anybody to run
		return "", err
	}
	// Fetched beside its place and moved there whole: the library takes a half-unpacked directory for a good one.
	work, err := os.MkdirTemp(cache, "download-*")
	if err != nil {
		return "", err
	}
	// The library takes no context. When ours is over it goes on by itself until its own request ends, and the
	// directory is removed only then.
	fetched := make(chan error, 1)
	go func() {
		err := m.fetch(work, home, version)
		fetched <- errors.Join(err, os.RemoveAll(work))
	}()
	select {
	case err = <-fetched:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return "", err
	}
	return bin, nil
}

// fetch unpacks the binaries into home, working in the directory work.
//
// The library has no call for this: its one way in is Start, which fetches, makes a data directory and runs it, all as the
// current user, and refuses root. So it is handed a data directory that passes for an existing one and cannot be
// run. It fetches and unpacks, fails to start that, and leaves us what we came for.
func (m machine) fetch(work, home string, version embeddedpostgres.PostgresVersion) error {
	unpacked, decoy := filepath.Join(work, "unpacked"), filepath.Join(work, "data")
	if err := os.Mkdir(decoy, 0o700); err != nil {
		return err
	}
	var major int
	if _, err := fmt.Sscanf(string(version), "%d.", &major); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(decoy, "PG_VERSION"), []byte(strconv.Itoa(major)), 0o600); err != nil {
		return err
	}
	config := embeddedpostgres.DefaultConfig().Version(version).Port(0).Logger(io.Discard).
		CachePath(filepath.Join(work, "archive")).RuntimePath(filepath.Join(work, "runtime")).
		BinariesPath(unpacked).DataPath(decoy)
	if m.repository != "" {
		config = config.BinaryRepositoryURL(m.repository)
	}
	postgres := embeddedpostgres.NewDatabase(config)
	err := postgres.Start()
	if err == nil {
		return errors.Join(errors.New("an empty data directory was started"), postgres.Stop())
	}
	if !complete(filepath.Join(unpacked, "bin")) {
		return err
	}
	if err := os.Rename(unpacked, home); err != nil && !complete(filepath.Join(home, "bin")) {
		return err // and otherwise another process was first
	}
	return nil
}

func complete(bin string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if runtime.GOOS == "windows" {
			name += ".exe"
		}
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return false
		}
	}
	return true
}
