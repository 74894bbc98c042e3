package linear

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/db"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/identity"
	"holdfast/object"
)

// SyncConfig says how issues are read from Linear. All but RetryAfter, the durations and numbers must be set.
type SyncConfig struct {
	Kinds

	// Open opens what Options.Seal sealed.
	Open func(sealed, context []byte) ([]byte, error)
	// Client reaches Linear at URL. Its transport may refuse what should not be sent now, with an error that RetryAfter
	// knows; nil: there is none.
	Client     *http.Client
	URL        string
	RetryAfter func(error) (time.Duration, bool)
	Now        func() time.Time
	Log        *slog.Logger
	// PageSize is how many things of a list are read at a time. 0: 75, which is also the most: Linear counts what a page may have, and
	// refuses more than 10,000 points.
	PageSize int
	// Overlap is how far behind the high-water mark a pass begins, since an issue may become visible later than its
	// updatedAt. 0: 2 min.
	Overlap time.Duration
}

// Sync reads issues from Linear. It is safe for concurrent use; of two runs for one endpoint one gives up.
//
// A pass walks through all issues, comments and attachments that were updated since the high-water mark of each list, a page of each in one
// request. After the pages are stored the pass's cursors are, so that a process that dies in between reads a page twice and none never.
// Only after the last page of a list its mark moves, to the newest updatedAt that was seen, but not beyond now: what changed meanwhile is
// newer and comes in the next pass. What was deleted does not appear. Webhooks report it, and once a day all ids are read: see sweep.
//
// # Failures
//
// What is wrong with one issue does not hold up the others. A property that has an error is left as it is known. Where an error leaves
// out issues, the page is read again as ids, and then its issues in halves; those that fail alone are skipped, and asked for later, each
// time after twice as long. A list of comments or attachments that Linear refuses is left out, for longer each time, and the issues are
// read. What is wrong with all of Linear, the key or a query ends the run, and makes the next one wait: Linear's rate
// limit as long as it says, all else twice as long each time, up to an hour.
type Sync struct{ c SyncConfig }

// NewSync makes a Sync.
func NewSync(c SyncConfig) *Sync {
	if c.RetryAfter == nil {
		c.RetryAfter = func(error) (time.Duration, bool) { return 0, false }
	}
	if c.PageSize <= 0 || c.PageSize > maxPage {
		c.PageSize = maxPage
	}
	if c.Overlap <= 0 {
		c.Overlap = 2 * time.Minute
	}
	return &Sync{c}
}

const (
	// refetchBatch is how many doubtful issues are read at once.
	refetchBatch = 50
	// firstBackOff is how long a run waits after a failure, and maxBackOff how long after many.
	firstBackOff = 30 * time.Second
	maxBackOff   = time.Hour
	// stepTime is how long after its last step a run is taken for one at work. A request to Linear takes half of it at most.
	stepTime = time.Minute
	// maxSplits is how often a run reads issues again in halves.
	maxSplits = 64
	// maxPage is how many things are read at a time.
	maxPage = 75
)

// Once brings one endpoint's issues up to date: all that changed, and those that reports left in doubt. Until its time has come it does
// nothing and returns nil. What failed is noted in the endpoint's sync, and returned.
func (s *Sync) Once(ctx context.Context, e db.Endpoint) error {
	ctx = identity.With(ctx, identity.Identity{Tenant: e.Tenant, Service: true})
	run := &syncRun{Sync: s, id: object.ID(e.ID), splits: maxSplits}
	endpoint, err := s.c.Endpoints.View(ctx, run.id)
	if errors.Is(err, object.ErrNotFound) || err == nil && endpoint.State.GetApiKey() == nil {
		return nil
	}
	if err != nil {
		return err
	}
	run.endpoint = endpoint.State
	state, err := s.c.Syncs.View(ctx, run.id)
	switch {
	case errors.Is(err, object.ErrNotFound):
	case err != nil:
		return err
	default:
		run.at(state)
		if run.state.GetKeyId() == run.keyID() && run.state.GetNotBefore().AsTime().After(s.c.Now()) {
			return nil
		}
	}
	err = run.all(ctx, e.Tenant)
	if err == nil || errors.Is(err, errOvertaken) {
		return nil
	}
	return run.note(ctx, err)
}

