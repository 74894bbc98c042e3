package linear

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linearv1 "holdfast/gen/holdfast/linear/v1"
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
	maxPayload = 192 << 10 // bytes of a payload as JSON
	maxDepth   = 64
	maxIssueID = 128
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
	// change is what a webhook tells of who changed what; nil: nothing.
	change *storev1.IssueChange
}

// newIssueReport reads an issue as Linear wrote it, in a webhook or in an answer of its API. sent is when it was sent, or
// read. An error says what is wrong with it, in the caller's words.
func newIssueReport(payload *structpb.Struct, source string, rank int32, sent time.Time) (*issueReport, error) {
	f := payload.GetFields()
	id, err := readID(f)
	if err != nil {
		return nil, err
	}
	w := &issueReport{id: id, trusted: rank == rankRead}
	w.fields, w.named = issueFields(f)
	kept, dropped := keepPayload(payload)
	w.payload = &storev1.IssuePayload{Payload: kept, Source: source, Dropped: dropped}
	w.stamp = newStamp(w.fields, w.fields.GetLinearUpdateTime(), rank, sent)
	for _, always := range []string{"identifier", "title", "state", "team"} {
		w.stamp.Partial = w.stamp.GetPartial() || !slices.Contains(w.named, always)
	}
	return w, nil
}

// readID is the id of something of Linear's.
func readID(f map[string]*structpb.Value) (string, error) {
	switch id := text(f, "id"); {
	case id == "":
		return "", errors.New("has no id")
	case !isID(id):
		return "", errors.New("has an id that is none of Linear's")
	default:
		return id, nil
	}
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

// newStamp orders a report that has these fields and was sent, or read, at a time.
func newStamp(fields proto.Message, update *timestamppb.Timestamp, rank int32, sent time.Time) *storev1.IssueStamp {
	stamp := &storev1.IssueStamp{Rank: rank, SentMs: sent.UnixMilli(), Hash: hashFields(fields)}
	if update != nil {
		stamp.TimeMs = update.AsTime().UnixMilli()
	} else {
		stamp.TimeMs, stamp.Guessed = stamp.GetSentMs(), true
	}
	return stamp
}

// believable are a report's stamp and fields with the times as they can be: no report is from the future, so a time that is far ahead is
// taken for the one at which the report was sent. A report without a time of its own has that one, too.
func believable[S proto.Message](stamp *storev1.IssueStamp, fields S, now time.Time) (*storev1.IssueStamp, S) {
	latest := now.Add(futureSkew)
	stamp, fields = proto.CloneOf(stamp), proto.CloneOf(fields)
	if sent := stamp.GetSentMs(); sent <= 0 || sent > latest.UnixMilli() {
		stamp.SentMs = min(max(sent, 0), now.UnixMilli())
	}
	if stamp.GetGuessed() || stamp.GetTimeMs() > latest.UnixMilli() {
		stamp.TimeMs, stamp.Guessed = cmp.Or(stamp.GetSentMs(), now.UnixMilli()), true
	}
	m := fields.ProtoReflect()
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Kind() == protoreflect.MessageKind && !f.IsList() {
			if t, ok := v.Message().Interface().(*timestamppb.Timestamp); ok && t.AsTime().After(latest) {
				m.Set(f, protoreflect.ValueOfMessage(timestamppb.New(now).ProtoReflect()))
			}
		}
		return true
	})
	return stamp, fields
}

// isID reports whether a text can be the id of something of Linear's.
func isID(s string) bool {
	return s != "" && len(s) <= maxIssueID && !strings.ContainsFunc(s, notIDRune)
}

func notIDRune(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._:-", r)
}

// issueFields reads what is worth querying, and names the fields of which there is something.
func issueFields(f map[string]*structpb.Value) (s *storev1.IssueState, named []string) {
	s = &storev1.IssueState{}
	named = readFields(s, f)
	if shapeOf(f["previousIdentifiers"]) == aList {
		s.PreviousIdentifiers, named = identifiers(f), append(named, "previous_identifiers")
	}
	if shapeOf(f["labelIds"]) == aList || isThings(f, "labels") {
		s.Labels, named = labels(f), append(named, "labels")
	}
	if isThings(f, "relations") && isThings(f, "inverseRelations") {
		s.Relations, named = relations(f), append(named, "relations")
	}
	slices.Sort(named)
	return s, named
}

func identifiers(f map[string]*structpb.Value) []string {
	all := texts(f, "previousIdentifiers")
	all = all[max(0, len(all)-maxIdentifiers):]
	for i := range all {
		all[i], _ = cut(all[i], maxIdentifier)
	}
	return all
}

