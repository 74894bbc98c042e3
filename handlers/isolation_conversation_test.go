package handlers_test

import (
	"strings"
	"testing"
)

var conversationArea = area{
	fill: fillConversation,
	fuzzing: fuzzing{
		needy: []string{
			"EditMessages", "ForkConversation", "ProposeCompaction", "CommitCompaction",
		},
		seed: [][2]string{
			{"CreateConversation", `{"conversationId":"c1","conversation":{"labels":{"a":"b"}}}`},
			{"Append", `{"conversationId":"c1","messages":[{"role":"ROLE_USER","text":"x","clientMessageId":"m-1"}],"requestId":"r-1"}`},
		},
		reads: map[string][2]string{
			"Append": {"ListRecords", `{"conversationId":"c1"}`},
			"":       {"GetConversation", `{"conversationId":"c1","messageLimit":9}`},
		},
		full: map[string]string{
			"GetContextWindow":   `{"conversationId":"c1","budgetTokens":"300","recentOnly":true,"format":"CONTEXT_FORMAT_LIVE_SEED","endsWithUser":true}`,
			"ProposeCompaction":  `{"conversationId":"c1","keepTokens":1,"leaseDuration":"2s","fromScratch":true,"fencingToken":"1","requestId":"r-2","ifVersion":"2"}`,
			"CommitCompaction":   `{"conversationId":"c1","fencingToken":"1","text":"x","tokenCount":3,"requestId":"r-2","ifVersion":"2"}`,
			"CreateConversation": `{"conversationId":"c1-2","conversation":{"title":"t","labels":{"a":"b"},"projectId":"p","ttl":"90000s","keepForever":true,"metadata":{"a":[1]}},"messages":[{"role":"ROLE_USER","text":"t"}],"requestId":"r-2","ifVersion":"0"}`,
			"GetConversation":    `{"conversationId":"c1","messageLimit":9,"ifVersionNot":"9"}`,
			"ListConversations":  `{"pageSize":5,"filter":{"projectId":"p","labels":{"a":"b"},"activeSince":"2026-01-01T00:00:00Z"}}`,
			"UpdateConversation": `{"conversationId":"c1","conversation":{"title":"t","labels":{"a":"b"},"projectId":"p","ttl":"90000s","messageCount":5,"voice":{"changeTime":"2026-01-01T00:00:00Z"}},"updateMask":"title,labels","requestId":"r-2","ifVersion":"2"}`,
			"DeleteConversation": `{"conversationId":"c1","requestId":"r-2","ifVersion":"2"}`,
			"Append": `{"conversationId":"c1","messages":[{"role":"ROLE_USER","modality":"MODALITY_VOICE","clientMessageId":"m-2","tokenCount":3,"metadata":{"a":{"b":[1]}},"spoken":{"heardText":"t","sources":{"a":1}},
				"parts":[{"text":"t","partId":"p","metadata":{"a":1}},{"reasoning":"r","thoughtSignature":"AA=="},{"json":{"a":[1]}},{"file":{"uri":"u","mimeType":"m","name":"n"}},{"data":{"data":"AA==","mimeType":"m"}},
				{"toolCall":{"callId":"c","name":"n","args":{"a":{"b":"c"}}}},{"toolResult":{"response":{"a":null},"isError":true}},{"toolResult":{"responseJson":"1"}}]}],
				"intents":[{"name":"n","confidence":0.5,"slots":{"a":{"b":[1]}},"messageSeq":1}],"flowSteps":[{"flow":"f","step":"s","data":{"a":{"b":[1]}}}],
				"voice":{"audioStreamId":"a","status":"VOICE_STATUS_LISTENING","lastTranscription":"t"},"createIfMissing":true,"conversation":{"title":"t"},"requestId":"r-2","ifVersion":"2"}`,
			"EditMessages": `{"conversationId":"c1","truncateAfterSeq":1,"deleteSeqs":[9],"updates":[{"message":{"seq":1,"parts":[{"json":{"a":1}}],"status":"MESSAGE_STATUS_FAILED","metadata":{"a":"b"},"tokenCount":3},"updateMask":"text,parts"}],
				"messages":[{"role":"ROLE_ASSISTANT","text":"t","hidden":true}],"returnRemoved":true,"requestId":"r-2","ifVersion":"2"}`,
			"ForkConversation": `{"conversationId":"c1","throughSeq":1,"newConversationId":"c1-2","conversation":{"title":"t"},"requestId":"r-2","ifVersion":"0"}`,
			"ListRecords":      `{"conversationId":"c1","types":["RECORD_TYPE_INTENT","RECORD_TYPE_TOOL_CALL"],"newestFirst":true,"pageSize":5}`,
			"ListMessages":     `{"conversationId":"c1","newestFirst":true,"afterSeq":1,"beforeSeq":9,"pageSize":5}`,
		},
	},
	cases: map[string]isolationCase{
		"/holdfast.conversation.v1.ConversationService/CreateConversation": {body: `{"conversationId":"c1","conversation":{"title":"mine"},"shared":true}`, outside: isOwn, inside: isTaken, tenants: isTaken},
		"/holdfast.conversation.v1.ConversationService/GetConversation":    {body: `{"conversationId":"c1","messageLimit":9}`},
		"/holdfast.conversation.v1.ConversationService/ListConversations":  {body: `{}`, outside: isEmpty, inside: isEmpty},
		"/holdfast.conversation.v1.ConversationService/UpdateConversation": {body: `{"conversationId":"c1","conversation":{"title":"mine"}}`},
		"/holdfast.conversation.v1.ConversationService/DeleteConversation": {body: `{"conversationId":"c1"}`, outside: isEmpty, inside: isEmpty, tenants: deniedUser},
		"/holdfast.conversation.v1.ConversationService/Append":             {body: `{"conversationId":"c1","messages":[{"role":"ROLE_USER","text":"mine"}]}`},
		"/holdfast.conversation.v1.ConversationService/ListMessages":       {body: `{"conversationId":"c1"}`},
		"/holdfast.conversation.v1.ConversationService/EditMessages":       {body: `{"conversationId":"c1","updates":[{"message":{"seq":1,"text":"mine"}}],"deleteSeqs":[999]}`},
		"/holdfast.conversation.v1.ConversationService/ListRecords":        {body: `{"conversationId":"c1"}`},
		"/holdfast.conversation.v1.ConversationService/ForkConversation":   {body: `{"conversationId":"c1","newConversationId":"mine"}`, tenants: "not_found NOT_FOUND"},
		"/holdfast.conversation.v1.ConversationService/GetContextWindow":   {body: `{"conversationId":"c1"}`},
		"/holdfast.conversation.v1.ConversationService/ProposeCompaction":  {body: `{"conversationId":"c1","keepTokens":1,"fencingToken":2}`},
		"/holdfast.conversation.v1.ConversationService/CommitCompaction":   {body: `{"conversationId":"c1","fencingToken":2,"text":"mine"}`},
	},
}

