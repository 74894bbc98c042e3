package conversation

import (
	"fmt"
	"slices"
	"strings"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

const (
	voiceIdle       = storev1.VoiceStatus_VOICE_STATUS_IDLE
	voiceListening  = storev1.VoiceStatus_VOICE_STATUS_LISTENING
	voiceProcessing = storev1.VoiceStatus_VOICE_STATUS_PROCESSING
	voiceResponding = storev1.VoiceStatus_VOICE_STATUS_RESPONDING
)

// voiceMoves are the moves that a caller may ask for. To stay is always allowed.
var voiceMoves = map[storev1.VoiceStatus][]storev1.VoiceStatus{
	voiceIdle:       {voiceListening},
	voiceListening:  {voiceProcessing, voiceIdle},
	voiceProcessing: {voiceResponding, voiceListening, voiceIdle},
	voiceResponding: {voiceIdle, voiceListening, voiceProcessing},
}

// illegalTransitionError is a move that the voice turn cannot make.
type illegalTransitionError struct {
	from, to storev1.VoiceStatus
	// The moves that it could make, in a fixed order.
	allowed []storev1.VoiceStatus
}

func (e illegalTransitionError) Error() string {
	names := make([]string, len(e.allowed))
	for i, status := range e.allowed {
		names[i] = status.String()
	}
	return fmt.Sprintf("the voice turn cannot go from %s to %s, only to %s", e.from, e.to, strings.Join(names, ", "))
}

// transition tells whether a caller may move the voice turn so; if not, its error is an illegalTransitionError.
// Frames are not asked: they report what happened already, and follow says what they mean.
func transition(from, to storev1.VoiceStatus) error {
	from, to = orIdle(from), orIdle(to)
	if from == to || slices.Contains(voiceMoves[from], to) {
		return nil
	}
	return illegalTransitionError{from: from, to: to, allowed: slices.Clone(voiceMoves[from])}
}

// orIdle reads the status of a conversation in which nobody has spoken.
func orIdle(status storev1.VoiceStatus) storev1.VoiceStatus {
	if status == storev1.VoiceStatus_VOICE_STATUS_UNSPECIFIED {
		return voiceIdle
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
	status = orIdle(status)
	switch signal {
	case speechStarted, modelInterrupted, modelWaits:
		return voiceListening
	case wordsHeard:
		if status == voiceIdle {
			return voiceListening
		}
	case speechEnded:
		if status != voiceResponding {
			return voiceProcessing
		}
	case modelSpoke:
		if !spokenOver {
			return voiceResponding
		}
	case modelCalledTools:
		if !spokenOver {
			return voiceProcessing
		}
	case turnOver:
		if !spokenOver {
			return voiceIdle
		}
	case turnOverIdle:
		return voiceIdle
	case turnOverInProgress:
		return voiceProcessing
	case modelLost:
		if status != voiceListening {
			return voiceIdle
		}
	}
	return status
}
