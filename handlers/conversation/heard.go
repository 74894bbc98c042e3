package conversation

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

// spokenPerSecond is how many characters of an answer are spoken in a second, where nobody counted its audio: about 150
// words a minute.
const spokenPerSecond = 15

// truncate notes what the user heard of an assistant's message. The last report counts; it returns false where it says
// what is known. A report may come while the turn is still open: words that come later were not heard.
func truncate(
	s *conversationv1.ConversationState, old *conversationv1.Message, req *conversationv1.TruncateMessageRequest, now time.Time,
) (*conversationv1.Message, bool) {
	m := proto.CloneOf(old)
	turn := s.GetLive().GetAssistantTurn()
	isOpen := turn.GetSeq() == m.GetSeq()
	audio := m.GetAudioMs()
	if isOpen {
		audio = s.GetLive().GetTurnAudioMs()
	}
	var said string
	switch h := req.GetHeard().(type) {
	case *conversationv1.TruncateMessageRequest_HeardText:
		said = commonBeginning(m.GetText(), h.HeardText)
	case *conversationv1.TruncateMessageRequest_PlayedMs:
		said = played(m.GetText(), h.PlayedMs, audio)
	}
	m.HeardText, m.HeardEstimated, m.Status = &said, false, conversationv1.MessageStatus_MESSAGE_STATUS_INTERRUPTED
	if m.GetInterruptTime() == nil {
		m.InterruptTime = timestamppb.New(now)
	}
	if proto.Equal(m, old) {
		return old, false
	}
	m.UpdateTime = timestamppb.New(now)
	if isOpen {
		s.Live.AssistantTurn = proto.CloneOf(m)
	}
	return m, true
}

// commonBeginning is how much of a text begins as heard does, whatever their blanks.
func commonBeginning(text, heard string) string {
	end := 0
	rest := heard
	for pos, r := range text {
		if unicode.IsSpace(r) {
			continue
		}
		rest = strings.TrimLeftFunc(rest, unicode.IsSpace)
		h, size := utf8.DecodeRuneInString(rest)
		if size == 0 || h != r {
			return text[:end]
		}
		rest = rest[size:]
		end = pos + utf8.RuneLen(r)
	}
	return text
}

// played is how much of a text was heard when so much of its audio was played, in whole words: those whose end was not
// heard were not.
func played(text string, ms, audio int64) string {
	count := int64(utf8.RuneCountInString(text))
	if audio <= 0 {
		audio = count * 1000 / spokenPerSecond
	}
	if ms >= audio {
		return text
	}
	heard := []rune(text)[:count*ms/audio]
	rest := []rune(text)[len(heard):]
	if len(rest) > 0 && !unicode.IsSpace(rest[0]) {
		for len(heard) > 0 && !unicode.IsSpace(heard[len(heard)-1]) {
			heard = heard[:len(heard)-1]
		}
	}
	return strings.TrimRightFunc(string(heard), unicode.IsSpace)
}
