package embedded

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// On Windows this package compiles and starts servers, and is not tested. Orphans are left to Postgres, which refuses to
// start beside one.

const kernelWatches = true // nobody does, and there is no shell to stand in

type account struct {
	name  string
	other bool
}

func accountFor(cluster) (account, error) { return account{}, nil }

func (account) own(string) error { return nil }

func (account) suffix() string { return "" }

func (account) sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// sendShutdown goes through pg_ctl, because Windows has no signals and Postgres makes its own.
func sendShutdown(bin string, p *os.Process, how shutdown) error {
	names := map[shutdown]string{shutdownFast: "INT", shutdownImmediate: "QUIT"}
	if bin == "" || names[how] == "" {
		return p.Kill()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, filepath.Join(bin, "pg_ctl"), "kill", names[how], strconv.Itoa(p.Pid)).Run() //nolint:gosec // ours
}

func watch(int) (func(), error) { return func() {}, nil }

func isServer(int, string) bool { return false }

func ownerOf(fs.FileInfo) *int { return nil }

func isMine(fs.FileInfo) bool { return true }

const errorSharingViolation = syscall.Errno(32)

// openLocked opens the file for nobody else, which Windows takes as a lock. The holder's pid cannot be read then.
func openLocked(path string, flags int) (*os.File, error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	var mode uint32 = syscall.OPEN_EXISTING
	if flags&os.O_CREATE != 0 {
		mode = syscall.OPEN_ALWAYS
	}
	handle, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil, mode, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, errorSharingViolation) {
		return nil, errLocked
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(handle), path), nil
}

func syncDir(string) error { return nil }
