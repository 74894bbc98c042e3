// Package dialect reads what a provider answers about its limits, in all the ways in which providers say it, and what an
// answer means for the call. It is pure: it depends on nothing of Holdfast, and reads no clock.
//
//	header or field                                     where it is from
//	Retry-After: 30 | 1.5 | 30, 30 | an HTTP date       RFC 9110, 10.2.3; dates also without a zone, or of second 60
//	Retry-After-Ms, X-Ms-Retry-After-Ms: 354            OpenAI, Azure; more exact than Retry-After, so it wins
//	RateLimit: "default";r=50;t=30                      draft-ietf-httpapi-ratelimit-headers, since 08
//	RateLimit-Policy: "default";q=100;w=60              the same
//	RateLimit: limit=100, remaining=50, reset=30        the same, 07
//	RateLimit-Limit, -Remaining, -Reset: 30             the same, before 07
//	X-RateLimit-Limit, -Remaining, -Reset               GitHub, Reddit and many others; see Time for what a reset may be
//	X-RateLimit-Reset-After: 1.2                        Discord: seconds
//	X-RateLimit-Limit-Requests, -Reset-Tokens: 6m0s     OpenAI; -Remaining-Minute: Kong; -Remaining-Tokens-Day: Cerebras
//	Anthropic-RateLimit-Tokens-Limit, -Reset: 2026-…    Anthropic
//	X-RateLimit-Complexity-Limit, -Reset: 17e11         Linear: milliseconds since 1970
//	X-Shopify-Shop-Api-Call-Limit: 32/40                Shopify: used/limit
//	{"error":{"details":[google.rpc.RetryInfo, QuotaFailure, ErrorInfo]}}  Google, also as the list of a stream
//	{"errors":[{"extensions":{"code":"RATELIMITED"}}]}  Linear with status 400, others with 200
//	{"retry_after": 64.5}, {"error":{"retryAfterMs":1}} Discord and others, at any depth of an error
//	{"extensions":{"cost":{"throttleStatus":…}}}        Shopify
//	"Please retry in 38.2s", "try again in 6m0s"        any error's message, where nothing else names a time
//	<Code>SlowDown</Code>                               AWS
package dialect

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Answer is what a provider answered.
type Answer struct {
	// Status is 0 where there was no answer.
	Status int
	// Header has names in any case.
	Header map[string]string
	Body   []byte
	// At is when it answered, by the clock that reads it, and Sent when the call was sent; zero: unknown.
	At, Sent time.Time
}

// Budget is one of a provider's limits.
type Budget struct {
	// Dimension is what the provider calls it, in lower case; Requests where it has no name.
	Dimension string
	// Window is how long it lasts; 0: the provider does not say.
	Window time.Duration
	// Model is the only model whose calls it is about; empty: all.
	Model string
	// Limit and Remaining are negative where the provider does not say.
	Limit, Remaining int64
	// Reset is when it is there again; zero: the provider does not say.
	Reset time.Time
	// Unit is what a budget with a name of its own counts, where the provider says it.
	Unit string
}

// Requests is the dimension of a budget without a name.
const Requests = "requests"

// Reading is what an answer says. What cannot be understood counts as absent, and its name is in Ignored: limits must
// not depend on what a provider mistypes.
type Reading struct {
	// Refused: the provider refused the call for a limit, before it did anything.
	Refused bool
	// At is when the answer was made, and RetryAt when the provider wants to be asked again, after At; zero: it names no such time.
	At, RetryAt time.Time
	// Budgets are in the order of their dimension.
	Budgets []*Budget
	// Ignored has the headers and fields about limits that were not understood.
	Ignored []string
}

// MaxWait bounds what is believed: who asks for a longer wait gets this one.
const MaxWait = 32 * 24 * time.Hour

const (
	maxBudgets = 64
	maxName    = 64
	// MaxLimit is the most that a limit may be.
	MaxLimit = 1_000_000_000_000
)

// reader is a Reading in the making.
type reader struct {
	Reading

	answer Answer
	// offset is how far the provider's clock is ahead of the reader's.
	offset time.Duration
	// Times by where they were found, in the order of their worth.
	millis, seconds, body, message time.Time
	texts                          []string
}

