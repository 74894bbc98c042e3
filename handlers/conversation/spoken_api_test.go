package conversation

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	"holdfast/handlers/conversation/gemini"
	"holdfast/handlers/conversation/voice/voicetest"
)

const (
	asGemini = conversationv1.ContextFormat_CONTEXT_FORMAT_GEMINI_CONTENTS
	asSeed   = conversationv1.ContextFormat_CONTEXT_FORMAT_LIVE_SEED
)

// sending is how a client cuts frames into batches.
type sending struct {
	// How many frames a batch has; 0: all.
	batch int
	// Each batch comes twice, and the next one begins with it.
	resend bool
	object bool
}

// speak sends frames in shorthand to a new conversation; OPEN connects again.
func speak(t *testing.T, c client, id string, as sending, frames []string) {
	t.Helper()
	must(c.CreateConversation(t.Context(), &createReq{ConversationId: id}))(t)
	var token, index int32
	open := func() {
		token = must(c.ConnectLive(t.Context(), &connectReq{ConversationId: id, SetupHash: "s", TakeOver: true, Options: &livev1.LiveOptions{LeaveToolCalls: true}}))(t).GetLease().GetFencingToken()
		index = 0
	}
	var batch, last []*livev1.LiveFrame
	send := func() {
		for range 2 {
			res := must(c.IngestLive(t.Context(), &ingestReq{ConversationId: id, FencingToken: token, Frames: slices.Concat(last, batch)}))(t)
			if res.GetReceivedThrough() != index {
				t.Fatalf("received through %d of %d", res.GetReceivedThrough(), index)
			}
			if !as.resend {
				break
			}
			last = batch
		}
		batch = nil
	}
	open()
	for _, f := range frames {
		if f == "OPEN" {
			if len(batch) > 0 {
				send()
			}
			open()
			last = nil
			continue
		}
		index++
		frame := textFrame(int64(index), shorthand(f))
		if as.object {
			frame.Frame = &livev1.LiveFrame_Object{Object: jsonObjectOf(t, shorthand(f))}
		}
		if batch = append(batch, frame); len(batch) == as.batch {
			send()
		}
	}
	if len(batch) > 0 {
		send()
	}
}

func jsonObjectOf(t *testing.T, text string) *structpb.Struct {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		t.Fatal(err)
	}
	return structOf(t, fields)
}

// reading is a conversation as the API tells it, a line for each message, call or part.
type reading struct {
	Messages, Neutral, Gemini, Seed []string
}

func readAll(t *testing.T, c client, id string) (r reading) {
	t.Helper()
	line := func(m *conversationv1.Message) string { return shortName(m.GetRole()) + ": " + m.GetText() }
	for _, m := range must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: id, PageSize: 200}))(t).GetMessages() {
		r.Messages = append(r.Messages, line(m))
	}
	window := func(format conversationv1.ContextFormat) *conversationv1.GetContextWindowResponse {
		return must(c.GetContextWindow(t.Context(), &windowReq{ConversationId: id, Format: format}))(t)
	}
	for _, i := range window(conversationv1.ContextFormat_CONTEXT_FORMAT_NEUTRAL).GetItems() {
		if call := i.GetToolCall(); call != nil {
			r.Neutral = append(r.Neutral, "call "+call.GetCallId()+" "+shortName(call.GetStatus()))
			continue
		}
		r.Neutral = append(r.Neutral, line(i.GetMessage()))
	}
	for _, content := range window(asGemini).GetContents() {
		r.Gemini = append(r.Gemini, partsOf(content)...)
	}
	for _, content := range window(asSeed).GetSeed().GetFields()["clientContent"].GetStructValue().GetFields()["turns"].GetListValue().GetValues() {
		r.Seed = append(r.Seed, partsOf(content.GetStructValue())...)
	}
	return r
}

// partsOf has a line for each part of a Content of Gemini.
func partsOf(content *structpb.Struct) (lines []string) {
	for _, p := range content.GetFields()["parts"].GetListValue().GetValues() {
		said := ""
		for name, v := range p.GetStructValue().GetFields() {
			if said = name; name == "text" {
				said = v.GetStringValue()
				break
			}
		}
		lines = append(lines, content.GetFields()["role"].GetStringValue()+": "+said)
	}
	return lines
}

