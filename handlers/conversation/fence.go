package conversation

import (
	"fmt"
	"time"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

// writer is who wants to change a conversation, as far as somebody else may have taken over.
type writer struct {
	// The epoch of its connection to the provider; 0: it has none.
	epoch int64
	// The session whose token it calls with; empty: it calls with something else, and only its epoch counts.
	session string
	now     time.Time
}

// fence refuses a writer that a newer one has replaced, with a fencedError. It is the one place that says who may
// write: every change that comes from a connection asks it first. Who loses the floor is replaced by who gets it, by the
// floor's fence and, as long as that one holds it, by name: an old holder that connects anew is still not the holder.
func fence(s *conversationv1.ConversationState, w writer) error {
	current := newestEpoch(s)
	if w.epoch != 0 && w.epoch < current {
		return fencedError{current: current}
	}
	if f := s.GetFloor(); w.session != "" && floorHeld(f, w.now) && f.GetSessionId() != w.session {
		return fencedError{current: current}
	}
	return nil
}

// newestEpoch is the oldest that may write.
func newestEpoch(s *conversationv1.ConversationState) int64 {
	return max(s.GetLive().GetEpoch(), s.GetFloor().GetFence())
}

// floorHeld tells whether somebody has the floor.
func floorHeld(f *conversationv1.Floor, now time.Time) bool {
	return f.GetHeld() && now.Before(f.GetExpireTime().AsTime())
}

// floorTimer ends the lease of the floor. The manager of sessions sets it, under this name.
const floorTimer = "floor"

// endFloor writes down that the lease is over, so that watchers see it. It tells whether it was.
func endFloor(s *conversationv1.ConversationState, now time.Time) bool {
	if f := s.GetFloor(); f.GetHeld() && !floorHeld(f, now) {
		f.Held = false
		return true
	}
	return false
}

// fencedError is the answer to a connection that a newer one has replaced.
type fencedError struct {
	// The newest epoch.
	current int64
}

func (e fencedError) Error() string {
	return fmt.Sprintf("a newer connection, of epoch %d, has taken over", e.current)
}
