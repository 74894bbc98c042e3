package handlers

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"holdfast/handlers/session/credential"
	"holdfast/identity"
	"holdfast/object"
)

// call collects what is known of one HTTP request. The edge makes it and reports it at the end; the authenticator and the
// interceptors in between write to it, all in the request's goroutine.
type call struct {
	began     time.Time
	trace     string // see traceID
	procedure string // empty: no interceptor ran
	stream    bool
	caller    identity.Identity
	presented credential.Presented
	// sessionEnd is when the caller's session ends; zero: there is none.
	sessionEnd time.Time
	// active notes that the caller's user did something; nil: that was noted, or there is no session.
	active    func(context.Context)
	backs     backing
	code      string
	status    int // of HTTP, in place of the code's; 0: the code's
	reason    string
	err       error
	response  http.ResponseWriter
	countedBy *admission    // nil: by none
	load      Load          // what it is charged with there
	answer    *answerWriter // nil: the edge has no Server around it
	permit    object.Answer // of a large answer
	endTurn   func()        // ends the turn of a large request; nil: it has none
}

// identified adds the caller to the context of the call's handler.
func (c *call) identified(ctx context.Context) context.Context {
	if c.caller != (identity.Identity{}) {
		ctx = identity.With(ctx, c.caller)
	}
	if c.presented != (credential.Presented{}) {
		ctx = credential.With(ctx, c.presented)
	}
	if !c.sessionEnd.IsZero() {
		ctx = identity.WithSessionEnd(ctx, c.sessionEnd)
	}
	if c.active != nil {
		ctx = identity.WithActivity(ctx, c.active)
	}
	return ctx
}

const (
	codeOK = "ok"
	// codeMalformed is the code of a call that ended before the interceptors: Connect could not read it.
	codeMalformed = "malformed"
)

type callKey struct{}

// callFrom is never nil, so that a handler can be used, and tested, without the middleware.
func callFrom(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

// traceID returns the caller's trace id, or one that it makes on first use.
func (c *call) traceID() string {
	if c.trace == "" {
		c.trace = newTrace()
	}
	return c.trace
}

// refused records how the call ends.
func (c *call) refused(err error, e *connect.Error, reason string) {
	c.code, c.reason, c.err = e.Code().String(), reason, err
	if connect.IsNotModifiedError(e) {
		c.code, c.err = codeOK, nil
	}
}

// telemetry reports every call once, when it ends, in the log and in the metrics, without bodies and credentials. An interceptor
// cannot do it alone, because a unary call that cannot be decoded never reaches one.
type telemetry struct {
	log        *slog.Logger
	now        func() time.Time
	procedures map[string]bool // keeps callers from inventing label values
	calls      *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
	refusals   *prometheus.CounterVec
	inFlight   prometheus.Gauge
	streams    prometheus.Gauge
	sampled    sampler
}

// newTelemetry registers its metrics with reg, unless reg is nil.
func newTelemetry(log *slog.Logger, now func() time.Time, procedures map[string]bool, reg prometheus.Registerer) *telemetry {
	t := &telemetry{
		log: log, now: now, procedures: procedures,
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_requests_total", Help: "Calls that have ended, by method and code.",
		}, []string{"method", "code"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_requests_refused_total", Help: "Calls that were refused, by the reason in their answer.",
		}, []string{"reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_request_duration_seconds", Help: "How long unary calls took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14), // 0.5 ms to 4 s
		}, []string{"method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "holdfast_requests_in_flight", Help: "Unary calls that are being answered.",
		}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "holdfast_streams_open", Help: "Streams that are open.",
		}),
	}
	if reg != nil {
		reg.MustRegister(t.calls, t.refusals, t.seconds, t.inFlight, t.streams)
	}
	return t
}

// edge receives calls, and reports them when they end.
type edge struct {
	*telemetry

	// enter can refuse a call before its body is read. nil: none is refused.
	enter func(*call, *http.Request) *connect.Error
	// intake reads bodies. nil: next reads them.
	intake   *intake
	refusals *connect.ErrorWriter
	next     http.Handler
}

func (t *telemetry) wrap(next http.Handler) http.Handler { return &edge{telemetry: t, next: next} }

