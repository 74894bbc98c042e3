package linear

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	linearv1 "holdfast/gen/holdfast/linear/v1"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/object"
)

const signingSecret = "lin_wh_the_signing_secret"

// linearAt is the issues' beginning of time.
var linearAt = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)

// endpoint makes an endpoint with signingSecret.
func (b *bundle) endpoint(t testing.TB) *linearv1.Endpoint {
	t.Helper()
	return must(b.as(t, nobody).PutEndpoint(t.Context(), &linearv1.PutEndpointRequest{AddSecret: signingSecret}))(t).GetEndpoint()
}

func sign(secret string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// issueEvent is what a webhook tells of an issue.
type issueEvent struct {
	action string
	id     string
	// updated is the issue's updatedAt, and for a removal the time of the action, in seconds after linearAt.
	updated int
	title   string
	state   string
	team    string
	before  []string // earlier identifiers
}

func stamp(seconds int) string {
	return linearAt.Add(time.Duration(seconds) * time.Second).Format("2006-01-02T15:04:05.000Z")
}

// body is the webhook as Linear sends it at a time.
func (e issueEvent) body(sent time.Time) []byte {
	b, err := json.Marshal(map[string]any{
		"action": e.action, "type": "Issue", "createdAt": stamp(e.updated), "organizationId": "o1", "webhookId": "w1", "webhookTimestamp": sent.UnixMilli(),
		"actor": map[string]any{"id": "u1", "name": "Grace", "type": "user"}, "url": "https://linear.app/acme/issue/ENG-1",
		"data": map[string]any{
			"id": e.id, "identifier": strings.ToUpper(e.team) + "-" + e.id, "number": 1, "title": e.title, "priority": 2, "priorityLabel": "High",
			"url": "https://linear.app/acme/issue/" + e.id, "sortOrder": 1.5, "stateId": "s-" + e.state,
			"state":  map[string]any{"id": "s-" + e.state, "name": e.state, "type": e.state, "color": "#fff"},
			"teamId": e.team, "team": map[string]any{"id": e.team, "key": strings.ToUpper(e.team), "name": e.team},
			"labelIds": []string{"l2", "l1"}, "labels": []any{map[string]any{"id": "l1", "name": "Bug", "color": "#f00"}}, "previousIdentifiers": e.before, "createdAt": stamp(0), "updatedAt": stamp(e.updated),
		},
	})
	if err != nil {
		panic(err)
	}
	return b
}

// tell sends an event that is signed and on time.
func (b *bundle) tell(t testing.TB, path, delivery string, e issueEvent) string {
	t.Helper()
	return b.tellAt(t, path, delivery, e, b.clock.now())
}

// tellAt is tell for one that was sent at a time.
func (b *bundle) tellAt(t testing.TB, path, delivery string, e issueEvent, sent time.Time) string {
	t.Helper()
	body := e.body(sent)
	status, said := b.post(t, path, body, map[string]string{"Linear-Signature": sign(signingSecret, body), "Linear-Delivery": delivery, "Linear-Event": "Issue"})
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, said)
	}
	return said
}

