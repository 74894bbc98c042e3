package db_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/db"
	"holdfast/identity"
)

// at names a conversation.
func at(tenant identity.Tenant, id string) db.Sleeper {
	h := fnv.New32()
	h.Write([]byte(string(tenant) + "/" + id))
	return db.Sleeper{Tenant: tenant, Kind: "conversation", ID: id, Lock: int64(h.Sum32())}
}

// awake makes objects that were seeded ones that can sleep.
func (b *testBundle) awake(t *testing.T, tenant identity.Tenant) {
	t.Helper()
	b.exec(t, "DELETE FROM holdfast.sleepers WHERE tenant_id = $1", string(tenant))
	b.exec(t, "UPDATE holdfast.objects SET update_time = now() - interval '1 day' WHERE tenant_id = $1", string(tenant))
}

// sleep puts an object to sleep, and returns whether it did.
func (b *testBundle) sleep(t *testing.T, s db.Sleeper) bool {
	t.Helper()
	before, after, err := b.DB.Sleep(b.ctx, s, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil || (before > 0) != (after > 0) {
		t.Fatalf("%s: %d bytes to %d, %v", s.ID, before, after, err)
	}
	return after > 0
}

func (b *testBundle) wake(t *testing.T, s db.Sleeper) bool {
	t.Helper()
	woke, err := b.DB.Wake(b.ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	return woke
}

// stored are all rows of an object's entries and events.
func (b *testBundle) stored(t *testing.T, s db.Sleeper) []string {
	t.Helper()
	return b.rows(t, `SELECT row_to_json(e)::text FROM holdfast.entries e WHERE tenant_id = $1 AND object_id = $2
		UNION ALL SELECT row_to_json(e)::text FROM holdfast.events e WHERE tenant_id = $1 AND object_id = $2 ORDER BY 1`, string(s.Tenant), s.ID)
}

// An export does not tell which objects sleep, whatever is in them, and neither do their rows once they woke.
func TestExportOfSleepers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seedOddities(t)
	b.exec(t, `INSERT INTO holdfast.entries SELECT tenant_id, kind, object_id, collection, lpad(i::text, 12, '0') || E'"\\ \t\u00fc\u65e5', owner_id, 9007199254740993,
			jsonb_build_object('text', E'"\\ \n\t\u00fc \u65e5 \U0001f600 \u2028', 'big', 123456789012345678901234567890.1250, 'none', NULL, E'odd "\t', '{"x": {}}'::jsonb)
		FROM holdfast.entries, generate_series(2, 999) i WHERE tenant_id = $1 AND object_id = 'odd'`, string(b.Tenant))
	b.exec(t, `INSERT INTO holdfast.events SELECT tenant_id, kind, object_id, i, owner_id, event_type, actor, event_time, 'r' || i,
			CASE WHEN i % 2 = 0 THEN convert_to('key' || i, 'UTF8') END, request_hash, reply, '{"state": {"a": {"b": 1}}, "entries": [["c", "k", null]], "in": {}}'
		FROM holdfast.events, generate_series(2, 9) i WHERE tenant_id = $1 AND object_id = 'odd'`, string(b.Tenant))
	b.awake(t, b.Tenant)
	users := []identity.User{"", "alice", "bob", `o"d\d ü 日 😀`}
	var awake [][]byte
	for _, user := range users {
		awake = append(awake, b.export(t, b.Tenant, user))
	}
	ids := []string{"alices", "odd"}
	rows := map[string][]string{}
	for _, id := range ids {
		rows[id] = b.stored(t, at(b.Tenant, id))
		if !b.sleep(t, at(b.Tenant, id)) || len(b.stored(t, at(b.Tenant, id))) != 0 {
			t.Errorf("%s does not sleep", id)
		}
	}
	if b.sleep(t, at(b.Tenant, "shared")) {
		t.Error("what is deleted sleeps")
	}
	for i, user := range users {
		if asleep := b.export(t, b.Tenant, user); !bytes.Equal(asleep, awake[i]) {
			t.Errorf("asleep, %q exports\n%.3000s\nand not\n%.3000s", user, asleep, awake[i])
		}
	}
	second := b.Tenant + "-2"
	if _, err := b.DB.Import(b.ctx, second, bytes.NewReader(awake[0])); err != nil {
		t.Fatal(err)
	}
	if again := b.export(t, second, ""); !bytes.Equal(again, awake[0]) {
		t.Error("what slept, was exported and imported exports to something else")
	}
	// Nothing large is sorted, or large tenants would go through files on disk.
	b.as(t, scope{role: db.RoleApp, tenant: b.Tenant, service: "on"}, func(tx pgx.Tx) {
		if _, err := tx.Exec(b.ctx, db.MergeSleepers); err != nil {
			t.Fatal(err)
		}
		rows, err := tx.Query(b.ctx, "EXPLAIN (COSTS OFF) "+db.ExportEntries, string(b.Tenant), "")
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if plan := strings.Join(lines, "\n"); err != nil || !strings.Contains(plan, "Merge Append") || !strings.Contains(plan, "Index Scan using entries_pkey") {
			t.Errorf("%v\n%s", err, plan)
		}
	})
	for _, id := range ids {
		if !b.wake(t, at(b.Tenant, id)) || b.wake(t, at(b.Tenant, id)) {
			t.Errorf("%s does not wake, or twice", id)
		}
		if got := b.stored(t, at(b.Tenant, id)); !slices.Equal(got, rows[id]) {
			t.Errorf("awake again %s has\n%.3000q\nand not\n%.3000q", id, got, rows[id])
		}
	}
	if again := b.export(t, b.Tenant, ""); !bytes.Equal(again, awake[0]) {
		t.Error("an export is another once the objects woke")
	}
}

// While someone is at an object it is passed over, and nobody waits.
func TestHibernationWaitsForNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seed(t, b.Tenant, "o", "alice")
	b.awake(t, b.Tenant)
	b.exec(t, "UPDATE holdfast.objects SET expire_time = NULL WHERE tenant_id = $1", string(b.Tenant))
	for _, lock := range []string{fmt.Sprintf("SELECT pg_advisory_xact_lock(%d)", at(b.Tenant, "o").Lock), "SELECT FROM holdfast.objects WHERE tenant_id = '" + string(b.Tenant) + "' FOR UPDATE"} {
		tx, err := b.super.Begin(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(b.ctx, lock); err != nil {
			t.Fatal(err)
		}
		if b.sleep(t, at(b.Tenant, "o")) {
			t.Errorf("%s did not keep it awake", lock)
		}
		if err := tx.Rollback(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
	if !b.sleep(t, at(b.Tenant, "o")) {
		t.Error("it stays awake")
	}
}

// An object that is cut off while it falls asleep is awake, and one that is cut off while it wakes sleeps, with all its rows.
func TestSleepIsAllOrNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seed(t, b.Tenant, "o", "alice")
	b.awake(t, b.Tenant)
	o := at(b.Tenant, "o")
	all := b.stored(t, o)
	cutOff := func(locked string, do func(context.Context) error) {
		t.Helper()
		tx, err := b.super.Begin(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.WithoutCancel(b.ctx))
		// Readers and the tests beside this one go on; who writes a row of this object waits, and gives up.
		if _, err := tx.Exec(b.ctx, locked, string(b.Tenant)); err != nil {
			t.Fatal(err)
		}
		if err := do(b.ctx); err == nil {
			t.Error("it was not cut off")
		}
	}
	cutOff("INSERT INTO holdfast.sleepers SELECT $1, 'conversation', 'o', 'entries', 'alice', 0, 0, NULL, ''", func(ctx context.Context) error {
		_, _, err := b.DB.Sleep(ctx, o, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		return err
	})
	if got := b.stored(t, o); !slices.Equal(got, all) {
		t.Errorf("it has %q", got)
	}
	if !b.sleep(t, o) {
		t.Fatal("it stays awake")
	}
	cutOff(`INSERT INTO holdfast.events (tenant_id, kind, object_id, owner_id, version, event_type, actor, event_time, undo)
		VALUES ($1, 'conversation', 'o', 'alice', 1, 'created', '', now(), '{}')`, func(ctx context.Context) error {
		_, err := b.DB.Wake(ctx, o)
		return err
	})
	if got := b.stored(t, o); len(got) != 0 {
		t.Errorf("it has %q", got)
	}
	// Of many who wake it at once one does.
	var woke atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if first, err := b.DB.Wake(b.ctx, o); err != nil {
				t.Error(err)
			} else if first {
				woke.Add(1)
			}
		})
	}
	if wg.Wait(); woke.Load() != 1 || !slices.Equal(b.stored(t, o), all) {
		t.Errorf("%d woke it, and it has %q", woke.Load(), b.stored(t, o))
	}
}