// expected is what all reads tell of lines such as "user: Hi" and "call a completed".
func expected(lines []string) (r reading) {
	r.Neutral = lines
	for _, l := range lines {
		role, text, said := strings.Cut(l, ": ")
		if said {
			r.Messages = append(r.Messages, l)
			if role == "assistant" {
				role = gemini.Model
			}
			if text != "" {
				r.Gemini, r.Seed = append(r.Gemini, role+": "+text), append(r.Seed, role+": "+text)
			}
			continue
		}
		call := strings.Fields(l)
		if call[2] == "completed" {
			r.Gemini = append(r.Gemini, "model: functionCall", "user: functionResponse")
			r.Seed = append(r.Seed, `model: [called run with {"n":1}]`, `user: [result of run: {"output":"ok"}]`)
			continue
		}
		r.Gemini = append(r.Gemini, `model: [called run with {"n":1}; there is no result yet]`)
		r.Seed = append(r.Seed, `model: [called run with {"n":1}; there is no result yet]`)
	}
	return r
}

// However the frames of a conversation are cut into batches, and in whichever form they come, all that reads it tells what was said, in
// the order in which it was said.
func TestWhatWasSpokenIsReadInItsOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, tt := range map[string]struct{ frames, want []string }{
		// The same words after a new connection.
		"yes again":                {[]string{"VS", "in:yes", "VE", "out:Delete the branch?", "GC", "TC", "OPEN", "VS", "in:yes", "VE", "out:Deleted.", "TC"}, []string{"user: yes", "assistant: Delete the branch?", "user: yes", "assistant: Deleted."}},
		"yes again, without signs": {[]string{"in:yes", "out:Delete the branch?", "GC", "TC", "OPEN", "in:yes", "out:Deleted.", "TC"}, []string{"user: yes", "assistant: Delete the branch?", "user: yes", "assistant: Deleted."}},
		"more than before":         {[]string{"VS", "in:book it", "VE", "out:For how many?", "GC", "TC", "OPEN", "VS", "in:book it for two", "VE", "out:Done.", "TC"}, []string{"user: book it", "assistant: For how many?", "user: book it for two", "assistant: Done."}},
		"yes in Russian":           {[]string{"in:да", "out:Удалить?", "TC", "OPEN", "in:да", "out:Удалено.", "GC", "TC"}, []string{"user: да", "assistant: Удалить?", "user: да", "assistant: Удалено."}},
		"yes in Arabic":            {[]string{"VS", "in:نعم", "VE", "AU", "out:هل أحذفه؟", "GC", "TC", "OPEN", "in:نعم", "AU", "out:تم.", "TC"}, []string{"user: نعم", "assistant: هل أحذفه؟", "user: نعم", "assistant: تم."}},
		"a long order again":       {[]string{"in:turn the light in the hall off", "out:Off.", "TC", "OPEN", "OPEN", "in:turn the light in the hall off", "out:It is off.", "TC"}, []string{"user: turn the light in the hall off", "assistant: Off.", "user: turn the light in the hall off", "assistant: It is off."}},
		// What comes after a tool's result.
		"a call amid an answer":          {[]string{"in:start a run", "out:I start it. ", "call:a", "answer:a", "out:It is number 7.", "GC", "TC"}, []string{"user: start a run", "assistant: I start it. ", "call a completed", "assistant: It is number 7."}},
		"two calls in a row":             {[]string{"in:go", "out:First. ", "call:a", "answer:a", "out:Second. ", "call:b", "answer:b", "out:Third.", "GC", "TC"}, []string{"user: go", "assistant: First. ", "call a completed", "assistant: Second. ", "call b completed", "assistant: Third."}},
		"a call before any word":         {[]string{"in:go", "call:a", "answer:a", "out:Done.", "GC", "TC"}, []string{"user: go", "call a completed", "assistant: Done."}},
		"a turn that ends with its call": {[]string{"in:go", "out:I start.", "call:a", "GC", "TC", "answer:a", "AU", "out:Done.", "GC", "TC"}, []string{"user: go", "assistant: I start.", "call a completed", "assistant: Done."}},
		"a question before the result":   {[]string{"in:go", "AU", "out:I start.", "call:a", "GC", "TC", "in:And the weather?", "AU", "out:Sunny.", "GC", "TC", "answer:a", "AU", "out:It is done.", "GC", "TC"}, []string{"user: go", "assistant: I start.", "call a completed", "user: And the weather?", "assistant: Sunny.", "assistant: It is done."}},
		"a call in Chinese":              {[]string{"in:开始", "out:我开始。", "call:a", "answer:a", "out:完成了。", "GC", "TC"}, []string{"user: 开始", "assistant: 我开始。", "call a completed", "assistant: 完成了。"}},
		"a call in a written turn":       {[]string{"typed:go", "tx:I start. ", "call:a", "answer:a", "tx:Done.", "GC", "TC"}, []string{"user: go", "assistant: I start. ", "call a completed", "assistant: Done."}},
		"a call amid a word":             {[]string{"in:go", "out:I start a Cod", "call:g", "out:egen run.", "TC"}, []string{"user: go", "assistant: I start a Codegen run.", "call g pending"}},
		"a call amid a Greek word":       {[]string{"in:πάμε", "out:Ξεκι", "call:g", "out:νάω.", "TC"}, []string{"user: πάμε", "assistant: Ξεκινάω.", "call g pending"}},
		"a call amid Japanese":           {[]string{"in:お願い", "out:実行を開", "call:g", "out:始します。", "TC"}, []string{"user: お願い", "assistant: 実行を開始します。", "call g pending"}},
		"a call amid a number":           {[]string{"in:go", "out:It is 12", "call:g", "out:34.", "TC"}, []string{"user: go", "assistant: It is 1234.", "call g pending"}},
		// Where turns end.
		"no turnComplete":                 {[]string{"in:First?", "AU", "out:One.", "GC", "in:Second?", "AU", "out:Two.", "GC"}, []string{"user: First?", "assistant: One.", "user: Second?", "assistant: Two."}},
		"no turnComplete, in Hindi":       {[]string{"in:पहला?", "AU", "out:एक।", "GC", "in:दूसरा?", "AU", "out:दो।", "GC"}, []string{"user: पहला?", "assistant: एक।", "user: दूसरा?", "assistant: दो।"}},
		"three, and in pieces":            {[]string{"in:Fir", "in:st?", "AU", "out:On", "out:e.", "GC", "in:Sec", "in:ond?", "AU", "out:Two.", "GC", "in:Third?", "AU", "out:Three.", "GC"}, []string{"user: First?", "assistant: One.", "user: Second?", "assistant: Two.", "user: Third?", "assistant: Three."}},
		"only transcription":              {[]string{"VS", "in:First.", "VE", "GC", "VS", "in:Second.", "VE", "GC"}, []string{"user: First.", "user: Second."}},
		"only transcription, one missing": {[]string{"VS", "in:First", "VE", "VS", "in:Second", "VE", "VS", "in:Third", "VE"}, []string{"user: First", "user: Second", "user: Third"}},
		"words after the end":             {[]string{"in:Hi?", "AU", "out:Hello ", "GC", "TC", "out:there.", "in:How are you?", "AU", "out:Fine.", "GC", "TC"}, []string{"user: Hi?", "assistant: Hello there.", "user: How are you?", "assistant: Fine."}},
		"several after the end":           {[]string{"in:Hi?", "AU", "out:Hello ", "GC", "TC", "out:there, ", "out:Ada.", "VS", "in:How are you?", "VE", "AU", "out:Fine.", "GC", "TC"}, []string{"user: Hi?", "assistant: Hello there, Ada.", "user: How are you?", "assistant: Fine."}},
		"after the end, in Thai":          {[]string{"in:สวัสดี", "AU", "out:สวัส", "GC", "TC", "out:ดีครับ", "in:สบายดีไหม", "AU", "out:สบายดี", "GC", "TC"}, []string{"user: สวัสดี", "assistant: สวัสดีครับ", "user: สบายดีไหม", "assistant: สบายดี"}},
		// Said twice.
		"twice in a turn":         {[]string{"in:turn it off", "in:turn it off", "AU", "out:ok", "TC"}, []string{"user: turn it off turn it off", "assistant: ok"}},
		"twice with a blank":      {[]string{"in:turn it off", "in: turn it off", "AU", "out:ok", "TC"}, []string{"user: turn it off turn it off", "assistant: ok"}},
		"three times":             {[]string{"in:no no stop now", "in:no no stop now", "in:no no stop now", "AU", "out:ok", "TC"}, []string{"user: no no stop now no no stop now no no stop now", "assistant: ok"}},
		"twice, one sign is lost": {[]string{"VS", "in:turn it off", "VE", "out:ok", "TC", "in:turn it off", "VE", "out:ok", "TC"}, []string{"user: turn it off", "assistant: ok", "user: turn it off", "assistant: ok"}},
		// Written, history and snake case.
		"history, then a question": {[]string{`{"clientContent":{"turns":[{"role":"user","parts":[{"text":"Ex"}]},{"role":"model","parts":[{"text":"ok"}]},{"role":"user","parts":[{"text":"Real question?"}]}],"turnComplete":true}}`, "out:Real answer.", "TC"}, []string{"user: Real question?", "assistant: Real answer."}},
		"the same in snake case":   {[]string{`{"client_content":{"turns":[{"role":"model","parts":[{"text":"ok"}]},{"role":"user","parts":[{"text":"One?"}]},{"role":"user","parts":[{"text":"Two?"}]}],"turn_complete":true}}`, `{"server_content":{"output_transcription":{"text":"Both."},"generation_complete":true}}`, `{"server_content":{"turn_complete":true}}`}, []string{"user: One?", "user: Two?", "assistant: Both."}},
		"snake case":               {[]string{`{"tool_call":{"function_calls":[{"id":"a","name":"run","args":{"n":1}}]}}`, `{"tool_response":{"function_responses":[{"id":"a","name":"run","response":{"output":"ok"}}]}}`, `{"client_content":{"turns":[{"role":"user","parts":[{"text":"typed"}]}],"turn_complete":true}}`}, []string{"call a completed", "user: typed"}},
		"snake case of a dump":     {[]string{`{"voice_activity":{"voice_activity_type":"ACTIVITY_START"}}`, `{"server_content":{"input_transcription":{"text":"Hi","finished":null},"model_turn":null,"interrupted":null}}`, `{"server_content":{"model_turn":{"parts":[{"inline_data":{"data":"AAAA","mime_type":"audio/pcm;rate=24000"}}],"role":"model"},"turn_complete":null}}`, `{"server_content":{"output_transcription":{"text":"Hello."}}}`, `{"realtime_input":{"text":"more"}}`}, []string{"user: Hi", "assistant: Hello.", "user: more"}},
		// Interrupted.
		"interrupted before its words": {[]string{"in:q", "AU", "AU", "INT", "out:This was heard.", "TC"}, []string{"user: q", "assistant: This was heard."}},
		"the same, and more is said":   {[]string{"in:q", "AU", "INT", "out:This was heard.", "TC", "in:r", "AU", "out:Yes.", "TC"}, []string{"user: q", "assistant: This was heard.", "user: r", "assistant: Yes."}},
		// Several in a frame.
		"several objects in a frame": {[]string{shorthand("in:Hi?") + shorthand("AU") + " " + shorthand("out:Hello.") + "\n" + generated + turnComplete + shorthand("in:And?"), shorthand("AU") + shorthand("out:Yes.") + turnComplete}, []string{"user: Hi?", "assistant: Hello.", "user: And?", "assistant: Yes."}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := b.tenant(t).client(t, ada)
			for i, as := range []sending{{batch: 1}, {}, {batch: 2}, {batch: 1, resend: true}, {batch: 3, resend: true}, {batch: 1, object: true}} {
				if as.object && strings.HasPrefix(name, "several objects") {
					continue
				}
				id := fmt.Sprint("c", i)
				speak(t, c, id, as, tt.frames)
				if diff := cmp.Diff(expected(tt.want), readAll(t, c, id)); diff != "" {
					t.Errorf("%+v (-want +got):\n%s", as, diff)
				}
			}
		})
	}
}

