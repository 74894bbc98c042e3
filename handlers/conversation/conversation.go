package conversation

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/handlers/rpc"
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
func terms(s *conversationv1.ConversationState) []string {
	return filter(s.GetProjectId(), s.GetLabels())
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

// updateConversation sets the fields that the mask names.
func updateConversation(s *conversationv1.ConversationState, req *conversationv1.UpdateConversationRequest) {
	has, c := rpc.MaskHas(req.GetUpdateMask()), req.GetConversation()
	if has("title") {
		s.Title = c.GetTitle()
	}
	if has("labels") {
		s.Labels = c.GetLabels()
	}
	if has("project_id") {
		s.ProjectId = c.GetProjectId()
	}
	if has("ttl") {
		s.Ttl = c.GetTtl()
	}
}

// recordIntent adds an intent to the conversation's history and makes it the newest.
func recordIntent(s *conversationv1.ConversationState, req *conversationv1.RecordIntentRequest, now time.Time) *conversationv1.Intent {
	s.IntentCount++
	s.Intent = &conversationv1.Intent{
		Seq: s.GetIntentCount(), Name: req.GetName(), Confidence: req.GetConfidence(), Slots: req.GetSlots(),
		MessageSeq: req.GetMessageSeq(), CreateTime: timestamppb.New(now),
	}
	return s.GetIntent()
}

// advanceFlow adds a step to the conversation's history and makes it the newest.
func advanceFlow(s *conversationv1.ConversationState, req *conversationv1.AdvanceFlowRequest, now time.Time) *conversationv1.FlowStep {
	s.FlowStepCount++
	s.Flow = &conversationv1.FlowStep{
		Seq: s.GetFlowStepCount(), Flow: req.GetFlow(), Step: req.GetStep(), Data: req.GetData(), CreateTime: timestamppb.New(now),
	}
	return s.GetFlow()
}

// setVoice moves the voice turn, or returns an illegalTransitionError.
func setVoice(s *conversationv1.ConversationState, req *conversationv1.SetVoiceStateRequest, now time.Time) error {
	if err := transition(s.GetVoice().GetStatus(), req.GetStatus()); err != nil {
		return err
	}
	old := s.GetVoice()
	s.Voice = &conversationv1.VoiceState{
		AudioStreamId: req.GetAudioStreamId(), Status: req.GetStatus(), LastTranscription: req.GetLastTranscription(),
		ChangeTime: timestamppb.New(now),
	}
	if s.GetVoice().GetAudioStreamId() == "" {
		s.Voice.AudioStreamId = old.GetAudioStreamId()
	}
	if s.GetVoice().GetLastTranscription() == "" {
		s.Voice.LastTranscription = old.GetLastTranscription()
	}
	return nil
}

// present is a conversation as callers see it.
func present(i object.Info, s *conversationv1.ConversationState) *conversationv1.Conversation {
	return &conversationv1.Conversation{
		ConversationId: string(i.ID), Owner: string(i.Owner), Title: s.GetTitle(), Labels: s.GetLabels(),
		ProjectId: s.GetProjectId(), Ttl: s.GetTtl(), MessageCount: s.GetLastSeq(), TokenCount: s.GetTokenCount(),
		Voice: s.GetVoice(), Intent: s.GetIntent(), Flow: s.GetFlow(), Summary: s.GetSummary(), Floor: shownFloor(s.GetFloor()),
		Live: presentLive(s.GetLive()), ToolCallCount: s.GetToolCallCount(), FragmentCount: s.GetFragmentCount(),
		PinnedSeqs: s.GetPinnedSeqs(),
	}
}

// shownFloor is the floor without the holder's credential: a session's id is the first half of a token.
func shownFloor(f *conversationv1.Floor) *conversationv1.Floor {
	if f == nil {
		return nil
	}
	f = proto.CloneOf(f)
	f.SessionId, f.Key = "", ""
	return f
}
