package db_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

func TestTranslate(t *testing.T) {
	t.Parallel()
	unknown := errors.New("neither")
	pg := func(code, constraint string) error { return &pgconn.PgError{Code: code, ConstraintName: constraint} }
	for _, c := range []struct {
		name string
		err  error
		// What it is, of a round trip that only read, and of one that had a commit in it.
		reads, commits error
	}{
		{"the fence", pg("HF001", ""), db.ErrFenced, db.ErrFenced},
		{"request key", pg("23505", "events_request_key"), db.ErrRequestKnown, db.ErrRequestKnown},
		{"another unique key", pg("23505", "events_pkey"), unknown, unknown},
		{"row security", &pgconn.PgError{Code: "42501", Routine: "ExecWithCheckOptions"}, db.ErrForbidden, db.ErrForbidden},
		{"a missing right", &pgconn.PgError{Code: "42501", Routine: "aclcheck_error"}, db.ErrNoRight, db.ErrNoRight},
		{"a missing right, nowhere in particular", pg("42501", ""), db.ErrNoRight, db.ErrNoRight},
		{"no JSON", pg("22P02", ""), db.ErrInvalidData, db.ErrInvalidData},
		{"U+0000 in JSON", pg("22P05", ""), db.ErrInvalidData, db.ErrInvalidData},
		{"nested too deep", pg("54001", ""), db.ErrInvalidData, db.ErrInvalidData},
		{"too large for an index", pg("54000", ""), db.ErrInvalidData, db.ErrInvalidData},
		{"deadlock", pg("40P01", ""), db.ErrContention, db.ErrContention},
		{"serialization", pg("40001", ""), db.ErrContention, db.ErrContention},
		{"integrity at commit", pg("40002", ""), db.ErrContention, db.ErrContention},
		{"completion unknown", pg("40003", ""), db.ErrContention, db.ErrOutcomeUnknown},
		{"too many connections", pg("53300", ""), db.ErrUnavailable, db.ErrUnavailable},
		{"disk full", pg("53100", ""), db.ErrUnavailable, db.ErrUnavailable},
		{"lock not available", pg("55P03", ""), db.ErrContention, db.ErrContention},
		{"statement timeout", pg("57014", ""), db.ErrUnavailable, db.ErrUnavailable},
		{"terminated", pg("57P01", ""), db.ErrUnavailable, db.ErrOutcomeUnknown},
		{"crash of another backend", pg("57P02", ""), db.ErrUnavailable, db.ErrOutcomeUnknown},
		{"starting up", pg("57P03", ""), db.ErrUnavailable, db.ErrOutcomeUnknown},
		{"read-only: a standby", pg("25006", ""), db.ErrUnavailable, db.ErrUnavailable},
		{"connection failure", pg("08006", ""), db.ErrUnavailable, db.ErrUnavailable},
		{"a mistake of ours", pg("42601", ""), unknown, unknown},
		{"a code that is none", pg("", ""), unknown, unknown},
		{"connection lost", io.ErrUnexpectedEOF, db.ErrUnavailable, db.ErrOutcomeUnknown},
		{"caller gone", context.Canceled, context.Canceled, db.ErrOutcomeUnknown},
		{"too late", fmt.Errorf("timeout: %w", context.DeadlineExceeded), context.DeadlineExceeded, db.ErrOutcomeUnknown},
	} {
		for _, commits := range []bool{false, true} {
			want := c.reads
			if commits {
				want = c.commits
			}
			got := db.Translate(c.err, commits)
			if !errors.Is(got, c.err) {
				t.Errorf("%s: %v has lost its cause", c.name, got)
			}
			for _, kind := range []error{
				db.ErrFenced, db.ErrRequestKnown, db.ErrForbidden, db.ErrNoRight, db.ErrInvalidData, db.ErrContention, db.ErrUnavailable, db.ErrOutcomeUnknown,
			} {
				if errors.Is(got, kind) != errors.Is(want, kind) {
					t.Errorf("%s, with a commit %t: %v, want %v", c.name, commits, got, want)
				}
			}
		}
	}
	if err := db.Translate(nil, true); err != nil {
		t.Errorf("no error became %v", err)
	}
}

