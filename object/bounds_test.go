package object_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db/dbtest"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/object/objecttest"
)

const (
	largeEntry   = 100_000
	largeEntries = 60
)

// putLarge stages large entries; their keys rise from one on.
func putLarge(from, n int) func(*object.Tx[toy]) error {
	return func(tx *object.Tx[toy]) error {
		for i := range n {
			tx.Put(toyEntries, object.SeqKey(int64(from+i)), &typepb.EnumValue{Name: strings.Repeat("x", largeEntry)})
		}
		return nil
	}
}

func bytesOf(entries []object.Entry) (n int) {
	for _, e := range entries {
		n += proto.Size(e.Value)
	}
	return n
}

// Pages end before they are too large for one answer, in whichever way they are read, and walking them misses nothing.
func TestPagesEndInBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.update(t, "a", putLarge(1, largeEntries), object.Create())
	var all []string
	for i := range largeEntries {
		all = append(all, object.SeqKey(int64(i+1)))
	}
	walk := func(name string, page func(last string) (object.EntriesPage, error)) []string {
		var keys []string
		for last, n := "", 0; ; n++ {
			p, err := page(last)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if size := bytesOf(p.Entries); size > object.AnswerBytes || len(p.Entries) == 0 {
				t.Fatalf("%s: a page of %d entries and %d bytes", name, len(p.Entries), size)
			}
			for _, e := range p.Entries {
				keys = append(keys, e.Key)
			}
			if !p.More {
				if n < 2 {
					t.Errorf("%s: %d pages", name, n+1)
				}
				return keys
			}
			if last = p.Entries[len(p.Entries)-1].Key; name == "before" {
				last = p.Entries[0].Key
			}
		}
	}
	for name, page := range map[string]func(last string) (object.EntriesPage, error){
		"after": func(last string) (object.EntriesPage, error) {
			return b.toys.Entries(b.ctx, "a", toyEntries, object.EntriesOptions{After: last, PageSize: object.MaxPageSize})
		},
		"before": func(last string) (object.EntriesPage, error) {
			if last == "" {
				last = "~"
			}
			return b.toys.Entries(b.ctx, "a", toyEntries, object.EntriesOptions{Before: last, PageSize: object.MaxPageSize})
		},
		"at": func(last string) (object.EntriesPage, error) {
			return b.toys.EntriesAt(b.ctx, "a", object.Latest(), toyEntries, object.EntriesOptions{After: last, PageSize: object.MaxPageSize})
		},
	} {
		keys := walk(name, page)
		slices.Sort(keys)
		if !slices.Equal(keys, all) {
			t.Errorf("%s: %v", name, keys)
		}
	}
	for range 2 { // once from the database, and once from the cache
		s, err := b.toys.View(b.ctx, "a", object.WithRecent(largeEntries))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(s.Recent); n == 0 || bytesOf(s.Recent) > object.AnswerBytes || s.Recent[n-1].Key != all[len(all)-1] {
			t.Errorf("a view has %d entries, %d bytes", n, bytesOf(s.Recent))
		}
	}

	// Objects with large states.
	const objects = 20
	for i := range objects {
		b.update(t, object.ID("o"+object.SeqKey(int64(i))), naming(strings.Repeat("s", 200_000)), object.Create())
	}
	seen := map[object.ID]int{}
	for token, pages := "", 0; ; pages++ {
		p, err := b.toys.List(b.ctx, object.ListOptions{PageSize: object.MaxPageSize, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, s := range p.Items {
			seen[s.ID]++
			size += proto.Size(s.State)
		}
		if size > object.AnswerBytes {
			t.Errorf("a list's page of %d bytes", size)
		}
		if token = p.Next; token == "" {
			if pages == 0 {
				t.Error("one page")
			}
			break
		}
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s is listed %d times", id, n)
		}
	}
	if len(seen) != objects+1 {
		t.Errorf("%d objects are listed", len(seen))
	}
}