func TestWebhook(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := b.endpoint(t)
	now := b.clock.now()
	event := issueEvent{"create", "i1", 1, "Login fails", "started", "eng", nil}
	good := event.body(now)
	edited := func(f func(map[string]any)) []byte {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		f(m)
		return must(json.Marshal(m))(t)
	}
	noID := edited(func(m map[string]any) { delete(m["data"].(map[string]any), "id") })
	for _, tt := range []struct {
		name, path string
		body       []byte
		signature  string
		status     int
		says       string
	}{
		{"forged", e.GetPath(), good, sign("another secret", good), 400, "signature"},
		{"changed", e.GetPath(), append([]byte(" "), good...), sign(signingSecret, good), 400, "signature"},
		{"unsigned", e.GetPath(), good, "", 400, "Linear-Signature"},
		{"half a signature", e.GetPath(), good, sign(signingSecret, good)[:32], 400, "Linear-Signature"},
		{"not hex", e.GetPath(), good, strings.Repeat("x", 64), 400, "Linear-Signature"},
		{"another endpoint", WebhookPath + strings.Repeat("a", 26), good, sign(signingSecret, good), 404, "no such endpoint"},
		{"all endpoints", WebhookPath + "*", good, sign(signingSecret, good), 404, "no such endpoint"},
		{"no endpoint", WebhookPath, good, sign(signingSecret, good), 404, "no such endpoint"},
		{"below the endpoint", e.GetPath() + "/x", good, sign(signingSecret, good), 404, "no such endpoint"},
		{"no JSON", e.GetPath(), []byte("{"), sign(signingSecret, []byte("{")), 400, "JSON"},
		{"too large", e.GetPath(), make([]byte, maxWebhook+1), sign(signingSecret, nil), 413, "1048576"},
		{"from the future", e.GetPath(), event.body(now.Add(2 * time.Minute)), sign(signingSecret, event.body(now.Add(2*time.Minute))), 400, "future"},
		{"no time", e.GetPath(), []byte(`{"type":"Issue"}`), sign(signingSecret, []byte(`{"type":"Issue"}`)), 400, "webhookTimestamp"},
		{"not of an issue", e.GetPath(), edited(func(m map[string]any) { m["type"] = "Customer" }), "", 200, "ignored"},
		{"an action to come", e.GetPath(), edited(func(m map[string]any) { m["action"] = "snooze" }), "", 200, "ignored"},
		{"an issue without an id", e.GetPath(), noID, "", 200, "ignored"},
		{"good", e.GetPath(), good, sign(signingSecret, good), 200, "applied"},
	} {
		if tt.signature == "" && tt.status == 200 {
			tt.signature = sign(signingSecret, tt.body)
		}
		status, said := b.post(t, tt.path, tt.body, map[string]string{"Linear-Signature": tt.signature, "Linear-Delivery": "d-" + tt.name})
		if status != tt.status || !strings.Contains(said, tt.says) {
			t.Errorf("%s: %d %s", tt.name, status, said)
		}
	}
	if status, _ := b.post(t, e.GetPath(), good, map[string]string{"Linear-Signature": sign(signingSecret, good), "Linear-Delivery": "d-good"}); status != 200 {
		t.Errorf("again: %d", status)
	}
	res, err := b.http(t, nobody).Get(b.url + e.GetPath())
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != http.MethodPost {
		t.Errorf("GET: %d %v", res.StatusCode, res.Header)
	}

	got := b.issue(t, ada, "i1")
	want := &linearv1.Issue{
		IssueId: "i1", Version: 1, Identifier: "ENG-i1", Url: "https://linear.app/acme/issue/i1", Title: "Login fails", Priority: 2,
		State: &linearv1.WorkflowState{Id: "s-started", Name: "started", Type: "started", Color: "#fff"}, Team: &linearv1.Team{Id: "eng", Name: "eng", Key: "ENG"},
		Labels: []*linearv1.Label{{Id: "l1", Name: "Bug", Color: "#f00"}, {Id: "l2"}}, LinearCreateTime: timestamppb.New(linearAt), LinearUpdateTime: timestamppb.New(linearAt.Add(time.Second)),
	}
	if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(want, "create_time", "update_time", "payload")); diff != "" {
		t.Errorf("sent twice (-want +got):\n%s", diff)
	}
	// All of it is kept, also what nobody asks by.
	if f := got.GetPayload().GetPayload().GetFields(); f["sortOrder"].GetNumberValue() != 1.5 || got.GetPayload().GetSource() != "webhook" {
		t.Errorf("the payload is %v", got.GetPayload())
	}
}

