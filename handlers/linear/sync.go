package linear

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
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
	// PageSize is how many issues are read at a time, up to 250. 0: 50.
	PageSize int
	// Overlap is how far behind the high-water mark a pass begins, since an issue may become visible later than its
	// updatedAt. 0: 5 min.
	Overlap time.Duration
}

// Sync reads issues from Linear. It is safe for concurrent use; of two runs for one endpoint one gives up.
//
// A pass walks through all issues that were updated since the high-water mark, page by page. After each page is stored the
// pass's cursor is, so that one who dies in between reads a page twice and none never. Only after the last page the mark
// moves, to the newest updatedAt that was seen: what changed meanwhile is newer and comes in the next pass. An issue that
// was deleted does not appear: webhooks tell of that.
type Sync struct{ c SyncConfig }

// NewSync makes a Sync.
func NewSync(c SyncConfig) *Sync {
	if c.RetryAfter == nil {
		c.RetryAfter = func(error) (time.Duration, bool) { return 0, false }
	}
	if c.PageSize <= 0 {
		c.PageSize = 50
	}
	c.PageSize = min(c.PageSize, 250)
	if c.Overlap <= 0 {
		c.Overlap = 5 * time.Minute
	}
	return &Sync{c}
}

// refetchBatch is how many stale issues are read at once.
const refetchBatch = 50

// Once brings one endpoint's issues up to date: those that webhooks left in doubt, then all that changed. Where Linear's
// rate limit says so it does nothing and returns nil. What failed is noted in the endpoint's sync, and returned.
func (s *Sync) Once(ctx context.Context, e db.Endpoint) error {
	ctx = identity.With(ctx, identity.Identity{Tenant: e.Tenant, Service: true})
	id := object.ID(e.ID)
	endpoint, err := s.c.Endpoints.View(ctx, id)
	if errors.Is(err, object.ErrNotFound) || err == nil && endpoint.State.GetApiKey() == nil {
		return nil
	}
	if err != nil {
		return err
	}
	key, err := s.c.Open(endpoint.State.GetApiKey().GetSealed(), sealContext(e.Tenant, id))
	if err != nil {
		return err
	}
	run := &syncRun{Sync: s, id: id, api: newLinearAPI(&s.c, string(key))}
	state, err := s.c.Syncs.View(ctx, id)
	switch {
	case errors.Is(err, object.ErrNotFound):
	case err != nil:
		return err
	default:
		if state.State.GetNotBefore().AsTime().After(s.c.Now()) {
			return nil
		}
		run.at(state)
	}
	err = run.refetch(ctx)
	if _, limited := errors.AsType[*rateLimitedError](err); !limited && ctx.Err() == nil {
		err = errors.Join(err, run.pass(ctx)) // issues that cannot be settled do not hold up the others
	}
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

	id      object.ID
	api     linearAPI
	version object.Version // 0: there is no state yet
	state   *storev1.SyncState
}

func (r *syncRun) at(s object.Snapshot[syncState]) { r.version, r.state = s.Version, s.State }

// errOvertaken: another run for the same endpoint has moved the sync.
var errOvertaken = errors.New("another run is at work")

