package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/coordclient"
	"holdfast/db/dbtest"
	"holdfast/handlers/coordination"
	"holdfast/identity"
	"holdfast/object"
)

// Once Linear has refused a tenant's sync for a limit it is left alone for as long as it said, by that tenant only.
func TestTheSyncIsCoordinated(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	rt := object.NewRuntime(d.DB, object.Config{})
	defer rt.Close(t.Context())
	var calls atomic.Int64
	linear := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.Header().Set("X-Ratelimit-Requests-Remaining", "0")
		w.Header().Set("X-Ratelimit-Requests-Reset", fmt.Sprint(time.Now().Add(time.Hour).UnixMilli()))
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"errors":[{"message":"slow down","extensions":{"code":"RATELIMITED"}}]}`)
	}))
	defer linear.Close()
	client := &http.Client{Transport: linearTransport(coordination.NewManager(coordination.Register(rt), d.DB.Now), slog.New(slog.DiscardHandler))}
	defer client.CloseIdleConnections()
	ask := func(tenant identity.Tenant) (int, error) {
		ctx := identity.With(context.Background(), identity.Identity{Tenant: tenant, Service: true})
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, linear.URL, strings.NewReader(`{"query":"{ viewer { id } }"}`))
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		return res.StatusCode, nil
	}
	if status, err := ask(d.Tenant); err != nil || status != http.StatusBadRequest {
		t.Fatalf("answered with %d, %v", status, err)
	}
	_, err := ask(d.Tenant)
	if after, ok := coordclient.RetryAfter(err); !ok || after < 50*time.Minute {
		t.Errorf("asked again: %v", err)
	}
	if calls.Load() != 1 {
		t.Errorf("Linear was called %d times", calls.Load())
	}
	if status, err := ask(dbtest.New(t).Tenant); err != nil || status != http.StatusBadRequest {
		t.Errorf("another tenant is answered with %d, %v", status, err)
	}
}
