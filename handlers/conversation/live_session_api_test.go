package conversation

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/object"
	"holdfast/seal"
)

type (
	openReq    = conversationv1.OpenLiveRequest
	planReq    = conversationv1.GetResumePlanRequest
	failedReq  = conversationv1.ReportResumeFailedRequest
	claimReq   = conversationv1.ClaimToolCallRequest
	windowReq  = conversationv1.GetContextWindowRequest
	proposeReq = conversationv1.ProposeCompactionRequest
	commitReq  = conversationv1.CommitCompactionRequest
)

func TestEpochsThroughTheAPI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	laptop, phone := b.client(t, ada), serve(t, b.Bundle).client(t, ada)
	create(t, laptop)
	if got := must(laptop.OpenLive(t.Context(), &openReq{ConversationId: c1, Device: "laptop", SetupHash: "a"}))(t); got.GetEpoch() != 1 || got.GetLive().GetDevice() != "laptop" {
		t.Fatalf("%v", got)
	}
	ingestOne(t, laptop, 1, textFrame(1, in("Set it ")), textFrame(2, resumption("secret-handle")), textFrame(3, in("to done")))
	w := watchAfter(t, laptop, 0)
	w.next(t)
	if got := must(phone.OpenLive(t.Context(), &openReq{ConversationId: c1, Device: "phone", SetupHash: "a"}))(t); got.GetEpoch() != 2 {
		t.Fatalf("%v", got)
	}
	if got := w.next(t).GetConversation().GetLive(); got.GetLease().GetFencingToken() != 2 || got.GetDevice().GetName() != "phone" {
		t.Errorf("the laptop sees %v", got)
	}
	got := must(phone.GetResumePlan(t.Context(), &planReq{ConversationId: c1, SetupHash: "a"}))(t)
	if got.GetAction() != conversationv1.ResumeAction_RESUME_ACTION_RESUME || got.GetHandle() != "secret-handle" || got.GetOpenUtterance().GetText() != "Set it to done" || got.GetHandleAfterSeq() != 1 {
		t.Errorf("the phone's plan: %v", got)
	}
	if other := must(phone.GetResumePlan(t.Context(), &planReq{ConversationId: c1, SetupHash: "b"}))(t); other.GetAction() != conversationv1.ResumeAction_RESUME_ACTION_START_FRESH || other.GetHandle() != "" || other.GetSeed() == nil {
		t.Errorf("the plan of another setup: %v", other)
	}

	fenced := refusal{code: connect.CodeFailedPrecondition, reason: "FENCED", says: []string{"epoch 2"}}
	unknown := refusal{code: connect.CodeFailedPrecondition, reason: "FENCED", says: []string{"epoch 2"}}
	for epoch, want := range map[int64]refusal{1: fenced, 3: unknown} {
		_, err := laptop.CloseLive(t.Context(), &conversationv1.CloseLiveRequest{ConversationId: c1, Epoch: epoch})
		want.check(t, err)
		_, err = laptop.ReportResumeFailed(t.Context(), &failedReq{ConversationId: c1, Epoch: epoch, HandleId: 1})
		want.check(t, err)
	}
	_, err := phone.ReportResumeFailed(t.Context(), &failedReq{ConversationId: c1, Epoch: 2, HandleId: 2})
	refusal{code: connect.CodeInvalidArgument, field: "handle_id"}.check(t, err)
	for range 2 { // the second changes nothing
		failed := must(phone.ReportResumeFailed(t.Context(), &failedReq{ConversationId: c1, Epoch: 2, HandleId: 1, CloseCode: 1011}))(t)
		if failed.GetResumeFailures() != 1 || failed.GetRetryTime() == nil || failed.GetLive().GetSession() != 2 {
			t.Errorf("%v", failed)
		}
	}
	got = must(phone.GetResumePlan(t.Context(), &planReq{ConversationId: c1, SetupHash: "a", SeedEndsWithUser: true}))(t)
	if got.GetAction() != conversationv1.ResumeAction_RESUME_ACTION_START_FRESH || got.GetHandle() != "" || !strings.Contains(jsonText(got.GetSeed()), "Set it to done") {
		t.Errorf("after it failed: %v", got)
	}
	for range 2 {
		closed := must(phone.CloseLive(t.Context(), &conversationv1.CloseLiveRequest{ConversationId: c1, Epoch: 2, CloseCode: 1006}))(t)
		if closed.GetLive().GetCloseCode() != 1006 || closed.GetLive().GetCloseTime() == nil || closed.GetMetadata().GetVersion() != 6 {
			t.Errorf("%v", closed)
		}
	}
}