// Read reads an answer.
func Read(a Answer) *Reading {
	r := &reader{answer: a}
	r.Refused = a.Status == http.StatusTooManyRequests || a.Status == 529
	r.clock()
	r.At = r.answer.At
	for _, original := range slices.Sorted(maps.Keys(a.Header)) {
		name, value := strings.ToLower(strings.TrimSpace(original)), strings.TrimSpace(a.Header[original])
		if !r.header(name, value) {
			r.Ignored = append(r.Ignored, original)
		}
	}
	r.readBody()
	if a.Status == http.StatusForbidden && r.spent() {
		r.Refused = true // GitHub's way
	}
	if r.Refused || a.Status >= http.StatusBadRequest {
		for _, at := range []time.Time{r.millis, r.seconds, r.body, r.message} {
			if at.After(r.answer.At) {
				r.RetryAt = at
				break
			}
		}
	}
	slices.SortFunc(r.Budgets, func(a, b *Budget) int {
		return cmp.Or(cmp.Compare(a.Dimension, b.Dimension), cmp.Compare(a.Window, b.Window), cmp.Compare(a.Model, b.Model))
	})
	return &r.Reading
}

// clock compares the provider's clock with the reader's by the header Date. It also tells when the answer was made, where that is
// known to lie between the sending of the call and now: a report that comes late must not make anybody wait longer.
func (r *reader) clock() {
	a := &r.answer
	for name, value := range a.Header {
		if !strings.EqualFold(strings.TrimSpace(name), "Date") {
			continue
		}
		date, ok := parseDate(value)
		if !ok {
			return
		}
		const resolution = time.Second
		switch made := date.Add(resolution); { // the clock in Date has no fractions
		case !a.Sent.IsZero() && made.After(a.Sent) && made.Before(a.At):
			a.At = made
		case date.After(a.At.Add(resolution)) || made.Before(a.At.Add(-resolution)):
			r.offset = date.Sub(a.At)
		}
		return
	}
}

func (r *reader) spent() bool {
	return !r.seconds.IsZero() || !r.millis.IsZero() || slices.ContainsFunc(r.Budgets, func(b *Budget) bool { return b.Remaining == 0 })
}

// About reports whether a header is about limits, or needed to read those that are.
func About(name string) bool {
	name = strings.ToLower(name)
	return name == "date" || aboutLimits(name)
}

