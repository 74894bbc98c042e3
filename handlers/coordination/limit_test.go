package coordination

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

var epoch = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

func sliding(limit int64, period time.Duration) policy {
	return &storev1.Policy{
		Name: "p", Algorithm: storev1.Algorithm_ALGORITHM_SLIDING, Limit: limit, Period: durationpb.New(period),
	}
}

func gcra(limit int64, period time.Duration, burst int64) policy {
	p := sliding(limit, period)
	p.Algorithm, p.Burst = storev1.Algorithm_ALGORITHM_GCRA, burst
	return p
}

func calendar(limit int64, c storev1.Calendar, zone string) policy {
	return &storev1.Policy{
		Name: "p", Algorithm: storev1.Algorithm_ALGORITHM_CALENDAR, Limit: limit, Calendar: c, TimeZone: zone,
	}
}

// tryTake takes n units if they are there, and otherwise says when.
func tryTake(p policy, b bucket, n int64, now time.Time) (ok bool, at time.Time) {
	tidy(p, b, now)
	if at = passes(p, b, n, now); at.After(now) {
		return false, at
	}
	take(p, b, n, now)
	return true, now
}

// taken is one grant of a schedule.
type taken struct {
	at time.Time
	n  int64
}

// model decides by brute force from everything that was ever taken.
type model func(p policy, all []taken, n int64, now time.Time) bool

// slidingModel: within any period that ends now, at most the limit.
func slidingModel(p policy, all []taken, n int64, now time.Time) bool {
	for _, t := range all {
		if t.at.After(now.Add(-hold(p))) {
			n += t.n
		}
	}
	return n <= p.GetLimit()
}

// gcraModel drains a bucket that holds time step by step through all that was ever put into it.
func gcraModel(p policy, all []taken, n int64, now time.Time) bool {
	e := emission(p, &storev1.Bucket{})
	var level time.Duration
	last := time.Time{}
	for _, t := range append(slices.Clip(all), taken{now, n}) {
		if !last.IsZero() {
			level = max(0, level-t.at.Sub(last))
		}
		level += time.Duration(t.n) * e
		last = t.at
	}
	return level <= time.Duration(capacityOf(p, &storev1.Bucket{}))*e
}

// calendarModel: on the same date of the zone's calendar, at most the limit.
func calendarModel(p policy, all []taken, n int64, now time.Time) bool {
	zone, err := time.LoadLocation(p.GetTimeZone())
	if err != nil {
		panic(err)
	}
	label := map[storev1.Calendar]func(time.Time) string{
		storev1.Calendar_CALENDAR_MINUTE: func(t time.Time) string { return t.In(zone).Format("2006-01-02 15:04 -0700") },
		storev1.Calendar_CALENDAR_HOUR:   func(t time.Time) string { return t.In(zone).Format("2006-01-02 15 -0700") },
		storev1.Calendar_CALENDAR_DAY:    func(t time.Time) string { return t.In(zone).Format("2006-01-02") },
		storev1.Calendar_CALENDAR_WEEK: func(t time.Time) string {
			year, week := t.In(zone).ISOWeek()
			return fmt.Sprint(year, " ", week)
		},
		storev1.Calendar_CALENDAR_MONTH: func(t time.Time) string { return t.In(zone).Format("2006-01") },
	}[p.GetCalendar()]
	for _, t := range all {
		if label(t.at) == label(now) {
			n += t.n
		}
	}
	return n <= p.GetLimit()
}

