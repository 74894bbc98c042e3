package conversation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/handlers/conversation/voice"
)

// The stories: a frontend that knows nothing but the public API talks to a provider over a WebSocket, which dies at each of
// its frames in turn. Whatever happens, the conversation must be that of the undisturbed run.

// frontend is what a page or an app does, and no more.
type frontend struct {
	t            *testing.T
	c            client
	conversation string
	device       string
	provider     *provider

	token int32
	// owes: the last connection may owe frames, and ended with this code.
	closeCode int32
	refused   bool // the provider refused the handle
	index     int32
	outbox    []*livev1.LiveFrame // not stored yet
	socket    *websocket.Conn
	// offline: the server cannot be reached either.
	offline bool
	// offlineFor is how many frames before the death of the socket that begins.
	offlineFor int
	got        int  // frames of the script
	leaving    bool // the provider said goAway

	executed map[string]int // tool calls, by id
	// slow has a tool call that comes on a dying socket answered on the next one.
	slow    bool
	claimed []*conversationv1.ToolCall
	plans   []*livev1.Plan
	waited  bool                                         // it was told when to leave, and not now
	heard   func(f *frontend, m *conversationv1.Message) // called at the end of a turn that was interrupted
}

const setupHash = "setup-1"

// dies reports whether the socket is killed within so many frames, the last that came among them.
func (f *frontend) dies(within int) bool {
	left := f.provider.killAt - f.got
	return f.provider.killAt > 0 && 0 <= left && left < within
}

// connect takes the conversation over and connects to the provider as the plan says.
func (f *frontend) connect(ctx context.Context) error {
	for {
		req := &connectReq{ConversationId: f.conversation, Device: device(f.device), SetupHash: setupHash, TakeOver: true}
		if f.token != 0 {
			req.Previous = &livev1.Previous{FencingToken: f.token, Frames: f.outbox, CloseCode: f.closeCode, HandleRefused: f.refused}
		}
		res, err := f.c.ConnectLive(ctx, req)
		if err != nil {
			return err
		}
		plan := res.GetPlan()
		f.token, f.index, f.outbox, f.leaving, f.refused, f.closeCode = res.GetLease().GetFencingToken(), 0, nil, false, false, 0
		f.plans = append(f.plans, plan)
		f.socket, _, err = websocket.Dial(ctx, f.provider.server.URL, nil) //nolint:bodyclose // of a WebSocket there is no body
		if err != nil {
			return err
		}
		setup := `{"setup":{"model":"m","sessionResumption":{}}}`
		switch {
		case plan.GetHandle() != "":
			setup = `{"setup":{"model":"m","sessionResumption":{"handle":` + quote(plan.GetHandle()) + `}}}`
		case plan.GetSend() != nil:
			setup = `{"setup":{"model":"m","sessionResumption":{},"historyConfig":{"initialHistoryInClientContent":true}}}`
		}
		if err := f.send(ctx, setup, true); err != nil {
			return err
		}
		_, first, err := f.socket.Read(ctx)
		if err != nil {
			if plan.GetHandle() == "" {
				return err
			}
			// It refused the handle: say so, and begin anew.
			f.refused, f.closeCode = true, int32(websocket.CloseStatus(err))
			continue
		}
		if _, err := f.ingest(ctx, string(first)); err != nil {
			return err
		}
		if err := f.sendObject(ctx, plan.GetSend(), false); err != nil {
			return err
		}
		late := f.claimed
		f.claimed = nil
		for _, call := range late {
			if err := f.complete(ctx, call); err != nil {
				return err
			}
		}
		return nil
	}
}

// sendObject sends a frame that the server made; nil: none.
func (f *frontend) sendObject(ctx context.Context, frame *structpb.Struct, ingest bool) error {
	if frame == nil {
		return nil
	}
	raw, err := protojson.Marshal(frame)
	if err != nil {
		return err
	}
	return f.send(ctx, string(raw), ingest)
}

// send sends a frame to the provider, and to the server where it is news or part of the session's beginning.
func (f *frontend) send(ctx context.Context, frame string, ingest bool) error {
	if err := f.socket.Write(ctx, websocket.MessageText, []byte(frame)); err != nil {
		return err
	}
	if !ingest {
		return nil
	}
	_, err := f.ingest(ctx, frame)
	return err
}

