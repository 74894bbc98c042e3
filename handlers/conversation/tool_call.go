package conversation

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

const (
	callPending   = storev1.ToolCallStatus_TOOL_CALL_STATUS_PENDING
	callRunning   = storev1.ToolCallStatus_TOOL_CALL_STATUS_RUNNING
	callCompleted = storev1.ToolCallStatus_TOOL_CALL_STATUS_COMPLETED
	callCancelled = storev1.ToolCallStatus_TOOL_CALL_STATUS_CANCELLED
	callOrphaned  = storev1.ToolCallStatus_TOOL_CALL_STATUS_ORPHANED
)

// DefaultToolLease is how long a claim lasts where the worker does not say.
const DefaultToolLease = 30 * time.Second

// maxResultText is how much of a response the message has that tells it as text.
const maxResultText = 16 << 10

// The ledger of tool calls. There is one row for each live session and call id. live.pending_calls has copies of those
// that wait for something.
//
//	            claim             response             toolResponse frame
//	  PENDING ────────▶ RUNNING ────────────▶ COMPLETED ──────────────────▶ COMPLETED, delivered
//	     │   │             │   response without a claim: by the frame alone
//	     │   └─────────────┼───────────────▶ CANCELLED, by the provider
//	     ▼                 ▼
//	  ORPHANED, once the connection that issued it is gone ────response────▶ COMPLETED, told as text
//
// A completed call whose response was not delivered when its connection goes is told as text too. A resumed session may
// issue an orphan again: then it is its call.

func (f *folder) callTools(calls []functionCall) {
	f.live.CalledTools = f.modelTurn().GetText() != ""
	f.signal(modelCalledTools)
	for _, call := range calls {
		f.openCall(call)
	}
}

// openCall notes a call. One that is known in this live session came twice, or is issued again by a session that was
// resumed.
func (f *folder) openCall(call functionCall) {
	id := string(call.ID)
	if id == "" || len(id) > maxName {
		f.live.UnknownFrames++
		return
	}
	if known := f.knownCall(id); known != nil {
		f.issueAgain(known)
		return
	}
	if other := f.live.GetPendingCalls()[id]; other != nil { // of an earlier session, which nobody resumes
		f.forgetCall(other)
	}
	f.state.ToolCallCount++
	opened := &storev1.ToolCall{
		CallId:     id,
		Seq:        f.state.GetToolCallCount(),
		Epoch:      f.live.GetEpoch(),
		Session:    f.live.GetSession(),
		AfterSeq:   f.state.GetLastSeq(),
		Name:       firstBytes(string(call.Name), maxName),
		Args:       call.Args.fields,
		Status:     f.waiting(nil),
		CreateTime: f.now,
	}
	f.keepCall(opened)
	f.record(opened)
}

// knownCall is the call of this live session that has this id, or nil.
func (f *folder) knownCall(id string) *storev1.ToolCall {
	session := f.live.GetSession()
	if call := f.live.GetPendingCalls()[id]; call.GetSession() == session && call != nil {
		return call
	}
	for _, call := range f.toolCalls {
		if call.GetCallId() == id && call.GetSession() == session {
			return call
		}
	}
	if call := f.find(session, id); call != nil {
		return proto.CloneOf(call)
	}
	return nil
}

// issueAgain makes a call that was issued on an earlier connection one of this connection. What has a response already
// keeps it, and waits for it to be delivered.
func (f *folder) issueAgain(call *storev1.ToolCall) {
	if call.GetEpoch() == f.live.GetEpoch() || call.GetStatus() == callCancelled {
		return
	}
	call.Epoch, call.DeliveredEpoch = f.live.GetEpoch(), 0
	if call.GetStatus() != callCompleted {
		call.Status = f.waiting(call.GetClaim())
	}
	if f.live.GetPendingCalls()[call.GetCallId()] == nil {
		f.keepCall(call)
	}
	f.record(call)
}

// waiting is the status of a call of the newest connection that has no response.
func (f *folder) waiting(claim *storev1.ToolCallClaim) storev1.ToolCallStatus {
	switch {
	case f.live.GetCloseTime() != nil:
		return callOrphaned
	case claim != nil:
		return callRunning
	default:
		return callPending
	}
}

// keepCall keeps a call that waits in the state, where there is room or can be made.
func (f *folder) keepCall(call *storev1.ToolCall) {
	f.makeRoom(proto.Size(call), maxPendingBytes)
	if f.live.PendingCalls == nil {
		f.live.PendingCalls = map[string]*storev1.ToolCall{}
	}
	f.live.PendingCalls[call.GetCallId()] = call
}

