package conversation

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/object"
)

// silenceTimer wakes a conversation to look whether it has become silent.
const silenceTimer = "silence"

// onTimer is the kind's: see object.KindConfig.
func onTimer(tx *object.Tx[state], name string) error {
	switch name {
	case silenceTimer:
		l := newLive(tx)
		if next := l.Silent(); !next.IsZero() {
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
	if voice.IsSilent(s) || s.GetLive().GetIdleCheckTime() != nil {
		return
	}
	if s.Live == nil {
		s.Live = &storev1.LiveState{}
	}
	at := tx.Now().Add(voice.SilenceOf(s))
	s.Live.IdleCheckTime = timestamppb.New(at)
	tx.SetTimer(silenceTimer, at)
}