func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{trace: traceOf(r), began: e.now(), code: codeMalformed, response: w}
	outer := w
	if events, ok := w.(*eventWriter); ok {
		outer = events.ResponseWriter
	}
	c.answer, _ = outer.(*answerWriter)
	defer e.end(c, r)
	ctx := context.WithValue(object.Answering(r.Context(), &c.permit), callKey{}, c)
	in := r.WithContext(ctx)
	w.Header().Set("Cache-Control", "no-store") // unless the answer has an ETag; RFC 6749, 5.1, asks for it where tokens are issued
	if refusal := e.receive(c, w, in); refusal != nil {
		refuse(e.refusals, w, in, refusal)
		return
	}
	if c.answer != nil {
		c.answer.counted = c.countedBy != nil
		defer c.answer.finish()
	}
	e.next.ServeHTTP(w, in.WithContext(c.identified(ctx)))
}

// refuse answers with an error in the protocol of the request. Where HTTP has a status of its own for the error, it has that status; a
// request of unknown form gets JSON.
func refuse(errors *connect.ErrorWriter, w http.ResponseWriter, r *http.Request, e *connect.Error) {
	if status := callFrom(r.Context()).status; status != 0 {
		w = fixedStatus{w, status}
		if status == http.StatusUnsupportedMediaType {
			r.Header.Del("Content-Type")
		}
	}
	_ = errors.Write(w, r, e)
}

// fixedStatus has another status than that of its error's code. In protocols that have errors in a body or trailer it is 200.
type fixedStatus struct {
	http.ResponseWriter

	status int
}

func (w fixedStatus) WriteHeader(status int) {
	if status != http.StatusOK {
		status = w.status
	}
	w.ResponseWriter.WriteHeader(status)
}

// receive admits a request and reads its body.
func (e *edge) receive(c *call, w http.ResponseWriter, r *http.Request) *connect.Error {
	if e.enter != nil {
		if refusal := e.enter(c, r); refusal != nil {
			return refusal
		}
	}
	if e.intake != nil {
		if err := e.intake.read(c, w, r); err != nil {
			return e.fail(r.Context(), err)
		}
	}
	return nil
}

// answerWriter ends an answer that the caller does not read within sendTimeout; nothing else limits it. The deadline stays until
// the next request, because HTTP/1.1 sends the end of an answer after the handler has returned.
type answerWriter struct {
	http.ResponseWriter

	now  func() time.Time
	call context.Context //nolint:containedctx // of the request, which an answer is too late for when it is over
	// open has a place for each answer over HTTP/2 that no bound of a user counts. nil: HTTP/1.1, where a connection has one answer.
	open    chan struct{}
	counted bool // by the bounds of a user
	placed  bool
	set     bool
	taken   bool // something was written while the caller waited for it
}

func (w *answerWriter) Write(p []byte) (int, error) {
	if w.open != nil && !w.counted && !w.placed {
		select {
		case w.open <- struct{}{}:
			w.placed = true
		default:
			return len(p), nil // a caller that does not read can delay bodies, but not a status
		}
	}
	if !w.set {
		w.set, w.taken = true, w.call.Err() == nil
		// Not every ResponseWriter has deadlines; where none can be set there is none.
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(w.now().Add(sendTimeout))
	}
	return w.ResponseWriter.Write(p) //nolint:wrapcheck // it is an io.Writer
}

// finish sends the body. HTTP/2 would do so after the handler has returned, when no bound counts the answer any more.
func (w *answerWriter) finish() {
	if w.open != nil && w.set {
		w.Flush()
	}
}

// leave gives the answer's place back.
func (w *answerWriter) leave() {
	if w.placed {
		<-w.open
	}
}

// Flush implements [http.Flusher].
func (w *answerWriter) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

// Unwrap is for http.ResponseController.
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (t *telemetry) end(c *call, r *http.Request) {
	c.leave()
	c.settled()
	c.permit.Sent()
	if c.procedure == "" {
		if c.procedure = r.URL.Path; !t.procedures[c.procedure] {
			c.procedure = "unknown"
		}
	}
	t.report(r.Context(), c, t.now().Sub(c.began))
}

// plain reports the calls of a plain HTTP handler under a name, with their status as outcome. A panic ends only its own call.
func (t *telemetry) plain(name string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := callFrom(r.Context())
		c.procedure, c.code = name, codeOK
		defer t.caught(r.Context(), c, w)
		next.ServeHTTP(&statusWriter{w, c}, r)
	})
}

// caught recovers from a panic and answers with an internal error.
func (t *telemetry) caught(ctx context.Context, c *call, w http.ResponseWriter) {
	value := recover() //nolint:revive // it is called by defer alone
	if value == nil {
		return
	}
	c.code = strconv.Itoa(http.StatusInternalServerError)
	t.log.ErrorContext(ctx, "panic", "method", c.procedure, "trace_id", c.traceID(), "value", value, "stack", string(debug.Stack()))
	http.Error(w, "internal error", http.StatusInternalServerError)
}

