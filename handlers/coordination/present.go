package coordination

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// present is an API as a caller may see it.
func present(
	api string, s *storev1.ApiState, user *storev1.UserBuckets, caller identity.Identity, now time.Time,
) *coordinationv1.Api {
	c := configOf(api, s)
	a := &coordinationv1.Api{
		Api: api, Config: c, ReadyMade: s.GetConfig() == nil && readyMade(api) != nil, Limits: standings(s, user, c, now),
		Breaker: s.GetBreaker(), Today: s.GetToday(), Sync: s.GetSync(), LiveSessions: liveSessions(s, now), LiveCounts: s.GetLiveCounts(),
	}
	if a.GetBreaker() == nil {
		a.Breaker = &storev1.Breaker{}
	}
	if a.GetBreaker().GetStatus() == storev1.BreakerStatus_BREAKER_STATUS_UNSPECIFIED {
		a.Breaker = proto.CloneOf(a.GetBreaker())
		a.Breaker.Status = storev1.BreakerStatus_BREAKER_STATUS_CLOSED
	}
	for _, f := range s.GetInFlight() {
		if now.Before(f.GetExpireTime().AsTime()) {
			a.InFlight++
		}
	}
	for id, l := range s.GetLive() {
		if mayTouch(caller, l.GetOwner()) && now.Before(l.GetExpireTime().AsTime()) {
			if a.Live == nil {
				a.Live = map[string]*storev1.LiveSession{}
			}
			a.Live[id] = l
		}
	}
	if !service(caller) && a.GetLiveCounts().GetLastFailureTime() != nil { // of whosever session
		a.LiveCounts = proto.CloneOf(a.GetLiveCounts())
		a.LiveCounts.LastError, a.LiveCounts.LastErrorUser = "", ""
	}
	if s.GetPauseUntil().AsTime().After(now) {
		a.PauseUntil = s.GetPauseUntil()
	}
	return a
}

// shown is a row as callers may see it: who knows a begin_id gets its lease.
func shown(r row) row {
	if r.GetBeginId() == "" {
		return r
	}
	r = proto.CloneOf(r)
	r.BeginId = ""
	return r
}

func statusWord(r row) string {
	return strings.ToLower(strings.TrimPrefix(r.GetStatus().String(), "REQUEST_STATUS_"))
}

// setMetadata fills in the field metadata, which each reply has.
func setMetadata(r proto.Message, i object.Info) {
	m := r.ProtoReflect()
	if fd := m.Descriptor().Fields().ByName("metadata"); fd != nil {
		m.Set(fd, protoreflect.ValueOfMessage(rpc.Metadata(i).ProtoReflect()))
	}
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
			Message: "this request_id was used for another operation or fingerprint; use a new one for each request",
		}
	case errors.Is(err, errLeaseLost):
		return problem.New(errorv1.Reason_REASON_FENCED, "this lease is over and another has been given for the request; get the request to see how it stands")
	case errors.Is(err, errRequestDone):
		return problem.New(errorv1.Reason_REASON_ILLEGAL_TRANSITION, "it is settled already what became of the request; get it to see how")
	case errors.Is(err, errNoRequest):
		return object.ErrNotFound // in the words for an API that is not there: neither is told from the other
	case errors.Is(err, errTooMany):
		return problem.LimitReached("object", "in_flight", maxInFlight, fmt.Sprintf("%d requests of this API are in flight, the most there may be", maxInFlight), time.Second)
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
	case s.GetUnit() == storev1.Unit_UNIT_COST:
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
