// Package agent keeps tasks of ProjectService in step with the runs of coding agents of any provider. What differs between
// providers is in an Adapter; packages codegen and cursor have one each, and docs/tasks.md shows how to write another.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/coordclient"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
	"holdfast/gen/holdfast/project/v1/projectv1connect"
	"holdfast/handlers/coordination/dialect"
)

// Work is what a run is to do. An adapter refuses what its provider cannot do.
type Work struct {
	Prompt string
	// Repository is the provider's name of it: an address, or an id.
	Repository string
	// Ref is the branch or commit to begin from. Empty: the provider's default, as for Model.
	Ref, Model string
}

// Run is a run as its provider shows it.
type Run struct {
	// Task is what the provider says about the run; run_id names it. Fields that the provider does not know are unset, so that what
	// another source knows stays.
	Task *projectv1.Task
	// Status is the provider's word.
	Status string
}

// Adapter speaks to a provider of coding agents. Its HTTP client should have a coordclient's transport; then Start may be repeated with
// the same key, from any process, until it succeeds: one run is started.
type Adapter interface {
	// Provider is the provider's name, for tasks and for the coordinator.
	Provider() string
	// Start starts a run. The key names it in the coordinator's ledger, and at the provider.
	Start(ctx context.Context, key string, w Work) (*Run, error)
	// Cancel stops a run. One that has ended already is no error.
	Cancel(ctx context.Context, key, runID string) error
	// Read reads runs. Those that the provider no longer has are left out.
	Read(ctx context.Context, runIDs []string) ([]*Run, error)
	// Find returns the provider's answer to a Start with a key that it began at or after a time, or nil where it shows no such run.
	Find(ctx context.Context, key string, since time.Time) (answer any, err error)
}

// cancelPrefix is what the keys of cancellations begin with; the run's id follows.
const cancelPrefix = "cancel/"

// Reconciler finds out about an adapter's calls. A cancellation can be repeated without harm, so it is.
func Reconciler(c *coordclient.Client, a Adapter) *coordclient.Reconciler {
	return &coordclient.Reconciler{Coordinator: c, API: a.Provider(), Look: func(ctx context.Context, call *coordinationv1.Call) (any, error) {
		if strings.HasPrefix(call.GetKey(), cancelPrefix) {
			return nil, nil
		}
		return a.Find(ctx, call.GetKey(), call.GetCreateTime().AsTime())
	}}
}

// HTTP is an HTTP client for an adapter: it coordinates the provider's calls, and finds out about those that are unknown.
func HTTP(c *coordclient.Client, a Adapter, o coordclient.Options) *http.Client {
	o.Reconcile = Reconciler(c, a).Reconcile
	return &http.Client{Transport: c.Transport(a.Provider(), o)}
}

// Tasks keeps the tasks of one provider. It is safe for concurrent use, also by several processes at once.
type Tasks struct {
	Service projectv1connect.ProjectServiceClient
	Adapter Adapter
	// Now is the time; it orders what is read. Default: the system's clock.
	Now func() time.Time
}

func (t *Tasks) now() time.Time {
	if t.Now != nil {
		return t.Now()
	}
	return time.Now() //nolint:forbidigo // it is linked into other programs, which have one clock
}

// Start makes the task, and starts its run. It may be repeated with the same task_id until there is no error: one run is started. A task
// that has ended already is left alone, so one that was cancelled before it was started is never started. After an error the task is
// queued, or failed where repeating does not help.
func (t *Tasks) Start(ctx context.Context, task *projectv1.Task, w Work) (*projectv1.Task, error) {
	task = proto.CloneOf(task)
	task.Provider = t.Adapter.Provider()
	made, err := t.Service.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: task.GetTaskId(), Task: task})
	if err != nil {
		return nil, err
	}
	if ended(made.GetTask().GetStatus()) {
		return made.GetTask(), nil
	}
	run, err := t.Adapter.Start(ctx, task.GetTaskId(), w)
	if err != nil {
		if !final(err) {
			return made.GetTask(), err
		}
		refused := &Run{Task: &projectv1.Task{Summary: Clip(err.Error())}, Status: "REJECTED"}
		failed, put := t.put(ctx, task.GetTaskId(), refused, "start", nil)
		return failed, errors.Join(err, put)
	}
	started, err := t.put(ctx, task.GetTaskId(), run, "start", nil)
	if err == nil && started.GetStatus() == projectv1.TaskStatus_TASK_STATUS_CANCELLED {
		return t.Cancel(ctx, task.GetTaskId()) // while it was on its way
	}
	return started, err
}

// Cancel stops a task's run at the provider; a task without a run is cancelled here, and never started. It may be repeated until there is
// no error.
func (t *Tasks) Cancel(ctx context.Context, taskID string) (*projectv1.Task, error) {
	res, err := t.Service.GetTask(ctx, &projectv1.GetTaskRequest{TaskId: taskID})
	if err != nil {
		return nil, err
	}
	task := res.GetTask()
	if ended(task.GetStatus()) && task.GetStatus() != projectv1.TaskStatus_TASK_STATUS_CANCELLED {
		return task, nil
	}
	if run := task.GetRunId(); run != "" {
		if err := t.Adapter.Cancel(ctx, cancelPrefix+run, run); err != nil {
			return task, err
		}
		// It may have ended otherwise before.
		if task, err = t.read(ctx, map[string]string{run: taskID}); err != nil || ended(task.GetStatus()) {
			return task, err
		}
	}
	return t.put(ctx, taskID, &Run{Status: "CANCELLED"}, "cancel", nil)
}

