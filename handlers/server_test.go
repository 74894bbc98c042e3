package handlers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"holdfast/db"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	errorv1 "holdfast/gen/holdfast/error/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers/problem"
	"holdfast/identity"
	"holdfast/object"
)

// manager stands in for the real one: each test says what a method does.
type manager struct {
	conversationv1connect.UnimplementedConversationServiceHandler

	get   func(context.Context, *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error)
	list  func(context.Context, *conversationv1.ListMessagesRequest) (*conversationv1.ListMessagesResponse, error)
	watch func(context.Context, *watchv1.WatchRequest, *connect.ServerStream[watchv1.WatchResponse]) error
}

func (m *manager) CreateConversation(ctx context.Context, req *conversationv1.CreateConversationRequest) (*conversationv1.CreateConversationResponse, error) {
	who, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	return &conversationv1.CreateConversationResponse{
		Conversation: &conversationv1.Conversation{Title: req.GetConversation().GetTitle(), Owner: string(who.User)},
	}, nil
}

func (m *manager) GetConversation(ctx context.Context, req *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
	return m.get(ctx, req)
}

func (m *manager) ListMessages(ctx context.Context, req *conversationv1.ListMessagesRequest) (*conversationv1.ListMessagesResponse, error) {
	return m.list(ctx, req)
}

func (m *manager) Watch(ctx context.Context, req *watchv1.WatchRequest, s *connect.ServerStream[watchv1.WatchResponse]) error {
	return m.watch(ctx, req, s)
}

// logbook is a log that tests read.
type logbook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

type bundle struct {
	*manager

	server  *Server
	url     string
	token   string // of a service of the tenant acme
	log     *logbook
	metrics *prometheus.Registry
	http    *http.Client
	stop    context.CancelFunc
	stopped chan error
}

// setup serves a manager on a port of its own. change alters the options before.
func setup(t *testing.T, change ...func(*Options)) *bundle {
	t.Helper()
	var k keyring
	b := &bundle{manager: &manager{}, log: &logbook{}, metrics: prometheus.NewRegistry(), stopped: make(chan error, 1)}
	b.token = k.add("acme", "")
	o := Options{
		Services: []Service{{conversationv1connect.ConversationServiceName, func(opts ...connect.HandlerOption) (string, http.Handler) {
			return conversationv1connect.NewConversationServiceHandler(b.manager, opts...)
		}}, {watchv1connect.WatchServiceName, func(opts ...connect.HandlerOption) (string, http.Handler) {
			return watchv1connect.NewWatchServiceHandler(b.manager, opts...)
		}}},
		Auth:    newAuth(&k),
		Ping:    func(context.Context) error { return nil },
		Metrics: b.metrics,
		Log:     slog.New(slog.NewJSONHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:     time.Now,
	}
	for _, c := range change {
		c(&o)
	}
	var err error
	if b.server, err = New(o); err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.url = "http://" + l.Addr().String()
	transport := &http.Transport{}
	b.http = &http.Client{Transport: transport}
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.stopped <- b.server.Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		transport.CloseIdleConnections()
		<-done
	})
	return b
}

// client calls with the token; protocol options such as connect.WithGRPC may follow.
func (b *bundle) client(opts ...connect.ClientOption) conversationv1connect.ConversationServiceClient {
	return conversationv1connect.NewConversationServiceClient(b.http, b.url, append(opts, connect.WithInterceptors(withToken(b.token)))...)
}

func (b *bundle) watchClient(opts ...connect.ClientOption) watchv1connect.WatchServiceClient {
	return watchv1connect.NewWatchServiceClient(b.http, b.url, append(opts, connect.WithInterceptors(withToken(b.token)))...)
}

type withToken string

func (w withToken) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		req.Header().Set("Authorization", "Bearer "+string(w))
		return next(ctx, req)
	}
}

func (w withToken) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		conn.RequestHeader().Set("Authorization", "Bearer "+string(w))
		return conn
	}
}

func (w withToken) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// answer is an HTTP response, read.
type answer struct {
	status int
	header http.Header
	body   string
}

