package linear

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/Khan/genqlient/graphql"
	"github.com/vektah/gqlparser/v2/gqlerror"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"holdfast/coordclient"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	linearv1 "holdfast/gen/holdfast/linear/v1"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/handlers/handlertest"
	"holdfast/identity"
)

// writes is what fakeLinear knows of mutations.
type writes struct {
	// script spoils the answers to the next of them.
	script []spoil
	// made counts those that changed something.
	made int
	// between is called after one is made and before it is answered.
	between func()
}

type spoil int

const (
	lostAfter spoil = iota + 1 // it is made, and the connection breaks
	lostBefore
	badGateway // it is made, and a proxy answers
	tooMany    // Linear's own refusal, for a second
)

// mutate makes a mutation as Linear does.
func (l *fakeLinear) mutate(w http.ResponseWriter, r *http.Request, operation string, v map[string]any) {
	l.mu.Lock()
	what := spoil(0)
	if len(l.writes.script) > 0 {
		what, l.writes.script = l.writes.script[0], l.writes.script[1:]
	}
	l.mu.Unlock()
	answer := httptest.NewRecorder()
	if what == lostBefore {
		panic(http.ErrAbortHandler)
	}
	if what == tooMany {
		rateLimited(time.Now().Add(time.Second))(w, r)
		return
	}
	l.mu.Lock()
	l.make(answer, r, operation, v)
	between := l.writes.between
	l.mu.Unlock()
	if between != nil {
		between()
	}
	if what == lostAfter {
		panic(http.ErrAbortHandler)
	}
	if what == badGateway {
		http.Error(w, "<html>Bad gateway</html>", http.StatusBadGateway)
		return
	}
	w.WriteHeader(answer.Code)
	_, _ = answer.Body.WriteTo(w)
}

// complain is how Linear refuses a mutation.
func complain(w http.ResponseWriter, message, forPeople string) {
	json.NewEncoder(w).Encode(map[string]any{"data": nil, "errors": gqlerror.List{{Message: message, Extensions: map[string]any{
		"code": "INPUT_ERROR", "type": "invalid input", "statusCode": 400, "userError": true, "userPresentableMessage": forPeople,
	}}}})
}

func (l *fakeLinear) make(w http.ResponseWriter, r *http.Request, operation string, v map[string]any) {
	in, _ := v["input"].(map[string]any)
	id, _ := in["id"].(string)
	exists := func(entity string) {
		complain(w, "conflict on insert of "+entity, "Entity "+entity+" with id "+id+" already exists.")
	}
	done := func(field, property string, thing any) {
		l.writes.made++
		json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{field: map[string]any{"success": true, property: thing}}})
	}
	content, _ := in["content"].(map[string]any)
	if in["title"] == "refuse me" || in["body"] == "refuse me" || content["body"] == "refuse me" {
		complain(w, "invalid value", "Linear does not like it.")
		return
	}
	now := 10_000 + l.writes.made
	switch operation {
	case "IssueCreate":
		if l.issues[id] != nil {
			exists("Issue")
			return
		}
		l.mu.Unlock()
		l.put(id, in["title"].(string), now)
		l.mu.Lock()
		l.apply(id, in)
		done("issueCreate", "issue", l.issues[id])
	case "IssueUpdate":
		id, _ = v["id"].(string)
		if l.issues[id] == nil {
			fails(http.StatusOK, "ENTITY_NOT_FOUND", nil)(w, r)
			return
		}
		l.apply(id, in)
		l.issues[id]["updatedAt"] = stamp(now)
		done("issueUpdate", "issue", l.issues[id])
	case "CommentCreate":
		if l.comments[id] != nil {
			exists("Comment")
			return
		}
		l.mu.Unlock()
		l.comment(id, in["issueId"].(string), in["body"].(string), now)
		l.mu.Lock()
		done("commentCreate", "comment", l.comments[id])
	case "AgentActivityCreate":
		if l.steps[id] != nil {
			exists("AgentActivity")
			return
		}
		l.steps[id] = map[string]any{"id": id, "content": in["content"], "ephemeral": in["ephemeral"] == true, "createdAt": stamp(now), "updatedAt": stamp(now)}
		done("agentActivityCreate", "agentActivity", l.steps[id])
	}
}

