package db

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// An export is lines of JSON:
//
//	{"holdfast_export":{"format":1,"user":"ada"}}    whose it is; no user: the whole tenant's
//	{"entries":{"kind":"conversation", …}}           a row: its table, and its columns but the tenant
//	{"end":{"rows":2,"sha256":"…"}}                  of all bytes before this line
//
// Objects come last, and of all tables rows come in the order of their primary keys: two exports of the same rows are
// the same bytes. What has expired is not in it, nor are tenants and API keys. Objects that sleep are in it as if they
// were awake.
const exportFormat = 1

// ErrBadExport: what should be imported is no export, is not whole, or was changed.
var ErrBadExport = errors.New("db: not a whole export")

// ErrImportConflict: an object of the export is there already, and is another one.
var ErrImportConflict = errors.New("db: another object is there already")

type exportLine struct {
	Header *exportHeader `json:"holdfast_export,omitempty"`
	End    *exportEnd    `json:"end,omitempty"`
}

type exportHeader struct {
	Format int           `json:"format"`
	User   identity.User `json:"user,omitempty"`
}

type exportEnd struct {
	Rows   int64  `json:"rows"`
	SHA256 string `json:"sha256"`
}

// Rows counts the rows of each table.
type Rows map[string]int64

// String is such as "12 entries, 3 objects".
func (r Rows) String() string {
	var parts []string
	for _, table := range slices.Sorted(maps.Keys(r)) {
		parts = append(parts, fmt.Sprintf("%d %s", r[table], table))
	}
	if len(parts) == 0 {
		return "no rows"
	}
	return strings.Join(parts, ", ")
}

// tenantTable is a table whose rows belong to tenants and their users.
type tenantTable struct {
	name string
	// key is the primary key's columns behind tenant_id. columns are all but tenant_id.
	key, columns []string
	// ofObjects: its rows belong to objects.
	ofObjects bool
}

// derived reports whether exports leave a table out, because other rows say the same.
func (t tenantTable) derived() bool { return t.name == "sleepers" || t.name == "usage" }

// sleeps reports whether sleepers may have rows of the table.
func (t tenantTable) sleeps() bool { return t.name == "entries" || t.name == "events" }

// tenantTables are the tables of the application, objects last. They come of the catalogue, so that a table or a column
// that a migration adds is in every export, and goes with every user.
func tenantTables(ctx context.Context, tx pgx.Tx) ([]tenantTable, error) {
	rows, err := dbsqlc.New(tx).ListTenantTables(ctx)
	if err != nil {
		return nil, err
	}
	var out []tenantTable
	var objects *tenantTable
	for _, r := range rows {
		t := tenantTable{
			name: r.Name, key: r.Key, columns: r.Columns,
			ofObjects: slices.Contains(r.Columns, "kind") && slices.Contains(r.Columns, "object_id"),
		}
		if t.name == "objects" {
			objects = &t
			continue
		}
		out = append(out, t)
	}
	if objects == nil {
		return nil, errors.New("db: there is no table of objects")
	}
	return append(out, *objects), nil
}

func quoted(names []string, prefix string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = prefix + pgx.Identifier{n}.Sanitize()
	}
	return strings.Join(out, ", ")
}

