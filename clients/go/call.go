package holdfast

import (
	"context"
	"crypto/rand"
	"math"
	mathrand "math/rand/v2"
	"reflect"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	errorv1 "holdfast.internal/clients/go/gen/holdfast/error/v1"
	"holdfast.internal/clients/go/gen/holdfast/session/v1/sessionv1connect"
)

// caller authenticates calls and repeats them.
type caller struct{ options }

type bearerKey struct{}

// authenticate sets the headers of a request, and returns its bearer.
func (c caller) authenticate(ctx context.Context, refused string, set func(name, value string)) (string, error) {
	bearer, ok := ctx.Value(bearerKey{}).(string)
	if !ok {
		var err error
		if bearer, err = c.token(ctx, refused); err != nil {
			return "", err
		}
	}
	set("Authorization", "Bearer "+bearer)
	if c.user != "" {
		set("Holdfast-User", c.user)
	}
	return bearer, nil
}

// WrapUnary repeats a call until its outcome is known, as the server says of each error.
func (c caller) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		repeatable := named(req)
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.timeout)
			defer cancel()
		}
		end, _ := ctx.Deadline()
		limit := c.attemptTimeout
		if m, ok := req.Any().(interface{ GetWait() *durationpb.Duration }); ok {
			limit += m.GetWait().AsDuration()
		}
		refused, tried := "", map[string]int{}
		var last error
		for failures := 0; ; failures++ {
			bearer, err := c.authenticate(ctx, refused, req.Header().Set)
			if err != nil {
				return nil, err
			}
			if refused != "" && bearer == refused {
				return nil, last
			}
			refused = ""
			try, cancel := context.WithTimeout(ctx, limit)
			res, err := next(try, req)
			cancel()
			if err == nil {
				return res, nil
			}
			if ctx.Err() != nil {
				// An error that came before the time was over tells more than the time does.
				if last != nil && context.Cause(ctx) == context.DeadlineExceeded { //nolint:errorlint // a cause of the caller's own may wrap it
					err = last
				}
				return nil, err
			}
			last = err
			p, wait := ProblemOf(err), backoff(failures)
			tried[p.GetReason()]++
			switch {
			case p == nil && repeatable && passes(err):
			case p == nil:
				return nil, err
			case p.GetRetry() == errorv1.Retry_RETRY_REAUTH || Is(err, errorv1.Reason_REASON_CREDENTIAL_INVALID):
				if tried[p.GetReason()] > 2 {
					return nil, err
				}
				refused, wait = bearer, 0
			case p.GetRetry() == errorv1.Retry_RETRY_AFTER:
				wait = p.GetRetryAfter().AsDuration() + wait/10
			case p.GetRetry() == errorv1.Retry_RETRY_SAME && repeatable:
				if Is(err, errorv1.Reason_REASON_INTERNAL) && tried[p.GetReason()] > 1 {
					return nil, err
				}
				wait = max(wait, p.GetRetryAfter().AsDuration())
			default:
				return nil, err
			}
			if time.Until(end) <= wait || sleep(ctx, wait) != nil { //nolint:forbidigo // it is linked into other programs, which have one clock
				return nil, err
			}
		}
	}
}

// named reports whether a request may be sent again though it may have happened. One that takes an id gets one, in a copy: the caller may
// send the same message for another change.
func named(req connect.AnyRequest) bool {
	if req.Spec().IdempotencyLevel == connect.IdempotencyNoSideEffects || req.Spec().Procedure == sessionv1connect.SessionServiceRefreshSessionProcedure {
		return true
	}
	m, ok := req.Any().(proto.Message)
	if !ok {
		return false
	}
	for _, name := range []protoreflect.Name{"request_id", "grant_id"} {
		if f := m.ProtoReflect().Descriptor().Fields().ByName(name); f != nil {
			if m.ProtoReflect().Get(f).String() == "" {
				m = proto.Clone(m)
				m.ProtoReflect().Set(f, protoreflect.ValueOfString(rand.Text()))
				// req is a *connect.Request of a type that is not known here.
				reflect.ValueOf(req).Elem().FieldByName("Msg").Set(reflect.ValueOf(m))
			}
			return true
		}
	}
	return false
}

// passes reports whether an error without a Problem, of the network or of a proxy, may be over soon.
func passes(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeDeadlineExceeded, connect.CodeInternal, connect.CodeAborted:
		return true
	default:
		return false
	}
}

// backoff is how long to wait after so many failures: 100 ms, doubled to 5 s at most, less up to a half.
func backoff(failures int) time.Duration {
	d := 100 * time.Millisecond * time.Duration(math.Exp2(float64(min(failures, 6))))
	return time.Duration(float64(min(d, 5*time.Second)) * (0.5 + mathrand.Float64()/2)) //nolint:gosec // it only spreads load
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// WrapStreamingClient authenticates a stream. Watch repeats it.
func (c caller) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		if _, err := c.authenticate(ctx, "", conn.RequestHeader().Set); err != nil {
			return failed{conn, err}
		}
		return conn
	}
}

// failed is a stream that had no token.
type failed struct {
	connect.StreamingClientConn

	err error
}

func (f failed) Send(any) error { return f.err }

// WrapStreamingHandler does nothing: this is a client.
func (caller) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
