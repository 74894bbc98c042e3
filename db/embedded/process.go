package embedded

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// shutdown is one of Postgres's ways to end.
type shutdown int

const (
	shutdownFast      shutdown = iota // roll back, disconnect, checkpoint: the next start has nothing to do
	shutdownImmediate                 // just end: the next start recovers from the log
	shutdownKill                      // not Postgres's way at all: backends outlive it for a moment
)

// immediateTimeout is longer than the 5 seconds after which a postmaster kills what does not obey it.
const immediateTimeout = 7 * time.Second

// process is a child process, followed until it ends.
type process struct {
	cmd  *exec.Cmd
	out  *lineLog
	done chan struct{}
	err  error // how it ended; read it only after done
}

// spawn starts a program in a process group of its own, so that Ctrl-C in a terminal reaches it through us, when we are
// done with it, and not at the same time as us. If we die, it is told to shut down.
func spawn(cmd *exec.Cmd, log *slog.Logger) (*process, error) {
	p := &process{cmd: cmd, out: &lineLog{log: log}, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.out
	}
	cmd.Stderr = p.out
	// A killed postgres leaves backends that hold its output open; the last of them is not worth waiting for.
	cmd.WaitDelay = 3 * time.Second

	started := make(chan error, 1)
	go func() {
		// The kernel sends the death signal when the parent *thread* ends, not the process, and Go ends threads as
		// it likes. So this thread is kept for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		defer close(p.done)
		var unwatch func()
		if !kernelWatches {
			var err error
			if unwatch, err = watch(cmd.Process.Pid); err != nil {
				log.Warn("postgres will not be told if this process is killed", "error", err)
			}
		}
		started <- nil
		p.err = cmd.Wait()
		if unwatch != nil {
			unwatch()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// wait returns how the process ended. If ctx is over first, it is shut down.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return errors.Join(ctx.Err(), p.stop(ctx, "", shutdownFast))
	}
}

// stop ends the process, as gently as how says and less gently when that takes too long.
func (p *process) stop(ctx context.Context, bin string, how shutdown) error {
	for ; how <= shutdownKill; how++ {
		if p.obeys(ctx, bin, how) {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end, not even when killed", p.cmd.Process.Pid)
}

// obeys tells the process to shut down and whether it did so in time.
func (p *process) obeys(ctx context.Context, bin string, how shutdown) bool {
	patience := stopTimeout
	if how != shutdownFast {
		// Past its patience the caller gives these seconds all the same: the other way is to leave a server behind.
		ctx, patience = context.WithoutCancel(ctx), immediateTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-p.done:
		return true
	default:
	}
	if err := sendShutdown(bin, p.cmd.Process, how); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return false
	}
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// stopOrphan ends a server that runs on a data directory although nobody holds its lock, as the caller does now.
// It returns the pid that a dead server left in postmaster.pid, or 0.
func stopOrphan(ctx context.Context, data, bin string, how shutdown, log *slog.Logger) (stale int, err error) {
	pid, err := readPID(data)
	if pid == 0 || err != nil {
		return 0, err
	}
	orphan, err := os.FindProcess(pid)
	// The handle comes first: whatever takes the pid over after the check is not what gets the signal.
	if err != nil || !isServer(pid, data) {
		return pid, nil
	}
	defer func() { _ = orphan.Release() }()
	log.WarnContext(ctx, "a server outlived the process that started it; shutting it down", "pid", pid, "dir", data)

	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; how < shutdownKill; how++ {
		if err := sendShutdown(bin, orphan, how); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return 0, fmt.Errorf("shut down the orphaned server %d of %s: %w", pid, data, err)
		}
		patience := stopTimeout
		if how == shutdownImmediate {
			patience = immediateTimeout
		}
		for late := time.Now().Add(patience); time.Now().Before(late); {
			if !isServer(pid, data) {
				return readPID(data)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return 0, fmt.Errorf("the orphaned server %d of %s is still shutting down: %w", pid, data, ctx.Err())
			}
		}
	}
	return 0, fmt.Errorf("the orphaned server %d of %s does not end; kill it and start again", pid, data)
}

// readPID returns the server's pid from the first line of postmaster.pid, or 0 when there is no such file.
func readPID(data string) (int, error) {
	content, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(content, []byte("\n"))
	pid, err := strconv.Atoi(strings.TrimSpace(string(line)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s/postmaster.pid has no pid in its first line but %q; remove it if no server runs", data, line)
	}
	return pid, nil
}

// lockDir takes a directory's lock. It waits a little for it, because the kernel gives back the lock of a killed process
// only after the kill has returned.
func lockDir(ctx context.Context, home string) (*dirLock, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(2 * time.Second); ; {
		lock, err := tryLock(home, os.O_RDWR|os.O_CREATE)
		if !errors.Is(err, errLocked) {
			return lock, err
		}
		if time.Now().After(late) {
			holder, _ := os.ReadFile(filepath.Join(home, lockName))
			return nil, fmt.Errorf("%w: process %s runs a server in %s", ErrInUse, bytes.TrimSpace(holder), home)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

var errLocked = errors.New("locked by another process")

// dirLock is a held lock. The kernel gives it back when the process dies, however it dies, which is what makes the lock
// tell an orphaned server from one in use.
type dirLock struct{ file *os.File }

// tryLock takes the lock or returns errLocked at once.
func tryLock(home string, flags int) (*dirLock, error) {
	path := filepath.Join(home, lockName)
	file, err := openLocked(path, flags)
	if err != nil {
		return nil, err
	}
	// Between the opening and the locking a sweep may have removed the file, and a lock on a removed file keeps nobody out.
	ours, err1 := file.Stat()
	there, err2 := os.Stat(path)
	if err := errors.Join(err1, err2); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if !os.SameFile(ours, there) {
		return nil, errors.Join(errLocked, file.Close())
	}
	lock := &dirLock{file}
	// For the reader of the error message only.
	if err := errors.Join(file.Truncate(0), writeAt(file, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, errors.Join(err, lock.release())
	}
	return lock, nil
}

func writeAt(f io.WriterAt, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func (l *dirLock) release() error { return l.file.Close() }

// lineLog passes a process's output on to a logger, line by line, and remembers the last lines.
type lineLog struct {
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	partial []byte
	lines   []string
}

// rememberedLines is what goes into an error: the cause is as a rule among the last three or four.
const rememberedLines = 20

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, p...)
	for {
		n, line, err := bufio.ScanLines(l.partial, false)
		if n == 0 || err != nil {
			return len(p), err
		}
		l.lines = append(l.lines, string(line))
		if len(l.lines) > rememberedLines {
			l.lines = slices.Delete(l.lines, 0, len(l.lines)-rememberedLines)
		}
		l.log.Debug("postgres", "line", string(line))
		l.partial = l.partial[n:]
	}
}

// last returns the remembered lines, indented.
func (l *lineLog) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	if len(l.partial) > 0 {
		lines = append(slices.Clone(lines), string(l.partial))
	}
	if len(lines) == 0 {
		return "  (nothing)"
	}
	return "  " + strings.Join(lines, "\n  ")
}
