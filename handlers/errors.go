package handlers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/db"
	errorv1 "holdfast/gen/holdfast/error/v1"
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
		return problem.New(errorv1.Reason_REASON_CREDENTIAL_MISSING, howToAuthenticate)
	case errors.Is(err, db.ErrOutcomeUnknown):
		// Not unavailable, which clients and proxies repeat without asking: without a request id that could apply the
		// change twice. Not aborted, which promises that nothing happened.
		return problem.New(errorv1.Reason_REASON_OUTCOME_UNKNOWN,
			"the connection to the database was lost during the commit, so the change may or may not have happened; "+
				"with a request_id, sending the same request again is safe")
	case errors.As(err, &mismatch):
		return versionMismatch(mismatch)
	case errors.Is(err, object.ErrRequestReused):
		return problem.New(errorv1.Reason_REASON_REQUEST_ID_REUSED, "this request_id was used for another request; use a new one for each change")
	case errors.Is(err, object.ErrExists):
		return problem.New(errorv1.Reason_REASON_ALREADY_EXISTS, "this id is taken; choose another, or leave it out where the server can make one")
	case errors.Is(err, object.ErrServicesOnly):
		return problem.PermissionDenied("this belongs to the whole tenant, and only a service key may do that to it, on its own behalf")
	case errors.Is(err, object.ErrNotFound), errors.Is(err, db.ErrForbidden):
		return problem.NotFound("there is no such object, or it is not yours")

	case errors.As(err, &large):
		p := problem.SizeExceeded(large.What, int64(large.Size), int64(large.Limit),
			fmt.Sprintf("%s: would have %d bytes, over the limit of %d", large.What, large.Size, large.Limit))
		p.Detail.(*errorv1.Limit).Scope = "object" //nolint:forcetypeassert // SizeExceeded has just set it
		return p
	case errors.As(err, &quota):
		return overQuota(quota)
	case errors.Is(err, object.ErrInvalid):
		return problem.New(errorv1.Reason_REASON_FIELD_INVALID, strings.TrimPrefix(err.Error(), object.ErrInvalid.Error()+": "))
	case errors.Is(err, db.ErrInvalidData):
		return problem.InvalidArgument("", "the request holds a value that cannot be stored, such as JSON nested too deep")

	case errors.As(err, &full):
		said, limit := "too much is waiting for the "+full.What, &errorv1.Limit{Name: "calls", Scope: full.What}
		if full.Of != "" {
			said, limit = "too much at once: "+full.What+" of the "+full.Of, &errorv1.Limit{Name: full.What, Scope: full.Of}
		}
		p := problem.Later(errorv1.Reason_REASON_OVERLOADED, said+"; nothing was done", max(full.RetryAfter, retrySoon))
		p.Detail = limit
		return p
	case errors.Is(err, object.ErrNewerSchema):
		return problem.Later(errorv1.Reason_REASON_NEWER_SCHEMA, "a newer release wrote this object; this one will not change it", retryLater)
	case errors.Is(err, object.ErrWatchOver):
		return problem.Later(errorv1.Reason_REASON_STREAM_OVER,
			"this stream has reached its greatest age; reconnect with your last cursors", retrySoon)
	case errors.Is(err, object.ErrClosed), errors.Is(err, errDraining):
		return problem.Later(errorv1.Reason_REASON_SHUTTING_DOWN, "this server is shutting down; reconnect", retrySoon)
	case errors.Is(err, db.ErrUnavailable):
		return problem.Later(errorv1.Reason_REASON_DATABASE_UNAVAILABLE, "the database cannot be reached; nothing was done", retryLater)
	case errors.Is(err, db.ErrFenced), errors.Is(err, db.ErrRequestKnown), errors.Is(err, db.ErrContention):
		// The runtime tries these again by itself. One that comes through lost to others each time.
		return problem.Later(errorv1.Reason_REASON_CONTENTION, "others change this object at the same time; nothing was done", retrySoon)

	case errors.Is(err, context.DeadlineExceeded):
		return problem.New(errorv1.Reason_REASON_DEADLINE_EXCEEDED, "the time for this call is over")
	case errors.Is(err, context.Canceled):
		return problem.New(errorv1.Reason_REASON_CANCELED, "the caller gave up")
	case errors.Is(err, errUnchecked):
		return nil // connect reports a failed check as an invalid argument
	}
	return explainConnect(err)
}

// explainConnect translates what Connect itself refuses. Its texts are about the request and hold no secrets, except those of codes
// that unexpected errors have, too: these mean nothing to the caller.
func explainConnect(err error) *problem.Error {
	e, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return nil
	}
	switch e.Code() { //nolint:exhaustive // Connect makes no others
	case connect.CodeInvalidArgument:
		return bodyBroken("it is not as its protocol has it")
	case connect.CodeUnimplemented:
		return problem.New(errorv1.Reason_REASON_METHOD_UNKNOWN, e.Message())
	case connect.CodeResourceExhausted:
		return problem.New(errorv1.Reason_REASON_SIZE_EXCEEDED, e.Message())
	case connect.CodeNotFound:
		return problem.NotFound(e.Message())
	case connect.CodeDeadlineExceeded:
		return problem.New(errorv1.Reason_REASON_DEADLINE_EXCEEDED, e.Message())
	case connect.CodeCanceled:
		return problem.New(errorv1.Reason_REASON_CANCELED, e.Message())
	}
	return nil
}

