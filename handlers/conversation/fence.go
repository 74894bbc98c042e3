package conversation

import (
	"fmt"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

// writer is who wants to change a conversation, as far as somebody else may have taken over.
type writer struct {
	// The epoch of its connection to the provider; 0: it has none.
	epoch int64
}

// fence refuses a writer that a newer one has replaced, with a fencedError. It is the one place that says who may
// write: every change that comes from a connection asks it first.
func fence(s *conversationv1.ConversationState, w writer) error {
	if current := s.GetLive().GetEpoch(); w.epoch != 0 && w.epoch < current {
		return fencedError{current: current}
	}
	return nil
}

// fencedError is the answer to a connection that a newer one has replaced.
type fencedError struct {
	// The newest epoch.
	current int64
}

func (e fencedError) Error() string {
	return fmt.Sprintf("a newer connection, of epoch %d, has taken over", e.current)
}
