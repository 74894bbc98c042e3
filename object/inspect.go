package object

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// Kind is a kind by its name, whatever the type of its states.
func (rt *Runtime) Kind(name string) (k *Kind[proto.Message], ok bool) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if k := rt.kinds[name]; k != nil {
		return &Kind[proto.Message]{k}, true
	}
	return nil, false
}

// Kinds are the names of all kinds, in order.
func (rt *Runtime) Kinds() []string {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return slices.Sorted(maps.Keys(rt.kinds))
}

// BriefJournals are the names of the kinds with a BriefJournal, in order.
func (rt *Runtime) BriefJournals() []string {
	return slices.DeleteFunc(rt.Kinds(), func(name string) bool {
		k, _ := rt.Kind(name)
		return !k.briefJournal
	})
}

// Collections are the names of the kind's collections, in order.
func (k *Kind[S]) Collections() []string { return slices.Sorted(maps.Keys(k.collections)) }

// Prototype is an empty state, and PrototypeOf an empty entry of a collection, nil where there is no such collection. Do
// not change them.
func (k *Kind[S]) Prototype() proto.Message { return k.prototype }

// PrototypeOf is an empty entry; see Prototype.
func (k *Kind[S]) PrototypeOf(collection string) proto.Message { return k.collections[collection] }

// SchemaVersion is that of the states that this release writes.
func (k *Kind[S]) SchemaVersion() int32 { return k.schemaVersion }

// ServicesOnly reports whether users are shown nothing of the kind's objects; see UsersNever.
func (k *Kind[S]) ServicesOnly() bool { return k.users == UsersNever }

// UserRestore reports whether users may restore, fork and delete what they own through the inspector; see KindConfig.
func (k *Kind[S]) UserRestore() bool { return k.userRestore }

// NoRestore tells that objects of the kind can be neither restored nor forked; see KindConfig.
func (k *Kind[S]) NoRestore() bool { return k.noRestore }

// FindOptions choose a page of objects.
type FindOptions struct {
	// Prefix of their ids.
	Prefix string
	// Owner of them; nil: any. Empty: the whole tenant.
	Owner *identity.User
	// ByID: in the order of their ids; else newest activity first.
	ByID bool
	// PageSize: 1 to 200; 0: 50.
	PageSize int
	// PageToken is the last page's Next, of the same options.
	PageToken string
}

// Find pages through the objects that the caller may see; see List. It returns ErrInvalid for a bad token.
func (k *Kind[S]) Find(ctx context.Context, o FindOptions) (Page[S], error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return Page[S]{}, err
	}
	if o.Prefix != "" {
		if err := ID(o.Prefix).Check(); err != nil {
			return Page[S]{}, err
		}
	}
	from := listCursor{}
	if !o.ByID {
		from.Time = farFuture
	}
	if err := readToken(o.PageToken, &from); err != nil {
		return Page[S]{}, err
	}
	var owner identity.User
	if o.Owner != nil {
		owner = *o.Owner
	}
	if caller.OwnOnly && !caller.Service {
		if o.Owner != nil && owner != caller.User {
			return Page[S]{}, nil
		}
		owner = caller.User
		o.Owner = &owner
	}
	var rows []dbsqlc.ListObjectsRow
	each := func(r *dbsqlc.ListByIDRow) error {
		rows = append(rows, dbsqlc.ListObjectsRow(*r))
		return nil
	}
	size := pageSize(o.PageSize)
	p := k.rt.db.NewPipeline(callerScope(caller))
	switch {
	case o.ByID:
		p.ListByID(dbsqlc.ListByIDParams{
			TenantID: string(caller.Tenant), Kind: k.name, Prefix: o.Prefix, AfterID: from.ID, AnyOwner: o.Owner == nil,
			OwnerID: string(owner), PageSize: size + 1, MostBytes: AnswerBytes,
		}, each)
	case owner != "":
		p.ListByOwner(dbsqlc.ListByOwnerParams{
			TenantID: string(caller.Tenant), OwnerID: string(owner), Kind: k.name, Prefix: o.Prefix, BeforeTime: from.Time, BeforeID: from.ID,
			PageSize: size + 1, MostBytes: AnswerBytes,
		}, each)
	default:
		p.ListByActivity(dbsqlc.ListByActivityParams{
			TenantID: string(caller.Tenant), Kind: k.name, Prefix: o.Prefix, BeforeTime: from.Time, BeforeID: from.ID,
			AnyOwner: o.Owner == nil, OwnerID: string(owner), PageSize: size + 1, MostBytes: AnswerBytes,
		}, each)
	}
	if err := k.rt.db.Run(ctx, p); err != nil {
		return Page[S]{}, err
	}
	return heldPage(ctx, k, caller, rows, from, size, 0)
}

func readToken(token string, into any) error {
	if token == "" {
		return nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fmt.Errorf("%w: page token", ErrInvalid)
	}
	return nil
}

func writeToken(from any) (string, error) {
	b, err := json.Marshal(from)
	return base64.RawURLEncoding.EncodeToString(b), err
}

// Size is what an object takes on disk, before indexes, compressed as it is, and without its journal.
type Size struct {
	StateBytes, EntryBytes, Entries int64
	Asleep                          bool
}

