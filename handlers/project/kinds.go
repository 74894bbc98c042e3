// Package project is the ProjectStateManager: projects, the runs of coding agents, Linear's issues, users' preferences,
// and the context that an assistant's turn starts from. The rules are plain functions over the states; the object runtime
// makes what they come to durable.
package project

import (
	"crypto/sha256"
	"encoding/base32"
	"time"

	"google.golang.org/protobuf/proto"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/project/v1/projectv1connect"
	linearstorev1 "holdfast/gen/holdfast/store/linear/v1"
	storev1 "holdfast/gen/holdfast/store/project/v1"
	"holdfast/object"
	"holdfast/seal"
)

// What the kinds store.
type (
	projectState     = *storev1.ProjectState
	taskState        = *storev1.TaskState
	issueState       = *linearstorev1.IssueState
	preferencesState = *storev1.PreferencesState
	endpointState    = *linearstorev1.EndpointState
	deliveryState    = *linearstorev1.DeliveryState
	syncState        = *linearstorev1.SyncState
)

// The collections.
const (
	inTransitions = "transitions" // of a task; key: the seq
	inRaw         = "raw"         // of an issue; key: rawKey
	rawKey        = "issue"
)

const (
	// deliveryTTL is how long a webhook that was applied is known: Linear's last retry comes after seven hours.
	deliveryTTL = 7 * 24 * time.Hour
	// tombstoneTTL is how long a removed issue keeps older words on it from bringing it back.
	tombstoneTTL = 30 * 24 * time.Hour
)

// Kinds are those of this manager.
type Kinds struct {
	Projects    *object.Kind[projectState]
	Tasks       *object.Kind[taskState]
	Issues      *object.Kind[issueState]
	Preferences *object.Kind[preferencesState]
	Endpoints   *object.Kind[endpointState]
	Deliveries  *object.Kind[deliveryState]
	Syncs       *object.Kind[syncState]
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
		Issues: object.Register(rt, object.KindConfig[issueState]{
			Name: "linear_issue", SchemaVersion: 1, Terms: issueTerms, TTLOf: issueTTL,
			Collections: map[string]proto.Message{inRaw: &linearstorev1.IssuePayload{}},
		}),
		Preferences: object.Register(rt, object.KindConfig[preferencesState]{Name: "preferences", SchemaVersion: 1}),
		// Secrets are sealed for their endpoint, and one that was removed must not be good again.
		Endpoints: object.Register(rt, object.KindConfig[endpointState]{
			Name: "linear_endpoint", SchemaVersion: 1, Users: object.UsersNever, NoRestore: true,
		}),
		Deliveries: object.Register(rt, object.KindConfig[deliveryState]{
			Name: "linear_delivery", SchemaVersion: 1, Users: object.UsersNever, TTL: deliveryTTL,
		}),
		Syncs: object.Register(rt, object.KindConfig[syncState]{Name: "linear_sync", SchemaVersion: 1, Users: object.UsersNever}),
	}
}

// Options are what a Manager works with.
type Options struct {
	Kinds

	Runtime *object.Runtime
	// Conversations is the ConversationManager's kind, of which the context shows the newest one.
	Conversations *object.Kind[*conversationv1.ConversationState]
	// APIs is the APICoordinator's kind, whose objects the context shows in brief.
	APIs *object.Kind[*coordinationv1.ApiState]
	// Seal keeps the secrets of the endpoints.
	Seal *seal.Box
}

// Manager serves ProjectService. It is safe for concurrent use.
type Manager struct{ o Options }

var _ projectv1connect.ProjectServiceHandler = (*Manager)(nil)

// NewManager makes a manager of kinds that Register made.
func NewManager(o Options) *Manager { return &Manager{o} }

// hashID is an id made of text that may have any characters, which an object's id may not.
func hashID(prefix, text string) object.ID {
	sum := sha256.Sum256([]byte(text))
	return object.ID(prefix + lowerBase32.EncodeToString(sum[:20]))
}

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func shared(yes bool) []object.UpdateOption {
	if yes {
		return []object.UpdateOption{object.Shared()}
	}
	return nil
}
