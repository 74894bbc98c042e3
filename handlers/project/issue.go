package project

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	projectv1 "holdfast/gen/holdfast/project/v1"
	linearstorev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// rank orders reports on an issue that have the same time: what was read from Linear's API settles what webhooks say, and a
// removal wins over all.
const (
	rankWebhook int32 = 1
	rankRead    int32 = 2
	rankRemoval int32 = 3
)

const (
	maxDescription = 2000      // characters of a description that are kept beside the payload
	maxPayload     = 192 << 10 // bytes of a payload as JSON
	maxDepth       = 64
	maxIssueID     = 128
)

// issueReport is one report about an issue, from a webhook, Linear's API or a caller.
type issueReport struct {
	id       string
	fields   *linearstorev1.IssueState // without what the server keeps of its own
	removed  bool
	stamp    *linearstorev1.IssueStamp
	payload  *linearstorev1.IssuePayload
	endpoint string // "": none
	delivery string // "": none
	// create: of a create, which may be the first report; trusted: the whole issue as Linear has it, now.
	create, trusted bool
}

// newIssueReport reads an issue as Linear wrote it, in a webhook or in an answer of its API. sent is when it was sent, or
// read. An error says what is wrong with it, in the caller's words.
func newIssueReport(payload *structpb.Struct, source string, rank int32, sent time.Time) (*issueReport, error) {
	f := payload.GetFields()
	w := &issueReport{id: text(f, "id"), fields: issueFields(f), trusted: rank == rankRead}
	switch {
	case w.id == "":
		return nil, fmt.Errorf("has no id")
	case len(w.id) > maxIssueID || strings.ContainsFunc(w.id, notIDRune):
		return nil, fmt.Errorf("has an id that is none of Linear's")
	case w.fields.GetTitle() == "":
		return nil, fmt.Errorf("has no title")
	case w.fields.GetUpdateTime() == nil:
		return nil, fmt.Errorf("has no updatedAt")
	}
	kept, dropped := keepPayload(payload)
	w.payload = &linearstorev1.IssuePayload{Payload: kept, Source: source, Dropped: dropped}
	w.stamp = &linearstorev1.IssueStamp{
		TimeMs: w.fields.GetUpdateTime().AsTime().UnixMilli(), Rank: rank, SentMs: sent.UnixMilli(), Hash: hashFields(w.fields),
	}
	return w, nil
}

// removal turns a report into one of the issue's removal at a time.
func (w *issueReport) removal(at time.Time) *issueReport {
	w.removed, w.trusted = true, true
	w.stamp.TimeMs, w.stamp.Rank = max(at.UnixMilli(), w.stamp.GetTimeMs()), rankRemoval
	return w
}

func notIDRune(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._:-", r)
}

// issueFields reads what is worth querying. Webhooks have ids beside the things themselves (`stateId` and `state`), the
// API has the things.
func issueFields(f map[string]*structpb.Value) *linearstorev1.IssueState {
	s := &linearstorev1.IssueState{
		Identifier: text(f, "identifier"), PreviousIdentifiers: texts(f, "previousIdentifiers"), Number: int64(number(f, "number")),
		Url: text(f, "url"), Title: text(f, "title"), Priority: int32(number(f, "priority")), Estimate: number(f, "estimate"),
		StateId: reference(f, "state"), StateName: text(inner(f, "state"), "name"), StateType: text(inner(f, "state"), "type"),
		TeamId: reference(f, "team"), TeamKey: text(inner(f, "team"), "key"),
		AssigneeId: reference(f, "assignee"), AssigneeName: text(inner(f, "assignee"), "name"),
		DelegateId: reference(f, "delegate"), CreatorId: reference(f, "creator"), LinearProjectId: reference(f, "project"),
		CycleId: reference(f, "cycle"), ParentId: reference(f, "parent"), LabelIds: labelIDs(f), DueDate: text(f, "dueDate"),
		CreateTime: moment(f, "createdAt"), UpdateTime: moment(f, "updatedAt"), StartTime: moment(f, "startedAt"),
		CompleteTime: moment(f, "completedAt"), CancelTime: moment(f, "canceledAt"), ArchiveTime: moment(f, "archivedAt"),
		Trashed: f["trashed"].GetBoolValue(),
	}
	s.Description, s.DescriptionCut = cut(text(f, "description"), maxDescription)
	s.Title, _ = cut(s.GetTitle(), maxDescription)
	return s
}

func text(f map[string]*structpb.Value, name string) string {
	return strings.ReplaceAll(f[name].GetStringValue(), "\x00", "")
}

// number is 0 for what is none, and for what no field could hold.
func number(f map[string]*structpb.Value, name string) float64 {
	if n := f[name].GetNumberValue(); math.Abs(n) < 1<<31 {
		return n
	}
	return 0
}