// At returns when the last pass for an endpoint was completed, or the endpoint made where none was, and false where it has no
// API key or is gone, so that nothing is synced.
func (s *Sync) At(ctx context.Context, e db.Endpoint) (time.Time, bool, error) {
	ctx = identity.With(ctx, identity.Identity{Tenant: e.Tenant, Service: true})
	id := object.ID(e.ID)
	endpoint, err := s.c.Endpoints.View(ctx, id)
	if errors.Is(err, object.ErrNotFound) || err == nil && endpoint.State.GetApiKey() == nil {
		return time.Time{}, false, nil
	}
	if err != nil {
		return time.Time{}, false, err
	}
	state, err := s.c.Syncs.View(ctx, id)
	if errors.Is(err, object.ErrNotFound) || err == nil && state.State.GetCompleteTime() == nil {
		return endpoint.CreateTime, true, nil
	}
	if err != nil {
		return time.Time{}, false, err
	}
	return state.State.GetCompleteTime().AsTime(), true, nil
}

// syncRun is one run for one endpoint, and where its sync stands.
type syncRun struct {
	*Sync

	id       object.ID
	endpoint *storev1.EndpointState
	api      linearAPI
	version  object.Version // 0: there is no state yet
	state    *storev1.SyncState
	// up: Linear has answered.
	up bool
	// splits is how often issues may still be read again in halves.
	splits int
}

func (r *syncRun) keyID() string { return r.endpoint.GetApiKey().GetSecretId() }

// all is the run.
func (r *syncRun) all(ctx context.Context, t identity.Tenant) error {
	key, err := r.c.Open(r.endpoint.GetApiKey().GetSealed(), sealContext(t, r.id))
	if err != nil {
		r.c.Log.ErrorContext(ctx, "an API key cannot be opened: is its seal key gone?", "endpoint", string(r.id), "error", err)
		return &apiError{said: "the API key cannot be opened: put it in again", kind: linearRefused}
	}
	r.api = newLinearAPI(&r.c, string(key))
	err = r.pass(ctx)
	if _, limited := errors.AsType[*rateLimitedError](err); limited || errors.Is(err, errOvertaken) || ctx.Err() != nil {
		return err
	}
	// A page that cannot be read does not hold up the issues in doubt.
	if other := r.refetch(ctx); other != nil && (err == nil || other.Error() != err.Error()) {
		err = errors.Join(err, other)
	}
	if err == nil {
		err = r.sweep(ctx)
	}
	return err
}

func (r *syncRun) at(s object.Snapshot[syncState]) { r.version, r.state = s.Version, s.State }

// errOvertaken: another run for the same endpoint has moved the sync.
var errOvertaken = errors.New("another run is at work")

// move changes where the sync stands, unless another run has.
func (r *syncRun) move(ctx context.Context, change func(s *storev1.SyncState)) error {
	opts := []object.UpdateOption{object.IfVersion(r.version)}
	if r.version == 0 {
		opts = []object.UpdateOption{object.Create(), object.Shared()}
	}
	snapshot, err := r.c.Syncs.Update(ctx, r.id, func(tx *object.Tx[syncState]) error {
		change(tx.State())
		return nil
	}, opts...)
	if _, mismatch := errors.AsType[*object.VersionMismatchError](err); mismatch || errors.Is(err, object.ErrExists) {
		return errOvertaken
	}
	if err == nil {
		r.at(snapshot)
	}
	return err
}

// begin notes that a run is at work, and starts a pass where none is under way. A pass for other teams is given up, and where a team was
// added all issues are read again.
func (r *syncRun) begin(s *storev1.SyncState) {
	now, was, teams := r.c.Now(), s.GetTeamIds(), r.endpoint.GetTeamIds()
	added := func(t string) bool { return !slices.Contains(was, t) }
	if len(was) > 0 && (len(teams) == 0 || slices.ContainsFunc(teams, added)) {
		s.HighWaterTime = nil
		for _, l := range s.GetLists() {
			l.HighWaterTime = nil
		}
	}
	another := s.GetKeyId() != r.keyID()
	if !slices.Equal(teams, was) {
		s.Pass, s.TeamIds = nil, teams
		for _, l := range s.GetLists() {
			l.Pass = nil
		}
	}
	s.RunUntilTime, s.KeyId, s.NotBefore, s.Limited = timestamppb.New(now.Add(stepTime)), r.keyID(), nil, false
	s.Pass = r.beginPass(s.GetPass(), s.GetHighWaterTime())
	for _, name := range []string{comments, attachments} {
		if l := listOf(s, name); another || !l.GetNotBefore().AsTime().After(now) {
			l.Pass = r.beginPass(l.GetPass(), l.GetHighWaterTime())
		}
	}
}

