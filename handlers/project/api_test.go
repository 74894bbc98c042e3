package project

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	linearv1 "holdfast/gen/holdfast/linear/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/object"
)

func TestProjects(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, ctx := b.as(t, ada), t.Context()
	repository := &projectv1.Repository{Provider: "github", Name: "acme/api", DefaultBranch: "main"}
	made := must(c.PutProject(ctx, &projectv1.PutProjectRequest{
		ProjectId: "api", Project: &projectv1.Project{Title: "API", Repository: repository, Labels: map[string]string{"team": "core"}},
	}))(t).GetProject()
	if made.GetOwner() != "ada" || made.GetVersion() != 1 || made.GetCreateTime() == nil || made.GetUpdateTime() == nil || made.GetExpireTime() != nil {
		t.Errorf("%v", made)
	}
	_, err := c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "api", IfVersion: new(int64)})
	refused(t, err, connect.CodeAborted, "VERSION_MISMATCH")
	_, err = c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "none", MustExist: true})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	updated := must(c.PutProject(ctx, &projectv1.PutProjectRequest{
		ProjectId: "api", Project: &projectv1.Project{Title: "The API", IssueSources: []*projectv1.IssueSource{{Provider: "linear", Type: "team", Id: "t1"}}},
		IfVersion: new(int64(1)),
	}))(t).GetProject()
	want := &projectv1.Project{
		ProjectId: "api", Owner: "ada", Version: 2, Title: "The API", Repository: repository, Labels: map[string]string{"team": "core"},
		IssueSources: []*projectv1.IssueSource{{Provider: "linear", Type: "team", Id: "t1"}},
	}
	times := protocmp.IgnoreFields(want, "create_time", "update_time")
	if diff := cmp.Diff(want, updated, protocmp.Transform(), times); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	_, err = c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "api", Project: &projectv1.Project{}, IfVersion: new(int64(1))})
	refused(t, err, connect.CodeAborted, "VERSION_MISMATCH")
	for _, path := range []string{"owner", "archive_time", "nothing", "settings.", "title.x"} {
		_, err = c.PutProject(ctx, &projectv1.PutProjectRequest{
			ProjectId: "api", Project: &projectv1.Project{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{path}},
		})
		refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	}
	// What was read can be sent back: it changes nothing, and makes no version.
	if again := must(c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "api", Project: updated}))(t).GetProject(); !proto.Equal(again, updated) {
		t.Errorf("sent back: %v", again)
	}
	must(c.PutProject(ctx, &projectv1.PutProjectRequest{
		ProjectId: "api", Project: &projectv1.Project{Labels: map[string]string{"tier": "1"}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels.tier", "issue_sources"}},
	}))(t)
	got := must(c.GetProject(ctx, &projectv1.GetProjectRequest{ProjectId: "api"}))(t).GetProject()
	if len(got.GetIssueSources()) != 0 || got.GetLabels()["tier"] != "1" || got.GetLabels()["team"] != "core" {
		t.Errorf("%v", got)
	}

	// A shared one is everybody's.
	must(c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "web", Shared: true, Project: &projectv1.Project{Labels: map[string]string{"team": "web"}}}))(t)
	eve := b.as(t, "eve")
	if got := must(eve.GetProject(ctx, &projectv1.GetProjectRequest{ProjectId: "web"}))(t); got.GetProject().GetOwner() != "" {
		t.Errorf("%v", got)
	}
	_, err = eve.GetProject(ctx, &projectv1.GetProjectRequest{ProjectId: "api"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	_, err = eve.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "api"})
	refused(t, err, connect.CodeAlreadyExists, "ALREADY_EXISTS")
	_, err = eve.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "api", MustExist: true})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")

	list := func(c client, f *projectv1.ProjectFilter) (ids []string) {
		t.Helper()
		for _, p := range must(c.ListProjects(ctx, &projectv1.ListProjectsRequest{Filter: f}))(t).GetProjects() {
			ids = append(ids, p.GetProjectId())
		}
		slices.Sort(ids)
		return ids
	}
	check := func(got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("listed: %v, want %v", got, want)
		}
	}
	check(list(c, nil), "api", "web")
	check(list(eve, nil), "web")
	check(list(c, &projectv1.ProjectFilter{Labels: map[string]string{"team": "core"}}), "api")
	archive := &projectv1.PutProjectRequest{ProjectId: "api", Project: &projectv1.Project{Archived: true}}
	archived := must(c.PutProject(ctx, archive))(t)
	if !archived.GetProject().GetArchived() || archived.GetProject().GetArchiveTime() == nil {
		t.Errorf("%v", archived)
	}
	if again := must(c.PutProject(ctx, archive))(t); !proto.Equal(again, archived) {
		t.Errorf("archived twice: %v", again)
	}
	check(list(c, nil), "web")
	check(list(c, &projectv1.ProjectFilter{Archived: true, Labels: map[string]string{"team": "core"}}), "api")
	must(c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "api", UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"archived"}}}))(t)
	check(list(c, nil), "api", "web")
	if got := must(c.DeleteProject(ctx, &projectv1.DeleteProjectRequest{ProjectId: "api", RequestId: "d"}))(t); !got.GetExisted() || got.GetVersion() < 6 {
		t.Errorf("deleted: %v", got)
	}
	if got := must(c.DeleteProject(ctx, &projectv1.DeleteProjectRequest{ProjectId: "api"}))(t); got.GetExisted() {
		t.Errorf("deleted twice: %v", got)
	}
	if got := must(eve.DeleteProject(ctx, &projectv1.DeleteProjectRequest{ProjectId: "api", IfVersion: new(int64)}))(t); got.GetExisted() {
		t.Errorf("what must not be there, and is not: %v", got)
	}
	_, err = c.DeleteProject(ctx, &projectv1.DeleteProjectRequest{ProjectId: "api", IfVersion: new(int64(6))})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	_, err = c.GetProject(ctx, &projectv1.GetProjectRequest{ProjectId: "api"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	_, err = c.ListProjects(ctx, &projectv1.ListProjectsRequest{PageToken: "nonsense"})
	refused(t, err, connect.CodeInvalidArgument, "PAGE_TOKEN_INVALID")
}

// Every change is made once however often it is sent, and a request id is of one request.
func TestRetries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, ada)
	must(c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "p"}))(t)
	must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "k"}))(t)
	for name, call := range map[string]func(other bool) (proto.Message, error){
		"PutProject": func(other bool) (proto.Message, error) {
			return c.PutProject(ctx, &projectv1.PutProjectRequest{Shared: other, RequestId: "r-create"})
		},
		"PutProject of one": func(other bool) (proto.Message, error) {
			return c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "p", Project: &projectv1.Project{Title: fmt.Sprint(other)}, RequestId: "r-1"})
		},
		"PutProject of the same": func(other bool) (proto.Message, error) {
			return c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "p", MustExist: other, RequestId: "r-2"})
		},
		"PutTask": func(other bool) (proto.Message, error) {
			return c.PutTask(ctx, &projectv1.PutTaskRequest{Task: &projectv1.Task{Title: fmt.Sprint(other)}, RequestId: "r-put"})
		},
		"PutTask with a report": func(other bool) (proto.Message, error) {
			return c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "k", Report: &projectv1.Report{RawStatus: fmt.Sprint("W", other)}, RequestId: "r-3"})
		},
		"UpdatePreferences": func(other bool) (proto.Message, error) {
			return c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: &projectv1.Preferences{Voice: new(fmt.Sprint(other))}, RequestId: "r-6"})
		},
	} {
		first := must(call(false))(t)
		if again := must(call(false))(t); !proto.Equal(again, first) {
			t.Errorf("%s: a retry is answered with\n%v, the first was\n%v", name, again, first)
		}
		_, err := call(true)
		refused(t, err, connect.CodeAlreadyExists, "REQUEST_ID_REUSED")
	}
}

