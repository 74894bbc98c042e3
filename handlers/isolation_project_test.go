package handlers_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/project/v1/projectv1connect"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers"
	"holdfast/handlers/project"
	"holdfast/object"
	"holdfast/seal"
)

func projectService(
	rt *object.Runtime, conversations *object.Kind[*conversationv1.ConversationState], apis *object.Kind[*storev1.ApiState], box *seal.Box,
) handlers.Service {
	return handlers.NewService[projectv1connect.ProjectServiceHandler](
		projectv1connect.ProjectServiceName, projectv1connect.NewProjectServiceHandler,
		project.NewManager(project.Options{Kinds: project.Register(rt), Runtime: rt, Conversations: conversations, APIs: apis, Seal: box}))
}

const issueC1 = `{"id":"c1","title":"` + secret + `","updatedAt":"2026-11-23T00:00:00Z","state":{"type":"started"}}`

var projectArea = area{
	fill: fillProject,
	fuzzing: fuzzing{
		seed: [][2]string{
			{"CreateProject", `{"projectId":"c1","project":{"title":"t"}}`},
			{"PutTask", `{"taskId":"c1","task":{"title":"t"}}`},
			{"UpsertIssues", `{"issues":[` + issueC1 + `]}`},
		},
		reads: map[string][2]string{
			"PutTask": {"GetTask", `{"taskId":"c1","transitionLimit":9}`}, "UpdateTaskStatus": {"GetTask", `{"taskId":"c1","transitionLimit":9}`},
			"UpsertIssues": {"GetIssue", `{"issueId":"c1","withPayload":true}`}, "SetActiveProject": {"GetProjectContext", `{}`},
			"UpdatePreferences": {"GetPreferences", `{}`}, "": {"GetProject", `{"projectId":"c1"}`},
		},
		service: map[string]string{
			"UpsertIssues": "ok", "CreateLinearEndpoint": "ok", "ListLinearEndpoints": "ok", "GetLinearEndpoint": "not_found", "UpdateLinearEndpoint": "not_found",
			"DeleteLinearEndpoint": "not_found",
		},
		full: map[string]string{
			"CreateProject": `{"projectId":"c1-2","project":{"title":"t","description":"d","repository":{"provider":"github","name":"a/b","url":"u","defaultBranch":"main","externalId":"7"},
				"labels":{"a":"b"},"settings":{"a":{"b":[1]}},"linearTeamIds":["t1"],"linearProjectIds":["p1"],"archiveTime":"2026-01-01T00:00:00Z"},"shared":true,"requestId":"r-2"}`,
			"GetProject":        `{"projectId":"c1","ifVersionNot":"9"}`,
			"ListProjects":      `{"pageSize":5,"labels":{"a":"b"},"archived":true}`,
			"UpdateProject":     `{"projectId":"c1","project":{"title":"t","settings":{"a":{"b":[1]}},"linearTeamIds":["t1"]},"updateMask":"title,settings,linearTeamIds","requestId":"r-2","ifVersion":"1"}`,
			"ArchiveProject":    `{"projectId":"c1","restore":true,"requestId":"r-2","ifVersion":"1"}`,
			"DeleteProject":     `{"projectId":"c1","requestId":"r-2","ifVersion":"1"}`,
			"SetActiveProject":  `{"projectId":"c1","requestId":"r-2c1"}`,
			"GetProjectContext": `{"projectId":"c1","taskLimit":5,"issueLimit":5,"ifVersionNot":"9"}`,
			"PutTask": `{"taskId":"c1","task":{"title":"t","projectId":"c1","provider":"codegen","runId":"7","pullRequests":[{"pullRequestId":"1","title":"t","url":"u","headBranch":"b","createTime":"2026-01-01T00:00:00Z"}],
				"linearIssueId":"c1","requestedBy":{"conversationId":"c1","seq":"1"},"webUrl":"u","result":"r","summary":"s","metadata":{"a":{"b":[1]}}},"rawStatus":"ACTIVE","source":"api",
				"observeTime":"2099-01-01T00:00:00Z","resume":{"prompt":"p","requestedBy":{"conversationId":"c1","seq":"1"}},"shared":true,"requestId":"r-2","ifVersion":"1"}`,
			"GetTask":             `{"taskId":"c1","transitionLimit":9,"ifVersionNot":"9"}`,
			"ListTasks":           `{"pageSize":5,"projectId":"c1","status":"TASK_STATUS_RUNNING","openOnly":true,"run":"codegen/7","linearIssueId":"c1"}`,
			"UpdateTaskStatus":    `{"taskId":"c1","rawStatus":"ACTIVE","source":"api","observeTime":"2099-01-01T00:00:00Z","resume":{"prompt":"p","requestedBy":{"conversationId":"c1","seq":"1"}},"requestId":"r-2","ifVersion":"1"}`,
			"ListTaskTransitions": `{"taskId":"c1","afterSeq":"1","pageSize":5}`,
			"DeleteTask":          `{"taskId":"c1","requestId":"r-2","ifVersion":"1"}`,
			"UpsertIssues": `{"issues":[{"id":"c1","identifier":"ENG-1","previousIdentifiers":["OLD-1"],"number":1,"url":"u","title":"t","description":"d","priority":1,"estimate":0.5,"stateId":"s",
				"state":{"id":"s","name":"n","type":"started"},"team":{"id":"t","key":"ENG"},"assignee":{"id":"a","name":"n"},"delegate":{"id":"d"},"labelIds":["l"],"labels":{"nodes":[{"id":"m"}]},
				"dueDate":"2026-01-01","createdAt":"2026-01-01T00:00:00Z","updatedAt":"2026-12-01T00:00:00.5Z","completedAt":null,"trashed":false}],"requestId":"r-2"}`,
			"GetIssue":       `{"issueId":"c1","withPayload":true,"ifVersionNot":"9"}`,
			"ListIssues":     `{"pageSize":5,"teamId":"t","linearProjectId":"p","assigneeId":"a","identifier":"ENG-1","openOnly":true}`,
			"GetPreferences": `{"ifVersionNot":"9"}`,
			"UpdatePreferences": `{"preferences":{"voice":"v","language":"en-GB","model":"m","notifications":"NOTIFICATION_LEVEL_ALL","defaultProjectId":"c1","extra":{"a":"b"}},
				"updateMask":"voice,language,model,notifications,defaultProjectId,extra","requestId":"r-2c1"}`,
			"CreateLinearEndpoint": `{"title":"t","secret":"s","apiKey":"k","replayWindowSeconds":"60","organizationId":"o","requestId":"r-2c1"}`,
			"GetLinearEndpoint":    `{"endpointId":"c1"}`,
			"ListLinearEndpoints":  `{"pageSize":5}`,
			"UpdateLinearEndpoint": `{"endpointId":"c1","addSecret":"s","removeSecretId":"x","apiKey":"k","removeApiKey":true,"requestId":"r-2","ifVersion":"1"}`,
			"DeleteLinearEndpoint": `{"endpointId":"c1","requestId":"r-2","ifVersion":"1"}`,
		},
	},
	cases: map[string]isolationCase{
		"/holdfast.project.v1.ProjectService/CreateProject":        {body: `{"projectId":"c1","project":{"title":"mine"}}`, outside: isOwn, inside: isTaken, tenants: isTaken},
		"/holdfast.project.v1.ProjectService/GetProject":           {body: `{"projectId":"c1"}`},
		"/holdfast.project.v1.ProjectService/ListProjects":         {body: `{}`, outside: isEmpty, inside: isEmpty},
		"/holdfast.project.v1.ProjectService/UpdateProject":        {body: `{"projectId":"c1","project":{"title":"mine"}}`},
		"/holdfast.project.v1.ProjectService/ArchiveProject":       {body: `{"projectId":"c1"}`},
		"/holdfast.project.v1.ProjectService/DeleteProject":        {body: `{"projectId":"c1"}`, tenants: deniedUser},
		"/holdfast.project.v1.ProjectService/SetActiveProject":     {body: `{"projectId":"c1"}`},
		"/holdfast.project.v1.ProjectService/GetProjectContext":    {body: `{"projectId":"c1"}`},
		"/holdfast.project.v1.ProjectService/WatchProject":         {body: `{"projectId":"c1"}`},
		"/holdfast.project.v1.ProjectService/PutTask":              {body: `{"taskId":"c1","task":{"title":"mine"}}`, outside: isOwn, inside: isTaken},
		"/holdfast.project.v1.ProjectService/GetTask":              {body: `{"taskId":"c1","transitionLimit":9}`},
		"/holdfast.project.v1.ProjectService/ListTasks":            {body: `{}`, outside: isEmpty, inside: isEmpty},
		"/holdfast.project.v1.ProjectService/UpdateTaskStatus":     {body: `{"taskId":"c1","rawStatus":"RUNNING"}`},
		"/holdfast.project.v1.ProjectService/ListTaskTransitions":  {body: `{"taskId":"c1"}`},
		"/holdfast.project.v1.ProjectService/DeleteTask":           {body: `{"taskId":"c1"}`, tenants: deniedUser},
		"/holdfast.project.v1.ProjectService/UpsertIssues":         {test: isolateUpsert},
		"/holdfast.project.v1.ProjectService/GetIssue":             {body: `{"issueId":"c1","withPayload":true}`, inside: isShared},
		"/holdfast.project.v1.ProjectService/ListIssues":           {body: `{}`, outside: isEmpty, inside: isShared},
		"/holdfast.project.v1.ProjectService/GetPreferences":       {test: isolatePreferences},
		"/holdfast.project.v1.ProjectService/UpdatePreferences":    {test: isolatePreferences},
		"/holdfast.project.v1.ProjectService/CreateLinearEndpoint": {test: isolateEndpoint},
		"/holdfast.project.v1.ProjectService/GetLinearEndpoint":    {test: isolateEndpoint},
		"/holdfast.project.v1.ProjectService/ListLinearEndpoints":  {test: isolateEndpoint},
		"/holdfast.project.v1.ProjectService/UpdateLinearEndpoint": {test: isolateEndpoint},
		"/holdfast.project.v1.ProjectService/DeleteLinearEndpoint": {test: isolateEndpoint},
	},
}

