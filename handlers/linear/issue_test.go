package linear

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	linearv1 "holdfast/gen/holdfast/linear/v1"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
)

// said makes a word of an issue at a time in seconds.
func said(t *testing.T, rank int32, at, sent int, title string) *issueReport {
	t.Helper()
	p := must(structpb.NewStruct(map[string]any{
		"id": "i", "identifier": "ENG-1", "title": title, "updatedAt": stamp(at), "stateId": "s", "teamId": "eng",
	}))(t)
	return must(newIssueReport(p, "test", rank, linearAt.Add(time.Duration(sent)*time.Second)))(t)
}

func TestNewestWordWins(t *testing.T) {
	t.Parallel()
	hook := func(at, sent int, title string) *issueReport { return said(t, rankWebhook, at, sent, title) }
	read := func(at, sent int, title string) *issueReport { return said(t, rankRead, at, sent, title) }
	create := func(at, sent int, title string) *issueReport {
		w := hook(at, sent, title)
		w.create = true
		return w
	}
	remove := func(at, sent int, title string) *issueReport {
		return hook(at, sent, title).removal(linearAt.Add(time.Duration(at) * time.Second))
	}
	for name, tt := range map[string]struct {
		words   []*issueReport
		title   string
		refetch bool
		removed bool
	}{
		"in order":                                {[]*issueReport{create(1, 1, "a"), hook(2, 2, "b")}, "b", false, false},
		"a create behind its update":              {[]*issueReport{hook(2, 2, "b"), create(1, 3, "a")}, "b", true, false},
		"an update of what is unknown":            {[]*issueReport{hook(2, 2, "b")}, "b", true, false},
		"the same twice":                          {[]*issueReport{create(1, 1, "a"), create(1, 1, "a")}, "a", false, false},
		"the same, sent again later":              {[]*issueReport{create(1, 1, "a"), create(1, 9, "a")}, "a", false, false},
		"two of one time that disagree":           {[]*issueReport{create(1, 1, "a"), hook(1, 2, "b")}, "b", true, false},
		"the same two the other way round":        {[]*issueReport{hook(1, 2, "b"), create(1, 1, "a")}, "b", true, false},
		"a removal":                               {[]*issueReport{create(1, 1, "a"), remove(2, 2, "a")}, "a", false, true},
		"an update behind a removal":              {[]*issueReport{create(1, 1, "a"), remove(3, 3, "a"), hook(2, 2, "b")}, "a", false, true},
		"an update at the time of a removal":      {[]*issueReport{create(1, 1, "a"), remove(3, 3, "a"), hook(3, 9, "b")}, "a", false, true},
		"a removal at the time of an update":      {[]*issueReport{create(1, 1, "a"), hook(3, 9, "b"), remove(3, 3, "a")}, "a", false, true},
		"a removal behind what is newer":          {[]*issueReport{create(1, 1, "a"), hook(4, 4, "b"), remove(3, 5, "a")}, "b", false, false},
		"a removal of what is unknown":            {[]*issueReport{remove(3, 3, "a"), create(1, 1, "a")}, "a", false, true},
		"restored":                                {[]*issueReport{create(1, 1, "a"), remove(3, 3, "a"), hook(4, 4, "b")}, "b", false, false},
		"Linear's answer settles two of one time": {[]*issueReport{create(1, 1, "a"), hook(1, 2, "b"), read(1, 5, "a")}, "a", false, false},
		"a webhook behind Linear's answer":        {[]*issueReport{read(1, 5, "a"), hook(1, 9, "b")}, "a", false, false},
		"an answer older than the webhook":        {[]*issueReport{hook(2, 2, "b"), read(1, 5, "a")}, "b", true, false},
		"Linear no longer has it":                 {[]*issueReport{create(1, 1, "a"), removedReport("i", "e", linearAt.Add(time.Hour))}, "a", false, true},
		"Linear never had it, for all we know":    {[]*issueReport{removedReport("i", "e", linearAt.Add(time.Hour)), hook(5, 5, "b")}, "", false, true},
	} {
		s := &storev1.IssueState{}
		for i, w := range tt.words {
			before := proto.CloneOf(s)
			changed, applied := applyReport(s, w, i > 0, linearAt.Add(24*time.Hour))
			if changed == proto.Equal(before, s) || applied && !changed {
				t.Errorf("%s, word %d: changed is %v, applied %v", name, i, changed, applied)
			}
		}
		if s.GetTitle() != tt.title || s.GetRefetch() != tt.refetch || (s.GetRemoveTime() != nil) != tt.removed {
			t.Errorf("%s: %v", name, s)
		}
		if got := issueTTL(s); (got != 0) != tt.removed {
			t.Errorf("%s: it is kept for %v", name, got)
		}
		terms := issueTerms(s)
		if slices.Contains(terms, "any") == tt.removed || slices.Contains(terms, refetchTerm) != tt.refetch {
			t.Errorf("%s: %q", name, terms)
		}
	}
}