// A task that finishes, is resumed and fails keeps its history.
func TestTaskHistory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, ada)
	report := func(r *projectv1.Report) (*projectv1.PutTaskResponse, error) {
		return c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "k", MustExist: true, Report: r})
	}
	_, err := report(&projectv1.Report{RawStatus: "ACTIVE"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	made := must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "k", Report: &projectv1.Report{RawStatus: "PENDING", Source: "api"}, Task: &projectv1.Task{
		Title: "Fix login", ProjectId: "api", Provider: "codegen", RunId: "71", Issue: &projectv1.IssueRef{Provider: "linear", Id: "i1", Identifier: "ENG-1"},
		RequestedBy: &typev1.MessageRef{ConversationId: "c1", Seq: 4}, Result: structpb.NewBoolValue(true),
		PullRequests: []*projectv1.PullRequest{{PullRequestId: "5", Url: "https://github.com/acme/api/pull/5"}},
	}}))(t)
	if made.GetTask().GetStatus() != projectv1.TaskStatus_TASK_STATUS_QUEUED || made.GetTask().GetRequestedBy().GetSeq() != 4 || made.GetTransition().GetSeq() != 1 {
		t.Errorf("%v", made)
	}
	for _, raw := range []string{"ACTIVE", "EVALUATION", "COMPLETE"} {
		must(report(&projectv1.Report{RawStatus: raw, Source: "poll"}))(t)
	}
	same := must(report(&projectv1.Report{RawStatus: "COMPLETE", Source: "poll"}))(t)
	if same.GetTransition() != nil || same.GetTask().GetVersion() != 4 {
		t.Errorf("what says nothing new: %v", same)
	}
	_, err = report(&projectv1.Report{RawStatus: "ACTIVE"})
	refused(t, err, connect.CodeFailedPrecondition, "ILLEGAL_TRANSITION")
	must(report(&projectv1.Report{
		RawStatus: "ACTIVE", Source: "user", ResumeReason: "the tests fail", ResumeRequestedBy: &typev1.MessageRef{ConversationId: "c1", Seq: 9},
	}))(t)
	last := must(report(&projectv1.Report{RawStatus: "MAX_ITERATIONS_REACHED", Source: "poll"}))(t)
	if got := last.GetTask(); got.GetStatus() != projectv1.TaskStatus_TASK_STATUS_FAILED || got.GetStatusReason() != "max_iterations_reached" || got.GetResumeCount() != 1 {
		t.Errorf("%v", got)
	}
	for _, size := range []int32{0, 1, 3, 6} {
		var history []string
		for token := ""; ; {
			page := must(c.GetTask(ctx, &projectv1.GetTaskRequest{TaskId: "k", PageToken: token, PageSize: size}))(t)
			for _, tr := range page.GetTransitions() {
				history = append(history, strings.TrimPrefix(tr.GetToStatus().String(), "TASK_STATUS_")+" "+tr.GetRawStatus()+" "+tr.GetSource()+tr.GetResumeReason())
			}
			if token = page.GetNextPageToken(); token == "" {
				break
			}
		}
		want := []string{
			"FAILED MAX_ITERATIONS_REACHED poll", "RUNNING ACTIVE userthe tests fail", "SUCCEEDED COMPLETE poll", "RUNNING EVALUATION poll",
			"RUNNING ACTIVE poll", "QUEUED PENDING api",
		}
		if diff := cmp.Diff(want, history); diff != "" {
			t.Errorf("the history in pages of %d (-want +got):\n%s", size, diff)
		}
	}
	if got := must(c.GetTask(ctx, &projectv1.GetTaskRequest{TaskId: "k", IfVersionNot: new(last.GetTask().GetVersion())}))(t); !got.GetNotModified() || got.GetTask() != nil {
		t.Errorf("%v", got)
	}
	const isFailed = projectv1.TaskStatus_TASK_STATUS_FAILED
	statuses := func(s ...projectv1.TaskStatus) []projectv1.TaskStatus { return s }
	for name, tt := range map[string]struct {
		filter *projectv1.TaskFilter
		want   int
	}{
		"all": {nil, 1}, "by project": {&projectv1.TaskFilter{ProjectId: "api"}, 1}, "by status": {&projectv1.TaskFilter{Statuses: statuses(isFailed)}, 1},
		"by statuses": {&projectv1.TaskFilter{Statuses: statuses(projectv1.TaskStatus_TASK_STATUS_PAUSED, isFailed)}, 1},
		"by both":     {&projectv1.TaskFilter{ProjectId: "api", Statuses: statuses(isFailed)}, 1},
		"by run":      {&projectv1.TaskFilter{Provider: "codegen", RunId: "71"}, 1}, "by provider": {&projectv1.TaskFilter{Provider: "codegen"}, 1},
		"by issue":      {&projectv1.TaskFilter{Issue: &projectv1.IssueRef{Provider: "linear", Id: "i1"}}, 1},
		"by identifier": {&projectv1.TaskFilter{Issue: &projectv1.IssueRef{Identifier: "ENG-1"}}, 1},
		"by all": {&projectv1.TaskFilter{
			ProjectId: "api", Statuses: statuses(isFailed), Provider: "codegen", RunId: "71", Issue: &projectv1.IssueRef{Id: "i1"},
		}, 1},
		"open": {&projectv1.TaskFilter{Open: true}, 0}, "open of the project": {&projectv1.TaskFilter{ProjectId: "api", Open: true}, 0},
		"failed and open": {&projectv1.TaskFilter{Statuses: statuses(isFailed), Open: true}, 0},
		"running":         {&projectv1.TaskFilter{Statuses: statuses(projectv1.TaskStatus_TASK_STATUS_RUNNING)}, 0},
		"another project": {&projectv1.TaskFilter{ProjectId: "web", RunId: "71"}, 0}, "another provider": {&projectv1.TaskFilter{Provider: "codegen/7", RunId: "1"}, 0},
		"another tracker": {&projectv1.TaskFilter{Issue: &projectv1.IssueRef{Provider: "jira", Id: "i1"}}, 0},
	} {
		if got := must(c.ListTasks(ctx, &projectv1.ListTasksRequest{Filter: tt.filter}))(t).GetTasks(); len(got) != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A poller and a webhook, each of which knows a part of a task, do not delete what the other knows.
func TestTwoSourcesShareATask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, nobody)
	put := func(task *projectv1.Task, report *projectv1.Report, mask ...string) *projectv1.Task {
		t.Helper()
		req := &projectv1.PutTaskRequest{TaskId: "codegen-71", Task: task, Report: report}
		if len(mask) > 0 {
			req.UpdateMask = &fieldmaskpb.FieldMask{Paths: mask}
		}
		return must(c.PutTask(ctx, req))(t).GetTask()
	}
	pulls := []*projectv1.PullRequest{{PullRequestId: "5"}}
	put(&projectv1.Task{Title: "Fix login", Provider: "codegen", RunId: "71", Metadata: must(structpb.NewStruct(map[string]any{"org": 1, "old": true}))(t)}, nil)
	put(&projectv1.Task{PullRequests: pulls, Issue: &projectv1.IssueRef{Provider: "linear", Id: "i1", Identifier: "ENG-1"}}, nil)
	got := put(&projectv1.Task{
		Summary: "It is done.", Metadata: must(structpb.NewStruct(map[string]any{"cost": 2, "old": nil}))(t), Issue: &projectv1.IssueRef{Provider: "linear", Id: "i2"},
	}, &projectv1.Report{RawStatus: "COMPLETE", Source: "poll"})
	want := &projectv1.Task{
		TaskId: "codegen-71", Version: 3, Title: "Fix login", Provider: "codegen", RunId: "71", Status: projectv1.TaskStatus_TASK_STATUS_SUCCEEDED, RawStatus: "COMPLETE",
		PullRequests: pulls, Summary: "It is done.", Metadata: must(structpb.NewStruct(map[string]any{"org": 1, "cost": 2}))(t),
		Issue: &projectv1.IssueRef{Provider: "linear", Id: "i2"}, // of one piece: the other issue's identifier is not left behind
	}
	times := protocmp.IgnoreFields(want, "create_time", "update_time", "status_time")
	if diff := cmp.Diff(want, got, protocmp.Transform(), times); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// The same once more, as pollers do, makes no version.
	if again := put(&projectv1.Task{Summary: "It is done."}, &projectv1.Report{RawStatus: "COMPLETE", Source: "poll"}); again.GetVersion() != 3 {
		t.Errorf("a poll without news: %v", again)
	}
	// Only a mask clears.
	if got := put(&projectv1.Task{Summary: "x"}, nil, "pull_requests", "metadata.cost"); len(got.GetPullRequests()) != 0 || got.GetSummary() != "It is done." || len(got.GetMetadata().GetFields()) != 1 {
		t.Errorf("%v", got)
	}
}