// call sends JSON by POST, as curl would; headers are "Name: value".
func (b *bundle) call(t *testing.T, method, body string, headers ...string) answer {
	t.Helper()
	return b.do(t, http.MethodPost, "/"+conversationv1connect.ConversationServiceName+"/"+method, body,
		append([]string{"Content-Type: application/json", "Authorization: Bearer " + b.token}, headers...)...)
}

func (b *bundle) do(t *testing.T, verb, path, body string, headers ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), verb, b.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	res, err := b.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(text)}
}

func TestACallReachesItsManagerWithItsIdentity(t *testing.T) {
	t.Parallel()
	b := setup(t)
	got := b.call(t, "CreateConversation", `{"conversation":{"title":"Hello"}}`, "Holdfast-User: ada")
	var res struct {
		Conversation struct {
			Title string `json:"title"`
			Owner string `json:"owner"`
		} `json:"conversation"`
	}
	if err := json.Unmarshal([]byte(got.body), &res); err != nil || got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if res.Conversation.Title != "Hello" || res.Conversation.Owner != "ada" {
		t.Errorf("answer is %s", got.body)
	}
}

func TestEveryProtocol(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clear2 := h2c(t)
	for name, opts := range map[string][]connect.ClientOption{
		"Connect": nil, "Connect JSON": {connect.WithProtoJSON()}, "gRPC": {connect.WithGRPC()}, "gRPC-Web": {connect.WithGRPCWeb()},
	} {
		for version, client := range map[string]*http.Client{"HTTP/1.1": b.http, "h2c": clear2} {
			if name == "gRPC" && version == "HTTP/1.1" {
				continue // gRPC needs HTTP/2
			}
			t.Run(name+" "+version, func(t *testing.T) {
				t.Parallel()
				c := conversationv1connect.NewConversationServiceClient(client, b.url, append(opts, connect.WithInterceptors(withToken(b.token)))...)
				res, err := c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{Conversation: &conversationv1.Conversation{Title: "x"}})
				if err != nil || res.Conversation.Title != "x" {
					t.Errorf("got %v, %v", res, err)
				}
				_, err = c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{Conversation: &conversationv1.Conversation{Title: "\x00"}})
				var e *connect.Error
				if !errors.As(err, &e) || len(detail[*errdetails.BadRequest](t, e).GetFieldViolations()) != 1 {
					t.Errorf("a refusal is %v", err)
				}
			})
		}
	}
}

func TestRefusalsAsCurlSeesThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.get = func(context.Context, *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
		return nil, &object.VersionMismatchError{Expected: 3, Current: 5}
	}
	tests := []struct {
		name, method, body string
		headers            []string
		status             int
		want               []string
	}{
		{"no credential", "CreateConversation", `{}`, []string{"Authorization: "}, 401, []string{`"reason":"CREDENTIAL_MISSING"`, "holdfast key create"}},
		{"bad credential", "CreateConversation", `{}`, []string{"Authorization: Bearer hfk_x"}, 401, []string{`"reason":"CREDENTIAL_INVALID"`}},
		{"protovalidate", "GetConversation", `{"conversationId":"a b"}`, nil, 400, []string{`"field":"conversation_id"`, `"reason":"FIELD_INVALID"`, `"domain":"holdfast"`}},
		{"U+0000", "CreateConversation", `{"conversation":{"labels":{"a":"\u0000"}}}`, nil, 400, []string{`conversation.labels[\"a\"]`, `U+0000`}},
		{"NaN", "Append", `{"conversationId":"c","intents":[{"name":"n","slots":{"a":"NaN"},"confidence":"NaN"}]}`, nil, 400, []string{`"field":"intents[0].confidence"`}},
		{"version", "GetConversation", `{"conversationId":"c"}`, nil, 409, []string{`"code":"aborted"`, `"reason":"VERSION_MISMATCH"`, `"current_version":"5"`}},
		{"no JSON", "CreateConversation", `{`, nil, 400, []string{`"code":"invalid_argument"`}},
		{"no such method", "Frobnicate", `{}`, nil, 404, nil},
		{"unimplemented", "ListRecords", `{"conversationId":"c"}`, nil, 501, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := b.call(t, tt.method, tt.body, tt.headers...)
			body := strings.ReplaceAll(strings.ReplaceAll(got.body, ": ", ":"), ", ", ",")
			if got.status != tt.status {
				t.Errorf("status is %d, want %d: %s", got.status, tt.status, got.body)
			}
			for _, want := range tt.want {
				if !strings.Contains(body, want) {
					t.Errorf("answer lacks %s: %s", want, got.body)
				}
			}
			if want := got.status == 401; (got.header.Get("WWW-Authenticate") != "") != want {
				t.Errorf("WWW-Authenticate is %q", got.header.Get("WWW-Authenticate"))
			}
		})
	}
}

