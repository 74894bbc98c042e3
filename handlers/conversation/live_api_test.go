package conversation

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
)

func TestSetVoiceState(t *testing.T) {
	t.Parallel()
	b := setup(t)
	statuses := []conversationv1.VoiceStatus{voiceIdle, voiceListening, voiceProcessing, voiceResponding}
	// How to come to each status, and where one may go from there.
	tests := map[conversationv1.VoiceStatus]struct{ path, allowed []conversationv1.VoiceStatus }{
		voiceUnset:      {nil, []conversationv1.VoiceStatus{voiceIdle, voiceListening}},
		voiceIdle:       {[]conversationv1.VoiceStatus{voiceIdle}, []conversationv1.VoiceStatus{voiceIdle, voiceListening}},
		voiceListening:  {[]conversationv1.VoiceStatus{voiceListening}, []conversationv1.VoiceStatus{voiceListening, voiceProcessing, voiceIdle}},
		voiceProcessing: {[]conversationv1.VoiceStatus{voiceListening, voiceProcessing}, statuses},
		voiceResponding: {[]conversationv1.VoiceStatus{voiceListening, voiceProcessing, voiceResponding}, statuses},
	}
	for from, tt := range tests {
		for _, to := range statuses {
			t.Run(shortName(from)+" to "+shortName(to), func(t *testing.T) {
				t.Parallel()
				c := b.tenant(t).client(t, ada)
				create(t, c)
				for _, s := range tt.path {
					must(c.SetVoiceState(t.Context(), &conversationv1.SetVoiceStateRequest{ConversationId: c1, Status: s}))(t)
				}
				before := get(t, c)
				res, err := c.SetVoiceState(t.Context(), &conversationv1.SetVoiceStateRequest{ConversationId: c1, Status: to, AudioStreamId: "mic-2", LastTranscription: "words"})
				after := get(t, c)
				if slices.Contains(tt.allowed, to) {
					want := &conversationv1.VoiceState{Status: to, AudioStreamId: "mic-2", LastTranscription: "words", ChangeTime: res.GetMetadata().GetUpdateTime()}
					same(t, "the reply", res.GetVoice(), want)
					same(t, "what was read", after.GetConversation().GetVoice(), want)
					return
				}
				refusal{code: connect.CodeFailedPrecondition, reason: "ILLEGAL_TRANSITION", says: []string{to.String()}}.check(t, err)
				// Each of the statuses that the error names can be had.
				for _, a := range detail[*errorv1.Problem](t, err).GetTransition().GetAllowed() {
					if !slices.Contains(tt.allowed, conversationv1.VoiceStatus(conversationv1.VoiceStatus_value[a])) {
						t.Errorf("the error allows %q", a)
					}
				}
				same(t, "after the refusal", after, before)
			})
		}
	}
	t.Run("what is not given stays", func(t *testing.T) {
		t.Parallel()
		c := b.tenant(t).client(t, ada)
		create(t, c)
		must(c.SetVoiceState(t.Context(), &conversationv1.SetVoiceStateRequest{ConversationId: c1, Status: voiceListening, AudioStreamId: "mic-1", LastTranscription: "words"}))(t)
		res := must(c.SetVoiceState(t.Context(), &conversationv1.SetVoiceStateRequest{ConversationId: c1, Status: voiceProcessing}))(t)
		if got := res.GetVoice(); got.GetAudioStreamId() != "mic-1" || got.GetLastTranscription() != "words" || got.GetStatus() != voiceProcessing {
			t.Errorf("now %v", got)
		}
	})
}

