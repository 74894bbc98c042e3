package project

import (
	"context"
	"fmt"
	"maps"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
	"holdfast/handlers/mask"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// tenantDefaults is the id of the tenant's own preferences. No user's id begins like it.
const tenantDefaults object.ID = "tenant"

// preferencesID returns the id of a user's preferences. It is a hash: a user id may have characters that an object id may not.
func preferencesID(u identity.User) object.ID { return rpc.HashID("u-", string(u)) }

// preferenceFields are what an update changes. The tenant's defaults have no active project.
func preferenceFields(tenant bool) []string {
	fields := []string{"voice", "language", "model", "notifications", "default_project_id", "extra"}
	if !tenant {
		fields = append(fields, "active_project_id")
	}
	return fields
}

// maxExtra bounds Preferences.extra, in bytes.
const maxExtra = 64 << 10

// presentPreferences returns preferences as callers see them, or nil where there are none.
func presentPreferences(v *object.Viewed[preferencesState]) *projectv1.Preferences {
	if !v.Found {
		return nil
	}
	p := &projectv1.Preferences{Version: int64(v.Snapshot.Version)}
	rpc.Copy(p, v.Snapshot.State)
	return p
}

// merged returns the tenant's preferences, overridden by those that the user has set.
func merged(own, defaults *object.Viewed[preferencesState]) *projectv1.Preferences {
	p := presentPreferences(defaults)
	if p == nil {
		p = &projectv1.Preferences{}
	}
	extra := maps.Clone(p.GetExtra().GetFields())
	if own.Found {
		rpc.Copy(p, own.Snapshot.State)
	}
	if p.Version = 0; extra != nil {
		maps.Copy(extra, p.GetExtra().GetFields())
		p.Extra = &structpb.Struct{Fields: extra}
	}
	return p
}

// GetPreferences implements ProjectService.
func (m *Manager) GetPreferences(ctx context.Context, req *projectv1.GetPreferencesRequest) (*projectv1.GetPreferencesResponse, error) {
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
	if req.GetIfEtagNot() == mark.etag() {
		return &projectv1.GetPreferencesResponse{Etag: mark.etag(), NotModified: true}, nil
	}
	return &projectv1.GetPreferencesResponse{
		Etag: mark.etag(), Effective: merged(own, defaults), Own: presentPreferences(own), Tenant: presentPreferences(defaults),
	}, nil
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
	opts, fields := []object.UpdateOption{object.Upsert()}, preferenceFields(req.GetTenantDefaults())
	if req.GetTenantDefaults() {
		id, err = tenantDefaults, rpc.RequireService(ctx, "change the tenant's defaults")
		opts = append(opts, object.Shared())
	}
	if err != nil {
		return nil, err
	}
	if err := m.checkActive(ctx, req, fields); err != nil {
		return nil, err
	}
	return object.Do(ctx, m.o.Preferences, id, req, func(tx *object.Tx[preferencesState]) (*projectv1.UpdatePreferencesResponse, error) {
		s := tx.State()
		was, p := proto.CloneOf(s), &projectv1.Preferences{}
		rpc.Copy(p, s)
		if err := mask.Merge(p, req.GetPreferences(), req.GetUpdateMask(), fields...); err != nil {
			return nil, err
		}
		if size := proto.Size(p.GetExtra()); size > maxExtra {
			return nil, problem.InvalidArgument("preferences.extra", fmt.Sprintf("would have %d bytes, over the limit of %d", size, maxExtra))
		}
		rpc.Set(s, p, fields...)
		unlessChanged(tx, was)
		p.Version = int64(tx.Info().Version)
		return &projectv1.UpdatePreferencesResponse{Preferences: p}, nil
	}, opts...)
}

// checkActive refuses an active project that the caller does not see.
func (m *Manager) checkActive(ctx context.Context, req *projectv1.UpdatePreferencesRequest, fields []string) error {
	set := &projectv1.Preferences{}
	err := mask.Merge(set, req.GetPreferences(), req.GetUpdateMask(), fields...)
	if err == nil && set.GetActiveProjectId() != "" {
		_, err = m.o.Projects.View(ctx, object.ID(set.GetActiveProjectId()))
	}
	return err
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
