package db_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// export is a tenant's, or one user's.
func (b *testBundle) export(t *testing.T, tenant identity.Tenant, user identity.User) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := b.DB.Export(b.ctx, tenant, user, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// seedOddities stores rows with what is easily lost: texts of every script and escape, bytes, NULL, large numbers.
func (b *testBundle) seedOddities(t *testing.T) {
	t.Helper()
	for id, owner := range map[string]string{"alices": "alice", "shared": "", "odd": `o"d\d ü 日 😀`} {
		b.seed(t, b.Tenant, id, owner)
	}
	b.exec(t, `UPDATE holdfast.objects SET state = jsonb_build_object('text', E'"\\ \n\t\u00fc \u65e5 \U0001f600 \u2028', 'big', 123456789012345678901234567890.125, 'none', NULL),
		timers = '{"t": "2030-01-01T00:00:00Z"}', version = 9007199254740993, update_time = '2026-01-02 03:04:05.678901+02' WHERE tenant_id = $1 AND object_id = 'odd'`, string(b.Tenant))
	b.exec(t, `UPDATE holdfast.objects SET state = NULL, deleted = true, expire_time = now() + interval '1 day' WHERE tenant_id = $1 AND object_id = 'shared'`, string(b.Tenant))
	b.exec(t, `UPDATE holdfast.events SET request_id = 'r', request_key = decode('00ff10', 'hex'), request_hash = '\x', reply = decode('0a0d5c22', 'hex')
		WHERE tenant_id = $1 AND object_id = 'odd'`, string(b.Tenant))
	b.exec(t, `INSERT INTO holdfast.entries SELECT tenant_id, kind, object_id, collection, lpad(i::text, 12, '0'), owner_id, i, jsonb_build_object('text', repeat('x', i))
		FROM holdfast.entries, generate_series(2, 3000) i WHERE tenant_id = $1 AND object_id = 'alices'`, string(b.Tenant))
}

// What was imported exports to the very same bytes: in another tenant, in the same one once it is empty, and twice.
func TestExportImport(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seedOddities(t)
	b.seed(t, b.Tenant, "expired", "alice")
	b.expire(t, b.Tenant, "expired")
	b.seed(t, b.Tenant+"-other", "not-ours", "alice")
	exported := b.export(t, b.Tenant, "")
	if bytes.Contains(exported, []byte(b.Tenant)) || bytes.Contains(exported, []byte("expired\"")) || bytes.Contains(exported, []byte("not-ours")) {
		t.Errorf("more is exported than should be")
	}
	second := b.Tenant + "-2"
	for i := range 2 {
		rows, err := b.DB.Import(b.ctx, second, bytes.NewReader(exported))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 && (rows["objects"] != 3 || rows["entries"] != 3+2999 || rows["events"] != 3 || rows["terms"] != 3 || rows["timers"] != 3) || i == 1 && rows["entries"] != 0 {
			t.Errorf("import %d stored %v", i+1, rows)
		}
		if again := b.export(t, second, ""); !bytes.Equal(again, exported) {
			t.Errorf("import %d exports to\n%.2000s\nand not to\n%.2000s", i+1, again, exported)
		}
	}
	if got := b.rows(t, "SELECT term FROM holdfast.terms WHERE tenant_id = $1 AND object_id = 'odd'", string(second)); got[0] != string(second)+"/conversation/t" {
		t.Errorf("the term is %q", got)
	}
	// An object whose rows came, and which has changed since, is left as it is.
	b.exec(t, "DELETE FROM holdfast.entries WHERE tenant_id = $1 AND object_id = 'alices' AND key > '000000000010'", string(second))
	b.exec(t, "UPDATE holdfast.objects SET version = version + 1 WHERE tenant_id = $1 AND object_id = 'alices'", string(second))
	if rows, err := b.DB.Import(b.ctx, second, bytes.NewReader(exported)); err != nil || rows["entries"] != 0 || rows["objects"] != 0 {
		t.Errorf("a third import stored %v, %v", rows, err)
	}
}

// A user's export has the user's rows and no others.
func TestExportOfAUser(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seedOddities(t)
	exported := b.export(t, b.Tenant, "alice")
	if !bytes.Contains(exported, []byte(`"alices"`)) || bytes.Contains(exported, []byte(`"odd"`)) || bytes.Contains(exported, []byte(`"shared"`)) {
		t.Errorf("alice's export: %.1000s", exported)
	}
	if _, err := b.DB.Import(b.ctx, b.Tenant+"-2", bytes.NewReader(exported)); err != nil {
		t.Fatal(err)
	}
	if again := b.export(t, b.Tenant+"-2", "alice"); !bytes.Equal(again, exported) {
		t.Error("imported it exports to something else")
	}
}

// What is not whole, was changed, or meets another object stores nothing.
func TestImportRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seedOddities(t)
	exported := string(b.export(t, b.Tenant, ""))
	lines := strings.SplitAfter(exported, "\n")
	target := b.Tenant + "-2"
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"empty":            {"", db.ErrBadExport},
		"cut off":          {exported[:len(exported)/2], db.ErrBadExport},
		"without its end":  {strings.Join(lines[:len(lines)-2], ""), db.ErrBadExport},
		"a line too few":   {strings.Join(append(append([]string{}, lines[:3]...), lines[4:]...), ""), db.ErrBadExport},
		"a letter changed": {strings.Replace(exported, "xxxx", "xxxy", 1), db.ErrBadExport},
		"something behind": {exported + "\n", db.ErrBadExport},
		"no head":          {strings.Join(lines[1:], ""), db.ErrBadExport},
		"another format":   {strings.Replace(exported, `"format":1`, `"format":2`, 1), db.ErrBadExport},
		"no JSON":          {"holdfast\n", db.ErrBadExport},
	} {
		if rows, err := b.DB.Import(b.ctx, target, strings.NewReader(c.text)); !errors.Is(err, c.want) || len(rows) != 0 {
			t.Errorf("%s: %v, %v", name, rows, err)
		}
	}
	b.seed(t, target, "odd", "")
	if rows, err := b.DB.Import(b.ctx, target, strings.NewReader(exported)); !errors.Is(err, db.ErrImportConflict) || !strings.Contains(err.Error(), "odd") || len(rows) != 0 {
		t.Errorf("over another object: %v, %v", rows, err)
	}
	if n := b.rows(t, "SELECT object_id FROM holdfast.entries WHERE tenant_id = $1", string(target)); len(n) != 1 {
		t.Errorf("what was refused left %v", n)
	}
}