func TestUnknownErrorsAndPanicsAreLoggedNotTold(t *testing.T) {
	t.Parallel()
	for name, get := range map[string]func() error{
		"error": func() error { return errors.New("password is hunter2") },
		"panic": func() error { panic("password is hunter2") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.get = func(context.Context, *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
				return nil, get()
			}
			b.watch = func(context.Context, *watchv1.WatchRequest, *connect.ServerStream[watchv1.WatchResponse]) error {
				return get()
			}
			const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
			got := b.call(t, "GetConversation", `{"conversationId":"c"}`, "Traceparent: 00-"+trace+"-00f067aa0ba902b7-01")
			if got.status != 500 || strings.Contains(got.body, "hunter2") || !strings.Contains(got.body, trace) {
				t.Errorf("answer is %d %s", got.status, got.body)
			}
			if log := b.log.String(); !strings.Contains(log, "hunter2") || !strings.Contains(log, trace) {
				t.Errorf("the log is\n%s", log)
			}
			if name == "panic" && !strings.Contains(b.log.String(), "server_test.go") {
				t.Errorf("the log has no stack:\n%s", b.log)
			}
			err := b.watchUntilEnd(t, nil)
			if connect.CodeOf(err) != connect.CodeInternal || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("stream ends with %v", err)
			}
		})
	}
}

// watchOf watches a conversation.
func watchOf(id string) *watchv1.WatchRequest {
	return &watchv1.WatchRequest{Items: []*watchv1.Item{{
		ItemId: "i", Of: &watchv1.Item_Conversation{Conversation: &watchv1.ConversationItem{ConversationId: id}},
	}}}
}

// watchUntilEnd watches, calls each after the first message, and returns how the stream ends.
func (b *bundle) watchUntilEnd(t *testing.T, each func()) error {
	t.Helper()
	s, err := b.watchClient().Watch(t.Context(), watchOf("c"))
	if err != nil {
		return err
	}
	defer s.Close()
	for s.Receive() {
		if each != nil {
			each()
			each = nil
		}
	}
	return s.Err()
}

func TestStreamsAreInterceptedToo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	looked := make(chan struct{})
	b.watch = func(_ context.Context, _ *watchv1.WatchRequest, s *connect.ServerStream[watchv1.WatchResponse]) error {
		if err := s.Send(&watchv1.WatchResponse{ItemId: "i"}); err != nil {
			return err
		}
		<-looked
		return problem.New(errorv1.Reason_REASON_FENCED, "no")
	}
	err := b.watchUntilEnd(t, func() {
		if got := b.metric(t, "holdfast_streams_open"); !slices.Equal(got, []string{" 1"}) {
			t.Errorf("open streams: %q", got)
		}
		close(looked)
	})
	var e *connect.Error
	if !errors.As(err, &e) || e.Code() != connect.CodeFailedPrecondition || detail[*errdetails.ErrorInfo](t, e).GetReason() != "FENCED" {
		t.Errorf("stream ends with %v", err)
	}
	for _, bad := range []*watchv1.WatchRequest{watchOf("a b"), {}} {
		s, err := b.watchClient().Watch(t.Context(), bad)
		if err == nil {
			s.Receive()
			err = s.Err()
			_ = s.Close()
		}
		if !errors.As(err, &e) || len(detail[*errdetails.BadRequest](t, e).GetFieldViolations()) != 1 {
			t.Errorf("%v is answered with %v", bad, err)
		}
	}
	// Without a credential, too.
	s, err := watchv1connect.NewWatchServiceClient(b.http, b.url).Watch(t.Context(), watchOf("c"))
	if err == nil {
		s.Receive()
		err = s.Err()
		_ = s.Close()
	}
	if connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("without a credential: %v", err)
	}
}

