package handlers_test

import (
	"strings"
	"testing"
)

// On a shared conversation nobody's message is dropped for another's id, whichever id that is; the same caller's retry is
// answered as the first time.
func TestAnothersIDSwallowsNoMessage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service, ada, bob := b.key(t, ""), b.key(t, "ada"), b.key(t, "bob")
	call := func(method, body string, as ...string) reply {
		return b.do(t, "POST", "/holdfast.conversation.v1.ConversationService/"+method, strings.NewReader(body), append(as, "Content-Type: application/json")...)
	}
	if got := call("CreateConversation", `{"conversationId":"shared","shared":true}`, service); got.code != "ok" {
		t.Fatal(got)
	}
	for _, body := range []string{
		`{"conversationId":"shared","messages":[{"role":"ROLE_USER","text":"yes"}],"requestId":"m-1"}`,
		`{"conversationId":"shared","messages":[{"role":"ROLE_USER","text":"yes","clientMessageId":"c-1"}]}`,
	} {
		first := call("Append", body, ada)
		for _, as := range [][]string{{ada}, {service, "Holdfast-User: ada"}} {
			if again := call("Append", body, as...); first.code != "ok" || again.code != "ok" || !strings.Contains(again.body, `"seq"`) {
				t.Errorf("ada: %+v, then %+v", first, again)
			}
		}
		for _, as := range [][]string{{bob}, {service}, {service, "Holdfast-User: bob"}} {
			if got := call("Append", body, as...); got.code != "already_exists" || got.reason != "REQUEST_ID_REUSED" {
				t.Errorf("another caller: %+v", got)
			}
		}
	}
	if got := call("ListMessages", `{"conversationId":"shared"}`, bob); strings.Count(got.body, `"seq"`) != 2 {
		t.Errorf("there are %s", got.body)
	}
}