// ingest sends a frame to the server, with all that is not stored yet.
func (f *frontend) ingest(ctx context.Context, frame string) (*livev1.IngestLiveResponse, error) {
	f.index++
	f.outbox = append(f.outbox, &livev1.LiveFrame{ClientIndex: f.index, Frame: &livev1.LiveFrame_Text{Text: frame}})
	return f.flush(ctx)
}

func (f *frontend) flush(ctx context.Context) (*livev1.IngestLiveResponse, error) {
	if f.offline || len(f.outbox) == 0 {
		return &livev1.IngestLiveResponse{}, nil
	}
	res, err := f.c.IngestLive(ctx, &livev1.IngestLiveRequest{ConversationId: f.conversation, FencingToken: f.token, Frames: f.outbox})
	if err != nil {
		return nil, err
	}
	f.outbox = slices.DeleteFunc(f.outbox, func(l *livev1.LiveFrame) bool { return l.GetClientIndex() <= res.GetStoredThrough() })
	return res, nil
}

// listen takes in what the provider sends until the connection ends; over: it said that the session is.
func (f *frontend) listen(ctx context.Context) (over bool, err error) {
	defer f.socket.CloseNow()
	for {
		_, raw, err := f.socket.Read(ctx)
		switch {
		case websocket.CloseStatus(err) == websocket.StatusNormalClosure:
			return true, nil
		case err != nil:
			return false, ctx.Err()
		}
		if !strings.Contains(string(raw), "Welcome!") {
			f.got++
		}
		f.offline = f.offline || f.offlineFor > 0 && f.got > 0 && f.dies(f.offlineFor)
		res, err := f.ingest(ctx, string(raw))
		if err != nil {
			return false, err
		}
		for _, call := range res.GetToolCalls() {
			if call.GetClaim() != nil && call.GetStatus() == conversationv1.ToolCallStatus_TOOL_CALL_STATUS_RUNNING {
				if err := f.execute(ctx, call); err != nil {
					return false, err
				}
			}
		}
		for _, m := range res.GetMessages() {
			if f.heard != nil && m.GetStatus() == conversationv1.MessageStatus_MESSAGE_STATUS_INTERRUPTED {
				f.heard(f, m)
			}
		}
		if strings.Contains(string(raw), "goAway") {
			f.leaving = true
		}
		f.waited = f.waited || res.GetRotate().GetWithin() != nil && !res.GetRotate().GetNow()
		if f.leaving && !f.offline && res.GetRotate().GetNow() {
			return false, nil
		}
	}
}

// execute does a tool call that the connection has claimed.
func (f *frontend) execute(ctx context.Context, call *conversationv1.ToolCall) error {
	if f.executed[call.GetCallId()]++; f.slow && f.dies(1) {
		f.claimed = append(f.claimed, call) // it is done when this socket is dead
		return nil
	}
	return f.complete(ctx, call)
}

// complete records a response, and tells the provider what the server says.
func (f *frontend) complete(ctx context.Context, call *conversationv1.ToolCall) error {
	res, err := f.c.CompleteToolCall(ctx, &completeReq{
		ConversationId: f.conversation, Seq: call.GetSeq(), FencingToken: call.GetClaim().GetFencingToken(),
		Response: structpb.NewStructValue(outputOf("RESULT-" + call.GetCallId())),
	})
	if err != nil {
		return err
	}
	// The socket may be dead: then the session never saw the response, and is told what it was when it is resumed.
	return ignoreDead(f.sendObject(ctx, res.GetSend(), true))
}

// ignoreDead passes over the death of a socket, which the next read will tell. A refusal of the server is no such thing.
func ignoreDead(err error) error {
	if connect.CodeOf(err) != connect.CodeUnknown {
		return err
	}
	return nil
}

// run talks until the provider says that it is over.
func (f *frontend) run(ctx context.Context) error {
	for range 10 {
		err := f.connect(ctx)
		over := false
		if err == nil {
			over, err = f.listen(ctx)
		}
		if connect.CodeOf(err) != connect.CodeUnknown && err != nil || ctx.Err() != nil {
			return err
		}
		if over {
			return nil
		}
		f.closeCode = 1006
	}
	return fmt.Errorf("%s: too many connections", f.device)
}