// Handles are bearer secrets: no table has one in clear.
func TestHandlesAreSealedAtRest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	must(c.OpenLive(t.Context(), &openReq{ConversationId: c1, KeepFramesFor: durationpb.New(time.Hour), RequestId: "r-1"}))(t)
	req := &ingestReq{ConversationId: c1, Epoch: 1, RequestId: "r-2", Frames: []*conversationv1.LiveFrame{
		textFrame(1, resumption("secret-handle")), textFrame(2, `{"setup":{"sessionResumption":{"handle":"secret-handle"}}}`),
	}}
	must(c.IngestLive(t.Context(), req))(t)
	if got := must(c.GetResumePlan(t.Context(), &planReq{ConversationId: c1}))(t).GetHandle(); got != "secret-handle" {
		t.Errorf("the handle is %q", got)
	}
	for _, table := range []string{"objects", "entries", "events"} {
		var n, rows int
		err := b.sql(t).QueryRow(t.Context(), "SELECT count(*) FILTER (WHERE r::text LIKE '%secret-handle%' OR r::text LIKE '%"+fmt.Sprintf("%x", "secret-handle")+"%'), count(*) FROM holdfast."+table+" r WHERE tenant_id = $1", string(b.Tenant)).Scan(&n, &rows)
		if err != nil || n != 0 || rows == 0 {
			t.Errorf("%d of %d rows of %s have it, %v", n, rows, table, err)
		}
	}
	got := must(c.ListLiveFrames(t.Context(), &conversationv1.ListLiveFramesRequest{ConversationId: c1}))(t).GetBatches()
	if len(got) != 1 || got[0].GetNumber() != 1 || got[0].GetEpoch() != 1 || len(got[0].GetFrames()) != 2 || !proto.Equal(got[0].GetFrames()[0], req.GetFrames()[0]) {
		t.Errorf("the raw frames are %v", got)
	}
}

// What one key sealed opens after a new one was put before it, and no longer where the old key is gone.
func TestSealKeysRotate(t *testing.T) {
	t.Parallel()
	oldKey, newKey := seal.NewKey(), seal.NewKey()
	served := func(d *dbtest.Bundle, keys ...string) client {
		return serveWith(t, d, must(seal.NewBox(keys...))(t)).client(t, ada)
	}
	d := dbtest.New(t)
	before, rotated, fresh := served(d, oldKey), served(d, newKey, oldKey), served(d, newKey)
	create(t, before)
	must(before.OpenLive(t.Context(), &openReq{ConversationId: c1, SetupHash: "a", KeepFramesFor: durationpb.New(time.Hour)}))(t)
	opens := func(who string, c client, handle string, batches int) {
		t.Helper()
		plan := must(c.GetResumePlan(t.Context(), &planReq{ConversationId: c1, SetupHash: "a"}))(t)
		if plan.GetHandle() != handle || (plan.GetAction() == conversationv1.ResumeAction_RESUME_ACTION_RESUME) != (handle != "") {
			t.Errorf("%s is told to %s with %q", who, plan.GetAction(), plan.GetHandle())
		}
		if got := must(c.ListLiveFrames(t.Context(), &conversationv1.ListLiveFramesRequest{ConversationId: c1}))(t).GetBatches(); len(got) != batches {
			t.Errorf("%s reads %d batches of raw frames", who, len(got))
		}
	}
	ingestOne(t, before, 1, textFrame(1, in("Hi")), textFrame(2, resumption("handle-1")))
	opens("the old key", before, "handle-1", 1)
	opens("both keys", rotated, "handle-1", 1)
	opens("the new key", fresh, "", 0)
	ingestOne(t, rotated, 1, textFrame(3, resumption("handle-2")))
	opens("both keys", rotated, "handle-2", 2)
	opens("the new key", fresh, "handle-2", 1)
	opens("the old key", before, "", 1)
}

