package handlers_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	conversationstorev1 "holdfast/gen/holdfast/store/conversation/v1"
	coordinationstore "holdfast/gen/holdfast/store/coordination/v1"
	linearstorev1 "holdfast/gen/holdfast/store/linear/v1"
	projectstorev1 "holdfast/gen/holdfast/store/project/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	statestorev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/identity"
	"holdfast/object"
)

const mostAnswered = 2 << 20

// answerCase says how the answers of a method are filled, and how they are read to their end.
type answerCase struct {
	// bounded says why no answer can be larger. Then nothing else is set.
	bounded string
	// service: it is called by a service, and not by ada.
	service bool
	fill    func(f *filler)
	// body is the first request.
	body string
	// items are the answer's lists, each with the path of what names an item in it: "messages.seq".
	items []string
	// next has a field of the answer and the field of the request that takes it; where the first is a flag, the second takes the last
	// item's name, or the first one's with "<". Empty: the rest is had in another way, which test shows.
	next [2]string
	// want is how many items there are.
	want int
	// pages is how many answers there are at least; 0: 2.
	pages int
}

// bulk is a text of some n bytes in JSON: of what is written twice as long there, or six times.
func bulk(i, n int) string {
	if i%2 == 0 {
		return strings.Repeat(`"`, n/2)
	}
	return strings.Repeat("\x01", n/6)
}

// numbers is a struct that is five times as long in binary as in JSON.
func numbers(n int) *structpb.Struct {
	list := &structpb.ListValue{}
	for range n {
		list.Values = append(list.Values, structpb.NewNumberValue(1))
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{"n": structpb.NewListValue(list)}}
}

// largeStruct is one of the two.
func largeStruct(i, n int) *structpb.Struct {
	if i%3 == 0 {
		return numbers(n / 11)
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{"text": structpb.NewStringValue(bulk(i, n))}}
}

func largeMap(pairs, key, value int) map[string]string {
	m := map[string]string{}
	for i := range pairs {
		m[fmt.Sprintf("%0*d", key, i)] = strings.Repeat("\x01", value)
	}
	return m
}

// filler writes what a case reads, past the managers' own limits of a request but not past the runtime's.
type filler struct {
	*testing.T

	ctx context.Context
	b   *bundle
	rt  *object.Runtime
	key string
}

func (f *filler) update(kind, id string, change func(tx *object.Tx[proto.Message])) {
	f.Helper()
	k, ok := f.rt.Kind(kind)
	if !ok {
		f.Fatal(kind)
	}
	if _, err := k.Update(f.ctx, object.ID(id), func(tx *object.Tx[proto.Message]) error {
		change(tx)
		return nil
	}, object.Upsert()); err != nil {
		f.Fatal(err)
	}
}

// state makes an object, or changes it.
func (f *filler) state(kind, id string, state proto.Message) {
	f.Helper()
	f.update(kind, id, func(tx *object.Tx[proto.Message]) { proto.Merge(tx.State(), state) })
}

// entries puts n entries, a few at a time, with their numbers as keys.
func (f *filler) entries(kind, id, collection string, n int, entry func(i int) proto.Message) {
	f.Helper()
	for from := 1; from <= n; from += 5 {
		f.update(kind, id, func(tx *object.Tx[proto.Message]) {
			for i := from; i < from+5 && i <= n; i++ {
				tx.Put(collection, object.SeqKey(int64(i)), entry(i))
			}
		})
	}
}

// call makes a change through the API.
func (f *filler) call(procedure, body string) string {
	f.Helper()
	got := f.b.do(f, http.MethodPost, procedure, strings.NewReader(body), f.key, "Content-Type: application/json")
	if got.code != "ok" {
		f.Fatalf("%s: %s %s", procedure, got.code, got.body)
	}
	return got.body
}

func message(i int) *conversationstorev1.Message {
	m := &conversationstorev1.Message{
		Seq: int64(i), Role: conversationstorev1.Role_ROLE_USER, Status: conversationstorev1.MessageStatus_MESSAGE_STATUS_COMPLETE, Text: bulk(i, 90_000),
		TokenCount: 1000,
	}
	if i%3 == 0 {
		m.Text = "numbers"
		m.Parts = []*conversationstorev1.Part{{Part: &conversationstorev1.Part_Json{Json: structpb.NewStructValue(numbers(10_000))}}}
	}
	return m
}

