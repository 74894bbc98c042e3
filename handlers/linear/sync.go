package linear

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
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

// pass reads all pages of the pass that is under way, or of a new one.
func (r *syncRun) pass(ctx context.Context) error {
	err := r.move(ctx, r.begin)
	for err == nil && len(passes(r.state)) > 0 {
		if err = r.stillWanted(ctx); err == nil {
			err = r.pages(ctx, slices.Sorted(maps.Keys(passes(r.state)))...)
		}
	}
	return err
}

// stillWanted returns errOvertaken where the endpoint or its key has gone, so that nothing more is asked.
func (r *syncRun) stillWanted(ctx context.Context) error {
	e, err := r.c.Endpoints.View(ctx, r.id)
	if errors.Is(err, object.ErrNotFound) || err == nil && e.State.GetApiKey().GetSecretId() != r.keyID() {
		return errors.Join(errOvertaken, r.move(ctx, func(s *storev1.SyncState) { s.RunUntilTime = nil }))
	}
	return err
}

// pages reads the next page of each list. What one list fails by does not hold up the others.
func (r *syncRun) pages(ctx context.Context, lists ...string) error {
	of := pages{r.endpoint.GetTeamIds(), r.c.PageSize, map[string]place{}}
	under := passes(r.state)
	for _, list := range lists {
		of.from[list] = place{under[list].GetSinceTime().AsTime(), under[list].GetCursor()}
	}
	got, err := r.api.changes(ctx, of)
	if len(got) > 0 {
		r.up = true
	}
	var skipped []string
	for list, p := range got {
		if !p.whole {
			var bad []string
			if p, bad, err = r.pieces(ctx, list, of, p, nil); err != nil {
				return err
			}
			got[list], skipped = p, append(skipped, bad...)
		}
	}
	left := missing(of.from, got)
	if len(left) == 0 || err == nil {
		return r.keep(ctx, got, skipped)
	}
	if kept := r.keep(ctx, got, skipped); kept != nil {
		return kept
	}
	if errors.Is(err, errBadCursor) {
		return r.restart(ctx, left)
	}
	failed, ok := errors.AsType[*apiError](err)
	if !ok {
		return err
	}
	if len(got) > 0 && failed.list == "" && !slices.Contains(left, issues) {
		for _, list := range left { // it is answered as if there were none
			if err := r.leaveOut(ctx, list, failed); err != nil {
				return err
			}
		}
		return nil
	}
	// The list to blame is the one that the error names, or the issues, or the only one that is left.
	culprit := failed.list
	if !slices.Contains(left, culprit) {
		culprit = left[len(left)-1]
		if slices.Contains(left, issues) {
			culprit = issues
		}
	}
	named := failed.list == culprit || len(got) > 0 || len(lists) == 1
	switch {
	case failed.kind == badThings, failed.kind == linearDown && len(got) == 0 && r.state.GetFailureCount() >= 2:
		p, bad, other := r.pieces(ctx, culprit, of, page{}, err)
		if other != nil && culprit != issues {
			err = r.leaveOut(ctx, culprit, other)
		} else if err = other; err == nil {
			err = r.keep(ctx, map[string]page{culprit: p}, bad)
		}
	case culprit != issues && named:
		err = r.leaveOut(ctx, culprit, err)
	}
	if rest := slices.DeleteFunc(left, func(l string) bool { return l == culprit }); err == nil && len(rest) > 0 {
		return r.pages(ctx, rest...)
	}
	return err
}

// keep stores pages, and notes that they are.
func (r *syncRun) keep(ctx context.Context, got map[string]page, skipped []string) error {
	if len(got) == 0 {
		return nil
	}
	r.up = true
	done := map[string]stored{}
	for list, p := range got {
		pass := passes(r.state)[list]
		if p.cursor != "" && p.cursor == pass.GetMetCursor() {
			err := &apiError{said: "linear's pages go round in a circle", kind: linearRefused}
			return errors.Join(err, r.move(ctx, func(s *storev1.SyncState) { s.Pass, s.Lists = nil, nil }))
		}
		newest, err := r.store(ctx, list, p.things)
		if err != nil {
			return err
		}
		done[list] = stored{p.cursor, newest, len(p.things)}
	}
	if err := r.skip(ctx, skipped, "linear does not answer it"); err != nil {
		return err
	}
	return r.move(ctx, func(s *storev1.SyncState) { r.endPages(s, done) })
}

