package load

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// TestSessionCalls runs a session's every call over each codec and HTTP version.
func TestSessionCalls(t *testing.T) {
	t.Parallel()
	for _, codec := range []Codec{Proto, JSON} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %v", codec, http2), func(t *testing.T) {
				t.Parallel()
				_, target := setup(t)
				target.Codec, target.HTTP2 = codec, http2
				s := newSessions(t, target, 1, 1)[0]
				ctx := t.Context()
				if err := s.Append(ctx, time.Now()); err != nil {
					t.Fatal(err)
				}
				// More than one page, and responses of more than one chunk.
				for range 3 {
					if err := s.Fill(ctx, 100); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Ingest(ctx, time.Now()); err != nil {
					t.Fatal(err)
				}
				if err := s.Read(ctx, s.Conversation, 200); err != nil {
					t.Fatal(err)
				}
				listed, err := s.List(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if len(listed) != 303 || s.Ledger.Last() != 303 || s.Ledger.Acknowledged() != 303 {
					t.Errorf("%d listed, %d the last, %d acknowledged, want 303 each", len(listed), s.Ledger.Last(), s.Ledger.Acknowledged())
				}
				if err := Verify(listed, []*Ledger{s.Ledger}); err != nil {
					t.Error(err)
				}
				if err := s.Page(ctx, 100, 150); err != nil {
					t.Error(err)
				}
				if err := s.Page(ctx, 200, 150); err == nil {
					t.Error("a page that is too short is no error")
				}
				got, err := s.Get(ctx, 1)
				if err != nil || len(got.GetMessages()) != 1 {
					t.Errorf("%v, %v", got, err)
				}
				if err := s.Read(ctx, "unknown", 20); err == nil {
					t.Error("a read of too few messages is no error")
				}
				if err := s.Create(ctx); connect.CodeOf(err) != connect.CodeAlreadyExists || !strings.Contains(err.Error(), "it is there") {
					t.Errorf("creating twice: %v, want already_exists and why", err)
				}
			})
		}
	}
}

// TestSharedSession: a session that was stored past the API goes on from there, over another's connection and over its own.
func TestSharedSession(t *testing.T) {
	t.Parallel()
	server, target := setup(t)
	all := newSessions(t, target, 2, 2)
	for n := range 2 {
		server.add(all[1].Conversation, Stamp{Writer: 1, Number: n}.Text())
	}
	all[1].Loaded(2)
	all[1].Share(all[0])
	for range 2 {
		if err := all[1].Append(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		all[0].Close()
		all[1].Part()
	}
	listed, err := all[1].List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(listed, []*Ledger{all[1].Ledger}); err != nil || len(listed) != 4 {
		t.Errorf("%d listed: %v", len(listed), err)
	}
}

// TestConnReconnects: a call after a failed one has a connection of its own.
func TestConnReconnects(t *testing.T) {
	t.Parallel()
	_, target := setup(t)
	conn := newConn(target.URL, Proto, "token")
	defer conn.Close()
	call := func(ctx context.Context) error {
		_, err := conn.Call(ctx, conversationv1connect.ConversationServiceListMessagesProcedure, &conversationv1.ListMessagesRequest{})
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := call(ctx); err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() { close(closed) })
	cancel()
	<-closed
	// The connection's own AfterFunc may still be on its way.
	for range 1000 {
		if call(ctx) != nil {
			break
		}
	}
	if err := call(t.Context()); err != nil {
		t.Errorf("after the context of the first connection is over: %v", err)
	}
}

func TestClosedLoop(t *testing.T) {
	t.Parallel()
	_, target := setup(t)
	sessions := newSessions(t, target, 8, 2)
	observed := ""
	w := Workload{Workers: len(sessions), Duration: time.Minute, MaxRequests: 500, Observe: func(context.Context) func() {
		observed += "begin"
		return func() { observed += " end" }
	}}
	m := Closed(t.Context(), w, func(ctx context.Context, i int, due time.Time) error { return sessions[i].Append(ctx, due) })
	if m.Count() != 500 || m.PerSecond() < 500/60 || observed != "begin end" {
		t.Errorf("%d requests, %g per second, observed %q", m.Count(), m.PerSecond(), observed)
	}
	for object := range 2 {
		listed, err := sessions[object].List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var ledgers []*Ledger
		for i := object; i < len(sessions); i += 2 {
			ledgers = append(ledgers, sessions[i].Ledger)
		}
		if err := Verify(listed, ledgers); err != nil {
			t.Error(err)
		}
	}
}

func TestClosedLoopCountsErrors(t *testing.T) {
	t.Parallel()
	fake, target := setup(t)
	fake.refuse = connect.NewError(connect.CodeResourceExhausted, errors.New("full"))
	s := newSessions(t, target, 1, 1)[0]
	m := Closed(t.Context(), Workload{Workers: 1, Duration: time.Minute, MaxRequests: 3},
		func(ctx context.Context, _ int, due time.Time) error { return s.Append(ctx, due) })
	byCode, example := m.Errors()
	if m.Count() != 0 || byCode["resource_exhausted"] != 3 || connect.CodeOf(example) != connect.CodeResourceExhausted || s.Ledger.Acknowledged() != 0 {
		t.Errorf("%d requests, errors %v, such as %v", m.Count(), byCode, example)
	}
}

func TestLostMessageIsFound(t *testing.T) {
	t.Parallel()
	fake, target := setup(t)
	fake.lose = 7
	s := newSessions(t, target, 1, 1)[0]
	if err := s.Fill(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	listed, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(listed, []*Ledger{s.Ledger}); err == nil {
		t.Error("a message was acknowledged and not kept, and nobody noticed")
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	_, target := setup(t)
	sessions := newSessions(t, target, 8, 8)
	began := sessions[0].began
	w, err := Watch(t.Context(), target, "token", sessions, 2, began)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for round := range 5 {
		if round == 2 {
			w.MeasureFrom(time.Now())
		}
		for _, s := range sessions {
			if err := s.Append(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Drain(t.Context(), sessions, time.Minute); err != nil {
		t.Fatal(err)
	}
	if n := w.Delivered(time.Second).Count(); n != 24 {
		t.Errorf("%d deliveries measured, want the last 24 of 40", n)
	}
}

// Watchers whose streams end go on elsewhere, and see every message once.
func TestWatchAll(t *testing.T) {
	t.Parallel()
	fake, target := setup(t)
	fake.cut = true
	another := &Target{URL: target.URL, Codec: Proto}
	t.Cleanup(another.Close)
	sessions := newSessions(t, target, 4, 4)
	w, err := WatchAll(t.Context(), []*Target{target, another}, "token", sessions, sessions[0].began)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 5 {
		for _, s := range sessions {
			if err := s.Append(t.Context(), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Drain(t.Context(), sessions, time.Minute); err != nil {
		t.Fatal(err)
	}
	if w.Again() == 0 {
		t.Error("no stream was opened anew")
	}
}

// TestWatchNoticesGap: a watcher that was not told of a message says so.
func TestWatchNoticesGap(t *testing.T) {
	t.Parallel()
	fake, target := setup(t)
	fake.hide = 2
	sessions := newSessions(t, target, 1, 1)
	w, err := Watch(t.Context(), target, "token", sessions, 1, sessions[0].began)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := sessions[0].Fill(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if err := w.Drain(t.Context(), sessions, time.Minute); err == nil || !strings.Contains(err.Error(), "seq 3 follows seq 1") {
		t.Errorf("got %v, want a gap", err)
	}
}
