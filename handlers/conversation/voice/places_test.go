package voice

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

func TestEveryWordInItsPlace(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ frames, want []string }{
		// Where a turn ends.
		"generated, then words of the user":  {[]string{"in:First?", "AU", "out:One.", "GC", "in:Second?", "AU", "out:Two.", "GC"}, []string{"user: First?", "assistant: One.", "user*: Second?", "assistant: Two."}},
		"the same without marks":             {[]string{"in:first", "AU", "out:one", "GC", "in:second", "AU", "out:two", "GC", "TC"}, []string{"user: first", "assistant: one", "user: second", "assistant: two"}},
		"the same in a script without them":  {[]string{"in:你好", "AU", "out:早上好", "GC", "in:再见", "AU", "out:再会", "GC", "TC"}, []string{"user: 你好", "assistant: 早上好", "user: 再见", "assistant: 再会"}},
		"the same without audio":             {[]string{"in:First?", "out:One.", "GC", "in:Second?", "out:Two.", "GC", "TC"}, []string{"user: First?", "assistant: One.", "user: Second?", "assistant: Two."}},
		"transcription with signs of speech": {[]string{"VS", "in:First.", "VE", "GC", "VS", "in:Second.", "VE", "GC"}, []string{"user: First.", "user: Second."}},
		"transcription without them":         {[]string{"in:First.", "GC", "in:Second.", "GC"}, []string{"user: First.", "user: Second."}},
		"speech begins again":                {[]string{"VS", "in:First.", "VE", "VS", "in:Second.", "VE"}, []string{"user: First.", "user*: Second."}},
		"a late end of the turn before":      {[]string{"in:Go", "AU", "out:One ", "INT", "in:No.", "AU", "out:Fine, ", "TC", "out:then.", "GC", "TC"}, []string{"user: Go", "assistant: One ", "user: No.", "assistant: Fine, then."}},
		"the end comes twice":                {[]string{"in:Hi?", "AU", "out:Hello.", "GC", "TC", "TC", "in:And?", "AU", "out:Yes.", "GC", "TC"}, []string{"user: Hi?", "assistant: Hello.", "user: And?", "assistant: Yes."}},
		"typed after the generation":         {[]string{"typed:One", "AU", "out:1", "GC", "typed:Two", "AU", "out:2", "GC", "TC"}, []string{"user: One", "assistant: 1", "user: Two", "assistant: 2"}},
		// The order.
		"the question is transcribed late":     {[]string{"VS", "VE", "AU", "out:Yes.", "in:Can you?", "GC", "TC"}, []string{"user: Can you?", "assistant: Yes."}},
		"without signs of speech":              {[]string{"AU", "out:Yes.", "in:Can you?", "GC", "TC"}, []string{"user: Can you?", "assistant: Yes."}},
		"after the turn":                       {[]string{"VS", "VE", "AU", "out:Yes.", "GC", "TC", "in:Can you?", "VS", "in:And?", "VE", "AU", "out:No.", "TC"}, []string{"user: Can you?", "assistant: Yes.", "user: And?", "assistant: No."}},
		"without audio":                        {[]string{"out:Yes.", "in:Can you?", "out: I can.", "GC", "TC"}, []string{"user: Can you?", "assistant: Yes. I can."}},
		"without audio, and with a call":       {[]string{"out:Yes.", "call:a", "in:Can you?", "GC", "TC"}, []string{"user: Can you?", "assistant: Yes.", "call a pending"}},
		"the second question, without audio":   {[]string{"in:One?", "out:1.", "GC", "TC", "out:2.", "in:Two?", "GC", "TC"}, []string{"user: One?", "assistant: 1.", "user: Two?", "assistant: 2."}},
		"the second question":                  {[]string{"in:One?", "AU", "out:1.", "GC", "TC", "AU", "out:2.", "in:Two?", "GC", "TC"}, []string{"user: One?", "assistant: 1.", "user: Two?", "assistant: 2."}},
		"over an answer whose words are late":  {[]string{"in:Go", "AU", "VS", "INT", "in:Stop.", "out:One", "TC"}, []string{"user: Go", "assistant: One", "user*: Stop."}},
		"a call before the question's words":   {[]string{"VS", "VE", "call:a", "in:start a run", "answer:a", "AU", "out:It runs.", "GC", "TC"}, []string{"user: start a run", "call a completed", "assistant: It runs."}},
		"the end of a question after the turn": {[]string{"VS", "in:Can you ", "VE", "AU", "out:Yes.", "GC", "TC", "in:look?", "VS", "in:And?", "VE", "AU", "out:No.", "TC"}, []string{"user: Can you look?", "assistant: Yes.", "user: And?", "assistant: No."}},
		"words of the model after the turn":    {[]string{"in:Hi?", "AU", "out:Hello ", "GC", "TC", "out:there.", "in:How are you?", "AU", "out:Fine.", "GC", "TC"}, []string{"user: Hi?", "assistant: Hello there.", "user: How are you?", "assistant: Fine."}},
		"the same after an interruption":       {[]string{"in:Hi?", "AU", "out:Hello ", `{"serverContent":{"interrupted":true,"turnComplete":true}}`, "out:there.", "in:How are you?", "AU", "out:Fine.", "GC", "TC"}, []string{"user: Hi?", "assistant: Hello there.", "user: How are you?", "assistant: Fine."}},
		"what is said after a result":          {[]string{"in:start a run", "out:I start it. ", "call:a", "answer:a", "out:It is number 7.", "GC", "TC"}, []string{"user: start a run", "assistant: I start it. ", "call a completed", "assistant: It is number 7."}},
		"a call amid a word":                   {[]string{"in:go", "out:I start a Cod", "call:g", "out:egen run.", "TC"}, []string{"user: go", "assistant: I start a Codegen run.", "call g pending"}},
		"a call and its result amid a word":    {[]string{"in:go", "out:I start a Cod", "call:g", "answer:g", "out:egen run.", "out: It is 7.", "TC"}, []string{"user: go", "assistant: I start a Codegen run.", "call g completed", "assistant: It is 7."}},
		"interrupted before the words came":    {[]string{"in:q", "AU", "AU", "INT", "out:This was heard.", "TC"}, []string{"user: q", "assistant: This was heard."}},
		"a greeting, and then nobody spoke":    {[]string{"AU", "out:Hello.", "GC", "TC", "in:Hi", "AU", "out:Yes?", "GC", "TC"}, []string{"assistant: Hello.", "user: Hi", "assistant: Yes?"}},
		// Said twice, or told twice.
		"yes, and yes after a drop":           {[]string{"VS", "in:yes", "VE", "out:Delete the branch?", "GC", "TC", "OPEN", "VS", "in:yes", "VE", "out:Deleted.", "TC"}, []string{"user: yes", "assistant: Delete the branch?", "user: yes", "assistant: Deleted."}},
		"more than before after a drop":       {[]string{"in:book it", "out:For how many?", "GC", "TC", "OPEN", "in:book it for two", "out:Done.", "TC"}, []string{"user: book it", "assistant: For how many?", "user: book it for two", "assistant: Done."}},
		"twice in a turn":                     {[]string{"in:turn it off", "in:turn it off", "AU", "out:ok", "TC"}, []string{"user: turn it off turn it off", "assistant: ok"}},
		"words after a sign alone":            {[]string{"AU", "out:Yes, ", "in:😀", "in: open the issue", "out:I do.", "TC"}, []string{"user: 😀 open the issue", "assistant: Yes, I do."}},
		"twice, and a sign of speech is lost": {[]string{"VS", "in:turn it off", "VE", "out:ok", "TC", "in:turn it off", "VE", "out:ok", "TC"}, []string{"user: turn it off", "assistant: ok", "user: turn it off", "assistant: ok"}},
		"told twice, without blanks":          {[]string{"in:我想订一张桌子", "OPEN", "in:我想订一张桌子", "AU", "out:好", "TC"}, []string{"user: 我想订一张桌子", "assistant: 好"}},
		"said twice, without blanks":          {[]string{"in:好", "out:删除?", "GC", "TC", "OPEN", "in:好", "out:删除了", "TC"}, []string{"user: 好", "assistant: 删除?", "user: 好", "assistant: 删除了"}},
		// Languages and dialects.
		"halves of a surrogate pair":  {[]string{`{"serverContent":{"outputTranscription":{"text":"ok \ud83d"}}}`, `{"serverContent":{"outputTranscription":{"text":"\ude00 done"}}}`, "TC"}, []string{"assistant: ok 😀 done"}},
		"a half alone":                {[]string{`{"serverContent":{"outputTranscription":{"text":"ok \ud83d"}}}`, "out: done", "TC"}, []string{"assistant: ok \uFFFD done"}},
		"snake case":                  {[]string{"call:a", `{"tool_response":{"function_responses":[{"id":"a","name":"f","response":{"output_x":1}}]}}`, `{"client_content":{"turns":[{"role":"user","parts":[{"text":"typed"}]}],"turn_complete":true}}`, `{"server_content":{"output_transcription":{"text":"Yes"},"turn_complete":true}}`}, []string{"call a completed", "user: typed", "assistant: Yes"}},
		"history and a real question": {[]string{`{"clientContent":{"turns":[{"role":"user","parts":[{"text":"Ex"}]},{"role":"model","parts":[{"text":"ok"}]},{"role":"user","parts":[{"text":"Real question?"}]}],"turnComplete":true}}`, "out:Real answer.", "TC"}, []string{"user: Real question?", "assistant: Real answer."}},
		// Tool calls.
		"calls without ids":         {[]string{`{"toolCall":{"functionCalls":[{"name":"f","args":{}},{"name":"g"}]}}`, `{"toolResponse":{"functionResponses":[{"name":"g","response":{}}]}}`}, []string{"call holdfast:1 pending", "call holdfast:2 completed"}},
		"an id that is used again":  {[]string{"call:a", "answer:a", `{"toolCall":{"functionCalls":[{"id":"a","name":"run","args":{"n":2}}]}}`}, []string{"call a completed", "call a pending"}},
		"a call that comes twice":   {[]string{"call:a", "call:a", "answer:a", "call:a"}, []string{"call a completed"}},
		"a reason without words":    {[]string{"in:q", `{"serverContent":{"turnComplete":true,"turnCompleteReason":"MALFORMED_FUNCTION_CALL"}}`}, []string{"user: q", "assistant: "}},
		"the server executes code":  {[]string{"typed:q", `{"serverContent":{"modelTurn":{"parts":[{"text":"So: "},{"executableCode":{"language":"PYTHON","code":"1+1"}}]}}}`, "tx:It is 2.", "TC"}, []string{"user: q", "assistant: So: ", "assistant: ", "assistant: It is 2."}},
		"a function call in a turn": {[]string{"typed:q", `{"serverContent":{"modelTurn":{"parts":[{"functionCall":{"id":"x","name":"f"},"thoughtSignature":"c2ln"}]}}}`}, []string{"user: q", "call x pending"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newLiveStore()
			s.send(t, shorthands(tt.frames...)...)
			if diff := cmp.Diff(tt.want, s.talk()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			s.check(t)
		})
	}
}