// outcome is what a story left, for comparison.
type outcome struct {
	user, assistant string // their words, in order
	tool            []string
	executed        map[string]int
	fragments       string
	messages        []*conversationv1.Message
}

func (f *frontend) outcome() outcome {
	f.t.Helper()
	o := outcome{executed: f.executed}
	res := must(f.c.ListMessages(f.t.Context(), &conversationv1.ListMessagesRequest{ConversationId: f.conversation, PageSize: 200}))(f.t)
	o.messages = res.GetMessages()
	for _, m := range o.messages {
		switch m.GetRole() {
		case conversationv1.Role_ROLE_USER:
			o.user += " " + m.GetText()
		case conversationv1.Role_ROLE_ASSISTANT:
			o.assistant += " " + m.GetText()
		default:
			o.tool = append(o.tool, m.GetText())
		}
		if m.GetStatus() == conversationv1.MessageStatus_MESSAGE_STATUS_STREAMING {
			f.t.Errorf("message %d was left open: %v", m.GetSeq(), m)
		}
	}
	for _, x := range records(must(f.c.ListRecords(f.t.Context(), &conversationv1.ListRecordsRequest{ConversationId: f.conversation, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_FRAGMENT}}))(f.t), (*conversationv1.Record).GetFragment) {
		o.fragments += " " + x.GetUserText() + " " + x.GetAssistantText()
	}
	o.user, o.assistant = voice.Canonical(o.user), voice.Canonical(o.assistant)
	return o
}

// story is a script, and what else happens in it.
type story struct {
	script  []step
	refuses websocket.StatusCode
	slow    bool
	heard   func(f *frontend, m *conversationv1.Message)
	// run plays it; nil: one frontend does until it is over.
	run   func(t *testing.T, f *frontend)
	check func(t *testing.T, f *frontend, got outcome)
}

func speaks(utterance int, words ...string) []step {
	steps := []step{{frame: activityStart}}
	for _, w := range words {
		steps = append(steps, step{frame: interim(w), utterance: utterance}, step{frame: in(w), utterance: utterance})
	}
	return append(steps, step{frame: activityEnd})
}

func replies(words ...string) []step {
	steps := []step{{frame: audio}}
	for _, w := range words {
		steps = append(steps, step{frame: out(w)})
	}
	return append(steps, step{frame: generated + usage(5, 50)}, step{frame: turnIdle}, step{handle: true})
}

// play runs a story with the socket killed at a frame, or not at all.
func (s story) play(t *testing.T, c client, id string, killAt int, retells bool) (*frontend, outcome) {
	t.Helper()
	p := &provider{script: s.script, killAt: killAt, retells: retells, refuses: s.refuses}
	p.start(t)
	f := &frontend{t: t, c: c, conversation: id, device: "laptop", provider: p, executed: map[string]int{}, slow: s.slow, heard: s.heard}
	must(c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: id}))(t)
	if s.run != nil {
		s.run(t, f)
	} else {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := f.run(ctx); err != nil {
			t.Fatalf("killed at %d: %v", killAt, err)
		}
	}
	if len(p.strange) > 0 {
		t.Errorf("killed at %d: the provider got %q", killAt, p.strange)
	}
	if p.greeted > 1 {
		t.Errorf("killed at %d: it greeted %d times", killAt, p.greeted)
	}
	got := f.outcome()
	return f, got
}

