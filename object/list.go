package object

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/bounds"
)

// ListOptions choose a page of objects.
type ListOptions struct {
	// PageSize: 1 to 200; 0: 50. A page has fewer where more would not fit in one answer; see AnswerBytes.
	PageSize int
	// PageToken is the last page's Next; empty: the first page.
	PageToken string
	// Terms that the objects must all have; see KindConfig.
	Terms []string
	// Around is how many bytes an answer may have for each object beside what is stored of it.
	Around int
	// Since leaves out of a List objects that have not changed since then; zero: none.
	Since time.Time
	// AnyTerm, if set, lists the objects that have any of these terms instead.
	AnyTerm []string
	// Order, if set, lists the objects that have this term of KindConfig.Orders instead, latest first by the time of the term. One that
	// moves meanwhile may be missed.
	Order string
}

// Page sizes of every list.
const (
	DefaultPageSize = 50
	MaxPageSize     = 200
)

// Page is a page of a list.
type Page[S proto.Message] struct {
	Items []Snapshot[S]
	Next  string // empty on the last page
}

type listCursor struct {
	Time  time.Time `json:"t"`
	ID    string    `json:"i"`
	Round round     `json:"r,omitzero"`
}

// round is one walk of a list from its front. An object that is changed while one pages moves to the front, behind the reader, so a list of
// several pages goes on with another round: through what has moved since the last one began. An object that moves moves again after
// activityStep at the earliest. So once two rounds together took less, none was missed by both.
type round struct {
	// Newest is the newest activity when the round began, and Began is when that was.
	Newest time.Time `json:"n"`
	Began  time.Time `json:"b"`
	// Until is the oldest activity that the round goes to, and Before is when the round before it began; zero for the first round.
	Until  time.Time `json:"u,omitzero"`
	Before time.Time `json:"p,omitzero"`
}

// roundSlack is how far a round goes beyond the newest activity of the one before, for changes that were being committed then.
const roundSlack = 5 * time.Second

// begin is the cursor with a round that begins with rows, unless one is under way.
func (c listCursor) begin(rows []dbsqlc.ListObjectsRow, now time.Time) listCursor {
	if c.Round.Began.IsZero() && len(rows) > 0 {
		c.Round.Newest, c.Round.Began = rows[0].ActivityTime, now
	}
	return c
}

// within are the rows that the round goes to.
func (c listCursor) within(rows []dbsqlc.ListObjectsRow) []dbsqlc.ListObjectsRow {
	if i := slices.IndexFunc(rows, func(r dbsqlc.ListObjectsRow) bool { return r.ActivityTime.Before(c.Round.Until) }); i >= 0 {
		return rows[:i]
	}
	return rows
}

// behind is the cursor behind a row.
func (c listCursor) behind(r *dbsqlc.ListObjectsRow) listCursor {
	c.Time, c.ID = r.ActivityTime, r.ObjectID
	return c
}

// nextRound is the token of the round behind the one that has ended; empty: there is none.
func (k *Kind[S]) nextRound(ctx context.Context, caller identity.Identity, o ListOptions, ended listCursor) (string, error) {
	r := ended.Round
	if o.PageToken == "" || o.Order != "" || r.Began.IsZero() || !r.Before.IsZero() && k.Now().Sub(r.Before) < activityStep {
		return "", nil
	}
	newest, err := k.listRows(ctx, caller, o, listCursor{Time: farFuture}, 0)
	if err != nil || len(newest) == 0 || !newest[0].ActivityTime.After(r.Newest) {
		return "", err
	}
	return writeToken(listCursor{Time: farFuture, Round: round{Until: r.Newest.Add(-roundSlack), Before: r.Began}})
}

