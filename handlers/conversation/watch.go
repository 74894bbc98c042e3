package conversation

import (
	"context"
	"strconv"

	"google.golang.org/protobuf/proto"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	storev1 "holdfast/gen/holdfast/store/conversation/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/handlers/watch"
	"holdfast/object"
)

// Sources are the items of WatchService that are about conversations.
func (m *Manager) Sources() watch.Sources {
	return watch.Sources{"conversation": m.follow, "list.conversations": m.followList}
}

func (m *Manager) follow(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	of := item.GetConversation()
	show := func(c *object.Change[state]) *watchv1.WatchResponse {
		if signal, ok := c.Signal.(*storev1.LiveSignal); ok {
			if !of.GetSignals() {
				return nil
			}
			return &watchv1.WatchResponse{Event: &watchv1.WatchResponse_Signal{Signal: presentSignal(signal)}}
		}
		return watch.Changed(changeOf(c))
	}
	return watch.Object(ctx, m.kind, object.ID(of.GetConversationId()), int(of.GetMessageLimit()), item, tell, show)
}

// changeOf is one change of a conversation.
func changeOf(c *object.Change[state]) *watchv1.Changed {
	change := watch.Change(c)
	change.Put = []*watchv1.Thing{{Key: "conversation", Thing: &watchv1.Thing_Conversation{Conversation: present(c.Info, c.State)}}}
	if c.Reset {
		for _, call := range voice.OpenCalls(c.State.GetLive()) {
			change.Put = append(change.Put, thing(inToolCalls, call.GetSeq(), call))
		}
	}
	for _, e := range c.Entries {
		switch e.Collection {
		case inMessages, inIntents, inFlowSteps, inToolCalls, inSummaries, inFragments:
		default:
			continue
		}
		seq, err := strconv.ParseInt(e.Key, 10, 64)
		switch {
		case err != nil:
		case e.Value == nil:
			change.Removed = append(change.Removed, key(e.Collection, seq))
		default:
			change.Put = append(change.Put, thing(e.Collection, seq, e.Value))
		}
	}
	return change
}

func key(collection string, seq int64) string { return collection + "/" + strconv.FormatInt(seq, 10) }

func thing(collection string, seq int64, value proto.Message) *watchv1.Thing {
	t := &watchv1.Thing{Key: key(collection, seq)}
	if message, ok := value.(*storev1.Message); ok {
		t.Thing = &watchv1.Thing_Message{Message: presentMessage(message)}
	} else {
		t.Thing = &watchv1.Thing_Record{Record: presentRecord(value)}
	}
	return t
}

func (m *Manager) followList(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
	return watch.List(ctx, m.kind, item, tell, func(size int32, token string) (things []*watchv1.Thing, next string, err error) {
		res, err := m.ListConversations(ctx, &conversationv1.ListConversationsRequest{
			PageSize: size, PageToken: token, Filter: item.GetList().GetConversations(),
		})
		for _, c := range res.GetConversations() {
			things = append(things, &watchv1.Thing{
				Key: "conversations/" + c.GetConversationId(), Thing: &watchv1.Thing_Conversation{Conversation: c},
			})
		}
		return things, res.GetNextPageToken(), err
	})
}
