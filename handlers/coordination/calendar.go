package coordination

import (
	"time"
	_ "time/tzdata" // the server is one static binary: it may run where there is no time zone database

	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

// location is the time zone of that IANA name, which UpdateApi has checked; UTC where it is empty.
func location(name string) *time.Location {
	l, err := time.LoadLocation(name)
	if err != nil {
		return time.UTC // a release with an older time zone database reads what a newer one accepted
	}
	return l
}

// windowStart is when the calendar last turned, at or before now. Days begin at midnight by the clock on the wall, so
// they have 23 to 25 hours; where a zone has no midnight that day, with the first instant after it.
func windowStart(c storev1.Calendar, l *time.Location, now time.Time) time.Time {
	return turn(c, l, now, 0)
}

// nextTurn is when the calendar turns next, after now.
func nextTurn(c storev1.Calendar, l *time.Location, now time.Time) time.Time {
	return turn(c, l, now, 1)
}

// turn is the start of the window that is so many windows after that of now.
func turn(c storev1.Calendar, l *time.Location, now time.Time, after int) time.Time {
	local := now.In(l)
	y, m, d := local.Date()
	switch c {
	case storev1.Calendar_CALENDAR_MONTH:
		return startOfDay(y, m+time.Month(after), 1, l)
	case storev1.Calendar_CALENDAR_WEEK:
		sinceMonday := (int(local.Weekday()) + 6) % 7
		return startOfDay(y, m, d-sinceMonday+7*after, l)
	case storev1.Calendar_CALENDAR_DAY:
		return startOfDay(y, m, d+after, l)
	case storev1.Calendar_CALENDAR_HOUR:
		// By the elapsed time since the hour began on the wall, so that the hour that a clock repeats is two.
		return now.Add(-sinceFull(local, time.Hour)).Add(time.Duration(after) * time.Hour)
	default:
		return now.Add(-sinceFull(local, time.Minute)).Add(time.Duration(after) * time.Minute)
	}
}

func sinceFull(local time.Time, unit time.Duration) time.Duration {
	d := time.Duration(local.Second())*time.Second + time.Duration(local.Nanosecond())
	if unit == time.Hour {
		d += time.Duration(local.Minute()) * time.Minute
	}
	return d
}

// startOfDay is the first instant of a date. time.Date takes a time that a clock skips with one of the two offsets around
// the gap, so it may lie on the day before.
func startOfDay(y int, m time.Month, d int, l *time.Location) time.Time {
	t := time.Date(y, m, d, 0, 0, 0, 0, l)
	want := time.Date(y, m, d, 12, 0, 0, 0, time.UTC)
	if t.Day() == want.Day() {
		// Where midnight comes twice, time.Date may give the second one.
		if earlier := t.Add(-time.Hour); earlier.In(l).Day() == want.Day() {
			return earlier.UTC()
		}
		return t.UTC()
	}
	_, end := t.ZoneBounds()
	return end.UTC()
}