// everywhere plays a story undisturbed, and then killed at every frame, with a provider that transcribes again and one that
// does not. The words and the tools must be the same each time.
func (s story) everywhere(t *testing.T) {
	t.Helper()
	c := setup(t).client(t, ada)
	f, want := s.play(t, c, "undisturbed", 0, false)
	if s.check != nil {
		s.check(t, f, want)
	}
	if want.user == "" || want.assistant == "" {
		t.Fatalf("nothing was said: %+v", want)
	}
	frames := f.provider.sent
	for _, retells := range []bool{false, true} {
		for at := 1; at <= frames; at++ {
			f, got := s.play(t, c, fmt.Sprint("killed-", at, "-", retells), at, retells)
			if s.refuses != 0 && f.provider.refused > 1 {
				t.Errorf("killed at %d: a handle was offered again", at)
			}
			if got.user != want.user {
				t.Errorf("killed at %d, told again %t: the user said\n%q, undisturbed\n%q", at, retells, got.user, want.user)
			}
			if got.assistant != want.assistant {
				t.Errorf("killed at %d, told again %t: the assistant said\n%q, undisturbed\n%q", at, retells, got.assistant, want.assistant)
			}
			if fmt.Sprint(got.executed) != fmt.Sprint(want.executed) {
				t.Errorf("killed at %d: executed %v, undisturbed %v", at, got.executed, want.executed)
			}
			if got.fragments != "" {
				t.Errorf("killed at %d: abandoned %q", at, got.fragments)
			}
			if s.check != nil {
				s.check(t, f, got)
			}
			if t.Failed() {
				t.FailNow()
			}
		}
	}
}

func TestStoryGoAwayDuringAToolCall(t *testing.T) {
	t.Parallel()
	story{
		script: slices.Concat(
			speaks(1, "Start ", "a run ", "please."), []step{{handle: true}},
			[]step{{frame: call("fc-1")}, {frame: `{"goAway":{"timeLeft":"50s"}}`}, {tool: "fc-1"}},
			replies("It ", "is running."), []step{{rotate: true}},
			speaks(2, "Thank ", "you."), replies("You ", "are welcome."),
		),
		check: func(t *testing.T, f *frontend, got outcome) {
			t.Helper()
			if !f.provider.answered["fc-1"] {
				t.Error("the model never learned the result")
			}
			if len(got.tool) > 1 {
				t.Errorf("the result was told %d times: %q", len(got.tool), got.tool)
			}
			if f.provider.killAt != 0 {
				return
			}
			if !f.waited || len(got.tool) != 0 || len(f.plans) != 2 {
				t.Errorf("nobody waited for the tool: %v", f.plans)
			}
		},
	}.everywhere(t)
}

func TestStoryBargeIn(t *testing.T) {
	t.Parallel()
	story{
		script: slices.Concat(
			speaks(1, "Tell me ", "everything."),
			[]step{{frame: audio}, {frame: out("Well, ")}, {frame: out("first of all ")}, {frame: activityStart}, {frame: interrupted}},
			[]step{{frame: out("there is ")}, {frame: in("Stop "), utterance: 2}, {frame: out("more.")}, {frame: turnComplete}, {frame: in("it."), utterance: 2}, {frame: activityEnd}},
			replies("All ", "right."),
		),
		heard: func(f *frontend, m *conversationv1.Message) {
			if !strings.HasPrefix(m.GetText(), "Well") || f.offline {
				return
			}
			for range 2 { // a report may come twice
				_, err := f.c.EditMessages(f.t.Context(), &conversationv1.EditMessagesRequest{ConversationId: f.conversation, Updates: []*conversationv1.MessageUpdate{{Message: &conversationv1.Message{Seq: m.GetSeq(), Spoken: &conversationv1.Spoken{HeardText: new("Well, first and something else")}}}}})
				if err != nil {
					f.t.Error(err)
				}
			}
		},
		check: func(t *testing.T, f *frontend, _ outcome) {
			t.Helper()
			res := must(f.c.GetContextWindow(t.Context(), &conversationv1.GetContextWindowRequest{ConversationId: f.conversation}))(t)
			var texts []string
			for _, i := range res.GetItems() {
				texts = append(texts, i.GetMessage().GetText())
			}
			window := strings.Join(texts, "|")
			if f.provider.killAt == 0 && (!strings.Contains(window, "|Well, first|") || strings.Contains(window, "more")) {
				t.Errorf("the window has what was not heard: %q", window)
			}
		},
	}.everywhere(t)
}

