package conversation

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/handlers/rpc"
)

// charsPerToken is the usual rule of thumb where no tokenizer counted.
const charsPerToken = 4

// estimateTokens guesses how many tokens a text has: a quarter of its characters, rounded up.
func estimateTokens(text string) int64 {
	return int64((utf8.RuneCountInString(text) + charsPerToken - 1) / charsPerToken)
}

// maxPinned is how many messages are in every context window.
const maxPinned = 64

// errPinned is the answer to one pinned message too many.
var errPinned = errors.New("too many pinned messages")

// pin puts a message into every context window, or takes it out. Those of the role system always are.
func pin(s *conversationv1.ConversationState, m *conversationv1.Message, pinned bool) error {
	m.Pinned = pinned
	i, found := slices.BinarySearch(s.GetPinnedSeqs(), m.GetSeq())
	switch wanted := pinned || m.GetRole() == conversationv1.Role_ROLE_SYSTEM; {
	case wanted == found:
	case !wanted:
		s.PinnedSeqs = slices.Delete(s.GetPinnedSeqs(), i, i+1)
	case len(s.GetPinnedSeqs()) >= maxPinned:
		return errPinned
	default:
		s.PinnedSeqs = slices.Insert(s.GetPinnedSeqs(), i, m.GetSeq())
	}
	return nil
}

// appendMessage gives a message the next seq and makes it part of the conversation's counts. It may return errPinned.
func appendMessage(
	s *conversationv1.ConversationState, n *conversationv1.NewMessage, now time.Time,
) (*conversationv1.Message, error) {
	s.LastSeq++
	stamp := timestamppb.New(now)
	m := &conversationv1.Message{
		Seq: s.GetLastSeq(), Role: n.GetRole(), Modality: n.GetModality(), Status: conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE,
		Text: n.GetText(), Parts: n.GetParts(), ClientMessageId: n.GetClientMessageId(), Metadata: n.GetMetadata(),
		CreateTime: stamp, UpdateTime: stamp,
	}
	if m.GetModality() == conversationv1.Modality_MODALITY_UNSPECIFIED {
		m.Modality = conversationv1.Modality_MODALITY_TEXT
	}
	countTokens(s, m, n.TokenCount)
	return m, pin(s, m, n.GetPinned())
}

// patchMessage returns the message with the fields that the mask names taken from the patch, and keeps the
// conversation's counts right. No mask names them all. It may return errPinned.
func patchMessage(
	s *conversationv1.ConversationState, old *conversationv1.Message, p *conversationv1.MessagePatch,
	mask *fieldmaskpb.FieldMask, now time.Time,
) (*conversationv1.Message, error) {
	m := proto.CloneOf(old)
	m.UpdateTime = timestamppb.New(now)
	has := rpc.MaskHas(mask)
	if has("text") {
		m.Text = p.GetText()
	}
	if has("parts") {
		m.Parts = p.GetParts()
	}
	if has("status") && p.GetStatus() != conversationv1.MessageStatus_MESSAGE_STATUS_UNSPECIFIED {
		m.Status = p.GetStatus()
	}
	if has("metadata") {
		m.Metadata = p.GetMetadata()
	}
	if has("pinned") && p.Pinned != nil {
		if err := pin(s, m, p.GetPinned()); err != nil {
			return nil, err
		}
	}
	switch {
	case has("token_count") && p.TokenCount != nil:
		countTokens(s, m, p.TokenCount)
	case has("text") && m.GetText() != old.GetText():
		countTokens(s, m, nil)
	}
	patchTurn(s.GetLive(), m)
	return m, nil
}

// patchTurn keeps the reducer's copy of a turn that is still growing in step with a message that was edited: the next
// transcription extends the edited text, or nothing where the edit closed the message.
func patchTurn(live *conversationv1.LiveState, m *conversationv1.Message) {
	if live == nil {
		return
	}
	for _, turn := range []**conversationv1.Message{&live.UserTurn, &live.AssistantTurn} {
		if *turn == nil || (*turn).GetSeq() != m.GetSeq() {
			continue
		}
		*turn = nil
		if m.GetStatus() == conversationv1.MessageStatus_MESSAGE_STATUS_STREAMING {
			*turn = proto.CloneOf(m)
		}
	}
}

// countTokens sets the message's count, estimated where none is given, and brings the conversation's sum up to date.
func countTokens(s *conversationv1.ConversationState, m *conversationv1.Message, given *int64) {
	s.TokenCount -= m.GetTokenCount()
	if m.TokenCountEstimated = given == nil; given == nil {
		m.TokenCount = estimateTokens(m.GetText())
	} else {
		m.TokenCount = *given
	}
	s.TokenCount += m.GetTokenCount()
}

// checkNewMessages refuses messages that say nothing.
func checkNewMessages(messages []*conversationv1.NewMessage) (field, description string) {
	for i, m := range messages {
		if m.GetText() == "" && len(m.GetParts()) == 0 {
			return fmt.Sprintf("messages[%d]", i), "a message needs text or parts"
		}
	}
	return "", ""
}
