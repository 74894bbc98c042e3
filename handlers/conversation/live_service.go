package conversation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// newLive is a reducer over the change's conversation.
func newLive(tx *object.Tx[state]) *liveTx {
	before := tx.State().GetToolCallCount()
	return &liveTx{voice.New(tx.State(), tx.Now(), storedIn{tx}), before}
}

// storedIn is what a change's conversation has.
type storedIn struct{ tx *object.Tx[state] }

func (s storedIn) Message(seq int64) *storev1.Message {
	msg, _ := s.tx.Entry(inMessages, object.SeqKey(seq)).(*storev1.Message)
	return msg
}

func (s storedIn) Call(session int64, id string) *storev1.ToolCall {
	ref, _ := s.tx.Entry(inCallRefs, callKey(session, id)).(*storev1.ToolCallRef)
	if ref == nil {
		return nil
	}
	call, _ := s.tx.Entry(inToolCalls, object.SeqKey(ref.GetSeq())).(*storev1.ToolCall)
	return call
}

// liveTx is a reducer that can stage what it did.
type liveTx struct {
	*voice.Reducer

	calls int64 // how many there were before
}

// fenced folds a batch of the newest connection, or refuses it.
func (l *liveTx) fenced(tx *object.Tx[state], caller identity.Identity, batch voice.Batch, playedMs *int32) (voice.Effects, error) {
	if err := fence(tx.State(), writer{epoch: batch.Epoch, caller: caller, now: tx.Now()}); err != nil {
		return voice.Effects{}, err
	}
	return l.Ingest(batch, playedMs)
}

// put stages the entries that changed.
func (l *liveTx) put(tx *object.Tx[state]) {
	effects := l.Effects()
	l.stage(tx, &effects)
}

func (l *liveTx) stage(tx *object.Tx[state], effects *voice.Effects) {
	for _, msg := range effects.Messages {
		tx.Put(inMessages, object.SeqKey(msg.GetSeq()), msg)
	}
	for _, call := range effects.ToolCalls {
		tx.Put(inToolCalls, object.SeqKey(call.GetSeq()), call)
		if call.GetSeq() > l.calls {
			tx.Put(inCallRefs, callKey(call.GetSession(), call.GetCallId()), &storev1.ToolCallRef{Seq: call.GetSeq()})
		}
	}
}

func callKey(session int64, callID string) string { return object.SeqKey(session) + ":" + callID }

// readBatch reads frames of a connection, and notes the user's activity where they show any. Resumption handles in them are sealed.
func (m *Manager) readBatch(ctx context.Context, caller identity.Identity, id string, token int32, frames []*livev1.LiveFrame) voice.Batch {
	batch := voice.ReadBatch(int64(token), frames, func(handle []byte) []byte {
		return m.box.Seal(handle, handleContext(caller.Tenant, id))
	})
	if batch.ByUser {
		identity.Active(ctx)
	}
	return batch
}

// IngestLive implements LiveService.
func (m *Manager) IngestLive(ctx context.Context, req *livev1.IngestLiveRequest) (*livev1.IngestLiveResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	batch := m.readBatch(ctx, caller, req.GetConversationId(), req.GetFencingToken(), req.GetFrames())
	batch.SessionEnd = identity.SessionEnd(ctx)
	if batch.Fleeting && len(batch.Frames) > 0 && req.PlayedMs == nil {
		if res, err := m.show(ctx, caller, req, batch); res != nil || err != nil {
			return res, err
		}
	}
	frames, k := req.GetFrames(), partialKey{caller, req.GetConversationId()}
	if p := m.partials.due(k); p != nil && p.batch.Epoch == batch.Epoch {
		earlier := len(p.batch.Frames)
		if len(batch.Frames) > 0 {
			earlier = p.before(batch.Frames[0].Index)
		}
		batch.Frames, frames = append(p.batch.Frames[:earlier:earlier], batch.Frames...), append(p.raw[:earlier:earlier], frames...)
	}
	res, err := m.ingest(ctx, caller, req, batch, frames)
	if err == nil && len(batch.Frames) > 0 {
		m.partials.settle(k, batch, false)
	}
	return res, err
}