// Export writes all rows of a tenant, or of one of its users, as they are at one moment. Memory does not grow with them.
// While it runs, Postgres cannot free what is deleted meanwhile.
func (d *DB) Export(ctx context.Context, tenant identity.Tenant, user identity.User, w io.Writer) (Rows, error) {
	counted := Rows{}
	out := &sumWriter{to: bufio.NewWriterSize(w, 64<<10), sum: sha256.New()}
	err := d.tenantTx(ctx, tenant, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		tables, err := tenantTables(ctx, tx)
		if err != nil {
			return err
		}
		header, err := json.Marshal(exportLine{Header: &exportHeader{Format: exportFormat, User: user}})
		if err != nil {
			return err
		}
		out.write(header, []byte("\n"))
		for _, t := range tables {
			if t.derived() {
				continue
			}
			if counted[t.name], err = d.exportTable(ctx, tx, &t, tenant, user, out); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return counted, err
	}
	var total int64
	for _, n := range counted {
		total += n
	}
	end, err := json.Marshal(exportLine{End: &exportEnd{Rows: total, SHA256: hex.EncodeToString(out.sum.Sum(nil))}})
	if err != nil {
		return counted, err
	}
	out.write(end, []byte("\n"))
	return counted, errors.Join(out.err, out.to.Flush())
}

// exportTable writes a table's rows. Postgres sends them as they are read here.
func (d *DB) exportTable(ctx context.Context, tx pgx.Tx, t *tenantTable, tenant identity.Tenant, user identity.User, out *sumWriter) (n int64, err error) {
	if t.sleeps() {
		if _, err := tx.Exec(ctx, mergeSleepers); err != nil {
			return 0, err
		}
	}
	rows, err := tx.Query(ctx, exportSQL(t), string(tenant), string(user))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	begin := []byte(`{"` + t.name + `":`)
	for rows.Next() && out.err == nil {
		lines := rows.RawValues()[0]
		if lines == nil {
			var compressed []byte
			if err := rows.Scan(nil, &compressed); err != nil {
				return n, err
			}
			if lines, err = d.zip.lines(compressed); err != nil {
				return n, &rowError{err}
			}
		}
		for line := range bytes.Lines(lines) {
			out.write(begin, bytes.TrimSuffix(line, []byte("\n")), []byte("}\n"))
			n++
		}
	}
	return n, errors.Join(rows.Err(), out.err)
}

// exportSQL reads a tenant's rows of a table, or one user's, and sleepers in the places of their rows.
func exportSQL(t *tenantTable) string {
	row := "to_jsonb(x) - 'tenant_id'"
	switch t.name {
	case "objects":
		row += " - 'asleep' - 'wake_time'"
	case "terms": // which begin with the tenant, see 00001_init.sql
		row = "jsonb_set(" + row + ", '{term}', to_jsonb(substr(x.term, length(x.tenant_id) + 2)))"
	}
	row = "(" + row + ")::text"
	from := "holdfast." + pgx.Identifier{t.name}.Sanitize() + " x"
	if t.sleeps() {
		// An object is awake or sleeps, so kind and object_id say where its sleeper belongs.
		from = "(SELECT x.tenant_id, x.owner_id, " + quoted(t.key, "x.") + ", " + row + " AS line, NULL::bytea AS compressed FROM " + from +
			" UNION ALL SELECT x.tenant_id, x.owner_id, x.kind, x.object_id" + strings.Repeat(", NULL", len(t.key)-2) +
			", NULL, x.compressed FROM holdfast.sleepers x WHERE x.part = '" + t.name + "') x"
		row = "x.line, x.compressed"
	}
	sql := "SELECT " + row + " FROM " + from + " WHERE x.tenant_id = $1 AND ($2 = '' OR x.owner_id = $2)"
	const alive = " AND (%[1]s.expire_time IS NULL OR %[1]s.expire_time > now())"
	switch {
	case t.name == "objects":
		sql += fmt.Sprintf(alive, "x")
	case t.ofObjects:
		sql += ` AND EXISTS (SELECT FROM holdfast.objects o WHERE o.tenant_id = x.tenant_id AND o.kind = x.kind AND o.object_id = x.object_id` +
			fmt.Sprintf(alive, "o") + " OFFSET 0)"
	}
	return sql + " ORDER BY " + quoted(t.key, "x.")
}

// mergeSleepers makes Postgres merge rows and sleepers by their indexes, instead of sorting all of them on disk.
const mergeSleepers = "SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true)"

// sumWriter writes and sums up, until the first error.
type sumWriter struct {
	to  *bufio.Writer
	sum hash.Hash
	err error
}

func (w *sumWriter) write(parts ...[]byte) {
	for _, p := range parts {
		if w.err == nil {
			w.sum.Write(p)
			_, w.err = w.to.Write(p)
		}
	}
}

// Import stores the rows of an export in a tenant, which may be another, in one transaction: an import that is broken off
// leaves nothing. It reads the export twice, and stores nothing of one that is not whole. Rows that are there already are
// left alone; an object that is there and is not the export's is ErrImportConflict.
//
// A webhook endpoint that another tenant of the database has is left out, and counted as EndpointsLeftOut: its id is all that
// finds the tenant, so a copy would cut the original off, and the secrets in it open for the other tenant only.
func (d *DB) Import(ctx context.Context, tenant identity.Tenant, r io.ReadSeeker) (Rows, error) {
	var stored Rows
	err := d.tenantTx(ctx, tenant, pgx.TxOptions{}, func(tx pgx.Tx) error {
		stored = Rows{}
		return (&importer{tx: tx, tenant: tenant, stored: stored}).run(ctx, r)
	})
	if err != nil {
		return nil, err
	}
	return stored, nil
}

// EndpointsLeftOut stands among the tables of an import for the webhook endpoints that it left out.
const EndpointsLeftOut = "webhook endpoints left out"

// What an import knows of kinds: an endpoint and its sync have one id, and a delivery is one to some endpoint, or remembers
// the id that was made for one.
const (
	endpointKind = "linear_endpoint"
	syncKind     = "linear_sync"
	deliveryKind = "linear_delivery"
)

func (im *importer) run(ctx context.Context, r io.ReadSeeker) error {
	tables, err := tenantTables(ctx, im.tx)
	if err != nil {
		return err
	}
	im.tables = slices.DeleteFunc(tables, tenantTable.derived)
	var endpoints []string
	err = readExport(r, func(table string, row json.RawMessage) error {
		if table != "objects" {
			return nil
		}
		if kind, id := objectOf(row); kind == endpointKind {
			endpoints = append(endpoints, id)
		}
		return im.add(table, row, func() error { return im.prepare(ctx) })
	})
	if err == nil {
		err = im.prepare(ctx)
	}
	if err == nil && len(endpoints) > 0 {
		err = im.leaveOut(ctx, endpoints)
	}
	if err != nil {
		return err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return &rowError{err}
	}
	err = readExport(r, func(table string, row json.RawMessage) error {
		if len(im.leftOut) > 0 {
			if kind, id := objectOf(row); kind == deliveryKind || (kind == endpointKind || kind == syncKind) && im.leftOut[id] {
				return nil
			}
		}
		return im.add(table, row, func() error { return im.flush(ctx) })
	})
	if err == nil {
		err = im.flush(ctx)
	}
	if err == nil {
		err = im.dropStrays(ctx)
	}
	return err
}

// dropStrays deletes owned entries whose objects are not there: the export of one user has none of the tenant's objects.
func (im *importer) dropStrays(ctx context.Context) error {
	tag, err := im.tx.Exec(ctx, `DELETE FROM holdfast.entries x WHERE x.tenant_id = $1 AND x.owned AND NOT EXISTS (
		SELECT FROM holdfast.objects o WHERE o.tenant_id = $1 AND o.kind = x.kind AND o.object_id = x.object_id OFFSET 0)`, string(im.tenant))
	im.stored["entries"] -= tag.RowsAffected()
	return err
}

// objectOf is whose row a row of an export is; empty where it is no object's.
func objectOf(row json.RawMessage) (kind, id string) {
	var of struct {
		Kind string `json:"kind"`
		ID   string `json:"object_id"`
	}
	_ = json.Unmarshal(row, &of) // add refuses what is no row
	return of.Kind, of.ID
}

// leaveOut finds the endpoints that another tenant has.
func (im *importer) leaveOut(ctx context.Context, endpoints []string) error {
	q := dbsqlc.New(im.tx)
	if _, err := q.EnterEndpoint(ctx, allEndpoints); err != nil {
		return err
	}
	im.leftOut = map[string]bool{}
	for _, id := range endpoints {
		found, err := q.FindEndpoint(ctx, id)
		if err != nil {
			return err
		}
		for _, e := range found {
			if e.TenantID != string(im.tenant) {
				im.leftOut[id] = true
			}
		}
	}
	if len(im.leftOut) > 0 {
		im.stored[EndpointsLeftOut] = int64(len(im.leftOut))
	}
	return enterTenant(ctx, im.tx, im.tenant)
}

// inTheWay finds an object of the batch that is there and is another one.
const inTheWay = `SELECT o.kind, o.object_id FROM jsonb_populate_recordset(NULL::holdfast.objects, $2) r
	CROSS JOIN LATERAL (
		SELECT x.kind, x.object_id, x.create_time, x.version FROM holdfast.objects x WHERE x.tenant_id = $1 AND x.kind = r.kind AND x.object_id = r.object_id OFFSET 0
	) o
	WHERE o.create_time <> r.create_time OR o.version < r.version LIMIT 1`

// prepare looks for objects in the way of the batch, and drops what is there of objects that are not.
func (im *importer) prepare(ctx context.Context) error {
	if im.rows == 0 {
		return nil
	}
	rows := im.take()
	if err := im.checkObjects(ctx, rows); err != nil {
		return err
	}
	_, err := im.tx.Exec(ctx, `SELECT holdfast.drop_orphans($1, jsonb_agg(jsonb_build_object('kind', r.kind, 'object_id', r.object_id)))
		FROM jsonb_populate_recordset(NULL::holdfast.objects, $2) r
		WHERE NOT EXISTS (SELECT FROM holdfast.objects o
			WHERE o.tenant_id = $1 AND o.kind = r.kind AND o.object_id = r.object_id OFFSET 0)`, string(im.tenant), rows)
	return err
}

func (im *importer) checkObjects(ctx context.Context, rows string) error {
	var kind, id string
	err := im.tx.QueryRow(ctx, inTheWay, string(im.tenant), rows).Scan(&kind, &id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil {
		err = &rowError{fmt.Errorf("%w: %s %q", ErrImportConflict, kind, id)}
	}
	return err
}

// readExport yields the rows of an export, each valid until the next, and checks that it is whole. Its own
// errors say nothing about Postgres.
func readExport(r io.Reader, each func(table string, row json.RawMessage) error) error {
	bad := func(why string, line int64) error {
		return &rowError{fmt.Errorf("%w: line %d %s", ErrBadExport, line, why)}
	}
	in := bufio.NewReaderSize(r, 64<<10)
	sum := sha256.New()
	var line []byte
	for n := int64(1); ; n++ {
		line = line[:0]
		for {
			part, err := in.ReadSlice('\n')
			line = append(line, part...)
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if errors.Is(err, io.EOF) {
				return bad("is cut off, or the end is missing", n)
			}
			if err != nil {
				return &rowError{err}
			}
			break
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(line, &members); err != nil || len(members) != 1 {
			return bad("is no line of an export", n)
		}
		if n == 1 {
			var head exportLine
			if err := json.Unmarshal(line, &head); err != nil || head.Header == nil {
				return bad("is not the head of an export", n)
			}
			if head.Header.Format != exportFormat {
				return bad(fmt.Sprintf("says format %d, and this release reads %d", head.Header.Format, exportFormat), n)
			}
		}
		for table, row := range members {
			switch {
			case n == 1:
			case table == "end":
				var end exportEnd
				if err := json.Unmarshal(row, &end); err != nil || end.Rows != n-2 || end.SHA256 != hex.EncodeToString(sum.Sum(nil)) {
					return bad("does not fit what comes before: something was changed", n)
				}
				if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
					return bad("is the end, and something follows", n)
				}
				return nil
			default:
				if err := each(table, row); err != nil {
					return err
				}
			}
		}
		sum.Write(line)
	}
}

// importer stores rows in batches of one table.
type importer struct {
	tx      pgx.Tx
	tenant  identity.Tenant
	tables  []tenantTable
	stored  Rows
	leftOut map[string]bool // endpoints, by id

	table   *tenantTable // of the batch
	columns []string     // of the batch's rows
	batch   bytes.Buffer // a JSON array in the making
	rows    int
}

const (
	importRows  = 500
	importBytes = 1 << 20
)

// add adds a row to the batch; full deals with one that has no room for it.
func (im *importer) add(table string, row json.RawMessage, full func() error) error {
	if im.table == nil || im.table.name != table || im.rows >= importRows || im.batch.Len()+len(row) > importBytes {
		if err := full(); err != nil {
			return err
		}
	}
	bad := func(format string, args ...any) error {
		return &rowError{fmt.Errorf("%w: "+format, append([]any{ErrBadExport}, args...)...)}
	}
	if im.rows == 0 {
		i := slices.IndexFunc(im.tables, func(t tenantTable) bool { return t.name == table })
		if i < 0 {
			return bad("there is no table %q; was it made by a newer release?", table)
		}
		im.table = &im.tables[i]
		var members map[string]json.RawMessage
		if err := json.Unmarshal(row, &members); err != nil {
			return bad("a row of %s is no object", table)
		}
		im.columns = slices.Sorted(maps.Keys(members))
		for _, c := range im.columns {
			if !slices.Contains(im.table.columns, c) {
				return bad("the table %s has no column %q; was it made by a newer release?", table, c)
			}
		}
	}
	im.batch.WriteByte("[,"[min(im.rows, 1)])
	im.batch.Write(row)
	im.rows++
	return nil
}

// take empties the batch: a JSON array.
func (im *importer) take() string {
	im.batch.WriteByte(']')
	rows := im.batch.String()
	im.batch.Reset()
	im.rows = 0
	return rows
}

func (im *importer) flush(ctx context.Context) error {
	if im.rows == 0 {
		return nil
	}
	rows, t := im.take(), im.table
	sql := insertRows(t.name, im.columns)
	if t.ofObjects && t.name != "objects" {
		// What belongs to an object that is there was stored with it, and may have been deleted since.
		sql += ` WHERE NOT EXISTS (SELECT FROM holdfast.objects o
			WHERE o.tenant_id = $1 AND o.kind = r.kind AND o.object_id = r.object_id OFFSET 0)`
	}
	tag, err := im.tx.Exec(ctx, sql+" ON CONFLICT DO NOTHING", string(im.tenant), rows)
	im.stored[t.name] += tag.RowsAffected()
	if err == nil && t.name == "objects" {
		// Someone may have created one of them since it was looked for: what was stored of it must not become theirs.
		err = im.checkObjects(ctx, rows)
	}
	return err
}

// insertRows stores rows as an export has them: $2, of the tenant $1.
func insertRows(table string, columns []string) string {
	values := quoted(columns, "r.")
	if table == "terms" {
		values = strings.Replace(values, `r."term"`, `$1 || '/' || r."term"`, 1)
	}
	table = "holdfast." + pgx.Identifier{table}.Sanitize()
	return "INSERT INTO " + table + " (tenant_id, " + quoted(columns, "") + ") SELECT $1, " + values + " FROM jsonb_populate_recordset(NULL::" + table + ", $2) r"
}

// tenantTx runs do in a transaction that acts for a tenant as one of its services.
func (d *DB) tenantTx(ctx context.Context, tenant identity.Tenant, opts pgx.TxOptions, do func(pgx.Tx) error) error {
	var own *rowError // not Postgres's
	err := pgx.BeginTxFunc(ctx, d.pool, opts, func(tx pgx.Tx) error {
		if err := enterTenant(ctx, tx, tenant); err != nil {
			return err
		}
		err := do(tx)
		own, _ = errors.AsType[*rowError](err)
		return err
	})
	if own != nil {
		return own.err
	}
	return translate(err, false)
}

// enterTenant makes the rest of a transaction act for a tenant as one of its services. It may take long, and may read a file
// between two statements.
func enterTenant(ctx context.Context, tx pgx.Tx, tenant identity.Tenant) error {
	_, err := dbsqlc.New(tx).EnterScope(ctx, Scope{Tenant: tenant, Service: true}.params())
	if err == nil {
		_, err = tx.Exec(ctx, `SELECT set_config('timezone', 'UTC', true), set_config('statement_timeout', '0', true),
			set_config('idle_in_transaction_session_timeout', '60s', true)`)
	}
	return err
}