// The timer removes raw frames when their time is over, and comes again for those whose time is not.
func TestRawFramesExpire(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *object.Config) { c.Timers = true })
	c := b.client(t, ada)
	create(t, c)
	must(c.OpenLive(t.Context(), &openReq{ConversationId: c1, KeepFramesFor: durationpb.New(time.Hour)}))(t)
	rt := object.NewRuntime(b.DB, object.Config{})
	t.Cleanup(func() { _ = rt.Close(context.WithoutCancel(t.Context())) })
	kind := Register(rt)
	keepFor := func(d time.Duration) { // the API has no time as short
		t.Helper()
		if _, err := kind.Update(b.As(t, ada), c1, func(tx *object.Tx[state]) error {
			tx.State().Live.KeepFrames = durationpb.New(d)
			tx.Emit("test")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	keepFor(time.Millisecond)
	ingestOne(t, c, 1, textFrame(1, in("One ")))
	keepFor(time.Hour)
	ingestOne(t, c, 1, textFrame(2, in("two")))
	owner := b.sql(t)
	const kept = "SELECT coalesce(array_agg(key ORDER BY key), '{}') FROM holdfast.entries WHERE tenant_id = $1 AND collection = $2"
	for w := watchAfter(t, c, 0); ; w.next(t) { // the timer's change wakes it
		var keys []string
		if err := owner.QueryRow(t.Context(), kept, string(b.Tenant), inKeptFrames).Scan(&keys); err != nil {
			t.Fatal(err)
		}
		if slices.Equal(keys, []string{object.SeqKey(2)}) {
			break
		}
		if len(keys) != 2 {
			t.Fatalf("kept %v", keys)
		}
	}
	var due bool
	if err := owner.QueryRow(t.Context(), "SELECT due_time > clock_timestamp() FROM holdfast.timers WHERE tenant_id = $1 AND name = $2",
		string(b.Tenant), framesTimer).Scan(&due); err != nil || !due {
		t.Errorf("the timer of the next is to come: %t, %v", due, err)
	}
}

func TestRawFramesAreBounded(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	must(c.OpenLive(t.Context(), &openReq{ConversationId: c1, KeepFramesFor: durationpb.New(time.Hour)}))(t)
	const over = 5
	for i := range int64(maxKept + over) {
		ingestOne(t, c, 1, textFrame(i+1, in("x")))
	}
	var numbers []int64
	for after, more := int64(0), true; more; {
		page := must(c.ListLiveFrames(t.Context(), &conversationv1.ListLiveFramesRequest{ConversationId: c1, AfterNumber: after}))(t)
		for _, b := range page.GetBatches() {
			numbers = append(numbers, b.GetNumber())
			after = b.GetNumber()
		}
		more = page.GetHasMore()
	}
	if len(numbers) != maxKept || numbers[0] != over+1 || numbers[len(numbers)-1] != maxKept+over {
		t.Errorf("%d batches are kept: %v", len(numbers), numbers)
	}
	// Another connection does not keep them.
	must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t)
	ingestOne(t, c, 2, textFrame(1, in("x")))
	if got := must(c.ListLiveFrames(t.Context(), &conversationv1.ListLiveFramesRequest{ConversationId: c1, AfterNumber: maxKept + over}))(t).GetBatches(); len(got) != 0 {
		t.Errorf("kept %v", got)
	}
}

// Words that may still change reach watchers before they are stored; what the answer says is stored, is.
func TestPartialsAreShownThenStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t)
	w := watchAfter(t, c, 0)
	w.next(t)
	// A slow machine stores some of them at once.
	var index int64
	for early := false; !early; {
		index++
		if index > 500 {
			t.Fatal("each was stored at once")
		}
		res := ingestOne(t, c, 1, textFrame(index, interim(fmt.Sprint("word ", index))))
		early = res.GetLastClientIndex() < index
		if res.GetReceivedClientIndex() != index || res.GetVoice().GetLastTranscription() != fmt.Sprint("word ", index) {
			t.Fatalf("%d: %v", index, res)
		}
		if stored := int64(get(t, c).GetConversation().GetLive().GetStoredThrough()); stored < res.GetLastClientIndex() {
			t.Fatalf("%d was acknowledged, %d is stored", res.GetLastClientIndex(), stored)
		}
	}
	signalled, stored := false, false
	for !signalled || !stored {
		got := w.next(t)
		if s := got.GetSignal(); s.GetClientIndex() == index {
			signalled = true
			if s.GetVoice().GetLastTranscription() != fmt.Sprint("word ", index) || s.GetVoice().GetStatus() != conversationv1.VoiceStatus(voiceListening) || s.GetFromConnection() != 1 || got.GetConversation() != nil {
				t.Errorf("the signal is %v", got)
			}
		}
		stored = int64(got.GetConversation().GetLive().GetStoredThrough()) == index
		if stored && !signalled {
			t.Error("it was stored before it was shown")
			return
		}
	}
	same(t, "the voice turn that was stored", get(t, c).GetConversation().GetVoice(), &conversationv1.VoiceState{
		Status: conversationv1.VoiceStatus(voiceListening), LastTranscription: fmt.Sprint("word ", index), ChangeTime: get(t, c).GetConversation().GetVoice().GetChangeTime(),
	})
}

// What waits is folded before what comes after it, whether or not the client sends it again.
func TestPartialsComeAlong(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprint("sent again ", again), func(t *testing.T) {
			t.Parallel()
			c := setup(t).client(t, ada)
			create(t, c)
			must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t)
			ingestOne(t, c, 1, textFrame(1, in("One")+out("Yes")))
			ingestOne(t, c, 1, textFrame(2, activityStart))
			frames := []*conversationv1.LiveFrame{textFrame(2, activityStart), textFrame(3, in("Two"))}
			if !again {
				frames = frames[1:]
			}
			res := ingestOne(t, c, 1, frames...)
			if res.GetLastClientIndex() != 3 {
				t.Errorf("stored %v", res)
			}
			if diff := cmp.Diff([]string{"One", "Yes", "Two"}, texts(get(t, c).GetMessages())); diff != "" {
				t.Errorf("the start of speech was lost (-want +got):\n%s", diff)
			}
		})
	}
}

// Frames that wait are their sender's: another user's call on the conversation touches none of them.
func TestAStrangerDropsNoFramesThatWait(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t)
	strangers := []client{b.client(t, "eve"), b.tenant(t).client(t, ada)}
	var index int64
	for early := 0; early < 3; {
		index++
		if index > 500 {
			t.Fatal("each was stored at once")
		}
		if ingestOne(t, c, 1, textFrame(index, interim(fmt.Sprint("word ", index)))).GetLastClientIndex() == index {
			continue
		}
		early++
		for _, stranger := range strangers {
			for _, text := range []string{in("mine"), interim("mine")} {
				_, err := stranger.IngestLive(t.Context(), &ingestReq{ConversationId: c1, Epoch: 1, Frames: []*conversationv1.LiveFrame{textFrame(index+1, text)}})
				notFound.check(t, err)
			}
		}
		w := watchAfter(t, c, 0)
		for stored := false; !stored; {
			stored = int64(w.next(t).GetConversation().GetLive().GetStoredThrough()) == index
		}
		w.stream.Close()
	}
}

