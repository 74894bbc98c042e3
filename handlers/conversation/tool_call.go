package conversation

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	livev1 "holdfast/gen/holdfast/live/v1"
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
// that wait for something. A connection claims what it ingests, unless it leaves its calls to workers.
//
//	            claim             response             toolResponse frame
//	  PENDING ────────▶ RUNNING ────────────▶ COMPLETED ──────────────────▶ COMPLETED, delivered
//	     │   │             │   response without a claim: by the frame alone
//	     │   └─────────────┼───────────────▶ CANCELLED, by the provider
//	     ▼                 ▼                                           frame with the text
//	  ORPHANED, once the connection that issued it is gone ────response────▶ COMPLETED, told as text ──▶ delivered
//
// A completed call whose response was not delivered when its connection goes is told as text too. A resumed session may
// issue an orphan again: then it is its call.

func (f *folder) callTools(calls []functionCall) {
	if len(calls) == 0 {
		return
	}
	f.modelTurn()
	f.signal(modelCalledTools)
	for _, call := range calls {
		if whole, ok := f.gather(call); ok {
			f.openCall(whole)
		}
	}
}

// ownID begins the ids of calls to which the provider gave none. No provider's id does.
const ownID = "holdfast:"

// openCall notes a call. One that is known in this live session came twice, or is issued again by a session that was
// resumed, unless it is another one to which the provider gave the same id.
func (f *folder) openCall(call functionCall) {
	id := string(call.ID)
	if len(id) > maxName || id == "" && call.Name == "" {
		f.misunderstood()
		return
	}
	if id == "" {
		f.misunderstood() // not wholly: the provider may not take a response
		id = ownID + strconv.FormatInt(f.state.GetToolCallCount()+1, 10)
	}
	name := firstBytes(string(call.Name), maxName)
	if known := f.knownCall(id); known != nil {
		if !f.isOther(known, name, &call) {
			f.issueAgain(known)
			return
		}
		if pending := f.live.GetPendingCalls()[id]; pending != nil {
			f.supersede(pending)
		}
	} else if other := f.live.GetPendingCalls()[id]; other != nil { // of an earlier session, which nobody resumes
		f.forgetCall(other)
	}
	if !f.live.GetInterrupted() {
		f.expectQuestion()
	}
	f.state.ToolCallCount++
	opened := &storev1.ToolCall{
		CallId:   id,
		Seq:      f.state.GetToolCallCount(),
		Epoch:    f.live.GetEpoch(),
		Session:  f.live.GetSession(),
		AfterSeq: f.state.GetLastSeq(),
		Name:     name,
		Args:     call.Args.fields, ArgsJson: call.Args.text, ArgsOmitted: call.Args.omitted,
		ThoughtSignature: call.signature,
		Status:           f.waiting(nil),
		CreateTime:       f.now,
	}
	f.keepCall(opened)
	f.record(opened)
}

// isOther reports whether a call is another than the known one of its id: its name or its arguments differ, or the known one was
// answered, and the user has spoken since.
func (f *folder) isOther(known *storev1.ToolCall, name string, call *functionCall) bool {
	if known.GetEpoch() != f.live.GetEpoch() {
		return known.GetName() != name
	}
	if known.GetName() != name || !proto.Equal(known.GetArgs(), call.Args.fields) || known.GetArgsJson() != call.Args.text {
		return true
	}
	over := known.GetStatus() == callCancelled || known.GetStatus() == callCompleted && known.GetDeliveredEpoch() != 0
	return over && f.live.GetQuestionSeq() > known.GetAfterSeq() || over && f.live.GetUserTurn().GetSeq() > known.GetAfterSeq()
}

// supersede cancels a call whose id the provider gave to another: no response would be taken for it.
func (f *folder) supersede(call *storev1.ToolCall) {
	if call.GetStatus() == callCompleted {
		f.forgetCall(call)
		return
	}
	f.settle(call, func(c *storev1.ToolCall) { c.Status = callCancelled })
}

