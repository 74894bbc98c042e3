package project

import (
	"errors"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	projectv1 "holdfast/gen/holdfast/project/v1"
	storev1 "holdfast/gen/holdfast/store/project/v1"
)

func TestNormalise(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]struct {
		status storev1.TaskStatus
		reason string
	}{
		"PENDING": {queued, ""}, "ACTIVE": {running, ""}, "RUNNING": {running, ""}, "EVALUATION": {running, ""}, "PAUSED": {paused, ""},
		"COMPLETE": {succeeded, ""}, "COMPLETED": {succeeded, ""}, "completed": {succeeded, ""},
		"CANCELLED": {cancelled, ""}, "STOPPED": {cancelled, ""}, "ERROR": {failed, "error"}, "failed": {failed, "failed"},
		"TIMEOUT": {failed, "timeout"}, "MAX_ITERATIONS_REACHED": {failed, "max_iterations_reached"},
		"OUT_OF_TOKENS": {failed, "out_of_tokens"}, "": {unknown, ""}, "ARCHIVED": {unknown, ""}, "COMPLETE!": {unknown, ""},
		"canceled": {cancelled, ""}, "Cancelled": {cancelled, ""}, "CREATING": {queued, ""}, "FINISHED": {succeeded, ""}, "EXPIRED": {expired, ""},
		"in_progress": {running, ""}, "inProgress": {running, ""}, "in-progress": {running, ""},
		"waiting_for_user": {waiting, ""}, "AWAITING_PLAN_APPROVAL": {waiting, ""}, "awaitingInput": {waiting, ""}, "suspended": {paused, ""},
		"timed-out": {failed, "timed_out"}, "out_of_credits": {failed, "out_of_credits"}, "usage-limit-exceeded": {failed, "usage_limit_exceeded"}, "rejected": {failed, "rejected"},
		"input-required": {waiting, ""}, "auth-required": {waiting, ""}, "submitted": {queued, ""}, "canceling": {running, ""}, "stale": {paused, ""}, "applied": {succeeded, ""}, "ready": {unknown, ""}, "idle": {unknown, ""}, "exit": {unknown, ""}, "\tIN PROGRESS ": {running, ""}, //nolint:gocritic // blanks around it
	} {
		if status, reason := normalise(raw, false); status != want.status || reason != want.reason {
			t.Errorf("%q is %v %q, want %v %q", raw, status, reason, want.status, want.reason)
		}
	}
}

// A provider's word for having nothing to do is a success where there is something to show for it.
func TestIdleIsDoneWithSomethingToShow(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*storev1.TaskState{
		"a pull request": {PullRequests: []*storev1.PullRequest{{Url: "https://example.com/1"}}}, "a result": {Result: structpb.NewStringValue("done")},
		"a summary": {Summary: "done"}, "": {Title: "not done"},
	} {
		for _, word := range []string{"idle", "EXIT", "Ready"} {
			s := proto.CloneOf(s)
			if _, err := transition(s, &projectv1.Report{RawStatus: word}, time.Now()); err != nil || (s.GetStatus() == succeeded) != (name != "") {
				t.Errorf("%s with %q is %v, %v", word, name, s.GetStatus(), err)
			}
		}
	}
}