func aboutLimits(name string) bool {
	for _, part := range []string{"retry-after", "ratelimit", "rate-limit", "call-limit", "quota", "throttl"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// informs are the ends of headers that tell of limits, but nothing that anybody has to keep.
var informs = []string{"used", "resource", "endpoint-name", "bucket", "scope", "global", "reason", "nearlimit", "observed"}

// header reads one header. It is false where the header is about limits and not all of it can be understood.
func (r *reader) header(name, value string) bool {
	switch name {
	case "ratelimit":
		return r.structured(value, true)
	case "ratelimit-policy":
		return r.structured(value, false)
	case "x-shopify-shop-api-call-limit":
		return r.usedOf(value)
	}
	if !aboutLimits(name) {
		return true
	}
	if strings.Contains(name, "retry-after") {
		into, unit := &r.seconds, time.Second
		if strings.HasSuffix(name, "-ms") {
			into, unit = &r.millis, time.Millisecond
		}
		at, all := r.times(value, unit)
		*into = later(*into, at)
		return all
	}
	for _, mark := range []string{"ratelimit-", "rate-limit-"} {
		if _, rest, ok := strings.Cut(name, mark); ok {
			return r.named(rest, value)
		}
	}
	return slices.ContainsFunc(informs, func(end string) bool { return strings.HasSuffix(name, "-"+end) })
}

// named reads a header such as x-ratelimit-<rest>, where rest has limit, remaining or reset, and perhaps the name of a budget.
func (r *reader) named(rest, value string) bool {
	if slices.Contains(informs, rest) {
		return true
	}
	words := strings.Split(rest, "-")
	for i, word := range words {
		what, unit, left := word, time.Second, words[i+1:]
		switch word {
		case "limit", "remaining":
		case "max":
			what = "limit"
		case "window", "period":
			what = "window"
		case "reset":
			for len(left) > 0 && slices.Contains([]string{"after", "in", "at", "time", "seconds", "ms", "milliseconds"}, left[0]) {
				if strings.HasPrefix(left[0], "m") {
					unit = time.Millisecond
				}
				left = left[1:]
			}
		default:
			continue
		}
		dimension := strings.Join(slices.Concat(words[:i], left), "-")
		if dimension == "" {
			if len(words) > 1 && words[len(words)-1] == "" {
				return false
			}
			dimension = Requests
		}
		return r.set(&Budget{Dimension: dimension}, what, value, unit)
	}
	return false
}

// at is the budget of that name, made where there is none; nil where there are too many.
func (r *reader) at(want *Budget) *Budget {
	if want.Dimension == "" || len(want.Dimension) > maxName || len(want.Model) > 2*maxName {
		return nil
	}
	for _, b := range r.Budgets {
		if b.Dimension == want.Dimension && b.Model == want.Model && (b.Window == want.Window || want.Window == 0) {
			return b
		}
	}
	if len(r.Budgets) >= maxBudgets {
		return nil
	}
	b := &Budget{Dimension: want.Dimension, Window: want.Window, Model: want.Model, Limit: -1, Remaining: -1}
	if b.Window == 0 {
		_, b.Window = Split(b.Dimension)
	}
	r.Budgets = append(r.Budgets, b)
	return b
}

// set notes one value of a budget.
func (r *reader) set(of *Budget, what, value string, unit time.Duration) bool {
	switch what {
	case "reset":
		at, all := r.times(value, unit)
		if !at.IsZero() {
			if b := r.at(of); b != nil {
				b.Reset = later(b.Reset, at)
			}
		}
		return all
	case "window":
		at, ok := r.times(value, unit)
		b := r.at(of)
		if !ok || b == nil {
			return false
		}
		b.Window = at.Sub(r.answer.At)
		return true
	}
	// Before it was structured, RateLimit-Limit could go on with policies: "100, 100;w=60". A header that comes twice is joined.
	least, all := int64(-1), true
	var window time.Duration
	for i, member := range strings.Split(value, ",") {
		first, params, _ := strings.Cut(strings.TrimSpace(member), ";")
		n, err := strconv.ParseFloat(strings.TrimSpace(first), 64)
		if err != nil || n < 0 || n > MaxLimit || n != n || what == "limit" && n < 1 { // or NaN
			all = false
			continue
		}
		if w, ok := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "w="); ok {
			if s, err := strconv.ParseUint(w, 10, 31); err == nil && (least < 0 || int64(n) == least) {
				window = time.Duration(s) * time.Second
			}
		}
		if least < 0 || what == "remaining" && int64(n) < least && i > 0 {
			least = int64(n)
		}
	}
	if least < 0 {
		return false
	}
	b := r.at(of)
	if b == nil {
		return false
	}
	if window > 0 && b.Window == 0 {
		b.Window = window
	}
	if what == "limit" {
		b.Limit = least
	} else {
		b.Remaining = least
	}
	return all
}

// usedOf reads used/limit.
func (r *reader) usedOf(value string) bool {
	used, limit, _ := strings.Cut(value, "/")
	u, err1 := strconv.ParseInt(used, 10, 64)
	l, err2 := strconv.ParseInt(limit, 10, 64)
	if err1 != nil || err2 != nil || u < 0 || l < 1 || l > MaxLimit {
		return false
	}
	if b := r.at(&Budget{Dimension: Requests}); b != nil {
		b.Limit, b.Remaining = l, max(0, l-u)
	}
	return true
}

// structured reads RateLimit and RateLimit-Policy, which are lists of RFC 9651: each item a name and parameters. standing
// tells the first from the second.
func (r *reader) structured(value string, standing bool) bool {
	items, ok := parseItems(value)
	if !ok || len(items) == 0 {
		return false
	}
	// As 07 had it: a dictionary.
	if len(items[0].params) == 0 && strings.Contains(items[0].name, "=") {
		for _, item := range items {
			key, v, _ := strings.Cut(item.name, "=")
			if ok = ok && slices.Contains([]string{"limit", "remaining", "reset"}, key); ok {
				ok = r.set(&Budget{Dimension: Requests}, key, v, time.Second)
			}
		}
		return ok
	}
	for _, item := range items {
		dimension := strings.ToLower(item.name)
		unit := item.params["qu"]
		switch {
		case dimension == "default" && unit != "" && unit != Requests:
			dimension = unit
		case dimension == "default":
			dimension = Requests
		}
		key := &Budget{Dimension: dimension}
		if !standing {
			q, has := item.params["q"]
			if !has || !r.set(key, "limit", q, time.Second) {
				ok = false
				continue
			}
			b := r.at(key)
			b.Unit = cmp.Or(unit, Requests)
			if w, has := item.params["w"]; has {
				s, err := strconv.ParseUint(w, 10, 31)
				b.Window = time.Duration(s) * time.Second
				ok = ok && err == nil && s > 0
			}
			continue
		}
		left, has := item.params["r"]
		if !has || !r.set(key, "remaining", left, time.Second) {
			ok = false
			continue
		}
		if t, has := item.params["t"]; has {
			ok = r.set(key, "reset", t, time.Second) && ok
		}
	}
	return ok
}

type item struct {
	name   string
	params map[string]string
}

// parseItems reads a list of items with parameters, so much of RFC 9651 as these headers use: names are strings or
// tokens, values are numbers, strings, or byte sequences that nobody here reads.
func parseItems(s string) (items []item, ok bool) {
	for _, member := range splitQuoted(s, ',') {
		parts := splitQuoted(member, ';')
		name, ok := unquote(strings.TrimSpace(parts[0]))
		if !ok || name == "" {
			return nil, false
		}
		it := item{name: name, params: map[string]string{}}
		for _, p := range parts[1:] {
			key, value, _ := strings.Cut(strings.TrimSpace(p), "=")
			if value, ok = unquote(value); !ok || key == "" {
				return nil, false
			}
			it.params[strings.ToLower(key)] = value
		}
		items = append(items, it)
	}
	return items, true
}

// splitQuoted splits at a separator that is not within quotes.
func splitQuoted(s string, separator byte) (parts []string) {
	quoted, start := false, 0
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == separator && !quoted:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

func unquote(s string) (string, bool) {
	if !strings.HasPrefix(s, `"`) {
		return s, !strings.ContainsAny(s, `" `)
	}
	if len(s) < 2 || !strings.HasSuffix(s, `"`) {
		return "", false
	}
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(s[1 : len(s)-1]), true
}

// windows are the words for the length of a budget.
var windows = map[string]time.Duration{
	"second": time.Second, "seconds": time.Second, "secondly": time.Second, "rps": time.Second,
	"minute": time.Minute, "minutes": time.Minute, "minutely": time.Minute, "1m": time.Minute, "rpm": time.Minute,
	"hour": time.Hour, "hours": time.Hour, "hourly": time.Hour, "1h": time.Hour,
	"day": 24 * time.Hour, "days": 24 * time.Hour, "daily": 24 * time.Hour, "1d": 24 * time.Hour, "rpd": 24 * time.Hour,
	"week": 7 * 24 * time.Hour, "weekly": 7 * 24 * time.Hour, "month": 30 * 24 * time.Hour, "monthly": 30 * 24 * time.Hour,
}

// Split takes the length of a window off a dimension's name: requests-day is requests, of a day, and minute is requests, of a minute.
func Split(dimension string) (base string, window time.Duration) {
	var words []string
	for _, word := range strings.FieldsFunc(dimension, func(c rune) bool { return c == '-' || c == '_' || c == '.' }) {
		if w, ok := windows[word]; ok && window == 0 {
			window = w
			continue
		}
		words = append(words, word)
	}
	words = slices.DeleteFunc(words, func(word string) bool { return word == "per" })
	if window == 0 {
		return dimension, 0
	}
	return cmp.Or(strings.Join(words, "-"), Requests), window
}

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

// refusals are the codes of an error by which providers refuse before they do anything, in letters and digits only.
var refusals = words(`
	ratelimited ratelimit ratelimitexceeded ratelimiterror ratelimitreached ratelimiterrors resourceexhausted toomanyrequests toomanyrequestsexception
	throttled throttling throttlingexception requestlimitexceeded requestthrottled requestthrottledexception slowdown overloaded
	overloadederror serverisoverloaded serviceoverload servicebusy serverbusy quotaexceeded userratelimitexceeded
	provisionedthroughputexceededexception limitexceeded concurrencylimitexceeded modeloverloaded`)

func words(s string) map[string]bool {
	all := map[string]bool{}
	for word := range strings.FieldsSeq(s) {
		all[word] = true
	}
	return all
}

// plain is a name in letters and digits only.
func plain(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case 'A' <= c && c <= 'Z':
			return c - 'A' + 'a'
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
			return c
		}
		return -1
	}, s)
}

