package conversation

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
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
//
// Whether a batch may be shown is decided by the conversation as it is stored, as for any other call: it costs a read, which
// shares its round trip with others, and no commit.
//
// What waits is its sender's: nobody else's call touches it. It stays here until it is stored. Where that fails because of the
// database it is tried again, less and less often; after the last try it is up to the client, as after a crash. What a user has
// waiting who is erased meanwhile is dropped.

const (
	partialsEvery = 250 * time.Millisecond
	// maxPartials and maxPartialBytes are how much of one sender waits for a conversation, and maxWaitingBytes how much waits in
	// all. What is more is stored at once.
	maxPartials     = 1000
	maxPartialBytes = 256 << 10
	maxWaitingBytes = 16 << 20
	// partialsTimeout is how long storing them may take, and partialsTries how often it is tried.
	partialsTimeout = 15 * time.Second
	partialsTries   = 6
)

// partialKey keeps the callers apart: what is refused to one touches nothing that another has waiting.
type partialKey struct {
	caller       identity.Identity
	conversation string
}

// partials are the batches that wait. The zero value is ready; it is safe for concurrent use.
type partials struct {
	mu      sync.Mutex // guards what follows; nothing slow happens under it
	waiting map[partialKey]*partial
	bytes   int // of all that wait
}

// partial is what waits for one conversation.
type partial struct {
	batch voice.Batch
	raw   []*livev1.LiveFrame
	bytes int // of the frames
	timer *time.Timer
	tries int       // to store it that have failed
	since time.Time // when the first of it came
}

// before is how many of the frames come before an index.
func (p *partial) before(index int64) int {
	for i := range p.batch.Frames {
		if p.batch.Frames[i].Index >= index {
			return i
		}
	}
	return len(p.batch.Frames)
}

// drop removes what waits. The caller holds mu.
func (ps *partials) drop(k partialKey) {
	if p := ps.waiting[k]; p != nil {
		p.timer.Stop()
		ps.bytes -= p.bytes
		delete(ps.waiting, k)
	}
}

// due returns a copy of what waits, which goes on waiting; nil: nothing does.
func (ps *partials) due(k partialKey) *partial {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.waiting[k]
	if p == nil {
		return nil
	}
	return &partial{batch: voice.Batch{Epoch: p.batch.Epoch, SessionEnd: p.batch.SessionEnd, Frames: slices.Clone(p.batch.Frames)}, raw: slices.Clone(p.raw), since: p.since}
}

// settle ends a try to store what was due, or a batch that took it along. What came meanwhile goes on waiting, and so does all of it where again says so.
func (ps *partials) settle(k partialKey, tried voice.Batch, again bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.waiting[k]
	if p == nil || p.batch.Epoch != tried.Epoch {
		return // another batch took it along
	}
	if again {
		p.tries++
	}
	if again && p.tries < partialsTries {
		p.timer.Reset(partialsEvery << p.tries)
		return
	}
	n := p.before(tried.Frames[len(tried.Frames)-1].Index + 1)
	if n == len(p.batch.Frames) {
		ps.drop(k)
		return
	}
	p.batch.Frames, p.raw, p.tries = slices.Clone(p.batch.Frames[n:]), slices.Clone(p.raw[n:]), 0
	left := size(p.batch.Frames)
	p.bytes, ps.bytes = left, ps.bytes-p.bytes+left
	p.timer.Reset(partialsEvery)
}

// size is what frames take, about.
func size(frames []voice.Frame) (bytes int) {
	for i := range frames {
		bytes += frames[i].Size
	}
	return bytes
}