func TestVoiceBecomesIdleByItself(t *testing.T) {
	t.Parallel()
	c := setup(t, func(c *object.Config) { c.Timers = true }).client(t, ada)
	create(t, c)
	must(c.OpenLive(t.Context(), &openReq{ConversationId: c1, Silence: durationpb.New(time.Second)}))(t)
	w := watchAfter(t, c, 0)
	ingestOne(t, c, 1, textFrame(1, in("Hi")))
	listened := false
	for {
		got := w.next(t)
		status := storev1.VoiceStatus(got.GetConversation().GetVoice().GetStatus())
		listened = listened || status == voiceListening
		if listened && status == voiceIdle {
			return
		}
	}
}

// A batch of ten frames is one version and one transaction that writes: triggers note which transactions do.
func TestTenFramesAreOneCommit(t *testing.T) {
	t.Parallel()
	b := serve(t, dbtest.Own(t))
	c := b.client(t, ada)
	create(t, c)
	owner := b.sql(t)
	_, err := owner.Exec(t.Context(), `
		CREATE TABLE public.writers (xid xid8, tab text);
		CREATE FUNCTION public.note_writer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
			BEGIN INSERT INTO public.writers VALUES (pg_current_xact_id(), TG_TABLE_NAME); RETURN NULL; END $$;
		DO $$ DECLARE tab text; BEGIN
			FOREACH tab IN ARRAY ARRAY['objects', 'entries', 'events', 'terms', 'timers'] LOOP
				EXECUTE format('CREATE TRIGGER note_writer AFTER INSERT OR UPDATE OR DELETE ON holdfast.%I
					FOR EACH ROW EXECUTE FUNCTION public.note_writer()', tab);
			END LOOP; END $$`)
	if err != nil {
		t.Fatal(err)
	}
	frames := []string{activityStart, in("Can "), in("you?"), activityEnd, audio, out("Yes, "), out("I can."), generated, turnIdle + usage(1, 2), resumption("h")}
	batch := make([]*conversationv1.LiveFrame, len(frames))
	for i, f := range frames {
		batch[i] = textFrame(int64(i)+1, f)
	}
	if got := ingestOne(t, c, 1, batch...); got.GetMetadata().GetVersion() != 2 || len(got.GetMessages()) != 2 {
		t.Errorf("%v", got)
	}
	var commits, entries int
	if err := owner.QueryRow(t.Context(), "SELECT count(DISTINCT xid), count(*) FILTER (WHERE tab = 'entries') FROM public.writers").
		Scan(&commits, &entries); err != nil {
		t.Fatal(err)
	}
	if commits != 1 || entries < 2 {
		t.Errorf("%d transactions wrote %d entries", commits, entries)
	}
	ingestOne(t, c, 1, batch...) // again: nothing is written
	if err := owner.QueryRow(t.Context(), "SELECT count(DISTINCT xid) FROM public.writers").Scan(&commits); err != nil || commits != 1 {
		t.Errorf("with the resend, %d transactions wrote, %v", commits, err)
	}
}

