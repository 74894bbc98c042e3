package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	holdfast "holdfast.internal/clients/go"
	errorv1 "holdfast.internal/clients/go/gen/holdfast/error/v1"
	sessionv1 "holdfast.internal/clients/go/gen/holdfast/session/v1"
	statev1 "holdfast.internal/clients/go/gen/holdfast/state/v1"
	watchv1 "holdfast.internal/clients/go/gen/holdfast/watch/v1"
	"holdfast.internal/clients/go/holdfasttest"
)

// line is a network to a server, which can be broken.
type line struct {
	*httptest.Server

	// lose is how many answers are still to be lost after the server gave them, and refuse how many requests a proxy answers itself.
	lose, refuse atomic.Int32
	calls        atomic.Int32
}

func network(t *testing.T, to string) *line {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1
	l := &line{}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.calls.Add(1)
		switch {
		case l.lose.Add(-1) >= 0:
			proxy.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		case l.refuse.Add(-1) >= 0:
			http.Error(w, "<html>Bad gateway</html>", http.StatusBadGateway)
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(l.Close)
	return l
}

func appendTo(ref *statev1.Ref, text string) *statev1.ApplyRequest {
	return &statev1.ApplyRequest{Ref: ref, Operations: []*statev1.Operation{{
		Operation: &statev1.Operation_Append{Append: &statev1.Entry{Collection: "items", Value: &statev1.Entry_Text{Text: text}}},
	}}}
}

func TestAChangeHappensOnceThoughAnswersAreLost(t *testing.T) {
	t.Parallel()
	a := holdfasttest.Tenant(t)
	l := network(t, a.URL)
	hf := holdfast.New(l.URL, a.Key).As("ada")
	ref := &statev1.Ref{Type: "log", Name: "l"}
	req := appendTo(ref, "x")
	l.lose.Store(2)
	l.refuse.Store(1)
	if res, err := hf.State.Apply(t.Context(), req); err != nil || res.GetVersion() != 1 || l.calls.Load() != 4 {
		t.Errorf("%v, %v after %d calls", res, err, l.calls.Load())
	}
	// The same message again is another change.
	if res, err := hf.State.Apply(t.Context(), req); err != nil || res.GetVersion() != 2 || req.GetRequestId() != "" {
		t.Errorf("%v, %v", res, err)
	}
}

func TestWhatNoRepetitionHelpsAgainst(t *testing.T) {
	t.Parallel()
	a := holdfasttest.Tenant(t)
	l := network(t, a.URL)
	_, err := holdfast.New(l.URL, a.Key).State.Apply(t.Context(), &statev1.ApplyRequest{Ref: &statev1.Ref{Type: "NO", Name: "x"}})
	if !holdfast.Is(err, errorv1.Reason_REASON_FIELD_INVALID) || holdfast.ProblemOf(err).GetViolations() == nil || l.calls.Load() != 1 {
		t.Errorf("%v after %d calls", err, l.calls.Load())
	}
	_, err = holdfast.New(l.URL, "nonsense").State.Apply(t.Context(), &statev1.ApplyRequest{Ref: &statev1.Ref{Type: "t", Name: "x"}})
	if !holdfast.Is(err, errorv1.Reason_REASON_CREDENTIAL_INVALID) || l.calls.Load() != 2 {
		t.Errorf("%v after %d calls", err, l.calls.Load())
	}
	l.refuse.Store(1000)
	_, err = holdfast.New(l.URL, a.Key, holdfast.WithTimeout(time.Second)).State.Apply(t.Context(), appendTo(&statev1.Ref{Type: "t", Name: "x"}, "x"))
	if connect.CodeOf(err) != connect.CodeUnavailable || holdfast.ProblemOf(err) != nil || l.calls.Load() < 4 {
		t.Errorf("%v after %d calls", err, l.calls.Load())
	}
}

func TestASessionIsRefreshedOnceForAllCalls(t *testing.T) {
	t.Parallel()
	a := holdfasttest.Tenant(t)
	l := network(t, a.URL)
	made, err := a.Client().As("ada").Session.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	old := made.GetTokens()
	// It is of the session, and not good any more.
	stale := &sessionv1.Tokens{AccessToken: "nonsense", RefreshToken: old.GetRefreshToken()}
	var saved []*sessionv1.Tokens
	tokens := holdfast.SessionTokens(l.URL, stale, func(n *sessionv1.Tokens) error {
		saved = append(saved, n)
		return nil
	})
	hf := holdfast.New(l.URL, "", holdfast.WithTokens(tokens))
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if res, err := hf.Session.GetSession(t.Context(), &sessionv1.GetSessionRequest{}); err != nil || res.GetSession().GetSessionId() != made.GetSession().GetSessionId() {
				t.Errorf("%v, %v", res, err)
			}
		})
	}
	wait.Wait()
	// One whose call with the old token was under way meanwhile.
	if late, err := tokens(t.Context(), "nonsense"); err != nil || late != saved[0].GetAccessToken() {
		t.Errorf("%q, %v", late, err)
	}
	if len(saved) != 1 || saved[0].GetAccessToken() == old.GetAccessToken() {
		t.Errorf("saved %d pairs", len(saved))
	}
	if _, err := hf.Session.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{}); err != nil {
		t.Fatal(err)
	}
	gone := holdfast.New(l.URL, "", holdfast.WithTokens(holdfast.SessionTokens(l.URL, saved[0], nil)))
	for {
		_, err := gone.Session.GetSession(t.Context(), &sessionv1.GetSessionRequest{})
		if holdfast.Is(err, errorv1.Reason_REASON_SESSION_REVOKED) {
			return
		}
		if err != nil {
			t.Fatal(err) // until all servers know of it, within two seconds, it answers
		}
	}
}

