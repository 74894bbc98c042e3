package inspect

import (
	"testing"

	"connectrpc.com/connect"

	inspectv1 "holdfast/gen/holdfast/inspect/v1"
)

func TestEraseUser(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.put(b.ctx, t, b.toys, "hers", "x")
	b.put(b.AsService(t), t, b.toys, "shared", "ada@example.com and others", "k1=ada@example.com")
	for _, user := range []string{"", "a\tb"} {
		_, err := b.service.EraseUser(t.Context(), &inspectv1.EraseUserRequest{User: user})
		wantRefusal(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	}
	_, err := b.ada.EraseUser(t.Context(), &inspectv1.EraseUserRequest{User: "ada"})
	wantRefusal(t, err, connect.CodePermissionDenied, "ROLE_REQUIRED")

	got, err := b.service.EraseUser(t.Context(), &inspectv1.EraseUserRequest{User: "ada@example.com"})
	if err != nil || got.GetChangedObjects() != 1 || got.GetChangedEvents() != 2 || // its state, then its entry
		len(got.GetDeletedRows())+len(got.GetRemainingRows()) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	for _, changed := range []map[string]int64{{"objects": 1, "events": 1, "api_keys": 1}, {}} { // and again nothing
		got, err := b.service.EraseUser(t.Context(), &inspectv1.EraseUserRequest{User: "ada"})
		if err != nil || len(got.GetDeletedRows()) != len(changed) || got.GetDeletedRows()["objects"] != changed["objects"] {
			t.Errorf("%v, %v", got, err)
		}
	}
	_, err = b.service.GetObject(t.Context(), &inspectv1.GetObjectRequest{Ref: ref("toy", "hers")})
	wantRefusal(t, err, connect.CodeNotFound, "NOT_FOUND")
	_, err = b.service.GetObject(t.Context(), &inspectv1.GetObjectRequest{Ref: ref("toy", "shared")})
	if err != nil {
		t.Error(err)
	}
}