// knownCall is the call of this live session that has this id, or nil.
func (f *folder) knownCall(id string) *storev1.ToolCall {
	session := f.live.GetSession()
	if call := f.live.GetPendingCalls()[id]; call.GetSession() == session && call != nil {
		return call
	}
	for _, seq := range slices.Backward(f.callOrder) {
		if call := f.toolCalls[seq]; call.GetCallId() == id && call.GetSession() == session {
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
// forgotten before: the first answer stands. A response without an id is that of the oldest call of its name that has none.
func (f *folder) answerCall(response functionResponse) {
	call := f.live.GetPendingCalls()[string(response.ID)]
	if response.ID == "" {
		for _, c := range slices.Backward(f.openCalls()) {
			if c.GetName() == string(response.Name) && strings.HasPrefix(c.GetCallId(), ownID) {
				call = c
			}
		}
	}
	if call != nil && f.isCurrent(call) && response.Scheduling != "SILENT" {
		f.toldResult()
	}
	if failed := response.Response.value.GetStructValue().GetFields(); len(failed) == 1 && failed["error"] != nil {
		response.isError = true
	}
	switch {
	case call == nil:
	case response.WillContinue && call.GetStatus() != callCompleted:
		f.replaceCall(call, response.answer)
	case call.GetStatus() == callCompleted: // by CompleteToolCall: this is its delivery
		f.settle(call, func(c *storev1.ToolCall) { c.DeliveredEpoch = f.live.GetEpoch() })
	case f.isCurrent(call):
		f.settle(call, func(c *storev1.ToolCall) {
			response.answer(c)
			c.Status, c.DeliveredEpoch = callCompleted, f.live.GetEpoch()
		})
	default:
		f.settle(call, func(c *storev1.ToolCall) {
			response.answer(c)
			c.Status = callCompleted
			f.tellResult(c)
		})
	}
}

// toldResult notes that the model was told a result: what it says next stands behind the call.
func (f *folder) toldResult() {
	if turn := f.live.GetAssistantTurn(); turn == nil {
		f.live.Asked = true
	} else if turn.GetCreateTime() != nil {
		f.live.AnsweredTools = true
	}
}

// resultTold notes that the model was told the result of an orphan as text, which is a message already.
func (f *folder) resultTold(text string) bool {
	for _, call := range f.openCalls() {
		if call.GetResultSeq() != 0 && call.GetStatus() == callCompleted && text == resultText(call) {
			f.settle(call, func(c *storev1.ToolCall) { c.DeliveredEpoch = f.live.GetEpoch() })
			f.toldResult()
			return true
		}
	}
	return false
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
		said, call.GetName(), call.GetCallId(), firstBytes(responseText(call), maxResultText))
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
		return "the fencing token is not that of the tool call's newest claim"
	case !e.claimed.IsZero():
		return "another worker has the tool call"
	case e.answered:
		return "the tool call has another response already, which stays"
	default:
		return "the tool call is " + strings.ToLower(strings.TrimPrefix(e.status.String(), "TOOL_CALL_STATUS_"))
	}
}

// claimCall gives a call to a worker, or is a callError. entry is the call as it is stored.
func (f *folder) claimCall(entry *storev1.ToolCall, req *livev1.ClaimToolCallRequest) (*storev1.ToolCall, error) {
	call := f.mine(entry)
	switch call.GetStatus() {
	case callCompleted, callCancelled:
		return nil, callError{status: call.GetStatus()}
	default:
	}
	now, claim := f.now.AsTime(), call.GetClaim()
	renews := claim != nil && int64(req.GetFencingToken()) == claim.GetFencingToken()
	switch {
	case req.GetFencingToken() != 0 && !renews:
		return nil, callError{stale: true}
	case !renews && claim != nil && now.Before(claim.GetLeaseExpireTime().AsTime()):
		return nil, callError{claimed: claim.GetLeaseExpireTime().AsTime()}
	}
	next := &storev1.ToolCallClaim{Worker: req.GetWorker(), FencingToken: claim.GetFencingToken(), ConnectionId: claim.GetConnectionId()}
	if !renews {
		next.FencingToken, next.ConnectionId = f.newToken(), ""
	}
	f.claim(call, next, req.GetLeaseDuration())
	return call, nil
}

// claim writes a claim down.
func (f *folder) claim(call *storev1.ToolCall, claim *storev1.ToolCallClaim, lease *durationpb.Duration) {
	d := DefaultToolLease
	if lease != nil {
		d = lease.AsDuration()
	}
	claim.LeaseExpireTime = timestamppb.New(f.now.AsTime().Add(d))
	f.replaceCall(call, func(c *storev1.ToolCall) {
		c.Claim = claim
		if c.GetStatus() == callPending {
			c.Status = callRunning
		}
	})
}

// newToken is the fencing token of the claims of this change.
func (f *folder) newToken() int64 {
	if f.token == 0 {
		f.live.FencingToken = max(f.live.GetFencingToken(), f.state.GetIssuedBefore()) + 1
		f.token = f.live.GetFencingToken()
	}
	return f.token
}

// claimIssued gives the newest connection the calls that it has just issued.
func (f *folder) claimIssued() {
	if f.live.GetLeaveToolCalls() {
		return
	}
	for _, seq := range f.callOrder {
		if call := f.toolCalls[seq]; call.GetStatus() == callPending && call.GetClaim() == nil {
			f.claim(call, f.ownClaim(f.newToken()), f.live.GetToolLease())
		}
	}
}

// claimOwed gives a new connection the calls of earlier ones that nobody else has. Those of the connection that it goes on from keep
// their tokens: they may be running.
func (f *folder) claimOwed(goesOn string) {
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
		case call.GetStatus() != callOrphaned:
		case mine:
			f.claim(call, f.ownClaim(claim.GetFencingToken()), f.live.GetToolLease())
		case claim == nil || !f.now.AsTime().Before(claim.GetLeaseExpireTime().AsTime()):
			f.claim(call, f.ownClaim(f.newToken()), f.live.GetToolLease())
		}
	}
}

