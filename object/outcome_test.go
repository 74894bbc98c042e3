package object_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"holdfast/db"
	"holdfast/db/dbtest"
	"holdfast/object"
)

// toyRequest is a request that appends to a toy's name.
type toyRequest struct {
	*structpb.Value

	id string
}

func (r *toyRequest) GetRequestId() string { return r.id } //nolint:revive // protobuf names it

// appendTo appends text to a toy's name. Every run of the closure replies something else.
func appendTo(
	ctx context.Context, k *object.Kind[toy], id object.ID, requestID, text string, opts ...object.UpdateOption,
) (string, error) {
	r := &toyRequest{structpb.NewStringValue(text), requestID}
	reply, err := object.Do(ctx, k, id, r, func(tx *object.Tx[toy]) (*wrapperspb.StringValue, error) {
		tx.State().Name += text
		return wrapperspb.String(uuid.NewString()), nil
	}, append(opts, object.Upsert())...)
	return reply.GetValue(), err
}

// A connection that is lost around a commit: what was asked for happens exactly once, and who cannot be told so is
// told that.
func TestLostConnection(t *testing.T) {
	t.Parallel()
	for _, what := range []loss{theRequest, theAnswer, theEndOfAnswer} {
		for _, warm := range []bool{true, false} { // in one round trip, or in two
			for _, there := range []bool{true, false} { // an update, or a creation
				for _, requestID := range []string{"", "r1"} {
					t.Run(fmt.Sprintf("%s/warm=%t/there=%t/request=%s", what, warm, there, requestID), func(t *testing.T) {
						t.Parallel()
						testLostConnection(t, what, warm, there, requestID)
					})
				}
			}
		}
	}
}

func testLostConnection(t *testing.T, what loss, warm, there bool, requestID string) {
	b := setup(t)
	p, d := newProxy(t, b.URL)
	toys := toyKind(newRuntime(t, d, object.Config{}))
	before := ""
	if there {
		through := b.toys
		if warm {
			through = toys
		}
		before = "before "
		if _, err := appendTo(b.ctx, through, "a", "", before); err != nil {
			t.Fatal(err)
		}
	}
	var opts []object.UpdateOption
	if warm && !there {
		opts = append(opts, object.Create()) // what may be there is looked for first
	}
	marker := uuid.NewString()
	p.lose(what, marker)
	reply, err := appendTo(b.ctx, toys, "a", requestID, marker, opts...)
	select {
	case <-p.lost:
	default:
		t.Fatal("nothing was lost")
	}
	if requestID == "" && what != theRequest {
		if !errors.Is(err, db.ErrOutcomeUnknown) {
			t.Errorf("committed, and the caller cannot be told: %v", err)
		}
	} else if err != nil {
		t.Errorf("%v", err)
	}
	version := object.Version(1)
	if there {
		version = 2
	}
	for name, k := range map[string]*object.Kind[toy]{"this process": toys, "another": b.toys} {
		s, err := k.View(b.ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		if s.Version != version || s.State.GetName() != before+marker {
			t.Errorf("%s sees version %d with %q, want %d with %q", name, s.Version, s.State.GetName(), version, before+marker)
		}
	}
	if requestID == "" {
		return
	}
	again, err := appendTo(b.ctx, toys, "a", requestID, marker, opts...)
	if err != nil || again != reply {
		t.Errorf("the first reply was %q, a retry got %q, %v", reply, again, err)
	}
	if s, err := b.toys.View(b.ctx, "a"); err != nil || s.Version != version {
		t.Errorf("a retry made version %d, %v", s.Version, err)
	}
}

// Many changes of several objects in the one commit whose answer is lost.
func TestLostConnectionOfABatch(t *testing.T) {
	t.Parallel()
	for _, what := range []loss{theRequest, theAnswer, theEndOfAnswer} {
		t.Run(string(what), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			p, d := newProxy(t, b.URL)
			toys := toyKind(newRuntime(t, d, object.Config{}))
			gate, ran := make(chan struct{}), make(chan struct{}, 100)
			stalled := make(chan error, 2)
			for i := range 2 {
				go func() {
					_, err := toys.Update(b.ctx, object.ID(fmt.Sprint("stall", i)), func(*object.Tx[toy]) error {
						ran <- struct{}{}
						<-gate
						return nil
					}, object.Create())
					stalled <- err
				}()
				<-ran
			}
			marker := uuid.NewString()
			type result struct {
				object, change int
				err            error
			}
			const objects, changes = 5, 4 // half of the changes with a request id
			results := make(chan result, objects*changes)
			for o := range objects {
				for c := range changes {
					ctx, queued := signalled(b.ctx)
					go func() {
						requestID := ""
						if c%2 == 0 {
							requestID = fmt.Sprint("r", c)
						}
						_, err := appendTo(ctx, toys, object.ID(fmt.Sprint("o", o)), requestID, fmt.Sprint("[", c, marker, "]"))
						results <- result{o, c, err}
					}()
					<-queued
				}
			}
			p.lose(what, marker)
			close(gate)
			for range 2 {
				if err := <-stalled; err != nil {
					t.Fatal(err)
				}
			}
			for range objects * changes {
				r := <-results
				switch {
				case r.err == nil:
				case what == theRequest || r.change%2 == 0 || !errors.Is(r.err, db.ErrOutcomeUnknown):
					t.Errorf("object %d, change %d: %v", r.object, r.change, r.err)
				}
			}
			<-p.lost
			for o := range objects {
				s, err := b.toys.View(b.ctx, object.ID(fmt.Sprint("o", o)))
				if err != nil {
					t.Fatal(err)
				}
				want := ""
				for c := range changes {
					want += fmt.Sprint("[", c, marker, "]")
				}
				if s.Version != changes || s.State.GetName() != want {
					t.Errorf("object %d is at version %d with %q, want %q", o, s.Version, s.State.GetName(), want)
				}
			}
		})
	}
}