// The issue that moves between teams is one issue.
func TestIssueMovesBetweenTeams(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, c := b.endpoint(t).GetPath(), b.as(t, ada)
	b.tell(t, path, "d1", issueEvent{"create", "i1", 1, "Login", "started", "eng", nil})
	b.tell(t, path, "d2", issueEvent{"update", "i1", 2, "Login", "started", "ops", []string{"ENG-i1"}})
	for name, tt := range map[string]struct {
		filter *linearv1.IssueFilter
		want   int
	}{
		"the old team": {&linearv1.IssueFilter{TeamIds: []string{"eng"}}, 0}, "the new team": {&linearv1.IssueFilter{TeamIds: []string{"ops"}, Open: true}, 1},
		"its new name": {&linearv1.IssueFilter{Identifiers: []string{"OPS-i1"}, Open: true}, 1}, "all": {nil, 1},
		"its old name": {&linearv1.IssueFilter{Identifiers: []string{"ENG-i1"}}, 1}, "another's": {&linearv1.IssueFilter{AssigneeIds: []string{"u9"}}, 0},
	} {
		if got := must(c.ListIssues(t.Context(), &linearv1.ListIssuesRequest{Filter: tt.filter}))(t).GetIssues(); len(got) != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Two signing secrets are valid while they are rotated; a third pushes the oldest out, and one can be taken away. What is
// stored is none of them.
func TestSecretsAreRotated(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, c, e := t.Context(), b.as(t, nobody), b.endpoint(t)
	try := func(secret string) bool {
		t.Helper()
		body := issueEvent{"update", "i1", 1, "t", "started", "eng", nil}.body(b.clock.now())
		status, _ := b.post(t, e.GetPath(), body, map[string]string{"Linear-Signature": sign(secret, body)})
		return status == http.StatusOK
	}
	check := func(when string, want ...bool) {
		t.Helper()
		if got := []bool{try(signingSecret), try("second"), try("third")}; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	check("at first", true, false, false)
	add := func(secret string) *linearv1.Endpoint {
		t.Helper()
		return must(c.PutEndpoint(ctx, &linearv1.PutEndpointRequest{EndpointId: e.GetEndpointId(), AddSecret: secret}))(t).GetEndpoint()
	}
	add("second")
	check("with a second", true, true, false)
	with := add("third")
	check("with a third", false, true, true)
	must(c.PutEndpoint(ctx, &linearv1.PutEndpointRequest{EndpointId: e.GetEndpointId(), RemoveSecretId: with.GetSecrets()[0].GetSecretId()}))(t)
	check("without the second", false, false, true)
	_, err := c.PutEndpoint(ctx, &linearv1.PutEndpointRequest{EndpointId: e.GetEndpointId(), RemoveSecretId: "none"})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")

	conn := must(pgx.Connect(ctx, b.SuperuserURL))(t)
	defer conn.Close(ctx)
	var found int
	sql := `SELECT count(*) FROM holdfast.events v JOIN holdfast.objects o USING (tenant_id, kind, object_id)
		WHERE tenant_id = $1 AND (o.state::text || v.undo::text || coalesce(encode(v.reply, 'escape'), '')) ~ 'third|second|signing'`
	if err := conn.QueryRow(ctx, sql, string(b.Tenant)).Scan(&found); err != nil || found != 0 {
		t.Errorf("%d rows have a secret in clear, %v", found, err)
	}
	must(c.DeleteEndpoint(ctx, &linearv1.DeleteEndpointRequest{EndpointId: e.GetEndpointId()}))(t)
	check("once it is deleted", false, false, false)
}

// What is signed but old counts by its own time, whether or not there is an API key, and Linear is to be asked for the issue.
func TestAStaleWebhookIsNotForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := b.endpoint(t).GetPath()
	late := func(e issueEvent) string {
		t.Helper()
		return b.tellAt(t, path, fmt.Sprint(e), e, b.clock.now().Add(-time.Hour))
	}
	if said := late(issueEvent{"update", "new", 5, "Late", "started", "eng", nil}); !strings.Contains(said, "fetched") {
		t.Error(said)
	}
	if got := b.issue(t, ada, "new"); got.GetTitle() != "Late" || !got.GetRefetch() {
		t.Errorf("%v", got)
	}
	b.tell(t, path, "d1", issueEvent{"create", "i1", 5, "Login", "started", "eng", nil})
	if said := late(issueEvent{"update", "i1", 4, "Older", "started", "eng", nil}); strings.Contains(said, "fetched") {
		t.Error(said) // what is known is newer
	}
	if said := late(issueEvent{"update", "i1", 6, "Newer", "started", "eng", nil}); !strings.Contains(said, "fetched") {
		t.Error(said)
	}
	if got := b.issue(t, ada, "i1"); got.GetTitle() != "Newer" || !got.GetRefetch() {
		t.Errorf("%v", got)
	}
	// A replay neither takes back what is newer nor hides the webhook that comes on time.
	b.tell(t, path, fmt.Sprint(issueEvent{"update", "i1", 6, "Newer", "started", "eng", nil}), issueEvent{"update", "i1", 7, "Newest", "started", "eng", nil})
	late(issueEvent{"update", "i1", 6, "Newer", "started", "eng", nil})
	late(issueEvent{"remove", "new", 6, "Late", "started", "eng", nil})
	if got := b.issue(t, ada, "i1"); got.GetTitle() != "Newest" {
		t.Errorf("%v", got)
	}
	if got := b.issue(t, ada, "new"); got.GetRemoveTime() == nil || got.GetRefetch() {
		t.Errorf("%v", got)
	}
}

func eachName(labels []*linearv1.Label) (names []string) {
	for _, l := range labels {
		names = append(names, l.GetName())
	}
	return names
}

// A webhook changes what it names, and what it names among the earlier values alone is cleared. Wrong dates make no order.
func TestAWebhookChangesWhatItNames(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := b.endpoint(t).GetPath()
	full := map[string]any{
		"id": "i", "identifier": "ENG-1", "title": "Login", "description": "long", "priority": 2, "estimate": 3, "stateId": "s", "state": map[string]any{"id": "s", "name": "Doing", "type": "started"},
		"teamId": "eng", "team": map[string]any{"id": "eng", "key": "ENG", "name": "Eng"}, "assigneeId": "u1", "assignee": map[string]any{"id": "u1", "name": "Grace"},
		"labelIds": []any{"l1"}, "labels": []any{map[string]any{"id": "l1", "name": "Bug"}}, "dueDate": "2026-12-24", "startedAt": stamp(1), "sortOrder": 7,
		"url": "https://linear.app/acme/issue/i", "createdAt": stamp(0), "updatedAt": stamp(1),
	}
	fields := func(i *linearv1.Issue) string {
		return fmt.Sprint(i.GetTitle(), "|", i.GetDescription(), "|", i.GetPriority(), "|", i.GetEstimate(), "|", i.GetState().GetName(), i.GetState().GetType(), "|", i.GetTeam().GetKey(), "|",
			i.GetAssignee().GetName(), "|", strings.Join(eachName(i.GetLabels()), ","), "|", i.GetDueDate(), "|", i.GetStartTime() != nil, "|", i.GetRemoveTime() != nil, "|", i.GetPayload().GetPayload().GetFields()["sortOrder"].GetNumberValue())
	}
	const known = "Login|long|2|3|Doingstarted|ENG|Grace|Bug|2026-12-24|true|false|7"
	for name, tt := range map[string]struct {
		action     string
		data, from map[string]any
		want       string
		refetch    bool
	}{
		"a title":                {"update", map[string]any{"title": "Log in", "updatedAt": stamp(2)}, nil, strings.Replace(known, "Login", "Log in", 1), false},
		"nothing":                {"update", map[string]any{"updatedAt": stamp(2)}, nil, known, false},
		"nulls":                  {"update", map[string]any{"description": nil, "estimate": nil, "assigneeId": nil, "dueDate": nil, "startedAt": nil, "updatedAt": stamp(2)}, nil, "Login||2|0|Doingstarted|ENG||Bug||false|false|7", false},
		"earlier values":         {"update", map[string]any{"updatedAt": stamp(2)}, map[string]any{"assigneeId": "u1", "dueDate": "2026-12-24", "title": "x", "stateId": "s"}, "Login|long|2|3|Doingstarted|ENG||Bug||true|false|7", false},
		"a null that cannot be":  {"update", map[string]any{"title": nil, "stateId": nil, "state": nil, "priority": nil, "team": nil, "labelIds": nil, "updatedAt": stamp(2)}, nil, known, false},
		"other types":            {"update", map[string]any{"title": 5, "description": []any{}, "priority": "x", "estimate": "y", "assignee": 6, "startedAt": true, "labels": "z", "updatedAt": stamp(2)}, nil, known, false},
		"ids without names":      {"update", map[string]any{"assigneeId": "u1", "stateId": "s", "teamId": "eng", "labelIds": []any{"l1"}, "updatedAt": stamp(2)}, nil, known, false},
		"another without a name": {"update", map[string]any{"assigneeId": "u2", "updatedAt": stamp(2)}, nil, strings.Replace(known, "Grace", "", 1), false},
		"no labels":              {"update", map[string]any{"labelIds": []any{}, "updatedAt": stamp(2)}, nil, strings.Replace(known, "Bug", "", 1), false},
		"an older one":           {"update", map[string]any{"title": "Old", "updatedAt": stamp(0)}, nil, known, false},
		"no date":                {"update", map[string]any{"title": "Log in"}, nil, strings.Replace(known, "Login", "Log in", 1), true},
		"a date to come":         {"update", map[string]any{"title": "Log in", "updatedAt": s2099}, nil, strings.Replace(known, "Login", "Log in", 1), true},
		"a date that is none":    {"update", map[string]any{"title": "Log in", "updatedAt": "soon"}, nil, strings.Replace(known, "Login", "Log in", 1), true},
		"a removal":              {"remove", map[string]any{}, nil, strings.Replace(known, "false", "true", 1), false},
		"a removal with a date":  {"remove", map[string]any{"updatedAt": s2099}, nil, strings.Replace(known, "false", "true", 1), false},
	} {
		id := strings.ReplaceAll(name, " ", "-")
		send := func(action, delivery string, data, from map[string]any) {
			t.Helper()
			data = maps.Clone(data)
			data["id"] = id
			body := must(json.Marshal(map[string]any{
				"action": action, "type": "Issue", "createdAt": stamp(3), "webhookTimestamp": b.clock.now().UnixMilli(), "data": data, "updatedFrom": from,
			}))(t)
			if status, said := b.post(t, path, body, map[string]string{"Linear-Signature": sign(signingSecret, body), "Linear-Delivery": id + delivery}); status != http.StatusOK {
				t.Fatal(status, said)
			}
		}
		send("create", "1", full, nil)
		send(tt.action, "2", tt.data, tt.from)
		got := b.issue(t, ada, id)
		if is := fields(got); is != tt.want || got.GetRefetch() != tt.refetch {
			t.Errorf("%s: %s, want %s; refetch is %t", name, is, tt.want, got.GetRefetch())
		}
		if at := got.GetLinearUpdateTime().AsTime(); at.After(b.clock.now().Add(futureSkew)) {
			t.Errorf("%s: updated at %v", name, at)
		}
		// What comes next is applied.
		send("update", "3", map[string]any{"title": "Next", "updatedAt": b.clock.now().Add(30 * time.Second).UTC().Format(time.RFC3339Nano)}, nil)
		if next := b.issue(t, ada, id); next.GetTitle() != "Next" || next.GetRemoveTime() != nil {
			t.Errorf("%s: afterwards it is %v", name, next)
		}
	}
	// A removal needs no more than an id, of an issue that is not known either.
	body := must(json.Marshal(map[string]any{"action": "remove", "type": "Issue", "webhookTimestamp": b.clock.now().UnixMilli(), "data": map[string]any{"id": "unheard-of"}}))(t)
	if status, said := b.post(t, path, body, map[string]string{"Linear-Signature": sign(signingSecret, body)}); status != http.StatusOK || said != "applied" {
		t.Error(status, said)
	}
	b.tell(t, path, "late", issueEvent{"create", "unheard-of", 1, "Late", "started", "eng", nil})
	if got := b.issue(t, ada, "unheard-of"); got.GetRemoveTime() == nil {
		t.Errorf("%v", got)
	}
}

// Webhooks that are shuffled, doubled, forged and late leave the same issues as the same webhooks in order.
func TestWebhooksConverge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rapid.Check(t, func(r *rapid.T) {
		// The history of a few issues: each is created, changed, perhaps removed, and perhaps restored.
		var history []issueEvent
		for i := range rapid.IntRange(1, 3).Draw(r, "issues") {
			id, at := fmt.Sprintf("i%d", i), 0
			for n := range rapid.IntRange(1, 6).Draw(r, "events") {
				at += rapid.IntRange(0, 2).Draw(r, "pause")
				action := "update"
				if n == 0 {
					action = "create"
				} else if rapid.IntRange(0, 4).Draw(r, "fate") == 0 {
					action = "remove"
				}
				history = append(history, issueEvent{
					action, id, at, fmt.Sprintf("title %d", n), rapid.SampledFrom([]string{"started", "completed", "backlog"}).Draw(r, "state"),
					rapid.SampledFrom([]string{"eng", "ops"}).Draw(r, "team"), nil,
				})
			}
		}
		// What arrives: each at least once, in any order, between forged ones, and some again when they are old.
		type arrival struct {
			event        issueEvent
			sent         time.Time
			delivery     string
			forged, late bool
		}
		var arrivals []arrival
		began := b.clock.now()
		for i, e := range history {
			delivery, sent := fmt.Sprint(i), began.Add(time.Duration(i)*time.Millisecond)
			arrivals = append(arrivals, arrival{event: e, sent: sent, delivery: delivery})
			switch rapid.IntRange(0, 3).Draw(r, "copies") {
			case 1: // the same again
				arrivals = append(arrivals, arrival{event: e, sent: sent, delivery: delivery})
			case 2: // of a second webhook of the same workspace
				arrivals = append(arrivals, arrival{event: e, sent: sent, delivery: delivery + "-second"})
			}
			if rapid.Bool().Draw(r, "late") {
				arrivals = append(arrivals, arrival{event: e, sent: sent.Add(-time.Hour), delivery: delivery, late: true})
			}
			if rapid.Bool().Draw(r, "forged") {
				lie := e
				lie.updated, lie.title = e.updated+100, "forged"
				arrivals = append(arrivals, arrival{event: lie, sent: sent, delivery: delivery, forged: true})
			}
		}
		arrivals = rapid.Permutation(arrivals).Draw(r, "order")

		ordered, shuffled := b.fresh(t), b.fresh(t)
		for i, e := range history {
			ordered.tellAt(t, ordered.path, fmt.Sprint(i), e, began.Add(time.Duration(i)*time.Millisecond))
		}
		for _, a := range arrivals {
			secret := signingSecret
			if a.forged {
				secret = "forged"
			}
			body := a.event.body(a.sent)
			status, said := shuffled.post(t, shuffled.path, body, map[string]string{
				"Linear-Signature": sign(secret, body), "Linear-Delivery": a.delivery,
			})
			if (status == http.StatusOK) == a.forged {
				r.Fatalf("%+v is answered with %d %s", a, status, said)
			}
		}
		if diff := cmp.Diff(ordered.issues(t), shuffled.issues(t), protocmp.Transform(), protocmp.IgnoreFields(&storev1.Label{}, "named_ms")); diff != "" {
			r.Fatalf("%+v\nleave other issues than in order (-ordered +arrived):\n%s", arrivals, diff)
		}
	})
}

// told is an endpoint of a tenant of its own, on the same server.
type told struct {
	*bundle

	path string
}

func (b *bundle) fresh(t testing.TB) *told {
	t.Helper()
	other := *b
	other.Bundle = b.tenant(t)
	return &told{&other, other.endpoint(t).GetPath()}
}

// issues are the tenant's, removed ones too, without what only says how they came.
func (b *told) issues(t testing.TB) map[string]*storev1.IssueState {
	t.Helper()
	out := map[string]*storev1.IssueState{}
	for _, id := range []string{"i0", "i1", "i2"} {
		s, err := b.kinds.Issues.View(b.AsService(t), object.ID(id))
		if err != nil {
			continue
		}
		state := proto.CloneOf(s.State)
		state.Refetch, state.EndpointId, state.DeliveryId = false, "", ""
		out[id] = state
	}
	return out
}
