package project

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
	storev1 "holdfast/gen/holdfast/store/project/v1"
	"holdfast/handlers/mask"
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
	waiting     = storev1.TaskStatus_TASK_STATUS_WAITING_FOR_INPUT
	paused      = storev1.TaskStatus_TASK_STATUS_PAUSED
	succeeded   = storev1.TaskStatus_TASK_STATUS_SUCCEEDED
	cancelled   = storev1.TaskStatus_TASK_STATUS_CANCELLED
	failed      = storev1.TaskStatus_TASK_STATUS_FAILED
	expired     = storev1.TaskStatus_TASK_STATUS_EXPIRED
)

// normalise is the status that a provider's word means, and why where it is a failure. docs/tasks.md lists the words. They are written in
// capitals, in lower case and in both, with and without separators, and "cancelled" in both ways. Some providers have one word for
// having nothing to do: after it something is done, a pull request or a text, or it is not known how the task stands.
func normalise(raw string, something bool) (status storev1.TaskStatus, reason string) {
	spelt := strings.ToUpper(strings.TrimSpace(raw))
	switch word := strings.NewReplacer("_", "", "-", "", " ", "").Replace(spelt); word {
	case "PENDING", "QUEUED", "CREATING", "CREATED", "NEW", "CLAIMED", "SUBMITTED", "SCHEDULED", "STARTING":
		return queued, ""
	case "ACTIVE", "RUNNING", "EVALUATION", "WORKING", "PLANNING", "INPROGRESS", "RESUMING", "CANCELLING", "CANCELING", "STOPPING":
		return running, ""
	case "WAITINGFORINPUT", "WAITINGFORUSER", "WAITINGFORAPPROVAL", "AWAITINGINPUT", "AWAITINGPLANAPPROVAL", "AWAITINGUSERFEEDBACK",
		"INPUTREQUIRED", "AUTHREQUIRED", "REQUIRESACTION":
		return waiting, ""
	case "PAUSED", "SUSPENDED", "STALE", "INACTIVITY":
		return paused, ""
	case "COMPLETE", "COMPLETED", "FINISHED", "SUCCEEDED", "SUCCESS", "APPLIED":
		return succeeded, ""
	case "IDLE", "EXIT", "READY":
		if something {
			return succeeded, ""
		}
		return unknown, ""
	case "CANCELLED", "CANCELED", "STOPPED":
		return cancelled, ""
	case "EXPIRED":
		return expired, ""
	default:
		switch {
		case word == "ERROR", word == "ERRORED", word == "FAILED", word == "FAILURE", word == "REJECTED", word == "TIMEOUT", word == "TIMEDOUT", word == "MAXITERATIONSREACHED",
			word == "OUTOFTOKENS", word == "OUTOFCREDITS", strings.HasSuffix(word, "LIMITEXCEEDED"):
			return failed, strings.ToLower(strings.NewReplacer("-", "_", " ", "_").Replace(spelt))
		}
		return unknown, ""
	}
}

// ended reports whether a status ends a task, until it is resumed.
func ended(s storev1.TaskStatus) bool {
	return s == succeeded || s == cancelled || s == failed || s == expired
}

// resumes reports whether only a resume leads from one status to another: what has ended does not go on by itself, and what was cancelled
// does not end otherwise, though a provider may say so of the work that it had done.
func resumes(from, to storev1.TaskStatus) bool {
	return ended(from) && !ended(to) || from == cancelled && to != cancelled
}

// notResumedError: a task that has ended cannot go on without being resumed.
type notResumedError struct{ from, to storev1.TaskStatus }

func (e notResumedError) Error() string {
	return fmt.Sprintf("%v after %v without a resume", e.to, e.from)
}

