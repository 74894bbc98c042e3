package linear

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	linearv1 "holdfast/gen/holdfast/linear/v1"
)

// What an assistant reacts to is there in whatever order the webhooks come: the session as it is now, what Linear gave it to begin with,
// and each step once, in order.
func TestAgentSessions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, c := b.endpoint(t).GetPath(), b.as(t, ada)
	session := func(status string, at int, more map[string]any) map[string]any {
		m := map[string]any{
			"id": "s1", "status": status, "issueId": "i1", "issue": map[string]any{"id": "i1", "team": map[string]any{"id": "eng"}}, "creatorId": "u1", "creator": map[string]any{"id": "u1", "name": "Grace"},
			"appUserId": "bot", "commentId": "c1", "createdAt": stamp(0), "updatedAt": stamp(at), "endedAt": nil, "externalUrls": []any{map[string]any{"label": "Log", "url": "https://a/b"}},
		}
		maps.Copy(m, more)
		return m
	}
	activity := func(id, kind, body string, at int) map[string]any {
		return map[string]any{"id": id, "agentSessionId": "s1", "content": map[string]any{"type": kind, "body": body}, "createdAt": stamp(at), "updatedAt": stamp(at), "userId": "u1", "user": map[string]any{"id": "u1", "name": "Grace"}}
	}
	hooks := []map[string]any{
		hook("AgentSessionEvent", "created", 1, map[string]any{
			"agentSession": session("pending", 1, nil), "promptContext": "<issue>Login fails</issue>", "guidance": []any{map[string]any{"body": "Be kind", "origin": map[string]any{"type": "Team", "team": map[string]any{"id": "eng", "name": "Eng"}}}},
			"appUserId": "bot", "previousComments": []any{},
		}),
		hook("AgentSessionEvent", "prompted", 5, map[string]any{"agentSession": session("active", 5, nil), "agentActivity": activity("p1", "prompt", "also fix the logout", 5)}),
		hook("AgentSessionEvent", "prompted", 9, map[string]any{"agentSession": session("awaitingInput", 9, map[string]any{"summary": "half done"}), "agentActivity": activity("p2", "prompt", "stop", 9)}),
		hook("AgentSessionEvent", "prompted", 7, map[string]any{"agentSession": session("active", 7, nil), "agentActivity": map[string]any{
			"id": "a1", "content": map[string]any{"type": "action", "action": "Read", "parameter": "main.go", "result": "ok"}, "createdAt": stamp(7), "updatedAt": stamp(7), "ephemeral": true, "signal": nil,
		}}),
	}
	for range 6 {
		rand.Shuffle(len(hooks), func(i, j int) { hooks[i], hooks[j] = hooks[j], hooks[i] })
		for _, m := range hooks {
			sent := b.clock.now()
			if rand.IntN(3) == 0 {
				sent = sent.Add(-time.Hour)
			}
			b.send(t, path, m, sent)
		}
	}
	sessions := must(c.ListAgentSessions(t.Context(), &linearv1.ListAgentSessionsRequest{Filter: &linearv1.AgentSessionFilter{IssueIds: []string{"i1"}, Statuses: []string{"awaitingInput"}}}))(t).GetAgentSessions()
	if len(sessions) != 1 {
		t.Fatalf("%v", sessions)
	}
	s := sessions[0]
	if s.GetAgentSessionId() != "s1" || s.GetSummary() != "half done" || s.GetPromptContext() != "<issue>Login fails</issue>" || s.GetCreator().GetName() != "Grace" || s.GetAppUserId() != "bot" ||
		len(s.GetGuidance()) != 1 || s.GetGuidance()[0].GetOrigin() != "Eng" || len(s.GetExternalLinks()) != 1 || s.GetExternalLinks()[0].GetLabel() != "Log" || s.GetCommentId() != "c1" {
		t.Errorf("%v", s)
	}
	if got := must(c.ListAgentSessions(t.Context(), &linearv1.ListAgentSessionsRequest{Filter: &linearv1.AgentSessionFilter{Statuses: []string{"complete"}}}))(t).GetAgentSessions(); len(got) > 0 {
		t.Errorf("%v", got)
	}
	var got []string
	for req := (&linearv1.ListAgentActivitiesRequest{AgentSessionId: "s1", PageSize: 2}); ; {
		res := must(c.ListAgentActivities(t.Context(), req))(t)
		for _, a := range res.GetActivities() {
			got = append(got, strings.Join([]string{a.GetActivityId(), a.GetType(), a.GetBody(), a.GetAction(), a.GetParameter(), a.GetResult(), a.GetUser().GetName()}, "|"))
		}
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	want := []string{"p1|prompt|also fix the logout||||Grace", "a1|action||Read|main.go|ok|", "p2|prompt|stop||||Grace"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// What cannot be read is no error, and a removal needs no more than an id.
	for _, m := range []map[string]any{
		hook("AgentSessionEvent", "created", 1, nil),
		hook("AgentSessionEvent", "created", 1, map[string]any{"agentSession": map[string]any{"id": "../"}}),
		hook("AgentSessionEvent", "prompted", 1, map[string]any{"agentSession": json.Number("5")}),
	} {
		if said := b.send(t, path, m, b.clock.now()); !strings.HasPrefix(said, "ignored") {
			t.Errorf("%s", said)
		}
	}
}
