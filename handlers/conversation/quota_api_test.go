package conversation

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/identity"
	"holdfast/object"
)

// What a caller is told of a quota, what passes in spite of it, and whom it does not concern.
func TestQuotasThroughTheAPI(t *testing.T) {
	t.Parallel()
	labels := map[string]string{}
	for i := range 64 {
		labels[fmt.Sprintf("label-%d", i)] = strings.Repeat("x", 60)
	}
	makes := func(ctx context.Context, c client, id string) error {
		_, err := c.CreateConversation(ctx, &conversationv1.CreateConversationRequest{ConversationId: id, Conversation: &conversationv1.Conversation{Labels: labels}})
		return err
	}
	says := func(ctx context.Context, c client, id string) error {
		_, err := c.Append(ctx, &conversationv1.AppendRequest{ConversationId: id, Messages: said(strings.Repeat("word ", 2000))})
		return err
	}
	for _, tt := range []struct {
		scope, name string
		quotas      object.Quotas
	}{
		{"user", "objects", object.Quotas{User: object.Quota{Objects: 5}}},
		{"user", "bytes", object.Quotas{User: object.Quota{Bytes: 200_000}}},
		{"tenant", "objects", object.Quotas{Tenant: object.Quota{Objects: 5}}},
		{"tenant", "bytes", object.Quotas{Tenant: object.Quota{Bytes: 200_000}}},
	} {
		t.Run(tt.scope+" "+tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			b := setup(t, func(c *object.Config) { c.Quotas = tt.quotas })
			c, other := b.client(t, ada), b.client(t, identity.User("bob"))
			var err error
			made := 0
			for ; err == nil && made < 50; made++ {
				err = makes(ctx, c, fmt.Sprint("c", made))
			}
			made--
			if made < 5 || made > 15 {
				t.Errorf("%d were made", made)
			}
			refused := refusal{code: connect.CodeResourceExhausted, reason: "QUOTA_EXCEEDED", says: []string{
				tt.scope, tt.name, "delete", "--" + tt.scope + "-" + tt.name,
			}}
			refused.check(t, err)
			info := detail[*errdetails.ErrorInfo](t, err).GetMetadata()
			limit, value := info["limit"], info["value"]
			delete(info, "limit")
			delete(info, "value")
			if !maps.Equal(info, map[string]string{"scope": tt.scope, "name": tt.name}) || limit == "" || value == "" || detail[*errdetails.RetryInfo](t, err) != nil {
				t.Errorf("told are %v, limit %s, value %s", info, limit, value)
			}

			_, err = c.GetConversation(ctx, &conversationv1.GetConversationRequest{ConversationId: "c0"})
			if err != nil {
				t.Error("a read:", err)
			}
			if err := says(ctx, c, "c0"); tt.name == "objects" && err != nil {
				t.Error("a message:", err)
			} else if tt.name == "bytes" {
				refused.check(t, err)
			}
			if err := makes(ctx, other, "other"); tt.scope == "user" && err != nil {
				t.Error("another user:", err)
			} else if tt.scope == "tenant" {
				refused.check(t, err)
			}
			for i := range made {
				if _, err := c.DeleteConversation(ctx, &conversationv1.DeleteConversationRequest{ConversationId: fmt.Sprint("c", i)}); err != nil {
					t.Error("a deletion:", err)
				}
			}
			if err := makes(ctx, c, "again"); err != nil {
				t.Error("after the deletions:", err)
			}
		})
	}
}
