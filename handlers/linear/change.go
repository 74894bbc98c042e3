package linear

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linearv1 "holdfast/gen/holdfast/linear/v1"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/handlers/mask"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

// A change of an issue that is asked for here is kept with the issue until Linear has confirmed it. The issue's own fields are always what
// Linear said last; what callers see is that with the changes on top. So a change is undone by dropping it.
//
//	PENDING -> SENDING -> ACCEPTED -> gone, as Linear's own word on the issue has come
//	   \          \------------------/
//	    \-> REFUSED

// Short names.
const (
	toCreate  = storev1.LocalChangeType_LOCAL_CHANGE_TYPE_CREATE
	toUpdate  = storev1.LocalChangeType_LOCAL_CHANGE_TYPE_UPDATE
	toComment = storev1.LocalChangeType_LOCAL_CHANGE_TYPE_COMMENT
	toRespond = storev1.LocalChangeType_LOCAL_CHANGE_TYPE_RESPOND

	pending  = storev1.LocalChangeStatus_LOCAL_CHANGE_STATUS_PENDING
	sending  = storev1.LocalChangeStatus_LOCAL_CHANGE_STATUS_SENDING
	accepted = storev1.LocalChangeStatus_LOCAL_CHANGE_STATUS_ACCEPTED
	rejected = storev1.LocalChangeStatus_LOCAL_CHANGE_STATUS_REFUSED
)

const (
	// maxChanges is how many changes of an issue may wait for Linear, and maxRefused how many that it refused are shown.
	maxChanges = 32
	maxRefused = 8
)

// fieldsOf are the names of what an edit can say, in the order of their numbers.
func fieldsOf(e proto.Message) (names []string) {
	fields := e.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		names = append(names, string(fields.Get(i).Name()))
	}
	return names
}

// editOf is the edit that would make an issue what it is.
func editOf(s *storev1.IssueState) *storev1.IssueEdit {
	return &storev1.IssueEdit{
		Title: s.GetTitle(), Description: s.GetDescription(), Priority: s.GetPriority(), Estimate: int32(s.GetEstimate()), DueDate: s.GetDueDate(),
		StateId: s.GetState().GetId(), TeamId: s.GetTeam().GetId(), AssigneeId: s.GetAssignee().GetId(), DelegateId: s.GetDelegate().GetId(),
		ProjectId: s.GetProject().GetId(), CycleId: s.GetCycle().GetId(), ParentId: s.GetParent().GetId(),
	}
}

// edit changes an issue as the named fields of an edit say.
func edit(s *storev1.IssueState, e *storev1.IssueEdit, fields []string) {
	ref := func(to **storev1.Ref, id string) {
		if id == "" {
			*to = nil
		} else if (*to).GetId() != id {
			*to = &storev1.Ref{Id: id}
		}
	}
	for _, f := range fields {
		switch f {
		case "title":
			s.Title = e.GetTitle()
		case "description":
			s.Description, s.DescriptionCut = cut(e.GetDescription(), maxDescription)
		case "priority":
			s.Priority = e.GetPriority()
		case "estimate":
			s.Estimate = float64(e.GetEstimate())
		case "due_date":
			s.DueDate = e.GetDueDate()
		case "state_id":
			if s.GetState().GetId() != e.GetStateId() {
				s.State = &storev1.WorkflowState{Id: e.GetStateId()}
			}
		case "team_id":
			if s.GetTeam().GetId() != e.GetTeamId() {
				s.Team = &storev1.Team{Id: e.GetTeamId()}
			}
		case "assignee_id":
			ref(&s.Assignee, e.GetAssigneeId())
		case "delegate_id":
			ref(&s.Delegate, e.GetDelegateId())
		case "project_id":
			ref(&s.Project, e.GetProjectId())
		case "cycle_id":
			ref(&s.Cycle, e.GetCycleId())
		case "parent_id":
			ref(&s.Parent, e.GetParentId())
		case "add_label_ids":
			for _, id := range e.GetAddLabelIds() {
				if !slices.Contains(eachLabel(s, (*storev1.Label).GetId), id) {
					s.Labels = append(s.Labels, &storev1.Label{Id: id})
				}
			}
		case "remove_label_ids":
			s.Labels = slices.DeleteFunc(s.GetLabels(), func(l *storev1.Label) bool { return slices.Contains(e.GetRemoveLabelIds(), l.GetId()) })
		}
	}
}

