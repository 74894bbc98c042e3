package object

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// packedUpTo says up to which key the entries of each collection of an object may be packed; nil: none are. It belongs to the
// row that it was read with: packing changes it, and no version tells.
type packedUpTo map[string]string

func parsePacked(stored string) (p packedUpTo, err error) {
	if stored == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(stored), &p); err != nil {
		return nil, fmt.Errorf("object: what is packed cannot be read: %w", err)
	}
	return p, nil
}

// has tells whether an entry that is not in its table may be in a pack.
func (p packedUpTo) has(k entryKey) bool {
	return p.behind(k.collection, "") && k.key <= p[k.collection]
}

// behind tells whether packs may have entries behind a key.
func (p packedUpTo) behind(collection, key string) bool { return key < p[collection] }

// missed are those of the entries asked for that were not found and may be packed.
func (p packedUpTo) missed(asked *dbsqlc.LoadEntriesParams, ord int32, found func(entryKey) bool, into *dbsqlc.LoadEntriesParams) {
	for i, o := range asked.Ords {
		k := entryKey{asked.Collections[i], asked.Keys[i]}
		if o != ord || !p.has(k) || found(k) {
			continue
		}
		into.Ords = append(into.Ords, o)
		into.Kinds = append(into.Kinds, asked.Kinds[i])
		into.Ids = append(into.Ids, asked.Ids[i])
		into.Collections = append(into.Collections, k.collection)
		into.Keys = append(into.Keys, k.key)
	}
}

// beyondAll is behind every key.
const beyondAll = "\U0010FFFF"

// queueRecent queues the reading of an object's newest entries, packed or not; fill makes them the record's, once the record
// is there too.
func queueRecent(p *db.Pipeline, k *kind, t identity.Tenant, id ID, limit int) (fill func(*record) error) {
	var keys, bodies []string
	p.ListPackedBefore(dbsqlc.ListEntriesBeforeParams{
		TenantID: string(t), Kind: k.name, ObjectID: string(id), Collection: k.recent, BeforeKey: beyondAll,
		PageSize: int32(limit), MostBytes: AnswerBytes, //nolint:gosec // small
	}, func(r *dbsqlc.ListEntriesAfterRow) error {
		keys, bodies = append(keys, r.Key), append(bodies, r.Body)
		return nil
	})
	return func(rec *record) error {
		if rec == nil || rec.state == nil {
			return nil
		}
		var err error
		rec.recent, err = k.decodeRecent(keys, bodies, limit, AnswerBytes)
		return err
	}
}

// viewPacked answers a view of more entries than are not packed, in a round trip of its own.
func (rt *Runtime) viewPacked(ctx context.Context, v *view) (rec *record, err error) {
	limit := max(v.recent, v.kind.recentLoad())
	p := rt.db.NewSnapshot(callerScope(v.caller))
	queueView1(p, v.kind, v.key.tenant, v.key.id, &rec, nil)
	fill := queueRecent(p, v.kind, v.key.tenant, v.key.id, limit)
	if err := rt.db.RunSnapshot(ctx, p); err != nil {
		return nil, err
	}
	if err := fill(rec); err != nil {
		return nil, err
	}
	if rec != nil {
		rt.cache.put(v.key, rec)
	}
	return rec, nil
}

// PackConfig says what Pack packs. The zero PackConfig has the defaults.
type PackConfig struct {
	// Idle is for how long an object has not changed. It must be kept for as long again. 0: 24 h.
	Idle time.Duration
	// Keep is how many of the newest entries of a collection stay as they are. 0: 256.
	Keep int
	// Size is how many entries a pack has; less where they have more than a megabyte. 0: 256.
	Size int
	// PerSecond is how many objects are packed in a second. 0: 20.
	PerSecond int
	// AllCollections packs collections as well that the kind does not name.
	AllCollections bool
}

// What is packed, and how: see PackConfig.
const (
	DefaultPackIdle = 24 * time.Hour
	packSize        = 256
	packKeep        = 256
	packBytes       = 1 << 20
	packsAtOnce     = 32 // in one transaction
	packsPerSecond  = 20
)

