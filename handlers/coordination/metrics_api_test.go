package coordination

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/db/dbtest"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/object"
)

// Who has to wait is counted, by names that no tenant can make more of.
func TestRefusalsAreCounted(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	rt := object.NewRuntime(d.DB, object.Config{})
	t.Cleanup(func() { _ = rt.Close(context.Background()) })
	m, ctx := NewManager(Register(rt), d.DB.Now), d.AsService(t)
	one := &coordinationv1.ApiConfig{Policies: []*coordinationv1.Policy{
		{Name: "p", Algorithm: coordinationv1.Algorithm_ALGORITHM_SLIDING, Limit: 1, Period: durationpb.New(time.Hour)},
	}}
	for _, api := range []string{"codegen", "mine", "mine-too"} {
		if _, err := m.UpdateApi(ctx, &coordinationv1.UpdateApiRequest{Api: api, Config: one}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := m.Acquire(ctx, &coordinationv1.AcquireRequest{Api: api}); err != nil {
				t.Fatal(err)
			}
		}
		// A look is no call.
		if _, err := m.Acquire(ctx, &coordinationv1.AcquireRequest{Api: api, Peek: true}); err != nil {
			t.Fatal(err)
		}
		got, err := m.BeginCall(ctx, &coordinationv1.BeginCallRequest{Api: api, Operation: "x", Key: "r"})
		if err != nil || got.GetDecision() != wait {
			t.Fatal(got, err)
		}
	}
	const want = `# HELP holdfast_api_refused_total Calls of APIs that were told to wait, by API and by what refused them.
# TYPE holdfast_api_refused_total counter
holdfast_api_refused_total{api="codegen",reason="limit"} 3
holdfast_api_refused_total{api="other",reason="backoff"} 0
holdfast_api_refused_total{api="other",reason="breaker"} 0
holdfast_api_refused_total{api="other",reason="limit"} 6
holdfast_api_refused_total{api="other",reason="pause"} 0
holdfast_api_refused_total{api="other",reason="probe"} 0
`
	all, got := prometheus.NewRegistry(), httptest.NewRecorder()
	all.MustRegister(m.Metrics())
	promhttp.HandlerFor(all, promhttp.HandlerOpts{}).ServeHTTP(got, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	if text := strings.TrimSpace(got.Body.String()); text != strings.TrimSpace(want) {
		t.Errorf("metrics\n%s\nwant\n%s", text, want)
	}
	for v := range coordinationv1.WaitReason_name {
		if v != 0 && reasons[coordinationv1.WaitReason(v)] == "" {
			t.Errorf("%v has no name in the metrics", coordinationv1.WaitReason(v))
		}
	}
}