// The journal of a sleeper goes once all of it is too old, and nothing else does. What is stored counts the same asleep.
func TestTrimSleepers(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	ids := []string{"old", "partly", "young"}
	for _, id := range ids {
		b.seed(t, b.Tenant, id, "alice")
	}
	b.exec(t, `INSERT INTO holdfast.events (tenant_id, kind, object_id, owner_id, version, event_type, actor, event_time, undo)
		SELECT tenant_id, kind, object_id, owner_id, i, 'updated', '', now() - interval '8 days', '{}' FROM holdfast.objects, generate_series(2, 6) i WHERE object_id <> 'young'`)
	b.exec(t, "UPDATE holdfast.events SET event_time = now() - interval '9 days' WHERE object_id = 'old' AND version = 1")
	b.awake(t, b.Tenant)
	usage := func() []string {
		t.Helper()
		if err := b.DB.RecountUsage(b.ctx, b.Tenant); err != nil {
			t.Fatal(err)
		}
		return b.rows(t, "SELECT owner_id || ' ' || objects || ' ' || bytes FROM holdfast.usage ORDER BY 1")
	}
	before := usage()
	for _, id := range ids {
		if !b.sleep(t, at(b.Tenant, id)) {
			t.Fatalf("%s stays awake", id)
		}
	}
	if after := usage(); !slices.Equal(before, after) {
		t.Errorf("asleep %v are stored, awake %v", after, before)
	}
	for i, want := range []int64{6, 0} {
		if n, err := b.DB.TrimJournal(b.ctx, db.SweepConfig{JournalRetention: 5 * 24 * time.Hour}); err != nil || n != want {
			t.Errorf("trim %d: %d events, %v", i, n, err)
		}
	}
	for _, id := range ids {
		b.wake(t, at(b.Tenant, id))
	}
	if got := b.rows(t, "SELECT object_id || ' ' || count(*) FROM holdfast.events GROUP BY object_id ORDER BY 1"); !slices.Equal(got, []string{"partly 6", "young 1"}) {
		t.Errorf("events that are left: %v", got)
	}
	if got := b.rows(t, "SELECT object_id FROM holdfast.entries ORDER BY 1"); !slices.Equal(got, ids) {
		t.Errorf("entries that are left: %v", got)
	}
}

