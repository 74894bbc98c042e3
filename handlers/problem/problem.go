// Package problem is what a manager says when it refuses: the error contract that managers share with the package
// handlers, which alone puts it on the wire. It is a leaf.
package problem

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
)

// Error is a refusal in the caller's words. All of it reaches the caller, so none of it may quote what only the server
// should know.
type Error struct {
	Code connect.Code
	// Reason is one constant word for programs, such as ILLEGAL_TRANSITION.
	Reason string
	// Message is a sentence for people.
	Message string
	// Metadata are more facts for programs, by snake_case name.
	Metadata map[string]string
	// Fields are the request's fields that are wrong.
	Fields []Field
	// RetryAfter is when trying again may help; 0: it will not.
	RetryAfter time.Duration
}

// Field is one field of a request, as a path of its proto names, and what is wrong with it.
type Field struct{ Path, Description string }

func (e *Error) Error() string { return strings.ToLower(e.Reason) + ": " + e.Message }

// InvalidArgument refuses one field's value.
func InvalidArgument(field, description string) *Error {
	return InvalidFields(Field{field, description})
}

// InvalidFields refuses several fields' values; there is at least one.
func InvalidFields(fields ...Field) *Error {
	said := make([]string, len(fields))
	for i, f := range fields {
		said[i] = f.Description
		if f.Path != "" {
			said[i] = f.Path + ": " + f.Description
		}
	}
	return &Error{
		Code: connect.CodeInvalidArgument, Reason: "FIELD_INVALID", Message: strings.Join(said, "; "), Fields: fields,
	}
}

// FailedPrecondition refuses a change that the object's state does not allow. Where others would be, they are allowed.
func FailedPrecondition(reason, message string, allowed ...string) *Error {
	e := &Error{Code: connect.CodeFailedPrecondition, Reason: reason, Message: message}
	if len(allowed) > 0 {
		list := strings.Join(allowed, ",")
		e.Metadata = map[string]string{"allowed": list}
		e.Message = fmt.Sprintf("%s; allowed: %s", message, list)
	}
	return e
}

// IllegalTransition refuses to go from one status to another, and names those that are allowed.
func IllegalTransition(from, to string, allowed ...string) *Error {
	return FailedPrecondition("ILLEGAL_TRANSITION", fmt.Sprintf("%s cannot follow %s", to, from), allowed...)
}

// NotFound says that something is not there, or not for this caller. The two are never told apart.
func NotFound(message string) *Error {
	return &Error{Code: connect.CodeNotFound, Reason: "NOT_FOUND", Message: message}
}

// PermissionDenied refuses what the caller's role lacks the right to.
func PermissionDenied(message string) *Error {
	return &Error{Code: connect.CodePermissionDenied, Reason: "ROLE_REQUIRED", Message: message}
}

// Unauthenticated refuses a credential.
func Unauthenticated(reason, message string) *Error {
	return &Error{Code: connect.CodeUnauthenticated, Reason: reason, Message: message}
}

// Exhausted refuses for now: something bounded is full.
func Exhausted(reason, message string, retryAfter time.Duration) *Error {
	return &Error{Code: connect.CodeResourceExhausted, Reason: reason, Message: message, RetryAfter: retryAfter}
}

// Unavailable refuses for now. Nothing was done, so trying again is safe.
func Unavailable(reason, message string, retryAfter time.Duration) *Error {
	return &Error{Code: connect.CodeUnavailable, Reason: reason, Message: message, RetryAfter: retryAfter}
}
