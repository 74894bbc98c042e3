package linear

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	errorv1 "holdfast/gen/holdfast/error/v1"
	linearv1 "holdfast/gen/holdfast/linear/v1"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// PresentIssue is an issue as callers see it, with the local changes on top.
func PresentIssue(s object.Snapshot[issueState]) *linearv1.Issue {
	return rpc.Present(&linearv1.Issue{}, s.Info, shown(s.State))
}

// PutIssues implements LinearService.
func (m *Manager) PutIssues(ctx context.Context, req *linearv1.PutIssuesRequest) (*linearv1.PutIssuesResponse, error) {
	if err := rpc.RequireService(ctx, "write issues"); err != nil {
		return nil, err
	}
	results := make([]*linearv1.PutIssueResult, len(req.GetIssues()))
	errs := make([]error, len(results))
	var wait sync.WaitGroup
	for i, payload := range req.GetIssues() {
		// When it was read nobody knows; the sent time of 0 makes the same issue the same report however often it comes.
		w, err := newIssueReport(payload, "api", rankRead, time.UnixMilli(0))
		if err == nil && w.stamp.GetGuessed() {
			err = errors.New("has no updatedAt")
		}
		if err != nil {
			results[i] = &linearv1.PutIssueResult{Problem: problem.InvalidArgument(fmt.Sprintf("issues[%d]", i), err.Error()).Problem()}
			continue
		}
		// Each issue remembers the request by itself, with its own part of it. Side by side they share transactions.
		part := &linearv1.PutIssuesRequest{RequestId: req.GetRequestId(), IfVersion: req.IfVersion, Issues: req.GetIssues()[i : i+1]}
		wait.Go(func() {
			results[i], errs[i] = object.Do(ctx, m.o.Issues, object.ID(w.id), part, func(tx *object.Tx[issueState]) (*linearv1.PutIssueResult, error) {
				if tx.State().GetStamp() == nil && !slices.Contains(w.named, "title") {
					return nil, errNoTitle
				}
				applied := applyIssue(tx, w)
				return &linearv1.PutIssueResult{IssueId: w.id, Applied: applied, Version: int64(tx.Info().Version)}, nil
			}, object.Upsert(), object.Shared())
			if errors.Is(errs[i], errNoTitle) {
				results[i], errs[i] = &linearv1.PutIssueResult{IssueId: w.id, Problem: problem.InvalidArgument(fmt.Sprintf("issues[%d]", i), errNoTitle.Error()).Problem()}, nil
			} else if p := problemOf(errs[i]); p != nil {
				results[i], errs[i] = &linearv1.PutIssueResult{IssueId: w.id, Problem: p}, nil
			}
		})
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return &linearv1.PutIssuesResponse{Results: results}, nil
}

// errNoTitle: the first report on an issue is whole.
var errNoTitle = errors.New("has no title, and is not known yet")

// problemOf is what is wrong with one issue of a request; nil: nothing, or it is the whole call that failed.
func problemOf(err error) *errorv1.Problem {
	p := &problem.Error{}
	if e, ok := errors.AsType[*object.VersionMismatchError](err); ok {
		p.Reason = errorv1.Reason_REASON_VERSION_MISMATCH
		p.Detail = &errorv1.Mismatch{CurrentVersion: int64(e.Current), Exists: e.Current != 0, Object: e.Kind + "/" + string(e.ID)}
	} else if e, ok := errors.AsType[*object.TooLargeError](err); ok {
		p.Reason = errorv1.Reason_REASON_SIZE_EXCEEDED
		p.Detail = &errorv1.Limit{Name: e.What, Scope: "object", Limit: int64(e.Limit), Value: int64(e.Size)}
	} else if errors.Is(err, object.ErrRequestReused) {
		p.Reason = errorv1.Reason_REASON_REQUEST_ID_REUSED
	} else {
		return nil
	}
	return p.Problem()
}

// payloadRoom is what a payload takes in an answer at most.
const payloadRoom = maxPayload + 4<<10

// ListIssues implements LinearService.
func (m *Manager) ListIssues(ctx context.Context, req *linearv1.ListIssuesRequest) (*linearv1.ListIssuesResponse, error) {
	o, whole := issueOptions(req.GetFilter(), req.GetOrder())
	if req.GetWithPayload() {
		o.Around = payloadRoom
	}
	res := &linearv1.ListIssuesResponse{}
	var err error
	switch {
	case len(req.GetFilter().GetIssueIds()) > 0:
		err = m.listByID(ctx, req, res, o.Around)
	case whole:
		res.Issues, res.NextPageToken, err = rpc.List(ctx, m.o.Issues, req, o, PresentIssue)
	default:
		fits := func(s issueState) bool { return fitsIssue(req.GetFilter(), s) }
		res.Issues, res.NextPageToken, err = rpc.ListMatching(ctx, m.o.Issues, req, o, fits, PresentIssue)
	}
	if err != nil || !req.GetWithPayload() {
		return res, err
	}
	for _, issue := range res.GetIssues() {
		page, err := m.o.Issues.Entries(ctx, object.ID(issue.GetIssueId()), inRaw, object.EntriesOptions{PageSize: 1})
		if err != nil && !errors.Is(err, object.ErrNotFound) {
			return nil, err
		}
		for _, e := range page.Entries {
			issue.Payload = &linearv1.IssuePayload{}
			rpc.Copy(issue.GetPayload(), e.Value)
		}
	}
	return res, nil
}

// listByID answers with the issues that the filter names, in its order. The cursor is how many of them are done.
func (m *Manager) listByID(ctx context.Context, req *linearv1.ListIssuesRequest, res *linearv1.ListIssuesResponse, around int) error {
	cursor, err := rpc.Cursor(req)
	if err != nil {
		return err
	}
	ids := req.GetFilter().GetIssueIds()
	first, _ := strconv.Atoi(cursor) // 0 for the first page
	last := min(first+object.MaxPageSize, len(ids))
	r, size := m.o.Runtime.Together(), cmp.Or(int(req.GetPageSize()), object.DefaultPageSize)
	viewed := make([]*object.Viewed[issueState], 0, last-first)
	for _, id := range ids[first:last] {
		viewed = append(viewed, object.ViewIn(r, m.o.Issues, object.ID(id)))
	}
	if err := r.Run(ctx); err != nil {
		return err
	}
	var room object.Room
	for i, v := range viewed {
		if !v.Found || v.Snapshot.State.GetStamp() == nil && len(v.Snapshot.State.GetLocalChanges()) == 0 || !fitsIssue(req.GetFilter(), v.Snapshot.State) {
			continue
		}
		issue := PresentIssue(v.Snapshot)
		if len(res.GetIssues()) == size || !room.Fits(rpc.AnswerSize(issue)+around) {
			res.NextPageToken = rpc.Token(req, strconv.Itoa(first+i))
			break
		}
		res.Issues = append(res.Issues, issue)
	}
	return nil
}

// issueOptions choose the index that a filter's list walks, and tell whether that is the whole filter.
func issueOptions(f *linearv1.IssueFilter, order linearv1.IssueOrder) (o object.ListOptions, whole bool) {
	conditions := len(f.GetStateTypes()) + len(f.GetLabelNames()) + len(f.GetText()) + len(f.GetStateIds()) + len(f.GetPriorities())
	if f.GetUpdatedSince() != nil {
		conditions++
	}
	suffix, all := "", "any"
	if f.GetOpen() {
		suffix, all = "/open", "open"
	}
	// The most selective comes first.
	for _, set := range []struct {
		prefix, suffix string
		values         []string
	}{
		{"identifier=", "", f.GetIdentifiers()},
		{"parent=", "", f.GetParentIds()},
		{"cycle=", "", f.GetCycleIds()},
		{"assignee=", suffix, f.GetAssigneeIds()},
		{"delegate=", "", f.GetDelegateIds()},
		{"linear_project=", suffix, f.GetProjectIds()},
		{"label=", "", f.GetLabelIds()},
		{"team=", suffix, f.GetTeamIds()},
	} {
		if len(set.values) > 0 && (o.AnyTerm != nil || set.suffix != suffix || order != linearv1.IssueOrder_ISSUE_ORDER_UNSPECIFIED) {
			conditions++
		}
		if o.AnyTerm != nil {
			continue
		}
		for _, v := range set.values {
			o.AnyTerm = append(o.AnyTerm, set.prefix+v+set.suffix)
		}
	}
	if order != linearv1.IssueOrder_ISSUE_ORDER_UNSPECIFIED {
		return object.ListOptions{Order: orderTerm(order, all)}, conditions == 0
	}
	if o.AnyTerm == nil {
		o.Terms = []string{all}
	}
	return o, conditions == 0
}

// fitsIssue reports whether an issue is one that a filter chooses.
func fitsIssue(f *linearv1.IssueFilter, s issueState) bool {
	s = shown(s)
	among := func(wanted []string, has ...string) bool {
		return len(wanted) == 0 || slices.ContainsFunc(has, func(v string) bool { return slices.Contains(wanted, v) })
	}
	return among(f.GetIdentifiers(), append(s.GetPreviousIdentifiers(), s.GetIdentifier())...) && among(f.GetTeamIds(), s.GetTeam().GetId()) &&
		among(f.GetProjectIds(), s.GetProject().GetId()) && among(f.GetAssigneeIds(), s.GetAssignee().GetId()) &&
		among(f.GetStateTypes(), s.GetState().GetType()) && among(f.GetLabelNames(), eachLabel(s, (*storev1.Label).GetName)...) &&
		among(f.GetStateIds(), s.GetState().GetId()) && among(f.GetLabelIds(), eachLabel(s, (*storev1.Label).GetId)...) &&
		among(f.GetCycleIds(), s.GetCycle().GetId()) && among(f.GetParentIds(), s.GetParent().GetId()) && among(f.GetDelegateIds(), s.GetDelegate().GetId()) &&
		(len(f.GetPriorities()) == 0 || slices.Contains(f.GetPriorities(), s.GetPriority())) &&
		(!f.GetOpen() || open(s)) && !s.GetLinearUpdateTime().AsTime().Before(f.GetUpdatedSince().AsTime()) &&
		(f.GetText() == "" || contains(f.GetText(), s.GetIdentifier(), s.GetTitle(), s.GetDescription()))
}

func eachLabel(s issueState, get func(*storev1.Label) string) (out []string) {
	for _, l := range s.GetLabels() {
		out = append(out, get(l))
	}
	return out
}

// contains reports whether one of the texts has a part in it, whatever the case.
func contains(part string, texts ...string) bool {
	part = strings.ToLower(part)
	return slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(strings.ToLower(s), part) })
}
