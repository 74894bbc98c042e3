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
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/object"
)

func TestAppendMessage(t *testing.T) {
	t.Parallel()
	now := timestamppb.New(testNow)
	const userRole = storev1.Role_ROLE_USER
	parts := []*conversationv1.Part{{Part: &conversationv1.Part_File{File: &conversationv1.FileRef{Uri: "u"}}}}
	data := structOf(t, map[string]any{"a": "b"})
	whole := func(m *storev1.Message) *storev1.Message {
		m.Seq, m.Role, m.Status, m.CreateTime, m.UpdateTime = 8, userRole, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE, now, now
		return m
	}
	tests := []struct {
		name   string
		new    *conversationv1.Message
		want   *storev1.Message
		tokens int64
	}{
		{
			"a text", &conversationv1.Message{Role: conversationv1.Role(userRole), Text: "Hello"},
			&storev1.Message{Text: "Hello", Modality: storev1.Modality_MODALITY_TEXT, TokenCount: 1, TokenCountEstimated: true}, 101,
		},
		{
			"counted", &conversationv1.Message{Role: conversationv1.Role(userRole), Text: "Hello", TokenCount: new(int32(9))},
			&storev1.Message{Text: "Hello", Modality: storev1.Modality_MODALITY_TEXT, TokenCount: 9}, 109,
		},
		{
			"counted as nothing", &conversationv1.Message{Role: conversationv1.Role(userRole), Text: "Hello", TokenCount: new(int32(0))},
			&storev1.Message{Text: "Hello", Modality: storev1.Modality_MODALITY_TEXT}, 100,
		},
		{
			"all of it", &conversationv1.Message{
				Role: conversationv1.Role(userRole), Modality: typev1.Modality_MODALITY_VOICE, Parts: parts, ClientMessageId: "m-1", Metadata: data,
			},
			&storev1.Message{
				Modality: storev1.Modality_MODALITY_VOICE, Parts: storedParts(parts), ClientMessageId: "m-1", Metadata: data, TokenCountEstimated: true,
			}, 100,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &storev1.ConversationState{LastSeq: 7, TokenCount: 100, Title: "t"}
			same(t, "the message", must(appendMessage(s, tt.new, testNow))(t), whole(tt.want))
			same(t, "the state", s, &storev1.ConversationState{LastSeq: 8, TokenCount: tt.tokens, Title: "t"})
		})
	}
}

