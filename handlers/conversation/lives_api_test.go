package conversation

import (
	"fmt"
	"testing"

	"connectrpc.com/connect"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/object"
)

// fleeting sends frames that may still change until one of them waits, and returns its index.
func fleeting(t *testing.T, c client, epoch, index int64) int64 {
	t.Helper()
	for range 500 {
		index++
		if ingestOne(t, c, epoch, textFrame(index, interim(fmt.Sprint("word ", index)))).GetLastClientIndex() < index {
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
	said := &conversationv1.IngestLiveRequest{ConversationId: c1, Epoch: 2, RequestId: "said", Frames: []*conversationv1.LiveFrame{textFrame(1, in("said"))}}
	for name, tt := range map[string]struct {
		epoch, ifVersion int64
		requestID        string
		want             refusal
	}{
		"an epoch that was never issued": {epoch: 99, want: refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}},
		"an epoch that is over":          {epoch: 1, want: refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}},
		"another version":                {epoch: 2, ifVersion: 999, want: refusal{code: connect.CodeAborted, reason: "VERSION_MISMATCH"}},
		"a request id of another call":   {epoch: 2, requestID: "other", want: refusal{code: connect.CodeAlreadyExists, reason: "REQUEST_ID_REUSED"}},
		"a retry":                        {epoch: 2, requestID: "said"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := setup(t).client(t, ada)
			create(t, c)
			must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t)
			must(c.OpenLive(t.Context(), &openReq{ConversationId: c1, RequestId: "other"}))(t)
			must(c.IngestLive(t.Context(), said))(t)
			req := &ingestReq{ConversationId: c1, Epoch: tt.epoch, IfVersion: tt.ifVersion, RequestId: tt.requestID, Frames: []*conversationv1.LiveFrame{textFrame(1000, in("more"))}}
			if tt.requestID == said.GetRequestId() {
				req = said
			}
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
	must(c.OpenLive(t.Context(), &openReq{ConversationId: c1}))(t)
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
	frame := []*conversationv1.LiveFrame{textFrame(100, interim("secret"))}
	t.Run("fenced elsewhere", func(t *testing.T) {
		t.Parallel()
		c, elsewhere := here.client(t, ada), there.client(t, ada)
		must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "fenced"}))(t)
		for epoch := int64(1); epoch < 10; epoch++ {
			must(c.OpenLive(t.Context(), &openReq{ConversationId: "fenced"}))(t)
			must(elsewhere.OpenLive(t.Context(), &openReq{ConversationId: "fenced"}))(t)
			_, err := c.IngestLive(t.Context(), &ingestReq{ConversationId: "fenced", Epoch: 2*epoch - 1, Frames: frame})
			refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
		}
	})
	t.Run("another's since", func(t *testing.T) {
		t.Parallel()
		c, bob := here.client(t, ada), there.client(t, "bob")
		for range 5 {
			must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "taken"}))(t)
			epoch := must(c.OpenLive(t.Context(), &openReq{ConversationId: "taken"}))(t).GetEpoch()
			must(there.client(t, ada).DeleteConversation(t.Context(), &conversationv1.DeleteConversationRequest{ConversationId: "taken"}))(t)
			if _, err := bob.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "taken"}); err != nil {
				return // an id that was a user's stays that user's
			}
			_, err := c.IngestLive(t.Context(), &ingestReq{ConversationId: "taken", Epoch: epoch, Frames: frame})
			notFound.check(t, err)
			must(service.DeleteConversation(t.Context(), &conversationv1.DeleteConversationRequest{ConversationId: "taken"}))(t)
		}
	})
}
