//go:build unix

package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// account is the user that the server runs as.
type account struct {
	name  string
	uid   uint32
	gid   uint32
	other bool // another than the user of this process
}

// accountFor chooses the user to run as: ourselves, or if we are root, somebody else, since Postgres refuses root.
func accountFor(c cluster) (account, error) {
	if os.Geteuid() != 0 {
		if c.owner != nil && *c.owner != os.Geteuid() {
			return account{}, fmt.Errorf("the data directory belongs to uid %d, and Postgres runs only as its owner; "+
				"run as that user, or as root, or choose another directory", *c.owner)
		}
		return account{}, nil
	}
	var candidates []*user.User
	if c.owner != nil && *c.owner != 0 {
		owner, err := user.LookupId(strconv.Itoa(*c.owner))
		if err != nil {
			return account{}, fmt.Errorf("the owner of the data directory: %w", err)
		}
		candidates = append(candidates, owner)
	} else {
		for _, name := range []string{"postgres", "_postgres", "nobody"} {
			if u, err := user.Lookup(name); err == nil {
				candidates = append(candidates, u)
			}
		}
	}
	for _, u := range candidates {
		// Signed, and cut to 32 bits: the uid of nobody is -2 on macOS.
		uid, err1 := strconv.ParseInt(u.Uid, 10, 64)
		gid, err2 := strconv.ParseInt(u.Gid, 10, 64)
		if errors.Join(err1, err2) == nil && uid != 0 {
			return account{name: u.Username, uid: uint32(uid), gid: uint32(gid), other: true}, nil //nolint:gosec // cut on purpose
		}
	}
	return account{}, errors.New("no user to run Postgres as: it refuses root, and there is neither a user postgres nor a user nobody; " +
		"make one, or start as another user")
}

// own gives a file to the server's user.
func (a account) own(path string) error {
	if !a.other {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

func (a account) suffix() string {
	if !a.other {
		return ""
	}
	return " as user " + a.name
}

func (a account) sysProcAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a.other {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	setDeathSignal(attr, shutdownSignals[shutdownFast])
	return attr
}

var shutdownSignals = map[shutdown]syscall.Signal{
	shutdownFast:      syscall.SIGINT,
	shutdownImmediate: syscall.SIGQUIT,
	shutdownKill:      syscall.SIGKILL,
}

func sendShutdown(_ string, p *os.Process, how shutdown) error { return p.Signal(shutdownSignals[how]) }

// watch has a shell tell a process to shut down when ours ends, on systems whose kernel does not offer to. The shell
// reads from a pipe that nobody writes to, and that only our end closes. The returned function calls it off.
func watch(pid int) (unwatch func(), err error) {
	cmd := exec.Command("/bin/sh", "-c", `read -r _; kill -INT "$0"`, strconv.Itoa(pid)) //nolint:gosec,noctx // a number
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		// In this order: the pid may belong to somebody else by now, so the shell must not see the pipe close.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}, nil
}

func ownerOf(info fs.FileInfo) *int {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	uid := int(stat.Uid)
	return &uid
}

// isMine keeps a sweep, which may run as root, away from what others put into a shared directory.
func isMine(info fs.FileInfo) bool {
	owner := ownerOf(info)
	return owner != nil && *owner == os.Geteuid()
}

func openLocked(path string, flags int) (*os.File, error) {
	file, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errLocked
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// syncDir makes a rename in a directory last through a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
