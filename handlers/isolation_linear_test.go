package handlers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const linearRPCs = "/holdfast.linear.v1.LinearService/"

const issueC1 = `{"id":"c1","title":"` + secret + `","updatedAt":"2026-11-23T00:00:00Z","state":{"type":"started"}}`

var linearArea = area{
	fill: func(tb testing.TB, b *bundle, _ string) { fillLinear(tb, b) },
	fuzzing: fuzzing{
		seed:  [][2]string{{"PutIssues", `{"issues":[` + issueC1 + `]}`}},
		reads: map[string][2]string{"": {"ListIssues", `{"filter":{"issueIds":["c1"]},"withPayload":true}`}},
		service: map[string]string{
			"PutIssues": "ok", "CreateIssue": "invalid_argument", "UpdateIssue": "invalid_argument", "CommentOnIssue": "invalid_argument", "RespondToAgentSession": "not_found", "PutEndpoint": "not_found", "ListEndpoints": "ok", "DeleteEndpoint": "not_found",
		},
		full: map[string]string{
			"PutIssues": `{"requestId":"r-2","ifVersion":"1","issues":[{"id":"c1","identifier":"ENG-1","previousIdentifiers":["OLD-1"],"number":1,"url":"u","title":"t","description":"d","priority":1,"estimate":0.5,"stateId":"s",
				"state":{"id":"s","name":"n","type":"started"},"team":{"id":"t","key":"ENG"},"assignee":{"id":"a","name":"n"},"delegate":{"id":"d"},"labelIds":["l"],"labels":{"nodes":[{"id":"m","name":"n"}]},
				"cycle":{"id":"y","number":3},"parent":{"id":"q","identifier":"ENG-0"},
				"dueDate":"2026-01-01","createdAt":"2026-01-01T00:00:00Z","updatedAt":"2026-12-01T00:00:00.5Z","completedAt":null,"trashed":false}]}`,
			"CreateIssue": `{"requestId":"r-2","ifVersion":"0","endpointId":"x","edit":{"title":"t","description":"d","priority":1,"estimate":2,"dueDate":"2026-01-01","stateId":"s","teamId":"t",
				"assigneeId":"a","delegateId":"d","projectId":"p","cycleId":"y","parentId":"q","addLabelIds":["l"]}}`,
			"UpdateIssue":           `{"requestId":"r-2","ifVersion":"1","issueId":"c1","edit":{"title":"t","removeLabelIds":["l"]},"updateMask":"title,removeLabelIds","endpointId":"x"}`,
			"CommentOnIssue":        `{"requestId":"r-2","ifVersion":"1","issueId":"c1","body":"b","parentCommentId":"p","endpointId":"x"}`,
			"RespondToAgentSession": `{"requestId":"r-2","ifVersion":"1","agentSessionId":"c1","activity":{"type":"action","action":"a","parameter":"p","result":"r","ephemeral":true},"endpointId":"x"}`,
			"ListIssues": `{"pageSize":5,"filter":{"issueIds":["c1"],"identifiers":["ENG-1"],"teamIds":["t"],"projectIds":["p"],"assigneeIds":["a"],"stateTypes":["started"],"labelNames":["n"],
				"text":"t","open":true,"updatedSince":"2026-01-01T00:00:00Z","stateIds":["s"],"labelIds":["l"],"priorities":[1],"cycleIds":["y"],"parentIds":["q"],"delegateIds":["d"]},"withPayload":true,"order":"ISSUE_ORDER_CREATED"}`,
			"PutEndpoint": `{"requestId":"r-2","ifVersion":"1","endpointId":"c1","endpoint":{"title":"t","labels":{"a":"b"},"replayWindow":"60s","organizationId":"o","teamIds":["t"]},"updateMask":"title,apiKey",
				"addSecret":"s","removeSecretId":"x","setApiKey":"k","resetSyncTo":"2026-01-01T00:00:00Z"}`,
			"ListComments":        `{"pageSize":5,"filter":{"issueId":"c1"},"newestFirst":true}`,
			"ListAttachments":     `{"pageSize":5,"issueId":"c1"}`,
			"ListIssueHistory":    `{"pageSize":5,"issueId":"c1"}`,
			"ListAgentSessions":   `{"pageSize":5,"filter":{"issueIds":["c1"],"statuses":["pending"]}}`,
			"ListAgentActivities": `{"pageSize":5,"agentSessionId":"c1"}`,
			"ListEndpoints":       `{"pageSize":5}`,
			"DeleteEndpoint":      `{"requestId":"r-2","ifVersion":"1","endpointId":"c1"}`,
		},
	},
	alone: true,
	cases: map[string]isolationCase{
		linearRPCs + "ListIssues":            {body: `{"filter":{"issueIds":["c1"]},"withPayload":true}`, outside: isEmpty, inside: isShared},
		linearRPCs + "ListComments":          {body: `{"filter":{"issueId":"c1"}}`, outside: isEmpty, inside: isShared},
		linearRPCs + "ListAttachments":       {body: `{"issueId":"c1"}`, outside: isEmpty, inside: isShared},
		linearRPCs + "ListIssueHistory":      {body: `{"issueId":"c1"}`, outside: isEmpty, inside: isShared},
		linearRPCs + "ListAgentSessions":     {body: `{"filter":{"issueIds":["c1"]}}`, outside: isEmpty, inside: isShared},
		linearRPCs + "ListAgentActivities":   {body: `{"agentSessionId":"c1"}`, outside: isEmpty, inside: isShared},
		linearRPCs + "PutIssues":             {test: isolateIssues},
		linearRPCs + "CreateIssue":           {test: isolateChanges},
		linearRPCs + "UpdateIssue":           {test: isolateChanges},
		linearRPCs + "CommentOnIssue":        {test: isolateChanges},
		linearRPCs + "RespondToAgentSession": {test: isolateChanges},
		linearRPCs + "PutEndpoint":           {test: isolateEndpoint},
		linearRPCs + "ListEndpoints":         {test: isolateEndpoint},
		linearRPCs + "DeleteEndpoint":        {test: isolateEndpoint},
	},
}

