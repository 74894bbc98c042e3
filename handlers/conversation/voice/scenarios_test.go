package voice

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"

	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/handlers/conversation/voice/voicetest"
)

// scenarioLine is a line of a scenario: a client opens a connection or closes it, or one of its frames, as JSON, as text
// or as the text of a binary frame.
type scenarioLine struct {
	Open   json.RawMessage `json:"open"`
	Close  int32           `json:"close"`
	Conn   int64           `json:"conn"`
	Frame  json.RawMessage `json:"frame"`
	Text   string          `json:"text"`
	Binary string          `json:"binary"`
}

func (l *scenarioLine) liveFrame(index int64) *livev1.LiveFrame {
	switch {
	case l.Binary != "":
		return &livev1.LiveFrame{ClientIndex: int32(index), Frame: &livev1.LiveFrame_Binary{Binary: []byte(l.Binary)}}
	case l.Text != "":
		return textFrame(index, l.Text)
	default:
		return textFrame(index, string(l.Frame))
	}
}

func scenario(t *testing.T, file string) (lines []scenarioLine) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for scanner := bufio.NewScanner(bytes.NewReader(data)); scanner.Scan(); {
		var line scenarioLine
		decoder := json.NewDecoder(bytes.NewReader(scanner.Bytes()))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&line); err != nil {
			t.Fatalf("%s: %v", scanner.Text(), err)
		}
		lines = append(lines, line)
	}
	return lines
}

// play folds a scenario in batches of at most so many frames of one connection; 0: as many as there are. It returns how
// the voice turn went, which with one frame a batch is each of its steps.
func (s *liveStore) play(t *testing.T, lines []scenarioLine, most int) (voice []string) {
	t.Helper()
	var batch []*livev1.LiveFrame
	epoch, index := int64(0), int64(0)
	flush := func() {
		if len(batch) == 0 {
			return
		}
		if _, err := s.ingest(epoch, batch...); err != nil {
			t.Fatal(err)
		}
		batch = nil
		s.check(t)
		if now := shortName(s.state.GetVoice().GetStatus()); len(voice) == 0 || voice[len(voice)-1] != now {
			voice = append(voice, now)
		}
	}
	for _, line := range lines {
		if line.Conn != epoch || len(batch) == most {
			flush()
		}
		switch {
		case line.Open != nil:
			req := &livev1.ConnectLiveRequest{}
			if err := protojson.Unmarshal(line.Open, req); err != nil {
				t.Fatal(err)
			}
			s.do(testNow, func(f *Reducer) { f.take(req.GetSetupHash()) })
		case line.Close != 0:
			s.do(testNow, func(f *Reducer) { f.CloseLive(line.Close) })
		default:
			if line.Conn != epoch {
				epoch, index = line.Conn, 0
			}
			index++
			batch = append(batch, line.liveFrame(index))
		}
	}
	flush()
	return voice
}

// outcomeJSON is what a scenario leads to: how the voice turn went, the messages, the tool calls, the connection.
func (s *liveStore) outcomeJSON(t *testing.T, voice []string) string {
	t.Helper()
	result := struct {
		Voice             []string          `json:"voice"`
		LastTranscription string            `json:"last_transcription"`
		Messages          []json.RawMessage `json:"messages"`
		ToolCalls         []json.RawMessage `json:"tool_calls"`
		StoredThrough     int64             `json:"stored_through"`
		TotalTokens       int64             `json:"total_tokens"`
		UnknownFrames     int64             `json:"unknown_frames"`
	}{
		Voice: voice, LastTranscription: s.state.GetVoice().GetLastTranscription(), StoredThrough: s.state.GetLive().GetLastClientIndex(),
		TotalTokens: s.state.GetLive().GetTotalTokens(), UnknownFrames: s.state.GetLive().GetUnknownFrames(),
	}
	for seq := range s.state.GetLastSeq() {
		result.Messages = append(result.Messages, json.RawMessage(voicetest.Compact(t, s.messages[seq+1])))
	}
	for seq := range s.state.GetToolCallCount() {
		result.ToolCalls = append(result.ToolCalls, json.RawMessage(voicetest.Compact(t, s.bySeq[seq+1])))
	}
	data, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data) + "\n"
}

// TestScenarios folds short recordings, testdata/live/*.jsonl, and compares what they lead to with the golden files
// beside them. A recording leads to the same in batches of any size.
func TestScenarios(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/live/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".jsonl"), func(t *testing.T) {
			t.Parallel()
			lines := scenario(t, file)
			single := newLiveStore()
			got := single.outcomeJSON(t, single.play(t, lines, 1))
			golden := strings.TrimSuffix(file, ".jsonl") + ".golden.json"
			if *updateGolden {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("outcome (-want +got); -update rewrites it:\n%s", diff)
			}
			for _, most := range []int{0, 2, 3, 7} {
				s := newLiveStore()
				s.play(t, lines, most)
				if diff := cmp.Diff(single, s, cmp.AllowUnexported(liveStore{}), protocmp.Transform()); diff != "" {
					t.Errorf("in batches of %d (-frame by frame +in batches):\n%s", most, diff)
				}
			}
		})
	}
}
