package db_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// packing packs all that can be packed of the conversation's messages.
func packing(tenant identity.Tenant, id string) dbsqlc.PackObjectParams {
	return dbsqlc.PackObjectParams{
		TenantID: string(tenant), Lock: 1, Kind: "conversation", ObjectID: id, Collections: []string{"messages", "flow_steps"}, Keep: 1, Size: 256, Bytes: 1 << 20, Most: 100,
	}
}

// An export does not tell whether entries are packed, whatever is in them and their keys.
func TestExportOfWhatIsPacked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seedOddities(t)
	b.exec(t, `INSERT INTO holdfast.entries SELECT tenant_id, kind, object_id, collection, lpad(i::text, 12, '0') || E'"\\ \t\u00fc\u65e5', owner_id, 9007199254740993,
			jsonb_build_object('text', E'"\\ \n\t\u00fc \u65e5 \U0001f600 \u2028', 'big', 123456789012345678901234567890.1250, 'none', NULL)
		FROM holdfast.entries, generate_series(2, 999) i WHERE tenant_id = $1 AND object_id = 'odd'`, string(b.Tenant))
	b.seed(t, b.Tenant, "expired", "alice")
	b.exec(t, `INSERT INTO holdfast.entries SELECT tenant_id, kind, object_id, collection, lpad(i::text, 12, '0'), owner_id, i, '{}'
		FROM holdfast.entries, generate_series(2, 999) i WHERE tenant_id = $1 AND object_id = 'expired'`, string(b.Tenant))
	b.exec(t, `UPDATE holdfast.objects SET update_time = now() - interval '1 day' WHERE tenant_id = $1`, string(b.Tenant))
	whole, alices := b.export(t, b.Tenant, ""), b.export(t, b.Tenant, "alice")
	rows := func() []string {
		t.Helper()
		return b.rows(t, "SELECT row_to_json(e)::text FROM holdfast.all_entries e WHERE tenant_id = $1 ORDER BY object_id, collection, key", string(b.Tenant))
	}
	messages := b.rows(t, "SELECT row_to_json(m)::text FROM holdfast.messages m WHERE tenant_id = $1 ORDER BY 1", string(b.Tenant))
	all := rows()
	for id, want := range map[string]int64{"alices": 11, "odd": 3, "expired": 3} {
		p, err := b.DB.PackObject(b.ctx, packing(b.Tenant, id))
		if err != nil || p.Packs != want || p.Entries != want*256 || p.BytesAfter >= p.BytesBefore {
			t.Errorf("packing %s: %+v, %v", id, p, err)
		}
	}
	b.expire(t, b.Tenant, "expired")
	if got := rows(); !slices.Equal(got, all) {
		t.Error("all entries are others when they are packed")
	}
	if got := b.rows(t, "SELECT row_to_json(m)::text FROM holdfast.messages m WHERE tenant_id = $1 ORDER BY 1", string(b.Tenant)); !slices.Equal(got, messages) {
		t.Error("the messages are others when they are packed")
	}
	without := func(export []byte) string { // what has expired, and the sum
		var kept []string
		for line := range strings.Lines(string(export)) {
			if !strings.Contains(line, `"expired"`) && !strings.Contains(line, `"sha256"`) {
				kept = append(kept, line)
			}
		}
		return strings.Join(kept, "")
	}
	packed, alicesPacked := b.export(t, b.Tenant, ""), b.export(t, b.Tenant, "alice")
	if without(packed) != without(whole) || without(alicesPacked) != without(alices) {
		t.Error("an export is another where entries are packed")
	}
	second := b.Tenant + "-2"
	if _, err := b.DB.Import(b.ctx, second, bytes.NewReader(packed)); err != nil {
		t.Fatal(err)
	}
	if again := b.export(t, second, ""); !bytes.Equal(again, packed) {
		t.Error("what was packed, exported and imported exports to something else")
	}
	if n := b.rows(t, "SELECT count(*)::text FROM holdfast.packs WHERE tenant_id = $1", string(second)); n[0] != "0" {
		t.Errorf("an import made %s packs", n[0])
	}
	// Nothing is sorted, or large tenants would go through files on disk.
	b.as(t, scope{role: db.RoleApp, tenant: b.Tenant, service: "on"}, func(tx pgx.Tx) {
		if _, err := tx.Exec(b.ctx, db.MergeEntries); err != nil {
			t.Fatal(err)
		}
		rows, err := tx.Query(b.ctx, "EXPLAIN (COSTS OFF) "+db.ExportPackedEntries, string(b.Tenant), "")
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if plan := strings.Join(lines, "\n"); err != nil || !strings.Contains(plan, "Merge Append") || strings.Contains(plan, "Sort\n") {
			t.Errorf("%v\n%s", err, plan)
		}
	})

	for _, id := range []string{"alices", "odd", "shared", "expired"} {
		if _, err := b.DB.UnpackObject(b.ctx, dbsqlc.UnpackObjectParams{TenantID: string(b.Tenant), Lock: 1, Kind: "conversation", ObjectID: id, Most: 100}); err != nil {
			t.Error(err)
		}
	}
	if left := b.rows(t, "SELECT object_id FROM holdfast.packs WHERE tenant_id = $1", string(b.Tenant)); len(left) != 0 {
		t.Errorf("still packed: %v", left)
	}
	if noted := b.rows(t, "SELECT object_id FROM holdfast.objects WHERE tenant_id = $1 AND packed IS NOT NULL", string(b.Tenant)); len(noted) != 0 {
		t.Errorf("still noted as packed: %v", noted)
	}
	if got := rows(); !slices.Equal(got, all) {
		t.Error("all entries are others once they were packed and unpacked")
	}
}

