package inspect

import (
	"context"

	inspectv1 "holdfast/gen/holdfast/inspect/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
)

// EraseUser implements InspectService.
func (m *Manager) EraseUser(ctx context.Context, req *inspectv1.EraseUserRequest) (*inspectv1.EraseUserResponse, error) {
	if err := rpc.RequireService(ctx, "erase a user"); err != nil {
		return nil, err
	}
	user := identity.User(req.GetUser())
	if !user.Valid() {
		return nil, problem.InvalidArgument("user", "is 1 to 128 bytes of printable text")
	}
	erased, err := m.rt.EraseUser(ctx, user)
	if err != nil {
		return nil, err
	}
	return &inspectv1.EraseUserResponse{
		DeletedRows: erased.Deleted, ChangedObjects: int64(erased.Changed), ChangedEvents: int64(erased.Events), RemainingRows: erased.Left,
	}, nil
}