// apply changes an issue as an input says.
func (l *fakeLinear) apply(id string, in map[string]any) {
	issue := l.issues[id]
	for name, v := range in {
		switch thing, isID := strings.CutSuffix(name, "Id"); {
		case name == "id":
		case name == "addedLabelIds" || name == "labelIds":
			issue["labelIds"] = append(slices.Clone(issue["labelIds"].([]any)), v.([]any)...)
		case name == "removedLabelIds":
			issue["labelIds"] = slices.DeleteFunc(slices.Clone(issue["labelIds"].([]any)), func(id any) bool { return slices.Contains(v.([]any), id) })
		case isID && v == nil:
			issue[thing] = nil
		case isID:
			issue[thing] = map[string]any{"id": v, "name": "the " + thing, "type": "started", "key": "ENG"}
		default:
			issue[name] = v
		}
	}
	issue["labels"] = map[string]any{"nodes": []any{}}
}

// writing is an endpoint with an API key, the Linear that it writes to, and an issue there.
type writing struct {
	*synced

	writer *Writer
}

func setupWrites(t testing.TB) *writing {
	t.Helper()
	s := setupSync(t)
	s.linear.put("i1", "first", 100)
	if err := s.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The tests' clock runs ahead of the server's, which would have to wait for its breaker.
	_, err := coordinationv1connect.NewCoordinationServiceClient(s.http(t, nobody), s.url).UpdateApi(t.Context(), &coordinationv1.UpdateApiRequest{
		Api: "linear", Config: &coordinationv1.ApiConfig{Breaker: &coordinationv1.BreakerConfig{Disabled: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &writing{s, s.writerOn(t, s.bundle)}
}

// writerOn is a writer on a server, as in a process of its own.
func (s *synced) writerOn(t testing.TB, b *bundle) *Writer {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return NewWriter(WriterConfig{
		SyncConfig: SyncConfig{
			Kinds: b.kinds, Open: s.box.Open, Client: s.linear.client, URL: s.linear.url, RetryAfter: coordclient.RetryAfter, Now: s.clock.now,
			Log: slog.New(slog.DiscardHandler),
		},
		Coordinator: coordclient.New(b.url, handlertest.Key(t, b.Bundle, nobody), coordclient.WithHTTPClient(&http.Client{Transport: transport})),
		Base:        transport, Settle: time.Nanosecond,
	})
}

// send runs the writer until nothing of an issue waits to be sent, moving the clock.
func (w *writing) send(t testing.TB, id string) *linearv1.Issue {
	t.Helper()
	for range 30 {
		if err := w.writer.Issue(t.Context(), w.Tenant, id); err != nil {
			t.Fatal(err)
		}
		issue := w.issue(t, nobody, id)
		waits := func(c *linearv1.LocalChange) bool {
			return c.GetStatus() == linearv1.LocalChangeStatus_LOCAL_CHANGE_STATUS_PENDING || c.GetStatus() == linearv1.LocalChangeStatus_LOCAL_CHANGE_STATUS_SENDING
		}
		if !slices.ContainsFunc(issue.GetLocalChanges(), waits) {
			return issue
		}
		w.clock.advance(20 * time.Second)
	}
	t.Fatalf("it waits still: %v", w.issue(t, nobody, id).GetLocalChanges())
	return nil
}

func statuses(i *linearv1.Issue) (all []string) {
	for _, c := range i.GetLocalChanges() {
		all = append(all, strings.TrimPrefix(c.GetStatus().String(), "LOCAL_CHANGE_STATUS_"))
	}
	return all
}

// Whatever becomes of the answers, a change is made once. It is shown as a local change until Linear's own word comes.
func TestAChangeIsMadeOnce(t *testing.T) {
	t.Parallel()
	for name, script := range map[string][]spoil{
		"good": nil, "lost answer": {lostAfter}, "lost request": {lostBefore}, "a proxy that gave up": {badGateway}, "refused for a second": {tooMany},
		"lost twice": {lostBefore, lostAfter},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setupWrites(t)
			ctx := t.Context()
			made := func(what string) {
				t.Helper()
				w.linear.mu.Lock()
				defer w.linear.mu.Unlock()
				if w.linear.writes.made != 1 {
					t.Errorf("%s was made %d times", what, w.linear.writes.made)
				}
				w.linear.writes.made, w.linear.writes.script = 0, slices.Clone(script)
			}
			w.linear.writes.script = slices.Clone(script)

			create := &linearv1.CreateIssueRequest{RequestId: "r", Edit: &linearv1.IssueEdit{Title: "new", TeamId: "eng", Priority: 1, AddLabelIds: []string{"l9"}}}
			created := must(w.service.CreateIssue(ctx, create))(t).GetIssue()
			if again := must(w.service.CreateIssue(ctx, create))(t).GetIssue(); again.GetIssueId() != created.GetIssueId() || created.GetTitle() != "new" || created.GetTeam().GetId() != "eng" {
				t.Errorf("%v, then %v", created, again)
			}
			id := created.GetIssueId()
			if w.titles(t)[id] != "new" {
				t.Error("an issue that was asked for is in no list")
			}
			is := w.send(t, id)
			made("the issue")
			if is.GetTitle() != "new" || len(is.GetLocalChanges()) != 1 || statuses(is)[0] != "ACCEPTED" {
				t.Errorf("%v", is)
			}
			if err := w.sync(ctx); err != nil {
				t.Fatal(err)
			}
			if is = w.issue(t, nobody, id); len(is.GetLocalChanges()) != 0 || is.GetIdentifier() == "" || is.GetPriority() != 1 {
				t.Errorf("after the sync: %v", is)
			}

			must(w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: &linearv1.IssueEdit{Title: "second", StateId: "done", AddLabelIds: []string{"l9"}, RemoveLabelIds: []string{"l1"}}}))(t)
			if is = w.issue(t, nobody, "i1"); is.GetTitle() != "second" || is.GetState().GetId() != "done" || statuses(is)[0] != "PENDING" {
				t.Errorf("before it is sent: %v", is)
			}
			w.send(t, "i1")
			made("the update")
			w.linear.mu.Lock()
			payload := mustJSON(t, w.linear.issues["i1"])
			w.linear.mu.Unlock()
			w.hook(t, `{"action":"update","type":"Issue","data":`+payload+`,"updatedFrom":{"title":"first"}}`)
			if is = w.issue(t, nobody, "i1"); len(is.GetLocalChanges()) != 0 || is.GetTitle() != "second" || is.GetState().GetName() != "the state" {
				t.Errorf("after the webhook: %v", is)
			}

			comment := must(w.service.CommentOnIssue(ctx, &linearv1.CommentOnIssueRequest{IssueId: "i1", Body: "On it."}))(t)
			w.send(t, "i1")
			made("the comment")
			w.clock.advance(time.Minute)
			if is = w.send(t, "i1"); len(is.GetLocalChanges()) != 0 {
				t.Errorf("a minute later: %v", is.GetLocalChanges())
			}
			all := must(w.service.ListComments(ctx, &linearv1.ListCommentsRequest{Filter: &linearv1.CommentFilter{IssueId: "i1"}}))(t).GetComments()
			if len(all) != 1 || all[0].GetCommentId() != comment.GetCommentId() || all[0].GetBody() != "On it." {
				t.Errorf("the comments: %v", all)
			}

			w.agentSession(t)
			step := &linearv1.NewAgentActivity{Type: "action", Action: "Read", Parameter: "main.go", Result: "It compiles.", Ephemeral: true}
			responded := must(w.service.RespondToAgentSession(ctx, &linearv1.RespondToAgentSessionRequest{AgentSessionId: "s1", Activity: step}))(t)
			if got := responded.GetIssue().GetLocalChanges(); len(got) != 1 || got[0].GetAgentSessionId() != "s1" || got[0].GetActivity().GetAction() != "Read" {
				t.Errorf("before it is sent: %v", got)
			}
			if is = w.send(t, "i1"); len(is.GetLocalChanges()) != 0 {
				t.Errorf("after it is sent: %v", is.GetLocalChanges())
			}
			made("the step")
			w.linear.mu.Lock()
			sent := mustJSON(t, w.linear.steps[responded.GetActivityId()]["content"])
			w.linear.mu.Unlock()
			if sent != `{"action":"Read","parameter":"main.go","result":"It compiles.","type":"action"}` {
				t.Error("linear was sent", sent)
			}
			steps := must(w.service.ListAgentActivities(ctx, &linearv1.ListAgentActivitiesRequest{AgentSessionId: "s1"}))(t).GetActivities()
			if len(steps) != 1 || steps[0].GetActivityId() != responded.GetActivityId() || steps[0].GetResult() != "It compiles." || !steps[0].GetEphemeral() || steps[0].GetLinearCreateTime() == nil {
				t.Errorf("the steps: %v", steps)
			}
		})
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// hook sends a signed webhook to the endpoint.
func (w *writing) hook(t testing.TB, body string) {
	t.Helper()
	body = strings.TrimSuffix(body, "}") + fmt.Sprintf(`,"webhookTimestamp":%d}`, w.clock.now().UnixMilli())
	status, said := w.post(t, w.endpoint.GetPath(), []byte(body), map[string]string{"Linear-Signature": sign(signingSecret, []byte(body))})
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, said)
	}
}

