package linear

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
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
	id string
	// fields are what the report says, without what the server keeps of its own; named are those of them that it says something of. It
	// says nothing of the others, which stay.
	fields   *storev1.IssueState
	named    []string
	removed  bool
	stamp    *storev1.IssueStamp
	payload  *storev1.IssuePayload
	endpoint string // "": none
	delivery string // "": none
	// create: of a create, which may be the first report; trusted: as Linear has it, now.
	create, trusted bool
}

// newIssueReport reads an issue as Linear wrote it, in a webhook or in an answer of its API. sent is when it was sent, or
// read. An error says what is wrong with it, in the caller's words.
func newIssueReport(payload *structpb.Struct, source string, rank int32, sent time.Time) (*issueReport, error) {
	f := payload.GetFields()
	w := &issueReport{id: text(f, "id"), trusted: rank == rankRead}
	switch {
	case w.id == "":
		return nil, fmt.Errorf("has no id")
	case !isID(w.id):
		return nil, fmt.Errorf("has an id that is none of Linear's")
	}
	w.fields, w.named = issueFields(f)
	kept, dropped := keepPayload(payload)
	w.payload = &storev1.IssuePayload{Payload: kept, Source: source, Dropped: dropped}
	w.stamp = &storev1.IssueStamp{Rank: rank, SentMs: sent.UnixMilli(), Hash: hashFields(w.fields)}
	if t := w.fields.GetLinearUpdateTime(); t != nil {
		w.stamp.TimeMs = t.AsTime().UnixMilli()
	} else {
		w.stamp.TimeMs, w.stamp.Guessed = w.stamp.GetSentMs(), true
	}
	for _, always := range []string{"identifier", "title", "state", "team"} {
		w.stamp.Partial = w.stamp.GetPartial() || !slices.Contains(w.named, always)
	}
	return w, nil
}

// clear makes the report say that an issue has nothing of a property, as webhooks do that name a property among the earlier values
// alone.
func (w *issueReport) clear(earlier map[string]*structpb.Value) {
	nulls := map[string]*structpb.Value{}
	for name := range earlier {
		if w.payload.GetPayload().GetFields()[name] == nil {
			nulls[name] = structpb.NewNullValue()
		}
	}
	_, cleared := issueFields(nulls)
	for _, name := range cleared {
		if !slices.Contains(w.named, name) {
			w.named = append(w.named, name)
		}
	}
	for name, null := range nulls {
		if v := storable(null, 2); v != nil && !strings.ContainsRune(name, 0) {
			w.payload.Payload.Fields[name] = v
		}
	}
}

// removal turns a report into one of the issue's removal at a time.
func (w *issueReport) removal(at time.Time) *issueReport {
	w.removed, w.trusted = true, true
	if w.stamp.GetGuessed() {
		w.stamp.TimeMs, w.stamp.Guessed = 0, false
	}
	w.stamp.TimeMs, w.stamp.Rank = max(at.UnixMilli(), w.stamp.GetTimeMs()), rankRemoval
	return w
}

// believable is the report with its times as they can be: no report is from the future, so a time that is far ahead is taken for the one
// at which the report was sent. A report without a time of its own has that one, too.
func (w *issueReport) believable(now time.Time) (*storev1.IssueStamp, *storev1.IssueState) {
	latest := now.Add(futureSkew)
	stamp, fields := proto.CloneOf(w.stamp), proto.CloneOf(w.fields)
	if sent := stamp.GetSentMs(); sent <= 0 || sent > latest.UnixMilli() {
		stamp.SentMs = min(max(sent, 0), now.UnixMilli())
	}
	if stamp.GetGuessed() || stamp.GetTimeMs() > latest.UnixMilli() {
		stamp.TimeMs, stamp.Guessed = cmp.Or(stamp.GetSentMs(), now.UnixMilli()), true
	}
	for _, t := range []*timestamppb.Timestamp{
		fields.GetLinearCreateTime(), fields.GetLinearUpdateTime(), fields.GetStartTime(), fields.GetCompleteTime(), fields.GetCancelTime(), fields.GetArchiveTime(),
	} {
		if t != nil && t.AsTime().After(latest) {
			t.Seconds, t.Nanos = now.Unix(), 0
		}
	}
	return stamp, fields
}