// What is too much for one message of a watch comes in pieces, whether it is a snapshot, many changes or one; who is cut off
// behind any piece goes on from its version and misses nothing.
func TestWatchesCatchUpInPieces(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.update(t, "a", naming("1"), object.Create())
	for i := range 3 {
		b.update(t, "a", putLarge(1+10*i, 10)) // some fit in one message together, and all do not
	}
	b.update(t, "a", putLarge(31, largeEntries-30)) // this one alone does not
	b.update(t, "a", naming("2"))
	last := object.Version(6)

	for _, recent := range []int{largeEntries, largeEntries - 7} {
		for _, start := range []object.Version{0, 1, 2, 4, 5} {
			for leaveAfter := 1; leaveAfter < 8; leaveAfter++ {
				got, at := map[string]int{}, start
				var name string
				for connections := 0; at < last; connections++ {
					if connections > 10 {
						t.Fatalf("from %d: stuck at %d", start, at)
					}
					pieces, order := 0, ""
					ctx, cancel := context.WithCancel(b.ctx)
					for c, err := range b.toys.Watch(ctx, "a", at, recent) {
						if err != nil {
							t.Fatal(err)
						}
						size := 0
						for _, e := range c.Entries {
							got[e.Key]++
							size += proto.Size(e.Value)
							if c.Reset || start == 0 {
								if e.Key <= order {
									t.Errorf("%s comes behind %s", e.Key, order)
								}
								order = e.Key
							}
						}
						if size > object.AnswerBytes {
							t.Errorf("a message of %d bytes", size)
						}
						if at, name = c.Version, c.State.GetName(); start != 0 && at < start {
							t.Errorf("version %d behind %d", at, start)
						}
						if !c.More && at == last {
							break
						}
						// The first connection is cut early, later ones ever later, so that one gets through a snapshot.
						if pieces++; pieces == leaveAfter+connections {
							break
						}
					}
					cancel()
				}
				want := recent
				if start != 0 {
					want = max(0, largeEntries-10*int(start-1))
				}
				if start == 5 {
					want = 0
				}
				if start == 4 {
					want = largeEntries - 30
				}
				if len(got) != want || name != "2" {
					t.Errorf("from %d, leaving after %d: %d entries, want %d; %q", start, leaveAfter, len(got), want, name)
				}
			}
		}
	}

	// A change as it happens is no different.
	next := make(chan object.Change[toy])
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	go func() {
		defer close(next)
		for c := range b.toys.Watch(ctx, "a", last, 0) {
			select {
			case next <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	b.update(t, "a", putLarge(100, 40))
	n := 0
	for c := range next {
		if n += len(c.Entries); c.More != (c.Version == last) {
			t.Errorf("version %d, more: %v", c.Version, c.More)
		}
		if !c.More {
			break
		}
	}
	if n != 40 {
		t.Errorf("%d entries of the change", n)
	}
}

// A user has one call of history at once, a tenant two and the server four; the others are refused at once.
func TestHistoryCallsAreFew(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.update(t, "a", naming("1"), object.Create())
	as := func(tenant identity.Tenant, user identity.User) identity.Identity {
		return identity.Identity{Tenant: tenant, User: user, Service: user == ""}
	}
	leave := b.rt.HoldHistory(as(b.Tenant, "alice"))
	refused := func(ctx context.Context, of string) {
		t.Helper()
		calls := map[string]func() error{
			"past":    func() error { _, err := b.toys.Past(ctx, "a", object.Latest()); return err },
			"view at": func() error { _, err := objecttest.ViewAt(ctx, b.toys, "a", object.Latest()); return err },
			"whole":   func() error { _, err := b.toys.PastWhole(ctx, "a", object.Latest()); return err },
			"restore": func() error { _, err := objecttest.Restore(ctx, b.toys, "a", object.Latest()); return err },
			"fork":    func() error { _, err := objecttest.Fork(ctx, b.toys, "a", object.Latest(), "b"); return err },
			"diff":    func() error { _, err := b.toys.Diff(ctx, "a", object.Moment{Version: 1}, object.Latest()); return err },
			"entries": func() error {
				_, err := b.toys.EntriesAt(ctx, "a", object.Latest(), toyEntries, object.EntriesOptions{})
				return err
			},
		}
		for name, call := range calls {
			var full *object.OverloadedError
			if err := call(); !errors.As(err, &full) || full.What != "history" || full.Of != of || full.RetryAfter <= 0 {
				t.Errorf("%s: %v, want the history of the %s to be full", name, err, of)
			}
		}
	}
	refused(b.ctx, "user")
	if _, err := b.toys.History(b.ctx, "a", 0, 0); err != nil {
		t.Errorf("a page of the journal: %v", err)
	}
	bob := identity.With(b.ctx, as(b.Tenant, "bob"))
	if _, err := b.toys.Past(bob, "a", object.Latest()); !errors.Is(err, object.ErrNotFound) {
		t.Errorf("another user: %v", err)
	}
	leaveService := b.rt.HoldHistory(as(b.Tenant, ""))
	refused(bob, "tenant")
	other := []func(){b.rt.HoldHistory(as("t-2", "alice")), b.rt.HoldHistory(as("t-2", "bob"))}
	refused(identity.With(b.ctx, as("t-3", "carol")), "server")
	for _, leave := range append(other, leave, leaveService) {
		leave()
	}
	if _, err := b.toys.Past(b.ctx, "a", object.Latest()); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

// What one user opens and sends never refuses another user of the tenant, on what they share either, nor its service.
func TestOneUsersFloodRefusesNobodyElse(t *testing.T) {
	t.Parallel()
	const room = 3
	b := setupWith(t, dbtest.New(t), object.Config{Limits: object.Limits{
		PerObject: 2 * room, PerTenant: 2 * room, PerUser: room, Watches: 100, WatchesPerTenant: 2 * room, WatchesPerUser: room,
	}})
	service := identity.With(b.ctx, identity.Identity{Tenant: b.Tenant, Service: true})
	bob := identity.With(b.ctx, identity.Identity{Tenant: b.Tenant, User: "bob"})
	if _, err := b.toys.Update(service, "shared", naming("1"), object.Create(), object.Shared()); err != nil {
		t.Fatal(err)
	}
	for range room {
		reach(t, follow(t, b.ctx, b.toys, "shared"), 1)
	}
	var full *object.OverloadedError
	for _, err := range b.toys.Watch(b.ctx, "shared", 0, 0) {
		if !errors.As(err, &full) || full.What != "streams" || full.Of != "user" {
			t.Errorf("one stream more: %v", err)
		}
	}
	for _, ctx := range []context.Context{bob, service} {
		reach(t, follow(t, ctx, b.toys, "shared"), 1)
	}

	tx, err := b.owner(t).Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(b.ctx, "SELECT pg_advisory_xact_lock($1)", object.LockKey(b.Tenant, "toy", "shared")); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	start := func(ctx context.Context) {
		go func() {
			_, err := b.toys.Update(ctx, "shared", naming("2"))
			done <- err
		}()
	}
	start(b.ctx)
	await(t, "the first batch", func() bool { return b.rt.Waiting() == 0 && b.rt.Running() == 1 })
	for range room - 1 {
		start(b.ctx)
	}
	await(t, "the user's changes", func() bool { return b.rt.Waiting() == room-1 })
	if _, err := b.toys.Update(b.ctx, "shared", naming("2")); !errors.As(err, &full) || full.What != "user" {
		t.Errorf("one change more: %v", err)
	}
	start(bob)
	start(service)
	await(t, "others' changes", func() bool { return b.rt.Waiting() == room+1 })
	if err := tx.Rollback(b.ctx); err != nil {
		t.Fatal(err)
	}
	for range room + 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Large answers are held by a few calls at once, until they are sent; small ones never wait.
func TestLargeAnswersAreHeldByFew(t *testing.T) {
	t.Parallel()
	b := setupWith(t, dbtest.New(t), object.Config{Limits: object.Limits{Answers: 16}}) // 2 a user, 8 a tenant
	b.update(t, "large", putLarge(1, 20), object.Create())
	b.update(t, "small", putLarge(1, 1), object.Create())
	read := map[string]func(ctx context.Context, id object.ID) (int, error){
		"page": func(ctx context.Context, id object.ID) (int, error) {
			p, err := b.toys.Entries(ctx, id, toyEntries, object.EntriesOptions{PageSize: object.MaxPageSize})
			return bytesOf(p.Entries), err
		},
		"view": func(ctx context.Context, id object.ID) (int, error) {
			s, err := b.toys.View(ctx, id, object.WithRecent(object.MaxPageSize))
			return bytesOf(s.Recent), err
		},
	}
	for name, read := range read {
		var held []*object.Answer
		for range 2 {
			var a object.Answer
			if n, err := read(object.Answering(b.ctx, &a), "large"); err != nil || n < 15*largeEntry {
				t.Fatalf("%s: %d bytes, %v", name, n, err)
			}
			held = append(held, &a)
		}
		if n, err := read(b.ctx, "small"); err != nil || n != largeEntry+4 {
			t.Errorf("%s: a small one: %d bytes, %v", name, n, err)
		}
		ctx, cancel := context.WithCancel(b.ctx)
		third := make(chan error)
		go func() {
			_, err := read(ctx, "large")
			third <- err
		}()
		cancel()
		if err := <-third; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: a third one: %v", name, err)
		}
		go func() {
			_, err := read(b.ctx, "large")
			third <- err
		}()
		held[0].Sent()
		if err := <-third; err != nil {
			t.Errorf("%s: a third one, once there is room: %v", name, err)
		}
		held[1].Sent()
		held[1].Sent() // twice does no harm
	}
}