// holds reports whether an issue is as an edit wants it.
func holds(s *storev1.IssueState, e *storev1.IssueEdit, fields []string) bool {
	edited := proto.CloneOf(s)
	edit(edited, e, fields)
	return proto.Equal(edited, s)
}

// differences leaves in an edit only what would change an issue, and names it.
func differences(s *storev1.IssueState, e *storev1.IssueEdit, asked []string) (out *storev1.IssueEdit, fields []string) {
	for _, f := range asked {
		if f == "description" && s.GetDescriptionCut() || !holds(s, e, []string{f}) {
			fields = append(fields, f)
		}
	}
	out = &storev1.IssueEdit{}
	rpc.Set(out, e, fields...)
	return out, fields
}

// unsettled reports whether Linear still has to do or to confirm a change.
func unsettled(c *storev1.LocalChange) bool { return c.GetStatus() != rejected }

// creating reports whether an issue was asked for here and Linear has not reported it yet.
func creating(s *storev1.IssueState) bool {
	return slices.ContainsFunc(s.GetLocalChanges(), func(c *storev1.LocalChange) bool { return c.GetType() == toCreate && unsettled(c) })
}

// shown is an issue as callers see it: as Linear said, with the changes on top that it has not confirmed. The result shares with s.
func shown(s *storev1.IssueState) *storev1.IssueState {
	if !slices.ContainsFunc(s.GetLocalChanges(), func(c *storev1.LocalChange) bool { return unsettled(c) && c.GetEdit() != nil }) {
		return s
	}
	out := proto.CloneOf(s)
	for _, c := range s.GetLocalChanges() {
		if unsettled(c) && c.GetEdit() != nil {
			edit(out, c.GetEdit(), c.GetFields())
		}
	}
	return out
}

// note adds a change to an issue's.
func note(s *storev1.IssueState, c *storev1.LocalChange) error {
	waiting, old := 0, 0
	for _, c := range s.GetLocalChanges() {
		if unsettled(c) {
			waiting++
		} else {
			old++
		}
	}
	if waiting >= maxChanges {
		return problem.LimitReached("object", "local_changes", maxChanges, "the issue has as many changes that wait for Linear as it may have", 0)
	}
	s.LocalChanges = slices.DeleteFunc(s.GetLocalChanges(), func(c *storev1.LocalChange) bool {
		drop := !unsettled(c) && old >= maxRefused
		if drop {
			old--
		}
		return drop
	})
	s.LocalChanges = append(s.LocalChanges, c)
	return nil
}

// confirm drops the changes that Linear's word on an issue shows to be made, and returns whether there were any. A creation is shown by any
// word; an update by one that is as new as what Linear accepted, or that has its values, unless an earlier change has yet to change them.
// What waits for an issue that was removed is refused.
func confirm(s *storev1.IssueState) (changed bool) {
	if s.GetStamp() == nil {
		return false
	}
	if s.GetRemoveTime() != nil {
		for _, c := range s.GetLocalChanges() {
			if unsettled(c) {
				c.Status, c.Error, changed = rejected, "the issue was removed", true
			}
		}
		return changed
	}
	first := true
	s.LocalChanges = slices.DeleteFunc(s.GetLocalChanges(), func(c *storev1.LocalChange) bool {
		var made bool
		switch {
		case !unsettled(c) || c.GetType() == toComment || c.GetType() == toRespond:
			return false
		case c.GetType() == toCreate:
			made = true
		case c.GetStatus() == accepted && s.GetStamp().GetTimeMs() >= c.GetAcceptedMs():
			made = true
		default:
			made = first && holds(s, c.GetEdit(), c.GetFields())
		}
		first, changed = first && made, changed || made
		return made
	})
	return changed
}

