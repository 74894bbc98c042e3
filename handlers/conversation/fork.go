package conversation

import (
	"context"
	"errors"
	"fmt"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// ForkConversation implements ConversationService. Its request id is one of the new conversation. Users fork only what is their own.
func (m *Manager) ForkConversation(
	ctx context.Context, req *conversationv1.ForkConversationRequest,
) (*conversationv1.ForkConversationResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	id, err := rpc.NewID(ctx, m.kind, req.GetNewConversationId(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	at := object.Latest()
	if req.GetAtVersion() != 0 {
		at = object.Moment{Version: object.Version(req.GetAtVersion())}
	}
	caller.OwnOnly = true
	past, refused := m.kind.PastWhole(identity.With(ctx, caller), object.ID(req.GetConversationId()), at)
	res, err := object.Do(ctx, m.kind, id, req, func(tx *object.Tx[state]) (*conversationv1.ForkConversationResponse, error) {
		if refused != nil { // said here, so that a repeated request still gets its first reply
			return nil, refused
		}
		if err := tx.Become(past); err != nil {
			return nil, err
		}
		if _, ok := req.GetAt().(*conversationv1.ForkConversationRequest_ThroughSeq); ok {
			if err := endWith(tx, int64(req.GetThroughSeq())); err != nil {
				return nil, err
			}
		}
		if req.GetConversation() != nil {
			if err := updateConversation(tx.Info(), tx.State(), req.GetConversation(), nil); err != nil {
				return nil, err
			}
		}
		return &conversationv1.ForkConversationResponse{Conversation: present(tx.Info(), tx.State())}, nil
	}, object.Create())
	return res, outOfReach(err, at)
}

// endWith leaves a fork its messages through a seq, from which it counts on.
func endWith(tx *object.Tx[state], seq int64) error {
	s := tx.State()
	if seq > s.GetLastSeq() {
		return problem.InvalidArgument("through_seq", fmt.Sprintf("the conversation's last message is %d", s.GetLastSeq()))
	}
	truncateAfter(tx, seq, nil)
	left := messageCount(s)
	s.LastSeq, s.RemovedCount = seq, seq-left
	return nil
}

// outOfReach translates a HistoryError into the request's words.
func outOfReach(err error, at object.Moment) error {
	gone, ok := errors.AsType[*object.HistoryError](err)
	switch {
	case !ok:
		return err
	case at.Version > gone.Newest:
		return problem.InvalidArgument("at_version", fmt.Sprintf("the conversation is at version %d", gone.Newest))
	}
	p := problem.New(errorv1.Reason_REASON_HISTORY_GONE, fmt.Sprintf(
		"the conversation's journal reaches back to version %d; what was before is gone, or was another conversation of that id", gone.Oldest))
	p.Detail = &errorv1.History{OldestVersion: int64(gone.Oldest), NewestVersion: int64(gone.Newest)}
	return p
}