// add lets a batch wait, with what waits already, and returns all of it; nil: it is too much. The timer calls store.
func (ps *partials) add(
	k partialKey, batch voice.Batch, raw []*livev1.LiveFrame, now time.Time, wait time.Duration, store func(),
) []voice.Frame {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.waiting[k]
	if p != nil && p.batch.Epoch != batch.Epoch {
		ps.drop(k)
		p = nil
	}
	n, was, bytes := 0, 0, size(batch.Frames)
	if p != nil {
		n, was = p.before(batch.Frames[0].Index), p.bytes
		bytes += size(p.batch.Frames[:n])
	}
	if n+len(batch.Frames) > maxPartials || bytes > maxPartialBytes || ps.bytes-was+bytes > maxWaitingBytes {
		return nil
	}
	if p == nil {
		p = &partial{batch: voice.Batch{Epoch: batch.Epoch, SessionEnd: batch.SessionEnd}, timer: time.AfterFunc(wait, store), since: now}
		if ps.waiting == nil {
			ps.waiting = map[partialKey]*partial{}
		}
		ps.waiting[k] = p
	}
	p.batch.Frames = append(p.batch.Frames[:n:n], batch.Frames...)
	p.raw = append(p.raw[:n:n], raw...)
	p.bytes, ps.bytes = bytes, ps.bytes-was+bytes
	return p.batch.Frames
}

// show tells the watchers what a fleeting batch says, and lets it wait. It returns nil where the batch must be stored now, which is
// also where it is refused.
func (m *Manager) show(
	ctx context.Context, caller identity.Identity, req *livev1.IngestLiveRequest, batch voice.Batch,
) (*livev1.IngestLiveResponse, error) {
	snap, err := m.kind.View(ctx, object.ID(req.GetConversationId()))
	if err != nil {
		return nil, err
	}
	live, now := snap.State.GetLive(), m.now()
	last := batch.Frames[len(batch.Frames)-1].Index
	wait := partialsEvery - now.Sub(snap.UpdateTime)
	if wait <= 0 || live.GetEpoch() != batch.Epoch || live.GetKeepFrames() != nil || last <= live.GetLastClientIndex() {
		return nil, nil
	}
	w := writer{epoch: batch.Epoch, caller: caller, now: now}
	if errors.Join(batch.CheckIndexes("frames", live.GetLastClientIndex()), fence(snap.State, w)) != nil || !held(live, now) {
		return nil, nil //nolint:nilerr // ingest says it to the caller
	}
	k := partialKey{caller, req.GetConversationId()}
	frames := m.partials.add(k, batch, req.GetFrames(), now, min(wait, partialsEvery), func() { m.storePartial(k) }) //nolint:contextcheck // it is stored when the call is over
	if frames == nil {
		return nil, nil
	}
	scratch := &storev1.ConversationState{Voice: proto.CloneOf(snap.State.GetVoice()), Live: proto.CloneOf(live)}
	f := voice.New(scratch, now, nil)
	f.FoldBatch(voice.Batch{Epoch: batch.Epoch, Frames: frames})
	signal := &storev1.LiveSignal{Epoch: batch.Epoch, ClientIndex: last, Voice: scratch.GetVoice()}
	if err := m.kind.Signal(ctx, snap.Info, signal); err != nil {
		return nil, err
	}
	return &livev1.IngestLiveResponse{
		StoredThrough: int32(live.GetLastClientIndex()), ReceivedThrough: int32(last), //nolint:gosec // they were int32
		Lease: ownLease(live, now), Rotate: rotate(snap.State, now, m.limits), Voice: presentVoice(scratch.GetVoice()), Version: int64(snap.Version),
	}, nil
}

// storePartial commits what waits. Frames that another batch stored meanwhile are skipped by their indexes.
func (m *Manager) storePartial(k partialKey) {
	p := m.partials.due(k)
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(identity.With(context.Background(), k.caller), partialsTimeout)
	defer cancel()
	erased, err := false, error(nil)
	if k.caller.User != "" {
		erased, err = m.kind.Erased(ctx, p.since)
	}
	if err == nil && !erased {
		req := &livev1.IngestLiveRequest{ConversationId: k.conversation, FencingToken: int32(p.batch.Epoch), Frames: p.raw} //nolint:gosec // it was an int32
		_, err = m.ingest(ctx, k.caller, req, p.batch, p.raw)
	}
	_, full := errors.AsType[*object.OverloadedError](err)
	m.partials.settle(k, p.batch, full || errors.Is(err, db.ErrUnavailable) || errors.Is(err, db.ErrOutcomeUnknown) || errors.Is(err, context.DeadlineExceeded))
}