func inner(f map[string]*structpb.Value, name string) map[string]*structpb.Value {
	return f[name].GetStructValue().GetFields()
}

// reference is the id of a thing, by its own property or by the thing's.
func reference(f map[string]*structpb.Value, name string) string {
	if id := text(f, name+"Id"); id != "" {
		return id
	}
	return text(inner(f, name), "id")
}

func texts(f map[string]*structpb.Value, name string) (out []string) {
	for _, v := range f[name].GetListValue().GetValues() {
		if s := strings.ReplaceAll(v.GetStringValue(), "\x00", ""); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// labelIDs are sorted, so that the same labels compare equal. The API has them as a connection.
func labelIDs(f map[string]*structpb.Value) []string {
	ids := texts(f, "labelIds")
	for _, list := range []*structpb.ListValue{f["labels"].GetListValue(), inner(f, "labels")["nodes"].GetListValue()} {
		for _, v := range list.GetValues() {
			if id := text(v.GetStructValue().GetFields(), "id"); id != "" {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// moment is nil for what is no time of this era.
func moment(f map[string]*structpb.Value, name string) *timestamppb.Timestamp {
	t, err := time.Parse(time.RFC3339Nano, f[name].GetStringValue())
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return nil
	}
	return timestamppb.New(t)
}

// cut shortens a text to n characters and tells whether it was longer.
func cut(s string, n int) (string, bool) {
	if len(s) <= n || utf8.RuneCountInString(s) <= n {
		return s, false
	}
	for i := range s {
		if n == 0 {
			return s[:i], true
		}
		n--
	}
	return s, false
}

func hashFields(s *linearstorev1.IssueState) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// keepPayload makes a payload storable: without U+0000, without what nests too deep, and, the largest properties first,
// without what makes it too large. It answers the names of those.
func keepPayload(p *structpb.Struct) (_ *structpb.Struct, dropped []string) {
	kept := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	sizes, total := map[string]int{}, 0
	for k, v := range p.GetFields() {
		if v = storable(v, 2); v == nil || strings.ContainsRune(k, 0) {
			dropped = append(dropped, strings.ReplaceAll(k, "\x00", ""))
			continue
		}
		b, err := protojson.Marshal(v)
		if err != nil {
			dropped = append(dropped, k)
			continue
		}
		kept.Fields[k] = v
		sizes[k] = len(k) + len(b) + len(`"":, `)
		total += sizes[k]
	}
	slices.Sort(dropped)
	names := make([]string, 0, len(sizes))
	for k := range sizes {
		names = append(names, k)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(sizes[b], sizes[a]), cmp.Compare(a, b)) })
	for _, k := range names {
		if total <= maxPayload {
			break
		}
		total -= sizes[k]
		delete(kept.Fields, k)
		dropped = append(dropped, k)
	}
	return kept, dropped
}

// storable is a value that jsonb can hold, or nil. The value is at depth.
func storable(v *structpb.Value, depth int) *structpb.Value {
	if depth > maxDepth {
		return nil
	}
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		if strings.ContainsRune(k.StringValue, 0) {
			return structpb.NewStringValue(strings.ReplaceAll(k.StringValue, "\x00", ""))
		}
	case *structpb.Value_NumberValue:
		if math.IsNaN(k.NumberValue) || math.IsInf(k.NumberValue, 0) {
			return nil
		}
	case *structpb.Value_StructValue:
		out := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(k.StructValue.GetFields()))}
		for name, v := range k.StructValue.GetFields() {
			if v = storable(v, depth+1); v != nil && !strings.ContainsRune(name, 0) {
				out.Fields[name] = v
			}
		}
		return structpb.NewStructValue(out)
	case *structpb.Value_ListValue:
		out := &structpb.ListValue{}
		for _, v := range k.ListValue.GetValues() {
			if v = storable(v, depth+1); v != nil {
				out.Values = append(out.Values, v)
			}
		}
		return structpb.NewListValue(out)
	case nil:
		return nil
	}
	return v
}

// compareStamps orders reports on one issue.
func compareStamps(a, b *linearstorev1.IssueStamp) int {
	return cmp.Or(cmp.Compare(a.GetTimeMs(), b.GetTimeMs()), cmp.Compare(a.GetRank(), b.GetRank()),
		cmp.Compare(a.GetSentMs(), b.GetSentMs()), cmp.Compare(a.GetHash(), b.GetHash()))
}

