//go:build unix

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/coordclient"
	"holdfast/db/dbtest"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/handlers"
)

// Thirty creations at once through three server processes, where ten may go in a period: each reaches the provider once,
// and by the database's clock no period has more than ten.
func TestThirtyCreationsOverThreeProcesses(t *testing.T) {
	t.Parallel()
	const (
		creations, limit = 30, 10
		period           = 1500 * time.Millisecond // a minute, scaled
	)
	b := dbtest.New(t)
	token, key := handlers.NewKey(b.Tenant, "", "")
	if err := b.Operator.CreateKey(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	connections := func() *http.Transport {
		transport := &http.Transport{}
		t.Cleanup(transport.CloseIdleConnections)
		return transport
	}
	var servers []*child
	for range 3 {
		servers = append(servers, spawn(t, map[string]string{"DATABASE_URL": b.URL, "HOLDFAST_ADDR": "127.0.0.1:0", "HOLDFAST_MAX_CONNS": "4"}, "serve"))
	}
	var coordinators []*coordclient.Client
	for _, p := range servers {
		api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
		coordinators = append(coordinators, coordclient.New(api, token, coordclient.WithHTTPClient(&http.Client{Transport: connections()})))
	}
	_, err := coordinators[0].Service.UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{
		Api: "runs", Config: &coordinationv1.ApiConfig{Policies: []*coordinationv1.Policy{
			{Name: "create", Algorithm: coordinationv1.Algorithm_ALGORITHM_SLIDING, Limit: limit, Period: durationpb.New(period)},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int64
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, calls.Add(1)) }))
	t.Cleanup(provider.Close)
	var wait sync.WaitGroup
	for i := range creations {
		client := &http.Client{Transport: coordinators[i%3].Transport("runs", coordclient.Options{Base: connections(), MaxWait: time.Minute})}
		wait.Go(func() {
			ctx := coordclient.WithKey(t.Context(), fmt.Sprint("run-", i))
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, provider.URL, strings.NewReader("{}"))
			if err != nil {
				t.Error(err)
				return
			}
			res, err := client.Do(req)
			if err != nil {
				t.Errorf("creation %d: %v", i, err)
				return
			}
			res.Body.Close()
		})
	}
	wait.Wait()
	page, err := coordinators[1].Service.ListCalls(t.Context(), &coordinationv1.ListCallsRequest{Api: "runs", PageSize: 200})
	if err != nil {
		t.Fatal(err)
	}
	var granted []time.Time
	for _, r := range page.GetCalls() {
		if r.GetAttempt() != 1 || r.GetStatus() != coordinationv1.CallStatus_CALL_STATUS_COMPLETED {
			t.Errorf("the ledger has %v", r)
		}
		granted = append(granted, r.GetBeginTime().AsTime())
	}
	if calls.Load() != creations || len(granted) != creations {
		t.Fatalf("%d calls reached the provider, the ledger has %d", calls.Load(), len(granted))
	}
	slices.SortFunc(granted, time.Time.Compare)
	for i := limit; i < len(granted); i++ {
		if within := granted[i].Sub(granted[i-limit]); within < period {
			t.Errorf("%d were granted within %v", limit+1, within)
		}
	}
	for _, p := range servers {
		p.end(t)
	}
}