// A pack that is made again, or that a migration down makes entries, fits between its neighbours whatever the keys are.
func TestPacksNeverOverlap(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	b.seed(t, b.Tenant, "o", "")
	b.exec(t, "UPDATE holdfast.objects SET update_time = now() - interval '1 day', packed = NULL")
	b.exec(t, "DELETE FROM holdfast.packs")
	insert := func(format string, from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			b.exec(t, `INSERT INTO holdfast.entries SELECT tenant_id, kind, object_id, 'messages', $1, owner_id, 1, '{}' FROM holdfast.objects`, fmt.Sprintf(format, i))
		}
	}
	p := packing(b.Tenant, "o")
	p.Size = 4
	pack := func(want int64) {
		t.Helper()
		if got, err := b.DB.PackObject(b.ctx, p); err != nil || got.Packs != want {
			t.Errorf("%+v, %v; want %d packs", got, err, want)
		}
		overlaps := b.rows(t, `SELECT p.first_key FROM holdfast.packs p
			WHERE EXISTS (SELECT FROM holdfast.packs q WHERE q.first_key <> p.first_key AND q.first_key <= p.last_key AND q.last_key >= p.first_key)
			OR EXISTS (SELECT FROM holdfast.entries e WHERE e.object_id = p.object_id AND e.collection = p.collection AND e.key >= p.first_key AND e.key <= p.last_key)`)
		if len(overlaps) > 0 {
			t.Errorf("packs that overlap begin at %v", overlaps)
		}
	}
	insert("m%03d", 0, 12)
	pack(3)                            // 000000000001 and m000 to m010
	insert("m002x%03d", 0, 3)          // between two packs, and too few for one
	insert("0000000000001-%03d", 0, 6) // in front of what is packed
	insert("z%03d", 0, 9)
	pack(1 + 2) // what is in front, and m011 with the first of z
	total := b.rows(t, "SELECT count(*) || ' ' || count(DISTINCT key) FROM holdfast.all_entries WHERE collection = 'messages'")
	if total[0] != "31 31" {
		t.Errorf("entries and keys: %v", total)
	}
	// Bytes bound a pack as well.
	insert("z%03d", 9, 14)
	b.exec(t, "UPDATE holdfast.entries SET body = jsonb_build_object('text', repeat('x', 1000)) WHERE key LIKE 'z%'")
	p.Bytes, p.Size = 1500, 256
	pack(3)
}

