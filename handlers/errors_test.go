package handlers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	"holdfast/db"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/handlers/problem"
	"holdfast/identity"
	"holdfast/object"
)

// detail finds an error's detail of a type; nil where it has none.
func detail[M proto.Message](t *testing.T, e *connect.Error) (m M) {
	t.Helper()
	for _, d := range e.Details() {
		v, err := d.Value()
		if err != nil {
			t.Fatal(err)
		}
		if found, ok := v.(M); ok {
			return found
		}
	}
	return m
}

// What the runtime says of a value is for callers, the name of its error is not.
func TestACallerReadsNoNameOfAnError(t *testing.T) {
	t.Parallel()
	if p := explain(fmt.Errorf("%w: page token", object.ErrInvalid)); p.Message != "page token" {
		t.Error(p.Message)
	}
}

func TestEveryErrorOfTheTable(t *testing.T) {
	t.Parallel()
	invalid := protovalidate.Validate(&conversationv1.GetConversationRequest{ConversationId: "a b", MessageLimit: 201})
	tests := []struct {
		name     string
		err      error
		code     connect.Code
		reason   string
		metadata string
		fields   []string
		retry    bool
	}{
		{name: "no credential", err: identity.ErrAbsent, code: connect.CodeUnauthenticated, reason: "CREDENTIAL_MISSING"},
		{name: "bad credential", err: invalidCredential("x"), code: connect.CodeUnauthenticated, reason: "CREDENTIAL_INVALID"},
		{name: "session", err: problem.New(errorv1.Reason_REASON_SESSION_EXPIRED, "x"), code: connect.CodeUnauthenticated, reason: "SESSION_EXPIRED"},
		{name: "not there", err: object.ErrNotFound, code: connect.CodeNotFound, reason: "NOT_FOUND"},
		{name: "another's row", err: fmt.Errorf("%w: 42501", db.ErrForbidden), code: connect.CodeNotFound, reason: "NOT_FOUND"},
		{name: "part of an object", err: problem.NotFound("no such message"), code: connect.CodeNotFound, reason: "NOT_FOUND"},
		{name: "role", err: problem.PermissionDenied("x"), code: connect.CodePermissionDenied, reason: "ROLE_REQUIRED"},
		{
			name: "protovalidate", err: connect.NewError(connect.CodeInvalidArgument, invalid), code: connect.CodeInvalidArgument,
			reason: "FIELD_INVALID", fields: []string{"conversation_id", "message_limit"},
		},
		{
			name: "a field by a manager", err: problem.InvalidArgument("parts[3].text", "too long"), code: connect.CodeInvalidArgument,
			reason: "FIELD_INVALID", fields: []string{"parts[3].text"},
		},
		{
			name: "by the runtime", err: fmt.Errorf("%w: page token", object.ErrInvalid), code: connect.CodeInvalidArgument,
			reason: "FIELD_INVALID",
		},
		{
			name: "too large", err: &object.TooLargeError{What: "state", Size: 300, Limit: 200}, code: connect.CodeInvalidArgument,
			reason: "SIZE_EXCEEDED", metadata: "limit=200 name=state scope=object value=300", fields: []string{"state"},
		},
		{name: "not storable", err: db.ErrInvalidData, code: connect.CodeInvalidArgument, reason: "FIELD_INVALID", fields: []string{""}},
		{
			name: "version", err: fmt.Errorf("update: %w", &object.VersionMismatchError{Kind: "conversation", ID: "c1", Expected: 3, Current: 5}), code: connect.CodeAborted,
			reason: "VERSION_MISMATCH", metadata: "current_version=5 exists=true object=conversation/c1",
		},
		{name: "request id", err: object.ErrRequestReused, code: connect.CodeAlreadyExists, reason: "REQUEST_ID_REUSED"},
		{name: "exists", err: object.ErrExists, code: connect.CodeAlreadyExists, reason: "ALREADY_EXISTS"},
		{
			name: "transition", err: problem.IllegalTransition("IDLE", "SPEAKING", "LISTENING", "ENDED"),
			code: connect.CodeFailedPrecondition, reason: "ILLEGAL_TRANSITION", metadata: "allowed=LISTENING,ENDED from=IDLE to=SPEAKING",
		},
		{
			name: "fenced", err: problem.New(errorv1.Reason_REASON_FENCED, "epoch 1 is over"), code: connect.CodeFailedPrecondition,
			reason: "FENCED",
		},
		{
			name: "mailbox", err: &object.OverloadedError{What: "tenant", RetryAfter: time.Second}, code: connect.CodeResourceExhausted,
			reason: "OVERLOADED", metadata: "name=calls scope=tenant", retry: true,
		},
		{name: "mailbox, no delay", err: &object.OverloadedError{What: "streams"}, code: connect.CodeResourceExhausted, reason: "OVERLOADED", metadata: "name=calls scope=streams", retry: true},
		{
			name: "quota", err: &object.QuotaError{Scope: "user", Name: "objects", Limit: 3, Used: 4}, code: connect.CodeResourceExhausted,
			reason: "QUOTA_EXCEEDED", metadata: "limit=3 name=objects scope=user value=4",
		},
		{name: "postgres away", err: fmt.Errorf("%w: %w", db.ErrUnavailable, context.DeadlineExceeded), code: connect.CodeUnavailable, reason: "DATABASE_UNAVAILABLE", retry: true},
		{name: "shutdown", err: object.ErrClosed, code: connect.CodeUnavailable, reason: "SHUTTING_DOWN", retry: true},
		{name: "draining", err: errDraining, code: connect.CodeUnavailable, reason: "SHUTTING_DOWN", retry: true},
		{name: "newer row", err: object.ErrNewerSchema, code: connect.CodeUnavailable, reason: "NEWER_SCHEMA", retry: true},
		{name: "lost to others", err: db.ErrFenced, code: connect.CodeUnavailable, reason: "CONTENTION", retry: true},
		{name: "request raced", err: db.ErrRequestKnown, code: connect.CodeUnavailable, reason: "CONTENTION", retry: true},
		{name: "outcome unknown", err: fmt.Errorf("%w: %w", db.ErrOutcomeUnknown, context.Canceled), code: connect.CodeUnknown, reason: "OUTCOME_UNKNOWN"},
		{name: "deadline", err: fmt.Errorf("db: %w", context.DeadlineExceeded), code: connect.CodeDeadlineExceeded, reason: "DEADLINE_EXCEEDED"},
		{name: "canceled", err: context.Canceled, code: connect.CodeCanceled, reason: "CANCELED"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, reason, unexplained := wire(tt.err, "t")
			if unexplained || e.Code() != tt.code || reason != tt.reason {
				t.Fatalf("wire(%v) = %v, reason %q, unexplained %v; want %v, %q", tt.err, e, reason, unexplained, tt.code, tt.reason)
			}
			info := detail[*errdetails.ErrorInfo](t, e)
			if info.GetReason() != tt.reason || info.GetDomain() != "holdfast" {
				t.Errorf("ErrorInfo is %v", info)
			}
			var metadata []string
			for k, v := range info.GetMetadata() {
				metadata = append(metadata, k+"="+v)
			}
			slices.Sort(metadata)
			if got := strings.Join(metadata, " "); got != tt.metadata {
				t.Errorf("metadata is %q, want %q", got, tt.metadata)
			}
			var fields []string
			for _, v := range detail[*errdetails.BadRequest](t, e).GetFieldViolations() {
				fields = append(fields, v.GetField())
				if v.GetDescription() == "" {
					t.Errorf("field %q has no description", v.GetField())
				}
			}
			if !slices.Equal(fields, tt.fields) {
				t.Errorf("fields are %q, want %q", fields, tt.fields)
			}
			if retry := detail[*errdetails.RetryInfo](t, e); (retry.GetRetryDelay().AsDuration() > 0) != tt.retry {
				t.Errorf("RetryInfo is %v", retry)
			}
			if first, err := e.Details()[0].Value(); err != nil || first.(*errorv1.Problem).GetReason() != tt.reason {
				t.Errorf("the first detail is %v, %v", first, err)
			}
		})
	}
}