func (c *PackConfig) defaults() {
	if c.Idle <= 0 {
		c.Idle = DefaultPackIdle
	}
	if c.Keep <= 0 {
		c.Keep = packKeep
	}
	if c.Size <= 0 {
		c.Size = packSize
	}
	if c.PerSecond <= 0 {
		c.PerSecond = packsPerSecond
	}
}

// Packed is what Pack did. Bytes are those of the rows, without indexes.
type Packed struct{ Objects, Packs, Entries, BytesBefore, BytesAfter int64 }

// Add adds what was done elsewhere.
func (p *Packed) Add(o Packed) {
	p.Objects += o.Objects
	p.Packs += o.Packs
	p.Entries += o.Entries
	p.BytesBefore += o.BytesBefore
	p.BytesAfter += o.BytesAfter
}

// Pack packs old entries of the caller's tenant, of objects that have not changed for a while: many of them in one row, which
// takes up a fraction of the room. Nothing that can be read differs by it, no version is made, and no writer is waited
// for. A write to an entry that is packed makes its pack entries again. It may be ended at any time, run again, and run
// beside another. The caller is a service. It returns what it packed, also with an error.
func (rt *Runtime) Pack(ctx context.Context, c PackConfig) (total Packed, err error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return total, err
	}
	if !caller.Service {
		return total, fmt.Errorf("%w: a service packs", ErrInvalid)
	}
	c.defaults()
	pace := rate.NewLimiter(rate.Limit(c.PerSecond), 1)
	for _, name := range rt.Kinds() {
		k, _ := rt.Kind(name)
		collections := k.packs
		if c.AllCollections {
			collections = k.Collections()
		}
		if len(collections) == 0 {
			continue
		}
		n, err := k.pack(ctx, caller.Tenant, collections, &c, pace)
		total.Add(n)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// pack packs objects of one kind.
func (k *kind) pack(ctx context.Context, t identity.Tenant, collections []string, c *PackConfig, pace *rate.Limiter) (total Packed, err error) {
	const pageSize = 200
	find := dbsqlc.FindPackableParams{
		Collections: collections, TenantID: string(t), Kind: k.name, Entries: int32(min(c.Keep+c.Size-1, 1<<30)), //nolint:gosec // bounded
		BeforeTime: k.rt.db.Now().Add(-c.Idle), BeforeID: beyondAll, PageSize: pageSize,
	}
	for {
		page, err := k.rt.db.FindPackable(ctx, find)
		if err != nil {
			return total, err
		}
		for _, o := range page {
			if !o.Packable {
				continue
			}
			n, err := k.packObject(ctx, t, ID(o.ObjectID), collections, c, pace)
			total.Add(n)
			if err != nil {
				return total, err
			}
		}
		if len(page) < pageSize {
			return total, nil
		}
		find.BeforeTime, find.BeforeID = page[len(page)-1].ActivityTime, page[len(page)-1].ObjectID
	}
}

func (k *kind) packObject(
	ctx context.Context, t identity.Tenant, id ID, collections []string, c *PackConfig, pace *rate.Limiter,
) (total Packed, err error) {
	for {
		if err := pace.Wait(ctx); err != nil {
			return total, err
		}
		r, err := k.rt.db.PackObject(ctx, dbsqlc.PackObjectParams{
			TenantID: string(t), Lock: key{t, k.name, id}.lock(), Kind: k.name, ObjectID: string(id), Collections: collections,
			IdleSeconds: c.Idle.Seconds(), Keep: int32(min(c.Keep, 1<<30)), Size: int32(min(c.Size, 1<<30)), //nolint:gosec // bounded
			Bytes: packBytes, Most: packsAtOnce,
		})
		if err != nil {
			return total, fmt.Errorf("packing %s %s: %w", k.name, id, err)
		}
		if r.Packs > 0 {
			total.Objects = 1
		}
		total.Packs += r.Packs
		total.Entries += r.Entries
		total.BytesBefore += r.BytesBefore
		total.BytesAfter += r.BytesAfter
		if r.Packs < packsAtOnce {
			return total, nil
		}
	}
}

// Unpack makes all packs of the caller's tenant entries again, of whatever kinds, and returns how many: before a release that
// does not know of packs is rolled back to. The caller is a service.
func (rt *Runtime) Unpack(ctx context.Context) (packs int64, err error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return 0, err
	}
	if !caller.Service {
		return 0, fmt.Errorf("%w: a service unpacks", ErrInvalid)
	}
	const pageSize = 200
	var last dbsqlc.FindPackedRow
	for {
		page, err := rt.db.FindPacked(ctx, dbsqlc.FindPackedParams{
			TenantID: string(caller.Tenant), AfterKind: last.Kind, AfterObjectID: last.ObjectID, PageSize: pageSize,
		})
		if err != nil || len(page) == 0 {
			return packs, err
		}
		last = page[len(page)-1]
		for _, o := range page {
			n, err := unpackObject(ctx, key{caller.Tenant, o.Kind, ID(o.ObjectID)}, rt.db.UnpackObject)
			packs += n
			if err != nil {
				return packs, err
			}
		}
	}
}

