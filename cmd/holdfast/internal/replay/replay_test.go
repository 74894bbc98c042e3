package replay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
)

func TestRead(t *testing.T) {
	t.Parallel()
	const ok = `{"t": 1.5, "conn": 1, "from": "client", "frame": {"setup": {}}}` + "\n"
	for _, tt := range []struct {
		name, file string
		want       []Frame
		wantErr    string
	}{
		{
			name: "two frames", file: ok + "\n" + `{"t": 20, "conn": 2, "from": "server", "frame": {"setupComplete": {}}}`,
			want: []Frame{
				{At: 1500 * time.Microsecond, Connection: 1, JSON: `{"setup": {}}`},
				{At: 20 * time.Millisecond, Connection: 2, JSON: `{"setupComplete": {}}`},
			},
		},
		{name: "empty", file: "\n", wantErr: "no frames"},
		{name: "no JSON", file: ok + "hello\n", wantErr: "line 2: not an object"},
		{name: "cut", file: `{"t": 1, "conn": 1`, wantErr: "line 1: not an object"},
		{name: "two objects", file: `{"t": 1, "conn": 1, "from": "client", "frame": {}} {}`, wantErr: "line 1: something follows"},
		{name: "typing error", file: `{"t": 1, "con": 1, "from": "client", "frame": {}}`, wantErr: `line 1: not an object with t, conn, from and frame: json: unknown field "con"`},
		{name: "no t", file: `{"conn": 1, "from": "client", "frame": {}}`, wantErr: "line 1: t must be"},
		{name: "no conn", file: `{"t": 1, "from": "client", "frame": {}}`, wantErr: "line 1: conn must be"},
		{name: "no from", file: `{"t": 1, "conn": 1, "frame": {}}`, wantErr: "line 1: from must be"},
		{name: "no frame", file: `{"t": 1, "conn": 1, "from": "server"}`, wantErr: "line 1: frame must be"},
		{name: "frame is a list", file: `{"t": 1, "conn": 1, "from": "server", "frame": []}`, wantErr: "line 1: frame must be"},
		{name: "t falls", file: ok + `{"t": 1, "conn": 1, "from": "server", "frame": {}}`, wantErr: "line 2: t falls, from 1 to 1"},
		{name: "conn falls", file: `{"t": 1, "conn": 2, "from": "server", "frame": {}}` + "\n\n" + ok, wantErr: "line 3: conn falls, from 2 to 1"},
		{name: "long line", file: ok + strings.Repeat(" ", maxLine+1), wantErr: "line 2: longer than 4194304 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := Read(strings.NewReader(tt.file))
			if tt.wantErr == "" && err != nil || tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)) {
				t.Fatalf("got %v, want %q", err, tt.wantErr)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadExample(t *testing.T) {
	t.Parallel()
	f, err := os.Open("../../../../examples/gemini-live-session.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	frames, err := Read(f)
	if err != nil || len(frames) != 58 || frames[57].Connection != 2 {
		t.Errorf("%d frames, %v, want 58 on two connections", len(frames), err)
	}
}

func TestBatches(t *testing.T) {
	t.Parallel()
	frame := func(ms int, connection int64) Frame {
		return Frame{At: time.Duration(ms) * time.Millisecond, Connection: connection, JSON: "{}"}
	}
	big := frame(0, 1)
	big.JSON = strings.Repeat("x", maxBytes/2)
	for _, tt := range []struct {
		name   string
		frames []Frame
		speed  float64
		want   string // due, epoch and client indexes of each batch
	}{
		{"gathered for 50 ms from the first", []Frame{frame(100, 1), frame(140, 1), frame(150, 1), frame(151, 1)}, 1, "150ms e1 1-3; 151ms e1 4-4"},
		{"faster, so more fall together", []Frame{frame(100, 1), frame(140, 1), frame(199, 1), frame(201, 1)}, 2, "99.5ms e1 1-3; 100.5ms e1 4-4"},
		{"slower, so fewer", []Frame{frame(100, 1), frame(140, 1)}, 0.5, "200ms e1 1-1; 280ms e1 2-2"},
		{"at once, in the batches of the recording", []Frame{frame(100, 1), frame(140, 1), frame(300, 1)}, 0, "0s e1 1-2; 0s e1 3-3"},
		{"a connection of its own", []Frame{frame(100, 1), frame(110, 2), frame(120, 2)}, 1, "100ms e1 1-1; 120ms e2 1-2"},
		{"long pause", []Frame{frame(0, 1), frame(60000, 1), frame(60100, 1)}, 1, "0s e1 1-1; 1s e1 2-2; 1.1s e1 3-3"},
		{"too large for one", []Frame{big, big, big}, 1, "0s e1 1-2; 0s e1 3-3"},
		{"too many for one", make([]Frame, maxFrames+1), 1, "0s e0 1-1000; 0s e0 1001-1001"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, b := range Batches(tt.frames, tt.speed, time.Second) {
				got = append(got, fmt.Sprintf("%v e%d %d-%d", b.Due, b.Epoch, b.Frames[0].GetClientIndex(), b.Frames[len(b.Frames)-1].GetClientIndex()))
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, "; ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPlay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var sent []time.Duration
		batches := []Batch{{Due: 0}, {Due: time.Second}, {Due: 2 * time.Second}, {Due: 10 * time.Second}}
		err := Play(t.Context(), batches, func(ctx context.Context, b Batch) error {
			sent = append(sent, time.Since(began))
			if b.Due == time.Second { // the next one is late by then, and sent at once
				return waitUntil(ctx, time.Now().Add(3*time.Second))
			}
			return nil
		})
		if diff := cmp.Diff([]time.Duration{0, time.Second, 4 * time.Second, 10 * time.Second}, sent); diff != "" || err != nil {
			t.Error(diff, err)
		}
	})
}

func TestPlayEnds(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	if err := Play(t.Context(), make([]Batch, 2), func(context.Context, Batch) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want the error of send", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Play(ctx, []Batch{{Due: time.Hour}}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

func change(version int64, reset bool, messages ...*conversationv1.Message) *watchv1.WatchResponse {
	c := &watchv1.Changed{Reset_: reset, Version: version, Put: []*watchv1.Thing{{Key: "conversation", Thing: &watchv1.Thing_Conversation{
		Conversation: &conversationv1.Conversation{Voice: &conversationv1.VoiceState{Status: conversationv1.VoiceStatus_VOICE_STATUS_LISTENING}},
	}}}}
	for _, m := range messages {
		c.Put = append(c.Put, &watchv1.Thing{Key: fmt.Sprint("messages/", m.GetSeq()), Thing: &watchv1.Thing_Message{Message: m}})
	}
	return &watchv1.WatchResponse{Event: &watchv1.WatchResponse_Changed{Changed: c}}
}

func TestView(t *testing.T) {
	t.Parallel()
	said := func(seq int32, status conversationv1.MessageStatus, text string) *conversationv1.Message {
		return &conversationv1.Message{
			Seq: seq, Role: conversationv1.Role_ROLE_ASSISTANT, Modality: typev1.Modality_MODALITY_VOICE, Status: status, Text: text,
		}
	}
	const streaming, complete = conversationv1.MessageStatus_MESSAGE_STATUS_STREAMING, conversationv1.MessageStatus_MESSAGE_STATUS_COMPLETE
	called := change(4, false)
	called.GetChanged().Put = append(called.GetChanged().GetPut(), &watchv1.Thing{Key: "tool_calls/1", Thing: &watchv1.Thing_Record{
		Record: &conversationv1.Record{Record: &conversationv1.Record_ToolCall{ToolCall: &conversationv1.ToolCall{
			Seq: 1, AfterSeq: 1, CallId: "fc-1", Name: "create_run", Status: conversationv1.ToolCallStatus_TOOL_CALL_STATUS_PENDING,
		}}},
	}})

	v := &View{}
	for _, step := range []struct {
		change *watchv1.WatchResponse
		want   []string // the lines of the change
		all    []string // the lines of the conversation
	}{
		{change(1, true), nil, []string{"version 1, voice listening"}},
		{change(2, false, said(1, streaming, "Sure.")), []string{"[#1 assistant voice streaming] Sure."}, []string{"[#1 assistant voice streaming] Sure.", "version 2, voice listening"}},
		{&watchv1.WatchResponse{Event: &watchv1.WatchResponse_Heartbeat{}}, nil, []string{"[#1 assistant voice streaming] Sure.", "version 2, voice listening"}},
		{
			change(3, false, said(1, complete, "Sure. Done."), said(2, streaming, "And\x1b[2J now\nthis")),
			[]string{"[#1 assistant voice complete] Sure. Done.", "[#2 assistant voice streaming] And [2J now this"},
			[]string{"[#1 assistant voice complete] Sure. Done.", "[#2 assistant voice streaming] And [2J now this", "version 3, voice listening"},
		},
		{called, []string{"[tool fc-1 pending] create_run"}, []string{
			"[#1 assistant voice complete] Sure. Done.", "[tool fc-1 pending] create_run", "[#2 assistant voice streaming] And [2J now this", "version 4, voice listening",
		}},
		{
			change(9, true, said(3, complete, strings.Repeat("ä", 200))),
			[]string{"[#3 assistant voice complete] " + strings.Repeat("ä", maxText) + "…"},
			[]string{"[#3 assistant voice complete] " + strings.Repeat("ä", maxText) + "…", "version 9, voice listening"},
		},
	} {
		if diff := cmp.Diff(step.want, v.Apply(step.change)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(step.all, v.Lines(10)); diff != "" {
			t.Error(diff)
		}
	}
	if v.Version() != 9 || v.Messages() != 1 || v.ToolCalls() != 0 {
		t.Errorf("version %d, %d messages, %d tool calls", v.Version(), v.Messages(), v.ToolCalls())
	}
}

func TestViewShowsTheLast(t *testing.T) {
	t.Parallel()
	v := &View{}
	for seq := range int64(5) {
		v.Apply(change(seq+1, false, &conversationv1.Message{Seq: int32(seq + 1)}))
	}
	if got := v.Lines(2); len(got) != 3 || !strings.HasPrefix(got[0], "[#4 ") {
		t.Errorf("%q, want the messages 4 and 5 and the state", got)
	}
}

func TestScreen(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	s := NewScreen(&b)
	s.Draw([]string{"one", "two"})
	s.Draw([]string{"three"})
	s.Draw(nil)
	want := "\x1b[?7lone\x1b[K\ntwo\x1b[K\n\x1b[J\x1b[?7h" + "\x1b[?7l\x1b[2A\rthree\x1b[K\n\x1b[J\x1b[?7h" + "\x1b[?7l\x1b[1A\r\x1b[J\x1b[?7h"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