// Measure reads all of an object to tell its size.
func (k *Kind[S]) Measure(ctx context.Context, id ID) (s Size, err error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return Size{}, err
	}
	var rec *record
	p := k.rt.db.NewPipeline(callerScope(caller))
	asleep := false
	queueView1(p, k.kind, caller.Tenant, id, func(r *dbsqlc.ViewObjectsRow) (err error) {
		asleep = r.Asleep
		rec, err = k.record(r, 0, 0)
		return err
	})
	p.MeasureObject(dbsqlc.MeasureObjectParams{TenantID: string(caller.Tenant), Kind: k.name, ObjectID: string(id)},
		func(r *dbsqlc.MeasureObjectRow) error {
			s = Size{StateBytes: r.StateBytes, EntryBytes: r.EntryBytes, Entries: r.EntryCount, Asleep: asleep}
			return nil
		})
	if err := k.rt.db.Run(ctx, p); err != nil {
		return Size{}, err
	}
	if !rec.live(k.rt.db.Now()) || !caller.MaySee(rec.owner) {
		return Size{}, ErrNotFound
	}
	return s, nil
}

// TimerInfo is a timer as it stands.
type TimerInfo struct {
	Kind  string
	ID    ID
	Name  string
	Owner identity.User
	// DueTime is when the object wants to be woken, NextTime when that will be tried.
	DueTime, NextTime time.Time
	// Attempts have failed; LastError says in a word or two how.
	Attempts  int
	LastError string
	// Parked: it is not tried any more.
	Parked bool
}

// TimerOptions choose a page of timers.
type TimerOptions struct {
	// Kind and ID of their objects; empty: any.
	Kind string
	ID   ID
	// Parked: only those that are.
	Parked bool
	// PageSize: 1 to 200; 0: 50.
	PageSize int
	// PageToken is the last page's token, of the same options.
	PageToken string
}

type timerCursor struct {
	Kind string `json:"k"`
	ID   string `json:"i"`
	Name string `json:"n"`
}

// Timers pages through the timers of objects that the caller may see, by kind, object and name. next is empty on the
// last page. It returns ErrInvalid for a bad token.
func (rt *Runtime) Timers(ctx context.Context, o TimerOptions) (timers []TimerInfo, next string, err error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, "", err
	}
	var from timerCursor
	if err := readToken(o.PageToken, &from); err != nil {
		return nil, "", err
	}
	size, shared := pageSize(o.PageSize), caller.MaySee("")
	p := rt.db.NewPipeline(callerScope(caller))
	each := func(r *dbsqlc.ListTimersRow) (err error) {
		if len(timers) == int(size) {
			last := timers[len(timers)-1]
			next, err = writeToken(timerCursor{last.Kind, string(last.ID), last.Name})
			return err
		}
		timers = append(timers, TimerInfo{
			Kind: r.Kind, ID: ID(r.ObjectID), Name: r.Name, Owner: identity.User(r.OwnerID), DueTime: r.DueTime,
			NextTime: r.NextTime, Attempts: int(r.Attempts), LastError: r.LastError, Parked: r.Parked,
		})
		return nil
	}
	if o.Kind != "" && o.ID != "" {
		p.ListTimersOfObject(dbsqlc.ListTimersOfObjectParams{
			TenantID: string(caller.Tenant), Kind: o.Kind, ObjectID: string(o.ID), AfterName: from.Name, OnlyParked: o.Parked,
			AlsoTenants: shared, PageSize: size + 1,
		}, each)
	} else {
		last := o.Kind
		if last == "" {
			last = "\U0010FFFF" // no kind comes behind it
		}
		p.ListTimers(dbsqlc.ListTimersParams{
			TenantID: string(caller.Tenant), FirstKind: o.Kind, LastKind: last, ObjectID: string(o.ID), OnlyParked: o.Parked, AlsoTenants: shared,
			AfterKind: from.Kind, AfterObjectID: from.ID, AfterName: from.Name, PageSize: size + 1,
		}, each)
	}
	return timers, next, rt.db.Run(ctx, p)
}

// MigrateState rewrites up to n live objects of one tenant and kind that an older release has written, from an id on,
// each as a new version that is no activity. It returns how many it rewrote, and the id to go on from, empty at the end.
// It can be stopped and begun again at any time. What a newer release writes meanwhile is left alone.
func (k *Kind[S]) MigrateState(ctx context.Context, from ID, n int) (rewritten int, next ID, err error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return 0, "", err
	}
	var ids []ID
	p := k.rt.db.NewPipeline(db.Scope{Tenant: caller.Tenant, Service: caller.Service})
	p.ListOldSchemas(dbsqlc.ListOldSchemasParams{
		TenantID: string(caller.Tenant), Kind: k.name, AfterID: string(from), SchemaVersion: k.schemaVersion, PageSize: int32(min(n, maxBatch)), //nolint:gosec // small
	}, func(id string) error {
		ids = append(ids, ID(id))
		return nil
	})
	if err := k.rt.db.Run(ctx, p); err != nil {
		return 0, "", err
	}
	done := make(chan error, len(ids))
	for _, id := range ids { // together, so that they share a commit
		go func() {
			_, err := k.Update(ctx, id, func(tx *Tx[S]) error {
				tx.Emit("migrated")
				if tx.quiet = true; tx.base.schema >= k.schemaVersion {
					tx.Unchanged()
				}
				return nil
			})
			done <- err
		}()
	}
	for range ids {
		switch e := <-done; {
		case e == nil:
			rewritten++
		case errors.Is(e, ErrNotFound), errors.Is(e, ErrNewerSchema):
		default:
			err = e
		}
	}
	if len(ids) > 0 {
		next = ids[len(ids)-1]
	}
	return rewritten, next, err
}
