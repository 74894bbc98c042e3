package handlers

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	"holdfast/gen/holdfast/project/v1/projectv1connect"
	"holdfast/gen/holdfast/state/v1/statev1connect"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

var errPanic = errors.New("handlers: a handler panicked")

// sendTimeout ends a stream whose client has stopped reading. Nothing else limits a response's time.
const sendTimeout = 30 * time.Second

// serverSide is an interceptor that does nothing to clients. Each of ours embeds it and adds both server methods: an interceptor
// with only WrapUnary would silently skip streams.
type serverSide struct{}

func (serverSide) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// outcome is the outermost interceptor. It counts open calls, ends streams when the server drains, and translates every error
// for the caller.
type outcome struct {
	serverSide

	*telemetry

	// whenDraining calls f when streams must end, unless it is stopped first.
	whenDraining func(f func()) (stop func() bool)
	// follow calls end when a stream's credential is no longer valid, unless it is stopped first.
	follow func(b backing, end func(error)) (stop func())
}

func (o *outcome) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		c := o.open(ctx, o.inFlight, req.Spec())
		defer o.settle(ctx, o.inFlight, &err)
		if waits(c.procedure) {
			var over func(error) error
			ctx, over = o.cutShort(ctx, c)
			defer func() {
				cut := over(err)
				if err != nil { // what it got in time it has
					err = cut
				}
			}()
		}
		return next(ctx, req)
	}
}

// open records the start of a call.
func (*outcome) open(ctx context.Context, open prometheus.Gauge, s connect.Spec) *call {
	c := callFrom(ctx)
	c.procedure, c.stream = s.Procedure, s.StreamType != connect.StreamTypeUnary
	open.Inc()
	return c
}

// settle records how a call ended, and translates its error or panic for the caller.
func (o *outcome) settle(ctx context.Context, open prometheus.Gauge, err *error) {
	open.Dec()
	if value := recover(); value != nil { //nolint:revive // it is called by defer alone
		*err = o.panicked(ctx, value)
	}
	if *err != nil {
		*err = o.fail(ctx, *err)
		return
	}
	callFrom(ctx).code = codeOK
}

func (o *outcome) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		c := o.open(ctx, o.streams, conn.Spec())
		defer o.settle(ctx, o.streams, &err)

		streamCtx, over := o.cutShort(ctx, c)
		defer func() { err = over(err) }()
		if c.response != nil {
			timed := &timedConn{StreamingHandlerConn: conn, response: http.NewResponseController(c.response), now: o.now}
			defer timed.begin() // for how the stream ended
			conn = timed
		}
		err = next(streamCtx, conn)
		if c.answer != nil {
			c.answer.counted = false // the stream's bound counts it no more, and its end is still to be sent
		}
		return err
	}
}

// waits reports whether a call without a stream may take its time.
func waits(procedure string) bool { return procedure == statev1connect.StateServiceTakeTimersProcedure }

// cutShort ends a call that lasts when the server drains, and when its credential is no longer valid. over returns how it ended: one that we cut
// short must not look complete, nor as if the caller had left.
func (o *outcome) cutShort(ctx context.Context, c *call) (_ context.Context, over func(error) error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := o.whenDraining(func() { cancel(errDraining) })
	leave := o.follow(c.backs, func(refusal error) { cancel(refusal) })
	return ctx, func(err error) error {
		cause := context.Cause(ctx)
		stop()
		leave()
		cancel(nil)
		if errors.Is(cause, errDraining) && (err == nil || errors.Is(err, context.Canceled)) {
			return errDraining
		}
		if refusal, ok := errors.AsType[*problem.Error](cause); ok && errors.Is(err, context.Canceled) {
			return refusal
		}
		return err
	}
}

// timedConn bounds each Send, and nothing else: HTTP/2 resets a stream whose deadline passes while it is idle, and
// HTTP/1.1 uses the connection again.
type timedConn struct {
	connect.StreamingHandlerConn

	response *http.ResponseController
	now      func() time.Time
}

// begin gives the caller sendTimeout to read, if the ResponseWriter has deadlines.
func (t *timedConn) begin() { _ = t.response.SetWriteDeadline(t.now().Add(sendTimeout)) }

func (t *timedConn) Send(m any) error {
	t.begin()
	defer func() { _ = t.response.SetWriteDeadline(time.Time{}) }()
	return t.StreamingHandlerConn.Send(m)
}

// settled ends the turn of a large request, which is decoded and checked by now.
type settled struct{ serverSide }

func (settled) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next // their requests are small
}

func (settled) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		callFrom(ctx).settled()
		return next(ctx, req)
	}
}

// tagged are the calls whose answers have an ETag. Each is the same until what is stored changes, and holds no secret. All other
// answers are no-store. A call whose answer depends on the clock or holds a secret is not NO_SIDE_EFFECTS either, so that no
// browser is asked to keep it.
func tagged(procedure string) bool {
	switch procedure {
	case conversationv1connect.ConversationServiceGetConversationProcedure,
		conversationv1connect.ConversationServiceListMessagesProcedure,
		conversationv1connect.ConversationServiceListRecordsProcedure,
		projectv1connect.ProjectServiceGetProjectProcedure,
		projectv1connect.ProjectServiceGetProjectContextProcedure,
		projectv1connect.ProjectServiceGetTaskProcedure,
		projectv1connect.ProjectServiceGetPreferencesProcedure:
		return true
	}
	return false
}

// conditional adds an ETag to answers of tagged calls by HTTP GET, and answers 304 if the caller presents it. A browser's cache
// finds an answer by its URL for all callers, and Chromium presents the ETag even if Vary says that the answer was another
// user's. So the tag is a hash of the caller and of the whole answer, which includes the object's version and creation time.
type conditional struct{ serverSide }

func (conditional) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (conditional) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if req.HTTPMethod() != http.MethodGet || !tagged(req.Spec().Procedure) {
			return next(ctx, req)
		}
		res, err := next(ctx, req)
		if err != nil {
			return res, err
		}
		tag, err := etag(callFrom(ctx).caller, res.Any())
		if err != nil {
			return nil, err
		}
		if c := callFrom(ctx); c.response != nil {
			c.response.Header().Set("Cache-Control", "private, no-cache")
		}
		header := http.Header{"Etag": {tag}, "Vary": {"Authorization, Holdfast-User"}}
		if presents(req.Header().Get("If-None-Match"), tag) {
			return nil, connect.NewNotModifiedError(header)
		}
		maps.Copy(res.Header(), header)
		return res, nil
	}
}

func etag(caller identity.Identity, answer any) (string, error) {
	m, ok := answer.(proto.Message)
	if !ok {
		return "", fmt.Errorf("handlers: %T is no message", answer)
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%q %q %t ", caller.Tenant, caller.User, caller.Service)
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("handlers: the ETag of an answer: %w", err)
	}
	hash.Write(b)
	return `W/"` + base64.RawURLEncoding.EncodeToString(hash.Sum(nil)[:16]) + `"`, nil
}

// presents reports whether an If-None-Match has the tag, strong or weak. A browser sends one, a proxy may send several.
func presents(header, tag string) bool {
	for one := range strings.SplitSeq(header, ",") {
		if strings.TrimPrefix(strings.TrimSpace(one), "W/") == strings.TrimPrefix(tag, "W/") {
			return true
		}
	}
	return false
}
