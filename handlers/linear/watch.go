package linear

import (
	"context"

	linearv1 "holdfast/gen/holdfast/linear/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/watch"
	"holdfast/object"
)

// Sources are the items of WatchService that are about issues.
func (m *Manager) Sources() watch.Sources {
	return watch.Sources{"issue_id": m.followIssue, "list.issues": m.followIssues}
}

func (m *Manager) followIssue(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.Object(ctx, m.o.Issues, object.ID(item.GetIssueId()), 0, item, tell, func(c *object.Change[issueState]) *watchv1.WatchResponse {
		change := watch.Change(c)
		if c.State.GetStamp() == nil { // Linear has only mentioned it
			change.Reset_, change.Absent = true, true
			return watch.Changed(change)
		}
		change.Put = []*watchv1.Thing{{
			Key: "issue", Thing: &watchv1.Thing_Issue{Issue: presentIssue(object.Snapshot[issueState]{Info: c.Info, State: c.State})},
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