func projectMethod(name string) protoreflect.MethodDescriptor {
	return registered()["/holdfast.project.v1.ProjectService/"+name]
}

// fillProject makes c1 thrice: a project and a task of the user ada, and an issue of the tenant.
func fillProject(tb testing.TB, b *bundle, ada string) {
	tb.Helper()
	for _, step := range []struct{ method, body, as string }{
		{"CreateProject", `{"projectId":"c1","project":{"title":"` + secret + `","labels":{"a":"` + secret + `"}},"requestId":"r-1"}`, ada},
		{"PutTask", `{"taskId":"c1","task":{"title":"` + secret + `","projectId":"c1"},"source":"` + secret + `"}`, ada},
		{"UpsertIssues", `{"issues":[` + issueC1 + `]}`, b.key(tb, "")},
	} {
		if got := b.call(tb, projectMethod(step.method), step.body, step.as); got.code != "ok" {
			tb.Fatalf("%s: %+v", step.method, got)
		}
	}
}

// isolatePreferences: everybody has preferences of their own, and only services set the tenant's.
func isolatePreferences(t *testing.T, b *bundle, _ protoreflect.MethodDescriptor) {
	get, update := projectMethod("GetPreferences"), projectMethod("UpdatePreferences")
	ada, eve, service, other := b.key(t, "ada"), b.key(t, "eve"), b.key(t, ""), b.tenant(t)
	const forAda = "Holdfast-User: ada"
	for _, headers := range [][]string{{ada}, {service, forAda}} {
		if got := b.call(t, update, `{"preferences":{"voice":"`+secret+`"}}`, headers...); got.code != "ok" {
			t.Fatalf("%+v", got)
		}
	}
	for name, headers := range map[string][]string{"she": {ada}, "a service for her": {service, forAda}} {
		if got := b.call(t, get, `{}`, headers...); got.code != "ok" || !strings.Contains(got.body, secret) {
			t.Errorf("%s is answered with %+v", name, got)
		}
	}
	for name, headers := range map[string][]string{
		"another user": {eve}, "a service": {service}, "a service for another": {service, "Holdfast-User: eve"},
		"another tenant's user of that name": {other.key(t, "ada")}, "another tenant's service for that user": {other.key(t, ""), forAda},
	} {
		if got := b.call(t, get, `{}`, headers...); got.code != "ok" || strings.Contains(got.body, secret) {
			t.Errorf("%s is answered with %+v", name, got)
		}
	}
	for name, tt := range map[string]struct {
		headers []string
		want    string
	}{
		"a user":               {[]string{ada}, "permission_denied ROLE_REQUIRED"},
		"a service for a user": {[]string{service, forAda}, "permission_denied ROLE_REQUIRED"},
		"a service":            {[]string{service}, "ok "},
		"nobody":               {nil, "unauthenticated CREDENTIAL_MISSING"},
	} {
		got := b.call(t, update, `{"preferences":{"model":"the tenant's"},"updateMask":"model","tenantDefaults":true}`, tt.headers...)
		if got.code+" "+got.reason != tt.want {
			t.Errorf("the tenant's defaults, set by %s: %+v", name, got)
		}
	}
	if got := b.call(t, get, `{}`, eve); !strings.Contains(got.body, "the tenant's") {
		t.Errorf("another user does not have the tenant's defaults: %+v", got)
	}
	if got := b.call(t, get, `{}`, other.key(t, "eve")); strings.Contains(got.body, "the tenant's") {
		t.Errorf("another tenant's user has them: %+v", got)
	}
	if got := b.call(t, update, `{"preferences":{"voice":"mine"}}`, service); got.reason != "USER_REQUIRED" {
		t.Errorf("a service for itself: %+v", got)
	}
}