var (
	codeKeys    = words("code type status error reason errorcode exceptiontype errortype")
	secondsKeys = words("retryafter retryafterseconds retryaftersecs retryaftersec retryin retryinseconds retrydelay waitseconds resetafter resetin resetinseconds")
	millisKeys  = words("retryafterms retryaftermillis retryaftermilliseconds retryinms resetafterms resetinms retrydelayms waitms msbeforenext")
	dateKeys    = words("retryat resetat resettime retryaftertime nextretryat availableat")
	textKeys    = words("message error detail title errordescription userpresentablemessage errormessage")
)

// readBody reads an error's body.
func (r *reader) readBody() {
	body := bytes.TrimSpace(r.answer.Body)
	if len(body) == 0 {
		return
	}
	document, ok := decode(body)
	if !ok {
		r.texts = append(r.texts, string(body[:min(len(body), 2048)]))
		if _, rest, found := strings.Cut(r.texts[0], "<Code>"); found {
			code, _, _ := strings.Cut(rest, "</Code>")
			r.Refused = r.Refused || refusals[plain(code)]
		}
	} else if r.answer.Status >= http.StatusBadRequest || r.answer.Status == 0 || isError(document) {
		w := walker{r, 5000}
		w.walk(document, "body", "", 0)
	}
	r.readTexts()
}

