package voice

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/problem"
)

// Batch is the frames of one request, read.
type Batch struct {
	Epoch  int64
	Frames []Frame
	// Nothing in it must be stored by itself.
	Fleeting bool
	// Something in it shows that the user did something.
	ByUser bool
	// sessionEnd is when the sender's session ends; zero: there is none.
	SessionEnd time.Time
}

// Frame is one frame, read: the messages in it, and how much of it was not understood.
type Frame struct {
	Index    int64
	messages []gemini.Message
	unknown  int
	Size     int
}

// MaxIndexGap is how many numbers of frames a client may leave out: a day of all that a microphone sends, which need not come here.
const MaxIndexGap = 1_000_000

// CheckIndexes refuses a frame of a field that is too far ahead of the one before it: all that the client sends later would be taken for
// frames that were folded already.
func (b *Batch) CheckIndexes(field string, last int64) error {
	for i := range b.Frames {
		index := b.Frames[i].Index
		if index-last > MaxIndexGap+1 {
			return problem.InvalidArgument(fmt.Sprintf("%s[%d].client_index", field, i), fmt.Sprintf(
				"%d follows %d: it counts the frames of its connection from 1, and leaves out %d of them at most", index, last, MaxIndexGap))
		}
		last = max(last, index)
	}
	return nil
}

// ReadBatch reads the frames of a request. Resumption handles are replaced by what seal makes of them.
func ReadBatch(epoch int64, frames []*livev1.LiveFrame, seal func([]byte) []byte) Batch {
	b := Batch{Epoch: epoch, Frames: make([]Frame, len(frames)), Fleeting: true}
	for i, frame := range frames {
		f := &b.Frames[i]
		f.Index, f.Size = int64(frame.GetClientIndex()), proto.Size(frame)
		f.messages, f.unknown = gemini.Parse(frame)
		b.Fleeting = b.Fleeting && f.unknown == 0
		for j := range f.messages {
			if u := f.messages[j].SessionResumptionUpdate; u != nil {
				if u.Resumable && u.NewHandle != "" {
					u.Sealed = seal([]byte(u.NewHandle))
				}
				u.NewHandle = ""
			}
			b.Fleeting = b.Fleeting && f.messages[j].Fleeting()
			b.ByUser = b.ByUser || f.messages[j].ByUser()
		}
	}
	return b
}
