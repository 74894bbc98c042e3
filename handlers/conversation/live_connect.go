package conversation

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// ConnectLive implements LiveService. What the change stores of the reply has no secret and is small: the handle, what to send and
// the tool calls are read from the state that it left, for a retry again.
func (m *Manager) ConnectLive(ctx context.Context, req *livev1.ConnectLiveRequest) (*livev1.ConnectLiveResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	c := &connecting{req: req, caller: caller, sessionEnd: identity.SessionEnd(ctx), limits: m.limits, id: strings.ToLower(rand.Text()[:16]), opens: func(sealed []byte) bool {
		_, err := m.box.Open(sealed, handleContext(caller.Tenant, req.GetConversationId()))
		return err == nil
	}}
	if req.GetValidateOnly() {
		return m.previewLive(ctx, c)
	}
	if req.GetPrevious() == nil { // clients renew a connection by themselves
		identity.Active(ctx)
	}
	c.previous = m.readBatch(ctx, caller, req.GetConversationId(), req.GetPrevious().GetFencingToken(), req.GetPrevious().GetFrames())
	keep := &rawFrames{m: m, caller: caller, id: req.GetConversationId(), frames: req.GetPrevious().GetFrames()}
	res, err := object.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*livev1.ConnectLiveResponse, error) {
			l := newLive(tx)
			c.owner = tx.Info().Owner
			c.settled = func() error { return keep.keep(tx) }
			reason, late, err := c.connect(l.Reducer, tx.State(), tx.Now())
			if err != nil {
				return nil, err
			}
			putFragment(tx, late)
			l.put(tx)
			awaitSilence(tx)
			tx.Emit("live_connected")
			return &livev1.ConnectLiveResponse{
				ConnectionId: c.id, Lease: &typev1.Lease{FencingToken: int32(tx.State().GetLive().GetEpoch())}, //nolint:gosec // connect bounds it
				Plan: &livev1.Plan{Reason: reason}, Version: int64(tx.Info().Version),
			}, nil
		})
	if err != nil {
		return nil, err
	}
	_, err = m.read(ctx, req.GetConversationId(), func(r *reader) error {
		live := r.s.GetLive()
		if token := int64(res.GetLease().GetFencingToken()); token != newestEpoch(r.s) || live.GetOpenTime() == nil {
			return refuse(fencedError{epoch: token, newest: newestEpoch(r.s), by: "another"})
		}
		res.Lease = ownLease(live, m.now())
		return r.plan(ctx, c, live, m.now(), res)
	})
	return res, err
}

// previewLive is ConnectLive that takes nothing.
func (m *Manager) previewLive(ctx context.Context, c *connecting) (*livev1.ConnectLiveResponse, error) {
	res := &livev1.ConnectLiveResponse{}
	c.settled = func() error { return nil }
	_, err := m.read(ctx, c.req.GetConversationId(), func(r *reader) error {
		scratch := proto.CloneOf(r.s)
		f := voice.New(scratch, m.now(), nil)
		c.owner, c.previous = r.info.Owner, voice.Batch{Epoch: int64(c.req.GetPrevious().GetFencingToken())}
		reason, _, err := c.connect(f, scratch, m.now())
		if err != nil {
			return refuse(err)
		}
		res.Plan, res.Version = &livev1.Plan{Reason: reason}, int64(r.info.Version)
		scratch.Live.Lease = nil // so no claim is shown as the caller's
		return r.plan(ctx, c, scratch.GetLive(), m.now(), res)
	})
	return res, err
}

// plan adds what a plan has besides its reason. live is the connection that it is for.
func (r *reader) plan(ctx context.Context, c *connecting, live *storev1.LiveState, now time.Time, res *livev1.ConnectLiveResponse) (err error) {
	p := &livev1.Plan{Reason: res.GetPlan().GetReason()}
	res.Plan = p
	for _, call := range voice.OpenCalls(live) {
		if s := call.GetStatus(); s == voice.CallPending || s == voice.CallRunning || s == voice.CallOrphaned {
			p.ToolCalls = append(p.ToolCalls, presentOwn(live, call, now))
		}
	}
	if wait := retryTime(live).Sub(now); wait > 0 {
		p.ConnectAfter = durationpb.New(wait)
	}
	var h *storev1.LiveHandle
	for _, one := range live.GetHandles() {
		if one.GetId() == live.GetResumedHandleId() {
			h = one
		}
	}
	taken := rpc.AnswerSize(res)
	if h == nil {
		p.Send, err = r.seed(ctx, int64(c.req.GetSeedBudgetTokens()), c.req.GetSeedEndsWithUser(), taken)
		return err
	}
	handle, err := r.m.box.Open(h.GetSealed(), handleContext(c.caller.Tenant, c.req.GetConversationId()))
	if err != nil { // a newer handle has come since: this is a late retry
		return problem.New(errorv1.Reason_REASON_FENCED, "the connection is in use already; call ConnectLive with it as previous for the next")
	}
	p.Handle = string(handle)
	p.Send, err = r.catchUp(ctx, h, c.req.GetSeedEndsWithUser(), object.AnswerBytes-taken-len(p.GetHandle()))
	return err
}

// seed is what a new session has to be told within a budget, or nil; 0: the default.
func (r *reader) seed(ctx context.Context, budget int64, endsWithUser bool, taken int) (*structpb.Struct, error) {
	if budget == 0 {
		budget = defaultSeed
	}
	w, err := r.contextWindow(ctx, budget, false, taken)
	if err != nil {
		return nil, err
	}
	return w.turns(true, true).Seed(endsWithUser), nil
}

// catchUp is what a resumed session does not know, except what is still being said; nil: nothing.
func (r *reader) catchUp(ctx context.Context, h *storev1.LiveHandle, endsWithUser bool, most int) (*structpb.Struct, error) {
	if r.s.GetLastSeq() == h.GetAfterSeq() && r.s.GetToolCallCount() == h.GetAfterToolCall() {
		return nil, nil
	}
	// A call that it does not know may have followed the last message that it does.
	items, _, err := r.items(ctx, max(h.GetAfterSeq()-1, r.s.GetLastSeq()-maxCatchUp, 0), func(items []windowItem, _ bool) bool {
		return newestWithin(items, most) > 0
	})
	if err != nil {
		return nil, err
	}
	items = items[newestWithin(items, most):]
	t := &gemini.Turns{OnlyText: true}
	for _, i := range items {
		if i.message.GetSeq() > h.GetAfterSeq() && !i.open() || i.call.GetSeq() > h.GetAfterToolCall() {
			addItem(t, i)
		}
	}
	return t.Seed(endsWithUser), nil
}

// handleContext binds a sealed handle to its conversation.
func handleContext(t identity.Tenant, conversationID string) []byte {
	return []byte("live handle\x00" + string(t) + "\x00" + conversationID)
}
