package linear

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linearv1 "holdfast/gen/holdfast/linear/v1"
)

// Every order works with every filter, in pages of any size, also among equals.
func TestIssuesAreListedInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var issues []*structpb.Struct
	for i, of := range []struct {
		id               string
		created, updated int
		more             map[string]any
	}{
		{"a", 1, 50, map[string]any{"priority": 0}},
		{"b", 2, 20, map[string]any{"priority": 3}},
		{"c", 3, 30, map[string]any{"priority": 1, "labels": []any{map[string]any{"id": "l1", "name": "Bug"}}}},
		{"d", 4, 30, map[string]any{"priority": 1, "state": map[string]any{"id": "s", "type": "completed"}}},
		{"e", 4, 40, map[string]any{"priority": 3, "labels": []any{map[string]any{"id": "l1", "name": "Bug"}}, "parentId": "a"}},
		{"f", 4, 10, map[string]any{"priority": 2, "assignee": map[string]any{"id": "u1", "name": "Grace"}}},
	} {
		of.more["createdAt"], of.more["identifier"] = stamp(of.created), fmt.Sprint("ENG-", i)
		issues = append(issues, payload(t, of.id, of.updated, of.more))
	}
	// One at a time, so that equals have an order of their own here.
	for i := range issues {
		must(b.as(t, nobody).PutIssues(t.Context(), &linearv1.PutIssuesRequest{Issues: issues[i : i+1]}))(t)
	}
	const (
		updated, created, priority = linearv1.IssueOrder_ISSUE_ORDER_UPDATED, linearv1.IssueOrder_ISSUE_ORDER_CREATED, linearv1.IssueOrder_ISSUE_ORDER_PRIORITY
	)
	type filter = linearv1.IssueFilter
	for name, tt := range map[string]struct {
		order  linearv1.IssueOrder
		filter *filter
		want   string // equals are in brackets
	}{
		"updated":               {updated, nil, "a e [cd] b f"},
		"created":               {created, nil, "[def] c b a"},
		"priority":              {priority, nil, "[cd] f e b a"},
		"updated, open":         {updated, &filter{Open: true}, "a e c b f"},
		"created, open":         {created, &filter{Open: true}, "[ef] c b a"},
		"priority, open":        {priority, &filter{Open: true}, "c f e b a"},
		"priority, label":       {priority, &filter{LabelIds: []string{"l1"}}, "c e"},
		"created, label name":   {created, &filter{LabelNames: []string{"Bug"}, Open: true}, "e c"},
		"updated, priorities":   {updated, &filter{Priorities: []int32{1, 3}}, "e [cd] b"},
		"priority, since":       {priority, &filter{UpdatedSince: timestamppb.New(linearAt.Add(30e9))}, "[cd] e a"},
		"created, parent":       {created, &filter{ParentIds: []string{"a"}}, "e"},
		"updated, assignee":     {updated, &filter{AssigneeIds: []string{"u1"}, StateTypes: []string{"started"}}, ""},
		"created, assignee":     {created, &filter{AssigneeIds: []string{"u1"}}, "f"},
		"priority, identifiers": {priority, &filter{Identifiers: []string{"ENG-1", "ENG-2"}}, "c b"},
		"updated, text":         {updated, &filter{Text: "eng-3"}, "d"},
		"ids keep theirs":       {priority, &filter{IssueIds: []string{"b", "a"}}, "b a"},
	} {
		for _, size := range []int32{0, 1, 2, 5} {
			got := ""
			for req := (&linearv1.ListIssuesRequest{Filter: tt.filter, PageSize: size, Order: tt.order}); ; {
				res := must(b.as(t, ada).ListIssues(t.Context(), req))(t)
				for _, i := range res.GetIssues() {
					got += i.GetIssueId()
				}
				if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
					break
				}
			}
			if !inOrder(got, tt.want) {
				t.Errorf("%s, in pages of %d: %s, want %s", name, size, got, tt.want)
			}
		}
	}
}

// inOrder reports whether letters come in an order, in which those in brackets may come in any.
func inOrder(got, want string) bool {
	for group := range strings.FieldsSeq(want) {
		equals := strings.Trim(group, "[]")
		if len(got) < len(equals) || strings.Trim(got[:len(equals)], equals) != "" || strings.Trim(equals, got[:len(equals)]) != "" {
			return false
		}
		got = got[len(equals):]
	}
	return got == ""
}