func toolCall(i int) *conversationstorev1.ToolCall {
	return &conversationstorev1.ToolCall{
		Seq: int64(i), CallId: fmt.Sprint("call-", i), Session: 1, AfterSeq: int64(i), Name: "f", Args: largeStruct(i, 60_000), Response: structpb.NewStructValue(largeStruct(i+1, 60_000)),
		Status: conversationstorev1.ToolCallStatus_TOOL_CALL_STATUS_COMPLETED,
	}
}

// largeConversation has as large a state as there may be.
func largeConversation(i int) *conversationstorev1.ConversationState {
	return &conversationstorev1.ConversationState{
		Title: bulk(i, 6000), Labels: largeMap(64, 10, 200),
		Voice: &conversationstorev1.VoiceState{LastTranscription: bulk(i, 60_000)},
		Live:  &conversationstorev1.LiveState{Epoch: 1, UserTurn: &conversationstorev1.Message{Seq: 1, Text: bulk(i+1, 90_000)}},
	}
}

// everything makes a conversation with n entries of each collection; its state is as large as may be.
func everything(n int) func(f *filler) {
	return func(f *filler) {
		s := largeConversation(1)
		s.Labels, s.Live.PendingCalls = nil, map[string]*conversationstorev1.ToolCall{"p": {Seq: int64(n) + 1, CallId: "p", Args: largeStruct(1, 40_000)}}
		s.LastSeq, s.ToolCallCount, s.IntentCount, s.FlowStepCount = int64(n), int64(n), int64(n), int64(n)
		s.Summary = &conversationstorev1.Summary{Seq: int64(n), Text: bulk(3, 20_000)}
		f.state("conversation", "c1", s)
		for from := 1; from <= n; from += 3 {
			f.update("conversation", "c1", func(tx *object.Tx[proto.Message]) {
				for i := from; i < from+3 && i <= n; i++ {
					key := object.SeqKey(int64(i))
					tx.Put("messages", key, message(i))
					tx.Put("tool_calls", key, toolCall(i))
					tx.Put("intents", key, &conversationstorev1.Intent{Seq: int64(i), Name: "i", Slots: largeStruct(i, 100_000)})
					tx.Put("flow_steps", key, &conversationstorev1.FlowStep{Seq: int64(i), Flow: "f", Step: "s", Data: largeStruct(i, 100_000)})
					tx.Put("summaries", key, &conversationstorev1.Summary{Seq: int64(i), ToSeq: int64(i), Text: bulk(i, 90_000)})
					tx.Put("fragments", key, &conversationstorev1.Fragment{Seq: int64(i), UserText: bulk(i, 50_000), AssistantText: bulk(i+1, 50_000)})
				}
			})
		}
	}
}

const answersC1 = `{"conversationId":"c1","pageSize":200}`

