package project

import (
	"context"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	objectv1 "holdfast/gen/holdfast/object/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
	storev1 "holdfast/gen/holdfast/store/project/v1"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// projectTerms are what projects can be listed by.
func projectTerms(s *storev1.ProjectState) []string {
	return projectFilter(s.GetArchiveTime() != nil, s.GetLabels())
}

func projectFilter(archived bool, labels map[string]string) []string {
	t := []string{"active"}
	if archived {
		t[0] = "archived"
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		t = append(t, t[0]+"/label:"+k+"="+labels[k])
	}
	return t
}

// setProject sets the fields that the mask names.
func setProject(s *storev1.ProjectState, p *projectv1.Project, mask *fieldmaskpb.FieldMask) {
	has := rpc.MaskHas(mask)
	if has("title") {
		s.Title = p.GetTitle()
	}
	if has("description") {
		s.Description = p.GetDescription()
	}
	if has("repository") {
		s.Repository = p.GetRepository()
	}
	if has("labels") {
		s.Labels = p.GetLabels()
	}
	if has("settings") {
		s.Settings = p.GetSettings()
	}
	if has("linear_team_ids") {
		s.LinearTeamIds = p.GetLinearTeamIds()
	}
	if has("linear_project_ids") {
		s.LinearProjectIds = p.GetLinearProjectIds()
	}
}

// archive takes the project out of the lists, or puts it back, and tells whether that changes anything.
func archive(s *storev1.ProjectState, restore bool, now time.Time) bool {
	if (s.GetArchiveTime() == nil) == restore {
		return false
	}
	s.ArchiveTime = nil
	if !restore {
		s.ArchiveTime = timestamppb.New(now)
	}
	return true
}

func presentProject(i object.Info, s *storev1.ProjectState) *projectv1.Project {
	return &projectv1.Project{
		ProjectId: string(i.ID), Owner: string(i.Owner), Title: s.GetTitle(), Description: s.GetDescription(),
		Repository: s.GetRepository(), Labels: s.GetLabels(), Settings: s.GetSettings(), LinearTeamIds: s.GetLinearTeamIds(),
		LinearProjectIds: s.GetLinearProjectIds(), ArchiveTime: s.GetArchiveTime(),
	}
}

// CreateProject implements ProjectService.
func (m *Manager) CreateProject(
	ctx context.Context, req *projectv1.CreateProjectRequest,
) (*projectv1.CreateProjectResponse, error) {
	id, err := rpc.NewID(ctx, m.o.Projects, req.GetProjectId(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return rpc.Do(ctx, m.o.Projects, id, req, func(tx *object.Tx[projectState]) (*projectv1.CreateProjectResponse, error) {
		setProject(tx.State(), req.GetProject(), nil)
		return &projectv1.CreateProjectResponse{Project: presentProject(tx.Info(), tx.State())}, nil
	}, append(shared(req.GetShared()), object.Create())...)
}

// GetProject implements ProjectService.
func (m *Manager) GetProject(ctx context.Context, req *projectv1.GetProjectRequest) (*projectv1.GetProjectResponse, error) {
	s, err := m.o.Projects.View(ctx, object.ID(req.GetProjectId()), object.IfVersionNot(object.Version(req.GetIfVersionNot())))
	if err != nil {
		return nil, err
	}
	if s.NotModified {
		return &projectv1.GetProjectResponse{Metadata: rpc.Metadata(s.Info), NotModified: true}, nil
	}
	return &projectv1.GetProjectResponse{Project: presentProject(s.Info, s.State), Metadata: rpc.Metadata(s.Info)}, nil
}

// ListProjects implements ProjectService.
func (m *Manager) ListProjects(
	ctx context.Context, req *projectv1.ListProjectsRequest,
) (*projectv1.ListProjectsResponse, error) {
	terms := projectFilter(req.GetArchived(), req.GetLabels())
	if len(terms) > 1 {
		terms = terms[1:] // each label's term has it in it
	}
	items, next, err := rpc.List(ctx, m.o.Projects, req, object.ListOptions{Terms: terms}, func(s object.Snapshot[projectState]) *projectv1.ProjectItem {
		return &projectv1.ProjectItem{Project: presentProject(s.Info, s.State), Metadata: rpc.Metadata(s.Info)}
	})
	return &projectv1.ListProjectsResponse{Projects: items, NextPageToken: next}, err
}

// UpdateProject implements ProjectService.
func (m *Manager) UpdateProject(
	ctx context.Context, req *projectv1.UpdateProjectRequest,
) (*projectv1.UpdateProjectResponse, error) {
	return rpc.Do(ctx, m.o.Projects, object.ID(req.GetProjectId()), req,
		func(tx *object.Tx[projectState]) (*projectv1.UpdateProjectResponse, error) {
			setProject(tx.State(), req.GetProject(), req.GetUpdateMask())
			return &projectv1.UpdateProjectResponse{Project: presentProject(tx.Info(), tx.State())}, nil
		})
}

// ArchiveProject implements ProjectService.
func (m *Manager) ArchiveProject(
	ctx context.Context, req *projectv1.ArchiveProjectRequest,
) (*projectv1.ArchiveProjectResponse, error) {
	return rpc.Do(ctx, m.o.Projects, object.ID(req.GetProjectId()), req,
		func(tx *object.Tx[projectState]) (*projectv1.ArchiveProjectResponse, error) {
			if !archive(tx.State(), req.GetRestore(), tx.Now()) {
				tx.Unchanged()
			}
			return &projectv1.ArchiveProjectResponse{Project: presentProject(tx.Info(), tx.State())}, nil
		})
}

// DeleteProject implements ProjectService.
func (m *Manager) DeleteProject(
	ctx context.Context, req *projectv1.DeleteProjectRequest,
) (*projectv1.DeleteProjectResponse, error) {
	return rpc.Do(ctx, m.o.Projects, object.ID(req.GetProjectId()), req,
		func(tx *object.Tx[projectState]) (*projectv1.DeleteProjectResponse, error) {
			tx.DeleteObject()
			return &projectv1.DeleteProjectResponse{}, nil
		})
}

// WatchProject implements ProjectService.
func (m *Manager) WatchProject(
	ctx context.Context, req *projectv1.WatchProjectRequest, stream *connect.ServerStream[projectv1.WatchProjectResponse],
) error {
	for c, err := range m.o.Projects.Watch(ctx, object.ID(req.GetProjectId()), object.Version(req.GetAfterVersion()), 0) {
		if err != nil {
			return err
		}
		res := &projectv1.WatchProjectResponse{Heartbeat: true, Metadata: &objectv1.Metadata{Version: int64(c.Version)}}
		if !c.Heartbeat {
			res = &projectv1.WatchProjectResponse{Reset_: c.Reset, Deleted: c.Deleted, Metadata: rpc.Metadata(c.Info)}
			if !c.Deleted {
				res.Project = presentProject(c.Info, c.State)
			}
		}
		if err := stream.Send(res); err != nil {
			return err
		}
	}
	return nil
}
