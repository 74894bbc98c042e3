package linear

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	linearv1 "holdfast/gen/holdfast/linear/v1"
)

// hook is a webhook of any type as Linear sends it, with properties of the envelope beside the data.
func hook(kind, action string, at int, around map[string]any) map[string]any {
	m := map[string]any{"type": kind, "action": action, "createdAt": stamp(at), "organizationId": "o1", "actor": map[string]any{"id": "u1", "name": "Grace", "type": "user"}}
	maps.Copy(m, around)
	return m
}

// send sends a webhook that is signed, and was sent at a time.
func (b *bundle) send(t testing.TB, path string, m map[string]any, sent time.Time) string {
	t.Helper()
	m["webhookTimestamp"] = sent.UnixMilli()
	body := must(json.Marshal(m))(t)
	status, said := b.post(t, path, body, map[string]string{"Linear-Signature": sign(signingSecret, body)})
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, said)
	}
	return said
}

// comments are the bodies of an issue's comments, in pages of a size.
func (b *bundle) comments(t testing.TB, issue string, newest bool, size int32) (bodies []string) {
	t.Helper()
	for req := (&linearv1.ListCommentsRequest{Filter: &linearv1.CommentFilter{IssueId: issue}, NewestFirst: newest, PageSize: size}); ; {
		res := must(b.as(t, ada).ListComments(t.Context(), req))(t)
		for _, c := range res.GetComments() {
			bodies = append(bodies, c.GetBody())
		}
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			return bodies
		}
	}
}

// Webhooks on comments and attachments leave the same in whatever order they come, doubled or late. What they do not name stays, and a
// removal needs no more than an id.
func TestPartsComeInAnyOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := b.endpoint(t).GetPath()
	comment := func(action, id string, at int, more map[string]any) map[string]any {
		data := map[string]any{"id": id, "issueId": "i1", "createdAt": stamp(len(id)), "updatedAt": stamp(at), "userId": "u1", "user": map[string]any{"id": "u1", "name": "Grace"}}
		maps.Copy(data, more)
		return hook("Comment", action, at, map[string]any{"data": data})
	}
	attachment := func(action string, at int, more map[string]any) map[string]any {
		data := map[string]any{"id": "a1", "issueId": "i1", "createdAt": stamp(0), "updatedAt": stamp(at), "title": "PR", "url": "https://github.com/a/b/pull/1", "sourceType": "github"}
		maps.Copy(data, more)
		return hook("Attachment", action, at, map[string]any{"data": data})
	}
	hooks := []map[string]any{
		comment("create", "c", 1, map[string]any{"body": "one", "quotedText": "quoted"}),
		comment("update", "c", 5, map[string]any{"body": "one, edited", "editedAt": stamp(5), "quotedText": "quoted"}),
		comment("create", "cc", 2, map[string]any{"body": "two", "parentId": "c"}),
		hook("Comment", "remove", 9, map[string]any{"data": map[string]any{"id": "ccc"}}),
		comment("create", "ccc", 3, map[string]any{"body": "soon gone"}),
		comment("create", "cccc", 4, map[string]any{"body": "of a bot", "userId": nil, "user": nil, "botActor": "GitHub"}),
		comment("create", "c5", 4, map[string]any{"body": "of no issue", "issueId": nil, "projectId": "p1"}),
		attachment("create", 1, map[string]any{"metadata": map[string]any{"status": "open"}}),
		attachment("update", 3, map[string]any{"metadata": map[string]any{"status": "merged"}, "subtitle": "merged"}),
	}
	for range 6 {
		all := append(slices.Clone(hooks), hooks...)
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, m := range all {
			sent := b.clock.now()
			if rand.IntN(3) == 0 {
				sent = sent.Add(-time.Hour) // a retry that counts by its own time
			}
			b.send(t, path, m, sent)
		}
	}
	for _, size := range []int32{0, 1, 2} {
		want := []string{"one, edited", "two", "of a bot"}
		if got := b.comments(t, "i1", false, size); !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %q", size, got)
		}
		slices.Reverse(want)
		if got := b.comments(t, "i1", true, size); !slices.Equal(got, want) {
			t.Errorf("newest first, in pages of %d: %q", size, got)
		}
	}
	c := b.as(t, ada)
	first := must(c.ListComments(t.Context(), &linearv1.ListCommentsRequest{Filter: &linearv1.CommentFilter{IssueId: "i1"}}))(t).GetComments()
	want := &linearv1.Comment{
		CommentId: "c", IssueId: "i1", Body: "one, edited", QuotedText: "quoted", User: &linearv1.Ref{Id: "u1", Name: "Grace"},
		EditTime: timestamppb.New(linearAt.Add(5 * time.Second)), LinearCreateTime: timestamppb.New(linearAt.Add(time.Second)),
		LinearUpdateTime: timestamppb.New(linearAt.Add(5 * time.Second)),
	}
	if diff := cmp.Diff(want, first[0], protocmp.Transform(), protocmp.IgnoreFields(want, "version", "create_time", "update_time")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if first[1].GetParentId() != "c" || first[2].GetBot() != "GitHub" || first[2].GetUser() != nil {
		t.Errorf("%v", first)
	}
	links := must(c.ListAttachments(t.Context(), &linearv1.ListAttachmentsRequest{IssueId: "i1"}))(t).GetAttachments()
	if len(links) != 1 || links[0].GetMetadata().GetFields()["status"].GetStringValue() != "merged" || links[0].GetSubtitle() != "merged" || links[0].GetSourceType() != "github" {
		t.Errorf("%v", links)
	}
	// What a report does not name stays; null clears.
	b.send(t, path, hook("Comment", "update", 20, map[string]any{"data": map[string]any{"id": "c", "updatedAt": stamp(20), "quotedText": nil}}), b.clock.now())
	got := must(c.ListComments(t.Context(), &linearv1.ListCommentsRequest{Filter: &linearv1.CommentFilter{IssueId: "i1"}}))(t).GetComments()[0]
	if got.GetBody() != "one, edited" || got.GetQuotedText() != "" || got.GetUser().GetName() != "Grace" {
		t.Errorf("%v", got)
	}
	// Of an issue that is removed there are none.
	b.tell(t, path, "i", issueEvent{"remove", "i1", 30, "t", "started", "eng", nil})
	if got := b.comments(t, "i1", false, 0); len(got) != 0 {
		t.Errorf("of a removed issue: %q", got)
	}
}