// List pages through the objects that the caller may see, newest activity first. Activity moves in steps of a minute.
// An object that is changed meanwhile moves to the front: it comes again, or for the first time, behind the last of the others; see round.
// It returns ErrInvalid for a bad token.
func (k *Kind[S]) List(ctx context.Context, o ListOptions) (Page[S], error) {
	caller, from, err := k.listFrom(ctx, o)
	if err != nil {
		return Page[S]{}, err
	}
	size := pageSize(o.PageSize)
	rows, err := k.listRows(ctx, caller, o, from, size)
	if err != nil {
		return Page[S]{}, err
	}
	from = from.begin(rows, k.Now())
	rows = from.within(rows)
	if !o.Since.IsZero() {
		// Activity lags behind by a step at most, and the rows are in its order: behind the first that is too old there is no more.
		if i := slices.IndexFunc(rows, func(r dbsqlc.ListObjectsRow) bool { return r.ActivityTime.Before(o.Since.Add(-activityStep)) }); i >= 0 {
			rows = rows[:i]
		}
	}
	page, err := heldPage(ctx, k, caller, rows, from, size, o.Around)
	if err == nil && page.Next == "" {
		page.Next, err = k.nextRound(ctx, caller, o, from)
	}
	page.Items = slices.DeleteFunc(page.Items, func(s Snapshot[S]) bool { return s.UpdateTime.Before(o.Since) })
	return page, err
}

// matchReads is how often ListMatching reads for one page. Each time it reads up to MaxPageSize objects.
const matchReads = 10

// ListMatching is List for the objects whose states match. It looks at so many objects for a page that a page may have fewer than
// its size, even none, and a Next all the same.
func (k *Kind[S]) ListMatching(ctx context.Context, o ListOptions, match func(S) bool) (page Page[S], _ error) {
	caller, from, err := k.listFrom(ctx, o)
	if err != nil {
		return Page[S]{}, err
	}
	var room Room
	for range matchReads {
		rows, err := k.listRows(ctx, caller, o, from, MaxPageSize)
		if err != nil {
			return Page[S]{}, err
		}
		from = from.begin(rows, k.Now())
		if rows = from.within(rows); len(rows) == 0 {
			page.Next, err = k.nextRound(ctx, caller, o, from)
			return page, err
		}
		read := 0
		for _, r := range rows {
			item, bytes, err := listed(k, caller.Tenant, &r)
			if err != nil {
				return Page[S]{}, err
			}
			read += bytes
			if match(item.State) {
				if len(page.Items) == int(pageSize(o.PageSize)) || !room.Fits(bytes+o.Around) {
					page.Next, err = writeToken(from)
					return page, err
				}
				page.Items = append(page.Items, item)
			}
			from = from.behind(&r)
		}
		if read > bounds.Small {
			done, err := k.rt.large.Hold(ctx, caller)
			if err != nil {
				return Page[S]{}, err
			}
			done()
		}
	}
	page.Next, err = writeToken(from)
	return page, err
}

// listFrom is whose list it is, and where it goes on.
func (k *Kind[S]) listFrom(ctx context.Context, o ListOptions) (caller identity.Identity, from listCursor, err error) {
	if caller, err = identity.From(ctx); err != nil || o.PageToken == "" {
		return caller, listCursor{Time: farFuture, ID: ""}, err
	}
	b, err := base64.RawURLEncoding.DecodeString(o.PageToken)
	if err == nil {
		err = json.Unmarshal(b, &from)
	}
	if err != nil || from.Time.IsZero() || ID(from.ID).Check() != nil && (from.ID != "" || from.Round.Until.IsZero()) {
		return caller, from, fmt.Errorf("%w: page token", ErrInvalid)
	}
	return caller, from, nil
}

// listRows reads the rows of a page, and one more if there is.
func (k *Kind[S]) listRows(ctx context.Context, caller identity.Identity, o ListOptions, from listCursor, size int32) (rows []dbsqlc.ListObjectsRow, _ error) {
	p := k.rt.db.NewPipeline(callerScope(caller))
	queueList(p, k.kind, caller.Tenant, o, from, size, func(r *dbsqlc.ListObjectsRow) error {
		rows = append(rows, *r)
		return nil
	})
	return rows, k.rt.db.Run(ctx, p)
}

// heldPage makes a page that is a whole answer, with so many bytes around each item, and holds it if it is large.
func heldPage[S proto.Message](
	ctx context.Context, k *Kind[S], caller identity.Identity, rows []dbsqlc.ListObjectsRow, from listCursor, size int32,
	around int,
) (Page[S], error) {
	var room Room
	page, err := pageOf(k, caller.Tenant, rows, from, size, around, &room)
	if err == nil && room.taken > bounds.Small {
		var done func()
		if done, err = k.rt.large.Hold(ctx, caller); err == nil {
			done()
		}
	}
	return page, err
}

