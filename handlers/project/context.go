package project

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	projectv1 "holdfast/gen/holdfast/project/v1"
	conversationstorev1 "holdfast/gen/holdfast/store/conversation/v1"
	coordinationstorev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/identity"
	"holdfast/object"
)

// contextLimit is the default number of tasks, and of issues.
const contextLimit = 20

// contextBytes is how much of the answer tasks may take, and issues too. The rest is for the project, the preferences and the last
// summary, each of which may be a whole state.
const contextBytes = object.AnswerBytes / 4

// contextAPIs is the number of APIs in a context: those that were called last.
const contextAPIs = 16

// projectContext is what one read of a context returns.
type projectContext struct {
	own, defaults *object.Viewed[preferencesState]
	project       *object.Viewed[projectState]
	tasks         *object.Page[taskState]
	issues        *object.Page[issueState]
	conversations *object.Page[*conversationstorev1.ConversationState]
	apis          *object.Page[*coordinationstorev1.ApiState]
}

// activeProject is the id of the project that a context is about; empty: none.
func activeProject(named string, own, defaults preferencesState) object.ID {
	return object.ID(cmp.Or(named, own.GetActiveProjectId(), own.GetDefaultProjectId(), defaults.GetDefaultProjectId()))
}

// openIssueTerms are the terms of a project's open issues.
func openIssueTerms(p projectState) (terms []string) {
	for _, source := range p.GetIssueSources() {
		switch source.GetType() {
		case "team":
			terms = append(terms, "team="+source.GetId()+"/open")
		case "project":
			terms = append(terms, "linear_project="+source.GetId()+"/open")
		}
	}
	return terms
}

// viewContext reads a context of one moment. Its lists go by what the preferences and the project say. It takes that from the
// cache, and reads again until the same read shows that it is right: twice more at most, unless they change meanwhile.
func (m *Manager) viewContext(ctx context.Context, caller identity.Identity, req *projectv1.GetProjectContextRequest) (*projectContext, error) {
	own, _ := m.o.Preferences.Cached(ctx, preferencesID(caller.User))
	defaults, _ := m.o.Preferences.Cached(ctx, tenantDefaults)
	id := activeProject(req.GetProjectId(), own.State, defaults.State)
	project, _ := m.o.Projects.Cached(ctx, id)
	terms := openIssueTerms(project.State)
	for {
		c, err := m.readContext(ctx, caller, req, id, terms)
		if err != nil {
			return nil, err
		}
		wasID, wasTerms := id, terms
		id = activeProject(req.GetProjectId(), c.own.Snapshot.State, c.defaults.Snapshot.State)
		terms = openIssueTerms(c.project.Snapshot.State)
		if id == wasID && slices.Equal(terms, wasTerms) {
			return c, nil
		}
	}
}

func (m *Manager) readContext(
	ctx context.Context, caller identity.Identity, req *projectv1.GetProjectContextRequest, id object.ID, terms []string,
) (*projectContext, error) {
	c := &projectContext{
		project: &object.Viewed[projectState]{}, issues: &object.Page[issueState]{}, conversations: &object.Page[*conversationstorev1.ConversationState]{},
	}
	r := m.o.Runtime.Together()
	c.own, c.defaults = m.viewPreferences(r, caller)
	tasks := "open"
	if id != "" {
		tasks = "project=" + string(id) + "/open"
		c.project = object.ViewIn(r, m.o.Projects, id)
		c.conversations = object.ListIn(r, m.o.Conversations, object.ListOptions{Terms: []string{"project=" + string(id)}, PageSize: 1}, 0)
	}
	c.tasks = object.ListIn(r, m.o.Tasks, object.ListOptions{Terms: []string{tasks}, PageSize: limit(req.GetTaskLimit())}, contextBytes)
	if len(terms) > 0 {
		c.issues = object.ListIn(r, m.o.Issues, object.ListOptions{AnyTerm: terms, PageSize: limit(req.GetIssueLimit())}, contextBytes)
	}
	c.apis = object.ListIn(r, m.o.APIs, object.ListOptions{PageSize: contextAPIs}, 0)
	return c, r.Run(ctx)
}

