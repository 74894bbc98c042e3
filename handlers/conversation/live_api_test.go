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
	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/conversation/voice/voicetest"
)

func TestSetVoiceState(t *testing.T) {
	t.Parallel()
	b := setup(t)
	statuses := []storev1.VoiceStatus{voice.Idle, voice.Listening, voice.Processing, voice.Responding}
	// How to come to each status, and where one may go from there.
	tests := map[storev1.VoiceStatus]struct{ path, allowed []storev1.VoiceStatus }{
		voiceUnset:       {nil, []storev1.VoiceStatus{voice.Idle, voice.Listening}},
		voice.Idle:       {[]storev1.VoiceStatus{voice.Idle}, []storev1.VoiceStatus{voice.Idle, voice.Listening}},
		voice.Listening:  {[]storev1.VoiceStatus{voice.Listening}, []storev1.VoiceStatus{voice.Listening, voice.Processing, voice.Idle}},
		voice.Processing: {[]storev1.VoiceStatus{voice.Listening, voice.Processing}, statuses},
		voice.Responding: {[]storev1.VoiceStatus{voice.Listening, voice.Processing, voice.Responding}, statuses},
	}
	for from, tt := range tests {
		for _, to := range statuses {
			t.Run(shortName(from)+" to "+shortName(to), func(t *testing.T) {
				t.Parallel()
				c := b.tenant(t).client(t, ada)
				create(t, c)
				for _, s := range tt.path {
					must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(s)}}))(t)
				}
				before := get(t, c)
				res, err := c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(to), AudioStreamId: "mic-2", LastTranscription: "words"}})
				after := get(t, c)
				if slices.Contains(tt.allowed, to) {
					want := &conversationv1.VoiceState{
						Status: conversationv1.VoiceStatus(to), AudioStreamId: "mic-2", LastTranscription: "words", ChangeTime: after.GetConversation().GetUpdateTime(),
					}
					if err != nil || res.GetVersion() != after.GetConversation().GetVersion() {
						t.Errorf("the reply is %v, %v", res, err)
					}
					same(t, "what was read", after.GetConversation().GetVoice(), want)
					return
				}
				refusal{code: connect.CodeFailedPrecondition, reason: "ILLEGAL_TRANSITION", says: []string{to.String()}}.check(t, err)
				// Each of the statuses that the error names can be had.
				for _, a := range detail[*errorv1.Problem](t, err).GetTransition().GetAllowed() {
					if !slices.Contains(tt.allowed, storev1.VoiceStatus(storev1.VoiceStatus_value[a])) {
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
		must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Listening), AudioStreamId: "mic-1", LastTranscription: "words"}}))(t)
		must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Processing)}}))(t)
		must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Voice: &conversationv1.VoiceState{LastTranscription: "more words"}}))(t)
		if got := get(t, c).GetConversation().GetVoice(); got.GetAudioStreamId() != "mic-1" || got.GetLastTranscription() != "more words" || got.GetStatus() != conversationv1.VoiceStatus(voice.Processing) {
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
	var want []*conversationv1.Record
	for i := range 7 {
		intent := &conversationv1.Intent{Name: fmt.Sprint("intent-", i), Confidence: float64(i) / 7, MessageSeq: int32(i % 2)}
		if i%2 == 0 {
			intent.Slots = slots
		}
		must(c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Intents: []*conversationv1.Intent{intent}}))(t)
		intent.Seq, intent.CreateTime = int32(i)+1, get(t, c).GetConversation().GetUpdateTime()
		want = append(want, &conversationv1.Record{Record: &conversationv1.Record_Intent{Intent: intent}})
	}
	same(t, "the newest", get(t, c).GetConversation().GetIntent(), want[6].GetIntent())
	checkRecords(t, c, want, conversationv1.RecordType_RECORD_TYPE_INTENT)
}

// checkRecords lists the records of types, in either direction and pages of all sizes.
func checkRecords(t *testing.T, c client, want []*conversationv1.Record, types ...conversationv1.RecordType) {
	t.Helper()
	backward := slices.Clone(want)
	slices.Reverse(backward)
	for newestFirst, want := range map[bool][]*conversationv1.Record{false: want, true: backward} {
		for size := range int32(len(want) + 2) {
			var got []*conversationv1.Record
			req := &conversationv1.ListRecordsRequest{ConversationId: c1, PageSize: size, Types: types, NewestFirst: newestFirst}
			for pages := 0; pages <= len(want); pages++ {
				page := must(c.ListRecords(t.Context(), req))(t)
				if size > 0 && len(page.GetRecords()) > int(size) {
					t.Errorf("a page of %d", len(page.GetRecords()))
				}
				got = append(got, page.GetRecords()...)
				if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
					break
				}
			}
			same(t, fmt.Sprintf("pages of %d, newest first: %t", size, newestFirst),
				&conversationv1.ListRecordsResponse{Records: got}, &conversationv1.ListRecordsResponse{Records: want})
		}
	}
}