// spoken speaks with a new conversation, one frame a batch, and returns its messages and calls.
func spoken(t *testing.T, c client, id string, frames ...string) (messages []*conversationv1.Message, calls []*conversationv1.ToolCall) {
	t.Helper()
	speak(t, c, id, sending{batch: 1}, frames)
	messages = must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: id}))(t).GetMessages()
	calls = records(must(c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{
		ConversationId: id, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_TOOL_CALL},
	}))(t), (*conversationv1.Record).GetToolCall)
	return messages, calls
}

func TestAToolCallIsGivenBackAsItCame(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	large := strings.Repeat("x", 70_000)
	_, calls := spoken(t, c, "large", `{"toolCall":{"functionCalls":[{"id":"w","name":"write_file","args":{"path":"a","content":"`+large+`"}}]}}`)
	if got := calls[0]; got.GetArgs() != nil || !strings.Contains(got.GetArgsOmitted(), "SHA-256") {
		t.Errorf("a call with large arguments is %v", got)
	}
	if text := strings.Join(readAll(t, c, "large").Gemini, "\n"); strings.Contains(text, "with {}") {
		t.Errorf("a window says that they are empty: %s", text)
	}
	_, calls = spoken(t, c, "response", "call:w", `{"toolResponse":{"functionResponses":[{"id":"w","name":"run","response":{"output":"`+large+`"}}]}}`)
	if got := voicetest.Compact(t, calls[0].GetResponse().GetStructValue()); calls[0].GetStatus() != conversationv1.ToolCallStatus_TOOL_CALL_STATUS_COMPLETED || got != "{}" || !strings.Contains(calls[0].GetResponseOmitted(), "SHA-256") {
		t.Errorf("a call with a large response is %v", calls[0])
	}
	if told := jsonOf(t, must(c.GetContextWindow(t.Context(), &windowReq{ConversationId: "response", Format: asGemini}))(t)); !strings.Contains(string(told), "SHA-256") {
		t.Errorf("a window does not say that a response is omitted: %s", told)
	}

	for _, n := range []string{"1234567890123456789", "9007199254740993", "-9223372036854775808", "0.1000000000000000055511151231257827"} {
		id := "n" + strings.NewReplacer("-", "m", ".", "p").Replace(n)
		_, calls = spoken(t, c, id, `{"toolCall":{"functionCalls":[{"id":"n","name":"get","args":{"id":`+n+`}}]}}`,
			`{"tool_response":{"function_responses":[{"id":"n","name":"get","response":{"id":`+n+`}}]}}`)
		if calls[0].GetArgsJson() != `{"id":`+n+`}` || calls[0].GetResponseJson() != `{"id":`+n+`}` {
			t.Errorf("%s is %v", n, calls[0])
		}
	}
}

