package conversation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/problem"
	"holdfast/identity"
	"holdfast/object"
)

// One lease is the right to speak in a conversation: connection, floor and epoch. The epoch is its fencing token:
//
//	ConnectLive ──▶ epoch E, held until E+1 is given, DisconnectLive, or nothing came for leaseTime
//	IngestLive  ──▶ held again, as long as E is the newest
//
// Frames of an older epoch are refused from the transaction on that gives the next.

// leaseTime is how long a connection has the lease without a sign of life.
const leaseTime = 30 * time.Second

// writer is a live connection that wants to change a conversation.
type writer struct {
	epoch  int64
	caller identity.Identity
	now    time.Time
}

// fence refuses a writer that is not the newest connection. It is the one place that decides who may write: every change that
// comes from a live connection asks it first. Only an epoch that was replaced is a fencedError: what such a connection still sends
// is kept as fragments.
func fence(s *storev1.ConversationState, w writer) error {
	if err := issued(s, w.epoch); err != nil {
		return err
	}
	live := s.GetLive()
	switch {
	case ofHolder(live.GetLease(), w.caller):
		return nil
	case held(live, w.now):
		return heldBy(live, "another connection holds the lease; call ConnectLive with take_over to take it")
	default:
		return problem.New(errorv1.Reason_REASON_FENCED,
			fmt.Sprintf("connection %d is not the caller's; call ConnectLive for one of your own", w.epoch))
	}
}

// issued refuses an epoch that is not the newest that a connection was given. That of a restored state is nobody's.
func issued(s *storev1.ConversationState, epoch int64) error {
	live, newest := s.GetLive(), newestEpoch(s)
	switch {
	case 0 < epoch && epoch <= s.GetIssuedBefore():
		// Not a fencedError: words of a conversation that was deleted are not kept in the next of its id.
		return problem.New(errorv1.Reason_REASON_FENCED,
			fmt.Sprintf("connection %d is over: its conversation was deleted; call ConnectLive for this one", epoch))
	case epoch < newest:
		by := "a newer connection"
		if live.GetOpenTime() == nil {
			by = "a restore"
		}
		return fencedError{epoch: epoch, newest: newest, by: by}
	case epoch > newest || live.GetOpenTime() == nil:
		return problem.New(errorv1.Reason_REASON_FENCED,
			fmt.Sprintf("the fencing token %d was never issued, the newest is %d; call ConnectLive for the next", epoch, newest))
	}
	return nil
}

// newestEpoch is the newest epoch that was issued, perhaps in an earlier life of the id.
func newestEpoch(s *storev1.ConversationState) int64 {
	return max(s.GetLive().GetEpoch(), s.GetIssuedBefore())
}

// held reports whether the newest connection has the lease.
func held(live *storev1.LiveState, now time.Time) bool {
	return live.GetCloseTime() == nil && now.Before(live.GetLease().GetExpireTime().AsTime())
}

// ofHolder reports whether a caller may use a lease, as far as its credential tells: with a session's token it must be the holder's
// session, with a key it must be of the holder's user or of a service.
func ofHolder(l *storev1.LiveLease, caller identity.Identity) bool {
	if l.GetSessionId() != "" && caller.Session != "" {
		return caller.Session == l.GetSessionId()
	}
	return ofUser(l, caller)
}

// ofUser reports whether a caller acts for the user who has a lease, or had it last. Services act for everybody.
func ofUser(l *storev1.LiveLease, caller identity.Identity) bool {
	return caller.Service || string(caller.User) == l.GetUser()
}

// mayConnect refuses a caller who may not have the lease now. previous is the connection that it goes on from; 0: none.
func mayConnect(s *storev1.ConversationState, w writer, previous int64, takeOver bool) error {
	live := s.GetLive()
	mine := previous != 0 && previous == live.GetEpoch() && ofHolder(live.GetLease(), w.caller)
	switch {
	case mine || !held(live, w.now):
		return nil
	case !ofUser(live.GetLease(), w.caller):
		return heldBy(live, "another user's connection holds the lease; only its own user can take it over")
	case !takeOver:
		return heldBy(live, "another connection holds the lease; set take_over to take it")
	}
	return nil
}

// heldBy is the answer where another holds the lease. It names the holder, but not its session: the id of a session is half of a
// token.
func heldBy(live *storev1.LiveState, message string) *problem.Error {
	p, l := problem.New(errorv1.Reason_REASON_LEASE_HELD, message), live.GetLease()
	p.Detail = &errorv1.Held{
		What: "floor", User: l.GetUser(), ConnectionId: l.GetConnectionId(), DeviceName: live.GetDevice().GetName(), ExpireTime: l.GetExpireTime(),
	}
	return p
}

// fencedError is the answer to a connection whose epoch was replaced.
type fencedError struct {
	epoch, newest int64
	by            string
}

func (e fencedError) Error() string {
	return fmt.Sprintf("connection %d is over: %s has taken over with connection %d", e.epoch, e.by, e.newest)
}

// renew keeps the lease with the newest connection, unless it was ended, and reports whether it did: where a third of it is over, or
// something else is written as well.
func renew(live *storev1.LiveState, now time.Time, changed bool, sessionEnd time.Time) bool {
	lease := live.GetLease()
	if live.GetCloseTime() != nil || lease == nil {
		return false
	}
	if !changed && lease.GetExpireTime().AsTime().Sub(now) > leaseTime*2/3 {
		return false
	}
	end := leaseEnd(now, sessionEnd)
	if end.AsTime().Equal(lease.GetExpireTime().AsTime()) {
		return false
	}
	lease.ExpireTime = end
	return true
}

// leaseEnd is until when a lease that is taken or renewed lasts: no longer than the caller's session; zero: there is none.
func leaseEnd(now, sessionEnd time.Time) *timestamppb.Timestamp {
	end := now.Add(leaseTime)
	if !sessionEnd.IsZero() && sessionEnd.Before(end) {
		end = sessionEnd
	}
	return timestamppb.New(end)
}

// EndSessions ends the live connections that sessions of a user have. They end in any case when their leases are over.
func (m *Manager) EndSessions(ctx context.Context, user identity.User, sessions []string) error {
	for token := ""; ; {
		page, err := m.kind.List(ctx, object.ListOptions{Terms: []string{liveTerm(string(user))}, PageToken: token})
		if err != nil {
			return err
		}
		for _, s := range page.Items {
			if !slices.Contains(sessions, s.State.GetLive().GetLease().GetSessionId()) {
				continue
			}
			_, err := m.kind.Update(ctx, s.ID, func(tx *object.Tx[state]) error {
				l := newLive(tx)
				if !slices.Contains(sessions, tx.State().GetLive().GetLease().GetSessionId()) || !l.CloseLive(0) {
					tx.Unchanged()
				}
				l.put(tx)
				tx.Emit("live_session_ended")
				return nil
			})
			if err != nil && !errors.Is(err, object.ErrNotFound) {
				return err
			}
		}
		if token = page.Next; token == "" {
			return nil
		}
	}
}

// liveTerm is the term of conversations in which a session of a user has an open connection.
func liveTerm(user string) string { return "live=" + user }
