package conversation

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// Batches that hold nothing but words which may still change, signs of speech or audio come many times a second, and each
// takes the place of the one before. Watchers see them at once, by a signal. They are stored at most every partialsEvery
// for each conversation: until then they wait here, and the answer says that they are not stored. What is lost with the
// process the client still has.
//
//	fleeting batch ──▶ signal to watchers ──▶ wait here ──partialsEvery after the last commit──▶ commit
//	any other batch ─────────────────────────────┴── takes what waits along ──────────────────▶ commit

const (
	partialsEvery = 250 * time.Millisecond
	// maxPartials is how many frames of one conversation wait, and partialsTimeout how long storing them may take.
	maxPartials     = 1000
	partialsTimeout = 15 * time.Second
)

// partialKey keeps the callers apart: what is refused to one touches nothing that another has waiting.
type partialKey struct {
	caller       identity.Identity
	conversation string
}

// partials are the batches that wait. The zero value is ready; it is safe for concurrent use.
type partials struct {
	mu      sync.Mutex // guards waiting; nothing slow happens under it
	waiting map[partialKey]*partial
}

// partial is what waits for one conversation.
type partial struct {
	batch liveBatch
	raw   []*conversationv1.LiveFrame
	timer *time.Timer
}

// before is how many of the frames come before an index.
func (p *partial) before(index int64) int {
	for i := range p.batch.frames {
		if p.batch.frames[i].index >= index {
			return i
		}
	}
	return len(p.batch.frames)
}

// take removes what waits for a conversation, or returns nil.
func (ps *partials) take(k partialKey) *partial {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.waiting[k]
	if p != nil {
		p.timer.Stop()
		delete(ps.waiting, k)
	}
	return p
}

// add lets a batch wait, with what waits already, and returns all of it; nil: it is too much. The timer calls store.
func (ps *partials) add(k partialKey, batch liveBatch, raw []*conversationv1.LiveFrame, wait time.Duration, store func()) []readFrame {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.waiting[k]
	if p == nil || p.batch.epoch != batch.epoch {
		if p != nil {
			p.timer.Stop()
		}
		p = &partial{batch: liveBatch{epoch: batch.epoch}, timer: time.AfterFunc(wait, store)}
		if ps.waiting == nil {
			ps.waiting = map[partialKey]*partial{}
		}
		ps.waiting[k] = p
	}
	n := p.before(batch.frames[0].index)
	if n+len(batch.frames) > maxPartials {
		return nil
	}
	p.batch.frames = append(p.batch.frames[:n:n], batch.frames...)
	p.raw = append(p.raw[:n:n], raw...)
	return p.batch.frames
}

// show tells the watchers what a fleeting batch says, and lets it wait. It returns nil where the batch must be stored now.
func (m *Manager) show(
	ctx context.Context, caller identity.Identity, req *conversationv1.IngestLiveRequest, batch liveBatch,
) *conversationv1.IngestLiveResponse {
	snap, known := m.kind.Glance(ctx, object.ID(req.GetConversationId()))
	live := snap.State.GetLive()
	last := batch.frames[len(batch.frames)-1].index
	wait := partialsEvery - m.now().Sub(snap.UpdateTime)
	if !known || wait <= 0 || live.GetEpoch() != batch.epoch || live.GetKeepFrames() != nil || last <= live.GetLastClientIndex() {
		return nil
	}
	if fence(snap.State, writer{epoch: batch.epoch, caller: caller, now: m.now()}) != nil {
		return nil
	}
	k := partialKey{caller, req.GetConversationId()}
	frames := m.partials.add(k, batch, req.GetFrames(), min(wait, partialsEvery), func() { m.storePartial(k) }) //nolint:contextcheck // it is stored when the call is over
	if frames == nil {
		return nil
	}
	scratch := &conversationv1.ConversationState{Voice: proto.CloneOf(snap.State.GetVoice()), Live: proto.CloneOf(live), Floor: snap.State.GetFloor()}
	f := newFolder(scratch, m.now(), func(int64, string) *conversationv1.ToolCall { return nil })
	if _, err := f.ingest(liveBatch{epoch: batch.epoch, caller: caller, frames: frames}); err != nil {
		return nil
	}
	signal := &conversationv1.LiveSignal{Epoch: batch.epoch, ClientIndex: last, Voice: scratch.GetVoice()}
	if err := m.kind.Signal(ctx, snap.ID, signal); err != nil {
		return nil
	}
	return &conversationv1.IngestLiveResponse{
		Voice: scratch.GetVoice(), LastClientIndex: live.GetLastClientIndex(), ReceivedClientIndex: last, Metadata: rpc.Metadata(snap.Info),
	}
}

// storePartial commits what waits for a conversation. Nobody waits for it: where it fails, the client still has the frames.
func (m *Manager) storePartial(k partialKey) {
	p := m.partials.take(k)
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(identity.With(context.Background(), k.caller), partialsTimeout)
	defer cancel()
	req := &conversationv1.IngestLiveRequest{ConversationId: k.conversation, Epoch: p.batch.epoch, Frames: p.raw}
	_, _ = m.ingest(ctx, k.caller, req, p.batch, p.raw)
}
