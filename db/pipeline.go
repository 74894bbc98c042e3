package db

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"holdfast/gen/dbsqlc"
)

// Pipeline is statements that travel to Postgres together, in one round trip. Its first enters a scope; there is no
// way to make one without. Use it once, from one goroutine.
type Pipeline struct{ batch pgx.Batch }

// NewPipeline begins a pipeline that is a transaction of its own: it commits at its end, or nothing of it happens.
func (d *DB) NewPipeline(s Scope) *Pipeline {
	p := &Pipeline{}
	d.enter(p, s)
	return p
}

func (d *DB) enter(p *Pipeline, s Scope) {
	asked := d.clock.read()
	query(p, dbsqlc.EnterScope, s.params(), func(r *dbsqlc.EnterScopeRow) error {
		d.clock.sample(asked, r.Now)
		return nil
	})
}

// NewJanitor begins a pipeline, a transaction of its own, that acts for no tenant: it sees what is due or has expired.
func (d *DB) NewJanitor() *Pipeline {
	p, asked := &Pipeline{}, d.clock.read()
	query(p, dbsqlc.EnterJanitor, struct{}{}, func(r *dbsqlc.EnterJanitorRow) error {
		d.clock.sample(asked, r.Now)
		return nil
	})
	return p
}

// LockObjects takes the advisory locks, which must be ascending, and answers the database's clock after the last.
func (p *Pipeline) LockObjects(locks []int64, now func(time.Time)) {
	p.batch.Queue(dbsqlc.LockObjects, locks).QueryRow(scanTime(now))
}

// scanTime takes the only column of the only row.
func scanTime(each func(time.Time)) func(pgx.Row) error {
	return func(row pgx.Row) error {
		var t time.Time
		if err := row.Scan(&t); err != nil {
			return err
		}
		each(t)
		return nil
	}
}

// ViewObjects queues dbsqlc.ViewObjects.
func (p *Pipeline) ViewObjects(a dbsqlc.ViewObjectsParams, each func(*dbsqlc.ViewObjectsRow) error) {
	query(p, dbsqlc.ViewObjects, a, each)
}

// LoadEntries queues dbsqlc.LoadEntries.
func (p *Pipeline) LoadEntries(a dbsqlc.LoadEntriesParams, each func(*dbsqlc.LoadEntriesRow) error) {
	query(p, dbsqlc.LoadEntries, a, each)
}

// MeasureEntries queues dbsqlc.MeasureEntries.
func (p *Pipeline) MeasureEntries(a dbsqlc.MeasureEntriesParams, each func(*dbsqlc.MeasureEntriesRow) error) {
	query(p, dbsqlc.MeasureEntries, a, each)
}

// FindOldest queues dbsqlc.FindOldest.
func (p *Pipeline) FindOldest(a dbsqlc.FindOldestParams, each func(*dbsqlc.FindOldestRow) error) {
	query(p, dbsqlc.FindOldest, a, each)
}

// LoadReplies queues dbsqlc.LoadReplies.
func (p *Pipeline) LoadReplies(a dbsqlc.LoadRepliesParams, each func(*dbsqlc.LoadRepliesRow) error) {
	query(p, dbsqlc.LoadReplies, a, each)
}

// ListObjects queues dbsqlc.ListObjects.
func (p *Pipeline) ListObjects(a dbsqlc.ListObjectsParams, each func(*dbsqlc.ListObjectsRow) error) {
	query(p, dbsqlc.ListObjects, a, each)
}

// ListObjectsByTerms queues dbsqlc.ListObjectsByTerms, whose rows are those of ListObjects.
func (p *Pipeline) ListObjectsByTerms(a dbsqlc.ListObjectsByTermsParams, each func(*dbsqlc.ListObjectsRow) error) {
	query(p, dbsqlc.ListObjectsByTerms, a, each)
}

// ListObjectsByAnyTerm queues dbsqlc.ListObjectsByAnyTerm, whose rows are those of ListObjects.
func (p *Pipeline) ListObjectsByAnyTerm(a dbsqlc.ListObjectsByAnyTermParams, each func(*dbsqlc.ListObjectsRow) error) {
	query(p, dbsqlc.ListObjectsByAnyTerm, a, each)
}

// ListEntriesAfter queues dbsqlc.ListEntriesAfter.
func (p *Pipeline) ListEntriesAfter(a dbsqlc.ListEntriesAfterParams, each func(*dbsqlc.ListEntriesAfterRow) error) {
	query(p, dbsqlc.ListEntriesAfter, a, each)
}

// ListEntriesBefore queues dbsqlc.ListEntriesBefore, whose rows are those of ListEntriesAfter.
func (p *Pipeline) ListEntriesBefore(a dbsqlc.ListEntriesBeforeParams, each func(*dbsqlc.ListEntriesAfterRow) error) {
	query(p, dbsqlc.ListEntriesBefore, a, each)
}

