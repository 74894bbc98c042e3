package object

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// Together is several reads, of any kinds, that travel in one round trip and see one moment. Queue them with ViewIn,
// ListIn and ListFoundIn, and Run it: what they returned is then filled. Use it once, from one goroutine.
type Together struct {
	rt    *Runtime
	err   error
	views dbsqlc.ViewObjectsParams
	// row answers the view of its index; lists queue themselves; done runs when all has arrived.
	rows  []func(*dbsqlc.ViewObjectsRow) error
	lists []func(*db.Pipeline, identity.Identity)
	known []func(identity.Tenant) Version
	done  []func(identity.Identity, time.Time)
}

// Together begins a read of several objects.
func (rt *Runtime) Together() *Together { return &Together{rt: rt} }

// Viewed is one object of a Together. It is set by Run; read it, never change it.
type Viewed[S proto.Message] struct {
	// Found is false where there is no such object, or not for this caller.
	Found bool
	// Snapshot has the state; its Recent is not read.
	Snapshot Snapshot[S]
}

// ViewIn adds the view of an object.
func ViewIn[S proto.Message](r *Together, k *Kind[S], id ID) *Viewed[S] {
	v := &Viewed[S]{}
	if err := id.check(); err != nil && r.err == nil {
		r.err = err
	}
	var cached, rec *record
	a := &r.views
	a.Ords = append(a.Ords, int32(len(r.rows))) //nolint:gosec // a caller's few
	a.Kinds = append(a.Kinds, k.name)
	a.Ids = append(a.Ids, string(id))
	a.Collections = append(a.Collections, "")
	a.Limits = append(a.Limits, 0)
	r.known = append(r.known, func(t identity.Tenant) Version {
		rec = nil
		if cached = r.rt.cache.get(key{t, k.name, id}); cached == nil {
			return 0
		}
		return cached.version
	})
	r.rows = append(r.rows, func(row *dbsqlc.ViewObjectsRow) (err error) {
		if cached != nil && cached.version == Version(row.Version) {
			if rec = cached; !cached.create.Equal(row.CreateTime) {
				return errEarlierLife
			}
			return nil
		}
		rec, err = k.record(row, 0, 0)
		return err
	})
	r.done = append(r.done, func(caller identity.Identity, now time.Time) {
		if !rec.live(now) || !caller.MaySee(rec.owner) {
			return
		}
		if rec != cached {
			r.rt.cache.put(key{caller.Tenant, k.name, id}, rec)
		}
		v.Found, v.Snapshot = true, Snapshot[S]{Info: rec.info(id), State: rec.state.(S)} //nolint:forcetypeassert // decoded from the kind's prototype
	})
	return v
}

// ListIn adds the first page of a list. o.PageToken is not looked at; Page.Next is only a sign that there is more.
func ListIn[S proto.Message](r *Together, k *Kind[S], o ListOptions) *Page[S] {
	page, size := &Page[S]{}, pageSize(o.PageSize)
	r.lists = append(r.lists, func(p *db.Pipeline, caller identity.Identity) {
		queueList(p, k.kind, caller.Tenant, o.Terms, listCursor{Time: farFuture}, size, appendTo(page, k, caller.Tenant, size, Room{}))
	})
	return page
}

// Found tells how the database finds the id of an object while it reads: the one that is given, else the first field that
// has a text.
type Found struct {
	Given  string
	Fields []Field
}

// Field is a text in the state of an object, by its dotted path of stored names.
type Field struct {
	kind string
	id   ID
	path string
}

// FieldOf names a field of an object.
func FieldOf[S proto.Message](k *Kind[S], id ID, path string) Field { return Field{k.name, id, path} }

// add puts the fields into the parameters of a statement.
func (f Found) add(kinds, ids, paths *[]string) {
	for _, x := range f.Fields {
		*kinds, *ids, *paths = append(*kinds, x.kind), append(*ids, string(x.id)), append(*paths, x.path)
	}
}

// ViewFoundIn adds the view of the object whose id the database finds.
func ViewFoundIn[S proto.Message](r *Together, k *Kind[S], f Found) *Viewed[S] {
	v := &Viewed[S]{}
	r.lists = append(r.lists, func(p *db.Pipeline, caller identity.Identity) {
		a := dbsqlc.ViewObjectFoundParams{TenantID: string(caller.Tenant), Kind: k.name, Given: f.Given}
		f.add(&a.FoundKinds, &a.FoundIds, &a.FoundFields)
		p.ViewObjectFound(a, func(row *dbsqlc.ListObjectsRow) (err error) {
			v.Snapshot, err = known(k, caller.Tenant, row)
			v.Found = err == nil
			return err
		})
	})
	r.done = append(r.done, func(caller identity.Identity, now time.Time) {
		i := v.Snapshot.Info
		if v.Found && (!caller.MaySee(i.Owner) || !i.ExpireTime.IsZero() && !now.Before(i.ExpireTime)) {
			*v = Viewed[S]{}
		}
	})
	return v
}

// FoundList chooses objects by terms that the database makes out of what it finds: those that have any of them.
type FoundList struct {
	Found Found
	// Before and After are put round the id to make the term.
	Before, After string
	// Via, where set, makes one term of each element of some array fields of the object that was found, instead of its id.
	Via *Via
	// Otherwise is the term where no id was found; empty: nothing is listed then.
	Otherwise string
	// Limit: 1 to 200; 0: 50.
	Limit int
	// Bytes is how much of the answer the list may take. 0: AnswerBytes.
	Bytes int
}

// Via names array fields of the objects of a kind, by their stored names, and what each one's terms begin with.
type Via struct {
	kind             string
	fields, prefixes []string
}

