package handlers

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"holdfast/handlers/problem"
)

var errPanic = errors.New("handlers: a handler panicked")

// sendTimeout ends a stream whose client has stopped reading: there is no other limit on a response's time.
const sendTimeout = 30 * time.Second

// serverSide is an interceptor that leaves clients alone. Each of ours embeds it and adds the two server methods: one
// with only WrapUnary would skip streams without a word.
type serverSide struct{}

func (serverSide) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// inTurn is interceptors as one, the first outermost. Connect's own chain asks the context twice before each whether a client's
// call has strayed here.
type inTurn []connect.Interceptor

func (in inTurn) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	for _, i := range slices.Backward(in) {
		next = i.WrapUnary(next)
	}
	return next
}

func (in inTurn) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	for _, i := range slices.Backward(in) {
		next = i.WrapStreamingClient(next)
	}
	return next
}

func (in inTurn) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	for _, i := range slices.Backward(in) {
		next = i.WrapStreamingHandler(next)
	}
	return next
}

// outcome is the outermost interceptor: it counts what is open, ends streams when the server drains, and turns every
// error into what the caller may know.
type outcome struct {
	serverSide

	*telemetry

	// whenDraining calls f once streams must end, unless it is stopped before.
	whenDraining func(f func()) (stop func() bool)
	// follow calls end once a stream's credential is not good any more, unless it is stopped before.
	follow func(b backing, end func(error)) (stop func())
}

func (o *outcome) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		o.open(ctx, o.inFlight, req.Spec())
		defer o.settle(ctx, o.inFlight, &err)
		return next(ctx, req)
	}
}

// open notes that a call has begun.
func (*outcome) open(ctx context.Context, open prometheus.Gauge, s connect.Spec) *call {
	c := callFrom(ctx)
	c.procedure, c.stream = s.Procedure, s.StreamType != connect.StreamTypeUnary
	open.Inc()
	return c
}

// settle notes how a call ended, and makes its error, or its panic, one that the caller may know.
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

		streamCtx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		stop := o.whenDraining(func() { cancel(errDraining) })
		defer stop()
		leave := o.follow(c.backs, func(refusal error) { cancel(refusal) })
		defer leave()
		if c.response != nil {
			timed := &timedConn{StreamingHandlerConn: conn, response: http.NewResponseController(c.response), now: o.now}
			defer timed.begin() // for how the stream ended
			conn = timed
		}
		err = next(streamCtx, conn)
		// A stream that we cut short must not look as if it had come to its end, nor as if the caller had left.
		if errors.Is(context.Cause(streamCtx), errDraining) && (err == nil || errors.Is(err, context.Canceled)) {
			err = errDraining
		}
		if refusal, ok := errors.AsType[*problem.Error](context.Cause(streamCtx)); ok && errors.Is(err, context.Canceled) {
			err = refusal
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

// begin gives the caller sendTimeout to read. Not every ResponseWriter has deadlines; where none can be set there is none.
func (t *timedConn) begin() { _ = t.response.SetWriteDeadline(t.now().Add(sendTimeout)) }

func (t *timedConn) Send(m any) error {
	t.begin()
	defer func() { _ = t.response.SetWriteDeadline(time.Time{}) }()
	return t.StreamingHandlerConn.Send(m)
}

// conditional makes side-effect-free calls by HTTP GET cacheable: the ETag is the version in the answer's metadata, and
// If-None-Match is if_version_not where the request has that field. Streams have no ETag.
type conditional struct{ serverSide }

func (conditional) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (conditional) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if req.HTTPMethod() != http.MethodGet {
			return next(ctx, req)
		}
		known, asked := versionOfETag(req.Header().Get("If-None-Match"))
		passedOn := false
		if m, ok := req.Any().(proto.Message); ok && asked {
			passedOn = setIfVersionNot(m.ProtoReflect(), known)
		}
		res, err := next(ctx, req)
		if err != nil {
			return res, err
		}
		m, ok := res.Any().(proto.Message)
		if !ok || dependsOnClock(ctx) {
			return res, nil
		}
		version, notModified := answered(m.ProtoReflect())
		if notModified && version == 0 && passedOn {
			version = known
		}
		if version == 0 {
			return res, nil
		}
		header := cacheHeader(version)
		if asked && version == known {
			return nil, connect.NewNotModifiedError(header)
		}
		maps.Copy(res.Header(), header)
		return res, nil
	}
}

// dependsOnClock tells whether the handler has said that its answer changes by itself: then its version does not tell
// whether it still holds.
func dependsOnClock(ctx context.Context) bool {
	call, ok := connect.CallInfoForHandlerContext(ctx)
	return ok && call.ResponseHeader().Get("Cache-Control") == "no-store"
}

// cacheHeader lets the caller's own cache keep an answer, if it asks each time whether it still holds.
func cacheHeader(version int64) http.Header {
	return http.Header{
		"Etag":          {`W/"` + strconv.FormatInt(version, 10) + `"`},
		"Cache-Control": {"private, no-cache"},
		"Vary":          {"Authorization, Holdfast-User"},
	}
}

// versionOfETag reads an If-None-Match with one tag of ours; any other is no condition.
func versionOfETag(header string) (int64, bool) {
	tag := strings.TrimPrefix(strings.TrimSpace(header), "W/")
	if len(tag) < 3 || tag[0] != '"' || tag[len(tag)-1] != '"' {
		return 0, false
	}
	v, err := strconv.ParseInt(tag[1:len(tag)-1], 10, 64)
	return v, err == nil && v > 0
}

// setIfVersionNot tells whether the request has the field and the caller had not set it.
func setIfVersionNot(m protoreflect.Message, version int64) bool {
	fd := m.Descriptor().Fields().ByName("if_version_not")
	if fd == nil || fd.Kind() != protoreflect.Int64Kind || m.Has(fd) {
		return false
	}
	m.Set(fd, protoreflect.ValueOfInt64(version))
	return true
}

// answered reads metadata.version and not_modified of an answer; 0 and false where it has none.
func answered(m protoreflect.Message) (version int64, notModified bool) {
	fields := m.Descriptor().Fields()
	if fd := fields.ByName("not_modified"); fd != nil && fd.Kind() == protoreflect.BoolKind {
		notModified = m.Get(fd).Bool()
	}
	meta := fields.ByName("metadata")
	if meta == nil || meta.Message() == nil || meta.IsMap() || meta.IsList() {
		return 0, notModified
	}
	fd := meta.Message().Fields().ByName("version")
	if fd == nil || fd.Kind() != protoreflect.Int64Kind {
		return 0, notModified
	}
	return m.Get(meta).Message().Get(fd).Int(), notModified
}
