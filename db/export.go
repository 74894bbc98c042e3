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
// the same bytes. What has expired is not in it, nor are tenants and API keys. An entry that is packed is in it as it was
// before, and nothing says that it is packed.
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
			if t.name == "packs" {
				continue
			}
			if counted[t.name], err = exportTable(ctx, tx, &t, tenant, user, out); err != nil {
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
func exportTable(ctx context.Context, tx pgx.Tx, t *tenantTable, tenant identity.Tenant, user identity.User, out *sumWriter) (n int64, err error) {
	packed := false
	if t.name == "entries" {
		err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM holdfast.packs WHERE tenant_id = $1)", string(tenant)).Scan(&packed)
		if err == nil && packed {
			_, err = tx.Exec(ctx, mergeEntries)
		}
		if err != nil {
			return 0, err
		}
	}
	rows, err := tx.Query(ctx, exportSQL(t, packed), string(tenant), string(user))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	begin := []byte(`{"` + t.name + `":`)
	for rows.Next() && out.err == nil {
		out.write(begin, rows.RawValues()[0], []byte("}\n"))
		n++
	}
	return n, errors.Join(rows.Err(), out.err)
}

// exportSQL reads a tenant's rows of a table, or one user's. packed: some of the entries are.
func exportSQL(t *tenantTable, packed bool) string {
	table := "holdfast." + pgx.Identifier{t.name}.Sanitize() + " x"
	row := "to_jsonb(x) - 'tenant_id'"
	switch {
	case t.name == "objects":
		row += " - 'packed'"
	case packed:
		table = entriesAndPacks
	case t.name == "terms": // which begin with the tenant, see 00001_init.sql
		row = "jsonb_set(" + row + ", '{term}', to_jsonb(substr(x.term, length(x.tenant_id) + 2)))"
	}
	from := table + " WHERE x.tenant_id = $1 AND ($2 = '' OR x.owner_id = $2)"
	const alive = " AND (%[1]s.expire_time IS NULL OR %[1]s.expire_time > now())"
	switch {
	case t.name == "objects":
		from += fmt.Sprintf(alive, "x")
	case t.ofObjects:
		from += ` AND EXISTS (SELECT FROM holdfast.objects o WHERE o.tenant_id = x.tenant_id AND o.kind = x.kind AND o.object_id = x.object_id` +
			fmt.Sprintf(alive, "o") + " OFFSET 0)"
	}
	from += " ORDER BY " + quoted(t.key, "x.")
	if packed {
		return "SELECT r.row::text FROM (SELECT x.kind, x.object_id, x.collection, x.key, x.owner_id, x.version, x.body, x.pack FROM " + from + " OFFSET 0) x " + unpacked
	}
	return "SELECT (" + row + ")::text FROM " + from
}

const (
	// entriesAndPacks has a row for each entry, and one for each pack. No entry has its place within a pack, so all are in
	// order where these are.
	entriesAndPacks = `(
		SELECT e.tenant_id, e.kind, e.object_id, e.collection, e.key, e.owner_id, e.version, e.body, NULL::jsonb AS pack
		FROM holdfast.entries e
		UNION ALL
		SELECT p.tenant_id, p.kind, p.object_id, p.collection, p.first_key, p.owner_id, NULL, NULL, p.entries
		FROM holdfast.packs p
	) x`
	// unpacked has the rows r of such a row x, as they are without packs. A nested loop, which is all that it can be, keeps the
	// order of what it begins with.
	unpacked = `CROSS JOIN LATERAL (
		SELECT jsonb_build_object('kind', x.kind, 'object_id', x.object_id, 'collection', x.collection, 'owner_id', x.owner_id,
			'key', u.e -> 0, 'version', u.e -> 1, 'body', u.e -> 2) AS row
		FROM jsonb_array_elements(coalesce(x.pack, jsonb_build_array(jsonb_build_array(x.key, x.version, x.body)))) AS u (e)
	) r`
	// mergeEntries makes Postgres merge them by their indexes, and not sort all of them on disk.
	mergeEntries = "SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true)"
)

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

