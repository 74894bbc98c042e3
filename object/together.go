package object

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
)

// Together is several reads, of any kinds, that share one round trip and see one moment. Queue them with ViewIn and
// ListIn, then call Run, which sets what they returned. Use it once, from one goroutine.
type Together struct {
	rt    *Runtime
	err   error
	reads []func(*db.Pipeline, identity.Identity)
	done  []func(identity.Identity, time.Time) error
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
	if err := id.check(); err != nil && r.err == nil {
		r.err = err
	}
	var rec *record
	r.reads = append(r.reads, func(p *db.Pipeline, caller identity.Identity) {
		queueView1(p, k.kind, caller.Tenant, id, func(r *dbsqlc.ViewObjectsRow) (err error) {
			rec, err = k.record(r, 0, 0)
			return err
		})
	})
	r.done = append(r.done, func(caller identity.Identity, now time.Time) error {
		if rec.live(now) && caller.MaySee(rec.owner) {
			k.rt.cache.put(key{caller.Tenant, k.name, id}, rec)
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

// Run reads. It returns ErrInvalid if an id is malformed, or an error of package db.
func (r *Together) Run(ctx context.Context) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	if r.err != nil {
		return r.err
	}
	p := r.rt.db.NewSnapshot(callerScope(caller))
	for _, read := range r.reads {
		read(p, caller)
	}
	if err := r.rt.db.RunSnapshot(ctx, p); err != nil {
		return err
	}
	now := r.rt.db.Now()
	for _, done := range r.done {
		if err := done(caller, now); err != nil {
			return err
		}
	}
	return nil
}
