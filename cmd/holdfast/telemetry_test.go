package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"holdfast/db/dbtest"
	"holdfast/handlers"
)

// What the dashboard and the alert rules name is what a server exposes, and the labels that they select by are there.
func TestDashboardAndAlerts(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	p := start(t, map[string]string{"DATABASE_URL": b.DirectURL, "HOLDFAST_ADDR": "127.0.0.1:0", "HOLDFAST_ADMIN_ADDR": "127.0.0.1:0"}, "serve")
	admin := p.await(t, p.stderr, `"metrics and profiles".*"url":"([^"]+)"`)
	api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
	if status, text := get(t, api+"/nothing"); status != http.StatusNotFound { // so that a call is counted
		t.Errorf("%d %s", status, text)
	}
	status, exposed := get(t, admin+"/metrics")
	if status != http.StatusOK {
		t.Fatal(status)
	}
	name := regexp.MustCompile(`\b(?:holdfast|process|go)_[a-z_]+\b`)
	known := map[string]bool{}
	for line := range strings.SplitSeq(exposed, "\n") {
		if !strings.HasPrefix(line, "#") {
			known[name.FindString(line)] = true
			continue
		}
		// A metric with labels that nobody has set yet shows nothing of its own.
		if f := strings.Fields(line); len(f) > 2 {
			known[f[2]] = true
		}
	}
	// These show once something has happened.
	for _, late := range []string{
		"holdfast_requests_total", "holdfast_request_duration_seconds_bucket", "holdfast_swept_rows_total", "holdfast_linear_sync_lag_seconds", "holdfast_quota_used_ratio",
	} {
		known[late] = true
	}
	named := 0
	for _, file := range []string{"grafana/holdfast.json", "prometheus/alerts.yaml"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "deploy", file))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, ".json") && !json.Valid(text) {
			t.Errorf("%s is no JSON", file)
		}
		for _, n := range name.FindAllString(string(text), -1) {
			if named++; !known[n] {
				t.Errorf("%s names %s, which a server does not expose", file, n)
			}
		}
	}
	if named < 40 {
		t.Errorf("only %d metrics are named", named)
	}
	for _, part := range []string{`holdfast_build_info{commit="`, "holdfast_timers_overdue 0", "holdfast_timers_parked 0", `holdfast_sweep_last_success_timestamp_seconds{task="hibernate"} `} {
		if !strings.Contains(exposed, part) {
			t.Errorf("a server does not expose %s", part)
		}
	}
	p.end(t)
}

// Each alert is tried, and has a runbook.
func TestAlertsAreTriedAndHaveRunbooks(t *testing.T) {
	t.Parallel()
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	rules, tried, operations := read("deploy/prometheus/alerts.yaml"), read("deploy/prometheus/alerts_test.yaml"), read("docs/operations.md")
	alerts := strings.Split(rules, "- alert: ")[1:]
	for _, rule := range alerts {
		name := strings.Fields(rule)[0]
		if !strings.Contains(tried, `alertname="`+name+`"`) {
			t.Errorf("%s is not tried in alerts_test.yaml", name)
		}
		if !strings.Contains(rule, "runbook: docs/operations.md#"+strings.ToLower(name)+"\n") || !strings.Contains(operations, "\n### "+name+"\n") {
			t.Errorf("%s has no runbook in docs/operations.md", name)
		}
	}
	if len(alerts) < 15 {
		t.Errorf("there are only %d alerts", len(alerts))
	}
}

// collector takes traces as OpenTelemetry's own does.
type collector struct {
	mu    sync.Mutex // guards spans
	spans []*tracepb.Span
}

// ServeHTTP implements [http.Handler].
func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var req coltrace.ExportTraceServiceRequest
	if strings.HasSuffix(r.URL.Path, "/traces") && proto.Unmarshal(body, &req) == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rs := range req.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				c.spans = append(c.spans, ss.GetSpans()...)
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// A call's trace has its span, that of the transaction which carried it, and those of the statements; it is the caller's trace
// where the call brings one, and holds neither the message's text nor the token.
func TestTraces(t *testing.T) { //nolint:paralleltest // the exporter reads the process's own environment
	c := &collector{}
	server := httptest.NewServer(c)
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	b := dbtest.New(t)
	token, key := handlers.NewKey(b.Tenant, "", "")
	if err := b.Operator.CreateKey(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	p := start(t, map[string]string{
		"DATABASE_URL": b.DirectURL, "HOLDFAST_ADDR": "127.0.0.1:0", "OTEL_EXPORTER_OTLP_ENDPOINT": server.URL,
	}, "serve")
	api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
	const secret, traceID = "what nobody else should read", "0af7651916cd43dd8448eb211c80319c"
	call := func(method, body string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, api+"/holdfast.conversation.v1.ConversationService/"+method, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Traceparent", "00-"+traceID+"-b7ad6b7169203331-01")
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		res, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Fatal(res.Status)
		}
	}
	call("CreateConversation", `{"shared":true,"conversationId": "c1"}`)
	call("Append", `{"conversationId": "c1", "messages": [{"role": "ROLE_USER", "text": "`+secret+`"}]}`)
	call("GetConversation", `{"conversationId": "c1"}`)
	p.end(t) // sends what is left

	c.mu.Lock()
	defer c.mu.Unlock()
	names := map[string]int{}
	for _, s := range c.spans {
		if !bytes.Equal(s.GetTraceId(), mustTraceID(t, traceID)) {
			t.Errorf("the span %s is of another trace", s.GetName())
		}
		names[s.GetName()]++
		if text := s.String(); strings.Contains(text, secret) || strings.Contains(text, token) {
			t.Errorf("a span tells too much: %s", text)
		}
	}
	for _, want := range []string{"holdfast.conversation.v1.ConversationService/Append", "commit", "read"} {
		if names[want] == 0 {
			t.Errorf("no span %q in %v", want, names)
		}
	}
	if len(c.spans) < 8 {
		t.Errorf("only %d spans, of which none may be a statement's: %v", len(c.spans), names)
	}
}

func mustTraceID(t *testing.T, hex string) []byte {
	t.Helper()
	id, err := trace.TraceIDFromHex(hex)
	if err != nil {
		t.Fatal(err)
	}
	return id[:]
}

// Without an endpoint there is neither a provider nor a goroutine.
func TestTelemetryIsOff(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]map[string]string{
		"nothing is set": {},
		"disabled":       {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
		"none":           {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
	} {
		look := func(n string) (string, bool) { v, ok := env[n]; return v, ok }
		var o openTelemetry
		if err := o.startTraces(t.Context(), look); err != nil || o.traces != nil || o.tracer() != nil || o.runtimeTracer() != nil {
			t.Errorf("%s: traces are on, %v", name, err)
		}
		if err := o.startMetrics(t.Context(), look, prometheus.NewRegistry()); err != nil || o.metrics != nil {
			t.Errorf("%s: metrics are on, %v", name, err)
		}
	}
}
