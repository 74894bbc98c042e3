package object_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/typepb"
	"pgregory.net/rapid"

	"holdfast/identity"
	"holdfast/object"
	"holdfast/object/objecttest"
)

// release registers the toy kind as some release of it would, with a runtime of its own, as another process. Schema n
// keeps the object's text as "<n>:text": each upcaster says so in the JSON.
func (b *testBundle) release(t *testing.T, schema int32, change ...func(*object.KindConfig[toy])) *object.Kind[toy] {
	t.Helper()
	c := toyConfig()
	c.SchemaVersion, c.Upcasters = schema, map[int32]func([]byte) ([]byte, error){}
	for from := int32(1); from < schema; from++ {
		c.Upcasters[from] = func(state []byte) ([]byte, error) {
			var m map[string]json.RawMessage
			if err := json.Unmarshal(state, &m); err != nil {
				return nil, err
			}
			var name string
			if err := json.Unmarshal(m["name"], &name); err != nil && m["name"] != nil {
				return nil, err
			}
			old, text, ok := strings.Cut(name, ":")
			if ok && old != fmt.Sprint(from) {
				return nil, fmt.Errorf("schema %d has %q", from, name)
			}
			if ok {
				m["name"] = json.RawMessage(fmt.Sprintf("%q", fmt.Sprint(from+1, ":", text)))
			}
			return json.Marshal(m)
		}
	}
	for _, f := range change {
		f(&c)
	}
	return object.Register(newRuntime(t, b.DB, object.Config{}), c)
}

func (b *testBundle) scan(t *testing.T, into any, sql string, args ...any) {
	t.Helper()
	if err := b.owner(t).QueryRow(b.ctx, sql, args...).Scan(into); err != nil {
		t.Fatal(err)
	}
}

