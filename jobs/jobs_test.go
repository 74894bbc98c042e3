package jobs_test

import (
	"context"
	"errors"
	"slices"
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

// once runs what is due, in a process that is there for that alone.
func (b *testBundle) once(t *testing.T, all ...jobs.Job) []string {
	t.Helper()
	q := jobs.New(b.DB, jobs.Config{Poll: 100 * time.Millisecond})
	for _, j := range all {
		q.Add(j)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := q.RunOnce(ctx); err != nil {
		t.Error(err)
	}
	var ran []string
	for len(b.ran) > 0 {
		ran = append(ran, (<-b.ran).ID)
	}
	slices.Sort(ran)
	return ran
}

// Where no queue runs, tasks wait. RunOnce runs them, what they enqueue, and each periodic job once in its period.
func TestRunOnceRunsWhatIsDue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	idle := jobs.New(b.DB, jobs.Config{})
	note := jobs.Job{Name: "note", Run: b.note}
	idle.Add(note)
	if err := idle.Enqueue(t.Context(), "note", jobs.Task{ID: "waits"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	daily := jobs.Job{Name: "daily", Every: 100 * 365 * 24 * time.Hour, Run: func(ctx context.Context, _ jobs.Task) error {
		return errors.Join(idle.Enqueue(ctx, "note", jobs.Task{ID: "child"}, time.Now()), b.note(ctx, jobs.Task{ID: "daily"}))
	}}
	// A server died while it did this, long ago.
	if err := idle.Enqueue(t.Context(), "note", jobs.Task{ID: "stuck"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	b.exec(t, `UPDATE holdfast_jobs.river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '1 hour', attempted_by = '{gone}'
		WHERE args ->> 'id' = 'stuck'`)
	ran := b.once(t, note, daily)
	rescued := slices.Contains(ran, "stuck")
	ran = slices.DeleteFunc(ran, func(id string) bool { return id == "stuck" })
	if !slices.Equal(ran, []string{"child", "daily", "waits"}) {
		t.Errorf("ran %v", ran)
	}
	if rescued {
		return
	}
	// One of the next rescues it, to be tried again a moment later. Nothing else runs again.
	deadline := time.After(soon)
	for {
		b.exec(t, `UPDATE holdfast_jobs.river_job SET scheduled_at = now() WHERE args ->> 'id' = 'stuck' AND state = 'retryable'`)
		ran := b.once(t, note, daily)
		if slices.Equal(ran, []string{"stuck"}) {
			return
		}
		if len(ran) > 0 {
			t.Fatalf("ran %v again", ran)
		}
		select {
		case <-deadline:
			t.Fatal("the task of the dead server stays where it is")
		default:
		}
	}
}

func (b *testBundle) exec(t *testing.T, sql string) {
	t.Helper()
	owner, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(context.Background())
	if _, err := owner.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}
