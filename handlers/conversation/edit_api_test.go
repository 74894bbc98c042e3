package conversation

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

type editReq = conversationv1.EditMessagesRequest

// seqs are the seqs of messages.
func seqs(messages []*conversationv1.Message) []int32 {
	all := make([]int32, len(messages))
	for i, m := range messages {
		all[i] = m.GetSeq()
	}
	return all
}

// answers are messages of the assistant.
func answers(texts ...string) []*conversationv1.Message {
	all := said(texts...)
	for _, m := range all {
		m.Role = conversationv1.Role_ROLE_ASSISTANT
	}
	return all
}

// history checks the texts and the seqs of c1, as every way to read it tells them.
func history(t *testing.T, b *bundle, c client, texted []string, numbered []int32) {
	t.Helper()
	for name, c := range map[string]client{"warm": c, "cold": serve(t, b.Bundle).client(t, ada)} {
		got := get(t, c)
		if !slices.Equal(texts(got.GetMessages()), texted) || !slices.Equal(seqs(got.GetMessages()), numbered) || int(got.GetConversation().GetMessageCount()) != len(texted) {
			t.Errorf("%s: %d messages: %q %v; want %q %v", name, got.GetConversation().GetMessageCount(), texts(got.GetMessages()), seqs(got.GetMessages()), texted, numbered)
		}
		listed := must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: c1, PageSize: 200}))(t).GetMessages()
		if !slices.Equal(seqs(listed), numbered) {
			t.Errorf("%s: listed %v, want %v", name, seqs(listed), numbered)
		}
		var tokens int64
		for _, m := range listed {
			tokens += int64(m.GetTokenCount())
		}
		if tokens != got.GetConversation().GetTokenCount() {
			t.Errorf("%s: %d tokens, want %d", name, got.GetConversation().GetTokenCount(), tokens)
		}
		window := must(c.GetContextWindow(t.Context(), &windowReq{ConversationId: c1}))(t)
		var inWindow []int32
		for _, i := range window.GetItems() {
			inWindow = append(inWindow, i.GetMessage().GetSeq())
		}
		if !slices.Equal(inWindow, numbered) {
			t.Errorf("%s: the window has %v, want %v", name, inWindow, numbered)
		}
	}
}

// An answer that is generated again takes the old one's place in one version, and watchers see no state in between.
func TestRegeneratingAnAnswerIsOneVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	must(c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: append(said("Why?"), answers("Because", "and so on")...)}))(t)
	w := watchAfter(t, c, 0)
	w.next(t)
	req := &editReq{ConversationId: c1, TruncateAfterSeq: new(int32(1)), Messages: answers("Since"), ReturnRemoved: true, RequestId: "r-1"}
	res := must(c.EditMessages(t.Context(), req))(t)
	if !slices.Equal(res.GetRemovedSeqs(), []int32{2, 3}) || !slices.Equal(texts(res.GetRemoved()), []string{"Because", "and so on"}) ||
		!slices.Equal(seqs(res.GetMessages()), []int32{4}) || res.GetVersion() != 3 {
		t.Errorf("the reply is %v", res)
	}
	same(t, "the same again", must(c.EditMessages(t.Context(), req))(t), res)
	if got := w.next(t); got.GetVersion() != 3 || !slices.Equal(got.GetRemovedSeqs(), []int32{2, 3}) || !slices.Equal(texts(got.GetMessages()), []string{"Since"}) {
		t.Errorf("a watcher sees %v", got)
	}
	history(t, b, c, []string{"Why?", "Since"}, []int32{1, 4})

	// Popping the last item, clearing, and what comes then.
	popped := must(c.EditMessages(t.Context(), &editReq{ConversationId: c1, DeleteSeqs: []int32{4, 99}, ReturnRemoved: true, IfVersion: at(3)}))(t)
	if !slices.Equal(popped.GetRemovedSeqs(), []int32{4}) || !slices.Equal(texts(popped.GetRemoved()), []string{"Since"}) {
		t.Errorf("popped %v", popped)
	}
	if nothing := must(c.EditMessages(t.Context(), &editReq{ConversationId: c1, DeleteSeqs: []int32{4}}))(t); nothing.GetVersion() != 4 || len(nothing.GetRemovedSeqs()) != 0 {
		t.Errorf("popped again: %v", nothing)
	}
	must(c.EditMessages(t.Context(), &editReq{ConversationId: c1, TruncateAfterSeq: new(int32(0))}))(t)
	history(t, b, c, nil, nil)
	say(t, c, "anew")
	history(t, b, c, []string{"anew"}, []int32{5})
}