// makeRoom forgets the oldest waiting calls until another of this size has room within a limit. Their entries stay as they
// are.
func (f *folder) makeRoom(size, limit int) {
	calls := f.openCalls()
	for _, call := range calls {
		size += proto.Size(call)
	}
	for i, call := range calls {
		if len(calls)-i < maxPendingCalls && size <= limit {
			return
		}
		size -= proto.Size(call)
		f.forgetCall(call)
	}
}

// openCalls are the calls that wait, oldest first.
func (f *folder) openCalls() []*storev1.ToolCall { return openCalls(f.live) }

func openCalls(live *storev1.LiveState) []*storev1.ToolCall {
	return slices.SortedFunc(maps.Values(live.GetPendingCalls()), func(a, b *storev1.ToolCall) int {
		return int(a.GetSeq() - b.GetSeq())
	})
}

// answerCall notes the response that a frame has for a call. A call that does not wait was answered, withdrawn or
// forgotten before: the first answer stands.
func (f *folder) answerCall(response functionResponse) {
	call := f.live.GetPendingCalls()[string(response.ID)]
	switch {
	case call == nil:
	case response.WillContinue && call.GetStatus() != callCompleted:
		f.replaceCall(call, func(c *storev1.ToolCall) { c.Response = response.Response.fields })
	case call.GetStatus() == callCompleted: // by CompleteToolCall: this is its delivery
		f.settle(call, func(c *storev1.ToolCall) { c.DeliveredEpoch = f.live.GetEpoch() })
	case f.isCurrent(call):
		f.settle(call, func(c *storev1.ToolCall) {
			c.Status, c.Response, c.DeliveredEpoch = callCompleted, response.Response.fields, f.live.GetEpoch()
		})
	default:
		f.settle(call, func(c *storev1.ToolCall) {
			c.Status, c.Response = callCompleted, response.Response.fields
			f.tellResult(c)
		})
	}
}

// isCurrent tells whether the connection that issued a call is there to take its response.
func (f *folder) isCurrent(call *storev1.ToolCall) bool {
	return call.GetEpoch() == f.live.GetEpoch() && f.live.GetCloseTime() == nil
}

// replaceCall changes a call that goes on waiting.
func (f *folder) replaceCall(call *storev1.ToolCall, change func(*storev1.ToolCall)) {
	change(call)
	f.record(call)
	if id := call.GetCallId(); f.live.GetPendingCalls()[id] == call { // it may have grown
		delete(f.live.PendingCalls, id)
		if size := proto.Size(call); size <= maxPendingBytes {
			f.makeRoom(size, maxPendingBytes)
			f.live.PendingCalls[id] = call
		}
	}
}

// settle changes a call, which waits for nothing from then on.
func (f *folder) settle(call *storev1.ToolCall, change func(*storev1.ToolCall)) {
	f.forgetCall(call)
	change(call)
	f.record(call)
}

// orphanCalls leaves the open calls without the connection that issued them. Responses that were not delivered on it
// are told as text.
func (f *folder) orphanCalls() {
	for _, call := range f.openCalls() {
		switch call.GetStatus() {
		case callPending, callRunning:
			f.replaceCall(call, func(c *storev1.ToolCall) { c.Status = callOrphaned })
		case callCompleted:
			f.settle(call, f.tellResult)
		default: // an orphan stays one
		}
	}
}

