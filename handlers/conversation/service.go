// Package conversation is the ConversationManager: the rules of conversations, and the RPCs that apply them. The rules
// are plain functions over a conversation's state; the object runtime makes what they come to durable.
package conversation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	errorv1 "holdfast/gen/holdfast/error/v1"
	objectv1 "holdfast/gen/holdfast/object/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/object"
	"holdfast/seal"
)

// state is what a conversation stores.
type state = *conversationv1.ConversationState

// Manager serves ConversationService. It is safe for concurrent use.
type Manager struct {
	kind     *object.Kind[state]
	box      *seal.Box
	now      func() time.Time
	limits   LiveLimits
	partials partials
}

// Options are what a Manager needs beside its kind.
type Options struct {
	// Box seals resumption handles and raw frames.
	Box *seal.Box
	// Now tells the time where no transaction does: for reads.
	Now func() time.Time
	// Limits; zero ones have defaults.
	Limits LiveLimits
}

var _ conversationv1connect.ConversationServiceHandler = (*Manager)(nil)

// DefaultTTL is how long a conversation is kept after its last change, where it does not say.
const DefaultTTL = 30 * 24 * time.Hour

// recentMessages stay decoded in the cache of each conversation that is read: as many as an assistant's turn usually reads.
const recentMessages = 20

// Register adds the kind "conversation" to the runtime.
func Register(rt *object.Runtime) *object.Kind[state] {
	return object.Register(rt, object.KindConfig[state]{
		Name: "conversation", SchemaVersion: 1, TTL: DefaultTTL, Users: object.UsersShare, UserRestore: true, Restored: restored, NewLife: newLife,
		TTLOf: func(s state) time.Duration { return s.GetTtl().AsDuration() },
		Terms: terms,
		Collections: map[string]proto.Message{
			inMessages:       &conversationv1.Message{},
			inClientMessages: &conversationv1.MessageRef{},
			inIntents:        &conversationv1.Intent{},
			inFlowSteps:      &conversationv1.FlowStep{},
			inToolCalls:      &conversationv1.ToolCall{},
			inCallRefs:       &conversationv1.ToolCallRef{},
			inFragments:      &conversationv1.Fragment{},
			inSummaries:      &conversationv1.Summary{},
			inKeptFrames:     &conversationv1.KeptFrames{},
		},
		Recent: inMessages, RecentKeep: recentMessages,
		Signal:  &conversationv1.LiveSignal{},
		OnTimer: onTimer,
		// Who speaks on a conversation that is the tenant's, and what they sent.
		Personal: []object.Personal{
			{Message: &conversationv1.Floor{}, User: "user"}, {Message: &conversationv1.KeptFrames{}, User: "user"},
		},
	})
}

// NewManager serves the conversations of a kind that Register made.
func NewManager(kind *object.Kind[state], o Options) *Manager {
	return &Manager{kind: kind, box: o.Box, now: o.Now, limits: o.Limits.withDefaults()}
}

