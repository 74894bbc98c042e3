package conversation

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
)

// newLife begins a conversation whose id had one before, which was deleted or has expired. Connections and workers of that have
// epochs and tokens, and must not be taken for those of this one.
//
// A fork counts on from another conversation's numbers. So that a fork which is made again does not give them twice, it begins as many
// later as its earlier lives can have given.
func newLife(s *storev1.ConversationState, issued int64) {
	s.IssuedBefore = issued
	if l := s.GetLive(); l.GetEpoch() != 0 {
		l.Epoch += issued
		l.FencingToken += issued
		l.VoidClaims = l.GetFencingToken()
	}
	if c := s.GetCompaction(); c.GetToken() != 0 {
		c.Token += issued
	}
}

// restored takes from a state that is brought back what must not come back with it. Anyone who was connected since, or had a
// call or a summary in hand, has to begin again: epochs and fencing tokens never run backwards. was is what the
// state replaces; nil: it is a fork, or the conversation was deleted.
func restored(s, was *storev1.ConversationState, now time.Time) {
	s.IssuedBefore = max(s.GetIssuedBefore(), was.GetIssuedBefore())
	// The lease is nobody's any more, but its token is not given twice.
	token := max(s.GetCompaction().GetToken(), was.GetCompaction().GetToken())
	if s.Compaction = nil; token > 0 {
		s.Compaction = &storev1.CompactionLease{Token: token}
	}
	l, old := s.GetLive(), was.GetLive()
	if l == nil && old == nil {
		return
	}
	if l == nil {
		l = &storev1.LiveState{}
		s.Live = l
	}
	// Frames of the last connection that are on their way are fragments, as after any other.
	l.FencedIndexes = maps.Clone(old.GetFencedIndexes())
	if old.GetEpoch() != 0 {
		if l.FencedIndexes == nil {
			l.FencedIndexes = map[int64]int64{}
		}
		l.FencedIndexes[old.GetEpoch()] = old.GetLastClientIndex()
	}
	l.Epoch, l.LastClientIndex = max(l.GetEpoch(), old.GetEpoch())+1, 0
	l.OpenTime, l.Lease = nil, nil // nobody has opened this epoch
	l.Session = max(l.GetSession(), old.GetSession()) + 1
	l.FencingToken = max(l.GetFencingToken(), old.GetFencingToken())
	l.VoidClaims = l.GetFencingToken() // others may have claimed the calls since
	l.HandleCount = max(l.GetHandleCount(), old.GetHandleCount())
	l.Handles, l.ResumedHandleId, l.PendingCalls, l.GoAwayTime = nil, 0, nil, nil
	// A fork that ends earlier gives these seqs to other messages.
	l.SpokenSeq, l.QuestionSeq = 0, 0
	placed := voice.Places(l)
	s.RemovedCount += int64(len(placed))
	for _, turn := range []**storev1.Message{&l.UserTurn, &l.AssistantTurn, &l.LastAnswer} {
		if slices.Contains(placed, (*turn).GetSeq()) {
			*turn = nil
		}
	}
	l.LastAnswer, l.PartialCalls = nil, nil
	l.CloseTime = timestamppb.New(now)
}
