package handlers_test

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

const sessionService = "/holdfast.session.v1.SessionService/"

var sessionArea = area{
	fill:    fillSession,
	alone:   true,
	fuzzing: sessionFuzzing,
	cases: map[string]isolationCase{
		sessionService + "CreateSession":      {test: isolateSignIn},
		sessionService + "RefreshSession":     {test: isolateRefresh},
		sessionService + "GetSession":         {body: `{"sessionId":"$session"}`, reads: true},
		sessionService + "ListSessions":       {body: `{"user":"ada"}`, outside: isEmpty, inside: deniedUser, reads: true},
		sessionService + "UpdateSession":      {body: `{"sessionId":"$session","session":{"activeConversationId":"mine"}}`},
		sessionService + "EndSessions":        {body: `{"sessionIds":["$session"]}`},
		sessionService + "PutConnection":      {body: `{"sessionId":"$session","connection":{"connectionId":"$connection","modality":"MODALITY_VOICE"}}`},
		sessionService + "ListSecurityEvents": {body: `{"user":"ada"}`, outside: isEmpty, inside: deniedUser},
		sessionService + "PutSessionSettings": {test: isolateSettings},
	},
}

// The ids of sessions and connections are the server's: what names one finds none here. TestIsolation has them in place.
var sessionFuzzing = fuzzing{
	seed:    [][2]string{{"CreateSession", `{"activeProjectId":"c1"}`}},
	reads:   map[string][2]string{"": {"ListSessions", `{}`}, "PutSessionSettings": {sessionService + "PutSessionSettings", `{}`}},
	service: map[string]string{"PutSessionSettings": "ok"},
	needy:   []string{"GetSession", "UpdateSession", "PutConnection"},
	full: map[string]string{
		"CreateSession": `{"requestId":"r-2","user":"ada","device":{"name":"n","platform":"p","userAgent":"u","address":"a"},"replaceSessionId":"` + noSession + `",
			"activeConversationId":"c1","activeProjectId":"p"}`,
		"GetSession":   `{"sessionId":"` + noSession + `","ifVersionNot":"1"}`,
		"ListSessions": `{"pageSize":5,"pageToken":"","user":"ada","includeEnded":true}`,
		"UpdateSession": `{"requestId":"r-2","ifVersion":"1","sessionId":"` + noSession + `","session":{"activeConversationId":"c1","activeProjectId":"p","labels":{"a":"b"}},
			"updateMask":"activeProjectId,labels.a"}`,
		"EndSessions": `{"requestId":"r-2","sessionIds":[],"scope":"END_SCOPE_USER","user":"ada"}`,
		"PutConnection": `{"requestId":"r-2","ifVersion":"1","sessionId":"` + noSession + `","connection":{"connectionId":"` + noConnection + `",
			"device":{"name":"n","platform":"p","userAgent":"u","address":"a"},"modality":"MODALITY_BOTH","capabilities":["a","b"]},"userActive":true,"close":false}`,
		"ListSecurityEvents": `{"pageSize":5,"pageToken":"","user":"ada"}`,
		"PutSessionSettings": `{"requestId":"r-2","ifVersion":"0","settings":{"accessTtl":"60s","idleTimeout":"300s","absoluteTimeout":"600s","maxSessions":5,
			"limitPolicy":"SESSION_LIMIT_POLICY_REFUSE","refreshGrace":"10s","connectionTimeout":"30s","discardDevices":true},"updateMask":"maxSessions"}`,
	},
}

const (
	noSession    = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	noConnection = "aaaaaaaaaaaaaaaa"
)

// deniedUser is what a user is told who names another: that there is one, or none, is not told.
const deniedUser = "permission_denied ROLE_REQUIRED"

// signedIn is what CreateSession and RefreshSession answer.
type signedIn struct {
	Session struct {
		SessionID string `json:"sessionId"`
	} `json:"session"`
	Tokens struct {
		AccessToken  string `json:"accessToken"`
		RefreshToken string `json:"refreshToken"`
	} `json:"tokens"`
}

