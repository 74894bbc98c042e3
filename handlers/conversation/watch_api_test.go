package conversation

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/object"
)

// watcher is an open watch. It ends with the test, or after watchTimeout: a test that waits for longer has failed.
type watcher struct {
	stream *connect.ServerStreamForClient[watchv1.WatchResponse]
	cursor string // the last one
}

const watchTimeout = 20 * time.Second

// whole is c1 with all that a watch begins with.
var whole = &watchv1.ConversationItem{ConversationId: c1, MessageLimit: 200, Signals: true} //nolint:gochecknoglobals // never changed

func watchFor(t *testing.T, c client, item *watchv1.ConversationItem, cursor string) *watcher {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), watchTimeout)
	stream, err := c.Watch(ctx, &watchv1.WatchRequest{Items: []*watchv1.Item{
		{ItemId: "i", Cursor: cursor, Of: &watchv1.Item_Conversation{Conversation: item}},
	}})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		stream.Close()
	})
	return &watcher{stream, cursor}
}

// watchAfter watches c1 from a version on, with the cursor that a watcher would have who saw it.
func watchAfter(t *testing.T, c client, version int64) *watcher {
	t.Helper()
	if version == 0 {
		return watchFor(t, c, whole, "")
	}
	made := get(t, c).GetConversation().GetCreateTime().AsTime().UnixMicro()
	return watchFor(t, c, whole, base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %d", made, version)))
}

// change is a message about a conversation.
type change struct{ *watchv1.WatchResponse }

func (c change) GetReset_() bool    { return c.GetChanged().GetReset_() } //nolint:revive // as the message has it
func (c change) GetMore() bool      { return c.GetChanged().GetMore() }
func (c change) GetDeleted() bool   { return c.GetChanged().GetAbsent() }
func (c change) GetVersion() int64  { return c.GetChanged().GetVersion() }
func (c change) GetHeartbeat() bool { return c.WatchResponse.GetHeartbeat() != nil }

func (c change) GetConversation() *conversationv1.Conversation {
	for _, thing := range c.GetChanged().GetPut() {
		if thing.GetConversation() != nil {
			return thing.GetConversation()
		}
	}
	return nil
}

// put are those of a change's things that are of one kind.
func put[T comparable](c change, of func(*watchv1.Thing) T) (all []T) {
	var none T
	for _, thing := range c.GetChanged().GetPut() {
		if v := of(thing); v != none {
			all = append(all, v)
		}
	}
	return all
}

func (c change) GetMessages() []*conversationv1.Message { return put(c, (*watchv1.Thing).GetMessage) }

func (c change) GetIntents() []*conversationv1.Intent {
	return put(c, func(t *watchv1.Thing) *conversationv1.Intent { return t.GetRecord().GetIntent() })
}

func (c change) GetFlowSteps() []*conversationv1.FlowStep {
	return put(c, func(t *watchv1.Thing) *conversationv1.FlowStep { return t.GetRecord().GetFlowStep() })
}

func (c change) GetToolCalls() []*conversationv1.ToolCall {
	return put(c, func(t *watchv1.Thing) *conversationv1.ToolCall { return t.GetRecord().GetToolCall() })
}

func (c change) GetRemovedSeqs() (seqs []int32) {
	for _, key := range c.GetChanged().GetRemoved() {
		var seq int32
		if n, _ := fmt.Sscanf(key, "messages/%d", &seq); n == 1 {
			seqs = append(seqs, seq)
		}
	}
	return seqs
}

// next is the next message; the test fails where the stream ends instead.
func (w *watcher) next(t *testing.T) change {
	t.Helper()
	if !w.stream.Receive() {
		t.Fatalf("the stream ended with %v", w.stream.Err())
	}
	m := w.stream.Msg()
	w.cursor = cmp.Or(m.GetCursor(), w.cursor)
	return change{m}
}

// end reads to the stream's end and returns its error.
func (w *watcher) end(t *testing.T) error {
	t.Helper()
	for w.stream.Receive() {
	}
	return w.stream.Err()
}

func TestWatchShowsWhatEachChangeChanged(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	ctx := t.Context()
	create(t, c)
	say(t, c, "one", "two", "three")
	w := watchFor(t, c, &watchv1.ConversationItem{ConversationId: c1, MessageLimit: 2}, "")
	snapshot := w.next(t)
	if !snapshot.GetReset_() || snapshot.GetHeartbeat() || snapshot.GetDeleted() {
		t.Errorf("the first message is no snapshot: %v", snapshot)
	}
	if got := texts(snapshot.GetMessages()); !slices.Equal(got, []string{"two", "three"}) {
		t.Errorf("the snapshot has the messages %q", got)
	}
	read := get(t, c)
	same(t, "the snapshot", snapshot.GetConversation(), read.GetConversation())

	// Each change is one message, which has the conversation as it is then, and just what was added or changed.
	change := func(version int64) change {
		t.Helper()
		got := w.next(t)
		if got.GetReset_() || got.GetDeleted() || got.GetHeartbeat() {
			t.Errorf("not a change: %v", got)
		}
		if got.GetVersion() != version || got.GetConversation().GetVersion() != version {
			t.Errorf("it is version %d of %v", got.GetVersion(), got)
		}
		return got
	}
	appended := say(t, c, "four", "five")
	got := change(appended.GetVersion())
	if !slices.Equal(texts(got.GetMessages()), []string{"four", "five"}) || got.GetConversation().GetMessageCount() != 5 {
		t.Errorf("an append: %v", got)
	}
	edited := must(c.EditMessages(ctx, &conversationv1.EditMessagesRequest{ConversationId: c1, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: 1, Text: "ONE"}}}}))(t)
	got = change(edited.GetVersion())
	if len(got.GetMessages()) != 1 {
		t.Fatalf("an edit: %v", got)
	}
	same(t, "the edited message", got.GetMessages()[0], edited.GetMessages()[0])
	renamed := must(c.UpdateConversation(ctx, &conversationv1.UpdateConversationRequest{ConversationId: c1, Conversation: &conversationv1.Conversation{Title: "new"}}))(t)
	got = change(renamed.GetConversation().GetVersion())
	if got.GetConversation().GetTitle() != "new" || len(got.GetMessages()) != 0 {
		t.Errorf("a new title: %v", got)
	}
	intent := must(c.Append(ctx, &conversationv1.AppendRequest{ConversationId: c1, Intents: []*conversationv1.Intent{{Name: "start_run"}}}))(t)
	got = change(intent.GetVersion())
	if len(got.GetIntents()) != 1 {
		t.Fatalf("an intent: %v", got)
	}
	same(t, "the intent", got.GetIntents()[0], get(t, c).GetConversation().GetIntent())
	step := must(c.Append(ctx, &conversationv1.AppendRequest{ConversationId: c1, FlowSteps: []*conversationv1.FlowStep{{Flow: "f", Step: "s"}}}))(t)
	got = change(step.GetVersion())
	if len(got.GetFlowSteps()) != 1 {
		t.Fatalf("a flow step: %v", got)
	}
	same(t, "the flow step", got.GetFlowSteps()[0], get(t, c).GetConversation().GetFlow())
	token := openLive(t, c)
	w.next(t)
	live := ingestOne(t, c, token, textFrame(1, in("Hi")), textFrame(2, call("a")))
	got = change(live.GetVersion())
	if len(got.GetMessages()) != 1 || len(got.GetToolCalls()) != 1 {
		t.Fatalf("frames: %v", got)
	}
	same(t, "the message of the frames", got.GetMessages()[0], live.GetMessages()[0])
	same(t, "the tool call", got.GetToolCalls()[0], live.GetToolCalls()[0])

	// What changes nothing is not told.
	ingestOne(t, c, token, textFrame(1, in("Hi")))
	before := w.cursor
	must(c.DeleteConversation(ctx, &conversationv1.DeleteConversationRequest{ConversationId: c1}))(t)
	if got := w.next(t); !got.GetDeleted() || !got.GetReset_() || got.GetConversation() != nil {
		t.Errorf("the deletion: %v", got)
	}
	// Who comes back after it learns of it, and who never saw it finds nothing. Each sees the next conversation of that id.
	watchers := map[string]*watcher{
		"who was there": w, "who missed it": watchFor(t, c, whole, before), "who comes back": watchFor(t, c, whole, w.cursor), "who is new": watchAfter(t, c, 0),
	}
	for name, w := range watchers {
		if name == "who was there" {
			continue
		}
		if got := w.next(t); !got.GetDeleted() {
			t.Errorf("%s sees %v", name, got)
		}
	}
	create(t, c)
	for name, w := range watchers {
		if got := w.next(t); got.GetDeleted() || !got.GetReset_() || got.GetConversation() == nil || len(got.GetMessages()) != 0 {
			t.Errorf("%s sees %v", name, got)
		}
	}
}

