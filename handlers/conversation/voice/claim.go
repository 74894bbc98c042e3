package voice

import (
	"cmp"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

// DefaultToolLease is how long a claim lasts where the worker does not say.
const DefaultToolLease = 30 * time.Second

// CallError is why a worker cannot have, or complete, a call.
type CallError struct {
	// status is why not; claimed: another has it until then.
	Status  storev1.ToolCallStatus
	Claimed time.Time
	Stale   bool
	// answered: it has another response, which stays.
	Answered bool
}

func (e CallError) Error() string {
	switch {
	case e.Stale:
		return "the fencing token is not that of the tool call's newest claim"
	case !e.Claimed.IsZero():
		return "another worker has the tool call"
	case e.Answered:
		return "the tool call has another response already, which stays"
	default:
		return "the tool call is " + strings.ToLower(strings.TrimPrefix(e.Status.String(), "TOOL_CALL_STATUS_"))
	}
}

// ClaimCall gives a call to a worker, or is a callError. entry is the call as it is stored.
func (f *Reducer) ClaimCall(entry *storev1.ToolCall, req *livev1.ClaimToolCallRequest) (*storev1.ToolCall, error) {
	call := f.mine(entry)
	switch call.GetStatus() {
	case CallCompleted, CallCancelled:
		return nil, CallError{Status: call.GetStatus()}
	default:
	}
	now, claim := f.now.AsTime(), call.GetClaim()
	renews := claim != nil && int64(req.GetFencingToken()) == claim.GetFencingToken()
	switch {
	case req.GetFencingToken() != 0 && !renews:
		return nil, CallError{Stale: true}
	case !renews && claim != nil && now.Before(claim.GetLeaseExpireTime().AsTime()):
		return nil, CallError{Claimed: claim.GetLeaseExpireTime().AsTime()}
	}
	next := &storev1.ToolCallClaim{Worker: req.GetWorker(), FencingToken: claim.GetFencingToken(), ConnectionId: claim.GetConnectionId()}
	if !renews {
		next.FencingToken, next.ConnectionId = f.newToken(), ""
	}
	f.claim(call, next, req.GetLeaseDuration())
	return call, nil
}

// claim writes a claim down.
func (f *Reducer) claim(call *storev1.ToolCall, claim *storev1.ToolCallClaim, lease *durationpb.Duration) {
	d := DefaultToolLease
	if lease != nil {
		d = lease.AsDuration()
	}
	claim.LeaseExpireTime = timestamppb.New(f.now.AsTime().Add(d))
	f.replaceCall(call, func(c *storev1.ToolCall) {
		c.Claim = claim
		if c.GetStatus() == CallPending {
			c.Status = CallRunning
		}
	})
}

// newToken is the fencing token of the claims of this change.
func (f *Reducer) newToken() int64 {
	if f.token == 0 {
		f.live.FencingToken = max(f.live.GetFencingToken(), f.state.GetIssuedBefore()) + 1
		f.token = f.live.GetFencingToken()
	}
	return f.token
}

// claimIssued gives the newest connection the calls that it has just issued.
func (f *Reducer) claimIssued() {
	if f.live.GetLeaveToolCalls() {
		return
	}
	for _, seq := range f.callOrder {
		if call := f.toolCalls[seq]; call.GetStatus() == CallPending && call.GetClaim() == nil {
			f.claim(call, f.ownClaim(f.newToken()), f.live.GetToolLease())
		}
	}
}

// claimOwed gives a new connection the calls of earlier ones that nobody else has. Those of the connection that it goes on from keep
// their tokens: they may be running.
func (f *Reducer) claimOwed(goesOn string) {
	if f.live.GetLeaveToolCalls() {
		return
	}
	for _, call := range f.openCalls() {
		claim := call.GetClaim()
		if claim.GetFencingToken() <= f.live.GetVoidClaims() {
			claim = nil
		}
		mine := claim != nil && goesOn != "" && claim.GetConnectionId() == goesOn
		switch {
		case call.GetStatus() != CallOrphaned:
		case mine:
			f.claim(call, f.ownClaim(claim.GetFencingToken()), f.live.GetToolLease())
		case claim == nil || !f.now.AsTime().Before(claim.GetLeaseExpireTime().AsTime()):
			f.claim(call, f.ownClaim(f.newToken()), f.live.GetToolLease())
		}
	}
}

// ownClaim is a claim of the newest connection.
func (f *Reducer) ownClaim(token int64) *storev1.ToolCallClaim {
	id := f.live.GetLease().GetConnectionId()
	return &storev1.ToolCallClaim{Worker: cmp.Or(f.live.GetDevice().GetName(), id), FencingToken: token, ConnectionId: id}
}

// CompleteCall records a claimed call's response, or is a callError: the first response stays. send is the frame that tells the
// model of it; nil: none does.
func (f *Reducer) CompleteCall(
	entry *storev1.ToolCall, token int64, response gemini.FunctionResponse, scheduling string,
) (call *storev1.ToolCall, send *structpb.Struct, err error) {
	call = f.mine(entry)
	if call.GetClaim().GetFencingToken() != token {
		return nil, nil, CallError{Stale: true}
	}
	answered := proto.CloneOf(call)
	response.Answer(answered)
	same := proto.Equal(answered, call)
	known := call.GetStatus() == CallCompleted || call.GetStatus() == CallCancelled && gemini.HasResponse(call)
	fresh := false
	switch {
	case known && !same:
		return nil, nil, CallError{Status: call.GetStatus(), Answered: true}
	case known: // the caller did not get the answer, and asks again
	case call.GetStatus() == CallCancelled: // too late, but what it did is worth knowing
		f.settle(call, response.Answer)
	case response.WillContinue:
		if !same {
			f.replaceCall(call, response.Answer)
		}
		if f.isCurrent(call) {
			send = response.Frame(call, scheduling)
		}
		return call, send, nil
	default:
		fresh = true
		f.replaceCall(call, func(c *storev1.ToolCall) {
			response.Answer(c)
			c.Status = CallCompleted
			if !f.isCurrent(c) {
				f.tellResult(c)
			}
		})
		if f.live.GetCloseTime() != nil {
			f.forgetCall(call) // the next connection is told by its plan
		}
	}
	waits := fresh || f.live.GetPendingCalls()[call.GetCallId()] == call
	switch {
	case f.toDeliver(call) && call.GetResultSeq() == 0:
		send = response.Frame(call, scheduling)
	case waits && call.GetResultSeq() != 0 && call.GetDeliveredEpoch() == 0 && f.live.GetCloseTime() == nil:
		t := &gemini.Turns{}
		t.Say(gemini.User, gemini.ResultText(call))
		send = t.Seed(false)
	}
	return call, send, nil
}

func (f *Reducer) toDeliver(call *storev1.ToolCall) bool {
	return call.GetStatus() == CallCompleted && call.GetDeliveredEpoch() == 0 && f.isCurrent(call)
}

// mine is the state's copy of a stored call. One that was forgotten there is kept again if it waits.
func (f *Reducer) mine(entry *storev1.ToolCall) *storev1.ToolCall {
	call := f.live.GetPendingCalls()[entry.GetCallId()]
	if call.GetSeq() != entry.GetSeq() {
		call = proto.CloneOf(entry)
		if s := call.GetStatus(); s == CallPending || s == CallRunning { // forgotten, also when its connection went
			call.Status = CallOrphaned
			if f.isCurrent(call) {
				call.Status = f.waiting(call.GetClaim())
			}
		}
	}
	if call.GetStatus() != CallCompleted && call.GetClaim().GetFencingToken() <= f.live.GetVoidClaims() {
		call.Claim = nil
	}
	return call
}
