package conversation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/floor"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// OpenLive implements ConversationService.
func (m *Manager) OpenLive(ctx context.Context, req *conversationv1.OpenLiveRequest) (*conversationv1.OpenLiveResponse, error) {
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.OpenLiveResponse, error) {
			// Who lost the floor does not get it back by a new connection.
			under, err := floor.Open(tx.State().GetFloor(), tx.Caller(), req.GetConnectionId(), tx.Now())
			if err != nil {
				return nil, err
			}
			f := newLive(tx)
			f.open(req, under, m.limits)
			f.put(tx)
			tx.Emit("live_opened")
			return &conversationv1.OpenLiveResponse{Epoch: f.live.GetEpoch(), Live: presentLive(f.live)}, nil
		})
}

// CloseLive implements ConversationService.
func (m *Manager) CloseLive(ctx context.Context, req *conversationv1.CloseLiveRequest) (*conversationv1.CloseLiveResponse, error) {
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.CloseLiveResponse, error) {
			if err := m.checkEpoch(tx, req.GetEpoch()); err != nil {
				return nil, err
			}
			f := newLive(tx)
			if !f.closeLive(req.GetCloseCode()) {
				tx.Unchanged()
			}
			f.put(tx)
			tx.Emit("live_closed")
			return &conversationv1.CloseLiveResponse{Live: presentLive(f.live)}, nil
		})
}

// checkEpoch refuses an epoch that is not that of the newest connection.
func (m *Manager) checkEpoch(tx *object.Tx[state], epoch int64) error {
	if err := fence(tx.State(), writer{epoch: epoch, caller: tx.Caller(), now: tx.Now()}); err != nil {
		return refuse(err)
	}
	if newest := tx.State().GetLive().GetEpoch(); epoch > newest { // a fence under which nothing was opened
		return epochUnknown(epoch, newest)
	}
	return nil
}

// GetResumePlan implements ConversationService.
func (m *Manager) GetResumePlan(
	ctx context.Context, req *conversationv1.GetResumePlanRequest,
) (*conversationv1.GetResumePlanResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	snap, err := m.kind.View(ctx, object.ID(req.GetConversationId()))
	if err != nil {
		return nil, err
	}
	live := snap.State.GetLive()
	p := plan(snap.State, req.GetSetupHash(), m.now(), m.limits)
	res := &conversationv1.GetResumePlanResponse{
		Action: conversationv1.ResumeAction_RESUME_ACTION_START_FRESH, OpenUtterance: live.GetUserTurn(), ToolCalls: openCalls(live),
		Epoch: live.GetEpoch(), LastClientIndex: live.GetLastClientIndex(), Wait: p.wait, ResumeFailures: live.GetResumeFailures(),
		Live: presentLive(live), Metadata: rpc.Metadata(snap.Info),
	}
	if p.wait {
		res.WaitUntilTime = timestamppb.New(p.waitTill)
	}
	if !p.retry.IsZero() {
		res.RetryTime = timestamppb.New(p.retry)
	}
	if p.handle != nil {
		handle, err := m.box.Open(p.handle.GetSealed(), handleContext(caller.Tenant, req.GetConversationId()))
		if err == nil { // else its key is gone: start fresh
			res.Action, res.Handle, res.HandleId = conversationv1.ResumeAction_RESUME_ACTION_RESUME, string(handle), p.handle.GetId()
			res.HandleAfterSeq = p.handle.GetAfterSeq()
			if !p.expires.IsZero() {
				res.HandleExpireTime = timestamppb.New(p.expires)
			}
			return res, m.addCatchUp(ctx, req, p.handle, res)
		}
	}
	return res, m.addSeed(ctx, req, res)
}

// ReportResumeFailed implements ConversationService.
func (m *Manager) ReportResumeFailed(
	ctx context.Context, req *conversationv1.ReportResumeFailedRequest,
) (*conversationv1.ReportResumeFailedResponse, error) {
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.ReportResumeFailedResponse, error) {
			if err := m.checkEpoch(tx, req.GetEpoch()); err != nil {
				return nil, err
			}
			f := newLive(tx)
			if last := f.live.GetHandleCount(); req.GetHandleId() > last {
				return nil, problem.InvalidArgument("handle_id", fmt.Sprintf("the newest handle has the id %d", last))
			}
			if !f.resumeFailed(req.GetHandleId(), req.GetSeeding()) {
				tx.Unchanged()
			}
			f.put(tx)
			tx.Emit("live_resume_failed")
			res := &conversationv1.ReportResumeFailedResponse{
				ResumeFailures: f.live.GetResumeFailures(), Live: presentLive(f.live),
			}
			if t := retryTime(f.live); !t.IsZero() {
				res.RetryTime = timestamppb.New(t)
			}
			return res, nil
		})
}

