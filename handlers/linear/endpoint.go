package linear

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linearv1 "holdfast/gen/holdfast/linear/v1"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/handlers/mask"
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
	return object.ID(rpc.Base32(b[:]))
}

// sealContext ties a sealed secret to its endpoint.
func sealContext(t identity.Tenant, endpoint object.ID) []byte {
	return []byte("linear_endpoint\x00" + string(t) + "\x00" + string(endpoint))
}

// seal makes a secret that can be stored; nil where there is none.
func (m *Manager) seal(secret string, t identity.Tenant, endpoint object.ID) *storev1.SealedSecret {
	if secret == "" {
		return nil
	}
	var id [5]byte
	_, _ = rand.Read(id[:]) // never fails
	return &storev1.SealedSecret{
		SecretId: rpc.Base32(id[:]), Sealed: m.o.Seal.Seal([]byte(secret), sealContext(t, endpoint)),
	}
}

// addSecret makes a secret valid; a third one pushes the oldest out.
func addSecret(s *storev1.EndpointState, secret *storev1.SealedSecret, now time.Time) {
	if secret == nil {
		return
	}
	added := &storev1.SealedSecret{SecretId: secret.GetSecretId(), Sealed: secret.GetSealed(), CreateTime: timestamppb.New(now)}
	s.Secrets = append(s.Secrets, added)
	if n := len(s.Secrets); n > maxSecrets {
		s.Secrets = s.Secrets[n-maxSecrets:]
	}
}

// removeSecret reports whether there was one of that id.
func removeSecret(s *storev1.EndpointState, id string) bool {
	for i, secret := range s.GetSecrets() {
		if secret.GetSecretId() == id {
			s.Secrets = append(s.Secrets[:i:i], s.Secrets[i+1:]...)
			return true
		}
	}
	return false
}

func setAPIKey(s *storev1.EndpointState, key *storev1.SealedSecret, now time.Time) {
	if key != nil {
		s.ApiKey = &storev1.SealedSecret{SecretId: key.GetSecretId(), Sealed: key.GetSealed(), CreateTime: timestamppb.New(now)}
	}
}

func replayWindow(s *storev1.EndpointState) time.Duration {
	return cmp.Or(s.GetReplayWindow().AsDuration(), defaultReplayWindow)
}

// endpointFields are what an update changes, of those that are stored as callers see them.
func endpointFields() []string {
	return []string{"labels", "title", "replay_window", "organization_id", "team_ids"}
}

func presentEndpoint(i object.Info, s *storev1.EndpointState) *linearv1.Endpoint {
	e := rpc.Present(&linearv1.Endpoint{}, i, s)
	e.Path, e.ReplayWindow = WebhookPath+string(i.ID), durationpb.New(replayWindow(s))
	return e
}

// addSync sets where the sync of each endpoint stands.
func (m *Manager) addSync(ctx context.Context, endpoints ...*linearv1.Endpoint) error {
	r := m.o.Runtime.Together()
	syncs := make([]*object.Viewed[syncState], len(endpoints))
	for i, e := range endpoints {
		syncs[i] = object.ViewIn(r, m.o.Syncs, object.ID(e.GetEndpointId()))
	}
	if len(syncs) == 0 {
		return nil
	}
	if err := r.Run(ctx); err != nil {
		return err
	}
	for i, e := range endpoints {
		if s := syncs[i]; s.Found {
			e.Sync = &linearv1.SyncStatus{Running: s.Snapshot.State.GetRunUntilTime().AsTime().After(m.o.Syncs.Now())}
			rpc.Copy(e.GetSync(), s.Snapshot.State)
		}
	}
	return nil
}

// PutEndpoint implements LinearService.
func (m *Manager) PutEndpoint(ctx context.Context, req *linearv1.PutEndpointRequest) (*linearv1.PutEndpointResponse, error) {
	if err := rpc.RequireService(ctx, "see and change endpoints"); err != nil {
		return nil, err
	}
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetSyncNow() && m.o.SyncNow == nil {
		return nil, problem.InvalidArgument("sync_now", "is of no use: this server syncs nothing")
	}
	id, opts := object.ID(req.GetEndpointId()), []object.UpdateOption(nil)
	if id == "" {
		if id, err = m.newEndpoint(ctx, req); err != nil {
			return nil, err
		}
		opts = append(opts, object.Create())
	}
	secret, key := m.seal(req.GetAddSecret(), caller.Tenant, id), m.seal(req.GetSetApiKey(), caller.Tenant, id)
	res, err := object.Do(ctx, m.o.Endpoints, id, req, func(tx *object.Tx[endpointState]) (*linearv1.PutEndpointResponse, error) {
		s := tx.State()
		was := proto.CloneOf(s)
		if err := changeEndpoint(s, req); err != nil {
			return nil, err
		}
		addSecret(s, secret, tx.Now())
		setAPIKey(s, key, tx.Now())
		if tx.Exists() && proto.Equal(was, s) {
			tx.Unchanged()
		}
		return &linearv1.PutEndpointResponse{Endpoint: presentEndpoint(tx.Info(), s)}, nil
	}, opts...)
	if err != nil {
		return nil, err
	}
	if err := m.steerSync(ctx, caller.Tenant, id, req); err != nil {
		return nil, err
	}
	return res, m.addSync(ctx, res.GetEndpoint())
}

