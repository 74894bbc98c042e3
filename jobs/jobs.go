// Package jobs runs what nobody waits for: periodic work, and work that is put off. It is River in the words of this
// project. Its tables are in the same database, in a schema of their own.
//
// # What it promises
//
// A job that is due runs on one of the servers, at least once, and is tried again with growing pauses where it fails. Of
// periodic jobs one server at a time, elected through the database, enqueues one of each kind per period, and one when it is
// elected. While the last one waits or runs there is no second; with a period of an hour or more not even once it has run,
// until the next hour, day or whatever the period is has begun, so that restarts do not repeat it. The queue polls and never listens, so that it works behind a transaction pooler;
// a job waits for the next poll.
//
// # What a job may know
//
// The queue's rows are under no row-level security. A [Task] says which object to look at, and nothing that is in it: no
// secret, no text. Errors are stored beside it, so they name things and quote nothing.
package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"holdfast/db"
	"holdfast/identity"
)

// Task is what a job is about. Which fields it has set is its job's affair; a periodic one has none.
type Task struct {
	Tenant identity.Tenant `json:"tenant,omitempty"`
	User   identity.User   `json:"user,omitempty"`
	ID     string          `json:"id,omitempty"`

	name string
}

// Kind implements [river.JobArgs].
func (t Task) Kind() string { return t.name }

// Job is a kind of work.
type Job struct {
	// Name is stored with every task and never changes: letters, digits, - and _.
	Name string
	// Run does the work. It may run again after it succeeded, where the server died in between. ctx ends with the timeout
	// and shortly after the queue is told to stop.
	Run func(ctx context.Context, t Task) error
	// Every is the period of a periodic job, at least a second; 0: it runs when it is enqueued.
	Every time.Duration
	// Timeout bounds one run. 0: a minute.
	Timeout time.Duration
	// MaxAttempts is how often a task is tried before it is given up. 0: 25, over three weeks; a periodic one is tried 3 times.
	MaxAttempts int
}

// Config sets a queue's measures. The zero Config has the defaults.
type Config struct {
	Log *slog.Logger
	// Poll is how often a server looks for tasks that are due, at least 100 ms. 0: 1 s.
	Poll time.Duration
	// Workers is how many tasks a server runs at once. 0: 4.
	Workers int
}

// Queue runs jobs. Its methods are safe for concurrent use; Add is not, and comes before Start.
type Queue struct {
	client *river.Client[pgx.Tx]
	config Config
	db     *db.DB
	jobs   map[string]Job
}

// New makes a queue that does nothing yet.
func New(d *db.DB, c Config) *Queue {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Poll <= 0 {
		c.Poll = time.Second
	}
	if c.Workers <= 0 {
		c.Workers = 4
	}
	return &Queue{config: c, db: d, jobs: map[string]Job{}}
}

// Add makes a job known. Two of one name are a programming error and panic.
func (q *Queue) Add(j Job) {
	if _, ok := q.jobs[j.Name]; ok || j.Name == "" || j.Run == nil {
		panic(fmt.Sprintf("jobs: %q is no job, or there already", j.Name))
	}
	q.jobs[j.Name] = j
}

// softStop is how long running jobs may go on once the queue is told to stop.
const softStop = time.Second

