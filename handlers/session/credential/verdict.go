package credential

import (
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	"holdfast/handlers/problem"
)

// Reasons of refusals.
const (
	Invalid      = errorv1.Reason_REASON_CREDENTIAL_INVALID
	TokenExpired = errorv1.Reason_REASON_TOKEN_EXPIRED
	Expired      = errorv1.Reason_REASON_SESSION_EXPIRED
	Revoked      = errorv1.Reason_REASON_SESSION_REVOKED
)

// Decode reads a session as the database has it.
func Decode(stored string) (*storev1.SessionRecord, error) {
	r := &storev1.SessionRecord{}
	return r, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal([]byte(stored), r)
}

// IdleEnd is when the session ends if its user does nothing more.
func IdleEnd(r *storev1.SessionRecord) time.Time {
	return r.GetActiveTime().AsTime().Add(r.GetIdleTimeout().AsDuration())
}

// End is when a session that is not over will be, if its user does nothing more, and why.
func End(r *storev1.SessionRecord) (time.Time, storev1.EndReason) {
	idle, absolute := IdleEnd(r), r.GetExpireTime().AsTime()
	if idle.Before(absolute) {
		return idle, storev1.EndReason_END_REASON_IDLE_TIMEOUT
	}
	return absolute, storev1.EndReason_END_REASON_ABSOLUTE_TIMEOUT
}

// activeStep is how often a session's activity is written at most.
const activeStep = time.Minute

// Stale is when the activity of a session's user has to be written again: seldom, and often enough for the shortest idle
// time-out.
func Stale(r *storev1.SessionRecord) time.Time {
	return r.GetActiveTime().AsTime().Add(min(activeStep, r.GetIdleTimeout().AsDuration()/4))
}

// Ended reports whether and why a session is over at now, whether or not that was written down yet.
func Ended(r *storev1.SessionRecord, now time.Time) (storev1.EndReason, bool) {
	if r.GetEnd() != nil {
		return r.GetEnd().GetReason(), true
	}
	if end, why := End(r); !now.Before(end) {
		return why, true
	}
	return storev1.EndReason_END_REASON_UNSPECIFIED, false
}

// Refusal is what a caller with a token of a session that is over is told.
func Refusal(why storev1.EndReason) *problem.Error {
	switch why {
	case storev1.EndReason_END_REASON_IDLE_TIMEOUT:
		return problem.New(Expired, "the session was idle for too long; sign in again")
	case storev1.EndReason_END_REASON_ABSOLUTE_TIMEOUT:
		return problem.New(Expired, "the session has reached its greatest age; sign in again")
	case storev1.EndReason_END_REASON_REPLACED:
		return problem.New(Revoked, "the user has signed in again on this device, in another session")
	case storev1.EndReason_END_REASON_SIGNED_OUT:
		return problem.New(Revoked, "the user has signed out; sign in again")
	case storev1.EndReason_END_REASON_REUSE_DETECTED:
		return problem.New(Revoked, "a refresh token of the session was used twice, so the session was ended; sign in again")
	case storev1.EndReason_END_REASON_EVICTED:
		return problem.New(Revoked, "a newer session has taken the place of this one; sign in again")
	default:
		return problem.New(Revoked, "the session was revoked; sign in again")
	}
}

// Unknown is what a caller is told whose token is none of the session that it names. It does not say whether there is
// such a session.
func Unknown() *problem.Error {
	return problem.New(Invalid, "the credential was refused: it is no token of a session that this server knows")
}

// Check says whether an access token is good for its session at now, and until when at most. A token that this session
// never issued is Unknown.
func Check(r *storev1.SessionRecord, t Token, now time.Time) (until time.Time, refusal *problem.Error) {
	newest, old := t.Matches(r.GetAccessHash()), t.Matches(r.GetOldAccessHash())
	if t.Class != Access || !newest && !old && !t.Issued(r.GetFamilyKey()) {
		return time.Time{}, Unknown()
	}
	if why, over := Ended(r, now); over {
		return time.Time{}, Refusal(why)
	}
	switch {
	case newest:
		until = r.GetAccessExpireTime().AsTime()
	case old:
		until = r.GetOldAccessExpireTime().AsTime()
	}
	if !now.Before(until) {
		return time.Time{}, problem.New(TokenExpired, "the access token is not good any more; call RefreshSession for a new one")
	}
	if end, _ := End(r); end.Before(until) {
		until = end
	}
	return until, nil
}