// restart begins passes again whose cursors were too old. What they have stored is stored. If that does not help the run waits.
func (r *syncRun) restart(ctx context.Context, lists []string) error {
	var err error
	moved := r.move(ctx, func(s *storev1.SyncState) {
		err = nil
		for _, list := range lists {
			p := passes(s)[list]
			if p.GetRestarted() {
				err = &apiError{said: "linear does not take its own cursors", kind: linearRefused}
			}
			p.Cursor, p.MetCursor, p.Restarted = "", "", true
		}
	})
	return errors.Join(err, moved)
}

// leaveOut leaves out a list that Linear does not answer, for longer each time.
func (r *syncRun) leaveOut(ctx context.Context, list string, failed error) error {
	if _, ok := errors.AsType[*apiError](failed); !ok {
		return failed
	}
	r.c.Log.WarnContext(ctx, "a list of linear is left out", "endpoint", string(r.id), "list", list, "reason", failed.Error())
	return r.move(ctx, func(s *storev1.SyncState) {
		l := listOf(s, list)
		l.Error, _ = cut(failed.Error(), maxError)
		l.FailureCount++
		l.NotBefore, l.Pass = timestamppb.New(r.c.Now().Add(backOff(l.GetFailureCount()))), nil
		if len(passes(s)) == 0 {
			s.CompleteTime, s.RunUntilTime = timestamppb.New(r.c.Now()), nil
		}
	})
}

// backOff is how long to wait after so many failures in a row.
func backOff(failures int32) time.Duration {
	return jittered(min(firstBackOff<<min(failures-1, 10), maxBackOff))
}

// pieces reads a page that Linear does not answer as a whole: the ids of its things, and then those that p does not have. It returns the
// ids of those that Linear does not answer, and failed where it answers no ids either.
func (r *syncRun) pieces(ctx context.Context, list string, of pages, p page, failed error) (_ page, skipped []string, _ error) {
	ids, err := r.api.ids(ctx, list, of)
	if _, limited := errors.AsType[*rateLimitedError](err); limited {
		return p, nil, err
	}
	if err != nil {
		return p, nil, cmp.Or(failed, err)
	}
	r.up = true
	var blamed []int
	if e, ok := errors.AsType[*apiError](failed); ok {
		blamed = e.nodes
	}
	var all []string
	for _, thing := range ids.things {
		all = append(all, text(thing.GetFields(), "id"))
	}
	missing := without(all, p.things)
	for _, at := range blamed {
		if at < len(all) && slices.Contains(missing, all[at]) {
			skipped = append(skipped, all[at])
		}
	}
	found, bad, err := r.byID(ctx, list, slices.DeleteFunc(missing, func(id string) bool { return slices.Contains(skipped, id) }))
	return page{things: append(p.things, found...), cursor: ids.cursor, whole: true}, append(skipped, bad...), err
}

// byID reads things of a list, in halves where one of them may keep Linear from answering. bad are those that it does not answer; those that it
// does not have, or that the key does not see, are in neither.
func (r *syncRun) byID(ctx context.Context, list string, ids []string) (found []*structpb.Struct, bad []string, _ error) {
	if len(ids) == 0 {
		return nil, nil, nil
	}
	found, whole, err := r.api.byID(ctx, list, ids)
	if err == nil {
		r.up = true
		if !whole {
			bad = without(ids, found)
		}
		return found, bad, nil
	}
	e, ok := errors.AsType[*apiError](err)
	if !ok || e.kind == linearRefused || e.kind == linearDown && !r.up {
		return nil, nil, err
	}
	if len(ids) == 1 {
		return nil, ids, nil
	}
	if r.splits == 0 {
		return nil, nil, err
	}
	r.splits--
	for _, half := range [][]string{ids[:len(ids)/2], ids[len(ids)/2:]} {
		f, b, err := r.byID(ctx, list, half)
		if err != nil {
			return nil, nil, err
		}
		found, bad = append(found, f...), append(bad, b...)
	}
	return found, bad, nil
}