// CreateConversation implements ConversationService.
func (m *Manager) CreateConversation(
	ctx context.Context, req *conversationv1.CreateConversationRequest,
) (*conversationv1.CreateConversationResponse, error) {
	id, err := rpc.NewID(ctx, m.kind, req.GetConversationId(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return rpc.Do(ctx, m.kind, id, req, func(tx *object.Tx[state]) (*conversationv1.CreateConversationResponse, error) {
		s := tx.State()
		s.Title, s.Labels, s.ProjectId, s.Ttl = req.GetTitle(), req.GetLabels(), req.GetProjectId(), req.GetTtl()
		return &conversationv1.CreateConversationResponse{Conversation: present(tx.Info(), s)}, nil
	}, object.Create())
}

// GetConversation implements ConversationService.
func (m *Manager) GetConversation(
	ctx context.Context, req *conversationv1.GetConversationRequest,
) (*conversationv1.GetConversationResponse, error) {
	s, err := m.kind.View(ctx, object.ID(req.GetConversationId()),
		object.WithRecent(int(req.GetMessageLimit())), object.IfVersionNot(object.Version(req.GetIfVersionNot())))
	if err != nil {
		return nil, err
	}
	if s.NotModified {
		return &conversationv1.GetConversationResponse{Metadata: rpc.Metadata(s.Info), NotModified: true}, nil
	}
	return &conversationv1.GetConversationResponse{
		Conversation: present(s.Info, s.State), Messages: rpc.Values[*conversationv1.Message](s.Recent), Metadata: rpc.Metadata(s.Info),
	}, nil
}

// ListConversations implements ConversationService.
func (m *Manager) ListConversations(
	ctx context.Context, req *conversationv1.ListConversationsRequest,
) (*conversationv1.ListConversationsResponse, error) {
	items, next, err := rpc.List(ctx, m.kind, req, object.ListOptions{Terms: filter(req.GetProjectId(), req.GetLabels())},
		func(s object.Snapshot[state]) *conversationv1.ConversationItem {
			return &conversationv1.ConversationItem{Conversation: present(s.Info, s.State), Metadata: rpc.Metadata(s.Info)}
		})
	return &conversationv1.ListConversationsResponse{Conversations: items, NextPageToken: next}, err
}

// UpdateConversation implements ConversationService.
func (m *Manager) UpdateConversation(
	ctx context.Context, req *conversationv1.UpdateConversationRequest,
) (*conversationv1.UpdateConversationResponse, error) {
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.UpdateConversationResponse, error) {
			updateConversation(tx.State(), req)
			return &conversationv1.UpdateConversationResponse{Conversation: present(tx.Info(), tx.State())}, nil
		})
}

// DeleteConversation implements ConversationService.
func (m *Manager) DeleteConversation(
	ctx context.Context, req *conversationv1.DeleteConversationRequest,
) (*conversationv1.DeleteConversationResponse, error) {
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.DeleteConversationResponse, error) {
			tx.DeleteObject()
			return &conversationv1.DeleteConversationResponse{}, nil
		})
}

// AppendMessages implements ConversationService.
func (m *Manager) AppendMessages(
	ctx context.Context, req *conversationv1.AppendMessagesRequest,
) (*conversationv1.AppendMessagesResponse, error) {
	if field, description := checkNewMessages(req.GetMessages()); field != "" {
		return nil, problem.InvalidArgument(field, description)
	}
	var opts []object.UpdateOption
	for _, n := range req.GetMessages() {
		if id := n.GetClientMessageId(); id != "" {
			opts = append(opts, object.ExpectAbsent(inClientMessages, id))
		}
	}
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.AppendMessagesResponse, error) {
			res := &conversationv1.AppendMessagesResponse{Messages: make([]*conversationv1.AppendedMessage, 0, len(req.GetMessages()))}
			added := false
			for _, n := range req.GetMessages() {
				msg, err := known(tx, n.GetClientMessageId())
				if err != nil {
					return nil, err
				}
				duplicate := msg != nil
				if !duplicate {
					if msg, err = appendMessage(tx.State(), n, tx.Now()); err != nil {
						return nil, refuse(err)
					}
					putMessage(tx, msg)
					added = true
				}
				res.Messages = append(res.Messages, &conversationv1.AppendedMessage{
					Seq: msg.GetSeq(), CreateTime: msg.GetCreateTime(), TokenCount: msg.GetTokenCount(),
					TokenCountEstimated: msg.GetTokenCountEstimated(), Duplicate: duplicate,
				})
			}
			if !added {
				tx.Unchanged()
			}
			return res, nil
		}, opts...)
}

// known is the message that has this client_message_id, or nil. Where another caller appended it, it is refused: two users
// of a shared conversation may well count their messages alike, and neither's may be dropped for the other's.
func known(tx *object.Tx[state], clientMessageID string) (*conversationv1.Message, error) {
	if clientMessageID == "" {
		return nil, nil
	}
	ref, _ := tx.Entry(inClientMessages, clientMessageID).(*conversationv1.MessageRef)
	if ref == nil {
		return nil, nil
	}
	if ref.GetUser() != string(tx.Caller().User) {
		return nil, &problem.Error{
			Reason:  errorv1.Reason_REASON_REQUEST_ID_REUSED,
			Message: fmt.Sprintf("another caller appended a message with the client_message_id %q; use a new one", clientMessageID),
		}
	}
	msg, _ := tx.Entry(inMessages, object.SeqKey(ref.GetSeq())).(*conversationv1.Message)
	return msg, nil
}