// createTime is that of every object that a test stores by hand: a change carries on the life that it was computed from.
var createTime = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// storing is the parameters that store version expected + 1 of an object.
func storing(tenant identity.Tenant, id string, expected int64) *db.Changes {
	now := time.Now()
	return &db.Changes{StoreChangesParams: dbsqlc.StoreChangesParams{
		TenantID: string(tenant), OKind: []string{"k"}, OID: []string{id}, OOwnerID: []string{""}, OExpected: []int64{expected},
		OVersion: []int64{expected + 1}, OSchemaVersion: []int32{1}, OState: []string{`{"a": 1}`}, OCreateTime: []time.Time{createTime},
		OUpdateTime: []time.Time{now}, OActivityTime: []time.Time{now}, OExpireTime: []time.Time{{}}, OReborn: []bool{false}, ORetermed: []bool{false},
		VObject: []int32{1}, VVersion: []int64{expected + 1}, VEventType: []string{"x"}, VActor: []string{""}, VEventTime: []time.Time{now},
		VRequestID: []string{""}, VRequestKey: [][]byte{nil}, VRequestHash: [][]byte{nil}, VReply: [][]byte{nil}, VUndo: []string{"{}"},
	}}
}

func (b *testBundle) store(p *db.Changes) error {
	pipeline := b.DB.NewPipeline(db.Scope{Tenant: b.Tenant})
	pipeline.StoreChanges(p)
	return b.DB.RunAndCommit(b.ctx, pipeline)
}