// All parts of an edit happen, in their order, or none does.
func TestAnEditIsAllOrNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	first := said("a", "b", "c", "d", "e")
	for i, m := range first {
		m.ClientMessageId = fmt.Sprint("m", i+1)
	}
	must(c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: first}))(t)
	before := get(t, c)
	for want, bad := range map[string]*editReq{
		"NOT_FOUND":     {Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 5, Text: "x"}}}},
		"FIELD_INVALID": {Messages: []*conversationv1.Message{{Text: "by no one"}}},
		"SIZE_EXCEEDED": {Messages: answers(strings.Repeat("\x01", 200<<10))},
		"LIMIT_REACHED": {Messages: func() (all []*conversationv1.Message) {
			for range maxPinned + 1 {
				all = append(all, &conversationv1.Message{Role: conversationv1.Role_ROLE_SYSTEM, Text: "x"})
			}
			return all
		}()},
	} {
		bad.ConversationId, bad.TruncateAfterSeq, bad.DeleteSeqs = c1, new(int32(4)), []int32{1}
		_, err := c.EditMessages(t.Context(), bad)
		refusal{code: connect.CodeOf(err), reason: want}.check(t, err)
		same(t, want, get(t, c), before)
	}
	res := must(c.EditMessages(t.Context(), &editReq{
		ConversationId: c1, TruncateAfterSeq: new(int32(4)), DeleteSeqs: []int32{2},
		Updates:  []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Text: "A"}}, {Message: &conversationv1.Message{Seq: 3, Text: "C"}}},
		Messages: []*conversationv1.Message{{Role: conversationv1.Role_ROLE_USER, Text: "E", ClientMessageId: "m5"}, {Role: conversationv1.Role_ROLE_USER, Text: "d again", ClientMessageId: "m4"}},
	}))(t)
	if res.GetVersion() != 3 || !slices.Equal(seqs(res.GetMessages()), []int32{1, 3, 6, 4}) || !slices.Equal(res.GetDuplicateSeqs(), []int32{4}) {
		t.Errorf("the reply is %v", res)
	}
	history(t, b, c, []string{"A", "C", "d", "E"}, []int32{1, 3, 4, 6})
	// A client's id is free once its message is gone.
	found := must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: c1, ClientMessageIds: []string{"m5", "m2", "m4", "never"}}))(t)
	if !slices.Equal(seqs(found.GetMessages()), []int32{4, 6}) || found.GetVersion() != 3 || found.GetNextPageToken() != "" {
		t.Errorf("by the client's ids: %v", found)
	}
}

// A summary that tells of removed messages is gone with them, and so is the right to make one.
func TestATruncationDropsSummariesOfWhatItRemoves(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	summarise := func(text string) int32 {
		long(t, c, 4)
		p := must(c.ProposeCompaction(t.Context(), &proposeReq{ConversationId: c1, KeepTokens: 1}))(t)
		must(c.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: p.GetLease().GetFencingToken(), Text: text}))(t)
		return p.GetToSeq()
	}
	first, second := summarise("first"), summarise("second")
	long(t, c, 2)
	open := must(c.ProposeCompaction(t.Context(), &proposeReq{ConversationId: c1, KeepTokens: 1, LeaseDuration: durationpb.New(time.Hour)}))(t)
	if open.GetLease().GetExpiresIn().AsDuration() != time.Hour || open.GetPrevious().GetText() != "second" {
		t.Errorf("proposed %v", open)
	}
	listed := func() (texts []string) {
		for _, r := range must(c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_SUMMARY}}))(t).GetRecords() {
			texts = append(texts, r.GetSummary().GetText())
		}
		return texts
	}
	for _, step := range []struct {
		after int32
		want  []string
	}{{second, []string{"first", "second"}}, {second - 1, []string{"first"}}, {first, []string{"first"}}, {first - 1, nil}} {
		must(c.EditMessages(t.Context(), &editReq{ConversationId: c1, TruncateAfterSeq: &step.after}))(t)
		last := ""
		if len(step.want) > 0 {
			last = step.want[len(step.want)-1]
		}
		if got := get(t, c).GetConversation().GetSummary().GetText(); got != last || !slices.Equal(listed(), step.want) {
			t.Errorf("after %d the summary is %q, of %q; want %q", step.after, got, listed(), step.want)
		}
	}
	_, err := c.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: open.GetLease().GetFencingToken(), Text: "of what is gone"})
	refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
}

