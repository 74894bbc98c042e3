package session

import (
	"testing"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/handlers/session/credential"
	"holdfast/identity"
)

func objectID(t identity.Tenant, u identity.User) string { return credential.ObjectID(t, u) }

// create makes the conversation c1.
func create(t *testing.T, c conversations) {
	t.Helper()
	must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: c1}))(t)
}

// get reads c1 with its last messages.
func get(t *testing.T, c conversations) *conversationv1.GetConversationResponse {
	t.Helper()
	return must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: c1, MessageLimit: 200}))(t)
}