// A provider whose words the server does not know says what they mean.
func TestReportsOfOtherProviders(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, ada)
	for name, tt := range map[string]struct {
		report *projectv1.Report
		want   string
	}{
		"its own word":           {&projectv1.Report{RawStatus: "merged", Status: projectv1.TaskStatus_TASK_STATUS_SUCCEEDED}, "SUCCEEDED merged "},
		"no word":                {&projectv1.Report{Status: projectv1.TaskStatus_TASK_STATUS_PAUSED}, "PAUSED  "},
		"a word that is known":   {&projectv1.Report{RawStatus: "TIMEOUT"}, "FAILED TIMEOUT timeout"},
		"a word means nothing":   {&projectv1.Report{RawStatus: "merged"}, "UNKNOWN merged "},
		"its meaning goes first": {&projectv1.Report{RawStatus: "TIMEOUT", Status: projectv1.TaskStatus_TASK_STATUS_RUNNING}, "RUNNING TIMEOUT "},
		"no report":              {nil, "QUEUED PENDING "},
	} {
		got := must(c.PutTask(ctx, &projectv1.PutTaskRequest{Report: tt.report}))(t).GetTask()
		if is := strings.TrimPrefix(got.GetStatus().String(), "TASK_STATUS_") + " " + got.GetRawStatus() + " " + got.GetStatusReason(); is != tt.want {
			t.Errorf("%s: %q, want %q", name, is, tt.want)
		}
	}
	for name, req := range map[string]*projectv1.PutTaskRequest{
		"an empty report":    {Report: &projectv1.Report{Source: "poll"}},
		"no such status":     {Report: &projectv1.Report{Status: 99}},
		"too large a result": {Task: &projectv1.Task{Result: structpb.NewStringValue(strings.Repeat("x", maxResult))}},
	} {
		_, err := c.PutTask(ctx, req)
		if err == nil {
			t.Errorf("%s was taken", name)
			continue
		}
		refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	}
}