// A snapshot has the tool calls that wait, and the ledger has them all.
func TestToolCallsThroughTheAPI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, other := b.client(t, ada), serve(t, b.Bundle).client(t, ada)
	create(t, c)
	must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t)
	ingestOne(t, c, 1, textFrame(1, call("a")+call("b")), textFrame(2, answer("a")))
	reset := watchAfter(t, other, 0).next(t)
	if got := reset.GetToolCalls(); !reset.GetReset_() || len(got) != 1 || got[0].GetCallId() != "b" || got[0].GetStatus() != presentCallStatus(callPending) {
		t.Errorf("a snapshot has %v", got)
	}
	// Of many workers on two servers one gets it.
	const workers = 16
	claimed := make([]*conversationv1.ClaimToolCallResponse, workers)
	won := -1
	for i, err := range together(workers, func(i int) (err error) {
		claimed[i], err = []client{c, other}[i%2].ClaimToolCall(t.Context(), &claimReq{ConversationId: c1, Seq: 2, Worker: fmt.Sprint("w", i)})
		return err
	}) {
		if err == nil {
			if won >= 0 {
				t.Errorf("%d and %d have it", won, i)
			}
			won = i
			continue
		}
		refusal{code: connect.CodeFailedPrecondition, reason: "LEASE_HELD"}.check(t, err)
		if detail[*errdetails.ErrorInfo](t, err).GetMetadata()["expire_time"] == "" {
			t.Errorf("it does not say until when: %v", err)
		}
	}
	if won < 0 {
		t.Fatal("nobody has it")
	}
	complete := func(token int64) (*conversationv1.CompleteToolCallResponse, error) {
		return c.CompleteToolCall(t.Context(), &conversationv1.CompleteToolCallRequest{ConversationId: c1, Seq: 2, FencingToken: token, Response: outputOf("ok")})
	}
	_, err := complete(99)
	refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
	token := claimed[won].GetToolCall().GetClaim().GetFencingToken()
	if got := must(complete(token))(t); !got.GetDeliver() || got.GetToolCall().GetStatus() != callCompleted {
		t.Errorf("%v", got)
	}
	if got := must(complete(token))(t); !got.GetDeliver() || jsonText(got.GetToolCall().GetResponse()) != jsonText(outputOf("ok")) {
		t.Errorf("the same again: %v", got)
	}
	_, err = c.ClaimToolCall(t.Context(), &claimReq{ConversationId: c1, Seq: 2, Worker: "w"})
	refusal{code: connect.CodeFailedPrecondition, reason: "ILLEGAL_TRANSITION", says: []string{"completed"}}.check(t, err)
	_, err = c.ClaimToolCall(t.Context(), &claimReq{ConversationId: c1, Seq: 3, Worker: "w"})
	refusal{code: connect.CodeNotFound}.check(t, err)
	large := &conversationv1.CompleteToolCallRequest{ConversationId: c1, Seq: 2, FencingToken: 1, Response: outputOf(strings.Repeat("x", maxObjectBytes))}
	_, err = c.CompleteToolCall(t.Context(), large)
	refusal{code: connect.CodeInvalidArgument, field: "response"}.check(t, err)

	// The connection dies before the response was delivered: it is told as text.
	must(c.CloseLive(t.Context(), &conversationv1.CloseLiveRequest{ConversationId: c1, Epoch: 1}))(t)
	calls := records(must(c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_TOOL_CALL}}))(t), (*conversationv1.Record).GetToolCall)
	if len(calls) != 2 || calls[0].GetDeliveredConnection() != 1 || calls[1].GetResultSeq() != 1 || calls[1].GetDeliveredConnection() != 0 {
		t.Errorf("the ledger: %v", calls)
	}
	page := must(c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, PageSize: 1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_TOOL_CALL}}))(t)
	if len(page.GetRecords()) != 1 || page.GetNextPageToken() == "" {
		t.Errorf("a page: %v", page)
	}
	if got := get(t, c); len(got.GetMessages()) != 1 || got.GetMessages()[0].GetRole() != conversationv1.Role_ROLE_TOOL {
		t.Errorf("told: %v", got)
	}
}

func TestTruncateThroughTheAPI(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	ingestOne(t, c, 1, textFrame(1, in("Go")), textFrame(2, out("One two three")), textFrame(3, interrupted))
	req := &conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 2, Spoken: &conversationv1.Spoken{HeardText: new(string("One two"))}}}}}
	first := must(c.EditMessages(t.Context(), req))(t)
	if m := first.GetMessages()[0]; m.GetSpoken().GetHeardText() != "One two" || m.GetText() != "One two three" {
		t.Errorf("%v", first)
	}
	if again := must(c.EditMessages(t.Context(), req))(t); again.GetVersion() != first.GetVersion() {
		t.Errorf("again it made version %d", again.GetVersion())
	}
	_, err := c.EditMessages(t.Context(), &conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Spoken: &conversationv1.Spoken{PlayedMs: new(int32(0))}}}}})
	refusal{code: connect.CodeInvalidArgument, reason: "FIELD_INVALID", field: "updates[0].message.seq"}.check(t, err)
	_, err = c.EditMessages(t.Context(), &conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 9, Spoken: &conversationv1.Spoken{PlayedMs: new(int32(0))}}}}})
	refusal{code: connect.CodeNotFound}.check(t, err)
}

// long is a conversation of so many turns, of two messages of five tokens each.
func long(t *testing.T, c client, turns int) {
	t.Helper()
	for from := 0; from < turns; from += 50 {
		var batch []*newMessage
		for i := from; i < min(from+50, turns); i++ {
			batch = append(batch, said(fmt.Sprintf("question %011d", i))[0],
				&newMessage{Role: conversationv1.Role_ROLE_ASSISTANT, Text: fmt.Sprintf("answer %013d", i)})
		}
		must(c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: batch}))(t)
	}
}