var answerCases = map[string]answerCase{
	"/holdfast.conversation.v1.ConversationService/GetConversation": {
		fill: everything(45), body: `{"conversationId":"c1","messageLimit":200}`, items: []string{"messages.seq"}, pages: 1,
	},
	"/holdfast.conversation.v1.ConversationService/ListConversations": {
		fill: func(f *filler) {
			for i := range 24 {
				f.state("conversation", fmt.Sprint("c", i), largeConversation(i))
			}
		},
		body: `{"pageSize":200}`, items: []string{"conversations.conversationId"}, next: [2]string{"nextPageToken", "pageToken"}, want: 24,
	},
	"/holdfast.conversation.v1.ConversationService/ListMessages": {
		fill: everything(45), body: answersC1, items: []string{"messages.seq"}, next: [2]string{"nextPageToken", "pageToken"}, want: 45,
	},
	"/holdfast.conversation.v1.ConversationService/CreateConversation": {bounded: "it has no text of messages"},
	"/holdfast.conversation.v1.ConversationService/EditMessages":       {bounded: "it ends at the bound, and 100 messages have just their seqs, times and counts from there on"},
	"/holdfast.conversation.v1.ConversationService/ListRecords": {
		fill: everything(45), body: `{"conversationId":"c1","pageSize":200,"types":["RECORD_TYPE_TOOL_CALL"]}`, items: []string{"records.toolCall.seq"}, next: [2]string{"nextPageToken", "pageToken"}, want: 45,
	},
	"/holdfast.conversation.v1.ConversationService/GetContextWindow": {
		fill: everything(45), body: `{"conversationId":"c1","budgetTokens":2000000}`, items: []string{"items.message.seq"}, pages: 1,
	},

	watchRPC: {
		fill: everything(45), body: `{"items":[{"itemId":"i","conversation":{"conversationId":"c1","messageLimit":200}}],"maxBytes":1048576}`,
		items: []string{"changed.put.message.seq"}, want: 45,
	},

	liveRPCs + "ListLiveFrames": {
		fill: func(f *filler) {
			f.call("/holdfast.conversation.v1.ConversationService/CreateConversation", `{"conversationId":"c1"}`)
			f.call(liveRPCs+"ConnectLive", `{"conversationId":"c1","options":{"keepFramesFor":"600s"}}`)
			for i := range 12 {
				var frames []any
				for j := range 6 {
					frame := map[string]any{"clientIndex": 6*i + j + 1, "text": bulk(j, 300_000)}
					if j%3 == 2 {
						frame = map[string]any{"clientIndex": 6*i + j + 1, "object": numbers(4000).AsMap()}
					}
					frames = append(frames, frame)
				}
				body, err := json.Marshal(map[string]any{"conversationId": "c1", "fencingToken": 1, "frames": frames})
				if err != nil {
					f.Fatal(err)
				}
				f.call(liveRPCs+"IngestLive", string(body))
			}
		},
		body: `{"conversationId":"c1","pageSize":20}`, items: []string{"batches.frames.clientIndex"}, next: [2]string{"nextPageToken", "pageToken"}, want: 72,
	},
	liveRPCs + "IngestLive": {
		fill: func(f *filler) {
			f.call("/holdfast.conversation.v1.ConversationService/CreateConversation", `{"conversationId":"c1"}`)
			f.call(liveRPCs+"ConnectLive", `{"conversationId":"c1"}`)
		},
		body: func() string {
			var frames []any
			for i := range 100 {
				frames = append(frames, map[string]any{"clientIndex": i + 1, "object": map[string]any{
					"realtimeInput": map[string]any{"text": bulk(i, 30_000)},
				}})
			}
			body, _ := json.Marshal(map[string]any{"conversationId": "c1", "fencingToken": 1, "frames": frames})
			return string(body)
		}(), items: []string{"messages.seq"}, pages: 1,
	},
	"/holdfast.conversation.v1.ConversationService/Append": {bounded: "100 messages, each a seq, a time and a count"},

	stateRPCs + "Read": {
		fill:  func(f *filler) { fillObject(f, "c1", 40, 100_000) },
		body:  `{"reads":[{"ref":{"type":"note","name":"c1"},"queries":[{"collection":"items","limit":200}]},{"ref":{"type":"note","name":"c1"},"queries":[{"collection":"items","reverse":true,"limit":200}]}]}`,
		items: []string{"objects.pages.entries.key"}, pages: 1,
	},
	stateRPCs + "ListStates": {
		fill: func(f *filler) {
			for i := range 24 {
				fillObject(f, fmt.Sprint("c", i), 0, 100_000)
			}
		},
		body: `{"filter":{"type":"note"},"withState":true,"pageSize":200}`, items: []string{"objects.ref.name"}, next: [2]string{"nextPageToken", "pageToken"}, want: 24,
	},
	stateRPCs + "ListTypes": {
		service: true,
		fill: func(f *filler) {
			for i := range 24 {
				f.state("state_type", fmt.Sprint("t", i), &statestorev1.TypeState{StateSchema: largeStruct(i, 100_000)})
			}
		},
		body: `{"pageSize":200}`, items: []string{"types.type"}, next: [2]string{"nextPageToken", "pageToken"}, want: 24,
	},
	stateRPCs + "TakeTimers":    {bounded: "100 timers, each of four names and an error in words"},
	stateRPCs + "Apply":         {bounded: "what it has deleted ends at the bound, and 1,000 results have a key or a number each"},
	stateRPCs + "ApplyTogether": {bounded: "what each change has deleted ends at its share of the bound"},

	"/holdfast.project.v1.ProjectService/ListProjects": {
		fill: func(f *filler) {
			for i := range 24 {
				f.state("project", fmt.Sprint("p", i), largeProject(i))
			}
		},
		body: `{"pageSize":200}`, items: []string{"projects.projectId"}, next: [2]string{"nextPageToken", "pageToken"}, want: 24,
	},
	"/holdfast.project.v1.ProjectService/GetProjectContext": {
		fill: func(f *filler) {
			f.state("project", "p1", largeProject(1))
			for i := range 12 {
				f.state("task", fmt.Sprint("t", i), largeTask(i))
			}
			f.state("conversation", "c1", &conversationstorev1.ConversationState{ProjectId: "p1", Summary: &conversationstorev1.Summary{Text: bulk(1, 90_000)}})
			f.call("/holdfast.project.v1.ProjectService/UpdatePreferences", string(must(json.Marshal(map[string]any{
				"preferences": map[string]any{"extra": largeMap(64, 64, 580)},
			}))(f)))
		},
		body: `{"projectId":"p1","taskLimit":100,"issueLimit":100}`, items: []string{"context.tasks.taskId"}, pages: 1,
	},
	"/holdfast.project.v1.ProjectService/GetTask": {
		fill: func(f *filler) {
			f.state("task", "t1", largeTask(1))
			f.entries("task", "t1", "transitions", 45, transition)
		},
		body: `{"taskId":"t1","pageSize":200}`, items: []string{"transitions.seq"}, next: [2]string{"nextPageToken", "pageToken"}, want: 45,
	},
	"/holdfast.project.v1.ProjectService/ListTasks": {
		fill: func(f *filler) {
			for i := range 24 {
				f.state("task", fmt.Sprint("t", i), largeTask(i))
			}
		},
		body: `{"pageSize":200}`, items: []string{"tasks.taskId"}, next: [2]string{"nextPageToken", "pageToken"}, want: 24,
	},
	"/holdfast.linear.v1.LinearService/ListIssues": {
		service: true,
		fill: func(f *filler) {
			for i := range 100 {
				f.state("linear_issue", fmt.Sprint("i", i), &linearstorev1.IssueState{
					Title: bulk(i, 12_000), Description: bulk(i+1, 40_000), Stamp: &linearstorev1.IssueStamp{TimeMs: 1},
				})
			}
		},
		body: `{"pageSize":200}`, items: []string{"issues.issueId"}, next: [2]string{"nextPageToken", "pageToken"}, want: 100,
	},
	"/holdfast.linear.v1.LinearService/ListComments": {
		service: true,
		fill: func(f *filler) {
			for i := range 60 {
				f.state("linear_comment", fmt.Sprint("c", i), &linearstorev1.CommentState{IssueId: "i1", Body: bulk(i, 90_000), Stamp: &linearstorev1.IssueStamp{TimeMs: 1}})
			}
		},
		body: `{"pageSize":200,"filter":{"issueId":"i1"}}`, items: []string{"comments.commentId"}, next: [2]string{"nextPageToken", "pageToken"}, want: 60,
	},
	"/holdfast.linear.v1.LinearService/ListAttachments": {
		service: true,
		fill: func(f *filler) {
			for i := range 60 {
				f.state("linear_attachment", fmt.Sprint("a", i), &linearstorev1.AttachmentState{IssueId: "i1", Title: bulk(i, 90_000), Stamp: &linearstorev1.IssueStamp{TimeMs: 1}})
			}
		},
		body: `{"pageSize":200,"issueId":"i1"}`, items: []string{"attachments.attachmentId"}, next: [2]string{"nextPageToken", "pageToken"}, want: 60,
	},
	"/holdfast.linear.v1.LinearService/ListIssueHistory": {
		service: true,
		fill: func(f *filler) {
			f.state("linear_issue", "i1", &linearstorev1.IssueState{Title: "t", Stamp: &linearstorev1.IssueStamp{TimeMs: 1}})
			f.entries("linear_issue", "i1", "history", 60, func(i int) proto.Message {
				return &linearstorev1.IssueChange{Action: fmt.Sprint(i), Source: bulk(i, 90_000)}
			})
		},
		body: `{"pageSize":200,"issueId":"i1"}`, items: []string{"changes.action"}, next: [2]string{"nextPageToken", "pageToken"}, want: 60,
	},
	"/holdfast.linear.v1.LinearService/ListAgentSessions": {
		service: true,
		fill: func(f *filler) {
			for i := range 60 {
				f.state("linear_agent_session", fmt.Sprint("s", i), &linearstorev1.AgentSessionState{PromptContext: bulk(i, 90_000), Stamp: &linearstorev1.IssueStamp{TimeMs: 1}})
			}
		},
		body: `{"pageSize":200}`, items: []string{"agentSessions.agentSessionId"}, next: [2]string{"nextPageToken", "pageToken"}, want: 60,
	},
	"/holdfast.linear.v1.LinearService/ListAgentActivities": {
		service: true,
		fill: func(f *filler) {
			f.state("linear_agent_session", "s1", &linearstorev1.AgentSessionState{Stamp: &linearstorev1.IssueStamp{TimeMs: 1}})
			f.entries("linear_agent_session", "s1", "activities", 60, func(i int) proto.Message {
				return &linearstorev1.AgentActivity{ActivityId: fmt.Sprint(i), Body: bulk(i, 90_000)}
			})
		},
		body: `{"pageSize":200,"agentSessionId":"s1"}`, items: []string{"activities.activityId"}, next: [2]string{"nextPageToken", "pageToken"}, want: 60,
	},
	"/holdfast.linear.v1.LinearService/PutIssues": {bounded: "100 issues, each an id, a version and what is wrong with it"},
	"/holdfast.linear.v1.LinearService/ListEndpoints": {
		service: true,
		fill: func(f *filler) {
			for i := range 400 {
				f.state("linear_endpoint", fmt.Sprint("e", i), &linearstorev1.EndpointState{Title: bulk(1, 9_000)})
			}
		},
		body: `{"pageSize":200}`, items: []string{"endpoints.endpointId"}, next: [2]string{"nextPageToken", "pageToken"}, want: 400,
	},

	"/holdfast.coordination.v1.CoordinationService/BeginCall":      {bounded: "a call without a body beyond 64 KiB, and 32 limits"},
	"/holdfast.coordination.v1.CoordinationService/Acquire":        {bounded: "32 limits"},
	"/holdfast.coordination.v1.CoordinationService/Release":        {bounded: "32 limits"},
	"/holdfast.coordination.v1.CoordinationService/AcquireAndWait": {bounded: "32 limits"},
	"/holdfast.coordination.v1.CoordinationService/Report":         {bounded: "what 128 headers name"},
	"/holdfast.coordination.v1.CoordinationService/ListCalls": {
		service: true, fill: calls, body: `{"api":"a1","pageSize":200}`, items: []string{"calls.seq"},
		next: [2]string{"nextPageToken", "pageToken"}, want: 60,
	},
	"/holdfast.coordination.v1.CoordinationService/ListApis": {
		service: true,
		fill: func(f *filler) {
			for i := range 210 {
				f.state("api", fmt.Sprint("a", i), largeAPI(32, 1))
			}
			for i := range 24 {
				f.state("api", fmt.Sprint("b", i), largeAPI(32, 64))
			}
		},
		body: `{"pageSize":200}`, items: []string{"apis.api"}, next: [2]string{"nextPageToken", "pageToken"}, want: 234,
	},
	"/holdfast.coordination.v1.CoordinationService/GetApi": {
		service: true,
		fill: func(f *filler) {
			f.state("api", "a1", largeAPI(1, 1))
			today := time.Now().UTC()
			for from := 1; from < 366; from += 73 {
				f.update("api", "a1", func(tx *object.Tx[proto.Message]) {
					for i := from; i < from+73; i++ {
						day := &coordinationstore.UsageDay{Date: today.AddDate(0, 0, -i).Format(time.DateOnly), Operations: map[string]int64{}}
						for j := range 64 {
							day.Operations[fmt.Sprintf("%0128d", j)] = 1e12
						}
						tx.Put("usage_days", day.GetDate(), day)
					}
				})
			}
		},
		body: `{"api":"a1","usageDays":366}`, items: []string{"usage.date"}, next: [2]string{"nextPageToken", "pageToken"}, want: 365,
	},

	"/holdfast.session.v1.SessionService/CreateSession": {bounded: "a session with 32 connections, and ids of the sessions that ended, 51 at most"},
	"/holdfast.session.v1.SessionService/EndSessions":   {bounded: "ids of 1,000 sessions"},
	"/holdfast.session.v1.SessionService/ListSessions":  {bounded: "50 sessions, 20 that are over and 32 connections, twice, all of one state of 256 KiB"},
	"/holdfast.session.v1.SessionService/ListSecurityEvents": {
		fill: func(f *filler) {
			got := f.call("/holdfast.session.v1.SessionService/CreateSession", `{}`)
			var made struct {
				Session struct {
					SessionID string `json:"sessionId"`
				} `json:"session"`
			}
			if err := json.Unmarshal([]byte(got), &made); err != nil {
				f.Fatal(err)
			}
			id := sessionObject(f, made.Session.SessionID)
			for from := 10; from < 1000; from += 90 {
				f.update("user_sessions", id, func(tx *object.Tx[proto.Message]) {
					for i := from; i < from+90; i++ {
						tx.Put("security_events", object.SeqKey(int64(i)), &storev1.SecurityEvent{Seq: int32(i), Device: &storev1.Device{
							Name: strings.Repeat("\x01", 128), Platform: strings.Repeat("\x01", 64), UserAgent: strings.Repeat("\x01", 2048),
						}})
					}
				})
			}
		},
		body: `{"pageSize":200}`, items: []string{"events.seq"}, next: [2]string{"nextPageToken", "pageToken"}, want: 991,
	},

	"/holdfast.inspect.v1.InspectService/ListObjects": {
		fill: func(f *filler) {
			for i := range 24 {
				f.state("conversation", fmt.Sprint("c", i), largeConversation(i))
			}
		},
		body: `{"kind":"conversation","pageSize":200}`, items: []string{"objects.objectId"}, next: [2]string{"nextPageToken", "pageToken"}, want: 24,
	},
	"/holdfast.inspect.v1.InspectService/GetObject": {
		fill: largeObject, body: `{"ref":{"kind":"conversation","objectId":"c1"},"collection":"messages","pageSize":200}`,
		items: []string{"entries.key"}, next: [2]string{"nextPageToken", "pageToken"}, want: 16,
	},
	"/holdfast.inspect.v1.InspectService/DiffObject": {
		fill: largeObject, body: `{"ref":{"kind":"conversation","objectId":"c1"},"from":{"version":"1"},"pageSize":200}`,
		items: []string{"entries.key"}, next: [2]string{"nextPageToken", "pageToken"}, want: 16,
	},
	"/holdfast.inspect.v1.InspectService/ListEvents": {
		fill: func(f *filler) {
			for i := range 60 {
				f.update("conversation", "c1", func(tx *object.Tx[proto.Message]) {
					for j := range 200 {
						key := fmt.Sprintf("%s%d.%d", strings.Repeat(`"`, 100), i, j)
						tx.Put("client_messages", key, &conversationstorev1.MessageRef{Seq: int64(j)})
					}
				})
			}
		},
		body: `{"ref":{"kind":"conversation","objectId":"c1"},"pageSize":200}`, items: []string{"events.version"},
		next: [2]string{"nextPageToken", "pageToken"}, want: 60,
	},
	"/holdfast.inspect.v1.InspectService/ListTimers": {bounded: "200 timers, each of names of 64, 128 and 128 bytes and an error of a word or two"},
	"/holdfast.inspect.v1.InspectService/EraseUser":  {bounded: "a number for each table"},
}

