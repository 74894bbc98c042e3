package linear

import (
	"context"
	"errors"
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

// part is what is stored of something that belongs to an issue and has an id of its own.
type part interface {
	stamped
	GetIssueId() string
	GetRemoveTime() *timestamppb.Timestamp
	GetLinearCreateTime() *timestamppb.Timestamp
	GetLinearUpdateTime() *timestamppb.Timestamp
}

// stamped is what is stored of something that reports tell of.
type stamped interface {
	proto.Message
	GetStamp() *storev1.IssueStamp
}

// partReport is one report about a part, from a webhook or from Linear's API. It says nothing of the fields that it does not name.
type partReport[S part] struct {
	id      string
	fields  S
	named   []string
	stamp   *storev1.IssueStamp
	removed bool
}

// newPartReport reads a part as Linear wrote it into fields, which are empty. sent is when it was sent, or read.
func newPartReport[S part](fields S, payload *structpb.Struct, rank int32, sent time.Time) (*partReport[S], error) {
	id, err := readID(payload.GetFields())
	if err != nil {
		return nil, err
	}
	named := readFields(fields, payload.GetFields())
	return &partReport[S]{id: id, fields: fields, named: named, stamp: newStamp(fields, fields.GetLinearUpdateTime(), rank, sent)}, nil
}

// removal turns a report into one of the part's removal at a time.
func (w *partReport[S]) removal(at time.Time) {
	w.removed, w.stamp.Guessed, w.stamp.Rank = true, false, rankRemoval
	w.stamp.TimeMs = max(at.UnixMilli(), w.fields.GetLinearUpdateTime().AsTime().UnixMilli())
}

// apply applies the report in a change and returns whether it is newer than what is stored: the newest wins, so reports may come in any
// order and more than once.
func (w *partReport[S]) apply(tx *object.Tx[S]) bool {
	stamp, fields := believable(w.stamp, w.fields, tx.Now())
	was := tx.State().GetStamp()
	if tx.Exists() && was != nil && compareStamps(stamp, was) <= 0 {
		return false
	}
	if tx.Exists() && was.GetTimeMs() == stamp.GetTimeMs() && was.GetHash() == stamp.GetHash() && !w.removed {
		return false // read from Linear, and nothing new
	}
	rpc.Set(tx.State(), fields, w.named...)
	m, f := tx.State().ProtoReflect(), tx.State().ProtoReflect().Descriptor().Fields()
	m.Set(f.ByName("stamp"), protoreflect.ValueOfMessage(stamp.ProtoReflect()))
	m.Clear(f.ByName("remove_time"))
	if w.removed {
		m.Set(f.ByName("remove_time"), protoreflect.ValueOfMessage(timestamppb.New(time.UnixMilli(stamp.GetTimeMs())).ProtoReflect()))
	}
	return true
}

// store applies the report to the part's object.
func (w *partReport[S]) store(ctx context.Context, k *object.Kind[S]) (applied bool, _ error) {
	_, err := k.Update(ctx, object.ID(w.id), func(tx *object.Tx[S]) error {
		if applied = w.apply(tx); !applied {
			tx.Unchanged()
		}
		return nil
	}, object.Upsert(), object.Shared())
	return applied, err
}

// partTTL keeps what was removed as a tombstone.
func partTTL[S part](s S) time.Duration {
	if s.GetRemoveTime() != nil {
		return tombstoneTTL
	}
	return 0
}

// How the orders begin in which parts of an issue are listed.
const (
	oldestOf = "oldest="
	newestOf = "newest="
)

// partOrders are how an issue's parts are listed, in either direction.
func partOrders[S part](s S) []object.Order {
	if s.GetIssueId() == "" || s.GetRemoveTime() != nil {
		return nil
	}
	created := milli(s.GetLinearCreateTime())
	return []object.Order{
		{Term: oldestOf + s.GetIssueId(), Time: time.UnixMilli(lastMilli - created)}, {Term: newestOf + s.GetIssueId(), Time: time.UnixMilli(created)},
	}
}

// listParts reads a page of an issue's parts. There are none of an issue that was removed.
func listParts[S part, M proto.Message](
	ctx context.Context, m *Manager, k *object.Kind[S], req rpc.ListRequest, issue, direction string, empty func() M,
) ([]M, string, error) {
	s, err := m.o.Issues.View(ctx, object.ID(issue))
	if err != nil && !errors.Is(err, object.ErrNotFound) || s.State.GetRemoveTime() != nil {
		return nil, "", err
	}
	return rpc.List(ctx, k, req, object.ListOptions{Order: direction + issue}, func(s object.Snapshot[S]) M {
		return rpc.Present(empty(), s.Info, s.State)
	})
}

// ListComments implements LinearService.
func (m *Manager) ListComments(ctx context.Context, req *linearv1.ListCommentsRequest) (*linearv1.ListCommentsResponse, error) {
	direction := oldestOf
	if req.GetNewestFirst() {
		direction = newestOf
	}
	comments, next, err := listParts(ctx, m, m.o.Comments, req, req.GetFilter().GetIssueId(), direction, func() *linearv1.Comment { return &linearv1.Comment{} })
	if err != nil {
		return nil, err
	}
	return &linearv1.ListCommentsResponse{Comments: comments, NextPageToken: next}, nil
}

// ListAttachments implements LinearService.
func (m *Manager) ListAttachments(ctx context.Context, req *linearv1.ListAttachmentsRequest) (*linearv1.ListAttachmentsResponse, error) {
	attachments, next, err := listParts(ctx, m, m.o.Attachments, req, req.GetIssueId(), oldestOf, func() *linearv1.Attachment { return &linearv1.Attachment{} })
	if err != nil {
		return nil, err
	}
	return &linearv1.ListAttachmentsResponse{Attachments: attachments, NextPageToken: next}, nil
}

// takePart applies a webhook about a part of an issue.
func takePart[S part](ctx context.Context, h *Webhook, k *object.Kind[S], fields S, e *envelope) (string, error) {
	data := e.fields["data"].GetStructValue()
	w, err := newPartReport(fields, data, rankWebhook, e.sent)
	if err != nil {
		return e.unreadable(ctx, h, err), nil
	}
	switch text(e.fields, "action") {
	case "create", "update":
		issue := w.fields.GetIssueId()
		if _, err := k.View(ctx, object.ID(w.id)); errors.Is(err, object.ErrNotFound) && issue == "" {
			return "ignored: it does not belong to an issue", nil
		} else if err != nil && !errors.Is(err, object.ErrNotFound) {
			return "", err
		}
		if kept, err := h.keeps(ctx, e.endpoint.State.GetTeamIds(), issue, inner(data.GetFields(), "issue")); err != nil || !kept {
			return ofAnotherTeam, err
		}
	case "remove":
		w.removal(e.at())
	default:
		return unknownAction, nil
	}
	applied, err := w.store(ctx, k)
	if err != nil || !applied {
		return "not newer than what is known", err
	}
	return "applied", confirmComment(ctx, h.c.Issues, w.fields.GetIssueId(), w.id)
}

// keeps reports whether an endpoint of some teams keeps what belongs to an issue, of which the webhook may have the team.
func (h *Webhook) keeps(ctx context.Context, teams []string, issue string, said map[string]*structpb.Value) (bool, error) {
	if len(teams) == 0 || issue == "" {
		return true, nil
	}
	if team := reference(said, "team"); team != nil {
		return slices.Contains(teams, team.GetId()), nil
	}
	s, err := h.c.Issues.View(ctx, object.ID(issue))
	if errors.Is(err, object.ErrNotFound) {
		return false, nil
	}
	return known(s.State), err // the endpoint keeps those that it knows
}