func TestAHiddenMessageIsInNoContext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	messages := said("shown", "hidden", "pinned and hidden", "shown too")
	messages[1].Hidden, messages[2].Hidden, messages[2].Pinned = true, true, true
	must(c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: messages}))(t)
	for format := range conversationv1.ContextFormat_name {
		res := must(c.GetContextWindow(t.Context(), &windowReq{ConversationId: c1, Format: conversationv1.ContextFormat(format)}))(t)
		if text := string(jsonOf(t, res)); strings.Contains(text, "hidden") || strings.Count(text, "shown") != 2 {
			t.Errorf("%s", text)
		}
	}
	if got := get(t, c); len(got.GetMessages()) != 4 {
		t.Errorf("read %v", got)
	}
}

func TestForks(t *testing.T) { //nolint:tparallel // a user has one call of history at once
	t.Parallel()
	b := setup(t)
	c, eve, service := b.client(t, ada), b.client(t, "eve"), b.client(t, nobody)
	must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: c1, Conversation: &conversationv1.Conversation{
		Title: "old", Labels: map[string]string{"a": "1", "b": "2"},
	}}))(t)
	messages := append(said("one"), answers("two", "three")...)
	messages[1].ClientMessageId = "m-2"
	must(c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: messages}))(t)
	must(c.EditMessages(t.Context(), &editReq{ConversationId: c1, DeleteSeqs: []int32{2}, Messages: answers("four", "five")}))(t)
	type forkReq = conversationv1.ForkConversationRequest
	type through = conversationv1.ForkConversationRequest_ThroughSeq
	for name, tt := range map[string]struct {
		req   *forkReq
		texts []string
		next  int32
	}{
		"now":              {&forkReq{}, []string{"one", "three", "four", "five"}, 6},
		"at a version":     {&forkReq{At: &conversationv1.ForkConversationRequest_AtVersion{AtVersion: 2}}, []string{"one", "two", "three"}, 4},
		"through a seq":    {&forkReq{At: &through{ThroughSeq: 4}}, []string{"one", "three", "four"}, 5},
		"through a gap":    {&forkReq{At: &through{ThroughSeq: 2}}, []string{"one"}, 3},
		"through nothing":  {&forkReq{At: &through{}}, nil, 1},
		"through the last": {&forkReq{At: &through{ThroughSeq: 5}}, []string{"one", "three", "four", "five"}, 6},
	} {
		t.Run(name, func(t *testing.T) {
			tt.req.ConversationId, tt.req.RequestId = c1, "f-1"
			tt.req.NewConversationId = "fork-" + strings.ReplaceAll(name, " ", "-")
			tt.req.Conversation = &conversationv1.Conversation{Title: "new", Labels: map[string]string{"a": "", "c": "3"}}
			made := must(c.ForkConversation(t.Context(), tt.req))(t)
			got := made.GetConversation()
			if got.GetTitle() != "new" || fmt.Sprint(got.GetLabels()) != "map[b:2 c:3]" || got.GetOwner() != string(ada) || int(got.GetMessageCount()) != len(tt.texts) || got.GetVersion() != 1 {
				t.Errorf("made %v", got)
			}
			same(t, "the same again", must(c.ForkConversation(t.Context(), tt.req))(t), made)
			id := tt.req.GetNewConversationId()
			read := must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: id, MessageLimit: 50}))(t)
			if !slices.Equal(texts(read.GetMessages()), tt.texts) {
				t.Errorf("it has %q", texts(read.GetMessages()))
			}
			same(t, "the same as was answered", read.GetConversation(), got)
			// It goes on by itself; the ids of messages that it does not have are free.
			more := said("next")
			more[0].ClientMessageId = "m-2"
			next := must(c.Append(t.Context(), &appendReq{ConversationId: id, Messages: more}))(t)
			if slices.Contains(tt.texts, "two") != (len(next.GetDuplicateSeqs()) > 0) {
				t.Errorf("the next: %v", next)
			}
			if len(next.GetDuplicateSeqs()) == 0 && next.GetMessages()[0].GetSeq() != tt.next {
				t.Errorf("the next is %d, want %d", next.GetMessages()[0].GetSeq(), tt.next)
			}
			_, err := c.ForkConversation(t.Context(), &forkReq{ConversationId: c1, NewConversationId: id})
			refusal{code: connect.CodeAlreadyExists, reason: "ALREADY_EXISTS"}.check(t, err)
			_, err = eve.ForkConversation(t.Context(), &forkReq{ConversationId: c1, NewConversationId: "eves-" + id})
			notFound.check(t, err)
		})
	}
	_, err := c.ForkConversation(t.Context(), &forkReq{ConversationId: c1, At: &through{ThroughSeq: 6}})
	invalidField("through_seq", "last message is 5").check(t, err)
	_, err = c.ForkConversation(t.Context(), &forkReq{ConversationId: c1, At: &conversationv1.ForkConversationRequest_AtVersion{AtVersion: 99}})
	invalidField("at_version").check(t, err)
	if got := must(service.ForkConversation(t.Context(), &forkReq{ConversationId: c1}))(t).GetConversation(); got.GetOwner() != string(ada) || got.GetConversationId() == "" {
		t.Errorf("a service's fork is %v", got)
	}
}

