package linear

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/object"
)

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
