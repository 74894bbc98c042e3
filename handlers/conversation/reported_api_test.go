package conversation

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
)

// inPiecesOf are the frames of a call of write_file whose content comes in so many pieces of a thousand letters.
func inPiecesOf(n int) []string {
	frames := []string{`{"toolCall":{"functionCalls":[{"id":"p","name":"write_file","willContinue":true}]}}`}
	for range n {
		frames = append(frames, `{"toolCall":{"functionCalls":[{"id":"p","partialArgs":[{"jsonPath":"$.content","stringValue":"`+strings.Repeat("x", 1000)+`","willContinue":true}],"willContinue":true}]}}`)
	}
	return append(frames, `{"toolCall":{"functionCalls":[{"id":"p"}]}}`)
}

// Conversations that went wrong for people who build voice assistants, and others of their kinds, through the API. want has a line for
// each message and call, in the order in which they were said and made.
func TestReportedConversations(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	type read struct {
		conversation *conversationv1.Conversation
		messages     []*conversationv1.Message
		calls        []*conversationv1.ToolCall
	}
	unknown := func(n int32) func(*testing.T, string, read) {
		return func(t *testing.T, _ string, r read) {
			t.Helper()
			if got := r.conversation.GetLive().GetUnknownFrames(); got != n {
				t.Errorf("counts %d frames that are not understood, want %d", got, n)
			}
		}
	}
	// compacts expects that a conversation can be compacted after more turns on a new session.
	compacts := func(t *testing.T, id string, _ read) {
		t.Helper()
		token := must(c.ConnectLive(t.Context(), &connectReq{ConversationId: id, SetupHash: "other", TakeOver: true}))(t).GetLease().GetFencingToken()
		for i := range int32(6) {
			ask, reply := in(strings.Repeat("a long question ", 20)), out(strings.Repeat("a long answer ", 20))
			must(c.IngestLive(t.Context(), &ingestReq{ConversationId: id, FencingToken: token, Frames: []*livev1.LiveFrame{
				textFrame(int64(3*i+1), ask), textFrame(int64(3*i+2), reply), textFrame(int64(3*i+3), turnComplete),
			}}))(t)
		}
		must(c.ProposeCompaction(t.Context(), &proposeReq{ConversationId: id, KeepTokens: 100}))(t)
	}
	for name, tt := range map[string]struct {
		frames, want []string
		check        func(*testing.T, string, read)
	}{
		// As they were reported.
		"yes, again after a reconnect": {[]string{"VS", "in:yes", "VE", "out:Delete the branch?", "GC", "TC", "OPEN", "VS", "in:yes", "VE", "out:Deleted.", "TC"}, []string{"user: yes", "assistant: Delete the branch?", "user: yes", "assistant: Deleted."}, nil},
		"after a result":               {[]string{"in:start a run", "out:I start it. ", "call:a", "answer:a", "out:It is number 7.", "GC", "TC"}, []string{"user: start a run", "assistant: I start it. ", "call a completed", "assistant: It is number 7."}, nil},
		"no turn is completed":         {[]string{"in:First?", "AU", "out:One.", "GC", "in:Second?", "AU", "out:Two.", "GC"}, []string{"user: First?", "assistant: One.", "user: Second?", "assistant: Two."}, nil},
		"transcription alone":          {[]string{"VS", "in:First.", "VE", "GC", "VS", "in:Second.", "VE", "GC"}, []string{"user: First.", "user: Second."}, nil},
		"words after turnComplete":     {[]string{"in:Hi?", "AU", "out:Hello ", "GC", "TC", "out:there.", "in:How are you?", "AU", "out:Fine.", "GC", "TC"}, []string{"user: Hi?", "assistant: Hello there.", "user: How are you?", "assistant: Fine."}, nil},
		"snake case":                   {[]string{"call:a", `{"tool_response":{"function_responses":[{"id":"a","name":"run","response":{"output":1}}]}}`, `{"client_content":{"turns":[{"role":"user","parts":[{"text":"typed"}]}],"turn_complete":true}}`}, []string{"call a completed", "user: typed"}, unknown(0)},
		"arguments of 70,000 bytes":    {[]string{`{"toolCall":{"functionCalls":[{"id":"w","name":"write_file","args":{"path":"a","content":"` + strings.Repeat("x", 70_000) + `"}}]}}`}, []string{"call w pending"}, func(t *testing.T, _ string, r read) { t.Helper(); hasMark(t, r.calls[0]) }},
		"history, then a question":     {[]string{`{"clientContent":{"turns":[{"role":"user","parts":[{"text":"Ex"}]},{"role":"model","parts":[{"text":"ok"}]},{"role":"user","parts":[{"text":"Real question?"}]}],"turnComplete":true}}`, "out:Real answer.", "TC"}, []string{"user: Real question?", "assistant: Real answer."}, nil},
		"three words, said twice":      {[]string{"in:turn it off", "in:turn it off", "AU", "out:ok", "TC"}, []string{"user: turn it off turn it off", "assistant: ok"}, nil},
		"a call amid a word":           {[]string{"in:go", "out:I start a Cod", "call:g", "out:egen run.", "TC"}, []string{"user: go", "assistant: I start a Codegen run.", "call g pending"}, nil},
		"a signature of a call": {[]string{`{"serverContent":{"modelTurn":{"parts":[{"functionCall":{"id":"s","name":"run"},"thoughtSignature":"c2ln"}]}}}`}, []string{"call s pending"}, func(t *testing.T, _ string, r read) {
			t.Helper()
			equal(t, string(r.calls[0].GetThoughtSignature()), "sig")
		}},
		"an integer over 2^53": {[]string{`{"toolCall":{"functionCalls":[{"id":"n","name":"get","args":{"id":1234567890123456789}}]}}`}, []string{"call n pending"}, func(t *testing.T, _ string, r read) {
			t.Helper()
			equal(t, r.calls[0].GetArgsJson(), `{"id":1234567890123456789}`)
		}},
		"usage after turnComplete": {[]string{"in:Hi?", "out:Hello.", "GC", "TC", `{"usageMetadata":{"responseTokenCount":77,"totalTokenCount":87}}`}, []string{"user: Hi?", "assistant: Hello."}, func(t *testing.T, _ string, r read) { t.Helper(); equal(t, r.messages[1].GetTokenCount(), 77) }},
		"a reason without words": {[]string{"in:q", `{"serverContent":{"turnComplete":true,"turnCompleteReason":"MALFORMED_FUNCTION_CALL"}}`}, []string{"user: q", "assistant: "}, func(t *testing.T, _ string, r read) {
			t.Helper()
			equal(t, r.messages[1].GetSpoken().GetEndReason(), "MALFORMED_FUNCTION_CALL")
		}},
		"halves of a character":               {[]string{`{"serverContent":{"outputTranscription":{"text":"ok \ud83d"}}}`, `{"serverContent":{"outputTranscription":{"text":"\ude00 done"}}}`, "TC"}, []string{"assistant: ok 😀 done"}, nil},
		"unknown below serverContent":         {[]string{`{"serverContent":{"groundingMetadata":{"webSearchQueries":["a"]}}}`, `{"serverContent":{"brandNewField":{"text":"words"}}}`}, nil, unknown(2)},
		"an orphan, and compaction":           {[]string{"in:start", "out:ok", "call:a", "TC"}, []string{"user: start", "assistant: ok", "call a pending"}, compacts},
		"interrupted before its words":        {[]string{"in:q", "AU", "AU", "INT", "out:This was heard.", "TC"}, []string{"user: q", "assistant: This was heard."}, func(t *testing.T, _ string, r read) { t.Helper(); equal(t, r.messages[1].GetSpoken().HeardText, nil) }},
		"interrupted, and no audio came here": {[]string{"in:q", "INT", "out:This was heard.", "TC"}, []string{"user: q", "assistant: This was heard."}, func(t *testing.T, _ string, r read) { t.Helper(); equal(t, r.messages[1].GetSpoken().HeardText, nil) }},

		// Others of their kinds: the order.
		"late words in Khmer":                    {[]string{"in:សួស្តី", "AU", "out:សួស្", "GC", "TC", "out:តី", "in:សុខសប្បាយទេ", "AU", "out:សុខសប្បាយ", "GC", "TC"}, []string{"user: សួស្តី", "assistant: សួស្តី", "user: សុខសប្បាយទេ", "assistant: សុខសប្បាយ"}, nil},
		"told again in Japanese":                 {[]string{"in:今日の予定を", "OPEN", "in:今日の予定を教えて", "AU", "out:はい。", "GC", "TC"}, []string{"user: 今日の予定を教えて", "assistant: はい。"}, nil},
		"said again in Thai":                     {[]string{"in:ใช่", "AU", "out:ลบไหม", "GC", "TC", "OPEN", "in:ใช่", "AU", "out:ลบแล้ว", "GC", "TC"}, []string{"user: ใช่", "assistant: ลบไหม", "user: ใช่", "assistant: ลบแล้ว"}, nil},
		"a question that comes after the result": {[]string{"VS", "VE", "AU", "call:a", "answer:a", "out:It runs.", "in:Start it.", "GC", "TC"}, []string{"user: Start it.", "call a completed", "assistant: It runs."}, nil},
		"late words after a result":              {[]string{"in:go", "AU", "out:I start", "call:a", "GC", "TC", "out: it.", "answer:a", "AU", "out:Done.", "GC", "TC"}, []string{"user: go", "assistant: I start it.", "call a completed", "assistant: Done."}, nil},
		"turnComplete three times":               {[]string{"in:Hi?", "AU", "out:Hello.", "GC", "TC", "TC", "in:And?", "TC", "AU", "out:Yes.", "GC", "TC"}, []string{"user: Hi?", "assistant: Hello.", "user: And?", "assistant: Yes."}, nil},
		"interrupted twice":                      {[]string{"in:One", "AU", "out:First ", "INT", "TC", "in:Two", "AU", "out:Second ", "INT", "TC", "in:Three", "AU", "out:Third.", "GC", "TC"}, []string{"user: One", "assistant: First ", "user: Two", "assistant: Second ", "user: Three", "assistant: Third."}, nil},
		"typed during an answer":                 {[]string{"in:Go", "AU", "out:One ", "typed:Stop", "out:two.", "GC", "TC", "AU", "out:Stopped.", "GC", "TC"}, []string{"user: Go", "assistant: One two.", "user: Stop", "assistant: Stopped."}, nil},
		"a picture with a question":              {[]string{`{"clientContent":{"turns":[{"role":"user","parts":[{"inlineData":{"mimeType":"image/png","data":"iVBORw=="}},{"text":"What is this?"}]}],"turnComplete":true}}`, "AU", "out:A cat.", "GC", "TC"}, []string{"user: ", "assistant: A cat."}, func(t *testing.T, _ string, r read) { t.Helper(); equal(t, len(r.messages[0].GetParts()), 2) }},
		"a picture as an answer":                 {[]string{"typed:Draw a cat.", "tx:Here: ", `{"server_content":{"model_turn":{"parts":[{"inline_data":{"mime_type":"image/png","data":"iVBORw=="}}]}}}`, "tx:Done.", "GC", "TC"}, []string{"user: Draw a cat.", "assistant: Here: ", "assistant: ", "assistant: Done."}, unknown(0)},
		// Tool calls.
		"an id used again, of another function": {[]string{"call:a", `{"toolCall":{"functionCalls":[{"id":"a","name":"stop","args":{}}]}}`, `{"toolResponse":{"functionResponses":[{"id":"a","name":"stop","response":{"output":"ok"}}]}}`}, []string{"call a cancelled", "call a completed"}, nil},
		"a generator": {[]string{"in:count", "call:a", `{"toolResponse":{"functionResponses":[{"id":"a","name":"run","response":{"n":1},"willContinue":true,"scheduling":"WHEN_IDLE"}]}}`, "out:One. ", `{"toolResponse":{"functionResponses":[{"id":"a","name":"run","response":{"n":2},"willContinue":true}]}}`, "out:Two. ", `{"toolResponse":{"functionResponses":[{"id":"a","name":"run","response":{"n":3}}]}}`, "out:Three.", "GC", "TC"}, []string{"user: count", "call a completed", "assistant: One. ", "assistant: Two. ", "assistant: Three."}, func(t *testing.T, _ string, r read) {
			t.Helper()
			equal(t, r.calls[0].GetResponse().GetStructValue().GetFields()["n"].GetNumberValue(), 3)
		}},
		"arguments of 60,000 bytes in pieces": {inPiecesOf(60), []string{"call p pending"}, func(t *testing.T, _ string, r read) {
			t.Helper()
			equal(t, len(r.calls[0].GetArgs().GetFields()["content"].GetStringValue()), 60_000)
		}},
		"arguments of 70,000 bytes in pieces": {inPiecesOf(70), []string{"call p pending"}, func(t *testing.T, _ string, r read) {
			t.Helper()
			equal(t, r.calls[0].GetArgs() == nil && r.calls[0].GetArgsOmitted() != "", true)
		}},
		"numbers that no double has": {[]string{`{"toolCall":{"functionCalls":[{"id":"n","name":"get","args":{"a":[{"b":-9007199254740993}],"c":1e400}}]}}`}, []string{"call n pending"}, func(t *testing.T, _ string, r read) {
			t.Helper()
			equal(t, r.calls[0].GetArgsJson(), `{"a":[{"b":-9007199254740993}],"c":1e400}`)
		}},
		"two orphans of two connections":    {[]string{"in:start", "call:a", "OPEN", "call:b", "OPEN", "in:more", "out:Yes.", "TC"}, []string{"user: start", "call a orphaned", "call b orphaned", "user: more", "assistant: Yes."}, compacts},
		"a response that is an error":       {[]string{"call:a", `{"toolResponse":{"functionResponses":[{"id":"a","name":"run","response":{"error":"no such file"}}]}}`}, []string{"call a completed"}, func(t *testing.T, _ string, r read) { t.Helper(); equal(t, r.calls[0].GetIsError(), true) }},
		"halves of a character over a call": {[]string{`{"serverContent":{"outputTranscription":{"text":"ok \ud83d"}}}`, "call:a", `{"serverContent":{"outputTranscription":{"text":"\ude00"}}}`, "TC"}, []string{"assistant: ok 😀", "call a pending"}, nil},
		// Dialects.
		"both spellings in a frame":     {[]string{`{"server_content":{"inputTranscription":{"text":"Hi?","language_code":"en","speakerLabel":"1"},"model_turn":{"parts":[{"inlineData":{"mime_type":"audio/pcm","data":"AAAA"}}]},"outputTranscription":{"text":"Hello."},"generationComplete":true,"turn_complete":true},"usage_metadata":{"responseTokenCount":9}}`}, []string{"user: Hi?", "assistant: Hello."}, unknown(0)},
		"several objects in a frame":    {[]string{shorthand("in:go") + "\n" + shorthand("call:a") + shorthand("answer:a") + " " + shorthand("out:Done.") + turnComplete}, []string{"user: go", "call a completed", "assistant: Done."}, unknown(0)},
		"history that ends with a word": {[]string{`{"client_content":{"turns":[{"role":"user","parts":[{"text":"Ex"}]},{"role":"model","parts":[{"text":"ok"}]}]}}`, "in:Now?", "AU", "out:Yes.", "GC", "TC"}, []string{"user: Now?", "assistant: Yes."}, nil},
		"unknown at any depth": {[]string{
			`{"goAway":{"timeLeft":"50s","new":1}}`, `{"sessionResumptionUpdate":{"resumable":false,"new":{}}}`, `{"toolCall":{"functionCalls":[{"id":"a","name":"run","args":{"new":1},"new":[]}]}}`,
			`{"serverContent":{"modelTurn":{"parts":[{"text":"x","audioTranscription":{"text":"x","new":1}}]}}}`, `{"realtimeInput":{"new":1}}`, `{"usageMetadata":{"new":1}}`, `{"setupComplete":{"new":{"a":1}}}`,
		}, []string{"call a pending", "assistant: x"}, unknown(6)},
		"no JSON between two frames": {[]string{"in:Hi?", `{"serverContent":`, "out:Hello.", "TC"}, []string{"user: Hi?", "assistant: Hello."}, unknown(1)},
		"a frame of a megabyte":      {[]string{"in:Hi?", `{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"` + strings.Repeat("A", 1<<20) + `"}}]}}}`, "out:Hello.", "TC"}, []string{"user: Hi?", "assistant: Hello."}, unknown(0)},
		"segments in Latin and in Thai": {[]string{
			`{"serverContent":{"inputTranscription":{"text":"One","finished":true}}}`, `{"serverContent":{"inputTranscription":{"text":"two","finished":true}}}`, "AU",
			`{"serverContent":{"outputTranscription":{"text":"สวัสดี","finished":true}}}`, `{"serverContent":{"outputTranscription":{"text":"ครับ","finished":true}}}`, "GC", "TC",
		}, []string{"user: One two", "assistant: สวัสดีครับ"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := strings.NewReplacer(" ", "_", ",", "", "^", "").Replace(name)
			var r read
			r.messages, r.calls = spoken(t, c, id, tt.frames...)
			r.conversation = must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: id}))(t).GetConversation()
			if diff := cmp.Diff(tt.want, readAll(t, c, id).Neutral); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if tt.check != nil && !t.Failed() {
				tt.check(t, id, r)
			}
		})
	}
}