func must[V any](v V, err error) func(tb testing.TB) V {
	return func(tb testing.TB) V {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}

func largeProject(i int) *projectstorev1.ProjectState {
	return &projectstorev1.ProjectState{Title: "p", Description: bulk(i, 30_000), Settings: largeStruct(i, 150_000), Labels: largeMap(64, 10, 100)}
}

func largeTask(i int) *projectstorev1.TaskState {
	return &projectstorev1.TaskState{
		Title: "t", ProjectId: "p1", Status: projectstorev1.TaskStatus_TASK_STATUS_RUNNING, Result: structpb.NewStringValue(bulk(i, 60_000)), Summary: bulk(i, 60_000), Metadata: largeStruct(i, 100_000),
	}
}

func transition(i int) proto.Message {
	return &projectstorev1.TaskTransition{Seq: int32(i), ResumeReason: bulk(i, 90_000)}
}

// largeAPI has policies whose standing is more than what is stored of them.
func largeAPI(policies, operations int) *coordinationstore.ApiState {
	s := &coordinationstore.ApiState{Config: &coordinationstore.ApiConfig{}}
	for i := range policies {
		p := &coordinationstore.Policy{
			Name: fmt.Sprintf("%064d", i), Algorithm: coordinationstore.Algorithm_ALGORITHM_CALENDAR, Calendar: coordinationstore.Calendar_CALENDAR_MONTH,
			Limit: 1e12, Scope: coordinationstore.Scope_SCOPE_TENANT, Unit: coordinationstore.Unit_UNIT_PERMIT,
		}
		if operations > 1 {
			for j := range operations {
				p.Operations = append(p.Operations, fmt.Sprintf("%0100d", j))
			}
		}
		s.Config.Policies = append(s.Config.Policies, p)
	}
	return s
}

func calls(f *filler) {
	s := largeAPI(32, 60)
	s.FirstSeq, s.LastSeq = 1, 60
	f.state("api", "a1", s)
	f.entries("api", "a1", "calls", 60, func(i int) proto.Message {
		return &coordinationstore.Call{
			Key: fmt.Sprint("r", i), Seq: int64(i), Status: coordinationstore.CallStatus_CALL_STATUS_COMPLETED, CreateTime: timestamppb.Now(),
			UpdateTime: timestamppb.Now(), Outcome: &coordinationstore.Outcome{Headers: largeMap(32, 100, 500)},
		}
	})
}

// fillObject makes an object of the caller's own with a large state and entries.
func fillObject(f *filler, name string, entries, size int) {
	text := func(n int) string { return string(must(json.Marshal(bulk(n, size)))(f)) }
	f.call(stateRPCs+"Apply", fmt.Sprintf(`{"ref":{"type":"note","name":%q},"operations":[{"setState":{"a":%s}}]}`, name, text(1)))
	for i := range entries {
		f.call(stateRPCs+"Apply", fmt.Sprintf(`{"ref":{"type":"note","name":%q},"operations":[{"append":{"collection":"items","text":%s}}]}`, name, text(i)))
	}
}

// largeObject has entries of nearly the most there may be: version 1 has none, version 4 twelve.
func largeObject(f *filler) {
	f.state("conversation", "c1", largeConversation(1))
	for version := range 4 {
		f.update("conversation", "c1", func(tx *object.Tx[proto.Message]) {
			for i := range 4 {
				n := 4*version + i
				m := &conversationstorev1.Message{Seq: int64(n)}
				for j := range 2 {
					m.Parts = append(m.Parts, &conversationstorev1.Part{Part: &conversationstorev1.Part_Json{Json: structpb.NewStructValue(largeStruct(3*n+1+j, 95_000))}})
				}
				if i == 3 {
					m.Parts = []*conversationstorev1.Part{{Part: &conversationstorev1.Part_Json{Json: structpb.NewStructValue(numbers(50_000))}}, {Part: &conversationstorev1.Part_Json{Json: structpb.NewStructValue(largeStruct(1, 100_000))}}}
				}
				tx.Put("messages", object.SeqKey(int64(n)), m)
			}
		})
	}
}

// answersInLists are the methods of whose answers something is a list, and the streams.
func answersInLists() map[string]protoreflect.MethodDescriptor {
	lists := map[string]protoreflect.MethodDescriptor{}
	for p, m := range registered() {
		list := m.IsStreamingServer() || p == projectRPCs+"GetProjectContext" // whose lists are in its context
		for i := range m.Output().Fields().Len() {
			list = list || m.Output().Fields().Get(i).Cardinality() == protoreflect.Repeated
		}
		if list {
			lists[p] = m
		}
	}
	return lists
}

// No answer of any method is larger than 2 MiB, in JSON or in binary, and what one leaves out is in the next.
func TestAnswersOfEveryListAndStreamEndAtTwoMebibytes(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip("it moves too many megabytes for the race detector; CI runs it without one through PgBouncer")
	}
	b, rt := setupRuntime(t)
	methods := answersInLists()
	for p := range answerCases {
		if methods[p] == nil {
			t.Errorf("%s has a case, and is no list and no stream", p)
		}
	}
	for p, m := range methods {
		c, ok := answerCases[p]
		if !ok {
			t.Errorf("%s has no case: how large can its answers be?", p)
			continue
		}
		if c.bounded != "" {
			continue
		}
		t.Run(string(m.Name()), func(t *testing.T) {
			t.Parallel()
			b := b.tenant(t)
			user := identity.User("ada")
			if c.service {
				user = ""
			}
			f := &filler{T: t, b: b, rt: rt, key: b.key(t, user)}
			f.ctx = identity.With(t.Context(), identity.Identity{Tenant: b.Tenant, User: user, Service: c.service})
			c.fill(f)
			c.walk(f, m)
		})
	}
}

