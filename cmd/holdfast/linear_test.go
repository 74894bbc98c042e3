package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/coordclient"
	"holdfast/db"
	"holdfast/db/dbtest"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	linearv1 "holdfast/gen/holdfast/linear/v1"
	"holdfast/handlers/coordination"
	"holdfast/handlers/linear"
	"holdfast/object"
	"holdfast/seal"
)

// What one caller hears of Linear's limits, the sync obeys, and what the sync hears, all others do.
func TestSyncObeysTheCoordinator(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	rt := object.NewRuntime(b.DB, object.Config{})
	t.Cleanup(func() {
		if err := rt.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	kinds := registerKinds(rt)
	box, err := seal.NewBox(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	var limited atomic.Bool
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		io.Copy(io.Discard, r.Body)
		if !limited.Load() {
			fmt.Fprint(w, `{"data":{"issues":{"nodes":[],"pageInfo":{"hasNextPage":false,"endCursor":null}}}}`)
			return
		}
		w.Header().Set("X-Ratelimit-Requests-Remaining", "0")
		w.Header().Set("X-Ratelimit-Requests-Reset", strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10))
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"errors":[{"message":"slow down","extensions":{"code":"RATELIMITED"}}]}`)
	}))
	t.Cleanup(upstream.Close)

	ctx, manager := b.AsService(t), coordination.NewManager(kinds.apis, b.DB.Now)
	endpoints := linear.NewManager(linear.Options{Kinds: kinds.linear, Runtime: rt, Seal: box})
	made, err := endpoints.PutEndpoint(ctx, &linearv1.PutEndpointRequest{SetApiKey: "lin_api_x"})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	client := &http.Client{Transport: linearTransport(manager, log)}
	t.Cleanup(client.CloseIdleConnections)
	sync := linear.NewSync(linear.SyncConfig{
		Kinds: kinds.linear, Open: box.Open, Client: client, URL: upstream.URL, RetryAfter: coordclient.RetryAfter, Now: time.Now, Log: log,
	})
	run := func(want int64) {
		t.Helper()
		before := asked.Load()
		if err := sync.Once(t.Context(), db.Endpoint{Tenant: b.Tenant, ID: made.GetEndpoint().GetEndpointId()}); err != nil {
			t.Fatal(err)
		}
		if n := asked.Load() - before; n != want {
			t.Errorf("Linear was asked %d times, want %d", n, want)
		}
	}
	acquire := func() *coordinationv1.AcquireResponse {
		t.Helper()
		got, err := manager.Acquire(ctx, &coordinationv1.AcquireRequest{Api: "linear", Operation: "issues"})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	endpoint := db.Endpoint{Tenant: b.Tenant, ID: made.GetEndpoint().GetEndpointId()}
	created, _, err := sync.At(t.Context(), endpoint)
	if err != nil {
		t.Fatal(err)
	}
	run(1)
	if at, syncs, err := sync.At(t.Context(), endpoint); err != nil || !syncs || !at.After(created) {
		t.Errorf("made at %v, synced at %v, %t, %v", created, at, syncs, err)
	}
	if !acquire().GetAllowed() {
		t.Error("others may not call Linear")
	}
	limited.Store(true)
	run(1)
	got := acquire()
	if got.GetAllowed() || got.GetRetryAfter().AsDuration() < 30*time.Minute {
		t.Errorf("the others do not hear of it: %v", got)
	}
	limited.Store(false)
	run(0) // it is not asked again

	// Another's trouble is the sync's: a fresh tenant, whose other caller was refused.
	other := dbtest.New(t)
	ctx = other.AsService(t)
	if made, err = endpoints.PutEndpoint(ctx, &linearv1.PutEndpointRequest{SetApiKey: "lin_api_x"}); err != nil {
		t.Fatal(err)
	}
	_, err = manager.Report(ctx, &coordinationv1.ReportRequest{Api: "linear", Report: &coordinationv1.ReportRequest_Response{
		Response: &coordinationv1.ProviderResponse{HttpStatus: http.StatusTooManyRequests, Headers: map[string]string{"Retry-After": "600"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	b = other
	run(0)
	state, err := endpoints.ListEndpoints(ctx, &linearv1.ListEndpointsRequest{})
	if wait := time.Until(state.GetEndpoints()[0].GetSync().GetNotBefore().AsTime()); err != nil || wait < 5*time.Minute || wait > 11*time.Minute {
		t.Errorf("it waits %v, %v", wait, err)
	}
}