// refs are what an issue refers to by id and name, but for labels.
func refs(s *storev1.IssueState) map[string]*storev1.Ref {
	return map[string]*storev1.Ref{
		"assignee": s.GetAssignee(), "delegate": s.GetDelegate(), "creator": s.GetCreator(), "project": s.GetProject(), "cycle": s.GetCycle(), "parent": s.GetParent(),
		"milestone": s.GetMilestone(),
	}
}

// keepNames gives things the names that they had, where a report has only their ids, or was sent before somebody renamed them.
func keepNames(s, old *storev1.IssueState, named []string, sentMs int64) {
	was := map[string]*storev1.Label{}
	for _, l := range old.GetLabels() {
		was[l.GetId()] = l
	}
	for _, l := range s.GetLabels() {
		if !slices.Contains(named, "labels") {
			break
		}
		if known := was[l.GetId()]; known != nil && (l.GetName() == "" || known.GetNamedMs() > sentMs) {
			l.Name, l.Color, l.NamedMs = known.GetName(), cmp.Or(known.GetColor(), l.GetColor()), known.GetNamedMs()
		} else if l.GetName() != "" {
			l.NamedMs, l.Color = sentMs, cmp.Or(l.GetColor(), known.GetColor())
		}
	}
	earlier := refs(old)
	for field, r := range refs(s) {
		if r == nil || !slices.Contains(named, field) {
			continue
		}
		if known := earlier[field]; known.GetId() == r.GetId() && (r.GetName() == "" || known.GetNamedMs() > sentMs) {
			r.Name, r.NamedMs = known.GetName(), known.GetNamedMs()
		} else if r.GetName() != "" {
			r.NamedMs = sentMs
		}
	}
	if was := old.GetState(); s.GetState().GetId() != "" && s.GetState().GetId() == was.GetId() {
		s.State.Name, s.State.Type = cmp.Or(s.GetState().GetName(), was.GetName()), cmp.Or(s.GetState().GetType(), was.GetType())
		s.State.Color = cmp.Or(s.GetState().GetColor(), was.GetColor())
	}
	if was := old.GetTeam(); s.GetTeam() != nil && s.GetTeam().GetId() == was.GetId() {
		s.Team.Name, s.Team.Key = cmp.Or(s.GetTeam().GetName(), was.GetName()), cmp.Or(s.GetTeam().GetKey(), was.GetKey())
	}
}