func TestUnknownErrorsAreNotTold(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		errors.New("password is hunter2"),
		connect.NewError(connect.CodeUnknown, errors.New("password is hunter2")),
		connect.NewError(connect.CodeInternal, errors.New("password is hunter2")),
		connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%w: %w", errUnchecked, errors.New("password is hunter2"))),
	} {
		e, reason, unexplained := wire(err, "abc")
		if e.Code() != connect.CodeInternal || !unexplained || reason != "INTERNAL" || e.Message() != "internal error, trace abc" {
			t.Errorf("wire(%v) = %v, reason %q, unexplained %v", err, e, reason, unexplained)
		}
		if got := detail[*errdetails.ErrorInfo](t, e).GetMetadata()["trace_id"]; got != "abc" {
			t.Errorf("trace id is %q", got)
		}
	}
}

func TestConnectsOwnErrorsGetAReason(t *testing.T) {
	t.Parallel()
	for code := connect.CodeCanceled; code <= connect.CodeUnauthenticated; code++ {
		e, reason, unexplained := wire(fmt.Errorf("receive: %w", connect.NewError(code, errors.New("x"))), "")
		if errorv1.Reason_value["REASON_"+reason] == 0 || unexplained != (e.Code() == connect.CodeInternal) {
			t.Errorf("%v: %v %s, unexplained %v", code, e, reason, unexplained)
		}
	}
}
