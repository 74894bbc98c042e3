// Package handlers is the edge of Holdfast: HTTP and Connect on the one side, managers on the other. It says who is
// asking (auth.go), how much may be asked at once (admission.go) and in one request (intake.go, values.go), what a request may hold
// (storable.go), what an error means (errors.go), and reports each call
// (telemetry.go). The managers are in the folders below, and know none of it.
//
// The path of a call:
//
//	CORS -> route -> telemetry -> authenticate -> admit -> read -> decode -> outcome -> validate -> ETag -> manager
package handlers

import (
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
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
	"golang.org/x/net/netutil"
	"golang.org/x/sync/singleflight"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers/problem"
	"holdfast/jsonpb"
	"holdfast/object"
)

const (
	minCompress = 4 << 10 // compressing small answers took a fifth of a read's CPU
	pingTimeout = time.Second
	// Readiness checks, which anyone may send, ask the database at most once in pingEvery.
	pingEvery = time.Second
	// requestTimeout bounds the reading of a request, headers and body. openStreamTime bounds streams of reflection, which have
	// no other end.
	requestTimeout = 10 * time.Second
	openStreamTime = 30 * time.Second
	maxOpenStreams = 16
	// DrainTimeout bounds the end of Serve, so that the whole process stops within ten seconds. Requests that are still arriving get
	// drainBodyTime.
	DrainTimeout  = 4 * time.Second
	drainBodyTime = 500 * time.Millisecond
	// Callers without a credential can hold so many connections, answers that they do not read (over HTTP/2, where a connection has
	// many; thousands of sessions that refresh at once need a place each for a moment), and bodies that do not arrive. A connection
	// takes some 10 KiB and the rest some 20 KiB, with a head of maxHead at most.
	maxConnections = 16 << 10
	maxOpenAnswers = 4 << 10
	maxOpenBodies  = 256
	// maxResets is how many more calls a connection of HTTP/2 may take back before they are answered than it lets be answered.
	maxResets = 200
	// maxHead leaves room for a large JWT and for the cookies of a site.
	maxHead = 16 << 10
)

// Service names a proto service and has its generated Connect constructor.
type Service struct {
	Name    string
	Handler func(...connect.HandlerOption) (path string, handler http.Handler)
}

// NewService returns the service that impl implements; handler is the generated constructor.
func NewService[H any](name string, handler func(H, ...connect.HandlerOption) (string, http.Handler), impl H) Service {
	return Service{name, func(o ...connect.HandlerOption) (string, http.Handler) { return handler(impl, o...) }}
}

// Route is a plain HTTP handler that does its own authentication.
type Route struct {
	// Name labels the route in logs and metrics.
	Name string
	// Path is a pattern for http.ServeMux.
	Path    string
	Handler http.Handler
}

// Options configure a Server. All fields without a default must be set, except Routes, Origins and Metrics.
type Options struct {
	Services []Service
	Routes   []Route
	Auth     *Authenticator
	// Ping checks the connection to the database.
	Ping func(context.Context) error
	// Origins lists the origins whose pages may call the API from a browser; "*" allows any. Empty: none.
	Origins []string
	// Traces receives a span for each call. nil: none.
	Traces trace.TracerProvider
	// Bounds limit the calls in progress. Zero fields have defaults.
	Bounds Bounds
	// RequestTimeout bounds the time that a caller takes to send a request, headers and body. 0: 10 s.
	RequestTimeout time.Duration
	// NoReflection turns gRPC reflection off.
	NoReflection bool
	// RouteCalls and RouteCallsPerPath bound the concurrent requests of each of Routes, and of each path. 0: 64 and 16.
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
	leaving  atomic.Bool
	open     chan struct{} // the places of answerWriter
	pings    singleflight.Group
	pinged   atomic.Pointer[ping] // the last
}

// ping is the result of a check of the database.
type ping struct {
	at  time.Time
	err error
}

