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
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/conversation/voice"
	"holdfast/object"
	"holdfast/seal"
)

type (
	windowReq  = conversationv1.GetContextWindowRequest
	proposeReq = conversationv1.ProposeCompactionRequest
	commitReq  = conversationv1.CommitCompactionRequest
)

func TestConnectionsThroughTheAPI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	laptop, phone := b.client(t, ada), serve(t, b.Bundle).client(t, ada)
	create(t, laptop)
	first := must(laptop.ConnectLive(t.Context(), &connectReq{ConversationId: c1, Device: device("laptop"), SetupHash: "a"}))(t)
	if first.GetLease().GetFencingToken() != 1 || first.GetLease().GetHolder() != "laptop" || first.GetConnectionId() == "" || first.GetVersion() != 2 ||
		first.GetPlan().GetReason() != livev1.PlanReason_PLAN_REASON_FIRST || first.GetPlan().GetHandle() != "" || first.GetPlan().GetSend() != nil {
		t.Fatalf("%v", first)
	}
	if left := first.GetLease().GetExpiresIn().AsDuration(); left <= 0 || left > leaseTime {
		t.Errorf("it expires in %v", left)
	}
	ingestOne(t, laptop, 1, textFrame(1, in("Set it ")), textFrame(2, resumption("secret-handle")), textFrame(3, in("to ")))
	w := watchAfter(t, laptop, 0)
	w.next(t)
	_, err := phone.ConnectLive(t.Context(), &connectReq{ConversationId: c1, Device: device("phone"), SetupHash: "a"})
	leaseHeld.check(t, err)
	if held := detail[*errorv1.Problem](t, err).GetHeld(); held.GetDeviceName() != "laptop" || held.GetConnectionId() != first.GetConnectionId() || held.GetUser() != string(ada) {
		t.Errorf("the holder is %v", held)
	}
	if preview := plan(t, phone, "b"); preview.GetReason() != livev1.PlanReason_PLAN_REASON_SETUP_CHANGED || preview.GetHandle() != "" || preview.GetSend() == nil {
		t.Errorf("the plan of another setup: %v", preview)
	}
	second := connectAs(t, phone, &connectReq{Device: device("phone"), SetupHash: "a"})
	if second.GetLease().GetFencingToken() != 2 || second.GetPlan().GetHandle() != "secret-handle" || second.GetPlan().GetReason() != livev1.PlanReason_PLAN_REASON_RESUMED {
		t.Fatalf("%v", second)
	}
	if got := w.next(t).GetConversation().GetLive(); got.GetLease().GetFencingToken() != 2 || got.GetDevice().GetName() != "phone" || got.GetLease().GetExpiresIn() != nil {
		t.Errorf("the laptop sees %v", got)
	}
	for token, says := range map[int32]string{1: "connection 2", 3: "never issued"} {
		_, err := laptop.DisconnectLive(t.Context(), &disconnectReq{ConversationId: c1, FencingToken: token})
		refusal{code: connect.CodeFailedPrecondition, reason: "FENCED", says: []string{says}}.check(t, err)
	}
	// The provider refuses the handle, and the phone says so, with what it owes.
	third := must(phone.ConnectLive(t.Context(), &connectReq{
		ConversationId: c1, SetupHash: "a", SeedEndsWithUser: true,
		Previous: &livev1.Previous{FencingToken: 2, CloseCode: 1011, HandleRefused: true, Frames: []*livev1.LiveFrame{textFrame(1, in("done"))}},
	}))(t)
	if p := third.GetPlan(); p.GetReason() != livev1.PlanReason_PLAN_REASON_HANDLE_REFUSED || p.GetHandle() != "" || p.GetConnectAfter() == nil ||
		!strings.Contains(gemini.JSONText(p.GetSend()), "Set it to done") {
		t.Errorf("after it was refused: %v", p)
	}
	for range 2 {
		closed := must(phone.DisconnectLive(t.Context(), &disconnectReq{ConversationId: c1, FencingToken: 3, CloseCode: 1006}))(t)
		live := get(t, phone).GetConversation().GetLive()
		if live.GetCloseCode() != 1006 || live.GetCloseTime() == nil || closed.GetVersion() != 6 {
			t.Errorf("%v, %v", closed, live)
		}
	}
	if again := must(laptop.ConnectLive(t.Context(), &connectReq{ConversationId: c1}))(t); again.GetLease().GetFencingToken() != 4 {
		t.Errorf("nobody is connected: %v", again)
	}
}

