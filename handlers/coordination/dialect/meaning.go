package dialect

import (
	"mime"
	"net/http"
	"strings"
)

// Meaning is what an answer means for a call that changes something.
type Meaning int

const (
	// Done: it has happened.
	Done Meaning = iota
	// Refused: it has not, and may be sent again later.
	Refused
	// Fixable: it has not, and may be sent again once a person has fixed something: a credential, a bill, a right, a conflict.
	Fixable
	// Final: it has not, and never will.
	Final
	// Doubtful: it may have happened.
	Doubtful
)

// MeaningOf says what an answer means. graphQL: the request was one of GraphQL, whose errors come with any status.
func MeaningOf(status int, body []byte, graphQL bool) Meaning {
	if graphQL {
		if m, ok := ofGraphQL(body); ok {
			return m
		}
	}
	if status < http.StatusBadRequest {
		return Done
	}
	if Read(Answer{Status: status, Body: body}).Refused {
		return Refused
	}
	switch status {
	case http.StatusTooEarly, http.StatusMisdirectedRequest:
		return Refused
	case http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusConflict, http.StatusLocked:
		return Fixable
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return Final
	case http.StatusRequestTimeout:
		return Doubtful
	}
	if status >= http.StatusInternalServerError {
		return Doubtful // also of 503: a proxy in front answers so for what went on behind it
	}
	return Final
}

var (
	fixableCodes = words("authenticationerror unauthenticated authentication forbidden featurenotaccessible usagelimitexceeded insufficientscope accessdenied notauthorized")
	finalCodes   = words(`graphqlvalidationfailed graphqlparsefailed badrequest badusererror baduserinput invalidinput inputerror usererror graphqlerror
		persistedquerynotfound persistedquerynotsupported operationresolutionfailure entitynotfound notfound undefinedfield argumentliteralsincompatible`)
)

// ofGraphQL says what errors mean that an answer of GraphQL has; false where it has none, or something was done despite them.
func ofGraphQL(body []byte) (Meaning, bool) {
	document, ok := decode(body)
	m, isMap := document.(map[string]any)
	errs, _ := m["errors"].([]any)
	if !ok || !isMap || len(errs) == 0 {
		return Done, false
	}
	data, executed := m["data"]
	if fields, _ := data.(map[string]any); fields != nil {
		for _, field := range fields {
			if field != nil {
				return Done, false
			}
		}
	}
	if Read(Answer{Status: http.StatusBadRequest, Body: body}).Refused {
		return Refused, true
	}
	meaning := Final
	for _, one := range errs {
		e, _ := one.(map[string]any)
		extensions, _ := e["extensions"].(map[string]any)
		is := Doubtful
		for _, code := range []string{text(extensions["code"]), text(extensions["type"]), text(e["type"])} {
			switch {
			case fixableCodes[plain(code)]:
				is = Fixable
			case finalCodes[plain(code)] && is == Doubtful:
				is = Final
			}
		}
		if !executed && is == Doubtful {
			is = Final // without data nothing was executed: GraphQL, 7.1.2
		}
		if is == Doubtful {
			return Doubtful, true
		}
		if is == Fixable {
			meaning = Fixable
		}
	}
	return meaning, true
}

// Streams reports whether an answer of that Content-Type is a stream, which may not end for long.
func Streams(contentType string) bool {
	kind, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		kind, _, _ = strings.Cut(strings.ToLower(contentType), ";")
		kind = strings.TrimSpace(kind)
	}
	switch kind {
	case "text/event-stream", "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines",
		"application/json-seq", "application/stream+json", "application/json-stream", "application/octet-stream",
		"application/vnd.amazon.eventstream", "multipart/x-mixed-replace", "multipart/mixed":
		return true
	}
	for _, prefix := range []string{"application/grpc", "application/connect+", "audio/", "video/"} {
		if strings.HasPrefix(kind, prefix) {
			return true
		}
	}
	return false
}
