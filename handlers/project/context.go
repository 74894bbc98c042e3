package project

import (
	"context"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	objectv1 "holdfast/gen/holdfast/object/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
	"holdfast/identity"
	"holdfast/object"
)

// contextLimit is how many tasks and issues come along where the request does not say.
const contextLimit = 20

// contextBytes is how much of the answer tasks may take, and issues as well: the rest is for the project, what the user
// prefers and the last summary, each of which may be a whole state.
const contextBytes = object.AnswerBytes / 4

// contextAPIs is how many APIs a context shows: those that were called last.
const contextAPIs = 16

// GetProjectContext implements ProjectService. It is one round trip: which project is active, and which teams' issues are
// its, the database finds out while it reads.
func (m *Manager) GetProjectContext(
	ctx context.Context, req *projectv1.GetProjectContextRequest,
) (*projectv1.GetProjectContextResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	found := object.Found{Given: req.GetProjectId()}
	if caller.User != "" {
		own := preferencesID(caller.User)
		found.Fields = append(found.Fields, object.FieldOf(m.o.Preferences, own, "active_project_id"),
			object.FieldOf(m.o.Preferences, own, "preferences.default_project_id"))
	}
	found.Fields = append(found.Fields, object.FieldOf(m.o.Preferences, tenantDefaults, "preferences.default_project_id"))

	r := m.o.Runtime.Together()
	own, defaults := m.viewPreferences(r, caller)
	project := object.ViewFoundIn(r, m.o.Projects, found)
	tasks := object.ListFoundIn(r, m.o.Tasks, object.FoundList{
		Found: found, Before: "project=", After: "/open", Otherwise: "open", Limit: limit(req.GetTaskLimit()), Bytes: contextBytes,
	})
	issues := object.ListFoundIn(r, m.o.Issues, object.FoundList{
		Found: found, After: "/open", Limit: limit(req.GetIssueLimit()), Bytes: contextBytes,
		Via: object.ViaFields(m.o.Projects, [2]string{"linear_team_ids", "team="}, [2]string{"linear_project_ids", "linear_project="}),
	})
	conversations := object.ListFoundIn(r, m.o.Conversations, object.FoundList{Found: found, Before: "project=", Limit: 1})
	apis := object.ListIn(r, m.o.APIs, object.ListOptions{PageSize: contextAPIs})
	if err := r.Run(ctx); err != nil {
		return nil, err
	}
	if req.GetProjectId() != "" && !project.Found {
		return nil, object.ErrNotFound
	}

	res := &projectv1.GetProjectContextResponse{
		Preferences: merged(own.Snapshot.State.GetPreferences(), defaults.Snapshot.State.GetPreferences()),
		MoreTasks:   tasks.Next != "", MoreIssues: issues.Next != "",
	}
	var mark object.Mark
	addViewed(&mark, own)
	addViewed(&mark, defaults)
	addViewed(&mark, project)
	if project.Found {
		res.Project = presentProject(project.Snapshot.Info, project.Snapshot.State)
	}
	for _, s := range tasks.Items {
		mark.Add("task", s.Info)
		res.Tasks = append(res.Tasks, presentTask(s.Info, s.State))
	}
	for _, s := range issues.Items {
		mark.Add("issue", s.Info)
		res.Issues = append(res.Issues, presentIssue(s.ID, s.State))
	}
	for _, s := range conversations.Items {
		mark.Add("conversation", s.Info)
		res.LastConversation = lastConversation(s)
	}
	for _, s := range apis.Items {
		brief := briefAPI(string(s.ID), s.State)
		res.Apis = append(res.Apis, brief)
		// Every call changes an API, and few calls change what is shown of it.
		mark.Add("api", object.Info{ID: s.ID, Version: object.Version(brief.GetRetryTime().AsTime().UnixMicro())})
		mark.Add(brief.GetBreaker(), object.Info{})
	}
	mark.Add("more", object.Info{Version: flags(res.GetMoreTasks(), res.GetMoreIssues())})
	res.Metadata = &objectv1.Metadata{Version: int64(mark.Version())}
	if req.GetIfVersionNot() == res.GetMetadata().GetVersion() {
		return &projectv1.GetProjectContextResponse{Metadata: res.GetMetadata(), NotModified: true}, nil
	}
	res.TokenEstimate = estimateTokens(res)
	return res, nil
}

// briefAPI says whether an API can be called, and from when on where it cannot.
func briefAPI(id string, s *coordinationv1.ApiState) *projectv1.ApiBrief {
	b := &projectv1.ApiBrief{ApiId: id, Breaker: "closed", RetryTime: s.GetPauseUntil()}
	if s.GetConfig().GetBreaker().GetDisabled() {
		return b
	}
	switch s.GetBreaker().GetStatus() {
	case coordinationv1.BreakerStatus_BREAKER_STATUS_OPEN:
		b.Breaker = "open"
	case coordinationv1.BreakerStatus_BREAKER_STATUS_HALF_OPEN:
		b.Breaker = "half_open"
	default:
		return b
	}
	if t := s.GetBreaker().GetRetryTime(); t.AsTime().After(b.GetRetryTime().AsTime()) {
		b.RetryTime = t
	}
	return b
}

func limit(n int32) int {
	if n == 0 {
		return contextLimit
	}
	return int(n)
}

func flags(all ...bool) object.Version {
	v := object.Version(1)
	for _, f := range all {
		v <<= 1
		if f {
			v |= 1
		}
	}
	return v
}

func lastConversation(s object.Snapshot[*conversationv1.ConversationState]) *projectv1.LastConversation {
	return &projectv1.LastConversation{
		ConversationId: string(s.ID), Title: s.State.GetTitle(), Summary: s.State.GetSummary().GetText(),
		MessageCount: s.State.GetLastSeq(), UpdateTime: timestamppb.New(s.UpdateTime),
	}
}

// estimateTokens is a quarter of the characters of all texts in a message, rounded up.
func estimateTokens(m proto.Message) int64 { return (characters(m.ProtoReflect()) + 3) / 4 }

func characters(m protoreflect.Message) (n int64) {
	count := func(fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		switch fd.Kind() {
		case protoreflect.StringKind:
			n += int64(utf8.RuneCountInString(v.String()))
		case protoreflect.MessageKind, protoreflect.GroupKind:
			n += characters(v.Message())
		default: // numbers and flags are next to nothing
		}
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				n += int64(utf8.RuneCountInString(k.String()))
				count(fd.MapValue(), v)
				return true
			})
		case fd.IsList():
			for i, l := 0, v.List(); i < l.Len(); i++ {
				count(fd, l.Get(i))
			}
		default:
			count(fd, v)
		}
		return true
	})
	return n
}