func TestUpdateMessageRule(t *testing.T) {
	t.Parallel()
	const (
		streaming = storev1.MessageStatus_MESSAGE_STATUS_STREAMING
		complete  = storev1.MessageStatus_MESSAGE_STATUS_COMPLETE
		unset     = storev1.MessageStatus_MESSAGE_STATUS_UNSPECIFIED
	)
	then := testNow.Add(-time.Hour)
	old := &storev1.Message{
		Seq: 3, Role: storev1.Role_ROLE_USER, Modality: storev1.Modality_MODALITY_VOICE, Status: streaming, Text: "Hello", TokenCount: 2,
		TokenCountEstimated: true, Metadata: structOf(t, map[string]any{"a": "b"}), ClientMessageId: "m", CreateTime: timestamppb.New(then), UpdateTime: timestamppb.New(then),
	}
	tests := []struct {
		name   string
		mask   []string
		patch  *conversationv1.Message
		want   func(*storev1.Message)
		tokens int64 // of the conversation, which had 50
	}{
		{"a new text", []string{"text"}, &conversationv1.Message{Text: "Hello, world"}, func(m *storev1.Message) { m.Text, m.TokenCount = "Hello, world", 3 }, 51},
		{"the same text", []string{"text"}, &conversationv1.Message{Text: "Hello"}, func(*storev1.Message) {}, 50},
		{"no text", []string{"text"}, &conversationv1.Message{}, func(m *storev1.Message) { m.Text, m.TokenCount = "", 0 }, 48},
		{"a count", []string{"token_count"}, &conversationv1.Message{TokenCount: new(int32(7))}, func(m *storev1.Message) { m.TokenCount, m.TokenCountEstimated = 7, false }, 55},
		{"a text and its count", []string{"text", "token_count"}, &conversationv1.Message{Text: "x", TokenCount: new(int32(7))}, func(m *storev1.Message) { m.Text, m.TokenCount, m.TokenCountEstimated = "x", 7, false }, 55},
		{"a text and no count", []string{"text", "token_count"}, &conversationv1.Message{Text: "x"}, func(m *storev1.Message) { m.Text, m.TokenCount = "x", 1 }, 49},
		{"a count that the mask does not name", []string{"text"}, &conversationv1.Message{Text: "x", TokenCount: new(int32(7))}, func(m *storev1.Message) { m.Text, m.TokenCount = "x", 1 }, 49},
		{"a status", []string{"status"}, &conversationv1.Message{Status: conversationv1.MessageStatus(complete), Text: "ignored"}, func(m *storev1.Message) { m.Status = complete }, 50},
		{"no status", []string{"status"}, &conversationv1.Message{Status: conversationv1.MessageStatus(unset)}, func(*storev1.Message) {}, 50},
		{"no metadata", []string{"metadata"}, &conversationv1.Message{}, func(m *storev1.Message) { m.Metadata = nil }, 50},
		{"no mask", nil, &conversationv1.Message{Text: "x"}, func(m *storev1.Message) { m.Text, m.TokenCount = "x", 1 }, 49},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &storev1.ConversationState{LastSeq: 3, TokenCount: 50}
			want := proto.CloneOf(old)
			if tt.want(want); !proto.Equal(want, old) {
				want.UpdateTime = timestamppb.New(testNow)
			}
			before := proto.CloneOf(old)
			same(t, "the message", must(updateMessage(s, old, &conversationv1.MessageUpdate{Message: tt.patch, UpdateMask: &fieldmaskpb.FieldMask{Paths: tt.mask}}, testNow))(t), want)
			same(t, "the state", s, &storev1.ConversationState{LastSeq: 3, TokenCount: tt.tokens})
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
		t.Fatal(s.messages)
	}
	edit := func(seq int64, p *conversationv1.Message, mask ...string) {
		s.messages[seq] = must(updateMessage(s.state, s.messages[seq], &conversationv1.MessageUpdate{Message: p, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}}, testNow))(t)
	}
	edit(1, &conversationv1.Message{Text: "Hello"}, "text")
	s.send(t, in(" world"))
	if got := s.messages[1].GetText(); got != "Hello world" {
		t.Errorf("after an edit of the user's words: %q", got)
	}
	// An edit that closes the message: later words are a new one.
	edit(2, &conversationv1.Message{Text: "Sure.", Status: conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE}, "text", "status")
	s.send(t, out(" More."))
	if s.messages[2].GetText() != "Sure." || s.messages[3].GetText() != " More." {
		t.Errorf("after an edit that closed the message: %v", s.messages)
	}
	// Messages of no open turn leave the reducer alone.
	live := proto.CloneOf(s.state.GetLive())
	edit(2, &conversationv1.Message{Text: "Yes."}, "text")
	same(t, "the reducer's memory", s.state.GetLive(), live)
}

func TestCheckNewMessages(t *testing.T) {
	t.Parallel()
	const user = conversationv1.Role_ROLE_USER
	text, part := &conversationv1.Message{Role: user, Text: "x"}, &conversationv1.Message{Role: user, Parts: []*conversationv1.Part{{}}}
	empty, nobodys := &conversationv1.Message{Role: user, ClientMessageId: "x"}, &conversationv1.Message{Text: "x"}
	growing := &conversationv1.Message{Role: user, Status: conversationv1.MessageStatus_MESSAGE_STATUS_STREAMING}
	for want, messages := range map[string][]*conversationv1.Message{
		"": {text, part, growing}, "messages[0]": {empty}, "messages[2]": {text, part, empty, empty}, "messages[1].role": {text, nobodys},
	} {
		if err := checkNewMessages(messages); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want+":") {
			t.Errorf("%d messages: %v, want %q", len(messages), err, want)
		}
	}
}