// without are the ids that things do not have.
func without(ids []string, things []*structpb.Struct) []string {
	have := map[string]bool{}
	for _, i := range things {
		have[text(i.GetFields(), "id")] = true
	}
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return have[id] })
}

// store applies what Linear's API answered of a list and returns the newest updatedAt that can be right. What cannot be kept is skipped.
func (r *syncRun) store(ctx context.Context, list string, payloads []*structpb.Struct) (newest time.Time, _ error) {
	switch list {
	case comments:
		return storeParts(ctx, r, r.c.Comments, payloads, func() commentState { return &storev1.CommentState{} })
	case attachments:
		return storeParts(ctx, r, r.c.Attachments, payloads, func() attachmentState { return &storev1.AttachmentState{} })
	}
	return r.storeIssues(ctx, payloads)
}

// storeParts is store for what belongs to issues, of the teams that the endpoint keeps.
func storeParts[S part](
	ctx context.Context, r *syncRun, k *object.Kind[S], payloads []*structpb.Struct, empty func() S,
) (newest time.Time, _ error) {
	read := r.c.Now()
	var reports []*partReport[S]
	for _, payload := range payloads {
		w, err := newPartReport(empty(), payload, rankRead, read)
		if err != nil {
			err = r.skipped(ctx, 1, "it "+err.Error())
			if err != nil {
				return newest, err
			}
			continue
		}
		if t := w.fields.GetLinearUpdateTime().AsTime(); t.After(newest) && !t.After(read.Add(futureSkew)) {
			newest = t
		}
		team := reference(inner(payload.GetFields(), "issue"), "team")
		if teams := r.endpoint.GetTeamIds(); w.fields.GetIssueId() != "" && (len(teams) == 0 || slices.Contains(teams, team.GetId())) {
			reports = append(reports, w)
		}
	}
	return newest, applyEach(ctx, r, reports, func(w *partReport[S]) error {
		_, err := w.store(ctx, k)
		return err
	})
}

func (r *syncRun) storeIssues(ctx context.Context, payloads []*structpb.Struct) (newest time.Time, _ error) {
	read := r.c.Now()
	reports := make([]*issueReport, 0, len(payloads))
	for _, payload := range payloads {
		w, err := newIssueReport(payload, "poll", rankRead, read)
		if err != nil {
			if err := r.skip(ctx, []string{text(payload.GetFields(), "id")}, "it "+err.Error()); err != nil {
				return newest, err
			}
			continue
		}
		w.endpoint = string(r.id)
		reports = append(reports, w)
		if t := w.fields.GetLinearUpdateTime().AsTime(); t.After(newest) && !t.After(read.Add(futureSkew)) {
			newest = t
		}
	}
	return newest, r.apply(ctx, reports)
}

func (r *syncRun) apply(ctx context.Context, reports []*issueReport) error {
	return applyEach(ctx, r, reports, func(w *issueReport) error {
		_, err := r.c.Issues.Update(ctx, object.ID(w.id), func(tx *object.Tx[issueState]) error {
			applyIssue(tx, w)
			return nil
		}, object.Upsert(), object.Shared())
		return err
	})
}

// applyEach applies reports side by side, so that they share transactions. What is too large is skipped.
func applyEach[R any](ctx context.Context, r *syncRun, reports []R, apply func(R) error) error {
	var wait sync.WaitGroup
	errs := make([]error, len(reports))
	for i, w := range reports {
		wait.Go(func() { errs[i] = apply(w) })
	}
	wait.Wait()
	for i, err := range errs {
		if e, ok := errors.AsType[*object.TooLargeError](err); ok {
			errs[i] = r.skipped(ctx, 1, e.Error())
		}
	}
	return errors.Join(errs...)
}

// skip notes issues that cannot be had, so that Linear is asked for them later.
func (r *syncRun) skip(ctx context.Context, ids []string, why string) error {
	if len(ids) == 0 {
		return nil
	}
	r.c.Log.WarnContext(ctx, "issues of linear are skipped", "endpoint", string(r.id), "ids", ids, "reason", why)
	return errors.Join(r.askLater(ctx, ids, false), r.skipped(ctx, len(ids), why))
}

