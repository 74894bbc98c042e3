package handlers_test

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	watchv1 "holdfast/gen/holdfast/watch/v1"
)

const watchRPC = "/holdfast.watch.v1.WatchService/Watch"

var watchArea = area{alone: true, cases: map[string]isolationCase{watchRPC: {test: isolateWatch}}}

// How an item begins for those who may not see all of it.
const (
	itsAbsent = `"absent":true`           // it is not there
	itsEmpty  = `"changed":{"reset":true` // there is nothing of another's in it
	itsAll    = secret

	roleRequired = `"ended":{"problem":{"reason":"ROLE_REQUIRED"`
)

// watchRights have every kind of item: what another user of the tenant gets, and callers of other tenants.
var watchRights = map[string]struct{ item, inside, outside string }{
	"conversation":        {`"conversation":{"conversationId":"c1","messageLimit":9}`, itsAbsent, itsAbsent},
	"session":             {`"session":{"user":"ada"}`, roleRequired, itsAbsent},
	"project_id":          {`"projectId":"c1"`, itsAbsent, itsAbsent},
	"task_id":             {`"taskId":"c1"`, itsAbsent, itsAbsent},
	"issue_id":            {`"issueId":"c1"`, itsAll, itsAbsent},
	"api":                 {`"api":"c1"`, `"api":{"api":"c1"`, itsAbsent},
	"state":               {`"state":{"ref":{"type":"note","name":"c1","owner":"ada"},"collections":[{"collection":"items","limit":9}]}`, roleRequired, itsAbsent},
	"preferences":         {`"preferences":true`, itsEmpty, itsEmpty},
	"list.conversations":  {`"list":{"conversations":{}}`, itsEmpty, itsEmpty},
	"list.projects":       {`"list":{"projects":{}}`, itsEmpty, itsEmpty},
	"list.tasks":          {`"list":{"tasks":{}}`, itsEmpty, itsEmpty},
	"list.issues":         {`"list":{"issues":{}}`, itsAll, itsEmpty},
	"agent_session_id":    {`"agentSessionId":"c1"`, itsAll, itsAbsent},
	"list.comments":       {`"list":{"comments":{"issueId":"c1"}}`, itsAll, itsEmpty},
	"list.agent_sessions": {`"list":{"agentSessions":{}}`, itsAll, itsEmpty},
	"list.states":         {`"list":{"states":{"type":"note"}}`, itsEmpty, itsEmpty},
}

func isolateWatch(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	t.Helper()
	var kinds []string
	addKinds := func(prefix string, item protoreflect.MessageDescriptor) {
		of := item.Oneofs().ByName("of").Fields()
		for i := range of.Len() {
			if name := string(of.Get(i).Name()); name != "list" {
				kinds = append(kinds, prefix+name)
			}
		}
	}
	addKinds("", (&watchv1.Item{}).ProtoReflect().Descriptor())
	addKinds("list.", (&watchv1.ListItem{}).ProtoReflect().Descriptor())
	for kind := range watchRights {
		if !slices.Contains(kinds, kind) {
			t.Errorf("there is no item %s", kind)
		}
	}
	ada, eve, service := b.key(t, "ada"), b.key(t, "eve"), b.key(t, "")
	fillSession(t, b, ada) // and a conversation
	fillProject(t, b, ada)
	fillLinear(t, b)
	fillState(t, b, ada)
	fillAPI(t, b, ada, service)
	b.must(t, projectRPCs+"UpdatePreferences", `{"preferences":{"voice":"`+secret+`"}}`, ada)
	other := b.tenant(t)
	for _, kind := range kinds {
		tt, ok := watchRights[kind]
		if !ok {
			t.Errorf("%s is not tested", kind)
			continue
		}
		for _, caller := range []struct {
			name    string
			headers []string
			want    string
		}{
			{"another tenant's service", []string{other.key(t, "")}, tt.outside},
			{"another tenant's user of that name", []string{other.key(t, "ada")}, tt.outside},
			{"another tenant's service for that user", []string{other.key(t, ""), "Holdfast-User: ada"}, tt.outside},
			{"another user", []string{eve}, tt.inside},
			{"another user's session", []string{b.signIn(t, "eve")}, tt.inside},
			{"a service for another user", []string{service, "Holdfast-User: eve"}, tt.inside},
			{"another user for her", []string{eve, "Holdfast-User: ada"}, "permission_denied ROLE_REQUIRED"},
			{"nobody", nil, "unauthenticated CREDENTIAL_MISSING"},
			{"the owner", []string{ada}, itsAll},
			{"a service", []string{service}, cmp.Or(map[string]string{"preferences": itsEmpty}[kind], itsAll)}, // a service has the tenant's
			{"a service for the owner", []string{service, "Holdfast-User: ada"}, itsAll},
		} {
			body := `{"items":[{"itemId":"i",` + tt.item + `}]}`
			got := b.call(t, m, body, caller.headers...)
			if got.code == "ok" && !strings.Contains(got.body, caller.want) || got.code != "ok" && got.code+" "+got.reason != caller.want ||
				strings.Contains(got.body, secret) && caller.want != itsAll {
				t.Errorf("%s: %s is answered with %+v, want %s", kind, caller.name, got, caller.want)
			}
			if caller.want != itsAbsent {
				continue
			}
			// Nor can they tell whether it is there.
			if nowhere := b.call(t, m, strings.ReplaceAll(body, `"c1"`, `"c-nowhere"`), caller.headers...); got.body != nowhere.body {
				t.Errorf("%s: %s gets\n%s, and of what does not exist\n%s", kind, caller.name, got.body, nowhere.body)
			}
		}
	}
}
