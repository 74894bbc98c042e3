package linear

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"

	linearv1 "holdfast/gen/holdfast/linear/v1"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// sessionReport reads an agent's session as Linear wrote it, with what a webhook has beside it.
func sessionReport(session *structpb.Struct, around map[string]*structpb.Value, e *envelope) (*partReport[sessionState], error) {
	fields := &storev1.AgentSessionState{}
	w, err := newPartReport(fields, session, rankWebhook, e.sent)
	if err != nil {
		return nil, err
	}
	f := session.GetFields()
	for _, name := range []string{"externalUrls", "externalLinks"} { // Linear renamed it
		if shapeOf(f[name]) != aList {
			continue
		}
		fields.ExternalLinks = nil
		for _, v := range things(f, name) {
			link := v.GetStructValue().GetFields()
			label, _ := cut(text(link, "label"), maxName)
			url, _ := cut(text(link, "url"), maxDescription)
			if len(fields.GetExternalLinks()) < maxListed {
				fields.ExternalLinks = append(fields.ExternalLinks, &storev1.ExternalLink{Label: label, Url: url})
			}
		}
		w.named = append(w.named, "external_links")
	}
	// Only the first webhook of a session has these.
	if shapeOf(around["promptContext"]) == aText {
		fields.PromptContext, fields.PromptContextCut = cut(text(around, "promptContext"), maxBody)
		w.named = append(w.named, "prompt_context", "prompt_context_cut")
	}
	if shapeOf(around["guidance"]) == aList {
		for _, v := range things(around, "guidance") {
			rule := v.GetStructValue().GetFields()
			body, _ := cut(text(rule, "body"), maxDescription)
			origin := inner(rule, "origin")
			if len(fields.GetGuidance()) < maxListed {
				fields.Guidance = append(fields.Guidance, &storev1.Guidance{Body: body, Origin: nameOf(firstThing(origin))})
			}
		}
		w.named = append(w.named, "guidance")
	}
	return w, nil
}

// firstThing is a thing, or the one that it holds.
func firstThing(f map[string]*structpb.Value) map[string]*structpb.Value {
	for _, name := range []string{"team", "organization"} {
		if held := inner(f, name); held != nil {
			return held
		}
	}
	return f
}

// readActivity reads a step of a session; nil: there is none that can be kept.
func readActivity(activity map[string]*structpb.Value) *storev1.AgentActivity {
	id, err := readID(activity)
	if err != nil {
		return nil
	}
	a := &storev1.AgentActivity{ActivityId: id}
	readFields(a, inner(activity, "content"))
	readFields(a, activity)
	return a
}

// activityKey sorts the activities of a session by time.
func activityKey(a *storev1.AgentActivity) string {
	return fmt.Sprintf("%013d-%s", milli(a.GetLinearCreateTime()), a.GetActivityId())
}

// applySession applies a report on a session and a step of it, each by its own time. It returns whether one of them is new.
func applySession(tx *object.Tx[sessionState], w *partReport[sessionState], step *storev1.AgentActivity) bool {
	applied := w.apply(tx)
	// What came with the first webhook is not in later ones, whichever comes first.
	fields := tx.State().ProtoReflect().Descriptor().Fields()
	for _, name := range []protoreflect.Name{"prompt_context", "guidance"} {
		if f := fields.ByName(name); !applied && !tx.State().ProtoReflect().Has(f) && slices.Contains(w.named, string(name)) {
			rpc.Set(tx.State(), w.fields, string(name), string(name)+"_cut")
			applied = true
		}
	}
	if step == nil {
		return applied
	}
	was, _ := tx.Entry(inActivities, activityKey(step)).(*storev1.AgentActivity)
	if was != nil && (proto.Equal(was, step) || was.GetLinearUpdateTime().AsTime().After(step.GetLinearUpdateTime().AsTime())) {
		return applied
	}
	tx.Put(inActivities, activityKey(step), step)
	return true
}

// sessionTerms are what sessions are listed by. One of which only a step is known is in no list.
func sessionTerms(s sessionState) []string {
	if s.GetStamp() == nil || s.GetRemoveTime() != nil {
		return nil
	}
	t := []string{"any"}
	if s.GetIssueId() != "" {
		t = append(t, "issue="+s.GetIssueId())
	}
	return t
}

// takeSession applies a webhook about an agent's session, which may tell of a step too.
func (h *Webhook) takeSession(ctx context.Context, e *envelope) (string, error) {
	session, step := e.fields["agentSession"].GetStructValue(), inner(e.fields, "agentActivity")
	w, err := sessionReport(session, e.fields, e)
	if err != nil {
		return e.unreadable(ctx, h, err), nil
	}
	kept, err := h.keeps(ctx, e.endpoint.State.GetTeamIds(), w.fields.GetIssueId(), inner(session.GetFields(), "issue"))
	if err != nil || !kept {
		return ofAnotherTeam, err
	}
	if text(e.fields, "action") == "remove" {
		w.removal(e.at())
	}
	said := "not newer than what is known"
	_, err = h.c.AgentSessions.Update(ctx, object.ID(w.id), func(tx *object.Tx[sessionState]) error {
		if !applySession(tx, w, readActivity(step)) {
			tx.Unchanged()
			return nil
		}
		said = "applied"
		return nil
	}, object.Upsert(), object.Shared())
	return said, err
}

func presentSession(s object.Snapshot[sessionState]) *linearv1.AgentSession {
	return rpc.Present(&linearv1.AgentSession{}, s.Info, s.State)
}

// ListAgentSessions implements LinearService.
func (m *Manager) ListAgentSessions(ctx context.Context, req *linearv1.ListAgentSessionsRequest) (*linearv1.ListAgentSessionsResponse, error) {
	f := req.GetFilter()
	o := object.ListOptions{Terms: []string{"any"}}
	for _, issue := range f.GetIssueIds() {
		o.AnyTerm = append(o.AnyTerm, "issue="+issue)
	}
	res := &linearv1.ListAgentSessionsResponse{}
	var err error
	res.AgentSessions, res.NextPageToken, err = rpc.ListMatching(ctx, m.o.AgentSessions, req, o, func(s sessionState) bool {
		return len(f.GetStatuses()) == 0 || slices.Contains(f.GetStatuses(), s.GetStatus())
	}, presentSession)
	return res, err
}

// ListAgentActivities implements LinearService.
func (m *Manager) ListAgentActivities(ctx context.Context, req *linearv1.ListAgentActivitiesRequest) (*linearv1.ListAgentActivitiesResponse, error) {
	page, next, err := rpc.ListEntries(ctx, m.o.AgentSessions, object.ID(req.GetAgentSessionId()), inActivities, req, object.EntriesOptions{})
	if err != nil && !errors.Is(err, object.ErrNotFound) {
		return nil, err
	}
	res := &linearv1.ListAgentActivitiesResponse{NextPageToken: next}
	for _, a := range rpc.Values[*storev1.AgentActivity](page.Entries) {
		res.Activities = append(res.Activities, presentActivity(a))
	}
	return res, nil
}

func presentActivity(a *storev1.AgentActivity) *linearv1.AgentActivity {
	shown := &linearv1.AgentActivity{}
	rpc.Copy(shown, a)
	return shown
}
