package handlers_test

import "testing"

var conversationArea = area{
	fill: fillConversation,
	cases: map[string]isolationCase{
		"/holdfast.conversation.v1.ConversationService/CreateConversation": {body: `{"conversationId":"c1","title":"mine"}`, outside: isOwn},
		"/holdfast.conversation.v1.ConversationService/GetConversation":    {body: `{"conversationId":"c1","messageLimit":9}`},
		"/holdfast.conversation.v1.ConversationService/ListConversations":  {body: `{}`, outside: isEmpty, inside: isEmpty},
		"/holdfast.conversation.v1.ConversationService/UpdateConversation": {body: `{"conversationId":"c1","conversation":{"title":"mine"}}`},
		"/holdfast.conversation.v1.ConversationService/DeleteConversation": {body: `{"conversationId":"c1"}`},
		"/holdfast.conversation.v1.ConversationService/AppendMessages":     {body: `{"conversationId":"c1","messages":[{"role":"ROLE_USER","text":"mine"}]}`},
		"/holdfast.conversation.v1.ConversationService/UpdateMessage":      {body: `{"conversationId":"c1","message":{"seq":1,"text":"mine"}}`},
		"/holdfast.conversation.v1.ConversationService/ListMessages":       {body: `{"conversationId":"c1"}`},
		"/holdfast.conversation.v1.ConversationService/SetVoiceState":      {body: `{"conversationId":"c1","status":"VOICE_STATUS_LISTENING"}`},
		"/holdfast.conversation.v1.ConversationService/RecordIntent":       {body: `{"conversationId":"c1","name":"mine"}`},
		"/holdfast.conversation.v1.ConversationService/ListIntents":        {body: `{"conversationId":"c1"}`},
		"/holdfast.conversation.v1.ConversationService/AdvanceFlow":        {body: `{"conversationId":"c1","flow":"mine","step":"mine"}`},
		"/holdfast.conversation.v1.ConversationService/ListFlowSteps":      {body: `{"conversationId":"c1"}`},
		"/holdfast.conversation.v1.ConversationService/IngestLive":         {body: `{"conversationId":"c1","epoch":1,"frames":[{"clientIndex":1,"text":"{\"serverContent\":{\"inputTranscription\":{\"text\":\"mine\"}}}"}]}`},
		"/holdfast.conversation.v1.ConversationService/WatchConversation":  {body: `{"conversationId":"c1","messageLimit":9}`},
	},
}

// fillConversation makes c1 of the user ada, with something in each of its collections.
func fillConversation(tb testing.TB, b *bundle, ada string) {
	tb.Helper()
	for _, step := range []struct{ method, body string }{
		{"CreateConversation", `{"conversationId":"c1","title":"` + secret + `","labels":{"a":"` + secret + `"}}`},
		{"AppendMessages", `{"conversationId":"c1","messages":[{"role":"ROLE_USER","text":"` + secret + `","clientMessageId":"m-1"}],"requestId":"r-1"}`},
		{"RecordIntent", `{"conversationId":"c1","name":"` + secret + `"}`},
		{"AdvanceFlow", `{"conversationId":"c1","flow":"f","step":"` + secret + `"}`},
	} {
		m := registered()["/holdfast.conversation.v1.ConversationService/"+step.method]
		if got := b.call(tb, m, step.body, ada); got.code != "ok" {
			tb.Fatalf("%s: %+v", step.method, got)
		}
	}
}