func TestNewThingsAreKeptOrCounted(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.send(t, shorthands(
		`{"serverContent":{"inputTranscription":{"text":"Hi?","languageCode":"en-US","speakerLabel":"1"}}}`, "out:Hello.",
		`{"serverContent":{"groundingMetadata":{"webSearchQueries":["a"]}}}`, "GC", "TC",
		`{"usageMetadata":{"responseTokenCount":77,"totalTokenCount":87,"responseTokensDetails":[{"modality":"AUDIO","tokenCount":70}]}}`)...)
	q, a := s.messages[1], s.messages[2]
	if q.GetLanguage() != "en-US" || q.GetSpeaker() != "1" {
		t.Errorf("%v", q)
	}
	if a.GetTokenCount() != 77 || a.GetTokenCountEstimated() || a.GetUsage().GetFields()["responseTokensDetails"] == nil || a.GetSources().GetFields()["groundingMetadata"] == nil {
		t.Errorf("%v", a)
	}
	for frame, want := range map[string]int64{
		`{"serverContent":{"brandNewField":{"text":"words"}}}`:                           1,
		`{"serverContent":{"outputTranscription":{"text":"x","brandNew":1}}}`:            1,
		`{"toolCall":{"functionCalls":[{"id":"1","name":"f","args":{"brand_new":1}}]}}`:  0,
		`{"serverContent":{"modelTurn":{"parts":[{"brandNew":{}}]}}}`:                    1,
		`{"setup":{"tools":[{"any":1}],"generation_config":{"x":1}}}`:                    0,
		`{"serverContent":{"turn_complete":true}} {"usage_metadata":{"x":{"y":1}}}`:      0,
		`{"serverContent":{"inputTranscription":{"text":"x","words":[{"word":"x"}]}}}`:   1,
		`{"setupComplete":{"voiceConsentSignature":{"signature":"x"}}}`:                  1,
		`{"toolResponse":{"functionResponses":[{"id":"1","response":{},"parts":[{}]}]}}`: 1,
		`{"contextUpdate":{"systemInstruction":{"parts":[{"text":"Be brief."}]}}}`:       0,
	} {
		before := s.state.GetLive().GetUnknownFrames()
		s.send(t, frame)
		if got := s.state.GetLive().GetUnknownFrames() - before; got != want {
			t.Errorf("%s counts %d, want %d", frame, got, want)
		}
	}
	alone := newLiveStore()
	alone.send(t, `{"serverContent":{"groundingMetadata":{"webSearchQueries":["a"]}}}`, `{"serverContent":{"brandNewField":{"text":"words"}}}`)
	if got := alone.state.GetLive().GetUnknownFrames(); got != 2 {
		t.Errorf("counts %d of two", got)
	}
}