// applyReport applies a report to what is stored. It returns whether that changed anything, and whether the report's fields are stored
// now. The newest report wins, so reports may come in any order and more than once.
//
// Linear has to be asked where two webhooks of one time disagree, and where an update was the first that was heard of an
// issue: it may be that its creation is still to come, or never comes.
func applyReport(s *linearstorev1.IssueState, w *issueReport, exists bool) (changed, applied bool) {
	known := exists && s.GetStamp() != nil
	old := s.GetStamp()
	if known && compareStamps(w.stamp, old) <= 0 {
		disagrees := w.stamp.GetTimeMs() == old.GetTimeMs() && w.stamp.GetRank() == old.GetRank() && w.stamp.GetHash() != old.GetHash()
		if disagrees && !w.trusted && !s.GetRefetch() {
			s.Refetch = true
			if w.endpoint != "" {
				s.EndpointId = w.endpoint
			}
			return true, false
		}
		return false, false
	}
	same := known && w.stamp.GetTimeMs() == old.GetTimeMs()
	if same && w.trusted && !w.removed && w.stamp.GetHash() == old.GetHash() && !s.GetRefetch() {
		return false, false // read from Linear, and nothing new
	}
	refetch := s.GetRefetch() || !known && !w.create || same && w.stamp.GetHash() != old.GetHash()
	endpoint := cmp.Or(w.endpoint, s.GetEndpointId())
	if w.fields != nil {
		proto.Reset(s)
		proto.Merge(s, w.fields)
	}
	if w.removed {
		s.RemoveTime = timestamppb.New(time.UnixMilli(w.stamp.GetTimeMs()))
	}
	s.Stamp, s.EndpointId, s.DeliveryId = w.stamp, endpoint, w.delivery
	s.Refetch = refetch && !w.trusted
	return true, true
}

// applyIssue is applyReport in a change, with the payload beside it.
func applyIssue(tx *object.Tx[issueState], w *issueReport) bool {
	changed, applied := applyReport(tx.State(), w, tx.Exists())
	switch {
	case applied && w.payload != nil:
		payload := proto.CloneOf(w.payload)
		payload.ReceiveTime = timestamppb.New(tx.Now())
		tx.Put(inRaw, rawKey, payload)
	case !changed:
		tx.Unchanged()
	}
	return applied
}

// open tells whether an issue is still to be done.
func open(s *linearstorev1.IssueState) bool {
	switch s.GetStateType() {
	case "completed", "canceled", "duplicate":
		return false
	}
	return s.GetStamp() != nil && s.GetRemoveTime() == nil && s.GetArchiveTime() == nil && !s.GetTrashed()
}

// issueTerms are what issues can be listed by; each term of a set has one for the open ones alone. A removed issue has
// none, but for asking Linear about it.
func issueTerms(s *linearstorev1.IssueState) []string {
	var t []string
	if s.GetStamp() != nil && s.GetRemoveTime() == nil {
		t = append(t, "any")
		for _, set := range [][2]string{
			{"team=", s.GetTeamId()}, {"linear_project=", s.GetLinearProjectId()}, {"assignee=", s.GetAssigneeId()},
		} {
			if set[1] != "" {
				t = append(t, set[0]+set[1])
			}
		}
		if open(s) {
			for _, term := range t[1:] {
				t = append(t, term+"/open")
			}
			t = append(t, "open")
		}
		if s.GetIdentifier() != "" {
			t = append(t, "identifier="+s.GetIdentifier())
		}
	}
	if s.GetRefetch() {
		t = append(t, refetchTerm(s.GetEndpointId()))
	}
	return t
}

func refetchTerm(endpoint string) string { return "refetch=" + endpoint }

func issueTTL(s *linearstorev1.IssueState) time.Duration {
	if s.GetRemoveTime() != nil {
		return tombstoneTTL
	}
	return 0
}

// issueFilter are the terms of a list.
func issueFilter(req *projectv1.ListIssuesRequest) []string {
	var t []string
	if req.GetIdentifier() != "" {
		t = append(t, "identifier="+req.GetIdentifier())
	}
	suffix := ""
	if req.GetOpenOnly() {
		suffix = "/open"
	}
	for _, set := range [][2]string{
		{"assignee=", req.GetAssigneeId()}, {"linear_project=", req.GetLinearProjectId()}, {"team=", req.GetTeamId()},
	} {
		if set[1] != "" {
			t = append(t, set[0]+set[1]+suffix)
		}
	}
	switch {
	case req.GetOpenOnly() && (len(t) == 0 || req.GetIdentifier() != ""):
		t = append(t, "open")
	case len(t) == 0:
		t = append(t, "any")
	}
	return t
}