// labels are an issue's labels by their ids.
func labels(f map[string]*structpb.Value) []*storev1.Label {
	known := map[string]*storev1.Label{}
	add := func(id, name, color string) {
		if l := known[id]; isID(id) && (l != nil || len(known) < maxLabels) {
			known[id] = &storev1.Label{Id: id, Name: name, Color: color}
		}
	}
	for _, id := range texts(f, "labelIds") {
		add(id, "", "")
	}
	for _, v := range things(f, "labels") {
		label := v.GetStructValue().GetFields()
		add(text(label, "id"), nameOf(label), color(label))
	}
	out := slices.Collect(maps.Values(known))
	slices.SortFunc(out, func(a, b *storev1.Label) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return out
}

// relations are how an issue is related to others, from both ends.
func relations(f map[string]*structpb.Value) (out []*storev1.IssueRelation) {
	for _, end := range []struct {
		list, issue string
		inverse     map[string]string
	}{{"relations", "relatedIssue", nil}, {"inverseRelations", "issue", map[string]string{"blocks": "blocked_by", "duplicate": "duplicated_by"}}} {
		for _, v := range things(f, end.list) {
			r := v.GetStructValue().GetFields()
			other := reference(r, end.issue)
			if other == nil || !isID(text(r, "id")) || len(out) == maxListed {
				continue
			}
			kind, _ := cut(text(r, "type"), maxIdentifier)
			out = append(out, &storev1.IssueRelation{Id: text(r, "id"), Type: cmp.Or(end.inverse[kind], kind), Issue: other})
		}
	}
	slices.SortFunc(out, func(a, b *storev1.IssueRelation) int {
		return cmp.Or(cmp.Compare(a.GetType(), b.GetType()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return out
}

func hashFields(s proto.Message) string {
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
	stamp, fields := believable(w.stamp, w.fields, now)
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
	keepNames(s, was, w.named, max(stamp.GetSentMs(), stamp.GetTimeMs()))
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
	was := proto.CloneOf(tx.State())
	changed, applied := applyReport(tx.State(), w, tx.Exists(), tx.Now())
	recorded := recordChange(tx, w, was, applied)
	recorded = confirm(tx.State()) || recorded
	switch {
	case applied && w.payload != nil:
		payload := proto.CloneOf(w.payload)
		if old, ok := tx.Entry(inRaw, rawKey).(*storev1.IssuePayload); ok {
			addPayload(payload, old)
		}
		payload.ReceiveTime = timestamppb.New(tx.Now())
		tx.Put(inRaw, rawKey, payload)
	case !changed && !recorded:
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

// open reports whether an issue is still to be done.
func open(s *storev1.IssueState) bool {
	switch s.GetState().GetType() {
	case "completed", "canceled", "duplicate":
		return false
	}
	return known(s) && s.GetArchiveTime() == nil && !s.GetTrashed()
}

// known reports whether an issue was heard of for certain, or asked for here, and is still there.
func known(s *storev1.IssueState) bool {
	return (s.GetStamp() != nil || creating(s)) && s.GetRemoveTime() == nil
}

// issueTerms are what issues can be listed by; each term of a set has one for the open ones alone. A removed issue has
// none, but for asking Linear about it.
func issueTerms(s *storev1.IssueState) []string {
	t := outboxTerms(s)
	if s = shown(s); known(s) {
		t = append(t, "any")
		for _, set := range [][2]string{
			{"team=", s.GetTeam().GetId()}, {"linear_project=", s.GetProject().GetId()}, {"assignee=", s.GetAssignee().GetId()},
		} {
			if set[1] != "" {
				t = append(t, set[0]+set[1])
			}
		}
		if open(s) {
			for _, term := range t[slices.Index(t, "any")+1:] {
				t = append(t, term+"/open")
			}
			t = append(t, "open")
		}
		for _, set := range [][2]string{{"cycle=", s.GetCycle().GetId()}, {"parent=", s.GetParent().GetId()}, {"delegate=", s.GetDelegate().GetId()}} {
			if set[1] != "" {
				t = append(t, set[0]+set[1])
			}
		}
		for _, l := range s.GetLabels() {
			t = append(t, "label="+l.GetId())
		}
		for _, identifier := range append(s.GetPreviousIdentifiers(), s.GetIdentifier()) {
			if identifier != "" {
				t = append(t, "identifier="+identifier)
			}
		}
	}
	if s.GetRefetch() {
		t = append(t, refetchTerm)
	}
	slices.Sort(t)
	return slices.Compact(t)
}

// issueOrders are where an issue is in each order, among all and among the open ones.
func issueOrders(s *storev1.IssueState) (orders []object.Order) {
	if !known(s) {
		return nil
	}
	sets := []string{"any"}
	if open(s) {
		sets = append(sets, "open")
	}
	updated, urgency := milli(s.GetLinearUpdateTime()), int64(0)
	if p := s.GetPriority(); p > 0 && p < 5 {
		urgency = int64(5 - p)
	}
	for _, set := range sets {
		orders = append(orders,
			object.Order{Term: orderTerm(linearv1.IssueOrder_ISSUE_ORDER_UPDATED, set), Time: time.UnixMilli(updated)},
			object.Order{Term: orderTerm(linearv1.IssueOrder_ISSUE_ORDER_CREATED, set), Time: time.UnixMilli(milli(s.GetLinearCreateTime()))},
			object.Order{Term: orderTerm(linearv1.IssueOrder_ISSUE_ORDER_PRIORITY, set), Time: time.UnixMilli(updated + urgency*millennium)})
	}
	return orders
}

func orderTerm(o linearv1.IssueOrder, set string) string { return "order=" + o.String() + "/" + set }

const (
	// lastMilli is in the year 2286.
	lastMilli  = 9_999_999_999_999
	millennium = 1000 * 365 * 24 * 3600 * 1000
)

func milli(t *timestamppb.Timestamp) int64 { return min(max(t.AsTime().UnixMilli(), 0), lastMilli) }

// refetchTerm lists the issues that Linear has to be asked for.
const refetchTerm = "refetch"

func issueTTL(s *storev1.IssueState) time.Duration {
	if s.GetRemoveTime() != nil || s.GetStamp() == nil && !s.GetRefetch() && !creating(s) {
		return tombstoneTTL
	}
	return 0
}

// readPayload reads JSON that came over the wire as a struct. Numbers become float64.
func readPayload(raw []byte) (*structpb.Struct, error) {
	s := &structpb.Struct{}
	return s, protojson.Unmarshal(bytes.ToValidUTF8(raw, []byte("\uFFFD")), s)
}
