package handlers_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// walk sends the examples of a service's RPCs in an order in which each of them succeeds.
type walk []step

// step is one call: of a method of the service, with its example, or, with a body, of any method that the examples need.
type step struct {
	method, body string
	// service: no user sends it.
	service bool
	// bearer, where it is set, is the word for the token that it is sent with.
	bearer string
	// learn: what the examples call by these words is at these places in the answer.
	learn map[string]string
}

var walks = map[string]walk{ //nolint:gochecknoglobals // never changed
	"holdfast.conversation.v1.ConversationService": {
		{method: "CreateConversation"},
		{method: "Append"},
		{method: "GetConversation"},
		{method: "ListConversations"},
		{method: "UpdateConversation"},
		{method: "ListMessages"},
		{method: "ListRecords"},
		{method: "EditMessages"},
		{method: "GetContextWindow"},
		{method: "ForkConversation"},
		{method: conversationRPCs + "Append", body: `{"conversationId":"c1","messages":[{"role":"ROLE_USER","text":"x","tokenCount":3000},{"role":"ROLE_USER","text":"y","tokenCount":3000}]}`},
		{method: "ProposeCompaction"},
		{method: "CommitCompaction"},
		{method: "DeleteConversation"},
	},
	"holdfast.coordination.v1.CoordinationService": {
		{method: "UpdateApi", service: true},
		{method: "BeginCall"},
		{method: "FinishCall"},
		{method: "GetCall"},
		{method: "ListCalls"},
		{method: "Acquire", service: true},
		{method: "AcquireAndWait"},
		{method: "Release", service: true},
		{method: "Report"},
		{method: "GetApi"},
		{method: "ListApis"},
	},
	"holdfast.inspect.v1.InspectService": {
		{method: conversationRPCs + "CreateConversation", body: `{"conversationId":"c1"}`},
		{method: conversationRPCs + "Append", body: `{"conversationId":"c1","messages":[{"role":"ROLE_USER","text":"x"}]}`},
		{method: "ListObjects"},
		{method: "GetObject"},
		{method: "ListEvents"},
		{method: "DiffObject"},
		{method: "RestoreObject"},
		{method: "DeleteObject"},
		{method: "ListTimers"},
		{method: conversationRPCs + "Append", body: `{"conversationId":"c1","voice":{"status":"VOICE_STATUS_LISTENING"}}`},
		{method: "RetryTimer"},
		{method: "EraseUser", service: true},
	},
	"holdfast.live.v1.LiveService": {
		{method: conversationRPCs + "CreateConversation", body: `{"conversationId":"c1"}`},
		{method: "ConnectLive"},
		{method: "IngestLive"},
		{method: "DisconnectLive"},
		{method: liveRPCs + "ConnectLive", body: `{"conversationId":"c1","options":{"leaveToolCalls":true}}`},
		{method: liveRPCs + "IngestLive", body: `{"conversationId":"c1","fencingToken":2,"frames":[{"clientIndex":1,"object":{"toolCall":{"functionCalls":[{"id":"a","name":"run"}]}}}]}`},
		{method: "ClaimToolCall"},
		{method: "CompleteToolCall"},
		{method: "ListLiveFrames"},
	},
	"holdfast.state.v1.StateService": {
		{method: "Apply"},
		{method: "ApplyTogether"},
		{method: "Read"},
		{method: "ListStates"},
		{method: "ForkState"},
		{method: "TakeTimers"},
		{method: "PutType", service: true},
		{method: "ListTypes", service: true},
		{method: "DeleteType", service: true},
		{method: "DeleteState"},
	},
	"holdfast.session.v1.SessionService": {
		{method: conversationRPCs + "CreateConversation", body: `{"conversationId":"c1"}`},
		{method: "CreateSession", service: true, learn: map[string]string{"$access": "tokens.accessToken", "$refresh": "tokens.refreshToken"}},
		{method: "GetSession", bearer: "$access"},
		{method: "ListSessions"},
		{method: "UpdateSession", bearer: "$access"},
		{method: "PutConnection", bearer: "$access", learn: map[string]string{"k3xw5q2h7m4tzb6d": "connection.connectionId"}},
		{method: "ListSecurityEvents"},
		{method: "PutSessionSettings", service: true},
		{method: "RefreshSession", bearer: "$refresh"},
		{method: "EndSessions", bearer: "$access"},
	},
	"holdfast.project.v1.ProjectService": {
		{method: "PutProject"},
		{method: "GetProject"},
		{method: "ListProjects"},
		{method: "DeleteProject"},
		{method: "PutTask"},
		{method: "GetTask"},
		{method: "ListTasks"},
		{method: "DeleteTask"},
		{method: "UpdatePreferences"},
		{method: "GetPreferences"},
		{method: "GetProjectContext"},
	},
	"holdfast.watch.v1.WatchService": {{method: "Watch"}},
	"holdfast.linear.v1.LinearService": {
		{method: "PutEndpoint", service: true},
		{method: "ListEndpoints", service: true},
		{method: "PutIssues", service: true},
		{method: "CreateIssue", service: true},
		{method: "UpdateIssue", service: true},
		{method: "CommentOnIssue", service: true},
		{method: "RespondToAgentSession", service: true},
		{method: "DeleteEndpoint", service: true},
		{method: "ListIssues"},
		{method: "ListComments"},
		{method: "ListAttachments"},
		{method: "ListIssueHistory"},
		{method: "ListAgentSessions"},
		{method: "ListAgentActivities"},
	},
}