// Whatever the schedule, each decision is the model's, a refusal says exactly when the same would pass, and what the
// standing says remains is what would pass.
func TestLimitsAgreeWithBruteForce(t *testing.T) {
	t.Parallel()
	zones := []string{"", "America/Los_Angeles", "Europe/Berlin", "Asia/Kathmandu", "Africa/Cairo", "America/Sao_Paulo", "Australia/Sydney"}
	draws := map[string]struct {
		policy func(*rapid.T) policy
		model  model
		gaps   []time.Duration // typical pauses between calls
	}{
		"sliding": {
			func(t *rapid.T) policy {
				p := sliding(rapid.Int64Range(1, maxSlots).Draw(t, "limit"), time.Duration(rapid.Int64Range(1, 60_000).Draw(t, "ms"))*time.Millisecond)
				p.Margin = durationpb.New(time.Duration(rapid.Int64Range(0, 2000).Draw(t, "margin")) * time.Millisecond)
				return p
			},
			slidingModel,
			[]time.Duration{time.Microsecond, time.Millisecond, time.Second, time.Minute},
		},
		"gcra": {
			func(t *rapid.T) policy {
				limit := rapid.Int64Range(1, 5000).Draw(t, "limit")
				return gcra(limit, time.Duration(rapid.Int64Range(5, 3_600_000).Draw(t, "ms"))*time.Millisecond, rapid.Int64Range(0, limit).Draw(t, "burst"))
			},
			gcraModel,
			[]time.Duration{time.Microsecond, time.Millisecond, 100 * time.Millisecond, 10 * time.Second},
		},
		"calendar": {
			func(t *rapid.T) policy {
				c := storev1.Calendar(rapid.Int32Range(1, 5).Draw(t, "calendar"))
				return calendar(rapid.Int64Range(1, 20).Draw(t, "limit"), c, rapid.SampledFrom(zones).Draw(t, "zone"))
			},
			calendarModel,
			[]time.Duration{time.Second, time.Minute, time.Hour, 13 * time.Hour, 3 * 24 * time.Hour},
		},
	}
	for name, d := range draws {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				p, b := d.policy(t), &storev1.Bucket{}
				var all []taken
				now := epoch.Add(time.Duration(rapid.Int64Range(0, 400*24*3600).Draw(t, "start")) * time.Second)
				for range rapid.IntRange(1, 60).Draw(t, "calls") {
					gap := rapid.SampledFrom(d.gaps).Draw(t, "gap")
					now = now.Add(time.Duration(rapid.Int64Range(0, 8).Draw(t, "gaps")) * gap)
					n := rapid.Int64Range(1, max(1, min(5, capacityOf(p, b)))).Draw(t, "n")
					want := d.model(p, all, n, now)
					remaining := func() int64 { tidy(p, b, now); return standing(p, b, now).GetRemaining() }()
					ok, at := tryTake(p, b, n, now)
					if ok != want {
						t.Fatalf("%d at %v: allowed is %v, by the model %v; taken: %v", n, now, ok, want, all)
					}
					if ok != (n <= remaining) {
						t.Fatalf("%d at %v: allowed is %v, and %d remained", n, now, ok, remaining)
					}
					if ok {
						all = append(all, taken{now, n})
						continue
					}
					if !d.model(p, all, n, at) {
						t.Fatalf("%d at %v: refused until %v, when it would not pass either; taken: %v", n, now, at, all)
					}
					if d.model(p, all, n, at.Add(-time.Nanosecond)) {
						t.Fatalf("%d at %v: refused until %v, but would pass earlier; taken: %v", n, now, at, all)
					}
					// Waiting as told is enough, and the time told does not move while one waits.
					half, meanwhile := now.Add(at.Sub(now)/2), proto.CloneOf(b)
					tidy(p, meanwhile, half)
					if again := passes(p, meanwhile, n, half); !again.Equal(at) {
						t.Fatalf("%d: told %v at %v and %v at %v", n, at, now, again, half)
					}
					if rapid.Bool().Draw(t, "waits") {
						now = at
						if ok, _ := tryTake(p, b, n, now); !ok {
							t.Fatalf("%d: refused at %v, the time that was told", n, at)
						}
						all = append(all, taken{now, n})
					}
				}
			})
		})
	}
}

// Large windows remember in steps: never more than the limit in any period, and at most two steps late.
func TestLargeSlidingWindows(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p, b := sliding(rapid.Int64Range(maxSlots+1, 5000).Draw(t, "limit"), time.Minute), &storev1.Bucket{}
		var all []taken
		now := epoch
		// A steady pace, of which some are slow enough to meet each step, and some fast enough to meet the limit.
		pace := rapid.Int64Range(1_000, 1_500_000).Draw(t, "pace, µs")
		most := rapid.Int64Range(1, p.GetLimit()/4).Draw(t, "most")
		for range rapid.IntRange(1, 200).Draw(t, "calls") {
			now = now.Add(time.Duration(rapid.Int64Range(0, 2*pace).Draw(t, "µs")) * time.Microsecond)
			n := rapid.Int64Range(1, most).Draw(t, "n")
			ok, at := tryTake(p, b, n, now)
			switch {
			case ok && !slidingModel(p, all, n, now):
				t.Fatalf("%d at %v: more than the limit; taken: %v", n, now, all)
			case ok:
				all = append(all, taken{now, n})
			case !slidingModel(p, all, n, at):
				t.Fatalf("%d at %v: told %v, which is too early", n, now, at)
			case slidingModel(p, all, n, at.Add(-2*time.Minute/maxSlots)):
				t.Fatalf("%d at %v: told %v, which is late by more than two steps", n, now, at)
			}
			if n := slotCount(b); n > maxSlots+1 {
				t.Fatalf("%d slots", n)
			}
		}
	})
}

