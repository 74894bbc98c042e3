package objecttest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"holdfast/object"
)

func requestTests[S proto.Message]() tests[S] {
	return tests[S]{
		"Replay":                 (*suite[S]).testReplay,
		"ReplayOfCreation":       (*suite[S]).testReplayOfCreation,
		"ReplayOfDeletion":       (*suite[S]).testReplayOfDeletion,
		"ReplayInOneBatch":       (*suite[S]).testReplayInOneBatch,
		"ReplayBesideOthers":     (*suite[S]).testReplayBesideOthers,
		"ReplayInAnotherProcess": (*suite[S]).testReplayInAnotherProcess,
		"Reused":                 (*suite[S]).testReused,
		"FailureIsNotRemembered": (*suite[S]).testFailureIsNotRemembered,
		"ReplyIsEmpty":           (*suite[S]).testReplyIsEmpty,
	}
}

// request is an RPC's request: a body and an idempotency key.
type request struct {
	*structpb.Value

	id string
}

func newRequest(body string) *request {
	return &request{Value: structpb.NewStringValue(body), id: uuid.NewString()}
}

func (r *request) GetRequestId() string { return r.id } //nolint:revive // protobuf names it

type reply = *wrapperspb.StringValue

// do appends the request's body to the object's text. Every run of the closure would reply something else.
func (s *suite[S]) do(ctx context.Context, k *object.Kind[S], id object.ID, r *request, opts ...object.UpdateOption) (reply, error) {
	return object.Do(ctx, k, id, r, func(tx *object.Tx[S]) (reply, error) {
		s.Set(tx.State(), s.Text(tx.State())+r.GetStringValue())
		return wrapperspb.String(r.GetStringValue() + " " + uuid.NewString()), nil
	}, opts...)
}

// mustDo is do, and fails the test unless it gives the reply where one is wanted.
func (s *suite[S]) mustDo(t *testing.T, id object.ID, r *request, want reply, opts ...object.UpdateOption) reply {
	t.Helper()
	got, err := s.do(s.ctx, s.kind, id, r, opts...)
	if err != nil {
		t.Fatalf("request %s: %v", r.GetStringValue(), err)
	}
	wantReply(t, got, want)
	return got
}

func wantReply(t *testing.T, got, want reply) {
	t.Helper()
	if want != nil && !bytes.Equal(bytesOf(t, got), bytesOf(t, want)) {
		t.Fatalf("a replay was answered %q, the first time %q", got.GetValue(), want.GetValue())
	}
}

func bytesOf(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *suite[S]) testReplay(t *testing.T) {
	s.create(t, "a", "")
	r := newRequest("x")
	first := s.mustDo(t, "a", r, nil)
	s.want(t, s.ctx, "a", 2, "x")
	s.mustDo(t, "a", r, first)
	s.restart(t, object.Config{})
	s.mustDo(t, "a", r, first) // with nothing in memory
	s.mustDo(t, "a", r, first) // with what the last one left there
	s.want(t, s.ctx, "a", 2, "x")
	s.mustDo(t, "a", newRequest("y"), nil)
	s.mustDo(t, "a", r, first)
	s.want(t, s.ctx, "a", 3, "xy")

	// The precondition held the first time.
	conditional, at3 := newRequest("z"), object.IfVersion(3)
	second := s.mustDo(t, "a", conditional, nil, at3)
	s.mustDo(t, "a", conditional, second, at3)
	s.restart(t, object.Config{})
	s.mustDo(t, "a", conditional, second, at3)
	s.want(t, s.ctx, "a", 4, "xyz")

	// The same id on another object is another request.
	s.create(t, "b", "")
	s.mustDo(t, "b", r, nil)
	s.want(t, s.ctx, "b", 2, "x")
	s.journal(t, "a")
}

func (s *suite[S]) testReplayOfCreation(t *testing.T) {
	r := newRequest("x")
	first := s.mustDo(t, "a", r, nil, object.Create())
	s.mustDo(t, "a", r, first, object.Create())
	s.set(t, "a", "changed")
	s.mustDo(t, "a", r, first, object.Create())
	s.restart(t, object.Config{})
	s.mustDo(t, "a", r, first, object.Create())
	s.want(t, s.ctx, "a", 2, "changed")
	_, err := s.do(s.ctx, s.kind, "a", newRequest("x"), object.Create())
	wantError(t, err, object.ErrExists)
}

