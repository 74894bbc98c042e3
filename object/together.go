package object

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/bounds"
	"holdfast/object/internal/rowjson"
)

// Together is several reads, of any kinds, that share one round trip and see one moment. Queue them with ViewIn and
// ListIn, then call Run, which sets what they returned. Use it once, from one goroutine.
type Together struct {
	rt    *Runtime
	err   error
	reads []func(*db.Pipeline, identity.Identity)
	// later are reads of what the others found: they take one more round trip, in the same moment.
	later []func(*db.Pipeline, identity.Identity)
	// asleep is an object whose entries could not be read, because it sleeps.
	asleep key
	taken  int // bytes of entries
	done   []func(identity.Identity, time.Time) error
}

// Together begins a read of several objects.
func (rt *Runtime) Together() *Together { return &Together{rt: rt} }

// Viewed is one object of a Together. Run sets it; read it, never change it.
type Viewed[S proto.Message] struct {
	// Found is false if there is no such object, or none that this caller may see.
	Found bool
	// Snapshot has the state; its Recent is not read.
	Snapshot Snapshot[S]
}

// ViewIn adds the view of an object.
func ViewIn[S proto.Message](r *Together, k *Kind[S], id ID) *Viewed[S] {
	v := &Viewed[S]{}
	if err := id.Check(); err != nil && r.err == nil {
		r.err = err
	}
	var rec *record
	r.reads = append(r.reads, func(p *db.Pipeline, caller identity.Identity) {
		rec = nil
		queueView1(p, k.kind, caller.Tenant, id, func(r *dbsqlc.ViewObjectsRow) (err error) {
			rec, err = k.record(r, 0, 0)
			return err
		})
	})
	r.done = append(r.done, func(caller identity.Identity, now time.Time) error {
		if rec.live(now) && caller.MaySee(rec.owner) {
			k.rt.cache.put(k.at(caller.Tenant, id), rec)
			v.Found, v.Snapshot = true, Snapshot[S]{Info: rec.info(id), State: rec.state.(S)} //nolint:forcetypeassert // decoded from the kind's prototype
		}
		return nil
	})
	return v
}

// ListIn adds the first page of a list, which takes up to the given bytes of the answer. It ignores o.PageToken; Page.Next is
// set if there is more, and is not a token.
func ListIn[S proto.Message](r *Together, k *Kind[S], o ListOptions, bytes int) *Page[S] {
	page, size := &Page[S]{}, pageSize(o.PageSize)
	var rows []dbsqlc.ListObjectsRow
	r.reads = append(r.reads, func(p *db.Pipeline, caller identity.Identity) {
		rows = nil
		queueList(p, k.kind, caller.Tenant, o, listCursor{Time: farFuture}, size, func(row *dbsqlc.ListObjectsRow) error {
			rows = append(rows, *row)
			return nil
		})
	})
	r.done = append(r.done, func(caller identity.Identity, _ time.Time) (err error) {
		*page, err = pageOf(k, caller.Tenant, rows, listCursor{}, size, o.Around, &Room{Bytes: bytes})
		return err
	})
	return page
}

// EntriesIn adds a part of one of an object's collections: up to limit entries. Those of an object that the caller may not see are
// not there. All entries of one Together fit in one answer: a page has fewer, even none, where they would not.
func EntriesIn[S proto.Message](r *Together, k *Kind[S], id ID, collection string, part Range, limit int) *EntriesPage {
	page := &EntriesPage{}
	queueEntries(r, k, id, page, func(p *db.Pipeline, caller identity.Identity, add func(key, body string) error) {
		rows, taken := 0, 0
		each := func(row *dbsqlc.ListEntriesAfterRow) error {
			rows++
			switch {
			case page.More || !part.has(row.Key):
				return nil
			case rows > limit || taken > 0 && r.taken+len(row.Body) > AnswerBytes || r.taken > AnswerBytes:
				page.More = true
				return nil
			}
			taken += len(row.Body)
			r.taken += len(row.Body) + itemOverhead
			return add(row.Key, row.Body)
		}
		queuePage(p, k.at(caller.Tenant, id), collection, k.readerOf(caller, collection), part, limit+1, AnswerBytes, each)
	}, collection)
	return page
}

// LookupIn adds the entries of a collection that have one of the keys; see EntriesIn.
func LookupIn[S proto.Message](r *Together, k *Kind[S], id ID, collection string, keys ...string) *EntriesPage {
	page := &EntriesPage{}
	queueEntries(r, k, id, page, lookup(r, k, id, page, collection, &keys), collection)
	return page
}

