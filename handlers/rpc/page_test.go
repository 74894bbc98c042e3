package rpc_test

import (
	"strings"
	"testing"

	errorv1 "holdfast/gen/holdfast/error/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
)

// A token goes on with its own list, in pages of any size, and with no other.
func TestATokenIsOfOneList(t *testing.T) {
	t.Parallel()
	list := &projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{ProjectId: "p"}, PageSize: 7}
	token := rpc.Token(list, "cursor")
	for name, tt := range map[string]struct {
		req  rpc.ListRequest
		want string
	}{
		"the same list":       {&projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{ProjectId: "p"}, PageSize: 7, PageToken: token}, "cursor"},
		"another page size":   {&projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{ProjectId: "p"}, PageToken: token}, "cursor"},
		"the first page":      {&projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{ProjectId: "q"}}, ""},
		"other filters":       {&projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{ProjectId: "q"}, PageToken: token}, "refused"},
		"fewer filters":       {&projectv1.ListTasksRequest{PageToken: token}, "refused"},
		"another RPC":         {&projectv1.ListProjectsRequest{PageToken: token}, "refused"},
		"half a token":        {&projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{ProjectId: "p"}, PageToken: token[:6]}, "refused"},
		"only a hash":         {&projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{ProjectId: "p"}, PageToken: token[:8]}, "refused"},
		"no token":            {&projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{ProjectId: "p"}, PageToken: "x"}, "refused"},
		"what is not base64":  {&projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{ProjectId: "p"}, PageToken: "?" + token[1:]}, "refused"},
		"a token with a tail": {&projectv1.ListTasksRequest{Filter: &projectv1.TaskFilter{ProjectId: "p"}, PageToken: token + strings.Repeat("=", 2)}, "refused"},
	} {
		got, err := rpc.Cursor(tt.req)
		if p, ok := err.(*problem.Error); ok && p.Reason == errorv1.Reason_REASON_PAGE_TOKEN_INVALID { //nolint:errorlint // returned as it is
			got = "refused"
		}
		if got != tt.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, tt.want)
		}
	}
	if rpc.Token(list, "") != "" {
		t.Error("the last page has a token")
	}
}