// Tenants that only tokens name sleep too.
func TestStoredTenants(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	b.seed(t, "by-token", "o", "")
	b.seed(t, "only-sleepers", "o", "")
	b.exec(t, "DELETE FROM holdfast.events WHERE tenant_id = 'only-sleepers'")
	if _, err := b.Operator.CreateTenant(b.ctx, "by-name", ""); err != nil {
		t.Fatal(err)
	}
	got, err := b.DB.StoredTenants(b.ctx)
	if want := []identity.Tenant{"by-name", "by-token", "only-sleepers"}; err != nil || !slices.Equal(slices.DeleteFunc(got, func(t identity.Tenant) bool { return t == b.Tenant }), want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	ended, end := context.WithCancel(b.ctx)
	end()
	if _, err := b.DB.StoredTenants(ended); err == nil {
		t.Error("a context that was over made no difference")
	}
}

// What a message of a conversation takes on disk with all that belongs to it, awake and asleep, indexes included. With -v it says.
func TestBytesOfAMessage(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		words = append(words, strings.Fields(string(text))...)
	}
	const messages, conversations = 200, 50
	b.exec(t, `INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state,
			create_time, update_time, activity_time)
		SELECT $1, 'conversation', 'c' || i, 'alice', 0, 1, 1, '{}', now(), now() - interval '1 day', now() FROM generate_series(1, $2::integer) i`, string(b.Tenant), conversations)
	r := rand.New(rand.NewPCG(1, 0))
	uuid := func() string {
		return fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x", r.Uint32(), r.Uint32()>>16, r.Uint32()>>20, 0x8000|r.Uint32()>>18, r.Uint64()>>16)
	}
	sent := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var entries, events [][]any
	length := 0
	for c := range conversations {
		id := fmt.Sprint("c", c+1)
		for i := range messages {
			from := r.IntN(len(words) - 60)
			sent = sent.Add(time.Duration(r.IntN(60_000_000)) * time.Microsecond)
			text := strings.Join(words[from:from+20+r.IntN(30)], " ")
			seq, key, client, request := fmt.Sprint(i+1), fmt.Sprintf("%012d", i+1), uuid(), uuid()
			body, err := json.Marshal(map[string]any{
				"seq": seq, "role": []string{"ROLE_USER", "ROLE_ASSISTANT"}[i%2], "modality": "MODALITY_TEXT", "status": "MESSAGE_STATUS_COMPLETE", "text": text,
				"token_count": fmt.Sprint(len(text) / 4), "token_count_estimated": true, "create_time": sent, "update_time": sent, "client_message_id": client,
			})
			if err != nil {
				t.Fatal(err)
			}
			length += len(text)
			hash, reply := make([]byte, 32+16), make([]byte, 12)
			for j := range hash {
				hash[j] = byte(r.Uint32())
			}
			copy(reply, hash)
			undo := fmt.Sprintf(`{"state": {"last_seq": "%d", "token_count": "%d"}, "entries": [["messages", %q, null], ["client_messages", %q, null]]}`, i, length, key, client)
			entries = append(entries,
				[]any{string(b.Tenant), "conversation", id, "messages", key, "alice", int64(i + 1), string(body)},
				[]any{string(b.Tenant), "conversation", id, "client_messages", client, "alice", int64(i + 1), `{"seq": "` + seq + `", "user": "alice"}`})
			events = append(events, []any{
				string(b.Tenant), "conversation", id, int64(i + 1), "alice", "updated", "alice", sent, request, hash[32:], hash[:32],
				bytes.Repeat(reply, 5), undo,
			})
		}
	}
	for table, rows := range map[string][][]any{"entries": entries, "events": events} {
		columns := []string{"tenant_id", "kind", "object_id", "collection", "key", "owner_id", "version", "body"}
		if table == "events" {
			columns = []string{"tenant_id", "kind", "object_id", "version", "owner_id", "event_type", "actor", "event_time", "request_id", "request_key", "request_hash", "reply", "undo"}
		}
		if _, err := b.super.CopyFrom(b.ctx, pgx.Identifier{"holdfast", table}, columns, pgx.CopyFromRows(rows)); err != nil {
			t.Fatal(err)
		}
	}
	size := func(tables ...string) (total int) {
		t.Helper()
		for _, table := range tables {
			b.exec(t, "VACUUM FULL holdfast."+table)
			var bytes int
			if err := b.super.QueryRow(b.ctx, "SELECT pg_total_relation_size($1)", "holdfast."+table).Scan(&bytes); err != nil {
				t.Fatal(err)
			}
			total += bytes
		}
		return total / (messages * conversations)
	}
	awake := size("entries", "events")
	began := time.Now()
	for c := range conversations {
		if _, after, err := b.DB.Sleep(b.ctx, at(b.Tenant, fmt.Sprint("c", c+1)), time.Now(), time.Now()); err != nil || after == 0 {
			t.Fatal(after, err)
		}
	}
	slept := time.Since(began) / conversations
	asleep := size("sleepers")
	began = time.Now()
	for c := range conversations {
		b.wake(t, at(b.Tenant, fmt.Sprint("c", c+1)))
	}
	t.Logf("a message of %d bytes of text takes %d bytes on disk, and %d asleep; a conversation of %d takes %v to fall asleep and %v to wake",
		length/messages/conversations, awake, asleep, messages, slept, time.Since(began)/conversations)
	if text := length / messages / conversations; asleep*10 > 16*text { // 300 bytes, with 190 of text
		t.Errorf("asleep, a message takes %d bytes of %d", asleep, awake)
	}
}
