package handlers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/db"
	"holdfast/handlers/problem"
	"holdfast/identity"
	"holdfast/object"
)

// domain is the ErrorInfo domain of every reason.
const domain = "holdfast"

// Callers wait this long if the error itself does not say.
const (
	retrySoon  = 250 * time.Millisecond
	retryLater = 2 * time.Second
)

// errDraining ends streams at shutdown.
var errDraining = errors.New("handlers: shutting down")

// explain translates every error that a caller can get. It returns nil for an error that means nothing to the caller.
//
// The order matters when errors wrap each other: an unknown outcome may be caused by a canceled context, and the caller must
// learn of the outcome.
func explain(err error) *problem.Error {
	var (
		refusal  *problem.Error
		fields   *protovalidate.ValidationError
		mismatch *object.VersionMismatchError
		full     *object.OverloadedError
		large    *object.TooLargeError
		quota    *object.QuotaError
	)
	switch {
	case errors.As(err, &refusal):
		return refusal
	case errors.As(err, &fields):
		return violations(fields)

	case errors.Is(err, identity.ErrAbsent):
		return problem.Unauthenticated("CREDENTIAL_MISSING", howToAuthenticate)
	case errors.Is(err, db.ErrOutcomeUnknown):
		// Not unavailable, which clients and proxies repeat without asking: without a request id that could apply the
		// change twice. Not aborted, which promises that nothing happened.
		return &problem.Error{
			Code: connect.CodeUnknown, Reason: "OUTCOME_UNKNOWN",
			Message: "the connection to the database was lost during the commit, so the change may or may not have happened; " +
				"with a request_id, sending the same request again is safe",
		}
	case errors.As(err, &mismatch):
		return &problem.Error{
			Code: connect.CodeAborted, Reason: "VERSION_MISMATCH",
			Message: fmt.Sprintf("the object is at version %d, not %d; read it again and decide again", mismatch.Current, mismatch.Expected),
			Metadata: map[string]string{
				"current_version": strconv.FormatInt(int64(mismatch.Current), 10),
				"if_version":      strconv.FormatInt(int64(mismatch.Expected), 10),
			},
		}
	case errors.Is(err, object.ErrRequestReused):
		return &problem.Error{
			Code: connect.CodeAlreadyExists, Reason: "REQUEST_ID_REUSED",
			Message: "this request_id was used for another request; use a new one for each change",
		}
	case errors.Is(err, object.ErrExists):
		return &problem.Error{
			Code: connect.CodeAlreadyExists, Reason: "OBJECT_EXISTS",
			Message: "this id is taken; choose another, or leave it out where the server can make one",
		}
	case errors.Is(err, object.ErrServicesOnly):
		return problem.PermissionDenied("this belongs to the whole tenant, and only a service key may do that to it, on its own behalf")
	case errors.Is(err, object.ErrNotFound), errors.Is(err, db.ErrForbidden):
		return problem.NotFound("there is no such object, or it is not yours")

	case errors.As(err, &large):
		p := problem.InvalidArgument(large.What, fmt.Sprintf("would have %d bytes, over the limit of %d", large.Size, large.Limit))
		p.Reason = "LIMIT_EXCEEDED"
		p.Metadata = map[string]string{"size": strconv.Itoa(large.Size), "limit": strconv.Itoa(large.Limit)}
		return p
	case errors.As(err, &quota):
		return overQuota(quota)
	case errors.Is(err, object.ErrInvalid):
		return &problem.Error{Code: connect.CodeInvalidArgument, Reason: "FIELD_INVALID", Message: err.Error()}
	case errors.Is(err, db.ErrInvalidData):
		return problem.InvalidArgument("", "the request holds a value that cannot be stored, such as JSON nested too deep")

	case errors.As(err, &full):
		said, metadata := "too much is waiting for the "+full.What, map[string]string{"limit": full.What}
		if full.Of != "" {
			said, metadata["scope"] = "too much at once: "+full.What+" of the "+full.Of, full.Of
		}
		p := problem.Exhausted("OVERLOADED", said+"; nothing was done", max(full.RetryAfter, retrySoon))
		p.Metadata = metadata
		return p
	case errors.Is(err, object.ErrNewerSchema):
		return problem.Unavailable("NEWER_SCHEMA", "a newer release wrote this object; this one will not change it", retryLater)
	case errors.Is(err, object.ErrWatchOver):
		return problem.Unavailable("STREAM_OVER", "this stream has reached its greatest age; reconnect with the last version that you saw", retrySoon)
	case errors.Is(err, object.ErrClosed), errors.Is(err, errDraining):
		return problem.Unavailable("SHUTTING_DOWN", "this server is shutting down; reconnect", retrySoon)
	case errors.Is(err, db.ErrUnavailable):
		return problem.Unavailable("DATABASE_UNAVAILABLE", "the database cannot be reached; nothing was done", retryLater)
	case errors.Is(err, db.ErrFenced), errors.Is(err, db.ErrRequestKnown), errors.Is(err, db.ErrContention):
		// The runtime tries these again by itself. One that comes through lost to others each time.
		return problem.Unavailable("CONTENTION", "others change this object at the same time; nothing was done", retrySoon)

	case errors.Is(err, context.DeadlineExceeded):
		return &problem.Error{Code: connect.CodeDeadlineExceeded, Reason: "DEADLINE_EXCEEDED", Message: "the time for this call is over"}
	case errors.Is(err, context.Canceled):
		return &problem.Error{Code: connect.CodeCanceled, Reason: "CANCELED", Message: "the caller gave up"}
	}
	return nil
}