func equal[T any](t *testing.T, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// hasMark expects that a call says that it has arguments, which are not kept.
func hasMark(t *testing.T, call *conversationv1.ToolCall) {
	t.Helper()
	if call.GetArgs() != nil || !strings.Contains(call.GetArgsOmitted(), "SHA-256") {
		t.Errorf("%v", call)
	}
}

// A client that leaves numbers of frames out, or sends them out of order, is told so, and what it sends counts all the same.
func TestGapsInFramesAreTold(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	token := openLive(t, c)
	for i, tt := range []struct {
		indexes          []int64
		missing, skipped int32
	}{{[]int64{1, 2}, 0, 0}, {[]int64{5}, 2, 0}, {[]int64{4, 6}, 0, 1}, {[]int64{5, 6}, 0, 2}, {[]int64{1000, 7, 1001}, 993, 1}} {
		var frames []*livev1.LiveFrame
		for _, index := range tt.indexes {
			frames = append(frames, &livev1.LiveFrame{ClientIndex: int32(index), Frame: &livev1.LiveFrame_Binary{Binary: []byte(in(fmt.Sprint(" ", index)))}})
		}
		res := ingestOne(t, c, token, frames...)
		if res.GetMissingFrames() != tt.missing || res.GetSkippedFrames() != tt.skipped {
			t.Errorf("batch %d: %v", i, res)
		}
	}
	equal(t, texts(get(t, c).GetMessages()), []string{" 1 2 5 6 1000 1001"})
}