func TestHeardIsUnknownWithoutWords(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.send(t, shorthands("in:q", "AU", "AU", "INT", "out:This was heard.", "TC")...)
	if m := s.messages[2]; m.HeardText != nil || m.GetStatus() != storev1.MessageStatus_MESSAGE_STATUS_INTERRUPTED || m.GetAudioMs() != 200 {
		t.Errorf("%v", m)
	}
	for text, want := range map[string]string{
		"Yes, I can do that now.": "Yes, I can", "我可以马上做这件事情": "我可以马上", "ได้ครับผมจะทำ": "ได้ครั", "👩‍👩‍👧👍🏽🇩🇪🇫🇷": "👩‍👩‍👧",
	} {
		if got := played(text, 500, 1000); got != want {
			t.Errorf("half of %q is %q, want %q", text, got, want)
		}
	}
}

// What the model was told besides the conversation is known by its digest: equal where it was told the same, in whatever form.
func TestWhatTheModelWasTold(t *testing.T) {
	t.Parallel()
	told := func(frames ...string) *storev1.LiveSetup {
		s := newLiveStore()
		s.send(t, frames...)
		return s.state.GetLive().GetSetup()
	}
	const update = `{"contextUpdate":{"tools":[{"functionDeclarations":[{"name":"b"}]}]}}`
	one := told(`{"setup":{"model":"models/m","generationConfig":{"responseModalities":["AUDIO"],"translationConfig":{"targetLanguageCode":"de"}},"tools":[{"a":1}]}}`)
	snake := told(`{"setup": {"model": "models/m", "generation_config": {"response_modalities": ["AUDIO"], "translation_config": {"target_language_code": "de"}}, "tools": [{"a": 1}]}}`)
	same(t, "the same in snake case", snake, one)
	if one.GetModel() != "models/m" || one.GetResponseModalities()[0] != "AUDIO" || one.GetTargetLanguage() != "de" || one.GetContextSha256() == "" {
		t.Errorf("%v", one)
	}
	other := told(`{"setup":{"model":"models/m","tools":[{"a":2}]}}`, update)
	if other.GetContextSha256() == one.GetContextSha256() || other.GetContextUpdates() != 1 {
		t.Errorf("%v", other)
	}
	if s := told(`{"setup":{"model":"m"}}`, "reconnect"); s.GetModel() != "" {
		t.Errorf("of another session: %v", s)
	}
}

