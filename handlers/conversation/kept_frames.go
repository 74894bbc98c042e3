package conversation

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// maxKept is how many batches of raw frames are kept.
const maxKept = 256

// rawFrames seals a batch's frames once, and only if somebody asks: most connections do not keep them.
type rawFrames struct {
	m      *Manager
	caller identity.Identity
	id     string
	frames []*conversationv1.LiveFrame
	sealed []byte
}

func (r *rawFrames) seal() ([]byte, error) {
	if r.sealed == nil {
		plain, err := proto.Marshal(&conversationv1.LiveFrameBatch{Frames: r.frames})
		if err != nil {
			return nil, err
		}
		r.sealed = r.m.box.Seal(plain, framesContext(r.caller.Tenant, r.id))
	}
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
	live.KeptBatches++
	expires := tx.Now().Add(live.GetKeepFrames().AsDuration())
	tx.Put(inKeptFrames, object.SeqKey(live.GetKeptBatches()), &conversationv1.KeptFrames{
		Epoch: live.GetEpoch(), Sealed: sealed, CreateTime: timestamppb.New(tx.Now()), ExpireTime: timestamppb.New(expires),
	})
	if live.GetFirstKept() == 0 {
		live.FirstKept = live.GetKeptBatches()
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
		kept, _ := tx.Entry(inKeptFrames, key).(*conversationv1.KeptFrames)
		if kept != nil && tx.Now().Before(kept.GetExpireTime().AsTime()) {
			tx.SetTimer(framesTimer, kept.GetExpireTime().AsTime())
			return
		}
		tx.DeleteEntry(inKeptFrames, key)
		live.FirstKept++
	}
	live.FirstKept = 0 // the next batch sets the timer
}

// ListLiveFrames implements ConversationService.
func (m *Manager) ListLiveFrames(
	ctx context.Context, req *conversationv1.ListLiveFramesRequest,
) (*conversationv1.ListLiveFramesResponse, error) {
	const pageSize = 20 // batches may be large
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	size := pageSize
	if req.GetPageSize() > 0 {
		size = int(req.GetPageSize())
	}
	page, err := m.kind.Entries(ctx, object.ID(req.GetConversationId()), inKeptFrames,
		object.EntriesOptions{PageSize: size, After: object.SeqKey(req.GetAfterNumber())})
	if err != nil {
		return nil, err
	}
	res := &conversationv1.ListLiveFramesResponse{HasMore: page.More, Metadata: rpc.Metadata(page.Info)}
	var room object.Room
	for _, e := range page.Entries {
		kept, _ := e.Value.(*conversationv1.KeptFrames)
		batch, err := m.openKept(caller.Tenant, req.GetConversationId(), e.Key, kept, m.now())
		if err != nil {
			return nil, err
		}
		if batch == nil {
			continue
		}
		// In the open, and in JSON, frames are larger than what is kept of them.
		shown, err := protojson.Marshal(batch)
		if err != nil {
			return nil, err
		}
		if !room.Fits(max(len(shown), proto.Size(batch))) {
			res.HasMore = true
			break
		}
		res.Batches = append(res.Batches, batch)
	}
	return res, nil
}

// openKept is a kept batch in clear; nil: it is over, or its key is gone.
func (m *Manager) openKept(
	t identity.Tenant, conversationID, key string, kept *conversationv1.KeptFrames, now time.Time,
) (*conversationv1.LiveFrameBatch, error) {
	if !now.Before(kept.GetExpireTime().AsTime()) {
		return nil, nil
	}
	plain, err := m.box.Open(kept.GetSealed(), framesContext(t, conversationID))
	if err != nil {
		return nil, nil //nolint:nilerr // a key that was taken away took the frames with it
	}
	batch := &conversationv1.LiveFrameBatch{}
	if err := proto.Unmarshal(plain, batch); err != nil {
		return nil, fmt.Errorf("conversation: kept frames cannot be read: %w", err)
	}
	if _, err := fmt.Sscanf(key, "%d", &batch.Number); err != nil {
		return nil, fmt.Errorf("conversation: key of kept frames: %w", err)
	}
	batch.Epoch, batch.ReceiveTime = kept.GetEpoch(), kept.GetCreateTime()
	return batch, nil
}
