package project

import (
	"context"

	projectv1 "holdfast/gen/holdfast/project/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/watch"
	"holdfast/object"
)

// Sources are the items of WatchService that are about projects and tasks.
func (m *Manager) Sources() watch.Sources {
	return watch.Sources{
		"project_id": m.followProject, "task_id": m.followTask, "list.projects": m.followProjects, "list.tasks": m.followTasks,
		"preferences": m.followPreferences,
	}
}

func (m *Manager) followProject(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.Object(ctx, m.o.Projects, object.ID(item.GetProjectId()), 0, item, tell, func(c *object.Change[projectState]) *watchv1.WatchResponse {
		change := watch.Change(c)
		change.Put = []*watchv1.Thing{{Key: "project", Thing: &watchv1.Thing_Project{Project: presentProject(c.Info, c.State)}}}
		return watch.Changed(change)
	})
}

func (m *Manager) followTask(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.Object(ctx, m.o.Tasks, object.ID(item.GetTaskId()), 0, item, tell, func(c *object.Change[taskState]) *watchv1.WatchResponse {
		change := watch.Change(c)
		change.Put = []*watchv1.Thing{{Key: "task", Thing: &watchv1.Thing_Task{Task: presentTask(c.Info, c.State)}}}
		return watch.Changed(change)
	})
}

func (m *Manager) followProjects(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.List(ctx, m.o.Projects, item, tell, func(size int32, token string) (things []*watchv1.Thing, next string, err error) {
		res, err := m.ListProjects(ctx, &projectv1.ListProjectsRequest{PageSize: size, PageToken: token, Filter: item.GetList().GetProjects()})
		for _, p := range res.GetProjects() {
			things = append(things, &watchv1.Thing{Key: "projects/" + p.GetProjectId(), Thing: &watchv1.Thing_Project{Project: p}})
		}
		return things, res.GetNextPageToken(), err
	})
}

func (m *Manager) followTasks(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.List(ctx, m.o.Tasks, item, tell, func(size int32, token string) (things []*watchv1.Thing, next string, err error) {
		res, err := m.ListTasks(ctx, &projectv1.ListTasksRequest{PageSize: size, PageToken: token, Filter: item.GetList().GetTasks()})
		for _, t := range res.GetTasks() {
			things = append(things, &watchv1.Thing{Key: "tasks/" + t.GetTaskId(), Thing: &watchv1.Thing_Task{Task: t}})
		}
		return things, res.GetNextPageToken(), err
	})
}

func (m *Manager) followPreferences(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.List(ctx, m.o.Preferences, item, tell, func(int32, string) (things []*watchv1.Thing, next string, err error) {
		res, err := m.GetPreferences(ctx, &projectv1.GetPreferencesRequest{})
		return []*watchv1.Thing{{Key: "preferences", Thing: &watchv1.Thing_Preferences{Preferences: res.GetEffective()}}}, "", err
	})
}
