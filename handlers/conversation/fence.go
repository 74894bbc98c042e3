package conversation

import (
	"fmt"
	"time"

	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/floor"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

// writer is a live connection that wants to change a conversation.
type writer struct {
	epoch  int64
	caller identity.Identity
	now    time.Time
}

// fence refuses a writer that is not the newest connection, or does not have the floor that another holds. It is the one
// place that decides who may write: every change that comes from a live connection asks it first. Only an epoch that was
// replaced is a fencedError: what such a connection still sends is kept as fragments.
func fence(s *storev1.ConversationState, w writer) error {
	newest := floor.Newest(s)
	if 0 < w.epoch && w.epoch <= s.GetIssuedBefore() {
		// Not a fencedError: words of a conversation that was deleted are not kept in the next of its id.
		return problem.New(errorv1.Reason_REASON_FENCED,
			fmt.Sprintf("epoch %d is over: its conversation was deleted; call OpenLive for an epoch of this one", w.epoch))
	}
	if w.epoch < newest {
		return fencedError{epoch: w.epoch, newest: newest, by: replacement(s)}
	}
	if f := s.GetFloor(); !floor.MaySpeak(f, w.caller, w.now) {
		return floor.Refuse(f, "another connection holds the floor; acquire the floor before you send frames")
	}
	if !issued(s, w.epoch) {
		return epochUnknown(w.epoch, newest)
	}
	return nil
}

// issued reports whether someone was given an epoch that is not older than the newest. A client whose conversation never
// had a connection may begin with the first epoch by itself; the epoch of a restored state is nobody's.
func issued(s *storev1.ConversationState, epoch int64) bool {
	live := s.GetLive()
	return epoch == max(floor.Newest(s), 1) && (epoch != live.GetEpoch() || live.GetOpenTime() != nil)
}

func epochUnknown(epoch, newest int64) error {
	return problem.New(errorv1.Reason_REASON_FENCED,
		fmt.Sprintf("epoch %d was never issued, the newest is epoch %d; call OpenLive for the next", epoch, newest))
}

// replacement is what has the newest epoch.
func replacement(s *storev1.ConversationState) string {
	switch live := s.GetLive(); {
	case s.GetFloor().GetFence() > live.GetEpoch():
		return "a new holder of the floor"
	case live.GetOpenTime() == nil:
		return "a restore"
	default:
		return "a newer connection"
	}
}

// fencedError is the answer to a connection whose epoch was replaced.
type fencedError struct {
	epoch, newest int64
	by            string
}

func (e fencedError) Error() string {
	return fmt.Sprintf("epoch %d is over: %s has taken over with epoch %d", e.epoch, e.by, e.newest)
}
