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
// Where no server runs the queue, because they get no CPU between requests, a scheduler calls [Queue.RunOnce].
//
// # What a job may know
//
// The queue's rows are under no row-level security. A [Task] says which object to look at, and nothing that is in it: no
// secret, no text. Errors are stored beside it, so they name things and quote nothing.
package jobs

import (
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

// Queue runs jobs. Its methods are safe for concurrent use; Add is not, and comes before all others.
type Queue struct {
	inserter *river.Client[pgx.Tx]
	client   *river.Client[pgx.Tx] // nil: not started
	config   Config
	db       *db.DB
	jobs     map[string]Job
}

// New makes a queue that stores tasks, and does not run them until Start or RunOnce.
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
	inserter, err := river.NewClient(riverpgxv5.New(d.JobsPool()), &river.Config{Schema: db.JobsSchema, Logger: slog.New(warnings{c.Log.Handler()})})
	if err != nil {
		panic(err) // only for a wrong river.Config
	}
	return &Queue{inserter: inserter, config: c, db: d, jobs: map[string]Job{}}
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

// rescueAfter is the least time after which a task whose server died runs again. Each task has at least its own timeout.
const rescueAfter = 2 * time.Minute

// runner returns a client that runs jobs, and enqueues the periodic ones while it is the one elected.
func (q *Queue) runner(periodic []*river.PeriodicJob) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	for _, j := range q.jobs {
		river.AddWorkerArgs(workers, Task{name: j.Name}, &worker{job: j})
	}
	return river.NewClient(riverpgxv5.New(q.db.JobsPool()), &river.Config{
		Schema: db.JobsSchema, Workers: workers, PeriodicJobs: periodic,
		Queues:   map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: q.config.Workers}},
		PollOnly: true,
		// While a release is rolled out the older servers leave its new jobs alone.
		FetchOnlyKnownKinds: true,
		FetchPollInterval:   q.config.Poll,
		SoftStopTimeout:     softStop,
		// While a task runs no other like it is stored, so one whose server died stands in the way of the next.
		RescueStuckJobsAfter: rescueAfter,
		ErrorHandler:         &errorLog{q.config.Log},
		Logger:               slog.New(warnings{q.config.Log.Handler()}),
		// Only their owner may rebuild indexes, which the server is not; theirs stay small.
		ReindexerIndexNames: []string{}, ReindexerSchedule: river.NeverSchedule(),
	})
}

// Start begins to run jobs, until Stop; without any it does nothing. ctx bounds only the start.
func (q *Queue) Start(ctx context.Context) error {
	if len(q.jobs) == 0 {
		return nil
	}
	var periodic []*river.PeriodicJob
	for _, j := range q.jobs {
		if j.Every <= 0 {
			continue
		}
		name, opts := j.Name, insertOpts(j)
		periodic = append(periodic, river.NewPeriodicJob(river.PeriodicInterval(j.Every), func() (river.JobArgs, *river.InsertOpts) {
			return Task{name: name}, opts
		}, &river.PeriodicJobOpts{ID: name, RunOnStart: true}))
	}
	client, err := q.runner(periodic)
	if err == nil {
		err = client.Start(context.WithoutCancel(ctx)) // how it ends is Stop's affair
	}
	if err != nil {
		return fmt.Errorf("jobs: %w", err)
	}
	q.client = client
	return nil
}

// leaderTime is how long a client needs to be elected, if no other leads, and to begin what only a leader does: retry failed tasks,
// rescue those of dead servers, delete old ones.
const leaderTime = 2 * time.Second

// RunOnce runs what is due, and returns when nothing is left to run: tasks that wait, and periodic jobs, each at most once in
// its period. It takes two seconds at least. When ctx ends, running jobs have a second to end; then it returns ctx's error. Servers
// may run the queue at the same time.
func (q *Queue) RunOnce(ctx context.Context) (err error) {
	client, err := q.runner(nil)
	if err == nil {
		err = client.Start(context.WithoutCancel(ctx))
	}
	if err != nil {
		return fmt.Errorf("jobs: %w", err)
	}
	defer func() { err = errors.Join(err, client.Stop(context.WithoutCancel(ctx))) }()
	names := make([]string, 0, len(q.jobs))
	for _, j := range q.jobs {
		names = append(names, j.Name)
		if j.Every > 0 {
			opts := insertOpts(j)
			everyPeriod(opts, j.Every)
			if _, err := client.Insert(ctx, Task{name: j.Name}, opts); err != nil {
				return errors.Join(db.ErrUnavailable, err)
			}
		}
	}
	for wait := leaderTime; ; wait = q.config.Poll {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		if left, err := q.left(ctx, client.ID(), names); err != nil || !left {
			return err
		}
	}
}

// left reports whether a task waits to be run now, or is run by the client of that id. One that was put off is scheduled until the elected
// server, which may be this one, makes it available.
func (q *Queue) left(ctx context.Context, id string, names []string) (bool, error) {
	res, err := q.inserter.JobList(ctx, river.NewJobListParams().Kinds(names...).First(1).Where(
		"(state IN ('available', 'scheduled', 'retryable') AND scheduled_at <= now() OR state = 'running' AND attempted_by[array_upper(attempted_by, 1)] = @id)",
		river.NamedArgs{"id": id}))
	if err != nil {
		return false, errors.Join(db.ErrUnavailable, err)
	}
	return len(res.Jobs) > 0, nil
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
	if !ok {
		return fmt.Errorf("jobs: no job %q", job)
	}
	t.name = job
	opts := insertOpts(j)
	opts.ScheduledAt = at
	if _, err := q.inserter.Insert(ctx, t, opts); err != nil {
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
		everyPeriod(opts, j.Every)
	}
	return opts
}

// everyPeriod lets a task be stored once in each hour, day or whatever the period is, even if the one before has run.
func everyPeriod(opts *river.InsertOpts, period time.Duration) {
	if opts.UniqueOpts.ByPeriod == 0 {
		opts.UniqueOpts.ByPeriod = period
		opts.UniqueOpts.ByState = append(opts.UniqueOpts.ByState, rivertype.JobStateCompleted)
	}
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
