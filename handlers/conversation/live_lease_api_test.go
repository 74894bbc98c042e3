package conversation

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/object"
)

const (
	running   = conversationv1.ToolCallStatus_TOOL_CALL_STATUS_RUNNING
	completed = conversationv1.ToolCallStatus_TOOL_CALL_STATUS_COMPLETED
	orphaned  = conversationv1.ToolCallStatus_TOOL_CALL_STATUS_ORPHANED
)

var fenced = refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}

// change does to c1 what time would.
func (b *bundle) change(t *testing.T, do func(live *storev1.LiveState, now time.Time)) {
	t.Helper()
	if _, err := b.manager.kind.Update(b.AsService(t), c1, func(tx *object.Tx[state]) error {
		do(tx.State().GetLive(), tx.Now())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// fallsSilent lets the lease of c1 end.
func (b *bundle) fallsSilent(t *testing.T) {
	t.Helper()
	b.change(t, func(live *storev1.LiveState, now time.Time) { live.Lease.ExpireTime = timestamppb.New(now) })
}

// A spoken turn with two tool calls and a dropped socket, as a page does it: one connection each, the frames, one call for each
// result, one end. Nothing that the first socket brought is lost, or kept apart.
func TestALiveTurnInFewCalls(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	first := must(c.ConnectLive(t.Context(), &connectReq{RequestId: "r-1", ConversationId: c1, Device: device("phone"), SetupHash: "h"}))(t)
	ingestOne(t, c, 1, textFrame(1, `{"setup":{"model":"m"}}`), textFrame(2, in("Start 7 ")))
	got := ingestOne(t, c, 1, textFrame(3, in("and 8.")), textFrame(4, `{"toolCall":{"functionCalls":[`+
		`{"id":"a","name":"run","args":{"id":1234567890123456789}},{"id":"b","name":"run","args":{"id":8}}]}}`), textFrame(5, resumption("h-1")))
	if len(got.GetToolCalls()) != 2 || got.GetToolCalls()[0].GetArgsJson() != `{"id":1234567890123456789}` || got.GetToolCalls()[0].GetArgs() != nil ||
		got.GetToolCalls()[1].GetArgs().GetFields()["id"].GetNumberValue() != 8 || got.GetToolCalls()[1].GetArgsJson() != "" {
		t.Fatalf("the calls are %v", got.GetToolCalls())
	}
	for i, call := range got.GetToolCalls() {
		if call.GetStatus() != running || call.GetClaim().GetFencingToken() == 0 || call.GetClaim().GetHolder() != "phone" || call.GetClaim().GetExpiresIn() == nil {
			t.Errorf("it has no claim: %v", call)
		}
		done := must(c.CompleteToolCall(t.Context(), &completeReq{
			RequestId: fmt.Sprint("c-", i), ConversationId: c1, Seq: call.GetSeq(), FencingToken: call.GetClaim().GetFencingToken(),
			Response: structpb.NewNumberValue(7),
		}))(t)
		want := `{"toolResponse":{"functionResponses":[{"id":"` + call.GetCallId() + `","name":"run","response":{"output":7}}]}}`
		if gemini.JSONText(done.GetSend()) != want || done.GetToolCall().GetStatus() != completed || done.GetToolCall().GetResponse().GetNumberValue() != 7 {
			t.Errorf("completed: %v", done)
		}
		ingestOne(t, c, 1, &livev1.LiveFrame{ClientIndex: 6 + int32(i), Frame: &livev1.LiveFrame_Object{Object: done.GetSend()}})
	}
	spoken := must(c.IngestLive(t.Context(), &ingestReq{ConversationId: c1, FencingToken: 1, PlayedMs: proto.Int32(500), Frames: []*livev1.LiveFrame{
		textFrame(8, `{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"audio/pcm","data":"`+strings.Repeat("A", 64000)+`"}}]}}}`),
		textFrame(9, out("One two three four")), textFrame(10, interrupted),
	}}))(t)
	if m := spoken.GetMessages(); len(m) != 2 || m[1].GetSpoken().GetHeardText() != "One two" || m[1].GetSpoken().GetHeardEstimated() ||
		m[1].GetSpoken().GetPlayedMs() != 500 || m[1].GetStatus() != conversationv1.MessageStatus_MESSAGE_STATUS_INTERRUPTED {
		t.Errorf("spoken over: %v", m)
	}
	second := must(c.ConnectLive(t.Context(), &connectReq{
		RequestId: "r-2", ConversationId: c1, SetupHash: "h",
		Previous: &livev1.Previous{FencingToken: 1, CloseCode: 1006, Frames: []*livev1.LiveFrame{textFrame(10, interrupted), textFrame(11, in("No, wait."))}},
	}))(t)
	if p := second.GetPlan(); second.GetLease().GetFencingToken() != 2 || p.GetHandle() != "h-1" || second.GetConnectionId() == first.GetConnectionId() || len(p.GetToolCalls()) != 0 ||
		!strings.Contains(gemini.JSONText(p.GetSend()), "One two") {
		t.Errorf("resumed: %v", second)
	}
	must(c.DisconnectLive(t.Context(), &disconnectReq{
		RequestId: "r-3", ConversationId: c1, FencingToken: 2, CloseCode: 1000, Frames: []*livev1.LiveFrame{textFrame(1, in(" Stop."))},
	}))(t)
	res := get(t, c)
	if diff := cmp.Diff([]string{"Start 7 and 8.", "One two three four", "No, wait. Stop."}, texts(res.GetMessages())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	fragments := must(c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_FRAGMENT}}))(t).GetRecords()
	if l := res.GetConversation().GetLive(); l.GetCloseCode() != 1000 || len(fragments) != 0 {
		t.Errorf("%v, fragments %v", l, fragments)
	}
}

// The lease is the holder's as long as frames, or calls without frames, come, and the holder that fell silent has it again with the
// next, unless another has connected. A call without frames writes seldom.
func TestASilentConnectionGoesOn(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		meanwhile func(t *testing.T, b *bundle, other client)
		frames    int32
		goesOn    bool
	}{
		"with frames":             {func(*testing.T, *bundle, client) {}, 1, true},
		"without frames":          {func(*testing.T, *bundle, client) {}, 0, true},
		"after its lease":         {func(t *testing.T, b *bundle, _ client) { t.Helper(); b.fallsSilent(t) }, 1, true},
		"after it, without":       {func(t *testing.T, b *bundle, _ client) { t.Helper(); b.fallsSilent(t) }, 0, true},
		"after a take-over":       {func(t *testing.T, _ *bundle, other client) { t.Helper(); openLive(t, other) }, 1, false},
		"after it, without words": {func(t *testing.T, _ *bundle, other client) { t.Helper(); openLive(t, other) }, 0, false},
		"after it was free": {func(t *testing.T, b *bundle, other client) {
			t.Helper()
			b.fallsSilent(t)
			must(other.ConnectLive(t.Context(), &connectReq{ConversationId: c1}))(t)
		}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			c, other := b.client(t, ada), serve(t, b.Bundle).client(t, ada)
			create(t, c)
			token := openLive(t, c)
			tt.meanwhile(t, b, other)
			req := &ingestReq{ConversationId: c1, FencingToken: int32(token)}
			for i := range tt.frames {
				req.Frames = append(req.Frames, textFrame(int64(i)+1, in("Hi")))
			}
			res, err := c.IngestLive(t.Context(), req)
			if !tt.goesOn {
				fenced.check(t, err)
				return
			}
			if left := res.GetLease().GetExpiresIn().AsDuration(); err != nil || left < leaseTime/2 || left > leaseTime || res.GetStoredThrough() != tt.frames {
				t.Fatalf("%v, %v", res, err)
			}
			if again := ingestOne(t, c, token); again.GetVersion() != res.GetVersion() {
				t.Errorf("without frames, and the lease new, it made version %d of %d", again.GetVersion(), res.GetVersion())
			}
			b.change(t, func(live *storev1.LiveState, now time.Time) {
				live.Lease.ExpireTime = timestamppb.New(now.Add(leaseTime / 2))
			})
			if left := ingestOne(t, c, token).GetLease().GetExpiresIn().AsDuration(); left <= leaseTime/2 {
				t.Errorf("it was not renewed: %v", left)
			}
			_, err = other.ConnectLive(t.Context(), &connectReq{ConversationId: c1})
			leaseHeld.check(t, err)
		})
	}
}

