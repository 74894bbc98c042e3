package jobs_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"holdfast/db/dbtest"
	"holdfast/jobs"
)

const soon = 2 * time.Minute

type testBundle struct {
	*dbtest.Bundle

	ran chan jobs.Task
}

// setup is a database of its own: of all its queues one is elected.
func setup(t *testing.T) *testBundle {
	t.Helper()
	return &testBundle{dbtest.Own(t), make(chan jobs.Task, 100)}
}

// queue starts a queue, which ends with the test.
func (b *testBundle) queue(t *testing.T, all ...jobs.Job) *jobs.Queue {
	t.Helper()
	q := jobs.New(b.DB, jobs.Config{Poll: 100 * time.Millisecond})
	for _, j := range all {
		q.Add(j)
	}
	if err := q.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		if err := q.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return q
}

func (b *testBundle) note(_ context.Context, t jobs.Task) error {
	b.ran <- t
	return nil
}

func (b *testBundle) next(t *testing.T) jobs.Task {
	t.Helper()
	select {
	case task := <-b.ran:
		return task
	case <-time.After(soon):
		t.Fatal("nothing ran")
		return jobs.Task{}
	}
}

func TestEnqueue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	q := b.queue(t, jobs.Job{Name: "note", Run: b.note})
	want := jobs.Task{Tenant: b.Tenant, User: `sam "the" man`, ID: "p1"}
	if err := q.Enqueue(t.Context(), "note", want, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.next(t), cmpopts.IgnoreUnexported(jobs.Task{})); diff != "" {
		t.Error(diff)
	}
	if err := q.Enqueue(t.Context(), "nothing", jobs.Task{}, time.Now()); err == nil {
		t.Error("a job that nobody knows was enqueued")
	}
}

// While a task waits or runs there is no second like it; afterwards there may be.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	goOn := make(chan struct{})
	q := b.queue(t, jobs.Job{Name: "slow", Run: func(_ context.Context, task jobs.Task) error {
		b.ran <- task
		<-goOn
		return nil
	}})
	enqueue := func(id string) {
		t.Helper()
		if err := q.Enqueue(t.Context(), "slow", jobs.Task{ID: id}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	enqueue("a")
	b.next(t)
	enqueue("a")
	enqueue("a")
	enqueue("b")
	if got := b.next(t).ID; got != "b" {
		t.Errorf("%q ran", got)
	}
	if n := b.count(t); n != 2 {
		t.Errorf("%d tasks are stored", n)
	}
	close(goOn)
}

func (b *testBundle) count(t *testing.T) (n int) {
	t.Helper()
	owner, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(context.Background())
	if err := owner.QueryRow(t.Context(), "SELECT count(*) FROM holdfast_jobs.river_job").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Two servers share the periodic work: a period's job runs on one of them, and not again when another is elected.
func TestPeriodic(t *testing.T) {
	t.Parallel()
	b := setup(t)
	daily := jobs.Job{Name: "daily", Every: 100 * 365 * 24 * time.Hour, Run: b.note}
	first, second := b.queue(t, daily), b.queue(t, daily)
	b.next(t)
	// Both, because either may lead, and only the next one knows another job.
	for _, q := range []*jobs.Queue{first, second} {
		if err := q.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	const often = "often"
	b.queue(t, daily, jobs.Job{Name: often, Every: time.Second, Run: func(ctx context.Context, _ jobs.Task) error {
		return b.note(ctx, jobs.Task{ID: often})
	}})
	for range 3 {
		if got := b.next(t).ID; got != often {
			t.Errorf("%q ran", got)
		}
	}
}

func TestRetry(t *testing.T) {
	t.Parallel()
	b := setup(t)
	failed := false
	q := b.queue(t, jobs.Job{Name: "shaky", Run: func(_ context.Context, task jobs.Task) error {
		if !failed {
			failed = true
			return errors.New("not yet")
		}
		b.ran <- task
		return nil
	}})
	if err := q.Enqueue(t.Context(), "shaky", jobs.Task{ID: "a"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	b.next(t)
}

// A job that runs when the queue is told to stop has its context ended, and runs again with the next queue.
func TestStopAndGoOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	job := jobs.Job{Name: "long", Run: func(ctx context.Context, task jobs.Task) error {
		b.ran <- task
		<-ctx.Done()
		return ctx.Err()
	}}
	first := b.queue(t, job)
	if err := first.Enqueue(t.Context(), "long", jobs.Task{ID: "a"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	b.next(t)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := first.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	job.Run = b.note
	b.queue(t, job)
	b.next(t)
}
