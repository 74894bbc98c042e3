package watch_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers"
	"holdfast/handlers/handlertest"
	"holdfast/handlers/problem"
	"holdfast/handlers/watch"
	"holdfast/object"
	"holdfast/object/objecttest"
)

func TestMain(m *testing.M) {
	_ = flag.Set("rapid.checks", "30") // each takes half a second; -rapid.checks asks for more
	os.Exit(dbtest.MainWithoutLeaks(m))
}

type toy = *typepb.Type

// bundle is a server whose conversations are toys: objects with a name, and values by key.
type bundle struct {
	*dbtest.Bundle

	ctx  context.Context // ada's
	toys *object.Kind[toy]
	ada  watchv1connect.WatchServiceClient
	url  string
}

func setup(t *testing.T, c object.Config) *bundle {
	t.Helper()
	return serve(t, dbtest.New(t), c)
}

// serve starts one more server on a bundle's database, as another process would.
func serve(t *testing.T, d *dbtest.Bundle, c object.Config) *bundle {
	t.Helper()
	rt := object.NewRuntime(d.DB, c)
	ctx, cancel := context.WithTimeout(d.As(t, "ada"), time.Minute)
	t.Cleanup(cancel)
	toys := object.Register(rt, object.KindConfig[toy]{
		Name: "toy", SchemaVersion: 1, TTL: 48 * time.Hour, Collections: map[string]proto.Message{"values": &typepb.EnumValue{}}, Recent: "values", RecentKeep: 4,
	})
	follow := func(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
		of := item.GetConversation()
		if of.GetConversationId() == "forbidden" {
			return problem.PermissionDenied("not for you")
		}
		if of.GetConversationId() == "broken" {
			return errors.New("a bug")
		}
		if of.GetConversationId() == "panics" {
			panic("a bug")
		}
		return watch.Object(ctx, toys, object.ID(of.GetConversationId()), int(of.GetMessageLimit()), item, tell, show)
	}
	list := func(ctx context.Context, item *watchv1.Item, tell watch.Tell) error {
		return watch.List(ctx, toys, item, tell, func(size int32, token string) (things []*watchv1.Thing, next string, err error) {
			page, err := toys.List(ctx, object.ListOptions{PageSize: int(size), PageToken: token})
			for _, s := range page.Items {
				things = append(things, thing(string(s.ID), s.State.GetName()))
			}
			return things, page.Next, err
		})
	}
	server := handlertest.Serve(t, d, rt, handlers.Options{Services: []handlers.Service{handlers.NewService[watchv1connect.WatchServiceHandler](
		watchv1connect.WatchServiceName, watchv1connect.NewWatchServiceHandler, watch.NewManager(watch.Options{
			Explain: handlers.Explain, Now: time.Now, Heartbeat: 50 * time.Millisecond,
		}, watch.Sources{"conversation": follow, "list.conversations": list}))}})
	return &bundle{d, ctx, toys, watchv1connect.NewWatchServiceClient(handlertest.Client(t, d, "ada", nil), server.URL), server.URL}
}

func thing(key, name string) *watchv1.Thing {
	return &watchv1.Thing{Key: key, Thing: &watchv1.Thing_Conversation{Conversation: &conversationv1.Conversation{Title: name}}}
}

func nameOf(e object.Entry) string {
	v, _ := e.Value.(*typepb.EnumValue)
	return v.GetName()
}

func show(c *object.Change[toy]) *watchv1.WatchResponse {
	change := watch.Change(c)
	change.Put = []*watchv1.Thing{thing("toy", c.State.GetName())}
	for _, e := range c.Entries {
		if e.Value == nil {
			change.Removed = append(change.Removed, e.Key)
			continue
		}
		change.Put = append(change.Put, thing(e.Key, nameOf(e.Entry)))
	}
	return watch.Changed(change)
}

// put makes a version of an object: its name, and entries by key, deleted where they are empty.
func (b *bundle) put(t *testing.T, id object.ID, name string, entries ...string) {
	t.Helper()
	put(t, b.ctx, b, id, name, entries...)
}

func put(t *testing.T, ctx context.Context, b *bundle, id object.ID, name string, entries ...string) {
	t.Helper()
	_, err := b.toys.Update(ctx, id, func(tx *object.Tx[toy]) error {
		tx.State().Name = name
		for _, e := range entries {
			key, text, _ := strings.Cut(e, "=")
			if text == "" {
				tx.DeleteEntry("values", key)
			} else {
				tx.Put("values", key, &typepb.EnumValue{Name: text})
			}
		}
		return nil
	}, object.Upsert())
	if err != nil {
		t.Fatal(err)
	}
}