// A preview shows what a connection would be told, and changes nothing.
func TestAPreviewTakesNothing(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	ingestOne(t, c, int64(connectAs(t, c, &connectReq{SetupHash: "h"}).GetLease().GetFencingToken()), textFrame(1, in("Hi")), textFrame(2, call("a")), textFrame(3, resumption("h-1")))
	before := get(t, c)
	got := must(c.ConnectLive(t.Context(), &connectReq{ConversationId: c1, SetupHash: "h", TakeOver: true, ValidateOnly: true}))(t)
	if p := got.GetPlan(); p.GetHandle() != "h-1" || got.GetLease() != nil || got.GetConnectionId() != "" || got.GetVersion() != before.GetConversation().GetVersion() ||
		len(p.GetToolCalls()) != 1 || p.GetToolCalls()[0].GetClaim() != nil || p.GetToolCalls()[0].GetStatus() != orphaned {
		t.Errorf("%v", got)
	}
	same(t, "after it", get(t, c), before)
}

// What one connection owes goes to the next: the calls that nobody else has. Those that the same client is executing keep their
// tokens, and so it may complete them; another device waits for them.
func TestOwedToolCalls(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		options   *livev1.LiveOptions
		meanwhile func(t *testing.T, b *bundle, c client)
		previous  bool
		claimed   bool
		kept      bool // its token
	}{
		"the same client goes on":      {previous: true, claimed: true, kept: true},
		"another takes over":           {},
		"another, after the claim":     {meanwhile: func(t *testing.T, b *bundle, _ client) { t.Helper(); b.claimsEnd(t) }, claimed: true},
		"nobody claimed it":            {options: &livev1.LiveOptions{LeaveToolCalls: true}, claimed: true},
		"a worker has it":              {options: &livev1.LiveOptions{LeaveToolCalls: true}, meanwhile: work, previous: true},
		"the client leaves it, either": {options: &livev1.LiveOptions{LeaveToolCalls: true}, previous: true, claimed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			c := b.client(t, ada)
			create(t, c)
			connectAs(t, c, &connectReq{Options: tt.options})
			issued := ingestOne(t, c, 1, textFrame(1, in("Go")), textFrame(2, call("a"))).GetToolCalls()[0]
			if left := tt.options.GetLeaveToolCalls(); (issued.GetClaim() == nil) != left {
				t.Fatalf("issued %v", issued)
			}
			if tt.meanwhile != nil {
				tt.meanwhile(t, b, c)
			}
			req := &connectReq{}
			if tt.previous {
				req.Previous = &livev1.Previous{FencingToken: 1}
			}
			owed := connectAs(t, c, req).GetPlan().GetToolCalls()
			if len(owed) != 1 || owed[0].GetStatus() != orphaned || (owed[0].GetClaim() != nil) != tt.claimed ||
				tt.kept && owed[0].GetClaim().GetFencingToken() != issued.GetClaim().GetFencingToken() ||
				tt.claimed && !tt.kept && owed[0].GetClaim().GetFencingToken() <= issued.GetClaim().GetFencingToken() {
				t.Fatalf("owed %v, issued %v", owed, issued)
			}
			if !tt.claimed {
				return
			}
			// Its result reaches the model as text, which is a message already.
			done := must(c.CompleteToolCall(t.Context(), &completeReq{
				ConversationId: c1, Seq: 1, FencingToken: owed[0].GetClaim().GetFencingToken(), Response: structpb.NewStructValue(outputOf("ok")), IsError: true,
			}))(t)
			const text = `Failure of run, which was called before the connection was lost (a): {"output":"ok"}`
			if got := gemini.JSONText(done.GetSend()); got != `{"clientContent":{"turnComplete":true,"turns":[{"parts":[{"text":`+quote(text)+`}],"role":"user"}]}}` {
				t.Errorf("sends %s", got)
			}
			for range 2 { // a resend changes nothing either
				res := must(c.IngestLive(t.Context(), &ingestReq{ConversationId: c1, FencingToken: 2, Frames: []*livev1.LiveFrame{
					{ClientIndex: 1, Frame: &livev1.LiveFrame_Object{Object: done.GetSend()}},
				}}))(t)
				if len(res.GetMessages()) != 0 {
					t.Errorf("it is a message again: %v", res)
				}
			}
			if got := texts(get(t, c).GetMessages()); !slices.Equal(got, []string{"Go", text}) {
				t.Errorf("messages %q", got)
			}
			if p := connectAs(t, c, &connectReq{}).GetPlan(); len(p.GetToolCalls()) != 0 {
				t.Errorf("still owed: %v", p)
			}
		})
	}
}