type counter struct {
	Count int
	Large int64 `json:",omitempty"`
}

func TestConcurrentUpdatesLoseNothing(t *testing.T) {
	t.Parallel()
	hf := holdfasttest.Tenant(t).Client().As("ada")
	const writers, each = 8, 5
	var wait sync.WaitGroup
	for w := range writers {
		wait.Go(func() {
			o := holdfast.NewObject[counter](hf, "counter", "c")
			for i := range each {
				if _, err := o.Update(t.Context(), func(tx *holdfast.Tx[counter]) error {
					tx.State.Count++
					return tx.Append("log", fmt.Sprint(w, "/", i))
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	o := holdfast.NewObject[counter](hf, "counter", "c")
	if s, err := o.Read(t.Context()); err != nil || s.State.Count != writers*each || s.Version != writers*each {
		t.Errorf("%+v, %v", s, err)
	}
	res, err := hf.State.Read(t.Context(), &statev1.ReadRequest{Reads: []*statev1.ReadOne{{
		Ref: &statev1.Ref{Type: "counter", Name: "c"}, Queries: []*statev1.Query{{Collection: "log", Limit: 200}},
	}}})
	if err != nil || len(res.GetObjects()[0].GetPages()[0].GetEntries()) != writers*each {
		t.Errorf("%v, %v", res, err)
	}
}

func TestAnObject(t *testing.T) {
	t.Parallel()
	hf := holdfasttest.Tenant(t).Client()
	o := holdfast.NewObject[counter](hf.As("ada"), "counter", "c")
	if s, err := o.Read(t.Context()); err != nil || s.Version != 0 {
		t.Errorf("before it is made: %+v, %v", s, err)
	}
	const large = 1<<53 + 1
	set := func(tx *holdfast.Tx[counter]) error { tx.State.Large = large; return tx.Put("notes", "a", []int{1}) }
	if s, err := o.Update(t.Context(), set); err != nil || s.Version != 1 || s.State.Large != large {
		t.Errorf("made: %+v, %v", s, err)
	}
	if s, err := o.Read(t.Context()); err != nil || s.State.Large != large {
		t.Errorf("read: %+v, %v", s, err)
	}
	if s, err := o.Update(t.Context(), func(*holdfast.Tx[counter]) error { return nil }); err != nil || s.Version != 1 {
		t.Errorf("changed nothing: %+v, %v", s, err)
	}
	no := errors.New("no")
	if _, err := o.Update(t.Context(), func(tx *holdfast.Tx[counter]) error { tx.State.Count = 9; return no }); !errors.Is(err, no) {
		t.Errorf("refused: %v", err)
	}
	if s, err := holdfast.NewObject[counter](hf.As("eve"), "counter", "c").Read(t.Context()); err != nil || s.Version != 0 {
		t.Errorf("another user reads %+v, %v", s, err)
	}
	if err := o.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if s, err := o.Read(t.Context()); err != nil || s != (holdfast.Snapshot[counter]{}) {
		t.Errorf("after it was deleted: %+v, %v", s, err)
	}
}

// Whatever becomes of its connections, a watch misses nothing and yields nothing twice.
func TestAWatchResumes(t *testing.T) {
	t.Parallel()
	a := holdfasttest.Tenant(t)
	l := network(t, a.URL)
	direct := a.Client().As("ada")
	ref := &statev1.Ref{Type: "log", Name: "l"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Begun again it would have no more than one entry.
	item := &watchv1.Item{ItemId: "it", Of: &watchv1.Item_State{State: &watchv1.StateItem{
		Ref: ref, Collections: []*watchv1.StateCollection{{Collection: "items", Limit: 1}},
	}}}
	seen, made := int64(-1), int64(0)
	for view, err := range holdfast.New(l.URL, a.Key).As("ada").Watch(ctx, item) {
		if err != nil {
			t.Fatal(err)
		}
		if view.Version <= seen || view.Absent != (view.Version == 0) || !view.Absent && len(view.Things) != int(view.Version)+1 {
			t.Fatalf("after version %d: %+v", seen, view)
		}
		if seen = view.Version; seen >= 20 {
			return
		}
		if seen < made {
			continue
		}
		changes := 1
		if seen%4 == 3 {
			l.CloseClientConnections()
			l.refuse.Store(1)
			changes = 3
		}
		for range changes {
			if _, err := direct.State.Apply(ctx, appendTo(ref, "x")); err != nil {
				t.Fatal(err)
			}
			made++
		}
	}
}

func TestAWatchEnds(t *testing.T) {
	t.Parallel()
	a := holdfasttest.Tenant(t)
	item := &watchv1.Item{ItemId: "it", Of: &watchv1.Item_State{State: &watchv1.StateItem{Ref: &statev1.Ref{Type: "log", Name: "l"}}}}
	for view, err := range holdfast.New(a.URL, "nonsense").Watch(t.Context(), item) {
		if view != nil || !holdfast.Is(err, errorv1.Reason_REASON_CREDENTIAL_INVALID) {
			t.Errorf("%v, %v", view, err)
		}
	}
	stop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	seen := 0
	for view, err := range a.Client().Watch(ctx, item) {
		if seen++; seen == 1 && (err != nil || !view.Absent) || seen == 2 && !errors.Is(err, stop) || seen > 2 {
			t.Errorf("%v, %v", view, err)
		}
		cancel(stop)
	}
}
