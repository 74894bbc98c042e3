package voice

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// DefaultSilence is how long nothing must come until the voice turn is idle by itself.
const DefaultSilence = 30 * time.Second

// SilenceOf is how long nothing must come in a conversation until it is silent.
func SilenceOf(s *storev1.ConversationState) time.Duration {
	if d := s.GetLive().GetSilence(); d != nil {
		return d.AsDuration()
	}
	return DefaultSilence
}

// IsSilent reports whether nothing is left that silence ends.
func IsSilent(s *storev1.ConversationState) bool {
	live := s.GetLive()
	return OrIdle(s.GetVoice().GetStatus()) == Idle && live.GetUserTurn() == nil && live.GetAssistantTurn() == nil
}

// Silent makes a voice turn idle that has been silent for long enough, ends the turns that are open, and returns when to look again;
// zero: need not. While a tool call of the open connection runs, the user waits for it, and that is no silence.
func (f *Reducer) Silent() time.Time {
	s, now := f.state, f.now.AsTime()
	if IsSilent(s) {
		f.live.IdleCheckTime = nil
		return time.Time{}
	}
	last := s.GetVoice().GetChangeTime().AsTime()
	if t := f.live.GetFrameTime(); t != nil && t.AsTime().After(last) {
		last = t.AsTime()
	}
	for _, call := range f.live.GetPendingCalls() {
		if c := call.GetStatus(); c == CallPending || c == CallRunning {
			last = now
		}
	}
	next := last.Add(SilenceOf(s))
	if now.Before(next) {
		f.live.IdleCheckTime = timestamppb.New(next)
		return next
	}
	f.by(Silence)
	f.release(false)
	if f.live.GetAssistantTurn() != nil {
		f.endTurn(storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	}
	f.endUtterance()
	f.live.Speaking, f.live.Asking = false, false
	if OrIdle(s.GetVoice().GetStatus()) != Idle {
		s.Voice.Status, s.Voice.ChangeTime = Idle, f.now
	}
	f.live.IdleCheckTime = nil
	return time.Time{}
}