// New returns a server that is ready to serve. It fails only if the services' protos are inconsistent.
func New(o Options) (*Server, error) {
	s := &Server{o: o, open: make(chan struct{}, maxOpenAnswers)}
	s.draining, s.drain = context.WithCancel(context.Background())

	names := make([]string, len(o.Services))
	procedures, in := map[string]bool{}, &intake{draining: s.draining, now: o.Now, rpcs: map[string]rpc{}, heavy: object.NewLine()}
	// Calls that clients make without their user do not keep a session from becoming idle, unless their handler says so.
	passive := map[string]bool{
		sessionv1connect.SessionServicePutConnectionProcedure:  true,
		sessionv1connect.SessionServiceRefreshSessionProcedure: true,
		livev1connect.LiveServiceConnectLiveProcedure:          true,
		livev1connect.LiveServiceIngestLiveProcedure:           true,
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
			in.rpcs[p] = newRPC(p, all.Get(j))
			if all.Get(j).IsStreamingServer() {
				passive[p] = true
			}
			requests = append(requests, all.Get(j).Input())
		}
	}
	// The rules are compiled now, so that the first request does not wait for them, and once for all servers of a process.
	rules := protovalidate.GlobalValidator
	for _, r := range requests {
		if wrong, ok := errors.AsType[*protovalidate.CompilationError](rules.Validate(dynamicpb.NewMessage(r))); ok {
			return nil, fmt.Errorf("handlers: the rules of the protos: %w", wrong)
		}
	}

	texts := jsonpb.New()
	t := newTelemetry(o.Log, o.Now, procedures, o.Metrics)
	tracing, err := traced(o.Traces)
	if err != nil {
		return nil, err
	}
	options := []connect.HandlerOption{
		connect.WithCodec(stableProto{}),
		connect.WithCodec(fastJSON{codecJSON, texts}),
		connect.WithCodec(fastJSON{codecJSONCharset, texts}),
		connect.WithCompression("gzip", func() connect.Decompressor { return unpacked{} },
			func() connect.Compressor { return gzip.NewWriter(io.Discard) }),
		connect.WithCompressMinBytes(minCompress),
		connect.WithInterceptors(append(tracing, &outcome{telemetry: t, whenDraining: func(f func()) func() bool {
			return context.AfterFunc(s.draining, f)
		}, follow: o.Auth.guard.follow}, validate.NewInterceptor(validate.WithValidator(validator{rules}), validate.WithoutErrorDetails()),
			settled{}, conditional{})...),
	}

	admission := newAdmission(o.Bounds)
	admitted := func(c *call, r *http.Request) error { return admission.admit(c, in.rpcs[r.URL.Path].stream) }
	refusals := connect.NewErrorWriter(options...)
	mux := http.NewServeMux()
	unknown := t.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refuse(refusals, w, r, t.fail(r.Context(), methodUnknown(callFrom(r.Context()), http.StatusNotFound, r)))
	}))
	mux.Handle("/", unknown)
	onlyRead := func(allow string) http.Handler {
		return t.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", allow)
			refuse(refusals, w, r, t.fail(r.Context(), methodUnknown(callFrom(r.Context()), http.StatusMethodNotAllowed, r)))
		}))
	}
	// Intake has refused what is over a limit. Connect keeps to the limits too, should intake miss something. lenientMark has a byte.
	limited := append(slices.Clone(options), connect.WithConditionalHandlerOptions(func(s connect.Spec) []connect.HandlerOption {
		return []connect.HandlerOption{connect.WithReadMaxBytes(int(in.rpcs[s.Procedure].limit) + 1)}
	}))
	small := append(slices.Clone(options), connect.WithReadMaxBytes(maxOpenRequest))
	for _, service := range o.Services {
		path, h := service.Handler(limited...)
		call := &edge{telemetry: t, enter: o.Auth.entrance(t, passive, admitted), intake: in, refusals: refusals, next: h}
		mux.Handle(path, call)
		if service.Name == watchv1connect.WatchServiceName {
			mux.Handle(eventsPath, events{call, unknown, onlyRead(http.MethodGet), texts, refusals})
		}
	}
	for _, r := range o.Routes {
		bounded := &places{most: cmp.Or(o.RouteCalls, defaultRouteCalls), mostPerPath: cmp.Or(o.RouteCallsPerPath, defaultRouteCallsPerPath)}
		mux.Handle(r.Path, t.wrap(t.plain(r.Name, bounded.route(r.Handler))))
	}
	path, h := grpchealth.NewHandler(health{s, names}, small...)
	bodies := &places{most: maxOpenBodies, mostPerPath: maxOpenBodies}
	mux.Handle(path, bodies.route(&edge{telemetry: t, refusals: refusals, next: h, intake: &intake{draining: s.draining, now: o.Now, rpcs: map[string]rpc{
		path + "Check": {limit: maxOpenRequest, open: true}, path + "Watch": {limit: maxOpenRequest, open: true, stream: true},
	}}}))
	if !o.NoReflection {
		reflector := grpcreflect.NewStaticReflector(append(slices.Clone(names), grpchealth.HealthV1ServiceName)...)
		streams := &openStreams{telemetry: t, refusals: refusals, free: make(chan struct{}, maxOpenStreams)}
		reflect := func(path string, h http.Handler) { mux.Handle(path, t.wrap(streams.bound(h))) }
		reflect(grpcreflect.NewHandlerV1(reflector, small...))
		reflect(grpcreflect.NewHandlerV1Alpha(reflector, small...))
	}
	for _, path := range []string{"/health/live", "/healthz"} { // Cloud Run keeps paths that end in z to itself
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
		mux.Handle(path, onlyRead("GET, HEAD"))
	}
	for _, path := range []string{"/health/ready", "/readyz"} {
		mux.HandleFunc("GET "+path, s.readyz)
		mux.Handle(path, onlyRead("GET, HEAD"))
	}
	s.handler = mux
	if len(o.Origins) > 0 {
		s.handler = cors.New(cors.Options{
			AllowedOrigins: o.Origins,
			AllowedMethods: connectcors.AllowedMethods(),
			AllowedHeaders: slices.Concat(connectcors.AllowedHeaders(), []string{"Authorization", userHeader, lenientHeader, "If-None-Match", "Last-Event-ID"}, tracingHeaders),
			ExposedHeaders: append(connectcors.ExposedHeaders(), "Date", "ETag", "RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate"),
			MaxAge:         7200, // no browser keeps it longer
		}).Handler(mux)
	}
	return s, nil
}