func TestPreferences(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c, service := t.Context(), b.as(t, ada), b.as(t, nobody)
	extra := func(m map[string]any) *structpb.Struct { return must(structpb.NewStruct(m))(t) }
	must(service.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{TenantDefaults: true, Preferences: &projectv1.Preferences{
		Voice: new("Aoede"), Language: new("en-GB"), Extra: extra(map[string]any{"a": "tenant", "b": "tenant"}),
	}}))(t)
	must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: &projectv1.Preferences{
		Voice: new("Puck"), Notifications: projectv1.NotificationLevel_NOTIFICATION_LEVEL_NONE, Extra: extra(map[string]any{"a": "ada"}),
	}}))(t)
	got := must(c.GetPreferences(ctx, &projectv1.GetPreferencesRequest{}))(t)
	want := &projectv1.Preferences{
		Voice: new("Puck"), Language: new("en-GB"), Notifications: projectv1.NotificationLevel_NOTIFICATION_LEVEL_NONE,
		Extra: extra(map[string]any{"a": "ada", "b": "tenant"}),
	}
	if diff := cmp.Diff(want, got.GetEffective(), protocmp.Transform()); diff != "" {
		t.Errorf("in force (-want +got):\n%s", diff)
	}
	if got.GetOwn().GetVersion() != 1 || got.GetTenant().GetVersion() != 1 || got.GetTenant().GetVoice() != "Aoede" {
		t.Errorf("%v", got)
	}
	same := must(c.GetPreferences(ctx, &projectv1.GetPreferencesRequest{IfEtagNot: got.GetEtag()}))(t)
	if !same.GetNotModified() || same.GetEffective() != nil {
		t.Errorf("%v", same)
	}
	// A named field without a value falls back; what is not named stays.
	updated := must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{
		Preferences: &projectv1.Preferences{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"voice"}}, IfVersion: new(got.GetOwn().GetVersion()),
	}))(t)
	got = must(c.GetPreferences(ctx, &projectv1.GetPreferencesRequest{IfEtagNot: got.GetEtag()}))(t)
	if p := got.GetEffective(); p.GetVoice() != "Aoede" || p.GetExtra().GetFields()["a"].GetStringValue() != "ada" || got.GetNotModified() {
		t.Errorf("%v", got)
	}
	if diff := cmp.Diff(updated.GetPreferences(), got.GetOwn(), protocmp.Transform()); diff != "" {
		t.Errorf("(-answered +read):\n%s", diff)
	}
	for name, p := range map[string]*projectv1.Preferences{
		"a long voice": {Voice: new(strings.Repeat("x", 129))}, "no language": {Language: new("en GB")},
		"much else": {Extra: extra(map[string]any{"a": strings.Repeat("x", maxExtra)})},
	} {
		_, err := c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: p})
		if err == nil {
			t.Errorf("%s was taken", name)
			continue
		}
		refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	}
	active := &projectv1.UpdatePreferencesRequest{Preferences: &projectv1.Preferences{ActiveProjectId: new("none")}}
	_, err := c.UpdatePreferences(ctx, active)
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	_, err = service.UpdatePreferences(ctx, active)
	refused(t, err, connect.CodeFailedPrecondition, "USER_REQUIRED")
	active.TenantDefaults = true
	_, err = service.UpdatePreferences(ctx, active)
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
}