// unpackObject makes all packs of an object entries again that unpack finds.
func unpackObject(
	ctx context.Context, at key, unpack func(context.Context, dbsqlc.UnpackObjectParams) (int64, error),
) (packs int64, err error) {
	for {
		n, err := unpack(ctx, dbsqlc.UnpackObjectParams{
			TenantID: string(at.tenant), Lock: at.lock(), Kind: at.kind, ObjectID: string(at.id), Most: packsAtOnce,
		})
		packs += n
		if err != nil {
			return packs, fmt.Errorf("unpacking %s %s: %w", at.kind, at.id, err)
		}
		if n < packsAtOnce {
			return packs, nil
		}
	}
}

// unpack makes those packs entries again that mention the user, and returns how many.
func (e *eraser) unpack(ctx context.Context) (packs int64, err error) {
	var last dbsqlc.FindPackedRow
	for {
		page, err := e.rt.db.FindPackedMentioning(ctx, e.mention, last)
		if err != nil || len(page) == 0 {
			return packs, err
		}
		last = page[len(page)-1]
		for _, o := range page {
			n, err := unpackObject(ctx, key{e.caller.Tenant, o.Kind, ID(o.ObjectID)}, func(ctx context.Context, a dbsqlc.UnpackObjectParams) (int64, error) {
				return e.rt.db.UnpackMentioning(ctx, e.mention, a)
			})
			packs += n
			if err != nil {
				return packs, err
			}
		}
	}
}

// decodeRecent makes the newest entries out of rows that come newest first, of which up to limit were asked for, and none
// behind the one that passed most bytes.
func (k *kind) decodeRecent(keys, bodies []string, limit, most int) (recent, error) {
	bytes := 0
	for _, body := range bodies {
		bytes += len(body)
	}
	out := recent{
		known: true, whole: len(keys) < limit && bytes <= most, full: bytes > most && most >= AnswerBytes,
		entries: make([]Entry, 0, len(keys)+k.recentKeep),
	}
	for i, key := range slices.Backward(keys) {
		value, newer, err := decode(k.collections[k.recent], bodies[i])
		if err != nil {
			return recent{}, err
		}
		out.newer = out.newer || newer
		out.entries = append(out.entries, newEntry(key, value, len(bodies[i])))
		out.bytes += entryBytes(value)
	}
	return out, nil
}

// unlessPacked takes from entries that were read without a look at packs what may not be all there is from its first key on.
func (r recent) unlessPacked(upTo string) recent {
	i, _ := slices.BinarySearchFunc(r.entries, upTo, func(e Entry, k string) int {
		if e.Key <= k {
			return -1
		}
		return 1
	})
	r = r.newest(len(r.entries)-i, len(r.entries))
	r.known = len(r.entries) > 0
	return r
}