func (c *answerCase) walk(f *filler, m protoreflect.MethodDescriptor) {
	f.Helper()
	var request map[string]any
	if err := json.Unmarshal([]byte(c.body), &request); err != nil {
		f.Fatal(err)
	}
	seen := map[string]int{}
	pages := 0
	count := func(page map[string]any) (ids []string) {
		pages++
		for _, path := range c.items {
			of := at(page, strings.Split(path, "."))
			for _, id := range of {
				seen[id]++
			}
			ids = append(ids, of...)
		}
		return ids
	}
	if m.IsStreamingServer() {
		binary := f.stream(m, request, "proto")
		for _, text := range f.stream(m, request, "json") {
			f.fits(m, "JSON", text)
			var page map[string]any
			if err := json.Unmarshal(text, &page); err != nil {
				f.Fatal(err)
			}
			count(page)
		}
		for _, message := range binary {
			f.fits(m, "binary", message)
		}
	}
	for more := !m.IsStreamingServer(); more; {
		text := f.post(m, request, "json")
		f.fits(m, "JSON", text)
		f.fits(m, "binary", f.post(m, request, "proto"))
		var page map[string]any
		if err := json.Unmarshal(text, &page); err != nil {
			f.Fatal(err)
		}
		ids := count(page)
		next := page[c.next[0]]
		if more = next != nil && next != ""; !more {
			break
		}
		field, first := strings.CutPrefix(c.next[1], "<")
		field, path, named := strings.Cut(field, "=")
		if named {
			ids = at(page, strings.Split(path, "."))
		}
		switch {
		case next != true:
			request[field] = next
		case len(ids) == 0:
			f.Fatal("there is more, and nothing to go on from")
		case first:
			request[field] = ids[0]
		default:
			request[field] = ids[len(ids)-1]
		}
		if pages > 100 {
			f.Fatal("the pages do not end")
		}
	}
	for id, n := range seen {
		if n != 1 {
			f.Errorf("%s came %d times", id, n)
		}
	}
	if c.want > 0 && len(seen) != c.want || len(c.items) > 0 && len(seen) == 0 {
		f.Errorf("%d items came, want %d", len(seen), c.want)
	}
	least := c.pages
	if least == 0 {
		least = 2
	}
	if pages < least {
		f.Errorf("%d answers: what was stored is too small to show anything", pages)
	}
}