func TestFlows(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	data := structOf(t, map[string]any{"choices": 3.0})
	var want, all []*conversationv1.Record
	for i := range 5 {
		step := &conversationv1.FlowStep{Flow: "onboarding", Step: fmt.Sprint("step-", i), Data: []*structpb.Struct{data, nil}[i%2]}
		intent := &conversationv1.Intent{Name: fmt.Sprint("intent-", i)}
		must(c.Append(t.Context(), &conversationv1.AppendRequest{
			ConversationId: c1, FlowSteps: []*conversationv1.FlowStep{step}, Intents: []*conversationv1.Intent{intent},
		}))(t)
		now := get(t, c).GetConversation().GetUpdateTime()
		step.Seq, step.CreateTime, intent.Seq, intent.CreateTime = int32(i)+1, now, int32(i)+1, now
		want = append(want, &conversationv1.Record{Record: &conversationv1.Record_FlowStep{FlowStep: step}})
		all = append(all, &conversationv1.Record{Record: &conversationv1.Record_Intent{Intent: intent}}, want[i])
	}
	same(t, "the newest", get(t, c).GetConversation().GetFlow(), want[4].GetFlowStep())
	checkRecords(t, c, want, conversationv1.RecordType_RECORD_TYPE_FLOW_STEP)
	var got []*conversationv1.Record
	req := &conversationv1.ListRecordsRequest{ConversationId: c1, PageSize: 3}
	for {
		page := must(c.ListRecords(t.Context(), req))(t)
		got = append(got, page.GetRecords()...)
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	same(t, "all types, by time", &conversationv1.ListRecordsResponse{Records: got}, &conversationv1.ListRecordsResponse{Records: all})
}

func TestIngestLive(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	openLive(t, c)
	object := structOf(t, map[string]any{"serverContent": map[string]any{"inputTranscription": map[string]any{"text": " world"}}})
	first := ingestOne(t, c, 1,
		&livev1.LiveFrame{ClientIndex: 1, Frame: &livev1.LiveFrame_Binary{Binary: []byte(in("Hello"))}},
		&livev1.LiveFrame{ClientIndex: 2, Frame: &livev1.LiveFrame_Object{Object: object}},
		textFrame(3, `not JSON`),
		textFrame(4, activityEnd+out("Sure.")+call("call-1")),
	)
	if got := first.GetVersion(); got != 3 {
		t.Errorf("a batch is one version; it is %d", got)
	}
	if first.GetStoredThrough() != 4 || first.GetReceivedThrough() != 4 || first.GetVoice().GetStatus() != conversationv1.VoiceStatus(voice.Processing) {
		t.Errorf("the reply is %v", first)
	}
	if diff := cmp.Diff([]string{"Hello world", "Sure."}, texts(first.GetMessages())); diff != "" {
		t.Error(diff)
	}
	if calls := first.GetToolCalls(); len(calls) != 1 || calls[0].GetCallId() != "call-1" || calls[0].GetStatus() != conversationv1.ToolCallStatus_TOOL_CALL_STATUS_PENDING {
		t.Errorf("tool calls are %v", calls)
	}
	read := get(t, c)
	for i, m := range first.GetMessages() {
		same(t, "a message that was read", read.GetMessages()[i], m)
	}
	same(t, "the voice state that was read", read.GetConversation().GetVoice(), first.GetVoice())
	if got := read.GetConversation().GetLive().GetUnknownFrames(); got != 1 || first.GetUnknownFrames() != 1 {
		t.Errorf("%d frames count as not understood, %d of the batch", got, first.GetUnknownFrames())
	}

	// A resend changes nothing, and one that goes on is folded from where it is new.
	again := ingestOne(t, c, 1, textFrame(1, in("Hello")), textFrame(4, out("Sure.")))
	if again.GetStoredThrough() != 4 || again.GetVersion() != 3 || len(again.GetMessages()) != 0 {
		t.Errorf("a resend: %v", again)
	}
	more := ingestOne(t, c, 1, textFrame(4, out("Sure.")), textFrame(5, answer("call-1")), textFrame(6, out(" Done.")), textFrame(7, turnComplete))
	if more.GetStoredThrough() != 7 || more.GetVersion() != 4 || more.GetVoice().GetStatus() != conversationv1.VoiceStatus(voice.Idle) {
		t.Errorf("a resend that goes on: %v", more)
	}
	if calls := more.GetToolCalls(); len(calls) != 1 || calls[0].GetStatus() != conversationv1.ToolCallStatus_TOOL_CALL_STATUS_COMPLETED {
		t.Errorf("tool calls are %v", calls)
	}
	if got := get(t, c).GetMessages(); len(got) != 3 || got[1].GetText() != "Sure." || got[2].GetText() != "Done." || got[1].GetStatus() != conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE {
		t.Errorf("messages are %v", got)
	}

	// A new connection counts from 1 again, and the old ones are shut out.
	for want := int64(2); want <= 3; want++ {
		if got := openLive(t, c); got != want {
			t.Fatalf("the token is %d, not %d", got, want)
		}
	}
	next := ingestOne(t, c, 3, textFrame(1, in("Next")))
	if next.GetStoredThrough() != 1 {
		t.Errorf("the next epoch: %v", next)
	}
	before := get(t, c)
	for _, epoch := range []int32{1, 2} {
		_, err := c.IngestLive(t.Context(), &ingestReq{ConversationId: c1, FencingToken: epoch, Frames: []*livev1.LiveFrame{textFrame(8, in("late"))}})
		refusal{code: connect.CodeFailedPrecondition, reason: "FENCED", says: []string{"connection 3"}}.check(t, err)
	}
	after := get(t, c)
	if diff := cmp.Diff(texts(before.GetMessages()), texts(after.GetMessages())); diff != "" || after.GetConversation().GetLive().GetLease().GetFencingToken() != 3 {
		t.Errorf("after the refusal: %v\n%s", after, diff)
	}
	fragments := records(must(c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_FRAGMENT}}))(t), (*conversationv1.Record).GetFragment)
	if len(fragments) != 2 || fragments[0].GetUserText() != "late" || fragments[0].GetFromConnection() != 1 || fragments[1].GetFromConnection() != 2 {
		t.Errorf("what was refused: %v", fragments)
	}

	// Appended messages and spoken ones are of one conversation.
	if got := say(t, c, "typed"); got.GetMessages()[0].GetSeq() != 5 {
		t.Errorf("appended: %v", got)
	}
}

func TestBrokenFramesAreCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	openLive(t, c)
	broken := []string{``, `{`, `[]`, `null`, `"x"`, `{"serverContent":7}`, "\xff", `{"toolCall":{"functionCalls":[{"name":"no id"}]}}`}
	var frames []*livev1.LiveFrame
	for i, f := range broken {
		frames = append(frames, &livev1.LiveFrame{ClientIndex: int32(i) + 1, Frame: &livev1.LiveFrame_Binary{Binary: []byte(f)}})
	}
	res := ingestOne(t, c, 1, append(frames, textFrame(100, in("Hi")))...)
	if res.GetStoredThrough() != 100 || !slices.Equal(texts(res.GetMessages()), []string{"Hi"}) {
		t.Errorf("the good one beside the broken: %v", res)
	}
	if got := get(t, c).GetConversation().GetLive().GetUnknownFrames(); got != int32(len(broken)) {
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
	openLive(t, clients[0])
	w := watchAfter(t, clients[0], 0)
	w.next(t)

	var batch, last []*livev1.LiveFrame
	var version int64
	lines := voicetest.Recording(t, "../../examples/gemini-live-session.jsonl")
	for i, line := range lines {
		batch = append(batch, line.Frame)
		if len(batch) < 5 && i+1 < len(lines) && lines[i+1].Epoch == line.Epoch {
			continue
		}
		res := ingestOne(t, clients[i%2], line.Epoch, slices.Concat(last, batch)...)
		if res.GetStoredThrough() != line.Frame.GetClientIndex() {
			t.Fatalf("after %d lines: %v", i+1, res)
		}
		version = res.GetVersion()
		last, batch = batch, nil
		if i+1 < len(lines) && lines[i+1].Epoch != line.Epoch {
			last = nil
			if token := openLive(t, clients[i%2]); token != lines[i+1].Epoch {
				t.Fatalf("the connection %d has the token %d", lines[i+1].Epoch, token)
			}
		}
	}

	// The watcher has all of it in the end.
	messages, calls := map[int32]*conversationv1.Message{}, map[string]*conversationv1.ToolCall{}
	for seen := int64(0); seen < version; {
		got := w.next(t)
		seen = got.GetVersion()
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
		fmt.Fprintf(&got, "%s epoch %d %s %s: %s -> %s\n", id, c.GetFromConnection(), c.GetName(), shortName(c.GetStatus()), voicetest.Compact(t, c.GetArgs()), voicetest.Compact(t, c.GetResponse().GetStructValue()))
	}
	golden := must(os.ReadFile("voice/testdata/gemini-live-session.golden"))(t)
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
