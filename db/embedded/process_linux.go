package embedded

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

// kernelWatches: the kernel tells a child when its parent is gone.
const kernelWatches = true

func setDeathSignal(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

// isServer reports whether a living process is the server of a data directory. A server works in its data directory,
// and its name tells it from a shell that somebody opened there. A zombie works nowhere, so it is none.
func isServer(pid int, data string) bool {
	cwd, err1 := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	dir, err2 := os.Stat(data)
	if err1 != nil || err2 != nil || !os.SameFile(cwd, dir) {
		return false
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	name = bytes.TrimSpace(name)
	return err == nil && (string(name) == "postgres" || string(name) == "postmaster")
}