// linearIssue is an issue as Linear's API answers it.
func linearIssue(id, title, updated, stateType, team string) *structpb.Struct {
	s, err := structpb.NewStruct(map[string]any{
		"id": id, "identifier": "ENG-" + id, "title": title, "updatedAt": updated, "state": map[string]any{"id": "s", "name": "S", "type": stateType},
		"team": map[string]any{"id": team, "key": "ENG"},
	})
	if err != nil {
		panic(err)
	}
	return s
}

// linearAt is the issues' beginning of time.
var linearAt = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)

// active is the request that sets what the caller works on.
func active(project string) *projectv1.UpdatePreferencesRequest {
	return &projectv1.UpdatePreferencesRequest{Preferences: &projectv1.Preferences{ActiveProjectId: &project}}
}

// team is the issues of teams.
func team(ids ...string) (sources []*projectv1.IssueSource) {
	for _, id := range ids {
		sources = append(sources, &projectv1.IssueSource{Provider: "linear", Type: "team", Id: id})
	}
	return sources
}

// A user signs in on a new device, which another server answers, and gets the same context.
func TestContextOnANewDevice(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, ada)
	for _, id := range []string{"api", "web"} {
		must(c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: id, Project: &projectv1.Project{Title: "Project " + id, IssueSources: team("t-" + id)}}))(t)
		for _, raw := range []string{"PENDING", "ACTIVE", "COMPLETE"} {
			must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: id + "-" + raw, Report: &projectv1.Report{RawStatus: raw}, Task: &projectv1.Task{ProjectId: id, Title: raw}}))(t)
		}
		b.put(t,
			linearIssue("1-"+id, "open", "2026-11-23T00:00:00Z", "started", "t-"+id), linearIssue("2-"+id, "done", "2026-11-23T00:00:00Z", "completed", "t-"+id),
		)
		must(b.talk(t, ada).CreateConversation(ctx, &conversationv1.CreateConversationRequest{ConversationId: "c-" + id, Conversation: &conversationv1.Conversation{ProjectId: id, Title: "About " + id}}))(t)
	}
	b.summarise(t, ada, "c-api", "We agreed on cookies.")
	must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: &projectv1.Preferences{Voice: new("Puck")}}))(t)
	must(c.UpdatePreferences(ctx, active("api")))(t)

	here := must(c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{}))(t).GetContext()
	there := must(b.another(t).as(t, ada).GetProjectContext(ctx, &projectv1.GetProjectContextRequest{}))(t).GetContext()
	if diff := cmp.Diff(here, there, protocmp.Transform()); diff != "" {
		t.Errorf("the new device has another context (-here +there):\n%s", diff)
	}
	if p := here.GetProject(); p.GetTitle() != "Project api" {
		t.Errorf("the project is %v", p)
	}
	var tasks, issues []string
	for _, k := range here.GetTasks() {
		tasks = append(tasks, k.GetTaskId())
	}
	for _, i := range here.GetIssues() {
		issues = append(issues, i.GetIssueId())
	}
	slices.Sort(tasks)
	if diff := cmp.Diff([]string{"api-ACTIVE", "api-PENDING"}, tasks); diff != "" {
		t.Errorf("tasks: %s", diff)
	}
	if diff := cmp.Diff([]string{"1-api"}, issues); diff != "" {
		t.Errorf("issues: %s", diff)
	}
	if l := here.GetLastConversation(); l.GetConversationId() != "c-api" || l.GetSummary() != "We agreed on cookies." {
		t.Errorf("the last conversation is %v", l)
	}
	if here.GetPreferences().GetVoice() != "Puck" || here.GetTokenEstimate() < 30 || here.GetTokenEstimate() > 500 {
		t.Errorf("%v", here)
	}

	// It is not sent again until something in it has changed, whatever that is.
	etag := here.GetEtag()
	for _, step := range []struct {
		name   string
		change func()
	}{
		{"a task ends", func() {
			must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "api-ACTIVE", Report: &projectv1.Report{RawStatus: "COMPLETE"}}))(t)
		}},
		{"an issue is done", func() {
			b.put(t, linearIssue("1-api", "open", "2026-11-24T00:00:00Z", "completed", "t-api"))
		}},
		{"an API is paused", func() {
			b.api(t, func(s *storev1.ApiState) { s.PauseUntil = timestamppb.New(linearAt) })
		}},
		{"a preference", func() {
			must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: &projectv1.Preferences{Voice: new("Kore")}}))(t)
		}},
		{"the project", func() {
			must(c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: "api", Project: &projectv1.Project{Title: "x"}}))(t)
		}},
		{"the conversation", func() { b.summarise(t, ada, "c-api", "And on tokens.") }},
		{"the active project", func() { must(c.UpdatePreferences(ctx, active("web")))(t) }},
		{"the tenant's default", func() {
			must(b.as(t, nobody).UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{TenantDefaults: true, Preferences: &projectv1.Preferences{Model: new("m")}}))(t)
		}},
	} {
		same := must(c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{IfEtagNot: etag}))(t)
		if !same.GetNotModified() || same.GetContext() != nil {
			t.Errorf("before %s: %v", step.name, same)
		}
		step.change()
		now := must(c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{IfEtagNot: etag}))(t)
		if now.GetNotModified() || now.GetContext().GetEtag() == etag {
			t.Errorf("after %s: %v", step.name, now)
		}
		etag = now.GetContext().GetEtag()
	}
}