func (s *suite[S]) testReplayOfDeletion(t *testing.T) {
	s.create(t, "a", "")
	update, deletion := newRequest("x"), newRequest("gone")
	updated := s.mustDo(t, "a", update, nil)
	del := func(r *request) (reply, error) {
		return object.Do(s.ctx, s.kind, "a", r, func(tx *object.Tx[S]) (reply, error) {
			tx.DeleteObject()
			return wrapperspb.String(uuid.NewString()), nil
		})
	}
	deleted, err := del(deletion)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.mustDo(t, "a", update, updated)
		again, err := del(deletion)
		if err != nil {
			t.Fatal(err)
		}
		wantReply(t, again, deleted)
		_, err = del(newRequest("another"))
		wantError(t, err, object.ErrNotFound)
		s.restart(t, object.Config{})
	}
	s.create(t, "a", "second life")
	s.mustDo(t, "a", update, nil)
	s.want(t, s.ctx, "a", 5, "second lifex")
	s.journal(t, "a")
}

func (s *suite[S]) testReplayInOneBatch(t *testing.T) {
	s.create(t, "a", "")
	release := s.stall(t)
	r, other := newRequest("x"), newRequest("y")
	other.id = r.id
	type answer struct {
		reply
		err error
	}
	send := func(r *request) <-chan answer {
		ctx, queued := signalled(s.ctx)
		done := make(chan answer, 1)
		go func() {
			got, err := s.do(ctx, s.kind, "a", r)
			done <- answer{got, err}
			queued.signal()
		}()
		receive(t, queued.c, "a request to be queued")
		return done
	}
	first, second, reused := send(r), send(r), send(other)
	release()
	one, two := receive(t, first, "the first try"), receive(t, second, "the second try")
	if one.err != nil || two.err != nil {
		t.Fatal(one.err, two.err)
	}
	wantReply(t, two.reply, one.reply)
	wantError(t, receive(t, reused, "the reused id").err, object.ErrRequestReused)
	s.want(t, s.ctx, "a", 2, "x")
	s.mustDo(t, "a", r, one.reply)
	s.journal(t, "a")
}

