package db_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
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
		{"silent in a transaction", pg("25P03", ""), db.ErrInterrupted, db.ErrInterrupted},
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

// storing stores version expected + 1 of an object.
func storing(tenant identity.Tenant, id string, expected int64) *db.Changes {
	now, name := time.Now(), db.Name{Kind: "k", Object: id}
	return &db.Changes{
		Tenant: tenant,
		Objects: []db.ObjectRow{{
			Name: name, BaseVersion: expected, Version: expected + 1, Schema: 1, State: `{"a": 1}`, Create: createTime, Update: now, Activity: now,
		}},
		Events: []db.EventRow{{Name: name, Version: expected + 1, Type: "x", Time: now, Undo: "{}"}},
	}
}

func (b *testBundle) store(c *db.Changes) error {
	pipeline := b.DB.NewPipeline(db.Scope{Tenant: b.Tenant})
	pipeline.StoreChanges(c)
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
		c := storing(b.Tenant, id, expected)
		c.Events[0].RequestID, c.Events[0].RequestKey = "r", []byte("sixteen bytes 16")
		return c
	}
	if err := b.store(keyed("b", 0)); err != nil {
		t.Fatal(err)
	}
	b.seedHidden(t, "hidden")
	changed := func(change func(*db.Changes)) *db.Changes {
		c := storing(b.Tenant, "b", 1)
		change(c)
		return c
	}
	entry := func(key, body string) []db.EntryRow {
		return []db.EntryRow{{Name: db.Name{Kind: "k", Object: "b"}, Collection: "c", Key: key, Version: 2, Body: body}}
	}
	b.exec(t, `INSERT INTO holdfast.entries VALUES ($1, 'k', 'b', 'c', 'there', '', 1, '{}')`, string(b.Tenant))
	deep := strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)
	for name, c := range map[string]struct {
		params *db.Changes
		want   error
	}{
		"an older version":                     {storing(b.Tenant, "a", 0), db.ErrFenced},
		"a newer version":                      {storing(b.Tenant, "a", 2), db.ErrFenced},
		"an object that is gone":               {storing(b.Tenant, "gone", 5), db.ErrFenced},
		"an earlier life":                      {changed(func(c *db.Changes) { c.Objects[0].Create = createTime.Add(1000) }), db.ErrFenced},
		"an entry that was taken to be absent": {changed(func(c *db.Changes) { c.Absent = entry("there", "") }), db.ErrFenced},
		"an entry that was taken to be new":    {changed(func(c *db.Changes) { c.Added = entry("there", "{}") }), db.ErrFenced},
		"a clock that is ahead": {changed(func(c *db.Changes) {
			c.Locks, c.Objects[0].Update = []int64{1}, c.Objects[0].Update.Add(time.Minute)
		}), db.ErrFenced},
		"one of several": {changed(func(c *db.Changes) {
			c.Objects = append(c.Objects, storing(b.Tenant, "a", 0).Objects...)
		}), db.ErrFenced},
		"a known request":  {keyed("b", 1), db.ErrRequestKnown},
		"another tenant's": {storing("other", "a", 0), db.ErrForbidden},
		"another user's": {changed(func(c *db.Changes) {
			c.Objects[0].Object, c.Objects[0].BaseVersion, c.Objects[0].Owner = "new", 0, "bob"
		}), db.ErrForbidden},
		"another user's entries":   {changed(func(c *db.Changes) { c.Added = entry("k", "{}"); c.Added[0].Owner = "bob" }), db.ErrForbidden},
		"over a hidden row":        {storing(b.Tenant, "hidden", 1), db.ErrForbidden},
		"U+0000":                   {changed(func(c *db.Changes) { c.Objects[0].State = `{"a": "\u0000"}` }), db.ErrInvalidData},
		"no JSON":                  {changed(func(c *db.Changes) { c.Objects[0].State = "{" }), db.ErrInvalidData},
		"nested deep":              {changed(func(c *db.Changes) { c.Objects[0].State = deep }), db.ErrInvalidData},
		"U+0000 in a key":          {changed(func(c *db.Changes) { c.Added = entry("k\x00", "{}") }), db.ErrInvalidData},
		"a key that is no text":    {changed(func(c *db.Changes) { c.Added = entry("k\xff", "{}") }), db.ErrInvalidData},
		"U+0000 in an entry":       {changed(func(c *db.Changes) { c.Replaced = entry("k", `{"a": "\u0000"}`) }), db.ErrInvalidData},
		"a number too large":       {changed(func(c *db.Changes) { c.Added = entry("k", `{"a": 1e200000}`) }), db.ErrInvalidData},
		"a body that is no object": {changed(func(c *db.Changes) { c.Added = entry("k", "1") }), nil},
	} {
		err := b.store(c.params)
		if c.want == nil && (err == nil || errors.Is(err, db.ErrInvalidData)) || c.want != nil && !errors.Is(err, c.want) {
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

// What is stored is what the rows say, whatever characters, times and bytes are in them; what they leave out is NULL.
func TestStoredRows(t *testing.T) {
	t.Parallel()
	b := setup(t)
	odd := "\"\\\n\u2028 \x01{}[],:'ünïcødé 😀"
	at := time.Date(2031, 3, 29, 2, 30, 0, 123_456_789, time.FixedZone("", 7200))
	name := db.Name{Kind: "k", Object: odd}
	row := func(key, body string) db.EntryRow {
		return db.EntryRow{Name: name, Collection: odd, Key: key, Version: 1, Body: body}
	}
	first := &db.Changes{
		Tenant: b.Tenant, Locks: []int64{1},
		Objects: []db.ObjectRow{{
			Name: name, Version: 1, Schema: 3, State: `{"a": "\u00fc"}`, Timers: `{"t": "2031-03-29T00:30:00Z"}`, Create: createTime, Update: time.Now(), Activity: at, Expire: at,
		}},
		Terms:  []db.TermsRow{{Name: name, Activity: at, Terms: []string{odd, "other"}}},
		Added:  []db.EntryRow{row("1", "{}"), row("2", `{"b": [1.50, null, "\\"]}`), row("3", "{}")},
		Absent: []db.EntryRow{row("4", "")},
		Timers: []db.TimerRow{{Name: name, Timer: "t", Due: at}, {Name: name, Timer: "cleared"}},
		Events: []db.EventRow{{
			Name: name, Version: 1, Type: odd, Actor: odd, Time: at, RequestID: odd, RequestKey: []byte("sixteen bytes 16"),
			RequestHash: []byte{0, 255, '"', '\\'}, Reply: []byte{}, Undo: "{}",
		}},
	}
	second := storing(b.Tenant, odd, 1)
	second.Objects[0].State, second.Objects[0].Expire = "", at
	second.Terms = []db.TermsRow{{Name: name}}
	second.Replaced = []db.EntryRow{row("1", `{"c": 1}`), row("2", ""), row("5", "{}"), row("none", "")}
	second.Replaced[0].Version = 2
	second.Timers = []db.TimerRow{{Name: name, Timer: "t"}}
	const objects = `SELECT concat_ws(' ', base_version, version, schema_version, state, deleted, timers, activity_time AT TIME ZONE 'UTC', expire_time AT TIME ZONE 'UTC')
		FROM holdfast.objects WHERE tenant_id = $1 AND object_id = $2`
	const entries = "SELECT concat_ws(' ', key, version, body) FROM holdfast.entries WHERE tenant_id = $1 AND object_id = $2 AND collection = $2 ORDER BY key"
	const terms = "SELECT term FROM holdfast.terms WHERE tenant_id = $1 AND object_id = $2 ORDER BY term"
	const timers = "SELECT concat_ws(' ', name, due_time AT TIME ZONE 'UTC') FROM holdfast.timers WHERE tenant_id = $1 AND object_id = $2"
	const events = `SELECT concat_ws(' ', version, event_type = $2, actor = $2, request_id = $2, request_key, request_hash, reply, undo)
		FROM holdfast.events WHERE tenant_id = $1 AND object_id = $2 ORDER BY version`
	for _, step := range []struct {
		changes *db.Changes
		want    map[string][]string
	}{
		{first, map[string][]string{
			objects: {`0 1 3 {"a": "ü"} f {"t": "2031-03-29T00:30:00Z"} 2031-03-29 00:30:00.123456 2031-03-29 00:30:00.123456`},
			entries: {"1 1 {}", `2 1 {"b": [1.50, null, "\\"]}`, "3 1 {}"},
			terms:   {odd, "other"},
			timers:  {"t 2031-03-29 00:30:00.123456"},
			events:  {`1 t t t \x7369787465656e206279746573203136 \x00ff225c \x {}`},
		}},
		{second, map[string][]string{
			objects: nil, // see below: activity is now
			entries: {`1 2 {"c": 1}`, "3 1 {}", "5 1 {}"},
			terms:   {},
			timers:  {},
			events:  {`1 t t t \x7369787465656e206279746573203136 \x00ff225c \x {}`, "2 f f {}"},
		}},
	} {
		if err := b.store(step.changes); err != nil {
			t.Fatal(err)
		}
		for sql, want := range step.want {
			if got := b.rows(t, sql, string(b.Tenant), odd); want != nil && !slices.Equal(got, want) {
				t.Errorf("%s:\n%q, want\n%q", sql, got, want)
			}
		}
	}
	if got := b.rows(t, "SELECT object_id FROM holdfast.objects WHERE tenant_id = $1 AND deleted AND state IS NULL AND timers IS NULL", string(b.Tenant)); !slices.Equal(got, []string{odd}) {
		t.Errorf("deleted are %q", got)
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
