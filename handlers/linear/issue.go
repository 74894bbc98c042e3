package linear

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "holdfast/gen/holdfast/store/linear/v1"
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
	fields   *storev1.IssueState // without what the server keeps of its own
	removed  bool
	stamp    *storev1.IssueStamp
	payload  *storev1.IssuePayload
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
	case w.fields.GetLinearUpdateTime() == nil:
		return nil, fmt.Errorf("has no updatedAt")
	}
	kept, dropped := keepPayload(payload)
	w.payload = &storev1.IssuePayload{Payload: kept, Source: source, Dropped: dropped}
	w.stamp = &storev1.IssueStamp{
		TimeMs: w.fields.GetLinearUpdateTime().AsTime().UnixMilli(), Rank: rank, SentMs: sent.UnixMilli(), Hash: hashFields(w.fields),
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
func issueFields(f map[string]*structpb.Value) *storev1.IssueState {
	s := &storev1.IssueState{
		Identifier: text(f, "identifier"), PreviousIdentifiers: texts(f, "previousIdentifiers"), Url: text(f, "url"), Title: text(f, "title"),
		Priority: int32(number(f, "priority")), Estimate: number(f, "estimate"), Labels: labels(f), DueDate: text(f, "dueDate"),
		Assignee: reference(f, "assignee"), Delegate: reference(f, "delegate"), Creator: reference(f, "creator"), Project: reference(f, "project"),
		Cycle: reference(f, "cycle"), Parent: reference(f, "parent"), LinearCreateTime: moment(f, "createdAt"), LinearUpdateTime: moment(f, "updatedAt"),
		StartTime: moment(f, "startedAt"), CompleteTime: moment(f, "completedAt"), CancelTime: moment(f, "canceledAt"),
		ArchiveTime: moment(f, "archivedAt"), Trashed: f["trashed"].GetBoolValue(),
	}
	// What an issue has is often null.
	if r := reference(f, "state"); r != nil || len(inner(f, "state")) > 0 {
		s.State = &storev1.WorkflowState{Id: r.GetId(), Name: r.GetName(), Type: text(inner(f, "state"), "type")}
	}
	if r := reference(f, "team"); r != nil || len(inner(f, "team")) > 0 {
		s.Team = &storev1.Team{Id: r.GetId(), Name: r.GetName(), Key: text(inner(f, "team"), "key")}
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

// reference names a thing, by its own property or by the thing's; nil: there is none. A cycle may have only a number, and an issue is
// known by its identifier.
func reference(f map[string]*structpb.Value, name string) *storev1.Ref {
	thing := inner(f, name)
	r := &storev1.Ref{Id: cmp.Or(text(f, name+"Id"), text(thing, "id")), Name: cmp.Or(text(thing, "name"), text(thing, "identifier"))}
	if n := number(thing, "number"); r.GetName() == "" && n > 0 {
		r.Name = strconv.Itoa(int(n))
	}
	if r.GetId() == "" {
		return nil
	}
	return r
}

func texts(f map[string]*structpb.Value, name string) (out []string) {
	for _, v := range f[name].GetListValue().GetValues() {
		if s := strings.ReplaceAll(v.GetStringValue(), "\x00", ""); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// labels are the names of an issue's labels by their ids. The API has them as a connection.
func labels(f map[string]*structpb.Value) map[string]string {
	names := map[string]string{}
	for _, id := range texts(f, "labelIds") {
		names[id] = ""
	}
	for _, list := range []*structpb.ListValue{f["labels"].GetListValue(), inner(f, "labels")["nodes"].GetListValue()} {
		for _, v := range list.GetValues() {
			if label := v.GetStructValue().GetFields(); text(label, "id") != "" {
				names[text(label, "id")] = text(label, "name")
			}
		}
	}
	return names
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

func hashFields(s *storev1.IssueState) string {
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
		sizes[k] = len(k) + max(len(b), proto.Size(v)) + len(`"":, `) // a list of numbers is larger in binary
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
func compareStamps(a, b *storev1.IssueStamp) int {
	return cmp.Or(cmp.Compare(a.GetTimeMs(), b.GetTimeMs()), cmp.Compare(a.GetRank(), b.GetRank()),
		cmp.Compare(a.GetSentMs(), b.GetSentMs()), cmp.Compare(a.GetHash(), b.GetHash()))
}

// applyReport applies a report to what is stored. It returns whether that changed anything, and whether the report's fields are stored
// now. The newest report wins, so reports may come in any order and more than once.
//
// Linear has to be asked where two webhooks of one time disagree, and where an update was the first that was heard of an
// issue: it may be that its creation is still to come, or never comes.
func applyReport(s *storev1.IssueState, w *issueReport, exists bool) (changed, applied bool) {
	heard := exists && s.GetStamp() != nil
	old := s.GetStamp()
	if heard && compareStamps(w.stamp, old) <= 0 {
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
	same := heard && w.stamp.GetTimeMs() == old.GetTimeMs()
	if same && w.trusted && !w.removed && w.stamp.GetHash() == old.GetHash() && !s.GetRefetch() {
		return false, false // read from Linear, and nothing new
	}
	refetch := s.GetRefetch() || !heard && !w.create || same && w.stamp.GetHash() != old.GetHash()
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
func open(s *storev1.IssueState) bool {
	switch s.GetState().GetType() {
	case "completed", "canceled", "duplicate":
		return false
	}
	return known(s) && s.GetArchiveTime() == nil && !s.GetTrashed()
}

// known tells whether an issue was heard of for certain, and is still there.
func known(s *storev1.IssueState) bool { return s.GetStamp() != nil && s.GetRemoveTime() == nil }

// issueTerms are what issues can be listed by; each term of a set has one for the open ones alone. A removed issue has
// none, but for asking Linear about it.
func issueTerms(s *storev1.IssueState) []string {
	var t []string
	if known(s) {
		t = append(t, "any")
		for _, set := range [][2]string{
			{"team=", s.GetTeam().GetId()}, {"linear_project=", s.GetProject().GetId()}, {"assignee=", s.GetAssignee().GetId()},
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
		for _, identifier := range append(s.GetPreviousIdentifiers(), s.GetIdentifier()) {
			if term := "identifier=" + identifier; identifier != "" && !slices.Contains(t, term) {
				t = append(t, term)
			}
		}
	}
	if s.GetRefetch() {
		t = append(t, refetchTerm(s.GetEndpointId()))
	}
	return t
}

func refetchTerm(endpoint string) string { return "refetch=" + endpoint }

func issueTTL(s *storev1.IssueState) time.Duration {
	if s.GetRemoveTime() != nil {
		return tombstoneTTL
	}
	return 0
}

// eachIssue calls do for every report, side by side, so that they share transactions. It returns the first error.
func eachIssue(reports []*issueReport, do func(*issueReport) error) error {
	var wait sync.WaitGroup
	errs := make([]error, len(reports))
	for i, w := range reports {
		wait.Go(func() { errs[i] = do(w) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// readPayload reads JSON that came over the wire as a struct. Numbers become float64.
func readPayload(raw []byte) (*structpb.Struct, error) {
	s := &structpb.Struct{}
	return s, protojson.Unmarshal(bytes.ToValidUTF8(raw, []byte("\uFFFD")), s)
}
