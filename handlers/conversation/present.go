package conversation

import (
	"math"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// What callers see and send is not what is stored. This file converts one into the other. Structs and times are shared: neither side
// changes them. Enums have the same numbers on both sides.

// small is a number that the API has as an int32.
func small(n int64) int32 {
	return int32(min(n, math.MaxInt32)) //nolint:gosec // bounded
}

// present is a conversation as callers see it.
func present(i object.Info, s *storev1.ConversationState) *conversationv1.Conversation {
	return &conversationv1.Conversation{
		ConversationId: string(i.ID), Owner: string(i.Owner), Version: int64(i.Version),
		CreateTime: rpc.Timestamp(i.CreateTime), UpdateTime: rpc.Timestamp(i.UpdateTime), ExpireTime: rpc.Timestamp(i.ExpireTime),
		Labels: s.GetLabels(), Title: s.GetTitle(), ProjectId: s.GetProjectId(), Ttl: s.GetTtl(), KeepForever: s.GetKeepForever(),
		Metadata: s.GetMetadata(), MessageCount: small(messageCount(s)), LastSeq: small(s.GetLastSeq()), TokenCount: s.GetTokenCount(),
		Voice: presentVoice(s.GetVoice()), Intent: presentIntent(s.GetIntent()), Flow: presentFlowStep(s.GetFlow()),
		Summary: presentSummary(s.GetSummary()), Live: presentLive(s.GetLive()),
	}
}

// settable are the fields of a conversation that an update changes.
func settable() []string {
	return []string{"labels", "title", "project_id", "ttl", "keep_forever", "metadata"}
}

// store takes over what an update changes.
func store(s *storev1.ConversationState, c *conversationv1.Conversation) {
	s.Labels, s.Title, s.ProjectId, s.KeepForever, s.Metadata = c.GetLabels(), c.GetTitle(), c.GetProjectId(), c.GetKeepForever(), c.GetMetadata()
	s.Ttl = nil
	if ttl := c.GetTtl(); ttl.AsDuration() != 0 {
		s.Ttl = durationpb.New(ttl.AsDuration())
	}
}

func presentMessages(entries []object.Entry) []*conversationv1.Message {
	out := make([]*conversationv1.Message, 0, len(entries))
	for _, e := range entries {
		if m, ok := e.Value.(*storev1.Message); ok {
			out = append(out, presentMessage(m))
		}
	}
	return out
}

func presentMessage(m *storev1.Message) *conversationv1.Message {
	return &conversationv1.Message{
		Seq: small(m.GetSeq()), ClientMessageId: m.GetClientMessageId(), Role: conversationv1.Role(m.GetRole()),
		Modality: typev1.Modality(m.GetModality()), Status: conversationv1.MessageStatus(m.GetStatus()), Text: m.GetText(),
		Parts: presentParts(m.GetParts()), TokenCount: new(small(m.GetTokenCount())), TokenCountEstimated: m.GetTokenCountEstimated(),
		Metadata: m.GetMetadata(), CreateTime: m.GetCreateTime(), UpdateTime: m.GetUpdateTime(), Pinned: m.GetPinned(), Hidden: m.GetHidden(),
		Spoken: presentSpoken(m), ThoughtSignature: m.GetThoughtSignature(),
	}
}

// presentAppended is what an append answers of a message: what its caller does not know.
func presentAppended(m *storev1.Message) *conversationv1.Message {
	return &conversationv1.Message{
		Seq: small(m.GetSeq()), ClientMessageId: m.GetClientMessageId(), TokenCount: new(small(m.GetTokenCount())),
		TokenCountEstimated: m.GetTokenCountEstimated(), CreateTime: m.GetCreateTime(),
	}
}

// storeMessage takes over the fields of a message that callers set, except its token count.
func storeMessage(m *storev1.Message, from *conversationv1.Message) {
	m.ClientMessageId, m.Role, m.Modality = from.GetClientMessageId(), storev1.Role(from.GetRole()), storev1.Modality(from.GetModality())
	m.Status, m.Text, m.Parts = storev1.MessageStatus(from.GetStatus()), from.GetText(), storedParts(from.GetParts())
	m.Metadata, m.Pinned, m.Hidden, m.ThoughtSignature = from.GetMetadata(), from.GetPinned(), from.GetHidden(), from.GetThoughtSignature()
	s := from.GetSpoken()
	m.HeardText, m.HeardEstimated, m.AudioMs, m.InterruptTime = nil, s.GetHeardEstimated(), int64(s.GetAudioMs()), s.GetInterruptTime()
	m.TurnCompleteReason, m.Language, m.Speaker = s.GetEndReason(), s.GetLanguage(), s.GetSpeaker()
	m.Sources, m.Usage, m.PlayedMs = s.GetSources(), s.GetUsage(), nil
	m.StartOffset, m.EndOffset = s.GetStartOffset(), s.GetEndOffset()
	if s == nil {
		return
	}
	m.HeardText = s.HeardText
	if s.PlayedMs != nil {
		m.PlayedMs = new(int64(s.GetPlayedMs()))
	}
}

func presentSpoken(m *storev1.Message) *conversationv1.Spoken {
	if m.HeardText == nil && !m.GetHeardEstimated() && m.GetAudioMs() == 0 && m.PlayedMs == nil && m.GetInterruptTime() == nil &&
		m.GetTurnCompleteReason() == "" && m.GetLanguage() == "" && m.GetSpeaker() == "" && m.GetSources() == nil && m.GetUsage() == nil &&
		m.GetStartOffset() == nil && m.GetEndOffset() == nil {
		return nil
	}
	s := &conversationv1.Spoken{
		HeardEstimated: m.GetHeardEstimated(), AudioMs: small(m.GetAudioMs()), InterruptTime: m.GetInterruptTime(),
		EndReason: m.GetTurnCompleteReason(), Language: m.GetLanguage(), Speaker: m.GetSpeaker(), Sources: m.GetSources(), Usage: m.GetUsage(),
		StartOffset: m.GetStartOffset(), EndOffset: m.GetEndOffset(),
	}
	if m.HeardText != nil {
		s.HeardText = new(m.GetHeardText()) // not shared: an update sets it in its place
	}
	if m.PlayedMs != nil {
		s.PlayedMs = new(small(m.GetPlayedMs()))
	}
	return s
}

func presentParts(parts []*storev1.Part) []*conversationv1.Part {
	if len(parts) == 0 { // as a rule
		return nil
	}
	out := make([]*conversationv1.Part, len(parts))
	for i, p := range parts {
		o := &conversationv1.Part{PartId: p.GetPartId(), ThoughtSignature: p.GetThoughtSignature(), Metadata: p.GetMetadata()}
		switch p := p.GetPart().(type) {
		case *storev1.Part_Text:
			o.Part = &conversationv1.Part_Text{Text: p.Text}
		case *storev1.Part_Reasoning:
			o.Part = &conversationv1.Part_Reasoning{Reasoning: p.Reasoning}
		case *storev1.Part_ToolCall:
			o.Part = &conversationv1.Part_ToolCall{ToolCall: &conversationv1.ToolCallPart{
				CallId: p.ToolCall.GetCallId(), Name: p.ToolCall.GetName(), Args: p.ToolCall.GetArgs(), ArgsJson: p.ToolCall.GetArgsJson(),
			}}
		case *storev1.Part_ToolResult:
			o.Part = &conversationv1.Part_ToolResult{ToolResult: &conversationv1.ToolResultPart{
				CallId: p.ToolResult.GetCallId(), Name: p.ToolResult.GetName(), Response: p.ToolResult.GetResponse(),
				ResponseJson: p.ToolResult.GetResponseJson(), IsError: p.ToolResult.GetIsError(),
			}}
		case *storev1.Part_Json:
			o.Part = &conversationv1.Part_Json{Json: p.Json}
		case *storev1.Part_File:
			o.Part = &conversationv1.Part_File{File: &conversationv1.FileRef{
				Uri: p.File.GetUri(), MimeType: p.File.GetMimeType(), Name: p.File.GetName(),
			}}
		case *storev1.Part_Data:
			o.Part = &conversationv1.Part_Data{Data: &conversationv1.Blob{
				Data: p.Data.GetData(), MimeType: p.Data.GetMimeType(), Name: p.Data.GetName(),
			}}
		}
		out[i] = o
	}
	return out
}

func storedParts(parts []*conversationv1.Part) []*storev1.Part {
	if len(parts) == 0 {
		return nil
	}
	out := make([]*storev1.Part, len(parts))
	for i, p := range parts {
		o := &storev1.Part{PartId: p.GetPartId(), ThoughtSignature: p.GetThoughtSignature(), Metadata: p.GetMetadata()}
		switch p := p.GetPart().(type) {
		case *conversationv1.Part_Text:
			o.Part = &storev1.Part_Text{Text: p.Text}
		case *conversationv1.Part_Reasoning:
			o.Part = &storev1.Part_Reasoning{Reasoning: p.Reasoning}
		case *conversationv1.Part_ToolCall:
			o.Part = &storev1.Part_ToolCall{ToolCall: &storev1.ToolCallPart{
				CallId: p.ToolCall.GetCallId(), Name: p.ToolCall.GetName(), Args: p.ToolCall.GetArgs(), ArgsJson: p.ToolCall.GetArgsJson(),
			}}
		case *conversationv1.Part_ToolResult:
			o.Part = &storev1.Part_ToolResult{ToolResult: &storev1.ToolResultPart{
				CallId: p.ToolResult.GetCallId(), Name: p.ToolResult.GetName(), Response: p.ToolResult.GetResponse(),
				ResponseJson: p.ToolResult.GetResponseJson(), IsError: p.ToolResult.GetIsError(),
			}}
		case *conversationv1.Part_Json:
			o.Part = &storev1.Part_Json{Json: p.Json}
		case *conversationv1.Part_File:
			o.Part = &storev1.Part_File{File: &storev1.FileRef{Uri: p.File.GetUri(), MimeType: p.File.GetMimeType(), Name: p.File.GetName()}}
		case *conversationv1.Part_Data:
			o.Part = &storev1.Part_Data{Data: &storev1.Blob{Data: p.Data.GetData(), MimeType: p.Data.GetMimeType(), Name: p.Data.GetName()}}
		}
		out[i] = o
	}
	return out
}

func presentVoice(v *storev1.VoiceState) *conversationv1.VoiceState {
	if v == nil {
		return nil
	}
	return &conversationv1.VoiceState{
		AudioStreamId: v.GetAudioStreamId(), Status: conversationv1.VoiceStatus(v.GetStatus()), LastTranscription: v.GetLastTranscription(),
		ChangeTime: v.GetChangeTime(),
	}
}

func presentIntent(i *storev1.Intent) *conversationv1.Intent {
	if i == nil {
		return nil
	}
	return &conversationv1.Intent{
		Seq: small(i.GetSeq()), Name: i.GetName(), Confidence: i.GetConfidence(), Slots: i.GetSlots(), MessageSeq: small(i.GetMessageSeq()),
		CreateTime: i.GetCreateTime(),
	}
}

func presentFlowStep(s *storev1.FlowStep) *conversationv1.FlowStep {
	if s == nil {
		return nil
	}
	return &conversationv1.FlowStep{Seq: small(s.GetSeq()), Flow: s.GetFlow(), Step: s.GetStep(), Data: s.GetData(), CreateTime: s.GetCreateTime()}
}

func presentSummary(s *storev1.Summary) *conversationv1.Summary {
	if s == nil {
		return nil
	}
	return &conversationv1.Summary{
		Seq: small(s.GetSeq()), FromSeq: small(s.GetFromSeq()), ToSeq: small(s.GetToSeq()), Text: s.GetText(), TokenCount: small(s.GetTokenCount()),
		TokenCountEstimated: s.GetTokenCountEstimated(), CreateTime: s.GetCreateTime(), ReplacedTokenCount: s.GetReplacedTokenCount(),
	}
}

func presentFragment(f *storev1.Fragment) *conversationv1.Fragment {
	return &conversationv1.Fragment{
		Seq: small(f.GetSeq()), FromConnection: small(f.GetEpoch()), FirstClientIndex: small(f.GetFirstClientIndex()), LastClientIndex: small(f.GetLastClientIndex()),
		UserText: f.GetUserText(), AssistantText: f.GetAssistantText(), CreateTime: f.GetCreateTime(),
	}
}

// presentRecord is an entry as a record; nil: it is none.
func presentRecord(v proto.Message) *conversationv1.Record {
	switch v := v.(type) {
	case *storev1.Intent:
		return &conversationv1.Record{Record: &conversationv1.Record_Intent{Intent: presentIntent(v)}}
	case *storev1.FlowStep:
		return &conversationv1.Record{Record: &conversationv1.Record_FlowStep{FlowStep: presentFlowStep(v)}}
	case *storev1.Summary:
		return &conversationv1.Record{Record: &conversationv1.Record_Summary{Summary: presentSummary(v)}}
	case *storev1.Fragment:
		return &conversationv1.Record{Record: &conversationv1.Record_Fragment{Fragment: presentFragment(v)}}
	case *storev1.ToolCall:
		return &conversationv1.Record{Record: &conversationv1.Record_ToolCall{ToolCall: presentCall(v)}}
	}
	return nil
}

func presentSignal(s *storev1.LiveSignal) *watchv1.Signal {
	return &watchv1.Signal{Voice: presentVoice(s.GetVoice()), FromConnection: small(s.GetEpoch()), ClientIndex: small(s.GetClientIndex())}
}