// putMessage stages a message, and the way to find it by its client's id.
func putMessage(tx *object.Tx[state], msg *conversationv1.Message) {
	tx.Put(inMessages, object.SeqKey(msg.GetSeq()), msg)
	if id := msg.GetClientMessageId(); id != "" {
		tx.Put(inClientMessages, id, &conversationv1.MessageRef{Seq: msg.GetSeq(), User: string(tx.Caller().User)})
	}
}

// UpdateMessage implements ConversationService.
func (m *Manager) UpdateMessage(
	ctx context.Context, req *conversationv1.UpdateMessageRequest,
) (*conversationv1.UpdateMessageResponse, error) {
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.UpdateMessageResponse, error) {
			key := object.SeqKey(req.GetMessage().GetSeq())
			old, _ := tx.Entry(inMessages, key).(*conversationv1.Message)
			if old == nil {
				return nil, problem.NotFound(fmt.Sprintf("the conversation has no message %d", req.GetMessage().GetSeq()))
			}
			msg, err := patchMessage(tx.State(), old, req.GetMessage(), req.GetUpdateMask(), tx.Now())
			if err != nil {
				return nil, refuse(err)
			}
			tx.Put(inMessages, key, msg)
			return &conversationv1.UpdateMessageResponse{Message: msg}, nil
		})
}

// ListMessages implements ConversationService.
func (m *Manager) ListMessages(
	ctx context.Context, req *conversationv1.ListMessagesRequest,
) (*conversationv1.ListMessagesResponse, error) {
	o := object.EntriesOptions{PageSize: int(req.GetPageSize()), After: object.SeqKey(req.GetAfterSeq())}
	if req.GetBeforeSeq() > 0 {
		o.Before = object.SeqKey(req.GetBeforeSeq())
	}
	page, err := m.kind.Entries(ctx, object.ID(req.GetConversationId()), inMessages, o)
	if err != nil {
		return nil, err
	}
	return &conversationv1.ListMessagesResponse{
		Messages: rpc.Values[*conversationv1.Message](page.Entries), HasMore: page.More, Metadata: rpc.Metadata(page.Info),
	}, nil
}

// SetVoiceState implements ConversationService.
func (m *Manager) SetVoiceState(
	ctx context.Context, req *conversationv1.SetVoiceStateRequest,
) (*conversationv1.SetVoiceStateResponse, error) {
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.SetVoiceStateResponse, error) {
			if err := setVoice(tx.State(), req, tx.Now()); err != nil {
				return nil, refuse(err)
			}
			awaitSilence(tx)
			return &conversationv1.SetVoiceStateResponse{Voice: tx.State().GetVoice()}, nil
		})
}

// RecordIntent implements ConversationService.
func (m *Manager) RecordIntent(
	ctx context.Context, req *conversationv1.RecordIntentRequest,
) (*conversationv1.RecordIntentResponse, error) {
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.RecordIntentResponse, error) {
			if last := tx.State().GetLastSeq(); req.GetMessageSeq() > last {
				return nil, problem.InvalidArgument("message_seq", fmt.Sprintf("the conversation's last message is %d", last))
			}
			intent := recordIntent(tx.State(), req, tx.Now())
			tx.Put(inIntents, object.SeqKey(intent.GetSeq()), intent)
			return &conversationv1.RecordIntentResponse{Intent: intent}, nil
		})
}

// ListIntents implements ConversationService.
func (m *Manager) ListIntents(
	ctx context.Context, req *conversationv1.ListIntentsRequest,
) (*conversationv1.ListIntentsResponse, error) {
	intents, page, err := rpc.ListAfterSeq[*conversationv1.Intent](ctx, m.kind, req.GetConversationId(), inIntents, req)
	return &conversationv1.ListIntentsResponse{Intents: intents, HasMore: page.More, Metadata: rpc.Metadata(page.Info)}, err
}

// AdvanceFlow implements ConversationService.
func (m *Manager) AdvanceFlow(
	ctx context.Context, req *conversationv1.AdvanceFlowRequest,
) (*conversationv1.AdvanceFlowResponse, error) {
	return rpc.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.AdvanceFlowResponse, error) {
			step := advanceFlow(tx.State(), req, tx.Now())
			tx.Put(inFlowSteps, object.SeqKey(step.GetSeq()), step)
			return &conversationv1.AdvanceFlowResponse{Step: step}, nil
		})
}