// confirmComment drops the change of an issue that asked for a comment.
func confirmComment(ctx context.Context, k *object.Kind[issueState], issue, comment string) error {
	if issue == "" {
		return nil
	}
	is := func(c *storev1.LocalChange) bool {
		return c.GetChangeId() == comment && c.GetType() == toComment && unsettled(c)
	}
	s, err := k.View(ctx, object.ID(issue))
	if err == nil && slices.ContainsFunc(s.State.GetLocalChanges(), is) {
		_, err = k.Update(ctx, object.ID(issue), func(tx *object.Tx[issueState]) error {
			tx.State().LocalChanges = slices.DeleteFunc(tx.State().GetLocalChanges(), is)
			return nil
		})
	}
	if errors.Is(err, object.ErrNotFound) {
		return nil
	}
	return err
}

// refuse undoes a change. An issue that was to be made is removed.
func refuse(s *storev1.IssueState, c *storev1.LocalChange, why string, now time.Time) {
	c.Status, c.NotBefore = rejected, nil
	c.Error, _ = cut(why, maxError)
	if c.GetType() == toCreate && s.GetStamp() == nil {
		s.RemoveTime = timestamppb.New(now)
		for _, c := range s.GetLocalChanges() {
			if unsettled(c) {
				c.Status, c.Error = rejected, "the issue was not made"
			}
		}
	}
}

// outboxTerm lists the issues with changes that an endpoint's key is to send.
func outboxTerm(endpoint string) string { return "outbox=" + endpoint }

func outboxTerms(s *storev1.IssueState) (terms []string) {
	for _, c := range s.GetLocalChanges() {
		if t := outboxTerm(c.GetEndpointId()); unsettled(c) && !slices.Contains(terms, t) {
			terms = append(terms, t)
		}
	}
	return terms
}

// senderOf is the endpoint whose key sends a change: the one that is named, or that reports the issue, or the only one with a key.
func (m *Manager) senderOf(ctx context.Context, named string, issue object.ID) (string, error) {
	has := func(id string) (bool, error) {
		e, err := m.o.Endpoints.View(ctx, object.ID(id))
		if errors.Is(err, object.ErrNotFound) {
			return false, nil
		}
		return e.State.GetApiKey() != nil, err
	}
	if named != "" {
		ok, err := has(named)
		if err == nil && !ok {
			err = problem.InvalidArgument("endpoint_id", "is no endpoint with an API key; set one with PutEndpoint")
		}
		return named, err
	}
	if issue != "" {
		s, err := m.o.Issues.View(ctx, issue)
		if err != nil {
			return "", err
		}
		if id := s.State.GetEndpointId(); id != "" {
			if ok, err := has(id); ok || err != nil {
				return id, err
			}
		}
	}
	page, err := m.o.Endpoints.List(ctx, object.ListOptions{PageSize: object.MaxPageSize})
	if err != nil {
		return "", err
	}
	var found []string
	for _, e := range page.Items {
		if e.State.GetApiKey() != nil {
			found = append(found, string(e.ID))
		}
	}
	if len(found) != 1 {
		return "", problem.InvalidArgument("endpoint_id", fmt.Sprintf("is empty, and %d endpoints have an API key; name one", len(found)))
	}
	return found[0], nil
}

// sendSoon has an issue's changes sent. They are stored, so an error is none: the sync sends them too.
func (m *Manager) sendSoon(ctx context.Context, id object.ID) {
	if caller, err := identity.From(ctx); err == nil && m.o.SendNow != nil {
		_ = m.o.SendNow(ctx, caller.Tenant, string(id))
	}
}

// abandon has what waits for the key of an endpoint that is gone refused: no sync comes by any more.
func (m *Manager) abandon(ctx context.Context, endpoint string) error {
	o := object.ListOptions{PageSize: object.MaxPageSize, Terms: []string{outboxTerm(endpoint)}}
	for {
		page, err := m.o.Issues.List(ctx, o)
		if err != nil {
			return err
		}
		for _, s := range page.Items {
			m.sendSoon(ctx, s.ID)
		}
		if o.PageToken = page.Next; o.PageToken == "" {
			return nil
		}
	}
}