// Handles are bearer secrets: no table has one in clear.
func TestHandlesAreSealedAtRest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	keep := &livev1.LiveOptions{KeepFramesFor: durationpb.New(time.Hour)}
	connectAs(t, c, &connectReq{RequestId: "r-1", Options: keep})
	frames := []*livev1.LiveFrame{
		textFrame(1, resumption("secret-handle")), textFrame(2, `{"setup":{"sessionResumption":{"handle":"secret-handle"}}}`),
	}
	ingestOne(t, c, 1, frames...)
	// The answer has the handle, and so has that to a retry, from whichever server. The journal that remembers the request has not.
	req := &connectReq{ConversationId: c1, RequestId: "r-2", Options: keep, Previous: &livev1.Previous{
		FencingToken: 1, Frames: []*livev1.LiveFrame{textFrame(3, resumption("secret-handle"))},
	}}
	first := must(c.ConnectLive(t.Context(), req))(t)
	for _, c := range []client{c, serve(t, b.Bundle).client(t, ada)} {
		again := must(c.ConnectLive(t.Context(), req))(t)
		if again.GetPlan().GetHandle() != "secret-handle" || again.GetConnectionId() != first.GetConnectionId() || again.GetVersion() != first.GetVersion() {
			t.Errorf("first %v, again %v", first, again)
		}
	}
	for _, table := range []string{"objects", "entries", "events"} {
		var n, rows int
		err := b.sql(t).QueryRow(t.Context(), "SELECT count(*) FILTER (WHERE r::text LIKE '%secret-handle%' OR r::text LIKE '%"+fmt.Sprintf("%x", "secret-handle")+"%'), count(*) FROM holdfast."+table+" r WHERE tenant_id = $1", string(b.Tenant)).Scan(&n, &rows)
		if err != nil || n != 0 || rows == 0 {
			t.Errorf("%d of %d rows of %s have it, %v", n, rows, table, err)
		}
	}
	got := must(c.ListLiveFrames(t.Context(), &livev1.ListLiveFramesRequest{ConversationId: c1}))(t).GetBatches()
	if len(got) != 2 || got[0].GetNumber() != 1 || got[0].GetFromConnection() != 1 || len(got[0].GetFrames()) != 2 || !proto.Equal(got[0].GetFrames()[0], frames[0]) ||
		got[1].GetFromConnection() != 1 {
		t.Errorf("the raw frames are %v", got)
	}
}

// A retry of ConnectLive answers the same connection, or that another has it since.
func TestALateRetryOfAConnectionIsFenced(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	req := &connectReq{ConversationId: c1, RequestId: "r-1"}
	must(c.ConnectLive(t.Context(), req))(t)
	connectAs(t, c, &connectReq{})
	_, err := c.ConnectLive(t.Context(), req)
	refusal{code: connect.CodeFailedPrecondition, reason: "FENCED", says: []string{"connection 2"}}.check(t, err)
	_, err = c.ConnectLive(t.Context(), &connectReq{ConversationId: c1, RequestId: "r-1", SetupHash: "x"})
	refusal{code: connect.CodeAlreadyExists, reason: "REQUEST_ID_REUSED"}.check(t, err)
}