// view is what a client has of the items of a stream, by the one rule.
type view struct {
	stream   *connect.ServerStreamForClient[watchv1.WatchResponse]
	cancel   context.CancelFunc
	items    map[string]map[string]string
	absent   map[string]bool
	cursors  map[string]string
	versions map[string]int64
	resets   map[string]int
	largest  int
}

func newView(stream *connect.ServerStreamForClient[watchv1.WatchResponse]) *view {
	return &view{stream, nil, map[string]map[string]string{}, map[string]bool{}, map[string]string{}, map[string]int64{}, map[string]int{}, 0}
}

func (b *bundle) watch(t *testing.T, req *watchv1.WatchRequest) *view {
	t.Helper()
	stream, err := b.ada.Watch(b.ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stream.Close() })
	return newView(stream)
}

// next merges a message, and returns it.
func (v *view) next(t *testing.T) *watchv1.WatchResponse {
	t.Helper()
	if !v.stream.Receive() {
		t.Fatalf("the stream ended with %v", v.stream.Err())
	}
	m := v.stream.Msg()
	v.largest = max(v.largest, proto.Size(m))
	if m.GetCursor() != "" {
		v.cursors[m.GetItemId()] = m.GetCursor()
	}
	if c := m.GetChanged(); c != nil {
		if c.GetReset_() {
			v.items[m.GetItemId()] = map[string]string{}
			v.resets[m.GetItemId()]++
		}
		v.absent[m.GetItemId()] = c.GetAbsent()
		if !c.GetMore() && c.GetVersion() != 0 {
			if was := v.versions[m.GetItemId()]; c.GetVersion() <= was && !c.GetReset_() {
				t.Fatalf("version %d of %s comes after %d", c.GetVersion(), m.GetItemId(), was)
			}
			v.versions[m.GetItemId()] = c.GetVersion()
		}
		for _, thing := range c.GetPut() {
			v.items[m.GetItemId()][thing.GetKey()] = thing.GetConversation().GetTitle()
		}
		for _, key := range c.GetRemoved() {
			delete(v.items[m.GetItemId()], key)
		}
	}
	return m
}

// until reads until an item is as wanted: "absent", or its things by key.
func (v *view) until(t *testing.T, item, want string) {
	t.Helper()
	for {
		got := fmt.Sprint(v.items[item])
		if v.absent[item] {
			got = "absent"
		}
		if got == want {
			return
		}
		v.next(t)
	}
}

func item(name, id, cursor string) *watchv1.Item {
	return &watchv1.Item{ItemId: name, Cursor: cursor, Of: &watchv1.Item_Conversation{
		Conversation: &watchv1.ConversationItem{ConversationId: id, MessageLimit: 100},
	}}
}

// One stream shows many things, through their whole lives; one that ends leaves the others alone.
func TestOneStreamForAPage(t *testing.T) {
	t.Parallel()
	b := setup(t, object.Config{})
	b.put(t, "a", "one", "k1=x", "k2=y")
	v := b.watch(t, &watchv1.WatchRequest{Items: []*watchv1.Item{item("1", "a", ""), item("2", "b", ""), item("3", "forbidden", "")}})
	v.until(t, "1", "map[k1:x k2:y toy:one]")
	v.until(t, "2", "absent")
	b.put(t, "a", "two", "k1=", "k3=z")
	b.put(t, "b", "made")
	v.until(t, "1", "map[k2:y k3:z toy:two]")
	v.until(t, "2", "map[toy:made]")
	if err := objecttest.Delete(b.ctx, b.toys, "a"); err != nil {
		t.Fatal(err)
	}
	v.until(t, "1", "absent")
	b.put(t, "a", "again", "k9=x")
	v.until(t, "1", "map[k9:x toy:again]")
	for v.next(t).GetHeartbeat() == nil {
	}
}

func TestAnItemEndsWithAProblem(t *testing.T) {
	t.Parallel()
	b := setup(t, object.Config{})
	b.put(t, "a", "one")
	v := b.watch(t, &watchv1.WatchRequest{Items: []*watchv1.Item{item("1", "forbidden", ""), item("2", "a", "")}})
	var ended *watchv1.WatchResponse
	for ended.GetEnded() == nil {
		ended = v.next(t)
	}
	if ended.GetItemId() != "1" || ended.GetEnded().GetProblem().GetReason() != "ROLE_REQUIRED" {
		t.Errorf("%v", ended)
	}
	b.put(t, "a", "two")
	v.until(t, "2", "map[toy:two]")

	// Where none is left the stream ends, and with a fault of the server it ends at once.
	v = b.watch(t, &watchv1.WatchRequest{Items: []*watchv1.Item{item("1", "forbidden", "")}})
	v.next(t)
	for v.stream.Receive() {
		if v.stream.Msg().GetHeartbeat() == nil {
			t.Errorf("%v after the end", v.stream.Msg())
		}
	}
	if v.stream.Err() != nil {
		t.Error(v.stream.Err())
	}
	for _, id := range []string{"broken", "panics"} {
		v = b.watch(t, &watchv1.WatchRequest{Items: []*watchv1.Item{item("1", id, ""), item("2", "a", "")}})
		for v.stream.Receive() {
		}
		if connect.CodeOf(v.stream.Err()) != connect.CodeInternal || strings.Contains(v.stream.Err().Error(), "bug") {
			t.Errorf("%s: %v", id, v.stream.Err())
		}
	}
}