func TestTerms(t *testing.T) {
	t.Parallel()
	labels := map[string]string{"b": "2", "a": "1", "empty": ""}
	want := []string{"project=p", "label:a=1", "label:b=2", "label:empty="}
	if diff := cmp.Diff(want, terms(&storev1.ConversationState{ProjectId: "p", Labels: labels})); diff != "" {
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
	set := map[string]func(*storev1.ConversationState){
		"title":      func(s *storev1.ConversationState) { s.Title = "t" },
		"labels":     func(s *storev1.ConversationState) { s.Labels = c.GetLabels() },
		"project_id": func(s *storev1.ConversationState) { s.ProjectId = "p" },
		"ttl":        func(s *storev1.ConversationState) { s.Ttl = c.GetTtl() },
	}
	old := &storev1.ConversationState{Title: "old", Labels: map[string]string{"old": ""}, ProjectId: "old", Ttl: durationpb.New(time.Minute), LastSeq: 4}
	masks := [][]string{nil}
	for path := range set {
		masks = append(masks, []string{path})
	}
	for _, mask := range append(masks, []string{"ttl", "title"}) {
		got, want := proto.CloneOf(old), proto.CloneOf(old)
		if err := updateConversation(object.Info{}, got, c, &fieldmaskpb.FieldMask{Paths: mask}); err != nil {
			t.Error(err)
		}
		if len(mask) == 0 {
			mask = slices.Collect(maps.Keys(set))
		}
		for _, path := range mask {
			set[path](want)
		}
		if len(mask) == len(set) { // without a mask labels merge
			want.Labels = map[string]string{"old": "", "a": "b"}
		}
		same(t, strings.Join(mask, ","), got, want)
	}
	// What is named and not given is taken away.
	got := proto.CloneOf(old)
	if err := updateConversation(object.Info{}, got, &conversationv1.Conversation{}, &fieldmaskpb.FieldMask{Paths: []string{"*"}}); err != nil {
		t.Error(err)
	}
	same(t, "nothing given", got, &storev1.ConversationState{LastSeq: 4})
}

func TestSetVoice(t *testing.T) {
	t.Parallel()
	then, now := timestamppb.New(testNow.Add(-time.Hour)), timestamppb.New(testNow)
	old := &storev1.VoiceState{AudioStreamId: "mic-1", Status: voice.Listening, LastTranscription: "words", ChangeTime: then}
	for name, tt := range map[string]struct {
		old  *storev1.VoiceState
		req  *conversationv1.AppendRequest
		want *storev1.VoiceState // nil: refused
	}{
		"first":       {nil, &conversationv1.AppendRequest{Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Listening), AudioStreamId: "mic-1"}}, &storev1.VoiceState{Status: voice.Listening, AudioStreamId: "mic-1", ChangeTime: now}},
		"moves":       {old, &conversationv1.AppendRequest{Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Processing)}}, &storev1.VoiceState{Status: voice.Processing, AudioStreamId: "mic-1", LastTranscription: "words", ChangeTime: now}},
		"stays":       {old, &conversationv1.AppendRequest{Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Listening), LastTranscription: "more"}}, &storev1.VoiceState{Status: voice.Listening, AudioStreamId: "mic-1", LastTranscription: "more", ChangeTime: now}},
		"new stream":  {old, &conversationv1.AppendRequest{Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Idle), AudioStreamId: "mic-2"}}, &storev1.VoiceState{Status: voice.Idle, AudioStreamId: "mic-2", LastTranscription: "words", ChangeTime: now}},
		"not allowed": {old, &conversationv1.AppendRequest{Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus(voice.Responding), AudioStreamId: "mic-2"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &storev1.ConversationState{Voice: proto.CloneOf(tt.old)}
			err := setVoice(s, tt.req.GetVoice(), testNow)
			if _, illegal := errors.AsType[voice.IllegalTransitionError](err); illegal != (tt.want == nil) || err != nil && !illegal {
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
	s, now := &storev1.ConversationState{}, timestamppb.New(testNow)
	for i := range int64(3) {
		name := fmt.Sprint(i)
		intent := recordIntent(s, &conversationv1.Intent{Name: name, Confidence: 0.5, MessageSeq: int32(i)}, testNow)
		same(t, "an intent", intent, &storev1.Intent{Seq: i + 1, Name: name, Confidence: 0.5, MessageSeq: i, CreateTime: now})
		step := advanceFlow(s, &conversationv1.FlowStep{Flow: "f", Step: name}, testNow)
		same(t, "a step", step, &storev1.FlowStep{Seq: i + 1, Flow: "f", Step: name, CreateTime: now})
		same(t, "the state", s, &storev1.ConversationState{IntentCount: i + 1, Intent: intent, FlowStepCount: i + 1, Flow: step})
	}
}

// filled sets every field of a message to something, down to a depth: a conversion that forgets one loses it.
func filled[M proto.Message](m M, depth int) M {
	r := m.ProtoReflect()
	fields := r.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() && r.WhichOneof(o) != nil {
			continue
		}
		switch {
		case f.IsMap():
			if f.MapKey().Kind() == protoreflect.StringKind && f.MapValue().Kind() == protoreflect.StringKind {
				r.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
			}
		case f.Message() != nil && depth == 0:
		case f.Message() != nil && f.Message().FullName() == "google.protobuf.Struct":
			r.Set(f, protoreflect.ValueOfMessage((&structpb.Struct{Fields: map[string]*structpb.Value{"k": structpb.NewStringValue("v")}}).ProtoReflect()))
		case f.Message() != nil && f.Message().FullName() == "google.protobuf.Value":
			r.Set(f, protoreflect.ValueOfMessage(structpb.NewStringValue("v").ProtoReflect()))
		case f.IsList() && f.Message() != nil:
			v := r.Mutable(f).List().AppendMutable()
			filled(v.Message().Interface(), depth-1)
		case f.IsList():
			r.Mutable(f).List().Append(one(f))
		case f.Message() != nil:
			filled(r.Mutable(f).Message().Interface(), depth-1)
		default:
			r.Set(f, one(f))
		}
	}
	return m
}

func one(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(f.Number()))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(f.Number()))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(0.5)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(f.Name()))
	default:
		return protoreflect.ValueOfString(string(f.Name()))
	}
}