func TestTransition(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 23, 4, 0, 0, 0, time.UTC)
	type said struct {
		raw    string
		at     int // seconds after the start
		resume bool
		want   string // the status after it, or "refused"
		new    bool   // a transition is recorded
	}
	for name, words := range map[string][]said{
		"an ordinary run":             {{"PENDING", 0, false, "QUEUED", true}, {"ACTIVE", 1, false, "RUNNING", true}, {"COMPLETE", 2, false, "SUCCEEDED", true}},
		"the same word again":         {{"ACTIVE", 0, false, "RUNNING", true}, {"ACTIVE", 1, false, "RUNNING", false}},
		"another word for it":         {{"ACTIVE", 0, false, "RUNNING", true}, {"EVALUATION", 1, false, "RUNNING", true}},
		"an older word":               {{"COMPLETE", 5, false, "SUCCEEDED", true}, {"ACTIVE", 3, false, "SUCCEEDED", false}},
		"an older word with resume":   {{"COMPLETE", 5, false, "SUCCEEDED", true}, {"ACTIVE", 3, true, "SUCCEEDED", false}},
		"ended, and no resume":        {{"COMPLETE", 0, false, "SUCCEEDED", true}, {"ACTIVE", 1, false, "refused", false}},
		"ended, and an unknown word":  {{"COMPLETE", 0, false, "SUCCEEDED", true}, {"HIBERNATING", 1, false, "refused", false}},
		"ended, and ended otherwise":  {{"COMPLETE", 0, false, "SUCCEEDED", true}, {"ERROR", 1, false, "FAILED", true}},
		"resumed, and failed":         {{"COMPLETE", 0, false, "SUCCEEDED", true}, {"ACTIVE", 1, true, "RUNNING", true}, {"TIMEOUT", 2, false, "FAILED", true}},
		"cancelled, and completed":    {{"CANCELLED", 0, false, "CANCELLED", true}, {"COMPLETE", 1, false, "refused", false}},
		"cancelled, and failed":       {{"canceled", 0, false, "CANCELLED", true}, {"ERROR", 1, false, "refused", false}},
		"cancelled in both spellings": {{"canceled", 0, false, "CANCELLED", true}, {"CANCELLED", 1, false, "CANCELLED", true}},
		"cancelled, and resumed":      {{"CANCELLED", 0, false, "CANCELLED", true}, {"COMPLETE", 1, true, "SUCCEEDED", true}},
		"cancelled, and an old word":  {{"CANCELLED", 5, false, "CANCELLED", true}, {"COMPLETE", 3, false, "CANCELLED", false}},
		"waiting, and going on":       {{"RUNNING", 0, false, "RUNNING", true}, {"waiting_for_user", 1, false, "WAITING_FOR_INPUT", true}, {"RUNNING", 2, false, "RUNNING", true}},
		"expired":                     {{"RUNNING", 0, false, "RUNNING", true}, {"EXPIRED", 1, false, "EXPIRED", true}, {"RUNNING", 2, false, "refused", false}, {"RUNNING", 3, true, "RUNNING", true}},
		"resume where nothing ended":  {{"ACTIVE", 0, false, "RUNNING", true}, {"ACTIVE", 1, true, "RUNNING", false}},
		"unknown, then known":         {{"WARMING_UP", 0, false, "UNKNOWN", true}, {"ACTIVE", 1, false, "RUNNING", true}},
		"a word from the future":      {{"ACTIVE", 500, false, "RUNNING", true}, {"COMPLETE", 101, false, "SUCCEEDED", true}},
	} {
		s := &storev1.TaskState{}
		recorded := int32(0)
		for i, w := range words {
			from := s.GetStatus()
			now := start.Add(time.Duration(100+i) * time.Second)
			word := &projectv1.Report{RawStatus: w.raw, Source: "test", ObserveTime: timestamppb.New(start.Add(time.Duration(w.at) * time.Second))}
			if w.resume {
				word.ResumeReason = "try again"
			}
			got, err := transition(s, word, now)
			if refusal, ok := errors.AsType[notResumedError](err); ok != (w.want == "refused") || ok && refusal.from != from {
				t.Errorf("%s, word %d: %v", name, i, err)
			}
			if w.want != "refused" && s.GetStatus().String() != "TASK_STATUS_"+w.want {
				t.Errorf("%s: after word %d it is %v, want %s", name, i, s.GetStatus(), w.want)
			}
			if (got != nil) != w.new {
				t.Errorf("%s, word %d: the transition is %v", name, i, got)
			}
			if got == nil {
				continue
			}
			recorded++
			if got.GetSeq() != recorded || got.GetFromStatus() != from || got.GetRawStatus() != w.raw || (got.GetResumeReason() != "") != (w.resume && resumes(from, got.GetToStatus())) {
				t.Errorf("%s, word %d: %v", name, i, got)
			}
		}
		if s.GetTransitionCount() != recorded {
			t.Errorf("%s: %d transitions are counted, %d were recorded", name, s.GetTransitionCount(), recorded)
		}
	}
}

