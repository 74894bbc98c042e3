package conversation

import (
	"fmt"
	"testing"

	"connectrpc.com/connect"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/handlers/conversation/voice"
	"holdfast/object"
)

// fleeting sends frames that may still change until one of them waits, and returns its index.
func fleeting(t *testing.T, c client, epoch, index int64) int64 {
	t.Helper()
	for range 500 {
		index++
		if int64(ingestOne(t, c, epoch, textFrame(index, interim(fmt.Sprint("word ", index)))).GetStoredThrough()) < index {
			return index
		}
	}
	t.Fatal("each was stored at once")
	return 0
}

// storedUntil waits until a frame is stored.
func storedUntil(t *testing.T, c client, index int64) {
	t.Helper()
	w := watchAfter(t, c, 0)
	defer w.stream.Close()
	for int64(w.next(t).GetConversation().GetLive().GetStoredThrough()) < index {
	}
}

// What is refused, or answered as before, takes nothing along of what its sender has waiting.
func TestARefusedCallDropsNoFramesThatWait(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		token int32
		index int64
		want  refusal
	}{
		"a token that was never issued": {token: 99, index: 1000, want: refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}},
		"a token that is over":          {token: 1, index: 1000, want: refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}},
		"a frame too far ahead":         {token: 2, index: 2 * voice.MaxIndexGap, want: refusal{code: connect.CodeInvalidArgument, reason: "FIELD_INVALID"}},
		"a resend":                      {token: 2, index: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := setup(t).client(t, ada)
			create(t, c)
			openLive(t, c)
			openLive(t, c)
			ingestOne(t, c, 2, textFrame(1, in("said")))
			req := &ingestReq{ConversationId: c1, FencingToken: tt.token, Frames: []*livev1.LiveFrame{textFrame(tt.index, in("said"))}}
			for index := int64(1); index < 20; {
				index = fleeting(t, c, 2, index)
				_, err := c.IngestLive(t.Context(), req)
				if tt.want.reason != "" {
					tt.want.check(t, err)
				} else if err != nil {
					t.Error(err)
				}
				storedUntil(t, c, index)
			}
		})
	}
}

// Whose frames were not stored yet when they were erased leaves no trace by them.
func TestAnErasedUsersFramesAreNotStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service, c := b.client(t, ""), b.client(t, "someone-to-erase")
	must(service.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: c1, Shared: true}))(t)
	connectAs(t, c, &connectReq{})
	fleeting(t, c, 1, 0)
	var k partialKey
	b.manager.partials.mu.Lock()
	for k = range b.manager.partials.waiting {
	}
	b.manager.partials.mu.Unlock()
	ctx := b.AsService(t)
	if _, err := b.rt.EraseUser(ctx, "someone-to-erase"); err != nil {
		t.Fatal(err)
	}
	before := get(t, service).GetConversation().GetVersion()
	b.manager.storePartial(k)
	if got := get(t, service).GetConversation().GetVersion(); got != before {
		t.Errorf("version %d follows the erasure at %d", got, before)
	}
	if p := b.manager.partials.due(k); p != nil {
		t.Errorf("%v still waits", p)
	}
	page, err := b.manager.kind.History(ctx, object.ID(c1), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range page.Events {
		if e.Actor == "someone-to-erase" {
			t.Errorf("version %d is by the erased user", e.Version)
		}
	}
}

// A server that has an earlier life of a conversation at hand shows nobody what is said in that, and takes no frame from
// whom another server has fenced.
func TestFramesThatWaitAreCheckedAgainstWhatIsStored(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	here, there := serve(t, d), serve(t, d)
	service := here.client(t, "")
	frame := []*livev1.LiveFrame{textFrame(100, interim("secret"))}
	t.Run("fenced elsewhere", func(t *testing.T) {
		t.Parallel()
		c, elsewhere := here.client(t, ada), there.client(t, ada)
		must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "fenced"}))(t)
		for token := int32(1); token < 10; token++ {
			for _, c := range []client{c, elsewhere} {
				must(c.ConnectLive(t.Context(), &connectReq{ConversationId: "fenced", TakeOver: true}))(t)
			}
			_, err := c.IngestLive(t.Context(), &ingestReq{ConversationId: "fenced", FencingToken: 2*token - 1, Frames: frame})
			refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
		}
	})
	t.Run("another's since", func(t *testing.T) {
		t.Parallel()
		c, bob := here.client(t, ada), there.client(t, "bob")
		for range 5 {
			must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "taken"}))(t)
			token := must(c.ConnectLive(t.Context(), &connectReq{ConversationId: "taken"}))(t).GetLease().GetFencingToken()
			must(there.client(t, ada).DeleteConversation(t.Context(), &conversationv1.DeleteConversationRequest{ConversationId: "taken"}))(t)
			if _, err := bob.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "taken"}); err != nil {
				return // an id that was a user's stays that user's
			}
			_, err := c.IngestLive(t.Context(), &ingestReq{ConversationId: "taken", FencingToken: token, Frames: frame})
			notFound.check(t, err)
			must(service.DeleteConversation(t.Context(), &conversationv1.DeleteConversationRequest{ConversationId: "taken"}))(t)
		}
	})
}
