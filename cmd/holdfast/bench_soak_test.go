package main

import (
	"strings"
	"testing"
)

func TestSoakState(t *testing.T) {
	t.Parallel()
	s, err := parseSoakState(strings.NewReader("# HELP x\nprocess_resident_memory_bytes 1.5e+06\ngo_goroutines 12\nother{a=\"b\"} 3\ngo_memstats_heap_inuse_bytes 7\n"))
	if want := (soakState{1.5e6, 7, 12}); err != nil || s != want {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := parseSoakState(strings.NewReader("go_goroutines many\n")); err == nil {
		t.Error("a count that is none is taken")
	}
	var states []soakState
	for i := range 9 {
		states = append(states, soakState{goroutines: float64(i)})
	}
	if middle, last := soakThirds(states); middle.goroutines != 4 || last.goroutines != 7 {
		t.Errorf("%v, %v", middle, last)
	}
}

func TestSoakGrowth(t *testing.T) {
	t.Parallel()
	base := soakState{resident: 100 << 20, heap: 60 << 20, goroutines: 1000}
	for name, c := range map[string]struct {
		after soakState
		says  string
	}{
		"flat":       {base, ""},
		"a little":   {soakState{110 << 20, 70 << 20, 1100}, ""},
		"memory":     {soakState{130 << 20, 60 << 20, 1000}, "memory grew"},
		"heap":       {soakState{100 << 20, 90 << 20, 1000}, "heap grew"},
		"goroutines": {soakState{100 << 20, 60 << 20, 1300}, "goroutines grew"},
	} {
		err := grown(base, c.after)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