func presentIssue(id object.ID, s *linearstorev1.IssueState) *projectv1.Issue {
	return &projectv1.Issue{
		IssueId: string(id), Identifier: s.GetIdentifier(), PreviousIdentifiers: s.GetPreviousIdentifiers(), Url: s.GetUrl(),
		Title: s.GetTitle(), Description: s.GetDescription(), DescriptionCut: s.GetDescriptionCut(), Priority: s.GetPriority(),
		Estimate: s.GetEstimate(), StateId: s.GetStateId(), StateName: s.GetStateName(), StateType: s.GetStateType(),
		TeamId: s.GetTeamId(), TeamKey: s.GetTeamKey(), AssigneeId: s.GetAssigneeId(), AssigneeName: s.GetAssigneeName(),
		DelegateId: s.GetDelegateId(), CreatorId: s.GetCreatorId(), LinearProjectId: s.GetLinearProjectId(), CycleId: s.GetCycleId(),
		ParentId: s.GetParentId(), LabelIds: s.GetLabelIds(), DueDate: s.GetDueDate(), CreateTime: s.GetCreateTime(),
		UpdateTime: s.GetUpdateTime(), StartTime: s.GetStartTime(), CompleteTime: s.GetCompleteTime(), CancelTime: s.GetCancelTime(),
		ArchiveTime: s.GetArchiveTime(), Trashed: s.GetTrashed(), Refetch: s.GetRefetch(), RemoveTime: s.GetRemoveTime(),
	}
}

// UpsertIssues implements ProjectService.
func (m *Manager) UpsertIssues(
	ctx context.Context, req *projectv1.UpsertIssuesRequest,
) (*projectv1.UpsertIssuesResponse, error) {
	reports := make([]*issueReport, len(req.GetIssues()))
	for i, payload := range req.GetIssues() {
		// When it was read nobody knows; the sent time of 0 makes the same issue the same report however often it comes.
		w, err := newIssueReport(payload, "api", rankRead, time.UnixMilli(0))
		if err != nil {
			return nil, problem.InvalidArgument(fmt.Sprintf("issues[%d]", i), err.Error())
		}
		reports[i] = w
	}
	res := &projectv1.UpsertIssuesResponse{Issues: make([]*projectv1.UpsertedIssue, len(reports))}
	err := eachIssue(reports, func(i int, w *issueReport) error {
		// Each issue remembers the request by itself, with its own part of it.
		part := &projectv1.UpsertIssuesRequest{Issues: req.GetIssues()[i : i+1], RequestId: req.GetRequestId()}
		reply, err := rpc.Do(ctx, m.o.Issues, object.ID(w.id), part,
			func(tx *object.Tx[issueState]) (*projectv1.UpsertedIssue, error) {
				applied := applyIssue(tx, w)
				return &projectv1.UpsertedIssue{IssueId: w.id, Applied: applied}, nil
			}, object.Upsert(), object.Shared())
		res.Issues[i] = reply
		return err
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// eachIssue calls do for every report, side by side, so that they share transactions. It returns the first error.
func eachIssue(reports []*issueReport, do func(int, *issueReport) error) error {
	var wait sync.WaitGroup
	errs := make([]error, len(reports))
	for i, w := range reports {
		wait.Go(func() { errs[i] = do(i, w) })
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// GetIssue implements ProjectService.
func (m *Manager) GetIssue(ctx context.Context, req *projectv1.GetIssueRequest) (*projectv1.GetIssueResponse, error) {
	id := object.ID(req.GetIssueId())
	s, err := m.o.Issues.View(ctx, id, object.IfVersionNot(object.Version(req.GetIfVersionNot())))
	if err != nil {
		return nil, err
	}
	if s.NotModified {
		return &projectv1.GetIssueResponse{Metadata: rpc.Metadata(s.Info), NotModified: true}, nil
	}
	if s.State.GetStamp() == nil {
		return nil, object.ErrNotFound // heard of, but not known yet
	}
	res := &projectv1.GetIssueResponse{Issue: presentIssue(id, s.State), Metadata: rpc.Metadata(s.Info)}
	if req.GetWithPayload() {
		page, err := m.o.Issues.Entries(ctx, id, inRaw, object.EntriesOptions{PageSize: 1})
		if err != nil {
			return nil, err
		}
		for _, e := range page.Entries {
			res.Payload, _ = e.Value.(*linearstorev1.IssuePayload)
		}
	}
	return res, nil
}

// ListIssues implements ProjectService.
func (m *Manager) ListIssues(ctx context.Context, req *projectv1.ListIssuesRequest) (*projectv1.ListIssuesResponse, error) {
	items, next, err := rpc.List(ctx, m.o.Issues, req, object.ListOptions{Terms: issueFilter(req)}, func(s object.Snapshot[issueState]) *projectv1.IssueItem {
		return &projectv1.IssueItem{Issue: presentIssue(s.ID, s.State), Metadata: rpc.Metadata(s.Info)}
	})
	return &projectv1.ListIssuesResponse{Issues: items, NextPageToken: next}, err
}

// readPayload reads JSON that came over the wire as a struct. Numbers become float64.
func readPayload(raw []byte) (*structpb.Struct, error) {
	s := &structpb.Struct{}
	return s, protojson.Unmarshal(bytes.ToValidUTF8(raw, []byte("\uFFFD")), s)
}