// move changes where the sync stands, unless another run has.
func (r *syncRun) move(ctx context.Context, change func(s *storev1.SyncState, now time.Time)) error {
	opts := []object.UpdateOption{object.IfVersion(r.version)}
	if r.version == 0 {
		opts = []object.UpdateOption{object.Create(), object.Shared()}
	}
	snapshot, err := r.c.Syncs.Update(ctx, r.id, func(tx *object.Tx[syncState]) error {
		change(tx.State(), tx.Now())
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

// beginPass starts a pass where none is under way.
func beginPass(s *storev1.SyncState, overlap time.Duration, now time.Time) {
	if s.GetPass() != nil {
		return
	}
	since := time.UnixMilli(0)
	if s.GetHighWaterTime() != nil {
		since = s.GetHighWaterTime().AsTime().Add(-overlap)
	}
	s.Pass = &storev1.SyncPass{SinceTime: timestamppb.New(since), StartTime: timestamppb.New(now)}
}

// endPage notes a page that is stored, and with the last one ends the pass.
func endPage(s *storev1.SyncState, cursor string, newest time.Time, issues int, now time.Time) {
	p := s.GetPass()
	if newest.After(p.GetNewestTime().AsTime()) {
		p.NewestTime = timestamppb.New(newest)
	}
	p.Cursor = cursor
	p.PageCount++
	s.IssueCount += int32(issues) //nolint:gosec // a page at a time
	s.Error, s.NotBefore = "", nil
	if cursor != "" {
		return
	}
	if p.GetNewestTime() != nil && p.GetNewestTime().AsTime().After(s.GetHighWaterTime().AsTime()) {
		s.HighWaterTime = p.GetNewestTime()
	}
	s.Pass, s.CompleteTime = nil, timestamppb.New(now)
}

// pass reads all pages of the pass that is under way, or of a new one.
func (r *syncRun) pass(ctx context.Context) error {
	err := r.move(ctx, func(s *storev1.SyncState, now time.Time) { beginPass(s, r.c.Overlap, now) })
	for err == nil && r.state.GetPass() != nil {
		err = r.page(ctx)
	}
	return err
}

func (r *syncRun) page(ctx context.Context) error {
	pass := r.state.GetPass()
	p, err := r.api.since(ctx, pass.GetSinceTime().AsTime(), pass.GetCursor(), r.c.PageSize)
	if errors.Is(err, errBadCursor) {
		// It was too old. What the pass has stored is stored; it begins again.
		return r.move(ctx, func(s *storev1.SyncState, _ time.Time) { s.Pass.Cursor = "" })
	}
	if err != nil {
		return err
	}
	newest, err := r.store(ctx, p.issues)
	if err != nil {
		return err
	}
	return r.move(ctx, func(s *storev1.SyncState, now time.Time) { endPage(s, p.cursor, newest, len(p.issues), now) })
}

// store applies what Linear's API answered and tells the newest updatedAt.
func (r *syncRun) store(ctx context.Context, payloads []*structpb.Struct) (newest time.Time, _ error) {
	read := r.c.Now()
	reports := make([]*issueReport, 0, len(payloads))
	for _, payload := range payloads {
		w, err := newIssueReport(payload, "poll", rankRead, read)
		if err != nil {
			r.c.Log.WarnContext(ctx, "linear answered with an issue that cannot be read", "endpoint", string(r.id), "error", err)
			continue
		}
		w.endpoint = string(r.id)
		reports = append(reports, w)
		if t := w.fields.GetLinearUpdateTime().AsTime(); t.After(newest) {
			newest = t
		}
	}
	return newest, r.apply(ctx, reports)
}

func (r *syncRun) apply(ctx context.Context, reports []*issueReport) error {
	return eachIssue(reports, func(w *issueReport) error {
		_, err := r.c.Issues.Update(ctx, object.ID(w.id), func(tx *object.Tx[issueState]) error {
			applyIssue(tx, w)
			return nil
		}, object.Upsert(), object.Shared())
		return err
	})
}

// refetch reads the issues that webhooks left in doubt. One that Linear no longer has is removed.
func (r *syncRun) refetch(ctx context.Context) error {
	for {
		stale, err := r.c.Issues.List(ctx, object.ListOptions{PageSize: refetchBatch, Terms: []string{refetchTerm(string(r.id))}})
		if err != nil || len(stale.Items) == 0 {
			return err
		}
		gone := map[string]bool{}
		ids := make([]string, len(stale.Items))
		for i, s := range stale.Items {
			ids[i] = string(s.ID)
			gone[ids[i]] = true
		}
		read := r.c.Now()
		payloads, err := r.api.byID(ctx, ids)
		if err != nil {
			return err
		}
		for _, p := range payloads {
			delete(gone, text(p.GetFields(), "id"))
		}
		if _, err := r.store(ctx, payloads); err != nil {
			return err
		}
		reports := make([]*issueReport, 0, len(gone))
		for id := range gone {
			reports = append(reports, removedReport(id, string(r.id), read))
		}
		if err := r.apply(ctx, reports); err != nil {
			return err
		}
		// An issue whose webhook is newer than Linear's answer stays in doubt: it is for the next run.
		settled, err := r.anySettled(ctx, ids)
		if err != nil || !settled || len(stale.Items) < refetchBatch {
			return err
		}
	}
}

// anySettled keeps one from asking for the same issues in a circle.
func (r *syncRun) anySettled(ctx context.Context, ids []string) (bool, error) {
	for _, id := range ids {
		s, err := r.c.Issues.View(ctx, object.ID(id))
		if err != nil || !s.State.GetRefetch() {
			return err == nil, err
		}
	}
	return false, nil
}

// removedReport says that Linear no longer has an issue.
func removedReport(id, endpoint string, at time.Time) *issueReport {
	return &issueReport{
		id: id, removed: true, trusted: true, endpoint: endpoint,
		stamp: &storev1.IssueStamp{TimeMs: at.UnixMilli(), Rank: rankRemoval, SentMs: at.UnixMilli()},
	}
}

// note writes down what went wrong, and until when Linear is to be left alone. A rate limit is no failure.
func (r *syncRun) note(ctx context.Context, failed error) error {
	limit, limited := errors.AsType[*rateLimitedError](failed)
	if ctx.Err() != nil {
		return failed
	}
	err := r.move(ctx, func(s *storev1.SyncState, _ time.Time) {
		s.Error = failed.Error()
		if limited {
			s.NotBefore = timestamppb.New(limit.until)
		}
	})
	if limited || errors.Is(err, errOvertaken) {
		return err
	}
	return errors.Join(failed, err)
}
