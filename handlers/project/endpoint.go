package project

import (
	"context"
	"crypto/rand"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	projectv1 "holdfast/gen/holdfast/project/v1"
	linearstorev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

const (
	// maxSecrets are valid at a time: the old one and the new one, while they are rotated.
	maxSecrets = 2
	// defaultReplayWindow is that of Linear's own SDK.
	defaultReplayWindow = 60 * time.Second
)

// WebhookPath is where the webhooks of endpoints arrive: the endpoint's id comes behind it.
const WebhookPath = "/webhooks/linear/"

// newEndpointID is 128 random bits: it finds its tenant, so nobody may guess one.
func newEndpointID() object.ID {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return object.ID(lowerBase32.EncodeToString(b[:]))
}

// sealContext ties a sealed secret to its endpoint.
func sealContext(t identity.Tenant, endpoint object.ID) []byte {
	return []byte("linear_endpoint\x00" + string(t) + "\x00" + string(endpoint))
}

// seal makes a secret that can be stored; nil where there is none.
func (m *Manager) seal(secret string, t identity.Tenant, endpoint object.ID) *linearstorev1.SealedSecret {
	if secret == "" {
		return nil
	}
	var id [5]byte
	_, _ = rand.Read(id[:]) // never fails
	return &linearstorev1.SealedSecret{
		SecretId: lowerBase32.EncodeToString(id[:]), Sealed: m.o.Seal.Seal([]byte(secret), sealContext(t, endpoint)),
	}
}

// addSecret makes a secret valid; a third one pushes the oldest out.
func addSecret(s *linearstorev1.EndpointState, secret *linearstorev1.SealedSecret, now time.Time) {
	if secret == nil {
		return
	}
	added := &linearstorev1.SealedSecret{SecretId: secret.GetSecretId(), Sealed: secret.GetSealed(), CreateTime: timestamppb.New(now)}
	s.Secrets = append(s.Secrets, added)
	if n := len(s.Secrets); n > maxSecrets {
		s.Secrets = s.Secrets[n-maxSecrets:]
	}
}

// removeSecret tells whether there was one of that id.
func removeSecret(s *linearstorev1.EndpointState, id string) bool {
	for i, secret := range s.GetSecrets() {
		if secret.GetSecretId() == id {
			s.Secrets = append(s.Secrets[:i:i], s.Secrets[i+1:]...)
			return true
		}
	}
	return false
}

func setAPIKey(s *linearstorev1.EndpointState, key *linearstorev1.SealedSecret, now time.Time) {
	if key != nil {
		s.ApiKey = &linearstorev1.SealedSecret{SecretId: key.GetSecretId(), Sealed: key.GetSealed(), CreateTime: timestamppb.New(now)}
	}
}

func replayWindow(s *linearstorev1.EndpointState) time.Duration {
	if n := s.GetReplayWindowSeconds(); n > 0 {
		return time.Duration(n) * time.Second
	}
	return defaultReplayWindow
}

func presentEndpoint(id object.ID, s *linearstorev1.EndpointState) *projectv1.LinearEndpoint {
	e := &projectv1.LinearEndpoint{
		EndpointId: string(id), Path: WebhookPath + string(id), Title: s.GetTitle(), ApiKey: secretInfo(s.GetApiKey()),
		ReplayWindowSeconds: int64(replayWindow(s).Seconds()), OrganizationId: s.GetOrganizationId(),
	}
	for _, secret := range s.GetSecrets() {
		e.Secrets = append(e.Secrets, secretInfo(secret))
	}
	return e
}

func secretInfo(s *linearstorev1.SealedSecret) *projectv1.SecretInfo {
	if s == nil {
		return nil
	}
	return &projectv1.SecretInfo{SecretId: s.GetSecretId(), CreateTime: s.GetCreateTime()}
}

// service is the calling service's tenant, or a refusal.
func service(ctx context.Context) (identity.Tenant, error) {
	if err := requireService(ctx); err != nil {
		return "", err
	}
	caller, err := identity.From(ctx)
	return caller.Tenant, err
}

// CreateLinearEndpoint implements ProjectService.
func (m *Manager) CreateLinearEndpoint(
	ctx context.Context, req *projectv1.CreateLinearEndpointRequest,
) (*projectv1.CreateLinearEndpointResponse, error) {
	tenant, err := service(ctx)
	if err != nil {
		return nil, err
	}
	id := newEndpointID()
	if req.GetRequestId() != "" {
		// A retry has to find what the first try made, and the id must not follow from the request: the first try notes it.
		note, err := object.Do(ctx, m.o.Deliveries, hashID("new-", req.GetRequestId()), req,
			func(*object.Tx[deliveryState]) (*projectv1.LinearEndpoint, error) {
				return &projectv1.LinearEndpoint{EndpointId: string(id)}, nil
			}, object.Upsert())
		if err != nil {
			return nil, err
		}
		id = object.ID(note.GetEndpointId())
	}
	secret, key := m.seal(req.GetSecret(), tenant, id), m.seal(req.GetApiKey(), tenant, id)
	return object.Do(ctx, m.o.Endpoints, id, req,
		func(tx *object.Tx[endpointState]) (*projectv1.CreateLinearEndpointResponse, error) {
			s := tx.State()
			s.Title, s.ReplayWindowSeconds, s.OrganizationId = req.GetTitle(), req.GetReplayWindowSeconds(), req.GetOrganizationId()
			addSecret(s, secret, tx.Now())
			setAPIKey(s, key, tx.Now())
			return &projectv1.CreateLinearEndpointResponse{Endpoint: presentEndpoint(id, s), Metadata: rpc.Metadata(tx.Info())}, nil
		}, object.Create())
}

// GetLinearEndpoint implements ProjectService.
func (m *Manager) GetLinearEndpoint(
	ctx context.Context, req *projectv1.GetLinearEndpointRequest,
) (*projectv1.GetLinearEndpointResponse, error) {
	if err := requireService(ctx); err != nil {
		return nil, err
	}
	id := object.ID(req.GetEndpointId())
	r := m.o.Runtime.Together()
	endpoint, sync := object.ViewIn(r, m.o.Endpoints, id), object.ViewIn(r, m.o.Syncs, id)
	if err := r.Run(ctx); err != nil {
		return nil, err
	}
	if !endpoint.Found {
		return nil, object.ErrNotFound
	}
	res := &projectv1.GetLinearEndpointResponse{
		Endpoint: presentEndpoint(id, endpoint.Snapshot.State), Metadata: rpc.Metadata(endpoint.Snapshot.Info),
	}
	if s := sync.Snapshot.State; sync.Found {
		res.Sync = &projectv1.LinearSync{
			HighWaterTime: s.GetHighWaterTime(), CompleteTime: s.GetCompleteTime(), NotBefore: s.GetNotBefore(), Error: s.GetError(),
			Running: s.GetPass() != nil, IssueCount: s.GetIssueCount(),
		}
	}
	return res, nil
}

// ListLinearEndpoints implements ProjectService.
func (m *Manager) ListLinearEndpoints(
	ctx context.Context, req *projectv1.ListLinearEndpointsRequest,
) (*projectv1.ListLinearEndpointsResponse, error) {
	if err := requireService(ctx); err != nil {
		return nil, err
	}
	items, next, err := rpc.List(ctx, m.o.Endpoints, req, object.ListOptions{}, func(s object.Snapshot[endpointState]) *projectv1.LinearEndpointItem {
		return &projectv1.LinearEndpointItem{Endpoint: presentEndpoint(s.ID, s.State), Metadata: rpc.Metadata(s.Info)}
	})
	return &projectv1.ListLinearEndpointsResponse{Endpoints: items, NextPageToken: next}, err
}

// UpdateLinearEndpoint implements ProjectService.
func (m *Manager) UpdateLinearEndpoint(
	ctx context.Context, req *projectv1.UpdateLinearEndpointRequest,
) (*projectv1.UpdateLinearEndpointResponse, error) {
	tenant, err := service(ctx)
	if err != nil {
		return nil, err
	}
	id := object.ID(req.GetEndpointId())
	secret, key := m.seal(req.GetAddSecret(), tenant, id), m.seal(req.GetApiKey(), tenant, id)
	return rpc.Do(ctx, m.o.Endpoints, id, req,
		func(tx *object.Tx[endpointState]) (*projectv1.UpdateLinearEndpointResponse, error) {
			s := tx.State()
			if gone := req.GetRemoveSecretId(); gone != "" && !removeSecret(s, gone) {
				return nil, problem.InvalidArgument("remove_secret_id", "is no secret of this endpoint")
			}
			addSecret(s, secret, tx.Now())
			if req.GetRemoveApiKey() {
				s.ApiKey = nil
			}
			setAPIKey(s, key, tx.Now())
			return &projectv1.UpdateLinearEndpointResponse{Endpoint: presentEndpoint(id, s)}, nil
		})
}

// DeleteLinearEndpoint implements ProjectService.
func (m *Manager) DeleteLinearEndpoint(
	ctx context.Context, req *projectv1.DeleteLinearEndpointRequest,
) (*projectv1.DeleteLinearEndpointResponse, error) {
	if err := requireService(ctx); err != nil {
		return nil, err
	}
	return rpc.Do(ctx, m.o.Endpoints, object.ID(req.GetEndpointId()), req,
		func(tx *object.Tx[endpointState]) (*projectv1.DeleteLinearEndpointResponse, error) {
			tx.DeleteObject()
			return &projectv1.DeleteLinearEndpointResponse{}, nil
		})
}