// overQuota sets no retry delay: a retry does not help until someone has deleted something or raised the quota.
func overQuota(e *object.QuotaError) *problem.Error {
	freed := "one that is deleted is free at once"
	if e.Name == "bytes" {
		freed = "an object that is deleted is free once it was cleaned up, after two days at most"
	}
	return &problem.Error{
		Code: connect.CodeResourceExhausted, Reason: "QUOTA_EXCEEDED",
		Message: fmt.Sprintf("the %[1]s has %[2]d %[3]s stored, and its quota is %[4]d: delete what is no longer needed (%[5]s), or ask the operator for a larger quota (--%[1]s-%[3]s)",
			e.Scope, e.Used, e.Name, e.Limit, freed),
		Metadata: map[string]string{
			"scope": e.Scope, "name": e.Name, "limit": strconv.FormatInt(e.Limit, 10), "value": strconv.FormatInt(e.Used, 10),
		},
	}
}

func violations(err *protovalidate.ValidationError) *problem.Error {
	fields := make([]problem.Field, len(err.Violations))
	for i, v := range err.Violations {
		said := v.Proto.GetMessage()
		if said == "" {
			said = "breaks the rule " + v.Proto.GetRuleId()
		}
		fields[i] = problem.Field{Path: protovalidate.FieldPathString(v.Proto.GetField()), Description: said}
	}
	return problem.InvalidFields(fields...)
}

// wire returns the Connect error for err, and its reason. An error that means nothing to the caller becomes one fixed
// sentence; then unexplained is true, and the caller of wire logs the error.
func wire(err error, trace string) (_ *connect.Error, reason string, unexplained bool) {
	if connect.IsNotModifiedError(err) {
		var e *connect.Error
		errors.As(err, &e)
		return e, "", false
	}
	p := explain(err)
	if p == nil {
		// Connect's own errors, such as broken streams and oversized messages, have a code and no secrets. But unexpected errors
		// are also unknown or internal, and Connect reports a failed check as an invalid argument.
		var e *connect.Error
		if errors.As(err, &e) && e.Code() != connect.CodeUnknown && e.Code() != connect.CodeInternal && !errors.Is(err, errUnchecked) {
			if e.Code() == connect.CodeInvalidArgument { // of its framing: the codecs and intake say what else is wrong
				return encode(bodyBroken("it is not as its protocol has it")), reasonBroken, false
			}
			return e, "", false
		}
		p = &problem.Error{
			Code: connect.CodeInternal, Reason: "INTERNAL", Message: "internal error, trace " + trace,
			Metadata: map[string]string{"trace_id": trace},
		}
		unexplained = true
	}
	return encode(p), p.Reason, unexplained
}

// encode converts a refusal to a Connect error with google.rpc details. Connect's JSON has them in base64 and, under "debug",
// as JSON.
func encode(p *problem.Error) *connect.Error {
	e := connect.NewError(p.Code, errors.New(p.Message))
	add := func(m proto.Message) {
		if d, err := connect.NewErrorDetail(m); err == nil {
			e.AddDetail(d)
		}
	}
	add(&errdetails.ErrorInfo{Reason: p.Reason, Domain: domain, Metadata: p.Metadata})
	if len(p.Fields) > 0 {
		bad := &errdetails.BadRequest{}
		for _, f := range p.Fields {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: f.Path, Description: f.Description, Reason: p.Reason,
			})
		}
		add(bad)
	}
	if p.Code == connect.CodeFailedPrecondition {
		add(&errdetails.PreconditionFailure{
			Violations: []*errdetails.PreconditionFailure_Violation{{Type: p.Reason, Description: p.Message}},
		})
	}
	if p.RetryAfter > 0 {
		add(&errdetails.RetryInfo{RetryDelay: durationpb.New(p.RetryAfter)})
	}
	return e
}
