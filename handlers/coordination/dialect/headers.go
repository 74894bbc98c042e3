package dialect

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

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