// newIssue makes the id of a new issue, one that Linear takes. A retry has to find what the first try made: the first try notes it.
func (m *Manager) newIssue(ctx context.Context, req *linearv1.CreateIssueRequest) (object.ID, error) {
	id := uuid.NewString()
	if req.GetRequestId() == "" {
		return object.ID(id), nil
	}
	note, err := object.Do(ctx, m.o.Deliveries, rpc.HashID("new-issue-", req.GetRequestId()), req, func(*object.Tx[deliveryState]) (*linearv1.Issue, error) {
		return &linearv1.Issue{IssueId: id}, nil
	}, object.Upsert())
	return object.ID(note.GetIssueId()), err
}

// CreateIssue implements LinearService.
func (m *Manager) CreateIssue(ctx context.Context, req *linearv1.CreateIssueRequest) (*linearv1.CreateIssueResponse, error) {
	if err := rpc.RequireService(ctx, "write issues"); err != nil {
		return nil, err
	}
	endpoint, noSender := m.senderOf(ctx, req.GetEndpointId(), "")
	id, err := m.newIssue(ctx, req)
	if err != nil {
		return nil, err
	}
	wanted := &storev1.IssueEdit{}
	rpc.Copy(wanted, req.GetEdit())
	res, err := object.Do(ctx, m.o.Issues, id, req, func(tx *object.Tx[issueState]) (*linearv1.CreateIssueResponse, error) {
		if noSender != nil { // a retry asks for no new one
			return nil, noSender
		}
		s := tx.State()
		c := &storev1.LocalChange{ChangeId: string(id), Type: toCreate, Status: pending, EndpointId: endpoint, RequestTime: timestamppb.New(tx.Now())}
		c.Edit, c.Fields = differences(s, wanted, fieldsOf(wanted))
		s.EndpointId = endpoint
		if err := note(s, c); err != nil {
			return nil, err
		}
		return &linearv1.CreateIssueResponse{Issue: PresentIssue(object.Snapshot[issueState]{Info: tx.Info(), State: s})}, nil
	}, object.Create(), object.Shared())
	if err == nil {
		m.sendSoon(ctx, id)
	}
	return res, err
}

// UpdateIssue implements LinearService.
func (m *Manager) UpdateIssue(ctx context.Context, req *linearv1.UpdateIssueRequest) (*linearv1.UpdateIssueResponse, error) {
	if err := rpc.RequireService(ctx, "write issues"); err != nil {
		return nil, err
	}
	id := object.ID(req.GetIssueId())
	endpoint, noSender := m.senderOf(ctx, req.GetEndpointId(), id)
	changeID := uuid.NewString()
	res, err := object.Do(ctx, m.o.Issues, id, req, func(tx *object.Tx[issueState]) (*linearv1.UpdateIssueResponse, error) {
		s := tx.State()
		if !known(s) {
			return nil, object.ErrNotFound
		}
		if noSender != nil {
			return nil, noSender
		}
		c := &storev1.LocalChange{ChangeId: changeID, Type: toUpdate, Status: pending, EndpointId: endpoint, RequestTime: timestamppb.New(tx.Now())}
		var err error
		if c.Edit, c.Fields, err = wantedEdit(shown(s), req.GetEdit(), req.GetUpdateMask()); err != nil {
			return nil, err
		}
		if len(c.GetFields()) == 0 {
			tx.Unchanged()
		} else if err := note(s, c); err != nil {
			return nil, err
		}
		return &linearv1.UpdateIssueResponse{Issue: PresentIssue(object.Snapshot[issueState]{Info: tx.Info(), State: s})}, nil
	})
	if err == nil {
		m.sendSoon(ctx, id)
	}
	return res, err
}

