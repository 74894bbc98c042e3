package project

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	projectv1 "holdfast/gen/holdfast/project/v1"
	storev1 "holdfast/gen/holdfast/store/project/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// The statuses, by their short names.
const (
	unspecified = storev1.TaskStatus_TASK_STATUS_UNSPECIFIED
	unknown     = storev1.TaskStatus_TASK_STATUS_UNKNOWN
	queued      = storev1.TaskStatus_TASK_STATUS_QUEUED
	running     = storev1.TaskStatus_TASK_STATUS_RUNNING
	paused      = storev1.TaskStatus_TASK_STATUS_PAUSED
	succeeded   = storev1.TaskStatus_TASK_STATUS_SUCCEEDED
	cancelled   = storev1.TaskStatus_TASK_STATUS_CANCELLED
	failed      = storev1.TaskStatus_TASK_STATUS_FAILED
)

// normalise is the status that a provider's word means, and why where it is a failure. The words are those of
// codegen-sh/raycast-extension:src/api/types.ts and of Codegen's own command line; its documentation writes some of them
// in lower case.
func normalise(raw string) (status storev1.TaskStatus, reason string) {
	switch word := strings.ToUpper(strings.TrimSpace(raw)); word {
	case "PENDING":
		return queued, ""
	case "ACTIVE", "RUNNING", "EVALUATION":
		return running, ""
	case "PAUSED":
		return paused, ""
	case "COMPLETE", "COMPLETED":
		return succeeded, ""
	case "CANCELLED", "STOPPED":
		return cancelled, ""
	case "ERROR", "FAILED", "TIMEOUT", "MAX_ITERATIONS_REACHED", "OUT_OF_TOKENS":
		return failed, strings.ToLower(word)
	default:
		return unknown, ""
	}
}

// ended tells whether a status ends a task, until it is resumed.
func ended(s storev1.TaskStatus) bool { return s == succeeded || s == cancelled || s == failed }

// statusReport is one report of a task's status.
type statusReport struct {
	raw, source string
	observed    time.Time // zero: now
	resume      *storev1.TaskResume
}

// notResumedError: a task that has ended cannot go on without being resumed.
type notResumedError struct{ from, to storev1.TaskStatus }

func (e notResumedError) Error() string {
	return fmt.Sprintf("%v after %v without a resume", e.to, e.from)
}

// transition applies a report to the task. It returns the transition to record, or nil if the report says nothing new or
// is older than the newest one, or a notResumedError.
func transition(s *storev1.TaskState, w statusReport, now time.Time) (*storev1.TaskTransition, error) {
	if w.observed.IsZero() || w.observed.After(now) {
		w.observed = now // nobody has seen the future; a clock that runs ahead must not silence the others
	}
	from := s.GetStatus()
	to, reason := normalise(w.raw)
	switch {
	case from != unspecified && w.observed.Before(s.GetStatusTime().AsTime()):
		return nil, nil
	case from == to && s.GetRawStatus() == w.raw && w.resume == nil:
		return nil, nil
	case ended(from) && !ended(to) && w.resume == nil:
		return nil, notResumedError{from, to}
	}
	resume := w.resume
	if !ended(from) || ended(to) {
		resume = nil
	}
	if resume != nil {
		s.ResumeCount++
	} else if from == to && s.GetRawStatus() == w.raw {
		return nil, nil
	}
	s.TransitionCount++
	s.Status, s.RawStatus, s.StatusReason, s.StatusTime = to, w.raw, reason, timestamppb.New(w.observed)
	return &storev1.TaskTransition{
		Seq: s.GetTransitionCount(), FromStatus: from, ToStatus: to, RawStatus: w.raw, Reason: reason, Source: w.source,
		ObserveTime: s.GetStatusTime(), RecordTime: timestamppb.New(now), Resume: resume,
	}, nil
}

