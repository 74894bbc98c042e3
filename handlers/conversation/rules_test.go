package conversation

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	objectv1 "holdfast/gen/holdfast/object/v1"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

func TestEstimateTokens(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"": 0, "a": 1, "abcd": 1, "abcde": 2, "üüüü": 1, "世界世界世": 2, "\U0001f600": 1, "\xff\xfe": 1, strings.Repeat("x", 4001): 1001,
	} {
		if got := estimateTokens(text); got != want {
			t.Errorf("%.10q has %d tokens, want %d", text, got, want)
		}
	}
}

func TestAppendMessage(t *testing.T) {
	t.Parallel()
	now := timestamppb.New(testNow)
	const userRole = conversationv1.Role_ROLE_USER
	parts := []*conversationv1.Part{{Part: &conversationv1.Part_File{File: &conversationv1.FileReference{Uri: "u"}}}}
	whole := func(m *conversationv1.Message) *conversationv1.Message {
		m.Seq, m.Role, m.Status, m.CreateTime, m.UpdateTime = 8, userRole, conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE, now, now
		return m
	}
	tests := []struct {
		name   string
		new    *conversationv1.NewMessage
		want   *conversationv1.Message
		tokens int64
	}{
		{
			"a text", &conversationv1.NewMessage{Role: userRole, Text: "Hello"},
			&conversationv1.Message{Text: "Hello", Modality: conversationv1.Modality_MODALITY_TEXT, TokenCount: 2, TokenCountEstimated: true}, 102,
		},
		{
			"counted", &conversationv1.NewMessage{Role: userRole, Text: "Hello", TokenCount: new(int64(9))},
			&conversationv1.Message{Text: "Hello", Modality: conversationv1.Modality_MODALITY_TEXT, TokenCount: 9}, 109,
		},
		{
			"counted as nothing", &conversationv1.NewMessage{Role: userRole, Text: "Hello", TokenCount: new(int64(0))},
			&conversationv1.Message{Text: "Hello", Modality: conversationv1.Modality_MODALITY_TEXT}, 100,
		},
		{
			"all of it", &conversationv1.NewMessage{
				Role: userRole, Modality: conversationv1.Modality_MODALITY_VOICE, Parts: parts, ClientMessageId: "m-1", Metadata: map[string]string{"a": "b"},
			},
			&conversationv1.Message{
				Modality: conversationv1.Modality_MODALITY_VOICE, Parts: parts, ClientMessageId: "m-1", Metadata: map[string]string{"a": "b"}, TokenCountEstimated: true,
			}, 100,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &conversationv1.ConversationState{LastSeq: 7, TokenCount: 100, Title: "t"}
			same(t, "the message", must(appendMessage(s, tt.new, testNow))(t), whole(tt.want))
			same(t, "the state", s, &conversationv1.ConversationState{LastSeq: 8, TokenCount: tt.tokens, Title: "t"})
		})
	}
}