// wantedEdit is what a request changes of an issue as it is shown.
func wantedEdit(s *storev1.IssueState, e *linearv1.IssueEdit, m *fieldmaskpb.FieldMask) (*storev1.IssueEdit, []string, error) {
	was, now := &linearv1.IssueEdit{}, &linearv1.IssueEdit{}
	rpc.Copy(was, editOf(s))
	rpc.Copy(now, editOf(s))
	names := fieldsOf(now)
	if err := mask.Merge(now, e, m, names...); err != nil {
		return nil, nil, err
	}
	for name, value := range map[string]string{"title": now.GetTitle(), "state_id": now.GetStateId(), "team_id": now.GetTeamId()} {
		if value == "" && !sameField(was, now, name) {
			return nil, nil, problem.InvalidArgument("edit."+name, "is empty, but an issue always has one")
		}
	}
	wanted := &storev1.IssueEdit{}
	rpc.Copy(wanted, now)
	asked := slices.DeleteFunc(names, func(name string) bool { return sameField(was, now, name) })
	out, fields := differences(s, wanted, asked)
	return out, fields, nil
}

func sameField(a, b *linearv1.IssueEdit, name string) bool {
	f := a.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(name))
	return a.ProtoReflect().Get(f).Equal(b.ProtoReflect().Get(f))
}

// addChange adds a change to an issue that is there, and has it sent. reply is what the caller is told of the issue then.
func addChange[R proto.Message](
	ctx context.Context, m *Manager, req object.ChangeRequest, issue object.ID, endpoint string, c *storev1.LocalChange, reply func(*linearv1.Issue) R,
) (R, error) {
	c.ChangeId, c.Status = uuid.NewString(), pending
	var noSender error
	c.EndpointId, noSender = m.senderOf(ctx, endpoint, issue)
	res, err := object.Do(ctx, m.o.Issues, issue, req, func(tx *object.Tx[issueState]) (R, error) {
		var none R
		s, added := tx.State(), proto.CloneOf(c)
		added.RequestTime = timestamppb.New(tx.Now())
		switch {
		case !known(s):
			return none, object.ErrNotFound
		case noSender != nil: // a retry asks for no sender
			return none, noSender
		}
		if err := note(s, added); err != nil {
			return none, err
		}
		return reply(PresentIssue(object.Snapshot[issueState]{Info: tx.Info(), State: s})), nil
	})
	if err == nil {
		m.sendSoon(ctx, issue)
	}
	return res, err
}

// CommentOnIssue implements LinearService.
func (m *Manager) CommentOnIssue(ctx context.Context, req *linearv1.CommentOnIssueRequest) (*linearv1.CommentOnIssueResponse, error) {
	if err := rpc.RequireService(ctx, "write issues"); err != nil {
		return nil, err
	}
	c := &storev1.LocalChange{Type: toComment, Body: req.GetBody(), ParentCommentId: req.GetParentCommentId()}
	return addChange(ctx, m, req, object.ID(req.GetIssueId()), req.GetEndpointId(), c, func(is *linearv1.Issue) *linearv1.CommentOnIssueResponse {
		return &linearv1.CommentOnIssueResponse{CommentId: c.GetChangeId(), Issue: is}
	})
}

// RespondToAgentSession implements LinearService.
func (m *Manager) RespondToAgentSession(ctx context.Context, req *linearv1.RespondToAgentSessionRequest) (*linearv1.RespondToAgentSessionResponse, error) {
	if err := rpc.RequireService(ctx, "respond to agent sessions"); err != nil {
		return nil, err
	}
	session, err := m.o.AgentSessions.View(ctx, object.ID(req.GetAgentSessionId()))
	if err != nil {
		return nil, err
	}
	if session.State.GetIssueId() == "" {
		return nil, problem.InvalidArgument("agent_session_id", "is a session without an issue")
	}
	c := &storev1.LocalChange{Type: toRespond, AgentSessionId: req.GetAgentSessionId(), Activity: &storev1.AgentActivity{}}
	rpc.Copy(c.Activity, req.GetActivity())
	return addChange(ctx, m, req, object.ID(session.State.GetIssueId()), req.GetEndpointId(), c, func(is *linearv1.Issue) *linearv1.RespondToAgentSessionResponse {
		return &linearv1.RespondToAgentSessionResponse{ActivityId: c.GetChangeId(), Issue: is}
	})
}