// ListFlowSteps implements ConversationService.
func (m *Manager) ListFlowSteps(
	ctx context.Context, req *conversationv1.ListFlowStepsRequest,
) (*conversationv1.ListFlowStepsResponse, error) {
	steps, page, err := rpc.ListAfterSeq[*conversationv1.FlowStep](ctx, m.kind, req.GetConversationId(), inFlowSteps, req)
	return &conversationv1.ListFlowStepsResponse{Steps: steps, HasMore: page.More, Metadata: rpc.Metadata(page.Info)}, err
}

// WatchConversation implements ConversationService.
func (m *Manager) WatchConversation(
	ctx context.Context, req *conversationv1.WatchConversationRequest,
	stream *connect.ServerStream[conversationv1.WatchConversationResponse],
) error {
	changes := m.kind.Watch(ctx, object.ID(req.GetConversationId()), object.Version(req.GetAfterVersion()), int(req.GetMessageLimit()))
	for c, err := range changes {
		if err != nil {
			return err
		}
		if err := stream.Send(changed(&c)); err != nil {
			return err
		}
	}
	return nil
}

// changed is one message of a watch.
func changed(c *object.Change[state]) *conversationv1.WatchConversationResponse {
	if signal, ok := c.Signal.(*conversationv1.LiveSignal); ok {
		return &conversationv1.WatchConversationResponse{Signal: signal, Metadata: &objectv1.Metadata{Version: int64(c.Version)}}
	}
	if c.Heartbeat {
		return &conversationv1.WatchConversationResponse{Heartbeat: true, Metadata: &objectv1.Metadata{Version: int64(c.Version)}}
	}
	res := &conversationv1.WatchConversationResponse{Reset_: c.Reset, HasMore: c.More, Deleted: c.Deleted, Metadata: rpc.Metadata(c.Info)}
	if !c.Deleted {
		res.Conversation = present(c.Info, c.State)
	}
	for _, e := range c.Entries {
		switch v := e.Value.(type) {
		case *conversationv1.Message:
			res.Messages = append(res.Messages, v)
		case *conversationv1.Intent:
			res.Intents = append(res.Intents, v)
		case *conversationv1.FlowStep:
			res.FlowSteps = append(res.FlowSteps, v)
		case *conversationv1.ToolCall:
			res.ToolCalls = append(res.ToolCalls, v)
		case *conversationv1.Summary:
			res.Summaries = append(res.Summaries, v)
		case *conversationv1.Fragment:
			res.Fragments = append(res.Fragments, v)
		}
	}
	if c.Reset {
		res.ToolCalls = openCalls(c.State.GetLive())
	}
	return res
}

// refuse puts a rule's refusal into the caller's words.
func refuse(err error) error {
	if illegal, ok := errors.AsType[illegalTransitionError](err); ok {
		allowed := make([]string, len(illegal.allowed))
		for i, s := range illegal.allowed {
			allowed[i] = s.String()
		}
		return problem.IllegalTransition(illegal.from.String(), illegal.to.String(), allowed...)
	}
	if leased, ok := errors.AsType[leasedError](err); ok {
		p := problem.New(errorv1.Reason_REASON_LEASE_HELD, "another summarises this conversation now")
		p.Detail = &errorv1.Held{What: "compaction", ExpireTime: timestamppb.New(leased.until)}
		return p
	}
	if errors.Is(err, errStaleLease) {
		return problem.New(errorv1.Reason_REASON_FENCED, "another lease was given since; propose again")
	}
	if errors.Is(err, errSummarised) {
		return problem.New(errorv1.Reason_REASON_ILLEGAL_TRANSITION, err.Error())
	}
	if errors.Is(err, errPinned) {
		return problem.LimitReached("object", "pinned_messages", maxPinned,
			fmt.Sprintf("a conversation has at most %d messages that are pinned or of the role system", maxPinned), 0)
	}
	if call, ok := errors.AsType[callError](err); ok {
		return refuseCall(call)
	}
	if fenced, ok := errors.AsType[fencedError](err); ok {
		return problem.New(errorv1.Reason_REASON_FENCED, fenced.Error()+"; call OpenLive for a new epoch")
	}
	return err
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
