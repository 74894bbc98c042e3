package linear

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linearv1 "holdfast/gen/holdfast/linear/v1"
	storev1 "holdfast/gen/holdfast/store/linear/v1"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

const (
	maxProperties = 64   // of one change
	maxChanged    = 2000 // bytes of a value
)

// webhookChange is what a webhook tells of who changed what.
func webhookChange(envelope map[string]*structpb.Value) *storev1.IssueChange {
	c := &storev1.IssueChange{Source: "webhook"}
	c.Action, _ = cut(text(envelope, "action"), maxIdentifier)
	if a := inner(envelope, "actor"); isID(text(a, "id")) || nameOf(a) != "" {
		kind, _ := cut(text(a, "type"), maxIdentifier)
		c.Actor = &storev1.Actor{Name: nameOf(a), Type: kind}
		if isID(text(a, "id")) {
			c.Actor.Id = text(a, "id")
		}
	}
	was, is := inner(envelope, "updatedFrom"), inner(envelope, "data")
	for _, name := range slices.Sorted(maps.Keys(was)) {
		if name != "updatedAt" {
			addProperty(c, name, was[name], is[name])
		}
	}
	return c
}

func addProperty(c *storev1.IssueChange, name string, from, to *structpb.Value) {
	name, long := cut(name, maxName)
	if long || len(c.GetProperties()) == maxProperties {
		return
	}
	p := &storev1.PropertyChange{Name: name, From: storable(from, 4), To: storable(to, 4)}
	if proto.Size(p) > 2*maxChanged {
		p.From, p.To, p.Omitted = nil, nil, true
	}
	c.Properties = append(c.Properties, p)
}

// stateChange is how a report that tells of no change changed an issue.
func stateChange(was, is *storev1.IssueState, named []string) *storev1.IssueChange {
	c := &storev1.IssueChange{Action: "update", Source: "poll"}
	for _, name := range named {
		f := is.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(name))
		from, property := changed(was.ProtoReflect(), f)
		to, _ := changed(is.ProtoReflect(), f)
		if property != "" && !proto.Equal(from, to) {
			addProperty(c, property, from, to)
		}
	}
	return c
}

// changed is a field as a webhook tells of it; a field of which none tells has no name.
func changed(m protoreflect.Message, f protoreflect.FieldDescriptor) (*structpb.Value, string) {
	id := func(v protoreflect.Message) *structpb.Value {
		if s := v.Get(v.Descriptor().Fields().ByName("id")).String(); s != "" {
			return structpb.NewStringValue(s)
		}
		return structpb.NewNullValue()
	}
	v := m.Get(f)
	switch {
	case f.Name() == "labels":
		ids := &structpb.ListValue{}
		for i := range v.List().Len() {
			ids.Values = append(ids.Values, id(v.List().Get(i).Message()))
		}
		return structpb.NewListValue(ids), "labelIds"
	case f.IsList(), property(f) == "":
		return nil, ""
	case f.Kind() == protoreflect.MessageKind && f.Message().Fields().ByName("id") != nil:
		return id(v.Message()), property(f) + "Id"
	case f.Kind() == protoreflect.MessageKind: // times follow from the state
		return nil, ""
	case f.Kind() == protoreflect.DoubleKind && !m.Has(f), f.Kind() == protoreflect.StringKind && !m.Has(f):
		return structpb.NewNullValue(), property(f)
	}
	value, err := structpb.NewValue(v.Interface())
	if err != nil {
		return nil, ""
	}
	return value, property(f)
}

// recordChange keeps what a report tells of who changed what, whether it is applied or came late, once. It returns whether that is new.
func recordChange(tx *object.Tx[issueState], w *issueReport, was *storev1.IssueState, applied bool) bool {
	stamp, _ := believable(w.stamp, &storev1.IssueState{}, tx.Now())
	at := fmt.Sprintf("%013d", max(stamp.GetTimeMs(), 0))
	c := proto.CloneOf(w.change)
	var key string
	switch {
	case c != nil && (len(c.GetProperties()) > 0 || c.GetAction() != "update"):
		key = at + "-" + hashFields(c)
		tx.DeleteEntry(inHistory, at) // the sync saw it first
	case c == nil && applied && was.GetStamp() != nil && was.GetRemoveTime() == nil && stamp.GetTimeMs() > was.GetStamp().GetTimeMs() && !w.removed:
		c, key = stateChange(was, tx.State(), w.named), at
		if len(c.GetProperties()) == 0 {
			return false
		}
	default:
		return false
	}
	if tx.Entry(inHistory, key) != nil {
		return false
	}
	c.Time = timestamppb.New(time.UnixMilli(stamp.GetTimeMs()))
	tx.Put(inHistory, key, c)
	return true
}

// ListIssueHistory implements LinearService.
func (m *Manager) ListIssueHistory(ctx context.Context, req *linearv1.ListIssueHistoryRequest) (*linearv1.ListIssueHistoryResponse, error) {
	page, next, err := rpc.ListEntries(ctx, m.o.Issues, object.ID(req.GetIssueId()), inHistory, req, object.EntriesOptions{Before: "~"})
	if err != nil && !errors.Is(err, object.ErrNotFound) {
		return nil, err
	}
	res := &linearv1.ListIssueHistoryResponse{NextPageToken: next}
	for _, c := range slices.Backward(rpc.Values[*storev1.IssueChange](page.Entries)) {
		shown := &linearv1.IssueChange{}
		rpc.Copy(shown, c)
		res.Changes = append(res.Changes, shown)
	}
	return res, nil
}
