package conversation

import (
	"errors"
	"math"
	"strings"
	"testing"

	"connectrpc.com/connect"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

// An index that no client reaches by counting is refused, and does not make the client's later frames pass for folded ones.
func TestAnIndexBeyondReachIsRefusedAndHarmsNothing(t *testing.T) {
	t.Parallel()
	const far = maxIndexGap + 1 // behind the last frame, which may be folded
	for name, tt := range map[string]struct {
		indexes []int64
		refused bool
		last    int64
		skipped int32
	}{
		"below zero":                    {indexes: []int64{-1}, refused: true},
		"the least number":              {indexes: []int64{math.MinInt64}, refused: true},
		"zero":                          {indexes: []int64{0}, refused: true},
		"the next":                      {indexes: []int64{11}, last: 11},
		"the same again":                {indexes: []int64{10}, last: 10, skipped: 1},
		"one twice in a batch":          {indexes: []int64{11, 11, 12}, last: 12, skipped: 1},
		"an earlier one":                {indexes: []int64{12, 3, 13}, last: 13, skipped: 1},
		"a gap":                         {indexes: []int64{5000}, last: 5000},
		"the widest gap":                {indexes: []int64{10 + far}, last: 10 + far},
		"the widest gap, twice":         {indexes: []int64{10 + far, 10 + 2*far}, last: 10 + 2*far},
		"a gap too wide":                {indexes: []int64{10 + far + 2}, refused: true},
		"a gap too wide, in a batch":    {indexes: []int64{11, 12 + far}, refused: true},
		"a gap too wide, behind an old": {indexes: []int64{1, 10 + far + 2}, refused: true},
		"seconds since 1970":            {indexes: []int64{1_700_000_000}, refused: true},
		"beyond 32 bits":                {indexes: []int64{1 << 32}, refused: true},
		"beyond a double":               {indexes: []int64{1 << 53}, refused: true},
		"almost the greatest":           {indexes: []int64{math.MaxInt64 - 1}, refused: true},
		"the greatest":                  {indexes: []int64{math.MaxInt64}, refused: true},
		"the greatest, in a batch":      {indexes: []int64{11, math.MaxInt64}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := setup(t).client(t, ada)
			ctx := t.Context()
			create(t, c)
			must(c.OpenLive(ctx, &conversationv1.OpenLiveRequest{ConversationId: c1}))(t)
			ingest := func(indexes ...int64) (*conversationv1.IngestLiveResponse, error) {
				req := &conversationv1.IngestLiveRequest{ConversationId: c1, Epoch: 1}
				for _, i := range indexes {
					req.Frames = append(req.Frames, &conversationv1.LiveFrame{ClientIndex: i, Frame: &conversationv1.LiveFrame_Text{Text: `{"realtimeInput":{"text":"hello"}}`}})
				}
				return c.IngestLive(ctx, req)
			}
			must(ingest(10))(t)
			res, err := ingest(tt.indexes...)
			if refusal, ok := errors.AsType[*connect.Error](err); tt.refused {
				if !ok || refusal.Code() != connect.CodeInvalidArgument || len(refusal.Details()) == 0 || !strings.Contains(refusal.Message(), "client_index") {
					t.Errorf("%v, %v, want a refusal", res, err)
				}
			} else if err != nil || res.GetLastClientIndex() != tt.last || res.GetSkippedFrames() != tt.skipped {
				t.Errorf("%v, %v", res, err)
			}
			next := max(tt.last, 10) + 1
			if res, err := ingest(next); err != nil || res.GetLastClientIndex() != next || res.GetSkippedFrames() != 0 {
				t.Errorf("the frame behind it: %v, %v", res, err)
			}

			// Of a connection that was replaced nothing is folded, and what it says later is kept as well.
			must(c.OpenLive(ctx, &conversationv1.OpenLiveRequest{ConversationId: c1}))(t)
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
