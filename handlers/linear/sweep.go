package linear

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/object"
)

const (
	// sweepEvery is how often all ids are read, and maxSwept bounds how many things of a list are compared.
	sweepEvery = 24 * time.Hour
	maxSwept   = 200_000
	// maxRereads is how often a page is read again that has an error.
	maxRereads = 3
	// sweptPage is how many ids are read at a time, which is Linear's most.
	sweptPage = 250
)

// sweep finds what was deleted where its webhook was lost, once a day: it reads the ids of all issues, comments and attachments. An issue that
// is not among them is asked for by itself, as one in doubt.
func (r *syncRun) sweep(ctx context.Context) error {
	began, due := r.c.Now(), r.state.GetSweepTime()
	if due != nil && began.Sub(due.AsTime()) < sweepEvery {
		return nil
	}
	if due != nil {
		all, err := r.allIDs(ctx, issues)
		if err != nil {
			return err
		}
		gone, err := sweepKind(ctx, r.c.Issues, all, began, func(s issueState) bool {
			return known(s) && !s.GetRefetch() && !s.GetUnseen() && s.GetEndpointId() == string(r.id) && r.keeps(s.GetTeam())
		})
		if err == nil {
			err = r.askLater(ctx, gone, false)
		}
		for _, sweep := range []func(context.Context, time.Time) error{r.sweepComments, r.sweepAttachments} {
			if err == nil {
				err = sweep(ctx, began)
			}
		}
		if err != nil {
			return err
		}
	}
	return r.move(ctx, func(s *storev1.SyncState) { s.SweepTime = timestamppb.New(began) })
}

func (r *syncRun) sweepComments(ctx context.Context, began time.Time) error {
	return sweepParts(ctx, r, r.c.Comments, comments, began, func() commentState { return &storev1.CommentState{} })
}

func (r *syncRun) sweepAttachments(ctx context.Context, began time.Time) error {
	return sweepParts(ctx, r, r.c.Attachments, attachments, began, func() attachmentState { return &storev1.AttachmentState{} })
}

// keeps reports whether the endpoint keeps a team's issues.
func (r *syncRun) keeps(t *storev1.Team) bool {
	teams := r.endpoint.GetTeamIds()
	return len(teams) == 0 || slices.Contains(teams, t.GetId())
}

// allIDs are the ids of a list; nil: they are too many, or the list is left out.
func (r *syncRun) allIDs(ctx context.Context, list string) (map[string]bool, error) {
	if list != issues && listOf(r.state, list).GetError() != "" {
		return nil, nil
	}
	ids, at, again := map[string]bool{}, place{since: time.UnixMilli(0)}, 0
	for len(ids) < maxSwept {
		p, err := r.api.ids(ctx, list, pages{r.endpoint.GetTeamIds(), sweptPage, map[string]place{list: at}})
		if err != nil || !p.whole && again == maxRereads {
			return nil, err // another day
		}
		if !p.whole { // with an error once; what cannot be known must not be taken for deleted
			again++
			continue
		}
		again = 0
		for _, thing := range p.things {
			ids[text(thing.GetFields(), "id")] = true
		}
		if at.cursor = p.cursor; at.cursor == "" {
			return ids, nil
		}
	}
	return nil, nil
}

// sweepKind are the objects that are not among the ids, though they were there before the ids were read.
func sweepKind[S stamped](
	ctx context.Context, k *object.Kind[S], ids map[string]bool, began time.Time, fits func(S) bool,
) (gone []string, _ error) {
	if ids == nil {
		return nil, nil
	}
	for o := (object.ListOptions{PageSize: object.MaxPageSize}); ; {
		page, err := k.List(ctx, o)
		if err != nil {
			return nil, err
		}
		for _, s := range page.Items {
			if !ids[string(s.ID)] && fits(s.State) && max(s.State.GetStamp().GetSentMs(), s.State.GetStamp().GetTimeMs()) < began.UnixMilli() {
				gone = append(gone, string(s.ID))
			}
		}
		if o.PageToken = page.Next; o.PageToken == "" {
			return gone, nil
		}
	}
}

// sweepParts removes what belongs to issues that the endpoint reads and is not among the ids, once Linear was asked for each.
func sweepParts[S part](ctx context.Context, r *syncRun, k *object.Kind[S], list string, began time.Time, empty func() S) error {
	ids, err := r.allIDs(ctx, list)
	if err != nil {
		return err
	}
	gone, err := sweepKind(ctx, k, ids, began, func(s S) bool { return s.GetRemoveTime() == nil })
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(gone, refetchBatch) {
		var asked []string
		for _, id := range batch {
			s, err := k.View(ctx, object.ID(id))
			if err != nil && !errors.Is(err, object.ErrNotFound) {
				return err
			}
			of, err := r.c.Issues.View(ctx, object.ID(s.State.GetIssueId()))
			if err == nil && of.State.GetEndpointId() == string(r.id) && !of.State.GetUnseen() && r.keeps(of.State.GetTeam()) {
				asked = append(asked, id)
			}
		}
		found, bad, err := r.byID(ctx, list, asked)
		if err != nil {
			return err
		}
		for _, id := range without(asked, found) {
			if slices.Contains(bad, id) {
				continue
			}
			w := &partReport[S]{id: id, fields: empty(), removed: true, stamp: &storev1.IssueStamp{TimeMs: began.UnixMilli(), Rank: rankRemoval, SentMs: began.UnixMilli()}}
			if _, err := w.store(ctx, k); err != nil {
				return err
			}
		}
	}
	return nil
}
