package object

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"holdfast/identity"
	"holdfast/object/internal/bounds"
)

// KindConfig says what the objects of a kind are like.
type KindConfig[S proto.Message] struct {
	// Name is stored in every row of the kind and never changes.
	Name string
	// SchemaVersion of the states that this release writes, from 1. Rows of a newer one are read, never written.
	SchemaVersion int32
	// Upcasters bring the stored state of schema n to n + 1: pure functions over JSON with the proto's field names. A step
	// that only added fields needs none. Rows are rewritten when they next change, or by MigrateState. Entries have no
	// schema: they only ever gain fields.
	Upcasters map[int32]func(state []byte) ([]byte, error)
	// Users says what users may do to objects of the kind. A service may do everything.
	Users Users
	// UserRestore lets users, and not only services, restore and delete what they own through the inspector, past the rules of
	// the kind's manager.
	UserRestore bool
	// NoRestore refuses all callers to restore and fork objects of the kind: what they have revoked would be good again.
	NoRestore bool
	// Restored takes from a state that a restore or a fork brings back what must not come back, such as leases and fencing
	// tokens that were given to others since. was is the state that it replaces, nil where there is none: read it, never
	// change it. Pure. Optional.
	Restored func(state, was S, now time.Time)
	// NewLife changes the state that a life of an object begins with where its id had an earlier life: it is created again, or it was
	// deleted and is restored. Earlier lives may have issued any number up to issued, so epochs, fencing tokens and the like go on
	// above it. Pure. Optional: a kind without it issues none.
	NewLife func(state S, issued int64)
	// EntryBytes is how large an entry of the kind may be as JSON. 0: Limits.EntryBytes.
	EntryBytes int
	// StateBytes is how large a state of the kind may be as JSON. 0: Limits.StateBytes.
	StateBytes int
	// TTL is how long an object is kept after its last change, at least 24 h. 0: for ever.
	TTL time.Duration
	// TTLOf overrides TTL for one object, at least 24 h, or with Forever; 0: no override. Optional.
	TTLOf func(S) time.Duration
	// Scratch copies a state for a closure to work on, where a deep copy is expensive: the copy may share what closures replace
	// and never change in place. Default: proto.Clone.
	Scratch func(S) S
	// Terms are what List can filter an object by, without repeats. Optional.
	Terms func(S) []string
	// Orders are terms whose lists go by a time of their own and not by activity; see ListOptions.Order. Optional.
	Orders func(S) []Order
	// Collections maps the name of each collection to a message of its entries' type.
	Collections map[string]proto.Message
	// Owned names the collections whose entries belong to one user each, and not to the object's owner: see Tx.PutFor. A user reads and
	// changes none of another's. Services read and change all of them, and those that belong to nobody are theirs alone.
	Owned []string
	// Recent names the collection whose newest entries View can return; at least RecentKeep of them stay in the cache
	// with the state. It is not an Owned one.
	Recent     string
	RecentKeep int
	// Signal is a message of the type that Kind.Signal tells, for signals to watchers at other processes. Optional.
	Signal proto.Message
	// Personal are the types of messages, in states and entries, that belong to one user even where the object is the tenant's.
	// EraseUser removes them: entries, and elements of lists and maps. One that is neither loses its texts. Optional.
	Personal []Personal
	// Unmetered objects are counted, but no quota refuses a change of them: their manager bounds them, and who is over a quota needs
	// them to get at the others.
	Unmetered bool
	// BriefJournal keeps events, and request ids with them, for a day, whatever the server's retention: nobody looks far back at
	// grants, heartbeats and the like, and there are many of them.
	BriefJournal bool
	// OnTimer runs when a timer's time has come, as the tenant's service: a change like any other, pure as a closure of
	// Update is, and journalled as "timer:<name>". The timer is cleared in the same change; OnTimer may set it again. tx.Now()
	// is not before the time that was set. What it stages happens once, whatever number of processes run timers. After
	// an error or a panic it is tried again, later each time, and after MaxTimerTries the timer is parked. Optional: a
	// kind without it has no timers.
	OnTimer func(tx *Tx[S], name string) error
}

