package handlers_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

var projectArea = area{
	fill: fillProject,
	fuzzing: fuzzing{
		seed: [][2]string{
			{"PutProject", `{"projectId":"c1","project":{"title":"t"},"ifVersion":0}`},
			{"PutTask", `{"taskId":"c1","task":{"title":"t"}}`},
		},
		reads: map[string][2]string{
			"PutTask": {"GetTask", `{"taskId":"c1","pageSize":9}`}, "DeleteTask": {"GetTask", `{"taskId":"c1"}`},
			"UpdatePreferences": {"GetPreferences", `{}`}, "": {"GetProject", `{"projectId":"c1"}`},
		},
		full: map[string]string{
			"PutProject": `{"requestId":"r-2","ifVersion":"1","projectId":"c1","project":{"title":"t","description":"d","repository":{"provider":"github","name":"a/b","url":"u","defaultBranch":"main","externalId":"7"},
				"labels":{"a":"b"},"settings":{"a":{"b":[1]}},"issueSources":[{"provider":"linear","type":"team","id":"t1"}],"archived":true,"archiveTime":"2026-01-01T00:00:00Z"},
				"updateMask":"title,settings,labels,issueSources,repository,archived,description","mustExist":true,"shared":true}`,
			"GetProject":        `{"projectId":"c1","ifVersionNot":"9"}`,
			"ListProjects":      `{"pageSize":5,"filter":{"labels":{"a":"b"},"archived":true}}`,
			"DeleteProject":     `{"projectId":"c1","requestId":"r-2","ifVersion":"1"}`,
			"GetProjectContext": `{"projectId":"c1","taskLimit":5,"issueLimit":5,"ifEtagNot":"9"}`,
			"PutTask": `{"requestId":"r-2","ifVersion":"1","taskId":"c1","task":{"title":"t","projectId":"c1","provider":"codegen","runId":"7","labels":{"a":"b"},
				"pullRequests":[{"pullRequestId":"1","title":"t","url":"u","headBranch":"b","createTime":"2026-01-01T00:00:00Z"}],
				"issue":{"provider":"linear","id":"c1","identifier":"ENG-1"},"requestedBy":{"conversationId":"c1","seq":1},"webUrl":"u","result":{"a":[1]},"summary":"s","metadata":{"a":{"b":[1]}},"model":"m","cost":{"unit":"USD","amount":1.5},"needsInput":"auth"},
				"updateMask":"title,metadata,result,issue","mustExist":true,"shared":true,
				"report":{"rawStatus":"ACTIVE","status":"TASK_STATUS_RUNNING","source":"api","observeTime":"2099-01-01T00:00:00Z","resumeReason":"p","resumeRequestedBy":{"conversationId":"c1","seq":1}}}`,
			"GetTask": `{"taskId":"c1","pageSize":9,"ifVersionNot":"9"}`,
			"ListTasks": `{"pageSize":5,"filter":{"projectId":"c1","statuses":["TASK_STATUS_RUNNING"],"open":true,"provider":"codegen","runId":"7",
				"issue":{"provider":"linear","id":"c1","identifier":"ENG-1"}}}`,
			"DeleteTask":     `{"taskId":"c1","requestId":"r-2","ifVersion":"1"}`,
			"GetPreferences": `{"ifEtagNot":"9"}`,
			"UpdatePreferences": `{"preferences":{"voice":"v","language":"en-GB","model":"m","notifications":"NOTIFICATION_LEVEL_ALL","defaultProjectId":"c1","extra":{"a":"b"},"activeProjectId":"c1"},
				"updateMask":"voice,language,model,notifications,defaultProjectId,extra,activeProjectId","requestId":"r-2c1"}`,
		},
	},
	cases: map[string]isolationCase{
		projectRPCs + "PutProject":        {body: `{"projectId":"c1","project":{"title":"mine"}}`, outside: isOwn, inside: isTaken},
		projectRPCs + "GetProject":        {body: `{"projectId":"c1"}`},
		projectRPCs + "ListProjects":      {body: `{}`, outside: isEmpty, inside: isEmpty},
		projectRPCs + "DeleteProject":     {body: `{"projectId":"c1"}`, outside: isEmpty, inside: isEmpty, tenants: deniedUser},
		projectRPCs + "GetProjectContext": {body: `{"projectId":"c1"}`},
		projectRPCs + "PutTask":           {body: `{"taskId":"c1","task":{"title":"mine"},"report":{"rawStatus":"RUNNING"}}`, outside: isOwn, inside: isTaken},
		projectRPCs + "GetTask":           {body: `{"taskId":"c1"}`},
		projectRPCs + "ListTasks":         {body: `{}`, outside: isEmpty, inside: isEmpty},
		projectRPCs + "DeleteTask":        {body: `{"taskId":"c1"}`, outside: isEmpty, inside: isEmpty, tenants: deniedUser},
		projectRPCs + "GetPreferences":    {test: isolatePreferences},
		projectRPCs + "UpdatePreferences": {test: isolatePreferences},
	},
}

// With must_exist a Put of what another has is a Put of what is not there.
func TestAPutThatMustExistTellsNobodyOfAnothers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	fillProject(t, b, b.key(t, "ada"))
	for name, header := range map[string]string{"another user": b.key(t, "eve"), "another tenant's user": b.tenant(t).key(t, "ada")} {
		for method, body := range map[string]string{
			"PutProject": `{"projectId":%q,"mustExist":true,"project":{"title":"mine"}}`, "PutTask": `{"taskId":%q,"mustExist":true,"report":{"rawStatus":"RUNNING"}}`,
		} {
			got, nowhere := b.call(t, projectMethod(method), fmt.Sprintf(body, "c1"), header), b.call(t, projectMethod(method), fmt.Sprintf(body, "c-nowhere"), header)
			if got.code+" "+got.reason != isNotFound || got.body != nowhere.body {
				t.Errorf("%s is answered %s with %+v", name, method, got)
			}
		}
	}
}

// What users work on is a project that they see.
func TestAnActiveProjectIsOnesOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada := b.key(t, "ada")
	fillProject(t, b, ada)
	for name, header := range map[string]string{"another user": b.key(t, "eve"), "another tenant's user": b.tenant(t).key(t, "ada")} {
		if got := b.call(t, projectMethod("UpdatePreferences"), `{"preferences":{"activeProjectId":"c1"}}`, header); got.code+" "+got.reason != isNotFound {
			t.Errorf("%s is answered with %+v", name, got)
		}
	}
	b.must(t, projectRPCs+"UpdatePreferences", `{"preferences":{"activeProjectId":"c1"}}`, ada)
}

func projectMethod(name string) protoreflect.MethodDescriptor {
	return registered()[projectRPCs+name]
}

// fillProject makes c1 twice: a project and a task of the user ada.
func fillProject(tb testing.TB, b *bundle, ada string) {
	tb.Helper()
	b.must(tb, projectRPCs+"PutProject", `{"projectId":"c1","project":{"title":"`+secret+`","labels":{"a":"`+secret+`"}},"requestId":"r-1"}`, ada)
	b.must(tb, projectRPCs+"PutTask", `{"taskId":"c1","task":{"title":"`+secret+`","projectId":"c1"},"report":{"rawStatus":"PENDING","source":"`+secret+`"}}`, ada)
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