// An import that is ended is run again, and finds no object before its last part.
func TestImportResumes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seedOddities(t)
	exported := b.export(t, b.Tenant, "")
	target := b.Tenant + "-2"
	for _, after := range []int{1, 2, 3, len(exported) / 2} {
		r := &breaking{Reader: bytes.NewReader(exported), after: len(exported) + after*len(exported)/4}
		if _, err := b.DB.Import(b.ctx, target, r); !errors.Is(err, errBroken) && after < 4 {
			t.Fatal(err)
		}
	}
	if _, err := b.DB.Import(b.ctx, target, bytes.NewReader(exported)); err != nil {
		t.Fatal(err)
	}
	if again := b.export(t, target, ""); !bytes.Equal(again, exported) {
		t.Error("it exports to something else")
	}
}

var errBroken = errors.New("broken")

// breaking fails after so many bytes.
type breaking struct {
	*bytes.Reader

	after  int
	broken func() // in place of an error
}

func (r *breaking) Read(p []byte) (int, error) {
	if r.after <= 0 {
		if r.broken != nil {
			r.broken()
			return r.Reader.Read(p)
		}
		return 0, errBroken
	}
	n, err := r.Reader.Read(p[:min(len(p), r.after)])
	r.after -= n
	return n, err
}

var _ io.ReadSeeker = (*breaking)(nil)

