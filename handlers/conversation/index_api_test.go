package conversation

import (
	"errors"
	"math"
	"strings"
	"testing"

	"connectrpc.com/connect"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/handlers/conversation/voice"
)

// An index that no client reaches by counting is refused, and does not make the client's later frames pass for folded ones.
func TestAnIndexBeyondReachIsRefusedAndHarmsNothing(t *testing.T) {
	t.Parallel()
	const far = voice.MaxIndexGap + 1 // behind the last frame, which may be folded
	for name, tt := range map[string]struct {
		indexes []int32
		refused bool
		last    int32
	}{
		"below zero":                    {indexes: []int32{-1}, refused: true},
		"the least number":              {indexes: []int32{math.MinInt32}, refused: true},
		"zero":                          {indexes: []int32{0}, refused: true},
		"the next":                      {indexes: []int32{11}, last: 11},
		"the same again":                {indexes: []int32{10}, last: 10},
		"one twice in a batch":          {indexes: []int32{11, 11, 12}, last: 12},
		"an earlier one":                {indexes: []int32{12, 3, 13}, last: 13},
		"a gap":                         {indexes: []int32{5000}, last: 5000},
		"the widest gap":                {indexes: []int32{10 + far}, last: 10 + far},
		"the widest gap, twice":         {indexes: []int32{10 + far, 10 + 2*far}, last: 10 + 2*far},
		"a gap too wide":                {indexes: []int32{10 + far + 2}, refused: true},
		"a gap too wide, in a batch":    {indexes: []int32{11, 12 + far}, refused: true},
		"a gap too wide, behind an old": {indexes: []int32{1, 10 + far + 2}, refused: true},
		"seconds since 1970":            {indexes: []int32{1_700_000_000}, refused: true},
		"almost the greatest":           {indexes: []int32{math.MaxInt32 - 1}, refused: true},
		"the greatest":                  {indexes: []int32{math.MaxInt32}, refused: true},
		"the greatest, in a batch":      {indexes: []int32{11, math.MaxInt32}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := setup(t).client(t, ada)
			ctx := t.Context()
			create(t, c)
			openLive(t, c)
			ingest := func(indexes ...int32) (*livev1.IngestLiveResponse, error) {
				req := &livev1.IngestLiveRequest{ConversationId: c1, FencingToken: 1}
				for _, i := range indexes {
					req.Frames = append(req.Frames, &livev1.LiveFrame{ClientIndex: i, Frame: &livev1.LiveFrame_Text{Text: `{"realtimeInput":{"text":"hello"}}`}})
				}
				return c.IngestLive(ctx, req)
			}
			must(ingest(10))(t)
			res, err := ingest(tt.indexes...)
			if refusal, ok := errors.AsType[*connect.Error](err); tt.refused {
				if !ok || refusal.Code() != connect.CodeInvalidArgument || len(refusal.Details()) == 0 || !strings.Contains(refusal.Message(), "client_index") {
					t.Errorf("%v, %v, want a refusal", res, err)
				}
			} else if err != nil || res.GetStoredThrough() != tt.last {
				t.Errorf("%v, %v", res, err)
			}
			next := max(tt.last, 10) + 1
			if res, err := ingest(next); err != nil || res.GetStoredThrough() != next {
				t.Errorf("the frame behind it: %v, %v", res, err)
			}

			// Of a connection that was replaced nothing is folded, and what it says later is kept as well.
			openLive(t, c)
			_, _ = ingest(tt.indexes...)
			before := must(c.ListRecords(ctx, &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_FRAGMENT}}))(t)
			if _, err := ingest(next + 1); connect.CodeOf(err) != connect.CodeFailedPrecondition {
				t.Errorf("the older connection: %v", err)
			}
			after := must(c.ListRecords(ctx, &conversationv1.ListRecordsRequest{ConversationId: c1, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_FRAGMENT}}))(t)
			if len(after.GetRecords()) != len(before.GetRecords())+1 {
				t.Errorf("%v fragments, and before %v", after.GetRecords(), before.GetRecords())
			}
		})
	}
}
