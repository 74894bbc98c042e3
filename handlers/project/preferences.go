package project

import (
	"context"
	"maps"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	objectv1 "holdfast/gen/holdfast/object/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
	storev1 "holdfast/gen/holdfast/store/project/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// tenantDefaults is the id of the tenant's own preferences. No user's id begins like it.
const tenantDefaults object.ID = "tenant"

// preferencesID returns the id of a user's preferences. It is a hash: a user id may have characters that an object id may not.
func preferencesID(u identity.User) object.ID { return hashID("u-", string(u)) }

// merged returns the tenant's preferences, overridden by those that the user has set.
func merged(own, defaults *storev1.Preferences) *storev1.Preferences {
	p := &storev1.Preferences{}
	if defaults != nil {
		proto.Merge(p, defaults)
	}
	if own != nil {
		proto.Merge(p, own) // adds the map's keys and overrides set fields
	}
	return p
}

// setPreferences sets the fields that a request's mask names, and clears those without a value.
func setPreferences(s *storev1.PreferencesState, req *projectv1.UpdatePreferencesRequest) {
	has, p := rpc.MaskHas(req.GetUpdateMask()), req.GetPreferences()
	if s.Preferences == nil {
		s.Preferences = &storev1.Preferences{}
	}
	to := s.Preferences
	if has("voice") {
		to.Voice = p.Voice
	}
	if has("language") {
		to.Language = p.Language
	}
	if has("model") {
		to.Model = p.Model
	}
	if has("notifications") {
		to.Notifications = p.GetNotifications()
	}
	if has("default_project_id") {
		to.DefaultProjectId = p.DefaultProjectId
	}
	if has("extra") {
		to.Extra = maps.Clone(p.GetExtra())
	}
}

// GetPreferences implements ProjectService.
func (m *Manager) GetPreferences(
	ctx context.Context, req *projectv1.GetPreferencesRequest,
) (*projectv1.GetPreferencesResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	r := m.o.Runtime.Together()
	own, defaults := m.viewPreferences(r, caller)
	if err := r.Run(ctx); err != nil {
		return nil, err
	}
	var mark fingerprint
	addViewed(&mark, own)
	addViewed(&mark, defaults)
	res := &projectv1.GetPreferencesResponse{Metadata: &objectv1.Metadata{Version: mark.version()}}
	if req.GetIfVersionNot() == res.GetMetadata().GetVersion() {
		res.NotModified = true
		return res, nil
	}
	o, d := own.Snapshot.State, defaults.Snapshot.State
	res.Own, res.TenantDefaults, res.Preferences = o.GetPreferences(), d.GetPreferences(), merged(o.GetPreferences(), d.GetPreferences())
	res.ActiveProjectId = o.GetActiveProjectId()
	res.OwnVersion, res.TenantDefaultsVersion = int64(own.Snapshot.Version), int64(defaults.Snapshot.Version)
	return res, nil
}

// viewPreferences reads a user's preferences and the tenant's. A service on its own behalf has none of its own.
func (m *Manager) viewPreferences(r *object.Together, caller identity.Identity) (own, defaults *object.Viewed[preferencesState]) {
	own = &object.Viewed[preferencesState]{}
	if caller.User != "" {
		own = object.ViewIn(r, m.o.Preferences, preferencesID(caller.User))
	}
	return own, object.ViewIn(r, m.o.Preferences, tenantDefaults)
}

func addViewed[S proto.Message](f *fingerprint, v *object.Viewed[S]) {
	if v.Found {
		f.add("", v.Snapshot.Info)
	} else {
		f.add("none", object.Info{})
	}
}

// UpdatePreferences implements ProjectService.
func (m *Manager) UpdatePreferences(
	ctx context.Context, req *projectv1.UpdatePreferencesRequest,
) (*projectv1.UpdatePreferencesResponse, error) {
	id, err := userPreferences(ctx)
	opts := []object.UpdateOption{object.Upsert()}
	if req.GetTenantDefaults() {
		id, err = tenantDefaults, requireService(ctx)
		opts = append(opts, object.Shared())
	}
	if err != nil {
		return nil, err
	}
	return rpc.Do(ctx, m.o.Preferences, id, req,
		func(tx *object.Tx[preferencesState]) (*projectv1.UpdatePreferencesResponse, error) {
			setPreferences(tx.State(), req)
			return &projectv1.UpdatePreferencesResponse{Preferences: tx.State().GetPreferences()}, nil
		}, opts...)
}

// SetActiveProject implements ProjectService.
func (m *Manager) SetActiveProject(
	ctx context.Context, req *projectv1.SetActiveProjectRequest,
) (*projectv1.SetActiveProjectResponse, error) {
	if p := req.GetProjectId(); p != "" {
		if _, err := m.o.Projects.View(ctx, object.ID(p)); err != nil {
			return nil, err
		}
	}
	id, err := userPreferences(ctx)
	if err != nil {
		return nil, err
	}
	return rpc.Do(ctx, m.o.Preferences, id, req,
		func(tx *object.Tx[preferencesState]) (*projectv1.SetActiveProjectResponse, error) {
			s := tx.State()
			if tx.Exists() && s.GetActiveProjectId() == req.GetProjectId() {
				tx.Unchanged()
			} else {
				s.ActiveProjectId, s.ActiveProjectTime = req.GetProjectId(), timestamppb.New(tx.Now())
			}
			return &projectv1.SetActiveProjectResponse{ProjectId: req.GetProjectId()}, nil
		}, object.Upsert())
}

// userPreferences returns the id of the calling user's preferences. It refuses a service without a user.
func userPreferences(ctx context.Context) (object.ID, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return "", err
	}
	if caller.User == "" {
		return "", problem.New(errorv1.Reason_REASON_USER_REQUIRED,
			"a service has no preferences of its own; name a user with the header Holdfast-User, or set tenant_defaults where there is one")
	}
	return preferencesID(caller.User), nil
}

func requireService(ctx context.Context) error {
	caller, err := identity.From(ctx)
	if err == nil && !caller.Service {
		err = problem.PermissionDenied("only a service key may do that, on its own behalf")
	}
	return err
}
