package dialect

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// times reads a value that may be several, because a header that comes twice is joined: the latest counts. all is false where
// some of it is not understood, and the time is zero where none of it is.
func (r *reader) times(value string, unit time.Duration) (at time.Time, all bool) {
	all = true
	for part := range strings.SplitSeq(value, ",") {
		if part = strings.TrimSpace(part); isWeekday(part) { // of a date: Mon, 23 Nov 2026 10:00:00 GMT
			continue
		}
		t, ok := r.time(part, unit)
		if all = all && ok; ok {
			at = later(at, t)
		}
	}
	return at, all && !at.IsZero()
}

const (
	// Numbers from here on are times since 1970: seconds, milliseconds, microseconds, nanoseconds.
	minEpoch  = 1e9
	minMillis = 1e11
	minMicros = 1e14
	minNanos  = 1e17
	maxNumber = 1e20
)

// time reads when something is there again: a number of units from now, a time since 1970 in whatever unit, a duration, or a date. It
// is never before the answer, and never further ahead than MaxWait.
func (r *reader) time(value string, unit time.Duration) (time.Time, bool) {
	value = strings.Trim(strings.TrimSpace(value), `"`)
	now := r.answer.At
	if n, err := strconv.ParseFloat(value, 64); err == nil && !strings.ContainsAny(value, "xX_pP") {
		switch {
		case n < 0 || n != n || n >= maxNumber: // or NaN
			return time.Time{}, false
		case unit < time.Second && n < minMillis || n < minEpoch:
			return r.clamp(now.Add(times(n, unit))), true
		case n >= minNanos:
			n /= 1e9
		case n >= minMicros:
			n /= 1e6
		case n >= minMillis:
			n /= 1e3
		}
		if n > 1e12 { // beyond what a time holds
			return now.Add(MaxWait), true
		}
		whole, fraction := math.Modf(n)
		return r.clamp(time.Unix(int64(whole), int64(math.Round(fraction*1e6))*1e3).Add(-r.offset)), true
	}
	if d, ok := parseDuration(value); ok {
		return r.clamp(now.Add(d)), true
	}
	if t, ok := parseDate(value); ok {
		return r.clamp(t.Add(-r.offset)), true
	}
	return time.Time{}, false
}

func (r *reader) clamp(t time.Time) time.Time {
	if most := r.answer.At.Add(MaxWait); t.After(most) {
		return most
	}
	return later(t, r.answer.At).UTC()
}

func times(n float64, unit time.Duration) time.Duration {
	d := n * float64(unit)
	if d >= float64(MaxWait) {
		return MaxWait
	}
	return time.Duration(math.Ceil(d))
}

var (
	units = map[string]time.Duration{
		"ns": time.Nanosecond, "us": time.Microsecond, "µs": time.Microsecond, "ms": time.Millisecond, "millisecond": time.Millisecond,
		"s": time.Second, "sec": time.Second, "second": time.Second, "m": time.Minute, "min": time.Minute, "minute": time.Minute,
		"h": time.Hour, "hr": time.Hour, "hour": time.Hour, "d": 24 * time.Hour, "day": 24 * time.Hour, "w": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour,
	}
	aDuration   = regexp.MustCompile(`([0-9]+(?:\.[0-9]+)?)\s*(milliseconds?|ms|ns|us|µs|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|s|m|h|d|w)`)
	durations   = regexp.MustCompile(`^(?:[0-9]+(?:\.[0-9]+)?\s*(?:milliseconds?|ms|ns|us|µs|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|s|m|h|d|w)[\s,]*(?:and\s+)?)+`)
	isoDuration = regexp.MustCompile(`^P(?:([0-9.]+)D)?(?:T(?:([0-9.]+)H)?(?:([0-9.]+)M)?(?:([0-9.]+)S)?)?$`)
)

// parseDuration reads "6m0s", "120ms", "1d2h", "1 minute 30 seconds" and "PT30S".
func parseDuration(s string) (time.Duration, bool) {
	if parts := isoDuration.FindStringSubmatch(strings.ToUpper(s)); parts != nil && len(s) > 2 {
		var sum float64
		for i, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute, time.Second} {
			if parts[i+1] == "" {
				continue
			}
			n, err := strconv.ParseFloat(parts[i+1], 64)
			if err != nil {
				return 0, false
			}
			sum += n * float64(unit)
		}
		return times(sum, 1), true
	}
	d, rest := leadingDuration(s)
	return d, rest == "" && s != ""
}

// leadingDuration reads the duration that a text begins with; the rest is the whole text where it begins with none.
func leadingDuration(s string) (d time.Duration, rest string) {
	lower := strings.ToLower(s)
	head := durations.FindString(lower)
	if head == "" {
		return 0, s
	}
	var sum float64
	for _, m := range aDuration.FindAllStringSubmatch(head, -1) {
		n, err := strconv.ParseFloat(m[1], 64)
		unit := units[m[2]]
		if unit == 0 {
			unit = units[strings.TrimSuffix(m[2], "s")]
		}
		if err != nil || unit == 0 {
			return 0, s
		}
		sum += n * float64(unit)
	}
	return times(sum, 1), lower[len(head):]
}

var (
	aZone    = regexp.MustCompile(`(?i)\s*(?:GMT|UTC|UT|Z|([+-])([0-9]{2}):?([0-9]{2}))$`)
	leap     = regexp.MustCompile(`(:[0-9]{2}):60\b`)
	weekdays = regexp.MustCompile(`(?i)^(?:mon|tue|tues|wed|wednes|thu|thurs|fri|sat|satur|sun)(?:day)?$`)
	layouts  = []string{
		"2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04", "2 Jan 2006 15:04:05",
		"2-Jan-06 15:04:05", "2-Jan-2006 15:04:05", "Jan _2 15:04:05 2006", "Jan 2 15:04:05 2006", "20060102T150405", "2006/01/02 15:04:05",
	}
)

func isWeekday(s string) bool { return weekdays.MatchString(s) }

// parseDate reads RFC 3339 and what is near to it, and the three dates of HTTP. What names no zone is UTC. A minute may have a second 60.
func parseDate(s string) (time.Time, bool) {
	s = strings.TrimSpace(s)
	if day, rest, ok := strings.Cut(s, " "); ok && isWeekday(strings.TrimSuffix(day, ",")) {
		s = strings.TrimSpace(rest)
	}
	var zone time.Duration
	if m := aZone.FindStringSubmatchIndex(s); len(m) > 0 && strings.Contains(s[:m[0]], ":") {
		if m[2] >= 0 {
			h, _ := strconv.Atoi(s[m[4]:m[5]])
			minutes, _ := strconv.Atoi(s[m[6]:m[7]])
			if zone = time.Duration(h)*time.Hour + time.Duration(minutes)*time.Minute; s[m[2]] == '-' {
				zone = -zone
			}
		}
		s = s[:m[0]]
	}
	var extra time.Duration
	if leap.MatchString(s) {
		s, extra = leap.ReplaceAllString(s, "$1:59"), time.Second
	}
	for _, layout := range layouts {
		if t, err := time.Parse(layout, strings.ReplaceAll(s, "t", "T")); err == nil {
			return t.Add(extra - zone), true
		}
		if t, err := time.Parse(layout, s); err == nil {
			return t.Add(extra - zone), true
		}
	}
	return time.Time{}, false
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