func TestIntents(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	say(t, c, "one")
	slots := structOf(t, map[string]any{"repo": "api", "list": []any{1.0, nil, "x"}, "empty": map[string]any{}})
	var want []*conversationv1.Intent
	for i := range 7 {
		req := &intentReq{ConversationId: c1, Name: fmt.Sprint("intent-", i), Confidence: float64(i) / 7, MessageSeq: int64(i % 2)}
		if i%2 == 0 {
			req.Slots = slots
		}
		res := must(c.RecordIntent(t.Context(), req))(t)
		want = append(want, &conversationv1.Intent{
			Seq: int64(i) + 1, Name: req.GetName(), Confidence: req.GetConfidence(), Slots: req.GetSlots(), MessageSeq: req.GetMessageSeq(),
			CreateTime: res.GetMetadata().GetUpdateTime(),
		})
		same(t, "the reply", res.GetIntent(), want[i])
	}
	same(t, "the newest", get(t, c).GetConversation().GetIntent(), want[6])
	page := func(after int64, size int32) *conversationv1.ListIntentsResponse {
		t.Helper()
		res := must(c.ListIntents(t.Context(), &conversationv1.ListIntentsRequest{ConversationId: c1, AfterSeq: after, PageSize: size}))(t)
		if res.GetMetadata().GetVersion() != 9 {
			t.Errorf("at version %d", res.GetMetadata().GetVersion())
		}
		res.Metadata = nil
		return res
	}
	same(t, "all", page(0, 0), &conversationv1.ListIntentsResponse{Intents: want})
	same(t, "a first page", page(0, 3), &conversationv1.ListIntentsResponse{Intents: want[:3], HasMore: true})
	same(t, "a next page", page(3, 3), &conversationv1.ListIntentsResponse{Intents: want[3:6], HasMore: true})
	same(t, "a last page", page(6, 3), &conversationv1.ListIntentsResponse{Intents: want[6:]})
	same(t, "nothing", page(7, 3), &conversationv1.ListIntentsResponse{})
}

func TestFlows(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	data := structOf(t, map[string]any{"choices": 3.0})
	var want []*conversationv1.FlowStep
	for i := range 5 {
		req := &flowReq{ConversationId: c1, Flow: "onboarding", Step: fmt.Sprint("step-", i), Data: []*structpb.Struct{data, nil}[i%2]}
		res := must(c.AdvanceFlow(t.Context(), req))(t)
		want = append(want, &conversationv1.FlowStep{Seq: int64(i) + 1, Flow: "onboarding", Step: req.GetStep(), Data: req.GetData(), CreateTime: res.GetMetadata().GetUpdateTime()})
		same(t, "the reply", res.GetStep(), want[i])
	}
	same(t, "the newest", get(t, c).GetConversation().GetFlow(), want[4])
	page := func(after int64, size int32) *conversationv1.ListFlowStepsResponse {
		t.Helper()
		res := must(c.ListFlowSteps(t.Context(), &conversationv1.ListFlowStepsRequest{ConversationId: c1, AfterSeq: after, PageSize: size}))(t)
		res.Metadata = nil
		return res
	}
	same(t, "all", page(0, 0), &conversationv1.ListFlowStepsResponse{Steps: want})
	same(t, "a first page", page(0, 4), &conversationv1.ListFlowStepsResponse{Steps: want[:4], HasMore: true})
	same(t, "a last page", page(4, 4), &conversationv1.ListFlowStepsResponse{Steps: want[4:]})
}

// ingestOne sends a batch of frames of c1.
func ingestOne(t *testing.T, c client, epoch int64, frames ...*conversationv1.LiveFrame) *conversationv1.IngestLiveResponse {
	t.Helper()
	return must(c.IngestLive(t.Context(), &ingestReq{ConversationId: c1, Epoch: epoch, Frames: frames}))(t)
}