func linearMethod(name string) protoreflect.MethodDescriptor { return registered()[linearRPCs+name] }

// fillLinear makes the issue c1 of the tenant, and what belongs to it, which only webhooks and the sync bring.
func fillLinear(tb testing.TB, b *bundle) {
	tb.Helper()
	b.must(tb, linearRPCs+"PutIssues", `{"issues":[`+issueC1+`]}`, b.key(tb, ""))
	fillParts(tb, b, "c1", "c1")
}

// fillParts makes a comment, an attachment and an agent's session with an id, on an issue.
func fillParts(tb testing.TB, b *bundle, id, issue string) {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), b.SuperuserURL)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, sql := range []string{
		`INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state, create_time, update_time, activity_time)
			SELECT $1, kind, $3, '', 0, 1, 1, jsonb_build_object('issue_id', $4::text, field, $2::text, 'stamp', jsonb_build_object('time_ms', '1')), now(), now(), now()
			FROM (VALUES ('linear_comment', 'body'), ('linear_attachment', 'title'), ('linear_agent_session', 'summary')) v (kind, field)`,
		`INSERT INTO holdfast.terms (tenant_id, kind, object_id, owner_id, term, activity_time)
			SELECT $1, kind, $3, '', $1 || '/' || kind || '/' || term, now()
			FROM (VALUES ('linear_comment', 'oldest=' || $4::text), ('linear_comment', 'newest=' || $4::text), ('linear_attachment', 'oldest=' || $4::text),
				('linear_agent_session', 'any'), ('linear_agent_session', 'issue=' || $4::text)) v (kind, term)
			WHERE $2 <> ''`,
		`INSERT INTO holdfast.entries (tenant_id, kind, object_id, owner_id, collection, key, version, body)
			VALUES ($1, 'linear_issue', $4, '', 'history', '1', 1, jsonb_build_object('action', $2::text)),
				($1, 'linear_agent_session', $3, '', 'activities', '1', 1, jsonb_build_object('body', $2::text))`,
	} {
		if _, err := conn.Exec(tb.Context(), sql, string(b.Tenant), secret, id, issue); err != nil {
			tb.Fatal(err)
		}
	}
}