func decode(body []byte) (document any, ok bool) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if d.Decode(&document) != nil {
		return nil, false
	}
	switch document.(type) {
	case map[string]any, []any:
		return document, true
	}
	return nil, false
}

// isError reports whether a document that came with a success is an error nevertheless.
func isError(document any) bool {
	m, ok := document.(map[string]any)
	return ok && (m["errors"] != nil || m["error"] != nil)
}

var inText = regexp.MustCompile(`(?i)(?:retry|try again|wait|available|reset)[a-z ,:'"]{0,40}?\b(?:in|after|for|wait)\s+(?:about |at least |approximately )?([0-9].*)`)

// readTexts reads the time that a message names, for want of another.
func (r *reader) readTexts() {
	for _, text := range r.texts {
		if m := inText.FindStringSubmatch(text); m != nil {
			if d, rest := leadingDuration(m[1]); rest != m[1] {
				r.message = later(r.message, r.clamp(r.answer.At.Add(d)))
			}
		}
		lower := strings.ToLower(text)
		if r.answer.Status == http.StatusForbidden && strings.Contains(lower, "rate limit") {
			r.Refused = true
		}
		if r.answer.Status >= http.StatusBadRequest && strings.Contains(lower, "secondary rate limit") && r.message.IsZero() {
			r.message = r.answer.At.Add(time.Minute) // GitHub: at least, where no header says more
		}
	}
}

// walker looks through a document for what is about limits.
type walker struct {
	*reader

	left int // nodes
}

func (w *walker) walk(node any, path, key string, depth int) {
	const deepest = 12
	if w.left--; w.left < 0 || depth > deepest {
		return
	}
	switch v := node.(type) {
	case []any:
		for i, one := range v {
			w.walk(one, fmt.Sprintf("%s[%d]", path, i), key, depth+1)
		}
	case map[string]any:
		if w.google(v, path) {
			return
		}
		w.throttle(v)
		if strings.Contains(plain(key), "ratelimit") {
			w.budget(v)
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			w.walk(v[name], path+"."+name, name, depth+1)
		}
	case string, json.Number:
		text, name := fmt.Sprint(v), plain(key)
		if codeKeys[name] && refusals[plain(text)] {
			w.Refused = true
		}
		if textKeys[name] && len(w.texts) < 32 {
			w.texts = append(w.texts, text)
		}
		switch {
		case secondsKeys[name], dateKeys[name]:
			w.named(text, path, time.Second)
		case millisKeys[name]:
			w.named(text, path, time.Millisecond)
		}
	}
}

// named notes the time that a field names.
func (w *walker) named(text, path string, unit time.Duration) {
	at, ok := w.time(text, unit)
	if !ok {
		w.Ignored = append(w.Ignored, path)
	}
	w.body = later(w.body, at)
}