// isID reports whether a text can be the id of something of Linear's.
func isID(s string) bool {
	return s != "" && len(s) <= maxIssueID && !strings.ContainsFunc(s, notIDRune)
}

func notIDRune(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._:-", r)
}

// issueFields reads what is worth querying, and names the fields of which there is something: an absent property is none, and
// neither is one of a wrong type, or null where Linear's schema has none. Webhooks have ids as well as the things themselves (`stateId` and
// `state`), the API has the things.
func issueFields(f map[string]*structpb.Value) (s *storev1.IssueState, named []string) {
	s = &storev1.IssueState{}
	name := func(field string, ok bool) bool {
		if ok {
			named = append(named, field)
		}
		return ok
	}
	is := func(property string) shape { return shapeOf(f[property]) }
	if name("identifier", text(f, "identifier") != "") {
		s.Identifier, _ = cut(text(f, "identifier"), maxIdentifier)
	}
	if name("previous_identifiers", is("previousIdentifiers") == aList) {
		s.PreviousIdentifiers = identifiers(f)
	}
	if name("url", text(f, "url") != "") {
		s.Url, _ = cut(text(f, "url"), maxDescription)
	}
	if name("title", text(f, "title") != "") {
		s.Title, _ = cut(text(f, "title"), maxDescription)
	}
	if name("description", is("description") == aNull || is("description") == aText) {
		named = append(named, "description_cut")
		s.Description, s.DescriptionCut = cut(text(f, "description"), maxDescription)
	}
	if name("priority", is("priority") == aNumber) {
		s.Priority = int32(number(f, "priority"))
	}
	if name("estimate", is("estimate") == aNull || is("estimate") == aNumber) {
		s.Estimate = number(f, "estimate")
	}
	if name("due_date", is("dueDate") == aNull || is("dueDate") == aText) {
		s.DueDate, _ = cut(text(f, "dueDate"), len("2026-11-30"))
	}
	if name("trashed", is("trashed") == aNull || is("trashed") == aBool) {
		s.Trashed = f["trashed"].GetBoolValue()
	}
	if name("labels", is("labelIds") == aList || is("labels") == aList || shapeOf(inner(f, "labels")["nodes"]) == aList) {
		s.Labels = labels(f)
	}
	for field, to := range map[string]**storev1.Ref{
		"assignee": &s.Assignee, "delegate": &s.Delegate, "creator": &s.Creator, "project": &s.Project, "cycle": &s.Cycle, "parent": &s.Parent,
	} {
		r := reference(f, field)
		if name(field, r != nil || is(field) == aNull || is(field+"Id") == aNull) {
			*to = r
		}
	}
	if r := reference(f, "state"); name("state", r != nil || text(inner(f, "state"), "type") != "") {
		s.State = &storev1.WorkflowState{Id: r.GetId(), Name: r.GetName(), Type: text(inner(f, "state"), "type")}
	}
	if r := reference(f, "team"); name("team", r != nil) {
		s.Team = &storev1.Team{Id: r.GetId(), Name: r.GetName(), Key: text(inner(f, "team"), "key")}
	}
	for _, t := range []struct {
		field, property string
		always          bool
		to              **timestamppb.Timestamp
	}{
		{"linear_create_time", "createdAt", true, &s.LinearCreateTime},
		{"linear_update_time", "updatedAt", true, &s.LinearUpdateTime},
		{"start_time", "startedAt", false, &s.StartTime},
		{"complete_time", "completedAt", false, &s.CompleteTime},
		{"cancel_time", "canceledAt", false, &s.CancelTime},
		{"archive_time", "archivedAt", false, &s.ArchiveTime},
	} {
		at := moment(f, t.property)
		if name(t.field, at != nil || is(t.property) == aNull && !t.always) {
			*t.to = at
		}
	}
	slices.Sort(named)
	return s, named
}

// shape is what a property holds.
type shape int

