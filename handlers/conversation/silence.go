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
		if next := silent(tx.State(), tx.Now()); !next.IsZero() {
			tx.SetTimer(silenceTimer, next)
		}
		tx.Emit("voice_checked")
	case framesTimer:
		dropKept(tx)
		tx.Emit("frames_dropped")
	}
	return nil
}

// awaitSilence sets the timer where the voice turn is not idle and none is set. Frames do not move it: that would be a write
// for each. It finds out how long it has been silent when it comes.
func awaitSilence(tx *object.Tx[state]) {
	s := tx.State()
	if orIdle(s.GetVoice().GetStatus()) == voiceIdle || s.GetLive().GetIdleCheckTime() != nil {
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

// silent makes a voice turn idle that has been silent for long enough, and says when to look again; zero: need not. While a
// tool call of the open connection runs, the user waits for it, and that is no silence.
func silent(s *storev1.ConversationState, now time.Time) time.Time {
	if s.Live == nil || orIdle(s.GetVoice().GetStatus()) == voiceIdle {
		if s.Live != nil {
			s.Live.IdleCheckTime = nil
		}
		return time.Time{}
	}
	last := s.GetVoice().GetChangeTime().AsTime()
	if t := s.GetLive().GetFrameTime(); t != nil && t.AsTime().After(last) {
		last = t.AsTime()
	}
	if s.GetVoice().GetStatus() == voiceProcessing {
		for _, call := range s.GetLive().GetPendingCalls() {
			if c := call.GetStatus(); c == callPending || c == callRunning {
				last = now
			}
		}
	}
	next := last.Add(silence(s))
	if now.Before(next) {
		s.Live.IdleCheckTime = timestamppb.New(next)
		return next
	}
	s.Voice.Status, s.Voice.ChangeTime = voiceIdle, timestamppb.New(now)
	s.Live.IdleCheckTime = nil
	return time.Time{}
}