// transition applies a report to the task. It returns the transition to record, or nil if the report says nothing new or
// is older than the newest one, or a notResumedError.
func transition(s *storev1.TaskState, r *projectv1.Report, now time.Time) (*storev1.TaskTransition, error) {
	observed := now
	if t := r.GetObserveTime(); t != nil && t.AsTime().Before(now) {
		observed = t.AsTime() // nobody has seen the future; a clock that runs ahead must not silence the others
	}
	from := s.GetStatus()
	to, reason := normalise(r.GetRawStatus(), len(s.GetPullRequests()) > 0 || s.GetResult() != nil || s.GetSummary() != "")
	if r.GetStatus() != projectv1.TaskStatus_TASK_STATUS_UNSPECIFIED {
		to = storev1.TaskStatus(r.GetStatus())
	}
	resumed := resumes(from, to)
	switch {
	case from != unspecified && observed.Before(s.GetStatusTime().AsTime()):
		return nil, nil
	case from == to && s.GetRawStatus() == r.GetRawStatus():
		return nil, nil
	case resumed && r.GetResumeReason() == "":
		return nil, notResumedError{from, to}
	}
	if to != failed {
		reason = ""
	}
	s.TransitionCount++
	s.Status, s.RawStatus, s.StatusReason, s.StatusTime = to, r.GetRawStatus(), reason, timestamppb.New(observed)
	t := &storev1.TaskTransition{
		Seq: s.GetTransitionCount(), FromStatus: from, ToStatus: to, RawStatus: r.GetRawStatus(), Reason: reason, Source: r.GetSource(),
		ObserveTime: s.GetStatusTime(), RecordTime: timestamppb.New(now),
	}
	if resumed {
		s.ResumeCount++
		rpc.Set(t, r, "resume_reason", "resume_requested_by")
	}
	return t, nil
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
		t = append(t, "run="+s.GetRunId())
	}
	if s.GetIssue().GetId() != "" {
		t = append(t, "issue="+s.GetIssue().GetId())
	}
	return t
}

func statusTerm(s storev1.TaskStatus) string {
	return "status=" + strings.ToLower(strings.TrimPrefix(s.String(), "TASK_STATUS_"))
}

// taskOptions choose the index that a filter's list walks, the most selective one, and tell whether that is the whole filter.
func taskOptions(f *projectv1.TaskFilter) (o object.ListOptions, whole bool) {
	switch {
	case f.GetRunId() != "":
		return object.ListOptions{Terms: []string{"run=" + f.GetRunId()}}, false
	case f.GetIssue().GetId() != "":
		return object.ListOptions{Terms: []string{"issue=" + f.GetIssue().GetId()}}, false
	}
	prefix := ""
	if f.GetProjectId() != "" {
		prefix = "project=" + f.GetProjectId() + "/"
	}
	switch {
	case len(f.GetStatuses()) > 0:
		for _, status := range f.GetStatuses() {
			o.AnyTerm = append(o.AnyTerm, prefix+statusTerm(storev1.TaskStatus(status)))
		}
	case f.GetOpen():
		o.Terms = []string{prefix + "open"}
	case prefix != "":
		o.Terms = []string{strings.TrimSuffix(prefix, "/")}
	}
	return o, f.GetProvider() == "" && f.GetIssue() == nil && (len(f.GetStatuses()) == 0 || !f.GetOpen())
}

// fitsTask reports whether a task is one that a filter chooses.
func fitsTask(f *projectv1.TaskFilter, s taskState) bool {
	is := func(wanted, has string) bool { return wanted == "" || wanted == has }
	return is(f.GetProjectId(), s.GetProjectId()) && is(f.GetProvider(), s.GetProvider()) && is(f.GetRunId(), s.GetRunId()) &&
		is(f.GetIssue().GetProvider(), s.GetIssue().GetProvider()) && is(f.GetIssue().GetId(), s.GetIssue().GetId()) &&
		is(f.GetIssue().GetIdentifier(), s.GetIssue().GetIdentifier()) && (!f.GetOpen() || !ended(s.GetStatus())) &&
		(len(f.GetStatuses()) == 0 || slices.Contains(f.GetStatuses(), projectv1.TaskStatus(s.GetStatus())))
}

