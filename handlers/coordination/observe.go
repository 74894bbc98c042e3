package coordination

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

// observed is what a provider's answer says about its limits. What cannot be understood is as if it were not there:
// limits must not depend on what a provider mistypes.
type observed struct {
	limits map[string]*coordinationv1.ObservedLimit // by dimension
	// refused: the provider refused the call for a limit.
	refused bool
	// retryAt is when it wants to be asked again; zero: it does not say.
	retryAt time.Time
	ignored []string
}

// The dialects, and where they are described:
//
//	RateLimit: "default";r=50;t=30                   draft-ietf-httpapi-ratelimit-headers, since 08
//	RateLimit-Policy: "default";q=100;w=60           the same
//	RateLimit: limit=100, remaining=50, reset=30     the same, 07
//	RateLimit-Limit, -Remaining, -Reset: 30          the same, before 07: seconds
//	X-RateLimit-Limit, -Remaining, -Reset: 17e8      GitHub and many others: seconds since 1970, or until then
//	X-RateLimit-Limit-Requests, -Reset-Tokens: 6m0s  OpenAI
//	Anthropic-RateLimit-Tokens-Limit, -Reset: 2026-… Anthropic: RFC 3339
//	X-RateLimit-Complexity-Limit, -Reset: 17e11      Linear: milliseconds since 1970
//	Retry-After: 30, or an HTTP date                 RFC 9110, 10.2.3
//	{"errors":[{"extensions":{"code":"RATELIMITED"}} Linear, with status 400
//	{"error":{"status":"RESOURCE_EXHAUSTED","details" Google: google.rpc.RetryInfo and QuotaFailure
//
// A budget without a name is that of requests.
const defaultDimension = "requests"

var limitPrefixes = []string{"anthropic-ratelimit-", "x-ratelimit-", "x-rate-limit-", "ratelimit-"}

// observe reads a provider's answer.
func observe(r *coordinationv1.ProviderResponse, now time.Time) *observed {
	o := &observed{limits: map[string]*coordinationv1.ObservedLimit{}}
	status := r.GetHttpStatus()
	o.refused = status == http.StatusTooManyRequests
	headers := r.GetHeaders()
	for _, original := range slices.Sorted(maps.Keys(headers)) {
		name, value := strings.ToLower(strings.TrimSpace(original)), strings.TrimSpace(headers[original])
		if !o.header(name, value, status, now) {
			o.ignored = append(o.ignored, original)
		}
	}
	o.linear(r.GetBody())
	o.google(r.GetBody(), now)
	return o
}

// list has the budgets in the order of their names.
func (o *observed) list() (all []*coordinationv1.ObservedLimit) {
	for _, dimension := range slices.Sorted(maps.Keys(o.limits)) {
		all = append(all, o.limits[dimension])
	}
	return all
}

// header reads one header. It is false where the header is about limits and cannot be understood.
func (o *observed) header(name, value string, status int32, now time.Time) bool {
	switch name {
	case "retry-after":
		at, ok := parseReset(value, now)
		if ok && status >= http.StatusBadRequest {
			o.retryAt = later(o.retryAt, at)
		}
		return ok
	case "ratelimit":
		return o.structured(value, now, true)
	case "ratelimit-policy":
		return o.structured(value, now, false)
	}
	for _, prefix := range limitPrefixes {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return o.named(rest, value, now)
		}
	}
	return true
}

// named reads a header such as x-ratelimit-<rest>, where rest has limit, remaining or reset at its start or its end, and
// beside it perhaps the name of a budget.
func (o *observed) named(rest, value string, now time.Time) bool {
	switch rest {
	case "used", "resource", "endpoint-name":
		return true // GitHub's and Linear's: they say nothing more
	}
	for _, what := range []string{"limit", "remaining", "reset"} {
		dimension, ok := defaultDimension, rest == what
		if before, found := strings.CutSuffix(rest, "-"+what); found {
			dimension, ok = before, true
		} else if after, found := strings.CutPrefix(rest, what+"-"); found {
			dimension, ok = after, true
		}
		if ok {
			return o.set(dimension, what, value, now)
		}
	}
	return false
}

// set notes one value of a budget.
func (o *observed) set(dimension, what, value string, now time.Time) bool {
	if dimension == "" || len(dimension) > 64 || len(o.limits) >= 64 {
		return false
	}
	if what == "reset" {
		at, ok := parseReset(value, now)
		if ok {
			o.at(dimension).ResetTime = timestamppb.New(at)
		}
		return ok
	}
	// Before it was structured, RateLimit-Limit could go on with policies: "100, 100;w=60".
	first, _, _ := strings.Cut(value, ",")
	first, _, _ = strings.Cut(first, ";")
	n, err := strconv.ParseInt(strings.TrimSpace(first), 10, 64)
	if err != nil || n < 0 || n > maxLimit || what == "limit" && n == 0 {
		return false
	}
	if what == "limit" {
		o.at(dimension).Limit = &n
	} else {
		o.at(dimension).Remaining = &n
	}
	return true
}