// ownClaim is a claim of the newest connection.
func (f *folder) ownClaim(token int64) *storev1.ToolCallClaim {
	id := f.live.GetLease().GetConnectionId()
	return &storev1.ToolCallClaim{Worker: cmp.Or(f.live.GetDevice().GetName(), id), FencingToken: token, ConnectionId: id}
}

// completeCall records a claimed call's response, or is a callError: the first response stays. send is the frame that tells the
// model of it; nil: none does.
func (f *folder) completeCall(
	entry *storev1.ToolCall, token int64, response functionResponse, scheduling string,
) (call *storev1.ToolCall, send *structpb.Struct, err error) {
	call = f.mine(entry)
	if call.GetClaim().GetFencingToken() != token {
		return nil, nil, callError{stale: true}
	}
	answered := proto.CloneOf(call)
	response.answer(answered)
	same := proto.Equal(answered, call)
	known := call.GetStatus() == callCompleted || call.GetStatus() == callCancelled && hasResponse(call)
	fresh := false
	switch {
	case known && !same:
		return nil, nil, callError{status: call.GetStatus(), answered: true}
	case known: // the caller did not get the answer, and asks again
	case call.GetStatus() == callCancelled: // too late, but what it did is worth knowing
		f.settle(call, response.answer)
	case response.WillContinue:
		if !same {
			f.replaceCall(call, response.answer)
		}
		if f.isCurrent(call) {
			send = response.frame(call, scheduling)
		}
		return call, send, nil
	default:
		fresh = true
		f.replaceCall(call, func(c *storev1.ToolCall) {
			response.answer(c)
			c.Status = callCompleted
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
		send = response.frame(call, scheduling)
	case waits && call.GetResultSeq() != 0 && call.GetDeliveredEpoch() == 0 && f.live.GetCloseTime() == nil:
		t := &turns{}
		t.say(geminiUser, resultText(call))
		send = t.seed(false)
	}
	return call, send, nil
}

func (f *folder) toDeliver(call *storev1.ToolCall) bool {
	return call.GetStatus() == callCompleted && call.GetDeliveredEpoch() == 0 && f.isCurrent(call)
}

func hasResponse(call *storev1.ToolCall) bool {
	return call.GetResponse() != nil || call.GetResponseJson() != "" || call.GetResponseOmitted() != ""
}

// answer gives a call the response.
func (r *functionResponse) answer(call *storev1.ToolCall) {
	call.Response, call.ResponseJson, call.ResponseOmitted, call.IsError = r.Response.value, r.Response.text, r.Response.omitted, r.isError
}

// frame is the response as a frame for the provider.
func (r *functionResponse) frame(call *storev1.ToolCall, scheduling string) *structpb.Struct {
	response := function(call.GetCallId(), call.GetName(), "response", responseOf(call))
	if r.WillContinue {
		response.Fields["willContinue"] = structpb.NewBoolValue(true)
	}
	if scheduling != "" {
		response.Fields["scheduling"] = structpb.NewStringValue(scheduling)
	}
	return fieldsOf(map[string]*structpb.Value{"toolResponse": structpb.NewStructValue(fieldsOf(map[string]*structpb.Value{
		"functionResponses": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewStructValue(response)}}),
	}))})
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
