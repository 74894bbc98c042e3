package conversation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// maxRemoved is how many messages one change removes.
const maxRemoved = 1000

// EditMessages implements ConversationService.
func (m *Manager) EditMessages(ctx context.Context, req *conversationv1.EditMessagesRequest) (*conversationv1.EditMessagesResponse, error) {
	if err := checkNewMessages(req.GetMessages()); err != nil {
		return nil, err
	}
	for i, u := range req.GetUpdates() {
		if u.GetMessage().GetSeq() == 0 {
			return nil, problem.InvalidArgument(fmt.Sprintf("updates[%d].message.seq", i), "must name a message")
		}
	}
	touched, opts, err := m.touched(ctx, req)
	if err != nil && !errors.Is(err, object.ErrNotFound) { // a repeated request still gets its first reply
		return nil, err
	}
	return object.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.EditMessagesResponse, error) {
			return editMessages(tx, req, touched)
		},
		append(opts, expectNew(req.GetMessages())...)...)
}

// touched reads what a truncation removes, so that the change finds it loaded. What is appended meanwhile the change finds by
// itself.
func (m *Manager) touched(ctx context.Context, req *conversationv1.EditMessagesRequest) (seqs []int64, opts []object.UpdateOption, err error) {
	var messages, ids, calls, refs, summaries []string
	id := object.ID(req.GetConversationId())
	note := func(e object.Entry) {
		if msg, ok := e.Value.(*storev1.Message); ok {
			if messages = append(messages, e.Key); msg.GetClientMessageId() != "" {
				ids = append(ids, msg.GetClientMessageId())
			}
		}
	}
	if req.TruncateAfterSeq != nil {
		after := int64(req.GetTruncateAfterSeq())
		if err := m.back(ctx, id, inMessages, func(e object.Entry) (bool, error) {
			msg, _ := e.Value.(*storev1.Message)
			if msg.GetSeq() <= after {
				return false, nil
			}
			note(e)
			seqs = append(seqs, msg.GetSeq())
			return true, tooMany(len(seqs))
		}); err != nil {
			return nil, nil, err
		}
		if err := m.back(ctx, id, inToolCalls, func(e object.Entry) (bool, error) {
			call, _ := e.Value.(*storev1.ToolCall)
			if call.GetAfterSeq() < after {
				return false, nil
			}
			calls, refs = append(calls, e.Key), append(refs, callKey(call.GetSession(), call.GetCallId()))
			return true, nil
		}); err != nil {
			return nil, nil, err
		}
		if err := m.back(ctx, id, inSummaries, func(e object.Entry) (bool, error) {
			summary, _ := e.Value.(*storev1.Summary)
			summaries = append(summaries, e.Key)
			return summary.GetToSeq() > after, nil
		}); err != nil {
			return nil, nil, err
		}
	}
	var named []string
	for _, seq := range req.GetDeleteSeqs() {
		named = append(named, object.SeqKey(int64(seq)))
	}
	for _, u := range req.GetUpdates() {
		named = append(named, object.SeqKey(int64(u.GetMessage().GetSeq())))
	}
	if len(named) > 0 {
		page, err := m.kind.Lookup(ctx, id, inMessages, named...)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range page.Entries {
			note(e)
		}
	}
	slices.Sort(seqs)
	return seqs, []object.UpdateOption{
		object.Prefetch(inMessages, messages...), object.Prefetch(inClientMessages, ids...), object.Prefetch(inToolCalls, calls...),
		object.Prefetch(inCallRefs, refs...), object.Prefetch(inSummaries, summaries...),
	}, nil
}

func tooMany(removed int) error {
	if removed <= maxRemoved {
		return nil
	}
	return problem.SizeExceeded("removed_messages", int64(removed), maxRemoved,
		fmt.Sprintf("one change removes at most %d messages: truncate in steps, from the end, or delete the conversation", maxRemoved))
}

// back reads a collection from the newest entry on, as long as each says so.
func (m *Manager) back(ctx context.Context, id object.ID, collection string, each func(object.Entry) (bool, error)) error {
	for before, more := lastKey, true; more; {
		page, err := m.kind.Entries(ctx, id, collection, object.EntriesOptions{Before: before, PageSize: object.MaxPageSize})
		if err != nil {
			return err
		}
		for _, e := range slices.Backward(page.Entries) {
			if goOn, err := each(e); !goOn || err != nil {
				return err
			}
			before = e.Key
		}
		more = page.More
	}
	return nil
}