// isolateUpsert: issues are written by the tenant's services only.
func isolateUpsert(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	ada, service := b.key(t, "ada"), b.key(t, "")
	for _, there := range []bool{false, true} {
		for name, tt := range map[string]struct {
			headers []string
			want    string
		}{
			"a user":               {[]string{ada}, deniedUser},
			"a user's session":     {[]string{b.signIn(t, "ada")}, deniedUser},
			"a service for a user": {[]string{service, "Holdfast-User: ada"}, deniedUser},
			"nobody":               {nil, "unauthenticated CREDENTIAL_MISSING"},
		} {
			if got := b.call(t, m, `{"issues":[`+strings.Replace(issueC1, "2026", "2030", 1)+`]}`, tt.headers...); got.code+" "+got.reason != tt.want {
				t.Errorf("there already: %t; %s is answered with %+v", there, name, got)
			}
		}
		b.must(t, projectRPCs+"UpsertIssues", `{"issues":[`+issueC1+`]}`, service)
	}
	other := b.tenant(t)
	other.must(t, projectRPCs+"UpsertIssues", `{"issues":[`+strings.ReplaceAll(issueC1, secret, "theirs")+`]}`, other.key(t, ""))
	if got := b.call(t, projectMethod("GetIssue"), `{"issueId":"c1"}`, ada); !strings.Contains(got.body, secret) || strings.Contains(got.body, "2030") {
		t.Errorf("in the end: %+v", got)
	}
}