// An append makes the conversation in the same version, records a request that changes nothing, and is looked up before its condition.
func TestAppendMakesWhatIsMissing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	ctx := t.Context()
	_, err := c.Append(ctx, &appendReq{ConversationId: c1, Messages: said("x")})
	notFound.check(t, err)
	first := &appendReq{
		ConversationId: c1, CreateIfMissing: true, Conversation: &conversationv1.Conversation{Title: "t"}, Messages: said("x"), RequestId: "op-1", IfVersion: new(int64(0)),
	}
	made := must(c.Append(ctx, first))(t)
	if !made.GetCreated() || made.GetVersion() != 1 {
		t.Errorf("made %v", made)
	}
	same(t, "again", must(c.Append(ctx, first))(t), made)
	_, err = c.Append(ctx, &appendReq{ConversationId: c1, CreateIfMissing: true, Messages: said("x"), IfVersion: new(int64(0))})
	refusal{code: connect.CodeAborted, reason: "VERSION_MISMATCH"}.check(t, err)
	more := must(c.Append(ctx, &appendReq{ConversationId: c1, CreateIfMissing: true, Conversation: &conversationv1.Conversation{Title: "other"}, Messages: said("y")}))(t)
	if more.GetCreated() || get(t, c).GetConversation().GetTitle() != "t" {
		t.Errorf("more: %v", more)
	}
	if nothing := must(c.Append(ctx, &appendReq{ConversationId: c1}))(t); nothing.GetVersion() != 2 {
		t.Errorf("nothing at all is version %d", nothing.GetVersion())
	}
	empty := must(c.Append(ctx, &appendReq{ConversationId: c1, RequestId: "op-2"}))(t)
	same(t, "an empty one again", must(c.Append(ctx, &appendReq{ConversationId: c1, RequestId: "op-2"}))(t), empty)
	_, err = c.Append(ctx, &appendReq{ConversationId: c1, RequestId: "op-2", Messages: said("z")})
	refusal{code: connect.CodeAlreadyExists, reason: "REQUEST_ID_REUSED"}.check(t, err)

	// In a new life the id is new: what was acknowledged is there.
	must(c.DeleteConversation(ctx, &conversationv1.DeleteConversationRequest{ConversationId: c1}))(t)
	if again := must(c.Append(ctx, first))(t); !again.GetCreated() || again.GetVersion() != 5 {
		t.Errorf("in a new life: %v", again)
	}
	if got := texts(get(t, c).GetMessages()); !slices.Equal(got, []string{"x"}) {
		t.Errorf("in its new life it has %q", got)
	}
}

// A turn is one version: messages, intents, steps and the voice state.
func TestATurnIsOneVersion(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	w := watchAfter(t, c, 0)
	w.next(t)
	turn := &appendReq{
		ConversationId: c1, Messages: said("Start a run"), Intents: []*conversationv1.Intent{{Name: "start_run", MessageSeq: 1}},
		FlowSteps: []*conversationv1.FlowStep{{Flow: "f", Step: "a"}, {Flow: "f", Step: "b"}}, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus_VOICE_STATUS_LISTENING},
	}
	res := must(c.Append(t.Context(), turn))(t)
	got := w.next(t)
	if res.GetVersion() != 2 || got.GetVersion() != 2 || len(got.GetMessages()) != 1 || len(got.GetIntents()) != 1 || len(got.GetFlowSteps()) != 2 {
		t.Errorf("version %d, a watcher sees %v", res.GetVersion(), got)
	}
	if s := got.GetConversation(); s.GetFlow().GetStep() != "b" || s.GetIntent().GetMessageSeq() != 1 || s.GetVoice().GetStatus() != conversationv1.VoiceStatus_VOICE_STATUS_LISTENING {
		t.Errorf("now it is %v", s)
	}
	// An illegal move of the voice takes the rest with it.
	turn.Voice = &conversationv1.VoiceState{Status: conversationv1.VoiceStatus_VOICE_STATUS_RESPONDING}
	_, err := c.Append(t.Context(), turn)
	refusal{code: connect.CodeFailedPrecondition, reason: "ILLEGAL_TRANSITION"}.check(t, err)
	if after := get(t, c).GetConversation(); after.GetVersion() != 2 || after.GetMessageCount() != 1 {
		t.Errorf("after the refusal: %v", after)
	}
}