// Order is a term by which an object is listed at a time, up to the year 9998.
type Order struct {
	Term string
	Time time.Time
}

// Personal is a type of messages that belong to the user whom a field of theirs names.
type Personal struct {
	Message proto.Message
	User    protoreflect.Name
}

// Users is what the users of a tenant may do to objects of a kind. Every change of an object is checked against it, whichever
// RPC makes it.
type Users int

const (
	// UsersChangeOwn lets users change what they own, and read what belongs to the whole tenant.
	UsersChangeOwn Users = iota
	// UsersShare lets them change what belongs to the whole tenant too, and create it. They neither delete nor restore it.
	UsersShare
	// UsersNever lets users change nothing. The inspector shows them nothing either.
	UsersNever
)

// MinTTL is the least time that an object is kept after its last change.
const MinTTL = 24 * time.Hour

// Forever is the time to live of an object that is kept until it is deleted; see KindConfig.TTLOf.
const Forever time.Duration = -1

// Kind is a class of objects with one state type. It is safe for concurrent use.
type Kind[S proto.Message] struct{ *kind }

// kind is what the runtime needs of a Kind, whatever its state type.
type kind struct {
	rt            *Runtime
	name          string
	schemaVersion int32
	upcasters     map[int32]func([]byte) ([]byte, error)
	users         Users
	userRestore   bool
	noRestore     bool
	unmetered     bool
	briefJournal  bool
	prototype     proto.Message
	collections   map[string]proto.Message
	owned         []string
	recent        string
	recentKeep    int
	entryBytes    int
	stateBytes    int
	signal        proto.Message // nil: signals stay in this process
	scratch       func(proto.Message) proto.Message
	ttl           func(proto.Message) time.Duration
	terms         func(proto.Message) []string
	orders        func(proto.Message) []Order
	onTimer       func(*txn, string) error // nil: the kind has no timers
	restored      func(state, was proto.Message, now time.Time)
	newLife       func(state proto.Message, issued int64)
	personal      map[protoreflect.FullName]protoreflect.Name // the field that names the user, by type
}

// Register adds a kind to the runtime. Wrong configuration is a programming error and panics.
func Register[S proto.Message](rt *Runtime, c KindConfig[S]) *Kind[S] {
	var prototype S
	k := &kind{
		rt: rt, name: c.Name, schemaVersion: c.SchemaVersion, upcasters: c.Upcasters, users: c.Users, userRestore: c.UserRestore, noRestore: c.NoRestore, unmetered: c.Unmetered, briefJournal: c.BriefJournal, prototype: prototype.ProtoReflect().Type().Zero().Interface(),
		collections: c.Collections, recent: c.Recent, recentKeep: max(c.RecentKeep, 1),
		entryBytes: cmp.Or(c.EntryBytes, rt.limits.EntryBytes), stateBytes: cmp.Or(c.StateBytes, rt.limits.StateBytes), signal: c.Signal,
		scratch: proto.Clone, personal: map[protoreflect.FullName]protoreflect.Name{}, owned: c.Owned,
		ttl: func(m proto.Message) time.Duration {
			if c.TTLOf != nil {
				switch ttl := c.TTLOf(m.(S)); { //nolint:forcetypeassert // the runtime made m
				case ttl == Forever:
					return 0
				case ttl != 0:
					return max(ttl, MinTTL)
				}
			}
			return c.TTL
		},
		restored: func(state, was proto.Message, now time.Time) {
			if c.Restored != nil {
				old, _ := was.(S)
				c.Restored(state.(S), old, now) //nolint:forcetypeassert // the runtime made it
			}
		},
		newLife: func(state proto.Message, issued int64) {
			if c.NewLife != nil {
				c.NewLife(state.(S), issued) //nolint:forcetypeassert // the runtime made it
			}
		},
		terms: func(m proto.Message) []string {
			if c.Terms == nil {
				return nil
			}
			return c.Terms(m.(S)) //nolint:forcetypeassert // the runtime made m
		},
		orders: func(m proto.Message) []Order {
			if c.Orders == nil {
				return nil
			}
			return c.Orders(m.(S)) //nolint:forcetypeassert // the runtime made m
		},
	}
	switch {
	case c.Name == "", c.SchemaVersion < 1:
		panic("object: a kind needs a name and a schema version")
	case c.TTL != 0 && c.TTL < MinTTL:
		panic("object: a kind's TTL is at least 24 h")
	case c.Recent != "" && (c.Collections[c.Recent] == nil || slices.Contains(c.Owned, c.Recent)):
		panic("object: Recent names no collection of the kind, or an Owned one")
	case slices.ContainsFunc(c.Owned, func(name string) bool { return c.Collections[name] == nil }):
		panic("object: Owned names no collection of the kind")
	}
	for _, p := range c.Personal {
		d := p.Message.ProtoReflect().Descriptor()
		if f := d.Fields().ByName(p.User); f == nil || f.Kind() != protoreflect.StringKind || f.IsList() {
			panic(fmt.Sprintf("object: %s has no field %q that can name a user", d.FullName(), p.User))
		}
		k.personal[d.FullName()] = p.User
	}
	for from := range c.Upcasters {
		if from < 1 || from >= c.SchemaVersion {
			panic("object: an upcaster leads from one of the kind's schema versions to the next")
		}
	}
	rt.mu.Lock()
	rt.kinds[k.name] = k
	rt.mu.Unlock()
	if c.Scratch != nil {
		k.scratch = func(m proto.Message) proto.Message { return c.Scratch(m.(S)) } //nolint:forcetypeassert // the runtime made m
	}
	if c.OnTimer != nil {
		k.onTimer = func(t *txn, name string) error { return c.OnTimer(&Tx[S]{t}, name) }
		rt.timers.add(k)
	}
	return &Kind[S]{k}
}

