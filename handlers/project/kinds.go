// Package project is the ProjectStateManager: projects, the runs of coding agents, users' preferences, and the context that an
// assistant's turn starts from. The rules are plain functions over the states; the object runtime
// makes what they come to durable.
package project

import (
	"google.golang.org/protobuf/proto"

	linearv1 "holdfast/gen/holdfast/linear/v1"
	"holdfast/gen/holdfast/project/v1/projectv1connect"
	conversationstorev1 "holdfast/gen/holdfast/store/conversation/v1"
	coordinationstorev1 "holdfast/gen/holdfast/store/coordination/v1"
	linearstorev1 "holdfast/gen/holdfast/store/linear/v1"
	storev1 "holdfast/gen/holdfast/store/project/v1"
	"holdfast/object"
)

// What the kinds store.
type (
	projectState     = *storev1.ProjectState
	taskState        = *storev1.TaskState
	issueState       = *linearstorev1.IssueState // of another manager
	preferencesState = *storev1.PreferencesState
)

// inTransitions is the collection of a task's transitions; key: the seq.
const inTransitions = "transitions"

// Kinds are those of this manager.
type Kinds struct {
	Projects    *object.Kind[projectState]
	Tasks       *object.Kind[taskState]
	Preferences *object.Kind[preferencesState]
}

// Register adds the kinds to the runtime.
func Register(rt *object.Runtime) Kinds {
	return Kinds{
		Projects: object.Register(rt, object.KindConfig[projectState]{
			Name: "project", SchemaVersion: 1, Terms: projectTerms, Users: object.UsersShare, UserRestore: true,
		}),
		Tasks: object.Register(rt, object.KindConfig[taskState]{
			Name: "task", SchemaVersion: 1, Terms: taskTerms, Users: object.UsersShare, UserRestore: true,
			Collections: map[string]proto.Message{inTransitions: &storev1.TaskTransition{}},
			Recent:      inTransitions, RecentKeep: 4,
		}),
		Preferences: object.Register(rt, object.KindConfig[preferencesState]{Name: "preferences", SchemaVersion: 1}),
	}
}

// Options are what a Manager works with.
type Options struct {
	Kinds

	Runtime *object.Runtime
	// Conversations is the ConversationManager's kind, of which the context shows the newest one.
	Conversations *object.Kind[*conversationstorev1.ConversationState]
	// APIs is the APICoordinator's kind, whose objects the context shows in brief.
	APIs *object.Kind[*coordinationstorev1.ApiState]
	// Issues is the LinearManager's kind, of which the context shows the open ones, as PresentIssue does.
	Issues       *object.Kind[issueState]
	PresentIssue func(object.Snapshot[issueState]) *linearv1.Issue
}

// Manager serves ProjectService. It is safe for concurrent use.
type Manager struct{ o Options }

var _ projectv1connect.ProjectServiceHandler = (*Manager)(nil)

// NewManager makes a manager of kinds that Register made.
func NewManager(o Options) *Manager { return &Manager{o} }

// putOptions are those of a Put: whom what it makes belongs to, and whether it makes anything.
func putOptions(req interface {
	GetShared() bool
	GetMustExist() bool
},
) (opts []object.UpdateOption) {
	if req.GetShared() {
		opts = append(opts, object.Shared())
	}
	if !req.GetMustExist() {
		opts = append(opts, object.Upsert())
	}
	return opts
}

// unlessChanged keeps a Put that has changed nothing from making a version.
func unlessChanged[S proto.Message](tx *object.Tx[S], was S) {
	if tx.Exists() && proto.Equal(was, tx.State()) {
		tx.Unchanged()
	}
}