// ListOwnEntriesAfter queues dbsqlc.ListOwnEntriesAfter, whose rows are those of ListEntriesAfter.
func (p *Pipeline) ListOwnEntriesAfter(a dbsqlc.ListOwnEntriesAfterParams, each func(*dbsqlc.ListEntriesAfterRow) error) {
	query(p, dbsqlc.ListOwnEntriesAfter, a, each)
}

// ListOwnEntriesBefore queues dbsqlc.ListOwnEntriesBefore, whose rows are those of ListEntriesAfter.
func (p *Pipeline) ListOwnEntriesBefore(a dbsqlc.ListOwnEntriesBeforeParams, each func(*dbsqlc.ListEntriesAfterRow) error) {
	query(p, dbsqlc.ListOwnEntriesBefore, a, each)
}

// ListEvents queues dbsqlc.ListEvents.
func (p *Pipeline) ListEvents(a dbsqlc.ListEventsParams, each func(*dbsqlc.ListEventsRow) error) {
	query(p, dbsqlc.ListEvents, a, each)
}

// ClaimTimers queues dbsqlc.ClaimTimers, for a NewJanitor.
func (p *Pipeline) ClaimTimers(a dbsqlc.ClaimTimersParams, each func(*dbsqlc.ClaimTimersRow) error) {
	query(p, dbsqlc.ClaimTimers, a, each)
}

// ClaimTimersInTurn queues dbsqlc.ClaimTimersInTurn, for a NewJanitor; its rows are those of ClaimTimers.
func (p *Pipeline) ClaimTimersInTurn(a dbsqlc.ClaimTimersInTurnParams, each func(*dbsqlc.ClaimTimersRow) error) {
	query(p, dbsqlc.ClaimTimersInTurn, a, each)
}

// CountTimers queues dbsqlc.CountTimers, for a NewJanitor.
func (p *Pipeline) CountTimers(a dbsqlc.CountTimersParams, each func(*dbsqlc.CountTimersRow) error) {
	query(p, dbsqlc.CountTimers, a, each)
}

// SettleTimer queues dbsqlc.SettleTimer.
func (p *Pipeline) SettleTimer(a *dbsqlc.SettleTimerParams) {
	p.batch.Queue(dbsqlc.SettleTimer, fields(a)...)
}

// DropTimer queues dbsqlc.DropTimer.
func (p *Pipeline) DropTimer(a dbsqlc.DropTimerParams) {
	p.batch.Queue(dbsqlc.DropTimer, fields(&a)...)
}

// ListEventsBack queues dbsqlc.ListEventsBack.
func (p *Pipeline) ListEventsBack(a dbsqlc.ListEventsBackParams, each func(*dbsqlc.ListEventsBackRow) error) {
	query(p, dbsqlc.ListEventsBack, a, each)
}

// ListAllEntries queues dbsqlc.ListAllEntries.
func (p *Pipeline) ListAllEntries(a dbsqlc.ListAllEntriesParams, each func(*dbsqlc.ListAllEntriesRow) error) {
	query(p, dbsqlc.ListAllEntries, a, each)
}

// MeasureObject queues dbsqlc.MeasureObject.
func (p *Pipeline) MeasureObject(a dbsqlc.MeasureObjectParams, each func(*dbsqlc.MeasureObjectRow) error) {
	query(p, dbsqlc.MeasureObject, a, each)
}

// ListByID queues dbsqlc.ListByID.
func (p *Pipeline) ListByID(a dbsqlc.ListByIDParams, each func(*dbsqlc.ListByIDRow) error) {
	query(p, dbsqlc.ListByID, a, each)
}

// ListByActivity queues dbsqlc.ListByActivity, whose rows are those of ListByID.
func (p *Pipeline) ListByActivity(a dbsqlc.ListByActivityParams, each func(*dbsqlc.ListByIDRow) error) {
	query(p, dbsqlc.ListByActivity, a, each)
}

// ListByOwner queues dbsqlc.ListByOwner, whose rows are those of ListByID.
func (p *Pipeline) ListByOwner(a dbsqlc.ListByOwnerParams, each func(*dbsqlc.ListByIDRow) error) {
	query(p, dbsqlc.ListByOwner, a, each)
}

// ListOldSchemas queues dbsqlc.ListOldSchemas.
func (p *Pipeline) ListOldSchemas(a dbsqlc.ListOldSchemasParams, each func(id string) error) {
	query(p, dbsqlc.ListOldSchemas, a, func(r *struct{ ID string }) error { return each(r.ID) })
}

// ListTimersOfObject queues dbsqlc.ListTimersOfObject, whose rows are those of ListTimers.
func (p *Pipeline) ListTimersOfObject(a dbsqlc.ListTimersOfObjectParams, each func(*dbsqlc.ListTimersRow) error) {
	query(p, dbsqlc.ListTimersOfObject, a, each)
}

// ListTimers queues dbsqlc.ListTimers.
func (p *Pipeline) ListTimers(a dbsqlc.ListTimersParams, each func(*dbsqlc.ListTimersRow) error) {
	query(p, dbsqlc.ListTimers, a, each)
}

