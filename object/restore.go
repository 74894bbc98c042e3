package object

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/gen/dbsqlc"
	"holdfast/object/internal/rowjson"
)

// NewLife does to a state what the first change of a life does where the id had an earlier one; see KindConfig.
func (k *Kind[S]) NewLife(state S, first Info) {
	k.newLife(state, issuedBefore(first.Version))
}

// Restore calls do with what an object was at a moment, and with the options that an Update needs for its Tx to become that:
// state, entries and timers, as a new version. Undoing it is another Restore. A deleted object comes back while its rows are
// there, for 24 h at least. Timers that were due since run at once. Restore calls do again if the object has changed since it
// was read. What cannot be read is refused by Become, so that a repeated request still gets its first reply. Restore returns what
// Past and do return, and ErrInvalid if more than 10,000 entries would be written.
func (k *Kind[S]) Restore(ctx context.Context, id ID, at Moment, do func(*Past, ...UpdateOption) error) error {
	for try := 1; ; try++ {
		p, err := k.Past(ctx, id, at)
		opts := []UpdateOption{Rewrite()}
		if err != nil {
			p = &Past{refused: err}
		} else {
			opts = append(opts, p.restoring())
		}
		err = do(p, opts...)
		mismatch, moved := errors.AsType[*VersionMismatchError](err)
		switch {
		case moved && mismatch.Expected == p.current && p.refused == nil && try < restoreTries:
		case errors.Is(err, ErrNotFound) && p.refused != nil:
			return p.refused // a deleted object has a history too
		default:
			return err
		}
	}
}

// restoreTries is how often a restore is computed, if the object keeps changing.
const restoreTries = 5

// Restored applies the kind's KindConfig.Restored to a state, as a restore and a fork do.
func (k *Kind[S]) Restored(state, was S, now time.Time) { k.restored(state, was, now) }

// PastWhole is Past with all entries of the object, for a Tx that creates another object to become: a fork, which has no timers. A
// user owns what the user forks; what a service forks stays its owner's. It returns ErrInvalid if there are more than 10,000
// entries.
func (k *Kind[S]) PastWhole(ctx context.Context, id ID, at Moment) (*Past, error) {
	r, ctx, err := k.rewind(ctx, id)
	if err != nil {
		return nil, err
	}
	defer r.close(ctx)
	if err := r.to(ctx, at); err != nil {
		return nil, err
	}
	p := &r.past
	if p.state == nil {
		return nil, ErrNotFound
	}
	for after, n := (entryKey{}), rewindPage; n == rewindPage; {
		n = 0
		pipe := r.tx.Next()
		pipe.ListAllEntries(dbsqlc.ListAllEntriesParams{
			TenantID: string(r.key.Tenant), Kind: k.name, ObjectID: string(id), AfterCollection: after.collection, AfterKey: after.key,
			PageSize: rewindPage, Reader: r.reader.column(),
		}, func(row *dbsqlc.ListAllEntriesRow) error {
			n++
			after = entryKey{row.Collection, row.Key}
			if err := r.spend(len(row.Body)); err != nil {
				return err
			}
			if _, differs := p.entries[after]; !differs {
				p.entries[after] = storedEntry{json.RawMessage(row.Body), ownerOf(row.Owned, row.OwnerID)}
			}
			return nil
		})
		if err := r.tx.Read(ctx, pipe); err != nil {
			return nil, err
		}
		if len(p.entries) > 2*maxRewritten {
			break
		}
	}
	maps.DeleteFunc(p.entries, func(_ entryKey, e storedEntry) bool { return e.body == nil })
	if len(p.entries) > maxRewritten {
		return nil, fmt.Errorf("%w: the object has more than %d entries, too many for one change", ErrInvalid, maxRewritten)
	}
	p.timers, p.current = nil, 0
	return p, nil
}

// restoring bases an Update on the version that the past differs from.
func (p *Past) restoring() UpdateOption {
	keys := slices.Collect(maps.Keys(p.entries))
	return func(o *updateOptions) {
		o.basedOn, o.revive = p.current, true
		o.prefetch = append(o.prefetch, keys...)
	}
}

// Become makes the object what p says: its state, the entries in which it differs, and its timers. p comes from Restore, with the
// options for the Update, or from PastWhole, for an Update that creates another object.
func (t *txn) Become(p *Past) error {
	if p.refused != nil {
		return p.refused
	}
	if t.work.kind.noRestore {
		return fmt.Errorf("%w: objects of the kind %s are never restored nor forked", ErrInvalid, t.work.kind.name)
	}
	if len(p.entries) > maxRewritten {
		return fmt.Errorf("%w: %d entries have changed since, more than the %d of one change", ErrInvalid, len(p.entries), maxRewritten)
	}
	state, newer, err := p.decode()
	if err != nil {
		return err
	}
	if newer {
		return ErrNewerSchema
	}
	var was proto.Message
	if t.Exists() {
		was = t.base.state
	}
	t.work.kind.restored(state, was, t.now)
	t.state, t.timers = state, nil
	t.beginLife()
	if t.work.kind.onTimer != nil {
		for name, due := range p.timers {
			t.timers = t.timers.with(name, due)
		}
	}
	keys := slices.SortedFunc(maps.Keys(p.entries), func(a, b entryKey) int {
		return cmp.Or(cmp.Compare(a.collection, b.collection), cmp.Compare(a.key, b.key))
	})
	// Not by Put, which searches everything that is staged.
	t.puts = make([]put, 0, len(keys))
	for _, k := range keys {
		was := p.entries[k]
		if t.Exists() || t.revived {
			old, sure := t.work.entry(k)
			if !sure {
				t.missing = append(t.missing, k)
			}
			if was.body == nil && old.value == nil {
				continue
			}
		}
		if was.body == nil {
			t.newer = t.newer || t.work.mayNotReplace(k)
			t.puts = append(t.puts, put{entryKey: k, held: held{owner: was.owner}})
			continue
		}
		value, newer, err := rowjson.Decode(t.work.kind.collections[k.collection], string(was.body))
		if err != nil {
			return err
		}
		t.newer = t.newer || newer || t.work.mayNotReplace(k)
		t.puts = append(t.puts, put{entryKey: k, held: held{value, was.owner}})
	}
	if len(t.missing) > 0 {
		panic(errMissing)
	}
	if p.current == 0 {
		t.Emit("forked:" + strconv.FormatInt(int64(p.version), 10))
		if t.owner == nil && t.caller.Service && t.caller.User == "" {
			t.owner = &p.owner
		}
		return nil
	}
	t.Emit("restored:" + strconv.FormatInt(int64(p.version), 10))
	return nil
}
