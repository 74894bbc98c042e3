package conversation

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/mask"
	"holdfast/handlers/problem"
)

// maxPinned is how many messages are in every context window.
const maxPinned = 64

// errPinned is the answer to one pinned message too many.
var errPinned = errors.New("too many pinned messages")

// pin puts a message into every context window, or takes it out. Those of the role system always are, and hidden ones never.
func pin(s *storev1.ConversationState, m *storev1.Message) error {
	i, found := slices.BinarySearch(s.GetPinnedSeqs(), m.GetSeq())
	switch wanted := (m.GetPinned() || m.GetRole() == storev1.Role_ROLE_SYSTEM) && !m.GetHidden(); {
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
func appendMessage(s *storev1.ConversationState, n *conversationv1.Message, now time.Time) (*storev1.Message, error) {
	s.LastSeq++
	stamp := timestamppb.New(now)
	m := &storev1.Message{Seq: s.GetLastSeq(), CreateTime: stamp, UpdateTime: stamp}
	storeMessage(m, n)
	m.Modality = cmp.Or(m.GetModality(), storev1.Modality_MODALITY_TEXT)
	m.Status = cmp.Or(m.GetStatus(), storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	countTokens(s, m, countOf(n))
	return m, pin(s, m)
}

// countOf is the token count that a caller gives; nil: the server estimates it.
func countOf(m *conversationv1.Message) *int32 {
	if m.GetTokenCountEstimated() {
		return nil
	}
	return m.TokenCount
}

// changeable are the fields of a message that an update changes.
func changeable() []string {
	return []string{"role", "modality", "status", "text", "parts", "token_count", "metadata", "pinned", "hidden", "spoken"}
}

// errNotSpoken is the answer to a report that a message was heard which is not the assistant's.
var errNotSpoken = errors.New("is not a message of the assistant; only what the assistant says is heard or not")

// updateMessage returns the message as an update makes it, which is old where that changes nothing, and keeps the conversation's counts right. It may return errPinned,
// errNotSpoken, or a problem with the mask.
func updateMessage(
	s *storev1.ConversationState, old *storev1.Message, u *conversationv1.MessageUpdate, now time.Time,
) (*storev1.Message, error) {
	from, to := u.GetMessage(), presentMessage(old)
	if err := mask.Merge(to, from, u.GetUpdateMask(), changeable()...); err != nil {
		return nil, err
	}
	switch {
	case to.GetText() == "" || len(to.GetParts()) == 0:
	case from.GetText() != "":
		to.Parts = nil
	default:
		to.Text = ""
	}
	m := &storev1.Message{Seq: old.GetSeq(), CreateTime: old.GetCreateTime(), TokenCount: old.GetTokenCount(), TokenCountEstimated: old.GetTokenCountEstimated()}
	storeMessage(m, to)
	m.Role, m.Modality, m.Status = cmp.Or(m.GetRole(), old.GetRole()), cmp.Or(m.GetModality(), old.GetModality()), cmp.Or(m.GetStatus(), old.GetStatus())
	given, paths := countOf(from), u.GetUpdateMask().GetPaths()
	counted := len(paths) == 0 && given != nil || slices.ContainsFunc(paths, func(p string) bool { return p == "*" || p == "token_count" || p == "tokenCount" })
	if counted || m.GetText() != old.GetText() || !slices.EqualFunc(m.GetParts(), old.GetParts(), func(a, b *storev1.Part) bool { return proto.Equal(a, b) }) {
		if !counted {
			given = nil
		}
		countTokens(s, m, given)
	}
	reported, err := reportHeard(s, m, old, from.GetSpoken(), now)
	if err != nil {
		return nil, err
	}
	if err := pin(s, m); err != nil {
		return nil, err
	}
	if m.UpdateTime = old.GetUpdateTime(); proto.Equal(m, old) {
		m = old
	} else {
		m.UpdateTime = timestamppb.New(now)
	}
	switch {
	case reported && s.GetLive().GetAssistantTurn().GetSeq() == m.GetSeq():
		s.Live.AssistantTurn = proto.CloneOf(m) // it goes on, whatever its status
	case m != old:
		voice.Edited(s.GetLive(), m)
	}
	return m, nil
}

// reportHeard works out what an update that says what was heard of a message means for it. It returns false for one that says nothing
// of it, or nothing new.
func reportHeard(s *storev1.ConversationState, m, old *storev1.Message, said *conversationv1.Spoken, now time.Time) (bool, error) {
	heard, playedMs := m.HeardText, m.PlayedMs
	switch {
	case heard != nil && (old.HeardText == nil || *heard != old.GetHeardText() || old.GetHeardEstimated() && !said.GetHeardEstimated() && said.GetHeardText() == *heard):
		playedMs = nil
	case playedMs != nil && (old.PlayedMs == nil || *playedMs != old.GetPlayedMs()):
		heard = nil
	default:
		return false, nil
	}
	if m.GetRole() != storev1.Role_ROLE_ASSISTANT {
		return false, errNotSpoken
	}
	voice.Heard(s, m, heard, playedMs, now)
	return true, nil
}

// countTokens sets the message's count, estimated where none is given, and brings the conversation's sum up to date.
func countTokens(s *storev1.ConversationState, m *storev1.Message, given *int32) {
	s.TokenCount -= m.GetTokenCount()
	if m.TokenCountEstimated = given == nil; given == nil {
		m.TokenCount = gemini.MessageTokens(m)
	} else {
		m.TokenCount = int64(*given)
	}
	s.TokenCount += m.GetTokenCount()
}

// checkNewMessages refuses messages that nobody says, or that say nothing.
func checkNewMessages(messages []*conversationv1.Message) error {
	for i, m := range messages {
		field := fmt.Sprintf("messages[%d]", i)
		switch {
		case m.GetRole() == conversationv1.Role_ROLE_UNSPECIFIED:
			return problem.InvalidArgument(field+".role", "must be set")
		case m.GetText() == "" && len(m.GetParts()) == 0 && m.GetStatus() != conversationv1.MessageStatus_MESSAGE_STATUS_STREAMING:
			return problem.InvalidArgument(field, "a message needs text or parts, unless it is still streaming")
		}
	}
	return nil
}