// Where the database stays away there is nothing to look the outcome up in. The request id tells, later.
func TestLostForGood(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p, d := newProxy(t, b.URL)
	toys := toyKind(newRuntime(t, d, object.Config{}))
	marker := uuid.NewString()
	p.lose(theAnswerForGood, marker)
	_, err := appendTo(b.ctx, toys, "a", "r1", marker)
	if !errors.Is(err, db.ErrOutcomeUnknown) {
		t.Fatalf("got %v, want an unknown outcome", err)
	}
	if _, err := toys.View(b.ctx, "a"); !errors.Is(err, db.ErrUnavailable) {
		t.Errorf("a view got %v", err)
	}
	if _, err := appendTo(b.ctx, toys, "b", "r2", "x"); !errors.Is(err, db.ErrUnavailable) || errors.Is(err, db.ErrOutcomeUnknown) {
		t.Errorf("a change that was never sent got %v", err)
	}
	p.heal()
	first, err := appendTo(b.ctx, toys, "a", "r1", marker)
	if err != nil {
		t.Fatal(err)
	}
	second, err := appendTo(b.ctx, b.toys, "a", "r1", marker)
	if err != nil || first != second {
		t.Errorf("replies %q and %q, %v", first, second, err)
	}
	if s, err := toys.View(b.ctx, "a"); err != nil || s.Version != 1 || s.State.GetName() != marker {
		t.Errorf("version %d with %q, %v", s.Version, s.State.GetName(), err)
	}
}

// A commit that takes longer than its limit.
func TestCommitTimeout(t *testing.T) {
	t.Parallel()
	b := setupWith(t, dbtest.New(t), object.Config{CommitTimeout: 50 * time.Millisecond})
	// On a machine that is busy with all the other tests the time may be over before anything is sent. It is done again
	// until it ends as it should: with the wanted error, or with none.
	insist := func(id object.ID, requestID, text string, want error) {
		t.Helper()
		for {
			_, err := appendTo(b.ctx, b.toys, id, requestID, text)
			if errors.Is(err, want) {
				return
			}
			tooLate := errors.Is(err, db.ErrOutcomeUnknown) || errors.Is(err, db.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
			if !tooLate || b.ctx.Err() != nil {
				t.Fatalf("%s to %s: %v", requestID, id, err)
			}
		}
	}
	insist("a", "r0", "x", nil)
	conn := b.owner(t)
	for _, sql := range []string{"BEGIN", "SELECT FROM holdfast.objects WHERE tenant_id = '" + string(b.Tenant) + "' AND object_id = 'a' FOR UPDATE"} {
		if _, err := conn.Exec(b.ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	insist("a", "r1", "y", db.ErrOutcomeUnknown)
	insist("beside", "r0", "x", nil)
	if _, err := conn.Exec(b.ctx, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	insist("a", "r1", "y", nil)
	if s, err := toyKind(newRuntime(t, b.DB, object.Config{})).View(b.ctx, "a"); err != nil || s.Version != 2 || s.State.GetName() != "xy" {
		t.Errorf("version %d with %q, %v", s.Version, s.State.GetName(), err)
	}
}

// signalled returns a context, and a channel that is closed when somebody first waits for its end: the runtime does so
// once a call is in its queue.
func signalled(ctx context.Context) (context.Context, <-chan struct{}) {
	c := &signalContext{Context: ctx, asked: make(chan struct{}, 1)}
	return c, c.asked
}

type signalContext struct {
	context.Context
	asked chan struct{}
}

func (c *signalContext) Done() <-chan struct{} {
	select {
	case c.asked <- struct{}{}:
	default:
	}
	return c.Context.Done()
}
