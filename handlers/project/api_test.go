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
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
	storev1 "holdfast/gen/holdfast/store/project/v1"
	"holdfast/object"
)

func TestProjects(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, ctx := b.as(t, ada), t.Context()
	repository := &storev1.Repository{Provider: "github", Name: "acme/api", DefaultBranch: "main"}
	made := must(c.CreateProject(ctx, &projectv1.CreateProjectRequest{
		ProjectId: "api", Project: &projectv1.Project{Title: "API", Repository: repository, Labels: map[string]string{"team": "core"}},
	}))(t)
	if made.GetProject().GetOwner() != "ada" || made.GetMetadata().GetVersion() != 1 {
		t.Errorf("%v", made)
	}
	_, err := c.CreateProject(ctx, &projectv1.CreateProjectRequest{ProjectId: "api"})
	refused(t, err, connect.CodeAlreadyExists, "ALREADY_EXISTS")
	updated := must(c.UpdateProject(ctx, &projectv1.UpdateProjectRequest{
		ProjectId: "api", Project: &projectv1.Project{Title: "The API", LinearTeamIds: []string{"t1"}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"title", "linear_team_ids"}}, IfVersion: 1,
	}))(t)
	want := &projectv1.Project{
		ProjectId: "api", Owner: "ada", Title: "The API", Repository: repository, Labels: map[string]string{"team": "core"}, LinearTeamIds: []string{"t1"},
	}
	if diff := cmp.Diff(want, updated.GetProject(), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	_, err = c.UpdateProject(ctx, &projectv1.UpdateProjectRequest{ProjectId: "api", Project: &projectv1.Project{}, IfVersion: 1})
	refused(t, err, connect.CodeAborted, "VERSION_MISMATCH")
	_, err = c.UpdateProject(ctx, &projectv1.UpdateProjectRequest{
		ProjectId: "api", Project: &projectv1.Project{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"owner"}},
	})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")

	// A shared one is everybody's.
	must(c.CreateProject(ctx, &projectv1.CreateProjectRequest{ProjectId: "web", Shared: true, Project: &projectv1.Project{Labels: map[string]string{"team": "web"}}}))(t)
	eve := b.as(t, "eve")
	if got := must(eve.GetProject(ctx, &projectv1.GetProjectRequest{ProjectId: "web"}))(t); got.GetProject().GetOwner() != "" {
		t.Errorf("%v", got)
	}
	_, err = eve.GetProject(ctx, &projectv1.GetProjectRequest{ProjectId: "api"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")

	list := func(c client, req *projectv1.ListProjectsRequest) (ids []string) {
		t.Helper()
		for _, p := range must(c.ListProjects(ctx, req))(t).GetProjects() {
			ids = append(ids, p.GetProject().GetProjectId())
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
	check(list(c, &projectv1.ListProjectsRequest{}), "api", "web")
	check(list(eve, &projectv1.ListProjectsRequest{}), "web")
	check(list(c, &projectv1.ListProjectsRequest{Labels: map[string]string{"team": "core"}}), "api")
	archived := must(c.ArchiveProject(ctx, &projectv1.ArchiveProjectRequest{ProjectId: "api"}))(t)
	if archived.GetProject().GetArchiveTime() == nil {
		t.Errorf("%v", archived)
	}
	if again := must(c.ArchiveProject(ctx, &projectv1.ArchiveProjectRequest{ProjectId: "api"}))(t); !proto.Equal(again, archived) {
		t.Errorf("archived twice: %v", again)
	}
	check(list(c, &projectv1.ListProjectsRequest{}), "web")
	check(list(c, &projectv1.ListProjectsRequest{Archived: true, Labels: map[string]string{"team": "core"}}), "api")
	must(c.ArchiveProject(ctx, &projectv1.ArchiveProjectRequest{ProjectId: "api", Restore: true}))(t)
	check(list(c, &projectv1.ListProjectsRequest{}), "api", "web")
	must(c.DeleteProject(ctx, &projectv1.DeleteProjectRequest{ProjectId: "api"}))(t)
	_, err = c.GetProject(ctx, &projectv1.GetProjectRequest{ProjectId: "api"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	_, err = c.ListProjects(ctx, &projectv1.ListProjectsRequest{PageToken: "nonsense"})
	refused(t, err, connect.CodeInvalidArgument, "PAGE_TOKEN_INVALID")
}

// Every change is made once however often it is sent, and a request id is of one request.
func TestRetries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c, service := t.Context(), b.as(t, ada), b.as(t, nobody)
	issue := must(structpb.NewStruct(map[string]any{"id": "i1", "title": "t", "updatedAt": "2026-11-23T00:00:00Z"}))(t)
	other := must(structpb.NewStruct(map[string]any{"id": "i1", "title": "other", "updatedAt": "2026-11-23T00:00:00Z"}))(t)
	must(c.CreateProject(ctx, &projectv1.CreateProjectRequest{ProjectId: "p"}))(t)
	must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "k", Task: &projectv1.Task{}}))(t)
	endpoint := must(service.CreateLinearEndpoint(ctx, &projectv1.CreateLinearEndpointRequest{}))(t).GetEndpoint().GetEndpointId()
	for name, call := range map[string]func(other bool) (proto.Message, error){
		"CreateProject": func(other bool) (proto.Message, error) {
			return c.CreateProject(ctx, &projectv1.CreateProjectRequest{Shared: other, RequestId: "r-create"})
		},
		"UpdateProject": func(other bool) (proto.Message, error) {
			return c.UpdateProject(ctx, &projectv1.UpdateProjectRequest{ProjectId: "p", Project: &projectv1.Project{Title: fmt.Sprint(other)}, RequestId: "r-1"})
		},
		"ArchiveProject": func(other bool) (proto.Message, error) {
			return c.ArchiveProject(ctx, &projectv1.ArchiveProjectRequest{ProjectId: "p", Restore: other, RequestId: "r-2"})
		},
		"PutTask": func(other bool) (proto.Message, error) {
			return c.PutTask(ctx, &projectv1.PutTaskRequest{Task: &projectv1.Task{Title: fmt.Sprint(other)}, RequestId: "r-put"})
		},
		"UpdateTaskStatus": func(other bool) (proto.Message, error) {
			return c.UpdateTaskStatus(ctx, &projectv1.UpdateTaskStatusRequest{TaskId: "k", RawStatus: fmt.Sprint("W", other), RequestId: "r-3"})
		},
		"UpsertIssues": func(o bool) (proto.Message, error) {
			req := &projectv1.UpsertIssuesRequest{Issues: []*structpb.Struct{issue}, RequestId: "r-4"}
			if o {
				req.Issues[0] = other
			}
			return service.UpsertIssues(ctx, req)
		},
		"SetActiveProject": func(other bool) (proto.Message, error) {
			req := &projectv1.SetActiveProjectRequest{ProjectId: "p", RequestId: "r-5"}
			if other {
				req.ProjectId = ""
			}
			return c.SetActiveProject(ctx, req)
		},
		"UpdatePreferences": func(other bool) (proto.Message, error) {
			return c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: &storev1.Preferences{Voice: new(fmt.Sprint(other))}, RequestId: "r-6"})
		},
		"CreateLinearEndpoint": func(other bool) (proto.Message, error) {
			return service.CreateLinearEndpoint(ctx, &projectv1.CreateLinearEndpointRequest{Secret: fmt.Sprint(other), RequestId: "r-endpoint"})
		},
		"UpdateLinearEndpoint": func(other bool) (proto.Message, error) {
			return service.UpdateLinearEndpoint(ctx, &projectv1.UpdateLinearEndpointRequest{EndpointId: endpoint, AddSecret: fmt.Sprint(other), RequestId: "r-7"})
		},
	} {
		first := must(call(false))(t)
		if again := must(call(false))(t); !proto.Equal(again, first) {
			t.Errorf("%s: a retry is answered with\n%v, the first was\n%v", name, again, first)
		}
		if _, err := call(true); name != "SetActiveProject" || err == nil {
			refused(t, err, connect.CodeAlreadyExists, "REQUEST_ID_REUSED")
		}
	}
}