func TestWatchUnderConcurrentAppends(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	w := watchAfter(t, c, 0)
	if got := w.next(t).GetVersion(); got != 1 {
		t.Fatalf("snapshot of version %d", got)
	}
	// Fewer than a watcher's buffer holds, so that nothing is coalesced.
	const writers, each = 6, 8
	appended := make(chan []error, 1)
	go func() {
		appended <- together(writers, func(i int) error {
			for n := range each {
				_, err := c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: said(fmt.Sprint(i, " ", n))})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}()
	for i := range int64(writers * each) {
		got := w.next(t)
		if got.GetVersion() != i+2 || len(got.GetMessages()) != 1 || int64(got.GetMessages()[0].GetSeq()) != i+1 {
			t.Fatalf("after version %d comes %v", i+1, got)
		}
	}
	for _, err := range <-appended {
		if err != nil {
			t.Error(err)
		}
	}
}

// journal is what a watcher that comes and goes has seen.
type journal struct {
	version  int64
	cursor   string // to go on from
	messages []string
	count    int // of the conversation
	resets   int
}

// note takes in a message: versions rise, and no message of the conversation comes twice or is left out.
func (j *journal) note(t *testing.T, got change) {
	t.Helper()
	if got.GetHeartbeat() {
		return
	}
	if got.GetReset_() {
		j.resets++
		j.messages = nil
	}
	if v := got.GetVersion(); v <= j.version && !got.GetMore() {
		t.Fatalf("version %d comes after %d", v, j.version)
	}
	j.version = max(j.version, got.GetVersion())
	if got.GetConversation() != nil {
		j.count = int(got.GetConversation().GetMessageCount())
	}
	for _, m := range got.GetMessages() {
		if int(m.GetSeq()) != len(j.messages)+1 {
			t.Fatalf("message %d comes after %d", m.GetSeq(), len(j.messages))
		}
		j.messages = append(j.messages, m.GetText())
	}
	if j.count != len(j.messages) && !got.GetMore() {
		t.Fatalf("%d messages were told of %d", len(j.messages), j.count)
	}
}

// Two servers write, and the watcher goes from one to the other at any time. The journal's pages are not long enough to
// spare it nothing: what it missed comes in one message.
func TestWatchResumesWithoutGapOrRepeat(t *testing.T) {
	t.Parallel()
	poll := func(c *object.Config) { c.PollInterval = 30 * time.Millisecond }
	b := setup(t, poll)
	servers := []*bundle{b, serve(t, b.Bundle, poll)}
	clients := []client{b.client(t, ada), servers[1].client(t, ada)}
	create(t, clients[0])
	const writers, each = 4, 40
	done := make(chan []error, 1)
	go func() {
		done <- together(writers, func(i int) error {
			for n := range each {
				_, err := clients[i%2].Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: said(fmt.Sprint(i, " ", n))})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}()
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	var j journal
	connections := 0
	for len(j.messages) < writers*each {
		w := watchFor(t, clients[random.IntN(2)], whole, j.cursor)
		connections++
		for range 1 + random.IntN(20) {
			if len(j.messages) == writers*each {
				break
			}
			j.note(t, w.next(t))
		}
		j.cursor = w.cursor
		w.stream.Close()
	}
	for _, err := range <-done {
		if err != nil {
			t.Error(err)
		}
	}
	read := get(t, clients[0])
	if !slices.Equal(j.messages, texts(read.GetMessages())) || j.version != read.GetConversation().GetVersion() {
		t.Errorf("saw %q up to version %d, there are %q up to %d", j.messages, j.version, texts(read.GetMessages()), read.GetConversation().GetVersion())
	}
	// How many connections it took depends on who was faster.
	if j.resets != 1 {
		t.Errorf("%d snapshots in %d connections", j.resets, connections)
	}
}

// A position that the conversation never had comes from a backup that was restored, or from a mistake.
func TestWatchFromBeyondTheEnd(t *testing.T) {
	t.Parallel()
	poll := func(c *object.Config) { c.PollInterval = 30 * time.Millisecond }
	b := setup(t, poll)
	c := b.client(t, ada)
	create(t, c)
	say(t, c, "one")
	w := watchAfter(t, c, 1000)
	if got := w.next(t); !got.GetReset_() || got.GetVersion() != 2 || len(got.GetMessages()) != 1 {
		t.Errorf("the first message is no snapshot: %v", got)
	}
	say(t, c, "two")
	if got := w.next(t); got.GetReset_() || got.GetVersion() != 3 {
		t.Errorf("a change: %v", got)
	}
	// It also follows what other servers write.
	say(t, serve(t, b.Bundle).client(t, ada), "three")
	if got := w.next(t); got.GetReset_() || got.GetVersion() != 4 || !slices.Equal(texts(got.GetMessages()), []string{"three"}) {
		t.Errorf("another server's change: %v", got)
	}
}

func TestWatchFromTheNewestVersionWaits(t *testing.T) {
	t.Parallel()
	c := setup(t, func(c *object.Config) { c.Heartbeat = 50 * time.Millisecond }).client(t, ada)
	create(t, c)
	w := watchAfter(t, c, 1)
	for range 3 {
		if got := w.next(t); !got.GetHeartbeat() {
			t.Errorf("no heartbeat: %v", got)
		}
	}
	say(t, c, "x")
	for {
		got := w.next(t)
		if got.GetHeartbeat() {
			continue
		}
		if got.GetVersion() != 2 || got.GetReset_() {
			t.Errorf("a change: %v", got)
		}
		break
	}
	if got := w.next(t); !got.GetHeartbeat() {
		t.Errorf("no heartbeat: %v", got)
	}
}

// A watcher that does not read is told later what it missed, in fewer messages, and holds nobody up.
func TestSlowWatcher(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, ada)
	create(t, c)
	// The transport buffers as little as it can, so that the server cannot send what the watcher does not read.
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	slow := &http.Transport{Protocols: protocols, HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 16, MaxReceiveBufferPerConnection: 1 << 16}}
	w := watchAfter(t, b.clientOver(t, ada, slow, connect.WithAcceptCompression("gzip", nil, nil)), 0)
	var j journal
	j.note(t, w.next(t))
	const writers, each = 4, 40
	for _, err := range together(writers, func(int) error {
		for range each {
			_, err := c.Append(t.Context(), &conversationv1.AppendRequest{ConversationId: c1, Messages: said(strings.Repeat(rand.Text(), 400))})
			if err != nil {
				return err
			}
		}
		return nil
	}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	received := 0
	for len(j.messages) < writers*each {
		j.note(t, w.next(t))
		received++
	}
	if received >= writers*each || j.resets != 1 {
		t.Errorf("%d changes came in %d messages, with %d snapshots", writers*each, received, j.resets)
	}
	// From now on it follows again.
	say(t, c, "last")
	if got := w.next(t); got.GetVersion() != j.version+1 {
		t.Errorf("after catching up: %v", got)
	}
}

func TestStreamLimit(t *testing.T) {
	t.Parallel()
	c := setup(t, func(c *object.Config) { c.Limits.Watches = 2 }).client(t, ada)
	create(t, c)
	first := watchAfter(t, c, 0)
	first.next(t)
	watchAfter(t, c, 0).next(t)
	err := watchAfter(t, c, 0).end(t)
	refusal{code: connect.CodeResourceExhausted, reason: "OVERLOADED", says: []string{"streams"}}.check(t, err)
	retryInfo(t, err)
	// One that ends makes room, as soon as the server has noticed.
	first.stream.Close()
	poll(t, func() bool {
		return watchAfter(t, c, 0).stream.Receive()
	})
}

// poll waits until f is true, where nothing signals it.
func poll(t *testing.T, f func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("in vain for ten seconds")
		}
	}
}