// at addresses an object of the kind.
func (k *kind) at(t identity.Tenant, id ID) key { return key{Tenant: t, Kind: k.name, ID: id} }

// mayChange returns ErrServicesOnly where a caller may see what owner has, and not change it.
func (k *kind) mayChange(caller identity.Identity, owner identity.User, rewrite bool) error {
	switch {
	case caller.Service:
		return nil
	case k.users == UsersNever, owner == "" && (rewrite || k.users != UsersShare):
		return ErrServicesOnly
	}
	return nil
}

// Name is the kind's name.
func (k *Kind[S]) Name() string { return k.name }

// Now is the database's clock as far as the process knows it, for rules about time that hold when an object is read.
func (k *Kind[S]) Now() time.Time { return k.rt.db.Now() }

// Snapshot is an object as one version left it. State and entries are shared: read them, never change them.
type Snapshot[S proto.Message] struct {
	Info
	State S
	// Recent is the newest entries that were asked for, oldest first. RecentWhole: there are no others.
	Recent      []Entry
	RecentWhole bool
	// NotModified: the object is at the version of IfVersionNot; State and Recent are not set.
	NotModified bool
}

// ViewOption adjusts a View.
type ViewOption func(*viewOptions)

type viewOptions struct {
	recent int
	not    Version
}

// WithRecent returns the newest n entries of the kind's Recent collection as well, or as many of them as fit in one answer.
func WithRecent(n int) ViewOption { return func(o *viewOptions) { o.recent = n } }

// IfVersionNot answers NotModified where the object is at version v. 0 is no condition.
func IfVersionNot(v Version) ViewOption { return func(o *viewOptions) { o.not = v } }

// View reads an object as the newest commit left it, in one round trip or less: it may share one with other reads,
// but none that started before it. It returns ErrNotFound, or an error of package db.
func (k *Kind[S]) View(ctx context.Context, id ID, opts ...ViewOption) (Snapshot[S], error) {
	var o viewOptions
	for _, opt := range opts {
		opt(&o)
	}
	rec, err := k.rt.view(ctx, k.kind, id, o.recent)
	if err == nil && rec.recentBytes(o.recent) > bounds.Small && o.not != rec.version {
		caller, _ := identity.From(ctx) // view had one
		done, late := k.rt.large.Read(ctx, caller, func() error {
			rec, err = k.rt.view(ctx, k.kind, id, o.recent)
			return err
		})
		if late != nil {
			return Snapshot[S]{}, late
		}
		defer done()
	}
	if err != nil {
		return Snapshot[S]{}, err
	}
	s := Snapshot[S]{Info: rec.info(id)}
	if o.not != 0 && o.not == rec.version {
		s.NotModified = true
		return s, nil
	}
	s.State = rec.state.(S) //nolint:forcetypeassert // decoded from the kind's prototype
	s.setRecent(rec, o.recent, k.room(rec))
	return s, nil
}

