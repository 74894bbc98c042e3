package conversation

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// maxKept is how many batches of raw frames are kept.
const maxKept = 256

// keptTogether is how large kept frames are that stand in one entry, unless one frame is larger. Sealed and in base64 they fit.
const keptTogether = 128 << 10

// rawFrames seals a batch's frames once, and only if somebody asks: most connections do not keep them.
type rawFrames struct {
	m      *Manager
	caller identity.Identity
	id     string
	frames []*livev1.LiveFrame
	sealed [][]byte
}

// seal seals the frames in parts, each of which an entry has room for.
func (r *rawFrames) seal() ([][]byte, error) {
	if r.sealed != nil {
		return r.sealed, nil
	}
	var parts [][]byte
	for frames := r.frames; len(frames) > 0; {
		room, n := object.Room{Bytes: keptTogether}, 0
		for n < len(frames) && room.Fits(rpc.AnswerSize(frames[n])) {
			n++
		}
		plain, err := proto.Marshal(&livev1.LiveFrameBatch{Frames: frames[:n]})
		if err != nil {
			return nil, err
		}
		parts = append(parts, r.m.box.Seal(plain, framesContext(r.caller.Tenant, r.id)))
		frames = frames[n:]
	}
	r.sealed = parts
	return r.sealed, nil
}

func framesContext(t identity.Tenant, conversationID string) []byte {
	return []byte("live frames\x00" + string(t) + "\x00" + conversationID)
}

// keep stages a batch's raw frames where the connection keeps them, and drops those that are too many.
func (r *rawFrames) keep(tx *object.Tx[state]) error {
	live := tx.State().GetLive()
	if live.GetKeepFrames() == nil {
		return nil
	}
	sealed, err := r.seal()
	if err != nil {
		return err
	}
	first, expires := live.GetKeptBatches()+1, tx.Now().Add(live.GetKeepFrames().AsDuration())
	for _, part := range sealed {
		live.KeptBatches++
		tx.Put(inKeptFrames, object.SeqKey(live.GetKeptBatches()), &storev1.KeptFrames{
			Epoch: live.GetEpoch(), Sealed: part, CreateTime: timestamppb.New(tx.Now()), ExpireTime: timestamppb.New(expires),
			User: string(r.caller.User),
		})
	}
	if live.GetFirstKept() == 0 {
		live.FirstKept = first
		tx.SetTimer(framesTimer, expires)
	}
	for live.GetKeptBatches()-live.GetFirstKept() >= maxKept {
		tx.DeleteEntry(inKeptFrames, object.SeqKey(live.GetFirstKept()))
		live.FirstKept++
	}
	return nil
}

// framesTimer wakes a conversation when its oldest raw frames are over.
const framesTimer = "kept_frames"

// dropKept removes the raw frames that are over, and sets the timer for those that are not.
func dropKept(tx *object.Tx[state]) {
	live := tx.State().GetLive()
	for live.GetFirstKept() != 0 && live.GetFirstKept() <= live.GetKeptBatches() {
		key := object.SeqKey(live.GetFirstKept())
		kept, _ := tx.Entry(inKeptFrames, key).(*storev1.KeptFrames)
		if kept != nil && tx.Now().Before(kept.GetExpireTime().AsTime()) {
			tx.SetTimer(framesTimer, kept.GetExpireTime().AsTime())
			return
		}
		tx.DeleteEntry(inKeptFrames, key)
		live.FirstKept++
	}
	live.FirstKept = 0 // the next batch sets the timer
}

// ListLiveFrames implements LiveService.
func (m *Manager) ListLiveFrames(ctx context.Context, req *livev1.ListLiveFramesRequest) (*livev1.ListLiveFramesResponse, error) {
	const pageSize = 20 // batches may be large
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	after, err := rpc.Cursor(req)
	if err != nil {
		return nil, err
	}
	o := object.EntriesOptions{PageSize: cmp.Or(int(req.GetPageSize()), pageSize)}
	res := &livev1.ListLiveFramesResponse{}
	var room object.Room
	// A page of which all is over is no answer: there would be nothing to go on from.
	for more := true; more && len(res.GetBatches()) == 0; {
		o.After = after
		page, err := m.kind.Entries(ctx, object.ID(req.GetConversationId()), inKeptFrames, o)
		if err != nil {
			return nil, err
		}
		more = page.More
		for _, e := range page.Entries {
			kept, _ := e.Value.(*storev1.KeptFrames)
			batch, err := m.openKept(caller.Tenant, req.GetConversationId(), e.Key, kept, m.now())
			if err != nil {
				return nil, err
			}
			if batch == nil || !mayHave(caller, page.Owner, kept.GetUser()) {
				after = e.Key
				continue
			}
			// In the open, and in JSON, frames are larger than what is kept of them.
			if !room.Fits(rpc.AnswerSize(batch)) {
				more = true
				break
			}
			res.Batches, after = append(res.Batches, batch), e.Key
		}
		res.NextPageToken = ""
		if more {
			res.NextPageToken = rpc.Token(req, after)
		}
	}
	return res, nil
}

// openKept is a kept batch in clear; nil: it is over, or its key is gone.
func (m *Manager) openKept(
	t identity.Tenant, conversationID, key string, kept *storev1.KeptFrames, now time.Time,
) (*livev1.LiveFrameBatch, error) {
	if !now.Before(kept.GetExpireTime().AsTime()) {
		return nil, nil
	}
	plain, err := m.box.Open(kept.GetSealed(), framesContext(t, conversationID))
	if err != nil {
		return nil, nil //nolint:nilerr // a key that was taken away took the frames with it
	}
	batch := &livev1.LiveFrameBatch{}
	if err := proto.Unmarshal(plain, batch); err != nil {
		return nil, fmt.Errorf("conversation: kept frames cannot be read: %w", err)
	}
	if _, err := fmt.Sscanf(key, "%d", &batch.Number); err != nil {
		return nil, fmt.Errorf("conversation: key of kept frames: %w", err)
	}
	batch.FromConnection, batch.ReceiveTime = int32(kept.GetEpoch()), kept.GetCreateTime() //nolint:gosec // it was an int32
	return batch, nil
}