// Run sends a pipeline that only reads.
func (d *DB) Run(ctx context.Context, p *Pipeline) error { return d.send(ctx, p, false) }

// RunAndCommit sends a pipeline that stores something. A connection lost on the way is ErrOutcomeUnknown.
func (d *DB) RunAndCommit(ctx context.Context, p *Pipeline) error { return d.send(ctx, p, true) }

func (d *DB) send(ctx context.Context, p *Pipeline, commits bool) error {
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return acquireError(err)
	}
	defer conn.Release()
	return translate(conn.SendBatch(ctx, &p.batch).Close(), commits)
}

// acquireError is that of a pool: whatever it was, nothing was sent.
func acquireError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return translate(err, false)
	}
	return errors.Join(ErrUnavailable, err)
}

// Transaction is one that takes two round trips: the first locks and loads, the second stores and commits.
type Transaction struct {
	db   *DB
	conn *pgxpool.Conn
}

// NewTransaction begins the first pipeline of a READ COMMITTED transaction, in which each statement sees what was
// committed before it started: so a load sees what the lock before it waited for.
func (d *DB) NewTransaction(s Scope) *Pipeline {
	return d.newTransaction(s, "BEGIN ISOLATION LEVEL READ COMMITTED")
}

// WaitLonger makes the rest of the transaction wait for locks for longer than a server that was cut off can keep them.
func (p *Pipeline) WaitLonger() { p.batch.Queue("SET LOCAL lock_timeout = '6s'") }

// NewSnapshot begins the first pipeline of a transaction all of whose reads see one moment.
func (d *DB) NewSnapshot(s Scope) *Pipeline {
	return d.newTransaction(s, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
}

func (d *DB) newTransaction(s Scope, begin string) *Pipeline {
	p := &Pipeline{}
	p.batch.Queue(begin)
	d.enter(p, s)
	return p
}

// RunSnapshot sends the only pipeline of a NewSnapshot, in one round trip.
func (d *DB) RunSnapshot(ctx context.Context, p *Pipeline) error {
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return acquireError(err)
	}
	return (&Transaction{db: d, conn: conn}).end(ctx, p, false)
}

// Begin sends the first pipeline. On an error nothing is left open.
func (d *DB) Begin(ctx context.Context, p *Pipeline) (*Transaction, error) {
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return nil, acquireError(err)
	}
	t := &Transaction{db: d, conn: conn}
	if err := conn.SendBatch(ctx, &p.batch).Close(); err != nil {
		t.Rollback(ctx)
		return nil, translate(err, false)
	}
	return t, nil
}

// Read sends a further pipeline of reads; p comes from Next.
func (t *Transaction) Read(ctx context.Context, p *Pipeline) error {
	return translate(t.conn.SendBatch(ctx, &p.batch).Close(), false)
}

// ReadAndEnd sends the last pipeline of a transaction that only reads, and ends it.
func (t *Transaction) ReadAndEnd(ctx context.Context, p *Pipeline) error { return t.end(ctx, p, false) }

// Next begins a further pipeline of the transaction, whose scope is entered already.
func (t *Transaction) Next() *Pipeline { return &Pipeline{} }

// Commit sends the last pipeline and the commit with it, and ends the transaction whatever happens.
func (t *Transaction) Commit(ctx context.Context, p *Pipeline) error { return t.end(ctx, p, true) }

func (t *Transaction) end(ctx context.Context, p *Pipeline, commits bool) error {
	p.batch.Queue("COMMIT")
	if err := t.conn.SendBatch(ctx, &p.batch).Close(); err != nil {
		t.Rollback(ctx)
		return translate(err, commits)
	}
	t.conn.Release()
	t.conn = nil
	return nil
}

// Rollback ends the transaction; after Commit it does nothing.
func (t *Transaction) Rollback(ctx context.Context) {
	if t.conn == nil {
		return
	}
	if t.conn.Conn().PgConn().TxStatus() != 'I' {
		// Where this fails the pool throws the connection away, which rolls back as well.
		_, _ = t.conn.Exec(context.WithoutCancel(ctx), "ROLLBACK")
	}
	t.conn.Release()
	t.conn = nil
}

// query queues one of sqlc's statements: its parameters' fields are its arguments and its row's fields its columns,
// both in order.
func query[P, R any](p *Pipeline, sql string, params P, each func(*R) error) {
	p.batch.Queue(sql, fields(&params)...).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var r R
			if err := rows.Scan(pointers(&r)...); err != nil {
				return err
			}
			if err := each(&r); err != nil {
				return &rowError{err}
			}
		}
		return rows.Err()
	})
}

func fields(structPointer any) []any {
	v := reflect.ValueOf(structPointer).Elem()
	out := make([]any, v.NumField())
	for i := range out {
		out[i] = v.Field(i).Interface()
	}
	return out
}

func pointers(structPointer any) []any {
	v := reflect.ValueOf(structPointer).Elem()
	out := make([]any, v.NumField())
	for i := range out {
		out[i] = v.Field(i).Addr().Interface()
	}
	return out
}