func TestIngestLive(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	object := structOf(t, map[string]any{"serverContent": map[string]any{"inputTranscription": map[string]any{"text": " world"}}})
	first := ingestOne(t, c, 1,
		&conversationv1.LiveFrame{ClientIndex: 1, Frame: &conversationv1.LiveFrame_Binary{Binary: []byte(in("Hello"))}},
		&conversationv1.LiveFrame{ClientIndex: 2, Frame: &conversationv1.LiveFrame_Object{Object: object}},
		textFrame(3, `not JSON`),
		textFrame(4, activityEnd+out("Sure.")+call("call-1")),
	)
	if got := first.GetMetadata().GetVersion(); got != 2 {
		t.Errorf("a batch is one version; it is %d", got)
	}
	if first.GetLastClientIndex() != 4 || first.GetSkippedFrames() != 0 || first.GetVoice().GetStatus() != voiceProcessing {
		t.Errorf("the reply is %v", first)
	}
	if diff := cmp.Diff([]string{"Hello world", "Sure."}, texts(first.GetMessages())); diff != "" {
		t.Error(diff)
	}
	if calls := first.GetToolCalls(); len(calls) != 1 || calls[0].GetCallId() != "call-1" || calls[0].GetStatus() != conversationv1.ToolCallStatus_TOOL_CALL_STATUS_PENDING {
		t.Errorf("tool calls are %v", calls)
	}
	read := get(t, c)
	same(t, "the messages that were read", &conversationv1.GetConversationResponse{Messages: read.GetMessages()}, &conversationv1.GetConversationResponse{Messages: first.GetMessages()})
	same(t, "the voice state that was read", read.GetConversation().GetVoice(), first.GetVoice())
	if got := read.GetConversation().GetLive().GetUnknownFrames(); got != 1 || first.GetUnknownFrames() != 1 {
		t.Errorf("%d frames count as not understood, %d of the batch", got, first.GetUnknownFrames())
	}

	// A resend changes nothing, and one that goes on is folded from where it is new.
	again := ingestOne(t, c, 1, textFrame(1, in("Hello")), textFrame(4, out("Sure.")))
	if again.GetSkippedFrames() != 2 || again.GetLastClientIndex() != 4 || again.GetMetadata().GetVersion() != 2 || len(again.GetMessages()) != 0 {
		t.Errorf("a resend: %v", again)
	}
	more := ingestOne(t, c, 1, textFrame(4, out("Sure.")), textFrame(5, answer("call-1")), textFrame(6, out(" Done.")), textFrame(7, turnComplete))
	if more.GetSkippedFrames() != 1 || more.GetLastClientIndex() != 7 || more.GetMetadata().GetVersion() != 3 || more.GetVoice().GetStatus() != voiceIdle {
		t.Errorf("a resend that goes on: %v", more)
	}
	if calls := more.GetToolCalls(); len(calls) != 1 || calls[0].GetStatus() != conversationv1.ToolCallStatus_TOOL_CALL_STATUS_COMPLETED {
		t.Errorf("tool calls are %v", calls)
	}
	if got := get(t, c).GetMessages(); len(got) != 2 || got[1].GetText() != "Sure. Done." || got[1].GetStatus() != conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE {
		t.Errorf("messages are %v", got)
	}

	// A new connection counts from 1 again, and the old ones are shut out.
	for want := int64(2); want <= 3; want++ {
		if got := must(c.OpenLive(t.Context(), &conversationv1.OpenLiveRequest{ConversationId: c1}))(t).GetEpoch(); got != want {
			t.Fatalf("the epoch is %d, not %d", got, want)
		}
	}
	next := ingestOne(t, c, 3, textFrame(1, in("Next")))
	if next.GetLastClientIndex() != 1 || next.GetSkippedFrames() != 0 {
		t.Errorf("the next epoch: %v", next)
	}
	before := get(t, c)
	for _, epoch := range []int64{1, 2} {
		_, err := c.IngestLive(t.Context(), &ingestReq{ConversationId: c1, Epoch: epoch, Frames: []*conversationv1.LiveFrame{textFrame(8, in("late"))}})
		refusal{code: connect.CodeFailedPrecondition, reason: "FENCED", says: []string{"epoch 3"}}.check(t, err)
	}
	after := get(t, c)
	if diff := cmp.Diff(texts(before.GetMessages()), texts(after.GetMessages())); diff != "" || after.GetConversation().GetLive().GetEpoch() != 3 {
		t.Errorf("after the refusal: %v\n%s", after, diff)
	}
	fragments := must(c.ListFragments(t.Context(), &conversationv1.ListFragmentsRequest{ConversationId: c1}))(t).GetFragments()
	if len(fragments) != 2 || fragments[0].GetUserText() != "late" || fragments[0].GetEpoch() != 1 || fragments[1].GetEpoch() != 2 {
		t.Errorf("what was refused: %v", fragments)
	}

	// Appended messages and spoken ones are of one conversation.
	if got := say(t, c, "typed"); got.GetMessages()[0].GetSeq() != 4 {
		t.Errorf("appended: %v", got)
	}
}

func TestBrokenFramesAreCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	broken := []string{``, `{`, `[]`, `null`, `"x"`, `{"serverContent":7}`, "\xff", `{"toolCall":{"functionCalls":[{"name":"no id"}]}}`}
	var frames []*conversationv1.LiveFrame
	for i, f := range broken {
		frames = append(frames, &conversationv1.LiveFrame{ClientIndex: int64(i) + 1, Frame: &conversationv1.LiveFrame_Binary{Binary: []byte(f)}})
	}
	res := ingestOne(t, c, 1, append(frames, textFrame(100, in("Hi")))...)
	if res.GetLastClientIndex() != 100 || !slices.Equal(texts(res.GetMessages()), []string{"Hi"}) {
		t.Errorf("the good one beside the broken: %v", res)
	}
	if got := get(t, c).GetConversation().GetLive().GetUnknownFrames(); got != int64(len(broken)) {
		t.Errorf("%d of %d count as not understood", got, len(broken))
	}
}

