package db

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/klauspost/compress/zstd"

	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// Sleeper names an object that sleeps, or that could.
type Sleeper struct {
	Tenant   identity.Tenant
	Kind, ID string
	// Lock is the key of the object's advisory lock.
	Lock int64
}

// The most that an object may have if it is to sleep. The process that wakes it waits for this, and holds it in memory.
const (
	MostSleeperRows  = 10_000
	MostSleeperBytes = 8 << 20
)

// rowOverhead is what a row counts for its keys and its places in indexes; see MeasureObjects.
const rowOverhead = 256

// zip compresses the rows of sleepers: lines of JSON, as an export has them. It is safe for concurrent use.
type zip struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newZip() (z zip, err error) {
	z.enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err == nil {
		z.dec, err = zstd.NewReader(nil, zstd.WithDecoderMaxMemory(2*MostSleeperBytes))
	}
	return z, err
}

func (z zip) lines(compressed []byte) ([]byte, error) {
	lines, err := z.dec.DecodeAll(compressed, nil)
	if err != nil {
		return nil, fmt.Errorf("db: a sleeper cannot be read: %w", err)
	}
	return lines, nil
}

// FindIdle lists objects of a kind with whether they may be put to sleep; see the statement.
func (d *DB) FindIdle(ctx context.Context, a dbsqlc.FindIdleParams) (rows []dbsqlc.FindIdleRow, err error) {
	a.EnoughRows, a.MostBytes = MostSleeperRows+1, MostSleeperBytes
	err = d.tenantQueries(ctx, identity.Tenant(a.TenantID), func(q *dbsqlc.Queries) (err error) {
		rows, err = q.FindIdle(ctx, a)
		return err
	})
	return rows, err
}

// Sleep puts an object to sleep that FindIdle found, and returns the bytes that it counted before and after. It waits for nobody, and
// returns 0 if the object was touched meanwhile, or is being touched.
func (d *DB) Sleep(ctx context.Context, at Sleeper, since, until time.Time) (before, after int64, err error) {
	tenant := string(at.Tenant)
	err = d.tenantTx(ctx, at.Tenant, pgx.TxOptions{}, func(tx pgx.Tx) error {
		q := dbsqlc.New(tx)
		if err := q.SleepGently(ctx); err != nil {
			return err
		}
		if locked, err := q.TryLock(ctx, at.Lock); err != nil || !locked {
			return err
		}
		held, err := q.HoldIdle(ctx, dbsqlc.HoldIdleParams{TenantID: tenant, Kind: at.Kind, ObjectID: at.ID, Since: since, Until: until})
		if err != nil || len(held) == 0 {
			return err
		}
		parts, err := q.ReadParts(ctx, dbsqlc.ReadPartsParams{TenantID: tenant, Kind: at.Kind, ObjectID: at.ID})
		if err != nil {
			return err
		}
		for _, p := range parts {
			compressed := d.zip.enc.EncodeAll([]byte(p.Lines), nil)
			before += p.Bytes
			after += int64(rowOverhead + len(compressed))
			if err := q.PutPart(ctx, dbsqlc.PutPartParams{
				TenantID: tenant, Kind: at.Kind, ObjectID: at.ID, Part: p.Part, OwnerID: p.OwnerID, RowCount: p.RowCount, Bytes: p.Bytes,
				LastTime: p.LastTime, Compressed: compressed,
			}); err != nil {
				return err
			}
		}
		return q.FallAsleep(ctx, dbsqlc.FallAsleepParams{TenantID: tenant, Kind: at.Kind, ObjectID: at.ID})
	})
	return before, after, err
}

// Wake puts back the rows of an object that sleeps. It returns false if the object was awake. If the commit is lost in a crash the
// object sleeps on; the next change of it makes the commit durable with its own.
func (d *DB) Wake(ctx context.Context, at Sleeper) (woke bool, err error) {
	err = d.tenantTx(ctx, at.Tenant, pgx.TxOptions{}, func(tx pgx.Tx) error {
		q := dbsqlc.New(tx)
		if err := q.SleepGently(ctx); err != nil {
			return err
		}
		if _, err := q.LockObjects(ctx, []int64{at.Lock}); err != nil {
			return err
		}
		parts, err := q.WakeUp(ctx, dbsqlc.WakeUpParams{TenantID: string(at.Tenant), Kind: at.Kind, ObjectID: at.ID})
		if err != nil {
			return err
		}
		for _, p := range parts {
			woke = true
			lines, err := d.zip.lines(p.Compressed)
			if err != nil {
				return &rowError{err}
			}
			first, _, _ := bytes.Cut(lines, []byte("\n"))
			var columns map[string]json.RawMessage
			if err := json.Unmarshal(first, &columns); err != nil {
				return &rowError{err}
			}
			rows := "[" + string(bytes.ReplaceAll(lines, []byte("\n"), []byte(","))) + "]"
			if _, err := tx.Exec(ctx, insertRows(p.Part, slices.Sorted(maps.Keys(columns))), string(at.Tenant), rows); err != nil {
				return err
			}
		}
		return nil
	})
	return woke, err
}

// MentioningSleepers lists the objects that sleep on something that may mention the user.
func (d *DB) MentioningSleepers(ctx context.Context, m Mention) (found []Sleeper, err error) {
	needles := append(m.needles(), hex.EncodeToString([]byte(m.User))) // in a reply
	next := dbsqlc.ListSleepersParams{TenantID: string(m.Tenant)}
	for {
		var page []dbsqlc.ListSleepersRow
		err := d.tenantQueries(ctx, m.Tenant, func(q *dbsqlc.Queries) (err error) {
			page, err = q.ListSleepers(ctx, next)
			return err
		})
		if err != nil || len(page) == 0 {
			return found, err
		}
		for _, s := range page {
			next.AfterKind, next.AfterObjectID, next.AfterPart = s.Kind, s.ObjectID, s.Part
			lines, err := d.zip.lines(s.Compressed)
			if err != nil {
				return found, err
			}
			if slices.ContainsFunc(needles, func(n string) bool { return bytes.Contains(lines, []byte(n)) }) {
				found = append(found, Sleeper{Tenant: m.Tenant, Kind: s.Kind, ID: s.ObjectID})
			}
		}
	}
}

// StoredTenants lists the tenants by id, also those that only an identity provider's tokens name.
func (d *DB) StoredTenants(ctx context.Context) ([]identity.Tenant, error) {
	var all []identity.Tenant
	p := d.NewJanitor()
	query(p, dbsqlc.ListStoredTenants, struct{}{}, func(r *struct{ TenantID string }) error {
		all = append(all, identity.Tenant(r.TenantID))
		return nil
	})
	return all, d.Run(ctx, p)
}