// Where something was said in the audio is on the message, from the transcription or from the signs of speech.
func TestOffsetsAreKept(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.send(t, `{"voiceActivity":{"voiceActivityType":"ACTIVITY_START","audioOffset":"1.5s"}}`, in("Hi"), in(" there."),
		`{"voiceActivity":{"voiceActivityType":"ACTIVITY_END","audioOffset":"2.250s"}}`,
		`{"serverContent":{"outputTranscription":{"text":"Hello","startOffset":"0s","endOffset":"0.4s"}}}`,
		`{"serverContent":{"outputTranscription":{"text":" you.","startOffset":"0.4s","endOffset":"0.9s"}}}`, turnComplete,
		`{"voiceActivity":{"voiceActivityType":"ACTIVITY_START","audioOffset":"soon"}}`)
	for seq, want := range map[int64][2]time.Duration{1: {1500 * time.Millisecond, 2250 * time.Millisecond}, 2: {0, 900 * time.Millisecond}} {
		m := s.messages[seq]
		if m.GetStartOffset() == nil || m.GetStartOffset().AsDuration() != want[0] || m.GetEndOffset().AsDuration() != want[1] {
			t.Errorf("message %d: %v", seq, m)
		}
	}
	if got := s.state.GetLive().GetUnknownFrames(); got != 1 {
		t.Errorf("%d frames are counted, want that of no offset", got)
	}
}

// A picture that the model makes is a message with that part.
func TestWhatTheModelMakesIsKept(t *testing.T) {
	t.Parallel()
	s := newLiveStore()
	s.send(t, typed("A picture of a cat."), part("Here:"), `{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"image/png","data":"iVBORw=="}}]}}}`, turnComplete)
	if m := s.messages[3]; m.GetRole() != storev1.Role_ROLE_ASSISTANT || m.GetParts()[0].GetData().GetMimeType() != "image/png" {
		t.Errorf("%v", s.messages)
	}
}
