package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestSoakState(t *testing.T) {
	t.Parallel()
	s, err := parseSoakState(strings.NewReader("# HELP x\nprocess_resident_memory_bytes 1.5e+06\ngo_goroutines 12\nother{a=\"b\"} 3\nholdfast_watches 3\ngo_memstats_heap_inuse_bytes 7\n"))
	if want := (soakState{1.5e6, 7, 12, 3}); err != nil || s != want {
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
		"a little":   {soakState{110 << 20, 70 << 20, 1100, 0}, ""},
		"memory":     {soakState{130 << 20, 60 << 20, 1000, 0}, "memory grew"},
		"heap":       {soakState{100 << 20, 90 << 20, 1000, 0}, "heap grew"},
		"goroutines": {soakState{100 << 20, 60 << 20, 1300, 0}, "goroutines grew"},
		"streams":    {soakState{100 << 20, 60 << 20, 1300, 100}, ""},
		"both":       {soakState{100 << 20, 60 << 20, 1400, 100}, "goroutines grew"},
	} {
		err := grown(base, c.after)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever the length and the number of servers, each thing ends and all are there again before the end.
func TestSoakPlan(t *testing.T) {
	t.Parallel()
	for _, d := range []time.Duration{30 * time.Second, time.Minute, 10 * time.Minute, 24 * time.Hour} {
		for servers := 1; servers <= 9; servers++ {
			interval, faults := soakPlan(d, servers)
			ended := map[int]int{}
			for _, f := range faults {
				ended[f]++
			}
			if after := d - interval*time.Duration(len(faults)); after < interval || interval < 5*time.Second {
				t.Errorf("%v, %d servers: %v remain after %d faults", d, servers, after, len(faults))
			}
			if ended[0] != 1 || ended[soakPostgres] == 0 || d >= time.Minute && servers <= 3 && len(ended) != servers+1 {
				t.Errorf("%v, %d servers: %v", d, servers, ended)
			}
		}
	}
}

// What a server that is dead does not tell is no failure, and each life is looked at by itself.
func TestSoakLives(t *testing.T) {
	t.Parallel()
	goroutines := 100
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "go_goroutines %d\n", goroutines)
	}))
	lives := &soakLives{}
	for range 2 {
		lives.begin(server.URL)
		for range 30 {
			if err := lives.sample(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		lives.begin("")
		if err := lives.sample(t.Context()); err != nil {
			t.Error(err)
		}
		goroutines = 400 // another life's own level
	}
	lives.begin(server.URL)
	server.Close()
	if lives.sample(t.Context()) == nil {
		t.Error("a server that lives does not answer, and nobody noticed")
	}
	var log strings.Builder
	if err := lives.grown(&log); err != nil || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("%v, %s", err, log.String())
	}
}
