package conversation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/object"
	"holdfast/seal"
)

// state is what a conversation stores.
type state = *storev1.ConversationState

// Manager serves ConversationService and LiveService. It is safe for concurrent use.
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

var (
	_ conversationv1connect.ConversationServiceHandler = (*Manager)(nil)
	_ livev1connect.LiveServiceHandler                 = (*Manager)(nil)
)

// DefaultTTL is how long a conversation is kept after its last change, where it does not say.
const DefaultTTL = 30 * 24 * time.Hour

// recentMessages stay decoded in the cache of each conversation that is read: as many as an assistant's turn usually reads.
const recentMessages = 20

// Register adds the kind "conversation" to the runtime.
func Register(rt *object.Runtime) *object.Kind[state] {
	return object.Register(rt, object.KindConfig[state]{
		Name: "conversation", SchemaVersion: 1, TTL: DefaultTTL, Users: object.UsersShare, UserRestore: true, Restored: restored, NewLife: newLife,
		TTLOf: func(s state) time.Duration {
			if s.GetKeepForever() {
				return object.Forever
			}
			return s.GetTtl().AsDuration()
		},
		Terms: terms,
		Collections: map[string]proto.Message{
			inMessages:       &storev1.Message{},
			inClientMessages: &storev1.MessageRef{},
			inIntents:        &storev1.Intent{},
			inFlowSteps:      &storev1.FlowStep{},
			inToolCalls:      &storev1.ToolCall{},
			inCallRefs:       &storev1.ToolCallRef{},
			inFragments:      &storev1.Fragment{},
			inSummaries:      &storev1.Summary{},
			inKeptFrames:     &storev1.KeptFrames{},
		},
		Recent: inMessages, RecentKeep: recentMessages,
		Signal:  &storev1.LiveSignal{},
		OnTimer: onTimer,
		// Who speaks on a conversation that is the tenant's, and what they sent.
		Personal: []object.Personal{
			{Message: &storev1.LiveLease{}, User: "user"}, {Message: &storev1.LiveHandle{}, User: "user"}, {Message: &storev1.KeptFrames{}, User: "user"},
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
	if err := checkNewMessages(req.GetMessages()); err != nil {
		return nil, err
	}
	id, err := rpc.NewID(ctx, m.kind, req.GetConversationId(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return object.Do(ctx, m.kind, id, req, func(tx *object.Tx[state]) (*conversationv1.CreateConversationResponse, error) {
		if err := begin(tx, req.GetConversation(), req.GetShared()); err != nil {
			return nil, err
		}
		messages, _, err := addMessages(tx, req.GetMessages())
		if err != nil {
			return nil, err
		}
		return &conversationv1.CreateConversationResponse{Conversation: present(tx.Info(), tx.State()), Messages: messages}, nil
	}, append(sharing(req.GetShared()), object.Create())...)
}

// sharing makes a conversation that is created the whole tenant's.
func sharing(shared bool) []object.UpdateOption {
	if shared {
		return []object.UpdateOption{object.Shared()}
	}
	return nil
}

// begin sets the first fields of a conversation. What a service makes for itself all users of the tenant see, so it has to say so.
func begin(tx *object.Tx[state], c *conversationv1.Conversation, shared bool) error {
	if caller := tx.Caller(); !shared && caller.Service && caller.User == "" {
		return problem.New(errorv1.Reason_REASON_USER_REQUIRED,
			"a service that acts for no user makes a conversation that the whole tenant sees; say so with shared, or name the user in the header Holdfast-User")
	}
	if c != nil {
		store(tx.State(), c)
	}
	return nil
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
		return &conversationv1.GetConversationResponse{NotModified: true}, nil
	}
	return &conversationv1.GetConversationResponse{Conversation: present(s.Info, s.State), Messages: presentMessages(s.Recent)}, nil
}

// ListConversations implements ConversationService.
func (m *Manager) ListConversations(
	ctx context.Context, req *conversationv1.ListConversationsRequest,
) (*conversationv1.ListConversationsResponse, error) {
	f := req.GetFilter()
	o := object.ListOptions{Terms: filter(f.GetProjectId(), f.GetLabels())}
	if f.GetActiveSince() != nil {
		o.Since = f.GetActiveSince().AsTime()
	}
	items, next, err := rpc.List(ctx, m.kind, req, o,
		func(s object.Snapshot[state]) *conversationv1.Conversation { return present(s.Info, s.State) })
	return &conversationv1.ListConversationsResponse{Conversations: items, NextPageToken: next}, err
}

// UpdateConversation implements ConversationService.
func (m *Manager) UpdateConversation(
	ctx context.Context, req *conversationv1.UpdateConversationRequest,
) (*conversationv1.UpdateConversationResponse, error) {
	return object.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.UpdateConversationResponse, error) {
			if err := updateConversation(tx.Info(), tx.State(), req.GetConversation(), req.GetUpdateMask()); err != nil {
				return nil, err
			}
			return &conversationv1.UpdateConversationResponse{Conversation: present(tx.Info(), tx.State())}, nil
		})
}

// DeleteConversation implements ConversationService.
func (m *Manager) DeleteConversation(
	ctx context.Context, req *conversationv1.DeleteConversationRequest,
) (*conversationv1.DeleteConversationResponse, error) {
	return rpc.Delete(ctx, m.kind, req.GetConversationId(), req, func(existed bool, version int64) *conversationv1.DeleteConversationResponse {
		return &conversationv1.DeleteConversationResponse{Existed: existed, Version: version}
	})
}

// Append implements ConversationService.
func (m *Manager) Append(ctx context.Context, req *conversationv1.AppendRequest) (*conversationv1.AppendResponse, error) {
	if err := checkNewMessages(req.GetMessages()); err != nil {
		return nil, err
	}
	opts := append(expectNew(req.GetMessages()), sharing(req.GetShared())...)
	if req.GetCreateIfMissing() {
		opts = append(opts, object.Upsert())
	}
	return object.Do(ctx, m.kind, object.ID(req.GetConversationId()), req,
		func(tx *object.Tx[state]) (*conversationv1.AppendResponse, error) {
			created := !tx.Exists()
			if created {
				if err := begin(tx, req.GetConversation(), req.GetShared()); err != nil {
					return nil, err
				}
			}
			messages, duplicates, err := addMessages(tx, req.GetMessages())
			if err != nil {
				return nil, err
			}
			if err := addRecords(tx, req); err != nil {
				return nil, err
			}
			if !created && len(duplicates) == len(messages) && len(req.GetIntents()) == 0 && len(req.GetFlowSteps()) == 0 && req.GetVoice() == nil {
				tx.Unchanged()
			}
			return &conversationv1.AppendResponse{
				Messages: messages, DuplicateSeqs: duplicates, Created: created, Version: int64(tx.Info().Version),
			}, nil
		}, opts...)
}

// expectNew says that the conversation most likely does not have the messages yet.
func expectNew(messages []*conversationv1.Message) (opts []object.UpdateOption) {
	for _, n := range messages {
		if id := n.GetClientMessageId(); id != "" {
			opts = append(opts, object.ExpectAbsent(inClientMessages, id))
		}
	}
	return opts
}

// addMessages appends messages, but for those that the conversation has, which are duplicates. It returns what an answer has of them.
func addMessages(tx *object.Tx[state], messages []*conversationv1.Message) (added []*conversationv1.Message, duplicates []int32, err error) {
	for _, n := range messages {
		msg, err := known(tx, n.GetClientMessageId())
		if err != nil {
			return nil, nil, err
		}
		if msg != nil {
			duplicates = append(duplicates, small(msg.GetSeq()))
		} else {
			if msg, err = appendMessage(tx.State(), n, tx.Now()); err != nil {
				return nil, nil, refuse(err)
			}
			putMessage(tx, msg)
		}
		added = append(added, presentAppended(msg))
	}
	return added, duplicates, nil
}

// addRecords adds the intents and the flow steps of an append, and moves the voice turn.
func addRecords(tx *object.Tx[state], req *conversationv1.AppendRequest) error {
	s := tx.State()
	for i, n := range req.GetIntents() {
		if last := s.GetLastSeq(); int64(n.GetMessageSeq()) > last {
			return problem.InvalidArgument(fmt.Sprintf("intents[%d].message_seq", i), fmt.Sprintf("the conversation's last message is %d", last))
		}
		intent := recordIntent(s, n, tx.Now())
		tx.Put(inIntents, object.SeqKey(intent.GetSeq()), intent)
	}
	for _, n := range req.GetFlowSteps() {
		step := advanceFlow(s, n, tx.Now())
		tx.Put(inFlowSteps, object.SeqKey(step.GetSeq()), step)
	}
	if req.GetVoice() == nil {
		return nil
	}
	if err := setVoice(s, req.GetVoice(), tx.Now()); err != nil {
		return refuse(err)
	}
	awaitSilence(tx)
	return nil
}

// known is the message that has this client_message_id, or nil. Where another caller appended it, it is refused: two users
// of a shared conversation may well count their messages alike, and neither's may be dropped for the other's.
func known(tx *object.Tx[state], clientMessageID string) (*storev1.Message, error) {
	if clientMessageID == "" {
		return nil, nil
	}
	ref, _ := tx.Entry(inClientMessages, clientMessageID).(*storev1.MessageRef)
	if ref == nil {
		return nil, nil
	}
	if ref.GetUser() != string(tx.Caller().User) {
		return nil, &problem.Error{
			Reason:  errorv1.Reason_REASON_REQUEST_ID_REUSED,
			Message: fmt.Sprintf("another caller appended a message with the client_message_id %q; use a new one", clientMessageID),
		}
	}
	msg, _ := tx.Entry(inMessages, object.SeqKey(ref.GetSeq())).(*storev1.Message)
	return msg, nil
}

// putMessage stages a message, and the way to find it by its client's id.
func putMessage(tx *object.Tx[state], msg *storev1.Message) {
	tx.Put(inMessages, object.SeqKey(msg.GetSeq()), msg)
	if id := msg.GetClientMessageId(); id != "" {
		tx.Put(inClientMessages, id, &storev1.MessageRef{Seq: msg.GetSeq(), User: string(tx.Caller().User)})
	}
}

// ListMessages implements ConversationService.
func (m *Manager) ListMessages(
	ctx context.Context, req *conversationv1.ListMessagesRequest,
) (*conversationv1.ListMessagesResponse, error) {
	if len(req.GetClientMessageIds()) > 0 {
		return m.findMessages(ctx, req)
	}
	after, before := object.SeqKey(int64(req.GetAfterSeq())), lastKey
	if req.GetBeforeSeq() > 0 {
		before = object.SeqKey(int64(req.GetBeforeSeq()))
	}
	o := object.EntriesOptions{After: after}
	if req.GetNewestFirst() {
		o = object.EntriesOptions{Before: before}
	}
	page, next, err := rpc.ListEntries(ctx, m.kind, object.ID(req.GetConversationId()), inMessages, req, o)
	if err != nil {
		return nil, err
	}
	wanted := slices.DeleteFunc(page.Entries, func(e object.Entry) bool { return e.Key <= after || e.Key >= before })
	if len(wanted) < len(page.Entries) {
		next = "" // the rest is outside, too
	}
	if req.GetNewestFirst() {
		slices.Reverse(wanted)
	}
	return &conversationv1.ListMessagesResponse{NextPageToken: next, Messages: presentMessages(wanted), Version: int64(page.Version)}, nil
}

// lastKey is behind every key that is a seq.
const lastKey = "~"

// findMessages returns the messages that have the client's ids.
func (m *Manager) findMessages(ctx context.Context, req *conversationv1.ListMessagesRequest) (*conversationv1.ListMessagesResponse, error) {
	if _, err := rpc.Cursor(req); err != nil {
		return nil, err
	}
	res := &conversationv1.ListMessagesResponse{}
	_, err := m.read(ctx, req.GetConversationId(), func(r *reader) error {
		res.Messages, res.Version = nil, int64(r.info.Version)
		refs, err := r.same(m.kind.Lookup(ctx, r.id, inClientMessages, req.GetClientMessageIds()...))
		if err != nil {
			return err
		}
		var keys []string
		for _, e := range refs.Entries {
			ref, _ := e.Value.(*storev1.MessageRef)
			if seq := small(ref.GetSeq()); seq > req.GetAfterSeq() && (req.GetBeforeSeq() == 0 || seq < req.GetBeforeSeq()) {
				keys = append(keys, object.SeqKey(ref.GetSeq()))
			}
		}
		if len(keys) == 0 {
			return nil
		}
		page, err := r.same(m.kind.Lookup(ctx, r.id, inMessages, keys...))
		if err != nil {
			return err
		}
		if req.GetNewestFirst() {
			slices.Reverse(page.Entries)
		}
		res.Messages = presentMessages(page.Entries)
		return nil
	})
	return res, err
}

// refuse puts a rule's refusal into the caller's words.
func refuse(err error) error {
	if illegal, ok := errors.AsType[voice.IllegalTransitionError](err); ok {
		allowed := make([]string, len(illegal.Allowed))
		for i, s := range illegal.Allowed {
			allowed[i] = s.String()
		}
		return problem.IllegalTransition(illegal.From.String(), illegal.To.String(), allowed...)
	}
	if leased, ok := errors.AsType[leasedError](err); ok {
		p := problem.New(errorv1.Reason_REASON_LEASE_HELD, "another caller summarises this conversation now")
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
	if call, ok := errors.AsType[voice.CallError](err); ok {
		return refuseCall(call)
	}
	if fenced, ok := errors.AsType[fencedError](err); ok {
		return problem.New(errorv1.Reason_REASON_FENCED, fenced.Error()+"; call ConnectLive for the next")
	}
	return err
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