// A task that finishes, is resumed and fails keeps its history.
func TestTaskHistory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, ada)
	link := &storev1.MessageLink{ConversationId: "c1", Seq: 4}
	made := must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "k", RawStatus: "PENDING", Source: "api", Task: &projectv1.Task{
		Title: "Fix login", ProjectId: "api", Provider: "codegen", RunId: "71", LinearIssueId: "i1", RequestedBy: link,
		PullRequests: []*storev1.PullRequest{{PullRequestId: "5", Url: "https://github.com/acme/api/pull/5"}},
	}}))(t)
	if made.GetTask().GetStatus() != queued || made.GetTask().GetRequestedBy().GetSeq() != 4 {
		t.Errorf("%v", made)
	}
	for _, raw := range []string{"ACTIVE", "EVALUATION", "COMPLETE"} {
		must(c.UpdateTaskStatus(ctx, &projectv1.UpdateTaskStatusRequest{TaskId: "k", RawStatus: raw, Source: "poll"}))(t)
	}
	_, err := c.UpdateTaskStatus(ctx, &projectv1.UpdateTaskStatusRequest{TaskId: "k", RawStatus: "ACTIVE"})
	refused(t, err, connect.CodeFailedPrecondition, "ILLEGAL_TRANSITION")
	resume := &storev1.TaskResume{Prompt: "the tests fail", RequestedBy: &storev1.MessageLink{ConversationId: "c1", Seq: 9}}
	must(c.UpdateTaskStatus(ctx, &projectv1.UpdateTaskStatusRequest{TaskId: "k", RawStatus: "ACTIVE", Source: "user", Resume: resume}))(t)
	last := must(c.UpdateTaskStatus(ctx, &projectv1.UpdateTaskStatusRequest{TaskId: "k", RawStatus: "MAX_ITERATIONS_REACHED", Source: "poll"}))(t)
	if got := last.GetTask(); got.GetStatus() != failed || got.GetStatusReason() != "max_iterations_reached" || got.GetResumeCount() != 1 {
		t.Errorf("%v", got)
	}
	var history []string
	for after := int64(0); ; {
		page := must(c.ListTaskTransitions(ctx, &projectv1.ListTaskTransitionsRequest{TaskId: "k", AfterSeq: after, PageSize: 4}))(t)
		for _, tr := range page.GetTransitions() {
			after = tr.GetSeq()
			history = append(history, strings.TrimPrefix(tr.GetToStatus().String(), "TASK_STATUS_")+" "+tr.GetRawStatus()+" "+tr.GetSource()+tr.GetResume().GetPrompt())
		}
		if !page.GetHasMore() {
			break
		}
	}
	want := []string{
		"QUEUED PENDING api", "RUNNING ACTIVE poll", "RUNNING EVALUATION poll", "SUCCEEDED COMPLETE poll",
		"RUNNING ACTIVE userthe tests fail", "FAILED MAX_ITERATIONS_REACHED poll",
	}
	if diff := cmp.Diff(want, history); diff != "" {
		t.Errorf("the history (-want +got):\n%s", diff)
	}
	if got := must(c.GetTask(ctx, &projectv1.GetTaskRequest{TaskId: "k", TransitionLimit: 2}))(t); len(got.GetTransitions()) != 2 || got.GetTransitions()[1].GetSeq() != 6 {
		t.Errorf("%v", got)
	}
	for name, req := range map[string]*projectv1.ListTasksRequest{
		"by project": {ProjectId: "api"}, "by status": {Status: failed}, "by both": {ProjectId: "api", Status: failed},
		"by run": {Run: "codegen/71"}, "by issue": {LinearIssueId: "i1"}, "all": {},
	} {
		if got := must(c.ListTasks(ctx, req))(t).GetTasks(); len(got) != 1 {
			t.Errorf("%s: %v", name, got)
		}
	}
	for name, req := range map[string]*projectv1.ListTasksRequest{
		"open": {OpenOnly: true}, "open of the project": {ProjectId: "api", OpenOnly: true}, "running": {Status: running}, "another project": {ProjectId: "web"},
	} {
		if got := must(c.ListTasks(ctx, req))(t).GetTasks(); len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestPreferences(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c, service := t.Context(), b.as(t, ada), b.as(t, nobody)
	must(service.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{TenantDefaults: true, Preferences: &storev1.Preferences{
		Voice: new("Aoede"), Language: new("en-GB"), Extra: map[string]string{"a": "tenant", "b": "tenant"},
	}}))(t)
	must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: &storev1.Preferences{
		Voice: new("Puck"), Notifications: storev1.NotificationLevel_NOTIFICATION_LEVEL_NONE, Extra: map[string]string{"a": "ada"},
	}}))(t)
	got := must(c.GetPreferences(ctx, &projectv1.GetPreferencesRequest{}))(t)
	want := &storev1.Preferences{
		Voice: new("Puck"), Language: new("en-GB"), Notifications: storev1.NotificationLevel_NOTIFICATION_LEVEL_NONE,
		Extra: map[string]string{"a": "ada", "b": "tenant"},
	}
	if diff := cmp.Diff(want, got.GetPreferences(), protocmp.Transform()); diff != "" {
		t.Errorf("in force (-want +got):\n%s", diff)
	}
	same := must(c.GetPreferences(ctx, &projectv1.GetPreferencesRequest{IfVersionNot: got.GetMetadata().GetVersion()}))(t)
	if !same.GetNotModified() || same.GetPreferences() != nil {
		t.Errorf("%v", same)
	}
	// A named field without a value falls back; what is not named stays.
	must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{
		Preferences: &storev1.Preferences{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"voice"}}, IfVersion: got.GetOwnVersion(),
	}))(t)
	got = must(c.GetPreferences(ctx, &projectv1.GetPreferencesRequest{IfVersionNot: got.GetMetadata().GetVersion()}))(t)
	if p := got.GetPreferences(); p.GetVoice() != "Aoede" || p.GetExtra()["a"] != "ada" || got.GetNotModified() {
		t.Errorf("%v", got)
	}
	for name, p := range map[string]*storev1.Preferences{
		"a long voice": {Voice: new(strings.Repeat("x", 129))}, "no language": {Language: new("en GB")},
		"a long value": {Extra: map[string]string{"a": strings.Repeat("x", 1025)}},
	} {
		if _, err := c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: p}); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	many := map[string]string{}
	for i := range 65 {
		many[fmt.Sprint(i)] = ""
	}
	_, err := c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: &storev1.Preferences{Extra: many}})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	_, err = c.SetActiveProject(ctx, &projectv1.SetActiveProjectRequest{ProjectId: "none"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	_, err = service.SetActiveProject(ctx, &projectv1.SetActiveProjectRequest{})
	refused(t, err, connect.CodeFailedPrecondition, "USER_REQUIRED")
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

// A user signs in on a new device, which another server answers, and gets the same context.
func TestContextOnANewDevice(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, ada)
	for _, id := range []string{"api", "web"} {
		must(c.CreateProject(ctx, &projectv1.CreateProjectRequest{ProjectId: id, Project: &projectv1.Project{Title: "Project " + id, LinearTeamIds: []string{"t-" + id}}}))(t)
		for _, raw := range []string{"PENDING", "ACTIVE", "COMPLETE"} {
			must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: id + "-" + raw, RawStatus: raw, Task: &projectv1.Task{ProjectId: id, Title: raw}}))(t)
		}
		must(b.as(t, nobody).UpsertIssues(ctx, &projectv1.UpsertIssuesRequest{Issues: []*structpb.Struct{
			linearIssue("1-"+id, "open", "2026-11-23T00:00:00Z", "started", "t-"+id), linearIssue("2-"+id, "done", "2026-11-23T00:00:00Z", "completed", "t-"+id),
		}}))(t)
		must(b.talk(t, ada).CreateConversation(ctx, &conversationv1.CreateConversationRequest{ConversationId: "c-" + id, ProjectId: id, Title: "About " + id}))(t)
	}
	b.summarise(t, ada, "c-api", "We agreed on cookies.")
	must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: &storev1.Preferences{Voice: new("Puck")}}))(t)
	must(c.SetActiveProject(ctx, &projectv1.SetActiveProjectRequest{ProjectId: "api"}))(t)

	here := must(c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{}))(t)
	there := must(b.another(t).as(t, ada).GetProjectContext(ctx, &projectv1.GetProjectContextRequest{}))(t)
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
	version := here.GetMetadata().GetVersion()
	for _, step := range []struct {
		name   string
		change func()
	}{
		{"a task ends", func() {
			must(c.UpdateTaskStatus(ctx, &projectv1.UpdateTaskStatusRequest{TaskId: "api-ACTIVE", RawStatus: "COMPLETE"}))(t)
		}},
		{"an issue is done", func() {
			must(b.as(t, nobody).UpsertIssues(ctx, &projectv1.UpsertIssuesRequest{Issues: []*structpb.Struct{linearIssue("1-api", "open", "2026-11-24T00:00:00Z", "completed", "t-api")}}))(t)
		}},
		{"an API is paused", func() {
			b.api(t, func(s *coordinationv1.ApiState) { s.PauseUntil = timestamppb.New(linearAt) })
		}},
		{"a preference", func() {
			must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: &storev1.Preferences{}}))(t)
		}},
		{"the project", func() {
			must(c.UpdateProject(ctx, &projectv1.UpdateProjectRequest{ProjectId: "api", Project: &projectv1.Project{Title: "x"}}))(t)
		}},
		{"the conversation", func() { b.summarise(t, ada, "c-api", "And on tokens.") }},
		{"the active project", func() { must(c.SetActiveProject(ctx, &projectv1.SetActiveProjectRequest{ProjectId: "web"}))(t) }},
		{"the tenant's default", func() {
			must(b.as(t, nobody).UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{TenantDefaults: true, Preferences: &storev1.Preferences{Model: new("m")}}))(t)
		}},
	} {
		same := must(c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{IfVersionNot: version}))(t)
		if !same.GetNotModified() || same.GetPreferences() != nil {
			t.Errorf("before %s: %v", step.name, same)
		}
		step.change()
		now := must(c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{IfVersionNot: version}))(t)
		if now.GetNotModified() || now.GetMetadata().GetVersion() == version {
			t.Errorf("after %s: %v", step.name, now)
		}
		version = now.GetMetadata().GetVersion()
	}
}

