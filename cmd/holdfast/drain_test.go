package main

import (
	"net/http"
	"testing"

	"holdfast/db/dbtest"
)

// After SIGTERM a server says at once that it is not ready, and answers for the drain delay.
func TestAServerAnswersWhileBalancersFindOutThatItLeaves(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	p := start(t, map[string]string{"DATABASE_URL": b.DirectURL, "HOLDFAST_ADDR": "127.0.0.1:0"}, "serve", "--drain-delay", "8s")
	api := p.await(t, p.stderr, `"api":"(http://[^"]+)"`)
	get := func(path string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, api+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	if got := get("/readyz"); got != http.StatusOK {
		t.Errorf("before: %d", got)
	}
	p.stop()
	for get("/readyz") != http.StatusServiceUnavailable { // the signal is on its way
	}
	if got := get("/healthz"); got != http.StatusOK {
		t.Errorf("a call meanwhile: %d", got)
	}
	p.end(t)
}
