package load

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// What Linux's /proc tells of processes. Elsewhere these functions fail, and the figures are left out.

// tick is the unit of the times in /proc: USER_HZ, which is 100 on every architecture that Go supports.
const tick = 10 * time.Millisecond

// processStat is what of /proc/<pid>/stat is of interest.
type processStat struct {
	parent int
	// own is the CPU time of the process, reaped that of the children that it has waited for.
	own, reaped time.Duration
}

// CPUTime is the CPU time of a process and all its descendants, also of those that have ended and been waited for.
func CPUTime(pid int) (time.Duration, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	all := map[int]processStat{}
	for _, e := range entries {
		p, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// A process that has just ended has no stat any more.
		if s, err := readStat(p); err == nil {
			all[p] = s
		}
	}
	if _, ok := all[pid]; !ok {
		return 0, fmt.Errorf("there is no process %d", pid)
	}
	return treeTime(all, pid), nil
}

func treeTime(all map[int]processStat, root int) time.Duration {
	sum := all[root].own + all[root].reaped
	for pid, s := range all {
		if s.parent == root {
			sum += treeTime(all, pid)
		}
	}
	return sum
}

func readStat(pid int) (processStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processStat{}, err
	}
	return parseStat(b)
}

// parseStat reads a line of /proc/<pid>/stat. The command's name may hold spaces and parentheses, so fields are
// counted from its end.
func parseStat(line []byte) (processStat, error) {
	bad := errors.New("not a line of /proc/<pid>/stat")
	end := bytes.LastIndexByte(line, ')')
	if end < 0 {
		return processStat{}, bad
	}
	fields := strings.Fields(string(line[end+1:]))
	const state = 3 // the number of fields[0] in the manual, proc(5)
	number := func(field int) (n int64, err error) {
		if field-state >= len(fields) {
			return 0, bad
		}
		return strconv.ParseInt(fields[field-state], 10, 64)
	}
	var values [5]int64
	for i, field := range []int{4, 14, 15, 16, 17} { // ppid, utime, stime, cutime, cstime
		var err error
		if values[i], err = number(field); err != nil {
			return processStat{}, bad
		}
	}
	return processStat{
		parent: int(values[0]),
		own:    time.Duration(values[1]+values[2]) * tick,
		reaped: time.Duration(values[3]+values[4]) * tick,
	}, nil
}

// OwnCPUTime is the CPU time of a process without that of its children.
func OwnCPUTime(pid int) (time.Duration, error) {
	s, err := readStat(pid)
	return s.own, err
}

// MachineCPUTime is the CPU time that was spent on this machine by anybody, and what a virtual machine's host took.
func MachineCPUTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseMachine(string(b))
}

// parseMachine reads the first line of /proc/stat: cpu user nice system idle iowait irq softirq steal …
func parseMachine(stat string) (sum time.Duration, err error) {
	fields := strings.Fields(stat)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, errors.New("not a /proc/stat")
	}
	for _, i := range []int{1, 2, 3, 8} {
		ticks, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ticks) * tick
	}
	return sum, nil
}

// Resident is the memory of a process that is in RAM, in bytes.
func Resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parseResident(string(b))
}

func parseResident(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmRSS in /proc/<pid>/status")
}
