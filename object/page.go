package object

import (
	"context"

	"google.golang.org/protobuf/proto"

	"holdfast/object/internal/bounds"
)

// AnswerBytes is how large an answer grows: a page ends, and a watch goes on with another message, before it passes 2 MiB.
// gRPC clients take 4 MiB unless told otherwise. What is left of the 2 MiB is for what surrounds the items.
const AnswerBytes = 2<<20 - 64<<10

// itemOverhead is what an answer has around an item: its key or id, its times and its version.
const itemOverhead = 256

// Room is what is left in one answer. The zero Room is that of an empty one.
type Room struct {
	// Bytes is how large the answer grows. 0: AnswerBytes.
	Bytes int

	taken int
	any   bool
}

// Fits counts an item in and returns true, or returns false where the answer ends before it. The first item always fits, so
// that no page is empty.
func (r *Room) Fits(bytes int) bool {
	most := r.Bytes
	if most == 0 {
		most = AnswerBytes
	}
	if r.any && r.taken+bytes > most {
		return false
	}
	r.taken += bytes
	r.any = true
	return true
}

// answerSize is what a stored message takes in an answer. Its JSON is the larger one as a rule, but a list of numbers in a
// Struct has five times as many bytes in binary.
func answerSize(stored int, m proto.Message) int { return max(stored, proto.Size(m)) }

// fitting are the newest of the entries that fit in one answer, in their order.
func fitting(entries []Entry, room Room) []Entry {
	from := len(entries)
	for from > 0 && room.Fits(entries[from-1].size) {
		from--
	}
	return entries[from:]
}

// ThreadsPerCore is how many threads Go is to run at once on a core: cmd/holdfast sets GOMAXPROCS so.
const ThreadsPerCore = bounds.ThreadsPerCore

// Line bounds how many calls do costly work at once.
type Line = bounds.Line

// NewLine returns an empty Line.
func NewLine() *Line { return bounds.NewLine() }

// Answer is one call's hold on the room for large answers. The zero Answer holds nothing.
type Answer = bounds.Answer

// Answering returns a context for one call: a large answer that it reads counts until Sent.
func Answering(ctx context.Context, a *Answer) context.Context { return bounds.Answering(ctx, a) }
