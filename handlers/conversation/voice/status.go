package voice

import (
	"fmt"
	"slices"
	"strings"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// Short names of the statuses of the voice turn.
const (
	Idle       = storev1.VoiceStatus_VOICE_STATUS_IDLE
	Listening  = storev1.VoiceStatus_VOICE_STATUS_LISTENING
	Processing = storev1.VoiceStatus_VOICE_STATUS_PROCESSING
	Responding = storev1.VoiceStatus_VOICE_STATUS_RESPONDING
)

// voiceMoves are the moves that a caller may ask for. To stay is always allowed.
var voiceMoves = map[storev1.VoiceStatus][]storev1.VoiceStatus{
	Idle:       {Listening},
	Listening:  {Processing, Idle},
	Processing: {Responding, Listening, Idle},
	Responding: {Idle, Listening, Processing},
}

// IllegalTransitionError is a move that the voice turn cannot make.
type IllegalTransitionError struct {
	From, To storev1.VoiceStatus
	// The moves that it could make, in a fixed order.
	Allowed []storev1.VoiceStatus
}

func (e IllegalTransitionError) Error() string {
	names := make([]string, len(e.Allowed))
	for i, status := range e.Allowed {
		names[i] = status.String()
	}
	return fmt.Sprintf("the voice turn cannot go from %s to %s, only to %s", e.From, e.To, strings.Join(names, ", "))
}

// Transition reports whether a caller may move the voice turn so; if not, its error is an illegalTransitionError.
// Frames are not asked: they report what happened already, and follow says what they mean.
func Transition(from, to storev1.VoiceStatus) error {
	from, to = OrIdle(from), OrIdle(to)
	if from == to || slices.Contains(voiceMoves[from], to) {
		return nil
	}
	return IllegalTransitionError{From: from, To: to, Allowed: slices.Clone(voiceMoves[from])}
}

// OrIdle reads the status of a conversation in which nobody has spoken.
func OrIdle(status storev1.VoiceStatus) storev1.VoiceStatus {
	if status == storev1.VoiceStatus_VOICE_STATUS_UNSPECIFIED {
		return Idle
	}
	return status
}

// voiceSignal is what a frame tells about the voice turn.
type voiceSignal int

const (
	speechStarted voiceSignal = iota
	speechEnded
	wordsHeard // a transcription of the user, which may be late
	modelSpoke // a piece of the model's turn, which may be late
	modelCalledTools
	modelInterrupted
	modelWaits
	turnOver           // turnComplete, which says no more
	turnOverIdle       // turnComplete: the interaction rests
	turnOverInProgress // turnComplete: the interaction goes on
	modelLost          // the connection of the model's turn is gone
)

// follow is the status after a signal. Transcriptions come in no order with the rest, so they never move the turn
// back: the user's words wake an idle turn and no other, and while the user speaks over the model (spokenOver) what
// still comes from the model changes nothing.
func follow(status storev1.VoiceStatus, signal voiceSignal, spokenOver bool) storev1.VoiceStatus {
	status = OrIdle(status)
	switch signal {
	case speechStarted, modelInterrupted, modelWaits:
		return Listening
	case wordsHeard:
		if status == Idle {
			return Listening
		}
	case speechEnded:
		if status != Responding {
			return Processing
		}
	case modelSpoke:
		if !spokenOver {
			return Responding
		}
	case modelCalledTools:
		if !spokenOver {
			return Processing
		}
	case turnOver:
		if !spokenOver {
			return Idle
		}
	case turnOverIdle:
		return Idle
	case turnOverInProgress:
		return Processing
	case modelLost:
		if status != Listening {
			return Idle
		}
	}
	return status
}