// handleContext binds a sealed handle to its conversation.
func handleContext(t identity.Tenant, conversationID string) []byte {
	return []byte("live handle\x00" + string(t) + "\x00" + conversationID)
}

// newLive is a folder over the change's conversation.
func newLive(tx *object.Tx[state]) *liveTx {
	f := newFolder(tx.State(), tx.Now(), func(session int64, callID string) *storev1.ToolCall {
		ref, _ := tx.Entry(inCallRefs, callKey(session, callID)).(*storev1.ToolCallRef)
		if ref == nil {
			return nil
		}
		call, _ := tx.Entry(inToolCalls, object.SeqKey(ref.GetSeq())).(*storev1.ToolCall)
		return call
	})
	return &liveTx{f, tx.State().GetToolCallCount()}
}

// liveTx is a folder that can stage what it did.
type liveTx struct {
	*folder

	calls int64 // how many there were before
}

// put stages the entries that changed.
func (l *liveTx) put(tx *object.Tx[state]) {
	effects := l.effects()
	l.stage(tx, &effects)
}

func (l *liveTx) stage(tx *object.Tx[state], effects *liveEffects) {
	for _, msg := range effects.messages {
		tx.Put(inMessages, object.SeqKey(msg.GetSeq()), msg)
	}
	for _, call := range effects.toolCalls {
		tx.Put(inToolCalls, object.SeqKey(call.GetSeq()), call)
		if call.GetSeq() > l.calls {
			tx.Put(inCallRefs, callKey(call.GetSession(), call.GetCallId()), &storev1.ToolCallRef{Seq: call.GetSeq()})
		}
	}
}

func callKey(session int64, callID string) string { return object.SeqKey(session) + ":" + callID }

// IngestLive implements ConversationService.
func (m *Manager) IngestLive(
	ctx context.Context, req *conversationv1.IngestLiveRequest,
) (*conversationv1.IngestLiveResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	batch := readBatch(req.GetEpoch(), req.GetFrames(), func(handle []byte) []byte {
		return m.box.Seal(handle, handleContext(caller.Tenant, req.GetConversationId()))
	})
	if batch.fleeting && req.GetRequestId() == "" && req.GetIfVersion() == 0 {
		if res, err := m.show(ctx, caller, req, batch); res != nil || err != nil {
			return res, err
		}
	}
	frames, k := req.GetFrames(), partialKey{caller, req.GetConversationId()}
	if p := m.partials.due(k); p != nil && p.batch.epoch == batch.epoch {
		earlier := p.before(batch.frames[0].index)
		batch.frames, frames = append(p.batch.frames[:earlier:earlier], batch.frames...), append(p.raw[:earlier:earlier], frames...)
	}
	var replayed bool
	res, err := m.ingest(ctx, caller, req, batch, frames, object.Replayed(&replayed))
	if err == nil && !replayed {
		m.partials.settle(k, batch, false)
	}
	return res, err
}

// ingest stores a batch.
func (m *Manager) ingest(
	ctx context.Context, caller identity.Identity, req *conversationv1.IngestLiveRequest, batch liveBatch, raw []*conversationv1.LiveFrame,
	opts ...object.UpdateOption,
) (*conversationv1.IngestLiveResponse, error) {
	batch.caller = caller
	keep := &rawFrames{m: m, caller: caller, id: req.GetConversationId(), frames: raw}
	res, err := object.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.IngestLiveResponse, error) {
			s := tx.State()
			l := newLive(tx)
			effects, err := l.ingest(batch)
			if err != nil {
				return nil, err
			}
			l.stage(tx, &effects)
			if int(effects.skipped) == len(batch.frames) {
				tx.Unchanged()
			} else if err := keep.keep(tx); err != nil {
				return nil, err
			}
			awaitSilence(tx)
			res := &conversationv1.IngestLiveResponse{
				Voice:           s.GetVoice(),
				LastClientIndex: s.GetLive().GetLastClientIndex(), ReceivedClientIndex: s.GetLive().GetLastClientIndex(),
				SkippedFrames: effects.skipped, UnknownFrames: effects.unknown, Metadata: rpc.Metadata(tx.Info()),
			}
			res.Messages, res.ToolCalls, res.HasMore = effects.fitting(object.AnswerBytes - rpc.AnswerSize(res))
			return res, nil
		}, opts...)
	if fenced, ok := errors.AsType[fencedError](err); ok {
		return nil, errors.Join(m.abandon(ctx, req.GetConversationId(), batch), refuse(fenced))
	}
	return res, err
}

// smallEffects is so little, in binary, that no answer is too small for its JSON.
const smallEffects = 16 << 10

