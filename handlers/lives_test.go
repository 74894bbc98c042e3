package handlers_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"holdfast/db/dbtest"
	"holdfast/object"
)

// answer is what a call that has to succeed is answered with.
func (b *bundle) answer(t *testing.T, method, body string, headers ...string) map[string]any {
	t.Helper()
	got := b.call(t, registered()[method], body, headers...)
	var out map[string]any
	if err := json.Unmarshal([]byte(got.body), &out); err != nil || got.code != "ok" {
		t.Fatalf("%s %s: %+v, %v", method, body, got, err)
	}
	return out
}

// field is one of an answer; numbers are those of strings.
func field(t *testing.T, from any, path ...string) string {
	t.Helper()
	for _, name := range path {
		from = from.(map[string]any)[name]
	}
	return fmt.Sprint(from)
}

func number(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// lifeSteps lead from one life of the conversation or API c1 to the next.
var lifeSteps = map[string]func(t *testing.T, b *bundle, kind, version, service string, create func()){
	"created again": func(t *testing.T, b *bundle, kind, _, service string, create func()) {
		t.Helper()
		b.must(t, inspectRPCs+"DeleteObject", `{"ref":{"kind":"`+kind+`","objectId":"c1"}}`, service)
		create()
	},
	"restored": func(t *testing.T, b *bundle, kind, version, service string, _ func()) {
		t.Helper()
		b.must(t, inspectRPCs+"DeleteObject", `{"ref":{"kind":"`+kind+`","objectId":"c1"}}`, service)
		b.must(t, inspectRPCs+"RestoreObject", `{"ref":{"kind":"`+kind+`","objectId":"c1"},"at":{"version":"`+version+`"}}`, service)
	},
	"restored while it was there": func(t *testing.T, b *bundle, kind, version, service string, _ func()) {
		t.Helper()
		b.must(t, inspectRPCs+"RestoreObject", `{"ref":{"kind":"`+kind+`","objectId":"c1"},"at":{"version":"`+version+`"}}`, service)
	},
}

// Whatever a conversation's earlier life issued is worth nothing in the next, and what the next issues is above it: epochs,
// fences, the tokens of tool calls and of summaries.
func TestFencesNeverRunBackwardsAcrossLives(t *testing.T) {
	t.Parallel()
	const (
		frame = `{"conversationId":"c1","fencingToken":%d,"frames":[{"clientIndex":100,"object":{"realtimeInput":{"text":"old"}}}]}`
		call  = `{"conversationId":"c1","fencingToken":%d,"frames":[{"clientIndex":1,"object":{"toolCall":{"functionCalls":[{"id":"fc","name":"f","args":{}}]}}}]}`
	)
	for step, next := range lifeSteps {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			ada, service := b.key(t, "ada"), b.key(t, "")
			token := b.signIn(t, "ada")
			connect := func() int64 {
				t.Helper()
				return number(t, field(t, b.answer(t, liveRPCs+"ConnectLive", `{"conversationId":"c1","takeOver":true,"options":{"leaveToolCalls":true}}`, token), "lease", "fencingToken"))
			}
			create := func() { t.Helper(); b.must(t, conversationRPCs+"CreateConversation", `{"conversationId":"c1"}`, ada) }
			claim := func() string {
				t.Helper()
				return field(t, b.answer(t, liveRPCs+"ClaimToolCall", `{"conversationId":"c1","seq":1,"worker":"w","leaseDuration":"600s"}`, ada), "toolCall", "claim", "fencingToken")
			}
			propose := func() string {
				t.Helper()
				for i := range 12 {
					b.must(t, conversationRPCs+"Append", fmt.Sprintf(`{"conversationId":"c1","messages":[{"role":"ROLE_%s","text":"%0200d"}]}`, []string{"USER", "ASSISTANT"}[i%2], i), ada)
				}
				return field(t, b.answer(t, conversationRPCs+"ProposeCompaction", `{"conversationId":"c1","keepTokens":100,"leaseDuration":"600s"}`, ada), "lease", "fencingToken")
			}
			refused := func(method, body string) {
				t.Helper()
				if got := b.call(t, registered()[method], body, token); got.reason != "FENCED" {
					t.Errorf("%s %s: %+v", method, body, got)
				}
			}
			create()
			var newest, lastClaim, lastLease int64
			var claims, leases []string
			for range 3 { // lives
				lease := propose()
				if number(t, lease) <= lastLease {
					t.Errorf("the lease %s follows %d", lease, lastLease)
				}
				lastLease = number(t, lease)
				for _, old := range leases {
					refused(conversationRPCs+"CommitCompaction", `{"conversationId":"c1","fencingToken":"`+old+`","text":"old"}`)
				}
				leases = append(leases, lease)
				for range 3 {
					got := connect()
					if got <= newest {
						t.Errorf("the token %d follows %d", got, newest)
					}
					newest = got
				}
				b.must(t, liveRPCs+"IngestLive", fmt.Sprintf(call, newest), token)
				for _, old := range claims {
					refused(liveRPCs+"CompleteToolCall", `{"conversationId":"c1","seq":1,"fencingToken":`+old+`,"response":{"by":"old"}}`)
				}
				got := claim()
				if number(t, got) <= lastClaim {
					t.Errorf("the claim %s follows %d", got, lastClaim)
				}
				lastClaim = number(t, got)
				for _, old := range claims {
					refused(liveRPCs+"CompleteToolCall", `{"conversationId":"c1","seq":1,"fencingToken":`+old+`,"response":{"by":"old"}}`)
				}
				claims = append(claims, got)
				version := field(t, b.answer(t, conversationRPCs+"GetConversation", `{"conversationId":"c1"}`, ada), "conversation", "version")
				next(t, b, "conversation", version, service, create)
				for _, old := range []int64{1, max(1, newest-2), max(1, newest-1), newest} {
					refused(liveRPCs+"IngestLive", fmt.Sprintf(frame, old))
					refused(liveRPCs+"DisconnectLive", fmt.Sprintf(`{"conversationId":"c1","fencingToken":%d}`, old))
				}
				messages := b.call(t, registered()[conversationRPCs+"ListMessages"], `{"conversationId":"c1","pageSize":200}`, ada).body
				if regexp.MustCompile(`"old"`).MatchString(messages) {
					t.Errorf("what an old connection sent was folded: %s", messages)
				}
			}
		})
	}
}

