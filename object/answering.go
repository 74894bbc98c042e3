package object

import (
	"context"

	"holdfast/object/internal/bounds"
)

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