// metric lists the values of a counter or gauge, each as "label label value", sorted.
func (b *bundle) metric(t *testing.T, name string) (out []string) {
	t.Helper()
	families, err := b.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			out = append(out, fmt.Sprint(strings.Join(labels, " "), " ", m.GetCounter().GetValue()+m.GetGauge().GetValue()))
		}
	}
	slices.Sort(out)
	return out
}

func TestEachCallIsReportedOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.get = func(context.Context, *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
		return nil, object.ErrNotFound
	}
	b.watch = func(context.Context, *watchv1.WatchRequest, *connect.ServerStream[watchv1.WatchResponse]) error {
		return nil
	}
	b.call(t, "CreateConversation", `{"conversation":{"title":"private words"}}`)
	b.call(t, "GetConversation", `{"conversationId":"c"}`)
	b.call(t, "CreateConversation", `{`)
	b.call(t, "CreateConversation", `{}`, "Authorization: ")
	b.call(t, "Frobnicate", `{}`)
	b.do(t, http.MethodGet, "/wp-login.php", "")
	if err := b.watchUntilEnd(t, nil); err != nil {
		t.Error(err)
	}
	b.stop()
	<-b.stopped // so that every call is over

	const service = "/holdfast.conversation.v1.ConversationService/"
	want := []string{
		"invalid_argument " + service + "CreateConversation 1",
		"not_found " + service + "GetConversation 1",
		"ok " + service + "CreateConversation 1",
		"ok /holdfast.watch.v1.WatchService/Watch 1",
		"unauthenticated " + service + "CreateConversation 1",
		"unimplemented unknown 2",
	}
	if diff := cmp.Diff(want, b.metric(t, "holdfast_requests_total")); diff != "" {
		t.Error(diff)
	}
	log := b.log.String()
	if n := strings.Count(log, `"msg":"call"`); n != 7 {
		t.Errorf("%d calls are in the log:\n%s", n, log)
	}
	for _, secret := range []string{"private words", b.token, b.token[21:]} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %q:\n%s", secret, log)
		}
	}
	if !strings.Contains(log, `"tenant":"acme"`) || !strings.Contains(log, `"reason":"NOT_FOUND"`) {
		t.Errorf("the log lacks something:\n%s", log)
	}
}