func TestPatchMessage(t *testing.T) {
	t.Parallel()
	const (
		streaming = conversationv1.MessageStatus_MESSAGE_STATUS_STREAMING
		complete  = conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE
		unset     = conversationv1.MessageStatus_MESSAGE_STATUS_UNSPECIFIED
	)
	then := testNow.Add(-time.Hour)
	old := &conversationv1.Message{
		Seq: 3, Role: conversationv1.Role_ROLE_USER, Modality: conversationv1.Modality_MODALITY_VOICE, Status: streaming, Text: "Hello", TokenCount: 2,
		TokenCountEstimated: true, Metadata: map[string]string{"a": "b"}, ClientMessageId: "m", CreateTime: timestamppb.New(then), UpdateTime: timestamppb.New(then),
	}
	tests := []struct {
		name   string
		mask   []string
		patch  *conversationv1.MessagePatch
		want   func(*conversationv1.Message)
		tokens int64 // of the conversation, which had 50
	}{
		{"a new text", []string{"text"}, &conversationv1.MessagePatch{Text: "Hello, world"}, func(m *conversationv1.Message) { m.Text, m.TokenCount = "Hello, world", 3 }, 51},
		{"the same text", []string{"text"}, &conversationv1.MessagePatch{Text: "Hello"}, func(*conversationv1.Message) {}, 50},
		{"no text", []string{"text"}, &conversationv1.MessagePatch{}, func(m *conversationv1.Message) { m.Text, m.TokenCount = "", 0 }, 48},
		{"a count", []string{"token_count"}, &conversationv1.MessagePatch{TokenCount: new(int64(7))}, func(m *conversationv1.Message) { m.TokenCount, m.TokenCountEstimated = 7, false }, 55},
		{"a text and its count", []string{"text", "token_count"}, &conversationv1.MessagePatch{Text: "x", TokenCount: new(int64(7))}, func(m *conversationv1.Message) { m.Text, m.TokenCount, m.TokenCountEstimated = "x", 7, false }, 55},
		{"a text and no count", []string{"text", "token_count"}, &conversationv1.MessagePatch{Text: "x"}, func(m *conversationv1.Message) { m.Text, m.TokenCount = "x", 1 }, 49},
		{"a count that the mask does not name", []string{"text"}, &conversationv1.MessagePatch{Text: "x", TokenCount: new(int64(7))}, func(m *conversationv1.Message) { m.Text, m.TokenCount = "x", 1 }, 49},
		{"a status", []string{"status"}, &conversationv1.MessagePatch{Status: complete, Text: "ignored"}, func(m *conversationv1.Message) { m.Status = complete }, 50},
		{"no status", []string{"status"}, &conversationv1.MessagePatch{Status: unset}, func(*conversationv1.Message) {}, 50},
		{"no metadata", []string{"metadata"}, &conversationv1.MessagePatch{}, func(m *conversationv1.Message) { m.Metadata = nil }, 50},
		{"no mask", nil, &conversationv1.MessagePatch{Text: "x"}, func(m *conversationv1.Message) { m.Text, m.TokenCount, m.Metadata = "x", 1, nil }, 49},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &conversationv1.ConversationState{LastSeq: 3, TokenCount: 50}
			want := proto.CloneOf(old)
			want.UpdateTime = timestamppb.New(testNow)
			tt.want(want)
			before := proto.CloneOf(old)
			same(t, "the message", must(patchMessage(s, old, tt.patch, &fieldmaskpb.FieldMask{Paths: tt.mask}, testNow))(t), want)
			same(t, "the state", s, &conversationv1.ConversationState{LastSeq: 3, TokenCount: tt.tokens})
			same(t, "the old message, which others share", old, before)
		})
	}
}

// A turn that is still growing is in the reducer's memory too, and what was edited must not come back with the next words.
func TestPatchOfAnOpenTurn(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.send(t, in("Helo"), out("Shure"))
	if s.messages[1].GetText() != "Helo" || s.messages[2].GetText() != "Shure" {
		t.Fatal(s.transcript())
	}
	edit := func(seq int64, p *conversationv1.MessagePatch, mask ...string) {
		s.messages[seq] = must(patchMessage(s.state, s.messages[seq], p, &fieldmaskpb.FieldMask{Paths: mask}, testNow))(t)
	}
	edit(1, &conversationv1.MessagePatch{Text: "Hello"}, "text")
	s.send(t, in(" world"))
	s.check(t)
	if got := s.messages[1].GetText(); got != "Hello world" {
		t.Errorf("after an edit of the user's words: %q", got)
	}
	// An edit that closes the message: later words are a new one.
	edit(2, &conversationv1.MessagePatch{Text: "Sure.", Status: conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE}, "text", "status")
	s.send(t, out(" More."))
	if s.messages[2].GetText() != "Sure." || s.messages[3].GetText() != " More." {
		t.Errorf("after an edit that closed the message: %q", s.transcript())
	}
	// Messages of no open turn leave the reducer alone.
	live := proto.CloneOf(s.state.GetLive())
	edit(2, &conversationv1.MessagePatch{Text: "Yes."}, "text")
	same(t, "the reducer's memory", s.state.GetLive(), live)
}

func TestMaskHas(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		mask *fieldmaskpb.FieldMask
		want string
	}{
		{nil, "a b"},
		{&fieldmaskpb.FieldMask{}, "a b"},
		{&fieldmaskpb.FieldMask{Paths: []string{"a"}}, "a"},
		{&fieldmaskpb.FieldMask{Paths: []string{"b", "a"}}, "a b"},
		{&fieldmaskpb.FieldMask{Paths: []string{"c"}}, ""},
		{&fieldmaskpb.FieldMask{Paths: []string{"a.b", "ab"}}, ""},
	} {
		var got []string
		for _, field := range []string{"a", "b"} {
			if rpc.MaskHas(tt.mask)(field) {
				got = append(got, field)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%v has %q, want %q", tt.mask, got, tt.want)
		}
	}
}

func TestCheckNewMessages(t *testing.T) {
	t.Parallel()
	text, part, empty := &conversationv1.NewMessage{Text: "x"}, &conversationv1.NewMessage{Parts: []*conversationv1.Part{{}}}, &conversationv1.NewMessage{ClientMessageId: "x"}
	for want, messages := range map[string][]*conversationv1.NewMessage{
		"": {text, part}, "messages[0]": {empty}, "messages[2]": {text, part, empty, empty},
	} {
		if field, description := checkNewMessages(messages); field != want || (description == "") != (want == "") {
			t.Errorf("%d messages: %q %q, want %q", len(messages), field, description, want)
		}
	}
}