func TestKeptFramesDoNotStopATranscript(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	token := connectAs(t, c, &connectReq{Options: &livev1.LiveOptions{KeepFramesFor: durationpb.New(60e9)}}).GetLease().GetFencingToken()
	frames := []*livev1.LiveFrame{textFrame(1, out("hello"))}
	for i := range 40 {
		frames = append(frames, textFrame(int64(i)+2, shorthand("AU")))
	}
	frames = append(frames, textFrame(42, `{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"`+strings.Repeat("A", 400_000)+`"}}]}}}`), textFrame(43, out(" there")))
	res := ingestOne(t, c, int64(token), frames...)
	if got := texts(res.GetMessages()); res.GetStoredThrough() != 43 || !slices.Equal(got, []string{"hello there"}) {
		t.Errorf("stored through %d: %q", res.GetStoredThrough(), got)
	}
}

func TestAWindowCountsTokensByScript(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	create(t, c)
	for name, text := range map[string]string{"Han": "漢字", "Kana": "ひらがな", "Hangul": "안녕하세요 ", "Thai": "สวัสดีครับ"} {
		id := "c-" + name
		must(c.CreateConversation(t.Context(), &createReq{ConversationId: id}))(t)
		long := strings.Repeat(text, 4000/len([]rune(text)))
		must(c.Append(t.Context(), &appendReq{ConversationId: id, Messages: append(said(long), &conversationv1.Message{Role: conversationv1.Role_ROLE_ASSISTANT, Text: "ok"})}))(t)
		window := must(c.GetContextWindow(t.Context(), &windowReq{ConversationId: id, BudgetTokens: 1010}))(t).GetWindow()
		if !window.GetOverBudget() || window.GetTotalTokens() < 1100 {
			t.Errorf("%s: %v", name, window)
		}
	}
}

