package linear

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linearv1 "holdfast/gen/holdfast/linear/v1"
)

// payload is an issue as Linear's API answers it, with what is said of it beside that.
func payload(t testing.TB, id string, updated int, more map[string]any) *structpb.Struct {
	t.Helper()
	m := map[string]any{"id": id, "title": "t", "updatedAt": stamp(updated)}
	maps.Copy(m, more)
	return must(structpb.NewStruct(m))(t)
}

// Every change is made once however often it is sent, and a request id is of one request.
func TestRetries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, nobody)
	id := b.endpoint(t).GetEndpointId()
	for name, call := range map[string]func(other bool) (proto.Message, error){
		"a new endpoint": func(other bool) (proto.Message, error) {
			return c.PutEndpoint(ctx, &linearv1.PutEndpointRequest{AddSecret: fmt.Sprint(other), RequestId: "r-1"})
		},
		"an endpoint": func(other bool) (proto.Message, error) {
			return c.PutEndpoint(ctx, &linearv1.PutEndpointRequest{EndpointId: id, AddSecret: fmt.Sprint(other), RequestId: "r-2"})
		},
	} {
		first := must(call(false))(t)
		if again := must(call(false))(t); !proto.Equal(again, first) {
			t.Errorf("%s: a retry is answered with\n%v, the first was\n%v", name, again, first)
		}
		_, err := call(true)
		refused(t, err, connect.CodeAlreadyExists, "REQUEST_ID_REUSED")
	}
	if n := len(must(c.ListEndpoints(ctx, &linearv1.ListEndpointsRequest{}))(t).GetEndpoints()); n != 2 {
		t.Errorf("there are %d endpoints", n)
	}

	put := func(title string) *linearv1.PutIssueResult {
		t.Helper()
		issue := payload(t, "i1", 1, map[string]any{"title": title})
		return must(c.PutIssues(ctx, &linearv1.PutIssuesRequest{RequestId: "r-3", Issues: []*structpb.Struct{issue}}))(t).GetResults()[0]
	}
	first := put("one")
	if again := put("one"); !proto.Equal(again, first) || !first.GetApplied() || first.GetVersion() != 1 {
		t.Errorf("a retry is answered with %v, the first was %v", again, first)
	}
	if other := put("two"); other.GetProblem().GetReason() != "REQUEST_ID_REUSED" || other.GetApplied() {
		t.Errorf("another issue by that id: %v", other)
	}
}

// What is wrong with one issue does not keep out the others, and each result says what became of its own.
func TestEachIssueIsPutByItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c := t.Context(), b.as(t, nobody)
	must(c.PutIssues(ctx, &linearv1.PutIssuesRequest{Issues: []*structpb.Struct{payload(t, "old", 5, nil)}}))(t)
	got := must(c.PutIssues(ctx, &linearv1.PutIssuesRequest{IfVersion: new(int64), Issues: []*structpb.Struct{
		payload(t, "new", 1, nil), payload(t, "", 1, nil), payload(t, "old", 6, nil), payload(t, "newer", 1, nil),
	}}))(t).GetResults()
	var is []string
	for _, r := range got {
		is = append(is, fmt.Sprintf("%s %t %d %s", r.GetIssueId(), r.GetApplied(), r.GetVersion(), r.GetProblem().GetReason()))
	}
	if diff := cmp.Diff([]string{"new true 1 ", " false 0 FIELD_INVALID", "old false 0 VERSION_MISMATCH", "newer true 1 "}, is); diff != "" {
		t.Error(diff)
	}
	if f := got[1].GetProblem().GetViolations().GetFields(); len(f) != 1 || f[0].GetField() != "issues[1]" {
		t.Errorf("%v", got[1])
	}
	if m := got[2].GetProblem().GetMismatch(); m.GetCurrentVersion() != 1 || !m.GetExists() || m.GetObject() != "linear_issue/old" {
		t.Errorf("%v", got[2])
	}
	stale := must(c.PutIssues(ctx, &linearv1.PutIssuesRequest{Issues: []*structpb.Struct{payload(t, "old", 4, nil)}}))(t).GetResults()[0]
	if stale.GetApplied() || stale.GetProblem() != nil || stale.GetVersion() != 1 {
		t.Errorf("an older word: %v", stale)
	}
}