func (s *Snapshot[S]) setRecent(rec *record, n int, room Room) {
	recent, _ := rec.recent.last(n)
	s.Recent = fitting(recent, room)
	s.RecentWhole = rec.recent.whole && len(s.Recent) == len(rec.recent.entries)
}

// Remembered returns what the cache has of an object, with up to n of its newest entries, or false. It does not ask whether that is still so:
// it is for choosing how to read.
func (k *Kind[S]) Remembered(ctx context.Context, id ID, n int) (s Snapshot[S], ok bool) {
	caller, err := identity.From(ctx)
	if err != nil {
		return s, false
	}
	rec := k.rt.cache.get(k.at(caller.Tenant, id))
	if rec == nil || !rec.recent.known || !caller.MaySee(rec.owner) {
		return s, false
	}
	s.setRecent(rec, n, Room{})
	return s, true
}

// UpdateOption adjusts an Update.
type UpdateOption func(*updateOptions)

type updateOptions struct {
	create    bool
	upsert    bool
	shared    bool
	owner     *identity.User // of what the change creates; nil: the caller
	ifVersion *Version
	requestID string
	hash      [sha256.Size]byte
	prefetch  []entryKey
	absent    []entryKey
	basedOn   Version // of what the closure was computed from; 0: only what Update hands it
	revive    bool    // of a deleted object that is still there: it goes on with its entries
	rewrite   bool
	replayed  *bool
}

type entryKey struct{ collection, key string }

// Create wants the object not to exist: ErrExists where it does, also as the object of another.
func Create() UpdateOption { return func(o *updateOptions) { o.create = true } }

// Upsert creates the object where it does not exist: ErrExists where another user has it.
func Upsert() UpdateOption { return func(o *updateOptions) { o.upsert = true } }

// Shared makes what the change creates belong to the whole tenant and not to the caller. An object that is there keeps
// its owner.
func Shared() UpdateOption { return func(o *updateOptions) { o.shared = true } }

// OwnedBy makes what the change creates belong to a user, or to the whole tenant where owner is empty. Only services create for
// others: ErrServicesOnly. An object that is there keeps its owner.
func OwnedBy(owner identity.User) UpdateOption { return func(o *updateOptions) { o.owner = &owner } }

// IfVersion wants the object to be at version v, or not to exist where v is 0: VersionMismatchError where that is not so.
func IfVersion(v Version) UpdateOption { return func(o *updateOptions) { o.ifVersion = &v } }

// Request makes the change idempotent: the same id with the same body from the same caller returns the first reply, with
// no new version; another body or another caller is ErrRequestReused. A service that acts for a user is that user, and
// otherwise a caller of its own. Ids count within one life of the object: one that is created again after it was deleted or
// has expired knows none of the ids before. The empty id is no request id. Ids are remembered as long as the journal.
func Request(id string, body proto.Message) UpdateOption {
	return func(o *updateOptions) {
		if id == "" {
			return
		}
		o.requestID = id
		h := sha256.New()
		h.Write([]byte(body.ProtoReflect().Descriptor().FullName()))
		h.Write([]byte{0})
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
		if err != nil { // only invalid UTF-8, which no decoder lets through
			b = []byte(err.Error())
		}
		h.Write(b)
		h.Sum(o.hash[:0])
	}
}

// Replayed sets to where the reply is that of an earlier call with the same request id: this call has changed nothing, and what its
// closure assigned is not to be used.
func Replayed(to *bool) UpdateOption { return func(o *updateOptions) { o.replayed = to } }

// Rewrite marks a change that passes by the rules of the kind's manager. Users make none to an object that belongs to the whole
// tenant: ErrServicesOnly.
func Rewrite() UpdateOption { return func(o *updateOptions) { o.rewrite = true } }

