package voice

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

const (
	maxPendingCalls = 128
	// The size of all pending calls together, with the responses that wait for their delivery. A call is kept whatever its
	// size; a larger response is kept by its entry only.
	maxPendingBytes = 96 << 10
)

// Short names of the statuses of a tool call.
const (
	CallPending   = storev1.ToolCallStatus_TOOL_CALL_STATUS_PENDING
	CallRunning   = storev1.ToolCallStatus_TOOL_CALL_STATUS_RUNNING
	CallCompleted = storev1.ToolCallStatus_TOOL_CALL_STATUS_COMPLETED
	CallCancelled = storev1.ToolCallStatus_TOOL_CALL_STATUS_CANCELLED
	CallOrphaned  = storev1.ToolCallStatus_TOOL_CALL_STATUS_ORPHANED
)

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

func (f *Reducer) callTools(calls []gemini.FunctionCall) {
	if len(calls) == 0 {
		return
	}
	f.by(Call)
	f.modelTurn()
	f.signal(modelCalledTools)
	for _, call := range calls {
		if whole, ok := f.gather(call); ok {
			f.openCall(whole)
		}
	}
}

// openCall notes a call. One that is known in this live session came twice, or is issued again by a session that was
// resumed, unless it is another one to which the provider gave the same id.
func (f *Reducer) openCall(call gemini.FunctionCall) {
	id := string(call.ID)
	if len(id) > gemini.MaxName || id == "" && call.Name == "" {
		f.misunderstood()
		return
	}
	if id == "" {
		f.misunderstood() // not wholly: the provider may not take a response
		id = gemini.OwnID + strconv.FormatInt(f.state.GetToolCallCount()+1, 10)
	}
	name := gemini.FirstBytes(string(call.Name), gemini.MaxName)
	if known := f.knownCall(id); known != nil {
		if !f.isOther(known, name, &call) {
			f.under(CallAgain, func() { f.issueAgain(known) })
			return
		}
		if pending := f.live.GetPendingCalls()[id]; pending != nil {
			f.under(CallOfSameID, func() { f.supersede(pending) })
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
		Args:     call.Args.Fields, ArgsJson: call.Args.Text, ArgsOmitted: call.Args.Omitted,
		ThoughtSignature: call.Signature,
		Status:           f.waiting(nil),
		CreateTime:       f.now,
	}
	f.keepCall(opened)
	f.record(opened)
}

// isOther reports whether a call is another than the known one of its id: its name or its arguments differ, or the known one was
// answered, and the user has spoken since.
func (f *Reducer) isOther(known *storev1.ToolCall, name string, call *gemini.FunctionCall) bool {
	if known.GetEpoch() != f.live.GetEpoch() {
		return known.GetName() != name
	}
	if known.GetName() != name || !proto.Equal(known.GetArgs(), call.Args.Fields) || known.GetArgsJson() != call.Args.Text {
		return true
	}
	over := known.GetStatus() == CallCancelled || known.GetStatus() == CallCompleted && known.GetDeliveredEpoch() != 0
	return over && f.live.GetQuestionSeq() > known.GetAfterSeq() || over && f.live.GetUserTurn().GetSeq() > known.GetAfterSeq()
}

// supersede cancels a call whose id the provider gave to another: no response would be taken for it.
func (f *Reducer) supersede(call *storev1.ToolCall) {
	if call.GetStatus() == CallCompleted {
		f.forgetCall(call)
		return
	}
	f.settle(call, func(c *storev1.ToolCall) { c.Status = CallCancelled })
}

// knownCall is the call of this live session that has this id, or nil.
func (f *Reducer) knownCall(id string) *storev1.ToolCall {
	session := f.live.GetSession()
	if call := f.live.GetPendingCalls()[id]; call.GetSession() == session && call != nil {
		return call
	}
	for _, seq := range slices.Backward(f.callOrder) {
		if call := f.toolCalls[seq]; call.GetCallId() == id && call.GetSession() == session {
			return call
		}
	}
	return proto.CloneOf(f.stored.Call(session, id))
}

// issueAgain makes a call that was issued on an earlier connection one of this connection. What has a response already
// keeps it, and waits for it to be delivered.
func (f *Reducer) issueAgain(call *storev1.ToolCall) {
	if call.GetEpoch() == f.live.GetEpoch() || call.GetStatus() == CallCancelled {
		return
	}
	call.Epoch, call.DeliveredEpoch = f.live.GetEpoch(), 0
	if call.GetStatus() != CallCompleted {
		call.Status = f.waiting(call.GetClaim())
	}
	if f.live.GetPendingCalls()[call.GetCallId()] == nil {
		f.keepCall(call)
	}
	f.record(call)
}

// waiting is the status of a call of the newest connection that has no response.
func (f *Reducer) waiting(claim *storev1.ToolCallClaim) storev1.ToolCallStatus {
	switch {
	case f.live.GetCloseTime() != nil:
		return CallOrphaned
	case claim != nil:
		return CallRunning
	default:
		return CallPending
	}
}

// keepCall keeps a call that waits in the state, where there is room or can be made.
func (f *Reducer) keepCall(call *storev1.ToolCall) {
	f.makeRoom(proto.Size(call), maxPendingBytes)
	if f.live.PendingCalls == nil {
		f.live.PendingCalls = map[string]*storev1.ToolCall{}
	}
	f.live.PendingCalls[call.GetCallId()] = call
}

// makeRoom forgets the oldest waiting calls until another of this size has room within a limit. Their entries stay as they
// are.
func (f *Reducer) makeRoom(size, limit int) {
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
func (f *Reducer) openCalls() []*storev1.ToolCall { return OpenCalls(f.live) }

// OpenCalls are the calls that wait, oldest first.
func OpenCalls(live *storev1.LiveState) []*storev1.ToolCall {
	return slices.SortedFunc(maps.Values(live.GetPendingCalls()), func(a, b *storev1.ToolCall) int {
		return int(a.GetSeq() - b.GetSeq())
	})
}

// answerCall notes the response that a frame has for a call. A call that does not wait was answered, withdrawn or
// forgotten before: the first answer stands. A response without an id is that of the oldest call of its name that has none.
func (f *Reducer) answerCall(response gemini.FunctionResponse) {
	f.by(CallResult)
	call := f.live.GetPendingCalls()[string(response.ID)]
	if response.ID == "" {
		for _, c := range slices.Backward(f.openCalls()) {
			if c.GetName() == string(response.Name) && strings.HasPrefix(c.GetCallId(), gemini.OwnID) {
				call = c
			}
		}
	}
	if call != nil && f.isCurrent(call) && response.Scheduling != "SILENT" {
		f.ToldResult()
	}
	if failed := response.Response.Value.GetStructValue().GetFields(); len(failed) == 1 && failed["error"] != nil {
		response.IsError = true
	}
	switch {
	case call == nil:
	case response.WillContinue && call.GetStatus() != CallCompleted:
		f.replaceCall(call, response.Answer)
	case call.GetStatus() == CallCompleted: // by CompleteToolCall: this is its delivery
		f.settle(call, func(c *storev1.ToolCall) { c.DeliveredEpoch = f.live.GetEpoch() })
	case f.isCurrent(call):
		f.settle(call, func(c *storev1.ToolCall) {
			response.Answer(c)
			c.Status, c.DeliveredEpoch = CallCompleted, f.live.GetEpoch()
		})
	default:
		f.settle(call, func(c *storev1.ToolCall) {
			response.Answer(c)
			c.Status = CallCompleted
			f.tellResult(c)
		})
	}
}

// ToldResult notes that the model was told a result: what it says next stands behind the call.
func (f *Reducer) ToldResult() {
	if turn := f.live.GetAssistantTurn(); turn == nil {
		f.live.Asked = true
	} else if turn.GetCreateTime() != nil && !f.live.GetAnsweredTools() {
		f.live.AnsweredTools, f.live.ResultAudioMs = true, f.live.GetTurnAudioMs()
	}
}

// resultTold notes that the model was told the result of an orphan as text, which is a message already.
func (f *Reducer) resultTold(text string) bool {
	for _, call := range f.openCalls() {
		if call.GetResultSeq() != 0 && call.GetStatus() == CallCompleted && text == gemini.ResultText(call) {
			f.settle(call, func(c *storev1.ToolCall) { c.DeliveredEpoch = f.live.GetEpoch() })
			f.ToldResult()
			return true
		}
	}
	return false
}

// isCurrent reports whether the connection that issued a call is there to take its response.
func (f *Reducer) isCurrent(call *storev1.ToolCall) bool {
	return call.GetEpoch() == f.live.GetEpoch() && f.live.GetCloseTime() == nil
}

// replaceCall changes a call that goes on waiting.
func (f *Reducer) replaceCall(call *storev1.ToolCall, change func(*storev1.ToolCall)) {
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
func (f *Reducer) settle(call *storev1.ToolCall, change func(*storev1.ToolCall)) {
	f.forgetCall(call)
	change(call)
	f.record(call)
}

// orphanCalls leaves the open calls without the connection that issued them. Responses that were not delivered on it
// are told as text.
func (f *Reducer) orphanCalls() {
	f.by(CallOrphan)
	for _, call := range f.openCalls() {
		switch call.GetStatus() {
		case CallPending, CallRunning:
			f.replaceCall(call, func(c *storev1.ToolCall) { c.Status = CallOrphaned })
		case CallCompleted:
			f.settle(call, f.tellResult)
		default: // an orphan stays one
		}
	}
}

// tellResult makes the response of a call whose connection is gone a message, once. A session that did not issue the call,
// or has forgotten it, would not take a tool response.
func (f *Reducer) tellResult(call *storev1.ToolCall) {
	if call.GetResultSeq() != 0 {
		return
	}
	turn := openTurn(storev1.Role_ROLE_TOOL)
	turn.Modality = storev1.Modality_MODALITY_TEXT
	f.under(CallResultText, func() {
		f.extend(&turn, gemini.ResultText(call))
		f.finish(turn, storev1.MessageStatus_MESSAGE_STATUS_COMPLETE)
	})
	call.ResultSeq = turn.GetSeq()
}

func (f *Reducer) cancelTools(ids []gemini.Text) {
	for _, id := range ids {
		if call := f.live.GetPendingCalls()[string(id)]; call != nil {
			f.settle(call, func(c *storev1.ToolCall) { c.Status = CallCancelled })
		}
	}
}

func (f *Reducer) forgetCall(call *storev1.ToolCall) {
	delete(f.live.PendingCalls, call.GetCallId())
}

// record notes that a call changed.
func (f *Reducer) record(call *storev1.ToolCall) {
	call.UpdateTime = f.now
	if f.toolCalls == nil {
		f.toolCalls = map[int64]*storev1.ToolCall{}
	}
	if f.toolCalls[call.GetSeq()] == nil {
		f.callOrder = append(f.callOrder, call.GetSeq())
	}
	f.toolCalls[call.GetSeq()] = call
	if f.report != nil {
		f.tellCall(call, word(call.GetStatus()))
	}
}

// ChangedCalls reports whether a tool call was made or changed.
func (f *Reducer) ChangedCalls() bool { return len(f.toolCalls) > 0 }