// examples are those of the comments in proto/, by procedure: the first lines that are indented.
func examples(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	declared := regexp.MustCompile(`(?m)^((?: {2}//.*\n)*) {2}rpc (\w+)`)
	err := filepath.WalkDir("../proto", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".proto" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := string(b)
		pkg := regexp.MustCompile(`(?m)^package (.*);`).FindStringSubmatch(text)
		for _, part := range regexp.MustCompile(`(?m)^service `).Split(text, -1)[1:] {
			name, _, _ := strings.Cut(part, " ")
			for _, rpc := range declared.FindAllStringSubmatch(part, -1) {
				var example []string
				for line := range strings.SplitSeq(rpc[1], "\n") {
					if code, ok := strings.CutPrefix(line, "  //     "); ok {
						example = append(example, code)
					} else if len(example) > 0 {
						break
					}
				}
				out["/"+pkg[1]+"."+name+"/"+rpc[2]] = strings.Join(example, "\n")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Each RPC's comment has an example, and it works as it stands.
func TestExamplesSucceed(t *testing.T) {
	t.Parallel()
	all := examples(t)
	services := map[string]map[string]bool{} // RPCs that are to be walked
	for p, m := range registered() {
		name := string(m.Parent().FullName())
		if services[name] == nil {
			services[name] = map[string]bool{}
		}
		services[name][p] = true
		if !json.Valid([]byte(all[p])) {
			t.Errorf("the example of %s is no JSON: %q", p, all[p])
		}
	}
	for name, left := range services {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			user, service := b.key(t, "ada"), b.key(t, "")
			for _, s := range walks[name] {
				if s.method == "RespondToAgentSession" { // Linear's webhooks make sessions
					fillParts(t, b, "5d2c4f3e-0a57-4b5e-9d3c-6f5a1f0c2b11", "9cfb482a-81e3-4154-b5b9-2c805e70a02d")
				}
				p, body, headers := s.method, s.body, []string{user}
				if body == "" {
					p = "/" + name + "/" + s.method
					body = all[p]
					delete(left, p)
				}
				if s.service {
					headers[0] = service
				}
				if s.bearer != "" {
					headers[0] = "Authorization: Bearer " + b.names[s.bearer]
				}
				m := registered()[p]
				if m == nil {
					t.Fatalf("there is no %s", p)
				}
				got := b.call(t, m, b.body(body), headers...)
				if got.code != "ok" {
					t.Errorf("%s %s: %+v", p, body, got)
				}
				for word, path := range s.learn {
					b.names[word] = lookUp(t, got.body, path)
				}
			}
			for p := range left {
				t.Errorf("nobody has tried the example of %s", p)
			}
		})
	}
}

// lookUp finds a text in JSON.
func lookUp(t *testing.T, document, path string) string {
	t.Helper()
	var at any
	if err := json.Unmarshal([]byte(document), &at); err != nil {
		t.Fatal(err)
	}
	for name := range strings.SplitSeq(path, ".") {
		if list, ok := at.([]any); ok && len(list) > 0 {
			at = list[0]
		}
		fields, _ := at.(map[string]any)
		at = fields[name]
	}
	text, _ := at.(string)
	if text == "" {
		t.Fatalf("%s is not in %s", path, document)
	}
	return text
}