// IndexedIn adds the entries of a collection to which up to limit entries of another, its index, lead: of returns the key of one in the
// collection by that of the other. They are in the order of the index; see EntriesIn. It takes a second round trip.
func IndexedIn[S proto.Message](
	r *Together, k *Kind[S], id ID, index string, part Range, limit int, collection string, of func(key string) string,
) *EntriesPage {
	page, keys, more := &EntriesPage{}, []string(nil), false
	var find func(*db.Pipeline)
	queueEntries(r, k, id, page, func(p *db.Pipeline, caller identity.Identity, add func(key, body string) error) {
		keys, more = nil, false
		queuePage(p, k.at(caller.Tenant, id), index, k.readerOf(caller, index), part, limit+1, AnswerBytes, func(row *dbsqlc.ListEntriesAfterRow) error {
			switch {
			case !part.has(row.Key):
			case len(keys) == limit:
				more = true
			default:
				keys = append(keys, of(row.Key))
			}
			return nil
		})
		find = func(p *db.Pipeline) {
			page.More = more
			lookup(r, k, id, page, collection, &keys)(p, caller, add)
		}
	}, collection)
	r.later = append(r.later, func(p *db.Pipeline, _ identity.Identity) { find(p) })
	return page
}

func lookup[S proto.Message](
	r *Together, k *Kind[S], id ID, page *EntriesPage, collection string, keys *[]string,
) func(p *db.Pipeline, caller identity.Identity, add func(key, body string) error) {
	return func(p *db.Pipeline, caller identity.Identity, add func(key, body string) error) {
		full := false
		a := dbsqlc.LoadEntriesParams{TenantID: string(caller.Tenant)}
		for _, key := range *keys {
			a.Ords, a.Kinds, a.Ids = append(a.Ords, 0), append(a.Kinds, k.name), append(a.Ids, string(id))
			a.Collections, a.Keys = append(a.Collections, collection), append(a.Keys, key)
			a.Readers = append(a.Readers, k.reader(caller).column())
		}
		p.LoadEntries(a, func(row *dbsqlc.LoadEntriesRow) error {
			if full = full || r.taken > 0 && r.taken+len(row.Body) > AnswerBytes; full {
				page.More = true
				return nil
			}
			r.taken += len(row.Body) + itemOverhead
			return add(row.Key, row.Body)
		})
	}
}

func queueEntries[S proto.Message](
	r *Together, k *Kind[S], id ID, page *EntriesPage, read func(p *db.Pipeline, caller identity.Identity, add func(key, body string) error), collection string,
) {
	if err := id.Check(); err != nil && r.err == nil {
		r.err = err
	}
	var rec *record
	r.reads = append(r.reads, func(p *db.Pipeline, caller identity.Identity) {
		*page, rec = EntriesPage{}, nil
		queueView1(p, k.kind, caller.Tenant, id, func(row *dbsqlc.ViewObjectsRow) (err error) {
			if row.Asleep {
				r.asleep = k.at(caller.Tenant, id)
				return errAsleep
			}
			rec, err = k.record(row, 0, 0)
			return err
		})
		read(p, caller, func(key, body string) error {
			value, _, err := rowjson.Decode(k.collections[collection], body)
			page.Entries = append(page.Entries, newEntry(key, value, len(body)))
			return err
		})
	})
	r.done = append(r.done, func(caller identity.Identity, now time.Time) error {
		if !rec.live(now) || !caller.MaySee(rec.owner) {
			*page = EntriesPage{}
			return nil
		}
		page.Info = rec.info(id)
		return nil
	})
}

// Run reads. It returns ErrInvalid if an id is malformed, or an error of package db.
func (r *Together) Run(ctx context.Context) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	if r.err != nil {
		return r.err
	}
	for {
		p := r.rt.db.NewSnapshot(callerScope(caller))
		r.taken = 0
		for _, read := range r.reads {
			read(p, caller)
		}
		err := r.send(ctx, caller, p)
		if err == nil {
			break
		}
		if !errors.Is(err, errAsleep) {
			return err
		}
		if err := r.rt.wake(ctx, r.asleep); err != nil {
			return err
		}
	}
	if r.taken > bounds.Small {
		done, err := r.rt.large.Hold(ctx, caller)
		if err != nil {
			return err
		}
		defer done()
	}
	now := r.rt.db.Now()
	for _, done := range r.done {
		if err := done(caller, now); err != nil {
			return err
		}
	}
	return nil
}

// send sends the reads, and then those of what they found.
func (r *Together) send(ctx context.Context, caller identity.Identity, p *db.Pipeline) error {
	if len(r.later) == 0 {
		return r.rt.db.RunSnapshot(ctx, p)
	}
	tx, err := r.rt.db.Begin(ctx, p)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	p = tx.Next()
	for _, read := range r.later {
		read(p, caller)
	}
	return tx.ReadAndEnd(ctx, p)
}