func TestAnAnswerHasWhatTheProviderSaysOfIt(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	for name, frames := range map[string][]string{
		"usage":       {"in:Hi?", "out:Hello.", "GC", "TC", `{"usageMetadata":{"responseTokenCount":77,"totalTokenCount":87}}`},
		"usage_snake": {"in:Hi?", "AU", "out:Hello.", "GC", "TC", `{"usage_metadata":{"response_token_count":77,"total_token_count":87}}`},
		"usage_with":  {"in:Hi?", "out:Hello.", "GC", `{"serverContent":{"turnComplete":true},"usageMetadata":{"responseTokenCount":77,"totalTokenCount":87}}`},
	} {
		messages, _ := spoken(t, c, name, frames...)
		if m := messages[1]; m.GetTokenCount() != 77 || m.GetTokenCountEstimated() {
			t.Errorf("%s: %v", name, m)
		}
	}
	for _, reason := range []string{"MALFORMED_FUNCTION_CALL", "RESPONSE_REJECTED", "NEED_MORE_INPUT"} {
		for name, frames := range map[string][]string{
			"alone": {"in:q", `{"serverContent":{"turnComplete":true,"turnCompleteReason":"` + reason + `"}}`},
			"audio": {"in:q", "AU", "GC", `{"server_content":{"turn_complete":true,"turn_complete_reason":"` + reason + `"}}`},
			"words": {"VS", "in:q", "VE", "AU", "out:Well", `{"serverContent":{"turnComplete":true,"turnCompleteReason":"` + reason + `"}}`},
		} {
			messages, _ := spoken(t, c, reason+name, frames...)
			if len(messages) != 2 || messages[1].GetSpoken().GetEndReason() != reason {
				t.Errorf("%s %s: %v", reason, name, messages)
			}
		}
	}
	for name, want := range map[string]int32{
		`{"serverContent":{"groundingMetadata":{"webSearchQueries":["a"]}}}`:                        1, // of no answer
		`{"serverContent":{"brandNewField":{"text":"words"}}}`:                                      1,
		`{"server_content":{"brand_new_field":1},"serverContent":{}}`:                               1,
		`{"serverContent":{"modelTurn":{"parts":[{"brandNewPart":{"x":1}}]}}}`:                      1,
		`{"toolCall":{"functionCalls":[{"id":"q","name":"f","args":{"any":1},"brandNewField":1}]}}`: 1,
	} {
		id := fmt.Sprintf("u%d", len(name))
		spoken(t, c, id, name)
		if got := must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: id}))(t).GetConversation().GetLive().GetUnknownFrames(); got != want {
			t.Errorf("%s counts %d", name, got)
		}
	}
}

