package voice

import (
	"slices"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

// Vertex AI sends the arguments of a large call in pieces: first the call without arguments, then values at paths (RFC 9535, of which
// it uses names and indexes), where a text at a path goes on with each piece, then the call once more, which ends it. The call is made
// when it is whole.

// maxPartialCalls are the calls of which pieces come at one time.
const maxPartialCalls = 8

// gather takes in a piece of a call. It returns the whole call, or false where more is to come.
func (f *Reducer) gather(piece gemini.FunctionCall) (gemini.FunctionCall, bool) {
	known := f.partialCall(string(piece.ID))
	if known == nil && !piece.WillContinue && len(piece.PartialArgs) == 0 {
		return piece, true
	}
	if known == nil {
		known = &storev1.ToolCall{CallId: string(piece.ID), Name: gemini.FirstBytes(string(piece.Name), gemini.MaxName), Args: piece.Args.Fields, ThoughtSignature: piece.Signature}
		f.live.PartialCalls = append(f.live.GetPartialCalls(), known)
		if n := len(f.live.GetPartialCalls()); n > maxPartialCalls {
			f.misunderstood()
			f.live.PartialCalls = f.live.GetPartialCalls()[n-maxPartialCalls:]
		}
	}
	for i := range piece.PartialArgs {
		if !piece.PartialArgs[i].AddTo(known) {
			f.misunderstood()
		}
	}
	if piece.WillContinue {
		f.note(CallInPieces, nil, "waits for more", known.GetName())
		return gemini.FunctionCall{}, false
	}
	for i, call := range f.live.GetPartialCalls() {
		if call == known {
			f.live.PartialCalls = slices.Concat(f.live.GetPartialCalls()[:i], f.live.GetPartialCalls()[i+1:])
			break
		}
	}
	whole := gemini.FunctionCall{ID: gemini.Text(known.GetCallId()), Name: gemini.Text(known.GetName()), Signature: known.GetThoughtSignature()}
	whole.Args.Fields, whole.Args.Text, whole.Args.Omitted = known.GetArgs(), known.GetArgsJson(), known.GetArgsOmitted()
	return whole, true
}

// partialCall is the call that a piece belongs to; one without an id belongs to the newest.
func (f *Reducer) partialCall(id string) *storev1.ToolCall {
	for i := len(f.live.GetPartialCalls()) - 1; i >= 0; i-- {
		if call := f.live.GetPartialCalls()[i]; id == "" || call.GetCallId() == id {
			return call
		}
	}
	return nil
}
