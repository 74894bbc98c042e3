package conversation

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/object"
)

const (
	// DefaultSilence is how long nothing must come until the voice turn is idle by itself.
	DefaultSilence = 30 * time.Second
	// silenceTimer wakes a conversation to look whether it has become silent.
	silenceTimer = "silence"
)

// onTimer is the kind's: see object.KindConfig.
func onTimer(tx *object.Tx[state], name string) error {
	switch name {
	case silenceTimer:
		l := newLive(tx)
		if next := l.silent(); !next.IsZero() {
			tx.SetTimer(silenceTimer, next)
		}
		l.put(tx)
		tx.Emit("voice_checked")
	case framesTimer:
		dropKept(tx)
		tx.Emit("frames_dropped")
	}
	return nil
}

// awaitSilence sets the timer where the voice turn is not idle, or a turn is open, and none is set. Frames do not move it: that would be a write
// for each. It finds out how long it has been silent when it comes.
func awaitSilence(tx *object.Tx[state]) {
	s := tx.State()
	if isSilent(s) || s.GetLive().GetIdleCheckTime() != nil {
		return
	}
	if s.Live == nil {
		s.Live = &storev1.LiveState{}
	}
	at := tx.Now().Add(silence(s))
	s.Live.IdleCheckTime = timestamppb.New(at)
	tx.SetTimer(silenceTimer, at)
}

func silence(s *storev1.ConversationState) time.Duration {
	if d := s.GetLive().GetSilence(); d != nil {
		return d.AsDuration()
	}
	return DefaultSilence
}

// isSilent reports whether nothing is left that silence ends.
func isSilent(s *storev1.ConversationState) bool {
	live := s.GetLive()
	return orIdle(s.GetVoice().GetStatus()) == voiceIdle && live.GetUserTurn() == nil && live.GetAssistantTurn() == nil
}

// silent makes a voice turn idle that has been silent for long enough, ends the turns that are open, and returns when to look again;
// zero: need not. While a tool call of the open connection runs, the user waits for it, and that is no silence.
func (f *folder) silent() time.Time {
	s, now := f.state, f.now.AsTime()
	if isSilent(s) {
		f.live.IdleCheckTime = nil
		return time.Time{}
	}
	last := s.GetVoice().GetChangeTime().AsTime()
	if t := f.live.GetFrameTime(); t != nil && t.AsTime().After(last) {
		last = t.AsTime()
	}
	for _, call := range f.live.GetPendingCalls() {
		if c := call.GetStatus(); c == callPending || c == callRunning {
			last = now
		}
	}
	next := last.Add(silence(s))
	if now.Before(next) {
		f.live.IdleCheckTime = timestamppb.New(next)
		return next
	}
	f.release(false)
	if f.live.GetAssistantTurn() != nil {
		f.endTurn(storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	}
	f.endUtterance()
	f.live.Speaking, f.live.Asking = false, false
	if orIdle(s.GetVoice().GetStatus()) != voiceIdle {
		s.Voice.Status, s.Voice.ChangeTime = voiceIdle, f.now
	}
	f.live.IdleCheckTime = nil
	return time.Time{}
}