// TestTheRecordingThroughTheAPI sends the recording as a client would, in batches with resends, through two servers in turn,
// and compares what comes of it, read by a caller and by a watcher, with what the golden transcript says of the pure rules.
func TestTheRecordingThroughTheAPI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clients := []client{b.client(t, ada), serve(t, b.Bundle).client(t, ada)}
	create(t, clients[0])
	w := watchAfter(t, clients[0], 0)
	w.next(t)

	var batch, last []*conversationv1.LiveFrame
	var version int64
	lines := recording(t)
	for i, line := range lines {
		batch = append(batch, line.frame)
		if len(batch) < 5 && i+1 < len(lines) && lines[i+1].epoch == line.epoch {
			continue
		}
		res := ingestOne(t, clients[i%2], line.epoch, slices.Concat(last, batch)...)
		if int(res.GetSkippedFrames()) != len(last) || res.GetLastClientIndex() != line.frame.GetClientIndex() {
			t.Fatalf("after %d lines: %v", i+1, res)
		}
		version = res.GetMetadata().GetVersion()
		last, batch = batch, nil
		if i+1 < len(lines) && lines[i+1].epoch != line.epoch {
			last = nil
			opened := must(clients[i%2].OpenLive(t.Context(), &conversationv1.OpenLiveRequest{ConversationId: c1}))(t)
			if opened.GetEpoch() != lines[i+1].epoch {
				t.Fatalf("the connection %d has the epoch %d", lines[i+1].epoch, opened.GetEpoch())
			}
		}
	}

	// The watcher has all of it in the end.
	messages, calls := map[int64]*conversationv1.Message{}, map[string]*conversationv1.ToolCall{}
	for seen := int64(0); seen < version; {
		got := w.next(t)
		seen = got.GetMetadata().GetVersion()
		for _, m := range got.GetMessages() {
			messages[m.GetSeq()] = m
		}
		for _, c := range got.GetToolCalls() {
			calls[c.GetCallId()] = c
		}
	}
	read := get(t, clients[1])
	for _, m := range read.GetMessages() {
		same(t, "a message of the watch", messages[m.GetSeq()], m)
	}

	var got strings.Builder
	got.WriteString("# Messages\n")
	for _, m := range read.GetMessages() {
		fmt.Fprintf(&got, "%d %s %s %s: %s (%d tokens, estimated: %t)\n", m.GetSeq(), shortName(m.GetRole()), shortName(m.GetModality()),
			shortName(m.GetStatus()), m.GetText(), m.GetTokenCount(), m.GetTokenCountEstimated())
	}
	got.WriteString("\n# Tool calls\n")
	for _, id := range slices.Sorted(maps.Keys(calls)) {
		c := calls[id]
		fmt.Fprintf(&got, "%s epoch %d %s %s: %s -> %s\n", id, c.GetEpoch(), c.GetName(), shortName(c.GetStatus()), compact(t, c.GetArgs()), compact(t, c.GetResponse()))
	}
	golden := must(os.ReadFile("testdata/gemini-live-session.golden"))(t)
	_, want, _ := strings.Cut(string(golden), "# Messages\n")
	want, state, _ := strings.Cut(want, "\n# State\n")
	if diff := cmp.Diff("# Messages\n"+want, got.String()); diff != "" {
		t.Errorf("(-golden +got):\n%s", diff)
	}
	var counts struct {
		LastSeq    string `json:"last_seq"`
		TokenCount string `json:"token_count"`
	}
	if err := json.Unmarshal([]byte(state), &counts); err != nil {
		t.Fatal(err)
	}
	if c := read.GetConversation(); fmt.Sprint(c.GetMessageCount()) != counts.LastSeq || fmt.Sprint(c.GetTokenCount()) != counts.TokenCount {
		t.Errorf("%d messages of %d tokens, not %s of %s", c.GetMessageCount(), c.GetTokenCount(), counts.LastSeq, counts.TokenCount)
	}
}
