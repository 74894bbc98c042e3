package project

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	projectv1 "holdfast/gen/holdfast/project/v1"
	storev1 "holdfast/gen/holdfast/store/project/v1"
	"holdfast/handlers/mask"
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

// projectFields are what a Put changes, of those that are stored as callers see them.
func projectFields() []string {
	return []string{"labels", "title", "description", "repository", "settings", "issue_sources"}
}

// setProject makes the changes that a request asks for.
func setProject(s *storev1.ProjectState, req *projectv1.PutProjectRequest, now time.Time) error {
	p := &projectv1.Project{Archived: s.GetArchiveTime() != nil}
	rpc.Copy(p, s)
	if err := mask.Merge(p, req.GetProject(), req.GetUpdateMask(), append(projectFields(), "archived")...); err != nil {
		return err
	}
	rpc.Set(s, p, projectFields()...)
	switch {
	case !p.GetArchived():
		s.ArchiveTime = nil
	case s.GetArchiveTime() == nil:
		s.ArchiveTime = timestamppb.New(now)
	}
	return nil
}

func presentProject(i object.Info, s *storev1.ProjectState) *projectv1.Project {
	return rpc.Present(&projectv1.Project{Archived: s.GetArchiveTime() != nil}, i, s)
}

// PutProject implements ProjectService.
func (m *Manager) PutProject(ctx context.Context, req *projectv1.PutProjectRequest) (*projectv1.PutProjectResponse, error) {
	id, err := rpc.NewID(ctx, m.o.Projects, req.GetProjectId(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return object.Do(ctx, m.o.Projects, id, req, func(tx *object.Tx[projectState]) (*projectv1.PutProjectResponse, error) {
		was := proto.CloneOf(tx.State())
		if err := setProject(tx.State(), req, tx.Now()); err != nil {
			return nil, err
		}
		unlessChanged(tx, was)
		return &projectv1.PutProjectResponse{Project: presentProject(tx.Info(), tx.State())}, nil
	}, putOptions(req)...)
}

// GetProject implements ProjectService.
func (m *Manager) GetProject(ctx context.Context, req *projectv1.GetProjectRequest) (*projectv1.GetProjectResponse, error) {
	s, err := m.o.Projects.View(ctx, object.ID(req.GetProjectId()), object.IfVersionNot(object.Version(req.GetIfVersionNot())))
	if err != nil {
		return nil, err
	}
	if s.NotModified {
		return &projectv1.GetProjectResponse{NotModified: true}, nil
	}
	return &projectv1.GetProjectResponse{Project: presentProject(s.Info, s.State)}, nil
}

// ListProjects implements ProjectService.
func (m *Manager) ListProjects(ctx context.Context, req *projectv1.ListProjectsRequest) (*projectv1.ListProjectsResponse, error) {
	terms := projectFilter(req.GetFilter().GetArchived(), req.GetFilter().GetLabels())
	if len(terms) > 1 {
		terms = terms[1:] // each label's term has it in it
	}
	projects, next, err := rpc.List(ctx, m.o.Projects, req, object.ListOptions{Terms: terms}, func(s object.Snapshot[projectState]) *projectv1.Project {
		return presentProject(s.Info, s.State)
	})
	return &projectv1.ListProjectsResponse{NextPageToken: next, Projects: projects}, err
}

// DeleteProject implements ProjectService.
func (m *Manager) DeleteProject(ctx context.Context, req *projectv1.DeleteProjectRequest) (*projectv1.DeleteProjectResponse, error) {
	return rpc.Delete(ctx, m.o.Projects, req.GetProjectId(), req, func(existed bool, version int64) *projectv1.DeleteProjectResponse {
		return &projectv1.DeleteProjectResponse{Existed: existed, Version: version}
	})
}
