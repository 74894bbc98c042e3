package linear

import (
	"context"

	linearv1 "holdfast/gen/holdfast/linear/v1"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/watch"
	"holdfast/object"
)

// Sources are the items of WatchService that are about issues.
func (m *Manager) Sources() watch.Sources {
	return watch.Sources{
		"issue_id": m.followIssue, "list.issues": m.followIssues, "list.comments": m.followComments,
		"agent_session_id": m.followSession, "list.agent_sessions": m.followSessions,
	}
}

func (m *Manager) followIssue(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.Object(ctx, m.o.Issues, object.ID(item.GetIssueId()), 0, item, tell, func(c *object.Change[issueState]) *watchv1.WatchResponse {
		change := watch.Change(c)
		if c.State.GetStamp() == nil && len(c.State.GetLocalChanges()) == 0 { // Linear has only mentioned it
			change.Reset_, change.Absent = true, true
			return watch.Changed(change)
		}
		change.Put = []*watchv1.Thing{{
			Key: "issue", Thing: &watchv1.Thing_Issue{Issue: PresentIssue(object.Snapshot[issueState]{Info: c.Info, State: c.State})},
		}}
		return watch.Changed(change)
	})
}

func (m *Manager) followIssues(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.List(ctx, m.o.Issues, item, tell, func(size int32, token string) (things []*watchv1.Thing, next string, err error) {
		res, err := m.ListIssues(ctx, &linearv1.ListIssuesRequest{PageSize: size, PageToken: token, Filter: item.GetList().GetIssues()})
		for _, i := range res.GetIssues() {
			things = append(things, &watchv1.Thing{Key: "issues/" + i.GetIssueId(), Thing: &watchv1.Thing_Issue{Issue: i}})
		}
		return things, res.GetNextPageToken(), err
	})
}

func (m *Manager) followComments(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.List(ctx, m.o.Comments, item, tell, func(size int32, token string) (things []*watchv1.Thing, next string, err error) {
		res, err := m.ListComments(ctx, &linearv1.ListCommentsRequest{PageSize: size, PageToken: token, Filter: item.GetList().GetComments(), NewestFirst: true})
		for _, c := range res.GetComments() {
			things = append(things, &watchv1.Thing{Key: "comments/" + c.GetCommentId(), Thing: &watchv1.Thing_Comment{Comment: c}})
		}
		return things, res.GetNextPageToken(), err
	})
}

// watchedActivities is how many activities of a session a watch begins with.
const watchedActivities = 50

func (m *Manager) followSession(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	id := object.ID(item.GetAgentSessionId())
	return watch.Object(ctx, m.o.AgentSessions, id, watchedActivities, item, tell, func(c *object.Change[sessionState]) *watchv1.WatchResponse {
		change := watch.Change(c)
		if c.State != nil {
			session := presentSession(object.Snapshot[sessionState]{Info: c.Info, State: c.State})
			change.Put = append(change.Put, &watchv1.Thing{Key: "agent_session", Thing: &watchv1.Thing_AgentSession{AgentSession: session}})
		}
		for _, e := range c.Entries {
			if a, ok := e.Value.(*storev1.AgentActivity); ok {
				change.Put = append(change.Put, &watchv1.Thing{Key: "activities/" + e.Key, Thing: &watchv1.Thing_AgentActivity{AgentActivity: presentActivity(a)}})
			}
		}
		return watch.Changed(change)
	})
}

func (m *Manager) followSessions(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.List(ctx, m.o.AgentSessions, item, tell, func(size int32, token string) (things []*watchv1.Thing, next string, err error) {
		res, err := m.ListAgentSessions(ctx, &linearv1.ListAgentSessionsRequest{PageSize: size, PageToken: token, Filter: item.GetList().GetAgentSessions()})
		for _, s := range res.GetAgentSessions() {
			key := "agent_sessions/" + s.GetAgentSessionId()
			things = append(things, &watchv1.Thing{Key: key, Thing: &watchv1.Thing_AgentSession{AgentSession: s}})
		}
		return things, res.GetNextPageToken(), err
	})
}
