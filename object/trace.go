package object

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// maxLinks bounds how many of the callers that share a transaction its span names.
const maxLinks = 64

// traced begins the span of a transaction that serves several callers: a child of the first whose call is traced, with links
// to the others. Without a tracer it costs nothing.
func (rt *Runtime) traced(ctx context.Context, name string, callers func(yield func(context.Context) bool)) (context.Context, func()) {
	if rt.tracer == nil {
		return ctx, func() {}
	}
	var parent trace.Span
	var links []trace.Link
	count := 0
	for c := range callers {
		count++
		s := trace.SpanFromContext(c)
		switch {
		case !s.IsRecording():
		case parent == nil:
			parent = s
		case len(links) < maxLinks:
			links = append(links, trace.Link{SpanContext: s.SpanContext()})
		}
	}
	if parent == nil {
		return ctx, func() {}
	}
	ctx, span := rt.tracer.Start(trace.ContextWithSpan(ctx, parent), name,
		trace.WithLinks(links...), trace.WithAttributes(attribute.Int("holdfast.callers", count)))
	return ctx, func() { span.End() }
}

// callersOf are those who wait for a batch.
func callersOf(works []*work) func(yield func(context.Context) bool) {
	return func(yield func(context.Context) bool) {
		for _, w := range works {
			for _, c := range w.changes {
				if !yield(c.ctx) {
					return
				}
			}
		}
	}
}