// What one user's connection was given is no other's, even where the conversation is everybody's.
func TestUsersDoNotReadEachOthersHandles(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service, hers, his := b.client(t, nobody), b.client(t, ada), b.client(t, "eve")
	must(service.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: c1, Shared: true}))(t)
	token := int64(connectAs(t, hers, &connectReq{Options: &livev1.LiveOptions{KeepFramesFor: durationpb.New(time.Hour)}}).GetLease().GetFencingToken())
	ingestOne(t, hers, token, textFrame(1, in("Hi")), textFrame(2, resumption("secret-handle")))
	frames := func(c client) int {
		t.Helper()
		return len(must(c.ListLiveFrames(t.Context(), &livev1.ListLiveFramesRequest{ConversationId: c1}))(t).GetBatches())
	}
	if h, s, e := frames(hers), frames(service), frames(his); h != 1 || s != 1 || e != 0 {
		t.Errorf("she reads %d batches of raw frames, the service %d, he %d", h, s, e)
	}
	// While she is connected he cannot even take over, and knows nothing of her plan.
	for _, req := range []*connectReq{{TakeOver: true}, {ValidateOnly: true}, {Previous: &livev1.Previous{FencingToken: int32(token)}}} {
		req.ConversationId = c1
		_, err := his.ConnectLive(t.Context(), req)
		leaseHeld.check(t, err)
	}
	_, err := his.IngestLive(t.Context(), &ingestReq{ConversationId: c1, FencingToken: int32(token)})
	leaseHeld.check(t, err)
	must(hers.DisconnectLive(t.Context(), &disconnectReq{ConversationId: c1, FencingToken: int32(token)}))(t)
	_, err = his.IngestLive(t.Context(), &ingestReq{ConversationId: c1, FencingToken: int32(token), Frames: []*livev1.LiveFrame{textFrame(3, in("me"))}})
	refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
	for name, got := range map[string]*livev1.Plan{"eve's preview": plan(t, his, ""), "eve": connectAs(t, his, &connectReq{}).GetPlan()} {
		if got.GetHandle() != "" || got.GetReason() != livev1.PlanReason_PLAN_REASON_NO_HANDLE || got.GetSend() == nil {
			t.Errorf("%s: %v", name, got)
		}
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
	connectAs(t, before, &connectReq{SetupHash: "a", Options: &livev1.LiveOptions{KeepFramesFor: durationpb.New(time.Hour)}})
	opens := func(who string, c client, handle string, batches int) {
		t.Helper()
		if got := plan(t, c, "a").GetHandle(); got != handle {
			t.Errorf("%s is told to resume with %q", who, got)
		}
		if got := must(c.ListLiveFrames(t.Context(), &livev1.ListLiveFramesRequest{ConversationId: c1}))(t).GetBatches(); len(got) != batches {
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
	connectAs(t, c, &connectReq{Options: &livev1.LiveOptions{KeepFramesFor: durationpb.New(time.Hour)}})
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
	connectAs(t, c, &connectReq{Options: &livev1.LiveOptions{KeepFramesFor: durationpb.New(time.Hour)}})
	const over = 5
	for i := range int64(maxKept + over) {
		ingestOne(t, c, 1, textFrame(i+1, in("x")))
	}
	kept := func() (numbers []int32) {
		t.Helper()
		for req, more := (&livev1.ListLiveFramesRequest{ConversationId: c1}), true; more; more = req.GetPageToken() != "" {
			page := must(c.ListLiveFrames(t.Context(), req))(t)
			for _, b := range page.GetBatches() {
				numbers = append(numbers, b.GetNumber())
			}
			req.PageToken = page.GetNextPageToken()
		}
		return numbers
	}
	numbers := kept()
	if len(numbers) != maxKept || numbers[0] != over+1 || numbers[len(numbers)-1] != maxKept+over {
		t.Errorf("%d batches are kept: %v", len(numbers), numbers)
	}
	// Another connection does not keep them.
	openLive(t, c)
	ingestOne(t, c, 2, textFrame(1, in("x")))
	if got := kept(); !slices.Equal(got, numbers) {
		t.Errorf("kept %v", got)
	}
	_, err := c.ListLiveFrames(t.Context(), &livev1.ListLiveFramesRequest{ConversationId: c1, PageToken: "made up"})
	refusal{code: connect.CodeInvalidArgument, reason: "PAGE_TOKEN_INVALID"}.check(t, err)
}

// Words that may still change reach watchers before they are stored; what the answer says is stored, is.
func TestPartialsAreShownThenStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	openLive(t, c)
	w := watchAfter(t, c, 0)
	w.next(t)
	// A slow machine stores some of them at once.
	var index int32
	for early := false; !early; {
		index++
		if index > 500 {
			t.Fatal("each was stored at once")
		}
		res := ingestOne(t, c, 1, textFrame(int64(index), interim(fmt.Sprint("word ", index))))
		early = res.GetStoredThrough() < index
		if res.GetReceivedThrough() != index || res.GetVoice().GetLastTranscription() != fmt.Sprint("word ", index) {
			t.Fatalf("%d: %v", index, res)
		}
		if stored := get(t, c).GetConversation().GetLive().GetStoredThrough(); stored < res.GetStoredThrough() {
			t.Fatalf("%d was acknowledged, %d is stored", res.GetStoredThrough(), stored)
		}
	}
	signalled, stored := false, false
	for !signalled || !stored {
		got := w.next(t)
		if s := got.GetSignal(); s.GetClientIndex() == index {
			signalled = true
			if s.GetVoice().GetLastTranscription() != fmt.Sprint("word ", index) || s.GetVoice().GetStatus() != conversationv1.VoiceStatus(voice.Listening) || s.GetFromConnection() != 1 || got.GetConversation() != nil {
				t.Errorf("the signal is %v", got)
			}
		}
		stored = got.GetConversation().GetLive().GetStoredThrough() == index
		if stored && !signalled {
			t.Error("it was stored before it was shown")
			return
		}
	}
	same(t, "the voice turn that was stored", get(t, c).GetConversation().GetVoice(), &conversationv1.VoiceState{
		Status: conversationv1.VoiceStatus(voice.Listening), LastTranscription: fmt.Sprint("word ", index), ChangeTime: get(t, c).GetConversation().GetVoice().GetChangeTime(),
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
			openLive(t, c)
			ingestOne(t, c, 1, textFrame(1, in("One")+out("Yes")))
			ingestOne(t, c, 1, textFrame(2, activityStart))
			frames := []*livev1.LiveFrame{textFrame(2, activityStart), textFrame(3, in("Two"))}
			if !again {
				frames = frames[1:]
			}
			res := ingestOne(t, c, 1, frames...)
			if res.GetStoredThrough() != 3 {
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
	openLive(t, c)
	strangers := []client{b.client(t, "eve"), b.tenant(t).client(t, ada)}
	var index int32
	for early := 0; early < 3; {
		index++
		if index > 500 {
			t.Fatal("each was stored at once")
		}
		if ingestOne(t, c, 1, textFrame(int64(index), interim(fmt.Sprint("word ", index)))).GetStoredThrough() == index {
			continue
		}
		early++
		for _, stranger := range strangers {
			for _, text := range []string{in("mine"), interim("mine")} {
				_, err := stranger.IngestLive(t.Context(), &ingestReq{ConversationId: c1, FencingToken: 1, Frames: []*livev1.LiveFrame{textFrame(int64(index)+1, text)}})
				notFound.check(t, err)
			}
		}
		w := watchAfter(t, c, 0)
		for stored := false; !stored; {
			stored = w.next(t).GetConversation().GetLive().GetStoredThrough() == index
		}
		w.stream.Close()
	}
}

func TestVoiceBecomesIdleByItself(t *testing.T) {
	t.Parallel()
	c := setup(t, func(c *object.Config) { c.Timers = true }).client(t, ada)
	create(t, c)
	connectAs(t, c, &connectReq{Options: &livev1.LiveOptions{Silence: durationpb.New(time.Second)}})
	w := watchAfter(t, c, 0)
	ingestOne(t, c, 1, textFrame(1, in("Hi")))
	listened := false
	for {
		got := w.next(t)
		status := storev1.VoiceStatus(got.GetConversation().GetVoice().GetStatus())
		listened = listened || status == voice.Listening
		if listened && status == voice.Idle {
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
	openLive(t, c)
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
	batch := make([]*livev1.LiveFrame, len(frames))
	for i, f := range frames {
		batch[i] = textFrame(int64(i)+1, f)
	}
	if got := ingestOne(t, c, 1, batch...); got.GetVersion() != 3 || len(got.GetMessages()) != 2 {
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
	openLive(t, c)
	ingestOne(t, c, 1, textFrame(1, call("a")+call("b")), textFrame(2, answer("a")))
	reset := watchAfter(t, other, 0).next(t)
	if got := reset.GetToolCalls(); !reset.GetReset_() || len(got) != 1 || got[0].GetCallId() != "b" || got[0].GetStatus() != conversationv1.ToolCallStatus(voice.CallPending) {
		t.Errorf("a snapshot has %v", got)
	}
	// Of many workers on two servers one gets it.
	const workers = 16
	claimed := make([]*livev1.ClaimToolCallResponse, workers)
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
	complete := func(token int32) (*livev1.CompleteToolCallResponse, error) {
		return c.CompleteToolCall(t.Context(), &livev1.CompleteToolCallRequest{ConversationId: c1, Seq: 2, FencingToken: token, Response: structpb.NewStructValue(outputOf("ok"))})
	}
	const delivery = `{"toolResponse":{"functionResponses":[{"id":"b","name":"run","response":{"output":"ok"}}]}}`
	_, err := complete(99)
	refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
	token := claimed[won].GetToolCall().GetClaim().GetFencingToken()
	if got := must(complete(token))(t); gemini.JSONText(got.GetSend()) != delivery || got.GetToolCall().GetStatus() != conversationv1.ToolCallStatus_TOOL_CALL_STATUS_COMPLETED {
		t.Errorf("%v", got)
	}
	if got := must(complete(token))(t); gemini.JSONText(got.GetSend()) != delivery || gemini.JSONText(got.GetToolCall().GetResponse().GetStructValue()) != gemini.JSONText(outputOf("ok")) {
		t.Errorf("the same again: %v", got)
	}
	_, err = c.ClaimToolCall(t.Context(), &claimReq{ConversationId: c1, Seq: 2, Worker: "w"})
	refusal{code: connect.CodeFailedPrecondition, reason: "ILLEGAL_TRANSITION", says: []string{"completed"}}.check(t, err)
	_, err = c.ClaimToolCall(t.Context(), &claimReq{ConversationId: c1, Seq: 3, Worker: "w"})
	refusal{code: connect.CodeNotFound}.check(t, err)
	large := &livev1.CompleteToolCallRequest{ConversationId: c1, Seq: 2, FencingToken: 1, Response: structpb.NewStructValue(outputOf(strings.Repeat("x", gemini.MaxObjectBytes)))}
	_, err = c.CompleteToolCall(t.Context(), large)
	refusal{code: connect.CodeInvalidArgument, field: "response"}.check(t, err)

	// The connection dies before the response was delivered: it is told as text.
	must(c.DisconnectLive(t.Context(), &disconnectReq{ConversationId: c1, FencingToken: 1}))(t)
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
	openLive(t, c)
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
			question := said(fmt.Sprintf("question %011d", i))[0]
			question.TokenCount = new(int32(5))
			batch = append(batch, question,
				&newMessage{Role: conversationv1.Role_ROLE_ASSISTANT, Text: fmt.Sprintf("answer %013d", i), TokenCount: new(int32(5))})
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
	committed := must(c.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: proposed.GetLease().GetFencingToken(), Text: "They talked."}))(t)
	if got := committed.GetSummary(); got.GetSeq() != 1 || got.GetToSeq() != 569 || got.GetReplacedTokenCount() != 2843 {
		t.Errorf("committed %v", got)
	}
	again := must(other.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: proposed.GetLease().GetFencingToken(), Text: "They talked."}))(t)
	same(t, "committed again", again.GetSummary(), committed.GetSummary())
	_, err = other.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: proposed.GetLease().GetFencingToken(), Text: "Something else."})
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
	anew := must(c.ProposeCompaction(t.Context(), &proposeReq{ConversationId: c1, KeepTokens: 1, FromScratch: true, FencingToken: next.GetLease().GetFencingToken()}))(t)
	if anew.GetFromSeq() != 1 || anew.GetToSeq() != 601 || anew.GetPrevious() != nil || anew.GetLease().GetFencingToken() != next.GetLease().GetFencingToken()+1 {
		t.Errorf("anew: %v", anew)
	}
	_, err = c.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: next.GetLease().GetFencingToken(), Text: "x"})
	refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
	must(c.CommitCompaction(t.Context(), &commitReq{ConversationId: c1, FencingToken: anew.GetLease().GetFencingToken(), Text: "All of it.", TokenCount: proto.Int32(7)}))(t)
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
	if text := gemini.JSONText(res.GetContents()[0]); !strings.Contains(text, "Never push") || res.GetSystemInstruction() != nil || res.GetWindow().GetTotalTokens() > 256 {
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
	openLive(t, c)
	before := get(t, c)
	text := func(n int) string { return strings.Repeat("x", n) }
	frame := &livev1.LiveFrame_Text{Text: `{"realtimeInput":{"text":"hello"}}`}
	tooFar := []*livev1.LiveFrame{{ClientIndex: 100, Frame: frame}, {ClientIndex: 1_700_000_000, Frame: frame}}
	for _, tt := range []struct {
		req   proto.Message
		field string
	}{
		{&connectReq{ConversationId: "a b"}, "conversation_id"},
		{&connectReq{ConversationId: c1, Device: device(text(129))}, "device.name"},
		{&connectReq{ConversationId: c1, SetupHash: text(129)}, "setup_hash"},
		{&connectReq{ConversationId: c1, Provider: 9}, "provider"},
		{&connectReq{ConversationId: c1, Options: &livev1.LiveOptions{KeepFramesFor: durationpb.New(time.Second)}}, "options.keep_frames_for"},
		{&connectReq{ConversationId: c1, Options: &livev1.LiveOptions{Silence: durationpb.New(2 * time.Hour)}}, "options.silence"},
		{&connectReq{ConversationId: c1, Options: &livev1.LiveOptions{ToolLease: durationpb.New(2 * time.Hour)}}, "options.tool_lease"},
		{&connectReq{ConversationId: c1, Previous: &livev1.Previous{}}, "previous.fencing_token"},
		{&connectReq{ConversationId: c1, Previous: &livev1.Previous{FencingToken: 1, CloseCode: 5000}}, "previous.close_code"},
		{&connectReq{ConversationId: c1, SeedBudgetTokens: 255}, "seed_budget_tokens"},
		{&connectReq{ConversationId: c1, RequestId: text(129)}, "request_id"},
		{&disconnectReq{ConversationId: c1}, "fencing_token"},
		{&disconnectReq{ConversationId: c1, FencingToken: 1, CloseCode: 5000}, "close_code"},
		{&ingestReq{ConversationId: c1, FencingToken: 1, PlayedMs: proto.Int32(-1)}, "played_ms"},
		{&ingestReq{ConversationId: c1, FencingToken: 1, Frames: tooFar}, "frames[1].client_index"},
		{&disconnectReq{ConversationId: c1, FencingToken: 1, Frames: tooFar}, "frames[1].client_index"},
		{&connectReq{ConversationId: c1, Previous: &livev1.Previous{FencingToken: 1, Frames: tooFar}}, "previous.frames[1].client_index"},
		{&claimReq{ConversationId: c1, Seq: 1}, "worker"},
		{&claimReq{ConversationId: c1, Worker: "w"}, "seq"},
		{&claimReq{ConversationId: c1, Seq: 1, Worker: "w", LeaseDuration: durationpb.New(time.Millisecond)}, "lease_duration"},
		{&completeReq{ConversationId: c1, Seq: 1, FencingToken: 1}, ""},
		{&completeReq{ConversationId: c1, Seq: 1, FencingToken: 1, Response: structpb.NewBoolValue(true), ResponseJson: "1"}, ""},
		{&completeReq{ConversationId: c1, Seq: 1, FencingToken: 1, ResponseJson: "{"}, "response_json"},
		{&completeReq{ConversationId: c1, Seq: 1, FencingToken: 1, ResponseJson: "1", Scheduling: "SOON"}, "scheduling"},
		{&completeReq{ConversationId: c1, Seq: 1, ResponseJson: "1"}, "fencing_token"},
		{&conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Spoken: &conversationv1.Spoken{PlayedMs: new(int32(-1))}}}}}, "updates[0].message.spoken.played_ms"},
		{&windowReq{ConversationId: c1, BudgetTokens: 100}, "budget_tokens"},
		{&windowReq{ConversationId: c1, Format: 9}, "format"},
		{&proposeReq{ConversationId: c1, KeepTokens: -1}, "keep_tokens"},
		{&proposeReq{ConversationId: c1, LeaseDuration: durationpb.New(2 * time.Hour)}, "lease_duration"},
		{&commitReq{ConversationId: c1, FencingToken: 1}, "text"},
		{&commitReq{ConversationId: c1, FencingToken: 1, Text: text(16385)}, "text"},
		{&commitReq{ConversationId: c1, Text: "x"}, "fencing_token"},
		{&conversationv1.ListRecordsRequest{ConversationId: c1, PageSize: 201, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_FRAGMENT}}, "page_size"},
		{&livev1.ListLiveFramesRequest{ConversationId: c1, PageSize: 201}, "page_size"},
		{&conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{9}}, "types[0]"},
		{&conversationv1.ListRecordsRequest{ConversationId: c1, PageSize: 201, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_SUMMARY}}, "page_size"},
	} {
		err := invoke(t, c, tt.req)
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%v is answered with %v", tt.req, err)
			continue
		}
		violations := detail[*errdetails.BadRequest](t, err).GetFieldViolations()
		if tt.field != "" && !slices.ContainsFunc(violations, func(v *errdetails.BadRequest_FieldViolation) bool { return v.GetField() == tt.field }) {
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
			openLive(t, c)
			ingestOne(t, c, 1, textFrame(1, before[0]))
			token := must(c.ClaimToolCall(t.Context(), &claimReq{ConversationId: c1, Seq: 1, Worker: "w"}))(t).GetToolCall().GetClaim().GetFencingToken()
			for i, frame := range before[1:] {
				ingestOne(t, c, 1, textFrame(int64(i)+2, frame))
			}
			complete := func(token int32, said string, failed bool) (*livev1.CompleteToolCallResponse, error) {
				return c.CompleteToolCall(t.Context(), &livev1.CompleteToolCallRequest{ConversationId: c1, Seq: 1, FencingToken: token, Response: structpb.NewStructValue(outputOf(said)), IsError: failed})
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
			for _, stale := range []int32{token + 1, math.MaxInt32} {
				_, err = complete(stale, "ok", false)
				refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
			}
			calls := must(c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_TOOL_CALL}}))(t)
			same(t, "what is stored", calls.GetRecords()[0].GetToolCall(), first.GetToolCall())
			if got := get(t, c).GetConversation().GetVersion(); got != first.GetVersion() {
				t.Errorf("version %d, was %d", got, first.GetVersion())
			}
		})
	}
}