// Start begins to run jobs, until Stop; without any it does nothing. ctx bounds only the start.
func (q *Queue) Start(ctx context.Context) error {
	if len(q.jobs) == 0 {
		return nil
	}
	workers, longest := river.NewWorkers(), time.Duration(0)
	var periodic []*river.PeriodicJob
	for _, j := range q.jobs {
		river.AddWorkerArgs(workers, Task{name: j.Name}, &worker{job: j})
		longest = max(longest, cmp.Or(j.Timeout, time.Minute))
		if j.Every <= 0 {
			continue
		}
		name, opts := j.Name, insertOpts(j)
		periodic = append(periodic, river.NewPeriodicJob(river.PeriodicInterval(j.Every), func() (river.JobArgs, *river.InsertOpts) {
			return Task{name: name}, opts
		}, &river.PeriodicJobOpts{ID: name, RunOnStart: true}))
	}
	client, err := river.NewClient(riverpgxv5.New(q.db.JobsPool()), &river.Config{
		Schema: db.JobsSchema, Workers: workers, PeriodicJobs: periodic,
		Queues:   map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: q.config.Workers}},
		PollOnly: true,
		// While a release is rolled out the older servers leave its new jobs alone.
		FetchOnlyKnownKinds: true,
		FetchPollInterval:   q.config.Poll,
		SoftStopTimeout:     softStop,
		// While a task runs no other like it is stored, so one whose server died stands in the way of the next.
		RescueStuckJobsAfter: longest + time.Minute,
		ErrorHandler:         &errorLog{q.config.Log},
		Logger:               slog.New(warnings{q.config.Log.Handler()}),
		// Only their owner may rebuild indexes, which the server is not; theirs stay small.
		ReindexerIndexNames: []string{}, ReindexerSchedule: river.NeverSchedule(),
	})
	if err != nil {
		return fmt.Errorf("jobs: %w", err)
	}
	q.client = client                                                // before the first job runs, which may enqueue another
	if err := client.Start(context.WithoutCancel(ctx)); err != nil { // how it ends is Stop's affair
		q.client = nil
		return fmt.Errorf("jobs: %w", err)
	}
	return nil
}

// Stop takes no more tasks and waits for those that run: a second for them to end by themselves, then their contexts are
// over. It returns ctx's error where they did not care.
func (q *Queue) Stop(ctx context.Context) error {
	if q.client == nil {
		return nil
	}
	return q.client.Stop(ctx)
}

// Enqueue stores a task, to run at a time that may be past. While one like it waits or runs there is no second.
func (q *Queue) Enqueue(ctx context.Context, job string, t Task, at time.Time) error {
	j, ok := q.jobs[job]
	if !ok || q.client == nil {
		return fmt.Errorf("jobs: no job %q, or the queue is not started", job)
	}
	t.name = job
	opts := insertOpts(j)
	opts.ScheduledAt = at
	if _, err := q.client.Insert(ctx, t, opts); err != nil {
		return errors.Join(db.ErrUnavailable, err)
	}
	return nil
}

func insertOpts(j Job) *river.InsertOpts {
	opts := &river.InsertOpts{MaxAttempts: j.MaxAttempts, UniqueOpts: river.UniqueOpts{
		ByArgs: true,
		ByState: []rivertype.JobState{
			rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRetryable, rivertype.JobStateRunning,
			rivertype.JobStateScheduled,
		},
	}}
	if j.Every > 0 && opts.MaxAttempts == 0 {
		opts.MaxAttempts = 3
	}
	if j.Every >= time.Hour {
		opts.UniqueOpts.ByPeriod = j.Every
		opts.UniqueOpts.ByState = append(opts.UniqueOpts.ByState, rivertype.JobStateCompleted)
	}
	return opts
}

type worker struct {
	river.WorkerDefaults[Task]

	job Job
}

// Work implements [river.Worker].
func (w *worker) Work(ctx context.Context, j *river.Job[Task]) error { return w.job.Run(ctx, j.Args) }

// Timeout implements [river.Worker].
func (w *worker) Timeout(*river.Job[Task]) time.Duration { return w.job.Timeout }

// errorLog tells of jobs that failed, which River itself finds ordinary.
type errorLog struct{ log *slog.Logger }

// HandleError implements [river.ErrorHandler].
func (l *errorLog) HandleError(ctx context.Context, j *rivertype.JobRow, err error) *river.ErrorHandlerResult {
	l.log.WarnContext(ctx, "a job failed", "job", j.Kind, "attempt", j.Attempt, "of", j.MaxAttempts, "error", err)
	return nil
}

// HandlePanic implements [river.ErrorHandler].
func (l *errorLog) HandlePanic(ctx context.Context, j *rivertype.JobRow, panicked any, trace string) *river.ErrorHandlerResult {
	l.log.ErrorContext(ctx, "a job panicked", "job", j.Kind, "attempt", j.Attempt, "panic", panicked, "stack", trace)
	return nil
}

// warnings passes on what is a warning or worse: at info River tells of every start and stop.
type warnings struct{ slog.Handler }

// Enabled implements [slog.Handler].
func (h warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}