// isolateIssues: issues are written by the tenant's services only.
func isolateIssues(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
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
		b.must(t, linearRPCs+"PutIssues", `{"issues":[`+issueC1+`]}`, service)
	}
	other := b.tenant(t)
	other.must(t, linearRPCs+"PutIssues", `{"issues":[`+strings.ReplaceAll(issueC1, secret, "theirs")+`]}`, other.key(t, ""))
	if got := b.call(t, linearMethod("ListIssues"), `{"filter":{"issueIds":["c1"]}}`, ada); !strings.Contains(got.body, secret) || strings.Contains(got.body, "2030") {
		t.Errorf("in the end: %+v", got)
	}
}

// isolateChanges: changes are sent to Linear for the tenant's services only, with a key of their own tenant.
func isolateChanges(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	ada, service, other := b.key(t, "ada"), b.key(t, ""), b.tenant(t)
	fillLinear(t, b)
	b.must(t, linearRPCs+"PutEndpoint", `{"endpoint":{"title":"mine"},"setApiKey":"`+secret+`"}`, service)
	other.must(t, linearRPCs+"PutEndpoint", `{"endpoint":{"title":"theirs"},"setApiKey":"theirs"}`, other.key(t, ""))
	body := map[string]string{
		"CreateIssue": `{"edit":{"title":"new","teamId":"t"}}`, "UpdateIssue": `{"issueId":"c1","edit":{"title":"new"}}`, "CommentOnIssue": `{"issueId":"c1","body":"new"}`,
		"RespondToAgentSession": `{"agentSessionId":"c1","activity":{"type":"response","body":"new"}}`,
	}[string(m.Name())]
	stranger := isNotFound
	if m.Name() == "CreateIssue" {
		stranger = "ok "
	}
	for _, tt := range []struct {
		name    string
		headers []string
		want    string
	}{
		{"a user", []string{ada}, deniedUser},
		{"a user's session", []string{b.signIn(t, "ada")}, deniedUser},
		{"a service for a user", []string{service, "Holdfast-User: ada"}, deniedUser},
		{"another tenant's user", []string{other.key(t, "ada")}, deniedUser},
		{"another tenant's service", []string{other.key(t, "")}, stranger},
		{"nobody", nil, "unauthenticated CREDENTIAL_MISSING"},
		{"a service", []string{service}, "ok "},
	} {
		got := b.call(t, m, body, tt.headers...)
		if got.code+" "+got.reason != tt.want || strings.Contains(got.body, secret) && tt.name != "a service" {
			t.Errorf("%s is answered with %+v, want %s", tt.name, got, tt.want)
		}
	}
}

// isolateEndpoint: endpoints are for their own tenant's services only, and nobody is shown a secret.
func isolateEndpoint(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	service, ada, other := b.key(t, ""), b.key(t, "ada"), b.tenant(t)
	made := b.call(t, linearMethod("PutEndpoint"), `{"endpoint":{"title":"mine"},"addSecret":"`+secret+`","setApiKey":"`+secret+`"}`, service)
	var e struct {
		Endpoint struct{ EndpointID string }
	}
	if err := json.Unmarshal([]byte(made.body), &e); made.code != "ok" || err != nil || e.Endpoint.EndpointID == "" {
		t.Fatalf("%+v, %v", made, err)
	}
	body, stranger := `{}`, "ok "
	if name := m.Name(); name != "ListEndpoints" {
		body = fmt.Sprintf(`{"endpointId":%q}`, e.Endpoint.EndpointID)
		if name == "PutEndpoint" {
			stranger = isNotFound
		}
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
			strings.HasPrefix(tt.name, "another") && strings.Contains(got.body, e.Endpoint.EndpointID) {
			t.Errorf("%s is told %s", tt.name, got.body)
		}
	}
}