// tracingHeaders are added to calls by tracing in web pages. A browser refuses the whole call if one of its headers is not allowed.
var tracingHeaders = []string{
	"Traceparent", "Tracestate", "Baggage", "Sentry-Trace", "B3", "X-B3-Traceid", "X-B3-Spanid", "X-B3-Parentspanid", "X-B3-Sampled", "X-B3-Flags",
	"X-Request-Id", "X-Correlation-Id", "X-Cloud-Trace-Context", "X-Amzn-Trace-Id", "X-Datadog-Trace-Id", "X-Datadog-Parent-Id",
	"X-Datadog-Origin", "X-Datadog-Sampling-Priority", "Uber-Trace-Id",
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := &answerWriter{ResponseWriter: w, now: s.o.Now, call: r.Context()}
	if r.ProtoMajor == 1 {
		// HTTP/1.1 keeps the deadline of the request before. What takes longer to begin its answer sets it again.
		_ = http.NewResponseController(w).SetWriteDeadline(s.o.Now().Add(sendTimeout))
	} else {
		answer.open = s.open
		defer answer.leave()
	}
	s.handler.ServeHTTP(answer, r)
	answer.finish()
	if p, ok := r.Context().Value(peerKey{}).(*peer); ok && r.ProtoMajor > 1 {
		p.ended(answer.taken || r.Context().Err() == nil)
	}
}

// peer is the other side of a connection.
type peer struct {
	conn   net.Conn
	resets atomic.Int64
}

type peerKey struct{}

// ended closes a connection whose calls are mostly taken back: opening and resetting a stream costs a caller less than it costs us.
func (p *peer) ended(answered bool) {
	if !answered {
		if p.resets.Add(1) > maxResets {
			_ = p.conn.Close()
		}
	} else if p.resets.Add(-1) < 0 {
		p.resets.Store(0)
	}
}