// What is wrong with a webhook's comment is no error, and what is strange in it does not spoil the rest.
func TestStrangeParts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := b.endpoint(t).GetPath()
	for name, tt := range map[string]struct {
		data any
		says string
		body string
	}{
		"no data":              {nil, "ignored", ""},
		"no id":                {map[string]any{"body": "x"}, "ignored", ""},
		"a strange id":         {map[string]any{"id": "../x", "issueId": "i"}, "ignored", ""},
		"a list":               {[]any{1}, "ignored", ""},
		"an issue of a number": {map[string]any{"id": "n1", "issueId": 7, "body": "x"}, "ignored", ""},
		"dates that are none":  {map[string]any{"id": "n2", "issueId": "i2", "body": "x", "createdAt": 5, "updatedAt": "soon"}, "applied", "x"},
		"a date to come":       {map[string]any{"id": "n3", "issueId": "i3", "body": "x", "updatedAt": s2099}, "applied", "x"},
		"a body of a number":   {map[string]any{"id": "n4", "issueId": "i4", "body": 7}, "applied", ""},
		"a long body":          {map[string]any{"id": "n5", "issueId": "i5", "body": strings.Repeat("ä", maxBody) + "!"}, "applied", strings.Repeat("ä", maxBody)},
		"U+0000":               {map[string]any{"id": "n6", "issueId": "i6", "body": "a\x00b"}, "applied", "ab"},
		"a user of a text":     {map[string]any{"id": "n7", "issueId": "i7", "body": "x", "user": "Grace"}, "applied", "x"},
	} {
		said := b.send(t, path, hook("Comment", "create", 1, map[string]any{"data": tt.data}), b.clock.now())
		if !strings.HasPrefix(said, tt.says) {
			t.Errorf("%s: %s", name, said)
		}
		data, _ := tt.data.(map[string]any)
		if tt.says == "ignored" {
			continue
		}
		got := must(b.as(t, ada).ListComments(t.Context(), &linearv1.ListCommentsRequest{Filter: &linearv1.CommentFilter{IssueId: data["issueId"].(string)}}))(t).GetComments()
		if len(got) != 1 || got[0].GetBody() != tt.body || got[0].GetBodyCut() != (name == "a long body") || got[0].GetLinearUpdateTime().AsTime().After(b.clock.now().Add(futureSkew)) {
			t.Errorf("%s: %v", name, got)
		}
	}
	// One with a time that cannot be right does not keep a right one out.
	b.send(t, path, hook("Comment", "update", 1, map[string]any{"data": map[string]any{"id": "n3", "issueId": "i3", "body": "y", "updatedAt": b.clock.now().Add(time.Second).Format(time.RFC3339Nano)}}), b.clock.now().Add(time.Second))
	if got := b.comments(t, "i3", false, 0); !slices.Equal(got, []string{"y"}) {
		t.Errorf("%q", got)
	}
}