// What an older release wrote is brought up to date when it is read, and stored so when it is next written.
func TestUpcast(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.release(t, 1).Update(b.ctx, "a", naming("1:x"), object.Create()); err != nil {
		t.Fatal(err)
	}
	newest := b.release(t, 3)
	if s, err := newest.View(b.ctx, "a"); err != nil || s.State.GetName() != "3:x" {
		t.Fatalf("%q, %v", s.State.GetName(), err)
	}
	var stored int
	b.scan(t, &stored, "SELECT schema_version FROM holdfast.objects WHERE tenant_id = $1", string(b.Tenant))
	if stored != 1 {
		t.Errorf("a read has made it schema %d", stored)
	}
	for i, cold := range []*object.Kind[toy]{newest, b.release(t, 3)} { // with it in memory, and without
		_, err := cold.Update(b.ctx, "a", func(tx *object.Tx[toy]) error {
			if tx.State().GetName() != "3:x" {
				t.Errorf("a change sees %q", tx.State().GetName())
			}
			tx.State().Edition = fmt.Sprint("e", i)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	b.scan(t, &stored, "SELECT schema_version FROM holdfast.objects WHERE tenant_id = $1", string(b.Tenant))
	if stored != 3 {
		t.Errorf("a write has left schema %d", stored)
	}
	var undo string
	b.scan(t, &undo, "SELECT undo::text FROM holdfast.events WHERE tenant_id = $1 AND version = 2", string(b.Tenant))
	if want := `{"state": {"name": "1:x"}, "schema": 1}`; undo != want {
		t.Errorf("the first change of a newer schema is undone by %s, want %s", undo, want)
	}
	for v, want := range map[object.Version]string{1: "3:x ", 2: "3:x e0", 3: "3:x e1"} {
		s, err := objecttest.ViewAt(b.ctx, newest, "a", object.Moment{Version: v})
		if got := s.State.GetName() + " " + s.State.GetEdition(); err != nil || got != want {
			t.Errorf("version %d was %q, %v, want %q", v, got, err, want)
		}
	}
	// A row that no upcaster can read fails alone, and is not touched.
	b.exec(t, `UPDATE holdfast.objects SET state = '{"name": "9:x"}', schema_version = 1 WHERE tenant_id = $1`, string(b.Tenant))
	cold := b.release(t, 3)
	if _, err := cold.Update(b.ctx, "a", naming("lost")); err == nil {
		t.Error("a row that cannot be upcast was written over")
	}
}

// Histories that several releases have written, in any order that a roll-out leads to, are read by the newest.
func TestHistoryAcrossSchemas(t *testing.T) {
	t.Parallel()
	b := setup(t)
	releases := []*object.Kind[toy]{nil, b.release(t, 1), b.release(t, 2), b.release(t, 3)}
	objects := 0
	rapid.Check(t, func(t *rapid.T) {
		objects++
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), time.Minute)
		defer cancel()
		id := object.ID(fmt.Sprint("o", objects))
		type version struct {
			text    string
			edition string
			gone    bool
		}
		history := map[object.Version]version{}
		last, schema, first := object.Version(0), 1, object.Version(1)
		for range rapid.IntRange(1, 15).Draw(t, "steps") {
			schema = rapid.IntRange(schema, 3).Draw(t, "schema")
			k, now := releases[schema], history[last]
			v := version{text: fmt.Sprint("t", rapid.IntRange(0, 9).Draw(t, "text")), edition: now.edition}
			var snap object.Snapshot[toy]
			var err error
			switch step := rapid.IntRange(0, 7).Draw(t, "step"); {
			case last > 0 && step == 0 && !now.gone:
				v = version{gone: true}
				snap, err = k.Update(ctx, id, func(tx *object.Tx[toy]) error { tx.DeleteObject(); return nil })
			case last > 0 && step == 1:
				at := object.Version(rapid.Int64Range(int64(first), int64(last)).Draw(t, "at"))
				if v = history[at]; v.gone {
					continue
				}
				snap, err = objecttest.Restore(ctx, k, id, object.Moment{Version: at})
			case last > 0 && step == 2 && !now.gone: // not the text
				v.text, v.edition = now.text, fmt.Sprint("e", last)
				snap, err = k.Update(ctx, id, func(tx *object.Tx[toy]) error { tx.State().Edition = v.edition; return nil })
			default:
				if last == 0 || now.gone {
					first, v.edition = last+1, ""
				}
				snap, err = k.Update(ctx, id, naming(fmt.Sprint(schema, ":", v.text)), object.Upsert())
			}
			if err != nil {
				t.Fatal(err)
			}
			last++
			if snap.Version != last {
				t.Fatalf("version %d follows %d", snap.Version, last-1)
			}
			history[last] = v
		}
		for v := first; v <= last; v++ {
			s, err := objecttest.ViewAt(ctx, releases[3], id, object.Moment{Version: v})
			if history[v].gone {
				if !errors.Is(err, object.ErrNotFound) {
					t.Fatalf("version %d was deleted: %v", v, err)
				}
				continue
			}
			if err != nil || s.State.GetName() != "3:"+history[v].text || s.State.GetEdition() != history[v].edition {
				t.Fatalf("version %d was %v, %v, want %+v", v, s.State, err, history[v])
			}
		}
	})
}

// While releases run side by side, the older one reads what the newer has written and never writes over it, whichever
// came first and whatever either has in memory.
func TestOlderReleaseErasesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, order := range []string{"old first", "new first"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			id := object.ID(strings.ReplaceAll(order, " ", "-"))
			older, newer := b.release(t, 1), b.release(t, 2)
			if order == "old first" {
				if _, err := older.Update(b.ctx, id, naming("1:x"), object.Create()); err != nil {
					t.Fatal(err)
				}
				if _, err := newer.Update(b.ctx, id, naming("2:y")); err != nil {
					t.Fatal(err)
				}
			} else if _, err := newer.Update(b.ctx, id, naming("2:y"), object.Create()); err != nil {
				t.Fatal(err)
			}
			for _, older := range []*object.Kind[toy]{older, b.release(t, 1)} { // with the older state in memory, and with nothing
				for name, do := range map[string]func() error{
					"change":  func() error { _, err := older.Update(b.ctx, id, naming("1:lost")); return err },
					"upsert":  func() error { _, err := older.Update(b.ctx, id, naming("1:lost"), object.Upsert()); return err },
					"delete":  func() error { return objecttest.Delete(b.ctx, older, id) },
					"restore": func() error { _, err := objecttest.Restore(b.ctx, older, id, object.Latest()); return err },
					"fork":    func() error { _, err := objecttest.Fork(b.ctx, older, id, object.Latest(), id+"-fork"); return err },
				} {
					if err := do(); !errors.Is(err, object.ErrNewerSchema) {
						t.Errorf("%s by the older release: %v", name, err)
					}
				}
				if s, err := older.View(b.ctx, id); err != nil || s.State.GetName() != "2:y" {
					t.Errorf("the older release reads %q, %v", s.State.GetName(), err)
				}
			}
			if s, err := newer.View(b.ctx, id); err != nil || s.State.GetName() != "2:y" {
				t.Errorf("the newer release reads %q, %v", s.State.GetName(), err)
			}
			if _, err := newer.Update(b.ctx, id, naming("2:z")); err != nil {
				t.Error(err)
			}
		})
	}
}