// A handle is valid as long as its connection is open, and from its close on for as long as the provider documents.
func TestAHandleOfAnOpenConnectionDoesNotExpire(t *testing.T) {
	t.Parallel()
	s := opens("a")
	s.send(t, resumption("h"))
	s.state.Live.Handles[0].ReceiveTime = timestamppb.New(testNow.Add(-3 * time.Hour))
	s.state.Live.FrameTime = s.state.Live.Handles[0].GetReceiveTime()
	req := &connectReq{SetupHash: "a"}
	reason := func(after time.Duration) livev1.PlanReason {
		_, why := s.handleAt(testNow.Add(after), req)
		return why
	}
	if got := reason(time.Minute); got != livev1.PlanReason_PLAN_REASON_RESUMED {
		t.Errorf("while it is open: %s", got)
	}
	s.do(testNow, func(f *voice.Reducer) { f.CloseLive(1006) })
	for range 2 { // the next connection has no handle of its own yet: the old one is over when it was
		for after, want := range map[time.Duration]livev1.PlanReason{
			testLimits.DeveloperHandles - 1: livev1.PlanReason_PLAN_REASON_RESUMED, testLimits.DeveloperHandles: livev1.PlanReason_PLAN_REASON_HANDLE_EXPIRED,
		} {
			if got := reason(after); got != want {
				t.Errorf("%v after it was closed: %s", after, got)
			}
		}
		s.take("a")
	}
}