// taskTerms are what tasks can be listed by. A project's open tasks have a term of their own, so that finding them costs
// the same however many have ended.
func taskTerms(s *storev1.TaskState) []string {
	open := !ended(s.GetStatus())
	t := []string{statusTerm(s.GetStatus())}
	if open {
		t = append(t, "open")
	}
	if p := s.GetProjectId(); p != "" {
		t = append(t, "project="+p, "project="+p+"/"+statusTerm(s.GetStatus()))
		if open {
			t = append(t, "project="+p+"/open")
		}
	}
	if s.GetRunId() != "" {
		t = append(t, "run="+s.GetProvider()+"/"+s.GetRunId())
	}
	if s.GetLinearIssueId() != "" {
		t = append(t, "issue="+s.GetLinearIssueId())
	}
	return t
}

func statusTerm(s storev1.TaskStatus) string {
	return "status=" + strings.ToLower(strings.TrimPrefix(s.String(), "TASK_STATUS_"))
}

// taskFilter are the terms of a list, the most selective first, whose index the list walks.
func taskFilter(req *projectv1.ListTasksRequest) []string {
	var t []string
	if req.GetRun() != "" {
		t = append(t, "run="+req.GetRun())
	}
	if req.GetLinearIssueId() != "" {
		t = append(t, "issue="+req.GetLinearIssueId())
	}
	prefix := ""
	if req.GetProjectId() != "" {
		prefix = "project=" + req.GetProjectId() + "/"
	}
	if req.GetOpenOnly() {
		t = append(t, prefix+"open")
	}
	if req.GetStatus() != unspecified {
		t = append(t, prefix+statusTerm(req.GetStatus()))
	}
	if prefix != "" && !req.GetOpenOnly() && req.GetStatus() == unspecified {
		t = append(t, strings.TrimSuffix(prefix, "/"))
	}
	return t
}

// setTask sets all that a caller may set of a task.
func setTask(s *storev1.TaskState, t *projectv1.Task) {
	s.Title, s.ProjectId, s.Provider, s.RunId = t.GetTitle(), t.GetProjectId(), t.GetProvider(), t.GetRunId()
	s.PullRequests, s.LinearIssueId, s.RequestedBy = t.GetPullRequests(), t.GetLinearIssueId(), t.GetRequestedBy()
	s.WebUrl, s.Result, s.Summary, s.Metadata = t.GetWebUrl(), t.GetResult(), t.GetSummary(), t.GetMetadata()
}

func presentTask(i object.Info, s *storev1.TaskState) *projectv1.Task {
	return &projectv1.Task{
		TaskId: string(i.ID), Owner: string(i.Owner), Title: s.GetTitle(), ProjectId: s.GetProjectId(), Provider: s.GetProvider(),
		RunId: s.GetRunId(), Status: s.GetStatus(), RawStatus: s.GetRawStatus(), StatusReason: s.GetStatusReason(),
		StatusTime: s.GetStatusTime(), PullRequests: s.GetPullRequests(), LinearIssueId: s.GetLinearIssueId(),
		RequestedBy: s.GetRequestedBy(), WebUrl: s.GetWebUrl(), Result: s.GetResult(), Summary: s.GetSummary(),
		Metadata: s.GetMetadata(), TransitionCount: s.GetTransitionCount(), ResumeCount: s.GetResumeCount(),
	}
}

// record stages the transition that a report makes, if any.
func record(tx *object.Tx[taskState], w statusReport) (*storev1.TaskTransition, error) {
	t, err := transition(tx.State(), w, tx.Now())
	if err != nil {
		return nil, refuseTransition(err)
	}
	if t != nil {
		tx.Put(inTransitions, object.SeqKey(t.GetSeq()), t)
	}
	return t, nil
}