// A replay whose closure or precondition would fail by now, in a batch with changes that succeed.
func (s *suite[S]) testReplayBesideOthers(t *testing.T) {
	creation, conditional, once := newRequest("c"), newRequest("x"), newRequest("o")
	doOnce := func(ctx context.Context) (reply, error) {
		return object.Do(ctx, s.kind, "a", once, func(tx *object.Tx[S]) (reply, error) {
			if tx.Version() > 2 {
				return nil, errors.New("the rule says no")
			}
			return wrapperspb.String(uuid.NewString()), nil
		})
	}
	unchanged := newRequest("u")
	doUnchanged := func(ctx context.Context) (reply, error) {
		return object.Do(ctx, s.kind, "a", unchanged, func(tx *object.Tx[S]) (reply, error) {
			if tx.Version() > 3 {
				tx.Unchanged()
			}
			return wrapperspb.String(uuid.NewString()), nil
		})
	}
	calls := []func(context.Context) (reply, error){
		func(ctx context.Context) (reply, error) { return s.do(ctx, s.kind, "a", creation, object.Create()) },
		func(ctx context.Context) (reply, error) {
			return s.do(ctx, s.kind, "a", conditional, object.IfVersion(1))
		},
		doOnce,
		doUnchanged,
	}
	var firsts []reply
	for _, call := range calls {
		got, err := call(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		firsts = append(firsts, got)
	}
	type answer struct {
		i int
		reply
		err error
	}
	release := s.stall(t)
	answers := make(chan answer, len(calls))
	for i, call := range calls {
		ctx, queued := signalled(s.ctx)
		go func() {
			got, err := call(ctx)
			answers <- answer{i, got, err}
			queued.signal()
		}()
		receive(t, queued.c, "a replay to be queued")
	}
	beside := s.start(s.ctx, "a", func(tx *object.Tx[S]) error {
		s.Set(tx.State(), s.Text(tx.State())+"!")
		return nil
	})
	release()
	if o := receive(t, beside, "the change beside"); o.err != nil {
		t.Fatal(o.err)
	}
	for range calls {
		a := receive(t, answers, "a replay")
		if a.err != nil {
			t.Errorf("replay %d beside another change: %v", a.i, a.err)
			continue
		}
		wantReply(t, a.reply, firsts[a.i])
	}
	s.want(t, s.ctx, "a", 5, "cx!")
	s.journal(t, "a")
}

func (s *suite[S]) testReplayInAnotherProcess(t *testing.T) {
	s.create(t, "a", "")
	_, other := s.another(t, object.Config{})
	if _, err := other.View(s.ctx, "a"); err != nil { // what it has in memory is soon stale
		t.Fatal(err)
	}
	r := newRequest("x")
	first := s.mustDo(t, "a", r, nil)
	for range 2 {
		again, err := s.do(s.ctx, other, "a", r)
		if err != nil {
			t.Fatal(err)
		}
		wantReply(t, again, first)
	}
	s.want(t, s.ctx, "a", 2, "x")

	// Both at once.
	for i := range 10 {
		r := newRequest("y")
		type answer struct {
			reply
			err error
		}
		answers := make(chan answer, 2)
		for _, k := range []*object.Kind[S]{s.kind, other} {
			go func() {
				got, err := s.do(s.ctx, k, "a", r)
				answers <- answer{got, err}
			}()
		}
		one, two := receive(t, answers, "one process"), receive(t, answers, "the other process")
		if one.err != nil || two.err != nil {
			t.Fatal(one.err, two.err)
		}
		wantReply(t, two.reply, one.reply)
		if snap, err := s.kind.View(s.ctx, "a"); err != nil || snap.Version != object.Version(3+i) {
			t.Fatalf("version %d after %d requests, %v", snap.Version, i+2, err)
		}
	}
	s.journal(t, "a")
}

func (s *suite[S]) testReused(t *testing.T) {
	s.create(t, "a", "")
	r, other := newRequest("x"), newRequest("y")
	other.id = r.id
	s.mustDo(t, "a", r, nil)
	for range 2 {
		_, err := s.do(s.ctx, s.kind, "a", other)
		wantError(t, err, object.ErrRequestReused)
		s.restart(t, object.Config{})
	}
	s.want(t, s.ctx, "a", 2, "x")

	// The type is part of the request: two RPCs may have bodies of the same bytes.
	_, err := s.kind.Update(s.ctx, "a", s.setting("y"), object.Request(r.id, &wrapperspb.StringValue{}))
	wantError(t, err, object.ErrRequestReused)
	s.journal(t, "a")
}

func (s *suite[S]) testFailureIsNotRemembered(t *testing.T) {
	s.create(t, "a", "")
	r, refusal := newRequest("x"), errors.New("the rule says no")
	for range 2 {
		_, err := object.Do(s.ctx, s.kind, "a", r, func(*object.Tx[S]) (reply, error) { return nil, refusal })
		wantError(t, err, refusal)
		s.restart(t, object.Config{})
	}
	first := s.mustDo(t, "a", r, nil)
	s.mustDo(t, "a", r, first)
	s.want(t, s.ctx, "a", 2, "x")
}

func (s *suite[S]) testReplyIsEmpty(t *testing.T) {
	s.create(t, "a", "")
	r := newRequest("x")
	for i := range 3 {
		got, err := object.Do(s.ctx, s.kind, "a", r, func(tx *object.Tx[S]) (reply, error) {
			s.Set(tx.State(), s.Text(tx.State())+"x")
			return &wrapperspb.StringValue{}, nil
		})
		if err != nil || got == nil || got.GetValue() != "" {
			t.Fatalf("try %d: %v, %v", i, got, err)
		}
		s.restart(t, object.Config{})
	}
	s.want(t, s.ctx, "a", 2, "x")
}