func TestAnInterruptedAnswerStaysInTheWindow(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	for name, frames := range map[string][]string{
		"int":       {"in:q", "AU", "AU", "INT", "out:This was heard.", "TC"},
		"speech":    {"VS", "in:q", "VE", "AU", "VS", "INT", "out:This was heard.", "TC"},
		"after":     {"in:q", "AU", "INT", "TC", "out:This was heard."},
		"in_one":    {"in:q", "AU", `{"serverContent":{"interrupted":true,"outputTranscription":{"text":"This was heard."}}}`, "TC"},
		"after_one": {"in:q", "AU", `{"serverContent":{"interrupted":true,"turnComplete":true}}`, "out:This was ", "out:heard."},
	} {
		messages, _ := spoken(t, c, name, frames...)
		if m := messages[1]; m.GetText() != "This was heard." || m.GetSpoken().HeardText != nil || m.GetStatus() != conversationv1.MessageStatus_MESSAGE_STATUS_INTERRUPTED {
			t.Errorf("%s: %v", name, m)
		}
		if got := readAll(t, c, name); !slices.Contains(got.Gemini, "model: This was heard.") || !slices.Contains(got.Seed, "model: This was heard.") {
			t.Errorf("%s: the window is %+v", name, got)
		}
	}
}

// What was said of an answer when the user spoke over it is taken for what was heard; what comes later is in the message alone.
func TestLateWordsOfAnInterruptedAnswerAreKept(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	for i, end := range [][]string{{"INT", "TC"}, {`{"serverContent":{"interrupted":true,"turnComplete":true}}`}, {"VS", "INT", "TC", "VE"}} {
		id := fmt.Sprint("c", i)
		speak(t, c, id, sending{batch: 1}, slices.Concat([]string{"in:Hi?", "AU", "out:Hello "}, end, []string{"out:there.", "in:How are you?", "AU", "out:Fine.", "GC", "TC"}))
		got := readAll(t, c, id)
		if diff := cmp.Diff([]string{"user: Hi?", "assistant: Hello there.", "user: How are you?", "assistant: Fine."}, got.Messages); diff != "" {
			t.Errorf("%v: %s", end, diff)
		}
		if got.Gemini[1] != "model: Hello " {
			t.Errorf("%v: the window is %q", end, got.Gemini)
		}
	}
}

