package linear

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/object"
)

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