// ViaFields makes a Via of pairs: a field, and the beginning of its terms.
func ViaFields[S proto.Message](k *Kind[S], pairs ...[2]string) *Via {
	v := &Via{kind: k.name}
	for _, p := range pairs {
		v.fields, v.prefixes = append(v.fields, p[0]), append(v.prefixes, p[1])
	}
	return v
}

// ListFoundIn adds a list of the newest objects, by activity, whose terms are found by the database. Page.Next is only a
// sign that there is more. It walks the index of each term, so what has none of them costs nothing.
func ListFoundIn[S proto.Message](r *Together, k *Kind[S], o FoundList) *Page[S] {
	page, size := &Page[S]{}, pageSize(o.Limit)
	r.lists = append(r.lists, func(p *db.Pipeline, caller identity.Identity) {
		a := dbsqlc.ListObjectsFoundParams{
			TenantID: string(caller.Tenant), Kind: k.name, Given: o.Found.Given, Suffix: o.After, BeforeTime: farFuture, PageSize: size + 1,
			MostBytes: AnswerBytes,
		}
		o.Found.add(&a.FoundKinds, &a.FoundIds, &a.FoundFields)
		prefixes := []string{o.Before}
		if o.Via != nil {
			a.ViaKind, a.ViaFields, prefixes = o.Via.kind, o.Via.fields, o.Via.prefixes
		}
		for _, prefix := range prefixes {
			a.Prefixes = append(a.Prefixes, storedTerm(caller.Tenant, k.name, prefix))
		}
		if o.Otherwise != "" {
			a.Otherwise = storedTerm(caller.Tenant, k.name, o.Otherwise)
		}
		p.ListObjectsFound(a, appendTo(page, k, caller.Tenant, size, Room{Bytes: o.Bytes}))
	})
	return page
}

// appendTo collects the rows of a list, which may be one more than its size, as far as there is room.
func appendTo[S proto.Message](page *Page[S], k *Kind[S], t identity.Tenant, size int32, room Room) func(*dbsqlc.ListObjectsRow) error {
	return func(r *dbsqlc.ListObjectsRow) error {
		if page.Next != "" || len(page.Items) == int(size) || !room.Fits(itemOverhead+len(r.State)) {
			page.Next = "more"
			return nil
		}
		s, err := known(k, t, r)
		page.Items = append(page.Items, s)
		return err
	}
}

// known is listed, but for decoding what the cache has in that version: what is read together is as a rule read often.
func known[S proto.Message](k *Kind[S], t identity.Tenant, r *dbsqlc.ListObjectsRow) (Snapshot[S], error) {
	id := ID(r.ObjectID)
	at := key{t, k.name, id}
	if rec := k.rt.cache.get(at); rec.is(Version(r.Version), r.CreateTime) {
		return Snapshot[S]{Info: rec.info(id), State: rec.state.(S)}, nil //nolint:forcetypeassert // decoded from the kind's prototype
	}
	rec, err := k.record(listedRow(r), 0, 0)
	if err != nil {
		return Snapshot[S]{}, err
	}
	k.rt.cache.put(at, rec)
	return Snapshot[S]{Info: rec.info(id), State: rec.state.(S)}, nil //nolint:forcetypeassert // decoded from the kind's prototype
}

// is tells whether a record, which may be nil, has the state of a version, in the life that began then.
func (r *record) is(v Version, created time.Time) bool {
	return r != nil && r.state != nil && r.version == v && r.create.Equal(created)
}

// errEarlierLife: the cache has an earlier life of an object, which was swept, at the version that this one is at. It
// never leaves the runtime.
var errEarlierLife = errors.New("object: the cache has an earlier life of the object")

// Run reads. It returns ErrInvalid for an id that is none, or an error of package db.
func (r *Together) Run(ctx context.Context) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	if r.err != nil {
		return r.err
	}
	for {
		// Views come first: where one of them fails no list has been filled.
		p := r.rt.db.NewSnapshot(callerScope(caller))
		if len(r.rows) > 0 {
			r.views.TenantID = string(caller.Tenant)
			r.views.Known = r.views.Known[:0]
			for _, known := range r.known {
				r.views.Known = append(r.views.Known, int64(known(caller.Tenant)))
			}
			p.ViewObjects(r.views, func(row *dbsqlc.ViewObjectsRow) error {
				err := r.rows[row.Ord](row)
				if errors.Is(err, errEarlierLife) {
					r.rt.cache.drop(key{caller.Tenant, r.views.Kinds[row.Ord], ID(r.views.Ids[row.Ord])})
				}
				return err
			})
		}
		for _, queue := range r.lists {
			queue(p, caller)
		}
		err := r.rt.db.RunSnapshot(ctx, p)
		if errors.Is(err, errEarlierLife) {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	now := r.rt.db.Now()
	for _, done := range r.done {
		done(caller, now)
	}
	return nil
}

// Mark is one number for a set of objects at their versions: the same for the same set, and another, as good as surely,
// where one of them changed, came or went. It is positive, and is no count: of two marks none is the newer one.
type Mark struct{ sum []byte }

// Add adds an object. Order matters.
func (m *Mark) Add(kind string, i Info) {
	m.sum = append(append(append(m.sum, kind...), 0), i.ID...)
	m.sum = binary.BigEndian.AppendUint64(append(m.sum, 0), uint64(i.Version)) //nolint:gosec // not negative
}

// Version is the mark of what was added.
func (m *Mark) Version() Version {
	h := fnv.New64a()
	h.Write(m.sum)
	return max(1, Version(h.Sum64()>>1))
}