// A connection that is lost between any two frames loses no word, and tells none twice.
func TestANewConnectionLosesNoWord(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, frames := range map[string][]string{
		"two turns":       {"in:First?", "AU", "out:One.", "GC", "TC", "in:Second?", "AU", "out:Two.", "GC", "TC"},
		"speech":          {"VS", "in:yes", "VE", "AU", "out:Delete the branch?", "GC", "TC", "VS", "in:no", "VE", "AU", "out:Kept.", "GC", "TC"},
		"pieces":          {"in:What is ", "in:the time", "in:?", "AU", "out:It is ", "out:noon.", "GC", "TC"},
		"a call":          {"in:start a run", "out:I start it. ", "call:a", "answer:a", "out:It is number 7.", "GC", "TC"},
		"late words":      {"in:Hi?", "AU", "out:Hello ", "GC", "TC", "out:there.", "in:How are you?", "AU", "out:Fine.", "GC", "TC"},
		"no end":          {"in:First?", "AU", "out:One.", "GC", "in:Second?", "AU", "out:Two.", "GC"},
		"Chinese":         {"VS", "in:今天天气", "in:怎么样", "VE", "AU", "out:今天", "out:是晴天。", "GC", "TC"},
		"Arabic":          {"in:ما الوقت", "in: الآن؟", "AU", "out:الساعة ", "out:الثالثة.", "GC", "TC"},
		"interruption":    {"in:Go on", "AU", "out:There was ", "INT", "out:once", "TC", "in:Stop.", "AU", "out:Yes.", "GC", "TC"},
		"written":         {"typed:One", "tx:1", "GC", "TC", "typed:Two", "tx:2", "GC", "TC"},
		"a late question": {"VS", "VE", "AU", "out:Yes.", "in:Can you?", "GC", "TC", "VS", "in:And now?", "VE", "AU", "out:No.", "TC"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := b.tenant(t).client(t, ada)
			words := func(at int) (said [2]string) {
				id := fmt.Sprint("c", at)
				speak(t, c, id, sending{}, slices.Insert(slices.Clone(frames), at, "OPEN"))
				for _, m := range must(c.ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: id}))(t).GetMessages() {
					text := strings.ReplaceAll(m.GetText(), " ", "")
					switch m.GetRole() {
					case conversationv1.Role_ROLE_USER:
						said[0] += text
					case conversationv1.Role_ROLE_ASSISTANT:
						said[1] += text
					default: // the result of an orphan
					}
				}
				return said
			}
			want := words(0)
			for at := 1; at < len(frames); at++ {
				if got := words(at); got != want {
					t.Errorf("after %v: %q, want %q", frames[:at], got, want)
				}
			}
		})
	}
}