// The same where the newer release has only added a field, and so has the same schema: what the older one does not know it
// does not drop. The older release's toy is typepb.Enum here, which has no oneofs, and its entry typepb.Option, which has no
// number.
func TestAddedFieldsAreNotErased(t *testing.T) {
	t.Parallel()
	b := setup(t)
	newer := b.toys
	older := object.Register(newRuntime(t, b.DB, object.Config{}), object.KindConfig[*typepb.Enum]{
		Name: "toy", SchemaVersion: 1, TTL: 48 * time.Hour,
		Collections: map[string]proto.Message{toyEntries: &typepb.Option{}}, Recent: toyEntries, RecentKeep: 4,
	})
	enum := func(name string) func(*object.Tx[*typepb.Enum]) error {
		return func(tx *object.Tx[*typepb.Enum]) error {
			tx.State().Name = name
			return nil
		}
	}
	set := func(name string, oneofs ...string) {
		t.Helper()
		_, err := newer.Update(b.ctx, "a", func(tx *object.Tx[toy]) error {
			tx.State().Name, tx.State().Oneofs = name, oneofs
			tx.Put(toyEntries, "plain", &typepb.EnumValue{Name: name})
			tx.Put(toyEntries, "rich", &typepb.EnumValue{Name: name, Number: 7})
			return nil
		}, object.Upsert())
		if err != nil {
			t.Fatal(err)
		}
	}
	set("one")
	if _, err := older.Update(b.ctx, "a", enum("two")); err != nil {
		t.Errorf("what the older release knows in full: %v", err)
	}
	// An entry that it does not know in full can be neither replaced nor deleted; others can.
	for name, c := range map[string]struct {
		fn   func(*object.Tx[*typepb.Enum]) error
		want error
	}{
		"replace": {func(tx *object.Tx[*typepb.Enum]) error {
			tx.Put(toyEntries, "rich", &typepb.Option{Name: "lost"})
			return nil
		}, object.ErrNewerSchema},
		"delete": {func(tx *object.Tx[*typepb.Enum]) error { tx.DeleteEntry(toyEntries, "rich"); return nil }, object.ErrNewerSchema},
		"another": {func(tx *object.Tx[*typepb.Enum]) error {
			if e, _ := tx.Entry(toyEntries, "rich").(*typepb.Option); e.GetName() != "one" {
				t.Errorf("it reads %v", e)
			}
			tx.Put(toyEntries, "plain", &typepb.Option{Name: "changed"})
			tx.Put(toyEntries, "new", &typepb.Option{Name: "new"})
			return nil
		}, nil},
	} {
		for range 2 {
			if _, err := older.Update(b.ctx, "a", c.fn); !errors.Is(err, c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if s, err := older.View(b.ctx, "a", object.WithRecent(4)); err != nil || s.State.GetName() != "two" || len(s.Recent) != 3 {
		t.Errorf("%v, %v", s, err)
	}
	set("three", "added")
	for range 2 {
		if _, err := older.Update(b.ctx, "a", enum("lost")); !errors.Is(err, object.ErrNewerSchema) {
			t.Errorf("a state that it does not know in full was written: %v", err)
		}
	}
	s, err := newer.View(b.ctx, "a", object.WithRecent(1))
	if err != nil || s.State.GetName() != "three" || len(s.State.GetOneofs()) != 1 || s.Recent[0].Value.(*typepb.EnumValue).GetNumber() != 7 {
		t.Errorf("%v, %v", s, err)
	}
	if s, err := older.View(b.ctx, "a"); err != nil || s.State.GetName() != "three" {
		t.Errorf("the older release reads %v, %v", s.State, err)
	}
}

// The rewriting of old states: in batches, from where it stopped, no activity, and nothing that is not old.
func TestMigrateState(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service, cancel := context.WithTimeout(b.AsService(t), time.Minute)
	defer cancel()
	old, newest := b.release(t, 1), b.release(t, 3)
	for i := range 10 {
		if _, err := old.Update(b.As(t, identity.User(fmt.Sprint("user-", i%3))), object.ID(fmt.Sprint("o", i)), naming("1:x"), object.Create()); err != nil {
			t.Fatal(err)
		}
	}
	if err := objecttest.Delete(b.As(t, "user-0"), old, "o0"); err != nil {
		t.Fatal(err)
	}
	if _, err := newest.Update(b.As(t, "user-1"), "o1", naming("3:y")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.release(t, 4).Update(b.As(t, "user-2"), "o2", naming("4:y")); err != nil {
		t.Fatal(err)
	}
	b.exec(t, "UPDATE holdfast.objects SET activity_time = activity_time - interval '1 day', expire_time = expire_time - interval '1 day' WHERE tenant_id = $1", string(b.Tenant))
	before := b.lives(t)
	cold := b.release(t, 3)
	total, batches := 0, 0
	for from := object.ID(""); ; batches++ {
		n, next, err := cold.MigrateState(service, from, 3)
		if err != nil {
			t.Fatal(err)
		}
		if total += n; next == "" {
			break
		}
		from = next
	}
	if total != 7 || batches != 3 {
		t.Errorf("%d objects were rewritten in %d batches", total, batches)
	}
	if n, next, err := cold.MigrateState(service, "", 100); n != 0 || next != "" || err != nil {
		t.Errorf("again: %d, %q, %v", n, next, err)
	}
	if after := b.lives(t); after != before {
		t.Errorf("it counted as activity: before\n%s\nafter\n%s", before, after)
	}
	for i, want := range map[int]string{1: "3:y", 3: "3:x", 9: "3:x"} {
		id := object.ID(fmt.Sprint("o", i))
		if s, err := newest.View(service, id); err != nil || s.State.GetName() != want || s.Version != 2 {
			t.Errorf("%s: version %d, %q, %v", id, s.Version, s.State.GetName(), err)
		}
	}
	page, err := newest.History(service, "o9", 0, 1)
	if err != nil || page.Events[0].Type != "migrated" || page.Events[0].Actor != "" {
		t.Errorf("%+v, %v", page, err)
	}
}

// lives are the activity and expiry of the tenant's objects.
func (b *testBundle) lives(t *testing.T) string {
	t.Helper()
	rows, err := b.owner(t).Query(b.ctx, "SELECT concat_ws(' ', object_id, owner_id, activity_time, expire_time) FROM holdfast.objects WHERE tenant_id = $1 ORDER BY 1", string(b.Tenant))
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}