func TestConditionalGet(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.get = func(_ context.Context, req *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
		return &conversationv1.GetConversationResponse{
			Conversation: &conversationv1.Conversation{Title: "changed", Version: 7},
		}, nil
	}
	b.list = func(context.Context, *conversationv1.ListMessagesRequest) (*conversationv1.ListMessagesResponse, error) {
		return &conversationv1.ListMessagesResponse{NextPageToken: "x", Version: 7}, nil
	}
	get := func(t *testing.T, method, message, tag string) answer {
		t.Helper()
		q := url.Values{"connect": {"v1"}, "encoding": {"json"}, "message": {message}}
		return b.do(t, http.MethodGet, "/"+conversationv1connect.ConversationServiceName+"/"+method+"?"+q.Encode(), "",
			"Authorization: Bearer "+b.token, "If-None-Match: "+tag)
	}
	const id = `{"conversationId":"c"}`
	first, list := get(t, "GetConversation", id, ""), get(t, "ListMessages", id, "")
	tag, ofList := first.header.Get("ETag"), list.header.Get("ETag")
	if first.status != 200 || !regexp.MustCompile(`^W/"[A-Za-z0-9_-]{22}"$`).MatchString(tag) || tag == ofList {
		t.Fatalf("got %d, ETag %s, and %s of a list", first.status, tag, ofList)
	}
	tests := []struct {
		name, method, message, tag string
		status                     int
		etag                       string
	}{
		{"same", "GetConversation", id, tag, 304, tag},
		{"same, strong", "GetConversation", id, strings.TrimPrefix(tag, "W/"), 304, tag},
		{"changed", "GetConversation", id, `W/"6"`, 200, tag},
		{"a bare version", "GetConversation", id, `W/"7"`, 200, tag},
		{"several tags", "GetConversation", id, `W/"6", ` + tag, 304, tag},
		{"no tag of ours", "GetConversation", id, `*`, 200, tag},
		{"a list", "ListMessages", id, ofList, 304, ofList},
		{"a list, changed", "ListMessages", id, tag, 200, ofList},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := get(t, tt.method, tt.message, tt.tag)
			if got.status != tt.status || got.header.Get("ETag") != tt.etag {
				t.Errorf("got %d, ETag %s; want %d, %s: %s", got.status, got.header.Get("ETag"), tt.status, tt.etag, got.body)
			}
			if h := got.header.Values("Cache-Control"); !slices.Equal(h, []string{"private, no-cache"}) {
				t.Errorf("Cache-Control is %q", h)
			}
			if got.status == 304 && got.body != "" {
				t.Errorf("304 has a body: %s", got.body)
			}
		})
	}
	t.Run("nobody's", func(t *testing.T) {
		t.Parallel()
		q := url.Values{"connect": {"v1"}, "encoding": {"json"}, "message": {id}}
		got := b.do(t, http.MethodGet, conversationv1connect.ConversationServiceGetConversationProcedure+"?"+q.Encode(), "", "If-None-Match: "+tag)
		if got.status != 401 || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("got %d, %v", got.status, got.header)
		}
	})
	t.Run("not by POST", func(t *testing.T) {
		t.Parallel()
		got := b.call(t, "GetConversation", id, "If-None-Match: "+tag)
		if got.status != 200 || got.header.Get("ETag") != "" || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("got %d, ETag %s", got.status, got.header.Get("ETag"))
		}
	})
	t.Run("a change is no GET", func(t *testing.T) {
		t.Parallel()
		if got := get(t, "CreateConversation", `{}`, ""); got.status != 405 {
			t.Errorf("got %d", got.status)
		}
	})
}

func TestCORS(t *testing.T) {
	t.Parallel()
	preflight := []string{
		"Origin: https://app.example.com", "Access-Control-Request-Method: POST",
		"Access-Control-Request-Headers: authorization,b3,baggage,connect-protocol-version,content-type,holdfast-user,if-none-match,sentry-trace,traceparent,tracestate,x-request-id",
	}
	path := conversationv1connect.ConversationServiceCreateConversationProcedure
	t.Run("allowed", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(o *Options) { o.Origins = []string{"https://app.example.com"} })
		got := b.do(t, http.MethodOptions, path, "", preflight...)
		if got.status != 204 || got.header.Get("Access-Control-Allow-Origin") != "https://app.example.com" ||
			!strings.Contains(got.header.Get("Access-Control-Allow-Headers"), "holdfast-user") {
			t.Errorf("preflight: %d %v", got.status, got.header)
		}
		got = b.call(t, "CreateConversation", `{}`, preflight[0])
		exposed := got.header.Get("Access-Control-Expose-Headers")
		if got.status != 200 || !strings.Contains(exposed, "Etag") || !strings.Contains(exposed, "Grpc-Status") || !strings.Contains(exposed, "Date") {
			t.Errorf("call: %d %v", got.status, got.header)
		}
		if got.header.Get("Access-Control-Allow-Credentials") != "" {
			t.Error("credentials are allowed")
		}
		// A page must be able to read why it was refused.
		got = b.call(t, "CreateConversation", `{}`, preflight[0], "Authorization: ")
		if got.status != 401 || got.header.Get("Access-Control-Allow-Origin") == "" {
			t.Errorf("refused call: %d %v", got.status, got.header)
		}
	})
	t.Run("another origin", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(o *Options) { o.Origins = []string{"https://other.example.com"} })
		if got := b.do(t, http.MethodOptions, path, "", preflight...); got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("preflight: %v", got.header)
		}
	})
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		if got := setup(t).do(t, http.MethodOptions, path, "", preflight...); got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("preflight: %v", got.header)
		}
	})
}