// ingest stores a batch.
func (m *Manager) ingest(
	ctx context.Context, caller identity.Identity, req *livev1.IngestLiveRequest, batch voice.Batch, raw []*livev1.LiveFrame,
) (res *livev1.IngestLiveResponse, err error) {
	keep := &rawFrames{m: m, caller: caller, id: req.GetConversationId(), frames: raw}
	_, err = m.kind.Update(ctx, object.ID(req.GetConversationId()), func(tx *object.Tx[state]) error {
		s, l := tx.State(), newLive(tx)
		effects, err := l.fenced(tx, caller, batch, req.PlayedMs)
		if err != nil {
			return err
		}
		l.stage(tx, &effects)
		changed := int(effects.Skipped) < len(batch.Frames) || len(effects.Messages) > 0
		if !renew(s.GetLive(), tx.Now(), changed, batch.SessionEnd) && !changed {
			tx.Unchanged()
		}
		if changed {
			if err := keep.keep(tx); err != nil {
				return err
			}
			awaitSilence(tx)
		}
		tx.Emit("live_ingested")
		through := int32(s.GetLive().GetLastClientIndex()) //nolint:gosec // it was an int32
		res = &livev1.IngestLiveResponse{
			StoredThrough: through, ReceivedThrough: through, Lease: ownLease(s.GetLive(), tx.Now()), Rotate: rotate(s, tx.Now(), m.limits),
			Voice: presentVoice(s.GetVoice()), UnknownFrames: effects.Unknown, SkippedFrames: effects.Skipped, MissingFrames: effects.Missing, Version: int64(tx.Info().Version),
		}
		addEffects(res, &effects, s.GetLive(), tx.Now())
		return nil
	})
	if fenced, ok := errors.AsType[fencedError](err); ok {
		return nil, errors.Join(m.abandon(ctx, req.GetConversationId(), batch), refuse(fenced))
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

// smallEffects is so little, in binary, that no answer is too small for its JSON.
const smallEffects = 16 << 10

// addEffects adds to an answer what it has room for.
func addEffects(res *livev1.IngestLiveResponse, e *voice.Effects, live *storev1.LiveState, now time.Time) {
	least := 0
	for _, m := range e.Messages {
		least += proto.Size(m)
	}
	for _, c := range e.ToolCalls {
		least += proto.Size(c)
	}
	var room object.Room
	if least >= smallEffects {
		room.Bytes = object.AnswerBytes - rpc.AnswerSize(res)
	}
	fits := func(m proto.Message) bool { return least < smallEffects || room.Fits(rpc.AnswerSize(m)) }
	for _, one := range e.Messages {
		msg := presentMessage(one)
		if res.More = !fits(msg); res.GetMore() {
			return
		}
		res.Messages = append(res.Messages, msg)
	}
	for _, one := range e.ToolCalls {
		call := presentOwn(live, one, now)
		if res.More = !fits(call); res.GetMore() {
			return
		}
		res.ToolCalls = append(res.ToolCalls, call)
	}
}

// abandon keeps what a connection sent that another has replaced.
func (m *Manager) abandon(ctx context.Context, id string, batch voice.Batch) error {
	_, err := m.kind.Update(ctx, object.ID(id), func(tx *object.Tx[state]) error {
		l := newLive(tx)
		before := proto.CloneOf(tx.State().GetLive())
		fragment := l.Abandon(batch)
		putFragment(tx, fragment)
		l.put(tx)
		tx.Emit("live_abandoned")
		if fragment == nil && proto.Equal(before, tx.State().GetLive()) {
			tx.Unchanged()
		}
		return nil
	})
	return err
}

func putFragment(tx *object.Tx[state], fragment *storev1.Fragment) {
	if fragment != nil {
		tx.Put(inFragments, object.SeqKey(fragment.GetSeq()), fragment)
	}
}

// DisconnectLive implements LiveService.
func (m *Manager) DisconnectLive(ctx context.Context, req *livev1.DisconnectLiveRequest) (*livev1.DisconnectLiveResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	batch := m.readBatch(ctx, caller, req.GetConversationId(), req.GetFencingToken(), req.GetFrames())
	keep := &rawFrames{m: m, caller: caller, id: req.GetConversationId(), frames: req.GetFrames()}
	res, err := object.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*livev1.DisconnectLiveResponse, error) {
			l := newLive(tx)
			effects, err := l.fenced(tx, caller, batch, req.PlayedMs)
			if err != nil {
				return nil, err
			}
			changed := int(effects.Skipped) < len(batch.Frames)
			if changed {
				if err := keep.keep(tx); err != nil {
					return nil, err
				}
			}
			if !l.CloseLive(req.GetCloseCode()) && !changed && len(effects.Messages) == 0 {
				tx.Unchanged()
			}
			l.put(tx)
			awaitSilence(tx)
			tx.Emit("live_disconnected")
			return &livev1.DisconnectLiveResponse{
				StoredThrough: int32(tx.State().GetLive().GetLastClientIndex()), Version: int64(tx.Info().Version), //nolint:gosec // it was an int32
			}, nil
		})
	if fenced, ok := errors.AsType[fencedError](err); ok {
		return nil, errors.Join(m.abandon(ctx, req.GetConversationId(), batch), refuse(fenced))
	}
	return res, err
}