// at are the values at a path, through lists.
func at(v any, path []string) (out []string) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			out = append(out, at(e, path)...)
		}
	case map[string]any:
		if len(path) > 0 {
			out = at(v[path[0]], path[1:])
		}
	case string:
		out = []string{v}
	case float64:
		out = []string{strconv.FormatFloat(v, 'f', -1, 64)}
	}
	return out
}

func (f *filler) fits(m protoreflect.MethodDescriptor, form string, answer []byte) {
	f.Helper()
	if len(answer) > mostAnswered {
		f.Errorf("%s: an answer of %d bytes in %s", m.Name(), len(answer), form)
	}
}

// encoded is a request in JSON or in binary.
func encoded(tb testing.TB, m protoreflect.MethodDescriptor, request map[string]any, codec string) []byte {
	tb.Helper()
	text := must(json.Marshal(request))(tb)
	if codec == "json" {
		return text
	}
	msg := dynamicpb.NewMessage(m.Input())
	if err := protojson.Unmarshal(text, msg); err != nil {
		tb.Fatal(err)
	}
	return must(proto.Marshal(msg))(tb)
}

func (f *filler) post(m protoreflect.MethodDescriptor, request map[string]any, codec string) []byte {
	f.Helper()
	res := f.send(m, "application/"+codec, encoded(f, m, request, codec))
	defer res.Body.Close()
	body := must(io.ReadAll(res.Body))(f)
	if res.StatusCode != http.StatusOK {
		f.Fatalf("%s %s: %s", m.Name(), codec, body)
	}
	return body
}