func TestPublicPaths(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, want := range map[string]int{"/health/live": 200, "/health/ready": 200, "/healthz": 200, "/readyz": 200, "/health": 404, "/": 404} {
		if got := b.do(t, http.MethodGet, path, ""); got.status != want {
			t.Errorf("%s is %d", path, got.status)
		}
	}
	check := func(service, want string) {
		t.Helper()
		got := b.do(t, http.MethodPost, "/grpc.health.v1.Health/Check", fmt.Sprintf(`{"service":%q}`, service), "Content-Type: application/json")
		if !strings.Contains(got.body, want) {
			t.Errorf("health of %q is %d %s", service, got.status, got.body)
		}
	}
	check("", "SERVING")
	check(conversationv1connect.ConversationServiceName, "SERVING")
	check("nobody", "not_found")

	stream := grpcreflect.NewClient(h2c(t), b.url, connect.WithGRPC()).NewStream(t.Context())
	names, err := stream.ListServices()
	_, _ = stream.Close()
	if err != nil || !slices.Contains(names, conversationv1connect.ConversationServiceName) || !slices.Contains(names, grpchealth.HealthV1ServiceName) {
		t.Errorf("reflection: %v, %v", names, err)
	}
}

func TestNotReadyWithoutItsDatabase(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *Options) { o.Ping = func(context.Context) error { return db.ErrUnavailable } })
	if got := b.do(t, http.MethodGet, "/readyz", ""); got.status != 503 {
		t.Errorf("/readyz is %d", got.status)
	}
	if got := b.do(t, http.MethodGet, "/healthz", ""); got.status != 200 {
		t.Errorf("/healthz is %d", got.status)
	}
	if got := b.do(t, http.MethodPost, "/grpc.health.v1.Health/Check", `{}`, "Content-Type: application/json"); !strings.Contains(got.body, "NOT_SERVING") {
		t.Errorf("health is %s", got.body)
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	started, release := make(chan struct{}), make(chan struct{})
	b.get = func(context.Context, *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
		close(started)
		<-release
		return &conversationv1.GetConversationResponse{}, nil
	}
	b.watch = func(ctx context.Context, _ *watchv1.WatchRequest, s *connect.ServerStream[watchv1.WatchResponse]) error {
		if err := s.Send(&watchv1.WatchResponse{ItemId: "i"}); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	unary := make(chan answer, 1)
	go func() { unary <- b.call(t, "GetConversation", `{"conversationId":"c"}`) }()
	<-started

	// The stream ends with unavailable, though its manager thought that all was well.
	err := b.watchUntilEnd(t, b.stop)
	var e *connect.Error
	if !errors.As(err, &e) || e.Code() != connect.CodeUnavailable || detail[*errdetails.RetryInfo](t, e) == nil {
		t.Errorf("stream ends with %v", err)
	}
	rec := httptest.NewRecorder()
	b.server.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil))
	if rec.Code != 503 {
		t.Errorf("/readyz is %d", rec.Code)
	}
	// The unary call is let through to its end.
	select {
	case err := <-b.stopped:
		t.Fatalf("Serve returned with a call under way: %v", err)
	default:
	}
	close(release)
	if got := <-unary; got.status != 200 {
		t.Errorf("the unary call got %d %s", got.status, got.body)
	}
	if err := <-b.stopped; err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

