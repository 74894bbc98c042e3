package conversation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

// Every answer about a conversation of large messages ends at 2 MiB, in JSON and in binary, and what it leaves out can be
// had: a gRPC client with its default of 4 MiB reads and follows all of it.
func TestAnswersEndAtTwoMebibytes(t *testing.T) {
	t.Parallel()
	const most, messages, each = 2 << 20, 240, 60
	c := setup(t).client(t, ada, connect.WithGRPC(), connect.WithReadMaxBytes(4<<20))
	ctx := t.Context()
	create(t, c)
	for from := 0; from < messages; from += each {
		var all []string
		for i := range each {
			all = append(all, fmt.Sprintf("%03d ", from+i+1)+strings.Repeat(`"word" `, 5000)) // quotes are longer in JSON
		}
		say(t, c, all...)
	}
	check := func(what string, m proto.Message) {
		t.Helper()
		encoded, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, encoded); err != nil {
			t.Fatal(err)
		}
		if n := max(compact.Len(), proto.Size(m)); n > most {
			t.Errorf("%s: %d bytes", what, n)
		}
	}
	seen := func(what string, got map[int64]int) {
		t.Helper()
		if len(got) != messages {
			t.Errorf("%s: %d messages", what, len(got))
		}
		for seq, n := range got {
			if n != 1 {
				t.Errorf("%s: message %d came %d times", what, seq, n)
			}
		}
	}

	forward := map[int64]int{}
	for token, more := "", true; more; {
		res := must(c.ListMessages(ctx, &conversationv1.ListMessagesRequest{ConversationId: c1, PageToken: token, PageSize: 200}))(t)
		check("ListMessages", res)
		for _, m := range res.GetMessages() {
			forward[int64(m.GetSeq())]++
		}
		token, more = res.GetNextPageToken(), res.GetNextPageToken() != ""
	}
	seen("ListMessages", forward)

	res := must(c.GetConversation(ctx, &conversationv1.GetConversationRequest{ConversationId: c1, MessageLimit: 200}))(t)
	check("GetConversation", res)
	if n := len(res.GetMessages()); n == 0 || res.GetMessages()[n-1].GetSeq() != messages {
		t.Fatalf("GetConversation has %d messages", n)
	}
	backward := map[int64]int{}
	for _, m := range res.GetMessages() {
		backward[int64(m.GetSeq())]++
	}
	before := res.GetMessages()[0].GetSeq()
	for token, more := "", true; more; {
		res := must(c.ListMessages(ctx, &conversationv1.ListMessagesRequest{ConversationId: c1, BeforeSeq: before, NewestFirst: true, PageToken: token, PageSize: 200}))(t)
		check("ListMessages backwards", res)
		for _, m := range res.GetMessages() {
			backward[int64(m.GetSeq())]++
		}
		token, more = res.GetNextPageToken(), res.GetNextPageToken() != ""
	}
	seen("GetConversation and ListMessages backwards", backward)

	for _, format := range []conversationv1.ContextFormat{
		conversationv1.ContextFormat_CONTEXT_FORMAT_UNSPECIFIED, conversationv1.ContextFormat_CONTEXT_FORMAT_GEMINI_CONTENTS,
		conversationv1.ContextFormat_CONTEXT_FORMAT_LIVE_SEED,
	} {
		res := must(c.GetContextWindow(ctx, &conversationv1.GetContextWindowRequest{ConversationId: c1, BudgetTokens: 2_000_000, Format: format}))(t)
		check("GetContextWindow", res)
		if w := res.GetWindow(); w.GetToSeq() != messages || w.GetFromSeq() <= 1 || w.GetDroppedCount() != w.GetFromSeq()-1 {
			t.Errorf("the window is %v", w)
		}
	}
	check("ConnectLive", connectAs(t, c, &connectReq{SeedBudgetTokens: 2_000_000}))

	last := res.GetConversation().GetVersion() + 1 // of the connection
	for _, after := range []int64{0, 1} {
		got, pieces := map[int64]int{}, 0
		w := watchAfter(t, c, after)
		for {
			m := w.next(t)
			check("Watch", m.WatchResponse)
			if m.GetReset_() != (after == 0 && pieces == 0) {
				t.Errorf("piece %d after %d: reset %v", pieces, after, m.GetReset_())
			}
			for _, msg := range m.GetMessages() {
				got[int64(msg.GetSeq())]++
			}
			if pieces++; !m.GetMore() {
				if m.GetVersion() != last {
					t.Errorf("the last piece is at version %d", m.GetVersion())
				}
				break
			}
		}
		if after == 0 {
			for seq := range int64(messages - 200) { // those before what was asked for
				got[seq+1]++
			}
		}
		seen(fmt.Sprint("Watch after ", after), got)
	}
}