// While somebody is at an object it is passed over, and nobody waits.
func TestPackingWaitsForNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seedOddities(t)
	b.exec(t, `UPDATE holdfast.objects SET update_time = now() - interval '1 day' WHERE tenant_id = $1`, string(b.Tenant))
	for _, lock := range []string{"SELECT pg_advisory_xact_lock(1)", "SELECT FROM holdfast.objects WHERE tenant_id = '" + string(b.Tenant) + "' FOR UPDATE"} {
		tx, err := b.super.Begin(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(b.ctx, lock); err != nil {
			t.Fatal(err)
		}
		if p, err := b.DB.PackObject(b.ctx, packing(b.Tenant, "alices")); err != nil || p.Packs != 0 {
			t.Errorf("%+v, %v", p, err)
		}
		if err := tx.Rollback(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := b.DB.PackObject(b.ctx, packing(b.Tenant, "alices")); err != nil || p.Packs != 11 {
		t.Errorf("%+v, %v", p, err)
	}
}

// LoadPacked opens each pack once, whatever the planner believes.
func TestLoadPackedPlans(t *testing.T) {
	t.Parallel()
	b := setupPlans(t)
	b.fill(t, 1, rowsPlanned)
	a := dbsqlc.LoadPackedParams{TenantID: string(b.Tenant)}
	for i := range 100 {
		a.Ords, a.Kinds, a.Ids = append(a.Ords, int32(i%2)), append(a.Kinds, "k"), append(a.Ids, []string{"o1", "long"}[i%2])
		a.Collections, a.Keys = append(a.Collections, "p"), append(a.Keys, []string{"2", "000000000100b", "1", "none"}[i%4])
	}
	check := func(when string) {
		t.Helper()
		b.as(t, scope{role: db.RoleApp, tenant: b.Tenant, owners: "{alice}"}, func(tx pgx.Tx) {
			before := b.counters(t, tx)
			rows, err := dbsqlc.New(tx).LoadPacked(b.ctx, a)
			if err != nil || len(rows) != 3 {
				t.Errorf("%s: %v, %v", when, rows, err)
			}
			after := b.counters(t, tx)
			// Each key finds its pack by one probe; the two packs are then read once.
			if sequential, read := after.sequential-before.sequential, after.rows-before.rows; sequential != 0 || read > 100+2 {
				t.Errorf("%s: %d sequential scans, %d rows read", when, sequential, read)
			}
		})
	}
	check("large, never analysed")
	b.exec(t, "ANALYZE")
	check("large")
}

// Tenants that only tokens name are packed too.
func TestStoredTenants(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	b.seed(t, "by-token", "o", "")
	b.seed(t, "only-packs", "o", "")
	b.exec(t, "DELETE FROM holdfast.events WHERE tenant_id = 'only-packs'")
	if _, err := b.Operator.CreateTenant(b.ctx, "by-name", ""); err != nil {
		t.Fatal(err)
	}
	got, err := b.DB.StoredTenants(b.ctx)
	if want := []identity.Tenant{"by-name", "by-token", "only-packs"}; err != nil || !slices.Equal(slices.DeleteFunc(got, func(t identity.Tenant) bool { return t == b.Tenant }), want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	ended, end := context.WithCancel(b.ctx)
	end()
	if _, err := b.DB.StoredTenants(ended); err == nil {
		t.Error("a context that was over made no difference")
	}
}

// What a message takes on disk, packed and not, indexes included: prose in JSON as a conversation has it. With -v it says.
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
	const messages, conversations = 2048 + 1, 8
	b.exec(t, `INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state,
			create_time, update_time, activity_time)
		SELECT $1, 'conversation', 'c' || i, 'alice', 0, 1, 1, '{}', now(), now() - interval '1 day', now() FROM generate_series(1, $2::integer) i`, string(b.Tenant), conversations)
	r := rand.New(rand.NewPCG(1, 0))
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	rows := make([][]any, 0, messages*conversations)
	length := 0
	for c := range conversations {
		for i := range messages {
			from := r.IntN(len(words) - 60)
			at = at.Add(time.Duration(r.IntN(60_000_000)) * time.Microsecond)
			text := strings.Join(words[from:from+20+r.IntN(40)], " ")
			body, err := json.Marshal(map[string]any{
				"seq": fmt.Sprint(i + 1), "role": []string{"ROLE_USER", "ROLE_ASSISTANT"}[i%2], "modality": "MODALITY_VOICE", "status": "MESSAGE_STATUS_COMPLETE",
				"text": text, "token_count": fmt.Sprint(len(text) / 4), "token_count_estimated": true, "create_time": at, "update_time": at,
			})
			if err != nil {
				t.Fatal(err)
			}
			length += len(body)
			rows = append(rows, []any{string(b.Tenant), "conversation", fmt.Sprint("c", c+1), "messages", fmt.Sprintf("%012d", i+1), "alice", int64(i + 1), string(body)})
		}
	}
	_, err = b.super.CopyFrom(b.ctx, pgx.Identifier{"holdfast", "entries"},
		[]string{"tenant_id", "kind", "object_id", "collection", "key", "owner_id", "version", "body"}, pgx.CopyFromRows(rows))
	if err != nil {
		t.Fatal(err)
	}
	size := func(table string) (bytes int) {
		t.Helper()
		b.exec(t, "VACUUM FULL holdfast."+table)
		if err := b.super.QueryRow(b.ctx, "SELECT pg_total_relation_size($1)", "holdfast."+table).Scan(&bytes); err != nil {
			t.Fatal(err)
		}
		return bytes / len(rows)
	}
	before := size("entries")
	began := time.Now()
	for c := range conversations {
		if p, err := b.DB.PackObject(b.ctx, packing(b.Tenant, fmt.Sprint("c", c+1))); err != nil || p.Packs != (messages-1)/256 {
			t.Errorf("%+v, %v", p, err)
		}
	}
	took := time.Since(began)
	after := size("packs")
	t.Logf("a message of %d bytes of JSON takes %d bytes on disk, and %d packed, indexes included; %d were packed in %v", length/len(rows), before, after, len(rows), took)
	if after > before/2 {
		t.Errorf("packed, a message takes %d bytes of %d", after, before)
	}
}