// taskFields are what a Put changes.
func taskFields() []string {
	return []string{
		"labels", "title", "project_id", "provider", "run_id", "pull_requests", "issue", "requested_by", "web_url", "summary", "result", "metadata",
		"model", "cost", "needs_input", "parent_run_id",
	}
}

// maxResult bounds Task.result, in bytes.
const maxResult = 16 << 10

// setTask makes the changes that a request asks for, but for the status.
func setTask(s *storev1.TaskState, req *projectv1.PutTaskRequest) error {
	t := &projectv1.Task{}
	rpc.Copy(t, s)
	if len(req.GetUpdateMask().GetPaths()) == 0 {
		// A reference is one value: half of an old one would make no sense in a new one.
		if req.GetTask().GetIssue() != nil {
			t.Issue = nil
		}
		if req.GetTask().GetRequestedBy() != nil {
			t.RequestedBy = nil
		}
	}
	if err := mask.Merge(t, req.GetTask(), req.GetUpdateMask(), taskFields()...); err != nil {
		return err
	}
	if size := proto.Size(t.GetResult()); size > maxResult {
		return problem.InvalidArgument("task.result", fmt.Sprintf("has %d bytes, over the limit of %d", size, maxResult))
	}
	rpc.Set(s, t, taskFields()...)
	return nil
}

func presentTask(i object.Info, s *storev1.TaskState) *projectv1.Task {
	return rpc.Present(&projectv1.Task{}, i, s)
}

func presentTransition(t proto.Message) *projectv1.TaskTransition {
	out := &projectv1.TaskTransition{}
	rpc.Copy(out, t)
	return out
}

// taskOf is the id of the task that a request changes or makes. One run is one task, of those that the caller sees: a request without an
// id means the task of its run, and one with another id is refused.
func (m *Manager) taskOf(ctx context.Context, req *projectv1.PutTaskRequest) (object.ID, error) {
	provider, run := req.GetTask().GetProvider(), req.GetTask().GetRunId()
	if run == "" {
		return rpc.NewID(ctx, m.o.Tasks, req.GetTaskId(), req.GetRequestId())
	}
	id := object.ID(req.GetTaskId())
	if id != "" {
		is, err := m.o.Tasks.View(ctx, id)
		if err != nil && !errors.Is(err, object.ErrNotFound) {
			return "", err
		}
		if provider = cmp.Or(provider, is.State.GetProvider()); is.State.GetProvider() == provider && is.State.GetRunId() == run {
			return id, nil
		}
	}
	of := object.ListOptions{Terms: []string{"run=" + run}, PageSize: object.MaxPageSize}
	tasks, err := m.o.Tasks.List(ctx, of)
	if err != nil {
		return "", err
	}
	for _, t := range tasks.Items {
		switch {
		case t.State.GetProvider() != provider:
		case id == "" || id == t.ID:
			return t.ID, nil
		default:
			return "", problem.New(errorv1.Reason_REASON_ALREADY_EXISTS, fmt.Sprintf("the run %q of %q is the task %q: change that one", run, provider, t.ID))
		}
	}
	if id == "" {
		return m.o.Tasks.MakeID(ctx, "run\x00"+provider+"\x00"+run) // of two requests at once both mean the same
	}
	return id, nil
}

// PutTask implements ProjectService.
func (m *Manager) PutTask(ctx context.Context, req *projectv1.PutTaskRequest) (*projectv1.PutTaskResponse, error) {
	id, err := m.taskOf(ctx, req)
	if err != nil {
		return nil, err
	}
	return object.Do(ctx, m.o.Tasks, id, req, func(tx *object.Tx[taskState]) (*projectv1.PutTaskResponse, error) {
		s, report, res := tx.State(), req.GetReport(), &projectv1.PutTaskResponse{}
		was := proto.CloneOf(s)
		if err := setTask(s, req); err != nil {
			return nil, err
		}
		if report == nil && !tx.Exists() {
			report = &projectv1.Report{RawStatus: "PENDING"}
		}
		if report != nil {
			t, err := transition(s, report, tx.Now())
			if err != nil {
				return nil, refuseTransition(err)
			}
			if t != nil {
				tx.Put(inTransitions, object.SeqKey(int64(t.GetSeq())), t)
				res.Transition = presentTransition(t)
			}
		}
		if s.GetStatus() != waiting {
			s.NeedsInput = ""
		}
		unlessChanged(tx, was)
		res.Task = presentTask(tx.Info(), s)
		return res, nil
	}, putOptions(req)...)
}

