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
	"cmp"
	"maps"
	"net/http"
	"slices"
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