// pageOf makes a page of up to size rows, as far as they fit with so many bytes around each.
func pageOf[S proto.Message](
	k *Kind[S], t identity.Tenant, rows []dbsqlc.ListObjectsRow, from listCursor, size int32, around int, room *Room,
) (page Page[S], err error) {
	for i, r := range rows {
		item, bytes, err := listed(k, t, &r)
		if err != nil {
			return Page[S]{}, err
		}
		if i == int(size) || !room.Fits(bytes+around) {
			page.Next, err = writeToken(from.behind(&rows[i-1]))
			return page, err
		}
		page.Items = append(page.Items, item)
	}
	return page, nil
}

// queueList queues a page of a list, and one row more.
func queueList(
	p *db.Pipeline, k *kind, t identity.Tenant, o ListOptions, from listCursor, size int32, each func(*dbsqlc.ListObjectsRow) error,
) {
	stored := func(terms []string) []string {
		out := make([]string, len(terms))
		for i, term := range terms {
			out[i] = storedTerm(t, k.name, term)
		}
		return out
	}
	terms := stored(o.Terms)
	if o.Order != "" {
		terms, o.AnyTerm = stored([]string{o.Order}), nil
	}
	switch {
	case len(o.AnyTerm) > 0:
		p.ListObjectsByAnyTerm(dbsqlc.ListObjectsByAnyTermParams{
			TenantID: string(t), Kind: k.name, Terms: stored(o.AnyTerm), BeforeTime: from.Time, BeforeID: from.ID, PageSize: size + 1,
			MostBytes: AnswerBytes,
		}, each)
	case len(terms) > 0:
		p.ListObjectsByTerms(dbsqlc.ListObjectsByTermsParams{
			TenantID: string(t), Kind: k.name, Term: terms[0], OtherTerms: terms[1:],
			BeforeTime: from.Time, BeforeID: from.ID, PageSize: size + 1, MostBytes: AnswerBytes,
		}, each)
	default:
		p.ListObjects(dbsqlc.ListObjectsParams{
			TenantID: string(t), Kind: k.name, BeforeTime: from.Time, BeforeID: from.ID, PageSize: size + 1,
			MostBytes: AnswerBytes,
		}, each)
	}
}

// listed returns a row of a list and the bytes that it takes in an answer. It decodes no state that the cache has.
func listed[S proto.Message](k *Kind[S], t identity.Tenant, r *dbsqlc.ListObjectsRow) (s Snapshot[S], bytes int, err error) {
	id := ID(r.ObjectID)
	rec := k.rt.cache.get(k.at(t, id))
	if rec == nil || rec.state == nil || rec.version != Version(r.Version) || !rec.create.Equal(r.CreateTime) {
		if rec, err = k.record(listedRow(r), 0, 0); err != nil {
			return Snapshot[S]{}, 0, err
		}
	}
	s = Snapshot[S]{Info: rec.info(id), State: rec.state.(S)} //nolint:forcetypeassert // decoded from the kind's prototype
	return s, itemOverhead + max(len(r.State), rec.stateSize), nil
}

// listedRow is the row as record decodes it.
func listedRow(r *dbsqlc.ListObjectsRow) *dbsqlc.ViewObjectsRow {
	return &dbsqlc.ViewObjectsRow{
		OwnerID: r.OwnerID, Version: r.Version, SchemaVersion: r.SchemaVersion, State: r.State, CreateTime: r.CreateTime,
		UpdateTime: r.UpdateTime, ActivityTime: r.ActivityTime, ExpireTime: r.ExpireTime, Timers: r.Timers,
	}
}

var farFuture = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

func pageSize(n int) int32 {
	if n <= 0 {
		return DefaultPageSize
	}
	return int32(min(n, MaxPageSize))
}

func callerScope(i identity.Identity) db.Scope {
	s := db.Scope{Tenant: i.Tenant, Service: i.Service}
	if i.User != "" {
		s.Owners = []identity.User{i.User}
	}
	return s
}