// A context's lists are those of the project that it has, also on a server whose cache has another one.
func TestContextIsOfOneMoment(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, other := b.as(t, ada), b.another(t).as(t, ada)
	for _, id := range []string{"api", "web"} {
		must(c.PutProject(t.Context(), &projectv1.PutProjectRequest{ProjectId: id, Project: &projectv1.Project{Title: id, IssueSources: team("t-" + id)}}))(t)
		must(c.PutTask(t.Context(), &projectv1.PutTaskRequest{TaskId: id, Report: &projectv1.Report{RawStatus: "PENDING"}, Task: &projectv1.Task{ProjectId: id, Title: id}}))(t)
		b.put(t,
			linearIssue(id, "open", "2026-11-23T00:00:00Z", "started", "t-"+id),
		)
	}
	must(c.UpdatePreferences(t.Context(), active("api")))(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			id := []string{"web", "api"}[i%2]
			_, err := c.UpdatePreferences(ctx, active(id))
			if err == nil {
				_, err = c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: id, Project: &projectv1.Project{Title: id, IssueSources: team([]string{"none", "t-" + id}[i/2%2:]...)}})
			}
			if ctx.Err() != nil {
				done <- nil
				return
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for range 100 {
		got := must(other.GetProjectContext(t.Context(), &projectv1.GetProjectContextRequest{}))(t).GetContext()
		id := got.GetProject().GetProjectId()
		if len(got.GetTasks()) != 1 || got.GetTasks()[0].GetTaskId() != id || len(got.GetIssues()) != 1 || got.GetIssues()[0].GetIssueId() != id {
			t.Fatalf("the context of %s has the tasks %v and the issues %v", id, got.GetTasks(), got.GetIssues())
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What nobody is shown makes no new context: an API changes with each call of it.
func TestContextOfABusyAPI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, ada)
	retry := timestamppb.New(linearAt.Add(time.Hour))
	b.api(t, func(s *storev1.ApiState) {
		s.Breaker = &storev1.Breaker{Status: storev1.BreakerStatus_BREAKER_STATUS_OPEN, RetryTime: retry}
		s.PauseUntil = timestamppb.New(linearAt)
	})
	got := must(c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{}))(t).GetContext()
	want := []*projectv1.ApiBrief{{Api: "linear", Breaker: "open", RetryTime: retry}}
	if diff := cmp.Diff(want, got.GetApis(), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	b.api(t, func(s *storev1.ApiState) { s.LastSeq++ })
	if again := must(c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{IfEtagNot: got.GetEtag()}))(t); !again.GetNotModified() {
		t.Errorf("%v", again)
	}
}