func slotCount(b bucket) int {
	n := len(b.GetSlots())
	if b.GetNewest() != nil {
		n++
	}
	return n
}

// However many calls there are, what a large window remembers is bounded, and the bound is met.
func TestLargeSlidingWindowsAreBounded(t *testing.T) {
	t.Parallel()
	for _, pace := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, 937_500 * time.Microsecond, 941 * time.Millisecond} {
		p, b, most, now := sliding(1_000_000, time.Minute), &storev1.Bucket{}, 0, epoch.Add(time.Microsecond)
		for range int(3 * time.Minute / pace) {
			now = now.Add(pace)
			if ok, _ := tryTake(p, b, 1, now); !ok {
				t.Fatal("refused")
			}
			most = max(most, slotCount(b))
		}
		if most > maxSlots+1 || most < maxSlots {
			t.Errorf("a call each %v: up to %d slots", pace, most)
		}
	}
}

// A state that has no newest slot, as all had once, is counted and goes on.
func TestSlotsWithoutANewest(t *testing.T) {
	t.Parallel()
	p := sliding(5, time.Minute)
	b := &storev1.Bucket{Slots: []*storev1.Slot{{Time: stamp(epoch), Units: 2}, {Time: stamp(epoch.Add(10 * time.Second)), Units: 2}}}
	now := epoch.Add(20 * time.Second)
	if ok, at := tryTake(p, b, 2, now); ok || !at.Equal(epoch.Add(time.Minute)) {
		t.Errorf("allowed %v, at %v", ok, at)
	}
	if got := standing(p, b, now); got.GetRemaining() != 1 || got.GetResetAfter().AsDuration() != 50*time.Second {
		t.Errorf("stands at %v", got)
	}
	if ok, _ := tryTake(p, b, 1, now); !ok || used(p, b) != 5 {
		t.Errorf("allowed %v, used %d", ok, used(p, b))
	}
	// The clock of another process is a little behind.
	giveBack(p, b, 1, now, now)
	if ok, _ := tryTake(p, b, 1, now.Add(-time.Second)); !ok || used(p, b) != 5 {
		t.Errorf("a little earlier: allowed %v, used %d", ok, used(p, b))
	}
	if ok, at := tryTake(p, b, 5, now.Add(time.Hour)); !ok {
		t.Errorf("later: refused until %v", at)
	}
}

// What is given back leaves the bucket as if it had never been taken, or is not given back.
func TestGiveBackIsExact(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]policy{
		"sliding": sliding(9, time.Minute), "gcra": gcra(9, time.Minute, 4), "calendar": calendar(9, storev1.Calendar_CALENDAR_HOUR, ""),
	} {
		decide := map[string]model{"sliding": slidingModel, "gcra": gcraModel, "calendar": calendarModel}[name]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				b, now := &storev1.Bucket{}, epoch
				var all []taken
				for range rapid.IntRange(1, 40).Draw(t, "steps") {
					now = now.Add(time.Duration(rapid.Int64Range(0, 20_000).Draw(t, "ms")) * time.Millisecond)
					if len(all) > 0 && rapid.Bool().Draw(t, "back") {
						i := rapid.IntRange(0, len(all)-1).Draw(t, "which")
						tidy(p, b, now)
						before := standing(p, b, now).GetRemaining()
						giveBack(p, b, all[i].n, all[i].at, now)
						if standing(p, b, now).GetRemaining() != before || name == "sliding" {
							all = append(all[:i:i], all[i+1:]...)
						}
						continue
					}
					n := rapid.Int64Range(1, 3).Draw(t, "n")
					if ok, _ := tryTake(p, b, n, now); ok {
						if !decide(p, all, n, now) {
							t.Fatalf("%d at %v is allowed; taken: %v", n, now, all)
						}
						all = append(all, taken{now, n})
					}
				}
			})
		})
	}
}