func TestCompactionThroughTheAPI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, other := b.client(t, ada), serve(t, b.Bundle).client(t, ada)
	create(t, c)
	must(c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: []*newMessage{{Role: conversationv1.Role_ROLE_SYSTEM, Text: "Be brief."}}}))(t)
	long(t, c, 300)
	window := func(budget int64) *conversationv1.GetContextWindowResponse {
		t.Helper()
		return must(c.GetContextWindow(t.Context(), &windowReq{ConversationId: c1, BudgetTokens: int32(budget)}))(t)
	}
	all := window(0)
	if got := all.GetWindow(); got.GetFromSeq() != 1 || got.GetToSeq() != 601 || got.GetDroppedCount() != 0 || got.GetTotalTokens() != 3003 || len(all.GetItems()) != 601 {
		t.Errorf("all of it: %v", got)
	}
	small := window(303) // 30 turns, and what the system says
	want := &conversationv1.ContextWindow{FromSeq: 542, ToSeq: 601, DroppedCount: 540, TotalTokens: 303, CompactFromSeq: 1, CompactToSeq: 569}
	same(t, "a small window", small.GetWindow(), want)
	if first := small.GetItems()[0].GetMessage(); first.GetRole() != conversationv1.Role_ROLE_SYSTEM || len(small.GetItems()) != 61 {
		t.Errorf("%d items, the first is %v", len(small.GetItems()), first)
	}
	same(t, "the same again, from another server",
		must(other.GetContextWindow(t.Context(), &windowReq{ConversationId: c1, BudgetTokens: 303}))(t), small)

	proposed := must(c.ProposeCompaction(t.Context(), &proposeReq{ConversationId: c1, KeepTokens: 151}))(t)
	if proposed.GetFromSeq() != 1 || proposed.GetToSeq() != 569 || proposed.GetPrevious() != nil || proposed.GetTokenCount() != 2843 {
		t.Errorf("proposed %v", proposed)
	}
	_, err := other.ProposeCompaction(t.Context(), &proposeReq{ConversationId: c1, KeepTokens: 151})
	refusal{code: connect.CodeFailedPrecondition, reason: "LEASE_HELD"}.check(t, err)
	// Others write meanwhile.
	say(t, other, "One more thing")
	committed := must(c.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: int64(proposed.GetLease().GetFencingToken()), Text: "They talked."}))(t)
	if got := committed.GetSummary(); got.GetSeq() != 1 || got.GetToSeq() != 569 || got.GetReplacedTokenCount() != 2843 {
		t.Errorf("committed %v", got)
	}
	again := must(other.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: int64(proposed.GetLease().GetFencingToken()), Text: "They talked."}))(t)
	same(t, "committed again", again.GetSummary(), committed.GetSummary())
	_, err = other.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: int64(proposed.GetLease().GetFencingToken()), Text: "Something else."})
	refusal{code: connect.CodeFailedPrecondition, reason: "ILLEGAL_TRANSITION"}.check(t, err)
	_, err = c.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: 99, Text: "x"})
	refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)

	after := window(0)
	got := after.GetWindow()
	if got.GetSummarySeq() != 1 || got.GetFromSeq() != 570 || got.GetToSeq() != 602 || got.GetDroppedCount() != 0 || after.GetItems()[1].GetSummary().GetText() != "They talked." {
		t.Errorf("after it: %v", after)
	}
	recent := must(c.GetContextWindow(t.Context(), &windowReq{ConversationId: c1, RecentOnly: true}))(t)
	if recent.GetWindow().GetFromSeq() != 1 || recent.GetWindow().GetSummarySeq() != 0 {
		t.Errorf("without it: %v", recent.GetWindow())
	}
	// The originals are all there.
	if got := must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: c1, PageSize: 2}))(t).GetMessages(); len(got) != 2 || got[1].GetText() != "question 00000000000" {
		t.Errorf("the first messages are %v", got)
	}
	// The next takes the summary in, or begins anew.
	next := must(c.ProposeCompaction(t.Context(), &proposeReq{ConversationId: c1, KeepTokens: 1, RequestId: "p-1"}))(t)
	if next.GetFromSeq() != 570 || next.GetToSeq() != 601 || next.GetPrevious().GetText() != "They talked." {
		t.Errorf("the next: %v", next)
	}
	anew := must(c.ProposeCompaction(t.Context(), &proposeReq{ConversationId: c1, KeepTokens: 1, FromScratch: true, FencingToken: int64(next.GetLease().GetFencingToken())}))(t)
	if anew.GetFromSeq() != 1 || anew.GetToSeq() != 601 || anew.GetPrevious() != nil || anew.GetLease().GetFencingToken() != next.GetLease().GetFencingToken()+1 {
		t.Errorf("anew: %v", anew)
	}
	_, err = c.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: int64(next.GetLease().GetFencingToken()), Text: "x"})
	refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
	must(c.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: int64(anew.GetLease().GetFencingToken()), Text: "All of it.", TokenCount: proto.Int32(7)}))(t)
	if none := must(c.ProposeCompaction(t.Context(), &proposeReq{ConversationId: c1, KeepTokens: 1}))(t); none.GetLease().GetFencingToken() != 0 || none.GetToSeq() != 0 {
		t.Errorf("there is nothing to summarise: %v", none)
	}
	summaries := records(must(c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_SUMMARY}}))(t), (*conversationv1.Record).GetSummary)
	if len(summaries) != 2 || summaries[1].GetTokenCount() != 7 || get(t, c).GetConversation().GetSummary().GetSeq() != 2 {
		t.Errorf("summaries are %v", summaries)
	}
}

