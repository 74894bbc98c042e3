package main

import (
	"context"
	"errors"
	"fmt"

	prombridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/prometheus/client_golang/prometheus"
)

// openTelemetry sends traces, and the metrics of /metrics, by OTLP over HTTP to the endpoints in OpenTelemetry's standard variables.
// It does nothing if they are not set.
type openTelemetry struct {
	traces  *sdktrace.TracerProvider // nil: off
	metrics *sdkmetric.MeterProvider // nil: off
}

// wantsTelemetry reports whether the standard variables name an endpoint for a signal, TRACES or METRICS.
func wantsTelemetry(env lookup, signal string) bool {
	if v, _ := env("OTEL_SDK_DISABLED"); v == "true" {
		return false
	}
	exporter, _ := env("OTEL_" + signal + "_EXPORTER")
	of, _ := env("OTEL_EXPORTER_OTLP_" + signal + "_ENDPOINT")
	all, _ := env("OTEL_EXPORTER_OTLP_ENDPOINT")
	return exporter != "none" && of+all != ""
}

// startTraces must come before the database is opened, and startMetrics after all metrics are registered.
func (o *openTelemetry) startTraces(ctx context.Context, env lookup) error {
	if !wantsTelemetry(env, "TRACES") {
		return nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return wrongUsage("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: %v", err)
	}
	r, err := telemetryResource(ctx)
	if err != nil {
		return err
	}
	o.traces = sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(r))
	return nil
}

func (o *openTelemetry) startMetrics(ctx context.Context, env lookup, from prometheus.Gatherer) error {
	if !wantsTelemetry(env, "METRICS") {
		return nil
	}
	exporter, err := otlpmetrichttp.New(ctx)
	if err != nil {
		return wrongUsage("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: %v", err)
	}
	r, err := telemetryResource(ctx)
	if err != nil {
		return err
	}
	bridge := prombridge.NewMetricProducer(prombridge.WithGatherer(from))
	o.metrics = sdkmetric.NewMeterProvider(sdkmetric.WithResource(r),
		sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter, sdkmetric.WithProducer(bridge))))
	return nil
}

// tracer returns nil if traces are off.
func (o *openTelemetry) tracer() trace.TracerProvider {
	if o.traces == nil {
		return nil
	}
	return o.traces
}

// runtimeTracer returns the tracer for package object.
func (o *openTelemetry) runtimeTracer() trace.Tracer {
	if o.traces == nil {
		return nil
	}
	return o.traces.Tracer("holdfast/object")
}

// close flushes until ctx ends.
func (o *openTelemetry) close(ctx context.Context) error {
	var errs []error
	if o.metrics != nil {
		errs = append(errs, o.metrics.Shutdown(ctx))
	}
	if o.traces != nil {
		errs = append(errs, o.traces.Shutdown(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	return nil
}

// telemetryResource describes this process. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override it.
func telemetryResource(ctx context.Context) (*resource.Resource, error) {
	r, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "holdfast"), attribute.String("service.version", readBuild().String())),
		resource.WithFromEnv(), resource.WithHost(), resource.WithProcessPID())
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	return r, nil
}
