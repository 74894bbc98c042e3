package dialect

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

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