// ClaimToolCall implements LiveService.
func (m *Manager) ClaimToolCall(ctx context.Context, req *livev1.ClaimToolCallRequest) (*livev1.ClaimToolCallResponse, error) {
	return object.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*livev1.ClaimToolCallResponse, error) {
			entry, err := toolCall(tx, req.GetSeq())
			if err != nil {
				return nil, err
			}
			f := newLive(tx)
			call, err := f.ClaimCall(entry, req)
			if err != nil {
				return nil, refuse(err)
			}
			f.put(tx)
			res := &livev1.ClaimToolCallResponse{ToolCall: presentCall(call), Version: int64(tx.Info().Version)}
			addExpiresIn(res.GetToolCall().GetClaim(), tx.Now())
			return res, nil
		}, object.Prefetch(inToolCalls, object.SeqKey(int64(req.GetSeq()))))
}

// CompleteToolCall implements LiveService.
func (m *Manager) CompleteToolCall(ctx context.Context, req *livev1.CompleteToolCallRequest) (*livev1.CompleteToolCallResponse, error) {
	response, err := readResponse(req)
	if err != nil {
		return nil, err
	}
	return object.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*livev1.CompleteToolCallResponse, error) {
			entry, err := toolCall(tx, req.GetSeq())
			if err != nil {
				return nil, err
			}
			f := newLive(tx)
			call, send, err := f.CompleteCall(entry, int64(req.GetFencingToken()), response, req.GetScheduling())
			if err != nil {
				return nil, refuse(err)
			}
			if send != nil && req.GetScheduling() != "SILENT" {
				f.ToldResult()
			}
			f.put(tx)
			if !f.ChangedCalls() {
				tx.Unchanged()
			}
			return &livev1.CompleteToolCallResponse{ToolCall: presentCall(call), Send: send, Version: int64(tx.Info().Version)}, nil
		}, object.Prefetch(inToolCalls, object.SeqKey(int64(req.GetSeq()))))
}

// readResponse reads the response that a request has.
func readResponse(req *livev1.CompleteToolCallRequest) (gemini.FunctionResponse, error) {
	r := gemini.FunctionResponse{WillContinue: req.GetWillContinue(), IsError: req.GetIsError()}
	field, raw := "response_json", []byte(req.GetResponseJson())
	if req.GetResponse() != nil {
		var err error
		field = "response"
		if raw, err = protojson.Marshal(req.GetResponse()); err != nil {
			return r, problem.InvalidArgument(field, "has a number that JSON does not have")
		}
	}
	v, err := gemini.ParseValue(raw)
	if err != nil {
		return r, problem.InvalidArgument(field, err.Error())
	}
	if r.Response.Value = v.Value; v.Text != "" {
		r.Response.Value, r.Response.Text = nil, v.Text
	}
	return r, nil
}

func toolCall(tx *object.Tx[state], seq int32) (*storev1.ToolCall, error) {
	call, _ := tx.Entry(inToolCalls, object.SeqKey(int64(seq))).(*storev1.ToolCall)
	if call == nil {
		return nil, problem.NotFound(fmt.Sprintf("the conversation has no tool call %d", seq))
	}
	return call, nil
}

// refuseCall puts a callError into the caller's words.
func refuseCall(err voice.CallError) error {
	switch {
	case err.Stale:
		return problem.New(errorv1.Reason_REASON_FENCED, "the fencing token is not that of the tool call's newest claim; only its holder renews the claim or responds")
	case !err.Claimed.IsZero():
		p := problem.New(errorv1.Reason_REASON_LEASE_HELD, "another worker has the tool call")
		p.Detail = &errorv1.Held{What: "tool_call", ExpireTime: timestamppb.New(err.Claimed)}
		return p
	case err.Answered:
		return problem.New(errorv1.Reason_REASON_ILLEGAL_TRANSITION, err.Error())
	default:
		p := problem.New(errorv1.Reason_REASON_ILLEGAL_TRANSITION,
			"the tool call is "+strings.ToLower(strings.TrimPrefix(err.Status.String(), "TOOL_CALL_STATUS_"))+"; only one that is not over is claimed or completed")
		p.Detail = &errorv1.Transition{From: err.Status.String()}
		return p
	}
}
