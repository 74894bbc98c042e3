package handlers_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"holdfast/gen/holdfast/state/v1/statev1connect"
	"holdfast/handlers"
	"holdfast/handlers/state"
)

const (
	stateRPCs = "/holdfast.state.v1.StateService/"
)

func stateService(m *state.Manager) handlers.Service {
	return handlers.NewService[statev1connect.StateServiceHandler](
		statev1connect.StateServiceName, statev1connect.NewStateServiceHandler, m)
}

var stateArea = area{
	fill: fillState,
	fuzzing: fuzzing{
		seed: [][2]string{
			{"Apply", `{"ref":{"type":"note","name":"c1"},"ifVersion":0,"operations":[{"setState":{"a":1}},{"append":{"collection":"items","json":1}}]}`},
		},
		service: map[string]string{"PutType": "ok", "ListTypes": "ok", "DeleteType": "not_found"},
		reads: map[string][2]string{
			"": {"Read", `{"reads":[{"ref":{"type":"note","name":"c1"},"queries":[{"collection":"items"}]}]}`},
		},
		full: map[string]string{
			"Apply": `{"requestId":"r-2","ifVersion":"1","ref":{"type":"note","name":"c1","owner":"ada"},"mustExist":true,"labels":{"a":"b"},"ttl":"90000s","operations":[
				{"setState":{"a":{"b":[1]}}},{"setStateJson":"{\"a\":{\"b\":[1]},\"n\":1}"},{"setFields":{"fields":{"/a/b/0":2},"fieldsJson":{"c":"3"},"remove":["d"]}},
				{"increment":{"path":"n","by":0.5}},{"append":{"collection":"items","jsonText":"1"}},
				{"put":{"entry":{"collection":"items","key":"k","text":"t","labels":{"a":"b"}},"onExists":"ON_EXISTS_KEEP"}},{"put":{"entry":{"collection":"items","key":"l","data":"AAE="}}},
				{"expect":{"path":"n","json":1.5}},{"expect":{"collection":"items","key":"k","text":"t"}},{"expect":{"collection":"items","last":{"entries":[{"data":"AAE="}]}}},
				{"delete":{"collection":"items","prefix":"l","returnDeleted":true}},{"delete":{"collection":"items","keys":["k"]}},{"delete":{"collection":"items","last":1}},
				{"lease":{"name":"w","holder":"h","duration":"30s"}},{"emit":"edited"},{"setTimer":{"name":"t","dueIn":"60s"}},{"setTimer":{"name":"u","dueTime":"2026-01-01T00:00:00Z"}},
				{"clearTimer":"u"}]}`,
			"ApplyTogether": `{"requestId":"r-3","changes":[{"ifVersion":"1","ref":{"type":"note","name":"c1","owner":"ada"},"mustExist":true,"labels":{"a":"b"},"ttl":"90000s",
				"operations":[{"increment":{"path":"n","by":0.5}}]},{"ref":{"type":"note","name":"c3"},"keepForever":true}]}`,
			"Read": `{"reads":[{"ref":{"type":"note","name":"c1","owner":"ada"},"ifVersionNot":"9","withoutState":true,"queries":[
				{"collection":"items","prefix":"0","after":"0","before":"1","reverse":true,"limit":5},{"collection":"items","keys":["000000000001"]},{"collection":"items","label":{"key":"a","value":"b"}}]}]}`,
			"ListStates":  `{"pageSize":5,"filter":{"type":"note","owner":"ada","namePrefix":"c","labels":{"a":"b"}},"byName":true,"withState":true}`,
			"DeleteState": `{"requestId":"r-2","ifVersion":"1","ref":{"type":"note","name":"c1"}}`,
			"ForkState": `{"requestId":"r-2c1","ifVersion":"0","ref":{"type":"note","name":"c1"},"atVersion":"1","through":{"collection":"items","key":"000000000001"},
				"newRef":{"type":"note","name":"c1-2"},"labels":{"a":"b"}}`,
			"PutType":    `{"requestId":"r-2","ifVersion":"0","type":{"type":"note","stateSchema":{"type":"object"},"collectionSchemas":{"lines":{"minimum":1.5}},"ttl":"90000s","usersChangeShared":true}}`,
			"ListTypes":  `{"pageSize":5}`,
			"DeleteType": `{"requestId":"r-2","ifVersion":"1","type":"note"}`,
			"TakeTimers": `{"type":"note","worker":"w","limit":5,"leaseDuration":"30s","wait":"0.01s"}`,
		},
	},
	cases: map[string]isolationCase{
		// The names of each user are the user's own: what another has is not there, and what is made has the same name.
		stateRPCs + "Apply":         {test: isolateApply},
		stateRPCs + "ApplyTogether": {test: isolateApply},
		stateRPCs + "Read": {
			body:    `{"reads":[{"ref":{"type":"note","name":"c1"},"queries":[{"collection":"items"}]}]}`,
			outside: isOwn, inside: isOwn,
		},
		stateRPCs + "ListStates":  {body: `{"filter":{"type":"note"},"withState":true}`, outside: isEmpty, inside: isEmpty},
		stateRPCs + "DeleteState": {body: `{"ref":{"type":"note","name":"c1"}}`, outside: isEmpty, inside: isEmpty},
		stateRPCs + "ForkState":   {body: `{"ref":{"type":"note","name":"c1"},"newRef":{"type":"note","name":"c2"}}`, tenants: isNotFound},
		stateRPCs + "TakeTimers":  {body: `{"type":"note"}`, outside: isEmpty, inside: isEmpty},
		stateRPCs + "PutType":     {test: isolateTypes},
		stateRPCs + "ListTypes":   {test: isolateTypes},
		stateRPCs + "DeleteType":  {test: isolateTypes},
	},
}