func TestTerms(t *testing.T) {
	t.Parallel()
	labels := map[string]string{"b": "2", "a": "1", "empty": ""}
	want := []string{"project=p", "label:a=1", "label:b=2", "label:empty="}
	if diff := cmp.Diff(want, terms(&conversationv1.ConversationState{ProjectId: "p", Labels: labels})); diff != "" {
		t.Error(diff)
	}
	if got := filter("", nil); len(got) != 0 {
		t.Errorf("of nothing: %q", got)
	}
	// Whatever one filters by, no two things are one term. A label's key has no =, and a project's id no colon before one.
	seen := map[string]string{}
	for _, s := range []struct {
		project string
		labels  map[string]string
	}{
		{"label:a", nil},
		{"a", nil},
		{"", map[string]string{"a": ""}},
		{"", map[string]string{"a": "="}},
		{"", map[string]string{"project": "a"}},
		{"", map[string]string{"a:b": "c"}},
		{"", map[string]string{"a": "b=c"}},
		{"", map[string]string{"label:a": "c"}},
	} {
		for _, term := range filter(s.project, s.labels) {
			if other, ok := seen[term]; ok {
				t.Errorf("%v and %s are both %q", s, other, term)
			}
			seen[term] = fmt.Sprint(s)
		}
	}
}

func TestUpdateConversationRule(t *testing.T) {
	t.Parallel()
	c := &conversationv1.Conversation{Title: "t", Labels: map[string]string{"a": "b"}, ProjectId: "p", Ttl: durationpb.New(time.Hour), MessageCount: 9}
	set := map[string]func(*conversationv1.ConversationState){
		"title":      func(s *conversationv1.ConversationState) { s.Title = "t" },
		"labels":     func(s *conversationv1.ConversationState) { s.Labels = c.GetLabels() },
		"project_id": func(s *conversationv1.ConversationState) { s.ProjectId = "p" },
		"ttl":        func(s *conversationv1.ConversationState) { s.Ttl = c.GetTtl() },
	}
	old := &conversationv1.ConversationState{Title: "old", Labels: map[string]string{"old": ""}, ProjectId: "old", Ttl: durationpb.New(time.Minute), LastSeq: 4}
	masks := [][]string{nil}
	for path := range set {
		masks = append(masks, []string{path})
	}
	for _, mask := range append(masks, []string{"ttl", "title"}) {
		got, want := proto.CloneOf(old), proto.CloneOf(old)
		updateConversation(got, &conversationv1.UpdateConversationRequest{Conversation: c, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}})
		if len(mask) == 0 {
			mask = slices.Collect(maps.Keys(set))
		}
		for _, path := range mask {
			set[path](want)
		}
		same(t, strings.Join(mask, ","), got, want)
	}
	// What is named and not given is taken away.
	got := proto.CloneOf(old)
	updateConversation(got, &conversationv1.UpdateConversationRequest{Conversation: &conversationv1.Conversation{}})
	same(t, "nothing given", got, &conversationv1.ConversationState{LastSeq: 4})
}

func TestSetVoice(t *testing.T) {
	t.Parallel()
	then, now := timestamppb.New(testNow.Add(-time.Hour)), timestamppb.New(testNow)
	old := &conversationv1.VoiceState{AudioStreamId: "mic-1", Status: voiceListening, LastTranscription: "words", ChangeTime: then}
	for name, tt := range map[string]struct {
		old  *conversationv1.VoiceState
		req  *conversationv1.SetVoiceStateRequest
		want *conversationv1.VoiceState // nil: refused
	}{
		"first":       {nil, &conversationv1.SetVoiceStateRequest{Status: voiceListening, AudioStreamId: "mic-1"}, &conversationv1.VoiceState{Status: voiceListening, AudioStreamId: "mic-1", ChangeTime: now}},
		"moves":       {old, &conversationv1.SetVoiceStateRequest{Status: voiceProcessing}, &conversationv1.VoiceState{Status: voiceProcessing, AudioStreamId: "mic-1", LastTranscription: "words", ChangeTime: now}},
		"stays":       {old, &conversationv1.SetVoiceStateRequest{Status: voiceListening, LastTranscription: "more"}, &conversationv1.VoiceState{Status: voiceListening, AudioStreamId: "mic-1", LastTranscription: "more", ChangeTime: now}},
		"new stream":  {old, &conversationv1.SetVoiceStateRequest{Status: voiceIdle, AudioStreamId: "mic-2"}, &conversationv1.VoiceState{Status: voiceIdle, AudioStreamId: "mic-2", LastTranscription: "words", ChangeTime: now}},
		"not allowed": {old, &conversationv1.SetVoiceStateRequest{Status: voiceResponding, AudioStreamId: "mic-2"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &conversationv1.ConversationState{Voice: proto.CloneOf(tt.old)}
			err := setVoice(s, tt.req, testNow)
			if _, illegal := errors.AsType[illegalTransitionError](err); illegal != (tt.want == nil) || err != nil && !illegal {
				t.Errorf("the error is %v", err)
			}
			if tt.want == nil {
				tt.want = tt.old
			}
			same(t, "voice", s.GetVoice(), tt.want)
		})
	}
}