func TestWindowsOfTheCalendar(t *testing.T) {
	t.Parallel()
	const pacific = "America/Los_Angeles"
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, tt := range []struct {
		name             string
		calendar         storev1.Calendar
		zone, now        string
		wantStart, wantE string
	}{
		{"Gemini's day", storev1.Calendar_CALENDAR_DAY, pacific, "2026-11-23T10:00:00Z", "2026-11-23T08:00:00Z", "2026-11-24T08:00:00Z"},
		{"at its first instant", storev1.Calendar_CALENDAR_DAY, pacific, "2026-11-24T08:00:00Z", "2026-11-24T08:00:00Z", "2026-11-25T08:00:00Z"},
		{"a day of 25 hours", storev1.Calendar_CALENDAR_DAY, pacific, "2026-11-01T20:00:00Z", "2026-11-01T07:00:00Z", "2026-11-02T08:00:00Z"},
		{"a day of 23 hours", storev1.Calendar_CALENDAR_DAY, pacific, "2026-03-08T20:00:00Z", "2026-03-08T08:00:00Z", "2026-03-09T07:00:00Z"},
		{"a day that begins at one", storev1.Calendar_CALENDAR_DAY, "Africa/Cairo", "2026-04-24T12:00:00Z", "2026-04-23T22:00:00Z", "2026-04-24T21:00:00Z"},
		{"a day whose midnight comes twice", storev1.Calendar_CALENDAR_DAY, "America/Havana", "2026-11-01T12:00:00Z", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"},
		{"the hour that is repeated", storev1.Calendar_CALENDAR_HOUR, pacific, "2026-11-01T09:30:00Z", "2026-11-01T09:00:00Z", "2026-11-01T10:00:00Z"},
		{"hours of another offset", storev1.Calendar_CALENDAR_HOUR, "Asia/Kathmandu", "2026-11-01T09:30:00Z", "2026-11-01T09:15:00Z", "2026-11-01T10:15:00Z"},
		{"minute", storev1.Calendar_CALENDAR_MINUTE, "", "2026-11-01T09:30:59Z", "2026-11-01T09:30:00Z", "2026-11-01T09:31:00Z"},
		{"week", storev1.Calendar_CALENDAR_WEEK, "", "2026-11-29T23:59:59Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"},
		{"month", storev1.Calendar_CALENDAR_MONTH, "", "2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"},
	} {
		start, end := windowStart(tt.calendar, location(tt.zone), at(tt.now)), nextTurn(tt.calendar, location(tt.zone), at(tt.now))
		if !start.Equal(at(tt.wantStart)) || !end.Equal(at(tt.wantE)) {
			t.Errorf("%s: %v to %v, want %s to %s", tt.name, start, end, tt.wantStart, tt.wantE)
		}
	}
}

func TestConcurrency(t *testing.T) {
	t.Parallel()
	p := &storev1.Policy{Name: "p", Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 2}
	b := &storev1.Bucket{}
	takeLease(b, "a", 1, "", epoch.Add(10*time.Second))
	takeLease(b, "b", 1, "", epoch.Add(20*time.Second))
	if at := passes(p, b, 1, epoch); !at.Equal(epoch.Add(10 * time.Second)) {
		t.Errorf("one more passes at %v", at)
	}
	if at := passes(p, b, 2, epoch); !at.Equal(epoch.Add(20 * time.Second)) {
		t.Errorf("two more pass at %v", at)
	}
	if at := passes(p, b, 3, epoch); !at.Equal(never) {
		t.Errorf("three pass at %v", at)
	}
	takeLease(b, "a", 1, "", epoch.Add(30*time.Second))
	if at := passes(p, b, 1, epoch); !at.Equal(epoch.Add(20 * time.Second)) {
		t.Errorf("after a renewal one more passes at %v", at)
	}
	later := epoch.Add(25 * time.Second)
	tidy(p, b, later)
	if got := standing(p, b, later); got.GetRemaining() != 1 || got.GetResetAfter().AsDuration() != 5*time.Second {
		t.Errorf("after one has expired: %v", got)
	}
}

func TestAPolicyCoversWhatItsPatternsMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, operation string
		want               bool
	}{
		{"create_run", "create_run", true},
		{"create_run", "create_runs", false},
		{"create_run", "", false},
		{"*", "create_run", true},
		{"*", "", true},
		{"*", "POST /v1/runs/*", true},
		{"**", "x", true},
		{"create_*", "create_run", true},
		{"create_*", "create_", true},
		{"create_*", "recreate_run", false},
		{"create_*", "create", false},
		{"*_run", "create_run", true},
		{"*_run", "create_run_log", false},
		{"GET /v1/*/logs", "GET /v1/runs/logs", true},
		{"GET /v1/*/logs", "GET /v1/runs/*/logs", true},
		{"GET /v1/*/logs", "GET /v1/logs", false},
		{"POST /v1/runs/*", "POST /v1/runs/*", true},
		{"*a*b*", "xaxbx", true},
		{"*a*b*", "xbxax", false},
		{"a*a", "a", false},
		{"ab*ba", "aba", false},
		{"*ab", "aab", true},
		{"a*b*b", "ab", false},
	} {
		d := &demand{operation: c.operation}
		if got := d.covers(&storev1.Policy{Operations: []string{"other", c.pattern}}); got != c.want {
			t.Errorf("%q covers %q: %t", c.pattern, c.operation, got)
		}
	}
}