func work(t *testing.T, _ *bundle, c client) {
	t.Helper()
	must(c.ClaimToolCall(t.Context(), &claimReq{ConversationId: c1, Seq: 1, Worker: "w", LeaseDuration: durationpb.New(time.Hour)}))(t)
}

func (b *bundle) claimsEnd(t *testing.T) {
	t.Helper()
	b.change(t, func(live *storev1.LiveState, now time.Time) {
		for _, call := range live.GetPendingCalls() {
			call.Claim.LeaseExpireTime = timestamppb.New(now)
		}
	})
}

// Responses reach the model as they are, and are read back as they were written.
func TestResponsesOfToolCalls(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	connectAs(t, c, &connectReq{Options: &livev1.LiveOptions{ToolLease: durationpb.New(time.Hour)}})
	for i, tt := range []struct {
		req  *completeReq
		send string
	}{
		{&completeReq{Response: structpb.NewStringValue("x")}, `"response":{"output":"x"}`},
		{&completeReq{Response: structpb.NewNullValue()}, `"response":{"output":null}`},
		{&completeReq{ResponseJson: `{"a": [1, 2]}`}, `"response":{"a":[1,2]}`},
		{&completeReq{ResponseJson: `{"id": 1234567890123456789}`}, `"response":{"id":"1234567890123456789"}`},
		{&completeReq{ResponseJson: `1`, Scheduling: "WHEN_IDLE"}, `"response":{"output":1},"scheduling":"WHEN_IDLE"`},
		{&completeReq{ResponseJson: `{}`, WillContinue: true}, `"response":{},"willContinue":true`},
	} {
		issued := ingestOne(t, c, 1, textFrame(int64(i)+1, call(fmt.Sprint("call-", i)))).GetToolCalls()[0]
		tt.req.ConversationId, tt.req.Seq, tt.req.FencingToken = c1, issued.GetSeq(), issued.GetClaim().GetFencingToken()
		for range 2 {
			got := must(c.CompleteToolCall(t.Context(), tt.req))(t)
			if send := gemini.JSONText(got.GetSend()); !strings.Contains(send, tt.send) {
				t.Errorf("%v sends %s", tt.req, send)
			}
			if exact := strings.Contains(tt.req.GetResponseJson(), "123"); exact && got.GetToolCall().GetResponseJson() != `{"id":1234567890123456789}` ||
				!exact && got.GetToolCall().GetResponse() == nil || (got.GetToolCall().GetStatus() == completed) == tt.req.GetWillContinue() {
				t.Errorf("%v is %v", tt.req, got.GetToolCall())
			}
		}
	}
	large := ingestOne(t, c, 1, textFrame(100, `{"toolCall":{"functionCalls":[{"id":"large","name":"f","args":{"x":"`+strings.Repeat("x", gemini.MaxObjectBytes)+`"}}]}}`))
	if calls := large.GetToolCalls(); len(calls) != 1 || calls[0].GetArgs() != nil || !strings.Contains(calls[0].GetArgsOmitted(), fmt.Sprint(gemini.MaxObjectBytes)) || large.GetUnknownFrames() != 1 {
		t.Errorf("a call with too large arguments: %v", large)
	}
}

