package voice

import (
	"maps"
	"slices"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/gemini"
)

// Abandon keeps what an older connection sent after it was replaced: what was said becomes a fragment, which is nil where
// there is nothing new, and responses to its tool calls are told as text.
func (f *Reducer) Abandon(batch Batch) *storev1.Fragment {
	known := f.live.GetFencedIndexes()[batch.Epoch]
	if batch.Epoch == f.live.GetEpoch() { // nobody has connected since
		known = max(known, f.live.GetLastClientIndex())
	}
	if batch.CheckIndexes("frames", known) != nil {
		return nil
	}
	fragment := &storev1.Fragment{Epoch: batch.Epoch, CreateTime: f.now}
	for i := range batch.Frames {
		frame := &batch.Frames[i]
		if frame.Index <= known {
			continue
		}
		known = frame.Index
		if fragment.GetFirstClientIndex() == 0 {
			fragment.FirstClientIndex = frame.Index
		}
		fragment.LastClientIndex = frame.Index
		for j := range frame.messages {
			f.abandonMessage(fragment, &frame.messages[j])
		}
	}
	if f.live.FencedIndexes == nil {
		f.live.FencedIndexes = map[int64]int64{}
	}
	if known > f.live.GetFencedIndexes()[batch.Epoch] {
		f.live.FencedIndexes[batch.Epoch] = known
	}
	for len(f.live.GetFencedIndexes()) > maxFenced {
		delete(f.live.FencedIndexes, slices.Min(slices.Collect(maps.Keys(f.live.GetFencedIndexes()))))
	}
	fragment.UserText = gemini.FirstBytes(gemini.Text(fragment.GetUserText()).Whole(), maxFragmentText)
	fragment.AssistantText = gemini.FirstBytes(gemini.Text(fragment.GetAssistantText()).Whole(), maxFragmentText)
	if fragment.GetUserText() == "" && fragment.GetAssistantText() == "" || f.state.GetFragmentCount() >= maxFragments {
		return nil
	}
	f.state.FragmentCount++
	fragment.Seq = f.state.GetFragmentCount()
	return fragment
}

func (f *Reducer) abandonMessage(fragment *storev1.Fragment, m *gemini.Message) {
	user, assistant := "", ""
	if c := m.ServerContent; c != nil {
		user, assistant = string(c.InputTranscription.Text), string(c.OutputTranscription.Text)
		if c.ModelTurn != nil && assistant == "" {
			assistant = c.ModelTurn.Text()
		}
	}
	if m.RealtimeInput != nil {
		user += string(m.RealtimeInput.Text)
	}
	fragment.UserText += user
	fragment.AssistantText += assistant
	if m.ToolResponse == nil {
		return
	}
	for _, response := range m.ToolResponse.FunctionResponses {
		if f.live.GetPendingCalls()[string(response.ID)].GetEpoch() == fragment.GetEpoch() && !response.WillContinue {
			f.answerCall(response)
		}
	}
}

const (
	maxFragments    = 1000
	maxFragmentText = 16 << 10
)