// stream reads messages until one says that no more follows at once.
func (f *filler) stream(m protoreflect.MethodDescriptor, request map[string]any, codec string) (messages [][]byte) {
	f.Helper()
	message := encoded(f, m, request, codec)
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	res := f.send(m, "application/connect+"+codec, frame)
	defer res.Body.Close()
	for {
		var head [5]byte
		if _, err := io.ReadFull(res.Body, head[:]); err != nil {
			f.Fatal(err)
		}
		message := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(res.Body, message); err != nil || head[0]&2 != 0 {
			f.Fatalf("%s %s ended: %v %s", m.Name(), codec, err, message)
		}
		messages = append(messages, message)
		msg := dynamicpb.NewMessage(m.Output())
		decode := proto.Unmarshal
		if codec == "json" {
			decode = protojson.Unmarshal
		}
		if err := decode(message, msg); err != nil {
			f.Fatal(err)
		}
		var of protoreflect.Message = msg
		if changed := m.Output().Fields().ByName("changed"); changed != nil {
			of = msg.Get(changed).Message()
		}
		more := of.Descriptor().Fields().ByName("more")
		if more == nil || !of.Get(more).Bool() {
			return messages
		}
	}
}

func (f *filler) send(m protoreflect.MethodDescriptor, contentType string, body []byte) *http.Response {
	f.Helper()
	req := must(http.NewRequestWithContext(f.Context(), http.MethodPost, f.b.url+procedure(m), bytes.NewReader(body)))(f)
	name, value, _ := strings.Cut(f.key, ": ")
	req.Header.Set(name, value)
	req.Header.Set("Content-Type", contentType)
	return must(f.b.http.Do(req))(f)
}

func sessionObject(f *filler, session string) string {
	f.Helper()
	k, _ := f.rt.Kind("user_sessions")
	page := must(k.List(f.ctx, object.ListOptions{}))(f)
	if len(page.Items) != 1 {
		f.Fatal(session, page.Items)
	}
	return string(page.Items[0].ID)
}