// Every changing call but IngestLive, which the indexes make idempotent, is retried by its request id. ConnectLive is as well; its
// answer is made again, see TestHandlesAreSealedAtRest.
func TestLiveCallsAreRetried(t *testing.T) {
	t.Parallel()
	b := setup(t)
	second := serve(t, b.Bundle)
	const id = "r-1"
	for name, requests := range map[string][2]proto.Message{
		"DisconnectLive": {
			&disconnectReq{ConversationId: c1, FencingToken: 1, CloseCode: 1006, RequestId: id}, &disconnectReq{ConversationId: c1, FencingToken: 1, RequestId: id},
		},
		"ClaimToolCall": {
			&claimReq{ConversationId: c1, Seq: 2, Worker: "w", RequestId: id}, &claimReq{ConversationId: c1, Seq: 2, Worker: "v", RequestId: id},
		},
		"CompleteToolCall": {
			&completeReq{ConversationId: c1, Seq: 1, FencingToken: 1, ResponseJson: "1", RequestId: id}, &completeReq{ConversationId: c1, Seq: 1, FencingToken: 1, ResponseJson: "2", RequestId: id},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := b.tenant(t)
			c := b.client(t, ada)
			create(t, c)
			openLive(t, c)
			ingestOne(t, c, 1, textFrame(1, call("a")+call("b")))
			must(c.ClaimToolCall(t.Context(), &claimReq{ConversationId: c1, Seq: 1, Worker: "w"}))(t)
			post := func(b *bundle, m proto.Message) answered {
				return b.sendTo(t, livev1connect.LiveServiceName, http.MethodPost, name, must(protojson.Marshal(m))(t),
					"Content-Type: application/json", "Authorization: Bearer "+b.token(t, ada))
			}
			first := post(b, requests[0])
			for _, server := range []*bundle{b, {Bundle: b.Bundle, url: second.url}} {
				say(t, c, "between")
				if again := post(server, requests[0]); first.status != 200 || again.status != 200 || again.body != first.body {
					t.Fatalf("a retry gets\n%d %q, the first reply was\n%d %q", again.status, again.body, first.status, first.body)
				}
			}
			if other := post(b, requests[1]); other.status != 409 || !strings.Contains(other.body, "REQUEST_ID_REUSED") {
				t.Errorf("another body gets %d %s", other.status, other.body)
			}
		})
	}
}

// A fork that ends earlier gives the seqs that follow to other messages. What was played is not told of those.
func TestAForkForgetsWhatWasSpoken(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	ingestOne(t, c, openLive(t, c), textFrame(1, in("Hi")), textFrame(2, out("Hello there.")), textFrame(3, turnComplete))
	must(c.ForkConversation(t.Context(), &conversationv1.ForkConversationRequest{
		ConversationId: c1, NewConversationId: "c2", At: &conversationv1.ForkConversationRequest_ThroughSeq{ThroughSeq: 1},
	}))(t)
	must(c.Append(t.Context(), &appendReq{ConversationId: "c2", Messages: said("mine")}))(t)
	token := must(c.ConnectLive(t.Context(), &connectReq{ConversationId: "c2"}))(t).GetLease().GetFencingToken()
	must(c.IngestLive(t.Context(), &ingestReq{ConversationId: "c2", FencingToken: token, PlayedMs: new(int32(0))}))(t)
	got := must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: "c2"}))(t).GetMessages()
	if len(got) != 2 || got[1].GetText() != "mine" || got[1].GetSpoken() != nil || got[1].GetStatus() != conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE {
		t.Errorf("the fork has %v", got)
	}
}