// Prefetch names entries that the closure will look at. Without it the closure runs again once they are loaded.
func Prefetch(collection string, keys ...string) UpdateOption {
	return func(o *updateOptions) {
		for _, k := range keys {
			o.prefetch = append(o.prefetch, entryKey{collection, k})
		}
	}
}

// ExpectAbsent is Prefetch for entries that are most likely not there: the closure first runs as if they were not, and
// runs again where the commit finds one.
func ExpectAbsent(collection string, keys ...string) UpdateOption {
	return func(o *updateOptions) {
		for _, k := range keys {
			o.absent = append(o.absent, entryKey{collection, k})
		}
	}
}

// Update changes an object: fn computes the change on a scratch copy of the state, and all that it stages commits, or
// nothing does. fn must be pure: no I/O, no clock but tx.Now(), nothing captured but by assignment, because it may run
// again on fresher state and only its last run counts. Read what it assigns only if Update returns no error: after ctx's it may yet run. It returns after the commit, with the snapshot that the commit
// left (after a replayed request, the newest one known).
//
// It returns fn's own error, ErrNotFound, ErrExists, ErrServicesOnly, VersionMismatchError, ErrRequestReused, TooLargeError,
// QuotaError, OverloadedError, ErrNewerSchema, ErrClosed, ctx's error, or an error of package db. After ctx's error the change may
// yet happen.
func (k *Kind[S]) Update(ctx context.Context, id ID, fn func(*Tx[S]) error, opts ...UpdateOption) (Snapshot[S], error) {
	c, err := k.update(ctx, id, fn, opts)
	if err != nil {
		return Snapshot[S]{}, err
	}
	s := Snapshot[S]{Info: c.after.info(id)}
	s.State, _ = c.after.state.(S)
	return s, nil
}

func (k *Kind[S]) update(ctx context.Context, id ID, fn func(*Tx[S]) error, opts []UpdateOption) (*change, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	c := &change{done: make(chan struct{}), run: func(t *txn) error { return fn(&Tx[S]{t}) }}
	for _, opt := range opts {
		opt(&c.opts)
	}
	c.askedBy(ctx, caller)
	err = k.rt.submit(ctx, k.kind, id, c)
	if err == nil && c.opts.replayed != nil {
		*c.opts.replayed = c.stored != nil
	}
	return c, err
}

// ChangeRequest is a request that changes one object.
type ChangeRequest interface {
	proto.Message
	GetRequestId() string
}

// Asked is what a request asks of its change: to be made once, by its id, and its precondition where if_version is set.
func Asked(req ChangeRequest) UpdateOption {
	return func(o *updateOptions) {
		Request(req.GetRequestId(), req)(o)
		m := req.ProtoReflect()
		if f := m.Descriptor().Fields().ByName("if_version"); f != nil && m.Has(f) {
			IfVersion(Version(m.Get(f).Int()))(o)
		}
	}
}

// Do is Update for an RPC: what the request asks holds, and fn returns the reply, which is stored with the change so that a retry
// gets the same. opts come on top.
func Do[R, S proto.Message](
	ctx context.Context, k *Kind[S], id ID, req ChangeRequest, fn func(*Tx[S]) (R, error), opts ...UpdateOption,
) (R, error) {
	var reply, none R
	opts = append(opts, Asked(req))
	c, err := k.update(ctx, id, func(tx *Tx[S]) error {
		r, err := fn(tx)
		tx.reply, reply = r, r
		return err
	}, opts)
	if err != nil {
		return none, err
	}
	return replyOf(c, reply)
}

// replyOf is the reply to a change: that of the first time, where its request was known.
func replyOf[R proto.Message](c *change, reply R) (R, error) {
	if c.stored == nil {
		return reply, nil
	}
	var none R
	reply = none.ProtoReflect().Type().New().Interface().(R) //nolint:forcetypeassert // of R's own type
	if err := proto.Unmarshal(c.stored, reply); err != nil {
		return none, fmt.Errorf("object: stored reply cannot be read: %w", err)
	}
	return reply, nil
}

// errMissing unwinds a closure that looked at an entry which is not at hand. It never leaves the runtime.
var errMissing = errors.New("object: an entry is not at hand")
