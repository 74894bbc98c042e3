// Package voicetest has frames of the Live API for tests, in few letters.
package voicetest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	livev1 "holdfast/gen/holdfast/live/v1"
)

// Frames that say nothing but what they are called. Audio is of no length.
const (
	ActivityStart = `{"voiceActivity":{"voiceActivityType":"ACTIVITY_START"}}`
	ActivityEnd   = `{"voiceActivity":{"voiceActivityType":"ACTIVITY_END"}}`
	Audio         = `{"serverContent":{"modelTurn":{"role":"model","parts":[{"inlineData":{"mimeType":"audio/pcm","data":"AAAA"}}]}}}`
	Interrupted   = `{"serverContent":{"interrupted":true}}`
	Generated     = `{"serverContent":{"generationComplete":true}}`
	TurnComplete  = `{"serverContent":{"turnComplete":true}}`
	TurnIdle      = `{"serverContent":{"turnComplete":true,"interactionStatus":"IDLE"}}`
)

// Reconnect stands for a new connection where frames are listed.
const Reconnect = "reconnect"

// Quote is a text as JSON.
func Quote(text string) string {
	quoted, _ := json.Marshal(text) //nolint:errchkjson // a string
	return string(quoted)
}

// In is what the user said.
func In(text string) string {
	return `{"serverContent":{"inputTranscription":{"text":` + Quote(text) + `}}}`
}

// Interim is what the user may have said.
func Interim(text string) string {
	return `{"serverContent":{"interimInputTranscription":{"text":` + Quote(text) + `}}}`
}

// Out is what the model said.
func Out(text string) string {
	return `{"serverContent":{"outputTranscription":{"text":` + Quote(text) + `}}}`
}

// Part is what the model wrote.
func Part(text string) string {
	return `{"serverContent":{"modelTurn":{"parts":[{"text":` + Quote(text) + `}]}}}`
}

// Typed is what the user wrote.
func Typed(text string) string { return `{"realtimeInput":{"text":` + Quote(text) + `}}` }

// Call is a tool call.
func Call(id string) string {
	return `{"toolCall":{"functionCalls":[{"id":` + Quote(id) + `,"name":"run","args":{"n":1}}]}}`
}

// Answer is the response to it.
func Answer(id string) string {
	return `{"toolResponse":{"functionResponses":[{"id":` + Quote(id) + `,"response":{"output":"ok"}}]}}`
}

// Resumption is an update with a handle.
func Resumption(handle string) string {
	return `{"sessionResumptionUpdate":{"newHandle":` + Quote(handle) + `,"resumable":true}}`
}

// Usage is a count of tokens.
func Usage(response, total int) string {
	return fmt.Sprintf(`{"usageMetadata":{"responseTokenCount":%d,"totalTokenCount":%d}}`, response, total)
}

// Text is a frame as it is sent to IngestLive.
func Text(index int64, text string) *livev1.LiveFrame {
	return &livev1.LiveFrame{ClientIndex: int32(index), Frame: &livev1.LiveFrame_Text{Text: text}} //nolint:gosec // small
}

// Short is the frame that some letters stand for: in:x, out:x, tx:x, typed:x, call:id, answer:id, AU (0.1 s of audio), GC, TC, INT, VS and
// VE (generationComplete, turnComplete, interrupted, voiceActivity), OPEN (a new connection). Anything else is the frame's JSON.
func Short(frame string) string {
	switch frame {
	case "AU":
		return `{"serverContent":{"modelTurn":{"role":"model","parts":[{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"` + strings.Repeat("A", 6400) + `"}}]}}}`
	case "GC":
		return Generated
	case "TC":
		return TurnComplete
	case "INT":
		return Interrupted
	case "VS":
		return ActivityStart
	case "VE":
		return ActivityEnd
	case "OPEN":
		return Reconnect
	}
	kind, text, _ := strings.Cut(frame, ":")
	switch kind {
	case "in":
		return In(text)
	case "out":
		return Out(text)
	case "tx":
		return Part(text)
	case "typed":
		return Typed(text)
	case "call":
		return Call(text)
	case "answer":
		return Answer(text)
	}
	return frame
}

// Recorded is a frame of a recording: when it came, in milliseconds, and by which connection.
type Recorded struct {
	At, Epoch int64
	Frame     *livev1.LiveFrame
}

// Recording reads a recording such as examples/gemini-live-session.jsonl.
func Recording(tb testing.TB, path string) []Recorded {
	tb.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	var lines []Recorded
	next := map[int64]int64{}
	for scanner := bufio.NewScanner(bytes.NewReader(data)); scanner.Scan(); {
		var line struct {
			T     int64           `json:"t"`
			Conn  int64           `json:"conn"`
			Frame json.RawMessage `json:"frame"`
		}
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			tb.Fatal(err)
		}
		next[line.Conn]++
		lines = append(lines, Recorded{line.T, line.Conn, Text(next[line.Conn], string(line.Frame))})
	}
	return lines
}

// Compact is a message's JSON without the blanks that protojson varies on purpose.
func Compact(tb testing.TB, m proto.Message) string {
	tb.Helper()
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		tb.Fatal(err)
	}
	return b.String()
}