// Webhooks have ids beside the things, the API has the things: both are the same issue.
func TestIssueFields(t *testing.T) {
	t.Parallel()
	common := map[string]any{
		"id": "i", "identifier": "ENG-1", "number": 1, "title": "t", "description": strings.Repeat("ä", maxDescription) + "!", "priority": 1, "estimate": 2.5,
		"dueDate": "2026-12-24", "createdAt": stamp(0), "updatedAt": stamp(1), "startedAt": stamp(2), "canceledAt": nil, "trashed": true,
	}
	named := []any{map[string]any{"id": "a", "name": "A"}, map[string]any{"id": "b", "name": "B"}}
	hook, api := map[string]any{"labelIds": []any{"b", "a"}, "labels": named}, map[string]any{"labels": map[string]any{"nodes": named}}
	for k, v := range common {
		hook[k], api[k] = v, v
	}
	for thing, id := range map[string]string{"state": "s", "team": "t", "assignee": "u1", "delegate": "u2", "creator": "u3", "project": "p", "cycle": "c", "parent": "i0"} {
		hook[thing+"Id"] = id
		api[thing] = map[string]any{"id": id, "name": "n", "type": "started", "key": "ENG"}
	}
	for _, thing := range []string{"state", "team", "assignee", "delegate", "creator", "project", "cycle", "parent"} {
		hook[thing] = api[thing]
	}
	read := func(m map[string]any) *storev1.IssueState {
		fields, _ := issueFields(must(structpb.NewStruct(m))(t).GetFields())
		return fields
	}
	if diff := cmp.Diff(read(hook), read(api), protocmp.Transform()); diff != "" {
		t.Errorf("(-webhook +API):\n%s", diff)
	}
	s := read(api)
	if len([]rune(s.GetDescription())) != maxDescription || !s.GetDescriptionCut() || s.GetEstimate() != 2.5 || s.GetParent().GetId() != "i0" || s.GetLabels()[1].GetName() != "B" || s.GetCancelTime() != nil || !s.GetTrashed() {
		t.Errorf("%v", s)
	}
	for name, m := range map[string]map[string]any{
		"no id": {"title": "t", "updatedAt": stamp(0)}, "an id of another type": {"id": 5, "title": "t", "updatedAt": stamp(0)},
		"a strange id": {"id": "a/b", "title": "t", "updatedAt": stamp(0)}, "a long id": {"id": strings.Repeat("x", 129), "title": "t", "updatedAt": stamp(0)},
	} {
		if _, err := newIssueReport(must(structpb.NewStruct(m))(t), "test", rankRead, linearAt); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	if _, err := newIssueReport(nil, "test", rankRead, linearAt); err == nil {
		t.Error("nothing was taken for an issue")
	}
}

// A payload is kept whole where it can be stored, and what it loses otherwise is named.
func TestKeepPayload(t *testing.T) {
	t.Parallel()
	deep := any("x")
	for range maxDepth + 5 {
		deep = []any{deep}
	}
	p := must(structpb.NewStruct(map[string]any{
		"id": "i", "title": "a\x00b", "deep": deep, "huge": strings.Repeat("x", maxPayload), "large": strings.Repeat("x", maxPayload/2), "list": []any{1, "c\x00"},
	}))(t)
	before := proto.CloneOf(p)
	kept, dropped := keepPayload(p)
	if diff := cmp.Diff([]string{"huge"}, dropped); diff != "" {
		t.Error(diff)
	}
	f := kept.GetFields()
	if f["title"].GetStringValue() != "ab" || f["list"].GetListValue().GetValues()[1].GetStringValue() != "c" || f["large"] == nil || f["id"] == nil {
		t.Errorf("%v", maxPayload)
	}
	if !proto.Equal(before, p) {
		t.Error("the caller's was changed")
	}
}

// What an issue is listed by, every list finds.
func TestIssueFiltersAreTerms(t *testing.T) {
	t.Parallel()
	s := &storev1.IssueState{
		Team: &storev1.Team{Id: "t"}, Project: &storev1.Ref{Id: "p"}, Assignee: &storev1.Ref{Id: "a"}, Identifier: "ENG-1",
		State: &storev1.WorkflowState{Type: "started"}, Stamp: &storev1.IssueStamp{},
	}
	for _, open := range []bool{false, true} {
		for name, f := range map[string]*linearv1.IssueFilter{
			"all": {}, "team": {TeamIds: []string{"t"}}, "project": {ProjectIds: []string{"p"}}, "assignee": {AssigneeIds: []string{"a"}},
			"identifier": {Identifiers: []string{"ENG-1"}}, "every": {TeamIds: []string{"t"}, ProjectIds: []string{"p"}, AssigneeIds: []string{"a"}},
		} {
			f.Open = open
			o, whole := issueOptions(f, linearv1.IssueOrder_ISSUE_ORDER_UNSPECIFIED)
			for _, term := range append(o.Terms, o.AnyTerm...) {
				if !slices.Contains(issueTerms(s), term) {
					t.Errorf("%s: the filter %q is none of %q", name, term, issueTerms(s))
				}
			}
			if want := name != "every" && (name != "identifier" || !open); whole != want || !fitsIssue(f, s) {
				t.Errorf("%s, open %t: the index is all of it: %t; it fits: %t", name, open, whole, fitsIssue(f, s))
			}
		}
	}
	for _, done := range []*storev1.IssueState{
		{State: &storev1.WorkflowState{Type: "completed"}},
		{State: &storev1.WorkflowState{Type: "canceled"}},
		{State: &storev1.WorkflowState{Type: "duplicate"}},
		{Trashed: true},
	} {
		done.Team, done.Stamp = s.GetTeam(), s.GetStamp()
		if terms := issueTerms(done); slices.ContainsFunc(terms, func(term string) bool { return strings.HasSuffix(term, "open") }) {
			t.Errorf("%v is listed by %q", done, terms)
		}
	}
}