// agentSession has an agent's session s1 begin on i1.
func (w *writing) agentSession(t testing.TB) {
	t.Helper()
	w.hook(t, `{"action":"created","type":"AgentSessionEvent","createdAt":"`+stamp(1)+`","agentSession":`+
		`{"id":"s1","status":"pending","issueId":"i1","createdAt":"`+stamp(0)+`","updatedAt":"`+stamp(1)+`"}}`)
}

// What Linear refuses is undone, and says why.
func TestARefusalIsShownAndUndone(t *testing.T) {
	t.Parallel()
	w := setupWrites(t)
	ctx := t.Context()
	must(w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: &linearv1.IssueEdit{Title: "refuse me", Priority: 4}}))(t)
	must(w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: &linearv1.IssueEdit{Estimate: 3}}))(t)
	must(w.service.CommentOnIssue(ctx, &linearv1.CommentOnIssueRequest{IssueId: "i1", Body: "refuse me"}))(t)
	w.agentSession(t)
	must(w.service.RespondToAgentSession(ctx, &linearv1.RespondToAgentSessionRequest{AgentSessionId: "s1", Activity: &linearv1.NewAgentActivity{Type: "response", Body: "refuse me"}}))(t)
	is := w.send(t, "i1")
	if is.GetTitle() != "first" || is.GetPriority() != 2 || is.GetEstimate() != 3 {
		t.Errorf("%v", is)
	}
	if got := fmt.Sprint(statuses(is)); got != "[REFUSED ACCEPTED REFUSED REFUSED]" || is.GetLocalChanges()[0].GetError() != "Linear does not like it." {
		t.Errorf("%s: %v", got, is.GetLocalChanges())
	}
	id := must(w.service.CreateIssue(ctx, &linearv1.CreateIssueRequest{Edit: &linearv1.IssueEdit{Title: "refuse me", TeamId: "eng"}}))(t).GetIssue().GetIssueId()
	if is = w.send(t, id); is.GetRemoveTime() == nil || is.GetLocalChanges()[0].GetError() != "Linear does not like it." {
		t.Errorf("%v", is)
	}
	if _, listed := w.titles(t)[id]; listed {
		t.Error("an issue that was not made is in a list")
	}
	_, err := w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{IssueId: id, Edit: &linearv1.IssueEdit{Title: "x"}})
	refused(t, err, connect.CodeNotFound, "NOT_FOUND")
	// Where nothing sends any more, because the key is gone, that is a refusal too.
	must(w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: &linearv1.IssueEdit{Title: "third"}}))(t)
	must(w.service.PutEndpoint(ctx, &linearv1.PutEndpointRequest{EndpointId: w.endpoint.GetEndpointId(), Endpoint: &linearv1.Endpoint{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"api_key"}}}))(t)
	if is = w.send(t, "i1"); is.GetTitle() != "first" {
		t.Errorf("%v", is)
	}
	_, err = w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: &linearv1.IssueEdit{Title: "fourth"}})
	refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
}