const (
	absent shape = iota
	aNull
	aBool
	aNumber
	aText
	aList
	aThing
)

func shapeOf(v *structpb.Value) shape {
	switch v.GetKind().(type) {
	case *structpb.Value_NullValue:
		return aNull
	case *structpb.Value_BoolValue:
		return aBool
	case *structpb.Value_NumberValue:
		return aNumber
	case *structpb.Value_StringValue:
		return aText
	case *structpb.Value_ListValue:
		return aList
	case *structpb.Value_StructValue:
		return aThing
	default:
		return absent
	}
}

const (
	maxIdentifier  = 64 // characters, of a team's key and a number
	maxIdentifiers = 32 // earlier ones, of which the newest are kept
	maxLabels      = 256
)

func identifiers(f map[string]*structpb.Value) []string {
	all := texts(f, "previousIdentifiers")
	all = all[max(0, len(all)-maxIdentifiers):]
	for i := range all {
		all[i], _ = cut(all[i], maxIdentifier)
	}
	return all
}

// keepNames gives things the names that they had, where a report has only their ids.
func keepNames(s, old *storev1.IssueState) {
	for id, name := range s.GetLabels() {
		if name == "" {
			s.Labels[id] = old.GetLabels()[id]
		}
	}
	for _, r := range [][2]*storev1.Ref{
		{s.GetAssignee(), old.GetAssignee()},
		{s.GetDelegate(), old.GetDelegate()},
		{s.GetCreator(), old.GetCreator()},
		{s.GetProject(), old.GetProject()},
		{s.GetCycle(), old.GetCycle()},
		{s.GetParent(), old.GetParent()},
	} {
		if r[0] != nil && r[0].GetId() == r[1].GetId() {
			r[0].Name = cmp.Or(r[0].GetName(), r[1].GetName())
		}
	}
	if was := old.GetState(); s.GetState().GetId() != "" && s.GetState().GetId() == was.GetId() {
		s.State.Name, s.State.Type = cmp.Or(s.GetState().GetName(), was.GetName()), cmp.Or(s.GetState().GetType(), was.GetType())
	}
	if was := old.GetTeam(); s.GetTeam() != nil && s.GetTeam().GetId() == was.GetId() {
		s.Team.Name, s.Team.Key = cmp.Or(s.GetTeam().GetName(), was.GetName()), cmp.Or(s.GetTeam().GetKey(), was.GetKey())
	}
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
	if !isID(r.GetId()) {
		return nil
	}
	r.Name, _ = cut(r.GetName(), maxName)
	return r
}