// h2c is a client that speaks HTTP/2 in clear.
func h2c(t *testing.T) *http.Client {
	t.Helper()
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestAClientThatDoesNotReadIsLeftAndOneThatWaitsIsNot(t *testing.T) {
	t.Parallel()
	const patience = 300 * time.Millisecond
	late := func(o *Options) { o.Now = func() time.Time { return time.Now().Add(patience - sendTimeout) } }
	for _, version := range []string{"HTTP/1.1", "h2c"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			b := setup(t, late)
			if version == "h2c" {
				b.http = h2c(t)
			}
			ended := make(chan error, 1)
			b.watch = func(ctx context.Context, req *watchv1.WatchRequest, s *connect.ServerStream[watchv1.WatchResponse]) error {
				m := &watchv1.WatchResponse{}
				if req.GetItems()[0].GetConversation().GetConversationId() == "idle" {
					if err := s.Send(m); err != nil {
						return err
					}
					select {
					case <-time.After(2 * patience):
					case <-ctx.Done():
					}
					return s.Send(m)
				}
				m.ItemId = strings.Repeat("x", 1<<20)
				var err error
				for err == nil {
					err = s.Send(m)
				}
				ended <- err
				return err
			}
			idle, err := b.watchClient(connect.WithAcceptCompression("gzip", nil, nil)).Watch(t.Context(), watchOf("idle"))
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Close()
			n := 0
			for idle.Receive() {
				n++
			}
			if n != 2 || idle.Err() != nil {
				t.Errorf("idle stream: %d messages, %v", n, idle.Err())
			}
			deaf, err := b.watchClient(connect.WithAcceptCompression("gzip", nil, nil)).Watch(t.Context(), watchOf("deaf"))
			if err != nil {
				t.Fatal(err)
			}
			defer deaf.Close()
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Error("still sends to a client that does not read")
			}
		})
	}
}

func TestAServiceThatHasNoProto(t *testing.T) {
	t.Parallel()
	if _, err := New(Options{Services: []Service{{Name: "holdfast.Nobody"}}}); err == nil {
		t.Error("accepted")
	}
}

func TestTraceIDs(t *testing.T) {
	t.Parallel()
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	for header, want := range map[string]bool{
		"00-" + id + "-00f067aa0ba902b7-01": true, "": false, "00-" + id: false, "garbage": false,
		"00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01": false, "00-" + strings.Repeat("x", 32) + "-00f067aa0ba902b7-01": false,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Header.Set("Traceparent", header)
		if got := traceOf(r); want && got != id || !want && got != "" {
			t.Errorf("traceOf(%q) = %q", header, got)
		}
		c := &call{trace: traceOf(r)}
		if got := c.traceID(); len(got) != 32 || got != c.traceID() || (got == id) != want {
			t.Errorf("the trace of %q is %q", header, got)
		}
	}
}

// A path that is there refuses other methods with 405, and says in Allow which it takes; one that is not there is 404 by every method.
func TestAPathThatIsThereSaysHowItIsCalled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, allow := range map[string]string{
		"/v1/state/chat/c/events":            "GET",
		"/healthz":                           "GET, HEAD",
		"/readyz":                            "GET, HEAD",
		"/health/live":                       "GET, HEAD",
		"/health/ready":                      "GET, HEAD",
		conversations + "GetConversation":    "GET, POST",
		conversations + "CreateConversation": "POST",
		watchRPC:                             "POST",
		"/grpc.health.v1.Health/Check":       "POST",
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "POST",
		"/nowhere":                  "",
		"/v1/state/chat/c":          "",
		"/v1/state/chat/c/events/x": "",
		"/healthz/x":                "",
		conversations + "Nothing":   "",
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions} {
			if slices.Contains(strings.Split(allow, ", "), method) {
				continue
			}
			want := http.StatusMethodNotAllowed
			if allow == "" {
				want = http.StatusNotFound
			}
			if got := b.do(t, method, path, "", "Authorization: Bearer "+b.token); got.status != want || got.header.Get("Allow") != allow {
				t.Errorf("%s %s is answered with %d, Allow: %q; want %d, %q", method, path, got.status, got.header.Get("Allow"), want, allow)
			}
		}
	}
}