func (b *bundle) session(tb testing.TB, method, body string, into any, headers ...string) {
	tb.Helper()
	got := b.call(tb, registered()[sessionService+method], body, headers...)
	if got.code != "ok" {
		tb.Fatalf("%s: %+v", method, got)
	}
	if err := json.Unmarshal([]byte(got.body), into); err != nil {
		tb.Fatal(err)
	}
}

// fillSession signs ada in, with a connection and a conversation.
func fillSession(tb testing.TB, b *bundle, ada string) {
	tb.Helper()
	fillConversation(tb, b, ada)
	var in signedIn
	b.session(tb, "CreateSession", `{"device":{"name":"`+secret+`"}}`, &in, ada)
	b.names["$session"] = in.Session.SessionID
	var opened struct {
		Connection struct {
			ConnectionID string `json:"connectionId"`
		} `json:"connection"`
	}
	b.session(tb, "PutConnection", b.body(`{"sessionId":"$session","connection":{"modality":"MODALITY_TEXT","device":{"name":"`+secret+`"}}}`), &opened, ada)
	b.names["$connection"] = opened.Connection.ConnectionID
}

// Who may sign ada in: herself, and a service of her tenant. The same name in another tenant is another user.
func isolateSignIn(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	const body = `{"user":"ada"}`
	ada, eve, service := b.key(t, "ada"), b.key(t, "eve"), b.key(t, "")
	var mine, theirs signedIn
	b.session(t, "CreateSession", `{"user":"ada"}`, &mine, service)
	other := b.tenant(t)
	other.session(t, "CreateSession", `{"user":"ada"}`, &theirs, other.key(t, ""))
	if mine.Session.SessionID[:26] == theirs.Session.SessionID[:26] {
		t.Error("two tenants share a user's object")
	}
	for name, tt := range map[string]struct {
		headers []string
		want    string
	}{
		"another user":                  {[]string{eve}, deniedUser},
		"a service for another user":    {[]string{service, "Holdfast-User: eve"}, deniedUser},
		"a session's own token":         {[]string{"Authorization: Bearer " + mine.Tokens.AccessToken}, deniedUser},
		"a refresh token":               {[]string{"Authorization: Bearer " + mine.Tokens.RefreshToken}, "unauthenticated CREDENTIAL_INVALID"},
		"nobody":                        {nil, "unauthenticated CREDENTIAL_MISSING"},
		"she":                           {[]string{ada}, "ok "},
		"a service for her":             {[]string{service, "Holdfast-User: ada"}, "ok "},
		"another tenant's token for it": {[]string{"Authorization: Bearer " + theirs.Tokens.AccessToken}, deniedUser},
	} {
		if got := b.call(t, m, body, tt.headers...); got.code+" "+got.reason != tt.want {
			t.Errorf("%s is answered with %+v, want %s", name, got, tt.want)
		}
	}
	// What a token opens is its own tenant's and user's.
	get := registered()[sessionService+"GetSession"]
	for name, token := range map[string]string{"another tenant's": theirs.Tokens.AccessToken} {
		if got := b.call(t, get, `{"sessionId":"`+mine.Session.SessionID+`"}`, "Authorization: Bearer "+token); got.code != "not_found" {
			t.Errorf("with %s token: %+v", name, got)
		}
	}
}