// filledMessages is how many messages fillConversation leaves in c1.
const filledMessages = 7

// fillConversation makes c1 of the user ada, with something in each of its collections.
func fillConversation(tb testing.TB, b *bundle, ada string) {
	tb.Helper()
	const frame = `"frames":[{"clientIndex":1,"text":"{\"serverContent\":{\"inputTranscription\":{\"text\":\"` + secret + `\"},` +
		`\"outputTranscription\":{\"text\":\"` + secret + `\"}},\"toolCall\":{\"functionCalls\":[{\"id\":\"f1\",\"name\":\"` + secret + `\"},{\"id\":\"f2\"}]},` +
		`\"sessionResumptionUpdate\":{\"newHandle\":\"` + secret + `\",\"resumable\":true}}"}]`
	const turns = `{"role":"ROLE_ASSISTANT","text":"Yes"},{"role":"ROLE_USER","text":"Go on"}`
	for _, step := range []struct{ method, body string }{
		{"CreateConversation", `{"conversationId":"c1","conversation":{"title":"` + secret + `","labels":{"a":"` + secret + `"}}}`},
		{"Append", `{"conversationId":"c1","messages":[{"role":"ROLE_USER","text":"` + secret + `","clientMessageId":"m-1"}],"requestId":"r-1"}`},
		{"Append", `{"conversationId":"c1","intents":[{"name":"` + secret + `"}],"flowSteps":[{"flow":"f","step":"` + secret + `"}]}`},
		{"Append", `{"conversationId":"c1","messages":[` + turns + `]}`},
		{"ProposeCompaction", `{"conversationId":"c1","keepTokens":1}`},
		{"CommitCompaction", `{"conversationId":"c1","fencingToken":1,"text":"` + secret + `"}`},
		{"Append", `{"conversationId":"c1","messages":[` + turns + `]}`},
		{"ProposeCompaction", `{"conversationId":"c1","keepTokens":1}`},
		{liveRPCs + "ConnectLive", `{"conversationId":"c1","device":{"name":"` + secret + `"}}`},
		{liveRPCs + "ConnectLive", `{"conversationId":"c1","device":{"name":"` + secret + `"},"takeOver":true,"options":{"keepFramesFor":"3600s","leaveToolCalls":true}}`},
		{liveRPCs + "IngestLive", `{"conversationId":"c1","fencingToken":1,` + frame + `}`},
		{liveRPCs + "IngestLive", `{"conversationId":"c1","fencingToken":2,` + frame + `}`},
		{liveRPCs + "ClaimToolCall", `{"conversationId":"c1","seq":1,"worker":"` + secret + `"}`},
	} {
		m := registered()[step.method]
		if m == nil {
			m = registered()[conversationRPCs+step.method]
		}
		got := b.call(tb, m, step.body, ada)
		if got.reason == "USER_REQUIRED" { // a service makes it for the tenant
			got = b.call(tb, m, strings.TrimSuffix(step.body, "}")+`,"shared":true}`, ada)
		}
		if got.code != "ok" && got.reason != "FENCED" { // which keeps a fragment
			tb.Fatalf("%s: %+v", step.method, got)
		}
	}
}
