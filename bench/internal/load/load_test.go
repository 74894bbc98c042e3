package load

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// fasthttp's, which ends some seconds after its last connection.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*HostClient).connsCleaner"))
}

// TestSessionCalls runs a session's every call over each codec.
func TestSessionCalls(t *testing.T) {
	t.Parallel()
	for _, codec := range []Codec{Proto, JSON} {
		t.Run(string(codec), func(t *testing.T) {
			t.Parallel()
			_, target := setup(t)
			target.Codec = codec
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
			if err := errors.Join(s.Connect(ctx), s.Ingest(ctx, time.Now())); err != nil {
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
			if err := s.Read(ctx, "unknown", 20); err == nil {
				t.Error("a read of too few messages is no error")
			}
			if err := s.Create(ctx); connect.CodeOf(err) != connect.CodeAlreadyExists || !strings.Contains(err.Error(), "it is there") {
				t.Errorf("creating twice: %v, want already_exists and why", err)
			}
		})
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