// GetProjectContext implements ProjectService.
func (m *Manager) GetProjectContext(
	ctx context.Context, req *projectv1.GetProjectContextRequest,
) (*projectv1.GetProjectContextResponse, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return nil, err
	}
	c, err := m.viewContext(ctx, caller, req)
	if err != nil {
		return nil, err
	}
	if req.GetProjectId() != "" && !c.project.Found {
		return nil, object.ErrNotFound
	}

	res := &projectv1.ProjectContext{Preferences: merged(c.own, c.defaults), MoreTasks: c.tasks.Next != "", MoreIssues: c.issues.Next != ""}
	var mark fingerprint
	addViewed(&mark, c.own)
	addViewed(&mark, c.defaults)
	addViewed(&mark, c.project)
	if c.project.Found {
		res.Project = presentProject(c.project.Snapshot.Info, c.project.Snapshot.State)
	}
	for _, s := range c.tasks.Items {
		mark.add("task", s.Info)
		res.Tasks = append(res.Tasks, presentTask(s.Info, s.State))
	}
	for _, s := range c.issues.Items {
		mark.add("issue", s.Info)
		res.Issues = append(res.Issues, m.o.PresentIssue(object.Snapshot[issueState]{Info: s.Info, State: s.State}))
	}
	for _, s := range c.conversations.Items {
		mark.add("conversation", s.Info)
		res.LastConversation = lastConversation(s)
	}
	for _, s := range c.apis.Items {
		brief := briefAPI(string(s.ID), s.State)
		res.Apis = append(res.Apis, brief)
		// Every call changes an API, but few calls change what a context shows of it.
		mark.add("api", object.Info{ID: s.ID, Version: object.Version(brief.GetRetryTime().AsTime().UnixMicro())})
		mark.add(brief.GetBreaker(), object.Info{})
	}
	mark.add("more", object.Info{Version: flags(res.GetMoreTasks(), res.GetMoreIssues())})
	if mark.etag() == req.GetIfEtagNot() {
		return &projectv1.GetProjectContextResponse{NotModified: true}, nil
	}
	res.TokenEstimate = estimateTokens(res)
	res.Etag = mark.etag()
	return &projectv1.GetProjectContextResponse{Context: res}, nil
}

// fingerprint hashes the versions of a set of objects: it is the same for the same objects at the same versions, and almost
// certainly another one otherwise. It has no order.
type fingerprint struct{ sum []byte }

// add adds an object. Order matters.
func (f *fingerprint) add(kind string, i object.Info) {
	f.sum = append(append(append(f.sum, kind...), 0), i.ID...)
	f.sum = binary.BigEndian.AppendUint64(append(f.sum, 0), uint64(i.Version)) //nolint:gosec // not negative
}

// etag is the hash as a text.
func (f *fingerprint) etag() string {
	sum := sha256.Sum256(f.sum)
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

// briefAPI returns whether an API can be called and, if not, when it can.
func briefAPI(id string, s *coordinationstorev1.ApiState) *projectv1.ApiBrief {
	b := &projectv1.ApiBrief{Api: id, Breaker: "closed", RetryTime: s.GetPauseUntil()}
	if s.GetConfig().GetBreaker().GetDisabled() {
		return b
	}
	switch s.GetBreaker().GetStatus() {
	case coordinationstorev1.BreakerStatus_BREAKER_STATUS_OPEN:
		b.Breaker = "open"
	case coordinationstorev1.BreakerStatus_BREAKER_STATUS_HALF_OPEN:
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

func lastConversation(s object.Snapshot[*conversationstorev1.ConversationState]) *projectv1.LastConversation {
	return &projectv1.LastConversation{
		ConversationId: string(s.ID), Title: s.State.GetTitle(), Summary: s.State.GetSummary().GetText(),
		MessageCount: int32(s.State.GetLastSeq() - s.State.GetRemovedCount()), //nolint:gosec // a conversation never has so many
		UpdateTime:   timestamppb.New(s.UpdateTime),
	}
}

// estimateTokens returns a quarter of the number of characters in a message's texts, rounded up.
func estimateTokens(m proto.Message) int32 { return int32((characters(m.ProtoReflect()) + 3) / 4) } //nolint:gosec // an answer is small

func characters(m protoreflect.Message) (n int64) {
	count := func(fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		switch fd.Kind() {
		case protoreflect.StringKind:
			n += int64(utf8.RuneCountInString(v.String()))
		case protoreflect.MessageKind, protoreflect.GroupKind:
			n += characters(v.Message())
		default: // numbers and flags hardly count
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
