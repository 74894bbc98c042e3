package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const recording = "../../examples/gemini-live-session.jsonl"

func TestReplay(t *testing.T) {
	t.Parallel()
	server := dev(t)
	env := map[string]string{"HOLDFAST_API": server.API, "HOLDFAST_TOKEN": server.Token}
	code, stdout, stderr := run(t, env, "replay", "--speed", "0", recording)
	if code != 0 {
		t.Fatalf("ended with %d: %s", code, stderr)
	}
	for _, want := range []string{
		"[#1 user voice complete] Can you look at issue", // its earlier states may come as one
		"[#5 assistant voice interrupted] Good idea.",
		"[tool fc-001 completed] create_agent_run\n",
		"\nconnection 1: start fresh (first)\nconnection 2: resume\n",
		"\n9 messages, 2 tool calls, ", " versions from 58 frames\nconversation ",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in\n%s", want, stdout)
		}
	}
}

// TestReplayAlone: without a server there is one for the time being.
func TestReplayAlone(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := run(t, nil, "replay", "--speed", "0", recording)
	if code != 0 || !strings.Contains(stdout, "\n9 messages, 2 tool calls, ") || !strings.Contains(stderr, "a server of its own") {
		t.Errorf("ended with %d: %s\n%s", code, stderr, stdout)
	}
}

// What each frame does is shown without a server, and the frames that a conversation keeps are replayed as a file is.
func TestReplayExplains(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := run(t, nil, "replay", "--explain", recording)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "The transcript:\n    user: Can you look at issue") {
		t.Errorf("ended with %d: %s\n%s", code, stderr, stdout)
	}
}

func TestReplayRefused(t *testing.T) {
	t.Parallel()
	bad := filepath.Join(t.TempDir(), "bad.jsonl")
	if err := os.WriteFile(bad, []byte(`{"t": 0, "conn": 1, "from": "client", "frame": {}}`+"\n[]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"bad line", []string{bad}, 1, "bad.jsonl: line 2: not an object"},
		{"no file", []string{"nothing.jsonl"}, 1, "nothing.jsonl: no such file"},
		{"no token", []string{"--api", "http://127.0.0.1:1", recording}, 2, "no API key for http://127.0.0.1:1"},
		{"no server", []string{"--api", "http://127.0.0.1:1", "--token", "x", recording}, 1, "is there a server at http://127.0.0.1:1?"},
		{"neither", nil, 2, "give a file or --conversation"},
		{"both", []string{"--conversation", "c", recording}, 2, "give a file or --conversation"},
		{"no token for a conversation", []string{"--explain", "--conversation", "c"}, 2, "no API key"},
		{"negative", []string{"--speed=-1", recording}, 2, "cannot be negative"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			code, _, stderr := run(t, nil, append([]string{"replay"}, tt.args...)...)
			if code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("ended with %d: %s, want %d and %q", code, stderr, tt.code, tt.want)
			}
		})
	}
}
