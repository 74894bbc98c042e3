package coordination

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// present is an API as a caller may see it.
func present(i object.Info, s state, user *storev1.UserBuckets, caller identity.Identity, now time.Time) *coordinationv1.Api {
	api := string(i.ID)
	c := configOf(api, s)
	a := &coordinationv1.Api{
		Api: api, Owner: string(i.Owner), Version: int64(i.Version),
		CreateTime: rpc.Timestamp(i.CreateTime), UpdateTime: rpc.Timestamp(i.UpdateTime), ExpireTime: rpc.Timestamp(i.ExpireTime),
		Config: as[*coordinationv1.ApiConfig](c), ReadyMade: s.GetConfig() == nil && readyMade(api) != nil, Limits: standings(s, user, c, now),
		Breaker: shownBreaker(s.GetBreaker()), Today: usageFor(caller, todayOf(s, nil)),
		LiveSessions: liveSessions(s, now), LiveCounts: as[*coordinationv1.LiveCounts](s.GetLiveCounts()),
	}
	for operation, b := range s.GetOperationBreakers() {
		if b.GetGeneration() > 0 || b.GetWindowTime() != nil {
			if a.OperationBreakers == nil {
				a.OperationBreakers = map[string]*coordinationv1.Breaker{}
			}
			a.OperationBreakers[operation] = shownBreaker(b)
		}
	}
	for _, f := range s.GetInFlight() {
		if now.Before(f.GetExpireTime().AsTime()) {
			a.InFlight++
		}
	}
	for id, l := range s.GetLive() {
		if mayTouch(caller, l.GetOwner()) && now.Before(l.GetExpireTime().AsTime()) {
			if a.Live == nil {
				a.Live = map[string]*coordinationv1.LiveSession{}
			}
			a.Live[id] = as[*coordinationv1.LiveSession](l)
		}
	}
	for resource, y := range s.GetSync() {
		if a.Sync == nil {
			a.Sync = map[string]*coordinationv1.SyncState{}
		}
		a.Sync[resource] = as[*coordinationv1.SyncState](y)
	}
	if !service(caller) && a.GetLiveCounts() != nil { // of any session
		a.LiveCounts.LastError, a.LiveCounts.LastErrorUser = "", ""
	}
	if s.GetPauseUntil().AsTime().After(now) {
		a.PauseUntil = s.GetPauseUntil()
	}
	return a
}

func shownBreaker(b *storev1.Breaker) *coordinationv1.Breaker {
	out := &coordinationv1.Breaker{}
	if b != nil {
		out = as[*coordinationv1.Breaker](b)
	}
	if out.GetStatus() == coordinationv1.BreakerStatus_BREAKER_STATUS_UNSPECIFIED {
		out.Status = coordinationv1.BreakerStatus_BREAKER_STATUS_CLOSED
	}
	return out
}

// usageFor is what a caller may see of a day: other users' usage is for services.
func usageFor(caller identity.Identity, d *storev1.UsageDay) *coordinationv1.UsageDay {
	day := as[*coordinationv1.UsageDay](d)
	if day != nil && !service(caller) {
		day.Users = slices.DeleteFunc(day.GetUsers(), func(u *coordinationv1.UserUsage) bool { return u.GetUser() != string(caller.User) })
	}
	return day
}

// shown is a row as callers may see it.
func shown(r row) *coordinationv1.Call {
	c := as[*coordinationv1.Call](r)
	if c != nil {
		c.Lease = leaseOf(r)
	}
	return c
}

// leaseOf is the newest lease of a row.
func leaseOf(r row) *typev1.Lease {
	return &typev1.Lease{FencingToken: r.GetFencingToken(), Holder: r.GetHolder(), ExpireTime: r.GetLeaseExpireTime()}
}

func statusWord(r row) string {
	return strings.ToLower(strings.TrimPrefix(r.GetStatus().String(), "CALL_STATUS_"))
}

// as is a message as one of another type that has the same fields, by rpc.Copy; nil for nil. A test finds what one of them has forgotten.
func as[D proto.Message](m proto.Message) D {
	var none D
	if !m.ProtoReflect().IsValid() {
		return none
	}
	out := none.ProtoReflect().New().Interface().(D) //nolint:forcetypeassert // New made it of D's type
	rpc.Copy(out, m)
	return out
}