// A model gets back what it wants back with its text, as long as the text is whole.
func TestAThoughtSignatureIsGivenBack(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	part := func(fields string) string { return `{"serverContent":{"modelTurn":{"parts":[{` + fields + `}]}}}` }
	for name, tt := range map[string]struct {
		frames  []string
		want    string // base64
		unknown int32
	}{
		"with the text":    {[]string{"typed:q", part(`"text":"Yes","thoughtSignature":"c2ln"`), "TC"}, "c2ln", 0},
		"after the text":   {[]string{"typed:q", "tx:Yes", part(`"text":"","thoughtSignature":"c2ln"`), "TC"}, "c2ln", 0},
		"before the text":  {[]string{"typed:q", part(`"thoughtSignature":"c2ln"`), "tx:Yes", "TC"}, "c2ln", 0},
		"snake case":       {[]string{"typed:q", `{"server_content":{"model_turn":{"parts":[{"text":"Yes","thought_signature":"c2ln"}]}}}`, "TC"}, "c2ln", 0},
		"for URLs":         {[]string{"typed:q", part(`"text":"Yes","thoughtSignature":"-_8"`), "TC"}, "+/8=", 0},
		"of a spoken turn": {[]string{"in:q", "AU", "out:Yes", part(`"text":"Yes","thoughtSignature":"c2ln"`), "TC"}, "", 1},
		"of audio":         {[]string{"in:q", "out:Yes", part(`"inlineData":{"mimeType":"audio/pcm","data":"AAAA"},"thoughtSignature":"c2ln"`), "TC"}, "", 1},
		"too long":         {[]string{"typed:q", part(`"text":"Yes","thoughtSignature":"` + strings.Repeat("AAAA", 4000) + `"`), "TC"}, "", 1},
		"of a call":        {[]string{"typed:q", part(`"functionCall":{"id":"a","name":"run","args":{"n":1}},"thoughtSignature":"c2ln"`), "answer:a", "TC"}, "c2ln", 0},
	} {
		id := strings.ReplaceAll(name, " ", "_")
		speak(t, c, id, sending{batch: 1}, tt.frames)
		contents := must(c.GetContextWindow(t.Context(), &windowReq{ConversationId: id, Format: asGemini}))(t).GetContents()
		got := ""
		for _, p := range contents[1].GetFields()["parts"].GetListValue().GetValues() {
			got += p.GetStructValue().GetFields()["thoughtSignature"].GetStringValue()
		}
		live := must(c.GetConversation(t.Context(), &conversationv1.GetConversationRequest{ConversationId: id}))(t).GetConversation().GetLive()
		if got != tt.want || live.GetUnknownFrames() != tt.unknown {
			t.Errorf("%s: %q, and %d unknown: %v", name, got, live.GetUnknownFrames(), contents)
		}
		if seed := must(c.GetContextWindow(t.Context(), &windowReq{ConversationId: id, Format: asSeed}))(t); strings.Contains(string(jsonOf(t, seed)), "thoughtSignature") {
			t.Errorf("%s: a session that did not give it gets %v", name, seed)
		}
	}
}

func TestHalvesOfACharacterAreJoined(t *testing.T) {
	t.Parallel()
	c := setup(t).client(t, ada)
	frame := func(field, text string) string { return `{"serverContent":{"` + field + `":{"text":"` + text + `"}}}` }
	for name, tt := range map[string]struct{ frames, want []string }{
		"answer":   {[]string{frame("outputTranscription", `ok \ud83d`), frame("outputTranscription", `\ude00 done`), "TC"}, []string{"ok 😀 done"}},
		"question": {[]string{frame("inputTranscription", `ok \uD83D`), frame("inputTranscription", `\uDE00 done`), "out:Hi", "TC"}, []string{"ok 😀 done", "Hi"}},
		"written":  {[]string{`{"serverContent":{"modelTurn":{"parts":[{"text":"ok \ud83d"}]}}}`, `{"serverContent":{"modelTurn":{"parts":[{"text":"\ude00 done"}]}}}`, "TC"}, []string{"ok 😀 done"}},
		"alone":    {[]string{frame("outputTranscription", `ok \ud83d`), "out: done", "TC"}, []string{"ok \uFFFD done"}},
		"last":     {[]string{frame("outputTranscription", `ok \ud83d`), "TC"}, []string{"ok \uFFFD"}},
		"typed":    {[]string{`{"realtimeInput":{"text":"ok \ud83d"}}`}, []string{"ok \uFFFD"}},
	} {
		messages, _ := spoken(t, c, name, tt.frames...)
		if diff := cmp.Diff(tt.want, texts(messages)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// A request is JSON of protobuf, which has no halves of characters. The refusal says so.
func TestARequestWithHalfACharacterIsToldWhy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	create(t, b.client(t, ada))
	token, key := openLive(t, b.client(t, ada)), b.token(t, ada)
	for name, tt := range map[string]struct{ service, method, body string }{
		"object": {livev1connect.LiveServiceName, "IngestLive", fmt.Sprintf(`{"conversationId":"c1","fencingToken":%d,"frames":[{"clientIndex":1,"object":{"serverContent":{"outputTranscription":{"text":"ok \ud83d"}}}}]}`, token)},
		"append": {conversationv1connect.ConversationServiceName, "Append", `{"conversationId":"c1","messages":[{"role":"ROLE_USER","text":"ok \ude00"}]}`},
	} {
		got := b.sendTo(t, tt.service, http.MethodPost, tt.method, []byte(tt.body), "Content-Type: application/json", "Authorization: Bearer "+key)
		if got.status != http.StatusBadRequest || !strings.Contains(got.body, "surrogate") {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
}