// statusWriter records the status of an answer.
type statusWriter struct {
	http.ResponseWriter

	call *call
}

func (w *statusWriter) WriteHeader(status int) {
	if status >= http.StatusBadRequest {
		w.call.code = strconv.Itoa(status)
		w.call.reason = cmp.Or(w.call.reason, "HTTP_"+w.call.code)
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (t *telemetry) report(ctx context.Context, c *call, took time.Duration) {
	t.calls.WithLabelValues(c.procedure, c.code).Inc()
	if c.reason != "" {
		t.refusals.WithLabelValues(c.reason).Inc()
	}
	if !c.stream {
		t.seconds.WithLabelValues(c.procedure).Observe(took.Seconds())
	}
	level := slog.LevelDebug
	if c.code != codeOK {
		level = slog.LevelInfo
	}
	if !t.log.Enabled(ctx, level) || !t.log.Enabled(ctx, slog.LevelDebug) && !t.sampled.passes(t.log, c.caller.Tenant) { //nolint:contextcheck // what it tells later is of many calls
		return
	}
	attrs := append(make([]slog.Attr, 0, 8),
		slog.String("method", c.procedure), slog.String("code", c.code), slog.Duration("took", took),
		slog.String("trace_id", c.traceID()), slog.String("tenant", string(c.caller.Tenant)))
	if c.caller.User != "" {
		attrs = append(attrs, slog.String("user", string(c.caller.User)))
	}
	if c.err != nil {
		attrs = append(attrs, slog.String("reason", c.reason), slog.Any("error", c.err))
	}
	t.log.LogAttrs(ctx, level, "call", attrs...)
}

const (
	// In each logPeriod, loggedCalls failed calls of a tenant, or of callers without one, are logged one by one.
	loggedCalls = 10
	logPeriod   = time.Second
)

// sampler keeps callers from filling the log: it counts the calls beyond loggedCalls, and logs their number in one line. Safe for
// concurrent use.
type sampler struct {
	mu    sync.Mutex // guards what follows
	calls map[identity.Tenant]int64
}

// passes counts a line of a tenant (empty: of callers without one), and reports whether it is to be written.
func (s *sampler) passes(log *slog.Logger, of identity.Tenant) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls == nil {
		s.calls = map[identity.Tenant]int64{}
		time.AfterFunc(logPeriod, func() { s.tell(log) })
	}
	s.calls[of]++
	return s.calls[of] <= loggedCalls
}

// tell ends a period and logs how many lines it left out.
func (s *sampler) tell(log *slog.Logger) {
	s.mu.Lock()
	calls := s.calls
	s.calls = nil
	s.mu.Unlock()
	for of, n := range calls {
		if n > loggedCalls {
			log.LogAttrs(context.Background(), slog.LevelInfo, "more calls were refused than are logged",
				slog.String("tenant", string(of)), slog.Int64("unlogged", n-loggedCalls))
		}
	}
}

// fail returns the caller's form of err and records it. It logs an error in full if the caller is not told about it.
func (t *telemetry) fail(ctx context.Context, err error) *connect.Error {
	c := callFrom(ctx)
	e, reason, unexplained := wire(err, c.traceID())
	c.refused(err, e, reason)
	if unexplained {
		t.log.ErrorContext(ctx, "internal error", "method", c.procedure, "trace_id", c.traceID(),
			"tenant", string(c.caller.Tenant), "error", err)
	}
	return e
}

// panicked logs a panic and returns an internal error without details for the caller.
func (t *telemetry) panicked(ctx context.Context, value any) error {
	if value == http.ErrAbortHandler { //nolint:errorlint,err113 // as net/http compares it
		panic(value)
	}
	c := callFrom(ctx)
	t.log.ErrorContext(ctx, "panic", "method", c.procedure, "trace_id", c.traceID(), "value", value, "stack", string(debug.Stack()))
	return connect.NewError(connect.CodeInternal, errPanic)
}

// traceOf returns the trace id in a W3C traceparent header, or "" if there is none.
func traceOf(r *http.Request) string {
	// 00-<32 hex digits>-<16 hex digits>-<2 hex digits>
	header := r.Header.Get("Traceparent")
	if header == "" {
		return ""
	}
	parts := strings.Split(header, "-")
	if len(parts) < 4 || len(parts[1]) != 32 || parts[1] == strings.Repeat("0", 32) {
		return ""
	}
	if _, err := hex.DecodeString(parts[1]); err != nil {
		return ""
	}
	return parts[1]
}

func newTrace() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}