// google reads a detail of google.rpc, and is false where the object is none.
func (w *walker) google(m map[string]any, path string) bool {
	kind, _ := m["@type"].(string)
	switch {
	case strings.HasSuffix(kind, "google.rpc.RetryInfo"):
		switch delay := m["retryDelay"].(type) {
		case map[string]any:
			seconds, _ := strconv.ParseFloat(fmt.Sprint(cmp.Or[any](delay["seconds"], "0")), 64)
			nanos, _ := strconv.ParseFloat(fmt.Sprint(cmp.Or[any](delay["nanos"], "0")), 64)
			w.body = later(w.body, w.clamp(w.answer.At.Add(times(seconds+nanos/1e9, time.Second))))
		case nil:
		default:
			w.named(fmt.Sprint(delay), path+".retryDelay", time.Second)
		}
	case strings.HasSuffix(kind, "google.rpc.QuotaFailure"):
		violations, _ := m["violations"].([]any)
		for i, one := range violations {
			v, _ := one.(map[string]any)
			dimensions, _ := v["quotaDimensions"].(map[string]any)
			model, _ := dimensions["model"].(string)
			if !w.quota(text(v["quotaId"]), text(v["quotaMetric"]), text(v["quotaValue"]), model) {
				w.Ignored = append(w.Ignored, fmt.Sprintf("%s.violations[%d]", path, i))
			}
		}
	case strings.HasSuffix(kind, "google.rpc.ErrorInfo"):
		w.Refused = w.Refused || refusals[plain(text(m["reason"]))]
		metadata, _ := m["metadata"].(map[string]any)
		if id := text(metadata["quota_limit"]); id != "" {
			if !w.quota(id, text(metadata["quota_metric"]), text(metadata["quota_limit_value"]), text(metadata["model"])) {
				w.Ignored = append(w.Ignored, path+".metadata.quota_limit")
			}
		}
	default:
		return false
	}
	return true
}

func text(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

// quota notes that a quota of Google's is used up, such as GenerateRequestsPerDayPerProjectPerModel-FreeTier.
func (w *walker) quota(id, metric, value, model string) bool {
	name := strings.ToLower(id)
	b := &Budget{Model: strings.ToLower(model)}
	for _, what := range []string{name, strings.ToLower(metric)} {
		switch {
		case b.Dimension != "":
		case strings.Contains(what, "token"):
			b.Dimension = "tokens"
		case strings.Contains(what, "request"):
			b.Dimension = Requests
		}
	}
	for _, word := range []string{"second", "minute", "hour", "day", "week", "month"} {
		if strings.Contains(name, "per"+word) {
			b.Window = windows[word]
		}
	}
	if b.Window > time.Minute && b.Dimension != "" {
		b.Dimension += "-" + map[time.Duration]string{time.Hour: "hour", 24 * time.Hour: "day", 7 * 24 * time.Hour: "week", 30 * 24 * time.Hour: "month"}[b.Window]
	}
	at := w.at(b)
	if at == nil {
		return false
	}
	at.Remaining = 0
	if n, err := strconv.ParseInt(value, 10, 64); err == nil && n > 0 && n <= MaxLimit {
		at.Limit = n
	}
	return true
}

// throttle reads Shopify's bucket: what is missing for the query comes at a rate.
func (w *walker) throttle(m map[string]any) {
	status, _ := m["throttleStatus"].(map[string]any)
	number := func(v any) float64 {
		n, err := strconv.ParseFloat(text(v), 64)
		if err != nil {
			return -1
		}
		return n
	}
	has, rate, needs := number(status["currentlyAvailable"]), number(status["restoreRate"]), number(m["requestedQueryCost"])
	if has >= 0 && rate > 0 && needs > has {
		w.body = later(w.body, w.clamp(w.answer.At.Add(times((needs-has)/rate, time.Second))))
	}
}

// budget reads an object that says how a limit stands, such as Linear's rateLimitResult and GitHub's rateLimit.
func (w *walker) budget(m map[string]any) {
	of := &Budget{Dimension: cmp.Or(strings.ToLower(text(m["type"])), Requests)}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		value := text(m[name])
		switch plain(name) {
		case "remaining", "remainingamount":
			w.set(of, "remaining", value, time.Second)
		case "limit", "allowedamount":
			w.set(of, "limit", value, time.Second)
		case "reset", "resetat":
			w.set(of, "reset", value, time.Second)
		}
	}
}