// The history says who changed what, once, whatever order the webhooks come in; what only the sync saw is there without who.
func TestHistory(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx, path, c := t.Context(), s.endpoint.GetPath(), s.as(t, ada)
	update := func(at int, from, to string) map[string]any {
		e := issueEvent{"update", "i1", at, to, "started", "eng", nil}
		var m map[string]any
		if err := json.Unmarshal(e.body(s.clock.now()), &m); err != nil {
			t.Fatal(err)
		}
		m["updatedFrom"] = map[string]any{"title": from, "updatedAt": stamp(at - 1), "dueDate": nil, "description": strings.Repeat("x", 5000)}
		return m
	}
	s.tell(t, path, "d1", issueEvent{"create", "i1", 1, "one", "started", "eng", nil})
	hooks := []map[string]any{update(5, "four", "five"), update(3, "two", "three"), update(5, "four", "five"), update(2, "one", "two"), update(4, "three", "four"), update(3, "two", "three")}
	for _, m := range hooks {
		s.send(t, path, m, s.clock.now())
	}
	s.linear.put("i1", "six", 6)
	s.linear.change("i1", map[string]any{"assignee": map[string]any{"id": "u2", "name": "Ada"}, "priority": 2})
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	var got []string
	for req := (&linearv1.ListIssueHistoryRequest{IssueId: "i1", PageSize: 2}); ; {
		res := must(c.ListIssueHistory(ctx, req))(t)
		for _, change := range res.GetChanges() {
			is := []string{change.GetTime().AsTime().Format("05"), change.GetSource(), change.GetAction(), change.GetActor().GetName()}
			for _, p := range change.GetProperties() {
				if p.GetName() == "description" && !p.GetOmitted() {
					t.Errorf("%v", p)
				}
				if p.GetName() == "title" || p.GetName() == "assigneeId" {
					is = append(is, p.GetName(), p.GetFrom().GetStringValue()+">"+p.GetTo().GetStringValue())
				}
			}
			got = append(got, strings.Join(is, " "))
		}
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	want := []string{
		"06 poll update  assigneeId >u2 title five>six", "05 webhook update Grace title four>five", "04 webhook update Grace title three>four",
		"03 webhook update Grace title two>three", "02 webhook update Grace title one>two", "01 webhook create Grace",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// The webhook of what the sync saw takes its place.
	s.send(t, path, update(6, "five", "six"), s.clock.now())
	res := must(c.ListIssueHistory(ctx, &linearv1.ListIssueHistoryRequest{IssueId: "i1", PageSize: 2}))(t)
	if first := res.GetChanges()[0]; first.GetActor().GetName() != "Grace" || res.GetChanges()[1].GetTime().AsTime().Second() != 5 {
		t.Errorf("%v", res)
	}
	if res := must(c.ListIssueHistory(ctx, &linearv1.ListIssueHistoryRequest{IssueId: "nowhere"}))(t); len(res.GetChanges()) > 0 {
		t.Errorf("%v", res)
	}
}

// A rename shows on every issue, and an older report does not bring the old name back.
func TestRenames(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := b.endpoint(t).GetPath()
	for i := range 5 {
		b.tell(t, path, fmt.Sprint(i), issueEvent{"create", fmt.Sprint("i", i), 1, "t", "started", "eng", nil})
	}
	rename := func(name string, at int) string {
		now := b.clock.now()
		return b.send(t, path, hook("IssueLabel", "update", at, map[string]any{"data": map[string]any{
			"id": "l1", "name": name, "color": "#0f0", "updatedAt": now.Add(time.Duration(at) * time.Second).Format(time.RFC3339Nano),
		}}), now)
	}
	b.clock.advance(time.Minute)
	rename("Defect", -1)
	rename("Older", -30)
	for i := range 5 {
		if l := b.issue(t, ada, fmt.Sprint("i", i)).GetLabels()[0]; l.GetName() != "Defect" || l.GetColor() != "#0f0" {
			t.Errorf("%v", l)
		}
	}
	if got := must(b.as(t, ada).ListIssues(t.Context(), &linearv1.ListIssuesRequest{Filter: &linearv1.IssueFilter{LabelNames: []string{"Defect"}}}))(t).GetIssues(); len(got) != 5 {
		t.Errorf("%d issues have the new name", len(got))
	}
	b.tellAt(t, path, "late", issueEvent{"update", "i0", 2, "u", "started", "eng", nil}, b.clock.now().Add(-20*time.Second))
	if got := b.issue(t, ada, "i0"); got.GetTitle() != "u" || got.GetLabels()[0].GetName() != "Defect" {
		t.Errorf("%v", got)
	}
	b.tell(t, path, "new", issueEvent{"update", "i0", 3, "u", "started", "eng", nil})
	if got := b.issue(t, ada, "i0"); got.GetLabels()[0].GetName() != "Bug" { // renamed once more
		t.Errorf("%v", got)
	}
}

// One request of the sync reads issues, comments and attachments. One of them that Linear does not answer, or a list that it refuses, does
// not hold up the others.
func TestTheSyncReadsParts(t *testing.T) {
	t.Parallel()
	s := setupSync(t)
	ctx := t.Context()
	s.linear.put("i1", "t", 10)
	s.linear.comment("c1", "i1", "one", 11)
	s.linear.attach("a1", "i1", "https://github.com/a/b/pull/1", 12)
	if err := s.sync(ctx); err != nil || s.linear.asked() != 1 {
		t.Fatalf("%v after %d requests", err, s.linear.asked())
	}
	links := func() int {
		return len(must(s.service.ListAttachments(ctx, &linearv1.ListAttachmentsRequest{IssueId: "i1"}))(t).GetAttachments())
	}
	if got := s.comments(t, "i1", false, 0); !slices.Equal(got, []string{"one"}) || links() != 1 {
		t.Errorf("%q, %d links", got, links())
	}
	s.linear.put("i1", "u", 20)
	s.linear.comment("c2", "i1", "two", 21)
	s.linear.comment("c3", "i1", "three", 22)
	s.linear.attach("a2", "i1", "https://github.com/a/b/pull/2", 23)
	refuse := func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"data": nil, "errors": []any{map[string]any{"path": []any{comments}, "extensions": map[string]any{"code": "FORBIDDEN"}}}})
	}
	s.linear.then(refuse)
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	left := s.state(t).GetLists()[0]
	if s.titles(t)["i1"] != "u" || links() != 2 || len(s.comments(t, "i1", false, 0)) != 1 || left.GetName() != comments || left.GetError() == "" || left.GetNotBefore() == nil {
		t.Errorf("%v", s.state(t))
	}
	s.clock.advance(time.Minute)
	if err := s.sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got := s.comments(t, "i1", false, 0); len(got) != 3 || s.state(t).GetLists()[0].GetError() != "" {
		t.Errorf("%q, %v", got, s.state(t))
	}
}