// An export has every table of the application, except those that the operator fills. Sleepers are exported as entries and events.
func TestExportHasEveryTable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seedOddities(t)
	var out bytes.Buffer
	rows, err := b.DB.Export(b.ctx, b.Tenant, "", &out)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if _, ok := rows[table]; ok == slices.Contains([]string{"tenants", "api_keys", "erasures", "sleepers", "usage"}, table) {
			t.Errorf("%s is exported: %t", table, ok)
		}
	}
	if says := (db.Rows{"b": 2, "a": 1}).String(); says != "1 a, 2 b" {
		t.Error(says)
	}
}

// An import that is broken off at any point leaves nothing in any table, and so does one whose process is killed.
func TestABrokenImportLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seedOddities(t)
	exported := b.export(t, b.Tenant, "")
	target := b.Tenant + "-2"
	left := func() (n int64) {
		t.Helper()
		rows, err := b.DB.Export(b.ctx, target, "", io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range []string{"objects", "entries", "events", "terms", "timers", "sleepers"} {
			var more int64
			if err := b.super.QueryRow(b.ctx, "SELECT count(*) FROM holdfast."+table+" WHERE tenant_id = $1", string(target)).Scan(&more); err != nil {
				t.Fatal(err)
			}
			n += more
		}
		return n + rows["objects"]
	}
	for eighths := 1; eighths < 16; eighths += 2 {
		r := &breaking{Reader: bytes.NewReader(exported), after: eighths * len(exported) / 8}
		if rows, err := b.DB.Import(b.ctx, target, r); !errors.Is(err, errBroken) || errors.Is(err, db.ErrUnavailable) || len(rows) != 0 {
			t.Errorf("broken after %d/8: %v, %v", eighths, rows, err)
		}
		if n := left(); n != 0 {
			t.Fatalf("broken after %d/8 it left %d rows", eighths, n)
		}
		ctx, cancel := context.WithCancel(b.ctx)
		r = &breaking{Reader: bytes.NewReader(exported), after: eighths * len(exported) / 8, broken: cancel}
		if _, err := b.DB.Import(ctx, target, r); err == nil {
			t.Error("it was not killed")
		}
		if n := left(); n != 0 {
			t.Fatalf("killed after %d/8 it left %d rows", eighths, n)
		}
	}
}

// What an earlier release left of an object that is not there is not the object's that is imported.
func TestAnImportInheritsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seed(t, b.Tenant, "x", "alice")
	exported := b.export(t, b.Tenant, "")
	target := b.Tenant + "-2"
	b.seed(t, target, "x", "mallory")
	b.exec(t, "DELETE FROM holdfast.objects WHERE tenant_id = $1", string(target))
	b.exec(t, `UPDATE holdfast.entries SET body = '{"text": "mallory''s"}' WHERE tenant_id = $1`, string(target))
	if _, err := b.DB.Import(b.ctx, target, bytes.NewReader(exported)); err != nil {
		t.Fatal(err)
	}
	if again := b.export(t, target, ""); !bytes.Equal(again, exported) {
		t.Errorf("it exports to\n%s\nand not to\n%s", again, exported)
	}
}