// Only a refresh token is exchanged, and for nothing but its own session's next pair.
func isolateRefresh(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	ada, service := b.key(t, "ada"), b.key(t, "")
	var in, out signedIn
	b.session(t, "CreateSession", `{}`, &in, ada)
	forged := in.Tokens.RefreshToken[:50] + strings.Repeat("A", len(in.Tokens.RefreshToken)-50)
	for name, tt := range map[string]struct {
		headers []string
		want    string
	}{
		"her key":                   {[]string{ada}, "unauthenticated CREDENTIAL_INVALID"},
		"a service":                 {[]string{service, "Holdfast-User: ada"}, "unauthenticated CREDENTIAL_INVALID"},
		"her access token":          {[]string{"Authorization: Bearer " + in.Tokens.AccessToken}, "unauthenticated CREDENTIAL_INVALID"},
		"a forged token":            {[]string{"Authorization: Bearer " + forged}, "unauthenticated CREDENTIAL_INVALID"},
		"a cut token":               {[]string{"Authorization: Bearer " + in.Tokens.RefreshToken[:90]}, "unauthenticated CREDENTIAL_INVALID"},
		"hers, for another":         {[]string{"Authorization: Bearer " + in.Tokens.RefreshToken, "Holdfast-User: eve"}, deniedUser},
		"her access token, renamed": {[]string{"Authorization: Bearer hfr_" + in.Tokens.AccessToken[4:]}, "unauthenticated CREDENTIAL_INVALID"},
		"nobody":                    {nil, "unauthenticated CREDENTIAL_MISSING"},
	} {
		if got := b.call(t, m, `{}`, tt.headers...); got.code+" "+got.reason != tt.want {
			t.Errorf("%s is answered with %+v, want %s", name, got, tt.want)
		}
	}
	b.session(t, "RefreshSession", `{}`, &out, "Authorization: Bearer "+in.Tokens.RefreshToken)
	if out.Session.SessionID != in.Session.SessionID || out.Tokens == in.Tokens {
		t.Errorf("refreshed: %+v", out)
	}
	get := registered()["/holdfast.conversation.v1.ConversationService/ListConversations"]
	if got := b.call(t, get, `{}`, "Authorization: Bearer "+out.Tokens.RefreshToken); got.reason != "CREDENTIAL_INVALID" {
		t.Errorf("a refresh token opened something: %+v", got)
	}
}

// Settings are the tenant's, for its services only.
func isolateSettings(t *testing.T, b *bundle, m protoreflect.MethodDescriptor) {
	service, other := b.key(t, ""), b.tenant(t)
	const set2 = `{"settings":{"maxSessions":2}}`
	for name, headers := range map[string][]string{"a user": {b.key(t, "ada")}, "a service for a user": {service, "Holdfast-User: ada"}} {
		for _, body := range []string{`{}`, set2} {
			if got := b.call(t, m, body, headers...); got.code+" "+got.reason != deniedUser {
				t.Errorf("%s is answered with %+v", name, got)
			}
		}
	}
	if got := b.call(t, m, set2, service); got.code != "ok" {
		t.Errorf("a service is answered with %+v", got)
	}
	type set struct{ Settings struct{ MaxSessions int } }
	var mine, theirs set
	b.session(t, "PutSessionSettings", `{}`, &mine, service)
	b.session(t, "PutSessionSettings", `{}`, &theirs, other.key(t, ""))
	if mine.Settings.MaxSessions != 2 || theirs.Settings.MaxSessions != 10 {
		t.Errorf("this tenant's are %+v, another's %+v", mine, theirs)
	}
}

// Nobody ends another's sessions by the user's name, and a session's token of another tenant reaches none here.
func TestNobodyEndsAnothersSessions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hers := b.signIn(t, "ada")
	end := registered()[sessionService+"EndSessions"]
	for name, tt := range map[string]struct{ credential, body, want string }{
		"another user":                  {b.key(t, "eve"), `{"scope":"END_SCOPE_USER","user":"ada"}`, deniedUser},
		"another user's session":        {b.signIn(t, "eve"), `{"scope":"END_SCOPE_USER","user":"ada"}`, deniedUser},
		"another user, everybody's":     {b.key(t, "eve"), `{"scope":"END_SCOPE_TENANT"}`, deniedUser},
		"another user, his own":         {b.signIn(t, "max"), `{"scope":"END_SCOPE_OTHERS"}`, "ok "},
		"another tenant's service":      {b.tenant(t).key(t, ""), `{"scope":"END_SCOPE_USER","user":"ada"}`, "ok "},
		"another tenant's, everybody's": {b.tenant(t).key(t, ""), `{"scope":"END_SCOPE_TENANT"}`, "ok "},
		"another tenant's same name":    {b.tenant(t).key(t, "ada"), `{"scope":"END_SCOPE_USER"}`, "ok "},
	} {
		got := b.call(t, end, tt.body, tt.credential)
		if got.code+" "+got.reason != tt.want || strings.Contains(got.body, hers[len("Authorization: Bearer hfa_"):][:26]) {
			t.Errorf("%s is answered with %+v", name, got)
		}
	}
	b.must(t, sessionService+"GetSession", `{}`, hers)
}