func TestIntentsAndFlowsAreCounted(t *testing.T) {
	t.Parallel()
	s, now := &conversationv1.ConversationState{}, timestamppb.New(testNow)
	for i := range int64(3) {
		name := fmt.Sprint(i)
		intent := recordIntent(s, &intentReq{Name: name, Confidence: 0.5, MessageSeq: i}, testNow)
		same(t, "an intent", intent, &conversationv1.Intent{Seq: i + 1, Name: name, Confidence: 0.5, MessageSeq: i, CreateTime: now})
		step := advanceFlow(s, &flowReq{Flow: "f", Step: name}, testNow)
		same(t, "a step", step, &conversationv1.FlowStep{Seq: i + 1, Flow: "f", Step: name, CreateTime: now})
		same(t, "the state", s, &conversationv1.ConversationState{IntentCount: i + 1, Intent: intent, FlowStepCount: i + 1, Flow: step})
	}
}

func TestPresent(t *testing.T) {
	t.Parallel()
	// Every field of the state is shown, but for those that only the reducer and the counters need.
	hidden := map[string]bool{"last_seq": true, "intent_count": true, "flow_step_count": true, "summary_count": true, "compaction": true, "issued_before": true}
	fields := (&conversationv1.ConversationState{}).ProtoReflect().Descriptor().Fields()
	shown := (&conversationv1.Conversation{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		name := fields.Get(i).Name()
		if (shown.ByName(name) == nil) != hidden[string(name)] {
			t.Errorf("%s: shown or hidden?", name)
		}
	}
	s := &conversationv1.ConversationState{
		Title: "t", Labels: map[string]string{"a": "b"}, ProjectId: "p", Ttl: durationpb.New(time.Hour), LastSeq: 3, TokenCount: 4,
		Voice: &conversationv1.VoiceState{Status: voiceIdle}, Intent: &conversationv1.Intent{Seq: 1}, Flow: &conversationv1.FlowStep{Seq: 2},
		Floor:   &conversationv1.Floor{Fence: 1, SessionId: "s", ConnectionId: "c"},
		Summary: &conversationv1.Summary{Seq: 1}, Live: &conversationv1.LiveState{Epoch: 2, Device: "phone"}, ToolCallCount: 5,
		FragmentCount: 6, PinnedSeqs: []int64{1},
	}
	got := present(object.Info{ID: "c", Owner: "ada"}, s)
	same(t, "presented", got, &conversationv1.Conversation{
		ConversationId: "c", Owner: "ada", Title: "t", Labels: s.GetLabels(), ProjectId: "p", Ttl: s.GetTtl(), MessageCount: 3, TokenCount: 4,
		Voice: s.GetVoice(), Intent: s.GetIntent(), Flow: s.GetFlow(), Summary: s.GetSummary(),
		Floor: &conversationv1.Floor{Fence: 1, ConnectionId: "c"},
		Live:  &conversationv1.LiveStatus{Epoch: 2, Device: "phone"}, ToolCallCount: 5, FragmentCount: 6, PinnedSeqs: []int64{1},
	})
	for i := range shown.Len() {
		if !got.ProtoReflect().Has(shown.Get(i)) {
			t.Errorf("%s is never set", shown.Get(i).Name())
		}
	}
	info := object.Info{Version: 7, CreateTime: testNow, UpdateTime: testNow.Add(time.Second)}
	want := &objectv1.Metadata{Version: 7, CreateTime: timestamppb.New(testNow), UpdateTime: timestamppb.New(testNow.Add(time.Second))}
	same(t, "metadata of what does not expire", rpc.Metadata(info), want)
	info.ExpireTime, want.ExpireTime = testNow.Add(time.Hour), timestamppb.New(testNow.Add(time.Hour))
	same(t, "metadata of what expires", rpc.Metadata(info), want)
}
