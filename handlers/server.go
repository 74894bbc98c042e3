// Package handlers is the edge of Holdfast: HTTP and Connect on the one side, managers on the other. It says who is
// asking (auth.go), what a request may hold (storable.go), what an error means (errors.go), and reports each call
// (telemetry.go). The managers are in the folders below, and know none of it.
//
// The path of a call:
//
//	CORS -> route -> telemetry -> authenticate -> admit -> decode -> outcome -> validate -> ETag -> manager
package handlers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	connectcors "connectrpc.com/cors"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"connectrpc.com/validate"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/cors"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	"holdfast/identity"
)

const (
	maxRequest  = 4 << 20
	minCompress = 4 << 10 // compressing small answers took a fifth of a read's CPU
	pingTimeout = time.Second
	// DrainTimeout bounds the end of Serve. With what else must stop, the process is gone within ten seconds.
	DrainTimeout = 6 * time.Second
)

// Service is a Connect service to serve: the name of its proto service, and its generated constructor.
type Service struct {
	Name    string
	Handler func(...connect.HandlerOption) (path string, handler http.Handler)
}

// NewService is the service that impl implements; handler is the generated constructor.
func NewService[H any](name string, handler func(H, ...connect.HandlerOption) (string, http.Handler), impl H) Service {
	return Service{name, func(o ...connect.HandlerOption) (string, http.Handler) { return handler(impl, o...) }}
}

// Route is a handler of plain HTTP, which authenticates by itself.
type Route struct {
	// Name is what logs and metrics call it.
	Name string
	// Path is a pattern of http.ServeMux.
	Path    string
	Handler http.Handler
}

// Options say what a Server serves. All but Routes, Origins and Metrics must be set.
type Options struct {
	Services []Service
	Routes   []Route
	Auth     *Authenticator
	// Ping asks the database whether it is there.
	Ping func(context.Context) error
	// Origins are those whose pages browsers let call the API, "*" any. Empty: none.
	Origins []string
	// Traces takes a span for each call. nil: none.
	Traces trace.TracerProvider
	// Calls and CallsPerTenant bound the unary calls that are answered at once. 0: 4,096 and 3,072.
	Calls, CallsPerTenant int
	// RouteCalls and RouteCallsPerPath bound what each of Routes answers at once. 0: 64 and 16.
	RouteCalls, RouteCallsPerPath int
	Metrics                       prometheus.Registerer
	Log                           *slog.Logger
	Now                           func() time.Time
}

// Server is the HTTP side of Holdfast. It is safe for concurrent use.
type Server struct {
	o        Options
	handler  http.Handler
	draining context.Context //nolint:containedctx // a state of the server, which streams follow
	drain    context.CancelFunc
}