func TestStoryResumeRefused(t *testing.T) {
	t.Parallel()
	for _, code := range []websocket.StatusCode{1007, 1011} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			story{
				script: slices.Concat(
					speaks(1, "What ", "is next?"), replies("The ", "second issue."),
					speaks(2, "Take ", "it."), replies("Taken ", "and assigned."),
				),
				refuses: code,
			}.everywhere(t)
		})
	}
}

func TestStoryToolResultAfterItsSocketDied(t *testing.T) {
	t.Parallel()
	story{
		script: slices.Concat(
			speaks(1, "Deploy ", "it."), []step{{handle: true}}, []step{{frame: call("fc-9")}, {tool: "fc-9"}},
			replies("It ", "is deployed."), speaks(2, "Great."), replies("Anything ", "else?"),
		),
		slow: true,
		check: func(t *testing.T, f *frontend, got outcome) {
			t.Helper()
			if !f.provider.answered["fc-9"] {
				t.Error("the model never learned the result")
			}
			if len(got.tool) > 1 {
				t.Errorf("the result was told %d times: %q", len(got.tool), got.tool)
			}
			calls := records(must(f.c.ListRecords(t.Context(), &conversationv1.ListRecordsRequest{ConversationId: f.conversation, Types: []conversationv1.RecordType{conversationv1.RecordType_RECORD_TYPE_TOOL_CALL}}))(t), (*conversationv1.Record).GetToolCall)
			if len(calls) != 1 || calls[0].GetStatus() != conversationv1.ToolCallStatus(voice.CallCompleted) || calls[0].GetResultSeq() == 0 && calls[0].GetDeliveredConnection() == 0 {
				t.Errorf("the ledger has %v", calls)
			}
		},
	}.everywhere(t)
}

// The laptop hears the last frames, but cannot reach the server any more; then its socket dies too. The phone takes over, and
// the laptop comes back when all is over.
func TestStoryThePhoneTakesOver(t *testing.T) {
	t.Parallel()
	const unsaid = 2 // frames that the laptop could not pass on
	s := story{
		script: slices.Concat(
			speaks(1, "Please ", "open ", "my ", "first issue."), replies("Opening ", "it ", "now."),
			speaks(2, "Also ", "assign ", "someone."), replies("Who ", "should ", "that be?"),
		),
		run: func(t *testing.T, laptop *frontend) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			laptop.offlineFor = unsaid
			if err := laptop.connect(ctx); err != nil {
				t.Fatal(err)
			}
			over, err := laptop.listen(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if over {
				return
			}
			phone := *laptop
			phone.device, phone.offline, phone.offlineFor, phone.outbox, phone.token = "phone", false, 0, nil, 0
			if err := phone.run(ctx); err != nil {
				t.Fatalf("killed at %d: %v", laptop.provider.killAt, err)
			}
			before := phone.outcome()
			laptop.offline = false
			if len(laptop.outbox) > 0 {
				_, err := laptop.flush(ctx)
				refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
				_, err = laptop.flush(ctx) // a retry is refused in the same way
				refusal{code: connect.CodeFailedPrecondition, reason: "FENCED"}.check(t, err)
			}
			same(t, "the messages after the laptop came back", list(phone.outcome().messages), list(before.messages))
		},
	}
	c := setup(t).client(t, ada)
	f, want := s.play(t, c, "undisturbed", 0, false)
	all := strings.Fields(want.user + " " + want.assistant)
	frames := f.provider.sent
	for _, retells := range []bool{false, true} {
		for at := 1; at <= frames; at++ {
			_, got := s.play(t, c, fmt.Sprint("killed-", at, "-", retells), at, retells)
			messages := strings.Fields(got.user + " " + got.assistant)
			fragments := strings.Fields(voice.Canonical(got.fragments))
			for _, word := range all {
				n := 0
				for _, m := range messages {
					if m == word {
						n++
					}
				}
				if n > 1 || n == 0 && !slices.Contains(fragments, word) {
					t.Errorf("killed at %d, told again %t: %q is %d times in %q and abandoned %q", at, retells, word, n, messages, fragments)
				}
			}
			if t.Failed() {
				t.FailNow()
			}
		}
	}
}

func list(m []*conversationv1.Message) *conversationv1.ListMessagesResponse {
	return &conversationv1.ListMessagesResponse{Messages: m}
}
