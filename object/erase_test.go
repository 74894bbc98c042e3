package object_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/sourcecontextpb"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db/dbtest"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/object/objecttest"
)

// found are the places in the whole database where a text can be found, as a search of a dump would find it.
func found(t *testing.T, b *dbtest.Bundle, text string) (out []string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	rows, err := conn.Query(t.Context(), `SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables
		WHERE table_schema LIKE 'holdfast%' AND table_type = 'BASE TABLE' ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	escaped := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text)
	for _, table := range tables {
		rows, err := conn.Query(t.Context(), "SELECT to_jsonb(x)::text FROM "+table+" x WHERE strpos(to_jsonb(x)::text, $1) > 0 OR strpos(to_jsonb(x)::text, $2) > 0",
			escaped, fmt.Sprintf("%x", text)) // bytes are hexadecimal there
		if err != nil {
			t.Fatal(err)
		}
		hits, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hits {
			out = append(out, table+": "+h)
		}
	}
	return out
}

// What a user had is gone, and from what others have the user's id is gone: from states, entries and their keys, terms, and
// the journal with its undo and its replies, of what is alive, deleted and expired. History can still be walked.
func TestEraseUser(t *testing.T) {
	t.Parallel()
	for name, user := range map[string]identity.User{"long": `ada-"love\lace"-日-4711`, "short": "ada"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testEraseUser(t, user)
		})
	}
}

func testEraseUser(t *testing.T, user identity.User) {
	t.Helper()
	b := dbtest.Own(t)
	rt := newRuntime(t, b.DB, object.Config{})
	other := newRuntime(t, b.DB, object.Config{})
	k, remembers := toyKind(rt), toyKind(other)
	inside := len(user) >= 8
	text := string(user)
	if inside {
		text = "what " + string(user) + " said"
	}
	ada, bob, service := b.As(t, user), b.As(t, "bob"), b.AsService(t)
	change := func(ctx context.Context, id object.ID, fn func(*object.Tx[toy]), opts ...object.UpdateOption) {
		t.Helper()
		if _, err := k.Update(ctx, id, func(tx *object.Tx[toy]) error { fn(tx); return nil }, opts...); err != nil {
			t.Fatal(err)
		}
	}
	mention := func(tx *object.Tx[toy]) {
		tx.State().Name = text
		tx.State().Oneofs = []string{"kept", text}
		tx.State().SourceContext = &sourcecontextpb.SourceContext{FileName: text}
		tx.Put(toyEntries, "k1", &typepb.EnumValue{Name: text, Number: 42})
		tx.Put(toyEntries, string(user), &typepb.EnumValue{Name: "of " + "the key"})
		tx.Put(toyOther, "o1", &typepb.Field{Name: text, TypeUrl: "name"})
	}
	for i, id := range []object.ID{"shared", "deleted", "expired"} {
		change(service, id, func(tx *object.Tx[toy]) { tx.State().Name = "quiet" }, object.Create())
		change(ada, id, mention, object.Request(fmt.Sprintf("r-%s-%d", text, i), &typepb.EnumValue{}))
		change(bob, id, func(tx *object.Tx[toy]) { tx.State().Edition = "bob's" })
	}
	change(bob, "bobs", mention, object.Create())
	change(ada, "adas", mention, object.Create())
	hibernate := func(want int64) {
		t.Helper()
		for slept := int64(0); slept < want; {
			h, err := rt.Hibernate(service, object.HibernateConfig{Idle: 1, LeastRows: 1, PerSecond: 1000})
			if slept += h.Objects; err != nil || slept > want {
				t.Fatalf("%d were put to sleep instead of %d, %v", slept, want, err)
			}
		}
	}
	change(bob, "quiet", func(tx *object.Tx[toy]) { tx.State().Name = "sleeps on" }, object.Create())
	hibernate(6)
	if err := objecttest.Delete(service, k, "deleted"); err != nil {
		t.Fatal(err)
	}
	if _, err := remembers.View(bob, "shared", object.WithRecent(4)); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range []string{
		"UPDATE holdfast.events SET reply = convert_to($1, 'UTF8') WHERE request_id IS NOT NULL",
		"UPDATE holdfast.objects SET expire_time = now() - interval '1 hour' WHERE object_id = 'expired'",
		"INSERT INTO holdfast.api_keys (tenant_id, key_id, owner_id, role, secret_hash) VALUES ($1, 'k', $2, 'user', decode(repeat('00', 32), 'hex'))",
		"INSERT INTO holdfast_jobs.river_job (kind, args, max_attempts) VALUES ('x', jsonb_build_object('tenant', $1::text, 'user', $2::text), 1)",
		"INSERT INTO holdfast.timers (tenant_id, kind, object_id, owner_id, name, due_time, next_time, last_error, parked) VALUES ($1, 'toy', 'shared', '', 't', now(), now(), 'for ' || $2::text, true)",
	} {
		var args []any
		switch {
		case strings.Contains(sql, "$2"):
			args = []any{string(b.Tenant), string(user)}
		case strings.Contains(sql, "$1"):
			args = []any{string(user)}
		}
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}

	hibernate(1) // shared, which was viewed
	erased, err := rt.EraseUser(service, user)
	if err != nil {
		t.Fatal(err)
	}
	if erased.Deleted["objects"] != 1 || erased.Deleted["api_keys"] != 1 || erased.Deleted["tasks"] != 1 || erased.Changed != 3 || erased.Events < 4 || len(erased.Left) != 0 {
		t.Errorf("%+v", erased)
	}
	needle := string(user)
	if !inside {
		needle = `"` + needle + `"` // parts of words are not looked at
	}
	for _, hit := range found(t, b, needle) {
		t.Errorf("still there: %s", hit)
	}

	if _, err := k.View(service, "adas"); err == nil {
		t.Error("what was hers is there")
	}
	for _, kind := range []*object.Kind[toy]{k, remembers} {
		snap, err := kind.View(bob, "shared", object.WithRecent(4))
		if err != nil {
			t.Fatal(err)
		}
		pseudonym := snap.State.GetOneofs()[1]
		if !strings.Contains(pseudonym, "erased-") || snap.State.GetName() != pseudonym || snap.State.GetSourceContext().GetFileName() != pseudonym ||
			snap.State.GetOneofs()[0] != "kept" || snap.State.GetEdition() != "bob's" || snap.Version < 4 {
			t.Errorf("%+v, %v", snap.Info, snap.State)
		}
		if len(snap.Recent) != 2 || !strings.HasPrefix(snap.Recent[0].Key, "erased-") || snap.Recent[1].Value.(*typepb.EnumValue).GetNumber() != 42 {
			t.Errorf("entries: %v", snap.Recent)
		}
		if page, err := kind.List(bob, object.ListOptions{Terms: []string{pseudonym}}); err != nil || len(page.Items) != 2 {
			t.Errorf("listed by what the term is now: %d, %v", len(page.Items), err)
		}
	}
	first, err := objecttest.ViewAt(bob, k, "shared", object.Moment{Version: 1})
	if err != nil || first.State.GetName() != "quiet" {
		t.Errorf("as it was first: %v, %v", first.State, err)
	}
	second, err := objecttest.ViewAt(bob, k, "shared", object.Moment{Version: 2})
	if err != nil || !strings.Contains(second.State.GetName(), "erased-") {
		t.Errorf("as it was then: %v, %v", second.State, err)
	}

	again, err := rt.EraseUser(service, user)
	if err != nil || len(again.Deleted) != 0 || again.Changed != 0 || again.Events != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	for _, who := range []context.Context{bob, ada} {
		if _, err := rt.EraseUser(who, user); err == nil {
			t.Error("a user erased a user")
		}
	}
}

// What a kind says is personal goes as a whole: entries, by what they hold or by their owners, elements of lists, and the
// texts of what is neither. It is gone from what is deleted, and from all by which a change could be undone.
func TestEraseUserRemovesWhatIsPersonal(t *testing.T) {
	t.Parallel()
	for _, deleted := range []bool{false, true} {
		b := dbtest.Own(t)
		rt := newRuntime(t, b.DB, object.Config{})
		config := toyConfig()
		config.Name = "personal"
		config.Personal = []object.Personal{{Message: &typepb.Field{}, User: "name"}, {Message: &sourcecontextpb.SourceContext{}, User: "file_name"}}
		config.Collections = map[string]proto.Message{toyOther: &typepb.Field{}, "owned": &typepb.EnumValue{}}
		config.Owned, config.Recent = []string{"owned"}, toyOther
		k := object.Register(rt, config)
		service := b.AsService(t)
		for i, user := range []identity.User{"ada", "bob", "ada", "bob"} {
			if _, err := k.Update(b.As(t, user), "x", func(tx *object.Tx[toy]) error {
				tx.State().SourceContext = &sourcecontextpb.SourceContext{FileName: string(user)}
				tx.State().Fields = append(tx.State().Fields, &typepb.Field{Name: string(user), TypeUrl: "secret of " + string(user)})
				tx.Put(toyOther, fmt.Sprint(i), &typepb.Field{Name: string(user), TypeUrl: "secret of " + string(user)})
				tx.PutFor(user, "owned", "key-"+string(user[:1])+"/1", &typepb.EnumValue{Name: "secret of all"})
				return nil
			}, object.Upsert(), object.Shared(), object.Request("secret of "+string(user)+fmt.Sprint(i), &typepb.EnumValue{})); err != nil {
				t.Fatal(err)
			}
		}
		if deleted {
			if err := objecttest.Delete(service, k, "x"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := rt.EraseUser(service, "ada"); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"secret of ada", `"ada"`, "key-a/"} {
			for _, hit := range found(t, b, text) {
				t.Errorf("deleted %t: %q is still there: %s", deleted, text, hit)
			}
		}
		if again, err := rt.EraseUser(service, "ada"); err != nil || again.Changed != 0 || again.Events != 0 {
			t.Errorf("again: %+v, %v", again, err)
		}
		if deleted {
			continue
		}
		snap, err := k.View(service, "x")
		if err != nil || len(snap.State.GetFields()) != 2 || snap.State.GetFields()[0].GetTypeUrl() != "secret of bob" || snap.State.GetSourceContext().GetFileName() != "bob" {
			t.Errorf("%v, %v", snap.State, err)
		}
		page, err := k.Entries(service, "x", toyOther, object.EntriesOptions{})
		if err != nil || len(page.Entries) != 2 {
			t.Errorf("%v, %v", page.Entries, err)
		}
		if _, err := objecttest.ViewAt(service, k, "x", object.Moment{Version: 1}); err == nil {
			t.Error("its history can be walked")
		}
		if _, err := objecttest.ViewAt(service, k, "x", object.Moment{Version: snap.Version}); err != nil {
			t.Error("as it is:", err)
		}
	}
}
