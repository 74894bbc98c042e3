package handlers

import (
	"context"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// traced are the interceptors that make a span of each call, the outermost of all. Without a provider there are none.
func traced(p trace.TracerProvider) ([]connect.Interceptor, error) {
	if p == nil {
		return nil, nil
	}
	spans, err := otelconnect.NewInterceptor(
		otelconnect.WithTracerProvider(p), otelconnect.WithPropagator(propagation.TraceContext{}),
		otelconnect.WithTrustRemote(), otelconnect.WithoutMetrics(), otelconnect.WithoutServerPeerAttributes(), otelconnect.WithoutTraceEvents(),
	)
	if err != nil {
		return nil, err
	}
	return []connect.Interceptor{spans, traceID{}}, nil
}

// traceID makes the log and the errors of a call name the trace that its span belongs to.
type traceID struct{ serverSide }

func (traceID) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		noteTrace(ctx)
		return next(ctx, req)
	}
}

func (traceID) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		noteTrace(ctx)
		return next(ctx, conn)
	}
}

func noteTrace(ctx context.Context) {
	if s := trace.SpanContextFromContext(ctx); s.HasTraceID() {
		callFrom(ctx).trace = s.TraceID().String()
	}
}