// tellResult makes the response of a call whose connection is gone a message, once. A session that did not issue the call,
// or has forgotten it, would not take a tool response.
func (f *folder) tellResult(call *storev1.ToolCall) {
	if call.GetResultSeq() != 0 {
		return
	}
	turn := openTurn(storev1.Role_ROLE_TOOL)
	turn.Modality = storev1.Modality_MODALITY_TEXT
	f.extend(&turn, resultText(call))
	f.finish(turn, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	call.ResultSeq = turn.GetSeq()
}

func resultText(call *storev1.ToolCall) string {
	said := "Result"
	if call.GetIsError() {
		said = "Failure"
	}
	return fmt.Sprintf("%s of %s, which was called before the connection was lost (%s): %s",
		said, call.GetName(), call.GetCallId(), firstBytes(jsonText(call.GetResponse()), maxResultText))
}

func (f *folder) cancelTools(ids []cleanString) {
	for _, id := range ids {
		if call := f.live.GetPendingCalls()[string(id)]; call != nil {
			f.settle(call, func(c *storev1.ToolCall) { c.Status = callCancelled })
		}
	}
}

func (f *folder) forgetCall(call *storev1.ToolCall) {
	delete(f.live.PendingCalls, call.GetCallId())
}

// record notes that a call changed.
func (f *folder) record(call *storev1.ToolCall) {
	call.UpdateTime = f.now
	if f.toolCalls == nil {
		f.toolCalls = map[int64]*storev1.ToolCall{}
	}
	if f.toolCalls[call.GetSeq()] == nil {
		f.callOrder = append(f.callOrder, call.GetSeq())
	}
	f.toolCalls[call.GetSeq()] = call
}

// callError is why a worker cannot have, or complete, a call.
type callError struct {
	// status is why not; claimed: another has it until then.
	status  storev1.ToolCallStatus
	claimed time.Time
	stale   bool
	// answered: it has another response, which stays.
	answered bool
}

func (e callError) Error() string {
	switch {
	case e.stale:
		return "another worker has claimed the tool call since"
	case !e.claimed.IsZero():
		return "another worker has the tool call"
	case e.answered:
		return "the tool call has another response already, which stays"
	default:
		return "the tool call is " + strings.ToLower(strings.TrimPrefix(e.status.String(), "TOOL_CALL_STATUS_"))
	}
}

// claimCall gives a call to a worker, or is a callError. entry is the call as it is stored.
func (f *folder) claimCall(entry *storev1.ToolCall, req *conversationv1.ClaimToolCallRequest) (*storev1.ToolCall, error) {
	call := f.mine(entry)
	switch call.GetStatus() {
	case callCompleted, callCancelled:
		return nil, callError{status: call.GetStatus()}
	default:
	}
	now, claim := f.now.AsTime(), call.GetClaim()
	renews := claim != nil && req.GetFencingToken() == claim.GetFencingToken()
	switch {
	case req.GetFencingToken() != 0 && !renews:
		return nil, callError{stale: true}
	case !renews && claim != nil && now.Before(claim.GetLeaseExpireTime().AsTime()):
		return nil, callError{claimed: claim.GetLeaseExpireTime().AsTime()}
	}
	lease := DefaultToolLease
	if req.GetLease() != nil {
		lease = req.GetLease().AsDuration()
	}
	token := claim.GetFencingToken()
	if !renews {
		f.live.FencingToken = max(f.live.GetFencingToken(), f.state.GetIssuedBefore()) + 1
		token = f.live.GetFencingToken()
	}
	f.replaceCall(call, func(c *storev1.ToolCall) {
		c.Claim = &storev1.ToolCallClaim{Worker: req.GetWorker(), FencingToken: token, LeaseExpireTime: timestamppb.New(now.Add(lease))}
		if c.GetStatus() == callPending {
			c.Status = callRunning
		}
	})
	return call, nil
}

// completeCall records a claimed call's response, or is a callError: the first response stays. It tells whether the
// response is for the provider.
func (f *folder) completeCall(
	entry *storev1.ToolCall, req *conversationv1.CompleteToolCallRequest,
) (call *storev1.ToolCall, deliver bool, err error) {
	call = f.mine(entry)
	if call.GetClaim().GetFencingToken() != req.GetFencingToken() {
		return nil, false, callError{stale: true}
	}
	known := call.GetStatus() == callCompleted || call.GetStatus() == callCancelled && call.GetResponse() != nil
	switch {
	case known && (call.GetIsError() != req.GetIsError() || !proto.Equal(call.GetResponse(), req.GetResponse())):
		return nil, false, callError{status: call.GetStatus(), answered: true}
	case known: // the caller did not get the answer, and asks again
	case call.GetStatus() == callCancelled: // too late, but what it did is worth knowing
		f.settle(call, func(c *storev1.ToolCall) { c.Response, c.IsError = req.GetResponse(), req.GetIsError() })
	case f.isCurrent(call):
		f.replaceCall(call, func(c *storev1.ToolCall) {
			c.Status, c.Response, c.IsError = callCompleted, req.GetResponse(), req.GetIsError()
		})
	default:
		f.settle(call, func(c *storev1.ToolCall) {
			c.Status, c.Response, c.IsError = callCompleted, req.GetResponse(), req.GetIsError()
			f.tellResult(c)
		})
	}
	return call, f.toDeliver(call), nil
}

func (f *folder) toDeliver(call *storev1.ToolCall) bool {
	return call.GetStatus() == callCompleted && call.GetDeliveredEpoch() == 0 && f.isCurrent(call)
}

// mine is the state's copy of a stored call. One that was forgotten there is kept again if it waits.
func (f *folder) mine(entry *storev1.ToolCall) *storev1.ToolCall {
	call := f.live.GetPendingCalls()[entry.GetCallId()]
	if call.GetSeq() != entry.GetSeq() {
		call = proto.CloneOf(entry)
		if s := call.GetStatus(); s == callPending || s == callRunning { // forgotten, also when its connection went
			call.Status = callOrphaned
			if f.isCurrent(call) {
				call.Status = f.waiting(call.GetClaim())
			}
		}
	}
	if call.GetStatus() != callCompleted && call.GetClaim().GetFencingToken() <= f.live.GetVoidClaims() {
		call.Claim = nil
	}
	return call
}