// New puts a server together. An error means that the services' protos contradict themselves.
func New(o Options) (*Server, error) {
	s := &Server{o: o}
	s.draining, s.drain = context.WithCancel(context.Background())

	names := make([]string, len(o.Services))
	procedures, streams := map[string]bool{}, map[string]bool{}
	// What clients do by themselves does not keep a session from becoming idle.
	passive := map[string]bool{
		sessionv1connect.SessionServiceHeartbeatConnectionProcedure: true,
		sessionv1connect.SessionServiceRefreshSessionProcedure:      true,
	}
	var requests []protoreflect.MessageDescriptor
	for i, service := range o.Services {
		names[i] = service.Name
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.Name))
		sd, ok := d.(protoreflect.ServiceDescriptor)
		if err != nil || !ok {
			return nil, fmt.Errorf("handlers: there is no proto service %q", service.Name)
		}
		for j, all := 0, sd.Methods(); j < all.Len(); j++ {
			p := "/" + service.Name + "/" + string(all.Get(j).Name())
			procedures[p] = true
			streams[p] = all.Get(j).IsStreamingServer() || all.Get(j).IsStreamingClient()
			if all.Get(j).IsStreamingServer() {
				passive[p] = true
			}
			requests = append(requests, all.Get(j).Input())
		}
	}
	// The rules are compiled now: the first request does not wait for it.
	validator, err := protovalidate.New(protovalidate.WithMessageDescriptors(requests...))
	if err != nil {
		return nil, fmt.Errorf("handlers: the rules of the protos: %w", err)
	}

	t := newTelemetry(o.Log, o.Now, procedures, o.Metrics)
	tracing, err := traced(o.Traces)
	if err != nil {
		return nil, err
	}
	options := []connect.HandlerOption{
		connect.WithCodec(stableProto{}),
		connect.WithReadMaxBytes(maxRequest),
		connect.WithCompressMinBytes(minCompress),
		connect.WithInterceptors(inTurn(append(tracing, &outcome{telemetry: t, whenDraining: func(f func()) func() bool {
			return context.AfterFunc(s.draining, f)
		}, follow: o.Auth.guard.follow}, validate.NewInterceptor(validate.WithValidator(newDeep(checks(validator), s.draining.Done())),
			validate.WithoutErrorDetails()), conditional{}))),
	}

	admitted := &admission{
		most: cmp.Or(o.Calls, defaultCalls), mostPerTenant: cmp.Or(o.CallsPerTenant, defaultCallsPerTenant),
		streams: streams, tenants: map[identity.Tenant]int{},
	}
	mux := http.NewServeMux()
	for _, service := range o.Services {
		path, h := service.Handler(options...)
		mux.Handle(path, &edge{telemetry: t, enter: o.Auth.entrance(t, passive, admitted), refusals: connect.NewErrorWriter(options...), next: h})
	}
	for _, r := range o.Routes {
		bounded := &admission{
			most: cmp.Or(o.RouteCalls, defaultRouteCalls), mostPerTenant: cmp.Or(o.RouteCallsPerPath, defaultRouteCallsPerPath),
			tenants: map[identity.Tenant]int{},
		}
		mux.Handle(r.Path, t.wrap(t.plain(r.Name, bounded.route(r.Handler))))
	}
	open := func(path string, h http.Handler) { mux.Handle(path, t.wrap(h)) }
	open(grpchealth.NewHandler(health{s, names}, options...))
	reflector := grpcreflect.NewStaticReflector(append(slices.Clone(names), grpchealth.HealthV1ServiceName)...)
	open(grpcreflect.NewHandlerV1(reflector, options...))
	open(grpcreflect.NewHandlerV1Alpha(reflector, options...))
	open("/", http.NotFoundHandler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", s.readyz)
	s.handler = mux
	if len(o.Origins) > 0 {
		s.handler = cors.New(cors.Options{
			AllowedOrigins: o.Origins,
			AllowedMethods: connectcors.AllowedMethods(),
			AllowedHeaders: append(connectcors.AllowedHeaders(), "Authorization", userHeader, "If-None-Match", "Traceparent"),
			ExposedHeaders: append(connectcors.ExposedHeaders(), "ETag", "RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate"),
			MaxAge:         7200, // no browser keeps it longer
		}).Handler(mux)
	}
	return s, nil
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Serve answers on l, HTTP/1.1 and HTTP/2 in clear alike, until ctx ends. Then it drains: it is no longer ready, streams
// end with unavailable, and unary calls have DrainTimeout to end by themselves.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           s.handler,
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		// There is no limit on reading or writing as a whole, because streams are open for long. Dead peers show by
		// pings, and slow ones by sendTimeout.
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 1000, SendPingTimeout: 30 * time.Second, WriteByteTimeout: sendTimeout},
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	s.Drain()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), DrainTimeout)
	defer cancel()
	err := server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.Join(fmt.Errorf("calls were cut short after %v", DrainTimeout), server.Close())
	}
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	return err
}

// Drain makes the server not ready and ends its streams. It does not wait.
func (s *Server) Drain() { s.drain() }

// ready tells whether requests should come here.
func (s *Server) ready(ctx context.Context) error {
	if s.draining.Err() != nil {
		return errDraining
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	return s.o.Ping(ctx)
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	if err := s.ready(r.Context()); err != nil {
		s.o.Log.WarnContext(r.Context(), "not ready", "error", err)
		http.Error(w, "not ready", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ready\n")
}

// health answers gRPC's health checks as /readyz does.
type health struct {
	*Server

	names []string
}

func (h health) Check(ctx context.Context, req *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	if req.Service != "" && !slices.Contains(h.names, req.Service) {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no service %q", req.Service))
	}
	res := &grpchealth.CheckResponse{Status: grpchealth.StatusServing}
	if err := h.ready(ctx); err != nil {
		res.Status = grpchealth.StatusNotServing
	}
	return res, nil
}
