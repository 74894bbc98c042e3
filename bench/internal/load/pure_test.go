package load

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	livev1 "holdfast/gen/holdfast/live/v1"
)

// transcripts are the texts of the turns that frames make: what the user said and what the assistant said.
func transcripts(frames []*livev1.LiveFrame) []string {
	var user, assistant strings.Builder
	for _, f := range frames {
		type said struct {
			Text string `json:"text"`
		}
		var content struct {
			ServerContent struct {
				InputTranscription  said `json:"inputTranscription"`
				OutputTranscription said `json:"outputTranscription"`
			} `json:"serverContent"`
		}
		if err := json.Unmarshal([]byte(f.GetText()), &content); err != nil {
			return nil
		}
		user.WriteString(content.ServerContent.InputTranscription.Text)
		assistant.WriteString(content.ServerContent.OutputTranscription.Text)
	}
	return []string{user.String(), assistant.String()}
}

func TestStamp(t *testing.T) {
	t.Parallel()
	for _, s := range []Stamp{{}, {Writer: 999, Number: 123456, Sent: 90 * time.Minute}} {
		text := s.Text()
		if len(text) != textSize {
			t.Errorf("%q has %d bytes, not %d", text, len(text), textSize)
		}
		if got, ok := ParseStamp(text); !ok || got != s {
			t.Errorf("%q is parsed as %v, %v", text, got, ok)
		}
		for _, bad := range []string{"", text + " ", text[:50], strings.Replace(text, "w", "x", 1), "w1 m-1 t0 ", "w1 m1"} {
			if _, ok := ParseStamp(bad); ok {
				t.Errorf("%q is no text of ours", bad)
			}
		}
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	text := func(writer, number int) string { return Stamp{Writer: writer, Number: number}.Text() }
	// Two writers: the first had both messages acknowledged, the second one of two.
	ledgers := []*Ledger{{writer: 1, seqs: []int64{1, 3}}, {writer: 2, seqs: []int64{0, 2}}}
	good := []Stored{{1, text(1, 0)}, {2, text(2, 1)}, {3, text(1, 1)}}
	for _, tt := range []struct {
		name    string
		listed  []Stored
		ledgers []*Ledger
		want    string
	}{
		{name: "all there", listed: good},
		{name: "one of unknown outcome is there too", listed: append(slices.Clone(good), Stored{4, text(2, 0)})},
		{name: "lost at the end", listed: good[:2], want: "message 1 of writer 1, acknowledged at seq 3, is missing"},
		{name: "gap", listed: []Stored{good[0], good[2]}, want: "seq 3 follows seq 1"},
		{name: "twice", listed: append(slices.Clone(good), Stored{4, text(2, 1)}), want: "there twice"},
		{name: "elsewhere", listed: []Stored{good[0], {2, text(1, 1)}}, want: "was acknowledged at seq 3"},
		{name: "foreign", listed: append(slices.Clone(good), Stored{4, "hello"}), want: "nobody sent"},
		{name: "foreign writer", listed: append(slices.Clone(good), Stored{4, text(3, 0)}), want: "nobody sent"},
		{name: "never sent", listed: append(slices.Clone(good), Stored{4, text(1, 2)}), want: "nobody sent"},
		{
			name: "out of order", listed: []Stored{{1, text(1, 1)}, {2, text(1, 0)}},
			ledgers: []*Ledger{{writer: 1, seqs: []int64{2, 1}}}, want: "has seq 1, after one with seq 2",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.ledgers == nil {
				tt.ledgers = ledgers
			}
			err := Verify(tt.listed, tt.ledgers)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSchedule(t *testing.T) {
	t.Parallel()
	start := time.Unix(0, 0)
	var got []time.Duration
	for worker := range 2 {
		for due := range schedule(start, start.Add(2*time.Second), time.Second, worker, 2, 2) {
			if want := int(due.at.Sub(start)/(500*time.Millisecond)) - worker; worker == 0 && due.op != want%2 {
				t.Errorf("op %d at %v", due.op, due.at.Sub(start))
			}
			got = append(got, due.at.Sub(start))
		}
	}
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	want := []time.Duration{0, ms(500), ms(1000), ms(1500), ms(500), ms(1000), ms(1500)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestOpenLoopChargesStalls: one request that takes three seconds makes those behind it late, and they say so.
func TestOpenLoopChargesStalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		m := Open(t.Context(), Workload{Workers: 1, Duration: 5 * time.Second}, time.Second, func(ctx context.Context, _ int, _ time.Time) error {
			if calls++; calls == 2 {
				wait(ctx, time.Now().Add(3*time.Second))
			}
			return nil
		})[0]
		if l := m.Latency(); m.Count() != 5 || m.PerSecond() != 1 || l.P50.Round(10*time.Millisecond) != time.Second || l.Max.Round(10*time.Millisecond) != 3*time.Second {
			t.Errorf("%d requests, %g per second, %+v: want 5, latencies 0, 3, 2, 1 and 0 s", m.Count(), m.PerSecond(), l)
		}
	})
}

func TestClosedLoopLeavesWarmupOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := Closed(t.Context(), Workload{Workers: 2, Warmup: 2 * time.Second, Duration: 4 * time.Second}, func(ctx context.Context, _ int, _ time.Time) error {
			wait(ctx, time.Now().Add(400*time.Millisecond))
			return nil
		})
		if m.Count() != 20 || m.PerSecond() != 5 {
			t.Errorf("%d requests, %g per second, want 20 and 5", m.Count(), m.PerSecond())
		}
	})
}

func TestClosedLoopEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	m := Closed(ctx, Workload{Workers: 1, Duration: time.Hour}, func(context.Context, int, time.Time) error {
		cancel()
		return errors.New("interrupted")
	})
	if byCode, _ := m.Errors(); len(byCode) != 0 {
		t.Errorf("an interruption is counted as a failure: %v", byCode)
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	line := "42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 0 0 150 50 30 20 20 0 1 0 100 1000 200 18446744073709551615"
	got, err := parseStat([]byte(line))
	want := processStat{parent: 7, own: 2 * time.Second, reaped: 500 * time.Millisecond}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "42 (x)", "42 (x) S 7 1 2 3", "42 (x) S a b c d e f g h i j k l m n o p q r"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a line of stat", bad)
		}
	}
}

func TestTreeTime(t *testing.T) {
	t.Parallel()
	all := map[int]processStat{
		1: {own: time.Hour},
		2: {parent: 1, own: time.Second, reaped: time.Second},
		3: {parent: 2, own: 2 * time.Second},
		4: {parent: 3, own: 4 * time.Second},
		5: {parent: 1, own: time.Hour},
	}
	if got := treeTime(all, 2); got != 8*time.Second {
		t.Errorf("got %v, want 8 s", got)
	}
}

func TestParseMachine(t *testing.T) {
	t.Parallel()
	got, err := parseMachine("cpu  100 20 30 9999 9999 9999 9999 50 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
	if err != nil || got != 2*time.Second {
		t.Errorf("%v, %v, want 2 s", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2 3", "cpu a b c d e f g h"} {
		if _, err := parseMachine(bad); err == nil {
			t.Errorf("%q is taken for /proc/stat", bad)
		}
	}
}

func TestParseResident(t *testing.T) {
	t.Parallel()
	if got, err := parseResident("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n"); err != nil || got != 1<<20 {
		t.Errorf("%d, %v, want 1 MiB", got, err)
	}
	if _, err := parseResident("Name:\tx\n"); err == nil {
		t.Error("no figure is no error")
	}
}
