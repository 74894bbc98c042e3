package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	statev1 "holdfast/gen/holdfast/state/v1"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

type typeKind = *object.Kind[*storev1.TypeState]

func registerTypes(rt *object.Runtime) typeKind {
	return object.Register(rt, object.KindConfig[*storev1.TypeState]{Name: "state_type", SchemaVersion: 1, Users: object.UsersNever})
}

// declarations knows what types are declared to be. Each is looked up again after trustFor, so changes do without a read for it. Safe for
// concurrent use.
type declarations struct {
	kind typeKind

	mu    sync.Mutex // guards what follows; nothing slow happens under it
	known map[typeKey]declaration
}

type typeKey struct {
	tenant identity.Tenant
	name   string
}

type declaration struct {
	*declared

	version object.Version
	life    time.Time
	asked   time.Time
}

const (
	trustFor = time.Second
	maxKnown = 1000
)

// of is what a type is declared to be.
func (d *declarations) of(ctx context.Context, name string) (*declared, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	k, now := typeKey{caller.Tenant, name}, d.kind.Now()
	d.mu.Lock()
	is, ok := d.known[k]
	d.mu.Unlock()
	if age := now.Sub(is.asked); ok && age >= 0 && age < trustFor {
		return is.declared, nil
	}
	s, err := d.kind.View(identity.With(ctx, identity.Identity{Tenant: caller.Tenant, Service: true}), object.ID(name))
	switch {
	case errors.Is(err, object.ErrNotFound):
		is = declaration{declared: &declared{}}
	case err != nil:
		return nil, err
	case s.Version != is.version || !s.CreateTime.Equal(is.life):
		is.version, is.life = s.Version, s.CreateTime
		if is.declared, err = declare(s.State); err != nil { // a release before compiled it
			return nil, err
		}
	}
	is.asked = now
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.known[k]; !ok && len(d.known) >= maxKnown {
		for other := range d.known {
			delete(d.known, other)
			break
		}
	}
	d.known[k] = is
	return is.declared, nil
}

// forget makes a change known at once here.
func (d *declarations) forget(ctx context.Context, name string) {
	caller, _ := identity.From(ctx) // the change had one
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.known, typeKey{caller.Tenant, name})
}

func shownType(i object.Info, s *storev1.TypeState) *statev1.Type {
	return rpc.Present(&statev1.Type{}, i, s)
}

// PutType implements StateService.
func (m *Manager) PutType(ctx context.Context, req *statev1.PutTypeRequest) (*statev1.PutTypeResponse, error) {
	if err := rpc.RequireService(ctx, "declare types"); err != nil {
		return nil, err
	}
	is := &storev1.TypeState{}
	rpc.Copy(is, req.GetType())
	if _, err := declare(is); err != nil {
		return nil, err
	}
	name := req.GetType().GetType()
	res, err := object.Do(ctx, m.types.kind, object.ID(name), req, func(tx *object.Tx[*storev1.TypeState]) (*statev1.PutTypeResponse, error) {
		before := tx.State().GetMigrations()
		if n := len(before); len(is.GetMigrations()) < n || !slices.EqualFunc(before, is.GetMigrations()[:n], func(a, b *storev1.Migration) bool { return proto.Equal(a, b) }) {
			return nil, problem.InvalidArgument("type.migrations", fmt.Sprintf("must begin with the %d that are declared already: states may have had them", n))
		}
		if tx.Exists() && proto.Equal(tx.State(), is) {
			tx.Unchanged()
		}
		proto.Reset(tx.State())
		proto.Merge(tx.State(), is)
		return &statev1.PutTypeResponse{Type: shownType(tx.Info(), is)}, nil
	}, object.Upsert(), object.Shared())
	m.types.forget(ctx, name)
	return res, err
}

// ListTypes implements StateService.
func (m *Manager) ListTypes(ctx context.Context, req *statev1.ListTypesRequest) (*statev1.ListTypesResponse, error) {
	if err := rpc.RequireService(ctx, "list declared types"); err != nil {
		return nil, err
	}
	types, next, err := rpc.List(ctx, m.types.kind, req, object.ListOptions{}, func(s object.Snapshot[*storev1.TypeState]) *statev1.Type {
		return shownType(s.Info, s.State)
	})
	return &statev1.ListTypesResponse{NextPageToken: next, Types: types}, err
}

// DeleteType implements StateService.
func (m *Manager) DeleteType(ctx context.Context, req *statev1.DeleteTypeRequest) (*statev1.DeleteTypeResponse, error) {
	if err := rpc.RequireService(ctx, "declare types"); err != nil {
		return nil, err
	}
	res, err := rpc.Delete(ctx, m.types.kind, req.GetType(), req, func(existed bool, version int64) *statev1.DeleteTypeResponse {
		return &statev1.DeleteTypeResponse{Existed: existed, Version: version}
	})
	m.types.forget(ctx, req.GetType())
	return res, err
}