// A filter finds what fits all of it, in pages of any size.
func TestIssueFilters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, service, c := t.Context(), b.as(t, nobody), b.as(t, ada)
	thing := func(id, name string) map[string]any { return map[string]any{"id": id, "name": name} }
	state := func(kind string) map[string]any { return map[string]any{"id": "s-" + kind, "name": kind, "type": kind} }
	bug := map[string]any{"nodes": []any{thing("l1", "Bug")}}
	issues := []*structpb.Struct{
		payload(t, "a", 10, map[string]any{"identifier": "ENG-1", "title": "Login fails", "team": thing("eng", "Eng"), "state": state("started"), "labels": bug, "priority": 1, "cycleId": "y1", "delegateId": "agent"}),
		payload(t, "b", 20, map[string]any{"identifier": "ENG-2", "description": "the LOGIN page", "team": thing("eng", "Eng"), "state": state("completed"), "assignee": thing("u1", "Grace"), "parent": map[string]any{"id": "a", "identifier": "ENG-1"}}),
		payload(t, "c", 30, map[string]any{"identifier": "OPS-1", "previousIdentifiers": []any{"ENG-3"}, "team": thing("ops", "Ops"), "state": state("backlog"), "assignee": thing("u1", "Grace"), "project": thing("p1", "P")}),
		payload(t, "d", 40, map[string]any{"identifier": "OPS-2", "team": thing("ops", "Ops"), "state": state("started"), "labels": bug, "trashed": true}),
		payload(t, "e", 50, map[string]any{"title": "no team and no state"}),
	}
	must(service.PutIssues(ctx, &linearv1.PutIssuesRequest{Issues: issues}))(t)
	for part := range 3 { // more than are read at a time, and listed before the others
		many := make([]*structpb.Struct, 90)
		for i := range many {
			many[i] = payload(t, fmt.Sprint("z", part, "-", i), 1, map[string]any{"team": thing("many", "Many")})
		}
		must(service.PutIssues(ctx, &linearv1.PutIssuesRequest{Issues: many}))(t)
	}
	type filter = linearv1.IssueFilter
	for name, tt := range map[string]struct {
		filter *filter
		want   string
	}{
		"ids":               {&filter{IssueIds: []string{"c", "nowhere", "a"}}, "c a"},
		"ids and more":      {&filter{IssueIds: []string{"c", "a"}, TeamIds: []string{"eng"}}, "a"},
		"identifier":        {&filter{Identifiers: []string{"ENG-1"}}, "a"},
		"an earlier one":    {&filter{Identifiers: []string{"ENG-3", "ENG-2"}}, "b c"},
		"teams":             {&filter{TeamIds: []string{"eng", "ops"}}, "a b c d"},
		"team and open":     {&filter{TeamIds: []string{"eng", "ops"}, Open: true}, "a c"},
		"assignee":          {&filter{AssigneeIds: []string{"u1"}}, "b c"},
		"assignee and team": {&filter{AssigneeIds: []string{"u1"}, TeamIds: []string{"ops"}}, "c"},
		"project":           {&filter{ProjectIds: []string{"p1"}}, "c"},
		"state types":       {&filter{StateTypes: []string{"completed", "backlog"}}, "b c"},
		"label":             {&filter{LabelNames: []string{"Bug"}}, "a d"},
		"label id":          {&filter{LabelIds: []string{"l1"}}, "a d"},
		"states":            {&filter{StateIds: []string{"s-started", "s-backlog"}}, "a c d"},
		"priority":          {&filter{Priorities: []int32{1, 2}}, "a"},
		"no priority":       {&filter{Priorities: []int32{0}, TeamIds: []string{"eng"}}, "b"},
		"cycle":             {&filter{CycleIds: []string{"y1"}}, "a"},
		"parent":            {&filter{ParentIds: []string{"a"}}, "b"},
		"delegate":          {&filter{DelegateIds: []string{"agent"}}, "a"},
		"open label":        {&filter{LabelNames: []string{"Bug"}, Open: true}, "a"},
		"text":              {&filter{Text: "login"}, "a b"},
		"text, identifier":  {&filter{Text: "ops-", TeamIds: []string{"ops"}}, "c d"},
		"no such text":      {&filter{Text: "logout"}, ""},
		"updated since":     {&filter{UpdatedSince: timestamppb.New(linearAt.Add(30 * time.Second))}, "c d e"},
		"identifier, open":  {&filter{Identifiers: []string{"ENG-2"}, Open: true}, ""},
	} {
		for _, size := range []int32{0, 1, 2} {
			got := []string{}
			for req := (&linearv1.ListIssuesRequest{Filter: tt.filter, PageSize: size}); ; {
				res := must(c.ListIssues(ctx, req))(t)
				if size > 0 && len(res.GetIssues()) > int(size) {
					t.Errorf("%s: a page of %d has %d", name, size, len(res.GetIssues()))
				}
				for _, i := range res.GetIssues() {
					got = append(got, i.GetIssueId())
				}
				if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
					break
				}
			}
			if !strings.HasPrefix(name, "ids") {
				slices.Sort(got)
			}
			if is := strings.Join(got, " "); is != tt.want {
				t.Errorf("%s, in pages of %d: %q, want %q", name, size, is, tt.want)
			}
		}
	}
	token := must(c.ListIssues(ctx, &linearv1.ListIssuesRequest{PageSize: 1, Filter: &filter{Text: "t"}}))(t).GetNextPageToken()
	_, err := c.ListIssues(ctx, &linearv1.ListIssuesRequest{PageToken: token, Filter: &filter{Text: "u"}})
	refused(t, err, connect.CodeInvalidArgument, "PAGE_TOKEN_INVALID")
	_, err = c.ListIssues(ctx, &linearv1.ListIssuesRequest{Filter: &filter{StateTypes: []string{"done"}}})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
}

