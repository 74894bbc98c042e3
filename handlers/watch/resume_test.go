package watch_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"holdfast/db/dbtest"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers/handlertest"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/object/objecttest"
)

// After any changes, disconnects and resumes, on either of two servers, a page that applied what came has what the servers have.
func TestAPageThatResumesHasWhatTheServerHas(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	servers := []*bundle{
		serve(t, d, object.Config{PollInterval: 20 * time.Millisecond}), serve(t, d, object.Config{PollInterval: 20 * time.Millisecond}),
	}
	runs := 0
	rapid.Check(t, func(r *rapid.T) {
		runs++
		p := newPage(t, servers, identity.User(fmt.Sprint("user-", runs)))
		p.connect(t, 0)
		defer p.close()
		for range rapid.IntRange(4, 16).Draw(r, "steps") {
			at := rapid.IntRange(0, 1).Draw(r, "server")
			id := object.ID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "id"))
			switch rapid.SampledFrom([]string{"put", "put", "put", "large", "delete", "read", "drop", "compare"}).Draw(r, "step") {
			case "put":
				key := rapid.SampledFrom([]string{"k1", "k2", "k3"}).Draw(r, "key")
				p.put(t, at, id, key+"="+rapid.SampledFrom([]string{"", "x", "y"}).Draw(r, "value"))
			case "large": // in pieces
				var entries []string
				for i := range rapid.IntRange(5, 12).Draw(r, "entries") {
					entries = append(entries, fmt.Sprintf("l%d=%s", i, strings.Repeat("z", 20_000)))
				}
				p.put(t, at, id, entries...)
			case "delete":
				if err := objecttest.Delete(p.ctx, servers[at].toys, p.id(id)); err != nil && p.has(t, id) != nil {
					t.Fatal(err)
				}
			case "read":
				for range rapid.IntRange(1, 4).Draw(r, "messages") {
					p.next(t)
				}
			case "drop":
				p.close()
				p.connect(t, at)
			case "compare":
				p.compare(t)
			}
		}
		p.compare(t)
	})
}

// page is a client that applies what comes, and connects again with its cursors.
type page struct {
	*view

	ctx     context.Context
	user    identity.User
	servers []*bundle
	clients []watchv1connect.WatchServiceClient
	made    int
}

func newPage(t *testing.T, servers []*bundle, user identity.User) *page {
	t.Helper()
	p := &page{view: newView(nil), user: user, servers: servers, ctx: servers[0].As(t, user)}
	for _, s := range servers {
		p.clients = append(p.clients, watchv1connect.NewWatchServiceClient(handlertest.Client(t, s.Bundle, user, nil), s.url))
	}
	return p
}

// id is the user's own: ids are the tenant's.
func (p *page) id(id object.ID) object.ID { return object.ID(p.user) + "-" + id }

func (p *page) connect(t *testing.T, server int) {
	t.Helper()
	req := &watchv1.WatchRequest{MaxBytes: 64 << 10, Items: []*watchv1.Item{
		{ItemId: "all", Cursor: p.cursors["all"], Of: &watchv1.Item_List{List: &watchv1.ListItem{Of: &watchv1.ListItem_Conversations{}}}},
		{ItemId: "two", Cursor: p.cursors["two"], Of: &watchv1.Item_List{List: &watchv1.ListItem{Limit: 2, Of: &watchv1.ListItem_Conversations{}}}},
	}}
	for _, id := range []object.ID{"a", "b", "c"} {
		req.Items = append(req.Items, item(string(id), string(p.id(id)), p.cursors[string(id)]))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	stream, err := p.clients[server].Watch(ctx, req)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	p.stream, p.cancel, p.versions = stream, cancel, map[string]int64{}
}

func (p *page) close() {
	p.cancel()
	_ = p.stream.Close()
}

func (p *page) put(t *testing.T, server int, id object.ID, entries ...string) {
	t.Helper()
	p.made++
	put(t, p.ctx, p.servers[server], p.id(id), fmt.Sprint("n", p.made), entries...)
}

// has is what the server has of an object, or nil.
func (p *page) has(t *testing.T, id object.ID) map[string]string {
	t.Helper()
	s, err := p.servers[0].toys.View(p.ctx, p.id(id), object.WithRecent(100))
	if err != nil {
		return nil
	}
	things := map[string]string{"toy": s.State.GetName()}
	for _, e := range s.Recent {
		things[e.Key] = nameOf(e)
	}
	return things
}

// compare reads until the page has what the server has.
func (p *page) compare(t *testing.T) {
	t.Helper()
	want := map[string]map[string]string{}
	for name, limit := range map[string]int{"all": 50, "two": 2} {
		list, err := p.servers[0].toys.List(p.ctx, object.ListOptions{PageSize: limit})
		if err != nil {
			t.Fatal(err)
		}
		want[name] = map[string]string{}
		for _, s := range list.Items {
			want[name][string(s.ID)] = s.State.GetName()
		}
	}
	for _, id := range []object.ID{"a", "b", "c"} {
		want[string(id)] = p.has(t, id)
	}
	equal := func() bool {
		for name, things := range want {
			if p.items[name] == nil || p.absent[name] != (things == nil) || !maps.Equal(p.items[name], things) {
				return false
			}
		}
		return true
	}
	began := time.Now()
	for !equal() {
		p.next(t)
		if time.Since(began) > 40*time.Second {
			t.Fatalf("the page has\n%v\nand the server\n%v", p.items, want)
		}
	}
}
