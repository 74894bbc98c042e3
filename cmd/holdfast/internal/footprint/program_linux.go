package footprint

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// releaseProgram gives the pages of the program's own file back that only its start had need of: a quarter of what a
// server at rest has in memory. Those in use come back from the page cache one by one. It is done as well as may be:
// where it cannot be, nothing is lost but memory.
func releaseProgram() {
	program, err := os.Executable()
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer func() { _ = maps.Close() }()
	for _, m := range cleanMappings(maps, program) {
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, m.start, m.size, syscall.MADV_DONTNEED)
	}
}

// programResident is how many bytes of files, which is the program's and its libraries', are in memory; 0 where it is not known.
func programResident() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, line, _ := strings.Cut(string(status), "RssFile:")
	var kib int64
	if _, err := fmt.Sscan(line, &kib); err != nil {
		return 0
	}
	return kib << 10
}

type mapping struct{ start, size uintptr }

// cleanMappings finds in smaps (see proc(5)) where a file is mapped to be read only, with no page that differs from the
// file: such a page, as relocation leaves behind, could not be read again.
func cleanMappings(smaps io.Reader, file string) []mapping {
	var found []mapping
	var m mapping
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		line := lines.Text()
		fields := strings.Fields(line)
		if len(fields) >= 5 && !strings.HasSuffix(fields[0], ":") {
			var end uintptr
			m = mapping{}
			if _, err := fmt.Sscanf(fields[0], "%x-%x", &m.start, &end); err != nil || fields[1][1] == 'w' || !strings.HasSuffix(line, " "+file) {
				m = mapping{}
				continue
			}
			m.size = end - m.start
		}
		switch {
		case m.size == 0 || len(fields) != 3:
		case fields[0] == "Anonymous:" && fields[1] != "0":
			m = mapping{}
		case fields[0] == "Swap:" && fields[1] == "0": // which comes after it
			found = append(found, m)
		}
	}
	return found
}