// fillState makes the object c1 of the caller.
func fillState(tb testing.TB, b *bundle, caller string) {
	tb.Helper()
	b.must(tb, stateRPCs+"Apply", `{"ref":{"type":"note","name":"c1"},"requestId":"r-1","labels":{"a":"`+secret+`"},"operations":[
		{"setState":{"text":"`+secret+`"}},{"append":{"collection":"items","text":"`+secret+`"}},{"setTimer":{"name":"t","dueIn":"0s"}}]}`, caller)
}

// isolateTypes: types are declared by the tenant's services, for the tenant.
func isolateTypes(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	t.Helper()
	service, other := b.key(t, ""), b.tenant(t)
	b.must(t, stateRPCs+"PutType", `{"type":{"type":"note","stateSchema":{"title":"`+secret+`"}}}`, service)
	body := map[string]string{"PutType": `{"type":{"type":"note"}}`, "ListTypes": `{}`, "DeleteType": `{"type":"note"}`}[string(m.Name())]
	for name, tt := range map[string]struct {
		headers []string
		want    string
	}{
		"a user":                   {[]string{b.key(t, "ada")}, deniedUser},
		"a user's session":         {[]string{b.signIn(t, "ada")}, deniedUser},
		"a service for a user":     {[]string{service, "Holdfast-User: ada"}, deniedUser},
		"nobody":                   {nil, "unauthenticated CREDENTIAL_MISSING"},
		"another tenant's service": {[]string{other.key(t, "")}, "ok "},
	} {
		if got := b.call(t, m, body, tt.headers...); got.code+" "+got.reason != tt.want || strings.Contains(got.body, secret) {
			t.Errorf("%s is answered with %+v, want %s", name, got, tt.want)
		}
	}
	if got := b.call(t, registered()[stateRPCs+"ListTypes"], `{}`, service); !strings.Contains(got.body, secret) {
		t.Errorf("what another tenant's service did changed this one's: %+v", got)
	}
}

// isolateApply: a name is everyone's own, and only a service of the tenant says whose it means. Of several changes that happen together
// the last is the one that counts.
func isolateApply(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	t.Helper()
	ada, eve, service, other := b.key(t, "ada"), b.key(t, "eve"), b.key(t, ""), b.tenant(t)
	const (
		forAda  = "Holdfast-User: ada"
		own     = `{"ref":{"type":"note","name":"c1"},"operations":[{"setState":{"text":"mine"}}]}`
		adas    = `{"ref":{"type":"note","name":"c1","owner":"ada"},"operations":[{"setState":{"text":"mine"}}]}`
		tenants = `{"ref":{"type":"note","name":"c1","owner":""},"operations":[{"setState":{"text":"mine"}}]}`
		denied  = "permission_denied ROLE_REQUIRED"
	)
	asked := func(body string) string {
		if m.Name() == "ApplyTogether" {
			return `{"changes":[{"ref":{"type":"note","name":"beside"},"operations":[{"increment":{"path":"n"}}]},` + body + `]}`
		}
		return body
	}
	fillState(t, b, ada)
	read := func(header string) string {
		return b.call(t, registered()[stateRPCs+"Read"], `{"reads":[{"ref":{"type":"note","name":"c1"},"queries":[{"collection":"items"}]}]}`, header).body
	}
	before := read(ada)
	for name, tt := range map[string]struct {
		headers    []string
		body, want string
	}{
		"nobody":                     {nil, own, "unauthenticated CREDENTIAL_MISSING"},
		"another user":               {[]string{eve}, own, "ok "},
		"another user, of hers":      {[]string{eve}, adas, denied},
		"a user, of the tenant's":    {[]string{eve}, tenants, denied},
		"a service for another user": {[]string{service, "Holdfast-User: eve"}, adas, denied},
		"a service":                  {[]string{service}, own, "ok "},
		"another tenant's user":      {[]string{other.key(t, "ada")}, own, "ok "},
		"another tenant's service, of a user of that name": {[]string{other.key(t, "")}, adas, "ok "},
		"another tenant's service for that user":           {[]string{other.key(t, ""), forAda}, own, "ok "},
	} {
		got := b.call(t, m, asked(tt.body), tt.headers...)
		if got.code+" "+got.reason != tt.want || strings.Contains(got.body, secret) {
			t.Errorf("%s is answered with %+v, want %s", name, got, tt.want)
		}
	}
	if after := read(ada); after != before {
		t.Errorf("hers was %s, and is %s", before, after)
	}
	for name, headers := range map[string][]string{"eve": {eve}, "the tenant": {service}} {
		if got := read(headers[0]); !strings.Contains(got, "mine") || strings.Contains(got, secret) {
			t.Errorf("%s has %s", name, got)
		}
	}
	for name, headers := range map[string][]string{"she": {ada}, "a service": {service}, "a service for her": {service, forAda}} {
		if got := b.call(t, m, asked(adas), headers...); got.code != "ok" {
			t.Errorf("%s is answered with %+v", name, got)
		}
	}
	if after := read(ada); !strings.Contains(after, "mine") {
		t.Errorf("hers is %s", after)
	}
}