// Poll reads what has become of the provider's open tasks. It goes on after an error.
func (t *Tasks) Poll(ctx context.Context) error {
	req := &projectv1.ListTasksRequest{PageSize: 200, Filter: &projectv1.TaskFilter{Provider: t.Adapter.Provider(), Open: true}}
	var errs []error
	for {
		page, err := t.Service.ListTasks(ctx, req)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		tasks := map[string]string{}
		for _, task := range page.GetTasks() {
			if task.GetRunId() != "" {
				tasks[task.GetRunId()] = task.GetTaskId()
			}
		}
		if len(tasks) > 0 {
			_, err = t.read(ctx, tasks)
			errs = append(errs, err)
		}
		if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
			return errors.Join(errs...)
		}
	}
}

// read reads runs and puts each into its task. It returns the last of the tasks.
func (t *Tasks) read(ctx context.Context, tasks map[string]string) (last *projectv1.Task, _ error) {
	ids := make([]string, 0, len(tasks))
	for id := range tasks {
		ids = append(ids, id)
	}
	at := timestamppb.New(t.now()) // two readers may put their reports in either order; the later read wins
	runs, err := t.Adapter.Read(ctx, ids)
	errs := []error{err}
	for _, run := range runs {
		if id := tasks[run.Task.GetRunId()]; id != "" {
			task, err := t.put(ctx, id, run, "poll", at)
			last, errs = task, append(errs, err)
		}
	}
	return last, errors.Join(errs...)
}

// put reports a run that was observed at a time; nil: now. A status that the task cannot have, as it has ended meanwhile, is left out.
func (t *Tasks) put(ctx context.Context, taskID string, run *Run, source string, at *timestamppb.Timestamp) (*projectv1.Task, error) {
	req := &projectv1.PutTaskRequest{
		TaskId: taskID, Task: run.Task, MustExist: true, Report: &projectv1.Report{RawStatus: run.Status, Source: source, ObserveTime: at},
	}
	res, err := t.Service.PutTask(ctx, req)
	if illegal(err) {
		req.Report = nil
		res, err = t.Service.PutTask(ctx, req)
	}
	return res.GetTask(), err
}

func ended(s projectv1.TaskStatus) bool {
	switch s {
	case projectv1.TaskStatus_TASK_STATUS_SUCCEEDED, projectv1.TaskStatus_TASK_STATUS_CANCELLED,
		projectv1.TaskStatus_TASK_STATUS_FAILED, projectv1.TaskStatus_TASK_STATUS_EXPIRED:
		return true
	default:
		return false
	}
}

// final reports whether a Start that failed will always fail.
func final(err error) bool {
	if e, ok := errors.AsType[*StatusError](err); ok {
		return dialect.MeaningOf(e.Status, e.body, false) == dialect.Final
	}
	_, ok := errors.AsType[*coordclient.FailedError](err)
	return ok
}

// illegal reports whether a task cannot go to a status from the one that it has.
func illegal(err error) bool {
	e, ok := errors.AsType[*connect.Error](err)
	return ok && slices.ContainsFunc(e.Details(), func(d *connect.ErrorDetail) bool {
		v, err := d.Value()
		p, ok := v.(*errorv1.Problem)
		return err == nil && ok && p.GetReason() == "ILLEGAL_TRANSITION"
	})
}

// MaxPullRequests is how many a task may have.
const MaxPullRequests = 32

// Clip cuts a provider's text to what a task may have.
func Clip(s string) string {
	const most = 8 << 10
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}

// NotFound reports whether a provider does not have what was asked for.
func NotFound(err error) bool {
	e, ok := errors.AsType[*StatusError](err)
	return ok && (e.Status == http.StatusNotFound || e.Status == http.StatusGone)
}

// StatusError: a provider answered, but not with what was asked for.
type StatusError struct {
	Status  int
	Message string

	body []byte
}

func (e *StatusError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.Status, e.Message) }

// JSON sends a request and reads the JSON of its answer into into, or returns a StatusError.
func JSON(c *http.Client, req *http.Request, into any) error {
	res, err := c.Do(req) //nolint:gosec // the address is the adapter's
	if err != nil {
		return err
	}
	defer res.Body.Close()
	const most = 16 << 20
	text, err := io.ReadAll(io.LimitReader(res.Body, most))
	if err != nil {
		return err
	}
	if res.StatusCode >= http.StatusMultipleChoices {
		var e struct {
			Message string `json:"message"`
			Error   struct {
				Message string `json:"message"`
			} `json:"error"`
		}
		_ = json.Unmarshal(text, &e)
		for _, message := range []string{e.Message, e.Error.Message, http.StatusText(res.StatusCode)} {
			if message != "" {
				return &StatusError{res.StatusCode, message, text}
			}
		}
		return &StatusError{res.StatusCode, "no message", text}
	}
	if len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, into)
}