func TestPinsThroughTheAPI(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	pinned := said("Never push to main.")
	pinned[0].Pinned = true
	must(c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: pinned}))(t)
	long(t, c, 100)
	res := must(c.GetContextWindow(t.Context(), &windowReq{ConversationId: c1, BudgetTokens: 256, Format: conversationv1.ContextFormat_CONTEXT_FORMAT_GEMINI_CONTENTS}))(t)
	if text := jsonText(res.GetContents()[0]); !strings.Contains(text, "Never push") || res.GetSystemInstruction() != nil || res.GetWindow().GetTotalTokens() > 256 {
		t.Errorf("it begins with %s: %v", text, res.GetWindow())
	}
	var system []*newMessage
	for range maxPinned {
		system = append(system, &newMessage{Role: conversationv1.Role_ROLE_SYSTEM, Text: "x"})
	}
	_, err := c.Append(t.Context(), &appendReq{ConversationId: c1, Messages: system})
	refusal{code: connect.CodeResourceExhausted, reason: "LIMIT_REACHED", says: []string{"64"}}.check(t, err)
}

func TestLimitsOfLiveSessions(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	before := get(t, c)
	text := func(n int) string { return strings.Repeat("x", n) }
	for _, tt := range []struct {
		req   proto.Message
		field string
	}{
		{&openReq{ConversationId: "a b"}, "conversation_id"},
		{&openReq{ConversationId: c1, Device: text(129)}, "device"},
		{&openReq{ConversationId: c1, SetupHash: text(129)}, "setup_hash"},
		{&openReq{ConversationId: c1, Provider: 9}, "provider"},
		{&openReq{ConversationId: c1, KeepFramesFor: durationpb.New(time.Second)}, "keep_frames_for"},
		{&openReq{ConversationId: c1, Silence: durationpb.New(2 * time.Hour)}, "silence"},
		{&openReq{ConversationId: c1, RequestId: text(129)}, "request_id"},
		{&conversationv1.CloseLiveRequest{ConversationId: c1}, "epoch"},
		{&conversationv1.CloseLiveRequest{ConversationId: c1, Epoch: 1, CloseCode: 5000}, "close_code"},
		{&planReq{ConversationId: c1, SeedBudgetTokens: 255}, "seed_budget_tokens"},
		{&failedReq{ConversationId: c1, Epoch: 1}, "handle_id"},
		{&claimReq{ConversationId: c1, Seq: 1}, "worker"},
		{&claimReq{ConversationId: c1, Worker: "w"}, "seq"},
		{&claimReq{ConversationId: c1, Seq: 1, Worker: "w", Lease: durationpb.New(time.Millisecond)}, "lease"},
		{&conversationv1.CompleteToolCallRequest{ConversationId: c1, Seq: 1, FencingToken: 1}, "response"},
		{&conversationv1.CompleteToolCallRequest{ConversationId: c1, Seq: 1, Response: outputOf("x")}, "fencing_token"},
		{&conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Spoken: &conversationv1.Spoken{PlayedMs: new(int32(-1))}}}}}, "updates[0].message.spoken.played_ms"},
		{&windowReq{ConversationId: c1, BudgetTokens: 100}, "budget_tokens"},
		{&windowReq{ConversationId: c1, Format: 9}, "format"},
		{&proposeReq{ConversationId: c1, KeepTokens: -1}, "keep_tokens"},
		{&proposeReq{ConversationId: c1, LeaseDuration: durationpb.New(2 * time.Hour)}, "lease_duration"},
		{&commitReq{ConversationId: c1, FencingToken: 1}, "text"},
		{&commitReq{ConversationId: c1, FencingToken: 1, Text: text(16385)}, "text"},
		{&commitReq{ConversationId: c1, Text: "x"}, "fencing_token"},
		{&conversationv1.ListRecordsRequest{ConversationId: c1, PageSize: 201, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_FRAGMENT}}, "page_size"},
		{&conversationv1.ListLiveFramesRequest{ConversationId: c1, PageSize: 21}, "page_size"},
		{&conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{9}}, "types[0]"},
		{&conversationv1.ListRecordsRequest{ConversationId: c1, PageSize: 201, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_SUMMARY}}, "page_size"},
	} {
		err := invoke(t, c, tt.req)
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%v is answered with %v", tt.req, err)
			continue
		}
		violations := detail[*errdetails.BadRequest](t, err).GetFieldViolations()
		if !slices.ContainsFunc(violations, func(v *errdetails.BadRequest_FieldViolation) bool { return v.GetField() == tt.field }) {
			t.Errorf("%v is answered with %v, which does not name %s", tt.req, err, tt.field)
		}
	}
	same(t, "after the refusals", get(t, c), before)
}