// fitting are the effects that an answer has room for. more is true where that is not all of them.
func (e *liveEffects) fitting(bytes int) (messages []*storev1.Message, calls []*storev1.ToolCall, more bool) {
	messages, calls = e.messages, e.toolCalls
	least := 0
	for _, m := range messages {
		least += proto.Size(m)
	}
	for _, c := range calls {
		least += proto.Size(c)
	}
	if least < smallEffects {
		return messages, calls, false
	}
	room := object.Room{Bytes: bytes}
	if i := slices.IndexFunc(messages, func(m *storev1.Message) bool { return !room.Fits(rpc.AnswerSize(m)) }); i >= 0 {
		return messages[:i], nil, true
	}
	if i := slices.IndexFunc(calls, func(c *storev1.ToolCall) bool { return !room.Fits(rpc.AnswerSize(c)) }); i >= 0 {
		return messages, calls[:i], true
	}
	return messages, calls, false
}

// abandon keeps what a connection sent that another has replaced.
func (m *Manager) abandon(ctx context.Context, id string, batch liveBatch) error {
	_, err := m.kind.Update(ctx, object.ID(id), func(tx *object.Tx[state]) error {
		l := newLive(tx)
		before := proto.CloneOf(l.live)
		fragment := l.abandon(batch)
		if fragment != nil {
			tx.Put(inFragments, object.SeqKey(fragment.GetSeq()), fragment)
		}
		l.put(tx)
		tx.Emit("live_abandoned")
		if fragment == nil && proto.Equal(before, l.live) {
			tx.Unchanged()
		}
		return nil
	})
	return err
}

// ClaimToolCall implements ConversationService.
func (m *Manager) ClaimToolCall(
	ctx context.Context, req *conversationv1.ClaimToolCallRequest,
) (*conversationv1.ClaimToolCallResponse, error) {
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.ClaimToolCallResponse, error) {
			entry, err := toolCall(tx, req.GetSeq())
			if err != nil {
				return nil, err
			}
			f := newLive(tx)
			call, err := f.claimCall(entry, req)
			if err != nil {
				return nil, refuse(err)
			}
			f.put(tx)
			return &conversationv1.ClaimToolCallResponse{ToolCall: call}, nil
		}, object.Prefetch(inToolCalls, object.SeqKey(req.GetSeq())))
}

// CompleteToolCall implements ConversationService.
func (m *Manager) CompleteToolCall(
	ctx context.Context, req *conversationv1.CompleteToolCallRequest,
) (*conversationv1.CompleteToolCallResponse, error) {
	if size := len(jsonText(req.GetResponse())); size > maxObjectBytes {
		return nil, problem.InvalidArgument("response", fmt.Sprintf("has %d bytes as JSON, over the limit of %d", size, maxObjectBytes))
	}
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.CompleteToolCallResponse, error) {
			entry, err := toolCall(tx, req.GetSeq())
			if err != nil {
				return nil, err
			}
			f := newLive(tx)
			call, deliver, err := f.completeCall(entry, req)
			if err != nil {
				return nil, refuse(err)
			}
			f.put(tx)
			if len(f.toolCalls) == 0 {
				tx.Unchanged()
			}
			return &conversationv1.CompleteToolCallResponse{ToolCall: call, Deliver: deliver}, nil
		}, object.Prefetch(inToolCalls, object.SeqKey(req.GetSeq())))
}

func toolCall(tx *object.Tx[state], seq int64) (*storev1.ToolCall, error) {
	call, _ := tx.Entry(inToolCalls, object.SeqKey(seq)).(*storev1.ToolCall)
	if call == nil {
		return nil, problem.NotFound(fmt.Sprintf("the conversation has no tool call %d", seq))
	}
	return call, nil
}

// refuseCall puts a callError into the caller's words.
func refuseCall(err callError) error {
	switch {
	case err.stale:
		return problem.New(errorv1.Reason_REASON_FENCED, "another worker has claimed the tool call since; its response counts")
	case !err.claimed.IsZero():
		p := problem.New(errorv1.Reason_REASON_LEASE_HELD, "another worker has the tool call")
		p.Detail = &errorv1.Held{What: "tool_call", ExpireTime: timestamppb.New(err.claimed)}
		return p
	case err.answered:
		return problem.New(errorv1.Reason_REASON_ILLEGAL_TRANSITION, err.Error())
	default:
		p := problem.New(errorv1.Reason_REASON_ILLEGAL_TRANSITION,
			"the tool call is "+strings.ToLower(strings.TrimPrefix(err.status.String(), "TOOL_CALL_STATUS_"))+"; only one that is not over is claimed or completed")
		p.Detail = &errorv1.Transition{From: err.status.String()}
		return p
	}
}