// api changes the standing of the API "linear".
func (b *bundle) api(t *testing.T, change func(*storev1.ApiState)) {
	t.Helper()
	_, err := b.apis.Update(b.AsService(t), "linear", func(tx *object.Tx[*storev1.ApiState]) error {
		change(tx.State())
		return nil
	}, object.Upsert())
	if err != nil {
		t.Fatal(err)
	}
}

// Which project a context is about: the one named, the active one, the user's default, the tenant's, none.
func TestContextsProject(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c, service := t.Context(), b.as(t, ada), b.as(t, nobody)
	for _, id := range []string{"named", "active", "own", "tenant"} {
		must(service.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: id}))(t)
	}
	must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "k", Task: &projectv1.Task{}}))(t)
	about := func(c client, req *projectv1.GetProjectContextRequest, want string) {
		t.Helper()
		got := must(c.GetProjectContext(ctx, req))(t).GetContext()
		if got.GetProject().GetProjectId() != want {
			t.Errorf("it is about %v, want %q", got.GetProject(), want)
		}
		if (len(got.GetTasks()) == 1) != (want == "" && c != service) {
			t.Errorf("about %q, and the tasks are %v", want, got.GetTasks())
		}
	}
	about(c, &projectv1.GetProjectContextRequest{}, "")
	defaults := func(c client, id string, tenant bool) {
		t.Helper()
		must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{TenantDefaults: tenant, Preferences: &projectv1.Preferences{DefaultProjectId: new(id)}}))(t)
	}
	defaults(service, "tenant", true)
	about(c, &projectv1.GetProjectContextRequest{}, "tenant")
	about(service, &projectv1.GetProjectContextRequest{}, "tenant")
	defaults(c, "own", false)
	about(c, &projectv1.GetProjectContextRequest{}, "own")
	must(c.UpdatePreferences(ctx, active("active")))(t)
	about(c, &projectv1.GetProjectContextRequest{}, "active")
	about(c, &projectv1.GetProjectContextRequest{ProjectId: "named"}, "named")
	_, err := c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{ProjectId: "none"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
}