// An item for which there is no room ends, and a stream of nothing but such items is refused.
func TestTooManyWatches(t *testing.T) {
	t.Parallel()
	b := setup(t, object.Config{Limits: object.Limits{WatchesPerUser: 2}})
	b.put(t, "a", "one")
	v := b.watch(t, &watchv1.WatchRequest{Items: []*watchv1.Item{item("1", "a", ""), item("2", "a", ""), item("3", "a", "")}})
	ended := 0
	for ended == 0 || len(v.items) < 2 {
		if p := v.next(t).GetEnded().GetProblem(); p != nil {
			ended++
			if p.GetReason() != "OVERLOADED" || p.GetLimit().GetName() != "streams" || p.GetRetryAfter() == nil {
				t.Errorf("it ended with %v", p)
			}
		}
	}
	refused := b.watch(t, &watchv1.WatchRequest{Items: []*watchv1.Item{item("1", "a", ""), item("2", "a", "")}})
	for refused.stream.Receive() {
	}
	if ended != 1 || connect.CodeOf(refused.stream.Err()) != connect.CodeResourceExhausted {
		t.Errorf("%d items have ended, and another stream with %v", ended, refused.stream.Err())
	}
}

// A stream goes on from any cursor without a gap, and begins again where the object is another one of that id.
func TestAStreamGoesOnFromAnyCursor(t *testing.T) {
	t.Parallel()
	b := setup(t, object.Config{})
	b.put(t, "a", "one", "k1=x")
	v := b.watch(t, &watchv1.WatchRequest{Items: []*watchv1.Item{item("1", "a", "")}})
	v.until(t, "1", "map[k1:x toy:one]")
	cursors := []string{v.cursors["1"]}
	views := []map[string]string{maps.Clone(v.items["1"])}
	for i := range 5 {
		b.put(t, "a", fmt.Sprint("v", i), fmt.Sprintf("e%d=x", i), fmt.Sprintf("e%d=", i-1))
		v.until(t, "1", fmt.Sprintf("map[e%d:x k1:x toy:v%[1]d]", i))
		cursors, views = append(cursors, v.cursors["1"]), append(views, maps.Clone(v.items["1"]))
	}
	for i, cursor := range cursors {
		again := b.watch(t, &watchv1.WatchRequest{Items: []*watchv1.Item{item("1", "a", cursor)}})
		again.items["1"] = views[i]
		again.until(t, "1", "map[e4:x k1:x toy:v4]")
		if again.resets["1"] != 0 {
			t.Errorf("from %d it began again", i)
		}
	}
	if err := objecttest.Delete(b.ctx, b.toys, "a"); err != nil {
		t.Fatal(err)
	}
	b.put(t, "a", "another")
	for _, cursor := range append(slices.Clone(cursors), "nonsense") {
		again := b.watch(t, &watchv1.WatchRequest{Items: []*watchv1.Item{item("1", "a", cursor)}})
		again.until(t, "1", "map[toy:another]")
	}
}

// A message is as large as the caller wants it to be, and what does not fit follows.
func TestMessagesAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	b := setup(t, object.Config{})
	var entries []string
	for i := range 40 {
		entries = append(entries, fmt.Sprintf("k%02d=%s", i, strings.Repeat("x", 9000)))
	}
	b.put(t, "a", "one", entries...)
	v := b.watch(t, &watchv1.WatchRequest{MaxBytes: 64 << 10, Items: []*watchv1.Item{item("1", "a", "")}})
	for len(v.items["1"]) < 41 {
		m := v.next(t)
		if m.GetHeartbeat() != nil {
			continue
		}
		if more := len(v.items["1"]) < 41; m.GetChanged().GetMore() != more || (m.GetCursor() == "0") != more {
			t.Errorf("%d things have come, and it says more %t, with the cursor %q", len(v.items["1"]), m.GetChanged().GetMore(), m.GetCursor())
		}
	}
	if v.largest > 66<<10 || v.resets["1"] != 1 {
		t.Errorf("the largest message has %d bytes; there were %d resets", v.largest, v.resets["1"])
	}
}