// version is what is stored of an object; 0 for nothing.
func (b *testBundle) version(t *testing.T, id string) (v int64) {
	t.Helper()
	err := b.super.QueryRow(b.ctx, "SELECT coalesce(max(version), 0) FROM holdfast.objects WHERE tenant_id = $1 AND object_id = $2",
		string(b.Tenant), id).Scan(&v)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The errors of Postgres as they really come.
func TestErrorsOfAStore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if err := b.store(storing(b.Tenant, "a", 0)); err != nil {
		t.Fatal(err)
	}
	keyed := func(id string, expected int64) *db.Changes {
		p := storing(b.Tenant, id, expected)
		p.VRequestID, p.VRequestKey = []string{"r"}, [][]byte{[]byte("sixteen bytes 16")}
		return p
	}
	if err := b.store(keyed("b", 0)); err != nil {
		t.Fatal(err)
	}
	b.seedHidden(t, "hidden")
	changed := func(change func(*db.Changes)) *db.Changes {
		p := storing(b.Tenant, "a", 1)
		change(p)
		return p
	}
	entry := func(key, body string) func(*db.Changes) {
		return func(p *db.Changes) {
			p.EObject, p.ECollection, p.EKey, p.EVersion, p.EBody = []int32{1}, []string{"c"}, []string{key}, []int64{2}, []string{body}
		}
	}
	b.exec(t, `INSERT INTO holdfast.entries VALUES ($1, 'k', 'b', 'c', 'there', '', 1, '{}')`, string(b.Tenant))
	for name, c := range map[string]struct {
		params *db.Changes
		want   error
	}{
		"an older version":       {storing(b.Tenant, "a", 0), db.ErrFenced},
		"a newer version":        {storing(b.Tenant, "a", 2), db.ErrFenced},
		"an object that is gone": {storing(b.Tenant, "gone", 5), db.ErrFenced},
		"an entry that was taken to be absent": {changed(func(p *db.Changes) {
			p.OID, p.OExpected, p.OVersion, p.VVersion = []string{"b"}, []int64{1}, []int64{2}, []int64{2}
			p.AObject, p.ACollection, p.AKey = []int32{1}, []string{"c"}, []string{"there"}
		}), db.ErrFenced},
		"an entry that was taken to be new": {changed(func(p *db.Changes) {
			p.OID, p.OExpected, p.OVersion, p.VVersion = []string{"b"}, []int64{1}, []int64{2}, []int64{2}
			entry("there", "{}")(p)
			p.ENew = true
		}), db.ErrFenced},
		"a known request":  {keyed("b", 1), db.ErrRequestKnown},
		"another tenant's": {storing("other", "a", 0), db.ErrForbidden},
		"another user's": {changed(func(p *db.Changes) {
			p.OID, p.OExpected, p.OOwnerID = []string{"new"}, []int64{0}, []string{"bob"}
		}), db.ErrForbidden},
		"over a hidden row": {storing(b.Tenant, "hidden", 1), db.ErrForbidden},
		"U+0000":            {changed(func(p *db.Changes) { p.OState = []string{`{"a": "\u0000"}`} }), db.ErrInvalidData},
		"no JSON":           {changed(func(p *db.Changes) { p.OState = []string{`{`} }), db.ErrInvalidData},
		"nested deep": {changed(func(p *db.Changes) {
			p.OState = []string{strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)}
		}), db.ErrInvalidData},
		"U+0000 in a key":    {changed(entry("k\x00", "{}")), db.ErrInvalidData},
		"a number too large": {changed(entry("k", `{"a": 1e200000}`)), db.ErrInvalidData},
	} {
		if err := b.store(c.params); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	// Releases of Postgres differ in whether they look at the row's version or at row-level security first: 15.18 and 15.20 do.
	if err := b.store(storing(b.Tenant, "hidden", 0)); !errors.Is(err, db.ErrFenced) && !errors.Is(err, db.ErrForbidden) {
		t.Errorf("in a hidden row's place: %v", err)
	}
	if a, second, gone := b.version(t, "a"), b.version(t, "b"), b.version(t, "gone"); a != 1 || second != 1 || gone != 0 {
		t.Errorf("what failed left a trace: %d, %d, %d", a, second, gone)
	}
	if err := b.store(storing(b.Tenant, "a", 1)); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// One plain change meets the same fence, by a lock of its own or one that is held.
func TestErrorsOfAPlainStore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if err := b.store(storing(b.Tenant, "a", 0)); err != nil {
		t.Fatal(err)
	}
	b.seedHidden(t, "hidden")
	b.exec(t, `INSERT INTO holdfast.entries VALUES ($1, 'k', 'a', 'c', 'there', '', 1, '{}')`, string(b.Tenant))
	lock := int64(1)
	plain := func(change func(*dbsqlc.StoreChangeParams)) *dbsqlc.StoreChangeParams {
		now := time.Now()
		p := &dbsqlc.StoreChangeParams{
			TenantID: string(b.Tenant), Lock: &lock, Kind: "k", ObjectID: "a", Expected: 1, SchemaVersion: 1, CreateTime: createTime,
			UpdateTime: now, ActivityTime: now, EventType: "x", EventTime: now, RequestID: "r", RequestKey: []byte("sixteen bytes 16"),
			Undo: "{}", State: `{"a": 2}`, Collections: []string{"c", "c"}, Keys: []string{"k", "l"}, Bodies: []string{"{}", `{"b": 1}`},
		}
		change(p)
		return p
	}
	store := func(p *dbsqlc.StoreChangeParams) error {
		pipeline := b.DB.NewPipeline(db.Scope{Tenant: b.Tenant})
		pipeline.StoreChange(p)
		return b.DB.RunAndCommit(b.ctx, pipeline)
	}
	for name, c := range map[string]struct {
		change func(*dbsqlc.StoreChangeParams)
		want   error
	}{
		"an older version":         {func(p *dbsqlc.StoreChangeParams) { p.Expected = 0 }, db.ErrFenced},
		"a newer version":          {func(p *dbsqlc.StoreChangeParams) { p.Expected = 2 }, db.ErrFenced},
		"an earlier life":          {func(p *dbsqlc.StoreChangeParams) { p.CreateTime = createTime.Add(1000) }, db.ErrFenced},
		"an object never made":     {func(p *dbsqlc.StoreChangeParams) { p.ObjectID = "new" }, db.ErrFenced},
		"a hidden row":             {func(p *dbsqlc.StoreChangeParams) { p.ObjectID = "hidden" }, db.ErrFenced},
		"another tenant's":         {func(p *dbsqlc.StoreChangeParams) { p.TenantID = "other" }, db.ErrFenced},
		"an entry that is there":   {func(p *dbsqlc.StoreChangeParams) { p.Keys = []string{"k", "there"} }, db.ErrFenced},
		"a clock that is ahead":    {func(p *dbsqlc.StoreChangeParams) { p.UpdateTime = p.UpdateTime.Add(time.Minute) }, db.ErrFenced},
		"no JSON":                  {func(p *dbsqlc.StoreChangeParams) { p.State = "{" }, db.ErrInvalidData},
		"U+0000 in an entry":       {func(p *dbsqlc.StoreChangeParams) { p.Bodies = []string{"{}", `{"b": "\u0000"}`} }, db.ErrInvalidData},
		"another user's entries":   {func(p *dbsqlc.StoreChangeParams) { p.OwnerID = "bob" }, db.ErrForbidden},
		"a key that is none":       {func(p *dbsqlc.StoreChangeParams) { p.Keys = []string{"k", "\x00"} }, db.ErrInvalidData},
		"a body that is no object": {func(p *dbsqlc.StoreChangeParams) { p.Bodies = []string{"{}", "1"} }, nil},
	} {
		err := store(plain(c.change))
		if c.want == nil && err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if v := b.version(t, "a"); v != 1 {
		t.Errorf("what failed left a trace: %d", v)
	}
	if err := store(plain(func(*dbsqlc.StoreChangeParams) {})); err != nil {
		t.Fatal(err)
	}
	again := plain(func(p *dbsqlc.StoreChangeParams) { p.Expected, p.Keys = 2, []string{"m", "n"} })
	if err := store(again); !errors.Is(err, db.ErrRequestKnown) {
		t.Errorf("a known request: %v", err)
	}
	tx, err := b.DB.Begin(b.ctx, b.DB.NewTransaction(db.Scope{Tenant: b.Tenant}))
	if err != nil {
		t.Fatal(err)
	}
	p := tx.Next()
	p.StoreChange(plain(func(p *dbsqlc.StoreChangeParams) {
		// Under a lock that is held the time was read from the clock, and no entries are an array of none.
		p.Lock, p.Expected, p.RequestID, p.RequestKey, p.Collections, p.Keys, p.Bodies = nil, 2, "", nil, nil, nil, nil
		p.ExpireTime, p.UpdateTime = createTime.AddDate(100, 0, 0), createTime
	}))
	if err := tx.Commit(b.ctx, p); err != nil {
		t.Fatal(err)
	}
	var stored string
	err = b.super.QueryRow(b.ctx, `SELECT concat_ws(' ', o.base_version, o.version, o.state ->> 'a', extract(year FROM o.expire_time),
		(SELECT string_agg(e.key || e.version, ',' ORDER BY e.key) FROM holdfast.entries e WHERE e.tenant_id = o.tenant_id AND e.object_id = 'a'),
		(SELECT string_agg(concat(e.version, e.request_id), ',' ORDER BY e.version) FROM holdfast.events e WHERE e.tenant_id = o.tenant_id AND e.object_id = 'a'))
		FROM holdfast.objects o WHERE o.tenant_id = $1 AND o.object_id = 'a'`, string(b.Tenant)).Scan(&stored)
	if want := "2 3 2 2120 k2,l2,there1 1,2r,3"; err != nil || stored != want {
		t.Errorf("stored is %q, %v; want %q", stored, err, want)
	}
}

// seedHidden stores an object that the bundle's scope may not see.
func (b *testBundle) seedHidden(t *testing.T, id string) {
	t.Helper()
	b.exec(t, `INSERT INTO holdfast.objects (tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state,
		create_time, update_time, activity_time) VALUES ($1, 'k', $2, 'bob', 0, 1, 1, '{}', $3, now(), now())`, string(b.Tenant), id, createTime)
}

// waitForLocks waits until so many backends wait for an advisory lock, which nothing else signals.
func (b *testBundle) waitForLocks(t *testing.T, lock int64, backends int) (pids []int32) {
	t.Helper()
	conn := b.connect(t, b.SuperuserURL)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := conn.QueryRow(b.ctx, `SELECT coalesce(array_agg(pid), '{}') FROM pg_locks
			WHERE locktype = 'advisory' AND NOT granted AND (classid::bigint << 32) + objid::bigint = $1
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, lock).Scan(&pids)
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) >= backends {
			return pids
		}
		select {
		case <-tick.C:
		case <-b.ctx.Done():
			t.Fatal("no backend waits for the lock")
		}
	}
}

// A connection that ends while a statement waits: where a commit was on its way, nobody knows; otherwise nothing happened.
func TestConnectionLost(t *testing.T) {
	t.Parallel()
	lose := map[string]func(*testing.T, *testBundle, int32, context.CancelFunc){
		"backend killed": func(t *testing.T, b *testBundle, pid int32, _ context.CancelFunc) {
			b.exec(t, "SELECT pg_terminate_backend($1)", pid)
		},
		"caller gone": func(_ *testing.T, _ *testBundle, _ int32, cancel context.CancelFunc) { cancel() },
	}
	for how, lose := range lose {
		for what, c := range map[string]struct {
			send func(ctx context.Context, b *testBundle, lock int64) error
			want map[string]error
		}{
			"commit": {func(ctx context.Context, b *testBundle, lock int64) error {
				params := storing(b.Tenant, "a", 0)
				params.Locks = []int64{lock}
				p := b.DB.NewPipeline(db.Scope{Tenant: b.Tenant})
				p.StoreChanges(params)
				return b.DB.RunAndCommit(ctx, p)
			}, map[string]error{"backend killed": db.ErrOutcomeUnknown, "caller gone": db.ErrOutcomeUnknown}},
			"second round trip": {func(ctx context.Context, b *testBundle, lock int64) error {
				tx, err := b.DB.Begin(ctx, b.DB.NewTransaction(db.Scope{Tenant: b.Tenant}))
				if err != nil {
					return err
				}
				defer tx.Rollback(ctx)
				params := storing(b.Tenant, "a", 0)
				params.Locks = []int64{lock}
				p := tx.Next()
				p.StoreChanges(params)
				return tx.Commit(ctx, p)
			}, map[string]error{"backend killed": db.ErrOutcomeUnknown, "caller gone": db.ErrOutcomeUnknown}},
			"first round trip": {func(ctx context.Context, b *testBundle, lock int64) error {
				p := b.DB.NewTransaction(db.Scope{Tenant: b.Tenant})
				p.LockObjects([]int64{lock}, func(time.Time) {})
				_, err := b.DB.Begin(ctx, p)
				return err
			}, map[string]error{"backend killed": db.ErrUnavailable, "caller gone": context.Canceled}},
			"read": {func(ctx context.Context, b *testBundle, lock int64) error {
				p := b.DB.NewPipeline(db.Scope{Tenant: b.Tenant})
				p.LockObjects([]int64{lock}, func(time.Time) {})
				return b.DB.Run(ctx, p)
			}, map[string]error{"backend killed": db.ErrUnavailable, "caller gone": context.Canceled}},
		} {
			t.Run(how+"/"+what, func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				lock := 1 + time.Now().UnixNano()
				b.exec(t, "SELECT pg_advisory_lock($1)", lock)
				ctx, cancel := context.WithCancel(b.ctx)
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- c.send(ctx, b, lock) }()
				lose(t, b, b.waitForLocks(t, lock, 1)[0], cancel)
				if err := <-done; !errors.Is(err, c.want[how]) {
					t.Errorf("got %v, want %v", err, c.want[how])
				}
				b.exec(t, "SELECT pg_advisory_unlock($1)", lock)
				if err := b.store(storing(b.Tenant, "b", 0)); err != nil {
					t.Errorf("the pool does not recover: %v", err)
				}
			})
		}
	}
}

func TestUnavailable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	u, err := url.Parse(b.URL)
	if err != nil {
		t.Fatal(err)
	}
	d, err := db.Open(b.ctx, db.Config{URL: u.String()})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	p := d.NewPipeline(db.Scope{Tenant: b.Tenant})
	p.StoreChanges(storing(b.Tenant, "a", 0))
	if err := d.RunAndCommit(b.ctx, p); !errors.Is(err, db.ErrUnavailable) || errors.Is(err, db.ErrOutcomeUnknown) {
		t.Errorf("a commit that was never sent: %v", err)
	}
	if _, err := d.StoredTenants(b.ctx); !errors.Is(err, db.ErrUnavailable) {
		t.Errorf("a pool that is closed: %v", err)
	}

	ended, cancel := context.WithCancel(b.ctx)
	cancel()
	p = b.DB.NewPipeline(db.Scope{Tenant: b.Tenant})
	p.StoreChanges(storing(b.Tenant, "a", 0))
	if err := b.DB.RunAndCommit(ended, p); !errors.Is(err, context.Canceled) || errors.Is(err, db.ErrOutcomeUnknown) {
		t.Errorf("a commit whose caller had gone before: %v", err)
	}
}

// A caller's own error about a row is neither an outage nor an unknown outcome, and leaves the connection usable.
func TestErrorOfTheCallersOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.seed(t, b.Tenant, "o1", "")
	own := errors.New("cannot be read")
	refuse := func(*dbsqlc.ViewObjectsRow) error { return own }
	for range 20 { // more than there are connections
		p := b.DB.NewPipeline(db.Scope{Tenant: b.Tenant})
		p.ViewObjects(viewOf(b.Tenant, "o1"), refuse)
		s := b.DB.NewSnapshot(db.Scope{Tenant: b.Tenant})
		s.ViewObjects(viewOf(b.Tenant, "o1"), refuse)
		x := b.DB.NewTransaction(db.Scope{Tenant: b.Tenant})
		x.ViewObjects(viewOf(b.Tenant, "o1"), refuse)
		_, began := b.DB.Begin(b.ctx, x)
		for _, err := range []error{b.DB.Run(b.ctx, p), b.DB.RunSnapshot(b.ctx, s), began} {
			if !errors.Is(err, own) || errors.Is(err, db.ErrUnavailable) {
				t.Fatal(err)
			}
		}
	}
	if err := b.store(storing(b.Tenant, "a", 0)); err != nil {
		t.Error(err)
	}
}
