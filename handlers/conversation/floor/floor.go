// Package floor is the rule of who may speak in a conversation. It is pure: the manager of sessions gives the floor to
// connections by it, and the manager of conversations lets the holder in and keeps others out.
//
// The floor has a fence, which rises whenever it goes to another connection, above every epoch that was issued before. So
// all that the last holder sends is older than the fence:
//
//	AcquireFloor ──▶ fence F ──▶ OpenLive ──▶ epoch E ≥ F ──▶ frames of E
//	takeover ──────▶ fence > E: frames of E are refused from now on
package floor

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

// Timer is the conversation's timer that ends the lease of its floor.
const Timer = "floor"

// Held reports whether someone holds the floor.
func Held(f *storev1.Floor, now time.Time) bool {
	return f.GetHeld() && now.Before(f.GetExpireTime().AsTime())
}

// End writes down that the lease is over, so that watchers see it. It reports whether it was.
func End(s *storev1.ConversationState, now time.Time) bool {
	if f := s.GetFloor(); f.GetHeld() && !Held(f, now) {
		f.Held = false
		return true
	}
	return false
}

// Newest is the newest epoch that was issued, by OpenLive or as a fence, or perhaps in an earlier life of the id. Older ones may not
// write.
func Newest(s *storev1.ConversationState) int64 {
	return max(s.GetLive().GetEpoch(), s.GetFloor().GetFence(), s.GetIssuedBefore())
}

// Connection is a connection that wants the floor.
type Connection struct {
	User        identity.User
	Session, ID string
	// Caller is who asks for it.
	Caller identity.Identity
}

func (c Connection) had(f *storev1.Floor) bool {
	return f.GetSessionId() == c.Session && f.GetConnectionId() == c.ID
}

// Acquire gives the floor to a connection until a moment, or lets it keep it. A connection that had it last gets the same
// fence again, so its live connection goes on, unless another was opened without the floor since. free is true where the
// floor of another connection of the same user may be taken.
func Acquire(s *storev1.ConversationState, c Connection, free bool, now, until time.Time) (*storev1.Floor, error) {
	f, live := s.GetFloor(), s.GetLive()
	mine, held := c.had(f), Held(f, now)
	if held && !mine {
		if f.GetUser() != string(c.User) {
			return nil, Refuse(f, "another user holds the floor; only its own user can take it over")
		}
		if !free {
			return nil, Refuse(f, "another connection holds the floor; set takeover to take it")
		}
	}
	key := f.GetKey()
	if c.Caller.Session == "" {
		key = keyOf(c.Caller)
	} else if !held || !mine {
		key = ""
	}
	acquired := timestamppb.New(now)
	if held && mine {
		acquired = f.GetAcquireTime()
	}
	fence := f.GetFence()
	if !mine || live.GetEpoch() > fence && live.GetFence() != fence {
		fence = Newest(s) + 1
	}
	s.Floor = &storev1.Floor{
		Fence: fence, User: string(c.User), SessionId: c.Session, ConnectionId: c.ID, Key: key,
		AcquireTime: acquired, ExpireTime: timestamppb.New(until), Held: true,
	}
	return s.GetFloor(), nil
}

// Release gives the floor back, and reports whether the connection had it.
func Release(s *storev1.ConversationState, c Connection, now time.Time) bool {
	f := s.GetFloor()
	if !Held(f, now) || !c.had(f) {
		return false
	}
	f.Held = false
	return true
}

// MaySpeak reports whether a caller that has the newest epoch may use it, as far as its credential tells: with a session's
// token it must be the holder's session, with a key it must be of the holder's user or of a service.
func MaySpeak(f *storev1.Floor, caller identity.Identity, now time.Time) bool {
	return !Held(f, now) || ofHolder(f, caller)
}

func ofHolder(f *storev1.Floor, caller identity.Identity) bool {
	if caller.Session != "" {
		return caller.Session == f.GetSessionId()
	}
	return caller.Service || string(caller.User) == f.GetUser()
}

// Open decides whether a caller may have a new epoch, and under which fence: 0 is without the floor. The caller may name
// its connection; otherwise its credential must be what the floor was acquired with.
func Open(f *storev1.Floor, caller identity.Identity, connection string, now time.Time) (fence int64, err error) {
	named := connection != "" && connection == f.GetConnectionId()
	if !Held(f, now) {
		if named && ofHolder(f, caller) {
			return f.GetFence(), nil
		}
		return 0, nil
	}
	implied := connection == "" && (caller.Session != "" || f.GetKey() == keyOf(caller))
	if !ofHolder(f, caller) || !named && !implied {
		return 0, Refuse(f, "another connection holds the floor; acquire the floor before you open a live connection")
	}
	return f.GetFence(), nil
}

// keyOf is what a floor keeps of the API key that acquired it.
func keyOf(caller identity.Identity) string {
	if caller.Service {
		return "service"
	}
	return "user"
}

// Refuse is the answer where another holds the floor. It names the holder, but not its session: the id of a session is
// half of a token.
func Refuse(f *storev1.Floor, message string) *problem.Error {
	p := problem.New(errorv1.Reason_REASON_LEASE_HELD, message)
	p.Detail = &errorv1.Held{What: "floor", User: f.GetUser(), ConnectionId: f.GetConnectionId(), ExpireTime: f.GetExpireTime()}
	return p
}
