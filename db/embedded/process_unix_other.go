//go:build unix && !linux

package embedded

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// kernelWatches: this kernel does not tell a child when its parent is gone.
const kernelWatches = false

func setDeathSignal(*syscall.SysProcAttr, syscall.Signal) {}

// isServer reports whether a living process is the server of a data directory, by its command line: this package
// starts servers with the directory as an argument of its own.
func isServer(pid int, data string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output() //nolint:gosec // a number
	return err == nil && strings.Contains(string(out)+" ", " -D "+data+" ")
}