// A page sees a project, its tasks, and lists of both, until they are gone.
func TestWatchProjectsAndTasks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.as(t, ada)
	must(c.PutProject(t.Context(), &projectv1.PutProjectRequest{ProjectId: "p", Project: &projectv1.Project{Title: "one"}}))(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watching := b.watch(t, ada)
	stream := must(watching.Watch(ctx, &watchv1.WatchRequest{Items: []*watchv1.Item{
		{ItemId: "p", Of: &watchv1.Item_ProjectId{ProjectId: "p"}},
		{ItemId: "t", Of: &watchv1.Item_TaskId{TaskId: "t"}},
		{ItemId: "tasks", Of: &watchv1.Item_List{List: &watchv1.ListItem{Of: &watchv1.ListItem_Tasks{Tasks: &projectv1.TaskFilter{ProjectId: "p"}}}}},
		{ItemId: "projects", Of: &watchv1.Item_List{List: &watchv1.ListItem{Of: &watchv1.ListItem_Projects{}}}},
		{ItemId: "preferences", Of: &watchv1.Item_Preferences{Preferences: true}},
	}}))(t)
	defer stream.Close()
	has := map[string]map[string]string{} // the titles of the things of each item
	until := func(item, want string) {
		t.Helper()
		for fmt.Sprint(has[item]) != want {
			if !stream.Receive() {
				t.Fatalf("%s is %v, want %s; the stream ended with %v", item, has, want, stream.Err())
			}
			m := stream.Msg()
			c := m.GetChanged()
			if has[m.GetItemId()] == nil || c.GetReset_() {
				has[m.GetItemId()] = map[string]string{}
			}
			for _, thing := range c.GetPut() {
				has[m.GetItemId()][thing.GetKey()] = thing.GetProject().GetTitle() + thing.GetTask().GetTitle() + thing.GetPreferences().GetActiveProjectId()
			}
			for _, key := range c.GetRemoved() {
				delete(has[m.GetItemId()], key)
			}
		}
	}
	until("p", "map[project:one]")
	until("projects", "map[projects/p:one]")
	must(c.PutProject(t.Context(), &projectv1.PutProjectRequest{ProjectId: "p", Project: &projectv1.Project{Title: "two"}}))(t)
	until("preferences", "map[preferences:]")
	must(c.UpdatePreferences(t.Context(), &projectv1.UpdatePreferencesRequest{Preferences: &projectv1.Preferences{ActiveProjectId: new("p")}}))(t)
	until("preferences", "map[preferences:p]")
	until("p", "map[project:two]")
	until("projects", "map[projects/p:two]")
	until("t", "map[]")
	must(c.PutTask(t.Context(), &projectv1.PutTaskRequest{TaskId: "t", Task: &projectv1.Task{Title: "do", ProjectId: "p"}, Report: &projectv1.Report{RawStatus: "PENDING"}}))(t)
	must(c.PutTask(t.Context(), &projectv1.PutTaskRequest{TaskId: "another", Task: &projectv1.Task{Title: "do", ProjectId: "q"}, Report: &projectv1.Report{RawStatus: "PENDING"}}))(t)
	until("t", "map[task:do]")
	until("tasks", "map[tasks/t:do]")
	must(c.DeleteTask(t.Context(), &projectv1.DeleteTaskRequest{TaskId: "t"}))(t)
	until("t", "map[]")
	until("tasks", "map[]")
	must(c.DeleteProject(t.Context(), &projectv1.DeleteProjectRequest{ProjectId: "p"}))(t)
	until("p", "map[]")
	until("projects", "map[]")
}

// The context shows an issue with the changes on top that Linear has not confirmed, as lists of issues do.
func TestTheContextShowsLocalChanges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service := b.linear(t)
	must(service.PutEndpoint(t.Context(), &linearv1.PutEndpointRequest{Endpoint: &linearv1.Endpoint{Title: "mine"}, SetApiKey: "k"}))(t)
	b.put(t, linearIssue("i1", "first", "2026-11-23T00:00:00Z", "started", "eng"))
	must(b.as(t, ada).PutProject(t.Context(), &projectv1.PutProjectRequest{ProjectId: "p", Project: &projectv1.Project{Title: "p", IssueSources: team("eng")}}))(t)
	must(service.UpdateIssue(t.Context(), &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: &linearv1.IssueEdit{Title: "second"}}))(t)
	got := must(b.as(t, ada).GetProjectContext(t.Context(), &projectv1.GetProjectContextRequest{ProjectId: "p"}))(t).GetContext().GetIssues()
	if len(got) != 1 || got[0].GetTitle() != "second" || len(got[0].GetLocalChanges()) != 1 {
		t.Errorf("%v", got)
	}
}
