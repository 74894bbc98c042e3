package voice

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	livev1 "holdfast/gen/holdfast/live/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// Transcript is a conversation in memory: what its frames have led to so far. It is what a replay without a server and tests use.
type Transcript struct {
	State    *storev1.ConversationState
	Messages map[int64]*storev1.Message
	Calls    map[int64]*storev1.ToolCall
	// Report is called with each effect of a frame, in order; nil: nobody wants to know.
	Report func(Effect)
}

// NewTranscript returns the transcript of a conversation in which nothing was said.
func NewTranscript() *Transcript {
	return &Transcript{State: &storev1.ConversationState{}, Messages: map[int64]*storev1.Message{}, Calls: map[int64]*storev1.ToolCall{}}
}

// Message implements Stored.
func (t *Transcript) Message(seq int64) *storev1.Message { return t.Messages[seq] }

// Call implements Stored.
func (t *Transcript) Call(session int64, id string) *storev1.ToolCall {
	var newest *storev1.ToolCall
	for _, c := range t.Calls {
		if c.GetSession() == session && c.GetCallId() == id && c.GetSeq() > newest.GetSeq() {
			newest = c
		}
	}
	return newest
}

// Do applies rules to the conversation and keeps what they did.
func (t *Transcript) Do(now time.Time, rules func(*Reducer)) {
	r := New(t.State, now, t)
	r.report = t.Report
	rules(r)
	effects := r.Effects()
	for _, m := range effects.Messages {
		t.Messages[m.GetSeq()] = m
	}
	for _, c := range effects.ToolCalls {
		t.Calls[c.GetSeq()] = c
	}
}

// Connect begins the next connection. It resumes the session before, as far as is known, and leaves tool calls to workers.
func (t *Transcript) Connect(now time.Time) {
	t.Do(now, func(r *Reducer) {
		live := t.State.GetLive()
		o := Opening{Epoch: live.GetEpoch() + 1, LeaveToolCalls: true}
		if h := NewestResumable(live.GetHandles()); h.GetSession() == live.GetSession() {
			o.Resumes = h.GetId()
		}
		r.Open(o)
	})
}

// Fold folds frames of the newest connection.
func (t *Transcript) Fold(now time.Time, frames ...*livev1.LiveFrame) (err error) {
	t.Do(now, func(r *Reducer) {
		_, err = r.Ingest(ReadBatch(t.State.GetLive().GetEpoch(), frames, func([]byte) []byte { return []byte("handle") }), nil)
	})
	return err
}

// Lines are what was said, in order: a line for each message, such as "user: Hi", with * where it is still open, and for each call.
func (t *Transcript) Lines() (lines []string) {
	calls := slices.Sorted(maps.Keys(t.Calls))
	until := func(seq int64) {
		for len(calls) > 0 && t.Calls[calls[0]].GetAfterSeq() < seq {
			c := t.Calls[calls[0]]
			lines, calls = append(lines, fmt.Sprintf("call %s %s", c.GetCallId(), word(c.GetStatus()))), calls[1:]
		}
	}
	for _, seq := range slices.Sorted(maps.Keys(t.Messages)) {
		until(seq)
		m, open := t.Messages[seq], ""
		if m.GetStatus() == storev1.MessageStatus_MESSAGE_STATUS_STREAMING {
			open = "*"
		}
		lines = append(lines, word(m.GetRole())+open+": "+m.GetText())
	}
	until(math.MaxInt64)
	return lines
}