func TestKeptForever(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	keep := &conversationv1.Conversation{KeepForever: true, Metadata: structOf(t, map[string]any{"a": 1.0, "b": map[string]any{"c": "d"}})}
	made := must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: c1, Conversation: keep}))(t).GetConversation()
	if made.GetExpireTime() != nil || !made.GetKeepForever() {
		t.Errorf("made %v", made)
	}
	updated := must(c.UpdateConversation(t.Context(), &conversationv1.UpdateConversationRequest{ConversationId: c1, Conversation: &conversationv1.Conversation{
		Metadata: structOf(t, map[string]any{"a": nil, "b": map[string]any{"e": "f"}}),
	}}))(t).GetConversation()
	if got := gemini.JSONText(updated.GetMetadata()); got != `{"b":{"c":"d","e":"f"}}` || updated.GetExpireTime() != nil {
		t.Errorf("the metadata is %s: %v", got, updated)
	}
}

func TestListByActiveSince(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	if _, err := b.sql(t).Exec(t.Context(), "UPDATE holdfast.objects SET activity_time = activity_time - interval '1 hour', update_time = update_time - interval '1 hour' WHERE tenant_id = $1", string(b.Tenant)); err != nil {
		t.Fatal(err)
	}
	c = serve(t, b.Bundle).client(t, ada)
	made := must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "c2"}))(t).GetConversation()
	now := made.GetUpdateTime().AsTime()
	for since, want := range map[time.Duration]string{-2 * time.Hour: "c2 c1", -30 * time.Minute: "c2", 0: "c2", time.Microsecond: ""} {
		var ids []string
		req := &conversationv1.ListConversationsRequest{PageSize: 1, Filter: &conversationv1.ConversationFilter{ActiveSince: timestamppb.New(now.Add(since))}}
		for {
			page := must(c.ListConversations(t.Context(), req))(t)
			for _, found := range page.GetConversations() {
				ids = append(ids, found.GetConversationId())
			}
			if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("since %v: %q, want %q", since, got, want)
		}
	}
}

// What frameworks send and no map of strings holds.
func TestAMessageOfAFrameworkComesBackAsItWas(t *testing.T) {
	t.Parallel()
	b := setup(t)
	create(t, b.client(t, ada))
	headers := []string{"Content-Type: application/json", "Authorization: Bearer " + b.token(t, ada)}
	id := strings.Repeat("ü/ ", 100)
	body := `{"conversationId":"c1","messages":[{"role":"ROLE_ASSISTANT","clientMessageId":"` + id + `","metadata":{"usage":{"total":[1,null,"` + strings.Repeat("x", 2048) + `"]}},"parts":[` +
		strings.Repeat(`{"text":"step"},`, 255) + `{"toolResult":{"callId":"c","response":"sunny"}}]}]}`
	if got := b.send(t, http.MethodPost, "Append", []byte(body), headers...); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	read := b.send(t, http.MethodPost, "ListMessages", []byte(`{"conversationId":"c1","clientMessageIds":["`+id+`"]}`), headers...)
	for _, part := range []string{id, `"response":"sunny"`, `"total":[1,null,"x`} {
		if !strings.Contains(read.body, part) {
			t.Errorf("%.40q is not in %.300s", part, read.body)
		}
	}
	// What would be rounded is refused, and comes as text.
	if got := b.send(t, http.MethodPost, "Append", []byte(`{"conversationId":"c1","messages":[{"role":"ROLE_USER","parts":[{"json":{"id":9007199254740993}}]}]}`), headers...); got.status != 400 || !strings.Contains(got.body, "NUMBER_INEXACT") {
		t.Errorf("%d %s", got.status, got.body)
	}
}