// What waits for the key of an endpoint that is removed is refused at once.
func TestAnEndpointThatIsGoneSendsNothing(t *testing.T) {
	t.Parallel()
	w := setupWrites(t)
	var woken []string
	m := NewManager(Options{Kinds: w.kinds, Runtime: w.rt, Seal: w.box, SendNow: func(_ context.Context, _ identity.Tenant, issue string) error {
		woken = append(woken, issue)
		return nil
	}})
	must(w.service.UpdateIssue(t.Context(), &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: &linearv1.IssueEdit{Title: "second"}}))(t)
	must(m.DeleteEndpoint(w.AsService(t), &linearv1.DeleteEndpointRequest{EndpointId: w.endpoint.GetEndpointId()}))(t)
	if is := w.send(t, "i1"); !slices.Equal(woken, []string{"i1"}) || is.GetTitle() != "first" || w.linear.writes.made != 0 {
		t.Errorf("%v: %v", woken, is)
	}
}

// A retry gets the first reply, also where the key that was to send the change is gone by then.
func TestARetryOfAChangeNeedsNoKey(t *testing.T) {
	t.Parallel()
	w := setupWrites(t)
	ctx := t.Context()
	w.agentSession(t)
	calls := map[string]func() (proto.Message, error){
		"CreateIssue": func() (proto.Message, error) {
			return w.service.CreateIssue(ctx, &linearv1.CreateIssueRequest{RequestId: "r1", Edit: &linearv1.IssueEdit{Title: "new", TeamId: "eng"}})
		},
		"UpdateIssue": func() (proto.Message, error) {
			return w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{RequestId: "r2", IssueId: "i1", Edit: &linearv1.IssueEdit{Title: "second"}})
		},
		"UpdateIssue by its endpoint": func() (proto.Message, error) {
			return w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{
				RequestId: "r3", IssueId: "i1", Edit: &linearv1.IssueEdit{Priority: 2}, EndpointId: w.endpoint.GetEndpointId(),
			})
		},
		"RespondToAgentSession": func() (proto.Message, error) {
			return w.service.RespondToAgentSession(ctx, &linearv1.RespondToAgentSessionRequest{
				RequestId: "r5", AgentSessionId: "s1", Activity: &linearv1.NewAgentActivity{Type: "response", Body: "Done"},
			})
		},
		"CommentOnIssue": func() (proto.Message, error) {
			return w.service.CommentOnIssue(ctx, &linearv1.CommentOnIssueRequest{RequestId: "r4", IssueId: "i1", Body: "Hello"})
		},
	}
	first := map[string]proto.Message{}
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		first[name] = must(calls[name]())(t)
	}
	must(w.service.DeleteEndpoint(ctx, &linearv1.DeleteEndpointRequest{EndpointId: w.endpoint.GetEndpointId()}))(t)
	for name, call := range calls {
		if again, err := call(); err != nil || !proto.Equal(again, first[name]) {
			t.Errorf("%s: %v, then %v, %v", name, first[name], again, err)
		}
	}
	if _, err := w.service.CommentOnIssue(ctx, &linearv1.CommentOnIssueRequest{IssueId: "i1", Body: "Hello"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a new change without a key: %v", err)
	}
}