// editMessages makes the change. touched are the seqs that a truncation was seen to remove, rising.
func editMessages(tx *object.Tx[state], req *conversationv1.EditMessagesRequest, touched []int64) (*conversationv1.EditMessagesResponse, error) {
	var removed []*storev1.Message
	if req.TruncateAfterSeq != nil {
		removed = truncateAfter(tx, int64(req.GetTruncateAfterSeq()), touched)
	}
	for _, seq := range req.GetDeleteSeqs() {
		if msg := removeMessage(tx, int64(seq)); msg != nil {
			removed = append(removed, msg)
		}
	}
	if err := tooMany(len(removed)); err != nil {
		return nil, err
	}
	res := &conversationv1.EditMessagesResponse{}
	var room object.Room
	changed := len(removed) > 0
	for i, u := range req.GetUpdates() {
		key := object.SeqKey(int64(u.GetMessage().GetSeq()))
		old, _ := tx.Entry(inMessages, key).(*storev1.Message)
		if old == nil {
			return nil, problem.NotFound(fmt.Sprintf("the conversation has no message %d", u.GetMessage().GetSeq()))
		}
		msg, err := updateMessage(tx.State(), old, u, tx.Now())
		if errors.Is(err, errNotSpoken) {
			return nil, problem.InvalidArgument(fmt.Sprintf("updates[%d].message.seq", i), err.Error())
		}
		if err != nil {
			return nil, refuse(err)
		}
		if msg != old {
			tx.Put(inMessages, key, msg)
			changed = true
		}
		shown := presentMessage(msg)
		if !room.Fits(rpc.AnswerSize(shown)) {
			shown = presentAppended(msg)
		}
		res.Messages = append(res.Messages, shown)
	}
	added, duplicates, err := addMessages(tx, req.GetMessages())
	if err != nil {
		return nil, err
	}
	if !changed && len(added) == len(duplicates) {
		tx.Unchanged()
	}
	res.Messages, res.DuplicateSeqs = append(res.Messages, added...), duplicates
	slices.SortFunc(removed, func(a, b *storev1.Message) int { return int(a.GetSeq() - b.GetSeq()) })
	for _, msg := range removed {
		res.RemovedSeqs = append(res.RemovedSeqs, small(msg.GetSeq()))
		if req.GetReturnRemoved() {
			if shown := presentMessage(msg); room.Fits(rpc.AnswerSize(shown)) {
				res.Removed = append(res.Removed, shown)
			}
		}
	}
	res.Version = int64(tx.Info().Version)
	return res, nil
}

// truncateAfter removes the messages after a seq, and what stands for them or belongs to them: summaries, tool calls that are over,
// and the lease to summarise them. touched are the seqs that are known to be there; of those that are not it needs none.
func truncateAfter(tx *object.Tx[state], after int64, touched []int64) (removed []*storev1.Message) {
	s := tx.State()
	newest := after
	if len(touched) > 0 {
		newest = max(newest, touched[len(touched)-1])
	}
	for seq := newest + 1; seq <= s.GetLastSeq(); seq++ {
		touched = append(touched, seq)
	}
	for _, seq := range touched {
		if msg := removeMessage(tx, seq); msg != nil {
			removed = append(removed, msg)
		}
	}
	for seq := s.GetToolCallCount(); seq > 0; seq-- {
		call, _ := tx.Entry(inToolCalls, object.SeqKey(seq)).(*storev1.ToolCall)
		if call == nil {
			continue
		}
		if call.GetAfterSeq() < after {
			break
		}
		if waits := (windowItem{call: call}).open() || call.GetStatus() == voice.CallOrphaned; !waits {
			if pending := s.GetLive().GetPendingCalls(); pending[call.GetCallId()].GetSeq() == seq {
				delete(pending, call.GetCallId())
			}
			tx.DeleteEntry(inToolCalls, object.SeqKey(seq))
			tx.DeleteEntry(inCallRefs, callKey(call.GetSession(), call.GetCallId()))
		}
	}
	for seq := s.GetSummary().GetSeq(); seq > 0 && s.GetSummary().GetToSeq() > after; {
		tx.DeleteEntry(inSummaries, object.SeqKey(seq))
		s.Summary = nil
		for seq--; seq > 0 && s.Summary == nil; seq-- {
			s.Summary, _ = tx.Entry(inSummaries, object.SeqKey(seq)).(*storev1.Summary)
		}
		seq = s.GetSummary().GetSeq()
	}
	if lease := s.GetCompaction(); lease.GetToSeq() > after {
		s.Compaction = &storev1.CompactionLease{Token: lease.GetToken()} // the token is not given twice
	}
	return removed
}

// removeMessage takes a message out of the conversation and its counts; nil: it is not there.
func removeMessage(tx *object.Tx[state], seq int64) *storev1.Message {
	key, s := object.SeqKey(seq), tx.State()
	msg, _ := tx.Entry(inMessages, key).(*storev1.Message)
	if msg == nil {
		return nil
	}
	tx.DeleteEntry(inMessages, key)
	if id := msg.GetClientMessageId(); id != "" {
		if ref, _ := tx.Entry(inClientMessages, id).(*storev1.MessageRef); ref.GetSeq() == seq {
			tx.DeleteEntry(inClientMessages, id)
		}
	}
	s.RemovedCount++
	s.TokenCount -= msg.GetTokenCount()
	if i, found := slices.BinarySearch(s.GetPinnedSeqs(), seq); found {
		s.PinnedSeqs = slices.Delete(s.GetPinnedSeqs(), i, i+1)
	}
	voice.Edited(s.GetLive(), &storev1.Message{Seq: seq}) // a turn that still grows begins again with its next words
	return msg
}