// GetTask implements ProjectService.
func (m *Manager) GetTask(ctx context.Context, req *projectv1.GetTaskRequest) (*projectv1.GetTaskResponse, error) {
	cursor, err := rpc.Cursor(req)
	if err != nil {
		return nil, err
	}
	first, size := cursor == "", cmp.Or(int(req.GetPageSize()), object.DefaultPageSize)
	opts := []object.ViewOption{object.WithRecent(size), object.IfVersionNot(object.Version(req.GetIfVersionNot()))}
	if !first {
		opts = nil
	}
	s, err := m.o.Tasks.View(ctx, object.ID(req.GetTaskId()), opts...)
	if err != nil {
		return nil, err
	}
	if s.NotModified {
		return &projectv1.GetTaskResponse{NotModified: true}, nil
	}
	entries := s.Recent
	if !first {
		page, err := m.o.Tasks.Entries(ctx, s.ID, inTransitions, object.EntriesOptions{Before: cursor, PageSize: size})
		if err != nil {
			return nil, err
		}
		entries = page.Entries
	}
	res := &projectv1.GetTaskResponse{Task: presentTask(s.Info, s.State)}
	var room object.Room
	room.Fits(rpc.AnswerSize(res.GetTask()))
	for _, e := range slices.Backward(entries) {
		t := presentTransition(e.Value)
		if !room.Fits(rpc.AnswerSize(t)) {
			break
		}
		if res.Transitions, res.NextPageToken = append(res.Transitions, t), ""; t.GetSeq() > 1 {
			res.NextPageToken = rpc.Token(req, e.Key)
		}
	}
	return res, nil
}

// ListTasks implements ProjectService.
func (m *Manager) ListTasks(ctx context.Context, req *projectv1.ListTasksRequest) (*projectv1.ListTasksResponse, error) {
	res := &projectv1.ListTasksResponse{}
	item := func(s object.Snapshot[taskState]) *projectv1.Task { return presentTask(s.Info, s.State) }
	o, whole := taskOptions(req.GetFilter())
	var err error
	if whole {
		res.Tasks, res.NextPageToken, err = rpc.List(ctx, m.o.Tasks, req, o, item)
	} else {
		fits := func(s taskState) bool { return fitsTask(req.GetFilter(), s) }
		res.Tasks, res.NextPageToken, err = rpc.ListMatching(ctx, m.o.Tasks, req, o, fits, item)
	}
	return res, err
}

// DeleteTask implements ProjectService.
func (m *Manager) DeleteTask(ctx context.Context, req *projectv1.DeleteTaskRequest) (*projectv1.DeleteTaskResponse, error) {
	return rpc.Delete(ctx, m.o.Tasks, req.GetTaskId(), req, func(existed bool, version int64) *projectv1.DeleteTaskResponse {
		return &projectv1.DeleteTaskResponse{Existed: existed, Version: version}
	})
}

// refuseTransition puts a rule's refusal into the caller's words.
func refuseTransition(err error) error {
	if e, ok := err.(notResumedError); ok { //nolint:errorlint // transition returns it as it is
		allowed := []string{succeeded.String(), cancelled.String(), failed.String(), expired.String()}
		if e.from == cancelled {
			allowed = allowed[1:2]
		}
		p := problem.IllegalTransition(e.from.String(), e.to.String(), allowed...)
		p.Message += "; or set resume_reason: a task that has ended goes on only if it is resumed"
		return p
	}
	return err
}