// Payloads come along where they are asked for.
func TestPayloadsOnRequest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.as(t, nobody)
	var issues []*structpb.Struct
	for i := range 12 {
		issues = append(issues, payload(t, fmt.Sprint("i", i), 1, map[string]any{"sortOrder": float64(i), "more": strings.Repeat("x", maxPayload-1000)}))
	}
	for i := range issues {
		must(c.PutIssues(t.Context(), &linearv1.PutIssuesRequest{Issues: issues[i : i+1]}))(t)
	}
	got := 0
	for req := (&linearv1.ListIssuesRequest{WithPayload: true}); ; {
		res := must(c.ListIssues(t.Context(), req))(t)
		if size := proto.Size(res); size > 2<<20 {
			t.Errorf("a page has %d bytes", size)
		}
		for _, i := range res.GetIssues() {
			got++
			if f := i.GetPayload().GetPayload().GetFields(); fmt.Sprint("i", f["sortOrder"].GetNumberValue()) != i.GetIssueId() || i.GetPayload().GetSource() != "api" {
				t.Errorf("%s: %v", i.GetIssueId(), f["sortOrder"])
			}
		}
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if got != len(issues) {
		t.Errorf("%d issues were listed", got)
	}
	for _, i := range must(c.ListIssues(t.Context(), &linearv1.ListIssuesRequest{}))(t).GetIssues() {
		if i.GetPayload() != nil {
			t.Errorf("%s has a payload", i.GetIssueId())
		}
	}
}

// An endpoint is changed as its mask says, and its sync set back and made to run.
func TestEndpoints(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx, c, id := t.Context(), s.service, s.endpoint.GetEndpointId()
	put := func(req *linearv1.PutEndpointRequest) *linearv1.Endpoint {
		t.Helper()
		req.EndpointId = id
		return must(c.PutEndpoint(ctx, req))(t).GetEndpoint()
	}
	if s.endpoint.GetReplayWindow().AsDuration() != defaultReplayWindow || s.endpoint.GetPath() != WebhookPath+id || s.endpoint.GetOwner() != "" {
		t.Errorf("%v", s.endpoint)
	}
	got := put(&linearv1.PutEndpointRequest{Endpoint: &linearv1.Endpoint{Title: "Acme", ReplayWindow: durationpb.New(2 * time.Minute), Labels: map[string]string{"a": "b"}}})
	if got.GetTitle() != "Acme" || got.GetReplayWindow().AsDuration() != 2*time.Minute || got.GetVersion() != 2 || got.GetApiKey() == nil || len(got.GetSecrets()) != 1 {
		t.Errorf("%v", got)
	}
	if again := put(&linearv1.PutEndpointRequest{Endpoint: got}); !proto.Equal(again, got) {
		t.Errorf("sent back: %v", again)
	}
	for i := range 3 {
		s.linear.put(fmt.Sprint("i", i), "t", 100*i)
	}
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	back := linearAt.Add(100 * time.Second)
	got = put(&linearv1.PutEndpointRequest{ResetSyncTo: timestamppb.New(back), SyncNow: true})
	if !got.GetSync().GetHighWaterTime().AsTime().Equal(back) || got.GetSync().GetIssueCount() != 3 || got.GetVersion() != 2 {
		t.Errorf("set back: %v", got)
	}
	if at := <-s.synced; at != id {
		t.Errorf("the endpoint %s was to be synced", at)
	}
	listed := must(c.ListEndpoints(ctx, &linearv1.ListEndpointsRequest{}))(t).GetEndpoints()
	if diff := cmp.Diff([]*linearv1.Endpoint{got}, listed, protocmp.Transform()); diff != "" {
		t.Errorf("(-put +listed):\n%s", diff)
	}
	got = put(&linearv1.PutEndpointRequest{UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"api_key", "replay_window"}}})
	if got.GetApiKey() != nil || got.GetReplayWindow().AsDuration() != defaultReplayWindow || got.GetTitle() != "Acme" {
		t.Errorf("%v", got)
	}
	_, err := c.PutEndpoint(ctx, &linearv1.PutEndpointRequest{EndpointId: "chosen"})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	_, err = c.PutEndpoint(ctx, &linearv1.PutEndpointRequest{EndpointId: id, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"secrets"}}})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	for range 2 {
		existed := must(c.DeleteEndpoint(ctx, &linearv1.DeleteEndpointRequest{EndpointId: id}))(t).GetExisted()
		if existed != (got != nil) {
			t.Errorf("it existed: %t", existed)
		}
		got = nil
	}
}