// isolateEndpoint: endpoints are for their own tenant's services only, and nobody is shown a secret.
func isolateEndpoint(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	service, ada, other := b.key(t, ""), b.key(t, "ada"), b.tenant(t)
	made := b.call(t, projectMethod("CreateLinearEndpoint"), `{"title":"mine","secret":"`+secret+`","apiKey":"`+secret+`"}`, service)
	var e struct {
		Endpoint struct{ EndpointID string }
	}
	if err := json.Unmarshal([]byte(made.body), &e); made.code != "ok" || err != nil || e.Endpoint.EndpointID == "" {
		t.Fatalf("%+v, %v", made, err)
	}
	body := map[string]string{
		"CreateLinearEndpoint": `{"title":"mine"}`,
		"ListLinearEndpoints":  `{}`,
		"UpdateLinearEndpoint": fmt.Sprintf(`{"endpointId":%q,"addSecret":%q}`, e.Endpoint.EndpointID, secret),
	}[string(m.Name())]
	if body == "" {
		body = fmt.Sprintf(`{"endpointId":%q}`, e.Endpoint.EndpointID)
	}
	stranger := "not_found NOT_FOUND"
	switch m.Name() {
	case "CreateLinearEndpoint", "ListLinearEndpoints":
		stranger = "ok "
	}
	for _, tt := range []struct {
		name    string
		headers []string
		want    string
	}{
		{"a user", []string{ada}, "permission_denied ROLE_REQUIRED"},
		{"a service for a user", []string{service, "Holdfast-User: ada"}, "permission_denied ROLE_REQUIRED"},
		{"another tenant's user", []string{other.key(t, "ada")}, "permission_denied ROLE_REQUIRED"},
		{"another tenant's service", []string{other.key(t, "")}, stranger},
		{"nobody", nil, "unauthenticated CREDENTIAL_MISSING"},
		{"garbage", []string{"Authorization: Bearer hfk_x"}, "unauthenticated CREDENTIAL_INVALID"},
		{"a service", []string{service}, "ok "},
	} {
		got := b.call(t, m, body, tt.headers...)
		if got.code+" "+got.reason != tt.want {
			t.Errorf("%s is answered with %+v, want %s", tt.name, got, tt.want)
		}
		if strings.Contains(got.body, secret) || tt.want != "ok " && strings.Contains(got.body, "mine") ||
			strings.HasPrefix(tt.name, "another") && m.Name() == "ListLinearEndpoints" && strings.Contains(got.body, e.Endpoint.EndpointID) {
			t.Errorf("%s is told %s", tt.name, got.body)
		}
	}
}
