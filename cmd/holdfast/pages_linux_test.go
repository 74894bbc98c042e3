package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCleanPages(t *testing.T) {
	t.Parallel()
	const smaps = `00400000-015e9000 r-xp 00000000 fe:00 10217922                           /opt/hold fast
Rss:                5540 kB
Private_Dirty:        12 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
015e9000-02d6a000 r--p 011e9000 fe:00 10217922                           /opt/hold fast
Anonymous:             0 kB
Swap:                  4 kB
02d6a000-02e39000 rw-p 0296a000 fe:00 10217922                           /opt/hold fast
Anonymous:             0 kB
c000000000-c004000000 rw-p 00000000 00:00 0
Anonymous:          1024 kB
7f0000000000-7f0000001000 r--p 00000000 fe:00 10217922                   /opt/hold fast
Anonymous:             4 kB
7f0000002000-7f0000003000 r--p 00000000 fe:00 10217923                   /opt/other
Anonymous:             0 kB
7f0000004000-7f0000005000 r--p 00000000 fe:00 10217922                   /opt/hold fast
Anonymous:             0 kB
`
	got, err := cleanPages(strings.NewReader(smaps), "/opt/hold fast")
	if err != nil {
		t.Fatal(err)
	}
	want := []pageRange{{0x400000, 0x15e9000}, {0x7f0000004000, 0x7f0000005000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(pageRange{})); diff != "" {
		t.Error(diff)
	}
	if _, err := cleanPages(strings.NewReader("no addresses in this line\n"), ""); err == nil {
		t.Error("what is no smaps is understood")
	}
}

// The program goes on after its pages were given back.
func TestDropStartPages(t *testing.T) {
	t.Parallel()
	if err := dropStartPages(); err != nil {
		t.Error(err)
	}
}