// Import stores the rows of an export in a tenant, which may be another. It reads the export twice: nothing is stored of one
// that is not whole. Rows that are there already are left alone, so an import that was ended can be run again; an object
// that is there and is not the export's is ErrImportConflict, before anything is stored. Objects are stored last and
// are not found before. Nobody else should create objects of the same ids meanwhile.
func (d *DB) Import(ctx context.Context, tenant identity.Tenant, r io.ReadSeeker) (Rows, error) {
	if err := d.checkExport(ctx, tenant, r); err != nil {
		return nil, err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	stored := Rows{}
	im := importer{db: d, tenant: tenant, stored: stored}
	err := d.tenantTx(ctx, tenant, pgx.TxOptions{}, func(tx pgx.Tx) (err error) {
		im.tables, err = tenantTables(ctx, tx)
		im.tables = slices.DeleteFunc(im.tables, func(t tenantTable) bool { return t.name == "packs" }) // no export has them
		return err
	})
	if err != nil {
		return stored, err
	}
	err = readExport(r, func(table string, row json.RawMessage) error { return im.add(ctx, table, row) })
	if err == nil {
		err = im.flush(ctx)
	}
	return stored, err
}

// checkExport reads an export to its end, and looks for objects that are in its way.
func (d *DB) checkExport(ctx context.Context, tenant identity.Tenant, r io.Reader) error {
	const batch = 500
	var rows []json.RawMessage
	look := func() error {
		if len(rows) == 0 {
			return nil
		}
		text, err := json.Marshal(rows)
		if err != nil {
			return err
		}
		rows = rows[:0]
		return d.tenantTx(ctx, tenant, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			var kind, id string
			err := tx.QueryRow(ctx, `SELECT o.kind, o.object_id FROM jsonb_populate_recordset(NULL::holdfast.objects, $2) r
				CROSS JOIN LATERAL (
					SELECT x.kind, x.object_id, x.create_time, x.version FROM holdfast.objects x WHERE x.tenant_id = $1 AND x.kind = r.kind AND x.object_id = r.object_id OFFSET 0
				) o
				WHERE o.create_time <> r.create_time OR o.version < r.version LIMIT 1`, string(tenant), string(text)).Scan(&kind, &id)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			if err == nil {
				err = fmt.Errorf("%w: %s %q", ErrImportConflict, kind, id)
			}
			return err
		})
	}
	err := readExport(r, func(table string, row json.RawMessage) error {
		if table != "objects" {
			return nil
		}
		if rows = append(rows, bytes.Clone(row)); len(rows) < batch {
			return nil
		}
		return look()
	})
	if err != nil {
		return err
	}
	return look()
}

// readExport yields the rows of an export, each valid until the next, and checks that it is whole.
func readExport(r io.Reader, each func(table string, row json.RawMessage) error) error {
	bad := func(why string, line int64) error { return fmt.Errorf("%w: line %d %s", ErrBadExport, line, why) }
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
				return err
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

// importer stores rows in batches of one table, each in a transaction.
type importer struct {
	db     *DB
	tenant identity.Tenant
	tables []tenantTable
	stored Rows

	table   *tenantTable // of the batch
	columns []string     // of the batch's rows
	batch   bytes.Buffer // a JSON array in the making
	rows    int
}

const (
	importRows  = 500
	importBytes = 1 << 20
)

func (im *importer) add(ctx context.Context, table string, row json.RawMessage) error {
	if im.table == nil || im.table.name != table || im.rows >= importRows || im.batch.Len()+len(row) > importBytes {
		if err := im.flush(ctx); err != nil {
			return err
		}
	}
	if im.rows == 0 {
		i := slices.IndexFunc(im.tables, func(t tenantTable) bool { return t.name == table })
		if i < 0 {
			return fmt.Errorf("%w: there is no table %q; was it made by a newer release?", ErrBadExport, table)
		}
		im.table = &im.tables[i]
		var members map[string]json.RawMessage
		if err := json.Unmarshal(row, &members); err != nil {
			return fmt.Errorf("%w: a row of %s is no object", ErrBadExport, table)
		}
		im.columns = slices.Sorted(maps.Keys(members))
		for _, c := range im.columns {
			if !slices.Contains(im.table.columns, c) {
				return fmt.Errorf("%w: the table %s has no column %q; was it made by a newer release?", ErrBadExport, table, c)
			}
		}
	}
	im.batch.WriteByte("[,"[min(im.rows, 1)])
	im.batch.Write(row)
	im.rows++
	return nil
}

func (im *importer) flush(ctx context.Context) error {
	if im.rows == 0 {
		return nil
	}
	im.batch.WriteByte(']')
	t := im.table
	name := pgx.Identifier{t.name}.Sanitize()
	values := quoted(im.columns, "r.")
	if t.name == "terms" {
		values = strings.Replace(values, `r."term"`, `$1 || '/' || r."term"`, 1)
	}
	sql := "INSERT INTO holdfast." + name + " (tenant_id, " + quoted(im.columns, "") + ") SELECT $1, " + values +
		" FROM jsonb_populate_recordset(NULL::holdfast." + name + ", $2) r"
	if t.ofObjects && t.name != "objects" {
		// What belongs to an object that is there was stored with it, and may have been deleted since.
		sql += ` WHERE NOT EXISTS (SELECT FROM holdfast.objects o
			WHERE o.tenant_id = $1 AND o.kind = r.kind AND o.object_id = r.object_id OFFSET 0)`
	}
	err := im.db.tenantTx(ctx, im.tenant, pgx.TxOptions{}, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sql+" ON CONFLICT DO NOTHING", string(im.tenant), im.batch.String())
		im.stored[t.name] += tag.RowsAffected()
		return err
	})
	im.batch.Reset()
	im.rows = 0
	return err
}

// tenantTx runs do in a transaction that acts for a tenant as one of its services.
func (d *DB) tenantTx(ctx context.Context, tenant identity.Tenant, opts pgx.TxOptions, do func(pgx.Tx) error) error {
	var own error // not Postgres's
	err := pgx.BeginTxFunc(ctx, d.pool, opts, func(tx pgx.Tx) error {
		if _, err := dbsqlc.New(tx).EnterScope(ctx, Scope{Tenant: tenant, Service: true}.params()); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SELECT set_config('timezone', 'UTC', true)"); err != nil {
			return err
		}
		err := do(tx)
		if errors.Is(err, ErrImportConflict) || errors.Is(err, ErrBadExport) {
			own = err
		}
		return err
	})
	if own != nil {
		return own
	}
	return translate(err, false)
}
