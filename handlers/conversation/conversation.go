package conversation

import (
	"cmp"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/mask"
	"holdfast/object"
)

// The collections of a conversation.
const (
	inMessages       = "messages"        // key: the seq
	inClientMessages = "client_messages" // key: the client_message_id
	inIntents        = "intents"         // key: the seq
	inFlowSteps      = "flow_steps"      // key: the seq
	inToolCalls      = "tool_calls"      // key: the seq
	inCallRefs       = "call_refs"       // key: the live session and the call id
	inFragments      = "fragments"       // key: the seq
	inSummaries      = "summaries"       // key: the seq
	inKeptFrames     = "kept_frames"     // key: the batch's number
)

// terms are what conversations can be listed by.
func terms(s *storev1.ConversationState) []string {
	t := filter(s.GetProjectId(), s.GetLabels())
	if live := s.GetLive(); live.GetLease().GetSessionId() != "" && live.GetCloseTime() == nil {
		t = append(t, liveTerm(live.GetLease().GetUser()))
	}
	return t
}

func filter(projectID string, labels map[string]string) []string {
	var t []string
	if projectID != "" {
		t = append(t, "project="+projectID)
	}
	if len(labels) == 0 { // as a rule
		return t
	}
	for _, k := range sortedKeys(labels) {
		t = append(t, "label:"+k+"="+labels[k])
	}
	return t
}

// messageCount is how many messages are there.
func messageCount(s *storev1.ConversationState) int64 {
	return s.GetLastSeq() - s.GetRemovedCount() - int64(len(voice.Places(s.GetLive())))
}

// updateConversation changes the conversation as an update asks.
func updateConversation(i object.Info, s *storev1.ConversationState, c *conversationv1.Conversation, m *fieldmaskpb.FieldMask) error {
	changed := present(i, s)
	if err := mask.Merge(changed, c, m, settable()...); err != nil {
		return err
	}
	store(s, changed)
	return nil
}

// recordIntent adds an intent to the conversation's history and makes it the newest.
func recordIntent(s *storev1.ConversationState, i *conversationv1.Intent, now time.Time) *storev1.Intent {
	s.IntentCount++
	s.Intent = &storev1.Intent{
		Seq: s.GetIntentCount(), Name: i.GetName(), Confidence: i.GetConfidence(), Slots: i.GetSlots(), MessageSeq: int64(i.GetMessageSeq()),
		CreateTime: timestamppb.New(now),
	}
	return s.GetIntent()
}

// advanceFlow adds a step to the conversation's history and makes it the newest.
func advanceFlow(s *storev1.ConversationState, step *conversationv1.FlowStep, now time.Time) *storev1.FlowStep {
	s.FlowStepCount++
	s.Flow = &storev1.FlowStep{
		Seq: s.GetFlowStepCount(), Flow: step.GetFlow(), Step: step.GetStep(), Data: step.GetData(), CreateTime: timestamppb.New(now),
	}
	return s.GetFlow()
}

// setVoice moves the voice turn, or returns an illegalTransitionError. What is empty in v stays as it was.
func setVoice(s *storev1.ConversationState, v *conversationv1.VoiceState, now time.Time) error {
	old, to := s.GetVoice(), storev1.VoiceStatus(v.GetStatus())
	if to == storev1.VoiceStatus_VOICE_STATUS_UNSPECIFIED {
		to = voice.OrIdle(old.GetStatus())
	}
	if err := voice.Transition(old.GetStatus(), to); err != nil {
		return err
	}
	s.Voice = &storev1.VoiceState{
		AudioStreamId: cmp.Or(v.GetAudioStreamId(), old.GetAudioStreamId()), Status: to,
		LastTranscription: cmp.Or(v.GetLastTranscription(), old.GetLastTranscription()), ChangeTime: timestamppb.New(now),
	}
	return nil
}
