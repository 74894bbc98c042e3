// Package linear is the LinearManager: Linear's issues, as webhooks, a sync and services bring them, and the endpoints at which
// webhooks arrive. The rules are plain functions over the states; the object runtime makes what they come to durable.
package linear

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/gen/holdfast/linear/v1/linearv1connect"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/seal"
)

// What the kinds store.
type (
	issueState      = *storev1.IssueState
	commentState    = *storev1.CommentState
	attachmentState = *storev1.AttachmentState
	sessionState    = *storev1.AgentSessionState
	endpointState   = *storev1.EndpointState
	deliveryState   = *storev1.DeliveryState
	syncState       = *storev1.SyncState
)

// The collections of an issue, of which one has one entry, and that of an agent's session.
const (
	inRaw        = "raw"
	rawKey       = "issue"
	inHistory    = "history"
	inActivities = "activities"
)

const (
	// deliveryTTL is how long a webhook that was applied is known: Linear's last retry comes after seven hours.
	deliveryTTL = 7 * 24 * time.Hour
	// tombstoneTTL is how long a removed issue keeps older words on it from bringing it back.
	tombstoneTTL = 30 * 24 * time.Hour
)

// Kinds are those of this manager.
type Kinds struct {
	Issues        *object.Kind[issueState]
	Comments      *object.Kind[commentState]
	Attachments   *object.Kind[attachmentState]
	AgentSessions *object.Kind[sessionState]
	Endpoints     *object.Kind[endpointState]
	Deliveries    *object.Kind[deliveryState]
	Syncs         *object.Kind[syncState]
}

// Register adds the kinds to the runtime.
func Register(rt *object.Runtime) Kinds {
	return Kinds{
		Issues: object.Register(rt, object.KindConfig[issueState]{
			Name: "linear_issue", SchemaVersion: 1, Terms: issueTerms, Orders: issueOrders, TTLOf: issueTTL,
			Collections: map[string]proto.Message{inRaw: &storev1.IssuePayload{}, inHistory: &storev1.IssueChange{}},
		}),
		Comments: object.Register(rt, object.KindConfig[commentState]{
			Name: "linear_comment", SchemaVersion: 1, Orders: partOrders[commentState], TTLOf: partTTL[commentState],
		}),
		Attachments: object.Register(rt, object.KindConfig[attachmentState]{
			Name: "linear_attachment", SchemaVersion: 1, Orders: partOrders[attachmentState], TTLOf: partTTL[attachmentState],
		}),
		AgentSessions: object.Register(rt, object.KindConfig[sessionState]{
			Name: "linear_agent_session", SchemaVersion: 1, Terms: sessionTerms, TTLOf: partTTL[sessionState],
			Collections: map[string]proto.Message{inActivities: &storev1.AgentActivity{}}, Recent: inActivities, RecentKeep: 10,
		}),
		// Secrets are sealed for their endpoint, and one that was removed must not be good again.
		Endpoints: object.Register(rt, object.KindConfig[endpointState]{
			Name: "linear_endpoint", SchemaVersion: 1, Users: object.UsersNever, NoRestore: true,
		}),
		Deliveries: object.Register(rt, object.KindConfig[deliveryState]{
			Name: "linear_delivery", SchemaVersion: 1, Users: object.UsersNever, TTL: deliveryTTL,
		}),
		Syncs: object.Register(rt, object.KindConfig[syncState]{Name: "linear_sync", SchemaVersion: 1, Users: object.UsersNever, BriefJournal: true}),
	}
}

// Options are what a Manager works with.
type Options struct {
	Kinds

	Runtime *object.Runtime
	// Seal keeps the secrets of the endpoints.
	Seal *seal.Box
	// SyncNow makes an endpoint's sync run; nil: nothing is synced.
	SyncNow func(ctx context.Context, t identity.Tenant, endpoint string) error
	// SendNow has the changes of an issue sent to Linear; nil: a server that syncs sends them.
	SendNow func(ctx context.Context, t identity.Tenant, issue string) error
}

// Manager serves LinearService. It is safe for concurrent use.
type Manager struct{ o Options }

var _ linearv1connect.LinearServiceHandler = (*Manager)(nil)

// NewManager makes a manager of kinds that Register made.
func NewManager(o Options) *Manager { return &Manager{o} }
