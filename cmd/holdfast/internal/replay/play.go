package replay

import (
	"context"
	"time"

	livev1 "holdfast/gen/holdfast/live/v1"
)

const (
	// batchFor is how long frames are gathered before they are sent, as a client would, so that a burst of audio is
	// one request.
	batchFor = 50 * time.Millisecond
	// maxFrames and maxBytes keep a batch within what one request may have.
	maxFrames = 1000
	maxBytes  = 3 << 20
)

// Batch is what is sent with one request: frames of one connection.
type Batch struct {
	// Due is when it is sent, since the replay began.
	Due    time.Duration
	Epoch  int64
	Frames []*livev1.LiveFrame
}

// Batches gathers frames that fall within 50 ms at that speed, 1 being the recording's own. At speed 0 batches are
// those of speed 1, and all of them due at once. A pause longer than maxPause is shortened to that.
func Batches(frames []Frame, speed float64, maxPause time.Duration) []Batch {
	var (
		batches []Batch
		began   time.Duration // of the last batch, at the speed, with its pauses
		size    int
		index   int32
		skipped time.Duration // pauses left out so far
		last    time.Duration
	)
	at := func(f Frame) time.Duration {
		if speed == 0 {
			return f.At
		}
		return time.Duration(float64(f.At) / speed)
	}
	for i, f := range frames {
		now := at(f)
		if i > 0 && now-last > maxPause {
			skipped += now - last - maxPause
		}
		last = now
		now -= skipped
		if i == 0 || f.Connection != frames[i-1].Connection {
			index = 0
		}
		index++
		if index == 1 || now-began > batchFor || len(batches[len(batches)-1].Frames) == maxFrames || size+len(f.JSON) > maxBytes {
			batches = append(batches, Batch{Epoch: f.Connection})
			began, size = now, 0
		}
		b := &batches[len(batches)-1]
		if speed > 0 {
			b.Due = now // of its last frame: nothing is sent before it came
		}
		b.Frames = append(b.Frames, &livev1.LiveFrame{ClientIndex: index, Frame: &livev1.LiveFrame_Text{Text: f.JSON}})
		size += len(f.JSON)
	}
	return batches
}

// Play calls send for each batch when it is due, or as soon as the one before is sent. It ends with the first error.
func Play(ctx context.Context, batches []Batch, send func(context.Context, Batch) error) error {
	began := time.Now()
	for _, b := range batches {
		if err := waitUntil(ctx, began.Add(b.Due)); err != nil {
			return err
		}
		if err := send(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func waitUntil(ctx context.Context, t time.Time) error {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