// A context's lists are those of the project that it has, also on a server whose cache has another one.
func TestContextIsOfOneMoment(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, other := b.as(t, ada), b.another(t).as(t, ada)
	for _, id := range []string{"api", "web"} {
		must(c.CreateProject(t.Context(), &projectv1.CreateProjectRequest{ProjectId: id, Project: &projectv1.Project{Title: id, LinearTeamIds: []string{"t-" + id}}}))(t)
		must(c.PutTask(t.Context(), &projectv1.PutTaskRequest{TaskId: id, RawStatus: "PENDING", Task: &projectv1.Task{ProjectId: id, Title: id}}))(t)
		must(b.as(t, nobody).UpsertIssues(t.Context(), &projectv1.UpsertIssuesRequest{Issues: []*structpb.Struct{
			linearIssue(id, "open", "2026-11-23T00:00:00Z", "started", "t-"+id),
		}}))(t)
	}
	must(c.SetActiveProject(t.Context(), &projectv1.SetActiveProjectRequest{ProjectId: "api"}))(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			id := []string{"web", "api"}[i%2]
			_, err := c.SetActiveProject(ctx, &projectv1.SetActiveProjectRequest{ProjectId: id})
			if err == nil {
				_, err = c.UpdateProject(ctx, &projectv1.UpdateProjectRequest{ProjectId: id, Project: &projectv1.Project{Title: id, LinearTeamIds: []string{"none", "t-" + id}[i/2%2:]}})
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
		got := must(other.GetProjectContext(t.Context(), &projectv1.GetProjectContextRequest{}))(t)
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
	b.api(t, func(s *coordinationv1.ApiState) {
		s.Breaker = &coordinationv1.Breaker{Status: coordinationv1.BreakerStatus_BREAKER_STATUS_OPEN, RetryTime: retry}
		s.PauseUntil = timestamppb.New(linearAt)
	})
	got := must(c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{}))(t)
	want := []*projectv1.ApiBrief{{ApiId: "linear", Breaker: "open", RetryTime: retry}}
	if diff := cmp.Diff(want, got.GetApis(), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	b.api(t, func(s *coordinationv1.ApiState) { s.LastSeq++ })
	if again := must(c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{IfVersionNot: got.GetMetadata().GetVersion()}))(t); !again.GetNotModified() {
		t.Errorf("%v", again)
	}
}

// api changes the standing of the API "linear".
func (b *bundle) api(t *testing.T, change func(*coordinationv1.ApiState)) {
	t.Helper()
	_, err := b.apis.Update(b.AsService(t), "linear", func(tx *object.Tx[*coordinationv1.ApiState]) error {
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
		must(service.CreateProject(ctx, &projectv1.CreateProjectRequest{ProjectId: id}))(t)
	}
	must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: "k", Task: &projectv1.Task{}}))(t)
	about := func(c client, req *projectv1.GetProjectContextRequest, want string) {
		t.Helper()
		got := must(c.GetProjectContext(ctx, req))(t)
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
		must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{TenantDefaults: tenant, Preferences: &storev1.Preferences{DefaultProjectId: new(id)}}))(t)
	}
	defaults(service, "tenant", true)
	about(c, &projectv1.GetProjectContextRequest{}, "tenant")
	about(service, &projectv1.GetProjectContextRequest{}, "tenant")
	defaults(c, "own", false)
	about(c, &projectv1.GetProjectContextRequest{}, "own")
	must(c.SetActiveProject(ctx, &projectv1.SetActiveProjectRequest{ProjectId: "active"}))(t)
	about(c, &projectv1.GetProjectContextRequest{}, "active")
	about(c, &projectv1.GetProjectContextRequest{ProjectId: "named"}, "named")
	_, err := c.GetProjectContext(ctx, &projectv1.GetProjectContextRequest{ProjectId: "none"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
}

func TestWatchProject(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.as(t, ada)
	must(c.CreateProject(t.Context(), &projectv1.CreateProjectRequest{ProjectId: "p", Project: &projectv1.Project{Title: "one"}}))(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream := must(c.WatchProject(ctx, &projectv1.WatchProjectRequest{ProjectId: "p"}))(t)
	next := func() *projectv1.WatchProjectResponse {
		t.Helper()
		for stream.Receive() {
			if !stream.Msg().GetHeartbeat() {
				return stream.Msg()
			}
		}
		t.Fatal(stream.Err())
		return nil
	}
	if got := next(); !got.GetReset_() || got.GetProject().GetTitle() != "one" || got.GetMetadata().GetVersion() != 1 {
		t.Errorf("%v", got)
	}
	must(c.UpdateProject(t.Context(), &projectv1.UpdateProjectRequest{ProjectId: "p", Project: &projectv1.Project{Title: "two"}}))(t)
	if got := next(); got.GetReset_() || got.GetProject().GetTitle() != "two" || got.GetMetadata().GetVersion() != 2 {
		t.Errorf("%v", got)
	}
	must(c.DeleteProject(t.Context(), &projectv1.DeleteProjectRequest{ProjectId: "p"}))(t)
	if got := next(); !got.GetDeleted() || got.GetProject() != nil {
		t.Errorf("%v", got)
	}
}
