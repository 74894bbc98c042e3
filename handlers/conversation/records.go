package conversation

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// recordsIn is where records of a type are kept.
func recordsIn(t conversationv1.RecordType) string {
	switch t {
	case conversationv1.RecordType_RECORD_TYPE_INTENT:
		return inIntents
	case conversationv1.RecordType_RECORD_TYPE_FLOW_STEP:
		return inFlowSteps
	case conversationv1.RecordType_RECORD_TYPE_SUMMARY:
		return inSummaries
	case conversationv1.RecordType_RECORD_TYPE_FRAGMENT:
		return inFragments
	default:
		return inToolCalls
	}
}

// recordStream is the records of one type, in the direction of a list.
type recordStream struct {
	collection string
	entries    []object.Entry
	more       bool // entries follow that were not read
}

func (s *recordStream) time() time.Time {
	came, _ := s.entries[0].Value.(interface{ GetCreateTime() *timestamppb.Timestamp })
	return came.GetCreateTime().AsTime()
}

// ListRecords implements ConversationService. Its cursor has the last key of each collection.
func (m *Manager) ListRecords(
	ctx context.Context, req *conversationv1.ListRecordsRequest,
) (*conversationv1.ListRecordsResponse, error) {
	cursor, err := rpc.Cursor(req)
	if err != nil {
		return nil, err
	}
	last := map[string]string{}
	if cursor != "" && json.Unmarshal([]byte(cursor), &last) != nil {
		return nil, rpc.PageError(object.ErrInvalid)
	}
	types := req.GetTypes()
	for t := range conversationv1.RecordType_name {
		if len(req.GetTypes()) == 0 && t != 0 {
			types = append(types, conversationv1.RecordType(t))
		}
	}
	slices.Sort(types) // of one moment, always in the same order
	streams := make([]*recordStream, len(types))
	size := cmp.Or(int(req.GetPageSize()), object.DefaultPageSize)
	for i, t := range types {
		if streams[i], err = m.records(ctx, req, recordsIn(t), last, size); err != nil {
			return nil, err
		}
	}
	res := &conversationv1.ListRecordsResponse{}
	var room object.Room
	for {
		next, whole := nextRecord(streams, req.GetNewestFirst())
		if next == nil && whole {
			return res, nil
		}
		if next != nil {
			record := presentRecord(next.entries[0].Value)
			if len(res.Records) < size && room.Fits(rpc.AnswerSize(record)) {
				res.Records = append(res.Records, record)
				last[next.collection], next.entries = next.entries[0].Key, next.entries[1:]
				continue
			}
		}
		at, err := json.Marshal(last)
		res.NextPageToken = rpc.Token(req, string(at))
		return res, err
	}
}

func (m *Manager) records(
	ctx context.Context, req *conversationv1.ListRecordsRequest, collection string, last map[string]string, size int,
) (*recordStream, error) {
	o := object.EntriesOptions{PageSize: size, After: last[collection]}
	if req.GetNewestFirst() {
		o = object.EntriesOptions{PageSize: size, Before: cmp.Or(last[collection], lastKey)}
	}
	page, err := m.kind.Entries(ctx, object.ID(req.GetConversationId()), collection, o)
	if err != nil {
		return nil, err
	}
	if req.GetNewestFirst() {
		slices.Reverse(page.Entries)
	}
	return &recordStream{collection, page.Entries, page.More}, nil
}

// nextRecord is the stream whose record comes next; nil: there is none, or it was not read. whole is false where more follows.
func nextRecord(streams []*recordStream, newestFirst bool) (next *recordStream, whole bool) {
	whole = true
	for _, s := range streams {
		switch {
		case len(s.entries) == 0 && s.more: // what was not read may come before the others
			return nil, false
		case len(s.entries) == 0:
		case next == nil, newestFirst && s.time().After(next.time()), !newestFirst && s.time().Before(next.time()):
			next = s
		}
	}
	return next, whole
}