// notSet are the fields of a message that are not set, at any depth.
func notSet(m protoreflect.Message, path string, except ...string) (missing []string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := path + string(f.Name())
		switch o := f.ContainingOneof(); {
		case slices.Contains(except, name), o != nil && !o.IsSynthetic() && m.WhichOneof(o) != f:
		case !m.Has(f):
			missing = append(missing, name)
		case f.IsList() && f.Message() != nil:
			missing = append(missing, notSet(m.Get(f).List().Get(0).Message(), name+".", except...)...)
		case f.Message() != nil && !f.IsMap() && f.Message().ParentFile().Package() != "google.protobuf":
			missing = append(missing, notSet(m.Get(f).Message(), name+".", except...)...)
		}
	}
	return missing
}

func TestConversionsForgetNothing(t *testing.T) {
	t.Parallel()
	// What is stored of a message is shown, and what was shown can be stored.
	stored := filled(&storev1.Message{}, 2)
	stored.Meter = nil // no entry has it
	shown := presentMessage(stored)
	if missing := notSet(shown.ProtoReflect(), ""); len(missing) > 0 {
		t.Errorf("not shown: %q", missing)
	}
	back := &storev1.Message{
		Seq: stored.GetSeq(), TokenCount: stored.GetTokenCount(), TokenCountEstimated: stored.GetTokenCountEstimated(), CreateTime: stored.GetCreateTime(),
		UpdateTime: stored.GetUpdateTime(),
	}
	storeMessage(back, shown)
	same(t, "stored again", back, stored)

	// Each sort of part, both ways.
	parts := (&storev1.Part{}).ProtoReflect().Descriptor().Oneofs().Get(0).Fields()
	for i := range parts.Len() {
		part := &storev1.Part{}
		f := parts.Get(i)
		if f.Message() != nil {
			m := part.ProtoReflect().NewField(f)
			part.ProtoReflect().Set(f, m)
			if f.Message().FullName() == "google.protobuf.Value" {
				part.ProtoReflect().Set(f, protoreflect.ValueOfMessage(structpb.NewStringValue("v").ProtoReflect()))
			} else {
				filled(m.Message().Interface(), 2)
			}
		} else {
			part.ProtoReflect().Set(f, one(f))
		}
		filled(part, 2)
		converted := storedParts(presentParts([]*storev1.Part{part}))
		same(t, "part "+string(f.Name()), converted[0], part)
	}

	for name, shown := range map[string]proto.Message{
		"voice": presentVoice(filled(&storev1.VoiceState{}, 2)), "intent": presentIntent(filled(&storev1.Intent{}, 2)),
		"flow step": presentFlowStep(filled(&storev1.FlowStep{}, 2)), "summary": presentSummary(filled(&storev1.Summary{}, 2)),
		"fragment": presentFragment(filled(&storev1.Fragment{}, 2)), "signal": presentSignal(filled(&storev1.LiveSignal{}, 2)),
	} {
		if missing := notSet(shown.ProtoReflect(), ""); len(missing) > 0 {
			t.Errorf("%s: not shown: %q", name, missing)
		}
	}

	// A conversation, of which the state is not all, and what of it an update can change.
	s := filled(&storev1.ConversationState{}, 2)
	i := object.Info{ID: "c", Owner: "ada", Version: 7, CreateTime: testNow, UpdateTime: testNow, ExpireTime: testNow}
	c := present(i, s)
	if missing := notSet(c.ProtoReflect(), "", "live"); len(missing) > 0 || c.GetLive() == nil {
		t.Errorf("not shown: %q", missing)
	}
	if got, want := c.GetMessageCount(), int32(s.GetLastSeq()-s.GetRemovedCount()); got != want {
		t.Errorf("%d messages, want %d", got, want)
	}
	kept := &storev1.ConversationState{}
	store(kept, c)
	if n := 0; true {
		kept.ProtoReflect().Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool { n++; return true })
		if n != len(settable()) {
			t.Errorf("an update stores %d fields of %d", n, len(settable()))
		}
	}
}