// One run is one task, with and without an id: of two sources one after the other, the second does not make another.
func TestOneRunIsOneTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, ada)
	put := func(id, provider, run, request string) (*projectv1.Task, error) {
		res, err := c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: id, RequestId: request, Task: &projectv1.Task{Provider: provider, RunId: run}})
		return res.GetTask(), err
	}
	first := must(put("", "x", "y/z", "r-1"))(t)
	for _, request := range []string{"r-1", "r-2", ""} {
		if again := must(put("", "x", "y/z", request))(t); again.GetTaskId() != first.GetTaskId() {
			t.Errorf("the request %q makes the task %s", request, again.GetTaskId())
		}
	}
	if other := must(put("", "x/y", "z", ""))(t); other.GetTaskId() == first.GetTaskId() {
		t.Error("another provider's run is the same task")
	}
	must(put("mine", "x", "7", ""))(t)
	must(put("mine", "x", "7", ""))(t)
	must(put("mine", "", "7", ""))(t)
	if again := must(put("", "x", "7", ""))(t); again.GetTaskId() != "mine" {
		t.Errorf("without an id it is %v", again)
	}
	_, err := put("another", "x", "7", "")
	refused(t, err, connect.CodeAlreadyExists, "ALREADY_EXISTS")
	must(put("another", "x", "8", ""))(t)
	_, err = put("another", "", "7", "")
	refused(t, err, connect.CodeAlreadyExists, "ALREADY_EXISTS")
	// Another user's private task is not seen.
	if res, err := b.as(t, "bob").PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "bobs", Task: &projectv1.Task{Provider: "x", RunId: "7"}}); err != nil {
		t.Errorf("%v, %v", res, err)
	}
	// A source clears nothing of what another wrote, and what a task waited for is over when it goes on.
	res := must(c.PutTask(ctx, &projectv1.PutTaskRequest{
		TaskId: "mine", Task: &projectv1.Task{Model: "m", NeedsInput: "question", Cost: &projectv1.Cost{Unit: "USD", Amount: 1.5}}, Report: &projectv1.Report{RawStatus: "waiting_for_user"},
	}))(t).GetTask()
	if res.GetNeedsInput() != "question" || res.GetCost().GetAmount() != 1.5 || res.GetRunId() != "7" || res.GetStatus() != projectv1.TaskStatus_TASK_STATUS_WAITING_FOR_INPUT {
		t.Errorf("%v", res)
	}
	res = must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "mine", Task: &projectv1.Task{Summary: "s"}, Report: &projectv1.Report{RawStatus: "RUNNING"}}))(t).GetTask()
	if res.GetNeedsInput() != "" || res.GetModel() != "m" || res.GetSummary() != "s" {
		t.Errorf("%v", res)
	}
}

// What a task is listed by, every list finds.
func TestTaskFiltersAreTerms(t *testing.T) {
	t.Parallel()
	s := &storev1.TaskState{ProjectId: "p", Provider: "codegen", RunId: "7", Issue: &storev1.IssueRef{Id: "i"}, Status: running}
	statuses := []projectv1.TaskStatus{projectv1.TaskStatus_TASK_STATUS_RUNNING}
	for name, f := range map[string]*projectv1.TaskFilter{
		"all": {}, "project": {ProjectId: "p"}, "status": {Statuses: statuses}, "open": {Open: true}, "run": {Provider: "codegen", RunId: "7"},
		"issue": {Issue: &projectv1.IssueRef{Id: "i"}}, "project and status": {ProjectId: "p", Statuses: statuses}, "project and open": {ProjectId: "p", Open: true},
		"every": {ProjectId: "p", Statuses: statuses, Open: true, RunId: "7", Issue: &projectv1.IssueRef{Id: "i"}},
	} {
		o, _ := taskOptions(f)
		for _, term := range append(o.Terms, o.AnyTerm...) {
			if !slices.Contains(taskTerms(s), term) {
				t.Errorf("%s: the filter %q is none of %q", name, term, taskTerms(s))
			}
		}
		if !fitsTask(f, s) {
			t.Errorf("%s does not fit", name)
		}
	}
	s.Status = failed
	want := []string{"status=failed", "project=p", "project=p/status=failed", "run=7", "issue=i"}
	if diff := cmp.Diff(want, taskTerms(s)); diff != "" {
		t.Error(diff)
	}
}