// Of an update whose answer is lost, and after which somebody else has changed the issue, nobody knows whether it was made: it is not sent again.
func TestAnUpdateDoesNotOverwriteALaterOne(t *testing.T) {
	t.Parallel()
	w := setupWrites(t)
	w.linear.writes.script = []spoil{lostAfter}
	w.linear.writes.between = func() { w.linear.change("i1", map[string]any{"title": "somebody else's", "updatedAt": stamp(20_000)}) }
	must(w.service.UpdateIssue(t.Context(), &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: &linearv1.IssueEdit{Title: "mine"}}))(t)
	is := w.send(t, "i1")
	if got := statuses(is); len(got) != 1 || got[0] != "REFUSED" || is.GetLocalChanges()[0].GetError() != errOverwritten.Error() || w.linear.writes.made != 1 {
		t.Errorf("%v, made %d times", is.GetLocalChanges(), w.linear.writes.made)
	}
	if err := w.sync(t.Context()); err != nil || w.issue(t, nobody, "i1").GetTitle() != "somebody else's" {
		t.Errorf("%v, %v", w.issue(t, nobody, "i1"), err)
	}
}

// An update that did not arrive is sent again, also behind one that Linear has taken and not reported.
func TestAnUpdateBehindAnotherIsSentAgain(t *testing.T) {
	t.Parallel()
	w := setupWrites(t)
	for _, e := range []*linearv1.IssueEdit{{Title: "second"}, {Priority: 4}} {
		must(w.service.UpdateIssue(t.Context(), &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: e}))(t)
	}
	w.linear.writes.script = []spoil{0, lostBefore}
	if is := w.send(t, "i1"); fmt.Sprint(statuses(is)) != "[ACCEPTED ACCEPTED]" || w.linear.writes.made != 2 {
		t.Errorf("%d were made: %v", w.linear.writes.made, is.GetLocalChanges())
	}
}