// Fencing tokens are issued by the server. The number of any other is refused, whatever the call, and changes nothing.
func TestATokenThatWasNeverIssuedChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	unknown := refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}
	for name, tt := range map[string]struct {
		before func(t *testing.T, c client)
		newest int32
	}{
		"fresh": {func(*testing.T, client) {}, 0},
		"connected": {func(t *testing.T, c client) {
			for range 3 {
				openLive(t, c)
			}
		}, 3},
		"disconnected": {func(t *testing.T, c client) {
			must(c.DisconnectLive(t.Context(), &disconnectReq{ConversationId: c1, FencingToken: int32(openLive(t, c))}))(t)
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := b.tenant(t).client(t, ada)
			create(t, c)
			tt.before(t, c)
			before := get(t, c)
			frames := []*livev1.LiveFrame{textFrame(1, in("x"))}
			for _, token := range []int32{tt.newest + 1, tt.newest + 2, 7, math.MaxInt32} {
				for _, req := range []proto.Message{
					&ingestReq{ConversationId: c1, FencingToken: token, Frames: frames}, &ingestReq{ConversationId: c1, FencingToken: token},
					&disconnectReq{ConversationId: c1, FencingToken: token, Frames: frames},
					&connectReq{ConversationId: c1, TakeOver: true, Previous: &livev1.Previous{FencingToken: token, Frames: frames, HandleRefused: true}},
				} {
					unknown.check(t, invokeLive(t.Context(), c, req))
				}
			}
			for _, token := range []int32{0, -1, math.MinInt32} {
				_, err := c.IngestLive(t.Context(), &ingestReq{ConversationId: c1, FencingToken: token, Frames: frames})
				refusal{code: connect.CodeInvalidArgument, field: "fencing_token"}.check(t, err)
			}
			same(t, "after the refusals", get(t, c), before)
			if got := openLive(t, c); got != int64(tt.newest)+1 {
				t.Errorf("the next is %d", got)
			}
		})
	}
}

var leaseHeld = refusal{code: connect.CodeFailedPrecondition, reason: "LEASE_HELD"}
