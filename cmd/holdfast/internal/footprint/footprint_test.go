package footprint

import "testing"

// The more of the program is in memory, the less the collector gets: together they stay below 128 MB.
func TestLimit(t *testing.T) {
	t.Parallel()
	for resident, want := range map[int64]int64{0: 93 << 20, 20 << 20: 93 << 20, 28 << 20: 93 << 20, 35 << 20: 86 << 20} {
		if got := limitBeside(resident); got != want {
			t.Errorf("beside %d MiB it is %d MiB, want %d", resident>>20, got>>20, want>>20)
		}
		if resident >= program && limitBeside(resident)+resident >= 128_000_000 {
			t.Errorf("with %d MiB it is over 128 MB", resident>>20)
		}
	}
}