// A process that dies after it has sent leaves the call in the ledger, and the next one finds out what became of it.
func TestAWriterThatDiesIsFollowed(t *testing.T) {
	t.Parallel()
	w := setupWrites(t)
	ctx, die := context.WithCancel(t.Context())
	w.linear.writes.between = die
	must(w.service.CommentOnIssue(t.Context(), &linearv1.CommentOnIssueRequest{IssueId: "i1", Body: "On it."}))(t)
	if err := w.writer.Issue(ctx, w.Tenant, "i1"); !errors.Is(err, context.Canceled) {
		t.Errorf("the one that dies: %v", err)
	}
	w.linear.writes.between = nil
	w.writer = w.writerOn(t, w.another(t))
	if is := w.send(t, "i1"); w.linear.writes.made != 1 || len(is.GetLocalChanges()) > 1 {
		t.Errorf("%d comments, %v", w.linear.writes.made, is)
	}
}

// Changes of an issue that wait are bounded, and an edit that changes nothing is none.
func TestLocalChangesAreBounded(t *testing.T) {
	t.Parallel()
	w := setupWrites(t)
	ctx := t.Context()
	before := w.issue(t, nobody, "i1").GetVersion()
	for _, e := range []*linearv1.IssueEdit{{}, {Title: "first"}, {AddLabelIds: []string{"l1"}}, {RemoveLabelIds: []string{"none"}}, {Priority: 2}} {
		if is := must(w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: e}))(t).GetIssue(); is.GetVersion() != before || len(is.GetLocalChanges()) != 0 {
			t.Errorf("%v is a change: %v", e, is.GetLocalChanges())
		}
	}
	for _, path := range []string{"title", "state_id", "team_id"} {
		_, err := w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{IssueId: "i1", UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{path}}})
		refused(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	}
	for i := range maxChanges {
		must(w.service.UpdateIssue(ctx, &linearv1.UpdateIssueRequest{IssueId: "i1", Edit: &linearv1.IssueEdit{Title: fmt.Sprint(i)}}))(t)
	}
	_, err := w.service.CommentOnIssue(ctx, &linearv1.CommentOnIssueRequest{IssueId: "i1", Body: "one more"})
	refused(t, err, connect.CodeResourceExhausted, "LIMIT_REACHED")
	if is := w.send(t, "i1"); is.GetTitle() != fmt.Sprint(maxChanges-1) || w.linear.writes.made != maxChanges {
		t.Errorf("%d were made: %v", w.linear.writes.made, is.GetTitle())
	}
}

