package object_test

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db"
	"holdfast/db/dbtest"
	"holdfast/object"
)

// testBundle is a runtime with the toy kind in a tenant of its own.
type testBundle struct {
	*dbtest.Bundle

	ctx  context.Context // a user's
	rt   *object.Runtime
	toys *object.Kind[toy]
}

func setup(t testing.TB) *testBundle {
	t.Helper()
	return setupWith(t, dbtest.New(t), object.Config{})
}

func setupWith(t testing.TB, b *dbtest.Bundle, c object.Config) *testBundle {
	t.Helper()
	// The context has no deadline: parallel subtests wait long for their turn on a busy machine.
	tb := &testBundle{Bundle: b, ctx: b.As(t, "alice")}
	tb.rt = newRuntime(t, b.DB, c)
	tb.toys = toyKind(tb.rt)
	return tb
}

func newRuntime(t testing.TB, d *db.DB, c object.Config) *object.Runtime {
	t.Helper()
	rt := object.NewRuntime(d, c)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := rt.Close(ctx); err != nil {
			t.Error("closing the runtime:", err)
		}
	})
	return rt
}

// owner is a connection that row-level security does not bind.
func (b *testBundle) owner(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(b.ctx, b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func (b *testBundle) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := b.owner(t).Exec(b.ctx, sql, args...); err != nil {
		t.Fatal(err)
	}
}

// open opens a pool of its own, whose connections Postgres knows by a name.
func (b *testBundle) open(t testing.TB, name string) *db.DB {
	t.Helper()
	u, err := url.Parse(b.DirectURL) // by its name its connections are killed, which a pooler hands from one to another
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("application_name", b.appName(name))
	u.RawQuery = q.Encode()
	d, err := db.Open(b.ctx, db.Config{URL: u.String(), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func (b *testBundle) appName(name string) string { return name + "-" + string(b.Tenant) }

func naming(name string) func(*object.Tx[toy]) error {
	return func(tx *object.Tx[toy]) error {
		tx.State().Name = name
		return nil
	}
}

func (b *testBundle) update(t testing.TB, id object.ID, fn func(*object.Tx[toy]) error, opts ...object.UpdateOption) {
	t.Helper()
	if _, err := b.toys.Update(b.ctx, id, fn, opts...); err != nil {
		t.Fatal(err)
	}
}

// A row that cannot be read fails those who ask for it, and nobody who shared a round trip with them.
func TestUnreadableRowFailsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, id := range []object.ID{"good", "bad"} {
		b.update(t, id, naming("x"), object.Create())
	}
	b.exec(t, `UPDATE holdfast.objects SET state = '{"name": {}}' WHERE tenant_id = $1 AND object_id = 'bad'`, string(b.Tenant))
	cold := toyKind(newRuntime(t, b.DB, object.Config{}))
	type result struct {
		good bool
		err  error
	}
	const n = 60
	for name, do := range map[string]func(object.ID) error{
		"view":   func(id object.ID) error { _, err := cold.View(b.ctx, id); return err },
		"update": func(id object.ID) error { _, err := cold.Update(b.ctx, id, naming("y")); return err },
	} {
		results := make(chan result, n)
		for i := range n {
			go func() {
				id := []object.ID{"good", "bad"}[i%2]
				results <- result{id == "good", do(id)}
			}()
		}
		for range n {
			r := <-results
			switch {
			case r.good && r.err != nil:
				t.Errorf("%s of a good row: %v", name, r.err)
			case !r.good && (r.err == nil || errors.Is(r.err, db.ErrUnavailable)):
				t.Errorf("%s of an unreadable row: %v", name, r.err)
			}
		}
	}
}

// What a newer release keeps in a collection that this one does not know is passed over.
func TestUnknownCollectionIsPassedOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	newer := toyConfig()
	newer.Collections = map[string]proto.Message{toyEntries: &typepb.EnumValue{}, "newer": &typepb.EnumValue{}}
	theirs := object.Register(newRuntime(t, b.DB, object.Config{}), newer)
	b.update(t, "a", naming("x"), object.Create())
	_, err := theirs.Update(b.ctx, "a", func(tx *object.Tx[toy]) error {
		tx.Put("newer", "k", &typepb.EnumValue{Name: "n"})
		tx.Put(toyEntries, "k", &typepb.EnumValue{Name: "k"})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for c, err := range b.toys.Watch(b.ctx, "a", 1, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Entries) != 1 || c.Entries[0].Collection != toyEntries || c.Reset {
			t.Errorf("%+v", c)
		}
		break
	}
	_, err = b.toys.Update(b.ctx, "a", func(tx *object.Tx[toy]) error {
		tx.Entry("newer", "k")
		return nil
	})
	if err == nil {
		t.Error("an entry of a collection that the kind does not have was read")
	}
	b.update(t, "a", naming("y"))
}

// A closure that keeps the runtime's own panic to itself still does not get away with what it did not see.
func TestClosureThatRecovers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.update(t, "a", func(tx *object.Tx[toy]) error {
		for i := range int64(20) {
			tx.Put(toyEntries, object.SeqKey(i), &typepb.EnumValue{Name: "x"})
		}
		return nil
	}, object.Create())
	b.update(t, "a", func(tx *object.Tx[toy]) error {
		defer func() { _ = recover() }()
		tx.State().Name = "not seen"
		if tx.Entry(toyEntries, object.SeqKey(0)) != nil {
			tx.State().Name = "seen"
		}
		return nil
	})
	if s, err := b.toys.View(b.ctx, "a"); err != nil || s.State.GetName() != "seen" {
		t.Errorf("%q, %v", s.State.GetName(), err)
	}
}

// Objects are kept for a day at least, whatever their kind says of one of them.
func TestLeastTTL(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := toyConfig()
	c.Name, c.TTLOf = "short", func(s toy) time.Duration {
		d, _ := time.ParseDuration(s.GetName())
		return d
	}
	short := object.Register(b.rt, c)
	for name, least := range map[string]time.Duration{"1s": object.MinTTL, "-1h": object.MinTTL, "0s": c.TTL, "72h": 72 * time.Hour} {
		s, err := short.Update(b.ctx, object.ID(name), naming(name), object.Create())
		if err != nil {
			t.Fatal(err)
		}
		if kept := s.ExpireTime.Sub(s.CreateTime); kept < least || kept > least*2 {
			t.Errorf("TTL %s is kept for %v", name, kept)
		}
		if _, err := short.View(b.ctx, object.ID(name)); err != nil {
			t.Errorf("TTL %s: %v", name, err)
		}
	}
}

// The time to live is that of the newest state: longer, shorter, or for ever.
func TestTTLFollowsTheState(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := toyConfig()
	c.Name, c.TTL = "changing", 0
	c.TTLOf = func(s toy) time.Duration {
		d, _ := time.ParseDuration(s.GetName())
		return d
	}
	changing := object.Register(b.rt, c)
	for _, ttl := range []string{"24h", "1000h", "30h", "", "30h", ""} {
		s, err := changing.Update(b.ctx, "a", naming(ttl), object.Upsert())
		if err != nil {
			t.Fatal(err)
		}
		want, _ := time.ParseDuration(ttl)
		if want == 0 {
			if !s.ExpireTime.IsZero() {
				t.Errorf("without a TTL it expires %v", s.ExpireTime)
			}
			continue
		}
		if kept := s.ExpireTime.Sub(s.UpdateTime); kept < want || kept > want*11/10 {
			t.Errorf("with a TTL of %v it is kept for %v", want, kept)
		}
	}
}

// Keys sort as their numbers do.
func TestSeqKey(t *testing.T) {
	t.Parallel()
	last := ""
	for _, n := range []int64{0, 1, 9, 10, 99, 100, 12345, 1_000_000, 999_999_999_999} {
		k := object.SeqKey(n)
		if k <= last || len(k) != 12 {
			t.Errorf("the key of %d is %q, after %q", n, k, last)
		}
		last = k
	}
}

func TestErrorsSayWhatTheyMean(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		says []string
	}{
		{&object.VersionMismatchError{Expected: 3, Current: 5}, []string{"3", "5"}},
		{&object.OverloadedError{What: "tenant"}, []string{"tenant"}},
		{&object.TooLargeError{What: "entry messages/1", Size: 10, Limit: 5}, []string{"entry messages/1", "10", "5"}},
		{&object.PanicError{Value: "a bug"}, []string{"a bug"}},
	} {
		for _, word := range c.says {
			if !strings.Contains(c.err.Error(), word) {
				t.Errorf("%q does not say %q", c.err, word)
			}
		}
	}
}

// The cache's bound is on memory, so its estimate must follow what objects grow to.
func TestCacheCountsWhatItHolds(t *testing.T) {
	t.Parallel()
	const limit = 4 << 20
	b := setupWith(t, dbtest.New(t), object.Config{CacheBytes: limit})
	check := func(when string) {
		t.Helper()
		believed, measured := b.rt.CacheBytes()
		if believed < measured/2 || believed > 2*measured {
			t.Errorf("%s the cache believes to hold %d bytes and holds about %d", when, believed, measured)
		}
		if believed > limit {
			t.Errorf("%s the cache holds %d bytes, over its limit", when, believed)
		}
	}
	large := strings.Repeat("x", 100<<10)
	b.update(t, "grows", naming("small"), object.Create())
	check("at first")
	b.update(t, "grows", naming(large))
	check("after a state grew")
	for range 30 {
		b.update(t, "grows", func(tx *object.Tx[toy]) error {
			tx.Put(toyEntries, "k", &typepb.EnumValue{Name: large})
			return nil
		})
	}
	check("after an entry was changed many times")
	b.update(t, "grows", naming("small again"))
	check("after a state shrank")
	for _, id := range []object.ID{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"} {
		b.update(t, id, naming(large), object.Create())
		check("after large ones were created")
	}
}

func TestRegisterRefusesNonsense(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, spoil := range map[string]func(*object.KindConfig[toy]){
		"no name":           func(c *object.KindConfig[toy]) { c.Name = "" },
		"no schema version": func(c *object.KindConfig[toy]) { c.SchemaVersion = 0 },
		"short TTL":         func(c *object.KindConfig[toy]) { c.TTL = time.Hour },
		"an upcaster to nowhere": func(c *object.KindConfig[toy]) {
			c.Upcasters = map[int32]func([]byte) ([]byte, error){1: func(s []byte) ([]byte, error) { return s, nil }}
		},
		"Recent that is not there": func(c *object.KindConfig[toy]) { c.Recent = "nothing" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				if recover() == nil {
					t.Error("it was registered")
				}
			}()
			c := toyConfig()
			spoil(&c)
			object.Register(b.rt, c)
		})
	}
}