func (r *syncRun) skipped(ctx context.Context, n int, why string) error {
	return r.move(ctx, func(s *storev1.SyncState) {
		s.SkippedCount += int32(n) //nolint:gosec // a page at a time
		s.SkipReason = why
	})
}

func (r *syncRun) askLater(ctx context.Context, ids []string, unseen bool) error {
	for _, id := range ids {
		if !isID(id) {
			continue
		}
		_, err := r.c.Issues.Update(ctx, object.ID(id), func(tx *object.Tx[issueState]) error {
			s := tx.State()
			if s.GetRefetch() && s.GetRefetchTime().AsTime().After(r.c.Now()) {
				tx.Unchanged() // it waits already
				return nil
			}
			s.Unseen = s.GetUnseen() || unseen
			askLater(s, string(r.id), r.c.Now())
			return nil
		}, object.Upsert(), object.Shared())
		if err != nil {
			return err
		}
	}
	return nil
}

// refetch reads the issues that reports left in doubt, once their time has come. It takes those of an endpoint that has gone, too.
func (r *syncRun) refetch(ctx context.Context) error {
	ours := map[string]bool{string(r.id): true, "": true}
	for token := ""; ; {
		stale, err := r.c.Issues.List(ctx, object.ListOptions{PageSize: refetchBatch, PageToken: token, Terms: []string{refetchTerm}})
		if err != nil {
			return err
		}
		teams := map[string]string{}
		for _, s := range stale.Items {
			e := s.State.GetEndpointId()
			if _, known := ours[e]; !known {
				_, err := r.c.Endpoints.View(ctx, object.ID(e))
				if err != nil && !errors.Is(err, object.ErrNotFound) {
					return err
				}
				ours[e] = err != nil
			}
			if ours[e] && !s.State.GetRefetchTime().AsTime().After(r.c.Now()) {
				teams[string(s.ID)] = s.State.GetTeam().GetId()
			}
		}
		if err := r.settle(ctx, teams); err != nil {
			return err
		}
		if token = stale.Next; token == "" {
			return nil
		}
	}
}

// settle reads issues, each with the team that it is known to be of. One that Linear does not answer is removed where the key sees the
// team. Otherwise the key may just not see the issue: it stays as it is.
func (r *syncRun) settle(ctx context.Context, teams map[string]string) error {
	ids, read := slices.Sorted(maps.Keys(teams)), r.c.Now()
	found, bad, err := r.byID(ctx, issues, ids)
	if err != nil {
		return err
	}
	if _, err := r.store(ctx, issues, found); err != nil {
		return err
	}
	absent := slices.DeleteFunc(without(ids, found), func(id string) bool { return slices.Contains(bad, id) })
	seen, err := r.visible(ctx, absent, teams)
	if err != nil {
		return err
	}
	var gone []*issueReport
	var unseen, doubtful []string
	for _, id := range absent {
		if seen[teams[id]] {
			gone = append(gone, removedReport(id, string(r.id), read))
		} else {
			unseen = append(unseen, id)
		}
	}
	for _, p := range found { // an issue whose webhook is newer than the answer stays in doubt
		id := text(p.GetFields(), "id")
		if s, err := r.c.Issues.View(ctx, object.ID(id)); err == nil && s.State.GetRefetch() {
			doubtful = append(doubtful, id)
		}
	}
	return errors.Join(r.apply(ctx, gone), r.skip(ctx, bad, "linear does not answer it"), r.askLater(ctx, unseen, true), r.askLater(ctx, doubtful, false))
}

// visible are the teams of issues that the key sees; none where Linear does not answer that.
func (r *syncRun) visible(ctx context.Context, ids []string, teams map[string]string) (map[string]bool, error) {
	var of []string
	for _, id := range ids {
		if t := teams[id]; t != "" && !slices.Contains(of, t) {
			of = append(of, t)
		}
	}
	if len(of) == 0 {
		return map[string]bool{}, nil
	}
	seen, err := r.api.teams(ctx, of)
	if _, ok := errors.AsType[*apiError](err); ok {
		return map[string]bool{}, nil
	}
	return seen, err
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