// PutTask implements ProjectService.
func (m *Manager) PutTask(ctx context.Context, req *projectv1.PutTaskRequest) (*projectv1.PutTaskResponse, error) {
	id, err := rpc.NewID(ctx, m.o.Tasks, req.GetTaskId(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return rpc.Do(ctx, m.o.Tasks, id, req, func(tx *object.Tx[taskState]) (*projectv1.PutTaskResponse, error) {
		setTask(tx.State(), req.GetTask())
		w := statusReport{req.GetRawStatus(), req.GetSource(), observed(req), req.GetResume()}
		if w.raw == "" && !tx.Exists() {
			w.raw = "PENDING"
		}
		if w.raw != "" {
			if _, err := record(tx, w); err != nil {
				return nil, err
			}
		}
		return &projectv1.PutTaskResponse{Task: presentTask(tx.Info(), tx.State())}, nil
	}, append(shared(req.GetShared()), object.Upsert())...)
}

func observed(req interface {
	GetObserveTime() *timestamppb.Timestamp
},
) time.Time {
	if req.GetObserveTime() == nil {
		return time.Time{}
	}
	return req.GetObserveTime().AsTime()
}

// GetTask implements ProjectService.
func (m *Manager) GetTask(ctx context.Context, req *projectv1.GetTaskRequest) (*projectv1.GetTaskResponse, error) {
	s, err := m.o.Tasks.View(ctx, object.ID(req.GetTaskId()),
		object.WithRecent(int(req.GetTransitionLimit())), object.IfVersionNot(object.Version(req.GetIfVersionNot())))
	if err != nil {
		return nil, err
	}
	if s.NotModified {
		return &projectv1.GetTaskResponse{Metadata: rpc.Metadata(s.Info), NotModified: true}, nil
	}
	return &projectv1.GetTaskResponse{
		Task: presentTask(s.Info, s.State), Transitions: rpc.Values[*storev1.TaskTransition](s.Recent), Metadata: rpc.Metadata(s.Info),
	}, nil
}

// ListTasks implements ProjectService.
func (m *Manager) ListTasks(ctx context.Context, req *projectv1.ListTasksRequest) (*projectv1.ListTasksResponse, error) {
	items, next, err := rpc.List(ctx, m.o.Tasks, req, object.ListOptions{Terms: taskFilter(req)}, func(s object.Snapshot[taskState]) *projectv1.TaskItem {
		return &projectv1.TaskItem{Task: presentTask(s.Info, s.State), Metadata: rpc.Metadata(s.Info)}
	})
	return &projectv1.ListTasksResponse{Tasks: items, NextPageToken: next}, err
}

// UpdateTaskStatus implements ProjectService.
func (m *Manager) UpdateTaskStatus(
	ctx context.Context, req *projectv1.UpdateTaskStatusRequest,
) (*projectv1.UpdateTaskStatusResponse, error) {
	return rpc.Do(ctx, m.o.Tasks, object.ID(req.GetTaskId()), req,
		func(tx *object.Tx[taskState]) (*projectv1.UpdateTaskStatusResponse, error) {
			t, err := record(tx, statusReport{req.GetRawStatus(), req.GetSource(), observed(req), req.GetResume()})
			if err != nil {
				return nil, err
			}
			if t == nil {
				tx.Unchanged()
			}
			return &projectv1.UpdateTaskStatusResponse{Task: presentTask(tx.Info(), tx.State()), Transition: t}, nil
		})
}

// ListTaskTransitions implements ProjectService.
func (m *Manager) ListTaskTransitions(
	ctx context.Context, req *projectv1.ListTaskTransitionsRequest,
) (*projectv1.ListTaskTransitionsResponse, error) {
	transitions, page, err := rpc.ListAfterSeq[*storev1.TaskTransition](ctx, m.o.Tasks, req.GetTaskId(), inTransitions, req)
	return &projectv1.ListTaskTransitionsResponse{Transitions: transitions, HasMore: page.More, Metadata: rpc.Metadata(page.Info)}, err
}

// DeleteTask implements ProjectService.
func (m *Manager) DeleteTask(ctx context.Context, req *projectv1.DeleteTaskRequest) (*projectv1.DeleteTaskResponse, error) {
	return rpc.Do(ctx, m.o.Tasks, object.ID(req.GetTaskId()), req,
		func(tx *object.Tx[taskState]) (*projectv1.DeleteTaskResponse, error) {
			tx.DeleteObject()
			return &projectv1.DeleteTaskResponse{}, nil
		})
}

// refuseTransition puts a rule's refusal into the caller's words.
func refuseTransition(err error) error {
	if e, ok := err.(notResumedError); ok { //nolint:errorlint // transition returns it as it is
		p := problem.IllegalTransition(e.from.String(), e.to.String(), succeeded.String(), cancelled.String(), failed.String())
		p.Message += "; or set resume: a task that has ended goes on only if it is resumed"
		return p
	}
	return err
}