// refuse puts a rule's refusal into the caller's words.
func refuse(err error) error {
	var tooMuch tooMuchError
	switch {
	case errors.As(err, &tooMuch):
		return problem.InvalidArgument("permits", fmt.Sprintf("the call takes more than the policy %q ever lets pass at once", string(tooMuch)))
	case errors.Is(err, errReused):
		return &problem.Error{
			Reason:  errorv1.Reason_REASON_REQUEST_ID_REUSED,
			Message: "this key was used for another operation or fingerprint; use a new one for each call",
		}
	case errors.Is(err, errGrantUsed):
		return &problem.Error{
			Reason:  errorv1.Reason_REASON_REQUEST_ID_REUSED,
			Message: "this grant_id was used with other permits or cost; use a new one for each grant",
		}
	case errors.Is(err, errLeaseLost):
		return problem.New(errorv1.Reason_REASON_FENCED, "the fencing token is not that of the call's newest lease; get the call to see how it stands")
	case errors.Is(err, errCallDone):
		return problem.New(errorv1.Reason_REASON_ILLEGAL_TRANSITION, "what became of the call is settled already; get it to see how")
	case errors.Is(err, errNoCall):
		return object.ErrNotFound // in the words for an API that is not there: neither is told from the other
	case errors.Is(err, errTooMany):
		return problem.LimitReached("object", "in_flight", maxInFlight, fmt.Sprintf("%d calls of this API are in flight, the most there may be", maxInFlight), time.Second)
	case errors.Is(err, errFenced):
		return problem.New(errorv1.Reason_REASON_FENCED, "a newer connection of this session has been reported")
	case errors.Is(err, errBackwards):
		return problem.New(errorv1.Reason_REASON_ILLEGAL_TRANSITION, "the high-water mark does not go back; set reset to start over")
	case errors.Is(err, errTooManyLive):
		return problem.LimitReached("object", "live_sessions", maxLive, fmt.Sprintf("%d live sessions are reported, the most there may be", maxLive), time.Second)
	case errors.Is(err, errTooManyResources):
		return problem.LimitReached("object", "resources", maxResources, fmt.Sprintf("%d resources are synced, the most there may be", maxResources), 0)
	}
	return err
}

// writeHeaders says in HTTP what the answer says in fields, as draft-ietf-httpapi-ratelimit-headers has it.
func writeHeaders(ctx context.Context, limits []*coordinationv1.Standing, retryAfter *durationpb.Duration) {
	call, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		return
	}
	h := call.ResponseHeader()
	if len(limits) > 0 {
		policies, standings := make([]string, len(limits)), make([]string, len(limits))
		for i, s := range limits {
			policies[i], standings[i] = policyItem(s), standingItem(s)
		}
		h.Set("Ratelimit-Policy", strings.Join(policies, ", "))
		h.Set("Ratelimit", strings.Join(standings, ", "))
	}
	if retryAfter != nil {
		h.Set("Retry-After", strconv.FormatInt(seconds(retryAfter), 10))
	}
}

// A policy's name needs no escaping. These are written for each acquisition.
func policyItem(s *coordinationv1.Standing) string {
	b := append(append(make([]byte, 0, 64), '"'), s.GetPolicy()...)
	b = strconv.AppendInt(append(b, `";q=`...), s.GetLimit(), 10)
	switch {
	case s.GetWindow() == nil:
		b = append(b, `;qu="concurrent-requests"`...)
	case s.GetUnit() == coordinationv1.Unit_UNIT_COST:
		b = append(b, `;qu="cost"`...) // the draft registers no unit for tokens or points
	}
	if s.GetWindow() != nil {
		b = strconv.AppendInt(append(b, ";w="...), seconds(s.GetWindow()), 10)
	}
	return string(b)
}

func standingItem(s *coordinationv1.Standing) string {
	b := append(append(make([]byte, 0, 64), '"'), s.GetPolicy()...)
	b = strconv.AppendInt(append(b, `";r=`...), s.GetRemaining(), 10)
	return string(strconv.AppendInt(append(b, ";t="...), seconds(s.GetResetAfter()), 10))
}

// seconds are rounded up: who waits so long does not come too early.
func seconds(d *durationpb.Duration) int64 {
	s := d.GetSeconds()
	if d.GetNanos() > 0 {
		s++
	}
	return s
}