// A webhook's endpoint is the original's while that is there; a tenant that was emptied gets its endpoints back.
func TestAnImportLeavesAnothersEndpointsAlone(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	for _, id := range []string{"e1", "e2"} {
		for _, kind := range []string{"linear_endpoint", "linear_sync", "linear_delivery"} {
			b.exec(t, `INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state, create_time, update_time, activity_time)
				VALUES ($1, $2, $3, '', 0, 1, 1, '{}', now(), now(), now())`, string(b.Tenant), kind, id)
			b.exec(t, `INSERT INTO holdfast.events (tenant_id, kind, object_id, owner_id, version, event_type, actor, event_time, undo)
				VALUES ($1, $2, $3, '', 1, 'created', '', now(), '{}')`, string(b.Tenant), kind, id)
		}
	}
	b.seed(t, b.Tenant, "c", "")
	exported := b.export(t, b.Tenant, "")
	b.exec(t, "DELETE FROM holdfast.objects WHERE object_id = 'e2'") // the original has it no more
	rows, err := b.DB.Import(b.ctx, b.Tenant+"-2", bytes.NewReader(exported))
	if err != nil || rows[db.EndpointsLeftOut] != 1 || rows["objects"] != 3 { // e2, its sync, and the conversation
		t.Errorf("a copy: %v, %v", rows, err)
	}
	found, err := b.DB.FindEndpoints(b.ctx, "e1")
	if err != nil || len(found) != 1 || found[0].Tenant != b.Tenant {
		t.Errorf("the original's endpoint: %v, %v", found, err)
	}
	for _, table := range []string{"objects", "events"} {
		for _, row := range b.rows(t, "SELECT object_id FROM holdfast."+table+" WHERE tenant_id = $1 AND object_id = 'e1'", string(b.Tenant+"-2")) {
			t.Errorf("the copy has %s in %s", row, table)
		}
	}
	b.exec(t, "DELETE FROM holdfast.objects WHERE tenant_id <> $1", string(b.Tenant))
	for _, table := range []string{"objects", "entries", "events", "terms", "timers", "sleepers"} {
		b.exec(t, "DELETE FROM holdfast."+table)
	}
	rows, err = b.DB.Import(b.ctx, b.Tenant, bytes.NewReader(exported))
	if err != nil || rows["objects"] != 7 || rows[db.EndpointsLeftOut] != 0 {
		t.Errorf("a restore: %v, %v", rows, err)
	}
	if again := b.export(t, b.Tenant, ""); !bytes.Equal(again, exported) {
		t.Error("it exports to something else")
	}
}

// Whoever creates an object inherits no rows that were left under its id.
func TestACreateInheritsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, owner := range []string{"", "alice", "mallory"} {
		id := "x" + owner
		b.seed(t, b.Tenant, id, owner)
		b.exec(t, "DELETE FROM holdfast.objects WHERE tenant_id = $1", string(b.Tenant))
		create := storing(b.Tenant, id, 0)
		name := db.Name{Kind: "conversation", Object: id}
		create.Objects[0].Name, create.Objects[0].Owner, create.Events[0].Name, create.Events[0].Owner = name, "alice", name, "alice"
		create.Added = []db.EntryRow{{Name: name, Owner: "alice", Collection: "messages", Key: "000000000001", Version: 1, Body: `{"text": "alice's"}`}}
		p := b.DB.NewPipeline(db.Scope{Tenant: b.Tenant, Owners: []identity.User{"alice"}})
		p.StoreChanges(create)
		if err := b.DB.RunAndCommit(b.ctx, p); err != nil {
			t.Fatalf("over what %q left: %v", owner, err)
		}
		for table, want := range map[string]int{"entries": 1, "events": 1, "terms": 0, "timers": 0, "sleepers": 0} {
			if got := b.rows(t, "SELECT owner_id FROM holdfast."+table+" WHERE tenant_id = $1 AND object_id = $2", string(b.Tenant), id); len(got) != want || want == 1 && got[0] != "alice" {
				t.Errorf("over what %q left, %s has %q", owner, table, got)
			}
		}
	}
	// A scope that makes an object is left as it was.
	p := b.DB.NewPipeline(db.Scope{Tenant: b.Tenant, Owners: []identity.User{"alice"}})
	p.StoreChanges(storing(b.Tenant, "another", 0))
	b.seed(t, b.Tenant, "hidden", "mallory")
	seen := 0
	p.ListAllEntries(dbsqlc.ListAllEntriesParams{TenantID: string(b.Tenant), Kind: "conversation", ObjectID: "hidden", PageSize: 10}, func(*dbsqlc.ListAllEntriesRow) error {
		seen++
		return nil
	})
	if err := b.DB.RunAndCommit(b.ctx, p); err != nil || seen != 0 {
		t.Errorf("it sees %d entries of another, %v", seen, err)
	}
}