func versionMismatch(e *object.VersionMismatchError) *problem.Error {
	at := fmt.Sprintf("is at version %d, not %d", e.Current, e.Expected)
	switch {
	case e.Current == 0:
		at = fmt.Sprintf("does not exist, so it is not at version %d", e.Expected)
	case e.Expected == 0:
		at = fmt.Sprintf("exists, at version %d, and if_version 0 says that it must not", e.Current)
	}
	name := e.Kind + "/" + string(e.ID)
	p := problem.New(errorv1.Reason_REASON_VERSION_MISMATCH, name+" "+at+"; read it again and decide again")
	p.Detail = &errorv1.Mismatch{CurrentVersion: int64(e.Current), Exists: e.Current != 0, Object: name}
	return p
}

// overQuota sets no retry delay: a retry does not help until someone has deleted something or raised the quota.
func overQuota(e *object.QuotaError) *problem.Error {
	freed := "one that is deleted is free at once"
	if e.Name == "bytes" {
		freed = "an object that is deleted is free once it was cleaned up, after two days at most"
	}
	p := problem.New(errorv1.Reason_REASON_QUOTA_EXCEEDED,
		fmt.Sprintf("the %[1]s has %[2]d %[3]s stored, and its quota is %[4]d: delete what is no longer needed (%[5]s), or ask the operator for a larger quota (--%[1]s-%[3]s)",
			e.Scope, e.Used, e.Name, e.Limit, freed))
	p.Detail = &errorv1.Limit{Scope: e.Scope, Name: e.Name, Limit: e.Limit, Value: e.Used}
	return p
}

func violations(err *protovalidate.ValidationError) *problem.Error {
	fields := make([]*errorv1.Violation, len(err.Violations))
	for i, v := range err.Violations {
		said := v.Proto.GetMessage()
		if said == "" {
			said = "breaks the rule " + v.Proto.GetRuleId()
		}
		fields[i] = &errorv1.Violation{Field: protovalidate.FieldPathString(v.Proto.GetField()), Rule: v.Proto.GetRuleId(), Description: said}
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
		p = problem.New(errorv1.Reason_REASON_INTERNAL, "internal error, trace "+trace)
		unexplained = true
	}
	return encode(p, trace), problem.Name(p.Reason), unexplained
}

// Explain is the Problem of an error, for answers that have one in a message. It is nil for an error that means nothing to the caller.
func Explain(err error) *errorv1.Problem {
	p := explain(err)
	if p == nil {
		return nil
	}
	return p.Problem()
}

// encode converts a refusal to a Connect error. Its details are our Problem, then what tools for google.rpc know. Connect's JSON has
// them in base64 and, under "debug", as JSON.
func encode(p *problem.Error, trace string) *connect.Error {
	e := connect.NewError(p.Code(), errors.New(p.Message))
	add := func(m proto.Message) {
		if d, err := connect.NewErrorDetail(m); err == nil {
			e.AddDetail(d)
		}
	}
	said := p.Problem()
	info := &errdetails.ErrorInfo{Reason: said.GetReason(), Domain: domain}
	if p.Reason == errorv1.Reason_REASON_INTERNAL {
		said.TraceId, info.Metadata = trace, map[string]string{"trace_id": trace}
	}
	if p.Detail != nil {
		info.Metadata = metadata(p.Detail.ProtoReflect())
	}
	add(said)
	add(info)
	fields := said.GetViolations().GetFields()
	if l := said.GetLimit(); l != nil && p.Code() == connect.CodeInvalidArgument {
		fields = []*errorv1.Violation{{Field: l.GetName(), Description: p.Message}}
	}
	if len(fields) > 0 {
		bad := &errdetails.BadRequest{}
		for _, f := range fields {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: f.GetField(), Description: f.GetDescription(), Reason: said.GetReason(),
			})
		}
		add(bad)
	}
	if p.RetryAfter > 0 {
		add(&errdetails.RetryInfo{RetryDelay: said.GetRetryAfter()})
	}
	return e
}

// metadata returns the fields of a detail as texts for ErrorInfo.
func metadata(detail protoreflect.Message) map[string]string {
	metadata := map[string]string{}
	detail.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList() && fd.Message() != nil: // violations, which BadRequest has
		case fd.Message() != nil:
			if at, ok := v.Message().Interface().(*timestamppb.Timestamp); ok {
				metadata[string(fd.Name())] = at.AsTime().Format(time.RFC3339Nano)
			}
		case fd.IsList():
			all := make([]string, v.List().Len())
			for i := range all {
				all[i] = v.List().Get(i).String()
			}
			metadata[string(fd.Name())] = strings.Join(all, ",")
		default:
			metadata[string(fd.Name())] = v.String()
		}
		return true
	})
	return metadata
}