// The first response of a tool call counts, also where the provider has withdrawn the call. A worker that has another is
// told so, and does not send it.
func TestTheFirstResponseOfAToolCallCounts(t *testing.T) {
	t.Parallel()
	for name, before := range map[string][]string{
		"called":    {call("a")},
		"withdrawn": {call("a"), `{"toolCallCancellation":{"ids":["a"]}}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := setup(t).client(t, ada)
			create(t, c)
			ingestOne(t, c, 1, textFrame(1, before[0]))
			token := must(c.ClaimToolCall(t.Context(), &claimReq{ConversationId: c1, Seq: 1, Worker: "w"}))(t).GetToolCall().GetClaim().GetFencingToken()
			for i, frame := range before[1:] {
				ingestOne(t, c, 1, textFrame(int64(i)+2, frame))
			}
			complete := func(token int64, said string, failed bool) (*conversationv1.CompleteToolCallResponse, error) {
				return c.CompleteToolCall(t.Context(), &conversationv1.CompleteToolCallRequest{ConversationId: c1, Seq: 1, FencingToken: token, Response: outputOf(said), IsError: failed})
			}
			first := must(complete(token, "ok", false))(t)
			same(t, "the same again", must(complete(token, "ok", false))(t), first)
			illegal := refusal{code: connect.CodeFailedPrecondition, reason: "ILLEGAL_TRANSITION"}
			for _, other := range []string{"", "OK", "ok "} {
				_, err := complete(token, other, false)
				illegal.check(t, err)
			}
			_, err := complete(token, "ok", true)
			illegal.check(t, err)
			for _, stale := range []int64{token + 1, math.MaxInt64} {
				_, err = complete(stale, "ok", false)
				refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
			}
			calls := must(c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_TOOL_CALL}}))(t)
			same(t, "what is stored", calls.GetRecords()[0].GetToolCall(), presentCall(first.GetToolCall()))
			if got := get(t, c).GetConversation().GetVersion(); got != first.GetMetadata().GetVersion() {
				t.Errorf("version %d, was %d", got, first.GetMetadata().GetVersion())
			}
		})
	}
}

// A handle is valid as long as its connection is open, and from its close on for as long as the provider documents.
func TestAHandleOfAnOpenConnectionDoesNotExpire(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	plan := func() *conversationv1.GetResumePlanResponse {
		t.Helper()
		got := must(c.GetResumePlan(t.Context(), &planReq{ConversationId: c1}))(t)
		if got.GetHandle() != "h1" {
			t.Errorf("the plan is %v", got)
		}
		return got
	}
	epoch := must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t).GetEpoch()
	ingestOne(t, c, epoch, textFrame(1, resumption("h1")))
	if got := plan(); got.GetHandleExpireTime() != nil {
		t.Errorf("while it is open: %v", got)
	}
	closed := must(c.CloseLive(t.Context(), &conversationv1.CloseLiveRequest{ConversationId: c1, Epoch: epoch}))(t).GetLive().GetCloseTime().AsTime()
	if got := plan().GetHandleExpireTime().AsTime(); !got.Equal(closed.Add(testLimits.DeveloperHandles)) {
		t.Errorf("closed at %v, valid until %v", closed, got)
	}
	// The next connection has no handle of its own yet: the old one is over when it was.
	must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t)
	if got := plan().GetHandleExpireTime().AsTime(); !got.Equal(closed.Add(testLimits.DeveloperHandles)) {
		t.Errorf("open again: closed at %v, valid until %v", closed, got)
	}
}

// Epochs are issued by the server. Only the first of a conversation may begin by itself; the number of any other that was
// not issued is refused, whatever the call, and changes nothing.
func TestAnEpochThatWasNeverIssuedChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	unknown := refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}
	for name, tt := range map[string]struct {
		before func(t *testing.T, c client)
		newest int64
	}{
		"fresh":           {func(*testing.T, client) {}, 0},
		"begun by itself": {func(t *testing.T, c client) { ingestOne(t, c, 1, textFrame(1, in("Hi"))) }, 1},
		"opened": {func(t *testing.T, c client) {
			for range 3 {
				must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t)
			}
		}, 3},
		"closed": {func(t *testing.T, c client) {
			must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t)
			must(c.CloseLive(t.Context(), &conversationv1.CloseLiveRequest{ConversationId: c1, Epoch: 1}))(t)
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := b.tenant(t).client(t, ada)
			create(t, c)
			tt.before(t, c)
			before := get(t, c)
			for _, epoch := range []int64{tt.newest + 1, tt.newest + 2, 7, 1 << 31, 1<<62 + 1, math.MaxInt64} {
				if epoch == 1 {
					continue // the first one
				}
				_, err := c.IngestLive(t.Context(), &ingestReq{ConversationId: c1, Epoch: epoch, Frames: []*conversationv1.LiveFrame{textFrame(1, in("x"))}})
				unknown.check(t, err)
				_, err = c.CloseLive(t.Context(), &conversationv1.CloseLiveRequest{ConversationId: c1, Epoch: epoch})
				unknown.check(t, err)
				_, err = c.ReportResumeFailed(t.Context(), &failedReq{ConversationId: c1, Epoch: epoch, HandleId: 1})
				unknown.check(t, err)
			}
			for _, epoch := range []int64{0, -1, math.MinInt64} {
				_, err := c.IngestLive(t.Context(), &ingestReq{ConversationId: c1, Epoch: epoch, Frames: []*conversationv1.LiveFrame{textFrame(1, in("x"))}})
				refusal{code: connect.CodeInvalidArgument, field: "epoch"}.check(t, err)
			}
			same(t, "after the refusals", get(t, c), before)
			if got := must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t).GetEpoch(); got != tt.newest+1 {
				t.Errorf("the next epoch is %d", got)
			}
		})
	}
}