func TestWatchesEndToBeginAgain(t *testing.T) {
	t.Parallel()
	retry := func(t *testing.T, err error, reason string) {
		t.Helper()
		refusal{code: connect.CodeUnavailable, reason: reason, says: []string{"reconnect"}}.check(t, err)
		retryInfo(t, err)
	}
	t.Run("at their age", func(t *testing.T) {
		t.Parallel()
		c := setup(t, func(c *object.Config) { c.WatchAge = 100 * time.Millisecond }).client(t, ada)
		create(t, c)
		retry(t, watchAfter(t, c, 0).end(t), "STREAM_OVER")
	})
	t.Run("when the server drains", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		c := b.client(t, ada)
		create(t, c)
		w := watchAfter(t, c, 0)
		w.next(t)
		b.stop()
		retry(t, w.end(t), "SHUTTING_DOWN")
		<-b.stopped
	})
}

func TestWatchOfNothing(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	for _, cursor := range []string{"", "nonsense"} {
		if got := watchFor(t, c, whole, cursor).next(t); !got.GetDeleted() {
			t.Errorf("of nothing: %v", got)
		}
	}
	for field, item := range map[string]*watchv1.ConversationItem{
		"conversation_id": {ConversationId: "a b"},
		"message_limit":   {ConversationId: c1, MessageLimit: 201},
	} {
		invalidField("items[0].conversation."+field).check(t, watchFor(t, c, item, "").end(t))
	}
}