const maxLimit = 1_000_000_000_000

func (o *observed) at(dimension string) *coordinationv1.ObservedLimit {
	l := o.limits[dimension]
	if l == nil {
		l = &coordinationv1.ObservedLimit{Dimension: dimension}
		o.limits[dimension] = l
	}
	return l
}

// structured reads RateLimit and RateLimit-Policy, which are lists of RFC 9651: each item a name and parameters. standing
// tells the first from the second.
func (o *observed) structured(value string, now time.Time, standing bool) bool {
	items, ok := parseItems(value)
	if !ok || len(items) == 0 {
		return false
	}
	// As 07 had it: a dictionary.
	if len(items[0].params) == 0 && strings.Contains(items[0].name, "=") {
		for _, item := range items {
			key, v, _ := strings.Cut(item.name, "=")
			if ok = ok && slices.Contains([]string{"limit", "remaining", "reset"}, key); ok {
				ok = o.set(defaultDimension, key, v, now)
			}
		}
		return ok
	}
	for _, item := range items {
		dimension := strings.ToLower(item.name)
		if dimension == "" || dimension == "default" {
			dimension = defaultDimension
		}
		if !standing {
			if q, has := item.params["q"]; !has || !o.set(dimension, "limit", q, now) {
				ok = false
			}
			continue
		}
		r, has := item.params["r"]
		if !has || !o.set(dimension, "remaining", r, now) {
			ok = false
			continue
		}
		if t, has := item.params["t"]; has {
			ok = o.set(dimension, "reset", t, now) && ok
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

const (
	// Numbers from here on are times: seconds since 1970, and above maxSeconds milliseconds.
	minEpoch   = 1_000_000_000
	maxSeconds = 100_000_000_000
	// maxWait bounds what is believed: a limit that is said to last for longer is a mistake.
	maxWait = 32 * 24 * time.Hour
)

// parseReset reads when a budget is there again: seconds from now, seconds or milliseconds since 1970, a duration, RFC 3339,
// or an HTTP date. It is never before now. What lies further ahead than maxWait is not believed.
func parseReset(value string, now time.Time) (time.Time, bool) {
	value = strings.TrimSpace(value)
	at, ok := time.Time{}, false
	if n, err := strconv.ParseFloat(value, 64); err == nil {
		switch {
		case n < 0 || n != n || n >= maxSeconds*1000:
			return at, false
		case n >= maxSeconds:
			at = time.UnixMilli(int64(n))
		case n >= minEpoch:
			at = time.UnixMicro(int64(n * 1e6))
		case n > maxWait.Seconds():
			return at, false
		default:
			at = now.Add(time.Duration(n * float64(time.Second)))
		}
		ok = true
	} else if d, isDuration := parseDuration(value); isDuration {
		at, ok = now.Add(d), d >= 0 && d <= maxWait
	} else if t, err := time.Parse(time.RFC3339Nano, value); err == nil {
		at, ok = t, true
	} else if t, err := http.ParseTime(value); err == nil {
		at, ok = t, true
	}
	if !ok || at.After(now.Add(maxWait)) {
		return time.Time{}, false
	}
	return later(at, now).UTC(), true
}

// parseDuration reads "6m0s", "120ms" and, unlike time.ParseDuration, "1d2h".
func parseDuration(s string) (time.Duration, bool) {
	var days time.Duration
	if before, after, found := strings.Cut(s, "d"); found {
		n, err := strconv.ParseUint(before, 10, 8)
		if err != nil {
			return 0, false
		}
		days = time.Duration(n) * 24 * time.Hour
		if s = after; s == "" {
			return days, true
		}
	}
	d, err := time.ParseDuration(s)
	return days + d, err == nil && s != "0"
}

// linear reads an error of Linear's GraphQL API.
func (o *observed) linear(body []byte) {
	var e struct {
		Errors []struct {
			Extensions struct {
				Code string `json:"code"`
			} `json:"extensions"`
		} `json:"errors"`
	}
	if len(body) == 0 || json.Unmarshal(body, &e) != nil {
		return
	}
	for _, one := range e.Errors {
		o.refused = o.refused || one.Extensions.Code == "RATELIMITED"
	}
}

// google reads an error of Google's APIs.
func (o *observed) google(body []byte, now time.Time) {
	type status struct {
		Error struct {
			Status  string `json:"status"`
			Details []struct {
				Type       string `json:"@type"`
				RetryDelay string `json:"retryDelay"`
				Violations []struct {
					QuotaID    string `json:"quotaId"`
					QuotaValue string `json:"quotaValue"`
				} `json:"violations"`
			} `json:"details"`
		} `json:"error"`
	}
	var e status
	if len(body) == 0 {
		return
	}
	if json.Unmarshal(body, &e) != nil {
		var list []status // streaming calls answer with a list
		if json.Unmarshal(body, &list) != nil || len(list) == 0 {
			return
		}
		e = list[0]
	}
	if e.Error.Status != "RESOURCE_EXHAUSTED" {
		return
	}
	o.refused = true
	for _, d := range e.Error.Details {
		switch d.Type {
		case "type.googleapis.com/google.rpc.RetryInfo":
			if at, ok := parseReset(d.RetryDelay, now); ok {
				o.retryAt = later(o.retryAt, at)
			}
		case "type.googleapis.com/google.rpc.QuotaFailure":
			for _, v := range d.Violations {
				if dimension := quotaDimension(v.QuotaID); dimension != "" && len(o.limits) < 64 {
					none := int64(0)
					l := o.at(dimension)
					l.Remaining = &none
					if n, err := strconv.ParseInt(v.QuotaValue, 10, 64); err == nil && n > 0 && n <= maxLimit {
						l.Limit = &n
					}
				}
			}
		}
	}
}

// quotaDimension names the budget of a Google quota id, such as GenerateRequestsPerDayPerProjectPerModel-FreeTier:
// requests or tokens, a minute or, with -day, a day.
func quotaDimension(quotaID string) string {
	id := strings.ToLower(quotaID)
	var dimension string
	switch {
	case strings.Contains(id, "token"):
		dimension = "tokens"
	case strings.Contains(id, "request"):
		dimension = "requests"
	default:
		return ""
	}
	if strings.Contains(id, "perday") {
		dimension += "-day"
	}
	return dimension
}

// correct makes the policies that cover an operation agree with what a provider said. It only makes them tighter; a limit
// rises only where mayRaise. It returns the names of the policies that it changed, and whether it paused the API.
func correct(s bucketStore, c *storev1.ApiConfig, d *demand, o *observed, mayRaise bool, now time.Time) (corrected []string, paused bool) {
	named := false // the provider said which budget is used up, and some policy is that budget
	for _, p := range c.GetPolicies() {
		l := o.limits[p.GetDimension()]
		if l == nil || p.GetDimension() == "" || !d.covers(p) || p.GetAlgorithm() == storev1.Algorithm_ALGORITHM_CONCURRENCY {
			continue
		}
		b := s.bucket(p, now)
		changed := observeLimit(p, b, l, mayRaise, now)
		if l.Remaining != nil {
			changed = lower(p, b, l.GetRemaining(), l.GetResetTime().AsTime(), now) || changed
			if l.GetRemaining() == 0 {
				until := l.GetResetTime().AsTime()
				if o.refused {
					named = true
					until = later(until, o.retryAt)
					if l.ResetTime == nil && p.GetAlgorithm() == storev1.Algorithm_ALGORITHM_CALENDAR {
						until = later(until, b.GetWindowEnd().AsTime())
					}
				}
				if until.After(later(now, b.GetBlockedUntil().AsTime())) {
					b.BlockedUntil, changed = stamp(until), true
				}
			}
		}
		if changed {
			corrected = append(corrected, p.GetName())
		}
	}
	if !named && o.retryAt.After(later(now, s.state.GetPauseUntil().AsTime())) {
		s.state.PauseUntil, paused = stamp(o.retryAt), true
	}
	return corrected, paused
}

// observeLimit takes over the provider's own limit.
func observeLimit(p policy, b bucket, l *coordinationv1.ObservedLimit, mayRaise bool, now time.Time) bool {
	was, is := limitOf(p, b), l.GetLimit()
	if l.Limit == nil || is == was || is > was && !mayRaise {
		return false
	}
	if p.GetAlgorithm() == storev1.Algorithm_ALGORITHM_GCRA {
		// What is in the bucket stays, but drains at another rate.
		e := emission(p, b)
		owed := later(b.GetTat().AsTime(), now).Sub(now)
		units := int64((owed + e - 1) / e)
		b.ObservedLimit = is
		b.Tat = stamp(now.Add(times(units, emission(p, b))))
	}
	if b.ObservedLimit = is; is == p.GetLimit() {
		b.ObservedLimit = 0
	}
	return true
}

// lower takes what others must have taken, where the provider says that less remains than is counted here.
func lower(p policy, b bucket, remaining int64, reset, now time.Time) bool {
	more := standing(p, b, now).GetRemaining() - remaining
	if more <= 0 {
		return false
	}
	if p.GetAlgorithm() == storev1.Algorithm_ALGORITHM_SLIDING {
		// They are free again at the reset, if it is known, and no later than if they had been taken now.
		at := now
		if freed := reset.Add(-hold(p)); reset.After(now) && freed.Before(now) {
			at = freed
		}
		putSlot(b, slotTime(p, at), more)
		return true
	}
	take(p, b, more, now)
	return true
}
