package footprint

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Of a program's mappings only those may be dropped that can be read again from the file.
func TestCleanMappings(t *testing.T) {
	t.Parallel()
	const smaps = `00400000-00401000 r--p 00000000 fe:00 24 /opt/holdfast
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
00401000-00500000 r-xp 00001000 fe:00 24 /opt/holdfast
Rss:                 900 kB
Anonymous:             0 kB
Swap:                  0 kB
00500000-00600000 r--p 00100000 fe:00 24 /opt/holdfast
Rss:                1024 kB
Anonymous:             8 kB
00580000-00590000 r--p 00180000 fe:00 24 /opt/holdfast
Anonymous:             0 kB
Swap:                  4 kB
00600000-00601000 rw-p 00200000 fe:00 24 /opt/holdfast
Anonymous:             0 kB
Swap:                  0 kB
00601000-00602000 r--p 00000000 fe:00 25 /opt/lib/opt/holdfast
Anonymous:             0 kB
Swap:                  0 kB
00700000-00800000 rw-p 00000000 00:00 0
Anonymous:             0 kB
Swap:                  0 kB
`
	want := []mapping{{0x400000, 0x1000}, {0x401000, 0xff000}}
	if diff := cmp.Diff(want, cleanMappings(strings.NewReader(smaps), "/opt/holdfast"), cmp.AllowUnexported(mapping{})); diff != "" {
		t.Error(diff)
	}
}

// What is given back leaves the memory, and is read again where it is needed.
func TestReleaseProgram(t *testing.T) {
	before := programResident()
	releaseProgram()
	if after := programResident(); after >= before {
		t.Errorf("%d bytes of files were in memory, then %d", before, after)
	}
}