// beginPass is the pass that is under way, or a new one since a mark.
func (r *syncRun) beginPass(pass *storev1.SyncPass, mark *timestamppb.Timestamp) *storev1.SyncPass {
	if pass != nil {
		return pass
	}
	since := time.UnixMilli(0)
	if mark != nil {
		since = mark.AsTime().Add(-r.c.Overlap)
	}
	return &storev1.SyncPass{SinceTime: timestamppb.New(since), StartTime: timestamppb.New(r.c.Now())}
}

// listOf is where a list beside the issues stands.
func listOf(s *storev1.SyncState, name string) *storev1.SyncList {
	for _, l := range s.GetLists() {
		if l.GetName() == name {
			return l
		}
	}
	l := &storev1.SyncList{Name: name}
	s.Lists = append(s.Lists, l)
	return l
}

// passes are those under way, by list.
func passes(s *storev1.SyncState) map[string]*storev1.SyncPass {
	under := map[string]*storev1.SyncPass{}
	if s.GetPass() != nil {
		under[issues] = s.GetPass()
	}
	for _, l := range s.GetLists() {
		if l.GetPass() != nil {
			under[l.GetName()] = l.GetPass()
		}
	}
	return under
}

// stored is what became of a page.
type stored struct {
	cursor string
	newest time.Time
	things int
}

// endPages notes pages that are stored. The last one of a list moves its mark, and that of the last list ends the pass.
func (r *syncRun) endPages(s *storev1.SyncState, done map[string]stored) {
	now := r.c.Now()
	for name, of := range done {
		p := passes(s)[name]
		if of.newest.After(now) {
			of.newest = now
		}
		if of.newest.After(p.GetNewestTime().AsTime()) {
			p.NewestTime = timestamppb.New(of.newest)
		}
		p.Cursor = of.cursor
		p.PageCount++
		if p.GetPageCount()&(p.GetPageCount()-1) == 0 {
			p.MetCursor = of.cursor // Brent's algorithm: a circle is found before the pass has gone round it three times
		}
		ended, mark := of.cursor == "", p.GetNewestTime()
		switch name {
		case issues:
			s.IssueCount += int32(of.things) //nolint:gosec // a page at a time
			if ended {
				s.HighWaterTime, s.Pass = later(s.GetHighWaterTime(), mark), nil
			}
		default:
			l := listOf(s, name)
			l.Error, l.FailureCount, l.NotBefore = "", 0, nil
			if ended {
				l.HighWaterTime, l.Pass = later(l.GetHighWaterTime(), mark), nil
			}
		}
	}
	s.Error, s.FailureCount, s.RunUntilTime = "", 0, timestamppb.New(now.Add(stepTime))
	if len(passes(s)) == 0 {
		s.CompleteTime, s.RunUntilTime = timestamppb.New(now), nil
	}
}

func later(a, b *timestamppb.Timestamp) *timestamppb.Timestamp {
	if b != nil && b.AsTime().After(a.AsTime()) {
		return b
	}
	return a
}

// note writes down what went wrong, and until when Linear is to be left alone. A rate limit is no failure.
func (r *syncRun) note(ctx context.Context, failed error) error {
	limit, limited := errors.AsType[*rateLimitedError](failed)
	if ctx.Err() != nil {
		return failed
	}
	err := r.move(ctx, func(s *storev1.SyncState) {
		s.Error, _ = cut(failed.Error(), maxError)
		s.Limited, s.RunUntilTime, s.KeyId = limited, nil, r.keyID()
		if limited {
			s.NotBefore = timestamppb.New(limit.until)
			return
		}
		s.FailureCount++
		s.NotBefore = timestamppb.New(r.c.Now().Add(backOff(s.GetFailureCount())))
	})
	if limited || errors.Is(err, errOvertaken) {
		return err
	}
	return errors.Join(failed, err)
}

// maxError is how many characters of an error are kept.
const maxError = 512