// newEndpoint makes the id of a new endpoint. A retry has to find what the first try made, and the id must not follow from the
// request: the first try notes it.
func (m *Manager) newEndpoint(ctx context.Context, req *linearv1.PutEndpointRequest) (object.ID, error) {
	id := newEndpointID()
	if req.GetRequestId() == "" {
		return id, nil
	}
	note, err := object.Do(ctx, m.o.Deliveries, rpc.HashID("new-", req.GetRequestId()), req, func(*object.Tx[deliveryState]) (*linearv1.Endpoint, error) {
		return &linearv1.Endpoint{EndpointId: string(id)}, nil
	}, object.Upsert())
	return object.ID(note.GetEndpointId()), err
}

// changeEndpoint makes the changes that a request asks for, but for new secrets.
func changeEndpoint(s *storev1.EndpointState, req *linearv1.PutEndpointRequest) error {
	e := &linearv1.Endpoint{}
	rpc.Copy(e, s)
	if err := mask.Merge(e, req.GetEndpoint(), req.GetUpdateMask(), append(endpointFields(), "api_key")...); err != nil {
		return err
	}
	rpc.Set(s, e, endpointFields()...)
	if e.GetApiKey() == nil {
		s.ApiKey = nil // a mask may only clear it
	}
	if gone := req.GetRemoveSecretId(); gone != "" && !removeSecret(s, gone) {
		return problem.InvalidArgument("remove_secret_id", "is no secret of this endpoint")
	}
	return nil
}

// steerSync sets an endpoint's sync back and makes it run, as far as a request asks for it.
func (m *Manager) steerSync(ctx context.Context, t identity.Tenant, id object.ID, req *linearv1.PutEndpointRequest) error {
	if since := req.GetResetSyncTo(); since != nil {
		_, err := m.o.Syncs.Update(ctx, id, func(tx *object.Tx[syncState]) error {
			s := tx.State()
			mark := since
			if since.AsTime().After(tx.Now()) {
				mark = timestamppb.New(tx.Now())
			}
			s.HighWaterTime, s.Pass = mark, nil
			for _, name := range []string{comments, attachments} {
				l := listOf(s, name)
				l.HighWaterTime, l.Pass = mark, nil
			}
			return nil
		}, object.Upsert(), object.Shared(), object.Request(req.GetRequestId(), req))
		if err != nil {
			return err
		}
	}
	if !req.GetSyncNow() {
		return nil
	}
	_, err := m.o.Syncs.Update(ctx, id, func(tx *object.Tx[syncState]) error {
		s := tx.State()
		waits := !s.GetLimited() && s.GetNotBefore() != nil
		for _, l := range s.GetLists() {
			waits = waits || l.GetNotBefore() != nil
			l.NotBefore = nil
		}
		if !waits {
			tx.Unchanged() // a change would overtake a run that is at work
		}
		if !s.GetLimited() {
			s.NotBefore = nil
		}
		return nil
	})
	if err != nil && !errors.Is(err, object.ErrNotFound) {
		return err
	}
	return m.o.SyncNow(ctx, t, string(id))
}

// ListEndpoints implements LinearService.
func (m *Manager) ListEndpoints(ctx context.Context, req *linearv1.ListEndpointsRequest) (*linearv1.ListEndpointsResponse, error) {
	if err := rpc.RequireService(ctx, "see and change endpoints"); err != nil {
		return nil, err
	}
	o := object.ListOptions{Around: syncRoom}
	endpoints, next, err := rpc.List(ctx, m.o.Endpoints, req, o, func(s object.Snapshot[endpointState]) *linearv1.Endpoint {
		return presentEndpoint(s.Info, s.State)
	})
	if err != nil {
		return nil, err
	}
	return &linearv1.ListEndpointsResponse{NextPageToken: next, Endpoints: endpoints}, m.addSync(ctx, endpoints...)
}

// syncRoom is what the sync of an endpoint takes in an answer: its error is a sentence.
const syncRoom = 1 << 10

// DeleteEndpoint implements LinearService.
func (m *Manager) DeleteEndpoint(ctx context.Context, req *linearv1.DeleteEndpointRequest) (*linearv1.DeleteEndpointResponse, error) {
	if err := rpc.RequireService(ctx, "see and change endpoints"); err != nil {
		return nil, err
	}
	res, err := rpc.Delete(ctx, m.o.Endpoints, req.GetEndpointId(), req, func(existed bool, version int64) *linearv1.DeleteEndpointResponse {
		return &linearv1.DeleteEndpointResponse{Existed: existed, Version: version}
	})
	if err != nil {
		return nil, err
	}
	return res, m.abandon(ctx, req.GetEndpointId())
}
