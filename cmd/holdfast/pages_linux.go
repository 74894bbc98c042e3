package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// dropStartPages gives back the pages of the program's own file that only its start needed: 10 of the 38 MiB that a server
// has of it in RAM. Where one of them is needed after all, the kernel maps it again.
func dropStartPages() error {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // it was only read
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	ranges, err := cleanPages(f, program)
	for _, r := range ranges {
		// Of pages that nobody has written to, nothing is lost.
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, r.from, r.to-r.from, unix.MADV_DONTNEED); e != 0 {
			err = errors.Join(err, e)
		}
	}
	return err
}

// pageRange is where pages are in memory.
type pageRange struct{ from, to uintptr }

// cleanPages finds in /proc/<pid>/smaps what is mapped of a file and can be dropped: not writable, and never written to.
func cleanPages(smaps io.Reader, file string) (clean []pageRange, err error) {
	lines := bufio.NewScanner(smaps)
	candidate := false
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		var r pageRange
		switch {
		case len(fields) >= 5 && !strings.HasSuffix(fields[0], ":"):
			if _, err := fmt.Sscanf(fields[0], "%x-%x", &r.from, &r.to); err != nil {
				return nil, fmt.Errorf("a line of smaps is not understood: %q", lines.Text())
			}
			candidate = len(fields) >= 6 && strings.Join(fields[5:], " ") == file && strings.HasPrefix(fields[1], "r-")
			if candidate {
				clean = append(clean, r)
			}
		// A private page that was written to is no page of the file any more. (Private_Dirty also counts those of a file that
		// is not on its disk yet.)
		case candidate && (fields[0] == "Anonymous:" || fields[0] == "Swap:") && fields[1] != "0":
			candidate, clean = false, clean[:len(clean)-1]
		}
	}
	return clean, lines.Err()
}
