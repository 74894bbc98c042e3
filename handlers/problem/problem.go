// Package problem has the errors by which a manager refuses. The package handlers, which alone puts errors on the wire, sends them as
// holdfast.error.v1 defines them: a reason has one code and one answer to whether a retry helps. It is a leaf.
package problem

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"

	errorv1 "holdfast/gen/holdfast/error/v1"
)

// Error is a refusal in the caller's words. All of it reaches the caller, so none of it may quote what only the server
// should know.
type Error struct {
	Reason errorv1.Reason
	// Message is a sentence for people.
	Message string
	// Detail has facts for programs: one of the messages that Problem.detail can hold, or nil.
	Detail proto.Message
	// RetryAfter is when trying again may help; 0: at any time, or never.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return strings.ToLower(Name(e.Reason)) + ": " + e.Message }

// Code returns the code of the error's reason.
func (e *Error) Code() connect.Code { return rules[e.Reason].code }

// Retry returns whether a retry helps.
func (e *Error) Retry() errorv1.Retry { return rules[e.Reason].retry }

// Problem returns the error as programs read it.
func (e *Error) Problem() *errorv1.Problem {
	p := &errorv1.Problem{Reason: Name(e.Reason), Retry: e.Retry()}
	if e.RetryAfter > 0 {
		p.RetryAfter = durationpb.New(e.RetryAfter)
	}
	if e.Detail != nil {
		m, detail := p.ProtoReflect(), e.Detail.ProtoReflect()
		of := m.Descriptor().Oneofs().ByName("detail").Fields()
		for i := range of.Len() {
			if of.Get(i).Message() == detail.Descriptor() {
				m.Set(of.Get(i), protoreflect.ValueOfMessage(detail))
			}
		}
	}
	return p
}

// Name returns a reason as it is on the wire, such as NOT_FOUND.
func Name(r errorv1.Reason) string { return strings.TrimPrefix(r.String(), "REASON_") }

type rule struct {
	code  connect.Code
	retry errorv1.Retry
}

// rules have those of each reason.
var rules = newRules() //nolint:gochecknoglobals // never changed

func newRules() map[errorv1.Reason]rule {
	all := map[errorv1.Reason]rule{}
	for number := range errorv1.Reason_name {
		r := errorv1.Reason(number)
		options, _ := r.Descriptor().Values().ByNumber(r.Number()).Options().(*descriptorpb.EnumValueOptions)
		of, _ := proto.GetExtension(options, errorv1.E_Rule).(*errorv1.Rule)
		code := connect.CodeInternal
		if of != nil {
			_ = code.UnmarshalText([]byte(of.GetCode())) // a test reads them all
		}
		all[r] = rule{code, of.GetRetry()}
	}
	return all
}

// New refuses for a reason.
func New(reason errorv1.Reason, message string) *Error {
	return &Error{Reason: reason, Message: message}
}

// Later refuses for now: trying again may help after a while.
func Later(reason errorv1.Reason, message string, after time.Duration) *Error {
	return &Error{Reason: reason, Message: message, RetryAfter: after}
}

// InvalidArgument refuses one field's value. The path has the field's proto names.
func InvalidArgument(field, description string) *Error {
	return InvalidFields(&errorv1.Violation{Field: field, Description: description})
}

// InvalidFields refuses several fields' values; there is at least one.
func InvalidFields(fields ...*errorv1.Violation) *Error {
	said := make([]string, len(fields))
	for i, f := range fields {
		said[i] = f.GetDescription()
		if f.GetField() != "" {
			said[i] = f.GetField() + ": " + f.GetDescription()
		}
	}
	return &Error{
		Reason: errorv1.Reason_REASON_FIELD_INVALID, Message: strings.Join(said, "; "), Detail: &errorv1.Violations{Fields: fields},
	}
}

// IllegalTransition refuses to go from one status to another, and names those that are allowed.
func IllegalTransition(from, to string, allowed ...string) *Error {
	e := New(errorv1.Reason_REASON_ILLEGAL_TRANSITION, fmt.Sprintf("%s cannot follow %s", to, from))
	e.Detail = &errorv1.Transition{From: from, To: to, Allowed: allowed}
	if len(allowed) > 0 {
		e.Message += "; allowed: " + strings.Join(allowed, ",")
	}
	return e
}

// SizeExceeded refuses a request that has too much of what name says, such as bytes.
func SizeExceeded(name string, size, limit int64, message string) *Error {
	return &Error{
		Reason: errorv1.Reason_REASON_SIZE_EXCEEDED, Message: message,
		Detail: &errorv1.Limit{Name: name, Scope: "request", Limit: limit, Value: size},
	}
}

// LimitReached refuses one more of what is bounded. It ends by itself after a while, unless after is 0.
func LimitReached(scope, name string, limit int, message string, after time.Duration) *Error {
	return &Error{
		Reason: errorv1.Reason_REASON_LIMIT_REACHED, Message: message, RetryAfter: after,
		Detail: &errorv1.Limit{Name: name, Scope: scope, Limit: int64(limit), Value: int64(limit)},
	}
}

// NotFound says that something is not there, or not for this caller. The two are never told apart.
func NotFound(message string) *Error { return New(errorv1.Reason_REASON_NOT_FOUND, message) }

// PermissionDenied refuses what the caller's role lacks the right to.
func PermissionDenied(message string) *Error {
	return New(errorv1.Reason_REASON_ROLE_REQUIRED, message)
}