// The ledger of an API that was deleted is gone with it, but its leases and grants are worth nothing in the next of that name.
func TestALeaseOfADeletedAPIIsWorthNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada, service := b.key(t, "ada"), b.key(t, "")
	create := func() { t.Helper(); b.must(t, coordinationService+"UpdateApi", `{"api":"c1","config":{}}`, service) }
	begin := func() string {
		t.Helper()
		return field(t, b.answer(t, coordinationService+"BeginCall", `{"api":"c1","operation":"op","key":"r"}`, ada), "lease", "fencingToken")
	}
	acquire := func() string {
		t.Helper()
		return field(t, b.answer(t, coordinationService+"Acquire", `{"api":"c1"}`, service), "grantId")
	}
	create()
	old, grants := []string{begin()}, []string{acquire()}
	for range 3 {
		lifeSteps["created again"](t, b, "api", "", service, create)
		lease := begin()
		for _, lost := range old {
			for _, result := range []string{`"completed":{}`, `"failed":{"failure":"FAILURE_TERMINAL"}`} {
				body := `{"api":"c1","key":"r","fencingToken":` + lost + `,` + result + `}`
				if got := b.call(t, registered()[coordinationService+"FinishCall"], body, ada); got.code == "ok" {
					t.Errorf("%s under the lease %s of an earlier life, now it is %s: %+v", result, lost, lease, got)
				}
			}
		}
		for _, lost := range grants {
			got := b.call(t, registered()[coordinationService+"Release"], `{"api":"c1","grantId":"`+lost+`","unused":true}`, service)
			if got.code != "ok" || strings.Contains(got.body, "released") {
				t.Errorf("a grant of an earlier life is given back: %+v", got)
			}
		}
		old, grants = append(old, lease), append(grants, acquire())
	}
	version := field(t, b.answer(t, coordinationService+"GetApi", `{"api":"c1"}`, service), "api", "version")
	if got := b.call(t, registered()[inspectRPCs+"RestoreObject"], `{"ref":{"kind":"api","objectId":"c1"},"at":{"version":"`+version+`"}}`, service); got.code != "invalid_argument" {
		t.Errorf("a ledger goes back: %+v", got)
	}
}

// fencing are the kinds that issue numbers or secrets which must not be good again: each says what becomes of them when it is
// restored.
var fencing = regexp.MustCompile(`epoch|fence|fencing|lease|generation|secret|^token$|_token$`)

func TestNoKindThatFencesIsRestoredUnawares(t *testing.T) {
	t.Parallel()
	rt := object.NewRuntime(dbtest.New(t).DB, object.Config{})
	defer rt.Close(t.Context())
	services(t, rt)
	// By rules of their own, see TestFencesNeverRunBackwardsAcrossLives and TestALeaseOfAnEarlierLifeIsWorthNothing.
	restored := map[string]bool{"conversation": true, "state": true}
	for _, name := range rt.Kinds() {
		kind, _ := rt.Kind(name)
		all := []protoreflect.MessageDescriptor{kind.Prototype().ProtoReflect().Descriptor()}
		for _, c := range kind.Collections() {
			all = append(all, kind.PrototypeOf(c).ProtoReflect().Descriptor())
		}
		seen := map[protoreflect.FullName]bool{}
		for len(all) > 0 {
			d := all[0]
			all = all[1:]
			if seen[d.FullName()] {
				continue
			}
			seen[d.FullName()] = true
			for i := range d.Fields().Len() {
				f := d.Fields().Get(i)
				if fencing.MatchString(string(f.Name())) && name != "session_settings" && !kind.NoRestore() && !restored[name] {
					t.Errorf("the kind %s keeps %s, and may be restored", name, f.FullName())
				}
				if f.Message() != nil {
					all = append(all, f.Message())
				}
			}
		}
	}
}