// Serve answers on l, HTTP/1.1 and HTTP/2 in clear alike, until ctx ends. Then it drains: it is no longer ready, streams
// end with unavailable, and unary calls have DrainTimeout to end by themselves.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:        s,
		Protocols:      protocols,
		ReadTimeout:    cmp.Or(s.o.RequestTimeout, requestTimeout),
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: maxHead,
		// Streams stay open for long, so there is no limit on writing as a whole. Pings find dead peers, and sendTimeout slow
		// ones.
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: 30 * time.Second, WriteByteTimeout: sendTimeout},
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, peerKey{}, &peer{conn: c})
	}
	// Shutdown waits 5 s for connections without a request yet, such as browsers open in advance.
	var silent sync.Map
	server.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			silent.Store(c, nil)
		} else {
			silent.Delete(c)
		}
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(netutil.LimitListener(l, maxConnections)) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	s.Drain()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), DrainTimeout)
	defer cancel()
	closing := time.AfterFunc(drainBodyTime, func() {
		silent.Range(func(c, _ any) bool {
			_ = c.(net.Conn).Close() //nolint:forcetypeassert // ConnState stores nothing else
			return true
		})
	})
	defer closing.Stop()
	err := server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.Join(fmt.Errorf("calls were cut short after %v", DrainTimeout), server.Close())
	}
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	return err
}

// Drain makes the server unready and ends its streams. It does not wait.
func (s *Server) Drain() {
	s.Leave()
	s.drain()
}

// Leave makes the server unready. It continues to answer, so that balancers can notice first.
func (s *Server) Leave() { s.leaving.Store(true) }

// ready returns an error if requests should go elsewhere. It asks the database at most once in pingEvery.
func (s *Server) ready() error {
	if s.leaving.Load() {
		return errDraining
	}
	_, err, _ := s.pings.Do("", func() (any, error) {
		if last := s.pinged.Load(); last != nil && s.o.Now().Sub(last.at) < pingEvery {
			return nil, last.err
		}
		ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
		defer cancel()
		err := s.o.Ping(ctx)
		if err != nil {
			s.o.Log.WarnContext(ctx, "not ready", "error", err)
		}
		s.pinged.Store(&ping{s.o.Now(), err})
		return nil, err
	})
	return err
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if s.ready() != nil { //nolint:contextcheck // a ping serves many callers
		http.Error(w, "not ready", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ready\n")
}

// health answers gRPC's health checks as /health/ready does.
type health struct {
	*Server

	names []string
}

func (h health) Check(_ context.Context, req *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	if req.Service != "" && !slices.Contains(h.names, req.Service) {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no service %q", req.Service))
	}
	res := &grpchealth.CheckResponse{Status: grpchealth.StatusServing}
	if h.ready() != nil { //nolint:contextcheck // the same
		res.Status = grpchealth.StatusNotServing
	}
	return res, nil
}

// openStreams bounds the number, age and size of streams that need no credential.
type openStreams struct {
	*telemetry

	refusals *connect.ErrorWriter
	free     chan struct{}
}

// checkOpenStream refuses what Connect would refuse without a reason, and compression.
func checkOpenStream(r *http.Request) error {
	if r.Method != http.MethodPost || r.ProtoMajor < 2 {
		return problem.New(errorv1.Reason_REASON_METHOD_UNKNOWN, "reflection is called by POST over HTTP/2")
	}
	if _, known := formOf(r.Header, true); !known {
		return formUnknown(callFrom(r.Context()), true)
	}
	if e := cmp.Or(r.Header.Get(grpcEncoding), r.Header.Get("Connect-Content-Encoding"), "identity"); e != "identity" {
		return errOpenCompression
	}
	return checkHeaders(r.Header)
}

func (o *openStreams) bound(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			callFrom(r.Context()).status = http.StatusMethodNotAllowed
		}
		if err := checkOpenStream(r); err != nil {
			refuse(o.refusals, w, r, o.fail(r.Context(), err))
			return
		}
		select {
		case o.free <- struct{}{}:
			defer func() { <-o.free }()
		default:
			_ = o.refusals.Write(w, r, o.fail(r.Context(), &object.OverloadedError{What: "server", RetryAfter: time.Second}))
			return
		}
		// Not every ResponseWriter has deadlines; where none can be set there is none.
		_ = http.NewResponseController(w).SetReadDeadline(o.now().Add(openStreamTime))
		ctx, cancel := context.WithTimeout(r.Context(), openStreamTime)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