func TestWhatAnAnswerMeansForAChange(t *testing.T) {
	t.Parallel()
	gql := func(code, message, said string) error {
		return gqlerror.List{{Message: message, Extensions: map[string]any{"code": code, "userPresentableMessage": said}}}
	}
	conflict := "Entity Issue with id 7 already exists."
	for name, tt := range map[string]struct {
		took writeAnswer
		err  error
		want string // accepted, refused or again
	}{
		"success":               {writeAnswer{success: true}, nil, "accepted"},
		"no success":            {writeAnswer{}, nil, "refused"},
		"it is there":           {writeAnswer{}, gql("INPUT_ERROR", "conflict on insert of Issue", conflict), "accepted"},
		"another is there":      {writeAnswer{}, gql("INPUT_ERROR", "conflict on insert of Issue", "Entity Issue with id 8 already exists."), "refused"},
		"another error with it": {writeAnswer{}, gql("FORBIDDEN", "conflict on insert of Issue", conflict), "refused"},
		"bad input":             {writeAnswer{}, gql("INVALID_INPUT", "bad", ""), "refused"},
		"forbidden":             {writeAnswer{}, gql("FORBIDDEN", "no", ""), "refused"},
		"gone":                  {writeAnswer{}, gql("ENTITY_NOT_FOUND", "no", ""), "refused"},
		"no key":                {writeAnswer{}, gql("AUTHENTICATION_ERROR", "no", ""), "again"},
		"locked":                {writeAnswer{}, gql("LOCK_TIMEOUT", "later", ""), "again"},
		"broken":                {writeAnswer{}, gql("INTERNAL_SERVER_ERROR", "oh", ""), "again"},
		"limited":               {writeAnswer{}, &rateLimitedError{time.Now()}, "again"},
		"unknown":               {writeAnswer{}, &coordclient.UnknownError{}, "again"},
		"overwritten":           {writeAnswer{}, &coordclient.UnknownError{Err: errOverwritten}, "refused"},
		"a gateway":             {writeAnswer{}, &graphql.HTTPError{StatusCode: 502}, "again"},
		"a bad request":         {writeAnswer{}, &graphql.HTTPError{StatusCode: 400}, "refused"},
		"unauthorized":          {writeAnswer{}, &graphql.HTTPError{StatusCode: 401}, "again"},
		"no connection":         {writeAnswer{}, errors.New("refused"), "again"},
	} {
		v := judge("7", tt.took, tt.err)
		got := "again"
		if v.accepted {
			got = "accepted"
		} else if v.refused != "" {
			got = "refused"
		}
		if got != tt.want || got == "again" && v.why == "" {
			t.Errorf("%s is %s: %+v", name, got, v)
		}
	}
}

// An input says what an edit says, and null where something is cleared.
func TestInputsOfEdits(t *testing.T) {
	t.Parallel()
	e := &storev1.IssueEdit{Title: "t", DueDate: "2026-11-30", StateId: "s", AddLabelIds: []string{"l"}, RemoveLabelIds: []string{"m"}}
	for name, tt := range map[string]struct {
		change *storev1.LocalChange
		want   string
	}{
		"an update": {
			&storev1.LocalChange{Type: toUpdate, Edit: e, Fields: []string{"title", "due_date", "state_id", "add_label_ids", "remove_label_ids"}},
			`{"addedLabelIds":["l"],"dueDate":"2026-11-30","removedLabelIds":["m"],"stateId":"s","title":"t"}`,
		},
		"a creation": {&storev1.LocalChange{ChangeId: "7", Type: toCreate, Edit: e, Fields: []string{"title", "add_label_ids"}}, `{"id":"7","labelIds":["l"],"title":"t"}`},
		"clearing": {
			&storev1.LocalChange{Type: toUpdate, Edit: &storev1.IssueEdit{}, Fields: []string{"description", "priority", "estimate", "due_date", "assignee_id"}},
			`{"assigneeId":null,"description":"","dueDate":null,"estimate":null,"priority":0}`,
		},
	} {
		if got := mustJSON(t, input(tt.change)); got != tt.want {
			t.Errorf("%s is %s, want %s", name, got, tt.want)
		}
	}
}
