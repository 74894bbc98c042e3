package session

import (
	"testing"

	"google.golang.org/protobuf/proto"

	sessionv1 "holdfast/gen/holdfast/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
)

// A late retry of a call that changes a conversation and a user's sessions gets the first reply, and changes neither: what others
// were given since stays theirs.
func TestARetryChangesNothing(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		call  func(t *testing.T, b *bundle, x *speaker) (proto.Message, error)
		since func(t *testing.T, b *bundle, x *speaker)
	}{
		"EndSessions": {
			func(t *testing.T, b *bundle, _ *speaker) (proto.Message, error) {
				t.Helper()
				return b.with(t, b.key(t, nobody)).EndSessions(t.Context(), &sessionv1.EndSessionsRequest{RequestId: "k", Scope: sessionv1.EndScope_END_SCOPE_USER, User: string(ada)})
			},
			func(t *testing.T, b *bundle, _ *speaker) {
				t.Helper()
				in := b.signIn(t, ada)
				must(b.speaker(t, "another tab", in, in.GetTokens().GetAccessToken()).connect(t, c1, true))(t)
			},
		},
		"PutConnection": {
			func(t *testing.T, _ *bundle, x *speaker) (proto.Message, error) {
				t.Helper()
				return x.client.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{SessionId: x.session, RequestId: "k", Connection: &sessionv1.Connection{ConnectionId: x.connection}, Close: true})
			},
			func(t *testing.T, b *bundle, x *speaker) {
				t.Helper()
				must(x.client.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{SessionId: x.session, Connection: &sessionv1.Connection{Modality: typev1.Modality_MODALITY_VOICE}}))(t)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			other := serve(t, b.Bundle, b.box) // which has at hand what was before
			x, _ := b.tabs(t)
			key := b.conversations(t, b.key(t, ada))
			create(t, key)
			y := *x
			y.client = other.with(t, b.key(t, ada))
			must(y.client.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{}))(t)
			first := must(tt.call(t, b, x))(t)
			tt.since(t, b, x)
			read := func() []proto.Message {
				sessions := must(b.with(t, b.key(t, ada)).ListSessions(t.Context(), &sessionv1.ListSessionsRequest{IncludeEnded: true}))(t)
				return []proto.Message{sessions, get(t, key)}
			}
			want := read()
			for _, server := range []*bundle{b, other} {
				z := *x
				z.client = server.with(t, b.key(t, ada))
				same(t, "the reply to a retry", must(tt.call(t, server, &z))(t), first)
				for i, got := range read() {
					same(t, "after a retry", got, want[i])
				}
			}
		})
	}
}