// maxName is how many characters of a name are kept.
const maxName = 256

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
	add := func(id, name string) {
		if _, known := names[id]; isID(id) && (known || len(names) < maxLabels) {
			names[id], _ = cut(name, maxName)
		}
	}
	for _, id := range texts(f, "labelIds") {
		add(id, "")
	}
	for _, list := range []*structpb.ListValue{f["labels"].GetListValue(), inner(f, "labels")["nodes"].GetListValue()} {
		for _, v := range list.GetValues() {
			label := v.GetStructValue().GetFields()
			add(text(label, "id"), text(label, "name"))
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

// applyReport applies a report to what is stored: the fields that it names. It returns whether that changed anything, and whether what
// the report says is stored now. The newest report wins, so reports may come in any order and more than once.
//
// Linear has to be asked where two webhooks of one time disagree, where a report came without a date that can be right, or behind a newer
// one that did not name everything, and where an update was the first that was heard of an issue: it may be that its creation is still to
// come, or never comes.
func applyReport(s *storev1.IssueState, w *issueReport, exists bool, now time.Time) (changed, applied bool) {
	heard := exists && s.GetStamp() != nil
	old := s.GetStamp()
	stamp, fields := w.believable(now)
	same := heard && stamp.GetTimeMs() == old.GetTimeMs()
	// What Linear says of a date outweighs what was guessed.
	newer := !heard || compareStamps(stamp, old) > 0 || old.GetGuessed() && !stamp.GetGuessed() && w.trusted && !w.removed
	if !newer {
		disagrees := same && stamp.GetRank() == old.GetRank() && stamp.GetHash() != old.GetHash()
		doubtful := disagrees || old.GetPartial() && old.GetTimeMs() != stamp.GetTimeMs() || old.GetGuessed() && old.GetHash() != stamp.GetHash()
		if doubtful && !w.trusted && !s.GetRefetch() && s.GetRemoveTime() == nil {
			s.Refetch = true
			s.EndpointId = cmp.Or(w.endpoint, s.GetEndpointId())
			return true, false
		}
		return false, false
	}
	if heard && w.trusted && !w.removed && (same || stamp.GetGuessed()) && stamp.GetHash() == old.GetHash() && !s.GetRefetch() {
		return false, false // read from Linear, and nothing new
	}
	refetch := s.GetRefetch() || !heard && !w.create || same && stamp.GetHash() != old.GetHash() || stamp.GetGuessed()
	was := proto.CloneOf(s)
	rpc.Set(s, fields, w.named...)
	keepNames(s, was)
	s.RemoveTime = nil
	if w.removed {
		s.RemoveTime = timestamppb.New(time.UnixMilli(stamp.GetTimeMs()))
	}
	s.Stamp, s.EndpointId, s.DeliveryId = stamp, cmp.Or(w.endpoint, s.GetEndpointId()), w.delivery
	if s.Refetch = refetch && !w.trusted; !s.GetRefetch() {
		s.RefetchCount, s.RefetchTime = 0, nil
	}
	s.Unseen = was.GetUnseen() && !(w.trusted && !w.removed)
	return true, true
}

// applyIssue is applyReport in a change, which keeps the payload too: what the report's does not have stays in it.
func applyIssue(tx *object.Tx[issueState], w *issueReport) bool {
	changed, applied := applyReport(tx.State(), w, tx.Exists(), tx.Now())
	switch {
	case applied && w.payload != nil:
		payload := proto.CloneOf(w.payload)
		if old, ok := tx.Entry(inRaw, rawKey).(*storev1.IssuePayload); ok {
			addPayload(payload, old)
		}
		payload.ReceiveTime = timestamppb.New(tx.Now())
		tx.Put(inRaw, rawKey, payload)
	case !changed:
		tx.Unchanged()
	}
	return applied
}

// addPayload adds the properties to a payload that only an older one has.
func addPayload(p, old *storev1.IssuePayload) {
	more := false
	for name, v := range old.GetPayload().GetFields() {
		if _, ok := p.GetPayload().GetFields()[name]; !ok && !slices.Contains(p.GetDropped(), name) {
			p.Payload.Fields[name], more = v, true
		}
	}
	if more {
		var dropped []string
		p.Payload, dropped = keepPayload(p.GetPayload())
		p.Dropped = append(p.Dropped, dropped...)
	}
}

// maxRefetches is how often Linear is asked for an issue that it does not answer, and firstRefetch how long after the first time; each
// time doubles the wait.
const (
	maxRefetches = 8
	firstRefetch = time.Minute
)

// askLater notes that Linear was asked for an issue in vain: it is asked again later, and at last no more.
func askLater(s *storev1.IssueState, endpoint string, now time.Time) {
	if !s.GetRefetch() {
		s.RefetchCount = 0
	}
	s.RefetchCount++
	s.EndpointId = cmp.Or(endpoint, s.GetEndpointId())
	if s.Refetch = s.GetRefetchCount() < maxRefetches; s.GetRefetch() {
		s.RefetchTime = timestamppb.New(now.Add(jittered(firstRefetch << (s.GetRefetchCount() - 1))))
	} else {
		s.RefetchTime = nil
	}
}

// jittered is between half a time and all of it, so that what failed together does not come again together.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) } //nolint:gosec // jitter

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
		t = append(t, refetchTerm)
	}
	return t
}

// refetchTerm lists the issues that Linear has to be asked for.
const refetchTerm = "refetch"

func issueTTL(s *storev1.IssueState) time.Duration {
	if s.GetRemoveTime() != nil || s.GetStamp() == nil && !s.GetRefetch() {
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
